"""Short names and aligned data in LiteRT files: `tfdistill.litert.compaction`."""

from __future__ import annotations

import gzip
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from quick import only

from tfdistill._keras import tf, tf_keras
from tfdistill.export.conversion import convert
from tfdistill.litert.compaction import compact, with_floats_for_products
from tfdistill.litert.flatbuffer import inspect_content, layer_of
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.quantization import Quantization, quantize

LAYERS = tf_keras.layers


def inputs(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=[count, 12, 12, 1]).astype(np.float32)


def network(normalized: bool = True) -> Any:
    source = LAYERS.Input([12, 12, 1], name="image")
    hidden = LAYERS.Conv2D(8, 3, use_bias=not normalized, name="first")(source)
    if normalized:
        hidden = LAYERS.BatchNormalization(name="normalization")(hidden)
    hidden = LAYERS.ReLU(name="rectified")(hidden)
    hidden = LAYERS.SeparableConv2D(8, 3, name="separable", activation="relu")(hidden)
    hidden = LAYERS.DepthwiseConv2D(3, name="depthwise")(hidden)
    hidden = LAYERS.BatchNormalization(name="scaled")(hidden)
    hidden = LAYERS.Flatten(name="flat")(LAYERS.Add(name="sum")([hidden, hidden]))
    return tf_keras.Model(source, LAYERS.Dense(10, name="scores")(hidden), name="student")


def converted(format: str) -> tuple[bytes, Any]:
    if format == "trained int8":
        model = quantize(network(normalized=False), Quantization(), sparse=False).model
        model(inputs(), training=True)
        return convert(model, "int8", quantization_aware=True), model
    model = network()
    examples = [{"image": each[np.newaxis]} for each in inputs()] if format == "int8" else []
    return convert(model, format, examples=examples), model


def names(content: bytes) -> list[str]:
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    return [tensor.name.decode() for tensor in graph.tensors]


_FORMATS = ["float32", "float16", "dynamic_int8", "int8", "trained int8"]


@pytest.mark.parametrize("format", only("float32", "int8", of=_FORMATS))
def test_names_are_short_and_nothing_else_changes(format: str) -> None:
    content, model = converted(format)
    small = compact(content, model)

    before, after = LiteRTModel(content), LiteRTModel(small)
    np.testing.assert_array_equal(
        after.predict(inputs())["scores"], before.predict(inputs())["scores"]
    )
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert after.inspection.operators == before.inspection.operators
    assert [(w.shape, w.dtype, w.zeros) for w in after.inspection.weights] == [
        (w.shape, w.dtype, w.zeros) for w in before.inspection.weights
    ]
    found = names(small)
    assert len(set(found)) == len(found)
    assert found[0] == "image"
    assert "scores" in found
    # Before it is quantized, such a layer is split in two.
    second = "separable/depthwise/weights" if format == "trained int8" else "separable/weights_1"
    assert {weight.name for weight in after.inspection.weights} == {
        "first/weights",
        "separable/weights",
        second,
        "depthwise/weights",
        "scores/weights",
    }
    assert {"first/conv_2d", "sum/add", "flat/reshape"} < set(found)
    assert all(layer_of(weight.name, model) != "?" for weight in after.inspection.weights)


@pytest.mark.parametrize("format", only("int8", of=["int8", "trained int8"]))
def test_files_become_smaller(format: str) -> None:
    content, model = converted(format)
    small = compact(content, model)
    assert len(small) < len(content) - 300
    assert len(gzip.compress(small, 9)) < len(gzip.compress(content, 9)) - 100


def test_data_are_where_the_schema_wants_them() -> None:
    """Python's generated code, through which TensorFlow's converter puts each file, forgets it."""
    content, model = converted("int8")
    packed = schema.Model.GetRootAs(compact(content, model, {"extra": b"12345"}), 0)
    places = []
    for index in range(packed.BuffersLength()):
        buffer = packed.Buffers(index)
        if not buffer.DataIsNone():
            places.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(places) > 8
    assert [place % 16 for place in places] == [0] * len(places)


def test_nothing_tells_of_the_conversion_but_the_runtime_that_is_needed() -> None:
    content, model = converted("float32")
    packed = schema.ModelT.InitFromPackedBuf(compact(content, model, {"extra": b"12345"}), 0)
    entries = {each.name.decode(): packed.buffers[each.buffer].data for each in packed.metadata}
    assert entries.keys() == {"min_runtime_version", "extra"}
    assert bytes(entries["extra"]) == b"12345"
    assert bytes(entries["min_runtime_version"]).startswith((b"1.", b"2."))
    empty = [buffer for buffer in packed.buffers if buffer.data is None or not len(buffer.data)]
    assert len(empty) == 1


def test_a_loop_keeps_its_body() -> None:
    source = LAYERS.Input([5, 3], name="steps")
    hidden = LAYERS.GRU(4, name="memory")(source)
    model = tf_keras.Model(source, LAYERS.Dense(2, name="scores")(hidden))
    content = convert(model, "float32")
    small = compact(content, model)
    assert len(schema.ModelT.InitFromPackedBuf(small, 0).subgraphs) > 1
    steps = np.random.default_rng(0).normal(size=[4, 5, 3]).astype(np.float32)
    np.testing.assert_array_equal(
        LiteRTModel(small).predict(steps)["scores"], LiteRTModel(content).predict(steps)["scores"]
    )
    assert "memory/weights" in {weight.name for weight in inspect_content(small, "").weights}


def test_an_output_that_is_an_input_too() -> None:
    first, second = LAYERS.Input([2], name="same"), LAYERS.Input([2], name="other")
    outputs = [
        LAYERS.Add(name="same_sum")([first, second]),
        LAYERS.Reshape([2], name="as_is")(first),
    ]
    model = tf_keras.Model([first, second], outputs)
    small = compact(convert(model, "float32"), model)
    found = LiteRTModel(small).predict({"same": np.ones([3, 2]), "other": np.full([3, 2], 2.0)})
    np.testing.assert_array_equal(found["same_sum"], np.full([3, 2], 3.0))
    np.testing.assert_array_equal(found["as_is"], np.ones([3, 2]))
    assert len(set(names(small))) == len(names(small))


def test_the_layer_with_the_kernel_is_named() -> None:
    model = network()
    for name, layer in (
        ("student/rectified/Relu;student/first/Conv2D", "first"),
        ("student/scaled/FusedBatchNormV3;student/depthwise/depthwise1", "depthwise"),
        ("student/sum/add", "sum"),
        ("arith.constant", "?"),
    ):
        assert layer_of(name, model) == layer
    quantized = quantize(network(False), Quantization(), sparse=False).model
    assert layer_of("student/quant_flat/Reshape;student/quant_sum/FakeQuant", quantized) == "flat"
    assert layer_of("first/weights", quantized) == "first"
    image = LAYERS.Input([4, 4, 2])
    free = tf_keras.Model(image, LAYERS.BatchNormalization(name="free")(LAYERS.ReLU()(image)))
    quantized = quantize(free, Quantization(), sparse=False).model
    assert layer_of("student/quant_free/identity/depthwise", quantized) == "free/identity"
    assert layer_of("student/quant_free/FusedBatchNormV3", quantized) == "free"


def test_what_lies_behind_the_flatbuffer_is_brought_in() -> None:
    """As ai-edge-quantizer writes large files: a buffer says where in the file its data are."""
    content, model = converted("float32")
    packed = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = packed.subgraphs[0]
    (kernel,) = [each for each in graph.tensors if list(each.shape)[:1] == [10]]
    buffer = packed.buffers[kernel.buffer]
    data, buffer.data, buffer.size = bytes(buffer.data), None, len(buffer.data)
    outside = b""
    for least in (16, 0):  # the first for the length of it all
        buffer.offset = least or -(-len(outside) // 16) * 16
        builder = flatbuffers.Builder(1024)
        builder.Finish(packed.Pack(builder), file_identifier=b"TFL3")
        outside = bytes(builder.Output())
    outside = outside.ljust(buffer.offset, b"\0") + data

    expected = LiteRTModel(content).predict(inputs())["scores"]
    np.testing.assert_array_equal(LiteRTModel(outside).predict(inputs())["scores"], expected)
    assert inspect_content(outside, "").elements == inspect_content(content, "").elements
    small = compact(outside, model)
    assert len(small) < len(content)
    np.testing.assert_array_equal(LiteRTModel(small).predict(inputs())["scores"], expected)


def test_select_operators_keep_their_names() -> None:
    source = LAYERS.Input([16], name="features")
    values = LAYERS.Lambda(lambda x: tf.linalg.det(tf.reshape(x, [-1, 4, 2, 2])), name="d")(source)
    model = tf_keras.Model(source, LAYERS.Dense(2, name="scores")(values))
    small = compact(convert(model, "float32", allow_select_ops=True), model)
    assert inspect_content(small, "").custom_operators == ("FlexMatrixDeterminant",)


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning")
def test_values_are_turned_into_floats_where_the_converter_forgot_it() -> None:
    """A product with a constant in float, of values in 8 bits that a second one reads, too."""
    random = np.random.default_rng(1)
    kernels = [tf.Variable(random.normal(size=[4, 6]), dtype=tf.float32) for _ in range(2)]

    @tf.function(input_signature=[tf.TensorSpec([1, 5, 8], name="values")])
    def products(values: Any) -> Any:
        values = tf.quantization.fake_quant_with_min_max_vars(values, -3.0, 3.0)
        values = tf.reshape(values, [1, 10, 4])
        first, second = (tf.einsum("abc,cd->abd", values, kernel) for kernel in kernels)
        return {"product": first * second}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([products.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    values = np.random.default_rng(2).normal(size=[1, 5, 8]).astype(np.float32)
    with pytest.raises(RuntimeError, match="INT8 != FLOAT32"):  # else the converter was repaired
        Interpreter(model_content=content).allocate_tensors()

    repaired = with_floats_for_products(content)
    (product,) = LiteRTModel(repaired).predict(values).values()
    np.testing.assert_allclose(product, products(values)["product"], rtol=1e-5, atol=1e-5)
    operators = inspect_content(repaired, "products").operators
    assert [each.count for each in operators if each.name == "DEQUANTIZE"] == [1]
    assert with_floats_for_products(repaired) is repaired

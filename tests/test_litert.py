"""Running and reading LiteRT files: `tfdistill.litert` `.runtime` and `.flatbuffer`."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfdistill._keras import tf_keras
from tfdistill.errors import DataError, ModelError
from tfdistill.export.conversion import calibration_examples, convert
from tfdistill.host import standard_error_held_back
from tfdistill.litert.flatbuffer import inspect_file
from tfdistill.litert.runtime import (
    LiteRTModel,
    inputs_by_name,
    measure_latency,
    signature_names,
)

LAYERS = tf_keras.layers


def write(path: Path, model: Any, format: str = "float32", **options: Any) -> Path:
    examples = []
    if format in ("int8", "int16x8"):
        shape = (32, *model.inputs[0].shape[1:])
        batch = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
        examples = calibration_examples(batch, model, 32)
    path.write_bytes(convert(model, format, examples=examples, **options))
    return path


def dense(units: int = 4, activation: str | None = None, inputs: int = 16) -> Any:
    source = LAYERS.Input([inputs], name="features")
    return tf_keras.Model(source, LAYERS.Dense(units, activation, name="scores")(source))


@pytest.fixture
def convolutional() -> Any:
    """A model with one kernel of each kind, half of whose weights are 0."""
    source = LAYERS.Input([8, 8, 16], name="image")
    hidden = LAYERS.Conv2D(16, 3, name="convolution")(source)
    hidden = LAYERS.DepthwiseConv2D(3, name="depthwise")(hidden)
    hidden = LAYERS.GlobalAveragePooling2D(name="pooling")(hidden)
    model = tf_keras.Model(source, LAYERS.Dense(10, name="logits")(hidden))
    generator = np.random.default_rng(0)
    weights = []
    for weight in model.get_weights():
        # Far from 0: a weight that the rounding to int8 takes to 0 would be counted, too.
        values = generator.uniform(0.5, 1.0, weight.shape).astype(np.float32)
        if weight.ndim > 1:
            values.flat[::2] = 0
        weights.append(values)
    model.set_weights(weights)
    return model


def alone(path: Path, example: np.ndarray) -> np.ndarray:
    """One example through the bare runtime, as in LiteRT's documentation."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = source["quantization"]
    if scale:
        rounded = np.round(example / np.float32(scale)) + zero_point
        limits = np.iinfo(source["dtype"])
        example = np.clip(rounded, limits.min, limits.max)
    interpreter.set_tensor(source["index"], example[np.newaxis].astype(source["dtype"]))
    interpreter.invoke()
    found = interpreter.get_tensor(target["index"])[0]
    scale, zero_point = target["quantization"]
    return (found.astype(np.float32) - zero_point) * np.float32(scale) if scale else found


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_predict_quantizes_and_dequantizes_as_an_app_does(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.tflite", dense(), "int8", types=(kind, kind))
    inputs = np.random.default_rng(1).uniform(-0.5, 1.5, [20, 16]).astype(np.float32)

    outputs = LiteRTModel(path).predict(inputs)["scores"]

    assert outputs.dtype == np.float32
    assert outputs.shape == (20, 4)
    np.testing.assert_array_equal(outputs, [alone(path, example) for example in inputs])


def test_reference_kernels_compute_the_same_to_a_step(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tflite", dense(), "int8")
    inputs = np.random.default_rng(1).uniform(-0.5, 1.5, [20, 16]).astype(np.float32)
    fast, plain = LiteRTModel(path), LiteRTModel(path, reference_kernels=True)

    (scale,) = fast.inspection.output_scales.values()
    differences = fast.predict(inputs)["scores"] - plain.predict(inputs)["scores"]
    assert scale is not None
    assert np.abs(differences).max() <= 1.001 * scale
    delegated = [
        any(operator["op_name"] == "DELEGATE" for operator in each._interpreter._get_ops_details())
        for each in (fast, plain)
    ]
    assert delegated == [True, False]


def test_predict_takes_several_inputs_by_name(tmp_path: Path) -> None:
    first, second = LAYERS.Input([2], name="z"), LAYERS.Input([2], name="a")
    model = tf_keras.Model([first, second], LAYERS.Subtract(name="difference")([first, second]))
    artifact = LiteRTModel(write(tmp_path / "a.tflite", model))

    outputs = artifact.predict({"a": np.full([3, 2], 1.0), "z": np.full([3, 2], 5.0)})

    np.testing.assert_array_equal(outputs["difference"], np.full([3, 2], 4.0))
    with pytest.raises(DataError, match=r"`inputs` must be given by name: .*Received: ndarray\."):
        artifact.predict(np.zeros([3, 2]))
    with pytest.raises(DataError, match="must hold one example or more, equally many in each"):
        artifact.predict({"a": np.zeros([3, 2]), "z": np.zeros([2, 2])})


def test_each_example_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    """The runtime's LSTM keeps its state from one run to the next; Keras' does not."""
    source = LAYERS.Input([6, 3], name="sequence")
    model = tf_keras.Model(source, LAYERS.Dense(2, name="logits")(LAYERS.LSTM(4)(source)))
    inputs = np.random.default_rng(0).normal(size=[5, 6, 3]).astype(np.float32)
    artifact = LiteRTModel(write(tmp_path / "a.tflite", model))

    assert artifact.inspection.stateful
    np.testing.assert_allclose(artifact.predict(inputs)["logits"], model(inputs), atol=1e-5)


def test_predict_refuses_what_does_not_fit(tmp_path: Path) -> None:
    artifact = LiteRTModel(write(tmp_path / "a.tflite", dense()))
    with pytest.raises(
        DataError, match=r"`inputs` must have the shape \[batch, 16\] .*Received: \(3, 8\)"
    ):
        artifact.predict(np.zeros([3, 8]))
    with pytest.raises(DataError, match="`inputs` must hold one example or more"):
        artifact.predict(np.zeros([0, 16]))
    with pytest.raises(DataError, match=r"given by name: features\. Received: \['other'\]"):
        artifact.predict({"other": np.zeros([3, 16])})


def test_an_example_that_the_runtime_refuses_is_an_error(tmp_path: Path) -> None:
    source = LAYERS.Input([1], dtype="int32", name="word")
    model = tf_keras.Model(source, LAYERS.Flatten()(LAYERS.Embedding(4, 2)(source)))
    artifact = LiteRTModel(write(tmp_path / "a.tflite", model))
    with pytest.raises(ModelError, match=r"must run on every example\. Received: .*out of bounds"):
        artifact.predict(np.array([[9]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes without the identifier TFL3"),
        (b"not a model at all", "18 bytes without the identifier TFL3"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "schema version 0"),
    ],
)
def test_what_is_no_model_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    for read in (inspect_file, LiteRTModel):
        with pytest.raises(ModelError, match=rf"must be a LiteRT model.*Received: .*{message}"):
            read(path)
    with pytest.raises(ModelError, match=r"must be a LiteRT model.*No such file"):
        inspect_file(tmp_path / "missing.tflite")


def test_damage_is_an_error_or_harmless_and_never_a_crash(tmp_path: Path) -> None:
    content = write(tmp_path / "a.tflite", dense(), "int8").read_bytes()
    path = tmp_path / "damaged.tflite"
    generator = random.Random(0)
    refused = 0
    for trial in range(150):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[generator.randrange(len(damaged)) :]
        else:
            for _ in range(trial % 7 + 1):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            inspect_file(path)
        except ModelError:
            refused += 1
    assert refused >= 50  # every file that was cut off


def test_files_for_larger_batches_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tflite", dense())
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape = [8, 16]
    with pytest.raises(ModelError, match=r"must take one example at a time.*\(8, 16\)"):
        LiteRTModel(pack(model))


def pack(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("format", ["float32", "float16", "dynamic_int8", "int8", "int16x8"])
def test_zeros_are_counted_in_the_file(tmp_path: Path, convolutional: Any, format: str) -> None:
    inspection = inspect_file(write(tmp_path / "a.tflite", convolutional, format))

    assert inspection.format == format
    assert inspection.elements == 3 * 3 * 16 * 16 + 3 * 3 * 16 + 16 * 10
    assert inspection.zeros == inspection.elements // 2
    by_operator = {each.operator: (each.zeros, each.elements) for each in inspection.weights}
    assert by_operator == {
        "CONV_2D": (1152, 2304),
        "DEPTHWISE_CONV_2D": (72, 144),
        "FULLY_CONNECTED": (80, 160),
    }


def test_zero_is_the_zero_point(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tflite", dense(), "int8")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    layer = next(each for each in graph.operators if len(each.inputs) == 3)
    kernel = graph.tensors[layer.inputs[1]]
    values = np.zeros([4, 16], np.int8)
    values[1] = 3
    values[2, :5] = 7
    model.buffers[kernel.buffer].data = values.view(np.uint8).ravel()
    kernel.quantization.quantizedDimension = 0
    kernel.quantization.scale = [0.1] * 4
    kernel.quantization.zeroPoint = [0, 3, 7, 7]
    path.write_bytes(pack(model))

    (weight,) = inspect_file(path).weights
    assert (weight.zeros, weight.elements) == (16 + 16 + 5 + 0, 64)


def test_a_shared_kernel_is_counted_once(tmp_path: Path) -> None:
    first, second = LAYERS.Input([8], name="first"), LAYERS.Input([8], name="second")
    shared = LAYERS.Dense(4, "relu", name="shared")
    model = tf_keras.Model([first, second], LAYERS.Add()([shared(first), shared(second)]))
    inspection = inspect_file(write(tmp_path / "a.tflite", model))
    assert [each.count for each in inspection.operators if each.weights] == [2]
    assert inspection.elements == 32


def test_zeros_make_the_download_smaller(tmp_path: Path) -> None:
    model = dense(64, inputs=64)
    full = inspect_file(write(tmp_path / "full.tflite", model))
    model.set_weights([weight * (np.indices(weight.shape)[0] == 0) for weight in model.weights])
    sparse = inspect_file(write(tmp_path / "sparse.tflite", model))
    assert sparse.raw_bytes == (tmp_path / "sparse.tflite").stat().st_size == full.raw_bytes
    assert sparse.gzip_bytes < full.gzip_bytes / 4


@pytest.mark.parametrize(
    ("activation", "probabilities"),
    [(None, ()), ("relu", ()), ("softmax", ("scores",)), ("sigmoid", ("scores",))],
)
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_inspect_tells_probabilities_from_logits(
    tmp_path: Path, activation: str | None, probabilities: tuple[str, ...], format: str
) -> None:
    path = write(tmp_path / "a.tflite", dense(activation=activation), format)
    assert inspect_file(path).probabilities == probabilities


def test_inspect_finds_the_step_behind_a_float_output(tmp_path: Path) -> None:
    model = dense()
    inside = inspect_file(write(tmp_path / "a.tflite", model, "int8"))
    outside = inspect_file(write(tmp_path / "b.tflite", model, "int8", types=("float32", "int8")))
    floating = inspect_file(write(tmp_path / "c.tflite", model, "dynamic_int8"))

    assert inside.outputs[0].scale is None
    assert inside.output_scales == {"scores": outside.outputs[0].scale}
    assert outside.output_scales["scores"] == pytest.approx(outside.outputs[0].scale)
    assert floating.output_scales == {"scores": None}


def test_inspect_lists_operators_with_their_types(tmp_path: Path, convolutional: Any) -> None:
    inspection = inspect_file(write(tmp_path / "a.tflite", convolutional, "int8"))
    rows = {(each.name, each.activations, each.weights) for each in inspection.operators}
    assert rows == {
        ("QUANTIZE", "int8", None),
        ("CONV_2D", "int8", "int8"),
        ("DEPTHWISE_CONV_2D", "int8", "int8"),
        ("MEAN", "int8", None),
        ("FULLY_CONNECTED", "int8", "int8"),
        ("DEQUANTIZE", "float32", None),
    }
    assert inspection.custom_operators == ()
    assert not inspection.stateful


def test_latency_is_measured_in_turn() -> None:
    order = []

    def runs(name: str, seconds: float) -> Iterator[float]:
        while True:
            order.append(name)
            yield seconds

    first, second = measure_latency([runs("a", 0.001), runs("b", 0.002)], repeats=30)
    assert order == ["a", "b"] * 33
    assert astuple(first) == pytest.approx((1.0, 1.0, 30))
    assert astuple(second) == pytest.approx((2.0, 2.0, 30))
    (short,) = measure_latency([runs("c", 0.001)], repeats=1000, seconds=0.0)
    assert short.runs == 10


def test_percentiles_are_of_the_times() -> None:
    seconds = iter([0.5, 0.5, *np.random.default_rng(0).permutation(np.arange(1, 12)) / 1000])
    (found,) = measure_latency([seconds], repeats=11)
    assert astuple(found) == pytest.approx((6.0, 10.0, 11))


def test_signature_names_are_identifiers_and_differ() -> None:
    assert signature_names(["image", "my-in put", "my_in put", "class", "1st", "é"]) == [
        "image",
        "my_in_put",
        "my_in_put_2",
        "class_",
        "tensor_1st",
        "tensor_",
    ]


def test_inputs_by_name_takes_what_keras_takes() -> None:
    one, two = np.zeros([2]), np.ones([2])
    assert list(inputs_by_name(one, ["image"])) == ["image"]
    for given in ([one, two], {"b b": two, "a": one}):
        found = inputs_by_name(given, ["a", "b b"])
        assert list(found) == ["a", "b_b"]
        np.testing.assert_array_equal(found["b_b"], two)
    with pytest.raises(DataError, match=r"`data` must hold the model's inputs: a, b\. Received"):
        inputs_by_name([one], ["a", "b"])
    with pytest.raises(DataError, match=r"must hold the model's inputs: a\. Received: \['c'\]"):
        inputs_by_name({"c": one}, ["a"])


def test_standard_error_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        standard_error_held_back(say_on_error=False),
        standard_error_held_back(say_on_error=True),
    ):
        os.write(2, b"inside")
    with pytest.raises(ZeroDivisionError), standard_error_held_back(say_on_error=False):
        os.write(2, b"inside" * (1 // 0))
    os.write(2, b"outside")
    assert capfd.readouterr().err == "outside"
    with pytest.raises(ZeroDivisionError), standard_error_held_back(say_on_error=True):
        os.write(2, b"why" * (os.write(2, b"why") // 0))
    assert capfd.readouterr().err == "why"

"""Weights in 4 bits: `tfdistill.litert.int4`, and what certificates and reports say of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import tfdistill as td
from tfdistill._keras import tf_keras
from tfdistill.certificate import certify
from tfdistill.errors import ExportError, SettingError
from tfdistill.export import export_model
from tfdistill.export.conversion import convert
from tfdistill.export.exported import check_before_training
from tfdistill.litert.flatbuffer import inspect_content
from tfdistill.litert.int4 import to_int4
from tfdistill.report import Row, advice

LAYERS = tf_keras.layers
_EXTRA = 'needs the extra: pip install "tfdistill[int4]"'


@pytest.fixture(autouse=True)
def quantizer(request: pytest.FixtureRequest) -> None:
    if "without_the_package" not in request.node.name:
        pytest.importorskip("ai_edge_quantizer", reason=_EXTRA)


def network(size: int = 8) -> Any:
    """Each kind of kernel; the Dense layers have 128 and 48 inputs."""
    source = LAYERS.Input([size, size, 1], name="image")
    hidden = LAYERS.Conv2D(16, 3, padding="same", activation="relu", name="convolution")(source)
    hidden = LAYERS.DepthwiseConv2D(3, padding="same", name="depthwise")(hidden)
    hidden = LAYERS.Conv2DTranspose(8, 2, name="transposed")(hidden)
    hidden = LAYERS.Conv2D(8, 3, strides=2, activation="relu", name="strided")(hidden)
    hidden = LAYERS.Flatten(name="flat")(hidden)
    hidden = LAYERS.Dense(48, activation="relu", name="hidden")(hidden)
    return tf_keras.Model(source, LAYERS.Dense(10, name="logits")(hidden), name="student")


@pytest.fixture(scope="module")
def student(two_devices: None, digits: tuple[np.ndarray, np.ndarray]) -> Any:
    tf_keras.utils.set_random_seed(0)
    model = network()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss)
    model.fit(digits[0][:1200], digits[1][:1200], epochs=6, batch_size=50, verbose=0)
    return model


def kernel(path: Path, shape: list[int]) -> tuple[np.ndarray, Any]:
    """Bytes and quantization of the one tensor in 4 bits that has this shape."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (tensor,) = [
        each
        for each in model.subgraphs[0].tensors
        if each.type == schema.TensorType.INT4 and list(each.shape) == shape
    ]
    return np.asarray(model.buffers[tensor.buffer].data), tensor.quantization


def test_weights_are_rounded_to_the_nearest_of_15_values(tmp_path: Path, student: Any) -> None:
    """One scale for each output, so that the largest weight of each is 7; no offset."""
    path = export_model(student, tmp_path / "a.tflite", "int4").path
    wanted = student.get_layer("hidden").kernel.numpy().T  # LiteRT has [outputs, inputs]
    data, quantization = kernel(path, [48, 128])
    assert len(data) == 48 * 128 / 2
    low, high = (data & 15).astype(np.int8), (data >> 4).astype(np.int8)
    stored = np.stack([low, high], axis=1).reshape([48, 128])
    stored = np.where(stored > 7, stored - 16, stored)
    scale = np.abs(wanted).max(axis=1) / 7
    np.testing.assert_allclose(quantization.scale, scale, rtol=1e-5)
    assert not np.any(quantization.zeroPoint)
    assert np.abs(stored * scale[:, np.newaxis] - wanted).max() <= scale.max() * 0.501


@pytest.mark.parametrize(
    ("format", "blocks"),
    [("int4", {}), ("int4_block32", {"hidden": 32}), ("int4_block128", {"hidden": 128})],
)
def test_every_kernel_is_as_the_format_says_or_named(
    tmp_path: Path,
    student: Any,
    digits: tuple[np.ndarray, np.ndarray],
    format: str,
    blocks: dict[str, int],
) -> None:
    test = (digits[0][1200:], digits[1][1200:])
    exported = export_model(student, tmp_path / "a.tflite", format)
    certificate = certify(exported.path, student, test)

    assert certificate.format == exported.format == format
    assert exported.inspection.format == format
    found = {each.name.split("/")[0]: each for each in exported.inspection.weights}
    assert {name: (each.dtype, each.block_size) for name, each in found.items()} == {
        "convolution": ("int4", 0),
        "depthwise": ("int8", 0),
        "transposed": ("int8", 0),
        "strided": ("int4", 0),
        "hidden": ("int4", blocks.get("hidden", 0)),
        "logits": ("int4", 0),
    }
    left = {
        f"{operator} in layer `{layer}` has int8 weights: LiteRT does not have it in 4 bits"
        for operator, layer in (
            ("DEPTHWISE_CONV_2D", "depthwise"),
            ("TRANSPOSE_CONV", "transposed"),
        )
    }
    if blocks:
        size = blocks["hidden"]
        left |= {
            "CONV_2D in layer `convolution` has int4 weights: LiteRT has blocks in dense layers "
            "only",
            "CONV_2D in layer `strided` has int4 weights: LiteRT has blocks in dense layers only",
            "FULLY_CONNECTED in layer `logits` has int4 weights: its 48 inputs are no multiple "
            f"of {size}",
        }
    assert set(certificate.left_float) == set(exported.left_float) == left
    assert certificate.limits == td.Limits(0.03, 0.95)
    assert certificate.passed, certificate.failures
    assert certificate.accuracy > 0.85
    assert certificate.latency is not None
    assert type(certificate).from_dict(certificate.to_dict()) == certificate
    error = certificate.output_error
    assert error is not None
    assert error.unit == "output units"
    assert 1e-3 < error.max_relative < 0.5  # it was rounded, and is no noise


def test_int4_is_smaller_than_int8(
    tmp_path: Path, student: Any, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    sizes = {
        format: export_model(
            student, tmp_path / f"{format}.tflite", format, calibration=digits[0][:50]
        ).inspection
        for format in ("int8", "int4", "int4_block32")
    }
    weights = sizes["int8"].elements
    assert sizes["int4"].raw_bytes < sizes["int8"].raw_bytes - 0.3 * weights
    assert sizes["int4"].gzip_bytes < sizes["int4_block32"].gzip_bytes < sizes["int8"].gzip_bytes


def test_zeros_stay_zeros_and_are_counted(tmp_path: Path) -> None:
    model = network()
    layer = model.get_layer("hidden")
    values = np.random.default_rng(0).uniform(0.5, 1.0, layer.kernel.shape).astype(np.float32)
    values.ravel()[::4] = 0  # the others are far from it: 4 bits round none of them to 0
    layer.kernel.assign(values)
    for format in ("int4", "int4_block32"):
        path = export_model(model, tmp_path / f"{format}.tflite", format).path
        (weight,) = [
            each
            for each in inspect_content(path.read_bytes(), "").weights
            if each.name == "hidden/weights"
        ]
        assert (weight.zeros, weight.elements) == (128 * 48 // 4, 128 * 48)


def test_the_bare_runtime_answers_alike(
    tmp_path: Path, student: Any, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    path = export_model(student, tmp_path / "a.tflite", "int4").path
    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner()
    images = digits[0][1200:1260]
    found = np.concatenate([runner(image=image[np.newaxis])["logits"] for image in images])
    expected = student.predict(images, verbose=0)
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.95


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, student: Any) -> None:
    made = [export_model(student, tmp_path / f"{name}.tflite", "int4") for name in "ab"]
    assert made[0].sha256 == made[1].sha256


def test_nothing_is_printed(
    tmp_path: Path, student: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    export_model(student, tmp_path / "a.tflite", "int4_block32")
    assert capfd.readouterr() == ("", "")


def test_without_the_package_it_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "ai_edge_quantizer":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    model = network()
    message = r'ai-edge-quantizer is not installed\..*pip install "tfdistill\[int4\]"'
    with pytest.raises(SettingError, match=message):
        check_before_training(model, td.Export(formats=("int8", "int4")))
    with pytest.raises(SettingError, match=message):
        export_model(model, tmp_path / "a.tflite", "int4")
    assert list(tmp_path.iterdir()) == []
    check_before_training(model, td.Export(formats=("float16",)))


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("int4", r"must have a layer that int4 is for: Dense or Conv2D\."),
        ("int4_block64", r"int4_block64 is for: a Dense layer with a multiple of 64 inputs\."),
    ],
)
def test_a_model_without_such_a_layer_is_refused_before_training(format: str, message: str) -> None:
    source = LAYERS.Input([8, 8, 3], name="image")
    hidden = LAYERS.DepthwiseConv2D(3, name="depthwise")(source)
    model = tf_keras.Model(source, LAYERS.GlobalAveragePooling2D(name="average")(hidden))
    with pytest.raises(ExportError, match=message):
        check_before_training(model, td.Export(formats=(format,)))


def test_what_the_quantizer_says_is_passed_on() -> None:
    """It tells tensors by their names; other converters give one name to several."""
    model = schema.ModelT.InitFromPackedBuf(convert(network(), "float32"), 0)
    for tensor in model.subgraphs[0].tensors[:2]:
        tensor.name = b"same"
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(
        ExportError,
        match=r"ai-edge-quantizer can write as int4\. Received: Tensor name .*same.* is not unique"
        r".*Leave int4 out of `formats`",
    ):
        to_int4(bytes(builder.Output()), "int4")


def test_a_report_says_where_4_bits_save_nothing() -> None:
    rows = [
        Row("teacher", "teacher", 0.9),
        *(Row(n, "artifact", 0.9, gzip_bytes=size) for n, size in (("int8", 900), ("int4", 1000))),
    ]
    (sentence,) = advice(rows)
    assert sentence.startswith("int4 is not smaller than int8 (1.0 KB against 0.9 KB after gzip)")
    assert advice([*rows[:2], Row("int4", "artifact", 0.9, gzip_bytes=800)]) == ()
    dropped = advice(
        [Row("distilled", "stage", 0.9), Row("int4", "artifact", 0.8)], test_examples=1000
    )
    assert "try smaller blocks (format int4_block32), or ship int8." in dropped[-1]

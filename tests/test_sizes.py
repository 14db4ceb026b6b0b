"""Predicted sizes against the sizes of real artifacts."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick import only

import tfdistill as td
from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.layer_configs import copy_model
from tfdistill.errors import ExportError
from tfdistill.export import Export, export_model
from tfdistill.export.conversion import random_examples
from tfdistill.inspection import PREDICTED
from tfdistill.inspection.sizes import PredictedSize, predict_sizes, tell_weights_apart
from tfdistill.pruning import Pruning, plan_pruning, prunable_weights
from tfdistill.quantization import Quantization, quantize
from tfdistill.students import prepare_student

SPARSITY = 0.75
FORMATS = ("float32", "float16", "dynamic_int8", "int8", "int16x8")


def plain() -> Any:
    layers = tf_keras.layers
    inputs = hidden = layers.Input((16, 16, 3))
    for filters in (32, 64, 128):
        hidden = layers.Conv2D(filters, 3, padding="same", strides=2)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    return tf_keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden)))


def depthwise() -> Any:
    layers = tf_keras.layers
    inputs = layers.Input((16, 16, 3))
    hidden = layers.Conv2D(96, 3, padding="same", strides=2)(inputs)
    for _ in range(3):
        hidden = layers.DepthwiseConv2D(3, padding="same")(hidden)
        hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
        added = layers.BatchNormalization()(layers.Conv2D(96, 1)(hidden))
        hidden = layers.Add()([hidden, added])
    return tf_keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(hidden)))


def dense() -> Any:
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [layers.Input((64,)), *(layers.Dense(160, activation="relu") for _ in range(3))]
    )


def trained(model: Any) -> Any:
    """With weights as training leaves them: normally distributed, no two tensors alike."""
    rng = np.random.default_rng(1)
    values = [
        rng.normal(scale=0.05, size=w.shape) if w.ndim > 1 else w + rng.uniform(0, 0.1, w.shape)
        for w in model.get_weights()
    ]
    model.set_weights(values)
    return model


def pruned(model: Any, names: Any) -> Any:
    """With the smallest weights of each kernel set to 0."""
    copy = copy_model(model)
    for layer in copy.layers:
        for kernel in prunable_weights(layer) if layer.name in names else ():
            values = kernel.numpy()
            kernel.assign(
                np.where(np.abs(values) < np.quantile(np.abs(values), SPARSITY), 0, values)
            )
    return copy


def real(model: Any, format: str, path: Path) -> tuple[int, int]:
    examples = random_examples(model)
    calibration = [tuple([next(iter(each.values()))]) for each in examples]
    settings = Export(formats=(format,), metadata=False)
    export_model(model, path, format, settings=settings, calibration=calibration)
    content = path.read_bytes()
    return len(content), len(gzip.compress(content, 9))


def predicted(model: Any, pruned: Any = ()) -> dict[str, PredictedSize]:
    copy = copy_model(model)
    tell_weights_apart(copy)
    sizes, refused = predict_sizes(copy, PREDICTED, sparsity=SPARSITY, pruned=pruned)
    assert refused == {}
    return sizes


@pytest.mark.slow  # each format exactly, below
@pytest.mark.parametrize(
    "make", [plain, *(pytest.param(m, marks=pytest.mark.slow) for m in (depthwise, dense))]
)
def test_prediction_is_close_to_the_real_artifacts(make: Any, tmp_path: Path) -> None:
    plan = plan_pruning(make(), Pruning(sparsity=SPARSITY))
    model = trained(make())
    sizes = predicted(model, plan.pruned)
    assert tuple(sizes) == FORMATS
    sparse = pruned(model, plan.pruned)
    for format in FORMATS:
        raw, gzipped = real(model, format, tmp_path / f"{format}.tflite")
        assert sizes[format].raw_bytes == pytest.approx(raw, rel=0.001), format
        assert sizes[format].gzip_bytes == pytest.approx(gzipped, rel=0.02), format
    _, gzipped = real(sparse, "int8", tmp_path / "sparse.tflite")
    assert sizes["int8"].sparse_gzip_bytes == pytest.approx(gzipped, rel=0.02)


def test_artifact_of_more_than_the_sample_is_predicted_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trained(dense())
    whole = predicted(model, [layer.name for layer in model.layers])["int8"]
    monkeypatch.setattr("tfdistill.inspection.sizes._SAMPLE", 2**14)
    sampled = predicted(model, [layer.name for layer in model.layers])["int8"]
    assert sampled.raw_bytes == whole.raw_bytes
    assert sampled.gzip_bytes != whole.gzip_bytes
    assert sampled.gzip_bytes == pytest.approx(whole.gzip_bytes, rel=0.05)
    assert sampled.sparse_gzip_bytes == pytest.approx(whole.sparse_gzip_bytes, rel=0.1)


def test_biases_that_are_equal_before_training_count_one_by_one() -> None:
    """The converter stores equal constants once; after training no two are equal."""
    before, after = (predicted(model)["float32"] for model in (dense(), trained(dense())))
    assert before.raw_bytes == pytest.approx(after.raw_bytes, abs=64)  # alignment


def test_without_pruning_there_is_no_sparse_size() -> None:
    assert {size.sparse_gzip_bytes for size in predicted(dense()).values()} == {None}


# --- what `inspect` predicts of untrained models, as they come out of the stages ---


def text(*layers: Any, words: int, width: int, steps: int) -> Any:
    numbers = keras.Input((steps,), dtype="int32")
    hidden = keras.layers.Embedding(words, width)(numbers)
    for layer in layers:
        hidden = layer(hidden)
    return keras.Model(numbers, keras.layers.Dense(5, name="logits")(hidden))


def embedding() -> Any:
    return text(keras.layers.GlobalAveragePooling1D(), words=5000, width=32, steps=16)


def recurrent(kind: str) -> Any:
    layer = getattr(keras.layers, kind)(32, name="recurrent")
    return text(layer, words=300, width=32, steps=3)


def attention() -> Any:
    numbers = keras.Input((32,), dtype="int32")
    hidden = keras.layers.Embedding(500, 64)(numbers)
    attended = keras.layers.MultiHeadAttention(4, 16, name="attention")(hidden, hidden)
    hidden = keras.layers.LayerNormalization()(hidden + attended)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(numbers, keras.layers.Dense(5, name="logits")(hidden))


def volume() -> Any:
    inputs = keras.Input((8, 8, 8, 4))
    hidden = keras.layers.Conv3D(64, 3, name="convolution")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(hidden)))


def keyword_spotter() -> Any:
    layers = keras.layers
    hidden = sound = keras.Input((49, 10, 1))
    for index in range(5):
        if index:
            hidden = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(hidden)
            hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
        size = 1 if index else (10, 4)
        convolution = layers.Conv2D(64, size, 1 if index else 2, "same", use_bias=False)
        hidden = layers.ReLU()(layers.BatchNormalization()(convolution(hidden)))
    return keras.Model(sound, layers.Dense(12)(layers.GlobalAveragePooling2D()(hidden)))


def small() -> Any:
    inputs = keras.Input((12, 12, 3))
    hidden = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(hidden)))


UNTRAINED: dict[str, Callable[[], Any]] = {
    "embedding": embedding,
    "LSTM": partial(recurrent, "LSTM"),
    "GRU": partial(recurrent, "GRU"),  # its biases have two axes
    "attention": attention,
    "Conv3D": volume,
    "DS-CNN": keyword_spotter,
    "small": small,
}
# Formats that the export refuses, and where.
REFUSED = {
    "LSTM": {"int16x8": "UNIDIRECTIONAL_SEQUENCE_LSTM in layer `recurrent`"},
    "GRU": {"int16x8": "WHILE in layer `recurrent`"},
    "attention": {"int16x8": "LiteRT can load"},
    "Conv3D": {"int16x8": "CONV_3D in layer `convolution`"},
}


def after_training(model: Any, format: str, path: Path, *, sparse: bool = False) -> bytes:
    """The artifact of the same model with other weights; int8 is quantization-aware."""
    student = trained(prepare_student(model).model)
    if sparse:
        student = pruned(student, plan_pruning(student, Pruning(sparsity=SPARSITY)).pruned)
    rng = np.random.default_rng(2)
    data = [
        rng.integers(0, 300, (32, *tensor.shape[1:])).astype(tensor.dtype.as_numpy_dtype)
        if tensor.dtype.is_integer
        else rng.normal(size=(32, *tensor.shape[1:])).astype(np.float32)
        for tensor in student.inputs
    ]
    aware = format == "int8"
    if aware:
        student = quantize(student, Quantization(), sparse=sparse).model
        student(data, training=True)
    export_model(
        student, path, format, quantization_aware=aware, calibration=None if aware else [(data[0],)]
    )
    return path.read_bytes()


@cache
def inspected(name: str) -> Any:
    return td.inspect(UNTRAINED[name]())


@pytest.mark.parametrize(
    ("name", "format"),
    only(
        ("embedding", "int8"),
        ("embedding", "int16x8"),
        of=[
            (name, format)
            for name in UNTRAINED
            for format in FORMATS
            if format not in REFUSED.get(name, ())
        ],
        several=True,
    ),
)
def test_predicted_size_is_that_after_training(name: str, format: str, tmp_path: Path) -> None:
    size = len(after_training(UNTRAINED[name](), format, tmp_path / "net.tflite"))
    assert inspected(name).sizes[format].raw_bytes == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("name", only("embedding", of=UNTRAINED))
def test_predicted_size_after_pruning_is_that_of_int8_after_both(name: str, tmp_path: Path) -> None:
    """Also of kernels that the rewriting for 8 bits has called otherwise."""
    content = after_training(UNTRAINED[name](), "int8", tmp_path / "net.tflite", sparse=True)
    size = inspected(name).sizes["int8"]
    assert size.sparse_gzip_bytes == pytest.approx(len(gzip.compress(content, 9)), rel=0.15)
    assert size.sparse_gzip_bytes < 0.9 * size.gzip_bytes


@pytest.mark.parametrize("name", only("LSTM", of=REFUSED))
def test_format_that_the_export_refuses_has_a_reason_and_no_size(name: str, tmp_path: Path) -> None:
    found = inspected(name)
    reasons = [each for each in found.findings if each.code == "format"]
    assert set(found.sizes) == set(FORMATS) - set(REFUSED[name])
    for (format, part), reason in zip(REFUSED[name].items(), reasons, strict=True):
        with pytest.raises(ExportError) as error:
            after_training(UNTRAINED[name](), format, tmp_path / "net.tflite")
        said = " ".join(str(error.value).split()).rstrip(".")
        assert (reason.level, reason.message) == ("note", f"No {format} of it: {said}")
        assert part in said

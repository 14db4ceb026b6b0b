"""Predicted sizes against the sizes of real artifacts."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdistill._keras import tf_keras
from tfdistill.export import Export, export_model
from tfdistill.export.conversion import random_examples
from tfdistill.inspection.sizes import predict_sizes
from tfdistill.pruning import Pruning, copy_model, plan_pruning, prunable_weights

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


@pytest.mark.parametrize(
    "make", [plain, *(pytest.param(m, marks=pytest.mark.slow) for m in (depthwise, dense))]
)
def test_prediction_is_close_to_the_real_artifacts(make: Any, tmp_path: Path) -> None:
    model = trained(make())
    plan = plan_pruning(model, Pruning(sparsity=SPARSITY))
    predicted = predict_sizes(model, sparsity=SPARSITY, pruned=plan.pruned)
    assert tuple(predicted) == FORMATS
    sparse = pruned(model, plan.pruned)
    for format in FORMATS:
        raw, gzipped = real(model, format, tmp_path / f"{format}.tflite")
        found = predicted[format]
        assert found.raw_bytes == pytest.approx(raw, rel=0.05), format
        assert found.gzip_bytes == pytest.approx(gzipped, rel=0.1), format
    for format in ("float32", "int8"):
        _, gzipped = real(sparse, format, tmp_path / f"sparse_{format}.tflite")
        assert predicted[format].sparse_gzip_bytes == pytest.approx(gzipped, rel=0.15), format


def test_artifact_of_more_than_the_sample_is_predicted_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfdistill.inspection.sizes._SAMPLE", 2**13)
    model = trained(plain())
    predicted = predict_sizes(model, sparsity=SPARSITY, pruned=())
    raw, gzipped = real(model, "int8", tmp_path / "int8.tflite")
    assert predicted["int8"].raw_bytes == pytest.approx(raw, rel=0.05)
    assert predicted["int8"].gzip_bytes == pytest.approx(gzipped, rel=0.1)


def test_biases_that_are_equal_before_training_count_one_by_one() -> None:
    """The converter stores equal constants once; after training no two are equal."""
    sizes = [
        predict_sizes(model, sparsity=SPARSITY, pruned=())["float32"]
        for model in (dense(), trained(dense()))
    ]
    assert sizes[0].raw_bytes == pytest.approx(sizes[1].raw_bytes, abs=64)  # alignment


def test_without_pruning_there_is_no_sparse_size() -> None:
    predicted = predict_sizes(dense(), sparsity=SPARSITY, pruned=())
    assert {size.sparse_gzip_bytes for size in predicted.values()} == {None}


def test_the_model_stays_as_it_is() -> None:
    model = dense()
    before = model.get_weights()
    predict_sizes(model, sparsity=SPARSITY, pruned=[layer.name for layer in model.layers])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

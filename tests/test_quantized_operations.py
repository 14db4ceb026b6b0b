"""Operations of Keras 3, and layers that only move values, in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_8_bits import Body, exported, train
from quick import only

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge import to_tf_keras
from tfdistill.quantization import Quantization, quantize

layers, ops = keras.layers, keras.ops
_RANDOM = np.random.default_rng(0)


def of_values(body: Body) -> Any:
    image = layers.Input((8, 8, 3), name="image")
    values = layers.Conv2D(8, 3, padding="same", name="convolution")(image)
    scores = layers.Dense(5, name="logits")(layers.Flatten()(body(values)))
    return to_tf_keras(keras.Model(image, scores))


IN_8_BITS: dict[str, Body] = {
    "absolute": ops.abs,
    "add float64": lambda x: x + _RANDOM.normal(size=8),
    "add an image": lambda x: x + _RANDOM.normal(size=[8, 8, 8]).astype(np.float32),
    "add an image in float64": lambda x: x + _RANDOM.normal(size=[8, 8, 8]),
    "multiply by an image": lambda x: x * _RANDOM.normal(size=[8, 8, 8]).astype(np.float32),
    "clip": lambda x: ops.clip(x, -1, 1),
    "divide": lambda x: x / (1.0 + ops.abs(x)),
    "exponential": lambda x: ops.exp(0.1 * x),
    "flip": lambda x: ops.flip(x, 1),
    "logarithm": lambda x: ops.log(1.0 + ops.abs(x)),
    "maximum": lambda x: ops.maximum(x, 0.1),
    "largest": lambda x: ops.max(x, axis=1),
    "mean": lambda x: ops.mean(x, axis=-1),
    "minimum": lambda x: ops.minimum(x, 0.1),
    "move an axis": lambda x: ops.moveaxis(x, 1, 2),
    "pad by reflection": lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect"),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "select": lambda x: ops.where(x > 0, x, 0.1 * x),
    "root": lambda x: ops.sqrt(1.0 + ops.abs(x)),
    "inverse root": lambda x: ops.rsqrt(1.0 + ops.abs(x)),
    "stack": lambda x: ops.stack([x, x], 1),
    "sum": lambda x: ops.sum(x, axis=(1, 2)),
    "swap axes": lambda x: ops.swapaxes(x, 1, 2),
    "take": lambda x: ops.take(x, [0, 2], axis=-1),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 1)),
    "GaussianNoise": lambda x: layers.GaussianNoise(0.1)(x),
    "AlphaDropout": lambda x: layers.AlphaDropout(0.1)(x),
    "RandomFlip": lambda x: layers.RandomFlip()(x),
    "RandomZoom": lambda x: layers.RandomZoom(0.1)(x),
    "CenterCrop": lambda x: layers.CenterCrop(4, 4)(x),
    "RepeatVector": lambda x: layers.RepeatVector(3)(layers.Flatten()(x)),
}


@pytest.mark.parametrize(
    "name", only("add float64", "select", "stack", "GaussianNoise", of=IN_8_BITS)
)
def test_it_is_in_8_bits(name: str, tmp_path: Path) -> None:
    quantized = quantize(of_values(IN_8_BITS[name]), Quantization(strict=True), sparse=False)
    train(quantized.model)
    _, floating, errors = exported(quantized, tmp_path)
    assert not floating
    assert np.quantile(errors, 0.99) <= 3.001


def test_an_operation_that_stays_in_float_is_named() -> None:
    quantized = quantize(of_values(lambda x: ops.cumsum(x, 1)), Quantization(), sparse=False)
    assert quantized.left_float == {"cumsum": "tfmot has no quantizer for the operation Cumsum"}


def test_behind_noise_a_mean_has_the_range_of_what_it_reads() -> None:
    """The mean has one range for all, which is found through what changes nothing."""
    body = of_values(lambda x: layers.AveragePooling2D(2)(layers.GaussianNoise(0.1)(x)))
    model = quantize(body, Quantization(), sparse=False).model
    image = tf.random.normal([8, 8, 8, 3])
    model(image, training=True)
    before, behind = (
        tf_keras.Model(model.input, model.get_layer(f"quant_{name}").output)(image).numpy()
        for name in ("convolution", "average_pooling2d")
    )
    step = np.diff(np.unique(before)).min()
    np.testing.assert_allclose(behind / step, np.round(behind / step), atol=1e-2)

"""Models, weights and comparisons for the tests of the bridge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras

layers = keras.layers

IMAGE = (8, 6, 4)
SEQUENCE = (8, 4)
VOLUME = (4, 4, 4, 2)
VECTOR = (6,)


def randomize(model: Any, seed: int = 1) -> Any:
    """Weights that show a mix-up: no two alike, variances positive."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        value = random.normal(size=weight.shape)
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.name else value)
    return model


def inputs_of(model: Any, seed: int = 2, batch: int = 3) -> list[Any]:
    random = np.random.default_rng(seed)
    values = []
    for tensor in model.inputs:
        shape = (tensor.shape[0] or batch, *(size or 4 for size in tensor.shape[1:]))
        dtype = tf.as_dtype(tensor.dtype)
        if dtype == tf.string:
            value = random.choice(["red", "green", "Blue!", "unknown"], size=shape)
        else:
            value = random.normal(size=shape) if dtype.is_floating else random.integers(0, 7, shape)
        values.append(tf.constant(value, dtype))
    return values


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Written apart from the library's own check, which it is to confirm."""
    actual, expected = (tf.convert_to_tensor(x).numpy() for x in (actual, expected))
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-30)
    )


def assert_same_outputs(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    values = inputs_of(expected)
    values = values if len(values) > 1 else values[0]
    ours = tf.nest.flatten(actual(values, training=False))
    theirs = tf.nest.flatten(expected(values, training=False))
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their, tolerance)


def assert_same_config(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        for key in theirs:
            assert_same_config(ours[key], theirs[key])
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6)  # tf_keras rounds some to float32
    else:
        assert ours == theirs


def snapshot(model: Any) -> list[np.ndarray]:
    variables = model.variables if bridge.is_keras3(model) else model.weights
    return [variable.numpy() for variable in variables]


def assert_unchanged(model: Any, before: list[np.ndarray]) -> None:
    for now, then in zip(snapshot(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


class Scale(keras.layers.Layer):
    """A user's own Keras 3 layer."""

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


class TfKerasScale(tf_keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.dense = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

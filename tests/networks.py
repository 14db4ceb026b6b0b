"""Tiny networks of either Keras with the same weights, and their logits in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
FEATURES = 4


def perceptron(
    library: Any,
    *,
    units: int = 5,
    classes: int = 3,
    seed: int = 0,
    activation: str | None = None,
    regularizer: Any = None,
    normalized: bool = False,
    name: str = "student",
) -> Any:
    """`[batch, 4] -> Dense "hidden" -> ReLU "rectified" -> Dense "logits"`, weights of `seed`."""
    layers = library.layers
    inputs = layers.Input([FEATURES], name="features")
    hidden = layers.Dense(units, kernel_regularizer=regularizer, name="hidden")(inputs)
    if normalized:
        hidden = layers.BatchNormalization(synchronized=True, name="normalization")(hidden)
    hidden = layers.ReLU(name="rectified")(hidden)
    outputs = layers.Dense(classes, activation=activation, name="logits")(hidden)
    return with_random_weights(library.Model(inputs, outputs, name=name), seed)


def with_random_weights(model: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=weight.shape) for weight in model.weights]
    for index, weight in enumerate(model.weights):
        if "variance" in weight.name:
            weights[index] = np.abs(weights[index])
    model.set_weights(weights)
    return model


def wide(arrays: Any) -> list[Array]:
    """Copies in float64."""
    return [np.array(array, np.float64) for array in arrays]


def hidden_of(weights: list[Array], inputs: Array) -> Array:
    """Outputs of "rectified" of a perceptron without normalization, in float64."""
    kernel, bias, *_ = wide(weights)
    return np.maximum(np.asarray(inputs, np.float64) @ kernel + bias, 0.0)


def logits_of(weights: list[Array], inputs: Array) -> Array:
    """Logits of a perceptron without normalization, in float64."""
    _, _, kernel, bias = wide(weights)
    return hidden_of(weights, inputs) @ kernel + bias


def examples(count: int = 15, classes: int = 3, seed: int = 7) -> tuple[Array, Array, Array]:
    """Inputs `[count, 4]`, labels `[count]` and sample weights `[count]`."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, FEATURES)).astype(np.float32),
        rng.integers(0, classes, count),
        rng.uniform(0.2, 2.0, count).astype(np.float32),
    )

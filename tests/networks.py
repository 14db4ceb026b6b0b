"""Tiny networks of either Keras with the same weights, and their logits in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
FEATURES = 4
STEPS, WIDTH, HEADS = 5, 6, 2  # of `encoder`


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


def linear(library: Any, images: Array, targets: dict[str, Array]) -> Any:
    """A model that is linear in the pixels, with the outputs nearest to the targets."""
    layers = library.layers
    image = layers.Input(images.shape[1:], name="image")
    flat = layers.Flatten()(image)
    outputs = {name: layers.Dense(each.shape[1])(flat) for name, each in targets.items()}
    model = library.Model(image, outputs)
    pixels = np.append(images.reshape(len(images), -1), np.ones([len(images), 1]), axis=1)
    fitted = [np.linalg.lstsq(pixels, each, rcond=None)[0] for each in targets.values()]
    model.set_weights([part for each in fitted for part in (each[:-1], each[-1])])
    return model


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


def convolutional(library: Any, filters: int, *, stem: int = 4, activation: Any = None) -> Any:
    """Images `[batch, 8, 8, 1]`, with layers at 8x8, 4x4, 2x2 and as vectors."""
    layers = library.layers
    image = hidden = layers.Input([8, 8, 1], name="image")
    for number in range(3):
        width = filters if number else stem
        hidden = layers.Conv2D(width, 3, padding="same", name=f"conv_{number}")(hidden)
        hidden = layers.ReLU(name=f"relu_{number}")(hidden)
        if number < 2:
            hidden = layers.MaxPooling2D(name=f"pooling_{number}")(hidden)
    hidden = layers.GlobalAveragePooling2D(name="pooled")(hidden)
    hidden = layers.Dense(3, name="logits")(hidden)
    if activation:
        hidden = layers.Activation(activation, name="ending")(hidden)
    return with_random_weights(library.Model(image, hidden, name=f"of_{filters}"), filters)


def encoder(
    library: Any,
    *,
    seed: int = 0,
    width: int = WIDTH,
    heads: int = HEADS,
    masked: bool = True,
    dropout: float = 0.0,
    **call: Any,
) -> Any:
    """Numbers `[batch, 5] -> embedding -> attention -> rest -> logits [batch, 3]`."""
    layers = library.layers
    numbers = layers.Input([STEPS], dtype="int32", name="numbers")
    hidden = layers.Embedding(9, width, mask_zero=masked, name="embedding")(numbers)
    attention = layers.MultiHeadAttention(heads, 4, dropout=dropout, name="attention")
    hidden = layers.Add(name="rest")([hidden, attention(hidden, hidden, **call)])
    hidden = layers.Dense(width, name="mixed")(hidden)
    pooled = layers.GlobalAveragePooling1D(name="pooled")(hidden)
    return with_random_weights(
        library.Model(numbers, layers.Dense(3, name="logits")(pooled), name="encoder"), seed
    )


def sentences(count: int = 4) -> Array:
    """Numbers `[count, 5]`, padded by 0."""
    numbers = np.random.default_rng(0).integers(1, 9, [count, STEPS]).astype(np.int32)
    for row in range(count):
        numbers[row, [5, 3, 1, 4][row % 4] :] = 0
    return numbers

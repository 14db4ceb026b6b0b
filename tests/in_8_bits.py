"""Models in 8 bits, and what of their artifact computes in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.export import export_model
from tfdistill.litert.flatbuffer import Graph, layer_of, unpack
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.quantization import QuantizedModel

L = tf_keras.layers
IMAGE, WORDS, VOCABULARY = (8, 8, 3), 12, 50
Body = Callable[[Any], Any]


def randomized(model: Any) -> Any:
    """The model with statistics and biases that are not those of a new one."""
    random = np.random.default_rng(0)
    weights = []
    for weight in model.weights:
        name, values = weight.name, weight.numpy()
        if "gamma" in name or "variance" in name:
            values = random.uniform(0.2, 5.0, values.shape)
        elif "beta" in name or "mean" in name or "bias" in name:
            values = random.normal(size=values.shape)
        weights.append(values)
    model.set_weights(weights)
    return model


def of_images(body: Body) -> Any:
    image = L.Input(IMAGE, name="image")
    return randomized(tf_keras.Model(image, L.Dense(5, name="logits")(L.Flatten()(body(image)))))


def of_words(body: Body) -> Any:
    words = L.Input((WORDS,), dtype="int32", name="words")
    return randomized(tf_keras.Model(words, L.Dense(5, name="logits")(body(words))))


def inputs_of(model: Any, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if model.inputs[0].dtype.is_integer:
        padded = np.arange(WORDS) >= random.integers(3, WORDS + 1, [24, 1])
        return np.where(padded, 0, random.integers(1, VOCABULARY, [24, WORDS])).astype(np.int32)
    return random.normal(0, 2, [24, *IMAGE]).astype(np.float32)


def train(model: Any) -> None:
    inputs = tf.constant(inputs_of(model, 0))
    labels = tf.one_hot(tf.range(len(inputs)) % 5, 5)
    optimizer = tf_keras.optimizers.SGD(0.01)
    with tf.GradientTape() as tape:
        error = tf.reduce_mean((model(inputs, training=True) - labels) ** 2)
    optimizer.minimize(error, model.trainable_variables, tape)


def exported(quantized: QuantizedModel, folder: Path) -> tuple[set[str], set[str], np.ndarray]:
    """The artifact's operators, those that compute in float, and its errors in steps.

    What computes in float is found in the file to be of layers that are named with a reason.
    """
    path, model = folder / "student.tflite", quantized.model
    made = export_model(model, path, "int8", quantization_aware=True)
    assert {
        layer
        for layer in computing_in_float(path, model)
        if not any(f"{layer}/".startswith(f"{name}/") for name in quantized.left_float)
    } == set()
    inputs = inputs_of(model, 1)
    (outputs,) = LiteRTModel(path).predict(inputs).values()
    (scale,) = made.inspection.output_scales.values()
    errors = np.abs(outputs - model(inputs, training=False).numpy()) / (scale or 1.0)
    operators = made.inspection.operators
    floating = {each.name for each in operators if each.activations == "float32"}
    return {each.name for each in operators}, floating - {"DEQUANTIZE"}, errors


_COMPUTING_NOTHING = (
    *("CAST", "CONCATENATION", "DEQUANTIZE", "NOT_EQUAL", "PACK", "QUANTIZE", "RESHAPE", "SPLIT"),
    *("STRIDED_SLICE", "TRANSPOSE"),
)


def computing_in_float(path: Path, model: Any) -> set[str]:
    """The layers of operators that do; those inside of a loop have lost their layer's name."""
    packed = unpack(path.read_bytes())
    return {
        layer_of(graph.tensors[operator.outputs[0]].name.decode(), model)
        for graph in (Graph(packed, each) for each in packed.subgraphs)
        for operator in graph.operators
        if graph.describe(operator).activations == "float32"
        and graph.name(operator) not in _COMPUTING_NOTHING
    } - {"?"}


def convolution(image: Any, filters: int = 8, **settings: Any) -> Any:
    return L.Conv2D(filters, 3, padding="same", **settings)(image)

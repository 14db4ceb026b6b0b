"""Small networks of images, trained for 8 bits and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.export import ExportedModel, export_model
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.quantization import quantized_kernels

LAYERS = tf_keras.layers
SHAPE = (8, 8, 3)


def network(body: Callable[[Any], Any], *, sparsity: float = 0.75) -> Any:
    """A model around `body`, with random statistics, and random zeros in its kernels."""
    inputs = LAYERS.Input(SHAPE, name="image")
    model = tf_keras.Model(inputs, body(inputs))
    generator = np.random.default_rng(0)
    weights = []
    for weight in model.weights:
        name, values = weight.name, weight.numpy()
        if "gamma" in name or "variance" in name:
            values = generator.uniform(0.5, 2.0, values.shape)
        elif "beta" in name or "mean" in name or "bias" in name:
            values = generator.normal(size=values.shape)
        elif values.ndim > 1 and "depthwise" not in name:  # tfmot prunes no depthwise kernels
            values = np.where(generator.uniform(size=values.shape) < sparsity, 0.0, values)
        weights.append(values)
    model.set_weights(weights)
    return model


def head(tensor: Any) -> Any:
    return LAYERS.Dense(5, name="logits")(LAYERS.Flatten()(tensor))


def images(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, [count, *SHAPE]).astype(np.float32)


def train(model: Any, steps: int = 8) -> None:
    """A few steps, eagerly: tracing these models would take longer."""
    optimizer = tf_keras.optimizers.Adam(0.01)
    inputs = tf.constant(images())
    labels = tf.one_hot(tf.range(len(inputs)) % 5, 5)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean((model(inputs, training=True) - labels) ** 2)
        optimizer.minimize(error, model.trainable_variables, tape)


def zeros_of(model: Any) -> dict[str, int]:
    return {name: int(np.sum(kernel == 0)) for name, kernel in quantized_kernels(model).items()}


def has_quantizer(model: Any, name: str) -> bool:
    wrapper = next(layer for layer in model.layers if layer.name == f"quant_{name}")
    return any("kernel_max" in weight.name for weight in wrapper.weights)


def export(model: Any, folder: Path) -> tuple[ExportedModel, LiteRTModel]:
    path = folder / "student.tflite"
    return export_model(model, path, "int8", quantization_aware=True), LiteRTModel(path)


def error_in_steps(model: Any, exported: ExportedModel, artifact: LiteRTModel) -> np.ndarray:
    inputs = images(40, seed=1)
    (outputs,) = artifact.predict(inputs).values()
    (scale,) = exported.inspection.output_scales.values()
    return np.abs(outputs - model(inputs, training=False).numpy()) / scale


def float_operators(exported: ExportedModel) -> set[str]:
    return {
        operator.name
        for operator in exported.inspection.operators
        if operator.activations == "float32" and operator.name != "DEQUANTIZE"
    }


def plain_convolutions(inputs: Any) -> Any:
    hidden = LAYERS.ReLU()(LAYERS.Conv2D(8, 3, name="first")(inputs))
    hidden = LAYERS.Conv2D(8, 1, activation="relu", name="second")(hidden)
    hidden = LAYERS.Conv2D(8, 3, activation="relu6", name="third")(hidden)
    return head(LAYERS.MaxPooling2D()(hidden))


def separable(inputs: Any) -> Any:
    hidden = LAYERS.SeparableConv2D(8, 3, name="first")(inputs)
    hidden = LAYERS.ReLU()(LAYERS.BatchNormalization()(hidden))
    return head(LAYERS.SeparableConv2D(8, 3, activation="relu", name="second")(hidden))


def float_inside(inputs: Any) -> Any:
    hidden = LAYERS.Rescaling(0.5, 1.0, name="rescaling")(inputs)
    hidden = LAYERS.Conv2D(8, 3, activation="relu", name="first")(hidden)
    hidden = LAYERS.BatchNormalization(name="free")(hidden)  # the activation is before it
    hidden = LAYERS.Conv2D(8, 3, activation="elu", name="second")(hidden)
    hidden = LAYERS.Conv2D(8, 1, name="third")(hidden)
    return head(LAYERS.Activation("hard_sigmoid", name="hard")(hidden))

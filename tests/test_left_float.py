"""Layers that are skipped, or unknown, beside what is quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_networks import (
    LAYERS,
    export,
    float_inside,
    float_operators,
    has_quantizer,
    head,
    images,
    network,
    plain_convolutions,
    separable,
    train,
)

from tfdistill._keras import tf, tf_keras, tfmot
from tfdistill.errors import ModelError
from tfdistill.pruning import kernel_zeros
from tfdistill.quantization import Quantization, quantize, quantized_kernels


def test_a_skipped_last_layer_is_float_and_keeps_its_zeros(tmp_path: Path) -> None:
    model = network(plain_convolutions)
    zeros = kernel_zeros(model)["logits"].zeros

    quantized = quantize(model, Quantization(skip=["logits"]), sparse=True)
    started = model.get_layer("logits").kernel.numpy()
    train(quantized.model)
    exported, artifact = export(quantized.model, tmp_path)

    assert quantized.left_float == {"logits": "named in `skip`"}
    assert not has_quantizer(quantized.model, "logits")
    kernel = quantized_kernels(quantized.model)["logits"]
    assert np.sum(kernel == 0) == zeros
    assert np.mean((kernel != started)[started != 0]) > 0.5, "not trained"
    assert float_operators(exported) == {"FULLY_CONNECTED"}
    inputs = images(8, seed=1)
    np.testing.assert_allclose(
        artifact.predict(inputs)["logits"], quantized.model(inputs), atol=0.1
    )


def test_a_skipped_first_layer_reads_the_input_as_it_is(tmp_path: Path) -> None:
    quantized = quantize(network(plain_convolutions), Quantization(skip=["first"]), sparse=False)
    train(quantized.model)
    exported, _ = export(quantized.model, tmp_path)

    assert quantized.left_float == {"first": "named in `skip`"}
    assert [weight.dtype for weight in exported.inspection.weights] == ["float32", *["int8"] * 3]


def over_time(inputs: Any) -> Any:
    hidden = LAYERS.MaxPooling2D(3)(LAYERS.Conv2D(8, 3, name="first")(inputs))
    return LAYERS.Reshape([4, 8])(hidden)


def attending(inputs: Any, **settings: Any) -> Any:
    hidden = over_time(inputs)
    attention = LAYERS.MultiHeadAttention(2, 4, name="apart", **settings)(hidden, hidden)
    return head(LAYERS.Add()([hidden, attention]))


def remembering(inputs: Any) -> Any:
    return head(LAYERS.LSTM(4, return_sequences=True, name="apart")(over_time(inputs)))


@pytest.mark.parametrize(
    ("body", "skip", "reason"),
    [
        pytest.param(attending, ["apart"], "named in `skip`", marks=pytest.mark.slow),
        (
            lambda x: attending(x, kernel_constraint="max_norm"),
            [],
            "tfmot cannot wrap MultiHeadAttention as it is used",
        ),
        pytest.param(remembering, ["apart"], "named in `skip`", marks=pytest.mark.slow),
        (
            lambda x: LAYERS.EinsumDense("abc,cd->abd", [4, 5], name="apart")(over_time(x)),
            [],
            "tfmot has no quantizer for EinsumDense",
        ),
    ],
    ids=["skipped attention", "constrained attention", "skipped LSTM", "last einsum"],
)
def test_a_layer_in_float_reads_what_was_quantized(
    body: Callable[[Any], Any], skip: list[str], reason: str, tmp_path: Path
) -> None:
    """The converter forgets to turn the 8-bit values into floats, and LiteRT refuses the file."""
    quantized = quantize(network(body), Quantization(skip=skip), sparse=False)
    quantized.model(images(), training=True)
    exported, artifact = export(quantized.model, tmp_path)

    assert quantized.left_float == {"apart": reason}
    operators = [(each.name, each.activations) for each in exported.inspection.operators]
    assert ("CONV_2D", "int8") in operators
    inputs = images(40, seed=1)
    (outputs,), expected = artifact.predict(inputs).values(), quantized.model(inputs).numpy()
    (step,) = exported.inspection.output_scales.values()
    allowed = 1.001 * step if step else 1e-5 * np.abs(expected).max()  # the last einsum is in float
    assert np.quantile(np.abs(outputs - expected), 0.99) <= allowed


def test_both_halves_of_a_skipped_separable_convolution_are_left_float() -> None:
    quantized = quantize(network(separable), Quantization(skip=["first"]), sparse=True)

    assert quantized.left_float == {"first": "named in `skip`"}
    assert not has_quantizer(quantized.model, "first")
    assert not has_quantizer(quantized.model, "first/depthwise")
    assert has_quantizer(quantized.model, "second")


def test_a_split_layer_takes_no_name_of_another() -> None:
    """tfmot would call the halves `depthwise_conv2d` and `conv2d`."""

    def body(inputs: Any) -> Any:
        hidden = LAYERS.Conv2D(4, 3, name="conv2d")(inputs)
        hidden = LAYERS.DepthwiseConv2D(3, name="depthwise_conv2d")(hidden)
        return head(LAYERS.SeparableConv2D(4, 3, name="separable_conv2d")(hidden))

    model = network(body)
    tf_keras.backend.clear_session()  # as in a process that has just loaded the model
    with pytest.raises((ValueError, RuntimeError)):
        tfmot.quantization.keras.quantize_model(model)
    tf_keras.backend.clear_session()

    kernels = quantized_kernels(quantize(model, Quantization(), sparse=False).model)

    assert list(kernels) == [
        "conv2d",
        "depthwise_conv2d",
        "separable_conv2d/depthwise",
        "separable_conv2d",
        "logits",
    ]


class Scale(tf_keras.layers.Layer):
    """A layer that only this file knows."""

    def build(self, input_shape: Any) -> None:
        self.factor = self.add_weight("factor", shape=[input_shape[-1]], initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


class NotSerializable(tf_keras.layers.Layer):
    def __init__(self, factor: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return dict(super().get_config())  # and `factor` is forgotten


def steep(tensor: Any) -> Any:
    return tf.nn.relu(tensor) * 1.5


def unknown_layers(inputs: Any) -> Any:
    hidden = LAYERS.Conv2D(8, 3, activation="relu", name="convolution")(inputs)
    hidden = LAYERS.Activation(steep, name="steep")(hidden)
    hidden = LAYERS.Lambda(lambda tensor: tensor * 0.5, name="halved")(Scale(name="scale")(hidden))
    hidden = LAYERS.MaxPooling2D(3)(tf.cumsum(hidden, axis=1))
    hidden = LAYERS.ReLU()(LAYERS.Reshape([4, 8])(hidden))
    hidden = LAYERS.MultiHeadAttention(1, 4, kernel_constraint="max_norm", name="attention")(
        hidden, hidden
    )
    return LAYERS.Dense(5, name="logits")(LAYERS.LSTM(4, name="recurrent")(hidden))


def test_unknown_layers_are_left_float_and_keep_their_zeros(tmp_path: Path) -> None:
    model = network(unknown_layers)
    zeros = {name: count.zeros for name, count in kernel_zeros(model).items()}
    summed = next(layer.name for layer in model.layers if type(layer).__name__ == "TFOpLambda")

    quantized = quantize(model, Quantization(), sparse=True)
    before = quantized.model.get_layer("attention").get_weights()
    train(quantized.model, steps=3)

    assert quantized.left_float == {
        "steep": "tfmot has no quantizer for Activation steep",
        "scale": "tfmot has no quantizer for Scale",
        "halved": "tfmot has no quantizer for Lambda",
        summed: "tfmot cannot wrap TFOpLambda as it is used",
        "attention": "tfmot cannot wrap MultiHeadAttention as it is used; it is frozen, so that "
        "its zeros stay",
        "recurrent": "its gates compute in float; its products are in 8 bits",
    }
    for weight, expected in zip(
        quantized.model.get_layer("attention").get_weights(), before, strict=True
    ):
        np.testing.assert_array_equal(weight, expected)
    kernels = quantized_kernels(quantized.model, quantized.carriers)
    found = {name: int(np.sum(kernel == 0)) for name, kernel in kernels.items()}
    assert set(zeros) - set(found) == {"attention"}
    assert found["recurrent"] == zeros["recurrent"]
    exported, _ = export(quantized.model, tmp_path)
    operators = [(op.name, op.activations) for op in exported.inspection.operators]
    assert ("CONV_2D", "int8") in operators


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: network(head),
            r"`student` must be flat, without a model inside\. Received: model.*td\.to_tf_keras",
        ),
        (
            lambda: NotSerializable(2.0, name="stranger"),
            r"`student` must be a model that tfmot can quantize\. .*Error: .*Replace that layer",
        ),
    ],
    ids=["nested", "not serializable"],
)
def test_what_cannot_be_quantized_is_refused(layer: Callable[[], Any], message: str) -> None:
    model = network(lambda inputs: layer()(inputs))
    with pytest.raises(ModelError, match=message):
        quantize(model, Quantization(), sparse=False)


def test_strict_refuses_what_would_stay_float() -> None:
    model = network(float_inside)
    with pytest.raises(
        ModelError,
        match=r"must be quantized whole where `strict` is True\. Received: second: tfmot has no "
        r"quantizer for Activation elu\. .*name them in `skip`",
    ):
        quantize(model, Quantization(strict=True), sparse=False)
    quantize(model, Quantization(strict=True, skip=["second"]), sparse=False)

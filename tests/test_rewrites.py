"""Layers that LiteRT lacks, rewritten: equal in float, and in 8 bits in the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from in_8_bits import (
    IMAGE,
    VOCABULARY,
    WORDS,
    Body,
    L,
    convolution,
    exported,
    inputs_of,
    of_images,
    of_words,
    randomized,
    train,
)
from quick import only

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge import to_keras3, to_tf_keras
from tfdistill.bridge.config_values import hard_sigmoid
from tfdistill.errors import ConversionError, ModelError
from tfdistill.export import Export, export_model
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.pruning import copy_model, kernel_zeros
from tfdistill.quantization import Quantization, quantize, quantized_kernels
from tfdistill.rewrites import rewrite
from tfdistill.rewrites import rewriter as rewrites
from tfdistill.rewrites.recurrent import MOST_STEPS


def steps(image: Any) -> Any:
    return L.Reshape((32, 6))(image)


def frames(image: Any) -> Any:
    return L.Reshape((2, 4, 8, 3))(image)


def of_each_frame() -> Any:
    image = L.Input((4, 8, 3))
    pooled = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization()(convolution(image))))
    return tf_keras.Model(image, L.Dense(6, activation="gelu")(pooled))


def of_frames(image: Any) -> Any:
    """As networks for video begin."""
    for layer in (L.Conv2D(8, 3), L.BatchNormalization(), L.ReLU(), L.MaxPooling2D(2), L.Flatten()):
        image = L.TimeDistributed(layer)(image)
    return image


def gate(values: Any, activation: Any, *, dense: bool) -> Any:
    """Squeeze and excitation (Hu 2018)."""
    squeezed = L.GlobalAveragePooling2D(keepdims=not dense)(values)
    small = L.Dense(4, activation="relu")(squeezed)
    gates = L.Dense(8, activation=activation)(small)
    return L.Multiply()([values, L.Reshape((1, 1, 8))(gates) if dense else gates])


def hard_swish_in_parts(values: Any) -> Any:
    sixth = L.Rescaling(1 / 6)(L.ReLU(6.0)(L.Rescaling(1.0, 3.0)(values)))
    return L.Multiply()([values, sixth])


IN_8_BITS: dict[str, Body] = {
    "rescaling": lambda x: convolution(L.Rescaling(1 / 127.5, -1.0)(x)),
    "rescaling by channel": lambda x: convolution(L.Rescaling([1.0, 2.0, 3.0], [0.1, 0, -1])(x)),
    "normalization": lambda x: convolution(
        L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    ),
    "free normalization": lambda x: convolution(L.BatchNormalization()(x), activation="relu"),
    "another axis": lambda x: L.BatchNormalization(axis=1)(convolution(x)),
    "another axis over time": lambda x: L.BatchNormalization(axis=1)(steps(x)),
    "after a sum": lambda x: L.ReLU()(
        L.BatchNormalization()(L.Add()([convolution(x), convolution(x)]))
    ),
    "after two readers": lambda x: (
        lambda y: L.Add()([L.BatchNormalization()(y), L.BatchNormalization()(y)])
    )(convolution(x)),
    "after dense": lambda x: L.ReLU()(L.BatchNormalization()(L.Dense(16)(L.Flatten()(x)))),
    "after transposed": lambda x: L.BatchNormalization()(L.Conv2DTranspose(8, 3)(x)),
    "after concatenation": lambda x: L.ReLU()(
        L.BatchNormalization()(L.Concatenate()([convolution(x), x]))
    ),
    "over time": lambda x: L.MaxPooling1D(2)(
        L.ReLU()(L.BatchNormalization()(L.Conv1D(8, 3)(steps(x))))
    ),
    "over past time": lambda x: L.GlobalAveragePooling1D()(
        L.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="swish")(steps(x))
    ),
    "strides over time": lambda x: L.AveragePooling1D(2)(
        L.Conv1D(8, 3, strides=2, padding="same", activation="relu", use_bias=False)(
            L.ZeroPadding1D(1)(L.Conv1D(4, 1)(steps(x)))
        )
    ),
    "depthwise over time": lambda x: L.BatchNormalization()(
        L.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2)(steps(x))
    ),
    "separable over time": lambda x: L.GlobalMaxPooling1D()(
        L.ReLU()(L.BatchNormalization()(L.SeparableConv1D(8, 3, strides=2)(steps(x))))
    ),
    "joined over time": lambda x: L.Concatenate()(
        [L.Conv1D(4, 3, padding="same")(steps(x)), L.Conv1D(4, 1)(steps(x))]
    ),
    "larger over time": lambda x: L.UpSampling1D(2)(L.Conv1D(4, 3)(steps(x))),
    "separable": lambda x: L.SeparableConv2D(8, 3, activation="gelu")(
        L.ReLU()(L.BatchNormalization()(L.SeparableConv2D(8, 3)(x)))
    ),
    "gelu in a layer": lambda x: L.Dense(8, activation="gelu")(convolution(x)),
    "swish in a layer": lambda x: convolution(x, activation="swish"),
    "hard sigmoid": lambda x: L.Activation(hard_sigmoid)(convolution(x)),
    "hard sigmoid of tf_keras": lambda x: convolution(x, activation="hard_sigmoid"),
    "hard swish": lambda x: hard_swish_in_parts(L.BatchNormalization()(convolution(x))),
    "squeeze": lambda x: gate(convolution(x, activation="swish"), "sigmoid", dense=False),
    "squeeze, hard": lambda x: gate(convolution(x, activation="relu"), hard_sigmoid, dense=True),
    "sum of three": lambda x: L.Add()([convolution(x), convolution(x), convolution(x)]),
    "product of three": lambda x: L.Multiply()([convolution(x), convolution(x), convolution(x)]),
    "average": lambda x: L.Average()([convolution(x), convolution(x), convolution(x)]),
    "larger images": lambda x: convolution(L.UpSampling2D(2)(convolution(x, activation="relu"))),
    "groups": lambda x: L.ReLU()(L.BatchNormalization()(convolution(convolution(x, 4), groups=2))),
    "dense at each step": lambda x: L.TimeDistributed(L.Dense(8, activation="gelu"))(steps(x)),
    "images at each step": lambda x: L.TimeDistributed(L.Conv2D(4, 3, activation="swish"))(
        frames(x)
    ),
    "a model at each step": lambda x: L.TimeDistributed(of_each_frame())(frames(x)),
    "frames": lambda x: of_frames(frames(x)),
    "steps of steps": lambda x: L.TimeDistributed(
        L.TimeDistributed(L.Conv1D(4, 3, activation="relu"))
    )(L.Reshape((2, 2, 8, 6))(x)),
}


@pytest.mark.parametrize(
    "name",
    only("rescaling", "another axis", "hard swish", of=IN_8_BITS),
)
def test_it_is_all_in_8_bits(name: str, tmp_path: Path) -> None:
    model = of_images(IN_8_BITS[name])
    quantized = quantize(model, Quantization(), sparse=False)
    train(quantized.model)
    _, floating, errors = exported(quantized, tmp_path)

    assert quantized.left_float == {}
    assert not floating
    assert np.quantile(errors, 0.99) <= 2.001
    assert quantized.model.output_names == ["quant_logits"]


def attention(x: Any, *, causal: bool = False, **settings: Any) -> Any:
    layer = L.MultiHeadAttention(2, 8, value_dim=6, dropout=0.1, name="attention", **settings)
    return layer(x, x, use_causal_mask=causal)


def encoder(x: Any) -> Any:
    x = L.LayerNormalization(name="first")(L.Add()([x, attention(x)]))
    inner = L.Dense(16)(L.Dense(32, activation="gelu")(x))
    return L.LayerNormalization(name="second")(L.Add()([x, L.Dropout(0.1)(inner)]))


def embedded(words: Any, *, mask: bool = False) -> Any:
    return L.Embedding(VOCABULARY, 16, mask_zero=mask, name="embedding")(words)


_NORMALIZATIONS = {
    name: "tfmot has no quantizer for LayerNormalization" for name in ("first", "second")
}
_MASKED = {"attention": "tfmot has no quantizer for MaskedSoftmax"}
_GATES = {"memory": "its gates compute in float; its products are in 8 bits"}
TEXT: dict[str, tuple[Body, dict[str, str]]] = {
    "mean": (lambda w: L.GlobalAveragePooling1D()(embedded(w)), {}),
    "convolution": (
        lambda w: L.GlobalMaxPooling1D()(L.Conv1D(8, 3, activation="relu")(embedded(w))),
        {},
    ),
    "attention": (lambda w: L.GlobalAveragePooling1D()(attention(embedded(w))), {}),
    "encoder": (lambda w: L.GlobalAveragePooling1D()(encoder(embedded(w))), _NORMALIZATIONS),
    "masked": (
        lambda w: L.GlobalAveragePooling1D(name="mean")(encoder(embedded(w, mask=True))),
        {**_NORMALIZATIONS, **_MASKED, "mean": "tfmot has no quantizer for MaskedMean"},
    ),
    "LSTM": (lambda w: L.LSTM(8, name="memory")(embedded(w)), _GATES),
    "GRU": (lambda w: L.GRU(8, go_backwards=True, name="memory")(embedded(w)), _GATES),
    "simple": (
        lambda w: L.GlobalMaxPooling1D()(
            L.SimpleRNN(8, return_sequences=True, name="memory")(embedded(w))
        ),
        _GATES,
    ),
    "both ways": (
        lambda w: L.GlobalMaxPooling1D()(
            L.Bidirectional(L.LSTM(8, return_sequences=True), name="memory")(embedded(w))
        ),
        _GATES,
    ),
    "both ways, averaged": (
        lambda w: L.Bidirectional(L.GRU(8), merge_mode="ave", name="memory")(embedded(w)),
        _GATES,
    ),
    "causal": (
        lambda w: L.GlobalMaxPooling1D()(attention(embedded(w), causal=True)),
        _MASKED,
    ),
}


@pytest.mark.parametrize("name", only("attention", of=TEXT))
def test_texts_multiply_in_8_bits_alone(name: str, tmp_path: Path) -> None:
    body, left_float = TEXT[name]
    quantized = quantize(of_words(body), Quantization(), sparse=False)
    train(quantized.model)
    operators, floating, errors = exported(quantized, tmp_path)

    assert quantized.left_float == left_float
    assert not floating & {"FULLY_CONNECTED", "BATCH_MATMUL", "CONV_2D", "GATHER"}
    assert bool(floating) == bool(left_float)
    assert ("BATCH_MATMUL" in operators) == (name in ("attention", "encoder", "masked", "causal"))
    assert np.quantile(errors, 0.99) <= 3.001


def given_states(words: Any, layer: Any, count: int) -> Any:
    hidden = embedded(words)
    states = [L.GlobalAveragePooling1D()(hidden), L.GlobalMaxPooling1D()(hidden)]
    return layer(hidden, initial_state=states[:count])


KEPT: dict[str, tuple[Body, str]] = {
    "GRU with a state": (
        lambda w: given_states(w, L.GRU(16, name="kept"), 1),
        "tfmot has no quantizer for GRU",
    ),
    "LSTM with states": (
        lambda w: given_states(w, L.LSTM(16, name="kept"), 2),
        "tfmot has no quantizer for LSTM",
    ),
    "both ways with states": (
        lambda w: given_states(w, L.Bidirectional(L.GRU(16), name="kept"), 2),
        "tfmot cannot wrap Bidirectional as it is used",
    ),
    "normalization over two axes": (
        lambda w: L.Flatten()(L.LayerNormalization(axis=[1, 2], name="kept")(embedded(w))),
        "tfmot has no quantizer for LayerNormalization",
    ),
}


@pytest.mark.parametrize("name", only("normalization over two axes", of=KEPT))
def test_what_is_not_rewritten_is_named_and_nothing_else(name: str, tmp_path: Path) -> None:
    body, reason = KEPT[name]
    quantized = quantize(of_words(body), Quantization(), sparse=False)
    train(quantized.model)
    _, _, errors = exported(quantized, tmp_path)
    assert quantized.left_float == {"kept": reason}
    assert np.quantile(errors, 0.99) <= 2.001


@pytest.mark.parametrize("layer", only("LSTM", of=["LSTM", "SimpleRNN", "GRU"]))
def test_gates_compute_in_float_in_the_artifact(layer: str, tmp_path: Path) -> None:
    """The converter rounds a tanh to steps of 1/128 where it can: too few for small states."""
    few = L.Cropping1D((0, WORDS - 4))
    model = of_words(lambda words: getattr(L, layer)(8)(0.01 * few(embedded(words))))
    for weight in model.trainable_weights:
        if "bias" in weight.name:
            weight.assign(tf.zeros_like(weight))
    quantized = quantize(model, Quantization(), sparse=False)
    quantized.model(tf.constant(inputs_of(model, 0)), training=True)
    _, _, errors = exported(quantized, tmp_path)
    assert np.quantile(errors, 0.99) <= 8  # rounded to such steps, more than 100


def test_a_text_encoder_of_keras3_multiplies_in_8_bits_alone(tmp_path: Path) -> None:
    """Of its two attentions Keras 3 masks the first only, and what stands for that is known."""
    layers = keras.layers
    words = keras.Input((WORDS,), dtype="int32", name="words")
    hidden = layers.Embedding(VOCABULARY, 16, mask_zero=True)(words)
    for name in ("first", "second"):
        attended = layers.MultiHeadAttention(2, 8, name=name)(hidden, hidden)
        hidden = layers.LayerNormalization(name=f"{name}_norm")(layers.Add()([hidden, attended]))
    mean = layers.GlobalAveragePooling1D(name="mean")(hidden)
    model = keras.Model(words, layers.Dense(5, name="logits")(mean))

    quantized = quantize(to_tf_keras(model), Quantization(), sparse=False)
    train(quantized.model)
    _, floating, errors = exported(quantized, tmp_path)

    assert [*quantized.left_float] == ["first", "first_norm", "second_norm", "mean"]
    assert not floating & {"FULLY_CONNECTED", "BATCH_MATMUL", "GATHER"}
    assert np.quantile(errors, 0.99) <= 3.001


def test_padding_is_still_ignored() -> None:
    """What stands behind the mask must not reach the output, whatever form the mask has."""
    model = of_words(TEXT["masked"][0])
    rewritten = rewrite(model).model
    words = inputs_of(model, 0)
    assert np.any(words == 0)
    np.testing.assert_allclose(rewritten(words), model(words), rtol=1e-5, atol=1e-5)

    unmasked = of_words(lambda w: L.GlobalAveragePooling1D()(encoder(embedded(w))))
    unmasked.set_weights(model.get_weights())
    assert np.max(np.abs(unmasked(words) - model(words))) > 0.01


@pytest.mark.slow
def test_a_mask_that_something_unknown_reads_is_put_back_before_it() -> None:
    def body(words: Any) -> Any:
        hidden = L.Dense(5, name="dense")(embedded(words, mask=True))
        hidden = L.LSTM(4, dropout=0.1, return_sequences=True, name="loop")(hidden)
        return L.GlobalAveragePooling1D(name="mean")(L.Dense(5, name="behind")(hidden))

    model = of_words(body)
    rewritten = rewrite(model).model
    words = inputs_of(model, 0)
    masked = {
        layer.name
        for layer in rewritten.layers
        if any(getattr(tensor, "_keras_mask", None) is not None for tensor in layer_inputs(layer))
    }
    assert masked == {"loop", "loop/unmasked", "loop/mask"}
    np.testing.assert_allclose(rewritten(words), model(words), rtol=1e-5, atol=1e-5)


def layer_inputs(layer: Any) -> list[Any]:
    return [tensor for node in layer._inbound_nodes for tensor in node.keras_inputs]


MASKED: dict[str, Body] = {
    "LSTM": lambda h: L.LSTM(4)(h),
    "GRU turned": lambda h: L.GRU(4, go_backwards=True)(h),
    "states": lambda h: L.Flatten()(L.SimpleRNN(4, return_sequences=True)(h)),
    "zeroed states": lambda h: L.Flatten()(
        L.LSTM(4, return_sequences=True, zero_output_for_mask=True)(h)
    ),
    "zeroed": lambda h: L.GRU(4, zero_output_for_mask=True)(h),
    "both ways": lambda h: L.Flatten()(L.Bidirectional(L.LSTM(4, return_sequences=True))(h)),
    "two in a row": lambda h: L.GRU(3)(L.LSTM(4, return_sequences=True)(h)),
    "called twice": lambda h: (lambda layer: L.Add()([layer(h), layer(L.Dense(16)(h))]))(L.LSTM(4)),
    "with and without": lambda h: (
        lambda layer: L.Add()([layer(h), layer(L.Reshape((WORDS, 16))(h))])
    )(L.GlobalAveragePooling1D()),
    "joined": lambda h: L.LSTM(4)(L.Concatenate()([h, L.Dense(3)(h)])),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "with and without" else pytest.mark.slow)
        for name in MASKED
    ],
)
def test_padding_does_not_reach_the_states(name: str) -> None:
    """Also in front of a sequence, and in a sequence of nothing else."""
    model = of_words(lambda w: MASKED[name](embedded(w, mask=True)))
    rewritten = rewrite(model).model
    words = inputs_of(model, 0)
    words[:8] = words[:8, ::-1]
    words[8] = 0
    words[9, 2] = 0

    np.testing.assert_allclose(rewritten(words), model(words), rtol=1e-5, atol=1e-6)
    kinds = {type(layer).__name__ for layer in rewritten.layers}
    assert not kinds & {"LSTM", "GRU", "SimpleRNN", "Bidirectional"}


@pytest.mark.slow
@pytest.mark.parametrize("skip", [[], ["embedding"], ["memory"]])
def test_padding_is_ignored_in_8_bits_too(skip: list[str]) -> None:
    """tfmot's wrapper drops the mask that a layer gives, silently."""
    model = of_words(lambda w: L.LSTM(4, name="memory")(embedded(w, mask=True)))
    table = np.random.default_rng(0).normal(size=[VOCABULARY, 16])
    model.get_layer("embedding").set_weights([table])
    quantized = quantize(model, Quantization(skip=skip), sparse=False)
    quantized.model(inputs_of(model, 0), training=True)
    words = inputs_of(model, 1)
    expected = model(words).numpy()

    error = np.abs(quantized.model(words, training=False) - expected).max()
    assert error <= 0.05 * np.ptp(expected)
    unmasked = of_words(lambda w: L.LSTM(4, name="memory")(embedded(w)))
    unmasked.set_weights(model.get_weights())
    assert np.abs(unmasked(words) - expected).max() > 0.2 * np.ptp(expected)


@pytest.mark.slow
def test_a_number_that_says_what_is_padding_is_not_rounded() -> None:
    def of_steps(*layers: Any) -> Any:
        values = steps = L.Input((WORDS, 3), name="steps")
        for layer in layers:
            values = layer(values)
        return tf_keras.Model(steps, L.Dense(5, name="logits")(values))

    model = of_steps(L.Masking(-1.7, name="masking"), L.SimpleRNN(4, name="memory"))
    steps = np.random.default_rng(0).normal(0, 2, [24, WORDS, 3]).astype(np.float32)
    steps[:, 5:] = -1.7
    quantized = quantize(model, Quantization(), sparse=False)
    quantized.model(steps, training=True)
    expected = model(steps).numpy()

    assert {*quantized.left_float} == {"masking", "memory"}
    assert np.abs(quantized.model(steps) - expected).max() <= 0.05 * np.ptp(expected)
    unmasked = of_steps(L.SimpleRNN(4))
    unmasked.set_weights(model.get_weights())
    assert np.abs(unmasked(steps) - expected).max() > 0.2 * np.ptp(expected)


@pytest.mark.parametrize("skip", ["attention", "mean"])
def test_a_skipped_layer_still_reads_its_mask(skip: str) -> None:
    model = of_words(TEXT["masked"][0])
    rewritten = rewrite(model, skip=frozenset({skip})).model
    words = inputs_of(model, 0)
    assert type(rewritten.get_layer(skip)) is type(model.get_layer(skip))
    np.testing.assert_allclose(rewritten(words), model(words), rtol=1e-5, atol=1e-5)


_TRAINED = ("after dense", "another axis", "over time", "squeeze, hard", "after a sum", "frames")


@pytest.mark.parametrize("name", only(*_TRAINED[:4], of=_TRAINED))
def test_training_is_the_same(name: str) -> None:
    """One step of SGD with batch statistics ends in the same weights."""
    model = of_images(IN_8_BITS[name])
    rewritten = rewrite(model)
    inputs = inputs_of(model, 0)
    for each in (model, rewritten.model):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean(each(inputs, training=True) ** 2)
        tf_keras.optimizers.SGD(0.01).minimize(error, each.trainable_variables, tape)

    np.testing.assert_allclose(rewritten.model(inputs), model(inputs), rtol=1e-3, atol=1e-4)
    assert len(rewritten.model.trainable_weights) == len(model.trainable_weights)


_PENALTIES: dict[str, Any] = {"kernel_regularizer": "l2", "bias_regularizer": "l1"}
REGULARIZED: dict[str, Body] = {
    "over time": lambda w: L.Conv1D(4, 3, **_PENALTIES)(embedded(w)),
    "separable": lambda w: L.SeparableConv1D(
        4, 3, depthwise_regularizer="l2", pointwise_regularizer="l1", bias_regularizer="l2"
    )(embedded(w)),
    "attention": lambda w: attention(embedded(w), **_PENALTIES),
    "both ways": lambda w: L.Bidirectional(
        L.GRU(4, return_sequences=True, recurrent_regularizer="l1", **_PENALTIES)
    )(embedded(w)),
    "at each step": lambda w: L.TimeDistributed(L.Conv1D(4, 3, **_PENALTIES))(
        L.Reshape((3, 4, 16))(embedded(w))
    ),
    "outputs": lambda w: L.Conv1D(4, 3, activity_regularizer="l2")(embedded(w)),
    "outputs of gelu": lambda w: L.Dense(4, "gelu", activity_regularizer="l2")(embedded(w)),
    "outputs of steps": lambda w: L.TimeDistributed(L.Dense(4, activity_regularizer="l2"))(
        embedded(w)
    ),
    "outputs of gates": lambda w: L.LSTM(4, activity_regularizer="l2")(embedded(w)),
}


@pytest.mark.parametrize("name", only("separable", "attention", "outputs of gates", of=REGULARIZED))
def test_what_regularizers_add_to_the_loss_is_the_same(name: str) -> None:
    model = of_words(lambda w: L.Flatten()(REGULARIZED[name](w)))
    rewritten = rewrite(model).model
    words = inputs_of(model, 0)
    model(words), rewritten(words)

    expected = float(sum(model.losses))
    assert expected > 0
    assert float(sum(rewritten.losses)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow  # zeros are counted in test_quantization.py, too
def test_zeros_are_found_under_the_names_of_the_student() -> None:
    def body(words: Any) -> Any:
        hidden = L.SeparableConv1D(8, 3, name="separable")(encoder(embedded(words)))
        return L.GlobalAveragePooling1D()(L.Conv1D(8, 3, name="convolution")(hidden))

    model = of_words(body)
    random = np.random.default_rng(0)
    model.set_weights(
        [
            np.where(random.uniform(size=w.shape) < 0.5, 0, w) if w.ndim > 1 else w
            for w in model.get_weights()
        ]
    )
    quantized = quantize(model, Quantization(), sparse=True)
    train(quantized.model)

    kernels = quantized_kernels(quantized.model, quantized.carriers)
    for name, count in kernel_zeros(model).items():
        assert kernels[name].size == count.size, name
        assert np.sum(kernels[name] == 0) >= count.zeros > 0, name


def test_a_skipped_layer_stays_as_it_is() -> None:
    model = of_images(
        lambda x: L.BatchNormalization(name="free")(L.Rescaling(2.0, name="twice")(x))
    )
    names = {layer.name for layer in rewrite(model, skip=frozenset({"free", "twice"})).model.layers}
    assert names == {layer.name for layer in model.layers}
    assert type(rewrite(model).model.get_layer("twice")) is L.DepthwiseConv2D


def test_a_layer_called_twice_stays_one() -> None:
    shared = L.Conv1D(6, 3, padding="same", name="shared")
    model = of_images(lambda x: L.ReLU()(shared(L.ReLU()(shared(steps(x))))))
    rewritten = rewrite(model).model
    assert len(rewritten.trainable_weights) == len(model.trainable_weights)


def test_long_sequences_stay_loops() -> None:
    def body(image: Any) -> Any:
        steps = L.Reshape((MOST_STEPS + 8, 2))(L.Dense(24)(L.Reshape((6, 32))(image)))
        return L.LSTM(4, name="memory")(steps)

    kinds = {type(layer) for layer in rewrite(of_images(body)).model.layers}
    assert MOST_STEPS + 8 == 72
    assert L.LSTM in kinds


def test_names_that_are_taken_are_not_taken_again() -> None:
    model = of_images(
        lambda x: L.ReLU(name="free/identity")(L.BatchNormalization(name="free")(L.ReLU()(x)))
    )
    names = [layer.name for layer in rewrite(model).model.layers]
    assert len(names) == len(set(names))
    assert "free/identity_" in names


def test_a_wrong_rewrite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, layer: Any, value: Any) -> Any:
        return self._affine(layer, "", value, scale=layer.scale)

    model = of_images(lambda x: L.Rescaling(0.5, 1.0)(x))
    monkeypatch.setattr(rewrites._Rewriter, "_Rescaling", wrong)
    with pytest.raises(ConversionError, match="must equal the original to a relative error"):
        rewrite(model)


@pytest.mark.slow  # merge_mode in test_bridge_parts.py
@pytest.mark.parametrize(
    "mode", ["concat", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sum", "mul", "ave"))]
)
def test_both_ways_are_joined_as_keras_does(mode: str) -> None:
    """The backward half in the order of time, and with layers that differ."""

    def body(words: Any) -> Any:
        forward = L.LSTM(4, return_sequences=True)
        backward = L.GRU(4, return_sequences=True, go_backwards=True)
        memory = L.Bidirectional(forward, mode, backward_layer=backward, name="memory")
        return L.Flatten()(memory(embedded(words)))

    model = of_words(body)
    rewritten = rewrite(model)
    words = inputs_of(model, 3)

    assert not any(isinstance(layer, L.Bidirectional) for layer in rewritten.model.layers)
    np.testing.assert_allclose(rewritten.model(words), model(words), rtol=1e-5, atol=1e-6)
    kernels = {part for part in rewritten.carriers if rewritten.carriers[part] == "memory"}
    ways = ("forward", "backward")
    assert kernels == {f"memory/{way}{part}" for way in ways for part in ("", "/recurrent")}


@pytest.mark.slow
def test_what_is_joined_with_a_written_out_layer_has_one_range(tmp_path: Path) -> None:
    """Else the converter clips the larger to the range of the states, which is -1 to 1."""

    def body(image: Any) -> Any:
        few = L.Reshape((8, 24))(image)  # each step is some twenty operators
        large = L.Rescaling(30.0)(L.Conv1D(4, 1)(few))
        states = L.Bidirectional(L.LSTM(4, return_sequences=True))(L.Conv1D(4, 1)(few))
        return L.Concatenate()([states, large])

    model = of_images(body)
    quantized = quantize(model, Quantization(), sparse=False)
    quantized.model(inputs_of(model, 0), training=True)
    _, _, errors = exported(quantized, tmp_path)

    assert np.quantile(errors, 0.99) <= 2.001


class Scale(tf_keras.layers.Layer):
    """A layer that only this file knows."""

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight("factor", shape=[shape[-1]], initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


def wrapped(words: Any) -> Any:
    """Wrappers that cannot be taken apart, or hold what stays in float."""
    hidden = L.TimeDistributed(L.LayerNormalization(), name="masked")(embedded(words, mask=True))
    hidden = L.Bidirectional(L.SimpleRNN(4, return_sequences=True), name="masked_both")(hidden)
    hidden = L.TimeDistributed(Scale(), name="own")(L.Reshape((WORDS, 8))(hidden))
    penalized = L.Dense(8, activity_regularizer="l2")
    hidden = L.TimeDistributed(penalized, name="penalized")(hidden)
    hidden = L.Bidirectional(L.SimpleRNN(4, dropout=0.1), name="random")(hidden)
    return L.TimeDistributed(L.Dense(6), name="skipped")(L.Reshape((2, 4))(hidden))


@pytest.mark.slow
def test_wrappers_that_stay_have_a_reason(tmp_path: Path) -> None:
    model = of_words(lambda w: L.Flatten()(wrapped(w)))
    quantized = quantize(model, Quantization(skip=["skipped"]), sparse=True)
    quantized.model(inputs_of(model, 0), training=True)
    _, _, errors = exported(quantized, tmp_path)

    assert quantized.left_float == {
        "masked": "tfmot cannot wrap TimeDistributed as it is used",
        "masked_both": "its gates compute in float; its products are in 8 bits",
        "own": "tfmot has no quantizer for Scale",
        "penalized": "tfmot cannot wrap TimeDistributed as it is used; it is frozen, so that its "
        "zeros stay",
        "random": "tfmot has no quantizer for Bidirectional",
        "skipped": "named in `skip`",
    }
    assert np.quantile(errors, 0.99) <= 3.001


def test_what_is_frozen_inside_of_a_wrapper_stays_frozen() -> None:
    def body(image: Any) -> Any:
        frozen = L.BatchNormalization(trainable=False)
        return L.TimeDistributed(L.Conv2D(4, 3))(L.TimeDistributed(frozen)(frames(image)))

    model = of_images(body)
    rewritten = rewrite(model).model
    trainable = [
        sorted(w.shape.as_list() for w in each.trainable_weights) for each in (model, rewritten)
    ]
    inputs = inputs_of(model, 0)

    assert trainable[0] == trainable[1]
    np.testing.assert_allclose(
        rewritten(inputs, training=True), model(inputs, training=True), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "dropout"),  # with dropout it stays a loop
    [("forward", 0.0), ("backward", 0.0), ("forward", 0.1), ("backward", 0.1)],
)
def test_a_frozen_half_of_both_ways_stays_frozen(frozen: str, dropout: float) -> None:
    def body(words: Any) -> Any:
        memory = L.Bidirectional(L.SimpleRNN(3, unroll=True, dropout=dropout), name="memory")
        hidden = memory(embedded(words))
        getattr(memory, f"{frozen}_layer").trainable = False
        return hidden

    model = of_words(body)
    assert len(model.trainable_weights) == 1 + 3 + 2
    quantized = quantize(model, Quantization(), sparse=False).model
    words = inputs_of(model, 0)
    quantized(words, training=True)
    for each in (copy_model(model), rewrite(model).model, to_keras3(model), quantized):
        assert len(each.trainable_weights) == len(model.trainable_weights), each.name
        error = np.abs(np.asarray(each(words)) - model(words)).max()
        assert error < 0.05 * np.ptp(model(words)), each.name
    parts = [weight.name for weight in quantized.trainable_weights if "memory" in weight.name]
    assert not any(frozen in name for name in parts)


def test_a_last_layer_at_each_step_keeps_its_name(tmp_path: Path) -> None:
    """Such as the tags of words: the artifact's output has the student's name and shape."""
    words = L.Input((WORDS,), dtype="int32", name="words")
    tags = L.TimeDistributed(L.Dense(5), name="tags")(embedded(words, mask=False))
    model = randomized(tf_keras.Model(words, tags))
    quantized = quantize(model, Quantization(), sparse=False)
    quantized.model(inputs_of(model, 0), training=True)
    export_model(quantized.model, tmp_path / "tags.tflite", "int8", quantization_aware=True)
    outputs = LiteRTModel(tmp_path / "tags.tflite").predict(inputs_of(model, 1))

    assert quantized.left_float == {}
    assert {name: values.shape for name, values in outputs.items()} == {"tags": (24, WORDS, 5)}


@pytest.mark.slow
@pytest.mark.parametrize("skip", [[], ["memory"]])
def test_what_reads_a_loop_is_in_8_bits(skip: list[str], tmp_path: Path) -> None:
    """The converter fails on a loop's values that are quantized, and where they are joined."""

    def body(image: Any) -> Any:
        sequence = L.Dense(6)(L.Reshape((MOST_STEPS + 32, 2))(image))
        memory = L.LSTM(6, return_sequences=True, name="memory")(sequence)
        return L.Dense(4)(L.Concatenate()([memory, sequence]))

    model = of_images(body)
    quantized = quantize(model, Quantization(skip=skip), sparse=False)
    quantized.model(inputs_of(model, 0), training=True)
    operators, floating, errors = exported(quantized, tmp_path)

    assert [*quantized.left_float] == ["memory"]
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in operators
    assert not floating & {"FULLY_CONNECTED", "CONCATENATION"}
    assert np.quantile(errors, 0.99) <= 2.001


def over_time(image: Any) -> Any:
    return L.Conv1D(6, 3, activation="relu")(steps(image))


def attending(image: Any) -> Any:
    hidden = over_time(image)
    settings = {"kernel_constraint": "max_norm", "name": "apart"}
    return L.Add()([hidden, L.MultiHeadAttention(1, 4, **settings)(hidden, hidden)])


def with_states(image: Any) -> Any:
    memory = L.GRU(4, return_sequences=True, return_state=True, name="apart")
    sequence, state = memory(over_time(image))
    return L.Concatenate()([L.Dense(4)(state), L.GlobalMaxPooling1D()(L.Conv1D(4, 3)(sequence))])


ALONE: dict[str, Body] = {
    "constant": lambda x: (
        over_time(x) + np.random.default_rng(0).normal(size=[30, 6]).astype(np.float32)
    ),
    "cumulative": lambda x: tf.cumsum(over_time(x), axis=1),
    "halves": lambda x: L.Add()(L.Lambda(lambda t: tf.split(t, 2, -1), name="apart")(over_time(x))),
    "penalized": lambda x: L.TimeDistributed(L.Dense(8, activity_regularizer="l2"), name="apart")(
        over_time(x)
    ),
    "attention": attending,
    "states": with_states,
    "images": lambda x: tf.cumsum(L.Conv3D(3, 3, padding="same")(frames(x)), axis=1),
}


@pytest.mark.parametrize("name", only("constant", of=ALONE))
def test_what_stands_behind_a_layer_that_tfmot_cannot_wrap_is_in_8_bits(
    name: str, tmp_path: Path
) -> None:
    model = of_images(lambda x: L.Conv1D(4, 3, name="behind")(L.Reshape((-1, 2))(ALONE[name](x))))
    operations = [layer.name for layer in model.layers if type(layer).__name__ == "TFOpLambda"]
    quantized = quantize(model, Quantization(), sparse=False)
    quantized.model(inputs_of(model, 0), training=True)
    _, floating, errors = exported(quantized, tmp_path)

    wanted = operations or ["apart"]
    assert [each for each in quantized.left_float if not each.startswith("conv3d")] == wanted
    assert "CONV_2D" not in floating
    assert np.quantile(errors, 0.99) <= 2.001


def test_what_reads_floats_has_that_as_its_reason(tmp_path: Path) -> None:
    """Nothing is rounded behind a layer without weights that is to be left alone."""

    def body(image: Any) -> Any:
        return L.Conv2D(4, 1, name="behind")(L.ELU(name="apart")(convolution(image)))

    model = of_images(body)
    quantized = quantize(model, Quantization(skip=["apart"]), sparse=False)
    quantized.model(inputs_of(model, 0), training=True)
    _, floating, _ = exported(quantized, tmp_path)

    reason = "what it reads of apart is in float"
    assert quantized.left_float == {"apart": "named in `skip`", "behind": reason}
    assert floating == {"ELU", "CONV_2D"}
    with pytest.raises(ModelError, match=rf"`strict` is True\. Received: behind: {reason}\."):
        quantize(model, Quantization(skip=["apart"], strict=True), sparse=False)


def test_camera_pixels_are_fed_as_they_are(tmp_path: Path) -> None:
    """A student that begins with `Rescaling` takes uint8, each step of which is one of a pixel."""
    model = of_images(lambda x: convolution(L.Rescaling(1 / 127.5, -1.0)(x), activation="relu"))
    pixels = np.random.default_rng(0).integers(0, 256, [2, 24, *IMAGE], np.uint8)
    pixels[0, 0, 0, 0] = 0, 128, 255
    quantized = quantize(model, Quantization(), sparse=False).model
    quantized(pixels[0].astype(np.float32), training=True)

    path = tmp_path / "student.tflite"
    settings = Export(input_type="uint8")
    made = export_model(quantized, path, "int8", settings=settings, quantization_aware=True)

    (given,) = made.inputs
    assert (given.dtype, given.zero_point) == ("uint8", 0)
    assert given.scale == pytest.approx(1.0, rel=1e-6)
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    found = np.concatenate([runner(image=image[None])["logits"] for image in pixels[1]])
    (step,) = made.inspection.output_scales.values()
    assert step is not None
    simulated, exact = (each(pixels[1].astype(np.float32)).numpy() for each in (quantized, model))
    assert np.quantile(np.abs(found - simulated), 0.99) <= 2.001 * step
    assert np.abs(found - exact).max() <= 0.05 * np.ptp(exact)


def test_wrappers_in_a_row_are_one_larger_batch() -> None:
    """So that the normalization is folded into the convolution."""
    rewritten = rewrite(of_images(IN_8_BITS["frames"])).model
    kinds = [type(layer).__name__ for layer in rewritten.layers]
    assert kinds[2:-2] == [
        *("StepsAsExamples", "Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D", "Flatten"),
        "ExamplesAsSteps",
    ]

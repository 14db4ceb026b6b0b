"""Layers with layers inside, states, masks or vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crossings import (
    assert_close,
    assert_same_config,
    assert_same_outputs,
    assert_unchanged,
    inputs_of,
    randomize,
    snapshot,
)
from quick import only
from test_bridge_layers import CASES

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.layer_table import LAYERS
from tfdistill.errors import ConversionError

layers = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = (4, 3)
FRAMES = (3, 6, 4, 2)
PICTURE = (8, 6, 3)
WORDS = ["red", "green", "blue"]


def single(
    layer: Any, *shapes: tuple[int, ...], dtype: str = "float32", call: Any = None
) -> Callable[[], Any]:
    """Makes a model of one layer, which `layer()` makes."""

    def make() -> Any:
        inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
        made = layer()
        packed = inputs if len(inputs) > 1 else inputs[0]
        return keras.Model(inputs, call(made, *inputs) if call else made(packed))

    return make


def perceptron() -> Any:
    block = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="same")], name="block")
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2, name="same")(block(inputs)), name="frame")


# By what is tested; where the name has no other sense, by the layer.
PARTS: dict[str, Callable[[], Any]] = {
    "MultiHeadAttention": single(
        lambda: layers.MultiHeadAttention(2, 3, dropout=0.5, kernel_regularizer="l2"),
        STEPS,
        (5, 4),
        call=lambda layer, query, value: layer(query, value),
    ),
    "causal attention with scores": single(
        lambda: layers.MultiHeadAttention(2, 3, value_dim=5, output_shape=7, use_bias=False),
        STEPS,
        call=lambda layer, x: layer(x, x, use_causal_mask=True, return_attention_scores=True),
    ),
    "attention with a key and a mask": single(
        lambda: layers.MultiHeadAttention(2, 3),
        STEPS,
        (5, 4),
        (5, 6),
        (4, 5),
        call=lambda layer, query, value, key, mask: layer(
            query, value, key=key, attention_mask=mask > 0
        ),
    ),
    "attention over an image": single(
        lambda: layers.MultiHeadAttention(2, 3, attention_axes=(1, 2)),
        PICTURE,
        call=lambda layer, x: layer(x, x),
    ),
    "Attention": single(lambda: layers.Attention(use_scale=True, dropout=0.1), STEPS, (5, 3)),
    "attention by concatenation": single(
        lambda: layers.Attention(score_mode="concat"), STEPS, (5, 3), (5, 3)
    ),
    "AdditiveAttention": single(lambda: layers.AdditiveAttention(), STEPS, (5, 3)),
    "EinsumDense": single(
        lambda: layers.EinsumDense(
            "abc,cd->abd", output_shape=(None, 5), bias_axes="d", activation="hard_silu"
        ),
        STEPS,
    ),
    "SimpleRNN": single(lambda: layers.SimpleRNN(3, unroll=True, dropout=0.1), STEPS),
    "LSTM": single(
        lambda: layers.LSTM(3, dropout=0.2, recurrent_dropout=0.1, unit_forget_bias=False), STEPS
    ),
    "LSTM with states": single(
        lambda: layers.LSTM(2, return_state=True, return_sequences=True, go_backwards=True),
        STEPS,
        (2,),
        (2,),
        call=lambda layer, x, h, c: layer(x, initial_state=[h, c]),
    ),
    "GRU": single(
        lambda: layers.GRU(3, return_sequences=True, recurrent_constraint="max_norm"), STEPS
    ),
    "GRU of the first kind": single(
        lambda: layers.GRU(3, reset_after=False, recurrent_activation="hard_sigmoid"), STEPS
    ),
    "RNN": single(lambda: layers.RNN(layers.SimpleRNNCell(3)), STEPS),
    "StackedRNNCells": single(
        lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_state=True), STEPS
    ),
    "Bidirectional": single(
        lambda: layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True)), STEPS
    ),
    "two directions with states": single(
        lambda: layers.Bidirectional(layers.SimpleRNN(2, return_state=True), merge_mode="sum"),
        STEPS,
        (2,),
        (2,),
        call=lambda layer, x, forward, backward: layer(x, initial_state=[forward, backward]),
    ),
    "two directions of their own": single(
        lambda: layers.Bidirectional(
            layers.SimpleRNN(3),
            backward_layer=layers.SimpleRNN(
                3, go_backwards=True, activation="relu", name="backward_own"
            ),
        ),
        STEPS,
    ),
    "TimeDistributed": single(lambda: layers.TimeDistributed(layers.Conv2D(2, 3)), FRAMES),
    "a model at each step": single(lambda: layers.TimeDistributed(perceptron()), STEPS),
    "ConvLSTM1D": single(lambda: layers.ConvLSTM1D(2, 3, padding="same"), (3, 6, 2)),
    "ConvLSTM2D": single(lambda: layers.ConvLSTM2D(2, 2, return_sequences=True), FRAMES),
    "ConvLSTM3D": single(lambda: layers.ConvLSTM3D(2, 2), (2, 4, 4, 4, 2)),
    "RMSNormalization": single(lambda: layers.RMSNormalization(epsilon=0.1), STEPS),
    "Resizing": single(lambda: layers.Resizing(5, 7, interpolation="bicubic"), PICTURE),
    "CenterCrop": single(lambda: layers.CenterCrop(5, 3), PICTURE),
    "Discretization": single(lambda: layers.Discretization([-1.0, 0.0, 0.5]), (6,)),
    "CategoryEncoding": single(
        lambda: layers.CategoryEncoding(7, output_mode="count"), (5,), dtype="int32"
    ),
    "Hashing": single(lambda: layers.Hashing(5, salt=3), (5,), dtype="string"),
    "HashedCrossing": single(
        lambda: layers.HashedCrossing(5),
        (1,),
        (1,),
        dtype="int32",
        call=lambda layer, *tensors: layer(tensors),
    ),
    "StringLookup": single(
        lambda: layers.StringLookup(vocabulary=WORDS, num_oov_indices=2), (5,), dtype="string"
    ),
    "IntegerLookup": single(
        lambda: layers.IntegerLookup(vocabulary=[5, 2, 4], output_mode="multi_hot"),
        (5,),
        dtype="int64",
    ),
    "TextVectorization": single(
        lambda: layers.TextVectorization(vocabulary=WORDS, output_sequence_length=2),
        (1,),
        dtype="string",
    ),
    "RandomFlip": single(lambda: layers.RandomFlip("horizontal"), PICTURE),
    "RandomRotation": single(lambda: layers.RandomRotation(0.2), PICTURE),
    "RandomZoom": single(lambda: layers.RandomZoom(0.2), PICTURE),
    "RandomTranslation": single(lambda: layers.RandomTranslation(0.2, 0.1), PICTURE),
    "RandomContrast": single(lambda: layers.RandomContrast(0.2), PICTURE),
    "RandomBrightness": single(
        lambda: layers.RandomBrightness(0.2, value_range=(0.0, 1.0)), PICTURE
    ),
    "LayerScale": single(
        lambda: keras.src.applications.convnext.LayerScale(0.5, 3, name="scale"), STEPS
    ),
    "StochasticDepth": single(
        lambda: keras.src.applications.convnext.StochasticDepth(0.5, name="depth"), STEPS
    ),
    "CustomScaleLayer": single(
        lambda: keras.src.applications.inception_resnet_v2.CustomScaleLayer(0.2), STEPS, STEPS
    ),
}


def without_shapes(config: Any) -> Any:
    """A config without what Keras adds to it once a layer is built."""
    if isinstance(config, dict):
        return {key: without_shapes(config[key]) for key in config if key != "build_config"}
    return [without_shapes(one) for one in config] if isinstance(config, list | tuple) else config


_LIKE_OTHERS = (
    *("attention over an image", "LSTM with states", "GRU of the first kind", "StackedRNNCells"),
    *("Bidirectional", "two directions with states", "two directions of their own"),
    *("ConvLSTM1D", "ConvLSTM3D"),
)


@pytest.mark.parametrize("name", only(*(PARTS.keys() - {*_LIKE_OTHERS}), of=PARTS))
def test_layer_with_parts_or_states_crosses_and_comes_back(name: str) -> None:
    original = PARTS[name]()
    layer = original.layers[-1]
    randomize(original)
    before = snapshot(original)
    converted = bridge.to_tf_keras(original)
    assert_unchanged(original, before)
    assert_same_outputs(converted, original)
    returned = bridge.to_keras3(converted)
    assert_same_outputs(returned, original)
    ours, theirs = returned.get_layer(layer.name).get_config(), layer.get_config()
    # Axes become a list, and a model is flat.
    if name not in {"attention over an image", "RMSNormalization", "a model at each step"}:
        assert_same_config(without_shapes(ours), without_shapes(theirs))
    trained = randomize(converted, seed=5)
    assert_same_outputs(bridge.rebuild_keras3(original, trained), trained)


def test_every_layer_of_the_table_is_tested() -> None:
    simple = {getattr(case, "values", case)[0] for case in CASES}
    cells = {"SimpleRNNCell", "LSTMCell", "GRUCell"}  # inside of an RNN
    assert simple | cells | set(PARTS) >= set(LAYERS) - {"Embedding"}


def test_every_layer_of_keras_crosses_or_has_a_reason() -> None:
    """What exists in both Kerases and is not in the table is refused with what to do."""
    both = {
        name
        for name in dir(keras.layers)
        if isinstance(getattr(keras.layers, name), type) and hasattr(tf_keras.layers, name)
    }
    aliases = {name for name in both if getattr(keras.layers, name).__name__ != name}
    bases = {"Layer", "Wrapper", "InputLayer", "InputSpec"}
    refused = {"Lambda", "RandomCrop", "SpectralNormalization"}
    assert both - aliases - bases - set(LAYERS) == refused


def text_model() -> Any:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(7, 4, mask_zero=True)(tokens)
    attended = layers.Attention()([x, x])
    x = layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True))(x)
    for _ in range(2):
        x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 2)(x, x))
    steps = layers.TimeDistributed(layers.Dense(2))(x)
    last = layers.SimpleRNN(2)(layers.Dropout(0.5)(x))
    return keras.Model(tokens, [steps, last, layers.GlobalAveragePooling1D()(attended)])


@pytest.mark.parametrize("reloaded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_masks_go_on_in_the_other_keras(reloaded: bool, tmp_path: Path) -> None:
    original = randomize(text_model())
    if reloaded:  # its masks are computed a second time in the graph
        original.save(tmp_path / "model.keras")
        original = keras.models.load_model(tmp_path / "model.keras")
    converted = bridge.to_tf_keras(original)
    assert not any("not_equal" in layer.name for layer in converted.layers)
    tokens = np.array([[1, 2, 0, 0], [6, 3, 3, 0], [1, 1, 1, 1]])
    returned = bridge.to_keras3(converted)
    for ours, back, theirs in zip(
        converted(tokens), returned(tokens), original(tokens), strict=True
    ):
        assert_close(ours, theirs)
        assert_close(back, theirs)
    padded = converted(np.pad(tokens, ((0, 0), (0, 2))))[1]
    assert_close(padded, original(tokens)[1])  # the padding is seen to be none


def encoder(x: Any, *, first: bool = False, **settings: Any) -> Any:
    """A block of a transformer, its normalization `first` (Xiong 2020) or last (Vaswani 2017)."""
    attended = layers.LayerNormalization()(x) if first else x
    x = layers.Add()([x, layers.MultiHeadAttention(2, 2, **settings)(attended, attended)])
    x = x if first else layers.LayerNormalization()(x)
    inner = layers.LayerNormalization()(x) if first else x
    x = layers.Add()([x, layers.Dropout(0.1)(layers.Dense(4, activation="relu")(inner))])
    return x if first else layers.LayerNormalization()(x)


def text_encoder(end: Any, blocks: int = 2, **settings: Any) -> Any:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(7, 4, mask_zero=True)(tokens)
    for _ in range(blocks):
        x = encoder(x, **settings)
    return keras.Model(tokens, end(x))


@pytest.mark.parametrize(
    ("build", "unmasked"),
    [
        pytest.param(
            lambda: text_encoder(layers.GlobalAveragePooling1D(), 1), 0, marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: text_encoder(layers.GlobalAveragePooling1D(), 3), 2, marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: text_encoder(layers.GlobalAveragePooling1D(), first=True),
            0,
            marks=pytest.mark.slow,
        ),
        (lambda: text_encoder(lambda x: x[:, 0]), 1),
        pytest.param(lambda: text_encoder(layers.LSTM(3)), 1, marks=pytest.mark.slow),
    ],
    ids=["one block", "three blocks", "normalized first", "first word", "recurrent"],
)
def test_a_text_encoder_keeps_the_masks_that_keras3_reads(build: Any, unmasked: int) -> None:
    """Its residual connections read what attention took the mask off, but only at run time."""
    original = build()
    for weight in original.weights:
        weight.assign(weight + np.random.default_rng(1).normal(0, 0.1, weight.shape))
    converted = bridge.to_tf_keras(original)
    tokens = np.array([[1, 2, 3, 0, 0, 0], [6, 5, 4, 3, 2, 0], [1, 1, 1, 1, 1, 1]])
    assert_close(converted(tokens), original(tokens))
    assert_close(converted.predict(tokens, verbose=0), original.predict(tokens, verbose=0))
    assert sum(layer.name.endswith("/unmasked") for layer in converted.layers) == unmasked
    assert not any("call" in vars(layer) for layer in original.layers)
    returned = bridge.rebuild_keras3(original, randomize(converted))
    assert_close(returned(tokens), converted(tokens))


def test_attention_with_dropout_under_a_mask_is_refused_with_advice() -> None:
    """Keras 3 computes it another way: with zeros, not a mean, where there is nothing to see."""
    original = text_encoder(layers.GlobalAveragePooling1D(), 1, dropout=0.1)
    with pytest.raises(ConversionError, match=r"layer multi_head_att.*`dropout=0` and add a Drop"):
        bridge.to_tf_keras(original)


def test_masks_that_keras3_would_not_read_are_refused() -> None:
    """On the way back, attention of Keras 3 takes the mask off what the next one reads."""
    tokens = tf_keras.Input((4,), dtype="int32")
    x = tf_keras.layers.Embedding(7, 4, mask_zero=True)(tokens)
    for _ in range(2):
        x = tf_keras.layers.Add()([x, tf_keras.layers.MultiHeadAttention(2, 2)(x, x)])
    with pytest.raises(ConversionError, match=r"takes the mask off its inputs.*mask_zero=False"):
        bridge.to_keras3(randomize(tf_keras.Model(tokens, x)))


def test_a_mask_given_by_hand_is_kept() -> None:
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(7, 3)(tokens)
    original = randomize(keras.Model(tokens, layers.SimpleRNN(2)(x, mask=tokens > 2)))
    values = np.array([[1, 5, 2, 6], [3, 3, 3, 0], [1, 2, 1, 2]])
    assert_close(bridge.to_tf_keras(original)(values), original(values))


def test_states_that_are_kept_between_batches_stay_as_they_are() -> None:
    inputs = keras.Input(batch_shape=(2, *STEPS))
    original = randomize(keras.Model(inputs, layers.SimpleRNN(3, stateful=True)(inputs)))
    values = inputs_of(original)[0]
    expected = [original(values).numpy() for _ in range(2)]
    original.layers[-1].reset_states()
    original(values)
    converted = bridge.to_tf_keras(original)
    assert_close(original(values), expected[1])
    for one in expected:
        assert_close(converted(values), one)


@pytest.mark.parametrize("output_mode", ["int", "tf_idf"])
def test_what_a_lookup_was_adapted_to_crosses(output_mode: str) -> None:
    lookup = layers.TextVectorization(
        output_mode=output_mode,
        ngrams=2,
        output_sequence_length=3 if output_mode == "int" else None,
    )
    lookup.adapt(["red green", "green blue green", "red"])
    inputs = keras.Input((1,), dtype="string")
    original = keras.Model(inputs, lookup(inputs))
    converted = bridge.to_tf_keras(original)
    texts = tf.constant([["Red, green"], ["blue yellow"], ["green green"]])
    assert len(np.unique(original(texts))) > 2
    assert_close(converted(texts), original(texts))
    assert_close(bridge.to_keras3(converted)(texts), original(texts))


def test_bins_that_were_adapted_cross() -> None:
    bins = layers.Discretization(num_bins=3)
    bins.adapt(np.arange(30.0).reshape(-1, 1))
    inputs = keras.Input((2,))
    original = keras.Model(inputs, bins(inputs))
    values = np.array([[0.0, 15.0], [11.0, 29.0]], "float32")
    assert len(np.unique(original(values))) == 3
    assert_close(bridge.to_tf_keras(original)(values), original(values))


def test_a_layer_without_weights_that_only_keras3_has_runs_as_an_operation(tmp_path: Path) -> None:
    inputs = keras.Input(PICTURE)
    original = keras.Model(inputs, layers.AdaptiveAveragePooling2D((3, 2), name="pool")(inputs))
    converted = bridge.to_tf_keras(original)
    assert_same_outputs(converted, original)
    converted.save(tmp_path / "model.keras")
    assert_same_outputs(bridge.load_model(tmp_path / "model.keras"), original)
    returned = bridge.to_keras3(converted)
    assert type(returned.get_layer("pool")) is layers.AdaptiveAveragePooling2D


def test_a_wrapper_trains_alike() -> None:
    inputs = keras.Input(STEPS)
    x = layers.TimeDistributed(layers.Dense(3), name="each")(inputs)
    outputs = layers.Bidirectional(layers.SimpleRNN(2), name="both")(x)
    original = randomize(keras.Model(inputs, outputs))
    converted = bridge.to_tf_keras(original)
    values, labels = inputs_of(original, batch=8)[0], np.ones((8, 4), "float32")
    for model, optimizer in (
        (original, keras.optimizers.SGD(0.1)),
        (converted, tf_keras.optimizers.SGD(0.1)),
    ):
        model.compile(optimizer, "mse")
        model.train_on_batch(values, labels)
    assert_same_outputs(converted, original, tolerance=2e-5)


@pytest.mark.parametrize(
    ("layer", "shape", "dtype", "reason"),
    [
        (
            lambda: layers.TimeDistributed(layers.BatchNormalization()),
            *(STEPS, "float32", "normalizes each step in it by itself"),
        ),
        (
            lambda: layers.TimeDistributed(layers.Lambda(abs)),
            *(STEPS, "float32", "a Lambda layer's Python code"),
        ),
        (
            lambda: layers.StringLookup(vocabulary=WORDS, output_mode="multi_hot", sparse=True),
            *((2,), "string", "its `sparse=True` is not converted"),
        ),
        (
            lambda: layers.Resizing(4, 4, pad_to_aspect_ratio=True),
            *(PICTURE, "float32", "its `pad_to_aspect_ratio=True` has no counterpart"),
        ),
        (
            lambda: layers.SpectralNormalization(layers.Dense(2)),
            *((3,), "float32", "that of tf_keras runs only where"),
        ),
        (lambda: layers.RandomCrop(4, 4), PICTURE, "float32", "crop in the data set"),
        (lambda: layers.STFTSpectrogram(), (1000, 1), "float32", "compute the spectrogram in the"),
    ],
)
def test_what_the_two_kerases_do_otherwise_is_refused_with_advice(
    layer: Any, shape: tuple[int, ...], dtype: str, reason: str
) -> None:
    with pytest.raises(ConversionError, match=reason):
        bridge.to_tf_keras(single(layer, shape, dtype=dtype)())


def test_normalization_at_each_step_crosses_where_it_is_frozen() -> None:
    wrapper = layers.TimeDistributed(layers.BatchNormalization(trainable=False))
    original = randomize(single(lambda: wrapper, STEPS)())
    assert_same_outputs(bridge.to_tf_keras(original), original)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from crossings import (
    IMAGE,
    VECTOR,
    assert_close,
    assert_same_outputs,
    assert_unchanged,
    inputs_of,
    randomize,
    snapshot,
)

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge import equality
from tfdistill.errors import ConversionError

layers = keras.layers
STEEPNESS = 2.0
Build = Callable[[], Any]


def mobile_net(dropout: float = 0.2) -> Any:
    """Inverted residuals, as MobileNetV2 has them."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
    skip = x
    x = layers.Conv2D(16, 1, use_bias=False, name="expand")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.Activation("hard_silu")(layers.BatchNormalization()(x))
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    squeezed = layers.Conv2D(16, 1, activation="hard_sigmoid", name="excite")(squeezed)
    x = layers.Multiply()([x, squeezed])
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False, name="project")(x))
    x = layers.GlobalAveragePooling2D()(layers.Add()([skip, x]))
    logits = layers.Dense(5, name="logits")(layers.Dropout(dropout)(x))
    return keras.Model(inputs, logits, name="mobile")


def residual_net() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", kernel_regularizer="l2", activation="relu")(inputs)
    skip = layers.BatchNormalization()(layers.Conv2D(8, 1, strides=2, name="shortcut")(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, skip]))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


def two_towers() -> Any:
    """Two inputs whose order is not the alphabet's, a layer used twice, two outputs."""
    left, right = keras.Input((6,), name="right_first"), keras.Input((6,), name="left_second")
    shared = layers.Dense(4, activation="relu", name="shared")
    a, b = shared(left), shared(right)
    joined = layers.Concatenate()([b, layers.Subtract()([a, b])])
    return keras.Model(
        [left, right], [layers.Dense(2, name="two")(joined), layers.Dense(3, name="three")(a)]
    )


def nested() -> Any:
    """A submodel inside a submodel, both used twice, and names that collide."""
    block = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, name="dense"), layers.BatchNormalization(name="norm")],
        name="block",
    )
    inner = keras.Input((6,))
    backbone = keras.Model(inner, layers.Add()([block(inner), inner]), name="backbone")
    inputs = keras.Input((6,), name="features")
    x = backbone(layers.Dense(6, name="dense")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="logits")(block(backbone(x))), name="whole")


def dictionaries() -> Any:
    inputs = {name: keras.Input((6,), name=name) for name in ("z", "a")}
    outputs = {
        "second": layers.Dense(2, name="second")(inputs["a"]),
        "first": layers.Dense(3, name="first")(inputs["z"]),
    }
    return keras.Model(inputs, outputs)


def sequential() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, activation="relu", name="convolution"),
            layers.Flatten(),
            layers.Dense(3, name="logits"),
        ],
        name="student",
    )


# --- whole models --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [mobile_net, residual_net, two_towers, nested, dictionaries, sequential]
)
def test_model_crosses_and_comes_back(build: Build) -> None:
    original = randomize(build())
    before = snapshot(original)
    converted = bridge.to_tf_keras(original)
    assert isinstance(converted, tf_keras.Model)
    assert not isinstance(converted, tf_keras.Sequential)
    assert not any(isinstance(layer, tf_keras.Model) for layer in converted.layers)
    assert converted.name == original.name
    assert converted.input_names == [x._keras_history.operation.name for x in original.inputs]
    assert len(converted.trainable_weights) == len(original.trainable_weights)
    values = inputs_of(original)
    structure = (getattr(original, "_functional", None) or original).input
    packed = keras.tree.pack_sequence_as(structure, values)
    ours, theirs = converted(packed), original(packed)
    tf.nest.assert_same_structure(ours, theirs)
    for our, their in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
        assert_close(our, their)
    assert_unchanged(original, before)
    returned = bridge.to_keras3(converted)(packed)
    for our, their in zip(tf.nest.flatten(returned), tf.nest.flatten(theirs), strict=True):
        assert_close(our, their)


def test_inlined_layers_keep_their_names_where_these_are_free() -> None:
    names = [layer.name for layer in bridge.to_tf_keras(nested()).layers]
    assert {"features", "dense", "logits", "norm", "add"} < set(names)
    assert "backbone_block_dense" in names
    assert len(names) == 6  # the shared block is there once


@pytest.mark.parametrize("rank", [2, 4])
def test_one_training_step_moves_weights_and_statistics_alike(rank: int) -> None:
    inputs = keras.Input(IMAGE if rank == 4 else VECTOR)
    kind = layers.Conv2D(3, 3, name="linear") if rank == 4 else layers.Dense(3, name="linear")
    x = layers.BatchNormalization(momentum=0.6, name="norm")(kind(inputs))
    outputs = layers.Dense(2, kernel_regularizer="l2", name="logits")(layers.Flatten()(x))
    original = randomize(keras.Model(inputs, outputs))
    converted = bridge.to_tf_keras(original)
    old_variance = original.get_layer("norm").moving_variance.numpy()
    values, labels = inputs_of(original, batch=8)[0], np.ones((8, 2), "float32")
    for model, optimizer in (
        (original, keras.optimizers.SGD(0.01, momentum=0.9)),
        (converted, tf_keras.optimizers.SGD(0.01, momentum=0.9)),
    ):
        model.compile(optimizer, "mse")
        model.train_on_batch(values, labels)
    for name, layer in ((layer.name, layer) for layer in original.layers):
        twin = {w.name.split("/")[-1][:-2]: w.numpy() for w in converted.get_layer(name).weights}
        for weight in layer.weights:
            expected = weight.numpy()
            if weight.name == "moving_variance" and rank == 4:
                # The fused kernel of tf_keras averages the unbiased variance.
                count = 8 * 6 * 4
                new = (expected - 0.6 * old_variance) / 0.4
                expected = 0.6 * old_variance + 0.4 * new * count / (count - 1)
            assert_close(twin[weight.name], expected, tolerance=2e-5)


def test_training_argument_in_the_graph_has_the_effect_that_keras3_gives_it() -> None:
    inputs = keras.Input(VECTOR)
    outputs = layers.BatchNormalization(name="norm")(inputs, training=False)
    original = keras.Model(inputs, outputs)
    converted = bridge.to_tf_keras(original)
    values = inputs_of(original)[0] + 5.0
    assert_close(converted(values, training=True), original(values, training=True))
    assert np.abs(original.get_layer("norm").moving_mean.numpy()).max() > 0.01  # not heeded
    assert_close(converted.get_layer("norm").moving_mean, original.get_layer("norm").moving_mean)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_what_is_frozen_stays_frozen(library: Any) -> None:
    inner = library.Sequential(
        [library.layers.Input(VECTOR), library.layers.Dense(6, name="inner")], name="backbone"
    )
    inputs = library.layers.Input(VECTOR)
    original = library.Model(inputs, library.layers.Dense(2, name="logits")(inner(inputs)))
    inner.trainable = False
    assert len(bridge.to_tf_keras(original).trainable_weights) == 2
    # tf_keras goes by the submodel's flag, Keras 3 by the layer's own.
    inner.layers[-1].trainable = True
    expected = len(original.trainable_weights)
    assert expected == (4 if library is keras else 2)
    assert len(bridge.to_tf_keras(original).trainable_weights) == expected


def test_free_dimensions_stay_free() -> None:
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=2)(inputs)
    original = randomize(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    converted = bridge.to_tf_keras(original)
    assert converted.input_shape == (None, None, None, 3)
    values = np.random.default_rng(0).normal(size=(2, 9, 11, 3)).astype("float32")
    assert_close(converted(values), original(values))


def test_fixed_batch_size_stays_fixed() -> None:
    inputs = keras.Input(batch_shape=(2, 6))
    converted = bridge.to_tf_keras(keras.Model(inputs, layers.Dense(3)(inputs)))
    assert converted.input_shape == (2, 6)


def test_converts_under_a_strategy_of_two_devices() -> None:
    original = randomize(mobile_net())
    before = snapshot(original)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        converted = bridge.to_tf_keras(original)
    assert_unchanged(original, before)
    for ours, theirs in zip(
        converted.get_weights(), bridge.to_tf_keras(original).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


# --- tf_keras models -----------------------------------------------------------------------


def test_tf_keras_model_gives_a_flat_clone_that_shares_nothing() -> None:
    block = tf_keras.Sequential(
        [tf_keras.layers.Dense(6, name="dense"), tf_keras.layers.ReLU()], name="block"
    )
    original = tf_keras.Sequential(
        [
            tf_keras.layers.Input(VECTOR, name="features"),
            tf_keras.layers.Dense(6, name="dense"),
            block,
            block,
            tf_keras.layers.Dropout(0.5),
        ],
        name="student",
    )
    randomize(original)
    before = snapshot(original)
    clone = bridge.to_tf_keras(original)
    assert clone is not original
    assert not isinstance(clone, tf_keras.Sequential)
    names = [layer.name for layer in clone.layers]
    assert names[:3] == ["features", "dense", "block_dense"]
    assert_same_outputs(clone, original)
    assert not {id(w) for w in clone.weights} & {id(w) for w in original.weights}
    randomize(clone, seed=9)
    assert_unchanged(original, before)
    bridge.copy_weights_back(clone, original)
    assert_same_outputs(original, clone)


@pytest.mark.parametrize("setting", [{"synchronized": True}, {"fused": False}])
def test_tf_keras_clone_keeps_what_tf_keras_leaves_out_of_the_config(
    setting: dict[str, bool],
) -> None:
    inputs = tf_keras.Input(IMAGE)
    outputs = tf_keras.layers.BatchNormalization(name="norm", **setting)(inputs)
    norm = bridge.to_tf_keras(tf_keras.Model(inputs, outputs)).get_layer("norm")
    assert {name: getattr(norm, name) for name in setting} == setting
    assert norm.fused is False


def test_tf_keras_clone_keeps_lambdas_operators_and_fixed_training() -> None:
    inputs = tf_keras.Input(VECTOR)
    x = tf_keras.layers.Lambda(lambda x: x * STEEPNESS)(inputs)  # a global of this module
    x = tf_keras.layers.BatchNormalization(name="norm")(x, training=False)
    original = tf_keras.Model(inputs, tf.nn.relu(x + 1.0) * 3.0)
    randomize(original)
    clone = bridge.to_tf_keras(original)
    assert_same_outputs(clone, original)
    values = inputs_of(original)[0] + 5.0
    assert_close(clone(values, training=True), original(values, training=False))
    with pytest.raises(ConversionError, match=r"lambda \(Lambda\): a Lambda layer's Python code"):
        bridge.to_keras3(original)


def test_to_keras3_refuses_a_fixed_training_argument() -> None:
    inputs = tf_keras.Input(VECTOR)
    outputs = tf_keras.layers.BatchNormalization(name="norm")(inputs, training=False)
    with pytest.raises(
        ConversionError,
        match=r"norm \(BatchNormalization\): Keras 3 would not heed its fixed `training`",
    ):
        bridge.to_keras3(tf_keras.Model(inputs, outputs))


def test_to_keras3_keeps_what_tf_keras_leaves_out_of_the_config() -> None:
    inputs = tf_keras.Input(VECTOR)
    outputs = tf_keras.layers.BatchNormalization(synchronized=True, name="norm")(inputs)
    converted = bridge.to_keras3(tf_keras.Model(inputs, outputs))
    assert converted.get_layer("norm").synchronized is True


def test_to_keras3_of_a_keras3_model_is_a_clone() -> None:
    original = randomize(nested())
    clone = bridge.to_keras3(original)
    assert clone is not original
    assert_same_outputs(clone, original)


def test_kinds_of_models_are_told_apart() -> None:
    ours, theirs = keras.Sequential(), tf_keras.Sequential()
    assert (bridge.is_keras3(ours), bridge.is_tf_keras(ours)) == (True, False)
    assert (bridge.is_keras3(theirs), bridge.is_tf_keras(theirs)) == (False, True)
    assert not bridge.is_keras3(tf_keras.layers.Dense(1))


# --- the way back --------------------------------------------------------------------------


@pytest.mark.parametrize("build", [mobile_net, two_towers, nested, sequential])
def test_rebuilt_model_has_the_form_of_the_original_and_the_trained_weights(build: Build) -> None:
    original = randomize(build())
    before = snapshot(original)
    trained = randomize(bridge.to_tf_keras(original), seed=7)
    rebuilt = bridge.rebuild_keras3(original, trained)
    assert type(rebuilt) is type(original)
    assert [layer.name for layer in rebuilt.layers] == [layer.name for layer in original.layers]
    assert [w.name for w in rebuilt.weights] == [w.name for w in original.weights]
    assert_same_outputs(rebuilt, trained)
    assert_unchanged(original, before)


def test_rebuilding_notices_a_trained_model_that_computes_something_else() -> None:
    original = sequential()
    trained = bridge.to_tf_keras(original)
    other = tf_keras.Model(trained.inputs, tf.nn.relu(trained.outputs[0] - 1.0))
    with pytest.raises(ConversionError, match=r"must equal the original .* output 0 by"):
        bridge.rebuild_keras3(original, other)


def test_copying_back_lists_what_does_not_fit_and_writes_nothing() -> None:
    original = sequential()
    before = snapshot(original)
    inputs = tf_keras.Input((8, 8, 1))
    x = tf_keras.layers.Conv2D(5, 3, name="convolution")(inputs)
    other = tf_keras.Model(
        inputs, tf_keras.layers.Dense(3, name="projection")(tf_keras.layers.Flatten()(x))
    )
    with pytest.raises(ConversionError) as raised:
        bridge.copy_weights_back(other, original)
    message = str(raised.value)
    assert "`source` must be the model that `to_tf_keras(target)` made." in message
    assert "convolution: its weights [('bias', (5,))" in message
    assert "logits: not in `source`" in message
    assert "projection: not in `target`" in message
    assert_unchanged(original, before)


# --- rounding ------------------------------------------------------------------------------


def unstable(library: Any) -> Any:
    """A network that blows rounding errors up, as deep ones of random weights do."""
    inputs = x = library.Input((4, 4, 6))
    for place in range(3):  # takes nearly all of each number away, where roundings are left
        x = library.layers.Conv2D(6, 1, name=f"mixed_{place}")(x)
        x = library.layers.BatchNormalization(name=f"norm_{place}")(x)
    model = library.Model(inputs, x)
    random = np.random.default_rng(0)
    large = np.full(6, 3000.0)
    for place in range(3):
        kernel = random.normal(size=(1, 1, 6, 6))
        model.get_layer(f"mixed_{place}").set_weights([kernel, large])
        model.get_layer(f"norm_{place}").set_weights([np.ones(6), np.zeros(6), large, np.ones(6)])
    return model


def test_roundings_that_a_network_enlarges_are_no_difference() -> None:
    ours, theirs = unstable(keras), unstable(tf_keras)
    inputs, expected = equality.inputs_and_outputs(ours)
    (error,) = equality._output_errors(expected, equality.outputs_of(theirs, inputs)).values()
    assert error > 2 * equality.MAX_RELATIVE_ERROR, "too tame a network to test anything"
    equality.check_outputs(ours, theirs)

    kernel, bias = theirs.get_layer("mixed_1").get_weights()
    theirs.get_layer("mixed_1").set_weights([kernel, bias + 0.01])
    with pytest.raises(ConversionError, match=r"1 of 1 comparisons differ, the worst output 0"):
        equality.check_outputs(ours, theirs)


def test_roundings_are_tried_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """One time they move the outputs of a chaotic network by little, another time by much."""
    model = unstable(tf_keras)
    asked: list[int] = []

    def noise(*_: Any, seed: int) -> dict[str, float]:
        asked.append(seed)
        return {"output 0": 0.01 if seed == largest else 1e-4}

    monkeypatch.setattr(equality, "_rounding_noise", noise)
    largest = 3
    equality._raise_if_different({"output 0": 0.015, "layer a": 1e-7}, model, [], [])
    assert asked == [0, 1, 2, 3]
    for errors, trials in (({"output 0": 0.05}, equality._TRIALS), ({"layer a": 0.001}, 1)):
        asked.clear()
        with pytest.raises(ConversionError, match="1 of 1 comparisons differ"):
            equality._raise_if_different(errors, model, [], [])
        assert len(asked) == trials

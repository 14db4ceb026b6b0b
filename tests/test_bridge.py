from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdistill import bridge, layer_configs
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ConversionError
from tfdistill.layer_configs import LAYERS, LayerAdapter

layers = keras.layers

IMAGE = (8, 6, 4)
SEQUENCE = (8, 4)
VOLUME = (4, 4, 4, 2)
VECTOR = (6,)
STEEPNESS = 2.0

Build = Callable[[], Any]
OLD_KERAS = pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
    reason="older Keras 3 computes this otherwise than tf_keras; the conversion is refused",
)
# One or more of each kind of layer: the shapes of its inputs, and how it is made.
CASES: list[Any] = [
    ("Dense", (VECTOR,), lambda layer: layer(3, activation="tanh")),
    ("Dense", (SEQUENCE,), lambda layer: layer(3, use_bias=False)),
    ("Conv1D", (SEQUENCE,), lambda layer: layer(3, 3, padding="causal", dilation_rate=2)),
    ("Conv1D", (SEQUENCE,), lambda layer: layer(3, 3, strides=2, padding="same")),
    ("Conv2D", (IMAGE,), lambda layer: layer(3, 3, strides=2, padding="same", activation="relu")),
    ("Conv2D", (IMAGE,), lambda layer: layer(4, (3, 2), groups=2, dilation_rate=2, use_bias=False)),
    ("Conv3D", (VOLUME,), lambda layer: layer(2, 2, padding="same")),
    ("Conv1DTranspose", (SEQUENCE,), lambda layer: layer(3, 3, strides=2, padding="same")),
    ("Conv2DTranspose", (IMAGE,), lambda layer: layer(3, 3, strides=2, padding="same")),
    pytest.param(
        *("Conv2DTranspose", (IMAGE,), lambda layer: layer(3, 3, strides=2, output_padding=1)),
        marks=OLD_KERAS,
    ),
    ("Conv3DTranspose", (VOLUME,), lambda layer: layer(2, 2, strides=2)),
    ("DepthwiseConv1D", (SEQUENCE,), lambda layer: layer(3, depth_multiplier=2)),
    ("DepthwiseConv2D", (IMAGE,), lambda layer: layer(3, padding="same", depth_multiplier=2)),
    ("SeparableConv1D", (SEQUENCE,), lambda layer: layer(3, 3, depth_multiplier=2)),
    ("SeparableConv2D", (IMAGE,), lambda layer: layer(3, 3, strides=2, padding="same")),
    ("BatchNormalization", (IMAGE,), lambda layer: layer(momentum=0.7, epsilon=1e-6)),
    ("BatchNormalization", (VECTOR,), lambda layer: layer(center=False, synchronized=True)),
    ("BatchNormalization", (IMAGE,), lambda layer: layer(axis=1, scale=False)),
    ("LayerNormalization", (IMAGE,), lambda layer: layer()),
    (
        "LayerNormalization",
        (IMAGE,),
        lambda layer: layer(axis=[1, 2, 3], epsilon=1e-6, center=False),
    ),
    ("GroupNormalization", (IMAGE,), lambda layer: layer(groups=2)),
    ("UnitNormalization", (IMAGE,), lambda layer: layer()),
    (
        "Normalization",
        (IMAGE,),
        lambda layer: layer(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 2.0, 3.0, 4.0]),
    ),
    ("Rescaling", (IMAGE,), lambda layer: layer(1 / 127.5, offset=-1.0)),
    (
        "Rescaling",
        (IMAGE,),
        lambda layer: layer(np.array([1.0, 2.0, 3.0, 4.0]), offset=[0.0, 1.0, 2.0, 3.0]),
    ),
    ("Activation", (IMAGE,), lambda layer: layer("gelu")),
    ("ReLU", (IMAGE,), lambda layer: layer(6.0, negative_slope=0.1, threshold=0.2)),
    ("LeakyReLU", (IMAGE,), lambda layer: layer(negative_slope=0.17)),
    ("PReLU", (IMAGE,), lambda layer: layer(shared_axes=[1, 2])),
    ("ELU", (IMAGE,), lambda layer: layer(alpha=0.6)),
    ("Softmax", (IMAGE,), lambda layer: layer(axis=1)),
    ("Softmax", (IMAGE,), lambda layer: layer(axis=[1, 2])),
    ("Add", (IMAGE, IMAGE), lambda layer: layer()),
    ("Subtract", (IMAGE, IMAGE), lambda layer: layer()),
    ("Multiply", (IMAGE, (1, 1, 4)), lambda layer: layer()),
    ("Average", (IMAGE, IMAGE, IMAGE), lambda layer: layer()),
    ("Maximum", (IMAGE, IMAGE), lambda layer: layer()),
    ("Minimum", (IMAGE, IMAGE), lambda layer: layer()),
    ("Concatenate", (IMAGE, (8, 6, 2)), lambda layer: layer()),
    ("Concatenate", (SEQUENCE, (5, 4)), lambda layer: layer(axis=1)),
    ("Dot", (SEQUENCE, (5, 4)), lambda layer: layer(axes=2, normalize=True)),
    ("Flatten", (IMAGE,), lambda layer: layer()),
    ("Reshape", (IMAGE,), lambda layer: layer((-1, 8))),
    ("Permute", (IMAGE,), lambda layer: layer((3, 1, 2))),
    ("RepeatVector", (VECTOR,), lambda layer: layer(3)),
    ("MaxPooling1D", (SEQUENCE,), lambda layer: layer(3, strides=2, padding="same")),
    ("MaxPooling2D", (IMAGE,), lambda layer: layer(3, strides=2, padding="same")),
    ("MaxPooling3D", (VOLUME,), lambda layer: layer()),
    ("AveragePooling1D", (SEQUENCE,), lambda layer: layer(3, strides=2, padding="same")),
    ("AveragePooling2D", (IMAGE,), lambda layer: layer(3, strides=2, padding="same")),
    ("AveragePooling3D", (VOLUME,), lambda layer: layer(2)),
    ("GlobalMaxPooling1D", (SEQUENCE,), lambda layer: layer()),
    ("GlobalMaxPooling2D", (IMAGE,), lambda layer: layer(keepdims=True)),
    ("GlobalMaxPooling3D", (VOLUME,), lambda layer: layer()),
    ("GlobalAveragePooling1D", (SEQUENCE,), lambda layer: layer(keepdims=True)),
    ("GlobalAveragePooling2D", (IMAGE,), lambda layer: layer(keepdims=True)),
    ("GlobalAveragePooling3D", (VOLUME,), lambda layer: layer()),
    ("ZeroPadding1D", (SEQUENCE,), lambda layer: layer((1, 2))),
    ("ZeroPadding2D", (IMAGE,), lambda layer: layer(((0, 1), (2, 1)))),
    ("ZeroPadding3D", (VOLUME,), lambda layer: layer(1)),
    ("Cropping1D", (SEQUENCE,), lambda layer: layer((1, 2))),
    ("Cropping2D", (IMAGE,), lambda layer: layer(((0, 1), (2, 1)))),
    ("Cropping3D", (VOLUME,), lambda layer: layer(1)),
    ("UpSampling1D", (SEQUENCE,), lambda layer: layer(2)),
    ("UpSampling2D", (IMAGE,), lambda layer: layer((2, 3))),
    ("UpSampling2D", (IMAGE,), lambda layer: layer(2, interpolation="bilinear")),
    ("UpSampling3D", (VOLUME,), lambda layer: layer(2)),
    ("Dropout", (VECTOR,), lambda layer: layer(0.5)),
    ("SpatialDropout1D", (SEQUENCE,), lambda layer: layer(0.5)),
    ("SpatialDropout2D", (IMAGE,), lambda layer: layer(0.5)),
    ("SpatialDropout3D", (VOLUME,), lambda layer: layer(0.5)),
    ("GaussianNoise", (VECTOR,), lambda layer: layer(0.5)),
    ("GaussianDropout", (VECTOR,), lambda layer: layer(0.5)),
    ("AlphaDropout", (VECTOR,), lambda layer: layer(0.5)),
    pytest.param(
        *("ActivityRegularization", (VECTOR,), lambda layer: layer(l1=0.1, l2=0.2)),
        marks=OLD_KERAS,
    ),
    ("Identity", (VECTOR,), lambda layer: layer()),
    ("Masking", (SEQUENCE,), lambda layer: layer(mask_value=0.5)),
]


def randomize(model: Any, seed: int = 1) -> Any:
    """Weights that show a mix-up: no two alike, variances positive."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        value = random.normal(size=weight.shape)
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.name else value)
    return model


def inputs_of(model: Any, seed: int = 2, batch: int = 3) -> list[Any]:
    random = np.random.default_rng(seed)
    return [
        tf.constant(random.normal(size=(batch, *x.shape[1:])), tf.float32) for x in model.inputs
    ]


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


class Scale(keras.layers.Layer):
    """A user's own Keras 3 layer."""

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


class Smoothness(keras.regularizers.Regularizer):
    def __call__(self, weight: Any) -> Any:
        return keras.ops.sum(keras.ops.square(weight[1:] - weight[:-1]))

    def get_config(self) -> dict[str, Any]:
        return {}


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


# --- every layer ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "shapes", "make"), CASES)
def test_layer_crosses_and_comes_back(
    kind: str, shapes: tuple[tuple[int, ...], ...], make: Callable[[Any], Any]
) -> None:
    inputs = [keras.Input(shape) for shape in shapes]
    layer = make(getattr(layers, kind))
    original = keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))
    randomize(original)
    before = snapshot(original)
    converted = bridge.to_tf_keras(original)
    assert type(converted.get_layer(layer.name)) is getattr(tf_keras.layers, kind)
    assert_same_outputs(converted, original)
    assert_unchanged(original, before)
    returned = bridge.to_keras3(converted)
    assert_same_outputs(returned, original)
    ours, theirs = returned.get_layer(layer.name).get_config(), layer.get_config()
    assert list(ours) == list(theirs)
    if kind not in {"BatchNormalization", "LayerNormalization", "Rescaling"}:
        # These come back with the axis that -1 stands for, and with a list for an array.
        assert_same_config(ours, theirs)


def test_every_layer_of_the_table_is_tested() -> None:
    assert {getattr(case, "values", case)[0] for case in CASES} | {"Embedding"} == set(LAYERS)


@pytest.mark.parametrize(
    "name",
    [
        *("elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear"),
        *("log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax"),
        *("softplus", "softsign", "swish", "tanh"),
    ],
)
def test_activation_crosses_survives_saving_and_comes_back(name: str, tmp_path: Path) -> None:
    inputs = keras.Input(VECTOR)
    # Steep inputs reach the bends, where e.g. the two hard_sigmoid differ.
    x = layers.Rescaling(3.0)(inputs)
    original = keras.Model(inputs, layers.Activation(getattr(keras.activations, name))(x))
    converted = bridge.to_tf_keras(original)
    assert_same_outputs(converted, original)
    converted.save(tmp_path / "model.keras")
    loaded = bridge.load_model(tmp_path / "model.keras")
    assert_same_outputs(tf_keras.models.clone_model(loaded), original)
    assert_same_outputs(bridge.to_keras3(converted), original)


def test_the_two_hard_sigmoids_differ_and_only_keras3s_can_cross() -> None:
    inputs = tf_keras.Input(VECTOR)
    theirs = tf_keras.Model(inputs, tf_keras.layers.Activation("hard_sigmoid", name="h")(inputs))
    with pytest.raises(ConversionError, match=r"h .Activation.: its activation 'hard_sigmoid' has"):
        bridge.to_keras3(theirs)


def test_embedding_and_masks_cross() -> None:
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(7, 4, mask_zero=True, name="words")(inputs)
    outputs = layers.Dense(2)(layers.GlobalAveragePooling1D()(x))
    original = randomize(keras.Model(inputs, outputs))
    converted = bridge.to_tf_keras(original)
    tokens = np.array([[1, 2, 0, 0], [6, 3, 3, 0]])
    assert_close(converted(tokens), original(tokens))
    assert_close(bridge.to_keras3(converted)(tokens), original(tokens))
    unmasked = keras.Model(inputs, layers.GlobalAveragePooling1D()(layers.Embedding(7, 4)(inputs)))
    assert bridge.to_tf_keras(unmasked).output_shape == (None, 4)


@OLD_KERAS
def test_regularizers_constraints_initializers_and_freezing_cross() -> None:
    layer = layers.Conv2D(
        3,
        3,
        name="conv",
        kernel_initializer=keras.initializers.HeNormal(seed=3),
        kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2),
        activity_regularizer=keras.regularizers.L2(0.3),
        kernel_constraint=keras.constraints.MaxNorm(2.0, axis=[0, 1, 2]),
        bias_constraint="non_neg",
    )
    inputs = keras.Input(IMAGE)
    frozen = layers.Dense(2, trainable=False, name="frozen")
    original = randomize(keras.Model(inputs, frozen(layer(inputs))))
    converted = bridge.to_tf_keras(original)
    twin = converted.get_layer("conv")
    assert isinstance(twin.kernel_initializer, tf_keras.initializers.HeNormal)
    assert twin.kernel_initializer.get_config() == {"seed": 3}
    assert isinstance(twin.kernel_regularizer, tf_keras.regularizers.L1L2)
    assert isinstance(twin.kernel_constraint, tf_keras.constraints.MaxNorm)
    assert twin.kernel_constraint.get_config() == {"max_value": 2.0, "axis": [0, 1, 2]}
    assert isinstance(twin.bias_constraint, tf_keras.constraints.NonNeg)
    assert converted.get_layer("frozen").trainable is False
    values = inputs_of(original)[0]
    original(values), converted(values)
    assert_close(sum(converted.losses), sum(original.losses))
    returned = bridge.to_keras3(converted).get_layer("conv")
    assert returned.get_config()["kernel_constraint"] == layer.get_config()["kernel_constraint"]
    assert returned.kernel_regularizer.l2 == pytest.approx(0.2)


def test_mixed_precision_crosses() -> None:
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(4, 3, dtype="mixed_float16", name="conv")(inputs)
    x = layers.BatchNormalization(dtype="mixed_float16")(x)
    outputs = layers.Dense(3, dtype="float32", name="logits")(layers.Flatten()(x))
    original = randomize(keras.Model(inputs, outputs))
    converted = bridge.to_tf_keras(original)
    assert converted.get_layer("conv").dtype_policy.name == "mixed_float16"
    assert converted.get_layer("conv").kernel.dtype == "float32"
    assert converted.get_layer("logits").compute_dtype == "float32"
    assert_same_outputs(converted, original, tolerance=1e-2)


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
    with pytest.raises(ConversionError, match="norm: Keras 3 would not heed its fixed `training`"):
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


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_every_layer_without_counterpart_is_listed_with_path_and_reason() -> None:
    inner = keras.Input(VECTOR)
    block = keras.Model(inner, Scale(name="scale")(inner), name="block")
    inputs = keras.Input(VECTOR)
    x = layers.Lambda(lambda x: x, name="code")(block(inputs))
    x = layers.Dense(6, activation="celu", name="celu")(x)
    x = layers.Dense(6, activation=lambda x: x, name="function")(x)
    x = layers.RMSNormalization(name="rms")(x)
    x = Subclassed()(x)
    model = keras.Model(inputs, x * 2.0)
    with pytest.raises(ConversionError) as raised:
        bridge.to_tf_keras(model)
    message = str(raised.value)
    for part in (
        "`model` must be made of layers that exist in both",
        "block/scale (Scale): a layer outside of Keras must be given in `custom_objects`",
        "code (Lambda): a Lambda layer's Python code",
        "celu (Dense): its activation 'celu' has no counterpart",
        "function (Dense): its activation is neither a name nor a named function",
        "rms (RMSNormalization): this kind of layer is not converted",
        "subclassed (Subclassed): a subclassed or unbuilt model has no graph",
        "multiply (Multiply): an operation",
        "Replace these by layers of Keras",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.ZeroPadding1D(data_format="channels_first"), "`data_format=.*channels_f"),
        (
            lambda: layers.Conv1D(3, 3, kernel_regularizer=Smoothness()),
            "its Smoothness has no counterpart",
        ),
    ],
)
def test_settings_without_counterpart_are_refused(layer: Build, reason: str) -> None:
    inputs = keras.Input(SEQUENCE)
    model = keras.Model(inputs, layer()(inputs))
    with pytest.raises(ConversionError, match=reason):
        bridge.to_tf_keras(model)


def test_quantized_dtype_policy_is_refused() -> None:
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, layers.Dense(3, name="logits", dtype="int8_from_float32")(inputs))
    with pytest.raises(ConversionError, match=r"logits \(Dense\): its dtype policy 'int8_from_f"):
        bridge.to_tf_keras(model)


def test_sparse_and_optional_inputs_are_refused() -> None:
    inputs = keras.Input(VECTOR, sparse=True, name="sparse_one")
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    with pytest.raises(ConversionError, match=r"sparse_one \(InputLayer\): a sparse input"):
        bridge.to_tf_keras(model)
    inputs = [keras.Input(VECTOR), keras.Input(VECTOR, optional=True, name="extra")]
    model = keras.Model(inputs, layers.Concatenate()(inputs))
    with pytest.raises(ConversionError, match=r"extra \(InputLayer\): an optional input"):
        bridge.to_tf_keras(model)


def test_subclassed_model_is_refused_with_the_way_out() -> None:
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    with pytest.raises(ConversionError, match=r"must be a Functional or Seq.*keras.Model\(inputs"):
        bridge.to_tf_keras(model)
    inputs = keras.Input(VECTOR)  # the way out that the message names
    assert_same_outputs(
        bridge.to_tf_keras(keras.Model(inputs, model.call(inputs))),
        keras.Model(inputs, model(inputs)),
    )


def test_functional_model_with_a_call_of_its_own_is_refused() -> None:
    class Doubled(keras.Model):
        def call(self, inputs: Any, **kwargs: Any) -> Any:
            return 2.0 * super().call(inputs, **kwargs)

    inputs = keras.Input(VECTOR)
    with pytest.raises(ConversionError, match="the subclassed model Doubled"):
        bridge.to_tf_keras(Doubled(inputs, layers.Dense(2)(inputs)))


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_unbuilt_model_is_refused(library: Any) -> None:
    model = library.Sequential([library.layers.Dense(2)], name="open")
    with pytest.raises(ConversionError, match=r"must be built\. Received: open .*keras\.Input"):
        bridge.to_tf_keras(model)


def test_what_is_no_model_and_another_backend_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConversionError, match=r"must be a Keras 3 or tf_keras model. Received: str"
    ):
        bridge.to_tf_keras("student.keras")
    model = sequential()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConversionError, match=r"'tensorflow'. Received: jax. .*KERAS_BACKEND"):
        bridge.to_tf_keras(model)


def test_custom_objects_name_the_counterpart() -> None:
    inputs = keras.Input(VECTOR)
    x = Scale(name="scale")(inputs)
    original = randomize(keras.Model(inputs, layers.Dense(2, activation="celu")(x)))
    custom = {"Scale": TfKerasScale, "celu": tf_keras.activations.elu}  # alpha 1: the same
    converted = bridge.to_tf_keras(original, custom_objects=custom)
    assert isinstance(converted.get_layer("scale"), TfKerasScale)
    assert_same_outputs(converted, original)


# --- the check is real ---------------------------------------------------------------------


def test_adapter_that_changes_the_outputs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget_slope(config: Any, layer: Any) -> Any:  # what the naive conversion does
        return {key: value for key, value in config.items() if key != "negative_slope"}

    monkeypatch.setitem(LAYERS, "LeakyReLU", LayerAdapter(forget_slope))
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, layers.LeakyReLU(negative_slope=0.2, name="leaky")(inputs))
    with pytest.raises(ConversionError, match=r"relative error of 1e-05\..*layer leaky by 0\.17"):
        bridge.to_tf_keras(model)


@pytest.mark.parametrize("setting", [{"momentum": 0.5}, {"trainable": False}])
def test_adapter_that_changes_only_training_is_caught(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    monkeypatch.setitem(
        LAYERS, "BatchNormalization", LayerAdapter(lambda config, layer: {**config, **setting})
    )
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(inputs))
    with pytest.raises(ConversionError, match=r"1 of 2 comparisons differ, the worst layer norm"):
        bridge.to_tf_keras(model)


def test_adapter_that_loses_a_regularizer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_configs, "_rebuild_object", lambda value, *others: None)
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, layers.Dense(2, kernel_regularizer="l2")(inputs))
    with pytest.raises(ConversionError, match="the worst regularization of dense"):
        bridge.to_tf_keras(model)


def test_a_mean_that_is_zero_but_for_rounding_is_no_difference() -> None:
    """As after MobileNetV2's linear bottlenecks: a normalized input, and no bias."""
    inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(name="bottleneck")(layers.Conv2D(8, 3)(inputs))
    x = layers.BatchNormalization(momentum=0.999)(layers.Conv2D(48, 1, use_bias=False)(x))
    model = keras.Model(inputs, x)
    model(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), training=True)
    assert bridge.to_tf_keras(model).output_shape == (None, 14, 14, 48)


def test_weights_that_do_not_fit_are_caught() -> None:
    class Renamed(tf_keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.other = self.add_weight(shape=(shape[-1],), name="other")

    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, Scale(name="scale")(inputs))
    with pytest.raises(ConversionError, match=r"its weights \[\('factor'.*became \[\('other'"):
        bridge.to_tf_keras(model, custom_objects={"Scale": Renamed})

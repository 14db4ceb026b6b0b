from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crossings import (
    IMAGE,
    SEQUENCE,
    VECTOR,
    VOLUME,
    assert_close,
    assert_same_config,
    assert_same_outputs,
    assert_unchanged,
    inputs_of,
    randomize,
    snapshot,
)

from tfdistill import bridge
from tfdistill._keras import keras, tf_keras
from tfdistill.errors import ConversionError

layers = keras.layers

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

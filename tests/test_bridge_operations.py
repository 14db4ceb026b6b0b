"""Operations in a graph that are no layers, of either Keras."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crossings import IMAGE, VECTOR, assert_close, assert_same_outputs, inputs_of, randomize

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.operations import TF_OPERATIONS, from_tf, layer_of
from tfdistill.errors import ConversionError

layers = keras.layers
ops = keras.ops
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# What is written in Keras 3 on an image x, and the tf_keras layer that does it.
WRITTEN: list[tuple[str, Callable[[Any], Any]]] = [
    ("Add", lambda x: x + x),
    ("Subtract", lambda x: x - ops.flip(x, 1)),
    ("Multiply", lambda x: x * layers.GlobalAveragePooling2D(keepdims=True)(x)),
    ("Maximum", lambda x: ops.maximum(x, ops.flip(x, 1))),
    ("Minimum", lambda x: ops.minimum(x, ops.flip(x, 1))),
    ("Rescaling", lambda x: x + 3.0),
    ("Rescaling", lambda x: 2 * x),
    ("Rescaling", lambda x: x - 0.5),
    ("Rescaling", lambda x: 1.0 - x),
    ("Rescaling", lambda x: x / 127.5),
    ("Rescaling", lambda x: -x),
    ("Activation", ops.relu),
    ("Activation", ops.sigmoid),
    ("Activation", ops.hard_sigmoid),
    ("Activation", ops.hard_silu),
    ("Activation", ops.silu),
    ("Activation", ops.tanh),
    ("Activation", ops.exp),
    ("Activation", ops.elu),
    ("Activation", ops.log_softmax),
    ("Activation", lambda x: ops.gelu(x, approximate=False)),
    ("ReLU", ops.relu6),
    ("LeakyReLU", lambda x: ops.leaky_relu(x, 0.3)),
    ("Softmax", lambda x: ops.softmax(x, axis=1)),
    ("Reshape", lambda x: ops.reshape(x, (-1, 12, 16))),
    ("Reshape", lambda x: ops.expand_dims(x, -1)),
    ("Reshape", lambda x: ops.squeeze(ops.expand_dims(x, 2)[:, :, :1], 2)),
    ("Permute", lambda x: ops.transpose(x, (0, 3, 1, 2))),
    ("GlobalAveragePooling2D", lambda x: ops.mean(x, axis=(1, 2))),
    ("GlobalMaxPooling2D", lambda x: ops.max(x, axis=[1, 2], keepdims=True)),
    ("Concatenate", lambda x: ops.concatenate([x, ops.flip(x, 1)], axis=2)),
    ("ZeroPadding2D", lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))),
    # Where a layer would not do the same, or there is none.
    ("KerasOperation", lambda x: x + ops.sum(x, axis=(0, 1))),
    ("KerasOperation", lambda x: x + np.arange(6 * 4).reshape(6, 4).astype("float32")),
    ("KerasOperation", lambda x: 1.0 / (x + 30.0)),
    ("KerasOperation", lambda x: x / ops.exp(x)),
    ("KerasOperation", lambda x: x[:, 0]),
    ("KerasOperation", lambda x: x[:, ::2, None, ..., -1]),
    ("KerasOperation", ops.gelu),
    ("KerasOperation", ops.square),
    ("KerasOperation", lambda x: ops.sqrt(ops.abs(x))),
    ("KerasOperation", lambda x: ops.power(x, 3)),
    ("KerasOperation", lambda x: ops.clip(x, -0.5, 0.5)),
    ("KerasOperation", lambda x: ops.cast(x * 2.0, "int32")),
    ("KerasOperation", lambda x: ops.cast(x, "int32") * 2),
    ("KerasOperation", lambda x: ops.mean(x, axis=(1, 3))),
    ("KerasOperation", lambda x: ops.sum(x, axis=-1)),
    ("KerasOperation", lambda x: ops.reshape(x, (-1, 4))),
    ("KerasOperation", lambda x: ops.transpose(x)),
    ("KerasOperation", lambda x: ops.stack([x, x], axis=1)),
    ("KerasOperation", lambda x: ops.concatenate([x, x], axis=0)),
    ("KerasOperation", lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2)))),
    ("KerasOperation", lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), "reflect")),
    ("KerasOperation", lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=2.0)),
    ("KerasOperation", lambda x: ops.split(x, 2, axis=1)[1]),
    ("KerasOperation", lambda x: ops.where(x > 0.0, x, 0.1)),
]


@pytest.mark.parametrize(("kind", "write"), WRITTEN)
def test_operation_becomes_a_layer_and_an_operation_again(
    kind: str, write: Callable[[Any], Any], tmp_path: Path
) -> None:
    inputs = keras.Input(IMAGE)
    original = keras.Model(inputs, write(inputs))
    converted = bridge.to_tf_keras(original)
    name = original.outputs[0]._keras_history.operation.name
    assert type(converted.get_layer(name)).__name__ == kind
    assert_same_outputs(converted, original)
    converted.save(tmp_path / "model.keras")
    loaded = bridge.load_model(tmp_path / "model.keras")
    assert_same_outputs(tf_keras.models.clone_model(loaded), original)
    assert_same_outputs(bridge.to_keras3(converted), original)
    assert_same_outputs(bridge.rebuild_keras3(original, converted), original)


def test_an_operation_survives_the_older_formats(tmp_path: Path) -> None:
    inputs = keras.Input(IMAGE)
    original = keras.Model(inputs, ops.clip(inputs[:, 1:, None], -0.5, 0.5))
    converted = bridge.to_tf_keras(original)
    converted.export(str(tmp_path / "exported"))
    values = inputs_of(original)[0]
    assert_close(tf.saved_model.load(tmp_path / "exported").serve(values), original(values))
    with pytest.warns(UserWarning, match="saving your model as an HDF5"):
        converted.save(tmp_path / "model.h5")
    loaded = tf_keras.models.load_model(tmp_path / "model.h5")
    assert_same_outputs(loaded, original)


def test_open_sizes_stay_open_where_a_shape_is_written() -> None:
    inputs = keras.Input((None, 4))
    original = keras.Model(inputs, ops.expand_dims(ops.reshape(inputs, (-1, 2)), 0))
    converted = bridge.to_tf_keras(original)
    for steps in (3, 5):
        values = np.arange(2.0 * steps * 4).reshape(2, steps, 4)
        assert_close(converted(values), original(values))


def test_an_operation_in_a_shared_submodel_is_there_once() -> None:
    inner = keras.Input(VECTOR)
    block = keras.Model(inner, ops.relu(inner * 2.0 - 1.0), name="block")
    inputs = keras.Input(VECTOR)
    original = keras.Model(inputs, block(block(inputs) + inputs))
    converted = bridge.to_tf_keras(original)
    assert len(converted.layers) == 5
    assert_same_outputs(converted, original)
    assert_same_outputs(bridge.to_keras3(converted), original)


def test_one_operation_used_twice_becomes_two_layers() -> None:
    multiply = keras.src.ops.numpy.Multiply(name="twice")
    inputs = keras.Input(VECTOR)
    original = keras.Model(inputs, multiply(multiply(inputs, 2.0), 3.0))
    converted = bridge.to_tf_keras(original)
    assert {"twice", "twice_1"} < {layer.name for layer in converted.layers}
    assert_same_outputs(converted, original)


def test_an_operation_takes_the_mask_off() -> None:
    """As in Keras 3; a layer in its place would hand the mask on."""
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(tokens)
    original = randomize(keras.Model(tokens, layers.GlobalAveragePooling1D()(ops.relu(x))))
    converted = bridge.to_tf_keras(original)
    values = np.array([[1, 2, 0, 0]])
    assert_close(converted(values), original(values))


def test_operations_keep_half_precision() -> None:
    inputs = keras.Input(VECTOR)
    x = layers.Dense(3, dtype="mixed_float16")(inputs)
    converted = bridge.to_tf_keras(keras.Model(inputs, x * 2.0 + x))
    assert converted.outputs[0].dtype == tf.float16


def test_an_operation_learns_nothing_and_lets_gradients_through() -> None:
    inputs = keras.Input(VECTOR)
    outputs = ops.square(layers.Dense(2, name="dense")(inputs))
    converted = bridge.to_tf_keras(keras.Model(inputs, outputs))
    converted.compile("sgd", "mse")
    before = converted.get_layer("dense").kernel.numpy()
    converted.fit(np.ones((4, 6), "float32"), np.ones((4, 2), "float32"), verbose=0)
    assert np.abs(converted.get_layer("dense").kernel.numpy() - before).max() > 1e-4


# --- operations of tf_keras ----------------------------------------------------------------

TF_WRITTEN: list[Callable[[Any], Any]] = [
    lambda x: x + 1.0,
    lambda x: 2.0 * x - tf.nn.relu(x),
    lambda x: 1.0 / (x + 30.0),
    lambda x: tf.nn.relu6(x) * tf.math.sigmoid(x),
    lambda x: tf.nn.gelu(x, approximate=True),
    lambda x: tf.nn.leaky_relu(x, alpha=0.3),
    lambda x: tf.nn.softmax(x, axis=1),
    lambda x: tf.reduce_mean(x, [1, 2], keepdims=True),
    lambda x: tf.reduce_max(x, axis=-1),
    lambda x: tf.reshape(x, (-1, 12, 16)),
    lambda x: tf.transpose(x, [0, 3, 1, 2]),
    lambda x: tf.concat([x, -x], axis=-1),
    lambda x: tf.stack([x, x], axis=1),
    lambda x: tf.expand_dims(x, 1),
    lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]),
    lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], "REFLECT"),
    lambda x: tf.clip_by_value(x, -0.5, 0.5),
    lambda x: tf.cast(tf.cast(x, tf.int32), tf.float32),
    lambda x: tf.matmul(x, tf.transpose(x, [0, 1, 3, 2])),
    lambda x: tf.abs(x) ** 2.0,
    lambda x: x[:, 1:3, ..., None, 0],
    lambda x: x[:, 0],
]


@pytest.mark.parametrize("write", TF_WRITTEN)
def test_tf_function_in_a_graph_becomes_an_operation_of_keras3(write: Any) -> None:
    inputs = tf_keras.Input(IMAGE)
    original = tf_keras.Model(inputs, write(inputs))
    returned = bridge.to_keras3(original)
    assert_same_outputs(returned, original)
    assert_same_outputs(bridge.to_tf_keras(returned), original)
    assert_same_outputs(bridge.to_tf_keras(original), original)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: tf.image.flip_up_down(x),
        lambda x: tf.matmul(x, x, transpose_b=True),
    ],
)
def test_tf_function_that_is_not_known_is_refused(write: Any) -> None:
    inputs = tf_keras.Input(IMAGE)
    with pytest.raises(ConversionError, match=r"`tf\..*, as it is called, is not known in `keras"):
        bridge.to_keras3(tf_keras.Model(inputs, write(inputs)))


def test_what_stands_for_a_tf_function_in_tf_keras() -> None:
    """Pure, as the rewriting of models for quantization uses it."""
    inputs = tf_keras.Input(IMAGE)
    outputs = tf.reduce_mean(tf.nn.relu(inputs), axis=[1, 2])
    model = tf_keras.Model(inputs, outputs)
    found: list[Any] = []
    for layer in model.layers[1:]:
        assert isinstance(layer, TF_OPERATIONS)
        node = layer.inbound_nodes[0]
        operation = from_tf(layer.symbol, node.call_args, node.call_kwargs)
        assert operation is not None
        assert [one.name for one in operation.tensors] == [node.keras_inputs[0].name]
        found.append(layer_of(operation, node.outputs, layer.name))
    assert [type(one).__name__ for one in found] == ["Activation", "GlobalAveragePooling2D"]
    values = inputs_of(model)[0]
    assert_close(found[1](found[0](values)), model(values))


# --- whole families ------------------------------------------------------------------------


@pytest.mark.slow
def test_mobile_net_of_the_third_kind_crosses_both_ways() -> None:
    original = keras.applications.MobileNetV3Small(input_shape=(32, 32, 3), weights=None, classes=4)
    converted = bridge.to_tf_keras(original)
    assert "KerasOperation" not in {type(layer).__name__ for layer in converted.layers}
    assert_same_outputs(converted, original)
    assert_same_outputs(bridge.to_keras3(converted), original)


def test_names_with_slashes_as_tf_keras_own_models_have_them_cross() -> None:
    inputs = tf_keras.Input(VECTOR, name="in/put")
    x = tf_keras.layers.Dense(3, name="conv/expand")(inputs)
    x = tf_keras.layers.Dense(3, name="conv_expand")(x)
    x = tf_keras.layers.Multiply(name="multiply")([x, x])
    original = randomize(tf_keras.Model(inputs, tf.nn.relu(x + 3.0) * 0.5))
    returned = bridge.to_keras3(original)
    assert [layer.name for layer in returned.layers][:3] == [
        "in_put",
        "conv_expand_",
        "conv_expand",
    ]
    assert_same_outputs(returned, original)


def test_conv_next_crosses_both_ways() -> None:
    original = keras.src.applications.convnext.ConvNeXt(
        depths=[1, 1, 1, 1],
        projection_dims=[4, 8, 8, 8],
        drop_path_rate=0.2,
        input_shape=(32, 32, 3),
        weights=None,
        classes=4,
        weights_name="",
        name="tiny",
    )
    randomize(original)
    converted = bridge.to_tf_keras(original)
    assert {"LayerScale", "StochasticDepth"} < {type(layer).__name__ for layer in converted.layers}
    assert_same_outputs(converted, original)
    assert_same_outputs(bridge.to_keras3(converted), original)

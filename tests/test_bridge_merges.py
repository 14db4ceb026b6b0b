"""Masks that meet: Keras 3 and tf_keras do not agree on what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from crossings import assert_close, randomize
from quick import only

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ConversionError

layers = keras.layers


def positions(tokens: Any) -> Any:
    places = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    return layers.Embedding(8, 4)(places)


def masked(tokens: Any) -> Any:
    return layers.Embedding(9, 4, mask_zero=True)(tokens)


def attending(hidden: Any) -> Any:
    return layers.Add()([hidden, layers.MultiHeadAttention(2, 3)(hidden, hidden)])


BODIES: dict[str, Callable[[Any], Any]] = {
    "positions added": lambda t: layers.Add()([masked(t), positions(t)]),
    "the other first": lambda t: layers.Add()([positions(t), masked(t)]),
    "three": lambda t: layers.Average()([masked(t), positions(t), masked(t)]),
    "before attention": lambda t: attending(layers.Add()([masked(t), positions(t)])),
    "as an operation": lambda t: masked(t) + positions(t),
    "twice the same": lambda t: (lambda x: layers.Add()([x, layers.Dropout(0.1)(x)]))(masked(t)),
    "read twice": lambda t: (lambda x: layers.Add()([layers.Add()([x, positions(t)]), x]))(
        masked(t)
    ),
}


def of_tokens(body: Callable[[Any], Any]) -> Any:
    tokens = keras.Input((8,), dtype="int32", name="tokens")
    hidden = body(tokens)
    ends = [layers.GlobalAveragePooling1D()(hidden), layers.SimpleRNN(3)(hidden)]
    return randomize(keras.Model(tokens, layers.Concatenate()(ends)))


@pytest.mark.parametrize(
    "name", only("positions added", "before attention", "read twice", of=BODIES)
)
def test_a_merge_of_some_that_are_masked_is_not(name: str) -> None:
    """In tf_keras it would have the mask of those that are."""
    original = of_tokens(BODIES[name])
    tokens = np.array([[1, 2, 3, 0, 0, 0, 0, 0], [6, 3, 3, 8, 1, 0, 0, 0], [1] * 8])
    converted = bridge.to_tf_keras(original)
    assert_close(converted(tokens), original(tokens))
    returned = bridge.to_keras3(converted)
    assert_close(returned(tokens), original(tokens))
    assert_close(bridge.rebuild_keras3(original, converted)(tokens), original(tokens))


@pytest.mark.parametrize("merge", [layers.Add, layers.Concatenate])
def test_masks_that_differ_are_refused_with_the_reason(merge: Any) -> None:
    first, second = (keras.Input((8,), dtype="int32", name=name) for name in ("first", "second"))
    hidden = merge()([masked(first), masked(second)])
    model = randomize(keras.Model([first, second], layers.SimpleRNN(3)(hidden)))
    with pytest.raises(ConversionError, match=f"masks meet in {merge.__name__}, Keras 3 keeps"):
        bridge.to_tf_keras(model)


def test_a_product_of_masked_steps_is_refused_with_the_reason() -> None:
    model = of_tokens(lambda t: layers.Multiply()([masked(t), positions(t)]))
    with pytest.raises(ConversionError, match=r"Multiply, .* its Multiply takes them for 1"):
        bridge.to_tf_keras(model)


def test_what_only_gpus_compute_is_said() -> None:
    image = keras.Input((4, 8, 8))
    model = keras.Model(image, layers.MaxPooling2D(data_format="channels_first")(image))
    try:
        tf_keras.layers.MaxPooling2D(data_format="channels_first")(tf.zeros([1, 4, 8, 8]))
    except tf.errors.OpError:
        with pytest.raises(ConversionError, match=r"on GPUs alone\. Use 'channels_last'"):
            bridge.to_tf_keras(model)
    else:  # with oneDNN, which TensorFlow has on some CPUs
        assert bridge.to_tf_keras(model).layers[-1].data_format == "channels_first"

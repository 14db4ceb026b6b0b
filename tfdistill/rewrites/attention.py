"""Attention, rewritten into layers with one or several plain inputs.

A `MultiHeadAttention` layer holds six products; tfmot can quantize none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras

_layers = tf_keras.layers
_Layer: Any = _layers.Layer
_registered = tf_keras.saving.register_keras_serializable(package="tfdistill")

_MASKED = -1e9  # what Keras adds to the scores of what must not be attended to


@_registered
class MatMul(_Layer):
    """The product of two batches of matrices, `[..., m, k]` and `[..., k, n]`.

    Args:
        transpose_second: Whether the second is given as `[..., n, k]`.
    """

    def __init__(self, *, transpose_second: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transpose_second = transpose_second

    def call(self, inputs: Any) -> Any:
        """`inputs` are the two."""
        return tf.matmul(*inputs, transpose_b=self.transpose_second)

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "transpose_second": self.transpose_second}


@_registered
class MaskedSoftmax(_Layer):
    """Softmax over the last axis of scores, where all masks are 1.

    Args:
        masks: What each mask is of: "queries" `[batch, queries]`, "keys" `[batch, keys]`, or
            "pairs" `[batch, queries, keys]`.
        causal: Whether a query may only look at keys that are not after it.
    """

    def __init__(self, *, masks: Sequence[str] = (), causal: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.masks = tuple(masks)
        self.causal = causal

    def call(self, inputs: Any) -> Any:
        """`inputs` are scores `[batch, heads, queries, keys]` and the masks."""
        scores, *masks = inputs if isinstance(inputs, list | tuple) else [inputs]
        return tf.nn.softmax(scores + (1.0 - self.allowed(scores, masks)) * _MASKED)

    def allowed(self, scores: Any, masks: Sequence[Any]) -> Any:
        """1 where a query may look at a key, else 0, to be broadcast to the scores."""
        allowed = tf.ones([], scores.dtype)
        for kind, mask in zip(self.masks, masks, strict=True):
            mask = tf.cast(mask, scores.dtype)
            allowed *= {
                "queries": lambda m: m[:, None, :, None],
                "keys": lambda m: m[:, None, None, :],
                "pairs": lambda m: m[:, None],
            }[kind](mask)
        if self.causal:
            queries, keys = tf.shape(scores)[-2], tf.shape(scores)[-1]
            allowed *= tf.cast(tf.range(queries)[:, None] >= tf.range(keys)[None], scores.dtype)
        return allowed

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "masks": self.masks, "causal": self.causal}


@_registered
class LayerNormalization(_layers.LayerNormalization):  # type: ignore[name-defined]
    """The same over the last axis, by sums.

    LiteRT's converter rounds the means of a quantized tensor to its steps, and what is normalized
    by them is several steps off; it leaves sums in float.
    """

    def call(self, inputs: Any) -> Any:
        """As the original's."""
        size = inputs.shape[-1]
        centered = inputs - tf.reduce_sum(inputs, -1, keepdims=True) / size
        variance = tf.reduce_sum(centered * centered, -1, keepdims=True) / size
        normalized = centered * tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            normalized *= self.gamma
        return normalized + self.beta if self.center else normalized


def rewritten_attention(
    graph: Any,
    layer: Any,
    tensors: Sequence[Any],
    masks: Sequence[tuple[str, Any]],
    *,
    causal: bool,
    scale: Callable[[Any, str, Any, float], Any],
) -> Any:
    """A MultiHeadAttention layer as dense layers and products of matrices.

    Args:
        graph: What the parts are made in, see `rewriting`.
        layer: The layer, built, of tensors of rank 3.
        tensors: Query, key and value.
        masks: What each is of, as `MaskedSoftmax` says, and the tensor.
        causal: Whether a query may only look at keys that are not after it.
        scale: Called as `scale(layer, name, tensor, factor)`; gives the tensor times the factor.

    Returns:
        Its output `[batch, queries, channels]`.
    """
    heads, size = layer._num_heads, layer._key_dim
    sides = (("query", size), ("key", size), ("value", layer._value_dim))
    split = []
    for (side, width), tensor in zip(sides, tensors, strict=True):
        inner = getattr(layer, f"_{side}_dense")
        projected = _dense(graph, layer, side, inner, heads * width)(tensor)
        if side == "query":
            projected = scale(layer, "scale", projected, 1.0 / math.sqrt(size))
        split.append(_split_heads(graph, layer, side, projected, heads, width))
    query, key, value = split
    scores = graph.part(layer, "scores", lambda n: MatMul(transpose_second=True, name=n))(
        [query, key]
    )
    if masks or causal:
        kinds = [kind for kind, _ in masks]
        softmax = graph.part(
            layer, "softmax", lambda n: MaskedSoftmax(masks=kinds, causal=causal, name=n)
        )
        scores = softmax([scores, *[mask for _, mask in masks]] if masks else scores)
    else:
        scores = graph.part(layer, "softmax", lambda n: _layers.Softmax(name=n))(scores)
    if layer._dropout:
        scores = graph.part(layer, "dropout", lambda n: _layers.Dropout(layer._dropout, name=n))(
            scores
        )
    mixed = graph.part(layer, "mixed", lambda n: MatMul(name=n))([scores, value])
    joined = graph.part(layer, "join", lambda n: _layers.Permute((2, 1, 3), name=n))(mixed)
    times = tensors[0].shape[1]
    flat = (-1 if times is None else times, heads * layer._value_dim)
    joined = graph.part(layer, "flat", lambda n: _layers.Reshape(flat, name=n))(joined)
    outer = layer._output_dense
    return _dense(graph, layer, "", outer, int(outer.kernel.shape[-1]))(joined)


def _dense(graph: Any, layer: Any, name: str, inner: Any, units: int) -> Any:
    """One of the layer's products, `[batch, time, inputs]` to `[batch, time, units]`."""
    kernel, *bias = inner.get_weights()
    shape = (-1, units)
    weights = [kernel.reshape(shape), *[each.reshape(-1) for each in bias]]

    def make(whole: str) -> Any:
        return _layers.Dense(
            units,
            use_bias=bool(bias),
            kernel_regularizer=inner.kernel_regularizer,
            bias_regularizer=inner.bias_regularizer,
            name=whole,
        )

    return graph.part(layer, name, make, weights)


def _split_heads(graph: Any, layer: Any, side: str, tensor: Any, heads: int, size: int) -> Any:
    """`[batch, time, heads x size]` to `[batch, heads, time, size]`."""
    shape = (-1 if tensor.shape[1] is None else tensor.shape[1], heads, size)
    split = graph.part(layer, f"{side}_heads", lambda n: _layers.Reshape(shape, name=n))(tensor)
    return graph.part(layer, f"{side}_first", lambda n: _layers.Permute((2, 1, 3), name=n))(split)


def can_be_rewritten(layer: Any, call: Any) -> bool:
    """Whether a MultiHeadAttention layer is one that `rewritten_attention` knows.

    Args:
        layer: The layer.
        call: The arguments of its call, by name.
    """
    tensors = [call["query"], call["value"], call.get("key")]
    inner = [getattr(layer, f"_{name}_dense") for name in ("query", "key", "value", "output")]
    return (
        all(tensor is None or tensor.shape.rank == 3 for tensor in tensors)
        and not call.get("return_attention_scores")
        and not layer._softmax_robust_masking
        and layer._kernel_constraint is None  # it would look at a kernel of another shape
        and layer._bias_constraint is None
        and layer.activity_regularizer is None
        and tuple(layer._attention_axes) == (1,)
        and all(dense.activation is tf_keras.activations.linear for dense in inner)
        and all(np.ndim(dense.kernel) == 3 for dense in inner)
    )

"""Attention, and masks, rewritten into layers with one or several plain inputs.

A `MultiHeadAttention` layer holds six products; tfmot can quantize none of them. And what
tensors carry as Keras masks, tfmot's wrapper cannot hand on. Here both are written out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.own_layers import KerasOperation

_layers = tf_keras.layers
_Layer: Any = _layers.Layer
_registered = tf_keras.saving.register_keras_serializable(package="tfdistill")

# Keras gives what these make of masked tensors all of the masks at once.
_HANDING_ON = (
    *("Dense", "LayerNormalization", "Activation", "ReLU", "LeakyReLU", "ELU", "Dropout"),
    *("Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum", "Identity", "Rescaling"),
)
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


@_registered
class MaskedMean(_Layer):
    """The mean over time, `[batch, time, channels]` to `[batch, channels]`, where a mask is 1.

    Args:
        keepdims: Whether to keep a time axis of one.
    """

    def __init__(self, *, keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keepdims = keepdims

    def call(self, inputs: Any) -> Any:
        """`inputs` are the values, and the mask `[batch, time]`."""
        values, mask = inputs
        weights = tf.cast(mask, values.dtype)[:, :, None]
        total = tf.reduce_sum(values * weights, axis=1, keepdims=self.keepdims)
        return total / tf.reduce_sum(weights, axis=1, keepdims=self.keepdims)

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "keepdims": self.keepdims}


@_registered
class Masked(_Layer):
    """Values with the mask of the numbers that they were looked up by, for Keras to hand on."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the values and the numbers."""
        return tf.identity(inputs[0])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """As that of an Embedding with `mask_zero`."""
        return tf.not_equal(inputs[1], 0)


@_registered
class Unmasked(_Layer):
    """Values without the mask that Keras hands on with them, for what would only drop it."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the values."""
        return tf.identity(inputs)


@_registered
class NotZero(_Layer):
    """1 where whole numbers are not 0, else 0: the mask of an Embedding with `mask_zero`."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the numbers."""
        return tf.cast(tf.not_equal(inputs, 0), tf.float32)


class Masks:
    """The masks that tensors carry, as tensors of the graph.

    Args:
        model: The model to rewrite.
        skip: Names of layers to leave as they are.

    Attributes:
        written_out: Whether all that read a mask is known; else the masks stay where Keras
            keeps them.
    """

    def __init__(self, model: Any, skip: frozenset[str]) -> None:
        readers = [layer for layer in model.layers if any(map(has_mask, _inputs(layer)))]
        self.written_out = all(_reads_a_known_mask(layer, skip) for layer in readers) and not any(
            map(has_mask, model.outputs)
        )
        self._masks: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """The mask of a tensor, `[batch, time]`, None without one."""
        return self._masks.get(id(value), (None, None))[1]

    def of_embedding(self, graph: Any, layer: Any, numbers: Any) -> Any:
        """What an Embedding with `mask_zero` gives."""
        embedded = graph.clone(layer, mask_zero=False)(numbers)
        self._keep(embedded, graph.part(layer, "mask", lambda n: NotZero(name=n))(numbers))
        return embedded

    def hand_on(self, graph: Any, layer: Any, values: Sequence[Any], result: Any) -> Any:
        """The layer's result, with the mask that Keras would give it."""
        masks = {id(self.of(value)): self.of(value) for value in values}
        found = [mask for mask in masks.values() if mask is not None]
        if found and has_mask(layer.get_output_at(0)):
            mask = found[0]
            if len(found) > 1:
                mask = graph.part(layer, "mask", lambda n: _layers.Multiply(name=n))(found)
            self._keep(result, mask)
        return result

    def _keep(self, value: Any, mask: Any) -> None:
        self._masks[id(value)] = value, mask  # with the value, so that its id stays its own


def has_mask(tensor: Any) -> bool:
    """Whether Keras hands a mask on with the tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


def _inputs(layer: Any) -> list[Any]:
    return [tensor for node in layer._inbound_nodes for tensor in node.keras_inputs]


def _reads_a_known_mask(layer: Any, skip: frozenset[str]) -> bool:
    """Whether what a layer does with a mask is known here: hand it on, drop it, or use it."""
    kind = type(layer).__name__
    if isinstance(layer, KerasOperation):
        return True  # it drops it
    if type(layer) is not getattr(_layers, kind, None):
        return False
    if kind in ("MultiHeadAttention", "GlobalAveragePooling1D"):
        if layer.name in skip or len(layer._inbound_nodes) > 1:
            return False
        (node,) = layer._inbound_nodes
        given = inspect.signature(layer.call).bind(*node.call_args, **node.call_kwargs)
        return kind != "MultiHeadAttention" or can_be_rewritten(layer, given.arguments)
    if "mask" in inspect.signature(layer.call).parameters:
        return False
    return kind in _HANDING_ON or not has_mask(layer.get_output_at(0))


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

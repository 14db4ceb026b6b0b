"""What losses read of a model's layers: outputs, attention scores, weights.

A loss names what it reads: `name` for the output of a layer, `name:scores` for the scores of an
attention layer, `name:weights` for a layer's weights. Nothing is added to the model for it.
"""

from __future__ import annotations

import difflib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.model_graphs import graph_or_raise
from tfdistill.errors import ModelError
from tfdistill.losses.layers import SCORES, WEIGHTS, LayerOutput

__all__ = ["Reading", "find_layer", "layers_before", "reading_of"]

_ATTENTION = (tf_keras.layers.MultiHeadAttention, keras.layers.MultiHeadAttention)


class Reading(ABC):
    """One thing that is read of a layer.

    Attributes:
        tensors: Symbolic tensors of the model whose values are needed for it.
        shape: Of what is read, without the batch axis.
    """

    tensors: Sequence[Any]
    shape: Any

    @abstractmethod
    def __call__(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """What is read, and its mask as in `Outputs`, or None.

        Args:
            values: Of `tensors`.
        """


def reading_of(model: Any, name: str, *, role: str) -> Reading:
    """Finds what a loss names.

    Args:
        model: A functional model, whose layers may be wrapped for pruning or quantization.
        name: As the loss names it.
        role: What the model is called in errors: "student" or "teacher".

    Raises:
        ModelError: There is no such layer, or it does not have what is to be read.
    """
    layer, colon, what = name.rpartition(":")
    if colon and name not in _by_name(model):
        if colon + what == SCORES:
            return _scores_of(model, layer, role)
        if colon + what == WEIGHTS:
            return _Weights(find_layer(model, layer, role=role), layer, role)
    return _Output(model, find_layer(model, name, role=role), name, role)


def find_layer(model: Any, name: str, *, role: str) -> Any:
    """The layer called `name`, or the pruning or quantization wrapper around it.

    Args:
        model: A functional model.
        name: The layer's name in the model as the user built it.
        role: What the model is called in the error: "student" or "teacher".

    Raises:
        ModelError: The model has no such layer; the message gives the nearest names.
    """
    names = _by_name(model)
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    hint = f"The nearest names are: {', '.join(near)}." if near else f"It has: {', '.join(names)}."
    raise ModelError(f"`{name}` must be a layer of the {role}.", received=repr(name), hint=hint)


def layers_before(model: Any, heads: Sequence[Any]) -> list[LayerOutput]:
    """The layers of a model that losses may be matched by, in the order of the graph.

    Args:
        model: A functional model, whose layers may be wrapped.
        heads: Tensors that are no features: its outputs and logits.

    Returns:
        Those that are used once and have one output, without inputs and heads.
    """
    known = {id(tensor) for tensor in heads}
    found = []
    for layer in model.layers:
        outputs = _outputs_of(model, layer)
        inner = getattr(layer, "layer", layer)
        if (
            isinstance(layer, (keras.layers.InputLayer, tf_keras.layers.InputLayer))
            or len(outputs) != 1
            or id(outputs[0]) in known
        ):
            continue
        found.append(LayerOutput(inner.name, type(inner).__name__, tuple(outputs[0].shape[1:])))
    return found


class _Output(Reading):
    def __init__(self, model: Any, layer: Any, name: str, role: str) -> None:
        self.tensors = _outputs_of(model, layer)
        if len(self.tensors) != 1:
            raise ModelError(
                f"`{name}` must be used once in the {role}, and have one output.",
                received=f"layer {name!r} with {len(self.tensors)} outputs",
                hint="Name another layer for the feature loss.",
            )
        self.shape = tuple(self.tensors[0].shape[1:])
        self.tensors += _written_out_mask(model, self.tensors[0])

    def __call__(self, values: Sequence[Any]) -> tuple[Any, Any]:
        output, *written_out = values
        if written_out:
            return output, written_out[0] > 0.5
        # Where Keras looks for it, too. Without steps it would be of no axis.
        return output, getattr(output, "_keras_mask", None) if output.shape.rank > 2 else None


class _Scores(Reading):
    """The scores of a MultiHeadAttention layer, computed from its inputs once more.

    It puts them out after the softmax only. Calling it a second time would leave a second use of
    it in the student.
    """

    def __init__(self, layer: Any, call: dict[str, Any]) -> None:
        self._layer, self._call = layer, call
        if call.get("key") is None:
            call["key"] = call["value"]
        self._symbolic = [name for name, value in call.items() if hasattr(value, "_keras_history")]
        self.tensors = [call[name] for name in self._symbolic]
        steps = (call[side].shape[1] for side in ("query", "key"))
        self.shape = (layer._num_heads, *steps)

    def __call__(self, values: Sequence[Any]) -> tuple[Any, Any]:
        layer = self._layer
        call = {**self._call, **dict(zip(self._symbolic, values, strict=True))}
        query = layer._query_dense(call["query"])
        query = query * tf.cast(1.0 / math.sqrt(layer._key_dim), query.dtype)
        scores = tf.einsum(layer._dot_product_equation, layer._key_dense(call["key"]), query)
        mask = None
        if isinstance(layer, tf_keras.layers.Layer):  # of a teacher of Keras 3 none is read
            mask = layer._compute_attention_mask(
                call["query"],
                call["value"],
                key=call["key"],
                attention_mask=call.get("attention_mask"),
                use_causal_mask=call.get("use_causal_mask", False),
            )
        if mask is not None:
            mask = tf.cast(mask, tf.bool)
            mask = mask[:, tf.newaxis] if mask.shape.rank == 3 else mask
            mask = _of_each_example(mask, scores)
        return scores, mask


class _WrittenOutScores(Reading):
    """The same of a quantized student, which has a product and a softmax in the layer's place."""

    def __init__(self, model: Any, softmax: Any) -> None:
        (node,) = _nodes_of(model, softmax)
        self.tensors = list(node.keras_inputs)
        self.shape = tuple(self.tensors[0].shape[1:])
        self._softmax = getattr(softmax, "layer", softmax)

    def __call__(self, values: Sequence[Any]) -> tuple[Any, Any]:
        scores, *masks = values
        allowed = getattr(self._softmax, "allowed", None)  # that of a plain softmax is everything
        if allowed is None:
            return scores, None
        return scores, _of_each_example(allowed(scores, masks) > 0, scores)


class _Weights(Reading):
    """What a layer trains: a tuple of tensors, and so their shapes; the same for each batch."""

    tensors = ()

    def __init__(self, layer: Any, name: str, role: str) -> None:
        self._weights = _trained(layer)
        if not self._weights:
            raise ModelError(
                f"`{name}` must be a layer of the {role} with weights.",
                received=f"{name!r}, a {type(getattr(layer, 'layer', layer)).__name__}",
                hint="Name a layer that learns something.",
            )
        self.shape = tuple(tuple(weight.shape) for weight in self._weights)

    def __call__(self, values: Sequence[Any]) -> tuple[Any, Any]:
        return tuple(tf.convert_to_tensor(weight) for weight in self._weights), None


def _scores_of(model: Any, name: str, role: str) -> Reading:
    written_out = _by_name(model).get(f"{name}/softmax")
    if written_out is not None:
        return _WrittenOutScores(model, written_out)
    found = find_layer(model, name, role=role)
    layer = getattr(found, "layer", found)  # while it is pruned
    received = f"{name!r}, a {type(layer).__name__}"
    if not isinstance(layer, _ATTENTION):
        raise ModelError(
            f"`{name}` must be a MultiHeadAttention layer of the {role}.",
            received=received,
            hint="Only of these the scores are known.",
        )
    calls = [_call_of(layer, node) for node in _nodes_of(model, found)]
    if len(calls) != 1 or any(len(calls[0][side].shape) != 3 for side in ("query", "value")):
        raise ModelError(
            f"`{name}` must be used once in the {role}, on sequences [batch, steps, width].",
            received=f"{received}, used {len(calls)} times",
            hint="Name another layer for the attention loss.",
        )
    return _Scores(layer, calls[0])


def _call_of(layer: Any, node: Any) -> dict[str, Any]:
    """The arguments that a layer was called with, by name."""
    if hasattr(node, "call_args"):
        args, kwargs = node.call_args, node.call_kwargs
    else:
        args, kwargs = node.arguments.args, node.arguments.kwargs
    return dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)


def _of_each_example(mask: Any, scores: Any) -> Any:
    """`[batch, 1 or heads, queries, keys]` of a mask that may be one for all examples."""
    sizes = tf.shape(scores)
    heads = mask.shape[1] if mask.shape.rank == 4 else 1
    return tf.broadcast_to(mask, [sizes[0], heads, sizes[2], sizes[3]])


def _written_out_mask(model: Any, output: Any) -> list[Any]:
    """The mask of the steps of a quantized student's layer, which it computes and does not carry.

    Returns:
        One tensor `[batch, steps]` of 0 and 1; none where there is no mask, or more than one that
        it could be.
    """
    names = _by_name(model)
    masked = {name for name in names if f"{name}/mask" in names}
    if not masked or len(output.shape) != 3:
        return []
    found, seen, pending = [], set(), [output]
    while pending:
        history = pending.pop()._keras_history
        if (id(history.layer), history.node_index) in seen:
            continue
        seen.add((id(history.layer), history.node_index))
        pending += history.layer._inbound_nodes[history.node_index].keras_inputs
        name = getattr(history.layer, "layer", history.layer).name
        if name in masked:
            found += _outputs_of(model, names[f"{name}/mask"])
    fitting = [mask for mask in found if mask.shape[1:] == output.shape[1:2]]
    return fitting if len(fitting) == 1 else []


def _trained(layer: Any) -> list[Any]:
    """Also of a frozen layer; without moving statistics and what wrappers keep."""
    if isinstance(layer, tf_keras.layers.Layer):
        return [weight for weight in layer.weights if weight.trainable]
    return [weight for each in layer._flatten_layers() for weight in each._trainable_variables]


def _by_name(model: Any) -> dict[str, Any]:
    names = {}
    for layer in model.layers:
        inner = getattr(layer, "layer", None)
        names[layer.name] = layer
        if inner is not None:
            names.setdefault(inner.name, layer)
    return names


def _nodes_of(model: Any, layer: Any) -> list[Any]:
    """The uses of a layer in this model: those in others are not of interest."""
    return [
        node
        for nodes in graph_or_raise(model)._nodes_by_depth.values()
        for node in nodes
        if (getattr(node, "operation", None) or node.layer) is layer
    ]


def _outputs_of(model: Any, layer: Any) -> list[Any]:
    # Not `layer.output`: Keras 3 answers with the first use, whichever model that was in.
    nodes = _nodes_of(model, layer)
    return [tensor for node in nodes for tensor in tf.nest.flatten(node.output_tensors)]

"""Masks that tensors carry, as tensors of their own.

tfmot's wrapper cannot hand on what Keras carries with a tensor as its mask. So masks are written
out where they begin, and put back before a layer that only Keras' own will do for.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.own_layers import KerasOperation

_layers = tf_keras.layers
_Layer: Any = _layers.Layer
_registered = tf_keras.saving.register_keras_serializable(package="tfdistill")

# Keras gives what these make of masked tensors all of the masks at once.
_MERGES = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


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
    """Values with a mask for Keras to hand on."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the values, and what is not 0 where they are to be read."""
        return tf.identity(inputs[0])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """As that of an Embedding with `mask_zero`."""
        return tf.not_equal(inputs[1], 0)


@_registered
class MaskOf(_Layer):
    """The mask that Keras hands on with values, 1 or 0."""

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """`inputs` are the values."""
        return tf.cast(mask, tf.float32)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """None."""


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
    """The masks that tensors carry, as tensors of the graph."""

    def __init__(self) -> None:
        self._masks: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """The mask of a tensor, `[batch, time]`, None without one."""
        return self._masks.get(id(value), (None, None))[1]

    def of_embedding(self, graph: Any, layer: Any, numbers: Any) -> Any:
        """What an Embedding with `mask_zero` gives."""
        embedded = graph.clone(layer, mask_zero=False)(numbers)
        self._keep(embedded, graph.part(layer, "mask", lambda n: NotZero(name=n))(numbers))
        return embedded

    def given_to_keras(self, graph: Any, layer: Any, value: Any) -> Any:
        """What `layer` is to read, with its mask as Keras hands it on."""
        tensor, mask = graph.tensor(layer, value), self.of(value)
        if mask is None:
            return tensor
        return graph.part(layer, "masked", lambda n: Masked(name=n))([tensor, mask])

    def take_from_keras(self, graph: Any, layer: Any, tensor: Any, value: Any) -> None:
        """Gives a value the mask that Keras hands on with a tensor that `layer` gave."""
        self._keep(value, graph.part(layer, "mask", lambda n: MaskOf(name=n))(tensor))

    def hand_on(self, graph: Any, layer: Any, values: Sequence[Any], result: Any) -> Any:
        """The layer's result, with the mask that Keras would give it."""
        masks = {id(self.of(value)): self.of(value) for value in values}
        found = [mask for mask in masks.values() if mask is not None]
        if found and self.of(result) is None and has_mask(layer.get_output_at(0)):
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


def reads_masks(layer: Any) -> bool:
    """Whether a layer may do more with a mask than drop it or hand it on as it is."""
    kind = type(layer).__name__
    if isinstance(layer, KerasOperation):
        return False  # it drops it
    if type(layer) is not getattr(_layers, kind, None) or kind == "MultiHeadAttention":
        return True
    if "mask" in inspect.signature(layer.call).parameters:
        return True
    if kind == "Concatenate" and layer.axis in (-1, layer.get_output_at(0).shape.rank - 1):
        return False  # of channels: as the merges
    hands_on = type(layer).compute_mask is _Layer.compute_mask or kind in _MERGES
    return not hands_on and has_mask(layer.get_output_at(0))


def can_be_wrapped(layer: Any) -> bool:
    """Whether it takes one argument and gives one tensor, without masks; else tfmot cannot."""
    if isinstance(layer, _layers.TimeDistributed):
        return False  # the config of one that is built has the shape of a step
    return all(
        len(node.call_args) == 1
        and not node.call_kwargs
        and not isinstance(node.outputs, list | tuple | dict)
        and tf_keras.backend.is_keras_tensor(node.outputs)
        and node.outputs.dtype.is_floating
        and not any(map(has_mask, [*node.keras_inputs, node.outputs]))
        for node in layer._inbound_nodes
    )

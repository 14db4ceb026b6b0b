"""The masks that attention reads where Keras 3 runs a model, which are fewer than in its graph.

A MultiHeadAttention of Keras 3 takes the mask off its inputs when it runs, though not while the
graph is made. So what reads these tensors after it, as a residual connection does, hands no mask
on, and the next attention is not masked; pooling and recurrent layers are, because their masks
are written into the graph. In tf_keras every layer sees the masks of the graph.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tfdistill._keras import keras
from tfdistill.bridge.equality import inputs_and_outputs, outputs_of
from tfdistill.bridge.model_graphs import graph_or_raise, leaves_of
from tfdistill.bridge.own_layers import KerasOperation

_Merge: Any = keras.layers.Add.__base__
_TENSORS = ("query", "value", "key")


class AttentionMasks:
    """Which inputs of each MultiHeadAttention are masked where Keras 3 runs a model.

    Args:
        model: A Keras 3 model with a graph. It is run if it has attention and masks.
    """

    def __init__(self, model: Any) -> None:
        self._masked: dict[int, list[set[str]]] = {}  # by layer, for each of its calls
        self._unmasked: dict[int, tuple[Any, Any]] = {}
        layers = [leaf.layer for leaf in leaves_of(graph_or_raise(model))]
        attention = [each for each in layers if isinstance(each, keras.layers.MultiHeadAttention)]
        makers = [
            each for each in layers if getattr(each, "mask_zero", hasattr(each, "mask_value"))
        ]
        if attention and makers:
            self._observe(model, attention)

    def _observe(self, model: Any, attention: list[Any]) -> None:
        inputs, _ = inputs_and_outputs(model)
        for layer in attention:
            calls = self._masked[id(layer)] = []
            vars(layer)["call"] = _observed(layer.call, calls)  # unseen by Keras' tracking
        try:
            outputs_of(model, inputs)
        finally:
            for layer in attention:
                del vars(layer)["call"]

    def arguments(
        self, layer: Any, node: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Those of the layer's next call in tf_keras, without masks that Keras 3 does not see.

        Args:
            layer: A layer of the Keras 3 model; the calls of each come in the model's order.
            node: This call.
            name: Its name in tf_keras.
            args: The positional arguments.
            kwargs: The other arguments.
        """
        if isinstance(layer, _Merge) and args:
            carry = {_has_mask(tensor) for tensor in node.input_tensors}
            if len(carry) > 1:  # then Keras 3 hands none on
                alike = [self._without_mask(t, name) if _has_mask(t) else t for t in args[0]]
                return (alike, *args[1:]), kwargs
        if not self._masked.get(id(layer)):
            return args, kwargs
        masked = self._masked[id(layer)].pop(0)
        given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
        for side in _TENSORS:
            if side not in masked and _has_mask(given.get(side)):
                given[side] = self._without_mask(given[side], name)
        return (), given

    def _without_mask(self, tensor: Any, name: str) -> Any:
        """The same values, given on by a copy, which as an operation of Keras 3 drops masks."""
        if id(tensor) not in self._unmasked:
            copy = keras.ops.copy(keras.KerasTensor(tensor.shape, tensor.dtype.name))
            count = sum(
                made._keras_history.layer.name.startswith(f"{name}/")
                for _, made in self._unmasked.values()
            )
            layer = KerasOperation.of_call(
                copy._keras_history.operation,
                [tensor],
                {},
                name=f"{name}/unmasked" + (f"_{count}" if count else ""),
            )
            # With the tensor, so that its id stays its own.
            self._unmasked[id(tensor)] = tensor, layer(tensor)
        return self._unmasked[id(tensor)][1]


def _has_mask(tensor: Any) -> bool:
    return getattr(tensor, "_keras_mask", None) is not None


def _observed(call: Callable[..., Any], calls: list[set[str]]) -> Callable[..., Any]:
    """A layer's `call` that notes which of its tensors carry a mask."""

    @functools.wraps(call)
    def observed(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        calls.append({side for side in _TENSORS if _has_mask(given.get(side))})
        return call(*args, **kwargs)

    return observed

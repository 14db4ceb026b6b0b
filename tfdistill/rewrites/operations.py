"""TensorFlow's operations, and activations written as several layers, as layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.config_values import hard_sigmoid, hard_silu
from tfdistill.bridge.operations import TF_OPERATIONS, from_keras3, from_tf, layer_of
from tfdistill.bridge.own_layers import KerasOperation
from tfdistill.rewrites.builder import GraphBuilder

_layers = tf_keras.layers
_Layer: Any = _layers.Layer
_ReLU: Any = _layers.ReLU


@tf_keras.saving.register_keras_serializable(package="tfdistill")
class UpTo(_Layer):
    """Values, and the limit where they are above it.

    Args:
        limit: A number.
    """

    def __init__(self, limit: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit

    def call(self, inputs: Any) -> Any:
        """`inputs` are the values."""
        return tf.minimum(inputs, tf.cast(self.limit, inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "limit": self.limit}


@tf_keras.saving.register_keras_serializable(package="tfdistill")
class ReLUAbove(_ReLU):
    """A ReLU with a threshold, which tfmot is not to take for one without."""


def with_layers(model: Any, skip: frozenset[str]) -> tuple[Any, Mapping[str, str]]:
    """Puts layers in place of TensorFlow's operations, and finds MobileNetV3's activations.

    They are written as relu6(x + 3) / 6, and x times that.

    Args:
        model: Flat Functional tf_keras model.
        skip: Names of layers to leave as they are.

    Returns:
        The new model, and the names of the layers that those of the new model came from.
    """
    graph = GraphBuilder(model)

    def call(layer: Any, node: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(layer, TF_OPERATIONS):
            operation = from_tf(layer.symbol, args, kwargs)
            named = operation and layer_of(operation, node.outputs, layer.name)
            if operation is None or named is None:
                return graph.clone(layer)(*args, **kwargs)
            layer, kwargs = graph.part(layer, "", lambda _: named), {}
            args = [operation.tensors if len(operation.tensors) > 1 else operation.tensors[0]]
            fused = _fused(graph, layer, args[0])
            return layer(args[0]) if fused is None else fused
        if isinstance(layer, KerasOperation) and _widens(node):
            return _narrowed(graph, layer, *args)
        fused = None if layer.name in skip or kwargs else _fused(graph, layer, *args)
        return graph.clone(layer)(*args, **kwargs) if fused is None else fused

    return graph.build(call), graph.origins


def _widens(node: Any) -> bool:
    """Whether a constant of NumPy's default type made an operation compute in float64."""
    given, made = (
        {tensor.dtype for tensor in tf.nest.flatten(tensors)}
        for tensors in (node.keras_inputs, node.outputs)
    )
    return given == {tf.float32} and made == {tf.float64}


def _narrowed(graph: GraphBuilder, layer: Any, values: Any) -> Any:
    """The operation in float32, as a layer of Keras where there is one."""
    text = json.dumps(layer.arguments).replace('"float64"', '"float32"')
    config = {**layer.get_config(), "arguments": json.loads(text)}
    operation = KerasOperation.from_config(config)
    result = operation(values)
    args, kwargs = operation.call_arguments(values)
    named = layer_of(from_keras3(operation.keras3_operation, args, kwargs), result, layer.name)
    part = graph.part(layer, "", lambda _: named or operation)
    return result if named is None else part(values)


def _fused(graph: GraphBuilder, layer: Any, values: Any, *more: Any) -> Any:
    """The activation that ends with a layer, None where there is none."""
    if more:
        return None
    if isinstance(layer, _layers.Rescaling):
        source = _relu6_of_x_plus_3(layer, values)
        if source is not None:
            return graph.part(
                layer, "hard_sigmoid", lambda n: _layers.Activation(hard_sigmoid, name=n)
            )(source)
    if isinstance(layer, _layers.Multiply) and len(values) == 2:
        for x, gate in (values, values[::-1]):
            made = gate._keras_history.layer
            if activation_of(made) == "hard_sigmoid" and _only_input(made) is x:
                return graph.part(
                    layer, "hard_silu", lambda n: _layers.Activation(hard_silu, name=n)
                )(x)
    return None


def _relu6_of_x_plus_3(sixth: Any, tensor: Any) -> Any:
    """The x of `relu6(x + 3) / 6`, None where `sixth` is something else."""
    relu6 = tensor._keras_history.layer
    if not _is_scalar(sixth.scale, 1 / 6) or not _is_scalar(sixth.offset, 0.0):
        return None
    if activation_of(relu6) != "relu6":
        return None
    source = _only_input(relu6)
    plus = None if source is None else source._keras_history.layer
    if not isinstance(plus, _layers.Rescaling) or not _is_scalar(plus.offset, 3.0):
        return None
    return _only_input(plus) if _is_scalar(plus.scale, 1.0) else None


def _only_input(layer: Any) -> Any:
    """What a layer reads, None where it is called more than once."""
    return layer.input if len(layer._inbound_nodes) == 1 else None


def _is_scalar(value: Any, expected: float) -> bool:
    return bool(np.ndim(value) == 0 and abs(float(value) - expected) < 1e-6)


def activation_of(layer: Any) -> str:
    """The activation function that a layer is or ends in; "relu6" also for a ReLU up to 6."""
    if type(layer) is _layers.ReLU:
        plain = not float(layer.negative_slope) and not float(layer.threshold)
        limit = None if layer.max_value is None else float(layer.max_value)
        return {None: "relu", 6.0: "relu6"}.get(limit, "") if plain else ""
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", type(activation).__name__)

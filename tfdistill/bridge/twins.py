"""What stands in the other Keras for a layer, or for one use of an operation, and how it is called.

A twin is called as its original is: with a call's arguments in the original's Keras, and with
tensors of a graph or real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.config_values import CustomObjects, NoCounterpartError
from tfdistill.bridge.layer_configs import Crossing, clone_tf_keras_layer, rebuild_layer
from tfdistill.bridge.layer_table import adapter_of
from tfdistill.bridge.model_graphs import Leaf, is_operation
from tfdistill.bridge.operations import TF_OPERATIONS, from_keras3, from_tf, keras3_call, layer_of
from tfdistill.bridge.own_layers import KerasOperation, is_symbolic


@dataclass
class Twin:
    """The counterpart of a leaf.

    Args:
        name: Its name in the converted model.
        layer: The layer; None where Keras 3 has a function for it, or before it is first called.
        call: Calls it, with the arguments of a call of the original.
    """

    name: str
    layer: Any
    call: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it, with the arguments of a call of the original."""
        return self.call(*args, **kwargs)


def clone_twin(leaf: Leaf, custom: CustomObjects, convert_model: Callable[[Any], Any]) -> Twin:
    """The tf_keras clone of a tf_keras layer."""
    layer = clone_tf_keras_layer(leaf.layer, leaf.name, custom)
    return Twin(leaf.name, layer, layer)


def tf_keras_twin(leaf: Leaf, custom: CustomObjects, convert_model: Callable[[Any], Any]) -> Twin:
    """What stands in tf_keras for a layer or operation of Keras 3.

    Raises:
        NoCounterpartError: Nothing does.
    """
    if leaf.node is not None:
        return _operation_twin(leaf)
    crossing = Crossing(keras, tf_keras, custom, convert_model)
    layer = rebuild_layer(leaf.layer, leaf.name, crossing)
    return Twin(leaf.name, layer, layer)


def _operation_twin(leaf: Leaf) -> Twin:
    operation, given = leaf.layer, leaf.node.arguments
    places = [
        place
        for place, value in enumerate(keras.tree.flatten((list(given.args), given.kwargs)))
        if is_symbolic(value)
    ]
    try:  # the layer that can do everything, first: it tells what cannot be done
        general = KerasOperation.of_call(operation, given.args, given.kwargs, name=leaf.name)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise NoCounterpartError(f"Keras cannot serialize it: {error}") from error
    twin = Twin(leaf.name, None, lambda *args, **kwargs: None)

    def call(*args: Any, **kwargs: Any) -> Any:
        values = keras.tree.flatten((list(args), kwargs))
        tensors = [values[place] for place in places]
        if twin.layer is None:  # now it is known which masks the tensors carry in tf_keras
            named = from_keras3(operation, args, kwargs)
            twin.layer = layer_of(named, leaf.node.outputs, leaf.name) or general
        return twin.layer(tensors if len(tensors) > 1 else tensors[0])

    twin.call = call
    return twin


def keras3_twin(leaf: Leaf, custom: CustomObjects, convert_model: Callable[[Any], Any]) -> Twin:
    """What stands in Keras 3 for a layer of tf_keras.

    Raises:
        NoCounterpartError: Nothing does.
    """
    layer = leaf.layer
    if isinstance(layer, TF_OPERATIONS):
        return Twin(leaf.name, None, _tf_function(layer, leaf.name))
    if isinstance(layer, KerasOperation):
        return Twin(leaf.name, None, _keras3_operation(layer, leaf.name))
    crossing = Crossing(tf_keras, keras, custom, convert_model)
    rebuilt = rebuild_layer(layer, leaf.name, crossing)
    adapter = adapter_of(layer)
    if adapter is None or adapter.call_to_keras3 is None:
        return Twin(leaf.name, rebuilt, rebuilt)
    adapt = adapter.call_to_keras3

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = adapt(args, kwargs)
        return rebuilt(*args, **kwargs)

    return Twin(leaf.name, rebuilt, call)


def _tf_function(layer: Any, name: str) -> Callable[..., Any]:
    symbol = layer.symbol
    unknown = NoCounterpartError(f"`tf.{symbol}`, as it is called, is not known in `keras.ops`")
    if from_tf(symbol, (), {}) is None:
        raise unknown
    names = chain([name], (f"{name}_{number}" for number in count(1)))

    def call(*args: Any, **kwargs: Any) -> Any:
        operation = from_tf(symbol, args, kwargs)
        if operation is None:
            raise unknown
        result = keras3_call(operation)
        tensor = keras.tree.flatten(result)[0]
        if is_symbolic(tensor):  # Keras 3 would name it as a layer may be named already
            tensor._keras_history.operation.name = next(names)
        return result

    return call


def _keras3_operation(layer: KerasOperation, name: str) -> Callable[..., Any]:
    operation = keras.saving.deserialize_keras_object(layer.operation)
    if is_operation(operation):
        operation.name = name

    def call(inputs: Any) -> Any:
        args, kwargs = layer.call_arguments(inputs)
        return operation(*args, **kwargs)

    return call

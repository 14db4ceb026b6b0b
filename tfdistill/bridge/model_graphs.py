"""The graph of layers inside a model of either Keras: found, listed, and run on anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ConversionError

_WRAP_HINT = (
    "Make a Functional model of it: `inputs = keras.Input(shape)`, then "
    "`keras.Model(inputs, model.call(inputs))`."
)


def is_keras3(model: Any) -> bool:
    """Whether `model` is a Keras 3 model."""
    return isinstance(model, keras.Model)


def is_tf_keras(model: Any) -> bool:
    """Whether `model` is a tf_keras model."""
    return isinstance(model, tf_keras.Model)


@dataclass(frozen=True)
class Leaf:
    """A layer that is no model, or one use of an operation of Keras 3.

    Args:
        layer: The layer or operation.
        path: Where it is: the names of the models around it and its own.
        name: Its name in a flat model.
        node: The node of an operation, None for a layer, which all its nodes share.
    """

    layer: Any
    path: str
    name: str
    node: Any = None


def key_of(layer: Any, node: Any) -> int:
    """What tells a layer, or one use of an operation, from all others."""
    return id(node if is_operation(layer) else layer)


def is_operation(layer: Any) -> bool:
    """Whether this is an operation of Keras 3 that is no layer."""
    return isinstance(layer, keras.Operation) and not isinstance(layer, keras.layers.Layer)


def check_backend(model: Any) -> None:
    """Raises ConversionError unless `model` is one that TensorFlow runs, of either Keras."""
    if not is_keras3(model) and not is_tf_keras(model):
        raise ConversionError(
            "`model` must be a Keras 3 or tf_keras model.",
            received=type(model).__name__,
            hint="A saved one is loaded by `tfdistill.load_model`.",
        )
    if keras.backend.backend() != "tensorflow":
        raise ConversionError(
            "The backend of Keras must be 'tensorflow'.",
            received=keras.backend.backend(),
            hint="Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported.",
        )


def graph_of(model: Any) -> Any | None:
    """The Functional graph that `model` runs, None where it runs code of its own."""
    if not isinstance(model, keras.Model | tf_keras.Model):
        return None
    if type(model).call.__module__.partition(".")[0] not in {"keras", "tf_keras"}:
        return None  # also a Functional model with a `call` that its class overrides
    if is_tf_keras(model):
        return model if model._is_graph_network else None
    graph = getattr(model, "_functional", model)  # a Sequential model keeps its graph inside
    return graph if hasattr(graph, "_run_through_graph") else None


def graph_or_raise(model: Any) -> Any:
    """Like `graph_of`; a ConversionError that says what to do where there is none."""
    graph = graph_of(model)
    if graph is not None:
        return graph
    if isinstance(model, keras.Sequential | tf_keras.Sequential):
        raise ConversionError(
            "`model` must be built.",
            received=f"{model.name} (a Sequential model that does not know its input shape)",
            hint="Give it a `keras.Input(shape)` as its first layer, or call "
            "`model.build(input_shape)`.",
        )
    raise ConversionError(
        "`model` must be a Functional or Sequential model.",
        received=f"{model.name} (the subclassed model {type(model).__name__}: its `call` is "
        "Python code, not a graph of layers)",
        hint=_WRAP_HINT,
    )


def leaves_of(graph: Any) -> list[Leaf]:
    """Every layer of a graph once, those of nested models too, without the input layers."""
    found: dict[int, tuple[Any, Any, tuple[str, ...]]] = {}

    def collect(graph: Any, path: tuple[str, ...]) -> None:
        for layer, node in _layers(graph):
            inner = graph_of(layer)
            if inner is not None:
                collect(inner, (*path, layer.name))
            elif not isinstance(layer, keras.layers.InputLayer | tf_keras.layers.InputLayer):
                found.setdefault(key_of(layer, node), (layer, node, (*path, layer.name)))

    collect(graph, ())
    taken = set(_input_names(graph))
    names = {}
    # An outer layer keeps its name; of nested ones the first to come does.
    for key, (_, _, path) in sorted(found.items(), key=lambda item: len(item[1][2])):
        joined = "_".join(path)
        candidates = chain([path[-1], joined], (f"{joined}_{number}" for number in count(1)))
        names[key] = next(name for name in candidates if name not in taken)
        taken.add(names[key])
    return [
        Leaf(layer, "/".join(path), names[key], node if is_operation(layer) else None)
        for key, (layer, node, path) in found.items()
    ]


def _layers(graph: Any) -> list[tuple[Any, Any]]:
    """Layers and operations with one node of theirs, each node of an operation by itself."""
    if is_tf_keras(graph):
        return [(layer, None) for layer in graph.layers]
    nodes = _needed_nodes(graph)
    return [
        (operation, node)
        for operation in graph.operations
        for node in operation._inbound_nodes
        if id(node) in nodes
    ]


def _needed_nodes(graph: Any) -> dict[int, Any]:
    """The nodes of a Keras 3 graph, without those that only compute masks.

    Keras 3 writes a mask's computation into the graph; both Keras hand masks on by themselves.
    """
    needed: dict[int, Any] = {}
    inputs = {id(tensor) for tensor in graph.inputs}
    pending = list(graph.outputs)
    while pending:
        tensor = pending.pop()
        if id(tensor) in inputs:
            continue
        operation, node_index, _ = tensor._keras_history
        node = operation._inbound_nodes[node_index]
        if id(node) not in needed:
            needed[id(node)] = node
            values = keras.tree.flatten(_arguments(node))
            pending += [value for value in values if isinstance(value, keras.KerasTensor)]
    return needed


def _arguments(node: Any) -> tuple[Any, dict[str, Any]]:
    """A node's arguments without the masks that Keras 3 put among them by itself."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    masks = [key for key in kwargs if key == "mask" or key.endswith("_mask")]
    if not masks:
        return args, kwargs
    given = inspect.signature(node.operation.call).bind_partial(*args, **kwargs).arguments
    own = {}
    for key in masks:
        masked = args[0] if key == "mask" and args else given.get(key.removesuffix("_mask"))
        attached = [getattr(one, "_keras_mask", None) for one in keras.tree.flatten(masked)]
        passed = keras.tree.flatten(kwargs[key])
        own[key] = all(one is None for one in passed) or _same(passed, attached)
    return args, {key: value for key, value in kwargs.items() if not own.get(key)}


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether two lists of a node's arguments are the same tensors, or computed alike.

    A model that was saved or cloned computes each mask a second time.
    """
    if len(ours) != len(theirs):
        return False
    for our, their in zip(ours, theirs, strict=True):
        if our is their:
            continue
        if not (isinstance(our, keras.KerasTensor) and isinstance(their, keras.KerasTensor)):
            if isinstance(our, keras.KerasTensor | str) or not np.array_equal(our, their):
                return False
            continue
        (our_operation, our_index, our_place), (operation, index, place) = (
            our._keras_history,
            their._keras_history,
        )
        if type(our_operation) is not type(operation) or our_place != place:
            return False
        nodes = our_operation._inbound_nodes[our_index], operation._inbound_nodes[index]
        if not is_operation(operation) or not _same(
            *(keras.tree.flatten((node.arguments.args, node.arguments.kwargs)) for node in nodes)
        ):
            return False
    return True


def _input_names(graph: Any) -> list[str]:
    return [tensor._keras_history[0].name for tensor in graph.inputs]


def run_graph(graph: Any, inputs: list[Any], call: Callable[..., Any], fixed: Any = None) -> Any:
    """Runs a graph, nested ones in place, on tensors of any kind.

    Args:
        graph: What `graph_of` gave.
        inputs: One value for each of the graph's inputs.
        call: Called as `call(layer, node, args, kwargs)` for each use of a layer.
        fixed: What an outer graph's call fixed `training` to.

    Returns:
        The outputs, in the structure of the graph's.
    """

    def visit(layer: Any, node: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        training = kwargs.pop("training", None)
        if not is_tf_keras(graph):
            training = None  # Keras 3 overrides it by what `fit` and `predict` say
        training = fixed if training is None else training
        inner = graph_of(layer)
        if inner is not None:
            given = args[0] if args else kwargs["inputs"]
            return run_graph(inner, flatten(inner, given), call, training)
        if training is not None and takes_training(layer):
            kwargs["training"] = training
        return call(layer, node, args, kwargs)

    return (_run_tf_keras if is_tf_keras(graph) else _run_keras3)(graph, inputs, visit)


def _run_keras3(graph: Any, inputs: list[Any], visit: Callable[..., Any]) -> Any:
    needed = _needed_nodes(graph)
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if id(node) not in needed or node.is_input:
                continue
            args, kwargs = keras.tree.map_structure(
                lambda value: values[id(value)] if isinstance(value, keras.KerasTensor) else value,
                _arguments(node),
            )
            outputs = keras.tree.flatten(visit(node.operation, node, tuple(args), dict(kwargs)))
            for tensor, value in zip(node.outputs, outputs, strict=True):
                values[id(tensor)] = value
    outputs = [values[id(tensor)] for tensor in graph.outputs]
    return keras.tree.pack_sequence_as(graph._outputs_struct, outputs)


def _run_tf_keras(graph: Any, inputs: list[Any], visit: Callable[..., Any]) -> Any:
    uses = graph._tensor_usage_count  # a node takes its inputs out of a list of that length
    values = {
        str(id(tensor)): [value] * uses[str(id(tensor))]
        for tensor, value in zip(graph.inputs, inputs, strict=True)
    }
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.map_arguments(values)
            outputs = tf.nest.flatten(visit(node.layer, node, args, dict(kwargs)))
            for key, value in zip(node.flat_output_ids, outputs, strict=True):
                values[key] = [value] * uses[key]
    outputs = [values[str(id(tensor))].pop() for tensor in graph.outputs]
    return tf.nest.pack_sequence_as(graph.output, outputs)


def flatten(graph: Any, structure: Any) -> list[Any]:
    """The tensors in `structure`, in the order in which the Keras of `graph` counts them."""
    tree = tf.nest if is_tf_keras(graph) else keras.tree
    return list(tree.flatten(structure))


def pack_inputs(graph: Any, flat: list[Any]) -> Any:
    """One value for each input, in the structure that the graph's model is called with."""
    tree = tf.nest if is_tf_keras(graph) else keras.tree
    return tree.pack_sequence_as(graph.input, flat)


def takes_training(layer: Any) -> bool:
    """Whether the layer's `call` has an argument `training`."""
    return layer is not None and "training" in inspect.signature(layer.call).parameters

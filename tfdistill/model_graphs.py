"""The graph of layers inside a model of either Keras: found, listed, and run on anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """A layer that is no model: where it is, and its name in a flat model."""

    layer: Any
    path: str
    name: str


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
    found: dict[int, tuple[Any, tuple[str, ...]]] = {}

    def collect(graph: Any, path: tuple[str, ...]) -> None:
        for layer in _layers(graph):
            inner = graph_of(layer)
            if inner is not None:
                collect(inner, (*path, layer.name))
            elif not isinstance(layer, keras.layers.InputLayer | tf_keras.layers.InputLayer):
                found.setdefault(id(layer), (layer, (*path, layer.name)))

    collect(graph, ())
    taken = set(_input_names(graph))
    names = {}
    # An outer layer keeps its name; of nested ones the first to come does.
    for key, (_, path) in sorted(found.items(), key=lambda item: len(item[1][1])):
        candidates = [path[-1], "_".join(path)]
        candidates += [f"{candidates[-1]}_{count}" for count in range(1, len(found) + 1)]
        names[key] = next(name for name in candidates if name not in taken)
        taken.add(names[key])
    return [Leaf(layer, "/".join(path), names[key]) for key, (layer, path) in found.items()]


def _layers(graph: Any) -> list[Any]:
    """Layers and operations, without those of Keras 3 that only compute masks.

    Keras 3 writes a mask's computation into the graph; both Keras hand masks on by themselves.
    """
    if is_tf_keras(graph):
        return list(graph.layers)
    needed: set[int] = set()
    pending, seen = list(graph.outputs), set()
    while pending:
        operation, node_index, _ = pending.pop()._keras_history
        if (id(operation), node_index) in seen:
            continue
        seen.add((id(operation), node_index))
        needed.add(id(operation))
        arguments = operation._inbound_nodes[node_index].arguments
        kwargs = {key: value for key, value in arguments.kwargs.items() if not _is_mask(key)}
        values = keras.tree.flatten((arguments.args, kwargs))
        pending += [value for value in values if isinstance(value, keras.KerasTensor)]
    return [operation for operation in graph.operations if id(operation) in needed]


def _is_mask(argument: str) -> bool:
    return argument == "mask" or argument.endswith("_mask")


def _input_names(graph: Any) -> list[str]:
    return [tensor._keras_history[0].name for tensor in graph.inputs]


def run_graph(graph: Any, inputs: list[Any], call: Callable[..., Any], fixed: Any = None) -> Any:
    """Runs a graph, nested ones in place, on tensors of any kind.

    Args:
        graph: What `graph_of` gave.
        inputs: One value for each of the graph's inputs.
        call: Called as `call(layer, *args, **kwargs)` for each use of a layer.
        fixed: What an outer graph's call fixed `training` to.

    Returns:
        The outputs, in the structure of the graph's.
    """
    run_here = {id(layer) for layer in _layers(graph)}

    def visit(layer: Any, *args: Any, **kwargs: Any) -> Any:
        training = kwargs.pop("training", None)
        if not is_tf_keras(graph):
            if id(layer) not in run_here:
                return args[0]  # stands in for a mask, which no one reads
            training = None  # Keras 3 overrides it by what `fit` and `predict` say
            kwargs = {key: value for key, value in kwargs.items() if not _is_mask(key)}
        training = fixed if training is None else training
        inner = graph_of(layer)
        if inner is not None:
            return run_graph(inner, flatten(inner, args[0]), call, training)
        if training is not None and takes_training(layer):
            kwargs["training"] = training
        return call(layer, *args, **kwargs)

    if is_tf_keras(graph):
        return _run_tf_keras(graph, inputs, visit)
    return graph._run_through_graph(
        inputs, operation_fn=lambda layer: lambda *args, **kwargs: visit(layer, *args, **kwargs)
    )


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
            outputs = tf.nest.flatten(visit(node.layer, *args, **kwargs))
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
    return "training" in inspect.signature(layer.call).parameters

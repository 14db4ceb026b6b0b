"""What the outputs of a model are called and end in, and how logits are read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfdistill._keras import keras, tf, tf_keras, tfmot_internal
from tfdistill.bridge.model_graphs import flatten, graph_of, graph_or_raise, takes_training
from tfdistill.errors import ModelError

__all__ = ["Call", "Ending", "Head", "ending_of", "output_names", "unique_names"]

_PROBABILITIES = ("softmax", "sigmoid")
_WRAPPERS = (  # of tfmot, which give the layers that they wrap other names
    tfmot_internal("sparsity.keras.pruning_wrapper").PruneLowMagnitude,
    tfmot_internal("quantization.keras.quantize_wrapper").QuantizeWrapper,
)

Call = tuple[Any, int]  # a nested model, and the number of one use of it


@dataclass(frozen=True)
class Head:
    """One output of a model.

    Attributes:
        name: What it is called.
        activation: What it ends in: "linear", "softmax" or "sigmoid".
        shape: Its shape without the batch axis.
    """

    name: str
    activation: str
    shape: tuple[int | None, ...]

    @property
    def classes(self) -> int | None:
        """Number of its units, `None` where the model leaves it open."""
        return self.shape[-1] if self.shape else None


@dataclass(frozen=True)
class Ending:
    """What an output ends in, and how its logits are read.

    Attributes:
        activation: "linear", "softmax" or "sigmoid".
        tensors: Symbolic tensors of the model whose values are needed.
        finish: Makes predictions and logits of these values; is told whether the model is trained,
            and what nested models have said in this pass.
        logits: The symbolic logits, where they are no output of the model.
        called: The layer that is called in `finish`, or `None`.
    """

    activation: str
    tensors: Sequence[Any]
    finish: Callable[[Sequence[Any], bool, dict[Call, Any]], tuple[Any, Any]]
    logits: Sequence[Any] = ()
    called: Any = None

    @property
    def must_be_called_once(self) -> bool:
        """Whether a second call of `called` would change what is learnt."""
        regularizer = getattr(self.called, "activity_regularizer", None)
        return graph_of(self.called) is not None or regularizer is not None


def output_names(model: Any) -> tuple[str, ...]:
    """What a functional model's outputs are called, in the order of `model.outputs`.

    Args:
        model: Functional or built Sequential model of either Keras.

    Returns:
        The keys, where the outputs are a dictionary; else the names of the layers that they come
        from.

    Raises:
        ModelError: The outputs are nested.
    """
    graph = graph_or_raise(model)
    structure = graph.output
    if isinstance(structure, Mapping):
        names = tuple(flatten(graph, {name: str(name) for name in structure}))
    else:
        layers = [tensor._keras_history[0] for tensor in graph.outputs]
        names = unique_names(map(_unwrapped, graph.output_names, layers))
    parts = len(structure) if isinstance(structure, (Mapping, list, tuple)) else 1
    if parts != len(graph.outputs):
        raise ModelError(
            "The outputs of a model must be a flat dictionary, list or tuple.",
            received=f"{len(graph.outputs)} outputs in a nested one: {', '.join(names)}",
            hint="Give each of them a name: keras.Model(inputs, {name: output, ...}).",
        )
    return names


def _unwrapped(name: str, layer: Any) -> str:
    """The name that the user knows, of a layer that tfmot has wrapped since."""
    return str(layer.layer.name if isinstance(layer, _WRAPPERS) and layer.name == name else name)


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """The same names, with a number behind those that were there before, as Keras does it."""
    found: list[str] = []
    for name in names:
        spelling, number = name, 0
        while spelling in found:
            number += 1
            spelling = f"{name}_{number}"
        found.append(spelling)
    return tuple(found)


def ending_of(output: Any, role: str, view_of: Callable[[Call], Any]) -> Ending:
    """Finds out what an output of a model ends in.

    Args:
        output: The symbolic tensor.
        role: "student" or "teacher", for messages.
        view_of: Makes the `ModelView` of a nested model, one for each use.

    Raises:
        ModelError: It ends in an activation that nothing can be read before.
    """
    history = output._keras_history
    last = getattr(history, "operation", None) or history.layer
    node = last._inbound_nodes[history.node_index]
    before = list(node.keras_inputs if hasattr(node, "keras_inputs") else node.input_tensors)
    if graph_of(last) is not None:
        call = last, history.node_index
        view, place = view_of(call), history.tensor_index
        activations = [head.activation for head in view.heads.values()]
        if set(activations) != {"linear"}:  # before it, and once: by the nested model's own view
            # tf_keras heeds a `training` that the graph fixes, Keras 3 does not.
            fixed = getattr(node, "call_kwargs", {}).get("training")

            def finish(values: Sequence[Any], training: bool, called: dict[Call, Any]) -> Any:
                if call not in called:
                    called[call] = view.endings(values, training if fixed is None else fixed)
                return called[call][place]

            return Ending(activations[place], before[: len(last.inputs)], finish, called=last)
    wrappers = (tf_keras.layers.Wrapper, keras.layers.Wrapper)  # tfmot's are such, too
    wrapped = last.layer if isinstance(last, wrappers) else None
    activation, separate = _final_activation(last if wrapped is None else wrapped)
    if activation == "linear":
        return Ending(activation, [output], lambda values, *_: (values[0], values[0]))
    if separate:
        logits = before[:1]
        return Ending(
            activation, [output, *logits], lambda values, *_: (values[0], values[1]), logits
        )
    if wrapped is not None:
        raise ModelError(
            f"`{role}` must not end in a wrapped layer with its own {activation}.",
            received=f"{type(last).__name__} around {wrapped.name!r}",
            hint=f"Make the {activation} a layer of its own before wrapping the model.",
        )

    def call_last(values: Sequence[Any], training: bool, _: Any) -> tuple[Any, Any]:
        return _with_logits(last, values[0], training)

    return Ending(activation, before[:1], call_last, called=last)


def _final_activation(layer: Any) -> tuple[str, bool]:
    """The activation a model's last layer ends in, and whether the layer is nothing else."""
    kind = type(layer).__name__
    if kind == "TFOpLambda":  # a function of TensorFlow, called on a tensor of the graph
        kind = layer.symbol.rpartition(".")[2].capitalize()
    if kind in ("Softmax", "Sigmoid"):  # the layer, or Keras 3's operation of the same name
        return kind.lower(), True
    activation = getattr(layer, "activation", None)
    activation = getattr(activation, "activation", activation)  # tfmot's quantized activation
    name = getattr(activation, "__name__", "linear")
    return (name, kind == "Activation") if name in _PROBABILITIES else ("linear", False)


def _with_logits(layer: Any, inputs: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """What `layer` puts out, and what it gave to its activation on the way; calls it once."""
    activation = layer.activation
    given: list[tf.Tensor] = []

    def keep(values: tf.Tensor) -> tf.Tensor:
        given.append(values)
        return activation(values)

    layer.activation = keep
    try:
        output = layer(inputs, **({"training": training} if takes_training(layer) else {}))
    finally:
        layer.activation = activation
    if len(given) != 1:
        raise ModelError(
            f"The layer {layer.name!r} must apply its activation once.",
            received=f"{type(layer).__name__}, which applied it {len(given)} times",
            hint=f"Let it put out logits, and make the {activation.__name__} a layer after it.",
        )
    return output, given[0]

"""Reading logits and features from a model in one forward pass.

Distillation is stated on logits (Hinton 2015, section 2), but many models end in a softmax or
a sigmoid. `ModelView` finds that out from the model's graph and reads the logits from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.model_graphs import graph_of, graph_or_raise, pack_inputs, takes_training
from tfdistill.errors import ModelError, TeacherError
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.layers import LayerOutput
from tfdistill.readings import layers_before, reading_of

_PROBABILITIES = ("softmax", "sigmoid")
_PROBE_EXAMPLES = 4
_PROBE_SIZES = (8, 32, 64, 224)  # of open axes: the first that the model takes


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """The class each row of logits stands for.

    Args:
        logits: `[batch, classes]`, or `[batch, 1]` for a binary model.

    Returns:
        int64 `[batch]`: the largest logit's index; for one unit, 1 where the logit is > 0.
    """
    if logits.shape[-1] == 1:
        return tf.cast(logits[..., 0] > 0, tf.int64)
    return tf.argmax(logits, axis=-1)


def is_functional(model: Any) -> bool:
    """Whether the model's graph of layers can be read: Functional, or a built Sequential."""
    return graph_of(model) is not None


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


class ModelView:
    """One forward pass of a functional model, read as predictions, logits and features.

    Args:
        model: A Functional or built Sequential model, Keras 3 or tf_keras, with one output.
        role: "student" or "teacher", for messages.
        layers: Names of what losses read of layers, see `tfdistill.readings`.

    Attributes:
        activation: What the model ends in: "linear", "softmax" or "sigmoid".
        shapes: Shapes of logits and features without the batch axis.
        note: A sentence saying how logits are recovered, or "".

    Raises:
        ModelError: The model has several outputs, lacks a layer, uses one more than once, or ends
            in an activation that nothing can be read before.
    """

    def __init__(self, model: Any, *, role: str, layers: Sequence[str] = ()) -> None:
        if len(model.outputs) != 1:
            raise ModelError(
                f"`{role}` must have one output.",
                received=f"{len(model.outputs)} outputs",
                hint="Make a model of the output to distil: keras.Model(model.input, output).",
            )
        self.model = model
        self.activation: str
        output = model.outputs[0]
        heads = self._read_ending_of(output, role)
        self._heads = heads
        self._readings = {name: reading_of(model, name, role=role) for name in layers}
        read = [tensor for reading in self._readings.values() for tensor in reading.tensors]
        api = keras if isinstance(model, keras.Model) else tf_keras
        self._extractor = api.Model(graph_or_raise(model).input, [*heads, *read])
        self.shapes = Shapes(
            logits=tuple(output.shape[1:]),
            features={name: reading.shape for name, reading in self._readings.items()},
        )
        self.note = (
            f"The {role} ends in {self.activation}; distillation reads the logits before it."
            if self.activation != "linear"
            else ""
        )

    @property
    def classes(self) -> int | None:
        """Number of output units, `None` where the model leaves it open."""
        return self.shapes.logits[-1] if self.shapes.logits else None

    def __call__(self, inputs: Any, *, training: bool) -> tuple[tf.Tensor, Outputs]:
        """Runs the model once.

        Args:
            inputs: What the model takes, `[batch, ...]`.
            training: As in Keras.

        Returns:
            The model's own output `[batch, ..., classes]`, and `Outputs` with its logits, the
            features by layer name, and the Keras masks of time steps.
        """
        values = iter(tf.nest.flatten(self._extractor(inputs, training=training)))
        predictions, logits = self._finish([*islice(values, len(self._heads))], training)
        features, masks = {}, {}
        for name, reading in self._readings.items():
            features[name], of_feature = reading([*islice(values, len(reading.tensors))])
            if of_feature is not None:
                masks[name] = of_feature
        # Where Keras looks for it, too. Without time steps it would be of no axis of the logits.
        mask = getattr(predictions, "_keras_mask", None) if logits.shape.rank > 2 else None
        mask = () if mask is None else mask
        return predictions, Outputs(logits, features, mask=mask, masks=masks)

    def layers(self) -> list[LayerOutput]:
        """The layers before its logits, in their order."""
        return layers_before(self.model, [*self.model.outputs, *self._logits])

    def _read_ending_of(self, output: Any, role: str) -> list[Any]:
        """Finds out what the model ends in.

        Sets `activation`, and `_finish`, which makes predictions and logits of the values of the
        symbolic tensors that are returned.
        """
        history = output._keras_history
        last = getattr(history, "operation", None) or history.layer
        node = last._inbound_nodes[history.node_index]
        before = list(node.keras_inputs if hasattr(node, "keras_inputs") else node.input_tensors)
        self._finish: Callable[[list[tf.Tensor], bool], tuple[tf.Tensor, tf.Tensor]]
        self._logits: list[Any] = []  # symbolic, where they are no output of the model
        if is_functional(last):
            nested = ModelView(last, role=role)
            self.activation = nested.activation
            if self.activation != "linear":  # before it, and once: by the nested model's own view
                # tf_keras heeds a `training` that the graph fixes, Keras 3 does not.
                fixed = getattr(node, "call_kwargs", {}).get("training")
                self._finish = lambda values, training: nested._both(
                    values, training if fixed is None else fixed
                )
                return before[: len(last.inputs)]
        wrappers = (tf_keras.layers.Wrapper, keras.layers.Wrapper)  # tfmot's are such, too
        wrapped = last.layer if isinstance(last, wrappers) else None
        self.activation, separate = _final_activation(last if wrapped is None else wrapped)
        if self.activation == "linear":
            self._finish = lambda values, _: (values[0], values[0])
            return [output]
        if separate:
            self._finish = lambda values, _: (values[0], values[1])
            self._logits = before[:1]
            return [output, before[0]]
        if wrapped is not None:
            raise ModelError(
                f"`{role}` must not end in a wrapped layer with its own {self.activation}.",
                received=f"{type(last).__name__} around {wrapped.name!r}",
                hint=f"Make the {self.activation} a layer of its own before wrapping the model.",
            )
        self._finish = lambda values, training: _with_logits(last, values[0], training)
        return before[:1]

    def _both(self, values: list[tf.Tensor], training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        predictions, outputs = self(pack_inputs(graph_of(self.model), values), training=training)
        return predictions, outputs.logits


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


def probe_inputs(
    model: Any, *, like: Any = None, run: Callable[[Any], Any] | None = None, seed: int = 0
) -> Any:
    """A few random examples of what a model takes, for a look at its outputs.

    Args:
        model: A functional model.
        like: A functional model with the same inputs, or the shapes of such inputs with their
            batch axis, asked for the sizes that `model` leaves open. For those that both do,
            common ones are tried.
        run: What the examples are for, if not for the model itself; says which sizes it takes.
        seed: Seed of the random numbers.

    Returns:
        Tensors `[4, ...]`, or of the model's fixed batch, in the structure that it is called with.

    Raises:
        ModelError: None of the sizes tried is one that it takes.
    """
    graph = graph_or_raise(model)
    theirs = like if isinstance(like, Sequence) else _input_shapes(graph_of(like) or graph)
    shapes = []
    for own_shape, its_shape in zip(_input_shapes(graph), theirs, strict=True):
        sizes = zip(own_shape[1:], its_shape[1:], strict=True)
        batch = own_shape[0] or its_shape[0] or _PROBE_EXAMPLES
        shapes.append((batch, *(own or its for own, its in sizes)))

    def probe(size: int) -> Any:
        generator = np.random.default_rng(seed)
        examples = []
        for tensor, shape in zip(graph.inputs, shapes, strict=True):
            known = [axis or size for axis in shape]
            dtype = tf.as_dtype(tensor.dtype)
            values = generator.uniform(size=known) if dtype.is_floating else np.zeros(known)
            examples.append(tf.cast(values, dtype))
        return pack_inputs(graph, examples)

    if all(None not in shape for shape in shapes):
        return probe(0)
    taken: list[int] = []
    failure: Exception | None = None
    for size in _PROBE_SIZES:
        try:
            said = (run or partial(model, training=False))(probe(size))
        except (ValueError, tf.errors.OpError, TeacherError) as error:
            failure = error
            continue
        taken.append(size)
        if _is_finite(said):  # the mean over a map that pooling has left empty is NaN
            return probe(size)
    if not taken:
        raise ModelError(
            f"A model with open input sizes must take one of {_PROBE_SIZES}.",
            received=f"inputs {[shape[1:] for shape in shapes]}, and an error at each size",
            hint="Give it the sizes it is used with, e.g. keras.Input((height, width, channels)).",
        ) from failure
    return probe(taken[0])


def _input_shapes(graph: Any) -> list[tuple[int | None, ...]]:
    return [tuple(tensor.shape) for tensor in graph.inputs]


def _is_finite(outputs: Any) -> bool:
    tensors = [value for value in tf.nest.flatten(outputs) if tf.is_tensor(value)]
    return all(
        bool(tf.reduce_all(tf.math.is_finite(tensor)))
        for tensor in tensors
        if tensor.dtype.is_floating
    )


def are_probabilities(values: Any, tolerance: float = 1e-3) -> bool:
    """Whether no row is below 0 and every row sums to one; one unit alone does not tell.

    Args:
        values: `[batch, classes]`.
        tolerance: How far from one a row's sum may be.
    """
    values = np.asarray(values, np.float64)
    if values.ndim < 2 or values.shape[-1] < 2 or np.min(values) < 0:
        return False
    return bool(np.allclose(values.sum(axis=-1), 1.0, atol=tolerance))


def refuse_probabilities(logits: tf.Tensor, *, role: str, hint: str = "") -> None:
    """Refuses outputs that are probabilities although nothing says how to undo them.

    Args:
        logits: `[batch, classes]`, what is about to be taken for logits.
        role: "student" or "teacher", for the message.
        hint: What else to do about it than to return logits.

    Raises:
        ModelError: Every row is non-negative and sums to one.
    """
    if are_probabilities(logits):
        raise ModelError(
            f"`{role}` must return logits.",
            received="outputs that are probabilities: no row below 0, every row summing to 1",
            hint=hint
            or "Return what is before the softmax; or log(probabilities), which is as good.",
        )


def architecture(model: Any) -> list[Any]:
    """What a functional model is built of, without the names that Keras numbers at random.

    Args:
        model: Functional or built Sequential model of either Keras.

    Returns:
        Class, settings and the positions of the layers before it, for every layer; for
        fingerprints.
    """
    positions = {layer.name: index for index, layer in enumerate(model.layers)}
    described = []
    for layer in model.layers:
        config = layer.get_config()
        inner = architecture(layer) if is_functional(layer) else _without_names(config)
        before = [
            positions[origin.name]
            for node in layer._inbound_nodes
            for origin in _origins(node)
            if origin.name in positions
        ]
        described.append([type(layer).__name__, inner, before])
    return described


def _origins(node: Any) -> list[Any]:
    if hasattr(node, "parent_nodes") and hasattr(node, "operation"):  # Keras 3
        return [parent.operation for parent in node.parent_nodes]
    layers = node.inbound_layers
    return list(layers) if isinstance(layers, (list, tuple)) else [layers]


def _without_names(config: Any) -> Any:
    if isinstance(config, dict):
        named = len(config) > 1  # a dtype policy has its name for its only setting
        kept = {key: value for key, value in config.items() if not (named and key == "name")}
        return {key: _without_names(value) for key, value in kept.items()}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config if isinstance(config, (str, int, float, bool, type(None))) else repr(config)

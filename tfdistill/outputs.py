"""Reading logits and features from a model in one forward pass.

Distillation is stated on logits (Hinton 2015, section 2), but many models end in a softmax or
a sigmoid. `ModelView` finds that out from the model's graph and reads the logits from before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError
from tfdistill.losses import Outputs, Shapes

_PROBABILITIES = ("softmax", "sigmoid")
_PROBE_EXAMPLES = 4


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
    if not isinstance(model, (tf_keras.Model, keras.Model)):
        return False
    # A subclassed Keras 3 model answers `inputs` with None or raises, a tf_keras one with None.
    return bool(getattr(model, "inputs", None)) and bool(getattr(model, "outputs", None))


def find_layer(model: Any, name: str, *, role: str) -> Any:
    """The layer called `name`, or the pruning or quantization wrapper around it.

    Args:
        model: A functional model.
        name: The layer's name in the model as the user built it.
        role: What the model is called in the error: "student" or "teacher".

    Raises:
        ModelError: The model has no such layer; the message gives the nearest names.
    """
    names = {}
    for layer in model.layers:
        inner = getattr(layer, "layer", None)
        names[layer.name] = layer
        if inner is not None:
            names.setdefault(inner.name, layer)
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    hint = f"The nearest names are: {', '.join(near)}." if near else f"It has: {', '.join(names)}."
    raise ModelError(f"`{name}` must be a layer of the {role}.", received=repr(name), hint=hint)


def _final_activation(layer: Any) -> tuple[str, bool]:
    """The activation a model's last layer ends in, and whether the layer is nothing else."""
    kind = type(layer).__name__
    if kind in ("Softmax", "Sigmoid"):  # the layer, or Keras 3's operation of the same name
        return kind.lower(), True
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "linear")
    return (name, kind == "Activation") if name in _PROBABILITIES else ("linear", False)


class ModelView:
    """One forward pass of a functional model, read as predictions, logits and features.

    Args:
        model: A Functional or built Sequential model, Keras 3 or tf_keras, with one output.
        role: "student" or "teacher", for messages.
        layers: Names of the layers whose outputs are wanted as features.

    Attributes:
        activation: What the model ends in: "linear", "softmax" or "sigmoid".
        shapes: Shapes of logits and features without the batch axis.
        note: A sentence saying how logits are recovered, or "".

    Raises:
        ModelError: The model has several outputs, lacks a layer, or uses one more than once.
    """

    def __init__(self, model: Any, *, role: str, layers: Sequence[str] = ()) -> None:
        if len(model.outputs) != 1:
            raise ModelError(
                f"`{role}` must have one output.",
                received=f"{len(model.outputs)} outputs",
                hint="Make a model of the output to distil: keras.Model(model.inputs, output).",
            )
        self.model = model
        output = model.outputs[0]
        history = output._keras_history
        last = getattr(history, "operation", None) or history.layer
        self.activation, separate = _final_activation(last)
        self._recover: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = lambda _, logits: logits
        before = output
        if self.activation != "linear":
            node = last._inbound_nodes[history.node_index]
            tensors = node.input_tensors if hasattr(node, "input_tensors") else node.keras_inputs
            before = tensors[0] if isinstance(tensors, (list, tuple)) else tensors
            if not separate:
                self._recover = lambda _, features: _without_activation(last, features)
        elif isinstance(last, (tf_keras.Model, keras.Model)):
            self._recover = self._recover_from_nested(last)
        found = [find_layer(model, name, role=role) for name in layers]
        features = [
            _only_output(layer, name, role) for layer, name in zip(found, layers, strict=True)
        ]
        api = keras if isinstance(model, keras.Model) else tf_keras
        self._extractor = api.Model(model.inputs, [output, before, *features])
        self._layers = tuple(layers)
        self.shapes = Shapes(
            logits=tuple(output.shape[1:]),
            features={n: tuple(t.shape[1:]) for n, t in zip(layers, features, strict=True)},
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
            The model's own output `[batch, classes]`, and `Outputs` with its logits `[batch,
            classes]` and the features by layer name.
        """
        predictions, before, *features = self._extractor(inputs, training=training)
        logits = self._recover(predictions, before)
        return predictions, Outputs(logits, dict(zip(self._layers, features, strict=True)))

    def _recover_from_nested(self, nested: Any) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """The inner graph is out of an extractor's reach: invert the activation instead."""
        while isinstance(nested, (tf_keras.Model, keras.Model)) and is_functional(nested):
            history = nested.outputs[0]._keras_history
            nested = getattr(history, "operation", None) or history.layer
        self.activation = _final_activation(nested)[0]
        if self.activation == "linear":
            return lambda _, logits: logits
        return lambda probabilities, _: _inverse(probabilities, self.activation)


def _without_activation(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    """What `layer` computes before its own activation, with its own (live) weights."""
    activation = layer.activation
    try:
        layer.activation = None if activation is None else _linear
        return layer(inputs)
    finally:
        layer.activation = activation


def _linear(values: tf.Tensor) -> tf.Tensor:
    return values


def _inverse(probabilities: tf.Tensor, activation: str) -> tf.Tensor:
    """Logits up to a constant that softmax does not see; exact down to float32's smallest."""
    probabilities = tf.cast(probabilities, tf.float32)
    smallest = np.finfo(np.float32).tiny
    logits = tf.math.log(tf.maximum(probabilities, smallest))
    if activation == "sigmoid":
        logits -= tf.math.log(tf.maximum(1.0 - probabilities, smallest))
    return logits


def _only_output(layer: Any, name: str, role: str) -> Any:
    try:
        return layer.output
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"`{name}` must be used once in the {role}, so that it has one output.",
            received=f"layer {name!r}, which is used several times or not at all",
            hint="Name another layer for the feature loss.",
        ) from error


def probe_inputs(inputs: Sequence[Any], *, seed: int = 0) -> list[tf.Tensor]:
    """A few random examples of the shapes and dtypes a model takes, for a look at its outputs.

    Args:
        inputs: Symbolic inputs of a functional model; unknown axes become 8.
        seed: Seed of the random numbers.
    """
    generator = np.random.default_rng(seed)
    examples = []
    for tensor in inputs:
        shape = (_PROBE_EXAMPLES, *(8 if axis is None else axis for axis in tensor.shape[1:]))
        dtype = tf.as_dtype(tensor.dtype)
        values = generator.uniform(size=shape) if dtype.is_floating else np.zeros(shape)
        examples.append(tf.cast(values, dtype))
    return examples


def refuse_probabilities(logits: tf.Tensor, *, role: str) -> None:
    """Refuses outputs that are probabilities although nothing says how to undo them.

    Args:
        logits: `[batch, classes]`, what is about to be taken for logits.
        role: "student" or "teacher", for the message.

    Raises:
        ModelError: Every row is non-negative and sums to one.
    """
    values = np.asarray(logits, np.float64)
    if values.ndim < 2 or values.shape[-1] < 2 or np.min(values) < 0:
        return
    if np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        raise ModelError(
            f"`{role}` must return logits.",
            received="outputs that are probabilities: no row below 0, every row summing to 1",
            hint="Return what is before the softmax; or log(probabilities), which is as good.",
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
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config if isinstance(config, (str, int, float, bool, type(None))) else repr(config)

"""Reading logits and features from a model in one forward pass.

Distillation is stated on logits (Hinton 2015, section 2), but many models end in a softmax or
a sigmoid. `ModelView` finds that out from the model's graph and reads the logits from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.model_graphs import graph_of, graph_or_raise, pack_inputs
from tfdistill.errors import ModelError, TeacherError
from tfdistill.heads import Call, Ending, Head, ending_of, output_names
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.layers import LayerOutput
from tfdistill.named import one_or_all
from tfdistill.readings import layers_before, reading_of

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


class ModelView:
    """One forward pass of a functional model, read as predictions, logits and features.

    Args:
        model: A Functional or built Sequential model, Keras 3 or tf_keras.
        role: "student" or "teacher", for messages.
        layers: Names of what losses read of layers, see `tfdistill.readings`.
        several: Whether it may have several outputs.

    Attributes:
        heads: Its outputs by name.
        shapes: Shapes of logits and features without the batch axis.
        note: A sentence saying how logits are recovered, or "".

    Raises:
        ModelError: The model has several outputs and may not, lacks a layer, uses one more than
            once, or ends in an activation that nothing can be read before.
    """

    def __init__(
        self, model: Any, *, role: str, layers: Sequence[str] = (), several: bool = False
    ) -> None:
        if len(model.outputs) != 1 and not several:
            raise ModelError(
                f"`{role}` must have one output.",
                received=f"{len(model.outputs)} outputs",
                hint="Make a model of the output to distil: keras.Model(model.input, output).",
            )
        self.model = model
        self._nested: dict[Call, ModelView] = {}
        self._endings: dict[str, Ending] = {}
        self.heads: dict[str, Head] = {}
        for name, output in zip(output_names(model), model.outputs, strict=True):
            ending = ending_of(output, role, partial(self._view_of, role=role))
            self._endings[name] = ending
            self.heads[name] = Head(name, ending.activation, tuple(output.shape[1:]))
        self._readings = {name: reading_of(model, name, role=role) for name in layers}
        heads = [tensor for ending in self._endings.values() for tensor in ending.tensors]
        read = [tensor for reading in self._readings.values() for tensor in reading.tensors]
        api = keras if isinstance(model, keras.Model) else tf_keras
        self._extractor = api.Model(graph_or_raise(model).input, [*heads, *read])
        self._refuse_second_calls(role)
        features = {name: reading.shape for name, reading in self._readings.items()}
        logits = {name: head.shape for name, head in self.heads.items()}
        endings = {name: head.activation for name, head in self.heads.items()}
        self.shapes = Shapes(one_or_all(logits), features, one_or_all(endings))
        notes = {
            name: f"The {role} ends in {head.activation}; distillation reads the logits before it."
            for name, head in self.heads.items()
            if head.activation != "linear"
        }
        one = len(self.heads) == 1
        self.note = " ".join(note if one else f"{name}: {note}" for name, note in notes.items())

    @property
    def activation(self) -> str:
        """What a model with one output ends in: "linear", "softmax" or "sigmoid"."""
        (head,) = self.heads.values()
        return head.activation

    @property
    def classes(self) -> int | None:
        """Number of units of a model with one output, `None` where the model leaves it open."""
        (head,) = self.heads.values()
        return head.classes

    def __call__(self, inputs: Any, *, training: bool) -> tuple[Any, Outputs]:
        """Runs the model once.

        Args:
            inputs: What the model takes, `[batch, ...]`.
            training: As in Keras.

        Returns:
            The model's own output `[batch, ..., classes]`, and `Outputs` with its logits, the
            features by layer name, and the Keras masks of time steps. Of several outputs the
            first, the logits and their masks are by name.
        """
        values = iter(tf.nest.flatten(self._extractor(inputs, training=training)))
        called: dict[Call, Any] = {}
        predictions, logits, steps = {}, {}, {}
        for name, ending in self._endings.items():
            own = [*islice(values, len(ending.tensors))]
            predictions[name], logits[name] = ending.finish(own, training, called)
            # Where Keras looks for it, too. Without time steps it would be of no axis of logits.
            mask = getattr(predictions[name], "_keras_mask", None)
            steps[name] = () if mask is None or logits[name].shape.rank <= 2 else mask
        features, masks = {}, {}
        for name, reading in self._readings.items():
            features[name], of_feature = reading([*islice(values, len(reading.tensors))])
            if of_feature is not None:
                masks[name] = of_feature
        outputs = Outputs(one_or_all(logits), features, mask=one_or_all(steps), masks=masks)
        return one_or_all(predictions), outputs

    def endings(self, values: Sequence[Any], training: bool) -> list[tuple[Any, Any]]:
        """Predictions and logits of each output, in their order.

        Args:
            values: Of the model's inputs, in the order in which its Keras counts them.
            training: As in Keras.
        """
        predictions, said = self(pack_inputs(graph_of(self.model), [*values]), training=training)
        if len(self.heads) == 1:
            return [(predictions, said.logits)]
        return [(predictions[name], said.logits[name]) for name in self.heads]

    def layers(self) -> list[LayerOutput]:
        """The layers before its logits, in their order."""
        logits = [tensor for ending in self._endings.values() for tensor in ending.logits]
        return layers_before(self.model, [*self.model.outputs, *logits])

    def _view_of(self, call: Call, role: str) -> ModelView:
        if call not in self._nested:
            self._nested[call] = ModelView(call[0], role=role, several=True)
        return self._nested[call]

    def _refuse_second_calls(self, role: str) -> None:
        """Refuses an output behind another one that is computed once more for its logits."""
        computed = {id(layer) for layer in self._extractor.layers}
        for name, ending in self._endings.items():
            again = id(ending.called) in computed and ending.must_be_called_once
            if again and len(self.heads) > 1:
                raise ModelError(
                    f"`{role}` must have the {ending.activation} of an output that others are made "
                    "of as a layer of its own.",
                    received=f"the output {name!r}, which ends in {ending.called.name!r}",
                    hint="Let that end in logits, and put a Softmax or Activation layer behind it.",
                )


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


def refuse_probabilities(logits: Any, *, role: str, hint: str = "") -> None:
    """Refuses outputs that are probabilities although nothing says how to undo them.

    Args:
        logits: `[batch, classes]`, what is about to be taken for logits; or such by output.
        role: "student" or "teacher", for the message.
        hint: What else to do about it than to return logits.

    Raises:
        ModelError: Every row is non-negative and sums to one.
    """
    if isinstance(logits, Mapping):
        for each in logits.values():
            refuse_probabilities(each, role=role, hint=hint)
    elif are_probabilities(logits):
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

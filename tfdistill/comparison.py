"""An artifact and the model it came from, both run over a whole test set.

For classifiers; another task adds its own function beside `compare_classifiers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError
from tfdistill.litert.flatbuffer import Inspection, TensorInterface
from tfdistill.litert.runtime import inputs_by_name, signature_names

_BATCH = 256


class Runnable(Protocol):
    """An artifact of any kind, ready to run; classes of `litert` and `saved_artifacts` are."""

    @property
    def inspection(self) -> Inspection:
        """What is in it."""

    @property
    def inputs(self) -> tuple[TensorInterface, ...]:
        """What it takes."""

    @property
    def outputs(self) -> tuple[TensorInterface, ...]:
        """What it gives."""

    def predict(self, inputs: Any) -> dict[str, np.ndarray]:
        """Runs a batch: input name to `[batch, ...]`; gives output name to float32."""


@dataclass(frozen=True)
class Comparison:
    """What artifact and model answered, in the order of the test set.

    Attributes:
        classes: Number of classes.
        outputs: The artifact's, float32 `[examples, units]`.
        reference_outputs: The model's, float32 `[examples, units]`.
        predictions: The artifact's classes, int64 `[examples]`.
        reference_predictions: The model's classes, int64 `[examples]`.
        labels: The true classes, int64 `[examples]`.
        first: The inputs of the first example, by name, each `[1, ...]`.
    """

    classes: int
    outputs: np.ndarray
    reference_outputs: np.ndarray
    predictions: np.ndarray
    reference_predictions: np.ndarray
    labels: np.ndarray
    first: dict[str, np.ndarray]


def compare_classifiers(artifact: Runnable, model: Any, data: Any) -> Comparison:
    """Runs both over a test set, batch by batch; inputs are not kept.

    Args:
        artifact: With one output `[batch, classes]`, or `[batch, 1]` for two classes.
        model: A Keras model, or a function from a batch of inputs to `[batch, classes]`.
        data: Batches `(x, y)` or `(x, y, weights)`, or one such tuple of arrays.

    Raises:
        DataError: The data is empty or endless, has other shapes, or labels outside the classes.
        ModelError: They are no such classifiers.
    """
    classes = _classes(artifact)
    names = _input_names(model, artifact)
    reference = _reference(model, signature_names(names), artifact)
    output = artifact.outputs[0]
    dtypes = _dtypes(artifact)
    outputs, reference_outputs, labels = [], [], []
    first: dict[str, np.ndarray] = {}
    for x, y in _batches(data):
        inputs = {
            name: values.astype(dtypes.get(name, values.dtype))
            for name, values in inputs_by_name(x, names).items()
        }
        outputs.append(artifact.predict(inputs)[output.name])
        reference_outputs.append(reference(inputs))
        if reference_outputs[-1].shape != outputs[-1].shape:
            raise ModelError(
                f"`model` must give outputs as the artifact does: [batch, {output.shape[1]}].",
                received=reference_outputs[-1].shape,
                hint="Give the model that the artifact came from.",
            )
        labels.append(_class_numbers(y, len(outputs[-1]), classes))
        first = first or {name: values[:1].copy() for name, values in inputs.items()}
    if not labels:
        raise DataError("`data` must hold one example or more.", received="no examples")
    ours, theirs = np.concatenate(outputs), np.concatenate(reference_outputs)
    threshold = 0.5 if output.name in artifact.inspection.probabilities else 0.0
    return Comparison(
        classes=classes,
        outputs=ours,
        reference_outputs=theirs,
        predictions=_predicted(ours, threshold),
        reference_predictions=_predicted(theirs, threshold),
        labels=np.concatenate(labels),
        first=first,
    )


def _classes(artifact: Runnable) -> int:
    shapes = [spec.shape for spec in artifact.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ModelError(
            "`path` must be a classifier with one output [1, classes].",
            received=", ".join(f"{spec.name} {spec.shape}" for spec in artifact.outputs),
            hint="Export a model of the output to certify.",
        )
    return max(2, shapes[0][1])


def _predicted(outputs: np.ndarray, threshold: float) -> np.ndarray:
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > threshold).astype(np.int64)
    return outputs.argmax(axis=1)


def _input_names(model: Any, artifact: Runnable) -> list[str]:
    """The inputs' names in the model's order; one input needs no name."""
    if len(artifact.inputs) > 1 and isinstance(model, tf_keras.Model):
        return list(model.input_names)
    if len(artifact.inputs) > 1 and isinstance(model, keras.Model):
        return [tensor._keras_history.operation.name for tensor in model.inputs]
    return [spec.name for spec in artifact.inputs]


def _dtypes(artifact: Runnable) -> dict[str, str]:
    """Input name to the type that both are fed: whole numbers such as pixels become float32."""
    return {spec.name: "float32" if spec.takes_numbers else spec.dtype for spec in artifact.inputs}


def _reference(
    model: Any, names: Sequence[str], artifact: Runnable
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """The model as a function from inputs by name to its one output, float32."""
    if not isinstance(model, (tf_keras.Model, keras.Model)):
        if not callable(model):
            raise ModelError(
                "`model` must be a Keras model or a function.", received=type(model).__name__
            )

        def call(inputs: dict[str, np.ndarray]) -> Any:
            tensors = {name: tf.constant(values) for name, values in inputs.items()}
            return model(tensors if len(tensors) > 1 else tensors[names[0]])

    else:
        shapes, dtypes = {spec.name: spec.shape for spec in artifact.inputs}, _dtypes(artifact)
        if set(names) != set(shapes):
            raise ModelError(
                f"`model` must have the artifact's inputs: {', '.join(shapes)}.",
                received=", ".join(names),
                hint="Give the model that the artifact came from.",
            )
        specs = [tf.TensorSpec((None, *shapes[name][1:]), dtypes[name]) for name in names]

        @tf.function
        def forward(*tensors: Any) -> Any:
            inputs = list(tensors) if len(tensors) > 1 else tensors[0]
            structure = getattr(model, "_inputs_struct", None)
            if structure is not None:  # Keras 3 refuses a list where it was built of a dictionary
                inputs = keras.tree.pack_sequence_as(structure, tensors)
            return model(inputs, training=False)

        concrete = forward.get_concrete_function(*specs)

        def call(inputs: dict[str, np.ndarray]) -> Any:
            return concrete(*(tf.constant(inputs[name]) for name in names))

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        results = tf.nest.flatten(call(inputs))
        if len(results) != 1:
            raise ModelError("`model` must have one output.", received=f"{len(results)} outputs")
        return np.asarray(results[0]).astype(np.float32)

    return run


def _batches(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            "`data` must end.",
            received="a data set that repeats without end",
            hint="Use data.take(n) for the number of batches in one pass.",
        )
    if isinstance(data, tuple):
        size = len(data[1]) if len(data) > 1 else 0
        data = [
            tf.nest.map_structure(lambda values: values[at : at + _BATCH], data[:2])  # noqa: B023
            for at in range(0, size, _BATCH)
        ]
    elif not isinstance(data, Iterable):
        raise DataError("`data` must be batches (x, y).", received=type(data).__name__)
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError("`data` must be batches (x, y).", received=type(batch).__name__)
        yield batch[0], batch[1]


def _class_numbers(labels: Any, size: int, classes: int) -> np.ndarray:
    """Labels as class numbers, int64 `[batch]`, from class numbers or one-hot rows."""
    labels = np.asarray(labels)
    if labels.shape == (size, classes):
        return labels.argmax(axis=1).astype(np.int64)
    if labels.size != size:
        raise DataError(
            f"`data` must have labels [batch] or one-hot rows [batch, {classes}].",
            received=labels.shape,
        )
    labels = labels.reshape(-1)
    outside = labels[(labels < 0) | (labels >= classes) | (labels != np.floor(labels))]
    if outside.size:
        raise DataError(
            f"`data` must have labels from 0 to {classes - 1}: the artifact has {classes} classes.",
            received=outside[0].item(),
        )
    return labels.astype(np.int64)

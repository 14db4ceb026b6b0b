"""An artifact and the model it came from, both run over a whole test set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError
from tfdistill.evaluation import decided
from tfdistill.heads import output_names
from tfdistill.litert.flatbuffer import Inspection, TensorInterface
from tfdistill.litert.runtime import inputs_by_name, signature_names
from tfdistill.named import Kind
from tfdistill.outputs import are_probabilities
from tfdistill.plans import by_output
from tfdistill.regression import numbers_of

_BATCH = 256
_OF_NUMBERS = (
    "That its outputs are numbers is known of an artifact that a pipeline wrote, where "
    "td.losses.RegressionTargets taught the student."
)


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
class Compared:
    """What artifact and model answered at one output, in the order of the test set.

    Attributes:
        name: Its name in the artifact.
        classes: Number of classes, of labels or of numbers.
        outputs: The artifact's, float32 `[examples, units]`.
        reference_outputs: The model's, float32 `[examples, units]`.
        predictions: The artifact's classes, int64 `[examples]`; of several labels that may be true
            together its yes, 1, or no, 0, to each, int64 `[examples, labels]`; of numbers these.
        reference_predictions: The model's, in the same form.
        labels: What is true, in the same form; `None` where the set has no labels.
        kind: What it answers.
    """

    name: str
    classes: int
    outputs: np.ndarray
    reference_outputs: np.ndarray
    predictions: np.ndarray
    reference_predictions: np.ndarray
    labels: np.ndarray | None
    kind: Kind = "classes"


@dataclass(frozen=True)
class Comparison:
    """What artifact and model answered at all outputs.

    Attributes:
        outputs: By the names that the model has for them; of one output under the name "".
        examples: Size of the test set.
        first: The inputs of the first example, by name, each `[1, ...]`.
    """

    outputs: Mapping[str, Compared]
    examples: int
    first: dict[str, np.ndarray]


def compare(
    artifact: Runnable, model: Any, data: Any, kinds: Mapping[str, Kind] | None = None
) -> Comparison:
    """Runs both over a test set, batch by batch; inputs are not kept.

    Args:
        artifact: With outputs `[batch, classes]`, or `[batch, 1]` for two classes; or
            `[batch, numbers]`.
        model: A Keras model, or a function from a batch of inputs to `[batch, classes]`; of several
            outputs to a dictionary by name.
        data: Batches `(x, y)` or `(x, y, weights)`, or one such tuple of arrays. Of several outputs
            `y` is by name, and may lack some, or in their order.
        kinds: What outputs are known to answer, by their names in the artifact. Labels that are
            rows with several ones, or none, say that it is "labels", too, which may be true
            together: yes above 0.5.

    Raises:
        DataError: The data is empty or endless, has other shapes, or labels outside the classes.
        ModelError: They have no such outputs.
    """
    kinds = kinds or {}
    classes = _classes(artifact, kinds)
    names = _input_names(model, artifact)
    ends = _ends(model, artifact)  # the model's names of the outputs to the artifact's
    reference = _reference(model, signature_names(names), artifact, ends)
    dtypes = _dtypes(artifact)
    ours: dict[str, list[np.ndarray]] = {name: [] for name in ends}
    theirs: dict[str, list[np.ndarray]] = {name: [] for name in ends}
    units = {spec.name: spec.shape[1] for spec in artifact.outputs}
    labels: dict[str, _Labels | _Numbers] = {
        name: _Numbers(units[end], name)
        if kinds.get(end) == "numbers"
        else _Labels(units[end], classes[end], kinds.get(end) == "labels", name)
        for name, end in ends.items()
    }
    first: dict[str, np.ndarray] = {}
    for x, y in _batches(data):
        inputs = {
            name: values.astype(dtypes.get(name, values.dtype))
            for name, values in inputs_by_name(x, names).items()
        }
        answers, expected = artifact.predict(inputs), reference(inputs)
        for name, end in ends.items():
            ours[name].append(answers[end])
            theirs[name].append(expected[name])
            if theirs[name][-1].shape != ours[name][-1].shape:
                raise ModelError(
                    "`model` must give outputs as the artifact does: "
                    f"{f'{name} ' if name else ''}[batch, {ours[name][-1].shape[1]}].",
                    received=theirs[name][-1].shape,
                    hint="Give the model that the artifact came from.",
                )
        for name, given in _labels_by_output(y, tuple(ends)).items():
            labels[name].add(given, len(ours[name][-1]))
        first = first or {name: values[:1].copy() for name, values in inputs.items()}
    if not first:
        raise DataError("`data` must hold one example or more.", received="no examples")
    if not any(each.examples for each in labels.values()):
        raise DataError(
            "`data` must have labels for an output.", received=f"none for {', '.join(ends)}"
        )
    compared = {}
    for name, end in ends.items():
        threshold = 0.5 if end in artifact.inspection.probabilities else 0.0
        outputs, references = np.concatenate(ours[name]), np.concatenate(theirs[name])
        count, kind = labels[name].examples, labels[name].kind
        if count and count != len(outputs):
            raise DataError(
                f"`data` must have labels for the output {name!r} in every batch, or in none.",
                received=f"{count} labels for {len(outputs)} examples",
            )
        if kind == "labels" and threshold and are_probabilities(references):
            raise DataError(
                f"{labels[name].who} must have class numbers or one-hot rows for an output that "
                "ends in a softmax.",
                received="rows with several ones, or none",
                hint="Of a softmax's classes one is true. Labels that may be true together need "
                "sigmoids, or logits.",
            )
        compared[name] = Compared(
            name=end,
            classes=classes[end],
            outputs=outputs,
            reference_outputs=references,
            predictions=_predicted(outputs, threshold, kind),
            reference_predictions=_predicted(references, threshold, kind),
            labels=labels[name].joined(),
            kind=kind,
        )
    return Comparison(compared, len(outputs), first)


def _classes(artifact: Runnable, kinds: Mapping[str, Kind]) -> dict[str, int]:
    """Number of classes, or of what else it answers, by the output's name in the artifact."""
    if any(len(spec.shape) != 2 for spec in artifact.outputs):
        raise ModelError(
            "`path` must be a model with one output [1, classes], or several.",
            received=", ".join(f"{spec.name} {spec.shape}" for spec in artifact.outputs),
            hint="Export a model of the outputs to certify.",
        )
    return {
        spec.name: spec.shape[1] if kinds.get(spec.name) == "numbers" else max(2, spec.shape[1])
        for spec in artifact.outputs
    }


def _ends(model: Any, artifact: Runnable) -> dict[str, str]:
    """Names of the model's outputs to the artifact's; of one output "" to its."""
    specs = [spec.name for spec in artifact.outputs]
    if len(specs) == 1:
        return {"": specs[0]}
    if not isinstance(model, (tf_keras.Model, keras.Model)):
        return {name: name for name in specs}
    names = output_names(model)
    ends = dict(zip(names, signature_names(names), strict=True))
    if {*ends.values()} != {*specs}:
        raise ModelError(
            f"`model` must have the artifact's outputs: {', '.join(specs)}.",
            received=", ".join(names),
            hint="Give the model that the artifact came from.",
        )
    return ends


def _labels_by_output(labels: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Labels of a batch by the output that they are of."""
    if len(names) == 1:
        if isinstance(labels, Mapping):
            raise DataError(
                "`data` must have one tensor of labels: the artifact has one output.",
                received=f"labels by name: {', '.join(labels)}",
            )
        return {names[0]: labels}
    if not isinstance(labels, (Mapping, tuple, list)):
        raise DataError(
            "`data` must have labels by output, of which the artifact has several.",
            received=f"{type(labels).__name__} for {', '.join(names)}",
            hint="Give (x, {name: labels, ...}); outputs without labels may be left out. On the "
            "command line, --output says which one the labels are of.",
        )
    found = by_output(labels, names, "labels", error=DataError)
    return {name: each for name, each in found.items() if each is not None}


def _predicted(outputs: np.ndarray, threshold: float, kind: Kind) -> np.ndarray:
    if kind == "numbers":
        return outputs
    if kind == "labels":
        return decided(outputs, threshold)
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
    model: Any, names: Sequence[str], artifact: Runnable, ends: Mapping[str, str]
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The model as a function from inputs by name to its outputs by name, float32."""
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

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        said = call(inputs)
        results = tf.nest.flatten(said)
        if len(ends) == 1 and len(results) != 1:
            raise ModelError("`model` must have one output.", received=f"{len(results)} outputs")
        if len(ends) > 1 and not isinstance(model, (tf_keras.Model, keras.Model)):
            if not isinstance(said, Mapping) or {*said} != {*ends}:
                raise ModelError(
                    f"`model` must return a dictionary of its outputs: {', '.join(ends)}.",
                    received=", ".join(said) if isinstance(said, Mapping) else type(said).__name__,
                )
            results = [said[name] for name in ends]
        found = zip(ends, results, strict=True)
        return {name: np.asarray(each).astype(np.float32) for name, each in found}

    return run


def _batches(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            "`data` must end.",
            received="a data set that repeats without end",
            hint="Use data.take(n) for the number of batches in one pass.",
        )
    if isinstance(data, tuple):
        size = len(tf.nest.flatten(data[1])[0]) if len(data) > 1 else 0
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


class _Labels:
    """The labels of one output, batch by batch.

    Args:
        units: Of the output.
        classes: Number of its classes.
        multi_label: Whether it is known to be of several labels that may be true together.
        output: Its name, where there are several.

    Attributes:
        examples: How many have labels.
        multi_label: Whether it is so, as known or as rows have said since.
        who: What errors call the data.
    """

    @property
    def kind(self) -> Kind:
        """What the output answers, by what is known."""
        return "labels" if self.multi_label else "classes"

    def __init__(self, units: int, classes: int, multi_label: bool, output: str) -> None:
        self.examples = 0
        self.multi_label = multi_label
        self.who = _who(output)
        self._units, self._classes, self._known = units, classes, multi_label
        self._numbers: list[np.ndarray] = []
        self._decided: list[np.ndarray] = []  # not the rows themselves, which are larger

    def add(self, given: Any, size: int) -> None:
        """Takes those of a batch of so many examples.

        Raises:
            DataError: They are neither class numbers nor rows, or outside of what they may be.
        """
        labels = np.asarray(given)
        if labels.shape == (size, self._units) and self._units > 1:
            inside = bool(((labels >= 0) & (labels <= 1)).all())
            if not inside:
                what = "several that may be true together" if self._known else "classes"
                raise DataError(
                    f"{self.who} must have labels in [0, 1], for an output of {what}.",
                    received=labels[~((labels >= 0) & (labels <= 1)).all(axis=1)][0].tolist(),
                    hint=_OF_NUMBERS,
                )
            sums = labels.sum(axis=1, dtype=np.float64)
            self.multi_label |= bool((np.abs(sums - 1) > 1e-3).any())
            self._decided.append(decided(labels, 0.5).astype(bool))
        elif self._known:
            raise DataError(
                f"{self.who} must have rows of labels [batch, {self._units}], any number of which "
                "may be true.",
                received=labels.shape,
                hint="The artifact says that each of its outputs is a yes or no of its own.",
            )
        self._numbers.append(_class_numbers(labels, size, self._classes, self.who))
        self.examples += size

    def joined(self) -> np.ndarray | None:
        """Class numbers, or rows of 0 and 1; `None` where there are no labels.

        Raises:
            DataError: Some were rows of several labels, others class numbers.
        """
        if not self.examples:
            return None
        if not self.multi_label:
            return np.concatenate(self._numbers)
        if len(self._decided) != len(self._numbers):
            raise DataError(
                f"{self.who} must have rows of labels in every batch, or class numbers in each.",
                received="rows with several ones, or none, and class numbers",
            )
        return np.concatenate(self._decided).astype(np.int64)


class _Numbers:
    """The numbers that one output is to give, batch by batch.

    Args:
        units: Of the output.
        output: Its name, where there are several.

    Attributes:
        examples: How many have labels.
        kind: "numbers".
        who: What errors call the data.
    """

    kind: Kind = "numbers"

    def __init__(self, units: int, output: str) -> None:
        self.examples = 0
        self.who = _who(output)
        self._units = units
        self._rows: list[np.ndarray] = []

    def add(self, given: Any, size: int) -> None:
        """Takes those of a batch of so many examples.

        Raises:
            DataError: They are not so many finite numbers.
        """
        labels = np.asarray(given)
        if labels.shape != (size, self._units) and (labels.shape, self._units) != ((size,), 1):
            raise DataError(
                f"{self.who} must have labels [batch, {self._units}]: the artifact gives so many "
                "numbers.",
                received=labels.shape,
            )
        rows = numbers_of(labels)
        if not np.isfinite(rows).all():
            raise DataError(
                f"{self.who} must have labels that are finite numbers.",
                received=float(rows[~np.isfinite(rows)][0]),
                hint="Leave examples without a label out.",
            )
        self._rows.append(rows)
        self.examples += size

    def joined(self) -> np.ndarray | None:
        """Float32 `[examples, units]`; `None` where there are no labels."""
        return np.concatenate(self._rows) if self._rows else None


def _who(output: str) -> str:
    """What errors call the data."""
    return f"`data`, for the output {output!r}," if output else "`data`"


def _class_numbers(labels: np.ndarray, size: int, classes: int, who: str) -> np.ndarray:
    """Labels as class numbers, int64 `[batch]`, from class numbers or one-hot rows."""
    if labels.shape == (size, classes):
        return labels.argmax(axis=1).astype(np.int64)
    if labels.size != size:
        raise DataError(
            f"{who} must have labels [batch] or one-hot rows [batch, {classes}].",
            received=labels.shape,
        )
    labels = labels.reshape(-1)
    outside = labels[(labels < 0) | (labels >= classes) | (labels != np.floor(labels))]
    if outside.size:
        raise DataError(
            f"{who} must have labels from 0 to {classes - 1}: the artifact has {classes} classes.",
            received=outside[0].item(),
            hint=_OF_NUMBERS if outside[0] % 1 else "",
        )
    return labels.astype(np.int64)

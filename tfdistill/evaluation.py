"""What a model says about a whole test set, and how right it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import DataError
from tfdistill.named import Kind, by_name, one_or_all
from tfdistill.outputs import predicted_classes
from tfdistill.regression import errors_of_numbers, explained, explained_of_each, numbers_of


class Predictions(Protocol):
    """What can be compared with what another model says about the same test set."""

    @property
    def predictions(self) -> Any:
        """The predicted class of every example, int64 `[examples]`; of several outputs by name.

        Of an output of several labels `[examples, labels]`: 1 for each that is predicted, else 0;
        of numbers these, float32 `[examples, numbers]`.
        """

    @property
    def labels(self) -> Any:
        """What is true, in the same form; by name, of those outputs that have labels."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What outputs answer, by name; of the only output under "". Those not there: classes."""


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a test set, in the order of the set.

    Of several outputs both are by name: logits of those that the model has, labels of those that
    the set has.

    Attributes:
        logits: float32 `[examples, classes]`.
        labels: int64 `[examples]`; of an output of several labels `[examples, labels]`, 0 or 1; of
            numbers float32 `[examples, numbers]`.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.
    """

    logits: Any
    labels: Any
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, where there are several; else none."""
        return tuple(self.logits) if isinstance(self.logits, Mapping) else ()

    def of(self, output: str) -> Evaluation:
        """That of one output of several, which the model has and the set has labels for."""
        found = {"": self.kinds[output]} if output in self.kinds else {}
        return Evaluation(self.logits[output], self.labels[output], found)

    @property
    def predictions(self) -> Any:
        """See `Predictions`."""
        found = {
            name: _PREDICTED[self.kinds.get(name, "classes")](logits)
            for name, logits in by_name(self.logits).items()
        }
        return found if self.names else one_or_all(found)

    @property
    def accuracy(self) -> float:
        """Share of examples whose predicted class is the label; or of labels decided right.

        Of numbers R², the share of their variance that is explained, see `regression`. Of several
        outputs: of examples on which all classes, and all labels, are right; NaN where the model
        does not have all of these that are labelled, or there are none.
        """
        return share_of_right(self.predictions, self.labels, self.kinds)

    @property
    def per_class_accuracy(self) -> tuple[float, ...]:
        """Accuracy on the examples of each class; NaN for a class the set does not hold.

        Of several labels each one's, on all examples; so of numbers. Of several outputs nothing:
        see `of`.
        """
        if self.names:
            return ()
        if self.kinds.get("") == "numbers":
            return explained_of_each(self.logits, self.labels)
        right = self.predictions == self.labels
        if self.kinds.get("") == "labels":
            return tuple(right.mean(axis=0).tolist())
        classes = max(2, self.logits.shape[-1])
        return tuple(
            float(np.mean(right[self.labels == c])) if np.any(self.labels == c) else float("nan")
            for c in range(classes)
        )

    @property
    def mean_absolute_errors(self) -> tuple[float, ...]:
        """Of numbers, each in the unit of its labels; else, and of several outputs, nothing."""
        if self.kinds.get("") != "numbers" or self.names:
            return ()
        return errors_of_numbers(self.logits, self.labels)


def share_of_right(predictions: Any, labels: Any, kinds: Mapping[str, Kind]) -> float:
    """Share of examples on which the predicted classes of all outputs are the labels.

    Of one output with several labels: of its labels, over all examples; of several outputs an
    example is right where each of its labels is, too. Of numbers alone R²; of several outputs those
    of numbers do not count.

    Args:
        predictions: As in `Predictions`; of several outputs by name.
        labels: The same, of those that have labels; NaN is the share where none has.
        kinds: As in `Predictions`.
    """
    several = isinstance(predictions, Mapping)
    found, wanted = by_name(predictions), by_name(labels)
    if kinds.get("") == "numbers" and not several:
        return explained(found[""], wanted[""])
    wanted = {name: each for name, each in wanted.items() if kinds.get(name) != "numbers"}
    if not wanted or not wanted.keys() <= found.keys():
        return float("nan")
    return _share([found[name] == wanted[name] for name in wanted], several=several)


def _share(same: Sequence[np.ndarray], *, several: bool) -> float:
    """Share of examples, or of the only output's labels, on which all outputs are the same."""
    if not several:
        return float(np.mean(same[0]))
    return float(
        np.mean(np.all([each.reshape(len(each), -1).all(axis=1) for each in same], axis=0))
    )


def agreement(one: Predictions, other: Predictions) -> float:
    """Share of examples on which both predict the same class; or of labels, for several labels.

    Of numbers R², with the other's as what is to be explained. Of several outputs: the same classes
    and labels, for those that both have; NaN where there are none.

    Raises:
        DataError: They did not see the same examples in the same order.
    """
    for name, labels in by_name(one.labels).items():
        require_same_labels(labels, by_name(other.labels)[name])
    ours, theirs = by_name(one.predictions), by_name(other.predictions)
    both = {name: each for name, each in theirs.items() if name in ours}
    return share_of_right(one.predictions, one_or_all(both) if "" in both else both, one.kinds)


def require_same_labels(one: np.ndarray, other: np.ndarray) -> None:
    """Checks that two passes over a test set met the same labels.

    Raises:
        DataError: They did not.
    """
    if not np.array_equal(one, other):
        raise DataError(
            "`test` must be the same each time it is read.",
            received=f"{len(one)} and {len(other)} labels"
            if len(one) != len(other)
            else f"another label at {np.count_nonzero(one != other)} of {one.size} places",
            hint="Do not shuffle it, or cache it after its shuffle.",
        )


def evaluate(
    logits_of: Callable[[Any], Any], data: Any, kinds: Mapping[str, Kind] | None = None
) -> Evaluation:
    """Runs a model over a test set; keeps its logits, not the inputs.

    Args:
        logits_of: From a batch of inputs to logits `[batch, classes]`; of several outputs by name.
        data: `tf.data` set of batches `(inputs, labels)` or `(inputs, labels, weights)`; labels
            are class numbers or one-hot; of several outputs by name.
        kinds: Which outputs have other labels, as in `Predictions`: rows of "labels" that may be
            true together, yes above 0.5; or "numbers".
    """
    kinds = kinds or {}
    # Concrete: of functions that are traced again in each evaluation TensorFlow warns.
    run = tf.function(logits_of).get_concrete_function(
        tf.nest.map_structure(_any_batch, data.element_spec[0])
    )
    logits: list[Any] = []
    labels: list[Any] = []
    for inputs, batch_labels, *_ in data:
        logits.append(tf.nest.map_structure(_as_float32, run(inputs)))
        true = {
            name: _TRUE[kinds.get(name, "classes")](each)
            for name, each in by_name(batch_labels).items()
        }
        labels.append(one_or_all(true) if "" in true else true)

    def joined(batches: list[Any]) -> Any:
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)

    return Evaluation(joined(logits), joined(labels), kinds)


def _any_batch(spec: tf.TensorSpec) -> tf.TensorSpec:
    shape = spec.shape if spec.shape.rank is None else [None, *spec.shape[1:]]
    return tf.TensorSpec(shape, spec.dtype)


def _as_float32(tensor: Any) -> np.ndarray:
    return np.asarray(tf.cast(tensor, tf.float32))


def decided(values: Any, threshold: float) -> np.ndarray:
    """Which values are a yes, int64 0 or 1, in their shape: those above the threshold."""
    return (np.asarray(values) > threshold).astype(np.int64)


def class_numbers(labels: Any) -> np.ndarray:
    """Labels as class numbers, int64 `[batch]`, from class numbers or one-hot rows."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.argmax(axis=1).astype(np.int64)
    return labels.reshape(-1).astype(np.int64)


_PREDICTED: dict[Kind, Callable[[Any], np.ndarray]] = {  # of logits
    "classes": lambda logits: np.asarray(predicted_classes(logits)),
    "labels": partial(decided, threshold=0.0),
    "numbers": np.asarray,
}
_TRUE: dict[Kind, Callable[[Any], np.ndarray]] = {  # of labels in a batch
    "classes": class_numbers,
    "labels": partial(decided, threshold=0.5),
    "numbers": numbers_of,
}

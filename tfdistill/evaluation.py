"""What a model says about a whole test set, and how right it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import DataError
from tfdistill.outputs import predicted_classes


class Predictions(Protocol):
    """What can be compared with what another model says about the same test set."""

    @property
    def predictions(self) -> np.ndarray:
        """The predicted class of every example, int64 `[examples]`."""

    @property
    def labels(self) -> np.ndarray:
        """Its true class, int64 `[examples]`."""


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a test set, in the order of the set.

    Attributes:
        logits: float32 `[examples, classes]`.
        labels: int64 `[examples]`.
    """

    logits: np.ndarray
    labels: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """The predicted class of every example, int64 `[examples]`."""
        return np.asarray(predicted_classes(self.logits))

    @property
    def accuracy(self) -> float:
        """Share of examples whose predicted class is the label."""
        return float(np.mean(self.predictions == self.labels))

    @property
    def per_class_accuracy(self) -> tuple[float, ...]:
        """Accuracy on the examples of each class; NaN for a class the set does not hold."""
        right = self.predictions == self.labels
        classes = max(2, self.logits.shape[-1])
        return tuple(
            float(np.mean(right[self.labels == c])) if np.any(self.labels == c) else float("nan")
            for c in range(classes)
        )


def agreement(one: Predictions, other: Predictions) -> float:
    """Share of examples on which both predict the same class.

    Raises:
        DataError: They did not see the same examples in the same order.
    """
    require_same_labels(one.labels, other.labels)
    return float(np.mean(one.predictions == other.predictions))


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
            else f"another label at {np.count_nonzero(one != other)} of {len(one)} places",
            hint="Do not shuffle it, or cache it after its shuffle.",
        )


def evaluate(logits_of: Callable[[Any], tf.Tensor], data: Any) -> Evaluation:
    """Runs a model over a test set; keeps its logits, not the inputs.

    Args:
        logits_of: From a batch of inputs to logits `[batch, classes]`.
        data: `tf.data` set of batches `(inputs, labels)` or `(inputs, labels, weights)`; labels
            are class numbers or one-hot.
    """
    # Concrete: of functions that are traced again in each evaluation TensorFlow warns.
    run = tf.function(logits_of).get_concrete_function(
        tf.nest.map_structure(_any_batch, data.element_spec[0])
    )
    logits, labels = [], []
    for inputs, batch_labels, *_ in data:
        logits.append(np.asarray(tf.cast(run(inputs), tf.float32)))
        labels.append(class_numbers(np.asarray(batch_labels)))
    return Evaluation(np.concatenate(logits), np.concatenate(labels))


def _any_batch(spec: tf.TensorSpec) -> tf.TensorSpec:
    shape = spec.shape if spec.shape.rank is None else [None, *spec.shape[1:]]
    return tf.TensorSpec(shape, spec.dtype)


def class_numbers(labels: np.ndarray) -> np.ndarray:
    """Labels as class numbers, int64 `[batch]`, from class numbers or one-hot rows."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.argmax(axis=1).astype(np.int64)
    return labels.reshape(-1).astype(np.int64)

"""What a model says about a whole test set, and how right it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.outputs import predicted_classes


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

    def agreement(self, other: Evaluation) -> float:
        """Share of examples on which both predict the same class."""
        return float(np.mean(self.predictions == other.predictions))


def evaluate(logits_of: Callable[[Any], tf.Tensor], data: Any) -> Evaluation:
    """Runs a model over a test set; keeps its logits, not the inputs.

    Args:
        logits_of: From a batch of inputs to logits `[batch, classes]`.
        data: Batches `(inputs, labels)` or `(inputs, labels, weights)`; labels are class
            numbers or one-hot.
    """
    run = tf.function(logits_of, reduce_retracing=True)
    logits, labels = [], []
    for inputs, batch_labels, *_ in data:
        logits.append(np.asarray(tf.cast(run(inputs), tf.float32)))
        labels.append(class_numbers(np.asarray(batch_labels)))
    return Evaluation(np.concatenate(logits), np.concatenate(labels))


def class_numbers(labels: np.ndarray) -> np.ndarray:
    """Labels as class numbers, int64 `[batch]`, from class numbers or one-hot rows."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.argmax(axis=1).astype(np.int64)
    return labels.reshape(-1).astype(np.int64)

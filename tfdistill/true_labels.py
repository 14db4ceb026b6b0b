"""The labels of a test set, batch by batch, of one output of an artifact."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdistill.errors import DataError
from tfdistill.evaluation import decided
from tfdistill.named import Kind
from tfdistill.regression import numbers_of

__all__ = ["ClassLabels", "NumberLabels"]

_OF_NUMBERS = (
    "That its outputs are numbers is known of an artifact that a pipeline wrote, where "
    "td.losses.RegressionTargets taught the student."
)


class ClassLabels:
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

    def __init__(self, units: int, classes: int, multi_label: bool, output: str) -> None:
        self.examples = 0
        self.multi_label = multi_label
        self.who = _who(output)
        self._units, self._classes, self._known = units, classes, multi_label
        self._numbers: list[np.ndarray] = []
        self._decided: list[np.ndarray] = []  # not the rows themselves, which are larger

    @property
    def kind(self) -> Kind:
        """What the output answers, by what is known."""
        return "labels" if self.multi_label else "classes"

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


class NumberLabels:
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

"""The rows of a report: models of a run, measured on its test set. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from tfdistill.errors import SettingError

__all__ = ["Disagreement", "OutputRow", "Row", "kilobytes", "outputs_of", "percent", "points"]

_KINDS = ("teacher", "baseline", "stage", "artifact")


@dataclass(frozen=True)
class OutputRow:
    """What a row says of one output of several.

    Args:
        accuracy: Share of right classes, in [0, 1]; NaN where it is not known. Of an output of
            several labels the share of labels decided right, over all examples; so the agreement.
            Of numbers both are R², the share of a variance that is explained, at most 1.
        teacher_agreement: Share of examples on which it predicts the teacher's class, in [0, 1].
        per_class_accuracy: Accuracy on the examples of each class; NaN for a class without any. Of
            several labels each one's, on all examples; so of numbers.
        mean_absolute_errors: Of numbers, each in the unit of its labels.
    """

    accuracy: float
    teacher_agreement: float | None = None
    per_class_accuracy: tuple[float, ...] = ()
    mean_absolute_errors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the shares."""
        for name in ("per_class_accuracy", "mean_absolute_errors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_shares(self, "accuracy", "teacher_agreement")


@dataclass(frozen=True)
class Row:
    """One model of a run, on the test set.

    Args:
        name: "teacher", "student alone", "distilled", "pruned", "quantized", or an artifact's
            format, such as "int8".
        kind: "teacher", "baseline", "stage" or "artifact".
        accuracy: Share of right classes, in [0, 1]; NaN where it is not known. Of an output of
            several labels the share of labels decided right, over all examples; of numbers R², the
            share of a variance that is explained, at most 1; of several outputs the share of
            examples on which all classes and labels are right; so the agreement.
        teacher_agreement: Share of examples on which it predicts the teacher's class, in [0, 1].
        parameters: Number of its parameters.
        sparsity: Share of its prunable weights that are exactly zero, in [0, 1].
        bytes: Size of its file.
        gzip_bytes: Size of its file after gzip: about what a download takes.
        latency_ms: Median time of one example on the host, one thread, milliseconds.
        latency_p90_ms: 90 % of the examples took no longer, milliseconds.
        certified: Whether its certificate was passed; `None` without one.
        per_class_accuracy: Accuracy on the examples of each class; NaN for a class without any. Of
            several labels each one's, on all examples; so of numbers.
        mean_absolute_errors: Of numbers, each in the unit of its labels.
        seconds: Time that its training took, seconds.
        note: What else is to be known of it, as a sentence.
        outputs: Of several outputs, what is to be said of each, by name.

    Raises:
        SettingError: A field is outside what it may be.

    Example:
        >>> Row("int8", "artifact", accuracy=0.963, bytes=11_264, gzip_bytes=6_102)
    """

    name: str
    kind: str
    accuracy: float
    teacher_agreement: float | None = None
    parameters: int | None = None
    sparsity: float | None = None
    bytes: int | None = None
    gzip_bytes: int | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    certified: bool | None = None
    per_class_accuracy: tuple[float, ...] = ()
    mean_absolute_errors: tuple[float, ...] = ()
    seconds: float | None = None
    note: str = ""
    outputs: Mapping[str, OutputRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks every field that could be mistaken for another unit."""
        if self.kind not in _KINDS:
            raise SettingError(f"`kind` must be one of {', '.join(_KINDS)}.", received=self.kind)
        for name in ("per_class_accuracy", "mean_absolute_errors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_shares(self, "accuracy", "teacher_agreement", "sparsity")

    def of(self, output: str) -> Row:
        """The row as if that output were the only one, for what is to be said of each."""
        found = self.outputs.get(output, OutputRow(math.nan))
        return replace(
            self,
            accuracy=found.accuracy,
            teacher_agreement=found.teacher_agreement,
            per_class_accuracy=found.per_class_accuracy,
            mean_absolute_errors=found.mean_absolute_errors,
            certified=None,  # which is of all
            outputs={},
        )

    def cells(self, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """The row as text, one cell a column; "-" for what is not known.

        Args:
            outputs: Names of the outputs whose accuracies and errors have columns of their own.
        """
        certified = {None: "-", True: "passed", False: "FAILED"}[self.certified]
        return (
            self.name,
            *_right(self),
            *(cell for output in outputs for cell in _right(self.of(output))),
            percent(self.teacher_agreement, 2),
            "-" if self.parameters is None else f"{self.parameters:,}",
            kilobytes(self.bytes),
            kilobytes(self.gzip_bytes),
            percent(self.sparsity, 1),
            "-" if _missing(self.latency_ms) else f"{self.latency_ms:.3g}",
            certified,
        )


@dataclass(frozen=True)
class Disagreement:
    """A test example on which an artifact and the teacher predict different classes.

    Of an output of several labels it is one label of an example.

    Args:
        index: Its place in the test set.
        label: Its class.
        teacher_class: The class that the teacher predicts.
        artifact_class: The class that the artifact predicts.
        image: Its input, `[height, width]` or `[height, width, channels]`, or an array of
            another shape, which is shown as numbers; `None` to show nothing.
        output: Name of the output that the classes are of, where there are several.
        of_label: Number of the label, of several that may be true together: the classes are then 1
            for yes and 0 for no. `None` of a class.
    """

    index: int
    label: int
    teacher_class: int
    artifact_class: int
    image: npt.NDArray[Any] | None = field(default=None, compare=False, repr=False)
    output: str = ""
    of_label: int | None = None


def outputs_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the outputs, where there are several; else none. A teacher may lack some."""
    return max((tuple(row.outputs) for row in rows), key=len, default=())


def _right(row: Row) -> tuple[str, str]:
    """How right a row is, as text: its accuracy, and the mean error of its numbers."""
    errors = row.mean_absolute_errors
    return percent(row.accuracy, 2), f"{sum(errors) / len(errors):.4g}" if errors else "-"


def _check_shares(row: Any, *names: str) -> None:
    for name in names:
        value = getattr(row, name)
        if value is None or math.isnan(value):
            continue
        # R² has no lower bound. Where nothing has labels, the agreement may be one.
        of_numbers = bool(row.mean_absolute_errors) or math.isnan(row.accuracy)
        if value > 1 or (value < 0 and not (of_numbers and name != "sparsity")):
            raise SettingError(f"`{name}` must be in [0, 1].", received=value)


def percent(share: float | None, digits: int) -> str:
    """A share in [0, 1] as text, "-" where it is not known."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def kilobytes(size: int | None) -> str:
    """A number of bytes as text, in KB of 1024 bytes; "-" where it is not known."""
    return "-" if size is None else f"{size / 1024:,.1f} KB"


def points(share: float) -> str:
    """A difference of two shares as text."""
    return f"{100 * share + 0.0:.2f} points"  # no -0.00


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)

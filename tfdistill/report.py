"""The result of a run: its rows, curves and certificates, as JSON, as a page and as advice.

Needs no TensorFlow, so that `tfdistill report` answers at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.runs.files import reading_and_writing, write_json, write_text

__all__ = ["Disagreement", "Report", "Row", "advice", "read_report", "write_report"]

_FORMAT = 1  # of report.json; to be raised when an older library could not read it
_KINDS = ("teacher", "baseline", "stage", "artifact")
_HEADER = (
    "model",
    "accuracy",
    "agrees with teacher",
    "parameters",
    "size",
    "gzip size",
    "zeros",
    "ms (host)",
    "certified",
)
_NOTABLE_DROP = 0.01


@dataclass(frozen=True)
class Row:
    """One model of a run, on the test set.

    Args:
        name: "teacher", "student alone", "distilled", "pruned", "quantized", or an artifact's
            format, such as "int8".
        kind: "teacher", "baseline", "stage" or "artifact".
        accuracy: Share of right classes, in [0, 1]; NaN where it is not known.
        teacher_agreement: Share of examples on which it predicts the teacher's class, in [0, 1].
        parameters: Number of its parameters.
        sparsity: Share of its prunable weights that are exactly zero, in [0, 1].
        bytes: Size of its file.
        gzip_bytes: Size of its file after gzip: about what a download takes.
        latency_ms: Median time of one example on the host, one thread, milliseconds.
        latency_p90_ms: 90 % of the examples took no longer, milliseconds.
        certified: Whether its certificate was passed; `None` without one.
        per_class_accuracy: Accuracy on the examples of each class; NaN for a class without any.
        seconds: Time that its training took, seconds.
        note: What else is to be known of it, as a sentence.

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
    seconds: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Checks every field that could be mistaken for another unit."""
        if self.kind not in _KINDS:
            raise SettingError(f"`kind` must be one of {', '.join(_KINDS)}.", received=self.kind)
        for name in ("accuracy", "teacher_agreement", "sparsity"):
            value = getattr(self, name)
            if value is not None and not (math.isnan(value) or 0 <= value <= 1):
                raise SettingError(f"`{name}` must be in [0, 1].", received=value)
        object.__setattr__(self, "per_class_accuracy", tuple(self.per_class_accuracy))

    def cells(self) -> tuple[str, ...]:
        """The row as text, one cell a column; "-" for what is not known."""
        certified = {None: "-", True: "passed", False: "FAILED"}[self.certified]
        return (
            self.name,
            percent(self.accuracy, 2),
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

    Args:
        index: Its place in the test set.
        label: Its class.
        teacher_class: The class that the teacher predicts.
        artifact_class: The class that the artifact predicts.
        image: Its input, `[height, width]` or `[height, width, channels]`, or an array of
            another shape, which is shown as numbers; `None` to show nothing.
    """

    index: int
    label: int
    teacher_class: int
    artifact_class: int
    image: npt.NDArray[Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Report:
    """All that a run found out.

    Args:
        title: Name of the run.
        rows: The models, in the order they were made.
        histories: Stage to metric to one value an epoch, as Keras' `History` has them.
        label_names: Names of the classes; a class beyond them is shown by its number.
        disagreements: Artifact to examples on which it and the teacher disagree.
        advice: What to look at or to change, a sentence each: see :func:`advice`.
        details: What else is to be kept, in types that have a form in JSON. Shown in a form of
            their own: `certificates` (artifact to `Certificate.to_dict()`), `interfaces`
            (artifact to `describe_interface()`), `left_float` and `left_dense` (layer to
            reason), `settings`, `versions`. Everything else is shown as it is.
        test_examples: Size of the test set.
        json_path: Where it was written; `None` before.
        html_path: Where its page was written; `None` before.

    Raises:
        SettingError: There is no row, or two have one name.
    """

    title: str
    rows: tuple[Row, ...]
    histories: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    disagreements: Mapping[str, tuple[Disagreement, ...]] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    test_examples: int | None = None
    json_path: Path | None = None
    html_path: Path | None = None

    def __post_init__(self) -> None:
        """Checks the names of the rows, which everything else refers to."""
        for name in ("rows", "label_names", "advice"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise SettingError("`rows` must have one row or more, each of a name.", received=names)

    def table(self) -> list[tuple[str, ...]]:
        """The rows as text, after the names of the columns; unknown columns are left out."""
        lines = [_HEADER, *(row.cells() for row in self.rows)]
        kept = [
            column
            for column in range(len(_HEADER))
            if column < 2 or any(line[column] != "-" for line in lines[1:])
        ]
        return [tuple(line[column] for column in kept) for line in lines]

    def label_name(self, label: int) -> str:
        """The name of a class, or its number where it has none."""
        return self.label_names[label] if 0 <= label < len(self.label_names) else str(label)


def write_report(report: Report, directory: str | os.PathLike[str]) -> Report:
    """Writes `report.json` and `report.html`, each one whole or not at all.

    The JSON file holds everything but the images; the page holds those, too, is one file, and
    loads nothing from elsewhere.

    Args:
        report: What to write.
        directory: Where to; made if missing.

    Returns:
        The report, with `json_path` and `html_path`.

    Raises:
        RunDirectoryError: The disk is full, or the place cannot be written.
        SettingError: `details` holds something that has no form in JSON.

    Example:
        >>> write_report(report, "saved_models/birds").html_path
        PosixPath('saved_models/birds/report.html')
    """
    from tfdistill.page import render  # matplotlib takes its time to be imported

    directory = Path(directory)
    written = replace(
        report, json_path=directory / "report.json", html_path=directory / "report.html"
    )
    content = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    del content["json_path"], content["html_path"]
    content["disagreements"] = {
        artifact: [_without_image(example) for example in examples]
        for artifact, examples in report.disagreements.items()
    }
    page = render(report)
    write_json(directory / "report.json", {"format": _FORMAT, **content})
    write_text(directory / "report.html", page)
    return written


def read_report(path: str | os.PathLike[str]) -> Report:
    """Reads what :func:`write_report` wrote, all but the images.

    Args:
        path: A `report.json`, or the directory it is in.

    Raises:
        RunDirectoryError: There is none, it is damaged, or a newer version wrote it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    if not path.is_file():
        raise RunDirectoryError(
            "`path` must be a report.json, or the directory of a finished run.",
            received=str(path),
            hint="A run writes its report when it ends.",
        )
    with reading_and_writing(path):
        data = path.read_bytes()
    try:
        content = json.loads(data)
        version = content.pop("format")
        if version > _FORMAT:
            raise RunDirectoryError(
                f"`{path}` must be of format {_FORMAT} or older.",
                received=f"format {version}",
                hint="Update tfdistill.",
            )
        content["rows"] = [_row(**row) for row in content["rows"]]
        content["histories"] = {
            stage: {metric: _numbers(values) for metric, values in metrics.items()}
            for stage, metrics in content["histories"].items()
        }
        content["disagreements"] = {
            artifact: tuple(Disagreement(**example) for example in examples)
            for artifact, examples in content["disagreements"].items()
        }
        page = path.with_name("report.html")
        return Report(**content, json_path=path, html_path=page if page.is_file() else None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunDirectoryError(
            f"`{path}` must be a report of this library.",
            received=f"{type(error).__name__}: {error}",
            hint="Run the pipeline again: it writes the report anew.",
        ) from error


def advice(rows: Sequence[Row], *, test_examples: int | None = None) -> tuple[str, ...]:
    """Says where a run disappoints, by how much, and what to change.

    Two accuracies p and q on the same n test examples are compared with the standard error
    sqrt((p (1 - p) + q (1 - q)) / n) of their difference. It takes the two as independent, which
    overstates it where the models err on the same examples.

    Args:
        rows: The rows of the report. A stage is compared with the one before it, an artifact
            with the stage it was exported from.
        test_examples: Size of the test set, n.

    Returns:
        A sentence or two for each thing to look at; empty if there is none.
    """
    by_name = {row.name: row for row in rows}
    stages = [row for row in rows if row.kind == "stage"]
    float_stages = [row for row in stages if row.name != "quantized"]
    found = []
    distilled = by_name.get("distilled")
    if distilled is not None:
        found += _on_distillation(
            distilled,
            next((row for row in rows if row.kind == "baseline"), None),
            by_name.get("teacher"),
            test_examples,
        )
    for before, after in itertools.pairwise(stages):
        found += _on_drop(before, after, _STAGE_HINTS.get(after.name, ""), test_examples)
    for row in rows:
        if row.kind != "artifact":
            continue
        if row.certified is False:
            found.append(f"{row.name} failed its certificate: do not ship it as it is.")
        trained = row.name == "int8" and "quantized" in by_name
        sources = stages if trained else float_stages
        if sources:
            hint = "" if trained or row.name.startswith("float") else _POST_TRAINING_HINT
            if row.name.startswith("int4"):
                hint = _INT4_HINT
            found += _on_drop(sources[-1], row, hint, test_examples)
    found += _on_int4_size([row for row in rows if row.kind == "artifact"])
    return tuple(found)


def _on_int4_size(artifacts: Sequence[Row]) -> list[str]:
    int8 = next((row.gzip_bytes for row in artifacts if row.name == "int8"), None)
    return [
        f"{row.name} is not smaller than int8 ({kilobytes(row.gzip_bytes)} against "
        f"{kilobytes(int8)} after gzip): so few weights save less than their scales and the "
        "float operators around them cost, and the zeros of a pruned model are small already."
        for row in artifacts
        if row.name.startswith("int4") and int8 and row.gzip_bytes and row.gzip_bytes >= int8
    ]


_STAGE_HINTS = {
    "pruned": "Lower `sparsity` of Pruning, raise its `epochs`, or `skip` the first layers.",
    "quantized": "Raise `epochs` of Quantization, or lower its `learning_rate`.",
}
_POST_TRAINING_HINT = (
    "It is quantized after training: train for it with a Quantization stage (format int8), or "
    "raise `calibration_examples` of Export."
)
_INT4_HINT = (
    "Its weights are rounded to 4 bits after training: try smaller blocks (format int4_block32), "
    "or ship int8."
)


def _on_distillation(
    distilled: Row, alone: Row | None, teacher: Row | None, examples: int | None
) -> list[str]:
    if alone is None:
        return [
            "The student was not trained alone, so this run does not show what "
            f"{'its losses add' if teacher is None else 'the teacher adds'}."
        ]
    gain = distilled.accuracy - alone.accuracy
    error = _standard_error(distilled.accuracy, alone.accuracy, examples)
    if math.isnan(gain) or (gain > 0 and not gain <= error):
        return []
    numbers = f"{percent(distilled.accuracy, 2)} against {percent(alone.accuracy, 2)}"
    if gain > 0:
        return [
            f"The distilled student is better than the student alone ({numbers}), but "
            f"{_significance(gain, error, examples)}. Repeat it with other seeds."
        ]
    changes = []
    if teacher is not None and not math.isnan(teacher.accuracy):
        lead = teacher.accuracy - alone.accuracy
        if lead <= 0:
            changes.append("a better teacher (it is no better than the student alone)")
        elif lead < 2 * _NOTABLE_DROP:
            changes.append(f"a better teacher (it is {_points(lead)} ahead of the student alone)")
        else:
            changes.append(f"a larger student (the teacher is {_points(lead)} ahead of it)")
    changes += [
        "more `epochs`",
        "a higher `label_loss_weight`",
        "random augmentation, seen by teacher and student alike",
    ]
    return [
        f"The distilled student is not better than the student alone ({numbers}: "
        f"{_significance(-gain, error, examples)}). What may help, one at a time: "
        f"{'; '.join(changes)}."
    ]


def _on_drop(before: Row, after: Row, hint: str, examples: int | None) -> list[str]:
    drop = before.accuracy - after.accuracy
    error = _standard_error(before.accuracy, after.accuracy, examples)
    if not drop > _NOTABLE_DROP:  # NaN, too
        return []
    sentence = (
        f"{after.name} is below {before.name} ({percent(after.accuracy, 2)} against "
        f"{percent(before.accuracy, 2)}: {_significance(drop, error, examples)})."
    )
    return [f"{sentence} {hint}".rstrip()]


def _standard_error(first: float, second: float, examples: int | None) -> float:
    if not examples:
        return math.nan
    return math.sqrt((first * (1 - first) + second * (1 - second)) / examples)


def _significance(difference: float, error: float, examples: int | None) -> str:
    if math.isnan(error):
        return f"by {_points(difference)}"
    within = "within" if difference <= error else "beyond"
    return (
        f"by {_points(difference)}, {within} the standard error of {_points(error)} on "
        f"{examples:,} test examples"
    )


def _points(share: float) -> str:
    return f"{100 * share + 0.0:.2f} points"  # no -0.00


def percent(share: float | None, digits: int) -> str:
    """A share in [0, 1] as text, "-" where it is not known."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def kilobytes(size: int | None) -> str:
    """A number of bytes as text, in KB of 1024 bytes; "-" where it is not known."""
    return "-" if size is None else f"{size / 1024:,.1f} KB"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _without_image(example: Disagreement) -> dict[str, int]:
    return {
        f.name: int(getattr(example, f.name))
        for f in dataclasses.fields(example)
        if f.name != "image"
    }


def _row(*, accuracy: float | None, per_class_accuracy: Sequence[float | None], **rest: Any) -> Row:
    known = math.nan if accuracy is None else accuracy
    return Row(accuracy=known, per_class_accuracy=tuple(_numbers(per_class_accuracy)), **rest)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]

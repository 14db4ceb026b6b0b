"""The result of a run: its rows, curves and certificates, as JSON, as a page and as advice.

Needs no TensorFlow, so that `tfdistill report` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfdistill.advice import advice
from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.named import Kind, by_name
from tfdistill.rows import Disagreement, OutputRow, Row, outputs_of
from tfdistill.runs.files import reading_and_writing, write_json, write_text

__all__ = [
    "Disagreement",
    "OutputRow",
    "Report",
    "Row",
    "advice",
    "read_report",
    "write_report",
]

# Of report.json, to be raised when an older library could not read it: 2 has several outputs,
# 3 several labels, 4 numbers.
_FORMAT = 4
_ERROR = "mean absolute error"
_OF_SOME = ("outputs", "mean_absolute_errors")  # which are not written where there are none
_HEADER = (
    "parameters",
    "size",
    "gzip size",
    "zeros",
    "ms (host)",
    "certified",
)


@dataclass(frozen=True)
class Report:
    """All that a run found out.

    Args:
        title: Name of the run.
        rows: The models, in the order they were made.
        histories: Stage to metric to one value an epoch, as Keras' `History` has them.
        label_names: Names of the classes; a class beyond them is shown by its number. Of several
            outputs by their names.
        disagreements: Artifact to examples on which it and the teacher disagree.
        advice: What to look at or to change, a sentence each: see :func:`advice`.
        details: What else is to be kept, in types that have a form in JSON. Shown in a form of
            their own: `certificates` (artifact to `Certificate.to_dict()`), `interfaces`
            (artifact to `describe_interface()`), `left_float` and `left_dense` (layer to
            reason), `settings`, `versions`. Everything else is shown as it is.
        test_examples: Size of the test set.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.
            The accuracy of "labels", each a yes or no of its own, is the share of labels decided
            right; that of "numbers" is R².
        json_path: Where it was written; `None` before.
        html_path: Where its page was written; `None` before.

    Raises:
        SettingError: There is no row, or two have one name.
    """

    title: str
    rows: tuple[Row, ...]
    histories: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    label_names: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    disagreements: Mapping[str, tuple[Disagreement, ...]] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    test_examples: int | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    json_path: Path | None = None
    html_path: Path | None = None

    def __post_init__(self) -> None:
        """Checks the names of the rows, which everything else refers to."""
        for name in ("rows", "advice"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        of_outputs = {output: tuple(each) for output, each in by_name(self.label_names).items()}
        object.__setattr__(self, "label_names", of_outputs.get("", of_outputs))
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise SettingError("`rows` must have one row or more, each of a name.", received=names)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, where there are several; else none."""
        return outputs_of(self.rows)

    def table(self) -> list[tuple[str, ...]]:
        """The rows as text, after the names of the columns; unknown columns are left out."""
        names = [("", " of all")] if self.outputs else [("", "")]
        names += [(output, f" of {output}") for output in self.outputs]
        right = [
            f"{what}{of_output}"
            for output, of_output in names
            for what in ("R²" if self.kinds.get(output) == "numbers" else "accuracy", _ERROR)
        ]
        agrees = "R² against teacher" if self.kinds.get("") == "numbers" else "agrees with teacher"
        header = ("model", *right, agrees, *_HEADER)
        lines = [header, *(row.cells(self.outputs) for row in self.rows)]
        kept = [
            column
            for column in range(len(header))
            if column < (1 if self.outputs else 2) or any(line[column] != "-" for line in lines[1:])
        ]
        return [tuple(line[column] for column in kept) for line in lines]

    def label_name(self, label: float | None, output: str = "", of_label: int | None = None) -> str:
        """The name of a class, of an output of several; its number where it has none.

        Args:
            label: Number of the class, of the label or among the numbers; `None` where it is not
                known.
            output: Name of the output, where there are several.
            of_label: Number of the label that `label` is the yes, 1, or no, 0, to; or among the
                numbers of which `label` is the value.
        """
        names = by_name(self.label_names).get(output, ())
        if label is None:
            return "-"
        if of_label is not None and self.kinds.get(output) == "numbers":
            return f"{label:.4g}"
        if of_label is not None:
            return "yes" if label else "no"
        return names[int(label)] if 0 <= label < len(names) else str(label)


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
    content["rows"] = [_row_content(row) for row in report.rows]
    content |= _said(kinds=content.pop("kinds"))
    page = render(report)
    version = 4 if report.kinds else 2 if report.outputs else 1
    write_json(directory / "report.json", {"format": version, **content})
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
        if version == 3:  # which knew labels as the only other kind
            content["kinds"] = dict.fromkeys(content.pop("multi_label", ()), "labels")
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


def _without_image(example: Disagreement) -> dict[str, Any]:
    found = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
    del found["image"]
    output, of_label = found.pop("output"), found.pop("of_label")
    content = {**{name: int(value) for name, value in found.items()}, **_said(output=output)}
    return content if of_label is None else {**content, "of_label": of_label}


def _row_content(row: Row) -> dict[str, Any]:
    content = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    of_some = {name: content.pop(name) for name in _OF_SOME}
    return {**content, **_said(**of_some)}


def _said(**of_some: Any) -> dict[str, Any]:
    """What only some outputs have, without what others do not."""
    return {name: value for name, value in of_some.items() if value}


def _row(*, outputs: Mapping[str, Any] | None = None, **content: Any) -> Row:
    found = {name: OutputRow(**_with_shares(**each)) for name, each in (outputs or {}).items()}
    return Row(**_with_shares(**content), outputs=found)


def _with_shares(
    *,
    accuracy: float | None,
    per_class_accuracy: Sequence[float | None],
    mean_absolute_errors: Sequence[float | None] = (),
    **rest: Any,
) -> dict[str, Any]:
    known = math.nan if accuracy is None else accuracy
    return {
        "accuracy": known,
        "per_class_accuracy": tuple(_numbers(per_class_accuracy)),
        "mean_absolute_errors": tuple(_numbers(mean_absolute_errors)),
        **rest,
    }


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]

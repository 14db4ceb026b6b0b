"""Students taught one after the other, each by the one before it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfdistill.errors import DataError, SettingError, TfdistillError
from tfdistill.export import Export
from tfdistill.pipeline import Pipeline, Result
from tfdistill.report import Report, Row
from tfdistill.targets.examples import Augment
from tfdistill.terminal import Terminal

__all__ = ["distill_in_turn"]


def distill_in_turn(
    students: Sequence[Any],
    teacher: Any,
    train: Any,
    *,
    pipeline: Pipeline | Sequence[Pipeline],
    validation: Any = None,
    test: Any = None,
    run_dir: str | os.PathLike[str],
    steps_per_epoch: int | None = None,
    data_name: str | None = None,
    augment: Augment | None = None,
    verbose: int = 1,
) -> list[Result]:
    """Runs a pipeline for each student: the teacher teaches the first, each student the next one.

    With students that become smaller, those between are *teacher assistants*, for a student that is
    too small to learn from the teacher itself. With students of one architecture, each with other
    weights at the start, they are the generations of *born-again networks*.

    Each run is kept in a directory of its own, `student_1`, `student_2` and so on, and is what
    `Pipeline.run` would make of it: killed at any moment, the same call goes on and ends in the
    same weights. All models are checked before the first one is trained.

    Args:
        students: Two or more, as for `Pipeline.run`; they stay as they are.
        teacher: As for `Pipeline.run`.
        train: Tuple of NumPy arrays as for `Pipeline.run`; or a function without arguments that
            makes the training data anew, for each student to begin with the same order of them.
        pipeline: Settings of the last student's run. The others are distilled with them, and
            neither pruned, quantized nor exported, nor trained alone to compare with. Or a list
            of settings, one for each student, that are taken as they are.
        validation: As for `Pipeline.run`, for all of them.
        test: As for `Pipeline.run`, for all of them.
        run_dir: Where the runs' directories are kept.
        steps_per_epoch: As for `Pipeline.run`.
        data_name: As for `Pipeline.run`.
        augment: As for `Pipeline.run`.
        verbose: 0 for silence.

    Returns:
        What each run made, in the order of `students`.

    Raises:
        SettingError: There are fewer than two students, or not as many pipelines.
        DataError: `train` is a data set, of which each run would read other orders.
        TfdistillError: As `Pipeline.run`. What it says of models begins with the student's number.

    Example:
        >>> results = td.distill_in_turn(
        ...     [assistant, student], teacher, (images, labels), test=test,
        ...     pipeline=td.Pipeline(quantization=td.Quantization()), run_dir="saved_models/birds")
        >>> results[-1].artifacts["int8"].path

    Source:
        Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant" (2020),
        arXiv:1902.03393; Furlanello et al., "Born-Again Neural Networks" (2018), arXiv:1805.04770,
        section 3.
    """
    if not isinstance(students, (list, tuple)) or len(students) < 2:
        raise SettingError(
            "`students` must be a list of two students or more.",
            received=f"{len(students)} of them"
            if isinstance(students, (list, tuple))
            else type(students).__name__,
            hint="A single student is taught by Pipeline.run.",
        )
    pipelines = _one_each(pipeline, len(students))
    if not callable(train) and not isinstance(train, tuple):
        raise DataError(
            "`train` must be a tuple of NumPy arrays, or a function that makes the data.",
            received=type(train).__name__,
            hint="A data set that was read before goes on with its next order: pass "
            "train=lambda: ..., which builds it anew for each student.",
        )
    terminal = Terminal(verbose=verbose)
    names = [f"student_{number}" for number in range(1, len(students) + 1)]
    teaching = [teacher, *students[:-1]]
    for name, each, student, who in zip(names, pipelines, students, teaching, strict=True):
        try:
            each.check(student, who)
        except TfdistillError as error:
            error.args = (f"{name}: {error}",)
            raise
    results: list[Result] = []
    for name, each, student in zip(names, pipelines, students, strict=True):
        terminal.heading(f"{name} of {len(students)}")
        result = each.run(
            student,
            results[-1].student if results else teacher,
            train() if callable(train) else train,
            validation=validation,
            test=test,
            run_dir=Path(run_dir) / name,
            steps_per_epoch=steps_per_epoch,
            data_name=data_name,
            augment=augment,
            verbose=verbose,
        )
        results.append(result)
    terminal.heading(Path(run_dir).name)
    terminal.rows(Report(Path(run_dir).name, _rows(names, results)).table())
    return results


def _one_each(given: Any, count: int) -> list[Pipeline]:
    """The settings of each run."""
    if isinstance(given, Pipeline):
        labels = given.export.label_names
        between = replace(
            given,
            pruning=None,
            quantization=None,
            baseline=False,
            export=Export(formats=(), label_names=labels),
        )
        return [between] * (count - 1) + [given]
    if (
        not isinstance(given, (list, tuple))
        or len(given) != count
        or not all(isinstance(each, Pipeline) for each in given)
    ):
        raise SettingError(
            "`pipeline` must be a td.Pipeline, or a list of one for each student.",
            received=f"{len(given)} for {count} students"
            if isinstance(given, (list, tuple))
            else repr(given),
        )
    return list(given)


def _rows(names: Sequence[str], results: Sequence[Result]) -> tuple[Row, ...]:
    """The teacher, and each student as it teaches the next one."""
    rows = [row for row in results[0].report.rows if row.kind == "teacher"]
    for name, result in zip(names, results, strict=True):
        stages = [row for row in result.report.rows if row.kind == "stage"]
        floating = [row for row in stages if row.name != "quantized"]
        rows.append(replace(floating[-1], name=name))
    return tuple(rows)

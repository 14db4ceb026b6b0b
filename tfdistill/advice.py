"""Where a run disappoints, by how much, and what to change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tfdistill.rows import Row, kilobytes, outputs_of, percent, points

__all__ = ["advice"]

_NOTABLE_DROP = 0.01


def advice(rows: Sequence[Row], *, test_examples: int | None = None) -> tuple[str, ...]:
    """Says where a run disappoints, by how much, and what to change.

    Two accuracies p and q on the same n test examples are compared with the standard error
    sqrt((p (1 - p) + q (1 - q)) / n) of their difference. It takes the two as independent, which
    overstates it where the models err on the same examples. So does an accuracy of several labels,
    which is taken as one of n examples, as if the labels of an example were all right or all wrong.
    R² of numbers is no share of examples: there is none for it.

    Args:
        rows: The rows of the report. A stage is compared with the one before it, an artifact
            with the stage it was exported from.
        test_examples: Size of the test set, n.

    Returns:
        A sentence or two for each thing to look at; empty if there is none. Of several outputs
        accuracies are compared one by one.
    """
    artifacts = [row for row in rows if row.kind == "artifact"]
    outputs = outputs_of(rows)
    found = _without_baseline(rows)
    if not outputs:
        found += _on_accuracies(rows, test_examples)
    for output in outputs:
        of_output = _on_accuracies([row.of(output) for row in rows], test_examples)
        found += [f"{output}: {sentence}" for sentence in of_output]
    if outputs:
        found += [_failed(row) for row in artifacts if row.certified is False]
    return (*found, *_on_int4_size(artifacts))


def _without_baseline(rows: Sequence[Row]) -> list[str]:
    kinds = {row.kind: row for row in rows}
    if "baseline" in kinds or all(row.name != "distilled" for row in rows):
        return []
    return [
        "The student was not trained alone, so this run does not show what "
        f"{'the teacher adds' if 'teacher' in kinds else 'its losses add'}."
    ]


def _on_accuracies(rows: Sequence[Row], examples: int | None) -> list[str]:
    """Of one output."""
    by_name = {row.name: row for row in rows}
    stages = [row for row in rows if row.kind == "stage"]
    float_stages = [row for row in stages if row.name != "quantized"]
    found = []
    if any(row.mean_absolute_errors for row in rows):
        examples = None
    distilled = by_name.get("distilled")
    alone = next((row for row in rows if row.kind == "baseline"), None)
    if distilled is not None and alone is not None:
        found += _on_distillation(distilled, alone, by_name.get("teacher"), examples)
    for before, after in itertools.pairwise(stages):
        found += _on_drop(before, after, _STAGE_HINTS.get(after.name, ""), examples)
    for row in rows:
        if row.kind != "artifact":
            continue
        if row.certified is False:
            found.append(_failed(row))
        trained = row.name == "int8" and "quantized" in by_name
        sources = stages if trained else float_stages
        if sources:
            hint = "" if trained or row.name.startswith("float") else _POST_TRAINING_HINT
            if row.name.startswith("int4"):
                hint = _INT4_HINT
            found += _on_drop(sources[-1], row, hint, examples)
    return found


def _failed(row: Row) -> str:
    return f"{row.name} failed its certificate: do not ship it as it is."


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
    distilled: Row, alone: Row, teacher: Row | None, examples: int | None
) -> list[str]:
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
            changes.append(f"a better teacher (it is {points(lead)} ahead of the student alone)")
        else:
            changes.append(f"a larger student (the teacher is {points(lead)} ahead of it)")
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
        return f"by {points(difference)}"
    within = "within" if difference <= error else "beyond"
    return (
        f"by {points(difference)}, {within} the standard error of {points(error)} on "
        f"{examples:,} test examples"
    )

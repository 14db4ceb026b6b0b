"""What a finished run has to say: its students and artifacts, measured and put into a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.artifacts import Artifact
from tfdistill.evaluation import Evaluation, Predictions, agreement, evaluate, share_of_right
from tfdistill.export.saved_artifacts import inspect_artifact
from tfdistill.host import versions
from tfdistill.named import Kind, by_name
from tfdistill.output_certificate import OutputCertificate
from tfdistill.outputs import ModelView
from tfdistill.pruning import kernel_zeros, prunable_weights
from tfdistill.quantization import quantized_kernels
from tfdistill.report import Disagreement, OutputRow, Report, Row, advice, write_report
from tfdistill.stages import Student

_ROW_NAMES = {"distillation": "distilled", "pruning": "pruned", "quantization": "quantized"}
_DISAGREEMENTS_SHOWN = 12


@dataclass(frozen=True)
class Finished:
    """What the stages of a run leave behind.

    Attributes:
        teacher: As the user gave it.
        teacher_evaluation: Its answers on the test set; `None` where there is no teacher.
        alone: The student trained without the teacher, or `None`.
        trained: The student after each training stage, in their order.
        floating: The last of them in floating point.
        artifacts: Format to artifact.
        uncertified: Format to the reason why there is no file, or none that can be run here.
        test: Batches of the test set.
        test_examples: How many examples they hold.
        notes: Sentences on what was recognised in the models.
        outputs: Names of the student's outputs, in its order, where there are several.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.
    """

    teacher: Any
    teacher_evaluation: Evaluation | None
    alone: Student | None
    trained: tuple[Student, ...]
    floating: Student
    artifacts: Mapping[str, Artifact]
    uncertified: Mapping[str, str]
    test: Any
    test_examples: int
    notes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)


def summarise_run(finished: Finished, pipeline: Any, directory: Path) -> Report:
    """Measures every model on the test set and writes `report.json` and `report.html`.

    Args:
        finished: What the stages left behind.
        pipeline: The pipeline with its settings.
        directory: The run directory.

    Returns:
        The report, with the paths it was written to.
    """
    teacher = finished.teacher_evaluation
    rows = []
    if teacher is not None:
        rows.append(
            Row(
                "teacher",
                "teacher",
                accuracy=teacher.accuracy,
                parameters=_parameters(finished.teacher),
                per_class_accuracy=teacher.per_class_accuracy,
                mean_absolute_errors=teacher.mean_absolute_errors,
                outputs=_outputs(teacher, finished),
            )
        )
    if finished.alone is not None:
        rows.append(_student_row(finished.alone, "student alone", "baseline", finished))
    for student in finished.trained:
        rows.append(_student_row(student, _ROW_NAMES[student.stage], "stage", finished))
    rows += [_artifact_row(f, a, finished) for f, a in finished.artifacts.items()]
    rows += [
        Row(format, "artifact", accuracy=math.nan, certified=False, note=why)
        for format, why in finished.uncertified.items()
    ]
    last = finished.trained[-1]
    students = [*finished.trained, *([finished.alone] if finished.alone else [])]
    report = Report(
        title=directory.name,
        rows=tuple(rows),
        histories={
            "student alone" if student is finished.alone else student.stage: _curves(student)
            for student in students
        },
        label_names=pipeline.export.label_names,
        kinds=finished.kinds,
        disagreements=_disagreements(finished),
        advice=advice(rows, test_examples=finished.test_examples),
        details={
            "certificates": {f: a.certificate.to_dict() for f, a in finished.artifacts.items()},
            "interfaces": {f: a.interface for f, a in finished.artifacts.items()},
            "methods": {f: a.method for f, a in finished.artifacts.items()},
            "left_float": {**last.left_float, **_left_float(finished.artifacts)},
            "left_dense": dict(last.left_dense),
            "notes": finished.notes,
            "settings": pipeline,
            "versions": versions(),
        },
        test_examples=finished.test_examples,
    )
    return write_report(report, directory)


def _student_row(student: Student, name: str, kind: str, finished: Finished) -> Row:
    view = ModelView(student.model, role="student", several=True)
    found = evaluate(lambda x: view(x, training=False)[1].logits, finished.test, finished.kinds)
    kernels = _kernels(student, finished.floating).values()
    weights = sum(kernel.size for kernel in kernels)
    return Row(
        name,
        kind,
        accuracy=found.accuracy,
        teacher_agreement=_agreement(found, finished.teacher_evaluation),
        parameters=_parameters(finished.floating.model),
        sparsity=sum(int(np.sum(k == 0)) for k in kernels) / weights if weights else None,
        per_class_accuracy=found.per_class_accuracy,
        mean_absolute_errors=found.mean_absolute_errors,
        seconds=sum(student.history.get("seconds", [])) or None,
        outputs=_outputs(found, finished),
    )


def _outputs(found: Evaluation, finished: Finished) -> dict[str, OutputRow]:
    """What a row of a model says of each output, where there are several."""
    rows = {}
    for name in finished.outputs:
        if name in found.labels and name in found.logits:
            rows[name] = _output_row(name, found.of(name), found, finished)
        elif name in found.logits:
            rows[name] = _output_row(name, None, found, finished)
    return rows


def _output_row(
    name: str,
    said: Evaluation | OutputCertificate | None,
    ours: Predictions,
    finished: Finished,
) -> OutputRow:
    """Of one output of several.

    Args:
        name: The output.
        said: How right it is; `None` where it has no labels.
        ours: What the model predicts, of all outputs.
        finished: The run.
    """
    teacher, shared = finished.teacher_evaluation, None
    if teacher is not None and teacher is not ours and name in teacher.logits:
        kinds = {"": ours.kinds[name]} if name in ours.kinds else {}
        shared = share_of_right(ours.predictions[name], teacher.predictions[name], kinds)
    if said is None or said.accuracy is None:
        return OutputRow(math.nan, shared)
    return OutputRow(
        said.accuracy, shared, _known(said.per_class_accuracy), _known(said.mean_absolute_errors)
    )


def _kernels(student: Student, floating: Student) -> dict[str, np.ndarray]:
    """The kernels that can be pruned in the float student, as this student computes with them."""
    prunable = kernel_zeros(floating.model)
    used = quantized_kernels(student.model, student.carriers) if student.quantized else {}
    kernels = {name: kernel for name, kernel in used.items() if name in prunable}
    for layer in student.model.layers:
        inner = layer if layer.name in prunable else getattr(layer, "layer", layer)
        if inner.name in prunable and inner.name not in kernels:  # computes in float
            weights = [np.ravel(weight) for weight in prunable_weights(inner)]
            kernels[inner.name] = np.concatenate(weights)
    return kernels


def _agreement(ours: Predictions, teacher: Evaluation | None) -> float | None:
    return None if teacher is None else agreement(ours, teacher)


def _artifact_row(format: str, artifact: Artifact, finished: Finished) -> Row:
    certificate, latency = artifact.certificate, artifact.certificate.latency
    # As in the students: kernels of depthwise convolutions are never pruned.
    found = inspect_artifact(artifact.path).weights
    kernels = [kernel for kernel in found if kernel.operator != "DEPTHWISE_CONV_2D"]
    weights = sum(kernel.elements for kernel in kernels)
    return Row(
        format,
        "artifact",
        accuracy=certificate.accuracy,
        teacher_agreement=_agreement(artifact, finished.teacher_evaluation),
        sparsity=sum(kernel.zeros for kernel in kernels) / weights if weights else None,
        bytes=certificate.raw_bytes,
        gzip_bytes=certificate.gzip_bytes,
        latency_ms=latency.median_ms if latency else None,
        latency_p90_ms=latency.p90_ms if latency else None,
        certified=certificate.passed,
        per_class_accuracy=_known(certificate.per_class_accuracy),
        mean_absolute_errors=_known(certificate.mean_absolute_errors),
        note=artifact.method,
        outputs={
            name: _output_row(name, each, artifact, finished)
            for name in finished.outputs
            if (each := certificate.outputs.get(name)) is not None
        },
    )


def _known(shares: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if share is None else share for share in shares)


def _disagreements(finished: Finished) -> dict[str, tuple[Disagreement, ...]]:
    """The first test examples, or labels, on which each artifact and the teacher disagree."""
    teacher = finished.teacher_evaluation
    if teacher is None:
        return {}
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for format, artifact in finished.artifacts.items():
        ours, theirs = by_name(artifact.predictions), by_name(teacher.predictions)
        found[format] = [
            (name, tuple(place))  # of an example; or of it and a label
            for name in finished.outputs or ("",)
            if name in theirs and name in by_name(teacher.labels)
            if finished.kinds.get(name) != "numbers"  # which are never quite the same
            for place in np.argwhere(ours[name] != theirs[name])[:_DISAGREEMENTS_SHOWN].tolist()
        ]
    inputs = _examples(finished.test, {place[0] for each in found.values() for _, place in each})
    return {
        format: tuple(
            Disagreement(
                index=place[0],
                label=int(by_name(teacher.labels)[name][place]),
                teacher_class=int(by_name(teacher.predictions)[name][place]),
                artifact_class=int(by_name(finished.artifacts[format].predictions)[name][place]),
                image=inputs[place[0]],
                output=name,
                of_label=place[1] if len(place) > 1 else None,
            )
            for name, place in each
        )
        for format, each in found.items()
    }


def _examples(test: Any, wanted: set[int]) -> dict[int, np.ndarray | None]:
    found: dict[int, np.ndarray | None] = {}
    start = 0
    for batch, *_ in test:
        if len(found) == len(wanted):
            break
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        single = parts if not isinstance(parts, (list, tuple)) else None
        count = len(single if single is not None else parts[0])
        for index in wanted & set(range(start, start + count)):
            found[index] = None if single is None else np.asarray(single[index - start])
        start += count
    return found


def _curves(student: Student) -> dict[str, list[float]]:
    return {name: values for name, values in student.history.items() if name != "seconds"}


def _left_float(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    return {
        f"{format} artifact": " ".join(artifact.left_float)
        for format, artifact in artifacts.items()
        if artifact.left_float
    }


def _parameters(model: Any) -> int | None:
    count = getattr(model, "count_params", None)
    found = count() if callable(count) else None
    return None if found is None else int(found)

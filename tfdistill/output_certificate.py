"""What a certificate says of one output of an artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill.comparison import Compared
from tfdistill.export import Limits
from tfdistill.regression import errors_of_numbers, explained, explained_of_each

__all__ = [
    "OutputCertificate",
    "OutputError",
    "WorstExample",
    "certified",
    "failures_of",
    "share_of",
]

_WORST = 10
_AGREEMENTS = {
    "classes": "Artifact and model agree on {:.4f} of the examples",
    "labels": "Artifact and model agree on {:.4f} of the labels",
    "numbers": "The artifact explains {:.4f} of the variance of the model's numbers (R²)",
}
ERRORS = ("mean_absolute_errors", "reference_mean_absolute_errors")  # which only numbers have


@dataclass(frozen=True)
class OutputError:
    """How far the artifact's outputs are from the model's, over all outputs of all examples.

    Attributes:
        unit: "quantization steps" of the output; "output units" where it is not quantized.
        scale: One quantization step in output units, `None` where it is not quantized.
        p50: Half of the outputs err by no more, in `unit`.
        p99: 99 % of the outputs err by no more, in `unit`.
        maximum: The largest error, in `unit`.
        max_absolute: The largest error, in output units.
        max_relative: The largest error as a share of the model's largest output.
    """

    unit: str
    scale: float | None
    p50: float
    p99: float
    maximum: float
    max_absolute: float
    max_relative: float


@dataclass(frozen=True)
class WorstExample:
    """An example on which the artifact's output is far from the model's.

    Attributes:
        index: Its place in the test set.
        label: Its class; `None` where the set has no labels.
        prediction: The class that the artifact predicts.
        reference_prediction: The class that the model predicts.
        error: Its largest output error, in the unit of `OutputError`; `None` where an output is
            not finite.
        of_label: Of several labels that may be true together, or of numbers, which of them is the
            farthest: the three above are then 1 for yes and 0 for no, or that number. `None` of a
            class.
    """

    index: int
    label: float | None
    prediction: float | None
    reference_prediction: float | None
    error: float | None
    of_label: int | None = None


@dataclass(frozen=True)
class OutputCertificate:
    """How one output of an artifact behaves.

    Attributes:
        name: Its name in the artifact.
        classes: Number of classes, of labels or of numbers.
        accuracy: Share of right classes, of the artifact, or of labels decided right, over all
            examples and labels; of numbers R², the share of the labels' variance that is explained,
            their mean. `None` where the test set has no labels for it.
        reference_accuracy: The same of the model the artifact came from.
        per_class_accuracy: Of the artifact, by class, `None` for a class without examples; or by
            label, over all examples; so of numbers.
        agreement: Share of examples on which both predict the same class; or of labels on which
            both decide the same; of numbers R², of the model's that is explained.
        output_error: Difference of their outputs; `None` if no output is finite.
        worst_examples: Those with the largest difference, worst first.
        label_names: The classes' names.
        counted: What accuracy and agreement count: "classes", one for each example; "labels" of an
            output that answers yes or no to each of several; or "numbers".
        mean_absolute_errors: Of the artifact's numbers, each in the unit of its labels; else empty.
        reference_mean_absolute_errors: Of the model's.
    """

    name: str
    classes: int
    accuracy: float | None
    reference_accuracy: float | None
    per_class_accuracy: tuple[float | None, ...]
    agreement: float
    output_error: OutputError | None
    worst_examples: tuple[WorstExample, ...]
    label_names: tuple[str, ...] = ()
    counted: str = "classes"
    mean_absolute_errors: tuple[float | None, ...] = ()
    reference_mean_absolute_errors: tuple[float | None, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> OutputCertificate:
        """The one that `dataclasses.asdict` gave, also after a trip through JSON."""
        error = content["output_error"]
        return cls(
            **{
                **content,
                "agreement": share_of(content["agreement"]),
                "per_class_accuracy": tuple(content["per_class_accuracy"]),
                "output_error": None if error is None else OutputError(**error),
                "worst_examples": tuple(WorstExample(**e) for e in content["worst_examples"]),
                "label_names": tuple(content["label_names"]),
                **{name: tuple(content.get(name, ())) for name in ERRORS},
            }
        )


def certified(
    run: Compared, scale: float | None, label_names: tuple[str, ...]
) -> OutputCertificate:
    """What is to be said of an output.

    Args:
        run: What artifact and model answered.
        scale: One quantization step of the output, `None` where it is not quantized.
        label_names: The classes' names.
    """
    error, worst = _compare(run, scale)
    shares: dict[str, Any] = {
        "accuracy": None,
        "reference_accuracy": None,
        "per_class_accuracy": (),
    }
    agreement = float(np.mean(run.predictions == run.reference_predictions))
    if run.kind == "numbers":
        shares, agreement = _of_numbers(run)
    elif run.labels is not None:
        right = run.predictions == run.labels
        shares = {
            "accuracy": float(np.mean(right)),
            "reference_accuracy": float(np.mean(run.reference_predictions == run.labels)),
            "per_class_accuracy": tuple(right.mean(axis=0).tolist())
            if run.kind == "labels"
            else tuple(
                float(np.mean(right[run.labels == label])) if label in run.labels else None
                for label in range(run.classes)
            ),
        }
    return OutputCertificate(
        name=run.name,
        classes=run.classes,
        agreement=agreement,
        output_error=error,
        worst_examples=worst,
        label_names=label_names,
        counted=run.kind,
        **shares,
    )


def _of_numbers(run: Compared) -> tuple[dict[str, Any], float]:
    """What depends on labels, and the agreement."""
    agreement = explained(run.outputs, run.reference_outputs)
    if run.labels is None:
        return {"accuracy": None, "reference_accuracy": None, "per_class_accuracy": ()}, agreement
    return {
        "accuracy": explained(run.outputs, run.labels),
        "reference_accuracy": explained(run.reference_outputs, run.labels),
        "per_class_accuracy": explained_of_each(run.outputs, run.labels),
        "mean_absolute_errors": errors_of_numbers(run.outputs, run.labels),
        "reference_mean_absolute_errors": errors_of_numbers(run.reference_outputs, run.labels),
    }, agreement


def _compare(
    run: Compared, scale: float | None
) -> tuple[OutputError | None, tuple[WorstExample, ...]]:
    """The difference of the outputs, over all of them and by example."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(run.outputs.astype(np.float64) - run.reference_outputs)
    errors = difference / (scale or 1.0)
    finite = errors[np.isfinite(errors)]
    summary = None
    if finite.size:
        largest = np.abs(run.reference_outputs[np.isfinite(run.reference_outputs)]).max(initial=0)
        absolute = float(difference[np.isfinite(difference)].max())
        summary = OutputError(
            unit="quantization steps" if scale else "output units",
            scale=scale,
            p50=float(np.quantile(finite, 0.5)),
            p99=float(np.quantile(finite, 0.99)),
            maximum=float(finite.max()),
            max_absolute=absolute,
            max_relative=absolute / float(largest) if largest else 0.0,
        )
    known = np.nan_to_num(errors, nan=np.inf)
    by_example, farthest = known.max(axis=1), known.argmax(axis=1)
    worst = []
    for index in np.argsort(-by_example, kind="stable")[:_WORST].tolist():
        if by_example[index] > 0:
            of_label = None if run.kind == "classes" else int(farthest[index])
            place = index if of_label is None else (index, of_label)
            plain = _finite if run.kind == "numbers" else int
            worst.append(
                WorstExample(
                    index=index,
                    label=None if run.labels is None else plain(run.labels[place]),
                    prediction=plain(run.predictions[place]),
                    reference_prediction=plain(run.reference_predictions[place]),
                    error=float(by_example[index]) if np.isfinite(by_example[index]) else None,
                    of_label=of_label,
                )
            )
    return summary, tuple(worst)


def share_of(value: float | None) -> float:
    """A share after a trip through JSON, which has no NaN."""
    return math.nan if value is None else value


def _finite(number: Any) -> float | None:
    return float(number) if np.isfinite(number) else None


def failures_of(found: OutputCertificate, run: Compared, limits: Limits) -> tuple[str, ...]:
    """What of an output is beyond the limits, a sentence each."""
    failures = []
    for who, outputs in (("artifact", run.outputs), ("model", run.reference_outputs)):
        broken = np.count_nonzero(~np.isfinite(outputs).all(axis=1))
        if broken:
            failures.append(
                f"The {who} gives NaN or infinity on {broken} of {len(outputs)} examples."
            )
    if run.kind == "numbers" and len(run.outputs) < 2:
        failures.append("R² is of two examples or more; the test set has one.")
    if found.accuracy is not None and found.reference_accuracy is not None:
        drop = found.reference_accuracy - found.accuracy
        if limits.max_accuracy_drop is not None and drop > limits.max_accuracy_drop + 1e-9:
            what = "R²" if run.kind == "numbers" else "Accuracy"
            failures.append(
                f"{what} drops by {drop:.4f}, from {found.reference_accuracy:.4f} to "
                f"{found.accuracy:.4f}; the limit is {limits.max_accuracy_drop:.4f}."
            )
    if limits.min_agreement is not None and found.agreement < limits.min_agreement - 1e-9:
        shared = _AGREEMENTS[run.kind].format(found.agreement)
        failures.append(f"{shared}; the limit is {limits.min_agreement:.4f}.")
    error, steps = found.output_error, limits.max_output_error_steps
    if steps is not None and error is not None and error.scale and error.p99 > steps:
        failures.append(
            f"1 % of the outputs err by more than {error.p99:.2f} quantization steps; the limit "
            f"is {steps:g}."
        )
    return tuple(failures)

"""The certificate: an artifact, run on the whole test set, held against its model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.comparison import Comparison, Runnable, compare_classifiers
from tfdistill.errors import CertificationError, SettingError
from tfdistill.export import Limits
from tfdistill.export.exported import left_float
from tfdistill.export.saved_artifacts import inspect_artifact, open_artifact
from tfdistill.host import processor, versions
from tfdistill.litert.flatbuffer import Operator
from tfdistill.litert.metadata import read_metadata
from tfdistill.litert.runtime import Latency, LiteRTModel, measure_latency
from tfdistill.litert.sidecar import (
    check_artifact_path,
    describe_interface,
    read_sidecar,
    sidecar_path,
    was_exported,
    write_sidecar,
)

__all__ = ["Certificate", "Latency", "Limits", "OutputError", "WorstExample", "certify"]

_WORST = 10


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
        label: Its class.
        prediction: The class that the artifact predicts.
        reference_prediction: The class that the model predicts.
        error: Its largest output error, in the unit of `OutputError`; `None` where an output is
            not finite.
    """

    index: int
    label: int
    prediction: int
    reference_prediction: int
    error: float | None


@dataclass(frozen=True)
class Certificate:
    """What an artifact is and how it behaves.

    Attributes:
        artifact: The file's name.
        sha256: Hash of the file, hexadecimal.
        format: The format by what is in the file.
        raw_bytes: Size of the file.
        gzip_bytes: Its size after gzip.
        elements: Weights in the file.
        zeros: Weights that are 0 in the file.
        weight_zeros: Weight tensor's name to its (zeros, weights).
        operators: Operators with their types; none of a SavedModel or a Keras file.
        examples: Size of the test set.
        classes: Number of classes.
        accuracy: Share of right classes, of the artifact.
        reference_accuracy: Share of right classes, of the model the artifact came from.
        per_class_accuracy: Of the artifact, by class; `None` for a class without examples.
        agreement: Share of examples on which both predict the same class.
        output_error: Difference of their outputs; `None` if no output is finite.
        worst_examples: Those with the largest difference, worst first.
        latency: Of the artifact; `None` of one that is not run in LiteRT.
        float32_latency: Of the float32 student, measured in turn with the artifact's.
        host: What the latencies were measured on.
        versions: Packages and their versions.
        limits: What it was held against.
        failures: What is beyond the limits, a sentence each.
        label_names: The classes' names.
        left_float: What is not as the format's name says, and why, a sentence each.
        layers_left_float: Layer to the reason why quantization-aware training left it in float.
        predictions: The artifact's class for each example, int64 `[examples]`; not written.
        labels: The true class of each, int64 `[examples]`; not written.
    """

    artifact: str
    sha256: str
    format: str
    raw_bytes: int
    gzip_bytes: int
    elements: int
    zeros: int
    weight_zeros: Mapping[str, tuple[int, int]]
    operators: tuple[Operator, ...]
    examples: int
    classes: int
    accuracy: float
    reference_accuracy: float
    per_class_accuracy: tuple[float | None, ...]
    agreement: float
    output_error: OutputError | None
    worst_examples: tuple[WorstExample, ...]
    latency: Latency | None
    float32_latency: Latency | None
    host: str
    versions: Mapping[str, str]
    limits: Limits
    failures: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    left_float: tuple[str, ...] = ()
    layers_left_float: Mapping[str, str] = field(default_factory=dict)
    predictions: np.ndarray | None = field(default=None, repr=False, compare=False)
    labels: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether it is within all limits."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Does nothing if the artifact passed.

        Raises:
            CertificationError: It did not; the message lists the failures.
        """
        if self.failures:
            raise CertificationError(
                f"`{self.artifact}` must behave as the model it came from.",
                received=" ".join(self.failures),
                hint="Look at the worst examples in its certificate; or set other Limits.",
            )

    def to_dict(self) -> dict[str, Any]:
        """The certificate in JSON's types, without `predictions` and `labels`."""
        found = {**asdict(self), "passed": self.passed}
        del found["predictions"], found["labels"]
        return found

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_dict` gave, also after a trip through JSON."""
        values = {name: value for name, value in content.items() if name != "passed"}
        for name in ("failures", "label_names", "left_float", "per_class_accuracy"):
            values[name] = tuple(values.get(name, ()))  # an older one may lack it
        values["operators"] = tuple(Operator(**each) for each in values["operators"])
        values["worst_examples"] = tuple(WorstExample(**e) for e in values["worst_examples"])
        single: dict[str, Any] = {
            "output_error": OutputError,
            "latency": Latency,
            "float32_latency": Latency,
            "limits": Limits,
        }
        for name, kind in single.items():
            values[name] = kind(**values[name]) if values[name] is not None else None
        values["layers_left_float"] = dict(values.get("layers_left_float", {}))
        values["weight_zeros"] = {k: tuple(v) for k, v in values["weight_zeros"].items()}
        return cls(**values)

    def write_sidecar(self, path: str | os.PathLike[str]) -> Path:
        """Writes the certificate into the JSON file beside the artifact.

        What the export wrote there stays: interface, normalisation, label names.

        Args:
            path: The artifact.

        Returns:
            The JSON file.

        Raises:
            CertificationError: The file is not the one that was certified.
            RunDirectoryError: The JSON file is foreign, or cannot be written.
        """
        inspection = inspect_artifact(path)
        if inspection.sha256 != self.sha256:
            raise CertificationError(
                f"`{path}` must be the file that was certified.",
                received=f"sha256 {inspection.sha256} instead of {self.sha256}",
                hint="Certify it again.",
            )
        older = read_sidecar(path)
        if older is None and sidecar_path(path).exists():
            check_artifact_path(path)  # raises: that file is not ours
        ours = older is not None and was_exported(older, self.sha256)
        kept = _described(path, self.sha256)
        interface = kept["interface"] if kept else describe_interface(inspection)
        if not ours and not interface["label_names"]:
            interface = {**interface, "label_names": list(self.label_names)}
        return write_sidecar(
            path,
            inspection=inspection,
            format=kept["artifact"]["format"] if kept else self.format,
            method=kept["artifact"]["method"] if kept else "unknown",
            interface=interface,
            certificate=self.to_dict(),
            exported=ours,
        )


def certify(
    path: str | os.PathLike[str],
    model: Any,
    data: Any,
    *,
    limits: Limits | None = None,
    float32_path: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] = (),
) -> Certificate:
    """Runs an artifact on a test set and holds it against the model it came from.

    For classifiers with one output `[batch, classes]`, or `[batch, 1]` for two classes: class 1
    is then a probability above 0.5, where the artifact ends in a sigmoid, or a logit above 0.
    The set is read batch by batch; outputs and labels are kept, inputs are not.

    Args:
        path: The `.tflite` file, run in LiteRT; the folder of a SavedModel or a `.keras` file
            that this library wrote, run by TensorFlow.
        model: What it came from: a tf_keras model (simulating 8-bit arithmetic, after
            quantization-aware training), a Keras 3 model, or a function from a batch of inputs
            to outputs of the artifact's shape.
        data: Batches `(x, y)` or `(x, y, weights)`, such as a `tf.data.Dataset`, or one such
            tuple of arrays. `x` is what the model takes; `y` is class numbers `[batch]` or
            one-hot rows `[batch, classes]`. Weights are not used.
        limits: What passes; by default the format's own limits.
        float32_path: The float32 student's artifact, to compare latencies.
        label_names: The classes' names; by default those in the JSON file beside the artifact,
            or in the artifact.

    Raises:
        CertificationError: The artifact needs operators that cannot be run here. What it does
            wrong is not raised but written in the certificate: see `raise_if_failed`.
        DataError: The data is empty or endless, has other shapes, or labels outside the classes.
        ModelError: The file is no LiteRT model, or model and artifact are no such classifiers.
        SettingError: There are not as many label names as classes.

    Example:
        >>> certificate = td.certify("student_int8.tflite", model, (test_images, test_labels))
        >>> certificate.passed, certificate.accuracy
        (True, 0.9663)
    """
    inspection = inspect_artifact(path)
    if inspection.custom_operators:
        raise CertificationError(
            f"`{path}` must have only operators built into LiteRT, to be certified here.",
            received=", ".join(inspection.custom_operators),
            hint="Replace the layers that need them, or test the artifact in the app.",
        )
    artifact = open_artifact(path)
    known = _described(path, inspection.sha256)
    label_names = tuple(label_names or (known["interface"]["label_names"] if known else ()))
    format = known["artifact"]["format"] if known else inspection.format
    certified_before = (known or {}).get("certificate") or {}
    run = compare_classifiers(artifact, model, data)
    if label_names and len(label_names) != run.classes:
        raise SettingError(
            f"`label_names` must be {run.classes} names, one for each class.",
            received=label_names,
        )
    limits = (limits or Limits()).for_format(inspection.format)
    output_error, worst = _compare(run, inspection.output_scales[artifact.outputs[0].name])
    latency, float32_latency = _latencies(artifact, float32_path, run.first)
    right = run.predictions == run.labels
    certificate = Certificate(
        artifact=Path(path).name,
        sha256=inspection.sha256,
        format=inspection.format,
        raw_bytes=inspection.raw_bytes,
        gzip_bytes=inspection.gzip_bytes,
        elements=inspection.elements,
        zeros=inspection.zeros,
        weight_zeros={each.name: (each.zeros, each.elements) for each in inspection.weights},
        operators=inspection.operators,
        examples=len(run.labels),
        classes=run.classes,
        accuracy=float(np.mean(right)),
        reference_accuracy=float(np.mean(run.reference_predictions == run.labels)),
        per_class_accuracy=tuple(
            float(np.mean(right[run.labels == label])) if label in run.labels else None
            for label in range(run.classes)
        ),
        agreement=float(np.mean(run.predictions == run.reference_predictions)),
        output_error=output_error,
        worst_examples=worst,
        latency=latency,
        float32_latency=float32_latency,
        host=f"{processor()} (host CPU, one thread: no phone)",
        versions=versions(),
        limits=limits,
        failures=(),
        label_names=label_names,
        left_float=left_float(inspection, format, model) if hasattr(model, "layers") else (),
        layers_left_float=certified_before.get("layers_left_float", {}),
        predictions=run.predictions,
        labels=run.labels,
    )
    return replace(certificate, failures=_failures(certificate, run))


def _compare(
    run: Comparison, scale: float | None
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
    by_example = np.nan_to_num(errors, nan=np.inf).max(axis=1)
    worst = tuple(
        WorstExample(
            index=int(index),
            label=int(run.labels[index]),
            prediction=int(run.predictions[index]),
            reference_prediction=int(run.reference_predictions[index]),
            error=float(by_example[index]) if np.isfinite(by_example[index]) else None,
        )
        for index in np.argsort(-by_example, kind="stable")[:_WORST]
        if by_example[index] > 0
    )
    return summary, worst


def _failures(certificate: Certificate, run: Comparison) -> tuple[str, ...]:
    limits, failures = certificate.limits, []
    for who, outputs in (("artifact", run.outputs), ("model", run.reference_outputs)):
        broken = np.count_nonzero(~np.isfinite(outputs).all(axis=1))
        if broken:
            failures.append(
                f"The {who} gives NaN or infinity on {broken} of {certificate.examples} examples."
            )
    drop = certificate.reference_accuracy - certificate.accuracy
    if limits.max_accuracy_drop is not None and drop > limits.max_accuracy_drop + 1e-9:
        failures.append(
            f"Accuracy drops by {drop:.4f}, from {certificate.reference_accuracy:.4f} to "
            f"{certificate.accuracy:.4f}; the limit is {limits.max_accuracy_drop:.4f}."
        )
    if limits.min_agreement is not None and certificate.agreement < limits.min_agreement - 1e-9:
        failures.append(
            f"Artifact and model agree on {certificate.agreement:.4f} of the examples; the limit "
            f"is {limits.min_agreement:.4f}."
        )
    error, steps = certificate.output_error, limits.max_output_error_steps
    if steps is not None and error is not None and error.scale and error.p99 > steps:
        failures.append(
            f"1 % of the outputs err by more than {error.p99:.2f} quantization steps; the limit "
            f"is {steps:g}."
        )
    return tuple(failures)


def _described(path: str | os.PathLike[str], sha256: str) -> dict[str, Any] | None:
    """What the JSON file beside an artifact says of it; else what the artifact itself says."""
    sidecar = read_sidecar(path) if Path(path).suffix in (".tflite", ".keras", "") else None
    if sidecar is not None and was_exported(sidecar, sha256):
        return sidecar
    return None if Path(path).is_dir() or Path(path).suffix == ".keras" else read_metadata(path)


def _latencies(
    artifact: Runnable,
    float32_path: str | os.PathLike[str] | None,
    example: dict[str, np.ndarray],
) -> tuple[Latency | None, Latency | None]:
    if not isinstance(artifact, LiteRTModel):
        return None, None
    models = [artifact] if float32_path is None else [artifact, LiteRTModel(float32_path)]
    found = measure_latency([model.seconds_per_run(example) for model in models])
    return found[0], found[1] if float32_path is not None else None

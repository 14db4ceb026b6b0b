"""The certificate: an artifact, run on the whole test set, held against its model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.comparison import Comparison, Runnable, compare
from tfdistill.errors import CertificationError
from tfdistill.evaluation import share_of_right
from tfdistill.export import Limits
from tfdistill.export.exported import left_float
from tfdistill.export.saved_artifacts import inspect_artifact, open_artifact
from tfdistill.export.settings import check_label_names
from tfdistill.host import processor, versions
from tfdistill.litert.flatbuffer import Operator
from tfdistill.litert.metadata import read_metadata
from tfdistill.litert.runtime import Latency, LiteRTModel, measure_latency
from tfdistill.litert.sidecar import (
    check_artifact_path,
    describe_interface,
    kinds_of,
    label_names_of,
    read_sidecar,
    sidecar_path,
    was_exported,
    with_kinds,
    write_sidecar,
)
from tfdistill.named import by_name
from tfdistill.output_certificate import (
    ERRORS,
    OutputCertificate,
    OutputError,
    WorstExample,
    certified,
    failures_of,
    share_of,
)

__all__ = [
    "Certificate",
    "Latency",
    "Limits",
    "OutputCertificate",
    "OutputError",
    "WorstExample",
    "certify",
]


@dataclass(frozen=True)
class Certificate:
    """What an artifact is and how it behaves.

    Of several outputs the shares here are of examples on which all of them are right, or agree,
    with all their labels; what is said of each is in `outputs`, and held against the limits.

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
        classes: Number of classes, of labels or of numbers; `None` of several outputs.
        accuracy: Share of right classes, of the artifact; of an output of several labels that may
            be true together the share of labels decided right, over all examples and labels; of
            numbers R², the share of the labels' variance that is explained, their mean.
        reference_accuracy: The same of the model the artifact came from.
        per_class_accuracy: Of the artifact, by class, `None` for a class without examples; or by
            label, over all examples; so of numbers.
        agreement: Share of examples on which both predict the same class; or of labels on which
            both decide the same; of numbers R², of the model's that is explained.
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
        predictions: The artifact's class for each example, int64 `[examples]`; of several labels
            its yes or no to each, int64 `[examples, labels]`; its numbers; of several outputs by
            name; not written.
        labels: What is true of each, in the same form; by name of those outputs that have labels;
            not written.
        outputs: Of several outputs what is said of each, by name.
        counted: What accuracy and agreement count: "classes", one for each example; "labels" of an
            output that answers yes or no to each of several; "numbers"; "examples" of several
            outputs, of which those of numbers do not count there.
        mean_absolute_errors: Of the artifact's numbers, each in the unit of its labels; else empty.
        reference_mean_absolute_errors: Of the model's.
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
    classes: int | None
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
    predictions: Any = field(default=None, repr=False, compare=False)
    labels: Any = field(default=None, repr=False, compare=False)
    outputs: Mapping[str, OutputCertificate] = field(default_factory=dict)
    counted: str = "classes"
    mean_absolute_errors: tuple[float | None, ...] = ()
    reference_mean_absolute_errors: tuple[float | None, ...] = ()

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
        for name in ("outputs", *ERRORS):
            if not found[name]:
                del found[name]
        return found

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_dict` gave, also after a trip through JSON."""
        values = {name: value for name, value in content.items() if name != "passed"}
        for name in ("failures", "label_names", "left_float", "per_class_accuracy", *ERRORS):
            values[name] = tuple(values.get(name, ()))  # an older one may lack it
        for name in ("accuracy", "reference_accuracy", "agreement"):
            values[name] = share_of(values[name])
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
        outputs = values.get("outputs", {}).items()
        values["outputs"] = {name: OutputCertificate.from_dict(each) for name, each in outputs}
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
        if not ours and not label_names_of(interface):
            interface = self._with_label_names(interface)
        interface = with_kinds(interface, self._kinds(interface))
        return write_sidecar(
            path,
            inspection=inspection,
            format=kept["artifact"]["format"] if kept else self.format,
            method=kept["artifact"]["method"] if kept else "unknown",
            interface=interface,
            certificate=self.to_dict(),
            exported=ours,
        )

    def _kinds(self, interface: Mapping[str, Any]) -> dict[str, str]:
        """What outputs answer, by their names in the artifact."""
        if self.outputs:
            return {each.name: each.counted for each in self.outputs.values()}
        return {each["name"]: self.counted for each in interface["outputs"]}

    def _with_label_names(self, interface: dict[str, Any]) -> dict[str, Any]:
        """How the artifact is read, with the classes' names."""
        if not self.outputs:
            return {**interface, "label_names": list(self.label_names)}
        names = {each.name: [*each.label_names] for each in self.outputs.values()}
        outputs = [
            {**each, **({"label_names": names[each["name"]]} if names[each["name"]] else {})}
            for each in interface["outputs"]
        ]
        return {**interface, "outputs": outputs}


def certify(
    path: str | os.PathLike[str],
    model: Any,
    data: Any,
    *,
    limits: Limits | None = None,
    float32_path: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] | Mapping[str, Sequence[str]] = (),
) -> Certificate:
    """Runs an artifact on a test set and holds it against the model it came from.

    For classifiers with outputs `[batch, classes]`, or `[batch, 1]` for two classes: class 1
    is then a probability above 0.5, where the artifact ends in a sigmoid, or a logit above 0. So is
    each label of an output of several that may be true together, `[batch, labels]`: of these the
    JSON file beside the artifact knows, or rows of labels with several ones, or none, tell. And for
    models with outputs of numbers, `[batch, numbers]`, which the JSON file says that they are.
    Each of several outputs is held against the limits; one without labels but for its accuracy.
    The set is read batch by batch; outputs and labels are kept, inputs are not.

    Args:
        path: The `.tflite` file, run in LiteRT; the folder of a SavedModel or a `.keras` file
            that this library wrote, run by TensorFlow.
        model: What it came from: a tf_keras model (simulating 8-bit arithmetic, after
            quantization-aware training), a Keras 3 model, or a function from a batch of inputs
            to outputs of the artifact's shape; to several by the artifact's names.
        data: Batches `(x, y)` or `(x, y, weights)`, such as a `tf.data.Dataset`, or one such
            tuple of arrays. `x` is what the model takes; `y` is class numbers `[batch]` or
            one-hot rows `[batch, classes]`, or rows `[batch, labels]` of numbers in [0, 1], yes
            above 0.5, or numbers `[batch]` or `[batch, numbers]`; of several outputs by name, some
            may be missing, or a tuple in the model's order. Weights are not used.
        limits: What passes; by default the format's own limits.
        float32_path: The float32 student's artifact, to compare latencies.
        label_names: The classes' names; by default those in the JSON file beside the artifact,
            or in the artifact. Of several outputs by name.

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
    format = known["artifact"]["format"] if known else inspection.format
    certified_before = (known or {}).get("certificate") or {}
    run = compare(artifact, model, data, kinds_of(known["interface"]) if known else {})
    names = _label_names(label_names, run, known)
    limits = (limits or Limits()).for_format(inspection.format)
    outputs = {
        name: certified(each, inspection.output_scales[each.name], names[name])
        for name, each in run.outputs.items()
    }
    failures = [
        f"{name}: {failure}" if name else failure
        for name, each in run.outputs.items()
        for failure in failures_of(outputs[name], each, limits)
    ]
    latency, float32_latency = _latencies(artifact, float32_path, run.first)
    return Certificate(
        artifact=Path(path).name,
        sha256=inspection.sha256,
        format=inspection.format,
        raw_bytes=inspection.raw_bytes,
        gzip_bytes=inspection.gzip_bytes,
        elements=inspection.elements,
        zeros=inspection.zeros,
        weight_zeros={each.name: (each.zeros, each.elements) for each in inspection.weights},
        operators=inspection.operators,
        examples=run.examples,
        latency=latency,
        float32_latency=float32_latency,
        host=f"{processor()} (host CPU, one thread: no phone)",
        versions=versions(),
        limits=limits,
        failures=tuple(failures),
        left_float=left_float(inspection, format, model) if hasattr(model, "layers") else (),
        layers_left_float=certified_before.get("layers_left_float", {}),
        **_answers(run, outputs),
    )


def _answers(run: Comparison, outputs: Mapping[str, OutputCertificate]) -> dict[str, Any]:
    """What is said of the only output, or of all."""
    labels = {name: each.labels for name, each in run.outputs.items() if each.labels is not None}
    predictions = {name: each.predictions for name, each in run.outputs.items()}
    if len(outputs) == 1:
        (only,) = outputs.values()
        found = {each.name: getattr(only, each.name) for each in fields(only)}
        del found["name"]
        return {**found, "predictions": predictions[""], "labels": labels[""]}
    references = {name: each.reference_predictions for name, each in run.outputs.items()}
    kinds = {name: each.kind for name, each in run.outputs.items()}
    return {
        "classes": None,
        "accuracy": share_of_right(predictions, labels, kinds),
        "reference_accuracy": share_of_right(references, labels, kinds),
        "per_class_accuracy": (),
        "agreement": share_of_right(predictions, references, kinds),
        "output_error": None,
        "worst_examples": (),
        "predictions": predictions,
        "labels": labels,
        "outputs": outputs,
        "counted": "examples",
    }


def _label_names(
    given: Any, run: Comparison, known: Mapping[str, Any] | None
) -> dict[str, tuple[str, ...]]:
    """The classes' names by output: those given, else those that the artifact is known to have."""
    label_names = {output: tuple(names) for output, names in by_name(given or ()).items()}
    if not any(label_names.values()):
        described = label_names_of(known["interface"]) if known else {}
        label_names = {n: tuple(described.get(c.name, ())) for n, c in run.outputs.items()}
    label_names = {output: names for output, names in label_names.items() if names}
    if label_names:
        of_one = label_names.get("", label_names)
        check_label_names(of_one, {name: each.classes for name, each in run.outputs.items()})
    return {name: label_names.get(name, ()) for name in run.outputs}


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

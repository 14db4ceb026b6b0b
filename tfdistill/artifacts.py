"""The last stage: the trained students become certified artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill import bridge
from tfdistill.certificate import Certificate, certify
from tfdistill.errors import CertificationError, ConversionError, ExportError, ModelError
from tfdistill.evaluation import require_same_labels
from tfdistill.export import Export, ExportedModel, export_model
from tfdistill.export.saved_artifacts import inspect_artifact
from tfdistill.export.settings import SAVED
from tfdistill.litert.sidecar import check_artifact_path, read_sidecar, sidecar_path, write_sidecar
from tfdistill.named import Kind, by_name
from tfdistill.runs.files import reading_and_writing
from tfdistill.runs.records import DamagedFileError, read_record, sha256_of
from tfdistill.runs.run import RunDirectory, StageResult, fingerprint
from tfdistill.stages import Student
from tfdistill.terminal import Terminal

_STAGE = "certification"
_LABELS = "labels"
_NAMES = {"savedmodel": "student_savedmodel", "keras": "student.keras"}
_BEFORE_QUANTIZATION = "of the student before the quantization stage, which is for int8"


@dataclass(frozen=True)
class Artifact:
    """A file or folder for apps and servers, and the proof of what it does.

    Attributes:
        path: Where it is; a JSON file of the same name stands beside it.
        certificate: How it behaves on the test set, against the model it came from.
        method: How it was quantized, in words.
        interface: How an app feeds and reads it.
        left_float: What is not as the format's name says, a sentence each.
        predictions: Its class for every test example, int64 `[examples]`; of an output of several
            labels its yes or no to each, int64 `[examples, labels]`; its numbers, float32
            `[examples, numbers]`; of several outputs by name.
        labels: What is true of each, in the same form; of several outputs by name, of those that
            have labels.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.
    """

    path: Path
    certificate: Certificate
    method: str
    interface: Mapping[str, Any]
    left_float: tuple[str, ...]
    predictions: Any
    labels: Any
    kinds: Mapping[str, Kind] = field(default_factory=dict)


def artifact_path(directory: RunDirectory, format: str) -> Path:
    """Where a run's artifact of this format is."""
    return directory.artifacts / _NAMES.get(format, f"student_{format}.tflite")


def check_artifact_paths(directory: RunDirectory, export: Export, terminal: Terminal) -> None:
    """Makes sure before any training that the artifacts can be written at its end.

    An artifact or sidecar that is not what the run wrote is named and put aside.

    Args:
        directory: The run.
        export: The formats.
        terminal: Told of files put aside.

    Raises:
        RunDirectoryError: There is a file where the run wrote none.
    """
    recorded = _recorded(directory)
    for format in export.formats:
        path = artifact_path(directory, format)
        _put_changed_aside(path, format, recorded.get(format), terminal)
        check_artifact_path(path)


def _recorded(directory: RunDirectory) -> dict[str, Any]:
    """Format to what the last finished run of any settings recorded of its artifact."""
    try:
        record = read_record(directory.path / _STAGE / "stage.json")
    except DamagedFileError:
        return {}
    found = record["summary"] if record else {}
    return {format: each for format, each in found.items() if "sidecar_sha256" in each}


def _put_changed_aside(path: Path, format: str, recorded: Any, terminal: Terminal) -> None:
    """Leaves the artifact and its sidecar as a run wrote them, or free places."""
    beside, sidecar, found = sidecar_path(path), read_sidecar(path), sha256_of(path)
    certified = recorded["certificate"]["sha256"] if recorded else ""
    known = sidecar["artifact"] if sidecar else {"sha256": "", "replaces": None}
    ours = (certified, known["sha256"], known["replaces"])
    if found and found not in ours and any(ours):
        _put_aside(path, terminal)
        found = ""
    # Killed before it was recorded, a run leaves a sidecar that knows the artifact beside it.
    newer = known["replaces"] or (found and found == known["sha256"] != certified)
    if recorded and not newer and sha256_of(beside) != recorded["sidecar_sha256"]:
        if beside.exists():
            _put_aside(beside, terminal)
        elif found:
            terminal.note(f"{beside} is missing; it is made again.")
        if found:
            _write_sidecar(path, format, recorded)


def _put_aside(path: Path, terminal: Terminal) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    number = 0
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    terminal.note(
        f"{path} is not what was written there; it is made again, the other is {aside.name}."
    )
    with reading_and_writing(path):
        path.replace(aside)


def _write_sidecar(path: Path, format: str, recorded: Mapping[str, Any]) -> None:
    """Writes the sidecar of a certified artifact once more."""
    write_sidecar(
        path,
        inspection=inspect_artifact(path),
        format=format,
        method=recorded["method"],
        interface=recorded["interface"],
        certificate=recorded["certificate"],
        exported=True,
    )


def make_artifacts(
    floating: Student,
    quantized: Student | None,
    export: Export,
    *,
    calibration: Any,
    test: Any,
    test_identity: str,
    directory: RunDirectory,
    terminal: Terminal,
    to_keras3: Callable[[Any], Any] = bridge.to_keras3,
    kinds: Mapping[str, Kind] | None = None,
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Exports every format and certifies it on the test set, or takes what is there.

    Args:
        floating: The last student in floating point.
        quantized: The quantization-aware trained one, for int8; `None` calibrates after
            training.
        export: The stage's settings.
        calibration: Batches of training data.
        test: Batches of test data.
        test_identity: What tells one test set from another.
        directory: The run.
        terminal: Told what is going on.
        to_keras3: For the format keras: makes of `floating` the Keras model to be saved.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.

    Returns:
        Format to artifact, in the order of `export.formats`; and format to the reason for what
        cannot be written, or not be run here, as with TensorFlow's select ops.

    Raises:
        DataError: `test` has other labels each time it is read.
    """
    kinds = kinds or {}
    if not export.formats:
        return {}, {}
    upstream = [floating.fingerprint, quantized.fingerprint if quantized else None]
    stage = directory.stage(_STAGE, fingerprint(upstream, export, test_identity))
    result = stage.load()
    if result is not None and (found := _finished(directory, export, result, kinds)):
        terminal.note(f"artifacts: finished before, taken from {directory.artifacts}")
        return found, {}
    with reading_and_writing(directory.artifacts):
        directory.artifacts.mkdir(exist_ok=True)
    made: dict[str, Artifact] = {}
    summaries: dict[str, Mapping[str, Any]] = {}
    uncertified: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        float32_path = Path(scratch) / "student_float32.tflite"
        if not set(export.formats) <= set(SAVED):
            export_model(floating.model, float32_path, "float32", settings=export, kinds=kinds)
        for format in export.formats:
            terminal.heading(f"Exporting and certifying {format}")
            source = quantized if format == "int8" and quantized is not None else floating
            try:
                written = export_model(
                    source.model,
                    artifact_path(directory, format),
                    format,
                    settings=export,
                    quantization_aware=source.quantized,
                    calibration=calibration,
                    origin=_BEFORE_QUANTIZATION if source is not quantized and quantized else "",
                    to_keras3=to_keras3,
                    kinds=kinds,
                )
                certificate = certify(
                    written.path,
                    source.model,
                    test,
                    limits=export.limits,
                    float32_path=float32_path,
                    label_names=export.label_names,
                )
                certificate = replace(certificate, layers_left_float=dict(source.left_float))
            except (ExportError, CertificationError, ConversionError, ModelError) as error:
                uncertified[format] = str(error)
                continue
            made[format] = _artifact(written, certificate, kinds)
            summaries[format] = _summary(made[format], certificate.write_sidecar(written.path))
    if uncertified:
        return made, uncertified
    arrays: dict[str, np.ndarray] = {}
    for format, artifact in made.items():
        arrays |= _stored(format, artifact.predictions)
    first, *others = (artifact.labels for artifact in made.values())
    for labels in others:
        for name, each in by_name(first).items():
            require_same_labels(each, by_name(labels)[name])
    stage.commit({**arrays, **_stored(_LABELS, first)}, {}, summaries)
    return made, {}


def _stored(what: str, values: Any) -> dict[str, np.ndarray]:
    """Arrays of one output, or of each, by the names that a stage keeps them under."""
    return {f"{what}/{name}" if name else what: each for name, each in by_name(values).items()}


def _read(what: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `_stored` was given."""
    if what in arrays:
        return arrays[what]
    start = f"{what}/"
    return {n.removeprefix(start): each for n, each in arrays.items() if n.startswith(start)}


def _artifact(
    written: ExportedModel, certificate: Certificate, kinds: Mapping[str, Kind]
) -> Artifact:
    return Artifact(
        path=written.path,
        certificate=certificate,
        method=written.method,
        interface=written.interface,
        left_float=written.left_float,
        predictions=certificate.predictions,
        labels=certificate.labels,
        kinds=kinds,
    )


def _summary(artifact: Artifact, sidecar: Path) -> Mapping[str, Any]:
    return {
        "certificate": artifact.certificate.to_dict(),
        "method": artifact.method,
        "interface": artifact.interface,
        "left_float": artifact.left_float,
        "sidecar_sha256": sha256_of(sidecar),
    }


def _finished(
    directory: RunDirectory, export: Export, result: StageResult, kinds: Mapping[str, Kind]
) -> dict[str, Artifact] | None:
    """The artifacts of a finished run, or `None` if a file is no longer what was certified."""
    found = {}
    for format in export.formats:
        path = artifact_path(directory, format)
        summary = result.summary[format]
        if "sidecar_sha256" not in summary:  # of an older version
            return None
        certificate = Certificate.from_dict(summary["certificate"])
        if sha256_of(path) != certificate.sha256:
            return None
        if sha256_of(sidecar_path(path)) != summary["sidecar_sha256"]:
            _write_sidecar(path, format, summary)  # another run was killed before it wrote its own
        found[format] = Artifact(
            path=path,
            certificate=certificate,
            method=summary["method"],
            interface=summary["interface"],
            left_float=tuple(summary["left_float"]),
            predictions=_read(format, result.arrays),
            labels=_read(_LABELS, result.arrays),
            kinds=kinds,
        )
    return found

"""The last stage: the trained students become certified LiteRT files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.certificate import Certificate, certify
from tfdistill.errors import CertificationError
from tfdistill.export import Export, ExportedModel, export_model
from tfdistill.files import reading_and_writing
from tfdistill.run import RunDirectory, StageResult, fingerprint
from tfdistill.sidecar import check_artifact_path, read_sidecar
from tfdistill.stages import Student
from tfdistill.terminal import Terminal

_STAGE = "certification"


@dataclass(frozen=True)
class Artifact:
    """A LiteRT file and the proof of what it does.

    Attributes:
        path: The `.tflite` file; a JSON file of the same name stands beside it.
        certificate: How it behaves on the test set, against the model it came from.
        method: How it was quantized, in words.
        left_float: What computes or is stored in float although the format is an integer one.
        predictions: Its class for every test example, int64 `[examples]`.
    """

    path: Path
    certificate: Certificate
    method: str
    left_float: tuple[str, ...]
    predictions: np.ndarray


def artifact_path(directory: RunDirectory, format: str) -> Path:
    """Where a run's artifact of this format is."""
    return directory.artifacts / f"student_{format}.tflite"


def check_artifact_paths(directory: RunDirectory, export: Export, terminal: Terminal) -> None:
    """Makes sure before any training that the artifacts can be written at its end.

    An artifact of ours whose bytes changed is named and put aside.

    Args:
        directory: The run.
        export: The formats.
        terminal: Told of damaged files.

    Raises:
        RunDirectoryError: A foreign file is where an artifact should be.
    """
    for format in export.formats:
        path = artifact_path(directory, format)
        sidecar = read_sidecar(path)
        if path.is_file() and sidecar is not None:
            known = sidecar["artifact"]
            if _sha256(path) not in (known.get("sha256"), known.get("replaces")):
                aside = path.with_suffix(".tflite.damaged")
                terminal.note(f"{path} is damaged; it is made again, the old one is {aside.name}.")
                with reading_and_writing(path):
                    path.replace(aside)
        check_artifact_path(path)


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

    Returns:
        Format to artifact, in the order of `export.formats`; and format to the reason for what
        was written but cannot be run here, as with TensorFlow's select ops.
    """
    upstream = [floating.fingerprint, quantized.fingerprint if quantized else None]
    stage = directory.stage(_STAGE, fingerprint(upstream, export, test_identity))
    result = stage.load()
    if result is not None and (found := _finished(directory, export, result)):
        terminal.note(f"artifacts: finished before, taken from {directory.artifacts}")
        return found, {}
    with reading_and_writing(directory.artifacts):
        directory.artifacts.mkdir(exist_ok=True)
    made: dict[str, Artifact] = {}
    uncertified: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        float32_path = Path(scratch) / "student_float32.tflite"
        export_model(floating.model, float32_path, "float32")
        for format in export.formats:
            terminal.heading(f"Exporting and certifying {format}")
            source = quantized if format == "int8" and quantized is not None else floating
            written = export_model(
                source.model,
                artifact_path(directory, format),
                format,
                settings=export,
                quantization_aware=source.quantized,
                calibration=calibration,
            )
            try:
                certificate = certify(
                    written.path,
                    source.model,
                    test,
                    limits=export.limits,
                    float32_path=float32_path,
                    label_names=export.label_names,
                )
            except CertificationError as error:
                uncertified[format] = str(error)
                continue
            certificate.write_sidecar(written.path)
            made[format] = _artifact(written, certificate)
    if uncertified:
        return made, uncertified
    arrays = {format: artifact.predictions for format, artifact in made.items()}
    stage.commit(arrays, {}, {format: _summary(artifact) for format, artifact in made.items()})
    return made, {}


def _artifact(written: ExportedModel, certificate: Certificate) -> Artifact:
    return Artifact(
        path=written.path,
        certificate=certificate,
        method=written.method,
        left_float=written.left_float,
        predictions=np.asarray(certificate.predictions),
    )


def _summary(artifact: Artifact) -> Mapping[str, Any]:
    return {
        "certificate": artifact.certificate.to_dict(),
        "method": artifact.method,
        "left_float": artifact.left_float,
    }


def _finished(
    directory: RunDirectory, export: Export, result: StageResult
) -> dict[str, Artifact] | None:
    """The artifacts of a finished run, or `None` if a file is no longer what was certified."""
    found = {}
    for format in export.formats:
        path = artifact_path(directory, format)
        summary = result.summary[format]
        certificate = Certificate.from_dict(summary["certificate"])
        if not path.is_file() or _sha256(path) != certificate.sha256:
            return None
        found[format] = Artifact(
            path=path,
            certificate=certificate,
            method=summary["method"],
            left_float=tuple(summary["left_float"]),
            predictions=result.arrays[format],
        )
    return found


def _sha256(path: Path) -> str:
    with reading_and_writing(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

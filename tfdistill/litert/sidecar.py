"""The JSON file beside each artifact: what an app developer needs, and the certificate.

`student_int8.tflite` has `student_int8.json`, the folder `student_savedmodel` has
`student_savedmodel.json`. It also marks the artifact as this library's own: only one whose hash
its sidecar knows is ever replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.litert.flatbuffer import Inspection, TensorInterface
from tfdistill.named import Kind
from tfdistill.runs import files
from tfdistill.runs.records import sha256_of

__all__ = [
    "check_artifact_path",
    "describe_interface",
    "kinds_of",
    "label_names_of",
    "read_sidecar",
    "sidecar_path",
    "was_exported",
    "with_kinds",
    "write_artifact",
    "write_sidecar",
]

_KIND = "tfdistill artifact 1"
_SUFFIXES = (".tflite", ".keras", "")
_ARTIFACT = {"file", "format", "method", "sha256", "exported", "replaces"}  # what is read again


def sidecar_path(artifact: str | os.PathLike[str]) -> Path:
    """Where an artifact's sidecar is.

    Raises:
        SettingError: The path does not end as an artifact's.
    """
    artifact = Path(artifact)
    if artifact.suffix not in _SUFFIXES:
        raise SettingError(
            "`path` must end in .tflite or .keras, or have no ending, for a SavedModel.",
            received=str(artifact),
        )
    return artifact.with_name(f"{artifact.stem}.json")


def read_sidecar(artifact: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What an artifact's sidecar says; `None` where there is none of this library's."""
    try:
        content = json.loads(sidecar_path(artifact).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        return None
    known = content.get("artifact")
    if not isinstance(known, dict) or not known.keys() >= _ARTIFACT:
        return None
    if Path(str(known["file"])).suffix != Path(artifact).suffix:  # of another one of that name
        return None
    return content if isinstance(content.get("interface"), dict) else None


def check_artifact_path(artifact: str | os.PathLike[str]) -> str | None:
    """Checks that writing an artifact would overwrite nothing but an older artifact.

    Returns:
        The hash of the artifact that is there (`records.sha256_of`), if there is one.

    Raises:
        RunDirectoryError: There is a file, of the artifact's name or its sidecar's, that this
            library did not write or that was changed since.
        SettingError: The path does not end as an artifact's.
    """
    artifact = Path(artifact)
    content = read_sidecar(artifact)
    if sidecar_path(artifact).exists() and content is None:
        raise _foreign(sidecar_path(artifact))
    if not artifact.exists():
        return None
    found = sha256_of(artifact)
    if not was_exported(content, found):
        raise _foreign(artifact)
    return found


def was_exported(sidecar: Mapping[str, Any] | None, sha256: str) -> bool:
    """Whether this library wrote the artifact of that hash, by what the sidecar says."""
    known = sidecar["artifact"] if sidecar else {"exported": False}
    return known["exported"] and sha256 in (known["sha256"], known["replaces"])


def _foreign(path: Path) -> RunDirectoryError:
    return RunDirectoryError(
        f"`{path}` must be free or hold an artifact of this library.",
        received="a file that it did not write, or that was changed since",
        hint="Move the file away, or choose another place.",
    )


def write_artifact(artifact: str | os.PathLike[str], content: bytes | Path, **sidecar: Any) -> None:
    """Writes an artifact and its sidecar; a kill at any moment leaves a pair that is known.

    Args:
        artifact: The file or folder.
        content: The file's new content; for a folder, a finished one that is moved there.
        **sidecar: What the sidecar says, as `write_sidecar` takes it.

    Raises:
        RunDirectoryError: There is a foreign file, or the place cannot be written.
    """
    replaces = check_artifact_path(artifact)
    # The sidecar goes first: between the two writes it knows the old file and the new one.
    write_sidecar(artifact, exported=True, replaces=replaces, **sidecar)
    if isinstance(content, Path):
        files.replace_directory(content, artifact)
    else:
        files.write_bytes(artifact, content)


def write_sidecar(
    artifact: str | os.PathLike[str],
    *,
    inspection: Inspection,
    format: str,
    method: str,
    interface: Mapping[str, Any],
    certificate: Mapping[str, Any] | None = None,
    exported: bool = False,
    replaces: str | None = None,
) -> Path:
    """Writes the JSON file beside an artifact, which is not looked at.

    Args:
        artifact: The file or folder.
        inspection: What is in it.
        format: Its format.
        method: How it was quantized, in words.
        interface: From `describe_interface`.
        certificate: From `Certificate.to_dict`.
        exported: Whether this library wrote the artifact, and may write another in its place.
        replaces: Hash of the file that may still stand there.

    Returns:
        The JSON file.
    """
    path = sidecar_path(artifact)
    content = {
        "kind": _KIND,
        "artifact": {
            "file": Path(artifact).name,
            "format": format,
            "method": method,
            "sha256": inspection.sha256,
            "raw_bytes": inspection.raw_bytes,
            "gzip_bytes": inspection.gzip_bytes,
            "exported": exported,
            "replaces": replaces,
        },
        "interface": dict(interface),
        "certificate": certificate,
    }
    files.write_json(path, content)
    return path


def describe_interface(
    inspection: Inspection,
    *,
    label_names: Sequence[str] | Mapping[str, Sequence[str]] = (),
    normalisation: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """How an app feeds and reads an artifact, in JSON's types.

    Args:
        inspection: What is in the file.
        label_names: The classes' names by their index in the output; of several outputs by their
            names in the file. Each then has its own beside what else is said of it.
        normalisation: How raw values become the model's inputs.
        kinds: What outputs answer, by their names in the file; see `with_kinds`.
    """
    one = len(inspection.outputs) == 1
    of_outputs = label_names if isinstance(label_names, Mapping) else {}
    interface = {
        "inputs": [_describe(spec, feeding=True) for spec in inspection.inputs],
        "outputs": [
            {
                **_describe(spec, feeding=False),
                "values": "probabilities" if spec.name in inspection.probabilities else "logits",
                **({"label_names": [*names]} if (names := of_outputs.get(spec.name)) else {}),
            }
            for spec in inspection.outputs
        ],
        "normalisation": dict(normalisation) if normalisation else None,
        "label_names": list(label_names) if one and not of_outputs else [],
        "reset_state_before_each_run": inspection.stateful,
    }
    return with_kinds(interface, kinds or {})


def with_kinds(interface: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """How an app reads outputs that answer something else than one class of several.

    Args:
        interface: From `describe_interface`.
        kinds: What outputs answer, by their names in the file. Those of "labels", which are yes or
            no to each of several, get a `threshold`, and what it means as a `decision` in words;
            the `values` of "numbers" are these.
    """

    def described(output: Mapping[str, Any]) -> dict[str, Any]:
        kind = kinds.get(output["name"])
        if kind == "numbers":
            return {**output, "values": "numbers"}
        if kind != "labels":
            return {**output}
        above = 0.5 if output["values"] == "probabilities" else 0.0
        words = f"each value is a yes or no of its own: yes above {above:g}"
        return {**output, "threshold": above, "decision": words}

    return {**interface, "outputs": [described(each) for each in interface["outputs"]]}


def kinds_of(interface: Mapping[str, Any]) -> dict[str, Kind]:
    """What outputs answer, by their names in the file, of those that answer no class.

    Args:
        interface: From `describe_interface`.
    """
    found: dict[str, Kind] = {}
    for output in interface["outputs"]:
        if output["values"] == "numbers":
            found[output["name"]] = "numbers"
        elif "threshold" in output:
            found[output["name"]] = "labels"
    return found


def label_names_of(interface: Mapping[str, Any]) -> dict[str, list[str]]:
    """The classes' names by the output that they are of, of those that have some.

    Args:
        interface: From `describe_interface`.
    """
    outputs = interface["outputs"]
    if len(outputs) == 1 and interface["label_names"]:
        return {outputs[0]["name"]: interface["label_names"]}
    return {each["name"]: each["label_names"] for each in outputs if each.get("label_names")}


def _describe(spec: TensorInterface, *, feeding: bool) -> dict[str, Any]:
    formula = None
    if spec.scale is not None and feeding:
        limits = np.iinfo(spec.dtype)
        formula = f"q = clip(round(x / scale) + zero_point, {limits.min}, {limits.max})"
    elif spec.scale is not None:
        formula = "x = (q - zero_point) * scale"
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "scale": spec.scale,
        "zero_point": spec.zero_point,
        "formula": formula,
    }

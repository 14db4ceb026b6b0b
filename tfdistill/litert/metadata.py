"""What a LiteRT file says of itself: names, labels and normalisation, for apps and their tools.

Two entries of the flatbuffer's metadata. "TFLITE_METADATA" is the standard one, which Android's
MetadataExtractor, Android Studio and MediaPipe read; its labels are a text file, packed as a zip
archive behind the flatbuffer, where unzip finds it, too. "tfdistill" holds, as JSON, what the
standard has no place for. What the flatbuffer says anyway is not said again: each byte counts in
the download of a small model.

Source: the schema `metadata_schema.fbs` of tflite-support, version 1.0.0, of whose tables and
fields only those are written that have something to say.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers.number_types import Float32Flags
from flatbuffers.table import Table

from tfdistill.errors import ModelError
from tfdistill.litert.flatbuffer import (
    Inspection,
    TensorInterface,
    inspect_content,
    load,
    read,
    unpack,
)
from tfdistill.litert.sidecar import describe_interface, kinds_of, label_names_of

__all__ = ["labels_files", "metadata_entries", "read_metadata", "with_files"]

_STANDARD, _OWN = "TFLITE_METADATA", "tfdistill"
_KINDS = {"labels": "multi_label", "numbers": "numbers"}  # to their entries in our own
_LABELS = "labels.txt"
_IDENTIFIER, _PARSER_VERSION = b"M001", "1.0.0"
_UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error)
# Places of the fields in their tables, and numbers of the kinds in their unions.
_NAME, _DESCRIPTION = 0, 1
_FILE_TYPE = 2
_AXIS_LABELS, _VALUE_LABELS = 2, 3
_UNION_KIND, _UNION_VALUE = 0, 1
_FEATURE, _IMAGE = 1, 2
_COLOUR_SPACES = {3: 1, 1: 2}  # by channels: RGB, grey
_NORMALIZATION, _MEAN, _STD = 1, 0, 1
_CONTENT, _PROCESS_UNITS, _FILES = 3, 4, 6
_INPUTS, _OUTPUTS = 2, 3
_SUBGRAPHS, _PARSER = 3, 7


def metadata_entries(
    content: bytes, inspection: Inspection, interface: Mapping[str, Any], name: str
) -> dict[str, bytes]:
    """The metadata of an artifact, entry by entry; none where there is nothing to say.

    Args:
        content: The flatbuffer that they are for.
        inspection: What is in it.
        interface: From `describe_interface`.
        name: The model's name.
    """
    entries = {}
    own: dict[str, Any] = {}
    if interface["normalisation"]:
        own["normalisation"] = interface["normalisation"]
    for kind, entry in _KINDS.items():
        names = [name for name, each in kinds_of(interface).items() if each == kind]
        own |= {entry: names} if names else {}
    if own:
        entries[_OWN] = json.dumps(own, separators=(",", ":")).encode()
    if label_names_of(interface) or own:
        graph = unpack(content).subgraphs[0]
        inputs, outputs = list(graph.inputs), list(graph.outputs)
        entries[_STANDARD] = _standard(  # which counts as the graph does, not as the signature
            sorted(inspection.inputs, key=lambda spec: inputs.index(spec.index)),
            sorted(inspection.outputs, key=lambda spec: outputs.index(spec.index)),
            interface,
            name,
        )
    return entries


def labels_files(interface: Mapping[str, Any]) -> dict[str, bytes]:
    """The labels as the files that the standard metadata names; none without labels.

    Args:
        interface: From `describe_interface`.
    """
    found = label_names_of(interface)
    several = len(interface["outputs"]) > 1
    return {
        _labels_of(output, several=several): "\n".join(names).encode()
        for output, names in found.items()
    }


def _labels_of(output: str, *, several: bool) -> str:
    """Name of the file with an output's labels."""
    return f"labels_{output}.txt" if several else _LABELS


def with_files(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """A flatbuffer with files packed behind it, as a zip archive; the same each time."""
    if not files:
        return content
    packed = io.BytesIO(content)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:  # all that Android reads
        for name, data in files.items():
            member = zipfile.ZipInfo(name)  # of 1980, always
            member.external_attr = 0o644 << 16  # readable where it is unpacked
            archive.writestr(member, data)
    return packed.getvalue()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a LiteRT file says of itself, in the form of the JSON file beside an artifact.

    Of files that other tools wrote, the standard metadata is read: names of labels, mean and
    standard deviation.

    Args:
        path: The `.tflite` file.

    Returns:
        "artifact" with the `format` by what is in the file, and "interface" as the JSON file has
        it; `None` where the file has no such metadata.

    Raises:
        ModelError: It is no LiteRT model, or its metadata are damaged.

    Example:
        >>> td.read_metadata("student_int8.tflite")["interface"]["label_names"]
        ['T-shirt', 'trousers', 'pullover']
    """
    content, source = read(path)
    load(content, source)
    inspection = inspect_content(content, source)
    packed = unpack(content)
    try:
        entries = {
            entry.name.decode(): bytes(packed.buffers[entry.buffer].data)
            for entry in packed.metadata or ()
            if packed.buffers[entry.buffer].data is not None
        }
        if _STANDARD not in entries:
            return None
        named = {spec.index: spec.name for spec in inspection.outputs}
        outputs = [named.get(index, "") for index in packed.subgraphs[0].outputs]
        labels, normalisation = _read_standard(entries[_STANDARD], content, outputs)
        own = json.loads(entries.get(_OWN, b"{}"))
        interface = describe_interface(
            inspection,
            label_names=labels,
            normalisation=own.get("normalisation", normalisation),  # the same, unrounded
            kinds={name: kind for kind, entry in _KINDS.items() for name in own.get(entry, ())},
        )
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise ModelError(
            f"`{source}` must have metadata that can be read.",
            received=f"{type(error).__name__}: {error}",
            hint="They are damaged; the model itself may still run.",
        ) from error
    return {
        "artifact": {"format": inspection.format, "method": "unknown"},
        "interface": interface,
    }


# --- the standard metadata, written ---


def _standard(
    inputs: Sequence[TensorInterface],
    outputs: Sequence[TensorInterface],
    interface: Mapping[str, Any],
    name: str,
) -> bytes:
    builder = flatbuffers.Builder(256)
    values = {
        output["name"]: "; ".join([output["values"], *filter(None, [output.get("decision")])])
        for output in interface["outputs"]
    }
    labels = label_names_of(interface)
    several = len(interface["outputs"]) > 1
    given = [_input(builder, spec, interface["normalisation"]) for spec in inputs]
    made = [
        _output(
            builder,
            spec,
            values[spec.name],
            labels.get(spec.name, ()),
            _labels_of(spec.name, several=several),
        )
        for spec in outputs
    ]
    tensors = {_INPUTS: _vector(builder, given), _OUTPUTS: _vector(builder, made)}
    subgraph = _table(builder, tensors)
    model = {
        _NAME: builder.CreateSharedString(name),
        _SUBGRAPHS: _vector(builder, [subgraph]),
        _PARSER: builder.CreateSharedString(_PARSER_VERSION),
    }
    builder.Finish(_table(builder, model), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _input(builder: Any, spec: TensorInterface, normalisation: Mapping[str, Any] | None) -> int:
    fields = {_NAME: builder.CreateSharedString(spec.name)}
    if normalisation and spec.takes_numbers:
        scale, offset = np.broadcast_arrays(
            *(np.atleast_1d(normalisation[key]) for key in ("scale", "offset"))
        )
        if len(scale) in (1, spec.shape[-1]):
            mean_and_std = {
                _MEAN: builder.CreateNumpyVector(((0.0 - offset) / scale).astype(np.float32)),
                _STD: builder.CreateNumpyVector((1 / scale).astype(np.float32)),
            }
            unit = _union(builder, _NORMALIZATION, _table(builder, mean_and_std))
            fields[_PROCESS_UNITS] = _vector(builder, [unit])
            if len(spec.shape) == 4 and spec.shape[-1] in _COLOUR_SPACES:
                colours = _table(builder, {}, {0: _COLOUR_SPACES[spec.shape[-1]]})
                fields[_CONTENT] = _union(builder, _IMAGE, colours)
    return _table(builder, fields)


def _output(
    builder: Any, spec: TensorInterface, values: str, labels: Sequence[str], labels_file: str
) -> int:
    fields = {
        _NAME: builder.CreateSharedString(spec.name),
        _DESCRIPTION: builder.CreateSharedString(values),
        _CONTENT: _union(builder, _FEATURE, _table(builder, {})),
    }
    if labels:
        kind = _AXIS_LABELS if spec.shape[-1] == len(labels) else _VALUE_LABELS
        file = _table(builder, {_NAME: builder.CreateSharedString(labels_file)}, {_FILE_TYPE: kind})
        fields[_FILES] = _vector(builder, [file])
    return _table(builder, fields)


def _table(
    builder: Any, offsets: Mapping[int, int], numbers: Mapping[int, int] | None = None
) -> int:
    """Writes a table of fields by their places: parts written before, and bytes."""
    numbers = numbers or {}
    builder.StartObject(max((*offsets, *numbers), default=-1) + 1)
    for place, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(place, offset, 0)
    for place, number in numbers.items():
        builder.PrependUint8Slot(place, number, 0)
    return int(builder.EndObject())


def _union(builder: Any, kind: int, value: int) -> int:
    """A table around a union: which of its kinds, and the value."""
    return _table(builder, {_UNION_VALUE: value}, {_UNION_KIND: kind})


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


# --- and read ---


def _read_standard(
    data: bytes, content: bytes, outputs: Sequence[str]
) -> tuple[Any, dict[str, Any] | None]:
    """Labels of the output, of several by their names; normalisation of the first such input."""
    model = Table(data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))
    main = next(_children(model, _SUBGRAPHS))
    by_output: dict[str, list[str]] = {}
    for name, tensor in zip(outputs, _children(main, _OUTPUTS), strict=False):
        for file in _children(tensor, _FILES):
            if name not in by_output and _number(file, _FILE_TYPE) in (_AXIS_LABELS, _VALUE_LABELS):
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    text = archive.read(_text(file, _NAME)).decode()
                by_output[name] = text.removesuffix("\n").split("\n")
    several = len([name for name in outputs if name]) > 1
    labels: Any = by_output if several else next(iter(by_output.values()), [])
    for tensor in _children(main, _INPUTS):
        for unit in _children(tensor, _PROCESS_UNITS):
            if _number(unit, _UNION_KIND) == _NORMALIZATION:
                options = Table(data, unit.Indirect(unit.Pos + _place(unit, _UNION_VALUE)))
                mean, std = (_floats(options, place) for place in (_MEAN, _STD))
                return labels, {
                    "scale": _one_or_more(1 / std),
                    "offset": _one_or_more((0.0 - mean) / std),
                    "raw_range": None,
                }
    return labels, None


def _one_or_more(values: np.ndarray) -> float | list[float]:
    return float(values[0]) if len(values) == 1 else [float(value) for value in values]


def _place(table: Table, field: int) -> int:
    """Where in a table a field is; 0 where it was left out."""
    return int(table.Offset(4 + 2 * field))


def _children(table: Table, field: int) -> Iterator[Table]:
    if place := _place(table, field):
        start = table.Vector(place)
        for index in range(table.VectorLen(place)):
            yield Table(table.Bytes, table.Indirect(start + 4 * index))


def _floats(table: Table, field: int) -> np.ndarray:
    return np.asarray(table.GetVectorAsNumpy(Float32Flags, _place(table, field)), np.float64)


def _number(table: Table, field: int) -> int:
    place = _place(table, field)
    return int(table.Bytes[table.Pos + place]) if place else 0


def _text(table: Table, field: int) -> str:
    return bytes(table.String(table.Pos + _place(table, field))).decode()

"""Files that can be told whole from damaged.

A record is a JSON file with a checksum of itself; of the other files it holds the SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdistill.errors import SettingError
from tfdistill.runs.files import reading_and_writing, to_json, write_text

__all__ = [
    "DamagedFileError",
    "pack",
    "read",
    "read_intact",
    "read_record",
    "sha256",
    "sha256_of",
    "unpack",
    "write_record",
]


class DamagedFileError(Exception):
    """A file is not what its checksum says; the message is its path. Users never see it."""


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the names and contents of a folder's files.

    Of what is not there, it is the empty text.
    """
    if not path.is_dir():
        content = read(path) if path.is_file() else None
        return "" if content is None else sha256(content)
    with reading_and_writing(path):
        files = sorted(each for each in path.rglob("*") if not each.is_dir())
        return sha256(
            b"".join(
                f"{each.relative_to(path).as_posix()}\0{sha256(each.read_bytes())}\n".encode()
                for each in files
            )
        )


def read(path: Path) -> bytes | None:
    """Returns a file's content, or ``None`` where there is no file."""
    with reading_and_writing(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def read_intact(path: Path, expected_sha256: str) -> bytes:
    """Returns a file's content, or raises ``DamagedFileError``."""
    data = read(path)
    if data is None or sha256(data) != expected_sha256:
        raise DamagedFileError(path)
    return data


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns a record, ``None`` where there is none, or raises ``DamagedFileError``."""
    data = read(path)
    if data is None:
        return None
    try:
        record = json.loads(data)
        checksum = record.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or not an object
        raise DamagedFileError(path) from None
    if checksum != _checksum(record):
        raise DamagedFileError(path)
    return dict(record)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record, atomically."""
    plain = json.loads(to_json(record))
    write_text(path, to_json({**plain, "checksum": _checksum(plain)}) + "\n")


def pack(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
    """Returns arrays as an ``.npz``: equal arrays give equal bytes.

    Data types that NumPy does not have itself (bfloat16) are stored as float32, which holds
    each of their values.

    Raises:
        SettingError: An array holds Python objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # np.savez has no room for an array "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _storable(name, array), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays that :func:`pack` was given, in their order."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            arrays[member.removesuffix(".npy")] = array
    return arrays


def _checksum(record: Mapping[str, Any]) -> str:
    return sha256(to_json(record, sort_keys=True).encode())


def _storable(name: str, array: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise SettingError(
            "`arrays` must hold numbers or text, not Python objects.",
            received=f"{name!r} of data type {array.dtype}",
        )
    registered_by_others = array.dtype.isbuiltin == 2  # what npz keeps of these is no data type
    return array.astype(np.float32) if registered_by_others else array

"""Files that are there whole or not at all, whatever kills their writer.

Each is written beside its place under a hidden temporary name, flushed to the disk, and
renamed. What a killed writer leaves behind has a name that :func:`remove_leftovers` knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfdistill.errors import RunDirectoryError, SettingError

__all__ = [
    "is_leftover",
    "new_directory",
    "reading_and_writing",
    "remove_leftovers",
    "replace_directory",
    "sync_directory",
    "to_json",
    "write_bytes",
    "write_json",
    "write_text",
]

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


@contextlib.contextmanager
def reading_and_writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's errors inside the block into one that says what to do.

    Raises:
        RunDirectoryError: In place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        hint = (
            "Free disk space, then run again: what was finished before is intact."
            if error.errno in _FULL
            else "Check what is there and who may write it, or choose another place."
        )
        raise RunDirectoryError(
            f"`{os.fspath(path)}` must be readable and writable.",
            received=error.strerror or str(error),
            hint=hint,
        ) from error


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Flushes the names in a directory to the disk, so that a rename survives a power cut."""
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file atomically; missing parent directories are made.

    Readers see the older content or the new one, never a part of it, and an older file stays
    as it was when the writing fails.

    Args:
        path: The file; one that exists is replaced.
        data: Its new content.

    Raises:
        RunDirectoryError: The disk is full, or the place cannot be written.

    Example:
        >>> write_bytes("saved_models/birds/artifacts/student_int8.tflite", flatbuffer)
    """
    path = Path(path)
    temporary = _temporary(path)
    with reading_and_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile: its files stay closed to the group and to others, against the umask.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8, atomically: see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """Writes a JSON file, atomically: see :func:`write_bytes`.

    Takes what :func:`to_json` takes. NaN and infinities, which JSON does not have, become
    ``null``, so that every reader can read the file.

    Raises:
        RunDirectoryError: The disk is full, or the place cannot be written.
        SettingError: ``data`` holds something that has no form in JSON.

    Example:
        >>> write_json("report.json", {"accuracy": np.float32(0.5), "path": Path("a.tflite")})
    """
    finite = json.loads(to_json(data), parse_constant=lambda _: None)
    write_text(path, json.dumps(finite, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside ``path`` for a directory in the making; what is left there is removed.

    The directory is not made; :func:`replace_directory` moves it to where it belongs.

    Raises:
        RunDirectoryError: The place cannot be written.
    """
    path = Path(path)
    with reading_and_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Moves a finished directory to where another one may stand, which goes.

    Readers see the older directory or the new one, whole; for a moment, or after a kill in it,
    there is none.

    Args:
        directory: The new one, flushed to the disk before it is moved.
        path: Its place, on the same file system.

    Raises:
        RunDirectoryError: The disk is full, or the place cannot be written.
    """
    directory, path = Path(directory), Path(path)
    older = _temporary(path)
    with reading_and_writing(path):
        for each in (directory, *directory.rglob("*")):
            if each.is_dir():
                sync_directory(each)
            else:
                with open(each, "rb") as file:
                    os.fsync(file.fileno())
        if path.exists():
            os.replace(path, older)
        os.replace(directory, path)
        sync_directory(path.parent)
        shutil.rmtree(older, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def to_json(data: object, *, sort_keys: bool = False) -> str:
    """Returns ``data`` as JSON text.

    Beside Python's own types it takes NumPy scalars and arrays, paths, dataclasses (as a
    dictionary of their fields) and objects with ``get_config()`` (as Keras writes them:
    ``class_name`` and ``config``). NaN and infinities are written as Python's json reads them.

    Raises:
        SettingError: ``data`` holds something else.
    """
    try:
        return json.dumps(data, indent=2, sort_keys=sort_keys, default=_plain)
    except TypeError as error:  # a key that is neither text nor a number
        raise SettingError("`data` must have a form in JSON.", received=str(error)) from error


def is_leftover(name: str) -> bool:
    """Tells whether a file of this name is the temporary one of a writer of this module."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes the temporary files that killed writers left in ``directory``.

    Only where nothing else is writing at the time.
    """
    with reading_and_writing(directory):
        for path in Path(directory).iterdir():
            if is_leftover(path.name) and path.is_dir():
                shutil.rmtree(path)
            elif is_leftover(path.name):
                path.unlink()


def _plain(value: Any) -> object:
    if hasattr(value, "get_config") and not isinstance(value, type):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return value.tolist()
    raise SettingError("`data` must have a form in JSON.", received=value)

"""The directory of stored targets: shards with checksums, each there whole or not at all.

::

    targets.json             what the targets belong to: teacher, data, augmentation, settings
    part-0-of-1.json         that a part is finished: its shards, and which examples it has seen
    shard-0-of-1-00000.json  checksums of a shard's two files, written last
    shard-0-of-1-00000.ids.npy      int64 `[examples]`: their numbers, see `examples`
    shard-0-of-1-00000.targets.npy  `[examples * views]` rows, see `encoding`

Nothing here needs TensorFlow.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from tfdistill.errors import RunDirectoryError
from tfdistill.runs.files import is_leftover, reading_and_writing, to_json, write_bytes
from tfdistill.runs.records import DamagedFileError, read_record, sha256, sha256_of, write_record

__all__ = ["Shard", "TargetsDirectory"]

_FORMAT = "tfdistill targets"
_VERSION = 1  # of the rows, too: another one is refused
_RECORD = "targets.json"
_SETTLING = ".lock-settling"
_SHARD = re.compile(r"shard-(\d+-of-\d+)-(\d{5,})\.json")
_OURS = re.compile(r"(targets|part-.*|shard-.*)\.json|shard-.*\.npy|\.lock-.*")


@dataclass(frozen=True)
class Shard:
    """One shard, known to be whole.

    Attributes:
        path: Its record.
        examples: How many it has.
        facts: What was written down about them.
    """

    path: Path
    examples: int
    facts: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        files = (self.path, _beside(self.path, "ids"), _beside(self.path, "targets"))
        return sum(file.stat().st_size for file in files)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The numbers of its examples, `[examples]`."""
        with reading_and_writing(self.path):
            return np.asarray(np.load(_beside(self.path, "ids")))

    @property
    def rows(self) -> npt.NDArray[Any]:
        """Its rows, `[examples * views]`, left on disk until they are read."""
        with reading_and_writing(self.path):
            return np.asarray(np.load(_beside(self.path, "targets"), mmap_mode="r"))


class TargetsDirectory:
    """A directory of stored targets, of which one process at a time writes each part.

    Args:
        path: The directory.
        belongs_to: Name to a text, number or list: all that the targets depend on.
        part: `(which, of how many)`: the part that this process writes.
        note: Called with a sentence about each thing found damaged.
        overwrite: Whether what depends on other things gives way.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        belongs_to: Mapping[str, Any],
        part: tuple[int, int],
        note: Callable[[str], None],
        overwrite: bool = False,
    ) -> None:
        """Names the directory; nothing is made before it is entered."""
        self.path = Path(path)
        self._belongs_to = json.loads(to_json(dict(belongs_to)))
        self._part = f"{part[0]}-of-{part[1]}"
        self._note = note
        self._overwrite = overwrite
        self._lock = self._lock_of(f".lock-{self._part}")
        # Held for moments only: nobody begins to write a part while another one clears them all.
        self._settling = self._lock_of(_SETTLING, timeout=-1)

    def _lock_of(self, name: str, timeout: float = 0) -> filelock.BaseFileLock:
        return filelock.FileLock(self.path / name, timeout=timeout, thread_local=False)

    def __enter__(self) -> TargetsDirectory:
        """Makes, locks and checks the directory.

        Raises:
            RunDirectoryError: Another process writes this part, it cannot be written, or holds
                other things, or targets of another teacher, data set or settings.
        """
        with reading_and_writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            names = [name for name in os.listdir(self.path) if not is_leftover(name)]
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if foreign:
            raise RunDirectoryError(
                "`path` must be empty or hold stored targets.",
                received=f"{str(self.path)!r}, which holds {', '.join(sorted(foreign)[:5])}",
                hint="Choose another directory; nothing was changed in this one.",
            )
        with reading_and_writing(self.path), self._settling:
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise self._busy(self._part) from None
            try:
                self._settle()
            except BaseException:
                self._lock.release()
                raise
        return self

    def _busy(self, part: str) -> RunDirectoryError:
        return RunDirectoryError(
            "`path` must not be written by another process.",
            received=f"{str(self.path)!r}, whose part {part} is being stored",
            hint="Wait for it to end, or choose another directory.",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives up the lock."""
        self._lock.release()

    def _settle(self) -> None:
        try:
            record = read_record(self.path / _RECORD)
        except DamagedFileError as error:
            self._note(f"{error} is damaged; everything is stored anew")
            record = None
        differ = self._differences(record) if record is not None else {}
        if differ and not self._overwrite:
            raise self.stale(differ)
        if record is None or differ:
            self._clear()
            write_record(
                self.path / _RECORD,
                {"format": _FORMAT, "version": _VERSION, "belongs_to": self._belongs_to},
            )
            return
        # Of other parts, others may be in the making.
        ours = (f".shard-{self._part}-", f".part-{self._part}.", f".{_RECORD}.")
        for path in self.path.iterdir():
            if is_leftover(path.name) and path.name.startswith(ours):
                path.unlink()

    def _differences(self, record: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
        stored = {"version": record.get("version"), **record.get("belongs_to", {})}
        asked = {"version": _VERSION, **self._belongs_to}
        names = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
        return {name: (stored.get(name), asked.get(name)) for name in names}

    def stale(self, differ: Mapping[str, tuple[object, object]]) -> RunDirectoryError:
        """The error that shows what is stored beside what is asked for."""
        both = "; ".join(f"{n}: stored {old!r}, now {new!r}" for n, (old, new) in differ.items())
        return RunDirectoryError(
            f"`path` must hold targets of this teacher, data and settings: {str(self.path)!r}.",
            received=both,
            hint="Give another path, or overwrite=True to store them anew in this one.",
        )

    def clear(self) -> None:
        """Removes the targets of all parts.

        Raises:
            RunDirectoryError: Another process writes one of them.
        """
        with reading_and_writing(self.path), self._settling:
            self._clear()

    def _clear(self) -> None:
        names = os.listdir(self.path)
        for name in names:
            if name.startswith(".lock-") and name not in (_SETTLING, f".lock-{self._part}"):
                try:
                    with self._lock_of(name):
                        pass
                except filelock.Timeout:
                    raise self._busy(name.removeprefix(".lock-")) from None
        parts_first = sorted(n for n in names if n.startswith(("part-", "shard-")))
        self._remove(*(self.path / name for name in parts_first))

    def _remove(self, *paths: Path) -> None:
        for path in paths:
            with reading_and_writing(path):
                path.unlink(missing_ok=True)

    def shards(self) -> list[Shard]:
        """All shards that are whole, of all parts; others are named and removed."""
        found = []
        for path in sorted(self.path.glob("shard-*.json")):
            match = _SHARD.fullmatch(path.name)
            try:
                record = read_record(path)
                if match is None or record is None:
                    continue
                for kind, checksum in record["sha256"].items():
                    if sha256_of(_beside(path, kind)) != checksum:
                        raise DamagedFileError(_beside(path, kind))
            except DamagedFileError as error:
                part = match[1] if match else ""
                if part == self._part:
                    self._note(f"{error} is damaged; its examples are stored again")
                    self._remove(
                        self.path / f"part-{part}.json",  # a kill after this one is no harm
                        *(path, _beside(path, "ids"), _beside(path, "targets")),
                    )
                else:
                    self._note(f"{error} is damaged; store the part {part} again")
                continue
            found.append(Shard(path, record["examples"], record["facts"]))
        return found

    def add(self, ids: npt.NDArray[np.int64], rows: npt.NDArray[Any], facts: object) -> Shard:
        """Writes a shard of this part.

        Args:
            ids: Numbers of its examples, `[examples]`.
            rows: `[examples * views]`.
            facts: Whatever is to be known of them.

        Raises:
            RunDirectoryError: The disk is full, or cannot be written; what is there is intact.
        """
        names = map(_SHARD.fullmatch, os.listdir(self.path))
        taken = [int(name[2]) for name in names if name and name[1] == self._part]
        path = self.path / f"shard-{self._part}-{max(taken, default=-1) + 1:05d}.json"
        checksums = {}
        for kind, array in {"ids": ids, "targets": rows}.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write_bytes(_beside(path, kind), buffer.getvalue())
            checksums[kind] = sha256(buffer.getvalue())
        record = {"examples": len(ids), "sha256": checksums, "facts": facts}
        write_record(path, record)
        return Shard(path, len(ids), json.loads(to_json(facts)))

    def finished(self, shards: Sequence[Shard]) -> dict[str, Any] | None:
        """What was written down when this part was finished; `None` where it is not.

        Args:
            shards: Those that are whole.
        """
        path = self.path / f"part-{self._part}.json"
        try:
            record = read_record(path)
        except DamagedFileError as error:
            self._note(f"{error} is damaged; the data are read again")
            return None
        if record is None:
            return None
        there = {shard.path.name for shard in shards}
        missing = [name for name in record["shards"] if name not in there]
        if missing:
            self._note(f"{self.path / missing[0]} is missing; its examples are stored again")
            return None
        return dict(record["facts"])

    def finish(self, shards: Sequence[Shard], facts: Mapping[str, Any]) -> None:
        """Writes down that this part is finished.

        Args:
            shards: All that are there.
            facts: Whatever is to be known of the data.
        """
        names = [shard.path.name for shard in shards]
        ours = [name for name in names if name.startswith(f"shard-{self._part}-")]
        write_record(self.path / f"part-{self._part}.json", {"shards": ours, "facts": facts})


def _beside(record: Path, kind: str) -> Path:
    return record.with_name(f"{record.stem}.{kind}.npy")

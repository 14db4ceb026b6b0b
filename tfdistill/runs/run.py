"""The run directory: what of a run is finished, and what of it can be resumed.

::

    run.json        settings, versions, state of each stage
    distillation/   a directory for each stage: see :mod:`tfdistill.runs.stage`
    artifacts/      left to the exporter
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.host import versions
from tfdistill.runs.files import is_leftover, reading_and_writing, remove_leftovers
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.runs.records import DamagedFileError, read, read_record, write_record
from tfdistill.runs.stage import Checkpoint, Stage, StageResult

__all__ = ["Checkpoint", "RunDirectory", "Stage", "StageResult", "fingerprint"]

_FORMAT = "tfdistill run"
_VERSION = 1
_RECORD = "run.json"
_LOCK = ".lock"
_log = logging.getLogger(__name__)


class RunDirectory:
    """A directory that holds one run, and that one process at a time works in.

    Entering it makes it, locks it, and checks that it can be written and has room. A process
    that is killed loses its lock. What killed writers left half-written is removed on entry.

    Attributes:
        path: The directory.
        artifacts: Its subdirectory for what is exported.

    Example:
        >>> with RunDirectory("saved_models/birds") as run:
        ...     stage = run.stage("distillation", fingerprint(settings, teacher_weights))
        ...     result = stage.load()
        ...     if result is None:
        ...         checkpoint = stage.load_checkpoint()
        ...         ...
        ...         stage.commit(weights, history, {"accuracy": 0.93})
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        terminal_note: Callable[[str], None] = _log.warning,
        required_bytes: int = 16 * 2**20,
    ) -> None:
        """Names the directory; nothing is made before it is entered.

        Args:
            path: The directory.
            terminal_note: Called with a sentence about each thing found damaged or out of date.
            required_bytes: The free space, in bytes, without which the run is refused.
        """
        self.path = Path(path)
        self.artifacts = self.path / "artifacts"
        self._note = terminal_note
        self._required_bytes = required_bytes
        self._lock = filelock.FileLock(self.path / _LOCK, timeout=0, thread_local=False)
        self._record: dict[str, Any] = {}

    def __enter__(self) -> RunDirectory:
        """Makes, locks, checks and cleans the directory.

        Raises:
            RunDirectoryError: Another run is working there, it cannot be written, the disk is
                full, it holds other things than a run, or a newer version's run.
        """
        with reading_and_writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign_directory()
        self._acquire_lock()
        try:
            self._prepare()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives up the lock."""
        self._lock.release()

    @property
    def settings(self) -> dict[str, Any]:
        """What `write_settings` last wrote, also in an earlier process, as JSON gives it back."""
        return dict(self._record.get("settings", {}))

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes the run's settings and the versions of the packages in use into ``run.json``.

        Args:
            settings: Whatever describes the run: see :func:`tfdistill.runs.files.to_json`.

        Raises:
            RunDirectoryError: The disk is full, or the directory cannot be written.
            SettingError: ``settings`` has no form in JSON.
        """
        self._update(settings=dict(settings), versions=versions())

    def stage(self, name: str, fingerprint: str) -> Stage:
        """Returns the stage of this name, in the subdirectory of this name.

        Made for every stage before the first is trained, it finds what stands in the way
        while nothing is lost.

        Args:
            name: Letters, digits, ``_`` and ``-``.
            fingerprint: Of all that the result depends on, the stage before it among it.

        Raises:
            RunDirectoryError: Something else stands where its directory should be, or the run
                directory has not been entered.
            SettingError: The name cannot be a stage's.
        """
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or name == self.artifacts.name:
            raise SettingError("`name` must be a plain name other than artifacts.", received=name)
        if not self._lock.is_locked:
            raise RunDirectoryError(
                "`RunDirectory` must be entered first.", hint="Use it in a `with` statement."
            )
        path = self.path / name
        if os.path.lexists(path) and not path.is_dir():
            raise RunDirectoryError(
                f"`{path}` must be free, or a directory.",
                received="a file",
                hint="Move it away, or choose another `run_dir`.",
            )
        return Stage(
            path,
            fingerprint,
            terminal_note=self._note,
            state_changed=lambda state: self._set_state(name, state),
        )

    def _refuse_foreign_directory(self) -> None:
        with reading_and_writing(self.path):
            names = {name for name in os.listdir(self.path) if not is_leftover(name)} - {_LOCK}
        if not names:
            return
        data = read(self.path / _RECORD) or b""
        # A run.json that was damaged may lack even the mark, but not the company of records.
        if _RECORD in names and (
            _FORMAT.encode() in data
            or any(self.path.glob("*/stage.json"))
            or any(self.path.glob("*/checkpoint-*.json"))
        ):
            return
        raise RunDirectoryError(
            "`run_dir` must be empty or hold a run of this library.",
            received=f"{str(self.path)!r}, which holds {', '.join(sorted(names)[:5])}",
            hint="Choose another directory; nothing was changed in this one.",
        )

    def _acquire_lock(self) -> None:
        with reading_and_writing(self.path):
            try:
                self._lock.acquire()
            except filelock.Timeout:
                holder: dict[str, Any] = {}
                with contextlib.suppress(DamagedFileError):
                    holder = (read_record(self.path / _RECORD) or {}).get("process", {})
                raise RunDirectoryError(
                    "`run_dir` must not be in use by another run.",
                    received=f"{str(self.path)!r}, in use by process {holder.get('pid', 'unknown')}"
                    f" on {holder.get('host', 'this machine')}",
                    hint="Wait for that run to end, or choose another directory.",
                ) from None

    def _prepare(self) -> None:
        try:
            record = read_record(self.path / _RECORD) or {}
        except DamagedFileError as error:
            self._note(f"{error} is damaged; it is written anew.")
            record = {}
        if record.get("version", _VERSION) > _VERSION:
            raise RunDirectoryError(
                f"`run_dir` must hold a run of format {_VERSION} or older.",
                received=f"format {record['version']} in {str(self.path)!r}",
                hint="Update tfdistill, or choose another directory.",
            )
        with reading_and_writing(self.path):
            for directory in (self.path, *(p for p in self.path.iterdir() if p.is_dir())):
                remove_leftovers(directory)
            # Written, not asked for: only this sees quotas and limits too.
            probe = self.path / f".room.{0:016x}.tmp"
            try:
                probe.write_bytes(bytes(self._required_bytes))
            finally:
                probe.unlink(missing_ok=True)
        self._record = record
        self._update(
            format=_FORMAT,
            version=_VERSION,
            process={"pid": os.getpid(), "host": platform.node()},
            stages=record.get("stages", {}),
        )

    def _update(self, **changes: object) -> None:
        record = {**self._record, **changes}
        write_record(self.path / _RECORD, record)
        self._record = record

    def _set_state(self, name: str, state: dict[str, Any]) -> None:
        stages = self._record["stages"]
        if stages.get(name) != state:
            self._update(stages={**stages, name: state})

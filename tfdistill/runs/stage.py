"""A stage of a run: its result, and the checkpoints from which it can go on.

::

    weights.npz  history.json  stage.json         the result; stage.json makes it valid
    checkpoint-000007.npz  checkpoint-000007.json the state after epoch 7, while it runs

The two records (``stage.json``, ``checkpoint-*.json``) hold the stage's fingerprint and the
SHA-256 of the files beside them. A record comes last and goes first, so that a process killed
at any moment leaves either a complete state or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfdistill.runs.files import reading_and_writing, sync_directory, to_json, write_bytes
from tfdistill.runs.records import (
    DamagedFileError,
    pack,
    read_intact,
    read_record,
    sha256,
    unpack,
    write_record,
)

__all__ = ["Checkpoint", "Stage", "StageResult"]

_RESULT = ("weights.npz", "history.json", "stage.json")  # the record last
_CHECKPOINT = re.compile(r"checkpoint-(\d{6,})\.(npz|json)")

Arrays = Mapping[str, npt.ArrayLike]


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a finished stage left.

    Attributes:
        arrays: The student's weights by name, in the order in which they were given.
        history: The history of the training, as JSON gives it back.
        summary: What the stage said of itself, as JSON gives it back.
    """

    arrays: dict[str, npt.NDArray[Any]]
    history: dict[str, Any]
    summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted stage can go on.

    Attributes:
        epoch: The number of finished epochs.
        arrays: Everything that the training needs to go on, by name, in the order given.
        history: The history up to here, as JSON gives it back.
    """

    epoch: int
    arrays: dict[str, npt.NDArray[Any]]
    history: dict[str, Any]


class Stage:
    """One stage's result and checkpoints: made by ``RunDirectory.stage``, which holds the lock.

    Every method raises ``RunDirectoryError`` where the disk is full or the directory cannot be
    read or written; what was finished before then is intact.

    Attributes:
        name: The stage's name, which is its directory's.
        fingerprint: Of all that the result depends on.
        path: The directory; made with the first file in it.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        *,
        terminal_note: Callable[[str], None],
        state_changed: Callable[[dict[str, Any]], None],
    ) -> None:
        """Puts the directory in order, where a killed process left it otherwise.

        Args:
            path: The stage's directory.
            fingerprint: Of all that the result depends on.
            terminal_note: Called with a sentence about each thing damaged or out of date.
            state_changed: Called with the stage's state, for ``run.json``.
        """
        self.name = path.name
        self.fingerprint = fingerprint
        self.path = path
        self._note = terminal_note
        self._state_changed = state_changed
        self._previous_epoch: int | None = None
        self._settle()

    def load(self) -> StageResult | None:
        """Returns the stage's result, or ``None`` where it has to be made.

        It has to be made where there is none, where its fingerprint is not this stage's, and
        where one of its files is damaged. The last two are said through ``terminal_note``.
        """
        try:
            result = self._read_result()
        except DamagedFileError as error:
            self._note(f"{error} is damaged; {self.name} is done again.")
            return None
        if result is not None:
            self._drop_checkpoints()
            self._set_state("finished")
        return result

    def commit(
        self, arrays: Arrays, history: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> None:
        """Keeps the stage's result; the checkpoints go.

        An older result stays until the new one is complete, and is then replaced.

        Args:
            arrays: By name; of any shape and data type but ``object``. A data type that NumPy
                does not have itself (bfloat16) comes back as float32, with the same values.
            history: The training's history: see :func:`tfdistill.runs.files.to_json`.
            summary: Whatever else the stage has to say.

        Raises:
            SettingError: Something given cannot be stored.
        """
        weights, curves = pack(arrays), to_json(history).encode()
        record = {
            "fingerprint": self.fingerprint,
            "sha256": {"weights.npz": sha256(weights), "history.json": sha256(curves)},
            "summary": summary,
        }
        try:
            write_bytes(self._pending("weights.npz"), weights)
            write_bytes(self._pending("history.json"), curves)
            write_record(self._pending("stage.json"), record)
        finally:
            self._settle()
        self._drop_checkpoints()
        self._set_state("finished")

    def save_checkpoint(self, epoch: int, arrays: Arrays, history: Mapping[str, Any]) -> None:
        """Keeps the state after ``epoch`` finished epochs, and the one saved before it.

        Args:
            epoch: The number of finished epochs.
            arrays: As :meth:`commit` takes them.
            history: The history up to here.

        Raises:
            SettingError: Something given cannot be stored.
        """
        data = pack(arrays)
        record = {
            "fingerprint": self.fingerprint,
            "sha256": sha256(data),
            "epoch": epoch,
            "history": history,
        }
        try:
            self._drop_checkpoint(epoch)  # a damaged one, or other settings'
            write_bytes(self._checkpoint(epoch, "npz"), data)
            write_record(self._checkpoint(epoch, "json"), record)
        finally:
            self._settle()
        self._drop_checkpoints(keep=(epoch, self._previous_epoch))
        self._previous_epoch = epoch
        self._set_state("running", finished_epochs=epoch)

    def load_checkpoint(self) -> Checkpoint | None:
        """Returns the newest intact checkpoint of this fingerprint, or ``None``.

        Damaged ones, and ones of another fingerprint, are said through ``terminal_note``.
        """
        outdated = False
        for epoch in self._checkpoint_epochs():
            try:
                checkpoint = self._read_checkpoint(epoch)
            except DamagedFileError as error:
                self._note(f"{error} is damaged; {self.name} goes on from an earlier state.")
                continue
            if checkpoint is not None:
                self._previous_epoch = epoch
                return checkpoint
            outdated = True
        if outdated:
            self._note(f"{self.name}: settings changed since its checkpoint; it starts anew.")
        return None

    def _read_result(self) -> StageResult | None:
        record = read_record(self.path / "stage.json")
        if record is None:
            return None
        if record["fingerprint"] != self.fingerprint:
            self._note(f"{self.name}: settings changed since it was finished; it runs again.")
            return None
        weights, history = (
            read_intact(self.path / name, record["sha256"][name])
            for name in ("weights.npz", "history.json")
        )
        return StageResult(unpack(weights), json.loads(history), record["summary"])

    def _read_checkpoint(self, epoch: int) -> Checkpoint | None:
        record = read_record(self._checkpoint(epoch, "json"))
        if record is None or record["fingerprint"] != self.fingerprint:
            return None
        data = read_intact(self._checkpoint(epoch, "npz"), record["sha256"])
        return Checkpoint(record["epoch"], unpack(data), record["history"])

    def _settle(self) -> None:
        """Ends what a writer began, here or in a process that was killed, or undoes it."""
        with reading_and_writing(self.path):
            if not self.path.is_dir():
                return
            *files, record = _RESULT
            if self._pending(record).exists():  # the new result is complete
                for name in files:
                    with contextlib.suppress(FileNotFoundError):  # moved before the kill
                        os.replace(self._pending(name), self.path / name)
                sync_directory(self.path)
                os.replace(self._pending(record), self.path / record)
                sync_directory(self.path)
            for name in files:
                self._pending(name).unlink(missing_ok=True)
            for epoch in self._checkpoint_epochs("npz"):
                if not self._checkpoint(epoch, "json").exists():
                    self._checkpoint(epoch, "npz").unlink()

    def _drop_checkpoint(self, epoch: int) -> None:
        with reading_and_writing(self.path):
            self._checkpoint(epoch, "json").unlink(missing_ok=True)
            self._checkpoint(epoch, "npz").unlink(missing_ok=True)

    def _drop_checkpoints(self, keep: tuple[int | None, ...] = ()) -> None:
        for epoch in self._checkpoint_epochs():
            if epoch not in keep:
                self._drop_checkpoint(epoch)

    def _checkpoint_epochs(self, kind: str = "json") -> list[int]:
        if not self.path.is_dir():
            return []
        found = (_CHECKPOINT.fullmatch(name) for name in os.listdir(self.path))
        return sorted((int(m[1]) for m in found if m and m[2] == kind), reverse=True)

    def _checkpoint(self, epoch: int, kind: str) -> Path:
        return self.path / f"checkpoint-{epoch:06d}.{kind}"

    def _pending(self, name: str) -> Path:
        return self.path / f".{name}.new"

    def _set_state(self, state: str, **more: object) -> None:
        self._state_changed({"state": state, "fingerprint": self.fingerprint, **more})

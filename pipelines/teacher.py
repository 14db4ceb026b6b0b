"""The recipes' teacher: trained once, kept with its settings, taken again by the next run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.runs.files import reading_and_writing, write_json
from tfdistill.settings import check_training, settings, whole_number


def check_seed(name: str, seed: int) -> None:
    """Raises a `SettingError` unless `seed` is one that NumPy takes, too."""
    if whole_number(name, seed, minimum=0) >= 2**32:
        raise SettingError(f"`{name}` must be below 2**32.", received=seed)


@settings
class TeacherTraining:
    """How a teacher is trained, and where it is kept.

    Args:
        path: Its `.keras` file. Beside it, with `.json` added to the name, is kept what it was
            trained with.
        data: What it is trained on: setting to value.
        epochs: Epochs of training.
        learning_rate: Peak learning rate, decayed to 0 along a cosine.
        seed: Seed of its weights and dropout.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> training = TeacherTraining(Path("birds-teacher.keras"), {"dataset": "birds"})
        >>> teacher = training.load()
        >>> if teacher is None:
        ...     teacher = training.train(build_teacher(), td.load_dataset("birds"))
    """

    path: Path
    data: Mapping[str, Any]
    epochs: int = 20
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_training(self)
        check_seed("teacher_seed", self.seed)

    def load(self) -> Any:
        """Returns the teacher that is there, or `None` where it has to be trained.

        Raises:
            SettingError: It was trained with other settings, or cannot be saved at `path`.
            ModelError: What is there is no model.
        """
        import tfdistill as td

        with reading_and_writing(self.path):
            if not self.path.exists():
                if self.path.suffix != ".keras":
                    raise SettingError(
                        "The teacher's file must end in .keras where it has to be trained.",
                        received=str(self.path),
                    )
                return None
        kept = self._kept()
        if kept is not None:
            self._require_same(kept)
        teacher = td.load_model(self.path)
        foreign = "; not trained here, so the teacher's options are not used"
        print(f"teacher: taken from {self.path}{foreign if kept is None else ''}")
        return teacher

    def train(self, teacher: Any, data: Any) -> Any:
        """Trains a teacher and saves it. Interrupted, it goes on from its last finished epoch.

        Args:
            teacher: Keras 3 model that returns logits.
            data: What `td.load_dataset` returned; not read before or after.

        Returns:
            The teacher, as `load` will return it.

        Raises:
            RunDirectoryError: Its place cannot be written; found before the training.
        """
        import keras

        import tfdistill as td

        backup = self.path.with_name(f"{self.path.name}.backup")
        settings = {**self._settings(), "parameters": teacher.count_params()}
        with reading_and_writing(self.path):
            if backup.exists() and self._kept() != settings:
                shutil.rmtree(backup)  # of another training, which was never finished
            write_json(self._record, settings)
        print(f"teacher: training {self.epochs} epochs into {self.path}")
        keras.utils.set_random_seed(self.seed)
        steps = self.epochs * int(data.train.cardinality())
        teacher.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        unfinished = self.path.with_name(f"unfinished-{self.path.name}")
        with reading_and_writing(self.path):
            teacher.fit(
                data.train,
                validation_data=data.validation,
                epochs=self.epochs,
                shuffle=False,  # the data set does
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[
                    keras.callbacks.BackupAndRestore(
                        backup,
                        double_checkpoint=True,  # one may be cut off by what kills the process
                        delete_checkpoint=False,  # needed until the teacher is saved
                    )
                ],
            )
            teacher.save(unfinished)
            unfinished.replace(self.path)  # a teacher that is there is a whole one
            shutil.rmtree(backup)
        return td.load_model(self.path)

    @property
    def _record(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def _settings(self) -> dict[str, Any]:
        return {
            **self.data,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }

    def _kept(self) -> dict[str, Any] | None:
        """What the teacher was trained with, or `None` where that is not known."""
        with reading_and_writing(self._record):
            try:
                kept = json.loads(self._record.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            except ValueError:
                kept = None
        if not isinstance(kept, dict):
            raise RunDirectoryError(
                f"`{self._record}` must hold what the teacher was trained with.",
                received="another or a damaged file",
                hint="Delete it, and the teacher is taken as it is.",
            )
        return kept

    def _require_same(self, kept: Mapping[str, Any]) -> None:
        asked = self._settings()
        changed = [name for name in asked if kept.get(name) != asked[name]]
        if changed:
            theirs = ", ".join(f"{name}={kept.get(name)}" for name in changed)
            ours = ", ".join(f"{name}={asked[name]}" for name in changed)
            raise SettingError(
                "The teacher must have been trained with the settings asked for.",
                received=f"{self.path}, trained with {theirs}, not {ours}",
                hint=f"Delete it, or give another place for the teacher; or delete "
                f"{self._record.name} to take it as it is.",
            )

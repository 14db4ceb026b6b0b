"""How a teacher's answers come to the training stages: stored once, or asked for at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdistill.data.datasets import identity_of_augment
from tfdistill.distillation import Distillation
from tfdistill.errors import DataError
from tfdistill.losses.layers import reads_weights
from tfdistill.run_data import RunData
from tfdistill.targets import StoredTargets, store_targets
from tfdistill.targets.examples import Augment, check_augment, varying_inputs, views_of
from tfdistill.teachers import Nobody
from tfdistill.terminal import Terminal

__all__ = ["Teaching", "prepare_teaching"]


@dataclass(frozen=True)
class Teaching:
    """What the training stages are taught with.

    Attributes:
        validation: Batches to evaluate a taught student on after each epoch, or `None`.
        stored: The stored targets of the training set, or `None`.
        why_not: Why nothing is stored, as a sentence; "" where it is.
        identity: Of what decides on the training examples as the student sees them.
    """

    validation: Any
    stored: StoredTargets | None
    why_not: str
    identity: Sequence[Any]

    def note(self, epochs: int) -> str:
        """A sentence on what storing saved in so many epochs of training."""
        if self.stored is None:
            return self.why_not
        mean, most = self.stored.divergence
        views = "" if self.stored.views == 1 else f" in {self.stored.views} views"
        saved = epochs / self.stored.views - 1
        lost = (
            f"KL divergence of its soft targets from the stored ones: {mean:.1e} in the mean, "
            f"{most:.1e} at most."
            if most
            else "Nothing of what it said was left out."
        )
        return (
            f"The teacher was asked about each of {self.stored.examples:,} examples{views} once, "
            f"in {self.stored.seconds:.0f} s and {self.stored.bytes / 1e6:.1f} MB, not in each of "
            f"{epochs} epochs: that saved about {max(0.0, saved * self.stored.seconds):.0f} s. "
            f"{lost}"
        )


def prepare_teaching(
    teacher: Any,
    asked: Distillation,
    data: RunData,
    augment: Augment | None,
    *,
    directory: Path,
    epochs: int,
    seed: int,
    terminal: Terminal,
    follows: bool = False,
) -> Teaching:
    """Stores the teacher's answers where that is right and pays, and sets the training data so.

    Args:
        teacher: As for `Pipeline.run`.
        asked: The distillation's settings.
        data: The data sets; of `data.train` it is set what the stages see.
        augment: As for `Pipeline.run`.
        directory: Where to store.
        epochs: Of all stages that have a teacher.
        seed: The pipeline's.
        terminal: Told what is done.
        follows: Whether the teacher follows the student, and says something else after each step.

    Raises:
        SettingError: `augment` draws random numbers of its own.
        DataError: `store_targets` is True and cannot be right for these data.
    """
    train = data.train
    if augment is not None:
        varying = varying_inputs(train.dataset)
        if varying:
            raise DataError(
                "`train` must have inputs of fixed sizes, to be augmented.",
                received=varying,
                hint="Augment them in the data itself, or pad them to one size.",
            )
        check_augment(augment, train.dataset.element_spec[0])
        train.views = lambda batches, first, steps: views_of(batches, augment, seed, first, steps)
    views = 1 if augment is None else min(asked.views, epochs)
    # Of classes only the distances between logits matter, of numbers their values.
    dtype = "float32" if any(each.meaning == "numbers" for each in asked.every_loss) else "float16"

    def store(name: str, batches: Any, **more: Any) -> StoredTargets:
        layers = [layer for loss in asked.every_loss for layer in loss.teacher_layers]
        return store_targets(
            teacher,
            batches,
            directory / name,
            layers=tuple(dict.fromkeys(layers)),
            seed=seed,
            dtype=dtype,
            overwrite=True,
            verbose=terminal.verbose,
            **more,
        )

    identity = ["augment", identity_of_augment(augment), None]
    if isinstance(teacher, Nobody):
        return Teaching(data.validation, None, "Nothing was stored: there is no teacher.", identity)
    stored = None
    why_not = "it follows the student" if follows else _why_not(asked, data, views, epochs)
    if not why_not:
        stored = store(
            "train", train.dataset, augment=augment, views=views, data_name=data.identity
        )
        train.position += stored.readings
        if stored.seen != data.seen:  # shuffled, and a remainder dropped
            stored, why_not = None, "each reading of the training data leaves out other examples"
    if stored is None:
        if asked.store_targets is True:
            raise DataError(
                "`train` must hold the same examples in each epoch, for targets to be stored.",
                received=why_not,
                hint="Leave random augmentation to `augment=`, repetition to the epochs, and "
                'drop_remainder out; or set store_targets="auto".',
            )
        why_not = f"The teacher was asked at each step: {why_not}."
        return Teaching(data.validation, None, why_not, identity)
    train.taught = stored.attach
    if augment is not None:
        train.views = lambda batches, first, steps: views_of(
            batches, augment, seed, first, steps, views=views
        )
    validation = data.validation
    if validation is not None and not varying_inputs(validation):
        kept = store("validation", validation, data_name=data.summaries["validation"].content)
        validation = kept.attach(validation)
    return Teaching(validation, stored, "", [*identity[:2], views, dtype])


def _why_not(asked: Distillation, data: RunData, views: int, epochs: int) -> str:
    """Why targets are not stored, as a clause; "" where they are."""
    if asked.store_targets is False:
        return "store_targets=False"
    if asked.mixing is not None:
        return f"{type(asked.mixing).__name__} makes other examples at each step"
    for loss in asked.every_loss:
        if any(map(reads_weights, loss.teacher_layers)):
            return f"the loss {loss.name} reads the teacher's weights"
    if data.train.steps_per_epoch is not None:
        return "with steps_per_epoch an epoch need not hold each example once"
    varying = varying_inputs(data.train.dataset)
    if varying:
        return f"inputs of the varying size {varying} are others in each batch"
    if not data.repeats:
        return "the training data have other values each time they are read"
    if asked.store_targets == "auto" and epochs <= views:
        return f"in epochs={epochs} none of views={views} would be seen twice"
    return ""

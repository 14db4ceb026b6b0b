"""Losses on what the models answer: their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill.errors import ModelError
from tfdistill.losses import functional
from tfdistill.losses.base import DistillationLoss, Outputs, Shapes, shown

__all__ = ["HardTargets", "LogitsMSE", "SoftTargets"]


class _LogitsLoss(DistillationLoss):
    """A loss of the two models' logits, `[batch, classes]` each."""

    def build(self, teacher: Shapes, student: Shapes) -> None:
        """Refuses logits that are not `[batch, classes]` with the same classes.

        Raises:
            ModelError: The shapes differ, or are not one known number of classes.
        """
        received = f"teacher logits {shown(teacher.logits)}, student logits {shown(student.logits)}"
        for shape in (teacher.logits, student.logits):
            if len(shape) != 1 or shape[0] is None:
                raise ModelError(
                    "The logits of teacher and student must be [batch, classes], with a known "
                    "number of classes.",
                    received=received,
                    hint="Let each model end in one Dense layer without a time or space axis.",
                )
        if teacher.logits != student.logits:
            raise ModelError(
                "Teacher and student must have the same number of classes.",
                received=received,
                hint=f"Give the student's last layer {teacher.logits[0]} units.",
            )


@dataclass(frozen=True)
class SoftTargets(_LogitsLoss):
    """Teaches the teacher's softened distribution over the classes: T² · KL(teacher ‖ student).

    Formula, shapes and paper: `tfdistill.losses.functional.soft_targets`. Logits `[batch, 1]`
    are binary, read as the two logits `[0, z]`.

    Args:
        temperature: Divides the logits before the softmax; finite, > 0. The higher, the more the
            small probabilities count. Hinton et al. (2015) used 1 to 20.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.SoftTargets(temperature=4.0, weight=0.9)
        SoftTargets(temperature=4.0, weight=0.9, name='soft_targets')
    """

    temperature: float = 4.0
    weight: float = 1.0
    name: str = "soft_targets"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("temperature", ">", hint="1 leaves the logits as they are; 4 is usual.")

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        return functional.soft_targets(
            teacher.logits_at(self.temperature), student.logits, self.temperature
        )


@dataclass(frozen=True)
class HardTargets(_LogitsLoss):
    """Teaches the class that the teacher predicts, as if it were the label.

    Formula, shapes and paper: `tfdistill.losses.functional.hard_targets`. Logits `[batch, 1]`
    are binary, read as the two logits `[0, z]`.

    Args:
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.HardTargets(weight=0.5)
        HardTargets(weight=0.5, name='hard_targets')
    """

    weight: float = 1.0
    name: str = "hard_targets"

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        return functional.hard_targets(teacher.logits, student.logits)


@dataclass(frozen=True)
class LogitsMSE(_LogitsLoss):
    """Teaches the teacher's logits themselves, by the mean squared difference over the classes.

    Formula, shapes and paper: `tfdistill.losses.functional.logits_mse`.

    Args:
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.LogitsMSE(weight=0.1)
        LogitsMSE(weight=0.1, name='logits_mse')
    """

    weight: float = 1.0
    name: str = "logits_mse"

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        return functional.logits_mse(teacher.all_logits(), student.logits)

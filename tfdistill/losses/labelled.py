"""Losses on the models' outputs that read the labels, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tfdistill.errors import SettingError
from tfdistill.losses import functional
from tfdistill.losses.base import Meaning, Outputs
from tfdistill.losses.outputs import LogitsLoss, check_parts
from tfdistill.losses.shared import mean_over_steps
from tfdistill.schedules import Schedule

__all__ = ["DecoupledKD", "RegressionTargets", "VirtualTeacher"]


@dataclass(frozen=True)
class DecoupledKD(LogitsLoss):
    """Teaches how sure the teacher is of the label, and apart from that its other classes.

    Formula, shapes and paper: `tfdistill.losses.functional.decoupled_kd`. A single logit is
    binary, read as the two logits `[0, z]`; of two classes there are no others to teach. Needs
    data with labels. The authors' code raises the weight from 0 over the first epochs: here that
    is `weight=td.schedules.Linear(0, 1, steps=...)`.

    Args:
        temperature: Divides the logits before the softmax; finite, > 0.
        target_weight: Factor of the part on the label's class; finite, >= 0.
        non_target_weight: Factor of the part on the others; finite, >= 0. Zhao et al. (2022) used
            up to 8 on CIFAR-100, where the teacher is sure, and 0.5 with temperature 1 on ImageNet.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.DecoupledKD(non_target_weight=2, weight=0.5).non_target_weight
        2.0
    """

    temperature: float | Schedule = 4.0
    target_weight: float = 1.0
    non_target_weight: float = 8.0
    weight: float | Schedule = 1.0
    name: str = "decoupled_kd"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        hint = "1 leaves the logits as they are; 4 is usual."
        self._set_number("temperature", ">", hint=hint, scheduled=True)
        for setting in ("target_weight", "non_target_weight"):
            self._set_number(setting, ">=", hint="0 leaves this part out.")
        check_parts(self, "target_weight", "non_target_weight")

    @property
    def needs_labels(self) -> bool:
        """True."""
        return True

    @property
    def _relates_classes(self) -> str:
        return "target_weight=0" if self.target_weight == 0 else ""

    def call(
        self, teacher: Outputs, student: Outputs, projection: Any = None, labels: Any = None
    ) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        values = functional.decoupled_kd(
            teacher.logits_at(self.temperature),
            student.logits,
            labels,
            self.temperature,
            self.target_weight,
            self.non_target_weight,
        )
        return mean_over_steps(values, student.mask)


@dataclass(frozen=True)
class RegressionTargets(LogitsLoss):
    """Teaches numbers: the teacher's, or the labels until the student is better than the teacher.

    Formulas, shapes and papers: `tfdistill.losses.functional.logits_mse` and
    `bounded_regression`.

    Args:
        bounded: False for the mean squared difference from the teacher's outputs. True for that
            from the labels, which the data then must have, and only where it is not yet less
            than the teacher's.
        margin: By how much it must be less, in squared units of the labels; finite, >= 0, and 0
            unless `bounded`.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.RegressionTargets(bounded=True, margin=0.1).needs_labels
        True
    """

    meaning: ClassVar[Meaning] = "numbers"
    bounded: bool = False
    margin: float = 0.0
    weight: float | Schedule = 1.0
    name: str = "regression_targets"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._check_switch("bounded")
        self._set_number("margin", ">=", hint="0 is as good as the teacher.")
        if self.margin > 0 and not self.bounded:
            raise SettingError(
                "`margin` must be 0 unless bounded=True.",
                received=f"margin={self.margin}, bounded=False",
                hint="Pass bounded=True, or leave `margin` out.",
            )

    @property
    def needs_labels(self) -> bool:
        """True where `bounded`."""
        return self.bounded

    def call(
        self, teacher: Outputs, student: Outputs, projection: Any = None, labels: Any = None
    ) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        said = teacher.all_logits(), student.logits
        if self.bounded:
            values = functional.bounded_regression(*said, labels, self.margin)
        else:
            values = functional.logits_mse(*said)
        return mean_over_steps(values, student.mask)


@dataclass(frozen=True)
class VirtualTeacher(LogitsLoss):
    """Teaches what a teacher that is always right would say, made up from the label: needs none.

    Formula, shapes and paper: `tfdistill.losses.functional.virtual_teacher`. A single logit is
    binary, read as the two logits `[0, z]`. Needs data with labels.

    Args:
        probability: Of the label's class, in (0.5, 1); the others share the rest. The paper asks
            for 0.9 or more.
        temperature: Divides the logits before the softmax; finite, > 0. The paper asks for 20 or
            more, for a soft distribution.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.VirtualTeacher(weight=0.1).needs_teacher
        False
    """

    probability: float = 0.99
    temperature: float | Schedule = 20.0
    weight: float | Schedule = 1.0
    name: str = "virtual_teacher"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("probability", ">", below=1, hint="0.9 to 0.99 is usual.")
        if self.probability <= 0.5:
            raise SettingError(
                "`probability` must be > 0.5: the label's class is the likeliest.",
                received=self.probability,
                hint="0.9 to 0.99 is usual.",
            )
        self._set_number("temperature", ">", hint="20 is usual.", scheduled=True)

    @property
    def needs_teacher(self) -> bool:
        """False."""
        return False

    @property
    def needs_labels(self) -> bool:
        """True."""
        return True

    def call(
        self, teacher: Outputs, student: Outputs, projection: Any = None, labels: Any = None
    ) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        values = functional.virtual_teacher(
            student.logits, labels, self.probability, self.temperature
        )
        return mean_over_steps(values, student.mask)

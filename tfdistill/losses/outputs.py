"""Losses on what the models answer: their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import functional
from tfdistill.losses.base import DistillationLoss, Meaning, Outputs, Shapes, shown
from tfdistill.losses.shared import mean_over_steps
from tfdistill.losses.temperatures import AdaptiveTemperature
from tfdistill.schedules import Schedule

__all__ = [
    "DIST",
    "BinaryTargets",
    "CenteredMSE",
    "HardTargets",
    "LogitsLoss",
    "LogitsMSE",
    "ProbabilityMSE",
    "SoftTargets",
]

_TEMPERATURE = "1 leaves the logits as they are; 4 is usual."
_DIVERGENCES = {
    "kl": functional.soft_targets,
    "cross_entropy": functional.soft_cross_entropy,
    "reverse_kl": functional.reverse_kl,
    "jensen_shannon": functional.jensen_shannon,
}


_ENDINGS: dict[str, tuple[Sequence[str], str, str]] = {  # what it cannot be; what it must; why
    "classes": (
        ["sigmoid"],
        "a softmax, or in logits,",
        "Of sigmoids any number may be true: td.losses.BinaryTargets teaches each of them.",
    ),
    "labels": (
        ["softmax"],
        "sigmoids, or in logits,",
        "Of a softmax's classes one is true: td.losses.SoftTargets teaches them.",
    ),
    "numbers": (
        ["softmax", "sigmoid"],
        "numbers, without an activation,",
        "What is before an activation would be compared. Leave the activation out; of an ensemble, "
        "combine='probabilities' and by_confidence=True, which make one of classes of it.",
    ),
}


class LogitsLoss(DistillationLoss):
    """A loss of the two models' logits, `[batch, ..., classes]` each."""

    meaning: ClassVar[Meaning] = "classes"

    @property
    def _relates_classes(self) -> str:
        """What of this loss makes no sense with one or two classes, or ""."""
        return ""

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        """The loss of each step of each example, `[batch, ...]`."""
        raise NotImplementedError

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        return mean_over_steps(self._values(teacher, student), student.mask)

    def build(self, teacher: Shapes, student: Shapes) -> None:
        """Refuses logits that are not `[batch, ..., classes]` with the same classes.

        Raises:
            ModelError: The shapes differ, or are not one known number of classes, or of too few.
        """
        received = f"teacher logits {shown(teacher.logits)}, student logits {shown(student.logits)}"
        for shape in (teacher.logits, student.logits):
            if not shape or shape[-1] is None:
                raise ModelError(
                    "The logits of teacher and student must be [batch, ..., classes], with a "
                    "known number of classes.",
                    received=received,
                    hint="Let each model end in one Dense layer.",
                )
        if teacher.logits[-1] != student.logits[-1]:
            raise ModelError(
                "Teacher and student must have the same number of classes.",
                received=received,
                hint=f"Give the student's last layer {teacher.logits[-1]} units.",
            )
        if len(teacher.logits) != len(student.logits) or any(
            None not in sizes and sizes[0] != sizes[1]
            for sizes in zip(teacher.logits, student.logits, strict=True)
        ):
            raise ModelError(
                "Teacher and student must have logits for the same steps.",
                received=received,
                hint="Let both see the same number of time steps, or places of an image.",
            )
        check_endings(self, self.meaning, teacher, student)
        needing_three = self._relates_classes
        if needing_three and (student.logits[-1] or 0) < 3:
            raise ModelError(
                f"Teacher and student must have at least three classes for {needing_three}.",
                received=received,
                hint="Of two it would be left only which one is larger. Leave that out.",
            )


@dataclass(frozen=True)
class SoftTargets(LogitsLoss):
    """Teaches the teacher's softened distribution over the classes: T² · KL(teacher ‖ student).

    Formulas, shapes and papers: `tfdistill.losses.functional.soft_targets`, `soft_cross_entropy`,
    `reverse_kl`, `jensen_shannon` and `standardized`. A single logit is binary, read as the two
    logits `[0, z]`.

    Args:
        temperature: Divides the logits before the softmax; finite, > 0. The higher, the more the
            small probabilities count. Hinton et al. (2015) used 1 to 20. A schedule changes it over
            the steps; `FLSW` and `CWSM` give each example one of its own, that depends on the
            global batch it is in, and each example's loss the square of its own as factor.
        divergence: "kl"; "cross_entropy", which has the same gradient and is the teacher's
            entropy more, so that it does not end at 0; "reverse_kl", which lets a student too
            small for all that the teacher allows choose; or "jensen_shannon", which is bounded.
        standardize: Whether to give both models' logits mean 0 and standard deviation 1 over the
            classes before the temperature divides them: the student learns their relations
            without their scale, which the labels then have to teach. For three classes or more.
            Sun et al. (2024) used temperature 2 and a weight of 9.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> loss = losses.SoftTargets(temperature=4.0, weight=0.9)
        >>> loss.temperature, loss.divergence, loss.weight
        (4.0, 'kl', 0.9)
    """

    temperature: float | Schedule | AdaptiveTemperature = 4.0
    divergence: Literal["kl", "cross_entropy", "reverse_kl", "jensen_shannon"] = field(
        default="kl", kw_only=True
    )
    standardize: bool = field(default=False, kw_only=True)
    weight: float | Schedule = 1.0
    name: str = "soft_targets"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if not isinstance(self.temperature, AdaptiveTemperature):
            self._set_number("temperature", ">", hint=_TEMPERATURE, scheduled=True)
        self._check_choice("divergence", _DIVERGENCES)
        self._check_switch("standardize")

    @property
    def across_batch(self) -> bool:
        """True where each example has a temperature of its own."""
        return isinstance(self.temperature, AdaptiveTemperature)

    @property
    def _relates_classes(self) -> str:
        return "standardize=True" if self.standardize else ""

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        divergence = _DIVERGENCES[self.divergence]
        temperature: Any = self.temperature
        if isinstance(temperature, AdaptiveTemperature):
            temperature = temperature.of(teacher.all_logits(), student.logits, student.mask)
        if self.standardize:
            theirs = functional.standardized(teacher.all_logits())
            ours = functional.standardized(student.logits)
        else:
            theirs, ours = teacher.logits_at(temperature), student.logits
        return divergence(theirs, ours, temperature)


@dataclass(frozen=True)
class HardTargets(LogitsLoss):
    """Teaches the class that the teacher predicts, as if it were the label.

    Formula, shapes and papers: `tfdistill.losses.functional.hard_targets`. A single logit is
    binary, read as the two logits `[0, z]`.

    Args:
        threshold: Least probability of the teacher's class, in [0, 1). An example below it has
            the value 0, and is still counted in the batch's mean.
        label_smoothing: Part of the target that is spread evenly over all classes, in [0, 1).
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.HardTargets(weight=0.5, threshold=0.95).threshold
        0.95
    """

    threshold: float = field(default=0.0, kw_only=True)
    label_smoothing: float = field(default=0.0, kw_only=True)
    weight: float | Schedule = 1.0
    name: str = "hard_targets"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("threshold", ">=", below=1, hint="0 takes every example; 0.95 is usual.")
        self._set_number("label_smoothing", ">=", below=1, hint="0 smooths nothing; 0.1 is usual.")

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        # Of top-k targets the largest logit is right at every temperature, its probability is not.
        logits = teacher.logits_at(1.0) if self.threshold > 0 else teacher.logits
        return functional.hard_targets(logits, student.logits, self.threshold, self.label_smoothing)


@dataclass(frozen=True)
class LogitsMSE(LogitsLoss):
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

    meaning: ClassVar[Meaning] = "anything"
    weight: float | Schedule = 1.0
    name: str = "logits_mse"

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        return functional.logits_mse(teacher.all_logits(), student.logits)


@dataclass(frozen=True)
class CenteredMSE(LogitsLoss):
    """Teaches the teacher's logits up to a number added to all: each side's mean is removed first.

    Formula, shapes and papers: `tfdistill.losses.functional.centered_mse`. A single logit is
    binary, read as the two logits `[0, z]`.

    Args:
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.CenteredMSE(weight=0.1)
        CenteredMSE(weight=0.1, name='centered_mse')
    """

    weight: float | Schedule = 1.0
    name: str = "centered_mse"

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        return functional.centered_mse(teacher.all_logits(), student.logits)


@dataclass(frozen=True)
class ProbabilityMSE(LogitsLoss):
    """Teaches the teacher's probabilities by their squared distance, summed over the classes.

    Formula, shapes and papers: `tfdistill.losses.functional.probability_mse`. A single logit is
    binary, read as the two logits `[0, z]`.

    Args:
        temperature: Divides the logits before the softmax; finite, > 0.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.ProbabilityMSE()
        ProbabilityMSE(temperature=1.0, weight=1.0, name='probability_mse')
    """

    temperature: float | Schedule = 1.0
    weight: float | Schedule = 1.0
    name: str = "probability_mse"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("temperature", ">", hint=_TEMPERATURE, scheduled=True)

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        logits = teacher.logits_at(self.temperature)
        return functional.probability_mse(logits, student.logits, self.temperature)


@dataclass(frozen=True)
class BinaryTargets(LogitsLoss):
    """Teaches the teacher's yes or no to each of several labels that may be true together.

    Formula and shapes: `tfdistill.losses.functional.binary_targets`. Each logit is one label's;
    where labels are rows, accuracy and `teacher_agreement` are of the labels, too.

    Args:
        temperature: Divides the logits before the sigmoid; finite, > 0.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.BinaryTargets(temperature=2.0)
        BinaryTargets(temperature=2.0, weight=1.0, name='binary_targets')
    """

    meaning: ClassVar[Meaning] = "labels"
    temperature: float | Schedule = 1.0
    weight: float | Schedule = 1.0
    name: str = "binary_targets"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("temperature", ">", hint=_TEMPERATURE, scheduled=True)

    def _values(self, teacher: Outputs, student: Outputs) -> Any:
        # Not logits_at: top-k targets are right for a softmax only.
        return functional.binary_targets(teacher.all_logits(), student.logits, self.temperature)


@dataclass(frozen=True)
class DIST(LogitsLoss):
    """Teaches relations of the teacher's probabilities: between classes, and between examples.

    Formulas, shapes and paper: `tfdistill.losses.functional.inter_class` and `intra_class`. A
    single logit is binary, read as the two logits `[0, z]`. The value of an example is
    `inter_weight` times its own `inter_class` plus `intra_weight` times the batch's one
    `intra_class`; so their mean over the batch is the paper's sum, and a sample weight weighs the
    example's own part. The batch is that of all replicas; small ones make `intra_class` noisy.

    Args:
        inter_weight: Factor of the correlation over the classes of each example; finite, >= 0.
        intra_weight: Factor of the correlation over the examples of each class; finite, >= 0.
        temperature: Divides the logits before the softmax; finite, > 0.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.DIST(intra_weight=2, name="relations")  # doctest: +NORMALIZE_WHITESPACE
        DIST(inter_weight=1.0, intra_weight=2.0, temperature=1.0, weight=1.0,
             name='relations')
    """

    inter_weight: float = 1.0
    intra_weight: float = 1.0
    temperature: float | Schedule = 1.0
    weight: float | Schedule = 1.0
    name: str = "dist"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        for setting in ("inter_weight", "intra_weight"):
            self._set_number(setting, ">=", hint="0 leaves this part out.")
        check_parts(self, "inter_weight", "intra_weight")
        self._set_number("temperature", ">", hint=_TEMPERATURE, scheduled=True)

    @property
    def across_batch(self) -> bool:
        """True where the part over the examples is in it."""
        return self.intra_weight > 0

    @property
    def _relates_classes(self) -> str:
        return "inter_weight > 0" if self.inter_weight > 0 else ""

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        said = teacher.logits_at(self.temperature), student.logits, self.temperature
        values = 0.0
        if self.inter_weight > 0:
            own = mean_over_steps(functional.inter_class(*said), student.mask)
            values += self.inter_weight * own
        if self.intra_weight > 0:
            values += self.intra_weight * functional.intra_class(*said, student.mask)
        return values


def check_endings(
    loss: DistillationLoss, meaning: Meaning, teacher: Shapes, student: Shapes
) -> None:
    """Refuses models whose last activation says that their units are something else.

    Args:
        loss: What is built.
        meaning: What it takes the units for.
        teacher: Shapes of what the teacher says.
        student: Shapes of what the student says.

    Raises:
        ModelError: They are.
    """
    units = student.logits[-1]
    if meaning == "anything" or (meaning == "classes" and units == 1):
        return
    others, must, hint = _ENDINGS[meaning]
    models = {"student": student, "teacher": teacher}
    for role in models if loss.needs_teacher else ["student"]:
        ending = models[role].endings
        if ending in others:
            raise ModelError(
                f"`{role}` must end in {must} for the loss {loss.name!r}.",
                received=f"{ending} of {units} units",
                hint=hint,
            )


def check_parts(loss: DistillationLoss, *weights: str) -> None:
    """Refuses a loss all parts of which have the weight 0.

    Raises:
        SettingError: They have.
    """
    if not any(getattr(loss, weight) for weight in weights):
        raise SettingError(
            f"`{'` and `'.join(weights)}` must not both be 0.",
            received=repr(loss),
            hint="To log the loss without teaching it, set `weight` to 0.",
        )

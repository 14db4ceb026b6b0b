"""Losses on how the examples of a batch relate to each other in a layer's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill.errors import ModelError
from tfdistill.losses import functional
from tfdistill.losses.layers import LayerLoss, LayerOutput, Shape, require_width
from tfdistill.schedules import Schedule
from tfdistill.settings import whole_number

__all__ = [
    "Contrastive",
    "CorrelationCongruence",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
]


class _RelationLoss(LayerLoss):
    """A loss of all examples of the global batch; the layers may have any shapes.

    Where the layers are "auto", the last resolution is taken that both models have.
    """

    @property
    def across_batch(self) -> bool:
        """True."""
        return True

    def _chosen(self, resolutions: list[Shape]) -> list[Shape]:
        return resolutions[-1:]

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        if not teacher or not student:
            raise ModelError(
                "`teacher_layer` and `student_layer` must have features: [batch, ...].",
                received=received,
                hint="Name layers that put out [batch, width] or more.",
            )


@dataclass(frozen=True)
class SimilarityPreserving(_RelationLoss):
    """Teaches which examples of a batch are similar.

    Formula, shapes and paper: `tfdistill.losses.functional.similarity_preserving`.

    Args:
        teacher_layer: Name of the teacher's layer, of any shape; several names for several pairs,
            of whose values the mean is taken; or "auto" for the last layer of the last resolution
            that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0. The authors used up to 3000.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.SimilarityPreserving("auto", weight=1000).name
        'similarity_preserving'
    """

    name: str = "similarity_preserving"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.similarity_preserving(teacher, student)


@dataclass(frozen=True)
class RelationalDistance(_RelationLoss):
    """Teaches how far apart the examples of a batch are.

    Formula, shapes and paper: `tfdistill.losses.functional.relational_distance`. The paper takes
    the embedding before the last layer.

    Args:
        teacher_layer: Name of the teacher's layer, of any shape; several names for several pairs,
            of whose values the mean is taken; or "auto" for the last layer of the last resolution
            that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0. Park et al. (2019) used 25 beside labels.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.RelationalDistance("avg_pool", "pool", weight=25).across_batch
        True
    """

    name: str = "relational_distance"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.relational_distance(teacher, student)


@dataclass(frozen=True)
class RelationalAngle(_RelationLoss):
    """Teaches the angles of the triangles that the examples of a batch form.

    Formula, shapes and paper: `tfdistill.losses.functional.relational_angle`. Time and memory grow
    with the cube of the batch, of all replicas together. The paper takes the embedding before the
    last layer.

    Args:
        teacher_layer: Name of the teacher's layer, of any shape; several names for several pairs,
            of whose values the mean is taken; or "auto" for the last layer of the last resolution
            that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0. Park et al. (2019) used 50 beside labels.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.RelationalAngle("avg_pool", "pool", weight=50).name
        'relational_angle'
    """

    name: str = "relational_angle"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.relational_angle(teacher, student)


@dataclass(frozen=True)
class ProbabilisticTransfer(_RelationLoss):
    """Teaches which examples of a batch are probably neighbours.

    Formula, shapes and paper: `tfdistill.losses.functional.probabilistic_transfer`.

    Args:
        teacher_layer: Name of the teacher's layer, of any shape; several names for several pairs,
            of whose values the mean is taken; or "auto" for the last layer of the last resolution
            that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.ProbabilisticTransfer("avg_pool", "pool").name
        'probabilistic_transfer'
    """

    name: str = "probabilistic_transfer"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.probabilistic_transfer(teacher, student)


@dataclass(frozen=True)
class CorrelationCongruence(_RelationLoss):
    """Teaches how the examples of a batch correlate.

    Formula, shapes and paper: `tfdistill.losses.functional.correlation_congruence`.

    Args:
        teacher_layer: Name of the teacher's layer, of any shape; several names for several pairs,
            of whose values the mean is taken; or "auto" for the last layer of the last resolution
            that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.
        gamma: How fast the Gaussian kernel falls with the distance; finite, > 0.
        order: Last power of its Taylor series, >= 1.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.CorrelationCongruence("avg_pool", "pool", order=3).gamma
        0.4
    """

    name: str = "correlation_congruence"
    gamma: float = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("gamma", ">", hint="0.4 is the authors'.")
        object.__setattr__(self, "order", whole_number("order", self.order, minimum=1))

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.correlation_congruence(teacher, student, self.gamma, self.order)


@dataclass(frozen=True)
class Contrastive(_RelationLoss):
    """Teaches the student to tell each example of a batch by the teacher's features.

    Formula, shapes and paper: `tfdistill.losses.functional.contrastive`: the in-batch (InfoNCE)
    form of contrastive representation distillation, so large batches are better. Where the widths
    differ, a linear map without bias brings the student's to the teacher's; it is trained with the
    student and is no part of it.

    Args:
        teacher_layer: Name of the teacher's layer, `[batch, width]`; several names for several
            pairs, of whose values the mean is taken; or "auto" for the last such layer before the
            logits, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0. Tian et al. (2020) used 0.8.
        name: Name in the logs.
        temperature: Divides the cosines; finite, > 0.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.Contrastive("avg_pool", "pool", weight=0.8).temperature
        0.07
    """

    name: str = "contrastive"
    temperature: float | Schedule = 0.07
    _projects = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._set_number("temperature", ">", hint="0.07 is usual.", scheduled=True)

    def _could_read(self, layer: LayerOutput) -> bool:
        return len(layer.shape) == 1 and layer.shape[0] is not None

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        require_width(teacher, student, received)
        if len(teacher) != 1 or len(student) != 1:
            raise ModelError(
                "`teacher_layer` and `student_layer` must be vectors, [batch, width].",
                received=received,
                hint="Name layers behind the pooling over places or steps.",
            )

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.contrastive(teacher, student, self.temperature)

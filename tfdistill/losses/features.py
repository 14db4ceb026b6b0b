"""Losses on what the models compute on the way: the outputs of their layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill._keras import tf_keras
from tfdistill.errors import ModelError
from tfdistill.losses import functional
from tfdistill.losses.base import DistillationLoss, Outputs, Shapes, shown

__all__ = ["Hint"]


@dataclass(frozen=True)
class Hint(DistillationLoss):
    """Teaches a layer of the student to compute what a layer of the teacher computes.

    Formula, shapes and paper: `tfdistill.losses.functional.hint`. Both layers put out
    `[batch, ..., width]`, with equal sizes between batch and width. Where the widths differ, a
    linear map of the last axis without bias brings the student's to the teacher's (for images a
    1x1 convolution, where FitNets has a larger one). It is trained with the student and is no
    part of it.

    Args:
        teacher_layer: Name of the teacher's layer.
        student_layer: Name of the student's layer.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs. Two hints in one Distiller need two names.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.Hint("conv4_block6_out", "block3", weight=0.5)
        Hint(teacher_layer='conv4_block6_out', student_layer='block3', weight=0.5, name='hint')
    """

    teacher_layer: str
    student_layer: str
    weight: float = 1.0
    name: str = "hint"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        for setting in ("teacher_layer", "student_layer"):
            self._check_text(setting, hint="Pass the layer's name: `layer.name`.")

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The one teacher layer."""
        return (self.teacher_layer,)

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The one student layer."""
        return (self.student_layer,)

    def build(self, teacher: Shapes, student: Shapes) -> Any:
        """Makes the projection where the widths differ.

        Returns:
            A built `tf_keras.layers.Dense` in float32, or None where the widths are equal.

        Raises:
            ModelError: The layers differ in another axis than the last, or a width is unknown.
        """
        target = teacher.features[self.teacher_layer]
        source = student.features[self.student_layer]
        received = (
            f"teacher layer {self.teacher_layer!r} {shown(target)}, "
            f"student layer {self.student_layer!r} {shown(source)}"
        )
        if len(target) != len(source) or any(
            None not in sizes and sizes[0] != sizes[1]
            for sizes in zip(target[:-1], source[:-1], strict=True)
        ):
            raise ModelError(
                "`teacher_layer` and `student_layer` must agree in every axis but the last.",
                received=received,
                hint="Name two layers of the same resolution or sequence length.",
            )
        if not target or target[-1] is None or source[-1] is None:
            raise ModelError(
                "`teacher_layer` and `student_layer` must have a last axis of known size.",
                received=received,
                hint="Name layers that put out [batch, ..., width].",
            )
        if target[-1] == source[-1]:
            return None
        # float32 whatever the global policy: the loss is computed in float32.
        projection = tf_keras.layers.Dense(
            target[-1], use_bias=False, dtype="float32", name=f"{self.name}_projection"
        )
        projection.build((None, *source))
        return projection

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        features = student.features[self.student_layer]
        if projection is not None:
            features = projection(features)
        return functional.hint(teacher.features[self.teacher_layer], features)

"""Nobody, where a student is taught by losses that need no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdistill.errors import ModelError
from tfdistill.losses import DistillationLoss, Outputs, Shapes
from tfdistill.outputs import ModelView
from tfdistill.teachers.base import Asked, GivenTeacher, Teacher

__all__ = ["Nobody", "SilentTeacher", "teacher_for"]


class Nobody(GivenTeacher):
    """Stands where a teacher would, and says nothing."""

    name = "nobody"

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        return SilentTeacher(ModelView(asked.student, role="student", several=True).shapes)

    def identity(self, asked: Asked) -> list[Any]:
        """The same, always."""
        return [self.name]


class SilentTeacher:
    """Has no logits and no features of any batch.

    Args:
        shapes: Of the student's logits, which nothing but the shapes of this one is compared with.
    """

    outside: tuple[Any, ...] = ()
    followers: tuple[Any, ...] = ()
    note = ""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        return Outputs({name: () for name in self.shapes.names} or (), {})


def teacher_for(losses: Sequence[DistillationLoss], teacher: Any) -> Any:
    """The teacher as it was given; `Nobody` for `None`, where no loss needs one.

    Args:
        losses: What the student is to learn from.
        teacher: As `Distiller` takes it.

    Raises:
        ModelError: A loss needs one.
    """
    if teacher is not None and not isinstance(teacher, Nobody):
        return teacher
    needing = [loss.name for loss in losses if loss.needs_teacher]
    if needing:
        raise ModelError(
            "`teacher` must be given for the losses that need one.",
            received=f"teacher=None and {', '.join(needing)}",
            hint="Give one; or take td.losses.VirtualTeacher or td.losses.EarlyExits, which need "
            "none.",
        )
    return Nobody()

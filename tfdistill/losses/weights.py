"""A loss on the models' weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import functional
from tfdistill.losses.base import Outputs, Shapes
from tfdistill.losses.layers import AUTO, WEIGHTS, LayerLoss, Shape

__all__ = ["WeightMSE"]


@dataclass(frozen=True)
class WeightMSE(LayerLoss):
    """Keeps the weights of a layer of the student near those of a layer of the teacher.

    Formula and shapes: `tfdistill.losses.functional.weight_mse`. The two layers have weights of
    equal shapes, such as embeddings or the layers of a student that began as a part of its
    teacher; moving statistics are not counted. The teacher must be a model, and is asked live:
    weights are not among stored targets. Every example has the same value.

    Args:
        teacher_layer: Name of the teacher's layer; several names for several pairs, of whose
            values the mean is taken. Not "auto": weights have no resolution to match by.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.WeightMSE("embedding", "embedding", weight=0.01).student_layers
        ('embedding:weights',)
    """

    name: str = "weight_mse"
    _reads = WEIGHTS

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if self.teacher_layer == AUTO:
            raise SettingError(
                "`teacher_layer` and `student_layer` must name layers.",
                received=repr(self),
                hint="Weights have no resolution that they could be matched by.",
            )

    def build(self, teacher: Shapes, student: Shapes) -> None:
        """Refuses layers whose weights differ in their shapes.

        Raises:
            ModelError: They do.
        """
        for theirs, ours in self.pairs:
            target: Any = teacher.features[theirs]  # of weights, the shape of each
            source: Any = student.features[ours]
            if [*map(_significant, target)] != [*map(_significant, source)]:
                raise ModelError(
                    "`teacher_layer` and `student_layer` must have weights of equal shapes.",
                    received=f"teacher layer {theirs!r} {[*target]}, "
                    f"student layer {ours!r} {[*source]}",
                    hint="Teach the output of the layer instead: td.losses.Hint projects it.",
                )

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The one value for each example, `[batch]`, before `weight`."""
        values = [
            functional.weight_mse(teacher.features[theirs], student.features[ours])
            for theirs, ours in self.pairs
        ]
        return tf.fill([tf.shape(student.logits)[0]], tf.add_n(values) / len(values))

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        raise NotImplementedError  # `build` does not go by outputs

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        raise NotImplementedError  # `call` neither


def _significant(shape: Shape) -> list[int | None]:
    """Without axes of size 1: a quantized convolution over time has one over a width of one."""
    return [size for size in shape if size != 1]

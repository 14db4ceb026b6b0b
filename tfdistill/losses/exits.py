"""A student that teaches its own earlier layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import functional
from tfdistill.losses.base import DistillationLoss, Meaning, Outputs, Shapes, shown
from tfdistill.losses.outputs import check_endings
from tfdistill.losses.shared import class_numbers, with_two_classes
from tfdistill.schedules import Schedule

__all__ = ["EarlyExits"]

_Layer: Any = tf_keras.layers.Layer


@dataclass(frozen=True)
class EarlyExits(DistillationLoss):
    """Teaches layers on the way what the student's own end says: "be your own teacher".

    Each layer gets an exit, the mean over its places and a linear map to the classes, that is
    trained beside the student and is no part of it. The value of an example is, averaged over
    the exits,

        label_weight * cross-entropy of the exit and the label
        + (1 - label_weight) * T² KL(student || exit)

    No gradient flows to the student's end from here. Zhang et al. (2019,
    https://arxiv.org/abs/1905.08094, equations 2 to 4) add up their exits, which have a
    bottleneck of convolutions each, and teach the exits' features, too: for that `Hint` and its
    like are there.

    Args:
        layers: Names of the student's layers that get an exit, `[batch, ..., width]` each.
        temperature: Divides the logits before the softmax; finite, > 0.
        label_weight: Share of the label in what an exit is taught, from 0 to 1; 0 needs no labels.
        weight: Factor in the total loss, finite, >= 0. It need not follow the temperature.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.EarlyExits(["block1", "block2"], weight=0.3).layers
        ('block1', 'block2')
    """

    meaning: ClassVar[Meaning] = "classes"
    layers: Sequence[str]
    temperature: float | Schedule = 3.0
    label_weight: float = 0.7
    weight: float | Schedule = 1.0
    name: str = "early_exits"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        layers = self.layers
        if (
            isinstance(layers, str)
            or not isinstance(layers, Sequence)
            or not layers
            or not all(isinstance(layer, str) and layer for layer in layers)
            or len(set(layers)) != len(layers)
        ):
            raise SettingError(
                "`layers` must be a list of different names of layers.",
                received=repr(layers),
                hint='Pass e.g. layers=["block1", "block2"].',
            )
        object.__setattr__(self, "layers", tuple(layers))
        hint = "1 leaves the logits as they are; 3 is usual."
        self._set_number("temperature", ">", hint=hint, scheduled=True)
        self._set_number("label_weight", ">=", hint="0 leaves the labels out.")
        if self.label_weight > 1:
            raise SettingError(
                "`label_weight` must be from 0 to 1.",
                received=self.label_weight,
                hint="It is the label's share; `weight` is the whole's.",
            )

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The layers that get an exit."""
        return tuple(self.layers)

    @property
    def needs_teacher(self) -> bool:
        """False: the student's own end teaches."""
        return False

    @property
    def needs_labels(self) -> bool:
        """True unless `label_weight` is 0."""
        return self.label_weight > 0

    def build(self, teacher: Shapes, student: Shapes) -> Any:
        """Makes the exits.

        Raises:
            ModelError: A layer has no width that is known, the student's logits are not
                `[batch, classes]`, or it ends in several sigmoids.
        """
        if len(student.logits) != 1 or student.logits[0] is None:
            raise ModelError(
                "The student must have logits [batch, classes] to teach its earlier layers.",
                received=f"student logits {shown(student.logits)}",
                hint="Leave this loss out, or let the student end in one Dense layer.",
            )
        check_endings(self, "classes", teacher, student)
        for layer in self.layers:
            shape = student.features[layer]
            if not shape or shape[-1] is None:
                raise ModelError(
                    "`layers` must put out [batch, ..., width] with a known width.",
                    received=f"layer {layer!r} {shown(shape)}",
                    hint="Name layers with a fixed number of channels.",
                )
        exits = _Exits(self.layers, student.logits[0], name=f"{self.name}_exits")
        exits.build({layer: student.features[layer] for layer in self.layers})
        return exits

    def call(
        self, teacher: Outputs, student: Outputs, projection: Any = None, labels: Any = None
    ) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        values = []
        for logits in projection(student.only(self.layers).features):
            taught = functional.soft_targets(student.logits, logits, self.temperature)
            value = (1 - self.label_weight) * taught
            if self.needs_labels:
                value += self.label_weight * _cross_entropy(labels, logits)
            values.append(value)
        return tf.add_n(values) / len(values)


class _Exits(_Layer):
    """Logits of each exit, from the features by layer name."""

    def __init__(self, layers: Sequence[str], classes: int, name: str) -> None:
        # float32 whatever the global policy: the loss is computed in float32.
        super().__init__(name=name, dtype="float32")
        self._names = tuple(layers)
        self._heads = [
            tf_keras.layers.Dense(classes, dtype="float32", name=f"exit_{place}")
            for place in range(len(layers))
        ]

    def build(self, shapes: Any) -> None:
        for name, head in zip(self._names, self._heads, strict=True):
            head.build((None, shapes[name][-1]))
        super().build(shapes)

    def call(self, features: Any) -> list[Any]:
        logits = []
        for name, head in zip(self._names, self._heads, strict=True):
            values = tf.cast(features[name], tf.float32)
            places = list(range(1, values.shape.rank - 1))
            logits.append(head(tf.reduce_mean(values, axis=places) if places else values))
        return logits


def _cross_entropy(labels: Any, logits: Any) -> Any:
    logits = with_two_classes(logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(class_numbers(labels, logits), logits)

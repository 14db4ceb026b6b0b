"""The door of all losses on layers: which ones, do they fit, what projects the student's."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses.base import DistillationLoss, Outputs, Shapes, shown
from tfdistill.schedules import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AUTO", "SCORES", "WEIGHTS", "LayerLoss", "LayerOutput", "Projections", "Shape"]

AUTO = "auto"
SCORES, WEIGHTS = ":scores", ":weights"  # behind a layer's name: what is read of it
Shape = tuple[int | None, ...]


class LayerOutput(NamedTuple):
    """A layer that a loss may read.

    Attributes:
        name: What it is named by.
        kind: Name of its class.
        shape: Of its output, without the batch axis; None is an unknown size.
    """

    name: str
    kind: str
    shape: Shape


@dataclass(frozen=True)
class LayerLoss(DistillationLoss):
    """A loss of layers' outputs: the mean over pairs of a teacher's and a student's layer.

    A subclass says what the value of one pair is, and what it needs of the shapes.

    Args:
        teacher_layer: Name of the teacher's layer; several names for several pairs; or "auto" for
            the last layer of each resolution (the sizes between batch and width) that both models
            have, which the Distiller's `notes` name.
        student_layer: Name of the student's layer, or as many names; "auto" where the other is.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.
    """

    teacher_layer: str | Sequence[str]
    student_layer: str | Sequence[str] = AUTO
    weight: float | Schedule = 1.0
    name: str = "layer_loss"

    # What a subclass sets, as plain class attributes.
    _projects = False  # whether the student's width is brought to the teacher's
    _reads = ""  # what of the layers is read, behind a colon; "" for their outputs

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        for setting in ("teacher_layer", "student_layer"):
            self._check_layers(setting)
        if (self.teacher_layer == AUTO) != (self.student_layer == AUTO):
            raise SettingError(
                '`teacher_layer` and `student_layer` must both name layers, or both be "auto".',
                received=repr(self),
                hint="Name the other layer, too.",
            )
        if len(_names(self.teacher_layer)) != len(_names(self.student_layer)):
            raise SettingError(
                "`teacher_layer` and `student_layer` must name as many layers each.",
                received=repr(self),
                hint="The first is a pair with the first, and so on.",
            )

    def _check_layers(self, setting: str) -> None:
        value = getattr(self, setting)
        hint = "Pass the layer's name: `layer.name`."
        if not isinstance(value, (list, tuple)):
            self._check_text(setting, hint=hint)
            return
        if not value or not all(isinstance(each, str) and each for each in value):
            raise SettingError(
                f"`{setting}` must be a non-empty str, or several of them.",
                received=repr(value),
                hint=hint,
            )
        if AUTO in value:
            raise SettingError(
                f'`{setting}` must not hold "auto" among names.',
                received=repr(value),
                hint='Pass "auto" alone, for all layers.',
            )
        object.__setattr__(self, setting, tuple(value))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """What is read of each model, pair by pair; none while the layers are "auto"."""
        return tuple(zip(self.teacher_layers, self.student_layers, strict=True))

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The teacher's layers, in the order of the pairs."""
        return tuple(f"{name}{self._reads}" for name in _names(self.teacher_layer))

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The student's layers, in the order of the pairs."""
        return tuple(f"{name}{self._reads}" for name in _names(self.student_layer))

    @property
    def is_auto(self) -> bool:
        """Whether the layers are still to be found by `matched`."""
        return self.teacher_layer == AUTO

    def matched(self, teacher: Sequence[LayerOutput], student: Sequence[LayerOutput]) -> Self:
        """The same loss with layers named in the place of "auto".

        Args:
            teacher: The teacher's layers before its logits, in their order.
            student: The student's.

        Raises:
            ModelError: No two layers match.
        """
        theirs, ours = self._by_resolution(teacher), self._by_resolution(student)
        common = self._chosen([key for key in ours if key in theirs])
        if not common:
            raise ModelError(
                f"`teacher` and `student` must have layers of the same resolution, for "
                f'{type(self).__name__}("auto").',
                received=f"teacher {_listed(theirs)}, student {_listed(ours)}",
                hint="Name the layers.",
            )
        return dataclasses.replace(
            self,
            teacher_layer=tuple(theirs[key] for key in common),
            student_layer=tuple(ours[key] for key in common),
        )

    def _by_resolution(self, layers: Sequence[LayerOutput]) -> dict[Shape, str]:
        """The last layer that this loss can read of each resolution, the last one last."""
        found: dict[Shape, str] = {}
        for layer in layers:
            if self._could_read(layer):
                found.pop(layer.shape[:-1], None)
                found[layer.shape[:-1]] = layer.name
        return found

    def _could_read(self, layer: LayerOutput) -> bool:
        """Whether "auto" may choose this layer."""
        return bool(layer.shape) and layer.shape[-1] is not None

    def _chosen(self, resolutions: list[Shape]) -> list[Shape]:
        """Which of the resolutions that both models have "auto" takes."""
        return resolutions

    def build(self, teacher: Shapes, student: Shapes) -> Any:
        """Makes projections where the widths differ and must not.

        Returns:
            `Projections`, or None where none is needed.

        Raises:
            ModelError: The layers of a pair do not fit each other.
        """
        if self.is_auto:
            raise ModelError(
                '`teacher_layer` and `student_layer` must be matched before "auto" is built.',
                received=repr(self),
                hint="A Distiller does it. Elsewhere, name the layers.",
            )
        widths: dict[int, tuple[Shape, int]] = {}
        for number, (theirs, ours) in enumerate(self.pairs):
            target, source = fitted(teacher.features[theirs], student.features[ours])
            received = (
                f"teacher layer {theirs!r} {shown(target)}, student layer {ours!r} {shown(source)}"
            )
            self._require_fit(target, source, received)
            if self._projects and target[-1] is not None and target[-1] != source[-1]:
                widths[number] = source, target[-1]
        return Projections(widths, name=f"{self.name}_projection") if widths else None

    @abc.abstractmethod
    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        """Refuses a pair of layers whose outputs this loss cannot compare.

        Raises:
            ModelError: They are such.
        """

    @abc.abstractmethod
    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        """The loss of each example for one pair of layers, `[batch]`.

        Args:
            teacher: What is read of the teacher's layer.
            student: What is read of the student's layer, projected.
            mask: As in `Outputs`, of the student's layer.
        """

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        values = []
        for number, (theirs, ours) in enumerate(self.pairs):
            target, source = teacher.features[theirs], student.features[ours]
            target, source = tf.convert_to_tensor(target), tf.convert_to_tensor(source)
            target, source = (
                _reshaped(values, shape)
                for values, shape in zip(
                    (target, source),
                    fitted(tuple(target.shape[1:]), tuple(source.shape[1:])),
                    strict=True,
                )
            )
            if projection is not None:
                source = projection.project(number, source)
            values.append(self._value(target, source, student.masks.get(ours, ())))
        return tf.add_n(values) / len(values)


class Projections(tf_keras.layers.Layer):
    """Linear maps of the last axis without bias, one for each pair that needs one.

    Args:
        widths: The pair's number to the shape of the student's layer and the width to map to.
        name: Name of the layer.
    """

    def __init__(self, widths: Mapping[int, tuple[Shape, int]], name: str) -> None:
        # float32 whatever the global policy: the losses are computed in float32.
        super().__init__(name=name, dtype="float32")
        self._maps = {}
        for number, (shape, width) in widths.items():
            dense = tf_keras.layers.Dense(
                width, use_bias=False, dtype="float32", name=f"{name}_{number}"
            )
            dense.build((None, *shape))
            self._maps[str(number)] = dense  # Keras tracks keys of text only
        self.built = True

    def project(self, number: int, features: Any) -> Any:
        """The features of a pair's student layer, at the teacher's width."""
        dense = self._maps.get(str(number))
        return features if dense is None else dense(features)


def reads_weights(layer: str) -> bool:
    """Whether what a loss reads of a layer is its weights, the same for each batch."""
    return layer.endswith(WEIGHTS)


def require_width(teacher: Shape, student: Shape, received: str) -> None:
    """Refuses layers without a known last axis.

    Raises:
        ModelError: One has none.
    """
    if not teacher or not student or teacher[-1] is None or student[-1] is None:
        raise ModelError(
            "`teacher_layer` and `student_layer` must have a last axis of known size.",
            received=received,
            hint="Name layers that put out [batch, ..., width].",
        )


def require_places(teacher: Shape, student: Shape, received: str) -> None:
    """Refuses layers of which one has other axes, or another number of steps.

    Two axes or more between batch and width are those of space, whose sizes may differ.

    Raises:
        ModelError: One has.
    """
    same_rank = len(teacher) == len(student)
    steps = [*zip(teacher[:-1], student[:-1], strict=False)]
    if not same_rank or (len(steps) == 1 and None not in steps[0] and steps[0][0] != steps[0][1]):
        raise ModelError(
            "`teacher_layer` and `student_layer` must have the same axes, and as many steps each.",
            received=received,
            hint="Name two layers of the same kind: images may differ in their size, sequences "
            "not in their length.",
        )


def require_same_sizes(teacher: Shape, student: Shape, received: str) -> None:
    """Refuses layers that differ in a known size but the last.

    Raises:
        ModelError: They do.
    """
    sizes = [*zip(teacher[:-1], student[:-1], strict=False)]
    if len(teacher) != len(student) or any(
        None not in each and each[0] != each[1] for each in sizes
    ):
        raise ModelError(
            "`teacher_layer` and `student_layer` must agree in every axis but the last.",
            received=received,
            hint="Name two layers with as many steps.",
        )


def fitted(teacher: Shape, student: Shape) -> tuple[Shape, Shape]:
    """Both without the axes of size 1 between batch and width that the other does not have.

    A quantized student has a convolution over time as one over an image of width one.
    """
    while len(teacher) != len(student):
        longer = max(teacher, student, key=len)
        ones = [axis for axis, size in enumerate(longer[:-1]) if size == 1]
        if not ones:
            break
        shorter = (*longer[: ones[-1]], *longer[ones[-1] + 1 :])
        teacher, student = (shorter, student) if longer is teacher else (teacher, shorter)
    return teacher, student


def _reshaped(values: Any, shape: Shape) -> Any:
    if len(shape) == values.shape.rank - 1:
        return values
    ones = [axis for axis in range(1, values.shape.rank - 1) if values.shape[axis] == 1]
    return tf.squeeze(values, ones[len(ones) - (values.shape.rank - 1 - len(shape)) :])


def _names(layers: str | Sequence[str]) -> tuple[str, ...]:
    if layers == AUTO:
        return ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _listed(layers: Mapping[Shape, str]) -> str:
    return ", ".join(f"{name} {shown(key)}" for key, name in layers.items()) or "none"

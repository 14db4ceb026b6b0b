"""What one step teaches: the terms of the total loss, for each example of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tfdistill._keras import tf
from tfdistill.errors import DataError, SettingError
from tfdistill.kinds import are_rows
from tfdistill.labels import LabelLoss, Labels
from tfdistill.losses import DistillationLoss, Shapes
from tfdistill.losses.base import Outputs
from tfdistill.losses.shared import mean_over_steps
from tfdistill.named import Kind
from tfdistill.outputs import predicted_classes
from tfdistill.replicas import gathered, own_rows
from tfdistill.schedules import Schedule, is_zero

__all__ = ["Step", "Terms", "refuse_other_answers", "refuse_unknown_labels", "unique"]


class Step(NamedTuple):
    """What one forward pass of both models gives, per example."""

    total: tf.Tensor  # [batch], weighted
    terms: dict[str, tf.Tensor]  # name -> [batch], before their weights
    predictions: tf.Tensor  # [batch, ..., classes], the student's own output
    agreement: Any  # [batch], share of steps, or labels, where both predict the same; or None
    example_weights: tf.Tensor  # [batch]


@dataclass(frozen=True)
class Terms:
    """The losses of a Distiller with their weights.

    Args:
        losses: Distillation losses; their schedules know their steps.
        label_loss_weight: Weight of the label loss beside them.
        projections: Name of a loss to what is trained beside the student for it.
        output: Name of the output of the student, where it has several.
        kind: What it answers. "labels" are classes where their labels are class numbers.

    Raises:
        SettingError: A schedule does not know its steps.
    """

    losses: Sequence[DistillationLoss]
    label_loss_weight: float | Schedule
    projections: Mapping[str, Any]
    output: str = ""
    kind: Kind = "classes"

    def __post_init__(self) -> None:
        """Tries the schedules."""
        self._at(0)

    @property
    def has_agreement(self) -> bool:
        """Whether its answers and a teacher's can be the same: numbers are near at best."""
        return self.kind != "numbers"

    @property
    def needs_label_loss(self) -> bool:
        """Whether there is a label loss at any step."""
        return not is_zero(self.label_loss_weight)

    def _at(self, step: Any) -> tuple[list[DistillationLoss], Any]:
        weight = self.label_loss_weight
        now = weight.at(step) if isinstance(weight, Schedule) else weight
        return [loss.at(step) for loss in self.losses], now

    def __call__(
        self,
        teacher: Outputs | None,
        student: Outputs,
        predictions: tf.Tensor,
        labels: Labels | None,
        sample_weight: Any,
        *,
        label_loss: LabelLoss | None,
        step: Any,
        replicas: int,
    ) -> Step:
        """The terms of one batch.

        Args:
            teacher: What the teacher says about it; `None` where nothing, and there are no losses.
            student: What the student says about it.
            predictions: The student's own output, `[batch, ..., classes]`.
            labels: Its labels, where it has any.
            sample_weight: Weights of its examples, or `None`.
            label_loss: Compiled loss of the labels, or `None`.
            step: Steps that the optimizer has taken.
            replicas: Of the strategy.

        Raises:
            DataError: Something needs labels, and there are none.
        """
        batch = tf.shape(student.logits)[0]
        losses, label_loss_weight = self._at(step)
        terms: dict[str, tf.Tensor] = {}
        total = tf.zeros([batch])
        if labels is None and self.needs_label_loss:
            raise DataError(  # in Python, while the step is traced: nothing has been trained yet
                f"`data` must have labels{self._for_output} while `label_loss_weight` is > 0.",
                received="inputs without labels",
                hint="Give labels, or make the Distiller with label_loss_weight=0.",
            )
        if labels is not None:
            labels = labels.where_counted(student.mask)
        if label_loss is not None and labels is not None:
            terms["label_loss"] = labels.loss(label_loss, predictions, student.mask)
            total += label_loss_weight * terms["label_loss"]
        for loss in losses:
            terms[loss.name] = self._term(loss, teacher, student, labels, replicas)
            total += loss.weight * terms[loss.name]
        if sample_weight is None:
            example_weights = tf.ones([batch])
        else:
            example_weights = tf.reshape(tf.cast(sample_weight, tf.float32), [batch])
        return Step(
            total=total * example_weights,
            terms=terms,
            predictions=predictions,
            agreement=self._agreement(teacher, student, labels),
            example_weights=example_weights,
        )

    @property
    def _for_output(self) -> str:
        return f" for the output {self.output!r}" if self.output else ""

    def _term(
        self,
        loss: DistillationLoss,
        teacher: Any,
        student: Outputs,
        labels: Labels | None,
        replicas: int,
    ) -> tf.Tensor:
        """The values of one loss, `[batch]`, before its weight."""
        projection = self.projections.get(loss.name)
        given = {}
        if loss.needs_labels:
            if labels is None:  # in Python, as above
                raise DataError(
                    f"`data` must have labels{self._for_output} for the loss {loss.name!r}.",
                    received="inputs without labels",
                    hint="Give labels, or leave this loss out.",
                )
            given["labels"] = labels.values
        if loss.across_batch and replicas > 1:
            examples = tf.shape(student.logits)[0]
            said = teacher.only(loss.teacher_layers), student.only(loss.student_layers)
            (teacher, student), given = gathered((said, given))
            values = own_rows(loss.call(teacher, student, projection, **given), examples)
        else:
            values = loss.call(teacher, student, projection, **given)
        return labels.only_known(values) if labels is not None and loss.needs_labels else values

    def _agreement(
        self, teacher: Outputs | None, student: Outputs, labels: Labels | None
    ) -> tf.Tensor | None:
        if not self.has_agreement or teacher is None or isinstance(teacher.logits, tuple):
            return None  # it says nothing, or nothing that could be the same
        if self.kind == "labels" and (labels is None or are_rows(labels.values, student.logits)):
            same = tf.equal(student.logits > 0, teacher.logits > 0)
            shares = tf.reduce_mean(tf.cast(same, tf.float32), axis=-1)
        else:
            same = tf.equal(predicted_classes(student.logits), predicted_classes(teacher.logits))
            shares = tf.cast(same, tf.float32)
        return mean_over_steps(shares, student.mask)


def refuse_unknown_labels(losses: Sequence[DistillationLoss]) -> None:
    """Refuses losses that cannot be told which rows have labels.

    Raises:
        SettingError: One compares the labels of a batch's examples with each other.
    """
    for loss in losses:
        if loss.needs_labels and loss.across_batch:
            raise SettingError(
                "`unlabelled` must be None for a loss that compares the labels of examples.",
                received=f"the loss {loss.name!r}",
                hint="Leave this loss out, or the rows without labels.",
            )


def refuse_other_answers(
    said: Outputs,
    expected: Shapes,
    student: tuple[int | None, ...],
    losses: Sequence[DistillationLoss],
) -> None:
    """Refuses stored answers of a teacher that do not fit what is taught.

    Args:
        said: What the teacher said about a batch, as it was stored.
        expected: Shapes of the teacher's answers.
        student: Shape of the student's logits.
        losses: Which read the answers.

    Raises:
        DataError: They are of other classes, or a layer is missing.
    """
    logits = said.logits.shape[1:]
    if logits != expected.logits:  # in Python, while the step is traced
        raise DataError(
            "`data` must hold stored targets of the student's classes.",
            received=f"logits {tuple(logits)}, student {student}",
            hint="Store the targets of this teacher: td.store_targets(teacher, ...).",
        )
    needed = unique([layer for loss in losses for layer in loss.teacher_layers])
    missing = [layer for layer in needed if layer not in said.features]
    if missing:
        raise DataError(
            "`data` must hold stored features of every layer that a loss reads.",
            received=f"none of {', '.join(missing)}",
            hint=f"Pass layers={[*needed]} to td.store_targets.",
        )


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in their order."""
    return tuple(dict.fromkeys(names))

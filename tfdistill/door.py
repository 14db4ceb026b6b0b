"""The door of a pipeline: models are taken over, and what no stage can do is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfdistill.errors import ModelError, SettingError
from tfdistill.export.exported import check_before_training
from tfdistill.fitting import metrics_of
from tfdistill.heads import Head
from tfdistill.kinds import kind_of, refuse_losses_of_others
from tfdistill.labels import label_loss_for
from tfdistill.litert.runtime import signature_names
from tfdistill.losses import Shapes
from tfdistill.losses.base import shown
from tfdistill.named import Kind, by_name, one_or_all
from tfdistill.plans import planned
from tfdistill.pruning import plan_pruning
from tfdistill.quantization import quantize
from tfdistill.schedules import is_zero
from tfdistill.stages import distiller_of
from tfdistill.students import PreparedStudent, prepare_student
from tfdistill.tasks import answered, match_all
from tfdistill.teachers import Nobody, Teacher, as_teacher, teacher_for

if TYPE_CHECKING:
    from tfdistill.pipeline import Pipeline

__all__ = ["Door"]

_METRICS = {"numbers": "mean_absolute_error"}


class Door:
    """Checks everything that needs the models but no data.

    Each stage is tried on the untrained student: what it would refuse is refused here.
    """

    def __init__(self, pipeline: Pipeline, student: Any, teacher: Any) -> None:
        self.prepared: PreparedStudent = prepare_student(student)
        model = self.prepared.model
        names, asked = self.prepared.outputs, pipeline.distillation
        self.heads = self.prepared.heads()
        _require_classes(self.heads)
        plans = planned(asked.losses, asked.label_loss_weight, asked.unlabelled, names)
        self.teacher = teacher_for(asked.every_loss, teacher)
        if isinstance(self.teacher, Nobody) and asked.store_targets is True:
            raise SettingError(
                '`store_targets` must be False or "auto" without a teacher.',
                received="store_targets=True, teacher=None",
            )
        self.teaching: Teacher = as_teacher(self.teacher, model)
        if self.teaching.shapes.names and len(names) == 1:
            raise ModelError(
                "`teacher` must have one output.",
                received=f"{len(self.teaching.shapes.names)} outputs",
                hint="Make a model of the output to distil: keras.Model(model.input, output).",
            )
        if self.follows and asked.store_targets is True:
            raise SettingError(
                '`store_targets` must be False or "auto" for a teacher that follows the student.',
                received="store_targets=True and a td.teachers.MovingAverage",
                hint="It says something else after each step, so it is asked at each.",
            )
        plans, matches = match_all(plans, model, self.teacher)
        self.plans = plans
        self._kinds: dict[str, Kind] = {
            name: kind_of(head.activation, head.classes, plans[name].losses)
            for name, head in self.heads.items()
        }
        self._check_numbers(asked.label_smoothing)
        marks = {name: plan.unlabelled for name, plan in plans.items()}
        unmarked = all(mark is None for mark in marks.values())
        self.distillation = replace(  # with all layers named
            asked,
            losses=one_or_all({name: plan.losses for name, plan in plans.items()}),
            label_loss_weight=one_or_all({n: plan.label_loss_weight for n, plan in plans.items()}),
            unlabelled=None if unmarked else one_or_all(marks),
        )
        distiller = distiller_of(self.distillation, model, self.teacher, steps=1)
        self.notes = (*distiller.notes, *matches)
        logits = one_or_all({name: head.shape for name, head in self.heads.items()})
        self._answered = answered(plans, Shapes(logits, {}), self.teaching.shapes)
        if pipeline.pruning is not None:
            plan_pruning(model, pipeline.pruning)
        if pipeline.quantization is not None:
            quantized = quantize(model, pipeline.quantization, sparse=False).model
            if self.follows or any(loss.student_layers for loss in self.distillation.every_loss):
                # Its layers may have other outputs, or be parts of what they were.
                distiller_of(self.distillation, quantized, self.teacher, steps=1)
        trained_for_int8 = pipeline.quantization is not None
        check_before_training(
            model,
            pipeline.export,
            quantization_aware=trained_for_int8,
            to_keras3=self.prepared.hand_back,
            kinds=by_name(self.kinds),
        )
        inputs = model.inputs
        self.input_shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else None

    @property
    def follows(self) -> bool:
        """Whether the teacher, or a part of it, follows the student, step by step."""
        return bool(self.teaching.followers)

    @property
    def classes(self) -> Any:
        """Number of classes, of labels or of numbers; of several outputs by name."""
        found = {
            name: _units(head) if self._kinds[name] == "numbers" else max(2, _units(head))
            for name, head in self.heads.items()
        }
        return one_or_all(found)

    @property
    def kinds(self) -> Any:
        """What the output answers; of several by name. For "labels" labels must be in rows."""
        return one_or_all(self._kinds)

    def check_losses_of(self, kinds: Mapping[str, Kind]) -> None:
        """Refuses losses that take an output for what it is not.

        Args:
            kinds: What outputs answer, as in `RunData`.

        Raises:
            SettingError: There is such a loss.
        """
        for name, plan in self.plans.items():
            output = name if len(self.plans) > 1 else ""
            refuse_losses_of_others(plan.losses, kinds.get(output, "classes"), output)

    def _check_numbers(self, smoothing: float) -> None:
        """Refuses what makes no sense where all labels are numbers."""
        if smoothing and all(kind == "numbers" for kind in self._kinds.values()):
            raise SettingError(
                "`label_smoothing` must be 0 where labels are numbers.",
                received=smoothing,
                hint="It spreads a label over the classes. Leave it out.",
            )

    @property
    def require_labels(self) -> Any:
        """Whether the training data must have labels; of several outputs the names of those."""
        weights = {name: plan.label_loss_weight for name, plan in self.plans.items()}
        names = [name for name, weight in weights.items() if not is_zero(weight)]
        return names if len(weights) > 1 else bool(names)

    def label_loss(self, labels: Any) -> Any:
        """The loss for labels of this kind, as in `DataSummary.labels`; `None` without labels.

        Of several outputs by name, of those that are taught at all.
        """
        found = {}
        for (name, head), kind in zip(self.heads.items(), by_name(labels).values(), strict=True):
            plan = self.plans[name]
            if kind != "none" and (plan.losses or not is_zero(plan.label_loss_weight)):
                units = _units(head)
                found[name] = label_loss_for(
                    kind,
                    activation=head.activation,
                    units=units,
                    smoothing=self.distillation.label_smoothing,
                )
        if not found:
            return None
        return found if len(self.heads) > 1 else one_or_all(found)

    def accuracy(self, label_loss: Any) -> Any:
        """New metrics of what is right, or how wrong; of several outputs by name, as the losses."""
        metrics = {
            name: metrics_of(
                [_METRICS.get(self._kinds[name], "accuracy")], head, self.plans[name].losses
            )
            for name, head in self.heads.items()
        }
        if len(metrics) == 1:
            return one_or_all(metrics)
        return {name: metric for name, metric in metrics.items() if name in (label_loss or {})}

    @property
    def identity(self) -> list[Any]:
        """What the outputs are, for a fingerprint; of one output nothing: it is the last layer."""
        if len(self.heads) == 1:
            return []
        model = self.prepared.model
        found = {name: model.output[name]._keras_history for name in self.heads}
        return [[[n, model.layers.index(h.layer), h.tensor_index] for n, h in found.items()]]

    def logits_of_teacher(self, inputs: Any) -> Any:
        """What the teacher says about a batch; of several outputs by name, where it has them."""
        said = self.teaching(inputs)
        if len(self.heads) == 1:
            return said.logits
        return {name: said.of(name).logits for name in self.heads if name in self._answered}


def _units(head: Head) -> int:
    return int(head.classes or 0)


def _require_classes(heads: Mapping[str, Head]) -> None:
    """Refuses several outputs of which one is none of classes, or that files cannot tell apart."""
    if len(heads) == 1:
        return
    if len({signature_names([name])[0] for name in heads if name}) < len(heads):
        raise ModelError(
            "`student` must have outputs whose names differ in their letters and digits.",
            received=", ".join(map(repr, heads)),
            hint="Names in a .tflite file have no other characters.",
        )
    for name, head in heads.items():
        if len(head.shape) != 1:
            raise ModelError(
                "`student` must have outputs [batch, classes] alone, where it has several.",
                received=f"{name!r} {shown(head.shape)}",
                hint="Labels, accuracy and certificates are of classes. Train such a student with "
                "td.Distiller; or leave the output out.",
            )

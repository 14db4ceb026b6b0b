"""What each output of a student is taught: its own losses, labels, metrics and logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.fitting import (
    build_projections,
    copied,
    label_loss_of,
    metrics_of,
    require_same_classes,
)
from tfdistill.heads import Head
from tfdistill.kinds import check_unlabelled_of, kind_of
from tfdistill.labels import LabelLoss, Labels, known_labels
from tfdistill.losses import Shapes
from tfdistill.losses.base import OWN_LOGS, Outputs, Taught, nearest
from tfdistill.matching import match_layers
from tfdistill.named import one_or_all
from tfdistill.outputs import ModelView
from tfdistill.plans import Plan, by_output
from tfdistill.schedules import is_zero
from tfdistill.terms import Step, Terms, refuse_other_answers

__all__ = ["Steps", "Tasks", "answered", "match_all"]


_SILENCE = Outputs((), {})  # what is said of an output that no teacher has


class Steps(NamedTuple):
    """What one forward pass of both models gives, of all outputs.

    Attributes:
        total: `[batch]`, weighted.
        of: An output's name to its own step.
        regularization: One number, of the weights as they were in the forward pass.
    """

    total: tf.Tensor
    of: Mapping[str, Step]
    regularization: Any = 0.0


@dataclass
class _Task:
    """One output of the student, with all that it is taught."""

    head: Head
    plan: Plan
    terms: Terms
    has_teacher: bool  # which then says something about it
    prefix: str  # of its logs
    label_loss: LabelLoss | None = None
    is_measured: bool = False  # by metrics


class Tasks:
    """The outputs of a student, with all that they are taught.

    Args:
        plans: What each is to be taught, with all layers named.
        student: The student.
        teacher: Shapes of what the teacher says.

    Attributes:
        plans: As given.
        projections: What is trained beside the student, by the log of the loss that it is for.
        trackers: Means of the logs.

    Raises:
        ModelError: The teacher has no output, or one of other classes, for one that it teaches.
        SettingError: Two logs have the same name, a schedule does not know its steps, or what
            stands for missing labels may be a label.
    """

    def __init__(self, plans: Mapping[str, Plan], student: ModelView, teacher: Shapes) -> None:
        self.trackers: dict[str, Any] = {}
        self.projections: dict[str, Any] = {}
        self.plans = plans
        self._tasks: dict[str, _Task] = {}
        answering = answered(plans, student.shapes, teacher)
        for name, plan in plans.items():
            prefix = f"{name}_" if len(plans) > 1 else ""
            ours = student.shapes.of(name)
            theirs = teacher.of(name) if name in answering else ours
            require_same_classes(theirs, ours)
            built = build_projections(plan.losses, theirs, ours)
            head = student.heads[name]
            kind = kind_of(head.activation, head.classes, plan.losses)
            check_unlabelled_of(kind, plan.unlabelled, prefix and name)
            self.projections |= {f"{prefix}{loss}": layer for loss, layer in built.items()}
            self._tasks[name] = _Task(
                head=head,
                plan=plan,
                terms=Terms(plan.losses, plan.label_loss_weight, built, prefix and name, kind),
                has_teacher=name in answering,
                prefix=prefix,
            )
        self._expected = teacher
        counts = Counter(self._logs())
        for log, count in counts.items():
            if count > 1:
                raise SettingError(
                    "`losses` must have names that differ in the logs, with those of the outputs "
                    "before them.",
                    received=f"{log!r} {count} times",
                    hint="Pass name=... to one of them.",
                )

    def __call__(
        self,
        teacher: Outputs,
        student: Outputs,
        predictions: Any,
        labels: Mapping[str, Labels],
        sample_weight: Mapping[str, Any],
        *,
        step: Any,
        replicas: int,
    ) -> Steps:
        """The terms of one batch.

        Args:
            teacher: What the teacher says about it.
            student: What the student says about it.
            predictions: The student's own outputs, as `ModelView` gives them.
            labels: Its labels, by output; of some outputs there may be none.
            sample_weight: Weights of its examples, by output; or `None`.
            step: Steps that the optimizer has taken.
            replicas: Of the strategy.

        Raises:
            DataError: Something needs labels, and there are none.
        """
        steps = {
            name: task.terms(
                teacher.of(name) if task.has_teacher else _SILENCE,
                student.of(name),
                predictions if len(self._tasks) == 1 else predictions[name],
                labels.get(name),
                sample_weight[name],
                label_loss=task.label_loss,
                step=step,
                replicas=replicas,
            )
            for name, task in self._tasks.items()
        }
        return Steps(tf.add_n([each.total for each in steps.values()]), steps)

    def compile(self, loss: Any, **metrics: Any) -> dict[str, Any]:
        """Takes what `compile` was given.

        Args:
            loss: The label loss: for each output, by name or in their order; or one for all that
                labels teach.
            **metrics: Settings of Keras' `compile`: for each output, or for all of them.

        Returns:
            The metrics, as tf_keras' `compile` takes them.

        Raises:
            SettingError: A loss is missing or does not fit what the student returns; or something
                is of an output that there is not.
        """
        names, several = [*self._tasks], len(self._tasks) > 1
        losses = by_output(loss, names, "loss")
        is_one_for_all = not isinstance(loss, (Mapping, list, tuple))
        for name, task in self._tasks.items():
            task.is_measured = False
            given, weight = losses[name], task.plan.label_loss_weight
            if several and is_one_for_all and is_zero(weight):
                continue
            if given is None and loss is not None and not is_zero(weight):
                raise SettingError(
                    "`loss` must be given for each output whose `label_loss_weight` is > 0.",
                    received=f"none for {name!r}, label_loss_weight={weight}",
                    hint="Give it one; or leave the output out of label_loss_weight={...}.",
                )
            task.label_loss = label_loss_of(given, task.head, weight=weight) or task.label_loss
        self.trackers = {log: tf_keras.metrics.Mean(name=log) for log in self._logs()}
        return {kind: self._metrics_of(kind, each) for kind, each in metrics.items()}

    def known_labels(self, labels: Any, *, training: bool) -> dict[str, Labels]:
        """The labels of a batch by output, of which some may have none.

        Args:
            labels: As the data have them: for each output, by name or in their order.
            training: Whether these rows are trained on, see `tfdistill.labels.known_labels`.

        Raises:
            DataError: They are not of the outputs, or cannot be told from those that are missing.
        """
        if labels is None:
            return {}
        given = self._labels(labels)
        return {
            name: known_labels(
                given[name], task.plan.unlabelled, task.head.shape, training=training
            )
            for name, task in self._tasks.items()
            if given[name] is not None
        }

    def weights(self, sample_weight: Any) -> dict[str, Any]:
        """The weights of a batch's examples, by output.

        Args:
            sample_weight: As the data have them: `[batch]`, or such ones for each output; or
                `None`.

        Raises:
            DataError: They are not of the outputs.
        """
        given = self._by_output(sample_weight, "sample_weight")
        return dict.fromkeys(self._tasks, sample_weight) if given is None else given

    def stored(self, given: Taught) -> Outputs:
        """What the teacher said about a batch, as it was stored with it.

        Raises:
            DataError: It is of other outputs or classes, or a layer is missing.
        """
        said, expected = given.teacher, self._expected
        if {*said.names} != {*expected.names}:  # in Python, while the step is traced
            raise DataError(
                "`data` must hold stored targets of the teacher's outputs.",
                received=f"{', '.join(said.names) or 'one output'}, teacher "
                f"{', '.join(expected.names) or 'one output'}",
                hint="Store the targets of this teacher: td.store_targets(teacher, ...).",
            )
        for name, task in self._tasks.items():
            if task.has_teacher:
                refuse_other_answers(
                    said.of(name), expected.of(name), task.head.shape, task.plan.losses
                )
        return said

    def log(self, steps: Steps) -> dict[str, tf.Tensor]:
        """Updates the logs, and gives those that there are."""
        values = {OWN_LOGS[0]: steps.total + steps.regularization}
        for name, step in steps.of.items():
            prefix = self._tasks[name].prefix
            values |= {
                f"{prefix}{term}": each * step.example_weights for term, each in step.terms.items()
            }
            if step.agreement is not None:
                values[f"{prefix}{OWN_LOGS[2]}"] = step.agreement
        for log, each in values.items():
            self.trackers[log].update_state(each)
        return {log: mean.result() for log, mean in self.trackers.items() if log in values}

    def measured(
        self, steps: Steps, labels: Mapping[str, Labels], sample_weight: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """What Keras' metrics are updated with: labels, predictions and sample weights.

        Raises:
            DataError: An output has metrics and no labels.
        """
        for name, task in self._tasks.items():
            if task.is_measured and name not in labels:
                raise DataError(  # in Python, while the step is traced
                    f"`data` must have labels for the output {name!r}, which has metrics.",
                    received=f"labels for {', '.join(labels)}",
                    hint="Give labels; or metrics by name, for the outputs that have labels.",
                )
        predictions = {
            name: labels[name].masked(step.predictions) if name in labels else step.predictions
            for name, step in steps.of.items()
        }
        known = {name: labels[name].values if name in labels else None for name in self._tasks}
        return one_or_all(known), one_or_all(predictions), one_or_all(sample_weight)

    def shapes_measured(self, labels: Any) -> tuple[Any, Any]:
        """Shapes of what Keras' metrics are updated with: predictions and labels.

        Args:
            labels: Shapes of the labels, as the data have them.

        Raises:
            DataError: They are not of the outputs.
        """
        given = self._labels(labels)
        predictions = {n: tf.TensorSpec([None, *t.head.shape]) for n, t in self._tasks.items()}
        return one_or_all(predictions), one_or_all(given)

    def _labels(self, labels: Any) -> dict[str, Any]:
        given = self._by_output(labels, "labels")
        if given is None:
            raise DataError(  # in Python, while the step is traced or before
                "`data` must have labels by output, of which the student has several.",
                received=f"one tensor for {', '.join(self._tasks)}",
                hint="Give (inputs, {name: labels, ...}), or a tuple of them in that order.",
            )
        return given

    def _by_output(self, given: Any, what: str) -> dict[str, Any] | None:
        """What data have for each output; `None` where they have one for several."""
        names = [*self._tasks]
        if isinstance(given, Mapping) or (len(names) > 1 and isinstance(given, (list, tuple))):
            return by_output(given, names, what, error=DataError)
        return {names[0]: given} if len(names) == 1 else None

    def _logs(self) -> list[str]:
        """Names of all logs, in their order."""
        total, of_labels, agreement = OWN_LOGS
        logs = [total]
        for task in self._tasks.values():
            own = [of_labels, *(loss.name for loss in task.plan.losses)]
            own += [agreement] if task.has_teacher and task.terms.has_agreement else []
            logs += [f"{task.prefix}{log}" for log in own]
        return logs

    def _metrics_of(self, kind: str, metrics: Any) -> Any:
        """Metrics of one kind, as tf_keras' `compile` takes them."""
        names, several = [*self._tasks], len(self._tasks) > 1
        parts = (Mapping, list, tuple)
        each_its_own = isinstance(metrics, Mapping) or (
            several
            and isinstance(metrics, (list, tuple))
            and any(isinstance(m, parts) for m in metrics)
        )
        given = (
            by_output(metrics, names, kind)
            if each_its_own
            # Of its own for each output: a metric counts.
            else {
                name: tf.nest.map_structure(copied, metrics) if several else metrics
                for name in names
            }
        )
        for name, each in given.items():
            wanted = any(metric is not None for metric in tf.nest.flatten(each))
            self._tasks[name].is_measured |= wanted
        tasks = self._tasks
        found = {n: metrics_of(m, tasks[n].head, tasks[n].plan.losses) for n, m in given.items()}
        return one_or_all(found)


def match_all(
    plans: Mapping[str, Plan], student: Any, teacher: Any
) -> tuple[dict[str, Plan], list[str]]:
    """Names the layers of losses that leave it to the library, see `tfdistill.matching`.

    Args:
        plans: By output.
        student: A functional model.
        teacher: As `Distiller` takes it.

    Returns:
        The plans, and sentences that say which layers these are.
    """
    named, notes = {}, []
    for name, plan in plans.items():
        losses, matches = match_layers(plan.losses, student, teacher)
        named[name] = replace(plan, losses=losses)
        notes += [f"{name}: {match}" if len(plans) > 1 else match for match in matches]
    return named, notes


def answered(plans: Mapping[str, Plan], student: Shapes, teacher: Shapes) -> set[str]:
    """Names of the student's outputs that the teacher has an answer for.

    Args:
        plans: What each is to be taught.
        student: Shapes of what the student says.
        teacher: Shapes of what the teacher says.

    Raises:
        ModelError: It has none for one that it is to teach.
    """
    taught = [n for n, plan in plans.items() if any(loss.needs_teacher for loss in plan.losses)]
    if not teacher.names:  # one output, whatever it is called
        if len(taught) > 1:
            raise ModelError(
                "`teacher` must have each output that `losses` name.",
                received=f"a teacher with one output for {', '.join(taught)}",
                hint="Give a teacher whose outputs have these names, such as a function that "
                "returns {name: logits, ...}.",
            )
        return {*taught} if len(plans) > 1 else {*plans}
    for name in taught:
        if name not in teacher.names:
            raise ModelError(
                "`teacher` must have each output that `losses` name.",
                received=f"none called {name!r}",
                hint=f"{nearest(name, teacher.names)} The keys name the outputs where they are a "
                "dictionary, else the layers that they come from.",
            )
    fitting = [
        name
        for name in plans
        if name in teacher.names
        and tf.TensorShape(teacher.of(name).logits).is_compatible_with(student.of(name).logits)
    ]
    return {*taught, *fitting}

"""`MutualDistiller`: a tf_keras model that trains students who teach each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfdistill import bridge
from tfdistill._keras import tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.fitting import (
    arguments_of,
    build_metrics,
    build_optimizer,
    build_projections,
    copied,
    dtype_policy,
    label_loss_of,
    label_shapes,
    metrics_of,
    named_results,
    own_errors,
    regularization_of,
    require_same_classes,
    taken_over,
)
from tfdistill.kinds import kind_of
from tfdistill.labels import LabelLoss, Labels
from tfdistill.losses import DistillationLoss, SoftTargets
from tfdistill.losses.base import OWN_LOGS, Outputs, Taught, check_losses
from tfdistill.matching import match_layers
from tfdistill.outputs import ModelView, probe_inputs, refuse_probabilities
from tfdistill.replicas import share_of_mean
from tfdistill.schedules import Schedule
from tfdistill.teachers import as_teacher
from tfdistill.terms import Step, Terms, unique

logger = logging.getLogger("tfdistill")

_PEER_AGREEMENT = "peer_agreement"


@dataclass
class _Member:
    """One of the students."""

    name: str
    view: ModelView
    original: Any  # the Keras 3 student as it was given, or None
    labelled: Terms
    lessons: Mapping[int, Terms]  # by the number of the student that teaches
    scorer: Any  # the same network once more, which holds the compiled metrics
    label_loss: LabelLoss | None = None
    trackers: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Untracked:
    """Holds what Keras must neither train nor save: it looks at attributes, not inside this."""

    members: Sequence[_Member]
    loss: Any = None  # the tracker of the total


class MutualDistiller(tf_keras.Model):
    """Trains several students at once, each taught by the others and, if wanted, by labels.

    There is no teacher that was trained before, and none is frozen. The training loss of an
    example for one of N students is

        label_loss_weight * label loss
        + the mean over the N - 1 others of the sum of weight * distillation loss

    where in a distillation loss the other one is the teacher, and gets no gradient from it (deep
    mutual learning: Zhang et al. 2018, https://arxiv.org/abs/1706.00384, equations 3 to 8, with
    KL at temperature 1). The paper updates one student after the other, each against what the
    others say by then; here all learn from the same forward pass, which costs one a student. The
    students' losses are added up and one optimizer takes them, as each depends on its own
    student's weights alone. Everything Keras' `compile` and `fit` take works.

    Args:
        students: Two or more, as for `Distiller`: of any architecture of either Keras, with the
            same inputs and classes. They differ in their weights at the start, at least.
        losses: Distillation losses, each with its own weight; a layer that one of them names is
            read from every student.
        label_loss_weight: Weight of the loss given to `compile`; without labels, 0, there is
            nothing but what the students already know.
        name: As in Keras.

    Attributes:
        names: What the students are called in the logs: `student_1`, `student_2` and so on.
        notes: Sentences on what was recognised or changed, such as a final softmax.

    Raises:
        ModelError: The students do not fit each other or the losses, or share weights.
        SettingError: There is one student only, a weight is negative, all are zero, or two losses
            share a name.

    Example:
        >>> distiller = td.MutualDistiller([small_student, large_student])
        >>> distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> distiller.fit(train, validation_data=validation, epochs=20)
        >>> distiller.students[0].save("student.keras")
    """

    def __init__(
        self,
        students: Sequence[Any],
        losses: Sequence[DistillationLoss] = (SoftTargets(temperature=1.0),),
        label_loss_weight: float | Schedule = 1.0,
        name: str = "mutual_distiller",
    ) -> None:
        if not isinstance(students, Sequence) or len(students) < 2:
            raise SettingError(
                "`students` must be a list of two students or more.",
                received=students,
                hint="One student learns from a teacher: td.Distiller(student, teacher, losses).",
            )
        losses, label_loss_weight = check_losses(losses, label_loss_weight)
        taken = [taken_over(student) for student in students]
        models = [model for model, _ in taken]
        super().__init__(name=name, dtype=dtype_policy(*models), autocast=False)
        pairs = {  # (who learns, who teaches) to the losses, with all layers named
            (place, other): match_layers(losses, model, peer)
            for place, model in enumerate(models)
            for other, peer in enumerate(models)
            if other != place
        }
        views = []
        for place, model in enumerate(models):
            read = [
                loss.student_layers if place == pair[0] else loss.teacher_layers
                for pair, (matched, _) in pairs.items()
                if place in pair
                for loss in matched
            ]
            layers = unique([layer for layers in read for layer in layers])
            views.append(ModelView(model, role="student", layers=layers))
        for place, (model, view) in enumerate(zip(models, views, strict=True)):
            _, said = view(probe_inputs(model, like=models[0]), training=False)
            refuse_probabilities(said.logits, role="student")
            for other in models[:place]:
                as_teacher(other, model)  # refuses one with other inputs
                _require_own_weights(model, other)
            require_same_classes(views[0].shapes, view.shapes)
        self.names = tuple(f"student_{place + 1}" for place in range(len(models)))
        self.losses_taught = losses
        self.label_loss_weight = label_loss_weight
        named = zip(self.names, views, strict=True)
        self.notes = tuple(f"{each}: {view.note}" for each, view in named if view.note) + tuple(
            f"{self.names[place]} from {self.names[other]}: {match}"
            for (place, other), (_, matches) in pairs.items()
            for match in matches
        )
        for note in self.notes:
            logger.info(note)
        projections: dict[str, Any] = {}
        members = []
        for place, (view, (_, original)) in enumerate(zip(views, taken, strict=True)):
            lessons = {}
            for other, peer in enumerate(views):
                if other != place:
                    matched, _ = pairs[place, other]
                    built = build_projections(matched, peer.shapes, view.shapes)
                    kind = kind_of(view.activation, view.classes, matched)
                    lessons[other] = Terms(matched, 0.0, built, kind=kind)
                    of = f"{self.names[place]}/{self.names[other]}"
                    projections |= {f"{of}/{loss}": layer for loss, layer in built.items()}
            network = models[place]
            members.append(
                _Member(
                    name=self.names[place],
                    view=view,
                    original=original,
                    labelled=Terms((), label_loss_weight, {}),
                    lessons=lessons,
                    scorer=tf_keras.Model(network.inputs, network.outputs),
                )
            )
        self._parts = _Untracked(members)
        self._students = models
        self._projections = projections
        self.built = True

    @property
    def students(self) -> tuple[Any, ...]:
        """The students with the weights trained so far, each in the Keras it was given in."""
        for model, member in zip(self._students, self._parts.members, strict=True):
            if member.original is not None:
                bridge.copy_weights_back(model, member.original)
        return tuple(
            model if member.original is None else member.original
            for model, member in zip(self._students, self._parts.members, strict=True)
        )

    def call(self, inputs: Any, training: bool | None = None) -> list[tf.Tensor]:
        """Each student's output."""
        return [student(inputs, training=training) for student in self._students]

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As Keras' `compile`; Keras 3 optimizers, losses and metrics are taken too.

        Args:
            optimizer: Name or object; one for all students.
            loss: The label loss; needed unless `label_loss_weight` is 0.
            metrics: As in Keras; each student has its own copies.
            **kwargs: Everything else that tf_keras' `compile` takes.

        Raises:
            SettingError: The loss is missing or does not fit what a student returns.
        """
        label_losses = [
            label_loss_of(loss, member.view, weight=self.label_loss_weight)
            for member in self._parts.members
        ]
        wanted = {"metrics": metrics, "weighted_metrics": kwargs.pop("weighted_metrics", [])}
        super().compile(optimizer=bridge.to_tf_keras_optimizer(optimizer), **kwargs)
        with self.distribute_strategy.scope():
            self._parts.loss = tf_keras.metrics.Mean(name="loss")
            for member, label_loss in zip(self._parts.members, label_losses, strict=True):
                member.label_loss = label_loss
                own = tf.nest.map_structure(
                    copied, metrics_of(wanted, member.view, self.losses_taught)
                )
                member.scorer.compile(**own)
                names = [*OWN_LOGS[:2], *(each.name for each in self.losses_taught)]
                if all(terms.has_agreement for terms in member.lessons.values()):
                    names.append(_PEER_AGREEMENT)
                member.trackers = {
                    log: tf_keras.metrics.Mean(name=f"{member.name}_{log}") for log in names
                }

    @property
    def metrics(self) -> list[Any]:
        """The loss of all, then for each student its losses' means and compiled metrics."""
        found = [self._parts.loss] if self._parts.loss is not None else []
        for member in self._parts.members:
            found += [*member.trackers.values(), *_compiled(member)]
        return found

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' `fit`; afterwards Keras 3 students hold the trained weights.

        Raises:
            SettingError: A callback is one of Keras 3; those of tf_keras have the same names.
            DataError: The data are a `PyDataset` of Keras 3.
        """
        given = arguments_of(super().fit, args, kwargs)
        if self._is_compiled:
            build_optimizer(self)
            self._build_metrics(given)
        try:
            with own_errors():
                return super().fit(*args, **kwargs)
        finally:
            _ = self.students

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' `evaluate`; changes nothing but metrics. Raises as `fit` does."""
        given = arguments_of(super().evaluate, args, kwargs)
        if self._is_compiled:
            self._build_metrics(given)
        with own_errors():
            return super().evaluate(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of all students on one batch; called by `fit`."""
        inputs, labels, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        replicas = self.distribute_strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            steps = self._steps(inputs, labels, sample_weight, training=True)
            regularization = self._regularization()  # of the weights as they are before the step
            shares = [share_of_mean(step.total, replicas) for step in steps]
            loss = tf.add_n([*shares, regularization / replicas])
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self._log(steps, regularization, labels, sample_weight)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of `evaluate`; changes nothing but metrics."""
        inputs, labels, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        steps = self._steps(inputs, labels, sample_weight, training=False)
        return self._log(steps, self._regularization(), labels, sample_weight)

    def save(self, filepath: Any, **kwargs: Any) -> None:
        """Refused: there are several students to save.

        Raises:
            SettingError: Always.
        """
        raise SettingError(
            "A MutualDistiller must be saved student by student.",
            received=f"save({str(filepath)!r})",
            hint="Call distiller.students[0].save(...), or save_weights for all of them at once.",
        )

    def _build_metrics(self, given: Mapping[str, Any]) -> None:
        labels = label_shapes(given)
        if labels is None:
            return
        with self.distribute_strategy.scope():
            for member in self._parts.members:
                (head,) = member.view.heads.values()
                predictions = tf.TensorSpec([None, *head.shape])
                build_metrics(member.scorer.compiled_metrics, predictions, labels)

    def _steps(self, inputs: Any, labels: Any, sample_weight: Any, *, training: bool) -> list[Step]:
        if isinstance(inputs, Taught):  # in Python, while the step is traced
            raise SettingError(
                "`data` must have no stored targets for a td.MutualDistiller.",
                received="inputs with what a teacher says about them",
                hint="Its students teach each other. Give the data as they were before storing.",
            )
        said = [member.view(inputs, training=training) for member in self._parts.members]
        frozen = [tf.nest.map_structure(tf.stop_gradient, outputs) for _, outputs in said]
        given = None if labels is None else Labels(labels)
        return [
            self._step(member, *said[place], frozen, given, sample_weight)
            for place, member in enumerate(self._parts.members)
        ]

    def _step(
        self,
        member: _Member,
        predictions: tf.Tensor,
        student: Outputs,
        frozen: Sequence[Outputs],
        labels: Labels | None,
        sample_weight: Any,
    ) -> Step:
        """What one student learns from a batch."""

        def learnt(terms: Terms, teacher: Outputs, label_loss: LabelLoss | None) -> Step:
            return terms(
                teacher,
                student,
                predictions,
                labels,
                sample_weight,
                label_loss=label_loss,
                step=self.optimizer.iterations,
                replicas=self.distribute_strategy.num_replicas_in_sync,
            )

        own = learnt(member.labelled, student, member.label_loss)
        peers = [learnt(terms, frozen[place], None) for place, terms in member.lessons.items()]

        def mean(values: Sequence[tf.Tensor]) -> tf.Tensor:
            return tf.add_n(values) / len(values)

        agreements = [peer.agreement for peer in peers if peer.agreement is not None]
        taught = {name: mean([peer.terms[name] for peer in peers]) for name in peers[0].terms}
        return own._replace(
            total=own.total + mean([peer.total for peer in peers]),
            terms=own.terms | taught,
            agreement=mean(agreements) if agreements else None,
        )

    def _regularization(self) -> tf.Tensor:
        return regularization_of([*self._students, *self._projections.values()])

    def _log(
        self, steps: Sequence[Step], regularization: Any, labels: Any, sample_weight: Any
    ) -> dict[str, tf.Tensor]:
        loss = self._parts.loss
        loss.update_state(tf.add_n([step.total for step in steps]) + regularization)
        results = {loss.name: loss.result()}
        for member, step in zip(self._parts.members, steps, strict=True):
            trackers = member.trackers
            trackers["loss"].update_state(step.total)
            for name, values in step.terms.items():
                trackers[name].update_state(values * step.example_weights)
            if _PEER_AGREEMENT in trackers:
                trackers[_PEER_AGREEMENT].update_state(step.agreement)
            absent = set() if "label_loss" in step.terms else {"label_loss"}
            results |= {t.name: t.result() for n, t in trackers.items() if n not in absent}
            if labels is None:
                continue
            member.scorer.compiled_metrics.update_state(labels, step.predictions, sample_weight)
            named = named_results(_compiled(member))
            results |= {f"{member.name}_{name}": value for name, value in named.items()}
        return results


def _require_own_weights(student: Any, other: Any) -> None:
    of_other = {id(weight) for weight in other.weights}
    both = [weight.name for weight in student.trainable_weights if id(weight) in of_other]
    if both:
        raise ModelError(
            "`students` must each have weights of their own.",
            received=f"{len(both)} weights that two of them train, such as {', '.join(both[:3])}",
            hint="Build each anew: copies with the same weights have nothing to teach each other.",
        )


def _compiled(member: _Member) -> list[Any]:
    compiled = getattr(member.scorer, "compiled_metrics", None)
    return [] if compiled is None else list(compiled.metrics)

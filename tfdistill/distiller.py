"""`Distiller`: a tf_keras model that trains a student from a teacher."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill import bridge
from tfdistill._keras import tf, tf_keras
from tfdistill.adversarial import Adversarial, check_adversarial
from tfdistill.errors import ModelError, SettingError
from tfdistill.fitting import (
    arguments_of,
    build_metrics,
    build_optimizer,
    dtype_policy,
    label_shapes,
    named_results,
    own_errors,
    regularization_of,
    taken_over,
)
from tfdistill.heads import output_names
from tfdistill.labels import Labels
from tfdistill.losses import DistillationLoss
from tfdistill.losses.base import Outputs, Taught
from tfdistill.mixing import Mixing, check_mixing
from tfdistill.named import one_or_all
from tfdistill.outputs import (
    ModelView,
    probe_inputs,
    refuse_probabilities,
)
from tfdistill.plans import check_plans, planned
from tfdistill.replicas import share_of_mean
from tfdistill.schedules import Schedule
from tfdistill.tasks import Steps, Tasks, match_all
from tfdistill.teachers import (
    Teacher,
    as_teacher,
    failures_named,
    input_shapes_of_teacher,
    require_own_weights,
    teacher_for,
)
from tfdistill.terms import unique

logger = logging.getLogger("tfdistill")


@dataclass
class _Untracked:
    """Holds what Keras must neither train nor save: it looks at attributes, not inside this."""

    teacher: Teacher
    student: ModelView
    tasks: Tasks
    original: Any  # the Keras 3 student as it was given, or None


class Distiller(tf_keras.Model):
    """Trains a student from a teacher's outputs and, if wanted, from labels.

    The training loss of one example is

        label_loss_weight * label loss + sum of weight * distillation loss

    times its sample weight, averaged over the batch as Keras averages; of several outputs it is the
    sum of theirs, and their names come before those of their logs (Hinton 2015,
    https://arxiv.org/abs/1503.02531, section 2, for the mixture). Everything Keras' `compile`
    and `fit` take works: optimizers, metrics, callbacks, `tf.distribute`, mixed precision,
    `jit_compile`.

    The teacher runs with `training=False`, gets no gradient and is not part of this model's
    weights. `save` and `save_weights` write the student alone.

    Args:
        student: Functional or Sequential, Keras 3 or tf_keras, one output of `[batch, classes]`
            logits, or `[batch, ..., classes]` with time steps; a final softmax or sigmoid is
            recognised and distillation reads what is before it. Of several outputs, in a
            dictionary or a list, each is such a one; their names are the keys, or those of the
            layers that they come from. A tf_keras student is trained in place; a Keras 3 student
            is trained as its tf_keras equal and gets the trained weights whenever `fit` ends or
            `student` is read.
        teacher: One of `td.teachers`; or a Keras 3 or tf_keras model; or a function from a batch
            of tensors to logits `[batch, classes]`, or to a dictionary of them; or `None` where no
            loss needs one, such as `td.losses.VirtualTeacher`. The logs then have no
            `teacher_agreement`. It teaches several outputs by their names; where it has one only,
            the one that has losses.
        losses: Distillation losses, each with its own weight; for a student of several outputs
            by name, without those that the teacher does not teach.
        label_loss_weight: Weight of the loss given to `compile`; 0 needs no labels. As the losses'
            weights and temperatures it may be a schedule, see `td.schedules`. One for all outputs;
            or by name, 0 for the others. An output without losses and labels is not taught.
        name: As in Keras.
        unlabelled: What stands for the label of a row that has none: -1 (class numbers), 0
            (one-hot rows, not rows of several labels) or NaN (floats); a row has none where all of
            its labels are that. Such rows learn from the teacher only: their label loss, and losses
            that read labels, are 0 (and counted in the batch's mean), and metrics leave them out.
            `None` where every row has a label. One for all outputs; or by name.
        adversarial: Whether, and how, the student is trained on adversarial examples, too. Then
            the `loss` of `fit` is of both; the other logs are of the unmoved inputs.
        mixing: A `td.Mixup` or `td.CutMix`, where the student is trained on mixed examples; the
            teacher is then asked about these. Adversarial examples are made of the mixed ones.

    Attributes:
        notes: Sentences on what was recognised or changed, such as a final softmax.

    Raises:
        ModelError: Teacher and student do not fit each other or the losses, or share weights
            that are trained.
        TeacherError: The teacher runs outside of TensorFlow and failed on a few examples.
        SettingError: A weight is negative, all are zero, or two losses share a name.

    Example:
        >>> distiller = td.Distiller(student, teacher,
        ...                          losses=[td.losses.SoftTargets(temperature=4.0, weight=0.9)],
        ...                          label_loss_weight=0.1)
        >>> distiller.compile(optimizer="adam", loss="sparse_categorical_crossentropy",
        ...                   metrics=["accuracy"])
        >>> distiller.fit(train, validation_data=validation, epochs=20)
        >>> distiller.student.save("student.keras")
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        losses: Sequence[DistillationLoss] | Mapping[str, Sequence[DistillationLoss]],
        label_loss_weight: float | Schedule | Mapping[str, float | Schedule] = 0.1,
        name: str = "distiller",
        *,
        unlabelled: float | Mapping[str, float] | None = None,
        adversarial: Adversarial | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        given = check_plans(losses, label_loss_weight, unlabelled)
        trained, original = taken_over(student)
        plans = planned(*given, output_names(trained))
        # The policy is for the scaling of the loss; what inputs become is the student's affair.
        super().__init__(name=name, dtype=dtype_policy(trained), autocast=False)
        every = [loss for plan in plans.values() for loss in plan.losses]
        mixing = check_mixing(mixing, every)
        if mixing is not None:
            mixing.check_student(trained)
        teacher = teacher_for(every, teacher)
        plans, matches = match_all(plans, trained, teacher)
        every = [loss for plan in plans.values() for loss in plan.losses]
        student_layers = [layer for loss in every for layer in loss.student_layers]
        teacher_layers = [layer for loss in every for layer in loss.teacher_layers]
        view = ModelView(trained, role="student", layers=unique(student_layers), several=True)
        asked = as_teacher(teacher, trained, unique(teacher_layers))
        example = probe_inputs(trained, like=input_shapes_of_teacher(teacher, trained))
        _, said = view(example, training=False)
        refuse_probabilities(said.logits, role="student")
        tasks = Tasks(plans, view, asked.shapes)
        require_own_weights(student, teacher)
        self.adversarial = check_adversarial(adversarial)
        self.mixing = mixing
        self.notes = tuple(note for note in (view.note, asked.note, *matches) if note)
        for note in self.notes:
            logger.info(note)
        self._parts = _Untracked(asked, view, tasks, original)
        self._student = trained
        self._projections = tasks.projections
        self._averages = [follower.model for follower in asked.followers]  # kept, not trained
        self.built = True

    @property
    def student(self) -> Any:
        """The student with the weights trained so far, in the Keras it was given in."""
        if self._parts.original is not None:
            bridge.copy_weights_back(self._student, self._parts.original)
            return self._parts.original
        return self._student

    @property
    def training_student(self) -> Any:
        """The tf_keras model that is trained: the student itself unless it is Keras 3."""
        return self._student

    @property
    def averaged_student(self) -> Any:
        """The student with averaged weights, in the Keras it was given in.

        Without the wrappers of pruned layers, but with those that simulate 8-bit arithmetic.

        Raises:
            ModelError: The teacher is no `td.teachers.MovingAverage`, and has none in it.
        """
        if not self._averages:
            raise ModelError(
                "`teacher` must be a td.teachers.MovingAverage, for the student to be averaged.",
                received=type(self._parts.teacher).__name__,
                hint="Give it as teacher, or as a member of a td.teachers.Ensemble.",
            )
        averaged = self._parts.teacher.followers[0].taken_out()
        if self._parts.original is not None:
            return bridge.rebuild_keras3(self._parts.original, averaged)
        return averaged

    @property
    def projection_weights(self) -> dict[str, np.ndarray]:
        """Copies of what feature losses train beside the student, by `loss name/number`."""
        return {
            f"{name}/{index}": np.array(weight)
            for name, layer in self._projections.items()
            for index, weight in enumerate(layer.get_weights())
        }

    def set_projection_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Starts from the projections of another Distiller, e.g. that of the stage before.

        Args:
            weights: Its `projection_weights`. Those of losses that this one does not have, or
                whose shapes differ here, are left out.
        """
        for name, layer in self._projections.items():
            own = layer.get_weights()
            given = [weights[key] for i in range(len(own)) if (key := f"{name}/{i}") in weights]
            if [np.shape(array) for array in given] == [np.shape(array) for array in own]:
                layer.set_weights(given)

    @property
    def losses_taught(self) -> Any:
        """The distillation losses, with all layers named; of several outputs by name."""
        return one_or_all({n: plan.losses for n, plan in self._parts.tasks.plans.items()})

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the student puts out, in its own structure."""
        return self._student(inputs, training=training)

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As Keras' `compile`; Keras 3 optimizers, losses and metrics are taken too.

        Args:
            optimizer: Name or object.
            loss: The label loss; needed unless `label_loss_weight` is 0. A cross-entropy given
                by name reads logits or probabilities, whichever the student returns. Of several
                outputs one each, by name or in their order; or one for all that labels teach.
            metrics: As in Keras; they see the student's own output. Of several labels that may be
                true together, in rows, "accuracy" and `teacher_agreement` are shares of labels,
                where the student ends in sigmoids or `BinaryTargets` teaches it.
            **kwargs: Everything else that tf_keras' `compile` takes.

        Raises:
            SettingError: The loss is missing or does not fit what the student returns;
                `jit_compile` is True for a teacher that XLA cannot compile; or `loss_weights` are
                given, which `label_loss_weight` has the place of.
        """
        if kwargs.get("loss_weights") is not None:
            raise SettingError(
                "`loss_weights` must be left out.",
                received=repr(kwargs["loss_weights"]),
                hint="Weigh the label loss by label_loss_weight=... of the Distiller, which may be "
                "by output name, and each distillation loss by its own weight=...",
            )
        if kwargs.get("jit_compile") and self._parts.teacher.outside:
            raise SettingError(
                "`jit_compile` must be False for a teacher that runs outside of TensorFlow.",
                received="jit_compile=True and a td.teachers.Function or td.teachers.LiteRT",
                hint="XLA compiles the whole training step, and cannot call Python in it. Give the "
                "teacher as a Keras model or a td.teachers.SavedModel to compile it.",
            )
        # An empty list, else Keras warns at every sample weight.
        wanted = {"metrics": metrics, "weighted_metrics": kwargs.pop("weighted_metrics", [])}
        with self.distribute_strategy.scope():
            converted = self._parts.tasks.compile(loss, **wanted)
        super().compile(optimizer=bridge.to_tf_keras_optimizer(optimizer), **converted, **kwargs)

    @property
    def metrics(self) -> list[Any]:
        """The losses' means, `teacher_agreement`, then the compiled metrics."""
        compiled = self.compiled_metrics.metrics if self._is_compiled else []
        return [*self._parts.tasks.trackers.values(), *compiled]

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' `fit`; afterwards a Keras 3 student holds the trained weights.

        Raises:
            SettingError: A callback is one of Keras 3; those of tf_keras have the same names.
            DataError: The data are a `PyDataset` of Keras 3.
            TeacherError: The teacher runs outside of TensorFlow and failed on a batch.
        """
        given = arguments_of(super().fit, args, kwargs)
        if self._is_compiled:
            build_optimizer(self)
            self._build_metrics(given)
        try:
            with own_errors(), self._teacher_failures_since("`fit` began"):
                return super().fit(*args, **kwargs)
        finally:
            _ = self.student

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' `evaluate`; changes nothing but metrics. Raises as `fit` does."""
        given = arguments_of(super().evaluate, args, kwargs)
        if self._is_compiled:
            self._build_metrics(given)
        with own_errors(), self._teacher_failures_since("`evaluate` began"):
            return super().evaluate(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step on one batch; called by `fit`."""
        given, labels, sample_weight = self._unpacked(data, training=True)
        if self.mixing is not None:
            given, labels, sample_weight = self.mixing(
                given, labels, sample_weight, self.optimizer.iterations
            )
        inputs, teacher = self._taught(given)

        def step_on(inputs: Any) -> Steps:
            return self._step(teacher, inputs, labels, sample_weight, training=True)

        with tf.GradientTape() as tape:
            if self.adversarial is None:
                step = step_on(inputs)
            else:
                step, total = self.adversarial.total(step_on, inputs, tape, self.optimizer)
                step = step._replace(total=total)
            replicas = self.distribute_strategy.num_replicas_in_sync
            loss = share_of_mean(step.total, replicas) + step.regularization / replicas
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        for follower in self._parts.teacher.followers:
            follower.follow(self.optimizer.iterations)
        return self._log(step, labels, sample_weight)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of `evaluate`; changes nothing but metrics."""
        given, labels, sample_weight = self._unpacked(data, training=False)
        inputs, teacher = self._taught(given)
        step = self._step(teacher, inputs, labels, sample_weight, training=False)
        return self._log(step, labels, sample_weight)

    def save(self, filepath: Any, **kwargs: Any) -> None:
        """Saves the student alone, in the Keras it was given in (so `ModelCheckpoint` does too)."""
        self.student.save(filepath, **self._fit_for_student(kwargs))

    def save_weights(self, filepath: Any, **kwargs: Any) -> None:
        """Saves the student's weights alone, in the Keras it was given in."""
        self.student.save_weights(filepath, **self._fit_for_student(kwargs))

    def load_weights(self, filepath: Any, **kwargs: Any) -> Any:
        """Loads what `save_weights` of this or of the student alone has written."""
        status = self.student.load_weights(filepath, **self._fit_for_student(kwargs))
        if self._parts.original is not None:
            bridge.copy_weights_back(self._parts.original, self._student)
        return status

    def _fit_for_student(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Without the `options` that tf_keras' callbacks always pass and Keras 3 does not know."""
        ours = self._parts.original is None
        return {name: value for name, value in settings.items() if ours or name != "options"}

    def _build_metrics(self, given: Mapping[str, Any]) -> None:
        labels = label_shapes(given)
        if labels is not None:
            shapes = self._parts.tasks.shapes_measured(labels)
            with self.distribute_strategy.scope():
                build_metrics(self.compiled_metrics, *shapes)

    def _teacher_failures_since(self, since: str) -> contextlib.AbstractContextManager[None]:
        replicas = self.distribute_strategy.num_replicas_in_sync
        return failures_named(self._parts.teacher, since, replicas=replicas)

    def _unpacked(
        self, data: Any, *, training: bool
    ) -> tuple[Any, dict[str, Labels], dict[str, Any]]:
        """Inputs of a batch; labels and sample weights by output."""
        given, labels, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        tasks = self._parts.tasks
        known = tasks.known_labels(labels, training=training)
        return given, known, tasks.weights(sample_weight)

    def _taught(self, given: Any) -> tuple[Any, Outputs]:
        """Inputs of a batch, and what the teacher says about them: stored with them, or now.

        Raises:
            SettingError: It is stored, and the teacher follows the student.
        """
        if not isinstance(given, Taught):
            return given, self._parts.teacher(given)
        if self._averages:  # in Python, while the step is traced
            raise SettingError(
                "`teacher` must not be a td.teachers.MovingAverage for stored targets.",
                received="data with stored targets, which say nothing of the average",
                hint="Give the data without them; or the teacher that they were stored of.",
            )
        return given.inputs, self._parts.tasks.stored(given)

    def _step(
        self, teacher: Any, inputs: Any, labels: Any, sample_weight: Any, *, training: bool
    ) -> Steps:
        predictions, student = self._parts.student(inputs, training=training)
        step = self._parts.tasks(
            teacher,
            student,
            predictions,
            labels,
            sample_weight,
            step=self.optimizer.iterations,
            replicas=self.distribute_strategy.num_replicas_in_sync,
        )
        return step._replace(regularization=self._regularization())

    def _regularization(self) -> tf.Tensor:
        # Not `self.losses`: an average of the student has its regularizers, too.
        return regularization_of([self._student, *self._projections.values()])

    def _log(self, step: Steps, labels: Any, sample_weight: Any) -> dict[str, tf.Tensor]:
        tasks = self._parts.tasks
        results = tasks.log(step)
        if labels:
            self.compiled_metrics.update_state(*tasks.measured(step, labels, sample_weight))
            results |= named_results(self.compiled_metrics.metrics)
        return results

"""The training stages: functions from a student to a better, smaller or quantized one.

The teacher teaches in each of them. What a stage must know of the one before it is a field of
`Student`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tfdistill._keras import tf_keras, tfmot
from tfdistill.bridge.layer_configs import copy_model
from tfdistill.distillation import Distillation, optimizer_class
from tfdistill.distiller import Distiller
from tfdistill.errors import SparsityError
from tfdistill.heads import output_names
from tfdistill.labels import weighted_by_labels
from tfdistill.losses import DistillationLoss
from tfdistill.pruning import (
    Pruning,
    kernel_zeros,
    plan_pruning,
    require_sparsity,
    strip,
    wrap_for_pruning,
)
from tfdistill.quantization import Quantization, quantize, quantized_kernels
from tfdistill.runs.run import RunDirectory, StageResult, fingerprint
from tfdistill.schedules import Schedule
from tfdistill.terminal import Terminal
from tfdistill.training import TrainingData, cosine_decay, seed_of, seeded, train

_PROJECTION = "projection "  # before the names of their arrays in a stage's result


@dataclass(frozen=True)
class Student:
    """A student between two stages.

    Attributes:
        model: tf_keras model without pruning wrappers; with fake quantization if `quantized`.
        stage: Name of the stage it comes from.
        fingerprint: Of everything that led to it.
        history: Metric name to one value an epoch, of the stage it comes from.
        position: Place in the training data up to which it was read, see `TrainingData`.
        pruned: Names of the layers whose zeros must stay zeros.
        quantized: Whether it simulates 8-bit arithmetic.
        projections: What a student trained with feature losses is projected by, see
            `Distiller.projection_weights`.
        left_dense: Layer name to the reason why it was not pruned.
        left_float: Layer name to the reason why it was not quantized.
        carriers: Name of each layer of a quantized student to that of the float one, whose
            weights it has.
    """

    model: Any
    stage: str
    fingerprint: str
    history: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    pruned: tuple[str, ...] = ()
    quantized: bool = False
    projections: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_dense: Mapping[str, str] = field(default_factory=dict)
    left_float: Mapping[str, str] = field(default_factory=dict)
    carriers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What all stages of one run share.

    The label loss, and the metrics that `accuracy` makes, are those of the student's output; of
    several by its name, for those that labels teach or measure.
    """

    teacher: Any
    distillation: Distillation
    label_loss: Any
    accuracy: Callable[[], Any]
    train: TrainingData
    steps_per_epoch: int
    validation: Any
    taught_validation: Any
    directory: RunDirectory
    terminal: Terminal
    seed: int


def distil(student: Student, context: Context, asked: Distillation) -> Student:
    """Trains the student from the teacher.

    Args:
        student: As the user gave it.
        context: The run.
        asked: The stage's settings.
    """
    model = copy_model(student.model)
    after = _after(student, context, "distillation", asked, model)

    def build() -> Any:
        return _distiller(context, model, student, asked.epochs)

    return _trained(after, student, context, asked, build)


def train_alone(student: Student, context: Context, asked: Distillation, position: int) -> Student:
    """Trains the student on the labels alone, with the budget of the distillation.

    Args:
        student: As the user gave it.
        context: The run.
        asked: The distillation's settings.
        position: Place in the training data to start at.
    """
    model = copy_model(student.model)
    if len(model.outputs) > 1:
        model.output_names[:] = output_names(model)  # Keras would log the layers' names
    budget = Distillation(
        losses=(),
        label_loss_weight=1.0,
        label_smoothing=asked.label_smoothing,
        epochs=asked.epochs,
        learning_rate=asked.learning_rate,
        optimizer=asked.optimizer,
        unlabelled=context.distillation.unlabelled,
    )
    start = replace(student, position=position)
    after = _after(start, context, "baseline", budget, model)
    return _trained(after, start, context, budget, lambda: model)


def prune(student: Student, context: Context, asked: Pruning) -> Student:
    """Prunes the student while the teacher teaches it.

    Args:
        student: The distilled one.
        context: The run.
        asked: The stage's settings.

    Raises:
        SparsityError: A pruned kernel has fewer zeros than asked for.
    """
    plan = plan_pruning(student.model, asked)
    model = copy_model(student.model)
    after = replace(
        _after(student, context, "pruning", asked, model),
        pruned=plan.pruned,
        left_dense=plan.left_dense,
    )

    def build() -> Any:
        steps = context.steps_per_epoch * asked.epochs
        wrapped = wrap_for_pruning(student.model, asked, plan, steps)
        return _distiller(context, wrapped, student, asked.epochs)

    def finish(distiller: Any) -> None:
        model.set_weights(strip(distiller.training_student).get_weights())
        require_sparsity(model, asked, plan)

    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    done = _trained(after, student, context, asked, build, callbacks, finish)
    require_sparsity(done.model, asked, plan)
    return done


def quantize_aware(student: Student, context: Context, asked: Quantization) -> Student:
    """Trains the student with simulated 8-bit arithmetic while the teacher teaches it.

    Args:
        student: The distilled or pruned one.
        context: The run.
        asked: The stage's settings.

    Raises:
        SparsityError: A zero of a pruned kernel did not stay zero.
    """
    quantized = quantize(student.model, asked, sparse=bool(student.pruned))
    after = replace(
        _after(student, context, "quantization", asked, quantized.model),
        quantized=True,
        left_float=quantized.left_float,
        carriers=quantized.carriers,
    )

    def build() -> Any:
        return _distiller(context, quantized.model, student, asked.epochs)

    done = _trained(after, student, context, asked, build)
    _require_zeros_kept(student, done)
    return done


def _require_zeros_kept(before: Student, after: Student) -> None:
    kernels = quantized_kernels(after.model, after.carriers)
    zeros = kernel_zeros(before.model)
    lost = {
        name: int(np.count_nonzero(kernels[name] == 0))
        for name in before.pruned
        if name in kernels and np.count_nonzero(kernels[name] == 0) < zeros[name].zeros
    }
    if lost:
        raise SparsityError(
            "`quantization` must keep every zero of the pruned kernels.",
            received=", ".join(f"{n}: {k} of {zeros[n].zeros} left" for n, k in lost.items()),
            hint="Please report this with the model: it is a fault of the library.",
        )


def _after(student: Student, context: Context, name: str, asked: Any, model: Any) -> Student:
    """The student as the stage will leave it, but for its training."""
    taught = () if name == "baseline" else context.distillation
    print_of_stage = fingerprint(student.fingerprint, student.position, name, asked, taught)
    return replace(student, model=model, stage=name, fingerprint=print_of_stage)


def _trained(
    after: Student,
    before: Student,
    context: Context,
    asked: Any,
    build: Callable[[], Any],
    callbacks: Sequence[Any] = (),
    finish: Callable[[Any], None] = lambda model: None,
) -> Student:
    """Loads the stage's result, or trains it and commits it.

    Args:
        after: The student to fill with trained weights.
        before: The student that the stage starts from.
        context: The run.
        asked: The stage's settings: epochs and learning rate.
        build: Makes the uncompiled or compiled model that is fitted.
        callbacks: More callbacks.
        finish: Called with the fitted model before the weights of `after` are committed.
    """
    stage = context.directory.stage(after.stage, after.fingerprint)
    result = stage.load()
    if result is not None:
        projections = _set_weights(after.model, result)
        context.terminal.note(f"{after.stage}: finished before, taken from {stage.path}")
        history = result.history
    else:
        seed = seed_of(context.seed, after.stage)
        with seeded(seed):
            model = build()
            taught = isinstance(model, Distiller)
            steps = context.steps_per_epoch * asked.epochs
            optimizer = optimizer_class(context.distillation.optimizer)(
                learning_rate=cosine_decay(asked.learning_rate, steps)
            )
            metrics: dict[str, Any] = {"metrics": context.accuracy()}
            prepare = None
            if not taught and asked.unlabelled is not None:
                metrics = {"weighted_metrics": context.accuracy()}
                prepare = partial(weighted_by_labels, unlabelled=asked.unlabelled, model=model)
            model.compile(optimizer=optimizer, loss=context.label_loss, **metrics)
            progress = context.terminal.training_progress(
                after.stage, asked.epochs, steps=context.steps_per_epoch
            )
            history = train(
                model,
                stage,
                context.train,
                validation=context.taught_validation if taught else context.validation,
                epochs=asked.epochs,
                start=before.position,
                seed=seed,
                taught=taught,
                prepare=prepare,
                callbacks=[*callbacks, progress],
            )
        finish(model)
        projections = getattr(model, "projection_weights", {})
        arrays = {
            **_get_weights(after.model),
            **{_PROJECTION + n: v for n, v in projections.items()},
        }
        stage.commit(arrays, history, {"epochs": asked.epochs})
    return replace(
        after,
        history=history,
        projections=projections,
        position=before.position + context.train.share(asked.epochs),
    )


def _distiller(context: Context, model: Any, before: Student, epochs: int) -> Distiller:
    asked = context.distillation
    if asked.mixing is not None:
        seed = seed_of(context.seed, "mixing", before.stage, asked.mixing.seed)
        asked = replace(asked, mixing=asked.mixing.with_seed(seed))
    steps = context.steps_per_epoch * epochs
    distiller = distiller_of(asked, model, context.teacher, steps=steps)
    distiller.set_projection_weights(before.projections)  # new ones would teach noise at first
    return distiller


def distiller_of(asked: Distillation, model: Any, teacher: Any, *, steps: int) -> Distiller:
    """The Distiller of a stage.

    Args:
        asked: What the teacher teaches.
        model: The student.
        teacher: The teacher.
        steps: All steps of the stage, over which its schedules go.
    """

    def over(value: Any) -> Any:
        """With these steps, in whatever structure of lists and outputs it is."""
        if isinstance(value, Mapping):
            return {name: over(each) for name, each in value.items()}
        if isinstance(value, tuple):
            return [over(each) for each in value]
        return value.over(steps) if isinstance(value, (DistillationLoss, Schedule)) else value

    return Distiller(
        model,
        teacher,
        over(asked.losses),
        over(asked.label_loss_weight),
        unlabelled=asked.unlabelled,
        adversarial=asked.adversarial,
        mixing=asked.mixing,
    )


def _get_weights(model: Any) -> dict[str, np.ndarray]:
    values = tf_keras.backend.batch_get_value(model.weights)
    names = [weight.name for weight in model.weights]
    return {
        f"{i:04d} {n}": np.asarray(v) for i, (n, v) in enumerate(zip(names, values, strict=True))
    }


def _set_weights(model: Any, result: StageResult) -> dict[str, np.ndarray]:
    """Puts a stage's result into its model; returns the projections beside it."""
    projections = {
        name.removeprefix(_PROJECTION): value
        for name, value in result.arrays.items()
        if name.startswith(_PROJECTION)
    }
    values = [v for name, v in result.arrays.items() if not name.startswith(_PROJECTION)]
    tf_keras.backend.batch_set_value(list(zip(model.weights, values, strict=True)))
    return projections

"""`Pipeline`: from a teacher and a student to certified LiteRT artifacts, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfdistill.artifacts import Artifact, check_artifact_paths, make_artifacts
from tfdistill.data import DataSummary, as_batches, summarise
from tfdistill.distiller import Distiller
from tfdistill.errors import CertificationError, DataError, SettingError
from tfdistill.evaluation import evaluate
from tfdistill.export import Export, check_before_training
from tfdistill.labels import accuracy_metric, label_loss_for
from tfdistill.outputs import ModelView, architecture
from tfdistill.pruning import Pruning, plan_pruning
from tfdistill.quantization import Quantization, quantize
from tfdistill.report import Report
from tfdistill.run import RunDirectory, fingerprint
from tfdistill.settings import settings
from tfdistill.stages import (
    Context,
    Distillation,
    Student,
    distil,
    prune,
    quantize_aware,
    train_alone,
)
from tfdistill.students import PreparedStudent, prepare_student
from tfdistill.summary import Finished, summarise_run
from tfdistill.teachers import Teacher, as_teacher, identity_of_teacher
from tfdistill.terminal import Terminal
from tfdistill.training import TrainingData


@dataclass(frozen=True)
class Result:
    """What a pipeline made.

    Attributes:
        student: The float student after distillation and pruning, in the Keras it came in.
        artifacts: Format to `Artifact`: its `path` and its `certificate`.
        report: Rows of accuracy, size and latency; `json_path` and `html_path`.
    """

    student: Any
    artifacts: Mapping[str, Artifact]
    report: Report


@settings
class Pipeline:
    """Distils, prunes, quantizes, exports and certifies a student.

    The teacher teaches in every training stage. Each stage is kept in the run directory: a run
    that was killed goes on from its last finished epoch, and ends in the same weights; a changed
    setting runs that stage again and those below it.

    Args:
        distillation: What the teacher teaches, and the distillation stage.
        pruning: The pruning stage; `None` leaves it out.
        quantization: The quantization-aware training stage; `None` leaves it out, and int8 is
            calibrated after training.
        export: Formats and what an app developer needs to know.
        baseline: Whether to train the student alone too, with the distillation's budget, to see
            whether the teacher helps.
        seed: Seed of everything random. The same seed ends in the same bits on a CPU.

    Raises:
        SettingError: A setting is unknown or of the wrong type.

    Example:
        >>> pipeline = td.Pipeline(
        ...     distillation=td.Distillation(epochs=20),
        ...     pruning=td.Pruning(sparsity=0.75, epochs=5),
        ...     quantization=td.Quantization(epochs=3),
        ...     export=td.Export(formats=("int8", "float16")))
        >>> result = pipeline.run(student, teacher, train, validation=validation, test=test,
        ...                       run_dir="saved_models/birds")
        >>> result.artifacts["int8"].certificate.accuracy
        0.93
    """

    distillation: Distillation = field(default_factory=Distillation)
    pruning: Pruning | None = None
    quantization: Quantization | None = None
    export: Export = field(default_factory=Export)
    baseline: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every field."""
        stages = {
            "distillation": (Distillation, False),
            "pruning": (Pruning, True),
            "quantization": (Quantization, True),
            "export": (Export, False),
        }
        for name, (kind, optional) in stages.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (optional and value is None):
                raise SettingError(
                    f"`{name}` must be a td.{kind.__name__}{' or None' if optional else ''}.",
                    received=value,
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SettingError("`seed` must be a whole number >= 0.", received=self.seed)
        if not isinstance(self.baseline, bool):
            raise SettingError("`baseline` must be True or False.", received=self.baseline)

    def run(
        self,
        student: Any,
        teacher: Any,
        train: Any,
        *,
        validation: Any = None,
        test: Any = None,
        run_dir: str | os.PathLike[str],
        steps_per_epoch: int | None = None,
        verbose: int = 1,
    ) -> Result:
        """Runs all stages, or what is left of them.

        Inside a `tf.distribute` strategy's scope, training runs on all its devices.

        Args:
            student: Functional or built Sequential model, Keras 3 or tf_keras, with one output
                `[batch, classes]`; stays as it is.
            teacher: Keras 3 or tf_keras model, or a function from a batch of inputs to logits.
            train: `tf.data` set of batches `(inputs, labels)` or `(inputs, labels, weights)`, or
                such a tuple of NumPy arrays. To make resuming exact, give its `shuffle` a seed.
            validation: The same, evaluated after each epoch.
            test: The same; what accuracy and certificates are measured on. Without it,
                `validation` is.
            run_dir: Where the run is kept.
            steps_per_epoch: Batches of an epoch, for training data that never end.
            verbose: 0 for silence.

        Returns:
            The trained student, the artifacts and the report.

        Raises:
            TfdistillError: Its subclasses name what does not fit, before any training.
            NonFiniteLossError: Training diverged; the last good checkpoint is kept.
            CertificationError: An artifact is beyond its limits; the report is written first.
        """
        terminal = Terminal(verbose=verbose)
        door = _Door(self, student, teacher)
        data = _Data.look_at(self, door, train, validation, test, steps_per_epoch, terminal)
        with RunDirectory(run_dir, terminal_note=terminal.note) as directory:
            check_artifact_paths(directory, self.export, terminal)
            directory.write_settings({"pipeline": self, "data": data.summaries})
            try:
                finished = self._stages(door, data, directory, terminal, teacher)
            except KeyboardInterrupt:
                terminal.warn(
                    f"interrupted; the same call with run_dir={os.fspath(run_dir)!r} goes on from "
                    "the last finished epoch"
                )
                raise
            report = summarise_run(finished, self, directory.path)
        terminal.table(report)
        result = Result(
            student=door.prepared.hand_back(finished.floating.model),
            artifacts=finished.artifacts,
            report=report,
        )
        _require_certified(result, finished.uncertified)
        return result

    def _stages(
        self,
        door: _Door,
        data: _Data,
        directory: RunDirectory,
        terminal: Terminal,
        teacher: Any,
    ) -> Finished:
        context = Context(
            teacher=teacher,
            distillation=self.distillation,
            label_loss=data.label_loss,
            accuracy=lambda: accuracy_metric(
                "accuracy", activation=door.activation, units=door.units
            ),
            train=data.train,
            validation=data.validation,
            directory=directory,
            terminal=terminal,
            seed=self.seed,
        )
        student = Student(
            model=door.prepared.model,
            stage="given",
            fingerprint=fingerprint(
                self.seed,
                architecture(door.prepared.model),
                door.prepared.model.get_weights(),
                identity_of_teacher(teacher, door.prepared.model),
                data.summaries["train"],
            ),
            iterators=data.train.iterators,
        )
        trained = [distil(student, context, self.distillation)]
        if self.pruning is not None:
            trained.append(prune(trained[-1], context, self.pruning))
        floating, quantized = trained[-1], None
        if self.quantization is not None:
            quantized = quantize_aware(floating, context, self.quantization)
            trained.append(quantized)
        alone = None
        if self.baseline and data.label_loss is not None:
            # last: the others' place in the shuffling must not depend on it
            alone = train_alone(student, context, self.distillation, trained[-1].iterators)
        artifacts, uncertified = make_artifacts(
            floating,
            quantized,
            self.export,
            calibration=data.train.dataset,
            test=data.test,
            test_identity=data.summaries["test"].identity,
            directory=directory,
            terminal=terminal,
        )
        return Finished(
            teacher=teacher,
            teacher_evaluation=evaluate(lambda x: door.teaching(x).logits, data.test),
            alone=alone,
            trained=tuple(trained),
            floating=floating,
            artifacts=artifacts,
            uncertified=uncertified,
            test=data.test,
            notes=door.notes,
        )


class _Door:
    """Checks everything that needs the models but no data.

    Each stage is tried on the untrained student: what it would refuse is refused here.
    """

    def __init__(self, pipeline: Pipeline, student: Any, teacher: Any) -> None:
        self.prepared: PreparedStudent = prepare_student(student)
        model = self.prepared.model
        asked = pipeline.distillation
        distiller = Distiller(model, teacher, asked.losses, asked.label_loss_weight)
        self.notes = distiller.notes
        self.teaching: Teacher = as_teacher(teacher, model)
        if pipeline.pruning is not None:
            plan_pruning(model, pipeline.pruning)
        if pipeline.quantization is not None:
            quantize(model, pipeline.quantization, sparse=False)
        check_before_training(model, pipeline.export)
        view = ModelView(model, role="student")
        self.activation = view.activation
        self.units = int(view.classes or 0)
        self.classes = max(2, self.units)
        inputs = model.inputs
        self.input_shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else None


@dataclass(frozen=True)
class _Data:
    """The data sets, looked at once."""

    train: TrainingData
    validation: Any
    test: Any
    summaries: Mapping[str, DataSummary]
    label_loss: Any

    @classmethod
    def look_at(
        cls,
        pipeline: Pipeline,
        door: _Door,
        train: Any,
        validation: Any,
        test: Any,
        steps_per_epoch: int | None,
        terminal: Terminal,
    ) -> _Data:
        """Reads each set once: its size, labels and shapes must fit the models.

        Raises:
            DataError: They do not.
        """
        if test is None and validation is None:
            raise DataError(
                "`test` must be given: accuracy and certificates are measured on it.",
                received="neither `test` nor `validation`",
                hint="Pass test=..., batches of (inputs, labels) that training never sees.",
            )
        terminal.heading("Reading the data once")
        given = {"train": train, "validation": validation, "test": test}
        sets, summaries = {}, {}
        for name, data in given.items():
            if data is None:
                continue
            sets[name] = as_batches(data, seed=pipeline.seed, name=name)
            summaries[name] = summarise(
                sets[name],
                classes=door.classes,
                steps_per_epoch=steps_per_epoch if name == "train" else None,
                name=name,
                require_labels=name != "train" or pipeline.distillation.label_loss_weight > 0,
                input_shape=door.input_shape,
            )
        labels = summaries["train"].labels
        loss = None
        if labels != "none":
            loss = label_loss_for(labels, activation=door.activation, units=door.units)
        return cls(
            train=TrainingData(
                sets["train"],
                summaries["train"].steps,
                endless=steps_per_epoch is not None,
                iterators=1,  # the look itself
            ),
            validation=sets.get("validation"),
            test=sets.get("test", sets.get("validation")),
            summaries={"test": summaries.get("validation", summaries["train"]), **summaries},
            label_loss=loss,
        )


def _require_certified(result: Result, uncertified: Mapping[str, str]) -> None:
    failed = {
        format: " ".join(artifact.certificate.failures)
        for format, artifact in result.artifacts.items()
        if not artifact.certificate.passed
    }
    failed.update(uncertified)
    if failed:
        raise CertificationError(
            "Every artifact must behave as the model it came from.",
            received="; ".join(f"{format}: {why}" for format, why in failed.items()),
            hint=f"Look at {result.report.html_path}; or set other td.Limits in td.Export.",
        )

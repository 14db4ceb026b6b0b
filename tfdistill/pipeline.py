"""`Pipeline`: from a teacher and a student to certified LiteRT artifacts, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tfdistill.artifacts import Artifact, check_artifact_paths, make_artifacts
from tfdistill.distillation import Distillation
from tfdistill.door import Door
from tfdistill.errors import CertificationError, SettingError
from tfdistill.evaluation import evaluate
from tfdistill.export import Export
from tfdistill.outputs import architecture
from tfdistill.pruning import Pruning
from tfdistill.quantization import Quantization
from tfdistill.report import Report
from tfdistill.run_data import RunData, look_at
from tfdistill.runs.run import RunDirectory, fingerprint
from tfdistill.settings import settings, whole_number
from tfdistill.stages import (
    Context,
    Student,
    distil,
    prune,
    quantize_aware,
    train_alone,
)
from tfdistill.summary import Finished, summarise_run
from tfdistill.targets.examples import Augment
from tfdistill.teachers import (
    Nobody,
    failures_named,
    identity_of_teacher,
)
from tfdistill.teaching import Teaching, prepare_teaching
from tfdistill.terminal import Terminal


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
        object.__setattr__(self, "seed", whole_number("seed", self.seed, minimum=0))
        if not isinstance(self.baseline, bool):
            raise SettingError("`baseline` must be True or False.", received=self.baseline)

    def check(self, student: Any, teacher: Any) -> None:
        """Raises what `run` would raise for these models, without reading any data.

        Args:
            student: As for `run`.
            teacher: As for `run`; it need not be trained yet.

        Raises:
            TfdistillError: Its subclasses name what does not fit.
        """
        Door(self, student, teacher)

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
        data_name: str | None = None,
        augment: Augment | None = None,
        verbose: int = 1,
    ) -> Result:
        """Runs all stages, or what is left of them.

        Inside a `tf.distribute` strategy's scope, training runs on all its devices.

        Args:
            student: Functional or built Sequential model, Keras 3 or tf_keras, with an output
                `[batch, classes]`, or several in a dictionary or list; stays as it is.
            teacher: One of `td.teachers`; or a Keras 3 or tf_keras model; or a function from a
                batch of tensors to logits; or `None` where no loss needs one.
            train: `tf.data` set of batches `(inputs, labels)` or `(inputs, labels, weights)`, or
                such a tuple of NumPy arrays. Labels are class numbers `[batch]`, one-hot rows, or,
                of a student that ends in several sigmoids or is taught by
                `td.losses.BinaryTargets`, rows `[batch, labels]` of numbers in [0, 1] for labels
                that may be true together; or, of a student that `td.losses.RegressionTargets`
                teaches, numbers `[batch]` or `[batch, numbers]`. Labels of several outputs are in a
                dictionary by
                their names, of which some may be missing, or in a tuple in their order. To make
                resuming exact, give its `shuffle` and augmentation a seed, and build it anew for
                each call: a set that was read before goes on with its next order.
            validation: The same, evaluated after each epoch.
            test: The same; what accuracy and certificates are measured on. Without it,
                `validation` is. An output without labels there is certified by its agreement with
                the student alone.
            run_dir: Where the run is kept.
            steps_per_epoch: Batches of an epoch, for training data that never end; data that
                end are repeated.
            data_name: Name and version of the training data; another one trains anew. Changed
                values are noticed without it, but not in data that is augmented at random, and
                so has other values each time it is read. `Dataset.identity` is one.
            augment: `augment(example, seed)` of one training example's inputs and an int64 tensor
                `[2]`, with random numbers drawn from the seed alone: `RandomShiftAndFlip()` is
                one. Teacher and student see the same views.
            verbose: 0 for silence.

        Returns:
            The trained student, the artifacts and the report.

        Raises:
            TfdistillError: Its subclasses name what does not fit, before any training.
            NonFiniteLossError: Training diverged; the last good checkpoint is kept.
            TeacherError: The teacher runs outside of TensorFlow and failed on a batch.
            CertificationError: An artifact is beyond its limits; the report is written first.
        """
        terminal = Terminal(verbose=verbose)
        door = Door(self, student, teacher)
        terminal.heading("Reading the data once")
        after_training = self.export.calibrates(quantization_aware=self.quantization is not None)
        data = look_at(
            train,
            validation,
            test,
            classes=door.classes,
            kind=door.kinds,
            input_shape=door.input_shape,
            require_labels=door.require_labels,
            unlabelled=door.distillation.unlabelled,
            steps_per_epoch=steps_per_epoch,
            calibration_examples=self.export.calibration_examples if after_training else 0,
            name=data_name,
            seed=self.seed,
        )
        door.check_losses_of(data.kinds)
        label_loss = door.label_loss(data.summaries["train"].labels)
        with RunDirectory(run_dir, terminal_note=terminal.note) as directory:
            check_artifact_paths(directory, self.export, terminal)
            data = data.settled(directory.settings.get("data", {}), terminal)
            directory.write_settings({"pipeline": self, "data": data.describe()})
            try:
                teaching = prepare_teaching(
                    door.teacher,
                    door.distillation,
                    data,
                    augment,
                    directory=directory.path / "targets",
                    epochs=self._taught_epochs(),
                    seed=self.seed,
                    terminal=terminal,
                    follows=door.follows,
                )
                finished = self._stages(door, data, teaching, label_loss, directory, terminal)
            except KeyboardInterrupt:
                terminal.warn(
                    f"interrupted; the same call with run_dir={os.fspath(run_dir)!r} goes on from "
                    "the last finished epoch (build `train` anew, if it shuffles)"
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

    def _taught_epochs(self) -> int:
        """Epochs of all stages that have a teacher."""
        stages = (self.distillation, self.pruning, self.quantization)
        return sum(stage.epochs for stage in stages if stage is not None)

    def _stages(
        self,
        door: Door,
        data: RunData,
        teaching: Teaching,
        label_loss: Any,
        directory: RunDirectory,
        terminal: Terminal,
    ) -> Finished:
        context = Context(
            teacher=door.teacher,
            distillation=door.distillation,
            label_loss=label_loss,
            accuracy=lambda: door.accuracy(label_loss),
            train=data.train,
            steps_per_epoch=data.summaries["train"].steps,
            validation=data.validation,
            taught_validation=teaching.validation,
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
                identity_of_teacher(door.teacher, door.prepared.model),
                data.identity,
                teaching.identity,
                *door.identity,
            ),
            position=data.start,
        )
        trained = [distil(student, context, self.distillation)]
        alone = None
        if self.baseline and label_loss is not None:
            alone = train_alone(student, context, self.distillation, trained[0].position)
        if alone is not None or data.train.steps_per_epoch is None:
            # Reserved for it where that costs no reading, so that turning it off changes nothing.
            share = data.train.share(self.distillation.epochs)
            trained[0] = replace(trained[0], position=trained[0].position + share)
        if self.pruning is not None:
            trained.append(prune(trained[-1], context, self.pruning))
        floating, quantized = trained[-1], None
        if self.quantization is not None:
            quantized = quantize_aware(floating, context, self.quantization)
            trained.append(quantized)
        artifacts, uncertified = make_artifacts(
            floating,
            quantized,
            self.export,
            calibration=data.calibration,
            test=data.test,
            test_identity=fingerprint(data.summaries["test"]),
            directory=directory,
            terminal=terminal,
            to_keras3=door.prepared.hand_back,
            kinds=data.kinds,
        )
        teacher_evaluation = None
        # What follows the student begins anew in each stage: there is none to be judged here.
        if not (isinstance(door.teacher, Nobody) or door.follows):
            with failures_named(door.teaching, "the reading of `test` began"):
                teacher_evaluation = evaluate(door.logits_of_teacher, data.test, data.kinds)
        return Finished(
            teacher=door.teacher,
            teacher_evaluation=teacher_evaluation,
            alone=alone,
            trained=tuple(trained),
            floating=floating,
            artifacts=artifacts,
            uncertified=uncertified,
            test=data.test,
            test_examples=data.summaries["test"].examples,
            notes=(*door.notes, *data.notes, teaching.note(self._taught_epochs())),
            outputs=door.prepared.outputs if len(door.heads) > 1 else (),
            kinds=data.kinds,
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

"""Image classification: any TFDS image set to a certified int8 model.

    python -m pipelines.image_classification --dataset fashion_mnist --data-dir DIR

Trains a convolutional teacher of 165 000 parameters (kept, and taken again by the next run),
distils a student of 13 000 parameters from it, prunes it to 75 % zeros, trains it
quantization-aware, and writes `student_int8.tflite` and `student_float16.tflite` with
certificates and a report into `saved_models/<dataset>`. The teacher is trained on shifted and
mirrored images; the student, too small to learn those as well, from what the teacher knows.

For Fashion-MNIST, `benchmarks/RESULTS.md` has accuracy, sizes and times. Copy this file and
change `build_teacher` and `build_student` for models of your own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command_line import add_settings, run_command, settings_from
from pipelines.teacher import TeacherTraining, check_seed

if TYPE_CHECKING:  # imported late below, so that --help needs no TensorFlow
    import keras

    import tfdistill as td


def build_teacher(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """A VGG-like network; returns logits `[batch, classes]`."""
    from keras import Input, Model, layers

    x = image = Input(input_shape, name="image")
    for filters in (16, 48, 96):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization(momentum=0.9)(x)
            x = layers.ReLU()(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return Model(image, layers.Dense(classes, name="logits")(x), name="teacher")


def build_student(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Three convolutions of one width, the first with a stride; returns logits `[batch, classes]`.

    Nearly all of its weights are in convolutions, which use each of them at many places: of such
    a student, pruning three weights in four takes less than of one with a large dense layer. It
    flattens instead of averaging: in small images of one object, the place tells much.
    """
    from keras import Input, Model, layers

    x = image = Input(input_shape, name="image")
    for size, strides, pooling in ((4, 2, False), (3, 1, True), (3, 1, True)):
        x = layers.Conv2D(24, size, strides=strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        if pooling:
            x = layers.MaxPooling2D(2)(x)
    return Model(image, layers.Dense(classes, name="logits")(layers.Flatten()(x)), name="student")


def image_classification(
    dataset: str,
    pipeline: td.Pipeline,
    *,
    data_dir: str | None = None,
    run_dir: str | Path | None = None,
    teacher_path: str | Path | None = None,
    teacher_epochs: int = 20,
    teacher_learning_rate: float = 2e-3,
    teacher_seed: int = 0,
    batch_size: int = 128,
    teacher_shift: int = 2,
    teacher_flip: bool = True,
    shift: int = 0,
    flip: bool = False,
    download: bool = False,
) -> td.Result:
    """Distils, prunes, quantizes, exports and certifies a student for a set of images.

    Args:
        dataset: Name of an image classification set of TensorFlow Datasets, or "digits".
        pipeline: The stages; label names and normalisation are filled in where it has none.
        data_dir: Where TensorFlow Datasets finds it prepared; by default its own folder.
        run_dir: Where the run is kept; by default `saved_models/<dataset>`.
        teacher_path: The teacher, trained if missing; by default beside `run_dir`. One that was
            trained here must have been trained with the same settings.
        teacher_epochs: Epochs of the teacher's training.
        teacher_learning_rate: Its peak learning rate.
        teacher_seed: Seed of its training.
        batch_size: Examples in a batch.
        teacher_shift: Largest random shift of the images that the teacher is trained on, pixels.
        teacher_flip: Whether to mirror every second of them.
        shift: Largest random shift of the images that the student is trained on; the teacher
            sees the same ones.
        flip: Whether to mirror every second of them.
        download: Whether TensorFlow Datasets may download a set that is not there.

    Returns:
        The float student, the artifacts and the report.
    """
    import dataclasses

    import keras

    import tfdistill as td
    from tfdistill.runs.run import RunDirectory

    run_dir = Path(run_dir or Path("saved_models") / dataset.replace("/", "-"))
    check_seed("seed", pipeline.seed)
    training = TeacherTraining(
        Path(teacher_path or run_dir.with_name(f"{run_dir.name}-teacher.keras")),
        {
            "dataset": dataset,
            "batch_size": batch_size,
            "shift": teacher_shift,
            "flip": teacher_flip,
        },
        epochs=teacher_epochs,
        learning_rate=teacher_learning_rate,
        seed=teacher_seed,
    )

    def augmentation(shift: int, flip: bool) -> Any:
        return td.RandomShiftAndFlip(shift, flip=flip) if shift or flip else None

    def load(seed: int, augment: Any = None) -> Any:
        return td.load_dataset(
            dataset,
            data_dir=data_dir,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            download=download,
        )

    data = load(pipeline.seed)
    pixels = td.Normalisation(scale=data.scale, raw_range=(0, 1 / data.scale))
    export = dataclasses.replace(
        pipeline.export,
        label_names=pipeline.export.label_names or data.label_names,
        normalisation=pipeline.export.normalisation or pixels,
    )
    pipeline = dataclasses.replace(pipeline, export=export)
    keras.utils.set_random_seed(pipeline.seed)
    student = build_student(data.input_shape, data.classes)
    teacher = training.load()
    if teacher is None:
        keras.utils.set_random_seed(teacher_seed)
        untrained = build_teacher(data.input_shape, data.classes)
        pipeline.check(student, untrained)  # what the run would refuse only after the training
        with RunDirectory(run_dir, terminal_note=print):
            pass
        teachers_data = load(teacher_seed, augmentation(teacher_shift, teacher_flip))
        teacher = training.train(untrained, teachers_data)
    return pipeline.run(
        student,
        teacher,
        data.train,
        validation=data.validation,
        test=data.test,
        run_dir=run_dir,
        data_name=data.identity,
        augment=augmentation(shift, flip),
    )


def default_pipeline() -> td.Pipeline:
    """The recipe's settings, as used for `benchmarks/RESULTS.md`."""
    import tfdistill as td

    return td.Pipeline(
        distillation=td.Distillation(
            losses=[td.losses.SoftTargets(temperature=2.0, weight=0.9)],
            label_loss_weight=0.1,
            epochs=20,
            learning_rate=4e-3,
        ),
        pruning=td.Pruning(sparsity=0.75, epochs=30, learning_rate=4e-3),
        quantization=td.Quantization(epochs=3, learning_rate=5e-4),
        export=td.Export(formats=("int8", "float16")),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m pipelines.image_classification --help`."""
    from tfdistill.host import reuse_memory
    from tfdistill.terminal import quiet_tensorflow

    quiet_tensorflow()
    reuse_memory()

    import tfdistill as td

    defaults = default_pipeline()
    (soft_targets,) = defaults.distillation.losses
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.image_classification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group(
        "data and teacher",
        "a teacher that is there is taken if it was trained with the same options",
    )
    data.add_argument("--dataset", required=True, help='a TFDS image set, or "digits"')
    data.add_argument("--data-dir", help="where TFDS finds it (default: TFDS' own folder)")
    data.add_argument("--download", action="store_true", help="let TFDS download it if missing")
    data.add_argument("--run-dir", help="where the run is kept (default: saved_models/DATASET)")
    data.add_argument(
        "--teacher", help="a .keras file, trained if missing (default: beside RUN_DIR)"
    )
    data.add_argument("--teacher-epochs", type=int, default=20, help="(default: %(default)s)")
    data.add_argument(
        "--teacher-learning-rate", type=float, default=2e-3, help="(default: %(default)s)"
    )
    data.add_argument("--teacher-seed", type=int, default=0, help="(default: %(default)s)")
    data.add_argument("--batch-size", type=int, default=128, help="(default: %(default)s)")
    for whose, shift, flip in (("teacher", 2, True), ("student", 0, False)):
        prefix = "teacher-" if whose == "teacher" else ""
        data.add_argument(
            f"--{prefix}shift",
            type=int,
            default=shift,
            help=f"largest random shift of the {whose}'s images, pixels (default: %(default)s)",
        )
        data.add_argument(
            f"--{prefix}flip",
            action=argparse.BooleanOptionalAction,
            default=flip,
            help=f"mirror every second of them (default: {'yes' if flip else 'no'})",
        )
    stages = parser.add_argument_group("stages")
    stages.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    for stage in ("pruning", "quantization", "baseline"):
        what = "training the student alone" if stage == "baseline" else f"the {stage} stage"
        stages.add_argument(f"--no-{stage}", action="store_true", help=f"leave out {what}")
    add_settings(
        parser, "soft-targets", td.losses.SoftTargets, soft_targets, "soft targets (distillation)"
    )
    groups = {
        "distillation": td.Distillation,
        "pruning": td.Pruning,
        "quantization": td.Quantization,
        "export": td.Export,
    }
    for name, kind in groups.items():
        add_settings(parser, name, kind, getattr(defaults, name), name)
    add_settings(parser, "limits", td.Limits, td.Limits(), "limits of the certificates")
    arguments = parser.parse_args(argv)

    def run() -> None:
        losses = [settings_from(arguments, "soft-targets", td.losses.SoftTargets)]
        limits = settings_from(arguments, "limits", td.Limits)
        more = {"distillation": {"losses": losses}, "export": {"limits": limits}}
        made: dict[str, Any] = {
            name: None
            if getattr(arguments, f"no_{name}", False)
            else settings_from(arguments, name, kind, **more.get(name, {}))
            for name, kind in groups.items()
        }
        image_classification(
            arguments.dataset,
            td.Pipeline(baseline=not arguments.no_baseline, seed=arguments.seed, **made),
            data_dir=arguments.data_dir,
            run_dir=arguments.run_dir,
            teacher_path=arguments.teacher,
            teacher_epochs=arguments.teacher_epochs,
            teacher_learning_rate=arguments.teacher_learning_rate,
            teacher_seed=arguments.teacher_seed,
            batch_size=arguments.batch_size,
            teacher_shift=arguments.teacher_shift,
            teacher_flip=arguments.teacher_flip,
            shift=arguments.shift,
            flip=arguments.flip,
            download=arguments.download,
        )

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())

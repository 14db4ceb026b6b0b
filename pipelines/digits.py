"""Handwritten digits: the whole pipeline in a minute or two, with nothing to download.

    python -m pipelines.digits

Takes scikit-learn's 1797 real 8x8 digits, trains a teacher of 114 000 parameters, distils a
student of 6 200, prunes it to 75 % zeros, trains it quantization-aware, and writes
`student_int8.tflite` and `student_float16.tflite` with certificates and a report into
`saved_models/digits`. Run it again and every finished stage is taken from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command_line import run_command
from pipelines.teacher import TeacherTraining, check_seed

if TYPE_CHECKING:  # imported late below, so that --help needs no TensorFlow
    import keras

    import tfdistill as td


def build_teacher() -> keras.Model:
    """A convolutional network that returns logits `[batch, 10]`."""
    from keras import Input, Model, layers

    x = image = Input((8, 8, 1), name="image")
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return Model(image, layers.Dense(10, name="logits")(x), name="teacher")


def build_student() -> keras.Model:
    """A network small enough for a microcontroller; returns logits `[batch, 10]`."""
    from keras import Input, Model, layers

    x = image = Input((8, 8, 1), name="image")
    for filters, strides in ((16, 1), (32, 2)):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)  # an epoch has few steps
        x = layers.ReLU()(x)
    x = layers.AveragePooling2D(2)(x)
    return Model(image, layers.Dense(10, name="logits")(layers.Flatten()(x)), name="student")


def digits(
    run_dir: str | Path = "saved_models/digits",
    *,
    seed: int = 0,
    teacher_epochs: int = 30,
    epochs: int = 40,
    pruning_epochs: int = 40,
    quantization_epochs: int = 8,
) -> td.Result:
    """Distils, prunes, quantizes, exports and certifies a student for handwritten digits.

    Args:
        run_dir: Where the run is kept; the teacher is kept beside it.
        seed: Seed of everything random.
        teacher_epochs: Epochs of the teacher's training.
        epochs: Epochs of distillation.
        pruning_epochs: Epochs of pruning.
        quantization_epochs: Epochs of quantization-aware training.

    Returns:
        The float student, the artifacts and the report.
    """
    import keras

    import tfdistill as td
    from tfdistill.runs.run import RunDirectory

    run_dir = Path(run_dir)
    check_seed("seed", seed)
    training = TeacherTraining(
        run_dir.with_name(f"{run_dir.name}-teacher.keras"),
        {"dataset": "digits", "batch_size": 32, "shift": 1, "flip": False},
        epochs=teacher_epochs,
        learning_rate=2e-3,
        seed=seed,
    )

    augment = td.RandomShiftAndFlip(1, flip=False)

    def load(augment: Any = None) -> Any:
        return td.load_dataset("digits", batch_size=32, seed=seed, augment=augment)

    data = load()
    pipeline = td.Pipeline(
        distillation=td.Distillation(
            losses=[td.losses.SoftTargets(temperature=2.0, weight=0.5)],
            label_loss_weight=0.5,
            epochs=epochs,
            learning_rate=5e-3,
        ),
        pruning=td.Pruning(sparsity=0.75, epochs=pruning_epochs, learning_rate=1e-2),
        quantization=td.Quantization(epochs=quantization_epochs, learning_rate=1e-3),
        export=td.Export(
            formats=("int8", "float16"),
            label_names=data.label_names,
            normalisation=td.Normalisation(scale=data.scale, raw_range=(0, 1 / data.scale)),
        ),
        seed=seed,
    )
    keras.utils.set_random_seed(seed)
    student = build_student()
    teacher = training.load()
    if teacher is None:
        keras.utils.set_random_seed(seed)
        untrained = build_teacher()
        pipeline.check(student, untrained)  # what the run would refuse only after the training
        with RunDirectory(run_dir, terminal_note=print):
            pass
        teacher = training.train(
            untrained, load(augment)
        )  # data of its own: reading moves the shuffling
    return pipeline.run(
        student,
        teacher,
        data.train,
        validation=data.validation,
        test=data.test,
        run_dir=run_dir,
        data_name=data.identity,
        augment=augment,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m pipelines.digits --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-dir", default="saved_models/digits", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)

    from tfdistill.host import reuse_memory
    from tfdistill.terminal import quiet_tensorflow

    quiet_tensorflow()
    reuse_memory()
    return run_command(lambda: digits(arguments.run_dir, seed=arguments.seed))


if __name__ == "__main__":
    sys.exit(main())

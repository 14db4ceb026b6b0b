"""What a live distillation step costs: ours against its parts, and against keras.distillation.

    python -m benchmarks.distill_step

Three ways to spend the same number of steps on the same batches, in turn, several times:

- ours: `td.Distiller.fit` with soft targets and a label loss;
- parts: plain `fit` of the same student, then the teacher's forward pass alone;
- keras: `keras.distillation.Distiller.fit` with equal models.

Prints the median of the ratios within each round, so that a machine that is slow for a while is
slow for all three. A ratio below 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from tfdistill.terminal import quiet_tensorflow

quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import tfdistill as td  # noqa: E402
from pipelines.image_classification import build_student, build_teacher  # noqa: E402
from tfdistill._keras import tf, tf_keras  # noqa: E402
from tfdistill.host import processor, reuse_memory  # noqa: E402

_SHAPE, _CLASSES = (28, 28, 1), 10


def _batches(batch_size: int, steps: int) -> Any:
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(steps * batch_size, *_SHAPE)).astype("float32")
    labels = generator.integers(_CLASSES, size=len(images))
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size).cache()


def _ours(teacher: Any, batches: Any) -> Callable[[], None]:
    student = td.to_tf_keras(build_student(_SHAPE, _CLASSES))
    distiller = td.Distiller(student, teacher, [td.losses.SoftTargets(4.0, 0.9)], 0.1)
    distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return lambda: distiller.fit(batches, verbose=0)


def _parts(teacher: Any, batches: Any) -> Callable[[], None]:
    student = td.to_tf_keras(build_student(_SHAPE, _CLASSES))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("adam", loss, metrics=["accuracy"])
    forward = tf.function(lambda images: teacher(images, training=False))

    def run() -> None:
        student.fit(batches, verbose=0)
        for images, _ in batches:
            forward(images)

    return run


def _keras(teacher: Any, batches: Any) -> Callable[[], None]:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller = keras.distillation.Distiller(
        teacher=teacher,
        student=build_student(_SHAPE, _CLASSES),
        distillation_losses=keras.distillation.LogitsDistillation(temperature=4.0),
        student_loss_weight=0.1,
    )
    distiller.compile("adam", loss, metrics=["accuracy"])
    return lambda: distiller.fit(batches, verbose=0, shuffle=False)


def measure(batch_size: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by contender.

    Args:
        batch_size: Examples in a step.
        steps: Steps in a round of one contender.
        rounds: Counted rounds, after one that is not.
    """
    reuse_memory()  # else glibc decides by what it gave back before how long a step takes
    batches = _batches(batch_size, steps)
    teacher = build_teacher(_SHAPE, _CLASSES)
    contenders = {
        "ours": _ours(teacher, batches),
        "parts": _parts(teacher, batches),
        "keras": _keras(teacher, batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        order = [*contenders.items()]
        for name, run in order if number % 2 else reversed(order):  # who is first differs
            start = time.perf_counter()
            run()
            if number:  # the first traces and compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill_step")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="in a round (default: 20)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    arguments = parser.parse_args(argv)
    seconds = measure(arguments.batch_size, arguments.steps, arguments.rounds)
    print(f"{processor()}, keras {keras.__version__}")
    for name, values in seconds.items():
        step = statistics.median(values) / arguments.steps
        print(f"{name}: {1000 * step:.1f} ms a step (median of {len(values)} rounds)")
    for other in ("parts", "keras"):
        ratios = [
            ours / theirs for ours, theirs in zip(seconds["ours"], seconds[other], strict=True)
        ]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"ours / {other}: {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()

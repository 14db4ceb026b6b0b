"""What stored soft targets cost: an epoch, the storing itself, a whole stage, and memory.

    python -m benchmarks.stored_targets --data-dir DIR

On Fashion-MNIST with the image recipe's student and teacher (a file; untrained where none is
given: the cost is the same). In turn, several times:

- epochs of the student: plain `fit`; on stored targets; live; and the first two once more with
  an augmentation, of which 4 views are stored;
- `teacher.predict` over the examples, and storing targets of them.

Prints the medians of the ratios within each round. Then, in processes of their own, the peak
memory of reading a million stored examples, and of reading as many without targets.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfdistill.terminal import quiet_tensorflow

quiet_tensorflow()

import keras  # noqa: E402

import tfdistill as td  # noqa: E402
from pipelines.image_classification import build_student, build_teacher  # noqa: E402
from tfdistill._keras import tf, tf_keras  # noqa: E402
from tfdistill.host import processor, reuse_memory  # noqa: E402
from tfdistill.targets.examples import views_of  # noqa: E402

_BATCH, _VIEWS, _EPOCHS = 128, 4, 20
_AUGMENT = td.RandomShiftAndFlip(2)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    data_dir: str, teacher: Any, steps: int, rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of every round, by contender.

    Args:
        data_dir: Where TFDS finds Fashion-MNIST.
        teacher: A Keras 3 model.
        steps: Batches in an epoch.
        rounds: Counted rounds, after one that is not.
        folder: For the stored targets.
    """
    reuse_memory()
    data = td.load_dataset("fashion_mnist", data_dir=data_dir, batch_size=_BATCH)
    train = data.train.take(steps)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def student() -> Any:
        return td.to_tf_keras(build_student(data.input_shape, data.classes))

    def plain(batches: Any) -> Callable[[], Any]:
        model = student()
        model.compile("adam", loss, metrics=["accuracy"])
        return lambda: model.fit(batches, verbose=0)

    def taught(batches: Any) -> Callable[[], Any]:
        distiller = td.Distiller(student(), teacher, [td.losses.SoftTargets(2.0, 0.9)], 0.1)
        distiller.compile("adam", loss, metrics=["accuracy"])
        return lambda: distiller.fit(batches, verbose=0)

    def store(path: Path, **more: Any) -> Any:
        shutil.rmtree(path, ignore_errors=True)
        return td.store_targets(teacher, fixed, path, verbose=0, **more)

    # The same examples in each epoch, in an order that is not the question here.
    fixed = train.cache(str(folder / "examples"))
    for _ in fixed:
        pass
    stored = store(folder / "targets")
    several = store(folder / "views", augment=_AUGMENT, views=_VIEWS)
    contenders = {
        "plain": plain(fixed),
        "stored": taught(stored.attach(fixed)),
        "live": taught(fixed),
        "plain, augmented": plain(views_of(fixed, _AUGMENT, 0, 0, views=_VIEWS)),
        "stored, augmented": taught(several.attach(fixed)),
        "predict": lambda: teacher.predict(fixed.map(lambda images, _: images), verbose=0),
        "storing": lambda: store(folder / "again"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            took = _seconds(run)
            if number:  # the first traces and compiles
                seconds[name].append(took)
    return seconds


def read_a_million(path: str, examples: int, *, with_targets: bool) -> None:
    """Reads synthetic examples, with stored targets or without; prints the peak memory in MB."""
    import resource

    def example(number: Any) -> Any:
        seed = tf.stack([number, number])
        return tf.random.stateless_uniform([4, 4, 1], seed), number % 10

    inputs = tf.data.Dataset.range(examples).map(example, 2).batch(1024)
    if with_targets:
        kernel = tf.random.stateless_normal([16, 10], [0, 0])
        stored = td.store_targets(
            lambda images: tf.reshape(images, [-1, 16]) @ kernel, inputs, path, verbose=0
        )
        inputs = stored.dataset()
    for _ in inputs:
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _peak_memory(folder: Path, examples: int, with_targets: bool) -> float:
    code = (
        "from benchmarks.stored_targets import read_a_million; "
        f"read_a_million({str(folder / 'million')!r}, {examples}, with_targets={with_targets})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stored_targets")
    parser.add_argument("--data-dir", required=True, help="where TFDS finds fashion_mnist")
    parser.add_argument("--teacher", help="a .keras file (default: an untrained one)")
    parser.add_argument("--steps", type=int, default=60, help="in an epoch (default: 60)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--examples", type=int, default=1_000_000, help="(default: 1000000)")
    arguments = parser.parse_args(argv)
    teacher = (
        keras.models.load_model(arguments.teacher)
        if arguments.teacher
        else build_teacher((28, 28, 1), 10)
    )
    print(f"{processor()}, {arguments.rounds} rounds of {arguments.steps} batches of {_BATCH}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = measure(arguments.data_dir, teacher, arguments.steps, arguments.rounds, folder)
        for what, values in seconds.items():
            print(f"{what}: {statistics.median(values):.2f} s")

        def ratio(title: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"{title}: {statistics.median(ratios):.3f} ({spread})")

        ratio("epoch, stored / plain", seconds["stored"], seconds["plain"])
        ratio(
            "epoch, augmented, stored / plain",
            seconds["stored, augmented"],
            seconds["plain, augmented"],
        )
        ratio("storing / predict", seconds["storing"], seconds["predict"])
        whole = [
            (storing + _EPOCHS * stored) / (_EPOCHS * live)
            for storing, stored, live in zip(
                seconds["storing"], seconds["stored"], seconds["live"], strict=True
            )
        ]
        ratio(f"stage of {_EPOCHS} epochs, stored / live", whole, [1.0] * len(whole))
        ratio("epoch, live / plain", seconds["live"], seconds["plain"])
        without = _peak_memory(folder, arguments.examples, with_targets=False)
        with_targets = _peak_memory(folder, arguments.examples, with_targets=True)
        print(
            f"peak memory of {arguments.examples:,} examples: {with_targets:.0f} MB with stored "
            f"targets (storing them, too), {without:.0f} MB without"
        )


if __name__ == "__main__":
    main()

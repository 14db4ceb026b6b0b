"""What stored soft targets cost: an epoch, the storing itself, a whole stage, and memory.

    python -m benchmarks.stored_targets --data-dir DIR

On Fashion-MNIST with the image recipe's student and teacher (a file; untrained where none is
given: the cost is the same). In turn, several times:

- epochs of the student: plain `fit`; on stored targets; live; and the first two once more with
  an augmentation, of which 4 views are stored;
- `teacher.predict` over the whole training set, and storing targets of it, in fewer rounds.

Prints the medians of the ratios within each round, and from the medians of their times what a
distillation stage costs with stored targets and live. Then, in processes of their own, the peak
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
    data_dir: str, teacher: Any, steps: int, rounds: int, storing_rounds: int, folder: Path
) -> tuple[dict[str, list[float]], int]:
    """Seconds of every round, by contender; and the batches of the whole training set.

    Args:
        data_dir: Where TFDS finds Fashion-MNIST.
        teacher: A Keras 3 model.
        steps: Batches in an epoch.
        rounds: Counted rounds, after one that is not.
        storing_rounds: The same for the whole training set.
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

    def store(batches: Any, path: Path, **more: Any) -> Any:
        shutil.rmtree(path, ignore_errors=True)
        return td.store_targets(teacher, batches, path, verbose=0, **more)

    # The same examples in each epoch, in an order that is not the question here.
    fixed, whole = train.cache(str(folder / "examples")), data.train.cache(str(folder / "whole"))
    for batches in (fixed, whole):
        for _ in batches:
            pass
    stored = store(fixed, folder / "targets")
    several = store(fixed, folder / "views", augment=_AUGMENT, views=_VIEWS)
    contenders = {
        "plain": plain(fixed),
        "stored": taught(stored.attach(fixed)),
        "live": taught(fixed),
        "plain, augmented": plain(views_of(fixed, _AUGMENT, 0, 0, views=_VIEWS)),
        "stored, augmented": taught(several.attach(fixed)),
    }
    storing = {
        "predict": lambda: teacher.predict(whole.map(lambda images, _: images), verbose=0),
        "storing": lambda: store(whole, folder / "again"),
    }
    seconds = _in_turn(contenders, rounds) | _in_turn(storing, storing_rounds)
    return seconds, int(data.train.cardinality())


def _in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        order = [*contenders.items()]
        for name, run in order if number % 2 else reversed(order):  # who is first differs
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
    parser.add_argument("--storing-rounds", type=int, default=3, help="(default: 3)")
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
        seconds, whole = measure(
            arguments.data_dir,
            teacher,
            arguments.steps,
            arguments.rounds,
            arguments.storing_rounds,
            folder,
        )
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
        epochs = _EPOCHS * whole / arguments.steps  # of the rounds' steps, in a stage
        median = {name: statistics.median(values) for name, values in seconds.items()}
        stage = (median["storing"] + epochs * median["stored"]) / (epochs * median["live"])
        print(f"stage of {_EPOCHS} epochs, stored / live: {stage:.3f}")
        ratio("epoch, live / plain", seconds["live"], seconds["plain"])
        without = _peak_memory(folder, arguments.examples, with_targets=False)
        with_targets = _peak_memory(folder, arguments.examples, with_targets=True)
        print(
            f"peak memory of {arguments.examples:,} examples: {with_targets:.0f} MB with stored "
            f"targets (storing them, too), {without:.0f} MB without"
        )


if __name__ == "__main__":
    main()

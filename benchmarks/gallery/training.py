"""Training and measuring, with one budget for every method."""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import tfdistill as td
from benchmarks.gallery.tasks import CLASSES, TEACHERS, Method
from pipelines.teacher import TeacherTraining
from tfdistill._keras import keras, tf, tf_keras

_OTHER_SEED = 1000  # added to the seed for a student beside or before the one of the row
_WARM_UP = 3  # steps that are not counted: the first traces


@dataclass(frozen=True)
class Budget:
    """What every method has.

    Attributes:
        examples: The first so many of the training set are the students'; the teachers' are all.
        epochs: Of each student.
        teacher_epochs: Of each teacher.
        batch_size: Of all trainings.
        learning_rate: Adam's at the start; it falls to 0 along a cosine.
    """

    examples: int = 8192
    epochs: int = 8
    teacher_epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 4e-3


@dataclass(frozen=True, eq=False)
class Data:
    """Images float32 `[n, 28, 28, 1]` in [0, 1], and class numbers `[n]`."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int64]


def _over(value: Any, steps: int) -> Any:
    """The same, with all schedules in it over so many steps."""
    if isinstance(value, Mapping):
        return {key: _over(each, steps) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_over(each, steps) for each in value]
    return value.over(steps) if hasattr(value, "over") else value


class Built(NamedTuple):
    """A student that can be trained.

    Attributes:
        model: What is fitted: a distiller, or the student itself.
        student: The student.
        teacher: What teaches it, or `None`.
    """

    model: Any
    student: Any
    teacher: Any


class Gallery:
    """Trains and measures, each method with the same data, weights at the start and budget.

    Args:
        data: The whole set.
        folder: Where trained teachers are kept, and stored targets.
        budget: Of each training.
    """

    def __init__(self, data: Data, folder: Path, budget: Budget) -> None:
        self.budget = budget
        self._data, self._folder = data, folder
        self._images = tf.constant(data.images[: budget.examples])
        self._one_hot = np.eye(CLASSES, dtype=np.float32)[data.labels[: budget.examples]]
        self._teachers: dict[str, Any] = {}
        self._targets: dict[tuple[Any, ...], td.StoredTargets] = {}

    def teacher(self, name: str) -> Any:
        """A teacher of `TEACHERS`, trained if it is not there."""
        if name not in self._teachers:
            data, budget = self._data, self.budget
            training = TeacherTraining(
                self._folder / f"{name}.keras",
                {"examples": len(data.images), "batch_size": budget.batch_size},
                epochs=budget.teacher_epochs,
            )
            with contextlib.redirect_stdout(sys.stderr):
                found = training.load()
                if found is None:
                    keras.utils.set_random_seed(training.seed)
                    images, labels = tf.constant(data.images), tf.constant(data.labels)
                    train = self._shuffled(images, labels, training.seed)
                    found = training.train(
                        TEACHERS[name](), SimpleNamespace(train=train, validation=None)
                    )
            self._teachers[name] = found
        return self._teachers[name]

    def accuracy(self, model: Any) -> float:
        """Share of the test images of which the largest output is the class."""
        predicted = model.predict(self._data.test_images, batch_size=1000, verbose=0)
        if isinstance(predicted, dict):  # of several outputs
            predicted = predicted["logits"]
        return float(np.mean(predicted.argmax(axis=-1) == self._data.test_labels))

    def train(self, method: Method, seed: int) -> Any:
        """The trained student."""
        built, batches = self.build(method, seed), self.batches(method, seed)
        if method.taught == "stored":
            batches = self._stored(method, built).attach(batches)
        built.model.fit(batches, epochs=self.budget.epochs, verbose=0)
        return built.student

    def step_ratio(self, method: Method, alone: Method, rounds: int, steps: int) -> float:
        """How much longer a step takes than one of the student alone; the teacher is asked live.

        Args:
            method: What is measured. Its teacher need not be trained for that.
            alone: What it is compared with.
            rounds: Rounds of both, in turn.
            steps: Of each in a round.

        Returns:
            The median of the ratios of the rounds.
        """
        contenders = [self._steps(each) for each in (method, alone)]
        for step in contenders * _WARM_UP:
            step()
        ratios = []
        for number in range(rounds):
            seconds = {}
            for place in (0, 1) if number % 2 else (1, 0):  # who is first differs
                start = time.perf_counter()
                for _ in range(steps):
                    contenders[place]()
                seconds[place] = time.perf_counter() - start
            ratios.append(seconds[0] / seconds[1])
        return statistics.median(ratios)

    def clear(self) -> None:
        """Frees what the last training held."""
        tf_keras.backend.clear_session()
        gc.collect()

    def _steps(self, method: Method) -> Callable[[], Any]:
        """What makes one training step whenever it is called."""
        model = self.build(method, 0, trained=False).model
        step, batches = model.make_train_function(), iter(self.batches(method, 0).repeat())
        return lambda: step(batches)

    def _network(self, method: Method, seed: int) -> Any:
        tf_keras.utils.set_random_seed(seed)
        return (method.network or method.task.student)()

    def _teacher_of(self, method: Method, seed: int, *, trained: bool) -> Any:
        if isinstance(method.teacher, Method):
            seed += _OTHER_SEED
            before = method.teacher
            return self.train(before, seed) if trained else self._network(before, seed)
        teachers = [self.teacher(name) for name in method.asked]
        if method.teacher is not None:
            return method.teacher(*teachers)
        if not teachers:
            return None
        (teacher,), answers = teachers, method.task.answers
        if answers is None:
            return teacher
        return lambda images: answers(teacher(images, training=False))

    def build(self, method: Method, seed: int, *, trained: bool = True) -> Built:
        """Makes the student, and what trains it.

        Args:
            method: How.
            seed: Of the weights at the start.
            trained: Whether a teacher that is a student before is trained, or only made.
        """
        teacher = self._teacher_of(method, seed, trained=trained)
        steps = self.budget.epochs * -(-self.budget.examples // self.budget.batch_size)
        taught = {
            "losses": _over(method.losses, steps),
            "label_loss_weight": _over(method.label_weight, steps),
        }
        others = [
            self._network(method, seed + _OTHER_SEED * place) for place in range(1, method.students)
        ]
        model = student = self._network(method, seed)
        if others:
            model = td.MutualDistiller([student, *others], **taught)
        elif method.losses:
            model = td.Distiller(student, teacher, **taught, **method.settings)
        rate = tf_keras.optimizers.schedules.CosineDecay(self.budget.learning_rate, steps)
        model.compile(tf_keras.optimizers.Adam(rate), (method.loss or method.task.loss)())
        return Built(model, student, teacher)

    def batches(self, method: Method, seed: int) -> Any:
        """The images with their labels, in an order that the seed says."""
        one_hot, known = self._one_hot, round(method.labelled * len(self._one_hot))
        if method.losses:  # all are seen, and the others marked as unlabelled
            one_hot = np.where(np.arange(len(one_hot))[:, np.newaxis] < known, one_hot, 0)
            known = len(one_hot)
        labels = tf.nest.map_structure(tf.constant, method.task.labels(one_hot))
        return self._shuffled(self._images, labels, seed, known)

    def _shuffled(self, images: Any, labels: Any, seed: int, known: int | None = None) -> Any:
        """Batches of an epoch, in another order in each; of the first `known` examples only.

        Those are repeated to as many steps as all examples take.
        """
        size = len(images)
        places = tf.data.Dataset.range(known or size).shuffle(known or size, seed).repeat()
        batches = places.take(size).batch(self.budget.batch_size)

        def gather(places: Any) -> Any:
            return tf.nest.map_structure(lambda each: tf.gather(each, places), (images, labels))

        return batches.map(gather).prefetch(tf.data.AUTOTUNE)

    def _stored(self, method: Method, built: Built) -> td.StoredTargets:
        """What the teacher says, stored once for all methods that need the same of it."""
        losses = built.model.losses_taught
        layers = tuple(dict.fromkeys(layer for loss in losses for layer in loss.teacher_layers))
        same = (method.task.name, *method.asked, method.teacher, layers, method.augment)
        if same not in self._targets:
            name = str(len(self._targets))
            one_epoch = tf.data.Dataset.from_tensor_slices(self._images).batch(
                self.budget.batch_size
            )
            self._targets[same] = td.store_targets(
                built.teacher,
                one_epoch.map(lambda images: (images, tf.zeros_like(images[:, 0, 0, 0]))),
                self._folder / "targets" / name,
                layers=layers,
                augment=method.augment,
                views=self.budget.epochs if method.augment else 1,
                overwrite=True,
                verbose=0,
            )
        return self._targets[same]

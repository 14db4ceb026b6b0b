"""What `benchmarks.methods` trains: small networks, and one budget for every method."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import tfdistill as td
from pipelines.teacher import TeacherTraining
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.losses import DistillationLoss
from tfdistill.schedules import Schedule

CLASSES = 10
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
    epochs: int = 10
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


def convolutional(library: Any, name: str, blocks: Sequence[tuple[int, int, bool]]) -> Any:
    """Convolutions of 3x3 with BatchNormalization and ReLU, the mean over the places, one Dense.

    Args:
        library: Keras 3 or tf_keras.
        name: Of the model.
        blocks: Of each convolution the filters, the strides, and whether to pool behind it.
    """
    layers = library.layers
    x = image = layers.Input((28, 28, 1), name="image")
    for number, (filters, strides, pools) in enumerate(blocks, start=1):
        convolution = layers.Conv2D(
            filters, 3, strides, padding="same", use_bias=False, name=f"conv_{number}"
        )
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{number}")(convolution(x))
        x = layers.ReLU(name=f"relu_{number}")(x)
        if pools:
            x = layers.MaxPooling2D(2, name=f"pool_{number}")(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return library.Model(image, layers.Dense(CLASSES, name="logits")(x), name=name)


def transformer(library: Any, name: str, blocks: int, width: int, key_dim: int) -> Any:
    """Reads an image as a sequence of 28 rows: a projection, encoder layers of 4 heads, a Dense."""
    layers = library.layers
    image = layers.Input((28, 28, 1), name="image")
    x = layers.Dense(width, name="projection")(layers.Reshape((28, 28), name="rows")(image))
    for number in range(1, blocks + 1):
        attention = layers.MultiHeadAttention(4, key_dim, name=f"attention_{number}")
        x = layers.LayerNormalization()(layers.Add()([x, attention(x, x)]))
        inner = layers.Dense(width)(layers.Dense(2 * width, activation="relu")(x))
        x = layers.LayerNormalization(name=f"states_{number}")(layers.Add()([x, inner]))
    x = layers.Flatten(name="flat")(x)  # what stands in which row is told apart here
    return library.Model(image, layers.Dense(CLASSES, name="logits")(x), name=name)


TEACHERS: Mapping[str, Callable[[], Any]] = {
    "teacher": lambda: convolutional(
        keras,
        "teacher",
        [(16, 1, True), (32, 1, False), (32, 1, True), (64, 1, False), (64, 1, False)],
    ),
    "second": lambda: convolutional(
        keras, "second", [(32, 2, False), (64, 2, False), (64, 1, False)]
    ),
    "transformer": lambda: transformer(keras, "transformer", blocks=2, width=64, key_dim=16),
}


def small_network() -> Any:
    """The student, with as many filters in the first layer as the teacher."""
    return convolutional(tf_keras, "student", [(16, 2, False), (16, 1, True), (32, 1, False)])


def middle_network() -> Any:
    """Between the student and the teacher: a teacher assistant."""
    return convolutional(tf_keras, "assistant", [(16, 1, True), (32, 1, True), (48, 1, False)])


def small_transformer() -> Any:
    """The student that reads rows."""
    return transformer(tf_keras, "student", blocks=1, width=16, key_dim=4)


def _cross_entropy() -> Any:
    return tf_keras.losses.CategoricalCrossentropy(from_logits=True)


@dataclass(frozen=True, eq=False)
class Task:
    """What a student learns.

    Attributes:
        name: Of the task.
        student: Makes the student.
        teacher: Name of its teacher in `TEACHERS`.
        loss: Makes the label loss.
        labels: Makes the labels of one-hot rows.
        answers: Makes what the teacher answers of its logits, where these are not it.
    """

    name: str
    student: Callable[[], Any] = small_network
    teacher: str = "teacher"
    loss: Callable[[], Any] = _cross_entropy
    labels: Callable[[Any], Any] = lambda one_hot: one_hot
    answers: Callable[[Any], Any] | None = None


def log_odds(logits: Any) -> Any:
    """Of each class against all others: the logits of ten sigmoids."""
    others = tf.where(tf.eye(CLASSES, dtype=tf.bool), tf.float32.min, logits[:, tf.newaxis])
    return logits - tf.reduce_logsumexp(others, axis=-1)


IMAGES = Task("classes")
YES_OR_NO = Task(
    "yes or no",
    loss=lambda: tf_keras.losses.BinaryCrossentropy(from_logits=True),
    answers=log_odds,
)
NUMBERS = Task(
    "numbers",
    loss=tf_keras.losses.MeanSquaredError,
    labels=lambda one_hot: 2 * one_hot - 1,
    answers=lambda logits: 2 * tf.nn.softmax(logits) - 1,
)
ROWS = Task("rows", student=small_transformer, teacher="transformer")


@dataclass(frozen=True, eq=False)
class Method:
    """One way to train a student: a line of the table.

    Attributes:
        name: Of the line.
        losses: Of `td.Distiller`; none for a student alone.
        label_weight: Of the label loss.
        task: What is learnt.
        labelled: Share of the examples that have labels.
        taught: How: "stored", where the teacher's answers are stored before; "live", where it is
            asked at each step; "-", where there is none.
        asks: Names of the teachers that it needs, where that is not the task's one.
        teacher: Makes what teaches of them; or the method whose student teaches; `None` where that
            is the one asked, or nobody.
        says: What the table says about settings that are no part of the others.
        settings: More of `td.Distiller`'s.
        loss: Makes the label loss, where it is not the task's.
        network: Makes the student, where it is not the task's.
        students: How many teach each other.
        augment: Of the images, for the student and the teacher.
    """

    name: str
    losses: Sequence[DistillationLoss] = ()
    label_weight: float | Schedule = 1.0
    task: Task = IMAGES
    labelled: float = 1.0
    taught: str = "stored"
    asks: Sequence[str] | None = None
    teacher: Callable[..., Any] | Method | None = None
    says: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[], Any] | None = None
    network: Callable[[], Any] | None = None
    students: int = 1
    augment: td.RandomShiftAndFlip | None = None

    @property
    def asked(self) -> Sequence[str]:
        """Names of the teachers that must be trained for it."""
        if isinstance(self.teacher, Method):
            return self.teacher.asked
        return [self.task.teacher] if self.asks is None else self.asks

    @property
    def code(self) -> str:
        """The settings, as they are written."""
        if not self.losses:
            return self.says or "-"
        parts = [
            f"[{', '.join(map(as_code, self.losses))}]",
            f"label_loss_weight={as_code(self.label_weight)}",
            *(f"{name}={as_code(value)}" for name, value in self.settings.items()),
            *([f"augment={as_code(self.augment)}"] if self.augment else []),
            *([self.says] if self.says else []),
        ]
        return ", ".join(parts)


def as_code(value: Any) -> str:
    """Settings as they are written: without defaults, and without the name in the logs."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_code, value))}]"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    given = []
    for each in dataclasses.fields(value):
        setting = getattr(value, each.name)
        if each.default is dataclasses.MISSING:
            given.append(as_code(setting))
        elif setting != each.default and each.name != "name":
            given.append(f"{each.name}={as_code(setting)}")
    return f"{type(value).__name__}({', '.join(given)})"


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
        self._targets: dict[str, td.StoredTargets] = {}

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
        weight = method.label_weight
        taught = {
            "losses": [loss.over(steps) for loss in method.losses],
            "label_loss_weight": weight.over(steps) if isinstance(weight, Schedule) else weight,
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
        known = round(method.labelled * self.budget.examples)
        labels = method.task.labels(self._one_hot)
        if method.losses:  # the others are marked as unlabelled
            labels = np.where(np.arange(len(labels))[:, np.newaxis] < known, labels, 0)
            return self._shuffled(self._images, tf.constant(labels), seed)
        return self._shuffled(self._images, tf.constant(labels), seed, known)

    def _shuffled(self, images: Any, labels: Any, seed: int, known: int | None = None) -> Any:
        """Batches of an epoch, in another order in each; of the first `known` examples only.

        Those are repeated to as many steps as all examples take.
        """
        size = len(images)
        places = tf.data.Dataset.range(known or size).shuffle(known or size, seed).repeat()
        batches = places.take(size).batch(self.budget.batch_size)
        gathered = batches.map(lambda at: (tf.gather(images, at), tf.gather(labels, at)))
        return gathered.prefetch(tf.data.AUTOTUNE)

    def _stored(self, method: Method, built: Built) -> td.StoredTargets:
        """What the teacher says, stored once for all methods that need the same of it."""
        losses = built.model.losses_taught
        layers = tuple(dict.fromkeys(layer for loss in losses for layer in loss.teacher_layers))
        described = repr((method.task.name, method.says, layers, method.augment))
        if described not in self._targets:
            name = str(len(self._targets))
            one_epoch = tf.data.Dataset.from_tensor_slices(self._images).batch(
                self.budget.batch_size
            )
            self._targets[described] = td.store_targets(
                built.teacher,
                one_epoch.map(lambda images: (images, tf.zeros_like(images[:, 0, 0, 0]))),
                self._folder / "targets" / name,
                layers=layers,
                augment=method.augment,
                views=self.budget.epochs if method.augment else 1,
                overwrite=True,
                verbose=0,
            )
        return self._targets[described]

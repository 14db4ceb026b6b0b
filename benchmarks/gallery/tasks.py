"""What students learn, with which networks, and what a method is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras

CLASSES = 10
_KINDS = ((0, 2, 4, 6), (1,), (3,), (5, 7, 9), (8,))  # tops, trousers, dresses, shoes, bags
_OF_KINDS = np.array([[c in kind for kind in _KINDS] for c in range(CLASSES)], np.float32)


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
    return convolutional(tf_keras, "student", [(16, 2, True), (32, 1, False), (32, 1, False)])


def network_of_two_outputs() -> Any:
    """The student, which also says what kind of thing it is."""
    student = small_network()
    kind = tf_keras.layers.Dense(len(_KINDS), name="kind")(student.get_layer("pooled").output)
    return tf_keras.Model(student.input, {"logits": student.output, "kind": kind}, name="student")


def middle_network() -> Any:
    """Between the student and the teacher: a teacher assistant."""
    return convolutional(tf_keras, "assistant", [(16, 1, True), (32, 1, True), (64, 1, False)])


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
        labels: Makes the labels of one-hot rows, in the structure of the student's outputs.
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
TWO_OUTPUTS = Task(
    "classes and kinds",
    student=network_of_two_outputs,
    loss=lambda: {"logits": _cross_entropy(), "kind": _cross_entropy()},
    labels=lambda one_hot: {"logits": one_hot, "kind": one_hot @ _OF_KINDS},
)
ROWS = Task("rows", student=small_transformer, teacher="transformer")


@dataclass(frozen=True, eq=False)
class Method:
    """One way to train a student: a line of the table.

    Attributes:
        name: Of the line.
        losses: Of `td.Distiller`; none for a student alone.
        label_weight: Of the label loss, as `td.Distiller` takes it.
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
    losses: Any = ()
    label_weight: Any = 1.0
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
        """The settings, as they are written; "" where there are none."""
        if not self.losses:
            return self.says
        parts = [
            as_code(self.losses),
            f"label_loss_weight={as_code(self.label_weight)}",
            *(f"{name}={as_code(value)}" for name, value in self.settings.items()),
            *([f"augment={as_code(self.augment)}"] if self.augment else []),
            *([self.says] if self.says else []),
        ]
        return ", ".join(parts)


def alone(name: str, **more: Any) -> Method:
    """A student that nobody teaches."""
    return Method(name, asks=(), taught="-", **more)


def as_code(value: Any) -> str:
    """Settings as they are written: without defaults, and without the name in the logs."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_code, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {as_code(each)}' for key, each in value.items())}}}"
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

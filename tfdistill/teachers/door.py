"""Whatever the user gives as teacher is taken here, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdistill._keras import keras, tf_keras
from tfdistill.errors import ModelError
from tfdistill.teachers.base import Asked, GivenTeacher, Shape, Teacher
from tfdistill.teachers.calls import failures_named
from tfdistill.teachers.models import Model, TensorFunction

__all__ = [
    "as_given",
    "as_teacher",
    "failures_named",
    "identity_of_teacher",
    "input_shapes_of_teacher",
    "require_own_weights",
]


def as_given(teacher: Any) -> GivenTeacher:
    """One of `td.teachers`, of whatever the user gave.

    Raises:
        ModelError: It is nothing that can teach.
    """
    if isinstance(teacher, GivenTeacher):
        return teacher
    if isinstance(teacher, (keras.Model, tf_keras.Model)):
        return Model(teacher)
    if not callable(teacher) or isinstance(teacher, type):
        raise ModelError(
            "`teacher` must be a Keras model or a function from inputs to logits, or one of "
            "td.teachers.",
            received=type(teacher).__name__,
            hint="A saved Keras model is td.teachers.Model(path), an exported one "
            "td.teachers.SavedModel(path) or td.teachers.LiteRT(path).",
        )
    return TensorFunction(teacher)


def as_teacher(
    teacher: Any, student: Any = None, layers: Sequence[str] = (), *, examples: Any = None
) -> Teacher:
    """Makes a teacher of whatever the user gave.

    Args:
        teacher: One of `td.teachers`; a Keras 3 or tf_keras model; or a function on tensors that
            returns logits.
        student: The functional student; says what the teacher will be given.
        layers: Names of the teacher's layers whose outputs losses read.
        examples: In place of a student, the inputs of a batch of the data.

    Raises:
        ModelError: It cannot teach this student: wrong type, inputs, outputs or layers.
        TeacherError: It runs outside of TensorFlow and failed on a few examples.
    """
    return as_given(teacher).bind(_asked(student, examples), layers)


def identity_of_teacher(teacher: Any, student: Any = None, *, examples: Any = None) -> list[Any]:
    """What tells one teacher from another, for fingerprints.

    Args:
        teacher: As `as_teacher` takes it.
        student: The functional student; says what the teacher will be given.
        examples: In place of a student, the inputs of a batch of the data.

    Returns:
        Of a function its outputs on a few fixed random inputs, all there is to look at, unless it
        was given a version; of a functional model its architecture and weights, too; of files
        their hashes; of an ensemble all that of its members.
    """
    return as_given(teacher).identity(_asked(student, examples))


def input_shapes_of_teacher(teacher: Any, student: Any) -> list[Shape] | None:
    """Shapes of its inputs in the student's order, for `probe_inputs`; None where it has none."""
    return as_given(teacher).input_shapes(Asked.by_student(student))


def require_own_weights(student: Any, teacher: Any) -> None:
    """Refuses a student whose training would change the teacher.

    Args:
        student: Keras 3 or tf_keras model, as the user gave it.
        teacher: As `as_teacher` takes it, and has seen it: a model's weights exist.

    Raises:
        ModelError: The student trains weights of the teacher.
    """
    models = as_given(teacher).keras_models()
    taught = {id(weight) for model in models for weight in model.weights}
    shared = [weight for weight in student.trainable_weights if id(weight) in taught]
    if shared:
        names = ", ".join(getattr(weight, "path", weight.name) for weight in shared[:3])
        raise ModelError(
            "`student` must not train weights of the `teacher`.",
            received=f"{len(shared)} trainable weights that are in both models, such as {names}",
            hint="Copy the teacher, e.g. copy = keras.models.clone_model(teacher), then "
            "copy.set_weights(teacher.get_weights()); or freeze the layers that both have.",
        )


def _asked(student: Any, examples: Any) -> Asked:
    return Asked.by_student(student) if examples is None else Asked.with_examples(examples)

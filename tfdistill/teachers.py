"""What can teach: a Keras 3 or tf_keras model, or any function on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError
from tfdistill.losses import Outputs, Shapes
from tfdistill.outputs import (
    ModelView,
    architecture,
    is_functional,
    probe_inputs,
    refuse_probabilities,
)


class Teacher(Protocol):
    """What the `Distiller` asks of a teacher: one frozen forward pass."""

    shapes: Shapes
    note: str

    def __call__(self, inputs: Any) -> Outputs:
        """Logits `[batch, classes]` and features of a batch, without gradient."""
        ...


class ModelTeacher:
    """A functional Keras 3 or tf_keras model as teacher, called with `training=False`.

    Args:
        model: The model; never trained or changed.
        layers: Names of the layers whose outputs losses read.

    Raises:
        ModelError: A layer is not in the model, or the Keras backend is not TensorFlow.
    """

    def __init__(self, model: Any, layers: Sequence[str] = ()) -> None:
        if isinstance(model, keras.Model) and keras.backend.backend() != "tensorflow":
            raise ModelError(
                "`teacher` must run on Keras' TensorFlow backend.",
                received=f"a Keras 3 model on {keras.backend.backend()!r}",
                hint="Set KERAS_BACKEND=tensorflow before Keras is imported.",
            )
        self._view = ModelView(model, role="teacher", layers=layers)
        self.shapes = self._view.shapes
        self.note = self._view.note

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        _, outputs = self._view(inputs, training=False)
        return _frozen(outputs)


class FunctionTeacher:
    """Any function from a batch of inputs to logits `[batch, classes]` as teacher.

    A subclassed Keras model is taken this way too: its layers cannot be read.

    Args:
        function: Called on tensors inside the traced training step.
        student: The functional student, whose inputs the function will get.

    Raises:
        ModelError: It does not return one tensor `[batch, classes]`, or returns probabilities.
    """

    def __init__(self, function: Any, student: Any) -> None:
        is_model = isinstance(function, (tf_keras.Model, keras.Model))
        self._call = (lambda x: function(x, training=False)) if is_model else function
        example = probe_inputs(student, run=self._call)
        logits = self._call(example)
        batch = int(tf.nest.flatten(example)[0].shape[0])
        shape = getattr(logits, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != batch:
            raise ModelError(
                f"`teacher` must return one tensor of shape [batch, classes] = [{batch}, classes].",
                received=f"{type(logits).__name__} of shape {shape}",
                hint="Wrap it in a function that picks the logits.",
            )
        refuse_probabilities(logits, role="teacher")
        self.shapes = Shapes(logits=tuple(shape[1:]), features={})
        self.note = ""

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        return _frozen(Outputs(tf.convert_to_tensor(self._call(inputs)), {}))


def as_teacher(teacher: Any, student: Any, layers: Sequence[str] = ()) -> Teacher:
    """Makes a teacher of whatever the user gave.

    Args:
        teacher: A Keras 3 or tf_keras model, or a function on tensors that returns logits.
        student: The functional student; says which inputs a function will get.
        layers: Names of the teacher's layers whose outputs losses read.

    Raises:
        ModelError: It cannot teach this student: wrong type, inputs, outputs or layers.
    """
    if is_functional(teacher):
        _require_same_inputs(teacher, student)
        made = ModelTeacher(teacher, layers)
        example = probe_inputs(teacher, like=student)
        refuse_probabilities(made(example).logits, role="teacher")
        return made
    if not callable(teacher):
        raise ModelError(
            "`teacher` must be a Keras model or a function from inputs to logits.",
            received=type(teacher).__name__,
            hint="A saved model is loaded by td.load_model(path).",
        )
    if layers:
        raise ModelError(
            "`teacher` must be a Functional or Sequential model for losses that read its layers.",
            received=f"{type(teacher).__name__} and the layers {list(layers)}",
            hint="Leave the feature losses out, or give the model itself.",
        )
    return FunctionTeacher(teacher, student)


def require_own_weights(student: Any, teacher: Any) -> None:
    """Refuses a student whose training would change the teacher.

    Args:
        student: Keras 3 or tf_keras model, as the user gave it.
        teacher: As `as_teacher` takes it, and has seen it: a model's weights exist.

    Raises:
        ModelError: The student trains weights of the teacher.
    """
    is_model = isinstance(teacher, (keras.Model, tf_keras.Model))
    taught = {id(weight) for weight in teacher.weights} if is_model else set()
    shared = [weight for weight in student.trainable_weights if id(weight) in taught]
    if shared:
        names = ", ".join(getattr(weight, "path", weight.name) for weight in shared[:3])
        raise ModelError(
            "`student` must not train weights of the `teacher`.",
            received=f"{len(shared)} trainable weights that are in both models, such as {names}",
            hint="Copy the teacher, e.g. copy = keras.models.clone_model(teacher), then "
            "copy.set_weights(teacher.get_weights()); or freeze the layers that both have.",
        )


def identity_of_teacher(teacher: Any, student: Any) -> list[Any]:
    """What tells one teacher from another, for fingerprints.

    Args:
        teacher: As `as_teacher` takes it.
        student: The functional student; says which inputs a function gets.

    Returns:
        Its outputs on a few fixed random inputs, all there is to look at in a function; and a
        functional model's architecture and weights.
    """
    made = as_teacher(teacher, student)
    like = teacher if is_functional(teacher) else None
    found: list[Any] = [np.asarray(made(probe_inputs(student, like=like, run=made)).logits)]
    if is_functional(teacher):
        found += [architecture(teacher), *(np.asarray(w) for w in teacher.get_weights())]
    return found


def _frozen(outputs: Outputs) -> Outputs:
    return Outputs(*tf.nest.map_structure(tf.stop_gradient, tuple(outputs)))


def _require_same_inputs(teacher: Any, student: Any) -> None:
    theirs = [tuple(tensor.shape[1:]) for tensor in teacher.inputs]
    ours = [tuple(tensor.shape[1:]) for tensor in student.inputs]
    fits = len(theirs) == len(ours) and all(
        len(a) == len(b)
        and all(None in pair or pair[0] == pair[1] for pair in zip(a, b, strict=True))
        for a, b in zip(theirs, ours, strict=True)
    )
    if not fits:
        raise ModelError(
            "`teacher` and `student` must take the same inputs.",
            received=f"teacher inputs {theirs}, student inputs {ours}",
            hint="Resize inside the teacher, e.g. keras.Sequential([Resizing(...), teacher]).",
        )

"""Any function from NumPy to NumPy as teacher: PyTorch, ONNX Runtime, a service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import Outputs, Shapes
from tfdistill.teachers.base import (
    Asked,
    GivenTeacher,
    Teacher,
    check_scale,
    checked_name,
    checked_switch,
    frozen,
    logits_of_probabilities,
    note_on_probabilities,
)
from tfdistill.teachers.calls import OutsideCalls, new_lock


class Function(GivenTeacher):
    """A function from a batch of NumPy arrays to NumPy logits `[batch, classes]` as teacher.

    It is called in every training step, in this process, by one thread at a time; on each replica
    for its part of the batch. XLA cannot compile it, and a TPU cannot reach it.

    Args:
        fn: Called on what the data set holds: one array `[batch, ...]`, or several in a list or a
            dictionary. The arrays are copies. Returns floating-point logits, finite, one row an
            example; for a student of several outputs, a dictionary of them.
        name: What it is called in messages and in an `Ensemble`; the function's own by default.
        version: Tells it from the same function with other weights, in fingerprints. Without one,
            its answers to a few fixed random inputs do; give one where these differ from process
            to process, or cost much.
        probabilities: Whether it returns probabilities; distillation then reads their
            logarithms.

    Raises:
        ModelError: `fn` is no function.
        SettingError: `name` or `version` is no text.

    Example:
        >>> def fn(images):  # [batch, height, width, channels], as the student gets them
        ...     with torch.inference_mode():
        ...         return network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        >>> teacher = td.teachers.Function(fn, name="resnet50", version="2024-05")
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        name: str | None = None,
        version: str | None = None,
        probabilities: bool = False,
    ) -> None:
        if not callable(fn) or isinstance(fn, (keras.Model, tf_keras.Model, GivenTeacher)):
            raise ModelError(
                "`fn` must be a function from NumPy arrays to NumPy logits.",
                received=type(fn).__name__,
                hint="A Keras model is given as it is, or as td.teachers.Model(model).",
            )
        if version is not None and (not isinstance(version, str) or not version):
            raise SettingError("`version` must be a non-empty str.", received=repr(version))
        self.name = checked_name(name, getattr(fn, "__name__", type(fn).__name__))
        self._named = name
        self._version = version
        self._probabilities = checked_switch("probabilities", probabilities)
        self._fn = fn
        self._lock = new_lock()

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        self._refuse_layers(layers, "a function")
        several = asked.several_outputs
        calls = OutsideCalls(self._fn, self.name, self._lock, several=several)
        return AnsweringOutside(calls, asked, probabilities=self._probabilities)

    def identity(self, asked: Asked) -> list[Any]:
        """Name and version, or its answers to a few examples."""
        if self._version is not None:
            return ["function", self._named, self._version, self._probabilities]
        teacher = self.bind(asked)
        logits = teacher(asked.examples(run=teacher)).logits
        return [tf.nest.map_structure(np.asarray, logits), self._named]


class AnsweringOutside:
    """A `Teacher` that is asked outside of TensorFlow.

    Args:
        calls: What is called.
        asked: What it will be given; it is tried on a few examples.
        probabilities: Whether it returns probabilities.
        like: Shapes of its inputs, where it says which it takes.
        tolerance: How far from one the probabilities of an example may sum up to.

    Raises:
        ModelError: It returns probabilities and its user does not say so, or the other way round.
        TeacherError: It failed on the examples.
    """

    def __init__(
        self,
        calls: OutsideCalls,
        asked: Asked,
        *,
        probabilities: bool,
        like: Any = None,
        tolerance: float = 1e-3,
    ) -> None:
        self._calls = calls
        self._probabilities = probabilities
        said = calls(asked.examples(like=like, run=calls))
        for each in tf.nest.flatten(said):
            check_scale(each, probabilities=probabilities, tolerance=tolerance)
        shapes = tf.nest.map_structure(lambda units: (units,), calls.classes)
        self.shapes = Shapes(logits=shapes, features={})
        self.note = note_on_probabilities(calls.classes) if probabilities else ""
        self.outside: tuple[OutsideCalls, ...] = (calls,)
        self.followers: tuple[Any, ...] = ()

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        said = self._calls(inputs)
        if self._probabilities:
            said = tf.nest.map_structure(logits_of_probabilities, said)
        return frozen(Outputs(said, {}))

"""Keras models, and functions on tensors, as teachers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.layers import LayerOutput
from tfdistill.outputs import (
    ModelView,
    architecture,
    is_functional,
    probe_inputs,
    refuse_probabilities,
)
from tfdistill.teachers.base import (
    Asked,
    GivenTeacher,
    Shape,
    Teacher,
    check_answers,
    checked_name,
    frozen,
)
from tfdistill.teachers.calls import OutsideCalls

_RESIZE = "Resize inside the teacher, e.g. keras.Sequential([Resizing(...), teacher])."


class Model(GivenTeacher):
    """A Keras 3 or tf_keras model as teacher, called with `training=False`.

    The layers of a Functional or Sequential model can be named in feature losses. A final softmax
    or sigmoid is recognised there, and distillation reads what is before it. A subclassed model
    returns logits.

    Args:
        model: The model, never trained or changed; or the path of a saved one, `.keras` or
            `.h5`, which is loaded by `td.load_model` and so refused where it brings code.
        name: What it is called in an `Ensemble`; the model's own name by default.

    Raises:
        ModelError: It is no Keras model, or cannot be loaded.

    Example:
        >>> teacher = td.teachers.Model("teacher.keras")
    """

    def __init__(self, model: Any, *, name: str | None = None) -> None:
        if isinstance(model, (str, os.PathLike)):
            model = bridge.load_model(model)
        if not isinstance(model, (keras.Model, tf_keras.Model)):
            raise ModelError(
                "`model` must be a Keras 3 or tf_keras model, or the path of a saved one.",
                received=type(model).__name__,
                hint="A function on NumPy arrays is given as td.teachers.Function(fn).",
            )
        self.name = checked_name(name, model.name)
        self._model = model

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        if not is_functional(self._model):
            self._refuse_layers(layers, type(self._model).__name__)
            return FunctionTeacher(lambda x: self._model(x, training=False), asked)
        theirs = [tuple(tensor.shape) for tensor in self._model.inputs]
        asked.require_same(theirs, hint=_RESIZE)
        made = ModelTeacher(self._model, layers)
        example = probe_inputs(self._model, like=asked.shapes)
        refuse_probabilities(made(example).logits, role="teacher")
        return made

    def identity(self, asked: Asked) -> list[Any]:
        """Its outputs on a few examples, and a functional model's architecture and weights."""
        made = self.bind(asked)
        found: list[Any] = [_said(made, asked, self.input_shapes(asked))]
        if is_functional(self._model):
            weights = [np.asarray(weight) for weight in self._model.get_weights()]
            found += [architecture(self._model), *weights]
        return found

    def input_shapes(self, asked: Asked) -> list[Shape] | None:
        """See `GivenTeacher`."""
        if not is_functional(self._model):
            return None
        return [tuple(tensor.shape) for tensor in self._model.inputs]

    def find(self, layer: str) -> list[str]:
        """See `GivenTeacher`."""
        names = self.layer_names()
        return [layer] if layer in names or layer.rpartition(":")[0] in names else []

    def layers(self) -> list[LayerOutput]:
        """See `GivenTeacher`."""
        if not is_functional(self._model):
            return super().layers()
        return ModelView(self._model, role="teacher", several=True).layers()

    def layer_names(self) -> list[str]:
        """See `GivenTeacher`."""
        if not is_functional(self._model):
            return []
        inner = [getattr(layer, "layer", None) for layer in self._model.layers]  # of wrappers
        found = [*self._model.layers, *(layer for layer in inner if layer is not None)]
        return [layer.name for layer in found]

    def keras_models(self) -> list[Any]:
        """See `GivenTeacher`."""
        return [self._model]

    def count_params(self) -> int | None:
        """See `GivenTeacher`."""
        return int(self._model.count_params())


class TensorFunction(GivenTeacher):
    """A function from a batch of tensors to logits `[batch, classes]`, part of the graph.

    For a student of several outputs it returns a dictionary of them.

    Args:
        function: As the user gave it.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        self._refuse_layers(layers, type(self._function).__name__)
        return FunctionTeacher(self._function, asked)

    def identity(self, asked: Asked) -> list[Any]:
        """Its outputs on a few examples, all there is to look at."""
        return [_said(self.bind(asked), asked, None)]


class ModelTeacher:
    """A functional Keras 3 or tf_keras model that is asked for logits and features.

    Args:
        model: The model.
        layers: Names of the layers whose outputs losses read.

    Raises:
        ModelError: A layer is not in the model, or the Keras backend is not TensorFlow.
    """

    outside: tuple[OutsideCalls, ...] = ()
    followers: tuple[Any, ...] = ()

    def __init__(self, model: Any, layers: Sequence[str] = ()) -> None:
        if isinstance(model, keras.Model) and keras.backend.backend() != "tensorflow":
            raise ModelError(
                "`teacher` must run on Keras' TensorFlow backend.",
                received=f"a Keras 3 model on {keras.backend.backend()!r}",
                hint="Set KERAS_BACKEND=tensorflow before Keras is imported.",
            )
        self._view = ModelView(model, role="teacher", layers=layers, several=True)
        self.shapes = self._view.shapes
        self.note = self._view.note

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        _, outputs = self._view(inputs, training=False)
        return frozen(outputs)


class FunctionTeacher:
    """A function on tensors, or a subclassed model, that is asked for logits.

    Args:
        function: Called on tensors inside the traced training step.
        asked: What it will be given.

    Raises:
        ModelError: It does not return `[batch, classes]`, for a student of several outputs of each
            by name; or returns probabilities.
    """

    outside: tuple[OutsideCalls, ...] = ()
    followers: tuple[Any, ...] = ()
    note = ""

    def __init__(self, function: Callable[[Any], Any], asked: Asked) -> None:
        self._call = function
        example = asked.examples(run=function)
        logits = function(example)
        batch = int(np.shape(tf.nest.flatten(example)[0])[0])
        several = asked.several_outputs
        check_answers(logits, batch=batch, who=type(logits).__name__, several=several)
        refuse_probabilities(logits, role="teacher")
        shapes = tf.nest.map_structure(lambda each: tuple(each.shape[1:]), logits)
        self.shapes = Shapes(shapes, features={})

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        said = self._call(inputs)
        return frozen(Outputs(tf.nest.map_structure(tf.convert_to_tensor, said), {}))


def _said(teacher: Teacher, asked: Asked, like: Sequence[Shape] | None) -> Any:
    logits = teacher(asked.examples(like=like, run=teacher)).logits
    return tf.nest.map_structure(np.asarray, logits)

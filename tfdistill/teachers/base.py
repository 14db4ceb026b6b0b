"""What every teacher is: as the user gives it, and as a `Distiller` asks it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfdistill._keras import tf
from tfdistill.bridge.model_graphs import graph_or_raise
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.layers import LayerOutput
from tfdistill.outputs import are_probabilities, probe_inputs, refuse_probabilities

if TYPE_CHECKING:
    from tfdistill.teachers.averages import AveragedTeacher
    from tfdistill.teachers.calls import OutsideCalls

Shape = tuple[int | None, ...]

_SMALLEST = float(np.finfo(np.float32).tiny)  # the smallest normal number
_AS_PROBABILITIES = (
    "Return what is before the softmax; or pass probabilities=True, to have their logarithms read."
)


class Teacher(Protocol):
    """What the `Distiller` asks of a teacher: one frozen forward pass.

    Attributes:
        shapes: Shapes of what it says.
        note: A sentence saying how logits are recovered, or "".
        outside: What of it runs outside of TensorFlow, where XLA cannot compile it.
        followers: What of it follows the student, step by step.
    """

    shapes: Shapes
    note: str
    outside: tuple[OutsideCalls, ...]
    followers: tuple[AveragedTeacher, ...]

    def __call__(self, inputs: Any) -> Outputs:
        """Logits `[batch, classes]` and features of a batch, without gradient.

        Of several outputs logits, and their shapes in `shapes`, are by name.
        """
        ...


@dataclass(frozen=True)
class Asked:
    """What a teacher will be given: batches of what the student takes, or of data.

    Attributes:
        names: Names of the inputs, in the order of `tf.nest.flatten`.
        shapes: Their shapes, batch axis included; None is an unknown size.
        examples: Makes a few examples, in the structure that the teacher is called with. Takes
            `like` and `run`, as `probe_inputs`.
        student: The student that it will teach; None where the data is all that is known.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    examples: Callable[..., Any]
    student: Any = None

    @property
    def several_outputs(self) -> bool:
        """Whether answers may be of several outputs: of those of the student, or of any."""
        return self.student is None or len(self.student.outputs) > 1

    @classmethod
    def by_student(cls, student: Any) -> Asked:
        """Of a functional student."""
        graph = graph_or_raise(student)
        names = [tensor._keras_history[0].name for tensor in graph.inputs]

        def examples(like: Any = None, run: Callable[[Any], Any] | None = None) -> Any:
            return probe_inputs(student, like=like, run=run)

        shapes = tuple(tuple(tensor.shape) for tensor in graph.inputs)
        return cls(_names(graph.input, names), shapes, examples, student)

    @classmethod
    def with_examples(cls, inputs: Any) -> Asked:
        """Of data, known by the inputs of a batch of it."""
        flat = tf.nest.flatten(inputs)
        shapes = tuple((None, *np.shape(values)[1:]) for values in flat)
        names = [f"input_{place}" for place in range(len(flat))]
        return cls(_names(inputs, names), shapes, lambda like=None, run=None: inputs)

    def by_name(self, inputs: Any) -> dict[str, Any]:
        """The inputs of one batch by their names."""
        if isinstance(inputs, Mapping):
            return dict(inputs)
        return dict(zip(self.names, tf.nest.flatten(inputs), strict=True))

    def require_same(self, theirs: Sequence[Shape] | None, *, hint: str) -> None:
        """Refuses a teacher with other inputs.

        Args:
            theirs: Shapes of its inputs in the order of `names`, batch axis included; None where
                it does not say.
            hint: What to do about it.

        Raises:
            ModelError: They are not as many, or differ in a size that both know.
        """
        if theirs is None:
            return
        fits = len(theirs) == len(self.shapes) and all(
            len(one) == len(other)
            and all(None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))
            for one, other in zip(_rows(theirs), _rows(self.shapes), strict=True)
        )
        if not fits:
            raise ModelError(
                "`teacher` and `student` must take the same inputs.",
                received=f"teacher inputs {_rows(theirs)}, student inputs {_rows(self.shapes)}",
                hint=hint,
            )


class GivenTeacher(abc.ABC):
    """A teacher as the user gives it: `td.teachers.Model`, `SavedModel`, `LiteRT` and so on.

    Attributes:
        name: What it is called in messages, and in an `Ensemble`.
    """

    name: str

    @abc.abstractmethod
    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """Makes it ready to be asked, and refuses what cannot teach.

        Args:
            asked: What it will be given.
            layers: Names of its layers whose outputs losses read.

        Raises:
            ModelError: Inputs, outputs or layers do not fit.
            TeacherError: It runs outside of TensorFlow and failed on a few examples.
        """

    @abc.abstractmethod
    def identity(self, asked: Asked) -> list[Any]:
        """What tells it from other teachers, for fingerprints."""

    def input_shapes(self, asked: Asked) -> list[Shape] | None:
        """Shapes of its inputs in the order of `asked.names`; None where it does not say."""
        return None

    def find(self, layer: str) -> list[str]:
        """The full names of the layers that the name may mean: one, where it is clear."""
        return []

    def layer_names(self) -> list[str]:
        """Full names of all layers that losses can read."""
        return []

    def layers(self) -> list[LayerOutput]:
        """Its layers before the logits, in their order, for losses whose layers are "auto".

        Raises:
            ModelError: They are not known, or not of one model.
        """
        raise ModelError(
            '`teacher` must be a Functional or Sequential model, for losses of "auto" layers.',
            received=self.name,
            hint="Name the layers, if it has any that can be read.",
        )

    def keras_models(self) -> list[Any]:
        """The Keras models in it."""
        return []

    def count_params(self) -> int | None:
        """Number of its weights; None where it is not known."""
        return None

    def _refuse_layers(self, layers: Sequence[str], kind: str) -> None:
        if layers:
            raise ModelError(
                "`teacher` must be a Functional or Sequential model for losses that read its "
                "layers.",
                received=f"{kind} and the layers {list(layers)}",
                hint="Leave the feature losses out, or give the model itself.",
            )


def frozen(outputs: Outputs) -> Outputs:
    """The same, without gradient."""
    return Outputs(*tf.nest.map_structure(tf.stop_gradient, tuple(outputs)))


def checked_name(name: Any, default: str) -> str:
    """The name that a teacher was given, or the one it has by itself.

    Raises:
        SettingError: It is no text, or empty.
    """
    if name is None:
        return default
    if not isinstance(name, str) or not name:
        raise SettingError("`name` must be a non-empty str.", received=repr(name))
    return name


def checked_switch(name: str, value: Any) -> bool:
    """A setting that is True or False.

    Raises:
        SettingError: It is something else.
    """
    if not isinstance(value, bool):
        raise SettingError(f"`{name}` must be True or False.", received=value)
    return value


def check_answers(said: Any, *, batch: int, who: str, several: bool = False) -> None:
    """Refuses what is not one row an example.

    Args:
        said: What a teacher returned for a few examples.
        batch: How many.
        who: What it is, for the message.
        several: Whether it may be of several outputs, by name.

    Raises:
        ModelError: It is not `[batch, classes]`.
    """
    if several and isinstance(said, Mapping) and said:
        for name, each in said.items():
            check_answers(each, batch=batch, who=f"{who} whose {name!r} is")
        return
    shape = getattr(said, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != batch:
        raise ModelError(
            f"`teacher` must return one tensor of shape [batch, classes] = [{batch}, classes].",
            received=f"{who} of shape {shape}",
            hint="Wrap it in a function that picks the logits; one number for each example is "
            "[batch, 1].",
        )


def check_scale(said: Any, *, probabilities: bool, tolerance: float = 1e-3) -> None:
    """Refuses probabilities where logits are needed, and the other way round.

    Args:
        said: `[batch, classes]`, what the teacher returned for a few examples.
        probabilities: Whether its user says that these are probabilities.
        tolerance: How far from one the probabilities of an example may sum up to.

    Raises:
        ModelError: They are not what the user says.
    """
    if not probabilities:
        refuse_probabilities(said, role="teacher", hint=_AS_PROBABILITIES)
        return
    values = np.asarray(said, np.float64)
    one_unit = values.shape[-1] == 1 and values.min() >= 0 and values.max() <= 1
    if not one_unit and not are_probabilities(values, tolerance):
        raise ModelError(
            "`teacher` must return probabilities, where it was given with probabilities=True: none "
            "below 0, and those of an example summing to 1.",
            received=f"values from {values.min():g} to {values.max():g}, sums from "
            f"{values.sum(-1).min():g} to {values.sum(-1).max():g}",
            hint="Leave probabilities=True out, if these are logits. Of sigmoids of several "
            "classes return what is before them.",
        )


def refuse_marked_probabilities(output: str) -> None:
    """Refuses an output that the file itself says to be probabilities."""
    raise ModelError(
        "`teacher` must return logits.",
        received=f"the output {output!r}, which a softmax or a sigmoid computes",
        hint=_AS_PROBABILITIES,
    )


def logits_of_probabilities(probabilities: tf.Tensor) -> tf.Tensor:
    """Logits whose softmax (of one unit: sigmoid) the probabilities are, float32.

    Args:
        probabilities: `[batch, classes]`; clipped at the smallest normal number of float32.
    """
    probabilities = tf.cast(probabilities, tf.float32)
    logs = tf.math.log(tf.maximum(probabilities, _SMALLEST))
    if probabilities.shape[-1] == 1:
        return logs - tf.math.log(tf.maximum(1.0 - probabilities, _SMALLEST))
    return logs


def note_on_probabilities(units: Any) -> str:
    """The sentence that says how logits are recovered from probabilities.

    Args:
        units: Number of classes; of several outputs by name.
    """
    what = " or ".join(
        sorted({"log-odds" if n == 1 else "logarithms" for n in tf.nest.flatten(units)})
    )
    return f"The teacher returns probabilities; distillation reads their {what}."


def _names(structure: Any, otherwise: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(structure)) if isinstance(structure, Mapping) else tuple(otherwise)


def _rows(shapes: Sequence[Shape]) -> list[Shape]:
    return [tuple(shape[1:]) for shape in shapes]

"""Saved files as teachers: a TensorFlow SavedModel, a LiteRT file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import ModelError
from tfdistill.litert.batches import LiteRTSignature
from tfdistill.litert.flatbuffer import TensorInterface
from tfdistill.litert.runtime import signature_names
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.base import nearest
from tfdistill.runs.records import sha256
from tfdistill.settings import whole_number
from tfdistill.teachers.base import (
    Asked,
    GivenTeacher,
    Shape,
    Teacher,
    check_answers,
    check_scale,
    checked_name,
    checked_switch,
    frozen,
    logits_of_probabilities,
    note_on_probabilities,
    refuse_marked_probabilities,
)
from tfdistill.teachers.calls import OutsideCalls, new_lock
from tfdistill.teachers.functions import AnsweringOutside

_OTHER_SIZE = "Export it for the size that the student takes, or resize in a td.teachers.Function."


class SavedModel(GivenTeacher):
    """A TensorFlow SavedModel folder as teacher: Keras' `model.export`, `tf.saved_model.save`.

    Its signature runs inside the training step as it was saved; it is not trained and not tracked.

    Args:
        path: The folder.
        signature: The signature to run. A single input of it may have any name; several are
            matched to the student's by name.
        output: Name of the output with the logits `[batch, classes]`; needed where there are
            several. For a student of several outputs a list of names.
        name: What it is called in an `Ensemble`; the folder's name by default.
        probabilities: Whether it returns probabilities; distillation then reads their
            logarithms.

    Raises:
        ModelError: There is no SavedModel, or it lacks the signature or the output.

    Example:
        >>> keras_model.export("exported/birds")
        >>> teacher = td.teachers.SavedModel("exported/birds")
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        signature: str = "serving_default",
        output: str | Sequence[str] | None = None,
        *,
        name: str | None = None,
        probabilities: bool = False,
    ) -> None:
        self._path = Path(path)
        self.name = checked_name(name, self._path.resolve().name)
        self._probabilities = checked_switch("probabilities", probabilities)
        self._loaded = _load_saved_model(self._path)  # kept: the signature's variables live in it
        self._hashes = _content_hashes(self._path)
        if signature not in self._loaded.signatures:
            raise ModelError(
                f"`signature` must be one of `{self._path}`.",
                received=repr(signature),
                hint=f"It has: {', '.join(sorted(self._loaded.signatures)) or 'none'}.",
            )
        self._signature = signature
        self._run = self._loaded.signatures[signature]
        self._inputs: Mapping[str, tf.TensorSpec] = self._run.structured_input_signature[1]
        outputs = self._run.structured_outputs
        self._output = _chosen_output(output, sorted(outputs), str(self._path))
        fixed = [n for n, spec in self._inputs.items() if spec.shape.rank and spec.shape[0]]
        if fixed:
            raise ModelError(
                f"`{self._path}` must take batches of any size.",
                received=f"the input {fixed[0]!r} of shape {self._inputs[fixed[0]].shape}",
                hint="Export it with an open batch size.",
            )

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        self._refuse_layers(layers, "a SavedModel")
        names = _matched(list(self._inputs), asked)
        asked.require_same(self._shapes(names, asked), hint=_OTHER_SIZE)

        def run(inputs: Any) -> tf.Tensor:
            given = _by_their_names(inputs, names, asked)
            cast = {n: _cast(given[n], spec.dtype, n) for n, spec in self._inputs.items()}
            return _picked(self._run(**cast), self._output)

        example = asked.examples(like=self._shapes(names, asked), run=run)
        return SavedModelTeacher(run, example, probabilities=self._probabilities)

    def identity(self, asked: Asked) -> list[Any]:
        """Hashes of its files, and what of it is run."""
        return ["savedmodel", self._hashes, self._signature, self._output, self._probabilities]

    def input_shapes(self, asked: Asked) -> list[Shape] | None:
        """See `GivenTeacher`."""
        return self._shapes(_matched(list(self._inputs), asked), asked)

    def count_params(self) -> int | None:
        """Number of the weights that its signature reads."""
        variables = {id(variable): variable for variable in self._run.variables}
        return sum(int(np.prod(variable.shape)) for variable in variables.values())

    def _shapes(self, names: Mapping[str, str], asked: Asked) -> list[Shape] | None:
        by_student = {own: self._inputs[theirs].shape for theirs, own in names.items()}
        if any(shape.rank is None for shape in by_student.values()):
            return None
        return [tuple(by_student[name]) for name in asked.names]


class SavedModelTeacher:
    """A SavedModel's signature that is asked for logits.

    Args:
        run: From a batch of the student's inputs to the output.
        example: A few examples of them.
        probabilities: Whether the output are probabilities.

    Raises:
        ModelError: It does not return one row an example, or not on the scale said.
    """

    outside: tuple[OutsideCalls, ...] = ()
    followers: tuple[Any, ...] = ()

    def __init__(self, run: Any, example: Any, *, probabilities: bool) -> None:
        self._run = run
        self._probabilities = probabilities
        said = run(example)
        batch = int(np.shape(tf.nest.flatten(example)[0])[0])
        check_answers(said, batch=batch, who="an output", several=True)
        for each in tf.nest.flatten(said):
            if not each.dtype.is_floating:
                raise ModelError(
                    "`teacher` must return logits, in a floating-point type.",
                    received=f"an output of type {each.dtype.name}",
                    hint="Choose another one by `output`.",
                )
            check_scale(each, probabilities=probabilities)
        classes = tf.nest.map_structure(lambda each: int(each.shape[1]), said)
        self.shapes = Shapes(tf.nest.map_structure(lambda units: (units,), classes), features={})
        self.note = note_on_probabilities(classes) if probabilities else ""

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        said = self._run(inputs)

        def logits(output: str) -> Any:
            answers = said[output] if self.shapes.names else said
            answers = tf.ensure_shape(answers, [None, *self.shapes.of(output).logits])
            return logits_of_probabilities(answers) if self._probabilities else answers

        by_output = {output: logits(output) for output in self.shapes.names}
        return frozen(Outputs(by_output or logits(""), {}))


class LiteRT(GivenTeacher):
    """A LiteRT file (`.tflite`) as teacher, float or quantized, run by LiteRT itself.

    It gets the real numbers that the student gets: where it is quantized, they are quantized for
    it, and its outputs dequantized. Called as a `Function` is, with that one's limits.

    Args:
        path: The file.
        signature: The signature to run; needed where there are several and none is called
            "serving_default".
        output: Name of the output with the logits `[batch, classes]`; needed where there are
            several. For a student of several outputs a list of names.
        num_threads: Threads that LiteRT may use; all processors by default.
        name: What it is called in messages and in an `Ensemble`; the file's by default.
        probabilities: Whether it returns probabilities; distillation then reads their
            logarithms.

    Raises:
        ModelError: It is no LiteRT model, lacks the signature or the output, or puts out
            probabilities and was not said to do so.
        SettingError: `num_threads` is no whole number >= 1.

    Example:
        >>> teacher = td.teachers.LiteRT("birds_v1_int8.tflite", probabilities=True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        signature: str | None = None,
        output: str | Sequence[str] | None = None,
        *,
        num_threads: int | None = None,
        name: str | None = None,
        probabilities: bool = False,
    ) -> None:
        if num_threads is None:
            num_threads = os.cpu_count() or 1
        num_threads = whole_number("num_threads", num_threads, minimum=1)
        self.name = checked_name(name, Path(path).stem)
        self._probabilities = checked_switch("probabilities", probabilities)
        self._file = LiteRTSignature(path, signature=signature, num_threads=num_threads)
        self._output = _chosen_output(output, list(self._file.outputs), str(path))
        for each in self._outputs:
            if each in self._file.probabilities and not probabilities:
                refuse_marked_probabilities(each)
            spec = self._file.outputs[each]
            if not spec.takes_numbers:
                raise ModelError(
                    "`teacher` must return logits, in a floating-point or quantized type.",
                    received=f"the output {each!r} of type {spec.dtype}",
                    hint="Choose another one by `output`.",
                )
        self._lock = new_lock()  # of an interpreter there is one, whoever asks

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        self._refuse_layers(layers, "a LiteRT file")
        names = _matched(list(self._file.inputs), asked)
        shapes = self._shapes(names, asked)
        asked.require_same(shapes, hint=_OTHER_SIZE)

        def run(inputs: Any) -> Any:
            given = _by_their_names(inputs, names, asked)
            for name, spec in self._file.inputs.items():
                _refuse_numbers_for_indices(given[name], spec)
            return _picked(self._file.predict(given), self._output)

        # Each probability is rounded to a step.
        specs = [self._file.outputs[each] for each in self._outputs]
        rounding = max((spec.scale or 0.0) * max(1, spec.shape[-1]) for spec in specs)
        return AnsweringOutside(
            OutsideCalls(run, self.name, self._lock, several=True),
            asked,
            probabilities=self._probabilities,
            like=shapes,
            tolerance=1e-3 + rounding,
        )

    def identity(self, asked: Asked) -> list[Any]:
        """Hash of the file, and what of it is run."""
        file = self._file
        return [
            *("litert", file.inspection.sha256, file.signature, self._output),
            self._probabilities,
        ]

    def input_shapes(self, asked: Asked) -> list[Shape] | None:
        """See `GivenTeacher`."""
        return self._shapes(_matched(list(self._file.inputs), asked), asked)

    def count_params(self) -> int | None:
        """Number of its weights."""
        return self._file.inspection.elements

    @property
    def _outputs(self) -> tuple[str, ...]:
        return (self._output,) if isinstance(self._output, str) else self._output

    def _shapes(self, names: Mapping[str, str], asked: Asked) -> list[Shape]:
        by_student = {own: self._file.inputs[theirs].shape for theirs, own in names.items()}
        return [
            (None, *(size if size > 0 else None for size in by_student[name][1:]))
            for name in asked.names
        ]


def _load_saved_model(path: Path) -> Any:
    try:
        return tf.saved_model.load(str(path))
    except Exception as error:  # of many types: missing, damaged, operators that are not known
        raise ModelError(
            "`path` must be a TensorFlow SavedModel folder.",
            received=f"{path} ({(str(error).splitlines() or [type(error).__name__])[0]})",
            hint="A `.keras` or `.h5` file is td.teachers.Model(path), a `.tflite` "
            "td.teachers.LiteRT(path).",
        ) from error


def _content_hashes(path: Path) -> dict[str, str]:
    """Of the graph, its variables and assets; what else lies there is not read."""
    files = [*path.glob("saved_model.pb*"), *path.glob("variables/*"), *path.glob("assets/**/*")]
    return {
        file.relative_to(path).as_posix(): sha256(file.read_bytes())
        for file in sorted(files)
        if file.is_file()
    }


def _picked(said: Mapping[str, Any], output: str | tuple[str, ...]) -> Any:
    """What was said of the chosen output; of several by name."""
    return said[output] if isinstance(output, str) else {each: said[each] for each in output}


def _chosen_output(
    output: str | Sequence[str] | None, known: Sequence[str], source: str
) -> str | tuple[str, ...]:
    if isinstance(output, (list, tuple)) and output:
        for each in output:
            _chosen_output(str(each), known, source)
        return tuple(output)
    if output is None and len(known) == 1:
        return known[0]
    if output is None:
        raise ModelError(
            f"`output` must say which output of `{source}` holds the logits.",
            received=f"{len(known)} outputs",
            hint=f"They are: {', '.join(known)}.",
        )
    if output not in known:
        raise ModelError(
            f"`output` must be an output of `{source}`.",
            received=repr(output),
            hint=nearest(str(output), known),
        )
    return str(output)


def _matched(theirs: Sequence[str], asked: Asked) -> dict[str, str]:
    """Name of each of a file's inputs to that of the student's input it gets.

    A signature spells names its own way, so a student's name is tried both ways.
    """
    if len(theirs) == len(asked.names) == 1:
        return {theirs[0]: asked.names[0]}
    spelt = dict(zip(signature_names(asked.names), asked.names, strict=True))
    spelt.update({name: name for name in asked.names})
    found = {name: spelt[name] for name in theirs if name in spelt}
    if len(found) < len(theirs) or len(set(found.values())) < len(asked.names):
        raise ModelError(
            "`teacher` and `student` must have inputs of the same names, where there are several.",
            received=f"teacher inputs {', '.join(theirs)}; student inputs {', '.join(asked.names)}",
            hint="Name the student's inputs alike: keras.Input(shape, name=...).",
        )
    return found


def _by_their_names(inputs: Any, names: Mapping[str, str], asked: Asked) -> dict[str, Any]:
    given = asked.by_name(inputs)
    return {theirs: given[own] for theirs, own in names.items()}


def _cast(values: Any, dtype: tf.DType, name: str) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    if values.dtype == dtype:
        return values
    if tf.string in (values.dtype, dtype) or (values.dtype.is_floating and dtype.is_integer):
        raise _other_type(name, dtype.name, values.dtype.name)
    return tf.cast(values, dtype)


def _refuse_numbers_for_indices(values: np.ndarray, spec: TensorInterface) -> None:
    if not spec.takes_numbers and np.issubdtype(values.dtype, np.floating):
        raise _other_type(spec.name, spec.dtype, str(values.dtype))


def _other_type(name: str, wanted: str, received: str) -> ModelError:
    return ModelError(
        f"`teacher` must get the type that it takes: {wanted} for {name!r}.",
        received=f"{received}, which a conversion would cut off",
        hint=f"Let the data, and the student's input, have it: keras.Input(shape, "
        f"dtype={wanted!r}).",
    )

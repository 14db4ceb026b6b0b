"""Calling what runs outside of TensorFlow from inside a training step, and naming what fails.

TensorFlow makes text of an exception that Python raises in a step. So the exception is kept here,
and raised again outside of the step by `failures_named`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import TeacherError


@dataclass
class Place:
    """Where in a pass over data a teacher is.

    Attributes:
        since: When counting began, such as "`fit` began"; "" for the look before any training.
        replicas: Calls that one batch is split into.
        first_example: Number of the first example of the batch; None where nobody knows.
        calls: How often the teacher was asked since.
        failure: Its first failure.
    """

    since: str = ""
    replicas: int = 1
    first_example: int | None = None
    calls: int = 0
    failure: TeacherError | None = None

    def describe(self, inputs: Sequence[np.ndarray]) -> str:
        """Names a batch and the shapes of its examples."""
        shapes = ", ".join(f"{values.dtype} {list(values.shape)}" for values in inputs)
        if self.first_example is not None:
            last = self.first_example + len(inputs[0]) - 1
            return f"for the examples {self.first_example} to {last}, {shapes}"
        if not self.since:
            return f"for a few random examples, {shapes}"
        number = (self.calls - 1) // self.replicas + 1
        return f"in batch {number} since {self.since}, examples {shapes}"


class OutsideCalls:
    """A function from NumPy to NumPy, called in a TensorFlow graph and watched there.

    Args:
        function: From a batch, in the structure that the teacher is called with, to
            `[batch, classes]`. What it gets is its own to change.
        name: What it is called in messages.
        lock: Held during each call: TensorFlow asks from threads of its own.
        several: Whether it may return a dictionary of several outputs.

    Attributes:
        place: Where in the data it is.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        name: str,
        lock: contextlib.AbstractContextManager,
        *,
        several: bool = False,
    ) -> None:
        self._function = function
        self._name = name
        self._lock = lock
        self._several = several
        self._classes: dict[str, int] | None = None  # by output; of one alone by ""
        self.place = Place()

    @property
    def classes(self) -> Any:
        """Number of classes, known after the first answer; of several outputs by name."""
        return None if self._classes is None else _of_outputs(self._classes)

    def __call__(self, inputs: Any) -> Any:
        """Asks for a batch, in a graph or eagerly.

        Returns:
            float32 `[batch, classes]`; of several outputs by name.
        """
        flat = [tf.convert_to_tensor(values) for values in tf.nest.flatten(inputs)]
        structure = tf.nest.map_structure(lambda _: 0, inputs)

        def ask(*arrays: np.ndarray) -> list[np.ndarray]:
            with self._lock:
                return self._ask(structure, arrays)

        if tf.executing_eagerly():  # numpy_function would take an exception's cause off
            answers = [tf.constant(each) for each in ask(*(values.numpy() for values in flat))]
            return _of_outputs(dict(zip(self._classes or {}, answers, strict=True)))

        def ask_in_step(*arrays: np.ndarray) -> list[np.ndarray]:
            try:
                return ask(*arrays)
            except TeacherError as error:
                # TensorFlow logs what comes here, with its traceback; `failures_named` raises it.
                raise RuntimeError(str(error)) from None

        classes: Mapping[str, int | None] = self._classes or {"": None}
        answers = tf.numpy_function(ask_in_step, flat, [tf.float32] * len(classes))
        for each, units in zip(answers, classes.values(), strict=True):
            each.set_shape([flat[0].shape[0], units])
        return _of_outputs(dict(zip(classes, answers, strict=True)))

    def _ask(self, structure: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.place.calls += 1
        batch = len(arrays[0])
        if batch == 0 and self._classes is not None:  # a replica's share of a last, small batch
            return [np.zeros([0, units], np.float32) for units in self._classes.values()]
        # Copies: these arrays are TensorFlow's memory, which the student reads, too.
        inputs = tf.nest.pack_sequence_as(structure, [np.array(values) for values in arrays])
        try:
            said = self._function(inputs)
            by_output = said if self._several and isinstance(said, Mapping) and said else {"": said}
            answers = {str(name): np.asarray(each) for name, each in by_output.items()}
        except Exception as error:
            line = next(iter(str(error).splitlines()), "")
            received = f"{type(error).__name__}: {line}".rstrip(": .")
            hint = "Its own exception is the cause of this one."
            raise self._failed(received, arrays, hint, error) from error
        if self._classes is not None and answers.keys() != self._classes.keys():
            raise self._failed(
                f"the outputs {[*answers]} where {[*self._classes]} are wanted",
                arrays,
                "Let it return the same ones each time.",
            )
        checked = {name: self._checked(each, name, batch, arrays) for name, each in answers.items()}
        self._classes = self._classes or {name: each.shape[1] for name, each in checked.items()}
        return [checked[name] for name in self._classes]

    def _checked(
        self, said: np.ndarray, output: str, batch: int, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """What was said of one output, as float32 in memory of its own: TensorFlow keeps it."""
        of = f" for the output {output!r}" if output else ""
        known = None if self._classes is None else self._classes[output]
        rows = (batch, said.shape[1] if known is None and said.ndim == 2 else known)
        if said.shape != rows:
            wanted = f"[{batch}, {rows[1] or 'classes'}]"
            raise self._failed(
                f"the shape {list(said.shape)} where {wanted} is wanted{of}",
                arrays,
                "Let it return one row of logits an example, in the order of the examples.",
            )
        if not np.issubdtype(said.dtype, np.floating):
            raise self._failed(
                f"values of type {said.dtype}{of}",
                arrays,
                "Let it return logits, in a floating-point type; not the predicted classes.",
            )
        with np.errstate(over="ignore"):  # becomes infinite, and is refused
            answers = np.array(said, np.float32)
        bad = np.flatnonzero(~np.isfinite(answers).all(axis=1))
        if len(bad):
            raise self._failed(self._bad_rows(bad, batch) + of, arrays, _FINITE)
        return answers

    def _bad_rows(self, bad: np.ndarray, batch: int) -> str:
        first = int(bad[0])
        number = "" if self.place.first_example is None else "number "
        shown = first + (self.place.first_example or 0)
        place = f"{number}{shown}" if number else f"at place {shown}"
        return f"NaN or infinity for {len(bad)} of {batch} examples, the first {place}"

    def _failed(
        self,
        received: str,
        inputs: Sequence[np.ndarray],
        hint: str,
        cause: Exception | None = None,
    ) -> TeacherError:
        failure = TeacherError(
            f"The teacher {self._name!r} must return finite logits [batch, classes] for every "
            "batch.",
            received=f"{received}, {self.place.describe(inputs)}",
            hint=hint,
        )
        failure.cause = cause
        self.place.failure = self.place.failure or failure
        return failure


def _of_outputs(by_output: dict[str, Any]) -> Any:
    return by_output[""] if [*by_output] == [""] else by_output


_FINITE = "For a class that is out of the question return a large negative number, such as -1e4."


@contextlib.contextmanager
def failures_named(
    teacher: Any, since: str = "", *, replicas: int = 1, first_example: int | None = None
) -> Iterator[None]:
    """Counts batches from here, and raises a teacher's own failure instead of TensorFlow's.

    Around a pass over data, whose batches are counted; or around one batch whose examples have
    numbers:

        for batch, inputs in enumerate(data):
            with failures_named(teacher, first_example=batch * size):
                outputs = ask(inputs)

    Args:
        teacher: As `as_teacher` returns it.
        since: When counting begins, for the message, such as "`fit` began".
        replicas: Calls that each batch is split into.
        first_example: Number of the batch's first example.

    Raises:
        TeacherError: The teacher failed; its cause is the exception that it raised, if it did.
    """
    before = [calls.place for calls in teacher.outside]
    for calls in teacher.outside:
        calls.place = Place(since, replicas, first_example)
    try:
        yield
    except TeacherError as error:
        raise error from error.cause
    except Exception:
        for calls in teacher.outside:
            failure = calls.place.failure
            if failure is not None:
                raise failure from failure.cause
        raise
    finally:
        for calls, place in zip(teacher.outside, before, strict=True):
            calls.place = place


def new_lock() -> contextlib.AbstractContextManager:
    """A lock that one teacher holds while it answers."""
    return threading.Lock()

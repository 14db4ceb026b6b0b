"""Examples known by their content, and the views of them that an augmentation makes.

An example's number is a hash of its inputs. So it has the same one in each process, machine,
order and batch, and a data set may shuffle as it likes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdistill._keras import tf
from tfdistill.errors import SettingError

__all__ = [
    "Augment",
    "Tally",
    "check_augment",
    "example_ids",
    "numbered",
    "random_inputs",
    "varying_inputs",
    "view_of",
    "views_of",
]

Augment = Callable[[Any, Any], Any]

_VIEWS = 2**20  # seeds of different pipelines must not meet
_TRIALS = 32  # of a coin that is tossed, not one in 10^9 looks like none


def example_ids(inputs: Any) -> Any:
    """The number of each example: a 64-bit hash (FarmHash) of the bytes of its inputs.

    Args:
        inputs: Tensors `[batch, ...]`, in any structure.

    Returns:
        int64 `[batch]`.
    """
    parts = [tf.bitcast(tf.fingerprint(part), tf.int64) for part in tf.nest.flatten(inputs)]
    if len(parts) == 1:
        return parts[0]
    return tf.bitcast(tf.fingerprint(tf.stack(parts, axis=1)), tf.int64)


def view_of(inputs: Any, ids: Any, view: Any, augment: Augment | None, seed: int) -> Any:
    """What an augmentation makes of each example of a batch.

    Args:
        inputs: Tensors `[batch, ...]`, in any structure.
        ids: Their numbers, int64 `[batch]`.
        view: Which of an example's views, int64.
        augment: `augment(example, seed)`, without a random number of its own; or `None`.
        seed: The pipeline's.

    Returns:
        As `inputs`: the same for the same example, view and seed, whatever else is in the batch.
    """
    if augment is None:
        return inputs
    second = tf.fill(tf.shape(ids), tf.cast(view, tf.int64) + seed * _VIEWS)
    one = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape[1:], part.dtype), inputs)
    return tf.map_fn(
        lambda pair: augment(*pair),
        (inputs, tf.stack([ids, second], axis=1)),
        fn_output_signature=one,
    )


def check_augment(augment: Augment | None, spec: Any) -> None:
    """Refuses an augmentation that is not a function of example and seed alone.

    Args:
        augment: As for `view_of`.
        spec: Of the inputs of a batch, `tf.TensorSpec` of fixed sizes; random ones are tried.

    Raises:
        SettingError: It cannot be called, does not keep shapes and dtypes, or gives something
            else each time.
    """
    if augment is None:
        return
    if not callable(augment):
        raise SettingError(
            "`augment` must be None or a function of (example, seed).", received=augment
        )
    example = tf.nest.map_structure(lambda part: part[0], random_inputs(spec))
    seed = tf.constant([1, 2], tf.int64)
    # As Python: what a tf.function of the user's drew while it was traced would stay the same.
    plain = getattr(augment, "python_function", augment)
    try:  # once in a graph, as tf.data calls it; concrete, else TensorFlow warns of retracing
        tf.function(lambda: augment(example, seed)).get_concrete_function()
        results = [plain(example, seed) for _ in range(_TRIALS)]
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise _wrong_augment(str(error).strip().splitlines()[-1].strip()) from error
    if _described(results[0]) != _described(example):
        raise _wrong_augment(f"{_described(results[0])} for {_described(example)}")
    first = tf.nest.flatten(results[0])
    for result in results[1:]:
        if not all(map(np.array_equal, first, tf.nest.flatten(result))):
            raise SettingError(
                "`augment` must give the same for the same example and seed.",
                received="another result at another call: it draws random numbers of its own",
                hint="Draw them with tf.random.stateless_* or tf.image.stateless_* functions "
                "from the seed it is given.",
            )


def random_inputs(spec: Any, examples: int = 4) -> Any:
    """A batch of random inputs, always the same ones.

    Args:
        spec: Of the inputs of a batch, `tf.TensorSpec` of fixed sizes.
        examples: How many.
    """
    generator = np.random.default_rng(0)

    def draw(part: Any) -> Any:
        shape = [examples, *part.shape[1:]]
        if part.dtype == tf.string:
            return tf.zeros(shape, part.dtype)
        if part.dtype.is_floating or part.dtype.is_complex:
            return tf.cast(generator.random(shape), part.dtype)
        return tf.cast(generator.integers(2, size=shape), part.dtype)  # word 1 is in any text

    return tf.nest.map_structure(draw, spec)


def _described(structure: Any) -> str:
    """Dtypes and shapes, as text."""
    described = tf.nest.map_structure(
        lambda part: (
            f"{part.dtype.name}{[*part.shape]}" if tf.is_tensor(part) else type(part).__name__
        ),
        structure,
    )
    return described if isinstance(described, str) else str(described)


def _wrong_augment(received: str) -> SettingError:
    return SettingError(
        "`augment` must take (example, seed) and keep the example's shape and dtype.",
        received=received,
        hint="Its seed is an int64 tensor [2].",
    )


class Tally:
    """Counts examples and sums their numbers: the same in each order."""

    def __init__(self) -> None:
        self._examples = 0
        self._sum = 0

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        """Takes the numbers of a batch."""
        self._examples += len(ids)
        self._sum += int(ids.view(np.uint64).sum(dtype=np.uint64))

    def facts(self) -> dict[str, Any]:
        """Number of examples, and the sum; tells one data set from another."""
        return {"examples": self._examples, "sum": f"{self._sum % 2**64:016x}"}


def numbered(dataset: Any, first: int, steps: int | None = None) -> Any:
    """Pairs of an element and the number of its epoch.

    Args:
        dataset: Batches.
        first: Number of the first epoch.
        steps: Batches of an epoch; `None` where each iterator that is read is one.
    """
    if steps is not None:
        return dataset.enumerate().map(lambda step, batch: (batch, first + step // steps))
    count = itertools.count(first)

    def number() -> Iterator[int]:
        yield next(count)

    one = tf.data.Dataset.from_generator(number, output_signature=tf.TensorSpec([], tf.int64))
    always = one.flat_map(lambda epoch: tf.data.Dataset.from_tensors(epoch).repeat())
    pairs = tf.data.Dataset.zip((dataset, always))
    length = int(dataset.cardinality())
    if length < 0:
        return pairs
    # Else Keras, which asks how many there are, would read other iterators than of `dataset`.
    return pairs.apply(tf.data.experimental.assert_cardinality(length))


def views_of(
    batches: Any,
    augment: Augment,
    seed: int,
    first: int,
    steps: int | None = None,
    *,
    views: int | None = None,
) -> Any:
    """Batches `(inputs, ...)`, of which each epoch shows the next view.

    Args:
        batches: Not augmented.
        augment: As for `view_of`.
        seed: The pipeline's.
        first: Number of the first epoch.
        steps: As for `numbered`.
        views: How many there are, after which the first one follows; `None` for no end.
    """

    def look(batch: Any, epoch: Any) -> Any:
        inputs, *rest = batch
        view = epoch if views is None else epoch % views
        return (view_of(inputs, example_ids(inputs), view, augment, seed), *rest)

    seen = numbered(batches, first, steps).map(look, tf.data.AUTOTUNE, deterministic=True)
    return seen.prefetch(tf.data.AUTOTUNE)


def varying_inputs(dataset: Any) -> str:
    """The first inputs whose size depends on the batch they are in, as text; "" where none does.

    The same example has other bytes there each time, and so no number.
    """
    for part in tf.nest.flatten(dataset.element_spec[0]):
        if part.shape.rank is None or None in part.shape[1:]:
            return f"{part.dtype.name}{part.shape}"
    return ""

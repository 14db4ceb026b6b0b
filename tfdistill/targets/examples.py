"""Examples known by their content, and the views of them that an augmentation makes.

An example's number is a hash of its inputs. So it has the same one in each process, machine,
order and batch, and a data set may shuffle as it likes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import SettingError

__all__ = [
    "Augment",
    "check_augment",
    "example_ids",
    "numbered",
    "varying_inputs",
    "view_of",
    "views_of",
]

Augment = Callable[[Any, Any], Any]

_VIEWS = 2**20  # seeds of different pipelines must not meet


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
    generator = np.random.default_rng(0)
    inputs = tf.nest.map_structure(
        lambda part: tf.cast(generator.uniform(size=[4, *part.shape[1:]]), part.dtype), spec
    )

    def once() -> Any:
        # Traced each time: what Python or NumPy draw at random would stay the same in one trace.
        return tf.function(lambda x: view_of(x, example_ids(x), 0, augment, 0))(inputs)

    try:
        first, second = once(), once()
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise SettingError(
            "`augment` must take (example, seed) and keep the example's shape and dtype.",
            received=str(error).strip().splitlines()[-1],
            hint="Its seed is an int64 tensor [2].",
        ) from error
    for one, other in zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True):
        if not np.array_equal(one, other):
            raise SettingError(
                "`augment` must give the same for the same example and seed.",
                received="another result at the second call: it draws random numbers of its own",
                hint="Draw them with tf.random.stateless_* or tf.image.stateless_* functions "
                "from the seed it is given.",
            )


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

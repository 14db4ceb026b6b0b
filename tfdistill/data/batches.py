"""A user's data at the door, made into batches.

Every data set made here is a ``tf.data.Dataset`` of batches whose order depends on the seed
alone: the k-th iterator made from a freshly built one always gives the k-th order, whatever
``tf.random.set_seed`` was called with. A resumed run relies on it, see `skip_epochs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import DataError, SettingError
from tfdistill.settings import whole_number

__all__ = [
    "BATCH_SIZE",
    "ELEMENTS",
    "array_batches",
    "as_batches",
    "free_of_global_seed",
    "shuffled",
    "skip_epochs",
]

BATCH_SIZE = 128

ELEMENTS = "Elements must be batches (inputs, labels), or with sample_weight as a third."


def as_batches(
    data: Any,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    name: str = "train",
    shuffle: bool = True,
) -> tf.data.Dataset:
    """Makes a `tf.data.Dataset` of batches of what a user gave.

    Args:
        data: A `tf.data.Dataset` of batches `(inputs,)`, `(inputs, labels)` or
            `(inputs, labels, sample_weight)`, which is handed on as it is (bare `inputs` become
            `(inputs,)`); or NumPy arrays `[examples, ...]`, alone or in such a tuple, of which
            float64 ones become float32, as everywhere in Keras. Each part may be a dict: several
            inputs, or labels and weights of several outputs.
        batch_size: For arrays only; 128 when None.
        seed: For the order of arrays, which are shuffled where `name` is "train".
        name: What errors call the data.
        shuffle: False for the order that arrays are given in, whatever `name` is.

    Raises:
        DataError: `data` is something else, empty or not batched, or its arrays differ in length.
        SettingError: `batch_size` or `seed` cannot be used.

    Example:
        >>> batches = as_batches((images, labels), batch_size=32)
    """
    if not isinstance(data, tf.data.Dataset):
        return _arrays_as_batches(data, batch_size, seed, name, shuffle and name == "train")
    if batch_size is not None:
        raise SettingError(
            f"`batch_size` must be None where `{name}` is a tf.data.Dataset, which is batched.",
            received=batch_size,
        )
    if not isinstance(data.element_spec, tuple):
        data = data.map(lambda inputs: (inputs,))
    spec = data.element_spec
    parts = [*tf.nest.flatten(spec[:1])]
    for part in spec[1:]:
        parts += part.values() if isinstance(part, Mapping) else [part]
    if not 1 <= len(spec) <= 3 or not all(isinstance(part, tf.TensorSpec) for part in parts):
        raise DataError(f"`{name}` must hold dense tensors.", received=spec, hint=ELEMENTS)
    if any(part.shape.rank == 0 for part in parts):
        raise DataError(
            f"`{name}` must be batched.", received=spec, hint="Call `.batch(...)` on it."
        )
    return data


def _arrays_as_batches(
    data: Any, batch_size: int | None, seed: int, name: str, shuffle: bool
) -> Any:
    arrays = data if isinstance(data, tuple) else (data,)
    parts = tf.nest.flatten(arrays)
    # tf.data makes one tensor of a list, whatever it holds
    has_list = isinstance(data, list) or any(isinstance(part, list) for part in arrays)
    if (
        has_list
        or not 1 <= len(arrays) <= 3
        or not all(isinstance(part, np.ndarray) for part in parts)
    ):
        raise DataError(
            f"`{name}` must be a tf.data.Dataset of batches, or a tuple of NumPy arrays.",
            received=f"{type(data).__name__} of {sorted({type(part).__name__ for part in parts})}",
            hint=ELEMENTS,
        )
    if any(part.ndim == 0 or part.dtype.kind not in "biufSU" for part in parts):
        raise DataError(
            f"`{name}` must hold arrays [examples, ...] of numbers or strings.",
            received=", ".join(f"{part.dtype}{list(part.shape)}" for part in parts),
        )
    lengths = [len(part) for part in parts]
    if 0 in lengths or len(set(lengths)) != 1:
        raise DataError(
            f"`{name}` must hold at least one example, and as many in each array.",
            received=f"arrays of length {lengths}",
        )
    size = BATCH_SIZE if batch_size is None else batch_size
    whole_number("batch_size", size, minimum=1)
    whole_number("seed", seed, minimum=0)
    arrays = tf.nest.map_structure(
        lambda part: part.astype(np.float32) if part.dtype == np.float64 else part, arrays
    )
    batches = array_batches(arrays, size, seed if shuffle else None)
    return batches.prefetch(tf.data.AUTOTUNE)


def array_batches(arrays: Any, batch_size: int, shuffle_seed: int | None) -> Any:
    """Batches of arrays, of which one copy is held; shuffled where a seed is given."""
    examples = len(tf.nest.flatten(arrays)[0])
    rows = tf.data.Dataset.range(examples)
    if shuffle_seed is not None:
        rows = shuffled(rows, examples, shuffle_seed)
    # An element, not captured by the function: that would be copied for each iterator.
    whole = tf.data.Dataset.from_tensors(arrays).repeat()

    def pick(rows: Any, arrays: Any) -> Any:
        return tf.nest.map_structure(lambda array: tf.gather(array, rows), arrays)

    pairs = tf.data.Dataset.zip((rows.batch(batch_size), whole))
    return pairs.map(pick, tf.data.AUTOTUNE, deterministic=True)


def skip_epochs(dataset: tf.data.Dataset, epochs: int) -> None:
    """Moves a data set's shuffling and augmentation on by `epochs`, without reading it.

    A data set that shuffles anew for each iterator draws the next order when an iterator is
    made. A freshly built one that skips k epochs goes on as if they had been read, so that a
    resumed training sees what an uninterrupted one would have seen. Holds for `load_dataset`,
    `as_batches`, and a user's `tf.data.Dataset` whose randomness is seeded and drawn by
    iterator, as `shuffle(seed=...)`; not for Python generators.

    Args:
        dataset: The object that training will read.
        epochs: How many iterators to skip.

    Raises:
        SettingError: `epochs` is not a whole number >= 0.

    Example:
        >>> skip_epochs(train, 5)
        >>> model.fit(train, initial_epoch=5, epochs=20)
    """
    whole_number("epochs", epochs, minimum=0)
    for _ in range(epochs):
        iter(dataset)


def free_of_global_seed(build: Callable[[], Any]) -> Any:
    """Builds a data set whose randomness depends on the seed it is given alone.

    tf.data mixes `tf.random.set_seed` into it. Inside a function the seed of the function's
    graph stands in for that.
    """

    def in_a_graph() -> Any:
        tf.compat.v1.set_random_seed(0)
        return build()

    # Concrete: of functions that are traced once each TensorFlow warns.
    return tf.function(in_a_graph, autograph=False).get_concrete_function()()


def shuffled(dataset: Any, buffer: int, seed: int) -> Any:
    """Shuffles anew for each iterator, as `seed` alone says, with a buffer of so many elements."""
    return free_of_global_seed(
        lambda: dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    )

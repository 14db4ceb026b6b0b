"""A user's data at the door: made into batches, and looked through before any training.

Every data set made here is a ``tf.data.Dataset`` of batches whose order depends on the seed
alone: the k-th iterator made from a freshly built one always gives the k-th order, whatever
``tf.random.set_seed`` was called with. A resumed run relies on it, see `skip_epochs`.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import DataError, SettingError

__all__ = [
    "BATCH_SIZE",
    "DataSummary",
    "array_batches",
    "as_batches",
    "check_whole",
    "free_of_global_seed",
    "shuffled",
    "skip_epochs",
    "summarise",
]

BATCH_SIZE = 128

_PATIENCE_SECONDS = 60.0  # after it, data of unknown length is suspected of having no end
_ELEMENTS = "Elements must be batches (inputs, labels), or with sample_weight as a third."


@dataclass(frozen=True)
class DataSummary:
    """What one pass over a data set saw.

    Attributes:
        examples: Examples in an epoch.
        steps: Batches in an epoch.
        labels: "integers" (class indices, `[batch]` or `[batch, 1]`), "one-hot" (rows that sum
            to 1, `[batch, classes]`; soft ones too) or "none".
        label_counts: Examples of each class (by the largest entry of one-hot labels); empty
            without labels.
        element: Dtypes and shapes, as "(float32[batch, 28, 28, 1], int64[batch])".
        has_sample_weight: Whether batches bring weights of their examples.
        identity: sha256 over `element`, `examples`, `steps` and, where the data was read to its
            end, `label_counts`. The same in each order and augmentation. It knows data by its
            make-up only: it sees neither a changed pixel nor two swapped labels.
    """

    examples: int
    steps: int
    labels: str
    label_counts: tuple[int, ...]
    element: str
    has_sample_weight: bool
    identity: str

    @property
    def classes_seen(self) -> int:
        """Number of classes that have an example."""
        return sum(count > 0 for count in self.label_counts)


def as_batches(
    data: Any, *, batch_size: int | None = None, seed: int = 0, name: str = "train"
) -> tf.data.Dataset:
    """Makes a `tf.data.Dataset` of batches of what a user gave.

    Args:
        data: A `tf.data.Dataset` of batches `(inputs,)`, `(inputs, labels)` or
            `(inputs, labels, sample_weight)`, which is handed on as it is (bare `inputs` become
            `(inputs,)`); or NumPy arrays `[examples, ...]`, alone or in such a tuple, of which
            float64 ones become float32, as everywhere in Keras. `inputs` may be a dict.
        batch_size: For arrays only; 128 when None.
        seed: For the order of arrays, which are shuffled where `name` is "train".
        name: What errors call the data.

    Raises:
        DataError: `data` is something else, empty or not batched, or its arrays differ in length.
        SettingError: `batch_size` or `seed` cannot be used.

    Example:
        >>> batches = as_batches((images, labels), batch_size=32)
    """
    if not isinstance(data, tf.data.Dataset):
        return _arrays_as_batches(data, batch_size, seed, name)
    if batch_size is not None:
        raise SettingError(
            f"`batch_size` must be None where `{name}` is a tf.data.Dataset, which is batched.",
            received=batch_size,
        )
    if not isinstance(data.element_spec, tuple):
        data = data.map(lambda inputs: (inputs,))
    spec = data.element_spec
    if not 1 <= len(spec) <= 3 or not all(
        isinstance(part, tf.TensorSpec) for part in (*tf.nest.flatten(spec[:1]), *spec[1:])
    ):
        raise DataError(f"`{name}` must hold dense tensors.", received=spec, hint=_ELEMENTS)
    if any(part.shape.rank == 0 for part in tf.nest.flatten(spec)):
        raise DataError(
            f"`{name}` must be batched.", received=spec, hint="Call `.batch(...)` on it."
        )
    return data


def _arrays_as_batches(data: Any, batch_size: int | None, seed: int, name: str) -> Any:
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
            hint=_ELEMENTS,
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
    check_whole("batch_size", size, 1)
    check_whole("seed", seed, 0)
    arrays = tf.nest.map_structure(
        lambda part: part.astype(np.float32) if part.dtype == np.float64 else part, arrays
    )
    batches = array_batches(arrays, size, seed if name == "train" else None)
    return batches.prefetch(tf.data.AUTOTUNE)


def summarise(
    data: Any,
    *,
    classes: int | None,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    name: str = "train",
    require_labels: bool = True,
    input_shape: tuple[int | None, ...] | None = None,
) -> DataSummary:
    """Reads one epoch of a data set, checks it, and says what it holds.

    It makes one iterator, so data that is shuffled anew for each goes on with its next order
    afterwards: a run that is to be resumed must do so each time, or not at all.

    Args:
        data: What `as_batches` takes.
        classes: Number of classes; None, where not known, sets labels no upper limit.
        batch_size: As in `as_batches`.
        steps_per_epoch: Batches in an epoch, for data without end. No more are read.
        name: What errors call the data.
        require_labels: Whether to refuse data without labels.
        input_shape: Of the model's only input, without the batch axis; None stands for an axis
            of any length. Not checked when None.

    Raises:
        DataError: `data` is empty, endless, shorter than `steps_per_epoch`, not batched, not
            finite, lacks labels, or does not fit `classes` or `input_shape`.
        SettingError: `steps_per_epoch` or `batch_size` cannot be used.

    Example:
        >>> summarise((images, labels), classes=2, input_shape=(8, 8, 1)).label_counts
        (178, 182)
    """
    dataset = as_batches(data, batch_size=batch_size, name=name)
    element = _describe(dataset.element_spec)
    if require_labels and len(dataset.element_spec) == 1:
        raise DataError(f"`{name}` must have labels.", received=element, hint=_ELEMENTS)
    length = int(dataset.cardinality())
    patience = math.inf
    if steps_per_epoch is not None:
        check_whole("steps_per_epoch", steps_per_epoch, 1)
        dataset = dataset.take(steps_per_epoch)
    elif length == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            f"`{name}` must end or `steps_per_epoch` must be given.", received="data without end"
        )
    elif length == tf.data.UNKNOWN_CARDINALITY:
        patience = time.monotonic() + _PATIENCE_SECONDS

    examples = steps = 0
    labels, counts = "none", Counter[int]()
    for inputs, *rest in dataset.as_numpy_iterator():
        size = _check_inputs(inputs, input_shape, name)
        if any(np.ndim(part) == 0 or len(part) != size for part in rest):
            raise DataError(
                f"`{name}` must have as many labels and weights as inputs in each batch.",
                received=f"{size} inputs with {[np.shape(part) for part in rest]}",
            )
        if rest and size:
            labels, indices = _class_indices(rest[0], classes, name)
            counts.update(indices.tolist())
        if len(rest) == 2 and (wrong := ~np.isfinite(rest[1]) | (rest[1] < 0)).any():
            raise DataError(
                f"`{name}` must have finite weights >= 0.", received=float(rest[1][wrong][0])
            )
        examples += size
        steps += 1
        if time.monotonic() > patience:
            patience = math.inf
            warnings.warn(
                f"`{name}` has not ended after {steps} batches and does not know its length. "
                "If it has no end, `steps_per_epoch` must be given.",
                stacklevel=2,
            )
    if examples == 0:
        raise DataError(f"`{name}` must hold at least one example.", received="an empty data set")
    if steps_per_epoch is not None and steps < steps_per_epoch:
        raise DataError(
            f"`{name}` must hold `steps_per_epoch` = {steps_per_epoch} batches.", received=steps
        )
    seen = () if labels == "none" else range(classes or max(counts) + 1)
    label_counts = tuple(counts[label] for label in seen)
    make_up: list[Any] = [element, examples, steps]
    if steps_per_epoch is None or steps == length:  # else the order decides on the counts
        make_up.append(label_counts)
    return DataSummary(
        examples=examples,
        steps=steps,
        labels=labels,
        label_counts=label_counts,
        element=element,
        has_sample_weight=len(dataset.element_spec) == 3,
        identity=hashlib.sha256(json.dumps(make_up).encode()).hexdigest(),
    )


def _describe(spec: Any) -> str:
    def one(part: Any) -> str:
        if part.shape.rank is None:
            return f"{part.dtype.name}[...]"
        axes = ["batch", *("any" if axis is None else str(axis) for axis in part.shape[1:])]
        return f"{part.dtype.name}[{', '.join(axes)}]"

    return str(tf.nest.map_structure(one, spec)).replace("'", "")


def _check_inputs(inputs: Any, input_shape: tuple[int | None, ...] | None, name: str) -> int:
    """Checks the inputs of one batch and returns how many examples it has."""
    parts = tf.nest.flatten(inputs)
    shapes = [np.shape(part) for part in parts]
    if input_shape is not None:
        axes = ["batch", *("any" if axis is None else str(axis) for axis in input_shape)]
        wanted = f"`{name}` must have inputs of the shape [{', '.join(axes)}]."
        if len(parts) != 1:
            raise DataError(wanted, received=f"{len(parts)} inputs of the shapes {shapes}")
        if _fits(shapes[0], input_shape):
            raise DataError(
                f"`{name}` must be batched.", received=shapes[0], hint="Call `.batch(...)` on it."
            )
        if not _fits(shapes[0][1:], input_shape):
            raise DataError(wanted, received=shapes[0])
    if any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise DataError(f"`{name}` must have inputs of the same length.", received=shapes)
    for part in parts:
        # min and max pass NaN on, and need no array of the size of the batch
        if part.size and part.dtype.kind == "f" and not np.isfinite([part.min(), part.max()]).all():
            raise DataError(f"`{name}` must have finite inputs.", received="NaN or infinity")
    return int(shapes[0][0])


def _fits(shape: tuple[int, ...], pattern: tuple[int | None, ...]) -> bool:
    return len(shape) == len(pattern) and all(
        want is None or have == want for have, want in zip(shape, pattern, strict=True)
    )


def _class_indices(labels: Any, classes: int | None, name: str) -> tuple[str, Any]:
    """What kind of labels a batch has, and their class indices `[batch]`."""
    limit = "" if classes is None else f" below {classes}"
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise DataError(
            f"`{name}` must have labels [batch] or [batch, classes], of numbers.",
            received=f"{labels.dtype}{list(labels.shape)}",
        )
    if labels.ndim == 2 and labels.shape[1] != 1:
        if classes is not None and labels.shape[1] != classes:
            raise DataError(
                f"`{name}` must have labels of {classes} classes.",
                received=f"one-hot labels of {labels.shape[1]}",
            )
        sums = labels.sum(axis=1, dtype=np.float64)
        wrong = (labels < 0).any(axis=1) | ~(np.abs(sums - 1) < 1e-3)
        if wrong.any():
            raise DataError(
                f"`{name}` must have one-hot labels >= 0 that sum to 1.",
                received=labels[wrong][0].tolist(),
            )
        return "one-hot", labels.argmax(axis=1)
    indices = labels.reshape(-1) + 0  # bool becomes a number
    wrong = ~(indices >= 0) | (indices != np.floor(indices)) | ~np.isfinite(indices)
    if classes is not None:
        wrong |= indices >= classes
    if wrong.any():
        raise DataError(
            f"`{name}` must have labels that are whole numbers from 0{limit}.",
            received=f"label {indices[wrong][0].item()}",
        )
    return "integers", indices.astype(np.int64)


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
    check_whole("epochs", epochs, 0)
    for _ in range(epochs):
        iter(dataset)


def free_of_global_seed(build: Callable[[], Any]) -> Any:
    """Builds a data set whose randomness depends on the seed it is given alone.

    tf.data mixes `tf.random.set_seed` into it. Inside a function the seed of the function's
    graph stands in for that.
    """

    @tf.function(autograph=False)
    def in_a_graph() -> Any:
        tf.compat.v1.set_random_seed(0)
        return build()

    return in_a_graph()


def shuffled(dataset: Any, buffer: int, seed: int) -> Any:
    """Shuffles anew for each iterator, as `seed` alone says, with a buffer of so many elements."""
    return free_of_global_seed(
        lambda: dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    )


def check_whole(name: str, value: Any, minimum: int) -> None:
    """Raises a `SettingError` unless `value` is a whole number of at least `minimum`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise SettingError(f"`{name}` must be a whole number >= {minimum}.", received=value)

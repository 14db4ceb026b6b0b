"""Stored targets, read back beside the examples they belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdistill._keras import tf
from tfdistill.data.batches import as_batches, shuffled
from tfdistill.errors import DataError
from tfdistill.losses import Shapes
from tfdistill.losses.base import Taught
from tfdistill.settings import whole_number
from tfdistill.targets.encoding import Encoding, Encodings
from tfdistill.targets.examples import Augment, example_ids, numbered, view_of
from tfdistill.targets.shards import Shard

__all__ = ["Rows", "StoredTargets", "unknown_examples"]

_SHUFFLE_BUFFER = 10_000
_UNKNOWN = "Every example must be one that targets were stored of."


@dataclass(frozen=True, eq=False)
class StoredTargets:
    """What a teacher said about each view of each training example; made by `store_targets`.

    Attributes:
        path: Where they are kept.
        examples: How many different examples they are of.
        views: Views of each.
        bytes: Their size on disk.
        seconds: What asking the teacher took, in all calls.
        divergence: Mean and largest KL divergence of the teacher's distribution from the stored
            one, over all views (with `top_k` the larger one over the temperatures); 0.0 where
            nothing was left out.
        readings: How often the data were read in this call.
        seen: Number of examples in the data when they were stored, and a sum of their hashes.
    """

    path: Path
    examples: int
    views: int
    bytes: int
    seconds: float
    divergence: tuple[float, float]
    readings: int
    seen: Mapping[str, Any]
    _data: Any
    _encoding: Encoding | Encodings
    _augment: Augment | None
    _seed: int
    _rows: Rows

    @property
    def shapes(self) -> Shapes:
        """Shapes of the logits and features, as every teacher has them."""
        return self._encoding.shapes

    def dataset(
        self, batch_size: int | None = None, *, shuffle: bool = False, seed: int | None = None
    ) -> Any:
        """The training examples with their targets, for `Distiller.fit`.

        Each iterator of it is an epoch: the k-th one that is read shows view k, and after the
        last view the first again. Where examples were given in an order of their own, they keep
        it unless they are shuffled here.

        Args:
            batch_size: Examples in a batch; as the data were given when not given.
            shuffle: Whether to shuffle anew for each epoch, with a buffer of 10 000 examples
                (arrays: of all).
            seed: For the order; the targets' own when not given.

        Returns:
            A `tf.data.Dataset` of `(Taught, labels)` or `(Taught, labels, sample_weight)`.

        Example:
            >>> distiller.fit(stored.dataset(batch_size=128, shuffle=True), epochs=40)
        """
        seed = self._seed if seed is None else whole_number("seed", seed, minimum=0)
        if batch_size is not None:
            whole_number("batch_size", batch_size, minimum=1)
        batches = as_batches(self._data, shuffle=False)
        if shuffle or batch_size is not None:
            size = batch_size or _first_size(batches)
            if not isinstance(self._data, tf.data.Dataset):
                batches = as_batches(self._data, batch_size=size, seed=seed, shuffle=shuffle)
            elif shuffle:
                batches = shuffled(batches.unbatch(), _SHUFFLE_BUFFER, seed).batch(size)
            else:
                batches = batches.rebatch(size)
        return self.attach(batches)

    def attach(self, batches: Any, first_epoch: int = 0, steps: int | None = None) -> Any:
        """Puts the targets beside examples that come in any order.

        Args:
            batches: `tf.data.Dataset` of batches `(inputs, ...)` of the examples that targets
                were stored of, not augmented.
            first_epoch: Number of the epoch that begins here; says which view it shows.
            steps: Batches of an epoch; `None` where each iterator that is read is one.

        Returns:
            The same with `Taught` in the place of `inputs`, augmented.

        Raises:
            tf.errors.OpError: While it is read: an example is not among those stored. Inside of
                `unknown_examples`, and so out of `Distiller.fit`, a `DataError`.
        """
        row = self._encoding.row
        names = row.names or ()
        readable = [_readable(row[name]) for name in names]

        def look_up(batch: Any, epoch: Any) -> Any:
            inputs, *rest = batch
            ids = example_ids(inputs)
            view = epoch % self.views
            found = tf.numpy_function(self._rows.read, [ids, view], readable, stateful=False)
            kept = {}
            for name, values in zip(names, found, strict=True):
                kept[name] = tf.ensure_shape(values, [None, *row[name].shape])
            seen = view_of(inputs, ids, view, self._augment, self._seed)
            return (Taught(seen, self._encoding.decode(kept)), *rest)

        pairs = numbered(batches, first_epoch, steps)
        taught = pairs.map(look_up, tf.data.AUTOTUNE, deterministic=True)
        return taught.prefetch(tf.data.AUTOTUNE)

    def __repr__(self) -> str:
        return (
            f"StoredTargets({str(self.path)!r}, examples={self.examples}, views={self.views}, "
            f"bytes={self.bytes})"
        )


@contextlib.contextmanager
def unknown_examples() -> Iterator[None]:
    """Raises the `DataError` of `Rows.read`, of which TensorFlow makes a text.

    Raises:
        DataError: An example was read that no targets are stored of.
    """
    try:
        yield
    except tf.errors.OpError as error:
        _, found, rest = error.message.partition(_UNKNOWN)
        if not found:
            raise
        raise DataError(found + rest.splitlines()[0]) from None


class Rows:
    """Rows of all shards, found by the number of their example."""

    def __init__(self, shards: Sequence[Shard], views: int, row: np.dtype[Any]) -> None:
        self._views = views
        self._row = row
        ids = [shard.ids for shard in shards]
        every = np.concatenate(ids) if ids else np.empty(0, np.int64)
        order = np.argsort(every, kind="stable")
        self._sorted = every[order]
        self.examples = len(every) and 1 + int(np.count_nonzero(np.diff(self._sorted)))
        self._place = order.astype(np.uint32 if len(order) < 2**32 else np.int64)
        self._shards = [shard.rows for shard in shards]
        self._starts = np.cumsum([0, *(len(each) for each in ids)])

    def read(self, ids: npt.NDArray[np.int64], view: int) -> list[npt.NDArray[Any]]:
        """The fields of the rows of one view of each example."""
        missing = len(ids)
        if self.examples:
            at = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
            missing = int(np.count_nonzero(self._sorted[at] != ids))
        if missing:
            raise DataError(
                _UNKNOWN,
                received=f"a batch of {len(ids)} examples, {missing} of them unknown",
                hint="Give td.store_targets all the data that are trained on: with no example "
                "left out by drop_remainder, all parts of several, and without random "
                "augmentation, which is passed to it as `augment`.",
            )
        places = self._place[at].astype(np.int64)
        shards = np.searchsorted(self._starts, places, side="right") - 1
        taken = np.empty(len(ids), self._row)
        for shard in np.unique(shards):
            here = shards == shard
            rows = (places[here] - self._starts[shard]) * self._views + view
            taken[here] = self._shards[shard][rows]
        names = self._row.names or ()
        return [_widened(np.ascontiguousarray(taken[name])) for name in names]


def _readable(field: np.dtype[Any]) -> Any:
    base = field.base
    return tf.int32 if base == np.uint16 else tf.as_dtype(base)


def _widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(np.int32) if values.dtype == np.uint16 else values


def _first_size(batches: Any) -> int:
    first = next(iter(batches), None)
    if first is None:
        raise DataError("`train` must hold at least one example.", received="an empty data set")
    return int(tf.nest.flatten(first)[0].shape[0])

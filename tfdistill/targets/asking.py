"""Asking a teacher about the examples that nothing is stored of yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdistill._keras import tf
from tfdistill.errors import DataError
from tfdistill.targets.encoding import Encoding
from tfdistill.targets.examples import Augment, example_ids, view_of
from tfdistill.targets.shards import Shard

__all__ = ["Asking", "Seen", "wanted", "worker_of"]


class Seen:
    """Batches `(ids, inputs)` of the data, counted as they are read."""

    def __init__(self, batches: Any) -> None:
        pairs = batches.map(lambda inputs, *_: (example_ids(inputs), inputs), tf.data.AUTOTUNE)
        self._pairs = pairs.prefetch(tf.data.AUTOTUNE)
        self._examples = 0
        self._sum = 0

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
        for tensor, inputs in self._pairs:
            ids = tensor.numpy()
            self._examples += len(ids)
            self._sum += int(ids.view(np.uint64).sum(dtype=np.uint64))
            yield ids, inputs

    def facts(self) -> dict[str, Any]:
        """How many examples there were, and a sum of their numbers: the same in each order.

        Raises:
            DataError: There was none.
        """
        if self._examples == 0:
            raise DataError("`train` must hold at least one example.", received="an empty data set")
        return {"examples": self._examples, "sum": f"{self._sum % 2**64:016x}"}


def wanted(
    seen: Seen, shards: Sequence[Shard], part: tuple[int, int]
) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
    """The examples of a part that are not stored yet, in batches as large as the data's."""
    known = np.sort(np.concatenate([np.empty(0, np.int64), *(shard.ids for shard in shards)]))
    size = 0
    waiting: list[Any] = []  # parts of batches, as NumPy arrays
    for ids, inputs in seen:
        size = max(size, len(ids))
        missing = ids.view(np.uint64) % np.uint64(part[1]) == part[0]
        if len(known):
            missing &= known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] != ids
        if missing.all() and not waiting:
            yield ids, inputs
        elif missing.any():
            kept = tf.nest.map_structure(lambda each, rows=missing: each.numpy()[rows], inputs)
            waiting.append((ids[missing], kept))
            if sum(len(each) for each, _ in waiting) >= size:
                joined = _joined(waiting)
                yield _rows(joined, slice(size))
                waiting = [_rows(joined, slice(size, None))]
    if any(len(ids) for ids, _ in waiting):
        yield _joined(waiting)


def _rows(batch: Any, rows: slice) -> Any:
    return tf.nest.map_structure(lambda each: each[rows], batch)


def _joined(batches: Sequence[Any]) -> Any:
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)


class Asking:
    """The teacher's forward pass over one view of a batch, on all replicas there are."""

    def __init__(
        self, teacher: Any, encoding: Encoding, augment: Augment | None, seed: int
    ) -> None:
        strategy = tf.distribute.get_strategy()
        # Of several workers each stores its own part by itself.
        self._strategy = (
            None if worker_of(strategy) or strategy.num_replicas_in_sync == 1 else strategy
        )

        @tf.function(reduce_retracing=True)
        def look(ids: Any, inputs: Any, view: Any) -> Any:
            with tf.device("CPU:0"):  # where tf.data will do it: to the last bit the same
                return view_of(inputs, ids, view, augment, seed)

        @tf.function(reduce_retracing=True)
        def ask(inputs: Any) -> Any:
            outputs = teacher(inputs)
            kept = encoding.encode(outputs)
            return kept, encoding.divergence(outputs, kept)

        self._look = look if augment is not None else lambda ids, inputs, view: inputs
        self._ask = ask

    def __call__(self, ids: Any, inputs: Any, view: int) -> Any:
        """Fields of a row `[batch, ...]` and divergences `[batch]`, as NumPy arrays."""
        inputs = self._look(ids, inputs, tf.constant(view, tf.int64))
        strategy = self._strategy
        if strategy is None or len(ids) < strategy.num_replicas_in_sync:
            return tf.nest.map_structure(np.asarray, self._ask(inputs))
        parts = np.array_split(np.arange(len(ids)), strategy.num_replicas_in_sync)

        def of_replica(context: Any) -> Any:
            rows = parts[context.replica_id_in_sync_group]
            return tf.nest.map_structure(lambda each: tf.gather(each, rows), inputs)

        given = strategy.experimental_distribute_values_from_function(of_replica)
        found = strategy.run(self._ask, args=(given,))
        return tf.nest.map_structure(
            lambda each: np.concatenate(
                [np.asarray(v) for v in strategy.experimental_local_results(each)]
            ),
            found,
        )


def worker_of(strategy: Any) -> tuple[int, int] | None:
    """Number of this worker, and of all, where a strategy has several."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or "worker" not in (cluster := resolver.cluster_spec()).jobs:
        return None
    workers = cluster.num_tasks("worker")
    return (int(resolver.task_id), workers) if workers > 1 else None

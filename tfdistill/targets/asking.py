"""Asking a teacher about the examples that nothing is stored of yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdistill._keras import tf
from tfdistill.errors import DataError
from tfdistill.targets.encoding import Encoding, Encodings
from tfdistill.targets.examples import Augment, Tally, example_ids, view_of
from tfdistill.targets.shards import Shard

__all__ = ["Asking", "Seen", "wait_for_workers", "wanted", "worker_of"]


class Seen:
    """Batches `(ids, inputs)` of the data, counted as they are read.

    Attributes:
        batch_size: Of the largest batch so far.
    """

    def __init__(self, batches: Any) -> None:
        pairs = batches.map(lambda inputs, *_: (example_ids(inputs), inputs), tf.data.AUTOTUNE)
        self._pairs = pairs.prefetch(tf.data.AUTOTUNE)
        self._tally = Tally()
        self.batch_size = 0

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
        for tensor, inputs in self._pairs:
            ids = tensor.numpy()
            self._tally.add(ids)
            self.batch_size = max(self.batch_size, len(ids))
            yield ids, inputs

    def facts(self) -> dict[str, Any]:
        """As of `Tally`.

        Raises:
            DataError: There was none.
        """
        facts = self._tally.facts()
        if facts["examples"] == 0:
            raise DataError("`train` must hold at least one example.", received="an empty data set")
        return facts


def wanted(
    seen: Seen, shards: Sequence[Shard], part: tuple[int, int]
) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
    """The examples of a part that are not stored yet, in batches as large as the data's."""
    known = np.sort(np.concatenate([np.empty(0, np.int64), *(shard.ids for shard in shards)]))
    waiting: list[Any] = []  # parts of batches, as NumPy arrays
    for ids, inputs in seen:
        missing = ids.view(np.uint64) % np.uint64(part[1]) == part[0]
        if len(known):
            missing &= known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] != ids
        if missing.all() and not waiting:
            yield ids, inputs
        elif missing.any():
            kept = tf.nest.map_structure(lambda each, rows=missing: each.numpy()[rows], inputs)
            waiting.append((ids[missing], kept))
            size = seen.batch_size
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
    """The teacher's forward pass over one view of a batch, on all replicas there are.

    Attributes:
        replicas: How many these are.
    """

    def __init__(
        self, teacher: Any, encoding: Encoding | Encodings, augment: Augment | None, seed: int
    ) -> None:
        strategy = tf.distribute.get_strategy()
        # Of several workers each stores its own part by itself.
        self._strategy = (
            None if worker_of(strategy) or strategy.num_replicas_in_sync == 1 else strategy
        )

        self.replicas = 1 if self._strategy is None else strategy.num_replicas_in_sync

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
        if strategy is None or len(ids) < self.replicas:
            return tf.nest.map_structure(np.asarray, self._ask(inputs))
        parts = np.array_split(np.arange(len(ids)), self.replicas)

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
    """Number of this worker, and of all, where each runs this program."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None  # a TPU's workers, too, have one program
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec()
    tasks = [
        (job, task)
        for job in ("chief", "worker")
        if job in cluster.jobs
        for task in range(cluster.num_tasks(job))
    ]
    if len(tasks) < 2:
        return None
    return tasks.index((resolver.task_type, int(resolver.task_id))), len(tasks)


def wait_for_workers() -> None:
    """Comes back when all workers of the strategy have come here."""

    @tf.function
    def meet() -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([]))

    tf.distribute.get_strategy().run(meet)

"""`store_targets`: the teacher's forward pass over the training data, once."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdistill._keras import tf
from tfdistill.data.batches import as_batches
from tfdistill.data.datasets import identity_of_augment
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.base import shown
from tfdistill.losses.layers import reads_weights
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.settings import is_number, whole_number
from tfdistill.targets.asking import Asking, Seen, wait_for_workers, wanted, worker_of
from tfdistill.targets.encoding import Encoding, Encodings
from tfdistill.targets.examples import (
    Augment,
    check_augment,
    random_inputs,
    varying_inputs,
)
from tfdistill.targets.shards import Shard, TargetsDirectory
from tfdistill.targets.stored import Rows, StoredTargets
from tfdistill.teachers import as_teacher, failures_named, identity_of_teacher
from tfdistill.terminal import Terminal

__all__ = ["store_targets"]

_SHARD_BYTES = 64 * 2**20
_SHARD_SECONDS = 60.0  # what a kill may cost
_DTYPES = ("float16", "float32")


def store_targets(
    teacher: Any,
    train: Any,
    path: str | os.PathLike[str],
    *,
    augment: Augment | None = None,
    views: int = 1,
    top_k: int | None = None,
    temperatures: Sequence[float] = (1.0, 4.0),
    layers: Sequence[str] = (),
    dtype: str = "float16",
    seed: int = 0,
    data_name: str | None = None,
    part: tuple[int, int] | None = None,
    shard_examples: int | None = None,
    overwrite: bool = False,
    verbose: int = 1,
) -> StoredTargets:
    """Keeps what a teacher says about each training example, so that it is asked only once.

    An example is known by a hash of its inputs, so `train` may come in any order. Killed and
    called again, it goes on at the next shard; a damaged shard is made again. Inside the scope
    of a `tf.distribute` strategy all its replicas are used. Of several workers of a
    `MultiWorkerMirroredStrategy` each stores the part of the examples that is its own, and all
    wait for the last.

    Args:
        teacher: As for `Distiller`.
        train: As for `Pipeline.run`, with an end, and not augmented.
        path: The directory to keep them in.
        augment: `augment(example, seed)` of one example's inputs and an int64 tensor `[2]`. Must
            keep shape and dtype, and draw random numbers from the seed alone, which comes from
            `seed`, the example and the view. `RandomShiftAndFlip()` is one. The student will see
            the very views that the teacher saw.
        views: How many views of each example; epochs walk through them.
        top_k: How many of the largest logits to keep; `None` for all. Of several outputs those that
            have no more are kept whole.
        temperatures: With `top_k`, the temperatures of the losses.
        layers: Names of the teacher's layers whose outputs losses read; `name:scores` for the
            scores of an attention layer.
        dtype: "float16" or "float32" for logits and features. Numbers, for `RegressionTargets`,
            need float32: float16 keeps the distance of each from the largest, to three digits.
        seed: Of the views.
        data_name: Name and version of the data. With it, targets that are all stored are taken
            without reading the data once to compare.
        part: `(which, of how many)` parts this call is to store, for several machines that share
            a disk. Other calls store the others, and each gets what is there.
        shard_examples: Examples after which a shard is written, in whole batches. By default
            64 MB, or what is stored in a minute.
        overwrite: Whether targets of another teacher, data set or settings in `path` give way.
        verbose: 0 for silence.

    Returns:
        The stored targets.

    Raises:
        SettingError: A setting is outside what it may be, or `augment` draws random numbers of
            its own.
        DataError: `train` is empty, endless, or has inputs of varying size.
        ModelError: The teacher cannot be used.
        TeacherError: It runs outside of TensorFlow and failed on a batch.
        RunDirectoryError: `path` holds targets of another teacher, data set or settings, is being
            written by another process, or is full.

    Example:
        >>> stored = td.store_targets(teacher, train, "saved_models/birds/targets",
        ...                           augment=td.RandomShiftAndFlip(), views=8)
        >>> distiller.fit(stored.dataset(batch_size=128, shuffle=True), epochs=40)

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent",
    section 3.1 (teacher and student see the same view); Shen & Xing 2022, "A Fast Knowledge
    Distillation Framework for Visual Recognition", section 3 (stored, and with few logits).
    """
    terminal = Terminal(verbose=verbose)
    views = whole_number("views", views, minimum=1)
    seed = whole_number("seed", seed, minimum=0)
    part_of_worker = worker_of(tf.distribute.get_strategy()) if part is None else None
    part = part_of_worker or _checked_part(part)
    if shard_examples is not None:
        whole_number("shard_examples", shard_examples, minimum=1)
    if dtype not in _DTYPES:
        raise SettingError(f"`dtype` must be one of {_DTYPES}.", received=dtype)
    if augment is None and views > 1:
        raise SettingError(
            "`views` must be 1 without `augment`: all would be alike.", received=views
        )
    if any(map(reads_weights, layers)):
        raise SettingError(
            "`layers` must be outputs or scores of layers, of which each example has its own.",
            received=[*layers],
            hint="Give a td.Distiller the data themselves, for losses of the teacher's weights.",
        )
    batches = as_batches(train, shuffle=False)
    varying = varying_inputs(batches)
    if varying:
        raise DataError(
            "`train` must have inputs of fixed sizes, for targets to be stored.",
            received=varying,
            hint="Pad or resize all examples to one size.",
        )
    if batches.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            "`train` must end, for targets to be stored.",
            received="data without end",
            hint="Leave out `repeat()`.",
        )
    check_augment(augment, batches.element_spec[0])
    examples = random_inputs(batches.element_spec[0])
    made = as_teacher(teacher, layers=tuple(layers), examples=examples)
    with failures_named(made):
        encoding = _encoding(_shapes(made(examples)), dtype, top_k, temperatures)
    belongs_to = {
        "teacher": fingerprint(identity_of_teacher(teacher, examples=examples)),
        "data_name": data_name,
        "inputs": str(batches.element_spec[0]),
        "augment": None if augment is None else fingerprint(identity_of_augment(augment)),
        "views": views,
        "seed": seed if augment is not None else None,
        "dtype": dtype,
        "top_k": top_k,
        "temperatures": encoding.temperatures,
        "layers": [*layers],
    }
    readings = 0
    with TargetsDirectory(path, belongs_to, part, terminal.warn, overwrite) as directory:
        shards = directory.shards()
        finished = directory.finished(shards)
        if finished is not None and data_name is None:
            readings += 1
            facts = _facts_of(batches, terminal)
            if facts != finished:
                if not overwrite:
                    differ = {f"data, {n}": (finished.get(n), facts[n]) for n in facts}
                    raise directory.stale(differ)
                directory.clear()
                shards, finished = [], None
        if finished is None:
            readings += 1
            seen = Seen(batches)
            asking = Asking(made, encoding, augment, seed)
            writer = _Writer(directory, encoding, views, shard_examples)
            with (
                failures_named(made, "storing began", replicas=asking.replicas * views),
                terminal.progress("storing targets", unit="examples") as work,
            ):
                steps, stored = int(batches.cardinality()), sum(s.examples for s in shards)
                for ids, inputs in wanted(seen, shards, part):
                    if work.total is None and steps > 0:
                        work.total = max(0, steps * seen.batch_size - stored) // part[1]
                    began = time.monotonic()
                    said = [asking(ids, inputs, view) for view in range(views)]
                    writer.add(ids, said, time.monotonic() - began)
                    work.advance(len(ids))
                writer.flush()
            shards += writer.made
            finished = seen.facts()
            directory.finish(shards, finished)
    if part_of_worker is not None:
        wait_for_workers()
        shards = directory.shards()  # now those of the others, too
    rows = Rows(shards, views, encoding.row)
    return StoredTargets(
        path=Path(path),
        examples=rows.examples,
        views=views,
        bytes=sum(shard.bytes for shard in shards),
        seconds=sum(shard.facts["seconds"] for shard in shards),
        divergence=_divergence(shards),
        readings=readings,
        seen=finished,
        _data=train,
        _encoding=encoding,
        _augment=augment,
        _seed=seed,
        _rows=rows,
    )


def _facts_of(batches: Any, terminal: Terminal) -> dict[str, Any]:
    """Reads the data, to be compared with what the stored targets are of."""
    seen = Seen(batches)
    with terminal.progress("comparing the data with those of the stored targets") as work:
        for ids, _ in seen:
            work.advance(len(ids))
    return seen.facts()


def _divergence(shards: Sequence[Shard]) -> tuple[float, float]:
    """Mean and largest divergence over all views that are stored."""
    rows = sum(len(shard.rows) for shard in shards)
    total = sum(shard.facts["divergence_sum"] for shard in shards)
    return total / max(1, rows), max((s.facts["divergence_max"] for s in shards), default=0.0)


class _Writer:
    """Gathers rows, and writes a shard whenever there are enough."""

    def __init__(
        self,
        directory: TargetsDirectory,
        encoding: Encoding | Encodings,
        views: int,
        shard_examples: int | None,
    ) -> None:
        self.made: list[Shard] = []
        self._directory, self._row, self._views = directory, encoding.row, views
        by_bytes = max(1, _SHARD_BYTES // (encoding.row.itemsize * views))
        self._most = by_bytes if shard_examples is None else shard_examples
        self._seconds = math.inf if shard_examples else _SHARD_SECONDS
        self._begin()

    def _begin(self) -> None:
        self._ids: list[npt.NDArray[np.int64]] = []
        self._rows: list[npt.NDArray[Any]] = []
        self._divergence = [0.0, 0.0]
        self._asked = 0.0
        self._began = time.monotonic()

    def add(self, ids: npt.NDArray[np.int64], views: Sequence[Any], seconds: float) -> None:
        """Takes what the teacher said about each view of a batch, and how long it took."""
        self._asked += seconds
        rows = np.empty((len(ids), self._views), self._row)
        for view, (kept, divergence) in enumerate(views):
            for name, values in kept.items():
                if not np.isfinite(values).all():
                    raise self._not_finite(name, len(ids))
                rows[name][:, view] = values
            if not np.isfinite(divergence).all():  # a logit of -infinity, kept as a finite one
                raise self._not_finite("logits", len(ids))
            self._divergence[0] += float(divergence.sum(dtype=np.float64))
            self._divergence[1] = max(self._divergence[1], float(divergence.max()))
        self._ids.append(ids)
        self._rows.append(rows)
        stored = sum(map(len, self._ids))
        if stored >= self._most or time.monotonic() - self._began > self._seconds:
            self.flush()

    def _not_finite(self, name: str, batch: int) -> ModelError:
        return ModelError(
            f"`teacher` must give logits and features that are finite in {self._row[name].base}.",
            received=f"NaN or infinity in {name} of a batch of {batch} examples",
            hint='dtype="float32" holds larger features.' if name.startswith("feature") else "",
        )

    def flush(self) -> None:
        """Writes what is gathered."""
        if self._ids:
            facts = {
                "seconds": self._asked,
                "divergence_sum": self._divergence[0],
                "divergence_max": self._divergence[1],
            }
            rows = np.concatenate(self._rows).reshape(-1)
            self.made.append(self._directory.add(np.concatenate(self._ids), rows, facts))
            self._begin()


def _checked_part(part: Any) -> tuple[int, int]:
    """The part to store: as given, or all."""
    if part is None:
        return 0, 1
    if not isinstance(part, tuple) or len(part) != 2:
        raise SettingError("`part` must be (which, of how many).", received=part)
    which, of = (whole_number("part", each, minimum=0) for each in part)
    if which >= of:
        raise SettingError("`part` must be (which, of how many), counted from 0.", received=part)
    return which, of


def _shapes(said: Outputs) -> Shapes:
    """Measured: a teacher may leave sizes open that these data have."""
    features = {name: tuple(values.shape[1:]) for name, values in said.features.items()}
    logits = tf.nest.map_structure(lambda values: tuple(values.shape[1:]), said.logits)
    return Shapes(logits, features)


def _encoding(
    shapes: Any, dtype: str, top_k: int | None, temperatures: Sequence[float]
) -> Encoding | Encodings:
    if not shapes.names:
        return _encoding_of_one(shapes, dtype, top_k, temperatures)
    most = max(int(shapes.of(name).logits[0]) for name in shapes.names)
    outputs: dict[str, Encoding] = {}
    for name in sorted(shapes.names):  # whatever order a teacher says them in
        own = shapes.of(name) if not outputs else shapes.of(name)._replace(features={})
        kept_whole = top_k is not None and own.logits[0] <= top_k < most
        outputs[name] = _encoding_of_one(own, dtype, None if kept_whole else top_k, temperatures)
    return Encodings(outputs)


def _encoding_of_one(
    shapes: Any, dtype: str, top_k: int | None, temperatures: Sequence[float]
) -> Encoding:
    if len(shapes.logits) != 1:
        raise ModelError(
            "`teacher` must have logits [batch, classes].",
            received=f"logits {shown(shapes.logits)}",
        )
    classes = int(shapes.logits[0])
    if top_k is None:
        return Encoding(classes, dtype, features=dict(shapes.features))
    whole_number("top_k", top_k, minimum=1)
    if top_k >= classes:
        raise SettingError(
            f"`top_k` must be less than the number of classes, {classes}.",
            received=top_k,
            hint="Leave it out to keep all logits.",
        )
    if not temperatures or not all(is_number(t) and 0 < t < math.inf for t in temperatures):
        raise SettingError("`temperatures` must be finite numbers > 0.", received=temperatures)
    named = tuple(dict.fromkeys(float(t) for t in temperatures))
    return Encoding(classes, dtype, top_k, named, dict(shapes.features))

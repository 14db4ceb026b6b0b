"""One look at a user's data before any training: what it holds, and whether it fits."""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.data.batches import ELEMENTS, as_batches
from tfdistill.errors import DataError
from tfdistill.named import Kind, by_name, one_or_all
from tfdistill.settings import whole_number

__all__ = ["DataSummary", "content_of", "require_same_each_time", "summarise"]

_PATIENCE_SECONDS = 60.0  # after it, data of unknown length is suspected of having no end


@dataclass(frozen=True)
class DataSummary:
    """What one pass over a data set saw.

    Attributes:
        examples: Examples in an epoch.
        steps: Batches in an epoch.
        labels: "integers" (class indices, `[batch]` or `[batch, 1]`), "one-hot" (rows that sum
            to 1, `[batch, classes]`; soft ones too), "multi-hot" (rows of numbers in [0, 1], one
            for each of several labels that may be true together), "numbers" (`[batch]` or
            `[batch, numbers]`) or "none". Of several outputs by name, like the counts.
        label_counts: Examples of each class (by the largest entry of one-hot labels); of multi-hot
            rows, for each label how many examples lack it and how many have it; of numbers how many
            examples have them; empty without labels. Examples without a label are in none.
        element: Dtypes and shapes, as "(float32[batch, 28, 28, 1], int64[batch])".
        has_sample_weight: Whether batches bring weights of their examples.
        identity: sha256 over `element`, `examples`, `steps` and, where the data was read to its
            end, `label_counts`. The same in each order and augmentation.
        content: sha256 over all values that were read; in any order, unless that was to count.
    """

    examples: int
    steps: int
    labels: Any
    label_counts: Any
    element: str
    has_sample_weight: bool
    identity: str
    content: str

    @property
    def classes_seen(self) -> Any:
        """Number of classes, or labels, that have an example; of several outputs by name."""
        counts = by_name(self.label_counts).items()
        return one_or_all({name: sum(n > 0 for n in _of_each(each)) for name, each in counts})

    @property
    def labelled(self) -> Any:
        """Number of examples that have a label; of several outputs by name."""
        kinds, counts = by_name(self.labels), by_name(self.label_counts)
        return one_or_all(
            {n: sum(each[0] if kinds[n] == "multi-hot" else each) for n, each in counts.items()}
        )


def _of_each(counts: Any) -> list[int]:
    """Examples of each class or label."""
    return [count if isinstance(count, int) else count[1] for count in counts]


def summarise(
    data: Any,
    *,
    classes: int | Mapping[str, int | None] | None,
    kind: Kind | Mapping[str, Kind] = "classes",
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    name: str = "train",
    require_labels: bool | Collection[str] = True,
    unlabelled: float | Mapping[str, float | None] | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    ordered: bool = False,
    also: Callable[[Any], None] = lambda inputs: None,
) -> DataSummary:
    """Reads one epoch of a data set, checks it, and says what it holds.

    It makes one iterator, so data that is shuffled anew for each goes on with its next order
    afterwards: a run that is to be resumed must do so each time, or not at all.

    Args:
        data: What `as_batches` takes.
        classes: Number of classes; None, where not known, sets labels no upper limit. Of several
            outputs by name; labels, and sample weights that differ, are by name, too.
        kind: "labels" where labels in rows are of several that may be true together, `classes` of
            them; "numbers" where they are so many numbers. Of several outputs by name.
        batch_size: As in `as_batches`.
        steps_per_epoch: Batches in an epoch, for data without end. No more are read.
        name: What errors call the data.
        require_labels: Whether to refuse data without labels; or of which outputs.
        unlabelled: What stands for the label of an example that has none, see `Distiller`; `None`
            where each has one. Of several outputs by name.
        input_shape: Of the model's only input, without the batch axis; None stands for an axis
            of any length. Not checked when None.
        ordered: Whether the order of the examples counts for `content`.
        also: Called with the inputs of each batch, as NumPy arrays.

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
        raise DataError(f"`{name}` must have labels.", received=element, hint=ELEMENTS)
    kinds = _kinds(dataset, classes, kind, name, unlabelled)
    for output in require_labels if not isinstance(require_labels, bool) else ():
        if output in kinds and output not in dataset.element_spec[1]:
            raise DataError(
                f"`{name}` must have labels for the output {output!r}.",
                received=f"labels for {', '.join(dataset.element_spec[1])}",
                hint="Its `label_loss_weight` is > 0, or `train` has such labels.",
            )
    length = int(dataset.cardinality())
    patience = math.inf
    if steps_per_epoch is not None:
        whole_number("steps_per_epoch", steps_per_epoch, minimum=1)
        dataset = dataset.take(steps_per_epoch)
    elif length == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            f"`{name}` must end or `steps_per_epoch` must be given.", received="data without end"
        )
    elif length == tf.data.UNKNOWN_CARDINALITY:
        patience = time.monotonic() + _PATIENCE_SECONDS

    examples = steps = 0
    content = _Content(ordered)
    for inputs, *rest in dataset.as_numpy_iterator():
        size = _check_inputs(inputs, input_shape, name)
        parts = tf.nest.flatten(rest)
        if any(np.ndim(part) == 0 or len(part) != size for part in parts):
            raise DataError(
                f"`{name}` must have as many labels and weights as inputs in each batch.",
                received=f"{size} inputs with {[np.shape(part) for part in parts]}",
            )
        if rest and size:
            for output, labels in by_name(rest[0]).items():
                kinds[output].add(labels)
        for weights in tf.nest.flatten(rest[1:]):
            if (wrong := ~np.isfinite(weights) | (weights < 0)).any():
                raise DataError(
                    f"`{name}` must have finite weights >= 0.", received=float(weights[wrong][0])
                )
        content.add((inputs, *rest))
        also(inputs)
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
    label_counts = one_or_all({n: kind.label_counts(examples) for n, kind in kinds.items()})
    make_up: list[Any] = [element, examples, steps]
    if steps_per_epoch is None or steps == length:  # else the order decides on the counts
        make_up.append(label_counts)
    return DataSummary(
        examples=examples,
        steps=steps,
        labels=one_or_all({output: kind.labels for output, kind in kinds.items()}),
        label_counts=label_counts,
        element=element,
        has_sample_weight=len(dataset.element_spec) == 3,
        identity=hashlib.sha256(json.dumps(make_up).encode()).hexdigest(),
        content=content.digest(),
    )


class _Labels:
    """What labels of one output are, and how many of each class there are."""

    def __init__(
        self,
        classes: int | None,
        kind: Kind,
        name: str,
        unlabelled: float | None,
        output: str,
    ) -> None:
        self.labels = "none"
        self._counts = Counter[int]()
        self._labelled = 0
        self._classes, self._name, self._unlabelled = classes, name, unlabelled
        self._kind = kind
        self._who = f"`{name}`, for the output {output!r}," if output else f"`{name}`"

    def add(self, labels: Any) -> None:
        """Takes those of a batch."""
        labels = _labels_there_are(labels, self._name, self._unlabelled, who=self._who)
        self._labelled += len(labels)
        if self._kind == "numbers":
            self.labels = "numbers"
            _check_numbers(labels, self._classes, self._name, who=self._who)
            return
        if self._kind == "labels" and labels.ndim == 2 and labels.shape[1] != 1:
            self.labels = "multi-hot"
            indices = _labels_of_rows(labels, self._classes, who=self._who)
        else:
            self.labels, indices = _class_indices(labels, self._classes, self._name, who=self._who)
        self._counts.update(indices.tolist())

    def label_counts(self, examples: int) -> tuple[Any, ...]:
        """Of each class, when all examples, so many, were read."""
        if self.labels == "none":
            return ()
        if not self._labelled:
            raise DataError(
                f"{self._who} must have a label for some of its examples, or no labels at all.",
                received=f"unlabelled={self._unlabelled} for all {examples}",
                hint="Give the inputs alone, and label_loss_weight=0.",
            )
        if self.labels == "numbers":
            return (self._labelled,)
        counts = tuple(self._counts[n] for n in range(self._classes or max(self._counts) + 1))
        if self.labels == "multi-hot":
            return tuple((self._labelled - count, count) for count in counts)
        return counts


def _kinds(dataset: Any, classes: Any, kind: Any, name: str, unlabelled: Any) -> dict[str, _Labels]:
    """By output; of one output under the name ""."""
    several = isinstance(classes, Mapping)
    spec = dataset.element_spec
    for part, what in zip(spec[1:], ("labels", "sample_weight"), strict=False):
        if isinstance(part, Mapping) and not several:
            raise DataError(
                f"`{name}` must have one tensor of {what}, for a student with one output.",
                received=f"{what} by name: {', '.join(part)}",
                hint=ELEMENTS,
            )
    marks, kinds = by_name(unlabelled), by_name(kind)
    return {
        output: _Labels(count, kinds.get(output, "classes"), name, marks.get(output), output)
        for output, count in by_name(classes).items()
    }


def content_of(data: Any) -> str:
    """What `DataSummary.content` is for the data, in any order; reads all of it."""
    content = _Content(ordered=False)
    for batch in data.as_numpy_iterator():
        content.add(batch)
    return content.digest()


def require_same_each_time(data: Any, *, name: str) -> None:
    """Refuses data that comes in another order, or with other values, each time it is read.

    Predictions are compared example by example, so everything that is measured on such data
    would be wrong. Looks at the first batch only.

    Args:
        data: Batches.
        name: What the error calls it.

    Raises:
        DataError: Two iterators begin differently.
    """
    first, second = (tf.nest.flatten(next(data.take(1).as_numpy_iterator(), ())) for _ in range(2))
    if not all(map(np.array_equal, first, second)):
        raise DataError(
            f"`{name}` must be the same each time it is read.",
            received="another first batch at the second reading",
            hint="Leave out `shuffle` and random augmentation, or give them a seed and "
            "`reshuffle_each_iteration=False`.",
        )


class _Content:
    """A hash over examples; in any order, unless it counts."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._sum = 0

    def add(self, batch: Any) -> None:
        parts = [np.ascontiguousarray(part) for part in tf.nest.flatten(batch)]
        for row in range(len(parts[0])):
            digest = hashlib.sha256()
            for part in parts:
                value = part[row]
                is_text = part.dtype.kind == "O"
                digest.update(
                    repr(np.asarray(value).tolist()).encode() if is_text else value.tobytes()
                )
            number = int.from_bytes(digest.digest(), "big")
            # An odd factor makes a sum that depends on the order; 2^256 keeps it short.
            self._sum = (self._sum * (3 if self._ordered else 1) + number) % 2**256

    def digest(self) -> str:
        return f"{self._sum:064x}"


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


def _labels_there_are(labels: Any, name: str, unlabelled: float | None, *, who: str) -> Any:
    """The labels of a batch, without those that are missing."""
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise DataError(
            f"{who} must have labels [batch] or [batch, classes], of numbers.",
            received=f"{labels.dtype}{list(labels.shape)}",
        )
    if unlabelled is not None:
        if unlabelled == 0 and not (labels.ndim == 2 and labels.shape[1] != 1):
            raise DataError(
                f"{who} must have one-hot labels for unlabelled=0.",
                received="class numbers, of which 0 is the first",
                hint="Pass unlabelled=-1, and -1 in the data.",
            )
        if unlabelled != 0 and labels.dtype.kind not in ("f" if np.isnan(unlabelled) else "fi"):
            raise DataError(
                f"{who} must have labels of a type that holds unlabelled={unlabelled}.",
                received=labels.dtype.name,
                hint="NaN needs floats, -1 floats or signed integers: cast them.",
            )
        missing = np.isnan(labels) if np.isnan(unlabelled) else labels == unlabelled
        labels = labels[~missing.reshape(len(labels), -1).all(axis=1)]
    return labels


def _labels_of_rows(labels: Any, count: int | None, *, who: str) -> Any:
    """The numbers of the labels that the examples of a batch have, one after the other."""
    if count is not None and labels.shape[1] != count:
        raise DataError(
            f"{who} must have a row of {count} labels for each example.",
            received=f"rows of {labels.shape[1]}",
        )
    wrong = ~((labels >= 0) & (labels <= 1)).all(axis=1)  # NaN, too
    if wrong.any():
        raise DataError(
            f"{who} must have labels in [0, 1], for an output of several that may be true "
            "together.",
            received=labels[wrong][0].tolist(),
            hint="1 is yes, 0 no. Examples without labels are trained on with "
            "td.Distillation(unlabelled=...): all labels of such a row are -1, or NaN.",
        )
    return np.nonzero(labels > 0.5)[1]


def _check_numbers(labels: Any, count: int | None, name: str, *, who: str) -> None:
    """Refuses labels that are not so many finite numbers for each example."""
    found = labels.shape[1] if labels.ndim == 2 else 1
    if count is not None and found != count:
        raise DataError(
            f"{who} must have {count} numbers for each example, as labels.",
            received=f"labels {['batch', *labels.shape[1:]]}",
            hint="td.losses.RegressionTargets says that the outputs are numbers. Where they are of "
            "classes, td.losses.LogitsMSE is its formula for logits.",
        )
    if not np.isfinite(labels).all():
        raise DataError(
            f"{who} must have labels that are finite numbers.",
            received=labels[~np.isfinite(labels)][0].item(),
            hint="Examples of which no number is known are trained on with "
            "td.Distillation(unlabelled=float('nan'))."
            if name == "train"
            else "Leave examples without a label out.",
        )


def _class_indices(labels: Any, classes: int | None, name: str, *, who: str) -> tuple[str, Any]:
    """What kind of labels a batch has, and the class indices of them."""
    limit = "" if classes is None else f" below {classes}"
    if labels.ndim == 2 and labels.shape[1] != 1:
        if classes is not None and labels.shape[1] != classes:
            raise DataError(
                f"{who} must have labels of {classes} classes.",
                received=f"one-hot labels of {labels.shape[1]}",
            )
        sums = labels.sum(axis=1, dtype=np.float64)
        wrong = (labels < 0).any(axis=1) | ~(np.abs(sums - 1) < 1e-3)
        if wrong.any():
            raise DataError(
                f"{who} must have one-hot labels >= 0 that sum to 1.",
                received=labels[wrong][0].tolist(),
                hint="Labels that may be true together need a student that ends in sigmoids there, "
                "or td.losses.BinaryTargets.",
            )
        return "one-hot", labels.argmax(axis=1)
    indices = labels.reshape(-1) + 0  # bool becomes a number
    wrong = ~(indices >= 0) | (indices != np.floor(indices)) | ~np.isfinite(indices)
    if classes is not None:
        wrong |= indices >= classes
    if wrong.any():
        raise DataError(
            f"{who} must have labels that are whole numbers from 0{limit}.",
            received=f"label {indices[wrong][0].item()}",
            hint="Where labels are numbers, td.losses.RegressionTargets teaches them."
            if np.isfinite(indices[wrong][0]) and indices[wrong][0] % 1
            else "Examples without a label are trained on with td.Distillation(unlabelled=...)."
            if name == "train"
            else "Leave examples without a label out.",
        )
    return "integers", indices.astype(np.int64)

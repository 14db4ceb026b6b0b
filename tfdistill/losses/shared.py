"""What the formulas share: pairs of tensors, binary logits, class numbers, means over steps."""

from __future__ import annotations

from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import DataError, ModelError

__all__ = [
    "class_numbers",
    "mean_over_steps",
    "pair",
    "rows",
    "same_places",
    "unit_vectors",
    "unmasked",
    "with_two_classes",
]


def pair(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Both as float32, the teacher without gradient.

    Raises:
        ModelError: Their known shapes differ.
    """
    teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
    student = tf.cast(student, tf.float32)
    # TensorFlow would broadcast [batch, 1] against [batch, classes] and teach nonsense.
    if not teacher.shape.is_compatible_with(student.shape):
        raise ModelError(
            "The student's output must have the shape of the teacher's.",
            received=f"teacher {teacher.shape}, student {student.shape}",
            hint="Give both the same classes, or name layers of the same shape.",
        )
    return teacher, student


def with_two_classes(logits: Any) -> Any:
    """`[batch, ..., 1]` as `[batch, ..., 2]` with the same probabilities; others as they are."""
    if logits.shape[-1] != 1:
        return logits
    return tf.concat([tf.zeros_like(logits), logits], axis=-1)


def class_numbers(labels: Any, logits: Any) -> Any:
    """Labels as numbers of classes.

    Args:
        labels: Class numbers `[batch, ...]` or `[batch, ..., 1]`, or one-hot rows
            `[batch, ..., classes]`, of which the largest counts. Of soft labels of a single unit
            the nearer class.
        logits: `[batch, ..., classes]`.

    Returns:
        int32 `[batch, ...]`.

    Raises:
        DataError: They are neither.
    """
    labels = tf.convert_to_tensor(labels)
    shape, rank = labels.shape, logits.shape.rank
    if shape.rank == rank and shape[-1] == 1:
        labels = labels[..., 0]
    elif shape.rank == rank and shape[-1] == logits.shape[-1]:
        labels = tf.argmax(labels, axis=-1)
    elif shape.rank is None or shape.rank != rank - 1:
        raise DataError(
            "`labels` must be class numbers or one-hot rows, for a loss that reads them.",
            received=f"labels {shape}, logits {logits.shape}",
            hint="Give integers [batch, ...], or rows of as many columns as there are classes.",
        )
    return tf.cast(tf.round(labels) if labels.dtype.is_floating else labels, tf.int32)


def unmasked(values: Any, mask: Any = ()) -> Any:
    """Which elements of `values` count.

    Args:
        values: `[batch, ...]`.
        mask: Bool `[batch]`, `[batch, steps]`, ... up to the rank of `values`; True counts.
            `()`: all of them.

    Returns:
        Bool, the shape of `values`.
    """
    if isinstance(mask, tuple):
        return tf.ones_like(values, tf.bool)
    mask = tf.cast(mask, tf.bool)
    while mask.shape.rank < values.shape.rank:
        mask = mask[..., tf.newaxis]
    return tf.broadcast_to(mask, tf.shape(values))


def mean_over_steps(values: Any, mask: Any = ()) -> Any:
    """The mean of each example's values.

    Args:
        values: `[batch, ...]`, one for each step.
        mask: As for `unmasked`. An example without any step that counts is 0.

    Returns:
        `[batch]`.
    """
    if values.shape.rank == 1:
        return values
    axes = list(range(1, values.shape.rank))
    if isinstance(mask, tuple):
        return tf.reduce_mean(values, axis=axes)
    counted = unmasked(values, mask)
    total = tf.reduce_sum(tf.where(counted, values, 0.0), axis=axes)
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(counted, tf.float32), axis=axes))


def rows(teacher: Any, student: Any) -> tuple[Any, Any]:
    """The features of each example as one vector, float32 `[batch, size]`, the teacher's fixed.

    Args:
        teacher: `[batch, ...]`.
        student: `[batch, ...]`, of any size.
    """
    teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
    student = tf.cast(student, tf.float32)

    def flat(values: Any) -> Any:
        sizes = values.shape[1:]
        known = sizes.num_elements()
        size = tf.reduce_prod(tf.shape(values)[1:]) if known is None else known
        return tf.reshape(values, [tf.shape(values)[0], size])  # -1 is no size of an empty batch

    return flat(teacher), flat(student)


def unit_vectors(values: Any) -> Any:
    """Divided by their length over the last axis, at any scale; zeros stay, without gradient."""
    # Their length would overflow or vanish when squared. The direction does not depend on the
    # divisor, so that it needs no gradient.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(values), axis=-1, keepdims=True))
    return tf.math.l2_normalize(tf.math.divide_no_nan(values, largest), axis=-1)


def same_places(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Both at the smaller of their two sizes on each spatial axis, by means over what is covered.

    Args:
        teacher: `[batch, height, width, channels]`, or with other spatial axes, two or more.
        student: The same rank. Where there are fewer, as in `[batch, steps, width]`, both are left
            as they are.
    """
    axes = range(1, student.shape.rank - 1)
    for axis in axes if len(axes) > 1 and teacher.shape.rank == student.shape.rank else ():
        theirs, ours = teacher.shape[axis], student.shape[axis]
        if theirs is not None and theirs == ours:
            continue
        size = tf.minimum(tf.shape(teacher)[axis], tf.shape(student)[axis])
        known = min(theirs, ours) if theirs and ours else None
        if theirs is None or theirs != known:
            teacher = _averaged(teacher, axis, size, known)
        if ours is None or ours != known:
            student = _averaged(student, axis, size, known)
    return teacher, student


def _averaged(values: Any, axis: int, size: Any, known: int | None) -> Any:
    places = tf.cast(tf.shape(values)[axis], tf.float32)
    step = places / tf.cast(size, tf.float32)
    begin = tf.cast(tf.range(size), tf.float32)[:, tf.newaxis] * step
    place = tf.range(tf.shape(values)[axis], dtype=tf.int32)
    place = tf.cast(place, tf.float32)[tf.newaxis]
    covered = tf.minimum(begin + step, place + 1.0) - tf.maximum(begin, place)
    shares = tf.maximum(covered, 0.0) / step  # [size, places]
    rank = values.shape.rank
    back = [*range(axis), rank - 1, *range(axis, rank - 1)]
    resized = tf.transpose(tf.tensordot(values, shares, [[axis], [1]]), back)
    shape = values.shape.as_list()
    return tf.ensure_shape(resized, [*shape[:axis], known, *shape[axis + 1 :]])

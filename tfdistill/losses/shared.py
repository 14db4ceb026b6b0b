"""What the formulas share: pairs of tensors, binary logits, class numbers, means over steps."""

from __future__ import annotations

from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import DataError, ModelError

__all__ = ["class_numbers", "mean_over_steps", "pair", "unmasked", "with_two_classes"]


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
            `[batch, ..., classes]`, of which the largest counts.
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
    return tf.cast(labels, tf.int32)


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

"""The label loss: any loss that Keras knows, per example and fit for what the student returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, SettingError
from tfdistill.losses.shared import mean_over_steps

LabelLoss = Callable[..., tf.Tensor]


def per_example_label_loss(loss: Any, *, activation: str) -> LabelLoss:
    """Makes a per-example function of a Keras loss.

    Args:
        loss: A name, a tf_keras `Loss`, or a function of `(labels, predictions)`. Where Keras' own
            loss is given by name or as a function, it reads what the student returns.
        activation: What the student ends in: "linear", "softmax" or "sigmoid".

    Returns:
        A function of labels `[batch, ...]` and predictions `[batch, classes]` to float32
        `[batch]`, not averaged over the batch. A third argument, a mask as in `Outputs`, says which
        time steps count in the mean of an example.

    Raises:
        SettingError: The loss reads probabilities where the student returns logits or the other
            way round, or it sums over the batch; or, when called, it has averaged over it.
    """
    returns_logits = activation == "linear"
    if isinstance(loss, str):
        loss = tf_keras.losses.get(loss)  # a function, or a Loss with Keras' defaults
        if isinstance(loss, tf_keras.losses.Loss) and "from_logits" in loss.get_config():
            loss = type(loss)(from_logits=returns_logits)
    if isinstance(loss, tf_keras.losses.Loss):
        _check_loss(loss, returns_logits=returns_logits)
        compute = loss.call
    elif callable(loss):
        # Keras' default, from_logits=False, would mis-teach a student that returns logits.
        compute = partial(loss, from_logits=returns_logits) if _takes_logits(loss) else loss
    else:
        raise SettingError(
            "`loss` must be the name of a Keras loss, a Loss, or a function.", received=loss
        )

    def per_example(labels: tf.Tensor, predictions: tf.Tensor, mask: Any = ()) -> tf.Tensor:
        predictions = tf.cast(predictions, tf.float32)
        if labels.shape.rank == 1 and predictions.shape.rank == 2:
            labels = labels[:, tf.newaxis]  # else [batch] against [batch, 1] broadcasts to a square
        values = tf.cast(compute(labels, predictions), tf.float32)
        if values.shape.rank == 0:  # in Python, while the step is traced: nothing is trained yet
            raise SettingError(
                "`loss` must return a value per example.",
                received="a loss that returns one number for the whole batch",
                hint="Leave its mean over the batch out: it would lose the sample weights.",
            )
        if not isinstance(mask, tuple):
            return mean_over_steps(values, mask)
        return tf.reduce_mean(tf.reshape(values, [tf.shape(predictions)[0], -1]), axis=1)

    return per_example


def label_loss_for(labels: str, *, activation: str, units: int) -> Any:
    """The cross-entropy that fits the labels and what the student returns.

    Args:
        labels: "integers" or "one-hot", as in `DataSummary.labels`.
        activation: What the student ends in: "linear", "softmax" or "sigmoid".
        units: The student's output units; 1 is binary.

    Returns:
        A tf_keras loss.

    Raises:
        DataError: One-hot labels for a student with one output unit.
    """
    if labels == "one-hot" and units == 1:
        raise DataError(
            "`labels` must be 0 or 1 for a student with one output unit.",
            received="one-hot labels of two columns",
            hint="Give their second column, labels[:, 1]; or let the models end in two units.",
        )
    losses = tf_keras.losses
    kinds = {
        "integers": losses.SparseCategoricalCrossentropy,
        "one-hot": losses.CategoricalCrossentropy,
    }
    if activation == "sigmoid":
        kinds = {"integers": _BinaryOfClassNumbers, "one-hot": losses.BinaryCrossentropy}
    loss = losses.BinaryCrossentropy if units == 1 else kinds[labels]
    return loss(from_logits=activation == "linear")


class _BinaryOfClassNumbers(tf_keras.losses.BinaryCrossentropy):
    """Binary cross-entropy of several units for class numbers, read as one-hot rows."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        classes = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        return super().call(tf.one_hot(classes, y_pred.shape[-1]), y_pred)


def accuracy_metric(metric: Any, *, activation: str, units: int | None) -> Any:
    """`metric`, unless it is "accuracy" of one logit, which Keras would compare with 0.5."""
    one_logit = units == 1 and activation == "linear"
    if one_logit and isinstance(metric, str) and metric in ("accuracy", "acc"):
        return tf_keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
    return metric


def _takes_logits(loss: Any) -> bool:
    """Whether it is a function of tf_keras that is told what the predictions are."""
    is_keras = str(getattr(loss, "__module__", "")).startswith("tf_keras.")
    return is_keras and "from_logits" in inspect.signature(loss).parameters


def _check_loss(loss: Any, *, returns_logits: bool) -> None:
    from_logits = loss.get_config().get("from_logits")
    if from_logits is not None and bool(from_logits) != returns_logits:
        what = "logits" if returns_logits else "probabilities"
        raise SettingError(
            f"`loss` must have from_logits={returns_logits}: the student returns {what}.",
            received=f"{type(loss).__name__}(from_logits={bool(from_logits)})",
            hint=f"Use {type(loss).__name__}(from_logits={returns_logits}), or its name.",
        )
    if getattr(loss, "reduction", "auto") == tf_keras.losses.Reduction.SUM:
        raise SettingError(
            "`loss` must be averaged over the batch, as the distillation losses are.",
            received=f"{type(loss).__name__}(reduction='sum')",
            hint="Leave `reduction` out.",
        )

"""The label loss: any loss that Keras knows, per example and fit for what the student returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, SettingError
from tfdistill.kinds import LabelAccuracy
from tfdistill.losses.shared import mean_over_steps, unmasked
from tfdistill.named import Kind
from tfdistill.settings import is_number

LabelLoss = Callable[..., tf.Tensor]


class Labels(NamedTuple):
    """The labels of a batch, of which some may be missing.

    Attributes:
        values: `[batch, ...]`; where they are missing, 0.
        known: Bool `[batch]`, False where they are missing; `None` where that cannot be.
        others: Of mixed examples, the labels of what each was mixed with; else `None`.
        share: Of mixed examples, how much of each is its own, a number in [0, 1].
    """

    values: tf.Tensor
    known: tf.Tensor | None = None
    others: Any = None
    share: Any = 1.0

    def only_known(self, values: tf.Tensor) -> tf.Tensor:
        """Values `[batch]` of a loss that reads labels; 0 where they are missing."""
        return values if self.known is None else tf.where(self.known, values, 0.0)

    def mixed(self, order: tf.Tensor, share: tf.Tensor) -> Labels:
        """Of examples that are mixed with each other, each with that at its place in `order`."""
        known = None if self.known is None else tf.gather(self.known, order)
        others = Labels(tf.gather(self.values, order), known)
        return self._replace(others=others, share=share)

    def loss(self, label_loss: LabelLoss, predictions: tf.Tensor, mask: Any) -> tf.Tensor:
        """The label loss `[batch]`; 0 where labels are missing, of mixed ones a mean."""
        values = self.only_known(label_loss(self.values, predictions, mask))
        if self.others is None:
            return values
        others = self.others.loss(label_loss, predictions, mask)
        return self.share * values + (1.0 - self.share) * others

    def where_counted(self, mask: Any) -> Labels:
        """The same with 0 at time steps that do not count, where anything may stand.

        Args:
            mask: As in `Outputs`.
        """
        if isinstance(mask, tuple) or (self.values.shape.rank or 0) < 2:
            return self
        counted = unmasked(self.values, mask)
        others = None if self.others is None else self.others.where_counted(mask)
        values = tf.where(counted, self.values, tf.zeros_like(self.values))
        return self._replace(values=values, others=others)

    def masked(self, predictions: tf.Tensor) -> tf.Tensor:
        """Predictions with the mask that keeps Keras' metrics from counting unlabelled rows."""
        if self.known is None:
            return predictions
        masked, steps = tf.identity(predictions), getattr(predictions, "_keras_mask", ())
        known, counted = (unmasked(predictions[..., 0], mask) for mask in (self.known, steps))
        masked._keras_mask = known & counted
        return masked


def check_unlabelled(value: Any) -> float | None:
    """What stands for a missing label, as a plain number.

    Raises:
        SettingError: It may be a label.
    """
    if value is None:
        return None
    if is_number(value) and math.isnan(value):
        return math.nan  # always this object: no other one equals it
    if not is_number(value) or not -math.inf < value <= 0 or value != math.floor(value):
        raise SettingError(
            "`unlabelled` must be None, a whole number below 0, 0, or NaN.",
            received=repr(value),
            hint="-1 is usual for class numbers, 0 for rows of one-hot labels.",
        )
    return int(value)


def known_labels(
    labels: Any, unlabelled: float | None, logits: tuple[int | None, ...], *, training: bool = True
) -> Labels:
    """Tells rows with labels from those without.

    Args:
        labels: `[batch, ...]`.
        unlabelled: The number that all labels of a row are where it has none; `None` where every
            row has.
        logits: Shape of the student's logits, without the batch axis.
        training: Whether these rows are trained on. Data to evaluate on may have labels of a type
            that cannot hold the number, and then has all of them.

    Raises:
        DataError: The labels cannot hold that number, or it may be a class.
    """
    if unlabelled is None:
        return Labels(labels)
    labels = tf.convert_to_tensor(labels)
    missing, signed = math.isnan(unlabelled), labels.dtype.is_integer and labels.dtype.min < 0
    if unlabelled != 0 and not (labels.dtype.is_floating or (signed and not missing)):
        if not training:
            return Labels(labels)
        raise DataError(  # in Python, while the step is traced
            f"`labels` must be of a type that holds unlabelled={unlabelled}.",
            received=labels.dtype.name,
            hint="NaN needs floats, -1 floats or signed integers: cast them.",
        )
    columns = labels.shape.rank == len(logits) + 1 and labels.shape[-1] == logits[-1] != 1
    if unlabelled == 0 and not columns:
        raise DataError(
            "`labels` must be one-hot rows for unlabelled=0.",
            received=f"labels {labels.shape}",
            hint="0 is the first class of class numbers. Pass unlabelled=-1, and -1 in the data.",
        )
    marked = tf.math.is_nan(labels) if missing else labels == tf.cast(unlabelled, labels.dtype)
    known = ~tf.reduce_all(marked, axis=list(range(1, labels.shape.rank)))
    rows = tf.reshape(known, [-1, *[1] * (labels.shape.rank - 1)])
    return Labels(tf.where(rows, labels, tf.zeros_like(labels)), known)


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


def weighted_by_labels(batches: Any, *, unlabelled: Any, model: Any) -> Any:
    """Batches on which Keras' `fit` learns from the rows with labels alone.

    Args:
        batches: `tf.data.Dataset` of `(inputs, labels)` or `(inputs, labels, sample_weight)`; of
            several outputs labels are by name, sample weights may be.
        unlabelled: What stands for a label that is missing; of several outputs for all, or by name.
        model: The model that learns.

    Returns:
        The same with a sample weight of 0 for the other rows.
    """

    def weigh(labels: Any, sample_weight: Any, mark: float | None, output: Any) -> Any:
        apart = known_labels(labels, mark, tuple(output.shape[1:]))
        known = tf.ones(tf.shape(labels)[0], bool) if apart.known is None else apart.known
        weights = tf.cast(known, tf.float32)
        if sample_weight is not None:
            weights *= tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
        return apart.values, weights

    def weigh_all(inputs: Any, labels: Any, sample_weight: Any = None) -> Any:
        if not isinstance(labels, Mapping):
            return inputs, *weigh(labels, sample_weight, unlabelled, model.output)
        weighed = {
            name: weigh(
                each,
                sample_weight.get(name) if isinstance(sample_weight, Mapping) else sample_weight,
                unlabelled.get(name) if isinstance(unlabelled, Mapping) else unlabelled,
                model.output[name],
            )
            for name, each in labels.items()
        }
        values, weights = ({name: pair[i] for name, pair in weighed.items()} for i in range(2))
        return inputs, values, weights

    return batches.map(weigh_all, tf.data.AUTOTUNE)


def label_loss_for(labels: str, *, activation: str, units: int, smoothing: float = 0.0) -> Any:
    """The loss that fits the labels and what the student returns: a cross-entropy.

    Of numbers the mean squared difference.

    Args:
        labels: "integers", "one-hot", "multi-hot" or "numbers", as in `DataSummary.labels`.
        activation: What the student ends in: "linear", "softmax" or "sigmoid".
        units: The student's output units; 1 is binary.
        smoothing: How much of each label is spread over all classes, in [0, 1); not of numbers.

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
    if labels == "numbers":
        return losses.MeanSquaredError()
    kinds = {
        "integers": losses.SparseCategoricalCrossentropy,
        "one-hot": losses.CategoricalCrossentropy,
        "multi-hot": losses.BinaryCrossentropy,
    }
    if activation == "sigmoid":
        kinds |= {"integers": _BinaryOfClassNumbers, "one-hot": losses.BinaryCrossentropy}
    loss = losses.BinaryCrossentropy if units == 1 else kinds[labels]
    settings = {"label_smoothing": smoothing} if smoothing else {}
    if smoothing and loss is losses.SparseCategoricalCrossentropy:
        loss = _SmoothedClassNumbers
    return loss(from_logits=activation == "linear", **settings)


class _SmoothedClassNumbers(tf_keras.losses.CategoricalCrossentropy):
    """Cross-entropy of class numbers, read as one-hot rows, of which Keras can smooth none."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        classes = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        return super().call(tf.one_hot(classes, y_pred.shape[-1]), y_pred)


class _BinaryOfClassNumbers(tf_keras.losses.BinaryCrossentropy):
    """Binary cross-entropy of several units for class numbers, read as one-hot rows."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        classes = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        return super().call(tf.one_hot(classes, y_pred.shape[-1]), y_pred)


def accuracy_metric(
    metric: Any, *, activation: str, units: int | None, kind: Kind = "classes"
) -> Any:
    """`metric`, unless it is "accuracy" of one logit, which Keras would compare with 0.5.

    Or of several labels, of which Keras would compare the largest ones.

    Args:
        metric: As `compile` takes it.
        activation: What the output ends in: "linear", "softmax" or "sigmoid".
        units: Its units.
        kind: What it answers.
    """
    if not isinstance(metric, str) or metric not in ("accuracy", "acc"):
        return metric
    if kind == "labels":
        return LabelAccuracy(threshold=0.0 if activation == "linear" else 0.5)
    if units == 1 and activation == "linear":
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

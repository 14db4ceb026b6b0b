"""What an output answers: one class of several, yes or no to each of several labels, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import SettingError
from tfdistill.losses import DistillationLoss
from tfdistill.named import Kind

__all__ = [
    "LabelAccuracy",
    "are_rows",
    "check_unlabelled_of",
    "kind_of",
    "refuse_losses_of_others",
]

_MUST_BE = {
    "classes": (
        "classes",
        "one of classes",
        "td.losses.LogitsMSE is its formula for logits. To teach numbers, leave losses of classes "
        "out.",
    ),
    "labels": (
        "labels that may be true together",
        "labels in rows",
        "td.losses.BinaryTargets teaches each label by itself. Where one class is true, give class "
        "numbers.",
    ),
    "numbers": (
        "numbers",
        "RegressionTargets, which says that the outputs are numbers",
        "For classes leave td.losses.RegressionTargets out: td.losses.LogitsMSE is its formula for "
        "logits.",
    ),
}


def kind_of(activation: str, units: int | None, losses: Sequence[DistillationLoss] = ()) -> Kind:
    """What an output answers, by what is known of it.

    Numbers where `RegressionTargets` teaches it, and no loss of classes or labels. Yes or no to
    each of several labels where it ends in several sigmoids, or `BinaryTargets` teaches its logits;
    and where its labels, if there are any, are rows: class numbers make classes of it, one against
    the rest. Else classes.

    Args:
        activation: What it ends in: "linear", "softmax" or "sigmoid".
        units: Its units, `None` where the model leaves that open.
        losses: What it is taught.
    """
    meanings = {loss.meaning for loss in losses} - {"anything"}
    if meanings == {"numbers"}:
        return "numbers"
    if units is None or units < 2:
        return "classes"
    several = activation == "sigmoid" or (activation == "linear" and "labels" in meanings)
    return "labels" if several else "classes"


def are_rows(labels: Any, outputs: Any) -> bool:
    """Whether labels are rows `[batch, ..., units]`, as the outputs, by their known shapes."""
    if labels.shape.rank != outputs.shape.rank:
        return False
    return labels.shape[-1] is None or bool(labels.shape[-1] == outputs.shape[-1])


class LabelAccuracy(tf_keras.metrics.Mean):
    """Share of labels that are decided right; of class numbers, the share of right classes.

    Soft labels are yes above 0.5.

    Args:
        threshold: Above which an output is a yes: 0 for logits, 0.5 for probabilities.
        name: As in Keras.
        dtype: As in Keras.
    """

    def __init__(self, threshold: float = 0.5, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.threshold = threshold

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch of labels and outputs `[batch, ..., units]`."""
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        if are_rows(y_true, y_pred):
            right = (tf.cast(y_true, tf.float32) > 0.5) == (y_pred > self.threshold)
            values = tf.reduce_mean(tf.cast(right, tf.float32), axis=-1)
        else:
            values = tf_keras.metrics.sparse_categorical_accuracy(y_true, y_pred)
        return super().update_state(values, sample_weight=sample_weight)

    def get_config(self) -> dict[str, Any]:
        """The settings."""
        return {**super().get_config(), "threshold": self.threshold}


def check_unlabelled_of(kind: Kind, unlabelled: float | None, output: str = "") -> None:
    """Refuses for missing labels what may be a label.

    Args:
        kind: What the output answers.
        unlabelled: What stands for a label that is missing, or `None`.
        output: Its name, where there are several.

    Raises:
        SettingError: It is 0 for several labels, of which none may be true; or a number for
            numbers.
    """
    of_output = f" for {output!r}" if output else ""
    if kind == "labels" and unlabelled == 0:
        raise SettingError(
            "`unlabelled` must be None, a whole number below 0 or NaN for an output of several "
            "labels.",
            received=f"0{of_output}",
            hint="A row of zeros is an example without any of the labels. Pass unlabelled=-1, and "
            "rows of -1.",
        )
    if kind == "numbers" and unlabelled is not None and not math.isnan(unlabelled):
        raise SettingError(
            "`unlabelled` must be None or NaN for an output of numbers.",
            received=f"{unlabelled}{of_output}",
            hint="Any number may be a label. Pass unlabelled=float('nan'), and NaN in the data.",
        )


def refuse_losses_of_others(
    losses: Sequence[DistillationLoss], kind: Kind, output: str = ""
) -> None:
    """Refuses losses that take an output for what it is not.

    Args:
        losses: What it is taught.
        kind: What it answers. Class numbers may make classes of what `BinaryTargets` teaches.
        output: Its name, where there are several.

    Raises:
        SettingError: One of them is such a loss.
    """
    must, because, hint = _MUST_BE[kind]
    fitting = ("anything", kind, "labels" if kind == "classes" else kind)
    for loss in losses:
        if loss.meaning not in fitting:
            raise SettingError(
                f"`losses` must be of {must}{f' for the output {output!r}' if output else ''}.",
                received=f"{type(loss).__name__}, and {because}",
                hint=hint,
            )

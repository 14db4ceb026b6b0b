"""Outputs that answer yes or no to each of several labels, of which any number may be true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import SettingError
from tfdistill.losses import (
    DIST,
    BinaryTargets,
    CenteredMSE,
    DecoupledKD,
    DistillationLoss,
    EarlyExits,
    HardTargets,
    ProbabilityMSE,
    SoftTargets,
    VirtualTeacher,
)

__all__ = [
    "LabelAccuracy",
    "are_rows",
    "is_multi_label",
    "refuse_losses_of_classes",
    "refuse_rows_of_zeros",
]

_OF_CLASSES = (  # of which one is true
    *(CenteredMSE, DecoupledKD, DIST, EarlyExits, HardTargets),
    *(ProbabilityMSE, SoftTargets, VirtualTeacher),
)


def is_multi_label(
    activation: str, units: int | None, losses: Sequence[DistillationLoss] = ()
) -> bool:
    """Whether an output answers yes or no to each of several labels, by what is known of it.

    It does where it ends in several sigmoids, or `BinaryTargets` teaches its logits; and where its
    labels, if there are any, are rows. Class numbers make classes of it, one against the rest.

    Args:
        activation: What it ends in: "linear", "softmax" or "sigmoid".
        units: Its units, `None` where the model leaves that open.
        losses: What it is taught.
    """
    if units is None or units < 2:
        return False
    taught = any(isinstance(loss, BinaryTargets) for loss in losses)
    return activation == "sigmoid" or (activation == "linear" and taught)


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


def refuse_rows_of_zeros(unlabelled: float | None, output: str = "") -> None:
    """Refuses 0 for missing labels: rows of zeros say that no label is true.

    Args:
        unlabelled: What stands for a label that is missing, or `None`.
        output: Name of the multi-label output, where there are several.

    Raises:
        SettingError: It is 0.
    """
    if unlabelled == 0:
        raise SettingError(
            "`unlabelled` must be None, a whole number below 0 or NaN for an output of several "
            "labels.",
            received=f"0{f' for {output!r}' if output else ''}",
            hint="A row of zeros is an example without any of the labels. Pass unlabelled=-1, and "
            "rows of -1.",
        )


def refuse_losses_of_classes(losses: Sequence[DistillationLoss], output: str = "") -> None:
    """Refuses losses that take one class of several to be true.

    Args:
        losses: What a multi-label output is taught.
        output: Its name, where there are several.

    Raises:
        SettingError: One of them is such a loss.
    """
    for loss in losses:
        if isinstance(loss, _OF_CLASSES):
            raise SettingError(
                "`losses` must be of labels that may be true together"
                f"{f' for the output {output!r}' if output else ''}.",
                received=f"{type(loss).__name__}, and labels in rows",
                hint="td.losses.BinaryTargets teaches each label by itself. Where one class is "
                "true, give class numbers.",
            )

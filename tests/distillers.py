"""A distiller that several test files train, and how its results are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import perceptron

import tfdistill as td
from tfdistill._keras import keras, tf_keras

Array = Any
SoftTargets, LogitsMSE, Hint = td.losses.SoftTargets, td.losses.LogitsMSE, td.losses.Hint
each_library = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])

SOFT = SoftTargets(temperature=3.0)
HINT = Hint("rectified", "rectified", weight=0.5)  # the teacher's is wider: it is projected
LABEL_LOSS = "sparse_categorical_crossentropy"


def wider_teacher(library: Any = keras, **settings: Any) -> Any:
    return perceptron(library, units=7, seed=1, name="teacher", **settings)


def compiled_distiller(
    student: Any = None,
    teacher: Any = None,
    losses: Any = (SOFT, HINT),
    label_loss_weight: float = 0.3,
    *,
    seed: int = 2,
    optimizer: Any = None,
    loss: Any = LABEL_LOSS,
    metrics: Any = ("accuracy",),
    **settings: Any,
) -> Any:
    """A compiled distiller whose projection has the weights of `seed`."""
    distiller = td.Distiller(
        student if student is not None else perceptron(tf_keras),
        teacher if teacher is not None else wider_teacher(),
        losses=losses,
        label_loss_weight=label_loss_weight,
    )
    for projection in distiller._projections.values():
        (kernel,) = projection.get_weights()
        projection.set_weights([np.random.default_rng(seed).normal(size=kernel.shape)])
    distiller.compile(
        optimizer or tf_keras.optimizers.SGD(0.05), loss, metrics=list(metrics), **settings
    )
    return distiller


def values_of(variables: Any) -> list[Array]:
    """Copies: the memory that `numpy` shows is written by the next step."""
    return [np.array(variable.numpy()) for variable in variables]


def assert_equal(ours: Any, theirs: Any, tolerance: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def assert_equal_logs(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=tolerance, err_msg=name)


class Interrupt(tf_keras.callbacks.Callback):
    """Raises in the second epoch, after a step of it."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self._error = error
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch == 1:
            raise self._error("interrupted")

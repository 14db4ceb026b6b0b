"""Every loss on outputs as a user makes it, with its formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import formulas
import numpy as np
from formulas import Array

from tfdistill import losses


class OutputLoss(NamedTuple):
    """A loss, and its formula of logits `[rows, classes]` of a teacher, of a student, and labels.

    Labels are rows of numbers as wide as the logits: a class is where the largest is.
    """

    loss: losses.DistillationLoss
    formula: Callable[[Array, Array, Array], Array]


def _dist(teacher: Array, student: Array, labels: Array) -> Array:
    inter = formulas.inter_class(teacher, student, 2.0)
    return 2.0 * inter + 3.0 * formulas.intra_class(teacher, student, 2.0)


def _adaptive(adaptive: losses.FLSW | losses.CWSM) -> Callable[[Array, Array, Array], Array]:
    def formula(teacher: Array, student: Array, labels: Array) -> Array:
        each = formulas.adaptive_temperatures(adaptive, teacher, student)
        rows = zip(teacher, student, each, strict=True)
        return np.array([formulas.soft_targets(t, s, temperature) for t, s, temperature in rows])

    return formula


_FLSW, _CWSM = losses.FLSW(4, 2), losses.CWSM(3, 0.7)

OUTPUT_LOSSES = {
    each.loss.name: each
    for each in (
        OutputLoss(losses.SoftTargets(3.0), lambda t, s, y: formulas.soft_targets(t, s, 3.0)),
        OutputLoss(
            losses.SoftTargets(3.0, divergence="cross_entropy", name="cross_entropy"),
            lambda t, s, y: formulas.soft_cross_entropy(t, s, 3.0),
        ),
        OutputLoss(
            losses.SoftTargets(3.0, divergence="reverse_kl", name="reverse_kl"),
            lambda t, s, y: formulas.soft_targets(s, t, 3.0),
        ),
        OutputLoss(
            losses.SoftTargets(3.0, divergence="jensen_shannon", name="jensen_shannon"),
            lambda t, s, y: formulas.jensen_shannon(t, s, 3.0),
        ),
        OutputLoss(
            losses.SoftTargets(2.0, standardize=True, name="standardized"),
            lambda t, s, y: formulas.soft_targets(
                formulas.standardized(t), formulas.standardized(s), 2.0
            ),
        ),
        OutputLoss(losses.SoftTargets(_FLSW, name="flsw"), _adaptive(_FLSW)),
        OutputLoss(losses.SoftTargets(_CWSM, name="cwsm"), _adaptive(_CWSM)),
        OutputLoss(losses.HardTargets(), lambda t, s, y: formulas.hard_targets(t, s)),
        OutputLoss(
            losses.HardTargets(threshold=0.6, label_smoothing=0.1, name="sure_hard_targets"),
            lambda t, s, y: formulas.hard_targets(t, s, 0.6, 0.1),
        ),
        OutputLoss(losses.LogitsMSE(), lambda t, s, y: formulas.logits_mse(t, s)),
        OutputLoss(losses.CenteredMSE(), lambda t, s, y: formulas.centered_mse(t, s)),
        OutputLoss(losses.ProbabilityMSE(2.0), lambda t, s, y: formulas.probability_mse(t, s, 2.0)),
        OutputLoss(
            losses.DecoupledKD(2.0, 1.5, 4.0),
            lambda t, s, y: formulas.decoupled_kd(t, s, y.argmax(axis=-1), 2.0, 1.5, 4.0),
        ),
        OutputLoss(losses.DIST(2.0, 3.0, 2.0), _dist),
        OutputLoss(losses.BinaryTargets(2.0), lambda t, s, y: formulas.binary_targets(t, s, 2.0)),
        OutputLoss(losses.RegressionTargets(), lambda t, s, y: formulas.logits_mse(t, s)),
        OutputLoss(
            losses.RegressionTargets(bounded=True, margin=0.1, name="bounded_regression"),
            lambda t, s, y: formulas.bounded_regression(t, s, y, 0.1),
        ),
        OutputLoss(
            losses.VirtualTeacher(0.9, 2.0),
            lambda t, s, y: formulas.virtual_teacher(s, y.argmax(axis=-1), 0.9, 2.0),
        ),
    )
}

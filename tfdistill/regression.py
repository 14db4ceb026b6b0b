"""How near numbers are to others: in their own units, and as a share that needs none."""

from __future__ import annotations

import math

import numpy as np
from sklearn.metrics import mean_absolute_error, r2_score

__all__ = ["errors_of_numbers", "explained", "explained_of_each", "numbers_of"]


def numbers_of(labels: object) -> np.ndarray:
    """Labels `[examples]` or `[examples, numbers]` as float32 rows `[examples, numbers]`."""
    found = np.asarray(labels, np.float32)
    return found.reshape(len(found), -1)


def explained_of_each(outputs: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """R² of each number: the share of the targets' variance that the outputs explain.

    1 - Σ (target - output)² / Σ (target - mean target)²: 1 where they are the same, 0 where they
    are no nearer than the mean target, less where they are farther away. Of targets that are all
    the same 1 if the outputs are these, too, and else 0.

    Args:
        outputs: `[examples, numbers]`.
        targets: The same, with two examples or more.

    Returns:
        One for each number; NaN where outputs are not finite, or there is one example alone.

    Example:
        >>> explained_of_each(np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [3.0]]))
        (0.5,)
    """
    found = []
    for ours, theirs in zip(_columns(outputs), _columns(targets), strict=True):
        known = len(ours) > 1 and np.isfinite(ours).all() and np.isfinite(theirs).all()
        found.append(float(r2_score(theirs, ours)) if known else math.nan)
    return tuple(found)


def explained(outputs: np.ndarray, targets: np.ndarray) -> float:
    """The mean of `explained_of_each`: numbers of whatever units count alike."""
    return float(np.mean(explained_of_each(outputs, targets)))


def errors_of_numbers(outputs: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """The mean absolute error of each number, in its own unit; NaN where one is not finite.

    Args:
        outputs: `[examples, numbers]`.
        targets: The same.
    """
    return tuple(
        float(mean_absolute_error(theirs, ours))
        if np.isfinite(ours).all() and np.isfinite(theirs).all()
        else math.nan
        for ours, theirs in zip(_columns(outputs), _columns(targets), strict=True)
    )


def _columns(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).T

"""Temperatures that each example has for itself, from what both models say about it."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import SettingError
from tfdistill.losses.shared import unmasked, with_two_classes
from tfdistill.settings import is_number

__all__ = ["CWSM", "FLSW", "AdaptiveTemperature"]

_LEAST_NORM = 1e-4
_LEAST_PROBABILITY = 1e-3


class AdaptiveTemperature(abc.ABC):
    r"""A temperature that is lower for examples that are harder for the student.

    .. math:: \tau_i = \max(\tau_0 + \beta (\bar w - w_i), \tau_{min})

    with a weight :math:`w_i` of each example, larger for harder ones, and its mean over the batch
    (of all replicas). No gradient flows through it.

    Attributes:
        base: :math:`\tau_0`, the temperature of an example as hard as the batch is in the mean.
        beta: :math:`\beta`, how far the weights move it.
        minimum: :math:`\tau_{min}`; ours, for without it a temperature may become negative.
    """

    base: float
    beta: float
    minimum: float

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name, value in vars(self).items():
            if not is_number(value) or not 0 < value < math.inf:
                raise SettingError(f"`{name}` must be > 0 and finite.", received=repr(value))
            object.__setattr__(self, name, float(value))
        if self.minimum > self.base:
            raise SettingError(
                "`minimum` must be <= `base`.",
                received=f"minimum={self.minimum}, base={self.base}",
                hint="1 leaves the logits as they are.",
            )

    def of(self, teacher_logits: Any, student_logits: Any, mask: Any = ()) -> Any:
        """The temperatures of a batch.

        Args:
            teacher_logits: `[batch, ..., classes]`; one logit is binary, read as `[0, t]`.
            student_logits: The same shape.
            mask: Bool `[batch, ...]` of the rows that count in the mean; `()`: all of them.

        Returns:
            float32 `[batch, ...]`.
        """
        weights = self._weights(
            *(with_two_classes(tf.cast(z, tf.float32)) for z in (teacher_logits, student_logits))
        )
        counted = unmasked(weights, mask)
        total = tf.reduce_sum(tf.where(counted, weights, 0.0))
        mean = tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(counted, tf.float32)))
        moved = self.base + self.beta * (mean - weights)
        return tf.stop_gradient(tf.maximum(moved, self.minimum))

    def get_config(self) -> dict[str, Any]:
        """The settings, as plain Python values that JSON can hold."""
        return dict(vars(self))

    @abc.abstractmethod
    def _weights(self, teacher: Any, student: Any) -> Any:
        """How hard each example is, `[batch, ...]`; both are `[batch, ..., classes]`."""


@dataclass(frozen=True)
class FLSW(AdaptiveTemperature):
    r"""Harder is what the student's logits point elsewhere in than the teacher's.

    .. math:: w_i = (1 - \cos(s_i, t_i))^\gamma, \quad
       \cos(s, t) = \frac{s \cdot t}{(|s| + 10^{-4}) (|t| + 10^{-4})}

    the focal loss style weights, and the temperature of `AdaptiveTemperature`. The cosine is of the
    logits as they are, so unlike a softmax it changes where a number is added to all of them.

    Args:
        base: Temperature of an example as hard as the mean of its batch; finite, > 0.
        beta: How far the weights move it; finite, > 0.
        gamma: Exponent of the weights; finite, > 0. The larger, the fewer examples are hard.
        minimum: Least temperature, > 0 and <= `base`.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> loss = losses.SoftTargets(losses.FLSW(base=4, beta=2))
        >>> loss.temperature.of([[3.0, 0.0], [3.0, 0.0]], [[3.0, 0.0], [0.0, 3.0]]).numpy().round(3)
        array([5., 3.], dtype=float32)

    Source:
        Wen, Lai and Qian, "Preparing Lessons: Improve Knowledge Distillation with Better
        Supervision" (2019), arXiv:1911.07471, dynamic temperature distillation; as in TextBrewer,
        which calls it `flsw`, with its small number in the norms.
    """

    base: float = 4.0
    beta: float = 1.0
    gamma: float = 1.0
    minimum: float = 1.0

    def _weights(self, teacher: Any, student: Any) -> Any:
        teacher, student = (
            z / (tf.norm(z, axis=-1, keepdims=True) + _LEAST_NORM) for z in (teacher, student)
        )
        # Rounding makes a cosine of more than 1, and of a negative number a NaN.
        distance = tf.maximum(1.0 - tf.reduce_sum(teacher * student, axis=-1), 0.0)
        return distance**self.gamma


@dataclass(frozen=True)
class CWSM(AdaptiveTemperature):
    r"""Harder is what the student is less sure of.

    .. math:: w_i = \frac{1}{\max_c \mathrm{softmax}(s_i)_c + 10^{-3}}

    the confidence weights by the student's maximum, and the temperature of `AdaptiveTemperature`.

    Args:
        base: Temperature of an example as hard as the mean of its batch; finite, > 0.
        beta: How far the weights move it; finite, > 0. They lie between 1 and the number of
            classes.
        minimum: Least temperature, > 0 and <= `base`.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> temperature = losses.CWSM(base=4)
        >>> temperature.of([[9.0, 0.0]] * 2, [[9.0, 0.0], [0.0, 0.0]]).numpy().round(2)
        array([4.5, 3.5], dtype=float32)

    Source:
        As of `FLSW`; TextBrewer calls it `cwsm`.
    """

    base: float = 4.0
    beta: float = 1.0
    minimum: float = 1.0

    def _weights(self, teacher: Any, student: Any) -> Any:
        surest = tf.reduce_max(tf.nn.softmax(student), axis=-1)
        return 1.0 / (surest + _LEAST_PROBABILITY)

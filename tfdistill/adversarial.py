"""Inputs moved to where the student is worst, as a part of what it is taught on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, SettingError
from tfdistill.settings import is_number, settings
from tfdistill.tasks import Steps

__all__ = ["Adversarial", "check_adversarial"]


@settings
class Adversarial:
    r"""Teaches the student on adversarial examples, too: the fast gradient sign method.

    .. math:: (1 - \alpha) \, J(x) + \alpha \, J(x + \epsilon \, \mathrm{sign} \nabla_x J(x))

    with the total loss `J` of an example, which says what the teacher says about `x` itself: so
    that the student learns to answer the same nearby, and stored targets will do. Costs a second
    forward and backward pass of the student, and one backward pass to its inputs. Layers with
    batch statistics see both kinds of inputs.

    Args:
        epsilon: How far each value of an input is moved, in its own units; finite, > 0.
        weight: :math:`\alpha`, in (0, 1].
        bounds: The least and the largest value that an input may have, or `None`: moved inputs
            are clipped there.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> import tfdistill as td
        >>> td.Adversarial(epsilon=8 / 255, bounds=(0, 1))
        Adversarial(epsilon=0.03137254901960784, weight=0.5, bounds=(0.0, 1.0))

    Source:
        Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (2015),
        arXiv:1412.6572, sections 4 and 6; taught by the teacher's answer to the unmoved input as
        in Goldblum et al., "Adversarially Robust Distillation" (2020), arXiv:1905.09747, which
        moves inputs in several steps.
    """

    epsilon: float
    weight: float = 0.5
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name, most in (("epsilon", math.inf), ("weight", 1.0)):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= most or math.isinf(value):
                limit = "finite" if math.isinf(most) else "<= 1"
                raise SettingError(f"`{name}` must be > 0 and {limit}.", received=repr(value))
            object.__setattr__(self, name, float(value))
        if self.bounds is not None:
            given = self.bounds
            if (
                not isinstance(given, (tuple, list))
                or len(given) != 2
                or not all(is_number(bound) for bound in given)
                or not given[0] < given[1]
            ):
                raise SettingError(
                    "`bounds` must be None or (least, largest).",
                    received=repr(given),
                    hint="Those of the inputs as the student gets them, such as (0, 1).",
                )
            object.__setattr__(self, "bounds", (float(given[0]), float(given[1])))

    def total(
        self, step: Callable[[Any], Steps], inputs: Any, tape: Any, optimizer: Any
    ) -> tuple[Steps, Any]:
        """The step on the inputs as they are, and the total loss of these and the moved ones.

        Args:
            step: Of inputs, one forward pass of the student with its losses.
            inputs: Tensors `[batch, ...]`, in any structure; only floats are moved.
            tape: Of the gradient to the weights; the moving itself is not recorded.
            optimizer: Of the student; one that scales the loss is asked by how much.

        Returns:
            The step, and `[batch]`.

        Raises:
            DataError: No input is of floats.
        """
        flat = tf.nest.flatten(inputs)
        floats = [place for place, values in enumerate(flat) if values.dtype.is_floating]
        if not floats:
            raise DataError(  # in Python, while the step is traced
                "`data` must have inputs of floats for `adversarial`.",
                received=", ".join(values.dtype.name for values in flat),
                hint="Cast them, or leave `adversarial` out.",
            )
        moving = [flat[place] for place in floats]
        with tf.GradientTape() as at_inputs:
            at_inputs.watch(moving)
            unmoved = step(inputs)
            # The mean, as it is for the weights: the scale is one that suits its gradient.
            reached = tf.reduce_mean(unmoved.total)
            if isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
                reached = optimizer.get_scaled_loss(reached)
        with tape.stop_recording():
            slopes = at_inputs.gradient(reached, moving, unconnected_gradients="zero")
            for place, slope in zip(floats, slopes, strict=True):
                flat[place] = self._moved(flat[place], slope)
        moved = step(tf.nest.pack_sequence_as(inputs, flat))
        return unmoved, (1.0 - self.weight) * unmoved.total + self.weight * moved.total

    def _moved(self, values: Any, slope: Any) -> Any:
        # Where the loss is scaled by too much, the optimizer leaves the step out; but not what
        # layers with batch statistics would make of inputs that are no numbers.
        slope = tf.where(tf.math.is_nan(slope), tf.zeros_like(slope), slope)
        moved = values + tf.cast(self.epsilon, values.dtype) * tf.sign(slope)
        return moved if self.bounds is None else tf.clip_by_value(moved, *self.bounds)


def check_adversarial(adversarial: Any) -> Adversarial | None:
    """What was given as `adversarial`.

    Raises:
        SettingError: It is something else.
    """
    if adversarial is not None and not isinstance(adversarial, Adversarial):
        raise SettingError(
            "`adversarial` must be a td.Adversarial or None.", received=repr(adversarial)
        )
    return adversarial

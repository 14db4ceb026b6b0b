"""Settings that change while a student is trained: weights and temperatures over the steps.

A schedule stands where a number may: in the `weight` and the `temperature` of a loss, and in
`label_loss_weight`.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfdistill._keras import tf
from tfdistill.errors import SettingError
from tfdistill.settings import is_number, settings, whole_number

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Cosine", "Linear", "Piecewise", "Schedule", "is_zero", "least_of"]


class Schedule(abc.ABC):
    """A number that depends on how many steps the optimizer has taken.

    The count is the optimizer's own (`optimizer.iterations`): it is in every checkpoint, the same
    on all replicas, and begins anew with each stage of a pipeline. `evaluate` takes the values that
    the next step would have.

    Attributes:
        steps: Steps until the schedule is at its end, where it stays; `None` for all steps of the
            stage, which only a pipeline knows.
    """

    steps: int | None

    @property
    @abc.abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""

    @abc.abstractmethod
    def at_share(self, share: Any) -> Any:
        """The value where a share of the steps, float32 in [0, 1], is done."""

    def at(self, step: Any) -> Any:
        """The value after so many steps of the optimizer.

        Args:
            step: Whole number, or an integer tensor.

        Returns:
            A float32 tensor without axes.

        Raises:
            SettingError: `steps` is None.
        """
        if self.steps is None:
            raise SettingError(
                "`steps` of a schedule must be given outside of a pipeline.",
                received=repr(self),
                hint="They are len(train) * epochs for one that ends with the training.",
            )
        done = tf.minimum(tf.convert_to_tensor(step), self.steps)
        return self.at_share(tf.cast(done, tf.float32) / float(self.steps))

    def over(self, steps: int) -> Self:
        """The same with these steps, where it has none of its own."""
        made: Any = self
        return self if self.steps is not None else replace(made, steps=steps)

    def get_config(self) -> dict[str, Any]:
        """The settings, as plain Python values that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    def _check(self, **numbers: Any) -> None:
        """Makes a plain int of `steps` and plain floats of the others."""
        if self.steps is not None:
            object.__setattr__(self, "steps", whole_number("steps", self.steps, minimum=1))
        for name, value in numbers.items():
            object.__setattr__(self, name, _finite(name, value))


@settings
class Linear(Schedule):
    """From one number to another along a straight line, and then constant.

    Args:
        start: Value before the first step, finite.
        end: Value after the last one, finite.
        steps: Steps of the optimizer between the two, >= 1; `None` for all steps of the stage,
            in a pipeline.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> import tfdistill as td
        >>> temperature = td.schedules.Linear(8, 2, steps=100)
        >>> [float(temperature.at(step)) for step in (0, 50, 100, 999)]
        [8.0, 5.0, 2.0, 2.0]
        >>> td.losses.SoftTargets(temperature).temperature
        Linear(start=8.0, end=2.0, steps=100)
    """

    start: float
    end: float
    steps: int | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        self._check(start=self.start, end=self.end)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.start, self.end), max(self.start, self.end)

    def at_share(self, share: Any) -> Any:
        """See `Schedule`."""
        return (1.0 - share) * self.start + share * self.end


@settings
class Cosine(Schedule):
    """From one number to another along half a cosine, flat at both ends, and then constant.

    Args:
        start: Value before the first step, finite.
        end: Value after the last one, finite.
        steps: As for `Linear`.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> import tfdistill as td
        >>> weight = td.schedules.Cosine(1, 0, steps=100)
        >>> [round(float(weight.at(step)), 3) for step in (0, 25, 50, 100)]
        [1.0, 0.854, 0.5, 0.0]
    """

    start: float
    end: float
    steps: int | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        self._check(start=self.start, end=self.end)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.start, self.end), max(self.start, self.end)

    def at_share(self, share: Any) -> Any:
        """See `Schedule`."""
        left = 0.5 + 0.5 * tf.cos(math.pi * share)
        return left * self.start + (1.0 - left) * self.end


@settings
class Piecewise(Schedule):
    """One number after the other, each constant for a part of the steps.

    With it a loss teaches in one phase of a stage only, as in FitNets, which teach hints first
    and outputs after them (Romero et al. 2015, arXiv:1412.6550, section 2.2).

    Args:
        values: The numbers in their order, two or more, finite.
        boundaries: Where each but the first one begins: shares of `steps`, rising, in (0, 1).
        steps: As for `Linear`.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> import tfdistill as td
        >>> first = td.schedules.Piecewise(values=[1, 0], boundaries=[0.3], steps=10)
        >>> [float(first.at(step)) for step in (0, 2, 3, 99)]
        [1.0, 1.0, 0.0, 0.0]
    """

    values: Sequence[float]
    boundaries: Sequence[float]
    steps: int | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        self._check()
        for name in ("values", "boundaries"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise SettingError(f"`{name}` must be a list of numbers.", received=repr(given))
            object.__setattr__(self, name, tuple(_finite(name, value) for value in given))
        if len(self.values) != len(self.boundaries) + 1 or not self.boundaries:
            raise SettingError(
                "`values` must be one more than the `boundaries` between them.",
                received=f"{len(self.values)} values, {len(self.boundaries)} boundaries",
                hint="Piecewise(values=[1, 0], boundaries=[0.3]) is 1 for 30 % of the steps.",
            )
        edges = (0.0, *self.boundaries, 1.0)
        if any(one >= other for one, other in itertools.pairwise(edges)):
            raise SettingError(
                "`boundaries` must rise, each between 0 and 1.",
                received=list(self.boundaries),
                hint="They are shares of the steps.",
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)

    def at_share(self, share: Any) -> Any:
        """See `Schedule`."""
        begun = tf.reduce_sum(tf.cast(share >= tf.constant(self.boundaries), tf.int32))
        return tf.gather(tf.constant(self.values), begun)


def least_of(value: object) -> float:
    """The least that a setting will be: a number itself; NaN where it is neither."""
    if isinstance(value, Schedule):
        return value.bounds[0]
    return float(value) if is_number(value) else math.nan  # type: ignore[arg-type]


def is_zero(value: float | Schedule) -> bool:
    """Whether it is 0 at all steps."""
    return value.bounds == (0, 0) if isinstance(value, Schedule) else value == 0


def _finite(name: str, value: Any) -> float:
    if not is_number(value) or not math.isfinite(value):
        raise SettingError(f"`{name}` must be a finite number.", received=repr(value))
    return float(value)

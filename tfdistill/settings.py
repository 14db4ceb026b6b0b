"""Settings: frozen dataclasses that refuse what they do not know."""

from __future__ import annotations

import difflib
import functools
import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from typing_extensions import dataclass_transform

from tfdistill.errors import SettingError

_Settings = TypeVar("_Settings")


@dataclass_transform(frozen_default=True)
def settings(cls: type[_Settings]) -> type[_Settings]:
    """Makes a frozen dataclass whose constructor names an unknown setting and the nearest ones.

    Example:
        >>> Pruning(sparsty=0.5)
        Traceback (most recent call last):
        tfdistill.errors.SettingError: `sparsty` must be a setting of Pruning. ...
    """
    made: Any = dataclass(frozen=True)(cls)
    known = [field.name for field in fields(made) if field.init]
    construct = made.__init__

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
                raise SettingError(
                    f"`{name}` must be a setting of {cls.__name__}.",
                    received=f"{name}={kwargs[name]!r}",
                    hint=f"Did you mean {' or '.join(near)}?" if near else f"It has: {known}.",
                )
        construct(self, *args, **kwargs)

    made.__init__ = checked
    return made


def is_number(value: object) -> bool:
    """Whether it is a real number of Python or NumPy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole_number(name: str, value: Any, *, minimum: int) -> int:
    """The value of a setting as a plain int, which JSON can hold: NumPy's are taken, too.

    Raises:
        SettingError: It is no whole number, or less than `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise SettingError(f"`{name}` must be a whole number >= {minimum}.", received=value)
    return int(value)


def check_training(stage: Any) -> None:
    """Checks what the settings of every training stage have, and makes plain numbers of it.

    Args:
        stage: Settings with `epochs`, a whole number >= 1, and `learning_rate`, a finite
            number > 0.

    Raises:
        SettingError: One of them is not.
    """
    object.__setattr__(stage, "epochs", whole_number("epochs", stage.epochs, minimum=1))
    rate = stage.learning_rate
    if not is_number(rate) or not 0 < rate < math.inf:
        raise SettingError("`learning_rate` must be a finite number > 0.", received=rate)
    object.__setattr__(stage, "learning_rate", float(rate))

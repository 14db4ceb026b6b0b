"""Settings: frozen dataclasses that refuse what they do not know."""

from __future__ import annotations

import difflib
import functools
import math
from dataclasses import dataclass, fields
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


def check_training(epochs: int, learning_rate: float) -> None:
    """Checks what the settings of every training stage have.

    Args:
        epochs: A whole number >= 1.
        learning_rate: A finite number > 0.

    Raises:
        SettingError: One of them is not.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise SettingError("`epochs` must be a whole number >= 1.", received=epochs)
    if not isinstance(learning_rate, (int, float)) or not 0 < learning_rate < math.inf:
        raise SettingError("`learning_rate` must be a finite number > 0.", received=learning_rate)

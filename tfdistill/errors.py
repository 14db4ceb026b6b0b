"""Every exception this library raises on purpose.

They share one form: what must hold, what was received, what to do about it.
"""

from __future__ import annotations

_NOTHING = object()


class TfdistillError(Exception):
    """Base of all errors of this library.

    Args:
        must: What must hold, as a sentence: "`temperature` must be > 0."
        received: What came instead; left out of the message when not given.
        hint: What to do about it, as a sentence.

    Example:
        >>> raise SettingError("`temperature` must be > 0.", received=-1.0)
        Traceback (most recent call last):
        tfdistill.errors.SettingError: `temperature` must be > 0. Received: -1.0.
    """

    def __init__(self, must: str, *, received: object = _NOTHING, hint: str = "") -> None:
        parts = [must]
        if received is not _NOTHING:
            shown = received if isinstance(received, str) else repr(received)
            parts.append(f"Received: {shown.rstrip('.')}.")
        if hint:
            parts.append(hint)
        super().__init__(" ".join(parts))


class SettingError(TfdistillError, ValueError):
    """A setting is unknown or outside what it may be."""


class ModelError(TfdistillError, ValueError):
    """A model cannot be used as teacher or student as it is."""


class ConversionError(ModelError):
    """A model cannot be carried between Keras 3 and tf_keras."""


class TeacherError(TfdistillError, RuntimeError):
    """A teacher failed on a batch, or answered with what cannot be taught.

    Attributes:
        cause: The exception that it raised, which is this one's `__cause__`, too; or None.
    """

    cause: Exception | None = None  # here as well, since Keras takes the other one off


class DataError(TfdistillError, ValueError):
    """A data set is missing, empty, endless, or does not fit the models."""


class NonFiniteLossError(TfdistillError, ArithmeticError):
    """A training loss became NaN or infinite."""


class SparsityError(TfdistillError, RuntimeError):
    """A pruned kernel does not hold the zeros that were asked for."""


class ExportError(TfdistillError, RuntimeError):
    """A model cannot be written in the format asked for."""


class CertificationError(TfdistillError, RuntimeError):
    """An artifact does not behave as the model it came from."""


class RunDirectoryError(TfdistillError, RuntimeError):
    """The run directory cannot be used: locked, unwritable, full, or holding foreign files."""

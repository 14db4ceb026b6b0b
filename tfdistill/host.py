"""The machine a process runs on: versions of packages, processor, memory, standard error."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import logging
import os
import platform
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["processor", "reuse_memory", "silence", "standard_error_held_back", "versions"]

_PACKAGES = (
    *("tfdistill", "tensorflow", "tensorflow-cpu", "tf_keras", "keras"),
    *("tensorflow-model-optimization", "ai-edge-litert", "ai-edge-quantizer", "numpy"),
)
_STANDARD_ERROR = threading.RLock()
# Of glibc's mallopt: M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, and bytes for each.
_KEEP_MEMORY = ((-1, 2**31 - 1), (-2, 2**26), (-3, 2**30))


def versions() -> dict[str, str]:
    """Python's version, and of each package that a result may depend on, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def processor() -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def reuse_memory() -> None:
    """Has the process keep the memory that it frees, for what it allocates next.

    For programs that train on CPU, called before the training: glibc otherwise gives a step's
    tensors of some MB back to the system, and the next step gets them anew, page by page, which
    takes a tenth of the time or more. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, size in _KEEP_MEMORY:
            mallopt(parameter, size)


@contextlib.contextmanager
def standard_error_held_back(*, say_on_error: bool) -> Iterator[None]:
    """Keeps what is written to standard error inside the block off the terminal.

    At the level of the file descriptor: C++ code writes there before and beside any log level.

    Args:
        say_on_error: Whether to print what was held back if the block raises.
    """
    with _STANDARD_ERROR, contextlib.ExitStack() as stack:
        try:
            found = os.dup(2)
        except OSError:  # a process without a standard error
            yield
            return
        stack.callback(os.close, found)
        held: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
        _flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            if say_on_error:
                _flush()
                held.seek(0)
                os.write(found, held.read())
            raise
        finally:
            _flush()
            os.dup2(found, 2)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps what TensorFlow says inside the block off the terminal."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with standard_error_held_back(say_on_error=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()

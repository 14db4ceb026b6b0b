"""The machine a process runs on: versions of packages, the processor, the standard error."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["processor", "standard_error_held_back", "versions"]

_PACKAGES = (
    *("tfdistill", "tensorflow", "tensorflow-cpu", "tf_keras", "keras"),
    *("tensorflow-model-optimization", "ai-edge-litert", "numpy"),
)
_STANDARD_ERROR = threading.RLock()


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


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()

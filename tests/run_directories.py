"""What tests of run directories share."""

from __future__ import annotations

import functools
import sys
import textwrap
from pathlib import Path

import hypothesis

import tfdistill

unhurried = functools.partial(  # the machine may be busy
    hypothesis.settings, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)


def run_python(code: str, *arguments: object, before: tuple[str, ...] = ()) -> list[str]:
    """Returns the command that runs ``code`` in a Python that finds this tfdistill."""
    root = Path(tfdistill.__file__).parents[1]
    prelude = f"import sys; sys.path.insert(0, {str(root)!r})\n"
    code = prelude + textwrap.dedent(code)
    return [*before, sys.executable, "-c", code, *map(str, arguments)]


def names_in(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir()}

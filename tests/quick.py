"""Which of many parameters that are much like each other `make test` runs; the rest are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def only(*quick: Any, of: Iterable[Any], several: bool = False) -> list[Any]:
    """All values as parameters; those not named first run with `make test-slow`.

    Args:
        quick: The values that `make test` runs.
        of: All values.
        several: Each is a tuple of values, for as many names.

    Raises:
        ValueError: A name is of no value, so that its test would be in neither.
    """
    values = list(of)
    if unknown := [name for name in quick if name not in values]:
        raise ValueError(f"`quick` must be some of {values}. Received: {unknown}")
    return [
        pytest.param(
            *(value if isinstance(value, tuple) and several else [value]),
            marks=[] if value in quick else [pytest.mark.slow],
        )
        for value in values
    ]

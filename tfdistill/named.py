"""Values by the names of a model's outputs, of which most models have one. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

# What an output answers: one class of several, yes or no to each of several labels, or numbers.
Kind = Literal["classes", "labels", "numbers"]

__all__ = ["Kind", "by_name", "one_or_all"]


def one_or_all(by_output: Mapping[str, Any]) -> Any:
    """What is kept of values by the names of outputs: of one alone, that one's."""
    if len(by_output) > 1:
        return by_output
    (only,) = by_output.values()
    return only


def by_name(one_or_all: Any) -> dict[str, Any]:
    """What `one_or_all` was made of; of one alone, under the name ""."""
    return dict(one_or_all) if isinstance(one_or_all, Mapping) else {"": one_or_all}

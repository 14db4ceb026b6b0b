"""What tells whether two runs of a stage are the same: a hash of all that its result depends on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdistill.errors import SettingError
from tfdistill.runs.records import sha256

__all__ = ["fingerprint"]


def fingerprint(*parts: object) -> str:
    """Returns a SHA-256 of what ``parts`` hold, the same in every process.

    Parts may be ``None``, bool, int, float, str, NumPy arrays and scalars (data type, shape and
    bytes count), lists and tuples (taken as the same), dictionaries (in any order), dataclasses,
    and objects with ``get_config()`` (and their weights, where they have ``get_weights()``), in
    any nesting. ``1``, ``1.0``, ``True`` and ``"1"`` are four different parts.

    Returns:
        64 hexadecimal digits.

    Raises:
        SettingError: A part is, or holds, something else.

    Example:
        >>> fingerprint({"sparsity": 0.75, "epochs": 5})[:8]
        '0f1d48ab'
    """
    plain = [_canonical(part, f"parts[{index}]") for index, part in enumerate(parts)]
    return sha256(json.dumps(plain).encode())


def _canonical(value: Any, where: str) -> object:
    """Returns what stands for ``value`` in the hash; different values never share one."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        items = [[_canonical(k, where), _canonical(v, f"{where}[{k!r}]")] for k, v in value.items()]
        return {"mapping": sorted(items, key=json.dumps)}
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return {"array": [str(value.dtype), list(value.shape), sha256(value.tobytes())]}
    if not isinstance(value, type):
        package = type(value).__module__
        if package.startswith("tfdistill."):  # where in it a class lies may change
            package = "tfdistill"
        name = f"{package}.{type(value).__qualname__}"
        if hasattr(value, "get_config"):
            config = _canonical(value.get_config(), f"{where}.get_config()")
            weights = list(value.get_weights()) if hasattr(value, "get_weights") else None
            return {"object": [name, config, _canonical(weights, f"{where}.get_weights()")]}
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {"dataclass": [name, _canonical(fields, where)]}
    raise SettingError(
        "`parts` must be made of plain values, NumPy arrays, dataclasses and objects with "
        "`get_config()`.",
        received=f"{where} = {value!r}",
        hint="Give the object a `get_config()`, or put a name and version in its place.",
    )

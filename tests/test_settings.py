"""Numbers in settings: NumPy's are taken and made plain, so that equal settings are equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tfdistill as td
from tfdistill.runs.files import to_json
from tfdistill.runs.fingerprint import fingerprint


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (
            td.Distillation,
            {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "label_loss_weight": 1},
        ),
        (td.Distillation, {"label_loss_weight": np.float32(0.5), "learning_rate": 1}),
        (
            td.Pruning,
            {
                "epochs": np.uint8(3),
                "learning_rate": np.float16(0.5),
                "sparsity": np.float32(0.5),
                "ramp": np.int64(1),
                "block_size": (np.int32(2), np.int64(4)),
            },
        ),
        (td.Quantization, {"epochs": np.int32(3), "learning_rate": np.float64(0.5)}),
        (td.losses.SoftTargets, {"temperature": np.int64(4), "weight": np.float32(0.5)}),
    ],
)
def test_numbers_of_numpy_are_made_plain(
    make: Callable[..., Any], settings: dict[str, Any]
) -> None:
    given = make(**settings)
    reals = {"learning_rate", "label_loss_weight", "sparsity", "ramp", "temperature", "weight"}
    for name in settings:
        value: Any = getattr(given, name)
        kind = float if name in reals else tuple if name == "block_size" else int
        assert type(value) is kind
        assert value == settings[name]
        if isinstance(value, tuple):
            assert {type(axis) for axis in value} == {int}
    plain = make(**{name: getattr(given, name) for name in settings})
    assert fingerprint(given) == fingerprint(plain)
    assert json.loads(to_json(given)) == json.loads(to_json(plain))


@pytest.mark.parametrize("make", [td.Distillation, td.Pruning, td.Quantization])
def test_truth_is_no_number(make: Any) -> None:
    for epochs in (True, np.bool_(True), 3.0, np.float32(3)):
        with pytest.raises(td.SettingError, match=r"`epochs` must be a whole number >= 1\. Rec"):
            make(epochs=epochs)
    for rate in (True, np.bool_(True), np.float32("inf"), np.float64("nan"), "0.1", None):
        with pytest.raises(td.SettingError, match=r"`learning_rate` must be a finite number > 0"):
            make(learning_rate=rate)

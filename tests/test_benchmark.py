"""Measuring files on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.export.conversion import convert
from tfdistill.host import processor
from tfdistill.inspection import benchmark as module
from tfdistill.inspection.benchmark import benchmark


def written(path: Path, units: int) -> Path:
    model = tf_keras.Sequential([tf_keras.Input((256,)), tf_keras.layers.Dense(units)])
    path.write_bytes(convert(model, "float32"))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, two_devices: None) -> Path:
    return written(tmp_path_factory.mktemp("small") / "small.tflite", 8)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, two_devices: None) -> Path:
    return written(tmp_path_factory.mktemp("large") / "large.tflite", 20_000)


def test_larger_file_takes_more_time_and_memory(small: Path, large: Path) -> None:
    found = benchmark([small, large], runs=20)
    first, second = found.measurements
    assert (first.file, second.file) == ("small.tflite", "large.tflite")
    assert (first.bytes, second.bytes) == (small.stat().st_size, large.stat().st_size)
    assert (first.latency.runs, second.latency.runs) == (20, 20)
    assert second.latency.median_ms > 2 * first.latency.median_ms  # 2500 times the products
    assert first.peak_memory_bytes is not None
    assert second.peak_memory_bytes is not None
    assert second.peak_memory_bytes > large.stat().st_size  # 20 MB of weights
    assert second.peak_memory_bytes > first.peak_memory_bytes + 10 * 2**20
    assert found.host == f"{processor()} (host CPU: no phone)"


def test_files_are_measured_in_turn(
    small: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    class Recorded(module.LiteRTModel):
        def seconds_per_run(self, inputs: Any) -> Any:
            for seconds in super().seconds_per_run(inputs):
                order.append(self.inspection.raw_bytes)
                yield seconds

    monkeypatch.setattr(module, "LiteRTModel", Recorded)
    benchmark([small, large], runs=4)
    sizes = [path.stat().st_size for path in (small, large)]
    assert order == sizes * 5  # one to warm up


@pytest.mark.parametrize(("setting", "value"), [("threads", 0), ("runs", 0), ("runs", 1.5)])
def test_counts_are_whole_numbers(small: Path, setting: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"`{setting}` must be a whole number >= 1"):
        benchmark([small], **{setting: value})


def test_file_of_an_open_shape_is_refused(tmp_path: Path) -> None:
    """It would be measured with one value where the app feeds many."""
    inputs = tf_keras.Input((None, 3), batch_size=1, name="steps")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inputs))
    path = tmp_path / "net.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with pytest.raises(ModelError, match=r"fixed shape.*\(1, None, 3\)"):
        benchmark([path])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must be a LiteRT model"):
        benchmark([tmp_path / "nowhere.tflite"])

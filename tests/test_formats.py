"""A pipeline that writes every kind of artifact, and goes on where some are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdistill as td
from tfdistill._keras import keras

_FORMATS = ("float32", "int8", "int4", "savedmodel", "keras")
_ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)


def _models() -> tuple[Any, Any]:
    """A student with a part of its own and a softmax, and a teacher."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    part = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu", name="inner")],
        name="part",
    )
    hidden = keras.layers.Flatten(name="flat")(part(image))
    outputs = keras.layers.Dense(10, activation="softmax", name="scores")(hidden)
    teacher = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    return keras.Model(image, outputs, name="student"), teacher


def _run(digits: tuple[np.ndarray, np.ndarray], run_dir: Path, **options: Any) -> td.Result:
    images, labels = digits
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=1, learning_rate=1e-2),
        pruning=td.Pruning(sparsity=0.5, epochs=1),
        quantization=td.Quantization(epochs=1),
        export=td.Export(
            formats=_FORMATS,
            label_names=[f"digit {label}" for label in range(10)],
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
            limits=_ANY,
        ),
        baseline=False,
    )
    student, teacher = _models()
    train, test = (images[:256], labels[:256]), (images[1500:], labels[1500:])
    return pipeline.run(student, teacher, train, test=test, run_dir=run_dir, **options)


@pytest.fixture(scope="module")
def finished(
    two_devices: None,
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[td.Result, Path]:
    pytest.importorskip("ai_edge_quantizer", reason='pip install "tfdistill[int4]"')
    run_dir = tmp_path_factory.mktemp("formats") / "run"
    return _run(digits, run_dir, verbose=0), run_dir


def test_every_format_is_written_certified_and_reported(
    finished: tuple[td.Result, Path], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    result, run_dir = finished
    assert tuple(result.artifacts) == _FORMATS
    assert {artifact.path.name for artifact in result.artifacts.values()} == {
        "student_float32.tflite",
        "student_int8.tflite",
        "student_int4.tflite",
        "student_savedmodel",
        "student.keras",
    }
    rows = {row.name: row for row in result.report.rows if row.kind == "artifact"}
    assert tuple(rows) == _FORMATS
    pruned = next(row for row in result.report.rows if row.name == "pruned")
    for format, row in rows.items():
        assert row.certified
        assert (row.latency_ms is None) == (format in ("savedmodel", "keras"))
        assert row.sparsity is not None
        assert row.sparsity >= 0.5 - 0.01
        assert row.bytes == result.artifacts[format].certificate.raw_bytes
    for format in ("float32", "savedmodel", "keras"):  # what was pruned, not what simulates int8
        assert rows[format].sparsity == pytest.approx(pruned.sparsity, abs=1e-6)
        assert rows[format].accuracy == pruned.accuracy
        error = result.artifacts[format].certificate.output_error
        assert error is not None
        assert error.max_absolute < 1e-5
    before = "of the student before the quantization stage, which is for int8"
    assert result.artifacts["int8"].method == "quantization-aware training"
    for format in ("float32", "int4", "savedmodel", "keras"):
        assert before in result.artifacts[format].method
    page = (run_dir / "report.html").read_text()
    assert "keras.saving.load_model" in page
    assert "tf.saved_model.load" in page


def test_the_keras_file_is_the_student_as_it_came_in(
    finished: tuple[td.Result, Path], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    result, _ = finished
    loaded = keras.saving.load_model(result.artifacts["keras"].path)
    assert [layer.name for layer in loaded.layers] == ["image", "part", "flat", "scores"]
    np.testing.assert_allclose(
        loaded.predict(digits[0][:20], verbose=0),
        result.student.predict(digits[0][:20], verbose=0),
        rtol=1e-6,
    )


@pytest.mark.slow
def test_what_is_missing_or_damaged_is_made_again(
    finished: tuple[td.Result, Path],
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result, run_dir = finished
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    folder = copy / "artifacts"
    (folder / "student_int8.tflite").unlink()
    (folder / "student_savedmodel.json").unlink()
    (folder / "student.json").write_text("{}")
    (folder / "student_savedmodel" / "fingerprint.pb").unlink()
    shutil.copy(folder / "student_float32.tflite", folder / "student_int4.tflite")
    again = _run(digits, copy, verbose=1)
    said = capsys.readouterr().out
    for name in ("student_int4.tflite", "student_savedmodel", "student.json"):
        assert f"{name} is not what was written there; it is made again" in said
    assert "distillation: finished before" in said
    for format in _FORMATS:
        ours, theirs = again.artifacts[format].certificate, result.artifacts[format].certificate
        assert (ours.accuracy, ours.zeros, ours.elements) == (
            theirs.accuracy,
            theirs.zeros,
            theirs.elements,
        )
        if format not in ("savedmodel", "keras"):  # in these TensorFlow and Keras write the time
            assert ours.sha256 == theirs.sha256
    kinds = {path.name: json.loads(path.read_text())["kind"] for path in folder.glob("*.json")}
    assert len(kinds) == len(_FORMATS)
    assert set(kinds.values()) == {"tfdistill artifact 1"}

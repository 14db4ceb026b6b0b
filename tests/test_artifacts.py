"""Making a run's LiteRT files, and finding them again: `tfdistill.artifacts` and `summary`."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick import only

import tfdistill as td
from tfdistill._keras import tf, tf_keras
from tfdistill.artifacts import check_artifact_paths, make_artifacts
from tfdistill.certificate import Certificate
from tfdistill.errors import DataError, RunDirectoryError
from tfdistill.evaluation import Evaluation
from tfdistill.litert.sidecar import sidecar_path
from tfdistill.pruning import prunable_weights
from tfdistill.quantization import Quantization, quantize
from tfdistill.runs.records import sha256_of
from tfdistill.runs.run import RunDirectory
from tfdistill.stages import Student
from tfdistill.summary import Finished, summarise_run
from tfdistill.terminal import Terminal

LAYERS = tf_keras.layers
_ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)


def _batches(digits: tuple[np.ndarray, np.ndarray], count: int = 32) -> Any:
    return tf.data.Dataset.from_tensor_slices((digits[0][:count], digits[1][:count])).batch(16)


def _make(
    model: Any,
    test: Any,
    run_dir: Path,
    *,
    formats: tuple[str, ...] = ("float16",),
    quantized: Any = None,
) -> Any:
    """As a pipeline does it, without its training."""
    terminal, export = Terminal(verbose=1), td.Export(formats=formats, limits=_ANY)
    with RunDirectory(run_dir, terminal_note=terminal.note) as directory:
        check_artifact_paths(directory, export, terminal)
        return make_artifacts(
            Student(model, "distillation", "fingerprint"),
            quantized,
            export,
            calibration=test,
            test=test,
            test_identity="test",
            directory=directory,
            terminal=terminal,
        )


@pytest.fixture(scope="module")
def finished(
    two_devices: None,
    digits: tuple[np.ndarray, np.ndarray],
    small_tf_keras_model: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    tf_keras.utils.set_random_seed(0)
    _make(small_tf_keras_model(), _batches(digits), run_dir)
    return run_dir


@pytest.fixture
def again(
    finished: Path,
    digits: tuple[np.ndarray, np.ndarray],
    small_tf_keras_model: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., Any]:
    """Runs the finished one again, in a copy that a function has changed."""

    def run(change: Callable[[Path], None]) -> Any:
        run_dir = tmp_path / "run"
        if not run_dir.exists():
            shutil.copytree(finished, run_dir)
        change(run_dir / "artifacts")
        tf_keras.utils.set_random_seed(0)
        return _make(small_tf_keras_model(), _batches(digits), run_dir)

    return run


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda folder: None, ""),
        (_drop("student_float16.json"), "student_float16.json is missing; it is made again."),
        (
            lambda folder: _edit(folder / "student_float16.json", '"logits"', '"log its"'),
            "student_float16.json is not what was written there; it is made again, the other is "
            "student_float16.json.damaged.",
        ),
        (_write("student_float16.json", "{"), "the other is student_float16.json.damaged."),
        (
            _write(
                "student_float16.json",
                '{"kind": "tfdistill artifact 1", "artifact": {}, "interface": {}}',
            ),
            "the other is student_float16.json.damaged.",
        ),
    ],
)
def test_a_sidecar_is_as_it_was_written_or_made_again(
    finished: Path,
    again: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    note: str,
) -> None:
    artifacts, _ = again(change)
    said = capsys.readouterr().out
    assert note in said
    assert "finished before" in said
    name = "artifacts/student_float16.json"
    assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert artifacts["float16"].interface == json.loads((finished / name).read_text())["interface"]


_PLACES = {
    "float32": "student_float32.tflite",
    "int4": "student_int4.tflite",
    "savedmodel": "student_savedmodel",
    "keras": "student.keras",
}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _damage(path: Path) -> None:
    inside = path / "variables" / "variables.index" if path.is_dir() else path
    inside.write_bytes(inside.read_bytes()[:-1])


_DAMAGES = [*itertools.product(_PLACES, (_remove, _damage))]


@pytest.mark.parametrize(
    ("format", "damage"),
    only(("float32", _damage), ("savedmodel", _remove), of=_DAMAGES, several=True),
)
def test_an_artifact_of_any_kind_is_made_again(
    digits: tuple[np.ndarray, np.ndarray],
    small_tf_keras_model: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    format: str,
    damage: Callable[[Path], None],
) -> None:
    if format == "int4":
        pytest.importorskip("ai_edge_quantizer", reason="needs the extra int4")
    tf_keras.utils.set_random_seed(0)
    model, path = small_tf_keras_model(), tmp_path / "run/artifacts" / _PLACES[format]
    first, _ = _make(model, _batches(digits), tmp_path / "run", formats=(format,))
    assert first[format].path == path
    assert (
        _make(model, _batches(digits), tmp_path / "run", formats=(format,))[0][format] is not None
    )
    assert "finished before" in capsys.readouterr().out

    damage(path)
    made, uncertified = _make(model, _batches(digits), tmp_path / "run", formats=(format,))
    said = capsys.readouterr().out
    assert "finished before" not in said
    assert (f"{path.name} is not what was written there; it is made again" in said) == (
        damage is _damage
    )
    assert (path.with_name(f"{path.name}.damaged")).exists() == (damage is _damage)
    assert uncertified == {}
    certificate = made[format].certificate
    assert certificate.accuracy == first[format].certificate.accuracy
    assert sha256_of(path) == certificate.sha256
    assert json.loads(sidecar_path(path).read_text())["artifact"]["sha256"] == certificate.sha256


def test_nothing_put_aside_is_overwritten(
    finished: Path, again: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ("somebody's model", "another"):
        again(_write("student_float16.tflite", content))
    said = capsys.readouterr().out
    assert "student_float16.tflite is not what was written there; it is made again" in said
    folder = tmp_path / "run/artifacts"
    model = "student_float16.tflite"
    assert {path.name: path.read_bytes() for path in folder.glob("*.tflite*")} == {
        model: (finished / "artifacts" / model).read_bytes(),
        "student_float16.tflite.damaged": b"somebody's model",
        "student_float16.tflite.damaged-1": b"another",
    }


def test_a_run_killed_before_its_record_leaves_nothing_foreign(
    again: Callable[..., Any], tmp_path: Path, digits: Any, small_tf_keras_model: Any
) -> None:
    """Another run writes both files anew; the record is still of the first."""
    again(lambda folder: None)
    record = tmp_path / "run/certification/stage.json"
    older = record.read_bytes()
    tf_keras.utils.set_random_seed(1)
    other = small_tf_keras_model()
    terminal = Terminal(verbose=0)
    with RunDirectory(tmp_path / "run", terminal_note=terminal.note) as directory:
        made, _ = make_artifacts(
            Student(other, "distillation", "other"),
            None,
            td.Export(formats=("float16",), limits=_ANY),
            calibration=None,
            test=_batches(digits),
            test_identity="test",
            directory=directory,
            terminal=terminal,
        )
        written = made["float16"].path.with_suffix(".json").read_bytes()
        record.write_bytes(older)
        check_artifact_paths(directory, td.Export(formats=("float16",)), terminal)
    assert made["float16"].path.with_suffix(".json").read_bytes() == written
    assert len(list((tmp_path / "run/artifacts").iterdir())) == 2


def test_what_no_run_recorded_is_foreign(again: Callable[..., Any], tmp_path: Path) -> None:
    again(lambda folder: None)
    shutil.rmtree(tmp_path / "run/certification")
    with pytest.raises(RunDirectoryError, match=r"student_float16\.json` must be free or hold"):
        again(_write("student_float16.json", '{"kind": "tfdistill artifact 1"}'))


def test_a_format_that_fails_does_not_take_the_others_with_it(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    source = LAYERS.Input([8, 8, 1], name="image")
    hidden = LAYERS.PReLU(name="leak")(LAYERS.Conv2D(4, 3)(source))
    model = tf_keras.Model(source, LAYERS.Dense(10)(LAYERS.Flatten()(hidden)))
    made, uncertified = _make(
        model, _batches(digits), tmp_path / "run", formats=("int16x8", "float16")
    )
    assert [*made] == ["float16"]
    assert [*uncertified] == ["int16x8"]
    assert "Received: PRELU in layer `leak`." in uncertified["int16x8"]


def test_select_ops_are_written_but_not_certified(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    source = LAYERS.Input([8, 8, 1], name="image")
    squares = LAYERS.Lambda(lambda x: tf.linalg.det(tf.reshape(x, [-1, 16, 2, 2])))(source)
    model = tf_keras.Model(source, LAYERS.Dense(10)(squares))
    terminal = Terminal(verbose=0)
    with RunDirectory(tmp_path / "run", terminal_note=terminal.note) as directory:
        made, uncertified = make_artifacts(
            Student(model, "distillation", "fingerprint"),
            None,
            td.Export(formats=("float32",), allow_select_ops=True),
            calibration=None,
            test=_batches(digits),
            test_identity="test",
            directory=directory,
            terminal=terminal,
        )
    assert made == {}
    assert "FlexMatrixDeterminant" in uncertified["float32"]
    assert (tmp_path / "run/artifacts/student_float32.tflite").exists()


def test_a_test_set_in_another_order_each_time_is_refused(
    digits: tuple[np.ndarray, np.ndarray],
    small_tf_keras_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    shuffled = _batches(digits).unbatch().shuffle(32, seed=0).batch(16)
    with pytest.raises(DataError, match=r"`test` must be the same each time it is read\."):
        _make(
            small_tf_keras_model(), shuffled, tmp_path / "run", formats=("float32", "dynamic_int8")
        )


def _separable() -> Any:
    """Every kernel that can be pruned has half zeros, those of depthwise convolutions none."""
    source = LAYERS.Input([8, 8, 1], name="image")
    hidden = LAYERS.SeparableConv2D(8, 3, activation="relu", name="separable")(source)
    hidden = LAYERS.DepthwiseConv2D(3, use_bias=False, name="depthwise")(hidden)
    hidden = LAYERS.ReLU(name="relu")(LAYERS.BatchNormalization(name="bn")(hidden))
    hidden = LAYERS.Conv2D(16, 1, name="convolution")(hidden)
    hidden = LAYERS.GlobalAveragePooling2D(name="average")(hidden)
    model = tf_keras.Model(source, LAYERS.Dense(10, name="scores")(hidden))
    for layer in model.layers:
        for kernel in prunable_weights(layer):
            values = np.random.default_rng(0).uniform(0.5, 1.0, kernel.shape).astype(np.float32)
            values.ravel()[::2] = 0
            kernel.assign(values)
    return model


@pytest.fixture(scope="module")
def quantized_run(
    two_devices: None,
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Any]:
    """A run whose last layer was left in float, and its report."""
    run_dir, test = tmp_path_factory.mktemp("quantized") / "run", _batches(digits)
    floating = Student(_separable(), "distillation", "fingerprint")
    simulated = quantize(floating.model, Quantization(skip=["scores"]), sparse=False)
    simulated.model(digits[0][:32], training=True)
    quantized = Student(
        simulated.model,
        "quantization",
        "fingerprint",
        quantized=True,
        left_float=simulated.left_float,
        carriers=simulated.carriers,
    )
    made, _ = _make(floating.model, test, run_dir, formats=("float32", "int8"), quantized=quantized)
    finished = Finished(
        teacher=None,
        teacher_evaluation=Evaluation(np.zeros([32, 10], np.float32), digits[1][:32]),
        alone=None,
        trained=(floating, quantized),
        floating=floating,
        artifacts=made,
        uncertified={},
        test=test,
        test_examples=32,
    )
    return run_dir, summarise_run(finished, td.Pipeline(), run_dir)


def test_zeros_are_counted_in_the_same_kernels_in_every_row(
    quantized_run: tuple[Path, Any],
) -> None:
    _, report = quantized_run
    assert {row.name: row.sparsity for row in report.rows if row.kind != "teacher"} == {
        name: pytest.approx(0.5, abs=1e-3) for name in ("distilled", "quantized", "float32", "int8")
    }


def test_layers_left_in_float_are_in_the_certificate_with_the_reason(
    quantized_run: tuple[Path, Any], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    run_dir, report = quantized_run
    path, reasons = run_dir / "artifacts/student_int8.tflite", {"scores": "named in `skip`"}
    certificate = json.loads(path.with_suffix(".json").read_text())["certificate"]
    assert certificate["layers_left_float"] == reasons
    other = json.loads((run_dir / "artifacts/student_float32.json").read_text())["certificate"]
    assert other["layers_left_float"] == {}
    assert '<tr><th scope="row">scores</th><td>named in `skip`</td></tr>' in (
        report.html_path.read_text()
    )

    again = td.certify(path, lambda inputs: np.zeros([len(inputs), 10]), digits)
    assert again.layers_left_float == reasons
    assert Certificate.from_dict(json.loads(json.dumps(again.to_dict()))) == again
    del certificate["layers_left_float"]  # as in a file of an older version
    assert Certificate.from_dict(certificate).layers_left_float == {}

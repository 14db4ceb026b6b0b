from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfdistill as td
from pipelines import digits, image_classification
from pipelines.teacher import TeacherTraining

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """In this process: log levels, warnings and memory stay what the tests need.

    Returns:
        What a command did to the process, had it been its own.
    """
    done: list[str] = []
    for name in ("terminal.quiet_tensorflow", "host.reuse_memory"):
        monkeypatch.setattr(f"tfdistill.{name}", lambda name=name: done.append(name))
    monkeypatch.chdir(tmp_path)
    return done


_SHORT = [
    *("--dataset", "digits", "--teacher-shift", "1", "--no-teacher-flip", "--teacher-epochs", "1"),
    *("--distillation-epochs", "1", "--pruning-epochs", "1", "--quantization-epochs", "1"),
    *("--limits-max-accuracy-drop", "1", "--limits-min-agreement", "0"),
]


def test_every_setting_of_every_stage_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        image_classification.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for option in (
        *("--distillation-epochs", "--distillation-label-loss-weight", "--soft-targets-weight"),
        *("--distillation-store-targets", "--distillation-views"),
        *("--soft-targets-temperature", "--distillation-optimizer", "--pruning-sparsity"),
        *("--pruning-pattern", "--pruning-block-size", "--pruning-skip", "--pruning-ramp"),
        *("--quantization-epochs", "--quantization-skip", "--quantization-learning-rate"),
        *("--export-formats", "--export-input-type", "--export-output-type", "--no-pruning"),
        *("--export-calibration-examples", "--export-allow-select-ops", "--no-quantization"),
        *("--limits-max-accuracy-drop", "--limits-min-agreement", "--no-baseline", "--seed"),
    ):
        assert option in said
    assert "Share of zeros in every pruned kernel" in " ".join(said.split())


def test_image_classification_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"digit {i}" for i in range(10)]
    chosen = ["--export-formats", "int8", "--pruning-sparsity", "0.5", "--no-baseline"]
    chosen += ["--no-quantization"]  # what stands between, quantization too, is in test_pipeline.py
    chosen += ["--export-label-names", *names]
    assert image_classification.main([*_SHORT, *chosen]) == 0
    run = tmp_path / "saved_models/digits"
    report = json.loads((run / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == [
        *("teacher", "distilled", "pruned", "int8"),
    ]
    pruned = next(row for row in report["rows"] if row["name"] == "pruned")
    assert pruned["sparsity"] == pytest.approx(0.5, abs=0.01)
    sidecar = json.loads((run / "artifacts/student_int8.json").read_text())
    assert sidecar["interface"]["normalisation"]["scale"] == 1 / 16
    assert sidecar["interface"]["label_names"] == names
    assert "finished before" not in capsys.readouterr().out

    assert image_classification.main([*_SHORT, *chosen]) == 0
    said = capsys.readouterr().out
    assert "teacher: taken from saved_models/digits-teacher.keras\n" in said
    assert said.count("finished before") == 3

    assert (
        image_classification.main([*_SHORT, *chosen, "--teacher-epochs", "2", "--teacher-flip"])
        == 2
    )
    assert capsys.readouterr().err == (
        "error: The teacher must have been trained with the settings asked for. "
        "Received: saved_models/digits-teacher.keras, trained with flip=False, epochs=1, "
        "not flip=True, epochs=2. Delete it, or give another place for the teacher; "
        "or delete digits-teacher.keras.json to take it as it is.\n"
    )


def test_an_error_is_one_line_and_its_kind_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_classification.main([*_SHORT, "--pruning-sparsity", "2"]) == 2
    said = capsys.readouterr().err
    assert said == "error: `sparsity` must be in (0, 1). Received: 2.0.\n"
    assert image_classification.main(["--dataset", "digitz"]) == 2
    assert "digits" in capsys.readouterr().err


@pytest.mark.slow  # a whole recipe; the exception itself is raised in test_pipeline.py
def test_an_artifact_beyond_its_limits_is_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible = ["--limits-max-output-error-steps", "1e-6", "--export-formats", "int8"]
    quick = ["--no-pruning", "--no-quantization", "--no-baseline"]
    assert image_classification.main([*_SHORT, *impossible, *quick]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: Every artifact must behave as the model it came from.")
    assert said.count("\n") == 1


def test_the_demo_is_a_function_first() -> None:
    student: Any = digits.build_student()
    teacher: Any = digits.build_teacher()
    assert student.output_shape == teacher.output_shape == (None, 10)
    assert student.count_params() < teacher.count_params() / 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher-epochs", "0"], "`epochs` must be a whole number >= 1."),
        (["--teacher-learning-rate", "-1"], "`learning_rate` must be a finite number > 0."),
        (["--seed", "4294967296"], "`seed` must be below 2**32."),
        (["--teacher-seed", "4294967296"], "`teacher_seed` must be below 2**32."),
        (["--teacher", "teacher.h5"], "The teacher's file must end in .keras"),
        (["--pruning-skip", "conv99"], "`conv99` must be a layer of the student."),
        pytest.param(
            ["--export-label-names", "a", "b"],
            "`label_names` must be 10 names",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--run-dir", "notes/a.txt/run"],
            "`notes/a.txt/run` must be readable and writable.",
            marks=pytest.mark.slow,
        ),
        (["--run-dir", "notes"], "`run_dir` must be empty or hold a run of this library."),
        pytest.param(
            ["--teacher", "notes/a.txt/t.keras"],
            "must be readable and writable.",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_the_run_would_refuse_is_refused_before_the_teacher_is_trained(
    arguments: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").touch()
    assert image_classification.main([*_SHORT, *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert "training" not in said.out
    assert not [*tmp_path.rglob("*.keras*")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "4294967296"], "`seed` must be below 2**32."),
        (["--run-dir", "notes/a.txt/run"], "`notes/a.txt/run` must be readable and writable."),
        pytest.param(
            ["--run-dir", "notes"],
            "`run_dir` must be empty or hold a run of this library.",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_so_does_the_demo(
    arguments: Sequence[str],
    message: str,
    as_a_command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").touch()
    assert digits.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert "training" not in said.out
    assert not [*tmp_path.rglob("*.keras*")]
    assert as_a_command == ["terminal.quiet_tensorflow", "host.reuse_memory"]


@pytest.mark.slow
def test_the_demo_ends_in_the_same_bits_with_a_teacher_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = td.Pipeline.run
    first_stage = {"pruning": None, "quantization": None, "baseline": False}
    monkeypatch.setattr(  # the other stages follow from it
        td.Pipeline,
        "run",
        lambda self, *a, **k: run(dataclasses.replace(self, **first_stage), *a, **k),
    )
    for name in ("trained", "loaded"):
        keras.backend.clear_session()  # layers are named as in a process of its own
        digits.digits(name, seed=3, teacher_epochs=1, epochs=1)
        if name == "trained":
            for kept in ("teacher.keras", "teacher.keras.json"):
                shutil.copy(f"trained-{kept}", f"loaded-{kept}")
    said = capsys.readouterr().out
    assert said.count("teacher: training 1 epochs into trained-teacher.keras\n") == 1
    assert said.count("teacher: taken from loaded-teacher.keras\n") == 1
    trained, loaded = (
        np.load(tmp_path / name / "distillation/weights.npz") for name in ("trained", "loaded")
    )
    assert trained.files == loaded.files
    for name in trained.files:
        np.testing.assert_array_equal(trained[name], loaded[name], err_msg=name)


def _teacher(units: int = 4) -> Any:
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Dense(units)(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(10)(x))


def test_a_teacher_is_taken_for_what_it_was_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept/teacher.keras"
    training = TeacherTraining(path, {"dataset": "digits"}, epochs=1, seed=1)
    assert training.load() is None
    trained = training.train(_teacher(), td.load_dataset("digits"))
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.json"]
    loaded = training.load()
    for ours, theirs in zip(trained.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    other = TeacherTraining(path, {"dataset": "mnist"}, epochs=1, seed=2)
    with pytest.raises(td.SettingError, match="trained with dataset=digits, seed=1, not dataset"):
        other.load()
    record = path.with_name(f"{path.name}.json")
    record.write_text("[")
    with pytest.raises(td.RunDirectoryError, match=r"teacher\.keras\.json` must hold .* Delete it"):
        other.load()
    record.unlink()
    capsys.readouterr()
    assert other.load().count_params() == trained.count_params()
    assert capsys.readouterr().out == (
        f"teacher: taken from {path}; not trained here, so the teacher's options are not used\n"
    )


@pytest.mark.slow  # several trainings
def test_an_interrupted_teacher_goes_on_unless_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = td.load_dataset("digits")
    backup = keras.callbacks.BackupAndRestore.on_epoch_end

    def interrupted(self: Any, epoch: int, logs: Any = None) -> None:
        backup(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    def epochs_trained(training: TeacherTraining, teacher: Any) -> list[str]:
        capsys.readouterr()
        training.train(teacher, data)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]

    same, other = (TeacherTraining(tmp_path / f"{name}.keras", {}, epochs=3) for name in "ab")
    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.BackupAndRestore, "on_epoch_end", interrupted)
        for training in (same, other):
            with pytest.raises(KeyboardInterrupt):
                training.train(_teacher(), data)
            assert training.load() is None
    assert epochs_trained(same, _teacher()) == ["Epoch 3/3"]
    assert epochs_trained(other, _teacher(units=5)) == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    assert not [*tmp_path.glob("*.backup")]

"""The command line, called as the console script calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdistill
from tfdistill.cli import main
from tfdistill.errors import SettingError


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands lower the log levels of their process; here that is the tests' own."""
    monkeypatch.setattr("tfdistill.terminal.quiet_tensorflow", lambda: None)


@pytest.fixture(scope="module")
def trained(
    digits: Any, small_tf_keras_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A model that knows the digits a little, and its artifact."""
    from tfdistill._keras import tf_keras
    from tfdistill.export import export_model

    images, labels = digits
    model = small_tf_keras_model(filters=8)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(1e-2), loss)
    model.fit(images, labels, epochs=3, verbose=0)
    folder = tmp_path_factory.mktemp("trained")
    model.save(folder / "student.keras")
    export_model(model, folder / "student.tflite", "float32")
    return folder / "student.keras", folder / "student.tflite"


def certify(artifact: Path, model: Path, *options: str) -> int:
    return main(["certify", str(artifact), "--model", str(model), "--dataset", "digits", *options])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"tfdistill {tfdistill.__version__}\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for command in ("inspect", "certify", "benchmark", "report"):
        assert f"\n    {command} " in shown.replace(f"{command}\n", f"{command} ")


@pytest.mark.parametrize(
    "wrong", [[], ["distil"], ["certify", "a.tflite"], ["report"], ["inspect"], ["benchmark"]]
)
def test_wrong_command_line_ends_with_status_2(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(wrong)
    assert stop.value.code == 2
    assert "usage: tfdistill" in capsys.readouterr().err


def test_certify_passes_the_model_that_the_artifact_came_from(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, artifact = trained
    assert certify(artifact, model) == 0
    shown = capsys.readouterr().out
    assert f"{artifact}: passed; accuracy " in shown
    assert "agreement 1.0000" in shown


def test_certify_fails_an_artifact_of_other_weights(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, artifact = trained
    other = tfdistill.load_model(model)
    kernel = other.get_layer("logits").kernel
    kernel.assign(np.roll(kernel.numpy(), 1, axis=1))  # every class is taken for the next
    other.save(tmp_path / "other.keras")
    assert certify(artifact, tmp_path / "other.keras") == 1
    verdict, *failures = capsys.readouterr().out.splitlines()
    assert verdict.startswith(f"{artifact}: FAILED; accuracy ")
    assert failures
    assert all(failure.startswith("  ") for failure in failures)


def test_report_prints_the_table_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdistill.report import Report, Row, write_report

    rows = (
        Row(name="teacher", kind="teacher", accuracy=0.9876),
        Row(name="int8", kind="artifact", accuracy=0.9543, bytes=4096, certified=True),
    )
    write_report(Report(title="digits", rows=rows), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "teacher" in shown
    assert "int8" in shown
    assert "95.4" in shown


def test_error_of_the_library_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("tfdistill: error: ")
    assert "nowhere" in line


def test_error_of_several_lines_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> None:
        raise SettingError("`x` must be\n  one thing.", received="a\nb")

    monkeypatch.setattr("tfdistill.report.read_report", fail)
    assert main(["report", "anywhere"]) == 2
    expected = "tfdistill: error: `x` must be one thing. Received: a b.\n"
    assert capsys.readouterr().err == expected


def test_what_is_no_error_of_the_library_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("tfdistill.report.read_report", fail)
    with pytest.raises(KeyError, match="a mistake of ours"):
        main(["report", "anywhere"])


def test_missing_artifact_is_one_clean_error(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, artifact = trained
    assert certify(artifact.with_name("other.tflite"), model) == 2
    assert "other.tflite" in capsys.readouterr().err


# --- help ---


@pytest.mark.parametrize("command", [(), ("inspect",), ("certify",), ("benchmark",), ("report",)])
def test_help_needs_neither_tensorflow_nor_numpy(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from tfdistill.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print({'tensorflow', 'numpy', 'rich'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("usage: tfdistill")
    assert shown.endswith("set()\n")


@pytest.mark.parametrize("command", ["inspect", "certify", "benchmark", "report"])
def test_help_tells_the_exit_status(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "Exit status: 0 " in capsys.readouterr().out


# --- inspect ---


def test_inspect_shows_a_model(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = trained
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "student: tf_keras model, pass" in shown
    assert "convolution" in shown
    assert "75% pruned" in shown


def test_inspect_takes_a_sparsity(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = trained
    command = ["inspect", str(model), "--sparsity", "0.5", "--formats", "int8", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["sparsity"]) == ("pass", 0.5)
    assert [*found["sizes"]] == ["int8"]
    assert main(["inspect", str(model), "--sparsity", "1.5"]) == 2
    assert "`sparsity` must be in (0, 1)" in capsys.readouterr().err


def test_inspect_tells_pass_warn_and_fail_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdistill._keras import tf_keras

    def status(shape: tuple[int | None, ...], activation: str | None) -> int:
        inputs = tf_keras.Input(shape)
        hidden = tf_keras.layers.GlobalAveragePooling1D()(inputs)
        outputs = tf_keras.layers.Dense(3, activation, name="logits")(hidden)
        tf_keras.Model(inputs, outputs).save(tmp_path / "net.keras")
        found = main(["inspect", str(tmp_path / "net.keras"), "--formats", "--json"])
        said = json.loads(capsys.readouterr().out)["status"]
        assert said == {0: "pass", 3: "warn", 1: "fail"}[found]
        return found

    assert status((4, 8), None) == 0
    assert status((4, 8), "softmax") == 3
    assert status((None, 8), None) == 1
    assert main(["inspect", str(tmp_path / "nowhere.keras")]) == 2


def test_inspect_loads_code_only_where_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdistill._keras import tf_keras

    inputs = tf_keras.Input((4,))
    twice = tf_keras.layers.Lambda(lambda values: values * 2, name="twice")(inputs)
    tf_keras.Model(inputs, tf_keras.layers.Dense(3)(twice)).save(tmp_path / "net.keras")
    assert main(["inspect", str(tmp_path / "net.keras")]) == 2
    assert "without Lambda layers" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "net.keras"), "--unsafe"]) == 3


@pytest.mark.slow
def test_json_of_inspect_is_all_that_a_process_prints(trained: tuple[Path, Path]) -> None:
    """TensorFlow's own lines too are kept off both outputs."""
    model, _ = trained
    done = subprocess.run(
        [sys.executable, "-m", "tfdistill.cli", "inspect", model, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["kind"] == "tf_keras model"
    assert done.stderr == ""


# --- benchmark ---


def test_benchmark_compares_two_files(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, artifact = trained
    run = ["benchmark", str(artifact), "--runs", "10"]
    assert main([*run, "--compare", str(artifact)]) == 0
    shown = capsys.readouterr().out
    assert "host CPU: no phone), one thread" in shown
    assert "times as long as student.tflite" in shown
    assert main([*run, "--threads", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 2
    assert [each["latency"]["runs"] for each in found["measurements"]] == [10]


def test_benchmark_of_no_model_is_one_clean_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.tflite").write_text("no model")
    assert main(["benchmark", str(tmp_path / "text.tflite")]) == 2
    assert "must be a LiteRT model" in capsys.readouterr().err


# --- certify and report, as JSON and where they fail ---


def test_certify_holds_the_limits_that_were_given(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, artifact = trained
    other = tfdistill.load_model(model)
    kernel = other.get_layer("logits").kernel
    kernel.assign(np.roll(kernel.numpy(), 1, axis=1))
    other.save(tmp_path / "other.keras")
    lenient = ("--min-agreement", "0", "--max-accuracy-drop", "1")
    assert certify(artifact, tmp_path / "other.keras", *lenient, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert (found["limits"]["min_agreement"], found["limits"]["max_accuracy_drop"]) == (0.0, 1.0)
    assert certify(artifact, tmp_path / "other.keras", "--json") == 1
    assert json.loads(capsys.readouterr().out)["failures"]
    assert certify(artifact, model, "--min-agreement", "1.5") == 2
    assert "`min_agreement` must be in [0, 1]" in capsys.readouterr().err


def test_report_as_json_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdistill.report import Report, Row, write_report

    rows = (Row(name="int8", kind="artifact", accuracy=0.5, certified=False),)
    write_report(Report(title="digits", rows=rows), tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path / "runs")
    assert main(["report", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["title"], found["rows"][0]["certified"]) == ("digits", False)


def test_report_of_an_unfinished_run_says_how_far_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdistill.runs.run import RunDirectory

    with RunDirectory(tmp_path / "run", terminal_note=print) as run:
        run.stage("distillation", "a").commit({"kernel": np.ones(3)}, {}, {})
        run.stage("pruning", "b").save_checkpoint(2, {"kernel": np.ones(3)}, {})
    assert main(["report", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert "distillation: finished, pruning: running" in shown
    assert "goes on where it ended" in shown

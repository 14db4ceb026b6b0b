"""The command line, called as the console script calls it."""

from __future__ import annotations

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


def certify(artifact: Path, model: Path) -> int:
    return main(["certify", str(artifact), "--model", str(model), "--dataset", "digits"])


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
    assert "report" in shown
    assert "certify" in shown


@pytest.mark.parametrize("wrong", [[], ["distil"], ["certify", "a.tflite"], ["report"]])
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

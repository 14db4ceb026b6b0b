from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import digits, image_classification


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process: log levels and warnings stay what the tests need."""
    monkeypatch.setattr("tfdistill.terminal.quiet_tensorflow", lambda: None)
    monkeypatch.chdir(tmp_path)


_SHORT = [
    *("--dataset", "digits", "--shift", "1", "--no-flip", "--teacher-epochs", "1"),
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
        *("--soft-targets-temperature", "--distillation-optimizer", "--pruning-sparsity"),
        *("--pruning-pattern", "--pruning-block-size", "--pruning-skip", "--pruning-ramp"),
        *("--quantization-epochs", "--quantization-skip", "--quantization-learning-rate"),
        *("--export-formats", "--export-input-type", "--export-output-type", "--no-pruning"),
        *("--export-calibration-examples", "--export-allow-select-ops", "--no-quantization"),
        *("--limits-max-accuracy-drop", "--limits-min-agreement", "--no-baseline", "--seed"),
    ):
        assert option in said
    assert "Share of zeros in every pruned kernel" in " ".join(said.split())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_image_classification_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--export-formats", "int8", "--pruning-sparsity", "0.5", "--no-baseline"]
    assert image_classification.main([*_SHORT, *chosen]) == 0
    run = tmp_path / "saved_models/digits"
    report = json.loads((run / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == [
        *("teacher", "distilled", "pruned", "quantized", "int8"),
    ]
    pruned = next(row for row in report["rows"] if row["name"] == "pruned")
    assert pruned["sparsity"] == pytest.approx(0.5, abs=0.01)
    sidecar = json.loads((run / "artifacts/student_int8.json").read_text())
    assert sidecar["interface"]["normalisation"]["scale"] == 1 / 16
    assert "finished before" not in capsys.readouterr().out

    assert image_classification.main([*_SHORT, *chosen]) == 0
    said = capsys.readouterr().out
    assert "teacher: taken from" in said
    assert said.count("finished before") == 4


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_error_is_one_line_and_its_kind_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_classification.main([*_SHORT, "--pruning-sparsity", "2"]) == 2
    said = capsys.readouterr().err
    assert said == "error: `sparsity` must be in (0, 1). Received: 2.0.\n"
    assert image_classification.main(["--dataset", "digitz"]) == 2
    assert "digits" in capsys.readouterr().err
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

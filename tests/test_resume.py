"""A killed run ends as one that was not: the same weights, the same artifact, bit by bit."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline_process import main as run_here

from tfdistill.errors import RunDirectoryError

_SCRIPT = Path(__file__).with_name("pipeline_process.py")
_STAGES = ("distillation", "baseline", "pruning", "quantization")


def _kill_when(run_dir: Path, appears: str) -> str:
    """Starts a run and kills it with SIGKILL as soon as a file of this pattern appears."""
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPT), str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not any(run_dir.glob(appears)):
        assert process.poll() is None, f"the run ended before {appears} appeared"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return said


def _weights(run_dir: Path) -> dict[str, np.ndarray]:
    found = {}
    for stage in _STAGES:
        with np.load(run_dir / stage / "weights.npz") as arrays:
            found.update({f"{stage}/{name}": arrays[name] for name in arrays.files})
    return found


def _assert_same(first: Path, second: Path) -> None:
    ours, theirs = _weights(first), _weights(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    hashes = [
        hashlib.sha256((run / "artifacts/student_int8.tflite").read_bytes()).hexdigest()
        for run in (first, second)
    ]
    assert hashes[0] == hashes[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In this process, where the killed ones are processes of their own: the bits are the same."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    run_here(str(run_dir), pruning_epochs=3)
    return run_dir


@pytest.mark.parametrize(
    "moments",
    [
        ("quantization/checkpoint-000001.npz",),
        pytest.param(
            (
                "run.json",
                "targets/train/targets.json",
                "distillation/checkpoint-000002.json",
                "distillation/stage.json",
                "baseline/checkpoint-000003.json",
                "pruning/checkpoint-000002.json",
                "artifacts/student_int8.tflite",
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["amid a stage", "at many more"],
)
def test_killed_at_many_moments_it_ends_in_the_same_bits(
    uninterrupted: Path,
    tmp_path: Path,
    moments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    said = [_kill_when(run_dir, moment) for moment in moments]
    capsys.readouterr()
    run_here(str(run_dir), pruning_epochs=3)
    last = capsys.readouterr().out
    for before, text in zip(moments, [*said[1:], last], strict=True):
        finished = _STAGES.index(before.split("/")[0]) if before.startswith(_STAGES) else 0
        assert all(f"{stage}: finished before" in text for stage in _STAGES[:finished])
    if moments[-1].startswith("artifacts"):
        assert last.count("finished before") == len(_STAGES)
    _assert_same(uninterrupted, run_dir)


@pytest.mark.slow  # a whole run
def test_a_changed_setting_runs_its_stage_and_those_below_again(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    before = {stage: (run_dir / stage / "weights.npz").stat().st_mtime_ns for stage in _STAGES}
    run_here(str(run_dir), pruning_epochs=2)
    said = capsys.readouterr().out
    assert "distillation: finished before" in said
    assert "baseline: finished before" in said
    after = {stage: (run_dir / stage / "weights.npz").stat().st_mtime_ns for stage in _STAGES}
    changed = {stage for stage in _STAGES if before[stage] != after[stage]}
    assert changed == {"pruning", "quantization"}


@pytest.mark.slow  # a whole run; single files are in test_run.py
def test_damaged_files_are_named_and_made_again(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    for name in ("quantization/weights.npz", "artifacts/student_int8.tflite"):
        content = bytearray((run_dir / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (run_dir / name).write_bytes(content)
    run_here(str(run_dir), pruning_epochs=3)
    said = capsys.readouterr().out
    assert "student_int8.tflite is not what was written there" in said
    assert "quantization/weights.npz is damaged" in said
    _assert_same(uninterrupted, run_dir)


_HOLD = """
import sys
from tfdistill.runs.run import RunDirectory
with RunDirectory(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_on_the_directory_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            RunDirectoryError, match=r"`run_dir` must not be in use by another run\."
        ):
            run_here(str(run_dir), pruning_epochs=1)
        other.communicate()

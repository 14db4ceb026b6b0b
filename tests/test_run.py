"""The run directory, against kills at every moment, damage, full disks and strangers' files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from run_directories import names_in, run_python, unhurried

from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.runs import records
from tfdistill.runs.run import RunDirectory, Stage

ARRAYS: dict[str, npt.ArrayLike] = {
    "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "step": np.int64(7),
}
HISTORY = {"loss": [1.5, float("nan")], "accuracy": [0.25, 0.5]}
SUMMARY = {"accuracy": 0.5, "note": "é"}

Directory = Callable[..., RunDirectory]


def assert_same_arrays(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == np.asarray(array).dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.fixture(scope="module", autouse=True)
def two_devices() -> None:
    """Nothing here needs TensorFlow, so nothing here starts it."""


@pytest.fixture(autouse=True)
def clean_session() -> None:
    """Nothing here needs TensorFlow, so there is nothing to clear."""


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def path_in_memory(tmp_path: Path) -> Iterator[Path]:
    """Where fsync costs nothing, if there is such a place: a kill does not need the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.fixture
def directory(tmp_path: Path, notes: list[str]) -> Directory:
    """Makes run directories at one path, with a small demand of room."""
    return functools.partial(
        RunDirectory, tmp_path / "run", terminal_note=notes.append, required_bytes=1000
    )


@pytest.fixture
def stage(directory: Directory) -> Iterator[Stage]:
    with directory() as run:
        yield run.stage("distillation", "f")


# --- what is kept comes back


def test_committed_result_comes_back_in_the_next_process(directory: Directory) -> None:
    with directory() as run:
        stage = run.stage("pruning", "f")
        assert stage.load() is None
        stage.commit(ARRAYS, HISTORY, SUMMARY)
    with directory() as run:
        result = run.stage("pruning", "f").load()
    assert result is not None
    assert_same_arrays(result.arrays, ARRAYS)
    np.testing.assert_equal(result.history, HISTORY)
    assert result.summary == SUMMARY
    assert names_in(run.path) == {
        ".lock",
        "run.json",
        *(f"pruning/{name}" for name in ("weights.npz", "history.json", "stage.json")),
    }


def test_the_weights_file_is_an_npz_for_numpy(stage: Stage) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    with np.load(stage.path / "weights.npz") as archive:
        assert_same_arrays(dict(archive), ARRAYS)


def test_equal_arrays_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = records.pack(ARRAYS)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert records.pack(ARRAYS) == first


# A surrogate cannot be a file's name, and zip ends names at NUL.
array_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@unhurried(max_examples=60)
@hypothesis.given(
    st.dictionaries(
        array_names | st.sampled_from(["file", "allow_pickle", "x", "x.npy", "arr_0", "é/β:0"]),
        hnp.arrays(
            hnp.scalar_dtypes() | hnp.unicode_string_dtypes(max_len=4),
            hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
        ),
        max_size=5,
    )
)
def test_any_arrays_round_trip(arrays: dict[str, npt.NDArray[Any]]) -> None:
    back = records.unpack(records.pack(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_data_types_that_numpy_lacks_come_back_as_float32(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    every = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32).astype(dtype)
    back = records.unpack(records.pack({"a": every}))["a"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back.astype(dtype), every)


def test_arrays_of_python_objects_are_refused(stage: Stage) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    with pytest.raises(SettingError, match=r"`arrays` must hold numbers.*Received: 'b' of .*objec"):
        stage.save_checkpoint(1, {"a": np.zeros(2), "b": np.array([None])}, {})
    assert stage.load() is not None


def test_checkpoints_keep_the_last_and_the_one_before(stage: Stage) -> None:
    for epoch in range(1, 5):
        stage.save_checkpoint(epoch, {"w": np.full(3, epoch)}, {"loss": [0.5] * epoch})
    assert sorted(p.name for p in stage.path.iterdir()) == [
        *("checkpoint-000003.json", "checkpoint-000003.npz"),
        *("checkpoint-000004.json", "checkpoint-000004.npz"),
    ]
    checkpoint = stage.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.epoch == 4
    assert_same_arrays(checkpoint.arrays, {"w": np.full(3, 4)})
    assert checkpoint.history == {"loss": [0.5] * 4}


def test_a_resumed_stage_goes_on_keeping_the_one_before(directory: Directory) -> None:
    for epochs in ([1, 2], [3]):
        with directory() as run:
            stage = run.stage("distillation", "f")
            stage.load_checkpoint()
            for epoch in epochs:
                stage.save_checkpoint(epoch, ARRAYS, {})
    assert {name for name in names_in(stage.path) if name.endswith("npz")} == {
        "checkpoint-000002.npz",
        "checkpoint-000003.npz",
    }


def test_commit_removes_the_checkpoints(stage: Stage) -> None:
    stage.save_checkpoint(1, ARRAYS, {})
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    assert names_in(stage.path) == {"weights.npz", "history.json", "stage.json"}
    assert stage.load_checkpoint() is None


# --- a changed setting


def test_another_fingerprint_is_not_finished_and_says_so(stage: Stage, notes: list[str]) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    changed = Stage(stage.path, "g", terminal_note=notes.append, state_changed=lambda state: None)
    assert changed.load() is None
    assert notes == ["distillation: settings changed since it was finished; it runs again."]
    assert stage.load() is not None  # and the older result is still there
    changed.commit({"w": np.ones(2)}, {}, {})
    result = changed.load()
    assert result is not None
    assert_same_arrays(result.arrays, {"w": np.ones(2)})
    assert stage.load() is None


def test_another_fingerprints_checkpoint_is_left_aside_until_there_is_a_newer(
    directory: Directory, notes: list[str]
) -> None:
    with directory() as run:
        stage = run.stage("distillation", "f")
        for epoch in range(1, 21):
            stage.save_checkpoint(epoch, ARRAYS, {})
        changed = run.stage("distillation", "g")
        assert changed.load_checkpoint() is None
        assert notes == ["distillation: settings changed since its checkpoint; it starts anew."]
        assert stage.load_checkpoint() is not None
        # Epoch 1 of these settings, not 20 of the others, is the one to go on from.
        changed.save_checkpoint(1, ARRAYS, {})
        found = changed.load_checkpoint()
        assert found is not None
        assert found.epoch == 1
        assert stage.load_checkpoint() is None


def test_a_new_checkpoint_beside_higher_numbered_ones_of_other_settings(
    directory: Directory,
) -> None:
    with directory() as run:
        run.stage("distillation", "g").save_checkpoint(1, ARRAYS, {})
        kept = {p: p.read_bytes() for p in (run.path / "distillation").iterdir()}
        run.stage("distillation", "f").save_checkpoint(20, ARRAYS, {})
        for path, data in kept.items():  # as if killed before 20 was removed
            path.write_bytes(data)
        found = run.stage("distillation", "g").load_checkpoint()
    assert found is not None
    assert found.epoch == 1


# --- damage


def damage_by_flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": damage_by_flip,
    "truncated": lambda data: data[:-2],
    "longer": lambda data: data + b"x",
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "other JSON": lambda data: b"[1, 2]",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights.npz", "history.json", "stage.json"])
def test_a_damaged_result_is_named_and_not_finished(
    stage: Stage, notes: list[str], name: str, damage: str
) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    path = stage.path / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert stage.load() is None
    assert notes == [f"{path} is damaged; distillation is done again."]
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    assert stage.load() is not None


@pytest.mark.parametrize("name", ["weights.npz", "history.json"])
def test_a_missing_file_of_a_result_is_named(stage: Stage, notes: list[str], name: str) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    (stage.path / name).unlink()
    assert stage.load() is None
    assert notes == [f"{stage.path / name} is damaged; distillation is done again."]


def test_every_flipped_bit_of_a_record_is_noticed(stage: Stage, notes: list[str]) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    path = stage.path / "stage.json"
    data = path.read_bytes()
    for position in range(len(data)):
        bit = 1 << position % 8
        path.write_bytes(data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :])
        assert stage.load() is None, (position, bit)
    assert len(notes) == len(data)
    path.write_bytes(data)
    assert stage.load() is not None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["npz", "json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    directory: Directory, notes: list[str], kind: str, damage: str
) -> None:
    with directory() as run:
        stage = run.stage("distillation", "f")
        for epoch in (1, 2, 3):
            stage.save_checkpoint(epoch, {"w": np.full(3, epoch)}, {"loss": [0.5] * epoch})
    path = stage.path / f"checkpoint-000003.{kind}"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with directory() as run:
        stage = run.stage("distillation", "f")
        checkpoint = stage.load_checkpoint()
        assert notes == [f"{path} is damaged; distillation goes on from an earlier state."]
        assert checkpoint is not None
        assert checkpoint.epoch == 2
        assert_same_arrays(checkpoint.arrays, {"w": np.full(3, 2)})
        stage.save_checkpoint(3, {"w": np.full(3, 30)}, {})
        assert stage._checkpoint_epochs() == [3, 2]
        checkpoint = stage.load_checkpoint()
    assert checkpoint is not None
    assert_same_arrays(checkpoint.arrays, {"w": np.full(3, 30)})


def test_all_checkpoints_damaged_are_all_named(stage: Stage, notes: list[str]) -> None:
    for epoch in (1, 2):
        stage.save_checkpoint(epoch, ARRAYS, {})
        (stage.path / f"checkpoint-00000{epoch}.npz").write_bytes(b"")
    assert stage.load_checkpoint() is None
    assert [note.split()[0][-21:] for note in notes] == [
        "checkpoint-000002.npz",
        "checkpoint-000001.npz",
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_json_is_named_and_the_stages_stay(
    directory: Directory, notes: list[str], damage: str
) -> None:
    with directory() as run:
        run.stage("distillation", "f").commit(ARRAYS, HISTORY, SUMMARY)
    path = run.path / "run.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with directory() as run:
        assert notes == [f"{path} is damaged; it is written anew."]
        assert run.stage("distillation", "f").load() is not None
    assert records.read_record(path)


# --- kills

_STORY = """
    import numpy as np
    from tfdistill.runs.run import RunDirectory

    def arrays(value):
        return {"w": np.full(4, value), "step": np.int64(value)}

    def live(path, done):  # done(): the caller now relies on what was just kept
        with RunDirectory(path, required_bytes=1000) as run:
            run.write_settings({"seed": 0})
            done()
            stage = run.stage("distillation", "f")
            for epoch in (1, 2, 3):
                stage.save_checkpoint(epoch, arrays(epoch), {"loss": [0.5] * epoch})
                done()
            stage.commit(arrays(10), {"loss": [0.5] * 3}, {"value": 10})
            done()
            stage = run.stage("distillation", "g")  # a setting was changed
            stage.save_checkpoint(1, arrays(11), {"loss": [0.5]})
            done()
            stage.commit(arrays(20), {"loss": [0.5] * 4}, {"value": 20})
            done()
            for fingerprint, value in (("h", 30), ("i", 40)):  # and changed twice more
                run.stage("distillation", fingerprint).save_checkpoint(1, arrays(value), {})
                done()
"""

_KILLED_AT_EACH_CALL = (
    _STORY
    + """
    import itertools, os, signal

    def killed_at(call, path, writing_end):
        calls = itertools.count()
        def count():
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
        def hook(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir"):
                count()
        fsync = os.fsync
        def counted_fsync(descriptor):
            count()
            fsync(descriptor)
            count()
        os.fsync = counted_fsync
        sys.addaudithook(hook)
        live(path, lambda: os.write(writing_end, b"."))

    for call in itertools.count():
        path = f"{sys.argv[1]}/{call}"
        reading_end, writing_end = os.pipe()
        child = os.fork()
        if child == 0:
            killed_at(call, path, writing_end)
            os._exit(0)
        os.close(writing_end)
        with open(reading_end, "rb") as pipe:
            done = len(pipe.read())
        _, status = os.waitpid(child, 0)
        print(call, done, os.WIFSIGNALED(status) and os.WTERMSIG(status), flush=True)
        if status == 0:
            break
    assert "tensorflow" not in sys.modules
"""
)


def check_after_kill(path: Path, done: int) -> None:
    """What the caller relied on is there, whole; what comes back is one moment's."""
    notes: list[str] = []
    with RunDirectory(path, terminal_note=notes.append, required_bytes=1000) as run:
        for fingerprint, value, first, last in (("h", 30, 7, 8), ("i", 40, 8, 9)):
            checkpoint = run.stage("distillation", fingerprint).load_checkpoint()
            if checkpoint is not None:
                assert first <= done <= last
                assert_same_arrays(
                    checkpoint.arrays, {"w": np.full(4, value), "step": np.int64(value)}
                )
            else:
                assert fingerprint == "h" or done < 9
        after = run.stage("distillation", "g")
        result = after.load()
        if result is not None:
            assert done >= 6
            assert result.summary == {"value": 20}
            assert_same_arrays(result.arrays, {"w": np.full(4, 20), "step": np.int64(20)})
            assert result.history == {"loss": [0.5] * 4}
            assert after.load_checkpoint() is None
        else:
            assert done < 7
            checkpoint = after.load_checkpoint()
            if checkpoint is not None:
                assert done >= 5
                assert checkpoint.epoch == 1
                assert_same_arrays(checkpoint.arrays, {"w": np.full(4, 11), "step": np.int64(11)})
            else:
                assert done < 6
            before = run.stage("distillation", "f")
            result = before.load()
            if result is not None:
                assert done >= 4
                assert result.summary == {"value": 10}
                assert_same_arrays(result.arrays, {"w": np.full(4, 10), "step": np.int64(10)})
            else:
                assert done < 5
                checkpoint = before.load_checkpoint()
                epoch = 0 if checkpoint is None else checkpoint.epoch
                assert max(done - 1, 0) <= epoch <= done
                if checkpoint is not None:
                    assert checkpoint.history == {"loss": [0.5] * epoch}
                    assert_same_arrays(
                        checkpoint.arrays, {"w": np.full(4, epoch), "step": np.int64(epoch)}
                    )
    assert not [note for note in notes if "damaged" in note]
    assert {Path(name).name for name in names_in(path)} <= {
        *(".lock", "run.json", "weights.npz", "history.json", "stage.json"),
        *(f"checkpoint-00000{epoch}.{kind}" for epoch in (1, 2, 3) for kind in ("npz", "json")),
    }
    for record in path.rglob("checkpoint-*.npz"):
        assert record.with_suffix(".json").exists()


def test_killed_at_each_call_to_the_file_system(path_in_memory: Path) -> None:
    driver = subprocess.run(
        run_python(_KILLED_AT_EACH_CALL, path_in_memory),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert driver.returncode == 0, driver.stderr
    lines = [line.split() for line in driver.stdout.splitlines()]
    *kills, (_, all_done, last) = lines
    assert (all_done, last) == ("9", "False")
    assert len(kills) > 200
    assert {signal_number for *_, signal_number in kills} == {str(int(signal.SIGKILL))}
    for call, done, _ in lines:
        path = path_in_memory / call
        try:
            check_after_kill(path, int(done))
        except BaseException as error:
            error.args = (f"killed at call {call} after {done} steps: {error}",)
            raise


_ENDLESS = """
    import itertools
    import numpy as np
    from tfdistill.runs.run import RunDirectory

    with RunDirectory(sys.argv[1], required_bytes=1000) as run:
        stage = run.stage("distillation", "f")
        found = stage.load_checkpoint()
        for epoch in itertools.count(1 if found is None else found.epoch + 1):
            arrays = {f"{i}": np.full(5000, epoch) for i in range(40)}
            stage.save_checkpoint(epoch, arrays, {"epochs": list(range(epoch))})
            if epoch % 4 == 0:
                run.stage("pruning", "f").commit(arrays, {}, {"epoch": epoch})
            print(epoch, flush=True)
"""


def test_killed_at_random_moments_again_and_again(tmp_path: Path) -> None:
    path, moments = tmp_path / "run", random.Random(0)
    for _ in range(8):
        with subprocess.Popen(run_python(_ENDLESS, path), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(moments.uniform(0, 0.12))
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in [first, *process.stdout.readlines()]]
        notes: list[str] = []
        with RunDirectory(path, terminal_note=notes.append, required_bytes=1000) as run:
            checkpoint = run.stage("distillation", "f").load_checkpoint()
            assert checkpoint is not None
            assert checkpoint.epoch in (said[-1], said[-1] + 1)
            assert checkpoint.history == {"epochs": list(range(checkpoint.epoch))}
            assert len(checkpoint.arrays) == 40
            assert all((array == checkpoint.epoch).all() for array in checkpoint.arrays.values())
            result = run.stage("pruning", "f").load()
            committed = 0 if result is None else result.summary["epoch"]
            assert max(epoch for epoch in (0, *said) if epoch % 4 == 0) <= committed
            assert committed <= checkpoint.epoch
            if result is not None:
                assert len(result.arrays) == 40
                assert all((array == committed).all() for array in result.arrays.values())
        assert not [note for note in notes if "damaged" in note]


# --- two runs


_HOLDER = """
    import os, time
    from tfdistill.runs.run import RunDirectory
    with RunDirectory(sys.argv[1], required_bytes=1000):
        print(os.getpid(), flush=True)
        time.sleep(60)
"""


def test_the_second_process_is_refused_and_a_killed_one_does_not_block(
    directory: Directory,
) -> None:
    path = directory().path
    with subprocess.Popen(run_python(_HOLDER, path), stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            pid = int(holder.stdout.readline())
            before = (path / "run.json").read_bytes()
            message = rf"`run_dir` must not be in use by another run\. Received: '.*run', .* {pid} "
            with pytest.raises(RunDirectoryError, match=message), directory():
                pass
            assert (path / "run.json").read_bytes() == before
        finally:
            holder.kill()
    with directory() as run:
        assert run.stage("distillation", "f").load() is None


def test_the_second_in_one_process_is_refused_too(directory: Directory) -> None:
    with (
        directory(),
        pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"),
        directory(),
    ):
        pass


def test_the_lock_is_given_up_after_an_error(directory: Directory) -> None:
    with pytest.raises(ZeroDivisionError), directory():
        _ = 1 / 0
    with directory():
        pass


def test_a_stage_needs_the_directory_entered(directory: Directory) -> None:
    run = directory()
    with pytest.raises(RunDirectoryError, match="`RunDirectory` must be entered first"):
        run.stage("distillation", "f")
    assert not run.path.exists()


# --- full and unwritable


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE: dict[str, Any] = {"w": np.zeros(200_000)}
LONG = {"loss": [0.5] * 100_000}


@pytest.mark.parametrize(
    ("keep", "failing"),
    [
        (lambda stage: stage.save_checkpoint(2, LARGE, {}), "checkpoint-000002.npz"),
        (lambda stage: stage.save_checkpoint(2, ARRAYS, LONG), "checkpoint-000002.json"),
        (lambda stage: stage.commit(LARGE, {}, {}), "weights.npz"),
        (lambda stage: stage.commit(ARRAYS, LONG, {}), "history.json"),
        (lambda stage: stage.commit(ARRAYS, {}, LONG), "stage.json"),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(
    stage: Stage, keep: Callable[[Stage], None], failing: str
) -> None:
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    stage.save_checkpoint(1, ARRAYS, {})
    before = {name: (stage.path / name).read_bytes() for name in names_in(stage.path)}
    message = f"{failing}.*` must be .*Received: File too large. Free disk space"
    with largest_file(300_000), pytest.raises(RunDirectoryError, match=message):
        keep(stage)
    assert {name: (stage.path / name).read_bytes() for name in names_in(stage.path)} == before
    checkpoint = stage.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.epoch == 1
    assert stage.load() is not None


def test_no_room_is_found_on_entry_and_nothing_is_lost(directory: Directory) -> None:
    with directory() as run:
        run.stage("distillation", "f").commit(ARRAYS, HISTORY, SUMMARY)
    before = {name: (run.path / name).read_bytes() for name in names_in(run.path)}
    with (
        largest_file(1_000_000),
        pytest.raises(RunDirectoryError, match=r"must be .*writable. Received: File too large"),
        directory(required_bytes=2_000_000),
    ):
        pass
    assert {name: (run.path / name).read_bytes() for name in names_in(run.path)} == before
    with directory(required_bytes=2_000_000) as run:
        assert run.stage("distillation", "f").load() is not None


_ON_A_FULL_DISK = (
    _STORY
    + """
    from tfdistill.errors import RunDirectoryError

    path = sys.argv[1] + "/run"
    with RunDirectory(path, required_bytes=1000) as run:
        stage = run.stage("distillation", "f")
        stage.commit(arrays(1), {}, {})
        with open(sys.argv[1] + "/filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        for keep in (lambda: stage.save_checkpoint(1, {"w": np.zeros(9999)}, {}),
                     lambda: stage.commit({"w": np.zeros(9999)}, {}, {})):
            try:
                keep()
            except RunDirectoryError as error:
                print(error)
    try:
        with RunDirectory(path):
            pass
    except RunDirectoryError as error:
        print(error)
    import os
    os.remove(sys.argv[1] + "/filler")
    with RunDirectory(path, required_bytes=1000) as run:
        print(run.stage("distillation", "f").load().arrays["w"])
        print(sorted(os.listdir(path)), sorted(os.listdir(path + "/distillation")))
"""
)


def test_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    small_disk = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", small_disk)
    try:
        subprocess.run([*namespace, tmp_path, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    command = run_python(_ON_A_FULL_DISK, tmp_path, before=(*namespace, str(tmp_path)))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *errors, array, names = done.stdout.splitlines()
    assert len(errors) == 3
    for line in errors:
        assert "must be readable and writable. Received: No space left on device." in line
        assert "Free disk space, then run again: what was finished before is intact." in line
    assert array == "[1 1 1 1]"
    assert names == (
        "['.lock', 'distillation', 'run.json'] ['history.json', 'stage.json', 'weights.npz']"
    )


def test_a_file_in_the_way_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirectoryError, match=r"`.*file.*` must be .* Check what is there"):
            RunDirectory(path).__enter__()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_that_may_not_be_written(exists: bool) -> None:
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent, "run")
        if exists:
            path.mkdir()
            path.chmod(0o555)
        Path(parent).chmod(0o555)
        root = os.geteuid() == 0
        try:
            if root:  # permissions do not bind root
                os.seteuid(65534)
            with pytest.raises(RunDirectoryError, match=r"must be .*Received: Permission denied"):
                RunDirectory(path).__enter__()
        finally:
            if root:
                os.seteuid(0)
            Path(parent).chmod(0o755)
        assert not exists or not list(path.iterdir())


# --- strangers' files


@pytest.mark.parametrize(
    "foreign", [{"notes.txt": "mine"}, {"run.json": '{"a": 1}'}, {"run.json": "", "b": ""}]
)
def test_a_directory_of_something_else_is_refused_and_untouched(
    directory: Directory, foreign: dict[str, str]
) -> None:
    path = directory().path
    path.mkdir()
    for name, text in foreign.items():
        (path / name).write_text(text)
    message = (
        r"`run_dir` must be empty or hold a run of this library\. "
        rf"Received: '.*run', which holds {', '.join(sorted(foreign))}\."
    )
    with pytest.raises(RunDirectoryError, match=message):
        directory().__enter__()
    assert {name: (path / name).read_text() for name in names_in(path)} == foreign


def test_a_file_where_a_stage_should_be(directory: Directory) -> None:
    with directory() as run:
        (run.path / "pruning").write_text("mine")
        with pytest.raises(RunDirectoryError, match=r"`.*pruning` must be free, or a directory\."):
            run.stage("pruning", "f")
        assert (run.path / "pruning").read_text() == "mine"


def test_a_directory_where_a_file_should_be(stage: Stage) -> None:
    (stage.path / "weights.npz").mkdir(parents=True)
    (stage.path / "weights.npz" / "mine").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"distillation` must be .*Received: Is a direct"):
        stage.commit(ARRAYS, HISTORY, SUMMARY)
    assert (stage.path / "weights.npz" / "mine").read_text() == "mine"


def test_other_files_in_a_stage_stay(stage: Stage) -> None:
    stage.save_checkpoint(1, ARRAYS, {})
    for name in ("notes.txt", "checkpoint-best.json", ".hidden.tmp"):
        (stage.path / name).write_text("mine")
    stage.commit(ARRAYS, HISTORY, SUMMARY)
    assert {"notes.txt", "checkpoint-best.json", ".hidden.tmp"} <= names_in(stage.path)


def test_a_newer_versions_run_is_refused(directory: Directory) -> None:
    with directory() as run:
        pass
    path = run.path / "run.json"
    record = records.read_record(path)
    assert record is not None
    records.write_record(path, {**record, "version": 2})
    before = path.read_bytes()
    message = r"`run_dir` must hold a run of format 1 or older\. Received: format 2 in .* Update"
    with pytest.raises(RunDirectoryError, match=message):
        directory().__enter__()
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "artifacts", "../up", "a/b", ".lock"])
def test_a_stage_has_a_plain_name(directory: Directory, name: str) -> None:
    with directory() as run, pytest.raises(SettingError, match="`name` must be a plain name"):
        run.stage(name, "f")


def test_leftovers_of_killed_writers_go_on_entry_and_nothing_else(directory: Directory) -> None:
    with directory() as run:
        run.stage("distillation", "f").commit(ARRAYS, HISTORY, SUMMARY)
    leftover = f".a.{'0' * 16}.tmp"
    for name in (leftover, f"distillation/{leftover}", ".a.tmp", f"distillation/{leftover}x"):
        (run.path / name).write_text("half")
    with directory():
        pass
    assert {n for n in names_in(run.path) if n.rpartition("/")[2].startswith(".")} == {
        *(".lock", ".a.tmp", f"distillation/{leftover}x")
    }


# --- run.json


def test_run_json_tells_settings_versions_and_states(directory: Directory) -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings:
        sparsity: float = 0.75
        path: Path = Path("a")

    with directory() as run:
        run.write_settings({"pruning": Settings(), "seed": np.int64(3)})
        run.stage("distillation", "f").commit(ARRAYS, HISTORY, SUMMARY)
        stage = run.stage("pruning", "g")
        stage.save_checkpoint(1, ARRAYS, {})
        stage.save_checkpoint(2, ARRAYS, {})
    with directory() as run:
        pass
    told = json.loads((run.path / "run.json").read_text())
    assert told["settings"] == {"pruning": {"sparsity": 0.75, "path": "a"}, "seed": 3}
    assert told["versions"]["numpy"] == np.__version__
    assert told["process"]["pid"] == os.getpid()
    assert told["stages"] == {
        "distillation": {"state": "finished", "fingerprint": "f"},
        "pruning": {"state": "running", "fingerprint": "g", "finished_epochs": 2},
    }


def test_settings_without_a_form_in_json_are_refused(directory: Directory) -> None:
    with directory() as run:
        with pytest.raises(SettingError, match=r"`data` must have a form in JSON\. Received: <obj"):
            run.write_settings({"a": object()})
        with pytest.raises(SettingError, match="keys must be str"):
            run.write_settings({"a": {(1, 2): 3}})
        run.stage("distillation", "f").commit(ARRAYS, HISTORY, SUMMARY)  # goes on unharmed

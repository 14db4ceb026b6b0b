"""Storing targets against kills, damage, full disks, other writers, and what has changed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets_process import BATCH, EXAMPLES, VIEWS, Remembering, lines, pictures, shuffled_pictures

import tfdistill as td
from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, RunDirectoryError
from tfdistill.targets.examples import example_ids

_SCRIPT = Path(__file__).with_name("targets_process.py")
Stored = td.StoredTargets


def _start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(td.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def _store(path: Path, teacher: Any = None, train: Any = None, **settings: Any) -> Stored:
    """Without augmentation, in 5 shards of 48 examples."""
    chosen = {"shard_examples": 3 * BATCH, "verbose": 0, **settings}
    data = _batches() if train is None else train
    return td.store_targets(Remembering() if teacher is None else teacher, data, path, **chosen)


def _batches(images: Any = None) -> Any:
    given, labels = pictures()
    return tf.data.Dataset.from_tensor_slices((given if images is None else images, labels)).batch(
        BATCH
    )


def _rows(stored: Stored) -> list[np.ndarray]:
    """What is stored of each view of each of the `pictures()`."""
    ids = example_ids(pictures()[0]).numpy()
    return [field for view in range(stored.views) for field in stored._rows.read(ids, view)]


def _assert_same_rows(ours: Stored, theirs: Stored) -> None:
    assert ours.examples == theirs.examples == EXAMPLES
    for one, other in zip(_rows(ours), _rows(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def whole(two_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All targets, stored without a fault."""
    path = tmp_path_factory.mktemp("targets") / "whole"
    _store(path)
    return path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copied"))


@pytest.fixture(scope="module")
def augmented(two_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """What the script stores, stored in one go."""
    return _augmented(tmp_path_factory.mktemp("targets") / "augmented", Remembering())


def _augmented(path: Path, teacher: Remembering, **settings: Any) -> Stored:
    return td.store_targets(
        teacher,
        shuffled_pictures(),
        path,
        augment=td.RandomShiftAndFlip(),
        views=VIEWS,
        shard_examples=BATCH,
        verbose=0,
        **settings,
    )


def _images_of(stored: Stored) -> np.ndarray:
    """What a student sees in all epochs, until the first view comes again."""
    taught = stored.dataset()
    seen = [given.inputs.numpy() for _ in range(stored.views) for given, _ in taught]
    return np.concatenate(seen)


# --- killed; other writers


@pytest.mark.slow  # a process that is killed
def test_killed_it_asks_about_the_rest_only(augmented: Stored, tmp_path: Path) -> None:
    path, seen = tmp_path / "targets", tmp_path / "seen"
    process = _start("store", path, seen, 0, 1, 0.2)
    deadline = time.monotonic() + 120
    while not path.is_dir() or len([*path.glob("shard-*.json")]) < 3:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RunDirectoryError, match=r"`path` must not be written by another process\."):
        _augmented(path, Remembering())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = sum(json.loads(p.read_text())["examples"] for p in path.glob("shard-*.json"))
    assert 3 * BATCH <= finished < EXAMPLES

    teacher = Remembering()
    stored = _augmented(path, teacher)
    shown = _images_of(stored)
    assert teacher.times(shown) == VIEWS * (EXAMPLES - finished)
    _assert_same_rows(stored, augmented)
    # Bit by bit what the student sees, in this process and in that one.
    told = {*lines(seen), *teacher.asked}
    by_others = Remembering()
    by_others._answer(shown)
    assert {*by_others.asked} <= told
    assert by_others.asked.keys() - teacher.asked.keys() <= {*lines(seen)}
    assert len(by_others.asked) > 2 * EXAMPLES  # three views, of which few are alike


@pytest.mark.slow
def test_two_parts_stored_at_once_are_all(augmented: Stored, tmp_path: Path) -> None:
    path, seen = tmp_path / "targets", tmp_path / "seen"
    process = _start("store", path, seen, 1, 2, 0.05)
    try:
        deadline = time.monotonic() + 120
        while not path.is_dir() or not [*path.glob("shard-1-*.json")]:
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)  # it must not end before the other has begun
        with pytest.raises(RunDirectoryError, match="whose part 1-of-2 is being stored"):
            _augmented(path, Remembering(1), overwrite=True)
        teacher = Remembering()
        half = _augmented(path, teacher, part=(0, 2))
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors[-3000:]
    with pytest.raises(DataError, match=r"Every example must be one that targets were stored of"):
        _rows(half)
    every = _augmented(path, Remembering(), part=(0, 2))
    _assert_same_rows(every, augmented)
    parts = [path / f"part-{which}-of-2.json" for which in range(2)]
    assert all(part.exists() for part in parts)
    # Each has asked about its own examples only.
    shown = _images_of(every)
    assert 0.3 < teacher.times(shown) / (VIEWS * EXAMPLES) < 0.7
    assert half.examples < EXAMPLES


@pytest.mark.slow
def test_workers_store_parts_and_train_on_all(tmp_path: Path) -> None:
    with contextlib.ExitStack() as sockets:
        ports = []
        for _ in range(2):
            free = sockets.enter_context(socket.create_server(("localhost", 0)))
            ports.append(f"localhost:{free.getsockname()[1]}")
    cluster = {"chief": ports[:1], "worker": ports[1:]}
    processes = [
        _start(
            *("worker", tmp_path / "targets"),
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}}),
        )
        for kind in cluster
    ]
    said = []
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        said.append(json.loads(out.splitlines()[-1]))
    (asked, examples, weights), (also_asked, also_examples, also_weights) = said
    assert asked + also_asked == examples == also_examples == EXAMPLES
    assert min(asked, also_asked) > 0.3 * EXAMPLES
    assert weights == also_weights


# --- damage


def _flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(content)


def _unfinished(kind: str) -> str:
    return f"shard-0-of-1-00002.{kind}"


@pytest.mark.parametrize("kind", ["targets.npy", "ids.npy", "json"])
@pytest.mark.parametrize("damage", [_flip, Path.unlink], ids=["flipped", "gone"])
def test_a_damaged_shard_is_named_and_only_it_is_stored_again(
    whole: Path, copied: Path, kind: str, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copied / _unfinished(kind))
    teacher = Remembering()
    stored = _store(copied, teacher, verbose=1)
    assert teacher.times(pictures()[0]) == 3 * BATCH
    said = capsys.readouterr().out
    assert "its examples are stored again" in said
    assert str(copied / _unfinished(kind)) in said.replace("\n", "")
    _assert_same_rows(stored, _store(whole))
    again = Remembering()
    _store(copied, again)
    assert again.times(pictures()[0]) == 0


def test_a_damaged_shard_of_another_part_is_left_to_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(copied / _unfinished("ids.npy"))
    teacher = Remembering()
    _store(copied, teacher, part=(0, 2), verbose=1)
    assert 0 < teacher.times(pictures()[0]) < 3 * BATCH
    assert "is damaged; store the part 0-of-1 again" in capsys.readouterr().out
    assert (copied / _unfinished("ids.npy")).exists()


def test_a_damaged_record_of_a_part_costs_a_reading_only(
    whole: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(copied / "part-0-of-1.json")
    teacher = Remembering()
    stored = _store(copied, teacher, verbose=1)
    assert teacher.times(pictures()[0]) == 0
    assert "part-0-of-1.json is damaged; the data are read again" in capsys.readouterr().out
    _assert_same_rows(stored, _store(whole))


def test_without_an_intact_targets_json_everything_is_stored_anew(
    whole: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(copied / "targets.json")
    teacher = Remembering()
    stored = _store(copied, teacher, verbose=1)
    assert "targets.json is damaged; everything is stored anew" in capsys.readouterr().out
    assert teacher.times(pictures()[0]) == EXAMPLES
    _assert_same_rows(stored, _store(whole))


def test_what_a_killed_writer_left_half_written_is_removed(copied: Path) -> None:
    leftovers = {
        name: copied / f".{name}.0123456789abcdef.tmp"
        for name in ("shard-0-of-1-00007.ids.npy", "targets.json", "shard-0-of-12-00000.ids.npy")
    }
    for path in leftovers.values():
        path.write_bytes(b"half")
    _store(copied)
    assert [name for name, path in leftovers.items() if path.exists()] == [
        "shard-0-of-12-00000.ids.npy"  # another part may be in the making
    ]


# --- the disk


class _FillsTheDisk(Remembering):
    """Lets no file be larger than a shard, once two are written."""

    def _answer(self, images: np.ndarray) -> np.ndarray:
        if self.times(pictures()[0]) == 2 * 3 * BATCH:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        return super()._answer(images)


def test_a_full_disk_leaves_what_is_there_usable(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            RunDirectoryError, match=r"00002\.targets\.npy` must be .*too large\. Fr"
        ):
            _store(path, _FillsTheDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len([*path.glob("shard-*.json")]) == 2
    assert not [*path.glob(".*.tmp")]
    teacher = Remembering()
    stored = _store(path, teacher)
    assert teacher.times(pictures()[0]) == EXAMPLES - 2 * 3 * BATCH
    _assert_same_rows(stored, _store(whole))


def test_a_directory_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"`path` must be empty or.*which holds thesis\.te"):
        _store(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="must be readable and writable"):
        _store(tmp_path / "file")


# --- what has changed


@dataclasses.dataclass(frozen=True)
class Shift:
    """An augmentation with a setting."""

    by: int = 1

    def __call__(self, image: Any, seed: Any) -> Any:
        return tf.roll(image, self.by, axis=0)


def _layered(scale: float = 1.0) -> Any:
    image = tf_keras.Input([6, 6, 1])
    hidden = tf_keras.layers.Dense(4, name="hidden")(tf_keras.layers.Flatten(name="flat")(image))
    model = tf_keras.Model(image, tf_keras.layers.Dense(10, name="logits")(hidden))
    values = np.random.default_rng(0).normal(size=model.count_params()) * scale
    parts = np.split(values, np.cumsum([w.size for w in model.get_weights()])[:-1])
    shapes = [weight.shape for weight in model.get_weights()]
    model.set_weights([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
    return model


_BEFORE: dict[str, Any] = {
    "augment": Shift(),
    "views": 2,
    "layers": ["hidden"],
    "seed": 1,
    "data_name": "pictures 1",
}
_CHANGES: dict[str, Any] = {
    "augment": Shift(2),
    "views": 3,
    "dtype": "float32",
    "layers": ["hidden", "flat"],
    "seed": 2,
    "data_name": "pictures 2",
    "top_k": 3,
}


def test_targets_of_other_settings_are_refused_and_both_sides_shown(tmp_path: Path) -> None:
    path = tmp_path / "targets"
    teacher = _layered()
    _store(path, teacher, **_BEFORE)
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    shown = {"layers": r"\['hidden'\], now \['hidden', 'flat'\]", "dtype": "'float16', now 'flo"}
    for name, value in _CHANGES.items():
        both = shown.get(name, r"\S.*, now \S")
        with pytest.raises(RunDirectoryError, match=f"`path` must hold .*{name}: stored {both}"):
            _store(path, teacher, **{**_BEFORE, name: value})
    with pytest.raises(RunDirectoryError, match=r"Received: teacher: stored '\w{64}', now '\w{64}"):
        _store(path, _layered(scale=1.0001), **_BEFORE)
    with pytest.raises(
        RunDirectoryError, match=r"inputs: stored 'Tens.*\(None, 6, 6, 1\).*float64"
    ):
        _store(path, teacher, _batches(pictures()[0].astype(np.float64)), **_BEFORE)
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


def test_overwrite_stores_anew(copied: Path) -> None:
    other = Remembering(1)
    with pytest.raises(RunDirectoryError, match="`path` must hold targets of this teacher"):
        _store(copied, other)
    stored = _store(copied, other, overwrite=True)
    assert other.times(pictures()[0]) == EXAMPLES
    logits = _rows(stored)[0]
    assert not np.array_equal(logits, _rows(_store(copied, Remembering(), overwrite=True))[0])


def test_other_data_are_noticed_by_their_values(copied: Path) -> None:
    images = pictures()[0]
    images[-1, 0, 0, 0] += 1 / 16
    teacher = Remembering()
    with pytest.raises(RunDirectoryError, match=r"data, sum: stored '\w{16}', now '\w{16}'"):
        _store(copied, teacher, _batches(images))
    assert teacher.times(images) == 0
    stored = _store(copied, teacher, _batches(images), overwrite=True)
    assert teacher.times(images) == stored.examples == EXAMPLES
    assert stored.readings == 2


def test_data_that_are_named_are_not_read_again(tmp_path: Path) -> None:
    assert _store(tmp_path, data_name="pictures 1").readings == 1
    assert _store(tmp_path, data_name="pictures 1").readings == 0


class _GaveUpError(Exception):
    pass


def test_nothing_is_cleared_while_another_process_settles(copied: Path) -> None:
    """Of two that begin at once one would remove the other's first shard."""

    def give_up(*_: object) -> None:
        raise _GaveUpError

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        with open(copied / ".lock-settling", "w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)  # as another process would; filelock knows its own
            signal.setitimer(signal.ITIMER_REAL, 2.0)
            with pytest.raises(_GaveUpError):
                _store(copied, Remembering(1), overwrite=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert _store(copied).examples == EXAMPLES


# --- memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_examples(tmp_path: Path) -> None:
    process = _start("memory", tmp_path)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    few, many = json.loads(said.splitlines()[-1])
    assert many - few < 40e6

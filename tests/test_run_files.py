"""What run directories are made of: fingerprints and single files."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
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

from tfdistill.errors import SettingError
from tfdistill.runs import files
from tfdistill.runs.run import fingerprint


@pytest.fixture(scope="module", autouse=True)
def two_devices() -> None:
    """Nothing here needs TensorFlow, so nothing here starts it."""


@pytest.fixture(autouse=True)
def clean_session() -> None:
    """Nothing here needs TensorFlow, so there is nothing to clear."""


# --- fingerprints


@dataclasses.dataclass(frozen=True)
class Temperature:
    value: float


@dataclasses.dataclass(frozen=True)
class Weight:
    value: float


class Configured:
    def __init__(self, value: object, weights: object = None) -> None:
        self.value = value
        if weights is not None:
            self.get_weights = lambda: weights

    def get_config(self) -> dict[str, object]:
        return {"value": self.value}


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, -1.0, 0.5, float("inf")])
    | st.text("[]1:,\"'", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("ab1", max_size=1), inner, max_size=2)
    ),
    max_leaves=4,
)


def typed(value: Any) -> object:
    """An independent statement of what makes two plain values the same."""
    if isinstance(value, dict):
        return dict, frozenset((key, typed(item)) for key, item in value.items())
    if isinstance(value, list):
        return list, tuple(map(typed, value))
    return type(value), value


@unhurried(max_examples=300)
@hypothesis.given(plain_values, plain_values)
def test_fingerprints_are_equal_where_the_values_are(a: object, b: object) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (typed(a) == typed(b))


@unhurried(max_examples=50)
@hypothesis.given(st.dictionaries(st.text(), st.integers(), min_size=2), st.randoms())
def test_the_order_of_keys_does_not_count(value: dict[str, int], order: random.Random) -> None:
    keys = list(value)
    order.shuffle(keys)
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)


@unhurried(max_examples=50)
@hypothesis.given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_side=3)), st.data())
def test_every_bit_of_an_array_counts(array: npt.NDArray[Any], data: st.DataObject) -> None:
    content = bytearray(array.tobytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    other = np.frombuffer(bytes(content), array.dtype).reshape(array.shape)
    assert fingerprint(array) != fingerprint(other)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1,), (1.0,)),
        ((1,), (True,)),
        ((1,), ("1",)),
        (({1: 2},), ({"1": 2},)),
        (([1], [2]), ([1, 2],)),
        ((), (None,)),
        ((np.zeros(4, "f4"),), (np.zeros(4, "i4"),)),
        ((np.zeros((2, 3)),), (np.zeros((3, 2)),)),
        ((np.zeros(2, ml_dtypes.bfloat16),), (np.zeros(2, np.float16),)),
        ((np.float32(0.5),), (0.5,)),
        ((Temperature(1.0),), (Weight(1.0),)),
        ((Temperature(1.0),), ({"value": 1.0},)),
        ((Temperature(1.0),), (Temperature(2.0),)),
        ((Configured(1),), (Configured(2),)),
        ((Configured(1, [np.zeros(2)]),), (Configured(1, [np.ones(2)]),)),
        (({"array": ["float32", [], "x"]},), (np.float32(1),)),
    ],
)
def test_what_must_not_share_a_fingerprint(a: tuple[object, ...], b: tuple[object, ...]) -> None:
    assert fingerprint(*a) != fingerprint(*b)


def test_what_must_share_a_fingerprint() -> None:
    assert fingerprint((1, (2,))) == fingerprint([1, [2]])
    assert fingerprint(Temperature(1.0)) == fingerprint(Temperature(1.0))
    assert fingerprint(Configured((1, 2))) == fingerprint(Configured([1, 2]))
    assert fingerprint(np.float64(0.5)) == fingerprint(0.5)
    assert fingerprint(np.arange(6)[::2]) == fingerprint(np.array([0, 2, 4]))


def test_where_in_the_library_a_setting_lies_is_not_in_its_fingerprint() -> None:
    """Else every run would be redone whenever a module is moved."""

    def of_module(name: str) -> str:
        kind = dataclasses.make_dataclass("Setting", ["value"], namespace={"__module__": name})
        return fingerprint(kind(1))

    assert of_module("tfdistill.before") == of_module("tfdistill.moved.here")
    assert of_module("tfdistill.before") != of_module("theirs.before") != of_module("theirs.moved")


def test_fingerprints_are_the_same_in_every_process() -> None:
    code = """
        import numpy as np
        from tfdistill.runs.run import fingerprint
        print(fingerprint({"b": 1, "a": [0.1, "é", None]}, np.arange(3, dtype="<i8")))
    """
    seen = {
        subprocess.run(
            run_python(code),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = fingerprint({"a": [0.1, "é", None], "b": 1}, np.arange(3, dtype="<i8"))
    assert seen == {f"{here}\n".encode()}
    # Also the same in the next version: else every run made with this one would be redone.
    assert fingerprint({"sparsity": 0.75, "epochs": 5}).startswith("0f1d48ab")


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"a": [1, print]}, r"parts\[1\]\['a'\]\[1\] = <built-in function print>"),
        ({1, 2}, r"parts\[1\] = \{1, 2\}"),
        (Temperature, r"parts\[1\] = <class"),
        (np.array([None]), r"parts\[1\] = array\(\[None\]"),
        (Configured(print), r"parts\[1\]\.get_config\(\)\['value'\] = <built-in"),
    ],
)
def test_what_has_no_fingerprint_is_named(part: object, where: str) -> None:
    with pytest.raises(SettingError, match=rf"`parts` must be made of .* Received: {where}.*Give"):
        fingerprint("fine", part)


# --- single files


def test_write_json_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    data = {"nan": float("nan"), "inf": [-np.inf], "x": np.float32(0.5), "p": Path("q"), "é": (1,)}
    files.write_json(path, data)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(path.read_text("utf-8"), parse_constant=refuse) == {
        **{"nan": None, "inf": [None], "x": 0.5, "p": "q", "é": [1]}
    }


def test_write_text_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("old", "néw\n"):
        files.write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_bytes() == "néw\n".encode()
    assert names_in(tmp_path) == {"a.txt"}


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_replace(source: str, target: str) -> None:
        calls.append(("replace", os.fspath(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    files.write_bytes(tmp_path / "a", b"data")
    temporary = calls[0][1]
    assert calls == [("fsync", temporary), ("replace", temporary), ("fsync", str(tmp_path))]


def test_an_interrupted_write_leaves_the_older_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(tmp_path / "a", "old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a", "new")
    assert names_in(tmp_path) == {"a"}
    assert (tmp_path / "a").read_text() == "old"


def test_files_are_as_open_to_others_as_the_umask_says(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "text")
    finally:
        os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640

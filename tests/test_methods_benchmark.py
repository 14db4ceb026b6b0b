"""The gallery of `benchmarks.methods`: its rows, its trainings, its table."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from benchmarks.gallery.rows import GROUPS
from benchmarks.gallery.tasks import IMAGES, TEACHERS, Method, alone, as_code, log_odds
from benchmarks.gallery.training import Budget, Data, Gallery
from benchmarks.methods import Results, chosen, measure, table
from tfdistill import losses, schedules
from tfdistill._keras import tf
from tfdistill.terminal import Terminal

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BUDGET = Budget(examples=128, epochs=8, teacher_epochs=5, batch_size=16)
METHODS = {method.name: method for group in GROUPS for method in group}


def stripes(examples: int, seed: int) -> tuple[Any, Any]:
    """Noise, with a bright stripe in a place that is the class's."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, examples)
    images = generator.uniform(0, 0.2, [examples, 28, 28, 1]).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label + 4 : 2 * label + 6] += 0.1 * label
        image[2 * label + 4 : 2 * label + 6] += 0.5
    return images, labels


DATA = Data(*stripes(256, seed=0), *stripes(200, seed=1))


class Untrained(Gallery):
    """A gallery whose teachers have learnt nothing."""

    def teacher(self, name: str) -> Any:
        if name not in self._teachers:
            self._teachers[name] = TEACHERS[name]()
        return self._teachers[name]


def run(folder: Path, groups: Sequence[Sequence[Method]], gallery: Any) -> str:
    terminal = Terminal(io.StringIO())
    measure(gallery, Results(folder / "results.json", BUDGET), groups, 1, terminal, rounds=3)
    return (folder / "results.json").read_text()


# --- the rows ---


def all_losses() -> list[Any]:
    return [loss for method in METHODS.values() for loss in tf.nest.flatten(method.losses)]


def test_every_loss_has_a_row() -> None:
    declared = {
        each
        for each in vars(losses).values()
        if isinstance(each, type) and issubclass(each, losses.DistillationLoss)
    }
    assert declared - {losses.DistillationLoss} == {type(loss) for loss in all_losses()}


def test_every_kind_of_soft_target_and_schedule_has_a_row() -> None:
    shown = " ".join(method.code for method in METHODS.values())
    divergences = get_args(get_type_hints(losses.SoftTargets)["divergence"])
    assert divergences
    for divergence in divergences:
        assert any(getattr(loss, "divergence", None) == divergence for loss in all_losses())
    names = [*schedules.__all__, "FLSW", "CWSM", "Ensemble", "MovingAverage", "Adversarial"]
    names += ["Mixup", "CutMix"]
    for name in {*names} - {"Schedule", "is_zero", "least_of"}:
        assert f"{name}(" in shown


def test_rows_differ() -> None:
    methods = [method for group in GROUPS for method in group]
    assert len(METHODS) == len(methods)
    assert all(not group[0].losses for group in GROUPS)
    for group in GROUPS:
        assert len({(method.code, method.labelled) for method in group}) == len(group)
        assert {method.task for method in group} == {group[0].task}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, two_devices: None) -> Untrained:
    return Untrained(DATA, tmp_path_factory.mktemp("gallery"), BUDGET)


_QUICK = [*METHODS][::8]  # the others with `make test-slow`


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in _QUICK else [pytest.mark.slow]) for n in METHODS]
)
def test_row_can_be_built(name: str, untrained: Untrained) -> None:
    method = METHODS[name]
    student = untrained.build(method, 0, trained=False).student
    if method.task.student is IMAGES.student:
        same = untrained.build(METHODS["student alone"], 0).student
        for ours, theirs in zip(student.weights, same.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_settings_are_shown_as_they_are_written() -> None:
    soft = losses.SoftTargets(schedules.Linear(8, 2), weight=0.9, name="soft")
    assert as_code(soft) == "SoftTargets(temperature=Linear(8, 2), weight=0.9)"
    assert as_code(losses.Hint("a", ["b"][0])) == "Hint('a', student_layer='b')"
    assert Method("m", [losses.DIST()], settings={"unlabelled": 0}, says="teacher=x").code == (
        "[DIST()], label_loss_weight=1, unlabelled=0, teacher=x"
    )


# --- the trainings ---


@pytest.mark.slow
def test_a_row_is_trained_measured_and_not_again(tmp_path: Path) -> None:
    hint = losses.Hint("auto", weight=0.5)
    taught = Method("taught", [losses.SoftTargets(2.0, weight=0.9), hint], 0.1)
    group = (alone("alone"), taught)
    gallery = Gallery(DATA, tmp_path, BUDGET)

    kept = run(tmp_path, [group], gallery)

    found = json.loads(kept)
    rows = found["methods"]
    assert found["teachers"]["teacher"]["accuracy"] > 0.5
    assert rows["taught"]["accuracy"]["0"] > 0.3
    assert rows["taught"]["accuracy"] != rows["alone"]["accuracy"]
    assert rows["taught"]["step_ratio"] > 1.1, "a larger teacher is asked at each step"
    assert rows["alone"]["step_ratio"] > 0
    assert len([*(tmp_path / "targets").iterdir()]) == 1

    assert run(tmp_path, [group], None) == kept, "a gallery is not even asked"
    missing = rows["taught"]["accuracy"].pop("0")
    (tmp_path / "results.json").write_text(json.dumps(found))
    again = json.loads(run(tmp_path, [group], Gallery(DATA, tmp_path, BUDGET)))["methods"]
    assert again["taught"]["accuracy"]["0"] == pytest.approx(missing, abs=0.05)
    assert again["alone"] == rows["alone"]

    results = Results(tmp_path / "results.json", BUDGET)
    assert results.of(taught)["accuracy"]
    assert not results.of(dataclasses.replace(taught, label_weight=0.2))["accuracy"]


def test_results_of_another_budget_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(path, BUDGET).write()
    with pytest.raises(SystemExit, match=r"'epochs': 8.*not of.*'epochs': 5.*--results"):
        Results(path, dataclasses.replace(BUDGET, epochs=5))


def test_methods_of_a_seed_see_the_same_batches(tmp_path: Path) -> None:
    gallery = Untrained(DATA, tmp_path, BUDGET)
    orders = []
    for name, seed in (("student alone", 0), ("soft targets", 0), ("soft targets", 1)):
        gallery.build(METHODS[name], seed)
        batches = gallery.batches(METHODS[name], seed)
        orders.append([[labels.numpy() for _, labels in batches] for _ in range(2)])
    first, same, other = orders
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1]), "another order in each epoch"


def test_a_tenth_of_the_labels_is_known(tmp_path: Path) -> None:
    gallery = Untrained(DATA, tmp_path, BUDGET)
    labelled, taught = (
        METHODS[f"{name}, a tenth of the labels"] for name in ("student alone", "soft targets")
    )
    marked = np.concatenate([labels for _, labels in gallery.batches(taught, 0)])
    assert len(marked) == 128
    assert (marked.sum(axis=1) == 1).sum() == 13

    images = np.concatenate([images for images, _ in gallery.batches(labelled, 0)])
    assert len(images) == 128, "as many steps"
    np.testing.assert_array_equal(np.unique(images, axis=0), np.unique(DATA.images[:13], axis=0))


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = np.array([[1.0, -2.0, 0.5] + [0.0] * 7, [40.0] + [0.0] * 9])
    exponentials = np.exp(logits)
    wanted = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = log_odds(tf.constant(logits, tf.float32))
    np.testing.assert_allclose(tf.sigmoid(found), wanted, rtol=1e-5)


# --- the table ---


def test_table_of_results(tmp_path: Path) -> None:
    baseline, better = alone("alone"), Method("better", [losses.DIST()], taught="live")
    unfinished = Method("unfinished", [losses.Hint("a", "b")])
    results = Results(tmp_path / "results.json", BUDGET)
    results.teachers["teacher"] = {"parameters": 74000, "accuracy": 0.91}
    results.teachers["second"] = {"seconds": {}}
    results.of(baseline).update(accuracy={"0": 0.80, "1": 0.82}, parameters=7600, step_ratio=1.0)
    results.of(better).update(accuracy={"0": 0.81, "1": 0.84, "2": 0.9}, step_ratio=2.345)

    assert table(results, [(baseline, better, unfinished)]).splitlines()[2:] == [
        "| *teacher* | 74,000 parameters | 0.9100 | | | |",
        "| **alone** | 7,600 parameters | 0.8100 ± 0.0141 |  | 1.00 | - |",
        "| better | `[DIST()], label_loss_weight=1` | 0.8500 ± 0.0458 | +0.0150 ± 0.0071 "
        "| 2.35 | live |",
    ]


def test_chosen_methods_come_with_their_student_alone() -> None:
    first, second = (Method("a"), Method("b"), Method("c")), (Method("d"), Method("e"))
    assert chosen([first, second], ["c"]) == [(first[0], first[2])]
    assert chosen([first, second], ["d"]) == [(second[0],)]

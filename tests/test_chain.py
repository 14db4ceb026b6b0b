"""Students taught one after the other."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import examples, perceptron

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf_keras
from tfdistill.data.batches import shuffled
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.pipeline import Result
from tfdistill.report import Report, Row
from tfdistill.runs.stage import Stage
from tfdistill.terminal import Terminal

INPUTS, LABELS, _ = examples(60)
TRAIN = (INPUTS, LABELS)
SMALL = td.Distillation(epochs=2, learning_rate=0.05)
PIPELINE = td.Pipeline(
    distillation=SMALL,
    pruning=td.Pruning(sparsity=0.5, epochs=1),
    export=td.Export(
        formats=("float16",),
        label_names=("one", "two", "three"),
        limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0),
    ),
)
DISTILLED = td.Pipeline(distillation=SMALL, export=td.Export(formats=()), baseline=False)


def teacher() -> Any:
    return perceptron(keras, units=32, seed=9, name="teacher")


def students() -> list[Any]:
    """A Keras 3 assistant, and a tf_keras student with a softmax."""
    return [
        perceptron(keras, units=16, seed=1, name="assistant"),
        perceptron(tf_keras, units=8, seed=2, activation="softmax"),
    ]


def shuffled_train() -> Any:
    from tfdistill._keras import tf

    return shuffled(tf.data.Dataset.from_tensor_slices(TRAIN), 60, seed=3).batch(20)


def run(run_dir: Path, train: Any = TRAIN, pipeline: Any = PIPELINE, **more: Any) -> Any:
    return td.distill_in_turn(
        students(), teacher(), train, pipeline=pipeline, test=TRAIN, run_dir=run_dir, **more
    )


def weights_of(result: Any) -> list[Any]:
    return [np.array(weight) for weight in result.student.get_weights()]


def assert_same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def by_hand(two_devices: None, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two runs make that are called one after the other."""
    folder = tmp_path_factory.mktemp("by_hand")
    found: list[Any] = []
    for place, (student, pipeline) in enumerate(
        zip(students(), (DISTILLED, PIPELINE), strict=True)
    ):
        who = found[-1].student if found else teacher()
        run_dir = folder / str(place)
        found.append(pipeline.run(student, who, TRAIN, test=TRAIN, run_dir=run_dir, verbose=0))
    return found


@pytest.mark.slow
def test_each_link_is_the_run_that_one_would_make_by_hand(
    by_hand: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(tmp_path / "birds")
    for ours, theirs in zip(results, by_hand, strict=True):
        assert_same(weights_of(ours), weights_of(theirs))
    assert isinstance(results[0].student, keras.Model)
    assert isinstance(results[1].student, tf_keras.Model)
    moved = np.abs(weights_of(results[1])[0] - students()[1].get_weights()[0]).max()
    assert moved > 1e-3

    assert [[row.name for row in result.report.rows] for result in results] == [
        ["teacher", "distilled"],
        ["teacher", "student alone", "distilled", "pruned", "float16"],
    ]
    assert sorted(path.name for path in (tmp_path / "birds").iterdir()) == [
        *("student_1", "student_2"),
    ]
    assert not (tmp_path / "birds/student_1/artifacts").exists()
    assert not results[0].artifacts
    assert results[1].artifacts["float16"].path.exists()
    assert results[0].report.label_names == results[1].report.label_names
    assert (tmp_path / "birds/student_1/report.html").exists()

    assistant, last = (result.report.rows for result in results)
    said = capsys.readouterr().out
    table = said[said.rindex("\nbirds\n") :]
    expected = {
        "teacher": assistant[0],
        "student_1": assistant[1],
        "student_2": next(row for row in last if row.name == "pruned"),
    }
    for name, row in expected.items():
        assert re.search(rf"^ *{name} +{100 * row.accuracy:.2f}%", table, re.M), name
    assert last[0].accuracy == assistant[1].accuracy  # it is the teacher there


@pytest.mark.slow
def test_stopped_in_any_link_it_goes_on_and_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = dataclasses.replace(PIPELINE, pruning=None, export=td.Export(formats=()))
    whole = run(tmp_path / "whole", shuffled_train, pipeline)
    save = Stage.save_checkpoint

    def stop(self: Any, epoch: int, *args: Any) -> None:
        save(self, epoch, *args)
        if "student_2" in str(self.path) and epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", shuffled_train, pipeline)
    capsys.readouterr()
    stopped = run(tmp_path / "stopped", shuffled_train, pipeline)
    assert capsys.readouterr().out.count("distillation: finished before") == 1
    for ours, theirs in zip(stopped, whole, strict=True):
        assert_same(weights_of(ours), weights_of(theirs))
    again = run(tmp_path / "stopped", shuffled_train, pipeline)
    assert capsys.readouterr().out.count("finished before") == 3  # and the last one alone
    assert_same(weights_of(again[1]), weights_of(whole[1]))


@pytest.mark.slow
def test_generations_may_each_have_settings_of_their_own(tmp_path: Path) -> None:
    """The same network three times; the first one is not changed by being taught."""
    network = perceptron(keras, units=8, seed=4)
    before = [np.array(weight) for weight in network.get_weights()]
    each = [
        dataclasses.replace(DISTILLED, distillation=td.Distillation(epochs=epochs))
        for epochs in (1, 2, 3)
    ]
    results = td.distill_in_turn(
        [network] * 3,
        teacher(),
        TRAIN,
        pipeline=each,
        validation=TRAIN,
        run_dir=tmp_path,
        verbose=0,
    )
    assert [len(result.report.histories["distillation"]["loss"]) for result in results] == [1, 2, 3]
    assert_same(network.get_weights(), before)
    prints = {
        json.loads((tmp_path / f"student_{number}/distillation/stage.json").read_text())[
            "fingerprint"
        ]
        for number in (1, 2, 3)
    }
    assert len(prints) == 3
    together = td.teachers.Ensemble([result.student for result in results])
    assert len(together.names) == 3


def test_each_student_is_taught_by_the_trained_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with which settings; what a run makes of them the slow tests see."""
    runs: list[tuple[Any, ...]] = []
    checks: list[tuple[Any, ...]] = []

    def check(pipeline: Any, student: Any, who: Any) -> None:
        assert not runs
        checks.append((pipeline, student, who))

    def remember(pipeline: Any, student: Any, who: Any, train: Any, **settings: Any) -> Result:
        runs.append((pipeline, student, who, train, settings))
        accuracies = {"distilled": 0.1, "pruned": 0.2, "quantized": 0.3}
        rows = [Row("teacher", "teacher", accuracy=0.1 * len(runs))]
        rows += [Row(n, "stage", accuracy=0.1 * len(runs) + a / 10) for n, a in accuracies.items()]
        return Result(f"trained {len(runs)}", {}, Report("run", tuple(rows)))

    monkeypatch.setattr(td.Pipeline, "check", check)
    monkeypatch.setattr(td.Pipeline, "run", remember)
    tables: list[Any] = []
    monkeypatch.setattr(Terminal, "rows", lambda terminal, table: tables.append(table))
    whole = dataclasses.replace(PIPELINE, quantization=td.Quantization(), seed=4)
    given: dict[str, Any] = {
        "validation": TRAIN,
        "test": TRAIN,
        "steps_per_epoch": 3,
        "data_name": "birds",
    }
    given |= {"augment": td.RandomShiftAndFlip(), "verbose": 0}
    network, who = perceptron(keras, units=4), teacher()
    makes = iter("abc")
    results = td.distill_in_turn(
        [network] * 3, who, lambda: next(makes), pipeline=whole, run_dir=tmp_path, **given
    )
    pipelines, taught, teachers, trains, settings = zip(*runs, strict=True)
    assert [result.student for result in results] == ["trained 1", "trained 2", "trained 3"]
    assert teachers == (who, "trained 1", "trained 2")
    assert taught == (network,) * 3
    assert trains == ("a", "b", "c")
    for number, each in enumerate(settings, start=1):
        assert each == {**given, "run_dir": tmp_path / f"student_{number}"}
    between = dataclasses.replace(
        whole,
        pruning=None,
        quantization=None,
        baseline=False,
        export=td.Export(formats=(), label_names=("one", "two", "three")),
    )
    assert pipelines == (between, between, whole)
    assert checks == [*zip(pipelines, [network] * 3, [who, network, network], strict=True)]
    ((header, *rows),) = tables
    assert [row[0] for row in rows] == ["teacher", "student_1", "student_2", "student_3"]
    assert [row[1] for row in rows] == ["10.00%", "12.00%", "22.00%", "32.00%"], header


# --- refused ---


def of_four_classes() -> list[Any]:
    return [students()[0], perceptron(keras, units=8, classes=4)]


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"students": of_four_classes},
            ModelError,
            "student_2: `teacher` and `student` must have the same classes. "
            "Received: teacher output (3,), student output (4,).",
        ),
        (
            {
                "pipeline": lambda: td.Pipeline(
                    distillation=td.Distillation(losses=[losses.Hint("hidden", "no_such_layer")])
                )
            },
            ModelError,
            "student_1: `no_such_layer` must be a layer of the student.",
        ),
        (
            {"students": lambda: students()[:1]},
            SettingError,
            "`students` must be a list of two students or more. Received: 1 of them. "
            "A single student is taught by Pipeline.run.",
        ),
        ({"students": lambda: students()[0]}, SettingError, "Received: Functional."),
        (
            {"pipeline": lambda: [PIPELINE]},
            SettingError,
            "`pipeline` must be a td.Pipeline, or a list of one for each student. "
            "Received: 1 for 2 students.",
        ),
        ({"pipeline": lambda: SMALL}, SettingError, "a list of one for each student. Received: D"),
        (
            {"train": shuffled_train},
            DataError,
            "`train` must be a tuple of NumPy arrays, or a function that makes the data. Received",
        ),
    ],
)
def test_nothing_is_trained_where_a_link_does_not_fit(
    settings: Any, kind: Any, message: str, tmp_path: Path
) -> None:
    given = {
        "students": students,
        "train": lambda: TRAIN,
        "pipeline": lambda: PIPELINE,
        **settings,
    }
    taught, train, pipeline = (given[name]() for name in ("students", "train", "pipeline"))
    with pytest.raises(kind, match=re.escape(message)):
        td.distill_in_turn(
            taught, teacher(), train, pipeline=pipeline, test=TRAIN, run_dir=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_pipeline_without_formats_refuses_no_student_that_cannot_be_exported() -> None:
    numbers = tf_keras.layers.Input([4])
    hidden = tf_keras.layers.Lambda(lambda x: x * 2.0)(tf_keras.layers.Dense(5)(numbers))
    student = tf_keras.Model(numbers, tf_keras.layers.Dense(3)(hidden))
    DISTILLED.check(student, teacher())
    with pytest.raises(SettingError, match="`label_names` must be 3 names"):
        dataclasses.replace(
            DISTILLED, export=td.Export(formats=(), label_names=("one", "two"))
        ).check(student, teacher())


def test_the_methods_page_shows_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"test_chain\.py\. -->\n```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    shown: dict[str, Any] = {
        "td": td,
        "pipeline": DISTILLED,
        "teacher": teacher(),
        "assistant": students()[0],
        "student": students()[1],
        "images": INPUTS,
        "labels": LABELS,
        "test": TRAIN,
    }
    exec(lines, shown)
    assert isinstance(shown["together"], td.teachers.Ensemble)
    assert (tmp_path / "saved_models/birds/student_2/report.html").exists()

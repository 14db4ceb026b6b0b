"""Numbers: how near they are, what is refused of them, and what is not known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from formulas import r_squared
from networks import examples, logits_of, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.certificate import Certificate
from tfdistill.cli import _print_json, _shares
from tfdistill.comparison import Compared
from tfdistill.data.summary import summarise
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.evaluation import Evaluation, agreement
from tfdistill.export import export_model
from tfdistill.output_certificate import certified
from tfdistill.page import render
from tfdistill.regression import errors_of_numbers, explained, explained_of_each
from tfdistill.report import OutputRow, Report, Row

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = Any

NUMBERS = [td.losses.RegressionTargets()]


# --- how near numbers are ---


def test_explained_in_closed_form() -> None:
    targets = np.array([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]])
    assert explained_of_each(targets, targets) == (1.0, 1.0)
    middle = np.broadcast_to(targets.mean(axis=0), targets.shape)
    assert explained_of_each(middle, targets) == (0.0, 0.0)
    outputs = targets + np.array([[0.0, 10.0], [0.0, 0.0], [1.0, 0.0]])
    assert explained_of_each(outputs, targets) == pytest.approx((1 - 1 / 2, 1 - 100 / 200))
    assert explained(outputs, targets) == pytest.approx(0.5)
    assert errors_of_numbers(outputs, targets) == pytest.approx((1 / 3, 10 / 3))
    assert explained_of_each(targets[::-1], targets)[0] == pytest.approx(-3.0)
    run = Compared("numbers", 2, outputs, targets, outputs, targets, labels=None, kind="numbers")
    assert certified(run, None, ()).agreement == pytest.approx(0.5)  # of the model's variance
    constant = np.full([3, 1], 7.0)
    assert explained_of_each(constant, constant) == (1.0,)
    assert explained_of_each(constant + 1, constant) == (0.0,)


def test_less_than_nothing_can_be_explained() -> None:
    row = Row("distilled", "stage", -2.5, mean_absolute_errors=(3.0, 5.0))
    assert row.cells()[1:3] == ("-250.00%", "4")
    assert OutputRow(np.nan, -0.5).teacher_agreement == -0.5  # of an output without labels


def test_what_is_not_finite_is_not_known() -> None:
    targets = np.array([[1.0, 10.0], [2.0, 30.0]])
    broken = targets.copy()
    broken[0, 1] = np.inf
    for found in (explained_of_each(broken, targets), errors_of_numbers(broken, targets)):
        assert np.isfinite(found[0])
        assert np.isnan(found[1])
    assert np.isnan(explained(broken, targets))
    one = targets[:1]
    assert np.isnan(explained_of_each(one, one)).all()  # of one there is no variance


def test_agreement_is_of_what_the_other_says() -> None:
    rng = np.random.default_rng(0)
    ours, theirs, labels = rng.normal(size=[3, 20, 2]).astype(np.float32)
    numbers: Any = {"": "numbers"}
    one, other = (Evaluation(said, labels, numbers) for said in (ours, theirs))
    assert agreement(one, other) == pytest.approx(r_squared(ours, theirs).mean())
    assert agreement(other, one) == pytest.approx(r_squared(theirs, ours).mean())
    # Beside classes numbers do not count: an example has no share of their variance.
    classes = np.array([0, 1] * 10)
    kinds: Any = {"numbers": "numbers"}
    both = Evaluation(
        {"class": np.eye(2, dtype=np.float32)[classes], "numbers": ours},
        {"class": np.where(np.arange(20) < 5, 1 - classes, classes), "numbers": labels},
        kinds,
    )
    assert both.accuracy == 0.75
    assert both.of("numbers").accuracy == pytest.approx(r_squared(ours, labels).mean())
    alone = Evaluation({"a": ours, "b": theirs}, {"a": labels, "b": labels}, {"a": "numbers"})
    assert np.isfinite(alone.of("a").accuracy)


# --- distillers ---


def test_distillers_have_no_agreement_of_numbers() -> None:
    inputs, _, _ = examples(12)
    numbers = np.random.default_rng(0).normal(size=[12, 3]).astype(np.float32)
    student, teacher = perceptron(tf_keras), perceptron(keras, seed=1)
    distiller = td.Distiller(student, teacher, NUMBERS, 0.5)
    distiller.compile("sgd", "mse", metrics=["mae"])
    logs = distiller.evaluate(inputs, numbers, verbose=0, return_dict=True)
    assert {*logs} == {"loss", "label_loss", "regression_targets", "mae"}
    s, t = (logits_of(each.get_weights(), inputs) for each in (student, teacher))
    assert logs["regression_targets"] == pytest.approx(np.square(s - t).mean(), rel=1e-5)
    students = [perceptron(tf_keras, seed=seed) for seed in (0, 1)]
    mutual = td.MutualDistiller(students, NUMBERS)
    mutual.compile("sgd", "mse")
    assert not [
        log
        for log in mutual.evaluate(inputs, numbers, verbose=0, return_dict=True)
        if "agreement" in log
    ]


# --- certify alone ---


def test_an_artifact_knows_that_it_gives_numbers(tmp_path: Path) -> None:
    inputs, classes, _ = examples(30)
    model = perceptron(tf_keras)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", kinds={"": "numbers"})
    path.with_suffix(".json").unlink()  # the file itself says so, too
    outputs = logits_of(model.get_weights(), inputs)
    wanted = outputs + np.random.default_rng(0).normal(size=outputs.shape)
    found = td.certify(path, model, (inputs, wanted))
    assert found.accuracy == pytest.approx(r_squared(outputs, wanted).mean(), abs=1e-5)
    assert found.passed
    beside = json.loads(found.write_sidecar(path).read_text())["interface"]["outputs"][0]
    assert beside["values"] == "numbers"
    for labels, message in (
        (classes, r"`data` must have labels \[batch, 3\]: the artifact gives so many.*\(30,\)"),
        (wanted * np.nan, r"`data` must have labels that are finite numbers\. Received: nan"),
    ):
        with pytest.raises(DataError, match=message):
            td.certify(path, model, (inputs, labels))


def test_limits_speak_of_numbers(tmp_path: Path) -> None:
    inputs, _, _ = examples(30)
    model, other = perceptron(tf_keras), perceptron(tf_keras, seed=5)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", kinds={"": "numbers"})
    wanted = logits_of(other.get_weights(), inputs)
    found = td.certify(path, other, (inputs, wanted))
    words = " ".join(found.failures)
    assert "R² drops by" in words
    assert f"explains {found.agreement:.4f} of the variance of the model's numbers" in words


# --- data and the door ---

INPUTS = np.zeros([4, 2], np.float32)
ROWS = np.array([[1, 1.5, 0], [0, -3, 0], [0.25, 100, 0.75], [0, 1, 0]], np.float32)


def _summary(labels: Any, classes: int = 3, **more: Any) -> Any:
    return summarise((INPUTS, labels), classes=classes, kind="numbers", **more)


def test_a_look_counts_who_has_numbers() -> None:
    found = _summary(ROWS)
    assert (found.labels, found.label_counts, found.labelled) == ("numbers", (4,), 4)
    for labels in (ROWS[:, 0], ROWS[:, :1], np.array([3, -1, 70, 2])):
        assert _summary(labels, 1).labels == "numbers"
    marked = ROWS.copy()
    marked[1] = np.nan
    assert _summary(marked, unlabelled=np.nan).labelled == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (ROWS[:, :2], r"`train` must have 3 numbers for each example.*'batch', 2\].*LogitsMSE"),
        (ROWS[:, 0], r"`train` must have 3 numbers for each example, as labels.*\['batch'\]"),
        (ROWS * np.nan, r"`train` must have labels that are finite numbers.*nan.*unlabelled"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _summary(labels)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label_smoothing": 0.1}, r"`label_smoothing` must be 0 where labels are numbers"),
        ({"unlabelled": -1}, r"`unlabelled` must be None or NaN for an output of numbers.*-1"),
        (
            {"losses": [*NUMBERS, td.losses.SoftTargets()]},
            r"`losses` must be of classes\. Received: RegressionTargets, and one of classes",
        ),
    ],
)
def test_what_makes_no_sense_of_numbers_is_refused(
    asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    inputs, classes, _ = examples(12)
    numbers = np.random.default_rng(0).normal(size=[12, 3]).astype(np.float32)
    labels = classes if "losses" in asked else numbers
    pipeline = td.Pipeline(
        td.Distillation(**{"losses": NUMBERS, **asked}), export=td.Export(formats=())
    )
    with pytest.raises(SettingError, match=message):
        pipeline.run(
            perceptron(keras),
            perceptron(keras, seed=1),
            (inputs, labels),
            test=(inputs, labels),
            run_dir=tmp_path,
            verbose=0,
        )


# --- what is not known, and what is no class ---


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("how", [{"combine": "probabilities"}, {"by_confidence": True}])
def test_ensembles_make_no_classes_of_numbers(units: int, how: dict[str, Any]) -> None:
    models = [perceptron(keras, seed=seed, classes=units) for seed in (1, 2)]
    student = perceptron(tf_keras, classes=units)
    with pytest.raises(ModelError, match=r"numbers.*of an ensemble, combine='probabilities'"):
        td.Distiller(student, td.teachers.Ensemble(models, **how), NUMBERS)
    td.Distiller(student, td.teachers.Ensemble(models), NUMBERS)


def test_the_command_says_nothing_of_all_numbers_at_once() -> None:
    several = SimpleNamespace(
        counted="examples",
        accuracy=np.nan,
        agreement=np.nan,
        mean_absolute_errors=(),
        reference_mean_absolute_errors=(),
    )
    assert _shares(cast(Any, several)) == ""
    several.accuracy = None  # of one output without labels
    assert _shares(cast(Any, several)) == "no labels"


def test_agreement_of_numbers_without_labels_has_no_lower_bound() -> None:
    unlabelled = OutputRow(np.nan, -3.5)
    row = Row("distilled", "stage", accuracy=0.5, outputs={"measures": unlabelled})
    assert row.of("measures").teacher_agreement == -3.5
    broken: list[dict[str, Any]] = [{"accuracy": 0.5}, {"accuracy": np.nan, "sparsity": -0.1}]
    for known in broken:
        with pytest.raises(SettingError, match=r"must be in \[0, 1\]"):
            Row("distilled", "stage", **{"teacher_agreement": -3.5, **known})


def test_numbers_alone_have_no_accuracy_of_all() -> None:
    found = {name: OutputRow(0.25, 0.5, (0.25,), (7.0,)) for name in ("length", "weight")}
    report = Report(
        "birds",
        (Row("distilled", "stage", accuracy=np.nan, outputs=found),),
        kinds={"length": "numbers", "weight": "numbers"},
    )
    header, cells = report.table()
    errors = [f"mean absolute error of {name}" for name in found]
    assert header == ("model", "R² of length", errors[0], "R² of weight", errors[1])
    assert cells == ("distilled", "25.00%", "7", "25.00%", "7")
    assert "ccuracy" not in render(report)


def test_r_squared_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, _, _ = examples(30)
    model = perceptron(tf_keras)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", kinds={"": "numbers"})
    wanted = logits_of(model.get_weights(), inputs)

    def overflows(batch: Any) -> Any:
        return tf.where(tf.range(len(batch))[:, tf.newaxis] == 4, np.inf, model(batch))

    found = td.certify(path, overflows, (inputs, wanted))
    assert found.accuracy == pytest.approx(1.0)
    assert found.failures[0] == "The model gives NaN or infinity on 1 of 30 examples."
    _print_json(found.to_dict())
    again = Certificate.from_dict(json.loads(capsys.readouterr().out))
    assert np.isnan([again.reference_accuracy, again.agreement]).all()
    rows = (Row("float32", "artifact", accuracy=found.accuracy, certified=False),)
    page = render(Report("birds", rows, details={"certificates": {"float32": found.to_dict()}}))
    assert " - in Keras" in page

    alone = td.certify(path, model, (inputs[:1], wanted[:1]))
    assert alone.failures == ("R² is of two examples or more; the test set has one.",)


def test_numbers_are_taken_for_no_classes(tmp_path: Path) -> None:
    inputs, _, _ = examples(30)
    model = perceptron(tf_keras)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32")  # which does not say that it gives numbers
    rows = logits_of(model.get_weights(), inputs)
    for labels, message in (
        (rows, r"`data` must have labels in \[0, 1\], for an output of classes\."),
        (np.abs(rows[:, 0]) % 2, "`data` must have labels from 0 to 2"),
    ):
        with pytest.raises(DataError, match=f"{message}.*RegressionTargets"):
            td.certify(path, model, (inputs, labels))
    with pytest.raises(DataError, match=r"label 1\.5\. .*td\.losses\.RegressionTargets teaches"):
        summarise((INPUTS, np.abs(ROWS[:, 1])), classes=200)

"""Rows without labels among rows with labels."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import Array, decoupled_kd, log_probabilities, soft_targets
from networks import examples, logits_of, perceptron, with_random_weights
from quick import only
from targets_process import Remembering, pictures

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.data.summary import summarise
from tfdistill.errors import DataError, SettingError
from tfdistill.labels import known_labels, weighted_by_labels
from tfdistill.runs.fingerprint import fingerprint

SPARSE, DENSE = "sparse_categorical_crossentropy", "categorical_crossentropy"
KNOWN = np.arange(15) % 3 == 0


def one_hot(labels: Array, row: float) -> Array:
    rows = np.eye(3, dtype=np.float32)[labels]
    rows[~KNOWN] = row
    return rows


def marked(labels: Array) -> dict[str, tuple[Any, Array, str]]:
    """The mark, labels with it, and the loss for these."""
    return {
        "-1": (-1, np.where(KNOWN, labels, -1), SPARSE),
        "-1 in a column": (-1, np.where(KNOWN, labels, -1)[:, None], SPARSE),
        "-1 as a float": (-1, np.where(KNOWN, labels, -1).astype(np.float32), SPARSE),
        "NaN": (float("nan"), np.where(KNOWN, labels, np.nan), SPARSE),
        "rows of 0": (0, one_hot(labels, 0), DENSE),
        "rows of NaN": (np.nan, one_hot(labels, np.nan), DENSE),
        "rows of 0 in bytes": (0, one_hot(labels, 0).astype(np.uint8), DENSE),
        "rows of -1": (-1, one_hot(labels, -1).astype(np.int32), DENSE),
    }


KINDS = list(marked(np.zeros(15, int)))
TAUGHT = (losses.SoftTargets(3.0), losses.DecoupledKD(2.0, 1.5, 4.0, weight=0.1))


def make(unlabelled: Any, loss: Any, taught: Any = TAUGHT, **settings: Any) -> Any:
    student = settings.pop("student", None) or perceptron(tf_keras)
    distiller = td.Distiller(
        student, perceptron(keras, units=7, seed=1), taught, 0.3, unlabelled=unlabelled
    )
    settings.setdefault("metrics", ["accuracy"])
    distiller.compile(tf_keras.optimizers.SGD(0.05), loss, **settings)
    return distiller


def expected_logs(inputs: Array, labels: Array, sample_weight: Array) -> dict[str, float]:
    s = logits_of(perceptron(tf_keras).get_weights(), inputs)
    t = logits_of(perceptron(keras, units=7, seed=1).get_weights(), inputs)
    terms = {
        "label_loss": -log_probabilities(s)[np.arange(15), labels] * KNOWN,
        "soft_targets": soft_targets(t, s, 3.0),
        "decoupled_kd": decoupled_kd(t, s, labels, 2.0, 1.5, 4.0) * KNOWN,
    }
    weights = {"label_loss": 0.3, "soft_targets": 1.0, "decoupled_kd": 0.1}
    total = sum(weights[name] * values for name, values in terms.items())
    logs = {name: np.mean(values * sample_weight) for name, values in terms.items()}
    right = s.argmax(axis=1) == labels
    return {
        **logs,
        "loss": np.mean(total * sample_weight),
        "teacher_agreement": np.mean(s.argmax(axis=1) == t.argmax(axis=1)),
        "accuracy": right[KNOWN].mean(),
        "weighted": np.average(right, weights=sample_weight * KNOWN),
    }


@pytest.mark.parametrize("kind", only("-1", "NaN", "-1 in a column", of=KINDS))
def test_rows_without_labels_learn_from_the_teacher_alone(kind: str) -> None:
    inputs, labels, sample_weight = examples(classes=3)
    unlabelled, given, loss = marked(labels)[kind]
    traced = kind in ("-1", "rows of 0")  # which takes time
    accuracy = [_accuracy(loss)]
    distiller = make(unlabelled, loss, weighted_metrics=accuracy, run_eagerly=not traced)
    weighted = {"sample_weight": sample_weight}
    logs = distiller.evaluate(inputs, given, batch_size=6, verbose=0, return_dict=True, **weighted)
    expected = expected_logs(inputs, labels, sample_weight)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4), name

    # Trained, they end where a label loss of weight 0 leaves them.
    history = distiller.fit(inputs, given, batch_size=6, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0])
    by_hand = perceptron(tf_keras)
    for rows in (slice(0, 6), slice(6, 12), slice(12, 15)):
        x, y, known = inputs[rows], labels[rows], KNOWN[rows].astype(np.float32)
        _step_by_hand(by_hand, x, y, known)
    for ours, theirs in zip(distiller.student.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def _accuracy(loss: str) -> Any:
    metrics = tf_keras.metrics
    kinds = {SPARSE: metrics.SparseCategoricalAccuracy, DENSE: metrics.CategoricalAccuracy}
    return kinds[loss](name="weighted")


def _step_by_hand(student: Any, inputs: Array, labels: Array, known: Array) -> None:
    teacher = perceptron(keras, units=7, seed=1)(inputs)
    with tf.GradientTape() as tape:
        logits = student(inputs)
        label_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        soft = losses.functional.soft_targets(teacher, logits, 3.0)
        decoupled = losses.functional.decoupled_kd(teacher, logits, labels, 2.0, 1.5, 4.0)
        loss = tf.reduce_mean(known * (0.3 * label_loss + 0.1 * decoupled) + soft)
    slopes = tape.gradient(loss, student.trainable_weights)
    for weight, slope in zip(student.trainable_weights, slopes, strict=True):
        weight.assign_sub(0.05 * slope)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["two replicas", "jit_compile", "steps_per_execution"])
def test_every_way_of_running_is_the_same(way: str, two_replicas: Any) -> None:
    inputs, labels, sample_weight = examples(15)
    rows = tf.data.Dataset.from_tensor_slices((inputs, np.where(KNOWN, labels, -1), sample_weight))
    data = rows.batch(7)  # 7, 7 and 1, which is split into one and none
    settings: Any = {
        "two replicas": {},
        "jit_compile": {"jit_compile": True},
        "steps_per_execution": {"steps_per_execution": 2},
    }[way]
    results = []
    for scope, more in (
        (contextlib.nullcontext(), {}),
        (two_replicas.scope() if way == "two replicas" else contextlib.nullcontext(), settings),
    ):
        with scope:
            distiller = make(-1, SPARSE, **more)
        history = distiller.fit(data, validation_data=data, verbose=0).history
        results.append((history, [np.array(w) for w in distiller.student.get_weights()]))
    (one, weights), (other, other_weights) = results
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_batch_without_any_label_has_no_label_loss() -> None:
    inputs, _, _ = examples()
    logs = make(-1, SPARSE).evaluate(inputs, np.full(15, -1), verbose=0, return_dict=True)
    assert (logs["label_loss"], logs["decoupled_kd"], logs["accuracy"]) == (0, 0, 0)
    assert logs["loss"] == logs["soft_targets"] > 0


def test_numbers_may_be_missing_too() -> None:
    inputs, _, _ = examples()
    student, teacher = perceptron(tf_keras, classes=1), perceptron(keras, classes=1, seed=1)
    labels = np.where(KNOWN, inputs.sum(axis=1), np.nan)
    taught = [losses.RegressionTargets(bounded=True)]
    distiller = td.Distiller(student, teacher, taught, 1.0, unlabelled=np.nan)
    distiller.compile(tf_keras.optimizers.SGD(0.01), "mse", metrics=["mae"])
    logs = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    s = logits_of(student.get_weights(), inputs)[KNOWN, 0]
    assert logs["label_loss"] == pytest.approx(np.square(s - labels[KNOWN]).sum() / 15, rel=1e-4)
    assert logs["mae"] == pytest.approx(np.abs(s - labels[KNOWN]).mean(), rel=1e-4)
    assert 0 < logs["regression_targets"] <= logs["label_loss"] * 1.0001
    distiller.fit(inputs, labels, verbose=0)
    assert all(np.isfinite(weight).all() for weight in student.get_weights())


def test_whole_texts_without_labels() -> None:
    """Metrics leave out padded steps and unlabelled texts, whichever of the two a step is of."""

    def tagger(library: Any, units: int, seed: int) -> Any:
        numbers = library.layers.Input([None], dtype="int32")
        hidden = library.layers.Embedding(9, units, mask_zero=library is tf_keras)(numbers)
        return with_random_weights(library.Model(numbers, library.layers.Dense(4)(hidden)), seed)

    rng = np.random.default_rng(2)
    numbers, labels = rng.integers(1, 9, [5, 6]), rng.integers(0, 4, [5, 6])
    numbers[1, 4:] = numbers[3, 2:] = 0
    known = np.array([True, True, False, True, False])
    student = tagger(tf_keras, 3, 0)
    distiller = td.Distiller(student, tagger(keras, 5, 1), [losses.SoftTargets()], unlabelled=-1)
    distiller.compile("sgd", SPARSE, metrics=["accuracy"])
    given = np.where(known[:, None], labels, -1)
    logs = distiller.evaluate(numbers, given, verbose=0, return_dict=True)
    predictions = student.predict(numbers, verbose=0)
    counted = (numbers > 0) & known[:, None]
    right = predictions.argmax(axis=-1) == labels
    assert logs["accuracy"] == pytest.approx(right[counted].mean(), rel=1e-5)
    assert right[counted].mean() != right[known].mean()  # with the padded steps
    cross_entropy = -np.take_along_axis(log_probabilities(predictions), labels[..., None], -1)
    each = (cross_entropy[..., 0] * counted).sum(axis=1) / np.maximum(1, counted.sum(axis=1))
    assert logs["label_loss"] == pytest.approx(each.sum() / 5, rel=1e-4)


def test_a_row_is_unlabelled_where_all_of_it_is_the_mark() -> None:
    for mark, labels, known in (
        (0, [[0, 0, 0], [0, 1, 0], [1, 1, 1]], [False, True, True]),
        (-1, [[-1, -1, -1], [-1, 0, 1], [0, 0, 1]], [False, True, True]),
    ):
        found = known_labels(tf.constant(labels), mark, (3,))
        np.testing.assert_array_equal(found.known, known)
        np.testing.assert_array_equal(found.values, np.array(labels) * np.array(known)[:, None])


def test_alone_a_row_without_a_label_has_no_weight() -> None:
    inputs, labels, weights = examples(6)
    labels[::2] = -1
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels, weights)).batch(4)
    weighed = weighted_by_labels(batches, unlabelled=-1, model=perceptron(tf_keras))
    found = np.concatenate([weight for *_, weight in weighed])
    np.testing.assert_array_equal(found, np.where(labels < 0, 0, weights))


# --- refused ---


@pytest.mark.parametrize("value", [1, 3, -0.5, "-1", True, -np.inf, np.inf, [-1]])
def test_what_may_be_a_label_is_no_mark(value: Any) -> None:
    message = r"`unlabelled` must be None, a whole number below 0, 0, or NaN\. Received: "
    for door in (
        lambda: td.Distillation(unlabelled=value),
        lambda: td.Distiller(perceptron(tf_keras), perceptron(keras, seed=1), [], unlabelled=value),
    ):
        with pytest.raises(SettingError, match=message):
            door()


def test_equal_marks_are_equal_settings() -> None:
    numbers: list[Any] = [np.int64(-1), np.float32(-1), -1.0]
    assert {td.Distillation(unlabelled=mark) for mark in numbers} == {
        td.Distillation(unlabelled=-1)
    }
    assert td.Distillation(unlabelled=np.nan) == td.Distillation(unlabelled=float("nan"))
    prints = [fingerprint(td.Distillation(unlabelled=mark)) for mark in (None, -1, 0, np.nan)]
    assert len(set(prints)) == 4
    assert {fingerprint(td.Distillation(unlabelled=mark)) for mark in numbers} == {prints[1]}


@pytest.mark.parametrize(
    ("labels", "mark", "message"),
    [
        (np.zeros(3, np.uint8), -1, r"type that holds unlabelled=-1\. Received: uint8.*cast them"),
        (np.zeros(3, bool), -1, r"type that holds unlabelled=-1\. Received: bool"),
        (np.zeros(3, np.int64), np.nan, r"type that holds unlabelled=nan\. Received: int64"),
        (np.zeros(3, np.int64), 0, r"one-hot rows for unlabelled=0\. Received: labels \(3,\)"),
        (np.zeros([3, 1], np.int64), 0, r"must be one-hot rows for unlabelled=0"),
    ],
)
def test_labels_that_cannot_hold_the_mark_are_refused(
    labels: Array, mark: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        known_labels(tf.constant(labels), mark, (4,))


def test_data_to_evaluate_on_need_no_type_that_holds_the_mark() -> None:
    inputs, labels, _ = examples(classes=3)
    theirs = make(None, SPARSE, run_eagerly=True).evaluate(
        inputs, labels, verbose=0, return_dict=True
    )
    for mark, dtype in ((np.nan, np.int64), (-1, np.uint8)):
        ours = make(mark, SPARSE, run_eagerly=True).evaluate(
            inputs, labels.astype(dtype), verbose=0, return_dict=True
        )
        assert ours == theirs


def test_losses_that_compare_labels_are_refused() -> None:
    @dataclass(frozen=True)
    class SameClass(losses.DistillationLoss):
        weight: float = 1.0
        name: str = "same_class"
        needs_labels = across_batch = True

        def call(self, teacher: Any, student: Any, projection: Any = None, labels: Any = 0) -> Any:
            return student.logits[:, 0]

    with pytest.raises(
        SettingError, match=r"`unlabelled` must be None for a loss that compares.*'same_class'"
    ):
        td.Distillation([SameClass()], unlabelled=-1)


def test_without_the_setting_a_mark_is_no_label() -> None:
    images, labels = pictures()
    labels[3] = -1
    with pytest.raises(
        DataError,
        match=r"`train` must have labels that are whole numbers from 0 below 10\. "
        r"Received: label -1\. .*td\.Distillation\(unlabelled=",
    ):
        summarise((images, labels), classes=10)
    with pytest.raises(DataError, match=r"`test` must have.* label -1\. Leave examples without a"):
        summarise((images, labels), classes=10, name="test")
    summary = summarise((images, labels), classes=10, unlabelled=-1)
    assert sum(summary.label_counts) == summary.examples - 1
    with pytest.raises(
        DataError, match=r"must have a label for some .* Received: unlabelled=-1 for all 240\."
    ):
        summarise((images, np.full(240, -1)), classes=10, unlabelled=-1)
    with pytest.raises(DataError, match=r"`train` must have one-hot labels for unlabelled=0"):
        summarise((images, labels), classes=10, unlabelled=0)
    with pytest.raises(DataError, match=r"`train` must have labels of a type that .*: uint8"):
        summarise((images, labels.astype(np.uint8)), classes=10, unlabelled=-1)
    with pytest.raises(DataError, match=r"type that holds unlabelled=nan\. Received: int64"):
        summarise((images, labels), classes=10, unlabelled=np.nan)


# --- in a pipeline ---


@pytest.mark.slow  # a whole run
@pytest.mark.parametrize(
    "mark", [-1, pytest.param(0, marks=pytest.mark.slow)], ids=["class numbers", "one-hot"]
)
def test_a_pipeline_teaches_all_rows_and_trains_alone_on_some(mark: int, tmp_path: Path) -> None:
    (images, labels), test = pictures(), pictures(1, 32)
    known = np.arange(240) % 4 == 0
    given: Any = np.where(known, labels, -1)
    if mark == 0:
        given = np.asarray(tf.one_hot(given, 10))
        test = test[0], np.eye(10, dtype=np.float32)[test[1]]

    def run(directory: str, train: Any, **settings: Any) -> dict[str, Any]:
        tf_keras.utils.set_random_seed(1)
        image = tf_keras.Input([6, 6, 1], name="image")
        outputs = tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(image))
        limits = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        td.Pipeline(
            distillation=td.Distillation(epochs=3, learning_rate=0.05, optimizer="sgd", **settings),
            export=td.Export(formats=("float32",), limits=limits),
        ).run(
            tf_keras.Model(image, outputs),
            Remembering(),
            train,
            test=test,
            run_dir=tmp_path / directory,
            verbose=0,
        )
        report: dict[str, Any] = json.loads((tmp_path / directory / "report.json").read_text())
        return report

    report = run("run", (images, given), unlabelled=mark)
    notes = report["details"]["notes"]
    assert "60 of 240 training examples have labels; the others learn from the losses" in " ".join(
        notes
    )
    histories = report["histories"]
    for curves in histories.values():
        assert np.isfinite(curves["loss"]).all()

    # A label loss is the mean over all: with labels everywhere, it is about four times as large.
    whole = run("whole", (images, np.eye(10)[labels] if mark == 0 else labels))["histories"]
    ratio = whole["distillation"]["label_loss"][0] / histories["distillation"]["label_loss"][0]
    assert 3 < ratio < 5
    assert whole["distillation"]["soft_targets"][0] == pytest.approx(
        histories["distillation"]["soft_targets"][0], rel=0.1
    )

    # The student alone: the loss of the labelled rows only, of which accuracy is a share.
    alone = histories["student alone"]
    assert 3 < whole["student alone"]["loss"][0] / alone["loss"][0] < 5
    counts = np.array(alone["accuracy"]) * known.sum()
    np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    assert counts.max() > 0

"""The label loss per example, and which end of the student it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import log_probabilities
from networks import examples, logits_of, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, SettingError
from tfdistill.labels import accuracy_metric, label_loss_for, per_example_label_loss

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [-1.0, 0.25, 1.0]], np.float32)
LABELS = np.array([0, 2, 2])


def _probabilities(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64))
    return wide / wide.sum(axis=-1, keepdims=True)


CROSS_ENTROPY = -np.log(_probabilities(LOGITS)[np.arange(3), LABELS])


def _values(loss: Any, labels: Any, predictions: Any, activation: str = "linear") -> Any:
    compute = per_example_label_loss(loss, activation=activation)
    return compute(tf.constant(labels), tf.constant(predictions)).numpy()


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        tf_keras.losses.sparse_categorical_crossentropy,
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda labels, logits: tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:, 0], logits),
    ],
    ids=["name", "class name", "function", "object", "own function"],
)
def test_cross_entropy_reads_logits(loss: Any) -> None:
    values = _values(loss, LABELS, LOGITS)
    np.testing.assert_allclose(values, CROSS_ENTROPY, rtol=1e-6)
    np.testing.assert_allclose(_values(loss, LABELS[:, None], LOGITS), values, rtol=1e-6)


@pytest.mark.parametrize(
    "loss", ["sparse_categorical_crossentropy", tf_keras.losses.sparse_categorical_crossentropy]
)
def test_cross_entropy_reads_probabilities_where_the_student_returns_them(loss: Any) -> None:
    probabilities = _probabilities(LOGITS).astype(np.float32)
    values = _values(loss, LABELS, probabilities, activation="softmax")
    np.testing.assert_allclose(values, CROSS_ENTROPY, rtol=1e-5)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "CategoricalCrossentropy"])
def test_one_hot_labels(loss: str) -> None:
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    np.testing.assert_allclose(_values(loss, one_hot, LOGITS), CROSS_ENTROPY, rtol=1e-6)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "bce", "BinaryCrossentropy"])
def test_binary_labels_are_not_broadcast_to_a_square(loss: str) -> None:
    logits, labels = LOGITS[:, :1], np.array([1, 0, 1])
    expected = np.log1p(np.exp(-logits[:, 0].astype(np.float64) * (2 * labels - 1)))
    np.testing.assert_allclose(_values(loss, labels, logits), expected, rtol=1e-6)
    sigmoid = (1 / (1 + np.exp(-logits))).astype(np.float32)
    values = _values(loss, labels, sigmoid, activation="sigmoid")
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_half_precision_predictions_are_computed_in_float32() -> None:
    large = np.array([[400.0, 0.0]], np.float16)  # squared, too large for float16
    values = _values("mean_squared_error", np.zeros([1, 2], np.float32), large)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [80000.0])


def test_a_function_may_compute_in_any_precision() -> None:
    def loss(labels: Any, logits: Any) -> Any:
        return tf.reduce_sum(tf.cast(labels - logits, tf.float64), axis=-1)

    values = _values(loss, np.ones([2, 3], np.float32), np.zeros([2, 3], np.float32))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [3, 3])


@pytest.mark.parametrize(
    ("loss", "activation", "message"),
    [
        (
            tf_keras.losses.SparseCategoricalCrossentropy(),
            "linear",
            r"`loss` must have from_logits=True: the student returns logits\. Received: "
            r"SparseCategoricalCrossentropy\(from_logits=False\)",
        ),
        (
            tf_keras.losses.BinaryCrossentropy(from_logits=True),
            "sigmoid",
            r"`loss` must have from_logits=False: the student returns probabilities\.",
        ),
        (
            tf_keras.losses.MeanSquaredError(reduction="sum"),
            "linear",
            r"`loss` must be averaged over the batch",
        ),
        (3, "linear", r"`loss` must be the name of a Keras loss, a Loss, or a function\."),
    ],
)
def test_loss_that_does_not_fit_is_refused(loss: Any, activation: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        per_example_label_loss(loss, activation=activation)


@pytest.mark.parametrize(
    ("labels", "activation", "units", "kind", "from_logits"),
    [
        ("integers", "linear", 3, "SparseCategoricalCrossentropy", True),
        ("integers", "softmax", 3, "SparseCategoricalCrossentropy", False),
        ("one-hot", "linear", 3, "CategoricalCrossentropy", True),
        ("integers", "linear", 1, "BinaryCrossentropy", True),
        ("one-hot", "sigmoid", 3, "BinaryCrossentropy", False),
        ("integers", "sigmoid", 1, "BinaryCrossentropy", False),
        ("integers", "sigmoid", 3, "_BinaryOfClassNumbers", False),
    ],
)
def test_loss_that_fits_labels_and_student(
    labels: str, activation: str, units: int, kind: str, from_logits: bool
) -> None:
    loss = label_loss_for(labels, activation=activation, units=units)
    assert type(loss).__name__ == kind
    assert loss.get_config()["from_logits"] is from_logits


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_class_numbers_of_several_sigmoid_units(shape: list[int]) -> None:
    loss = label_loss_for("integers", activation="sigmoid", units=3)
    sigmoid = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)
    signs = 2 * np.eye(3)[LABELS] - 1
    expected = np.log1p(np.exp(-LOGITS.astype(np.float64) * signs)).mean(axis=1)
    values = _values(loss, LABELS.reshape(shape), sigmoid, activation="sigmoid")
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("activation", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["integers", "one-hot"])
def test_smoothed_labels_are_the_formula(kind: str, activation: str) -> None:
    """Szegedy et al. (2016), section 7: (1 - s) y + s / K; of a yes or no (1 - s) y + s / 2."""
    wide = LOGITS.astype(np.float64)
    if activation == "sigmoid":
        targets = 0.8 * np.eye(3)[LABELS] + 0.1
        of_yes, of_no = np.log1p(np.exp(-wide)), np.log1p(np.exp(wide))
        expected = (targets * of_yes + (1 - targets) * of_no).mean(axis=1)
        said = 1 / (1 + np.exp(-wide))
    else:
        targets = 0.8 * np.eye(3)[LABELS] + 0.2 / 3
        said = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
        expected = -(targets * np.log(said)).sum(axis=1)
        said = wide if activation == "linear" else said
    loss = label_loss_for(kind, activation=activation, units=3, smoothing=0.2)
    labels = LABELS if kind == "integers" else np.eye(3, dtype=np.float32)[LABELS]
    values = _values(loss, labels, said.astype(np.float32), activation=activation)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_smoothed_labels_of_one_unit() -> None:
    logits, labels = LOGITS[:, :1].astype(np.float64), np.array([[1], [0], [1]])
    targets = 0.8 * labels + 0.1
    expected = targets * np.log1p(np.exp(-logits)) + (1 - targets) * np.log1p(np.exp(logits))
    loss = label_loss_for("integers", activation="linear", units=1, smoothing=0.2)
    np.testing.assert_allclose(_values(loss, labels, LOGITS[:, :1]), expected[:, 0], rtol=1e-5)


def test_one_hot_labels_of_one_unit_are_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"`labels` must be 0 or 1 for a student with one output unit\. Received: one-hot "
        r"labels of two columns\. Give their second column",
    ):
        label_loss_for("one-hot", activation="linear", units=1)


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "eager"])
def test_loss_that_averages_over_the_batch_is_refused(traced: bool) -> None:
    def mean(labels: Any, logits: Any) -> Any:
        return tf.reduce_mean(tf.square(logits - labels))

    loss = per_example_label_loss(mean, activation="linear")
    call = tf.function(loss, autograph=False) if traced else loss
    with pytest.raises(
        SettingError, match=r"`loss` must return a value per example\. Received: .*whole batch"
    ):
        call(tf.constant(LOGITS), tf.constant(LOGITS))


def test_accuracy_of_one_logit_is_cut_at_zero() -> None:
    metric = accuracy_metric("accuracy", activation="linear", units=1)
    metric.update_state([[1.0], [0.0]], [[0.25], [-0.25]])  # Keras would cut at 0.5
    assert metric.result() == 1.0
    assert metric.name == "accuracy"
    for unchanged in (("accuracy", "sigmoid", 1), ("accuracy", "linear", 3), ("mse", "linear", 1)):
        name, activation, units = unchanged
        assert accuracy_metric(name, activation=activation, units=units) == name


# --- as a setting of pipelines ---


def test_a_pipeline_smooths_with_a_teacher_and_without(tmp_path: Path) -> None:
    inputs, labels, _ = examples(20)
    student = perceptron(keras)
    probabilities = log_probabilities(logits_of(student.get_weights(), inputs))
    expected = -(probabilities * (0.8 * np.eye(3)[labels] + 0.2 / 3)).sum(axis=1).mean()
    asked = td.Distillation(
        [td.losses.VirtualTeacher()], 1.0, label_smoothing=0.2, epochs=1, learning_rate=1e-12
    )
    td.Pipeline(distillation=asked, export=td.Export(formats=())).run(
        student, None, (inputs, labels), test=(inputs, labels), run_dir=tmp_path, verbose=0
    )
    for stage, name in (("distillation", "label_loss"), ("baseline", "loss")):
        history = json.loads((tmp_path / stage / "history.json").read_text())
        assert history[name][0] == pytest.approx(expected, rel=1e-5), stage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"label_smoothing": value}, r"`label_smoothing` must be a number in \[0, 1\)")
            for value in (1, -0.1, "0.1", float("nan"), True)
        ),
        (
            {"label_smoothing": 0.1, "label_loss_weight": 0},
            r"`label_smoothing` must be 0 without a label loss\. Received: label_smoothing=0\.1, "
            r"label_loss_weight=0\. td\.losses\.HardTargets\(label_smoothing=\.\.\.\) smooths",
        ),
        (
            {
                "losses": {"a": [td.losses.SoftTargets()], "b": []},
                "label_loss_weight": {"a": 0, "b": 0},
                "label_smoothing": 0.1,
            },
            r"`label_smoothing` must be 0 without a label loss",
        ),
    ],
)
def test_smoothing_that_makes_no_sense_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        td.Distillation(**settings)

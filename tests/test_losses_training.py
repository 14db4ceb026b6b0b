"""The losses in `fit`: with labels, with masks, and across replicas."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import Array, intra_class, log_probabilities, soft_targets
from networks import (
    convolutional,
    encoder,
    examples,
    logits_of,
    perceptron,
    with_random_weights,
)
from output_losses import OUTPUT_LOSSES

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError

LABEL_LOSS = "sparse_categorical_crossentropy"
ALL = (
    losses.SoftTargets(weight=0.1),
    losses.SoftTargets(divergence="cross_entropy", weight=0.1, name="cross_entropy"),
    losses.SoftTargets(divergence="reverse_kl", weight=0.1, name="reverse_kl"),
    losses.SoftTargets(divergence="jensen_shannon", weight=0.1, name="jensen_shannon"),
    losses.SoftTargets(standardize=True, weight=0.1, name="standardized"),
    losses.HardTargets(threshold=0.6, label_smoothing=0.1),
    losses.LogitsMSE(weight=0.1),
    losses.CenteredMSE(weight=0.1),
    losses.ProbabilityMSE(),
    losses.DecoupledKD(non_target_weight=2.0, weight=0.1),
    losses.DIST(2.0, 3.0),
    losses.BinaryTargets(),
    losses.RegressionTargets(weight=0.1),
    losses.VirtualTeacher(weight=0.1),
    losses.EarlyExits(["rectified"], weight=0.1),
)


@dataclass(frozen=True)
class Similarity(losses.DistillationLoss):
    """The squared difference of the examples' similarities: every example reads all others."""

    weight: float = 1.0
    name: str = "similarity"
    teacher_layers = student_layers = ("rectified",)
    across_batch = True

    def build(self, teacher: Any, student: Any) -> Any:
        projection = tf_keras.layers.Dense(3, kernel_initializer="ones", name="projection")
        projection.build((None, *student.features["rectified"]))
        return projection

    def call(self, teacher: Any, student: Any, projection: Any = None) -> Any:
        assert set(teacher.features) == set(student.features) == {"rectified"}

        def similarities(features: Any) -> Any:
            return tf.matmul(features, features, transpose_b=True)

        ours = similarities(projection(student.features["rectified"]))
        theirs = similarities(teacher.features["rectified"])
        return tf.reduce_mean(tf.math.squared_difference(ours, theirs), axis=1) * 1e-3


def distilled(
    taught: Any, data: Any, *, loss: Any = LABEL_LOSS, **settings: Any
) -> tuple[dict[str, Any], list[Array]]:
    """Logs and weights after training a student of four classes."""
    tf_keras.utils.set_random_seed(0)  # of what is trained beside it
    distiller = td.Distiller(
        perceptron(tf_keras, classes=4),
        perceptron(keras, units=7, classes=4, seed=1, name="teacher"),
        losses=taught,
        label_loss_weight=0.3 if loss else 0.0,
    )
    distiller.compile(tf_keras.optimizers.SGD(0.02), loss, **settings)
    history = distiller.fit(data, verbose=0).history
    return history, [np.array(weight) for weight in distiller.get_weights()]


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    for name, values in ours[0].items():
        np.testing.assert_allclose(values, theirs[0][name], rtol=1e-4, atol=1e-6, err_msg=name)
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


# --- replicas ---


def uneven(count: int) -> Any:
    return tf.data.Dataset.from_tensor_slices(examples(count, classes=4)).batch(6)


@pytest.mark.parametrize(
    ("taught", "count"),
    [((losses.DIST(0.0, 5.0),), 13), pytest.param((Similarity(),), 15, marks=pytest.mark.slow)],
    ids=["an empty replica", "features"],
)
def test_two_replicas_are_one(taught: Any, count: int, two_replicas: Any) -> None:
    """Batches of 6, 6 and 3, or 1: split into 3 and 3, then 2 and 1, or 1 and none."""
    one = distilled(taught, uneven(count))
    with two_replicas.scope():
        several = distilled(taught, uneven(count))
    assert_equal(several, one)
    start = perceptron(tf_keras, classes=4).get_weights()
    assert np.abs(one[1][0] - start[0]).max() > 1e-3


def test_all_losses_train_the_same_on_two_replicas(two_replicas: Any) -> None:
    one = distilled(ALL, uneven(15))
    with two_replicas.scope():
        assert_equal(distilled(ALL, uneven(15)), one)


@pytest.mark.slow  # XLA compiles each loss, half a minute in all
def test_all_losses_train_the_same_compiled() -> None:
    assert_equal(distilled(ALL, uneven(15), jit_compile=True), distilled(ALL, uneven(15)))


def test_the_batchs_correlation_is_the_formula_in_training() -> None:
    inputs, labels, sample_weight = examples(15, classes=4)
    data = tf.data.Dataset.from_tensors((inputs, labels, sample_weight))
    history, _ = distilled((losses.DIST(0.0, 2.0),), data)
    student, teacher = (
        logits_of(model.get_weights(), inputs)
        for model in (
            perceptron(tf_keras, classes=4),
            perceptron(keras, units=7, classes=4, seed=1),
        )
    )
    expected = 2 * intra_class(teacher, student, 1.0)[0] * sample_weight.mean()
    np.testing.assert_allclose(history["dist"][0], expected, rtol=1e-4)


# --- alone ---

QUICK = ("cwsm", "decoupled_kd", "bounded_regression")
EACH = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OUTPUT_LOSSES
]


@pytest.mark.parametrize("name", EACH)
def test_each_loss_is_learned_alone(name: str) -> None:
    loss, formula = OUTPUT_LOSSES[name]
    inputs, labels, _ = examples(24)
    rows = np.eye(3, dtype=np.float32)[labels]
    student, teacher = perceptron(tf_keras, units=12), perceptron(keras, units=7, seed=1)
    theirs, before = (logits_of(model.get_weights(), inputs) for model in (teacher, student))
    distiller = td.Distiller(student, teacher, [loss], label_loss_weight=0)
    distiller.compile(tf_keras.optimizers.Adam(0.03))
    data = (inputs, rows) if loss.needs_labels else (inputs,)
    history = distiller.fit(*data, batch_size=24, epochs=40, verbose=0).history[loss.name]
    after = logits_of(student.get_weights(), inputs)
    least = formula(theirs, theirs, rows).mean() if name == "cross_entropy" else 0.0
    first, last = (formula(theirs, ours, rows).mean() - least for ours in (before, after))
    assert history[0] - least == pytest.approx(first, rel=1e-4)
    assert last < 0.7 * first


# --- labels ---


def test_a_loss_that_reads_labels_needs_no_label_loss() -> None:
    inputs, labels, _ = examples(12, classes=4)
    taught = (losses.DecoupledKD(),)
    numbers = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(6)
    one_hot = tf.data.Dataset.from_tensor_slices((inputs, np.eye(4)[labels])).batch(6)
    ours = distilled(taught, numbers, loss=None)
    assert_equal(distilled(taught, one_hot, loss=None), ours)
    others = tf.data.Dataset.from_tensor_slices((inputs, (labels + 1) % 4)).batch(6)
    assert abs(distilled(taught, others, loss=None)[0]["loss"][0] - ours[0]["loss"][0]) > 1e-2
    unlabelled = tf.data.Dataset.from_tensor_slices(inputs).batch(6)
    with pytest.raises(
        DataError,
        match=r"`data` must have labels for the loss 'decoupled_kd'\. Received: inputs without",
    ):
        distilled(taught, unlabelled, loss=None)


def test_bounded_regression_reads_the_numbers() -> None:
    inputs, _, _ = examples(12)
    teacher = perceptron(keras, units=7, classes=1, seed=1)
    student = perceptron(tf_keras, classes=1)
    labels = inputs.sum(axis=1)
    s, t = (logits_of(model.get_weights(), inputs)[:, 0] for model in (student, teacher))
    expected = np.where((s - labels) ** 2 > (t - labels) ** 2, (s - labels) ** 2, 0)
    assert 0 < (expected > 0).sum() < 12
    distiller = td.Distiller(student, teacher, [losses.RegressionTargets(bounded=True)], 1.0)
    distiller.compile(tf_keras.optimizers.SGD(0.01), "mse")
    logs = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["regression_targets"], expected.mean(), rtol=1e-4)


# --- time steps ---


def tagger(library: Any, *, units: int, seed: int, activation: Any = None, **masked: Any) -> Any:
    """Numbers `[batch, steps] -> [batch, steps, 4]`."""
    numbers = library.layers.Input([None], dtype="int32", name="numbers")
    hidden = library.layers.Embedding(9, units, name="embedding", **masked)(numbers)
    logits = library.layers.Dense(4, activation=activation, name="logits")(hidden)
    return with_random_weights(library.Model(numbers, logits), seed)


def sentences() -> tuple[Array, Array]:
    """Numbers `[5, 6]`, padded by 0, and a class number for each."""
    rng = np.random.default_rng(0)
    numbers, labels = rng.integers(1, 9, [5, 6]), rng.integers(0, 4, [5, 6])
    for row, length in enumerate([6, 4, 1, 5, 2]):
        numbers[row, length:] = 0
    return numbers, labels


def logits_of_tagger(model: Any, numbers: Array) -> Array:
    table, kernel, bias = (np.array(weight, np.float64) for weight in model.get_weights())
    return table[numbers] @ kernel + bias


@pytest.mark.parametrize(
    ("masked", "activation"),
    [
        (True, "softmax"),
        (False, None),
        pytest.param(True, None, marks=pytest.mark.slow),
        pytest.param(False, "softmax", marks=pytest.mark.slow),
    ],
)
def test_an_examples_losses_are_means_over_its_steps(masked: bool, activation: Any) -> None:
    numbers, labels = sentences()
    student = tagger(tf_keras, units=3, seed=0, activation=activation, mask_zero=masked)
    teacher = tagger(keras, units=5, seed=1)
    distiller = td.Distiller(student, teacher, [losses.SoftTargets(2.0)], 0.5)
    distiller.compile(tf_keras.optimizers.SGD(0.1), LABEL_LOSS)
    logs = distiller.evaluate(numbers, labels, verbose=0, return_dict=True)

    s, t = (logits_of_tagger(model, numbers) for model in (student, teacher))
    counted = numbers > 0 if masked else np.ones_like(numbers)

    def mean(values: Array) -> float:
        return float(((values * counted).sum(axis=1) / counted.sum(axis=1)).mean())

    label_loss = -np.take_along_axis(log_probabilities(s), labels[..., None], axis=-1)[..., 0]
    assert logs["soft_targets"] == pytest.approx(mean(soft_targets(t, s, 2.0)), rel=1e-4)
    assert logs["label_loss"] == pytest.approx(mean(label_loss), rel=1e-4)
    agreement = mean(s.argmax(axis=-1) == t.argmax(axis=-1))
    assert logs["teacher_agreement"] == pytest.approx(agreement, rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["soft_targets"] + logs["label_loss"] / 2, rel=1e-5)

    distiller.fit(numbers, labels, verbose=0, epochs=3)
    after = distiller.evaluate(numbers, labels, verbose=0, return_dict=True)
    assert after["loss"] < logs["loss"]


@pytest.mark.parametrize("one_hot", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_stands_for_the_labels_of_padding_does_not_matter(one_hot: bool) -> None:
    """-1 is no class: of integers a CPU raises, and of rows an entropy is not a number."""
    numbers, labels = sentences()
    given: Any = np.eye(4, dtype=np.float32)[labels] if one_hot else labels
    teacher, found = tagger(keras, units=5, seed=1), []
    for padding in (0, np.nan if one_hot else -1):
        padded = given.copy()
        padded[numbers == 0] = padding
        distiller = td.Distiller(
            tagger(tf_keras, units=3, seed=0, mask_zero=True),
            teacher,
            [losses.DecoupledKD(), losses.VirtualTeacher()],
            label_loss_weight=0.5,
        )
        name = "categorical_crossentropy" if one_hot else LABEL_LOSS
        distiller.compile(tf_keras.optimizers.SGD(0.1), name)
        history = distiller.fit(numbers, padded, verbose=0).history
        found.append((history, distiller.student.get_weights()))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_padding_teaches_nothing_under_several_replicas_either(two_replicas: Any) -> None:
    numbers, labels = sentences()
    results = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            student = tagger(tf_keras, units=3, seed=0, mask_zero=True)
            distiller = td.Distiller(
                student,
                tagger(keras, units=5, seed=1),
                [losses.DIST(), losses.DecoupledKD()],
                label_loss_weight=0.5,
            )
            distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS)
        history = distiller.fit(numbers, labels, batch_size=4, shuffle=False, verbose=0).history
        results.append((history, [np.array(weight) for weight in student.get_weights()]))
    assert_equal(results[1], results[0])
    # The embedding of the padding was never used.
    start = tagger(tf_keras, units=3, seed=0).get_weights()[0]
    moved = np.abs(results[0][1][0] - start).max(axis=1)
    assert moved[0] == 0
    assert (moved[1:] > 0).any()


def test_models_of_other_numbers_of_steps_are_refused() -> None:
    def fixed(library: Any, steps: int) -> Any:
        inputs = library.layers.Input([12])
        places = library.layers.Reshape([steps, 12 // steps])(inputs)
        return library.Model(inputs, library.layers.Dense(4)(places))

    with pytest.raises(ModelError, match=r"same classes\. Received: teacher output \(4, 4\)"):
        td.Distiller(fixed(tf_keras, 3), fixed(keras, 4), [losses.SoftTargets()])


# --- docs/methods.md ---


def test_the_methods_page_shows_every_loss_and_its_lines_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    (lines,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "every" in code)
    shown: dict[str, Any] = {
        "student": perceptron(tf_keras, classes=4),
        "teacher": perceptron(keras, units=7, classes=4),
    }
    exec(lines, shown)
    assert shown["distiller"].losses_taught == (losses.SoftTargets(weight=0.9),)
    models = {
        "every_one": (shown["student"], shown["teacher"]),
        "of_images": (convolutional(tf_keras, 3), convolutional(keras, 6)),
        "of_texts": (encoder(tf_keras), encoder(keras, seed=1)),
    }
    kinds = set()
    for name, pair in models.items():
        kinds |= {type(loss) for loss in td.Distiller(*pair, losses=shown[name]).losses_taught}
    every_class = {
        kind
        for kind in vars(losses).values()
        if isinstance(kind, type)
        and issubclass(kind, losses.DistillationLoss)
        and kind is not losses.DistillationLoss
    }
    assert kinds == every_class
    assert all(f"| `{kind.__name__}` |" in page for kind in every_class)

"""Adversarial examples of the student, taught by the teacher's answer to the unmoved input."""

from __future__ import annotations

import contextlib
import doctest
from typing import Any

import numpy as np
import pytest
from formulas import Array, log_probabilities, soft_targets
from networks import examples, hidden_of, logits_of, perceptron, wide, with_random_weights

import tfdistill as td
from tfdistill import adversarial, losses
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import DataError, SettingError
from tfdistill.quantization import Quantization, quantize
from tfdistill.runs.fingerprint import fingerprint

LABEL_LOSS = "sparse_categorical_crossentropy"
ANY: Any = td.Adversarial
SETTINGS = td.Adversarial(0.2, weight=0.4, bounds=(-1.0, 1.0))


def make(settings: Any = SETTINGS, student: Any = None, **more: Any) -> Any:
    distiller = td.Distiller(
        student or perceptron(tf_keras),
        perceptron(keras, units=7, seed=1),
        [losses.SoftTargets(2.0)],
        0.3,
        adversarial=settings,
    )
    distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS, **more)
    return distiller


def totals(weights: list[Array], inputs: Array, labels: Array, teacher: Array) -> Array:
    s = logits_of(weights, inputs)
    label_loss = -log_probabilities(s)[np.arange(len(labels)), labels]
    return 0.3 * label_loss + soft_targets(teacher, s, 2.0)


def slopes_at_inputs(weights: list[Array], inputs: Array, labels: Array, teacher: Array) -> Array:
    """By the chain rule, in float64."""
    s = logits_of(weights, inputs)
    kernel, _, last, _ = wide(weights)
    at_logits = 0.3 * (np.exp(log_probabilities(s)) - np.eye(3)[labels])
    q, p = (np.exp(log_probabilities(z, 2.0)) for z in (s, teacher))
    at_logits += 2.0 * (q - p)
    return ((at_logits @ last.T) * (hidden_of(weights, inputs) > 0)) @ kernel.T


def test_loss_and_update_are_the_closed_form() -> None:
    inputs, labels, sample_weight = examples(classes=3)
    weights = [np.array(weight) for weight in perceptron(tf_keras).get_weights()]
    teacher = logits_of(perceptron(keras, units=7, seed=1).get_weights(), inputs)
    slopes = slopes_at_inputs(weights, inputs, labels, teacher)
    assert np.abs(slopes).min() > 1e-6  # no sign is rounding's
    moved = np.clip(inputs + 0.2 * np.sign(slopes), -1, 1)
    assert (moved == 1).any()

    def loss(weights: list[Array]) -> float:
        plain = totals(weights, inputs, labels, teacher)
        return float(
            np.mean(sample_weight * (0.6 * plain + 0.4 * totals(weights, moved, labels, teacher)))
        )

    distiller = make()
    logs = distiller.train_on_batch(inputs, labels, sample_weight, return_dict=True)
    assert logs["loss"] == pytest.approx(loss(weights), rel=1e-5)
    plain = totals(weights, inputs, labels, teacher)
    summed = 0.3 * logs["label_loss"] + logs["soft_targets"]
    assert summed == pytest.approx(np.mean(sample_weight * plain), rel=1e-5)

    precise = wide(weights)
    for place, after in enumerate(distiller.student.get_weights()):
        slope = np.zeros_like(precise[place])
        for index in np.ndindex(slope.shape):
            middle = precise[place][index]
            values = []
            for step in (1e-6, -1e-6):
                precise[place][index] = middle + step
                values.append(loss(precise))
            precise[place][index] = middle
            slope[index] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(after, weights[place] - 0.05 * slope, rtol=0, atol=5e-6)


@pytest.mark.slow
def test_loss_of_a_pruned_student_is_the_closed_form() -> None:
    """Both kinds of inputs are seen by the pruned kernels."""
    inputs, labels, _ = examples(classes=3)
    prune = tfmot.sparsity.keras
    schedule = prune.ConstantSparsity(0.5, begin_step=0, frequency=1)
    student = prune.prune_low_magnitude(perceptron(tf_keras), pruning_schedule=schedule)
    start = perceptron(tf_keras).get_weights()
    weights = [np.where(np.abs(w) < np.median(np.abs(w)), 0, w) if w.ndim > 1 else w for w in start]
    assert np.mean(weights[0] == 0) == 0.5
    teacher = logits_of(perceptron(keras, units=7, seed=1).get_weights(), inputs)
    moved = inputs + 0.2 * np.sign(slopes_at_inputs(weights, inputs, labels, teacher))
    plain = totals(weights, inputs, labels, teacher).mean()
    history = (
        make(td.Adversarial(0.2), student)
        .fit(inputs, labels, batch_size=15, verbose=0, callbacks=[prune.UpdatePruningStep()])
        .history
    )
    expected = 0.5 * plain + 0.5 * totals(weights, moved, labels, teacher).mean()
    assert expected > 1.1 * plain
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)
    stripped = prune.strip_pruning(student)
    zeros = [stripped.get_layer(name).get_weights()[0] == 0 for name in ("hidden", "logits")]
    for zero, index in zip(zeros, (0, 2), strict=True):
        np.testing.assert_array_equal(zero, weights[index] == 0)


@pytest.mark.slow
def test_loss_of_a_quantized_student_is_that_of_moved_inputs() -> None:
    """The sign is that of the gradient through the rounding, straight."""
    inputs, labels, _ = examples(classes=3)
    student = quantize(perceptron(tf_keras), Quantization(), sparse=False).model
    for _ in range(20):
        student(inputs, training=True)  # finds the ranges
    teacher = tf.constant(perceptron(keras, units=7, seed=1)(inputs))

    def reached(values: Any) -> Any:
        logits = student(values)
        label_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return 0.3 * label_loss + losses.functional.soft_targets(teacher, logits, 2.0)

    given = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(given)
        plain = reached(given)
    moved = inputs + 0.2 * np.sign(tape.gradient(plain, given))
    expected = 0.5 * np.mean(plain) + 0.5 * np.mean(reached(moved))
    assert expected > 1.05 * np.mean(plain)
    logs = make(td.Adversarial(0.2), student).train_on_batch(inputs, labels, return_dict=True)
    # In training the moved inputs move the ranges a little.
    assert logs["loss"] == pytest.approx(expected, rel=0.02)


def in_mixed_precision(**settings: Any) -> Any:
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return perceptron(tf_keras, **settings)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def test_slopes_that_are_nothing_in_float16_move_inputs_all_the_same() -> None:
    inputs, labels, _ = examples(classes=3)
    sample_weight = np.full(15, 5e-9, np.float32)
    weights = perceptron(tf_keras).get_weights()
    teacher = logits_of(perceptron(keras, units=7, seed=1).get_weights(), inputs)
    slopes = slopes_at_inputs(weights, inputs, labels, teacher)
    assert 5e-9 * np.abs(slopes).max() < 2.0**-25  # float16 rounds that to 0
    plain = totals(weights, inputs, labels, teacher)
    moved = totals(weights, inputs + 0.3 * np.sign(slopes), labels, teacher)
    assert moved.mean() > 1.2 * plain.mean()
    distiller = make(td.Adversarial(0.3), in_mixed_precision())
    logs = distiller.train_on_batch(inputs, labels, sample_weight, return_dict=True)
    expected = 5e-9 * np.mean(0.5 * plain + 0.5 * moved)
    assert logs["loss"] == pytest.approx(expected, rel=1e-2)


def test_slopes_that_are_infinite_in_float16_leave_batch_statistics_finite() -> None:
    inputs, labels, _ = examples(classes=3)
    distiller = make(student=in_mixed_precision(normalized=True))
    before = distiller.student.get_weights()
    distiller.train_on_batch(inputs, labels, np.full(15, 1e9, np.float32))
    after = distiller.student.get_weights()
    assert distiller.optimizer.loss_scale < 2**15  # the step was left out
    np.testing.assert_array_equal(after[0], before[0])
    assert all(np.isfinite(weight).all() for weight in after)


def test_evaluation_is_of_unmoved_inputs() -> None:
    inputs, labels, _ = examples(classes=3)
    ours, theirs = (
        make(settings).evaluate(inputs, labels, verbose=0, return_dict=True)
        for settings in (SETTINGS, None)
    )
    assert ours == theirs


def test_activity_regularizers_are_counted_once() -> None:
    inputs, labels, _ = examples(classes=3)
    results = []
    for settings in (td.Adversarial(1e-9), None):
        student = perceptron(tf_keras)
        student.get_layer("rectified").activity_regularizer = tf_keras.regularizers.L2(0.1)
        results.append(make(settings, student).train_on_batch(inputs, labels, return_dict=True))
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "way", ["two replicas", pytest.param("jit_compile", marks=pytest.mark.slow)]
)
def test_every_way_of_running_is_the_same(way: str, two_replicas: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices(examples(15, classes=3)).batch(6)
    two, settings = way == "two replicas", {"jit_compile": True}
    results = []
    for scope, more in (
        (contextlib.nullcontext(), {}),
        (two_replicas.scope() if two else contextlib.nullcontext(), {} if two else settings),
    ):
        with scope:
            distiller = make(**more)
        history = distiller.fit(data, verbose=0).history
        results.append((history, [np.array(w) for w in distiller.student.get_weights()]))
    (one, weights), (other, other_weights) = results
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow  # its steps are compared above
def test_a_student_learns_to_withstand_it() -> None:
    """Two classes, 0.6 apart in one input and 0.1 in each of 20 others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    inputs = rng.normal(size=[400, 21], scale=0.05) + (labels[:, None] - 0.5) * 0.1
    inputs[:, 0] += (labels - 0.5) * 0.5
    inputs = inputs.astype(np.float32)

    def teacher(batch: Any) -> Any:
        return 20 * tf.stack([-batch[:, 0], batch[:, 0]], axis=1)

    def robust_accuracy(settings: Any) -> float:
        features = tf_keras.layers.Input([21])
        student = with_random_weights(
            tf_keras.Model(features, tf_keras.layers.Dense(2)(features)), 0
        )
        distiller = td.Distiller(student, teacher, [losses.SoftTargets(1.0)], adversarial=settings)
        distiller.compile(tf_keras.optimizers.Adam(0.02), LABEL_LOSS)
        distiller.fit(inputs, labels, epochs=15, verbose=0)
        kernel, bias = (np.array(weight) for weight in student.get_weights())
        toward = np.sign(kernel[:, 1] - kernel[:, 0]) * np.where(labels, -1, 1)[:, None]
        answers = (inputs + 0.1 * toward) @ kernel + bias
        return float(np.mean(answers.argmax(axis=1) == labels))

    assert robust_accuracy(td.Adversarial(0.1)) > robust_accuracy(None) + 0.1


def test_only_floats_are_moved() -> None:
    inputs, labels, _ = examples(classes=3)
    numbers = (inputs > 0).astype(np.int32)
    left, right = tf_keras.layers.Input([4], name="left"), tf_keras.layers.Input([4], name="right")
    joined = tf_keras.layers.Concatenate()([tf.cast(left, tf.float32), right])
    student = tf_keras.Model({"left": left, "right": right}, tf_keras.layers.Dense(3)(joined))
    distiller = td.Distiller(
        student, lambda batch: batch["right"][:, :3], [losses.LogitsMSE()], adversarial=SETTINGS
    )
    distiller.compile("sgd", LABEL_LOSS)
    data = {"left": numbers, "right": inputs}
    assert np.isfinite(distiller.train_on_batch(data, labels, return_dict=True)["loss"])
    with pytest.raises(
        DataError, match=r"`data` must have inputs of floats for `adversarial`\. Received: int32"
    ):
        make().fit(numbers, labels, verbose=0)


@pytest.mark.parametrize(
    ("make_settings", "message"),
    [
        (lambda: td.Adversarial(0), r"`epsilon` must be > 0 and finite\. Received: 0"),
        (lambda: td.Adversarial(np.inf), r"`epsilon` must be > 0 and finite"),
        (
            lambda: td.Adversarial(0.1, weight=1.5),
            r"`weight` must be > 0 and <= 1\. Received: 1\.5",
        ),
        (lambda: td.Adversarial(0.1, bounds=(1, 0)), r"`bounds` must be None or \(least, largest"),
        (lambda: td.Adversarial(0.1, bounds=1), r"`bounds` must be None"),  # type: ignore[arg-type]
        (lambda: ANY(eps=0.1), r"`eps` must be a setting of Adversarial"),
        (
            lambda: td.Distillation(adversarial=0.1),  # type: ignore[arg-type]
            r"`adversarial` must be a td\.Adversarial or None\. Received: 0\.1",
        ),
        (lambda: make(True), r"`adversarial` must be a td\.Adversarial or None\. Received: True"),
    ],
)
def test_setting_is_refused(make_settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_settings()


def test_it_is_in_the_fingerprint_of_a_stage() -> None:
    prints = [
        fingerprint(td.Distillation(adversarial=each))
        for each in (None, td.Adversarial(0.1), td.Adversarial(0.2), SETTINGS)
    ]
    assert len(set(prints)) == 4
    assert fingerprint(td.Distillation(adversarial=td.Adversarial(np.float64(0.1)))) == prints[1]


def test_docstring_examples_are_true() -> None:
    found = doctest.testmod(adversarial)
    assert found.failed == 0
    assert found.attempted > 1

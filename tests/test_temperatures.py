"""Temperatures of each example's own, against TextBrewer's formulas in float64."""

from __future__ import annotations

import contextlib
import doctest
import json
import re
from typing import Any

import numpy as np
import pytest
from formulas import Array, adaptive_temperatures, log_probabilities, soft_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from networks import examples, logits_of, perceptron

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import SettingError
from tfdistill.losses import CWSM, FLSW, Outputs, temperatures

ADAPTIVE = [FLSW(4, 2, 1.5, 0.5), CWSM(5, 0.7, 2)]


@st.composite
def logits(draw: Any) -> tuple[Array, Array]:
    shape = draw(st.sampled_from([(4, 5), (3, 2), (5, 1), (2, 3, 4), (1, 3)]))
    elements = st.floats(-20, 20, width=32)
    one, other = (draw(arrays.arrays(np.float32, shape, elements=elements)) for _ in range(2))
    return one, other


@settings(max_examples=40, deadline=None, derandomize=True)
@given(logits())
@pytest.mark.parametrize("adaptive", ADAPTIVE, ids=repr)
def test_temperatures_equal_the_formula(adaptive: Any, pair: tuple[Array, Array]) -> None:
    ours = adaptive.of(*pair)
    assert ours.dtype == tf.float32
    # A power of a distance near 0 makes much of rounding.
    np.testing.assert_allclose(ours, adaptive_temperatures(adaptive, *pair), rtol=1e-4, atol=1e-4)
    assert float(tf.reduce_min(ours)) >= adaptive.minimum


@pytest.mark.parametrize("adaptive", ADAPTIVE, ids=repr)
def test_harder_examples_have_lower_temperatures(adaptive: Any) -> None:
    """One that is right, one that is unsure, one that is unsure and wrong."""
    student = np.array([[8, 0, 0], [1, 0.5, 0], [0, 0.5, 0.4]], np.float32)
    easy, unsure, wrong = adaptive.of(np.array([[8, 0, 0]] * 3, np.float32), student).numpy()
    assert easy > unsure > wrong


@pytest.mark.parametrize("adaptive", ADAPTIVE, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_finite_at_extreme_logits(adaptive: Any, dtype: Any) -> None:
    extreme = np.array([[1e4, -1e4, 0], [0, 0, 0], [-1e4, -1e4, -1e4]], dtype)
    # Of these the cosine with themselves is rounded to more than 1.
    large = 1e6 * np.random.default_rng(0).normal(size=[50, 7]).astype(np.float32)
    for teacher, student in (
        (extreme, extreme),
        (extreme, -extreme),
        (extreme, 0 * extreme),
        (large, large),
    ):
        found = adaptive.of(teacher, student)
        expected = adaptive_temperatures(
            adaptive, *(z.astype(np.float64) for z in (teacher, student))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("adaptive", ADAPTIVE, ids=repr)
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "reverse_kl", "jensen_shannon"])
def test_each_row_is_softened_by_its_own(adaptive: Any, divergence: Any) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=[2, 4, 3, 5]).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    loss = losses.SoftTargets(adaptive, divergence=divergence)
    ours = loss.call(Outputs(teacher, {}), Outputs(student, {}, mask=tf.constant(mask)))
    each = adaptive_temperatures(adaptive, teacher, student, mask)
    for example in range(4):
        values = [
            losses.SoftTargets(float(each[example, step]), divergence=divergence).call(
                Outputs(teacher[example, step : step + 1], {}),
                Outputs(tf.constant(student[example, step : step + 1]), {}),
            )
            for step in np.flatnonzero(mask[example])
        ]
        expected = np.mean(values) if values else 0.0
        assert float(ours[example]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_no_gradient_flows_through_the_temperatures() -> None:
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=[2, 4, 3]).astype(np.float32)
    each = adaptive_temperatures(FLSW(), teacher, student)
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = losses.SoftTargets(FLSW()).call(Outputs(teacher, {}), Outputs(variable, {}))
    t, s = (np.exp(log_probabilities(z / each[:, None])) for z in (teacher, student))
    expected = each[:, None] * (s - t)  # of T² KL at a constant T
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adaptive", ADAPTIVE, ids=repr)
def test_config_round_trips_through_json(adaptive: Any) -> None:
    loss = losses.SoftTargets(adaptive)
    assert losses.deserialize(json.loads(json.dumps(losses.serialize(loss)))) == loss
    assert loss.across_batch
    assert not losses.SoftTargets(4.0).across_batch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FLSW(base=0), r"`base` must be > 0 and finite\. Received: 0"),
        (lambda: FLSW(gamma=-1), r"`gamma` must be > 0 and finite"),
        (lambda: CWSM(beta=float("nan")), r"`beta` must be > 0 and finite"),
        (lambda: CWSM(base=1, minimum=2), r"`minimum` must be <= `base`\. Received: minimum=2\.0"),
        (
            lambda: losses.ProbabilityMSE(CWSM()),  # type: ignore[arg-type]
            r"`temperature` must be the same for all examples of a batch\. Received: CWSM.* "
            r"Only the temperature of SoftTargets",
        ),
        (
            lambda: losses.LogitsMSE(weight=FLSW()),  # type: ignore[arg-type]
            r"`weight` must be the same for all examples",
        ),
    ],
)
def test_setting_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_top_k_targets_are_refused() -> None:
    teacher = Outputs(tf.zeros([2, 3]), {}, {"4.0": tf.zeros([2, 3])})
    with pytest.raises(SettingError, match=re.escape("need no more than the top-k targets")):
        losses.SoftTargets(CWSM()).call(teacher, Outputs(tf.zeros([2, 3]), {}))


def test_docstring_examples_are_true() -> None:
    found = doctest.testmod(temperatures)
    assert found.failed == 0
    assert found.attempted > 3


def test_in_fit_the_mean_is_of_the_global_batch(two_replicas: Any) -> None:
    """Batches of 6, 6 and 1: split into 3 and 3, then 1 and none."""
    data = tf.data.Dataset.from_tensor_slices(examples(13)).batch(6)
    results: list[Any] = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            student = perceptron(tf_keras)
            taught = [losses.SoftTargets(FLSW(4, 2)), losses.SoftTargets(CWSM(), name="cwsm")]
            distiller = td.Distiller(student, perceptron(keras, units=7, seed=1), taught, 0.0)
            distiller.compile(tf_keras.optimizers.SGD(0.02))
        logs = distiller.evaluate(data, verbose=0, return_dict=True) if not results else {}
        history = distiller.fit(data, verbose=0).history
        results.append((logs, history, [np.array(weight) for weight in student.get_weights()]))
    one, several = results
    for name, value in one[1].items():
        np.testing.assert_allclose(several[1][name], value, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(one[2], several[2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)

    inputs, _, sample_weight = examples(13)
    s, t = (
        logits_of(model.get_weights(), inputs)
        for model in (perceptron(tf_keras), perceptron(keras, units=7, seed=1))
    )
    values = []
    for rows in (slice(0, 6), slice(6, 12), slice(12, 13)):
        each = adaptive_temperatures(FLSW(4, 2), t[rows], s[rows])
        values += [float(soft_targets(t[rows][i], s[rows][i], each[i])) for i in range(len(each))]
    expected = np.mean(np.array(values) * sample_weight)
    assert one[0]["soft_targets"] == pytest.approx(expected, rel=1e-4)

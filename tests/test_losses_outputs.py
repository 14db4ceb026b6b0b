"""What the papers say of the losses on outputs, beyond the formulas; steps and masks; errors."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from formulas import (
    PAIRS,
    Array,
    bounded_regression,
    entropy,
    gradient,
    hard_targets,
    intra_class,
    log_probabilities,
    random_pair,
    soft_targets,
    standardized,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import perceptron
from output_losses import OUTPUT_LOSSES

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.losses import functional, shared


def said(logits: Array, **more: Any) -> losses.Outputs:
    return losses.Outputs(tf.convert_to_tensor(logits), {}, **more)


def probabilities(logits: Array, temperature: float = 1.0) -> Array:
    return np.exp(log_probabilities(logits, temperature))


# --- divergences ---


def test_cross_entropy_is_the_divergence_and_the_teachers_entropy() -> None:
    teacher, student = random_pair(6, 5)
    ours = functional.soft_cross_entropy(teacher, student, 3.0)
    kl = functional.soft_targets(teacher, student, 3.0)
    np.testing.assert_allclose(ours, kl + 9 * entropy(teacher, 3.0), rtol=1e-5)
    np.testing.assert_allclose(
        functional.soft_cross_entropy(teacher, teacher, 3.0), 9 * entropy(teacher, 3.0), rtol=1e-5
    )
    ours = gradient(lambda t, s: functional.soft_cross_entropy(t, s, 3.0), teacher, student)
    theirs = gradient(lambda t, s: functional.soft_targets(t, s, 3.0), teacher, student)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_reverse_divergence_costs_what_the_teacher_excludes() -> None:
    teacher, student = [[10.0, 0.0, 0.0]], [[10.0, 10.0, 0.0]]
    forward, backward = (
        float(f(teacher, student, 1.0)[0]) for f in (functional.soft_targets, functional.reverse_kl)
    )
    assert forward == pytest.approx(np.log(2), abs=1e-3)
    assert backward > 4


def test_jensen_shannon_is_symmetric_bounded_and_a_quarter_nearby() -> None:
    teacher, student = random_pair(50, 5)
    ours = functional.jensen_shannon(teacher, student, 2.0).numpy()
    np.testing.assert_allclose(ours, functional.jensen_shannon(student, teacher, 2.0), rtol=1e-5)
    far = functional.jensen_shannon([[1e4, 0.0]], [[0.0, 1e4]], 2.0)
    np.testing.assert_allclose(far, 4 * np.log(2), rtol=1e-6)
    assert (ours > 0).all()
    assert (ours < 4 * np.log(2)).all()
    near = teacher + 0.05 * student
    ratio = functional.jensen_shannon(teacher, near, 2.0) / functional.soft_targets(
        teacher, near, 2.0
    )
    np.testing.assert_allclose(ratio, 0.25, rtol=0.05)


@pytest.mark.parametrize("name", ["jensen_shannon", "standardized", "inter_class", "intra_class"])
def test_almost_zero_and_flat_where_the_student_is_the_teacher(name: str) -> None:
    teacher, student = random_pair(5, 7)
    ours = PAIRS[name].ours
    np.testing.assert_allclose(ours(teacher, teacher), 0, atol=2e-6)
    assert (ours(teacher, student).numpy() > 0.05).all()
    np.testing.assert_allclose(gradient(ours, teacher, teacher), 0, atol=2e-6)


def test_standardized_logits_have_no_scale() -> None:
    teacher, student = random_pair(6, 5)
    ours = PAIRS["standardized"].ours
    np.testing.assert_allclose(
        ours(7 * teacher, 3 * student - 2), ours(teacher, student), rtol=1e-4
    )
    plain = functional.soft_targets(teacher, student, 2.0)
    assert np.abs(ours(teacher, student) - plain).max() > 0.1


def test_standardizing_equal_logits_is_finite() -> None:
    equal, varied = np.ones([2, 4], np.float32), random_pair(2, 4)[0]
    for pair in ((equal, varied), (varied, equal), (equal, equal)):
        assert np.isfinite(PAIRS["standardized"].ours(*pair)).all()
        assert np.abs(gradient(PAIRS["standardized"].ours, *pair)).max() < 1e4


@pytest.mark.parametrize(
    ("divergence", "name"),
    [
        ("kl", "soft_targets"),
        ("cross_entropy", "soft_cross_entropy"),
        ("reverse_kl", "reverse_kl"),
        ("jensen_shannon", "jensen_shannon"),
    ],
)
@pytest.mark.parametrize("standardize", [False, True])
def test_soft_targets_take_the_divergence_asked_for(
    divergence: Any, name: str, standardize: bool
) -> None:
    teacher, student = random_pair(4, 5)
    loss = losses.SoftTargets(3.0, divergence=divergence, standardize=standardize)
    ours = loss.call(said(teacher), said(student))
    if standardize:
        teacher, student = standardized(teacher), standardized(student)
    expected = getattr(functional, name)(teacher, student, 3.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


# --- hard targets ---


def test_examples_below_the_threshold_teach_nothing_and_are_counted() -> None:
    teacher = np.log([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]).astype(np.float32)
    student = random_pair(2, 3)[1]
    loss = losses.HardTargets(threshold=0.6)
    ours = loss.call(said(teacher), said(student)).numpy()
    assert ours[1] == 0
    assert ours.mean() == pytest.approx(hard_targets(teacher, student)[0] / 2, rel=1e-5)
    even = functional.hard_targets([[0.0, 0.0]], [[0.0, 0.0]], threshold=0.5)
    np.testing.assert_allclose(even, np.log(2), rtol=1e-6)  # 0.5 reaches it
    slopes = gradient(lambda t, s: loss.call(said(t), said(s)), teacher, student)
    assert (slopes[1] == 0).all()
    assert (slopes[0] != 0).all()


def test_smoothed_hard_targets_are_least_at_the_smoothed_distribution() -> None:
    loss = losses.HardTargets(label_smoothing=0.3)
    best = np.log([[0.8, 0.1, 0.1]]).astype(np.float32)
    ours = loss.call(said([[5.0, 0.0, 0.0]]), said(best))
    np.testing.assert_allclose(ours, entropy(best, 1.0), rtol=1e-5)
    slopes = gradient(lambda t, s: loss.call(said(t), said(s)), 9 * best + 20, best)
    np.testing.assert_allclose(slopes, 0, atol=1e-6)


# --- logits and probabilities ---


def test_centered_mse_is_twice_the_soft_targets_of_a_high_temperature() -> None:
    teacher, student = random_pair(6, 5)
    soft = soft_targets(teacher, student, 1e4)
    np.testing.assert_allclose(functional.centered_mse(teacher, student), 2 * soft, rtol=1e-2)
    np.testing.assert_allclose(functional.centered_mse(teacher, teacher + 3), 0, atol=1e-9)
    assert (functional.logits_mse(teacher, teacher + 3).numpy() > 8).all()


def test_probability_mse_is_the_distance_of_the_probabilities() -> None:
    teacher, student = random_pair(6, 5)
    ours = losses.ProbabilityMSE().call(said(teacher), said(student))
    distance = np.linalg.norm(probabilities(teacher) - probabilities(student), axis=-1)
    np.testing.assert_allclose(ours, distance**2, rtol=1e-5)


# --- decoupled ---


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_decoupled_parts_sum_to_the_divergence(classes: int) -> None:
    """Zhao 2022, section 3: KL = TCKD + (1 - p of the label) NCKD."""
    teacher, student = random_pair(8, classes)
    labels = np.arange(8) % max(2, classes)
    target, others = (
        functional.decoupled_kd(teacher, student, labels, 3.0, *weights).numpy()
        for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    rest = 1 - probabilities(teacher, 3.0)[np.arange(8), labels]
    np.testing.assert_allclose(
        target + rest * others, soft_targets(teacher, student, 3.0), rtol=1e-4, atol=1e-5
    )
    assert (others > 0.01).all() == (classes > 2)


def test_decoupled_takes_one_hot_labels_and_labels_of_no_class() -> None:
    teacher, student = random_pair(4, 3)
    loss = losses.DecoupledKD()
    numbers = np.array([2, 0, 1, 1])
    ours = loss.call(said(teacher), said(student), labels=numbers)
    for same in (numbers[:, None], np.eye(3)[numbers], numbers.astype(np.float32)):
        np.testing.assert_array_equal(loss.call(said(teacher), said(student), labels=same), ours)
    assert (
        np.abs(ours - loss.call(said(teacher), said(student), labels=(numbers + 1) % 3)).max() > 1
    )
    none = losses.DecoupledKD(4.0, 1.0, 1.0).call(said(teacher), said(student), labels=[-1] * 4)
    np.testing.assert_allclose(none, soft_targets(teacher, student, 4.0), rtol=1e-4)


@pytest.mark.parametrize("labels", [np.zeros([4, 2]), np.zeros([4, 3, 1]), np.float32(0)])
def test_labels_of_other_shapes_are_refused(labels: Array) -> None:
    teacher, student = random_pair(4, 3)
    with pytest.raises(
        DataError, match=r"`labels` must be class numbers or one-hot rows.*Received: labels \("
    ):
        losses.DecoupledKD().call(said(teacher), said(student), labels=labels)


# --- a teacher that is made up ---


@pytest.mark.parametrize("classes", [1, 7])
def test_the_virtual_teacher_wants_the_label_and_all_others_alike(classes: int) -> None:
    labels = np.arange(5) % max(2, classes)
    width = max(2, classes)
    made_up = np.where(np.eye(width)[labels] == 1, 0.9, 0.1 / (width - 1))
    best = np.log(made_up).astype(np.float32)
    if classes == 1:
        best = best[:, 1:] - best[:, :1]
    ours = partial(functional.virtual_teacher, labels=labels, probability=0.9, temperature=20.0)
    np.testing.assert_allclose(ours(best), 0, atol=1e-4)
    np.testing.assert_allclose(gradient(lambda _, s: ours(s), best, best), 0, atol=1e-4)
    others = functional.virtual_teacher(best, (labels + 1) % width, 0.9, 20.0)
    assert (others.numpy() > 1).all()


def test_the_virtual_teacher_is_that_of_the_paper_at_the_papers_temperature() -> None:
    student = np.zeros([1, 10], np.float32)
    ratio = (0.99 / (0.01 / 9)) ** (1 / 20)
    p = np.array([ratio] + [1] * 9) / (ratio + 9)
    ours = losses.VirtualTeacher().call(losses.Outputs((), {}), said(student), labels=[0])
    np.testing.assert_allclose(ours, [400 * (p * np.log(p * 10)).sum()], rtol=1e-4)


def test_the_virtual_teacher_takes_one_hot_labels_and_labels_of_no_class() -> None:
    student = random_pair(4, 3)[1]
    loss, nobody = losses.VirtualTeacher(0.9, 4.0), losses.Outputs((), {})
    numbers = np.array([2, 0, 1, 1])
    ours = loss.call(nobody, said(student), labels=numbers)
    for same in (numbers[:, None], np.eye(3)[numbers], numbers.astype(np.float32)):
        np.testing.assert_array_equal(loss.call(nobody, said(student), labels=same), ours)
    none = loss.call(nobody, said(student), labels=[-1] * 4)
    np.testing.assert_allclose(none, soft_targets(np.zeros([4, 3]), student, 4.0), rtol=1e-4)


# --- DIST ---


def test_dist_forgives_a_student_that_is_less_sure_in_the_same_way() -> None:
    teacher, student = random_pair(6, 5)
    loss = losses.DIST(2.0, 3.0)
    less_sure = np.log(0.2 * probabilities(student) + 0.8 / 5).astype(np.float32)
    ours = loss.call(said(teacher), said(student))
    np.testing.assert_allclose(loss.call(said(teacher), said(less_sure)), ours, rtol=1e-4)
    kl = functional.soft_targets(teacher, student, 1.0)
    assert np.abs(functional.soft_targets(teacher, less_sure, 1.0) - kl).min() > 1e-2


def test_dist_is_the_examples_own_part_and_the_batchs() -> None:
    teacher, student = random_pair(6, 5)
    ours = losses.DIST(2.0, 3.0, 2.0).call(said(teacher), said(student))
    expected = 2 * PAIRS["inter_class"].formula(teacher, student)
    expected += 3 * intra_class(teacher, student, 2.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert losses.DIST().across_batch
    assert not losses.DIST(intra_weight=0).across_batch


def test_classes_without_variation_are_uncorrelated() -> None:
    teacher, student = random_pair(1, 3)
    np.testing.assert_array_equal(functional.intra_class(teacher, student), [1.0])
    slopes = gradient(functional.intra_class, teacher, student)
    np.testing.assert_array_equal(slopes, 0)
    uniform = np.zeros([1, 3], np.float32)
    np.testing.assert_allclose(functional.inter_class(uniform, student), [1.0], atol=1e-3)
    assert np.isfinite(gradient(functional.inter_class, teacher, uniform)).all()


# --- labels of their own, numbers ---


def _of_logits(call: Any, teacher: Array, student: Array) -> Array:
    return call(said(teacher), said(student))


def test_bounded_regression_stops_where_the_student_is_better() -> None:
    labels = np.array([1.0, 1.0, 1.0], np.float32)
    teacher = np.array([[2.0], [2.0], [2.0]], np.float32)  # an error of 1
    student = np.array([[1.9], [2.1], [0.5]], np.float32)
    for margin, teaching in ((0.0, [False, True, False]), (0.5, [True, True, False])):
        loss = losses.RegressionTargets(bounded=True, margin=margin)
        ours = loss.call(said(teacher), said(student), labels=labels).numpy()
        expected = bounded_regression(teacher, student, labels[:, None], margin)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
        assert [*(ours > 0)] == teaching
        call = partial(loss.call, labels=labels)
        slopes = gradient(partial(_of_logits, call), teacher, student)
        assert [*(slopes[:, 0] != 0)] == teaching


def test_regression_reads_labels_only_where_it_is_bounded() -> None:
    teacher, student = random_pair(4, 2)
    assert not losses.RegressionTargets().needs_labels
    np.testing.assert_array_equal(
        losses.RegressionTargets().call(said(teacher), said(student)),
        functional.logits_mse(teacher, student),
    )
    bounded = losses.RegressionTargets(bounded=True)
    assert bounded.needs_labels
    for labels in (np.zeros(4), np.zeros([4, 1]), np.zeros([4, 3])):
        with pytest.raises(
            DataError, match=r"`labels` must be one number for each output.*Received: labels \(4"
        ):
            bounded.call(said(teacher), said(student), labels=labels)


# --- steps and masks ---


def call_with_labels(loss: Any, teacher: Any, student: Any, labels: Any = None) -> Array:
    if not loss.needs_labels:
        return loss.call(teacher, student).numpy()
    if labels is None:
        labels = tf.ones(student.logits.shape[:-1], tf.int32)
    return loss.call(teacher, student, labels=labels).numpy()


@settings(max_examples=150, deadline=None, derandomize=True)  # the first calls are slow
@given(
    name=st.sampled_from(sorted(OUTPUT_LOSSES)),
    batch=st.integers(1, 4),
    steps=st.lists(st.integers(1, 4), max_size=2),
    classes=st.integers(3, 6),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_an_example_is_the_mean_of_its_steps_that_count(
    name: str, batch: int, steps: list[int], classes: int, masked: bool, seed: int, scale: float
) -> None:
    loss, formula = OUTPUT_LOSSES[name]
    teacher, student = random_pair(batch, *steps, classes, scale=scale, seed=seed)
    rng = np.random.default_rng(seed)
    labels = np.eye(classes)[rng.integers(0, classes, [batch, *steps])]
    counted = np.ones([batch, *steps], bool)
    if masked and steps:
        counted = rng.random(counted.shape) < 0.6
        student[~counted] = np.nan
    rows = np.zeros(counted.shape)
    rows[counted] = formula(teacher[counted], student[counted], labels[counted])
    inside = counted.reshape(batch, -1)
    expected = rows.reshape(batch, -1).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    if isinstance(loss, losses.DIST):  # the batch's part is that of its empty examples, too
        among = intra_class(teacher[counted], student[counted], 2.0)
        expected[~inside.any(axis=1)] = loss.intra_weight * (among[0] if among.size else 2.0**2)
    mask = tf.constant(counted) if masked and steps else ()
    ours = call_with_labels(loss, said(teacher), said(student, mask=mask), labels)
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-5)


def test_masks_of_fewer_axes_count_all_that_is_inside() -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    mask = np.array([[True, False, True], [False, True, False]])
    np.testing.assert_allclose(
        shared.mean_over_steps(tf.constant(values), tf.constant(mask)),
        [values[0, [0, 2]].mean(), values[1, 1].mean()],
    )


# --- stored targets of the largest logits ---


def test_each_loss_reads_the_stored_logits_that_are_right_for_it() -> None:
    teacher, student = random_pair(4, 5)
    stored = losses.Outputs(teacher / 9, {}, {"1.0": teacher * 9, "2.0": teacher * 2})
    for loss, right in [
        *(
            (losses.SoftTargets(2.0, divergence=divergence), teacher * 2)
            for divergence in ("kl", "cross_entropy", "reverse_kl", "jensen_shannon")
        ),
        (losses.ProbabilityMSE(2.0), teacher * 2),
        (losses.DIST(temperature=2.0), teacher * 2),
        (losses.DecoupledKD(temperature=2.0), teacher * 2),
        (losses.HardTargets(threshold=0.6), teacher * 9),
    ]:
        np.testing.assert_array_equal(
            call_with_labels(loss, stored, said(student)),
            call_with_labels(loss, said(right), said(student)),
        )
    for loss in (
        losses.SoftTargets(2.0, standardize=True),
        losses.LogitsMSE(),
        losses.CenteredMSE(),
        losses.BinaryTargets(2.0),
        losses.RegressionTargets(),
    ):
        with pytest.raises(SettingError, match=r"`losses` must need no more than the top-k"):
            loss.call(stored, said(student))
    with pytest.raises(SettingError, match=r"`temperature` of a loss must be one that"):
        losses.DIST(temperature=3.0).call(stored, said(student))


# --- settings ---


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (
            losses.SoftTargets,
            {"divergence": "revers_kl"},
            r"`divergence` must be one of 'kl', .*Received: 'revers_kl'\. Did you mean 'reverse_kl",
        ),
        (losses.SoftTargets, {"divergence": None}, r"`divergence` must be one of .*Received: None"),
        (losses.SoftTargets, {"standardize": 1}, r"`standardize` must be True or False\."),
        (losses.HardTargets, {"threshold": 1.0}, r"`threshold` must be >= 0 and < 1\. Received: 1"),
        (losses.HardTargets, {"threshold": -0.1}, r"`threshold` must be >= 0 and < 1\."),
        (losses.HardTargets, {"label_smoothing": 1}, r"`label_smoothing` must be >= 0 and < 1\."),
        (losses.ProbabilityMSE, {"temperature": 0}, r"`temperature` must be > 0 and finite"),
        (losses.BinaryTargets, {"temperature": 0}, r"`temperature` must be > 0 and finite"),
        (losses.DecoupledKD, {"temperature": 0}, r"`temperature` must be > 0 and finite"),
        (losses.DecoupledKD, {"target_weight": -1}, r"`target_weight` must be >= 0 and finite"),
        (
            losses.DecoupledKD,
            {"target_weight": 0, "non_target_weight": 0},
            r"`target_weight` and `non_target_weight` must not both be 0\. Received: DecoupledKD",
        ),
        (losses.VirtualTeacher, {"temperature": 0}, r"`temperature` must be > 0 and finite"),
        (losses.VirtualTeacher, {"probability": 1.0}, r"`probability` must be > 0 and < 1\."),
        (
            losses.VirtualTeacher,
            {"probability": 0.5},
            r"`probability` must be > 0\.5: the label's class is the likeliest\. Received: 0\.5",
        ),
        (losses.DIST, {"temperature": -1}, r"`temperature` must be > 0 and finite"),
        (losses.DIST, {"intra_weight": "1"}, r"`intra_weight` must be >= 0 and finite"),
        (
            losses.DIST,
            {"inter_weight": 0, "intra_weight": 0},
            r"`inter_weight` and `intra_weight` must not both be 0\.",
        ),
        (losses.RegressionTargets, {"bounded": "yes"}, r"`bounded` must be True or False\."),
        (
            losses.RegressionTargets,
            {"bounded": True, "margin": -1},
            r"`margin` must be >= 0 and finite",
        ),
        (
            losses.RegressionTargets,
            {"margin": 0.5},
            r"`margin` must be 0 unless bounded=True\. Received: margin=0\.5, bounded=False\.",
        ),
    ],
)
def test_settings_are_refused(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (losses.SoftTargets(standardize=True), "standardize=True"),
        (losses.DIST(), "inter_weight > 0"),
        (losses.DecoupledKD(target_weight=0), "target_weight=0"),
    ],
)
@pytest.mark.parametrize("classes", [1, 2])
def test_relations_need_three_classes(loss: Any, what: str, classes: int) -> None:
    shapes = losses.Shapes((classes,), {})
    with pytest.raises(ModelError, match=rf"at least three classes for {what}\. Received: teacher"):
        loss.build(shapes, shapes)
    loss.build(losses.Shapes((3,), {}), losses.Shapes((3,), {}))


LABEL_READERS = (losses.DecoupledKD(), losses.VirtualTeacher())
OF_CLASSES = (
    losses.SoftTargets(),
    losses.HardTargets(),
    losses.CenteredMSE(),
    losses.ProbabilityMSE(),
    losses.DIST(),
    *LABEL_READERS,
)


def ending(in_what: str | None, units: int = 3) -> losses.Shapes:
    return losses.Shapes((units,), {}, in_what)


@pytest.mark.parametrize("loss", OF_CLASSES, ids=lambda loss: loss.name)
def test_sigmoids_are_no_classes(loss: Any) -> None:
    """The distribution over three sigmoids does not tell (yes, yes, yes) from (no, no, no)."""
    message = re.escape(
        f"must end in a softmax, or in logits, for the loss {loss.name!r}. Received: sigmoid of 3 "
        "units. Of sigmoids any number may be true: td.losses.BinaryTargets teaches each of them."
    )
    for other in (None, "linear", "softmax"):
        loss.build(ending(other), ending(other))
        with pytest.raises(ModelError, match=f"`student` {message}"):
            loss.build(ending(other), ending("sigmoid"))
        if loss.needs_teacher:
            with pytest.raises(ModelError, match=f"`teacher` {message}"):
                loss.build(ending("sigmoid"), ending(other))
    if not loss.needs_teacher:
        loss.build(ending("sigmoid"), ending("softmax"))  # which says nothing to it
    losses.SoftTargets().build(ending("sigmoid", 1), ending("sigmoid", 1))  # two classes


def test_a_softmax_is_no_yes_or_no_of_each_unit_and_neither_is_a_number() -> None:
    binary, numbers = losses.BinaryTargets(), losses.RegressionTargets()
    for other in (None, "linear", "sigmoid"):
        binary.build(ending(other), ending(other))
        with pytest.raises(
            ModelError,
            match=r"`student` must end in sigmoids, or in logits, for the loss 'binary_targets'\. "
            r"Received: softmax of 3 units\. Of a softmax's classes one is true: td\.losses\.Soft",
        ):
            binary.build(ending(other), ending("softmax"))
    for other in ("softmax", "sigmoid"):
        for teacher, student in (("linear", other), (other, "linear")):
            with pytest.raises(
                ModelError,
                match=r"must end in numbers, without an activation, for the loss 'regression_targ"
                rf"ets'\. Received: {other} of 1 units\. What is before an activation would be com",
            ):
                numbers.build(ending(teacher, 1), ending(student, 1))
    for either in (None, "linear", "softmax", "sigmoid"):
        losses.LogitsMSE().build(ending(either), ending("linear"))


@pytest.mark.parametrize("library", [keras, pytest.param(tf_keras, marks=pytest.mark.slow)])
def test_a_distiller_and_a_pipeline_know_what_models_end_in(library: Any) -> None:
    student, teacher = (perceptron(library, activation="sigmoid", seed=seed) for seed in range(2))
    for refused in (
        lambda: td.Distiller(student, teacher, [losses.SoftTargets()]),
        lambda: td.Distiller(student, perceptron(library, seed=1), [losses.HardTargets()]),
        lambda: td.Pipeline().check(student, teacher),
        lambda: td.MutualDistiller([student, teacher]),
    ):
        with pytest.raises(
            ModelError, match=r"must end in a softmax.*Received: sigmoid of 3 units"
        ):
            refused()
    td.Distiller(student, teacher, [losses.BinaryTargets()], 0.0)
    td.Distiller(perceptron(library), teacher, [losses.BinaryTargets()], 0.0)


def test_soft_labels_of_a_single_unit_are_of_the_nearer_class() -> None:
    logits = tf.constant([[0.5], [-1.0], [2.0]])
    said = losses.Outputs(logits, {}), losses.Outputs(logits - 1.0, {})
    for loss in LABEL_READERS:
        if loss.name == "decoupled_kd":
            loss = losses.DecoupledKD(non_target_weight=0)
        ours, theirs = (
            loss.call(*said, labels=labels)
            for labels in (np.array([0.9, 0.2, 0.75], np.float32), np.array([1, 0, 1]))
        )
        np.testing.assert_array_equal(ours, theirs)


def test_steps_must_agree_where_they_are_known() -> None:
    loss = losses.SoftTargets()
    for teacher, student in [((None, 4), (7, 4)), ((7, 4), (7, 4)), ((2, 3, 4), (2, None, 4))]:
        loss.build(losses.Shapes(teacher, {}), losses.Shapes(student, {}))
    for teacher, student in [((8, 4), (7, 4)), ((4,), (7, 4))]:
        with pytest.raises(
            ModelError, match=r"logits for the same steps\. Received: teacher logits \[batch, "
        ):
            loss.build(losses.Shapes(teacher, {}), losses.Shapes(student, {}))

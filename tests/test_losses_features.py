"""The losses on features and relations against their formulas, and what the papers say of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from feature_formulas import (
    FEATURE_PAIRS,
    RELATIONS,
    FeaturePair,
    averaged,
    cosine_hidden_states,
    flow,
    hidden_states,
    weight_mse,
)
from formulas import Array, finite_differences, gradient, hint
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import only

from tfdistill import losses
from tfdistill._keras import tf
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import functional, shared

# No deadline: TensorFlow's first call of an operation is slow.
quick = settings(max_examples=150, deadline=None, derandomize=True)
each_pair = pytest.mark.parametrize("pair", FEATURE_PAIRS.values(), ids=FEATURE_PAIRS)
each_relation = pytest.mark.parametrize("name", RELATIONS)

ZERO_AT_EQUALITY = sorted(set(FEATURE_PAIRS) - {"contrastive", "fsp"})
ONE_WIDTH = ("hint", "fsp", "hidden_states", "cosine_hidden_states", "attention_scores")


def random_features(pair: FeaturePair, seed: int = 0, scale: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    teacher, student = (rng.normal(scale=scale, size=shape) for shape in pair.shapes)
    return teacher.astype(np.float32), student.astype(np.float32)


# --- values ---


@quick
@given(
    name=st.sampled_from(sorted(FEATURE_PAIRS)),
    batch=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_equal_to_the_formula(
    name: str, batch: int, sizes: list[int], widths: tuple[int, int], seed: int, scale: float
) -> None:
    pair = FEATURE_PAIRS[name]
    theirs, ours = widths if name not in (*ONE_WIDTH, "contrastive") else (widths[0], widths[0])
    if name == "contrastive":
        sizes = []
    if name == "attention_scores":
        sizes = [2, *sizes][-2:]
    shapes = (batch, *sizes, theirs), (batch, *sizes, ours)
    teacher, student = random_features(pair._replace(shapes=shapes), seed, scale)
    value = pair.ours(teacher, student).numpy()
    assert value.shape == (batch,)
    expected = pair.formula(teacher, student)
    squared = name in ("hint", "hidden_states", "attention_scores")  # the others have no unit
    atol = 2e-5 * (min(1.0, scale**2) if squared else 1.0)
    np.testing.assert_allclose(value, expected, rtol=2e-4, atol=atol)


@each_pair
def test_gradient_equals_finite_differences(pair: FeaturePair) -> None:
    teacher, student = random_features(pair)
    ours = gradient(pair.ours, teacher, student)
    assert np.abs(ours).max() > 1e-3
    slope = finite_differences(pair.formula, teacher, student)
    np.testing.assert_allclose(ours, slope, rtol=2e-3, atol=2e-5)


@each_pair
def test_no_gradient_flows_to_the_teacher(pair: FeaturePair) -> None:
    teacher, student = map(tf.constant, random_features(pair))
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        value = tf.reduce_sum(pair.ours(teacher, student))
    slope = tape.gradient(value, teacher)
    assert slope is None or not np.any(slope)


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
def test_zero_and_flat_where_the_student_is_the_teacher(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, _ = random_features(pair)
    other = np.random.default_rng(1).normal(size=teacher.shape).astype(np.float32)
    np.testing.assert_allclose(pair.ours(teacher, teacher), 0, atol=1e-6)
    assert (pair.ours(teacher, other).numpy() > 1e-4).all()
    np.testing.assert_allclose(gradient(pair.ours, teacher, teacher), 0, atol=1e-4)


def test_equal_flows_are_zero() -> None:
    first, second = random_features(FEATURE_PAIRS["fsp"])
    flows = functional.flow(first, second)
    np.testing.assert_array_equal(functional.fsp(flows, flows), 0)


@each_pair
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_finite_and_right_at_features_of_ten_thousand(pair: FeaturePair, dtype: type) -> None:
    rng = np.random.default_rng(0)
    every: Array = np.array([-1e4, 0.0, 1.0, 1e4], dtype)
    teacher, student = (every[rng.integers(0, 4, shape)] for shape in pair.shapes)
    value = pair.ours(teacher, student)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, pair.formula(teacher, student), rtol=3e-3, atol=1e-4)
    assert np.isfinite(gradient(pair.ours, teacher, student.astype(np.float32))).all()


@each_pair
def test_features_of_zeros_are_finite(pair: FeaturePair) -> None:
    teacher, student = random_features(pair)
    for one, other in (
        (teacher, np.zeros_like(student)),
        (np.zeros_like(teacher), student),
        (np.zeros_like(teacher), np.zeros_like(student)),
    ):
        value = pair.ours(one, other)
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, pair.formula(one, other), rtol=1e-3, atol=1e-5)
        slope = gradient(pair.ours, one, other)
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() < 1e3


@each_pair
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_types_are_computed_in_float32(pair: FeaturePair, dtype: str) -> None:
    teacher, student = (tf.cast(each, dtype) for each in random_features(pair))
    value = pair.ours(teacher, student)
    assert value.dtype == tf.float32
    exact = pair.formula(*(tf.cast(each, tf.float64).numpy() for each in (teacher, student)))
    np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-6)


@each_pair
def test_any_batch_in_a_traced_function(pair: FeaturePair) -> None:
    specs = [tf.TensorSpec([None, *shape[1:]]) for shape in pair.shapes]

    @tf.function(input_signature=specs)
    def traced(teacher: Any, student: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = pair.ours(teacher, student)
        return value, tape.gradient(value, student)

    teacher, student = random_features(pair)
    value, slope = traced(teacher, student)
    np.testing.assert_allclose(value, pair.formula(teacher, student), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope, gradient(pair.ours, teacher, student), rtol=1e-3, atol=1e-5)
    value, slope = traced(teacher[:1], student[:1])
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    value, slope = traced(teacher[:0], student[:0])
    assert value.shape == [0]
    assert slope.shape == [0, *pair.shapes[1][1:]]


@pytest.mark.slow  # XLA compiles each
@each_pair
def test_compiled(pair: FeaturePair) -> None:
    teacher, student = random_features(pair)

    @tf.function(jit_compile=True)
    def compiled(teacher: Any, student: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = pair.ours(teacher, student)
        return value, tape.gradient(value, student)

    value, slope = compiled(tf.constant(teacher), tf.constant(student))
    np.testing.assert_allclose(value, pair.formula(teacher, student), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope, gradient(pair.ours, teacher, student), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*ONE_WIDTH, "contrastive"])
def test_shapes_are_never_broadcast(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, student = random_features(pair)
    with pytest.raises(ModelError, match=r"The student's output must have the shape of the teach"):
        pair.ours(teacher, student[..., :1])


@pytest.mark.parametrize("name", ["attention_transfer", "neuron_selectivity"])
def test_steps_of_maps_must_agree(name: str) -> None:
    steps = [np.ones([2, size, 3], np.float32) for size in (1, 4)]
    with pytest.raises(ModelError, match=r"The student's output must have the shape of the teach"):
        FEATURE_PAIRS[name].ours(*steps)


# --- what the papers say ---


def rotation(size: int) -> Array:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(size, size)))[0].astype(np.float32)


@each_relation
def test_relations_do_not_see_rotation_or_scale(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, student = random_features(pair)
    value = pair.ours(teacher, student)
    moved = 1e25 * student @ rotation(3), 1e-25 * teacher @ rotation(4)
    np.testing.assert_allclose(pair.ours(moved[1], moved[0]), value, rtol=1e-3, atol=1e-6)
    bent = student * np.array([1, 5, 1], np.float32)
    assert np.abs(pair.ours(teacher, bent) - value).max() > 1e-4


@pytest.mark.parametrize("name", ["relational_distance", "relational_angle"])
def test_relational_losses_do_not_see_a_shift(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, student = random_features(pair)
    np.testing.assert_allclose(
        pair.ours(teacher + 7, student - 1000), pair.ours(teacher, student), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("name", ["probabilistic_transfer", "correlation_congruence"])
def test_directions_have_no_length(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, student = random_features(pair)
    lengths = np.array([[1], [100], [0.1], [3], [7]], np.float32)
    np.testing.assert_allclose(
        pair.ours(teacher, lengths * student), pair.ours(teacher, student), rtol=1e-4
    )


@each_relation
def test_relations_take_any_shape_of_features(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(4, 12)), rng.normal(size=(4, 6))
    np.testing.assert_allclose(
        pair.ours(teacher.reshape(4, 2, 2, 3), student.reshape(4, 3, 2)),
        pair.ours(teacher, student),
        rtol=1e-5,
    )


@each_relation
def test_equal_examples_have_no_infinite_gradient(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, student = random_features(pair)
    student[1] = student[0]
    student[4] = student[2] + 0.05  # near, not equal
    teacher[3] = teacher[2]
    np.testing.assert_allclose(pair.ours(teacher, student), pair.formula(teacher, student), 1e-3)
    assert np.abs(gradient(pair.ours, teacher, student)).max() < 10


def test_relational_losses_of_too_few_examples_are_zero() -> None:
    rng = np.random.default_rng(0)
    for name, fewest in (("relational_distance", 2), ("relational_angle", 3)):
        for batch in range(1, fewest):
            pair = rng.normal(size=(2, batch, 3)).astype(np.float32)
            np.testing.assert_array_equal(FEATURE_PAIRS[name].ours(*pair), 0)
            np.testing.assert_array_equal(gradient(FEATURE_PAIRS[name].ours, *pair), 0)


def test_attention_is_where_not_how_much_nor_by_which_channel() -> None:
    teacher, student = random_features(FEATURE_PAIRS["attention_transfer"])
    ours = functional.attention_transfer(teacher, student)
    scales = np.array([7, 1e-25, 1e25], np.float32)[:, None, None, None]  # each example its own
    permuted = scales * student[..., [2, 0, 1]]
    np.testing.assert_allclose(functional.attention_transfer(teacher, permuted), ours, rtol=1e-5)
    apart = functional.attention_transfer([[[1.0], [0.0]]], [[[0.0], [2.0]]])
    np.testing.assert_allclose(apart, [2.0])


@pytest.mark.parametrize("kernel", ["polynomial", "linear"])
def test_selectivity_does_not_see_the_order_of_channels(kernel: Any) -> None:
    teacher, student = random_features(FEATURE_PAIRS["neuron_selectivity"])
    ours = functional.neuron_selectivity(teacher, student, kernel)
    doubled = functional.neuron_selectivity(
        teacher[..., [3, 1, 4, 0, 2]], np.concatenate([student, 2 * student], axis=-1), kernel
    )
    np.testing.assert_allclose(doubled, ours, rtol=1e-4)


def test_contrast_is_log_batch_where_nothing_is_told_and_falls_with_the_temperature() -> None:
    teacher, student = random_features(FEATURE_PAIRS["contrastive"])
    same = functional.contrastive(teacher, np.ones_like(student) * student[:1] * 0)
    np.testing.assert_allclose(same, np.log(5), rtol=1e-5)
    warm, cold = (functional.contrastive(teacher, teacher, t).numpy() for t in (1.0, 0.07))
    assert (cold < warm).all()


# --- weights ---


@settings(quick, max_examples=50)
@given(
    pairs=st.lists(
        st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    batch=st.integers(1, 4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_distance_of_weights_equals_the_formula(
    pairs: list[list[list[int]]], batch: int, seed: int, scale: float
) -> None:
    """The student's have an axis of size 1 more, as those of a quantized layer may."""
    rng = np.random.default_rng(seed)
    names = [f"layer_{place}" for place in range(len(pairs))]
    loss = losses.WeightMSE(names, names)
    teacher, student, expected = {}, {}, []
    for (theirs, ours), sizes in zip(loss.pairs, pairs, strict=True):
        teacher[theirs] = [rng.normal(size=size, scale=scale) for size in sizes]
        student[ours] = [rng.normal(size=[*size[:1], 1, *size[1:]], scale=scale) for size in sizes]
        expected.append(weight_mse(teacher[theirs], student[ours]))
    nothing = tf.zeros([batch, 2])
    ours = loss.call(losses.Outputs(nothing, teacher), losses.Outputs(nothing, student))
    assert ours.dtype == tf.float32
    np.testing.assert_allclose(ours, [np.mean(expected)] * batch, rtol=1e-5)


def test_gradient_to_weights_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    (kernel, other), (bias, another) = (rng.normal(size=(2, *size)) for size in ((3, 4), (4,)))
    teacher = [tf.constant(other, tf.float32), tf.constant(another, tf.float32)]
    student = [tf.constant(kernel, tf.float32), tf.constant(bias, tf.float32)]
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = functional.weight_mse(teacher, student)
    to_teacher, to_student = tape.gradient(value, [teacher, student])
    assert to_teacher == [None, None]
    formulas = (
        lambda _, moved: np.array(weight_mse([other, another], [moved, bias])),
        lambda _, moved: np.array(weight_mse([other, another], [kernel, moved])),
    )
    for formula, values, ours in zip(formulas, (kernel, bias), to_student, strict=True):
        expected = finite_differences(formula, None, values)
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


# --- masks ---


MASK = np.array([[True, False, True, True], [True, False, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("ours", "formula"),
    [
        (functional.hidden_states, hidden_states),
        (functional.cosine_hidden_states, cosine_hidden_states),
    ],
)
def test_states_of_masked_steps_do_not_matter(ours: Any, formula: Any) -> None:
    teacher, student = random_features(FEATURE_PAIRS["hidden_states"])
    student[~MASK] = np.nan
    value = ours(teacher, student, MASK)
    np.testing.assert_allclose(value, formula(teacher, student, MASK), rtol=1e-5)
    assert value[2] == 0
    assert abs(value[0] - formula(teacher, np.nan_to_num(student))[0]) > 1e-3


def test_scores_of_masked_pairs_do_not_matter() -> None:
    teacher, student = random_features(FEATURE_PAIRS["attention_scores"])
    mask = np.random.default_rng(3).random([2, 1, 4, 5]) > 0.5
    value = functional.attention_scores(teacher, student, mask)
    squares = (teacher - student) ** 2
    expected = [squares[i][:, mask[i, 0]].mean() for i in range(2)]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["hidden_states", "cosine_hidden_states", "attention_scores"])
def test_what_counts_is_what_the_students_mask_says(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    teacher, student = random_features(pair)
    mask = np.random.default_rng(3).random([len(student), 1, 4, 5]) > 0.5
    mask = mask if name == "attention_scores" else MASK
    loss = {**CLASSES, "attention_scores": losses.AttentionScores}[name]("t", "s")
    (theirs,), (ours,) = loss.teacher_layers, loss.student_layers
    value = loss.call(
        said(**{theirs: teacher})._replace(masks={theirs: tf.constant(~mask)}),
        said(**{ours: student})._replace(masks={ours: tf.constant(mask)}),
    )
    np.testing.assert_allclose(value, getattr(functional, name)(teacher, student, mask), rtol=1e-6)
    assert np.abs(value - pair.formula(teacher, student)).max() > 1e-3


# --- sizes ---


_SIZES = (((6, 4), (3, 2)), ((3, 2), (6, 4)), ((7, 5), (4, 5)), ((5, 2), (2, 3)))


@pytest.mark.parametrize("sizes", only(*_SIZES[::3], of=_SIZES))
@pytest.mark.parametrize("known", only(True, of=[True, False]))
def test_the_larger_image_is_averaged_to_the_smaller(sizes: Any, known: bool) -> None:
    rng = np.random.default_rng(0)
    teacher, student = (rng.normal(size=(2, *size, 3)).astype(np.float32) for size in sizes)
    least = np.minimum(*sizes)
    smaller = [np.array([averaged(image, *least) for image in x]) for x in (teacher, student)]
    spec = [None, None if not known else sizes[0][0], None if not known else sizes[0][1], 3]
    spec_student = [None, *(sizes[1] if known else (None, None)), 3]

    @tf.function(input_signature=[tf.TensorSpec(spec), tf.TensorSpec(spec_student)])
    def both(teacher: Any, student: Any) -> Any:
        return shared.same_places(teacher, student), functional.hint(teacher, student)

    resized, value = both(teacher, student)
    for one, other in zip(resized, smaller, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, hint(*smaller), rtol=1e-5)
    np.testing.assert_allclose(
        gradient(functional.hint, teacher, student),
        finite_differences(
            lambda t, s: hint(*(np.array([averaged(i, *least) for i in x]) for x in (t, s))),
            teacher,
            student,
        ),
        atol=1e-5,
    )


def test_a_flow_averages_the_larger_layer() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 2, 2, 5))
    smaller = np.array([averaged(image, 2, 2) for image in first])
    np.testing.assert_allclose(functional.flow(first, second), flow(smaller, second), rtol=1e-5)


# --- the classes ---


def said(**layers: Array) -> losses.Outputs:
    return losses.Outputs(tf.zeros([1, 1]), {n: tf.constant(v) for n, v in layers.items()})


def shapes(**layers: tuple[int | None, ...]) -> losses.Shapes:
    return losses.Shapes((10,), layers)


CLASSES: dict[str, Any] = {
    "hint": losses.Hint,
    "attention_transfer": losses.AttentionTransfer,
    "neuron_selectivity": losses.NeuronSelectivity,
    "hidden_states": losses.HiddenStates,
    "cosine_hidden_states": losses.CosineHiddenStates,
    "similarity_preserving": losses.SimilarityPreserving,
    "relational_distance": losses.RelationalDistance,
    "relational_angle": losses.RelationalAngle,
    "probabilistic_transfer": losses.ProbabilisticTransfer,
    "correlation_congruence": losses.CorrelationCongruence,
    "contrastive": losses.Contrastive,
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_the_mean_of_its_function_over_the_pairs(name: str) -> None:
    pair = FEATURE_PAIRS[name]
    (t1, s1), (t2, s2) = random_features(pair), random_features(pair, seed=1)
    loss = CLASSES[name](["t1", "t2"], ["s1", "s2"])
    fits = shapes(t1=t1.shape[1:], t2=t2.shape[1:]), shapes(s1=s1.shape[1:], s2=s2.shape[1:])
    assert loss.build(*fits) is None
    ours = loss.call(said(t1=t1, t2=t2), said(s1=s1, s2=s2))
    expected = (pair.formula(t1, s1) + pair.formula(t2, s2)) / 2
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert loss.name == name
    assert loss.across_batch == (name in (*RELATIONS, "contrastive"))


def test_settings_reach_the_functions() -> None:
    (t, s), (v, w) = (
        random_features(FEATURE_PAIRS[n]) for n in ("attention_transfer", "contrastive")
    )
    for loss, ours in [
        (
            losses.NeuronSelectivity("t", "s", kernel="linear"),
            functional.neuron_selectivity(t, s, "linear"),
        ),
        (
            losses.CorrelationCongruence("v", "w", gamma=1.5, order=4),
            functional.correlation_congruence(v, w, 1.5, 4),
        ),
        (losses.Contrastive("v", "w", temperature=0.5), functional.contrastive(v, w, 0.5)),
    ]:
        np.testing.assert_array_equal(loss.call(said(t=t, v=v), said(s=s, w=w)), ours)


@pytest.mark.parametrize("name", ["hint", "hidden_states", "cosine_hidden_states", "contrastive"])
def test_each_pair_of_other_widths_has_its_own_projection(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(4, width)).astype(np.float32) for width in (3, 5, 6))
    loss = CLASSES[name](["a", "b", "c"], ["b", "b", "a"])
    projection = loss.build(shapes(a=(3,), b=(5,), c=(6,)), shapes(a=(3,), b=(5,)))
    to_a, to_c = projection.get_weights()
    assert (to_a.shape, to_c.shape) == ((5, 3), (3, 6))
    ours = loss.call(said(a=a, b=b, c=c), said(a=a, b=b), projection)
    formula = FEATURE_PAIRS[name].formula
    expected = (formula(a, b @ to_a) + formula(b, b) + formula(c, a @ to_c)) / 3
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_flows_of_projected_layers() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.normal(size=(2, size, size, width)).astype(np.float32)
        for size, width in ((4, 3), (2, 5), (2, 4))
    )
    loss = losses.FSP(["a", "b", "c"], ["a", "c", "c"])
    every = shapes(a=(4, 4, 3), b=(2, 2, 5), c=(2, 2, 4))
    projection = loss.build(every, every)
    (to_b,) = projection.get_weights()
    assert to_b.shape == (4, 5)
    ours = loss.call(said(a=a, b=b, c=c), said(a=a, c=c), projection)
    halved = np.array([averaged(image, 2, 2) for image in a])
    first = (flow(halved, b) - flow(halved, c @ to_b)) ** 2
    second = (flow(b, c) - flow(c @ to_b, c)) ** 2
    np.testing.assert_allclose(ours, (first.mean((1, 2)) + second.mean((1, 2))) / 2, rtol=1e-4)


def test_flows_of_models_of_other_image_sizes() -> None:
    loss = losses.FSP(["a", "b"], ["a", "b"])
    theirs, ours = shapes(a=(8, 8, 3), b=(4, 4, 2)), shapes(a=(6, 6, 3), b=(6, 6, 2))
    assert loss.build(theirs, ours) is None


def test_a_quantized_convolution_over_time_fits() -> None:
    """It is one over an image of width one."""
    rng = np.random.default_rng(0)
    t, s = (rng.normal(size=(2, 6, width)).astype(np.float32) for width in (4, 3))
    for loss in (losses.Hint("t", "s"), losses.AttentionTransfer("t", "s")):
        one_wide = loss.build(shapes(t=(6, 4)), shapes(s=(6, 1, 3)))
        if one_wide is not None:
            assert [w.shape for w in one_wide.get_weights()] == [(3, 4)]
        np.testing.assert_array_equal(
            loss.call(said(t=t), said(s=s[:, :, None]), one_wide),
            loss.call(said(t=t), said(s=s), one_wide),
        )


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "message"),
    [
        (losses.AttentionTransfer, (8,), (8,), r"must have places: an image's, or steps\. Rece"),
        (losses.NeuronSelectivity, (8, 3), (7, 3), r"must have the same axes, and as many steps"),
        (losses.AttentionTransfer, (8, 8, 3), (64, 3), r"must have the same axes, and as many"),
        (losses.AttentionTransfer, (8, None), (8, 3), r"must have a last axis of known size\. Re"),
        (losses.HiddenStates, (8, 3), (7, 3), r"must agree in every axis but the last\. Received"),
        (losses.CosineHiddenStates, (8, 3), (8, 1, 1, 3, 3), r"must agree in every axis but"),
        (losses.EmbeddingStates, (8, 3), (8, None), r"must have a last axis of known size\. Re"),
        (losses.Contrastive, (8, 8, 3), (3,), r"must be vectors, \[batch, width\]\. Received"),
        (losses.Contrastive, (None,), (3,), r"must have a last axis of known size\. Received"),
        (losses.RelationalDistance, (), (3,), r"must have features: \[batch, \.\.\.\]\. Received"),
    ],
)
def test_layers_that_do_not_fit(loss: Any, teacher: Any, student: Any, message: str) -> None:
    received = r".*teacher layer 't' \[batch.*\], student layer 's' \[batch"
    with pytest.raises(ModelError, match=message + received):
        loss("t", "s").build(shapes(t=teacher), shapes(s=student))


def test_flows_that_do_not_fit() -> None:
    images, vector = shapes(a=(8, 8, 3), b=(4, 4, 2)), shapes(a=(8, 8, 3), b=(4,))
    for theirs, ours in ((images, vector), (vector, images)):
        with pytest.raises(ModelError, match=r"must have (places|the same axes)"):
            losses.FSP(["a", "b"], ["a", "b"]).build(theirs, ours)
    mixed = shapes(a=(8, 8, 3), b=(4, 2))
    with pytest.raises(ModelError, match=r"same axes.*layer 'a' \[batch, 8, 8, 3\], layer 'b'"):
        losses.FSP(["a", "b"], ["a", "b"]).build(mixed, mixed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.Hint("a", []), r"`student_layer` must be a non-empty str, or several of"),
        (
            lambda: losses.Hint(["a", ""], ["b", "c"]),
            r"`teacher_layer` must be a non-empty str, or",
        ),
        (lambda: losses.Hint(["a", "b"], "c"), r"must name as many layers each\. Received: Hint"),
        (lambda: losses.Hint("a"), r'must both name layers, or both be "auto"\. Received: Hint'),
        (lambda: losses.Hint("auto", "a"), r'must both name layers, or both be "auto"\. Received'),
        (lambda: losses.Hint(["auto"], ["auto"]), r'`teacher_layer` must not hold "auto" among'),
        (lambda: losses.FSP("a", "b"), r"must name two layers or more each\. Received: FSP"),
        (
            lambda: losses.NeuronSelectivity("a", "b", kernel="gaussian"),  # type: ignore[arg-type]
            r"`kernel` must be one of 'polynomial', 'linear'\. Received: 'gaussian'",
        ),
        (
            lambda: losses.CorrelationCongruence("a", "b", gamma=0),
            r"`gamma` must be > 0 and finite\. Received: 0",
        ),
        (
            lambda: losses.CorrelationCongruence("a", "b", order=0),
            r"`order` must be .*>= 1.*Received: 0",
        ),
        (
            lambda: losses.Contrastive("a", "b", temperature=0),
            r"`temperature` must be > 0 and finite\. Received: 0",
        ),
    ],
)
def test_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_auto_must_be_matched_before_it_is_built() -> None:
    with pytest.raises(
        ModelError, match=r'must be matched before "auto" is built\. Received: Hint'
    ):
        losses.Hint("auto").build(shapes(), shapes())

"""Every loss against its formula in float64, written a second time in `formulas`."""

from __future__ import annotations

import dataclasses
import doctest
import json
from typing import Any

import numpy as np
import pytest
from formulas import (
    PAIRS,
    Array,
    Pair,
    binary_targets,
    finite_differences,
    gradient,
    hint,
    inter_class,
    intra_class,
    jensen_shannon,
    probability_mse,
    random_pair,
    soft_cross_entropy,
    soft_targets,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quick import only

from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import (
    base,
    divergences,
    exits,
    features,
    functional,
    labelled,
    layers,
    outputs,
    relations,
    representations,
    sequences,
    similarities,
    weights,
)

# No deadline: TensorFlow's first call of an operation is slow.
quick = settings(max_examples=40, deadline=None, derandomize=True)


each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


# --- inputs ---


def grids(shape: tuple[int, ...], largest: int = 20) -> st.SearchStrategy[Array]:
    """Multiples of 1/8: exact in float16 and float32, also after adding an integer."""
    steps = st.integers(-8 * largest, 8 * largest)
    return hnp.arrays(np.int64, shape, elements=steps).map(lambda a: (a / 8).astype(np.float32))


@st.composite
def logit_pairs(draw: st.DrawFn, fewest_classes: int = 1) -> tuple[Array, Array]:
    shape = (draw(st.integers(1, 5)), draw(st.integers(fewest_classes, 12)))
    return draw(grids(shape)), draw(grids(shape))


# --- values ---


@settings(quick, max_examples=200)
@given(
    name=st.sampled_from(sorted(PAIRS)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    classes=st.integers(1, 12),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 3.0, 20.0]),
)
def test_equal_to_the_formula(
    name: str, shape: tuple[int, ...], classes: int, seed: int, scale: float
) -> None:
    if name in ("inter_class", "intra_class"):
        scale = min(scale, 3.0)  # how probabilities vary that are all but 1, float32 cannot say
    teacher, student = random_pair(*shape, classes, scale=scale, seed=seed)
    ours = PAIRS[name].ours(teacher, student).numpy()
    assert ours.shape == (shape[:1] if name in ("hint", "intra_class") else shape)
    np.testing.assert_allclose(ours, PAIRS[name].formula(teacher, student), rtol=1e-4, atol=1e-5)


SOFTENED: dict[str, Any] = {
    "soft_targets": soft_targets,
    "soft_cross_entropy": soft_cross_entropy,
    "reverse_kl": lambda t, s, temperature: soft_targets(s, t, temperature),
    "jensen_shannon": jensen_shannon,
    "binary_targets": binary_targets,
    "probability_mse": probability_mse,
    "inter_class": inter_class,
    "intra_class": intra_class,
}


@settings(quick, max_examples=80)
@given(name=st.sampled_from(sorted(SOFTENED)), pair=logit_pairs(), temperature=st.floats(0.5, 20))
def test_equal_to_the_formula_at_any_temperature(
    name: str, pair: tuple[Array, Array], temperature: float
) -> None:
    ours = getattr(functional, name)(*pair, temperature)
    expected = SOFTENED[name](*pair, temperature)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6 * temperature**2 + 1e-5)


TEACHER, STUDENT = [[5.0, 2.0, -0.5]], [[1.0, 2.0, 0.0]]


def test_soft_targets_are_no_divergence_of_raw_logits() -> None:
    """The mistake: logits / T taken for probabilities, and no factor T²."""
    p, q = (np.clip(np.divide(logits, 3.0), 1e-7, 1) for logits in (TEACHER, STUDENT))
    naive = (p * np.log(p / q)).sum()
    assert naive == pytest.approx(1.0986, abs=5e-5)

    loss = losses.SoftTargets(temperature=3.0)
    ours = loss.call(losses.Outputs(TEACHER, {}), losses.Outputs(STUDENT, {}))
    assert ours.numpy() == pytest.approx([2.1013], abs=5e-5)
    np.testing.assert_allclose(ours, soft_targets(TEACHER, STUDENT, 3.0), rtol=1e-6)


@pytest.mark.skipif(keras.__version__ != "3.15.1", reason="measured with Keras 3.15.1")
def test_keras_default_makes_that_mistake() -> None:
    theirs = keras.distillation.LogitsDistillation()  # its temperature is 3
    value = theirs.compute_loss(tf.constant(TEACHER), tf.constant(STUDENT))
    assert float(value) == pytest.approx(1.0986, abs=5e-5)


def test_soft_targets_keep_their_gradient_at_high_temperature() -> None:
    """Hinton 2015, section 2.1: it tends to the centred logits' difference / classes, for any T."""
    teacher, student = random_pair(4, 5)
    limit = student - student.mean(-1, keepdims=True) - teacher + teacher.mean(-1, keepdims=True)
    ours = gradient(lambda t, s: functional.soft_targets(t, s, 1000.0), teacher, student)
    np.testing.assert_allclose(ours, limit / 5, atol=0.02)


def test_soft_targets_are_asymmetric_as_the_paper_has_it() -> None:
    """The teacher's probabilities weigh: a class it excludes costs the student little."""
    teacher, student = [[10.0, 0.0, 0.0]], [[10.0, 10.0, 0.0]]
    assert functional.soft_targets(teacher, student, 1.0).numpy() == pytest.approx(
        [np.log(2)], abs=1e-3
    )


def test_hint_does_not_depend_on_the_layers_size() -> None:
    teacher, student = random_pair(2, 3, 3, 4)
    small = functional.hint(teacher, student)
    large = functional.hint(np.tile(teacher, (1, 2, 2, 5)), np.tile(student, (1, 2, 2, 5)))
    np.testing.assert_allclose(small, large, rtol=1e-6)


def test_a_single_logit_is_binary() -> None:
    """As two classes with the logits 0 and z, whose probabilities are sigmoid(-z), sigmoid(z)."""
    teacher, student = random_pair(6, 1)
    p, q = (1 / (1 + np.exp(-x[:, 0].astype(np.float64) / 2)) for x in (teacher, student))
    divergence = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(
        functional.soft_targets(teacher, student, 2.0), divergence, rtol=1e-4
    )
    assert (divergence > 1e-3).all()  # one class instead of two would give 0

    sign = np.where(teacher > 0, 1.0, -1.0)[:, 0]
    np.testing.assert_allclose(
        functional.hard_targets(teacher, student),
        np.log1p(np.exp(-sign * student[:, 0])),
        rtol=1e-5,
    )


# --- gradients ---


GRADIENTS = [
    (name, shape, scale)
    for name in PAIRS
    for shape in [(3, 1), (2, 4), (2, 3, 4)]
    for scale in [0.1, 3.0, 10.0]
    # Two values always correlate fully, and a teacher so unsure teaches nothing.
    if not (name in ("standardized", "inter_class") and shape[-1] == 1)
    and not (name == "intra_class" and shape == (2, 4))
    and not (name == "sure_hard_targets" and scale == 0.1)
]


@pytest.mark.parametrize(("name", "shape", "scale"), GRADIENTS)
def test_gradient_equals_finite_differences(
    name: str, shape: tuple[int, ...], scale: float
) -> None:
    teacher, student = random_pair(*shape, scale=scale)
    expected = finite_differences(PAIRS[name].formula, teacher, student)
    assert np.abs(expected).max() > 1e-3
    ours = gradient(PAIRS[name].ours, teacher, student)
    np.testing.assert_allclose(
        ours, expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max())
    )


@each_pair
def test_no_gradient_flows_to_the_teacher(pair: Pair) -> None:
    variables: list[Any] = [tf.Variable(logits) for logits in random_pair(2, 4)]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(pair.ours(*variables))
    to_teacher, to_student = tape.gradient(total, variables)
    assert to_teacher is None
    assert to_student is not None


# --- minimum, invariances ---


ZERO_AT_THE_TEACHER = {
    *("soft_targets", "reverse_kl", "decoupled_kd", "binary_targets", "logits_mse"),
    *("centered_mse", "probability_mse", "hint"),
}


@pytest.mark.parametrize(
    "name",
    [name for name in PAIRS if name in ZERO_AT_THE_TEACHER],
)
@pytest.mark.parametrize("classes", [1, 7])
def test_zero_and_flat_where_the_student_is_the_teacher(name: str, classes: int) -> None:
    teacher, student = random_pair(5, classes)
    ours = PAIRS[name].ours
    assert (ours(teacher, teacher).numpy() == 0).all()
    assert (ours(teacher, student).numpy() > 0).all()
    np.testing.assert_allclose(gradient(ours, teacher, teacher), 0, atol=1e-6)


def test_hard_targets_tend_to_zero_as_the_student_grows_sure() -> None:
    teacher, _ = random_pair(5, 7)
    values = [functional.hard_targets(teacher, teacher * factor).numpy() for factor in (1, 10, 1e4)]
    assert (values[0] > values[1]).all()
    assert (values[1] >= values[2]).all()
    assert (values[2] == 0).all()


SHIFT_INVARIANT = set(PAIRS) - {"binary_targets", "logits_mse", "bounded_regression", "hint"}


@quick
@given(
    pair=logit_pairs(fewest_classes=2),
    shifts=st.tuples(*[st.integers(-500, 500)] * 2),
    name=st.sampled_from(sorted(SHIFT_INVARIANT)),
)
def test_invariant_to_a_shift_of_the_logits(
    pair: tuple[Array, Array], shifts: tuple[int, int], name: str
) -> None:
    teacher, student = pair
    ours = PAIRS[name].ours
    shifted = ours(teacher + np.float32(shifts[0]), student + np.float32(shifts[1]))
    # Of 500 / T, float32 keeps 3e-5.
    np.testing.assert_allclose(shifted, ours(teacher, student), rtol=1e-4, atol=1e-3)


# --- extreme inputs, small types, compilation ---


@each_pair
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("classes", [1, 3])
def test_finite_and_right_at_logits_of_ten_thousand(pair: Pair, dtype: type, classes: int) -> None:
    all_three: list[list[list[float]]] = [
        [[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, 0.0, 1e4]],
        [[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, 0.0, 1e4]],
    ]
    teacher, student = np.array(all_three, dtype)[..., :classes]
    np.testing.assert_allclose(
        pair.ours(teacher, student), pair.formula(teacher, student), rtol=1e-5, atol=1e-6
    )
    # To float32 logits: in float16 the squared error's gradient is at most 65504.
    assert np.isfinite(gradient(pair.ours, teacher, student.astype(np.float32))).all()


@each_pair
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_types_are_computed_in_float32(pair: Pair, dtype: str) -> None:
    teacher, student = (tf.cast(logits, dtype) for logits in random_pair(4, 10))
    ours = pair.ours(teacher, student)
    assert ours.dtype == tf.float32
    exact = pair.formula(*(tf.cast(logits, tf.float64).numpy() for logits in (teacher, student)))
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


@each_pair
def test_teacher_and_student_may_differ_in_type(pair: Pair) -> None:
    teacher, student = random_pair(4, 10)
    teacher = teacher.astype(np.float16)
    ours = pair.ours(teacher, student)
    assert ours.dtype == tf.float32
    np.testing.assert_allclose(ours, pair.formula(teacher, student), rtol=1e-5)


@each_pair
@pytest.mark.parametrize(
    ("jit_compile", "classes"), only((False, 1), of=[(False, 1), (True, 5)], several=True)
)
def test_value_and_gradient_in_a_traced_function(
    pair: Pair, jit_compile: bool, classes: int
) -> None:
    teacher, student = random_pair(3, classes)
    any_batch = tf.TensorSpec([None, classes], tf.float32)

    @tf.function(jit_compile=jit_compile, input_signature=[any_batch, any_batch])
    def traced(teacher: Any, student: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = pair.ours(teacher, student)
        return value, tape.gradient(value, student)

    value, slope = traced(teacher, student)
    np.testing.assert_allclose(value, pair.formula(teacher, student), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, gradient(pair.ours, teacher, student), rtol=1e-4, atol=1e-6)


@each_pair
def test_an_empty_batch_has_no_losses(pair: Pair) -> None:
    assert pair.ours(np.zeros([0, 4], np.float32), np.zeros([0, 4], np.float32)).shape == [0]


@pytest.mark.parametrize(
    "pair", [pair for name, pair in PAIRS.items() if name != "virtual_teacher"]
)
def test_shapes_are_never_broadcast(pair: Pair) -> None:
    teacher, student = np.zeros([2, 5], np.float32), np.zeros([2, 1], np.float32)
    with pytest.raises(
        ModelError,
        match=r"The student's output must have the shape of the teacher's\. "
        r"Received: teacher \(2, 5\), student \(2, 1\)\. Give both the same classes",
    ):
        pair.ours(teacher, student)


# --- the classes ---


LOSSES = [
    losses.SoftTargets(temperature=3.0, weight=0.9),
    losses.HardTargets(weight=0.5, name="pseudo_labels"),
    losses.LogitsMSE(weight=0.0),
    losses.SoftTargets(divergence="jensen_shannon", standardize=True),
    losses.HardTargets(threshold=0.9, label_smoothing=0.1),
    losses.CenteredMSE(weight=2.0),
    losses.ProbabilityMSE(temperature=2.0),
    losses.DecoupledKD(temperature=2.0, target_weight=0.5, non_target_weight=0.0),
    losses.DIST(inter_weight=2.0, intra_weight=0.0, temperature=4.0),
    losses.BinaryTargets(temperature=2.0),
    losses.RegressionTargets(bounded=True, margin=0.5),
    losses.VirtualTeacher(probability=0.9, temperature=5.0),
    losses.Hint("deep", "shallow", weight=2.0),
    losses.Hint("auto", name="everywhere"),
    losses.AttentionTransfer(["deep", "deeper"], ["shallow", "flat"]),
    losses.NeuronSelectivity("deep", "shallow", kernel="linear"),
    losses.FSP(["deep", "deeper"], ("shallow", "flat"), 3.0),
    losses.SimilarityPreserving("auto", "auto"),
    losses.RelationalDistance("deep", "shallow"),
    losses.RelationalAngle("deep", "shallow"),
    losses.ProbabilisticTransfer("deep", "shallow"),
    losses.CorrelationCongruence("deep", "shallow", gamma=1, order=3),
    losses.Contrastive("deep", "shallow", temperature=1),
    losses.HiddenStates("deep", "shallow"),
    losses.CosineHiddenStates("deep", "shallow"),
    losses.EmbeddingStates("deep", "shallow"),
    losses.AttentionScores(["deep", "deeper"], ["shallow", "flat"]),
    losses.WeightMSE("deep", "shallow", weight=0.01),
    losses.EarlyExits(["shallow", "flat"], temperature=2, label_weight=0),
]
OUTPUT_LOSSES = [
    losses.SoftTargets(),
    losses.HardTargets(),
    losses.LogitsMSE(),
    losses.CenteredMSE(),
    losses.ProbabilityMSE(),
    losses.DecoupledKD(),
    losses.DIST(inter_weight=0),
    losses.BinaryTargets(),
    losses.RegressionTargets(),
    losses.VirtualTeacher(),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def outputs_of(logits: Array, layers: dict[str, Array] | None = None) -> losses.Outputs:
    return losses.Outputs(tf.convert_to_tensor(logits), layers or {})


def test_no_loss_is_left_out() -> None:
    assert {type(loss).__name__ for loss in LOSSES} == set(losses._LOSSES)


@each_loss
def test_config_round_trips_through_json(loss: losses.DistillationLoss) -> None:
    restored = losses.deserialize(json.loads(json.dumps(losses.serialize(loss))))
    assert type(restored) is type(loss)
    assert restored == loss
    assert hash(restored) == hash(loss)
    assert type(loss).from_config(loss.get_config()) == loss
    assert eval(repr(loss), vars(losses)) == loss


@each_loss
def test_immutable(loss: losses.DistillationLoss) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.weight = 3.0


def test_the_weight_is_left_to_the_distiller() -> None:
    teacher, student = random_pair(3, 4)
    said = outputs_of(teacher, {"a": teacher}), outputs_of(student, {"b": student})
    for weight in (0.0, 7.0):
        for loss, pair in [
            (losses.SoftTargets(3.0, weight), PAIRS["soft_targets"]),
            (losses.HardTargets(weight), PAIRS["hard_targets"]),
            (losses.LogitsMSE(weight), PAIRS["logits_mse"]),
            (losses.Hint("a", "b", weight), PAIRS["hint"]),
        ]:
            np.testing.assert_array_equal(loss.call(*said), pair.ours(teacher, student))


def test_losses_differ_by_class_and_by_settings() -> None:
    assert losses.HardTargets(name="x") != losses.LogitsMSE(name="x")
    assert losses.SoftTargets(temperature=2.0) != losses.SoftTargets(temperature=3.0)


def test_equal_settings_are_one_config() -> None:
    """An int, a NumPy scalar and a float name one setting; a fingerprint must not tell them."""
    numbers: list[tuple[Any, Any]] = [(4, 1), (4.0, 1.0), (np.float32(4), np.int64(1))]
    ours = [losses.SoftTargets(temperature, weight) for temperature, weight in numbers]
    assert len({json.dumps(losses.serialize(loss)) for loss in ours}) == 1
    assert len(set(ours)) == 1


def test_default_names_are_the_log_names() -> None:
    assert losses.SoftTargets() == losses.SoftTargets(
        temperature=4.0, weight=1.0, name="soft_targets"
    )
    assert losses.HardTargets().name == "hard_targets"
    assert losses.LogitsMSE().name == "logits_mse"
    assert losses.Hint("a", "b").name == "hint"
    assert losses.SoftTargets(name="warm").name == "warm"


def test_only_feature_losses_read_layers() -> None:
    for loss in LOSSES:
        if not isinstance(loss, (layers.LayerLoss, losses.EarlyExits)):
            assert (loss.teacher_layers, loss.student_layers) == ((), ())
    assert losses.Hint("deep", "shallow").pairs == (("deep", "shallow"),)
    several = losses.Hint(["deep", "deeper"], ["shallow", "flat"])
    assert several.teacher_layers == ("deep", "deeper")
    assert several.student_layers == ("shallow", "flat")
    assert losses.Hint("auto").pairs == ()
    own = losses.EarlyExits(["shallow", "flat"])
    assert (own.teacher_layers, own.student_layers) == ((), ("shallow", "flat"))


NO_NUMBERS = [float("nan"), float("inf"), -float("inf"), "1", None, True, [1.0], 1j]


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, *NO_NUMBERS])
def test_temperature_is_refused(temperature: Any) -> None:
    with pytest.raises(
        SettingError, match=r"^`temperature` must be > 0 and finite\. Received: .*\. 1 leaves"
    ):
        losses.SoftTargets(temperature=temperature)


@pytest.mark.parametrize("weight", [-0.1, *NO_NUMBERS])
@pytest.mark.parametrize("make", sorted({type(loss) for loss in OUTPUT_LOSSES}, key=repr))
def test_weight_is_refused(make: Any, weight: Any) -> None:
    with pytest.raises(
        SettingError, match=r"^`weight` must be >= 0 and finite\. Received: .*\. 0 logs"
    ):
        make(weight=weight)
    with pytest.raises(SettingError, match=r"^`weight` must be"):
        losses.Hint("a", "b", weight=weight)


def test_errors_show_what_was_received() -> None:
    with pytest.raises(SettingError, match=r"`temperature` must be > 0 .* Received: -1\.0\."):
        losses.SoftTargets(temperature=-1.0)


@pytest.mark.parametrize("layer", [3, None, "", tf_keras.layers.ReLU()])
def test_layers_are_given_by_name(layer: Any) -> None:
    with pytest.raises(
        SettingError, match=r"^`teacher_layer` must be a non-empty str.*layer\.name"
    ):
        losses.Hint(layer, "b")
    with pytest.raises(
        SettingError, match=r"^`student_layer` must be a non-empty str.*layer\.name"
    ):
        losses.Hint("a", layer)


@pytest.mark.parametrize("name", [3, None, ""])
def test_log_names_are_text(name: Any) -> None:
    with pytest.raises(SettingError, match=r"^`name` must be a non-empty str.*in the logs"):
        losses.LogitsMSE(name=name)


@pytest.mark.parametrize(
    ("serialized", "message"),
    [
        (
            {"class_name": "SoftTarget", "config": {}},
            r"`class_name` must be a loss of `tfdistill.losses`. Received: 'SoftTarget'\. "
            r"Did you mean 'SoftTargets'",
        ),
        (
            {"class_name": "Xylophone", "config": {}},
            r"Received: 'Xylophone'\. Known: SoftTargets, HardTargets, .*, Hint, .*\.",
        ),
        (
            {"class_name": "SoftTargets", "config": {"temprature": 2.0}},
            r"`config` must hold settings of SoftTargets only\. Received: 'temprature'\. "
            r"Did you mean 'temperature'\?",
        ),
        (
            {"class_name": "Hint", "config": {"student_layer": "a"}},
            r"`config` must hold the settings \['teacher_layer'\] of Hint\. "
            r"Received: \['student_layer'\]\.",
        ),
        ({"class_name": "SoftTargets", "config": {"temperature": -2}}, "`temperature` must be > 0"),
        ({"class_name": "SoftTargets"}, "`serialized` must be a dict with the keys 'class_name'"),
        ("SoftTargets", "`serialized` must be a dict .*Pass what `serialize` returned"),
    ],
)
def test_what_cannot_be_deserialized_is_refused(serialized: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        losses.deserialize(serialized)


# --- models that do not fit ---


def shapes(logits: tuple[int | None, ...] = (10,), **layers: tuple[int | None, ...]) -> Any:
    return losses.Shapes(logits, layers)


@pytest.mark.parametrize("loss", OUTPUT_LOSSES, ids=repr)
def test_classes_must_agree(loss: losses.DistillationLoss) -> None:
    for classes in (1, 10):
        assert loss.build(shapes((classes,)), shapes((classes,))) is None
    for teacher, student in [(10, 7), (2, 1), (1, 2)]:
        with pytest.raises(
            ModelError,
            match=r"must have the same number of classes\. "
            rf"Received: teacher logits \[batch, {teacher}\], "
            rf"student logits \[batch, {student}\]\. "
            rf"Give the student's last layer {teacher} units\.",
        ):
            loss.build(shapes((teacher,)), shapes((student,)))


@pytest.mark.parametrize("loss", OUTPUT_LOSSES, ids=repr)
@pytest.mark.parametrize("wrong", [(None,), (), (5, None)])
def test_logits_are_batch_by_classes(loss: losses.DistillationLoss, wrong: Any) -> None:
    with pytest.raises(
        ModelError, match=r"must be \[batch, \.\.\., classes\].* Received: teacher logits"
    ):
        loss.build(shapes(wrong), shapes(wrong))


def test_hint_needs_no_projection_between_equal_widths() -> None:
    loss = losses.Hint("t", "s")
    assert loss.build(shapes(t=(4, 4, 8)), shapes(s=(4, 4, 8))) is None


@pytest.mark.parametrize("axes", [(), (6,), (4, 4), (None, None), (2, 2, 2)])
def test_hint_projects_the_last_axis_in_any_rank(axes: tuple[int | None, ...]) -> None:
    loss = losses.Hint("t", "s")
    projection = loss.build(shapes(t=(*axes, 8)), shapes(s=(*axes, 3)))
    assert [tuple(weight.shape) for weight in projection.trainable_weights] == [(3, 8)]

    sizes = [3 if size is None else size for size in axes]
    rng = np.random.default_rng(0)
    wide, narrow = (rng.normal(size=(2, *sizes, width)).astype(np.float32) for width in (8, 3))
    ours = loss.call(
        outputs_of([[0.0]], {"t": wide}), outputs_of([[0.0]], {"s": narrow}), projection
    )
    np.testing.assert_allclose(
        ours, hint(wide, narrow.astype(np.float64) @ projection.get_weights()[0]), rtol=1e-5
    )


def test_hint_projection_learns_a_linear_relation() -> None:
    rng = np.random.default_rng(0)
    narrow = rng.normal(size=(32, 3)).astype(np.float32)
    wide = narrow @ rng.normal(size=(3, 5)).astype(np.float32)
    loss = losses.Hint("t", "s")
    tf_keras.utils.set_random_seed(0)
    projection = loss.build(shapes(t=(5,)), shapes(s=(3,)))
    teacher, student = outputs_of([[0.0]], {"t": wide}), outputs_of([[0.0]], {"s": narrow})
    optimizer = tf_keras.optimizers.SGD(2.0)

    @tf.function(jit_compile=True)
    def step() -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss.call(teacher, student, projection))
        slopes = tape.gradient(value, projection.trainable_weights)
        optimizer.apply_gradients(zip(slopes, projection.trainable_weights, strict=True))
        return value

    values = [float(step()) for _ in range(100)]
    assert values[0] > 0.1
    assert values[-1] < 1e-6


def test_hint_keeps_nothing_so_that_two_distillers_may_share_it() -> None:
    loss = losses.Hint("t", "s")
    first, second = (loss.build(shapes(t=(8,)), shapes(s=(3,))) for _ in range(2))
    assert first is not second
    assert first.weights[0] is not second.weights[0]
    assert vars(loss) == vars(losses.Hint("t", "s"))


def test_hint_is_float32_under_mixed_precision() -> None:
    wide, narrow = (np.full([1, width], 0.1, np.float16) for width in (8, 3))
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        loss = losses.Hint("t", "s")
        projection = loss.build(shapes(t=(8,)), shapes(s=(3,)))
        projected = projection.project(0, tf.constant(narrow))
        ours = loss.call(
            outputs_of([[0.0]], {"t": wide}),
            outputs_of([[0.0]], {"s": tf.constant(narrow)}),
            projection,
        )
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    assert projected.dtype == tf.float32
    exact = hint(wide, narrow.astype(np.float64) @ projection.get_weights()[0])
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((8, 64), (7, 64)), ((7, 7, 64), (49, 64)), ((7, 64), (None, 7, 64)), ((64,), ())],
)
def test_hint_axes_and_steps_must_agree(teacher: Any, student: Any) -> None:
    with pytest.raises(
        ModelError,
        match=r"must have the same axes, and as many steps each\. "
        r"Received: teacher layer 't' \[batch, .*\], student layer 's' \[batch.*\]\. "
        r"Name two layers of the same kind",
    ):
        losses.Hint("t", "s").build(shapes(t=teacher), shapes(s=student))


def test_hint_takes_steps_that_only_the_data_knows() -> None:
    loss = losses.Hint("t", "s")
    assert loss.build(shapes(t=(None, 8)), shapes(s=(7, 8))) is None
    one, seven = np.zeros([2, 1, 8], np.float32), np.zeros([2, 7, 8], np.float32)
    with pytest.raises(ModelError, match="must have the shape of the teacher's"):
        loss.call(outputs_of([[0.0]], {"t": one}), outputs_of([[0.0]], {"s": seven}))


@pytest.mark.parametrize(
    ("teacher", "student"), [((8, None), (8, 4)), ((8, 4), (8, None)), ((), ())]
)
def test_hint_widths_must_be_known(teacher: Any, student: Any) -> None:
    with pytest.raises(
        ModelError, match=r"must have a last axis of known size\. Received: teacher"
    ):
        losses.Hint("t", "s").build(shapes(t=teacher), shapes(s=student))


@pytest.mark.parametrize(
    "module",
    [
        *(losses, base, divergences, exits, functional, labelled, outputs),
        *(features, relations, representations, sequences, similarities, weights),
    ],
)
def test_docstring_examples_are_true(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0

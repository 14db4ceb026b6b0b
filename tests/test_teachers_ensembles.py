"""Several teachers as one: the mean against its closed form in float64, and layers by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import examples, hidden_of, logits_of, perceptron
from quick import only

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.teachers import (
    Ensemble,
    Function,
    Model,
    as_teacher,
    identity_of_teacher,
    require_own_weights,
)

Array = Any


def _model(seed: int, name: str, library: Any = keras, **settings: Any) -> Any:
    return perceptron(library, seed=seed, name=name, **settings)


def _saying(*logits: Any) -> list[Function]:
    """One function for each of the logits, which it always returns."""

    def say(values: Array) -> Any:
        return lambda inputs: np.resize(values, [len(inputs), values.shape[1]])

    return [Function(say(np.array(values, np.float64))) for values in logits]


def _answer(teacher: Any, classes: int, count: int) -> Array:
    bound = as_teacher(teacher, perceptron(tf_keras, classes=classes))
    said = tf.function(bound)(tf.zeros([count, 4])).logits
    assert said.dtype == tf.float32
    return np.asarray(said, np.float64)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _sigmoid(logits: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -logits))


GENERATOR = np.random.default_rng(0)
LOGITS = {
    "moderate": [GENERATOR.normal(size=[6, 3], scale=scale) for scale in (1, 3, 5)],
    "sure": [np.outer([1, -1, 1, -1, 1, -1], [size, 0.0, -size]) for size in (18, 20, 22)],
    "extreme": [GENERATOR.normal(size=[6, 3], scale=1e4) for _ in range(3)],
    "far apart": [GENERATOR.normal(size=[6, 3]) + offset for offset in (0, 1e4, -1e4)],
}


@pytest.mark.parametrize("weights", [None, [3, 1, 4]], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", LOGITS)
def test_mean_of_logits(kind: str, weights: Any) -> None:
    given = [values.astype(np.float32).astype(np.float64) for values in LOGITS[kind]]
    said = _answer(Ensemble(_saying(*given), weights), 3, 6)
    expected = np.average(given, axis=0, weights=weights)
    np.testing.assert_allclose(said, expected, rtol=1e-6, atol=1e-7 * np.abs(given).max())


@pytest.mark.parametrize("weights", [None, [3, 1, 4]], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", LOGITS)
def test_softmax_of_the_answer_is_the_mean_of_softmaxes(kind: str, weights: Any) -> None:
    given = [values.astype(np.float32).astype(np.float64) for values in LOGITS[kind]]
    said = _answer(Ensemble(_saying(*given), weights, "probabilities"), 3, 6)
    assert np.isfinite(said).all()
    expected = np.average([_softmax(values) for values in given], axis=0, weights=weights)
    np.testing.assert_allclose(_softmax(said), expected, rtol=2e-5 * _spread(given), atol=1e-30)


@pytest.mark.parametrize("kind", LOGITS)
def test_sigmoid_of_one_unit_is_the_mean_of_sigmoids(kind: str) -> None:
    given = [values[:, :1].astype(np.float32).astype(np.float64) for values in LOGITS[kind]]
    said = _answer(Ensemble(_saying(*given), [3, 1, 4], "probabilities"), 1, 6)
    assert np.isfinite(said).all()
    for sign in (1, -1):  # of both classes: near 1 nothing could be seen
        expected = np.average([_sigmoid(sign * v) for v in given], axis=0, weights=[3, 1, 4])
        np.testing.assert_allclose(
            _sigmoid(sign * said), expected, rtol=2e-5 * _spread(given), atol=1e-30
        )


def _entropies(given: Any) -> Array:
    """Of each member and a millionth, `[members, batch]`; one unit as the two logits `[0, z]`."""
    found = []
    for values in given:
        if values.shape[1] == 1:
            values = np.concatenate([np.zeros_like(values), values], axis=1)
        shifted = values - values.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        found.append(1e-6 - (np.exp(logs) * logs).sum(axis=1))
    return np.array(found)


def _by_confidence(given: Any, weights: Any) -> Array:
    """Weights `[members, batch, 1]` of the members."""
    entropies = _entropies(given)
    shares = np.reshape(weights or [1.0] * len(given), [-1, 1])
    shares = shares * (1 - entropies / entropies.sum(axis=0))
    return (shares / shares.sum(axis=0))[..., np.newaxis]


@pytest.mark.parametrize("classes", [3, 1])
@pytest.mark.parametrize("weights", [None, [3, 1, 4]], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", only("moderate", "extreme", of=LOGITS))
def test_surer_members_count_more(kind: str, weights: Any, classes: int) -> None:
    given = [values[:, :classes].astype("f").astype(float) for values in LOGITS[kind]]
    shares = _by_confidence(given, weights)
    said = _answer(Ensemble(_saying(*given), weights, by_confidence=True), classes, 6)
    # In float32 an entropy near 0 is that of the other classes alone.
    tolerance = 1e-6 * max(10.0, np.abs(given).max())
    np.testing.assert_allclose(said, (shares * given).sum(axis=0), rtol=1e-3, atol=tolerance)

    probabilities = _softmax if classes > 1 else _sigmoid
    mixed = Ensemble(_saying(*given), weights, "probabilities", by_confidence=True)
    expected = (shares * [probabilities(values) for values in given]).sum(axis=0)
    said = _answer(mixed, classes, 6)
    assert np.isfinite(said).all()
    np.testing.assert_allclose(probabilities(said), expected, rtol=1e-3, atol=1e-6)


def test_of_two_members_each_counts_in_inverse_proportion_to_its_entropy() -> None:
    given = [values.astype("f").astype(float) for values in LOGITS["moderate"][:2]]
    given[0][:3] *= 5
    first, second = _entropies(given)
    assert (first / second).max() > 2 > 0.75 > (first / second).min()
    said = _answer(Ensemble(_saying(*given), by_confidence=True), 3, 6)
    expected = (given[0] / first[:, None] + given[1] / second[:, None]) / (1 / first + 1 / second)[
        :, None
    ]
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)


def _spread(given: Any) -> float:
    """How much larger float32's error is in logits of this size than in those near 1."""
    return max(1.0, float(np.abs(given).max()) / 100)


def test_all_agree_where_all_say_the_same() -> None:
    values = LOGITS["extreme"][0].astype(np.float32)
    for combine in ("logits", "probabilities"):
        said = _answer(Ensemble(_saying(values, values), combine=combine), 3, 6)
        np.testing.assert_allclose(_softmax(said), _softmax(values.astype(np.float64)), rtol=1e-2)


def test_members_of_every_kind_teach_together() -> None:
    inputs = examples()[0]
    keras3, tf_model = _model(1, "one"), _model(2, "two", tf_keras)
    kernel = tf.ones([4, 3])
    members = [keras3, Model(tf_model), lambda x: x @ kernel, Function(lambda x: 2 * x[:, :3])]
    teacher = as_teacher(Ensemble(members, [1, 2, 3, 4]), perceptron(tf_keras))
    said = [
        logits_of(keras3.get_weights(), inputs),
        logits_of(tf_model.get_weights(), inputs),
        inputs @ np.ones([4, 3]),
        2 * inputs[:, :3],
    ]
    expected = np.average(said, axis=0, weights=[1, 2, 3, 4])
    np.testing.assert_allclose(teacher(inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert len(teacher.outside) == 1


def test_a_member_that_ends_in_softmax_gives_its_logits() -> None:
    members = [_model(1, "soft", activation="softmax"), _model(1, "plain")]
    teacher = as_teacher(Ensemble(members), perceptron(tf_keras))
    inputs = examples()[0]
    expected = logits_of(members[0].get_weights(), inputs)
    np.testing.assert_allclose(teacher(inputs).logits, expected, rtol=1e-5, atol=1e-5)
    assert teacher.note == "soft: The teacher ends in softmax; distillation reads the logits " + (
        "before it."
    )


# --- names and layers ---


def test_names_are_made_unique() -> None:
    def teach(inputs: Any) -> Any:
        return inputs[:, :3]

    members = [_model(1, "net"), _model(2, "net"), teach, Function(teach), _model(3, "net_1")]
    assert Ensemble(members).names == ("net", "net_1", "teach", "teach_1", "net_1_1")
    named = Ensemble([Model(_model(1, "net"), name="first"), Function(teach, name="second")])
    assert named.names == ("first", "second")


def test_feature_losses_read_the_layers_of_members() -> None:
    inputs, labels, _ = examples()
    wide, narrow = _model(1, "wide", units=7), _model(2, "narrow", units=6)
    for layer in narrow.layers:
        if layer.name == "rectified":
            layer.name = "only_here"
    inner = Ensemble([wide, _model(3, "third")], name="inner")
    ensemble = Ensemble([inner, narrow])
    layers = ["inner/wide/rectified", "only_here", "narrow/only_here", "third/rectified"]
    teacher = as_teacher(ensemble, perceptron(tf_keras), layers)
    features = teacher(inputs).features
    assert set(features) == set(teacher.shapes.features) == set(layers)
    assert teacher.shapes.features["inner/wide/rectified"] == (7,)
    np.testing.assert_allclose(
        features["inner/wide/rectified"], hidden_of(wide.get_weights(), inputs), rtol=1e-5
    )
    for name in ("only_here", "narrow/only_here"):
        np.testing.assert_allclose(
            features[name], hidden_of(narrow.get_weights(), inputs), rtol=1e-5
        )
    distiller = td.Distiller(
        perceptron(keras), ensemble, losses=[td.losses.Hint("inner/wide/rectified", "rectified")]
    )
    distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    losses = distiller.fit(inputs, labels, epochs=3, verbose=0).history["hint"]
    assert losses[2] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"weights": [3, 1]}, {"combine": "probabilities", "by_confidence": True}],
    ids=["logits", "confidence"],
)
def test_two_replicas_are_one(settings: dict[str, Any], two_replicas: Any) -> None:
    """Batches of 6, 6 and 1: split into 3 and 3, then 1 and none."""
    data = tf.data.Dataset.from_tensor_slices(examples(13)).batch(6)
    taught = [
        *(td.losses.SoftTargets(2.0), td.losses.DIST(weight=0.1)),
        td.losses.Hint("two/rectified", "rectified", weight=0.1),
    ]
    found = []
    for scope in (tf.distribute.get_strategy().scope, two_replicas.scope):
        tf_keras.utils.set_random_seed(0)  # of the projection
        with scope():
            student = perceptron(tf_keras)
            members = [_model(1, "one"), _model(2, "two", tf_keras, units=7)]
            distiller = td.Distiller(student, Ensemble(members, **settings), taught, 0.3)
            distiller.compile(tf_keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy")
        history = distiller.fit(data, epochs=2, verbose=0).history
        found.append((history, [np.array(each) for each in distiller.get_weights()]))
    (one, weights_of_one), (two, weights_of_two) = found
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    for ours, expected in zip(weights_of_two, weights_of_one, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    start = perceptron(tf_keras).get_weights()[0]
    assert np.abs(weights_of_one[0] - start).max() > 1e-3


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "rectified",
            r"`rectified` must be a layer of one member of the ensemble only\. "
            r"Received: 'rectified', which may be any of one/rectified, two/rectified\.",
        ),
        (
            "one/rectifyed",
            r"`one/rectifyed` must be a layer of a member of the ensemble.*"
            r"The nearest names are: one/rectified.* The members are: one, two\.",
        ),
        ("hiden", r"The nearest names are: .*one/hidden"),
        ("three/hidden", r"must be a layer of a member.*two/hidden"),
    ],
)
def test_layer_is_refused(layer: str, message: str) -> None:
    ensemble = Ensemble([_model(1, "one"), _model(2, "two")])
    with pytest.raises(ModelError, match=message):
        as_teacher(ensemble, perceptron(tf_keras), [layer])


# --- refused ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Ensemble([m]), SettingError, r"`members` must be a list of two.*: 1 of them"),
        (lambda m: Ensemble(m), SettingError, r"`members` must be a list of two.*: Functional"),
        (lambda m: Ensemble([m, "m"]), ModelError, r"`teacher` must be a Keras model.*: str"),
        (lambda m: Ensemble([m, m], [1]), SettingError, r"`weights` must be 2 finite.*: \[1\]"),
        (lambda m: Ensemble([m, m], [1, 0]), SettingError, r"`weights` must be 2 finite"),
        (lambda m: Ensemble([m, m], [1, -1]), SettingError, r"`weights` must be 2 finite"),
        (lambda m: Ensemble([m, m], [1, np.inf]), SettingError, r"`weights` must be 2 finite"),
        (
            lambda m: Ensemble([m, m], combine="mean"),  # type: ignore[arg-type]
            SettingError,
            r"`combine` must be 'logits' or 'probabilities'\. Received: 'mean'",
        ),
        (
            lambda m: Ensemble([m, m], by_confidence="entropy"),  # type: ignore[arg-type]
            SettingError,
            r"`by_confidence` must be True or False\. Received: entropy",
        ),
    ],
)
def test_setting_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(_model(1, "one"))


def test_members_that_do_not_fit_are_refused() -> None:
    student = perceptron(tf_keras)
    with pytest.raises(
        ModelError, match=r"must have the same classes\. Received: a \(3,\), b \(2,\)"
    ):
        as_teacher(Ensemble([_model(1, "a"), _model(2, "b", classes=2)]), student)

    def sized(size: int) -> Any:
        inputs = keras.Input([size, size, 1])
        pooled = keras.layers.GlobalAveragePooling2D()(inputs)
        return keras.Model(inputs, keras.layers.Dense(3)(pooled), name=f"of_{size}")

    inputs = tf_keras.Input([None, None, 1])
    pooled = tf_keras.layers.GlobalMaxPooling2D()(inputs)
    open_student = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(pooled))
    with pytest.raises(ModelError, match=r"inputs of the same size\. Received: of_8 .*of_9"):
        as_teacher(Ensemble([sized(8), sized(9)]), open_student)


def test_student_that_would_train_a_member_is_refused() -> None:
    student = _model(1, "student")
    with pytest.raises(ModelError, match=r"`student` must not train weights of the `teacher`"):
        require_own_weights(student, Ensemble([_model(2, "other"), student]))
    require_own_weights(student, Ensemble([_model(2, "other"), _model(1, "equal")]))


@pytest.mark.parametrize("several", [False, True])
def test_members_of_classes_and_of_labels_are_refused(several: bool) -> None:
    def member(name: str, *activations: Any) -> Any:
        inputs = tf_keras.layers.Input([4])
        ends = [tf_keras.layers.Dense(3, each)(inputs) for each in activations]
        outputs = dict(zip(("own", "other"), ends, strict=False)) if several else ends[-1]
        return tf_keras.Model(inputs, outputs, name=name)

    members = member("a", None, "softmax"), member("b", None, "sigmoid"), member("c", None, None)
    student = member("student", None, None)
    with pytest.raises(
        ModelError,
        match=r"must all be of classes, or all of labels\. Received: a ends in softmax, b ends in "
        r"sigmoid\. Of a softmax's classes one is true",
    ):
        as_teacher(Ensemble(members), student)
    shapes = as_teacher(Ensemble(members[::2]), student).shapes
    assert shapes.endings == ({"own": "linear", "other": "softmax"} if several else "softmax")
    how: Any
    for how in ({"combine": "probabilities"}, {"by_confidence": True}):
        with pytest.raises(
            ModelError,
            match=r"of probabilities, or by confidence, must be of classes\. Received: members "
            r"that end in sigmoids of 3 units\. Both are of a softmax",
        ):
            as_teacher(Ensemble(members[1:], **how), student)
        shapes = as_teacher(Ensemble([members[2], members[2]], **how), student).shapes
        assert shapes.endings == ({"own": "softmax", "other": "softmax"} if several else "softmax")


# --- identity ---


def test_identity_is_that_of_members_weights_and_means() -> None:
    student = perceptron(tf_keras)

    def print_of(*seeds: int, **settings: Any) -> str:
        members = [_model(seed, f"net{seed}") for seed in seeds]
        return fingerprint(identity_of_teacher(Ensemble(members, **settings), student))

    first = print_of(1, 2)
    assert first == print_of(1, 2) == print_of(1, 2, weights=[3, 3])
    others = {
        print_of(1, 3),
        print_of(2, 1),
        print_of(1, 2, weights=[1, 2]),
        print_of(1, 2, combine="probabilities"),
        print_of(1, 2, by_confidence=True),
    }
    assert len(others | {first}) == 6

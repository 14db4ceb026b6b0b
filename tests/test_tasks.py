"""Students of several outputs: each with its own losses, labels, metrics and logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import log_probabilities, soft_targets
from networks import (
    FEATURES,
    STEPS,
    examples,
    perceptron,
    sentences,
    wide,
    with_random_weights,
)
from quick import only

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import DataError, ModelError, SettingError, TeacherError
from tfdistill.labels import Labels
from tfdistill.outputs import ModelView
from tfdistill.teachers import as_teacher

# Keras 3 saves and loads variables through NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = Any
each_library = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])

DIGIT = [losses.SoftTargets(temperature=2.0, weight=0.7)]
PARITY = [losses.LogitsMSE(weight=0.2), losses.Hint("rectified", "rectified", weight=0.5)]
TAUGHT = {"digit": DIGIT, "parity": PARITY}
WEIGHTS = {"digit": 0.3, "parity": 0.6}
LABEL_LOSS = {"digit": "sparse_categorical_crossentropy", "parity": "binary_crossentropy"}


def two_headed(
    library: Any = tf_keras,
    *,
    units: int = 5,
    seed: int = 0,
    structure: Callable[[Any, Any], Any] = lambda digit, parity: {"digit": digit, "parity": parity},
    activations: tuple[str | None, str | None] = (None, None),
    name: str = "student",
) -> Any:
    """`[batch, 4] -> "hidden" -> "rectified" -> "digit" [batch, 3] and "parity" [batch, 1]`."""
    layers = library.layers
    inputs = layers.Input([FEATURES], name="features")
    hidden = layers.Dense(units, name="hidden")(inputs)
    hidden = layers.ReLU(name="rectified")(hidden)
    digit = layers.Dense(3, activation=activations[0], name="digit")(hidden)
    parity = layers.Dense(1, activation=activations[1], name="parity")(hidden)
    return with_random_weights(library.Model(inputs, structure(digit, parity), name=name), seed)


def as_list(digit: Any, parity: Any) -> list[Any]:
    return [digit, parity]


def teacher_of(library: Any = keras, **settings: Any) -> Any:
    return two_headed(library, units=7, seed=1, name="teacher", **settings)


def data(count: int = 15) -> tuple[Array, dict[str, Array], Array]:
    inputs, labels, weights = examples(count)
    return inputs, {"digit": labels, "parity": (labels == 1).astype(np.float32)}, weights


def distiller_of(
    student: Any = None,
    teacher: Any = None,
    taught: Any = TAUGHT,
    weight: Any = WEIGHTS,
    loss: Any = LABEL_LOSS,
    metrics: Any = None,
    rate: float = 0.05,
    **settings: Any,
) -> Any:
    made = td.Distiller(
        two_headed() if student is None else student,
        teacher_of() if teacher is None else teacher,
        losses=taught,
        label_loss_weight=weight,
        **settings,
    )
    for projection in made._projections.values():
        kernel, *biases = projection.get_weights()
        projection.set_weights([np.random.default_rng(2).normal(size=kernel.shape), *biases])
    made.compile(tf_keras.optimizers.SGD(rate), loss, metrics)
    return made


def said_by(weights: list[Array], inputs: Array) -> tuple[Array, Array, Array]:
    """Hidden units and logits of digit and parity, in float64."""
    kernel, bias, *heads = wide(weights)
    hidden = np.maximum(np.asarray(inputs, np.float64) @ kernel + bias, 0.0)
    return hidden, hidden @ heads[0] + heads[1], hidden @ heads[2] + heads[3]


def closed_form(weights: list[Array], inputs: Array, labels: Any, counted: Any) -> dict[str, float]:
    """The logs; `weights` are the student's and the projection."""
    *student, projection = wide(weights)
    hidden, digit, parity = said_by(student, inputs)
    by_hidden, by_digit, by_parity = said_by(teacher_of().get_weights(), inputs)
    sign = 1.0 - 2.0 * labels["parity"][:, np.newaxis]
    terms = {
        "digit_label_loss": -log_probabilities(digit)[np.arange(len(digit)), labels["digit"]],
        "digit_soft_targets": soft_targets(by_digit, digit, 2.0),
        "parity_label_loss": np.logaddexp(0.0, sign * parity)[:, 0],
        "parity_logits_mse": np.square(by_parity - parity)[:, 0],
        "parity_hint": 0.5 * np.square(hidden @ projection - by_hidden).mean(axis=-1),
    }
    factors = dict(zip(terms, (0.3, 0.7, 0.6, 0.2, 0.5), strict=True))
    total = sum(
        factor * terms[name] * counted[name.split("_")[0]] for name, factor in factors.items()
    )
    logs = {"loss": np.mean(total)}
    logs |= {name: np.mean(each * counted[name.split("_")[0]]) for name, each in terms.items()}
    logs["digit_teacher_agreement"] = np.mean(digit.argmax(-1) == by_digit.argmax(-1))
    logs["parity_teacher_agreement"] = np.mean((parity > 0) == (by_parity > 0))
    logs["digit_accuracy"] = np.mean(digit.argmax(-1) == labels["digit"])
    logs["parity_accuracy"] = np.mean((parity[:, 0] > 0) == labels["parity"])
    return logs


def slope(function: Callable[[list[Array]], float], weights: list[Array]) -> list[Array]:
    weights = wide(weights)
    slopes = [np.zeros_like(weight) for weight in weights]
    for weight, each in zip(weights, slopes, strict=True):
        for index in np.ndindex(weight.shape):
            middle = weight[index]
            weight[index] = middle + 1e-6
            above = function(weights)
            weight[index] = middle - 1e-6
            each[index] = (above - function(weights)) / 2e-6
            weight[index] = middle
    return slopes


def copies(distiller: Any) -> list[Array]:
    return [np.array(variable) for variable in distiller.trainable_variables]


@pytest.mark.parametrize(
    "weighted",
    [
        "each output",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("all alike", "one output", "not")),
    ],
)
def test_logs_and_update_are_the_closed_form(weighted: str) -> None:
    inputs, labels, weights = data()
    ones, other = np.ones(15, np.float32), weights[::-1].copy()
    given, counted = {
        "all alike": (weights, {"digit": weights, "parity": weights}),
        "each output": (
            {"digit": weights, "parity": other},
            {"digit": weights, "parity": other},
        ),
        "one output": ({"parity": other}, {"digit": ones, "parity": other}),
        "not": (None, {"digit": ones, "parity": ones}),
    }[weighted]
    distiller = distiller_of(metrics={"digit": ["accuracy"], "parity": ["accuracy"]})
    before = copies(distiller)
    rows = (inputs, labels) if given is None else (inputs, labels, given)
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(6)
    expected = closed_form(before, inputs, labels, counted)

    evaluated = distiller.evaluate(batches, verbose=0, return_dict=True)  # 6, 6 and 3
    assert sorted(evaluated) == sorted(expected)
    for name, value in expected.items():
        assert evaluated[name] == pytest.approx(value, rel=1e-5), name
    assert list(evaluated)[:4] == [
        *("loss", "digit_label_loss", "digit_soft_targets", "digit_teacher_agreement"),
    ]
    assert distiller.metrics_names == list(evaluated)

    distiller.fit(batches.unbatch().batch(15), verbose=0)
    slopes = slope(lambda w: closed_form(w, inputs, labels, counted)["loss"], before)
    assert all(np.abs(each).max() > 1e-3 for each in slopes)
    for now, was, each in zip(copies(distiller), before, slopes, strict=True):
        np.testing.assert_allclose(now, was - 0.05 * each, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("library", "outputs"),
    [
        (keras, "dict"),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in ((tf_keras, "list"), (keras, "tuple"))),
    ],
)
def test_outputs_and_labels_of_every_structure_are_one_training(library: Any, outputs: str) -> None:
    structure = {"dict": None, "list": as_list, "tuple": lambda *both: both}[outputs]
    settings: dict[str, Any] = {} if structure is None else {"structure": structure}
    inputs, labels, weights = data()
    student = two_headed(library, **settings)
    distiller = distiller_of(student, teacher_of(tf_keras, **settings), metrics=["accuracy"])
    expected = distiller_of(metrics=["accuracy"])
    by_name = expected.fit(inputs, labels, sample_weight=weights, verbose=0).history
    in_order = labels if structure is None else [labels["digit"], labels["parity"]]
    history = distiller.fit(inputs, in_order, sample_weight=weights, verbose=0).history
    assert list(history) == list(by_name)
    assert "parity_accuracy" in history
    for name, (value,) in by_name.items():
        assert history[name][0] == pytest.approx(value, rel=1e-5), name
    for ours, theirs in zip(copies(distiller), copies(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert distiller.student is student
    for ours, theirs in zip(student.get_weights(), expected.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    predicted = distiller.predict(inputs, verbose=0)
    alone = student.predict(inputs, verbose=0)
    tf.nest.assert_same_structure(predicted, alone)
    for ours, theirs in zip(tf.nest.flatten(predicted), tf.nest.flatten(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@each_library
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_each_output_has_its_own_ending(library: Any, nested: bool) -> None:
    activations = ("softmax", "sigmoid")
    model = two_headed(library, activations=activations)
    weights = model.get_weights()
    if nested:
        inputs = library.layers.Input([FEATURES])
        model = library.Model(inputs, model(inputs))
    view = ModelView(model, role="student", several=True)
    inputs, *_ = data()
    predictions, said = view(inputs, training=False)
    _, digit, parity = said_by(weights, inputs)
    names = tuple(view.heads)
    assert tuple(head.activation for head in view.heads.values()) == activations
    assert [head.classes for head in view.heads.values()] == [3, 1]
    for name, expected in zip(names, (digit, parity), strict=True):
        np.testing.assert_allclose(said.of(name).logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(predictions[names[1]], 1 / (1 + np.exp(-parity)), atol=1e-5)
    assert view.shapes.names == said.names == names
    assert view.note.startswith(f"{names[0]}: The student ends in softmax; distillation reads")


def _counted(library: Any, calls: list[str], *, nested: bool, activation: str | None) -> Any:
    class Counting(library.layers.Layer):
        def call(self, inputs: Any) -> Any:
            calls.append(self.name)
            return inputs

    inputs = library.layers.Input([FEATURES])
    hidden = Counting(name="counted")(inputs)
    digit = library.layers.Dense(3, activation=activation, name="digit")(hidden)
    parity = library.layers.Dense(1, name="parity")(hidden)
    model = library.Model(inputs, {"digit": digit, "parity": parity})
    if not nested:
        return model
    outer = library.layers.Input([FEATURES])
    return library.Model(outer, model(outer))


@each_library
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_all_outputs_are_read_in_one_forward_pass(
    library: Any, nested: bool, activation: str | None
) -> None:
    calls: list[str] = []
    view = ModelView(
        _counted(library, calls, nested=nested, activation=activation),
        role="teacher",
        several=True,
    )
    calls.clear()
    view(data()[0], training=False)
    assert calls == ["counted"]


def test_heads_that_are_models_keep_their_names() -> None:
    """tf_keras, which trains the student, would know the layers in them only."""
    inputs = keras.layers.Input([FEATURES])
    hidden = keras.layers.Dense(5, activation="relu")(inputs)

    def head(name: str, units: int) -> Any:
        between = keras.layers.Input([5])
        ending = "softmax" if units > 1 else None
        return keras.Model(
            between, keras.layers.Dense(units, activation=ending, name="ending")(between), name=name
        )

    student = keras.Model(inputs, [head("digit", 3)(hidden), head("parity", 1)(hidden)])
    taught = {"digit": DIGIT, "parity": [losses.LogitsMSE()]}
    history = distiller_of(student, taught=taught).fit(*data()[:2], verbose=0).history
    assert {"digit_soft_targets", "parity_logits_mse", "parity_label_loss"} <= set(history)
    average = td.teachers.MovingAverage(0.9)
    history = distiller_of(student, average, taught).fit(*data()[:2], verbose=0).history
    assert history["digit_teacher_agreement"] == [1.0]


def test_an_output_may_be_left_untaught() -> None:
    inputs, labels, _ = data()
    distiller = distiller_of(taught={"digit": DIGIT}, weight={"digit": 0.3})
    before = distiller.student.get_weights()
    history = distiller.fit(inputs, {"digit": labels["digit"]}, verbose=0).history
    assert set(history) == {
        "loss",
        "digit_label_loss",
        "digit_soft_targets",
        "digit_teacher_agreement",
        "parity_teacher_agreement",
    }
    after = distiller.student.get_weights()
    changed = [np.abs(a - b).max() > 1e-4 for a, b in zip(after, before, strict=True)]
    assert changed == [True, True, True, True, False, False]
    assert distiller.predict(inputs, verbose=0)["parity"].shape == (15, 1)


def test_labels_alone_may_teach_an_output_that_no_teacher_has() -> None:
    inputs, labels, _ = data()

    def teacher(batch: Any) -> Any:
        return {"digit": batch[:, :3], "elsewhere": batch}

    distiller = distiller_of(teacher=teacher, taught={"digit": DIGIT}, metrics={"parity": "AUC"})
    logs = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    assert {"parity_label_loss", "digit_teacher_agreement", "parity_auc"} <= set(logs)
    assert not {"parity_teacher_agreement", "digit_accuracy"} & set(logs)
    expected = soft_targets(inputs[:, :3], said_by(two_headed().get_weights(), inputs)[1], 2.0)
    assert logs["digit_soft_targets"] == pytest.approx(expected.mean(), rel=1e-5)


def test_a_teacher_of_one_output_teaches_the_one_that_has_losses() -> None:
    inputs, labels, _ = data()
    teacher = perceptron(keras, units=7, seed=1)
    distiller = distiller_of(teacher=teacher, taught={"digit": DIGIT}, weight=0.5)
    logs = distiller.train_on_batch(inputs, labels, return_dict=True)
    assert "parity_label_loss" in logs
    assert "parity_teacher_agreement" not in logs
    with pytest.raises(ModelError, match=r"Received: a teacher with one output for digit, parity"):
        distiller_of(teacher=teacher)


def test_a_teacher_of_several_outputs_teaches_a_student_of_one_by_name() -> None:
    inputs, labels, _ = data()

    def student(name: str) -> Any:
        features = tf_keras.layers.Input([FEATURES])
        return tf_keras.Model(features, tf_keras.layers.Dense(3, name=name)(features))

    history = distiller_of(student("digit"), taught=DIGIT, weight=0.5, loss=LABEL_LOSS["digit"])
    logs = history.train_on_batch(inputs, labels["digit"], return_dict=True)
    assert list(logs) == ["loss", "label_loss", "soft_targets", "teacher_agreement"]
    with pytest.raises(ModelError, match=r"none called 'digits'\. Did you mean 'digit'\?"):
        distiller_of(student("digits"), taught=DIGIT, weight=0.5, loss=LABEL_LOSS["digit"])


def test_names_of_one_output_may_be_given_all_the_same() -> None:
    inputs, labels, _ = data()
    ways = [
        (DIGIT, 0.5, LABEL_LOSS["digit"], ["accuracy"], labels["digit"]),
        (
            {"logits": DIGIT},
            {"logits": 0.5},
            {"logits": LABEL_LOSS["digit"]},
            {"logits": ["accuracy"]},
            {"logits": labels["digit"]},
        ),
    ]
    plain, named = (
        distiller_of(perceptron(tf_keras), perceptron(keras, seed=1), *way[:4])
        .fit(inputs, way[4], verbose=0)
        .history
        for way in ways
    )
    assert named == plain
    assert "accuracy" in plain


@pytest.mark.parametrize("way", only("eager", of=["jit", "eager", "adversarial"]))
def test_every_way_of_running_is_the_same_training(way: str) -> None:
    inputs, labels, _ = data()
    more: dict[str, Any] = {}
    if way == "adversarial":
        more["adversarial"] = td.Adversarial(1e-9)  # which moves nothing that float32 can hold
    ours, theirs = distiller_of(**more), distiller_of()
    if way != "adversarial":
        ways = {"jit": {"jit_compile": True}, "eager": {"run_eagerly": True}}
        ours.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS, **ways[way])
    for distiller in (ours, theirs):
        distiller.fit(inputs, labels, batch_size=5, shuffle=False, verbose=0)
    for one, other in zip(copies(ours), copies(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.slow  # as test_adversarial.py of one output
def test_adversarial_examples_are_those_of_all_outputs() -> None:
    inputs, labels, _ = data()
    distiller = distiller_of(adversarial=td.Adversarial(0.1, weight=0.5))
    before = copies(distiller)
    history = distiller.fit(inputs, labels, batch_size=15, verbose=0).history
    ones = {"digit": np.ones(15), "parity": np.ones(15)}

    def total(given: Array) -> float:  # the teacher answers the unmoved inputs
        *student, projection = wide(before)
        hidden, digit, parity = said_by(student, given)
        by_hidden, by_digit, by_parity = said_by(teacher_of().get_weights(), inputs)
        sign = 1.0 - 2.0 * labels["parity"][:, np.newaxis]
        return float(
            np.mean(
                0.3 * -log_probabilities(digit)[np.arange(15), labels["digit"]]
                + 0.7 * soft_targets(by_digit, digit, 2.0)
                + 0.6 * np.logaddexp(0.0, sign * parity)[:, 0]
                + 0.2 * np.square(by_parity - parity)[:, 0]
                + 0.25 * np.square(hidden @ projection - by_hidden).mean(axis=-1)
            )
        )

    assert total(inputs) == pytest.approx(closed_form(before, inputs, labels, ones)["loss"])
    moved = wide([inputs])[0]
    towards = slope(lambda given: total(given[0]), [inputs])[0]
    moved += 0.1 * np.sign(towards)
    expected = 0.5 * total(inputs) + 0.5 * total(moved)
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow  # as of one output, which test_guards.py tests
def test_two_replicas_are_one(two_replicas: Any) -> None:
    inputs, labels, weights = data()
    given = {"digit": weights, "parity": weights[::-1].copy()}
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels, given)).batch(6)
    taught = {"digit": [*DIGIT, losses.DIST()], "parity": PARITY}
    found = []
    for scope in (tf.distribute.get_strategy().scope, two_replicas.scope):
        with scope():
            student = two_headed(keras, structure=as_list)
            distiller = distiller_of(student, taught=taught, metrics=["accuracy"])
        history = distiller.fit(batches, validation_data=batches, epochs=2, verbose=0).history
        found.append((history, copies(distiller)))
    (one, of_one), (two, of_two) = found
    assert list(one) == list(two)
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(of_two, of_one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_mixed_precision_is_float32_in_the_losses() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        student = two_headed()
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    inputs, labels, _ = data()
    distiller = distiller_of(student, metrics=["accuracy"])
    history = distiller.fit(inputs, labels, batch_size=15, verbose=0).history
    expected = distiller_of().evaluate(inputs, labels, verbose=0, return_dict=True)
    assert history["loss"][0] == pytest.approx(expected["loss"], rel=1e-2)
    assert isinstance(distiller.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)


def test_schedules_of_each_output() -> None:
    inputs, labels, _ = data()
    weight = td.schedules.Linear(1.0, 0.0, steps=2)
    distiller = distiller_of(
        taught={"digit": [losses.SoftTargets(temperature=2.0, weight=weight)]},
        weight={"digit": 0.0, "parity": weight},
        rate=0.0,
    )
    history = distiller.fit(inputs, labels, batch_size=15, epochs=3, verbose=0).history
    both = [history["digit_soft_targets"][0], history["parity_label_loss"][0]]
    assert history["loss"] == pytest.approx([sum(both), 0.5 * sum(both), 0.0], rel=1e-5)


def test_rows_may_be_unlabelled_in_one_output() -> None:
    inputs, labels, _ = data()
    known = np.arange(15) % 3 > 0
    marked = {**labels, "digit": np.where(known, labels["digit"], -1)}
    distiller = distiller_of(unlabelled={"digit": -1}, metrics=["accuracy"])
    logs = distiller.evaluate(inputs, marked, verbose=0, return_dict=True)
    ones = np.ones(15)
    all_known = closed_form(copies(distiller), inputs, labels, {"digit": ones, "parity": ones})
    counted = {"digit": known.astype(float), "parity": ones}
    some = closed_form(copies(distiller), inputs, labels, counted)
    right = said_by(two_headed().get_weights(), inputs)[1].argmax(-1) == labels["digit"]
    assert logs["digit_label_loss"] == pytest.approx(some["digit_label_loss"], rel=1e-5)
    for name in ("digit_soft_targets", "parity_label_loss", "parity_accuracy"):
        assert logs[name] == pytest.approx(all_known[name], rel=1e-5), name
    assert logs["digit_accuracy"] == pytest.approx(right[known].mean())
    both = {n: np.where(known, each, -1) for n, each in labels.items()}
    all_marked = distiller_of(unlabelled=-1).evaluate(inputs, both, verbose=0, return_dict=True)
    assert all_marked["digit_label_loss"] == pytest.approx(logs["digit_label_loss"], rel=1e-5)
    assert all_marked["parity_label_loss"] < logs["parity_label_loss"]


def test_time_steps_of_one_output_have_its_mask() -> None:
    numbers = sentences()
    labels = {"steps": numbers % 3, "whole": numbers[:, 0] % 3}

    def model(seed: int) -> Any:
        inputs = tf_keras.layers.Input([STEPS], dtype="int32")
        hidden = tf_keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
        steps = tf_keras.layers.Dense(3, name="steps")(hidden)
        pooled = tf_keras.layers.GlobalAveragePooling1D()(hidden)
        whole = tf_keras.layers.Dense(3, name="whole")(pooled)
        return with_random_weights(tf_keras.Model(inputs, [whole, steps]), seed)

    def logs(of: Callable[[Any], Any], taught: Any, labels: Any) -> Any:
        distiller = td.Distiller(of(model(0)), of(model(1)), taught, 0.5)
        distiller.compile("adam", LABEL_LOSS["digit"], ["accuracy"])
        return distiller.evaluate(numbers, labels, verbose=0, return_dict=True)

    both = logs(lambda each: each, {"steps": DIGIT, "whole": DIGIT}, labels)
    for place, name in enumerate(("whole", "steps")):

        def only(each: Any, place: int = place) -> Any:
            return tf_keras.Model(each.inputs, each.outputs[place])

        alone = logs(only, DIGIT, labels[name])
        for log, value in alone.items():
            assert log == "loss" or both[f"{name}_{log}"] == pytest.approx(value, rel=1e-5), log


def test_losses_of_labels_and_exits_read_those_of_their_output() -> None:
    inputs, labels, _ = data()
    exits = losses.EarlyExits(["rectified"], label_weight=1.0)
    distiller = distiller_of(taught={"digit": [losses.DecoupledKD(), exits], "parity": PARITY})
    (layer,) = [e for name, e in distiller._projections.items() if name == "digit_early_exits"]
    logs = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    hidden, *_ = said_by(two_headed().get_weights(), inputs)
    weights = wide(layer.get_weights())
    said = log_probabilities(hidden @ weights[0] + (weights[1] if len(weights) > 1 else 0.0))
    expected = -said[np.arange(15), labels["digit"]].mean()
    assert logs["digit_early_exits"] == pytest.approx(expected, rel=1e-4)
    without = {"parity": labels["parity"]}
    silent = distiller_of(
        taught={"digit": [losses.DecoupledKD()]}, weight={"parity": 1.0}, loss=LABEL_LOSS
    )
    with pytest.raises(DataError, match=r"labels for the output 'digit' for the loss 'decoupled"):
        silent.fit(inputs, without, verbose=0)


@pytest.mark.slow  # as test_losses_layers.py of one output
@pytest.mark.parametrize("stage", [pytest.param("pruned", marks=pytest.mark.slow), "quantized"])
def test_a_student_inside_of_tfmots_wrappers_learns_all_outputs(stage: str) -> None:
    inputs, labels, _ = data(60)
    prune = tfmot.sparsity.keras
    student = two_headed(structure=as_list)
    if stage == "pruned":
        schedule = prune.ConstantSparsity(0.5, begin_step=0, frequency=1)
        student = prune.prune_low_magnitude(student, pruning_schedule=schedule)
    else:
        student = tfmot.quantization.keras.quantize_model(student)
    distiller = distiller_of(student, metrics=["accuracy"])
    callbacks = [prune.UpdatePruningStep()] if stage == "pruned" else []
    history = distiller.fit(inputs, labels, epochs=8, verbose=0, callbacks=callbacks).history
    for name in ("digit_soft_targets", "parity_logits_mse", "parity_label_loss"):
        assert history[name][-1] < history[name][0], name
    if stage == "pruned":
        stripped = prune.strip_pruning(distiller.student)
        kernels = [stripped.get_layer(name).get_weights()[0] for name in ("hidden", "digit")]
        shares = [np.mean(kernel == 0) for kernel in kernels]
        assert shares == pytest.approx([0.5, 0.5], abs=0.05)


def test_projections_go_on_in_another_distiller() -> None:
    first, second = distiller_of(), distiller_of()
    weights = {name: 2 * each for name, each in first.projection_weights.items()}
    assert [*weights] == ["parity_hint/0"]
    second.set_projection_weights(weights)
    np.testing.assert_array_equal(
        second.projection_weights["parity_hint/0"], weights["parity_hint/0"]
    )


def test_layers_are_matched_for_each_output() -> None:
    taught = {"digit": [losses.Hint("auto", "auto")], "parity": [losses.LogitsMSE()]}
    distiller = distiller_of(taught=taught)
    (note,) = distiller.notes
    assert note == "digit: hint teaches by layers matched by resolution: rectified - rectified."
    (named,) = distiller.losses_taught["digit"]
    assert named.pairs == (("rectified", "rectified"),)


def test_the_lines_of_the_methods_page_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("run by tests/test_tasks.py. -->\n```python\n")[1].split("```")[0]
    inputs, labels, _ = data()
    known: dict[str, Any] = {"td": td, "student": two_headed(keras), "teacher": teacher_of()}
    known |= {"images": inputs, "digits": labels["digit"], "parities": labels["parity"]}
    exec(lines, known)
    assert known["history"]["loss"][-1] < known["history"]["loss"][0]


# --- every kind of teacher ---


def _exported(folder: Path, model: Any) -> Path:
    model.export(folder / "saved", verbose=False)
    return folder / "saved"


def _converted(folder: Path, model: Any) -> Path:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(_exported(folder, model)))
    (folder / "teacher.tflite").write_bytes(converter.convert())
    return folder / "teacher.tflite"


def _numpy(model: Any) -> Any:
    return td.teachers.Function(
        lambda inputs: {name: np.array(each) for name, each in model(inputs).items()}
    )


BOTH = ("digit", "parity")
TEACHERS: dict[str, Callable[[Path, Any], Any]] = {
    "model": lambda folder, model: td.teachers.Model(model),
    "tf_keras": lambda folder, model: teacher_of(tf_keras),
    "list": lambda folder, model: teacher_of(structure=as_list),
    "probabilities": lambda folder, model: teacher_of(activations=("softmax", "sigmoid")),
    "function": lambda folder, model: lambda inputs: model(inputs),
    "NumPy": lambda folder, model: _numpy(model),
    "SavedModel": lambda folder, model: td.teachers.SavedModel(
        _exported(folder, model), output=BOTH
    ),
    "LiteRT": lambda folder, model: td.teachers.LiteRT(_converted(folder, model), output=BOTH),
    "ensemble": lambda folder, model: td.teachers.Ensemble(
        [model, teacher_of(tf_keras), _numpy(model)], by_confidence=True
    ),
}


@pytest.mark.parametrize("kind", only("model", "NumPy", "probabilities", "list", of=TEACHERS))
def test_every_kind_of_teacher_says_all_outputs(kind: str, tmp_path: Path) -> None:
    inputs, *_ = data()
    teacher = as_teacher(TEACHERS[kind](tmp_path, teacher_of()), two_headed())
    said = tf.function(lambda batch: teacher(batch).logits)(tf.constant(inputs))
    assert set(teacher.shapes.names) == set(said) == {*BOTH}
    _, digit, parity = said_by(teacher_of().get_weights(), inputs)
    for name, expected in zip(BOTH, (digit, parity), strict=True):
        np.testing.assert_allclose(said[name], expected, rtol=1e-4, atol=1e-4)
        assert teacher.shapes.of(name).logits == expected.shape[1:]


@pytest.mark.parametrize("kind", only("NumPy", of=["function", "NumPy"]))
def test_a_function_of_all_outputs_is_asked_in_every_step(kind: str, tmp_path: Path) -> None:
    inputs, labels, _ = data()
    taught = {"digit": DIGIT, "parity": PARITY[:1]}
    ours, theirs = (
        distiller_of(teacher=TEACHERS[each](tmp_path, teacher_of()), taught=taught)
        for each in (kind, "model")
    )
    for distiller in (ours, theirs):
        distiller.fit(inputs, labels, batch_size=6, shuffle=False, verbose=0)
    for one, other in zip(copies(ours), copies(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_probabilities_of_several_outputs_are_read_as_logits() -> None:
    inputs, *_ = data()
    model = teacher_of(activations=("softmax", "sigmoid"))
    function = _numpy(model)
    with pytest.raises(ModelError, match=r"`teacher` must return logits"):
        as_teacher(function, two_headed())
    function = td.teachers.Function(function._fn, probabilities=True)
    teacher = as_teacher(function, two_headed())
    assert teacher.note == (
        "The teacher returns probabilities; distillation reads their log-odds or logarithms."
    )
    _, digit, parity = said_by(model.get_weights(), inputs)
    said = teacher(inputs).logits
    np.testing.assert_allclose(said["digit"], log_probabilities(digit), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(said["parity"], parity, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        pytest.param({"dtype": "float32"}, 1e-6, marks=pytest.mark.slow),
        pytest.param({"top_k": 2, "temperatures": (2.0,)}, 0.2, marks=pytest.mark.slow),
    ],
    ids=["all", "top-k"],
)
def test_stored_targets_of_all_outputs_teach_as_the_teacher_does(
    settings: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    inputs, labels, _ = data()
    teacher = teacher_of(structure=lambda digit, parity: {"parity": parity, "digit": digit})
    layers = ["rectified"]
    stored = td.store_targets(
        teacher, (inputs, labels), tmp_path, layers=layers, verbose=0, **settings
    )
    assert stored.shapes.logits == {"digit": (3,), "parity": (1,)}
    assert stored.shapes.features == {"rectified": (7,)}
    distiller = distiller_of(teacher=teacher)
    live = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    logs = distiller.evaluate(stored.dataset(batch_size=6), verbose=0, return_dict=True)
    assert list(logs) == list(live)
    for name, value in live.items():
        assert logs[name] == pytest.approx(value, rel=max(tolerance, 1e-5)), name
    assert stored.divergence[1] < tolerance
    again = td.store_targets(
        teacher, (inputs, labels), tmp_path, layers=layers, verbose=0, **settings
    )
    assert again.seconds == stored.seconds  # it was not asked again
    one = td.store_targets(perceptron(keras), (inputs, labels), tmp_path / "one", verbose=0)
    with pytest.raises(DataError, match=r"Received: one output, teacher (digit|parity), "):
        distiller.fit(one.dataset(batch_size=5), verbose=0)


# --- errors ---

SEVERAL = r"names of the student's outputs\. Received: 'digits'\. Did you mean 'digit'\?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": DIGIT}, r"`losses` must be by the names of the outputs, of which .* several"),
        ({"losses": {"digits": DIGIT}}, rf"`losses` must be by {SEVERAL}"),
        ({"label_loss_weight": {"digits": 1}}, rf"`label_loss_weight` must be by {SEVERAL}"),
        ({"unlabelled": {"digits": -1}}, rf"`unlabelled` must be by {SEVERAL}"),
        ({"unlabelled": {"digit": 1}}, r"`unlabelled` must be None, a whole number below 0"),
        ({"losses": {"digit": DIGIT[0]}}, r"`losses` must be a list of distillation losses"),
        ({"losses": {"digit": DIGIT * 2}}, r"the name 'soft_targets' 2 times"),
        ({"label_loss_weight": {"digit": -1}}, r"`label_loss_weight` must be a finite number"),
        (
            {"losses": DIGIT, "label_loss_weight": {"digit": 1.0}},
            r"names .* as `label_loss_weight`",
        ),
        ({"losses": {}, "label_loss_weight": {"digit": 0}}, r"must not all be zero"),
        ({"losses": {"digit": []}, "label_loss_weight": 0}, r"must not all be zero"),
        (
            {"losses": {"digit": [losses.DIST(weight=1.0)]}, "label_loss_weight": {"digit": None}},
            r"`label_loss_weight` must be a finite number",
        ),
    ],
)
def test_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    given = {"losses": TAUGHT, **settings}
    with pytest.raises(SettingError, match=message):
        td.Distiller(two_headed(), teacher_of(), **given)


def test_logs_of_the_same_name_are_refused() -> None:
    inputs = tf_keras.layers.Input([FEATURES])
    outputs = {name: tf_keras.layers.Dense(3)(inputs) for name in ("a", "a_b")}
    taught = {
        "a": [losses.LogitsMSE(name="b_c")],
        "a_b": [losses.LogitsMSE(name="c")],
    }
    with pytest.raises(SettingError, match=r"differ in the logs.* Received: 'a_b_c' 2 times"):
        td.Distiller(tf_keras.Model(inputs, outputs), tf_keras.Model(inputs, outputs), taught)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": None}, r"`loss` must be given while `label_loss_weight` is > 0"),
        ({"loss": {"digit": LABEL_LOSS["digit"]}}, r"Received: none for 'parity', label_loss_w"),
        ({"loss": {"digits": "mse"}}, rf"`loss` must be by {SEVERAL}"),
        ({"loss": ["mse"]}, r"`loss` must be of as many parts .* Received: 1 for digit, parity"),
        ({"metrics": {"digits": "mse"}}, rf"`metrics` must be by {SEVERAL}"),
        ({"loss_weights": [1, 2]}, r"`loss_weights` must be left out\. Received: \[1, 2\]"),
        ({"metrics": [["mse"]]}, r"`metrics` must be of as many parts as the student has outputs"),
    ],
)
def test_what_does_not_compile_is_refused(settings: dict[str, Any], message: str) -> None:
    distiller = distiller_of()
    with pytest.raises(SettingError, match=message):
        distiller.compile("adam", **{"loss": LABEL_LOSS, **settings})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda y: None, r"labels for the output 'digit' while `label_loss_weight` is > 0"),
        (lambda y: {"digit": y["digit"]}, r"labels for the output 'parity' while `label_loss_w"),
        (lambda y: y["digit"], r"labels by output, of which the student has several"),
        (lambda y: {**y, "digits": y["digit"]}, rf"`labels` must be by {SEVERAL}"),
        (lambda y: (y["digit"],) * 3, r"`labels` must be of as many parts .*3 for digit, parity"),
    ],
)
def test_labels_of_other_outputs_are_refused(labels: Any, message: str) -> None:
    inputs, by_name, _ = data()
    given = labels(by_name)
    batches = tf.data.Dataset.from_tensor_slices((inputs,) if given is None else (inputs, given))
    distiller = distiller_of()
    before = copies(distiller)
    with pytest.raises(DataError, match=message):
        distiller.fit(batches.batch(5), verbose=0)
    for now, was in zip(copies(distiller), before, strict=True):
        np.testing.assert_array_equal(now, was)


def test_metrics_of_an_output_without_labels_are_refused() -> None:
    inputs, labels, _ = data()
    distiller = distiller_of(taught={"digit": DIGIT}, weight={"digit": 1.0}, metrics=["accuracy"])
    with pytest.raises(DataError, match=r"labels for the output 'parity', which has metrics"):
        distiller.fit(inputs, {"digit": labels["digit"]}, verbose=0)


def test_models_that_do_not_fit_are_refused() -> None:
    def flat_parity(batch: Any) -> Any:
        return {"digit": batch[:, :3], "parity": batch[:, 0]}

    swapped = teacher_of(structure=lambda digit, parity: {"digit": parity, "parity": digit})
    with pytest.raises(ModelError, match=r"same classes\. Received: teacher output \(1,\)"):
        distiller_of(teacher=swapped)
    inputs = tf_keras.layers.Input([FEATURES])
    nested = tf_keras.Model(inputs, {"digit": [tf_keras.layers.Dense(3)(inputs)] * 2})
    with pytest.raises(ModelError, match="must be a flat dictionary, list or tuple"):
        distiller_of(nested)
    softmax = tf_keras.Sequential([inputs, tf_keras.layers.Dense(3, activation="softmax")])
    digit = softmax(inputs)
    both = {"digit": digit, "parity": tf_keras.layers.Dense(1)(digit)}
    with pytest.raises(ModelError, match=r"the output 'digit', which ends in 'sequential"):
        distiller_of(tf_keras.Model(inputs, both), taught={"digit": DIGIT})
    with pytest.raises(ModelError, match=r"`teacher` must return one tensor.*dict of shape None"):
        distiller_of(
            perceptron(tf_keras), lambda batch: {"logits": batch[:, :3]}, DIGIT, 0.5, "mse"
        )
    with pytest.raises(
        ModelError, match=r"\[4, classes\].* dict whose 'parity' is of shape \(4,\)"
    ):
        distiller_of(teacher=flat_parity, taught={"digit": DIGIT})
    with pytest.raises(TeacherError, match=r"shape \[4\] .* is wanted for the output 'parity'"):
        distiller_of(teacher=td.teachers.Function(flat_parity), taught={"digit": DIGIT})
    with pytest.raises(ModelError, match=r"`student` must have one output"):
        td.MutualDistiller([two_headed(), two_headed(seed=1)])


def test_a_pipeline_says_at_its_door_what_it_cannot_teach() -> None:
    pipeline = td.Pipeline(distillation=td.Distillation(epochs=1))
    with pytest.raises(SettingError, match=r"`losses` must be by the names of the outputs, of"):
        pipeline.check(two_headed(keras), teacher_of())
    with pytest.raises(ModelError, match=r"`teacher` must have one output\. Received: 2 outputs"):
        pipeline.check(perceptron(keras), teacher_of())


# --- with what other settings there are ---


def test_one_output_needs_no_teacher_where_its_losses_need_none() -> None:
    taught = {"digit": [losses.VirtualTeacher()], "parity": [losses.LogitsMSE()]}
    one_headed = perceptron(keras, classes=1, units=7, seed=1)
    inputs, labels, _ = data()
    logs = distiller_of(teacher=one_headed, taught=taught).evaluate(
        inputs, labels, verbose=0, return_dict=True
    )
    assert logs["digit_virtual_teacher"] > 0
    assert "parity_teacher_agreement" in logs
    assert "digit_teacher_agreement" not in logs


def test_every_output_may_be_without_a_teacher() -> None:
    taught = {"digit": [losses.VirtualTeacher()]}
    distiller = td.Distiller(two_headed(), None, taught, WEIGHTS)
    distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS)
    logs = distiller.fit(*data()[:2], verbose=0).history
    assert [*logs] == ["loss", "digit_label_loss", "digit_virtual_teacher", "parity_label_loss"]


def test_mixed_examples_are_taught_all_outputs() -> None:
    inputs, labels, weights = data()
    mixing = td.Mixup(alpha=1.0, seed=3)
    distiller = distiller_of(mixing=mixing, rate=0.0)
    history = distiller.fit(
        inputs, labels, 15, sample_weight=weights, shuffle=False, verbose=0
    ).history
    known = {name: Labels(tf.constant(each)) for name, each in labels.items()}
    mixed = mixing(tf.constant(inputs), known, {"digit": tf.constant(weights)}, 0)
    share = float(mixed.labels["digit"].share)
    assert 0.01 < share < 0.99
    theirs = {name: each.others.values for name, each in mixed.labels.items()}
    weight = mixed.sample_weight["digit"]
    parts = [
        distiller.evaluate(mixed.inputs, each, 15, 0, weight, return_dict=True)
        for each in (labels, theirs)
    ]
    for name in ("digit_label_loss", "parity_label_loss"):
        expected = share * parts[0][name] + (1 - share) * parts[1][name]
        assert history[name] == [pytest.approx(expected, rel=1e-4)]
    assert history["digit_soft_targets"] == [
        pytest.approx(parts[0]["digit_soft_targets"], rel=1e-4)
    ]

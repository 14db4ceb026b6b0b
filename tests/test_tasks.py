"""Students of several outputs: each with its own losses, labels, metrics and logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import log_probabilities, soft_targets
from networks import FEATURES, examples, perceptron, wide, with_random_weights

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import DataError, ModelError, SettingError, TeacherError
from tfdistill.outputs import ModelView

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
        (kernel,) = projection.get_weights()
        projection.set_weights([np.random.default_rng(2).normal(size=kernel.shape)])
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


@pytest.mark.parametrize("weighted", ["all alike", "each output", "one output", "not"])
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


@each_library
@pytest.mark.parametrize("outputs", ["dict", "list", "tuple"])
def test_outputs_and_labels_of_every_structure_are_one_training(
    library: Any, outputs: str, request: pytest.FixtureRequest
) -> None:
    structure = {"dict": None, "list": as_list, "tuple": lambda *both: both}[outputs]
    settings = {} if structure is None else {"structure": structure}
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
    assert type(predicted) is type(alone) or outputs == "tuple"
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


@pytest.mark.parametrize("way", ["jit", "eager", "adversarial"])
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


@each_library
def test_two_replicas_are_one(library: Any, two_replicas: Any) -> None:
    inputs, labels, weights = data()
    given = {"digit": weights, "parity": weights[::-1].copy()}
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels, given)).batch(6)
    taught = {"digit": [*DIGIT, losses.DIST()], "parity": PARITY}
    found = []
    for scope in (tf.distribute.get_strategy().scope, two_replicas.scope):
        with scope():
            student = two_headed(library, structure=as_list)
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


@pytest.mark.parametrize("stage", ["pruned", "quantized"])
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


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("kind", TEACHERS)
def test_every_kind_of_teacher_teaches_all_outputs(kind: str, tmp_path: Path) -> None:
    inputs, labels, _ = data()
    teacher = TEACHERS[kind](tmp_path, teacher_of())
    taught = {"digit": DIGIT, "parity": PARITY[:1]}
    distiller = distiller_of(teacher=teacher, taught=taught)
    history = distiller.fit(inputs, labels, batch_size=15, verbose=0).history
    expected = distiller_of(taught=taught)
    expected = expected.evaluate(inputs, labels, verbose=0, return_dict=True)
    for name, value in expected.items():
        assert history[name][0] == pytest.approx(value, rel=1e-4), name

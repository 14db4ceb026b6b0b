"""The Distiller: its losses and updates against the closed form, and everything Keras around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distillers import (
    HINT,
    LABEL_LOSS,
    SOFT,
    Array,
    Hint,
    Interrupt,
    LogitsMSE,
    SoftTargets,
    assert_equal,
    assert_equal_logs,
    compiled_distiller,
    each_library,
    values_of,
    wider_teacher,
)
from networks import examples, hidden_of, logits_of, perceptron, wide, with_random_weights

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ConversionError, DataError, ModelError, SettingError
from tfdistill.labels import label_loss_for
from tfdistill.students import prepare_student

# Keras 3 saves its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- the loss, in float64 ---


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _closed_form(
    weights: list[Array],
    teacher: list[Array],
    inputs: Array,
    labels: Array,
    sample_weight: Array,
    *,
    regularization: float = 0.0,
    label_loss_weight: float = 0.3,
) -> dict[str, float]:
    """The logs; `weights` are the student's four and the projection."""
    *student, projection = wide(weights)
    s, t = logits_of(student, inputs), logits_of(teacher, inputs)
    p, q = _log_softmax(t / 3.0), _log_softmax(s / 3.0)
    projected = hidden_of(student, inputs) @ projection
    terms = {
        "label_loss": -_log_softmax(s)[np.arange(len(labels)), labels],
        "soft_targets": 9.0 * (np.exp(p) * (p - q)).sum(axis=-1),
        "hint": 0.5 * np.square(projected - hidden_of(teacher, inputs)).mean(axis=-1),
    }
    total = label_loss_weight * terms["label_loss"] + terms["soft_targets"] + 0.5 * terms["hint"]
    logs = {"loss": np.mean(total * sample_weight) + regularization * np.square(student[0]).sum()}
    logs |= {name: np.mean(values * sample_weight) for name, values in terms.items()}
    logs["teacher_agreement"] = np.mean(s.argmax(axis=-1) == t.argmax(axis=-1))
    logs["accuracy"] = np.mean(s.argmax(axis=-1) == labels)
    return logs


def _slope(function: Callable[[list[Array]], float], weights: list[Array]) -> list[Array]:
    """Finite differences of a function of all weights."""
    weights = wide(weights)
    slopes = [np.zeros_like(weight) for weight in weights]
    for weight, slope in zip(weights, slopes, strict=True):
        for index in np.ndindex(weight.shape):
            middle = weight[index]
            weight[index] = middle + 1e-6
            above = function(weights)
            weight[index] = middle - 1e-6
            slope[index] = (above - function(weights)) / 2e-6
            weight[index] = middle
    return slopes


@pytest.mark.parametrize(
    ("weighted", "label_loss_weight"),
    [
        (True, 0.3),
        (False, 0.0),
        pytest.param(True, 0.0, marks=pytest.mark.slow),
        pytest.param(False, 0.3, marks=pytest.mark.slow),
    ],
)
def test_logs_and_update_are_the_closed_form(weighted: bool, label_loss_weight: float) -> None:
    distiller = compiled_distiller(
        perceptron(tf_keras, regularizer=tf_keras.regularizers.L2(0.02)),
        label_loss_weight=label_loss_weight,
    )
    inputs, labels, sample_weight = examples()
    teacher = wider_teacher().get_weights()
    before = values_of(distiller.trainable_variables)

    def logs(weights: list[Array]) -> dict[str, float]:
        counted = sample_weight if weighted else np.ones(len(labels))
        return _closed_form(
            weights,
            teacher,
            inputs,
            labels,
            counted,
            regularization=0.02,
            label_loss_weight=label_loss_weight,
        )

    given = {"sample_weight": sample_weight} if weighted else {}
    # Batches of 6, 6 and 3: a mean of their means would be another number.
    evaluated = distiller.evaluate(
        inputs, labels, batch_size=6, verbose=0, return_dict=True, **given
    )
    assert_equal_logs(evaluated, logs(before))

    trained = distiller.train_on_batch(inputs, labels, return_dict=True, **given)
    assert_equal_logs(trained, logs(before))
    slopes = _slope(lambda weights: logs(weights)["loss"], before)
    assert all(np.abs(slope).max() > 1e-3 for slope in slopes)
    expected = [weight - 0.05 * slope for weight, slope in zip(before, slopes, strict=True)]
    assert_equal(values_of(distiller.trainable_variables), expected, 2e-6)


def test_teacher_agreement_counts_every_example_once() -> None:
    inputs, labels, _ = examples()
    logits = logits_of(perceptron(tf_keras).get_weights(), inputs)
    expected = np.mean(
        logits.argmax(-1) == logits_of(wider_teacher().get_weights(), inputs).argmax(-1)
    )
    assert 0 < expected < 1
    sample_weight = np.zeros(len(labels))
    logs = compiled_distiller().evaluate(
        inputs, labels, sample_weight=sample_weight, verbose=0, return_dict=True
    )
    assert logs["teacher_agreement"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("library", "classes", "activation"),
    [
        (keras, 3, "softmax"),
        pytest.param(tf_keras, 1, "sigmoid", marks=pytest.mark.slow),
        pytest.param(keras, 1, "sigmoid", marks=pytest.mark.slow),
        pytest.param(tf_keras, 3, "softmax", marks=pytest.mark.slow),
    ],
)
def test_probabilities_are_taught_as_their_logits(
    library: Any, classes: int, activation: str
) -> None:
    loss = LABEL_LOSS if classes > 1 else "binary_crossentropy"
    inputs, labels, sample_weight = examples(classes=max(2, classes))
    results = []
    for ending in (None, activation):
        student = perceptron(library, classes=classes, activation=ending)
        teacher = wider_teacher(library, classes=classes, activation=ending)
        distiller = compiled_distiller(student, teacher, (SoftTargets(), LogitsMSE()), loss=loss)
        logs = distiller.train_on_batch(inputs, labels, sample_weight, return_dict=True)
        results.append((logs, values_of(distiller.trainable_variables)))
    assert distiller.notes == (
        f"The student ends in {activation}; distillation reads the logits before it.",
        f"The teacher ends in {activation}; distillation reads the logits before it.",
    )
    assert_equal_logs(results[1][0], results[0][0])
    assert_equal(results[1][1], results[0][1], 1e-6)
    # The student still returns probabilities.
    predicted = distiller.predict(inputs, verbose=0)
    assert predicted.min() >= 0
    assert predicted.max() <= 1


@each_library
def test_class_numbers_are_read_by_several_sigmoid_units(library: Any) -> None:
    inputs, labels, _ = examples()
    loss = label_loss_for("integers", activation="sigmoid", units=3)
    students = [perceptron(library, activation="sigmoid") for _ in range(2)]
    ours, theirs = (
        compiled_distiller(student, losses=(), loss=own, label_loss_weight=1.0)
        for student, own in zip(students, (loss, "binary_crossentropy"), strict=True)
    )
    right = logits_of(students[0].get_weights(), inputs).argmax(axis=1) == labels
    logs = ours.evaluate(inputs, labels, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["accuracy"], right.mean(), rtol=1e-6)
    ours.fit(inputs, labels, verbose=0)
    theirs.fit(inputs, np.eye(3, dtype=np.float32)[labels], verbose=0)
    assert_equal(ours.student.get_weights(), theirs.student.get_weights(), 1e-6)


def test_regularizers_of_activities_and_weights_join_the_loss_once() -> None:
    inputs, labels, _ = examples()
    features = tf_keras.layers.Input([4])
    outputs = tf_keras.layers.Dense(
        3, activation="softmax", activity_regularizer="l2", kernel_regularizer="l2"
    )(features)
    student = with_random_weights(tf_keras.Model(features, outputs), 0)
    student.compile(loss=LABEL_LOSS)
    expected = student.evaluate(inputs, labels, verbose=0)  # what Keras makes of the two
    logs = compiled_distiller(student, losses=(), label_loss_weight=1.0).evaluate(
        inputs, labels, verbose=0, return_dict=True
    )
    assert logs["loss"] == pytest.approx(expected, rel=1e-6)
    assert logs["loss"] > logs["label_loss"] + 0.01


# --- rows without labels ---


def test_rows_without_labels_train_as_rows_with_labels_of_no_weight() -> None:
    inputs, labels, _ = examples()
    unlabelled = compiled_distiller(label_loss_weight=0.0, loss=None)
    labelled = compiled_distiller(label_loss_weight=0.0)
    ours = unlabelled.fit(inputs, verbose=0, shuffle=False, batch_size=6).history
    theirs = labelled.fit(inputs, labels, verbose=0, shuffle=False, batch_size=6).history
    assert_equal(values_of(unlabelled.weights), values_of(labelled.weights))
    assert list(ours) == ["loss", "soft_targets", "hint", "teacher_agreement"]
    assert set(theirs) - set(ours) == {"label_loss", "accuracy"}
    assert ours["loss"] == theirs["loss"]


def test_validation_may_have_labels_where_training_has_none() -> None:
    inputs, labels, _ = examples()
    distiller = compiled_distiller(label_loss_weight=0.0)
    history = distiller.fit(
        inputs, validation_data=(inputs, labels), epochs=2, verbose=0, batch_size=8
    ).history
    assert {"val_label_loss", "val_accuracy"} <= set(history)
    assert not {"label_loss", "accuracy"} & set(history)


# --- one forward pass each ---


def _count_calls(library: Any, calls: list[str], who: str) -> Any:
    class Counting(library.layers.Layer):
        def call(self, inputs: Any) -> Any:
            calls.append(who)
            return inputs

    return Counting()


def _counted(library: Any, calls: list[str], who: str, *, nested: bool, units: int) -> Any:
    inputs = library.layers.Input([4], name="features")
    hidden = library.layers.Dense(units, name="hidden")(inputs)
    if not nested:
        hidden = _count_calls(library, calls, who)(hidden)
        outputs = library.layers.Dense(3, activation="softmax")(hidden)
        return library.Model(inputs, outputs)
    between = library.layers.Input([units])
    counted = _count_calls(library, calls, who)(between)
    head = library.Model(between, library.layers.Dense(3, activation="softmax")(counted))
    return library.Model(inputs, head(hidden))


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_one_forward_pass_of_each_model_a_step(nested: bool) -> None:
    calls: list[str] = []
    distiller = compiled_distiller(
        _counted(tf_keras, calls, "student", nested=nested, units=5),
        _counted(keras, calls, "teacher", nested=nested, units=7),
        (SoftTargets(), Hint("hidden", "hidden"), Hint("features", "features", name="inputs")),
        run_eagerly=True,  # so that every call is seen
    )
    inputs, labels, _ = examples()
    for step in (distiller.train_on_batch, distiller.test_on_batch):
        calls.clear()
        step(inputs, labels)
        assert sorted(calls) == ["student", "teacher"]


@pytest.mark.parametrize("data", ["arrays", "data set"])
def test_the_step_is_traced_once(data: str) -> None:
    """Variables of optimizer or metrics made within it would let TensorFlow trace it twice."""
    traces = []

    class Counting(td.Distiller):
        def train_step(self, data: Any) -> Any:
            traces.append(data)
            return super().train_step(data)

    distiller = Counting(perceptron(tf_keras), wider_teacher(), [SOFT], 0.3)
    distiller.compile("adam", LABEL_LOSS, metrics=["accuracy"])
    given: tuple[Any, ...] = examples(24)[:2]
    if data == "data set":
        given = (tf.data.Dataset.from_tensor_slices(given).batch(8),)
    history = distiller.fit(*given, epochs=2, verbose=0).history
    assert len(traces) == 1
    assert history["accuracy"]


# --- replicas ---

CASES = {
    "tf_keras": lambda: perceptron(tf_keras, regularizer=tf_keras.regularizers.L2(0.02)),
    "tf_keras, synchronized BatchNormalization": lambda: perceptron(tf_keras, normalized=True),
    "keras": lambda: perceptron(keras, regularizer=keras.regularizers.L2(0.02)),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if "normal" in c.lower() else [pytest.mark.slow]) for c in CASES],
)
def test_two_replicas_are_one(case: str, two_replicas: Any) -> None:
    arrays = examples(15)  # 6, 6, 3: the last batch is split into 2 and 1
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(6)
    results: list[Any] = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        teacher = wider_teacher()  # not in the scope: it is only read
        with scope:
            student = CASES[case]()
            distiller = compiled_distiller(student, teacher)
        history = distiller.fit(data, validation_data=data, epochs=2, verbose=0).history
        assert distiller.distribute_strategy.num_replicas_in_sync == len(results) + 1
        assert distiller.student is student
        results.append((history, values_of(distiller.weights), student.get_weights()))
    one, several = results
    assert_equal_logs(several[0], one[0])
    assert_equal(several[1], one[1], 1e-5)
    assert_equal(several[2], one[2], 1e-5)
    assert np.abs(one[2][0] - CASES[case]().get_weights()[0]).max() > 1e-3


# --- mixed precision ---


def _mixed_student(**settings: Any) -> Any:
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return perceptron(tf_keras, **settings)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def test_mixed_precision_scales_the_loss() -> None:
    inputs, labels, _ = examples()
    tiny = (LogitsMSE(weight=1e-6),)  # its gradients are 0 in float16
    updates = []
    for student in (perceptron(tf_keras), _mixed_student()):
        distiller = compiled_distiller(
            student,
            losses=tiny,
            label_loss_weight=0.0,
            optimizer=tf_keras.optimizers.SGD(1e4),
        )
        before = student.get_weights()
        distiller.train_on_batch(inputs, labels)
        updates.append([a - b for a, b in zip(student.get_weights(), before, strict=True)])
    assert isinstance(distiller.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)
    for exact, mixed in zip(*updates, strict=True):
        assert np.abs(exact).max() > 1e-3
        np.testing.assert_allclose(mixed, exact, rtol=0, atol=0.02 * np.abs(exact).max())


def test_losses_are_float32_under_mixed_precision() -> None:
    inputs, labels, _ = examples()
    distiller = compiled_distiller(
        _mixed_student(regularizer="l2"),
        lambda batch: batch[:, :3] * 0 + 400.0,
        (LogitsMSE(),),
    )
    distiller.student.get_layer("rectified").activity_regularizer = tf_keras.regularizers.L2(0.1)
    history = distiller.fit(inputs, labels, verbose=0).history
    assert 1.4e5 < history["logits_mse"][0] < 1.8e5  # float16 ends at 65504
    assert np.isfinite(history["loss"][0])


def test_predictions_are_the_students_under_mixed_precision() -> None:
    inputs = tf_keras.layers.Input([4])
    scaled = tf_keras.layers.Rescaling(1e-6, dtype="float32")(inputs)
    outputs = tf_keras.layers.Dense(3, dtype=tf_keras.mixed_precision.Policy("mixed_float16"))
    student = tf_keras.Model(inputs, outputs(scaled))
    distiller = compiled_distiller(student, losses=(SoftTargets(),))
    large = 1e6 * examples()[0]  # infinite in float16
    predicted = distiller.predict(large, verbose=0)
    assert np.isfinite(predicted).all()
    np.testing.assert_array_equal(predicted, student.predict(large, verbose=0))


# --- what is left alone ---


def _restless(library: Any, name: str, *, units: int = 5) -> Any:
    """A model with everything in it that a pass in training mode changes."""
    inputs = library.layers.Input([4])
    hidden = library.layers.Dense(units, name="hidden")(inputs)
    hidden = library.layers.BatchNormalization(name="normalization")(hidden)
    hidden = library.layers.Dropout(0.5, seed=3)(hidden)
    return library.Model(inputs, library.layers.Dense(3, name="logits")(hidden), name=name)


def _everything(model: Any) -> list[Array]:
    """Weights, and the states of random generators."""
    if isinstance(model, keras.Model):
        return values_of(model.variables)
    generators = {
        id(generator): generator
        for module in model.submodules
        if (generator := getattr(module, "_random_generator", None)) is not None
        and (generator := generator._generator) is not None
    }
    return [*values_of(model.variables), *(g.state.numpy() for g in generators.values())]


@each_library
def test_teacher_is_not_trained_tracked_saved_or_changed(library: Any, tmp_path: Path) -> None:
    teacher = _restless(library, "teacher", units=7)
    before, trainable = _everything(teacher), [layer.trainable for layer in teacher.layers]
    distiller = compiled_distiller(
        _restless(tf_keras, "student"), teacher, (SoftTargets(), Hint("hidden", "hidden"))
    )
    inputs, labels, _ = examples()
    distiller.fit(inputs, labels, validation_data=(inputs, labels), verbose=0)

    assert_equal(_everything(teacher), before)
    assert teacher.trainable
    assert [layer.trainable for layer in teacher.layers] == trainable
    assert not hasattr(teacher, "optimizer") or teacher.optimizer is None
    expected = len(distiller.training_student.weights) + 1  # and the projection
    assert len(distiller.weights) == expected
    taught = {id(variable) for variable in distiller.variables}
    assert not taught & {id(variable) for variable in teacher.variables}
    assert not any("teacher" in module.name for module in distiller.submodules)
    # Optimizer aside, a checkpoint holds what `weights` holds.
    path = tf.train.Checkpoint(model=distiller).write(str(tmp_path / "checkpoint"))
    keys = [key for key, _ in tf.train.list_variables(path) if "optimizer" not in key]
    saved = [key for key in keys if key.endswith("/.ATTRIBUTES/VARIABLE_VALUE")]
    weights = [tf.train.load_variable(path, key) for key in saved]
    for weight in before:
        assert not any(np.array_equal(weight, other) for other in weights if weight.size > 7)
    # And a saved model is the student.
    distiller.save(tmp_path / "saved.keras")
    loaded = tf_keras.models.load_model(tmp_path / "saved.keras")
    assert_equal(loaded.get_weights(), distiller.student.get_weights())


def test_evaluation_changes_nothing_but_metrics() -> None:
    distiller = compiled_distiller(
        _restless(tf_keras, "student"),
        losses=(SoftTargets(), Hint("hidden", "normalization")),
        optimizer="adam",
    )
    inputs, labels, _ = examples()
    distiller.fit(inputs, labels, verbose=0)
    before = _everything(distiller) + values_of(distiller.optimizer.variables)
    first = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    second = distiller.evaluate(inputs, labels, verbose=0, return_dict=True)
    assert_equal(_everything(distiller) + values_of(distiller.optimizer.variables), before)
    assert first == second


# --- logs ---


def test_logs_are_the_losses_the_agreement_and_the_metrics() -> None:
    inputs, labels, sample_weight = examples()
    distiller = compiled_distiller(
        losses=(SoftTargets(), LogitsMSE(name="numbers", weight=0)),
        metrics=("accuracy", tf_keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")),
    )
    data = (inputs, labels, sample_weight)
    history = distiller.fit(*data[:2], validation_data=data, verbose=0).history
    names = [
        "loss",
        "label_loss",
        "soft_targets",
        "numbers",
        "teacher_agreement",
        "accuracy",
        "top_2",
    ]
    assert list(history) == [*names, *(f"val_{name}" for name in names)]
    assert distiller.metrics_names == names
    assert len(distiller.evaluate(inputs, labels, verbose=0)) == len(names)


# --- Keras 3 ---


def test_keras3_student_is_handed_back_trained() -> None:
    student = perceptron(keras)
    before = student.get_weights()
    distiller = compiled_distiller(student)
    inputs, labels, _ = examples()
    distiller.fit(inputs, labels, verbose=0)
    after = student.get_weights()  # without asking the distiller
    assert distiller.student is student
    assert all(np.abs(a - b).max() > 0 for a, b in zip(after, before, strict=True))
    assert_equal(after, distiller.training_student.get_weights())
    np.testing.assert_allclose(
        student.predict(inputs, verbose=0), distiller.predict(inputs, verbose=0), atol=1e-6
    )
    distiller.train_on_batch(inputs, labels)  # not `fit`: the weights come when asked for
    assert_equal(distiller.student.get_weights(), distiller.training_student.get_weights())


def test_keras3_student_holds_the_weights_of_an_interrupted_fit() -> None:
    student = perceptron(keras)
    distiller = compiled_distiller(student)
    inputs, labels, _ = examples()
    with pytest.raises(KeyboardInterrupt):
        distiller.fit(inputs, labels, epochs=5, verbose=0, callbacks=[Interrupt(KeyboardInterrupt)])
    assert_equal(student.get_weights(), distiller.training_student.get_weights())
    assert np.abs(student.get_weights()[0] - perceptron(keras).get_weights()[0]).max() > 0


def test_keras3_optimizer_loss_and_metrics_are_taken() -> None:
    inputs, labels, sample_weight = examples()
    results = []
    for library in (keras, tf_keras):
        distiller = compiled_distiller(
            optimizer=library.optimizers.SGD(0.05, momentum=0.9),
            loss=library.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[library.metrics.SparseCategoricalAccuracy(name="right")],
            weighted_metrics=[library.metrics.SparseCategoricalAccuracy(name="weighted")],
        )
        history = distiller.fit(
            inputs,
            labels,
            sample_weight=sample_weight,
            batch_size=5,
            epochs=2,
            verbose=0,
            shuffle=False,
        ).history
        results.append((history, values_of(distiller.weights)))
    assert_equal_logs(results[0][0], results[1][0])
    assert_equal(results[0][1], results[1][1])


# --- projections ---


def test_projections_go_on_in_another_distiller() -> None:
    inputs, labels, _ = examples()
    first = compiled_distiller(seed=3)
    first.fit(inputs, labels, epochs=2, verbose=0)
    carried = first.projection_weights
    assert {name: array.shape for name, array in carried.items()} == {"hint/0": (5, 7)}
    second = compiled_distiller(first.student, seed=4)
    expected = first.evaluate(inputs, labels, verbose=0, return_dict=True)
    afresh = second.evaluate(inputs, labels, verbose=0, return_dict=True)
    assert abs(afresh["hint"] - expected["hint"]) > 1e-2
    second.set_projection_weights(carried)
    again = second.evaluate(inputs, labels, verbose=0, return_dict=True)
    np.testing.assert_allclose(again["hint"], expected["hint"], rtol=1e-6)
    second.fit(inputs, labels, verbose=0)
    assert not np.array_equal(second.projection_weights["hint/0"], carried["hint/0"])
    assert_equal([carried["hint/0"]], [first.projection_weights["hint/0"]])  # a copy


def test_projections_that_do_not_fit_are_left_out() -> None:
    distiller = compiled_distiller()
    before = distiller.projection_weights["hint/0"]
    for other in ({}, {"hint/0": np.zeros([5, 8])}, {"hint": before + 1, "deep/0": before + 1}):
        distiller.set_projection_weights(other)
        assert_equal([distiller.projection_weights["hint/0"]], [before])
    assert compiled_distiller(losses=(SOFT,)).projection_weights == {}


# --- ways to run ---


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),  # test_schedules.py has one
        {"run_eagerly": True},
        pytest.param({"steps_per_execution": 2}, marks=pytest.mark.slow),
    ],
    ids=["jit_compile", "run_eagerly", "steps_per_execution"],
)
def test_every_way_of_running_is_the_same_training(way: dict[str, Any]) -> None:
    data = tf.data.Dataset.from_tensor_slices(examples(12)).batch(6)
    ours, plain = (
        compiled_distiller(perceptron(tf_keras, normalized=True, activation="softmax"), **settings)
        for settings in (way, {})
    )
    history = ours.fit(data, validation_data=data, verbose=0).history
    # Step by step, by hand.
    for inputs, labels, sample_weight in data:
        logs = plain.train_on_batch(
            inputs, labels, sample_weight, reset_metrics=False, return_dict=True
        )
    assert_equal(values_of(ours.weights), values_of(plain.weights), 1e-5)
    assert_equal_logs({name: history[name][0] for name in logs}, logs, 1e-4)


def test_prediction_is_the_students() -> None:
    distiller = compiled_distiller()
    inputs, *_ = examples()
    expected = logits_of(distiller.student.get_weights(), inputs)
    np.testing.assert_allclose(distiller.predict(inputs, verbose=0), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(distiller(inputs), expected, rtol=1e-4, atol=1e-5)


def test_named_inputs() -> None:
    def model(library: Any) -> Any:
        left = library.layers.Input([4], name="left")
        right = library.layers.Input([2], name="right")
        joined = library.layers.Concatenate()([left, right])
        return library.Model({"left": left, "right": right}, library.layers.Dense(3)(joined))

    inputs, labels, _ = examples()
    data = {"left": inputs, "right": inputs[:, :2]}
    for student, teacher in (
        (model(keras), model(keras)),
        (model(tf_keras), lambda batch: batch["left"][:, :3]),
    ):
        distiller = compiled_distiller(student, teacher, (LogitsMSE(weight=5.0),))
        losses = distiller.fit(data, labels, epochs=3, verbose=0).history["logits_mse"]
        assert losses[2] < losses[0]


# --- errors ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_loss_weight": -0.1}, r"`label_loss_weight` must be .* >= 0\. Received: -0\.1\."),
        ({"label_loss_weight": float("nan")}, r"`label_loss_weight` must be a finite number"),
        ({"label_loss_weight": "0.1"}, r"`label_loss_weight` must be a finite number"),
        ({"label_loss_weight": None}, r"`label_loss_weight` must be a finite number"),
        (
            {"losses": [SoftTargets(weight=0)], "label_loss_weight": 0},
            r"must not all be zero\. Received: label_loss_weight=0 and losses=\[SoftTargets",
        ),
        ({"losses": [], "label_loss_weight": 0}, r"must not all be zero"),
        ({"losses": SoftTargets()}, r"`losses` must be a list of distillation losses"),
        ({"losses": None}, r"`losses` must be a list of distillation losses"),
        ({"losses": ["mse"]}, r"`losses` must be a list of distillation losses"),
        (
            {"losses": [HINT, Hint("hidden", "hidden")]},
            r"`losses` must have different names.* Received: the name 'hint' 2 times\. Pass name=",
        ),
        ({"losses": [SoftTargets(name="label_loss")]}, r"the name 'label_loss' 2 times"),
    ],
)
def test_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    given = {"losses": [SoftTargets()], **settings}
    with pytest.raises(SettingError, match=message):
        td.Distiller(perceptron(tf_keras), wider_teacher(), **given)


def _subclassed_student() -> Any:
    class Subclassed(tf_keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    return Subclassed()


def _hidden_softmax() -> Any:
    inputs = tf_keras.layers.Input([4])
    positive = tf.exp(tf_keras.layers.Dense(3)(inputs))
    return tf_keras.Model(inputs, positive / tf.reduce_sum(positive, axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("student", "teacher", "losses", "error", "message"),
    [
        (
            lambda: perceptron(tf_keras, classes=4),
            wider_teacher,
            [SoftTargets()],
            ModelError,
            r"same classes\. Received: teacher output \(3,\), student output \(4,\)",
        ),
        (
            lambda: perceptron(tf_keras, classes=4),
            lambda: lambda inputs: inputs[:, :3],
            [HINT],
            ModelError,
            r"`teacher` must be a Functional or Sequential model for losses that read its layers",
        ),
        (
            lambda: perceptron(tf_keras),
            wider_teacher,
            [Hint("hidden", "hiden")],
            ModelError,
            r"`hiden` must be a layer of the student.*nearest names are: hidden",
        ),
        (
            lambda: perceptron(tf_keras),
            wider_teacher,
            [Hint("recified", "hidden")],
            ModelError,
            r"`recified` must be a layer of the teacher.*nearest names are: rectified",
        ),
        (
            _hidden_softmax,
            wider_teacher,
            [SoftTargets()],
            ModelError,
            r"`student` must return logits",
        ),
        (
            _subclassed_student,
            wider_teacher,
            [],
            ModelError,
            r"`student` must be a Functional or built",
        ),
        (lambda: "student", wider_teacher, [], ModelError, r"`student` must be .*Received: str"),
        (
            lambda: keras.Sequential([keras.layers.Dense(3)]),
            wider_teacher,
            [],
            ConversionError,
            r"`model` must be built",
        ),
    ],
    ids=[
        "classes",
        "function with features",
        "student's layer",
        "teacher's layer",
        "probabilities",
        "subclassed",
        "no model",
        "unbuilt",
    ],
)
def test_models_that_do_not_fit_are_refused(
    student: Any, teacher: Any, losses: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        td.Distiller(student(), teacher(), losses=losses)


def test_missing_loss_and_labels_are_refused() -> None:
    with pytest.raises(
        SettingError,
        match=r"`loss` must be given while `label_loss_weight` is > 0\. "
        r"Received: loss=None, label_loss_weight=0\.3",
    ):
        compiled_distiller(loss=None)
    inputs, *_ = examples()
    distiller = compiled_distiller()
    before = values_of(distiller.weights)
    for run in (distiller.fit, distiller.evaluate):
        with pytest.raises(DataError, match=r"`data` must have labels while `label_loss_weight`"):
            run(inputs, verbose=0)
    assert_equal(values_of(distiller.weights), before)


@pytest.mark.parametrize("way", [{}, {"run_eagerly": True}], ids=["traced", "eager"])
def test_label_loss_of_the_whole_batch_is_refused(way: dict[str, Any]) -> None:
    def mean(labels: Any, logits: Any) -> Any:
        return tf.reduce_mean(tf.square(logits - tf.cast(labels, tf.float32)))

    inputs, labels, sample_weight = examples()
    distiller = compiled_distiller(loss=mean, metrics=(), **way)
    before = values_of(distiller.weights)
    with pytest.raises(SettingError, match=r"`loss` must return a value per example\. Received: "):
        distiller.fit(inputs, labels, sample_weight=sample_weight, verbose=0)
    assert_equal(values_of(distiller.weights), before)


@each_library
def test_student_that_would_train_the_teacher_is_refused(library: Any) -> None:
    teacher = perceptron(library)
    rectified = teacher.get_layer("rectified").output
    head = library.layers.Dense(3, name="head")
    sharing = library.Model(teacher.input, head(rectified))
    for student, count in ((teacher, 4), (sharing, 2)):
        with pytest.raises(
            ModelError,
            match=rf"`student` must not train weights of the `teacher`\. Received: {count} "
            r"trainable weights that are in both models, such as hidden/kernel.*clone_model",
        ):
            td.Distiller(student, teacher, [SoftTargets()])
    teacher.get_layer("hidden").trainable = False  # shared, but nothing in it is trained
    before = [np.array(weight) for weight in teacher.get_weights()]
    distiller = compiled_distiller(sharing, teacher, (SoftTargets(),))
    inputs, labels, _ = examples()
    kernel = np.array(head.kernel)
    distiller.fit(inputs, labels, verbose=0)
    assert_equal(teacher.get_weights(), before)
    assert not np.array_equal(np.array(head.kernel), kernel)


def test_a_pipelines_copy_may_learn_from_its_original() -> None:
    for library in (keras, tf_keras):
        teacher = perceptron(library)
        before = [np.array(weight) for weight in teacher.get_weights()]
        copy = prepare_student(teacher).model
        distiller = compiled_distiller(copy, teacher, (SoftTargets(),))
        inputs, labels, _ = examples()
        distiller.fit(inputs, labels, verbose=0)
        assert_equal(teacher.get_weights(), before)
        assert not np.array_equal(copy.get_weights()[0], before[0])


def test_loss_of_probabilities_is_refused_for_logits() -> None:
    for library in (keras, tf_keras):
        with pytest.raises(SettingError, match=r"`loss` must have from_logits=True"):
            compiled_distiller(loss=library.losses.SparseCategoricalCrossentropy())
    probabilities = perceptron(tf_keras, activation="softmax")
    with pytest.raises(SettingError, match=r"`loss` must have from_logits=False"):
        compiled_distiller(
            probabilities, loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )

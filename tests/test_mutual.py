"""Students that teach each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import log_probabilities, soft_targets
from networks import examples, logits_of, perceptron

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import ModelError, SettingError
from tfdistill.quantization import Quantization, quantize, quantized_kernels

# Keras 3 saves and loads variables through NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LABEL_LOSS = "sparse_categorical_crossentropy"
SOFT = (losses.SoftTargets(temperature=2.0, weight=0.7),)


def students(count: int = 2, library: Any = tf_keras, **settings: Any) -> list[Any]:
    return [
        perceptron(library, units=5 + place, seed=place, name=f"net_{place}", **settings)
        for place in range(count)
    ]


def mutual(
    models: Any, taught: Any = SOFT, weight: float = 0.5, rate: float = 0.05, **settings: Any
) -> Any:
    distiller = td.MutualDistiller(models, taught, weight)
    label_loss = LABEL_LOSS if weight else None
    distiller.compile(tf_keras.optimizers.SGD(rate), label_loss, **settings)
    return distiller


def test_stored_targets_are_refused(tmp_path: Path) -> None:
    inputs, labels, _ = examples(12)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(4)
    stored = td.store_targets(perceptron(keras, seed=3), data, tmp_path / "targets", verbose=0)
    for run in (mutual(students()).fit, mutual(students()).evaluate):
        with pytest.raises(
            SettingError,
            match=r"`data` must have no stored targets for a td\.MutualDistiller\. Received",
        ):
            run(stored.attach(data), verbose=0)


@pytest.mark.parametrize("count", [2, 3])
def test_each_loss_is_the_papers_formula(count: int) -> None:
    """Equation 8: the label's, and the mean over the others."""
    inputs, labels, weights = examples(12)
    models = students(count)
    logits = [logits_of(model.get_weights(), inputs) for model in models]
    history = (
        mutual(models).fit(inputs, labels, sample_weight=weights, batch_size=12, verbose=0).history
    )
    whole = 0.0
    for place, own in enumerate(logits):
        peers = [soft_targets(other, own, 2.0) for other in logits if other is not own]
        by_label = -log_probabilities(own)[np.arange(12), labels]
        value = np.mean(weights * (0.5 * by_label + 0.7 * np.mean(peers, axis=0)))
        whole += value
        student = f"student_{place + 1}"
        assert history[f"{student}_loss"][0] == pytest.approx(value, rel=1e-5)
        taught = np.mean(weights * np.mean(peers, axis=0))
        assert history[f"{student}_soft_targets"][0] == pytest.approx(taught, rel=1e-5)
        same = np.mean([own.argmax(1) == o.argmax(1) for o in logits if o is not own])
        assert history[f"{student}_peer_agreement"][0] == pytest.approx(same)
    assert history["loss"][0] == pytest.approx(whole, rel=1e-5)


def test_a_step_is_that_of_two_distillers() -> None:
    """Each student learns from the other as it was, which gets nothing from it."""
    inputs, labels, _ = examples(12)
    together = students()
    mutual(together).fit(inputs, labels, batch_size=12, verbose=0)
    for place in (0, 1):
        apart = students()
        alone = td.Distiller(apart[place], apart[1 - place], SOFT, 0.5)
        alone.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS)
        alone.fit(inputs, labels, batch_size=12, verbose=0)
        for ours, expected in zip(together[place].weights, apart[place].weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        start = students()[place].get_weights()[0]
        assert np.abs(together[place].get_weights()[0] - start).max() > 1e-3


def test_a_step_without_lessons_is_that_of_keras() -> None:
    """With what regularizes weights, and with statistics of the batch."""
    inputs, labels, _ = examples(12)
    settings: Any = {"regularizer": "l2", "normalized": True}
    together = students(**settings)
    distiller = mutual(together, (losses.SoftTargets(weight=0),), 1.0, run_eagerly=True)
    distiller.train_on_batch(inputs, labels)
    for ours, alone in zip(together, students(**settings), strict=True):
        by_label = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        alone.compile(tf_keras.optimizers.SGD(0.05), by_label, run_eagerly=True)
        alone.train_on_batch(inputs, labels)
        for weight, expected in zip(ours.weights, alone.weights, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # as of a Distiller, which test_guards.py tests
def test_two_replicas_are_one(two_replicas: Any) -> None:
    inputs, labels, weights = examples(15)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels, weights)).batch(6)
    taught = (*SOFT, losses.DIST(name="dist"), losses.Hint("hidden", "hidden", name="hint"))
    found = []
    for scope in (tf.distribute.get_strategy().scope, two_replicas.scope):
        tf_keras.utils.set_random_seed(0)  # of the projections
        with scope():
            models = students(regularizer="l2")
            distiller = mutual(models, taught, metrics=["accuracy"])
        history = distiller.fit(data, epochs=2, verbose=0).history
        found.append((history, [w for model in models for w in model.get_weights()]))
    (one, weights_of_one), (two, weights_of_two) = found
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    for ours, expected in zip(weights_of_two, weights_of_one, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_students_of_both_kerases_are_taken_out(tmp_path: Path) -> None:
    inputs, labels, _ = examples(60)
    models = [
        perceptron(keras, seed=1, name="first"),
        perceptron(tf_keras, units=9, seed=2, activation="softmax", name="second"),
    ]
    before = [np.array(model.get_weights()[0]) for model in models]
    distiller = mutual(models, metrics=["accuracy", tf_keras.metrics.TopKCategoricalAccuracy(2)])
    assert distiller.notes == (
        "student_2: The student ends in softmax; distillation reads the logits before it.",
    )
    data = inputs, np.eye(3)[labels]
    distiller.compile(tf_keras.optimizers.SGD(0.05), "categorical_crossentropy", ["accuracy"])
    history = distiller.fit(*data, validation_data=data, epochs=8, verbose=0).history
    for place, (model, start) in enumerate(zip(models, before, strict=True)):
        assert distiller.students[place] is model
        assert np.abs(model.get_weights()[0] - start).max() > 1e-3
        name = f"student_{place + 1}"
        assert history[f"{name}_loss"][-1] < history[f"{name}_loss"][0]
        said = np.array(model(inputs)).argmax(axis=1)
        assert history[f"val_{name}_accuracy"][-1] == pytest.approx(np.mean(said == labels))
        model.save(tmp_path / f"{place}.keras")
        library = keras if place == 0 else tf_keras
        loaded = library.models.load_model(tmp_path / f"{place}.keras")
        np.testing.assert_allclose(loaded(inputs), model(inputs), atol=1e-6)
    evaluated = distiller.evaluate(*data, verbose=0, return_dict=True)
    assert evaluated["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    assert [len(output) for output in distiller.predict(inputs, verbose=0)] == [60, 60]


def test_without_labels_they_come_together() -> None:
    inputs, _, _ = examples(60)
    history = mutual(students(), weight=0.0).fit(inputs, epochs=20, verbose=0).history
    assert "student_1_label_loss" not in history
    assert history["student_1_soft_targets"][-1] < 0.2 * history["student_1_soft_targets"][0]


def test_students_teach_each_other_while_they_are_pruned() -> None:
    inputs, labels, _ = examples(60)
    prune = tfmot.sparsity.keras
    schedule = prune.ConstantSparsity(0.5, begin_step=0, frequency=1)
    models = [
        prune.prune_low_magnitude(student, pruning_schedule=schedule) for student in students()
    ]
    distiller = mutual(models)
    distiller.fit(inputs, labels, epochs=2, verbose=0, callbacks=[prune.UpdatePruningStep()])
    for student in distiller.students:
        stripped = prune.strip_pruning(student)
        for layer in ("hidden", "logits"):
            kernel = stripped.get_layer(layer).get_weights()[0]
            assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_students_teach_each_other_while_they_are_quantized() -> None:
    inputs, labels, _ = examples(60)
    models = [quantize(each, Quantization(), sparse=False).model for each in students()]
    before = [quantized_kernels(model) for model in models]
    distiller = mutual(models)
    history = distiller.fit(inputs, labels, epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    logs = distiller.evaluate(inputs, labels, batch_size=60, verbose=0, return_dict=True)
    one, other = (model(inputs).numpy() for model in models)
    for name, taught in (
        ("student_1", soft_targets(other, one, 2.0)),
        ("student_2", soft_targets(one, other, 2.0)),
    ):
        assert logs[f"{name}_soft_targets"] == pytest.approx(taught.mean(), rel=1e-4)
    for model, kernels in zip(models, before, strict=True):
        for layer, kernel in quantized_kernels(model).items():
            assert np.abs(kernel - kernels[layer]).max() > 1e-3


def test_projections_are_trained_and_are_no_part_of_a_student() -> None:
    inputs, labels, _ = examples(60)
    models = students()
    counts = [model.count_params() for model in models]
    hint = losses.Hint("rectified", "rectified", weight=0.1)
    distiller = mutual(models, [hint])
    assert len(distiller.trainable_variables) == 2 * 4 + 2  # a projection each way: widths 5 and 6
    history = distiller.fit(inputs, labels, epochs=10, verbose=0).history
    assert history["student_1_hint"][-1] < history["student_1_hint"][0]
    assert [model.count_params() for model in distiller.students] == counts


def test_the_lines_of_the_methods_page_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("run by tests/test_mutual.py. -->\n```python\n")[1].split("```")[0]
    small, large = students()
    train = tf.data.Dataset.from_tensor_slices(examples(20)[:2]).batch(10)
    known: dict[str, Any] = {"td": td, "small": small, "large": large, "train": train}
    exec(lines, known)
    assert (known["student"], known["peer"]) == (small, large)


def test_what_makes_no_sense_is_refused() -> None:
    one, other = students()
    with pytest.raises(SettingError, match=r"`students` must be a list of two students or more"):
        td.MutualDistiller([one])
    with pytest.raises(SettingError, match=r"`students` must be a list of two students or more"):
        td.MutualDistiller(one)
    with pytest.raises(ModelError, match="must have the same classes"):
        td.MutualDistiller([one, perceptron(tf_keras, classes=4)])
    with pytest.raises(ModelError, match=r"each have weights of their own\. Received: 4 weights"):
        td.MutualDistiller([one, one])
    wider = tf_keras.Sequential([tf_keras.layers.Input([7]), tf_keras.layers.Dense(3)])
    with pytest.raises(ModelError, match="must take the same inputs"):
        td.MutualDistiller([one, wider])
    with pytest.raises(ModelError, match=r"`nowhere` must be a layer of the student"):
        td.MutualDistiller([one, other], [losses.Hint("nowhere", "hidden")])
    with pytest.raises(SettingError, match="`loss` must be given while"):
        td.MutualDistiller([one, other]).compile("adam")
    with pytest.raises(SettingError, match=r"must be saved student by student.*students\[0\]"):
        td.MutualDistiller([one, other]).save("both.keras")
    with pytest.raises(SettingError, match="`callbacks` must be callbacks of tf_keras"):
        mutual(students()).fit(*examples(6)[:2], callbacks=[keras.callbacks.Callback()])

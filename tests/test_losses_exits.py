"""Exits of a student's own layers, taught by its end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import Array, finite_differences, log_probabilities, soft_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import examples, perceptron

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError

# Keras 3 saves and loads variables through NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES, WIDTHS = 3, {"map": (2, 5, 4), "flat": (6,)}
SHAPES = losses.Shapes((CLASSES,), WIDTHS)


def said(seed: int = 0, scale: float = 1.0) -> losses.Outputs:
    rng = np.random.default_rng(seed)
    return losses.Outputs(
        tf.constant(scale * rng.normal(size=(8, CLASSES)), tf.float32),
        {n: tf.constant(scale * rng.normal(size=(8, *s)), tf.float32) for n, s in WIDTHS.items()},
    )


def reference(loss: Any, student: Any, weights: list[Array], labels: Array) -> Array:
    """By the formula, in float64, from the kernels and biases of the exits."""
    batch = len(labels)
    total = np.zeros(batch)
    for place, layer in enumerate(loss.layers):
        kernel, bias = (np.asarray(w, np.float64) for w in weights[2 * place : 2 * place + 2])
        values = np.asarray(student.features[layer], np.float64)
        means = values.reshape(batch, -1, values.shape[-1]).mean(axis=1)
        logits = means @ kernel + bias
        taught = soft_targets(student.logits, logits, loss.temperature)
        own = -log_probabilities(logits)[np.arange(batch), labels]
        total += loss.label_weight * own + (1 - loss.label_weight) * taught
    return total / len(loss.layers)


def with_random_exits(loss: Any, shapes: losses.Shapes, rng: Any) -> Any:
    exits = loss.build(shapes, shapes)
    exits.set_weights([rng.normal(size=weight.shape) for weight in exits.get_weights()])
    return exits


@settings(max_examples=60, deadline=None, derandomize=True)  # the first calls are slow
@given(
    batch=st.integers(1, 5),
    classes=st.integers(1, 5),
    layers=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3),
    temperature=st.floats(0.5, 10),
    label_weight=st.sampled_from([0.0, 0.7, 1.0]),
    one_hot=st.booleans(),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_the_value_is_the_formula(
    batch: int,
    classes: int,
    layers: list[list[int]],
    temperature: float,
    label_weight: float,
    one_hot: bool,
    seed: int,
    scale: float,
) -> None:
    rng = np.random.default_rng(seed)
    sizes = {f"layer_{place}": tuple(size) for place, size in enumerate(layers)}
    loss = losses.EarlyExits([*sizes], temperature, label_weight)
    assert loss.needs_labels == (label_weight > 0)
    exits = with_random_exits(loss, losses.Shapes((classes,), sizes), rng)
    student = losses.Outputs(
        tf.constant(rng.normal(size=(batch, classes), scale=scale), tf.float32),
        {
            name: tf.constant(rng.normal(size=(batch, *size), scale=scale), tf.float32)
            for name, size in sizes.items()
        },
    )
    labels = rng.integers(0, max(2, classes), batch)
    given = np.eye(classes)[labels] if one_hot and classes > 1 else labels
    value = loss.call(said(), student, exits, labels=given)
    assert value.dtype == tf.float32
    expected = reference(loss, student, exits.get_weights(), labels)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6 * temperature**2)


@pytest.mark.parametrize("label_weight", [0.0, 0.7])
def test_gradient_equals_finite_differences(label_weight: float) -> None:
    """To the layers, and to the exits themselves."""
    rng = np.random.default_rng(2)
    loss = losses.EarlyExits([*WIDTHS], 2.0, label_weight)
    student, labels = said(), rng.integers(0, CLASSES, 8)
    exits = with_random_exits(loss, SHAPES, rng)
    weights = exits.get_weights()
    with tf.GradientTape() as tape:
        tape.watch(student.features)
        total = tf.reduce_sum(loss.call(said(9), student, exits, labels=labels))
    to_layers, to_exits = tape.gradient(total, (student.features, exits.trainable_weights))

    def of_layer(name: str) -> Any:
        def formula(_: Any, values: Array) -> Array:
            moved = student._replace(features={**student.features, name: values})
            return reference(loss, moved, weights, labels)

        return formula

    def of_weight(place: int) -> Any:
        def formula(_: Any, values: Array) -> Array:
            moved = [*weights[:place], values, *weights[place + 1 :]]
            return reference(loss, student, moved, labels)

        return formula

    found = [(of_layer(n), student.features[n].numpy(), to_layers[n]) for n in WIDTHS]
    found += [(of_weight(i), w, to_exits[i]) for i, w in enumerate(weights)]
    assert len(found) == 6
    for formula, values, ours in found:
        expected = finite_differences(formula, None, values)
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_end_is_not_taught_and_the_layers_are() -> None:
    loss, student = losses.EarlyExits(["map", "flat"], label_weight=0.0), said()
    exits = loss.build(SHAPES, SHAPES)
    with tf.GradientTape() as tape:
        watched = {"end": student.logits, **student.features}
        tape.watch(watched)
        value = loss.call(said(9), student, exits)
    gradients = tape.gradient(value, watched)
    assert gradients["end"] is None
    assert all(np.abs(gradients[layer]).max() > 1e-4 for layer in WIDTHS)


def test_it_is_finite_at_extreme_values() -> None:
    loss = losses.EarlyExits(["map", "flat"])
    value = loss.call(said(9), said(scale=1e4), loss.build(SHAPES, SHAPES), labels=np.zeros(8, int))
    assert np.isfinite(value).all()


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_layer_learns_beside_the_student(library: Any, tmp_path: Path) -> None:
    inputs, labels, _ = examples(60)
    student = perceptron(library, units=8, seed=3)
    names = [weight.name for weight in student.weights]
    taught = [losses.EarlyExits(["rectified"], label_weight=0.5)]
    distiller = td.Distiller(student, perceptron(keras, seed=4, name="teacher"), taught, 0.5)
    distiller.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    history = distiller.fit(inputs, labels, epochs=15, batch_size=20, verbose=0).history
    assert history["early_exits"][-1] < 0.7 * history["early_exits"][0]
    assert set(distiller.projection_weights) == {"early_exits/0", "early_exits/1"}
    assert [weight.name for weight in distiller.student.weights] == names
    distiller.save(tmp_path / "student.keras")
    loaded = library.models.load_model(tmp_path / "student.keras")
    assert [w.shape for w in loaded.get_weights()] == [w.shape for w in student.get_weights()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "block"}, "`layers` must be a list of different names of layers. Received: 'b"),
        ({"layers": []}, "`layers` must be a list of different names"),
        ({"layers": ["a", "a"]}, "`layers` must be a list of different names"),
        ({"layers": ["a"], "label_weight": 1.5}, "`label_weight` must be from 0 to 1. Received: 1"),
        ({"layers": ["a"], "label_weight": -1}, "`label_weight` must be >= 0"),
        ({"layers": ["a"], "temperature": 0}, "`temperature` must be > 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        losses.EarlyExits(**settings)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            losses.Shapes((7, CLASSES), WIDTHS),
            "must have logits [batch, classes] to teach its earlier layers. "
            "Received: student logits [batch, 7, 3]",
        ),
        (
            losses.Shapes((CLASSES,), {**WIDTHS, "flat": (None,)}),
            "`layers` must put out [batch, ..., width] with a known width. "
            "Received: layer 'flat' [batch, ?]",
        ),
        (
            losses.Shapes((CLASSES,), WIDTHS, "sigmoid"),
            "`student` must end in a softmax, or in logits, for the loss 'early_exits'. "
            "Received: sigmoid of 3 units",
        ),
    ],
)
def test_what_has_no_exit_is_refused(shapes: losses.Shapes, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        losses.EarlyExits(["flat"]).build(SHAPES, shapes)

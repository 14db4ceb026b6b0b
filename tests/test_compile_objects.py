from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.compile_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)
from tfdistill.errors import SettingError

schedules = keras.optimizers.schedules
OPTIMIZERS: list[Callable[[], Any]] = [
    lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda: keras.optimizers.Adam(0.1, beta_1=0.8, amsgrad=True, clipnorm=0.5),
    lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    lambda: keras.optimizers.RMSprop(0.1, rho=0.8, momentum=0.5, centered=True),
    lambda: keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.2),
    lambda: keras.optimizers.Adadelta(0.5, rho=0.9),
    lambda: keras.optimizers.Adamax(0.1),
    lambda: keras.optimizers.Nadam(0.1),
    lambda: keras.optimizers.Ftrl(0.1, l1_regularization_strength=0.01),
    lambda: keras.optimizers.Lion(0.01, weight_decay=0.1),
    lambda: keras.optimizers.Adafactor(0.1),
    lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.3),
    lambda: keras.optimizers.SGD(0.1, clipvalue=0.2),
    lambda: keras.optimizers.SGD(schedules.CosineDecay(0.1, 4, warmup_target=0.3, warmup_steps=2)),
    lambda: keras.optimizers.SGD(schedules.CosineDecayRestarts(0.1, 2)),
    lambda: keras.optimizers.SGD(schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True)),
    lambda: keras.optimizers.SGD(schedules.InverseTimeDecay(0.1, 2, 0.5)),
    lambda: keras.optimizers.SGD(schedules.PiecewiseConstantDecay([1, 3], [0.3, 0.2, 0.1])),
    lambda: keras.optimizers.SGD(schedules.PolynomialDecay(0.1, 3, power=2.0, cycle=True)),
]  # fmt: skip

random = np.random.default_rng(0)
LOGITS = random.normal(size=(6, 4)).astype("float32")
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype("float32")
LABELS = random.integers(0, 4, size=(6, 1))
ONE_HOT = np.eye(4, dtype="float32")[LABELS[:, 0]]
BINARY = random.integers(0, 2, size=(6, 4)).astype("float32")
WEIGHTS = np.array([0.0, 0.5, 1.0, 2.0, 1.0, 3.0], "float32")

losses = keras.losses
LOSSES: list[tuple[Callable[[], Any], Any, Any]] = [
    (lambda: losses.SparseCategoricalCrossentropy(from_logits=True), LABELS, LOGITS),
    (lambda: losses.SparseCategoricalCrossentropy(ignore_class=1), LABELS, PROBABILITIES),
    (lambda: losses.CategoricalCrossentropy(True, label_smoothing=0.2), ONE_HOT, LOGITS),
    (lambda: losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), BINARY, LOGITS),
    (lambda: losses.BinaryFocalCrossentropy(True, gamma=1.5), BINARY, PROBABILITIES),
    (lambda: losses.CategoricalFocalCrossentropy(alpha=0.3), ONE_HOT, PROBABILITIES),
    (lambda: losses.MeanSquaredError(reduction="sum"), ONE_HOT, LOGITS),
    (lambda: losses.MeanSquaredError(reduction="mean"), ONE_HOT, LOGITS),
    (lambda: losses.MeanSquaredError(reduction=None), ONE_HOT, LOGITS),
    (lambda: losses.MeanAbsoluteError(), ONE_HOT, LOGITS),
    (lambda: losses.MeanAbsolutePercentageError(), ONE_HOT + 1, LOGITS),
    (lambda: losses.MeanSquaredLogarithmicError(), ONE_HOT, PROBABILITIES),
    (lambda: losses.KLDivergence(), ONE_HOT, PROBABILITIES),
    (lambda: losses.Poisson(), ONE_HOT, PROBABILITIES),
    (lambda: losses.CosineSimilarity(), ONE_HOT, LOGITS),
    (lambda: losses.Huber(delta=2.0), ONE_HOT, LOGITS),
    (lambda: losses.LogCosh(), ONE_HOT, LOGITS),
    (lambda: losses.Hinge(), BINARY, LOGITS),
    (lambda: losses.SquaredHinge(), BINARY, LOGITS),
    (lambda: losses.CategoricalHinge(), ONE_HOT, LOGITS),
]  # fmt: skip

metrics = keras.metrics
METRICS: list[tuple[Callable[[], Any], Any, Any]] = [
    (lambda: metrics.SparseCategoricalAccuracy(), LABELS, LOGITS),
    (lambda: metrics.CategoricalAccuracy(name="right"), ONE_HOT, LOGITS),
    (lambda: metrics.BinaryAccuracy(threshold=0.3), BINARY, PROBABILITIES),
    (lambda: metrics.SparseTopKCategoricalAccuracy(k=2), LABELS, LOGITS),
    (lambda: metrics.TopKCategoricalAccuracy(k=2), ONE_HOT, LOGITS),
    (lambda: metrics.SparseCategoricalCrossentropy(from_logits=True), LABELS, LOGITS),
    (lambda: metrics.CategoricalCrossentropy(label_smoothing=0.1), ONE_HOT, PROBABILITIES),
    (lambda: metrics.BinaryCrossentropy(from_logits=True), BINARY, LOGITS),
    (lambda: metrics.AUC(curve="PR", num_thresholds=50), BINARY, PROBABILITIES),
    (lambda: metrics.Precision(thresholds=0.3, class_id=1), BINARY, PROBABILITIES),
    (lambda: metrics.Recall(top_k=2), BINARY, PROBABILITIES),
    (lambda: metrics.F1Score(average="macro", threshold=0.3), BINARY, PROBABILITIES),
    (lambda: metrics.MeanSquaredError(), ONE_HOT, LOGITS),
    (lambda: metrics.RootMeanSquaredError(), ONE_HOT, LOGITS),
    (lambda: metrics.KLDivergence(), ONE_HOT, PROBABILITIES),
    (lambda: metrics.OneHotMeanIoU(num_classes=4), ONE_HOT, LOGITS),
]  # fmt: skip


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_optimizer_takes_the_same_steps(make: Callable[[], Any]) -> None:
    original = make()
    converted = to_tf_keras_optimizer(original)
    assert isinstance(converted, tf_keras.optimizers.Optimizer)
    start = np.random.default_rng(1).normal(size=(3, 2)).astype("float32")
    ours, theirs = tf.Variable(start), keras.Variable(start)
    for step in range(5):
        gradient = tf.constant(np.random.default_rng(step).normal(size=(3, 2)), tf.float32)
        converted.apply_gradients([(gradient, ours)])
        original.apply_gradients([(gradient, theirs)])
    assert np.abs(ours.numpy() - start).max() > 1e-3
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "labels", "outputs"), LOSSES)
def test_loss_has_the_same_value(make: Callable[[], Any], labels: Any, outputs: Any) -> None:
    original = make()
    converted = to_tf_keras_loss(original)
    assert isinstance(converted, tf_keras.losses.Loss)
    assert converted.name == original.name
    for weights in (None, WEIGHTS):
        np.testing.assert_allclose(
            converted(labels, outputs, weights), original(labels, outputs, weights), rtol=1e-5
        )


@pytest.mark.parametrize(
    "original", [losses.CosineSimilarity(axis=0), losses.Huber(delta=0.3)], ids=["axis", "delta"]
)
def test_settings_that_keras3_leaves_out_of_the_config_are_kept(original: Any) -> None:
    converted = to_tf_keras_loss(original)
    np.testing.assert_allclose(converted(ONE_HOT, LOGITS), original(ONE_HOT, LOGITS), rtol=1e-5)
    naive = type(converted)(name=original.name)
    assert abs(naive(ONE_HOT, LOGITS) - original(ONE_HOT, LOGITS)) > 1e-2


@pytest.mark.parametrize(("make", "labels", "outputs"), METRICS)
def test_metric_has_the_same_value(make: Callable[[], Any], labels: Any, outputs: Any) -> None:
    original = make()
    converted = to_tf_keras_metric(original)
    assert isinstance(converted, tf_keras.metrics.Metric)
    assert converted.name == original.name
    for metric in (converted, original):
        metric.update_state(labels, outputs)
        metric.update_state(labels[::-1], outputs)
    np.testing.assert_allclose(converted.result(), original.result(), rtol=1e-5)


def test_a_metrics_state_is_not_carried_over() -> None:
    original = keras.metrics.SparseCategoricalAccuracy()
    original.update_state(LABELS, LOGITS)
    assert to_tf_keras_metric(original).result() == 0.0


def test_averaging_of_weights_is_carried_over() -> None:
    converted = to_tf_keras_optimizer(
        keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    )
    config = converted.get_config()
    assert (config["use_ema"], config["ema_momentum"]) == (True, 0.5)
    assert config["ema_overwrite_frequency"] == 2


def test_what_tf_keras_understands_passes_through() -> None:
    def own(labels: Any, outputs: Any) -> Any:
        return tf.reduce_mean(tf.square(labels - outputs), axis=-1)

    for value in (None, "adam", tf_keras.optimizers.Adam(), tf_keras.optimizers.legacy.SGD()):
        assert to_tf_keras_optimizer(value) is value
    for value in (None, "mse", tf_keras.losses.Huber(), own, tf_keras.losses.mse):
        assert to_tf_keras_loss(value) is value
    for value in (None, "accuracy", "acc", "mse", tf_keras.metrics.AUC(), own):
        assert to_tf_keras_metric(value) is value


def test_functions_and_structures_are_converted() -> None:
    loss = {"a": keras.losses.mean_squared_error, "b": [keras.losses.Huber(), None]}
    converted = to_tf_keras_loss(loss)
    assert converted["a"] is tf_keras.losses.mean_squared_error
    assert isinstance(converted["b"][0], tf_keras.losses.Huber)
    assert converted["b"][1] is None
    metric = to_tf_keras_metric([("acc", keras.metrics.categorical_accuracy)])
    assert metric == [("acc", tf_keras.metrics.categorical_accuracy)]


class OwnOptimizer(keras.optimizers.SGD):
    """Outside of Keras."""


class OwnLoss(keras.losses.Loss):
    def call(self, labels: Any, outputs: Any) -> Any:
        return outputs


class OwnMetric(keras.metrics.Mean):
    """Outside of Keras."""


def excluding() -> Any:
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


UNKNOWN = "must have a name that tf_keras knows. Received:"


@pytest.mark.parametrize(
    ("convert", "make", "message"),
    [
        (
            to_tf_keras_optimizer,
            lambda: "lamb",
            f"`optimizer` {UNKNOWN} lamb",
        ),
        (to_tf_keras_optimizer, lambda: 0.1, "must be a Keras or tf_keras optimizer, or the name"),
        (to_tf_keras_optimizer, keras.optimizers.Lamb, r"Received: Lamb \(tf_keras has none"),
        (to_tf_keras_optimizer, OwnOptimizer, r"OwnOptimizer \(it is not one of Keras' own\)"),
        (
            to_tf_keras_optimizer,
            lambda: keras.optimizers.SGD(gradient_accumulation_steps=4),
            "its `gradient_accumulation_steps=4` has no counterpart",
        ),
        (
            to_tf_keras_optimizer,
            lambda: keras.optimizers.SGD(loss_scale_factor=8.0),
            "its `loss_scale_factor=8.0` has no counterpart",
        ),
        (to_tf_keras_optimizer, excluding, "must not exclude variables from weight decay"),
        (
            to_tf_keras_optimizer,
            lambda: keras.optimizers.SGD(learning_rate=lambda: 0.1),
            "`learning_rate` must be a number or a learning rate schedule",
        ),
        (
            to_tf_keras_loss,
            lambda: "dice",
            f"`loss` {UNKNOWN} dice",
        ),
        (to_tf_keras_loss, keras.losses.Dice, r"Received: Dice \(tf_keras has none of this name"),
        (to_tf_keras_loss, lambda: keras.losses.dice, r"Received: dice \(tf_keras has none"),
        (to_tf_keras_loss, OwnLoss, r"OwnLoss \(it is not one of Keras' own\).*pass a tf_keras"),
        (
            to_tf_keras_loss,
            lambda: keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
            "`reduction` must be one of .*Received: mean_with_sample_weight",
        ),
        (
            to_tf_keras_metric,
            lambda: "pearson",
            f"`metric` {UNKNOWN} pearson",
        ),
        (to_tf_keras_metric, keras.metrics.PearsonCorrelation, r"PearsonCorrelation \(tf_keras"),
        (to_tf_keras_metric, OwnMetric, r"OwnMetric \(it is not one of Keras' own\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_what_tf_keras_lacks_is_refused(
    convert: Callable[[Any], Any], make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        convert(make())

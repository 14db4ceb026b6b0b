"""Optimizers, losses and metrics of Keras 3 rebuilt as tf_keras ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.config_values import NoCounterpartError, fit_config
from tfdistill.errors import SettingError

__all__ = ["to_tf_keras_loss", "to_tf_keras_metric", "to_tf_keras_optimizer"]

# Keras 3's "mean" is what both call "sum_over_batch_size".
_REDUCTIONS = {
    None: "none",
    "none": "none",
    "sum": "sum",
    "mean": "sum_over_batch_size",
    "sum_over_batch_size": "sum_over_batch_size",
}
# `Model.compile` understands these, though no metric has such a name.
_METRIC_WORDS = {"accuracy", "acc", "crossentropy", "ce"}


def to_tf_keras_optimizer(optimizer: Any) -> Any:
    """A Keras 3 optimizer as a new tf_keras optimizer with the same settings.

    The state (momenta, the count of steps) is not carried over: the new one starts afresh.
    Settings mean the same in both, but for one detail of `use_ema`: tf_keras begins the average
    with the weights before the first step, Keras 3 with those after it.

    Args:
        optimizer: A Keras 3 optimizer, its learning rate a number or one of Keras' schedules.
            None, a name, or a tf_keras optimizer is returned as it is.

    Returns:
        The tf_keras optimizer.

    Raises:
        SettingError: tf_keras has no such optimizer, or lacks one of its settings.

    Example:
        >>> to_tf_keras_optimizer(keras.optimizers.Adam(1e-3, clipnorm=1.0)).clipnorm
        1.0
    """
    if isinstance(optimizer, str):
        return _known_name(optimizer, tf_keras.optimizers.get, "optimizer")
    ours = (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer)
    if optimizer is None or isinstance(optimizer, ours):
        return optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise SettingError(
            "`optimizer` must be a Keras or tf_keras optimizer, or the name of one.",
            received=optimizer,
        )
    excluded = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    if any(getattr(optimizer, attribute, None) for attribute in excluded):
        raise SettingError(
            "`optimizer` must not exclude variables from weight decay when it is a Keras 3 one.",
            received=optimizer.name,
            hint="Make it a tf_keras optimizer and exclude them there.",
        )
    config = optimizer.get_config()
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = _rebuild(
            rate, rate.get_config(), "schedules", "learning rate schedule"
        )
    elif not isinstance(config["learning_rate"], float | int):
        raise SettingError(
            "`learning_rate` must be a number or a learning rate schedule of Keras.",
            received=rate,
            hint="Write the function as a tf_keras LearningRateSchedule, in a tf_keras optimizer.",
        )
    return _rebuild(optimizer, config, "optimizers", "optimizer")


def to_tf_keras_loss(loss: Any) -> Any:
    """A Keras 3 loss as a new tf_keras loss with the same settings.

    Args:
        loss: A Keras 3 loss, an instance or one of Keras' functions. None, a name, a tf_keras
            loss and any other function are returned as they are. A list, tuple or dict of
            losses (a model with several outputs) is converted item by item.

    Returns:
        The tf_keras loss, in the structure that it came in.

    Raises:
        SettingError: tf_keras has no such loss, or lacks one of its settings.

    Example:
        >>> to_tf_keras_loss(keras.losses.Huber(delta=2.0)).get_config()["delta"]
        2.0
    """
    if isinstance(loss, str):
        return _known_name(loss, tf_keras.losses.get, "loss")
    if isinstance(loss, keras.losses.Loss):
        config = _config(loss)
        if config["reduction"] not in _REDUCTIONS:
            raise SettingError(
                f"`reduction` must be one of {sorted(filter(None, _REDUCTIONS))} or None.",
                received=config["reduction"],
                hint="tf_keras has no other; choose one of these.",
            )
        config["reduction"] = _REDUCTIONS[config["reduction"]]
        return _rebuild(loss, config, "losses", "loss")
    return _function_or_structure(loss, to_tf_keras_loss, "losses", "loss")


def to_tf_keras_metric(metric: Any) -> Any:
    """A Keras 3 metric as a new tf_keras metric with the same settings, and no state.

    Args:
        metric: A Keras 3 metric, an instance or one of Keras' functions. None, a name, a
            tf_keras metric and any other function are returned as they are. A list, tuple or
            dict of metrics is converted item by item.

    Returns:
        The tf_keras metric, in the structure that it came in.

    Raises:
        SettingError: tf_keras has no such metric, or lacks one of its settings.

    Example:
        >>> to_tf_keras_metric(keras.metrics.SparseTopKCategoricalAccuracy(k=3)).name
        'sparse_top_k_categorical_accuracy'
    """
    if isinstance(metric, str):
        if metric in _METRIC_WORDS:
            return metric
        return _known_name(metric, tf_keras.metrics.get, "metric")
    if isinstance(metric, keras.metrics.Metric):
        config = _config(metric)
        if not tf.as_dtype(config["dtype"]).is_floating:
            del config["dtype"]  # Keras 3 counts pixels in integers, tf_keras divides by them
        return _rebuild(metric, config, "metrics", "metric")
    return _function_or_structure(metric, to_tf_keras_metric, "metrics", "metric")


def _config(source: Any) -> dict[str, Any]:
    # `get_config` alone forgets `delta` of Huber and `axis` of some others (Keras 3.15).
    return {**getattr(source, "_fn_kwargs", {}), **source.get_config()}


def _known_name(name: str, get: Callable[[str], Any], kind: str) -> str:
    try:
        with tf.Graph().as_default():  # else the user's own would be called auc_1
            found = get(name)
    except ValueError:
        found = name
    if isinstance(found, str):  # an unknown metric comes back as it was given
        raise SettingError(
            f"`{kind}` must have a name that tf_keras knows.",
            received=name,
            hint=f"Students are trained by tf_keras; name one of its own, or pass a {kind} object.",
        )
    return name


def _function_or_structure(
    value: Any, convert: Callable[[Any], Any], module: str, kind: str
) -> Any:
    if isinstance(value, dict):
        return {key: convert(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([convert(item) for item in value])
    if str(getattr(value, "__module__", "")).startswith("keras."):  # a function of Keras 3
        counterpart = getattr(getattr(tf_keras, module), value.__name__, None)
        if counterpart is None:
            raise _no_counterpart(value.__name__, kind, "tf_keras has none of this name")
        return counterpart
    return value


def _rebuild(source: Any, config: dict[str, Any], module: str, kind: str) -> Any:
    name = type(source).__name__
    here, there = keras, tf_keras
    if module == "schedules":
        here, there = keras.optimizers, tf_keras.optimizers
    if type(source) is not getattr(getattr(here, module), name, None):
        raise _no_counterpart(name, kind, "it is not one of Keras' own")
    target = getattr(getattr(there, module), name, None)
    if target is None:
        raise _no_counterpart(name, kind, "tf_keras has none of this name")
    try:
        return target(**fit_config(config, type(source), target))
    except (NoCounterpartError, TypeError) as error:
        raise _no_counterpart(name, kind, str(error)) from error


def _no_counterpart(name: str, kind: str, reason: str) -> SettingError:
    return SettingError(
        f"`{kind}` must be one that tf_keras has too.",
        received=f"{name} ({reason})",
        hint=f"Students are trained by tf_keras; pass a tf_keras {kind} in its place.",
    )

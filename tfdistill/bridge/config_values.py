"""What stands in a layer's config, rebuilt in the other Keras.

Activations, initializers, regularizers and constraints are rebuilt as objects of the other Keras;
an argument that the other Keras lacks may be left out only where it holds its default. Used by
`layer_configs` for layers and by `compile_objects` for losses and metrics.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.counterparts import Counterpart, counterpart_of

Config = dict[str, Any]
CustomObjects = Mapping[str, Any]


class NoCounterpartError(Exception):
    """Tells why one object cannot be rebuilt; the bridge gathers these into one error."""


# --- activations ---------------------------------------------------------------------------


@tf_keras.saving.register_keras_serializable(package="tfdistill")
def hard_sigmoid(x: Any) -> Any:
    """Keras 3's `hard_sigmoid`, relu6(x + 3) / 6; the one of tf_keras is clip(x / 5 + 1/2)."""
    return tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.saving.register_keras_serializable(package="tfdistill")
def log_softmax(x: Any) -> Any:
    """`tf.nn.log_softmax`, under a name that tf_keras finds again when it clones a layer."""
    return tf.nn.log_softmax(x)


@tf_keras.saving.register_keras_serializable(package="tfdistill")
def hard_silu(x: Any) -> Any:
    """Keras 3's `hard_silu` (also called hard swish), x relu6(x + 3) / 6."""
    return x * hard_sigmoid(x)


_SAME_ACTIVATIONS = (
    *("elu", "exponential", "gelu", "leaky_relu", "linear", "mish", "relu"),
    *("relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh"),
)
_TF_KERAS_ACTIVATIONS: dict[str, Any] = {
    **{name: name for name in _SAME_ACTIVATIONS},
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "log_softmax": log_softmax,
}
_KERAS3_ACTIVATIONS: dict[str, Any] = {
    **{name: name for name in _SAME_ACTIVATIONS},
    "tfdistill>hard_sigmoid": "hard_sigmoid",
    "tfdistill>hard_silu": "hard_silu",
    "tfdistill>log_softmax": "log_softmax",
}


def _rebuild_activation(value: Any, live: Any, to_tf_keras: bool, custom: CustomObjects) -> Any:
    names = _TF_KERAS_ACTIVATIONS if to_tf_keras else _KERAS3_ACTIVATIONS
    name = value
    if isinstance(value, dict):  # a function is serialized by its name, in "config"
        name = value.get("config") if value.get("class_name") == "function" else None
    if isinstance(name, str) and name in custom:
        return custom[name]
    registered = counterpart_of(live)
    if registered is not None:
        return registered.tf_keras if to_tf_keras else registered.keras3
    if isinstance(name, str):
        if name in names:
            return names[name]
        raise NoCounterpartError(f"its activation {name!r} has no counterpart")
    raise NoCounterpartError("its activation is neither a name nor a named function")


# --- configs in general --------------------------------------------------------------------


def accepted_arguments(cls: type) -> dict[str, Any]:
    """The arguments that `cls` takes or hands on to its base classes, with their defaults."""
    arguments: dict[str, Any] = {}
    for base in cls.__mro__[:-1]:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            for name, parameter in parameters.items():
                arguments.setdefault(name, parameter.default)
            if all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
                break
    return arguments


def fit_config(config: Config, source: type, target: type) -> Config:
    """Leaves out of `config` what `target` does not take, where that changes nothing.

    Args:
        config: The config of an object of class `source`.
        source: The class that the config came from.
        target: The class of the other Keras that is to be built from it.

    Returns:
        The config with only arguments that `target` takes.

    Raises:
        NoCounterpartError: `target` lacks an argument that is set to more than its default.
    """
    accepted, defaults = accepted_arguments(target), accepted_arguments(source)
    fitted = {}
    for key, value in config.items():
        default = defaults.get(key, False)
        default = list(default) if isinstance(default, tuple) else default  # as in a file
        given = list(value) if isinstance(value, tuple) else value
        if key in accepted or key == "activity_regularizer":
            fitted[key] = value
        elif key == "trainable" and value:
            continue  # the default of every layer
        elif given not in (None, "channels_last") and given != default:
            raise NoCounterpartError(f"its `{key}={value!r}` has no counterpart")
    return fitted


def _rebuild_object(value: Any, live: Any, source: Any, target: Any, custom: CustomObjects) -> Any:
    """An initializer, regularizer or constraint, from one Keras' module to the other's."""
    if hasattr(value, "get_config"):  # a layer of one's own may not serialize it
        value, live = {"class_name": type(value).__name__, "config": value.get_config()}, value
    if not isinstance(value, dict):
        return value
    name = value["class_name"]
    if name in custom:
        return custom[name](**value["config"])
    registered = counterpart_of(type(live))
    if registered is not None:
        return rebuild_registered(registered, value["config"], live)
    if value.get("registered_name") or not hasattr(target, name) or not hasattr(source, name):
        raise NoCounterpartError(f"its {name} has no counterpart")
    config = {key: plain(item) for key, item in value["config"].items()}
    config = fit_config(config, getattr(source, name), getattr(target, name))
    return getattr(target, name)(**config)


def rebuild_registered(counterpart: Counterpart, config: Config, original: Any) -> Any:
    """The registered counterpart of `original`, from its config."""
    to_tf_keras = type(original) is counterpart.keras3
    change = counterpart.to_tf_keras if to_tf_keras else counterpart.to_keras3
    target = counterpart.tf_keras if to_tf_keras else counterpart.keras3
    if change:
        return target.from_config(change(dict(config)))
    accepted = accepted_arguments(target)  # Keras 3's own layers say more of themselves
    unset = {key for key, value in config.items() if value is None and key not in accepted}
    return target.from_config({key: value for key, value in config.items() if key not in unset})


def rebuild_values(
    config: Config, original: Any, source: Any, target: Any, custom: CustomObjects
) -> Config:
    """A layer's config with its values made of the other Keras.

    Args:
        config: The layer's config; may have been changed to the target's names already.
        original: The layer.
        source: The Keras that the layer is of.
        target: The other one.
        custom: Classes and functions of the target by the names of their counterparts.

    Raises:
        NoCounterpartError: One of the values has no counterpart.
    """
    rebuilt = {}
    for key, value in config.items():
        kind = key.rpartition("_")[2]
        live = getattr(original, key, None)
        if kind == "activation" and (value is None or isinstance(value, str | dict)):
            to_tf_keras = target is tf_keras
            rebuilt[key] = value and _rebuild_activation(value, live, to_tf_keras, custom)
        elif kind in {"initializer", "regularizer", "constraint"}:
            ours, theirs = getattr(source, f"{kind}s"), getattr(target, f"{kind}s")
            rebuilt[key] = _rebuild_object(value, live, ours, theirs, custom)
        else:
            rebuilt[key] = plain(value)
    return rebuilt


def plain(value: Any) -> Any:
    """Undoes what serialization wraps around arrays, lists and random seeds."""
    if isinstance(value, list):
        return list(value)  # tf_keras gives its own kind of list
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        return value.item()
    if isinstance(value, dict) and value.get("class_name") in {"__numpy__", "__tensor__"}:
        return value["config"]["value"]
    if isinstance(value, dict) and value.get("class_name") == "SeedGenerator":
        return None  # the random streams of the two Keras differ in any case
    return value

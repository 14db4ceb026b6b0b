"""Layers rebuilt in the other Keras from their configs.

`LAYERS` says which layers can cross and what must be changed in their configs on the way.
What is not written there is general: an argument that the other Keras lacks may be left out
only where it holds its default; activations, initializers, regularizers and constraints are
rebuilt; the dtype policy is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras

Config = dict[str, Any]
CustomObjects = Mapping[str, Any]

#: Layers that do nothing but draw random numbers while training.
NOISE_LAYERS = frozenset(
    {"AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"}
    | {f"SpatialDropout{rank}D" for rank in (1, 2, 3)}
)

_DTYPE_POLICIES = {
    *("float16", "bfloat16", "float32", "float64"),
    *("mixed_float16", "mixed_bfloat16"),
    *("int32", "int64", "uint8", "bool", "string"),
}


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


def _rebuild_activation(value: Any, names: Mapping[str, Any], custom: CustomObjects) -> Any:
    name = value
    if isinstance(value, dict):  # a function is serialized by its name, in "config"
        name = value.get("config") if value.get("class_name") == "function" else None
    if isinstance(name, str):
        if name in custom:
            return custom[name]
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
        if key in accepted or key == "activity_regularizer":
            fitted[key] = value
        elif key == "trainable" and value:
            continue  # the default of every layer
        elif value not in (None, "channels_last") and value != defaults.get(key, False):
            raise NoCounterpartError(f"its `{key}={value!r}` has no counterpart")
    return fitted


def _rebuild_object(value: Any, source: Any, target: Any, custom: CustomObjects) -> Any:
    """An initializer, regularizer or constraint, from one Keras' module to the other's."""
    if not isinstance(value, dict):
        return value
    name = value["class_name"]
    if name in custom:
        return custom[name](**value["config"])
    if value.get("registered_name") or not hasattr(target, name) or not hasattr(source, name):
        raise NoCounterpartError(f"its {name} has no counterpart")
    config = {key: _plain(item) for key, item in value["config"].items()}
    config = fit_config(config, getattr(source, name), getattr(target, name))
    return getattr(target, name)(**config)


def _plain(value: Any) -> Any:
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


# --- the table -----------------------------------------------------------------------------


def _same(config: Config, layer: Any) -> Config:
    return config


def _renamed(old: str, new: str) -> Callable[[Config, Any], Config]:
    def rename(config: Config, layer: Any) -> Config:
        return {new if key == old else key: value for key, value in config.items()}

    return rename


def _batch_normalization_to_keras3(config: Config, layer: Any) -> Config:
    axis = config["axis"]
    if isinstance(axis, list | tuple):
        if len(axis) > 1:
            raise NoCounterpartError(f"its `axis={list(axis)}` has no counterpart")
        axis = axis[0]
    # tf_keras leaves `synchronized` out of the config.
    return {**config, "axis": axis, "synchronized": layer.synchronized}


def _without_convolution_kernel(config: Config, layer: Any) -> Config:
    """A separable layer of tf_keras also lists what it inherits and does not use."""
    return {key: value for key, value in config.items() if not key.startswith("kernel_")} | {
        "kernel_size": config["kernel_size"]
    }


@dataclass(frozen=True)
class LayerAdapter:
    """What must be changed in a kind of layer, besides what holds for every layer.

    Args:
        to_tf_keras: Takes a Keras 3 config and its layer, returns a tf_keras config.
        to_keras3: The same the other way.
        weight_names: What tf_keras calls the weights, by Keras 3's names; equal where not given.
    """

    to_tf_keras: Callable[[Config, Any], Config] = _same
    to_keras3: Callable[[Config, Any], Config] = _same
    weight_names: Mapping[str, str] = field(default_factory=dict)


LAYERS: dict[str, LayerAdapter] = {
    **dict.fromkeys(NOISE_LAYERS, LayerAdapter()),
    **dict.fromkeys(
        (
            *("Dense", "Embedding", "Identity", "Masking", "ActivityRegularization"),
            *("Conv1D", "Conv2D", "Conv3D"),
            *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
            *("LayerNormalization", "GroupNormalization", "UnitNormalization"),
            *("Normalization", "Rescaling"),
            *("Activation", "ReLU", "PReLU", "ELU", "Softmax"),
            *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
            *("Concatenate", "Dot"),
            *("Flatten", "Reshape", "Permute", "RepeatVector"),
            *(
                f"{kind}{rank}D"
                for kind in (
                    *("MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling"),
                    *("ZeroPadding", "Cropping", "UpSampling"),
                )
                for rank in (1, 2, 3)
            ),
        ),
        LayerAdapter(),
    ),
    **dict.fromkeys(
        ("DepthwiseConv1D", "DepthwiseConv2D"),
        LayerAdapter(weight_names={"kernel": "depthwise_kernel"}),
    ),
    **dict.fromkeys(
        ("SeparableConv1D", "SeparableConv2D"),
        LayerAdapter(to_keras3=_without_convolution_kernel),
    ),
    "LeakyReLU": LayerAdapter(
        _renamed("negative_slope", "alpha"), _renamed("alpha", "negative_slope")
    ),
    "BatchNormalization": LayerAdapter(to_keras3=_batch_normalization_to_keras3),
}


def weight_names(layer: Any) -> list[str]:
    """What tf_keras calls the weights of a layer of either Keras, in the order of `weights`."""
    names = [weight.name.rpartition("/")[2].partition(":")[0] for weight in layer.weights]
    if isinstance(layer, keras.layers.Layer) and type(layer).__name__ in LAYERS:
        renamed = LAYERS[type(layer).__name__].weight_names
        return [renamed.get(name, name) for name in names]
    return names


# --- layers --------------------------------------------------------------------------------


def to_tf_keras_layer(layer: Any, name: str, custom: CustomObjects) -> Any:
    """A new tf_keras layer, without weights, that does what a Keras 3 layer does.

    Args:
        layer: The Keras 3 layer.
        name: The new layer's name.
        custom: tf_keras classes and functions by the names of their Keras 3 counterparts.

    Raises:
        NoCounterpartError: tf_keras has no such layer.
    """
    return _rebuild_layer(layer, name, keras, tf_keras, custom)


def to_keras3_layer(layer: Any, name: str, custom: CustomObjects) -> Any:
    """A new Keras 3 layer, without weights, that does what a tf_keras layer does."""
    return _rebuild_layer(layer, name, tf_keras, keras, custom)


def _rebuild_layer(layer: Any, name: str, source: Any, target: Any, custom: CustomObjects) -> Any:
    class_name = type(layer).__name__
    if class_name == "Lambda":
        raise NoCounterpartError("a Lambda layer's Python code is bound to its own Keras")
    if not isinstance(layer, source.layers.Layer):
        raise NoCounterpartError("an operation on tensors outside of a layer is not converted")
    policy = layer.dtype_policy.name
    if policy not in _DTYPE_POLICIES:
        raise NoCounterpartError(f"its dtype policy {policy!r} is quantized or unknown")
    config = {**_config(layer), "name": name, "dtype": policy}
    config.pop("batch_input_shape", None)
    if class_name in custom:
        target_class = custom[class_name]
    else:
        config = _adapt_config(config, layer, source, target, custom)
        target_class = getattr(target.layers, class_name)
    try:
        return target_class.from_config(config)
    except (TypeError, ValueError) as error:
        raise NoCounterpartError(f"{target.__name__} refuses its config: {error}") from error


def _adapt_config(
    config: Config, layer: Any, source: Any, target: Any, custom: CustomObjects
) -> Config:
    class_name = type(layer).__name__
    if isinstance(layer, source.Model):
        raise NoCounterpartError("a subclassed or unbuilt model has no graph to rebuild")
    if type(layer) is not getattr(source.layers, class_name, None):
        raise NoCounterpartError("a layer outside of Keras must be given in `custom_objects`")
    if class_name not in LAYERS or not hasattr(target.layers, class_name):
        raise NoCounterpartError("this kind of layer is not converted")
    to_tf_keras = target is tf_keras
    activations = _TF_KERAS_ACTIVATIONS if to_tf_keras else _KERAS3_ACTIVATIONS
    adapter = LAYERS[class_name]
    config = (adapter.to_tf_keras if to_tf_keras else adapter.to_keras3)(config, layer)
    rebuilt = {}
    for key, value in config.items():
        kind = key.rpartition("_")[2]
        if key == "activation":
            rebuilt[key] = _rebuild_activation(value, activations, custom)
        elif kind in {"initializer", "regularizer", "constraint"}:
            ours, theirs = getattr(source, f"{kind}s"), getattr(target, f"{kind}s")
            rebuilt[key] = _rebuild_object(value, ours, theirs, custom)
        else:
            rebuilt[key] = _plain(value)
    return fit_config(rebuilt, type(layer), getattr(target.layers, class_name))


def clone_tf_keras_layer(layer: Any, name: str, custom: CustomObjects) -> Any:
    """A new tf_keras layer, without weights, equal to a tf_keras layer.

    Raises:
        NoCounterpartError: The layer cannot be made from its config.
    """
    if isinstance(layer, tf_keras.Model):
        raise NoCounterpartError("a subclassed or unbuilt model has no graph to rebuild")
    config = {**_config(layer), "name": name}
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        # Both decide how the layer computes, and tf_keras leaves both out of the config.
        config["synchronized"] = layer.synchronized
        config.update({"fused": False} if layer.fused is False else {})
    try:
        with tf_keras.utils.custom_object_scope(dict(custom)):
            return type(layer).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NoCounterpartError(f"it cannot be made from its config: {error}") from error


def _config(layer: Any) -> Config:
    try:
        return dict(layer.get_config())
    except NotImplementedError as error:
        raise NoCounterpartError("it has no `get_config` of its own") from error

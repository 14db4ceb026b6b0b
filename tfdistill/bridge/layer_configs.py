"""Layers rebuilt in the other Keras from their configs.

`layer_table` says which layers can cross and what must be changed in their configs on the way.
What is not written there is general and done by `config_values`: an argument that the other Keras
lacks may be left out only where it holds its default; activations, initializers, regularizers
and constraints are rebuilt; the dtype policy is named. Layers inside of a layer (of a wrapper, an
RNN, an attention) are its parts: they are rebuilt and their weights paired in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.config_values import (
    Config,
    CustomObjects,
    NoCounterpartError,
    fit_config,
    rebuild_registered,
    rebuild_values,
)
from tfdistill.bridge.counterparts import counterpart_of, registered_objects
from tfdistill.bridge.layer_table import LayerAdapter, adapter_of, classes_of
from tfdistill.bridge.model_graphs import graph_of
from tfdistill.bridge.own_layers import KerasOperation

_DTYPE_POLICIES = {
    *("float16", "bfloat16", "float32", "float64"),
    *("mixed_float16", "mixed_bfloat16"),
    *("int32", "int64", "uint8", "bool", "string"),
}


# Without weights and the same in training: they run in a `KerasOperation`.
_KERAS3_ONLY = frozenset(
    {f"Adaptive{kind}Pooling{rank}D" for kind in ("Average", "Max") for rank in (1, 2, 3)}
    | {"MelSpectrogram"}
)
_ONE = [[{"tensor": 0}], {}]  # the arguments of a call with one tensor
_ADVICE = {
    "Lambda": "a Lambda layer's Python code is bound to its own Keras",
    "GroupedQueryAttention": "tf_keras has no grouped queries; use MultiHeadAttention",
    "ReversibleEmbedding": "tf_keras has none; use an Embedding and a Dense layer",
    "SpectralNormalization": "that of tf_keras runs only where `tf.keras` is tf_keras",
    "RandomCrop": "the two Keras crop differently in inference; crop in the data set",
    "STFTSpectrogram": "tf_keras has none; compute the spectrogram in the data set",
}


@dataclass(frozen=True)
class Crossing:
    """One conversion: from which Keras to which.

    Args:
        source: `keras` or `tf_keras`.
        target: The other one.
        custom: Classes and functions of the target by the names of their counterparts.
        convert_model: Converts a model inside of a layer.
    """

    source: Any
    target: Any
    custom: CustomObjects
    convert_model: Callable[[Any], Any]


def rebuild_layer(layer: Any, name: str, crossing: Crossing) -> Any:
    """A new layer, without weights, that does in the other Keras what `layer` does.

    Args:
        layer: The layer.
        name: The new layer's name.
        crossing: From which Keras to which.

    Raises:
        NoCounterpartError: The other Keras has no such layer.
    """
    source, target, custom = crossing.source, crossing.target, crossing.custom
    class_name = type(layer).__name__
    to_tf_keras = target is tf_keras
    policy = layer.dtype_policy.name
    if policy not in _DTYPE_POLICIES:
        raise NoCounterpartError(f"its dtype policy {policy!r} is quantized or unknown")
    config = {**_config(layer), "name": name, "dtype": policy}
    config.pop("batch_input_shape", None)
    registered = counterpart_of(type(layer))
    try:
        if class_name in custom:
            return custom[class_name].from_config(config)
        if registered:
            config = rebuild_values(config, layer, source, target, custom)
            return rebuild_registered(registered, config, layer)
        adapter = _checked_adapter(layer, source, target)
        if adapter is None:
            return KerasOperation(keras.saving.serialize_keras_object(layer), _ONE, name=name)
        config = (adapter.to_tf_keras if to_tf_keras else adapter.to_keras3)(config, layer)
        given = {key: config.pop(key, None) for key in adapter.given}
        config = rebuild_values(config, layer, source, target, custom)
        target_class = classes_of(class_name)[to_tf_keras]
        unnamed = {key: config.pop(key) for key in adapter.unnamed if config.get(key)}
        config = {**fit_config(config, type(layer), target_class), **unnamed}
        for key, attribute in adapter.given.items():
            if given[key] is not None:
                config[key] = _rebuild_part(getattr(layer, attribute), crossing)
        return frozen_alike(target_class(**config), layer)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise NoCounterpartError(f"{target.__name__} refuses its config: {error}") from error


def _checked_adapter(layer: Any, source: Any, target: Any) -> LayerAdapter | None:
    """The table's entry; None for a layer that runs in a `KerasOperation`."""
    class_name = type(layer).__name__
    if class_name in _ADVICE:
        raise NoCounterpartError(_ADVICE[class_name])
    if isinstance(layer, source.Model):
        raise NoCounterpartError("a subclassed or unbuilt model has no graph to rebuild")
    adapter = adapter_of(layer)
    if adapter is not None:
        return adapter
    if type(layer) is not getattr(source.layers, class_name, None):
        raise NoCounterpartError(
            "a layer outside of Keras must be given in `custom_objects` or by `bridge.register`"
        )
    if class_name in _KERAS3_ONLY and target is tf_keras:
        return None
    raise NoCounterpartError("this kind of layer is not converted")


def _rebuild_part(part: Any, crossing: Crossing) -> Any:
    if isinstance(part, list | tuple):
        return [_rebuild_part(one, crossing) for one in part]
    if graph_of(part) is not None:
        return crossing.convert_model(part)
    # tf_keras puts a prefix of Bidirectional before the name, Keras 3 may have done so.
    name = part.name if crossing.target is keras else re.sub("^(for|back)ward_", "", part.name)
    return rebuild_layer(part, name, crossing)


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
        with tf_keras.utils.custom_object_scope({**registered_objects(tf_keras), **custom}):
            made = type(layer).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NoCounterpartError(f"it cannot be made from its config: {error}") from error
    return frozen_alike(made, layer)


def frozen_alike(made: Any, layer: Any) -> Any:
    """A layer, with the halves frozen that are in `layer`: a Bidirectional's config forgets them.

    Args:
        made: A Bidirectional layer of either Keras, or another layer.
        layer: What it was made from.
    """
    if type(layer).__name__ == "Bidirectional":
        for half in ("forward_layer", "backward_layer"):
            getattr(made, half).trainable = getattr(layer, half).trainable
    return made


def _config(layer: Any) -> Config:
    try:
        return dict(layer.get_config())
    except NotImplementedError as error:
        raise NoCounterpartError("it has no `get_config` of its own") from error


def copy_model(model: Any, of: Callable[[Any], Any] = lambda layer: layer) -> Any:
    """A functional tf_keras model's copy with its own layers and the same weights.

    Args:
        model: The model.
        of: The layer that is copied in the place of one of the model's: itself, or what it wraps.
    """
    copy = tf_keras.models.clone_model(
        model, clone_function=lambda layer: clone_tf_keras_layer(of(layer), of(layer).name, {})
    )
    for made, layer in zip(copy.layers, model.layers, strict=True):
        made.set_weights(of(layer).get_weights())
    return copy

"""Which layers can cross between the two Kerases, and what is special about each: `LAYERS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.config_values import Config, NoCounterpartError, plain
from tfdistill.bridge.counterparts import counterpart_of
from tfdistill.bridge.model_graphs import graph_of, leaves_of
from tfdistill.bridge.own_layers import RMSNormalization

#: Layers that do nothing but draw random numbers while training.
NOISE_LAYERS = frozenset(
    {"AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "StochasticDepth"}
    | {f"SpatialDropout{rank}D" for rank in (1, 2, 3)}
)
#: Layers that change images at random while training, and only then.
AUGMENTATIONS = frozenset(
    f"Random{kind}"
    for kind in ("Brightness", "Contrast", "Flip", "Rotation", "Translation", "Zoom")
)


def _same(config: Config, layer: Any) -> Config:
    return config


def _renamed(old: str, new: str) -> Callable[[Config, Any], Config]:
    def rename(config: Config, layer: Any) -> Config:
        return {new if key == old else key: value for key, value in config.items()}

    return rename


def _without(*keys: str) -> Callable[[Config, Any], Config]:
    def leave_out(config: Config, layer: Any) -> Config:
        return {key: value for key, value in config.items() if key not in keys}

    return leave_out


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


def _sorted_axis(config: Config, layer: Any) -> Config:
    axis = config["axis"]
    return {**config, "axis": sorted(axis) if isinstance(axis, list | tuple) else axis}


def _lookup(config: Config, layer: Any) -> Config:
    """What a lookup was adapted to is state, but no weight; each Keras has a dtype of its own."""
    for kind in ("sparse", "ragged"):
        if config.get(kind):
            raise NoCounterpartError(f"its `{kind}=True` is not converted")
    if config.get("oov_method") not in (None, "floormod"):
        raise NoCounterpartError(f"its `oov_method={config['oov_method']!r}` has no counterpart")
    left_out = ("dtype", "vocabulary_size", "oov_method")
    config = {key: plain(value) for key, value in config.items() if key not in left_out}
    weighted = config["output_mode"] == "tf_idf"
    if config.get("vocabulary") is None or weighted:
        table = getattr(layer, "_lookup_layer", layer)
        vocabulary = list(table.get_vocabulary(include_special_tokens=False))
        if not vocabulary:
            raise NoCounterpartError("it has no vocabulary: it must be adapted or given one")
        config["vocabulary"] = [plain(word) for word in vocabulary]
        if weighted and config.get("idf_weights") is None:
            weights = np.asarray(table.idf_weights)
            config["idf_weights"] = weights[len(weights) - len(vocabulary) :].tolist()
    if isinstance(config["vocabulary"], str):
        raise NoCounterpartError("its vocabulary is a file")
    return config


def _discretization(config: Config, layer: Any) -> Config:
    if config.get("sparse"):
        raise NoCounterpartError("its `sparse=True` is not converted")
    boundaries = [float(boundary) for boundary in layer.bin_boundaries or ()]
    if not boundaries:
        raise NoCounterpartError("it has no bin boundaries: it must be adapted or given them")
    return {"name": config["name"], "bin_boundaries": boundaries} | {
        key: config[key] for key in ("epsilon", "output_mode")
    }


def _states_apart(args: tuple[Any, ...], kwargs: Config) -> tuple[tuple[Any, ...], Config]:
    """tf_keras puts an RNN's initial state among its inputs, Keras 3 takes it by its name."""
    first, *others = args
    kwargs = dict(kwargs)
    if not isinstance(first, list | tuple):
        return args, kwargs
    inputs, *states = first
    kwargs.pop("constants", None)  # None: a layer that reads some is refused by its config
    return (inputs, *others), {**kwargs, "initial_state": states or None}


@dataclass(frozen=True)
class LayerAdapter:
    """What must be changed in a kind of layer, besides what holds for every layer.

    Args:
        to_tf_keras: Takes a Keras 3 config and its layer, returns a tf_keras config.
        to_keras3: The same the other way.
        weight_names: What tf_keras calls the weights, by Keras 3's names; equal where not given.
        parts: The attributes, in both Kerases, that hold a layer or several inside.
        given: Arguments of the constructor that a part is given to, with the attribute.
        unnamed: Arguments that tf_keras takes though its signature does not name them.
        state_in_config: Whether the config holds the state, and weights that one Keras has are
            not to be copied.
        call_to_keras3: Takes the arguments of a call in tf_keras, returns those in Keras 3.
        keras3: The Keras 3 class where it is not in `keras.layers`.
        tf_keras: The tf_keras class where it is not in `tf_keras.layers`.
    """

    to_tf_keras: Callable[[Config, Any], Config] = _same
    to_keras3: Callable[[Config, Any], Config] = _same
    weight_names: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    unnamed: frozenset[str] = frozenset()
    state_in_config: bool = False
    call_to_keras3: Callable[[Any, Config], tuple[Any, Config]] | None = None
    keras3: Any = None
    tf_keras: Any = None


def _time_distributed(config: Config, layer: Any) -> Config:
    if any(one.trainable for one in all_in(layer) if type(one).__name__ == "BatchNormalization"):
        raise NoCounterpartError(
            "in training, Keras 3 normalizes each step in it by itself and tf_keras all together; "
            "freeze its BatchNormalization (`trainable = False`) or put that outside"
        )
    return config


_RNN = LayerAdapter(
    to_keras3=_without("implementation"),  # how it computes, not what
    parts=("cell",),
    unnamed=frozenset({"zero_output_for_mask"}),
    call_to_keras3=_states_apart,
)
_CELL = LayerAdapter(to_keras3=_without("implementation"))
_IMAGES = LayerAdapter(_without("data_format"), _without("rng_type"))

LAYERS: dict[str, LayerAdapter] = {
    **dict.fromkeys(NOISE_LAYERS - {"StochasticDepth"}, LayerAdapter()),
    **dict.fromkeys(
        (
            *("Dense", "EinsumDense", "Embedding", "Identity", "Masking"),
            "ActivityRegularization",
            *("Conv1D", "Conv2D", "Conv3D"),
            *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
            *("LayerNormalization", "GroupNormalization", "UnitNormalization"),
            *("Normalization", "Rescaling"),
            *("Activation", "ReLU", "PReLU", "ELU", "Softmax"),
            *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
            *("Concatenate", "Dot"),
            *("Flatten", "Reshape", "Permute", "RepeatVector"),
            *("Attention", "AdditiveAttention"),
            *("Resizing", "CenterCrop"),
            *("Hashing", "HashedCrossing", "CategoryEncoding"),
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
    "MultiHeadAttention": LayerAdapter(
        to_tf_keras=_without("seed"),  # of its dropout; tf_keras has one for all layers
        to_keras3=_without("query_shape", "key_shape", "value_shape"),
        parts=("_query_dense", "_key_dense", "_value_dense", "_output_dense"),
    ),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), _RNN),
    **dict.fromkeys(("SimpleRNNCell", "LSTMCell", "GRUCell"), _CELL),
    "RNN": replace(_RNN, given={"cell": "cell"}),
    "StackedRNNCells": LayerAdapter(parts=("cells",), given={"cells": "cells"}),
    "TimeDistributed": LayerAdapter(
        _time_distributed, _time_distributed, parts=("layer",), given={"layer": "layer"}
    ),
    "Bidirectional": LayerAdapter(
        parts=("forward_layer", "backward_layer"),
        given={"layer": "forward_layer", "backward_layer": "backward_layer"},
        call_to_keras3=_states_apart,
    ),
    **dict.fromkeys(AUGMENTATIONS, _IMAGES),
    **dict.fromkeys(
        ("StringLookup", "IntegerLookup", "TextVectorization"),
        LayerAdapter(_lookup, _lookup, state_in_config=True),
    ),
    "Discretization": LayerAdapter(_discretization, _discretization, state_in_config=True),
    # Layers of Keras 3 only, and what stands for them.
    "RMSNormalization": LayerAdapter(_sorted_axis, _sorted_axis, tf_keras=RMSNormalization),
    # Layers of `keras.applications`.
    "LayerScale": LayerAdapter(
        keras3=keras.src.applications.convnext.LayerScale,
        tf_keras=tf_keras.src.applications.convnext.LayerScale,
    ),
    "StochasticDepth": LayerAdapter(
        keras3=keras.src.applications.convnext.StochasticDepth,
        tf_keras=tf_keras.src.applications.convnext.StochasticDepth,
    ),
    "CustomScaleLayer": LayerAdapter(
        keras3=keras.src.applications.inception_resnet_v2.CustomScaleLayer,
        tf_keras=tf_keras.src.applications.inception_resnet_v2.CustomScaleLayer,
    ),
}


# --- a layer's entry, parts and weights ----------------------------------------------------


def classes_of(name: str) -> tuple[Any, Any]:
    """The Keras 3 class and the tf_keras class of an entry of the table."""
    adapter = LAYERS[name]
    return (
        adapter.keras3 or getattr(keras.layers, name, None),
        adapter.tf_keras or getattr(tf_keras.layers, name, None),
    )


def adapter_of(layer: Any) -> LayerAdapter | None:
    """The table's entry for a layer of either Keras' own."""
    name = type(layer).__name__
    return LAYERS[name] if name in LAYERS and type(layer) in classes_of(name) else None


def parts_of(layer: Any) -> Iterator[tuple[str, Any]]:
    """The layers inside of a layer, with their names."""
    adapter = adapter_of(layer)
    for attribute in adapter.parts if adapter else ():
        part = getattr(layer, attribute)
        if isinstance(part, list | tuple):
            yield from ((f"{attribute}_{index}", one) for index, one in enumerate(part))
        else:
            yield attribute, part


def all_in(layer: Any) -> Iterator[Any]:
    """A layer and all that are inside of it, of models too."""
    inner = graph_of(layer)
    yield layer
    for part in (
        [leaf.layer for leaf in leaves_of(inner)] if inner else dict(parts_of(layer)).values()
    ):
        yield from all_in(part)


def is_random(layer: Any) -> bool:
    """Whether a layer, or one inside of it, draws random numbers in training."""
    return any(
        type(one).__name__ in NOISE_LAYERS | AUGMENTATIONS
        or any(getattr(one, rate, 0.0) for rate in ("dropout", "_dropout", "recurrent_dropout"))
        for one in all_in(layer)
    )


def weight_names(layer: Any) -> list[str]:
    """What tf_keras calls the weights of a layer of either Keras, in the order of `weights`.

    A weight of a part has the part's name before its own. A weight that was made without a name
    has that of the attribute which holds it.
    """
    weights = getattr(layer, "weights", [])
    inner = graph_of(layer)
    if inner is not None:
        parts = [(leaf.name, leaf.layer) for leaf in leaves_of(inner)]
    else:
        parts = list(parts_of(layer))
    names = {
        id(weight): f"{part_name}/{name}"
        for part_name, part in parts
        for name, weight in zip(weight_names(part), getattr(part, "weights", []), strict=True)
    }
    renamed: Mapping[str, str] = {}
    if isinstance(layer, keras.layers.Layer):
        known = counterpart_of(type(layer)) or adapter_of(layer)
        renamed = known.weight_names if known else {}
    for weight in weights:
        if id(weight) not in names:
            name = weight.name.rpartition("/")[2].partition(":")[0]
            if re.fullmatch(r"variable(_\d+)?", name, re.IGNORECASE):
                held = (key for key, value in vars(layer).items() if value is weight)
                name = next(held, name)
            names[id(weight)] = renamed.get(name, name)
    return [names[id(weight)] for weight in weights]

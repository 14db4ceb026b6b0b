"""HDF5 files as Keras 2 of years ago wrote them; no Keras writes these here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tfdistill import bridge
from tfdistill._keras import tf_keras
from tfdistill.bridge.loading import load_model

CONVOLUTION, NORMALIZATION, RELU, SCORES = "conv2d_1", "batch_normalization_1", "re_lu_1", "dense_1"
_WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {
    CONVOLUTION: {"kernel": (3, 3, 1, 4), "bias": (4,)},
    NORMALIZATION: {each: (4,) for each in ("gamma", "beta", "moving_mean", "moving_variance")},
    RELU: {},
    "max_pooling2d_1": {},
    "flatten_1": {},
    "dropout_1": {},
    SCORES: {"kernel": (16, 3), "bias": (3,)},
}


def configs(version: str) -> list[dict[str, Any]]:
    """The layers, with the words of their time: no `module`, no `registered_name`."""
    by_tensorflow = version == "2.8.0"
    glorot = {"class_name": "GlorotUniform", "config": {"seed": None}}
    if not by_tensorflow:
        scaling = {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None}
        glorot = {"class_name": "VarianceScaling", "config": scaling}
    zeros: dict[str, Any] = {"class_name": "Zeros", "config": {}}
    ones = {**zeros, "class_name": "Ones"}
    nothing = dict.fromkeys(("regularizer", "constraint"))
    kernel = {
        "use_bias": True,
        "kernel_initializer": glorot,
        "bias_initializer": zeros,
        "activity_regularizer": None,
        **{f"{part}_{kind}": None for part in ("kernel", "bias") for kind in nothing},
    }
    image = {"data_format": "channels_last"}
    six: Any = {"type": "ndarray", "value": 6.0} if version == "2.2.4" else 6.0
    found = {
        CONVOLUTION: {
            **{"filters": 4, "kernel_size": [3, 3], "strides": [1, 1], "padding": "valid"},
            **{**image, "dilation_rate": [1, 1], "activation": "linear", **kernel},
            **({"groups": 1} if by_tensorflow else {}),
        },
        NORMALIZATION: {
            **{"axis": [3] if by_tensorflow else -1, "momentum": 0.99, "epsilon": 0.001},
            **{"center": True, "scale": True, "beta_initializer": zeros, "gamma_initializer": ones},
            **{"moving_mean_initializer": zeros, "moving_variance_initializer": ones},
            **{f"{part}_{kind}": None for part in ("beta", "gamma") for kind in nothing},
        },
        RELU: {"max_value": six, "negative_slope": 0.0, "threshold": 0.0},
        "max_pooling2d_1": {"pool_size": [2, 2], "padding": "valid", "strides": [2, 2], **image},
        "flatten_1": image,
        "dropout_1": {"rate": 0.5, "noise_shape": None, "seed": None},
        SCORES: {"units": 3, "activation": "softmax", **kernel},
    }
    classes = ("Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D", "Flatten", "Dropout")
    typed = {} if version == "2.2.4" else {"dtype": "float32"}  # only first layers had it
    return [
        {"class_name": kind, "config": {"name": name, "trainable": True, **typed, **config}}
        for kind, (name, config) in zip((*classes, "Dense"), found.items(), strict=True)
    ]


def sequential(version: str) -> dict[str, Any]:
    layers = configs(version)
    layers[0]["config"] |= {"batch_input_shape": [None, 6, 6, 1], "dtype": "float32"}
    return {"class_name": "Sequential", "config": {"name": "sequential_1", "layers": layers}}


def functional(version: str) -> dict[str, Any]:
    by_tensorflow = version == "2.8.0"
    source = {"batch_input_shape": [None, 6, 6, 1], "dtype": "float32", "sparse": False}
    if by_tensorflow:
        source["ragged"] = False
    layers: list[Any] = [{"class_name": "InputLayer", "config": {**source, "name": "input_1"}}]
    layers += configs(version)
    before: list[Any] = []
    for layer in layers:
        layer["name"] = layer["config"]["name"]
        layer["inbound_nodes"] = before
        before = [[[layer["name"], 0, 0, {}]]]
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [[SCORES, 0, 0]]}
    return {
        "class_name": "Functional" if by_tensorflow else "Model",
        "config": {"name": "model_1", "layers": layers, **ends},
    }


def write(path: Path, model: Mapping[str, Any], version: str) -> dict[str, np.ndarray]:
    """The file, and the weights in it by their names."""
    random = np.random.default_rng(0)
    optimizer = {"lr": 0.001, "beta_1": 0.9, "beta_2": 0.999, "decay": 0.0, "amsgrad": False}
    training = {
        "optimizer_config": {"class_name": "Adam", "config": {**optimizer, "epsilon": 1e-07}},
        "loss": "sparse_categorical_crossentropy",
        **{"metrics": ["accuracy"], "sample_weight_mode": None, "loss_weights": None},
    }
    said = {"keras_version": version.encode(), "backend": b"tensorflow"}
    written = {}
    with h5py.File(path, "w") as file:
        texts = {"model_config": model, "training_config": training}
        file.attrs.update({**said, **{key: json.dumps(v).encode() for key, v in texts.items()}})
        group = file.create_group("model_weights")
        names = [layer["config"]["name"] for layer in model["config"]["layers"]]
        group.attrs.update({**said, "layer_names": [name.encode() for name in names]})
        for name in names:
            weights = _WEIGHTS.get(name, {})
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [f"{name}/{each}:0".encode() for each in weights]
            for each, shape in weights.items():
                positive = each in ("gamma", "moving_variance")
                values = random.uniform(0.5, 2, shape) if positive else random.normal(0, 0.3, shape)
                inner[f"{name}/{each}:0"] = written[f"{name}/{each}"] = values.astype(np.float32)
        state = file.create_group("optimizer_weights")
        state.attrs["weight_names"] = [b"Adam/iterations:0"]
        state["Adam/iterations:0"] = np.int64(7)
    return written


def computed(weights: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """What the model is to give, by the definitions of its layers."""
    patches = np.lib.stride_tricks.sliding_window_view(images[..., 0], (3, 3), axis=(1, 2))
    hidden = np.einsum("nhwij,ijc->nhwc", patches, weights[f"{CONVOLUTION}/kernel"][:, :, 0])
    hidden += weights[f"{CONVOLUTION}/bias"]
    gamma, beta, mean, variance = (weights[f"{NORMALIZATION}/{n}"] for n in _WEIGHTS[NORMALIZATION])
    hidden = gamma * (hidden - mean) / np.sqrt(variance + 0.001) + beta
    hidden = np.clip(hidden, 0, 6)
    pooled = hidden.reshape([-1, 2, 2, 2, 2, 4]).max(axis=(2, 4)).reshape([-1, 16])
    logits = pooled @ weights[f"{SCORES}/kernel"] + weights[f"{SCORES}/bias"]
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("version", "make"),
    [("2.2.4", sequential), ("2.3.1", functional), ("2.3.1", sequential), ("2.8.0", functional)],
)
def test_a_file_of_an_old_keras_computes_what_it_did(
    version: str, make: Any, tmp_path: Path
) -> None:
    path = tmp_path / "old.h5"
    weights = write(path, make(version), version)
    images = np.random.default_rng(1).normal(0, 2, [16, 6, 6, 1]).astype(np.float32)
    expected = computed(weights, images)
    assert np.ptp(expected, axis=0).max() > 0.1

    model = load_model(path)

    assert isinstance(model, tf_keras.Model)
    for crossed in (model, bridge.to_tf_keras(model), bridge.to_keras3(model)):
        np.testing.assert_allclose(crossed(images), expected, rtol=1e-4, atol=1e-5)

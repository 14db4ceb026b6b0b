"""A student of several outputs goes through the whole pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError, SettingError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = Any

ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
LOSSES = {"digit": [td.losses.SoftTargets(4.0)], "parity": [td.losses.LogitsMSE()]}
NAMES = {"digit": [f"digit {n}" for n in range(10)], "parity": ["even", "odd"]}


def split(digits: tuple[Array, Array]) -> tuple[Any, Any]:
    images, labels = digits
    both = {"digit": labels, "parity": (labels % 2).astype(np.float32)}
    return tuple(
        (images[rows], {name: each[rows] for name, each in both.items()})
        for rows in (slice(1200), slice(1200, None))
    )


def network(library: Any, units: int, *, activation: bool, as_list: bool = False) -> Any:
    layers = library.layers
    image = layers.Input([8, 8, 1], name="image")
    x = layers.Conv2D(units, 3, use_bias=False, name="convolution")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="bn")(x))
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.1, name="dropout")(x)
    softmax, sigmoid = ("softmax", "sigmoid") if activation else (None, None)
    # Not the names of the outputs, and in another order.
    parity = layers.Dense(1, activation=sigmoid, name="parity" if as_list else "a")(x)
    digit = layers.Dense(10, activation=softmax, name="digit" if as_list else "b")(x)
    outputs = [parity, digit] if as_list else {"digit": digit, "parity": parity}
    return library.Model(image, outputs)


@pytest.fixture(scope="module")
def teacher(two_devices: None, digits: tuple[Array, Array]) -> Any:
    keras.utils.set_random_seed(0)
    model = network(keras, 32, activation=False)
    losses = {
        "digit": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "parity": keras.losses.BinaryCrossentropy(from_logits=True),
    }
    model.compile(keras.optimizers.Adam(3e-3), losses)
    model.fit(*split(digits)[0], epochs=6, verbose=0)
    return model


@pytest.fixture(scope="module")
def whole(
    teacher: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory
) -> tuple[td.Result, td.Pipeline, Any, Path]:
    train, test = split(digits)
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    keras.utils.set_random_seed(1)
    student = network(keras, 8, activation=True)
    pipeline = td.Pipeline(
        distillation=td.Distillation(
            losses=LOSSES,
            label_loss_weight={"digit": 0.1, "parity": 1.0},
            epochs=6,
            learning_rate=1e-2,
        ),
        pruning=td.Pruning(sparsity=0.75, epochs=4, learning_rate=5e-3),
        quantization=td.Quantization(epochs=2, learning_rate=1e-3),
        export=td.Export(
            formats=("int8", "float16", "savedmodel", "keras"),
            input_type="uint8",
            label_names=NAMES,
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
            limits=ANY,
        ),
    )
    result = pipeline.run(
        student, teacher, train, validation=test, test=test, run_dir=run_dir, verbose=0
    )
    return result, pipeline, student, run_dir


def test_it(whole):
    result, _, _, run_dir = whole
    print(result.report.table())
    print(json.dumps(result.artifacts["int8"].certificate.to_dict()["outputs"], indent=1)[:1500])
    print((run_dir / "artifacts/student_int8.json").read_text()[:3000])
    print(result.report.advice)
    for r in result.report.table():
        print(r)

"""Writes models as plain Keras does, without this library: `{keras,tf_keras} FOLDER`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def student(library: Any, *, sequential: bool = False) -> Any:
    layers = library.layers
    image = layers.Input([8, 8, 1], name="image")
    parts = [
        layers.Conv2D(6, 3, use_bias=False, name="convolution"),
        layers.BatchNormalization(name="normalization"),
        layers.ReLU(name="relu"),
        layers.Flatten(name="flat"),
        layers.Dense(10, activation="softmax", name="scores"),
    ]
    if sequential:
        model = library.Sequential([image, *parts])
    else:
        values = image
        for part in parts:
            values = part(values)
        model = library.Model(image, values)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main(name: str, folder: Path) -> None:
    library = importlib.import_module(name)
    if name == "keras":
        student(library).save(folder / "keras3.keras")
    else:
        student(library).save(folder / "functional.h5")
        student(library, sequential=True).save(folder / "sequential.h5")
        student(library).save(folder / "saved_model")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""Image classification: any TFDS image set to a certified int8 model.

    python -m pipelines.image_classification --dataset fashion_mnist --data-dir DIR

Trains a convolutional teacher of about 600 000 parameters (kept, and taken again by the next
run), distils a student of about 13 000 parameters from it, prunes it to 75 % zeros, trains it
quantization-aware, and writes `student_int8.tflite` and `student_float16.tflite` with their
certificates and a report into `saved_models/<dataset>`.

On Fashion-MNIST with 2 CPU cores: see benchmarks/RESULTS.md for accuracy and time.
Copy this file and change `build_teacher` and `build_student` for your own models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

import tfdistill as td


def build_teacher(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """A VGG-like network with batch normalization; returns logits."""

    def block(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
            x = keras.layers.ReLU()(x)
        return x

    image = keras.Input(input_shape, name="image")
    x = block(image, 32)
    x = keras.layers.MaxPooling2D()(x)
    x = block(x, 64)
    x = keras.layers.MaxPooling2D()(x)
    x = block(x, 128)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(x), name="teacher")

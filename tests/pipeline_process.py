"""A small pipeline as a process of its own, for `test_resume.py` to kill: `RUN_DIR [EPOCHS]`."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(run_dir: str, pruning_epochs: int) -> None:
    import keras
    import numpy as np
    import tf_keras
    from sklearn.datasets import load_digits

    import tfdistill as td

    raw = load_digits()
    images = (raw.images[..., np.newaxis] / 16).astype("float32")
    train, test = (images[:1200], raw.target[:1200]), (images[1200:], raw.target[1200:])

    keras.utils.set_random_seed(0)
    tf_keras.backend.clear_session()  # in a test's own process, too, names are numbered from 0
    image = keras.Input((8, 8, 1), name="image")
    teacher = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(image)))
    x = keras.layers.Conv2D(6, 3, use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2)(keras.layers.ReLU()(x))  # random numbers must resume, too
    student = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)))

    td.Pipeline(
        distillation=td.Distillation(epochs=4),
        pruning=td.Pruning(sparsity=0.75, epochs=pruning_epochs),
        quantization=td.Quantization(epochs=3),
        export=td.Export(
            formats=("int8",), limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        ),
        seed=3,
    ).run(student, teacher, train, test=test, run_dir=run_dir)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)

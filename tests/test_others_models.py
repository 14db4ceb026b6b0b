"""Models that plain Keras wrote in another process become certified artifacts."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdistill as td
from tfdistill._keras import keras, tf_keras

# Keras 3 saves and loads variables through NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# After one epoch, logits are so near to each other that one step decides which is largest.
_TINY = td.Limits(max_accuracy_drop=0.1, min_agreement=0.85)
WRITER = Path(__file__).with_name("saved_by_others.py")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The folder of what a process with one of the two libraries wrote."""

    @functools.cache
    def write(library: Any) -> Path:
        folder = tmp_path_factory.mktemp("others")
        done = subprocess.run(
            [sys.executable, str(WRITER), library.__name__.split(".")[0], str(folder)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        return folder

    return write


@pytest.mark.slow  # whole runs; files of other processes are loaded in test_inspection.py, too
@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("keras3.keras", keras),
        ("functional.h5", tf_keras),
        ("sequential.h5", tf_keras),
        ("saved_model", tf_keras),
    ],
)
def test_a_model_that_others_saved_becomes_a_certified_artifact(
    name: str,
    library: Any,
    written: Callable[[Any], Path],
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    images, labels = digits
    student = td.load_model(written(library) / name)
    assert isinstance(student, library.Model)
    image = keras.Input([8, 8, 1])
    teacher = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(image)))
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=1),
        pruning=td.Pruning(sparsity=0.5, epochs=1),
        quantization=td.Quantization(epochs=1),
        export=td.Export(formats=("int8",), limits=_TINY),
        baseline=False,
    )
    test = images[400:500], labels[400:500]
    train, run_dir = (images[:400], labels[:400]), tmp_path / "run"
    result = pipeline.run(student, teacher, train, test=test, run_dir=run_dir, verbose=0)
    certificate = result.artifacts["int8"].certificate
    assert certificate.passed
    assert certificate.output_error is not None
    assert certificate.output_error.p99 <= 1.001  # steps
    assert certificate.examples == 100
    assert certificate.format == "int8"
    assert not certificate.layers_left_float
    assert certificate.zeros > 0.4 * certificate.elements
    assert isinstance(result.student, library.Model)
    kernels = [model.get_layer("convolution").kernel for model in (result.student, student)]
    assert np.any(np.array(kernels[0]) != np.array(kernels[1])), "not trained"

"""Whole numbers, given as such or as floats: looked up exactly, whatever is rounded to 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crossings import assert_same_outputs
from in_8_bits import VOCABULARY, WORDS, L, randomized

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.export import export_model
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.quantization import Quantization, quantize


def words(batch: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, [batch, WORDS])


def of_numbers(library: Any, dtype: str) -> Any:
    layers = library.layers
    given = layers.Input((WORDS,), dtype=dtype, name="words")
    hidden = layers.Conv1D(8, 3)(layers.Embedding(VOCABULARY, 6, name="embedding")(given))
    pooled = layers.GlobalAveragePooling1D()(hidden)
    return library.Model(given, layers.Dense(4, name="logits")(pooled))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_an_embedding_crosses_whatever_its_input_is(dtype: str) -> None:
    """Keras' own default for an input is float32, of which an Embedding makes whole numbers."""
    original = of_numbers(keras, dtype)
    converted = bridge.to_tf_keras(original)
    given = words()
    np.testing.assert_allclose(converted(given), original(given), atol=1e-5)
    assert_same_outputs(bridge.to_keras3(converted), original)


def test_words_given_as_floats_are_looked_up_exactly(tmp_path: Path) -> None:
    """Rounded to 256 steps, many a word would be another."""
    model = randomized(of_numbers(tf_keras, "float32"))
    quantized = quantize(model, Quantization(strict=True), sparse=False).model
    given = words().astype(np.float32)
    for _ in range(3):
        quantized(tf.constant(given), training=True)
    made = export_model(quantized, tmp_path / "a.tflite", "int8", quantization_aware=True)
    assert made.left_float == ()
    (outputs,) = LiteRTModel(tmp_path / "a.tflite").predict(given).values()
    expected = model(given).numpy()
    assert np.abs(outputs - expected).max() < 0.1 * np.abs(expected).max()


def names_left(body: Any, shape: Any, dtype: str, tmp_path: Path) -> dict[str, str]:
    """Of a model whose artifact's floats are all named."""
    given = L.Input(shape, dtype=dtype, name="given")
    model = tf_keras.Model(given, L.Dense(4, name="logits")(L.Flatten()(body(given))))
    quantized = quantize(model, Quantization(), sparse=False)
    random = np.random.default_rng(0)
    inputs = random.integers(0, 200, [16, *shape]).astype(dtype)
    if dtype == "float32":
        inputs = random.normal(size=[16, *shape]).astype(dtype)
    quantized.model(tf.constant(inputs), training=True)
    made = export_model(quantized.model, tmp_path / "a.tflite", "int8", quantization_aware=True)
    floating = {each.name for each in made.inspection.operators if each.weights == "float32"}
    assert floating <= ALONE
    return quantized.left_float


#: Operators of a file that read and give numbers that are not in 8 bits, or turn one kind of them
#: into the other.
ALONE = {"BUCKETIZE", "CAST", "DEQUANTIZE", "QUANTIZE", "MUL", "ADD"}


def test_what_reads_whole_numbers_made_of_floats_is_in_8_bits(tmp_path: Path) -> None:
    def body(given: Any) -> Any:
        bins = L.Discretization([-1.0, 0.0, 1.0], name="bins")(given)
        return L.Embedding(5, 3, name="table")(bins)

    left = names_left(body, (6,), "float32", tmp_path)
    assert left == {"bins": "tfmot cannot wrap Discretization as it is used"}


def test_pixels_as_whole_numbers_are_scaled_in_float(tmp_path: Path) -> None:
    def body(given: Any) -> Any:
        return L.Conv2D(4, 3, name="convolution")(L.Rescaling(1 / 255, name="scaled")(given))

    left = names_left(body, (8, 8, 3), "uint8", tmp_path)
    assert left == {"scaled": "it reads uint8; a float input would be quantized whole"}

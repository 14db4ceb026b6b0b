"""Every kind of ReLU, wherever it stands, in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_8_bits import Body, L, convolution, exported, inputs_of, of_images, train
from quick import only

from tfdistill._keras import tf, tf_keras
from tfdistill.quantization import Quantization, quantize
from tfdistill.quantizers import copy_quantized
from tfdistill.rewrites import rewrite

KINDS: dict[str, dict[str, float]] = {
    "sloped": {"negative_slope": 0.1},
    "up to 1": {"max_value": 1.0},
    "up to 4": {"max_value": 4.0},
    "both": {"negative_slope": 0.1, "max_value": 2.0},
}
PLACES: dict[str, Body] = {
    "convolution": convolution,
    "normalization": lambda x: L.BatchNormalization()(convolution(x)),
    "dense": lambda x: L.Dense(8)(x),
    "sum": lambda x: L.Add()([convolution(x), convolution(x)]),
    "steps": lambda x: L.Conv1D(4, 3)(L.Reshape((32, 6))(x)),
}
CASES = [(kind, "convolution") for kind in KINDS] + [("both", place) for place in PLACES]


@pytest.mark.parametrize(
    ("kind", "place"),
    only(
        ("sloped", "convolution"),
        ("up to 4", "convolution"),
        ("both", "steps"),
        of=CASES,
        several=True,
    ),
)
def test_it_is_in_8_bits_and_so_is_the_kernel_before_it(
    kind: str, place: str, tmp_path: Path
) -> None:
    """tfmot merges any ReLU with the kernel before it, though LiteRT has two kinds alone."""
    model = of_images(lambda x: L.ReLU(**KINDS[kind], name="rectified")(PLACES[place](x)))
    quantized = quantize(model, Quantization(strict=True), sparse=False)
    train(quantized.model)
    _, floating, errors = exported(quantized, tmp_path)
    assert not floating
    assert np.quantile(errors, 0.99) <= 2.001


@pytest.mark.parametrize("kind", KINDS)
def test_in_float_it_is_the_same(kind: str) -> None:
    model = of_images(lambda x: L.ReLU(**KINDS[kind])(convolution(x)))
    inputs = inputs_of(model, 0)
    found = rewrite(model).model
    np.testing.assert_allclose(found(inputs), model(inputs), rtol=1e-5, atol=1e-5)


def test_steps_are_not_wasted_above_the_limit() -> None:
    """What is cut off at 0.5 needs no range up to what the convolution gives."""
    model = of_images(lambda x: L.ReLU(0.5, name="limited")(convolution(x)))
    quantized = quantize(model, Quantization(), sparse=False).model
    train(quantized)
    for each in (quantized, copy_quantized(quantized)):
        limited = each.get_layer("quant_limited").output
        values = tf_keras.Model(each.input, limited)(inputs_of(model, 0)).numpy()
        assert values.max() == pytest.approx(0.5)
        assert len(np.unique(values)) > 250


def test_with_a_threshold_it_is_named() -> None:
    model = of_images(lambda x: L.ReLU(threshold=0.5, name="above")(convolution(x, name="read")))
    quantized = quantize(model, Quantization(), sparse=False)
    assert quantized.left_float == {"above": "tfmot has no quantizer for ReLU with a threshold"}
    kernel = quantized.model.get_layer("quant_read")
    assert any("kernel_max" in weight.name for weight in kernel.weights)


def test_joined_with_larger_values_it_is_still_cut_off(tmp_path: Path) -> None:
    """All parts of a concatenation have one range, which goes above the limit then."""

    def body(image: Any) -> Any:
        limited = L.ReLU(0.5)(convolution(image))
        return L.Concatenate()([limited, convolution(image, activation="relu")])

    quantized = quantize(of_images(body), Quantization(strict=True), sparse=False)
    train(quantized.model)
    _, floating, errors = exported(quantized, tmp_path)
    assert not floating
    assert np.quantile(errors, 0.99) <= 2.001
    joined = next(each for each in quantized.model.layers if "concatenate" in each.name)
    outputs = tf_keras.Model(quantized.model.input, joined.output)(inputs_of(quantized.model, 0))
    assert tf.reduce_max(outputs[..., :8]) < 0.52
    assert tf.reduce_max(outputs[..., 8:]) > 1.0

"""Multiply-accumulates of layers and of a file's operators, against formulas and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from quick import only

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ConversionError, ModelError
from tfdistill.export.conversion import convert, random_examples
from tfdistill.inspection.layer_costs import layer_costs
from tfdistill.litert.operator_costs import integer_share, multiply_accumulates, total

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
Layer = Callable[[Any], Any]

# Each formula: values made (or, transposed, values read) times the weights that each one meets.
FORMULAS: dict[str, tuple[Layer, tuple[int, ...], int]] = {
    "convolution": (lambda k: k.Conv2D(4, 3), (13, 11, 5), 11 * 9 * 4 * (3 * 3 * 5)),
    "strides": (lambda k: k.Conv2D(4, 3, 2, "same"), (13, 11, 5), 7 * 6 * 4 * (3 * 3 * 5)),
    "dilated": (
        lambda k: k.Conv2D(4, 3, padding="same", dilation_rate=2),
        (13, 11, 5),
        13 * 11 * 4 * (3 * 3 * 5),
    ),
    "groups": (lambda k: k.Conv2D(4, 3, groups=2), (13, 11, 6), 11 * 9 * 4 * (3 * 3 * 3)),
    "of one axis": (lambda k: k.Conv1D(4, 3), (13, 5), 11 * 4 * (3 * 5)),
    "causal": (
        lambda k: k.Conv1D(4, 3, padding="causal", dilation_rate=2),
        (13, 5),
        13 * 4 * (3 * 5),
    ),
    "of three axes": (lambda k: k.Conv3D(4, 3), (5, 6, 7, 2), 3 * 4 * 5 * 4 * (27 * 2)),
    "depthwise": (
        lambda k: k.DepthwiseConv2D(3, depth_multiplier=2),
        (13, 11, 5),
        11 * 9 * 10 * (3 * 3),
    ),
    "separable": (
        lambda k: k.SeparableConv2D(4, 3),
        (13, 11, 5),
        11 * 9 * 5 * (3 * 3) + 11 * 9 * 4 * 5,
    ),
    "transposed": (
        lambda k: k.Conv2DTranspose(4, 3, strides=2),
        (13, 11, 5),
        13 * 11 * 5 * (3 * 3 * 4),
    ),
    "dense": (lambda k: k.Dense(7), (5,), 5 * 7),
    "dense of rank 3": (lambda k: k.Dense(7), (2, 3, 5), 2 * 3 * 5 * 7),
    "einsum": (lambda k: k.EinsumDense("abc,cd->abd", (None, 7)), (3, 5), 3 * 5 * 7),
    "einsum of any rank": (lambda k: k.EinsumDense("...x,xy->...y", (7,)), (3, 5), 3 * 5 * 7),
    "LSTM": (lambda k: k.LSTM(6), (9, 5), 9 * 4 * (5 * 6 + 6 * 6)),
    "GRU": (lambda k: k.GRU(6), (9, 5), 9 * 3 * (5 * 6 + 6 * 6)),
    "simple recurrent": (lambda k: k.SimpleRNN(6), (9, 5), 9 * (5 * 6 + 6 * 6)),
    "both directions": (lambda k: k.Bidirectional(k.GRU(6)), (9, 5), 2 * 9 * 3 * (5 * 6 + 6 * 6)),
    "for each step": (lambda k: k.TimeDistributed(k.Dense(7)), (9, 5), 9 * 5 * 7),
    "nothing": (lambda k: k.MaxPooling2D(), (4, 4, 3), 0),
}


def model_of(library: Any, make: Layer, shape: tuple[int | None, ...]) -> Any:
    inputs = library.Input(shape)
    return library.Model(inputs, make(library.layers)(inputs))


@LIBRARIES
@pytest.mark.parametrize("name", FORMULAS)
def test_layer_costs_what_its_formula_says(name: str, library: Any) -> None:
    make, shape, expected = FORMULAS[name]
    (cost,) = layer_costs(model_of(library, make, shape))
    assert cost.multiply_accumulates == expected


def out(size: int, kernel: int, stride: int = 1) -> int:
    """Places of a kernel along an axis, without padding."""
    return (size - kernel) // stride + 1


def product(*sizes: int) -> int:
    return math.prod(sizes)


def gates(count: int, inputs: int, units: int) -> int:
    """One step of a recurrent layer: both kernels meet their vectors once."""
    return count * units * (inputs + units)


def lstm_of_images(filters: int, *shape: int) -> int:
    """3 wide along each axis: of the input at the places it fits, of the state at all of them."""
    steps, *axes, channels = shape
    places = product(*(out(size, 3) for size in axes))
    return steps * places * 3 ** len(axes) * 4 * filters * (channels + filters)


# Three shapes of one rank for each layer with a kernel, and the count for any such shape.
SHAPES: dict[int, list[tuple[int, ...]]] = {
    1: [(5,), (8,), (3,)],
    2: [(9, 5), (7, 2), (4, 6)],
    3: [(13, 11, 5), (6, 9, 2), (8, 8, 4)],
    4: [(5, 6, 7, 2), (4, 4, 4, 3), (6, 3, 5, 1)],
    5: [(2, 4, 5, 3, 2), (3, 3, 3, 3, 1), (1, 4, 4, 4, 3)],
}
_Count = Callable[..., int]
WITH_KERNELS: dict[str, tuple[int, Layer, _Count]] = {
    "Dense": (1, lambda k: k.Dense(7), lambda c: 7 * c),
    "Dense of rank 3": (2, lambda k: k.Dense(7), lambda t, c: 7 * t * c),
    "EinsumDense": (2, lambda k: k.EinsumDense("abc,cd->abd", (None, 7)), lambda t, c: 7 * t * c),
    "Embedding": (1, lambda k: k.Embedding(9, 4), lambda t: 0),
    "Conv1D": (2, lambda k: k.Conv1D(4, 3), lambda t, c: out(t, 3) * 4 * 3 * c),
    "Conv2D": (
        3,
        lambda k: k.Conv2D(4, (3, 2), strides=2),
        lambda h, w, c: out(h, 3, 2) * out(w, 2, 2) * 4 * 6 * c,
    ),
    "Conv3D": (
        4,
        lambda k: k.Conv3D(4, 3),
        lambda d, h, w, c: out(d, 3) * out(h, 3) * out(w, 3) * 4 * 27 * c,
    ),
    "DepthwiseConv1D": (
        2,
        lambda k: k.DepthwiseConv1D(3, depth_multiplier=2),
        lambda t, c: out(t, 3) * 3 * 2 * c,
    ),
    "DepthwiseConv2D": (
        3,
        lambda k: k.DepthwiseConv2D(3, depth_multiplier=2),
        lambda h, w, c: out(h, 3) * out(w, 3) * 9 * 2 * c,
    ),
    "SeparableConv1D": (
        2,
        lambda k: k.SeparableConv1D(4, 3, depth_multiplier=2),
        lambda t, c: out(t, 3) * 2 * c * (3 + 4),
    ),
    "SeparableConv2D": (
        3,
        lambda k: k.SeparableConv2D(4, 3),
        lambda h, w, c: out(h, 3) * out(w, 3) * c * (9 + 4),
    ),
    "Conv1DTranspose": (2, lambda k: k.Conv1DTranspose(4, 3, 2), lambda t, c: t * c * 3 * 4),
    "Conv2DTranspose": (
        3,
        lambda k: k.Conv2DTranspose(4, 3, 2),
        lambda h, w, c: h * w * c * 9 * 4,
    ),
    "Conv3DTranspose": (
        4,
        lambda k: k.Conv3DTranspose(4, 3, 2),
        lambda d, h, w, c: d * h * w * c * 27 * 4,
    ),
    "LSTM": (2, lambda k: k.LSTM(6), lambda t, c: t * gates(4, c, 6)),
    "GRU": (2, lambda k: k.GRU(6), lambda t, c: t * gates(3, c, 6)),
    "GRU, reset before": (
        2,
        lambda k: k.GRU(6, reset_after=False),
        lambda t, c: t * gates(3, c, 6),
    ),
    "SimpleRNN": (2, lambda k: k.SimpleRNN(6), lambda t, c: t * gates(1, c, 6)),
    "SimpleRNN, unrolled": (
        2,
        lambda k: k.SimpleRNN(6, unroll=True),
        lambda t, c: t * gates(1, c, 6),
    ),
    "RNN of two cells": (
        2,
        lambda k: k.RNN([k.LSTMCell(6), k.GRUCell(3)]),
        lambda t, c: t * (gates(4, c, 6) + gates(3, 6, 3)),
    ),
    "Bidirectional": (
        2,
        lambda k: k.Bidirectional(k.LSTM(6, return_sequences=True)),
        lambda t, c: 2 * t * gates(4, c, 6),
    ),
    "ConvLSTM1D": (3, lambda k: k.ConvLSTM1D(4, 3), partial(lstm_of_images, 4)),
    "ConvLSTM2D": (4, lambda k: k.ConvLSTM2D(4, 3), partial(lstm_of_images, 4)),
    "ConvLSTM3D": (5, lambda k: k.ConvLSTM3D(4, 3), partial(lstm_of_images, 4)),
    "ConvLSTM2D, large": (  # its first state is made with a kernel of over 1000 zeros
        4,
        lambda k: k.ConvLSTM2D(128, 3),
        partial(lstm_of_images, 128),
    ),
    "TimeDistributed(Dense)": (
        2,
        lambda k: k.TimeDistributed(k.Dense(7)),
        lambda t, c: 7 * t * c,
    ),
    "TimeDistributed(Conv2D)": (
        4,
        lambda k: k.TimeDistributed(k.Conv2D(4, 3)),
        lambda t, h, w, c: t * out(h, 3) * out(w, 3) * 4 * 9 * c,
    ),
    "TimeDistributed(LSTM)": (
        3,
        lambda k: k.TimeDistributed(k.LSTM(5)),
        lambda s, t, c: s * t * gates(4, c, 5),
    ),
    "TimeDistributed(Bidirectional(GRU))": (
        3,
        lambda k: k.TimeDistributed(k.Bidirectional(k.GRU(5))),
        lambda s, t, c: 2 * s * t * gates(3, c, 5),
    ),
    "TimeDistributed(TimeDistributed(LSTM))": (
        4,
        lambda k: k.TimeDistributed(k.TimeDistributed(k.LSTM(5))),
        lambda r, s, t, c: r * s * t * gates(4, c, 5),
    ),
}
OF_TF_KERAS: dict[str, tuple[int, Layer, _Count]] = {  # Keras 3 has them no more
    "LocallyConnected1D": (
        2,
        lambda k: k.LocallyConnected1D(4, 3),
        lambda t, c: out(t, 3) * 4 * 3 * c,
    ),
    "LocallyConnected2D": (
        3,
        lambda k: k.LocallyConnected2D(4, 3),
        lambda h, w, c: out(h, 3) * out(w, 3) * 4 * 9 * c,
    ),
}


@pytest.mark.parametrize(
    ("library", "name"),
    only(
        *((library, name) for library in (keras, tf_keras) for name in ("Conv2D", "ConvLSTM2D")),
        (tf_keras, "TimeDistributed(LSTM)"),
        of=[
            *((library, name) for library in (keras, tf_keras) for name in WITH_KERNELS),
            *((tf_keras, name) for name in OF_TF_KERAS),
        ],
        several=True,
    ),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_layer_with_a_kernel_costs_what_its_formula_says_of_any_shape(
    library: Any, name: str
) -> None:
    rank, make, count = (WITH_KERNELS | OF_TF_KERAS)[name]
    for shape in SHAPES[rank]:
        (cost,) = layer_costs(model_of(library, make, shape))
        assert cost.multiply_accumulates == count(*shape), shape


@LIBRARIES
def test_first_state_that_is_given_is_no_list_of_steps(library: Any) -> None:
    layers = library.layers
    inputs, state = library.Input((7, 5)), library.Input((6,))
    outputs = layers.GRU(6, name="gru")(inputs, initial_state=state)
    (cost,) = layer_costs(library.Model([inputs, state], outputs))
    assert cost.multiply_accumulates == 7 * gates(3, 5, 6)


@LIBRARIES
def test_mask_does_not_change_what_a_step_costs(library: Any) -> None:
    layers = library.layers
    inputs = library.Input((7,), dtype="int32")
    hidden = layers.Embedding(9, 5, mask_zero=True)(inputs)
    costs = layer_costs(library.Model(inputs, layers.GRU(6, name="gru")(hidden)))
    assert {c.name: c.multiply_accumulates for c in costs}["gru"] == 7 * gates(3, 5, 6)


@pytest.mark.slow  # each formula alone is tested above
def test_file_costs_what_all_formulas_say() -> None:
    inputs = [tf_keras.Input(shape) for _, shape, _ in FORMULAS.values()]
    layers = [make(tf_keras.layers) for make, _, _ in FORMULAS.values()]
    outputs = [layer(each) for layer, each in zip(layers, inputs, strict=True)]
    costs = multiply_accumulates(convert(tf_keras.Model(inputs, outputs), "float32"))
    counts = [cost.multiply_accumulates for cost in costs]
    assert total(costs) == sum(expected for _, _, expected in FORMULAS.values())
    for name in ("convolution", "dilated", "depthwise", "transposed", "of three axes", "dense"):
        assert FORMULAS[name][2] in counts, name


@LIBRARIES
def test_attention_costs_its_projections_and_both_products(library: Any) -> None:
    queries, keys, width, heads, size = 7, 4, 8, 2, 3
    first, second = library.Input((queries, width)), library.Input((keys, width))
    layer = library.layers.MultiHeadAttention(heads, size)
    model = library.Model([first, second], layer(first, second))
    (cost,) = layer_costs(model)
    projections = (2 * queries + 2 * keys) * width * heads * size  # query, output; key, value
    products = 2 * heads * queries * keys * size
    assert cost.multiply_accumulates == projections + products


@LIBRARIES
def test_shared_layer_costs_each_use_and_is_listed_once(library: Any) -> None:
    dense = library.layers.Dense(5, name="shared")
    inputs = library.Input((5,))
    (cost,) = layer_costs(library.Model(inputs, dense(dense(inputs))))
    assert (cost.multiply_accumulates, cost.parameters) == (2 * 5 * 5, 5 * 5 + 5)
    assert cost.output_shape == (None, 5)


@LIBRARIES
def test_nested_layers_are_listed_with_their_paths(library: Any) -> None:
    layers = library.layers
    inner = library.Sequential([library.Input((4,)), layers.Dense(3, name="dense")], name="encoder")
    inputs = library.Input((4,))
    model = library.Model(inputs, layers.Dense(2, name="logits")(inner(inputs)))
    found = [(cost.name, cost.path, cost.multiply_accumulates) for cost in layer_costs(model)]
    assert found == [("dense", "encoder/dense", 12), ("logits", "logits", 6)]


@LIBRARIES
def test_open_size_leaves_only_what_depends_on_it_unknown(library: Any) -> None:
    layers = library.layers
    inputs = library.Input((None, None, 3))
    hidden = layers.GlobalAveragePooling2D(name="pooling")(layers.Conv2D(4, 3, name="c")(inputs))
    model = library.Model(inputs, layers.Dense(2, name="logits")(hidden))
    costs = {cost.name: cost for cost in layer_costs(model)}
    assert costs["c"].multiply_accumulates is None
    assert costs["c"].output_shape == (None, None, None, 4)
    assert costs["logits"].multiply_accumulates == 4 * 2


@LIBRARIES
def test_open_number_of_steps_leaves_a_recurrent_layer_unknown(library: Any) -> None:
    (cost,) = layer_costs(model_of(library, lambda k: k.LSTM(3), (None, 2)))
    assert cost.multiply_accumulates is None


def test_model_without_a_graph_is_refused() -> None:
    with pytest.raises(ConversionError, match="`model` must be built"):
        layer_costs(keras.Sequential([keras.layers.Dense(2)]))


@pytest.mark.slow
def test_layers_and_file_agree_on_a_mobile_net() -> None:
    model = tf_keras.applications.MobileNet(weights=None, input_shape=(64, 64, 3), alpha=0.25)
    costs = layer_costs(model)
    by_layer = sum(cost.multiply_accumulates or 0 for cost in costs)
    assert by_layer == _mobile_net(64, 0.25)
    assert total(multiply_accumulates(convert(model, "float32"))) == by_layer
    assert sum(cost.parameters for cost in costs) == model.count_params()


def _mobile_net(size: int, alpha: float) -> int:
    """Howard 2017 (https://arxiv.org/abs/1704.04861), table 1."""
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    blocks += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    size, width = size // 2, int(32 * alpha)
    count = size * size * width * 27
    for outputs, stride in blocks:
        size = math.ceil(size / stride)
        outputs = int(outputs * alpha)
        count += size * size * width * (9 + outputs)
        width = outputs
    return count + width * 1000


# --- files ---


def small() -> Any:
    layers = tf_keras.layers
    inputs = layers.Input((8, 8, 3))
    hidden = layers.Conv2D(32, 3, name="convolution")(inputs)
    hidden = layers.Flatten()(hidden)
    return tf_keras.Model(inputs, layers.Dense(10, name="logits")(hidden))


CONVOLUTION, DENSE = 6 * 6 * 32 * 27, 6 * 6 * 32 * 10


@pytest.mark.parametrize(
    ("format", "types"),
    [
        ("float32", ("float32", "float32")),
        ("float16", ("float32", "float16")),
        ("dynamic_int8", ("float32", "int8")),
        ("int8", ("int8", "int8")),
        ("int16x8", ("int16", "int8")),
    ],
)
def test_operators_tell_the_types_of_both_factors(format: str, types: tuple[str, str]) -> None:
    model = small()
    examples = random_examples(model) if "int" in format and format != "dynamic_int8" else ()
    costs = multiply_accumulates(convert(model, format, examples=examples))
    (convolution,) = [cost for cost in costs if cost.name == "CONV_2D"]
    (dense,) = [cost for cost in costs if cost.name == "FULLY_CONNECTED"]
    assert (convolution.multiply_accumulates, dense.multiply_accumulates) == (CONVOLUTION, DENSE)
    # the converter leaves kernels of less than 1024 weights alone
    weights = "float32" if format == "dynamic_int8" else types[1]
    assert (convolution.activations, convolution.weights) == (types[0], weights)
    assert (dense.activations, dense.weights) == types
    assert integer_share(costs) == (1.0 if format in ("int8", "int16x8") else 0.0)


def test_share_of_a_file_that_is_half_in_float(tmp_path: Any) -> None:
    from tfdistill.quantization import Quantization, quantize

    quantized = quantize(small(), Quantization(skip=["logits"]), sparse=False).model
    quantized(np.zeros([1, 8, 8, 3], np.float32), training=True)  # ranges begin with a batch
    path = tmp_path / "half.tflite"
    path.write_bytes(convert(quantized, "int8", quantization_aware=True))
    costs = multiply_accumulates(path)
    assert integer_share(costs) == pytest.approx(CONVOLUTION / (CONVOLUTION + DENSE))


def test_body_of_a_loop_counts_once_a_round() -> None:
    content = convert(model_of(tf_keras, lambda k: k.GRU(6), (9, 5)), "float32")
    inside = [cost for cost in multiply_accumulates(content) if cost.multiply_accumulates]
    assert {cost.runs for cost in inside} == {9}


def test_loop_without_a_fixed_end_is_not_known() -> None:
    def until_large(values: Any) -> Any:
        kernel = tf.constant(np.eye(3, dtype=np.float32) * 2)
        return tf.while_loop(
            lambda each: tf.reduce_sum(each) < 100.0, lambda each: [each @ kernel], [values]
        )[0]

    inputs = tf_keras.Input((3,))
    model = tf_keras.Model(inputs, tf_keras.layers.Lambda(until_large, name="loop")(inputs))
    assert layer_costs(model)[0].multiply_accumulates is None
    costs = multiply_accumulates(convert(model, "float32"))
    assert total(costs) is None
    assert integer_share(costs) is None


def test_custom_operators_are_not_known() -> None:
    inputs = tf_keras.Input((2, 2))
    layer = tf_keras.layers.Lambda(tf.linalg.det, name="determinant")
    content = convert(tf_keras.Model(inputs, layer(inputs)), "float32", allow_select_ops=True)
    (cost,) = [each for each in multiply_accumulates(content) if each.name.startswith("Flex")]
    assert cost.multiply_accumulates is None


def test_what_is_no_file_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "text.tflite"
    path.write_text("no model")
    with pytest.raises(ModelError, match="must be a LiteRT model"):
        multiply_accumulates(path)

"""Quantization-aware training: which kernels are quantized, which zeros stay, what is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdistill import quantization
from tfdistill._keras import tf, tf_keras, tfmot
from tfdistill.distiller import Distiller
from tfdistill.errors import ModelError, SettingError, SparsityError
from tfdistill.export import ExportedModel, export_model
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.losses import SoftTargets
from tfdistill.pruning import kernel_zeros
from tfdistill.quantization import Quantization, QuantizedModel, quantize, quantized_kernels
from tfdistill.stages import Student, _require_zeros_kept

LAYERS = tf_keras.layers
SHAPE = (8, 8, 3)


def network(body: Callable[[Any], Any], *, sparsity: float = 0.75) -> Any:
    """A model around `body`, with random statistics, and random zeros in its kernels."""
    inputs = LAYERS.Input(SHAPE, name="image")
    model = tf_keras.Model(inputs, body(inputs))
    generator = np.random.default_rng(0)
    weights = []
    for weight in model.weights:
        name, values = weight.name, weight.numpy()
        if "gamma" in name or "variance" in name:
            values = generator.uniform(0.5, 2.0, values.shape)
        elif "beta" in name or "mean" in name or "bias" in name:
            values = generator.normal(size=values.shape)
        elif values.ndim > 1 and "depthwise" not in name:  # tfmot prunes no depthwise kernels
            values = np.where(generator.uniform(size=values.shape) < sparsity, 0.0, values)
        weights.append(values)
    model.set_weights(weights)
    return model


def head(tensor: Any) -> Any:
    return LAYERS.Dense(5, name="logits")(LAYERS.Flatten()(tensor))


def images(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, [count, *SHAPE]).astype(np.float32)


def train(model: Any, steps: int = 8) -> None:
    """A few steps, eagerly: tracing these models would take longer."""
    optimizer = tf_keras.optimizers.Adam(0.01)
    inputs = tf.constant(images())
    labels = tf.one_hot(tf.range(len(inputs)) % 5, 5)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean((model(inputs, training=True) - labels) ** 2)
        optimizer.minimize(error, model.trainable_variables, tape)


def zeros_of(model: Any) -> dict[str, int]:
    return {name: int(np.sum(kernel == 0)) for name, kernel in quantized_kernels(model).items()}


def has_quantizer(model: Any, name: str) -> bool:
    wrapper = next(layer for layer in model.layers if layer.name == f"quant_{name}")
    return any("kernel_max" in weight.name for weight in wrapper.weights)


def export(model: Any, folder: Path) -> tuple[ExportedModel, LiteRTModel]:
    path = folder / "student.tflite"
    return export_model(model, path, "int8", quantization_aware=True), LiteRTModel(path)


def error_in_steps(model: Any, exported: ExportedModel, artifact: LiteRTModel) -> np.ndarray:
    inputs = images(40, seed=1)
    (outputs,) = artifact.predict(inputs).values()
    (scale,) = exported.inspection.output_scales.values()
    return np.abs(outputs - model(inputs, training=False).numpy()) / scale


def float_operators(exported: ExportedModel) -> set[str]:
    return {
        operator.name
        for operator in exported.inspection.operators
        if operator.activations == "float32" and operator.name != "DEQUANTIZE"
    }


# ---------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be a whole number >= 1\. Received: 0\."),
        ({"learning_rate": -1.0}, r"`learning_rate` must be a finite number > 0\. .*: -1\.0\."),
        ({"skip": "logits"}, r"`skip` must be a list of layer names\. Received: 'logits'\."),
        ({"strict": "yes"}, r"`strict` must be True or False\. Received: 'yes'\."),
        ({"epoch": 3}, r"`epoch` must be a setting of Quantization\. .*Did you mean epochs\b"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Quantization(**settings)


def test_a_layer_to_skip_must_be_in_the_model() -> None:
    with pytest.raises(
        ModelError, match=r"`logitz` must be a layer of the student\. .*nearest names are: logits"
    ):
        quantize(network(head), Quantization(skip=["logitz"]), sparse=False)


# ---------------------------------------------------------------------------------------------
# What tfmot does, so that we learn when it changes


def before_relu(kernel: Any, activation: Any) -> Callable[[Any], Any]:
    return lambda inputs: head(activation(kernel(inputs)))


def _each_activation() -> Iterator[Any]:
    """Of each kind of layer before it one, the others with `make test-slow`."""
    kinds = (LAYERS.Conv2D, LAYERS.Conv2DTranspose, LAYERS.DepthwiseConv2D, LAYERS.Dense)
    activations = {
        "ReLU": lambda: LAYERS.ReLU(),
        "ReLU6": lambda: LAYERS.ReLU(max_value=6.0),
        "Activation": lambda: LAYERS.Activation("relu"),
    }
    for place, kind in enumerate(kinds):
        for other, (name, activation) in enumerate(activations.items()):
            marks = [] if place % 3 == other else [pytest.mark.slow]
            yield pytest.param(kind, activation, id=f"{kind.__name__}-{name}", marks=marks)


@pytest.mark.parametrize(("kind", "activation"), [*_each_activation()])
def test_the_hole_of_tfmot_is_closed(kind: Any, activation: Callable[[], Any]) -> None:
    size = {} if kind is LAYERS.Dense else {"kernel_size": 3}
    filters = {} if kind is LAYERS.DepthwiseConv2D else {"units" if not size else "filters": 4}
    model = network(before_relu(kind(**size, **filters, name="before"), activation()))

    plain = tfmot.quantization.keras.quantize_model(model)
    ours = quantize(model, Quantization(), sparse=False)

    assert not has_quantizer(plain, "before"), "tfmot has closed it: simplify `_kernel_config`"
    assert has_quantizer(ours.model, "before")
    assert has_quantizer(ours.model, "logits")
    assert ours.left_float == {}


def test_only_ours_keeps_the_zeros(tmp_path: Path) -> None:
    def body(inputs: Any) -> Any:
        hidden = LAYERS.Conv2D(16, 3, activation="relu", name="convolution")(inputs)
        return head(LAYERS.MaxPooling2D()(hidden))

    model = network(body)
    given = {name: count.zeros for name, count in kernel_zeros(model).items()}
    plain = tfmot.quantization.keras.quantize_model(model)
    ours = quantize(model, Quantization(), sparse=True).model
    for each in (plain, ours):
        train(each, steps=20)

    assert zeros_of(plain)["convolution"] < 0.2 * given["convolution"]
    assert all(zeros_of(ours)[name] >= count for name, count in given.items())
    kernel = model.get_layer("convolution").kernel.numpy()
    assert not np.any(quantized_kernels(ours)["convolution"][kernel == 0])


def test_tfmot_leaves_a_normalized_dense_layer_in_float(tmp_path: Path) -> None:
    """The converter cannot fold the normalization into a kernel with one range."""

    def body(inputs: Any) -> Any:
        hidden = LAYERS.Dense(8, name="hidden")(LAYERS.Flatten()(inputs))
        return head(LAYERS.ReLU()(LAYERS.BatchNormalization(name="normalization")(hidden)))

    model = network(body)
    plain = tfmot.quantization.keras.quantize_model(model)
    ours = quantize(model, Quantization(), sparse=True)
    types = {}
    for name, each in (("plain", plain), ("ours", ours.model)):
        train(each)
        (tmp_path / name).mkdir()
        exported, _ = export(each, tmp_path / name)
        types[name] = [weight.dtype for weight in exported.inspection.weights]

    assert types["plain"] == ["float32", "int8"]
    assert types["ours"] == ["int8"] * 3, "the dense layers, and the normalization between"
    assert ours.left_float == {}


# ---------------------------------------------------------------------------------------------
# Architectures, from the float model to the artifact


def plain_convolutions(inputs: Any) -> Any:
    hidden = LAYERS.ReLU()(LAYERS.Conv2D(8, 3, name="first")(inputs))
    hidden = LAYERS.Conv2D(8, 1, activation="relu", name="second")(hidden)
    hidden = LAYERS.Conv2D(8, 3, activation="relu6", name="third")(hidden)
    return head(LAYERS.MaxPooling2D()(hidden))


def normalized_convolution(inputs: Any) -> Any:
    hidden = LAYERS.Conv2D(8, 3, use_bias=False, name="convolution")(inputs)
    hidden = LAYERS.ReLU()(LAYERS.BatchNormalization()(hidden))
    return LAYERS.Dense(5, name="logits")(LAYERS.GlobalAveragePooling2D()(hidden))


def depthwise(inputs: Any) -> Any:
    hidden = LAYERS.ReLU(6.0)(LAYERS.Conv2D(8, 1, name="expansion")(inputs))
    hidden = LAYERS.DepthwiseConv2D(3, use_bias=False, name="depthwise")(hidden)
    hidden = LAYERS.ReLU(6.0)(LAYERS.BatchNormalization()(hidden))
    return head(LAYERS.AveragePooling2D()(hidden))


def residual(inputs: Any) -> Any:
    def normalized(tensor: Any, name: str) -> Any:
        tensor = LAYERS.Conv2D(8, 3, padding="same", name=name)(tensor)
        return LAYERS.BatchNormalization()(tensor)

    stem = LAYERS.ReLU()(normalized(inputs, "stem"))
    branch = LAYERS.ReLU()(normalized(stem, "inner"))
    hidden = LAYERS.ReLU()(LAYERS.Add()([normalized(branch, "outer"), stem]))
    return LAYERS.Dense(5, name="logits")(LAYERS.GlobalAveragePooling2D()(hidden))


def concatenated(inputs: Any) -> Any:
    left = LAYERS.Conv2D(4, 3, padding="same", activation="relu", name="left")(inputs)
    right = LAYERS.ReLU()(LAYERS.Conv2D(4, 1, name="right")(inputs))
    straight = LAYERS.Conv2D(4, 1, name="straight")(inputs)
    return head(LAYERS.Concatenate()([left, right, straight]))


def dense(inputs: Any) -> Any:
    hidden = LAYERS.ReLU()(LAYERS.Dense(16, name="first")(LAYERS.Flatten()(inputs)))
    hidden = LAYERS.Dropout(0.2)(hidden)
    hidden = LAYERS.Dense(16, activation="relu", name="second")(hidden)
    return LAYERS.Dense(5, name="logits")(hidden)


def separable(inputs: Any) -> Any:
    hidden = LAYERS.SeparableConv2D(8, 3, name="first")(inputs)
    hidden = LAYERS.ReLU()(LAYERS.BatchNormalization()(hidden))
    return head(LAYERS.SeparableConv2D(8, 3, activation="relu", name="second")(hidden))


def separable_1d(inputs: Any) -> Any:
    hidden = LAYERS.SeparableConv1D(8, 3, name="convolution")(LAYERS.Reshape([64, 3])(inputs))
    return head(LAYERS.ReLU()(LAYERS.BatchNormalization()(hidden)))


def transposed(inputs: Any) -> Any:
    hidden = LAYERS.ReLU()(LAYERS.Conv2DTranspose(8, 3, name="first")(inputs))
    hidden = LAYERS.Conv2DTranspose(4, 3, name="second")(hidden)
    return head(LAYERS.BatchNormalization(name="normalization")(hidden))


def softmax(inputs: Any) -> Any:
    hidden = LAYERS.ReLU()(LAYERS.Conv2D(8, 3, name="convolution")(inputs))
    return LAYERS.Activation("softmax", name="probabilities")(head(hidden))


def merges(inputs: Any) -> Any:
    left = LAYERS.Conv2D(4, 3, activation="relu", name="left")(inputs)
    right = LAYERS.Conv2D(4, 3, name="right")(inputs)
    product = LAYERS.Multiply(name="product")([left, right])
    hidden = LAYERS.Maximum()([product, LAYERS.Average(name="average")([left, right])])
    hidden = LAYERS.Subtract()([LAYERS.Minimum()([hidden, left]), right])
    hidden = LAYERS.Add(name="sum_of_three")([hidden, left, right])
    return head(LAYERS.Multiply(name="product_of_three")([hidden, left, right]))


def float_inside(inputs: Any) -> Any:
    hidden = LAYERS.Rescaling(0.5, 1.0, name="rescaling")(inputs)
    hidden = LAYERS.Conv2D(8, 3, activation="relu", name="first")(hidden)
    hidden = LAYERS.BatchNormalization(name="free")(hidden)  # the activation is before it
    hidden = LAYERS.Conv2D(8, 3, activation="elu", name="second")(hidden)
    hidden = LAYERS.Conv2D(8, 1, name="third")(hidden)
    return head(LAYERS.Activation("hard_sigmoid", name="hard")(hidden))


ARCHITECTURES: dict[Callable[[Any], Any], dict[str, str]] = {
    plain_convolutions: {},
    normalized_convolution: {},
    depthwise: {},
    residual: {},
    concatenated: {},
    dense: {},
    separable: {},
    separable_1d: {},
    softmax: {},
    transposed: {},
    merges: {},
    float_inside: {"second": "tfmot has no quantizer for Activation elu"},
}


# Each a part of another, or much like the rewrites of test_rewrites.py.
_ALIKE = (
    *(concatenated, dense, depthwise, float_inside, plain_convolutions, residual, separable),
    *(separable_1d, softmax, transposed),
)


@pytest.mark.parametrize(
    "body",
    [pytest.param(b, marks=[pytest.mark.slow] if b in _ALIKE else []) for b in ARCHITECTURES],
    ids=lambda body: body.__name__,
)
def test_the_artifact_is_the_model_and_keeps_its_zeros(
    body: Callable[[Any], Any], tmp_path: Path
) -> None:
    model = network(body)
    given = [weight.copy() for weight in model.get_weights()]
    zeros = {name: count.zeros for name, count in kernel_zeros(model).items()}

    quantized = quantize(model, Quantization(), sparse=True)
    train(quantized.model)
    exported, artifact = export(quantized.model, tmp_path)

    kernels = quantized_kernels(quantized.model)
    assert set(zeros) <= set(kernels)
    for name, count in zeros.items():
        assert has_quantizer(quantized.model, name)
        assert np.sum(kernels[name] == 0) >= count > 0, name
    # Nothing left in float is unreported, and nothing reported is in 8 bits.
    assert quantized.left_float == ARCHITECTURES[body]
    assert bool(float_operators(exported)) == bool(quantized.left_float)
    stored = Counter((weight.elements, weight.zeros) for weight in exported.inspection.weights)
    counted = {name: (k.size, int(np.sum(k == 0))) for name, k in kernels.items()}
    assert set(stored) == set(counted.values())
    # The constants of rewrites may be stored once for several.
    assert Counter(counted[name] for name in zeros) <= stored
    errors = error_in_steps(quantized.model, exported, artifact)
    print(f"{body.__name__}: max {errors.max():.2f}, 99 % {np.quantile(errors, 0.99):.2f}")
    assert np.quantile(errors, 0.9) <= 1.001
    assert errors.max() <= 2.001
    for weight, before in zip(model.get_weights(), given, strict=True):
        np.testing.assert_array_equal(weight, before)


def maximum(inputs: Any) -> Any:
    return head(LAYERS.Maximum()(small_and_large(inputs)))


def minimum(inputs: Any) -> Any:
    return head(LAYERS.Minimum()(small_and_large(inputs)))


def concatenate(inputs: Any) -> Any:
    small, large = small_and_large(inputs)
    hidden = LAYERS.Concatenate()([small, LAYERS.MaxPooling2D()(inputs)])
    pooled = [LAYERS.MaxPooling2D()(hidden), LAYERS.AveragePooling2D()(large)]
    return head(LAYERS.Concatenate()(pooled))


def small_and_large(inputs: Any) -> tuple[Any, Any]:
    """Two tensors of ranges far from each other."""
    both = []
    for name, deviation, activation in (("small", 0.01, "relu"), ("large", 0.5, None)):
        initializer = tf_keras.initializers.RandomNormal(stddev=deviation, seed=1)
        layer = LAYERS.Conv2D(
            4, 3, 2, "same", activation=activation, kernel_initializer=initializer, name=name
        )
        both.append(layer(inputs))
    return both[0], both[1]


@pytest.mark.parametrize(
    "body",
    [concatenate, *(pytest.param(b, marks=pytest.mark.slow) for b in (maximum, minimum))],
    ids=lambda body: body.__name__,
)
def test_what_is_merged_in_one_operator_has_one_range(
    body: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the converter takes one of the ranges, silently, and clips the others to it."""
    errors = []
    for name in ("joined", "naive"):
        (tmp_path / name).mkdir()
        if name == "naive":
            monkeypatch.setattr(quantization, "join_ranges", lambda model: None)
        inputs = LAYERS.Input(SHAPE, name="image")
        quantized = quantize(tf_keras.Model(inputs, body(inputs)), Quantization(), sparse=False)
        train(quantized.model)
        exported, artifact = export(quantized.model, tmp_path / name)
        assert not float_operators(exported)
        errors.append(error_in_steps(quantized.model, exported, artifact).max())

    assert errors[0] <= 2.001
    assert errors[1] > 10


def test_ranges_begin_with_the_first_batch() -> None:
    """tfmot's begin at -6 to 6, and are still a third there after a thousand steps."""

    def body(inputs: Any) -> Any:
        hidden = LAYERS.Conv2D(8, 3, activation="relu", name="convolution")(inputs)
        return LAYERS.Dense(5, name="logits")(LAYERS.Flatten()(hidden))

    model = network(body, sparsity=0.0)
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([kernel * 10, bias])
    expected = model(images()).numpy()
    assert np.max(np.abs(expected)) > 20

    errors = {}
    for name, quantized in (
        ("plain", tfmot.quantization.keras.quantize_model(model)),
        ("ours", quantize(model, Quantization(), sparse=False).model),
    ):
        quantized(images(), training=True)
        errors[name] = np.abs(quantized(images(), training=False) - expected).max()

    assert errors["ours"] < 0.02 * np.ptp(expected)
    assert errors["plain"] > 10 * errors["ours"]


def test_two_inputs_are_concatenated_in_one_range(tmp_path: Path) -> None:
    """tfmot leaves inputs that go to a concatenation alone without a quantizer."""
    small, large = LAYERS.Input([4], name="small"), LAYERS.Input([3], name="large")
    hidden = LAYERS.Dense(8, name="hidden")(LAYERS.Concatenate()([small, large]))
    model = tf_keras.Model([small, large], LAYERS.Dense(5, name="logits")(hidden))
    generator = np.random.default_rng(0)
    batch = {
        "small": generator.normal(0, 0.1, [32, 4]).astype(np.float32),
        "large": generator.normal(0, 10.0, [32, 3]).astype(np.float32),
    }
    quantized = quantize(model, Quantization(), sparse=False).model
    quantized(batch, training=True)

    exported, artifact = export(quantized, tmp_path)

    assert not float_operators(exported)
    (scale,) = exported.inspection.output_scales.values()
    assert scale is not None
    outputs = artifact.predict(batch)["logits"]
    assert np.max(np.abs(outputs - quantized(batch, training=False))) <= 1.001 * scale


def test_kernels_are_on_a_grid_of_8_bits() -> None:
    quantized = quantize(network(plain_convolutions), Quantization(), sparse=True).model
    train(quantized)
    ranges = {
        weight.name.split("/")[0]: weight.numpy()
        for weight in quantized.weights
        if "kernel_max" in weight.name
    }
    for name, kernel in quantized_kernels(quantized).items():
        largest = ranges[f"quant_{name}"]
        assert largest.shape == (() if name == "logits" else kernel.shape[-1:])
        steps = kernel / (largest / 127)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        assert len(np.unique(np.round(steps))) > 10


def test_a_channel_that_is_pruned_away_stays_zero(tmp_path: Path) -> None:
    """Its largest weight is 0: a scale of 0 would make NaN."""
    model = network(plain_convolutions, sparsity=0.0)
    for name in ("first", "logits"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[..., 2] = 0
        model.get_layer(name).set_weights([kernel, bias])

    quantized = quantize(model, Quantization(), sparse=True).model
    train(quantized)
    exported, artifact = export(quantized, tmp_path)

    assert all(np.all(np.isfinite(weight)) for weight in quantized.get_weights())
    for name in ("first", "logits"):
        assert not np.any(quantized_kernels(quantized)[name][..., 2])
    errors = error_in_steps(quantized, exported, artifact)
    assert np.all(np.isfinite(errors))
    assert errors.max() <= 1.001


# ---------------------------------------------------------------------------------------------
# Skipped and unknown layers


def test_a_skipped_last_layer_is_float_and_keeps_its_zeros(tmp_path: Path) -> None:
    model = network(plain_convolutions)
    zeros = kernel_zeros(model)["logits"].zeros

    quantized = quantize(model, Quantization(skip=["logits"]), sparse=True)
    started = model.get_layer("logits").kernel.numpy()
    train(quantized.model)
    exported, artifact = export(quantized.model, tmp_path)

    assert quantized.left_float == {"logits": "named in `skip`"}
    assert not has_quantizer(quantized.model, "logits")
    kernel = quantized_kernels(quantized.model)["logits"]
    assert np.sum(kernel == 0) == zeros
    assert np.mean((kernel != started)[started != 0]) > 0.5, "not trained"
    assert float_operators(exported) == {"FULLY_CONNECTED"}
    inputs = images(8, seed=1)
    np.testing.assert_allclose(
        artifact.predict(inputs)["logits"], quantized.model(inputs), atol=0.1
    )


def test_a_skipped_first_layer_reads_the_input_as_it_is(tmp_path: Path) -> None:
    quantized = quantize(network(plain_convolutions), Quantization(skip=["first"]), sparse=False)
    train(quantized.model)
    exported, _ = export(quantized.model, tmp_path)

    assert quantized.left_float == {"first": "named in `skip`"}
    assert [weight.dtype for weight in exported.inspection.weights] == ["float32", *["int8"] * 3]


def over_time(inputs: Any) -> Any:
    hidden = LAYERS.MaxPooling2D(3)(LAYERS.Conv2D(8, 3, name="first")(inputs))
    return LAYERS.Reshape([4, 8])(hidden)


def attending(inputs: Any, **settings: Any) -> Any:
    hidden = over_time(inputs)
    attention = LAYERS.MultiHeadAttention(2, 4, name="apart", **settings)(hidden, hidden)
    return head(LAYERS.Add()([hidden, attention]))


def remembering(inputs: Any) -> Any:
    return head(LAYERS.LSTM(4, return_sequences=True, name="apart")(over_time(inputs)))


@pytest.mark.parametrize(
    ("body", "skip", "reason"),
    [
        pytest.param(attending, ["apart"], "named in `skip`", marks=pytest.mark.slow),
        (
            lambda x: attending(x, kernel_constraint="max_norm"),
            [],
            "tfmot cannot wrap MultiHeadAttention as it is used",
        ),
        pytest.param(remembering, ["apart"], "named in `skip`", marks=pytest.mark.slow),
        (
            lambda x: LAYERS.EinsumDense("abc,cd->abd", [4, 5], name="apart")(over_time(x)),
            [],
            "tfmot has no quantizer for EinsumDense",
        ),
    ],
    ids=["skipped attention", "constrained attention", "skipped LSTM", "last einsum"],
)
def test_a_layer_in_float_reads_what_was_quantized(
    body: Callable[[Any], Any], skip: list[str], reason: str, tmp_path: Path
) -> None:
    """The converter forgets to turn the 8-bit values into floats, and LiteRT refuses the file."""
    quantized = quantize(network(body), Quantization(skip=skip), sparse=False)
    quantized.model(images(), training=True)
    exported, artifact = export(quantized.model, tmp_path)

    assert quantized.left_float == {"apart": reason}
    operators = [(each.name, each.activations) for each in exported.inspection.operators]
    assert ("CONV_2D", "int8") in operators
    inputs = images(40, seed=1)
    (outputs,), expected = artifact.predict(inputs).values(), quantized.model(inputs).numpy()
    (step,) = exported.inspection.output_scales.values()
    allowed = 1.001 * step if step else 1e-5 * np.abs(expected).max()  # the last einsum is in float
    assert np.quantile(np.abs(outputs - expected), 0.99) <= allowed


def test_both_halves_of_a_skipped_separable_convolution_are_left_float() -> None:
    quantized = quantize(network(separable), Quantization(skip=["first"]), sparse=True)

    assert quantized.left_float == {"first": "named in `skip`"}
    assert not has_quantizer(quantized.model, "first")
    assert not has_quantizer(quantized.model, "first/depthwise")
    assert has_quantizer(quantized.model, "second")


def test_a_split_layer_takes_no_name_of_another() -> None:
    """tfmot would call the halves `depthwise_conv2d` and `conv2d`."""

    def body(inputs: Any) -> Any:
        hidden = LAYERS.Conv2D(4, 3, name="conv2d")(inputs)
        hidden = LAYERS.DepthwiseConv2D(3, name="depthwise_conv2d")(hidden)
        return head(LAYERS.SeparableConv2D(4, 3, name="separable_conv2d")(hidden))

    model = network(body)
    tf_keras.backend.clear_session()  # as in a process that has just loaded the model
    with pytest.raises((ValueError, RuntimeError)):
        tfmot.quantization.keras.quantize_model(model)
    tf_keras.backend.clear_session()

    kernels = quantized_kernels(quantize(model, Quantization(), sparse=False).model)

    assert list(kernels) == [
        "conv2d",
        "depthwise_conv2d",
        "separable_conv2d/depthwise",
        "separable_conv2d",
        "logits",
    ]


class Scale(tf_keras.layers.Layer):
    """A layer that only this file knows."""

    def build(self, input_shape: Any) -> None:
        self.factor = self.add_weight("factor", shape=[input_shape[-1]], initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


class NotSerializable(tf_keras.layers.Layer):
    def __init__(self, factor: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return dict(super().get_config())  # and `factor` is forgotten


def steep(tensor: Any) -> Any:
    return tf.nn.relu(tensor) * 1.5


def unknown_layers(inputs: Any) -> Any:
    hidden = LAYERS.Conv2D(8, 3, activation="relu", name="convolution")(inputs)
    hidden = LAYERS.Activation(steep, name="steep")(hidden)
    hidden = LAYERS.Lambda(lambda tensor: tensor * 0.5, name="halved")(Scale(name="scale")(hidden))
    hidden = LAYERS.MaxPooling2D(3)(tf.cumsum(hidden, axis=1))
    hidden = LAYERS.ReLU()(LAYERS.Reshape([4, 8])(hidden))
    hidden = LAYERS.MultiHeadAttention(1, 4, kernel_constraint="max_norm", name="attention")(
        hidden, hidden
    )
    return LAYERS.Dense(5, name="logits")(LAYERS.LSTM(4, name="recurrent")(hidden))


def test_unknown_layers_are_left_float_and_keep_their_zeros(tmp_path: Path) -> None:
    model = network(unknown_layers)
    zeros = {name: count.zeros for name, count in kernel_zeros(model).items()}
    summed = next(layer.name for layer in model.layers if type(layer).__name__ == "TFOpLambda")

    quantized = quantize(model, Quantization(), sparse=True)
    before = quantized.model.get_layer("attention").get_weights()
    train(quantized.model, steps=3)

    assert quantized.left_float == {
        "steep": "tfmot has no quantizer for Activation steep",
        "scale": "tfmot has no quantizer for Scale",
        "halved": "tfmot has no quantizer for Lambda",
        summed: "tfmot cannot wrap TFOpLambda as it is used",
        "attention": "tfmot cannot wrap MultiHeadAttention as it is used; it is frozen, so that "
        "its zeros stay",
        "recurrent": "its gates compute in float; its products are in 8 bits",
    }
    for weight, expected in zip(
        quantized.model.get_layer("attention").get_weights(), before, strict=True
    ):
        np.testing.assert_array_equal(weight, expected)
    kernels = quantized_kernels(quantized.model, quantized.carriers)
    found = {name: int(np.sum(kernel == 0)) for name, kernel in kernels.items()}
    assert set(zeros) - set(found) == {"attention"}
    assert found["recurrent"] == zeros["recurrent"]
    exported, _ = export(quantized.model, tmp_path)
    operators = [(op.name, op.activations) for op in exported.inspection.operators]
    assert ("CONV_2D", "int8") in operators


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: network(head),
            r"`student` must be flat, without a model inside\. Received: model.*td\.to_tf_keras",
        ),
        (
            lambda: NotSerializable(2.0, name="stranger"),
            r"`student` must be a model that tfmot can quantize\. .*Error: .*Replace that layer",
        ),
    ],
    ids=["nested", "not serializable"],
)
def test_what_cannot_be_quantized_is_refused(layer: Callable[[], Any], message: str) -> None:
    model = network(lambda inputs: layer()(inputs))
    with pytest.raises(ModelError, match=message):
        quantize(model, Quantization(), sparse=False)


def test_strict_refuses_what_would_stay_float() -> None:
    model = network(float_inside)
    with pytest.raises(
        ModelError,
        match=r"must be quantized whole where `strict` is True\. Received: second: tfmot has no "
        r"quantizer for Activation elu\. .*name them in `skip`",
    ):
        quantize(model, Quantization(strict=True), sparse=False)
    quantize(model, Quantization(strict=True, skip=["second"]), sparse=False)


# ---------------------------------------------------------------------------------------------
# In training


def test_a_sequential_model_is_quantized() -> None:
    model = tf_keras.Sequential(
        [
            LAYERS.Input(SHAPE),
            LAYERS.SeparableConv2D(4, 3, name="separable"),
            LAYERS.ReLU(),
            LAYERS.Flatten(),
            LAYERS.Dense(5, name="logits"),
        ]
    )
    quantized = quantize(model, Quantization(skip=["logits"]), sparse=True)

    train(quantized.model, steps=1)

    assert has_quantizer(quantized.model, "separable")
    assert quantized.left_float == {"logits": "named in `skip`"}


def test_what_is_frozen_is_not_trained() -> None:
    """tfmot's wrapper trains each kernel that it quantizes."""

    def body(inputs: Any) -> Any:
        hidden = LAYERS.Rescaling(0.5, name="constant")(inputs)
        hidden = LAYERS.Conv2D(4, 3, activation="relu", trainable=False, name="frozen")(hidden)
        return head(hidden)

    model = network(body)
    quantized = quantize(model, Quantization(), sparse=False).model
    before = {weight.name: weight.numpy() for weight in quantized.weights}
    assert len(quantized.trainable_weights) == 2
    train(quantized)

    changed = {
        weight.name.partition("/")[0]
        for weight in quantized.weights
        if weight.name.endswith(("kernel:0", "bias:0"))
        and np.any(weight.numpy() != before[weight.name])
    }
    assert changed == {"quant_logits"} or changed == {"logits"}


def test_weights_of_a_checkpoint_fit_the_model_made_anew() -> None:
    model = network(plain_convolutions)

    def made() -> QuantizedModel:
        return quantize(model, Quantization(skip=["second"]), sparse=True)

    trained, resumed = made().model, made().model
    train(trained)

    tf_keras.backend.batch_set_value(
        list(zip(resumed.weights, [weight.numpy() for weight in trained.weights], strict=True))
    )

    for name, kernel in quantized_kernels(resumed).items():
        np.testing.assert_array_equal(kernel, quantized_kernels(trained)[name], err_msg=name)
    np.testing.assert_array_equal(resumed(images()), trained(images()))


@pytest.mark.slow
def test_two_replicas_distil_into_a_quantized_student(tmp_path: Path) -> None:
    def body(inputs: Any) -> Any:
        hidden = LAYERS.Conv2D(8, 3, use_bias=False, name="convolution")(inputs)
        hidden = LAYERS.ReLU()(LAYERS.BatchNormalization(synchronized=True)(hidden))
        hidden = LAYERS.Conv1D(4, 3, name="rank_3")(LAYERS.Reshape([36, 8])(hidden))
        hidden = LAYERS.Dropout(0.2)(hidden)
        return LAYERS.Activation("softmax", name="probabilities")(head(hidden))

    # Collectives of several strategies in one process are mixed up; this needs none.
    reduction = tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction).scope():
        model = network(body)
        quantized = quantize(model, Quantization(), sparse=True).model
        distiller = Distiller(quantized, network(head), [SoftTargets(temperature=2.0)], 0.5)
        distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    labels = np.arange(48) % 5

    history = distiller.fit(images(48), labels, batch_size=16, epochs=3, verbose=0).history

    assert history["loss"][-1] < history["loss"][0]
    zeros = {name: count.zeros for name, count in kernel_zeros(model).items()}
    assert all(zeros_of(quantized)[name] >= count > 0 for name, count in zeros.items())
    ranges = [weight for weight in quantized.weights if weight.name[-6:] in ("_min:0", "_max:0")]
    for weight in [*quantized.trainable_variables, *ranges]:
        first, second = weight.values
        np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=weight.name)
    exported, artifact = export(quantized, tmp_path)
    assert np.quantile(error_in_steps(quantized, exported, artifact), 0.9) <= 2.0


def test_zeros_of_a_depthwise_kernel_stay(tmp_path: Path) -> None:
    """tfmot prunes none, but a student may come with them."""
    model = network(depthwise)
    layer = model.get_layer("depthwise")
    kernel = layer.depthwise_kernel.numpy()
    zero = np.random.default_rng(0).uniform(size=kernel.shape) < 0.5
    layer.set_weights([np.where(zero, 0.0, kernel)])

    quantized = quantize(model, Quantization(), sparse=True)
    train(quantized.model)
    exported, _ = export(quantized.model, tmp_path)

    found = quantized_kernels(quantized.model)["depthwise"]
    assert not np.any(found[zero])
    assert np.mean(found != kernel) > 0.5, "not trained"
    stored = {weight.operator: weight.zeros for weight in exported.inspection.weights}
    assert stored["DEPTHWISE_CONV_2D"] >= np.sum(zero)


def test_a_zero_that_did_not_stay_is_an_error() -> None:
    before = Student(network(plain_convolutions), "pruning", "", pruned=("first", "logits"))
    quantized = quantize(before.model, Quantization(), sparse=False)
    train(quantized.model)
    after = replace(before, model=quantized.model, carriers=quantized.carriers)

    with pytest.raises(
        SparsityError, match=r"keep every zero of the pruned .*first: \d+ of \d+ left, logits: \d+"
    ):
        _require_zeros_kept(before, after)

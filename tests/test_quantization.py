"""Quantization-aware training: which kernels are quantized, which zeros stay, what is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_networks import (
    LAYERS,
    SHAPE,
    error_in_steps,
    export,
    float_inside,
    float_operators,
    has_quantizer,
    head,
    images,
    network,
    plain_convolutions,
    separable,
    train,
    zeros_of,
)

from tfdistill import quantization
from tfdistill._keras import tf, tf_keras, tfmot
from tfdistill.distiller import Distiller
from tfdistill.errors import ModelError, SettingError, SparsityError
from tfdistill.losses import SoftTargets
from tfdistill.pruning import kernel_zeros
from tfdistill.quantization import Quantization, QuantizedModel, quantize, quantized_kernels
from tfdistill.stages import Student, _require_zeros_kept

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

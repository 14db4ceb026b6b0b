"""Logits and features read out of models of either Keras, whatever these end in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from networks import FEATURES, examples, logits_of, perceptron, with_random_weights

from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import ModelError
from tfdistill.outputs import (
    ModelView,
    architecture,
    is_functional,
    predicted_classes,
    probe_inputs,
    refuse_probabilities,
)
from tfdistill.readings import find_layer

each_library = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def _functions(library: Any) -> Any:
    return keras.ops if library is keras else tf.nn


def _nested(library: Any, inner: Any) -> Any:
    inputs = library.layers.Input([FEATURES])
    return library.Model(inputs, inner(inputs))


# What a perceptron may end in; each builds it with the weights of seed 0.
ENDINGS: dict[str, Callable[[Any, str], Any]] = {
    "in the Dense layer": lambda library, activation: perceptron(library, activation=activation),
    "an Activation layer": lambda library, activation: _and_then(
        library, library.layers.Activation(activation)
    ),
    "a function": lambda library, activation: _and_then(
        library, getattr(_functions(library), activation)
    ),
    "a nested model": lambda library, activation: _nested(
        library, perceptron(library, activation=activation)
    ),
    "a Sequential in a nested model": lambda library, activation: _nested(
        library,
        _nested(
            library,
            library.Sequential([perceptron(library), library.layers.Activation(activation)]),
        ),
    ),
}


def _and_then(library: Any, last: Any) -> Any:
    model = perceptron(library)
    return library.Model(model.input, last(model.output))


def _sharpen(model: Any, factor: float) -> list[Any]:
    """Multiplies the last layer, so that float32 probabilities round to 0 and 1."""
    weights = model.get_weights()
    model.set_weights([*weights[:2], *(factor * weight for weight in weights[2:])])
    return list(model.get_weights())


# --- endings ---


@each_library
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_logits_are_read_before_the_activation(library: Any, activation: str, ending: str) -> None:
    model = ENDINGS[ending](library, activation)
    weights = _sharpen(model, 40.0)  # where a logarithm of the probabilities knows nothing
    inputs, *_ = examples()

    view = ModelView(model, role="teacher")
    predictions, outputs = view(inputs, training=False)

    expected = logits_of(weights, inputs)
    assert np.abs(expected).max() > 100  # beyond what float32 probabilities can tell apart
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(predictions, np.asarray(model(inputs)))
    assert view.activation == activation
    assert (
        view.note == f"The teacher ends in {activation}; distillation reads the logits before it."
    )


@each_library
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_gradient_reaches_the_logits_of_saturated_probabilities(
    library: Any, activation: str
) -> None:
    model = ENDINGS["a nested model"](library, activation)
    _sharpen(model, 40.0)
    inputs, *_ = examples()
    view = ModelView(model, role="student")
    with tf.GradientTape() as tape:
        _, outputs = view(inputs, training=True)
        total = tf.reduce_sum(outputs.logits)
    bias = model.trainable_variables[-1]
    gradient = tape.gradient(total, bias.value if library is keras else bias)
    np.testing.assert_allclose(gradient, [len(inputs)] * 3, rtol=1e-6)


@each_library
def test_linear_model_is_read_as_it_is(library: Any) -> None:
    for model in (perceptron(library), _nested(library, perceptron(library))):
        view = ModelView(model, role="student")
        predictions, outputs = view(examples()[0], training=False)
        np.testing.assert_array_equal(predictions, outputs.logits)
        assert (view.activation, view.note, view.classes) == ("linear", "", 3)


@each_library
def test_activation_is_left_as_it_was(library: Any) -> None:
    model = perceptron(library, activation="softmax")
    before = model.get_layer("logits").activation
    ModelView(model, role="teacher")(examples()[0], training=False)
    assert model.get_layer("logits").activation is before


def test_training_fixed_in_a_nested_model_stays_fixed() -> None:
    inner = perceptron(tf_keras, activation="softmax", normalized=True)
    inputs = tf_keras.layers.Input([FEATURES])
    model = tf_keras.Model(inputs, inner(inputs, training=False))
    before = inner.get_layer("normalization").moving_mean.numpy()
    ModelView(model, role="student")(examples()[0], training=True)
    np.testing.assert_array_equal(inner.get_layer("normalization").moving_mean.numpy(), before)


def test_quantized_activation_is_recognised() -> None:
    inputs = tf_keras.layers.Input([FEATURES])
    outputs = tf_keras.layers.Activation("softmax")(tf_keras.layers.Dense(3)(inputs))
    model = tfmot.quantization.keras.quantize_model(tf_keras.Model(inputs, outputs))
    view = ModelView(model, role="student")
    predictions, read = view(examples()[0], training=False)
    assert view.activation == "softmax"
    np.testing.assert_allclose(tf.nn.softmax(read.logits), predictions, rtol=1e-6)


def test_wrapped_sigmoid_is_refused() -> None:
    pruned = tfmot.sparsity.keras.prune_low_magnitude(perceptron(tf_keras, activation="sigmoid"))
    with pytest.raises(ModelError, match=r"`student` must not end in a wrapped layer .* sigmoid"):
        ModelView(pruned, role="student")


def test_activation_applied_twice_is_refused() -> None:
    class Twice(tf_keras.layers.Dense):
        def call(self, inputs: Any) -> Any:
            return self.activation(super().call(inputs))

    inputs = tf_keras.layers.Input([FEATURES])
    model = tf_keras.Model(inputs, Twice(3, activation="softmax", name="twice")(inputs))
    with pytest.raises(ModelError, match=r"'twice' must apply its activation once.*2 times"):
        ModelView(model, role="teacher")(examples()[0], training=False)


def test_several_outputs_are_refused() -> None:
    model = perceptron(keras)
    two = keras.Model(model.input, [model.output, model.get_layer("hidden").output])
    with pytest.raises(ModelError, match=r"`teacher` must have one output. Received: 2 outputs"):
        ModelView(two, role="teacher")


# --- features ---


@each_library
def test_features_come_with_the_logits(library: Any) -> None:
    model = perceptron(library, activation="softmax")
    view = ModelView(model, role="student", layers=["rectified", "hidden"])
    inputs, *_ = examples()
    _, outputs = view(inputs, training=False)
    kernel, bias, *_ = model.get_weights()
    np.testing.assert_allclose(outputs.features["hidden"], inputs @ kernel + bias, rtol=1e-5)
    np.testing.assert_array_equal(
        outputs.features["rectified"], np.maximum(outputs.features["hidden"], 0)
    )
    assert view.shapes.features == {"rectified": (5,), "hidden": (5,)}
    assert view.shapes.logits == (3,)


@each_library
def test_layer_used_in_another_model_is_read_in_this_one(library: Any) -> None:
    layer = library.layers.Dense(FEATURES, name="shared")
    layer(library.layers.Input([FEATURES]))  # Keras' `layer.output` means this first use
    inputs = library.layers.Input([FEATURES])
    model = library.Model(inputs, library.layers.Dense(3)(layer(inputs)))
    _, outputs = ModelView(model, role="teacher", layers=["shared"])(examples()[0], training=False)
    np.testing.assert_allclose(outputs.features["shared"], layer(examples()[0]), rtol=1e-6)


@each_library
def test_layer_used_twice_is_refused(library: Any) -> None:
    layer = library.layers.Dense(FEATURES, name="shared")
    inputs = library.layers.Input([FEATURES])
    model = library.Model(inputs, library.layers.Dense(3)(layer(layer(inputs))))
    with pytest.raises(ModelError, match=r"`shared` must be used once in the teacher"):
        ModelView(model, role="teacher", layers=["shared"])


def test_missing_layer_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(
        ModelError, match=r"`hiden` must be a layer of the student.*nearest names are: hidden"
    ):
        find_layer(perceptron(tf_keras), "hiden", role="student")
    with pytest.raises(ModelError, match=r"It has: features, hidden, rectified, logits"):
        find_layer(perceptron(tf_keras), "0", role="student")


def test_wrapped_layer_is_found_by_its_own_name() -> None:
    pruned = tfmot.sparsity.keras.prune_low_magnitude(perceptron(tf_keras))
    assert find_layer(pruned, "hidden", role="student").layer.name == "hidden"


# --- small parts ---


def test_predicted_classes_of_several_and_of_one_logit() -> None:
    assert predicted_classes(
        tf.constant([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
    ).numpy().tolist() == [
        1,
        0,
    ]
    assert predicted_classes(tf.constant([[-0.1], [0.1]])).numpy().tolist() == [0, 1]


def test_probabilities_are_told_from_logits() -> None:
    with pytest.raises(ModelError, match=r"`teacher` must return logits"):
        refuse_probabilities(np.array([[0.25, 0.75], [1.0, 0.0]]), role="teacher")
    for logits in ([[0.2, 0.9], [0.5, 0.5]], [[-0.5, 1.5]], [[0.3]]):
        refuse_probabilities(np.array(logits), role="teacher")


@each_library
def test_only_models_whose_graph_says_everything_are_functional(library: Any) -> None:
    class Doubling(library.Model):
        def call(self, inputs: Any) -> Any:
            return 2 * super().call(inputs)

    class Subclassed(library.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    model = perceptron(library)
    assert is_functional(model)
    assert is_functional(library.Sequential([library.layers.Input([FEATURES]), model]))
    assert not is_functional(Doubling(model.input, model.output))
    assert not is_functional(Subclassed())
    assert not is_functional(library.Sequential([library.layers.Dense(3)]))
    assert not is_functional(lambda x: x)


def test_probe_takes_open_sizes_from_the_other_model() -> None:
    def image(shape: list[int | None]) -> Any:
        inputs = tf_keras.layers.Input(shape)
        return tf_keras.Model(inputs, tf_keras.layers.GlobalAveragePooling2D()(inputs))

    open_size, fixed = image([None, None, 3]), image([32, 24, 3])
    assert probe_inputs(open_size, like=fixed).shape == (4, 32, 24, 3)
    assert probe_inputs(open_size).shape == (4, 8, 8, 3)
    inputs = tf_keras.layers.Input([3], batch_size=2, dtype="int32")
    integers = probe_inputs(tf_keras.Model(inputs, inputs + 1))
    assert (integers.shape, integers.dtype) == ((2, 3), tf.int32)


def _pooled(library: Any, times: int) -> Any:
    inputs = hidden = library.layers.Input([None, None, 1])
    for _ in range(times):
        hidden = library.layers.MaxPooling2D()(library.layers.Conv2D(2, 3)(hidden))
    outputs = library.layers.Dense(3)(library.layers.GlobalAveragePooling2D()(hidden))
    return library.Model(inputs, outputs)


@each_library
@pytest.mark.parametrize(("times", "size"), [(1, 8), (2, 32), (3, 32)])
def test_probe_tries_open_sizes(library: Any, times: int, size: int) -> None:
    assert probe_inputs(_pooled(library, times)).shape == (4, size, size, 1)


@each_library
@pytest.mark.parametrize(("border", "size"), [(0, 8), (5, 32), (20, 64)])
def test_probe_is_of_a_size_of_which_something_is_left(
    library: Any, border: int, size: int
) -> None:
    inputs = library.layers.Input([None, None, 1])
    inner = library.layers.Cropping2D(border)(inputs)
    model = library.Model(inputs, library.layers.GlobalAveragePooling2D()(inner))
    assert probe_inputs(model).shape == (4, size, size, 1)


def test_probe_of_what_takes_no_common_size_is_refused() -> None:
    inputs = tf_keras.layers.Input([None, 2])
    model = tf_keras.Model(inputs, tf_keras.layers.Reshape([5])(inputs))
    with pytest.raises(
        ModelError,
        match=r"open input sizes must take one of \(8, 32, 64, 224\)\. Received: inputs "
        r"\[\(None, 2\)\], .* Give it the sizes",
    ):
        probe_inputs(model)


@each_library
def test_architecture_tells_models_apart_but_not_their_names(library: Any) -> None:
    first = architecture(perceptron(library))
    assert architecture(perceptron(library, seed=1, name="other")) == first
    assert architecture(perceptron(library, units=6)) != first
    assert architecture(perceptron(library, activation="softmax")) != first

    def of_policy(name: str) -> Any:
        inputs = library.layers.Input([FEATURES])
        policy = library.mixed_precision.Policy if library is tf_keras else library.DTypePolicy
        outputs = library.layers.Dense(3, dtype=policy(name))(inputs)
        return architecture(with_random_weights(library.Model(inputs, outputs), 0))

    assert of_policy("mixed_bfloat16") == of_policy("mixed_bfloat16")
    assert of_policy("mixed_bfloat16") != of_policy("mixed_float16")

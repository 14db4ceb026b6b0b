from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from crossings import (
    IMAGE,
    SEQUENCE,
    VECTOR,
    Scale,
    Subclassed,
    TfKerasScale,
    assert_close,
    assert_same_outputs,
    randomize,
)

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge import config_values, counterparts
from tfdistill.bridge.layer_table import LAYERS, LayerAdapter
from tfdistill.errors import ConversionError, SettingError

layers = keras.layers
Build = Callable[[], Any]


class Smoothness(keras.regularizers.Regularizer):
    def __call__(self, weight: Any) -> Any:
        return keras.ops.sum(keras.ops.square(weight[1:] - weight[:-1]))

    def get_config(self) -> dict[str, Any]:
        return {}


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_every_layer_without_counterpart_is_listed_with_path_and_reason() -> None:
    inner = keras.Input(VECTOR)
    block = keras.Model(inner, Scale(name="scale")(inner), name="block")
    inputs = keras.Input(VECTOR)
    x = layers.Lambda(lambda x: x, name="code")(block(inputs))
    x = layers.Dense(6, activation="celu", name="celu")(x)
    x = layers.Dense(6, activation=lambda x: x, name="function")(x)
    x = layers.RandomGrayscale(name="gray")(layers.Reshape((1, 2, 3))(x))
    x = Subclassed()(layers.Flatten()(x))
    model = keras.Model(inputs, keras.ops.vectorized_map(keras.ops.abs, x))
    with pytest.raises(ConversionError) as raised:
        bridge.to_tf_keras(model)
    message = str(raised.value)
    for part in (
        "`model` must be made of layers that exist in both",
        "block/scale (Scale): a layer outside of Keras must be given in `custom_objects`",
        "code (Lambda): a Lambda layer's Python code",
        "celu (Dense): its activation 'celu' has no counterpart",
        "function (Dense): its activation is neither a name nor a named function",
        "gray (RandomGrayscale): this kind of layer is not converted",
        "subclassed (Subclassed): a subclassed or unbuilt model has no graph",
        "vectorized_map (VectorizedMap): Keras cannot serialize it",
        "Replace these by layers of Keras",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.ZeroPadding1D(data_format="channels_first"), "`data_format=.*channels_f"),
        (
            lambda: layers.Conv1D(3, 3, kernel_regularizer=Smoothness()),
            "its Smoothness has no counterpart",
        ),
    ],
)
def test_settings_without_counterpart_are_refused(layer: Build, reason: str) -> None:
    inputs = keras.Input(SEQUENCE)
    model = keras.Model(inputs, layer()(inputs))
    with pytest.raises(ConversionError, match=reason):
        bridge.to_tf_keras(model)


def test_quantized_dtype_policy_is_refused() -> None:
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, layers.Dense(3, name="logits", dtype="int8_from_float32")(inputs))
    with pytest.raises(ConversionError, match=r"logits \(Dense\): its dtype policy 'int8_from_f"):
        bridge.to_tf_keras(model)


def test_sparse_and_optional_inputs_are_refused() -> None:
    inputs = keras.Input(VECTOR, sparse=True, name="sparse_one")
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    with pytest.raises(ConversionError, match=r"sparse_one \(InputLayer\): a sparse input"):
        bridge.to_tf_keras(model)
    inputs = [keras.Input(VECTOR), keras.Input(VECTOR, optional=True, name="extra")]
    model = keras.Model(inputs, layers.Concatenate()(inputs))
    with pytest.raises(ConversionError, match=r"extra \(InputLayer\): an optional input"):
        bridge.to_tf_keras(model)


def test_subclassed_model_is_refused_with_the_way_out() -> None:
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    with pytest.raises(ConversionError, match=r"must be a Functional or Seq.*keras.Model\(inputs"):
        bridge.to_tf_keras(model)
    inputs = keras.Input(VECTOR)  # the way out that the message names
    assert_same_outputs(
        bridge.to_tf_keras(keras.Model(inputs, model.call(inputs))),
        keras.Model(inputs, model(inputs)),
    )


def test_functional_model_with_a_call_of_its_own_is_refused() -> None:
    class Doubled(keras.Model):
        def call(self, inputs: Any, **kwargs: Any) -> Any:
            return 2.0 * super().call(inputs, **kwargs)

    inputs = keras.Input(VECTOR)
    with pytest.raises(ConversionError, match="the subclassed model Doubled"):
        bridge.to_tf_keras(Doubled(inputs, layers.Dense(2)(inputs)))


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_unbuilt_model_is_refused(library: Any) -> None:
    model = library.Sequential([library.layers.Dense(2)], name="open")
    with pytest.raises(ConversionError, match=r"must be built\. Received: open .*keras\.Input"):
        bridge.to_tf_keras(model)


def test_what_is_no_model_and_another_backend_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConversionError, match=r"must be a Keras 3 or tf_keras model. Received: str"
    ):
        bridge.to_tf_keras("student.keras")
    model = keras.Sequential([keras.Input(VECTOR), layers.Dense(2)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConversionError, match=r"'tensorflow'. Received: jax. .*KERAS_BACKEND"):
        bridge.to_tf_keras(model)


def test_custom_objects_name_the_counterpart() -> None:
    inputs = keras.Input(VECTOR)
    x = Scale(name="scale")(inputs)
    original = randomize(keras.Model(inputs, layers.Dense(2, activation="celu")(x)))
    custom = {"Scale": TfKerasScale, "celu": tf_keras.activations.elu}  # alpha 1: the same
    converted = bridge.to_tf_keras(original, custom_objects=custom)
    assert isinstance(converted.get_layer("scale"), TfKerasScale)
    assert_same_outputs(converted, original)


# --- the check is real ---------------------------------------------------------------------


def test_adapter_that_changes_the_outputs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget_slope(config: Any, layer: Any) -> Any:  # what the naive conversion does
        return {key: value for key, value in config.items() if key != "negative_slope"}

    monkeypatch.setitem(LAYERS, "LeakyReLU", LayerAdapter(forget_slope))
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, layers.LeakyReLU(negative_slope=0.2, name="leaky")(inputs))
    with pytest.raises(ConversionError, match=r"relative error of 1e-05\..*layer leaky by 0\.17"):
        bridge.to_tf_keras(model)


@pytest.mark.parametrize("setting", [{"momentum": 0.5}, {"trainable": False}])
def test_adapter_that_changes_only_training_is_caught(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    monkeypatch.setitem(
        LAYERS, "BatchNormalization", LayerAdapter(lambda config, layer: {**config, **setting})
    )
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(inputs))
    with pytest.raises(ConversionError, match=r"1 of 2 comparisons differ, the worst layer norm"):
        bridge.to_tf_keras(model)


def test_adapter_that_loses_a_regularizer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_values, "_rebuild_object", lambda value, *others: None)
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, layers.Dense(2, kernel_regularizer="l2")(inputs))
    with pytest.raises(ConversionError, match="the worst regularization of dense"):
        bridge.to_tf_keras(model)


def test_a_mean_that_is_zero_but_for_rounding_is_no_difference() -> None:
    """As after MobileNetV2's linear bottlenecks: a normalized input, and no bias."""
    inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(name="bottleneck")(layers.Conv2D(8, 3)(inputs))
    x = layers.BatchNormalization(momentum=0.999)(layers.Conv2D(48, 1, use_bias=False)(x))
    model = keras.Model(inputs, x)
    model(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), training=True)
    assert bridge.to_tf_keras(model).output_shape == (None, 14, 14, 48)


def test_weights_that_do_not_fit_are_caught() -> None:
    class Renamed(tf_keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.other = self.add_weight(shape=(shape[-1],), name="other")

    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, Scale(name="scale")(inputs))
    with pytest.raises(ConversionError, match=r"its weights \[\('factor'.*became \[\('other'"):
        bridge.to_tf_keras(model, custom_objects={"Scale": Renamed})


# --- sizes that a model leaves open --------------------------------------------------------


def test_an_open_size_that_must_be_large_is_found() -> None:
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 100, name="wide")(inputs)  # at least 100 pixels
    original = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    converted = bridge.to_tf_keras(original)
    values = np.random.default_rng(0).normal(size=(1, 101, 102, 3))
    assert_close(converted(values), original(values))


def test_a_large_and_a_small_input_are_compared_on_as_many_examples() -> None:
    image, vector = keras.Input((200, 200, 3)), keras.Input((4,))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=9)(image))
    original = keras.Model([image, vector], layers.Add()([x, vector]))
    assert bridge.to_tf_keras(original).output_shape == (None, 4)


def test_an_open_size_that_is_not_found_is_an_error_that_says_so() -> None:
    inputs = keras.Input((None, 3))
    outputs = layers.Dense(2)(layers.Reshape((77 * 3,))(inputs))
    model = keras.Model(inputs, outputs)
    with pytest.raises(
        ConversionError, match=r"must be able to run on random inputs.*231.*instead of None"
    ):
        bridge.to_tf_keras(model)


# --- counterparts of one's own -------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterparts, "_registered", {})


class Shift(keras.layers.Layer):
    """A user's layer with weights, settings and objects of Keras in its config."""

    def __init__(self, amount: float, initializer: Any = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.amount = amount
        self.shift_initializer = keras.initializers.get(initializer)

    def build(self, shape: Any) -> None:
        self.shift = self.add_weight(
            shape=(shape[-1],), initializer=self.shift_initializer, name="shift"
        )
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor + self.shift * self.amount

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def get_config(self) -> dict[str, Any]:
        initializer = keras.initializers.serialize(self.shift_initializer)
        return {**super().get_config(), "amount": self.amount, "initializer": initializer}


class TfKerasShift(tf_keras.layers.Layer):
    def __init__(self, by: float, initializer: Any = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.by = by
        self.initializer = initializer

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")
        self.offset = self.add_weight(
            shape=(shape[-1],), initializer=self.initializer, name="offset"
        )

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor + self.offset * self.by

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "by": self.by, "initializer": self.initializer}


def halved(x: Any) -> Any:
    return x / 2.0


def tf_keras_halved(x: Any) -> Any:
    return x * 0.5


class TfKerasSmoothness(tf_keras.regularizers.Regularizer):
    def __call__(self, weight: Any) -> Any:
        return tf.reduce_sum(tf.square(weight[1:] - weight[:-1]))

    def get_config(self) -> dict[str, Any]:
        return {}


def rename(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {new if key == old else key: value for key, value in config.items()}


def register_shift() -> None:
    bridge.register(
        Shift,
        TfKerasShift,
        to_tf_keras=rename("amount", "by"),
        to_keras3=rename("by", "amount"),
        weight_names={"shift": "offset"},
    )


def test_registered_layer_function_and_regularizer_cross_both_ways() -> None:
    register_shift()
    register_shift()  # again is nothing new
    bridge.register(halved, tf_keras_halved)
    bridge.register(Smoothness, TfKerasSmoothness)
    inputs = keras.Input(SEQUENCE)
    x = Shift(0.5, initializer=keras.initializers.RandomNormal(stddev=2.0), name="own")(inputs)
    x = layers.TimeDistributed(Shift(2.0), name="inside")(x)
    x = layers.Dense(3, activation=halved, kernel_regularizer=Smoothness(), name="dense")(x)
    original = randomize(keras.Model(inputs, x))
    converted = bridge.to_tf_keras(original)
    own = converted.get_layer("own")
    assert type(own) is TfKerasShift
    assert own.by == 0.5
    assert isinstance(own.initializer, tf_keras.initializers.RandomNormal)
    assert converted.get_layer("dense").activation is tf_keras_halved
    assert_same_outputs(converted, original)
    returned = bridge.to_keras3(converted)
    assert type(returned.get_layer("own")) is Shift
    assert returned.get_layer("dense").activation is halved
    assert isinstance(returned.get_layer("dense").kernel_regularizer, Smoothness)
    assert_same_outputs(returned, original)
    trained = randomize(converted, seed=4)
    assert_same_outputs(bridge.rebuild_keras3(original, trained), trained)


def test_registered_weights_that_do_not_fit_are_listed() -> None:
    bridge.register(Shift, TfKerasShift, to_tf_keras=rename("amount", "by"))
    inputs = keras.Input(VECTOR)
    with pytest.raises(ConversionError, match=r"own \(Shift\): its weights .*'shift'.*'offset'"):
        bridge.to_tf_keras(keras.Model(inputs, Shift(0.5, name="own")(inputs)))


def test_registering_refuses_a_second_counterpart() -> None:
    bridge.register(Scale, TfKerasScale)
    with pytest.raises(SettingError, match=r"Scale` must have one counterpart.*Shift, after"):
        bridge.register(Scale, TfKerasShift)
    with pytest.raises(SettingError, match=r"`crossings\.TfKerasScale` must have one counterpart"):
        bridge.register(Shift, TfKerasScale)


def test_a_class_that_is_defined_anew_replaces_itself() -> None:
    """As when a notebook's cell is run again."""

    def define() -> Any:
        class Own(Scale):
            pass

        return Own

    first, second = define(), define()
    bridge.register(first, TfKerasScale)
    bridge.register(second, TfKerasScale)
    inputs = keras.Input(VECTOR)
    model = randomize(keras.Model(inputs, second(name="own")(inputs)))
    assert type(bridge.to_tf_keras(model).get_layer("own")) is TfKerasScale
    with pytest.raises(ConversionError, match="a layer outside of Keras"):
        bridge.to_tf_keras(keras.Model(inputs, first()(inputs)))


@pytest.mark.parametrize(
    "pair",
    [
        (TfKerasScale, Scale),
        (Scale, TfKerasSmoothness),
        (Scale, tf_keras_halved),
        (dict, dict),
        (halved, None),
    ],
)
def test_registering_refuses_what_is_not_of_one_kind(pair: Any) -> None:
    with pytest.raises(SettingError, match=r"must be of one kind.*The first is the one of Keras 3"):
        bridge.register(*pair)

"""Why a layer or operation cannot cross: reasons that the other tests of the bridge leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.config_values import NoCounterpartError
from tfdistill.bridge.operations import Operation, keras3_call
from tfdistill.errors import ConversionError, ModelError

L, L2 = keras.layers, tf_keras.layers


def model_of(layer: Any, shape: tuple[int | None, ...], dtype: str = "float32") -> Any:
    library = keras if isinstance(layer, L.Layer) else tf_keras
    inputs = library.Input(shape, dtype=dtype)
    return library.Model(inputs, layer(inputs))


class Own(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs


class Forgetful(tf_keras.layers.Layer):
    """Its config does not hold what it is made of."""

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return dict(super().get_config())


class Silent(Forgetful):
    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError


class Refusing(tf_keras.layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        raise ValueError("no such layer today")


class OnlyInGraphs(tf_keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        if tf.executing_eagerly():
            raise ValueError("not outside of graphs")
        return inputs


def refuses(model: Any, reason: str, **counterparts: Any) -> None:
    convert = bridge.to_tf_keras if bridge.is_keras3(model) or counterparts else bridge.to_keras3
    with pytest.raises(ConversionError, match=reason):
        convert(model, custom_objects=counterparts)


@pytest.mark.parametrize(
    ("layer", "dtype", "reason"),
    [
        (
            lambda: L.StringLookup(name="words"),
            *("string", r"words \(StringLookup\): it has no vocabulary: it must be adapted or giv"),
        ),
        (
            lambda: L.IntegerLookup(
                vocabulary=[1, 2], oov_method="farmhash", num_oov_indices=2, name="words"
            ),
            *("int64", r"words \(IntegerLookup\): its `oov_method='farmhash'` has no counterpart"),
        ),
        (
            lambda: L.Discretization(num_bins=3, name="bins"),
            *("float32", r"bins \(Discretization\): it has no bin boundaries: it must be adapted"),
        ),
        (
            lambda: L.Discretization([0.0], name="bins", output_mode="multi_hot", sparse=True),
            *("float32", r"bins \(Discretization\): its `sparse=True` is not converted"),
        ),
    ],
)
def test_preprocessing_without_counterpart_is_refused(
    layer: Callable[[], Any], dtype: str, reason: str
) -> None:
    refuses(model_of(layer(), (2,), dtype), reason)


def test_a_vocabulary_in_a_file_is_refused_on_the_way_to_keras3(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\ngreen\n")
    layer = L2.StringLookup(vocabulary=str(tmp_path / "words.txt"), name="words")
    refuses(model_of(layer, (2,), "string"), r"words \(StringLookup\): its vocabulary is a file")


def test_normalization_over_two_axes_is_refused_on_the_way_to_keras3() -> None:
    layer = L2.BatchNormalization(axis=[1, 2], name="norm")
    refuses(model_of(layer, (4, 3)), r"norm \(BatchNormalization\): its `axis=\[1, 2\]` has no")


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (lambda loop: loop, r"loop \(RNN\): its `num_constants=1` has no counterpart"),
        (L2.Bidirectional, r"bidirectional\w* \(Bidirectional\): its `num_constants=1`"),
    ],
)
def test_constants_of_a_recurrent_layer_are_refused(wrap: Any, reason: str) -> None:
    class Cell(tf_keras.layers.SimpleRNNCell):
        def call(self, inputs: Any, states: Any, constants: Any = None) -> Any:
            return super().call(inputs, states)

    inputs = [tf_keras.Input((4, 3)), tf_keras.Input((2,))]
    outputs = wrap(L2.RNN(Cell(2), name="loop"))(inputs[0], constants=[inputs[1]])
    refuses(tf_keras.Model(inputs, outputs), reason)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Forgetful, r"own \(Forgetful\): it cannot be made from its config: .*factor"),
        (Silent, r"own \(Silent\): it has no `get_config` of its own"),
    ],
)
def test_a_layer_that_cannot_be_made_again_is_refused(layer: Any, reason: str) -> None:
    with pytest.raises(ConversionError, match=f"(?s){reason}"):
        bridge.to_tf_keras(model_of(layer(2.0, name="own"), (2,)))


def test_a_counterpart_that_cannot_be_made_is_refused() -> None:
    refuses(
        model_of(Own(name="own"), (2,)),
        r"(?s)own \(Own\): tf_keras refuses its config: .*no such layer today",
        Own=Refusing,
    )


def test_a_counterpart_that_does_not_run_is_refused() -> None:
    refuses(
        model_of(Own(name="own"), (2,)),
        "The converted model must run as the original does.*not outside of graphs",
        Own=OnlyInGraphs,
    )


def test_an_operation_that_keras3_refuses_is_an_error() -> None:
    operation = Operation("transpose", {"x": keras.KerasTensor((2, 3)), "axes": [0]})
    with pytest.raises(NoCounterpartError, match=r"keras\.ops\.transpose refuses it: axis must be"):
        keras3_call(operation)


def test_inputs_must_be_numbers_or_text() -> None:
    with pytest.raises(ConversionError, match=r"inputs of numbers or text\. Received: complex64"):
        bridge.to_tf_keras(model_of(L2.Activation("linear"), (2,), "complex64"))


# Keras 3 saves and loads variables through NumPy's older protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_file_with_a_layer_is_no_model(tmp_path: Path) -> None:
    layer = L.Dense(2)
    layer.build((None, 3))
    keras.src.saving.saving_lib.save_model(layer, tmp_path / "layer.keras")
    with pytest.raises(ModelError, match=r"must be a saved Keras model.*\(it holds a Dense\)"):
        bridge.load_model(tmp_path / "layer.keras")

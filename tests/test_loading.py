from __future__ import annotations

import base64
import json
import marshal
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.loading import load_model
from tfdistill.errors import ModelError

# Keras 3 saves and loads variables through NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def save(model: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5")
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
        model.save(path)
    return path


def make_model(library: Any) -> Any:
    layers = library.layers
    inputs = layers.Input((6, 6, 1), name="image")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3, name="conv")(inputs))
    outputs = layers.Dense(2, activation="softmax", name="classes")(layers.Flatten()(x))
    return library.Model(inputs, outputs, name="student")


def assert_same(actual: Any, expected: Any) -> None:
    values = tf.random.normal((3, *expected.inputs[0].shape[1:]))
    np.testing.assert_allclose(actual(values), expected(values), rtol=1e-5, atol=1e-6)


class Doubler(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


class TfKerasDoubler(tf_keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


@pytest.mark.parametrize(
    ("library", "name"),
    [
        *((keras, "model.keras"), (keras, "model.h5")),
        *((tf_keras, "model.keras"), (tf_keras, "model.h5"), (tf_keras, "saved_model")),
    ],
)
def test_model_is_loaded_in_the_keras_that_saved_it(
    library: Any, name: str, tmp_path: Path
) -> None:
    original = make_model(library)
    original.compile("adam", "mse")
    loaded = load_model(save(original, tmp_path / name))
    assert isinstance(loaded, library.Model)
    assert not getattr(loaded, "compiled" if library is keras else "_is_compiled")
    assert_same(loaded, original)
    assert_same(bridge.to_tf_keras(loaded), original)


def test_path_may_be_a_string(tmp_path: Path) -> None:
    save(make_model(keras), tmp_path / "model.keras")
    assert load_model(str(tmp_path / "model.keras")).name == "student"


# --- code is not run -----------------------------------------------------------------------


def with_lambda(library: Any, place: str) -> Any:
    layers = library.layers
    inputs = layers.Input((4,))
    code = layers.Lambda(lambda x: x * 2.0, name="secret")
    if place == "nested":
        inner = layers.Input((4,))
        x = library.Model(inner, code(inner), name="inner")(inputs)
    elif place == "wrapped":
        x = layers.TimeDistributed(code, name="each")(layers.Reshape((2, 2))(inputs))
    else:
        x = code(inputs)
    return library.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


@pytest.mark.parametrize("place", ["top", "nested", "wrapped"])
@pytest.mark.parametrize(
    ("library", "name"),
    [
        *((keras, "model.keras"), (keras, "model.h5")),
        *((tf_keras, "model.keras"), (tf_keras, "model.h5"), (tf_keras, "saved_model")),
    ],
)
def test_lambda_layer_is_refused_in_every_format(
    library: Any, name: str, place: str, tmp_path: Path
) -> None:
    path = save(with_lambda(library, place), tmp_path / name)
    with pytest.raises(ModelError, match=r"without Lambda.*layer 'secret'.*safe_mode=False"):
        load_model(path)


@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_lambda_layer_is_loaded_where_it_is_trusted(
    library: Any, name: str, tmp_path: Path
) -> None:
    original = with_lambda(library, "top")
    assert_same(load_model(save(original, tmp_path / name), safe_mode=False), original)


def test_code_in_an_hdf5_file_does_not_run(tmp_path: Path) -> None:
    """Loading as tf_keras does by itself runs the code: the file is a real attack."""
    witness = tmp_path / "was_here"
    attack = compile(f"lambda x: (open({str(witness)!r}, 'w').close(), x)[1]", "<x>", "eval")
    path = save(with_lambda(tf_keras, "top"), tmp_path / "model.h5")
    code = next(c for c in attack.co_consts if hasattr(c, "co_code"))
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        (secret,) = (one for one in config["config"]["layers"] if one["class_name"] == "Lambda")
        text = base64.b64encode(marshal.dumps(code)).decode()
        function = secret["config"]["function"]
        if isinstance(function, dict):
            function["config"]["code"] = text
        else:
            function[0] = text
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match="layer 'secret'"):
        load_model(path)
    assert not witness.exists()
    tf_keras.models.load_model(path, compile=False)
    assert witness.exists()


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_object_of_a_foreign_module_is_refused(library: Any, tmp_path: Path) -> None:
    """tf_keras would import the module; a file may name one that does harm on import."""
    path = save(make_model(library), tmp_path / "model.keras")
    (tmp_path / "harmful.py").write_text("raise SystemExit('imported')")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    dense = next(one for one in config["config"]["layers"] if one["class_name"] == "Dense")
    dense.update(module="harmful", class_name="Payload", registered_name="Payload")
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match=r"Keras' own layers.*Payload of the module 'harmful'"):
        load_model(path)


@pytest.mark.parametrize(("library", "layer"), [(keras, Doubler), (tf_keras, TfKerasDoubler)])
def test_own_layers_are_loaded_when_given(library: Any, layer: Any, tmp_path: Path) -> None:
    original = library.Sequential([library.layers.Input((4,)), layer(), library.layers.Dense(2)])
    path = save(original, tmp_path / "model.keras")
    with pytest.raises(ModelError, match=r"Doubler of the module.*Give it in `custom_objects`"):
        load_model(path)
    assert_same(load_model(path, custom_objects={layer.__name__: layer}), original)


# --- what is no model ----------------------------------------------------------------------


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def text_file(path: Path) -> Path:
    path.write_text("not a model")
    return path


def foreign_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return path


def weights_only(path: Path) -> Path:
    model = make_model(tf_keras)
    model.save_weights(path.with_suffix(".h5"))
    return path.with_suffix(".h5")


def exported(path: Path) -> Path:
    tf.saved_model.save(make_model(tf_keras), str(path))
    (path / "keras_metadata.pb").unlink(missing_ok=True)
    return path


def damaged_metadata(path: Path) -> Path:
    save(make_model(tf_keras), path)
    (path / "keras_metadata.pb").write_bytes(b"\x0a\xff\xff")
    return path


def damaged_weights(path: Path) -> Path:
    path = save(make_model(keras), path.with_suffix(".keras"))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, b"\0" * 100 if name.endswith(".h5") else content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, r"must be a saved model. Received: .*\(nothing is there\)"),
        (empty_folder, r"\(no keras_metadata.pb is in it\)"),
        (text_file, "neither a `.keras` file, nor HDF5, nor a folder"),
        (foreign_zip, "a damaged or a foreign zip file: .*metadata.json"),
        (weights_only, "it holds weights and no model"),
        (exported, r"no keras_metadata.pb.*td\.teachers\.SavedModel\(path\).*cannot be a student"),
        (damaged_metadata, "its keras_metadata.pb is damaged"),
        (damaged_weights, "must be a model that Keras can load. Received: .*Error"),
    ],
)
def test_what_is_no_model_is_refused(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(make(tmp_path / "thing"))

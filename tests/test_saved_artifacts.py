"""SavedModel folders and Keras files: `tfdistill.export.saved_artifacts`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick import only

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.certificate import certify
from tfdistill.errors import (
    ConversionError,
    ExportError,
    ModelError,
    RunDirectoryError,
    SettingError,
)
from tfdistill.export import export_model
from tfdistill.export.exported import check_before_training
from tfdistill.export.saved_artifacts import open_artifact
from tfdistill.litert.sidecar import read_sidecar
from tfdistill.page import snippet
from tfdistill.runs import files
from tfdistill.runs.records import sha256_of

LAYERS = tf_keras.layers
_LABELS = tuple(f"digit {label}" for label in range(10))


def network(units: int = 10, activation: str | None = None) -> Any:
    source = LAYERS.Input([8, 8, 1], name="my image")
    hidden = LAYERS.Conv2D(6, 3, activation="relu", name="convolution")(source)
    hidden = LAYERS.BatchNormalization(name="normalization")(hidden)
    hidden = LAYERS.DepthwiseConv2D(3, name="depthwise")(hidden)
    hidden = LAYERS.Dropout(0.5, name="dropout")(LAYERS.Flatten(name="flatten")(hidden))
    hidden = LAYERS.Dense(units, name="scores")(hidden)
    if activation:
        hidden = LAYERS.Activation(activation, name="probabilities")(hidden)
    return tf_keras.Model(source, hidden, name="student")


@pytest.fixture(scope="module")
def student(two_devices: None, digits: tuple[np.ndarray, np.ndarray]) -> Any:
    tf_keras.utils.set_random_seed(0)
    model = network()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss)
    model.fit(digits[0][:1200], digits[1][:1200], epochs=2, batch_size=50, verbose=0)
    kernel = model.get_layer("scores").kernel
    kernel.assign(np.where(np.indices(kernel.shape)[0] % 2, kernel, 0.0))
    return model


def place(folder: Path, format: str) -> Path:
    return folder / {"keras": "student.keras", "savedmodel": "student_savedmodel"}[format]


@pytest.mark.parametrize("format", only("savedmodel", of=["savedmodel", "keras"]))
def test_it_is_certified_as_the_student_it_is(
    student: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, format: str
) -> None:
    path = place(tmp_path, format)
    settings = td.Export(label_names=_LABELS, normalisation=td.Normalisation(scale=1 / 16))
    exported = export_model(student, path, format, settings=settings, origin="of the pruned one")
    images, labels = digits[0][1200:], digits[1][1200:]
    certificate = certify(path, student, (images, labels))

    assert exported.method.startswith("float32, nothing quantized")
    assert exported.method.endswith("; of the pruned one")
    assert certificate.passed, certificate.failures
    expected = np.argmax(student.predict(images, verbose=0), axis=1)
    assert certificate.accuracy == np.mean(expected == labels) == certificate.reference_accuracy
    assert certificate.agreement == 1.0
    error = certificate.output_error
    assert error is not None
    assert error.max_relative < 1e-5
    assert (certificate.format, certificate.label_names) == (format, _LABELS)
    assert (certificate.latency, certificate.float32_latency) == (None, None)
    assert certificate.operators == ()
    assert certificate.limits == td.Limits(0.01, 0.99)
    kernels = {name: counts for name, counts in certificate.weight_zeros.items()}
    assert kernels == {
        "convolution/kernel": (0, 54),
        "depthwise/kernel" if format == "keras" else "depthwise/depthwise_kernel": (0, 54),
        "scores/kernel": (480, 960),
    }
    excluded = [w.name for w in exported.inspection.weights if w.operator == "DEPTHWISE_CONV_2D"]
    assert [name.split("/")[0] for name in excluded] == ["depthwise"]
    size = sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())
    assert certificate.raw_bytes == size
    assert certificate.sha256 == exported.sha256 == sha256_of(path)
    sidecar = json.loads(certificate.write_sidecar(path).read_text())
    assert sidecar["artifact"]["method"] == exported.method
    assert sidecar["interface"]["inputs"][0]["name"] == "my_image"
    assert sidecar["interface"]["inputs"][0]["shape"] == [-1, 8, 8, 1]
    assert sidecar["interface"]["outputs"][0] == {
        "name": "scores",
        "shape": [-1, 10],
        "dtype": "float32",
        "scale": None,
        "zero_point": None,
        "formula": None,
        "values": "logits",
    }


_PLAIN_KERAS = """
import sys
import keras
import numpy as np
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
assert not any(name.split(".")[0] in ("tfdistill", "tf_keras") for name in sys.modules)
"""

_PLAIN_TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
images = tf.constant(np.load(sys.argv[2]))
np.save(sys.argv[3], model.signatures["serving_default"](my_image=images)["scores"])
found = model.signatures["classify"](my_image=images)
assert sorted(found) == ["class", "label", "probability"]
np.savez(sys.argv[3] + ".classes", **{name: values.numpy() for name, values in found.items()})
assert not any(name.split(".")[0] in ("tfdistill", "tf_keras") for name in sys.modules)
"""


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize(
    ("format", "script"),
    [
        pytest.param("keras", _PLAIN_KERAS, marks=pytest.mark.slow),
        ("savedmodel", _PLAIN_TENSORFLOW),
    ],
)
def test_others_load_it_without_this_library(
    student: Any,
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    format: str,
    script: str,
) -> None:
    path = place(tmp_path, format)
    export_model(student, path, format, settings=td.Export(label_names=_LABELS))
    images, answers = digits[0][1200:1300], tmp_path / "answers.npy"
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "images.npy", answers],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = student.predict(images, verbose=0)
    np.testing.assert_allclose(np.load(answers), expected, rtol=1e-4, atol=1e-4)
    if format == "savedmodel":
        with np.load(f"{answers}.classes.npz", allow_pickle=True) as found:
            classes = expected.argmax(axis=1)
            np.testing.assert_array_equal(found["class"], classes)
            assert [name.decode() for name in found["label"]] == [_LABELS[c] for c in classes]
            powers = np.exp(expected - expected.max(axis=1, keepdims=True))
            np.testing.assert_allclose(
                found["probability"],
                (powers / powers.sum(axis=1, keepdims=True)).max(axis=1),
                rtol=1e-4,
            )


@pytest.mark.parametrize("format", ["savedmodel", "keras"])
def test_the_snippet_of_the_report_runs_it(
    student: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, format: str
) -> None:
    path = place(tmp_path, format)
    settings = td.Export(normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)))
    exported = export_model(student, path, format, settings=settings)
    expected = student.predict(digits[0][1200:1205], verbose=0).argmax(axis=1)
    for image, wanted in zip(digits[0][1200:1205], expected, strict=True):
        names: dict[str, Any] = {"raw": image * 16}
        exec(compile(snippet(str(path), exported.interface), "snippet", "exec"), names)
        assert names["predicted_class"] == wanted


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("format", only("savedmodel", of=["savedmodel", "keras"]))
def test_probabilities_are_told_from_logits(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, format: str, activation: str
) -> None:
    units = 1 if activation == "sigmoid" else 10
    model = network(units, activation)
    path = place(tmp_path, format)
    exported = export_model(model, path, format)
    assert exported.interface["outputs"][0]["values"] == "probabilities"
    images = digits[0][:50]
    outputs = model.predict(images, verbose=0)
    expected = (outputs[:, 0] > 0.5) if units == 1 else outputs.argmax(axis=1)
    certificate = certify(path, model, (images, expected.astype(int)))
    assert certificate.accuracy == 1.0
    if format == "savedmodel":
        classify = tf.saved_model.load(str(path)).signatures["classify"]
        found = classify(my_image=tf.constant(images))
        np.testing.assert_array_equal(found["class"], expected)
        of_class = np.where(expected, outputs[:, 0], 1 - outputs[:, 0])
        wanted = of_class if units == 1 else outputs.max(axis=1)
        np.testing.assert_allclose(found["probability"], wanted, rtol=1e-4)
        assert "label" not in found


@pytest.mark.parametrize("format", ["savedmodel", "keras"])
def test_it_is_certified_in_the_scope_of_several_devices(
    student: Any,
    digits: tuple[np.ndarray, np.ndarray],
    two_replicas: Any,
    tmp_path: Path,
    format: str,
) -> None:
    """There, TensorFlow loads a SavedModel that cannot be called."""
    with two_replicas.scope():
        model = tf_keras.models.clone_model(student)
        model.set_weights(student.get_weights())
        path = place(tmp_path, format)
        export_model(model, path, format)
        certificate = certify(path, model, (digits[0][1200:1300], digits[1][1200:1300]))
    assert certificate.agreement == 1.0
    assert certificate.elements == 54 + 54 + 960


def test_several_inputs_by_name_and_batches_of_any_size(tmp_path: Path) -> None:
    last, first = LAYERS.Input([3], name="z last"), LAYERS.Input([2], dtype="int32", name="a")
    table = LAYERS.Flatten()(LAYERS.Embedding(5, 4, name="table")(first))
    joined = LAYERS.Concatenate()([last, table])
    model = tf_keras.Model([last, first], LAYERS.Dense(2, name="logits")(joined))
    given = {
        "z_last": np.random.default_rng(0).normal(size=[7, 3]).astype(np.float32),
        "a": np.arange(14, dtype=np.int32).reshape([7, 2]) % 5,
    }
    expected = model([given["z_last"], given["a"]]).numpy()
    for format in ("savedmodel", "keras"):
        path = place(tmp_path, format)
        export_model(model, path, format)
        found = open_artifact(path).predict(given)
        np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)
        data = ({"z last": given["z_last"], "a": given["a"]}, np.arange(7) % 2)
        assert certify(path, model, data).agreement == 1.0


@keras.saving.register_keras_serializable(package="tests")
class Doubled(keras.layers.Layer):
    """A layer that only its author has."""

    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


def test_who_loads_a_file_with_layers_of_the_users_own_is_told(tmp_path: Path) -> None:
    source = keras.Input([8], name="features")
    own = keras.Model(source, keras.layers.Dense(2, name="logits")(Doubled(name="twice")(source)))
    stand_in = network()
    exported = export_model(stand_in, tmp_path / "a.keras", "keras", to_keras3=lambda model: own)
    assert exported.method == (
        "float32, nothing quantized; to be loaded with custom_objects for Doubled"
    )


class Locked(keras.layers.Layer):
    """What its config holds, no file can."""

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lock": threading.Lock()}


def test_a_model_that_keras_cannot_save_is_refused(tmp_path: Path) -> None:
    source = keras.Input([8], name="features")
    own = keras.Model(source, keras.layers.Dense(2, name="logits")(Locked(name="locked")(source)))
    message = r"`model` must be one that Keras can save\. Received: .*lock.*Leave keras out of"
    with pytest.raises(ExportError, match=message):
        export_model(network(), tmp_path / "a.keras", "keras", to_keras3=lambda model: own)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_keras_3_lacks_is_refused_before_training(tmp_path: Path) -> None:
    class Mine(tf_keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs + 1.0

    source = LAYERS.Input([8], name="features")
    model = tf_keras.Model(source, LAYERS.Dense(2)(Mine(name="mine")(source)))
    with pytest.raises(ConversionError, match="mine"):
        check_before_training(model, td.Export(formats=("keras",)))
    check_before_training(model, td.Export(formats=("savedmodel", "float32")))


def test_a_model_that_tensorflow_cannot_save_is_refused_before_training(tmp_path: Path) -> None:
    values = tf.lookup.KeyValueTensorInitializer([0, 1], [2.0, 3.0], tf.int64, tf.float32)
    table = tf.lookup.StaticHashTable(values, -1.0)
    source = LAYERS.Input([8], name="features")
    looked_up = LAYERS.Lambda(lambda x: table.lookup(tf.cast(x, tf.int64)), name="table")(source)
    model = tf_keras.Model(source, LAYERS.Dense(2, name="logits")(looked_up))
    message = r"one that TensorFlow can save for batches of any size\. .*untracked"
    with pytest.raises(ExportError, match=message):
        check_before_training(model, td.Export(formats=("savedmodel",)))
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "saved", "savedmodel")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["savedmodel", "keras"])
def test_strangers_are_not_overwritten(student: Any, tmp_path: Path, format: str) -> None:
    path = place(tmp_path, format)
    if format == "savedmodel":
        path.mkdir()
        (path / "notes.txt").write_text("somebody's")
    else:
        path.write_text("somebody's")
    with pytest.raises(RunDirectoryError, match=rf"{path.name}` must be free or hold an artifact"):
        export_model(student, path, format)
    assert ((path / "notes.txt") if path.is_dir() else path).read_text() == "somebody's"


def test_a_folder_that_was_added_to_is_a_strangers(student: Any, tmp_path: Path) -> None:
    path = tmp_path / "student_savedmodel"
    first = export_model(student, path, "savedmodel")
    second = export_model(student, path, "savedmodel")  # its own, replaced
    assert sha256_of(path) == second.sha256
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    assert first.path == second.path
    (path / "assets" / "more.txt").write_text("more")
    with pytest.raises(RunDirectoryError, match="must be free or hold an artifact"):
        export_model(student, path, "savedmodel")


def test_two_artifacts_do_not_share_a_json_file(student: Any, tmp_path: Path) -> None:
    export_model(student, tmp_path / "student.tflite", "float32")
    with pytest.raises(RunDirectoryError, match=r"student\.json` must be free or hold"):
        export_model(student, tmp_path / "student.keras", "keras")
    assert read_sidecar(tmp_path / "student.tflite") is not None


def test_what_cannot_be_read_is_named(student: Any, tmp_path: Path) -> None:
    path = tmp_path / "student_savedmodel"
    export_model(student, path, "savedmodel")
    (path / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"student_savedmodel` must be a SavedModel that this li"):
        open_artifact(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"folder` must be a SavedModel that this library wrote"):
        certify(tmp_path / "folder", student, (np.zeros([1, 8, 8, 1]), [0]))
    (tmp_path / "a.keras").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="`path` must be a saved Keras model"):
        certify(tmp_path / "a.keras", student, (np.zeros([1, 8, 8, 1]), [0]))
    with pytest.raises(SettingError, match=r"`path` must end in \.keras for keras"):
        export_model(student, tmp_path / "a", "keras")


def test_a_directory_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "model"

    def write(text: str) -> None:
        with files.new_directory(place) as folder:
            folder.mkdir()
            (folder / "inner").mkdir()
            (folder / "inner" / "a.txt").write_text(text)
            files.replace_directory(folder, place)

    write("first")
    write("second")
    assert (place / "inner" / "a.txt").read_text() == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]

    def killed(source: Any, target: Any) -> None:
        if Path(target) == place:
            raise KeyboardInterrupt
        moved(source, target)

    moved: Callable[[Any, Any], None] = files.os.replace
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write("third")
    assert not place.exists()  # for a moment there is none; the next writer finds a free place
    write("fourth")
    files.remove_leftovers(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_the_hash_of_a_folder_knows_names_and_contents(tmp_path: Path) -> None:
    def made(*parts: tuple[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return sha256_of(folder)

    one = made(("a", "1"), ("b/c", "2"))
    assert one == made(("b/c", "2"), ("a", "1"))
    others = [made(("a", "2"), ("b/c", "1")), made(("a", "1"), ("b/d", "2")), made(("a", "1"))]
    assert len({one, *others}) == 4
    assert sha256_of(tmp_path / "nothing") == ""

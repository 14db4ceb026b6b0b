"""What `td.inspect` says of models and files, and of what is wrong with them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import ModelError, SettingError
from tfdistill.export.conversion import convert, random_examples
from tfdistill.inspection.files import FileInspection, open_axes
from tfdistill.inspection.findings import Finding, Inspection
from tfdistill.inspection.models import ModelInspection
from tfdistill.pruning import Pruning
from tfdistill.quantization import Quantization

SAVE = """
import sys
import keras, tf_keras
folder = sys.argv[1]
for library in (keras, tf_keras):
    layers = library.layers
    model = library.Sequential([
        library.Input((6, 6, 2), name="image"),
        layers.Conv2D(8, 3, name="convolution"),
        layers.ReLU(name="rectified"),
        layers.Flatten(name="flatten"),
        layers.Dense(10, name="logits"),
    ], name="student")
    model.save(f"{folder}/{library.__name__}.keras")
    model.save(f"{folder}/{library.__name__}.h5")
    if library is keras:
        model.export(f"{folder}/exported", verbose=False)
    else:
        model.save(f"{folder}/saved", save_format="tf")
"""
CONVOLUTION, DENSE = 4 * 4 * 8 * (9 * 2), 4 * 4 * 8 * 10
PARAMETERS = (9 * 2 + 1) * 8 + (4 * 4 * 8 + 1) * 10


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that another process saved."""
    folder = tmp_path_factory.mktemp("saved")
    subprocess.run([sys.executable, "-W", "ignore", "-c", SAVE, folder], check=True)
    return folder


def inspect(model: Any, **settings: Any) -> ModelInspection:
    settings.setdefault("formats", ())  # which take most of the time
    found = td.inspect(model, **settings)
    assert isinstance(found, ModelInspection)
    return found


def finding(inspection: Inspection, code: str) -> Finding:
    (found,) = [each for each in inspection.findings if each.code == code]
    return found


def codes(inspection: Inspection) -> set[str]:
    return {each.code for each in inspection.findings}


def dense(library: Any = tf_keras, *middle: Any, shape: Any = (8,), **settings: Any) -> Any:
    inputs = hidden = library.Input(shape, name="features", **settings)
    for layer in middle:
        hidden = layer(hidden)
    return library.Model(inputs, library.layers.Dense(4, name="logits")(hidden), name="net")


# --- files of models ---


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("keras.keras", "Keras 3 model"),
        pytest.param("keras.h5", "Keras 3 model", marks=pytest.mark.slow),
        pytest.param("tf_keras.keras", "tf_keras model", marks=pytest.mark.slow),
        ("tf_keras.h5", "tf_keras model"),
        ("saved", "tf_keras model"),
    ],
)
def test_saved_model_of_another_process(saved: Path, name: str, kind: str) -> None:
    found = inspect(saved / name)
    assert (found.kind, found.name, found.status) == (kind, "student", "pass")
    assert (found.parameters, found.multiply_accumulates) == (PARAMETERS, CONVOLUTION + DENSE)
    assert [spec.shape for spec in found.inputs + found.outputs] == [(None, 6, 6, 2), (None, 10)]
    by_name = {layer.name: layer for layer in found.layers}
    assert list(by_name) == ["convolution", "rectified", "flatten", "logits"]
    assert by_name["convolution"].multiply_accumulates == CONVOLUTION
    assert by_name["convolution"].output_shape == (None, 4, 4, 8)
    assert [layer.prunable for layer in found.layers] == [True, None, None, True]
    assert all(layer.quantizable for layer in found.layers)
    assert found.sizes == {}
    assert finding(found, "separate_relu").layers == ("convolution",)
    assert ("keras3" in codes(found)) == (kind == "Keras 3 model")


def test_saved_model_without_layers_says_what_can_be_told(saved: Path) -> None:
    found = td.inspect(saved / "exported")
    assert not isinstance(found, ModelInspection)
    assert (found.kind, found.status) == ("SavedModel without layers", "fail")
    assert found.parameters == PARAMETERS  # Keras 3 saves each weight twice
    assert [(s.name, s.shape, s.dtype) for s in found.inputs] == [
        ("image", (None, 6, 6, 2), "float32")
    ]
    assert [spec.shape for spec in found.outputs] == [(None, 10)]
    assert "cannot be a student" in finding(found, "no_layers").message
    assert "parameters: 1,442" in str(found)


def test_damaged_saved_model_is_refused(saved: Path, tmp_path: Path) -> None:
    content = (saved / "exported" / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[:100])
    with pytest.raises(ModelError, match="must be a SavedModel that can be read"):
        td.inspect(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.keras", "nothing is there"),
        ("nothing.tflite", "No such file"),
        ("text.tflite", "without the identifier TFL3"),
        ("text.keras", "neither a `.keras` file, nor HDF5"),
        ("folder", "no keras_metadata.pb is in it"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for text in ("text.tflite", "text.keras"):
        (tmp_path / text).write_text("no model at all")
    with pytest.raises(ModelError, match=message):
        td.inspect(tmp_path / name)


@pytest.mark.parametrize("formats", ["int8", ["int8", "onnx"]])
def test_formats_that_are_not_predicted_are_refused(formats: Any) -> None:
    message = r"`formats` must be a list, of float32, .*, int16x8\. Received: "
    with pytest.raises(SettingError, match=message + re.escape(repr(formats))):
        td.inspect(dense(), formats=formats)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"or the path of a saved one\. Received: int"):
        td.inspect(4)


def test_code_in_a_file_needs_the_users_word(tmp_path: Path) -> None:
    layer = tf_keras.layers.Lambda(lambda values: values * 2, name="twice")
    dense(tf_keras, layer).save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match="without Lambda layers"):
        td.inspect(tmp_path / "net.keras")
    found = td.inspect(tmp_path / "net.keras", safe_mode=False)
    assert finding(found, "lambda").layers == ("twice",)
    assert found.status == "warn"


# --- what is to be known of a model ---


def test_reasons_of_the_stages_are_theirs() -> None:
    layers = tf_keras.layers
    model = dense(
        tf_keras,
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.Flatten(name="flatten"),
        layers.Dense(4, name="hidden"),
        shape=(6, 6, 2),
    )
    found = inspect(
        model,
        pruning=Pruning(sparsity=0.5, skip=["hidden"]),
        quantization=Quantization(skip=["logits"]),
    )
    by_name = {layer.name: layer for layer in found.layers}
    assert [(n, by_name[n].prunable) for n in ("depthwise", "hidden", "logits")] == [
        ("depthwise", False),
        ("hidden", False),
        ("logits", True),
    ]
    assert by_name["hidden"].why_dense == "named in `skip`"
    assert "depthwise kernels hold few of a model's weights" in by_name["depthwise"].why_dense
    assert (by_name["logits"].quantizable, by_name["logits"].why_float) == (
        False,
        "named in `skip`",
    )
    assert by_name["hidden"].quantizable
    assert finding(found, "left_float").layers == ("logits",)
    assert found.sparsity == 0.5
    assert found.status == "warn"


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_where_logits_are_expected(library: Any, activation: str) -> None:
    inputs = library.Input((8,))
    model = library.Model(inputs, library.layers.Dense(3, activation, name="classes")(inputs))
    found = inspect(model)
    assert finding(found, "softmax").layers == ("classes",)
    assert f"ends in a {activation} where logits are expected" in finding(found, "softmax").message
    assert found.status == "warn"
    assert ("multi_label" in [each.code for each in found.findings]) == (activation == "sigmoid")


_Make = Callable[[Any], list[Any]]


@pytest.mark.parametrize(
    "make",
    [
        lambda k: [k.Conv2D(4, 3, name="kernel"), k.ReLU()],
        lambda k: [k.Conv2D(4, 3, name="kernel"), k.BatchNormalization(), k.ReLU()],
        *(
            pytest.param(make, marks=pytest.mark.slow)  # much like these
            for make in (
                lambda k: [k.Dense(4, name="kernel"), k.ReLU()],
                lambda k: [k.Conv2D(4, 3, name="kernel"), k.Activation("relu")],
                lambda k: [k.Conv2D(4, 3, activation="relu", name="kernel")],
                lambda k: [k.DepthwiseConv2D(3, name="kernel"), k.ReLU(6.0)],
                lambda k: [k.Conv2D(4, 3, name="kernel"), k.MaxPooling2D()],
            )
        ),
    ],
)
def test_hole_of_tfmot_is_named_where_tfmot_has_it(make: _Make) -> None:
    layers = tf_keras.layers
    model = dense(tf_keras, *make(layers), layers.Flatten(), shape=(6, 6, 2))
    alone = tfmot.quantization.keras.quantize_model(model)
    (wrapper,) = [each for each in alone.layers if each.name == "quant_kernel"]
    is_hole = not any("kernel_min" in weight.name for weight in wrapper.weights)
    found = inspect(model)
    assert [e.layers for e in found.findings if e.code == "separate_relu"] == (
        [("kernel",)] if is_hole else []
    )
    assert found.status == "pass"  # ours has none


def test_nested_models_are_named() -> None:
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)], name="encoder")
    found = inspect(dense(keras, inner))
    assert finding(found, "nested").layers == ("encoder",)
    assert found.layers[0].path.startswith("encoder/")
    assert found.status == "pass"


def test_subclassed_model_fails_with_the_way_out() -> None:
    class Own(keras.Model):
        def call(self, values: Any) -> Any:
            return values

    found = inspect(Own(name="own"))
    assert found.status == "fail"
    assert "`call` is Python code" in finding(found, "subclassed").message
    assert (found.layers, found.sizes, found.multiply_accumulates) == ((), {}, None)


def test_unbuilt_model_fails_with_the_way_out() -> None:
    found = inspect(keras.Sequential([keras.layers.Dense(3)]))
    assert found.status == "fail"
    assert "keras.Input(shape)" in finding(found, "unbuilt").message
    assert found.parameters is None


def test_layer_without_a_counterpart_fails_but_is_counted() -> None:
    class Twice(keras.layers.Layer):
        def call(self, values: Any) -> Any:
            return 2 * values

    found = inspect(dense(keras, Twice(name="twice")))
    assert found.status == "fail"
    assert "twice" in finding(found, "bridge").message
    assert [(each.name, each.multiply_accumulates) for each in found.layers] == [
        ("twice", 0),
        ("logits", 32),
    ]
    assert {each.prunable for each in found.layers} == {None}
    assert {each.quantizable for each in found.layers} == {None}


def test_call_that_tf_keras_cannot_copy_is_named() -> None:
    inputs = tf_keras.Input((8, 4))
    products = tf.einsum("bij,bkj->bik", inputs, inputs)
    flat = tf_keras.layers.Flatten()(products)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(4, name="logits")(flat))
    einsum = model.layers[1].name
    found = inspect(model)
    assert found.status == "fail"
    assert str(finding(found, "bridge")) == (
        "fail: `student` must have only functions of TensorFlow that tf_keras can copy, not those "
        f"which take any number of tensors. Received: tf.einsum as {einsum!r}. Put a layer in its "
        "place, or a Lambda layer that calls it."
    )
    assert {each.name: each.multiply_accumulates for each in found.layers}[einsum] == 8 * 8 * 4


def test_failure_in_a_layer_names_the_stage_and_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(tf_keras.layers.Layer):
        def call(self, values: Any) -> Any:
            raise ValueError("no such values")

    def fail(*_: Any, **__: Any) -> None:
        Fails(name="logits")(tf.zeros([2, 3]))

    monkeypatch.setattr("tfdistill.inspection.models.quantize", fail)
    (found,) = [each for each in inspect(dense()).findings if each.code == "quantization"]
    assert found.layers == ("logits",)
    assert found.message == "Quantization-aware training fails: ValueError: no such values"


def test_operator_that_needs_tensorflow_fails_with_its_layer() -> None:
    layer = tf_keras.layers.Lambda(tf.image.rgb_to_hsv, name="hue")
    model = dense(tf_keras, layer, tf_keras.layers.Flatten(), shape=(2, 2, 3))
    found = inspect(model, formats=["float32"])
    assert "RGBToHSV in layer `hue`" in finding(found, "select_ops").message
    assert (found.status, found.sizes) == ("fail", {})


def test_open_shape_fails_and_leaves_the_count_open() -> None:
    layers = tf_keras.layers
    middle = [layers.Conv2D(4, 3, name="convolution"), layers.GlobalAveragePooling2D()]
    found = inspect(dense(tf_keras, *middle, shape=(None, None, 3)))
    assert "fixed shape" in finding(found, "dynamic_shape").message
    assert finding(found, "unknown_macs").layers == ("convolution",)
    assert (found.status, found.multiply_accumulates, found.sizes) == ("fail", None, {})


@pytest.mark.parametrize(
    ("library", "value"), [(keras, np.nan), (tf_keras, -np.inf)], ids=["keras", "tf_keras"]
)
def test_weights_that_are_not_finite_fail_with_their_layers(library: Any, value: float) -> None:
    layers = library.layers
    inner = library.Sequential([library.Input((8,)), layers.Dense(6, name="inside")], name="part")
    model = dense(library, inner, layers.BatchNormalization(name="normalized"))
    for layer in (inner.layers[-1], model.get_layer("normalized")):
        weights = layer.get_weights()
        weights[-1][1] = value
        layer.set_weights(weights)
    found = inspect(model, formats=["int8", "float16"])
    assert found.status == "fail"
    broken = finding(found, "not_finite")
    assert broken.layers == ("inside", "normalized")
    assert "weights are NaN or infinite" in broken.message
    assert [*found.sizes] == ["int8", "float16"]


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_model_stays_as_it_is(library: Any) -> None:
    model = dense(library, library.layers.BatchNormalization())
    before = model.get_weights()
    inspect(model)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_half_precision_fails() -> None:
    found = inspect(dense(tf_keras, tf_keras.layers.Dense(4, dtype="float16", name="half")))
    assert "must compute in float32" in finding(found, "mixed_precision").message
    assert found.status == "fail"


def test_several_outputs_are_looked_at_one_by_one() -> None:
    inputs = tf_keras.Input((4,))
    outputs = {
        "digit": tf_keras.layers.Dense(3)(inputs),
        "parity": tf_keras.layers.Dense(1, activation="sigmoid")(inputs),
    }
    found = inspect(tf_keras.Model(inputs, outputs))
    assert [(each.name, each.shape) for each in found.outputs] == [
        ("digit", (None, 3)),
        ("parity", (None, 1)),
    ]
    assert finding(found, "softmax").layers == ("parity",)
    assert found.status == "warn"
    outputs["map"] = tf_keras.layers.Reshape([2, 2])(inputs)
    refused = inspect(tf_keras.Model(inputs, outputs))
    assert finding(refused, "outputs").layers == ("map",)
    assert refused.status == "fail"


def test_outputs_that_are_no_classes_are_looked_at() -> None:
    found = inspect(dense(tf_keras, shape=(3, 8)))
    assert "[?, 3, 4]" in finding(found, "outputs").message
    assert found.status == "warn"


def test_inputs_that_apps_seldom_have_are_named() -> None:
    layers = tf_keras.layers
    middle = [layers.Embedding(10, 4), layers.GlobalAveragePooling1D()]
    found = inspect(dense(tf_keras, *middle, shape=(5,), dtype="int64"))
    assert finding(found, "input_type").layers == ("features (int64)",)


def test_fixed_batch_is_named() -> None:
    assert finding(inspect(dense(batch_size=4)), "batch").layers == ("features",)
    assert "batch" not in codes(inspect(dense(batch_size=1)))


@pytest.mark.parametrize(("given", "level"), [(None, "warn"), (Pruning(skip=["logits"]), "fail")])
def test_refusal_of_a_stage_fails_only_where_it_was_asked_for(
    given: Pruning | None, level: str
) -> None:
    model = tf_keras.Sequential([tf_keras.Input((1,)), tf_keras.layers.Dense(1, name="logits")])
    found = inspect(model, pruning=given, formats=["float16"])
    assert "at least one layer to prune" in finding(found, "pruning").message
    assert (finding(found, "pruning").level, found.status) == (level, level)
    assert {size.sparse_gzip_bytes for size in found.sizes.values()} == {None}


def test_format_of_the_pipeline_that_is_refused_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelError("`student` must be another one.")

    monkeypatch.setattr("tfdistill.inspection.models.quantize", refuse)  # int8 is then calibrated
    model = dense(tf_keras, tf_keras.layers.GRU(4, name="gru"), shape=(3, 2))
    found = inspect(model, formats=["dynamic_int8", "int8", "int16x8"])
    refused = {each.message.split()[1]: each for each in found.findings if each.code == "format"}
    assert {name: each.level for name, each in refused.items()} == {
        "int8": "warn",
        "int16x8": "note",
    }
    assert "WHILE in layer `gru`" in refused["int8"].message
    assert [*found.sizes] == ["dynamic_int8"]


def test_failure_that_no_stage_expected_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("what a library comes up with")

    monkeypatch.setattr("tfdistill.inspection.models.quantize", fail)
    found = inspect(dense(), quantization=Quantization())
    assert "KeyError: 'what a library comes up with'" in finding(found, "quantization").message
    assert found.status == "fail"


# --- artifacts ---


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, two_devices: None) -> Path:
    model = dense(tf_keras, tf_keras.layers.Dense(16, activation="relu", name="hidden"))
    path = tmp_path_factory.mktemp("artifact") / "net_int8.tflite"
    path.write_bytes(convert(model, "int8", examples=random_examples(model)))
    return path


def file_inspection(path: Path) -> FileInspection:
    found = td.inspect(path)
    assert isinstance(found, FileInspection)
    return found


def test_artifact_is_described(artifact: Path) -> None:
    found = file_inspection(artifact)
    assert (found.kind, found.format, found.status) == ("LiteRT file", "int8", "pass")
    assert found.raw_bytes == artifact.stat().st_size
    assert found.multiply_accumulates == 8 * 16 + 16 * 4
    assert found.integer_share == 1.0
    assert found.parameters == 8 * 16 + 16 * 4
    (products,) = [each for each in found.operators if each.name == "FULLY_CONNECTED"]
    assert (products.count, products.activations, products.weights) == (2, "int8", "int8")
    assert [(spec.name, spec.dtype) for spec in found.inputs] == [("features", "float32")]


def test_artifact_is_known_by_its_content(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.bin"
    other.write_bytes(artifact.read_bytes())
    assert file_inspection(other).format == "int8"


def test_artifact_takes_no_settings_of_stages(artifact: Path) -> None:
    with pytest.raises(SettingError, match="`pruning` must be left out for a LiteRT file"):
        td.inspect(artifact, pruning=Pruning())


def test_artifact_with_select_operators_is_named(tmp_path: Path) -> None:
    layer = tf_keras.layers.Lambda(tf.image.rgb_to_hsv, name="hue")
    model = dense(tf_keras, layer, tf_keras.layers.Flatten(), shape=(2, 2, 3))
    path = tmp_path / "net.tflite"
    path.write_bytes(convert(model, "float32", allow_select_ops=True))
    found = file_inspection(path)
    assert finding(found, "select_ops").layers == ("FlexRGBToHSV",)
    assert finding(found, "unknown_macs").layers == ("FlexRGBToHSV",)
    assert (found.status, found.multiply_accumulates) == ("warn", None)


def test_artifact_of_an_open_shape_is_named(tmp_path: Path) -> None:
    inputs = tf_keras.Input((None, 3), batch_size=1, name="steps")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inputs))
    path = tmp_path / "net.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert list(open_axes(path).values()) == [(1, None, 3)]
    assert finding(file_inspection(path), "dynamic_shape").layers == tuple(open_axes(path))


def test_failed_certificate_fails_and_a_changed_file_warns(tmp_path: Path) -> None:
    from tfdistill.export import export_model

    path = tmp_path / "net.tflite"
    export_model(dense(), path, "float32")
    sidecar = json.loads(path.with_suffix(".json").read_text())
    sidecar["certificate"] = {"passed": False, "failures": ["It is wrong."]}
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    found = file_inspection(path)
    assert (found.status, found.certified) == ("fail", False)
    assert "It is wrong" in finding(found, "certificate").message
    path.write_bytes(convert(dense(), "float16"))
    assert file_inspection(path).status == "warn"
    assert finding(file_inspection(path), "changed").level == "warn"


# --- how it is shown ---


def test_text_holds_tables_and_findings(saved: Path) -> None:
    shown = str(td.inspect(saved / "keras.keras"))
    first, *lines = shown.splitlines()
    assert first == "student: Keras 3 model, pass"
    assert "input image: float32 [?, 6, 6, 2]" in lines
    (row,) = [line.split() for line in lines if line.startswith("convolution")]
    assert row == ["convolution", "Conv2D", "[?,", "4,", "4,", "8]", "152", "2,304", "yes", "yes"]
    (total,) = [line.split() for line in lines if line.startswith("total")]
    assert total == ["total", "1,442", "3,584"]
    assert any(line.startswith("int8 ") and "KB" in line for line in lines)
    assert any(line.startswith("note: It is a Keras 3 model") for line in lines)


def test_dictionary_has_its_keys_and_goes_through_json(saved: Path, artifact: Path) -> None:
    common = ["status", "kind", "name", "inputs", "outputs", "parameters"]
    common += ["multiply_accumulates", "findings"]
    of_model = td.inspect(saved / "tf_keras.h5").to_dict()
    assert list(of_model) == [*common, "layers", "sparsity", "sizes"]
    assert json.loads(json.dumps(of_model, allow_nan=False))["layers"][0]["prunable"] is True
    assert set(of_model["findings"][0]) == {"level", "code", "message", "layers", "hint"}
    of_file = td.inspect(artifact).to_dict()
    assert list(of_file)[: len(common)] == common
    assert of_file["operators"][0]["count"] == 1
    json.dumps(of_file, allow_nan=False)


def test_worst_finding_comes_first_and_gives_the_status() -> None:
    layer = tf_keras.layers.Lambda(tf.image.rgb_to_hsv, name="hue")
    model = dense(tf_keras, layer, tf_keras.layers.Flatten(), shape=(2, 2, 3))
    levels = [each.level for each in td.inspect(model).findings]
    assert levels == sorted(levels, key=["fail", "warn", "note"].index)
    assert {"fail", "warn"} <= set(levels)


def test_litert_file_needs_no_tensorflow(artifact: Path) -> None:
    code = (
        "import sys, tfdistill as td; td.inspect(sys.argv[1]); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, artifact], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"

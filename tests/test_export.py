"""Writing artifacts: `tfdistill.export` and `tfdistill.litert.sidecar`."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import DataError, ExportError, ModelError, RunDirectoryError, SettingError
from tfdistill.export import Export, Limits, Normalisation, export_model
from tfdistill.export.conversion import check_loads, convert, random_examples
from tfdistill.export.exported import FORMATS, check_before_training
from tfdistill.litert.flatbuffer import inspect_file
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.litert.sidecar import check_artifact_path, read_sidecar, sidecar_path
from tfdistill.runs import files

LAYERS = tf_keras.layers


def pixels(count: int = 16, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=[count, 8, 8, 1]).astype(np.float32)


def with_layer(function: Callable[[Any], Any], name: str) -> Any:
    """A dense model with a function of TensorFlow's in the middle."""
    source = LAYERS.Input([8], name="features")
    hidden = LAYERS.Lambda(function, name=name)(source)
    return tf_keras.Model(source, LAYERS.Dense(2, name="logits")(hidden), name="net")


def determinant(values: Any) -> Any:
    return tf.linalg.det(tf.reshape(values, [-1, 2, 2, 2]))


@pytest.fixture
def student(small_tf_keras_model: Callable[..., Any]) -> Any:
    return small_tf_keras_model()


@pytest.fixture(scope="module")
def fake_quantized() -> Any:
    """Like the student, as tfmot makes it ready for quantization-aware training."""
    source = LAYERS.Input([8, 8, 1], name="image")
    hidden = LAYERS.Conv2D(4, 3, activation="relu", name="convolution")(source)
    hidden = LAYERS.Flatten(name="flatten")(hidden)
    model = tf_keras.Model(source, LAYERS.Dense(10, name="logits")(hidden))
    return tfmot.quantization.keras.quantize_model(model)


@pytest.mark.parametrize(
    ("format", "method"),
    [
        ("float32", "float32, nothing quantized"),
        ("float16", "weights rounded to float16"),
        ("dynamic_int8", "post-training, int8 weights, activations quantized at run time"),
        ("int8", "post-training, calibrated on 16 training examples"),
        ("int16x8", "post-training, calibrated on 16 training examples"),
    ],
)
def test_every_format_is_written_with_its_sidecar(
    tmp_path: Path, small_tf_keras_model: Callable[..., Any], format: str, method: str
) -> None:
    student = small_tf_keras_model(filters=12)  # its Dense kernel is large enough for dynamic_int8
    path = tmp_path / "artifacts" / "student.tflite"
    settings = Export(label_names=tuple("0123456789"), normalisation=Normalisation())

    exported = export_model(student, path, format, settings=settings, calibration=[pixels()])

    assert (exported.path, exported.format, exported.method) == (path, format, method)
    assert exported.inspection == inspect_file(path)
    assert exported.inspection.format == format
    assert exported.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(each.name, each.shape, each.dtype) for each in exported.inputs] == [
        ("image", (1, 8, 8, 1), "float32")
    ]
    assert [(each.name, each.shape, each.dtype) for each in exported.outputs] == [
        ("logits", (1, 10), "float32")
    ]
    tolerance = {"float32": 1e-5, "float16": 1e-2}.get(format, 0.1)
    outputs = LiteRTModel(path).predict(pixels(seed=1))["logits"]
    np.testing.assert_allclose(outputs, student(pixels(seed=1)), atol=tolerance)
    sidecar = json.loads((tmp_path / "artifacts" / "student.json").read_text())
    assert sidecar["artifact"]["method"] == method
    assert sidecar["artifact"]["sha256"] == exported.sha256
    assert sidecar["interface"]["label_names"] == list("0123456789")
    assert sidecar["interface"]["normalisation"] == {
        "scale": pytest.approx(1 / 255),
        "offset": 0.0,
        "raw_range": [0.0, 255.0],
    }
    assert sidecar["interface"]["outputs"][0]["values"] == "logits"
    assert sidecar["certificate"] is None


@pytest.mark.parametrize("format", ["int8", "int16x8"])
def test_integer_formats_hold_no_float(tmp_path: Path, student: Any, format: str) -> None:
    exported = export_model(student, tmp_path / "a.tflite", format, calibration=[pixels()])
    assert exported.left_float == ()
    assert {weight.dtype for weight in exported.inspection.weights} == {"int8"}


def test_ranges_of_quantization_aware_training_are_used(
    tmp_path: Path, fake_quantized: Any
) -> None:
    exported = export_model(fake_quantized, tmp_path / "a.tflite", "int8", quantization_aware=True)
    assert exported.method == "quantization-aware training"
    assert exported.left_float == ()
    assert [each.name for each in exported.outputs] == ["logits"]  # not quant_logits
    outputs = LiteRTModel(exported.path).predict(pixels())["logits"]
    step = exported.inspection.output_scales["logits"]
    assert step is not None
    errors = np.abs(outputs - fake_quantized(pixels(), training=False)) / step
    assert np.quantile(errors, 0.99) < 1.01


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_input_and_output_types(tmp_path: Path, fake_quantized: Any, kind: str) -> None:
    settings = Export(formats=("int8", "float16"), input_type=kind, output_type=kind)
    exported = export_model(
        fake_quantized,
        tmp_path / "a.tflite",
        "int8",
        settings=settings,
        quantization_aware=True,
    )
    assert [exported.inputs[0].dtype, exported.outputs[0].dtype] == [kind, kind]
    content = read_sidecar(exported.path)
    assert content is not None
    (source,) = content["interface"]["inputs"]
    limits = np.iinfo(kind)
    assert source["formula"] == (
        f"q = clip(round(x / scale) + zero_point, {limits.min}, {limits.max})"
    )
    assert source["scale"] == exported.inputs[0].scale
    assert source["zero_point"] == exported.inputs[0].zero_point


def test_types_are_of_their_format_only(tmp_path: Path, student: Any) -> None:
    settings = Export(formats=("int16x8", "float16"), input_type="int16", output_type="int16")
    found = {
        format: export_model(
            student, tmp_path / f"{format}.tflite", format, settings=settings, calibration=pixels()
        )
        .inputs[0]
        .dtype
        for format in settings.formats
    }
    assert found == {"int16x8": "int16", "float16": "float32"}


def test_names_and_their_order_survive(tmp_path: Path) -> None:
    """The signature sorts names; what belongs to which name must not follow."""
    last, first = LAYERS.Input([3], name="z last"), LAYERS.Input([3], name="class")
    outputs = [
        LAYERS.Subtract(name="z-difference")([last, first]),
        LAYERS.Add(name="a-sum")([last, first]),
    ]
    model = tf_keras.Model([last, first], outputs)
    batch = {"z last": np.full([4, 3], 5.0), "class": np.linspace(0, 1, 12).reshape([4, 3])}

    for calibration in ([batch], [(list(batch.values()), None)]):
        exported = export_model(
            model, tmp_path / "a.tflite", "int8", settings=Export(), calibration=calibration
        )

        assert {each.name for each in exported.inputs} == {"z_last", "class_"}
        found = LiteRTModel(exported.path).predict(
            {"z_last": batch["z last"], "class_": batch["class"]}
        )
        np.testing.assert_allclose(found["a_sum"], batch["z last"] + batch["class"], atol=0.05)
        np.testing.assert_allclose(
            found["z_difference"], batch["z last"] - batch["class"], atol=0.05
        )


def test_calibration_takes_so_many_examples(tmp_path: Path, student: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices((pixels(40), np.zeros(40))).batch(16).repeat()
    exported = export_model(
        student,
        tmp_path / "a.tflite",
        "int8",
        settings=Export(calibration_examples=20),
        calibration=data,
    )
    assert exported.method == "post-training, calibrated on 20 training examples"


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "`calibration` must be given"),
        ([], "`calibration` must hold one example or more"),
        ([pixels() * np.nan], "`calibration` must be finite. Received: NaN or infinity in 'image'"),
        ([np.zeros([4, 7, 7, 1])], r"must have the shape \(None, 8, 8, 1\) for 'image'. Received"),
        ([{"picture": pixels()}], r"must hold the model's inputs: image. Received: \['picture'\]"),
    ],
)
def test_calibration_data_is_checked(
    tmp_path: Path, student: Any, calibration: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        export_model(student, tmp_path / "a.tflite", "int8", calibration=calibration)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["float32", "float16", "int8"])
def test_a_missing_operator_is_named_with_its_layer(tmp_path: Path, format: str) -> None:
    model = with_layer(determinant, "determinant")
    with pytest.raises(
        ExportError,
        match=r"operators that are built into LiteRT\. Received: MatrixDeterminant in layer "
        r"`determinant`\. .*allow_select_ops=True",
    ):
        export_model(model, tmp_path / "a.tflite", format, calibration=np.ones([4, 8], np.float32))
    assert list(tmp_path.iterdir()) == []


def test_select_ops_are_used_where_allowed(tmp_path: Path) -> None:
    exported = export_model(
        with_layer(determinant, "determinant"),
        tmp_path / "a.tflite",
        "float32",
        settings=Export(allow_select_ops=True),
    )
    assert exported.inspection.custom_operators == ("FlexMatrixDeterminant",)


def test_an_operator_that_select_ops_lack_is_no_question_of_allowing_them(tmp_path: Path) -> None:
    model = with_layer(tf.math.digamma, "gamma")
    with pytest.raises(
        ExportError, match=r"Digamma in layer `gamma`\. .*select ops do not have it either"
    ):
        export_model(model, tmp_path / "a.tflite", "float32")


def steps_of_two_lengths(values: Any) -> Any:
    array = tf.TensorArray(tf.float32, size=2, infer_shape=False)
    _, array = tf.while_loop(
        lambda i, _: i < 2, lambda i, a: (i + 1, a.write(i, values[:, : i + 1])), [0, array]
    )
    return tf.reshape(array.concat(), [-1, 3])


def test_what_the_converter_says_is_passed_on(tmp_path: Path) -> None:
    """It names no operator that LiteRT lacks: this one has another form there."""
    with pytest.raises(
        ExportError,
        match=r"LiteRT's converter can write as float32\. Received: .*TensorListReserve.*"
        r"Leave this format out, or look at the cause",
    ) as raised:
        export_model(with_layer(steps_of_two_lengths, "list"), tmp_path / "a.tflite", "float32")
    assert raised.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_integer_form(tmp_path: Path) -> None:
    model, calibration = with_layer(tf.math.cos, "wave"), np.ones([4, 8], np.float32)
    with pytest.raises(
        ExportError, match=r"that LiteRT has in int16x8\. Received: COS in layer `wave`"
    ):
        export_model(model, tmp_path / "a.tflite", "int16x8", calibration=calibration)
    exported = export_model(model, tmp_path / "b.tflite", "int8", calibration=calibration)
    assert exported.left_float == ("1 COS computes in float32",)


def _image_model(*layers: Any) -> Any:
    result = source = LAYERS.Input([8, 8, 2], name="image")
    for layer in (LAYERS.Conv2D(4, 3), *layers, LAYERS.Flatten(), LAYERS.Dense(2)):
        result = layer(result)
    return tf_keras.Model(source, result)


def _sequence_model(layer: Any) -> Any:
    source = LAYERS.Input([5, 3], name="steps")
    return tf_keras.Model(source, LAYERS.Dense(2)(layer(source)))


@pytest.mark.parametrize(
    ("model", "received"),
    [
        (
            lambda: _image_model(LAYERS.Lambda(lambda x: x * tf.nn.relu6(x + 3) / 6, name="swish")),
            "HARD_SWISH in layer `swish`",
        ),
        (lambda: _image_model(LAYERS.PReLU(name="leak")), "PRELU in layer `leak`"),
        pytest.param(
            lambda: _sequence_model(LAYERS.LSTM(4, name="memory")),
            "UNIDIRECTIONAL_SEQUENCE_LSTM in layer `memory`",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_operator_that_is_in_no_graph_is_named_with_its_layer(
    model: Callable[[], Any], received: str
) -> None:
    with pytest.raises(
        ExportError, match=rf"that LiteRT has in int16x8\. Received: {received}\. .*leave int16x8"
    ):
        check_before_training(model(), Export(formats=("float16", "int16x8")))


def test_a_loop_is_not_calibrated_but_may_be_trained() -> None:
    """The converter would end the process."""
    model, export = _sequence_model(LAYERS.GRU(4, name="memory")), Export(formats=("int8",))
    message = r"`model` must be without a loop.*Received: WHILE in layer `memory`\. .*unroll=True"
    with pytest.raises(ExportError, match=message):
        check_before_training(model, export)
    check_before_training(model, export, quantization_aware=True)


def test_a_file_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    model = _image_model(LAYERS.LayerNormalization())
    message = r"LiteRT can load as int16x8\. Received: a process that was ended by .*RSQRT"
    with pytest.raises(ExportError, match=message):
        check_before_training(model, Export(formats=("int16x8",)))
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "a.tflite", "int16x8", calibration=np.ones([4, 8, 8, 2]))


def test_only_an_ended_process_is_a_reason_to_refuse() -> None:
    """LiteRT raises where scales overflow, too: of an untrained MobileNetV2, not of a trained."""
    check_loads(b"no model: LiteRT raises", "int16x8")


def test_random_values_that_the_model_cannot_take_are_no_reason_to_refuse() -> None:
    """These are to lie above 5: smaller ones become indices below 0, on which LiteRT fails."""
    table = np.ones([9, 2], np.float32)
    model = with_layer(lambda x: tf.gather(table, tf.cast(x[:, 0] - 5.0, tf.int32)), "table")
    with pytest.raises(ExportError):
        convert(model, "int8", examples=random_examples(model))
    check_before_training(model, Export(formats=("int8",)))


def test_which_formats_are_calibrated() -> None:
    for formats, after_training, quantization_aware in (
        (("float32", "float16", "dynamic_int8"), False, False),
        (("float16", "int8"), True, False),
        (("int8", "int16x8"), True, True),
    ):
        export = Export(formats=formats)
        assert export.calibrates(quantization_aware=False) is after_training
        assert export.calibrates(quantization_aware=True) is quantization_aware


def test_kernels_left_float_are_reported(tmp_path: Path) -> None:
    """Without learned ranges, the converter leaves a kernel as it is."""
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    source = LAYERS.Input([8, 8, 1], name="image")
    hidden = annotate(LAYERS.Conv2D(4, 3, activation="relu", name="convolution"))(source)
    hidden = LAYERS.Dense(8, "tanh", name="hidden")(LAYERS.Flatten()(hidden))
    model = tf_keras.Model(source, LAYERS.Dense(2, name="logits")(hidden))
    quantized = tfmot.quantization.keras.quantize_apply(model)
    exported = export_model(quantized, tmp_path / "a.tflite", "int8", quantization_aware=True)
    assert exported.inspection.format == "int8"
    assert sorted(exported.left_float) == [
        "1 TANH computes in float32",
        "FULLY_CONNECTED in layer `hidden` has float32 weights",
        "FULLY_CONNECTED in layer `logits` has float32 weights",
    ]


def test_small_kernels_of_dynamic_int8_are_reported(tmp_path: Path, student: Any) -> None:
    exported = export_model(student, tmp_path / "a.tflite", "dynamic_int8")
    assert exported.left_float == (
        "CONV_2D in layer `convolution` has float32 weights",
        "FULLY_CONNECTED in layer `logits` has float32 weights",
    )


@pytest.mark.parametrize("format", [each for each in FORMATS if each != "int8"])
def test_a_fake_quantized_model_is_for_int8(
    tmp_path: Path, fake_quantized: Any, format: str
) -> None:
    path = tmp_path / {"keras": "a.keras", "savedmodel": "a"}.get(format, "a.tflite")
    with pytest.raises(ExportError, match=rf"`format` must be int8 .*Received: {format}\."):
        export_model(fake_quantized, path, format, quantization_aware=True)
    with pytest.raises(ExportError, match="`model` must be without fake quantization"):
        export_model(fake_quantized, path, format, calibration=pixels())
    assert list(tmp_path.iterdir()) == []


def test_quantization_aware_needs_fake_quantization(tmp_path: Path, student: Any) -> None:
    with pytest.raises(ExportError, match="`model` must simulate 8-bit arithmetic"):
        export_model(student, tmp_path / "a.tflite", "int8", quantization_aware=True)


def test_models_that_cannot_be_exported(tmp_path: Path, student: Any) -> None:
    keras3 = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match=r"must be a Functional tf_keras model\. Received: Seq"):
        export_model(keras3, tmp_path / "a.tflite", "float32")
    source = LAYERS.Input([None, None, 3], name="photo")
    flexible = tf_keras.Model(source, LAYERS.GlobalAveragePooling2D()(source))
    with pytest.raises(ExportError, match=r"inputs of a fixed shape.*photo \(None, None, None, 3"):
        export_model(flexible, tmp_path / "a.tflite", "float32")
    source = LAYERS.Input([4])
    half = tf_keras.Model(source, LAYERS.Dense(2, dtype="mixed_float16", name="fast")(source))
    with pytest.raises(ExportError, match=r"compute in float32.*half precision: fast"):
        export_model(half, tmp_path / "a.tflite", "float32")
    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        student, tfmot.sparsity.keras.ConstantSparsity(0.5, 0)
    )
    with pytest.raises(ExportError, match=r"stripped of pruning wrappers.*convolution"):
        export_model(pruned, tmp_path / "a.tflite", "float32")


def test_descriptions_must_fit_the_model(tmp_path: Path, student: Any) -> None:
    with pytest.raises(SettingError, match=r"`label_names` must be 10 names.*'cat', 'dog'"):
        export_model(
            student, tmp_path / "a.tflite", "float32", settings=Export(label_names=("cat", "dog"))
        )
    settings = Export(normalisation=Normalisation(scale=(1.0, 1.0, 1.0)))
    with pytest.raises(SettingError, match=r"`normalisation` must be .*3 channels for \[1\]"):
        export_model(student, tmp_path / "a.tflite", "float32", settings=settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Export, {"formats": ("int_8",)}, r"Received: int_8\. Did you mean int8"),
        (Export, {"formats": ("onnx",)}, "`formats` must be of float32, float16"),
        (Export, {"formats": ("int8", "int8")}, "`formats` must hold each format once"),
        (Export, {"formats": "int8"}, "`formats` must be a tuple of names. Received: int8"),
        (Export, {"label_names": "cat"}, "`label_names` must be a tuple of names"),
        (Export, {"label_names": ("cat", "d\nog")}, "`label_names` must be names of one line"),
        (Export, {"label_names": (1, 2)}, r"`label_names` must be names of one line.*\(1, 2\)"),
        (Export, {"metadata": "yes"}, "`metadata` must be True or False. Received: yes"),
        (Export, {"input_type": "int4"}, "`input_type` must be one of float32, int8, uint8 "),
        (
            Export,
            {"formats": ("float16",), "output_type": "int8"},
            "`output_type` must be one of float32 for these formats. Received: int8. int8 and",
        ),
        (Export, {"calibration_examples": 0}, "`calibration_examples` must be a whole number"),
        (Export, {"calibration_examples": 2.5}, "`calibration_examples` must be a whole number"),
        (Export, {"format": "int8"}, "`format` must be a setting of Export"),
        (Limits, {"max_accuracy_drop": 2}, r"`max_accuracy_drop` must be in \[0, 1\]"),
        (Limits, {"min_agreement": -0.1}, r"`min_agreement` must be in \[0, 1\]"),
        (Limits, {"max_output_error_steps": 0}, "`max_output_error_steps` must be > 0"),
        (Normalisation, {"scale": 0.0}, "`scale` must not be 0"),
        (Normalisation, {"offset": float("nan")}, "`offset` must be finite"),
        (Normalisation, {"raw_range": (255, 0)}, r"`raw_range` must be \(smallest, largest\)"),
        (
            Normalisation,
            {"scale": (1, 2, 3), "offset": (0, 0)},
            "`scale` and `offset` must be for equally many channels",
        ),
    ],
)
def test_settings_are_checked(kind: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        kind(**settings)


def test_settings_take_lists() -> None:
    names: Any = ["cat", "dog"]
    settings = Export(label_names=names)
    assert settings.label_names == ("cat", "dog")
    assert hash(settings) == hash(Export(label_names=("cat", "dog")))


def test_limits_have_defaults_by_format() -> None:
    assert Limits().for_format("int8") == Limits(0.02, 0.97)
    assert Limits().for_format("float16") == Limits(0.01, 0.99)
    assert Limits().for_format("int4_block32") == Limits(0.03, 0.95)
    assert Limits(min_agreement=0.5).for_format("int8") == Limits(0.02, 0.5)


def test_unknown_format_and_file_name(tmp_path: Path, student: Any) -> None:
    with pytest.raises(SettingError, match=r"Received: float64\. Did you mean float"):
        export_model(student, tmp_path / "a.tflite", "float64")
    for name, format, wanted in (
        ("a.json", "float32", "end in .tflite for float32"),
        ("a.keras", "int4", "end in .tflite for int4"),
        ("a.tflite", "keras", "end in .keras for keras"),
        ("a.tflite", "savedmodel", "have no ending for savedmodel"),
    ):
        with pytest.raises(SettingError, match=rf"`path` must {re.escape(wanted)}\. Received"):
            export_model(student, tmp_path / name, format)
    with pytest.raises(SettingError, match=r"`path` must end in \.tflite or \.keras, or have no"):
        sidecar_path(tmp_path / "a.json")


def test_a_foreign_file_is_never_overwritten(tmp_path: Path, student: Any) -> None:
    path = tmp_path / "student.tflite"
    path.write_bytes(b"somebody's")
    with pytest.raises(RunDirectoryError, match=r"student\.tflite` must be free or hold an art"):
        export_model(student, path, "float32")
    assert path.read_bytes() == b"somebody's"
    path.unlink()
    sidecar_path(path).write_text('{"kind": "somebody\'s"}')
    with pytest.raises(RunDirectoryError, match=r"student\.json` must be free or hold an art"):
        export_model(student, path, "float32")
    assert not path.exists()
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(RunDirectoryError, match=r"folder\.tflite` must be free or hold an art"):
        check_artifact_path(tmp_path / "folder.tflite")


def test_an_artifact_is_replaced_unless_it_was_changed(tmp_path: Path, student: Any) -> None:
    path = tmp_path / "student.tflite"
    export_model(student, path, "float32")
    first = inspect_file(path)
    second = export_model(student, path, "float16")
    assert inspect_file(path).sha256 == second.sha256 != first.sha256
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunDirectoryError, match=r"did not write, or that was changed since"):
        export_model(student, path, "float16")


def test_a_writer_killed_between_its_two_files_can_go_on(
    tmp_path: Path, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.tflite"
    write = files.write_bytes

    def killed(target: Path, data: bytes) -> None:
        if Path(target).suffix == ".tflite":
            raise KeyboardInterrupt
        write(target, data)

    for older in (False, True):
        before = path.read_bytes() if older else None
        with monkeypatch.context() as patched:
            patched.setattr(files, "write_bytes", killed)
            for format in ("float16", "dynamic_int8"):  # and killed once more when it goes on
                with pytest.raises(KeyboardInterrupt):
                    export_model(student, path, format)
        assert (path.read_bytes() if path.exists() else None) == before
        export_model(student, path, "float32")
        assert inspect_file(path).format == "float32"


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, student: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"must be readable and writable"):
        export_model(student, tmp_path / "file" / "a.tflite", "float32")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, student: Any) -> None:
    exported = [
        export_model(student, tmp_path / f"{name}.tflite", "int8", calibration=pixels())
        for name in "ab"
    ]
    assert exported[0].sha256 == exported[1].sha256


def test_export_prints_and_warns_of_nothing(
    tmp_path: Path, fake_quantized: Any, student: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_model(fake_quantized, tmp_path / "a.tflite", "int8", quantization_aware=True)
        path = export_model(student, tmp_path / "b.tflite", "int8", calibration=pixels()).path
        LiteRTModel(path).predict(pixels())
    assert [str(each.message) for each in caught] == []
    assert capfd.readouterr() == ("", "")

"""Holding artifacts against models: `tfdistill.certificate` and `tfdistill.comparison`."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from quick import only

from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.certificate import Certificate, certify
from tfdistill.comparison import Compared
from tfdistill.errors import (
    CertificationError,
    DataError,
    ModelError,
    RunDirectoryError,
    SettingError,
)
from tfdistill.export import Export, ExportedModel, Limits, Normalisation, export_model
from tfdistill.output_certificate import certified, failures_of

LAYERS = tf_keras.layers
Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def test_set(digits: Arrays) -> Arrays:
    images, labels = digits
    return images[1500:], labels[1500:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def student(digits: Arrays) -> Any:
    tf_keras.utils.set_random_seed(0)
    images, labels = digits
    source = LAYERS.Input([8, 8, 1], name="image")
    hidden = LAYERS.Conv2D(12, 3, activation="relu", name="convolution")(source)
    hidden = LAYERS.Flatten(name="flatten")(hidden)
    model = tf_keras.Model(source, LAYERS.Dense(10, name="logits")(hidden), name="student")
    return trained(model, images[:1500], labels[:1500], epochs=8)


@pytest.fixture(scope="module")
def fake_quantized(student: Any, digits: Arrays) -> Any:
    images, labels = digits
    model = tfmot.quantization.keras.quantize_model(student)
    return trained(model, images[:1500], labels[:1500], epochs=1)


def trained(model: Any, images: np.ndarray, labels: np.ndarray, *, epochs: int) -> Any:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss)
    model.fit(images, labels, epochs=epochs, batch_size=50, verbose=0)
    return model


@pytest.fixture(scope="module")
def float32(student: Any, folder: Path) -> ExportedModel:
    return export_model(student, folder / "float32.tflite", "float32")


@pytest.fixture(scope="module")
def int8(fake_quantized: Any, folder: Path) -> ExportedModel:
    settings = Export(
        label_names=tuple(f"digit {label}" for label in range(10)),
        normalisation=Normalisation(scale=1 / 16, raw_range=(0, 16)),
    )
    return export_model(
        fake_quantized, folder / "int8.tflite", "int8", settings=settings, quantization_aware=True
    )


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    """Classes by the bare runtime, quantizing by hand: nothing of this library is used."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    classes = []
    for image in images:
        scale, zero_point = source["quantization"]
        if scale:
            image = np.clip(np.round(image / np.float32(scale)) + zero_point, 0, 255)
        interpreter.set_tensor(source["index"], image[np.newaxis].astype(source["dtype"]))
        interpreter.invoke()
        classes.append(int(np.argmax(interpreter.get_tensor(target["index"])[0])))
    return np.array(classes)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_accuracy_is_what_the_bare_runtime_gives(
    fake_quantized: Any, test_set: Arrays, tmp_path: Path, kind: str
) -> None:
    images, labels = test_set
    settings = Export(formats=("int8",), input_type=kind, output_type=kind)
    path = tmp_path / "student_int8.tflite"
    export_model(fake_quantized, path, "int8", settings=settings, quantization_aware=True)

    certificate = certify(path, fake_quantized, test_set)

    classes = answers(path, images)
    reference = np.argmax(fake_quantized.predict(images, verbose=0), axis=1)
    assert certificate.accuracy == np.mean(classes == labels)
    assert certificate.reference_accuracy == np.mean(reference == labels)
    assert certificate.agreement == np.mean(classes == reference)
    assert certificate.examples == 297
    assert certificate.predictions is not None
    np.testing.assert_array_equal(certificate.predictions, classes)
    for label in range(10):
        expected = np.mean(classes[labels == label] == label)
        assert certificate.per_class_accuracy[label] == pytest.approx(expected)
    assert certificate.accuracy > 0.9  # a student that learned something
    assert certificate.passed, certificate.failures


@pytest.mark.parametrize("format", ["float32", "float16", "dynamic_int8", "int8", "int16x8"])
def test_every_format_is_certified(
    student: Any,
    digits: Arrays,
    test_set: Arrays,
    float32: ExportedModel,
    tmp_path: Path,
    format: str,
) -> None:
    exported = export_model(
        student, tmp_path / "a.tflite", format, calibration=(digits[0][:200], None)
    )
    certificate = certify(exported.path, student, test_set, float32_path=float32.path)

    assert certificate.passed, certificate.failures
    assert certificate.format == format
    assert certificate.sha256 == exported.sha256
    assert certificate.raw_bytes == exported.path.stat().st_size
    assert certificate.limits == Limits().for_format(format)
    assert certificate.elements == 9 * 12 + 36 * 12 * 10
    error = certificate.output_error
    assert error is not None
    if format in ("int8", "int16x8"):
        assert error.unit == "quantization steps"
        assert error.scale is not None
        assert error.maximum == pytest.approx(error.max_absolute / error.scale)
    else:
        assert (error.unit, error.scale) == ("output units", None)
        assert error.max_relative < {"float32": 1e-5, "float16": 1e-3}.get(format, 0.05)
    assert error.p50 <= error.p99 <= error.maximum
    assert certificate.latency is not None
    assert certificate.float32_latency is not None
    assert 0 < certificate.latency.median_ms <= certificate.latency.p90_ms
    assert certificate.latency.runs == certificate.float32_latency.runs >= 10
    assert certificate.host.endswith("(host CPU, one thread: no phone)")
    assert certificate.versions["tensorflow"] == tf.__version__
    assert certificate.versions["ai-edge-litert"][0].isdigit()


def test_errors_are_counted_in_quantization_steps(
    int8: ExportedModel, fake_quantized: Any, test_set: Arrays
) -> None:
    """Three steps are added to each output of one example: p99 must not see it, maximum must."""
    images, labels = test_set
    (step,) = int8.inspection.output_scales.values()
    assert step is not None

    def shifted(batch: Any) -> Any:
        outputs = fake_quantized(batch, training=False)
        chosen = tf.reduce_all(batch == images[17], axis=[1, 2, 3])
        return outputs + 30 * step * tf.cast(chosen, tf.float32)[:, tf.newaxis]

    certificate = certify(int8.path, shifted, test_set)

    error = certificate.output_error
    assert error is not None
    assert error.scale == step
    assert error.maximum == pytest.approx(30, abs=2)
    assert error.p99 < 2.01
    assert 1 < len(certificate.worst_examples) <= 10
    worst = certificate.worst_examples[0]
    assert (worst.index, worst.label, worst.error) == (17, labels[17], error.maximum)
    errors = [each.error for each in certificate.worst_examples]
    assert errors == sorted(errors, key=lambda each: -(each or 0))


def test_a_broken_artifact_fails(
    int8: ExportedModel, fake_quantized: Any, test_set: Arrays, tmp_path: Path
) -> None:
    model = schema.ModelT.InitFromPackedBuf(int8.path.read_bytes(), 0)
    graph = model.subgraphs[0]
    (kernel,) = [each for each in graph.tensors if list(each.shape) == [10, 432]]
    content = bytearray(int8.path.read_bytes())
    stored = bytes(model.buffers[kernel.buffer].data)
    at = content.index(stored)
    content[at : at + len(stored)] = np.random.default_rng(0).bytes(len(stored))
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)

    certificate = certify(path, fake_quantized, test_set)

    assert not certificate.passed
    drop, disagreement = certificate.failures
    assert drop.startswith("Accuracy drops by 0.")
    assert drop.endswith("the limit is 0.0200.")
    assert disagreement.startswith("Artifact and model agree on 0.")
    with pytest.raises(
        CertificationError,
        match=r"^`broken\.tflite` must behave as the model it came from\. Received: Accuracy "
        r"drops by .* Artifact and model agree on .*; the limit is 0\.9700\. Look at",
    ):
        certificate.raise_if_failed()


def test_limits_decide(int8: ExportedModel, fake_quantized: Any, test_set: Arrays) -> None:
    def failures(model: Any, **limits: float) -> tuple[str, ...]:
        return certify(int8.path, model, test_set, limits=Limits(**limits)).failures

    def noisy(batch: Any) -> Any:
        return fake_quantized(batch, training=False) + 5.0 * step

    step = int8.inspection.output_scales["logits"] or 0.0
    assert failures(fake_quantized, max_output_error_steps=2) == ()
    (sentence,) = failures(noisy, max_output_error_steps=2)
    assert sentence.startswith("1 % of the outputs err by more than ")
    assert sentence.endswith("quantization steps; the limit is 2.")
    assert failures(noisy) == ()

    def other(batch: Any) -> Any:
        return tf.roll(fake_quantized(batch, training=False), 1, axis=1)

    assert len(failures(other)) == 1  # a model that is worse is no drop, but no agreement either
    assert failures(other, min_agreement=0) == ()


def test_errors_and_limits_in_closed_form() -> None:
    """Two outputs of 400 are off by 8, and make two examples of 200 wrong."""
    right = np.zeros(200, np.int64)
    reference = np.tile(np.array([2, 0], np.float32), [200, 1])
    wrong, outputs = right.copy(), reference.copy()
    wrong[:2], outputs[:2, 1] = 1, 8
    run = Compared("logits", 2, outputs, reference, wrong, right, labels=right)
    found = certified(run, 0.5, ())
    assert (found.accuracy, found.reference_accuracy, found.agreement) == (0.99, 1, 0.99)
    error = found.output_error
    assert error is not None
    assert (error.p50, error.p99, error.maximum) == (0, 0, 16)
    assert (error.max_absolute, error.max_relative) == (8, 4)
    at_its_limits = Limits(max_accuracy_drop=0.01, min_agreement=0.99, max_output_error_steps=1)
    assert failures_of(found, run, at_its_limits) == ()
    (dropped,) = failures_of(found, run, Limits(max_accuracy_drop=0.009, min_agreement=0))
    assert dropped.startswith("Accuracy drops by 0.0100, from 1.0000 to 0.9900; the limit is 0.0")
    reference[7, 0] = np.nan
    assert failures_of(found, run, at_its_limits) == (
        "The model gives NaN or infinity on 1 of 200 examples.",
    )


def test_outputs_that_are_no_numbers_fail(student: Any, test_set: Arrays, tmp_path: Path) -> None:
    broken = tf_keras.models.clone_model(student)
    broken.set_weights([weight.numpy() for weight in student.weights[:-1]] + [np.full(10, np.nan)])
    path = export_model(broken, tmp_path / "a.tflite", "float32").path

    certificate = certify(path, student, test_set)

    assert certificate.failures[0] == "The artifact gives NaN or infinity on 297 of 297 examples."
    assert certificate.output_error is None
    assert certificate.worst_examples[0].error is None
    content = certificate.write_sidecar(path).read_text()
    json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    both = certify(path, broken, test_set)
    assert "The model gives NaN or infinity on 297 of 297 examples." in both.failures


@pytest.mark.parametrize("activation", only(None, of=[None, "sigmoid"]))
def test_one_unit_is_two_classes(digits: Arrays, tmp_path: Path, activation: str | None) -> None:
    images, labels = digits[0], (digits[1] % 2)
    source = LAYERS.Input([8, 8, 1], name="image")
    outputs = LAYERS.Dense(1, activation, name="odd")(LAYERS.Flatten()(source))
    model = tf_keras.Model(source, outputs)
    model.compile("adam", tf_keras.losses.BinaryCrossentropy(from_logits=activation is None))
    model.fit(images, labels, epochs=5, verbose=0)
    path = export_model(model, tmp_path / "a.tflite", "int8", calibration=images[:100]).path

    certificate = certify(path, model, (images[:300], labels[:300]), label_names=["even", "odd"])

    threshold = 0.0 if activation is None else 0.5
    expected = (model.predict(images[:300], verbose=0)[:, 0] > threshold) == labels[:300]
    assert certificate.reference_accuracy == pytest.approx(np.mean(expected))
    assert certificate.reference_accuracy > 0.7
    assert certificate.classes == len(certificate.per_class_accuracy) == 2
    assert certificate.passed, certificate.failures
    with pytest.raises(DataError, match=r"labels from 0 to 1: the artifact has 2 classes.*: 7\."):
        certify(path, model, (images[:8], np.full(8, 7)))


def forms(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    weights = np.zeros(len(labels))
    return {
        "arrays": (images, labels),
        "column": (images, labels[:, np.newaxis].astype(np.float32), weights),
        "one-hot": (images, np.eye(10, dtype=np.float32)[labels]),
        "tensors": (tf.constant(images), tf.constant(labels)),
        "data set": tf.data.Dataset.from_tensor_slices((images, labels)).batch(64),
        "by name": tf.data.Dataset.from_tensor_slices(
            ({"image": images}, np.eye(10)[labels], weights)
        ).batch(50),
        "list": [(images[:100], labels[:100]), (images[100:], labels[100:])],
    }


def test_data_may_come_in_any_form_that_keras_takes(
    float32: ExportedModel, student: Any, test_set: Arrays
) -> None:
    found = {name: certify(float32.path, student, data) for name, data in forms(*test_set).items()}
    assert {each.accuracy for each in found.values()} == {found["arrays"].accuracy}
    assert {each.examples for each in found.values()} == {297}
    for each in found.values():
        np.testing.assert_array_equal(each.predictions, found["arrays"].predictions)


def test_pixels_may_be_whole_numbers(tmp_path: Path) -> None:
    source = LAYERS.Input([4], name="pixels")
    model = tf_keras.Model(source, LAYERS.Dense(3)(LAYERS.Rescaling(1 / 255)(source)))
    pixels = np.random.default_rng(0).integers(0, 256, [50, 4], dtype=np.uint8)
    labels = np.argmax(model(pixels.astype(np.float32)), axis=1)
    path = export_model(model, tmp_path / "a.tflite", "int8", calibration=pixels).path
    assert certify(path, model, (pixels, labels)).reference_accuracy == 1.0
    assert certify(path, model, (pixels, labels)).accuracy > 0.9


def test_the_data_is_not_held_in_memory(float32: ExportedModel, student: Any) -> None:
    batches: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[Arrays]:
        for _ in range(8):
            images = np.ones([16, 8, 8, 1], np.float32)
            batches.append(weakref.ref(images))
            assert sum(batch() is not None for batch in batches) <= 2
            yield images, np.zeros(16, np.int64)

    assert certify(float32.path, student, stream()).examples == 128


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "`data` must hold one example or more"),
        (lambda x, y: [], "`data` must hold one example or more"),
        (
            lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat(),
            "`data` must end. Received: a data set that repeats without end",
        ),
        (lambda x, y: (x, y + 3), r"labels from 0 to 9: the artifact has 10 classes.*: 1\d\."),
        (lambda x, y: (x, y - 9), r"must have labels from 0 to 9.*Received: -\d"),
        (lambda x, y: (x, y + 0.5), r"must have labels from 0 to 9.*Received: \d\.5"),
        (lambda x, y: (x, np.eye(11)[y]), r"one-hot rows \[batch, 10\]\. Received: \(256, 11\)"),
        (lambda x, y: (x[:, :7], y), r"must have the shape \[batch, 8, 8, 1\]"),
        (lambda x, y: x, r"`data` must be batches \(x, y\)\. Received: ndarray"),
        (lambda x, y: 7, r"`data` must be batches \(x, y\)\. Received: int"),
        (lambda x, y: ({"picture": x}, y), "must hold the model's inputs: image"),
    ],
)
def test_data_is_checked(
    float32: ExportedModel, student: Any, test_set: Arrays, make: Callable[..., Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        certify(float32.path, student, make(*test_set))


def test_the_model_must_fit_the_artifact(
    float32: ExportedModel, student: Any, test_set: Arrays, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"must give outputs as the artifact does: \[batch, 10\]"):
        certify(float32.path, lambda batch: student(batch)[:, :9], test_set)
    with pytest.raises(ModelError, match="`model` must be a Keras model or a function"):
        certify(float32.path, "student", test_set)
    with pytest.raises(ModelError, match=r"must have one output\. Received: 2 outputs"):
        certify(float32.path, lambda batch: (student(batch), batch), test_set)
    with pytest.raises(SettingError, match=r"`label_names` must be 10 names.*\('a', 'b'\)"):
        certify(float32.path, student, test_set, label_names=["a", "b"])
    heads = tf_keras.Model(student.inputs, [student.output, student.layers[1].output])
    path = export_model(heads, tmp_path / "a.tflite", "float32").path
    with pytest.raises(ModelError, match=r"must be a model with one output \[1, classes\]"):
        certify(path, heads, test_set)


@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_several_inputs_keep_their_order(tmp_path: Path, library: Any, as_dictionary: bool) -> None:
    def build(library: Any) -> Any:
        inputs = [library.layers.Input([3], name=name) for name in ("z", "a")]
        outputs = library.layers.Subtract(name="difference")(inputs)
        return library.Model({"z": inputs[0], "a": inputs[1]} if as_dictionary else inputs, outputs)

    path = export_model(build(tf_keras), tmp_path / "a.tflite", "float32").path
    z, a = np.random.default_rng(0).normal(size=[2, 40, 3]).astype(np.float32)
    labels = np.argmax(z - a, axis=1)

    certificate = certify(path, build(library), ({"z": z, "a": a}, labels))
    assert (certificate.accuracy, certificate.reference_accuracy) == (1.0, 1.0)
    function = certify(path, lambda inputs: inputs["z"] - inputs["a"], ({"z": z, "a": a}, labels))
    assert function.reference_accuracy == 1.0
    if not as_dictionary:
        assert certify(path, build(library), [([z, a], labels)]).reference_accuracy == 1.0
        renamed = library.Sequential([library.layers.Input([3]), library.layers.Dense(3)])
        with pytest.raises(ModelError, match="`model` must have the artifact's inputs: "):
            certify(path, renamed, ({"z": z, "a": a}, labels))


def test_a_keras_3_model_can_be_the_reference(
    float32: ExportedModel, student: Any, test_set: Arrays
) -> None:
    twin = keras.Sequential(
        [
            keras.layers.Input([8, 8, 1]),
            keras.layers.Conv2D(12, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    twin.set_weights(student.get_weights())
    certificate = certify(float32.path, twin, test_set)
    assert certificate.agreement == 1.0
    assert certificate.output_error is not None
    assert certificate.output_error.max_relative < 1e-5


def test_select_ops_cannot_be_certified(tmp_path: Path) -> None:
    source = LAYERS.Input([8], name="features")
    hidden = LAYERS.Lambda(lambda x: tf.linalg.det(tf.reshape(x, [-1, 2, 2, 2])))(source)
    model = tf_keras.Model(source, LAYERS.Dense(2)(hidden))
    settings = Export(allow_select_ops=True)
    path = export_model(model, tmp_path / "a.tflite", "float32", settings=settings).path
    with pytest.raises(CertificationError, match=r"built into LiteRT.*FlexMatrixDeterminant\."):
        certify(path, model, (np.ones([4, 8]), np.zeros(4)))


def test_the_sidecar_holds_interface_and_certificate(
    int8: ExportedModel, fake_quantized: Any, test_set: Arrays
) -> None:
    certificate = certify(int8.path, fake_quantized, test_set, label_names=list("0123456789"))

    path = certificate.write_sidecar(int8.path)

    assert path == int8.path.with_suffix(".json")
    sidecar = json.loads(path.read_text())
    assert Certificate.from_dict(sidecar["certificate"]) == certificate
    assert sidecar["certificate"]["passed"] is True
    assert "predictions" not in sidecar["certificate"]
    # What the export knew stays.
    assert sidecar["artifact"]["method"] == "quantization-aware training"
    assert sidecar["interface"]["normalisation"]["raw_range"] == [0, 16]
    assert sidecar["interface"]["label_names"][3] == "digit 3"
    # The artifact is still the library's own.
    export_model(fake_quantized, int8.path, "int8", quantization_aware=True)


def test_a_sidecar_is_only_for_the_file_that_was_certified(
    float32: ExportedModel, student: Any, test_set: Arrays, tmp_path: Path
) -> None:
    certificate = certify(float32.path, student, test_set)
    path = tmp_path / "foreign.tflite"
    path.write_bytes(float32.path.read_bytes())
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"foreign\.json` must be free or hold an artif"):
        certificate.write_sidecar(path)
    path.with_suffix(".json").unlink()
    sidecar = json.loads(certificate.write_sidecar(path).read_text())
    assert sidecar["interface"]["inputs"][0]["name"] == "image"
    with pytest.raises(RunDirectoryError, match=r"foreign\.tflite` must be free or hold an art"):
        export_model(student, path, "float32")  # certifying it did not make it ours
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CertificationError, match="must be the file that was certified"):
        certificate.write_sidecar(path)


def test_classes_without_examples_have_no_accuracy(
    float32: ExportedModel, student: Any, test_set: Arrays
) -> None:
    images, labels = test_set
    certificate = certify(float32.path, student, (images[labels < 5], labels[labels < 5]))
    assert certificate.per_class_accuracy[5:] == (None,) * 5
    assert all(accuracy is not None for accuracy in certificate.per_class_accuracy[:5])


def test_zeros_of_a_sparse_model_are_in_the_certificate(
    student: Any, test_set: Arrays, tmp_path: Path
) -> None:
    sparse = tf_keras.models.clone_model(student)
    weights = student.get_weights()
    weights[2] = weights[2] * (np.abs(weights[2]) > np.quantile(np.abs(weights[2]), 0.75))
    sparse.set_weights(weights)
    path = export_model(sparse, tmp_path / "a.tflite", "int8", calibration=test_set[0]).path
    certificate = certify(path, sparse, test_set)
    ((zeros, elements),) = [v for v in certificate.weight_zeros.values() if v[1] == 4320]
    assert zeros >= 0.75 * elements
    assert certificate.zeros == sum(each for each, _ in certificate.weight_zeros.values())

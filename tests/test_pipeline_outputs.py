"""Students of several outputs go through the whole pipeline."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from apps import said_by

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.certificate import Certificate
from tfdistill.cli import main as command
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.export import export_model
from tfdistill.page import snippet
from tfdistill.quantization import quantize
from tfdistill.report import advice, read_report
from tfdistill.rows import OutputRow, Row
from tfdistill.runs.stage import Stage
from tfdistill.students import prepare_student

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = Any

ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
LOSSES: dict[str, Any] = {"digit": [td.losses.SoftTargets(4.0)], "parity": [td.losses.LogitsMSE()]}
NAMES: dict[str, Any] = {"digit": [f"digit {n}" for n in range(10)], "parity": ["even", "odd"]}


def split(digits: tuple[Array, Array]) -> list[Any]:
    images, labels = digits
    both = {"digit": labels, "parity": (labels % 2).astype(np.float32)}
    return [
        (images[rows], {name: each[rows] for name, each in both.items()})
        for rows in (slice(1200), slice(1200, None))
    ]


def network(
    library: Any = keras,
    units: int = 6,
    *,
    activations: tuple[str | None, str | None] = (None, None),
    as_list: bool = False,
) -> Any:
    """Digits `[batch, 10]` and their parity `[batch, 1]`.

    In a dictionary layers are called otherwise than the outputs, and come in another order.
    """
    layers = library.layers
    image = layers.Input([8, 8, 1], name="image")
    x = layers.Conv2D(units, 3, use_bias=False, name="convolution")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="bn")(x))
    x = layers.Dropout(0.1, name="dropout")(layers.Flatten(name="flatten")(x))
    digit = layers.Dense(10, activation=activations[0], name="digit" if as_list else "b")(x)
    parity = layers.Dense(1, activation=activations[1], name="parity" if as_list else "a")(x)
    return library.Model(image, [parity, digit] if as_list else {"digit": digit, "parity": parity})


@pytest.fixture(scope="module")
def teacher(two_devices: None, digits: tuple[Array, Array]) -> Any:
    keras.utils.set_random_seed(0)
    model = network(units=16)
    losses = {
        "digit": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "parity": keras.losses.BinaryCrossentropy(from_logits=True),
    }
    model.compile(keras.optimizers.Adam(5e-3), losses)
    model.fit(*split(digits)[0], epochs=4, verbose=0)
    return model


class Run(NamedTuple):
    """A finished run, and how it was called."""

    result: td.Result
    again: Callable[..., td.Result]
    test: Any
    run_dir: Path


@pytest.fixture(scope="module")
def whole(
    teacher: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """All stages on a Keras 3 student whose outputs end in softmax and sigmoid."""
    train, test = split(digits)
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    keras.utils.set_random_seed(1)
    student = network(activations=("softmax", "sigmoid"))
    pipeline = td.Pipeline(
        distillation=td.Distillation(
            losses=LOSSES,
            label_loss_weight={"digit": 0.1, "parity": 1.0},
            epochs=4,
            learning_rate=1e-2,
        ),
        pruning=td.Pruning(sparsity=0.5, epochs=2, learning_rate=5e-3),
        quantization=td.Quantization(epochs=1, learning_rate=1e-3),
        export=td.Export(
            formats=("int8", "float16", "savedmodel", "keras"),
            input_type="uint8",
            output_type="int8",
            label_names=NAMES,
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
            limits=ANY,
        ),
    )

    def run(directory: Path, verbose: int = 0) -> td.Result:
        return pipeline.run(
            student, teacher, train, validation=test, test=test, run_dir=directory, verbose=verbose
        )

    return Run(run(run_dir), run, test, run_dir)


# --- the whole ---


def test_each_output_has_its_column_and_its_certificate(whole: Run) -> None:
    report = whole.result.report
    header, *lines = report.table()
    accuracies = [f"accuracy of {name}" for name in ("all", "digit", "parity")]
    assert [*header[:5]] == ["model", *accuracies, "agrees with teacher"]
    assert [line[0] for line in lines] == [
        *("teacher", "student alone", "distilled", "pruned", "quantized"),
        *("int8", "float16", "savedmodel", "keras"),
    ]
    images, labels = whole.test
    rows = {row.name: row for row in report.rows}
    said = {name: np.asarray(each) for name, each in whole.result.student(images).items()}
    right = {
        "digit": said["digit"].argmax(axis=1) == labels["digit"],
        "parity": (said["parity"][:, 0] > 0.5) == labels["parity"],
    }
    for name, each in right.items():
        assert each.mean() > 0.7, name
        assert rows["pruned"].outputs[name].accuracy == pytest.approx(each.mean(), abs=1e-9)
        of_classes = [each[labels[name] == n].mean() for n in range(len(NAMES[name]))]
        found = rows["pruned"].outputs[name].per_class_accuracy
        np.testing.assert_allclose(found, of_classes, atol=1e-9)
    both = right["digit"] & right["parity"]
    assert rows["pruned"].accuracy == pytest.approx(both.mean(), abs=1e-9)
    assert both.mean() < min(each.mean() for each in right.values())
    assert rows["float16"].sparsity == pytest.approx(0.5, abs=0.01)
    for format, artifact in whole.result.artifacts.items():
        for name, certificate in artifact.certificate.outputs.items():
            assert rows[format].outputs[name].accuracy == certificate.accuracy
            assert certificate.label_names == tuple(NAMES[name])
        assert artifact.certificate.accuracy == rows[format].accuracy


def test_the_student_comes_back_as_it_was_built(whole: Run) -> None:
    student = whole.result.student
    assert isinstance(student, keras.Model)
    said = student(whole.test[0][:7])
    np.testing.assert_allclose(np.asarray(said["digit"]).sum(axis=1), 1.0, rtol=1e-5)
    assert np.mean(np.asarray(student.get_layer("b").kernel) == 0) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("format", ["int8", "float16"])
def test_an_app_finds_the_accuracies_that_the_certificate_says(
    whole: Run, tmp_path: Path, format: str
) -> None:
    images, labels = whole.test
    texts = {
        f"label of {name}": np.array(NAMES[name])[each.astype(int)] for name, each in labels.items()
    }
    artifact = whole.result.artifacts[format]
    raw = images * 16
    said = said_by("litert_outputs_alone.py", artifact.path, tmp_path, raw=raw, **texts)
    certificate = artifact.certificate
    expected = {name: each.accuracy for name, each in certificate.outputs.items()}
    assert json.loads(said) == expected


def test_files_say_of_each_output_what_it_is(whole: Run) -> None:
    sidecar = json.loads((whole.run_dir / "artifacts/student_int8.json").read_text())
    outputs = {each["name"]: each for each in sidecar["interface"]["outputs"]}
    assert [*outputs] == ["digit", "parity"]
    for name, size in {"digit": 10, "parity": 1}.items():
        assert outputs[name]["shape"] == [1, size]
        assert outputs[name]["dtype"] == "int8"
        assert outputs[name]["scale"] > 0
        assert outputs[name]["values"] == "probabilities"
        assert outputs[name]["label_names"] == NAMES[name]
    path = whole.result.artifacts["int8"].path
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["labels_digit.txt", "labels_parity.txt"]
        assert archive.read("labels_parity.txt") == b"even\nodd"
    metadata = td.read_metadata(path)
    assert metadata is not None
    assert metadata["interface"] == sidecar["interface"]
    again = Certificate.from_dict(json.loads(json.dumps(sidecar["certificate"])))
    assert again.outputs == whole.result.artifacts["int8"].certificate.outputs
    found = td.inspect(path).to_dict()["label_names"]
    assert {name: [*each] for name, each in found.items()} == NAMES


def test_the_report_is_read_again_and_shown(whole: Run) -> None:
    report = whole.result.report
    assert report.html_path is not None
    read = read_report(report.html_path.parent)
    assert read.table() == report.table()
    assert read.rows == report.rows
    assert read.label_name(1, "parity") == "odd"
    assert {each.output for each in read.disagreements["int8"]} == {"digit", "parity"}
    page = report.html_path.read_text("utf-8")
    for said in (
        *("Accuracy by class: digit", "Accuracy by class: parity", "accuracy of parity"),
        *("Farthest from the model it came from: digit", "<dt>output</dt><dd>parity</dd>"),
        *("labels of parity", "Accuracy of digit against gzip size", "digit accuracy"),
    ):
        assert said in page, said


@pytest.mark.parametrize("format", ["int8", "float16", "savedmodel", "keras"])
def test_the_lines_of_the_page_run(whole: Run, format: str) -> None:
    artifact = whole.result.artifacts[format]
    images, _ = whole.test
    lines = snippet(str(artifact.path), artifact.interface)
    for index in range(3):
        known: dict[str, Any] = {"raw": images[index] * 16}
        exec(compile(lines, "snippet", "exec"), known)
        predicted = artifact.certificate.predictions
        assert known["predicted_classes"] == {name: predicted[name][index] for name in NAMES}


def test_a_server_is_told_the_classes_of_each_output(whole: Run) -> None:
    artifact = whole.result.artifacts["savedmodel"]
    images, _ = whole.test
    said = tf.saved_model.load(str(artifact.path)).signatures["classify"](image=images)
    predicted = artifact.certificate.predictions
    for name, labels in NAMES.items():
        np.testing.assert_array_equal(said[f"{name}_class"], predicted[name])
        expected = np.array(labels)[predicted[name]].astype(bytes)
        np.testing.assert_array_equal(said[f"{name}_label"], expected)


@pytest.mark.slow  # as of one output, which test_pipeline.py tests
def test_a_finished_run_ends_at_once(whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    again = whole.again(whole.run_dir, verbose=1)
    said = capsys.readouterr().out
    stages = ("distillation", "baseline", "pruning", "quantization", "artifacts")
    assert [stage for stage in stages if f"{stage}: finished before" in said] == [*stages]
    assert again.report.rows == whole.result.report.rows
    for format, artifact in whole.result.artifacts.items():
        found = again.artifacts[format]
        assert found.certificate == artifact.certificate
        for name in NAMES:
            np.testing.assert_array_equal(found.predictions[name], artifact.predictions[name])
            np.testing.assert_array_equal(found.labels[name], artifact.labels[name])


@pytest.mark.slow
def test_a_lost_artifact_is_made_again(whole: Run, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole.run_dir, run_dir)
    (run_dir / "artifacts/student_float16.tflite").unlink()
    again = whole.again(run_dir)
    assert again.artifacts["float16"].certificate.sha256 == (
        whole.result.artifacts["float16"].certificate.sha256
    )


# --- other students, other data ---


def _trained(
    teacher: Any, train: Any, run_dir: Path, student: Any = None, **settings: Any
) -> td.Result:
    """The floating student of a short run, without artifacts."""
    export = settings.pop("export", td.Export(formats=()))
    asked = {"losses": LOSSES, "epochs": 2, **settings.pop("distillation", {})}
    keras.utils.set_random_seed(3)
    tf_keras.utils.set_random_seed(3)
    pipeline = td.Pipeline(distillation=td.Distillation(**asked), export=export)
    return pipeline.run(
        student or network(), teacher, train, run_dir=run_dir, verbose=0, **settings
    )


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(
    teacher: Any, digits: tuple[Array, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = split(digits)
    whole = _trained(teacher, train, tmp_path / "whole", test=test)
    save = Stage.save_checkpoint

    def save_and_stop(self: Stage, epoch: int, *rest: Any) -> None:
        save(self, epoch, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stage, "save_checkpoint", save_and_stop)
        for _ in range(2):  # amid each epoch's end
            with pytest.raises(KeyboardInterrupt):
                _trained(teacher, train, tmp_path / "killed", test=test)
    again = _trained(teacher, train, tmp_path / "killed", test=test)
    for ours, theirs in zip(whole.student.weights, again.student.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert [row.outputs for row in whole.report.rows] == [row.outputs for row in again.report.rows]


@pytest.mark.slow  # a whole run
def test_a_list_of_outputs_has_labels_in_its_order(
    teacher: Any, digits: tuple[Array, Array], tmp_path: Path
) -> None:
    """Of a tf_keras student with parity first, rows without labels and weights of one output."""
    images, labels = split(digits)[0]
    parity, digit = labels["parity"].copy(), labels["digit"].copy()
    parity[::2], digit[1::2] = -1, -1
    weights = np.ones(len(images), np.float32)
    batches = tf.data.Dataset.from_tensor_slices(
        (images, (parity, digit), (weights, weights))
    ).batch(100)
    test = split(digits)[1]
    in_order = (test[0], [test[1]["parity"], test[1]["digit"]])
    student = network(tf_keras, activations=("softmax", None), as_list=True)
    result = _trained(
        lambda batch: {"digit": teacher(batch)["digit"]},  # which says nothing of parity
        batches,
        tmp_path,
        student,
        test=in_order,
        distillation={
            "losses": {"digit": LOSSES["digit"]},
            "label_loss_weight": {"parity": 1.0, "digit": 0.5},
            "unlabelled": {"parity": -1, "digit": -1},
            "epochs": 4,
            "learning_rate": 1e-2,
        },
        export=td.Export(formats=("float32", "keras"), limits=ANY),
    )
    assert isinstance(result.student, tf_keras.Model)
    said_parity, said_digit = (np.asarray(each) for each in result.student(test[0]))
    distilled = next(row for row in result.report.rows if row.name == "distilled")
    assert [*distilled.outputs] == ["parity", "digit"]
    expected = np.mean((said_parity[:, 0] > 0) == test[1]["parity"])
    assert distilled.outputs["parity"].accuracy == pytest.approx(expected, abs=1e-9)
    expected = np.mean(said_digit.argmax(axis=1) == test[1]["digit"])
    assert distilled.outputs["digit"].accuracy == pytest.approx(expected, abs=1e-9)
    assert min(each.accuracy for each in distilled.outputs.values()) > 0.6
    first = result.report.rows[0]
    assert first.name == "teacher"
    assert [*first.outputs] == ["digit"]
    header = result.report.table()[0]
    assert {"accuracy of digit", "accuracy of parity"} <= {*header}
    assert "Accuracy by class: parity" in (tmp_path / "report.html").read_text("utf-8")
    assert np.isnan(first.accuracy)
    assert distilled.outputs["parity"].teacher_agreement is None
    values = {
        each["name"]: each["values"] for each in result.artifacts["float32"].interface["outputs"]
    }
    assert values == {"parity": "logits", "digit": "probabilities"}
    notes = " ".join(result.report.details["notes"])
    assert "600 of 1,200 training examples have labels for the output 'parity'" in notes
    alone = result.report.histories["student alone"]
    assert {"parity_accuracy", "digit_accuracy"} <= {*alone}
    # Rows without labels count in neither metric of the student alone.
    assert alone["parity_accuracy"][-1] > 0.6


@pytest.mark.slow  # a whole run
def test_an_output_without_labels_is_certified_by_agreement(
    teacher: Any, digits: tuple[Array, Array], tmp_path: Path
) -> None:
    train, test = ((x, {"digit": y["digit"]}) for x, y in split(digits))
    weights = {"digit": 0.5}
    result = _trained(
        teacher,
        train,
        tmp_path,
        test=test,
        distillation={"label_loss_weight": weights},
        export=td.Export(formats=("float16",), limits=ANY),
    )
    certificate = result.artifacts["float16"].certificate
    parity = certificate.outputs["parity"]
    assert (parity.accuracy, parity.reference_accuracy) == (None, None)
    assert parity.agreement > 0.99
    assert parity.output_error is not None
    assert all(worst.label is None for worst in parity.worst_examples)
    assert certificate.accuracy == certificate.outputs["digit"].accuracy
    header = result.report.table()[0]
    assert "accuracy of digit" in header
    assert "accuracy of parity" not in header  # no row knows it
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == replace(
        certificate, predictions=None, labels=None
    )
    read = read_report(tmp_path)
    assert np.isnan(read.rows[-1].outputs["parity"].accuracy)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "agreement of parity with the model" in page
    assert "accuracy of parity" not in page


@pytest.mark.slow
def test_a_student_without_a_teacher_and_students_in_turn(
    digits: tuple[Array, Array], tmp_path: Path
) -> None:
    train, test = split(digits)
    settings = td.Distillation(
        losses={"digit": [td.losses.VirtualTeacher()]}, label_loss_weight=0.5, epochs=1
    )
    small = td.Distillation(losses=LOSSES, epochs=1)
    pipelines = [
        td.Pipeline(distillation=each, export=td.Export(formats=()), baseline=False)
        for each in (settings, small)
    ]
    first = pipelines[0].run(network(), None, train, test=test, run_dir=tmp_path / "1", verbose=0)
    assert [row.name for row in first.report.rows] == ["distilled"]
    results = td.distill_in_turn(
        [network(), network(units=3)],
        first.student,
        train,
        test=test,
        pipeline=[pipelines[1]] * 2,
        run_dir=tmp_path / "turn",
        verbose=0,
    )
    as_teacher, as_student = results[1].report.rows[0], results[0].report.rows[1]
    assert as_teacher.outputs["parity"].accuracy == as_student.outputs["parity"].accuracy
    assert results[-1].student.get_layer("convolution").kernel.shape[-1] == 3


def test_an_output_in_the_middle_is_quantized_as_it_leaves(tmp_path: Path) -> None:
    """tfmot would merge the layer with the ReLU behind it, if it did not see the output."""
    inputs = tf_keras.Input([6], name="features")
    early = tf_keras.layers.Dense(4, name="early")(inputs)
    late = tf_keras.layers.Dense(3, name="late")(tf_keras.layers.ReLU(name="relu")(early))
    model = tf_keras.Model(inputs, {"late": late, "first": early})
    quantized = quantize(model, td.Quantization(), sparse=False)
    assert quantized.left_float == {}
    rng = np.random.default_rng(0)
    features = rng.normal(size=[200, 6]).astype(np.float32)
    quantized.model(features, training=True)
    path = export_model(
        quantized.model, tmp_path / "a.tflite", "int8", quantization_aware=True
    ).path
    said = quantized.model(features, training=False)
    labels = {name: np.argmax(each, axis=1) for name, each in said.items()}
    certificate = td.certify(
        path, quantized.model, (features, labels), limits=td.Limits(max_output_error_steps=1.01)
    )
    assert certificate.failures == ()
    assert certificate.outputs["first"].output_error is not None
    assert certificate.outputs["first"].output_error.unit == "quantization steps"


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_a_student_is_handed_back_in_the_structure_of_its_own(library: Any) -> None:
    """Whose layers count their weights in another order than those of a dictionary."""
    student = network(library, as_list=True, activations=("softmax", "sigmoid"))
    prepared = prepare_student(student)
    assert prepared.outputs == ("parity", "digit")
    assert [*prepared.heads()] == ["parity", "digit"]
    assert {name: head.activation for name, head in prepared.heads().items()} == {
        "parity": "sigmoid",
        "digit": "softmax",
    }
    images = np.random.default_rng(0).uniform(size=[5, 8, 8, 1]).astype(np.float32)
    said, own = prepared.hand_back(prepared.model)(images), prepared.model(images)
    for place, (name, expected) in enumerate(zip(prepared.outputs, student(images), strict=True)):
        np.testing.assert_allclose(np.asarray(said[place]), np.asarray(expected), atol=1e-6)
        np.testing.assert_allclose(np.asarray(own[name]), np.asarray(expected), atol=1e-6)


# --- certificates ---


@pytest.fixture(scope="module")
def exported(two_devices: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    tf_keras.utils.set_random_seed(0)
    model = network(tf_keras)
    path = tmp_path_factory.mktemp("exported") / "a.tflite"
    return model, export_model(model, path, "float32").path


def _labels(model: Any, images: Array) -> dict[str, Array]:
    said = model(images)
    return {
        "digit": np.argmax(said["digit"], axis=1),
        "parity": np.asarray(said["parity"])[:, 0] > 0,
    }


def test_limits_are_for_each_output(
    exported: tuple[Any, Path], digits: tuple[Array, Array]
) -> None:
    model, path = exported
    images = digits[0][:200]
    labels = _labels(model, images)

    def turned(batch: Any) -> Any:
        said = model(batch)
        return {"digit": said["digit"], "parity": -said["parity"]}

    certificate = td.certify(path, turned, (images, labels))
    assert len(certificate.failures) == 1
    assert certificate.failures[0] == (
        "parity: Artifact and model agree on 0.0000 of the examples; the limit is 0.9900."
    )
    assert certificate.agreement == 0.0
    assert certificate.outputs["digit"].agreement == 1.0
    reverse = td.certify(
        path, model, (images, {**labels, "digit": (labels["digit"] + 1) % 10}), limits=ANY
    )
    accuracies = {name: each.accuracy for name, each in reverse.outputs.items()}
    assert accuracies == {"digit": 0.0, "parity": 1.0}
    assert (reverse.accuracy, reverse.agreement, reverse.passed) == (0.0, 1.0, True)


def test_outputs_are_paired_by_name(
    exported: tuple[Any, Path], digits: tuple[Array, Array]
) -> None:
    """Whatever their order in the model is: one of Keras 3, in a list, is the reference."""
    model, path = exported
    images = digits[0][:100]
    labels = _labels(model, images)
    twin = network(keras, as_list=True)
    for layer in twin.layers:
        names = {"digit": "b", "parity": "a"}
        layer.set_weights(model.get_layer(names.get(layer.name, layer.name)).get_weights())
    in_order = (labels["parity"], labels["digit"])
    certificate = td.certify(path, twin, (images, in_order), label_names=NAMES)
    assert {name: each.accuracy for name, each in certificate.outputs.items()} == {
        "parity": 1.0,
        "digit": 1.0,
    }
    assert certificate.failures == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, y: (m, y["digit"]), r"labels by output, of which the artifact has several"),
        (lambda m, y: (m, {"digits": y["digit"]}), r"`labels` must be by names.*'digits'"),
        (lambda m, y: (m, {}), r"`data` must have labels for an output\. Received: none for digit"),
        (
            lambda m, y: (m, {**y, "digit": y["digit"] + 10}),
            r"`data`, for the output 'digit', must have labels from 0 to 9",
        ),
        (lambda m, y: (lambda x: m(x)["digit"], y), r"must return a dictionary of its outputs"),
        (lambda m, y: (lambda x: {"digit": m(x)["digit"]}, y), r"Received: digit\."),
        (
            lambda m, y: (tf_keras.Model(m.input, [*m.outputs]), y),
            r"must have the artifact's outputs: digit, parity\. Received: (b, a|a, b)",
        ),
        (
            lambda m, y: (lambda x: {**m(x), "digit": m(x)["digit"][:, :9]}, y),
            r"as the artifact does: digit \[batch, 10\]\. Received: \(100, 9\)",
        ),
    ],
)
def test_what_does_not_fit_the_artifact_is_refused(
    exported: tuple[Any, Path],
    digits: tuple[Array, Array],
    change: Callable[[Any, Any], Any],
    message: str,
) -> None:
    model, path = exported
    images = digits[0][:100]
    given, labels = change(model, _labels(model, images))
    with pytest.raises((DataError, ModelError), match=message):
        td.certify(path, given, [(images, labels)])


def test_label_names_are_by_output(exported: tuple[Any, Path], digits: tuple[Array, Array]) -> None:
    model, path = exported
    data = (digits[0][:20], _labels(model, digits[0][:20]))
    for wrong, message in (
        (NAMES["digit"], r"must be by the names of the outputs, of which there are several"),
        ({"digits": NAMES["digit"]}, r"names of the outputs\. Received: 'digits'\. There are: "),
        ({"parity": ["odd"]}, r"must be 2 names, one for each class of the output 'parity'"),
    ):
        with pytest.raises(SettingError, match=message):
            td.certify(path, model, data, label_names=wrong)
        settings = td.Export(formats=("float32",), label_names=wrong)
        pipeline = td.Pipeline(td.Distillation(losses=LOSSES), export=settings)
        with pytest.raises(SettingError, match=message):
            pipeline.check(network(), network())
    one = tf_keras.Model(model.input, model.output["digit"])
    with pytest.raises(SettingError, match=r"must be a tuple of names for a model with one output"):
        export_model(
            one, path.with_name("b.tflite"), "float32", settings=td.Export(label_names=NAMES)
        )


def test_the_command_certifies_the_output_that_has_labels(
    exported: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = exported
    saved = str(tmp_path / "model.keras")
    td.to_keras3(model).save(saved)
    asked = ["certify", str(path), "--model", saved, "--dataset", "digits"]
    assert command([*asked, "--output", "digit"]) == 0
    said = capsys.readouterr().out
    assert "\n  digit: accuracy 0." in said
    assert "\n  parity: no labels; agreement 1.0000" in said
    assert command(asked) == 2
    assert "--output says which one" in capsys.readouterr().err


# --- advice ---


def test_advice_compares_output_by_output() -> None:
    def row(name: str, kind: str, digit: float, parity: float, **more: Any) -> Row:
        outputs = {"digit": OutputRow(digit), "parity": OutputRow(parity)}
        return Row(name, kind, accuracy=min(digit, parity), outputs=outputs, **more)

    rows = [
        row("teacher", "teacher", 0.95, 0.97),
        row("student alone", "baseline", 0.90, 0.90),
        row("distilled", "stage", 0.94, 0.95),
        row("pruned", "stage", 0.94, 0.90),
        row("int8", "artifact", 0.94, 0.80, certified=False),
    ]
    rows[0] = replace(rows[0], outputs={"digit": OutputRow(0.95)})  # it says nothing of parity
    of_pruning, of_int8, failed = advice(rows)
    assert of_pruning.startswith("parity: pruned is below distilled (90.00% against 95.00%")
    assert of_int8.startswith("parity: int8 is below pruned (80.00% against 90.00%")
    assert failed.startswith("int8 failed its certificate")
    (sentence,) = advice([each for each in rows if each.kind in ("teacher", "stage")][:2])
    assert sentence.startswith("The student was not trained alone")


@pytest.mark.slow
def test_the_lines_of_the_methods_page_run(
    teacher: Any, digits: tuple[Array, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("run by tests/test_pipeline_outputs.py. -->\n```python\n")[1].split("```")[0]
    assert lines.count("pipeline.run(") == 1
    lines = lines.replace('run_dir="', 'verbose=0, run_dir="')
    (images, labels), test = split(digits)
    known: dict[str, Any] = {"td": td, "student": network(), "teacher": teacher, "test": test}
    known |= {"images": images, "digits": labels["digit"], "parities": labels["parity"]}
    monkeypatch.chdir(tmp_path)
    exec(lines, known)
    certificate = known["result"].artifacts["float16"].certificate
    assert certificate.outputs["parity"].label_names == ("even", "odd")
    assert certificate.outputs["digit"].label_names == ()


# --- the door ---


def _sequences() -> Any:
    inputs = keras.Input([8, 8, 1])
    steps = keras.layers.Reshape([8, 8])(inputs)
    both = {"digit": keras.layers.Dense(10)(keras.layers.Flatten()(steps)), "steps": steps}
    return keras.Model(inputs, both)


def _renamed(*names: str) -> Any:
    model = network()
    return keras.Model(model.input, dict(zip(names, model.output.values(), strict=True)))


def _of_probabilities() -> Any:
    inputs = keras.Input([8, 8, 1])
    flat = keras.layers.Flatten()(inputs)
    digit = keras.layers.Dense(10, activation="softmax", name="scores")(flat)
    return keras.Model(inputs, {"digit": digit, "parity": keras.layers.Dense(1)(digit)})


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "message"),
    [
        (_sequences, network, {}, r"outputs \[batch, classes\] alone.*'steps' \[batch, 8, 8\]"),
        (
            lambda: _renamed("a b", "a_b"),
            network,
            {"losses": {"a b": LOSSES["digit"]}},
            r"outputs whose names differ in their letters and digits\. Received: 'a b', 'a_b'",
        ),
        (
            _of_probabilities,
            network,
            {},
            r"must have the softmax of an output that others are made of.*the output 'digit'",
        ),
        (
            network,
            lambda: lambda x: {"digit": network()(x)["digit"]},
            {},
            r"`teacher` must have each output that `losses` name\. Received: .*'parity'",
        ),
        (network, network, {"losses": {"digits": LOSSES["digit"]}}, r"by names of the student's"),
        (network, network, {"losses": LOSSES["digit"]}, r"`losses` must be by the names"),
        (
            network,
            network,
            {"losses": LOSSES, "unlabelled": {"parities": -1}},
            r"`unlabelled` must be by names of the student's outputs\. Received: 'parities'",
        ),
    ],
)
def test_models_and_settings_that_do_not_fit_are_refused_at_the_door(
    student: Any, teacher: Any, settings: Any, message: str
) -> None:
    pipeline = td.Pipeline(distillation=td.Distillation(**{"losses": LOSSES, **settings}))
    with pytest.raises((ModelError, SettingError), match=message):
        pipeline.check(student(), teacher())


def _without(labels: Any, name: str) -> Any:
    return {other: each for other, each in labels.items() if other != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: {"train": (x, y["digit"])},
            r"`train` must have labels by output, of which the student has several",
        ),
        (
            lambda x, y: {"test": (x, {**y, "odd": y["parity"]})},
            r"`labels of test` must be by names of the student's outputs\. Received: 'odd'",
        ),
        (
            lambda x, y: {"test": (x, (y["digit"],))},
            r"`labels of test` must be of as many parts.*Received: 1 for digit, parity",
        ),
        (
            lambda x, y: {"train": (x, _without(y, "parity"))},
            r"`train` must have labels for the output 'parity'\. Received: labels for digit",
        ),
        (
            lambda x, y: {"validation": (x, _without(y, "parity"))},
            r"`validation` must have labels for the output 'parity'",
        ),
        (
            lambda x, y: {"test": (x, {**y, "digit": np.eye(10, dtype=np.float32)[y["digit"]]})},
            r"`test` must have the same kind of labels as `train` for the output 'digit': integers",
        ),
        (
            lambda x, y: {"train": (x, {**y, "parity": y["digit"]})},
            r"`train`, for the output 'parity', must have labels that are whole numbers from 0 "
            r"below 2\. Received: label ",
        ),
        (
            lambda x, y: {"train": (x, {**y, "digit": y["digit"][:5]})},
            r"`train` must hold at least one example, and as many in each array",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused_at_the_door(
    digits: tuple[Array, Array], tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    images, labels = digits[0][:40], digits[1][:40]
    both = {"digit": labels, "parity": labels % 2}
    data = {"train": (images, both), "test": (images, both), **change(images, both)}
    pipeline = td.Pipeline(distillation=td.Distillation(losses=LOSSES))
    with pytest.raises(DataError, match=message):
        pipeline.run(network(), network(), data.pop("train"), run_dir=tmp_path, verbose=0, **data)


def test_labels_by_name_are_none_of_a_student_with_one_output(
    digits: tuple[Array, Array], tmp_path: Path
) -> None:
    images, labels = digits[0][:40], digits[1][:40]
    student = network()
    one = keras.Model(student.input, student.output["digit"])
    with pytest.raises(DataError, match=r"`train` must have one tensor of labels.*by name: digit"):
        td.Pipeline().run(
            one,
            one,
            (images, {"digit": labels}),
            test=(images, labels),
            run_dir=tmp_path,
            verbose=0,
        )


def test_one_output_may_be_named_in_the_settings(digits: tuple[Array, Array]) -> None:
    """By what the user calls it, not the layer that a softmax becomes."""
    student = network(activations=("softmax", None))
    one = keras.Model(student.input, student.output["digit"])
    losses = {"b": LOSSES["digit"]}
    td.Pipeline(td.Distillation(losses=losses, label_loss_weight={"b": 1.0})).check(one, one)
    with pytest.raises(SettingError, match=r"`losses` must be by names.*Received: 'digit'"):
        td.Pipeline(td.Distillation(losses=LOSSES)).check(one, one)

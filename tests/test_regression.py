"""Outputs of numbers, from their labels to an app."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from networks import examples, linear, logits_of, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.certificate import Certificate
from tfdistill.cli import _print_json, _shares
from tfdistill.comparison import Compared
from tfdistill.data.summary import summarise
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.evaluation import Evaluation, agreement
from tfdistill.export import export_model
from tfdistill.output_certificate import certified
from tfdistill.page import render, snippet
from tfdistill.regression import errors_of_numbers, explained, explained_of_each
from tfdistill.report import OutputRow, Report, Row, read_report

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = Any

NAMES = ("column", "row", "ink")
ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
TRAIN, TEST = slice(1400), slice(1400, None)
NUMBERS = [td.losses.RegressionTargets()]


def measures(images: Array) -> Array:
    """Where the ink of each image has its middle, in pixels, and how much there is, in tens."""
    ink = images[..., 0].astype(np.float64)
    total = ink.sum(axis=(1, 2))
    places = np.arange(8)
    column = (ink.sum(axis=1) * places).sum(axis=1) / total
    row = (ink.sum(axis=2) * places).sum(axis=1) / total
    return np.stack([column, row, total / 10], axis=1).astype(np.float32)


def r_squared(outputs: Array, targets: Array) -> Array:
    """Of each number, by its definition."""
    outputs, targets = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    left = ((targets - outputs) ** 2).sum(axis=0)
    return 1 - left / ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)


def mean_absolute(outputs: Array, targets: Array) -> Array:
    """Error of each number."""
    return np.abs(np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)).mean(axis=0)


def network(numbers: int = 3, *, digit: bool = False) -> Any:
    """Numbers `[batch, 3]`; with `digit` those and the digits' classes, by name."""
    layers = keras.layers
    image = layers.Input([8, 8, 1], name="image")
    x = layers.Conv2D(12, 3, strides=2, use_bias=False, name="convolution")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="bn")(x))
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(numbers, name="measures")(x)
    if digit:
        outputs = {"digit": layers.Dense(10, name="digit")(x), "measures": outputs}
    return keras.Model(image, outputs)


@pytest.fixture(scope="module")
def teacher(two_devices: None, digits: tuple[Array, Array]) -> Any:
    """Linear in the pixels, by least squares."""
    images, labels = (each[TRAIN] for each in digits)
    return linear(
        keras, images, {"digit": 8 * np.eye(10)[labels] - 4, "measures": measures(images)}
    )


def batches(data: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(data).shuffle(1400, seed=0).batch(32)


def of_measures(teacher: Any) -> Any:
    return keras.Model(teacher.input, teacher.output["measures"])


class Run(NamedTuple):
    """A finished run, how it was called, and its test set."""

    result: td.Result
    again: Callable[[], td.Result]
    images: Array
    digits: Array
    run_dir: Path


@pytest.fixture(scope="module")
def one(teacher: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A student of three numbers, in floating point and in 8 bits."""
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    keras.utils.set_random_seed(1)
    student, (images, numbers) = network(), digits
    pipeline = td.Pipeline(
        td.Distillation(losses=NUMBERS, label_loss_weight=0.5, epochs=10, learning_rate=3e-2),
        quantization=td.Quantization(epochs=2, learning_rate=1e-3),
        export=td.Export(
            formats=("int8", "float16"),
            input_type="uint8",
            output_type="int8",
            label_names=NAMES,
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
            limits=ANY,
        ),
    )
    train, test = ((images[rows], measures(images[rows])) for rows in (TRAIN, TEST))

    def run() -> td.Result:
        given: dict[str, Any] = {"validation": test, "test": test, "run_dir": run_dir}
        return pipeline.run(student, of_measures(teacher), batches(train), verbose=0, **given)

    return Run(run(), run, images[TEST], numbers[TEST], run_dir)


@pytest.fixture(scope="module")
def several(
    teacher: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Classes and numbers, of which some are not known."""
    run_dir = tmp_path_factory.mktemp("runs") / "several"
    keras.utils.set_random_seed(2)
    student, (images, numbers) = network(digit=True), digits
    pipeline = td.Pipeline(
        td.Distillation(
            losses={"digit": [td.losses.SoftTargets()], "measures": NUMBERS},
            label_loss_weight={"digit": 0.5, "measures": 0.1},
            unlabelled={"measures": np.nan},
            epochs=10,
            learning_rate=3e-2,
        ),
        export=td.Export(
            formats=("float16", "savedmodel", "keras"), label_names={"measures": NAMES}, limits=ANY
        ),
        baseline=False,
    )
    known = measures(images)
    known[:700] = np.nan
    train = images[TRAIN], {"digit": numbers[TRAIN], "measures": known[TRAIN]}
    test = images[TEST], {"digit": numbers[TEST], "measures": measures(images[TEST])}

    def run() -> td.Result:
        given: dict[str, Any] = {"validation": test, "test": test, "run_dir": run_dir}
        return pipeline.run(student, teacher, batches(train), verbose=0, **given)

    return Run(run(), run, images[TEST], numbers[TEST], run_dir)


# --- how near numbers are ---


def test_explained_in_closed_form() -> None:
    targets = np.array([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]])
    assert explained_of_each(targets, targets) == (1.0, 1.0)
    middle = np.broadcast_to(targets.mean(axis=0), targets.shape)
    assert explained_of_each(middle, targets) == (0.0, 0.0)
    outputs = targets + np.array([[0.0, 10.0], [0.0, 0.0], [1.0, 0.0]])
    assert explained_of_each(outputs, targets) == pytest.approx((1 - 1 / 2, 1 - 100 / 200))
    assert explained(outputs, targets) == pytest.approx(0.5)
    assert errors_of_numbers(outputs, targets) == pytest.approx((1 / 3, 10 / 3))
    assert explained_of_each(targets[::-1], targets)[0] == pytest.approx(-3.0)
    run = Compared("numbers", 2, outputs, targets, outputs, targets, labels=None, kind="numbers")
    assert certified(run, None, ()).agreement == pytest.approx(0.5)  # of the model's variance
    constant = np.full([3, 1], 7.0)
    assert explained_of_each(constant, constant) == (1.0,)
    assert explained_of_each(constant + 1, constant) == (0.0,)


def test_less_than_nothing_can_be_explained() -> None:
    row = Row("distilled", "stage", -2.5, mean_absolute_errors=(3.0, 5.0))
    assert row.cells()[1:3] == ("-250.00%", "4")
    assert OutputRow(np.nan, -0.5).teacher_agreement == -0.5  # of an output without labels


def test_what_is_not_finite_is_not_known() -> None:
    targets = np.array([[1.0, 10.0], [2.0, 30.0]])
    broken = targets.copy()
    broken[0, 1] = np.inf
    for found in (explained_of_each(broken, targets), errors_of_numbers(broken, targets)):
        assert np.isfinite(found[0])
        assert np.isnan(found[1])
    assert np.isnan(explained(broken, targets))
    one = targets[:1]
    assert np.isnan(explained_of_each(one, one)).all()  # of one there is no variance


def test_agreement_is_of_what_the_other_says() -> None:
    rng = np.random.default_rng(0)
    ours, theirs, labels = rng.normal(size=[3, 20, 2]).astype(np.float32)
    numbers: Any = {"": "numbers"}
    one, other = (Evaluation(said, labels, numbers) for said in (ours, theirs))
    assert agreement(one, other) == pytest.approx(r_squared(ours, theirs).mean())
    assert agreement(other, one) == pytest.approx(r_squared(theirs, ours).mean())
    # Beside classes numbers do not count: an example has no share of their variance.
    classes = np.array([0, 1] * 10)
    kinds: Any = {"numbers": "numbers"}
    both = Evaluation(
        {"class": np.eye(2, dtype=np.float32)[classes], "numbers": ours},
        {"class": np.where(np.arange(20) < 5, 1 - classes, classes), "numbers": labels},
        kinds,
    )
    assert both.accuracy == 0.75
    assert both.of("numbers").accuracy == pytest.approx(r_squared(ours, labels).mean())
    alone = Evaluation({"a": ours, "b": theirs}, {"a": labels, "b": labels}, {"a": "numbers"})
    assert np.isfinite(alone.of("a").accuracy)


# --- a run ---


def test_every_row_says_how_much_is_explained_and_how_far_off_it_is(one: Run, teacher: Any) -> None:
    wanted = measures(one.images)
    theirs = np.asarray(of_measures(teacher)(one.images))
    said = np.asarray(one.result.student(one.images))
    rows = {row.name: row for row in one.result.report.rows}
    assert r_squared(said, wanted).min() > 0.5  # it has learnt something
    for name, outputs in (("teacher", theirs), ("distilled", said)):
        assert rows[name].accuracy == pytest.approx(r_squared(outputs, wanted).mean(), abs=1e-5)
        np.testing.assert_allclose(
            rows[name].per_class_accuracy, r_squared(outputs, wanted), atol=1e-5
        )
        expected = mean_absolute(outputs, wanted)
        np.testing.assert_allclose(rows[name].mean_absolute_errors, expected, rtol=1e-4)
    expected = r_squared(said, theirs).mean()
    assert rows["distilled"].teacher_agreement == pytest.approx(expected, abs=1e-5)
    assert rows["student alone"].mean_absolute_errors
    # As the training logs have it, in the validation after the last epoch.
    history = one.result.report.histories["distillation"]
    error = history["val_mean_absolute_error"][-1]
    assert error == pytest.approx(mean_absolute(said, wanted).mean(), rel=1e-4)
    assert not [log for log in history if "agreement" in log or "accuracy" in log]


def test_certificates_hold_numbers_against_the_model(one: Run) -> None:
    wanted = measures(one.images)
    for format, artifact in one.result.artifacts.items():
        certificate, outputs = artifact.certificate, artifact.predictions
        assert (certificate.counted, certificate.classes) == ("numbers", 3)
        np.testing.assert_array_equal(artifact.labels, wanted)
        assert certificate.accuracy == pytest.approx(r_squared(outputs, wanted).mean(), abs=1e-6)
        assert certificate.mean_absolute_errors == pytest.approx(mean_absolute(outputs, wanted))
        assert certificate.reference_accuracy == pytest.approx(certificate.accuracy, abs=0.05)
        assert 0.9 < certificate.agreement <= 1.0, format
        assert certificate.label_names == NAMES
        worst = certificate.worst_examples[0]
        assert worst.of_label is not None
        assert worst.label == wanted[worst.index, worst.of_label]
        assert worst.prediction == outputs[worst.index, worst.of_label]
    said = np.asarray(one.result.student(one.images))
    float16 = one.result.artifacts["float16"]
    np.testing.assert_allclose(float16.predictions, said, rtol=5e-3, atol=0.05)
    line = _shares(one.result.artifacts["int8"].certificate)
    assert line.startswith("R² 0.")
    assert line.count("mean absolute error") == 3
    assert "R² against the model" in line


def test_an_app_finds_how_numbers_are_read(one: Run) -> None:
    for format in ("int8", "float16"):
        artifact = one.result.artifacts[format]
        sidecar = json.loads((one.run_dir / f"artifacts/student_{format}.json").read_text())
        (output,) = sidecar["interface"]["outputs"]
        assert output["values"] == "numbers"
        assert sidecar["interface"]["label_names"] == [*NAMES]
        metadata = td.read_metadata(artifact.path)
        assert metadata is not None
        assert metadata["interface"] == sidecar["interface"]
        again = Certificate.from_dict(json.loads(json.dumps(sidecar["certificate"])))
        assert again == artifact.certificate
        assert "numbers" in [each.code for each in td.inspect(artifact.path).findings]
        lines = snippet(str(artifact.path), artifact.interface)
        for index in range(3):
            known: dict[str, Any] = {"raw": one.images[index] * 16}
            exec(compile(lines, "snippet", "exec"), known)
            assert known["predicted_numbers"] == pytest.approx(
                artifact.predictions[index].tolist(), rel=1e-5
            )


def test_the_report_shows_numbers(one: Run) -> None:
    report = one.result.report
    assert report.html_path is not None
    read = read_report(report.html_path.parent)
    assert read.kinds == {"": "numbers"}
    assert read.rows == report.rows
    header, first, *_ = read.table()
    assert header[:3] == ("model", "R²", "mean absolute error")
    assert first[2] == f"{np.mean(report.rows[0].mean_absolute_errors):.4g}"
    assert not any(read.disagreements.values())  # numbers are never quite the same
    page = report.html_path.read_text("utf-8")
    for words in (
        *("Mean absolute error by number", "mean absolute error of ink", "R² against the model"),
        *("is the share of the variance of the labels", ">column<"),
    ):
        assert words in page, words
    assert "Accuracy" not in page.replace("Accuracy and agreement are R²", "")
    notes = " ".join(read.details["notes"])
    assert "Accuracy and agreement are R²" in notes
    assert "Nothing of what it said was left out" in notes  # and no divergence of soft targets
    assert "R² against teacher" in header


def test_numbers_are_stored_as_they_are(one: Run, teacher: Any, digits: Any) -> None:
    shards = [np.load(path) for path in sorted((one.run_dir / "targets/train").glob("*.npy"))]
    kept = np.concatenate([shard["logits"] for shard in shards if shard.dtype.names])
    said = np.asarray(of_measures(teacher)(digits[0][TRAIN]))
    np.testing.assert_allclose(np.sort(kept, axis=0), np.sort(said, axis=0), rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_a_finished_run_is_taken_as_it_is(one: Run) -> None:
    again = one.again()
    assert again.report.rows == one.result.report.rows
    for format, artifact in again.artifacts.items():
        before = one.result.artifacts[format]
        assert artifact.certificate == before.certificate
        np.testing.assert_array_equal(artifact.predictions, before.predictions)


@pytest.mark.slow  # a whole run
def test_numbers_beside_classes(several: Run) -> None:
    said = {n: np.asarray(each) for n, each in several.result.student(several.images).items()}
    wanted = measures(several.images)
    right = said["digit"].argmax(axis=1) == several.digits
    row = next(row for row in several.result.report.rows if row.name == "distilled")
    assert row.accuracy == pytest.approx(right.mean(), abs=1e-9)
    found = row.outputs["measures"]
    assert found.accuracy == pytest.approx(r_squared(said["measures"], wanted).mean(), abs=1e-5)
    assert found.accuracy > 0.3
    expected = mean_absolute(said["measures"], wanted)
    np.testing.assert_allclose(found.mean_absolute_errors, expected, rtol=1e-4)
    header = several.result.report.table()[0]
    assert {"accuracy of digit", "R² of measures", "mean absolute error of measures"} < {*header}
    for format, artifact in several.result.artifacts.items():
        certificate = artifact.certificate
        counted = {name: each.counted for name, each in certificate.outputs.items()}
        assert counted == {"digit": "classes", "measures": "numbers"}
        assert certificate.accuracy == pytest.approx(
            (artifact.predictions["digit"] == several.digits).mean()
        )
        of_numbers = certificate.outputs["measures"].mean_absolute_errors
        assert of_numbers == pytest.approx(
            mean_absolute(artifact.predictions["measures"], wanted)
        ), format
        known: dict[str, Any] = {"raw": several.images[0]}
        exec(compile(snippet(str(artifact.path), artifact.interface), "snippet", "exec"), known)
        assert known["predicted_classes"] == {"digit": artifact.predictions["digit"][0]}
        assert known["predicted_numbers"] == {
            "measures": pytest.approx(artifact.predictions["measures"][0].tolist(), rel=1e-5)
        }
    # A server is told the class; of numbers there is nothing to tell beside them.
    path = str(several.result.artifacts["savedmodel"].path)
    told = tf.saved_model.load(path).signatures["classify"](image=several.images)
    assert {*told} == {"digit_class", "digit_probability"}
    notes = " ".join(several.result.report.details["notes"])
    assert "700 of 1,400 training examples have labels for the output 'measures'" in notes


@pytest.mark.slow  # a whole run
def test_one_number_through_all_stages(teacher: Any, digits: Any, tmp_path: Path) -> None:
    images = digits[0]
    ink = measures(images)[:, 2]  # [examples]
    keras.utils.set_random_seed(3)
    layer = of_measures(teacher).layers[-1]
    kernel, bias = (each[..., 2] for each in layer.get_weights())

    def ask(batch: Any) -> Any:
        flat = tf.reshape(batch, [-1, 64])
        return (tf.linalg.matvec(flat, kernel) + bias)[:, tf.newaxis]

    pipeline = td.Pipeline(
        td.Distillation(
            losses=[td.losses.RegressionTargets(bounded=True, margin=0.01), td.losses.LogitsMSE()],
            label_loss_weight=0.5,
            epochs=8,
            learning_rate=3e-2,
        ),
        pruning=td.Pruning(sparsity=0.5, epochs=4, learning_rate=5e-3),
        quantization=td.Quantization(epochs=2),
        export=td.Export(
            formats=("float32", "int8", "int16x8", "savedmodel"), limits=ANY, label_names=("ink",)
        ),
    )
    train, test = ((images[rows], ink[rows]) for rows in (TRAIN, TEST))
    result = pipeline.run(network(1), ask, batches(train), test=test, run_dir=tmp_path, verbose=0)
    for artifact in result.artifacts.values():
        certificate = artifact.certificate
        assert (certificate.counted, certificate.classes) == ("numbers", 1)
        assert certificate.accuracy > 0.6  # of a teacher with 1.0
        assert certificate.label_names == ("ink",)
    path = str(result.artifacts["savedmodel"].path)
    assert "classify" not in tf.saved_model.load(path).signatures


@pytest.mark.slow  # a whole run
def test_the_lines_of_the_methods_page_run(teacher: Any, digits: Any, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("run by tests/test_regression.py. -->\n```python\n")[1].split("```")[0]
    assert lines.count("run_dir=run_dir") == 1
    images = digits[0]
    known: dict[str, Any] = {"td": td, "student": network(), "run_dir": tmp_path, "images": images}
    known |= {"numbers": measures(images), "test": (images[TEST], measures(images[TEST]))}
    known["teacher"] = of_measures(teacher)
    exec(lines.replace("run_dir=run_dir", "run_dir=run_dir, verbose=0"), known)
    assert known["result"].artifacts["int8"].certificate.counted == "numbers"


# --- distillers ---


def test_distillers_have_no_agreement_of_numbers() -> None:
    inputs, _, _ = examples(12)
    numbers = np.random.default_rng(0).normal(size=[12, 3]).astype(np.float32)
    student, teacher = perceptron(tf_keras), perceptron(keras, seed=1)
    distiller = td.Distiller(student, teacher, NUMBERS, 0.5)
    distiller.compile("sgd", "mse", metrics=["mae"])
    logs = distiller.evaluate(inputs, numbers, verbose=0, return_dict=True)
    assert {*logs} == {"loss", "label_loss", "regression_targets", "mae"}
    s, t = (logits_of(each.get_weights(), inputs) for each in (student, teacher))
    assert logs["regression_targets"] == pytest.approx(np.square(s - t).mean(), rel=1e-5)
    students = [perceptron(tf_keras, seed=seed) for seed in (0, 1)]
    mutual = td.MutualDistiller(students, NUMBERS)
    mutual.compile("sgd", "mse")
    assert not [
        log
        for log in mutual.evaluate(inputs, numbers, verbose=0, return_dict=True)
        if "agreement" in log
    ]


# --- certify alone ---


def test_an_artifact_knows_that_it_gives_numbers(tmp_path: Path) -> None:
    inputs, classes, _ = examples(30)
    model = perceptron(tf_keras)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", kinds={"": "numbers"})
    path.with_suffix(".json").unlink()  # the file itself says so, too
    outputs = logits_of(model.get_weights(), inputs)
    wanted = outputs + np.random.default_rng(0).normal(size=outputs.shape)
    found = td.certify(path, model, (inputs, wanted))
    assert found.accuracy == pytest.approx(r_squared(outputs, wanted).mean(), abs=1e-5)
    assert found.passed
    beside = json.loads(found.write_sidecar(path).read_text())["interface"]["outputs"][0]
    assert beside["values"] == "numbers"
    for labels, message in (
        (classes, r"`data` must have labels \[batch, 3\]: the artifact gives so many.*\(30,\)"),
        (wanted * np.nan, r"`data` must have labels that are finite numbers\. Received: nan"),
    ):
        with pytest.raises(DataError, match=message):
            td.certify(path, model, (inputs, labels))


def test_limits_speak_of_numbers(tmp_path: Path) -> None:
    inputs, _, _ = examples(30)
    model, other = perceptron(tf_keras), perceptron(tf_keras, seed=5)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", kinds={"": "numbers"})
    wanted = logits_of(other.get_weights(), inputs)
    found = td.certify(path, other, (inputs, wanted))
    words = " ".join(found.failures)
    assert "R² drops by" in words
    assert f"explains {found.agreement:.4f} of the variance of the model's numbers" in words


# --- data and the door ---

INPUTS = np.zeros([4, 2], np.float32)
ROWS = np.array([[1, 1.5, 0], [0, -3, 0], [0.25, 100, 0.75], [0, 1, 0]], np.float32)


def _summary(labels: Any, classes: int = 3, **more: Any) -> Any:
    return summarise((INPUTS, labels), classes=classes, kind="numbers", **more)


def test_a_look_counts_who_has_numbers() -> None:
    found = _summary(ROWS)
    assert (found.labels, found.label_counts, found.labelled) == ("numbers", (4,), 4)
    for labels in (ROWS[:, 0], ROWS[:, :1], np.array([3, -1, 70, 2])):
        assert _summary(labels, 1).labels == "numbers"
    marked = ROWS.copy()
    marked[1] = np.nan
    assert _summary(marked, unlabelled=np.nan).labelled == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (ROWS[:, :2], r"`train` must have 3 numbers for each example.*'batch', 2\].*LogitsMSE"),
        (ROWS[:, 0], r"`train` must have 3 numbers for each example, as labels.*\['batch'\]"),
        (ROWS * np.nan, r"`train` must have labels that are finite numbers.*nan.*unlabelled"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _summary(labels)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label_smoothing": 0.1}, r"`label_smoothing` must be 0 where labels are numbers"),
        ({"unlabelled": -1}, r"`unlabelled` must be None or NaN for an output of numbers.*-1"),
        (
            {"losses": [*NUMBERS, td.losses.SoftTargets()]},
            r"`losses` must be of classes\. Received: RegressionTargets, and one of classes",
        ),
    ],
)
def test_what_makes_no_sense_of_numbers_is_refused(
    asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    inputs, classes, _ = examples(12)
    numbers = np.random.default_rng(0).normal(size=[12, 3]).astype(np.float32)
    labels = classes if "losses" in asked else numbers
    pipeline = td.Pipeline(
        td.Distillation(**{"losses": NUMBERS, **asked}), export=td.Export(formats=())
    )
    with pytest.raises(SettingError, match=message):
        pipeline.run(
            perceptron(keras),
            perceptron(keras, seed=1),
            (inputs, labels),
            test=(inputs, labels),
            run_dir=tmp_path,
            verbose=0,
        )


# --- what is not known, and what is no class ---


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("how", [{"combine": "probabilities"}, {"by_confidence": True}])
def test_ensembles_make_no_classes_of_numbers(units: int, how: dict[str, Any]) -> None:
    models = [perceptron(keras, seed=seed, classes=units) for seed in (1, 2)]
    student = perceptron(tf_keras, classes=units)
    with pytest.raises(ModelError, match=r"numbers.*of an ensemble, combine='probabilities'"):
        td.Distiller(student, td.teachers.Ensemble(models, **how), NUMBERS)
    td.Distiller(student, td.teachers.Ensemble(models), NUMBERS)


def test_the_command_says_nothing_of_all_numbers_at_once() -> None:
    several = SimpleNamespace(
        counted="examples",
        accuracy=np.nan,
        agreement=np.nan,
        mean_absolute_errors=(),
        reference_mean_absolute_errors=(),
    )
    assert _shares(cast(Any, several)) == ""
    several.accuracy = None  # of one output without labels
    assert _shares(cast(Any, several)) == "no labels"


def test_agreement_of_numbers_without_labels_has_no_lower_bound() -> None:
    unlabelled = OutputRow(np.nan, -3.5)
    row = Row("distilled", "stage", accuracy=0.5, outputs={"measures": unlabelled})
    assert row.of("measures").teacher_agreement == -3.5
    broken: list[dict[str, Any]] = [{"accuracy": 0.5}, {"accuracy": np.nan, "sparsity": -0.1}]
    for known in broken:
        with pytest.raises(SettingError, match=r"must be in \[0, 1\]"):
            Row("distilled", "stage", **{"teacher_agreement": -3.5, **known})


def test_numbers_alone_have_no_accuracy_of_all() -> None:
    found = {name: OutputRow(0.25, 0.5, (0.25,), (7.0,)) for name in ("length", "weight")}
    report = Report(
        "birds",
        (Row("distilled", "stage", accuracy=np.nan, outputs=found),),
        kinds={"length": "numbers", "weight": "numbers"},
    )
    header, cells = report.table()
    errors = [f"mean absolute error of {name}" for name in found]
    assert header == ("model", "R² of length", errors[0], "R² of weight", errors[1])
    assert cells == ("distilled", "25.00%", "7", "25.00%", "7")
    assert "ccuracy" not in render(report)


def test_r_squared_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, _, _ = examples(30)
    model = perceptron(tf_keras)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", kinds={"": "numbers"})
    wanted = logits_of(model.get_weights(), inputs)

    def overflows(batch: Any) -> Any:
        return tf.where(tf.range(len(batch))[:, tf.newaxis] == 4, np.inf, model(batch))

    found = td.certify(path, overflows, (inputs, wanted))
    assert found.accuracy == pytest.approx(1.0)
    assert found.failures[0] == "The model gives NaN or infinity on 1 of 30 examples."
    _print_json(found.to_dict())
    again = Certificate.from_dict(json.loads(capsys.readouterr().out))
    assert np.isnan([again.reference_accuracy, again.agreement]).all()
    rows = (Row("float32", "artifact", accuracy=found.accuracy, certified=False),)
    page = render(Report("birds", rows, details={"certificates": {"float32": found.to_dict()}}))
    assert " - in Keras" in page

    alone = td.certify(path, model, (inputs[:1], wanted[:1]))
    assert alone.failures == ("R² is of two examples or more; the test set has one.",)


def test_numbers_are_taken_for_no_classes(tmp_path: Path) -> None:
    inputs, _, _ = examples(30)
    model = perceptron(tf_keras)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32")  # which does not say that it gives numbers
    rows = logits_of(model.get_weights(), inputs)
    for labels, message in (
        (rows, r"`data` must have labels in \[0, 1\], for an output of classes\."),
        (np.abs(rows[:, 0]) % 2, "`data` must have labels from 0 to 2"),
    ):
        with pytest.raises(DataError, match=f"{message}.*RegressionTargets"):
            td.certify(path, model, (inputs, labels))
    with pytest.raises(DataError, match=r"label 1\.5\. .*td\.losses\.RegressionTargets teaches"):
        summarise((INPUTS, np.abs(ROWS[:, 1])), classes=200)

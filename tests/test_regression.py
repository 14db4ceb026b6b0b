"""Outputs of numbers, from their labels to an app."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from formulas import mean_absolute, r_squared
from networks import linear

import tfdistill as td
from tfdistill._keras import keras, tf
from tfdistill.certificate import Certificate
from tfdistill.cli import _shares
from tfdistill.page import snippet
from tfdistill.report import read_report

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

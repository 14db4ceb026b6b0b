"""Outputs that answer yes or no to each of several labels, from their labels to an app."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from apps import said_by
from formulas import binary_targets
from networks import examples, linear, logits_of, perceptron
from quick import only

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.certificate import Certificate
from tfdistill.cli import main as command
from tfdistill.data.summary import summarise
from tfdistill.errors import DataError, SettingError
from tfdistill.evaluation import Evaluation, agreement, share_of_right
from tfdistill.export import export_model
from tfdistill.kinds import LabelAccuracy, kind_of
from tfdistill.labels import label_loss_for, per_example_label_loss
from tfdistill.page import snippet
from tfdistill.report import read_report

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = Any

NAMES = ("even", "large", "looped")
ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
TEST = slice(1400, None)


def traits(digits: Array) -> Array:
    """Rows of what is true of each digit; of 1 and 3 nothing is."""
    found = [digits % 2 == 0, digits > 4, np.isin(digits, [0, 6, 8, 9])]
    return np.stack(found, axis=1).astype(np.float32)


def network(activation: str | None = None, *, units: int = 8, digit: bool = False) -> Any:
    """Traits `[batch, 3]`; with `digit` those and the digits' classes, by name."""
    layers = keras.layers
    image = layers.Input([8, 8, 1], name="image")
    x = layers.Conv2D(units, 3, strides=2, use_bias=False, name="convolution")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="bn")(x))
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(3, activation=activation, name="traits")(x)
    if digit:
        outputs = {"digit": layers.Dense(10, name="digit")(x), "traits": outputs}
    return keras.Model(image, outputs)


@pytest.fixture(scope="module")
def teacher(two_devices: None, digits: tuple[Array, Array]) -> Any:
    """Linear in the pixels, by least squares."""
    images, labels = (each[:1400] for each in digits)
    return linear(
        keras, images, {"digit": 8 * np.eye(10)[labels] - 4, "traits": 8 * traits(labels) - 4}
    )


class Run(NamedTuple):
    """A finished run, how it was called, and its test set."""

    result: td.Result
    again: Callable[[], td.Result]
    images: Array
    labels: Array  # digits
    run_dir: Path


def _run(
    student: Any, teacher: Any, digits: Any, run_dir: Path, labels: Any, **settings: Any
) -> Run:
    images, numbers = digits
    pipeline = td.Pipeline(**settings)
    data = [
        (images[rows], {name: each[rows] for name, each in labels.items()})
        for rows in (slice(1400), TEST)
    ]
    if len(labels) == 1:
        data = [(x, y["traits"]) for x, y in data]

    def run() -> td.Result:
        train, test = data
        given: dict[str, Any] = {"validation": test, "test": test, "run_dir": run_dir}
        return pipeline.run(student, teacher, train, verbose=0, **given)

    return Run(run(), run, images[TEST], numbers[TEST], run_dir)


@pytest.fixture(scope="module")
def one(teacher: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A student that ends in sigmoids, in floating point and in 8 bits."""
    keras.utils.set_random_seed(1)
    return _run(
        network("sigmoid"),
        keras.Model(teacher.input, teacher.output["traits"]),
        digits,
        tmp_path_factory.mktemp("runs") / "one",
        {"traits": traits(digits[1])},
        distillation=td.Distillation(
            losses=[td.losses.BinaryTargets(2.0)],
            label_loss_weight=0.5,
            epochs=3,
            learning_rate=1e-2,
        ),
        quantization=td.Quantization(epochs=1, learning_rate=1e-3),
        export=td.Export(
            formats=("int8",),
            input_type="uint8",
            output_type="int8",
            label_names=NAMES,
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
            limits=ANY,
        ),
        baseline=False,
    )


@pytest.fixture(scope="module")
def several(
    teacher: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """One output of classes, one of labels whose logits only the loss says what they are."""
    keras.utils.set_random_seed(2)
    return _run(
        network(digit=True),
        teacher,
        digits,
        tmp_path_factory.mktemp("runs") / "several",
        {"digit": digits[1], "traits": traits(digits[1])},
        distillation=td.Distillation(
            losses={"digit": [td.losses.SoftTargets()], "traits": [td.losses.BinaryTargets()]},
            label_loss_weight=0.5,
            epochs=2,
            learning_rate=1e-2,
        ),
        export=td.Export(
            formats=("float16",),
            limits=ANY,
            label_names={"traits": NAMES},
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
        ),
        baseline=False,
    )


# --- what is counted ---


def test_accuracy_is_of_the_labels(one: Run) -> None:
    wanted = traits(one.labels) == 1
    said = np.asarray(one.result.student(one.images)) > 0.5
    right = said == wanted
    assert right.mean() > 0.7
    assert not wanted.any(axis=1).all()  # nothing is true of some digits
    rows = {row.name: row for row in one.result.report.rows}
    assert rows["distilled"].accuracy == pytest.approx(right.mean(), abs=1e-9)
    np.testing.assert_allclose(rows["distilled"].per_class_accuracy, right.mean(axis=0), atol=1e-9)
    for format, artifact in one.result.artifacts.items():
        certificate = artifact.certificate
        assert (certificate.counted, certificate.classes) == ("labels", 3)
        np.testing.assert_array_equal(artifact.labels, wanted)
        of_artifact = artifact.predictions == wanted
        assert certificate.accuracy == pytest.approx(of_artifact.mean(), abs=1e-12)
        assert rows[format].accuracy == certificate.accuracy
        of_each = tuple(of_artifact.mean(axis=0))
        assert certificate.per_class_accuracy == pytest.approx(of_each)
        assert certificate.label_names == NAMES
        for worst in certificate.worst_examples:
            assert worst.of_label in range(3)
            assert worst.label == wanted[worst.index, worst.of_label]
            assert worst.prediction == artifact.predictions[worst.index, worst.of_label]
    assert rows["quantized"].accuracy == pytest.approx(right.mean(), abs=0.05)


def test_agreement_is_of_the_labels(one: Run, teacher: Any) -> None:
    theirs = np.asarray(teacher(one.images)["traits"]) > 0
    rows = {row.name: row for row in one.result.report.rows}
    assert rows["teacher"].accuracy == pytest.approx((theirs == traits(one.labels)).mean())
    for format, artifact in one.result.artifacts.items():
        expected = (artifact.predictions == theirs).mean()
        assert rows[format].teacher_agreement == pytest.approx(expected, abs=1e-9)
    said = np.asarray(one.result.student(one.images)) > 0.5
    assert rows["distilled"].teacher_agreement == pytest.approx((said == theirs).mean(), abs=1e-9)
    # As the training logs have it, in the validation after the last epoch.
    histories = one.result.report.histories
    last = histories["distillation"]["val_teacher_agreement"][-1]
    assert last == pytest.approx((said == theirs).mean(), abs=1e-5)
    accuracy = histories["distillation"]["val_accuracy"][-1]
    assert accuracy == pytest.approx(rows["distilled"].accuracy, abs=1e-5)


def test_logits_and_probabilities_are_cut_where_they_are_even() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=[40, 3]), (rng.random([40, 3]) > 0.5).astype(np.float32)
    expected = np.mean((logits > 0) == (labels > 0.5))
    soft = np.where(labels > 0.5, 0.9, 0.1).astype(np.float32)
    for threshold, outputs in ((0.0, logits), (0.5, 1 / (1 + np.exp(-logits)))):
        for given in (labels, labels.astype(bool), soft):
            metric = LabelAccuracy(threshold)
            again = LabelAccuracy.from_config(metric.get_config())
            for each in (metric, again):
                each.update_state(given, outputs.astype(np.float32))
                assert each.result().numpy() == pytest.approx(expected, rel=1e-6)
    weights, same = rng.random(40), (logits > 0) == (labels > 0.5)
    metric = LabelAccuracy(0.0)
    metric.update_state(labels, logits.astype(np.float32), sample_weight=weights)
    weighted = np.average(same.mean(axis=1), weights=weights)
    assert metric.result().numpy() == pytest.approx(weighted, rel=1e-6)
    numbers = rng.integers(0, 3, 40)
    metric = LabelAccuracy(0.0)
    metric.update_state(numbers, logits.astype(np.float32))
    assert metric.result().numpy() == pytest.approx(np.mean(logits.argmax(axis=1) == numbers))


def test_shares_in_closed_form() -> None:
    logits = np.array([[1, -1, 2], [-1, -2, -3], [3, 0, -1]], np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    found = Evaluation(logits, labels, {"": "labels"})
    np.testing.assert_array_equal(found.predictions, [[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert found.accuracy == pytest.approx(7 / 9)
    assert found.per_class_accuracy == pytest.approx((1, 2 / 3, 2 / 3))
    other = Evaluation(-logits, labels, {"": "labels"})  # a logit of 0 is a no on both sides
    assert agreement(found, other) == pytest.approx(1 / 9)
    # Of several outputs an example is right where all of it is.
    both = Evaluation(
        {"class": np.eye(3, dtype=np.float32), "labels": logits},
        {"class": np.array([0, 0, 2]), "labels": labels},
        {"labels": "labels"},
    )
    assert both.accuracy == 0.0
    assert both.of("labels").accuracy == found.accuracy
    of_labels = share_of_right(both.predictions, {"labels": labels}, both.kinds)
    assert of_labels == pytest.approx(1 / 3)
    assert agreement(both, both) == 1.0


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("given", ["rows", "soft", "none", "class numbers"])
def test_a_distiller_counts_what_its_labels_are(activation: str | None, given: str) -> None:
    inputs, numbers, _ = examples(40)
    rows = np.random.default_rng(3).random([40, 3]) > 0.5
    labels: Any = {"rows": rows.astype(np.int64), "class numbers": numbers, "none": None}.get(
        given, np.where(rows, 0.8, 0.3)
    )
    student, teacher = perceptron(tf_keras, activation=activation), perceptron(keras, seed=1)
    distiller = td.Distiller(student, teacher, [td.losses.BinaryTargets(2.0)], 0.0)
    traced = given == "rows"  # which takes time
    distiller.compile("sgd", metrics=["accuracy"], run_eagerly=not traced)
    data = tf.data.Dataset.from_tensor_slices((inputs,) if labels is None else (inputs, labels))
    logs = distiller.evaluate(data.batch(15), verbose=0, return_dict=True)
    s = logits_of(student.get_weights(), inputs)
    t = logits_of(teacher.get_weights(), inputs)
    same, right = (s > 0) == (t > 0), (s > 0) == rows
    if given == "class numbers":
        same, right = s.argmax(axis=1) == t.argmax(axis=1), s.argmax(axis=1) == numbers
    assert logs["teacher_agreement"] == pytest.approx(same.mean(), abs=1e-6)
    assert logs["binary_targets"] == pytest.approx(binary_targets(t, s, 2.0).mean(), rel=1e-4)
    if labels is not None:
        assert logs["accuracy"] == pytest.approx(right.mean(), abs=1e-6)


@pytest.mark.slow
def test_students_of_each_other_agree_on_labels() -> None:
    inputs, _, _ = examples(40)
    rows = (np.random.default_rng(3).random([40, 3]) > 0.5).astype(np.float32)
    students = [perceptron(tf_keras, seed=seed) for seed in (0, 1)]
    mutual = td.MutualDistiller(students, [td.losses.BinaryTargets()])
    mutual.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    logs = mutual.evaluate(inputs, rows, verbose=0, return_dict=True)
    said = [logits_of(student.get_weights(), inputs) > 0 for student in students]
    for number, each in enumerate(said):
        found = {
            name: logs[f"student_{number + 1}_{name}"] for name in ("accuracy", "peer_agreement")
        }
        assert found["peer_agreement"] == pytest.approx((said[0] == said[1]).mean(), abs=1e-6)
        assert found["accuracy"] == pytest.approx((each == rows).mean(), abs=1e-6)


def test_models_and_losses_say_what_an_output_is() -> None:
    losses = [td.losses.LogitsMSE(), td.losses.BinaryTargets()]
    assert kind_of("sigmoid", 3) == "labels"
    assert kind_of("linear", 3, losses) == "labels"
    assert kind_of("linear", 3, losses[:1]) == "classes"
    assert kind_of("softmax", 3, losses) == "classes"
    assert kind_of("sigmoid", 1, losses) == "classes"
    assert kind_of("sigmoid", None, losses) == "classes"
    numbers = td.losses.RegressionTargets()
    assert kind_of("linear", 3, [*losses[:1], numbers]) == "numbers"
    assert kind_of("linear", 1, [numbers]) == "numbers"
    assert kind_of("linear", 3, [numbers, td.losses.SoftTargets()]) == "classes"


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_the_label_loss_is_the_mean_cross_entropy_of_each_label(activation: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=[6, 3]), rng.random([6, 3])  # soft
    p = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(axis=1)
    loss = label_loss_for("multi-hot", activation=activation, units=3)
    outputs = logits if activation == "linear" else p
    compute = per_example_label_loss(loss, activation=activation)
    values = compute(tf.constant(labels, tf.float32), tf.constant(outputs, tf.float32))
    np.testing.assert_allclose(values, expected, rtol=1e-5)


# --- several outputs ---


@pytest.mark.slow  # a whole run
def test_labels_beside_classes(several: Run) -> None:
    said = {n: np.asarray(each) for n, each in several.result.student(several.images).items()}
    right = {
        "digit": said["digit"].argmax(axis=1) == several.labels,
        "traits": (said["traits"] > 0) == traits(several.labels),
    }
    row = next(row for row in several.result.report.rows if row.name == "distilled")
    for name, each in right.items():
        assert each.mean() > 0.5
        assert row.outputs[name].accuracy == pytest.approx(each.mean(), abs=1e-9)
    logs = several.result.report.histories
    of_labels = logs["distillation"]["val_traits_accuracy"][-1]
    assert of_labels == pytest.approx(right["traits"].mean(), abs=1e-5)
    both = right["digit"] & right["traits"].all(axis=1)
    assert row.accuracy == pytest.approx(both.mean(), abs=1e-9)
    certificate = several.result.artifacts["float16"].certificate
    counted = {name: each.counted for name, each in certificate.outputs.items()}
    assert counted == {"digit": "classes", "traits": "labels"}
    assert (certificate.counted, certificate.classes) == ("examples", None)
    again = Certificate.from_dict(json.loads(json.dumps(certificate.to_dict())))
    assert again.to_dict() == certificate.to_dict()
    page = (several.run_dir / "report.html").read_text("utf-8")
    for words in (
        *("Accuracy by label: traits", "Accuracy by class: digit", "accuracy of traits, of labels"),
        "accuracy of traits is the share of labels decided right",
    ):
        assert words in page, words


@pytest.mark.slow
def test_the_command_counts_labels_by_agreement(
    several: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several.result.student.save(tmp_path / "student.keras")
    artifact = several.result.artifacts["float16"]
    asked = ["certify", str(artifact.path), "--model", str(tmp_path / "student.keras")]
    assert command([*asked, "--dataset", "digits", "--output", "digit"]) == 0
    assert "traits: no labels; agreement of labels " in capsys.readouterr().out
    assert command([*asked, "--dataset", "digits", "--output", "traits"]) == 2
    assert "must have rows of labels [batch, 3]" in capsys.readouterr().err


# --- the artifacts ---


_RUNS = [("one", "int8"), ("several", "float16")]


@pytest.mark.parametrize(("run", "format"), only(_RUNS[0], of=_RUNS, several=True))
def test_an_app_finds_the_accuracy_that_the_certificate_says(
    request: pytest.FixtureRequest, tmp_path: Path, run: str, format: str
) -> None:
    made: Run = request.getfixturevalue(run)
    artifact = made.result.artifacts[format]
    texts = {"label of traits": traits(made.labels), "label of digit": made.labels}
    raw = made.images * 16
    said = said_by("litert_outputs_alone.py", artifact.path, tmp_path, raw=raw, **texts)
    certificate = artifact.certificate
    expected = {name: each.accuracy for name, each in certificate.outputs.items()}
    found = json.loads(said)
    assert found == pytest.approx(expected or {"traits_sigmoid": certificate.accuracy}, abs=1e-9)


@pytest.mark.slow  # whole runs
def test_files_say_how_each_label_is_read(one: Run, several: Run) -> None:
    for run, format, above in ((one, "int8", 0.5), (several, "float16", 0.0)):
        sidecar = json.loads((run.run_dir / f"artifacts/student_{format}.json").read_text())
        output = sidecar["interface"]["outputs"][-1]
        assert output["threshold"] == above
        assert output["decision"] == f"each value is a yes or no of its own: yes above {above:g}"
        path = run.result.artifacts[format].path
        metadata = td.read_metadata(path)
        assert metadata is not None
        assert metadata["interface"] == sidecar["interface"]
        assert f"yes or no of its own: yes above {above:g}".encode() in path.read_bytes()
        found = {each.code: each for each in td.inspect(path).findings}
        assert "yes above" in found["multi_label"].message
        again = Certificate.from_dict(json.loads(json.dumps(sidecar["certificate"])))
        assert again == run.result.artifacts[format].certificate
    assert "threshold" not in several.result.artifacts["float16"].interface["outputs"][0]
    with zipfile.ZipFile(one.result.artifacts["int8"].path) as archive:
        assert archive.read("labels.txt").decode().split("\n") == [*NAMES]


def test_the_lines_of_the_page_run(one: Run) -> None:
    artifact = one.result.artifacts["int8"]
    lines = snippet(str(artifact.path), artifact.interface)
    for index in range(4):
        known: dict[str, Any] = {"raw": one.images[index] * 16}
        exec(compile(lines, "snippet", "exec"), known)
        expected = np.flatnonzero(artifact.predictions[index])
        assert known["predicted_labels"] == expected.tolist()


@pytest.mark.slow  # a whole run
def test_the_lines_of_the_page_run_for_labels_beside_classes(several: Run) -> None:
    artifact = several.result.artifacts["float16"]
    known: dict[str, Any] = {"raw": several.images[0] * 16}
    exec(compile(snippet(str(artifact.path), artifact.interface), "snippet", "exec"), known)
    assert known["predicted_classes"] == {"digit": artifact.predictions["digit"][0]}
    expected = np.flatnonzero(artifact.predictions["traits"][0]).tolist()
    assert known["predicted_labels"] == {"traits": expected}


def test_the_report_shows_labels(one: Run) -> None:
    report = one.result.report
    assert report.html_path is not None
    read = read_report(report.html_path.parent)
    assert read.kinds == {"": "labels"}
    assert read.rows == report.rows
    shown = read.disagreements["int8"]
    assert shown
    predicted = one.result.artifacts["int8"].predictions
    for each in shown:
        assert each.of_label is not None
        assert each.artifact_class == predicted[each.index, each.of_label] != each.teacher_class
        assert each.label == traits(one.labels)[each.index, each.of_label]
    page = report.html_path.read_text("utf-8")
    first = shown[0]
    about = f"{NAMES[first.of_label or 0]}: {'yes' if first.label else 'no'}"
    for words in (
        *("Accuracy by label", "is the share of labels decided right", "accuracy, of labels"),
        f"<dt>label</dt><dd>{about}</dd>",
    ):
        assert words in page, words
    notes = " ".join(read.details["notes"])
    assert "are shares of labels, over all examples and labels" in notes


@pytest.mark.slow  # a whole run
def test_a_finished_run_is_taken_as_it_is(several: Run) -> None:
    again = several.again()
    assert again.report.rows == several.result.report.rows
    ours, theirs = again.artifacts["float16"], several.result.artifacts["float16"]
    assert ours.certificate == theirs.certificate
    for name in ("digit", "traits"):
        np.testing.assert_array_equal(ours.predictions[name], theirs.predictions[name])
        np.testing.assert_array_equal(ours.labels[name], theirs.labels[name])


def test_the_run_directory_says_who_has_each_label(one: Run, digits: tuple[Array, Array]) -> None:
    train = json.loads((one.run_dir / "run.json").read_text())["settings"]["data"]["train"]
    assert train["labels"] == "multi-hot"
    has = traits(digits[1][:1400]).sum(axis=0)
    np.testing.assert_array_equal(train["label_counts"], np.stack([1400 - has, has], axis=1))


FORMATS = ("float32", "int8", "int16x8", "keras", "savedmodel")


@pytest.mark.slow  # a whole run
def test_rows_without_labels_and_soft_labels_through_all_stages(
    teacher: Any, digits: tuple[Array, Array], tmp_path: Path
) -> None:
    images, numbers = digits
    soft = 0.1 + 0.8 * traits(numbers)
    soft[: len(soft) // 2] = np.nan
    whole = (images[TEST], traits(numbers[TEST]))
    keras.utils.set_random_seed(1)
    student = network("sigmoid")
    pipeline = td.Pipeline(
        td.Distillation(
            losses=[td.losses.BinaryTargets()],
            unlabelled=np.nan,
            label_loss_weight=1.0,
            epochs=3,
            learning_rate=1e-2,
        ),
        pruning=td.Pruning(sparsity=0.5, epochs=2, learning_rate=5e-3),
        quantization=td.Quantization(epochs=1),
        export=td.Export(formats=FORMATS, limits=ANY, label_names=NAMES),
    )
    train = images[:1400], soft[:1400]
    result = pipeline.run(
        student,
        keras.Model(teacher.input, teacher.output["traits"]),
        *(train,),
        validation=whole,
        test=whole,
        run_dir=tmp_path,
        verbose=0,
    )
    notes = " ".join(result.report.details["notes"])
    assert "502 of 1,400 training examples have labels" in notes
    said = np.asarray(result.student(whole[0])) > 0.5
    assert (said == whole[1]).mean() > 0.7
    for format, artifact in result.artifacts.items():
        accuracy = artifact.certificate.accuracy
        assert accuracy == pytest.approx((artifact.predictions == whole[1]).mean()), format
    for format in ("float32", "keras", "savedmodel"):
        np.testing.assert_array_equal(result.artifacts[format].predictions, said)
    for format in ("keras", "savedmodel"):
        known: dict[str, Any] = {"raw": whole[0][0]}
        artifact = result.artifacts[format]
        exec(compile(snippet(str(artifact.path), artifact.interface), "snippet", "exec"), known)
        assert known["predicted_labels"] == np.flatnonzero(said[0]).tolist()
    # A server is told which labels are true.
    path = str(result.artifacts["savedmodel"].path)
    told = tf.saved_model.load(path).signatures["classify"](image=whole[0])
    np.testing.assert_array_equal(told["yes"], said)
    np.testing.assert_array_equal(told["probability"].numpy() > 0.5, said)
    expected = np.where(said, np.array(NAMES), "").astype(bytes)
    np.testing.assert_array_equal(told["label"].numpy().astype(bytes), expected)
    # In training, too, soft labels are rounded and unlabelled rows are left out.
    assert result.report.histories["distillation"]["accuracy"][-1] > 0.7
    assert result.report.histories["student alone"]["accuracy"][-1] > 0.7


@pytest.mark.slow  # a whole run
def test_the_lines_of_the_methods_page_run(
    teacher: Any, digits: tuple[Array, Array], tmp_path: Path
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("run by tests/test_multi_label.py. -->\n```python\n")[1].split("```")[0]
    assert lines.count("run_dir=run_dir") == 1
    images, rows = digits[0], traits(digits[1])
    known: dict[str, Any] = {"td": td, "student": network(), "run_dir": tmp_path, "images": images}
    known |= {"rows": rows, "test": (images[TEST], rows[TEST])}
    known["teacher"] = keras.Model(teacher.input, teacher.output["traits"])
    exec(lines.replace("run_dir=run_dir", "run_dir=run_dir, verbose=0"), known)
    assert known["result"].artifacts["int8"].certificate.counted == "labels"


# --- certify alone ---


def _artifact(tmp_path: Path, activation: str | None = None, **settings: Any) -> tuple[Any, Path]:
    model = perceptron(tf_keras, activation=activation)
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "model.tflite"
    export_model(model, path, "float32", **settings)
    return model, path


def test_rows_with_several_ones_tell(tmp_path: Path) -> None:
    inputs, numbers, _ = examples(60)
    rows = (np.random.default_rng(0).random([60, 3]) > 0.5).astype(np.float32)
    model, path = _artifact(tmp_path, "sigmoid")
    s = logits_of(model.get_weights(), inputs)
    found = td.certify(path, model, (inputs, rows))
    assert found.counted == "labels"
    assert found.accuracy == pytest.approx(((s > 0) == rows).mean())
    one_hot = np.eye(3, dtype=np.float32)[numbers]
    for classes in (numbers, one_hot):
        found = td.certify(path, model, (inputs, classes))
        assert found.counted == "classes"
        assert found.accuracy == pytest.approx((s.argmax(axis=1) == numbers).mean())
    # The file beside it remembers, so that rows with one 1 each are labels from then on.
    td.certify(path, model, (inputs, rows)).write_sidecar(path)
    found = td.certify(path, model, (inputs, one_hot))
    assert found.counted == "labels"
    assert found.accuracy == pytest.approx(((s > 0) == one_hot).mean())


def test_the_file_itself_knows(tmp_path: Path) -> None:
    inputs, numbers, _ = examples(30)
    model, path = _artifact(tmp_path, kinds={"": "labels"})
    path.with_suffix(".json").unlink()
    one_hot = np.eye(3, dtype=np.float32)[numbers]
    found = td.certify(path, model, (inputs, one_hot))
    right = (logits_of(model.get_weights(), inputs) > 0) == one_hot
    assert (found.counted, found.accuracy) == ("labels", pytest.approx(right.mean()))
    for labels, message in (
        (numbers, r"`data` must have rows of labels \[batch, 3\], any.*Received: \(30,\)"),
        (one_hot * 2, r"`data` must have labels in \[0, 1\].*Received: \["),
        (one_hot[:, :2], r"`data` must have rows of labels \[batch, 3\].*\(30, 2\)"),
    ):
        with pytest.raises(DataError, match=message):
            td.certify(path, model, (inputs, labels))


def test_certify_refuses_what_cannot_be_labels(tmp_path: Path) -> None:
    inputs, numbers, _ = examples(30)
    rows = np.ones([30, 3], np.float32)
    model, path = _artifact(tmp_path, "softmax")
    with pytest.raises(DataError, match=r"`data` must have class numbers or one-hot rows.*softmax"):
        td.certify(path, model, (inputs, rows))
    model, path = _artifact(tmp_path / "logits")
    with pytest.raises(DataError, match=r"`data` must have rows of labels in every batch"):
        td.certify(path, model, [(inputs, rows), (inputs, numbers)])


def test_limits_speak_of_labels(tmp_path: Path) -> None:
    inputs, _, _ = examples(30)
    _, path = _artifact(tmp_path)
    other = perceptron(tf_keras, seed=5)
    found = td.certify(path, other, (inputs, np.ones([30, 3], np.float32)))
    assert f"agree on {found.agreement:.4f} of the labels" in " ".join(found.failures)


# --- data ---

INPUTS = np.zeros([4, 2], np.float32)
ROWS = np.array([[1, 1, 0], [0, 0, 0], [0.25, 1, 0.75], [0, 1, 0]], np.float32)


def _summary(labels: Any, **more: Any) -> Any:
    return summarise((INPUTS, labels), classes=3, kind="labels", **more)


def test_a_look_counts_who_has_each_label() -> None:
    found = _summary(ROWS)
    assert found.labels == "multi-hot"
    assert found.label_counts == ((3, 1), (1, 3), (3, 1))
    assert (found.labelled, found.classes_seen) == (4, 3)
    for mark in (-1, float("nan")):
        marked = ROWS.copy()
        marked[1] = mark
        found = _summary(marked, unlabelled=mark)
        assert found.label_counts == ((2, 1), (0, 3), (2, 1))
        assert found.labelled == 3
    assert _summary(np.zeros([4, 3], bool)).labelled == 4  # no label is true, and that is known
    assert _summary(np.array([0, 2, 1, 1])).labels == "integers"
    assert summarise((INPUTS, np.eye(3)[[0, 1, 2, 2]]), classes=3).labels == "one-hot"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (ROWS[:, :2], r"`train` must have a row of 3 labels for each example.*rows of 2"),
        (ROWS * 2, r"`train` must have labels in \[0, 1\].*Received: \[.*2\.0"),
        (-ROWS, r"`train` must have labels in \[0, 1\].*Received: \[.*-1\.0"),
        (ROWS * np.nan, r"`train` must have labels in \[0, 1\].*unlabelled"),
    ],
)
def test_rows_that_are_no_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _summary(labels)


def test_a_part_of_a_row_cannot_be_missing() -> None:
    marked = ROWS.copy()
    marked[1, 0] = -1
    with pytest.raises(DataError, match=r"must have labels in \[0, 1\].*Received: \[-1\.0, 0\.0"):
        _summary(marked, unlabelled=-1)
    with pytest.raises(DataError, match=r"must have a label for some of its examples"):
        _summary(np.full([4, 3], -1), unlabelled=-1)


# --- the door ---


def _refused(message: str, error: Any, losses: Any, data: Any, tmp_path: Path, **more: Any) -> None:
    student = perceptron(keras, activation=more.pop("activation", None))
    pipeline = td.Pipeline(td.Distillation(losses=losses, **more), export=td.Export(formats=()))
    inputs, _, _ = examples(12)
    train, test = ((inputs, each) for each in data)
    with pytest.raises(error, match=message):
        pipeline.run(
            student, perceptron(keras, seed=1), train, test=test, run_dir=tmp_path, verbose=0
        )


def test_what_does_not_fit_is_refused_at_the_door(tmp_path: Path) -> None:
    _, numbers, _ = examples(12)
    rows = np.ones([12, 3], np.float32)
    binary = [td.losses.BinaryTargets()]
    _refused(
        r"`test` must have the same kind of labels as `train`: multi-hot\. Received: integers\. "
        r"Give rows of 0 and 1",
        *(DataError, binary, (rows, numbers), tmp_path),
    )
    _refused(
        r"`train` must have one-hot labels >= 0 that sum to 1.*td\.losses\.BinaryTargets",
        *(DataError, [td.losses.LogitsMSE()], (rows, rows), tmp_path),
    )
    _refused(
        r"`losses` must be of labels that may be true together\. Received: SoftTargets, and labels "
        r"in rows",
        *(SettingError, [*binary, td.losses.SoftTargets()], (rows, rows), tmp_path),
    )
    _refused(
        r"`unlabelled` must be None, a whole number below 0 or NaN.*Received: 0.*without any",
        *(SettingError, binary, (rows, rows), tmp_path),
        unlabelled=0,
    )


def test_a_distiller_refuses_zeros_for_missing_labels() -> None:
    student, teacher = perceptron(tf_keras, activation="sigmoid"), perceptron(keras, seed=1)
    with pytest.raises(SettingError, match=r"`unlabelled` must be None, a whole number below 0"):
        td.Distiller(student, teacher, [td.losses.LogitsMSE()], unlabelled=0)

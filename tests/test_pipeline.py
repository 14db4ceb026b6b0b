from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import said_by

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras

_ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)


def _split(digits: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    images, labels = digits
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


@pytest.fixture(scope="module")
def teacher(two_devices: None, digits: tuple[np.ndarray, np.ndarray]) -> Any:
    """A Keras 3 teacher worth listening to."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(32, 3, activation="relu")(image)
    x = keras.layers.Conv2D(32, 3, activation="relu")(x)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(*_split(digits)[0], epochs=8, verbose=0)
    assert model.evaluate(*_split(digits)[1], verbose=0)[1] > 0.9
    return model


def _student(library: Any = keras, activation: str | None = None) -> Any:
    layers = library.layers
    image = layers.Input([8, 8, 1], name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="convolution")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="bn")(x))
    x = layers.Conv2D(16, 3, activation="relu", name="second")(x)
    x = layers.Dropout(0.1, name="dropout")(layers.Flatten(name="flatten")(x))
    return library.Model(image, layers.Dense(10, activation=activation, name="scores")(x))


@pytest.fixture(scope="module")
def whole(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[td.Result, Any, Path]:
    """All stages on a Keras 3 student that ends in softmax; the result, student and directory."""
    train, test = _split(digits)
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    keras.utils.set_random_seed(1)
    student = _student(activation="softmax")
    meanings = tf.keras.Model, tf.compat.v1.keras.Model, dict(os.environ)
    before = [np.array(weight) for weight in (*student.get_weights(), *teacher.get_weights())]
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=8, learning_rate=1e-2),
        pruning=td.Pruning(sparsity=0.75, epochs=6, learning_rate=5e-3),
        quantization=td.Quantization(epochs=3, learning_rate=1e-3),
        export=td.Export(
            formats=("int8", "float16", "float32"),
            input_type="uint8",
            label_names=[f"digit {n}" for n in range(10)],
            normalisation=td.Normalisation(scale=1 / 16, raw_range=(0, 16)),
        ),
    )
    result = pipeline.run(
        student, teacher, train, validation=test, test=test, run_dir=run_dir, verbose=0
    )
    assert meanings == (tf.keras.Model, tf.compat.v1.keras.Model, dict(os.environ))
    after = [*student.get_weights(), *teacher.get_weights()]
    for ours, theirs in zip(before, after, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return result, pipeline, run_dir


def test_the_result_is_small_accurate_and_certified(
    whole: tuple[td.Result, Any, Path], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    result, _, _ = whole
    rows = {row.name: row for row in result.report.rows}
    assert [*rows] == [
        *("teacher", "student alone", "distilled", "pruned", "quantized"),
        *("int8", "float16", "float32"),
    ]
    assert rows["int8"].accuracy > 0.8
    assert result.artifacts["int8"].certificate.passed
    for name in ("pruned", "quantized", "int8", "float16", "float32"):
        assert rows[name].sparsity == pytest.approx(0.75, abs=0.02), name
    sizes = {name: rows[name].gzip_bytes or 0 for name in ("int8", "float32")}
    assert 0 < sizes["int8"] < sizes["float32"]
    for row in rows.values():
        assert len(row.per_class_accuracy) == 10


def test_the_student_comes_back_in_its_keras(
    whole: tuple[td.Result, Any, Path], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    result, _, _ = whole
    images, labels = _split(digits)[1]
    assert isinstance(result.student, keras.Model)
    probabilities = np.asarray(result.student(images))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    pruned = next(row for row in result.report.rows if row.name == "pruned")
    assert np.mean(probabilities.argmax(axis=1) == labels) == pruned.accuracy
    kernel = np.asarray(result.student.get_layer("second").kernel)
    assert np.mean(kernel == 0) == pytest.approx(0.75, abs=0.01)


def test_an_app_finds_the_accuracy_that_the_certificate_says(
    whole: tuple[td.Result, Any, Path], digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    result, _, _ = whole
    images, labels = _split(digits)[1]
    for format in ("int8", "float16"):
        artifact = result.artifacts[format]
        said = said_by("litert_alone.py", artifact.path, tmp_path, raw=images * 16, labels=labels)
        assert float(said) == artifact.certificate.accuracy


def test_the_sidecar_answers_what_an_app_developer_asks(whole: tuple[td.Result, Any, Path]) -> None:
    _, _, run_dir = whole
    sidecar = json.loads((run_dir / "artifacts/student_int8.json").read_text())
    (image,) = sidecar["interface"]["inputs"]
    assert image["name"] == "image"
    assert image["shape"] == [1, 8, 8, 1]
    assert image["dtype"] == "uint8"
    assert image["scale"] > 0
    assert sidecar["certificate"]["passed"] is True
    assert "digit 3" in json.dumps(sidecar["interface"])


def test_a_second_run_takes_everything_from_the_first(
    whole: tuple[td.Result, Any, Path],
    teacher: Any,
    digits: tuple[np.ndarray, np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, pipeline, run_dir = whole
    train, test = _split(digits)
    keras.utils.set_random_seed(1)
    student = _student(activation="softmax")
    second = pipeline.run(student, teacher, train, validation=test, test=test, run_dir=run_dir)
    assert capsys.readouterr().out.count("finished before") == 5
    for ours, theirs in zip(first.student.get_weights(), second.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [row.accuracy for row in first.report.rows] == [
        row.accuracy for row in second.report.rows
    ]


def test_beyond_its_limits_it_raises_after_writing_the_report(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    train, test = _split(digits)
    tight = td.Limits(max_output_error_steps=1e-6)
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=1),
        export=td.Export(formats=("int8",), limits=tight),
        baseline=False,
    )
    with pytest.raises(td.CertificationError, match=r"Received: int8: .*report\.html"):
        pipeline.run(_student(), teacher, train, test=test, run_dir=tmp_path / "run", verbose=0)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [row["certified"] for row in report["rows"] if row["name"] == "int8"] == [False]


@pytest.mark.slow  # a whole run
def test_without_labels_the_teacher_is_enough(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    train, test = _split(digits)
    pipeline = td.Pipeline(
        distillation=td.Distillation(label_loss_weight=0.0, epochs=5, learning_rate=1e-2),
        export=td.Export(formats=("float32",), limits=_ANY),
    )
    student = _student(tf_keras)
    result = pipeline.run(
        student, teacher, (train[0],), test=test, run_dir=tmp_path / "run", verbose=0
    )
    rows = {row.name: row for row in result.report.rows}
    assert "student alone" not in rows
    assert rows["distilled"].accuracy > 0.7
    assert isinstance(result.student, tf_keras.Model)


@pytest.mark.slow
def test_a_function_teaches_and_int8_is_calibrated_without_a_stage(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    train, test = _split(digits)
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=4, learning_rate=1e-2),
        export=td.Export(formats=("int8",), calibration_examples=64),
        baseline=False,
    )
    result = pipeline.run(
        _student(tf_keras),
        lambda images: teacher(images, training=False),
        train,
        test=test,
        run_dir=tmp_path / "run",
        verbose=0,
    )
    assert "calibrated on 64 training examples" in result.artifacts["int8"].method
    assert "calibrated on 64 training examples" in result.report.rows[-1].note


@pytest.mark.slow
def test_two_devices_end_in_the_weights_of_one(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, two_replicas: Any
) -> None:
    train, test = _split(digits)

    def plain() -> Any:  # no BatchNormalization, whose statistics are each replica's own
        keras.utils.set_random_seed(2)
        tf_keras.utils.set_random_seed(2)
        image = tf_keras.Input((8, 8, 1))
        x = tf_keras.layers.Conv2D(6, 3, activation="relu")(image)
        return tf_keras.Model(image, tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(x)))

    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=2, optimizer="sgd", learning_rate=0.05),
        pruning=td.Pruning(sparsity=0.5, epochs=2, learning_rate=0.01),
        quantization=td.Quantization(epochs=1, learning_rate=0.01),
        export=td.Export(formats=("int8",), limits=_ANY),
        baseline=False,
    )
    one = pipeline.run(plain(), teacher, train, test=test, run_dir=tmp_path / "one", verbose=0)
    with two_replicas.scope():
        two = pipeline.run(plain(), teacher, train, test=test, run_dir=tmp_path / "two", verbose=0)
    for ours, theirs in zip(one.student.get_weights(), two.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_changed_data_are_trained_on_and_certified_anew(
    teacher: Any,
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (images, labels), (test_images, test_labels) = _split(digits)
    keras.utils.set_random_seed(1)
    student = _student()
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=3, learning_rate=1e-2),
        export=td.Export(formats=("int8",), limits=_ANY),
    )

    def run(train: Any, test: Any, directory: str = "run") -> tuple[dict[str, Any], int]:
        state = str(np.random.get_state())
        result = pipeline.run(student, teacher, train, test=test, run_dir=tmp_path / directory)
        assert str(np.random.get_state()) == state
        rows = {row.name: row.accuracy for row in result.report.rows}
        return rows, capsys.readouterr().out.count("finished before")

    train, test, dark = (images, labels), (test_images, test_labels), test_images * 0.2
    whole, _ = run(train, test)
    assert run(train, test) == (whole, 3)
    other_test, taken = run(train, (dark, test_labels))
    assert taken == 2  # but not the artifacts with their certificates
    assert other_test["int8"] < whole["int8"] - 0.05
    other_train, taken = run((images[::-1] * 1.0, labels), test)
    assert taken == 0
    assert other_train["distilled"] != whole["distilled"]
    assert run((images[::-1] * 1.0, labels), test, "fresh")[0] == other_train


@pytest.mark.slow
def test_leaving_the_baseline_out_changes_nothing_else(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    train, test = _split(digits)
    keras.utils.set_random_seed(1)
    student = _student()
    written = []
    for baseline in (True, False):
        result = td.Pipeline(
            distillation=td.Distillation(epochs=1),
            pruning=td.Pruning(sparsity=0.5, epochs=1),
            export=td.Export(formats=("int8",), limits=_ANY),
            baseline=baseline,
        ).run(student, teacher, train, test=test, run_dir=tmp_path / str(baseline), verbose=0)
        written.append(result.artifacts["int8"].path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.slow
def test_projections_of_feature_losses_go_on_in_the_next_stage(
    teacher: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    train, test = _split(digits)
    hint = td.losses.Hint(teacher.layers[2].name, "second", weight=1.0)

    def run() -> dict[str, Any]:
        keras.utils.set_random_seed(1)
        td.Pipeline(
            distillation=td.Distillation([hint], epochs=4, learning_rate=1e-2),
            quantization=td.Quantization(epochs=1),
            export=td.Export(formats=("int8",), limits=_ANY),
            baseline=False,
        ).run(_student(), teacher, train, test=test, run_dir=tmp_path, verbose=0)
        return json.loads((tmp_path / "report.json").read_text())["histories"]

    first = run()
    taught = first["distillation"]["hint"]
    assert first["quantization"]["hint"][0] < (taught[0] + taught[-1]) / 2
    shutil.rmtree(tmp_path / "quantization")
    again = run()  # from the stored projections
    assert again["quantization"]["hint"] == first["quantization"]["hint"]

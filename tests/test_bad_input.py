"""Bad input: an error of the library's own, before any training, nothing lost on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras


def _snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def run(
    digits: tuple[np.ndarray, np.ndarray],
    small_tf_keras_model: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., Any]:
    """Runs a pipeline that would work, but for what the test changes."""

    def call(pipeline: td.Pipeline | None = None, **changes: Any) -> Any:
        images, labels = digits[0][:64], digits[1][:64]
        given = {
            "student": small_tf_keras_model(),
            "teacher": small_tf_keras_model(filters=6),
            "train": (images, labels),
            "test": (images, labels),
            "run_dir": tmp_path / "run",
            "verbose": 0,
            **changes,
        }
        pipeline = pipeline or td.Pipeline(distillation=td.Distillation(epochs=1))
        return pipeline.run(given.pop("student"), given.pop("teacher"), given.pop("train"), **given)

    return call


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: cast(Any, td.Pruning)(sparsty=0.5),
            r"`sparsty` must be a setting of Pruning\..*sparsity",
        ),
        (
            lambda: cast(Any, td.Pipeline)(prunning=None),
            r"`prunning` must be a setting of Pipeline\..*pruning",
        ),
        (
            lambda: cast(Any, td.Export)(format="int8"),
            r"`format` must be a setting of Export\..*formats",
        ),
        (lambda: td.Pruning(sparsity=0), r"`sparsity` must be in \(0, 1\)\. Received: 0"),
        (lambda: td.Pruning(sparsity=1.0), r"`sparsity` must be in \(0, 1\)\. Received: 1\.0"),
        (lambda: td.Pruning(sparsity=-0.5), r"`sparsity` must be in \(0, 1\)\. Received: -0\.5"),
        (lambda: td.losses.SoftTargets(temperature=0), r"`temperature` must be .*Received: 0"),
        (lambda: td.losses.SoftTargets(temperature=-1.0), r"`temperature` must be .*-1\.0"),
        (lambda: td.losses.SoftTargets(weight=-0.1), r"`weight` must be .*Received: -0\.1"),
        (lambda: td.Distillation(epochs=0), r"`epochs` must be a whole number >= 1\. Received: 0"),
        (
            lambda: td.Distillation(losses=cast(Any, td.losses.SoftTargets())),
            r"`losses` must be a list of distillation losses, .*Received: SoftTargets\(",
        ),
        (
            lambda: td.Distillation(losses=cast(Any, None)),
            r"`losses` must be a list of distillation losses, .*Received: None",
        ),
        (
            lambda: td.Distillation(losses=cast(Any, ["soft_targets"])),
            r"`losses` must be a list of distillation losses, .*Received: \['soft_targets'\]",
        ),
        (
            lambda: td.Distillation(losses=[td.losses.SoftTargets(), td.losses.SoftTargets()]),
            r"`losses` must have different names, .*Received: the name 'soft_targets' 2 times",
        ),
        (
            lambda: td.Distillation(label_loss_weight=cast(Any, "a")),
            r"`label_loss_weight` must be a finite number >= 0\. Received: a",
        ),
        (
            lambda: td.Distillation(label_loss_weight=-1.0),
            r"`label_loss_weight` must be a finite number >= 0\. Received: -1\.0",
        ),
        (
            lambda: td.Distillation(losses=[td.losses.SoftTargets(weight=0)], label_loss_weight=0),
            r"must not all be zero\. Received: .*",
        ),
        (lambda: td.Distillation(optimizer="adamm"), r"`optimizer` must be the name .*'?adamm"),
        (lambda: td.Quantization(learning_rate=-1), r"`learning_rate` must be .*Received: -1"),
        (
            lambda: td.Pipeline(pruning=cast(Any, 0.75)),
            r"`pruning` must be a td\.Pruning or None\. .*0\.75",
        ),
        (lambda: td.Pipeline(seed=-1), r"`seed` must be a whole number >= 0\. Received: -1"),
        (lambda: td.Export(formats=("int9",)), r"`formats` must be of .*Received: int9.*int8"),
    ],
)
def test_a_setting_outside_its_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(td.SettingError, match=message):
        make()


@pytest.mark.parametrize(
    "pipeline",
    [
        td.Pipeline(pruning=td.Pruning(skip=["logitz"])),
        td.Pipeline(quantization=td.Quantization(skip=["logitz"])),
        td.Pipeline(distillation=td.Distillation(losses=[td.losses.Hint("logits", "logitz")])),
    ],
)
def test_a_layer_that_the_model_does_not_have(
    run: Callable[..., Any], pipeline: td.Pipeline, tmp_path: Path
) -> None:
    message = r"`logitz` must be a layer of the student\. Received: 'logitz'\. .*logits"
    with pytest.raises(td.ModelError, match=message):
        run(pipeline)
    assert not (tmp_path / "run").exists()


def test_what_the_export_would_refuse_is_refused_before_training(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    two_names = td.Export(label_names=("cat", "dog"))
    with pytest.raises(td.SettingError, match=r"`label_names` must be 10 names.*\('cat', 'dog'\)"):
        run(td.Pipeline(export=two_names))
    image = tf_keras.Input((8, 8, 1))
    half = tf_keras.layers.Dense(10, dtype="mixed_float16", name="half")
    student = tf_keras.Model(image, half(tf_keras.layers.Flatten()(image)))
    with pytest.raises(td.ExportError, match=r"must compute in float32\. Received: .*half"):
        run(student=student)
    assert not (tmp_path / "run").exists()


def test_teacher_and_student_with_different_classes(
    run: Callable[..., Any], small_keras3_model: Callable[..., Any]
) -> None:
    message = r"`teacher` and `student` must have the same classes\. Received: .*\(7,\).*\(10,\)"
    with pytest.raises(td.ModelError, match=message):
        run(teacher=small_keras3_model(classes=7))


def test_probabilities_where_logits_are_needed(run: Callable[..., Any]) -> None:
    message = r"`teacher` must return logits\. Received: outputs that are probabilities"
    with pytest.raises(td.ModelError, match=message):
        run(teacher=lambda x: tf.nn.softmax(tf.reshape(x, [-1, 64])[:, :10]))
    image = tf_keras.Input((8, 8, 1))
    flat = tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(image))
    hidden_softmax = tf_keras.Model(image, tf_keras.layers.Lambda(tf.nn.softmax)(flat))
    with pytest.raises(td.ModelError, match=r"`student` must return logits"):
        td.Distiller(hidden_softmax, lambda x: tf.zeros([4, 10]), [td.losses.SoftTargets()])


def test_labels_outside_the_classes(
    run: Callable[..., Any], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = digits[0][:64], digits[1][:64].copy()
    labels[5] = 10
    with pytest.raises(td.DataError, match=r"`train` must .*Received: .*10"):
        run(train=(images, labels))
    labels[5] = -1
    with pytest.raises(td.DataError, match=r"`test` must .*Received: .*-1"):
        run(test=(images, labels))


def test_an_empty_data_set(run: Callable[..., Any], digits: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(td.DataError, match=r"`train` must hold at least one example"):
        run(train=(digits[0][:0], digits[1][:0]))
    empty = tf.data.Dataset.from_tensor_slices(digits).batch(16).take(0)
    with pytest.raises(td.DataError, match=r"`test` must hold at least one example"):
        run(test=empty)


def test_data_that_never_end_without_steps(
    run: Callable[..., Any], digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    endless = tf.data.Dataset.from_tensor_slices(digits).batch(16).repeat()
    message = r"`train` must end or `steps_per_epoch` must be given\. Received: data without end"
    with pytest.raises(td.DataError, match=message):
        run(train=endless)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_data_that_never_end_with_steps(
    run: Callable[..., Any], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    endless = tf.data.Dataset.from_tensor_slices(digits).batch(16).repeat()
    result = run(train=endless, steps_per_epoch=3)
    assert len(result.report.histories["distillation"]["loss"]) == 1


def test_no_data_to_certify_on(run: Callable[..., Any]) -> None:
    with pytest.raises(td.DataError, match=r"`test` must be given"):
        run(test=None)


def test_a_run_directory_that_cannot_be_written(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(td.RunDirectoryError, match=r"must be readable and writable\. Received: "):
        run(run_dir=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_with_other_things_in_it(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    message = r"`run_dir` must be empty or hold a run of this library\. Received: .*thesis\.txt"
    with pytest.raises(td.RunDirectoryError, match=message):
        run()
    assert _snapshot(tmp_path / "run") == {"thesis.txt": b"mine"}


@pytest.mark.slow  # much like the one above, of a whole run
def test_a_foreign_file_where_an_artifact_should_be(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    lenient = td.Export(
        formats=("float32",), limits=td.Limits(max_accuracy_drop=1, min_agreement=0)
    )
    only_float = td.Pipeline(distillation=td.Distillation(epochs=1), export=lenient)
    run(only_float)
    (tmp_path / "run/artifacts/student_int8.tflite").write_bytes(b"somebody's model")
    before = _snapshot(tmp_path / "run")
    message = r"`.*student_int8\.tflite` must be free or hold an artifact of this library"
    with pytest.raises(td.RunDirectoryError, match=message):
        run(td.Pipeline(distillation=td.Distillation(epochs=1)))
    after = _snapshot(tmp_path / "run")
    assert {n: b for n, b in after.items() if n != "run.json"} == {
        n: b for n, b in before.items() if n != "run.json"
    }


def test_a_loss_that_becomes_non_finite_stops_the_stage(
    run: Callable[..., Any], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    batches = tf.data.Dataset.from_tensor_slices((digits[0][:64], digits[1][:64])).batch(8)
    diverging = td.Distillation(epochs=3, learning_rate=1e30, optimizer="sgd")
    message = (
        r"`loss` must stay finite in the stage 'distillation'\. "
        r"Received: .* epoch 1, step \d+\. .*learning_rate"
    )
    with pytest.raises(td.NonFiniteLossError, match=message):
        run(td.Pipeline(distillation=diverging), train=batches)


def test_the_last_good_checkpoint_survives_a_non_finite_loss(
    run: Callable[..., Any], digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, labels = digits[0][:64], digits[1][:64]
    first_epoch = tmp_path / "run/distillation/checkpoint-000001.json"

    def weight() -> np.float32:
        return np.float32(3e38 if first_epoch.exists() else 1.0)

    def weights_of_epoch() -> tf.data.Dataset:
        first = tf.data.Dataset.range(1).map(
            lambda _: tf.ensure_shape(tf.numpy_function(weight, [], tf.float32), ())
        )
        return first.flat_map(
            lambda weight: tf.data.Dataset.from_tensor_slices((images, labels)).map(
                lambda x, y: (x, y, weight)
            )
        )

    with pytest.raises(td.NonFiniteLossError, match=r"epoch 2, step 1"):
        run(
            td.Pipeline(distillation=td.Distillation(epochs=3)),
            train=weights_of_epoch().batch(16),
        )
    assert first_epoch.exists()
    assert not (tmp_path / "run/distillation/checkpoint-000002.json").exists()


def test_code_in_a_model_from_disk_is_refused(tmp_path: Path) -> None:
    image = keras.Input((8,))
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)).save(tmp_path / "model.keras")
    with pytest.raises(td.ModelError, match=r"(?s)Lambda.*safe_mode=False"):
        td.load_model(tmp_path / "model.keras")
    loaded = td.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_allclose(loaded(np.ones((1, 8), "float32")), 2.0)

"""What `keras.distillation` 3.15.1 gets wrong, and that we do not: both in one test.

That its default loss is no distillation loss is shown in test_losses.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import examples, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras

pytestmark = [
    pytest.mark.skipif(
        keras.__version__ != "3.15.1",
        reason=f"says what Keras 3.15.1 does; here is {keras.__version__}",
    ),
    # Theirs warns about its own inputs, data sets and files.
    pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:`compile\\(\\)` was not called:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def _teacher(**settings: Any) -> Any:
    return perceptron(keras, seed=1, name="teacher", **settings)


def _theirs(student: Any, losses: Any = None, teacher: Any = None, **settings: Any) -> Any:
    kl_divergence = keras.losses.KLDivergence()  # an object: of the two forms, the right one
    distiller = keras.distillation.Distiller(
        teacher or _teacher(),
        student,
        losses or [keras.distillation.LogitsDistillation(3.0, loss=kl_divergence)],
        student_loss_weight=settings.pop("label_loss_weight", 0.5),
    )
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.05), cross_entropy, **settings)
    return distiller


def _ours(student: Any, losses: Any = None, teacher: Any = None, **settings: Any) -> Any:
    distiller = td.Distiller(
        student,
        teacher or _teacher(),
        losses=losses or [td.losses.SoftTargets(3.0, weight=0.5)],
        label_loss_weight=settings.pop("label_loss_weight", 0.5),
    )
    distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", **settings)
    return distiller


def _hidden_features() -> Any:
    return keras.distillation.FeatureDistillation(
        loss="mse", teacher_layer_name="hidden", student_layer_name="hidden"
    )


def test_evaluation_moves_no_statistics_of_batches() -> None:
    inputs, labels, _ = examples()
    moved = []
    for make, losses in (
        (_theirs, [_hidden_features()]),
        (_ours, [td.losses.Hint("hidden", "hidden")]),
    ):
        student = perceptron(keras, normalized=True)
        distiller = make(student, losses)
        distiller.evaluate(inputs, labels, verbose=0)
        trained = student if make is _theirs else distiller.training_student
        before = perceptron(keras, normalized=True).get_layer("normalization").moving_mean
        after = trained.get_layer("normalization").moving_mean
        moved.append(float(np.abs(after.numpy() - before.numpy()).max()))
    theirs, ours = moved
    assert theirs > 1e-3
    assert ours == 0.0


def test_sample_weight_counts() -> None:
    inputs, labels, sample_weight = examples()

    def loss(distiller: Any, **given: Any) -> float:
        return float(
            distiller.evaluate(inputs, labels, verbose=0, return_dict=True, **given)["loss"]
        )

    theirs, ours = _theirs(perceptron(keras)), _ours(perceptron(keras))
    # Without weights, both agree.
    assert loss(theirs) == pytest.approx(loss(ours), rel=1e-5)
    assert loss(theirs, sample_weight=sample_weight) == loss(theirs)
    one_by_one = [
        float(
            ours.evaluate(inputs[i : i + 1], labels[i : i + 1], verbose=0, return_dict=True)["loss"]
        )
        for i in range(len(labels))
    ]
    assert loss(ours, sample_weight=sample_weight) == pytest.approx(
        np.mean(one_by_one * sample_weight), rel=1e-5
    )


def test_saved_file_and_weights_are_without_teacher(tmp_path: Path) -> None:
    loaded = []
    for make in (_theirs, _ours):
        inputs, labels, _ = examples()
        distiller = make(perceptron(keras), teacher=_teacher(units=50))
        distiller.fit(inputs, labels, verbose=0)
        distiller.save(tmp_path / "saved.keras")
        loaded.append((keras.models.load_model(tmp_path / "saved.keras"), distiller))
    (theirs, their_distiller), (ours, our_distiller) = loaded
    assert theirs.teacher.count_params() == _teacher(units=50).count_params()
    assert their_distiller.count_params() > _teacher(units=50).count_params()
    assert not hasattr(ours, "teacher")
    assert ours.count_params() == perceptron(keras).count_params() == our_distiller.count_params()


def test_teacher_stays_trainable() -> None:
    for make, trainable in ((_theirs, False), (_ours, True)):
        teacher = _teacher()
        make(perceptron(keras), teacher=teacher)
        assert teacher.trainable is trainable


def test_two_forward_passes_a_step_not_three() -> None:
    calls: list[str] = []

    def counted(library: Any, who: str) -> Any:
        class Counting(library.layers.Layer):
            def call(self, inputs: Any) -> Any:
                calls.append(who)
                return inputs

        inputs = library.layers.Input([4])
        hidden = library.layers.Dense(5, name="hidden")(Counting()(inputs))
        return library.Model(inputs, library.layers.Dense(3)(hidden))

    seen = []
    inputs, labels, _ = examples()
    for make, student, losses in (
        (_theirs, counted(keras, "student"), [_hidden_features()]),
        (_ours, counted(tf_keras, "student"), [td.losses.Hint("hidden", "hidden")]),
    ):
        distiller = make(student, losses, counted(keras, "teacher"), run_eagerly=True)
        calls.clear()
        distiller.train_on_batch(inputs, labels)
        seen.append(sorted(calls))
    theirs, ours = seen
    assert theirs == ["student", "student", "teacher"]
    assert ours == ["student", "teacher"]


def test_widths_may_differ() -> None:
    inputs, labels, _ = examples()
    theirs = _theirs(perceptron(keras), [_hidden_features()], _teacher(units=7))
    with pytest.raises(ValueError, match="Dimensions must be equal"):
        theirs.fit(inputs, labels, verbose=0)
    ours = _ours(perceptron(keras), [td.losses.Hint("hidden", "hidden")], _teacher(units=7))
    losses = ours.fit(inputs, labels, epochs=5, verbose=0).history["hint"]
    assert losses[4] < losses[0]


def test_training_can_be_resumed(tmp_path: Path) -> None:
    inputs, labels, _ = examples()
    with pytest.raises(ValueError, match="must be built before you call"):
        _theirs(perceptron(keras)).fit(
            inputs, labels, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(str(tmp_path))]
        )
    for epochs, trained in ((1, [0]), (2, [1])):
        backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
        history = _ours(perceptron(keras)).fit(
            inputs, labels, epochs=epochs, verbose=0, callbacks=[backup]
        )
        assert history.epoch == trained


def test_two_replicas_log_and_train_as_one(two_replicas: Any) -> None:
    inputs, labels, _ = examples(12)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(12)
    before = perceptron(keras).get_weights()

    def ratios(make: Any, log: str, **settings: Any) -> tuple[float, float]:
        """Of the log and of the update, with two replicas and with one."""
        found = []
        for scope in (contextlib.nullcontext(), two_replicas.scope()):
            with scope:
                student = perceptron(keras)
                distiller = make(student, **settings)
            logs = distiller.fit(data, verbose=0).history
            update = student.get_weights()[0] - before[0]
            found.append((logs[log][0], float(np.linalg.norm(update))))
        return found[1][0] / found[0][0], found[1][1] / found[0][1]

    log, update = ratios(_theirs, "total_loss")
    assert log == pytest.approx(0.5, rel=1e-3)
    assert update == pytest.approx(1.0, rel=1e-3)
    of_functions = [keras.distillation.FeatureDistillation(loss="mse")]
    _, update = ratios(_theirs, "total_loss", losses=of_functions, label_loss_weight=0.0)
    assert update == pytest.approx(2.0, rel=1e-3)
    for losses in (None, [td.losses.LogitsMSE()]):
        log, update = ratios(_ours, "loss", losses=losses)
        assert log == pytest.approx(1.0, rel=1e-5)
        assert update == pytest.approx(1.0, rel=1e-4)

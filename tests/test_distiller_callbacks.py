"""Keras' own callbacks and files around a Distiller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distillers import (
    Array,
    Interrupt,
    assert_equal,
    compiled_distiller,
    each_library,
    values_of,
)
from networks import examples, perceptron

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, SettingError

# Keras 3 saves its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    "library", [keras, pytest.param(tf_keras, marks=pytest.mark.slow)], ids=["keras", "tf_keras"]
)
def test_backup_and_restore_ends_in_the_weights_of_an_uninterrupted_run(
    library: Any, tmp_path: Path
) -> None:
    inputs, labels, _ = examples()

    def fit(distiller: Any, *callbacks: Any) -> Any:
        return distiller.fit(
            inputs, labels, epochs=3, batch_size=6, shuffle=False, verbose=0, callbacks=callbacks
        )

    def backup() -> Any:
        return tf_keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)

    whole = compiled_distiller(perceptron(library), optimizer="adam")
    fit(whole)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(
            compiled_distiller(perceptron(library), optimizer="adam"),
            backup(),
            Interrupt(RuntimeError),
        )
    # Another start, so that nothing is right by chance: the projection and Adam's state, too.
    resumed = compiled_distiller(perceptron(library, seed=9), seed=9, optimizer="adam")
    history = fit(resumed, backup())
    assert history.epoch == [1, 2]
    assert_equal(values_of(resumed.weights), values_of(whole.weights))
    assert_equal(resumed.student.get_weights(), whole.student.get_weights())


@pytest.mark.parametrize(
    ("library", "weights_only"),
    [
        (keras, True),
        (tf_keras, False),
        pytest.param(keras, False, marks=pytest.mark.slow),
        pytest.param(tf_keras, True, marks=pytest.mark.slow),
    ],
)
def test_model_checkpoint_writes_the_student_alone(
    library: Any, weights_only: bool, tmp_path: Path
) -> None:
    path = tmp_path / ("student.weights.h5" if weights_only else "student.keras")
    distiller = compiled_distiller(perceptron(library))
    inputs, labels, _ = examples()
    checkpoint = tf_keras.callbacks.ModelCheckpoint(str(path), save_weights_only=weights_only)
    distiller.fit(inputs, labels, verbose=0, callbacks=[checkpoint])
    if weights_only:
        loaded = perceptron(library, seed=9)
        loaded.load_weights(path)
    else:
        loaded = library.models.load_model(path)
    assert isinstance(loaded, library.Model)
    assert_equal(loaded.get_weights(), distiller.student.get_weights())
    np.testing.assert_allclose(
        loaded.predict(inputs, verbose=0), distiller.predict(inputs, verbose=0), atol=1e-6
    )


@each_library
def test_weights_of_the_student_alone_can_be_loaded(library: Any, tmp_path: Path) -> None:
    path = tmp_path / "student.weights.h5"
    perceptron(library, seed=9).save_weights(path)
    distiller = compiled_distiller(perceptron(library))
    distiller.load_weights(path)
    assert_equal(
        distiller.training_student.get_weights(), perceptron(library, seed=9).get_weights()
    )


@each_library
def test_early_stopping_restores_the_best_weights(library: Any) -> None:
    inputs, labels, _ = examples()
    student = perceptron(library)
    distiller = compiled_distiller(student, optimizer=tf_keras.optimizers.SGD(0.05))
    seen: list[tuple[float, list[Array]]] = []

    def grow(epoch: int, rate: float) -> float:
        return rate if epoch == 0 else 3.0  # far too large: the first epoch stays the best

    history = distiller.fit(
        inputs,
        labels,
        validation_data=(inputs, labels),
        epochs=9,
        verbose=0,
        callbacks=[
            tf_keras.callbacks.LearningRateScheduler(grow),
            tf_keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(
                    (logs["val_loss"], values_of(distiller.weights))
                )
            ),
            tf_keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
        ],
    ).history
    assert len(history["loss"]) == 3
    assert seen[0][0] < seen[1][0]
    assert_equal(values_of(distiller.weights), seen[0][1])
    assert_equal(student.get_weights(), seen[0][1][:4])


def test_tensorboard_records_the_losses(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorFlow's callback needs the tensorboard package")
    inputs, labels, _ = examples()
    callback = tf_keras.callbacks.TensorBoard(str(tmp_path), histogram_freq=1)
    compiled_distiller().fit(
        inputs, labels, validation_data=(inputs, labels), verbose=0, callbacks=[callback]
    )
    tags = {
        value.tag
        for path in (tmp_path / "train").glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"epoch_loss", "epoch_soft_targets", "epoch_teacher_agreement"} <= tags
    assert any("kernel" in tag for tag in tags)


def test_callbacks_of_keras3_are_refused() -> None:
    inputs, labels, _ = examples()
    with pytest.raises(
        SettingError,
        match=r"`callbacks` must be callbacks of tf_keras.*Received: EarlyStopping of Keras 3\. "
        r"Use tf_keras\.callbacks\.EarlyStopping\.",
    ):
        compiled_distiller().fit(inputs, labels, callbacks=[keras.callbacks.EarlyStopping()])
    with pytest.raises(SettingError, match=r"`callbacks` must be .*EarlyStopping of Keras 3"):
        compiled_distiller().fit(
            inputs, labels, 5, 1, 0, keras.callbacks.EarlyStopping()
        )  # by place


def test_data_of_keras3_are_refused() -> None:
    inputs, labels, _ = examples()

    class Pictures(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return inputs, labels

    class OfTfKeras(tf_keras.utils.Sequence):
        __len__, __getitem__ = Pictures.__len__, Pictures.__getitem__

    distiller, message = (
        compiled_distiller(),
        r"must be data that tf_keras reads.*Received: Pictures, a",
    )
    with pytest.raises(DataError, match=rf"`x` {message} PyDataset of Keras 3\. Give a tf\.data"):
        distiller.fit(Pictures(), verbose=0)
    with pytest.raises(DataError, match=rf"`x` {message}"):
        distiller.evaluate(Pictures(), verbose=0)
    with pytest.raises(DataError, match=rf"`validation_data` {message}"):
        distiller.fit(inputs, labels, validation_data=Pictures(), verbose=0)
    distiller.fit(OfTfKeras(), validation_data=OfTfKeras(), verbose=0)  # as the hint says

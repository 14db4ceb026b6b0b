"""The data of a run: looked at once, read in an order that a resumed run finds again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, SettingError
from tfdistill.run_data import RunData, look_at
from tfdistill.terminal import Terminal
from tfdistill.training import TrainingData, seeded

_ROWS = 12
_INPUTS = np.arange(_ROWS, dtype="float32")[:, np.newaxis]
_LABELS = np.arange(_ROWS) % 3


def _set(inputs: np.ndarray = _INPUTS, labels: np.ndarray = _LABELS) -> Any:
    return tf.data.Dataset.from_tensor_slices((inputs, labels))


def _shuffled(inputs: np.ndarray = _INPUTS) -> Any:
    return _set(inputs).shuffle(_ROWS, seed=1).batch(4)


def _endless() -> Any:
    return _set().shuffle(_ROWS, seed=1).repeat().batch(5).prefetch(2)


def _noisy(process: int) -> Any:
    """Other values at each reading, and in each process."""
    return _shuffled().map(lambda x, y: (x + tf.random.uniform(tf.shape(x), seed=process), y))


def _look(train: Any, **settings: Any) -> RunData:
    asked = {
        "classes": 3,
        "input_shape": (1,),
        "require_labels": True,
        "steps_per_epoch": None,
        "calibration_examples": 0,
        "name": None,
        "seed": 0,
        "validation": None,
        "test": (_INPUTS, _LABELS),
        **settings,
    }
    return look_at(train, **asked)


def _read(data: RunData, start: int, finished: int, epochs: int) -> list[list[float]]:
    """The inputs of a stage, epoch by epoch, as `fit` reads them."""
    batches = data.train.batches(start, finished, epochs)
    seen: list[list[float]] = []

    class Watch(tf_keras.Model):
        def train_step(self, batch: Any) -> dict[str, Any]:
            tf.py_function(lambda x: seen[-1].extend(x.numpy().ravel().tolist()), batch[:1], [])
            return {"loss": 0.0}

    model = Watch()
    model.compile()
    begin = tf_keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append([]))
    model.fit(
        batches,
        initial_epoch=finished,
        epochs=epochs,
        steps_per_epoch=data.train.steps_per_epoch,
        verbose=0,
        callbacks=[begin],
    )
    return seen


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (_shuffled, None),
        (_endless, 2),
        pytest.param(_shuffled, 2, marks=pytest.mark.slow),
    ],
    ids=["finite", "endless", "repeated"],
)
def test_a_resumed_stage_reads_what_an_uninterrupted_one_reads(make: Any, steps: int) -> None:
    whole = _look(make(), steps_per_epoch=steps)
    first = _read(whole, whole.start, 0, 3)
    second = _read(whole, whole.start + whole.train.share(3), 0, 2)
    every = [*first, *second]
    assert len({tuple(epoch) for epoch in every}) == 5  # each epoch has an order of its own

    resumed = _look(make(), steps_per_epoch=steps)
    assert _read(resumed, resumed.start, 2, 3) == first[2:]
    resumed = _look(make(), steps_per_epoch=steps)
    assert _read(resumed, resumed.start + resumed.train.share(3), 0, 2) == second
    resumed = _look(make(), steps_per_epoch=steps)
    assert _read(resumed, resumed.start + resumed.train.share(3), 1, 2) == second[1:]


def test_steps_per_epoch_of_data_that_end() -> None:
    for steps in (2, 3, 5):  # less than a pass, a pass, more than one
        data = _look(_shuffled(), steps_per_epoch=steps)
        assert [len(epoch) for epoch in _read(data, data.start, 0, 4)] == [4 * steps] * 4


def test_an_empty_set_with_steps_per_epoch_is_refused() -> None:
    with pytest.raises(DataError, match="`train` must hold at least one example"):
        _look(_set().take(0).batch(4), steps_per_epoch=2)


def test_data_that_can_be_read_once_only_are_refused() -> None:
    generator = ((row, label) for row, label in zip(_INPUTS, _LABELS, strict=True))
    once = tf.data.Dataset.from_generator(
        lambda: generator,
        output_signature=(tf.TensorSpec([1], tf.float32), tf.TensorSpec([], tf.int64)),
    )
    with pytest.raises(DataError, match="`train` must begin anew each time it is read"):
        _look(once.batch(4))


def test_a_test_set_in_another_order_each_time_is_refused() -> None:
    with pytest.raises(DataError, match="`test` must be the same each time it is read"):
        _look(_shuffled(), test=_shuffled())
    with pytest.raises(DataError, match="`validation` must be the same each time"):
        _look(_shuffled(), test=None, validation=_shuffled())
    kept = _set().shuffle(_ROWS, seed=1, reshuffle_each_iteration=False).batch(4)
    assert _look(_shuffled(), test=kept).summaries["test"].examples == _ROWS


def test_labels_of_another_kind_are_refused() -> None:
    one_hot = np.eye(3, dtype="float32")[_LABELS]
    with pytest.raises(DataError, match="`test` must have the same kind of labels as `train`: int"):
        _look(_shuffled(), test=(_INPUTS, one_hot))
    with pytest.raises(DataError, match=r"`validation` must have the same .* `train`: one-hot"):
        _look((_INPUTS, one_hot), validation=(_INPUTS, _LABELS), test=(_INPUTS, one_hot))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DataError, match="`test` must be given"):
        _look(_shuffled(), test=None)
    with pytest.raises(DataError, match=r"`train` must be a tf\.data\.Dataset"):
        _look(None)
    with pytest.raises(SettingError, match="`data_name` must be a text or None"):
        _look(_shuffled(), name=3)


def test_changed_values_are_noticed_in_any_order() -> None:
    data = _look(_shuffled())
    changed = _INPUTS.copy()
    changed[3] += 1e-3
    assert _look(_shuffled()).identity == data.identity
    assert _look(_set().shuffle(_ROWS, seed=7).batch(4)).identity == data.identity
    assert _look(_shuffled(changed)).identity != data.identity
    assert _look(_set(labels=_LABELS[::-1].copy()).batch(4)).identity != data.identity
    tests = [
        _look(_shuffled(), test=(x, _LABELS)) for x in (_INPUTS, changed, _INPUTS[::-1].copy())
    ]
    assert len({each.summaries["test"].content for each in tests}) == 3  # its order counts


class _Notes(Terminal):
    def __init__(self) -> None:
        super().__init__(verbose=0)
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def _recorded(data: RunData) -> dict[str, Any]:
    return {"name": data.name, "train": {"content": data.summaries["train"].content}}


def test_a_run_goes_on_with_data_that_differ_at_each_reading() -> None:
    before, terminal = _look(_noisy(1)), _Notes()
    now = _look(_noisy(2))
    assert now.identity != before.identity
    assert now.settled(_recorded(before), terminal).identity == before.identity
    assert "not noticed" in terminal.said[0]
    named = _look(_noisy(2), name="birds 2")
    assert named.settled(_recorded(before), terminal).identity == named.identity


def test_settling_takes_no_note_of_what_is_the_same_and_sees_what_is_not() -> None:
    before, terminal = _look(_shuffled()), _Notes()
    assert before.settled({}, terminal) is before
    assert before.settled(_recorded(before), terminal) is before
    changed = _look(_shuffled(_INPUTS + 1))
    assert changed.settled(_recorded(before), terminal).identity == changed.identity
    assert not terminal.said


def test_a_second_look_does_not_change_what_is_trained_on() -> None:
    other = _look(_shuffled(_INPUTS + 1))
    once, twice = _look(_shuffled()), _look(_shuffled())
    twice.settled(_recorded(other), _Notes())
    assert _read(once, once.start, 0, 2) == _read(twice, twice.start, 0, 2)


def test_calibration_examples_are_the_first_that_were_read() -> None:
    data = _look(_set().batch(5), calibration_examples=7)
    kept = np.concatenate([inputs for (inputs,) in data.calibration])
    np.testing.assert_array_equal(kept, _INPUTS[:7])
    assert _look(_shuffled()).calibration == ()


@pytest.mark.slow  # test_data.py has two replicas, and below is endless data
def test_two_replicas_read_endless_data(two_replicas: Any) -> None:
    data = TrainingData(_set().repeat().batch(4), steps_per_epoch=3)
    with two_replicas.scope():
        model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(1,))])
        model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.batches(0, 0, 2), epochs=2, steps_per_epoch=3, verbose=0)
    model.fit(data.batches(6, 0, 1), epochs=1, steps_per_epoch=3, verbose=0)
    inputs, _ = next(iter(data.batches(9, 0, 1)))
    np.testing.assert_array_equal(np.ravel(inputs), np.arange(36, 40) % _ROWS)


@pytest.mark.parametrize("user_seed", [None, 5])
def test_seeded_leaves_the_programs_random_numbers_alone(user_seed: int | None) -> None:
    def numbers() -> list[float]:
        return [random.random(), np.random.rand(), float(tf.random.uniform([]))]

    def program(inside: Any) -> list[list[float]]:
        random.seed(1), np.random.seed(1), tf.random.set_seed(5)
        before = numbers()
        inside()
        return [before, numbers()]

    found: list[list[float]] = []

    def block() -> None:
        with seeded(3):
            found.append(numbers())

    plain = program(lambda: None)
    assert program(block) == plain
    program(block)
    assert found[0] == found[1]
    tf.random.set_seed(user_seed)
    block()
    from tensorflow.python.eager import context

    assert context.global_seed() == user_seed

"""Where a pipeline's teacher is asked once, where at each step, and that both end alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets_process import (
    BATCH,
    EXAMPLES,
    Remembering,
    of_open_size,
    pictures,
    shuffled_pictures,
)

import tfdistill as td
from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, SettingError
from tfdistill.run_data import look_at
from tfdistill.targets import store
from tfdistill.teaching import Teaching, prepare_teaching
from tfdistill.terminal import Terminal
from tfdistill.training import TrainingData


def _furthest(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def _drawn_by_tensorflow(image: Any, seed: Any) -> Any:
    return tf.image.random_flip_left_right(image)


def _student() -> Any:
    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input([6, 6, 1], name="image")
    hidden = tf_keras.layers.Dense(16, activation="relu")(tf_keras.layers.Flatten()(image))
    return tf_keras.Model(image, tf_keras.layers.Dense(10)(hidden))


def _run(
    run_dir: Path, teacher: Any, train: Any = None, *, store_targets: Any = "auto", **more: Any
) -> tuple[list[np.ndarray], str]:
    """Weights of the student, and what the report says about storing."""
    settings: Any = {"epochs": 3, "learning_rate": 0.1, "optimizer": "sgd", **more}
    run = {name: settings.pop(name) for name in ("augment",) if name in settings}
    pipeline = td.Pipeline(
        distillation=td.Distillation(store_targets=store_targets, **settings),
        export=td.Export(
            formats=("float32",), limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        ),
        baseline=False,
    )
    test = pictures(1, 32)
    result = pipeline.run(
        _student(),
        teacher,
        pictures() if train is None else train,
        validation=test,
        test=test,
        run_dir=run_dir,
        verbose=0,
        **run,
    )
    notes = json.loads((run_dir / "report.json").read_text())["details"]["notes"]
    return result.student.get_weights(), next(note for note in notes if "teacher was" in note)


def test_a_pipeline_stores_once_and_ends_as_live(tmp_path: Path) -> None:
    images = pictures()[0]
    teacher, live_teacher = Remembering(), Remembering()
    weights, note = _run(tmp_path / "run", teacher, store_targets=True)
    assert teacher.times(images) == EXAMPLES
    assert teacher.times(pictures(1, 32)[0]) == 32 * 2  # once to store, once to be evaluated
    assert note.startswith("The teacher was asked about each of 240 examples once, in ")
    assert "not in each of 3 epochs: that saved about" in note
    live, live_note = _run(tmp_path / "live", live_teacher, store_targets=False)
    assert live_teacher.times(images) == 3 * EXAMPLES
    assert live_note == "The teacher was asked at each step: store_targets=False."
    assert _furthest(weights, live) < 1e-6  # this teacher's logits have a form in float16
    assert _furthest(live, _student().get_weights()) > 0.02
    again = Remembering()
    other, _ = _run(tmp_path / "run", again, learning_rate=0.2)  # trains anew
    assert again.times(images) == 0
    assert _furthest(other, weights) > 1e-3


class _Stops(Remembering):
    """Is gone after half of the training examples."""

    def _answer(self, images: np.ndarray) -> np.ndarray:
        answers = super()._answer(images)
        if self.times(pictures()[0]) > EXAMPLES // 2:
            raise OSError("gone")
        return answers


def _ordered() -> Any:
    return tf.data.Dataset.from_tensor_slices(pictures()).batch(BATCH)


@pytest.mark.slow
def test_a_pipeline_goes_on_storing_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SHARD_BYTES", 24 * BATCH)
    with pytest.raises(tf.errors.OpError, match="gone"):
        _run(tmp_path / "run", _Stops(), _ordered())
    teacher = Remembering()
    _run(tmp_path / "run", teacher, _ordered())
    assert teacher.times(pictures()[0]) == EXAMPLES - EXAMPLES // 2 // BATCH * BATCH


@pytest.mark.slow
def test_a_pipeline_trains_on_the_views_that_it_stored(tmp_path: Path) -> None:
    teacher = Remembering()
    settings: Any = {"augment": td.RandomShiftAndFlip(1), "views": 2, "epochs": 5}
    _, note = _run(tmp_path / "run", teacher, **settings)
    assert sum(teacher.asked.values()) < 2.5 * EXAMPLES
    assert "each of 240 examples in 2 views once" in note
    with pytest.raises(SettingError, match="`augment` must give the same"):
        _run(tmp_path / "other", teacher, **{**settings, "augment": _drawn_by_tensorflow})


def _random() -> Any:
    return shuffled_pictures().map(lambda x, y: (x + tf.random.uniform([]), y))


@pytest.mark.slow  # a whole run
def test_a_pipeline_goes_on_live_with_random_data(tmp_path: Path) -> None:
    _, note = _run(tmp_path / "run", Remembering(), _random())
    why = "the training data have other values each time they are read"
    assert note == f"The teacher was asked at each step: {why}."
    with pytest.raises(DataError, match=rf"hold the same examples in each .*Received: {why}\."):
        _run(tmp_path / "other", Remembering(), _random(), store_targets=True)
    assert not (tmp_path / "other/distillation").exists()


def _prepared(
    path: Path, train: Any, teacher: Any = None, steps_per_epoch: int | None = None, **more: Any
) -> tuple[Teaching, TrainingData]:
    """What a pipeline would train with."""
    settings: Any = {"augment": None, "epochs": 3, **more}
    augment, epochs = settings.pop("augment"), settings.pop("epochs")
    data = look_at(
        train,
        settings.pop("validation", None),
        pictures(1, 32),
        classes=10,
        input_shape=None,
        require_labels=True,
        steps_per_epoch=steps_per_epoch,
        calibration_examples=0,
        name=None,
        seed=0,
    )
    teaching = prepare_teaching(
        teacher or Remembering(),
        td.Distillation(epochs=epochs, **settings),
        data,
        augment,
        directory=path,
        epochs=epochs,
        seed=0,
        terminal=Terminal(verbose=0),
    )
    return teaching, data.train


def _remainder_dropped() -> Any:
    """One example of 239, another one in each epoch."""
    rows = tf.data.Dataset.from_tensor_slices(pictures()).take(EXAMPLES - 1)
    return rows.shuffle(EXAMPLES, seed=1).batch(14, drop_remainder=True)


@pytest.mark.parametrize(
    ("train", "settings", "why"),
    [
        (_remainder_dropped, {}, "each reading of the training data leaves out other examples"),
        (lambda: of_open_size(_ordered()), {}, r"varying size float32\(None, None, None, None\)"),
        (_ordered, {"steps_per_epoch": 4}, "with steps_per_epoch an epoch need not hold each"),
        (_ordered, {"epochs": 1}, "in epochs=1 none of views=1 would be seen twice"),
        (
            _ordered,
            {"views": 4, "augment": td.RandomShiftAndFlip(1)},
            "in epochs=3 none of views=3 would be seen twice",
        ),
    ],
    ids=["remainder", "sizes", "steps", "one epoch", "as many views"],
)
def test_auto_asks_live_where_storing_is_wrong_or_does_not_pay(
    train: Any, settings: Any, why: str, tmp_path: Path
) -> None:
    teaching, training = _prepared(tmp_path, train(), **settings)
    assert re.search(why, teaching.note(3))
    assert teaching.stored is training.taught is None
    if "would be seen twice" in why:  # slower, but right
        assert _prepared(tmp_path, train(), store_targets=True, **settings)[0].stored is not None
        return
    with pytest.raises(DataError, match=f"`train` must hold the same examples.*Received: .*{why}"):
        _prepared(tmp_path, train(), store_targets=True, **settings)


def test_a_changed_teacher_is_asked_anew(tmp_path: Path) -> None:
    teachers = [Remembering(), Remembering(), Remembering(2)]
    for teacher in teachers:
        _prepared(tmp_path, _ordered(), teacher)
    assert [teacher.times(pictures()[0]) for teacher in teachers] == [EXAMPLES, 0, EXAMPLES]


def test_validation_data_of_varying_size_are_asked_about_live(tmp_path: Path) -> None:
    validation = of_open_size(_ordered())
    teaching, _ = _prepared(tmp_path, _ordered(), validation=validation)
    assert teaching.stored is not None
    assert teaching.validation is validation


def test_inputs_of_varying_size_are_not_augmented(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`train` must have inputs of fixed sizes, to be augmented"):
        _prepared(tmp_path, of_open_size(_ordered()), augment=td.RandomShiftAndFlip(1))

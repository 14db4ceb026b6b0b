"""Weights and temperatures that change over the steps: their values, in `fit`, in a pipeline."""

from __future__ import annotations

import contextlib
import doctest
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import examples, perceptron
from targets_process import EXAMPLES, Remembering, pictures

import tfdistill as td
from tfdistill import losses, schedules
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import SettingError
from tfdistill.losses.base import Outputs
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.schedules import Cosine, Linear, Piecewise

LABEL_LOSS = "sparse_categorical_crossentropy"
SHAPES: dict[str, tuple[Any, Callable[[float], float]]] = {
    "linear": (Linear(8, 2, steps=5), lambda share: 8 - 6 * share),
    "rising": (Linear(0.1, 0.9, steps=3), lambda share: 0.1 + 0.8 * share),
    "cosine": (Cosine(1, 0, steps=6), lambda share: (1 + math.cos(math.pi * share)) / 2),
    "piecewise": (
        Piecewise([1, 0, 0.5], [0.4, 0.75], steps=5),
        lambda share: 1.0 if share < 0.4 else 0.0 if share < 0.75 else 0.5,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_values_are_the_formula_and_stay_at_the_end(name: str) -> None:
    schedule, formula = SHAPES[name]
    compiled = tf.function(schedule.at, jit_compile=True)
    for step in [*range(schedule.steps + 1), 10**9, 2**40]:
        expected = formula(min(step / schedule.steps, 1))
        for value in (schedule.at(step), compiled(tf.constant(step, tf.int64))):
            assert value.dtype == tf.float32
            assert value.shape == []
            assert float(value) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_no_value_is_outside_of_the_bounds(start: float, end: float, steps: int, step: int) -> None:
    """Rounded, a temperature that ends near 0 would else be 0."""
    start, end = (float(np.float32(number)) for number in (start, end))
    for schedule in (Linear(start, end, steps), Cosine(start, end, steps)):
        least, most = schedule.bounds
        assert least * (1 - 1e-6) <= float(schedule.at(step)) <= most * (1 + 1e-6)
        assert float(schedule.at(steps)) == end


def test_docstring_examples_are_true() -> None:
    found = doctest.testmod(schedules)
    assert found.failed == 0
    assert found.attempted > 5


# --- settings ---


ANY: Any = {kind.__name__: kind for kind in (Linear, Piecewise, losses.HardTargets)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ANY["Linear"]("8", 2), r"`start` must be a finite number\. Received: '8'"),
        (lambda: Cosine(8, math.inf), r"`end` must be a finite number\. Received: inf"),
        (lambda: Linear(8, 2, steps=0), r"`steps` must be a whole number >= 1"),
        (
            lambda: ANY["Linear"](8, 2, step=9),
            r"`step` must be a setting of Linear.*Did you mean steps",
        ),
        (lambda: Piecewise([1, 0], [1]), r"`boundaries` must rise.* Received: \[1\.0\]"),
        (lambda: Piecewise([1, 0, 1], [0.5, 0.5]), r"`boundaries` must rise, each between 0"),
        (lambda: Piecewise([1, 0], []), r"`values` must be one more than .*: 2 values, 0 bound"),
        (lambda: Piecewise([1], []), r"`values` must be one more than the `boundaries`"),
        (lambda: ANY["Piecewise"](1, 0), r"`values` must be a list of numbers\. Received: 1"),
        (lambda: ANY["Piecewise"]([1, None], [0.5]), r"`values` must be a finite number"),
        (
            lambda: losses.SoftTargets(Linear(4, 0)),
            r"`temperature` must be > 0 and finite\. Received: Linear\(start=4\.0, end=0\.0",
        ),
        (
            lambda: losses.LogitsMSE(Piecewise([1, -1], [0.5])),
            r"`weight` must be >= 0 and finite\. Received: Piecewise",
        ),
        (
            lambda: ANY["HardTargets"](threshold=Linear(0, 0.9)),
            r"`threshold` must be a number\. Received: Linear.* Weights and temperatures may be",
        ),
        (
            lambda: td.Distillation(label_loss_weight=Linear(0, -1)),
            r"`label_loss_weight` must be a finite number >= 0\. Received: Linear",
        ),
        (
            lambda: td.Distillation([losses.LogitsMSE(Linear(0, 0))], label_loss_weight=0),
            r"must not all be zero",
        ),
    ],
)
def test_setting_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_a_distiller_must_be_told_the_steps() -> None:
    for taught, weight in (
        ([losses.SoftTargets(Linear(8, 2))], 0.1),
        ([losses.SoftTargets()], Cosine(1, 0)),
    ):
        with pytest.raises(
            SettingError,
            match=r"`steps` of a schedule must be given outside of a pipeline\. Received: .*None",
        ):
            td.Distiller(perceptron(tf_keras), perceptron(keras, seed=1), taught, weight)


def scheduled(steps: int | None = None) -> list[losses.DistillationLoss]:
    return [
        losses.SoftTargets(Linear(8, 2, steps), weight=Cosine(1, 0, steps)),
        losses.DecoupledKD(Cosine(4, 1, steps), weight=Piecewise([0, 0.5], [0.5], steps)),
        losses.ProbabilityMSE(Linear(1, 3, steps)),
        losses.DIST(temperature=Linear(2, 1, steps), weight=Linear(0, 1, steps)),
        losses.BinaryTargets(Linear(3, 1, steps), weight=0.1),
        losses.EarlyExits(["rectified"], Linear(4, 1, steps)),
        losses.Contrastive("rectified", "rectified", Linear(0.1, 0.05, steps)),
    ]


@pytest.mark.parametrize("loss", scheduled(7), ids=lambda loss: loss.name)
def test_config_round_trips_through_json(loss: losses.DistillationLoss) -> None:
    config = json.loads(json.dumps(losses.serialize(loss)))
    assert losses.deserialize(config) == loss
    assert losses.deserialize(config).over(9) == loss  # which has steps of its own


def test_every_number_is_in_the_fingerprint_of_a_stage() -> None:
    def print_of(weight: Any, temperature: Any = 4.0) -> str:
        taught = [losses.SoftTargets(temperature)]
        return fingerprint(td.Distillation(taught, label_loss_weight=weight))

    same = print_of(Linear(1, 0)), print_of(ANY["Linear"](np.float32(1), 0))
    assert same[0] == same[1]
    others = [
        print_of(1.0),
        print_of(Linear(1, 0.5)),
        print_of(Linear(1, 0, 9)),
        print_of(Cosine(1, 0)),
        print_of(Linear(1, 0), Linear(8, 2)),
    ]
    assert len({same[0], *others}) == 6


def test_top_k_targets_know_single_temperatures_only() -> None:
    teacher = Outputs(tf.zeros([2, 3]), {}, {"4.0": tf.zeros([2, 3])})
    student = Outputs(tf.zeros([2, 3]), {})
    assert losses.SoftTargets(4.0).call(teacher, student).shape == [2]
    for taught in (losses.SoftTargets(Linear(8, 2, 5)), losses.ProbabilityMSE(Linear(4, 1, 5))):
        with pytest.raises(
            SettingError, match=r"`temperature` of a loss must be one number, for top-k targets"
        ):
            taught.at(0).call(teacher, student)


def test_the_methods_page_shows_what_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    blocks = re.findall(r"test_schedules\.py\. -->\n```python\n(.*?)```", page, re.S)
    changing_one, unlabelled = (eval(block, {"td": td}) for block in blocks)
    assert isinstance(changing_one.losses[0].temperature, Linear)
    assert unlabelled.unlabelled == -1


# --- in fit ---


def batches() -> Any:
    return tf.data.Dataset.from_tensor_slices(examples(18)).batch(6)


@pytest.fixture(scope="module")
def by_hand(two_devices: None) -> tuple[list[float], list[Any]]:
    """Losses and weights of two epochs in which each step has a Distiller with plain numbers."""
    student, teacher = perceptron(tf_keras), perceptron(keras, units=7, seed=1)
    values = []
    for step, batch in enumerate([*batches()] * 2):
        share = min(step / 4, 1)
        taught = [losses.SoftTargets(8 - 6 * share, weight=0.5 + 0.5 * math.cos(math.pi * share))]
        distiller = td.Distiller(student, teacher, taught, 0.1 if share < 0.5 else 0.7)
        distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS, run_eagerly=True)
        values.append(distiller.train_on_batch(*batch, return_dict=True)["loss"])
    return values, [np.array(weight) for weight in student.get_weights()]


def changing(student: Any = None, **settings: Any) -> Any:
    distiller = td.Distiller(
        student or perceptron(tf_keras),
        perceptron(keras, units=7, seed=1),
        [losses.SoftTargets(Linear(8, 2, steps=4), weight=Cosine(1, 0, steps=4))],
        Piecewise([0.1, 0.7], [0.5], steps=4),
    )
    optimizer = settings.pop("optimizer", None) or tf_keras.optimizers.SGD(0.05)
    distiller.compile(optimizer, LABEL_LOSS, **settings)
    return distiller


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"run_eagerly": True},
        pytest.param({"steps_per_execution": 3}, marks=pytest.mark.slow),
        {"jit_compile": True},
    ],
    ids=["traced", "eager", "steps_per_execution", "jit_compile"],
)
def test_each_step_has_its_own_numbers(
    way: dict[str, Any], by_hand: tuple[list[float], list[Any]]
) -> None:
    values, weights = by_hand
    distiller = changing(**way)
    history = distiller.fit(batches(), epochs=2, verbose=0).history
    np.testing.assert_allclose(
        history["loss"], [np.mean(values[:3]), np.mean(values[3:])], rtol=1e-5
    )
    for ours, theirs in zip(distiller.student.get_weights(), weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_evaluation_has_the_numbers_of_the_step_and_changes_nothing() -> None:
    inputs, labels, _ = examples()
    distiller = changing(optimizer=tf_keras.optimizers.SGD(0.0))
    logs = []
    for step in range(3):
        logs.append(distiller.evaluate(inputs, labels, verbose=0, return_dict=True))
        assert distiller.optimizer.iterations == step
        distiller.train_on_batch(inputs, labels)
    assert logs[0]["label_loss"] == logs[2]["label_loss"]
    assert logs[0]["soft_targets"] != logs[1]["soft_targets"]
    weights = [(0.1, 1.0), (0.1, 0.5 + 0.5 * math.cos(math.pi / 4)), (0.7, 0.5)]
    for each, (label, soft) in zip(logs, weights, strict=True):
        expected = label * each["label_loss"] + soft * each["soft_targets"]
        assert each["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_two_replicas_are_one(two_replicas: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices(examples(15, classes=3)).batch(6)
    results: list[Any] = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            student = perceptron(tf_keras)
            distiller = td.Distiller(
                student, perceptron(keras, units=7, seed=1), scheduled(5)[:2], Linear(1, 0, 5)
            )
            distiller.compile(tf_keras.optimizers.SGD(0.02), LABEL_LOSS)
        history = distiller.fit(data, epochs=2, verbose=0).history
        results.append((history, [np.array(weight) for weight in student.get_weights()]))
    (one, weights), (several, other_weights) = results
    for name, values in one.items():
        np.testing.assert_allclose(several[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    for ours, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_under_mixed_precision_the_count_is_of_the_inner_optimizer() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        student = perceptron(tf_keras)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    inputs, labels, _ = examples()
    distiller = changing(student)
    weights = []
    for _ in range(2):
        logs = distiller.train_on_batch(inputs, labels, return_dict=True)
        weights.append((logs["loss"] - 0.1 * logs["label_loss"]) / logs["soft_targets"])
    assert weights == pytest.approx([1.0, 0.5 + 0.5 * math.cos(math.pi / 4)], rel=1e-3)


def test_a_restored_distiller_goes_on_where_it_was(tmp_path: Path) -> None:
    inputs, labels, _ = examples()
    whole, first, second = changing(), changing(), changing()
    backup = tf_keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    settings: Any = {"batch_size": 15, "shuffle": False, "verbose": 0}
    whole.fit(inputs, labels, epochs=4, **settings)
    first.fit(inputs, labels, epochs=2, callbacks=[backup], **settings)
    second.fit(inputs, labels, epochs=4, callbacks=[backup], **settings)
    assert second.optimizer.iterations == 4
    for ours, theirs in zip(second.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- in a pipeline ---


class _Stops(Remembering):
    """Is gone amid the second epoch."""

    def _answer(self, images: np.ndarray) -> np.ndarray:
        if self.times(pictures()[0]) > 1.5 * EXAMPLES:
            raise OSError("gone")
        return super()._answer(images)


def _run(run_dir: Path, teacher: Any, **stages: Any) -> dict[str, Any]:
    """Stage to its history."""
    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input([6, 6, 1], name="image")
    outputs = tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(image))
    taught = [
        losses.SoftTargets(2.0, weight=Linear(1, 0)),
        losses.LogitsMSE(Piecewise([0, 1], [0.5])),
    ]
    limits = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
    pipeline = td.Pipeline(
        distillation=td.Distillation(
            taught, label_loss_weight=0, epochs=4, learning_rate=1e-9, store_targets=False
        ),
        export=td.Export(formats=("int8" if stages else "float32",), limits=limits),
        baseline=False,
        **stages,
    )
    pipeline.run(
        tf_keras.Model(image, outputs),
        teacher,
        pictures(),
        test=pictures(1, 32),
        run_dir=run_dir,
        verbose=0,
    )
    histories: dict[str, Any] = json.loads((run_dir / "report.json").read_text())["histories"]
    return histories


def assert_loss_follows_the_schedules(curves: dict[str, Any], epochs: int) -> None:
    """Of a student that stays as it is, so that every epoch's loss tells its weights."""
    for epoch in range(epochs):
        shares = np.arange(2 * epoch, 2 * epoch + 2) / (2 * epochs)  # 240 examples, 2 batches
        sizes = np.array([128, 112]) / 240
        soft, mse = ((1 - shares) * sizes).sum(), ((shares >= 0.5) * sizes).sum()
        expected = soft * curves["soft_targets"][epoch] + mse * curves["logits_mse"][epoch]
        assert curves["loss"][epoch] == pytest.approx(expected, rel=0.02), epoch


@pytest.mark.slow
def test_a_killed_stage_goes_on_in_its_schedules(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", Remembering())
    assert_loss_follows_the_schedules(whole["distillation"], 4)
    with pytest.raises(tf.errors.OpError, match="gone"):
        _run(tmp_path / "killed", _Stops())
    assert (tmp_path / "killed/distillation/checkpoint-000001.json").exists()
    assert _run(tmp_path / "killed", Remembering()) == whole


@pytest.mark.slow
def test_schedules_go_over_each_stage_anew(tmp_path: Path) -> None:
    stages = {
        "pruning": td.Pruning(sparsity=0.5, epochs=1, learning_rate=1e-9),
        "quantization": td.Quantization(epochs=2, learning_rate=1e-9),
    }
    histories = _run(tmp_path, Remembering(), **stages)
    for stage, epochs in (("distillation", 4), ("pruning", 1), ("quantization", 2)):
        assert_loss_follows_the_schedules(histories[stage], epochs)

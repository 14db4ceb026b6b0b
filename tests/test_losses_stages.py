"""All losses on outputs in one training of a student that is pruned, or quantized."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import Array, log_probabilities, soft_targets
from networks import examples, hidden_of, logits_of, perceptron, wide
from output_losses import OUTPUT_LOSSES

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf_keras, tfmot
from tfdistill.pruning import Pruning, plan_pruning, strip, wrap_for_pruning
from tfdistill.quantization import Quantization, quantize
from tfdistill.schedules import Piecewise

CLASSES, ROWS = 3, 24
KNOWN = np.arange(ROWS) % 3 != 0
EXITS: Any = losses.EarlyExits(["rectified"], 2.0)
EVERY: tuple[Any, ...] = (*(each.loss for each in OUTPUT_LOSSES.values()), EXITS)
BEFORE = 3  # steps that the labels alone teach, in which the masks and the ranges are found
STEPS = 32  # a power of two: each share of them is exact


def at_step(own: int) -> Piecewise:
    """The weight 1 in one step, and 0 in all others."""
    last = BEFORE + len(EVERY)
    values = [float(step == own) for step in range(last + 1)]
    return Piecewise(values, [step / STEPS for step in range(1, last + 1)], steps=STEPS)


def members() -> list[Any]:
    return [
        perceptron(keras, units=7, seed=1, name="one"),
        perceptron(tf_keras, units=6, seed=2, name="two"),
    ]


def data() -> tuple[Array, Array]:
    """Inputs, and rows of labels: the losses on numbers read these, too. Rows of 0 are unknown."""
    inputs, labels, _ = examples(ROWS, classes=CLASSES)
    rows = np.eye(CLASSES, dtype=np.float32)[labels]
    rows[~KNOWN] = 0
    return inputs, rows


def student_in(stage: str, inputs: Array) -> Any:
    student = perceptron(tf_keras, units=8)
    if stage == "quantized":
        return quantize(student, Quantization(), sparse=False).model
    settings = Pruning(sparsity=0.5)
    return wrap_for_pruning(student, settings, plan_pruning(student, settings), BEFORE - 1)


class Kernels(tf_keras.callbacks.Callback):
    """The kernels before the first step, and after each one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Array]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self._look()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._look()

    def _look(self) -> None:
        self.seen.append(pruned_kernels(self.model.training_student))


def pruned_kernels(student: Any) -> dict[str, Array]:
    """As the next step will read them: tfmot sets weights to zero before each."""
    found = {}
    for layer in ("hidden", "logits"):
        kernel, *masks = (
            np.array(weight.numpy())
            for weight in student.weights
            if layer in weight.name and re.search(r"/(kernel|mask):", weight.name)
        )
        found[layer] = np.prod([kernel, *masks], axis=0)
    return found


def expected_logs(logits: Array, hidden: Array, exits: list[Array]) -> dict[str, float]:
    """From the student's logits and layer, by the formulas in float64."""
    inputs, rows = data()
    one, two = (logits_of(model.get_weights(), inputs) for model in members())
    teacher = (2 * one + two) / 3
    logs = {}
    for name, (loss, formula) in OUTPUT_LOSSES.items():
        values = formula(teacher, logits, rows)
        logs[name] = np.mean(values * KNOWN if loss.needs_labels else values)
    kernel, bias = wide(exits)
    said = hidden @ kernel + bias
    own = -(log_probabilities(said) * rows).sum(axis=-1)
    values = EXITS.label_weight * own
    values += (1 - EXITS.label_weight) * soft_targets(logits, said, EXITS.temperature)
    return {**logs, EXITS.name: np.mean(values * KNOWN)}


@pytest.mark.slow  # all losses, some of them are quick in test_losses_training.py
@pytest.mark.parametrize("stage", ["pruned", "quantized"])
def test_each_loss_teaches_alone_and_logs_its_formula(stage: str) -> None:
    """Each in a step of its own, from two teachers, with a third of the rows unlabelled."""
    inputs, rows = data()
    given = np.where(KNOWN[:, np.newaxis], rows, np.float32(np.nan))
    distiller = td.Distiller(
        student_in(stage, inputs),
        td.teachers.Ensemble(members(), [2, 1]),
        [replace(loss, weight=at_step(BEFORE + k)) for k, loss in enumerate(EVERY)],
        Piecewise([0.5, 0], [BEFORE / STEPS], steps=STEPS),
        unlabelled=np.nan,  # not 0: of labels that may be true together none may be
    )
    distiller.compile(tf_keras.optimizers.SGD(0.02), "categorical_crossentropy")
    kernels = Kernels()
    callbacks = [kernels]
    if stage == "pruned":
        callbacks.append(tfmot.sparsity.keras.UpdatePruningStep())
    steps = BEFORE + len(EVERY)
    distiller.fit(
        inputs, given, batch_size=ROWS, epochs=steps, verbose=0, shuffle=False, callbacks=callbacks
    )

    assert len(kernels.seen) == steps + 1
    if stage == "pruned":
        for name, kernel in kernels.seen[BEFORE].items():
            assert np.mean(kernel == 0) == 0.5
            for after in kernels.seen[BEFORE:]:
                np.testing.assert_array_equal(after[name] == 0, kernel == 0)
    for k, loss in enumerate(EVERY):
        before, after = kernels.seen[BEFORE + k : BEFORE + k + 2]
        moved = {name for name in before if np.abs(after[name] - before[name]).max() > 1e-6}
        assert moved == ({"hidden"} if loss is EXITS else {"hidden", "logits"}), loss.name

    logs = distiller.evaluate(inputs, given, batch_size=ROWS, verbose=0, return_dict=True)
    student = distiller.training_student
    exits = [*distiller.projection_weights.values()]
    if stage == "pruned":
        student = strip(student)
        weights = student.get_weights()
        logits, hidden = logits_of(weights, inputs), hidden_of(weights, inputs)
    else:
        rectified = student.get_layer("quant_rectified").output
        logits, hidden = wide(tf_keras.Model(student.inputs, [student.output, rectified])(inputs))
    said = expected_logs(logits, hidden, exits)
    assert set(said) < set(logs)
    for name, value in said.items():
        assert value > 1e-3, name
        assert logs[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_each_loss_teaches_in_every_stage_of_a_pipeline(tmp_path: Path) -> None:
    """On adversarial examples, too, and with rows without labels."""
    inputs, _ = data()
    _, labels, _ = examples(ROWS, classes=CLASSES)
    of_numbers = (losses.BinaryTargets, losses.RegressionTargets)
    taught = [replace(loss, weight=0.1) for loss in EVERY if not isinstance(loss, of_numbers)]
    result = td.Pipeline(
        distillation=td.Distillation(
            losses=taught,
            label_loss_weight=0.3,
            epochs=5,
            learning_rate=0.01,
            unlabelled=-1,
            adversarial=td.Adversarial(0.05),
        ),
        pruning=td.Pruning(sparsity=0.5, epochs=5, learning_rate=0.01),
        quantization=td.Quantization(epochs=4, learning_rate=1e-9),
        export=td.Export(
            formats=("int8",), limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        ),
        baseline=False,
    ).run(
        perceptron(keras, units=16),
        td.teachers.Ensemble(members(), [2, 1]),
        (inputs, np.where(KNOWN, labels, -1)),
        validation=(inputs, labels),
        test=(inputs, labels),
        run_dir=tmp_path / "run",
        verbose=0,
    )
    histories = result.report.histories
    for stage in ("distillation", "pruning", "quantization"):
        assert {f"val_{loss.name}" for loss in taught} < set(histories[stage]), stage
    assert histories["distillation"]["loss"][-1] < histories["distillation"]["loss"][0]

    # Quantization learns all but nothing here: its student is the pruned one, rounded.
    student = logits_of([np.array(weight) for weight in result.student.get_weights()], inputs)
    one, two = (logits_of(model.get_weights(), inputs) for model in members())
    for loss in taught:
        if loss.name != EXITS.name:
            formula = OUTPUT_LOSSES[loss.name].formula
            expected = formula((2 * one + two) / 3, student, np.eye(CLASSES)[labels]).mean()
            found = histories["quantization"][f"val_{loss.name}"][-1]
            assert found == pytest.approx(expected, rel=0.1, abs=0.02), loss.name
    rows = {row.name: row for row in result.report.rows}
    for name in ("pruned", "quantized", "int8"):
        assert rows[name].sparsity == pytest.approx(0.5, abs=0.05), name

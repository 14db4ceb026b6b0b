"""Students that learn without a teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import log_probabilities, virtual_teacher
from networks import examples, hidden_of, logits_of, perceptron

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.evaluation import evaluate
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.teachers import Nobody, identity_of_teacher

LABEL_LOSS = "sparse_categorical_crossentropy"
MADE_UP = losses.VirtualTeacher(0.9, 5.0, weight=0.5)
ANY = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)


def make(taught: Any = (MADE_UP,), teacher: Any = None, student: Any = None) -> Any:
    distiller = td.Distiller(student or perceptron(tf_keras), teacher, taught, 0.3)
    distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS, metrics=["accuracy"])
    return distiller


def test_its_loss_is_the_formulas_and_there_is_nobody_to_agree_with() -> None:
    inputs, labels, sample_weight = examples()
    s = logits_of(perceptron(tf_keras).get_weights(), inputs)
    expected = {
        "label_loss": np.mean(sample_weight * -log_probabilities(s)[np.arange(15), labels]),
        "virtual_teacher": np.mean(sample_weight * virtual_teacher(s, labels, 0.9, 5.0)),
    }
    distiller = make()
    logs = distiller.evaluate(
        inputs, labels, sample_weight=sample_weight, verbose=0, return_dict=True
    )
    assert set(logs) == {"loss", "accuracy", *expected}
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5), name
    total = 0.3 * expected["label_loss"] + 0.5 * expected["virtual_teacher"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    history = distiller.fit(inputs, labels, epochs=30, verbose=0).history
    assert history["virtual_teacher"][-1] < 0.5 * history["virtual_teacher"][0]


def test_it_learns_what_it_learns_beside_a_teacher_that_no_loss_reads() -> None:
    inputs, labels, _ = examples()
    taught = [MADE_UP, losses.EarlyExits(["rectified"], label_weight=0.5)]
    results = []
    for teacher in (None, perceptron(keras, units=7, seed=1)):
        tf_keras.utils.set_random_seed(0)  # of the exits
        distiller = make(taught, teacher)
        history = distiller.fit(inputs, labels, epochs=3, shuffle=False, verbose=0).history
        results.append((history, distiller.get_weights()))
    (ours, weights), (theirs, other_weights) = results
    assert set(theirs) - set(ours) == {"teacher_agreement"}
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_two_replicas_are_one(two_replicas: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices(examples()).batch(6)
    results = []
    for scope in (tf.distribute.get_strategy().scope, two_replicas.scope):
        with scope():
            distiller = make()
        history = distiller.fit(data, epochs=2, verbose=0).history
        results.append((history, [np.array(w) for w in distiller.student.get_weights()]))
    for name, values in results[0][0].items():
        np.testing.assert_allclose(results[1][0][name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


def test_labels_alone_may_teach_too() -> None:
    inputs, labels, _ = examples()
    assert set(make(taught=[]).evaluate(inputs, labels, verbose=0, return_dict=True)) == {
        *("loss", "label_loss", "accuracy")
    }


@pytest.mark.parametrize(
    "teach",
    [
        lambda taught: make(taught),
        lambda taught: td.Pipeline(distillation=td.Distillation(losses=taught)).check(
            perceptron(keras), None
        ),
    ],
    ids=["Distiller", "Pipeline"],
)
def test_losses_that_need_a_teacher_are_named(teach: Any) -> None:
    taught = [MADE_UP, losses.SoftTargets(), losses.Hint("auto")]
    message = (
        "`teacher` must be given for the losses that need one. Received: teacher=None and "
        "soft_targets, hint. Give one; or take td.losses.VirtualTeacher"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        teach(taught)


def test_every_loss_but_two_needs_one() -> None:
    kinds = {kind for kind in vars(losses).values() if isinstance(kind, type)}
    needless = {
        kind
        for kind in kinds
        if issubclass(kind, losses.DistillationLoss)
        and kind.needs_teacher is not losses.DistillationLoss.needs_teacher
    }
    assert needless == {losses.VirtualTeacher, losses.EarlyExits}


def test_nobody_is_no_member_of_an_ensemble_and_has_nothing_to_store(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"`teacher` must be a Keras model.*Received: NoneType"):
        td.teachers.Ensemble([None, perceptron(keras)])
    with pytest.raises(ModelError, match=r"`teacher` must be a Keras model.*Received: NoneType"):
        td.store_targets(None, examples()[0], tmp_path / "targets")
    asked = td.Distillation(losses=[MADE_UP], store_targets=True)
    with pytest.raises(
        SettingError,
        match=r'`store_targets` must be False or "auto" without a teacher\. Received: store_targets'
        r"=True, teacher=None",
    ):
        td.Pipeline(distillation=asked).check(perceptron(keras), None)


def test_nobody_is_the_same_in_each_run_and_nobody_else() -> None:
    student = perceptron(tf_keras)
    given = (Nobody(), Nobody(), perceptron(keras, units=7, seed=1))
    prints = [fingerprint(identity_of_teacher(each, student)) for each in given]
    assert prints[0] == prints[1] != prints[2]


# --- in a pipeline ---


def run(run_dir: Path, teacher: Any = None, **settings: Any) -> Any:
    inputs, labels, _ = examples(60)
    return td.Pipeline(
        distillation=td.Distillation(
            losses=[MADE_UP], label_loss_weight=0.5, epochs=3, learning_rate=0.05
        ),
        **{"export": td.Export(formats=("int8",), limits=ANY), **settings},
    ).run(
        perceptron(keras, units=16),
        teacher,
        (inputs, labels),
        validation=(inputs, labels),
        run_dir=run_dir,
        verbose=0,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    result = run(
        run_dir,
        pruning=td.Pruning(sparsity=0.5, epochs=2),
        quantization=td.Quantization(epochs=2),
    )
    return result, run_dir


@pytest.mark.slow  # a whole run
def test_every_stage_works_and_the_report_has_no_teacher(whole: tuple[Any, Path]) -> None:
    result, run_dir = whole
    histories = result.report.histories
    rows = {row.name: row for row in result.report.rows}
    assert [*rows] == ["student alone", "distilled", "pruned", "quantized", "int8"]
    assert all(row.teacher_agreement is None for row in rows.values())
    assert rows["int8"].certified
    assert rows["pruned"].sparsity == pytest.approx(0.5, abs=0.05)
    assert result.report.test_examples == 60
    assert "agrees with teacher" not in result.report.table()[0]
    for stage in ("distillation", "pruning", "quantization"):
        assert len(histories[stage]["val_virtual_teacher"]) > 1
        assert "teacher_agreement" not in histories[stage]
    assert not (run_dir / "targets").exists()
    notes = json.loads((run_dir / "report.json").read_text())["details"]["notes"]
    assert "Nothing was stored: there is no teacher." in notes


@pytest.mark.slow
def test_a_teacher_is_another_run(whole: tuple[Any, Path], tmp_path: Path) -> None:
    alone: Any = {"baseline": False, "export": td.Export(formats=())}
    record = "distillation/stage.json"
    without, again, taught = (tmp_path / name for name in ("without", "again", "taught"))
    result = run(without, **alone)
    run(again, **alone)
    run(taught, perceptron(keras, units=7, seed=1), **alone)
    prints = [
        json.loads((each / record).read_text())["fingerprint"] for each in (without, again, taught)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert any("does not show what its losses add" in each for each in result.report.advice)


@pytest.mark.slow  # a whole run
def test_the_student_comes_back_trained(whole: tuple[Any, Path]) -> None:
    inputs, labels, _ = examples(60)
    result, _ = whole
    weights = [np.array(weight) for weight in result.student.get_weights()]
    data = tf.data.Dataset.from_tensors((inputs, labels))
    ours = evaluate(lambda x: result.student(x), data)
    np.testing.assert_allclose(ours.logits, logits_of(weights, inputs), rtol=1e-4, atol=1e-5)
    assert hidden_of(weights, inputs).any()
    pruned = next(row for row in result.report.rows if row.name == "pruned")
    assert ours.accuracy == pruned.accuracy

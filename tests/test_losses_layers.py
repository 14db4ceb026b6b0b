"""The losses on layers in `fit`: alone and mixed, across replicas, on wrapped students, stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formulas import Array
from networks import convolutional, encoder, examples, perceptron, sentences

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import DataError, ModelError
from tfdistill.pruning import Pruning, plan_pruning, strip, wrap_for_pruning
from tfdistill.quantization import Quantization, quantize

IMAGES: tuple[losses.DistillationLoss, ...] = (
    losses.Hint("auto", weight=0.1),
    losses.AttentionTransfer("auto"),
    losses.NeuronSelectivity("auto"),
    losses.FSP(["relu_0", "relu_2"], ["relu_0", "relu_1"], weight=0.1),
    losses.SimilarityPreserving("relu_1", "relu_2", weight=10),
    losses.RelationalDistance("pooled", "pooled"),
    losses.RelationalAngle("pooled", "pooled"),
    losses.ProbabilisticTransfer("auto", weight=10),
    losses.CorrelationCongruence("auto"),
    losses.Contrastive("auto", weight=0.1),
    losses.WeightMSE("conv_0", "conv_0", weight=0.1),
)
TEXTS: tuple[losses.DistillationLoss, ...] = (
    losses.HiddenStates("mixed", "mixed"),
    losses.CosineHiddenStates("rest", "rest"),
    losses.AttentionScores("attention", "attention", weight=0.1),
    losses.EmbeddingStates("auto"),
)
KINDS = {"images": IMAGES, "texts": TEXTS}


def kinds(quick: str) -> Any:
    """Both, of which one is left to the slow tests."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(k, marks=[] if k == quick else pytest.mark.slow) for k in KINDS]
    )


def tamed(model: Any) -> Any:
    """With outputs of a size that trained models have."""
    model.set_weights([0.3 * weight for weight in model.get_weights()])
    return model


def student_of(kind: str) -> Any:
    made = convolutional(tf_keras, 3) if kind == "images" else encoder(tf_keras)
    return tamed(made)


def teacher_of(kind: str) -> Any:
    return tamed(convolutional(keras, 6) if kind == "images" else encoder(keras, seed=1, width=8))


def data_of(kind: str, count: int) -> tuple[Array, Array, Array]:
    _, labels, sample_weight = examples(count)
    if kind == "texts":
        return sentences(count), labels, sample_weight
    images = np.random.default_rng(3).normal(size=(count, 8, 8, 1)).astype(np.float32)
    return images, labels, sample_weight


def distilled(
    kind: str, taught: Any, count: int, **settings: Any
) -> tuple[dict[str, Any], list[Array], Any]:
    """Logs, weights with those of projections, and the Distiller, after training."""
    distiller = td.Distiller(student_of(kind), teacher_of(kind), taught, label_loss_weight=0.2)
    rng = np.random.default_rng(4)
    projections = distiller.projection_weights.items()
    distiller.set_projection_weights(
        {name: rng.normal(size=weight.shape, scale=0.4) for name, weight in projections}
    )
    distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", **settings)
    data = tf.data.Dataset.from_tensor_slices(data_of(kind, count)).batch(5)
    history = distiller.fit(data, verbose=0).history
    return history, [np.array(weight) for weight in distiller.get_weights()], distiller


def assert_equal(ours: Any, theirs: Any) -> None:
    for name, values in ours[0].items():
        np.testing.assert_allclose(values, theirs[0][name], rtol=1e-3, atol=1e-5, err_msg=name)
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


# --- replicas ---


@kinds(quick="texts")
@pytest.mark.slow
def test_two_replicas_are_one(kind: str, two_replicas: Any) -> None:
    """All losses in one: batches of 5, of which they get 3 and 2, and of 1, a replica without.

    Convolutions of oneDNN, which TensorFlow has on some CPUs, fail on an empty batch: of images the
    last batch is of 3.
    """
    count = 13 if kind == "images" else 11
    one = distilled(kind, KINDS[kind], count)
    with two_replicas.scope():
        several = distilled(kind, KINDS[kind], count)
    assert_equal(several, one)
    start = student_of(kind).get_weights()
    assert np.abs(one[1][0] - start[0]).max() > 1e-3


@pytest.mark.slow  # XLA compiles each loss
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_is_the_same(kind: str) -> None:
    assert_equal(
        distilled(kind, KINDS[kind], 12, jit_compile=True), distilled(kind, KINDS[kind], 12)
    )


# --- alone ---

QUICK = (losses.AttentionScores,)
EACH = [
    pytest.param(
        kind,
        loss,
        id=loss.name,
        marks=[] if isinstance(loss, QUICK) else pytest.mark.slow,  # all alike
    )
    for kind, taught in KINDS.items()
    for loss in taught
]


@pytest.mark.parametrize(("kind", "loss"), EACH)
def test_each_loss_is_learned_alone(kind: str, loss: Any) -> None:
    distiller = td.Distiller(student_of(kind), teacher_of(kind), [loss], label_loss_weight=0)
    distiller.compile(tf_keras.optimizers.Adam(0.01))
    inputs, *_ = data_of(kind, 12)
    before = distiller.evaluate(inputs, verbose=0, return_dict=True)[loss.name]
    distiller.fit(inputs, batch_size=12, epochs=30, verbose=0)
    after = distiller.evaluate(inputs, verbose=0, return_dict=True)[loss.name]
    assert after < 0.9 * before


# --- students in the stages of a pipeline ---


def logs_of(kind: str, student: Any, taught: Any, projections: Any) -> tuple[dict[str, Any], Any]:
    distiller = td.Distiller(student, teacher_of(kind), taught, label_loss_weight=0)
    distiller.compile(tf_keras.optimizers.SGD(0.01))
    distiller.set_projection_weights(projections)
    inputs, *_ = data_of(kind, 12)
    return distiller.evaluate(inputs, batch_size=12, verbose=0, return_dict=True), distiller


@kinds(quick="texts")
@pytest.mark.slow
def test_a_pruned_student_learns_the_same(kind: str) -> None:
    student = encoder(tf_keras, masked=False) if kind == "texts" else student_of(kind)
    named = td.Distiller(student, teacher_of(kind), KINDS[kind]).losses_taught
    settings = Pruning(sparsity=0.5)
    plan = plan_pruning(student, settings)
    assert len(plan.pruned) > 2
    wrapped = wrap_for_pruning(student, settings, plan, 2)
    before, distiller = logs_of(kind, student, named, {})
    projections = distiller.projection_weights
    assert projections
    after, pruning = logs_of(kind, wrapped, named, projections)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    inputs, *_ = data_of(kind, 12)
    step = tfmot.sparsity.keras.UpdatePruningStep()
    pruning.fit(inputs, batch_size=6, epochs=2, verbose=0, callbacks=[step])
    stripped = strip(wrapped)
    assert [weight.shape for weight in stripped.weights] == [w.shape for w in student.weights]
    assert np.mean(stripped.get_layer(plan.pruned[1]).get_weights()[0] == 0) > 0.4


@pytest.mark.slow  # as those that are pruned
@kinds(quick="texts")
def test_a_quantized_student_learns_nearly_the_same(kind: str) -> None:
    student = student_of(kind)
    named = td.Distiller(student, teacher_of(kind), KINDS[kind]).losses_taught
    before, distiller = logs_of(kind, student, named, {})
    quantized = quantize(student, Quantization(), sparse=False).model
    inputs, *_ = data_of(kind, 12)
    for _ in range(10):
        quantized(inputs, training=True)  # finds the ranges
    after, _ = logs_of(kind, quantized, named, distiller.projection_weights)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=0.1, abs=0.02), name


def test_a_stage_that_a_loss_does_not_fit_is_refused_before_training() -> None:
    student, teacher = encoder(tf_keras), encoder(keras, seed=1)
    taught = [losses.WeightMSE("attention", "attention")]
    distillation = td.Distillation(losses=taught)
    td.Pipeline(distillation=distillation, quantization=None).check(student, teacher)
    with pytest.raises(ModelError, match=r"must have weights of equal shapes\. Received: teacher"):
        td.Pipeline(distillation=distillation, quantization=td.Quantization(epochs=1)).check(
            student, teacher
        )


# --- what stays ---


@kinds(quick="texts")
def test_nothing_stays_in_the_student(kind: str, tmp_path: Path) -> None:
    student = student_of(kind)

    def facts() -> Any:
        return [
            (layer.name, len(layer._inbound_nodes), len(layer.weights), sorted(vars(layer)))
            for layer in student.layers
        ]

    student(data_of(kind, 2)[0])
    before = facts()
    distiller = td.Distiller(student, teacher_of(kind), KINDS[kind])
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    distiller.fit(*data_of(kind, 6)[:2], verbose=0)
    assert distiller.projection_weights
    assert facts() == before
    distiller.save(tmp_path / "student.keras")
    loaded = tf_keras.models.load_model(tmp_path / "student.keras")
    assert [w.shape for w in loaded.weights] == [w.shape for w in student.weights]


# --- stored targets ---


@kinds(quick="texts")
@pytest.mark.slow
def test_stored_features_teach_as_live_ones(kind: str, tmp_path: Path) -> None:
    taught = [loss for loss in KINDS[kind] if not isinstance(loss, losses.WeightMSE)]
    teacher, data = teacher_of(kind), data_of(kind, 12)[:2]
    distiller = td.Distiller(student_of(kind), teacher, taught)
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    layers = {layer for loss in distiller.losses_taught for layer in loss.teacher_layers}
    stored = td.store_targets(
        teacher, data, tmp_path, layers=sorted(layers), dtype="float32", verbose=0
    )
    live = distiller.evaluate(*data, batch_size=12, verbose=0, return_dict=True)
    ours = distiller.evaluate(stored.dataset(batch_size=12), verbose=0, return_dict=True)
    for name, value in live.items():
        assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    fewer = td.store_targets(teacher, data, tmp_path / "fewer", verbose=0)
    with pytest.raises(DataError, match=r"must hold stored features of every layer.*Pass layers="):
        distiller.evaluate(fewer.dataset(batch_size=12), verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda inputs: inputs[:, :3],
        lambda: td.teachers.Function(lambda inputs: np.asarray(inputs)[:, :3]),
    ],
    ids=["of tensors", "of arrays"],
)
def test_functions_have_no_layers(make: Callable[[], Any]) -> None:
    for loss in (losses.RelationalAngle("a", "hidden"), losses.WeightMSE("a", "hidden")):
        with pytest.raises(
            ModelError,
            match=r"`teacher` must be a Functional or Sequential model for losses that read its",
        ):
            td.Distiller(perceptron(tf_keras), make(), [loss])


@pytest.mark.slow
def test_auto_layers_are_named_once_for_all_stages(tmp_path: Path) -> None:
    images, labels, _ = data_of("images", 48)
    result = td.Pipeline(
        distillation=td.Distillation(losses=[*IMAGES[:3], IMAGES[7]], epochs=2),
        pruning=td.Pruning(sparsity=0.5, epochs=1),
        quantization=td.Quantization(epochs=1),
        export=td.Export(
            formats=("int8",), limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        ),
        baseline=False,
    ).run(
        student_of("images"),
        teacher_of("images"),
        (images, labels),
        test=(images, labels),
        run_dir=tmp_path,
        verbose=0,
    )
    notes = " ".join(result.report.details["notes"])
    assert "attention_transfer teaches by layers matched by resolution: relu_0 - relu_0" in notes
    assert len(result.student.weights) == len(student_of("images").weights)

"""The rows of the gallery."""

from __future__ import annotations

from typing import Any

import tfdistill as td
from benchmarks.gallery.tasks import (
    NUMBERS,
    ROWS,
    TWO_OUTPUTS,
    YES_OR_NO,
    Method,
    alone,
    middle_network,
)
from tfdistill._keras import tf_keras
from tfdistill.losses import (
    CWSM,
    DIST,
    FLSW,
    FSP,
    AttentionScores,
    AttentionTransfer,
    BinaryTargets,
    CenteredMSE,
    Contrastive,
    CorrelationCongruence,
    CosineHiddenStates,
    DecoupledKD,
    EarlyExits,
    EmbeddingStates,
    HardTargets,
    HiddenStates,
    Hint,
    LogitsMSE,
    NeuronSelectivity,
    ProbabilisticTransfer,
    ProbabilityMSE,
    RegressionTargets,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    SoftTargets,
    VirtualTeacher,
    WeightMSE,
)
from tfdistill.schedules import Cosine, Linear, Piecewise

_SOFT = SoftTargets(temperature=4.0, weight=0.9)


def _two_teachers(name: str, *losses: Any, **how: Any) -> Method:
    """A method taught by both teachers of images."""
    more = "".join(f", {setting}={value!r}" for setting, value in how.items())
    return _outputs(
        name,
        *losses,
        asks=("teacher", "second"),
        teacher=lambda *members: td.teachers.Ensemble(members, **how),
        says=f"teacher=Ensemble([teacher, second]{more})",
    )


def _outputs(name: str, *losses: Any, **more: Any) -> Method:
    """A method whose losses stand in the place of most of the label loss."""
    return Method(name, losses, 0.1, **more)


_ASSISTANT = _outputs("assistant", _SOFT, network=middle_network)
_GENERATION = alone("generation before")

# The first of each group is the student alone that the others are compared with.
GROUPS: tuple[tuple[Method, ...], ...] = (
    (
        alone("student alone"),
        _outputs("soft targets", _SOFT),
        _outputs("cross-entropy", SoftTargets(divergence="cross_entropy", weight=0.9)),
        _outputs("reverse KL", SoftTargets(1.0, divergence="reverse_kl", weight=0.9)),
        _outputs("Jensen-Shannon", SoftTargets(2.0, divergence="jensen_shannon", weight=0.9)),
        _outputs("standardized logits", SoftTargets(2.0, standardize=True, weight=9.0)),
        _outputs("temperature of each example, FLSW", SoftTargets(FLSW(), weight=0.9)),
        _outputs("temperature of each example, CWSM", SoftTargets(CWSM(), weight=0.9)),
        _outputs("falling temperature", SoftTargets(Linear(8, 2), weight=0.9)),
        Method(
            "teacher first, labels later",
            [SoftTargets(weight=Cosine(0.9, 0))],
            Cosine(0.1, 1),
        ),
        _outputs("hard targets", HardTargets(weight=0.9)),
        _outputs(
            "hard targets, sure ones, smoothed",
            HardTargets(threshold=0.95, label_smoothing=0.1, weight=0.9),
        ),
        _outputs("logits", LogitsMSE(weight=0.1)),
        _outputs("centered logits", CenteredMSE(weight=0.1)),
        _outputs("probabilities", ProbabilityMSE(weight=5.0)),
        Method("decoupled KD", [DecoupledKD()]),
        Method("DIST", [DIST()]),
        Method("hint", [Hint("auto", weight=0.5)]),
        Method("attention transfer", [AttentionTransfer("auto", weight=10.0)]),
        Method("neuron selectivity", [NeuronSelectivity("auto", weight=50.0)]),
        Method("FSP", [FSP("auto")]),
        Method("similarity preserving", [SimilarityPreserving("auto", weight=1000.0)]),
        Method("relational distance", [RelationalDistance("auto", weight=25.0)]),
        Method("relational angle", [RelationalAngle("auto", weight=50.0)]),
        Method("probabilistic transfer", [ProbabilisticTransfer("auto", weight=10.0)]),
        Method("correlation congruence", [CorrelationCongruence("auto", weight=10.0)]),
        Method("contrastive", [Contrastive("auto", weight=0.8)]),
        Method("weights", [WeightMSE("conv_1", "conv_1", weight=0.01)], taught="live"),
        _outputs("soft targets and attention", _SOFT, AttentionTransfer("auto", weight=10.0)),
        Method(
            "hints first, then outputs",
            [
                Hint("auto", weight=Piecewise([1, 0], [0.3])),
                SoftTargets(weight=Piecewise([0, 0.9], [0.3])),
            ],
            Piecewise([0, 0.1], [0.3]),
        ),
        _two_teachers("two teachers, mean of logits", _SOFT),
        _two_teachers("two teachers, the first twice", _SOFT, weights=[2, 1]),
        _two_teachers("two teachers, mean of probabilities", _SOFT, combine="probabilities"),
        _two_teachers("two teachers, by confidence", _SOFT, by_confidence=True),
        _two_teachers(
            "two teachers, a layer of one", _SOFT, Hint("second/relu_3", "relu_3", weight=0.5)
        ),
        _outputs(
            "teacher assistant",
            _SOFT,
            teacher=_ASSISTANT,
            taught="live",
            says="teacher: a larger student of the teacher",
        ),
        _outputs(
            "born again",
            _SOFT,
            teacher=_GENERATION,
            taught="live",
            says="teacher: such a student alone",
        ),
        Method(
            "mutual learning",
            [SoftTargets(1.0)],
            asks=(),
            students=2,
            taught="live",
            says="MutualDistiller of two such students",
        ),
        Method(
            "early exits",
            [EarlyExits(["relu_1", "relu_2"], weight=0.3)],
            asks=(),
            taught="-",
        ),
        Method(
            "moving average of the student",
            [ProbabilityMSE(weight=Linear(0, 1))],
            asks=(),
            teacher=lambda: td.teachers.MovingAverage(0.99),
            taught="live",
            says="teacher=MovingAverage(0.99)",
        ),
        _outputs(
            "adversarial",
            _SOFT,
            settings={"adversarial": td.Adversarial(8 / 255, bounds=(0, 1))},
        ),
        _outputs("mixup", _SOFT, settings={"mixing": td.Mixup(0.2)}, taught="live"),
        _outputs("cutmix", _SOFT, settings={"mixing": td.CutMix(1.0)}, taught="live"),
        _outputs("shifted and mirrored", _SOFT, augment=td.RandomShiftAndFlip(2)),
        Method("virtual teacher", [VirtualTeacher(weight=0.1)], 0.9, asks=(), taught="-"),
        alone(
            "label smoothing",
            loss=lambda: tf_keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=0.1
            ),
            says="CategoricalCrossentropy(label_smoothing=0.1)",
        ),
    ),
    (
        alone(
            "student alone, a tenth of the labels", labelled=0.1, says="fit(those that have labels)"
        ),
        _outputs(
            "soft targets, a tenth of the labels", _SOFT, labelled=0.1, settings={"unlabelled": 0}
        ),
        Method(
            "moving average, a tenth of the labels",
            [ProbabilityMSE(weight=Linear(0, 1))],
            labelled=0.1,
            settings={"unlabelled": 0},
            asks=(),
            teacher=lambda: td.teachers.MovingAverage(0.99),
            taught="live",
            says="teacher=MovingAverage(0.99)",
        ),
        Method(
            "soft targets, no labels",
            [SoftTargets()],
            0.0,
            labelled=0.1,
            settings={"unlabelled": 0},
        ),
    ),
    (
        alone("student alone, yes or no", task=YES_OR_NO, says="BinaryCrossentropy()"),
        _outputs("binary targets", BinaryTargets(2.0, weight=0.9), task=YES_OR_NO),
    ),
    (
        alone("student alone, numbers", task=NUMBERS, says="MeanSquaredError()"),
        _outputs("regression targets", RegressionTargets(weight=0.9), task=NUMBERS),
        _outputs(
            "regression targets, bounded", RegressionTargets(bounded=True, weight=0.9), task=NUMBERS
        ),
    ),
    (
        alone("student alone, two outputs", task=TWO_OUTPUTS),
        Method(
            "soft targets, two outputs",
            {"logits": [_SOFT]},
            {"logits": 0.1, "kind": 1.0},
            task=TWO_OUTPUTS,
            taught="live",
        ),
    ),
    (
        alone("student alone, rows", task=ROWS),
        _outputs("soft targets, rows", _SOFT, task=ROWS),
        Method("hidden states", [HiddenStates("states_2", "states_1")], task=ROWS),
        Method("directions of hidden states", [CosineHiddenStates("auto")], task=ROWS),
        Method("attention scores", [AttentionScores("attention_2", "attention_1")], task=ROWS),
        Method("embedding states", [EmbeddingStates("projection", "projection")], task=ROWS),
    ),
)

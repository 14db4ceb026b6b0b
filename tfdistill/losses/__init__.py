"""What the student is taught.

Each loss is a frozen dataclass of settings over one pure function of
`tfdistill.losses.functional`, where formula, shapes and paper stand. A Distiller takes a list
of them; its total loss adds `weight` times each one's weighted mean over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdistill.errors import SettingError
from tfdistill.losses import functional
from tfdistill.losses.base import DistillationLoss, Outputs, Shapes, nearest
from tfdistill.losses.exits import EarlyExits
from tfdistill.losses.features import FSP, AttentionTransfer, Hint, NeuronSelectivity
from tfdistill.losses.labelled import DecoupledKD, RegressionTargets, VirtualTeacher
from tfdistill.losses.outputs import (
    DIST,
    BinaryTargets,
    CenteredMSE,
    HardTargets,
    LogitsMSE,
    ProbabilityMSE,
    SoftTargets,
)
from tfdistill.losses.relations import (
    Contrastive,
    CorrelationCongruence,
    ProbabilisticTransfer,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
)
from tfdistill.losses.sequences import (
    AttentionScores,
    CosineHiddenStates,
    EmbeddingStates,
    HiddenStates,
)
from tfdistill.losses.temperatures import CWSM, FLSW
from tfdistill.losses.weights import WeightMSE

__all__ = [
    "CWSM",
    "DIST",
    "FLSW",
    "FSP",
    "AttentionScores",
    "AttentionTransfer",
    "BinaryTargets",
    "CenteredMSE",
    "Contrastive",
    "CorrelationCongruence",
    "CosineHiddenStates",
    "DecoupledKD",
    "DistillationLoss",
    "EarlyExits",
    "EmbeddingStates",
    "HardTargets",
    "HiddenStates",
    "Hint",
    "LogitsMSE",
    "NeuronSelectivity",
    "Outputs",
    "ProbabilisticTransfer",
    "ProbabilityMSE",
    "RegressionTargets",
    "RelationalAngle",
    "RelationalDistance",
    "Shapes",
    "SimilarityPreserving",
    "SoftTargets",
    "VirtualTeacher",
    "WeightMSE",
    "deserialize",
    "functional",
    "serialize",
]

_LOSSES = {
    loss.__name__: loss
    for loss in (
        SoftTargets,
        HardTargets,
        LogitsMSE,
        CenteredMSE,
        ProbabilityMSE,
        DecoupledKD,
        DIST,
        BinaryTargets,
        RegressionTargets,
        VirtualTeacher,
        Hint,
        EarlyExits,
        AttentionTransfer,
        NeuronSelectivity,
        FSP,
        SimilarityPreserving,
        RelationalDistance,
        RelationalAngle,
        ProbabilisticTransfer,
        CorrelationCongruence,
        Contrastive,
        HiddenStates,
        CosineHiddenStates,
        AttentionScores,
        EmbeddingStates,
        WeightMSE,
    )
}


def serialize(loss: DistillationLoss) -> dict[str, Any]:
    """A loss as plain values that JSON can hold.

    Returns:
        `{"class_name": ..., "config": ...}`.

    Example:
        >>> from tfdistill import losses
        >>> losses.serialize(losses.LogitsMSE())
        {'class_name': 'LogitsMSE', 'config': {'weight': 1.0, 'name': 'logits_mse'}}
    """
    return {"class_name": type(loss).__name__, "config": loss.get_config()}


def deserialize(serialized: Mapping[str, Any]) -> DistillationLoss:
    """The loss that `serialize` described.

    Args:
        serialized: `{"class_name": ..., "config": ...}`, the class one of this library's.

    Raises:
        SettingError: The class or a setting is unknown, or outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.deserialize({"class_name": "LogitsMSE", "config": {"weight": 2.0}})
        LogitsMSE(weight=2.0, name='logits_mse')
    """
    if not isinstance(serialized, Mapping) or set(serialized) != {"class_name", "config"}:
        raise SettingError(
            "`serialized` must be a dict with the keys 'class_name' and 'config'.",
            received=repr(serialized),
            hint="Pass what `serialize` returned.",
        )
    class_name = serialized["class_name"]
    if class_name not in _LOSSES:
        raise SettingError(
            "`class_name` must be a loss of `tfdistill.losses`.",
            received=repr(class_name),
            hint=nearest(class_name, _LOSSES),
        )
    return _LOSSES[class_name].from_config(serialized["config"])

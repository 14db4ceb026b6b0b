"""Losses on the layers of models of texts and other sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill.errors import ModelError
from tfdistill.losses import functional
from tfdistill.losses.layers import (
    SCORES,
    LayerLoss,
    LayerOutput,
    Shape,
    require_same_sizes,
    require_width,
)

__all__ = ["AttentionScores", "CosineHiddenStates", "EmbeddingStates", "HiddenStates"]


class _StatesLoss(LayerLoss):
    """A loss of states `[batch, ..., width]`, with the mask that the student's carry."""

    _projects = True

    def _could_read(self, layer: LayerOutput) -> bool:
        return len(layer.shape) == 2 and layer.shape[-1] is not None

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        require_same_sizes(teacher, student, received)
        require_width(teacher, student, received)


@dataclass(frozen=True)
class HiddenStates(_StatesLoss):
    """Teaches a layer of the student the states of a layer of the teacher, step by step.

    Formula, shapes and paper: `tfdistill.losses.functional.hidden_states`. Steps that the
    Keras mask of the student's layer leaves out are not counted. Where the widths differ, a linear
    map without bias brings the student's to the teacher's; it is trained with the student and is
    no part of it. TinyBERT adds up the pairs; this is their mean.

    Args:
        teacher_layer: Name of the teacher's layer, `[batch, ..., width]`; several names for
            several pairs; or "auto" for the last layer `[batch, steps, width]` of each number of
            steps that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.HiddenStates(["encoder_3", "encoder_6"], ["encoder_1", "encoder_2"]).name
        'hidden_states'
    """

    name: str = "hidden_states"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.hidden_states(teacher, student, mask)


@dataclass(frozen=True)
class CosineHiddenStates(_StatesLoss):
    """Teaches a layer of the student the direction of the states of a layer of the teacher.

    Formula, shapes and paper: `tfdistill.losses.functional.cosine_hidden_states`. Steps that the
    Keras mask of the student's layer leaves out are not counted. Where the widths differ, a linear
    map without bias brings the student's to the teacher's; it is trained with the student and is
    no part of it.

    Args:
        teacher_layer: Name of the teacher's layer, `[batch, ..., width]`; several names for
            several pairs, of whose values the mean is taken; or "auto" for the last layer
            `[batch, steps, width]` of each number of steps that both models have, which
            `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.CosineHiddenStates("encoder_6", "encoder_3").name
        'cosine_hidden_states'
    """

    name: str = "cosine_hidden_states"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.cosine_hidden_states(teacher, student, mask)


@dataclass(frozen=True)
class EmbeddingStates(HiddenStates):
    """Teaches the student's embedding of a text what the teacher's is.

    `HiddenStates` of embedding layers (TinyBERT's equation 9), with its formula, projection and
    mask.

    Args:
        teacher_layer: Name of the teacher's layer, an Embedding or what adds several of them up;
            several names for several pairs; or "auto" for the last `Embedding` of each number of
            steps that both models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.EmbeddingStates("auto").name
        'embedding_states'
    """

    name: str = "embedding_states"

    def _could_read(self, layer: LayerOutput) -> bool:
        return layer.kind == "Embedding" and super()._could_read(layer)


@dataclass(frozen=True)
class AttentionScores(LayerLoss):
    """Teaches which steps the student's attention layer looks at, head by head.

    Formula, shapes and paper: `tfdistill.losses.functional.attention_scores`. The layers are
    `MultiHeadAttention` of either Keras, with as many heads each and on sequences of one length;
    their scores before the softmax are read, which costs the student two products more. Pairs of
    steps that the student's masks leave out are not counted. TinyBERT adds up the pairs of layers;
    this is their mean.

    Args:
        teacher_layer: Name of the teacher's layer; several names for several pairs; or "auto" for
            the last `MultiHeadAttention` of each number of steps that both models have, which
            `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.AttentionScores("attention_5", "attention_2").teacher_layers
        ('attention_5:scores',)
    """

    name: str = "attention_scores"
    _reads = SCORES

    def _could_read(self, layer: LayerOutput) -> bool:
        return layer.kind == "MultiHeadAttention" and len(layer.shape) == 2

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        if teacher[0] != student[0]:
            raise ModelError(
                "`teacher_layer` and `student_layer` must have as many heads each.",
                received=received,
                hint="Give the student's layer the teacher's num_heads; key_dim may be smaller.",
            )
        require_same_sizes((*teacher, None), (*student, None), received)

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.attention_scores(teacher, student, mask)

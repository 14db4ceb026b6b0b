"""Losses whose layers are "auto", matched to the layers of two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdistill.losses import DistillationLoss
from tfdistill.losses.layers import LayerLoss
from tfdistill.outputs import ModelView
from tfdistill.teachers import as_given

__all__ = ["match_layers"]


def match_layers(
    losses: Sequence[DistillationLoss], student: Any, teacher: Any
) -> tuple[tuple[DistillationLoss, ...], tuple[str, ...]]:
    """Names the layers of losses that leave it to the library.

    Args:
        losses: What the student is to learn from.
        student: A functional model.
        teacher: As `Distiller` takes it.

    Returns:
        The losses, with names in the place of "auto"; and for each that had it a sentence that
        says which layers it has now.

    Raises:
        ModelError: The teacher's layers are not known, or no two layers match.
    """
    if not any(isinstance(loss, LayerLoss) and loss.is_auto for loss in losses):
        return tuple(losses), ()
    ours = ModelView(student, role="student", several=True).layers()
    theirs = as_given(teacher).layers()
    named: list[DistillationLoss] = []
    notes = []
    for loss in losses:
        if isinstance(loss, LayerLoss) and loss.is_auto:
            loss = loss.matched(theirs, ours)
            pairs = ", ".join(f"{one} - {other}" for one, other in loss.pairs)
            notes.append(f"{loss.name} teaches by layers matched by resolution: {pairs}.")
        named.append(loss)
    return tuple(named), tuple(notes)

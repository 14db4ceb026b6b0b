"""What the outputs of a student are to be taught, as a user says it of each or of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfdistill.errors import SettingError, TfdistillError
from tfdistill.labels import check_unlabelled
from tfdistill.losses import DistillationLoss
from tfdistill.losses.base import (
    check_label_loss_weight,
    check_list_of_losses,
    check_losses,
    nearest,
    refuse_all_zero,
)
from tfdistill.schedules import Schedule
from tfdistill.terms import refuse_unknown_labels

__all__ = ["Plan", "by_output", "check_plans", "planned"]


@dataclass(frozen=True)
class Plan:
    """What one output is to be taught.

    Attributes:
        losses: Distillation losses.
        label_loss_weight: Weight of the label loss beside them.
        unlabelled: What stands for a label that is missing, or `None`.
    """

    losses: Sequence[DistillationLoss]
    label_loss_weight: float | Schedule
    unlabelled: float | None


def check_plans(losses: Any, label_loss_weight: Any, unlabelled: Any) -> tuple[Any, Any, Any]:
    """Checks what the outputs of a student are to learn from, and makes plain values of it.

    Args:
        losses: A list of distillation losses; or one for each output, by its name.
        label_loss_weight: Weight of the label loss beside them; or one for each, by name.
        unlabelled: What stands for the label of a row that has none; or for each, by name.

    Returns:
        All three.

    Raises:
        SettingError: One of them is not so, all weights are zero, or two losses share a name.
    """
    if isinstance(unlabelled, Mapping):
        unlabelled = {name: check_unlabelled(each) for name, each in unlabelled.items()}
    else:
        unlabelled = check_unlabelled(unlabelled)
    if not isinstance(losses, Mapping) and not isinstance(label_loss_weight, Mapping):
        return *check_losses(losses, label_loss_weight), unlabelled
    if not isinstance(losses, Mapping):
        if check_list_of_losses(losses):
            raise SettingError(
                "`losses` must be by the names of the outputs, as `label_loss_weight` is.",
                received=repr(losses),
                hint="Write losses={name: [td.losses.SoftTargets()]}.",
            )
        losses = {}
    taught = {name: check_list_of_losses(each) for name, each in losses.items()}
    if isinstance(label_loss_weight, Mapping):
        weight: Any = {n: check_label_loss_weight(each) for n, each in label_loss_weight.items()}
    else:
        weight = check_label_loss_weight(label_loss_weight)
    weights = [*weight.values()] if isinstance(weight, dict) else [weight]
    weights += [loss.weight for each in taught.values() for loss in each]
    refuse_all_zero(weights, losses=losses, label_loss_weight=label_loss_weight)
    return taught, weight, unlabelled


def planned(
    losses: Any, label_loss_weight: Any, unlabelled: Any, names: Sequence[str]
) -> dict[str, Plan]:
    """What each output is to be taught.

    Args:
        losses: As `check_plans` gives it; so the others, too.
        label_loss_weight: One for each; or one for all.
        unlabelled: One for each; or one for all.
        names: Of the student's outputs.

    Raises:
        SettingError: Something is of an output that there is not, or not of any where there are
            several.
    """
    if not isinstance(losses, Mapping):
        if losses and len(names) > 1:
            raise SettingError(
                "`losses` must be by the names of the outputs, of which the student has several.",
                received=repr(list(losses)),
                hint=f"Write losses={{{names[0]!r}: [...], ...}}. It has: {', '.join(names)}.",
            )
        losses = {names[0]: losses}
    taught = by_output(losses, names, "losses")
    weights = by_output(label_loss_weight, names, "label_loss_weight", absent=0.0)
    marks = by_output(unlabelled, names, "unlabelled")
    plans = {name: Plan(taught[name] or (), weights[name], marks[name]) for name in names}
    for plan in plans.values():
        if plan.unlabelled is not None:
            refuse_unknown_labels(plan.losses)
    return plans


def by_output(
    given: Any,
    names: Sequence[str],
    what: str,
    *,
    absent: Any = None,
    error: type[TfdistillError] = SettingError,
) -> dict[str, Any]:
    """What is given for each output: by its name, or in their order; or the same for all.

    Args:
        given: A dictionary, of which some may be missing; a list or tuple; or something else.
        names: Of the outputs.
        what: What it is called in errors.
        absent: In the place of what is missing.
        error: Class of the errors.

    Raises:
        TfdistillError: There is a name that no output has, or are not as many.
    """
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise error(
                    f"`{what}` must be by names of the student's outputs.",
                    received=repr(name),
                    hint=nearest(name, names),
                )
        return {name: given.get(name, absent) for name in names}
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise error(
                f"`{what}` must be of as many parts as the student has outputs.",
                received=f"{len(given)} for {', '.join(names)}",
            )
        return dict(zip(names, given, strict=True))
    return dict.fromkeys(names, given)

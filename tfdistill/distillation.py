"""Settings of the distillation stage, and of what is taught in every stage."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfdistill._keras import tf_keras
from tfdistill.adversarial import Adversarial, check_adversarial
from tfdistill.errors import SettingError
from tfdistill.losses import DistillationLoss, SoftTargets
from tfdistill.losses.layers import reads_weights
from tfdistill.mixing import Mixing, check_mixing
from tfdistill.plans import check_plans
from tfdistill.schedules import Schedule, is_zero
from tfdistill.settings import check_training, is_number, settings, whole_number
from tfdistill.terms import refuse_unknown_labels

__all__ = ["Distillation", "optimizer_class"]


@settings
class Distillation:
    """Settings of the distillation stage, and of what the teacher teaches in every stage.

    Args:
        losses: Distillation losses, each with its weight. Of a student with several outputs those
            of each, by its name, as for `Distiller`.
        label_loss_weight: Weight of the label loss beside them; 0 needs no labels. It and the
            losses' weights and temperatures may be schedules, see `td.schedules`: over each stage
            anew. One for all outputs; or by name.
        label_smoothing: How much of each label the label loss spreads over all classes, in [0, 1).
        epochs: Epochs of the distillation stage.
        learning_rate: Peak learning rate, decayed to 0 along a cosine.
        optimizer: Name of a Keras optimizer, for all training stages.
        store_targets: Whether the teacher is asked about each training example once, before the
            first stage, or at each step. "auto" stores where that is right and pays, and says
            why where it does not.
        views: With an augmentation given to `Pipeline.run`, how many views of each example are
            stored; epochs walk through them.
        unlabelled: What stands for the label of a training example that has none, see `Distiller`:
            such examples learn from the teacher only. The student alone learns from the others.
            One for all outputs; or by name.
        adversarial: A `td.Adversarial`, to train taught students on adversarial examples, too.
        mixing: A `td.Mixup` or `td.CutMix`, to train taught students on mixed examples, about which
            the teacher is asked at each step.

    Raises:
        SettingError: A setting is out of its range.

    Example:
        >>> td.Distillation(losses=[td.losses.SoftTargets(temperature=4.0, weight=0.9)],
        ...                 label_loss_weight=0.1, epochs=20)
    """

    losses: Sequence[DistillationLoss] | Mapping[str, Sequence[DistillationLoss]] = (
        SoftTargets(temperature=4.0, weight=0.9),
    )
    label_loss_weight: float | Schedule | Mapping[str, float | Schedule] = 0.1
    label_smoothing: float = 0.0
    epochs: int = 20
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    store_targets: bool | Literal["auto"] = "auto"
    views: int = 8
    unlabelled: float | Mapping[str, float] | None = None
    adversarial: Adversarial | None = None
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        """Checks what does not need the models."""
        if self.store_targets not in (True, False, "auto"):
            raise SettingError(
                '`store_targets` must be True, False or "auto".', received=self.store_targets
            )
        object.__setattr__(self, "views", whole_number("views", self.views, minimum=1))
        losses, weight, unlabelled = check_plans(
            self.losses, self.label_loss_weight, self.unlabelled
        )
        object.__setattr__(self, "losses", losses)
        object.__setattr__(self, "label_loss_weight", weight)
        object.__setattr__(self, "unlabelled", unlabelled)
        object.__setattr__(self, "label_smoothing", _check_smoothing(self))
        check_adversarial(self.adversarial)
        every = self.every_loss
        check_mixing(self.mixing, every)
        if self.mixing is not None and self.store_targets is True:
            raise SettingError(
                '`store_targets` must be False or "auto" for `mixing`.',
                received=f"store_targets=True and {self.mixing}",
                hint="No two epochs have the same mixed examples: the teacher is asked about each.",
            )
        if self.unlabelled is not None and not isinstance(self.unlabelled, Mapping):
            refuse_unknown_labels(every)
        weights = [layer for loss in every for layer in loss.teacher_layers if reads_weights(layer)]
        if self.store_targets is True and weights:
            raise SettingError(
                '`store_targets` must be False or "auto" for losses of the teacher\'s weights.',
                received=f"store_targets=True and {', '.join(weights)}",
                hint="Of a teacher that is not asked, no weights are known.",
            )
        check_training(self)
        optimizer_class(self.optimizer)

    @property
    def every_loss(self) -> tuple[DistillationLoss, ...]:
        """The losses of all outputs."""
        by_output = self.losses.values() if isinstance(self.losses, Mapping) else [self.losses]
        return tuple(loss for losses in by_output for loss in losses)


def _check_smoothing(asked: Distillation) -> float:
    value, weights = asked.label_smoothing, asked.label_loss_weight
    if not is_number(value) or not 0 <= value < 1:
        raise SettingError(
            "`label_smoothing` must be a number in [0, 1).",
            received=repr(value),
            hint="0.1 is usual.",
        )
    by_output = weights.values() if isinstance(weights, Mapping) else [weights]
    if value > 0 and all(map(is_zero, by_output)):
        raise SettingError(
            "`label_smoothing` must be 0 without a label loss.",
            received=f"label_smoothing={value}, label_loss_weight=0",
            hint="td.losses.HardTargets(label_smoothing=...) smooths the teacher's answers.",
        )
    return float(value)


def optimizer_class(name: str) -> Any:
    """The class of a Keras optimizer by its name.

    Looked up, not made: making one starts TensorFlow, and devices can no longer be set up.

    Raises:
        SettingError: There is none of that name.
    """
    base = tf_keras.optimizers.Optimizer
    classes = {
        key.lower(): value
        for key, value in vars(tf_keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if str(name).lower() not in classes:
        near = difflib.get_close_matches(str(name).lower(), classes, n=3, cutoff=0.4)
        raise SettingError(
            "`optimizer` must be the name of a Keras optimizer.",
            received=name,
            hint=f"Did you mean {' or '.join(near)}?" if near else f"There are {[*classes]}.",
        )
    return classes[str(name).lower()]

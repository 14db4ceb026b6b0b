"""What every distillation loss is, and what a Distiller tells it about the two models."""

from __future__ import annotations

import abc
import copy
import dataclasses
import difflib
import inspect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from tfdistill import schedules
from tfdistill.errors import SettingError
from tfdistill.losses.temperatures import CWSM, FLSW, AdaptiveTemperature
from tfdistill.schedules import Cosine, Linear, Piecewise, Schedule
from tfdistill.settings import is_number

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OWN_LOGS", "DistillationLoss", "Outputs", "Shapes", "Taught", "check_losses"]

OWN_LOGS = ("loss", "label_loss", "teacher_agreement")  # a Distiller's, beside one for each loss

_CHANGING: dict[str, Any] = {k.__name__: k for k in (Linear, Cosine, Piecewise, FLSW, CWSM)}


class Outputs(NamedTuple):
    """What one model said about one batch.

    Of a model with several outputs `logits`, `softened` and `mask` are by the output's name; losses
    are given what is `of` one of them.

    Attributes:
        logits: `[batch, ..., classes]`, any floating type; the axes between may be time steps.
            `()` where there is no teacher.
        features: Layer name to that layer's output, `[batch, ...]`; `name:scores` to an attention
            layer's scores, `[batch, heads, queries, keys]`; `name:weights` to a tuple of a layer's
            weights. Holds what a loss of the Distiller names.
        softened: Of a stored teacher whose logits were not all kept: `repr` of a temperature to
            logits `[batch, classes]` that are right at that one. Else empty.
        mask: Of a student whose logits are `[batch, steps, classes]` and carry a Keras mask: bool
            `[batch, steps]`, True where a step counts. Else `()`: all of them.
        masks: The same of features that carry one, by layer name.
    """

    logits: Any
    features: Mapping[str, Any]
    softened: Mapping[str, Any] = {}  # never written to; tf.nest knows dicts
    mask: Any = ()  # not None, which tf.nest takes for a value
    masks: Mapping[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, where there are several; else none."""
        return _names(self.logits)

    def of(self, output: str) -> Outputs:
        """What was said of one output of several; all, where there is one."""
        if not self.names:
            return self
        mask = self.mask[output] if isinstance(self.mask, Mapping) else self.mask
        softened = self.softened.get(output, {})
        return self._replace(logits=self.logits[output], softened=softened, mask=mask)

    def logits_at(self, temperature: Any) -> Any:
        """Logits `[batch, ..., classes]` whose softmax at `temperature` is the model's.

        Raises:
            SettingError: They were stored for other temperatures only.
        """
        if not self.softened:
            return self.logits
        if not is_number(temperature):
            raise SettingError(
                "`temperature` of a loss must be one number, for top-k targets.",
                received=f"one that changes, stored: {', '.join(self.softened)}",
                hint="Store with top_k=None, or give a temperature that they were stored at.",
            )
        if repr(float(temperature)) not in self.softened:
            raise SettingError(
                "`temperature` of a loss must be one that the top-k targets were stored at.",
                received=f"{temperature}, stored: {', '.join(self.softened)}",
                hint="Name it in `temperatures` of td.store_targets, or store with top_k=None.",
            )
        return self.softened[repr(float(temperature))]

    def all_logits(self) -> Any:
        """`logits`, where all of them are the model's own.

        Raises:
            SettingError: Only the largest ones were stored.
        """
        if self.softened:
            raise SettingError(
                "`losses` must need no more than the top-k targets that were stored.",
                received="a loss of all logits",
                hint="Store with top_k=None, or use losses of softened targets.",
            )
        return self.logits

    def only(self, layers: Iterable[str]) -> Outputs:
        """The same with the features of these layers alone."""
        layers = [*layers]
        return self._replace(
            features={layer: self.features[layer] for layer in layers},
            masks={layer: self.masks[layer] for layer in layers if layer in self.masks},
        )


def _names(by_output: Any) -> tuple[str, ...]:
    return tuple(by_output) if isinstance(by_output, Mapping) else ()


class Taught(NamedTuple):
    """Inputs of a batch together with what the teacher says about them.

    Attributes:
        inputs: What the student takes, `[batch, ...]`.
        teacher: The teacher's `Outputs`, stored before.
    """

    inputs: Any
    teacher: Outputs


class Shapes(NamedTuple):
    """The shapes of one model's `Outputs`, without the batch axis; None is an unknown size.

    Of a layer's weights, which have none, it is a tuple of their shapes. Of several outputs the
    shapes of the logits are by name, and what they end in: "linear", "softmax" or "sigmoid"; `None`
    where that is not known.
    """

    logits: Any
    features: Mapping[str, tuple[int | None, ...]]
    endings: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, where there are several; else none."""
        return _names(self.logits)

    def of(self, output: str) -> Shapes:
        """Those of one output of several; all, where there is one."""
        if not self.names:
            return self
        ending = self.endings[output] if isinstance(self.endings, Mapping) else self.endings
        return self._replace(logits=self.logits[output], endings=ending)


Meaning = Literal["classes", "labels", "numbers", "anything"]


class DistillationLoss(abc.ABC):
    """One thing that the teacher teaches the student.

    A subclass is a frozen dataclass with the fields `weight` and `name`. It holds settings only,
    no variables and no layers, so one object may serve several Distillers. Two losses with the
    same settings are equal.

    Attributes:
        weight: Factor of this loss in the total loss, finite and >= 0; or a schedule of it.
        name: Name of this loss in the logs.
        meaning: What it takes the units of the output for: "classes" of which one is true,
            "labels" that may be true together, "numbers", or "anything".

    Example:
        >>> from dataclasses import dataclass
        >>> from tfdistill import losses
        >>> from tfdistill._keras import tf
        >>> @dataclass(frozen=True)
        ... class AbsoluteLogits(losses.DistillationLoss):
        ...     weight: float = 1.0
        ...     name: str = "absolute_logits"
        ...     def call(self, teacher, student, projection=None):
        ...         return tf.reduce_mean(tf.abs(teacher.logits - student.logits), axis=-1)
        >>> AbsoluteLogits(weight=2)
        AbsoluteLogits(weight=2.0, name='absolute_logits')
    """

    weight: float | Schedule
    name: str
    meaning: ClassVar[Meaning] = "anything"

    def __post_init__(self) -> None:
        """Checks the settings that all losses share; a subclass with more calls it, too.

        Raises:
            SettingError: `weight` is no finite number >= 0, or `name` is no text.
        """
        hint = "0 logs the loss without teaching it."
        self._set_number("weight", ">=", hint=hint, scheduled=True)
        self._check_text("name", hint="It names the loss in the logs.")

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """What this loss reads of the teacher's layers, as `Outputs.features` names it."""
        return ()

    @property
    def student_layers(self) -> tuple[str, ...]:
        """What this loss reads of the student's layers, as `Outputs.features` names it."""
        return ()

    @property
    def needs_teacher(self) -> bool:
        """Whether `call` reads what the teacher says.

        Where no loss does, `Distiller` and `Pipeline.run` take `None` for the teacher.
        """
        return True

    @property
    def needs_labels(self) -> bool:
        """Whether `call` takes a fourth argument, `labels`.

        They are given as the data set has them, see `tfdistill.losses.shared.class_numbers`. Data
        without labels are refused before the first step.
        """
        return False

    @property
    def across_batch(self) -> bool:
        """Whether an example's value depends on the others of its batch.

        `call` is then given the batches of all replicas as one, so that several replicas compute
        what one does. It must return a value for each example all the same: the means of the
        losses and the sample weights are taken of these.
        """
        return False

    def build(self, teacher: Shapes, student: Shapes) -> Any:
        """Refuses models that do not fit, and makes what has to be trained beside the student.

        Args:
            teacher: Shapes of what the teacher says.
            student: Shapes of what the student says.

        Returns:
            A built `tf_keras` layer, owned by the caller, who hands it back in `call`; or None.

        Raises:
            ModelError: The two models do not fit together for this loss.
        """
        return None

    @abc.abstractmethod
    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, before `weight`.

        Args:
            teacher: What the teacher said about the batch.
            student: What the student said about it.
            projection: What `build` returned.

        Returns:
            `[batch]`, float32: for logits with time steps the mean over those that count.
        """

    def at(self, step: Any) -> Self:
        """The same loss with what its schedules are after so many steps of the optimizer.

        Args:
            step: Whole number, or an integer tensor; of a tensor the settings are tensors.

        Raises:
            SettingError: A schedule does not know its steps.
        """
        scheduled = {n: v.at(step) for n, v in vars(self).items() if isinstance(v, Schedule)}
        if not scheduled:
            return self
        now = copy.copy(self)  # not checked again: a tensor's value is not known yet
        for setting, value in scheduled.items():
            object.__setattr__(now, setting, value)
        return now

    def over(self, steps: int) -> Self:
        """The same loss whose schedules without steps of their own have these."""
        scheduled = {n: v.over(steps) for n, v in vars(self).items() if isinstance(v, Schedule)}
        made: Any = self
        return dataclasses.replace(made, **scheduled) if scheduled else self

    def get_config(self) -> dict[str, Any]:
        """The settings, as plain Python values that JSON can hold."""
        return {
            name: {"class_name": type(value).__name__, "config": value.get_config()}
            if hasattr(value, "get_config")
            else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The loss that has these settings.

        Args:
            config: What `get_config` returned. Settings left out take their default.

        Raises:
            SettingError: A setting is unknown, missing, or outside what it may be.
        """
        settings = inspect.signature(cls).parameters
        for setting in config:
            if setting not in settings:
                raise SettingError(
                    f"`config` must hold settings of {cls.__name__} only.",
                    received=repr(setting),
                    hint=nearest(setting, settings),
                )
        required = [s for s, p in settings.items() if p.default is inspect.Parameter.empty]
        if not set(required) <= set(config):
            raise SettingError(
                f"`config` must hold the settings {required} of {cls.__name__}.",
                received=[*config],
                hint="Add what is missing; the others have defaults.",
            )
        return cls(**{name: _deserialized(value) for name, value in config.items()})

    def _set_number(
        self,
        setting: str,
        bound: Literal[">", ">="],
        *,
        hint: str,
        below: float = math.inf,
        scheduled: bool = False,
    ) -> None:
        """Checks a field against 0 and makes a plain float of it: 4 and 4.0 are one setting.

        Where `scheduled`, it may be a schedule, all values of which are checked.
        """
        value = getattr(self, setting)
        if isinstance(value, Schedule) and not scheduled:
            raise SettingError(
                f"`{setting}` must be a number.",
                received=repr(value),
                hint="Weights and temperatures may be schedules.",
            )
        if isinstance(value, AdaptiveTemperature):
            raise SettingError(
                f"`{setting}` must be the same for all examples of a batch.",
                received=repr(value),
                hint="Only the temperature of SoftTargets may be FLSW or CWSM.",
            )
        number = schedules.least_of(value)
        if not (0 < number < below or (number == 0 and bound == ">=")):
            limit = "finite" if math.isinf(below) else f"< {below:g}"
            raise SettingError(
                f"`{setting}` must be {bound} 0 and {limit}.", received=repr(value), hint=hint
            )
        if not isinstance(value, Schedule):
            object.__setattr__(self, setting, number)

    def _check_choice(self, setting: str, choices: Iterable[str]) -> None:
        value = getattr(self, setting)
        if value not in (choices := [*choices]):
            raise SettingError(
                f"`{setting}` must be one of {', '.join(map(repr, choices))}.",
                received=repr(value),
                hint=nearest(value, choices),
            )

    def _check_switch(self, setting: str) -> None:
        value = getattr(self, setting)
        if not isinstance(value, bool):
            raise SettingError(f"`{setting}` must be True or False.", received=repr(value))

    def _check_text(self, setting: str, *, hint: str) -> None:
        value = getattr(self, setting)
        if not isinstance(value, str) or not value:
            raise SettingError(
                f"`{setting}` must be a non-empty str.", received=repr(value), hint=hint
            )


def check_losses(
    losses: Any, label_loss_weight: Any
) -> tuple[tuple[DistillationLoss, ...], float | Schedule]:
    """Checks what a student is to learn from, and makes plain values of it.

    Args:
        losses: A list of distillation losses.
        label_loss_weight: Weight of the label loss beside them, finite and >= 0; or a schedule.

    Returns:
        Both, for a frozen dataclass to keep.

    Raises:
        SettingError: One of them is not so, all weights are zero, or two losses share a name.
    """
    checked, weight = check_list_of_losses(losses), check_label_loss_weight(label_loss_weight)
    refuse_all_zero(
        [weight, *(loss.weight for loss in checked)],
        losses=list(losses),
        label_loss_weight=label_loss_weight,
    )
    return checked, weight


def check_list_of_losses(losses: Any) -> tuple[DistillationLoss, ...]:
    """Checks the distillation losses of one output.

    Raises:
        SettingError: They are no list of them, or two share a name.
    """
    if not isinstance(losses, Sequence) or not all(
        isinstance(loss, DistillationLoss) for loss in losses
    ):
        raise SettingError(
            "`losses` must be a list of distillation losses, such as [td.losses.SoftTargets()].",
            received=repr(losses),
            hint="The label loss has a weight of its own, `label_loss_weight`.",
        )
    counts = Counter([*OWN_LOGS, *(loss.name for loss in losses)])
    for name, count in counts.items():
        if count > 1:
            raise SettingError(
                "`losses` must have different names, and none of 'loss', 'label_loss' and "
                "'teacher_agreement'.",
                received=f"the name {name!r} {count} times",
                hint="Pass name=... to one of them.",
            )
    return tuple(losses)


def check_label_loss_weight(weight: Any) -> float | Schedule:
    """Checks the weight of the label loss, and makes a plain float of it.

    Raises:
        SettingError: It is not finite or < 0.
    """
    if not 0 <= schedules.least_of(weight) < math.inf:
        raise SettingError("`label_loss_weight` must be a finite number >= 0.", received=weight)
    return weight if isinstance(weight, Schedule) else float(weight)


def refuse_all_zero(weights: Iterable[Any], *, losses: Any, label_loss_weight: Any) -> None:
    """Refuses a student that learns nothing.

    Args:
        weights: All there are.
        losses: As the user gave them; so the other.
        label_loss_weight: For the message.

    Raises:
        SettingError: All are zero.
    """
    if all(map(schedules.is_zero, weights)):
        raise SettingError(
            "`label_loss_weight` and the losses' weights must not all be zero.",
            received=f"label_loss_weight={label_loss_weight} and losses={losses}",
            hint="Give at least one of them a weight > 0.",
        )


def _deserialized(value: Any) -> Any:
    """What `get_config` made a dict of; other values as they are."""
    if not isinstance(value, Mapping) or value.get("class_name") not in _CHANGING:
        return value
    return _CHANGING[value["class_name"]](**value["config"])


def nearest(received: object, known: Iterable[str]) -> str:
    """A hint that shows which known word was probably meant; all of them where none is near."""
    known = [*known]
    close = difflib.get_close_matches(str(received), known)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Known: {', '.join(known)}."


def shown(shape: tuple[int | None, ...]) -> str:
    """A shape without its batch axis as text: `[batch, 28, 28, 1]`, an unknown size as `?`."""
    return f"[{', '.join(['batch', *('?' if size is None else str(size) for size in shape)])}]"

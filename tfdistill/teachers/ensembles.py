"""Several teachers as one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfdistill._keras import tf
from tfdistill.errors import ModelError, SettingError
from tfdistill.heads import unique_names
from tfdistill.losses import Outputs, Shapes
from tfdistill.losses.shared import with_two_classes
from tfdistill.settings import is_number
from tfdistill.teachers.base import (
    Asked,
    GivenTeacher,
    Shape,
    Teacher,
    checked_name,
    checked_switch,
    frozen,
)
from tfdistill.teachers.door import as_given

_COMBINE = ("logits", "probabilities")
_LEAST_ENTROPY = 1e-6  # that of members that are sure beyond doubt


class Ensemble(GivenTeacher):
    r"""Several teachers whose weighted mean teaches.

    Of the logits, :math:`\sum_i w_i z_i`; or of the probabilities,

    .. math:: \log \sum_i w_i \, \mathrm{softmax}(z_i)

    whose softmax is exactly that mean (for one output unit: the log-odds of the mean of the
    sigmoids). Computed in float32, stably for logits of any size.

    With `by_confidence` a member counts the more in an example the surer it is: with the entropies
    of the members' distributions plus a millionth, :math:`H_i`, its weight there is

    .. math:: w_i \, (1 - H_i / \textstyle\sum_j H_j)

    divided by the sum of these. Of two members with equal `weights` each counts in inverse
    proportion to its entropy. Where all are sure beyond doubt, `weights` alone count.

    A feature loss names a layer of a member as "member/layer", or by the plain name that only one
    member has.

    Args:
        members: Two or more teachers of any kind, with the same inputs and classes.
        weights: Of each member, finite and > 0; divided by their sum. Equal by default.
        combine: "logits" or "probabilities".
        by_confidence: Whether the weights depend on how sure the members are of each example.
        name: What it is called in another ensemble.

    Attributes:
        names: Names of the members: their own, made unique by a number where they are not.
        weights: Of each member, summing to 1.

    Raises:
        ModelError: A member is no teacher.
        SettingError: A setting is outside what it may be.

    Example:
        >>> teacher = td.teachers.Ensemble(
        ...     [resnet, td.teachers.LiteRT("vision.tflite")], weights=[2, 1],
        ...     combine="probabilities")
        >>> teacher.names
        ('resnet50', 'vision')

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015),
        arXiv:1503.02531, section 1: an ensemble's arithmetic mean (of the probabilities) or
        geometric one (of the logits) as soft targets. Kwon et al., "Adaptive Knowledge Distillation
        Based on Entropy" (2020), for weights by entropy; their form is that of the code of Zhang,
        Chen and Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation" (2022),
        arXiv:2201.00007, which compares with it.
    """

    def __init__(
        self,
        members: Sequence[Any],
        weights: Sequence[float] | None = None,
        combine: Literal["logits", "probabilities"] = "logits",
        *,
        by_confidence: bool = False,
        name: str | None = None,
    ) -> None:
        if not isinstance(members, (list, tuple)) or len(members) < 2:
            raise SettingError(
                "`members` must be a list of two teachers or more.",
                received=f"{len(members)} of them"
                if isinstance(members, (list, tuple))
                else type(members).__name__,
                hint="A single teacher is given as it is.",
            )
        if combine not in _COMBINE:
            raise SettingError(
                "`combine` must be 'logits' or 'probabilities'.", received=repr(combine)
            )
        self.members = tuple(as_given(member) for member in members)
        self.names = unique_names(member.name for member in self.members)
        self.weights = _normalised(weights, len(members))
        self.combine = combine
        self.by_confidence = checked_switch("by_confidence", by_confidence)
        self.name = checked_name(name, "ensemble")

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        meant = {layer: self._meant(layer) for layer in layers}
        bound = []
        for name, member in zip(self.names, self.members, strict=True):
            prefix = f"{name}/"
            own = {
                layer: full.removeprefix(prefix)
                for layer, full in meant.items()
                if full.startswith(prefix)
            }
            bound.append((member.bind(asked, tuple(dict.fromkeys(own.values()))), own))
        self.input_shapes(asked)  # refuses members that do not fit each other
        return EnsembleTeacher(bound, self.names, self.weights, self.combine, self.by_confidence)

    def identity(self, asked: Asked) -> list[Any]:
        """The identities of the members, their weights, and how they are combined."""
        members = [member.identity(asked) for member in self.members]
        return ["ensemble", self.combine, self.by_confidence, list(self.weights), members]

    def input_shapes(self, asked: Asked) -> list[Shape] | None:
        """Each size as the members that fix it do.

        Raises:
            ModelError: They fix different ones.
        """
        known = {
            name: shapes
            for name, member in zip(self.names, self.members, strict=True)
            if (shapes := member.input_shapes(asked)) is not None
        }
        if not known:
            return None
        together = []
        for each in zip(*known.values(), strict=True):  # the shapes of one input
            sizes = [set(axis) - {None} for axis in zip(*each, strict=True)]
            if any(len(fixed) > 1 for fixed in sizes[1:]):
                raise ModelError(
                    "The members of an ensemble must take inputs of the same size.",
                    received=", ".join(f"{name} {shapes}" for name, shapes in known.items()),
                    hint="Resize inside a member.",
                )
            together.append(tuple(next(iter(fixed), None) for fixed in sizes))
        return together

    def find(self, layer: str) -> list[str]:
        """See `GivenTeacher`."""
        found = []
        for name, member in zip(self.names, self.members, strict=True):
            spellings = [layer]
            if layer.startswith(f"{name}/"):
                spellings.append(layer.removeprefix(f"{name}/"))
            found += [f"{name}/{full}" for each in spellings for full in member.find(each)]
        return list(dict.fromkeys(found))

    def layer_names(self) -> list[str]:
        """See `GivenTeacher`."""
        return [
            f"{name}/{layer}"
            for name, member in zip(self.names, self.members, strict=True)
            for layer in member.layer_names()
        ]

    def keras_models(self) -> list[Any]:
        """See `GivenTeacher`."""
        return [model for member in self.members for model in member.keras_models()]

    def count_params(self) -> int | None:
        """See `GivenTeacher`."""
        counts = [member.count_params() for member in self.members]
        return None if None in counts else sum(count for count in counts if count is not None)

    def _meant(self, layer: str) -> str:
        found = self.find(layer)
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(
                f"`{layer}` must be a layer of one member of the ensemble only.",
                received=f"{layer!r}, which may be any of {', '.join(found)}",
                hint="Name it as member/layer.",
            )
        full_names = self.layer_names()
        by_ending = {full.rpartition("/")[2]: full for full in reversed(full_names)}
        near = difflib.get_close_matches(layer, full_names, n=3, cutoff=0.5)
        for ending in difflib.get_close_matches(layer.rpartition("/")[2], by_ending, n=3):
            near.append(by_ending[ending])
        shown = ", ".join(dict.fromkeys(near)) or "none is near"
        raise ModelError(
            f"`{layer}` must be a layer of a member of the ensemble.",
            received=repr(layer),
            hint=f"The nearest names are: {shown}. The members are: {', '.join(self.names)}.",
        )


class EnsembleTeacher:
    """Several teachers that are asked one after the other.

    Args:
        members: Each with the layers that it is asked for: the name that a loss uses to its own.
        names: Their names.
        weights: Their weights, summing to 1.
        combine: "logits" or "probabilities".
        by_confidence: Whether surer members count more.

    Raises:
        ModelError: They have different classes.
    """

    def __init__(
        self,
        members: Sequence[tuple[Teacher, dict[str, str]]],
        names: Sequence[str],
        weights: Sequence[float],
        combine: str,
        by_confidence: bool,
    ) -> None:
        self._members = tuple(members)
        self._weights = tuple(weights)
        self._combine = combine
        self._by_confidence = by_confidence
        logits = {name: m.shapes.logits for name, (m, _) in zip(names, members, strict=True)}
        first, *others = logits.values()
        if any(other != first for other in others):
            raise ModelError(
                "The members of an ensemble must have the same classes.",
                received=", ".join(f"{name} {shape}" for name, shape in logits.items()),
                hint="Cut a member's logits to the classes that all have, in the same order.",
            )
        features = {
            layer: member.shapes.features[own]
            for member, layers in members
            for layer, own in layers.items()
        }
        endings = {name: m.shapes.endings for name, (m, _) in zip(names, members, strict=True)}
        outputs = Shapes(first, {}).names
        found = {output: _common_ending(endings, output) for output in outputs or ("",)}
        if combine == "probabilities" or by_confidence:
            classes = Shapes(first, {})
            found = {o: _ending_of_classes(e, classes.of(o).logits[-1]) for o, e in found.items()}
        self.shapes = Shapes(first, features, found if outputs else found[""])
        notes = [f"{n}: {m.note}" for n, (m, _) in zip(names, members, strict=True) if m.note]
        self.note = " ".join(notes)
        self.outside = tuple(calls for member, _ in members for calls in member.outside)
        self.followers = tuple(each for member, _ in members for each in member.followers)

    def __call__(self, inputs: Any) -> Outputs:
        """See `Teacher`."""
        said = [(member(inputs), layers) for member, layers in self._members]
        features = {
            layer: outputs.features[own]
            for outputs, layers in said
            for layer, own in layers.items()
        }
        answers = [outputs for outputs, _ in said]
        logits = {
            name: self._mean([each.of(name) for each in answers]) for name in answers[0].names
        }
        return frozen(Outputs(logits or self._mean(answers), features))

    def _mean(self, said: Sequence[Outputs]) -> tf.Tensor:
        """What the members say of one output, as one."""
        logits = [tf.cast(outputs.logits, tf.float32) for outputs in said]
        weights: Sequence[Any] = self._weights
        if self._by_confidence:
            weights = weights_by_confidence(logits, self._weights)
        mean = mean_of_logits if self._combine == "logits" else mean_of_probabilities
        return mean(logits, weights)


def weights_by_confidence(logits: Sequence[tf.Tensor], weights: Sequence[float]) -> list[tf.Tensor]:
    """Weights that are the larger in an example the less entropy a member's distribution has.

    Args:
        logits: float32 `[batch, classes]` each; one unit is binary.
        weights: As many, summing to 1.

    Returns:
        `[batch, 1]` each, summing to 1.
    """

    def entropy(values: tf.Tensor) -> tf.Tensor:
        logs = tf.nn.log_softmax(with_two_classes(values))
        return _LEAST_ENTROPY - tf.reduce_sum(tf.exp(logs) * logs, axis=-1, keepdims=True)

    entropies = [entropy(values) for values in logits]
    total = tf.add_n(entropies)
    shares = [
        weight * (1.0 - each / total) for weight, each in zip(weights, entropies, strict=True)
    ]
    return [share / tf.add_n(shares) for share in shares]


def mean_of_logits(logits: Sequence[tf.Tensor], weights: Sequence[Any]) -> tf.Tensor:
    """The weighted mean.

    Args:
        logits: float32 `[batch, classes]` each.
        weights: As many, summing to 1: numbers, or `[batch, 1]`.
    """
    return tf.add_n([weight * values for weight, values in zip(weights, logits, strict=True)])


def mean_of_probabilities(logits: Sequence[tf.Tensor], weights: Sequence[Any]) -> tf.Tensor:
    """Logits whose softmax (of one unit: sigmoid) is the weighted mean of the members' own.

    Args:
        logits: float32 `[batch, classes]` each.
        weights: As many, summing to 1: numbers, or `[batch, 1]`.
    """

    def log_mean(logs: Sequence[tf.Tensor]) -> tf.Tensor:
        weighted = [
            tf.math.log(weight) + values for weight, values in zip(weights, logs, strict=True)
        ]
        return tf.reduce_logsumexp(tf.stack(weighted), axis=0)

    if logits[0].shape[-1] == 1:
        yes = log_mean([tf.math.log_sigmoid(values) for values in logits])
        return yes - log_mean([tf.math.log_sigmoid(-values) for values in logits])
    return log_mean([tf.nn.log_softmax(values) for values in logits])


def _normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count or not all(is_number(w) and 0 < w < math.inf for w in given):
        raise SettingError(
            f"`weights` must be {count} finite numbers > 0, one a member.",
            received=given,
            hint="Leave a member out that is not to count.",
        )
    total = math.fsum(float(weight) for weight in given)
    return tuple(float(weight) / total for weight in given)


def _common_ending(endings: Mapping[str, Any], output: str = "") -> str | None:
    """What the members that have an activation end in; of several outputs at one of them.

    Args:
        endings: By the name of the member, as in `Shapes`.
        output: Name of the output.

    Raises:
        ModelError: They end in different ones.
    """
    found = {
        name: ending[output] if isinstance(ending, Mapping) else ending
        for name, ending in endings.items()
    }
    marked = {name: ending for name, ending in found.items() if ending in ("softmax", "sigmoid")}
    if len(set(marked.values())) > 1:
        raise ModelError(
            "The members of an ensemble must all be of classes, or all of labels.",
            received=", ".join(f"{name} ends in {ending}" for name, ending in marked.items()),
            hint="Of a softmax's classes one is true, of sigmoids any number: their logits have "
            "no common mean.",
        )
    return next(iter(marked.values()), next(iter(found.values())))


def _ending_of_classes(ending: str | None, units: int | None) -> str | None:
    """What a mean that takes softmaxes of the members' logits ends in.

    Args:
        ending: What the members end in.
        units: How many there are.

    Raises:
        ModelError: The members end in several sigmoids.
    """
    if units == 1:
        return "sigmoid"
    if ending == "sigmoid":
        raise ModelError(
            "The members of an ensemble of probabilities, or by confidence, must be of classes.",
            received=f"members that end in sigmoids of {units} units",
            hint="Both are of a softmax, of whose classes one is true. Leave "
            "combine='probabilities' and by_confidence=True out.",
        )
    return "softmax"

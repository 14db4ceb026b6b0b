"""Two examples mixed into one, which teacher and student both see."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.special import betaincinv

from tfdistill._keras import tf
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.labels import Labels
from tfdistill.losses import DistillationLoss
from tfdistill.losses.base import Taught, shown
from tfdistill.settings import is_number, settings, whole_number

__all__ = ["CutMix", "Mixed", "Mixing", "Mixup", "check_mixing"]

_GENERATOR = "philox"  # the same numbers on every kind of device
_QUANTILES = 16_384  # of the shares' distribution, each as likely


class Mixed(NamedTuple):
    """A batch each example of which is made of two.

    Attributes:
        inputs: In the structure that they were given in.
        labels: Of both examples, by output; of some outputs there may be none.
        sample_weight: By output, `[batch]`, the mean of the two examples' with their shares; or
            `None`.
    """

    inputs: Any
    labels: dict[str, Labels]
    sample_weight: dict[str, Any]


class Mixing(abc.ABC):
    """How the examples of a batch are mixed with each other; a subclass is a settings class."""

    alpha: float
    seed: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not is_number(self.alpha) or not 0 < self.alpha < math.inf:
            raise SettingError(
                "`alpha` must be > 0 and finite.",
                received=repr(self.alpha),
                hint="1 makes every share as likely; the nearer to 0, the less is mixed.",
            )
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "seed", whole_number("seed", self.seed, minimum=0))

    def __call__(
        self,
        inputs: Any,
        labels: Mapping[str, Labels],
        sample_weight: Mapping[str, Any],
        step: Any,
    ) -> Mixed:
        """Mixes each example of a batch with another one, or itself.

        Args:
            inputs: One tensor of floats `[batch, ...]`, in any structure.
            labels: Of the batch, by output, where it has any.
            sample_weight: Weights of its examples, by output, or `None`.
            step: Steps that the optimizer has taken; with the seed it decides on all that is
                random, so that a resumed training goes on as it would have.

        Raises:
            DataError: The inputs are several or no floats, or come with stored targets.
        """
        values = _one_of_floats(inputs)
        seed = tf.stack([tf.cast(self.seed, tf.int64), tf.cast(step, tf.int64)])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.random.fold_in(seed, tf.cast(replica, tf.int64), alg=_GENERATOR)
        of_order, of_share, of_place = _split(seed, 3)
        keys = tf.random.stateless_uniform(
            tf.shape(values)[:1], of_order, None, None, tf.int32, alg=_GENERATOR
        )
        order = tf.argsort(keys)  # XLA knows no shuffle
        share = _beta(self.alpha, of_share)
        mixed, share = self._mixed(values, tf.gather(values, order), share, of_place)

        def mean(weights: Any) -> Any:
            if weights is None:
                return None
            own = tf.cast(weights, tf.float32)
            return share * own + (1.0 - share) * tf.gather(own, order)

        return Mixed(
            tf.nest.pack_sequence_as(inputs, [mixed]),
            {name: each.mixed(order, share) for name, each in labels.items()},
            {name: mean(each) for name, each in sample_weight.items()},
        )

    def with_seed(self, seed: int) -> Mixing:
        """The same with another seed."""
        return dataclasses.replace(cast(Any, self), seed=seed)

    def check_student(self, student: Any) -> None:
        """Refuses a student whose inputs cannot be mixed.

        Raises:
            ModelError: It has several, or one that is no numbers with a fraction.
        """
        if len(student.inputs) != 1 or not tf.as_dtype(student.inputs[0].dtype).is_floating:
            kinds = ", ".join(tf.as_dtype(each.dtype).name for each in student.inputs)
            raise ModelError(
                "`student` must have one input, of floats, for `mixing`.",
                received=f"inputs {kinds}",
                hint="Texts cannot be mixed. Let a student of images take them as floats.",
            )

    @abc.abstractmethod
    def _mixed(self, own: Any, others: Any, share: Any, seed: Any) -> tuple[Any, Any]:
        """What is made of each example and the other one, and how much of it is its own."""


@settings
class Mixup(Mixing):
    r"""Teaches on convex combinations of two examples, of which the teacher is asked, too.

    .. math:: \tilde x = \lambda x_i + (1 - \lambda) x_j, \quad
       \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    with one :math:`\lambda` and one permutation `j` for each batch (of each replica). The label
    loss is :math:`\lambda L(y_i) + (1 - \lambda) L(y_j)`, which for cross-entropies is that of the
    mixed labels, and counts nothing for a missing label; sample weights are mixed as the inputs
    are. Metrics such as the accuracy compare with `y_i` alone. Nothing is mixed in `evaluate`.

    Args:
        alpha: :math:`\alpha`, finite, > 0. 1 makes every share as likely.
        seed: Of all that is random. In a pipeline its own seed decides, too.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> import tfdistill as td
        >>> td.Mixup(alpha=1)
        Mixup(alpha=1.0, seed=0)

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), arXiv:1710.09412,
        section 2; for teacher and student alike Beyer et al., "Knowledge distillation: A good
        teacher is patient and consistent" (2022), arXiv:2106.05237.
    """

    alpha: float = 0.2
    seed: int = 0

    def _mixed(self, own: Any, others: Any, share: Any, seed: Any) -> tuple[Any, Any]:
        factor = tf.cast(share, own.dtype)
        return factor * own + (1 - factor) * others, share


@settings
class CutMix(Mixing):
    r"""Teaches on images with a box of another image, of which the teacher is asked, too.

    The box has the sides :math:`\sqrt{1 - \lambda}` of the image's, with
    :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, and its centre anywhere: what lies outside
    of the image is cut off, and :math:`\lambda` is what is left of the image itself. One box, one
    :math:`\lambda` and one permutation for each batch (of each replica). All else is as with
    `Mixup`.

    Args:
        alpha: :math:`\alpha`, finite, > 0. 1 makes every share as likely.
        seed: Of all that is random. In a pipeline its own seed decides, too.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> import tfdistill as td
        >>> td.CutMix()
        CutMix(alpha=1.0, seed=0)

    Source:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features" (2019), arXiv:1905.04899, section 3; every batch is mixed. Rounding to pixels as
        in the authors' code.
    """

    alpha: float = 1.0
    seed: int = 0

    def check_student(self, student: Any) -> None:
        """Refuses a student that takes no images `[batch, height, width, channels]`.

        Raises:
            ModelError: It does not.
        """
        super().check_student(student)
        shape = student.inputs[0].shape
        if len(shape) != 4:
            raise ModelError(
                "`student` must take images [batch, height, width, channels] for td.CutMix.",
                received=f"inputs {shown(tuple(shape[1:]))}",
                hint="td.Mixup mixes inputs of any shape.",
            )

    def _mixed(self, own: Any, others: Any, share: Any, seed: Any) -> tuple[Any, Any]:
        height, width = tf.unstack(tf.shape(own)[1:3])
        of_row, of_column = _split(seed, 2)
        rows = _covered(_whole_below(height, of_row), height, share)
        inside = rows[:, tf.newaxis] & _covered(_whole_below(width, of_column), width, share)
        left = 1.0 - tf.reduce_mean(tf.cast(inside, tf.float32))
        # Keras takes images without their one channel, too.
        inside = tf.reshape(inside, [1, height, width, *[1] * (own.shape.rank - 3)])
        return tf.where(inside, others, own), left


def check_mixing(mixing: Any, losses: Sequence[DistillationLoss]) -> Mixing | None:
    """What was given as `mixing`.

    Args:
        mixing: A `Mixup`, a `CutMix` or `None`.
        losses: What the student is to learn from.

    Raises:
        SettingError: It is something else, or a loss reads labels.
    """
    if mixing is None:
        return None
    if not isinstance(mixing, Mixing):
        raise SettingError(
            "`mixing` must be a td.Mixup, a td.CutMix or None.", received=repr(mixing)
        )
    reading = [loss.name for loss in losses if loss.needs_labels]
    if reading:
        raise SettingError(
            "`mixing` must be None for losses that read one label of each example.",
            received=f"{type(mixing).__name__} and {', '.join(reading)}",
            hint="A mixed example has two. The label loss takes both: use that, or another loss.",
        )
    return mixing


def _one_of_floats(inputs: Any) -> Any:
    """The one tensor of the inputs."""
    if isinstance(inputs, Taught):
        raise DataError(  # in Python, while the step is traced, as below
            "`data` must hold no stored targets for `mixing`: the teacher has never seen what is "
            "mixed.",
            received="a batch with stored targets",
            hint="Fit on the data themselves; the teacher is then asked at each step.",
        )
    flat = tf.nest.flatten(inputs)
    if len(flat) != 1 or not flat[0].dtype.is_floating:
        raise DataError(
            "`data` must have one input, of floats, for `mixing`.",
            received=f"inputs {', '.join(each.dtype.name for each in flat)}",
            hint="Cast it, or leave `mixing` out.",
        )
    return flat[0]


def _beta(alpha: float, seed: Any) -> Any:
    """One number of the beta distribution with both parameters `alpha`, float32."""
    # TensorFlow's gamma variates, of which it could be made, are none that XLA can draw.
    centres = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    quantiles = tf.constant(betaincinv(alpha, alpha, centres), tf.float32)
    return tf.gather(quantiles, _whole_below(_QUANTILES, seed))


def _whole_below(limit: Any, seed: Any) -> Any:
    """A whole number from 0 on, all equally likely."""
    return tf.random.stateless_uniform([], seed, maxval=limit, dtype=tf.int32, alg=_GENERATOR)


def _split(seed: Any, parts: int) -> list[Any]:
    return tf.unstack(tf.random.split(seed, parts, alg=_GENERATOR))


def _covered(centre: Any, size: Any, share: Any) -> Any:
    """Which of `size` pixels in a row a box covers that leaves `share` of the image, bool."""
    cut = tf.cast(tf.cast(size, tf.float32) * tf.sqrt(1.0 - share), tf.int32) // 2
    places = tf.range(size)
    return (places >= centre - cut) & (places < centre + cut)

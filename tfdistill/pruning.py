"""Magnitude pruning with tfmot, as settings and as functions on tf_keras models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras, tfmot, tfmot_internal
from tfdistill.errors import SettingError, SparsityError
from tfdistill.outputs import find_layer
from tfdistill.settings import check_training, settings

prune_registry = tfmot_internal("sparsity.keras.prune_registry")
pruning_impl = tfmot_internal("sparsity.keras.pruning_impl")
PruneLowMagnitude = tfmot_internal("sparsity.keras.pruning_wrapper").PruneLowMagnitude

PATTERNS = ("unstructured", "2:4", "block")


@settings
class Pruning:
    """Settings of the pruning stage.

    The share of zeros grows from 0 to `sparsity` along a cubic curve (Zhu & Gupta 2017,
    https://arxiv.org/abs/1710.01878, eq. 1) during the first `ramp` of the stage's steps; the
    rest of the steps lets the remaining weights recover.

    Args:
        sparsity: Share of zeros in every pruned kernel, in (0, 1). The pattern "2:4" means 0.5.
        epochs: Epochs of training while pruning.
        pattern: "unstructured"; "2:4", two zeros in every four weights along the input
            channels, which some accelerators run faster; or "block", whole blocks of
            `block_size` in the kernel seen as a matrix `[inputs, outputs]`.
        block_size: Height and width of a block, for the pattern "block".
        skip: Names of layers to leave dense.
        ramp: Share of the steps in which sparsity grows, in (0, 1].
        learning_rate: Peak learning rate, decayed to 0 along a cosine.

    Raises:
        SettingError: A setting is out of its range.

    Example:
        >>> td.Pruning(sparsity=0.75, epochs=5, skip=["logits"])
    """

    sparsity: float = 0.75
    epochs: int = 5
    pattern: str = "unstructured"
    block_size: tuple[int, int] = (4, 1)
    skip: tuple[str, ...] = ()
    ramp: float = 0.6
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Checks every field."""
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "block_size", tuple(self.block_size))
        if not 0 < self.sparsity < 1:
            raise SettingError("`sparsity` must be in (0, 1).", received=self.sparsity)
        check_training(self.epochs, self.learning_rate)
        if self.pattern not in PATTERNS:
            raise SettingError(f"`pattern` must be one of {PATTERNS}.", received=self.pattern)
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise SettingError(
                '`sparsity` must be 0.5 for the pattern "2:4".', received=self.sparsity
            )
        if len(self.block_size) != 2 or min(self.block_size) < 1:
            raise SettingError(
                "`block_size` must be two whole numbers >= 1.", received=self.block_size
            )
        if not 0 < self.ramp <= 1:
            raise SettingError("`ramp` must be in (0, 1].", received=self.ramp)


@dataclass(frozen=True)
class KernelZeros:
    """How many weights of one kernel are zero."""

    zeros: int
    size: int

    @property
    def share(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.size


@dataclass(frozen=True)
class PruningPlan:
    """Which layers are pruned, and why the others are not."""

    pruned: tuple[str, ...]
    left_dense: Mapping[str, str] = field(default_factory=dict)


def plan_pruning(model: Any, pruning: Pruning) -> PruningPlan:
    """Decides for every layer with weights whether it is pruned.

    Args:
        model: Functional tf_keras model.
        pruning: The stage's settings.

    Raises:
        ModelError: `skip` names a layer that the model does not have.
        SettingError: No layer is left to prune.
    """
    for name in pruning.skip:
        find_layer(model, name, role="student")
    pruned, dense = [], {}
    for layer in model.layers:
        if all(len(weight.shape) < 2 for weight in layer.trainable_weights):
            continue  # biases and scales are never pruned
        if layer.name in pruning.skip:
            dense[layer.name] = "named in `skip`"
        elif not _prunable_weights(layer):
            dense[layer.name] = f"{type(layer).__name__} has no kernel that tfmot prunes"
        elif pruning.pattern != "unstructured" and any(
            len(weight.shape) not in (2, 4) for weight in _prunable_weights(layer)
        ):
            dense[layer.name] = f"the pattern {pruning.pattern!r} is for kernels of rank 2 and 4"
        elif pruning.pattern == "2:4" and any(
            weight.shape[-2] < 4 for weight in _prunable_weights(layer)
        ):
            dense[layer.name] = "fewer than four input channels hold no group of four"
        else:
            pruned.append(layer.name)
    if not pruned:
        raise SettingError(
            "`pruning` must leave at least one layer to prune.",
            received=f"skip={list(pruning.skip)} and a model with {', '.join(dense) or 'none'}",
        )
    return PruningPlan(tuple(pruned), dense)


def _prunable_weights(layer: Any) -> list[Any]:
    registry = prune_registry.PruneRegistry
    if not registry.supports(layer):
        return []
    had = "get_prunable_weights" in vars(layer)
    try:
        return list(registry.make_prunable(layer).get_prunable_weights())
    finally:
        if not had:  # make_prunable marks the layer; the user's model stays as it is
            del layer.get_prunable_weights


class _BlockPruning(pruning_impl.Pruning):
    """tfmot's block pruning, for convolutions too: a kernel is the matrix [inputs, outputs]."""

    def _validate_block(self) -> None:
        """Every rank is fine here."""

    def _maybe_update_block_mask(self, weights: tf.Tensor) -> Any:
        matrix = tf.reshape(weights, [-1, weights.shape[-1]])
        threshold, mask = super()._maybe_update_block_mask(matrix)
        return threshold, tf.reshape(mask, weights.shape)


class _PruneBlocks(PruneLowMagnitude):  # type: ignore[misc]
    def build(self, input_shape: Any) -> None:
        block_size, self.block_size = self.block_size, (1, 1)  # tfmot refuses rank 4 otherwise
        super().build(input_shape)
        self.block_size = block_size
        self.pruning_obj = _BlockPruning(
            training_step_fn=lambda: self.pruning_step,
            pruning_vars=self.pruning_vars,
            pruning_schedule=self.pruning_schedule,
            block_size=block_size,
            block_pooling_type=self.block_pooling_type,
        )


def wrap_for_pruning(model: Any, pruning: Pruning, plan: PruningPlan, steps: int) -> Any:
    """A copy of the model whose planned layers prune themselves while it is trained.

    Train it with `tfmot.sparsity.keras.UpdatePruningStep` among the callbacks, then `strip` it.

    Args:
        model: Functional tf_keras model; stays as it is.
        pruning: The stage's settings.
        plan: From `plan_pruning`.
        steps: Training steps of the whole stage.
    """
    ramp_steps = max(1, round(steps * pruning.ramp))
    frequency = max(1, ramp_steps // 100)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=pruning.sparsity,
        begin_step=0,
        # a multiple of the frequency: else the last update, the one at full sparsity, is missed
        end_step=ramp_steps // frequency * frequency,
        frequency=frequency,
    )
    options: dict[str, Any] = {"pruning_schedule": schedule}
    wrapper = PruneLowMagnitude
    if pruning.pattern == "2:4":
        options["sparsity_m_by_n"] = (2, 4)
    elif pruning.pattern == "block":
        options["block_size"] = pruning.block_size
        wrapper = _PruneBlocks

    def wrap(layer: Any) -> Any:
        return wrapper(layer, **options) if layer.name in plan.pruned else layer

    return tf_keras.models.clone_model(copy_model(model), clone_function=wrap)


def copy_model(model: Any) -> Any:
    """A functional tf_keras model's copy with its own layers and the same weights."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def strip(model: Any) -> Any:
    """The pruned model without tfmot's wrappers; zeros are ordinary weights."""
    for layer in model.layers:
        if isinstance(layer, PruneLowMagnitude):
            layer.pruning_obj.weight_mask_op()
    return tfmot.sparsity.keras.strip_pruning(model)


def kernel_zeros(model: Any) -> dict[str, KernelZeros]:
    """Zeros of every kernel that could be pruned, by layer name.

    Args:
        model: Functional tf_keras model without pruning wrappers.
    """
    counts = {}
    for layer in model.layers:
        weights = [np.asarray(weight) for weight in _prunable_weights(layer)]
        if weights:
            zeros = sum(int(np.count_nonzero(weight == 0)) for weight in weights)
            counts[layer.name] = KernelZeros(zeros, sum(weight.size for weight in weights))
    return counts


def require_sparsity(model: Any, pruning: Pruning, plan: PruningPlan) -> None:
    """Counts the zeros of every pruned kernel.

    Args:
        model: The pruned model, stripped.
        pruning: What was asked for.
        plan: Which layers were pruned.

    Raises:
        SparsityError: A pruned kernel has fewer zeros than asked for; the message names it.
    """
    counts = kernel_zeros(model)
    short = {n: counts[n] for n in plan.pruned if not _sparse_enough(counts[n], pruning)}
    if short:
        raise SparsityError(
            f"`sparsity` must reach {pruning.sparsity} in every pruned kernel.",
            received=", ".join(f"{n}: {c.zeros} of {c.size} zero" for n, c in short.items()),
            hint="Train the pruning stage for more steps, or put these layers into `skip`.",
        )


def _sparse_enough(count: KernelZeros, pruning: Pruning) -> bool:
    wanted = count.size * pruning.sparsity
    if pruning.pattern == "unstructured":
        return count.zeros >= math.floor(wanted)
    # A kernel's edge may hold part of a block or of a group of four.
    edge = pruning.block_size[0] * pruning.block_size[1] if pruning.pattern == "block" else 4
    tolerance = max(edge, 0.05 * count.size)
    return count.zeros >= wanted - tolerance

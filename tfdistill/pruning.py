"""Magnitude pruning with tfmot, as settings and as functions on tf_keras models."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras, tfmot, tfmot_internal
from tfdistill.bridge.layer_configs import copy_model
from tfdistill.bridge.model_graphs import graph_of, leaves_of
from tfdistill.errors import SettingError, SparsityError
from tfdistill.readings import find_layer
from tfdistill.settings import check_training, is_number, settings

prune_registry: Any = tfmot_internal("sparsity.keras.prune_registry")
pruning_impl: Any = tfmot_internal("sparsity.keras.pruning_impl")
PruneLowMagnitude: Any = tfmot_internal("sparsity.keras.pruning_wrapper").PruneLowMagnitude

PATTERNS = ("unstructured", "2:4", "block")
_DEPTHWISE = (tf_keras.layers.DepthwiseConv1D, tf_keras.layers.DepthwiseConv2D)
_GROUP = 4  # weights of which the pattern 2:4 leaves two


@settings
class Pruning:
    """Settings of the pruning stage.

    The share of zeros grows from 0 to `sparsity` along a cubic curve (Zhu & Gupta 2017,
    https://arxiv.org/abs/1710.01878, eq. 1) during the first `ramp` of the stage's steps; the
    rest of the steps lets the remaining weights recover. The pattern "2:4" has all its zeros
    from the first step on.

    Pruned are the kernels that tfmot knows: of dense layers, convolutions, embeddings, attention
    and recurrent layers, also inside of `TimeDistributed` and `Bidirectional`. Depthwise kernels
    are left dense: they hold few of a model's weights, each of which counts.

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
    skip: Sequence[str] = ()
    ramp: float = 0.6
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Checks every field."""
        object.__setattr__(self, "skip", layer_names(self.skip))
        if not is_number(self.sparsity) or not 0 < self.sparsity < 1:
            raise SettingError("`sparsity` must be in (0, 1).", received=repr(self.sparsity))
        object.__setattr__(self, "sparsity", float(self.sparsity))
        check_training(self)
        if self.pattern not in PATTERNS:
            raise SettingError(f"`pattern` must be one of {PATTERNS}.", received=self.pattern)
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise SettingError(
                '`sparsity` must be 0.5 for the pattern "2:4".', received=self.sparsity
            )
        size = self.block_size
        whole = isinstance(size, (list, tuple)) and all(isinstance(axis, Integral) for axis in size)
        if not whole or len(size) != 2 or any(isinstance(a, bool) or a < 1 for a in size):
            raise SettingError("`block_size` must be two whole numbers >= 1.", received=size)
        object.__setattr__(self, "block_size", tuple(int(axis) for axis in size))
        if not is_number(self.ramp) or not 0 < self.ramp <= 1:
            raise SettingError("`ramp` must be in (0, 1].", received=repr(self.ramp))
        object.__setattr__(self, "ramp", float(self.ramp))


def layer_names(skip: Any) -> tuple[str, ...]:
    """The names in a setting `skip`.

    Raises:
        SettingError: It is no list of names; a single name would be read as its letters.
    """
    names = tuple(skip) if isinstance(skip, Iterable) and not isinstance(skip, str) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise SettingError(
            "`skip` must be a list of layer names.", received=repr(skip), hint='Such as ["logits"].'
        )
    return names


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
        if all(len(weight.shape) < 2 for weight in layer.weights):
            continue  # biases and scales are never pruned
        reason = _why_dense(layer, pruning)
        if reason:
            dense[layer.name] = reason
        else:
            pruned.append(layer.name)
    if not pruned:
        raise SettingError(
            "`pruning` must leave at least one layer to prune.",
            received="; ".join(f"{n}: {why}" for n, why in dense.items())
            or "no layer with a kernel",
        )
    return PruningPlan(tuple(pruned), dense)


def _why_dense(layer: Any, pruning: Pruning) -> str:
    """Why a layer with weights cannot be pruned as asked; "" where it can."""
    kind, kernels = type(layer).__name__, prunable_weights(layer)
    if layer.name in pruning.skip:
        return "named in `skip`"
    if not layer.trainable:
        return "frozen: `trainable` is False"
    if isinstance(layer, _DEPTHWISE):
        return "depthwise kernels hold few of a model's weights, each of which counts"
    if not kernels:
        return f"{kind} has no kernel that tfmot prunes"
    if pruning.pattern != "unstructured":
        if any(len(kernel.shape) not in (2, 4) for kernel in kernels):
            return f"the pattern {pruning.pattern!r} is for kernels of rank 2 and 4"
        for each in (layer, *_inside(layer)):
            if isinstance(each, tf_keras.layers.Conv2DTranspose):
                return "the last axis of a Conv2DTranspose kernel is its inputs, not its outputs"
    if pruning.pattern == "2:4" and any(kernel.shape[-2] < _GROUP for kernel in kernels):
        return "fewer than four input channels hold no group of four"
    if any(_wanted(_pruned(kernel, pruning), pruning) < 1 for kernel in kernels):
        units = "blocks" if pruning.pattern == "block" else "weights"
        return f"it has too few {units} for a sparsity of {pruning.sparsity}"
    return ""


def prunable_weights(layer: Any) -> list[Any]:
    """The kernels of a layer that tfmot can prune; none for a layer that it does not know.

    Of a wrapper, those of the layers inside that are trained.
    """
    inside = _inside(layer)
    if inside:
        return [k for each in inside if each.trainable for k in prunable_weights(each)]
    registry = prune_registry.PruneRegistry
    if not registry.supports(layer):
        return []
    had = "get_prunable_weights" in vars(layer)
    try:
        return list(registry.make_prunable(layer).get_prunable_weights())
    finally:
        if not had:  # make_prunable marks the layer; the user's model stays as it is
            del layer.get_prunable_weights


def _inside(layer: Any) -> list[Any]:
    """What a wrapper of Keras' own runs; nothing for another layer."""
    if type(layer) is tf_keras.layers.Bidirectional:
        return [layer.forward_layer, layer.backward_layer]
    if type(layer) is not tf_keras.layers.TimeDistributed:
        return []
    model = graph_of(layer.layer)
    return [leaf.layer for leaf in leaves_of(model)] if model is not None else [layer.layer]


class _Masks(pruning_impl.Pruning):
    """tfmot's updates of masks, with as many zeros as asked for, and blocks of any kernel.

    tfmot keeps all weights that equal the threshold. Its blocks are for kernels of rank 2, and
    fail where the matrix is only one block high or wide; these see each kernel as the matrix
    [inputs, outputs].
    """

    def _validate_block(self) -> None:
        """Every rank is fine here."""

    def _update_mask(self, weights: tf.Tensor) -> Any:
        magnitudes = tf.reshape(tf.abs(weights), [-1])
        size = tf.size(magnitudes)
        sparsity = self._pruning_schedule(self._step_fn())[1]
        kept = tf.maximum(tf.round(tf.cast(size, tf.float32) * (1 - sparsity)), 1)  # as in tfmot
        values, order = tf.math.top_k(magnitudes, k=size)  # of equal ones the first comes first
        mask = tf.cast(tf.range(size) < tf.cast(kept, tf.int32), weights.dtype)
        mask = tf.reshape(tf.scatter_nd(order[:, tf.newaxis], mask, [size]), weights.shape)
        return values[tf.cast(kept, tf.int32) - 1], mask

    def _maybe_update_block_mask(self, weights: tf.Tensor) -> Any:
        height, width = self._block_size
        if height == width == 1:
            return super()._maybe_update_block_mask(weights)
        matrix = tf.abs(tf.reshape(weights, [-1, weights.shape[-1]]))
        rows, columns = matrix.shape
        grid = math.ceil(rows / height), math.ceil(columns / width)
        edge = [[0, grid[0] * height - rows], [0, grid[1] * width - columns]]

        def sums(values: tf.Tensor) -> tf.Tensor:
            blocks = tf.reshape(tf.pad(values, edge), [grid[0], height, grid[1], width])
            return tf.reduce_sum(blocks, axis=[1, 3])

        threshold, mask = self._update_mask(sums(matrix) / sums(tf.ones_like(matrix)))
        mask = tf.repeat(tf.repeat(mask, height, axis=0), width, axis=1)
        return threshold, tf.reshape(mask[:rows, :columns], weights.shape)


class _Prune(PruneLowMagnitude):
    """tfmot's wrapper, also for layers that read or hand on masks, or run others."""

    block_size: Any

    def __init__(self, layer: Any, **options: Any) -> None:
        if _inside(layer):
            layer.get_prunable_weights = lambda: prunable_weights(layer)
        super().__init__(layer, **options)

    def build(self, input_shape: Any) -> None:
        """As tfmot's, which refuses blocks of kernels of rank 4, with our masks."""
        block_size, self.block_size = self.block_size, (1, 1)
        super().build(input_shape)
        self.block_size = block_size
        self.pruning_obj = _Masks(
            training_step_fn=lambda: self.pruning_step,
            pruning_vars=self.pruning_vars,
            pruning_schedule=self.pruning_schedule,
            block_size=block_size,
            block_pooling_type=self.block_pooling_type,
            sparsity_m_by_n=self.sparsity_m_by_n,
        )

    def call(self, inputs: Any, training: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        """As tfmot's, which gives a mask to layers that do not take one."""
        if "mask" in inspect.signature(self.layer.call).parameters:
            kwargs["mask"] = mask
        return super().call(inputs, training=training, **kwargs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The layer's; tfmot's wrapper hands none on."""
        return self.layer.compute_mask(inputs, mask) if self.layer.supports_masking else None


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
    if pruning.pattern == "2:4":
        options["sparsity_m_by_n"] = (2, 4)
    elif pruning.pattern == "block":
        options["block_size"] = pruning.block_size

    def wrap(layer: Any) -> Any:
        return _Prune(layer, **options) if layer.name in plan.pruned else layer

    return tf_keras.models.clone_model(copy_model(model), clone_function=wrap)


def strip(model: Any) -> Any:
    """The pruned model without tfmot's wrappers; zeros are ordinary weights."""
    for layer in model.layers:
        if isinstance(layer, PruneLowMagnitude):
            for weight, mask, _ in layer.pruning_vars:
                weight.assign(weight * mask)  # tfmot's own operation needs the strategy's scope
    return tfmot.sparsity.keras.strip_pruning(model)


def kernel_zeros(model: Any) -> dict[str, KernelZeros]:
    """Zeros of every kernel that could be pruned, by layer name.

    Args:
        model: Functional tf_keras model without pruning wrappers.
    """
    counts = {}
    for layer in model.layers:
        weights = [np.asarray(weight) for weight in prunable_weights(layer)]
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
    short = []
    for layer in model.layers:
        for kernel in prunable_weights(layer) if layer.name in plan.pruned else ():
            pruned = _pruned(kernel, pruning)
            wanted = _wanted(pruned, pruning)
            if np.sum(pruned) < wanted:
                name = kernel.name.rpartition("/")[2].partition(":")[0]
                short.append(f"{layer.name}/{name}: {np.sum(pruned)} of {wanted}")
    if short:
        units = {"unstructured": "zeros", "2:4": "groups of four", "block": "blocks of zeros"}
        raise SparsityError(
            f"`sparsity` must reach {pruning.sparsity} in every pruned kernel.",
            received=f"{units[pruning.pattern]}: {', '.join(short)}",
            hint="Train the pruning stage for more steps, or put these layers into `skip`.",
        )


def _pruned(kernel: Any, pruning: Pruning) -> np.ndarray:
    """For every weight, group of four or block, as the pattern has it: whether it is pruned."""
    zero = np.asarray(kernel) == 0
    if pruning.pattern == "unstructured":
        return zero
    # What is left of a group or block at the kernel's edge is filled up with zeros.
    if pruning.pattern == "2:4":
        zero = np.reshape(zero, [-1, *zero.shape[-2:]])
        zero = np.pad(zero, [(0, 0), (0, -zero.shape[1] % _GROUP), (0, 0)], constant_values=True)
        groups = np.reshape(zero, [len(zero), -1, _GROUP, zero.shape[-1]])
        return np.sum(groups, axis=2) >= _GROUP // 2
    height, width = pruning.block_size
    zero = np.reshape(zero, [-1, zero.shape[-1]])
    rows, columns = zero.shape
    zero = np.pad(zero, [(0, -rows % height), (0, -columns % width)], constant_values=True)
    blocks = np.reshape(zero, [zero.shape[0] // height, height, zero.shape[1] // width, width])
    return np.all(blocks, axis=(1, 3))


def _wanted(pruned: np.ndarray, pruning: Pruning) -> int:
    """How many of them the pattern must have pruned."""
    if pruning.pattern == "2:4":
        return int(pruned.size)
    kept = np.round(np.float32(pruned.size) * (1 - np.float32(pruning.sparsity)))  # as in tfmot
    return pruned.size - max(1, int(kept))

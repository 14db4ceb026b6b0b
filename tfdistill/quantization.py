"""8-bit quantization-aware training with tfmot, without its holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras, tfmot
from tfdistill.bridge.layer_configs import frozen_alike
from tfdistill.bridge.layer_table import all_in
from tfdistill.errors import ModelError, SettingError
from tfdistill.layouts import (
    COMPARISONS,
    NO_ARITHMETIC,
    Layout,
    Scheme,
    activation_name,
    behind_floats,
    has_activation,
    operation_of,
    without_quantizer,
)
from tfdistill.pruning import layer_names, prunable_weights
from tfdistill.quantizers import (
    freeze,
    join_ranges,
    without_wrapper,
)
from tfdistill.readings import find_layer
from tfdistill.rewrites import Rewritten, rewrite
from tfdistill.rewrites.masks import can_be_wrapped
from tfdistill.settings import check_training, settings


@settings
class Quantization:
    """Settings of the quantization-aware training stage: 8-bit weights and activations.

    Training with simulated quantization follows Jacob 2018 (https://arxiv.org/abs/1712.05877,
    section 3). Zeros of a pruned student stay zeros.

    Args:
        epochs: Epochs of training with simulated quantization.
        skip: Names of layers whose weights to train in floating point. In the artifact the last
            layer is then in floating point, too; the weights of one between quantized layers
            are rounded when it is exported.
        learning_rate: Peak learning rate, decayed to 0 along a cosine.
        strict: Whether a layer that can only be computed in floating point, and is not named in
            `skip`, is an error instead of a line in the report.

    Raises:
        SettingError: A setting is out of its range.

    Example:
        >>> td.Quantization(epochs=3)
    """

    epochs: int = 3
    skip: Sequence[str] = ()
    learning_rate: float = 3e-4
    strict: bool = False

    def __post_init__(self) -> None:
        """Checks every field."""
        object.__setattr__(self, "skip", layer_names(self.skip))
        check_training(self)
        if not isinstance(self.strict, bool):
            raise SettingError("`strict` must be True or False.", received=repr(self.strict))


@dataclass(frozen=True)
class QuantizedModel:
    """A model that simulates 8-bit arithmetic, and what in it does not.

    Attributes:
        model: tf_keras model with tfmot's fake quantization.
        left_float: Layer name to the reason why its kernel or output stays float.
        carriers: Name of each layer with weights to the student's layer that they are of.
    """

    model: Any
    left_float: dict[str, str]
    carriers: Mapping[str, str]


def quantize(model: Any, quantization: Quantization, *, sparse: bool) -> QuantizedModel:
    """A copy of the model that simulates 8-bit weights and activations while it is trained.

    Args:
        model: Functional tf_keras model without wrappers; stays as it is.
        quantization: The stage's settings.
        sparse: Whether the zeros of its kernels must stay zeros.

    Raises:
        ModelError: `skip` names a layer that the model does not have, or tfmot cannot rewrite
            the model; or `strict` is set and a layer stays in float.
    """
    nested = [layer.name for layer in model.layers if isinstance(layer, tf_keras.Model)]
    if nested:
        raise ModelError(
            "`student` must be flat, without a model inside.",
            received=", ".join(nested),
            hint="td.to_tf_keras(student) gives such a copy.",
        )
    for name in quantization.skip:
        find_layer(model, name, role="student")
    layers = [one for layer in model.layers for one in all_in(layer)]
    known = {type(layer).__name__: type(layer) for layer in layers}
    known |= {activation_name(layer): layer.activation for layer in layers if has_activation(layer)}
    # Code in a Lambda layer is no risk here: the model that it comes from is already in memory.
    safe_mode = tf_keras.src.saving.serialization_lib.SafeModeScope(False)
    try:
        with tf_keras.utils.custom_object_scope(known), safe_mode:
            rewritten = rewrite(model, skip=frozenset(quantization.skip))
            quantized, left_float = _quantized(rewritten, quantization.skip, sparse=sparse)
    except Exception as error:  # tfmot raises what its rewriting happens to run into
        raise ModelError(
            "`student` must be a model that tfmot can quantize.",
            received=f"{model.name}: {type(error).__name__}: {' '.join(str(error).split())[:400]}",
            hint="Replace that layer, or leave the stage out: int8 is then calibrated after "
            "training.",
        ) from error
    _restore(model, quantized)
    join_ranges(quantized)
    left_float = {**without_quantizer(quantized), **left_float}
    by_layer = {rewritten.origins.get(name, name): why for name, why in left_float.items()}
    for name, why in behind_floats(quantized, left_float).items():
        by_layer.setdefault(rewritten.origins.get(name, name), why)
    unasked = [f"{n}: {why}" for n, why in by_layer.items() if n not in quantization.skip]
    if quantization.strict and unasked:
        raise ModelError(
            "`student` must be quantized whole where `strict` is True.",
            received="; ".join(unasked),
            hint="Replace these layers, name them in `skip`, or leave `strict` out.",
        )
    return QuantizedModel(quantized, by_layer, rewritten.carriers)


def _quantized(
    rewritten: Rewritten, skip: Sequence[str], *, sparse: bool
) -> tuple[Any, dict[str, str]]:
    """What tfmot makes of it, and the reasons of what is left in float there."""
    model = rewritten.model
    transform = Layout(
        sparse=sparse,
        skip=frozenset(name for name, origin in rewritten.origins.items() if origin in skip),
    )

    def annotate(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        if can_be_wrapped(layer):
            return tfmot.quantization.keras.quantize_annotate_layer(copy)
        kind = type(layer).__name__
        if kind in NO_ARITHMETIC or operation_of(layer) in COMPARISONS:
            return copy
        transform.left_float[layer.name] = (
            "named in `skip`" if layer.name in skip else f"tfmot cannot wrap {kind} as it is used"
        )
        if sparse and prunable_weights(layer):
            copy.trainable = False
            transform.left_float[layer.name] += "; it is frozen, so that its zeros stay"
        return copy

    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.Bidirectional):
            layer.trainable = layer.trainable  # both halves alike: it is the order of the weights
    annotated = tf_keras.models.clone_model(model, clone_function=annotate)
    annotated.set_weights(model.get_weights())
    by_name = isinstance(model.output, Mapping) and len(model.outputs) > 1
    if by_name:  # tfmot looks for the outputs in a list: it would merge one with what reads it
        annotated = tf_keras.Model(annotated.input, annotated.outputs, name=annotated.name)
    quantized = tfmot.quantization.keras.quantize_apply(annotated, Scheme(transform))
    if by_name:
        outputs = tf.nest.pack_sequence_as(model.output, quantized.outputs)
        quantized = tf_keras.Model(quantized.input, outputs, name=quantized.name)
    return quantized, transform.left_float


def _restore(model: Any, quantized: Any) -> None:
    """Sets what tfmot forgets: what no config of a layer says, and that kernels are frozen."""
    before = {layer.name: layer for layer in model.layers}
    for layer in quantized.layers:
        inner = without_wrapper(layer)
        origin = before.get(inner.name)
        if origin is not None and type(origin) is type(inner):
            frozen_alike(inner, origin)
            if isinstance(inner, tf_keras.layers.BatchNormalization) and origin.synchronized:
                inner.synchronized, inner.fused = True, False
        if inner is not layer:
            freeze(layer, inner)


def quantized_kernels(
    model: Any, carriers: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Every kernel as the quantized model uses it: masked, and rounded unless left in float.

    Args:
        model: From `quantize`.
        carriers: Its `carriers`, for the kernels of the student's layers alone; without, those
            of the quantized model's.

    Returns:
        Layer name to the kernel, a float32 array; several kernels of one layer are flat, one
        after the other.
    """
    kernels: dict[str, list[np.ndarray]] = {}
    for wrapper in model.layers:
        for weight, quantizer, variables in getattr(wrapper, "_weight_vars", ()):
            name = wrapper.layer.name
            if carriers is not None:
                if name not in carriers:
                    continue  # a constant of a rewrite
                name = carriers[name]
            kernels.setdefault(name, []).append(quantizer(weight, False, variables).numpy())
    return {
        name: found[0] if len(found) == 1 else np.concatenate([each.ravel() for each in found])
        for name, found in kernels.items()
    }

"""8-bit quantization-aware training with tfmot, without its holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras, tfmot, tfmot_internal
from tfdistill.bridge.layer_configs import frozen_alike
from tfdistill.bridge.layer_table import all_in
from tfdistill.bridge.own_layers import KerasOperation
from tfdistill.errors import ModelError, SettingError
from tfdistill.litert.flatbuffer import FAKE_QUANTIZED
from tfdistill.pruning import layer_names, prunable_weights
from tfdistill.quantizers import (
    PASSING_ON,
    FloatConfig,
    KernelQuantizer,
    RangeQuantizer,
    freeze,
    join_ranges,
    own_ranges,
    without_wrapper,
)
from tfdistill.readings import find_layer
from tfdistill.rewrites import Rewritten, rewrite
from tfdistill.rewrites.masks import can_be_wrapped
from tfdistill.settings import check_training, settings

_QUANTIZATION = "quantization.keras"
_DEFAULT = f"{_QUANTIZATION}.default_8bit"
configs: Any = tfmot_internal(f"{_DEFAULT}.default_8bit_quantize_configs")
layout: Any = tfmot_internal(f"{_DEFAULT}.default_8bit_quantize_layout_transform")
registry: Any = tfmot_internal(f"{_DEFAULT}.default_8bit_quantize_registry")
activations: Any = tfmot_internal(f"{_QUANTIZATION}.quantize_aware_activation")

_KERNEL_LAYERS = {
    tf_keras.layers.Conv2D: "kernel",
    tf_keras.layers.Conv2DTranspose: "kernel",
    tf_keras.layers.DepthwiseConv2D: "depthwise_kernel",
    tf_keras.layers.Dense: "kernel",
}
# A quantized kernel of these has one range, not one for each channel, so LiteRT's converter
# cannot fold a BatchNormalization into it: merging the two, as tfmot does, leaves both in float.
_ONE_RANGE = (tf_keras.layers.Conv2DTranspose, tf_keras.layers.Dense)

_FUSED = ("linear", "relu", "relu6")  # activations that are part of the kernel's operator
_QUANTIZED_BEFORE = activations.QuantizeAwareActivation._PRE_QUANT_ACTIVATIONS
_ACTIVATIONS = (  # that tfmot quantizes inside a layer
    _QUANTIZED_BEFORE
    | activations.QuantizeAwareActivation._POST_QUANT_ACTIVATIONS
    | activations.QuantizeAwareActivation._NO_QUANTIZE_ACTIVATIONS
)
# tfmot refuses these although fake-quantizing their output is all they need.
_OUTPUT_ONLY = (
    *("Hidden", "LeakyReLU", "MatMul", "Maximum", "Minimum", "Multiply", "PReLU", "Subtract"),
    *("UpSampling2D", "ZeroPadding2D"),
)
_OUTPUT_ONLY_ACTIVATIONS = ("gelu", "hard_silu", "leaky_relu", "silu", "swish")
# What gives on values as they come; in training `StochasticDepth` leaves some out.
_NO_ARITHMETIC = (
    *("ExamplesAsSteps", "MaskOf", "Masked", "NotZero", "Sequence", "Step", "StepsAsExamples"),
    *("StochasticDepth", "Unmasked", "Zeros"),
)
_GATES = ("GRUGates", "Kept", "LSTMCell", "LSTMGates", "SimpleGates")
_OF_GATES = "its gates compute in float; its products are in 8 bits"
_MOVING = ("Copy", "ExpandDims", "Flip", "GetItem", "Reshape", "Squeeze", "Transpose")
_RECURRENT = (tf_keras.layers.RNN, tf_keras.layers.Bidirectional)


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


class _Layout(layout.Default8BitQuantizeLayoutTransform):
    """tfmot's rewriting of the graph, corrected in what it decides per layer."""

    def __init__(self, *, sparse: bool, skip: frozenset[str]) -> None:
        self._sparse = sparse
        self._skip = skip
        self.left_float: dict[str, str] = {}

    def apply(self, model: Any, layer_quantize_map: Any) -> Any:
        for layer in model.layers:
            followers = [node.outbound_layer for node in layer._outbound_nodes]
            if isinstance(layer, tf_keras.layers.InputLayer) and (
                all(each.name in self._skip or _compares(each) for each in followers)
                or not tf.as_dtype(layer.dtype).is_floating
            ):
                layer_quantize_map.pop(layer.name, None)  # they are to read it as it is
        model, decided = super().apply(model, layer_quantize_map)
        outputs = {tensor._keras_history.layer.name for tensor in model.outputs}
        for layer in model.layers:
            if "quantizer" in decided.get(layer.name, ()):
                del decided[layer.name]  # an input is quantized, also before a concatenation
            if isinstance(layer, _ONE_RANGE) and _activation(layer) == "NoOpActivation":
                layer.activation = tf_keras.activations.linear
            if "quantize_config" in decided.get(layer.name, ()):
                config = decided[layer.name]["quantize_config"]
                decided[layer.name]["quantize_config"] = _with_range_quantizers(
                    self._config(layer, config, is_output=layer.name in outputs),
                    called_again=len(layer._inbound_nodes) > 1,
                )
        return model, decided

    def _config(self, layer: Any, config: Any, *, is_output: bool) -> Any:
        merged = isinstance(config, configs.NoOpQuantizeConfig)  # with the layer after it
        # The converter would fail on a recurrent layer between quantized ones.
        gives_floats = is_output or isinstance(layer, _RECURRENT)
        if layer.name in self._skip:
            self.left_float[layer.name] = "named in `skip`"
            merged = merged or _activation(layer) == "NoOpActivation"
            quantize_output = bool(layer.weights) and not merged and not gives_floats
            return FloatConfig(layer, quantize_output=quantize_output, keep_zeros=self._sparse)
        if isinstance(layer, tf_keras.layers.Embedding):
            # A lookup has the range of what it looks up.
            config = registry.Default8BitQuantizeConfig(["embeddings"], [], False)
            config.weight_quantizer = KernelQuantizer(per_channel=False, keep_zeros=self._sparse)
            return config
        if type(layer) in _KERNEL_LAYERS:
            return self._kernel_config(layer, config, merged=merged)
        known, kind = registry.Default8BitQuantizeRegistry(), _kind(layer)
        if _computes_in_float(layer, config):
            self.left_float[layer.name] = f"{kind} computes in float; its output is quantized"
        if config is not None:
            return config
        if _supports(known, layer):
            return known.get_quantize_config(layer)
        if kind in _GATES:
            self.left_float[layer.name] = _OF_GATES
            return FloatConfig(layer, quantize_output=False, keep_zeros=False)
        if kind in _NO_ARITHMETIC or _moves_values(layer):
            return FloatConfig(layer, quantize_output=False, keep_zeros=False)
        if kind not in _OUTPUT_ONLY and _activation(layer) not in _OUTPUT_ONLY_ACTIVATIONS:
            self.left_float.setdefault(layer.name, f"tfmot has no quantizer for {kind}")
        return FloatConfig(layer, quantize_output=not gives_floats, keep_zeros=self._sparse)

    def _kernel_config(self, layer: Any, config: Any, *, merged: bool) -> Any:
        full = registry.Default8BitQuantizeRegistry().get_quantize_config(layer)
        activation = _activation(layer)
        if activation not in {*_FUSED, *_QUANTIZED_BEFORE, "NoOpActivation"}:
            self.left_float[layer.name] = f"it computes in float, up to its {activation}"
        if activation not in _ACTIVATIONS:
            config = type(full)(full.weight_attrs, [], not merged)
        elif merged:
            # tfmot's hole: before a separate ReLU it drops the kernel's quantizer together with
            # the output's. Only the output's belongs after the ReLU.
            quantized = [] if activation in _FUSED else full.activation_attrs
            config = type(full)(full.weight_attrs, quantized, False)
        config = config or full
        config.weight_quantizer = KernelQuantizer(
            per_channel=not isinstance(layer, _ONE_RANGE), keep_zeros=self._sparse
        )
        return config


def _compares(layer: Any) -> bool:
    """Whether it looks for a number that would be rounded to another; 0 stays 0."""
    return isinstance(layer, tf_keras.layers.Masking) and layer.mask_value != 0


def _moves_values(layer: Any) -> bool:
    """Whether an operation of Keras 3 computes nothing."""
    if not isinstance(layer, KerasOperation):
        return False
    return type(layer.keras3_operation).__name__ in _MOVING


def _kind(layer: Any) -> str:
    kind = type(layer).__name__
    return f"{kind} {_activation(layer)}" if kind == "Activation" else kind


def _activation(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", type(activation).__name__)


def _has_own(layer: Any) -> bool:
    """Whether a layer has an activation function, which tfmot's cloning may have to look up."""
    return callable(getattr(layer, "activation", None))


def _computes_in_float(layer: Any, config: Any) -> bool:
    """Whether the converter will have ranges only around what the layer is made of."""
    kind, inputs = type(layer).__name__, tf.nest.flatten(layer.get_input_at(0))
    if kind in ("BatchNormalization", "SyncBatchNormalization"):
        return config is None or isinstance(inputs[0]._keras_history.layer, _ONE_RANGE)
    return kind == "Average" or (kind in ("Add", "Multiply") and len(inputs) > 2)


class _Scheme(tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme):
    def __init__(self, transform: _Layout) -> None:
        super().__init__()
        self._transform = transform

    def get_layout_transformer(self) -> Any:
        return self._transform


def _with_range_quantizers(config: Any, *, called_again: bool) -> Any:
    """The same, with our quantizer for outputs wherever it has tfmot's."""
    if hasattr(config, "activation_quantizer"):
        config.activation_quantizer = RangeQuantizer(called_again=called_again)
    wanted = config.get_output_quantizers
    config.get_output_quantizers = lambda layer: [
        RangeQuantizer(called_again=called_again) for _ in wanted(layer)
    ]
    return config


def _supports(known: Any, layer: Any) -> bool:
    if not known.supports(layer):
        return False
    try:  # an Activation is supported or not by its function
        known.get_quantize_config(layer).get_output_quantizers(layer)
    except ValueError:
        return False
    return True


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
    known |= {_activation(layer): layer.activation for layer in layers if _has_own(layer)}
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
    left_float = {**_without_quantizer(quantized), **left_float}
    by_layer = {rewritten.origins.get(name, name): why for name, why in left_float.items()}
    for name, why in _behind_floats(quantized, left_float).items():
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
    transform = _Layout(
        sparse=sparse,
        skip=frozenset(name for name, origin in rewritten.origins.items() if origin in skip),
    )

    def annotate(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        if can_be_wrapped(layer):
            return tfmot.quantization.keras.quantize_annotate_layer(copy)
        kind = type(layer).__name__
        if kind in _NO_ARITHMETIC:
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
    quantized = tfmot.quantization.keras.quantize_apply(annotated, _Scheme(transform))
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


def _without_quantizer(model: Any) -> dict[str, str]:
    """Kernels that ended up without a weight quantizer, found in the model, not assumed."""
    missing = {}
    for layer in model.layers:
        inner = without_wrapper(layer)
        if type(inner) not in _KERNEL_LAYERS:
            continue
        attribute = _KERNEL_LAYERS[type(inner)]
        names = [weight.name for weight in layer.weights]
        if not any(f"{attribute}_min" in name for name in names):
            missing[inner.name] = "its kernel has no quantizer"
    return missing


def _behind_floats(model: Any, left_float: Mapping[str, str]) -> dict[str, str]:
    """Layers that compute in float because what they read is not rounded, found in the model."""
    behind: dict[str, str] = {}
    floats: set[str] = set()  # layers that give such values
    for layer in model.layers:  # each after what it reads
        inner = without_wrapper(layer)
        origins = tf.nest.flatten([node.inbound_layers for node in layer._inbound_nodes])
        reads = [origin.name for origin in origins if origin.name in floats]
        if reads and inner.name not in left_float and not _only_moves(inner):
            names = ", ".join(dict.fromkeys(name.removeprefix(FAKE_QUANTIZED) for name in reads))
            behind[inner.name] = f"what it reads of {names} is in float"
        merged = layer is not inner and type(inner) in _KERNEL_LAYERS  # with what follows
        if not own_ranges(layer) and not merged and (reads or inner.name in left_float):
            floats.add(layer.name)
    return behind


def _only_moves(layer: Any) -> bool:
    """Whether a layer computes nothing."""
    kind = type(layer).__name__
    moves = kind in PASSING_ON and "Pooling" not in kind
    return moves or kind in (*_NO_ARITHMETIC, "Hidden") or _moves_values(layer)


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

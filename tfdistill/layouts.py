"""Which layers tfmot is to quantize, and how; and what computes in float all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdistill._keras import tf, tf_keras, tfmot, tfmot_internal
from tfdistill.bridge.layer_table import AUGMENTATIONS, NOISE_LAYERS
from tfdistill.bridge.own_layers import KerasOperation
from tfdistill.litert.flatbuffer import FAKE_QUANTIZED
from tfdistill.quantizers import (
    PASSING_ON,
    FloatConfig,
    InputQuantizer,
    KernelQuantizer,
    RangeQuantizer,
    own_ranges,
    without_wrapper,
)
from tfdistill.rewrites import IDENTITY

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
    *("CenterCrop", "RepeatVector", "UpSampling2D", "UpTo", "ZeroPadding2D"),
)
_OUTPUT_ONLY_ACTIVATIONS = ("exponential", "gelu", "hard_silu", "leaky_relu", "silu", "swish")
# What gives on values as they come; some change them at random in training.
NO_ARITHMETIC = (
    *("ExamplesAsSteps", "MaskOf", "Masked", "NotZero", "Sequence", "Step", "StepsAsExamples"),
    *("Unmasked", "Zeros", *NOISE_LAYERS, *AUGMENTATIONS),
)
_GATES = ("GRUGates", "Kept", "LSTMCell", "LSTMGates", "SimpleGates")
_OF_GATES = "its gates compute in float; its products are in 8 bits"
_MOVING = ("Copy", "ExpandDims", "GetItem", "Reshape", "Squeeze", "Transpose")
# Operations of Keras 3 that LiteRT has in 8 bits, in the ranges of what they read and give.
_OPERATIONS = (
    *("Absolute", "Abs", "Add", "Clip", "Divide", "Exp", "Flip", "Log", "Max", "Maximum"),
    *("Mean", "Min", "Minimum", "Moveaxis", "Multiply", "Negative", "Pad", "Repeat", "Roll"),
    *("Rsqrt", "Sqrt", "Stack", "Subtract", "Sum", "Swapaxes", "Take", "Tile", "TrueDivide"),
    "Where",
)
COMPARISONS = ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual")
_RECURRENT = (tf_keras.layers.RNN, tf_keras.layers.Bidirectional)


class Layout(layout.Default8BitQuantizeLayoutTransform):
    """tfmot's rewriting of the graph, corrected in what it decides per layer.

    Args:
        sparse: Whether zeros of kernels must stay zeros.
        skip: Names of the layers to leave in float.
    """

    def __init__(self, *, sparse: bool, skip: frozenset[str]) -> None:
        self._sparse = sparse
        self._skip = skip
        self.left_float: dict[str, str] = {}

    def apply(self, model: Any, layer_quantize_map: Any) -> Any:
        """The model with what is computed together merged, and what is done to each layer."""
        for layer in model.layers:
            followers = [node.outbound_layer for node in layer._outbound_nodes]
            if isinstance(layer, tf_keras.layers.InputLayer) and (
                all(each.name in self._skip or _compares(each) for each in followers)
                or any(map(_reads_whole_numbers, followers))
                or not tf.as_dtype(layer.dtype).is_floating
            ):
                layer_quantize_map.pop(layer.name, None)  # they are to read it as it is
        model, decided = super().apply(model, layer_quantize_map)
        outputs = {tensor._keras_history.layer.name for tensor in model.outputs}
        for layer in model.layers:
            if "quantizer" in decided.get(layer.name, ()):
                del decided[layer.name]  # an input is quantized, also before a concatenation
            if isinstance(layer, _ONE_RANGE) and activation_name(layer) == "NoOpActivation":
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
        stays_float = is_output or isinstance(layer, _RECURRENT)
        if layer.name in self._skip:
            self.left_float[layer.name] = "named in `skip`"
            merged = merged or activation_name(layer) == "NoOpActivation"
            quantize_output = bool(layer.weights) and not merged and not stays_float
            return FloatConfig(layer, quantize_output=quantize_output, keep_zeros=self._sparse)
        if isinstance(layer, tf_keras.layers.Embedding):
            # A lookup has the range of what it looks up.
            config = registry.Default8BitQuantizeConfig(["embeddings"], [], False)
            config.weight_quantizer = KernelQuantizer(per_channel=False, keep_zeros=self._sparse)
            return config
        if isinstance(layer, tf_keras.layers.MaxPooling2D) and len(layer._outbound_nodes) > 1:
            # Without a range of its own the converter gives up what reads it beside a mean.
            return FloatConfig(layer, quantize_output=not is_output, keep_zeros=False)
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
        if kind in NO_ARITHMETIC or _moves_values(layer):
            return FloatConfig(layer, quantize_output=False, keep_zeros=False)
        known_alone = kind in _OUTPUT_ONLY or operation_of(layer) in _OPERATIONS
        if not known_alone and activation_name(layer) not in _OUTPUT_ONLY_ACTIVATIONS:
            self.left_float.setdefault(layer.name, _reason(layer, kind))
        quantize_output = not stays_float and _gives_floats(layer)
        return FloatConfig(layer, quantize_output=quantize_output, keep_zeros=self._sparse)

    def _kernel_config(self, layer: Any, config: Any, *, merged: bool) -> Any:
        full = registry.Default8BitQuantizeRegistry().get_quantize_config(layer)
        activation = activation_name(layer)
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
            per_channel=not isinstance(layer, _ONE_RANGE),
            keep_zeros=self._sparse,
            twin=_twins_before(layer),
        )
        return config


def _twins_before(layer: Any) -> int:
    """How many convolutions that change nothing, as rewrites make them, read the same before."""
    if f"/{IDENTITY}" not in layer.name:
        return 0
    (origin,) = tf.nest.flatten(layer._inbound_nodes[0].inbound_layers)
    names = [node.outbound_layer.name for node in origin._outbound_nodes]
    return [name for name in names if f"/{IDENTITY}" in name].index(layer.name)


def _reason(layer: Any, kind: str) -> str:
    read = tf.nest.flatten(layer.get_input_at(0))[0].dtype
    if kind in ("Normalization", "Rescaling") and not read.is_floating:
        return f"it reads {read.name}; a float input would be quantized whole"
    return f"tfmot has no quantizer for {kind}"


def _compares(layer: Any) -> bool:
    """Whether it looks for a number that would be rounded to another; 0 stays 0."""
    return isinstance(layer, tf_keras.layers.Masking) and layer.mask_value != 0


def _reads_whole_numbers(layer: Any) -> bool:
    """Whether it looks up, or makes whole numbers of, what it reads: rounding changes which."""
    return isinstance(layer, tf_keras.layers.Embedding) or not _gives_floats(layer)


def _gives_floats(layer: Any) -> bool:
    given = tf.nest.flatten(layer._inbound_nodes[0].outputs)
    return any(tensor.dtype.is_floating for tensor in given)


def _moves_values(layer: Any) -> bool:
    """Whether an operation of Keras 3 computes nothing."""
    return operation_of(layer) in _MOVING


def operation_of(layer: Any) -> str:
    """The class of an operation of Keras 3, "" of a layer."""
    return type(layer.keras3_operation).__name__ if isinstance(layer, KerasOperation) else ""


def _kind(layer: Any) -> str:
    kind = type(layer).__name__
    if kind == "ReLUAbove":
        return "ReLU with a threshold"
    if operation := operation_of(layer):
        return f"the operation {operation}"
    return f"{kind} {activation_name(layer)}" if kind == "Activation" else kind


def activation_name(layer: Any) -> str:
    """What a layer's activation function is called."""
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", type(activation).__name__)


def has_activation(layer: Any) -> bool:
    """Whether a layer has an activation function, which tfmot's cloning may have to look up."""
    return callable(getattr(layer, "activation", None))


def _computes_in_float(layer: Any, config: Any) -> bool:
    """Whether the converter will have ranges only around what the layer is made of."""
    kind, inputs = type(layer).__name__, tf.nest.flatten(layer.get_input_at(0))
    if kind in ("BatchNormalization", "SyncBatchNormalization"):
        return config is None or isinstance(inputs[0]._keras_history.layer, _ONE_RANGE)
    return kind == "Average" or (kind in ("Add", "Multiply") and len(inputs) > 2)


class Scheme(tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme):
    """tfmot's 8 bits, with our layout."""

    def __init__(self, transform: Layout) -> None:
        super().__init__()
        self._transform = transform

    def get_layout_transformer(self) -> Any:
        """As tfmot asks for it."""
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


def without_quantizer(model: Any) -> dict[str, str]:
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


def behind_floats(model: Any, left_float: Mapping[str, str]) -> dict[str, str]:
    """Layers that compute in float because what they read is not rounded, found in the model."""
    behind: dict[str, str] = {}
    floats: set[str] = set()  # layers that give such values
    for layer in model.layers:  # each after what it reads
        inner = without_wrapper(layer)
        origins = tf.nest.flatten([node.inbound_layers for node in layer._inbound_nodes])
        reads = [origin.name for origin in origins if origin.name in floats]
        reads = [] if _reads_whole_numbers(inner) else reads
        if reads and inner.name not in left_float and not _only_moves(inner):
            names = ", ".join(dict.fromkeys(name.removeprefix(FAKE_QUANTIZED) for name in reads))
            behind[inner.name] = f"what it reads of {names} is in float"
        merged = layer is not inner and type(inner) in _KERNEL_LAYERS  # with what follows
        readers = [node.outbound_layer for node in layer._outbound_nodes]
        unrounded = isinstance(layer, tf_keras.layers.InputLayer) and not any(
            isinstance(each, InputQuantizer) for each in readers
        )
        if own_ranges(layer) or merged or not _gives_floats(layer):
            continue
        if reads or unrounded or inner.name in left_float:
            floats.add(layer.name)
    return behind


def _only_moves(layer: Any) -> bool:
    """Whether a layer computes nothing."""
    kind = type(layer).__name__
    moves = kind in PASSING_ON and "Pooling" not in kind
    return moves or kind in (*NO_ARITHMETIC, "Hidden") or _moves_values(layer)

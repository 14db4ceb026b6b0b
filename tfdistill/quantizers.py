"""What is done to a kernel and to an output while 8-bit arithmetic is simulated.

tfmot's own quantizers have ranges that begin at -6 to 6 whatever the model, lose the zeros of
pruned kernels, and give a channel whose weights are all zero a step so small that its bias
overflows when the model is exported.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from tfdistill._keras import tf, tf_keras, tfmot, tfmot_internal
from tfdistill.bridge.layer_configs import clone_tf_keras_layer
from tfdistill.bridge.layer_table import AUGMENTATIONS, NOISE_LAYERS
from tfdistill.pruning import prunable_weights

_Quantizer: Any = tfmot.quantization.keras.quantizers.Quantizer
_OutputConfig: Any = tfmot_internal(
    "quantization.keras.default_8bit.default_8bit_quantize_configs"
).Default8BitOutputQuantizeConfig

InputQuantizer: Any = tfmot_internal("quantization.keras.quantize_layer").QuantizeLayer
QuantizeWrapper: Any = tfmot_internal("quantization.keras.quantize_wrapper").QuantizeWrapper

# LiteRT computes these with one range for all inputs and the output. Where they were trained
# with several, its converter takes one of them and clips to it.
_ONE_RANGE_FOR_ALL = (
    *("AveragePooling1D", "AveragePooling2D", "Concatenate", "Maximum", "Minimum", "UpTo"),
)
# Layers without a quantizer that give on values as they come: their output has their input's.
PASSING_ON = (
    *("Concatenate", "Cropping1D", "Cropping2D", "ExamplesAsSteps", "Flatten"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "KerasOperation", "MaxPooling2D", "Permute"),
    *("Reshape", "Sequence", "Step", "StepsAsExamples", "ZeroPadding1D", "ZeroPadding2D"),
    *NOISE_LAYERS,
    *AUGMENTATIONS,
)

_BITS = 8
_UNKNOWN = 6.0  # a range of -6 to 6 is one that no batch has been seen for, as in tfmot
_DECAY = 0.999
_SMALLEST = 1e-4  # a channel's range, as a share of the kernel's


class KernelQuantizer(_Quantizer):
    """Rounds a kernel to 8 bits, symmetrically; its range is that of its present values.

    Args:
        per_channel: Whether each output channel has a range of its own.
        keep_zeros: Whether weights that are zero now stay zero.
        twin: How many kernels like it read the same before it. The converter would make one
            layer of them, and could no longer fold into it what follows each: so their ranges
            differ by a millionth, of which no weight is rounded to another number.
    """

    def __init__(self, *, per_channel: bool, keep_zeros: bool, twin: int = 0) -> None:
        self._per_channel = per_channel
        self._keep_zeros = keep_zeros
        self._twin = twin

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds the range to the layer's weights."""
        kernel = tf.convert_to_tensor(getattr(layer.layer, name))
        largest = self._largest(kernel)
        variables = {
            "min_var": _add_weight(layer, f"{name}_min", -largest),
            "max_var": _add_weight(layer, f"{name}_max", largest),
        }
        if self._keep_zeros:
            variables["mask"] = tf.cast(kernel != 0, kernel.dtype)
        return variables

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> tf.Tensor:
        """The kernel as the artifact will have it."""
        if self._keep_zeros:
            inputs = inputs * weights["mask"]
        low, high = weights["min_var"], weights["max_var"]
        if training:
            largest = tf.stop_gradient(self._largest(inputs))
            low, high = low.assign(-largest), high.assign(largest)
        fake_quantize = (
            tf.quantization.fake_quant_with_min_max_vars_per_channel
            if self._per_channel
            else tf.quantization.fake_quant_with_min_max_vars
        )
        return fake_quantize(inputs, low, high, num_bits=_BITS, narrow_range=True)

    def _largest(self, kernel: tf.Tensor) -> tf.Tensor:
        whole = tf.reduce_max(tf.abs(kernel))
        whole = tf.where(whole > 0, whole, 1.0) * (1.0 + 1e-6 * self._twin)
        if not self._per_channel:
            return whole
        # The bias is stored in steps of the channel's range times the input's, in 32 bits: it
        # overflows where the range is next to nothing.
        largest = tf.reduce_max(tf.abs(kernel), axis=tuple(range(kernel.shape.rank - 1)))
        largest *= 1.0 + 1e-6 * self._twin
        return tf.where(largest > 0, tf.maximum(largest, _SMALLEST * whole), whole)

    def get_config(self) -> dict[str, Any]:
        """As tfmot asks for it."""
        settings = {"per_channel": self._per_channel, "keep_zeros": self._keep_zeros}
        return {**settings, "twin": self._twin}


def is_known(weights: Any) -> tf.Tensor:
    """Whether a batch has been seen for a range.

    Args:
        weights: What the `build` of its quantizer gave.
    """
    low, high = weights["min_var"], weights["max_var"]
    return tf.logical_or(tf.not_equal(low, -_UNKNOWN), tf.not_equal(high, _UNKNOWN))


Range = tuple["RangeQuantizer", dict[str, Any]]  # and what its `build` gave


class RangeQuantizer(_Quantizer):
    """Rounds outputs to 8 bits.

    Their range is a moving average that begins with the first batch, or, of a model's inputs,
    all that was ever seen; and it holds the ranges that `join_ranges` joined with it.

    Args:
        all_seen: Whether to keep the extremes instead of the average.
        called_again: Whether the layer is called several times. The range then holds what each
            call gives: the first step of a recurrent layer gives zeros, or next to nothing.
    """

    def __init__(self, *, all_seen: bool = False, called_again: bool = False) -> None:
        self._all_seen = all_seen
        self._called_again = called_again
        # By the range's variable: before and after an activation one quantizer has two ranges.
        self.joined: dict[Any, Sequence[Range]] = {}
        self.limit = math.inf  # above it all values are one

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds the range to the layer's weights."""
        return {
            "min_var": _add_weight(layer, f"{name}_min", tf.constant(-_UNKNOWN)),
            "max_var": _add_weight(layer, f"{name}_max", tf.constant(_UNKNOWN)),
        }

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> tf.Tensor:
        """The outputs as the artifact will have them."""
        low, high = weights["min_var"], weights["max_var"]
        if training:
            smallest = tf.minimum(tf.reduce_min(inputs), 0.0)
            largest = tf.minimum(tf.maximum(tf.reduce_max(inputs), 0.0), self.limit)
            if self._all_seen:
                smallest, largest, decay = tf.minimum(smallest, low), tf.maximum(largest, high), 0.0
            else:
                decay = tf.where(is_known(weights), _DECAY, 0.0)
                if self._called_again:
                    smallest = tf.minimum(smallest, decay * low + (1.0 - decay) * smallest)
                    largest = tf.maximum(largest, decay * high + (1.0 - decay) * largest)
                    decay = 0.0
            average = tf.__internal__.train.assign_moving_average  # the mean over all replicas
            low = average(low, smallest, decay, zero_debias=False)
            high = average(high, largest, decay, zero_debias=False)
        for _, other in self.joined.get(weights["min_var"].ref(), ()):
            low, high = tf.minimum(low, other["min_var"]), tf.maximum(high, other["max_var"])
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=_BITS)

    def get_config(self) -> dict[str, Any]:
        """As tfmot asks for it."""
        return {"all_seen": self._all_seen, "called_again": self._called_again}


class _KeepZeros(_Quantizer):
    """Leaves a kernel in float, but its zeros where they are."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = tf.convert_to_tensor(kernel)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {"mask": tf.cast(self._kernel != 0, self._kernel.dtype)}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> tf.Tensor:
        return inputs * weights["mask"]

    def get_config(self) -> dict[str, Any]:
        return {}


class FloatConfig(_OutputConfig):
    """What tfmot is to do with a layer that computes in float.

    Args:
        layer: The layer.
        quantize_output: Whether its output is quantized, so that what reads it can be.
        keep_zeros: Whether kernels that are zero somewhere stay so.
    """

    def __init__(self, layer: Any, *, quantize_output: bool, keep_zeros: bool) -> None:
        super().__init__(quantize_output)
        kernels = prunable_weights(layer) if keep_zeros else []
        self._places = [  # in the layer, or in its cell; by number, for a copy has them, too
            (number, attribute)
            for number, module in enumerate(layer._flatten_layers())
            for attribute, value in vars(module).items()
            if any(value is kernel for kernel in kernels)
        ]

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """The kernels to put into the layer changed, and what changes them."""
        modules = [*layer._flatten_layers()]
        kernels = [getattr(modules[number], attribute) for number, attribute in self._places]
        return [(kernel, _KeepZeros(kernel)) for kernel in kernels]

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        """Puts them into the layer."""
        modules = [*layer._flatten_layers()]
        for (number, attribute), kernel in zip(self._places, quantize_weights, strict=True):
            setattr(modules[number], attribute, kernel)

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """One, or none."""
        return [RangeQuantizer()] if self.quantize_output else []


def without_wrapper(layer: Any) -> Any:
    """The layer that tfmot has wrapped, or the layer itself; other wrappers stay around theirs."""
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def freeze(wrapper: Any, layer: Any) -> None:
    """Takes what is frozen in a layer out of the weights that tfmot's wrapper trains.

    Args:
        wrapper: Changed in place.
        layer: What it wraps.
    """
    frozen = {id(weight) for weight in layer.non_trainable_weights}
    given = [*wrapper._trainable_weights]
    moved = [weight for weight in given if not layer.trainable or id(weight) in frozen]
    wrapper._non_trainable_weights.extend(moved)
    wrapper._trainable_weights[:] = [w for w in given if all(w is not each for each in moved)]


def copy_quantized(model: Any) -> Any:
    """A copy with its own layers and the same weights, ranges and zeros that stay.

    Args:
        model: Functional tf_keras model of tfmot's quantization-aware training; stays as it is.
    """

    def copied(layer: Any) -> Any:
        if isinstance(layer, InputQuantizer):
            return type(layer)(_own(layer.quantizer), name=layer.name)
        if not isinstance(layer, QuantizeWrapper):
            return clone_tf_keras_layer(layer, layer.name, {})
        inner = clone_tf_keras_layer(layer.layer, layer.layer.name, {})
        inner.build_from_config(layer.layer.get_build_config())  # as tfmot wraps it: then kernels
        config = copy.copy(layer.quantize_config)  # come in the same order
        if hasattr(config, "activation_quantizer"):
            config.activation_quantizer = _own(config.activation_quantizer)
        return type(layer)(inner, config, name=layer.name)

    with tfmot.quantization.keras.quantize_scope():
        made = tf_keras.models.clone_model(model, clone_function=copied)
    for ours, theirs in zip(made.layers, model.layers, strict=True):
        if isinstance(theirs, QuantizeWrapper):
            frozen = {id(weight) for weight in theirs.layer.non_trainable_weights}
            if not any(id(weight) in frozen for weight in theirs._trainable_weights):
                freeze(ours, ours.layer)
            for (*_, own), (*_, known) in zip(ours._weight_vars, theirs._weight_vars, strict=True):
                own |= {name: value for name, value in known.items() if name == "mask"}
        ours.set_weights(theirs.get_weights())
    if any(isinstance(each, RangeQuantizer) for one in model.layers for each, _ in own_ranges(one)):
        join_ranges(made)
    return made


def _own(quantizer: Any) -> Any:
    """One of a copy's own: it remembers the ranges that it is joined with."""
    ours = isinstance(quantizer, RangeQuantizer)
    return RangeQuantizer(**quantizer.get_config()) if ours else quantizer


def join_ranges(model: Any) -> None:
    """Gives all that meets in an operator with one range the same range.

    Args:
        model: From tfmot's `quantize_apply`; changed in place.
    """
    for layer in model.layers:
        if isinstance(layer, InputQuantizer):
            layer.quantizer = RangeQuantizer(all_seen=True)
        inner = without_wrapper(layer)
        own = own_ranges(layer)
        if type(inner).__name__ in _ONE_RANGE_FOR_ALL or (own and _is_maximum(inner)):
            ranges = [*_ranges_before(layer), *own]
            _join(ranges)
            if type(inner).__name__ == "UpTo":  # what it reads is made for it alone
                for quantizer, _ in ranges:
                    quantizer.limit = min(quantizer.limit, inner.limit)


def _is_maximum(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.MaxPooling2D)


def _ranges_before(layer: Any) -> list[Range]:
    """The ranges of what a layer reads, through layers that only pass it on."""
    ranges: list[Range] = []
    for origin in tf.nest.flatten([node.inbound_layers for node in layer._inbound_nodes]):
        own = own_ranges(origin)
        passes_on = type(without_wrapper(origin)).__name__ in PASSING_ON
        ranges += own if own or not passes_on else _ranges_before(origin)
    return ranges


def own_ranges(layer: Any) -> list[Range]:
    """The range of a layer's output, if it is rounded to one."""
    if isinstance(layer, InputQuantizer):
        return [(layer.quantizer, layer.quantizer_vars)]
    if getattr(layer, "_output_quantizers", ()):
        return [(layer._output_quantizers[0], layer._output_quantizer_vars)]
    activations = getattr(layer, "_quantize_activations", ())
    return [
        (each.quantizer, each._post_activation_vars)
        for each in activations
        if each._should_post_quantize()
    ]


def _join(ranges: Sequence[Range]) -> None:
    """Makes one range of several, and of those that they were joined with before."""
    group: dict[Any, Range] = {}
    for quantizer, weights in ranges:
        key = weights["min_var"].ref()
        known = ((quantizer, weights), *quantizer.joined.get(key, ()))
        group.update({each[1]["min_var"].ref(): each for each in known})
    for key, (quantizer, _) in group.items():
        quantizer.joined[key] = [each for other, each in group.items() if other != key]


def _add_weight(layer: Any, name: str, value: tf.Tensor) -> Any:
    def initial(shape: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        return tf.cast(value, dtype)

    return layer.add_weight(name, shape=value.shape, initializer=initial, trainable=False)

"""A student rewritten into an equal one, made of layers that LiteRT computes in 8 bits.

tfmot and LiteRT's converter know convolutions, dense layers, a normalization that directly
follows one, and a few more. Much of what real architectures have besides is these in disguise:
a normalization that stands alone is one after a convolution that changes nothing, a
convolution over time is one over an image of width one. Each rewrite here computes what the
original does, in training, too; `docs/coverage.md` tells why. The whole is checked on random
inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.config_values import hard_sigmoid
from tfdistill.bridge.equality import check_outputs
from tfdistill.bridge.model_graphs import graph_or_raise
from tfdistill.rewrites.attention import (
    LayerNormalization,
    MaskedMean,
    Masks,
    can_be_rewritten,
    rewritten_attention,
)
from tfdistill.rewrites.builder import GraphBuilder, Image, has_channels, image_of, like, shape_of
from tfdistill.rewrites.operations import activation_of, with_layers
from tfdistill.rewrites.recurrent import can_be_written_out, written_out

_layers = tf_keras.layers

_FUSED_ACTIVATIONS = ("linear", "relu")  # those that tfmot and LiteRT keep within a kernel's layer
_MERGES = {"Add": "Add", "Average": "Add", "Multiply": "Multiply"}  # and what two of them are
_APPLICATIONS = (
    tf_keras.src.applications.convnext.LayerScale,
    tf_keras.src.applications.inception_resnet_v2.CustomScaleLayer,
)
# What computes each value by itself, or each channel: it may run on the image of width one.
_POINTWISE = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "Dropout", "Identity"),
    *("Add", "Multiply", "Subtract", "Maximum", "Minimum"),
)


@dataclass(frozen=True)
class Rewritten:
    """A model and where its layers come from.

    Attributes:
        model: The rewritten tf_keras model.
        origins: Name of each layer to the name of the original's layer that it does the work of,
            or a part of it.
        carriers: The same of the layers that have the original's weights.
    """

    model: Any
    origins: Mapping[str, str]
    carriers: Mapping[str, str]


def rewrite(model: Any, *, skip: frozenset[str] = frozenset()) -> Rewritten:
    """A model that computes the same, made of layers that can be quantized.

    Args:
        model: Flat Functional tf_keras model; stays as it is.
        skip: Names of layers to leave as they are.

    Raises:
        ConversionError: The rewritten model does not compute the same: a defect.
    """
    of_layers, names = with_layers(model, skip)
    rewriter = _Rewriter(of_layers, skip)
    rewritten = rewriter.graph.build(rewriter.call)
    check_outputs(model, rewritten)
    origins = {part: names[origin] for part, origin in rewriter.graph.origins.items()}
    return Rewritten(rewritten, origins, rewriter.graph.carriers)


class _Rewriter:
    """Says for each layer what stands in its place."""

    def __init__(self, model: Any, skip: frozenset[str]) -> None:
        self.graph = GraphBuilder(model)
        self._masks = Masks(model)
        self._skip = skip
        nodes = graph_or_raise(model)._network_nodes
        self._calls = {
            layer.name: [n for i, n in enumerate(layer._inbound_nodes) if _key(layer, i) in nodes]
            for layer in model.layers
        }
        self._readers: dict[str, int] = {}
        for found in self._calls.values():
            for node in found:
                for origin in tf.nest.flatten(node.inbound_layers):
                    self._readers[origin.name] = self._readers.get(origin.name, 0) + 1
        for tensor in model.outputs:
            name = tensor._keras_history.layer.name
            self._readers[name] = self._readers.get(name, 0) + 1

    def call(self, layer: Any, node: Any, args: Any, kwargs: Any) -> Any:
        """What the layer gives, computed by what stands in its place."""
        values = [*tf.nest.flatten(args), *tf.nest.flatten(kwargs)]
        kind = type(layer).__name__
        # An exact class: what a subclass computes is not known.
        known = type(layer) in _APPLICATIONS or type(layer) is getattr(_layers, kind, None)
        masked = any(getattr(value, "_keras_mask", None) is not None for value in values)
        # tfmot would split these itself, under names that may be taken.
        split = isinstance(layer, _layers.SeparableConv1D | _layers.SeparableConv2D)
        if (layer.name in self._skip and not split) or masked or not known:
            result = self._as_it_is(layer, args, kwargs)
        elif isinstance(layer, _layers.MultiHeadAttention):
            result = self._attention(layer, args, kwargs)
        elif kwargs or len(args) != 1:
            result = self._as_it_is(layer, args, kwargs)
        else:
            rewrite_of = getattr(self, f"_{kind}", None)
            result = rewrite_of(layer, args[0]) if rewrite_of else None
            if result is None and kind in _POINTWISE and _per_channel(layer):
                result = self._pointwise(layer, args[0])
            elif result is None:
                result = self._as_it_is(layer, args, kwargs)
        return self._masks.hand_on(self.graph, layer, values, result)

    def _as_it_is(self, layer: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tf.nest.map_structure(
            lambda value: self.graph.tensor(layer, value), (args, kwargs)
        )
        return self.graph.clone(layer)(*args, **kwargs)

    def _pointwise(self, layer: Any, values: Any) -> Any:
        """Runs on images where all that it reads is at hand as such."""
        flat = tf.nest.flatten(values)
        if not all(isinstance(value, Image) for value in flat):
            return self._as_it_is(layer, (values,), {})
        if len({value.shape for value in flat}) > 1:
            return self._as_it_is(layer, (values,), {})
        images = [value.image for value in flat]
        result = self.graph.clone(layer)(images if isinstance(values, list | tuple) else images[0])
        return Image(result, flat[0].shape)

    # What a kernel is followed by

    def _Conv2D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        return self._without_activation(layer, value)

    _DepthwiseConv2D = _Conv2DTranspose = _Dense = _Conv2D

    def _without_activation(self, layer: Any, value: Any) -> Any:
        if activation_of(layer) in _FUSED_ACTIVATIONS:
            return None
        kernel = self.graph.clone(layer, activation=tf_keras.activations.linear)
        return self._activated(layer, kernel(self.graph.tensor(layer, value)))

    def _activated(self, layer: Any, tensor: Any) -> Any:
        """The layer's own activation, as a layer."""
        if activation_of(layer) == "linear":
            return tensor
        activation = self.graph.part(
            layer, "activation", lambda n: _layers.Activation(layer.activation, name=n)
        )
        return self._activation(layer, activation, tensor)

    def _Activation(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if layer.activation not in (hard_sigmoid, tf_keras.activations.hard_sigmoid):
            return None
        return self._hard_sigmoid(layer, value, ours=layer.activation is hard_sigmoid)

    def _activation(self, layer: Any, activation: Any, value: Any) -> Any:
        if activation.activation in (hard_sigmoid, tf_keras.activations.hard_sigmoid):
            return self._hard_sigmoid(layer, value, ours=activation.activation is hard_sigmoid)
        return activation(value)

    def _hard_sigmoid(self, layer: Any, value: Any, *, ours: bool) -> Any:
        """relu6(x + 3) / 6; that of tf_keras, clip(x / 5 + 1/2), is relu6(6 x / 5 + 3) / 6."""
        moved = self._affine(layer, "plus_3", value, scale=1.0 if ours else 1.2, offset=3.0)
        relu6 = self.graph.part(layer, "relu6", lambda n: _layers.ReLU(6.0, name=n))
        cut = like(moved, relu6(image_of(moved)))
        return self._affine(layer, "sixth", cut, scale=1 / 6)

    # Each channel times a number, plus a number

    def _affine(
        self,
        layer: Any,
        name: str,
        value: Any,
        *,
        scale: Any,
        offset: Any = 0.0,
        trainable: bool = False,
    ) -> Any:
        """A depthwise 1x1 convolution: in 8 bits, each channel has its own step there."""
        channels = int(shape_of(value)[-1] or 0)
        scale, offset = (np.asarray(v, np.float32).reshape(-1) for v in (scale, offset))
        weights = [np.broadcast_to(scale, [channels]).reshape(1, 1, channels, 1)]
        if np.any(offset):
            weights.append(np.broadcast_to(offset, [channels]))

        def make(whole: str) -> Any:
            return _layers.DepthwiseConv2D(1, use_bias=len(weights) > 1, name=whole)

        convolution = self.graph.part(
            layer, name, make, weights, trainable=trainable, carries=False
        )
        return like(value, convolution(self.graph.image(layer, value)))

    def _Rescaling(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not has_channels(value):
            return None
        channels = int(shape_of(value)[-1] or 0)
        if any(np.size(each) not in (1, channels) for each in (layer.scale, layer.offset)):
            return None
        return self._affine(layer, "", value, scale=layer.scale, offset=layer.offset)

    def _Normalization(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not has_channels(value) or layer.invert or not image_of(value).dtype.is_floating:
            return None
        mean, variance = (np.asarray(v).reshape(-1) for v in (layer.mean, layer.variance))
        if any(each.size not in (1, shape_of(value)[-1]) for each in (mean, variance)):
            return None
        scale = 1.0 / np.maximum(np.sqrt(variance), tf_keras.backend.epsilon())
        return self._affine(layer, "", value, scale=scale, offset=-mean * scale)

    def _BatchNormalization(self, layer: Any, value: Any) -> Any:  # noqa: N802
        """Put behind a convolution that changes nothing, unless it is behind one already."""
        if _axis(layer) != len(shape_of(value)) or not has_channels(value):
            return None
        if not self._folds(layer):
            value = self._affine(layer, "identity", value, scale=1.0)
        elif not isinstance(value, Image):
            return None
        # The fused kind averages another variance, and is chosen by the rank of the input.
        fused = {} if layer.fused else {"fused": False}
        normalization = self.graph.clone(layer, axis=-1, **fused)
        return like(value, normalization(image_of(value)))

    _SyncBatchNormalization = _BatchNormalization

    def _folds(self, layer: Any) -> bool:
        """Whether it follows a convolution that nothing else reads, and is called once."""
        if len(self._calls[layer.name]) != 1:
            return False
        before = tf.nest.flatten(self._calls[layer.name][0].inbound_layers)[0]
        convolutions = (
            *(_layers.Conv1D, _layers.Conv2D, _layers.DepthwiseConv1D, _layers.DepthwiseConv2D),
            *(_layers.SeparableConv1D, _layers.SeparableConv2D),
        )
        return (
            type(before) in convolutions
            and before.name not in self._skip
            and activation_of(before) == "linear"
            and self._readers[before.name] == 1
            and len(self._calls[before.name]) == 1
        )

    def _LayerScale(self, layer: Any, value: Any) -> Any:  # noqa: N802
        """ConvNeXt's: each channel times a weight."""
        if not has_channels(value):
            return None
        return self._affine(layer, "", value, scale=layer.gamma.numpy(), trainable=layer.trainable)

    def _CustomScaleLayer(self, layer: Any, values: Any) -> Any:  # noqa: N802
        """InceptionResNetV2's: the first plus the second times a number."""
        first, second = values
        if not has_channels(second):
            return None
        scaled = self._affine(layer, "scaled", second, scale=layer.scale)
        add = self.graph.part(layer, "", lambda n: _layers.Add(name=n))
        return add([self.graph.tensor(layer, first), self.graph.tensor(layer, scaled)])

    # Sums and products of more than two

    def _Add(self, layer: Any, values: Any) -> Any:  # noqa: N802
        if type(layer).__name__ != "Average" and len(values) <= 2:
            return None
        merge = getattr(_layers, _MERGES[type(layer).__name__])
        tensors = [self.graph.tensor(layer, value) for value in values]
        average = isinstance(layer, _layers.Average)
        if len({tuple(each.shape) for each in tensors}) > 1:
            return None
        if average and not has_channels(tensors[0]):
            return None
        total = tensors[0]
        for count, each in enumerate(tensors[1:], start=2):
            last = count == len(tensors) and not average
            name = "" if last else f"first_{count}"
            total = self.graph.part(layer, name, lambda n: merge(name=n))([total, each])
        if average:
            return self._affine(layer, "", total, scale=1 / len(tensors))
        return total

    _Multiply = _Average = _Add

    # Attention and masks

    def _Embedding(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not layer.mask_zero or not self._masks.written_out:
            return None
        return self._masks.of_embedding(self.graph, layer, value)

    def _LayerNormalization(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if _axis(layer) not in (-1, len(shape_of(value))) or shape_of(value)[-1] is None:
            return None
        made = self.graph.part(
            layer,
            "",
            lambda n: LayerNormalization.from_config({**layer.get_config(), "name": n}),
            layer.get_weights(),
        )
        return made(self.graph.tensor(layer, value))

    def _attention(self, layer: Any, args: Any, kwargs: Any) -> Any:
        given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
        sides = {"queries": ["query"], "keys": ["value", "key"]}
        masks = [
            (kind, self._masks.of(given[side]))
            for kind, names in sides.items()
            for side in names
            if self._masks.of(given.get(side)) is not None
        ]
        call = tf.nest.map_structure(lambda value: self.graph.tensor(layer, value), dict(given))
        if not can_be_rewritten(layer, call):
            return self._as_it_is(layer, args, kwargs)
        if call.get("attention_mask") is not None:
            masks.append(("pairs", call["attention_mask"]))
        key = call["value"] if call.get("key") is None else call["key"]
        return rewritten_attention(
            self.graph,
            layer,
            (call["query"], key, call["value"]),
            masks,
            causal=bool(call.get("use_causal_mask")),
            scale=lambda *given: self.graph.tensor(layer, self._affine(*given[:3], scale=given[3])),
        )

    def _LSTM(self, layer: Any, value: Any) -> Any:  # noqa: N802
        tensor = self.graph.tensor(layer, value)
        if self._masks.of(value) is not None or not can_be_written_out(layer, tensor):
            return None
        return written_out(self.graph, layer, tensor)

    _GRU = _SimpleRNN = _LSTM

    # Convolutions over time, and those in two parts

    def _Conv1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        kernel, *bias = layer.get_weights()
        return self._over_time(
            layer,
            value,
            lambda name, **common: _layers.Conv2D(
                layer.filters, (layer.kernel_size[0], 1), groups=layer.groups, name=name, **common
            ),
            [kernel[:, None], *bias],
        )

    def _DepthwiseConv1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        kernel, *bias = layer.get_weights()
        return self._over_time(layer, value, self._depthwise(layer), [kernel[:, None], *bias])

    def _SeparableConv1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        depthwise, pointwise, *bias = layer.get_weights()
        made = self._over_time(
            layer, value, self._depthwise(layer), [depthwise[:, None]], part="depthwise"
        )
        if made is None:
            return None
        return self._mixed(layer, made, [pointwise[:, None], *bias])

    def _SeparableConv2D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if layer.data_format != "channels_last":
            return None
        depthwise, pointwise, *bias = layer.get_weights()

        def make(name: str) -> Any:
            return _layers.DepthwiseConv2D(
                layer.kernel_size,
                strides=layer.strides,
                padding=layer.padding,
                dilation_rate=layer.dilation_rate,
                depth_multiplier=layer.depth_multiplier,
                use_bias=False,
                depthwise_regularizer=layer.depthwise_regularizer,
                depthwise_constraint=layer.depthwise_constraint,
                name=name,
            )

        apart = self.graph.part(layer, "depthwise", make, [depthwise], carries=False)(value)
        return self._mixed(layer, apart, [pointwise, *bias])

    def _depthwise(self, layer: Any) -> Callable[..., Any]:
        separable = isinstance(layer, _layers.SeparableConv1D)

        def make(name: str, **common: Any) -> Any:
            size, stride = layer.kernel_size[0], layer.strides[0]
            if separable:
                common = {
                    **{k: v for k, v in common.items() if not k.startswith(("kernel_", "bias_"))},
                    "use_bias": False,
                }
            regularizers = {
                f"depthwise_{kind}": getattr(layer, f"depthwise_{kind}")
                for kind in ("regularizer", "constraint")
            }
            common = {k: v for k, v in common.items() if not k.startswith("kernel_")}
            # Both strides must be equal; over a width of one the second does nothing.
            common["strides"] = (stride, stride)
            return _layers.DepthwiseConv2D(
                (size, 1),
                depth_multiplier=layer.depth_multiplier,
                name=name,
                **common,
                **regularizers,
            )

        return make

    def _mixed(self, layer: Any, apart: Any, weights: list[np.ndarray]) -> Any:
        """The second half of a separable convolution."""

        def make(name: str) -> Any:
            return _layers.Conv2D(
                layer.filters,
                1,
                use_bias=layer.use_bias,
                activation="relu" if activation_of(layer) == "relu" else None,
                kernel_regularizer=layer.pointwise_regularizer,
                kernel_constraint=layer.pointwise_constraint,
                bias_regularizer=layer.bias_regularizer,
                bias_constraint=layer.bias_constraint,
                name=name,
            )

        mixed = self.graph.part(layer, "", make, weights)(image_of(apart))
        if activation_of(layer) not in _FUSED_ACTIVATIONS:
            mixed = self._activated(layer, mixed)
        return like(apart, mixed)

    def _over_time(
        self,
        layer: Any,
        value: Any,
        make: Callable[..., Any],
        weights: list[np.ndarray],
        part: str = "",
    ) -> Any:
        """A convolution of rank 1 as one of rank 2, over an image of width one."""
        if layer.data_format != "channels_last" or len(shape_of(value)) != 2:
            return None
        image = self.graph.image(layer, value)
        size, dilation = layer.kernel_size[0], layer.dilation_rate[0]
        padding = layer.padding
        if padding == "causal":
            before = dilation * (size - 1)
            pad = self.graph.part(
                layer, "past", lambda n: _layers.ZeroPadding2D(((before, 0), (0, 0)), name=n)
            )
            image, padding = pad(image), "valid"
        fused = activation_of(layer) in _FUSED_ACTIVATIONS and not part
        common = {
            "strides": (layer.strides[0], 1),
            "padding": padding,
            "dilation_rate": (dilation, dilation if layer.strides[0] == 1 else 1),
            "activation": activation_of(layer) if fused else None,
            "use_bias": layer.use_bias,
            "kernel_regularizer": getattr(layer, "kernel_regularizer", None),
            "kernel_constraint": getattr(layer, "kernel_constraint", None),
            "bias_regularizer": layer.bias_regularizer,
            "bias_constraint": layer.bias_constraint,
        }
        result = self.graph.part(
            layer, part, lambda n: make(n, **common), weights, carries=not part
        )(image)
        if not fused and not part:
            result = self._activated(layer, result)
        return Image(result, (result.shape[1], result.shape[-1]))

    def _MaxPooling1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not isinstance(value, Image) or layer.data_format != "channels_last":
            return None
        kind = getattr(_layers, type(layer).__name__.replace("1D", "2D"))
        (size,), (stride,) = layer.pool_size, layer.strides

        def make(name: str) -> Any:
            return kind((size, 1), strides=(stride, 1), padding=layer.padding, name=name)

        pooled = self.graph.part(layer, "", make)(value.image)
        return Image(pooled, (pooled.shape[1], pooled.shape[-1]))

    _AveragePooling1D = _MaxPooling1D

    def _GlobalMaxPooling1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        mask = self._masks.of(value)
        if mask is not None and isinstance(layer, _layers.GlobalAveragePooling1D):
            mean = self.graph.part(layer, "", lambda n: MaskedMean(keepdims=layer.keepdims, name=n))
            return mean([self.graph.tensor(layer, value), mask])
        if not isinstance(value, Image) or layer.data_format != "channels_last":
            return None
        kind = getattr(_layers, type(layer).__name__.replace("1D", "2D"))
        pooled = self.graph.part(layer, "", lambda n: kind(keepdims=layer.keepdims, name=n))(
            value.image
        )
        return Image(pooled, (1, pooled.shape[-1])) if layer.keepdims else pooled

    _GlobalAveragePooling1D = _GlobalMaxPooling1D

    def _ZeroPadding1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not isinstance(value, Image):
            return None
        pad = self.graph.part(
            layer, "", lambda n: _layers.ZeroPadding2D((layer.padding, (0, 0)), name=n)
        )
        padded = pad(value.image)
        return Image(padded, (padded.shape[1], padded.shape[-1]))

    def _UpSampling1D(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if len(shape_of(value)) != 2:
            return None
        larger = self.graph.part(layer, "", lambda n: _layers.UpSampling2D((layer.size, 1), name=n))
        image = larger(self.graph.image(layer, value))
        return Image(image, (image.shape[1], image.shape[-1]))

    def _Concatenate(self, layer: Any, values: Any) -> Any:  # noqa: N802
        """Along the channels it runs on images."""
        images = all(isinstance(value, Image) for value in values)
        if not images or _axis(layer) not in (-1, len(shape_of(values[0]))):
            return None
        joined = self.graph.part(layer, "", lambda n: _layers.Concatenate(axis=-1, name=n))(
            [value.image for value in values]
        )
        return Image(joined, (*shape_of(values[0])[:-1], joined.shape[-1]))


def _key(layer: Any, index: int) -> str:
    return f"{layer.name}_ib-{index}"


def _axis(layer: Any) -> int:
    axis = layer.axis
    return int(axis[0] if isinstance(axis, Sequence) and len(axis) == 1 else axis)


def _per_channel(layer: Any) -> bool:
    """Whether what a pointwise layer does is the same on an image."""
    if isinstance(layer, _layers.Softmax) or activation_of(layer) == "softmax":
        return getattr(layer, "axis", -1) == -1
    if isinstance(layer, _layers.Dropout):
        return layer.noise_shape is None
    return True

"""Convolutions, activations and what runs over time, rewritten into convolutions of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfdistill._keras import tf_keras
from tfdistill.bridge.config_values import hard_sigmoid
from tfdistill.rewrites.builder import GraphBuilder, Image, image_of, like, shape_of
from tfdistill.rewrites.masks import MaskedMean, Masks
from tfdistill.rewrites.operations import activation_of

_layers = tf_keras.layers

_FUSED_ACTIVATIONS = ("linear", "relu")  # those that tfmot and LiteRT keep within a kernel's layer


class Convolutions:
    """Says for each such layer what stands in its place; None for the layer itself."""

    def __init__(self, model: Any) -> None:
        self.graph = GraphBuilder(model)
        self._masks = Masks()

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

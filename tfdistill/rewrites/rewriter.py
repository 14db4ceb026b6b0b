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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.equality import check_outputs
from tfdistill.bridge.model_graphs import graph_or_raise
from tfdistill.rewrites.attention import (
    LayerNormalization,
    can_be_rewritten,
    rewritten_attention,
)
from tfdistill.rewrites.builder import Image, has_channels, image_of, like, shape_of
from tfdistill.rewrites.convolutions import Convolutions
from tfdistill.rewrites.masks import Unmasked, can_be_wrapped, has_mask, reads_masks
from tfdistill.rewrites.operations import ReLUAbove, UpTo, activation_of, with_layers
from tfdistill.rewrites.recurrent import (
    Hidden,
    can_be_written_out,
    written_out,
    written_out_both_ways,
)
from tfdistill.rewrites.wrappers import without_wrappers

_layers = tf_keras.layers

IDENTITY = "identity"  # the part of a normalization that is a convolution which changes nothing
_LOOPS = (_layers.RNN, _layers.Bidirectional)
# Layers that make or read masks, rewritten into what has them as tensors.
_MASKS_WRITTEN_OUT = (
    *("Bidirectional", "Embedding", "GRU", "GlobalAveragePooling1D", "LSTM"),
    *("MultiHeadAttention", "SimpleRNN"),
)
_MERGES = {"Add": "Add", "Average": "Add", "Multiply": "Multiply"}  # and what two of them are
_BOTH_WAYS = {  # how Bidirectional names what joins its two layers; an average is half a sum
    "concat": _layers.Concatenate,
    "sum": _layers.Add,
    "ave": _layers.Add,
    "mul": _layers.Multiply,
}
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
    apart, wrappers = without_wrappers(model)
    of_layers, names = with_layers(apart, skip)
    rewriter = _Rewriter(of_layers, skip)
    rewritten = rewriter.graph.build(rewriter.call)
    check_outputs(model, rewritten)
    origins, carriers = (
        {part: wrappers[names[origin]] for part, origin in found.items()}
        for found in (rewriter.graph.origins, rewriter.graph.carriers)
    )
    return Rewritten(rewritten, origins, carriers)


class _Rewriter(Convolutions):
    """Says for each layer what stands in its place."""

    def __init__(self, model: Any, skip: frozenset[str]) -> None:
        super().__init__(model)
        self._skip = skip
        self._outputs = {tensor._keras_history.layer.name for tensor in model.outputs}
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
        # tfmot would split these itself, under names that may be taken.
        split = isinstance(layer, _layers.SeparableConv1D | _layers.SeparableConv2D)
        # What it adds to the loss is of its own output.
        regularized = getattr(layer, "activity_regularizer", None) is not None
        kept = layer.name in self._skip or regularized
        if (kept and not split) or not known or self._leaves_masks_to_keras(layer):
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

    def _leaves_masks_to_keras(self, layer: Any) -> bool:
        """Whether a layer reads or hands on masks in a way that is not written out here."""
        masked = [
            [has_mask(tensor) for tensor in tf.nest.flatten((node.keras_inputs, node.outputs))]
            for node in self._calls[layer.name]
        ]
        if not any(map(any, masked)):
            return False
        alike = all(each == masked[0] for each in masked)
        known = type(layer).__name__ in _MASKS_WRITTEN_OUT and alike
        return self._gives_its_mask_away(layer) or (reads_masks(layer) and not known)

    def _gives_its_mask_away(self, layer: Any) -> bool:
        """Whether who calls the model is to have a mask with what the layer gives."""
        return layer.name in self._outputs and has_mask(layer.get_output_at(0))

    def _as_it_is(self, layer: Any, args: Any, kwargs: Any) -> Any:
        keras_masks = reads_masks(layer) or self._gives_its_mask_away(layer)

        def given(value: Any) -> Any:
            if keras_masks:
                return self._masks.given_to_keras(self.graph, layer, value)
            return self.graph.tensor(layer, value)

        args, kwargs = tf.nest.map_structure(given, (args, kwargs))
        clone = self.graph.clone(layer)
        result = clone(*args, **kwargs)
        alone = isinstance(layer, _LOOPS) or not can_be_wrapped(clone)
        values = []
        for place, tensor in enumerate(tf.nest.flatten(result)):
            value = tensor
            if layer.name not in self._outputs:
                if has_mask(tensor):
                    value = self.graph.part(layer, "unmasked", lambda n: Unmasked(name=n))(value)
                if alone and tensor.dtype.is_floating:
                    value = self._rounded(layer, f"values_{place}" if place else "values", value)
            if has_mask(tensor):
                self._masks.take_from_keras(self.graph, layer, tensor, value)
            values.append(value)
        return tf.nest.pack_sequence_as(result, values)

    def _rounded(self, layer: Any, name: str, value: Any) -> Any:
        """What a layer gives that tfmot cannot wrap, as what a layer gives that it can."""
        if has_channels(value):
            # The converter cannot quantize what a loop gives, but what a convolution gives.
            return self._affine(layer, name, value, scale=1.0)
        if isinstance(layer, _LOOPS):
            return value
        return self.graph.part(layer, name, lambda n: Hidden(name=n))(value)

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

    # Each channel times a number, plus a number

    def _Rescaling(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not has_channels(value) or not image_of(value).dtype.is_floating:
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
        axis, rank = _axis(layer), len(shape_of(value))
        if 0 < axis < rank:
            return self._with_last(layer, value, axis, rank)
        if axis != rank or not has_channels(value):
            return None
        if not self._folds(layer):
            value = self._affine(layer, IDENTITY, value, scale=1.0)
        elif not isinstance(value, Image):
            return None
        return self._normalized(layer, value)

    def _with_last(self, layer: Any, value: Any, axis: int, rank: int) -> Any:
        """Normalized along an axis that is the last one meanwhile."""
        last = [*(each for each in range(1, rank + 1) if each != axis), axis]
        back = [1 + last.index(each) for each in range(1, rank + 1)]
        tensor = self.graph.tensor(layer, value)
        moved = self.graph.part(layer, "last", lambda n: _layers.Permute(last, name=n))(tensor)
        if not has_channels(moved):
            return None
        moved = self._affine(layer, IDENTITY, moved, scale=1.0)
        moved = self.graph.tensor(layer, self._normalized(layer, moved))
        return self.graph.part(layer, "back", lambda n: _layers.Permute(back, name=n))(moved)

    def _normalized(self, layer: Any, value: Any) -> Any:
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

    # Activations that LiteRT's kernels do not end in

    def _ReLU(self, layer: Any, value: Any) -> Any:  # noqa: N802
        """With a slope, and then up to a limit, each by itself."""
        if activation_of(layer):
            return None
        if float(layer.threshold):
            config = layer.get_config()
            above = self.graph.part(
                layer, "", lambda n: ReLUAbove.from_config({**config, "name": n})
            )
            return above(self.graph.tensor(layer, value))
        slope, limit = float(layer.negative_slope), layer.max_value
        image = isinstance(value, Image)
        result = value.image if image else self.graph.tensor(layer, value)
        rectified = self.graph.part(
            layer,
            "" if limit is None else "unlimited",
            lambda n: _layers.LeakyReLU(slope, name=n) if slope else _layers.ReLU(name=n),
        )
        result = rectified(result)
        if limit is not None:
            result = self.graph.part(layer, "", lambda n: UpTo(float(limit), name=n))(result)
        return Image(result, value.shape) if image else result

    # Attention and masks

    def _Embedding(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if not layer.mask_zero:
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
        if isinstance(value, list | tuple):  # with the states to begin with
            return None
        tensor = self.graph.tensor(layer, value)
        if not can_be_written_out(layer, tensor):
            return None
        return written_out(partial(self.graph.part, layer), layer, tensor, self._masks.of(value))

    _GRU = _SimpleRNN = _LSTM

    def _Bidirectional(self, layer: Any, value: Any) -> Any:  # noqa: N802
        if isinstance(value, list | tuple):
            return None
        tensor = self.graph.tensor(layer, value)
        both = layer.forward_layer, layer.backward_layer
        known = layer.merge_mode and all(can_be_written_out(each, tensor) for each in both)
        if not known:
            return None
        ends = written_out_both_ways(self.graph, layer, tensor, self._masks.of(value))
        average = layer.merge_mode == "ave"
        merge = _BOTH_WAYS[layer.merge_mode]
        merged = self.graph.part(layer, "sum" if average else "", lambda n: merge(name=n))(ends)
        return self._affine(layer, "", merged, scale=0.5) if average else merged

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
    """The only axis of a layer; of several 0, which is none that a layer can have."""
    axes = [*layer.axis] if isinstance(layer.axis, Sequence) else [layer.axis]
    return int(axes[0]) if len(axes) == 1 else 0


def _per_channel(layer: Any) -> bool:
    """Whether what a pointwise layer does is the same on an image."""
    if isinstance(layer, _layers.Softmax) or activation_of(layer) == "softmax":
        return getattr(layer, "axis", -1) == -1
    if isinstance(layer, _layers.Dropout):
        return layer.noise_shape is None
    return True

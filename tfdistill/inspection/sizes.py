"""How large a model's artifacts will be, before anything is trained."""

from __future__ import annotations

import gzip
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill.bridge.layer_configs import copy_model
from tfdistill.export.conversion import convert
from tfdistill.litert.compaction import compact
from tfdistill.litert.flatbuffer import Graph, layer_of, unpack

__all__ = ["PredictedSize", "predict_sizes"]

# Bytes of what an artifact has more than the float32 one, measured with TensorFlow 2.21.
_PER_CHANNEL = 12  # scale and zero point
_PER_RANGE = 8  # smallest and largest value of a channel, which only int16x8 keeps
_PER_DEQUANTIZE = 112  # the operator of a float16 constant, and its tensor
_PER_ACTIVATION = 80  # its scale and zero point
_PER_DYNAMIC_KERNEL = 80
# Of them, after gzip: zero points are all alike, scales are not.
_GZIPPED_PER_CHANNEL = 4
_GZIPPED_SHARE = 0.35
_FORMATS = ("float32", "float16", "dynamic_int8", "int8", "int16x8")
_DYNAMIC_MINIMUM = 1024  # weights: the converter leaves smaller kernels in float
_SAMPLE = 2**18  # weights that are compressed to learn the rate


@dataclass(frozen=True)
class PredictedSize:
    """Predicted size of one artifact.

    Attributes:
        raw_bytes: Of the file. Pruning does not change it.
        gzip_bytes: Of the file after gzip, without pruning.
        sparse_gzip_bytes: The same after pruning; `None` where nothing is pruned.
    """

    raw_bytes: int
    gzip_bytes: int
    sparse_gzip_bytes: int | None


def predict_sizes(
    model: Any, *, sparsity: float, pruned: Collection[str]
) -> dict[str, PredictedSize]:
    """Predicts the sizes of a model's artifacts, in bytes.

    The model is converted to float32 as it is, which gives the size of everything that is no
    number: operators, tensors and names. To that are added 4, 2 or 1 bytes for each weight, 4
    for each bias (8 in int16x8, 2 in float16), 12 for the scale and the zero point of each output
    channel of a quantized kernel and of its bias (8 more for a kernel's in int16x8), and some 100
    for each activation or float16 constant.

    After gzip: the rates of what is no number, measured, and of the model's own kernels, of up
    to 262,144 weights, as the format stores them; for the pruned ones after their smallest
    weights have been set to 0 (as if unstructured, also for the other patterns). Kernels of
    random values shrink less than trained ones.

    For models whose float32 artifact has more than 100 KB, raw sizes are within 5 % and sizes
    after gzip within 15 % of those of the real artifacts of the same weights; embedded metadata
    and labels are not predicted.

    Args:
        model: Functional tf_keras model, as `conversion.check_exportable` accepts it.
        sparsity: Share of zeros in every pruned kernel.
        pruned: Names of the pruned layers.

    Returns:
        Format to its predicted size: float32, float16, dynamic_int8, int8 and int16x8.

    Raises:
        ExportError: The model cannot be converted; the message names operators and layers.
    """
    # Equal constants, such as biases before training, would be stored once.
    distinct = copy_model(model)
    rng = np.random.default_rng(0)
    distinct.set_weights([_told_apart(weight, rng) for weight in distinct.get_weights()])
    content = compact(convert(distinct, "float32"), model)
    constants = list(_constants(content, model, pruned))
    activations, structure, structure_gzip = _structure(content, constants)
    sizes = {}
    for format in _FORMATS:
        stored = [_Stored(constant, format) for constant in constants]
        overhead = sum(each.overhead for each in stored)
        channels = sum(each.channels for each in stored)
        ranges = sum(each.ranges for each in stored)
        if format in ("int8", "int16x8"):
            overhead += _PER_ACTIVATION * activations
        raw = structure + overhead + sum(each.bytes for each in stored)
        fixed = structure_gzip + _GZIPPED_SHARE * (overhead - _PER_CHANNEL * channels - ranges)
        fixed += _GZIPPED_PER_CHANNEL * channels + ranges
        gzipped = [
            round(fixed + _gzipped(stored, share))
            for share in ((0.0, sparsity) if pruned else (0.0,))
        ]
        sizes[format] = PredictedSize(raw, gzipped[0], gzipped[1] if pruned else None)
    return sizes


def _told_apart(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if weight.ndim > 1 or not np.issubdtype(weight.dtype, np.floating):
        return weight
    return weight + rng.uniform(0, 1e-3, weight.shape).astype(weight.dtype)


@dataclass(frozen=True)
class _Constant:
    """A constant of real numbers in a float32 file."""

    values: np.ndarray
    channel_axis: int | None  # of a kernel; `None` for everything else
    is_pruned: bool
    is_bias: bool


class _Stored:
    """A constant as a format stores it.

    Attributes:
        bytes: How many its values take.
        overhead: Bytes beside them.
        channels: How many scales are among the overhead.
        ranges: Bytes of the overhead that hold ranges, and shrink no further.
    """

    def __init__(self, constant: _Constant, format: str) -> None:
        self.constant = constant
        values, kernel = constant.values, constant.channel_axis is not None
        integer = format in ("int8", "int16x8") or (
            format == "dynamic_int8" and kernel and values.size >= _DYNAMIC_MINIMUM
        )
        self.type: Any = np.float32
        self.overhead = self.channels = self.ranges = 0
        if format == "float16":
            self.type, self.overhead = np.float16, _PER_DEQUANTIZE
        elif integer and kernel:
            self.type = np.int8
            self.channels = values.shape[constant.channel_axis or 0]
        elif integer and constant.is_bias:
            self.type = np.int64 if format == "int16x8" else np.int32
            self.channels = values.size
        elif integer:
            self.type = np.int16 if format == "int16x8" else np.int8
        if format == "int16x8" and kernel:
            self.ranges = _PER_RANGE * self.channels
        self.overhead += _PER_CHANNEL * self.channels + self.ranges
        if format == "dynamic_int8" and integer:
            self.overhead += _PER_DYNAMIC_KERNEL
        self.bytes = values.size * np.dtype(self.type).itemsize

    def encoded(self, sparsity: float) -> np.ndarray:
        """The values as they are stored."""
        values = self.constant.values
        if self.constant.is_pruned and sparsity:
            zeros = round(values.size * sparsity)
            values = values.copy().reshape(-1)
            values[np.argsort(np.abs(values), kind="stable")[:zeros]] = 0
            values = values.reshape(self.constant.values.shape)
        if not np.issubdtype(self.type, np.integer):
            return values.astype(self.type)
        axis = self.constant.channel_axis
        others = None if axis is None else tuple(a for a in range(values.ndim) if a != axis)
        largest = np.max(np.abs(values), axis=others, keepdims=True)
        limit = np.iinfo(np.int8 if self.type == np.int8 else np.int16).max
        steps = values * limit / np.where(largest > 0, largest, 1)
        return np.round(steps).astype(self.type)


def _gzipped(stored: list[_Stored], sparsity: float) -> float:
    """Size of the constants after gzip, from the rate of a part of each."""
    total = sum(each.constant.values.size for each in stored)
    share = min(1.0, _SAMPLE / total) if total else 1.0
    sampled: dict[Any, list[np.ndarray]] = {}
    sizes: dict[Any, int] = {}
    for each in stored:
        values = each.encoded(sparsity).reshape(-1)
        sampled.setdefault(each.type, []).append(values[: math.ceil(share * values.size)])
        sizes[each.type] = sizes.get(each.type, 0) + each.bytes
    size = 0.0
    for kind, parts in sampled.items():
        sample = np.concatenate(parts).tobytes()
        size += sizes[kind] * len(gzip.compress(sample, 9)) / max(1, len(sample))
    return size


def _constants(content: bytes, model: Any, pruned: Collection[str]) -> Iterator[_Constant]:
    packed = unpack(content)
    seen: set[int] = set()
    for graph in (Graph(packed, each) for each in packed.subgraphs):
        for operator in graph.operators:
            kernels = {id(tensor) for tensor in graph.weights(operator)}
            depthwise = graph.name(operator) == "DEPTHWISE_CONV_2D"
            for index in operator.inputs:
                tensor = graph.tensors[index] if index >= 0 else None
                if tensor is None or tensor.buffer in seen or not graph.is_constant(tensor):
                    continue
                values = _floats(packed, tensor)
                if values is None:
                    continue
                seen.add(tensor.buffer)
                is_kernel = id(tensor) in kernels
                yield _Constant(
                    values,
                    (values.ndim - 1 if depthwise else 0) if is_kernel else None,
                    is_kernel and layer_of(tensor.name.decode(), model) in pruned,
                    is_bias=values.ndim == 1,
                )


def _floats(packed: Any, tensor: Any) -> np.ndarray | None:
    """The values of a constant of real numbers."""
    if tensor.type != 0:
        return None
    shape = [] if tensor.shape is None else [int(axis) for axis in tensor.shape]
    data = np.asarray(packed.buffers[tensor.buffer].data, np.uint8)
    return data.view(np.float32).reshape(shape)


def _structure(content: bytes, constants: list[_Constant]) -> tuple[int, int, int]:
    """Activations in a float32 file, and the bytes of what is no number, raw and after gzip."""
    packed = unpack(content)
    graphs = [Graph(packed, each) for each in packed.subgraphs]
    activations = sum(len(graph.makers) for graph in graphs)
    rest = content
    for constant in constants:
        rest = rest.replace(constant.values.tobytes(), b"", 1)
    structure = len(content) - sum(constant.values.nbytes for constant in constants)
    return activations, structure, len(gzip.compress(rest, 9))

"""Looking inside a LiteRT file (`.tflite`): its interface, operators, types, weights and zeros.

The file is read with the schema that LiteRT ships, after LiteRT's runtime has checked its
structure: that check survives any damage, Python's reader alone would not.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfdistill.errors import ModelError
from tfdistill.host import standard_error_held_back

IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every LiteRT flatbuffer
_WEIGHT_TYPES = ("float32", "float16", "int8", "uint8", "int16", "int4")
_QUANTIZED_TYPES = ("int8", "uint8", "int16")
_PASSING_VALUES_ON = ("DEQUANTIZE", "QUANTIZE", "RESHAPE")
FAKE_QUANTIZED = "quant_"  # tfmot's prefix of the layers it wraps
_INPUT_QUANTIZER = "QuantizeLayer"  # tfmot's own, named by a count of all that were ever made
_UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error)


def _names_by_code(enumeration: type) -> dict[int, str]:
    return {code: name for name, code in vars(enumeration).items() if isinstance(code, int)}


_OPERATORS = _names_by_code(schema.BuiltinOperator)
_TYPES = {code: name.lower() for code, name in _names_by_code(schema.TensorType).items()}


@dataclass(frozen=True)
class TensorInterface:
    """One input or output of an artifact, as an app sees it.

    Attributes:
        name: Its name in the artifact's signature.
        shape: Its shape, batch axis included.
        dtype: Its element type, such as "float32" or "int8".
        scale: Step between two quantized values; `None` where it is not quantized.
        zero_point: The quantized value that stands for 0; `None` where it is not quantized.
        index: Its place among the file's tensors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None
    index: int = 0

    @property
    def takes_numbers(self) -> bool:
        """Whether it stands for real numbers (float or quantized) rather than for indices."""
        return self.scale is not None or self.dtype.startswith("float")

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Gives clip(round(x / scale) + zero_point) in the tensor's type."""
        if self.scale is None:
            return np.asarray(values).astype(self.dtype)
        limits = np.iinfo(self.dtype)
        steps = np.round(np.asarray(values, np.float32) / np.float32(self.scale))
        return np.clip(steps + self.zero_point, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Gives (q - zero_point) * scale as float32."""
        if self.scale is None or self.zero_point is None:
            return values.astype(np.float32)
        return (values.astype(np.float32) - self.zero_point) * np.float32(self.scale)


@dataclass(frozen=True)
class Operator:
    """The operators of one kind and type in a file.

    Attributes:
        name: LiteRT's name, such as "CONV_2D"; for custom and select operators, their own.
        activations: Element type of what they compute.
        weights: Element type of their weights, `None` without weights.
        count: How many there are.
        custom: Whether LiteRT does not have it built in.
    """

    name: str
    activations: str
    weights: str | None = None
    count: int = 1
    custom: bool = False


@dataclass(frozen=True)
class Weight:
    """One weight tensor of a file: a constant of two or more axes that an operator reads.

    Attributes:
        name: The tensor's name, which holds the name of the layer it came from.
        operator: The operator that reads it.
        activations: Element type of what that operator computes.
        shape: Its shape.
        dtype: Its element type as stored.
        elements: How many weights it has.
        zeros: How many of them stand for 0 (equal the zero point).
        block_size: How many weights share a scale, where it was quantized in blocks; else 0.
    """

    name: str
    operator: str
    activations: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    zeros: int
    block_size: int = 0


@dataclass(frozen=True)
class Inspection:
    """What is in an artifact.

    Attributes:
        sha256: Hash of the file, hexadecimal.
        raw_bytes: Size of the file.
        gzip_bytes: Its size after gzip at level 9, about what a download takes.
        inputs: What an app feeds.
        outputs: What an app reads.
        operators: Its operators by kind and type.
        weights: Its weight tensors.
        output_scales: Output name to the quantization step that its values were computed in;
            `None` where they were computed in floating point.
        probabilities: Names of the outputs that come out of a softmax or a sigmoid.
        stateful: Whether it keeps state from one run to the next, which an app has to reset.
    """

    sha256: str
    raw_bytes: int
    gzip_bytes: int
    inputs: tuple[TensorInterface, ...]
    outputs: tuple[TensorInterface, ...]
    operators: tuple[Operator, ...]
    weights: tuple[Weight, ...]
    output_scales: Mapping[str, float | None]
    probabilities: tuple[str, ...]
    stateful: bool

    @property
    def format(self) -> str:
        """The format by what is in the file: "float32", "float16", "dynamic_int8"..."""
        types = {(weight.activations, weight.dtype) for weight in self.weights}
        blocks = [weight.block_size for weight in self.weights if weight.dtype == "int4"]
        if blocks:
            return f"int4_block{max(blocks)}" if max(blocks) else "int4"
        if ("int16", "int8") in types:
            return "int16x8"
        if types & {("int8", "int8"), ("uint8", "uint8")}:
            return "int8"
        if ("float32", "int8") in types:
            return "dynamic_int8"
        return "float16" if ("float32", "float16") in types else "float32"

    @property
    def custom_operators(self) -> tuple[str, ...]:
        """Names of the operators that LiteRT does not have built in."""
        return tuple(sorted({op.name for op in self.operators if op.custom}))

    @property
    def elements(self) -> int:
        """How many weights there are."""
        return sum(weight.elements for weight in self.weights)

    @property
    def zeros(self) -> int:
        """How many weights are 0."""
        return sum(weight.zeros for weight in self.weights)


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Looks into a LiteRT file without running it.

    Raises:
        ModelError: There is no such file, or it is no LiteRT model, cut off or damaged.

    Example:
        >>> inspect_file("student_int8.tflite").operators[0]
        Operator(name='QUANTIZE', activations='int8', weights=None, count=1, custom=False)
    """
    content, source = read(path)
    load(content, source)
    return inspect_content(content, source)


def read(path_or_bytes: str | os.PathLike[str] | bytes) -> tuple[bytes, str]:
    """A file's content, and what to call it in a message."""
    if isinstance(path_or_bytes, bytes):
        return path_or_bytes, "content"
    path = Path(path_or_bytes)
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise not_a_model(str(path), error.strerror or str(error)) from error


def not_a_model(source: str, received: str) -> ModelError:
    """The error for what is no LiteRT model."""
    return ModelError(
        f"`{source}` must be a LiteRT model (.tflite).",
        received=received,
        hint="It is missing, cut off, damaged or something else: export it again.",
    )


def load(
    content: bytes, source: str, num_threads: int = 1, *, reference_kernels: bool = False
) -> Any:
    """An `Interpreter`, not yet allocated, whose file has a sound structure.

    Raises:
        ModelError: The content is no LiteRT model.
    """
    if content[4:8] != IDENTIFIER:
        raise not_a_model(source, f"{len(content)} bytes without the identifier TFL3")
    with standard_error_held_back(say_on_error=False):
        try:
            return Interpreter(
                model_content=content,
                num_threads=num_threads,
                experimental_op_resolver_type=OpResolverType.BUILTIN_REF
                if reference_kernels
                else OpResolverType.AUTO,
            )
        except (RuntimeError, ValueError) as error:
            raise not_a_model(source, str(error).splitlines()[0]) from error


def inspect_content(content: bytes, source: str) -> Inspection:
    """As `inspect_file`, of content that `load` has accepted."""
    try:
        model = unpack(content)
        graphs = [Graph(model, graph) for graph in model.subgraphs]
        main = graphs[0]
        operators: Counter[Operator] = Counter()
        weights: dict[int, Weight] = {}  # by buffer: a shared one is stored, and counted, once
        for graph in graphs:
            for operator in graph.operators:
                operators[graph.describe(operator)] += 1
                for tensor in graph.weights(operator):
                    weights.setdefault(tensor.buffer, graph.count_zeros(tensor, operator))
        inputs, outputs = main.interfaces()
        origins = {spec.name: main.origin(spec.index) for spec in outputs}
        return Inspection(
            sha256=hashlib.sha256(content).hexdigest(),
            raw_bytes=len(content),
            gzip_bytes=len(gzip.compress(content, 9, mtime=0)),
            inputs=inputs,
            outputs=outputs,
            operators=tuple(replace(each, count=count) for each, count in operators.items()),
            weights=tuple(weights.values()),
            output_scales={name: scale for name, (scale, _) in origins.items()},
            probabilities=tuple(name for name, (_, yes) in origins.items() if yes),
            stateful=any(tensor.isVariable for graph in graphs for tensor in graph.tensors),
        )
    except _UNREADABLE as error:
        raise not_a_model(source, f"{type(error).__name__}: {error}") from error


def unpack(content: bytes) -> Any:
    """The schema's `ModelT` of a sound file; what buffers keep behind the flatbuffer is in them."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 1 stands for an empty one
            data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.data, buffer.offset, buffer.size = data, 0, 0
    return model


def results_by_operator(content: bytes) -> list[tuple[str, str]]:
    """Name of each operator in a sound file and of the tensor it makes, which tells its layer."""
    model = unpack(content)
    return [
        (graph.name(operator), graph.tensors[operator.outputs[0]].name.decode())
        for graph in (Graph(model, each) for each in model.subgraphs)
        for operator in graph.operators
        if len(operator.outputs)
    ]


def layer_of(name: str, model: Any) -> str:
    """The layer that a tensor or a node came from, by its name; "?" where that is lost.

    Of several layers that the converter made one operator of, the one with the kernel.

    Args:
        name: As the converter writes it, or `compaction`.
        model: The Keras model that was converted.
    """
    layers = {
        each.name.removeprefix(FAKE_QUANTIZED): each
        for each in model.layers
        if type(each).__name__ != _INPUT_QUANTIZER
    }
    found = []
    for path in re.split("[;:]", name):
        parts = [part.removeprefix(FAKE_QUANTIZED) for part in path.split("/")]
        # The parts of a rewritten layer are called "layer/part".
        pairs = ("/".join(parts[place : place + 2]) for place in range(len(parts)))
        for part, pair in zip(parts, pairs, strict=True):
            found += [each for each in (pair, part) if each in layers][:1]
    kernels = [part for part in found if any(len(w.shape) > 1 for w in layers[part].weights)]
    return next(iter(kernels or found), "?")


class Graph:
    """One graph of a flatbuffer, with who makes which tensor."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.model = model
        self.graph = graph
        self.tensors = graph.tensors
        self.operators = graph.operators
        self.makers = {index: op for op in self.operators for index in op.outputs}

    def name(self, operator: Any) -> str:
        """LiteRT's name of an operator; of a custom one, its own."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        name = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return code.customCode.decode() if name == "CUSTOM" else name

    def describe(self, operator: Any) -> Operator:
        """An operator's kind and types."""
        weights = [_TYPES[tensor.type] for tensor in self.weights(operator)]
        name = self.name(operator)
        return Operator(
            name,
            activations=self._activations(operator),
            weights=weights[0] if weights else None,
            custom=name not in _OPERATORS.values(),
        )

    def _activations(self, operator: Any) -> str:
        made = [_TYPES[self.tensors[index].type] for index in operator.outputs]
        return made[0] if made else "none"

    def weights(self, operator: Any) -> list[Any]:
        """Constants of two or more axes that it reads, directly or through a DEQUANTIZE."""
        if self.name(operator) == "DEQUANTIZE":
            return []
        found = []
        for index in operator.inputs:
            maker = self.makers.get(index)
            if maker is not None and self.name(maker) == "DEQUANTIZE":
                index = maker.inputs[0]
            if index < 0:  # an input left out
                continue
            tensor = self.tensors[index]
            is_weight = _TYPES[tensor.type] in _WEIGHT_TYPES and len(_shape(tensor)) > 1
            if is_weight and self.is_constant(tensor):
                found.append(tensor)
        return found

    def count_zeros(self, tensor: Any, operator: Any) -> Weight:
        """A weight tensor that the operator reads, with its zeros counted."""
        dtype, shape = _TYPES[tensor.type], _shape(tensor)
        data = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8)
        values = _halves(data) if dtype == "int4" else np.frombuffer(data, dtype)
        values = values[: math.prod(shape)].reshape(shape)
        zero_point = getattr(tensor.quantization, "zeroPoint", None)
        if zero_point is not None and np.any(zero_point):
            axes = [1] * len(shape)
            axes[tensor.quantization.quantizedDimension] = len(zero_point)
            values = values != np.reshape(zero_point, axes)
        return Weight(
            name=tensor.name.decode(),
            operator=self.name(operator),
            activations=self._activations(operator),
            shape=shape,
            dtype=dtype,
            elements=values.size,
            zeros=values.size - int(np.count_nonzero(values)),
            block_size=getattr(getattr(tensor.quantization, "details", None), "blockSize", 0),
        )

    def interfaces(self) -> tuple[tuple[TensorInterface, ...], tuple[TensorInterface, ...]]:
        """Inputs and outputs by their signature names; old files have tensor names only."""
        for signature in self.model.signatureDefs or ():
            if signature.subgraphIndex == 0:
                inputs = {entry.tensorIndex: entry.name for entry in signature.inputs}
                outputs = {entry.tensorIndex: entry.name for entry in signature.outputs}
                break
        else:
            inputs = {index: self.tensors[index].name for index in self.graph.inputs}
            outputs = {index: self.tensors[index].name for index in self.graph.outputs}
        return (
            tuple(self._interface(name, index) for index, name in inputs.items()),
            tuple(self._interface(name, index) for index, name in outputs.items()),
        )

    def _interface(self, name: bytes, index: int) -> TensorInterface:
        tensor = self.tensors[index]
        scale, zero_point = _quantization(tensor)
        dtype = _TYPES[tensor.type]
        return TensorInterface(name.decode(), _shape(tensor), dtype, scale, zero_point, index)

    def origin(self, index: int) -> tuple[float | None, bool]:
        """The step a tensor was computed in, and whether a softmax or a sigmoid made it."""
        scale = _quantization(self.tensors[index])[0]
        while index in self.makers and self.name(self.makers[index]) in _PASSING_VALUES_ON:
            index = self.makers[index].inputs[0]
            scale = scale or _quantization(self.tensors[index])[0]
        maker = self.makers.get(index)
        return scale, maker is not None and self.name(maker) in ("SOFTMAX", "LOGISTIC")

    def is_constant(self, tensor: Any) -> bool:
        """Whether the file holds the tensor's values."""
        data = self.model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0


def _halves(data: np.ndarray) -> np.ndarray:
    """The 4-bit numbers in bytes, of which each holds two, the first in its lower half."""
    halves = np.stack([data & 15, data >> 4], axis=1).ravel().astype(np.int8)
    return (halves ^ 8) - 8  # carries the sign bit up


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(axis) for axis in tensor.shape) if tensor.shape is not None else ()


def _quantization(tensor: Any) -> tuple[float | None, int | None]:
    """Scale and zero point of a tensor that has one of each and holds quantized values."""
    parameters = tensor.quantization
    scales = getattr(parameters, "scale", None)
    if scales is None or len(scales) != 1 or _TYPES[tensor.type] not in _QUANTIZED_TYPES:
        return None, None
    zero_points = parameters.zeroPoint
    return float(scales[0]), int(zero_points[0]) if zero_points is not None else 0

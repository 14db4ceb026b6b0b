"""Writing a LiteRT flatbuffer anew: short names, aligned data, nothing twice, nothing forgotten.

The converter's own names hold the path of each TensorFlow node that went into a tensor. Nothing
reads them at run time, and in a small model they are a large part of the download.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfdistill.litert.flatbuffer import IDENTIFIER, Graph, layer_of, unpack

_ALIGNMENT = 16  # of a buffer's data in the file, by LiteRT's schema
_BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


class _Buffer(schema.BufferT):
    """A buffer whose data lie where the schema wants them; the generated class ignores that."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        if self.data is not None and len(self.data):
            data = np.asarray(self.data, np.uint8)
            builder.Prep(_ALIGNMENT, data.nbytes)
            vector = builder.CreateNumpyVector(data)
        schema.BufferStart(builder)
        if self.data is not None and len(self.data):
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def compact(content: bytes, model: Any, metadata: Mapping[str, bytes] | None = None) -> bytes:
    """Writes a flatbuffer anew; what it computes and its signatures stay.

    A tensor is then called by the layer it came from and what it is: "conv/weights",
    "conv/bias", "conv/conv_2d" for what the operator puts out; inputs and outputs as in the
    signature.

    Args:
        content: The converter's flatbuffer.
        model: The Keras model that it was converted from.
        metadata: Entries to add, by name.
    """
    packed = unpack(content)
    for index in range(len(packed.subgraphs)):
        _rename(packed, index, model)
    for name, data in (metadata or {}).items():
        packed.buffers.append(schema.BufferT(np.frombuffer(data, np.uint8)))
        entry = schema.MetadataT(name, len(packed.buffers) - 1)
        packed.metadata = [*(packed.metadata or ()), entry]
    return _written(packed, len(content))


def with_floats_for_products(content: bytes) -> bytes:
    """Turns 8-bit values into floats where a product in float reads them.

    The converter writes a product with a constant (an einsum, as in EinsumDense and
    MultiHeadAttention) as FULLY_CONNECTED after it has chosen all types; if its result is in
    float, it forgets the DEQUANTIZE before it, and LiteRT cannot load the file.

    Args:
        content: The converter's flatbuffer, returned as it is where nothing is missing.
    """
    packed = unpack(content)
    # Of each graph, so that none is left out.
    changed = [_add_dequantize(packed, graph) for graph in packed.subgraphs]
    return _written(packed, len(content)) if any(changed) else content


def _add_dequantize(packed: Any, subgraph: Any) -> bool:
    graph, operators = Graph(packed, subgraph), []
    floats: dict[int, int] = {}  # places of tensors, to those of their values in float
    for operator in graph.operators:
        if _forgets_dequantize(graph, operator):
            place, *others = operator.inputs
            if place not in floats:
                floats[place] = len(graph.tensors)
                operators.append(_dequantize(packed, graph, place))
            operator.inputs = np.array([floats[place], *others], np.int32)
        operators.append(operator)
    subgraph.operators = operators
    return bool(floats)


def _forgets_dequantize(graph: Graph, operator: Any) -> bool:
    if graph.name(operator) != "FULLY_CONNECTED":
        return False
    places = (*operator.inputs[:2], operator.outputs[0])
    kinds = schema.TensorType
    return [graph.tensors[place].type for place in places] == [
        *(kinds.INT8, kinds.FLOAT32, kinds.FLOAT32)
    ]


def _dequantize(packed: Any, graph: Graph, place: int) -> Any:
    """The operator, with a new tensor, the last, for what it gives."""
    source, made = graph.tensors[place], schema.TensorT()
    made.shape, made.shapeSignature = source.shape, source.shapeSignature
    made.type, made.buffer, made.name = schema.TensorType.FLOAT32, 0, source.name
    made.hasRank = source.hasRank
    graph.tensors.append(made)
    operator = schema.OperatorT()
    operator.opcodeIndex = _dequantize_code(packed)
    operator.inputs = np.array([place], np.int32)
    operator.outputs = np.array([len(graph.tensors) - 1], np.int32)
    return operator


def _dequantize_code(packed: Any) -> int:
    kind, version = schema.BuiltinOperator.DEQUANTIZE, 2  # the first that takes int8
    for place, code in enumerate(packed.operatorCodes):
        if code.builtinCode == kind and code.version >= version:
            return place
    packed.operatorCodes.append(schema.OperatorCodeT(kind, None, version, kind))
    return len(packed.operatorCodes) - 1


def _written(packed: Any, size: int) -> bytes:
    _join_empty_buffers(packed)
    builder = flatbuffers.Builder(size)
    builder.Finish(packed.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _rename(packed: Any, index: int, model: Any) -> None:
    graph = Graph(packed, packed.subgraphs[index])
    names: dict[int, str] = {}
    taken: Counter[str] = Counter()

    def call(tensor: int, name: str) -> None:
        if tensor in names or tensor < 0:
            return
        number = taken[name]
        taken[name] += 1
        names[tensor] = f"{name}_{number}" if number else name

    for signature in packed.signatureDefs or ():
        if signature.subgraphIndex == index:
            for entry in (*signature.inputs, *signature.outputs):
                call(entry.tensorIndex, entry.name.decode())
    places = {id(tensor): place for place, tensor in enumerate(graph.tensors)}
    for operator in graph.operators:
        layer = _layer_of_operator(graph, operator, model)
        for kernel in graph.weights(operator):
            call(places[id(kernel)], f"{layer}weights")
    for operator in graph.operators:
        layer, kind = _layer_of_operator(graph, operator, model), graph.name(operator)
        for position, tensor in enumerate(operator.inputs):
            if tensor >= 0 and graph.is_constant(graph.tensors[tensor]):
                call(tensor, f"{layer}{'bias' if position == _BIAS.get(kind) else 'constant'}")
        for tensor in operator.outputs:
            call(tensor, f"{layer}{kind.lower()}")
    for place, tensor in enumerate(graph.tensors):
        call(place, "tensor")  # scales of blocks, inputs of a loop's body
        tensor.name = names[place]


def _layer_of_operator(graph: Graph, operator: Any, model: Any) -> str:
    """The layer and "/"; "" where no name tells it."""
    named = [*graph.weights(operator)]
    named += [graph.tensors[index] for index in operator.outputs]
    named += [
        graph.tensors[index]
        for index in operator.inputs
        if index >= 0 and graph.is_constant(graph.tensors[index])
    ]
    layers = (layer_of(tensor.name.decode(), model) for tensor in named)
    return next((f"{layer}/" for layer in layers if layer != "?"), "")


def _join_empty_buffers(packed: Any) -> None:
    """Leaves one empty buffer, the first, for all tensors without values."""
    kept, places = [_Buffer()], {}
    for old, buffer in enumerate(packed.buffers):
        if buffer.data is not None and len(buffer.data):
            places[old] = len(kept)
            kept.append(_Buffer(buffer.data))
    for graph in packed.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = places.get(tensor.buffer, 0)
    for entry in packed.metadata or ():
        entry.buffer = places.get(entry.buffer, 0)
    packed.buffers = kept

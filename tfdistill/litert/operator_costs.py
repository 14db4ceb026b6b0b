"""Multiply-accumulates of each operator in a LiteRT file (`.tflite`), and the types they are in.

Counted are the products of convolutions, matrix multiplications and recurrent operators, for one
run of the file; biases, activations, pooling and elementwise arithmetic are not. A transposed
convolution counts each input value once for each weight that it meets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tfdistill.litert.flatbuffer import Graph, load, read, unpack

__all__ = ["OperatorCost", "integer_share", "multiply_accumulates", "total"]

_INTEGERS = ("int2", "int4", "uint4", "int8", "uint8", "int16")
_UNKNOWN = ("CALL", "IF", "STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", "STABLEHLO_WHILE")
_BOUNDED_FROM_ABOVE = ("LESS", "GREATER")
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}


@dataclass(frozen=True)
class OperatorCost:
    """One operator of a file, in one run of it.

    Attributes:
        name: LiteRT's name, such as "CONV_2D"; for custom and select operators, their own.
        output: Name of the tensor it makes, which tells the layer it came from.
        activations: Element type of what it makes, such as "int8".
        weights: Element type of what it multiplies by, as stored; `None` where it multiplies
            nothing.
        multiply_accumulates: How many; `None` where that is not known: custom operators,
            conditions, and loops without a fixed number of rounds.
        runs: How often it runs: more than once in the body of a loop.
    """

    name: str
    output: str
    activations: str
    weights: str | None
    multiply_accumulates: int | None
    runs: int = 1

    @property
    def in_integers(self) -> bool:
        """Whether both factors are integers; int8 weights alone, as in dynamic_int8, are not."""
        return self.activations in _INTEGERS and self.weights in _INTEGERS


def multiply_accumulates(path: str | os.PathLike[str] | bytes) -> list[OperatorCost]:
    """Counts the multiply-accumulates of each operator in a file, without running it.

    Args:
        path: The file, or its content.

    Returns:
        The operators in the order in which they run; those in the body of a loop where the loop
        is.

    Raises:
        ModelError: It is no LiteRT model.

    Example:
        >>> costs = multiply_accumulates("student_int8.tflite")
        >>> integer_share(costs)
        1.0
    """
    content, source = read(path)
    load(content, source)
    model = unpack(content)
    return list(_Counter(model, model.subgraphs[0]).costs(1))


def total(costs: Sequence[OperatorCost]) -> int | None:
    """Sum of all multiply-accumulates; `None` where one of them is not known."""
    counts = [cost.multiply_accumulates for cost in costs]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def integer_share(costs: Sequence[OperatorCost]) -> float | None:
    """Share of the multiply-accumulates that are computed in integers, in [0, 1].

    `None` where a count is not known, or there are none.
    """
    count = total(costs)
    if not count:
        return None
    return sum(cost.multiply_accumulates or 0 for cost in costs if cost.in_integers) / count


class _Counter(Graph):
    """Counts in one graph of a file."""

    def costs(self, runs: int | None) -> Iterator[OperatorCost]:
        for operator in self.operators:
            name = self.name(operator)
            if name == "WHILE":
                inner, rounds = self.body(operator), self.rounds(operator)
                yield from inner.costs(None if runs is None or rounds is None else runs * rounds)
                continue
            known = hasattr(schema.BuiltinOperator, name) and name not in _UNKNOWN
            count = _COUNTS[name](self, operator) if name in _COUNTS else 0
            made = [self.tensors[index] for index in operator.outputs]
            yield OperatorCost(
                name,
                output=made[0].name.decode() if made else "",
                activations=_type(made[0]) if made else "none",
                weights=self.weights_type(operator) if count else None,
                multiply_accumulates=_times(count if known else None, runs),
                runs=runs or 1,
            )

    def shape(self, operator: Any, position: int) -> list[int]:
        """Shape of an input."""
        shape = self.tensors[operator.inputs[position]].shape
        return [] if shape is None else [int(axis) for axis in shape]

    def made(self, operator: Any) -> int:
        """How many values its first output has."""
        return math.prod(int(axis) for axis in self.tensors[operator.outputs[0]].shape)

    def weights_type(self, operator: Any) -> str:
        index = operator.inputs[1]
        maker = self.makers.get(index)
        if maker is not None and self.name(maker) == "DEQUANTIZE":
            index = maker.inputs[0]
        return _type(self.tensors[index])

    def recurrent(self, operator: Any) -> int:
        """Every weight matrix meets every step once."""
        shape = self.shape(operator, 0)
        shapes = [self.shape(operator, i) for i, index in enumerate(operator.inputs) if index >= 0]
        matrices = [each for each in shapes[1:] if len(each) == 2 and each[0] > 1]
        states = {  # also of two axes, but not constant
            tuple(self.shape(operator, i))
            for i, index in enumerate(operator.inputs)
            if index >= 0 and self.tensors[index].isVariable
        }
        steps = math.prod(shape[:-1])
        return steps * sum(math.prod(each) for each in matrices if tuple(each) not in states)

    def body(self, operator: Any) -> _Counter:
        return _Counter(self.model, self.model.subgraphs[operator.builtinOptions.bodySubgraphIndex])

    def rounds(self, operator: Any) -> int | None:
        """How often a loop that counts from 0 runs: the smallest bound of its condition."""
        index = operator.builtinOptions.condSubgraphIndex
        condition = _Counter(self.model, self.model.subgraphs[index])
        bounds = []
        for comparison in condition.graph.operators:
            name = condition.name(comparison)
            if name in _BOUNDED_FROM_ABOVE:
                bound = comparison.inputs[1 if name == "LESS" else 0]
                handed_in = list(condition.graph.inputs)
                if bound in handed_in:
                    found = self.constant(operator.inputs[handed_in.index(bound)])
                else:
                    found = condition.constant(bound)
                bounds += [found] if found is not None else []
        return min(bounds, default=None)

    def constant(self, index: int) -> int | None:
        """The value of a constant whole number."""
        tensor = self.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or not len(data) or not _type(tensor).startswith("int"):
            return None
        return int.from_bytes(bytes(data), "little", signed=True)


def _type(tensor: Any) -> str:
    return _TYPES[tensor.type]


def _times(count: int | None, runs: int | None) -> int | None:
    if count == 0:
        return 0
    return None if count is None or runs is None else count * runs


_Count = Callable[[_Counter, Any], int]


def _by_kernel(axes: slice) -> _Count:
    """Every value made takes a product with these axes of the kernel."""
    return lambda graph, op: graph.made(op) * math.prod(graph.shape(op, 1)[axes])


def _by_input(axes: slice) -> _Count:
    """Every value of the third input takes a product with these axes of the kernel."""
    return lambda graph, op: math.prod(graph.shape(op, 2)) * math.prod(graph.shape(op, 1)[axes])


def _matrices(graph: _Counter, operator: Any) -> int:
    transposed = operator.builtinOptions.adjX
    return graph.made(operator) * graph.shape(operator, 0)[-2 if transposed else -1]


# Kernels: [out, height, width, in] in 2-D, [depth, height, width, in, out] in 3-D, where a
# transposed one has [..., out, in]; depthwise [1, height, width, channels]; dense [out, in].
_COUNTS: dict[str, _Count] = {
    "CONV_2D": _by_kernel(slice(1, None)),
    "CONV_3D": _by_kernel(slice(0, 4)),
    "DEPTHWISE_CONV_2D": _by_kernel(slice(1, 3)),
    "FULLY_CONNECTED": _by_kernel(slice(1, None)),
    "TRANSPOSE_CONV": _by_input(slice(0, 3)),
    "CONV_3D_TRANSPOSE": _by_input(slice(0, 4)),
    "BATCH_MATMUL": _matrices,
    "LSTM": _Counter.recurrent,
    "RNN": _Counter.recurrent,
    "SVDF": _Counter.recurrent,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _Counter.recurrent,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _Counter.recurrent,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _Counter.recurrent,
    "BIDIRECTIONAL_SEQUENCE_RNN": _Counter.recurrent,
}

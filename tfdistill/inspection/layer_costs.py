"""Multiply-accumulates, parameters and shapes of each layer, from the graph that it computes.

The model is traced once for one example, never run. What counts is what `operator_costs` counts
in a file: products of convolutions and matrix multiplications, of whatever layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.model_graphs import (
    graph_or_raise,
    key_of,
    leaves_of,
    run_graph,
    takes_training,
)

__all__ = ["LayerCost", "layer_costs"]

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")
_CONDITIONS = ("If", "StatelessIf", "Case", "StatelessCase")
# Layers whose loops run once for each step that they read. Convolutional ones are RNNs, too.
_STEPPING = tuple(
    getattr(library.layers, name)
    for library in (keras, tf_keras)
    for name in ("RNN", "Bidirectional", "TimeDistributed")
)
_SAME_VALUES = ("ExpandDims", "Identity", "Reshape")


@dataclass(frozen=True)
class LayerCost:
    """One layer of a model, for one example.

    Attributes:
        name: Its name in the flat model that `to_tf_keras` makes.
        path: Its name, after those of the models that it is nested in: "encoder/dense".
        layer: The layer, or the operation of Keras 3.
        output_shape: Of its first output, where it is first used; open axes are `None`.
        parameters: How many weights it has, biases and statistics too.
        multiply_accumulates: Of all its uses; `None` where it depends on an open size, or on a
            loop or a condition that is decided while it runs.
    """

    name: str
    path: str
    layer: Any
    output_shape: tuple[int | None, ...]
    parameters: int
    multiply_accumulates: int | None

    @property
    def kind(self) -> str:
        """The layer's class."""
        return type(self.layer).__name__


def layer_costs(model: Any) -> list[LayerCost]:
    """Counts what each layer of a model costs for one example.

    Args:
        model: Functional or built Sequential model, Keras 3 or tf_keras, nested or not.

    Returns:
        Every layer once, without the input layers, in the order of the graph.

    Raises:
        ConversionError: The model has no graph of layers.

    Example:
        >>> sum(cost.multiply_accumulates for cost in layer_costs(student))
        4512
    """
    graph = graph_or_raise(model)
    leaves = leaves_of(graph)
    nodes, uses = _trace(graph)
    found = []
    for leaf in leaves:
        of_layer = uses.get(key_of(leaf.layer, leaf.node), [])
        stepping = isinstance(leaf.layer, _STEPPING)
        counts = [nodes.count(use.nodes, stepping=stepping) for use in of_layer]
        known = [count for count in counts if count is not None]
        found.append(
            LayerCost(
                name=leaf.name,
                path=leaf.path,
                layer=leaf.layer,
                output_shape=of_layer[0].output_shape if of_layer else (),
                parameters=sum(
                    math.prod(weight.shape) for weight in getattr(leaf.layer, "weights", ())
                ),
                multiply_accumulates=sum(known) if len(known) == len(counts) else None,
            )
        )
    return found


@dataclass
class _Use:
    """One use of a layer in the graph."""

    nodes: set[str]
    output_shape: tuple[int | None, ...]


def _trace(graph: Any) -> tuple[_Nodes, dict[int, list[_Use]]]:
    """The model's graph of TensorFlow, and which of its nodes belong to which layer's use."""
    uses: dict[int, list[_Use]] = {}

    def call(layer: Any, node: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if takes_training(layer):
            kwargs.setdefault("training", False)
        operations = tf.compat.v1.get_default_graph().get_operations
        before = len(operations())
        outputs = layer(*args, **kwargs)
        made = {operation.name for operation in operations()[before:]}
        uses.setdefault(key_of(layer, node), []).append(_Use(made, _shape_of(outputs)))
        return outputs

    def run(*inputs: Any) -> Any:
        return tf.nest.flatten(run_graph(graph, list(inputs), call))

    specs = [
        tf.TensorSpec((1, *tensor.shape[1:]), tf.as_dtype(tensor.dtype)) for tensor in graph.inputs
    ]
    function = tf.function(run).get_concrete_function(*specs)
    definition = function.graph.as_graph_def(add_shapes=True)
    library = {each.signature.name: each for each in definition.library.function}
    outputs = [tensor.op.name for tensor in function.graph.outputs]
    return _Nodes(definition.node, library, outputs), uses


def _shape_of(outputs: Any) -> tuple[int | None, ...]:
    first = tf.nest.flatten(outputs)[0]
    shape = getattr(first, "shape", None)
    if shape is None or shape.rank is None:
        return ()
    return (None, *shape[1:]) if len(shape) else ()


@dataclass
class _Nodes:
    """The nodes of a graph or of a function in its library, with their shapes."""

    nodes: Any
    library: dict[str, Any]
    outputs: list[str]
    given: dict[str, list[int | None] | None] = field(default_factory=dict)  # by the caller

    def __post_init__(self) -> None:
        self.by_name = {node.name: node for node in self.nodes}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for each in node.input:
                self.consumers.setdefault(_node_of(each), []).append(node)
        # Layers leave nodes behind that no one reads, such as a step of a cell out of its loop.
        self.needed: set[str] = set()
        pending = list(self.outputs)
        while pending:
            name = pending.pop()
            if name in self.by_name and name not in self.needed:
                self.needed.add(name)
                pending += [
                    _node_of(each) for each in self.by_name[name].input if not each.startswith("^")
                ]

    def _function(self, name: str, inputs: Sequence[str], node: Any) -> _Nodes:
        """The nodes of a function that a node calls with these tensors."""
        definition = self.library[name]
        outputs = [
            _node_of(definition.ret[argument.name]) for argument in definition.signature.output_arg
        ]
        inner = _Nodes(definition.node_def, self.library, outputs)
        # A function that was traced for any shape does not know those of this call.
        for index, argument in enumerate(definition.signature.input_arg):
            shapes = definition.arg_attr[index].attr["_output_shapes"].list.shape
            declared = _axes(shapes[0]) if shapes else None
            inner.given[argument.name] = _known(self.shape(inputs[index]), declared)
        for index, output in enumerate(outputs):
            while output in inner.by_name:
                inner.given[output] = self.shape(f"{node.name}:{index}")
                passes_on = inner.by_name[output].op == "Identity"
                output = _node_of(inner.by_name[output].input[0]) if passes_on else ""
        return inner

    def count(self, names: set[str], *, stepping: bool) -> int | None:
        """Multiply-accumulates of those nodes that the outputs need.

        Args:
            names: The nodes.
            stepping: Whether each loop among them, also one in another, runs once for each step
                that it reads; else it is not known how often one runs.
        """
        counts = [self._count(self.by_name[name], stepping) for name in names & self.needed]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def _count(self, node: Any, stepping: bool) -> int | None:
        if node.op in _CALLS:
            return self._inside(node.attr["f"].func.name, node.input, node, stepping)
        if node.op in _LOOPS:
            inside = self._inside(node.attr["body"].func.name, node.input, node, stepping)
            return 0 if inside == 0 else _product([inside, self._steps(node) if stepping else None])
        if node.op in _CONDITIONS:
            names = [node.attr[key].func.name for key in ("then_branch", "else_branch")]
            names += [each.name for each in node.attr["branches"].list.func]
            inputs = node.input[1:]  # the first one decides
            counts = {self._inside(name, inputs, node, stepping) for name in names if name}
            return counts.pop() if len(counts) == 1 else None
        count = _COUNTS.get(node.op)
        return count(self, node) if count else 0

    def _inside(
        self, function: str, inputs: Sequence[str], node: Any, stepping: bool
    ) -> int | None:
        inner = self._function(function, inputs, node)
        return inner.count(set(inner.by_name), stepping=stepping)

    def _steps(self, loop: Any) -> int | None:
        """How many steps a loop reads: as long are the lists of them that it is given."""
        found = set()
        for tensor in loop.input:
            maker = self.by_name.get(_node_of(tensor))
            if maker is not None and maker.op == "TensorListFromTensor":
                found.update((self.input(maker, 0) or [None])[:1])
        known = found - {None}
        return known.pop() if len(known) == 1 else None

    def is_zero(self, tensor: str) -> bool:
        """Whether a tensor is a constant of zeros."""
        node = self.by_name.get(_node_of(tensor))
        while node is not None and node.op in (*_SAME_VALUES, "Fill"):
            filled = node.input[1 if node.op == "Fill" else 0]
            node = self.by_name.get(_node_of(filled))
        return (
            node is not None
            and node.op == "Const"
            and not tf.make_ndarray(node.attr["value"].tensor).any()
        )

    def made(self, node: Any) -> list[int | None] | None:
        """Shape of a node's output; of a dilated convolution, after its batches are put back."""
        following = self.consumers.get(node.name, [])
        while len(following) == 1 and following[0].op in ("Squeeze", "BatchToSpaceND"):
            if following[0].op == "BatchToSpaceND":
                return self.shape(following[0].name)
            following = self.consumers.get(following[0].name, [])
        return self.shape(node.name)

    def input(self, node: Any, position: int) -> list[int | None] | None:
        """Shape of a node's input."""
        return self.shape(node.input[position])

    def shape(self, tensor: str) -> list[int | None] | None:
        """Shape of a tensor: "node", "node:1", or in a function "node:output:1" or "argument"."""
        name, *place = tensor.split(":")
        index = int(place[-1]) if place else 0
        known = None
        if name in self.by_name:
            shapes = self.by_name[name].attr["_output_shapes"].list.shape
            known = _axes(shapes[index]) if index < len(shapes) else None
        return _known(known, self.given.get(name) if index == 0 else None)


def _node_of(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]


def _axes(shape: Any) -> list[int | None] | None:
    if shape.unknown_rank:
        return None
    return [None if axis.size < 0 else int(axis.size) for axis in shape.dim]


def _known(
    shape: list[int | None] | None, other: list[int | None] | None
) -> list[int | None] | None:
    """What is known of a tensor's shape by one of two who may know it."""
    if shape is None or other is None or len(shape) != len(other):
        return other if shape is None else shape
    return [theirs if ours is None else ours for ours, theirs in zip(shape, other, strict=True)]


def _product(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _convolution(nodes: _Nodes, node: Any) -> int | None:
    if nodes.is_zero(node.input[1]):
        return 0  # that is how a ConvLSTM of tf_keras makes its first state
    made, kernel = nodes.made(node), nodes.input(node, 1)
    if made is None or kernel is None:
        return None
    last = -2 if node.op.startswith("Depthwise") else -1  # [..., channels, multiplier]: no sum
    return _product([*made, *kernel[:last]])


def _transposed(nodes: _Nodes, node: Any) -> int | None:
    kernel, inputs = nodes.input(node, 1), nodes.input(node, 2)
    return None if kernel is None or inputs is None else _product([*inputs, *kernel[:-1]])


def _matrices(nodes: _Nodes, node: Any) -> int | None:
    made = nodes.shape(node.name)
    if made is None:
        return None
    sides = []
    for position, axis in ((0, -1), (1, -2)):
        shape = nodes.input(node, position)
        turned = any(node.attr[flag].b for flag in _TURNED[position] if flag in node.attr)
        sides.append(None if shape is None else shape[-3 - axis if turned else axis])
    return _product([*made, next((side for side in sides if side is not None), None)])


_TURNED = (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))


def _einsum(nodes: _Nodes, node: Any) -> int | None:
    """Each combination of its axes is a product, where it has two operands."""
    terms = node.attr["equation"].s.decode().replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2:
        return 0 if len(terms) == 1 else None
    sizes: dict[str, int | None] = {}
    for position, term in enumerate(terms):
        shape = nodes.input(node, position)
        if shape is None:
            return None
        before, dots, after = term.partition("...")
        names = list(before)
        if dots:  # numbered from the right, as they are broadcast
            count = len(shape) - len(before) - len(after)
            names += [f"...{index}" for index in range(count, 0, -1)]
        for name, size in zip([*names, *after], shape, strict=True):
            sizes[name] = size if sizes.get(name) in (None, 1) else sizes[name]
    return _product(list(sizes.values()))


_COUNTS = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _convolution,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _matrices,
    "BatchMatMul": _matrices,
    "BatchMatMulV2": _matrices,
    "BatchMatMulV3": _matrices,
    "Einsum": _einsum,
}

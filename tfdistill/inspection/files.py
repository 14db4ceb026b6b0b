"""What can be told of a LiteRT file (`.tflite`): operators, types, sizes, interface."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdistill.inspection.findings import Finding, Inspection, Interface, count_text
from tfdistill.litert.flatbuffer import Graph, TensorInterface, inspect_file, read, unpack
from tfdistill.litert.flatbuffer import Inspection as FileContent
from tfdistill.litert.metadata import read_metadata
from tfdistill.litert.operator_costs import OperatorCost, integer_share, multiply_accumulates, total
from tfdistill.litert.sidecar import label_names_of, read_sidecar
from tfdistill.rows import kilobytes, percent

if TYPE_CHECKING:
    from tfdistill.terminal import Terminal

__all__ = ["FileInspection", "InspectedOperator", "inspect_litert", "open_axes"]

_APP_TYPES = ("float32", "int8", "uint8", "int16", "int32", "bool")


@dataclass(frozen=True)
class InspectedOperator:
    """The operators of one kind and type in a file.

    Attributes:
        name: LiteRT's name; for custom and select operators, their own.
        activations: Element type of what they compute.
        weights: Element type of what they multiply by; `None` where they multiply nothing.
        count: How many there are.
        multiply_accumulates: For one run of the file; `None` where that is not known.
        custom: Whether LiteRT does not have it built in.
    """

    name: str
    activations: str
    weights: str | None
    count: int
    multiply_accumulates: int | None
    custom: bool


@dataclass(frozen=True)
class FileInspection(Inspection):
    """What `inspect` found in a LiteRT file.

    Attributes:
        format: The format by what is in the file.
        raw_bytes: Size of the file.
        gzip_bytes: Its size after gzip.
        zeros: How many of its parameters are 0.
        operators: Its operators by kind and type.
        integer_share: Share of the multiply-accumulates computed in integers, in [0, 1]; `None`
            where that is not known.
        method: How it was quantized, in words; "" where nothing says it.
        label_names: The classes' names, by the file or the JSON file beside it; of several outputs
            by their names.
        certified: Whether the certificate beside it was passed; `None` without one.
    """

    format: str = ""
    raw_bytes: int = 0
    gzip_bytes: int = 0
    zeros: int = 0
    operators: tuple[InspectedOperator, ...] = ()
    integer_share: float | None = None
    method: str = ""
    label_names: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    certified: bool | None = None

    def show_tables(self, terminal: Terminal) -> None:
        """Prints the operators and the totals."""
        rows = [
            (
                each.name,
                each.activations,
                each.weights or "-",
                str(each.count),
                count_text(each.multiply_accumulates),
            )
            for each in self.operators
        ]
        terminal.rows([("operator", "computes in", "weights", "count", "MACs"), *rows])
        terminal.note(
            f"{self.format}{f' ({self.method})' if self.method else ''}: "
            f"{kilobytes(self.raw_bytes)}, {kilobytes(self.gzip_bytes)} after gzip"
        )
        share = self.zeros / self.parameters if self.parameters else None
        terminal.note(f"{self.parameters:,} weights, {percent(share, 1)} of them 0")
        if self.integer_share is not None:
            terminal.note(
                f"{self.multiply_accumulates:,} multiply-accumulates, "
                f"{percent(self.integer_share, 1)} of them in integers"
            )


def _label_names(interface: Mapping[str, Any]) -> Any:
    if len(interface.get("outputs", ())) < 2:
        return tuple(interface.get("label_names", ()))
    return {name: tuple(each) for name, each in label_names_of(interface).items()}


def inspect_litert(path: str | os.PathLike[str]) -> FileInspection:
    """Looks into a LiteRT file without running it; `inspect` does it for a `.tflite`.

    Raises:
        ModelError: There is no such file, or it is no LiteRT model.
    """
    found = inspect_file(path)
    costs = multiply_accumulates(path)
    sidecar = read_sidecar(path) if Path(path).suffix == ".tflite" else None
    known = sidecar or read_metadata(path) or {}
    certificate = (sidecar or {}).get("certificate") or {}
    share = integer_share(costs)
    return FileInspection(
        kind="LiteRT file",
        name=Path(path).name,
        inputs=tuple(_interface(spec) for spec in found.inputs),
        outputs=tuple(_interface(spec) for spec in found.outputs),
        parameters=found.elements,
        multiply_accumulates=total(costs),
        findings=tuple(_findings(path, found, costs, sidecar, known.get("interface"))),
        format=found.format,
        raw_bytes=found.raw_bytes,
        gzip_bytes=found.gzip_bytes,
        zeros=found.zeros,
        operators=_by_kind(costs, found.custom_operators),
        integer_share=share,
        method=str(known.get("artifact", {}).get("method", "")).replace("unknown", ""),
        label_names=_label_names(known["interface"]) if "interface" in known else (),
        certified=certificate.get("passed"),
    )


def open_axes(path: str | os.PathLike[str] | bytes) -> dict[str, tuple[int | None, ...]]:
    """Names of the inputs with open axes, beyond that of the batch, to their shapes.

    Args:
        path: A LiteRT file that can be read, or its content.
    """
    content, _ = read(path)
    packed = unpack(content)
    graph = Graph(packed, packed.subgraphs[0])
    found = {}
    for spec in graph.interfaces()[0]:
        signature = graph.tensors[spec.index].shapeSignature
        axes = [] if signature is None else [int(axis) for axis in signature]
        if any(axis < 0 for axis in axes[1:]):
            found[spec.name] = tuple(None if axis < 0 else axis for axis in axes)
    return found


def _interface(spec: TensorInterface) -> Interface:
    return Interface(spec.name, spec.shape, spec.dtype, spec.scale, spec.zero_point)


def _by_kind(costs: list[OperatorCost], custom: tuple[str, ...]) -> tuple[InspectedOperator, ...]:
    kinds: dict[tuple[str, str, str | None], list[OperatorCost]] = {}
    for cost in costs:
        kinds.setdefault((cost.name, cost.activations, cost.weights), []).append(cost)
    return tuple(
        InspectedOperator(*kind, len(group), total(group), kind[0] in custom)
        for kind, group in kinds.items()
    )


def _findings(
    path: str | os.PathLike[str],
    found: FileContent,
    costs: list[OperatorCost],
    sidecar: dict[str, Any] | None,
    interface: Mapping[str, Any] | None,
) -> list[Finding]:
    findings = []
    select = tuple(name for name in found.custom_operators if name.startswith("Flex"))
    custom = tuple(name for name in found.custom_operators if name not in select)
    if select:
        message = "It needs operators of TensorFlow that LiteRT does not have built in"
        hint = (
            "The app must ship the select-ops library; export without allow_select_ops to avoid it."
        )
        findings.append(Finding("warn", "select_ops", message, select, hint))
    if custom:
        message = "It needs operators that LiteRT does not have"
        hint = "The app must register an implementation of each."
        findings.append(Finding("warn", "custom_ops", message, custom, hint))
    unknown = tuple(dict.fromkeys(cost.name for cost in costs if cost.multiply_accumulates is None))
    if unknown:
        message = "Their multiply-accumulates are not known"
        findings.append(Finding("note", "unknown_macs", message, unknown))
    in_float = [c for c in costs if c.multiply_accumulates and not c.in_integers]
    if found.format in ("int8", "int16x8") and in_float:
        message = "They compute in floating point in an integer file"
        layers = tuple(f"{cost.name} ({cost.output})" for cost in in_float)
        hint = "Quantize the layers that they come from, or leave them float on purpose (`skip`)."
        findings.append(Finding("warn", "left_float", message, layers, hint))
    findings += _findings_of_inputs(path, found)
    if found.probabilities:
        message = "It ends in a softmax or a sigmoid: it gives probabilities, no logits"
        findings.append(Finding("note", "softmax", message, found.probabilities))
    for output in interface["outputs"] if interface else ():
        if output["values"] == "numbers":
            message = "The values of this output are numbers, in the unit of its labels"
            findings.append(Finding("note", "numbers", message, (output["name"],)))
        if "decision" in output:
            message = f"Of this output {output['decision']}"
            findings.append(Finding("note", "multi_label", message, (output["name"],)))
    if found.stateful:
        message = "It keeps state from one run to the next"
        hint = "Reset its variables before each sequence."
        findings.append(Finding("note", "stateful", message, (), hint))
    if sidecar is not None and found.sha256 != sidecar["artifact"]["sha256"]:
        message = "The JSON file beside it is about another file"
        hint = "Certify it again: tfdistill certify."
        findings.append(Finding("warn", "changed", message, (), hint))
    elif sidecar is not None and (sidecar.get("certificate") or {}).get("passed") is False:
        failures = " ".join(sidecar["certificate"].get("failures", ()))
        message = f"It failed its certificate: {failures}".rstrip(".")
        hint = "Do not ship it as it is."
        findings.append(Finding("fail", "certificate", message, (), hint))
    return findings


def _findings_of_inputs(path: str | os.PathLike[str], found: FileContent) -> list[Finding]:
    findings = []
    opened = open_axes(path)
    if opened:
        message = "Its input shapes are open beyond the batch axis"
        hint = "The app must resize them before the first run; accelerators mostly refuse them."
        findings.append(Finding("warn", "dynamic_shape", message, tuple(opened), hint))
    unusual = tuple(
        f"{spec.name} ({spec.dtype})" for spec in found.inputs if spec.dtype not in _APP_TYPES
    )
    if unusual:
        message = "Its inputs are of a type that apps and accelerators seldom have"
        hint = "Build the model with int32 or float32 inputs."
        findings.append(Finding("warn", "input_type", message, unusual, hint))
    batches = tuple(spec.name for spec in found.inputs if spec.shape[:1] not in ((1,), ()))
    if batches:
        message = "It takes more than one example at a time"
        hint = "Export it with a batch size of 1."
        findings.append(Finding("warn", "batch", message, batches, hint))
    return findings

"""What can be told of a Keras model: every stage is tried on it, and what it says is gathered."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.model_graphs import (
    graph_of,
    graph_or_raise,
    is_keras3,
    is_tf_keras,
    leaves_of,
)
from tfdistill.errors import ExportError, ModelError, TfdistillError
from tfdistill.export.conversion import MissingOperatorError, check_exportable
from tfdistill.export.settings import Export
from tfdistill.heads import Head, output_names
from tfdistill.host import silence
from tfdistill.inspection.findings import Finding, Inspection, Interface, count_text, shape_text
from tfdistill.inspection.layer_costs import layer_costs
from tfdistill.inspection.sizes import PredictedSize, predict_sizes, tell_weights_apart
from tfdistill.kinds import kind_of
from tfdistill.pruning import Pruning, PruningPlan, plan_pruning
from tfdistill.quantization import Quantization, quantize
from tfdistill.rows import kilobytes, percent
from tfdistill.students import prepare_student
from tfdistill.terminal import Terminal

__all__ = [
    "InspectedLayer",
    "ModelInspection",
    "inspect_model",
]

_T = TypeVar("_T")
_NOT_FOR_APPS = ("int64", "uint64", "float64", "string", "complex64", "complex128")
_HALF = ("float16", "bfloat16")
# What tfmot's layouts match: its ReLU takes the quantizers of these away.
_KERNELS = ("Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense", "SeparableConv2D")


# What was tried, by the code of the finding where it fails.
_STAGES = {
    "bridge": "The conversion to tf_keras",
    "conversion": "The export",
    "costs": "The count of multiply-accumulates",
    "dynamic_shape": "The export",
    "mixed_precision": "The export",
    "outputs": "The look at its outputs",
    "pruning": "Pruning",
    "quantization": "Quantization-aware training",
    "subclassed": "The look at its graph",
    "unbuilt": "The look at its graph",
}
# What tf_keras puts around an error in a layer.
_CALLED = re.compile(
    r"Exception encountered when calling layer '(?P<layer>[^']+)'.*?\n\n(?P<reason>.*?)"
    r"(?:\n\nCall arguments received|\Z)",
    re.DOTALL,
)


@dataclass(frozen=True)
class InspectedLayer:
    """A layer, and what each stage would do with it.

    Attributes:
        name: Its name in the flat model that training works on.
        path: Its name, after those of the models that it is nested in.
        kind: Its class.
        output_shape: Of its first output; open axes are `None`.
        parameters: How many weights it has, biases and statistics too.
        multiply_accumulates: For one example; `None` where that is not known.
        prunable: Whether it would be pruned; `None` where it has no kernel, or that is not known.
        why_dense: Why it would not be pruned.
        quantizable: Whether quantization-aware training would quantize it; `None` where that is
            not known.
        why_float: Why it, or a part of it, would stay float.
    """

    name: str
    path: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    multiply_accumulates: int | None
    prunable: bool | None = None
    why_dense: str = ""
    quantizable: bool | None = None
    why_float: str = ""


@dataclass(frozen=True)
class ModelInspection(Inspection):
    """What `inspect` found in a Keras model.

    Attributes:
        layers: Its layers, in the order of the graph; none where the model has no such graph.
        sparsity: The share of zeros that pruning was assumed to leave in each pruned kernel.
        sizes: Format to the predicted size of its artifact, see `sizes.predict_sizes`; without
            the formats that it cannot be exported in.
    """

    layers: tuple[InspectedLayer, ...] = ()
    sparsity: float = 0.0
    sizes: Mapping[str, PredictedSize] = field(default_factory=dict)

    def show_tables(self, terminal: Terminal) -> None:
        """Prints the layers and the predicted sizes."""
        header = ("layer", "kind", "output", "parameters", "MACs", "pruned", "int8")
        rows = [
            (
                layer.name,
                layer.kind,
                shape_text(layer.output_shape),
                count_text(layer.parameters),
                count_text(layer.multiply_accumulates),
                _yes(layer.prunable),
                _yes(layer.quantizable),
            )
            for layer in self.layers
        ]
        if rows:
            total = (
                "",
                "",
                count_text(self.parameters),
                count_text(self.multiply_accumulates),
                "",
                "",
            )
            terminal.rows([header, *rows, ("total", *total)])
        if self.sizes:
            terminal.rows(
                [
                    ("predicted", "size", "gzip size", f"gzip, {percent(self.sparsity, 0)} pruned"),
                    *(
                        (
                            format,
                            kilobytes(size.raw_bytes),
                            kilobytes(size.gzip_bytes),
                            kilobytes(size.sparse_gzip_bytes),
                        )
                        for format, size in self.sizes.items()
                    ),
                ]
            )


def inspect_model(
    model: Any,
    *,
    pruning: Pruning | None = None,
    quantization: Quantization | None = None,
    formats: Sequence[str] = (),
) -> ModelInspection:
    """Tries every stage on an untrained model; `inspect` does it for a Keras model.

    Args:
        model: A Keras 3 or tf_keras model; stays as it is.
        pruning: As for `inspect`.
        quantization: As for `inspect`.
        formats: As for `inspect`.

    Raises:
        ModelError: It is no Keras model.
    """
    if not is_keras3(model) and not is_tf_keras(model):
        raise ModelError(
            "`model` must be a Keras 3 or tf_keras model, or the path of a saved one.",
            received=type(model).__name__,
        )
    stages = _Stages(model, pruning, quantization, formats)
    layers = stages.layers()
    counts = [layer.multiply_accumulates for layer in layers]
    known = [count for count in counts if count is not None]
    inputs, outputs = _interfaces(model)
    return ModelInspection(
        kind="Keras 3 model" if is_keras3(model) else "tf_keras model",
        name=model.name,
        inputs=inputs,
        outputs=outputs,
        parameters=model.count_params() if model.built else None,
        multiply_accumulates=sum(known) if layers and len(known) == len(counts) else None,
        findings=tuple(stages.findings),
        layers=layers,
        sparsity=(pruning or Pruning()).sparsity,
        sizes=stages.sizes,
    )


class _Stages:
    """What each stage says of a model."""

    def __init__(
        self,
        model: Any,
        pruning: Pruning | None,
        quantization: Quantization | None,
        formats: Sequence[str],
    ) -> None:
        self.model = model
        self.findings: list[Finding] = []
        self.plan: PruningPlan | None = None
        self.left_float: Mapping[str, str] | None = None
        self.sizes: Mapping[str, PredictedSize] = {}
        self.graph = graph_of(model)
        if is_keras3(model):
            message = "It is a Keras 3 model; it is converted to tf_keras for the training"
            hint = "What comes back is a Keras 3 model again."
            self.add("note", "keras3", message, (), hint)
        if self.graph is None:
            sequential = type(model).__name__ == "Sequential"
            code = "unbuilt" if sequential else "subclassed"
            self._attempt(code, "fail", lambda: graph_or_raise(model))
            return
        self._look_at_graph()
        self._look_at_weights()
        prepared = self._attempt("bridge", "fail", lambda: prepare_student(model))
        if prepared is None:
            return
        student = prepared.model
        tell_weights_apart(student)
        self._look_at_layers(student)
        heads = self._attempt("outputs", "fail", prepared.heads)
        if heads is not None:
            self._look_at_outputs(heads)
        level = "warn" if pruning is None else "fail"
        settings = pruning or Pruning()
        self.plan = self._attempt("pruning", level, lambda: plan_pruning(student, settings))
        if self.plan is not None:
            self._group("note", "left_dense", "Not pruned", self.plan.left_dense)
        level = "warn" if quantization is None else "fail"
        quantized = self._attempt(
            "quantization",
            level,
            lambda: quantize(student, quantization or Quantization(), sparse=self.plan is not None),
        )
        if quantized is not None:
            self.left_float = quantized.left_float
            self._group("warn", "left_float", "Not quantized", quantized.left_float)
        pruned = self.plan.pruned if self.plan else ()

        def sizes() -> tuple[Mapping[str, PredictedSize], Mapping[str, ExportError]]:
            check_exportable(student, "float32", quantization_aware=False)
            return predict_sizes(
                student, formats, sparsity=settings.sparsity, pruned=pruned, quantized=quantized
            )

        self.sizes, refused = self._attempt(self._export_code(student), "fail", sizes) or ({}, {})
        for format, error in refused.items():
            level = "warn" if format in Export().formats else "note"
            self.add(level, "format", f"No {format} of it: {' '.join(str(error).split())}")

    def layers(self) -> tuple[InspectedLayer, ...]:
        """The model's layers, with what the stages said."""
        if self.graph is None:
            return ()
        costs = self._attempt("costs", "warn", lambda: layer_costs(self.model)) or []
        unknown = tuple(cost.name for cost in costs if cost.multiply_accumulates is None)
        if unknown:
            message = (
                "Multiply-accumulates are not known: they depend on an input size that is open, "
                "or on a loop"
            )
            hint = "Give the model the input shape that the app will feed."
            self.add("note", "unknown_macs", message, unknown, hint)
        dense = self.plan.left_dense if self.plan else {}
        return tuple(
            InspectedLayer(
                name=cost.name,
                path=cost.path,
                kind=cost.kind,
                output_shape=cost.output_shape,
                parameters=cost.parameters,
                multiply_accumulates=cost.multiply_accumulates,
                prunable=self._prunable(cost.name),
                why_dense=dense.get(cost.name, ""),
                quantizable=None if self.left_float is None else not self._why_float(cost.name),
                why_float=self._why_float(cost.name),
            )
            for cost in costs
        )

    def add(
        self, level: str, code: str, message: str, layers: tuple[str, ...] = (), hint: str = ""
    ) -> None:
        """Notes a finding."""
        self.findings.append(Finding(level, code, message.rstrip("."), layers, hint))

    def _attempt(self, code: str, level: str, stage: Callable[[], _T]) -> _T | None:
        """What a stage gives; `None`, and a finding, where it refuses the model."""
        try:
            with silence():
                return stage()
        except MissingOperatorError as error:
            self.add("fail", "select_ops", " ".join(str(error).split()))
        except TfdistillError as error:
            self.add(level, code, " ".join(str(error).split()))
        except Exception as error:  # what a stage did not expect would end a run just as well
            self._add_failure(code, level, error)
        return None

    def _add_failure(self, code: str, level: str, error: Exception) -> None:
        """Says what a stage came up with that is no error of this library."""
        text, called = str(error), _CALLED.match(str(error))
        layers = (called["layer"],) if called else ()
        text = " ".join((called["reason"] if called else text).split())[:300]
        self.add(level, code, f"{_STAGES[code]} fails: {type(error).__name__}: {text}", layers)

    def _group(self, level: str, code: str, what: str, reasons: Mapping[str, str]) -> None:
        """A finding for each reason, with all the layers that it holds for."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            self.add(level, code, f"{what} ({reason})", tuple(names))

    def _prunable(self, name: str) -> bool | None:
        if self.plan is None or name not in {*self.plan.pruned, *self.plan.left_dense}:
            return None
        return name in self.plan.pruned

    def _why_float(self, name: str) -> str:
        reasons = self.left_float or {}
        parts = (reason for key, reason in reasons.items() if key.startswith(f"{name}/"))
        return reasons.get(name) or next(parts, "")

    def _look_at_graph(self) -> None:
        nested = tuple(layer.name for layer in self.model.layers if graph_of(layer) is not None)
        if nested:
            message = "It has models inside; their layers are inlined for the training"
            self.add("note", "nested", message, nested)
        leaves = leaves_of(self.graph)
        lambdas = tuple(leaf.name for leaf in leaves if type(leaf.layer).__name__ == "Lambda")
        if lambdas:
            message = "They hold Python code, which a saved file brings along"
            hint = "Loading such a file needs safe_mode=False; use layers or keras.ops instead."
            self.add("warn", "lambda", message, lambdas, hint)
        inputs, _ = _interfaces(self.model)
        unusual = tuple(
            f"{spec.name} ({spec.dtype})" for spec in inputs if spec.dtype in _NOT_FOR_APPS
        )
        if unusual:
            message = "Inputs are of a type that apps and accelerators seldom have"
            hint = "Build the model with int32 or float32 inputs."
            self.add("warn", "input_type", message, unusual, hint)
        fixed = tuple(spec.name for spec in inputs if spec.shape[:1] not in ((None,), (1,)))
        if fixed:
            message = "Inputs fix the size of the batch; the artifact takes one example at a time"
            self.add("warn", "batch", message, fixed, "Leave the batch axis open.")

    def _look_at_weights(self) -> None:
        broken = tuple(
            leaf.name
            for leaf in leaves_of(self.graph)
            if not all(_is_finite(weight) for weight in getattr(leaf.layer, "weights", ()))
        )
        if broken:
            message = "Their weights are NaN or infinite, so that training would stop at once"
            hint = "Load weights from before they became so, or build the model anew."
            self.add("fail", "not_finite", message, broken, hint)

    def _look_at_layers(self, student: Any) -> None:
        holes = tuple(layer.name for layer in student.layers if _tfmot_leaves_a_hole(layer))
        if holes:
            message = (
                "tfmot alone would train these without a weight quantizer, since a ReLU follows "
                "without BatchNormalization; here they have one"
            )
            self.add("note", "separate_relu", message, holes)

    def _look_at_outputs(self, heads: Mapping[str, Head]) -> None:
        one = len(heads) == 1
        for name, head in heads.items():
            where = self.model.outputs[0]._keras_history[0].name if one else name
            if head.activation != "linear":
                message = (
                    f"It ends in a {head.activation} where logits are expected; distillation reads "
                    "the logits before it, and the artifact gives probabilities"
                )
                hint = f"Leave the {head.activation} out, and the artifact gives logits."
                self.add("warn", "softmax", message, (where,), hint)
            if kind_of(head.activation, head.classes) == "labels":
                message = (
                    "Of labels in rows each is a yes or no of its own here; class numbers make "
                    "classes of it, one against the rest"
                )
                self.add("note", "multi_label", message, (where,))
            if len(head.shape) != 1:
                message = (
                    "Its outputs are not [batch, classes], which labels, accuracy and certificates "
                    f"are for, but {shape_text((None, *head.shape))}"
                )
                self.add("warn" if one else "fail", "outputs", message, (where,))

    def _export_code(self, student: Any) -> str:
        if any(None in tensor.shape[1:] for tensor in student.inputs):
            return "dynamic_shape"
        dtypes = {getattr(layer, "compute_dtype", None) for layer in student.layers}
        return "mixed_precision" if dtypes & set(_HALF) else "conversion"


def _is_finite(weight: Any) -> bool:
    values = np.asarray(weight)
    # bfloat16 is no kind of NumPy's, but its values can be tested.
    return not tf.as_dtype(values.dtype).is_floating or bool(np.isfinite(values).all())


def _tfmot_leaves_a_hole(layer: Any) -> bool:
    """Whether tfmot's layout takes the weight quantizer away together with the output's."""
    followers = [node.outbound_layer for node in layer._outbound_nodes]
    if type(layer).__name__ not in _KERNELS or len(followers) != 1:
        return False
    activation = getattr(followers[0], "activation", None)
    is_relu = isinstance(followers[0], tf_keras.layers.ReLU)
    return is_relu or (getattr(activation, "__name__", "") == "relu" and not followers[0].weights)


def _interfaces(model: Any) -> tuple[tuple[Interface, ...], tuple[Interface, ...]]:
    """Inputs and outputs; none of a model that is not built."""
    graph = graph_of(model)
    if graph is None:
        return (), ()
    names = [tensor._keras_history[0].name for tensor in graph.outputs]
    if len(names) > 1:
        with contextlib.suppress(ModelError):  # nested ones have none
            names = [*output_names(model)]
    found = []
    for tensors, called in (
        (graph.inputs, [tensor._keras_history[0].name for tensor in graph.inputs]),
        (graph.outputs, names),
    ):
        found.append(
            tuple(
                Interface(name, tuple(tensor.shape), tf.as_dtype(tensor.dtype).name)
                for name, tensor in zip(called, tensors, strict=True)
            )
        )
    return found[0], found[1]


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"

"""From a tf_keras model to the bytes of a LiteRT file, with errors that name layers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.errors import DataError, ExportError, ModelError
from tfdistill.heads import output_names
from tfdistill.host import silence
from tfdistill.litert.compaction import with_floats_for_products
from tfdistill.litert.flatbuffer import FAKE_QUANTIZED, layer_of, results_by_operator
from tfdistill.litert.int4 import BLOCK_SIZES, to_int4
from tfdistill.litert.runtime import inputs_by_name, signature_names
from tfdistill.pruning import PruneLowMagnitude

_INT16X8 = "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"
_NOT_BUILTIN = re.compile(r"(?:TF Select|Flex|Custom) ops: (.+)")
_NOT_QUANTIZABLE = re.compile(r"not yet supported for op: '(\w+)'")
_LOOPS = ("While", "StatelessWhile")
_RECURRENT = re.compile("WHILE|UNIDIRECTIONAL_SEQUENCE_.*")
_LOAD = """
import sys
try:
    from ai_edge_litert.interpreter import Interpreter
    Interpreter(model_content=sys.stdin.buffer.read()).allocate_tensors()
except Exception:  # depends on the weights, or is raised here, too
    pass
"""


class MissingOperatorError(ExportError):
    """A format lacks an operator that the model needs, whatever its weights and the data are."""


def check_exportable(model: Any, format: str, *, quantization_aware: bool) -> None:
    """Checks what the converter would fail on with a riddle, or not at all.

    Raises:
        ModelError: It is no Functional tf_keras model.
        ExportError: Its shapes, types or wrappers do not fit the format.
    """
    if not isinstance(model, tf_keras.Model) or not model.inputs:
        raise ModelError(
            "`model` must be a Functional tf_keras model.",
            received=type(model).__name__,
            hint="Convert a Keras 3 model first: td.to_tf_keras(model).",
        )
    unknown = [tensor.name for tensor in model.inputs if None in tensor.shape[1:]]
    if unknown:
        raise ExportError(
            "`model` must have inputs of a fixed shape, but for the batch axis.",
            received=", ".join(f"{t.name} {tuple(t.shape)}" for t in model.inputs),
            hint="Build it with an Input of the shape that the app will feed.",
        )
    half = [
        layer.name
        for layer in model.layers
        if getattr(layer, "compute_dtype", None) in ("float16", "bfloat16")
    ]
    if half:
        raise ExportError(
            "`model` must compute in float32.",
            received=f"layers in half precision: {', '.join(half)}",
            hint="Rebuild it with the dtype policy float32 and copy the weights.",
        )
    wrapped = [layer.name for layer in model.layers if isinstance(layer, PruneLowMagnitude)]
    if wrapped:
        raise ExportError(
            "`model` must be stripped of pruning wrappers.",
            received=", ".join(wrapped),
            hint="Call tfmot.sparsity.keras.strip_pruning(model) first.",
        )
    if quantization_aware and format != "int8":
        raise ExportError(
            "`format` must be int8 for a model trained quantization-aware.",
            received=format,
            hint="Export the other formats from the model before the quantization stage.",
        )


def calibration_examples(
    calibration: Iterable[Any] | None, model: Any, limit: int
) -> list[dict[str, np.ndarray]]:
    """The first examples of the data, one by one, as the converter wants them.

    Args:
        calibration: Batches as `fit` takes them.
        model: The model that they are for.
        limit: How many examples to take at most.

    Raises:
        DataError: There are none, or they are not finite or of another shape.
    """
    if calibration is None:
        raise DataError(
            "`calibration` must be given for a post-training integer format.",
            received=None,
            hint="Give training data, or train quantization-aware.",
        )
    if isinstance(calibration, (np.ndarray, tuple)):
        calibration = [calibration]
    names = signature_names(model.input_names)
    examples: list[dict[str, np.ndarray]] = []
    for batch in calibration:
        batch = batch[0] if isinstance(batch, tuple) else batch
        inputs = inputs_by_name(batch, model.input_names)
        for name, tensor in zip(names, model.inputs, strict=True):
            values = inputs[name]
            if values.shape[1:] != tuple(tensor.shape[1:]):
                raise DataError(
                    f"`calibration` must have the shape {tuple(tensor.shape)} for {name!r}.",
                    received=values.shape,
                )
            if not np.all(np.isfinite(values)):
                raise DataError(
                    "`calibration` must be finite.", received=f"NaN or infinity in {name!r}"
                )
            inputs[name] = values.astype(tensor.dtype.as_numpy_dtype)
        for index in range(min(len(inputs[names[0]]), limit - len(examples))):
            examples.append({name: inputs[name][index : index + 1] for name in names})
        if len(examples) >= limit:
            break
    if not examples:
        raise DataError("`calibration` must hold one example or more.", received="no examples")
    return examples


def random_examples(model: Any, count: int = 2) -> list[dict[str, np.ndarray]]:
    """As `calibration_examples`, where there is no data yet: values in [0, 1), and indices 0."""
    rng = np.random.default_rng(0)
    names = signature_names(model.input_names)

    def values(tensor: Any) -> np.ndarray:
        shape = (1, *tensor.shape[1:])
        numbers = rng.uniform(size=shape) if tensor.dtype.is_floating else np.zeros(shape)
        return numbers.astype(tensor.dtype.as_numpy_dtype)

    return [
        {name: values(tensor) for name, tensor in zip(names, model.inputs, strict=True)}
        for _ in range(count)
    ]


def check_loads(content: bytes, format: str) -> None:
    """Checks that LiteRT can load a file that was just converted, or raises an error itself.

    In a process of its own: some operators in int16x8 make LiteRT end the process.

    Raises:
        MissingOperatorError: They do.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LOAD], input=content, capture_output=True, check=False
    )
    if done.returncode:
        names = sorted({name for name, _ in results_by_operator(content)})
        raise MissingOperatorError(
            f"`model` must be one that LiteRT can load as {format}.",
            received=f"a process that was ended by one of {', '.join(names)}",
            hint=f"Leave {format} out of `formats`.",
        )


def convert(
    model: Any,
    format: str,
    *,
    types: tuple[str, str] = ("float32", "float32"),
    quantization_aware: bool = False,
    allow_select_ops: bool = False,
    examples: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """Converts a model; nothing is printed.

    Args:
        model: What `check_exportable` has accepted.
        format: One of `export.FORMATS`.
        types: Of the inputs and of the outputs that are real numbers.
        quantization_aware: Whether the ranges are in the model.
        allow_select_ops: Whether TensorFlow's operators may stand in for missing ones.
        examples: What to calibrate on, for the post-training integer formats.

    Raises:
        MissingOperatorError: It needs operators that the format lacks; layers are named.
        ExportError: It cannot be converted for another reason.
        SettingError: A package that the format needs is not installed.
    """
    if format in BLOCK_SIZES:
        floating = convert(model, "float32", allow_select_ops=allow_select_ops)
        with silence():
            return to_int4(floating, format)
    with silence():
        function, module = _serving_function(model, strip=quantization_aware)
        nodes = _nodes(function.graph.as_graph_def())
        _check_fake_quantization(nodes, quantization_aware)
        if examples and any(operator in _LOOPS for operator, _ in nodes):
            _check_loops(model, format, allow_select_ops)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
        converter.exclude_conversion_metadata = True  # its version and options, which none reads
        builtins = tf.lite.OpsSet.TFLITE_BUILTINS
        if format != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if format == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if examples:
            converter.representative_dataset = lambda: iter(examples)
            builtins = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        if format == "int16x8":
            builtins = tf.lite.OpsSet[_INT16X8]
        converter.target_spec.supported_ops = [builtins]
        if allow_select_ops:
            converter.target_spec.supported_ops.append(tf.lite.OpsSet.SELECT_TF_OPS)
        converter.inference_input_type, converter.inference_output_type = map(tf.as_dtype, types)
        try:
            content = bytes(converter.convert())
        except Exception as error:  # the converter raises what its C++ code comes up with
            if _NOT_QUANTIZABLE.search(str(error)):  # an operator of LiteRT's, not of the graph
                nodes += results_by_operator(
                    convert(model, "float32", allow_select_ops=allow_select_ops)
                )
            raise _explained(str(error), format, nodes, model) from error
    return with_floats_for_products(content) if quantization_aware else content


def _serving_function(model: Any, *, strip: bool) -> tuple[Any, Any]:
    """The model as a function of named inputs to named outputs, and what keeps it alive."""
    inputs = signature_names(model.input_names)
    outputs = names_of_outputs(model, strip=strip)

    def serve(**tensors: Any) -> dict[str, Any]:
        results = model([tensors[name] for name in inputs], training=False)
        return dict(zip(outputs, tf.nest.flatten(results), strict=True))

    specs = {
        name: tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(inputs, model.inputs, strict=True)
    }
    function = tf.function(serve).get_concrete_function(**specs)
    # Not the model: it would be saved as Keras does, which traces every layer once more.
    module = tf.Module()
    module.variables_of_model = list(function.graph.variables)
    return function, module


def names_of_outputs(model: Any, *, strip: bool = False) -> list[str]:
    """Names of a model's outputs in the signature, in its order.

    Of several in a dictionary the keys; else the names of the layers that they come from.

    Args:
        model: Functional tf_keras model.
        strip: Whether to take what tfmot's wrappers put before the names of layers off.
    """
    if isinstance(model.output, Mapping) and len(model.outputs) > 1:
        return signature_names(output_names(model))
    names = list(model.output_names)
    return signature_names([n.removeprefix(FAKE_QUANTIZED) for n in names] if strip else names)


def check_without_fake_quantization(model: Any) -> None:
    """Checks that a model computes in float, for a format that holds it as it is.

    Raises:
        ExportError: It simulates 8-bit arithmetic.
    """
    graph = _serving_function(model, strip=False)[0].graph.as_graph_def()
    _check_fake_quantization(_nodes(graph), quantization_aware=False)


def _nodes(graph: Any) -> list[tuple[str, str]]:
    """Operator and name of each node, those of functions called in the graph, too."""
    nodes = [(node.op, node.name) for node in graph.node]
    return nodes + [(n.op, n.name) for body in graph.library.function for n in body.node_def]


def _check_fake_quantization(nodes: Sequence[tuple[str, str]], quantization_aware: bool) -> None:
    found = any(operator.startswith("FakeQuant") for operator, _ in nodes)
    if found and not quantization_aware:
        raise ExportError(
            "`model` must be without fake quantization, or `quantization_aware` must be True.",
            received="a model that simulates 8-bit arithmetic",
            hint="Export it as int8 with quantization_aware=True.",
        )
    if quantization_aware and not found:
        raise ExportError(
            "`model` must simulate 8-bit arithmetic where `quantization_aware` is True.",
            received="a model without fake quantization",
            hint="Give calibration data and quantization_aware=False.",
        )


def _check_loops(model: Any, format: str, allow_select_ops: bool) -> None:
    """The converter's calibration ends the process on a loop in which a kernel is used."""
    results = results_by_operator(convert(model, "float32", allow_select_ops=allow_select_ops))
    if any(operator == "WHILE" for operator, _ in results):  # that of an LSTM becomes an operator
        raise MissingOperatorError(
            f"`model` must be without a loop, to be calibrated for {format}.",
            received=_located(["WHILE"], results, model),
            hint="Build the recurrent layer with unroll=True; or train quantization-aware, for "
            "int8.",
        )


def _explained(
    error: str, format: str, nodes: Sequence[tuple[str, str]], model: Any
) -> ExportError:
    """The converter's pages of text as one sentence about the model."""
    missing = [name.strip() for names in _NOT_BUILTIN.findall(error) for name in names.split(",")]
    if missing:
        hint = (
            "Replace what needs it: TensorFlow's select ops do not have it either."
            if "ERROR_NEEDS_CUSTOM_OPS" in error
            else "Replace what needs it; or give allow_select_ops=True, and ship the "
            "select-ops library with the app."
        )
        return MissingOperatorError(
            "`model` must need only operators that are built into LiteRT.",
            received=_located(missing, nodes, model),
            hint=hint,
        )
    missing = _NOT_QUANTIZABLE.findall(error)
    if missing:
        return MissingOperatorError(
            f"`model` must need only operators that LiteRT has in {format}.",
            received=_located(missing, nodes, model),
            hint=f"Replace what needs it, or leave {format} out of `formats`.",
        )
    return ExportError(
        f"`model` must be one that LiteRT's converter can write as {format}.",
        received=" ".join(error.split())[:300],
        hint="Leave this format out, or look at the cause of this error.",
    )


def _located(operators: Iterable[str], nodes: Sequence[tuple[str, str]], model: Any) -> str:
    """Operators with the layers that use them; TensorFlow and LiteRT spell them differently."""

    def plain(operator: str) -> str:
        return operator.replace("_", "").lower()

    found = []
    for operator in dict.fromkeys(operators):
        layers = {layer_of(name, model) for op, name in nodes if plain(op) == plain(operator)}
        if layers <= {"?"} and _RECURRENT.fullmatch(operator):  # it has a name of its own
            kinds = (tf_keras.layers.RNN, tf_keras.layers.Bidirectional)
            layers = {layer.name for layer in model.layers if isinstance(layer, kinds)}
        where = ", ".join(f"`{layer}`" for layer in sorted(layers - {"?"}))
        found.append(f"{operator} in layer {where}" if where else operator)
    return "; ".join(found)

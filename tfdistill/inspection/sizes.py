"""How large a model's artifacts will be, before anything is trained."""

from __future__ import annotations

import gzip
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfdistill.errors import ExportError
from tfdistill.export.conversion import check_loads, convert, random_examples
from tfdistill.export.settings import CALIBRATED
from tfdistill.litert.compaction import compact
from tfdistill.litert.flatbuffer import Graph, layer_of, unpack
from tfdistill.quantization import QuantizedModel

__all__ = ["PredictedSize", "predict_sizes", "tell_weights_apart"]

_SAMPLE = 2**20  # bytes of kernels that are compressed to learn the rate
_VALUES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
}


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


def tell_weights_apart(model: Any) -> None:
    """Changes a model so that no two tensors of its weights are equal, as after training.

    Equal constants, such as biases before training, would be stored once in an artifact. What is
    not finite becomes 0.

    Args:
        model: Built tf_keras model.
    """
    rng = np.random.default_rng(0)
    model.set_weights([_told_apart(weight, rng) for weight in model.get_weights()])


def _told_apart(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not np.issubdtype(weight.dtype, np.floating):
        return weight
    finite = np.nan_to_num(weight, nan=0.0, posinf=0.0, neginf=0.0)
    # A bias of attention or of a GRU has two axes.
    is_alike = weight.ndim < 2 or weight.size == 0 or np.ptp(finite) == 0
    noise = rng.uniform(0, 1e-3, weight.shape) if is_alike else 0.0
    return (finite + noise).astype(weight.dtype)


def predict_sizes(
    model: Any,
    formats: Iterable[str],
    *,
    sparsity: float,
    pruned: Collection[str],
    quantized: QuantizedModel | None = None,
) -> tuple[dict[str, PredictedSize], dict[str, ExportError]]:
    """Predicts the sizes of a model's artifacts, in bytes.

    The model is written in each format as it is, untrained; int8 and int16x8 with the ranges of
    random examples. No number of bytes depends on the values of weights or ranges, so that the
    sizes of the files are those after the training. Embedded metadata is not in them.

    After gzip they depend on the weights: kernels of random values shrink less than trained ones.
    The pruned ones are taken with their smallest weights set to 0 (as if unstructured, also for
    the other patterns). Of more than 1 MB of kernels, the rate of 1 MB is taken, a part of each.

    Args:
        model: What `conversion.check_exportable` has accepted, after `tell_weights_apart`.
        formats: Of float32, float16, dynamic_int8, int8 and int16x8.
        sparsity: Share of zeros in every pruned kernel.
        pruned: Names of the pruned layers.
        quantized: What quantization-aware training makes of it, for int8; its ranges begin here.
            Without, int8 is calibrated after training.

    Returns:
        Format to its predicted size; and of those that the model cannot be exported in, format to
        the reason.

    Raises:
        ExportError: The model cannot be converted at all; the message names operators and layers.
    """
    sizes: dict[str, PredictedSize] = {}
    refused: dict[str, ExportError] = {}
    for format in formats:
        trained = quantized if format == "int8" else None
        try:
            content = _converted(model, format) if trained is None else _trained(model, trained)
        except ExportError as error:
            if format == "float32":
                raise
            refused[format] = error
            continue
        written, carriers = (trained.model, trained.carriers) if trained else (model, {})
        kernels = _kernels(content, written, carriers)
        gzipped = [
            _gzip_bytes(content, kernels, share, pruned)
            for share in ((0.0, sparsity) if pruned else (0.0,))
        ]
        sizes[format] = PredictedSize(len(content), gzipped[0], gzipped[1] if pruned else None)
    return sizes, refused


def _converted(model: Any, format: str) -> bytes:
    """The file that an export of the model itself writes."""
    examples = random_examples(model) if format in CALIBRATED else []
    content = compact(convert(model, format, examples=examples), model)
    if format == "int16x8":
        check_loads(content, format)
    return content


def _trained(model: Any, quantized: QuantizedModel) -> bytes:
    """The int8 file that an export after quantization-aware training writes."""
    examples = random_examples(model)
    values = [np.concatenate([each[name] for each in examples]) for name in examples[0]]
    quantized.model(values, training=True)  # its first ranges
    content = convert(quantized.model, "int8", quantization_aware=True)
    return compact(content, quantized.model)


@dataclass(frozen=True)
class _Kernel:
    """A kernel in a file."""

    start: int
    values: np.ndarray
    layer: str

    @property
    def end(self) -> int:
        return self.start + self.values.nbytes


def _kernels(content: bytes, model: Any, carriers: Mapping[str, str]) -> list[_Kernel]:
    """Every kernel once, in the order of the file, with the student's layer."""
    packed, file = unpack(content), schema.Model.GetRootAs(content)
    found: dict[int, _Kernel] = {}
    for graph in (Graph(packed, each) for each in packed.subgraphs):
        for operator in graph.operators:
            for tensor in graph.weights(operator):
                table = file.Buffers(tensor.buffer)._tab
                start = table.Vector(table.Offset(4))  # of the table's first field, the data
                values = np.asarray(packed.buffers[tensor.buffer].data, np.uint8)
                layer = layer_of(tensor.name.decode(), model)
                # One that recurrent steps share is called by the part that reads it: "lstm/hidden".
                while carriers and layer not in carriers and "/" in layer:
                    layer = layer.rpartition("/")[0]
                layer = carriers.get(layer, layer)
                found[start] = _Kernel(start, values.view(_VALUES[tensor.type]), layer)
    return sorted(found.values(), key=lambda kernel: kernel.start)


def _gzip_bytes(
    content: bytes, kernels: list[_Kernel], sparsity: float, pruned: Collection[str]
) -> int:
    """Size of a file after gzip, from the rate of a part of each kernel."""
    total = sum(kernel.values.nbytes for kernel in kernels)
    share = min(1.0, _SAMPLE / total) if total else 1.0
    rest, parts, end = [], [], 0
    for kernel in kernels:
        values = kernel.values[: math.ceil(share * kernel.values.size)]
        rest.append(content[end : kernel.start])
        zeros = round(sparsity * values.size) if kernel.layer in pruned else 0
        parts += [rest[-1], _with_zeros(values, zeros).tobytes()]
        end = kernel.end
    tail = content[end:]
    whole = len(gzip.compress(b"".join([*parts, tail]), 9))
    if share == 1.0:
        return whole
    fixed = len(gzip.compress(b"".join([*rest, tail]), 9))
    return round(fixed + (whole - fixed) / share)


def _with_zeros(values: np.ndarray, zeros: int) -> np.ndarray:
    """The same with the smallest ones set to 0."""
    if not zeros:
        return values
    sparse = values.copy()
    sparse[np.argsort(np.abs(values.astype(np.float32)), kind="stable")[:zeros]] = 0
    return sparse

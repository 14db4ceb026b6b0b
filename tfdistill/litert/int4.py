"""Weights in 4 bits, after training, by ai-edge-quantizer: an optional package."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any

from tfdistill.errors import ExportError, SettingError
from tfdistill.litert.flatbuffer import Graph, inspect_content, unpack

__all__ = ["BLOCK_SIZES", "check_installed", "reason_not_int4", "to_int4"]

BLOCK_SIZES: Mapping[str, int] = {
    "int4": 0,
    "int4_block32": 32,
    "int4_block64": 64,
    "int4_block128": 128,
}
_DENSE = "FULLY_CONNECTED"
_IN_4_BITS = ("CONV_2D", _DENSE)  # that LiteRT runs, of what a Keras model becomes


def check_installed() -> None:
    """Checks that ai-edge-quantizer is there.

    Raises:
        SettingError: It is not; the message says how to install it.
    """
    try:
        import ai_edge_quantizer.quantizer  # noqa: F401
    except ImportError as error:
        raise SettingError(
            "`formats` must be without int4 where ai-edge-quantizer is not installed.",
            received=str(error),
            hint='Install it: pip install "tfdistill[int4]".',
        ) from error


def to_int4(content: bytes, format: str) -> bytes:
    """Rounds the weights of a float32 flatbuffer to 4 bits; what it computes stays float32.

    One scale for each output channel, or for each block of so many inputs of one; without
    offset, so that a weight of 0 stays 0. The kernels of dense layers and convolutions; those
    that LiteRT does not have in 4 bits (depthwise and transposed convolutions) in 8. While it
    runs, LiteRT rounds the inputs of such an operator to 8 bits.

    Args:
        content: The float32 flatbuffer.
        format: One of `BLOCK_SIZES`.

    Raises:
        ExportError: No operator of it has such weights in LiteRT.
        SettingError: ai-edge-quantizer is not installed.
    """
    check_installed()
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import Quantizer

    size, kinds = BLOCK_SIZES[format], qtyping.TFLOperationName
    quantizer = Quantizer(bytearray(content))
    quantizer.add_dynamic_config(".*", kinds.ALL_SUPPORTED, num_bits=8)
    for kind in _IN_4_BITS:
        quantizer.add_dynamic_config(".*", kinds(kind), num_bits=4)
    if size:
        blocks = qtyping.QuantGranularity[f"BLOCKWISE_{size}"]
        for output in _outputs_of_dense(content, size):
            quantizer.add_dynamic_config(f"^{re.escape(output)};", kinds(_DENSE), 4, blocks)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantized = bytes(quantizer.quantize().quantized_model or b"")
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"`model` must be one that ai-edge-quantizer can write as {format}.",
            received=" ".join(str(error).split())[:300],
            hint=f"Leave {format} out of `formats`.",
        ) from error
    if inspect_content(quantized, format).format != format:
        layers = f"a Dense layer with a multiple of {size} inputs" if size else "Dense or Conv2D"
        raise ExportError(
            f"`model` must have a layer that {format} is for: {layers}.",
            received="no such layer",
            hint=f"Leave {format} out of `formats`.",
        )
    return quantized


def reason_not_int4(weight: Any, format: str) -> str:
    """Why a weight tensor of an artifact is not as its format says; "" where it is.

    Args:
        weight: A `Weight` of the artifact.
        format: One of `BLOCK_SIZES`.
    """
    if weight.dtype.startswith("float"):
        return "LiteRT has it in float only"
    if weight.dtype != "int4":
        return "LiteRT does not have it in 4 bits"
    size = BLOCK_SIZES[format]
    if weight.block_size == size:
        return ""
    if weight.operator != _DENSE:
        return "LiteRT has blocks in dense layers only"
    return f"its {weight.shape[-1]} inputs are no multiple of {size}"


def _outputs_of_dense(content: bytes, size: int) -> list[str]:
    """Names of what the dense layers put out that have a multiple of `size` inputs."""
    packed = unpack(content)
    return [
        graph.tensors[operator.outputs[0]].name.decode()
        for graph in (Graph(packed, each) for each in packed.subgraphs)
        for operator in graph.operators
        if graph.name(operator) == _DENSE
        and any(tensor.shape[-1] % size == 0 for tensor in graph.weights(operator))
    ]

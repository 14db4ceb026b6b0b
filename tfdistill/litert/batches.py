"""Running a signature of a LiteRT file on batches of any size, as a teacher does.

`runtime` runs a file as an app does, one example at a time. No TensorFlow here either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdistill.errors import DataError, ModelError
from tfdistill.litert.flatbuffer import (
    Graph,
    Inspection,
    TensorInterface,
    inspect_content,
    load,
    read,
    unpack,
)

_DEFAULT_SIGNATURE = "serving_default"


class LiteRTSignature:
    """One signature of a LiteRT file, run on batches.

    A file for batches of any size gets the batch at once; one for a fixed size, or with state from
    one run to the next, gets it in pieces of its own size, the last one filled up.

    Args:
        path: The file.
        signature: Name of the signature; needed where there are several and none is called
            "serving_default". A file without signatures has the names of its tensors.
        num_threads: Threads that the runtime may use.

    Attributes:
        inspection: What is in the file.
        signature: The signature's name; None where the file has none.
        inputs: What it takes, by name; -1 in a shape is an open size.
        outputs: What it gives, by name.
        probabilities: Names of the outputs that come out of a softmax or a sigmoid.

    Raises:
        ModelError: It is no LiteRT model, lacks the signature, needs operators that the runtime
            does not have built in, or has no batch axis.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        signature: str | None = None,
        num_threads: int = 1,
    ) -> None:
        content, self._source = read(path)
        self._interpreter = load(content, self._source, num_threads)
        self.inspection: Inspection = inspect_content(content, self._source)
        if self.inspection.custom_operators:
            raise ModelError(
                f"`{self._source}` must have only operators built into LiteRT, to be run here.",
                received=", ".join(self.inspection.custom_operators),
                hint="Give the model that it was converted from.",
            )
        self.signature = self._chosen(signature)
        if self.signature is None:
            self._inputs = {each["name"]: each for each in self._interpreter.get_input_details()}
            self._outputs = {each["name"]: each for each in self._interpreter.get_output_details()}
        else:
            self._runner = self._interpreter.get_signature_runner(self.signature)
            self._inputs = self._runner.get_input_details()
            self._outputs = self._runner.get_output_details()
        self.inputs = {name: _interface(name, each) for name, each in self._inputs.items()}
        self.outputs = {name: _interface(name, each) for name, each in self._outputs.items()}
        self.probabilities = self._made_by_softmax(content)
        self._piece = self._size_of_pieces()
        self._has_run = False  # before, there is no state to reset, nor memory for it

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a batch, quantizing inputs and dequantizing outputs where the file wants it.

        Args:
            inputs: Real numbers (indices, where the file takes those) `[batch, ...]`, by name.

        Returns:
            Output name to float32 `[batch, ...]`.

        Raises:
            DataError: An input has another shape than the file takes.
            ModelError: The runtime failed.
        """
        for name, spec in self.inputs.items():
            self._check_shape(np.shape(inputs[name]), spec)
        batch = {name: spec.quantize(inputs[name]) for name, spec in self.inputs.items()}
        count = len(next(iter(batch.values())))
        size = self._piece or count
        pieces = []
        for start in range(0, count, size):
            # The last row again and again, where the last piece is short.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            pieces.append(self._run({name: values[rows] for name, values in batch.items()}))
        return {
            name: spec.dequantize(np.concatenate([piece[name] for piece in pieces])[:count])
            for name, spec in self.outputs.items()
        }

    def _check_shape(self, shape: tuple[int, ...], spec: TensorInterface) -> None:
        """The runtime itself would take another shape, and compute anything with it."""
        wanted = spec.shape[1:]
        if len(shape) != len(wanted) + 1 or any(
            size > 0 and size != given for size, given in zip(wanted, shape[1:], strict=True)
        ):
            sizes = ", ".join(["batch", *("?" if size < 0 else str(size) for size in wanted)])
            raise DataError(
                f"`{self._source}` must get the shape [{sizes}] for {spec.name!r}.",
                received=list(shape),
            )

    def _run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            if self.inspection.stateful and self._has_run:
                self._interpreter.reset_all_variables()
            self._has_run = True
            if self.signature is not None:
                return self._runner(**batch)
            for name, values in batch.items():
                self._interpreter.resize_tensor_input(self._inputs[name]["index"], values.shape)
            self._interpreter.allocate_tensors()
            for name, values in batch.items():
                self._interpreter.set_tensor(self._inputs[name]["index"], values)
            self._interpreter.invoke()
            return {
                name: self._interpreter.get_tensor(each["index"])
                for name, each in self._outputs.items()
            }
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"`{self._source}` must run on every batch.", received=str(error).splitlines()[0]
            ) from error

    def _chosen(self, signature: str | None) -> str | None:
        known = list(self._interpreter.get_signature_list())
        if signature is None and len(known) <= 1:
            return known[0] if known else None
        chosen = _DEFAULT_SIGNATURE if signature is None else signature
        if chosen not in known:
            raise ModelError(
                f"`signature` must be one of `{self._source}`.",
                received=repr(signature),
                hint=f"It has: {', '.join(known) or 'none; leave `signature` out'}.",
            )
        return chosen

    def _made_by_softmax(self, content: bytes) -> tuple[str, ...]:
        model = unpack(content)
        graphs: dict[str | None, int] = {None: 0}
        for each in model.signatureDefs or ():
            graphs[each.signatureKey.decode()] = each.subgraphIndex
        graph = Graph(model, model.subgraphs[graphs[self.signature]])
        return tuple(name for name, spec in self.outputs.items() if graph.origin(spec.index)[1])

    def _size_of_pieces(self) -> int | None:
        """The batch that the file takes; None where it takes any."""
        shapes = [spec.shape for spec in (*self.inputs.values(), *self.outputs.values())]
        sizes = {shape[0] for shape in shapes if shape}
        if any(not shape for shape in shapes) or len(sizes) > 1:
            raise ModelError(
                f"`{self._source}` must have the same batch axis in all inputs and outputs.",
                received=", ".join(str(list(shape)) for shape in shapes),
                hint="Export it with a batch size of 1, or with an open one.",
            )
        size = sizes.pop()
        if size > 0:
            return int(size)
        # State is laid out for the batch that the file was written with.
        return (
            int(next(iter(self._inputs.values()))["shape"][0]) if self.inspection.stateful else None
        )


def _interface(name: str, details: Mapping[str, Any]) -> TensorInterface:
    scale, zero_point = details["quantization"]
    quantized = bool(scale)
    return TensorInterface(
        name=name,
        shape=tuple(int(size) for size in details["shape_signature"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scale) if quantized else None,
        zero_point=int(zero_point) if quantized else None,
        index=int(details["index"]),
    )

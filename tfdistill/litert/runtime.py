"""Running a LiteRT file (`.tflite`) as an app would; what is in one is read by `flatbuffer`.

No TensorFlow here: what the runtime of phones says is what counts.
"""

from __future__ import annotations

import keyword
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill.errors import DataError, ModelError
from tfdistill.host import standard_error_held_back
from tfdistill.litert.flatbuffer import (
    Inspection,
    TensorInterface,
    inspect_content,
    inspect_file,
    load,
    not_a_model,
    read,
)

__all__ = [
    "Inspection",
    "Latency",
    "LiteRTModel",
    "TensorInterface",
    "inputs_by_name",
    "inspect_file",
    "measure_latency",
    "signature_names",
]


class LiteRTModel:
    """A LiteRT file, run one example at a time as an app runs it.

    State that recurrent operators keep is reset before each example, which is a sequence of
    its own, as in Keras.

    Args:
        path_or_bytes: The file, or its content.
        num_threads: Threads that the runtime may use.
        reference_kernels: Whether to compute by LiteRT's plain and slow kernels, which round
            otherwise than the fast ones, by a step here and there: to see how much that matters.

    Attributes:
        inspection: What is in the file.
        inputs: What it takes, batch axis (1) included.
        outputs: What it gives.

    Raises:
        ModelError: It is no LiteRT model, needs operators that the runtime does not have built
            in, or was made for batches of more than one example.

    Example:
        >>> LiteRTModel("student_int8.tflite").predict(images)["logits"].shape
        (297, 10)
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        *,
        num_threads: int = 1,
        reference_kernels: bool = False,
    ) -> None:
        """Loads the file and makes it ready to run."""
        content, self._source = read(path_or_bytes)
        self._interpreter = load(
            content, self._source, num_threads, reference_kernels=reference_kernels
        )
        self.inspection: Inspection = inspect_content(content, self._source)
        self.inputs: tuple[TensorInterface, ...] = self.inspection.inputs
        self.outputs: tuple[TensorInterface, ...] = self.inspection.outputs
        if self.inspection.custom_operators:
            raise ModelError(
                f"`{self._source}` must have only operators built into LiteRT, to be run here.",
                received=", ".join(self.inspection.custom_operators),
                hint="Replace the layers that need them.",
            )
        if any(spec.shape[:1] != (1,) for spec in self.inputs):
            raise ModelError(
                f"`{self._source}` must take one example at a time.",
                received=", ".join(f"{spec.name} {spec.shape}" for spec in self.inputs),
                hint="Export it with a batch size of 1.",
            )
        with standard_error_held_back(say_on_error=False):
            try:
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise not_a_model(self._source, str(error).splitlines()[0]) from error

    def predict(self, inputs: Any) -> dict[str, np.ndarray]:
        """Runs a batch, quantizing inputs and dequantizing outputs where the file wants it.

        Args:
            inputs: Real numbers (indices, where the file takes those) `[batch, ...]`; for
                several inputs a dictionary by name.

        Returns:
            Output name to float32 `[batch, ...]`.

        Raises:
            DataError: Names or shapes do not fit, or there are no examples.
            ModelError: The runtime failed on an example.
        """
        batch = self._quantized(inputs)
        outputs: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self.outputs}
        for example in range(len(batch[self.inputs[0].name])):
            self._set(batch, example)
            self._invoke()
            for spec in self.outputs:
                outputs[spec.name].append(self._interpreter.get_tensor(spec.index))
        return {
            spec.name: spec.dequantize(np.concatenate(outputs[spec.name])) for spec in self.outputs
        }

    def seconds_per_run(self, inputs: Any) -> Iterator[float]:
        """Runs the first example over and over and gives the seconds that each run took.

        Feeding and reading are not in it: they are the app's.
        """
        batch = self._quantized(inputs)
        while True:
            self._set(batch, 0)
            start = time.perf_counter()
            self._invoke()
            yield time.perf_counter() - start

    def _set(self, batch: Mapping[str, np.ndarray], example: int) -> None:
        self._interpreter.reset_all_variables()
        for spec in self.inputs:
            self._interpreter.set_tensor(spec.index, batch[spec.name][example : example + 1])

    def _invoke(self) -> None:
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise ModelError(
                f"`{self._source}` must run on every example.", received=str(error)
            ) from error

    def _quantized(self, inputs: Any) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.inputs]
        if not isinstance(inputs, Mapping) and len(names) == 1:
            inputs = {names[0]: inputs}
        if not isinstance(inputs, Mapping) or set(inputs) != set(names):
            raise DataError(
                f"`inputs` must be given by name: {', '.join(names)}.",
                received=list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__,
            )
        batch = {name: np.asarray(inputs[name]) for name in names}
        sizes = {len(values) if values.ndim else 0 for values in batch.values()}
        if sizes == {0} or len(sizes) > 1:
            raise DataError(
                "`inputs` must hold one example or more, equally many in each.",
                received=", ".join(f"{name} {values.shape}" for name, values in batch.items()),
            )
        for spec in self.inputs:
            if batch[spec.name].shape[1:] != spec.shape[1:]:
                shape = ", ".join(["batch", *map(str, spec.shape[1:])])
                raise DataError(
                    f"`inputs` must have the shape [{shape}] for {spec.name!r}.",
                    received=batch[spec.name].shape,
                )
        return {spec.name: spec.quantize(batch[spec.name]) for spec in self.inputs}


@dataclass(frozen=True)
class Latency:
    """How long one example takes on the host, feeding and reading left out.

    Attributes:
        median_ms: Median, milliseconds.
        p90_ms: 90 % of the runs took no longer, milliseconds.
        runs: How many runs.
    """

    median_ms: float
    p90_ms: float
    runs: int


def measure_latency(
    runs: Sequence[Iterator[float]], *, repeats: int = 200, seconds: float = 5.0
) -> list[Latency]:
    """Times models in turn, so that what slows the host down slows all of them down.

    Args:
        runs: `LiteRTModel.seconds_per_run(...)` of each model.
        repeats: Runs of each model, after a tenth of them to warm up.
        seconds: When this time is over no repeat is begun, but ten are always made.

    Returns:
        That of each model.
    """
    deadline = time.perf_counter() + seconds
    for _ in range(math.ceil(repeats / 10)):
        for run in runs:
            next(run)
        if time.perf_counter() > deadline:
            break
    times: list[list[float]] = []
    while len(times) < repeats and (len(times) < 10 or time.perf_counter() < deadline):
        times.append([1000 * next(run) for run in runs])
    return [
        Latency(float(np.median(each)), float(np.quantile(each, 0.9)), len(each))
        for each in np.transpose(times)
    ]


def signature_names(names: Sequence[str]) -> list[str]:
    """Names as a signature may have them: identifiers that begin with a letter, all different.

    Args:
        names: Names of a model's inputs or outputs.
    """
    allowed: list[str] = []
    for position, name in enumerate(names):
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not name[:1].isalpha():  # TensorFlow renames what begins with "_"
            name = f"tensor_{name.lstrip('_')}"
        if keyword.iskeyword(name):
            name = f"{name}_"
        allowed.append(f"{name}_{position}" if name in allowed else name)
    return allowed


def inputs_by_name(inputs: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """A batch's inputs as arrays, by their names in the signature.

    Args:
        inputs: As Keras takes them: one array, several in a list in the model's order, or in a
            dictionary by name.
        names: The inputs' names in the model, in its order.

    Raises:
        DataError: They are other inputs, or not as many.
    """
    if isinstance(inputs, Mapping):
        found = dict(inputs)
    elif isinstance(inputs, (list, tuple)):
        found = dict(zip(names, inputs, strict=True)) if len(inputs) == len(names) else {}
    else:
        found = {names[0]: inputs}
    if set(found) != set(names):
        received = list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise DataError(
            f"`data` must hold the model's inputs: {', '.join(names)}.", received=received
        )
    allowed = signature_names(names)
    return {new: np.asarray(found[name]) for name, new in zip(names, allowed, strict=True)}

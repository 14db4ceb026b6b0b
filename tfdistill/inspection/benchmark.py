"""How long a LiteRT file takes on this machine, and how much memory: to compare files, not phones.

The runtime is the one of phones, the processor is not. What counts are the ratios of files that
were measured in turn.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.errors import ModelError
from tfdistill.host import processor
from tfdistill.inspection.files import open_axes
from tfdistill.litert.runtime import Latency, LiteRTModel, measure_latency
from tfdistill.settings import whole_number

__all__ = ["Benchmark", "Measurement", "benchmark"]

_SECONDS = 5.0  # that the default number of runs may take, for each file
_MEASURE_MEMORY = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

def kilobytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

with open("/proc/self/clear_refs", "w") as references:
    references.write("5")  # the peak starts from here
before = kilobytes("VmRSS")
interpreter = Interpreter(model_path=sys.argv[1], num_threads=int(sys.argv[2]))
interpreter.allocate_tensors()
for spec in interpreter.get_input_details():
    interpreter.set_tensor(spec["index"], np.zeros(spec["shape"], spec["dtype"]))
interpreter.invoke()
print(1024 * max(0, kilobytes("VmHWM") - before))
"""


@dataclass(frozen=True)
class Measurement:
    """What one file takes on the host.

    Attributes:
        file: Its name.
        bytes: Its size.
        latency: How long one example takes.
        peak_memory_bytes: What loading it and one run add to a process at most, the weights that
            are read included; `None` where the system does not tell it.
    """

    file: str
    bytes: int
    latency: Latency
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Benchmark:
    """Files that were measured in turn.

    Attributes:
        host: What they were measured on.
        threads: Threads that the runtime might use.
        measurements: One for each file.
    """

    host: str
    threads: int
    measurements: tuple[Measurement, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return asdict(self)


def benchmark(
    paths: Sequence[str | os.PathLike[str]], *, threads: int = 1, runs: int | None = None
) -> Benchmark:
    """Measures LiteRT files on random inputs, one run of each in turn.

    Args:
        paths: The `.tflite` files.
        threads: Threads that the runtime may use.
        runs: Runs of each file; by default 200, or as many as fit in 5 seconds, but at least 10.

    Raises:
        ModelError: A file is no LiteRT model, or one that cannot be run here.
        SettingError: `threads` or `runs` is no whole number >= 1.

    Example:
        >>> int8, float32 = benchmark(["int8.tflite", "float32.tflite"]).measurements
        >>> float32.latency.median_ms / int8.latency.median_ms
        2.3
    """
    threads = whole_number("threads", threads, minimum=1)
    repeats = 200 if runs is None else whole_number("runs", runs, minimum=1)
    models = [LiteRTModel(path, num_threads=threads) for path in paths]
    for path in paths:
        opened = open_axes(path)
        if opened:
            raise ModelError(
                f"`{path}` must have inputs of a fixed shape, to be measured.",
                received=", ".join(f"{name} {shape}" for name, shape in opened.items()),
                hint="Export it with the shape that the app will feed.",
            )
    latencies = measure_latency(
        [model.seconds_per_run(_example(model)) for model in models],
        repeats=repeats,
        seconds=math.inf if runs is not None else _SECONDS * len(models),
    )
    return Benchmark(
        host=f"{processor()} (host CPU: no phone)",
        threads=threads,
        measurements=tuple(
            Measurement(
                file=Path(path).name,
                bytes=Path(path).stat().st_size,
                latency=latency,
                peak_memory_bytes=_peak_memory(path, threads),
            )
            for path, latency in zip(paths, latencies, strict=True)
        ),
    )


def _example(model: LiteRTModel) -> dict[str, np.ndarray]:
    """Random numbers in [0, 1), and indices 0."""
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.uniform(size=spec.shape) if spec.takes_numbers else np.zeros(spec.shape)
        for spec in model.inputs
    }


def _peak_memory(path: str | os.PathLike[str], threads: int) -> int | None:
    """In a process of its own, where nothing else takes and frees memory."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE_MEMORY, str(path), str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout) if done.returncode == 0 else None  # not Linux: no such files

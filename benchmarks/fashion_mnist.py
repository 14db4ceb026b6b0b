"""The Fashion-MNIST recipe over several seeds: accuracy, size and memory.

    python -m benchmarks.fashion_mnist --data-dir DIR

Runs `python -m pipelines.image_classification` with its defaults once a seed, all with one
teacher, and once more without pruning, from the first seed's distilled student, for the size of
a dense artifact. What is finished is taken from the run directories, so it can be interrupted.
Prints the tables of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DATASET = "fashion_mnist"


def run_recipe(run_dir: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """Runs the recipe as a process of its own.

    Args:
        run_dir: Where the run is kept.
        *arguments: More arguments of the command.

    Returns:
        The rows of its report by name, and its peak memory in GB.
    """
    command = [sys.executable, "-m", "pipelines.image_classification", "--dataset", _DATASET]
    process = subprocess.Popen([*command, "--run-dir", str(run_dir), *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: an artifact is beyond its limits
        raise SystemExit(f"{run_dir}: the recipe failed")
    report = json.loads((run_dir / "report.json").read_text())
    return {row["name"]: row for row in report["rows"]}, usage.ru_maxrss / 2**20


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all seeds and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion_mnist")
    parser.add_argument("--data-dir", required=True, help="where TFDS finds fashion_mnist")
    parser.add_argument("--runs", type=Path, default=Path("saved_models/benchmark"))
    parser.add_argument("--teacher", type=Path, help="a .keras file (default: in RUNS)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    arguments = parser.parse_args(argv)
    teacher = arguments.teacher or arguments.runs / "teacher.keras"
    shared = ["--data-dir", arguments.data_dir, "--teacher", str(teacher)]

    found, memory = {}, []
    for seed in range(arguments.seeds):
        rows, peak = run_recipe(arguments.runs / f"seed{seed}", *shared, "--seed", str(seed))
        found[seed] = rows
        memory.append(peak)
    dense_dir = arguments.runs / "dense"
    if not dense_dir.exists():  # the same distilled student, so that only pruning differs
        for name in ("run.json", "distillation"):
            source = arguments.runs / "seed0" / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            dense_dir.mkdir(parents=True, exist_ok=True)
            copy(source, dense_dir / name)
    dense, _ = run_recipe(dense_dir, *shared, "--no-pruning", "--no-baseline")

    names = [*found[0]]
    print(f"| seed | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for seed, rows in found.items():
        cells = [f"{rows[name]['accuracy']:.4f}" for name in names]
        print(f"| {seed} | {' | '.join(cells)} |")
    means = [statistics.mean(rows[n]["accuracy"] for rows in found.values()) for n in names]
    print(f"| mean | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    sparse = statistics.mean(rows["int8"]["gzip_bytes"] for rows in found.values())
    size = dense["int8"]["gzip_bytes"]
    print(f"\nstudent: {found[0]['distilled']['parameters']} parameters")
    print(f"int8, 75 % zeros, gzip: {sparse:.0f} bytes; dense: {size}; ratio {sparse / size:.3f}")
    print(f"dense int8 accuracy: {dense['int8']['accuracy']:.4f}")
    print(f"peak memory of the recipe: {max(memory):.2f} GB")


if __name__ == "__main__":
    main()

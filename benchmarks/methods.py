"""Every method on one real set: what each does to a small student's accuracy, and what it costs.

    python -m benchmarks.methods --data-dir DIR [--only NAME ...] [--seeds N]

Fashion-MNIST, 10 000 test images. Teachers are trained first, on all 54 000 training images, and
kept; students see 8192 of these, for 8 epochs each, with the same weights at the start,
order of the examples, optimizer and learning rate in every method of a seed. Nothing is
tuned for a method: weights and temperatures are the papers' or the defaults, the label loss has
0.1 beside losses on outputs that stand in its place, as in `td.Distiller`, and 1 beside others.

Four more tasks are made of the same images, for what is not for one class of an image: ten labels
that are yes or no; ten numbers, 1 for the class and -1 for the others; the class and, as a second
output, its kind; and an image as a sequence of 28 rows, for transformers. Each has a student
alone of its own, as have the methods with labels for a tenth of the images only.

Prints a table of Markdown: accuracy and its difference to the student alone of the same seed, mean
and standard deviation over the seeds; how long a step takes, over one of the student alone (in
turn in one process, the teacher asked live in all of them); and whether in the training that gave
the accuracy the teacher was asked live or its answers were stored before.

Each training's result is kept, so that the command can be interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tfdistill.terminal import Terminal, quiet_tensorflow

if __name__ == "__main__":
    quiet_tensorflow()  # a test that imports this module keeps its process as it is

import numpy as np

import tfdistill as td
from benchmarks.gallery.rows import GROUPS
from benchmarks.gallery.tasks import Method
from benchmarks.gallery.training import Budget, Data, Gallery
from tfdistill.host import processor, reuse_memory
from tfdistill.runs.files import write_json

_STEPS = 5  # of each in a round of measuring how long they take


class Results:
    """What has been measured, in a file that each training adds to.

    Args:
        path: Of the file.
        budget: That all of it has been measured with.

    Raises:
        SystemExit: The file holds results of another budget.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.teachers: dict[str, dict[str, Any]] = kept.get("teachers", {})
        self._rows: dict[str, dict[str, Any]] = kept.get("methods", {})
        self._budget = dataclasses.asdict(budget)
        if kept and kept["budget"] != self._budget:
            raise SystemExit(
                f"{path} holds results of {kept['budget']}, not of {self._budget}: move it away, "
                "or give another --results."
            )

    def of(self, method: Method) -> dict[str, Any]:
        """What has been measured of a method with the settings that it has now."""
        row = self._rows.get(method.name)
        if row is None or row["code"] != method.code:
            row = {"code": method.code, "accuracy": {}, "seconds": {}}
            self._rows[method.name] = row
        return row

    @property
    def seconds(self) -> float:
        """Everything together took."""
        parts = [*self.teachers.values(), *self._rows.values()]
        return sum(sum(part["seconds"].values()) for part in parts)

    def write(self) -> None:
        """Replaces the file."""
        write_json(
            self._path,
            {"budget": self._budget, "teachers": self.teachers, "methods": self._rows},
        )


def measure(
    gallery: Gallery,
    results: Results,
    groups: Sequence[Sequence[Method]],
    seeds: int,
    terminal: Terminal,
    rounds: int = 15,
) -> None:
    """Measures what has no result yet: first all methods of a seed, at the end their steps."""
    alone = {method: group[0] for group in groups for method in group}

    def judge(name: str) -> None:
        model = gallery.teacher(name)
        results.teachers[name]["accuracy"] = gallery.accuracy(model)
        results.teachers[name]["parameters"] = model.count_params()

    def train(method: Method, seed: int) -> None:
        student = gallery.train(method, seed)
        results.of(method)["accuracy"][str(seed)] = gallery.accuracy(student)
        results.of(method)["parameters"] = student.count_params()

    def step(method: Method) -> None:
        ratio = gallery.step_ratio(method, alone[method], rounds, _STEPS)
        results.of(method)["step_ratio"] = ratio

    work: list[tuple[str, dict[str, Any], str, Callable[[], None]]] = []
    for name in dict.fromkeys(name for method in alone for name in method.asked):
        row = results.teachers.setdefault(name, {"seconds": {}})
        if "accuracy" not in row:
            work.append((name, row, "teacher", partial(judge, name)))
    for seed in range(seeds):
        for method in alone:
            row = results.of(method)
            if str(seed) not in row["accuracy"]:
                work.append((method.name, row, f"seed {seed}", partial(train, method, seed)))
    for method in alone:
        row = results.of(method)
        if "step_ratio" not in row:
            work.append((method.name, row, "step", partial(step, method)))
    with terminal.progress("measuring", total=len(work)) as progress:
        for name, row, what, run in work:
            start = time.monotonic()
            run()
            row["seconds"][what] = time.monotonic() - start
            results.write()
            gallery.clear()
            terminal.note(f"{name}, {what}: {row['seconds'][what]:.1f} s")
            progress.advance()


def table(results: Results, groups: Sequence[Sequence[Method]]) -> str:
    """What has been measured, as a table of Markdown."""
    lines = [
        "| method | settings | accuracy | minus the student alone | step / its step | taught |",
        "|---|---|---|---|---|---|",
    ]
    for name, teacher in results.teachers.items():
        if "accuracy" in teacher:
            size = f"{teacher['parameters']:,} parameters"
            lines.append(f"| *{name}* | {size} | {teacher['accuracy']:.4f} | | | |")
    for group in groups:
        baseline = results.of(group[0])["accuracy"]
        for method in group:
            row = results.of(method)
            accuracy = row["accuracy"]
            if not accuracy:
                continue
            common = [seed for seed in accuracy if seed in baseline]
            better = [accuracy[seed] - baseline[seed] for seed in common]
            ratio = row.get("step_ratio")
            first = method is group[0]
            cells = (
                f"**{method.name}**" if first else method.name,
                f"`{method.code}`" if method.code else f"{row['parameters']:,} parameters",
                _mean(list(accuracy.values())),
                "" if first else _mean(better, sign="+"),
                "" if ratio is None else f"{ratio:.2f}",
                method.taught,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation; of one value alone the value."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def chosen(groups: Sequence[Sequence[Method]], names: Sequence[str]) -> list[tuple[Method, ...]]:
    """Methods by their names, with the students alone that they are compared with."""
    found = []
    for first, *others in groups:
        wanted = [method for method in others if method.name in names]
        if wanted or first.name in names:
            found.append((first, *wanted))
    return found


def load(data_dir: str) -> Data:
    """Fashion-MNIST: all training images in an order that is always the same, and all of "test"."""
    found = td.load_dataset("fashion_mnist", data_dir=data_dir, batch_size=1000, seed=0)

    def arrays(batches: Any) -> list[Any]:
        pairs = [(images.numpy(), labels.numpy()) for images, labels in batches]
        return [np.concatenate(parts) for parts in zip(*pairs, strict=True)]

    return Data(*arrays(found.train), *arrays(found.test))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what has no result yet, and prints the table."""
    names = [method.name for group in GROUPS for method in group]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods")
    parser.add_argument("--data-dir", required=True, help="where TFDS finds fashion_mnist")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        metavar="NAME",
        help="measure these methods, and the students alone that they are compared with",
    )
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--results", type=Path, default=Path("saved_models/methods"))
    for setting in dataclasses.fields(Budget):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            default=setting.default,
            help="(default: %(default)s)",
        )
    arguments = parser.parse_args(argv)
    budget = Budget(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Budget)})
    results = Results(arguments.results / "results.json", budget)
    groups = GROUPS if arguments.only is None else chosen(GROUPS, arguments.only)
    reuse_memory()
    gallery = Gallery(load(arguments.data_dir), arguments.results, budget)
    try:
        measure(gallery, results, groups, arguments.seeds, Terminal(sys.stderr))
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on") from None
    print(f"{processor()}; {budget}; {results.seconds / 60:.0f} minutes in all\n")
    print(table(results, GROUPS))


if __name__ == "__main__":
    main()

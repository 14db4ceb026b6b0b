"""Every method on one real set: what each does to a small student's accuracy, and what it costs.

    python -m benchmarks.methods --data-dir DIR [--only NAME ...] [--seeds N]

Fashion-MNIST, 10 000 test images. Teachers are trained first, on all 54 000 training images, and
kept; students see the first 8192 of them, for as many epochs each, with the same weights at the
start, order of the examples, optimizer and learning rate in every method of a seed. Nothing is
tuned for a method: weights and temperatures are the papers' or the defaults, the label loss has
0.1 beside losses on outputs that stand in its place, as in `td.Distiller`, and 1 beside others.

Three more tasks are made of the same images, for the losses that are not for one class of an
image: ten labels that are yes or no; ten numbers, 1 for the class and -1 for the others; and an
image as a sequence of 28 rows, for transformers. Each has a student alone of its own, and one
more has labels for a tenth of the images only.

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
from benchmarks.gallery import (
    NUMBERS,
    ROWS,
    YES_OR_NO,
    Budget,
    Data,
    Gallery,
    Method,
    middle_network,
)
from tfdistill._keras import tf_keras
from tfdistill.host import processor, reuse_memory
from tfdistill.losses import (
    CWSM,
    DIST,
    FLSW,
    FSP,
    AttentionScores,
    AttentionTransfer,
    BinaryTargets,
    CenteredMSE,
    Contrastive,
    CorrelationCongruence,
    CosineHiddenStates,
    DecoupledKD,
    EarlyExits,
    EmbeddingStates,
    HardTargets,
    HiddenStates,
    Hint,
    LogitsMSE,
    NeuronSelectivity,
    ProbabilisticTransfer,
    ProbabilityMSE,
    RegressionTargets,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    SoftTargets,
    WeightMSE,
)
from tfdistill.runs.files import write_json
from tfdistill.schedules import Cosine, Linear, Piecewise

_SOFT = SoftTargets(temperature=4.0, weight=0.9)
_ROUNDS, _STEPS = 15, 5  # of measuring a step: rounds, and steps of each in a round


def _two_teachers(name: str, *losses: Any, **how: Any) -> Method:
    """A method taught by both teachers of images."""
    more = "".join(f", {setting}={value!r}" for setting, value in how.items())
    return _outputs(
        name,
        *losses,
        asks=("teacher", "second"),
        teacher=lambda *members: td.teachers.Ensemble(members, **how),
        says=f"teacher=Ensemble([teacher, second]{more})",
    )


def _outputs(name: str, *losses: Any, **more: Any) -> Method:
    """A method whose losses stand in the place of most of the label loss."""
    return Method(name, losses, 0.1, **more)


def _alone(name: str, **more: Any) -> Method:
    """A student that nobody teaches."""
    return Method(name, asks=(), taught="-", **more)


_ASSISTANT = _outputs("assistant", _SOFT, network=middle_network)
_GENERATION = _alone("generation before")

# The first of each group is the student alone that the others are compared with.
GROUPS: tuple[tuple[Method, ...], ...] = (
    (
        _alone("student alone"),
        _outputs("soft targets", _SOFT),
        _outputs("cross-entropy", SoftTargets(divergence="cross_entropy", weight=0.9)),
        _outputs("reverse KL", SoftTargets(1.0, divergence="reverse_kl", weight=0.9)),
        _outputs("Jensen-Shannon", SoftTargets(2.0, divergence="jensen_shannon", weight=0.9)),
        _outputs("standardized logits", SoftTargets(2.0, standardize=True, weight=9.0)),
        _outputs("temperature of each example, FLSW", SoftTargets(FLSW(), weight=0.9)),
        _outputs("temperature of each example, CWSM", SoftTargets(CWSM(), weight=0.9)),
        _outputs("falling temperature", SoftTargets(Linear(8, 2), weight=0.9)),
        Method(
            "teacher first, labels later",
            [SoftTargets(weight=Cosine(0.9, 0))],
            Cosine(0.1, 1),
        ),
        _outputs("hard targets", HardTargets(weight=0.9)),
        _outputs(
            "hard targets, sure ones, smoothed",
            HardTargets(threshold=0.95, label_smoothing=0.1, weight=0.9),
        ),
        _outputs("logits", LogitsMSE(weight=0.1)),
        _outputs("centered logits", CenteredMSE(weight=0.1)),
        _outputs("probabilities", ProbabilityMSE(weight=5.0)),
        Method("decoupled KD", [DecoupledKD()]),
        Method("DIST", [DIST()]),
        Method("hint", [Hint("auto", weight=0.5)]),
        Method("attention transfer", [AttentionTransfer("auto", weight=10.0)]),
        Method("neuron selectivity", [NeuronSelectivity("auto", weight=50.0)]),
        Method("FSP", [FSP("auto")]),
        Method("similarity preserving", [SimilarityPreserving("auto", weight=1000.0)]),
        Method("relational distance", [RelationalDistance("auto", weight=25.0)]),
        Method("relational angle", [RelationalAngle("auto", weight=50.0)]),
        Method("probabilistic transfer", [ProbabilisticTransfer("auto", weight=10.0)]),
        Method("correlation congruence", [CorrelationCongruence("auto", weight=10.0)]),
        Method("contrastive", [Contrastive("auto", weight=0.8)]),
        Method("weights", [WeightMSE("conv_1", "conv_1", weight=0.01)], taught="live"),
        _outputs("soft targets and attention", _SOFT, AttentionTransfer("auto", weight=10.0)),
        Method(
            "hints first, then outputs",
            [
                Hint("auto", weight=Piecewise([1, 0], [0.3])),
                SoftTargets(weight=Piecewise([0, 0.9], [0.3])),
            ],
            Piecewise([0, 0.1], [0.3]),
        ),
        _two_teachers("two teachers, mean of logits", _SOFT),
        _two_teachers("two teachers, mean of probabilities", _SOFT, combine="probabilities"),
        _two_teachers("two teachers, by confidence", _SOFT, by_confidence=True),
        _two_teachers(
            "two teachers, a layer of one", _SOFT, Hint("second/relu_3", "relu_3", weight=0.5)
        ),
        _outputs(
            "teacher assistant",
            _SOFT,
            teacher=_ASSISTANT,
            taught="live",
            says="teacher: a larger student of the teacher",
        ),
        _outputs(
            "born again",
            _SOFT,
            teacher=_GENERATION,
            taught="live",
            says="teacher: such a student alone",
        ),
        Method(
            "mutual learning",
            [SoftTargets(1.0)],
            asks=(),
            students=2,
            taught="live",
            says="MutualDistiller of two such students",
        ),
        Method("early exits", [EarlyExits(["relu_1", "relu_2"], weight=0.3)]),
        Method(
            "moving average of the student",
            [ProbabilityMSE(weight=5.0)],
            asks=(),
            teacher=lambda: td.teachers.MovingAverage(0.99),
            taught="live",
            says="teacher=MovingAverage(0.99)",
        ),
        _outputs(
            "adversarial",
            _SOFT,
            settings={"adversarial": td.Adversarial(8 / 255, bounds=(0, 1))},
        ),
        _outputs("shifted and mirrored", _SOFT, augment=td.RandomShiftAndFlip(2)),
        _alone(
            "label smoothing",
            loss=lambda: tf_keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=0.1
            ),
            says="CategoricalCrossentropy(label_smoothing=0.1)",
        ),
    ),
    (
        _alone("student alone, a tenth of the labels", labelled=0.1, says="without the others"),
        _outputs(
            "soft targets, a tenth of the labels", _SOFT, labelled=0.1, settings={"unlabelled": 0}
        ),
        Method(
            "moving average, a tenth of the labels",
            [ProbabilityMSE(weight=5.0)],
            labelled=0.1,
            settings={"unlabelled": 0},
            asks=(),
            teacher=lambda: td.teachers.MovingAverage(0.99),
            taught="live",
            says="teacher=MovingAverage(0.99)",
        ),
        Method(
            "soft targets, no labels",
            [SoftTargets()],
            0.0,
            labelled=0.1,
            settings={"unlabelled": 0},
        ),
    ),
    (
        _alone("student alone, yes or no", task=YES_OR_NO, says="BinaryCrossentropy()"),
        _outputs("binary targets", BinaryTargets(2.0, weight=0.9), task=YES_OR_NO),
    ),
    (
        _alone("student alone, numbers", task=NUMBERS, says="MeanSquaredError()"),
        _outputs("regression targets", RegressionTargets(weight=0.9), task=NUMBERS),
        _outputs(
            "regression targets, bounded", RegressionTargets(bounded=True, weight=0.9), task=NUMBERS
        ),
    ),
    (
        _alone("student alone, rows", task=ROWS),
        _outputs("soft targets, rows", _SOFT, task=ROWS),
        Method("hidden states", [HiddenStates("states_2", "states_1")], task=ROWS),
        Method("directions of hidden states", [CosineHiddenStates("auto")], task=ROWS),
        Method("attention scores", [AttentionScores("attention_2", "attention_1")], task=ROWS),
        Method("embedding states", [EmbeddingStates("projection", "projection")], task=ROWS),
    ),
)


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
        ratio = gallery.step_ratio(method, alone[method], _ROUNDS, _STEPS)
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
                f"`{method.code}`" if method.losses else method.code,
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
    for alone, *others in groups:
        wanted = [method for method in others if method.name in names]
        if wanted or alone.name in names:
            found.append((alone, *wanted))
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

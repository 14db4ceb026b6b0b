"""The data sets of a run: looked at once, before any training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.data.datasets import (
    DataSummary,
    as_batches,
    content_of,
    require_same_each_time,
    summarise,
)
from tfdistill.errors import DataError, SettingError
from tfdistill.named import Kind, by_name
from tfdistill.plans import by_output
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.settings import whole_number
from tfdistill.targets.examples import Tally, example_ids
from tfdistill.terminal import Terminal
from tfdistill.training import TrainingData

# Iterators of training data that ends which are kept for looks at it, made or not: training
# must not depend on how many there were.
_LOOKS = 5
_SHARES = {
    "labels": "shares of labels, over all examples and labels: each is a yes or no of its own",
    "numbers": "R², the share of the variance of the labels, or of the teacher's numbers, that is "
    "explained",
}


@dataclass(frozen=True)
class RunData:
    """The data sets of a run.

    Attributes:
        train: The training set, read up to where training starts.
        validation: Batches to evaluate on after each epoch, or `None`.
        test: Batches that accuracy is measured on.
        summaries: "train", "test" and, where given, "validation" to what they hold.
        calibration: Batches of inputs from the beginning of the training set, as asked for.
        name: The user's name for the training data, or `None`.
        repeats: Whether a second reading of the training set begins with examples that the first
            one held; False for data without end.
        seen: Number of examples in the first reading, and a sum of their hashes.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.
    """

    train: TrainingData
    validation: Any
    test: Any
    summaries: Mapping[str, DataSummary]
    calibration: tuple[Any, ...]
    name: str | None
    repeats: bool = False
    seen: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """Where in the training data training starts."""
        return self.train.steps_per_epoch or _LOOKS

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says about them."""
        train = self.summaries["train"]
        kinds, counts = by_name(train.labels), by_name(train.labelled)
        labelled = {name: counts[name] for name, kind in kinds.items() if kind != "none"}
        return tuple(
            f"{count:,} of {train.examples:,} training examples have labels"
            f"{f' for the output {name!r}' if name else ''}; the others learn from the losses that "
            "need none."
            for name, count in labelled.items()
            if count != train.examples
        ) + tuple(
            f"Accuracy and agreement{f' of the output {name!r}' if name else ''} are "
            f"{_SHARES[kind]}."
            for name, kind in self.kinds.items()
        )

    @property
    def identity(self) -> str:
        """Hash of what is known of the training data."""
        return fingerprint(self.name, self.summaries["train"])

    def settled(self, recorded: Mapping[str, Any], terminal: Terminal) -> RunData:
        """Compares the training data with what an earlier run in this directory was trained on.

        Randomly augmented data may have other values each time it is read, and a run that reads
        it goes on nevertheless. Only data that differs from the record and is itself the same at
        a second reading has been changed.

        Args:
            recorded: `describe()` of the earlier run, as JSON gives it back; may be empty.
            terminal: Told where a change cannot be seen.
        """
        train = self.summaries["train"]
        before = recorded.get("train", {}).get("content", train.content)
        if before == train.content or recorded.get("name") != self.name:
            return self
        if self.train.steps_per_epoch is None:
            self.train.position += 1
            if train.content == content_of(self.train.dataset):
                return self
        if self.name is None:
            terminal.note(
                "`train` has other values each time it is read, so a change of them is not "
                "noticed: what is in `run_dir` is taken as made from it. Give `data_name=` "
                "another value to train anew."
            )
        return replace(self, summaries={**self.summaries, "train": replace(train, content=before)})

    def describe(self) -> dict[str, Any]:
        """What the run directory keeps of it."""
        return {"name": self.name, **self.summaries}


def look_at(
    train: Any,
    validation: Any,
    test: Any,
    *,
    classes: int | Mapping[str, int],
    kind: Kind | Mapping[str, Kind] = "classes",
    input_shape: tuple[int | None, ...] | None,
    require_labels: bool | Collection[str],
    unlabelled: float | Mapping[str, float | None] | None = None,
    steps_per_epoch: int | None,
    calibration_examples: int,
    name: str | None,
    seed: int,
) -> RunData:
    """Reads each set once: its size, labels and shapes must fit the models.

    Args:
        train: As the user gave it, like `validation` and `test`.
        validation: The same, or `None`.
        test: The same, or `None` for `validation`.
        classes: Number of classes; of several outputs by name, in the order in which labels in a
            tuple are. Theirs come as they are for `Distiller`, and are by name from here on.
        kind: What the output answers; of several by name. Those of "labels" are classes where
            their labels are no rows.
        input_shape: Of the student's only input, without the batch axis; `None` for several.
        require_labels: Whether the training set must have labels; or of which outputs.
        unlabelled: What stands for a label that an example of the training set does not have; of
            several outputs by name.
        steps_per_epoch: As the user gave it.
        calibration_examples: How many inputs to keep.
        name: The user's name for the training data.
        seed: For the order of arrays.

    Raises:
        DataError: They do not fit.
        SettingError: `steps_per_epoch` or `name` cannot be used.
    """
    if name is not None and not isinstance(name, str):
        raise SettingError("`data_name` must be a text or None.", received=name)
    if test is None and validation is None:
        raise DataError(
            "`test` must be given: accuracy and certificates are measured on it.",
            received="neither `test` nor `validation`",
            hint="Pass test=..., batches of (inputs, labels) that training never sees.",
        )
    given = {"train": train, "validation": validation, "test": test}
    if isinstance(classes, Mapping):
        given = {each: labels_by_output(data, [*classes], each) for each, data in given.items()}
    sets = {
        each: as_batches(data, seed=seed, name=each)
        for each, data in given.items()
        if data is not None or each == "train"
    }
    calibration, numbers = _FirstInputs(calibration_examples), _Numbers()

    def keep(inputs: Any) -> None:
        calibration.add(inputs)
        numbers.add_inputs(inputs)

    training, summary = _look_at_training(
        sets.pop("train"),
        steps_per_epoch,
        classes=classes,
        kind=kind,
        input_shape=input_shape,
        require_labels=require_labels,
        unlabelled=unlabelled,
        also=keep,
    )
    summaries = {"train": summary}
    kinds = by_name(summary.labels)
    labelled = [output for output, kind in kinds.items() if kind != "none"]
    special = {output: each for output, each in by_name(kind).items() if each != "classes"}
    for each, batches in sets.items():
        summaries[each] = summarise(
            batches,
            classes=classes,
            kind=kind,
            name=each,
            require_labels=labelled if isinstance(classes, Mapping) and labelled else True,
            input_shape=input_shape,
            ordered=True,
        )
        theirs = by_name(summaries[each].labels)
        for output in dict.fromkeys([*labelled, *special]):
            if kinds[output] == "none":  # the first set with labels says what they are
                kinds[output] = theirs[output]
            if kinds[output] != theirs[output] and (output in labelled or theirs[output] != "none"):
                of_output = f" for the output {output!r}" if output else ""
                raise DataError(
                    f"`{each}` must have the same kind of labels as `train`{of_output}: "
                    f"{kinds[output]}.",
                    received=theirs[output],
                    hint="Give rows of 0 and 1, one for each label, everywhere."
                    if "multi-hot" in (kinds[output], theirs[output])
                    else "tf.one_hot(labels, classes) makes one-hot labels of integers.",
                )
    repeats = False
    if steps_per_epoch is None:
        training.position += 1
        repeats = numbers.hold(next(iter(training.dataset))[0])
    measured = "test" if "test" in sets else "validation"
    require_same_each_time(sets[measured], name=measured)
    return RunData(
        train=training,
        validation=sets.get("validation"),
        test=sets[measured],
        summaries={**summaries, "test": summaries[measured]},
        calibration=tuple(calibration.batches),
        name=name,
        repeats=repeats,
        seen=numbers.facts(),
        kinds={
            output: each
            for output, each in special.items()
            if each == "numbers" or kinds[output] in ("multi-hot", "none")
        },
    )


def labels_by_output(data: Any, outputs: Sequence[str], name: str) -> Any:
    """The same data with labels by the name of the output.

    Args:
        data: As the user gave it: with labels, and weights that differ, in a dictionary, or in a
            tuple or list in the order of the outputs. Something else is left as it is.
        outputs: Names of the outputs.
        name: What errors call the data.

    Raises:
        DataError: There is one tensor of labels for all, or they are of other outputs.
    """

    def named(given: Any, what: str) -> Any:
        if not isinstance(given, (Mapping, tuple, list)):
            if what == "sample_weight":
                return given  # one for all
            raise DataError(
                f"`{name}` must have labels by output, of which the student has several.",
                received=f"one tensor for {', '.join(outputs)}",
                hint="Give (inputs, {name: labels, ...}), or a tuple of them in that order.",
            )
        found = by_output(given, outputs, f"{what} of {name}", error=DataError)
        return {output: each for output, each in found.items() if each is not None}

    def renamed(inputs: Any, *rest: Any) -> Any:
        kinds = zip(rest, ("labels", "sample_weight"), strict=False)
        return inputs, *(named(part, what) for part, what in kinds)

    if isinstance(data, tuple) and 2 <= len(data) <= 3:
        return renamed(*data)
    if not isinstance(data, tf.data.Dataset) or not isinstance(data.element_spec, tuple):
        return data
    spec = data.element_spec
    if not 2 <= len(spec) <= 3 or tuple(renamed(*spec)) == spec:
        return data
    return data.map(renamed)


def _look_at_training(
    batches: Any, steps_per_epoch: int | None, **more: Any
) -> tuple[TrainingData, DataSummary]:
    if steps_per_epoch is None:
        summary = summarise(batches, **more)
        looks = 1
        if batches.cardinality() == tf.data.UNKNOWN_CARDINALITY:
            looks = 2
            if next(iter(batches), None) is None:
                raise DataError(
                    "`train` must begin anew each time it is read.",
                    received="nothing at the second reading",
                    hint="Give `from_generator` a function that makes a new generator.",
                )
        return TrainingData(batches, position=looks), summary
    whole_number("steps_per_epoch", steps_per_epoch, minimum=1)
    if batches.cardinality() != tf.data.INFINITE_CARDINALITY:
        batches = batches.repeat()  # an epoch may be a part of it, or more than it
    training = TrainingData(batches, steps_per_epoch)
    one_epoch = training.batches(start=0, finished=0, epochs=1)
    return training, summarise(one_epoch, steps_per_epoch=steps_per_epoch, **more)


class _FirstInputs:
    """Keeps the first inputs that it is given, up to so many examples."""

    def __init__(self, examples: int) -> None:
        self.batches: list[Any] = []
        self._left = examples

    def add(self, inputs: Any) -> None:
        if self._left > 0:
            kept = tf.nest.map_structure(lambda part: np.array(part[: self._left]), inputs)
            self.batches.append((kept,))
            self._left -= len(tf.nest.flatten(kept)[0])


class _Numbers(Tally):
    """The numbers of all examples of one reading."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[np.ndarray] = []

    def add_inputs(self, inputs: Any) -> None:
        self._seen.append(example_ids(inputs).numpy())
        self.add(self._seen[-1])

    def hold(self, inputs: Any) -> bool:
        """Whether all examples of a batch are among them."""
        return bool(np.isin(example_ids(inputs).numpy(), np.concatenate(self._seen)).all())

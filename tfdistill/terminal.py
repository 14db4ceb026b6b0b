"""What the person in front of the terminal sees while it runs.

On a terminal: colours, and bars that redraw themselves. Into a pipe, a file or a CI log: plain
lines, none of which is ever rewritten. No TensorFlow is imported until training is shown.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from tfdistill.errors import SettingError
from tfdistill.host import standard_error_held_back

if TYPE_CHECKING:
    from tfdistill.report import Report

__all__ = ["Terminal", "Work", "quiet_tensorflow"]

_REDRAW_SECONDS = 0.1
_SIGN_OF_LIFE_SECONDS = 30.0
_DISPENSABLE = ("parameters", "ms (host)")
_FOLLOWED = ("accuracy", "agreement", "absolute_error")  # of all logs, on the terminal
_UNLIMITED = 100_000  # columns: plain lines are never wrapped


class Terminal:
    """Prints headings, notes, progress and the table of a report.

    Args:
        file: Where to; standard output when not given.
        verbose: 1, or 0 to print nothing at all.

    Raises:
        SettingError: `verbose` is neither 0 nor 1.

    Example:
        >>> terminal = Terminal()
        >>> student.fit(images, labels, epochs=5, verbose=0,
        ...             callbacks=[terminal.training_progress("student alone", epochs=5)])
    """

    def __init__(self, file: TextIO | None = None, verbose: int = 1) -> None:
        """Looks at what `file` is."""
        if verbose not in (0, 1):
            raise SettingError("`verbose` must be 0 or 1.", received=verbose)
        file = sys.stdout if file is None else file
        self.verbose = int(verbose)
        # Asked here, not by rich: FORCE_COLOR, which CI services set, makes rich take a log for
        # a terminal.
        self.interactive = file.isatty() and os.environ.get("TERM") != "dumb"
        self._console = Console(
            file=file,
            force_terminal=self.interactive,
            force_jupyter=False,
            width=None if self.interactive else _UNLIMITED,
            markup=False,
            emoji=False,
            highlight=False,
            quiet=not self.verbose,
        )
        self._bars: Progress | None = None

    def heading(self, text: str) -> None:
        """Prints the title of what comes next."""
        self._drop_bars()
        self._console.print()
        self._line(text, "bold")

    def note(self, text: str) -> None:
        """Prints a line; above the bar, if there is one."""
        self._line(text)

    def warn(self, text: str) -> None:
        """Prints a line that should not be missed."""
        self._line(f"warning: {text}", "yellow")

    def table(self, report: Report) -> None:
        """Prints a report: its rows, all notes, its advice, and where its files are."""
        self.heading(report.title)
        self._console.print(self._table(report.table()))
        self._console.print()
        for row in report.rows:
            if row.note:
                self._line(f"{row.name}: {row.note}")
        for note in report.details.get("notes", ()):
            self._line(note)
        for sentence in report.advice:
            self._console.print(Text(f"* {sentence}", style="yellow"))
        if report.html_path is not None:
            self._line(f"report: {report.html_path}")

    def rows(self, lines: list[tuple[str, ...]]) -> None:
        """Prints lines of cells as a table, the first of them as its header."""
        self._console.print()
        self._console.print(self._table(lines))

    def finding(self, level: str, text: str) -> None:
        """Prints a line in the colour of its level: "note", "warn" or "fail"."""
        self._line(text, {"warn": "yellow", "fail": "bold red"}.get(level, ""))

    def training_progress(self, title: str, epochs: int, steps: int | None = None) -> Any:
        """Makes the callback that shows a training.

        On a terminal: a bar with epoch, step, loss, main metrics and the time left, which gives
        way to one line when the training ends. Elsewhere: one line an epoch.

        Args:
            title: What is trained, such as "distillation".
            epochs: Epochs of the whole training, as `fit` is given them.
            steps: Steps of an epoch, where known; else they are counted in the first epoch.

        Returns:
            A tf_keras `Callback` for one `fit` (with its own `verbose=0`), which may go on with
            a training that was interrupted.
        """
        from tfdistill._keras import tf_keras

        if not self.verbose:
            return tf_keras.callbacks.Callback()
        terminal = self

        class EpochLines(tf_keras.callbacks.Callback):
            def on_train_begin(self, logs: Any = None) -> None:
                self.started, self.finished = time.monotonic(), 0  # epochs, of this run alone

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.epoch_started = time.monotonic()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                now = time.monotonic()
                self.finished += 1
                left = (now - self.started) / self.finished * (epochs - epoch - 1)
                parts = [_duration(now - self.epoch_started), *_metrics(logs)]
                if left > 0:
                    parts.append(f"{_duration(left)} left")
                terminal._line(f"{title}: epoch {epoch + 1}/{epochs}: " + ", ".join(parts))

        class EpochBar(tf_keras.callbacks.Callback):
            def __init__(self) -> None:
                super().__init__()
                # Else Keras fetches the metrics after every step, and the device waits for it.
                self._supports_tf_logs = True
                self.epoch, self.step, self.drawn, self.metrics = 0, 0, 0.0, [""]

            def on_train_begin(self, logs: Any = None) -> None:
                self.steps = steps or self.params.get("steps")
                self.started = time.monotonic()
                self.task = terminal._add_bar(title)
                self.draw()

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.epoch, self.step = epoch, 0

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                self.step = batch + 1
                if time.monotonic() - self.drawn >= _REDRAW_SECONDS:
                    self.metrics = _metrics(logs)
                    self.draw()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                self.steps = self.step
                self.metrics = _metrics(logs)
                self.draw()

            def on_train_end(self, logs: Any = None) -> None:
                terminal._remove_bar(self.task)
                took = _duration(time.monotonic() - self.started)
                done = f"{title}: {self.epoch + 1}/{epochs} epochs in {took}"
                terminal._line(", ".join([done, *self.metrics]))

            def draw(self) -> None:
                self.drawn = time.monotonic()
                of_steps = f"/{self.steps}" if self.steps else ""
                terminal._draw_bar(
                    self.task,
                    completed=self.epoch * (self.steps or 0) + self.step,
                    total=epochs * self.steps if self.steps else None,
                    position=f"epoch {min(self.epoch + 1, epochs)}/{epochs} {self.step}{of_steps}",
                    metrics=" ".join(self.metrics[:2]),
                )

        return EpochBar() if self.interactive else EpochLines()

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None = None, *, unit: str = "") -> Iterator[Work]:
        """Shows other long work while the block runs.

        Args:
            title: What is done, such as "certifying int8".
            total: How much there is to do, where known.
            unit: What is counted, to show how many of it a second; such as "examples".

        Example:
            >>> with Terminal().progress("reading data", total=len(files)) as work:
            ...     for file in files:
            ...         read(file)
            ...         work.advance()
        """
        work = Work(self, title, total, unit)
        try:
            yield work
            self._line(f"{title}: {work.done:,} in {_duration(work.seconds)}{work.rate}")
        finally:
            if work.task is not None:
                self._remove_bar(work.task)

    def _table(self, lines: list[tuple[str, ...]]) -> Table:
        """Draws lines of cells, on a narrow terminal without the columns that can be missed."""
        header, *rows = lines
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for name in header:
            justify: Literal["left", "right"] = "right" if table.columns else "left"
            name = name.replace(" ", "\n") if self.interactive else name
            table.add_column(name, justify=justify, vertical="bottom", overflow="fold")
        for row in rows:
            table.add_row(*(_styled(cell) for cell in row))
        unlimited = self._console.options.update(width=_UNLIMITED)
        if self._console.measure(table, options=unlimited).maximum > self._console.width:
            for name in _DISPENSABLE:
                if name in header:
                    column = header.index(name)
                    return self._table([line[:column] + line[column + 1 :] for line in lines])
        return table

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _add_bar(self, title: str) -> TaskID:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(min_width=6, max_width=40, ratio=1)),
                TextColumn(
                    "{task.fields[position]}", markup=False, table_column=Column(no_wrap=True)
                ),
                TextColumn(
                    "{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True)
                ),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._bars.start()
            atexit.register(self._drop_bars)  # an exception may leave the cursor hidden
        return self._bars.add_task(title, total=None, position="", metrics="")

    def _draw_bar(self, task: TaskID, **what: Any) -> None:
        if self._bars is not None and task in self._bars.task_ids:
            self._bars.update(task, **what)

    def _remove_bar(self, task: TaskID) -> None:
        if self._bars is not None and task in self._bars.task_ids:
            self._bars.remove_task(task)
            if not self._bars.task_ids:
                self._drop_bars()

    def _drop_bars(self) -> None:
        """Takes down all bars, also those of a training that ended in an exception."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            atexit.unregister(self._drop_bars)


class Work:
    """Long work that is being shown; made by :meth:`Terminal.progress`.

    Attributes:
        done: How much has been done.
        total: How much there is to do; `None` where that is not known (yet).
    """

    def __init__(self, terminal: Terminal, title: str, total: int | None, unit: str = "") -> None:
        """Shows it, with nothing done."""
        self.done = 0
        self.total = total
        self._terminal, self._title, self._unit = terminal, title, unit
        self._started = self._drawn = time.monotonic()
        shown = terminal.interactive and terminal.verbose
        self.task = terminal._add_bar(title) if shown else None
        self._draw()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> str:
        """How many a second, as text; empty where no unit was given."""
        if not self._unit or not self.seconds:
            return ""
        return f", {self.done / self.seconds:,.0f} {self._unit}/s"

    def advance(self, n: int = 1) -> None:
        """Says that `n` more have been done."""
        self.done += n
        every = _SIGN_OF_LIFE_SECONDS if self.task is None else _REDRAW_SECONDS
        if time.monotonic() - self._drawn >= every:
            self._drawn = time.monotonic()
            self._draw()

    def _draw(self) -> None:
        position = f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")
        if self.task is not None:
            self._terminal._draw_bar(
                self.task,
                completed=self.done,
                total=self.total,
                position=position,
                metrics=self.rate.removeprefix(", "),
            )
        elif self.done:
            after = f"after {_duration(self.seconds)}{self.rate}"
            if self.total is not None and self._unit:
                left = (self.total - self.done) * self.seconds / self.done
                after += f", {_duration(max(0.0, left))} left"
            self._terminal._line(f"{self._title}: {position} {after}")


def quiet_tensorflow() -> None:
    """Imports TensorFlow, and keeps off the terminal what it says about itself.

    For programs only (our command line and recipes call it first of all), never for a library:
    it lowers the log levels of the whole process, and `TF_CPP_MIN_LOG_LEVEL`, where the user did
    not set it, stays in the environment, since TensorFlow's C++ side reads it later, too, and
    child processes should be as quiet. Errors are still printed, and an import that fails prints
    all that was held back.

    Raises:
        ImportError: TensorFlow, or what belongs to it, cannot be imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # 2: errors only
    for package in ("tensorflow", "tensorflow_datasets", "tensorflow_model_optimization"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    for package in ("tf_keras", "keras"):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=rf"{package}(\.|$)")
    with standard_error_held_back(say_on_error=True):
        from tfdistill._keras import tf

        # Else its C++ side complains at the first operation that there is no GPU driver.
        tf.config.list_physical_devices()
    for name in ("absl", "tensorflow"):  # after the import: absl's logger has a class of its own
        logging.getLogger(name).setLevel(logging.ERROR)


def _metrics(logs: Mapping[str, Any] | None) -> list[str]:
    """The logs that a person follows; the single distillation losses are in the history."""
    return [
        f"{name} {float(value):.4f}"
        for name, value in (logs or {}).items()
        if name in ("loss", "val_loss") or any(each in name for each in _FOLLOWED)
    ]


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _styled(cell: str) -> Text:
    return Text(cell, style={"FAILED": "bold red", "passed": "green"}.get(cell, ""))

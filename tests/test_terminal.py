"""What a person sees: bars on a terminal, plain lines elsewhere, and no chatter of TensorFlow."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdistill import terminal as terminal_module
from tfdistill.errors import SettingError
from tfdistill.report import Report, Row
from tfdistill.terminal import Terminal

ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class FakeTerminal(io.StringIO):
    """A file that says it is a terminal, and keeps all that was drawn on it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What was printed, and every state of the bar, without colours and cursor moves."""
        shown = ESCAPE.sub("", self.getvalue()).replace("\r", "\n").split("\n")
        return [line.rstrip() for line in shown if line.strip()]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A file, where CI services would like to see colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    return io.StringIO()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return FakeTerminal()


def report() -> Report:
    return Report(
        title="digits",
        rows=(
            Row("teacher", "teacher", 0.9832, parameters=152_330),
            Row("student alone", "baseline", 0.9562, 0.9596, 4210, 0.0),
            Row("int8", "artifact", 0.93, 0.95, None, 0.75, 9416, 4931, 0.0123, certified=True),
            Row("float16", "artifact", 0.9, 0.9, None, 0.75, 13_416, 6012, 0.02, certified=False),
        ),
        advice=("The distilled student is not better than the student alone: " + "x" * 300,),
    )


def train(callback: Any, *, initial_epoch: int = 0, epochs: int = 3, **fit: Any) -> None:
    from tfdistill._keras import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    inputs, labels = np.ones((20, 3), np.float32), np.zeros(20, np.int64)
    callbacks = [callback, *fit.pop("callbacks", ())]
    model.fit(
        inputs,
        labels,
        batch_size=5,
        initial_epoch=initial_epoch,
        epochs=epochs,
        verbose=0,
        callbacks=callbacks,
        **fit,
    )


# Into a file


def test_a_file_gets_plain_lines(plain: io.StringIO) -> None:
    terminal = Terminal(plain)
    terminal.heading("Distillation")
    terminal.note("[bold]layer[/bold] :smile: 1234")
    terminal.warn("y" * 500)
    terminal.table(report())
    with terminal.progress("certifying int8", total=3) as work:
        work.advance(3)
    text = plain.getvalue()
    assert not set("\x1b\r\b") & set(text)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[1] == "Distillation"
    assert lines[2] == "[bold]layer[/bold] :smile: 1234"
    assert lines[3] == "warning: " + "y" * 500
    assert re.fullmatch(r"certifying int8: 3 in \d\.\d s", lines[-1])


def test_the_table_in_a_file_is_whole(plain: io.StringIO) -> None:
    Terminal(plain).table(report())
    lines = [re.split(r"\s{2,}", line.strip()) for line in plain.getvalue().splitlines()]
    assert [list(line) for line in report().table()] == [*lines[2:3], *lines[4:8]]
    assert f"* {report().advice[0]}" in plain.getvalue()


def test_training_in_a_file_is_a_line_an_epoch(plain: io.StringIO) -> None:
    inputs, labels = np.ones((5, 3), np.float32), np.zeros(5, np.int64)
    callback = Terminal(plain).training_progress("distillation", epochs=3)
    train(callback, validation_data=(inputs, labels))
    lines = plain.getvalue().splitlines()
    number = r"\d+\.\d{4}"
    metrics = f"loss {number}, accuracy {number}, val_loss {number}, val_accuracy {number}"
    assert len(lines) == 3
    for epoch, line in enumerate(lines[:2], start=1):
        pattern = rf"distillation: epoch {epoch}/3: [\d.]+ s, {metrics}, [\d.]+ s left"
        assert re.fullmatch(pattern, line), line
    assert re.fullmatch(rf"distillation: epoch 3/3: [\d.]+ s, {metrics}", lines[2])


def test_a_resumed_training_goes_on_counting(plain: io.StringIO) -> None:
    callback = Terminal(plain).training_progress("pruning", epochs=4)
    train(callback, initial_epoch=2, epochs=4)
    found = [line.split(":")[1] for line in plain.getvalue().splitlines()]
    assert found == [" epoch 3/4", " epoch 4/4"]


def test_the_time_left_counts_the_epochs_of_this_run(
    plain: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal_module.time, "monotonic", lambda: now[0])
    callback = Terminal(plain).training_progress("pruning", epochs=10)
    callback.on_train_begin()
    for epoch in (4, 5):
        callback.on_epoch_begin(epoch)
        now[0] += 60.0
        callback.on_epoch_end(epoch, {"loss": 1.0, "soft_targets": 2.0, "teacher_agreement": 0.5})
    assert plain.getvalue().splitlines() == [
        "pruning: epoch 5/10: 1 min 00 s, loss 1.0000, teacher_agreement 0.5000, 5 min 00 s left",
        "pruning: epoch 6/10: 1 min 00 s, loss 1.0000, teacher_agreement 0.5000, 4 min 00 s left",
    ]


def test_long_work_gives_signs_of_life(plain: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal_module.time, "monotonic", lambda: now[0])
    with Terminal(plain).progress("storing targets", total=2000) as work:
        for _ in range(100):
            now[0] += 1.0
            work.advance(20)
    assert plain.getvalue().splitlines() == [
        "storing targets: 600/2,000 after 30 s",
        "storing targets: 1,200/2,000 after 1 min 00 s",
        "storing targets: 1,800/2,000 after 1 min 30 s",
        "storing targets: 2,000 in 1 min 40 s",
    ]


def test_work_that_fails_is_not_called_done(plain: io.StringIO) -> None:
    with pytest.raises(ValueError, match="boom"), Terminal(plain).progress("reading data"):
        raise ValueError("boom")
    assert plain.getvalue() == ""


def test_a_dumb_terminal_gets_plain_lines(
    screen: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal(screen)
    terminal.heading("Distillation")
    train(terminal.training_progress("distillation", epochs=3))
    assert "\x1b" not in screen.getvalue()
    assert len(screen.lines) == 4


# On a terminal


def test_training_on_a_terminal_is_a_bar_and_then_a_line(
    screen: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfdistill._keras import tf_keras

    class Look(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert terminal._bars is not None
            terminal._bars.refresh()  # as it does ten times a second

    monkeypatch.setattr(terminal_module, "_REDRAW_SECONDS", 0.0)
    terminal = Terminal(screen)
    train(terminal.training_progress("distillation", epochs=3), callbacks=[Look()])
    bars = [line for line in screen.lines if line.startswith("distillation ")]
    assert any("epoch 3/3 4/4 loss" in line for line in bars)
    assert all(len(line) <= 80 for line in bars)
    last = screen.lines[-1]
    assert re.fullmatch(r"distillation: 3/3 epochs in [\d.]+ s, loss [\d.]+, accuracy 1.*", last)
    assert cursor_is_shown(screen)


def test_a_training_that_ends_in_an_exception_leaves_no_bar(screen: FakeTerminal) -> None:
    from tfdistill._keras import tf_keras

    class Interrupt(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    terminal = Terminal(screen)
    with pytest.raises(KeyboardInterrupt):
        train(terminal.training_progress("pruning", epochs=3), callbacks=[Interrupt()])
    assert not cursor_is_shown(screen)
    terminal.heading("Quantization")
    assert cursor_is_shown(screen)
    train(terminal.training_progress("quantization", epochs=1), epochs=1)
    assert cursor_is_shown(screen)
    after = screen.lines[screen.lines.index("Quantization") :]
    assert not any("pruning" in line for line in after)


def test_notes_and_other_work_beside_a_bar(screen: FakeTerminal) -> None:
    terminal = Terminal(screen)
    with terminal.progress("storing targets", total=10) as outer:
        outer.advance(5)
        with terminal.progress("reading data") as inner:
            inner.advance()
            terminal.note("a damaged shard")
        outer.advance(5)
    said = [line for line in screen.lines if ":" in line or "shard" in line]
    said = [line for line in said if "━" not in line]
    assert said[0] == "a damaged shard"
    assert said[1].startswith("reading data: 1 in")
    assert said[-1].startswith("storing targets: 10 in")
    assert cursor_is_shown(screen)


@pytest.mark.parametrize(("columns", "parameters"), [("80", False), ("120", True)])
def test_the_table_fits_the_terminal(
    screen: FakeTerminal, monkeypatch: pytest.MonkeyPatch, columns: str, parameters: bool
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    Terminal(screen).table(report())
    assert max(map(len, screen.lines)) <= int(columns)
    text = "\n".join(screen.lines)
    assert "…" not in text
    for line in report().table()[1:]:
        (drawn,) = (shown for shown in screen.lines if shown.startswith(f"{line[0]} "))
        wanted = [cell for index, cell in enumerate(line) if index != 3 or parameters]
        assert re.split(r"\s{2,}", drawn) == wanted


# Everywhere


def test_silent_is_silent() -> None:
    file = io.StringIO()
    terminal = Terminal(file, verbose=0)
    terminal.heading("a")
    terminal.note("b")
    terminal.warn("c")
    terminal.table(report())
    train(terminal.training_progress("distillation", epochs=1), epochs=1)
    with terminal.progress("d", total=1) as work:
        work.advance()
    on_screen = Terminal(FakeTerminal(), verbose=0)
    with on_screen.progress("d") as work:
        work.advance()
    assert file.getvalue() == ""


def test_wrong_settings() -> None:
    with pytest.raises(SettingError, match=r"`verbose` must be 0 or 1\. Received: 2\."):
        Terminal(verbose=2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.2, "1 min 00 s"),
        (61, "1 min 01 s"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert terminal_module._duration(seconds) == text


def cursor_is_shown(screen: FakeTerminal) -> bool:
    moves = [found for found in ESCAPE.findall(screen.getvalue()) if found[0] == "?25"]
    return not moves or moves[-1][1] == "h"


# Keeping TensorFlow quiet


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("TF_", "PYTHONW"))
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_tensorflow_says_nothing() -> None:
    code = """
import sys
from tfdistill.terminal import quiet_tensorflow
assert not {"tensorflow", "matplotlib", "numpy"} & set(sys.modules), "needs none of them"
quiet_tensorflow()
import logging, os, warnings
import numpy as np
import tensorflow as tf
from tfdistill._keras import tf_keras, tfmot
tf.config.set_logical_device_configuration(  # still possible: nothing was started
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
model.compile("adam", "mse")
model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
tf.get_logger().warning("a warning of TensorFlow's")
logging.getLogger("absl").warning("a warning of absl's")
for package in ("tensorflow", "tensorflow_datasets", "tensorflow_model_optimization"):
    warnings.warn_explicit("from inside", UserWarning, "a.py", 1, module=package + ".python.core")
assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"
os.write(2, b"standard error is back")
"""
    done = run(code)
    assert done.stderr == "standard error is back"
    assert done.returncode == 0
    assert done.stdout == ""


def test_an_import_that_fails_tells_all(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'no such instruction\\n')\nraise ImportError('broken')\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import os
from tfdistill.terminal import quiet_tensorflow
try:
    quiet_tensorflow()
except ImportError as error:
    print(error)
print(os.environ["TF_CPP_MIN_LOG_LEVEL"])
os.write(2, b"standard error is back")
"""
    done = run(code, TF_CPP_MIN_LOG_LEVEL="0")
    assert done.stdout.split() == ["broken", "0"]
    assert done.stderr == "no such instruction\nstandard error is back"

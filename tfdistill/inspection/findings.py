"""What an inspection finds: sentences with their levels, and what there is to be shown of it."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdistill.terminal import Terminal

__all__ = ["Finding", "Inspection", "Interface", "count_text", "shape_text"]

_LEVELS = ("note", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """Something to know of a model.

    Attributes:
        level: "note": nothing to do; "warn": look at it; "fail": the pipeline would refuse it.
        code: What it is, in a word that stays the same: "softmax", "left_float"...
        message: What was found, as a sentence without its full stop.
        layers: Names of the layers, operators or inputs that it is about.
        hint: What to do about it, as a sentence; "" for nothing.
    """

    level: str
    code: str
    message: str
    layers: tuple[str, ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        """The finding on one line."""
        where = f": {', '.join(self.layers)}" if self.layers else ""
        found = f"{self.level}: {self.message}{where}."
        return f"{found} {self.hint}" if self.hint else found


@dataclass(frozen=True)
class Interface:
    """An input or an output.

    Attributes:
        name: Its name.
        shape: Its shape; open axes are `None`.
        dtype: Its element type.
        scale: Step between two quantized values; `None` where it is not quantized.
        zero_point: The quantized value that stands for 0; `None` where it is not quantized.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        kind: What was looked at: "Keras 3 model", "tf_keras model", "LiteRT file" or "SavedModel
            without layers".
        name: The model's name, or the file's.
        inputs: What it takes.
        outputs: What it gives.
        parameters: How many weights it has; `None` where that is not known.
        multiply_accumulates: For one example; `None` where that is not known.
        findings: What to know of it, the worst first.
    """

    kind: str
    name: str
    inputs: tuple[Interface, ...] = ()
    outputs: tuple[Interface, ...] = ()
    parameters: int | None = None
    multiply_accumulates: int | None = None
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        """Puts the findings in order."""
        worst_first = sorted(self.findings, key=lambda each: -_LEVELS.index(each.level))
        object.__setattr__(self, "findings", tuple(worst_first))

    @property
    def status(self) -> str:
        """The worst level of its findings; "pass" where there is nothing but notes."""
        worst = self.findings[0].level if self.findings else "note"
        return "pass" if worst == "note" else worst

    def to_dict(self) -> dict[str, Any]:
        """The inspection in JSON's types, with "status"; its keys stay the same."""
        return {"status": self.status, **asdict(self)}

    def __str__(self) -> str:
        """The tables and findings as text."""
        from tfdistill.terminal import Terminal

        text = io.StringIO()
        self.show(Terminal(text))
        return text.getvalue().strip("\n")

    def show(self, terminal: Terminal) -> None:
        """Prints tables and findings."""
        terminal.heading(f"{self.name}: {self.kind}, {self.status}")
        for word, specs in (("input", self.inputs), ("output", self.outputs)):
            for spec in specs:
                terminal.note(f"{word} {_described(spec)}")
        self.show_tables(terminal)
        terminal.note("")
        for finding in self.findings:
            terminal.finding(finding.level, str(finding))

    def show_tables(self, terminal: Terminal) -> None:
        """Prints what only this kind of inspection has."""
        terminal.note(f"parameters: {count_text(self.parameters)}")


def _described(spec: Interface) -> str:
    quantized = f", scale {spec.scale:.6g}, zero point {spec.zero_point}" if spec.scale else ""
    return f"{spec.name}: {spec.dtype} {shape_text(spec.shape)}{quantized}"


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape as text, "?" for an open axis."""
    return f"[{', '.join('?' if axis is None else str(axis) for axis in shape)}]"


def count_text(count: int | None) -> str:
    """A number as text, "?" where it is not known."""
    return "?" if count is None else f"{count:,}"

"""Settings of the export stage: formats, what an app feeds and reads, and limits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from tfdistill.errors import SettingError
from tfdistill.litert.int4 import BLOCK_SIZES
from tfdistill.named import by_name
from tfdistill.settings import settings

__all__ = [
    "FORMATS",
    "Export",
    "Limits",
    "Normalisation",
    "check_format",
    "check_label_names",
]

SAVED = ("savedmodel", "keras")  # what is no LiteRT file
FORMATS = ("float32", "float16", "dynamic_int8", "int8", "int16x8", *BLOCK_SIZES, *SAVED)
CALIBRATED = ("int8", "int16x8")
_INTEGER_TYPES = {"int8": ("int8", "uint8"), "int16x8": ("int16",)}


@settings
class Limits:
    """How far an artifact may be from the model it came from.

    `None` takes the format's own limit: an accuracy drop of 0.02 and an agreement of 0.97 for
    int8 and dynamic_int8, 0.03 and 0.95 for int4 and its blocks, 0.01 and 0.99 for the others.
    The output error has none.

    Args:
        max_accuracy_drop: Accuracy of the model minus accuracy of the artifact, in [0, 1].
        min_agreement: Share of examples on which both predict the same class, or of labels that
            both decide alike, in [0, 1]. Of outputs of numbers both are R², the share of a variance
            that is explained.
        max_output_error_steps: Largest quantization error, in steps of the output's scale, that
            99 % of the outputs may have. Only for outputs that were computed quantized. Useful
            after quantization-aware training, where the model rounds as the artifact does.

    Raises:
        SettingError: A limit is out of its range.

    Example:
        >>> td.Limits(max_accuracy_drop=0.005, max_output_error_steps=2)
    """

    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    max_output_error_steps: float | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in ("max_accuracy_drop", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingError(f"`{name}` must be in [0, 1].", received=value)
        steps = self.max_output_error_steps
        if steps is not None and not 0 < steps < math.inf:
            raise SettingError("`max_output_error_steps` must be > 0.", received=steps)

    def for_format(self, format: str) -> Limits:
        """These limits, with the format's own in place of `None`."""
        drop, agreement = (0.02, 0.97) if format in ("int8", "dynamic_int8") else (0.01, 0.99)
        if format in BLOCK_SIZES:
            drop, agreement = 0.03, 0.95
        return Limits(
            drop if self.max_accuracy_drop is None else self.max_accuracy_drop,
            agreement if self.min_agreement is None else self.min_agreement,
            self.max_output_error_steps,
        )


@settings
class Normalisation:
    """How an app turns raw values, such as pixels, into the model's inputs.

    model input = raw value * `scale` + `offset`. It is written down beside the artifact, not
    applied: the data given to this library is what the model takes.

    Args:
        scale: Factor; one for all channels, or one per channel.
        offset: Summand; one for all channels, or one per channel.
        raw_range: Smallest and largest raw value.

    Raises:
        SettingError: A number is not finite, a scale is 0, or the range is empty.

    Example:
        >>> td.Normalisation(scale=1 / 127.5, offset=-1.0)  # pixels 0..255 to -1..1
    """

    scale: float | tuple[float, ...] = 1 / 255
    offset: float | tuple[float, ...] = 0.0
    raw_range: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in ("scale", "offset", "raw_range"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, np.ndarray)):
                value = tuple(float(each) for each in value)
                object.__setattr__(self, name, value)
            if not np.all(np.isfinite(value)):
                raise SettingError(f"`{name}` must be finite.", received=value)
        if not np.all(self.scale):
            raise SettingError("`scale` must not be 0.", received=self.scale)
        if len(self.raw_range) != 2 or self.raw_range[0] >= self.raw_range[1]:
            raise SettingError("`raw_range` must be (smallest, largest).", received=self.raw_range)
        if len(self._sizes()) > 1:
            raise SettingError(
                "`scale` and `offset` must be for equally many channels.",
                received=f"scale={self.scale}, offset={self.offset}",
            )

    @property
    def channels(self) -> int | None:
        """How many channels it is for; `None` if for any number."""
        return next(iter(self._sizes()), None)

    def _sizes(self) -> set[int]:
        return {len(value) for value in (self.scale, self.offset) if isinstance(value, tuple)}


@settings
class Export:
    """Settings of the export stage.

    Args:
        formats: What to write, one file each: "float32"; "float16" (weights stored in half the
            size); "dynamic_int8" (int8 weights, activations quantized at run time; the
            converter leaves kernels of less than 1024 weights in float); "int8" (all of it);
            "int16x8" (int16 activations, int8 weights); "int4" (weights of dense layers and
            convolutions in 4 bits, rounded after training, one scale a channel, activations
            quantized at run time; needs `pip install "tfdistill[int4]"`); "int4_block32",
            "int4_block64", "int4_block128" (the same, in dense layers one scale for so many
            weights; exact in LiteRT's default delegate, XNNPACK, only); "savedmodel" (a folder
            for TensorFlow Serving, float32); "keras" (a Keras 3 file, float32). `()` writes none,
            where the student alone is wanted.
        input_type: What the app feeds: "float32"; "int8" or "uint8", for the format int8;
            "int16", for int16x8. The other formats take float32.
        output_type: What the app reads, likewise.
        allow_select_ops: Whether an operator that LiteRT lacks may be taken from TensorFlow.
            The app must then ship the select-ops library, and the artifact cannot be certified
            here.
        label_names: The names of the classes, or labels, by their index in the output. Of a model
            with several outputs those of each, by its name; some may be left out.
        normalisation: How an app turns raw values into the model's inputs.
        metadata: Whether a LiteRT file says these itself, too, see `td.read_metadata`: some
            hundred bytes. The JSON file beside it says them in any case.
        calibration_examples: Training examples to calibrate post-training int8 and int16x8 on.
        limits: What each artifact's certificate is held against.

    Raises:
        SettingError: A setting is unknown or out of its range.

    Example:
        >>> td.Export(formats=("int8", "float16"), input_type="uint8", output_type="uint8")
    """

    formats: Sequence[str] = ("int8", "float16")
    input_type: str = "float32"
    output_type: str = "float32"
    allow_select_ops: bool = False
    label_names: Sequence[str] | Mapping[str, Sequence[str]] = ()
    normalisation: Normalisation | None = None
    metadata: bool = True
    calibration_examples: int = 256
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Checks every field."""
        object.__setattr__(self, "formats", _names("formats", self.formats))
        names = by_name(self.label_names)
        names = {output: _names("label_names", each) for output, each in names.items()}
        object.__setattr__(self, "label_names", names.get("", names))
        if len(set(self.formats)) < len(self.formats):
            raise SettingError("`formats` must hold each format once.", received=self.formats)
        for format in self.formats:
            check_format(format)
        for found in names.values():
            if not all(isinstance(each, str) and len(each.splitlines()) < 2 for each in found):
                raise SettingError("`label_names` must be names of one line.", received=found)
        if not isinstance(self.metadata, bool):
            raise SettingError("`metadata` must be True or False.", received=self.metadata)
        allowed = ["float32"]
        for format in self.formats:
            allowed += _INTEGER_TYPES.get(format, ())
        for name in ("input_type", "output_type"):
            if getattr(self, name) not in allowed:
                raise SettingError(
                    f"`{name}` must be one of {', '.join(allowed)} for these formats.",
                    received=getattr(self, name),
                    hint="int8 and uint8 need the format int8, int16 needs int16x8.",
                )
        count = self.calibration_examples
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SettingError(
                "`calibration_examples` must be a whole number >= 1.", received=count
            )

    def calibrates(self, *, quantization_aware: bool) -> bool:
        """Whether a format needs examples to calibrate on.

        Args:
            quantization_aware: Whether int8 has its ranges from training.
        """
        return bool(self.calibrated(quantization_aware=quantization_aware))

    def calibrated(self, *, quantization_aware: bool) -> list[str]:
        """The formats that need them."""
        trained = ("int8",) if quantization_aware else ()
        return [each for each in self.formats if each in CALIBRATED and each not in trained]

    def types(self, format: str) -> tuple[str, str]:
        """Types of a format's inputs and outputs."""
        allowed = ("float32", *_INTEGER_TYPES.get(format, ()))
        return (
            self.input_type if self.input_type in allowed else "float32",
            self.output_type if self.output_type in allowed else "float32",
        )


def _names(setting: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise SettingError(f"`{setting}` must be a tuple of names.", received=value)
    return tuple(value)


def check_format(format: str) -> None:
    """Checks a format's name.

    Raises:
        SettingError: There is no such format; the message gives the nearest names.
    """
    if format not in FORMATS:
        near = difflib.get_close_matches(str(format), FORMATS, n=2, cutoff=0.4)
        raise SettingError(
            f"`formats` must be of {', '.join(FORMATS)}.",
            received=format,
            hint=f"Did you mean {' or '.join(near)}?" if near else "",
        )


def check_label_names(label_names: Any, classes: Mapping[str, int]) -> None:
    """Checks that there are as many names of classes as a model has.

    Args:
        label_names: Of one output; of several by name.
        classes: Number of classes, or of what else it answers, of each output, by its name.

    Raises:
        SettingError: There are not; or they are of no output.
    """
    if len(classes) > 1:
        if not isinstance(label_names, Mapping):
            raise SettingError(
                "`label_names` must be by the names of the outputs, of which there are several.",
                received=label_names,
                hint=f"Write {{name: [...]}}; some may be left out. It has: {', '.join(classes)}.",
            )
        for name in label_names:
            if name not in classes:
                raise SettingError(
                    "`label_names` must be by the names of the outputs.",
                    received=repr(name),
                    hint=f"There are: {', '.join(classes)}.",
                )
    elif isinstance(label_names, Mapping):
        raise SettingError(
            "`label_names` must be a tuple of names for a model with one output.",
            received=label_names,
        )
    for name, names in by_name(label_names).items():
        count = classes[name] if name else next(iter(classes.values()))
        if len(names) != count:
            raise SettingError(
                f"`label_names` must be {count} names, one for each class"
                f"{f' of the output {name!r}' if name else ''}.",
                received=names,
            )

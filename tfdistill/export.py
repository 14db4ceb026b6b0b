"""The export stage: a trained tf_keras model becomes LiteRT files (`.tflite`)."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill.conversion import calibration_examples, check_exportable, convert, layer_of
from tfdistill.errors import ExportError, SettingError
from tfdistill.flatbuffer import Inspection, TensorInterface, inspect_content
from tfdistill.settings import settings
from tfdistill.sidecar import check_artifact_path, describe_interface, write_artifact

__all__ = [
    "FORMATS",
    "Export",
    "ExportedModel",
    "Limits",
    "Normalisation",
    "check_before_training",
    "export_model",
]

FORMATS = ("float32", "float16", "dynamic_int8", "int8", "int16x8")
_INTEGER_TYPES = {"int8": ("int8", "uint8"), "int16x8": ("int16",)}
_CALIBRATED = ("int8", "int16x8")
_METHODS = {
    "float32": "float32, nothing quantized",
    "float16": "weights rounded to float16",
    "dynamic_int8": "post-training, int8 weights, activations quantized at run time",
}


@settings
class Limits:
    """How far an artifact may be from the model it came from.

    `None` takes the format's own limit: an accuracy drop of 0.02 and an agreement of 0.97 for
    int8 and dynamic_int8, 0.01 and 0.99 for the others. The output error has none.

    Args:
        max_accuracy_drop: Accuracy of the model minus accuracy of the artifact, in [0, 1].
        min_agreement: Share of examples on which both predict the same class, in [0, 1].
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
            "int16x8" (int16 activations, int8 weights).
        input_type: What the app feeds: "float32"; "int8" or "uint8", for the format int8;
            "int16", for int16x8. The other formats take float32.
        output_type: What the app reads, likewise.
        allow_select_ops: Whether an operator that LiteRT lacks may be taken from TensorFlow.
            The app must then ship the select-ops library, and the artifact cannot be certified
            here.
        label_names: The classes' names, by their index in the output.
        normalisation: How an app turns raw values into the model's inputs.
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
    label_names: Sequence[str] = ()
    normalisation: Normalisation | None = None
    calibration_examples: int = 256
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in ("formats", "label_names"):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise SettingError(
                    f"`{name}` must be a tuple of names.", received=getattr(self, name)
                )
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise SettingError(
                "`formats` must hold one or more formats, each once.", received=self.formats
            )
        for format in self.formats:
            check_format(format)
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


@dataclass(frozen=True)
class ExportedModel:
    """An artifact that was written.

    Attributes:
        path: The `.tflite` file; its sidecar (`.json`) stands beside it.
        format: One of `FORMATS`.
        method: How it was quantized, in words.
        inspection: What is in the file, read back: hash, sizes, interface, operators.
        left_float: What computes or is stored in float although the format is an integer one,
            a sentence each.
    """

    path: Path
    format: str
    method: str
    inspection: Inspection
    left_float: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the file, hexadecimal."""
        return self.inspection.sha256

    @property
    def inputs(self) -> tuple[TensorInterface, ...]:
        """What an app feeds."""
        return self.inspection.inputs

    @property
    def outputs(self) -> tuple[TensorInterface, ...]:
        """What an app reads."""
        return self.inspection.outputs


def export_model(
    model: Any,
    path: str | os.PathLike[str],
    format: str,
    *,
    settings: Export | None = None,
    quantization_aware: bool = False,
    calibration: Iterable[Any] | None = None,
) -> ExportedModel:
    """Writes a model as a LiteRT file, with its sidecar (see `sidecar`).

    The file takes one example at a time. Its signature "serving_default" has the names of the
    model's inputs and of its output layers, without what tfmot's wrappers put before them;
    characters that are not allowed in a signature become "_".

    Args:
        model: Functional tf_keras model in float32, stripped of pruning wrappers.
        path: Where to write, ending in ".tflite".
        format: One of `FORMATS`.
        settings: The stage's settings; of `formats` no notice is taken.
        quantization_aware: Whether the model simulates 8-bit arithmetic; its format is then
            "int8", and the ranges that it learned are used.
        calibration: Batches of training data, as `fit` takes them: `x`, `(x, y)` or
            `(x, y, weights)`, arrays or tensors `[batch, ...]`. Needed for int16x8, and for
            int8 without quantization-aware training.

    Raises:
        ExportError: The model cannot be written in this format; the message names the operators
            and layers that prevent it.
        ModelError: It is no Functional tf_keras model.
        DataError: The calibration data is missing, empty, not finite, or of another shape.
        RunDirectoryError: There is a foreign file, or the place cannot be written.
        SettingError: The format is unknown, or labels or normalisation do not fit the model.

    Example:
        >>> export_model(model, "student_int8.tflite", "int8", calibration=train).method
        'post-training, calibrated on 256 training examples'
    """
    settings = settings or Export()
    check_format(format)
    check_exportable(model, format, quantization_aware=quantization_aware)
    _check_description(settings, model)
    check_artifact_path(path)
    examples = []
    method = _METHODS.get(format, "quantization-aware training")
    if format in _CALIBRATED and not quantization_aware:
        examples = calibration_examples(calibration, model, settings.calibration_examples)
        method = f"post-training, calibrated on {len(examples)} training examples"
    allowed = ("float32", *_INTEGER_TYPES.get(format, ()))
    types = [
        kind if kind in allowed else "float32"
        for kind in (settings.input_type, settings.output_type)
    ]
    content = convert(
        model,
        format,
        input_type=types[0],
        output_type=types[1],
        quantization_aware=quantization_aware,
        allow_select_ops=settings.allow_select_ops,
        examples=examples,
    )
    inspection = inspect_content(content, str(path))
    _check_result(inspection, *types, model=model)
    normalisation = None if settings.normalisation is None else asdict(settings.normalisation)
    write_artifact(
        path,
        content,
        inspection=inspection,
        format=format,
        method=method,
        interface=describe_interface(
            inspection, label_names=settings.label_names, normalisation=normalisation
        ),
    )
    return ExportedModel(
        Path(path), format, method, inspection, _left_float(inspection, format, model)
    )


def check_before_training(model: Any, settings: Export) -> None:
    """Refuses at once what the export would refuse after hours of training.

    Converts the untrained model once, to float32, to see whether LiteRT has all its operators.

    Args:
        model: Functional tf_keras model without wrappers.
        settings: The stage's settings.

    Raises:
        ExportError: The model cannot be written; the message names operators and layers.
        SettingError: Labels or normalisation do not fit the model.
    """
    check_exportable(model, "float32", quantization_aware=False)
    _check_description(settings, model)
    convert(model, "float32", allow_select_ops=settings.allow_select_ops)


def _check_description(settings: Export, model: Any) -> None:
    """Checks what only describes the model to the app's developer."""
    if settings.label_names and len(model.outputs) == 1:
        classes = max(2, model.outputs[0].shape[-1] or 0)
        if len(settings.label_names) != classes:
            raise SettingError(
                f"`label_names` must be {classes} names, one for each class.",
                received=settings.label_names,
            )
    channels = settings.normalisation.channels if settings.normalisation else None
    found = {tensor.shape[-1] for tensor in model.inputs}
    if channels is not None and channels not in found:
        raise SettingError(
            "`normalisation` must be for as many channels as the model's input has.",
            received=f"{channels} channels for {sorted(found)}",
        )


def _check_result(inspection: Inspection, input_type: str, output_type: str, *, model: Any) -> None:
    """Checks that the converter gave the types it was asked for."""
    for specs, wanted in ((inspection.inputs, input_type), (inspection.outputs, output_type)):
        for spec in specs:
            if spec.takes_numbers and spec.dtype != wanted:
                raise ExportError(
                    f"`{spec.name}` must be {wanted} in the artifact of {model.name!r}.",
                    received=spec.dtype,
                    hint="Ask for float32 there.",
                )


def _left_float(inspection: Inspection, format: str, model: Any) -> tuple[str, ...]:
    if format not in ("dynamic_int8", *_CALIBRATED):
        return ()
    found = [
        f"{weight.operator} in layer `{layer_of(weight.name, model)}` has {weight.dtype} weights"
        for weight in inspection.weights
        if weight.dtype.startswith("float")
    ]
    if format in _CALIBRATED:
        found += [
            f"{operator.count} {operator.name} computes in {operator.activations}"
            for operator in inspection.operators
            if operator.activations.startswith("float")
            and operator.name != "DEQUANTIZE"
            and not str(operator.weights).startswith("float")  # said above
        ]
    return tuple(found)

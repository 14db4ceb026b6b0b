"""The export stage: a trained tf_keras model becomes artifacts, most of them LiteRT files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfdistill import bridge
from tfdistill.errors import ExportError, SettingError
from tfdistill.export.conversion import (
    MissingOperatorError,
    calibration_examples,
    check_exportable,
    check_loads,
    check_without_fake_quantization,
    convert,
    names_of_outputs,
    random_examples,
)
from tfdistill.export.saved_artifacts import (
    KerasFile,
    inspect_artifact,
    keras_file,
    write_saved_model,
)
from tfdistill.export.settings import (
    CALIBRATED,
    FORMATS,
    SAVED,
    Export,
    Limits,
    Normalisation,
    check_format,
    check_label_names,
)
from tfdistill.heads import output_names
from tfdistill.litert.compaction import compact
from tfdistill.litert.flatbuffer import Inspection, TensorInterface, inspect_content, layer_of
from tfdistill.litert.int4 import BLOCK_SIZES, check_installed, reason_not_int4
from tfdistill.litert.metadata import labels_files, metadata_entries, with_files
from tfdistill.litert.sidecar import check_artifact_path, describe_interface, write_artifact
from tfdistill.named import Kind
from tfdistill.runs import files

__all__ = [
    "FORMATS",
    "Export",
    "ExportedModel",
    "Limits",
    "Normalisation",
    "check_before_training",
    "export_model",
    "left_float",
]

_ENDING_PROCESSES = ("int16x8",)  # that some operators have in LiteRT: see `check_loads`
_METHODS = {
    "float32": "float32, nothing quantized",
    "float16": "weights rounded to float16",
    "dynamic_int8": "post-training, int8 weights, activations quantized at run time",
    "savedmodel": "float32, nothing quantized, for any number of examples at a time",
    "keras": "float32, nothing quantized",
    **{
        format: "post-training, int4 weights, one scale for "
        f"{f'{size} of them' if size else 'each channel'}, activations quantized at run time"
        for format, size in BLOCK_SIZES.items()
    },
}
_SUFFIXES = {"keras": ".keras", "savedmodel": ""}  # the others: .tflite


@dataclass(frozen=True)
class ExportedModel:
    """An artifact that was written.

    Attributes:
        path: The file or folder; its sidecar (`.json`) stands beside it.
        format: One of `FORMATS`.
        method: How it was quantized, in words.
        inspection: What is in the file, read back: hash, sizes, interface, operators.
        interface: How an app feeds and reads it, as the sidecar says.
        left_float: What is not as the format's name says, a sentence each: see `left_float`.
    """

    path: Path
    format: str
    method: str
    inspection: Inspection
    interface: Mapping[str, Any]
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
    origin: str = "",
    to_keras3: Callable[[Any], Any] = bridge.to_keras3,
    kinds: Mapping[str, Kind] | None = None,
) -> ExportedModel:
    """Writes a model as an artifact, with its sidecar (see `sidecar`).

    A LiteRT file takes one example at a time. Its signature "serving_default" has the names of
    the model's inputs and of its output layers, without what tfmot's wrappers put before them; of
    several outputs in a dictionary those in it. Characters that are not allowed in a signature
    become "_".

    Args:
        model: Functional tf_keras model in float32, stripped of pruning wrappers.
        path: Where to write, ending in ".tflite"; in ".keras" for the format keras, and without
            an ending for savedmodel, which is a folder.
        format: One of `FORMATS`.
        settings: The stage's settings; of `formats` no notice is taken.
        quantization_aware: Whether the model simulates 8-bit arithmetic; its format is then
            "int8", and the ranges that it learned are used.
        calibration: Batches of training data, as `fit` takes them: `x`, `(x, y)` or
            `(x, y, weights)`, arrays or tensors `[batch, ...]`. Needed for int16x8, and for
            int8 without quantization-aware training.
        origin: What the model is among those of a run, in words, for the method.
        to_keras3: For the format keras: makes of `model` the Keras model to be saved.
        kinds: What outputs answer, by name; of the only output under "". Those not there: classes.
            What describes the artifact says so.

    Raises:
        ConversionError: The format is keras, and layers of the model do not exist in Keras 3.
        ExportError: The model cannot be written in this format; the message names the operators
            and layers that prevent it.
        ModelError: It is no Functional tf_keras model.
        DataError: The calibration data is missing, empty, not finite, or of another shape.
        RunDirectoryError: There is a foreign file, or the place cannot be written.
        SettingError: The format is unknown or needs a package that is missing, the path ends
            otherwise, or labels or normalisation do not fit the model.

    Example:
        >>> export_model(model, "student_int8.tflite", "int8", calibration=train).method
        'post-training, calibrated on 256 training examples'
    """
    settings = settings or Export()
    check_format(format)
    check_exportable(model, format, quantization_aware=quantization_aware)
    kinds = kinds or {}
    _check_description(settings, model, kinds)
    _check_suffix(path, format)
    check_artifact_path(path)
    method = _METHODS.get(format, "quantization-aware training")
    origin = f"; {origin}" if origin else ""
    if format in SAVED:
        method += origin
        return _save(model, Path(path), format, settings, method, to_keras3, kinds)
    examples = []
    if format in CALIBRATED and not quantization_aware:
        examples = calibration_examples(calibration, model, settings.calibration_examples)
        method = f"post-training, calibrated on {len(examples)} training examples"
    method += origin
    types = settings.types(format)
    content = convert(
        model,
        format,
        types=types,
        quantization_aware=quantization_aware,
        allow_select_ops=settings.allow_select_ops,
        examples=examples,
    )
    inspection = inspect_content(content, str(path))
    _check_result(inspection, *types, model=model)
    if format in _ENDING_PROCESSES:
        check_loads(content, format)
    interface = _interface(inspection, settings, model, kinds)
    entries = {}
    if settings.metadata:
        entries = metadata_entries(content, inspection, interface, model.name)
    content = compact(content, model, entries)
    if settings.metadata:
        content = with_files(content, labels_files(interface))
    inspection = inspect_content(content, str(path))
    write_artifact(
        path,
        content,
        inspection=inspection,
        format=format,
        method=method,
        interface=interface,
    )
    found = left_float(inspection, format, model)
    return ExportedModel(Path(path), format, method, inspection, interface, found)


def _save(
    model: Any,
    path: Path,
    format: str,
    settings: Export,
    method: str,
    to_keras3: Callable[[Any], Any],
    kinds: Mapping[str, Kind],
) -> ExportedModel:
    """Writes what is no LiteRT file."""
    check_without_fake_quantization(model)
    with files.new_directory(path) as folder:
        content: bytes | Path = folder
        if format == "keras":
            content = keras_file(model, to_keras3)
            files.write_bytes(folder / path.name, content)
            saved = KerasFile(folder / path.name)
            inspection: Inspection = saved.inspection
            if saved.foreign:
                method += f"; to be loaded with custom_objects for {', '.join(saved.foreign)}"
        else:
            in_file = _kinds_in_file(model, kinds, names_of_outputs(model))
            write_saved_model(model, folder, settings.label_names, in_file)
            inspection = inspect_artifact(folder)
        interface = _interface(inspection, settings, model, kinds)
        write_artifact(
            path,
            content,
            inspection=inspection,
            format=format,
            method=method,
            interface=interface,
        )
    return ExportedModel(path, format, method, inspection, interface)


def _in_signature(model: Any) -> dict[str, str]:
    """Names of the outputs to what they are called in the signature."""
    return dict(zip(output_names(model), names_of_outputs(model), strict=True))


def _kinds_in_file(
    model: Any, kinds: Mapping[str, Kind], outputs: Sequence[str]
) -> dict[str, Kind]:
    """What outputs answer by their names in the file, of all that there are in it."""
    if "" in kinds:
        return dict.fromkeys(outputs, kinds[""])
    in_signature = _in_signature(model)
    return {in_signature[name]: kind for name, kind in kinds.items()}


def _interface(
    inspection: Inspection, settings: Export, model: Any, kinds: Mapping[str, Kind]
) -> dict[str, Any]:
    label_names: Any = settings.label_names
    if isinstance(label_names, Mapping):
        in_signature = _in_signature(model)
        label_names = {in_signature[name]: each for name, each in label_names.items()}
    return describe_interface(
        inspection,
        label_names=label_names,
        normalisation=asdict(settings.normalisation) if settings.normalisation else None,
        kinds=_kinds_in_file(model, kinds, [spec.name for spec in inspection.outputs]),
    )


def _check_suffix(path: str | os.PathLike[str], format: str) -> None:
    suffix = _SUFFIXES.get(format, ".tflite")
    if Path(path).suffix != suffix:
        raise SettingError(
            f"`path` must {f'end in {suffix}' if suffix else 'have no ending'} for {format}.",
            received=str(path),
        )


def check_before_training(
    model: Any,
    settings: Export,
    *,
    quantization_aware: bool = False,
    to_keras3: Callable[[Any], Any] = bridge.to_keras3,
    kinds: Mapping[str, Kind] | None = None,
) -> None:
    """Refuses at once what the export would refuse after hours of training.

    Converts the untrained model to each format that is calibrated after training, on random
    values, or to float32: what LiteRT can write as float32 it can write as the others, too, but
    for int4, which is tried.

    Args:
        model: Functional tf_keras model without wrappers.
        settings: The stage's settings.
        quantization_aware: Whether int8 is to be trained.
        to_keras3: As for `export_model`.
        kinds: The same.

    Raises:
        ConversionError: For keras, the model has layers that Keras 3 lacks.
        ExportError: The model cannot be written; the message names operators and layers.
        SettingError: Labels or normalisation do not fit the model, or a package is missing.
    """
    in_4_bits = [format for format in settings.formats if format in BLOCK_SIZES]
    if in_4_bits:
        check_installed()
    if settings.formats:
        check_exportable(model, "float32", quantization_aware=False)
    kinds = kinds or {}
    _check_description(settings, model, kinds)
    if "keras" in settings.formats:
        keras_file(model, to_keras3)
    if "savedmodel" in settings.formats:
        with tempfile.TemporaryDirectory() as folder:
            in_file = _kinds_in_file(model, kinds, names_of_outputs(model))
            write_saved_model(model, Path(folder) / "saved", settings.label_names, in_file)
    if set(settings.formats) <= set(SAVED):
        return
    select = settings.allow_select_ops
    for format in in_4_bits:
        convert(model, format, allow_select_ops=select)
    written = bool(in_4_bits)
    for format in settings.calibrated(quantization_aware=quantization_aware):
        types, examples = settings.types(format), random_examples(model)
        try:
            content = convert(
                model, format, types=types, allow_select_ops=select, examples=examples
            )
        except MissingOperatorError:
            raise
        except ExportError:
            continue  # random values may be none that the model can take
        _check_result(inspect_content(content, format), *types, model=model)
        if format in _ENDING_PROCESSES:
            check_loads(content, format)
        written = True
    if not written:
        convert(model, "float32", allow_select_ops=select)


def _check_description(settings: Export, model: Any, kinds: Mapping[str, Kind]) -> None:
    """Checks what only describes the model to the app's developer."""
    if settings.label_names:
        names = output_names(model)
        units = {n: t.shape[-1] or 0 for n, t in zip(names, model.outputs, strict=True)}
        of_numbers = [name for name in names if "numbers" in (kinds.get(name), kinds.get(""))]
        classes = {n: count if n in of_numbers else max(2, count) for n, count in units.items()}
        check_label_names(settings.label_names, classes)
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


def left_float(inspection: Inspection, format: str, model: Any) -> tuple[str, ...]:
    """What computes or is stored otherwise than an integer format's name says, a sentence each.

    Args:
        inspection: What is in the artifact.
        format: One of `FORMATS`.
        model: The Keras model that it came from.
    """
    if format in BLOCK_SIZES:
        reasons = [(weight, reason_not_int4(weight, format)) for weight in inspection.weights]
        return tuple(
            f"{weight.operator} in layer `{layer_of(weight.name, model)}` has {weight.dtype} "
            f"weights: {why}"
            for weight, why in reasons
            if why
        )
    if format not in ("dynamic_int8", *CALIBRATED):
        return ()
    found = [
        f"{weight.operator} in layer `{layer_of(weight.name, model)}` has {weight.dtype} weights"
        for weight in inspection.weights
        if weight.dtype.startswith("float")
    ]
    if format in CALIBRATED:
        found += [
            f"{operator.count} {operator.name} computes in {operator.activations}"
            for operator in inspection.operators
            if operator.activations.startswith("float")
            and operator.name != "DEQUANTIZE"
            and not str(operator.weights).startswith("float")  # said above
        ]
    return tuple(found)

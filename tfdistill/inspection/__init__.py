"""What can be told of a model before any training: layer by layer, its sizes, and what is wrong.

A LiteRT file is looked at without TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdistill.errors import SettingError
from tfdistill.inspection.findings import Finding, Inspection
from tfdistill.litert.flatbuffer import IDENTIFIER

if TYPE_CHECKING:
    from tfdistill.pruning import Pruning
    from tfdistill.quantization import Quantization

__all__ = ["Finding", "Inspection", "inspect"]

#: Formats whose sizes are told before there is a file.
PREDICTED = ("float32", "float16", "dynamic_int8", "int8", "int16x8")


def inspect(
    model: Any,
    *,
    pruning: Pruning | None = None,
    quantization: Quantization | None = None,
    formats: Sequence[str] = PREDICTED,
    safe_mode: bool = True,
) -> Inspection:
    """Says before any training, in seconds, what each stage would do with a model.

    Most of the time is taken by the predicted sizes, for which the model is written in each of
    the formats: a minute for a MobileNetV2, of which a `formats` of less takes a part.

    What the pipeline would refuse is not raised but written down, as findings of the level
    "fail"; so is a stage's refusal, of the level "warn" where the stage's settings were not
    given. Multiply-accumulates are the products of convolutions and matrix multiplications; for
    input sizes that the model leaves open they are not known.

    Predicted sizes are those of the files that the model gives as it is, without embedded
    metadata; int8 as quantization-aware training leaves it, where that takes the model. Raw sizes
    stay through the training, those after gzip to some 15 %; pruning is assumed to set the
    smallest weights to 0.

    Args:
        model: A Keras 3 or tf_keras model; or the path of a `.keras` or `.h5` file, of a
            SavedModel folder, or of a `.tflite` file.
        pruning: The pruning stage's settings; the defaults where not given.
        quantization: The settings of quantization-aware training; the defaults where not given.
        formats: Whose sizes to predict, some of float32, float16, dynamic_int8, int8 and int16x8.
            Without any, operators that LiteRT lacks are not noticed either.
        safe_mode: Whether a file that brings Python code of its own is refused, see `load_model`.

    Returns:
        A `ModelInspection`, a `FileInspection` of a `.tflite`, or a plain `Inspection` of a
        SavedModel that has no Keras layers left. Printed, it is a table.

    Raises:
        ModelError: There is no such file, or nothing can be read from it.
        SettingError: A format is none of these, or a setting is for no LiteRT file.

    Example:
        >>> inspection = td.inspect(student)
        >>> inspection.status, inspection.parameters, inspection.sizes["int8"].raw_bytes
        ('pass', 11_026, 14_480)
    """
    if isinstance(formats, str) or not {*formats} <= {*PREDICTED}:
        raise SettingError(
            f"`formats` must be a list, of {', '.join(PREDICTED)}.", received=repr(formats)
        )
    from_file = isinstance(model, (str, os.PathLike))
    if from_file and _is_litert(Path(model)):
        from tfdistill.inspection.files import inspect_litert

        for name, value in (("pruning", pruning), ("quantization", quantization)):
            if value is not None:
                raise SettingError(
                    f"`{name}` must be left out for a LiteRT file.",
                    received=str(model),
                    hint="It is finished: nothing in it can be trained.",
                )
        return inspect_litert(model)
    from tfdistill.bridge.loading import load_model
    from tfdistill.inspection.models import inspect_model
    from tfdistill.inspection.saved_models import has_no_layers, inspect_exported

    if from_file:
        path = Path(model)
        if has_no_layers(path):
            return inspect_exported(path)
        model = load_model(path, safe_mode=safe_mode)
    return inspect_model(model, pruning=pruning, quantization=quantization, formats=formats)


def _is_litert(path: Path) -> bool:
    if path.suffix == ".tflite" or not path.is_file():
        return path.suffix == ".tflite"
    with path.open("rb") as file:
        return file.read(8)[4:] == IDENTIFIER

"""From a trained teacher and a small Keras student to a small, verified LiteRT model.

    import tfdistill as td

Names are imported when they are first used: ``import tfdistill`` itself needs no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tfdistill import errors
from tfdistill.errors import (
    CertificationError,
    ConversionError,
    DataError,
    ExportError,
    ModelError,
    NonFiniteLossError,
    RunDirectoryError,
    SettingError,
    SparsityError,
    TeacherError,
    TfdistillError,
)

if TYPE_CHECKING:  # for type checkers and editors; _LAZY says the same to Python
    from tfdistill import bridge, losses, schedules, teachers
    from tfdistill.adversarial import Adversarial
    from tfdistill.bridge import load_model, to_keras3, to_tf_keras
    from tfdistill.certificate import certify
    from tfdistill.chain import distill_in_turn
    from tfdistill.data import RandomShiftAndFlip, load_dataset
    from tfdistill.distillation import Distillation
    from tfdistill.distiller import Distiller
    from tfdistill.export import Export, Limits, Normalisation
    from tfdistill.inspection import inspect
    from tfdistill.litert.metadata import read_metadata
    from tfdistill.mixing import CutMix, Mixup
    from tfdistill.mutual import MutualDistiller
    from tfdistill.pipeline import Pipeline, Result
    from tfdistill.pruning import Pruning
    from tfdistill.quantization import Quantization
    from tfdistill.targets import StoredTargets, store_targets

__version__ = "0.1.0"

__all__ = [
    "Adversarial",
    "CertificationError",
    "ConversionError",
    "CutMix",
    "DataError",
    "Distillation",
    "Distiller",
    "Export",
    "ExportError",
    "Limits",
    "Mixup",
    "ModelError",
    "MutualDistiller",
    "NonFiniteLossError",
    "Normalisation",
    "Pipeline",
    "Pruning",
    "Quantization",
    "RandomShiftAndFlip",
    "Result",
    "RunDirectoryError",
    "SettingError",
    "SparsityError",
    "StoredTargets",
    "TeacherError",
    "TfdistillError",
    "bridge",
    "certify",
    "distill_in_turn",
    "errors",
    "inspect",
    "load_dataset",
    "load_model",
    "losses",
    "read_metadata",
    "schedules",
    "store_targets",
    "teachers",
    "to_keras3",
    "to_tf_keras",
]

# Public name -> the module it stands in; a module stands for itself.
_LAZY = {
    "Adversarial": "adversarial",
    "CutMix": "mixing",
    "Distillation": "distillation",
    "Distiller": "distiller",
    "Export": "export",
    "Limits": "export",
    "Mixup": "mixing",
    "MutualDistiller": "mutual",
    "Normalisation": "export",
    "Pipeline": "pipeline",
    "Pruning": "pruning",
    "Quantization": "quantization",
    "RandomShiftAndFlip": "data",
    "Result": "pipeline",
    "StoredTargets": "targets",
    "bridge": "bridge",
    "certify": "certificate",
    "distill_in_turn": "chain",
    "inspect": "inspection",
    "load_dataset": "data",
    "load_model": "bridge",
    "losses": "losses",
    "read_metadata": "litert.metadata",
    "schedules": "schedules",
    "store_targets": "targets",
    "teachers": "teachers",
    "to_keras3": "bridge",
    "to_tf_keras": "bridge",
}


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for a right one

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first asked for (PEP 562)."""
        if name in _LAZY:
            module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
            found = module if name == _LAZY[name] else getattr(module, name)
            globals()[name] = found  # the next time Python finds it without coming here
            return found

        import difflib

        near = difflib.get_close_matches(name, __all__)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

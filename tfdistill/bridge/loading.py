"""Saved Keras models, read in the Keras that wrote them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from tfdistill._keras import keras, tf_keras
from tfdistill.errors import ModelError

__all__ = ["load_model"]

_METADATA = "keras_metadata.pb"
# What a config may name as the home of its objects: reading these runs no foreign code.
_KNOWN_PACKAGES = {"builtins", "keras", "tf_keras", "tensorflow", "tfdistill"}


def load_model(
    path: str | os.PathLike[str],
    *,
    safe_mode: bool = True,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Loads a saved model in the Keras that wrote it, uncompiled.

    Read are `.keras` files of Keras 3 and of tf_keras, HDF5 files (`.h5`) of Keras 3, tf_keras
    and older Keras 2, and SavedModel folders that tf_keras wrote with `model.save`.

    Args:
        path: The file or folder.
        safe_mode: Whether a model that brings Python code of its own is refused: a Lambda
            layer, a lambda, or an object of a module that loading would import. Such code
            runs with all your rights. In tf_keras' own loader this does not hold for HDF5 and
            SavedModel; here it does.
        custom_objects: Classes and functions of yours, by name, that the model is made of.

    Returns:
        A Keras 3 model or a tf_keras model.

    Raises:
        ModelError: Nothing is there, it is no saved Keras model, it cannot be read, or it
            brings code while `safe_mode` is True.

    Example:
        >>> student = load_model("student.keras")
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(
            "`path` must be a saved model.", received=f"{path.absolute()} (nothing is there)"
        )
    if path.is_dir():
        version, configs = "2", _saved_model_configs(path)
    elif zipfile.is_zipfile(path):
        version, configs = _keras_file_configs(path)
    elif h5py.is_hdf5(path):
        version, configs = _hdf5_configs(path)
    else:
        raise _not_a_model(path, "it is neither a `.keras` file, nor HDF5, nor a folder")
    if safe_mode:
        for config in configs:
            _refuse_code(config, path, custom_objects or {})
    return _load(path, version, safe_mode, custom_objects)


def _load(
    path: Path, version: str, safe_mode: bool, custom_objects: Mapping[str, Any] | None
) -> Any:
    is_keras3 = int(version.partition(".")[0] or 0) >= 3
    arguments: dict[str, Any] = {"custom_objects": dict(custom_objects or {}), "compile": False}
    if is_keras3 or zipfile.is_zipfile(path):
        arguments["safe_mode"] = safe_mode  # tf_keras takes it for `.keras` files only
    try:
        source = None if is_keras3 else _with_plain_numbers(path)
        loader = (keras if is_keras3 else tf_keras).models
        model = loader.load_model(str(path) if source is None else source, **arguments)
    except Exception as error:
        raise ModelError(
            "`path` must be a model that Keras can load.",
            received=f"{path} ({type(error).__name__}: {error})",
            hint="Layers of your own are to be given in `custom_objects`.",
        ) from error
    if not isinstance(model, keras.Model if is_keras3 else tf_keras.Model):
        raise _not_a_model(path, f"it holds a {type(model).__name__}")
    return model


def _keras_file_configs(path: Path) -> tuple[str, list[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
            return str(version), [json.loads(archive.read("config.json"))]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _not_a_model(path, f"it is a damaged or a foreign zip file: {error}") from error


def _hdf5_configs(path: Path) -> tuple[str, list[Any]]:
    with h5py.File(path, "r") as file:
        attributes = {key: file.attrs.get(key) for key in ("keras_version", "model_config")}
    texts = {
        key: value.decode() if isinstance(value, bytes) else value
        for key, value in attributes.items()
    }
    if not texts["model_config"]:
        raise _not_a_model(path, "it holds weights and no model; build it, then load_weights")
    return texts["keras_version"] or "2", [json.loads(texts["model_config"])]


def _with_plain_numbers(path: Path) -> Any:
    """An HDF5 file, open in memory, whose config tf_keras can read; None where it is one already.

    Keras 2.2 wrote NumPy's numbers, such as the 6 of MobileNet's ReLU, as
    `{"type": "ndarray", "value": 6}`.
    """
    if path.is_dir() or not h5py.is_hdf5(path):
        return None
    _, (config,) = _hdf5_configs(path)
    arrays = [each for each in _dictionaries(config) if _is_array(each)]
    if not arrays:
        return None
    file = h5py.File(io.BytesIO(path.read_bytes()), "r+")
    file.attrs["model_config"] = json.dumps(_plain(config))
    return file


def _is_array(config: Any) -> bool:
    return isinstance(config, dict) and config.get("type") == "ndarray" and "value" in config


def _plain(config: Any) -> Any:
    if _is_array(config):
        return config["value"]
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items()}
    return [*map(_plain, config)] if isinstance(config, list) else config


def _saved_model_configs(path: Path) -> list[Any]:
    from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

    metadata_path = path / _METADATA
    if not metadata_path.exists():
        raise ModelError(
            "`path` must be a model file, or a SavedModel folder that tf_keras wrote.",
            received=f"{path} (no {_METADATA} is in it)",
            hint="An exported SavedModel has no layers left: it can teach, as "
            "td.teachers.SavedModel(path), but it cannot be a student.",
        )
    try:
        metadata = SavedMetadata.FromString(metadata_path.read_bytes())
        return [json.loads(node.metadata) for node in metadata.nodes if node.metadata]
    except Exception as error:  # protobuf's DecodeError has no stable public home
        raise _not_a_model(path, f"its {_METADATA} is damaged: {error}") from error


def _refuse_code(config: Any, path: Path, custom_objects: Mapping[str, Any]) -> None:
    """Raises where loading `config` would run Python code that the file brings or names."""
    for item in _dictionaries(config):
        class_name, module = item.get("class_name"), item.get("module")
        inner = item.get("config")
        name = inner.get("name") if isinstance(inner, dict) else inner
        if class_name in {"Lambda", "__lambda__"}:
            raise ModelError(
                "`path` must be a model without Lambda layers or lambdas while `safe_mode` is "
                "True.",
                received=f"{path} (layer {name!r})",
                hint="It brings Python code that would run here. If you trust where it comes "
                "from, load it with safe_mode=False.",
            )
        if isinstance(module, str) and module.partition(".")[0] not in _KNOWN_PACKAGES:
            registered = item.get("registered_name") or class_name
            if any(
                keras_.saving.get_registered_object(
                    name if class_name == "function" else registered, dict(custom_objects)
                )
                for keras_ in (keras, tf_keras)
            ):
                continue
            raise ModelError(
                "`path` must be a model of Keras' own layers while `safe_mode` is True.",
                received=f"{path} ({class_name} of the module {module!r})",
                hint="Give it in `custom_objects`, or register it with Keras. If you trust where "
                "the file comes from, safe_mode=False lets Keras import the module.",
            )


def _dictionaries(config: Any) -> Iterator[Mapping[str, Any]]:
    pending = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _not_a_model(path: Path, why: str) -> ModelError:
    return ModelError("`path` must be a saved Keras model.", received=f"{path} ({why})")

"""Artifacts for servers and for Keras: a SavedModel folder and a `.keras` file, float32.

Both hold the float student as it is; both are read back as anybody would read them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdistill import bridge
from tfdistill._keras import keras, tf
from tfdistill.bridge.loading import load_model
from tfdistill.bridge.model_graphs import graph_of, leaves_of, pack_inputs
from tfdistill.errors import ExportError, ModelError
from tfdistill.export.conversion import names_of_outputs
from tfdistill.heads import output_names
from tfdistill.host import silence
from tfdistill.litert.flatbuffer import Inspection, TensorInterface, Weight, inspect_file
from tfdistill.litert.runtime import LiteRTModel, signature_names
from tfdistill.named import Kind
from tfdistill.outputs import ModelView
from tfdistill.runs.files import reading_and_writing
from tfdistill.runs.records import sha256_of

__all__ = [
    "KerasFile",
    "SavedModel",
    "inspect_artifact",
    "keras_file",
    "open_artifact",
    "write_saved_model",
]

_INTERFACE = Path("assets.extra") / "tfdistill.json"  # where TensorFlow Serving looks for extras
_SERVING, _CLASSIFY = "serving_default", "classify"
_OWN_PACKAGES = ("keras", "builtins")


# --- writing ---


def write_saved_model(
    model: Any, folder: Path, label_names: Any = (), kinds: Mapping[str, Kind] | None = None
) -> None:
    """Writes a model as a SavedModel, for TensorFlow Serving, any number of examples at a time.

    Its signature "serving_default" has the names of the LiteRT files' signature. Of a
    classifier, "classify" answers the same inputs with `class` (int64 `[batch]`), `probability`
    (float32 `[batch]`) and, where labels have names, `label` (string `[batch]`); of several outputs
    with `NAME_class` and so on of each. Of an output of several labels it is `yes` (bool
    `[batch, labels]`), `probability` and `label` of each, "" where the answer is no. Of numbers
    there is nothing to say there.

    Args:
        model: Functional tf_keras model in float32.
        folder: Where to write; must not exist.
        label_names: The classes' names; of several outputs by name.
        kinds: What outputs answer, by their names in the signature. Those not there: classes.

    Raises:
        ExportError: It cannot be saved.
    """
    inputs, outputs = signature_names(model.input_names), names_of_outputs(model)
    specs = {
        name: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(inputs, model.inputs, strict=True)
    }

    def serve(**tensors: Any) -> dict[str, Any]:
        results = model([tensors[name] for name in inputs], training=False)
        return dict(zip(outputs, tf.nest.flatten(results), strict=True))

    signatures = {_SERVING: serve}
    view = _classifier(model)
    kinds = kinds or {}
    if view is not None and any(kinds.get(name) != "numbers" for name in outputs):
        signatures[_CLASSIFY] = _classify(view, inputs, outputs, label_names, kinds)
    # Not the model: it would be saved as Keras does, which traces every layer once more.
    module = tf.Module()
    module.variables_of_model = list(model.weights)
    try:
        with silence():
            functions = {
                name: tf.function(function).get_concrete_function(**specs)
                for name, function in signatures.items()
            }
            tf.saved_model.save(module, str(folder), signatures=functions)
    except Exception as error:  # whatever a layer's code or TensorFlow comes up with
        raise ExportError(
            "`model` must be one that TensorFlow can save for batches of any size.",
            received=" ".join(str(error).split())[:300],
            hint="Leave savedmodel out of `formats`, or look at the cause of this error.",
        ) from error
    probabilities = _probabilities(view, outputs)
    with reading_and_writing(folder):
        (folder / _INTERFACE).parent.mkdir()
        (folder / _INTERFACE).write_text(json.dumps({"probabilities": probabilities}))


def _classifier(model: Any) -> ModelView | None:
    if any(len(output.shape) != 2 for output in model.outputs):
        return None
    with contextlib.suppress(ModelError):  # one that ends in what no logits are behind
        return ModelView(model, role="student", several=True)
    return None


def _probabilities(view: ModelView | None, outputs: Sequence[str]) -> list[str]:
    """Names of the outputs that are none of logits."""
    if view is None:
        return []
    heads = zip(outputs, view.heads.values(), strict=True)
    return [name for name, head in heads if head.activation != "linear"]


def _classify(
    view: ModelView,
    inputs: Sequence[str],
    outputs: Sequence[str],
    label_names: Any,
    kinds: Mapping[str, Kind],
) -> Callable[..., dict[str, Any]]:
    def classify(**tensors: Any) -> dict[str, Any]:
        said = view([tensors[name] for name in inputs], training=False)[1]
        found: dict[str, Any] = {}
        for name, head, output in zip(view.heads, view.heads.values(), outputs, strict=True):
            several = len(view.heads) > 1
            names = label_names.get(name, ()) if several and label_names else label_names
            logits, kind = said.of(name).logits, kinds.get(output)
            if kind == "numbers":
                continue
            if kind == "labels":
                answers = _answers_of_labels(logits, names)
            else:
                answers = _answers(logits, head.activation, names)
            found |= {f"{output}_{key}" if several else key: v for key, v in answers.items()}
        return found

    return classify


def _answers(logits: Any, activation: str, label_names: Sequence[str]) -> dict[str, Any]:
    """What logits of one output say."""
    if logits.shape[-1] == 1:  # as two logits, of which the first is 0
        logits = tf.concat([tf.zeros_like(logits), logits], axis=-1)
        probabilities = tf.nn.softmax(logits)
    else:
        sigmoid = activation == "sigmoid"
        probabilities = tf.sigmoid(logits) if sigmoid else tf.nn.softmax(logits)
    classes = tf.argmax(logits, axis=-1)
    found = {"class": classes, "probability": tf.reduce_max(probabilities, axis=-1)}
    if label_names:
        found["label"] = tf.gather(tf.constant(list(label_names)), classes)
    return found


def _answers_of_labels(logits: Any, label_names: Sequence[str]) -> dict[str, Any]:
    """What logits of several labels say, each by itself."""
    yes = logits > 0
    found = {"yes": yes, "probability": tf.sigmoid(logits)}
    if label_names:
        found["label"] = tf.where(yes, tf.constant([list(label_names)]), "")
    return found


def keras_file(model: Any, to_keras3: Callable[[Any], Any] = bridge.to_keras3) -> bytes:
    """A model as the content of a Keras 3 `.keras` file, which loads without this library.

    Args:
        model: Functional tf_keras model in float32.
        to_keras3: Makes a Keras model of it; a tf_keras model that it gives is converted.

    Raises:
        ConversionError: It has layers that Keras 3 lacks.
        ExportError: Keras cannot save it.
    """
    converted = to_keras3(model)
    if not isinstance(converted, keras.Model):
        converted = bridge.to_keras3(converted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.keras"
        try:
            with silence():
                converted.save(path)
        except Exception as error:  # a layer's own code may raise anything
            raise ExportError(
                "`model` must be one that Keras can save.",
                received=" ".join(str(error).split())[:300],
                hint="Leave keras out of `formats`, or look at the cause of this error.",
            ) from error
        return path.read_bytes()


# --- reading back ---


@dataclass(frozen=True)
class SavedInspection(Inspection):
    """What is in such an artifact; operators are TensorFlow's choice where it runs."""

    saved_format: str = ""

    @property
    def format(self) -> str:
        """Either of savedmodel and keras, whatever the weights are."""
        return self.saved_format


def open_artifact(path: str | os.PathLike[str]) -> LiteRTModel | KerasFile | SavedModel:
    """An artifact of any kind, ready to run.

    Args:
        path: A folder, a `.keras` file, or else a LiteRT file.

    Raises:
        ModelError: It is not what it seems, or cannot be run here.
    """
    if Path(path).is_dir():
        return SavedModel(path)
    return KerasFile(path) if Path(path).suffix == ".keras" else LiteRTModel(path)


def inspect_artifact(path: str | os.PathLike[str]) -> Inspection:
    """What is in an artifact of any kind; a LiteRT file is not run for it.

    Raises:
        ModelError: It is missing, damaged or something else.
    """
    if Path(path).is_dir() or Path(path).suffix == ".keras":
        return open_artifact(path).inspection
    return inspect_file(path)


class KerasFile:
    """A `.keras` file, run by Keras; what certificates ask of an artifact.

    Args:
        path: The file.

    Attributes:
        inspection: What is in the file.
        inputs: What it takes, the batch axis as -1.
        outputs: What it gives.
        foreign: Names of classes that are not Keras' own: who loads the file has to have them.

    Raises:
        ModelError: It is no such file, cannot be loaded, or brings code.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._model = model = _outside_strategies(lambda: load_model(path))
        graph = graph_of(model)
        if graph is None:
            raise ModelError("`path` must be a Functional or Sequential model.", received=str(path))
        self._graph = graph
        self.foreign = tuple(sorted(_foreign_classes(model.get_config())))
        names = [tensor._keras_history[0].name for tensor in graph.inputs]
        self.inputs = _interfaces(signature_names(names), graph.inputs)
        names = [tensor._keras_history[0].name for tensor in graph.outputs]
        if len(names) > 1:
            names = [*output_names(model)]
        self.outputs = _interfaces(signature_names(names), graph.outputs)
        kernels = [
            _weight(f"{leaf.name}/{weight.name}", weight, type(leaf.layer).__name__)
            for leaf in leaves_of(graph)
            for weight in leaf.layer.weights
        ]
        names = _probabilities(_classifier(model), [spec.name for spec in self.outputs])
        self.inspection: Inspection = _inspection(path, "keras", self, kernels, names)

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a batch: input name to `[batch, ...]`; gives output name to float32."""
        tensors = [tf.constant(inputs[spec.name]) for spec in self.inputs]
        results = tf.nest.flatten(self._model(pack_inputs(self._graph, tensors), training=False))
        return {
            spec.name: np.asarray(values).astype(np.float32)
            for spec, values in zip(self.outputs, results, strict=True)
        }


class SavedModel:
    """A SavedModel folder that this library wrote, run by its signature "serving_default".

    Args:
        path: The folder.

    Attributes:
        inspection: What is in the folder.
        inputs: What it takes, the batch axis as -1.
        outputs: What it gives.

    Raises:
        ModelError: It is no such folder, or it cannot be loaded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            with silence():
                self._loaded = _outside_strategies(lambda: tf.saved_model.load(os.fspath(path)))
            self._serve = self._loaded.signatures[_SERVING]
            kernels = [
                _weight(variable.name.removesuffix(":0"), variable)
                for variable in self._loaded.variables_of_model
            ]
            own = json.loads((Path(path) / _INTERFACE).read_text())
            probabilities = [str(name) for name in own["probabilities"]]
        except Exception as error:  # TensorFlow raises by what is damaged
            raise ModelError(
                f"`{path}` must be a SavedModel that this library wrote.",
                received=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                hint="It is missing, damaged or something else: export it again.",
            ) from error
        given = self._serve.structured_input_signature[1]
        made = self._serve.structured_outputs
        self.inputs = _interfaces([*given], given.values())
        self.outputs = _interfaces([*made], made.values())
        self.inspection: Inspection = _inspection(path, "savedmodel", self, kernels, probabilities)

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a batch: input name to `[batch, ...]`; gives output name to float32."""
        results = self._serve(**{name: tf.constant(values) for name, values in inputs.items()})
        return {name: values.numpy().astype(np.float32) for name, values in results.items()}


def _outside_strategies(load: Callable[[], Any]) -> Any:
    """Calls `load` as outside of any `tf.distribute` scope, of which each thread has its own.

    In the scope of several devices, TensorFlow loads a SavedModel that cannot be called there.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(load).result()


def _interfaces(names: Sequence[str], tensors: Iterable[Any]) -> tuple[TensorInterface, ...]:
    return tuple(
        TensorInterface(
            name,
            tuple(-1 if axis is None else int(axis) for axis in tensor.shape),
            tf.as_dtype(tensor.dtype).name,
        )
        for name, tensor in zip(names, tensors, strict=True)
    )


def _weight(name: str, variable: Any, layer: str = "") -> Weight | None:
    """A kernel as the LiteRT files have it; `None` for what is none."""
    values = np.asarray(variable)
    if values.ndim < 2 or not np.issubdtype(values.dtype, np.floating):
        return None
    depthwise = "depthwise" in (layer + name.rpartition("/")[2]).lower()
    return Weight(
        name=name,
        operator="DEPTHWISE_CONV_2D" if depthwise else layer,
        activations=values.dtype.name,
        shape=values.shape,
        dtype=values.dtype.name,
        elements=values.size,
        zeros=values.size - int(np.count_nonzero(values)),
    )


def _inspection(
    path: str | os.PathLike[str],
    format: str,
    artifact: KerasFile | SavedModel,
    kernels: Sequence[Weight | None],
    probabilities: Sequence[str],
) -> SavedInspection:
    path = Path(path)
    with reading_and_writing(path):
        files = sorted(each for each in path.rglob("*") if each.is_file()) or [path]
        contents = [each.read_bytes() for each in files]
    return SavedInspection(
        sha256=sha256_of(path),
        raw_bytes=sum(map(len, contents)),
        gzip_bytes=len(gzip.compress(b"".join(contents), 9, mtime=0)),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        operators=(),
        weights=tuple(kernel for kernel in kernels if kernel is not None),
        output_scales={spec.name: None for spec in artifact.outputs},
        probabilities=tuple(probabilities),
        stateful=False,
        saved_format=format,
    )


def _foreign_classes(config: Any) -> set[str]:
    """Names of the classes in a config that come from outside of Keras."""
    if isinstance(config, dict):
        found = {name for value in config.values() for name in _foreign_classes(value)}
        module = config.get("module") or "keras"
        if "class_name" in config and (
            config.get("registered_name") or module.partition(".")[0] not in _OWN_PACKAGES
        ):
            found.add(str(config["class_name"]))
        return found
    if isinstance(config, (list, tuple)):
        return {name for value in config for name in _foreign_classes(value)}
    return set()

"""What can be told of a SavedModel that has no Keras layers left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import ModelError
from tfdistill.inspection.findings import Finding, Inspection, Interface

__all__ = ["has_no_layers", "inspect_exported"]

_METADATA = "keras_metadata.pb"  # that tf_keras puts beside a SavedModel


def has_no_layers(path: Path) -> bool:
    """Whether it is a SavedModel that Keras did not write, or wrote to be served."""
    return (path / "saved_model.pb").is_file() and not (path / _METADATA).exists()


def inspect_exported(path: Path) -> Inspection:
    """What can be told of a SavedModel without Keras layers; nothing in it is run.

    Raises:
        ModelError: Its files are damaged.
    """
    # Not through `tf.saved_model.load`, which runs what the file brings.
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        content = SavedModel.FromString((path / "saved_model.pb").read_bytes())
        graph = content.meta_graphs[0]
    except Exception as error:  # protobuf's DecodeError has no stable public home
        raise ModelError(
            "`path` must be a SavedModel that can be read.",
            received=f"{path} ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            hint="Export it again.",
        ) from error
    signatures = graph.signature_def
    serving = signatures.get("serving_default")
    nodes = graph.object_graph_def.nodes
    # Keras 3 saves each weight twice; its functions read one of the two.
    read = {
        index
        for each in graph.object_graph_def.concrete_functions.values()
        for index in each.bound_inputs
    }
    weights = [
        _axes(nodes[index].variable.shape)
        for index in read
        if nodes[index].WhichOneof("kind") == "variable"
    ]
    described = {
        word: tuple(
            Interface(name, _axes(info.tensor_shape), tf.as_dtype(info.dtype).name)
            for name, info in sorted(getattr(serving, word).items())
        )
        if serving is not None
        else ()
        for word in ("inputs", "outputs")
    }
    names = sorted(name for name in signatures if not name.startswith("__"))
    return Inspection(
        kind="SavedModel without layers",
        name=path.name,
        inputs=described["inputs"],
        outputs=described["outputs"],
        parameters=_product(weights),
        findings=(
            Finding(
                "fail",
                "no_layers",
                "It has functions, but no Keras layers, so that nothing can be told of layers and "
                "sizes. It can teach, as a function, but cannot be a student",
                tuple(names),
                "Save the model itself: model.save('student.keras'). To teach: "
                "tf.saved_model.load(path).signatures['serving_default'].",
            ),
        ),
    )


def _product(shapes: list[tuple[int | None, ...]]) -> int | None:
    """How many values variables of these shapes hold; `None` where that is not known."""
    known = [axis for shape in shapes for axis in shape if axis is not None]
    if not shapes or len(known) < sum(map(len, shapes)):
        return None
    return sum(math.prod(axis or 1 for axis in shape) for shape in shapes)


def _axes(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if axis.size < 0 else int(axis.size) for axis in shape.dim)

"""What rewrites build a model with: layers made once, and tensors seen as images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.layer_configs import clone_tf_keras_layer
from tfdistill.bridge.model_graphs import graph_or_raise, pack_inputs, run_graph

_layers = tf_keras.layers


@dataclass(frozen=True)
class Image:
    """A tensor `[batch, *shape]` that is at hand as an image `[batch, height, width, channels]`."""

    image: Any
    shape: tuple[int | None, ...]


class GraphBuilder:
    """Builds a new model while the original's graph is walked."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.origins: dict[str, str] = {}  # name of each layer made, to that of the original
        self.carriers: dict[str, str] = {}  # of those that have weights of the original
        self._made: dict[tuple[int, str], Any] = {}
        self._weights: list[tuple[Any, list[np.ndarray]]] = []
        self._taken = {layer.name for layer in model.layers}
        self._shaped: dict[tuple[int, str], Any] = {}

    def clone(self, layer: Any, **changes: Any) -> Any:
        """The layer with its weights, once, with the attributes in `changes`."""

        def make(name: str) -> Any:
            made = clone_tf_keras_layer(layer, name, {})
            for attribute, value in changes.items():
                setattr(made, attribute, value)  # it is not built yet
            return made

        return self.part(layer, "", make, layer.get_weights())

    def part(
        self,
        layer: Any,
        name: str,
        make: Callable[[str], Any],
        weights: Sequence[np.ndarray] = (),
        *,
        trainable: bool | None = None,
        carries: bool = True,
    ) -> Any:
        """A new layer that does the work of `layer` or a part of it; one, however often called.

        Args:
            layer: The layer of the original model.
            name: What to call the part; "" for the one that keeps the layer's name.
            make: Makes it, given its whole name.
            weights: What its weights are to be.
            trainable: Whether they are trained; as the layer's own if not given.
            carries: Whether they are weights of the layer's that can be pruned.
        """
        key = id(layer), name
        if key not in self._made:
            whole = f"{layer.name}/{name}" if name else layer.name
            while name and whole in self._taken:
                whole += "_"
            self._taken.add(whole)
            made = make(whole)
            wanted = layer.trainable if trainable is None else trainable
            if made.trainable != wanted:  # it would be set in all that is inside, too
                made.trainable = wanted
            self._made[key] = made
            self.origins[whole] = layer.name
            if weights:
                self._weights.append((made, list(weights)))
                if carries:
                    self.carriers[whole] = layer.name
        return self._made[key]

    def image(self, layer: Any, value: Any) -> Any:
        """A tensor of rank 2, 3 or 4 as an image of its values, height 1 or width 1."""
        if isinstance(value, Image):
            return value.image
        if value.shape.rank == 4:
            return value
        *times, channels = value.shape[1:]
        shape = (*[-1 if size is None else size for size in times], 1, channels)
        return self._reshaped(layer, value, shape if times else (1, *shape), "image")

    def tensor(self, layer: Any, value: Any) -> Any:
        """The tensor itself, whatever form it is in."""
        if not isinstance(value, Image):
            return value
        shape = tuple(-1 if size is None else size for size in value.shape)
        return self._reshaped(layer, value.image, shape, "shape")

    def _reshaped(self, layer: Any, tensor: Any, shape: tuple[int, ...], name: str) -> Any:
        key = id(tensor), name
        if key not in self._shaped:
            count = sum(made.startswith(name) for owner, made in self._made if owner == id(layer))
            unique = f"{name}_{count}" if count else name
            reshape = self.part(layer, unique, lambda n: _layers.Reshape(shape, name=n))
            self._shaped[key] = reshape(tensor), tensor  # kept alive, so that its id stays its own
        return self._shaped[key][0]

    def build(self, call: Callable[..., Any]) -> Any:
        """Walks the graph and returns the new model.

        Args:
            call: Called as `call(layer, node, args, kwargs)` for each use of a layer.
        """
        graph = graph_or_raise(self.model)
        inputs = [
            _layers.Input(
                batch_shape=tuple(tensor.shape),
                dtype=tensor.dtype,
                name=tensor._keras_history.layer.name,
            )
            for tensor in graph.inputs
        ]
        outputs = run_graph(graph, inputs, call)
        flat = [
            self.tensor(tensor._keras_history.layer, value)
            for tensor, value in zip(graph.outputs, tf.nest.flatten(outputs), strict=True)
        ]
        outputs = tf.nest.pack_sequence_as(graph.output, flat)
        rebuilt = tf_keras.Model(pack_inputs(graph, inputs), outputs, name=self.model.name)
        for layer, weights in self._weights:
            if layer.built:  # one whose output nobody reads is not part of the model
                layer.set_weights(weights)
        return rebuilt


def shape_of(value: Any) -> tuple[int | None, ...]:
    """Without the batch axis."""
    return value.shape if isinstance(value, Image) else tuple(value.shape[1:])


def image_of(value: Any) -> Any:
    """The image that a value is, or is at hand as."""
    return value.image if isinstance(value, Image) else value


def like(value: Any, image: Any) -> Any:
    """An image in the form of the value that it was made of."""
    if not isinstance(value, Image) and value.shape.rank == 4:
        return image
    return Image(image, (*shape_of(value)[:-1], image.shape[-1]))


def has_channels(value: Any) -> bool:
    """Whether it can be seen as an image of known depth."""
    shape = shape_of(value)
    return 1 <= len(shape) <= 3 and shape[-1] is not None and sum(s is None for s in shape) <= 2

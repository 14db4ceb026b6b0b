"""Layers that run another for each step, taken apart.

tfmot sees no kernel in a `TimeDistributed` layer. A layer that works on the last axis does so for
all steps at once; any other is given the steps as examples of a larger batch, as Keras gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.layer_configs import clone_tf_keras_layer
from tfdistill.bridge.model_graphs import graph_of, key_of, leaves_of, run_graph
from tfdistill.bridge.own_layers import is_symbolic
from tfdistill.rewrites.builder import GraphBuilder
from tfdistill.rewrites.masks import has_mask

_layers = tf_keras.layers
_Layer: Any = _layers.Layer
_registered = tf_keras.saving.register_keras_serializable(package="tfdistill")


@_registered
class StepsAsExamples(_Layer):
    """`[batch, time, ...]` to `[batch x time, ...]`."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the sequences."""
        return tf.reshape(inputs, [-1, *inputs.shape[2:]])


@_registered
class ExamplesAsSteps(_Layer):
    """And back.

    Args:
        steps: How many a sequence has.
    """

    def __init__(self, steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def call(self, inputs: Any) -> Any:
        """`inputs` are the steps of all sequences."""
        return tf.reshape(inputs, [-1, self.steps, *inputs.shape[1:]])

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "steps": self.steps}


def without_wrappers(model: Any) -> tuple[Any, Mapping[str, str]]:
    """Puts what is in TimeDistributed layers in their place, where that is the same.

    Args:
        model: Flat Functional tf_keras model; stays as it is.

    Returns:
        The new model, and the names of the layers that those of the new model came from.
    """
    names = {layer.name: layer.name for layer in model.layers}
    while any(_can_be_taken_apart(layer) for layer in model.layers):  # one may be in another
        graph = _Builder(model)
        model = graph.build(graph.call)
        names = {part: names[origin] for part, origin in graph.origins.items()}
    return model, names


class _Builder(GraphBuilder):
    """Takes wrappers apart while a model is built anew."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._examples: dict[int, tuple[Any, Any]] = {}

    def call(self, layer: Any, node: Any, args: Any, kwargs: Any) -> Any:
        """What the layer gives."""
        if _can_be_taken_apart(layer):
            return self._at_each_step(layer, *args)
        return self.clone(layer)(*args, **kwargs)

    def _at_each_step(self, wrapper: Any, steps: Any) -> Any:
        _, examples = self._examples.get(id(steps), (None, None))
        if examples is None and _is_for_all_steps(wrapper.layer):
            return self._inside(wrapper, wrapper.layer, "")(steps)
        if examples is None:
            examples = self.part(wrapper, "examples", lambda n: StepsAsExamples(name=n))(steps)
        result = self._of_examples(wrapper, examples)
        made = self.part(wrapper, "", lambda n: ExamplesAsSteps(steps.shape[1], name=n))(result)
        # For a wrapper behind this one; with the tensor, so that its id stays its own.
        self._examples[id(made)] = made, result
        return made

    def _of_examples(self, wrapper: Any, examples: Any) -> Any:
        model = graph_of(wrapper.layer)
        if model is None:
            return self._inside(wrapper, wrapper.layer, "step")(examples)
        names = {key_of(leaf.layer, leaf.node): leaf.name for leaf in leaves_of(model)}

        def call(layer: Any, node: Any, args: Any, kwargs: Any) -> Any:
            name = f"step/{names[key_of(layer, node)]}"
            return self._inside(wrapper, layer, name)(*args, **kwargs)

        return run_graph(model, [examples], call)

    def _inside(self, wrapper: Any, layer: Any, name: str) -> Callable[..., Any]:
        """A layer that is inside of the wrapper."""
        made: Callable[..., Any] = self.part(
            wrapper,
            name,
            lambda whole: clone_tf_keras_layer(layer, whole, {}),
            layer.get_weights(),
            trainable=wrapper.trainable and layer.trainable,
        )
        return made


def _can_be_taken_apart(layer: Any) -> bool:
    """Whether it is a TimeDistributed layer whose steps may be examples, in all of its calls."""
    if type(layer) is not _layers.TimeDistributed:
        return False
    # Its mean over examples would be another.
    if getattr(layer.layer, "activity_regularizer", None) is not None:
        return False
    for node in layer._inbound_nodes:
        if len(node.call_args) != 1 or node.call_kwargs:
            return False
        ends = [node.call_args[0], node.outputs]
        if not all(map(is_symbolic, ends)):
            return False  # several inputs or outputs
        if not _is_for_all_steps(layer.layer) and not all(map(_is_plain, ends)):
            return False
    return True


def _is_plain(tensor: Any) -> bool:
    """Whether only its batch is open, and it carries no mask, which a larger batch would lose."""
    return None not in tensor.shape[1:] and not has_mask(tensor)


def _is_for_all_steps(layer: Any) -> bool:
    """Whether it gives the same for all steps at once."""
    if type(layer) is _layers.Dropout:
        return layer.noise_shape is None
    if type(layer) in (_layers.Activation, _layers.Dense):  # Keras' own look at the last axis alone
        return layer.activation in vars(tf_keras.activations).values()
    return type(layer) in (_layers.ReLU, _layers.LeakyReLU, _layers.ELU)

"""The student at a pipeline's door: taken over, made trainable stage by stage, handed back."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from tfdistill import bridge
from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.layer_configs import clone_tf_keras_layer
from tfdistill.errors import ModelError
from tfdistill.heads import Head, output_names, unique_names
from tfdistill.outputs import ModelView, is_functional

_SEPARABLE = ("softmax", "sigmoid")


@dataclass(frozen=True)
class PreparedStudent:
    """The user's student, and the copy of it that the stages work on.

    Attributes:
        original: As the user gave it; never changed.
        model: Functional tf_keras model with the same outputs, its own weights, a final softmax
            or sigmoid as a layer of its own, and dropout that can be seeded per epoch. Several
            outputs are a dictionary by name: no stage forgets such names.
        outputs: Names of the outputs, in the order of the original's.
    """

    original: Any
    model: Any
    outputs: tuple[str, ...]

    def heads(self) -> dict[str, Head]:
        """The outputs by name, in the order of the original's.

        Raises:
            ModelError: One ends in an activation that nothing can be read before.
        """
        found = ModelView(self.model, role="student", several=True).heads
        if len(found) == 1:  # it has the name of its layer, which may be one put behind the user's
            return dict(zip(self.outputs, found.values(), strict=True))
        return {name: found[name] for name in self.outputs}

    def hand_back(self, trained: Any) -> Any:
        """A new model like the original, in its Keras, with the trained weights.

        Args:
            trained: `model` or a copy of it after training, without wrappers.
        """
        if isinstance(self.original, keras.Model):
            if len(self.outputs) > 1:  # compared with the original's in its order
                ordered = [trained.output[name] for name in self.outputs]
                trained = tf_keras.Model(trained.input, ordered, name=trained.name)
            return bridge.rebuild_keras3(self.original, trained)
        model = tf_keras.models.clone_model(self.original)
        bridge.copy_weights_back(trained, model)
        return model


def prepare_student(student: Any) -> PreparedStudent:
    """Takes over a student; the one given stays as it is.

    Args:
        student: Functional or built Sequential model, Keras 3 or tf_keras.

    Raises:
        ModelError: It is not; its outputs are nested, or one is made of another's softmax or
            sigmoid; it calls a function such as `tf.einsum`, which tf_keras cannot copy; or, as
            `ConversionError`, it has layers that cannot be converted.
    """
    if not is_functional(student):
        raise ModelError(
            "`student` must be a Functional or built Sequential Keras model.",
            received=type(student).__name__,
            hint="Wrap it: keras.Model(inputs, student(inputs)).",
        )
    model = bridge.to_tf_keras(student)
    if calls := {one.name: one.symbol for one in model.layers if _takes_any_number(one)}:
        raise ModelError(
            "`student` must have only functions of TensorFlow that tf_keras can copy, not those "
            "which take any number of tensors.",
            received=", ".join(f"tf.{symbol} as {name!r}" for name, symbol in calls.items()),
            hint="Put a layer in its place, or a Lambda layer that calls it.",
        )
    names = output_names(student)
    lasts = [tensor._keras_history.layer for tensor in model.outputs]
    fused = {id(last): activation for last in lasts if (activation := _fused_activation(last))}
    for name, last in zip(names, lasts, strict=True):
        if id(last) in fused and _is_read(last, model):
            raise ModelError(
                f"`student` must have the {fused[id(last)]} of an output that others are made of "
                "as a layer of its own.",
                received=f"the output {name!r}, which ends in {last.name!r}",
                hint="Let that end in logits, and put a Softmax or Activation layer behind it.",
            )

    def rebuild(layer: Any) -> Any:
        config = layer.get_config()
        if getattr(layer, "_random_generator", None) is not None and "rng_type" not in config:
            # a state of its own, which a resumed run can set
            return type(layer).from_config({**config, "rng_type": "stateful"})
        if id(layer) in fused:
            return type(layer).from_config({**config, "activation": "linear"})
        return clone_tf_keras_layer(layer, layer.name, {})

    copy = tf_keras.models.clone_model(model, clone_function=rebuild)
    copy.set_weights(model.get_weights())  # now: their order depends on that of the outputs
    outputs = list(copy.outputs)
    # Quantization and the logits both need the layers without their activations.
    taken = [layer.name for layer in copy.layers]
    for place, last in enumerate(lasts):
        if id(last) in fused:
            activation = fused[id(last)]
            taken = [*unique_names([*taken, f"{last.name}_{activation}"])]
            separate = tf_keras.layers.Activation(activation, name=taken[-1])
            outputs[place] = separate(outputs[place])
    if len(names) > 1:
        by_name = dict(zip(names, outputs, strict=True))
        copy = tf_keras.Model(copy.input, by_name, name=copy.name)
    elif fused:
        copy = tf_keras.Model(copy.inputs, outputs[0], name=copy.name)
    return PreparedStudent(student, copy, names)


def _takes_any_number(layer: Any) -> bool:
    """Whether it is a function of TensorFlow of which tf_keras keeps no inputs: `f(*inputs)`."""
    if type(layer).__name__ != "TFOpLambda":
        return False
    parameters = signature(layer.function).parameters.values()
    return any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)


def _fused_activation(layer: Any) -> str:
    """The softmax or sigmoid that a layer ends in, where it is more than that; else ""."""
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    separable = activation in _SEPARABLE and not isinstance(layer, tf_keras.layers.Activation)
    return activation if separable else ""


def _is_read(layer: Any, model: Any) -> bool:
    """Whether other layers of the model read what a layer gives."""
    within = {id(each) for each in model.layers}
    return any(id(node.outbound_layer) in within for node in layer._outbound_nodes)

"""The student at a pipeline's door: taken over, made trainable stage by stage, handed back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill import bridge
from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.layer_configs import clone_tf_keras_layer
from tfdistill.errors import ModelError
from tfdistill.outputs import is_functional

_SEPARABLE = ("softmax", "sigmoid")


@dataclass(frozen=True)
class PreparedStudent:
    """The user's student, and the copy of it that the stages work on.

    Attributes:
        original: As the user gave it; never changed.
        model: Functional tf_keras model with the same outputs, its own weights, a final softmax
            or sigmoid as a layer of its own, and dropout that can be seeded per epoch.
    """

    original: Any
    model: Any

    def hand_back(self, trained: Any) -> Any:
        """A new model like the original, in its Keras, with the trained weights.

        Args:
            trained: `model` or a copy of it after training, without wrappers.
        """
        if isinstance(self.original, keras.Model):
            return bridge.rebuild_keras3(self.original, trained)
        model = tf_keras.models.clone_model(self.original)
        bridge.copy_weights_back(trained, model)
        return model


def prepare_student(student: Any) -> PreparedStudent:
    """Takes over a student; the one given stays as it is.

    Args:
        student: Functional or built Sequential model, Keras 3 or tf_keras, with one output.

    Raises:
        ModelError: It is not; or, as `ConversionError`, it has layers that cannot be converted.
    """
    if not is_functional(student):
        raise ModelError(
            "`student` must be a Functional or built Sequential Keras model.",
            received=type(student).__name__,
            hint="Wrap it: keras.Model(inputs, student(inputs)).",
        )
    model = bridge.to_tf_keras(student)
    last = model.outputs[0]._keras_history.layer
    activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    separable = activation in _SEPARABLE and not isinstance(last, tf_keras.layers.Activation)

    def rebuild(layer: Any) -> Any:
        config = layer.get_config()
        if getattr(layer, "_random_generator", None) is not None and "rng_type" not in config:
            # a state of its own, which a resumed run can set
            return type(layer).from_config({**config, "rng_type": "stateful"})
        if separable and layer is last:
            return type(layer).from_config({**config, "activation": "linear"})
        return clone_tf_keras_layer(layer, layer.name, {})

    copy = tf_keras.models.clone_model(model, clone_function=rebuild)
    if separable:
        # Quantization and the logits both need the layer without its activation.
        separate = tf_keras.layers.Activation(activation, name=f"{last.name}_{activation}")
        copy = tf_keras.Model(copy.inputs, separate(copy.outputs[0]), name=copy.name)
    copy.set_weights(model.get_weights())
    return PreparedStudent(student, copy)

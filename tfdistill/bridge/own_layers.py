"""tf_keras layers of ours, for what Keras 3 has and tf_keras has not."""

from __future__ import annotations

import json
from typing import Any

from tfdistill._keras import keras, tf, tf_keras

Config = dict[str, Any]


@tf_keras.saving.register_keras_serializable(package="tfdistill")
class KerasOperation(tf_keras.layers.Layer):
    """An operation of Keras 3 (`keras.ops.*`, or a layer without weights) in a tf_keras model.

    It is called with one tensor, or with a list of as many as the operation reads. Like an
    operation in Keras 3, it computes in the dtype of its inputs and hands no mask on.

    Args:
        operation: The operation, as Keras 3 serializes it.
        arguments: `[args, kwargs]` of the call, as Keras 3 serializes them, with
            `{"tensor": n}` in place of the n-th tensor.
        **kwargs: `name` and `trainable`, as of every layer.

    Example:
        >>> clip = {"module": "keras.src.ops.numpy", "class_name": "Clip",
        ...         "config": {"x_min": 0.0, "x_max": 1.0}, "registered_name": "Clip"}
        >>> float(KerasOperation(clip, [[{"tensor": 0}], {}])(tf.constant(3.0)))
        1.0
    """

    def __init__(self, operation: Config, arguments: list[Any], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self._setattr_tracking = False  # it would wrap the lists, and track a Keras 3 layer
        self.operation = operation
        self.arguments = arguments
        self.keras3_operation = keras.saving.deserialize_keras_object(operation)
        self._setattr_tracking = True

    @classmethod
    def of_call(
        cls, operation: Any, args: Any, kwargs: Any, name: str | None = None
    ) -> KerasOperation:
        """The layer that does what one call of a Keras 3 operation does.

        Args:
            operation: A Keras 3 operation, or a layer without weights.
            args: The positional arguments of the call; every tensor in them is one that the
                layer is to be called with, in their order (of `tensors_in`).
            kwargs: The other arguments.
            name: The new layer's name.

        Raises:
            NotImplementedError, TypeError, ValueError: Keras cannot serialize the operation or
                its arguments.
        """
        places = iter(range(len(tensors_in(args, kwargs))))

        def described(value: Any) -> Any:
            if is_symbolic(value):
                return {"tensor": next(places)}
            return value.numpy() if tf.is_tensor(value) else value

        arguments = keras.tree.map_structure(described, (list(args), dict(kwargs)))
        config = keras.saving.serialize_keras_object((operation, arguments))
        operation_config, arguments = json.loads(json.dumps(config))  # no tuples
        return cls(operation_config, arguments, name=name)

    def call(self, inputs: Any) -> Any:
        """Runs the operation on one tensor or a list of them."""
        args, kwargs = self.call_arguments(inputs)
        return self.keras3_operation(*args, **kwargs)

    def call_arguments(self, inputs: Any) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the operation's call, for inputs of this layer."""
        tensors = inputs if isinstance(inputs, list | tuple) else [inputs]

        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                if value.keys() == {"tensor"}:
                    return tensors[value["tensor"]]
                return {key: filled(item) for key, item in value.items()}
            return [filled(item) for item in value] if isinstance(value, list) else value

        args, kwargs = filled(keras.saving.deserialize_keras_object(self.arguments))
        return args, kwargs

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """None: an operation of Keras 3 hands no mask on."""
        return

    def get_config(self) -> Config:
        """The arguments that the layer was made with."""
        config = {"operation": self.operation, "arguments": self.arguments}
        return {**super().get_config(), **config}


def is_symbolic(value: Any) -> bool:
    """Whether `value` is a tensor in the graph of a model of either Keras."""
    return isinstance(value, keras.KerasTensor | tf_keras.src.engine.keras_tensor.KerasTensor)


def tensors_in(args: Any, kwargs: Any) -> list[Any]:
    """The symbolic tensors among a call's arguments, in order."""
    return [value for value in keras.tree.flatten((list(args), dict(kwargs))) if is_symbolic(value)]


@tf_keras.saving.register_keras_serializable(package="tfdistill")
class RMSNormalization(tf_keras.layers.Layer):
    """Keras 3's layer of that name: x / sqrt(mean(x²) + `epsilon`) · scale.

    Args:
        axis: The axis or axes that the mean is taken over.
        epsilon: Added to the mean.
        **kwargs: `name`, `dtype` and `trainable`, as of every layer.

    Source:
        Zhang, Sennrich: Root Mean Square Layer Normalization (2019), equation 4.
    """

    def __init__(self, axis: Any = -1, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        self.epsilon = epsilon
        self.supports_masking = True

    def build(self, shape: Any) -> None:
        """Makes the scale, one for each index of the axes."""
        axes = self.axis if isinstance(self.axis, list | tuple) else [self.axis]
        self.scale = self.add_weight(
            name="scale", shape=[shape[axis] for axis in axes], initializer="ones"
        )
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        """The normalized inputs, in their shape."""
        return keras.ops.rms_normalization(
            inputs, scale=tf.convert_to_tensor(self.scale), axis=self.axis, epsilon=self.epsilon
        )

    def get_config(self) -> Config:
        """The arguments that the layer was made with."""
        axis = list(self.axis) if isinstance(self.axis, list | tuple) else self.axis
        return {**super().get_config(), "axis": axis, "epsilon": self.epsilon}

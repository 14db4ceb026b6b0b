"""What a user has said stands for what in the other Keras: `register`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfdistill._keras import keras, tf_keras
from tfdistill.errors import SettingError

_KINDS = {
    "layer": lambda library: library.layers.Layer,
    "initializer": lambda library: library.initializers.Initializer,
    "regularizer": lambda library: library.regularizers.Regularizer,
    "constraint": lambda library: library.constraints.Constraint,
}


@dataclass(frozen=True)
class Counterpart:
    """A pair that a user registered; the arguments are those of `register`."""

    keras3: Any
    tf_keras: Any
    to_tf_keras: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    to_keras3: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    weight_names: Mapping[str, str] = field(default_factory=dict)


# By the names of the originals, so that a class that a notebook defines anew replaces itself.
_registered: dict[str, Counterpart] = {}


def register(
    keras3_class: Any,
    tf_keras_class: Any,
    *,
    to_tf_keras: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    to_keras3: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    weight_names: Mapping[str, str] | None = None,
) -> None:
    """Says which tf_keras class or function stands for one of Keras 3, in every conversion.

    The way to carry layers of one's own over, in both directions and inside wrappers, too. What
    a conversion makes of them is compared with the original like everything else. For one
    conversion only, there is `custom_objects=`.

    Args:
        keras3_class: A Keras 3 layer, initializer, regularizer or constraint class, or a function
            used as an activation.
        tf_keras_class: Its counterpart in tf_keras, of the same kind.
        to_tf_keras: Takes the config of a `keras3_class` and returns that of a `tf_keras_class`;
            as it is where not given. Activations, initializers, regularizers and constraints in
            it are rebuilt in tf_keras already.
        to_keras3: The same the other way.
        weight_names: What the layer's weights are called in tf_keras, by their names in Keras 3,
            where they differ.

    Raises:
        SettingError: The two are not of one kind, or one of them is registered with another.

    Example:
        >>> class Scale(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        ...
        ...     def call(self, inputs):
        ...         return inputs * self.scale
        >>> class TfKerasScale(tf_keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        ...
        ...     def call(self, inputs):
        ...         return inputs * self.gamma
        >>> register(Scale, TfKerasScale, weight_names={"scale": "gamma"})
    """
    kinds = _kind(keras3_class, keras), _kind(tf_keras_class, tf_keras)
    if kinds[0] is None or kinds[0] != kinds[1]:
        raise SettingError(
            "`keras3_class` and `tf_keras_class` must be of one kind: both layer, initializer, "
            "regularizer or constraint classes, each of its own Keras, or both functions.",
            received=f"{_name(keras3_class)} and {_name(tf_keras_class)}",
            hint="The first is the one of Keras 3.",
        )
    new = Counterpart(keras3_class, tf_keras_class, to_tf_keras, to_keras3, weight_names or {})
    for one in (keras3_class, tf_keras_class):
        old = _registered.get(_name(one))
        if old and (_name(old.keras3), _name(old.tf_keras)) != (
            _name(keras3_class),
            _name(tf_keras_class),
        ):
            raise SettingError(
                f"`{_name(one)}` must have one counterpart.",
                received=f"{_name(keras3_class)} with {_name(tf_keras_class)}, after "
                f"{_name(old.keras3)} with {_name(old.tf_keras)}",
                hint="Use `custom_objects=` for a counterpart that holds for one conversion.",
            )
    _registered[_name(keras3_class)] = _registered[_name(tf_keras_class)] = new


def counterpart_of(original: Any) -> Counterpart | None:
    """The pair registered for a class or function of either Keras."""
    found = _registered.get(_name(original)) if callable(original) else None
    return found if found and original in (found.keras3, found.tf_keras) else None


def registered_objects(library: Any) -> dict[str, Any]:
    """What was registered of one Keras, by name, for its `custom_object_scope`."""
    found = [one.keras3 if library is keras else one.tf_keras for one in _registered.values()]
    return {one.__name__: one for one in found}


def _kind(value: Any, library: Any) -> str | None:
    if not inspect.isclass(value):
        return "function" if callable(value) else None
    kinds = [kind for kind, base in _KINDS.items() if issubclass(value, base(library))]
    return kinds[0] if kinds else None


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else repr(value)

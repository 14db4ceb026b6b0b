"""The one door to TensorFlow, tf_keras, Keras 3 and tfmot.

Every other module says ``from tfdistill._keras import tf, tf_keras, keras, tfmot`` and
nothing in this library says ``tf.keras``.

Why a door: importing tfmot sets ``TF_USE_LEGACY_KERAS=1`` and touches ``tf.keras``. Both
outlive the import, so a user's ``tf.keras`` that was Keras 3 would silently become tf_keras.
Here tfmot is imported while ``tf.keras`` is tf_keras, as it needs, and then the environment
and the (possibly still unresolved) ``tf.keras`` are put back as they were found.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import tensorflow as tf  # before tf_keras: reads TF_USE_LEGACY_KERAS as the user set it

import tf_keras  # isort: skip
import keras  # isort: skip

__all__ = ["keras", "tf", "tf_keras", "tfmot", "tfmot_internal"]

_LEGACY_SWITCH = "TF_USE_LEGACY_KERAS"


@contextlib.contextmanager
def _tf_keras_as_tf_dot_keras() -> Iterator[None]:
    """Lets ``tf.keras`` be tf_keras inside the block, and be untouched after it."""
    import tf_keras.api._v1.keras as tf_keras_v1

    stand_ins = {tf: tf_keras, tf.compat.v1: tf_keras_v1, tf.compat.v2: tf_keras}
    # vars(), not getattr: getattr would resolve the lazy loader and so fix its meaning.
    found = {module: vars(module)["keras"] for module in stand_ins}
    switch = os.environ.get(_LEGACY_SWITCH)
    try:
        for module, stand_in in stand_ins.items():
            module.keras = stand_in
        yield
    finally:
        for module, loader in found.items():
            module.keras = loader
        if switch is None:
            os.environ.pop(_LEGACY_SWITCH, None)
        else:
            os.environ[_LEGACY_SWITCH] = switch


if "tensorflow_model_optimization" in sys.modules:  # the user's own import already chose
    import tensorflow_model_optimization as tfmot
else:
    with _tf_keras_as_tf_dot_keras():
        import tensorflow_model_optimization as tfmot


def tfmot_internal(path: str) -> ModuleType:
    """A module inside tfmot that its public names do not reach, for subclassing.

    Args:
        path: Below `tensorflow_model_optimization.python.core`.
    """
    return importlib.import_module(f"tensorflow_model_optimization.python.core.{path}")

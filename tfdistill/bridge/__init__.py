"""Models carried between Keras 3 and tf_keras."""

from tfdistill.bridge.compile_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)
from tfdistill.bridge.counterparts import register
from tfdistill.bridge.loading import load_model
from tfdistill.bridge.model_graphs import is_keras3, is_tf_keras
from tfdistill.bridge.models import (
    copy_weights_back,
    rebuild_keras3,
    to_keras3,
    to_tf_keras,
)

__all__ = [
    "copy_weights_back",
    "is_keras3",
    "is_tf_keras",
    "load_model",
    "rebuild_keras3",
    "register",
    "to_keras3",
    "to_tf_keras",
    "to_tf_keras_loss",
    "to_tf_keras_metric",
    "to_tf_keras_optimizer",
]

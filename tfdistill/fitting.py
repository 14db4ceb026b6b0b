"""What all distillers have in common: students taken over, and what `fit` is given and raises."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdistill import bridge
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError, SettingError, TfdistillError
from tfdistill.heads import Head, output_names
from tfdistill.kinds import kind_of
from tfdistill.labels import LabelLoss, accuracy_metric, per_example_label_loss
from tfdistill.losses import DistillationLoss, Shapes
from tfdistill.outputs import ModelView, is_functional
from tfdistill.schedules import is_zero
from tfdistill.targets.stored import unknown_examples

__all__ = [
    "arguments_of",
    "build_metrics",
    "build_optimizer",
    "build_projections",
    "copied",
    "dtype_policy",
    "label_loss_of",
    "label_shapes",
    "metrics_of",
    "named_results",
    "own_errors",
    "regularization_of",
    "require_same_classes",
    "taken_over",
]


def taken_over(student: Any) -> tuple[Any, Any]:
    """A student as it is trained.

    Args:
        student: Functional or built Sequential model of either Keras.

    Returns:
        The tf_keras model, and the Keras 3 model that it is the equal of, or `None`.

    Raises:
        ModelError: It is neither; or, as `ConversionError`, it has layers without an equal.
    """
    original = student if isinstance(student, keras.Model) else None
    trained = bridge.to_tf_keras(student) if original is not None else student
    if not isinstance(trained, tf_keras.Model) or not is_functional(trained):
        raise ModelError(
            "`student` must be a Functional or built Sequential Keras model.",
            received=type(student).__name__,
            hint="Wrap it: keras.Model(inputs, student(inputs)).",
        )
    if original is not None and len(trained.outputs) > 1:
        # Of nested models tf_keras would know the inner layers only.
        trained.output_names[:] = output_names(original)
    return trained, original


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raises errors of this library as such: autograph and tf.data make other ones of them."""
    try:
        with unknown_examples():
            yield
    except Exception as error:
        origin = error.__context__
        if isinstance(origin, TfdistillError) and hasattr(origin, "ag_error_metadata"):
            raise origin from None
        raise


def arguments_of(method: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What `fit` or `evaluate` is given, by name, without what tf_keras cannot use of Keras 3.

    Args:
        method: `fit` or `evaluate`.
        args: What it is called with.
        kwargs: By name.

    Raises:
        SettingError: A callback is one of Keras 3.
        DataError: The data are.
    """
    given = inspect.signature(method).bind(*args, **kwargs).arguments
    callbacks = given.get("callbacks")
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        if isinstance(callback, keras.callbacks.Callback):
            raise SettingError(
                "`callbacks` must be callbacks of tf_keras, which trains the student.",
                received=f"{type(callback).__name__} of Keras 3",
                hint=f"Use tf_keras.callbacks.{type(callback).__name__}.",
            )
    for name in ("x", "validation_data"):
        if isinstance(given.get(name), keras.utils.PyDataset):
            raise DataError(
                f"`{name}` must be data that tf_keras reads, which trains the student.",
                received=f"{type(given[name]).__name__}, a PyDataset of Keras 3",
                hint="Give a tf.data.Dataset, or derive the class from tf_keras.utils.Sequence.",
            )
    return given


def label_shapes(given: Mapping[str, Any]) -> Any:
    """The labels' shapes, in their structure, where the data tell them before they are read.

    Args:
        given: What `fit` or `evaluate` is given, by name.

    Returns:
        A `tf.TensorSpec` or its like for each; `None` where there are no labels, or the data do
        not tell.
    """
    x, y = given.get("x"), given.get("y")
    if isinstance(x, tf.data.Dataset):
        _, y, _ = tf_keras.utils.unpack_x_y_sample_weight(x.element_spec)
        return y
    arrays = tf.nest.flatten(y)
    if not all(isinstance(array, (np.ndarray, tf.Tensor)) and array.ndim for array in arrays):
        return None
    return tf.nest.map_structure(lambda array: tf.TensorSpec([None, *array.shape[1:]]), y)


def require_same_classes(teacher: Shapes, student: Shapes) -> None:
    """Refuses two models of other classes.

    Raises:
        ModelError: Their logits differ in a size that both know.
    """
    if not tf.TensorShape(teacher.logits).is_compatible_with(student.logits):
        raise ModelError(
            "`teacher` and `student` must have the same classes.",
            received=f"teacher output {teacher.logits}, student output {student.logits}",
            hint="Give the student as many output units as the teacher has.",
        )


def build_projections(
    losses: Sequence[DistillationLoss], teacher: Shapes, student: Shapes
) -> dict[str, Any]:
    """What is trained beside a student, by the name of the loss it is for.

    Raises:
        ModelError: The two models do not fit together for a loss.
    """
    built = {loss.name: loss.build(teacher, student) for loss in losses}
    return {name: layer for name, layer in built.items() if layer is not None}


def build_optimizer(model: Any) -> None:
    """Makes a compiled model's optimizer variables now.

    Made within the first step, they would let TensorFlow trace that step twice.
    """
    build = getattr(model.optimizer, "build", None)  # those of tf_keras.optimizers.legacy lack it
    if build is not None:
        with model.distribute_strategy.scope():
            build(model.trainable_variables)


def build_metrics(compiled: Any, predictions: Any, labels: Any) -> None:
    """Makes metrics given by name now, for the same reason; in a strategy's scope.

    Args:
        compiled: tf_keras' container of compiled metrics.
        predictions: Shapes of what a student puts out.
        labels: Shapes of the labels, in the same structure.
    """
    if not compiled.built:
        with tf.__internal__.FuncGraph("metrics").as_default():  # where Keras numbers names anew
            compiled.build(predictions, labels)


def dtype_policy(*models: Any) -> Any:
    """mixed_float16 if any layer computes so: `compile` then scales the loss."""
    policies = [layer.dtype_policy for model in models for layer in model.layers]
    mixed = [policy for policy in policies if policy.name == "mixed_float16"]
    return mixed[0] if mixed else None


def label_loss_of(loss: Any, view: ModelView | Head, *, weight: Any) -> LabelLoss | None:
    """What `compile` was given as the label loss, as a function of each example.

    Args:
        loss: Of either Keras, or `None`.
        view: The student that it is for, or its output.
        weight: The label loss' weight: a number or a schedule.

    Raises:
        SettingError: It is missing, or does not fit what the student returns.
    """
    if loss is None and not is_zero(weight):
        raise SettingError(
            "`loss` must be given while `label_loss_weight` is > 0.",
            received=f"loss=None, label_loss_weight={weight}",
            hint='Pass e.g. loss="sparse_categorical_crossentropy", or label_loss_weight=0.',
        )
    if loss is None:
        return None
    return per_example_label_loss(bridge.to_tf_keras_loss(loss), activation=view.activation)


def copied(metric: Any) -> Any:
    """A metric for one more student or output, of its own: it counts."""
    if isinstance(metric, tf_keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def metrics_of(
    metrics: Any, view: ModelView | Head, losses: Sequence[DistillationLoss] = ()
) -> Any:
    """Metrics of either Keras, in any structure, for what a student, or its output, returns.

    Args:
        metrics: As `compile` is given them.
        view: The student, or its output.
        losses: What it is taught.
    """
    activation, units = view.activation, view.classes
    kind = kind_of(activation, units, losses)
    return tf.nest.map_structure(
        lambda metric: accuracy_metric(
            bridge.to_tf_keras_metric(metric),
            activation=activation,
            units=units,
            kind=kind,
        ),
        metrics,
    )


def named_results(metrics: Iterable[Any]) -> dict[str, Any]:
    """The results of compiled metrics by name; one metric may have several."""
    results: dict[str, Any] = {}
    for metric in metrics:
        result = metric.result()
        results |= result if isinstance(result, Mapping) else {metric.name: result}
    return results


def regularization_of(models: Iterable[Any]) -> tf.Tensor:
    """The sum of what the models' regularizers add to the loss, float32."""
    # Under mixed precision those of activities are float16, those of weights float32.
    losses = [tf.cast(loss, tf.float32) for model in models for loss in model.losses]
    return tf.add_n([tf.zeros([]), *losses])

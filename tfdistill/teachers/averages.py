"""The student's own past as its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdistill._keras import tf, tf_keras
from tfdistill.bridge.layer_configs import copy_model
from tfdistill.errors import ModelError, SettingError
from tfdistill.heads import output_names
from tfdistill.pruning import PruneLowMagnitude
from tfdistill.quantizers import InputQuantizer, QuantizeWrapper, copy_quantized, is_known
from tfdistill.settings import is_number
from tfdistill.teachers.base import Asked, GivenTeacher, Teacher, checked_name
from tfdistill.teachers.models import ModelTeacher


class MovingAverage(GivenTeacher):
    """The student with its weights averaged over the steps, as teacher: a mean teacher.

    After each step `a = decay * a + (1 - decay) * w` for each weight `w` of the student and that
    of the teacher, `a`; in the first steps with `1 - 1 / (step + 1)` for the decay, where that is
    less, so that it soon forgets the weights at the start. The average of the statistics of
    BatchNormalization is taken, too. Of a student that simulates 8-bit arithmetic so does the
    average: kernels in ranges of their own, all else in the student's. It costs one forward pass,
    and the memory of one more student. It helps above all where much is unlabelled, with noise
    (dropout, augmentation), many steps and a weight that rises from 0, as in the paper; without, it
    only holds the student back. A Distiller's `averaged_student` is then often better than the
    student. In a pipeline it begins anew in each stage, and has no row in the report.

    Args:
        decay: Share of the average that stays at each step, in [0, 1). 0.99 forgets half within
            70 steps, 0.999 within 700.
        name: What it is called.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> rising = td.schedules.Linear(0, 1, steps=2000)
        >>> distiller = td.Distiller(student, td.teachers.MovingAverage(0.999),
        ...                          losses=[td.losses.ProbabilityMSE(weight=rising)],
        ...                          label_loss_weight=1.0, unlabelled=-1)

    Source:
        Tarvainen & Valpola, "Mean teachers are better role models" (2017), arXiv:1703.01780,
        section 2; the first steps as in the authors' code.
    """

    def __init__(self, decay: float = 0.999, *, name: str | None = None) -> None:
        if not is_number(decay) or not 0 <= decay < 1:
            raise SettingError(
                "`decay` must be in [0, 1).",
                received=repr(decay),
                hint="0.99 to 0.9999 is usual; the longer the training, the larger.",
            )
        self.decay = float(decay)
        self.name = checked_name(name, "moving_average")

    def bind(self, asked: Asked, layers: Sequence[str] = ()) -> Teacher:
        """See `GivenTeacher`."""
        if asked.student is None:
            raise ModelError(
                "`teacher` must know by itself what it says.",
                received="a td.teachers.MovingAverage, which follows the student in training",
                hint="Train with td.Distiller; its `averaged_student` may then teach.",
            )
        return AveragedTeacher(asked.student, self.decay, layers)

    def identity(self, asked: Asked) -> list[Any]:
        """Its decay."""
        return ["moving average", self.decay]


class AveragedTeacher(ModelTeacher):
    """A copy of the student that follows it.

    Args:
        student: Functional tf_keras model; pruned layers are followed without their wrappers.
        decay: See `MovingAverage`.
        layers: Names of the layers whose outputs losses read.

    Attributes:
        model: The copy. Its weights are for the Distiller to keep, and not to train.
    """

    def __init__(self, student: Any, decay: float, layers: Sequence[str]) -> None:
        self.model = _copied(student)
        masks = {  # tfmot sets pruned weights to 0 in the forward pass, after the step
            id(weight): mask
            for layer in student.layers
            if isinstance(layer, PruneLowMagnitude)
            for weight, mask, _ in layer.pruning_vars
        }
        # Ranges of activations are the student's: they are averages already, of which another
        # average would lag behind, and begin with a range that no batch was seen for. tf_keras'
        # `use_ema` averages nothing but what is trained, either. A kernel's range is its own
        # weights': in that of the student's kernel, where smaller, they would be clipped.
        ranges = {
            id(weight)
            for layer in self.model.layers
            if isinstance(layer, (InputQuantizer, QuantizeWrapper))
            for weight in layer._non_trainable_weights
        }
        self._followed = [
            (average, weight, None if id(average) in ranges else masks.get(id(weight), 1.0))
            for copy, layer in zip(self.model.layers, student.layers, strict=True)
            for average, weight in zip(copy.weights, _without_wrapper(layer).weights, strict=True)
        ]
        self._kernels = [
            kernel
            for layer in self.model.layers
            if isinstance(layer, QuantizeWrapper)
            for kernel in layer._weight_vars
        ]
        self._student = student
        self._decay = decay
        self.model.trainable = False
        _round_what_is_known(self.model)
        super().__init__(self.model, layers)
        self.followers = (self,)

    def taken_out(self) -> Any:
        """A model like the student, with the weights as they are now."""
        model = _copied(self._student)
        weights = [weight for layer in model.layers for weight in layer.weights]
        values = tf_keras.backend.batch_get_value([average for average, *_ in self._followed])
        tf_keras.backend.batch_set_value([*zip(weights, values, strict=True)])
        return model

    def follow(self, step: Any) -> None:
        """Takes the student's weights as they are now into the average.

        Args:
            step: How many steps it has made, the last included.
        """
        steps = tf.cast(step, tf.float32)
        decay = tf.minimum(self._decay, 1.0 - 1.0 / (steps + 1.0))

        def mix(average: Any, weight: Any, mask: Any, decay: Any) -> None:
            if mask is None or not average.dtype.is_floating:  # counts of a preprocessing layer
                average.assign(weight)
                return
            now = tf.cast(weight, average.dtype) * tf.cast(mask, average.dtype)
            share = tf.cast(decay, average.dtype)
            average.assign(share * average + (1 - share) * now)

        def update(strategy: Any, decay: Any) -> None:
            for average, weight, mask in self._followed:
                if not _is_of_each_replica(average):
                    strategy.extended.update(average, mix, args=(weight, mask, decay))

        for average, weight, mask in self._followed:
            if _is_of_each_replica(average):
                mix(average, weight, mask, decay)
        tf.distribute.get_replica_context().merge_call(update, args=(decay,))
        for kernel, quantizer, weights in self._kernels:
            quantizer(kernel, True, weights)  # finds its range


class _OnceKnown:
    """Leaves values as they are until the range is known that a quantizer rounds them to.

    In the first step the teacher is asked before the student has seen a batch.

    Args:
        quantizer: Rounds them.
    """

    def __init__(self, quantizer: Any) -> None:
        self._quantizer = quantizer

    def __call__(self, inputs: Any, training: Any, weights: Any) -> tf.Tensor:
        """See `tfdistill.quantizers.RangeQuantizer`."""
        rounded = self._quantizer(inputs, training, weights=weights)
        some = weights["min_var"] < weights["max_var"]  # that of a model's inputs begins with none
        return tf.where(is_known(weights) & some, rounded, inputs)


def _round_what_is_known(model: Any) -> None:
    for layer in model.layers:
        if isinstance(layer, InputQuantizer):
            layer.quantizer = _OnceKnown(layer.quantizer)
        elif isinstance(layer, QuantizeWrapper):
            layer._output_quantizers = [_OnceKnown(each) for each in layer._output_quantizers]
            for activation in layer._quantize_activations:
                activation.quantizer = _OnceKnown(activation.quantizer)


def _copied(student: Any) -> Any:
    """A copy, with quantizers but without the wrappers of pruned layers."""
    quantized = any(isinstance(layer, QuantizeWrapper) for layer in student.layers)
    copy = copy_quantized(student) if quantized else copy_model(student, _without_wrapper)
    copy.output_names[:] = output_names(student)  # which a copy would find anew
    return copy


def _without_wrapper(layer: Any) -> Any:
    return layer.layer if isinstance(layer, PruneLowMagnitude) else layer


def _is_of_each_replica(variable: Any) -> bool:
    """Whether each replica has its own value, as statistics of BatchNormalization do."""
    return bool(variable.synchronization == tf.VariableSynchronization.ON_READ)

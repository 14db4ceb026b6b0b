"""The student's own past as its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdistill._keras import tf, tfmot_internal
from tfdistill.bridge.layer_configs import copy_model
from tfdistill.errors import ModelError, SettingError
from tfdistill.heads import output_names
from tfdistill.settings import is_number
from tfdistill.teachers.base import Asked, GivenTeacher, Teacher, checked_name
from tfdistill.teachers.models import ModelTeacher

_Pruned: Any = tfmot_internal("sparsity.keras.pruning_wrapper").PruneLowMagnitude
_Quantized: Any = tfmot_internal("quantization.keras.quantize_wrapper").QuantizeWrapper


class MovingAverage(GivenTeacher):
    """The student with its weights averaged over the steps, as teacher: a mean teacher.

    After each step `a = decay * a + (1 - decay) * w` for each weight `w` of the student and that
    of the teacher, `a`; in the first steps with `1 - 1 / (step + 1)` for the decay, where that is
    less, so that it soon forgets the weights at the start. The average of the statistics of
    BatchNormalization is taken, too. It costs one forward pass, and the memory of one more
    student. It is for a `td.Distiller`, where much is unlabelled above all: its
    `averaged_student` is then often better than the student, and may teach in a pipeline.

    Args:
        decay: Share of the average that stays at each step, in [0, 1). 0.99 forgets half within
            70 steps, 0.999 within 700.
        name: What it is called.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> distiller = td.Distiller(student, td.teachers.MovingAverage(0.999),
        ...                          losses=[td.losses.ProbabilityMSE(weight=5.0)],
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
                received="a td.teachers.MovingAverage, which follows the student of a Distiller",
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

    Raises:
        ModelError: The student simulates 8-bit arithmetic.
    """

    def __init__(self, student: Any, decay: float, layers: Sequence[str]) -> None:
        if any(isinstance(layer, _Quantized) for layer in student.layers):
            raise ModelError(
                "`student` must not be quantized, for its moving average to teach.",
                received=f"{student.name}, a model of tfmot's quantization-aware training",
                hint="Let the average of the stage before teach: `averaged_student` of its "
                "Distiller.",
            )
        self.model = copy_model(student, _without_wrapper)
        self.model.trainable = False
        self.model.output_names[:] = output_names(student)  # which a copy would find anew
        self._decay = decay
        followed = [_without_wrapper(layer) for layer in student.layers]
        masks = {  # tfmot sets pruned weights to 0 in the forward pass, after the step
            id(weight): mask
            for layer in student.layers
            if isinstance(layer, _Pruned)
            for weight, mask, _ in layer.pruning_vars
        }
        self._followed = [
            (average, weight, masks.get(id(weight), 1.0))
            for copy, layer in zip(self.model.layers, followed, strict=True)
            for average, weight in zip(copy.weights, layer.weights, strict=True)
        ]
        super().__init__(self.model, layers)
        self.followers = (self,)

    def follow(self, step: Any) -> None:
        """Takes the student's weights as they are now into the average.

        Args:
            step: How many steps it has made, the last included.
        """
        steps = tf.cast(step, tf.float32)
        decay = tf.minimum(self._decay, 1.0 - 1.0 / (steps + 1.0))

        def mix(average: Any, weight: Any, mask: Any, decay: Any) -> None:
            if not average.dtype.is_floating:  # counts of a preprocessing layer
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


def _without_wrapper(layer: Any) -> Any:
    return layer.layer if isinstance(layer, _Pruned) else layer


def _is_of_each_replica(variable: Any) -> bool:
    """Whether each replica has its own value, as statistics of BatchNormalization do."""
    return bool(variable.synchronization == tf.VariableSynchronization.ON_READ)

"""Losses on what the models compute on the way: the outputs of their layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from tfdistill._keras import tf
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses import functional
from tfdistill.losses.base import Outputs, Shapes, shown
from tfdistill.losses.layers import (
    AUTO,
    LayerLoss,
    LayerOutput,
    Shape,
    require_places,
    require_width,
)

__all__ = ["FSP", "AttentionTransfer", "Hint", "NeuronSelectivity"]


@dataclass(frozen=True)
class Hint(LayerLoss):
    """Teaches a layer of the student to compute what a layer of the teacher computes.

    Formula, shapes and paper: `tfdistill.losses.functional.hint`. Both layers put out
    `[batch, ..., width]`. Where images differ in size, the larger is averaged to the smaller;
    sequences must have one length. Where the widths differ, a linear map of the last axis without
    bias brings the student's to the teacher's (for images a 1x1 convolution, where FitNets has a
    larger one). It is trained with the student and is no part of it.

    Args:
        teacher_layer: Name of the teacher's layer, several names for several pairs, of whose
            values the mean is taken; or "auto" for the last layer of each resolution that both
            models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs. Two hints in one Distiller need two names.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.Hint("conv4_block6_out", "block3", weight=0.5)
        Hint(teacher_layer='conv4_block6_out', student_layer='block3', weight=0.5, name='hint')
    """

    name: str = "hint"
    _projects = True

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        require_places(teacher, student, received)
        require_width(teacher, student, received)

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.hint(teacher, student)


class _MapLoss(LayerLoss):
    """A loss of layers with places: an image's, or a sequence's steps."""

    def _could_read(self, layer: LayerOutput) -> bool:
        return len(layer.shape) > 1 and layer.shape[-1] is not None

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        require_places(teacher, student, received)
        require_width(teacher, student, received)
        if len(student) < 2:
            raise ModelError(
                "`teacher_layer` and `student_layer` must have places: an image's, or steps.",
                received=received,
                hint="Name layers that put out [batch, height, width, channels], before pooling.",
            )


@dataclass(frozen=True)
class AttentionTransfer(_MapLoss):
    """Teaches where in the image the teacher's layer is active.

    Formula, shapes and paper: `tfdistill.losses.functional.attention_transfer`. The widths may
    differ; of images that differ in size the larger map is averaged to the smaller. The paper adds
    up the pairs with a weight of about 1000 for the mean over the places; this is the mean over the
    pairs of sums over the places.

    Args:
        teacher_layer: Name of the teacher's layer, several names for several pairs, of whose
            values the mean is taken; or "auto" for the last layer of each resolution that both
            models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.AttentionTransfer(["conv3", "conv4"], ["block2", "block3"]).student_layers
        ('block2', 'block3')
    """

    name: str = "attention_transfer"

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.attention_transfer(teacher, student)


@dataclass(frozen=True)
class NeuronSelectivity(_MapLoss):
    """Teaches the patterns that the channels of the teacher's layer are selective for.

    Formula, shapes and paper: `tfdistill.losses.functional.neuron_selectivity`. The widths may
    differ; of images that differ in size the larger is averaged to the smaller.

    Args:
        teacher_layer: Name of the teacher's layer, several names for several pairs, of whose
            values the mean is taken; or "auto" for the last layer of each resolution that both
            models have, which `Distiller.notes` name.
        student_layer: The same of the student.
        weight: Factor in the total loss, finite, >= 0. Huang and Wang (2017) used 50 beside labels.
        name: Name in the logs.
        kernel: How two patterns are compared: "polynomial", the square of their cosine, which the
            paper found best, or "linear", their cosine.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.NeuronSelectivity("auto", kernel="linear").kernel
        'linear'
    """

    name: str = "neuron_selectivity"
    kernel: Literal["polynomial", "linear"] = "polynomial"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        self._check_choice("kernel", ("polynomial", "linear"))

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        return functional.neuron_selectivity(teacher, student, self.kernel)


@dataclass(frozen=True)
class FSP(_MapLoss):
    """Teaches how the teacher gets from one of its layers to a later one.

    Formulas, shapes and paper: `tfdistill.losses.functional.flow` and `fsp` (the flow of solution
    procedure). The flow from each named layer to the next one of the same model is compared, in
    the mean over the flows. The two models' images may differ in size; student layers of another
    width are projected by a linear map without bias, where the paper has models of equal widths.

    Args:
        teacher_layer: Names of two layers of the teacher or more, from its input to its output; or
            "auto" for the last layer of each resolution that both models have, which
            `Distiller.notes` name.
        student_layer: As many of the student.
        weight: Factor in the total loss, finite, >= 0.
        name: Name in the logs.

    Raises:
        SettingError: A setting is outside what it may be.

    Example:
        >>> from tfdistill import losses
        >>> losses.FSP(["conv2", "conv3"], ["block1", "block2"], weight=0.1).teacher_layers
        ('conv2', 'conv3')
    """

    name: str = "fsp"
    _projects = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if self.teacher_layer != AUTO and len(self.pairs) < 2:
            raise SettingError(
                "`teacher_layer` and `student_layer` must name two layers or more each.",
                received=repr(self),
                hint="A flow goes from one layer to a later one of the same model.",
            )

    def _require_fit(self, teacher: Shape, student: Shape, received: str) -> None:
        for shape in (teacher, student):  # the images of the two models may differ in size
            super()._require_fit(shape, shape, received)

    def _chosen(self, resolutions: list[Shape]) -> list[Shape]:
        return resolutions if len(resolutions) > 1 else []

    def build(self, teacher: Shapes, student: Shapes) -> Any:
        """Makes projections where the widths differ. See `LayerLoss.build`.

        Raises:
            ModelError: A layer has no places, or two of one model do not go together.
        """
        projections = super().build(teacher, student)
        for shapes, layers in ((teacher, self.teacher_layers), (student, self.student_layers)):
            for one, other in pairwise(layers):
                first, second = shapes.features[one], shapes.features[other]
                received = f"layer {one!r} {shown(first)}, layer {other!r} {shown(second)}"
                require_places(first, second, received)
        return projections

    def call(self, teacher: Outputs, student: Outputs, projection: Any = None) -> Any:
        """The loss of each example, `[batch]`, before `weight`."""
        theirs = [tf.stop_gradient(teacher.features[layer]) for layer in self.teacher_layers]
        ours = [tf.convert_to_tensor(student.features[layer]) for layer in self.student_layers]
        if projection is not None:
            ours = [projection.project(number, each) for number, each in enumerate(ours)]
        flows = [
            functional.fsp(functional.flow(*their), functional.flow(*our))
            for their, our in zip(pairwise(theirs), pairwise(ours), strict=True)
        ]
        return tf.add_n(flows) / len(flows)

    def _value(self, teacher: Any, student: Any, mask: Any) -> Any:
        raise NotImplementedError  # `call` does not go by pairs

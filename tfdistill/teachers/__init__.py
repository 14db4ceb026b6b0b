"""What can teach: models of either Keras, saved and LiteRT files, functions, and several at once.

Everything that takes a teacher takes each of these. A bare Keras 3 or tf_keras model, and a
function on tensors, are taken as they are.
"""

from tfdistill.teachers.averages import MovingAverage
from tfdistill.teachers.base import GivenTeacher, Teacher
from tfdistill.teachers.door import (
    as_given,
    as_teacher,
    failures_named,
    identity_of_teacher,
    input_shapes_of_teacher,
    require_own_weights,
)
from tfdistill.teachers.ensembles import Ensemble
from tfdistill.teachers.files import LiteRT, SavedModel
from tfdistill.teachers.functions import Function
from tfdistill.teachers.models import Model
from tfdistill.teachers.nobody import Nobody, teacher_for

__all__ = [
    "Ensemble",
    "Function",
    "GivenTeacher",
    "LiteRT",
    "Model",
    "MovingAverage",
    "Nobody",
    "SavedModel",
    "Teacher",
    "as_given",
    "as_teacher",
    "failures_named",
    "identity_of_teacher",
    "input_shapes_of_teacher",
    "require_own_weights",
    "teacher_for",
]

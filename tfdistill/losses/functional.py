"""The distillation losses as pure functions of tensors.

Each takes what the teacher and the student said about one batch and returns one value per
example. Inputs may be of any floating type; the arithmetic and the result are float32. No
gradient flows to the teacher. The classes in this package are these functions with settings.
"""

from __future__ import annotations

from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import ModelError

__all__ = ["hard_targets", "hint", "logits_mse", "soft_targets"]


def soft_targets(teacher_logits: Any, student_logits: Any, temperature: float = 4.0) -> Any:
    r"""Squared temperature times the KL divergence between the softened distributions.

    .. math:: T^2 \sum_c p_c \log(p_c / q_c), \quad
       p = \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T)

    with teacher logits `t` and student logits `s`. Without the factor `T^2` the gradient would
    shrink as `1 / T^2`, so that a new temperature would also be a new weight. The value carries
    a float32 rounding error of about `1e-7 * T^2`; the gradient, `T * (q - p)`, does not.

    Args:
        teacher_logits: `[batch, classes]`; `[batch, 1]` is binary, read as the logits `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0. Not checked here.

    Returns:
        `[batch]`, in nats times the squared temperature. 0 where both distributions are equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> soft_targets([[5.0, 2.0, -0.5]], [[1.0, 2.0, 0.0]], temperature=3.0).numpy().round(3)
        array([2.101], dtype=float32)

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015),
        arXiv:1503.02531, section 2, and section 2.1 for the factor.
    """
    teacher, student = _pair(teacher_logits, student_logits)
    teacher_log_probabilities = tf.nn.log_softmax(_with_two_classes(teacher) / temperature)
    student_log_probabilities = tf.nn.log_softmax(_with_two_classes(student) / temperature)
    divergence = tf.reduce_sum(
        tf.exp(teacher_log_probabilities) * (teacher_log_probabilities - student_log_probabilities),
        axis=-1,
    )
    return temperature**2 * divergence


def hard_targets(teacher_logits: Any, student_logits: Any) -> Any:
    r"""Cross-entropy of the student against the class that the teacher predicts.

    .. math:: -\log \mathrm{softmax}(s)_k, \quad k = \arg\max_c t_c

    Where the teacher's largest logits are equal, the first of them counts.

    Args:
        teacher_logits: `[batch, classes]`; `[batch, 1]` is binary, read as the logits `[0, t]`.
        student_logits: The same shape.

    Returns:
        `[batch]`, in nats. Tends to 0 as the student becomes sure of the teacher's class; it is
        not 0 where the student's logits equal the teacher's.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> hard_targets([[3.0, 0.0]], [[0.0, 0.0]]).numpy().round(4)
        array([0.6931], dtype=float32)

    Source:
        Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep
        Neural Networks" (2013), with the teacher in the place of the network itself.
    """
    teacher, student = _pair(teacher_logits, student_logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.argmax(_with_two_classes(teacher), axis=-1), logits=_with_two_classes(student)
    )


def logits_mse(teacher_logits: Any, student_logits: Any) -> Any:
    r"""Mean over the classes of the squared difference of the logits.

    .. math:: \frac{1}{C} \sum_c (s_c - t_c)^2

    A mean, so that the weight does not depend on the number of classes `C`, and without the
    factor 1/2. The paper's equation 1 is a sum over the classes and has the 1/2: `C / 2` times
    this.

    Args:
        teacher_logits: `[batch, classes]`; the single logit of `[batch, 1]` is used as it is.
        student_logits: The same shape.

    Returns:
        `[batch]`. 0 where the logits are equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> logits_mse([[3.0, 0.0]], [[1.0, 0.0]]).numpy()
        array([2.], dtype=float32)

    Source:
        Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014), arXiv:1312.6184,
        equation 1.
    """
    teacher, student = _pair(teacher_logits, student_logits)
    return tf.reduce_mean(tf.math.squared_difference(teacher, student), axis=-1)


def hint(teacher_features: Any, student_features: Any) -> Any:
    r"""Half the mean squared difference of two layers' outputs.

    .. math:: \frac{1}{2n} \sum_i (u_i - r_i)^2

    with teacher features `u`, student features `r` (already projected to the teacher's width)
    and `n` elements an example. The paper's equation 3 is the sum, without `1 / n`; the mean
    keeps the weight independent of the layer's size.

    Args:
        teacher_features: `[batch, ...]`, at least one axis after the batch.
        student_features: The same shape.

    Returns:
        `[batch]`. 0 where the features are equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> hint([[3.0, 0.0]], [[1.0, 0.0]]).numpy()
        array([1.], dtype=float32)

    Source:
        Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), arXiv:1412.6550, section 2.2,
        equation 3.
    """
    teacher, student = _pair(teacher_features, student_features)
    per_example_axes = list(range(1, teacher.shape.rank))
    return 0.5 * tf.reduce_mean(tf.math.squared_difference(teacher, student), axis=per_example_axes)


def _pair(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Both as float32, the teacher without gradient, their known shapes equal."""
    teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
    student = tf.cast(student, tf.float32)
    # TensorFlow would broadcast [batch, 1] against [batch, classes] and teach nonsense.
    if not teacher.shape.is_compatible_with(student.shape):
        raise ModelError(
            "The student's output must have the shape of the teacher's.",
            received=f"teacher {teacher.shape}, student {student.shape}",
            hint="Give both the same classes, or name layers of the same shape.",
        )
    return teacher, student


def _with_two_classes(logits: Any) -> Any:
    """`[batch, 1]` as `[batch, 2]` with the same probabilities; others as they are."""
    if logits.shape[-1] != 1:
        return logits
    return tf.concat([tf.zeros_like(logits), logits], axis=-1)

"""The losses on distributions over the classes, as pure functions; `functional` names them all."""

from __future__ import annotations

import math
from typing import Any

from tfdistill._keras import tf
from tfdistill.losses.shared import class_numbers, pair, with_two_classes

__all__ = [
    "binary_targets",
    "decoupled_kd",
    "jensen_shannon",
    "reverse_kl",
    "soft_cross_entropy",
    "soft_targets",
    "standardized",
    "virtual_teacher",
]

_LOG_TWO = math.log(2.0)
_LEAST_VARIANCE = 1e-6


def soft_targets(teacher_logits: Any, student_logits: Any, temperature: Any = 4.0) -> Any:
    r"""Squared temperature times the KL divergence between the softened distributions.

    .. math:: T^2 \sum_c p_c \log(p_c / q_c), \quad
       p = \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T)

    with teacher logits `t` and student logits `s`. Without the factor `T^2` the gradient would
    shrink as `1 / T^2`, so that a new temperature would also be a new weight. The value carries
    a float32 rounding error of about `1e-7 * T^2`; the gradient, `T * (q - p)`, does not.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0; or `[batch, ...]`, one for each row. Not checked here.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. 0 where both distributions are
        equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> soft_targets([[5.0, 2.0, -0.5]], [[1.0, 2.0, 0.0]], temperature=3.0).numpy().round(3)
        array([2.101], dtype=float32)

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015),
        arXiv:1503.02531, section 2, and section 2.1 for the factor.
    """
    teacher_logs, student_logs = _log_probabilities(teacher_logits, student_logits, temperature)
    divergence = tf.reduce_sum(tf.exp(teacher_logs) * (teacher_logs - student_logs), axis=-1)
    return temperature**2 * divergence


def soft_cross_entropy(teacher_logits: Any, student_logits: Any, temperature: Any = 4.0) -> Any:
    r"""Squared temperature times the cross-entropy of the softened distributions.

    .. math:: -T^2 \sum_c p_c \log q_c

    with `p` and `q` as in `soft_targets`, from which it differs by the teacher's entropy alone:
    the gradient is the same.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0; or `[batch, ...]`, one for each row. Not checked here.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. Least where both distributions are
        equal: there `T^2` times the teacher's entropy.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> soft_cross_entropy([[1.0, 1.0]], [[1.0, 1.0]], temperature=1.0).numpy().round(4)
        array([0.6931], dtype=float32)

    Source:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531, section 2, which has this form.
    """
    teacher_logs, student_logs = _log_probabilities(teacher_logits, student_logits, temperature)
    return -(temperature**2) * tf.reduce_sum(tf.exp(teacher_logs) * student_logs, axis=-1)


def reverse_kl(teacher_logits: Any, student_logits: Any, temperature: Any = 4.0) -> Any:
    r"""Squared temperature times the KL divergence the other way round.

    .. math:: T^2 \sum_c q_c \log(q_c / p_c)

    with `p` and `q` as in `soft_targets`. It costs the student to believe what the teacher
    excludes, and costs little to leave out some of what the teacher allows. The paper takes it of
    whole sequences that the student has written; this is one step's term, on the steps given.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0; or `[batch, ...]`, one for each row. Not checked here.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. 0 where both distributions are
        equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> reverse_kl([[10.0, 10.0, 0.0]], [[10.0, 0.0, 0.0]], temperature=1.0).numpy().round(2)
        array([0.69], dtype=float32)

    Source:
        Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models" (2024),
        arXiv:2306.08543, section 2.1.
    """
    teacher_logs, student_logs = _log_probabilities(teacher_logits, student_logits, temperature)
    divergence = tf.reduce_sum(tf.exp(student_logs) * (student_logs - teacher_logs), axis=-1)
    return temperature**2 * divergence


def jensen_shannon(teacher_logits: Any, student_logits: Any, temperature: Any = 4.0) -> Any:
    r"""Squared temperature times the Jensen-Shannon divergence, with equal weights.

    .. math:: \frac{T^2}{2} \sum_c p_c \log\frac{p_c}{m_c} + q_c \log\frac{q_c}{m_c}, \quad
       m = \frac{p + q}{2}

    with `p` and `q` as in `soft_targets`. Symmetric, and never more than `T^2 * log 2`, so that
    no example outweighs all others. Near the teacher it is a quarter of `soft_targets`.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0; or `[batch, ...]`, one for each row. Not checked here.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. 0 where both distributions are
        equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> jensen_shannon([[99.0, 0.0]], [[0.0, 99.0]], temperature=1.0).numpy().round(4)
        array([0.6931], dtype=float32)

    Source:
        Lin, "Divergence Measures Based on the Shannon Entropy" (1991); compared
        for distillation by Ko et al., "DistiLLM" (2024), arXiv:2402.03898.
    """
    teacher_logs, student_logs = _log_probabilities(teacher_logits, student_logits, temperature)
    # log(p / m) = log 2 - log(1 + q / p): no difference of logarithms of tiny numbers.
    ratio = student_logs - teacher_logs
    to_teacher = tf.exp(teacher_logs) * (_LOG_TWO - tf.nn.softplus(ratio))
    to_student = tf.exp(student_logs) * (_LOG_TWO - tf.nn.softplus(-ratio))
    return temperature**2 * 0.5 * tf.reduce_sum(to_teacher + to_student, axis=-1)


def standardized(logits: Any) -> Any:
    r"""Logits with mean 0 and standard deviation 1 over the classes.

    .. math:: (z - \bar z) / \sqrt{\mathrm{mean}((z - \bar z)^2) + 10^{-6}}

    The standard deviation is the paper's, divided by the number of classes; the authors' code
    divides by one less. The `1e-6` keeps the gradient finite where all logits are equal.

    Args:
        logits: `[batch, ..., classes]`. Of two classes nothing but the larger one is left.

    Returns:
        float32, the same shape.

    Example:
        >>> standardized([[2.0, 4.0, 4.0, 6.0]]).numpy().round(3)
        array([[-1.414,  0.   ,  0.   ,  1.414]], dtype=float32)

    Source:
        Sun et al., "Logit Standardization in Knowledge Distillation" (2024), arXiv:2403.01427,
        algorithm 1.
    """
    logits = tf.cast(logits, tf.float32)
    centered = logits - tf.reduce_mean(logits, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True)
    return centered * tf.math.rsqrt(variance + _LEAST_VARIANCE)


def decoupled_kd(
    teacher_logits: Any,
    student_logits: Any,
    labels: Any,
    temperature: Any = 4.0,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
) -> Any:
    r"""The KL divergence in two parts: the label's class against the rest, and among the rest.

    .. math:: T^2 (\alpha \, \mathrm{KL}(b^p \| b^q) + \beta \, \mathrm{KL}(\hat p \| \hat q)),
       \quad b^p = [p_y, 1 - p_y], \quad \hat p_c = p_c / (1 - p_y), \; c \ne y

    with `p` and `q` as in `soft_targets`, the label `y`, and `b^q`, `\hat q` made of `q` likewise.
    `soft_targets` is the sum with `\alpha = 1` and `\beta = 1 - p_y`: what a sure teacher knows
    about the other classes is lost there. The factor `T^2` is that of the authors' code.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`. With two classes there is nothing among the rest.
        student_logits: The same shape.
        labels: Class numbers `[batch, ...]`, or one-hot rows. For one that is no class, such as
            -1, all classes are the rest.
        temperature: Finite and > 0. Not checked here.
        target_weight: :math:`\alpha`.
        non_target_weight: :math:`\beta`.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. 0 where both distributions are
        equal.

    Raises:
        ModelError: The two shapes differ.
        DataError: The labels are neither class numbers nor one-hot rows.

    Example:
        >>> parts = dict(labels=[0], temperature=1.0, target_weight=1.0, non_target_weight=0.0)
        >>> decoupled_kd([[0.0, 0.0, 0.0]], [[0.0, 5.0, 5.0]], **parts).numpy().round(3)
        array([1.265], dtype=float32)

    Source:
        Zhao et al., "Decoupled Knowledge Distillation" (2022), arXiv:2203.08679,
        section 3.
    """
    classes = class_numbers(labels, tf.convert_to_tensor(student_logits))
    teacher_logs, student_logs = _log_probabilities(teacher_logits, student_logits, temperature)
    is_target = tf.one_hot(classes, student_logs.shape[-1], on_value=True, off_value=False)

    def parts(logs: Any) -> tuple[Any, Any, Any]:
        """Logarithms of the label's probability, of the rest's, and of each among the rest."""
        others = tf.where(is_target, tf.float32.min, logs)
        target = tf.reduce_sum(tf.where(is_target, logs, 0.0), axis=-1)
        return target, tf.reduce_logsumexp(others, axis=-1), tf.nn.log_softmax(others)

    (p, rest_p, among_p), (q, rest_q, among_q) = parts(teacher_logs), parts(student_logs)
    target_part = tf.exp(p) * (p - q) + tf.exp(rest_p) * (rest_p - rest_q)
    non_target_part = tf.reduce_sum(tf.exp(among_p) * (among_p - among_q), axis=-1)
    return temperature**2 * (target_weight * target_part + non_target_weight * non_target_part)


def virtual_teacher(
    student_logits: Any, labels: Any, probability: float = 0.99, temperature: Any = 20.0
) -> Any:
    r"""`soft_targets` of a teacher that is made up: as sure of every label, and of nothing else.

    .. math:: T^2 \, \mathrm{KL}(p \| q), \quad p = \mathrm{softmax}(\log(u) / T), \quad
       u_y = a, \quad u_c = \frac{1 - a}{C - 1}, \; c \ne y

    with `q` as in `soft_targets`, the label `y` and `C` classes: `u` is a smoothed label, which the
    temperature softens as it does any teacher's distribution. The paper has no factor `T^2`, which
    is here for the reason that `soft_targets` has it. The authors' code softens otherwise: it takes
    `softmax(u / T)`, which at `T = 20` is all but uniform, against the student's distribution at
    temperature 1, and the mean over the classes times a factor of its own.

    Args:
        student_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, s]`.
        labels: Class numbers `[batch, ...]`, or one-hot rows. For one that is no class, such as
            -1, the made-up teacher has no preference.
        probability: :math:`a`, in (0.5, 1). Not checked here.
        temperature: Finite and > 0. Not checked here.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. 0 where the two
        distributions are equal.

    Raises:
        DataError: The labels are neither class numbers nor one-hot rows.

    Example:
        >>> virtual_teacher([[0.0, 0.0]], [1], probability=0.9, temperature=1.0).numpy().round(4)
        array([0.3681], dtype=float32)

    Source:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization" (2020),
        arXiv:1909.11723, section 4.2: the manually designed teacher; 0.99 and 20 as in the
        authors' code.
    """
    student = with_two_classes(tf.cast(student_logits, tf.float32))
    classes = class_numbers(labels, tf.convert_to_tensor(student_logits))
    size = student.shape[-1]
    made_up = tf.one_hot(
        classes,
        size,
        on_value=math.log(probability),
        off_value=math.log((1.0 - probability) / (size - 1)),
    )
    return soft_targets(made_up, student, temperature)


def binary_targets(teacher_logits: Any, student_logits: Any, temperature: Any = 1.0) -> Any:
    r"""Squared temperature times the KL divergence of each label's yes and no, in the mean.

    .. math:: \frac{T^2}{L} \sum_l p_l \log\frac{p_l}{q_l} + (1 - p_l) \log\frac{1 - p_l}{1 - q_l},
       \quad p = \mathrm{sigmoid}(t / T), \quad q = \mathrm{sigmoid}(s / T)

    for `L` labels of which any number may be true. A mean, so that the weight does not depend on
    their number. Of one label it is `soft_targets` of one logit.

    Args:
        teacher_logits: `[batch, ..., labels]`.
        student_logits: The same shape.
        temperature: Finite and > 0. Not checked here.

    Returns:
        `[batch, ...]`, in nats times the squared temperature. 0 where all probabilities are
        equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> binary_targets([[0.0, 5.0]], [[2.0, 5.0]]).numpy().round(4)
        array([0.2169], dtype=float32)

    Source:
        `soft_targets` of one logit, for each label.
    """
    teacher, student = pair(teacher_logits, student_logits)
    teacher, student = teacher / temperature, student / temperature

    def part(teacher: Any, student: Any) -> Any:
        teacher_logs = tf.math.log_sigmoid(teacher)
        return tf.exp(teacher_logs) * (teacher_logs - tf.math.log_sigmoid(student))

    divergences = part(teacher, student) + part(-teacher, -student)
    return temperature**2 * tf.reduce_mean(divergences, axis=-1)


def _log_probabilities(teacher: Any, student: Any, temperature: Any) -> tuple[Any, Any]:
    teacher, student = pair(teacher, student)
    if getattr(temperature, "shape", ()):  # one for each row
        temperature = temperature[..., tf.newaxis]
    return (
        tf.nn.log_softmax(with_two_classes(teacher) / temperature),
        tf.nn.log_softmax(with_two_classes(student) / temperature),
    )

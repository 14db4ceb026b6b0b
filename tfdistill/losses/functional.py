"""The distillation losses as pure functions of tensors.

Each takes what the teacher and the student said about one batch and returns one value per
example, or per step of an example where the outputs are `[batch, steps, classes]`. Inputs may be
of any floating type; the arithmetic and the result are float32. No gradient flows to the teacher.
The classes in this package are these functions with settings, and average over the steps.
"""

from __future__ import annotations

from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import DataError
from tfdistill.losses.divergences import (
    binary_targets,
    decoupled_kd,
    jensen_shannon,
    reverse_kl,
    soft_cross_entropy,
    soft_targets,
    standardized,
    virtual_teacher,
)
from tfdistill.losses.representations import (
    attention_scores,
    attention_transfer,
    cosine_hidden_states,
    flow,
    fsp,
    hidden_states,
    hint,
    neuron_selectivity,
    weight_mse,
)
from tfdistill.losses.shared import pair, unmasked, with_two_classes
from tfdistill.losses.similarities import (
    contrastive,
    correlation_congruence,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)

__all__ = [
    "attention_scores",
    "attention_transfer",
    "binary_targets",
    "bounded_regression",
    "centered_mse",
    "contrastive",
    "correlation_congruence",
    "cosine_hidden_states",
    "decoupled_kd",
    "flow",
    "fsp",
    "hard_targets",
    "hidden_states",
    "hint",
    "inter_class",
    "intra_class",
    "jensen_shannon",
    "logits_mse",
    "neuron_selectivity",
    "probabilistic_transfer",
    "probability_mse",
    "relational_angle",
    "relational_distance",
    "reverse_kl",
    "similarity_preserving",
    "soft_cross_entropy",
    "soft_targets",
    "standardized",
    "virtual_teacher",
    "weight_mse",
]

_LEAST_SQUARES = 1e-10


def hard_targets(
    teacher_logits: Any,
    student_logits: Any,
    threshold: float = 0.0,
    label_smoothing: float = 0.0,
) -> Any:
    r"""Cross-entropy of the student against the class that the teacher predicts.

    .. math:: -(1 - \epsilon) \log q_k - \frac{\epsilon}{C} \sum_c \log q_c, \quad
       q = \mathrm{softmax}(s), \quad k = \arg\max_c t_c

    where :math:`\mathrm{softmax}(t)_k` reaches the threshold, and 0 elsewhere. Where the
    teacher's largest logits are equal, the first of them counts. As in FixMatch, an example below
    the threshold is still one of those that the batch's mean is taken of: the fewer the teacher
    is sure of, the less this loss teaches.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        threshold: Least probability of the teacher's class. Not checked here.
        label_smoothing: :math:`\epsilon`, spread evenly over all `C` classes. Not checked here.

    Returns:
        `[batch, ...]`, in nats. Without smoothing it tends to 0 as the student becomes sure of
        the teacher's class; it is not 0 where the student's logits equal the teacher's. With
        smoothing its least value is that distribution's entropy.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> hard_targets([[3.0, 0.0]], [[0.0, 0.0]]).numpy().round(4)
        array([0.6931], dtype=float32)
        >>> hard_targets([[3.0, 0.0]], [[0.0, 0.0]], threshold=0.99).numpy()
        array([0.], dtype=float32)

    Source:
        Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep
        Neural Networks" (2013), with the teacher in the place of the network itself; the
        threshold as in Sohn et al., "FixMatch" (2020), arXiv:2001.07685, equation 4; the
        smoothing as in Szegedy et al. (2016), arXiv:1512.00567, section 7.
    """
    teacher, student = pair(teacher_logits, student_logits)
    teacher, student = with_two_classes(teacher), with_two_classes(student)
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.argmax(teacher, axis=-1), logits=student
    )
    if label_smoothing > 0:
        evenly = -tf.reduce_mean(tf.nn.log_softmax(student), axis=-1)
        values = (1.0 - label_smoothing) * values + label_smoothing * evenly
    if threshold > 0:
        sure = tf.reduce_max(tf.nn.softmax(teacher), axis=-1) >= threshold
        values = tf.where(sure, values, 0.0)
    return values


def logits_mse(teacher_logits: Any, student_logits: Any) -> Any:
    r"""Mean over the classes of the squared difference of the logits.

    .. math:: \frac{1}{C} \sum_c (s_c - t_c)^2

    A mean, so that the weight does not depend on the number of classes `C`, and without the
    factor 1/2. The paper's equation 1 is a sum over the classes and has the 1/2: `C / 2` times
    this.

    Args:
        teacher_logits: `[batch, ..., classes]`; a single logit is used as it is.
        student_logits: The same shape.

    Returns:
        `[batch, ...]`. 0 where the logits are equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> logits_mse([[3.0, 0.0]], [[1.0, 0.0]]).numpy()
        array([2.], dtype=float32)

    Source:
        Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014), arXiv:1312.6184,
        equation 1.
    """
    teacher, student = pair(teacher_logits, student_logits)
    return tf.reduce_mean(tf.math.squared_difference(teacher, student), axis=-1)


def probability_mse(teacher_logits: Any, student_logits: Any, temperature: Any = 1.0) -> Any:
    r"""Squared temperature times the squared distance of the two distributions.

    .. math:: T^2 \sum_c (p_c - q_c)^2

    with `p` and `q` as in `soft_targets`, and the factor for the same reason. A sum over the
    classes, as Brier's score has it: probabilities sum to one, however many there are. The
    paper's implementation takes the mean, `1 / C` times this. Never more than `2 * T^2`; its
    gradient vanishes where the student is sure, even of a wrong class.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0. Not checked here.

    Returns:
        `[batch, ...]`. 0 where both distributions are equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> probability_mse([[99.0, 0.0]], [[0.0, 0.0]]).numpy()
        array([0.5], dtype=float32)

    Source:
        Tarvainen and Valpola, "Mean teachers are better role models" (2017), arXiv:1703.01780,
        section 2, the consistency cost. Ba and Caruana (2014), arXiv:1312.6184, section 2, say
        why they prefer logits.
    """
    teacher, student = _probabilities(teacher_logits, student_logits, temperature)
    return temperature**2 * tf.reduce_sum(tf.math.squared_difference(teacher, student), axis=-1)


def centered_mse(teacher_logits: Any, student_logits: Any) -> Any:
    r"""Mean over the classes of the squared difference of the centred logits.

    .. math:: \frac{1}{C} \sum_c ((s_c - \bar s) - (t_c - \bar t))^2

    `logits_mse` without what no softmax can see, a number added to all logits of an example. It
    is twice the limit of `soft_targets` at high temperature.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.

    Returns:
        `[batch, ...]`. 0 where the logits differ by one number.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> centered_mse([[3.0, 0.0]], [[1.0, 0.0]]).numpy()
        array([1.], dtype=float32)

    Source:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531, section 2.1, equation 4; compared with
        other temperatures by Kim et al., "Comparing Kullback-Leibler Divergence and Mean Squared
        Error Loss in Knowledge Distillation" (2021), arXiv:2105.08919.
    """
    teacher, student = pair(teacher_logits, student_logits)
    difference = with_two_classes(student) - with_two_classes(teacher)
    return tf.math.reduce_variance(difference, axis=-1)


def bounded_regression(
    teacher_outputs: Any, student_outputs: Any, labels: Any, margin: float = 0.0
) -> Any:
    r"""The student's squared error, until it is better than the teacher's by a margin.

    .. math:: e_s \text{ where } e_s + m > e_t, \text{ else } 0, \quad
       e_s = \frac{1}{n} \sum_i (s_i - y_i)^2, \quad e_t = \frac{1}{n} \sum_i (t_i - y_i)^2

    The teacher is a bound, no target: it may be wrong in the direction opposite to the label. The
    errors are means over the `n` outputs, where the paper has sums, so that neither the weight nor
    the margin depends on their number.

    Args:
        teacher_outputs: `[batch, ..., outputs]`.
        student_outputs: The same shape.
        labels: Numbers of the same shape; `[batch, ...]` for one output.
        margin: :math:`m`, in squared units of the labels; >= 0, not checked here.

    Returns:
        `[batch, ...]`. 0 where the student is better than the teacher by more than the margin.

    Raises:
        ModelError: The two models' shapes differ.
        DataError: The labels have another shape.

    Example:
        >>> bounded_regression([[2.0], [2.0]], [[4.0], [1.5]], labels=[1.0, 1.0]).numpy()
        array([9., 0.], dtype=float32)

    Source:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation"
        (2017), section 3.3.
    """
    teacher, student = pair(teacher_outputs, student_outputs)
    labels = tf.cast(labels, tf.float32)
    if student.shape[-1] == 1 and labels.shape.rank == student.shape.rank - 1:
        labels = labels[..., tf.newaxis]
    if not labels.shape.is_compatible_with(student.shape):
        raise DataError(
            "`labels` must be one number for each output, for a loss that reads them.",
            received=f"labels {labels.shape}, outputs {student.shape}",
            hint="Give the values that the student is to predict.",
        )
    student_error = tf.reduce_mean(tf.math.squared_difference(student, labels), axis=-1)
    teacher_error = tf.reduce_mean(tf.math.squared_difference(teacher, labels), axis=-1)
    return tf.where(student_error + margin > teacher_error, student_error, 0.0)


def inter_class(teacher_logits: Any, student_logits: Any, temperature: Any = 1.0) -> Any:
    r"""Squared temperature times one minus the correlation of an example's two distributions.

    .. math:: T^2 (1 - \rho(p, q)), \quad \rho(u, v) = \frac{\sum_c (u_c - \bar u)(v_c - \bar v)}
       {\sqrt{\sum_c (u_c - \bar u)^2 + 10^{-10}} \sqrt{\sum_c (v_c - \bar v)^2 + 10^{-10}}}

    with `p` and `q` as in `soft_targets`. The student may be less sure than the teacher, as long
    as it orders and spaces the classes likewise: `a q + b` costs what `q` costs. The factor `T^2`
    is that of the authors' code, as is a small number against dividing by zero.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0. Not checked here.

    Returns:
        `[batch, ...]`, from 0 where the distributions are equal to `2 * T^2`. Where one of them
        is uniform, `T^2`.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> inter_class([[9.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]]).numpy().round(4)
        array([0.], dtype=float32)

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), arXiv:2205.10536,
        section 4.
    """
    teacher, student = _probabilities(teacher_logits, student_logits, temperature)
    centered = [p - tf.reduce_mean(p, axis=-1, keepdims=True) for p in (teacher, student)]
    return temperature**2 * (1.0 - _correlation(*centered, axis=-1))


def intra_class(
    teacher_logits: Any, student_logits: Any, temperature: Any = 1.0, mask: Any = ()
) -> Any:
    r"""Squared temperature times one minus the correlation within each class, over the batch.

    .. math:: \frac{T^2}{C} \sum_c 1 - \rho(p_{\cdot c}, q_{\cdot c})

    with the correlation of `inter_class`, here between the probabilities that teacher and student
    give one class in all examples of the batch, and all their steps that count. So it depends on
    the batch: on its size, and on what is in it.

    Args:
        teacher_logits: `[batch, ..., classes]`; `[batch, ..., 1]` is binary, read as the logits
            `[0, t]`.
        student_logits: The same shape.
        temperature: Finite and > 0. Not checked here.
        mask: Bool `[batch, ...]` of the steps that count; `()`: all of them.

    Returns:
        `[batch]`: the one value of the batch, for each example. 0 where the distributions are
        equal and every class varies. A class whose probability does not vary counts `T^2 / C`; so
        the value of a single example is `T^2`, and teaches nothing.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> intra_class([[2.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]).numpy().round(4)
        array([2., 2.], dtype=float32)

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), arXiv:2205.10536,
        section 4.
    """
    teacher, student = _probabilities(teacher_logits, student_logits, temperature)
    counted = unmasked(student[..., 0], mask)[..., tf.newaxis]
    count = tf.reduce_sum(tf.cast(counted, tf.float32))
    rows = list(range(student.shape.rank - 1))

    def centered(p: Any) -> Any:
        total = tf.reduce_sum(tf.where(counted, p, 0.0), axis=rows)
        return tf.where(counted, p - tf.math.divide_no_nan(total, count), 0.0)

    correlation = _correlation(centered(teacher), centered(student), axis=rows)
    value = temperature**2 * (1.0 - tf.reduce_mean(correlation))
    return tf.fill([tf.shape(student)[0]], value)


def _probabilities(teacher: Any, student: Any, temperature: Any) -> tuple[Any, Any]:
    teacher, student = pair(teacher, student)
    return (
        tf.nn.softmax(with_two_classes(teacher) / temperature),
        tf.nn.softmax(with_two_classes(student) / temperature),
    )


def _correlation(one: Any, other: Any, *, axis: Any) -> Any:
    """Of centred values. The square root of a product would be 0 for small probabilities."""
    products = tf.reduce_sum(one * other, axis=axis)
    for values in (one, other):
        squares = tf.reduce_sum(tf.square(values), axis=axis)
        products *= tf.math.rsqrt(squares + _LEAST_SQUARES)
    return products

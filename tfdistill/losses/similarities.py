"""The losses on relations between the examples of a batch; `functional` names them all.

Each compares what an example is to all others, in the teacher's features and in the student's. So
the two may have any widths, and a value depends on the batch. The mean of the values over the
batch is the paper's loss, up to the factor that the function states.
"""

from __future__ import annotations

import math
from typing import Any

from tfdistill._keras import tf
from tfdistill.losses.shared import pair, rows, unit_vectors

__all__ = [
    "contrastive",
    "correlation_congruence",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
]

_LEAST_SQUARE = 1e-6  # of distances, in the batch's own scale: what float32 tells from 0
_LEAST_KERNEL = 1e-5  # far above the rounding of a cosine


def similarity_preserving(teacher_features: Any, student_features: Any) -> Any:
    r"""The squared difference of the examples' similarities.

    .. math:: \frac{1}{b} \sum_j (g^T_{ij} - g^S_{ij})^2, \quad
       g_{i} = \frac{(A A^T)_i}{\|(A A^T)_i\|}

    for the example `i`, with the features of the `b` examples as the rows of `A`. The mean over the
    batch is the paper's equation 4.

    Args:
        teacher_features: `[batch, ...]`.
        student_features: `[batch, ...]`, of any shape.

    Returns:
        `[batch]`. 0 where the features are equal, or are so but for a rotation and a factor.

    Example:
        >>> similarity_preserving([[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [3.0, 0.0]]).numpy()
        array([0., 0.], dtype=float32)

    Source:
        Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019), arXiv:1907.09682,
        section 3.
    """

    def similarities(features: Any) -> Any:
        scaled = tf.math.divide_no_nan(features, tf.stop_gradient(_largest(features)))
        return unit_vectors(tf.matmul(scaled, scaled, transpose_b=True))

    teacher, student = map(similarities, rows(teacher_features, student_features))
    return tf.math.divide_no_nan(
        tf.reduce_sum(tf.math.squared_difference(teacher, student), axis=-1), _batch(student)
    )


def relational_distance(teacher_features: Any, student_features: Any) -> Any:
    r"""Huber's loss of the distances to the other examples, each model's in its own unit.

    .. math:: \frac{1}{b - 1} \sum_{j \ne i} \ell(d^T_{ij} - d^S_{ij}), \quad
       d_{ij} = \|f_i - f_j\| / \mu, \quad \ell(x) = x^2 / 2 \text{ up to } |x| = 1,
       \text{ then } |x| - 1/2

    for the example `i` of `b`, with the mean distance :math:`\mu` between two examples of the
    batch. The paper's equation 8 is the sum over all pairs, this the mean, as in the authors'
    code, which however counts the distance of an example to itself.

    Args:
        teacher_features: `[batch, ...]`.
        student_features: `[batch, ...]`, of any shape.

    Returns:
        `[batch]`. 0 where the features are equal, or are so but for a rotation, a shift and a
        factor; and for a single example.

    Example:
        >>> relational_distance([[0.0], [1.0], [3.0]], [[7.0], [5.0], [1.0]]).numpy().round(4)
        array([0., 0., 0.], dtype=float32)

    Source:
        Park et al., "Relational Knowledge Distillation" (2019), arXiv:1904.05068, section 3.2.1.
    """
    teacher, student = map(_standard, rows(teacher_features, student_features))
    others = 1.0 - tf.eye(tf.shape(student)[0])
    neighbours = tf.maximum(_batch(student) - 1.0, 0.0)

    def distances(features: Any) -> Any:
        apart, squares = _squared_distances(features)
        length = tf.where(apart, tf.sqrt(squares), 0.0) * others
        mean = tf.math.divide_no_nan(tf.reduce_sum(length), _batch(features) * neighbours)
        return tf.math.divide_no_nan(length, mean)

    costs = _huber(distances(teacher), distances(student))
    return tf.math.divide_no_nan(tf.reduce_sum(costs, axis=-1), neighbours)


def relational_angle(teacher_features: Any, student_features: Any) -> Any:
    r"""Huber's loss of the cosines of the angles that two other examples are seen under.

    .. math:: \frac{1}{(b - 1)(b - 2)} \sum_{i \ne j} \sum_{k \ne i, j}
       \ell(\cos^T_{ijk} - \cos^S_{ijk}), \quad
       \cos_{ijk} = \left\langle \frac{f_i - f_j}{\|f_i - f_j\|},
       \frac{f_k - f_j}{\|f_k - f_j\|} \right\rangle

    for the example `j` of `b`, with :math:`\ell` as in `relational_distance`. The paper's equation
    11 is the sum over all triples, this the mean, as in the authors' code, which however counts
    triples with an example twice. Memory grows with the cube of the batch: half a GB for each
    model at 512.

    Args:
        teacher_features: `[batch, ...]`.
        student_features: `[batch, ...]`, of any shape.

    Returns:
        `[batch]`. 0 where the features are equal, or are so but for a rotation, a shift and a
        factor; and for fewer than three examples. Between equal examples an angle's cosine is 0.

    Example:
        >>> square = [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
        >>> turned = [[5.0, 5.0], [4.0, 6.0], [5.0, 7.0], [6.0, 6.0]]
        >>> relational_angle(square, turned).numpy().round(4)
        array([0., 0., 0., 0.], dtype=float32)

    Source:
        Park et al., "Relational Knowledge Distillation" (2019), arXiv:1904.05068, section 3.2.2.
    """
    teacher, student = map(_standard, rows(teacher_features, student_features))

    def cosines(features: Any) -> Any:
        """`[vertex, one, other]`."""  # by products alone: differences are [batch, batch, size]
        products = tf.matmul(features, features, transpose_b=True)
        to_vertex = products[:, :, tf.newaxis] + products[:, tf.newaxis, :]
        own = tf.linalg.diag_part(products)[:, tf.newaxis, tf.newaxis]
        apart, squares = _squared_distances(features)
        inverse = tf.where(apart, tf.math.rsqrt(squares), 0.0)
        between = products[tf.newaxis] - to_vertex + own
        return between * inverse[:, :, tf.newaxis] * inverse[:, tf.newaxis, :]

    batch = _batch(student)
    same = tf.eye(tf.shape(student)[0], dtype=tf.bool)
    distinct = ~(same[:, :, tf.newaxis] | same[:, tf.newaxis, :] | same[tf.newaxis])
    costs = tf.where(distinct, _huber(cosines(teacher), cosines(student)), 0.0)
    triples = tf.maximum((batch - 1.0) * (batch - 2.0), 0.0)
    return tf.math.divide_no_nan(tf.reduce_sum(costs, axis=[1, 2]), triples)


def probabilistic_transfer(teacher_features: Any, student_features: Any) -> Any:
    r"""The KL divergence of the probabilities that an example chooses another as its neighbour.

    .. math:: \sum_{j \ne i} p_{ij} \log \frac{p_{ij}}{q_{ij}}, \quad
       p_{ij} = \frac{K(f_i, f_j)}{\sum_{k \ne i} K(f_i, f_k)}, \quad
       K(x, y) = \frac{1 + \cos(x, y)}{2} + 10^{-5}

    for the example `i`, with `p` of the teacher's and `q` of the student's features. The paper's
    equation 7 is the sum over the batch. The authors' code takes each example for a neighbour of
    itself, too, and the mean over all pairs, which is why it needs weights of some thousands.

    Args:
        teacher_features: `[batch, ...]`.
        student_features: `[batch, ...]`, of any shape.

    Returns:
        `[batch]`, in nats. 0 where the features are equal, or are so but for a rotation and a
        factor for each example; and for fewer than three examples.

    Example:
        >>> features = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
        >>> turned = [[0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]]
        >>> probabilistic_transfer(features, turned).numpy().round(4)
        array([0., 0., 0.], dtype=float32)

    Source:
        Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer"
        (2018), arXiv:1803.10837, section 3, with the cosine kernel of equation 6.
    """
    teacher, student = rows(teacher_features, student_features)
    itself = tf.eye(tf.shape(student)[0], dtype=tf.bool)

    def log_probabilities(features: Any) -> Any:
        unit = unit_vectors(features)
        cosines = tf.clip_by_value(tf.matmul(unit, unit, transpose_b=True), -1.0, 1.0)
        kernel = (1.0 + cosines) / 2.0 + _LEAST_KERNEL
        total = tf.reduce_sum(tf.where(itself, 0.0, kernel), axis=-1, keepdims=True)
        return tf.math.log(kernel) - tf.math.log(tf.maximum(total, _LEAST_KERNEL))

    p, q = log_probabilities(teacher), log_probabilities(student)
    return tf.reduce_sum(tf.where(itself, 0.0, tf.exp(p) * (p - q)), axis=-1)


def correlation_congruence(
    teacher_features: Any, student_features: Any, gamma: float = 0.4, order: int = 2
) -> Any:
    r"""The squared difference of the examples' correlations, by a Gaussian kernel's Taylor series.

    .. math:: \frac{1}{b} \sum_j (k(f^T_i, f^T_j) - k(f^S_i, f^S_j))^2, \quad
       k(x, y) = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} \cos(x, y)^p

    for the example `i` of `b`. The mean over the batch is the paper's equation 4, with the kernel
    of its equation 7. The paper first maps both models' features to one width by trained layers;
    correlations need none, and are of the features themselves here.

    Args:
        teacher_features: `[batch, ...]`.
        student_features: `[batch, ...]`, of any shape.
        gamma: :math:`\gamma`, > 0: how fast a correlation falls with the distance. Not checked
            here.
        order: :math:`P`, >= 1. Not checked here.

    Returns:
        `[batch]`. 0 where the features are equal, or are so but for a rotation and a factor for
        each example.

    Example:
        >>> right, same = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 0.0]]
        >>> correlation_congruence(right, same, gamma=0.5, order=1).numpy().round(4)
        array([0.0677, 0.0677], dtype=float32)

    Source:
        Peng et al., "Correlation Congruence for Knowledge Distillation" (2019), arXiv:1904.01802,
        section 3.
    """
    teacher, student = rows(teacher_features, student_features)

    def correlations(features: Any) -> Any:
        unit = unit_vectors(features)
        cosines = tf.matmul(unit, unit, transpose_b=True)
        series = tf.ones_like(cosines)  # by Horner's rule
        for power in range(order, 0, -1):
            series = 1.0 + series * cosines * (2.0 * gamma / power)
        return math.exp(-2.0 * gamma) * series

    squares = tf.math.squared_difference(correlations(teacher), correlations(student))
    return tf.math.divide_no_nan(tf.reduce_sum(squares, axis=-1), _batch(student))


def contrastive(teacher_features: Any, student_features: Any, temperature: Any = 0.07) -> Any:
    r"""How well a student's example is told by the teacher's features of the batch (InfoNCE).

    .. math:: -\log \frac{e^{\cos(s_i, t_i) / \tau}}{\sum_j e^{\cos(s_i, t_j) / \tau}}

    for the example `i`, with the student's features `s` already projected to the width of the
    teacher's `t`. This is the objective of contrastive representation distillation in its in-batch
    form: the paper draws thousands of others from a memory of all training examples, prefers those
    of other labels, maps the teacher's features, too, and has a noise-contrastive loss; here the
    others are those of the batch, and the loss is InfoNCE with the student's example as anchor.

    Args:
        teacher_features: `[batch, width]`.
        student_features: The same shape.
        temperature: :math:`\tau`, finite and > 0. Not checked here.

    Returns:
        `[batch]`, in nats. `log(batch)` where the features tell nothing. Equal features are not
        the least, except where the teacher's examples are opposite: then it tends to 0.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> told = contrastive([[1.0, 0.0], [-1.0, 0.0]], [[3.0, 0.0], [-2.0, 0.0]])
        >>> told.numpy().round(4)
        array([0., 0.], dtype=float32)

    Source:
        Tian, Krishnan and Isola, "Contrastive Representation Distillation" (2020),
        arXiv:1910.10699, section 3; the loss as in van den Oord et al. (2018), arXiv:1807.03748,
        equation 4.
    """
    teacher, student = (unit_vectors(x) for x in pair(teacher_features, student_features))
    logits = tf.matmul(student, teacher, transpose_b=True) / temperature
    return tf.reduce_logsumexp(logits, axis=-1) - tf.linalg.diag_part(logits)


def _batch(features: Any) -> Any:
    return tf.cast(tf.shape(features)[0], tf.float32)


def _largest(features: Any) -> Any:
    """The largest absolute value, 0 of an empty batch."""
    return tf.maximum(tf.reduce_max(tf.abs(features)), 0.0)


def _standard(features: Any) -> Any:
    """Centred, and with a mean square length of 1: distances lose no digits at any scale.

    What is made of these must not depend on shift and factor, which get no gradient.
    """
    features = tf.math.divide_no_nan(features, tf.stop_gradient(_largest(features)))
    mean = tf.math.divide_no_nan(tf.reduce_sum(features, axis=0), _batch(features))
    centered = features - tf.stop_gradient(mean)
    squares = tf.math.divide_no_nan(tf.reduce_sum(tf.square(centered)), _batch(features))
    return tf.math.divide_no_nan(centered, tf.stop_gradient(tf.sqrt(squares)))


def _squared_distances(features: Any) -> tuple[Any, Any]:
    """Which two examples of `_standard` features are apart, and their squared distance, else 1.

    Both `[batch, batch]`. A root of 0 would have no gradient.
    """
    products = tf.matmul(features, features, transpose_b=True)
    own = tf.linalg.diag_part(products)
    squares = own[:, tf.newaxis] + own[tf.newaxis] - 2.0 * products
    apart = squares > _LEAST_SQUARE
    return apart, tf.where(apart, squares, 1.0)


def _huber(one: Any, other: Any) -> Any:
    far = tf.abs(one - other)
    return tf.where(far <= 1.0, 0.5 * tf.square(far), far - 0.5)

"""The losses on what layers put out, as pure functions; `functional` names them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tfdistill._keras import tf
from tfdistill.losses.shared import mean_over_steps, pair, same_places, unit_vectors

__all__ = [
    "attention_scores",
    "attention_transfer",
    "cosine_hidden_states",
    "flow",
    "fsp",
    "hidden_states",
    "hint",
    "neuron_selectivity",
    "weight_mse",
]


def hint(teacher_features: Any, student_features: Any) -> Any:
    r"""Half the mean squared difference of two layers' outputs.

    .. math:: \frac{1}{2n} \sum_i (u_i - r_i)^2

    with teacher features `u`, student features `r` (already projected to the teacher's width)
    and `n` elements an example. The paper's equation 3 is the sum, without `1 / n`; the mean
    keeps the weight independent of the layer's size.

    Args:
        teacher_features: `[batch, ...]`, at least one axis after the batch.
        student_features: The same shape; of `[batch, height, width, channels]` the larger is
            brought to the size of the smaller.

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
    teacher, student = _at_same_places(teacher_features, student_features)
    per_example_axes = list(range(1, teacher.shape.rank))
    return 0.5 * tf.reduce_mean(tf.math.squared_difference(teacher, student), axis=per_example_axes)


def attention_transfer(teacher_features: Any, student_features: Any) -> Any:
    r"""The squared distance of two maps of where a layer is active.

    .. math:: \left\| \frac{q_T}{\|q_T\|} - \frac{q_S}{\|q_S\|} \right\|^2, \quad
       q = \sum_c A_c^2

    with the activations :math:`A_c` of each channel, and `q` as one vector of all places. The
    paper's equation 2 has half the distance itself, whose gradient is infinite at 0; the authors'
    code has the square, as here, but its mean over the places. A sum does not need another weight
    for each resolution: it is `2 - 2 cos`.

    Args:
        teacher_features: `[batch, ..., channels]`, one axis of places or more.
        student_features: The same rank, any number of channels; of two spatial axes or more the
            larger map is brought to the size of the smaller.

    Returns:
        `[batch]`, from 0 where both are active at the same places, to 2. A layer that is nowhere
        active has the map 0.

    Raises:
        ModelError: The places differ.

    Example:
        >>> attention_transfer([[[3.0], [0.0]]], [[[0.0, 1.0], [0.0, 0.0]]]).numpy()
        array([0.], dtype=float32)

    Source:
        Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), arXiv:1612.03928,
        section 3.1, equation 2 with `p = 2`.
    """

    def energy(features: Any) -> Any:
        features = tf.cast(features, tf.float32)
        axes = list(range(1, features.shape.rank))
        # Of an example's own scale, which the map does not have: squares could overflow.
        largest = tf.stop_gradient(tf.reduce_max(tf.abs(features), axis=axes, keepdims=True))
        scaled = tf.math.divide_no_nan(features, largest)
        return tf.reduce_sum(tf.square(scaled), axis=-1, keepdims=True)

    teacher, student = _at_same_places(energy(teacher_features), energy(student_features))
    size = _size(student)
    maps = [unit_vectors(tf.reshape(q, [tf.shape(q)[0], size])) for q in (teacher, student)]
    return tf.reduce_sum(tf.math.squared_difference(*maps), axis=-1)


def neuron_selectivity(
    teacher_features: Any,
    student_features: Any,
    kernel: Literal["polynomial", "linear"] = "polynomial",
) -> Any:
    r"""The squared maximum mean discrepancy of what the channels of two layers are selective for.

    .. math:: \frac{1}{C_T^2} \sum_{i,j} k(f_i, f_j) + \frac{1}{C_S^2} \sum_{i,j} k(g_i, g_j)
       - \frac{2}{C_T C_S} \sum_{i,j} k(f_i, g_j)

    with a channel's activations at all places as one vector of length 1, `f` the teacher's and
    `g` the student's: a layer is a sample of so many patterns, whose number and order do not
    matter. :math:`k(x, y) = (x^T y)^2` or :math:`x^T y`. The paper's third kernel, the Gaussian,
    has a width that depends on the batch, and is left out.

    Args:
        teacher_features: `[batch, ..., channels]`, one axis of places or more.
        student_features: The same rank, any number of channels; of two spatial axes or more the
            larger map is brought to the size of the smaller.
        kernel: "polynomial", of degree 2 and without constant, as the paper's; or "linear".

    Returns:
        `[batch]`. 0 where the channels are equal, in any order.

    Raises:
        ModelError: The places differ.

    Example:
        >>> swapped = neuron_selectivity([[[1.0, 0.0], [0.0, 2.0]]], [[[0.0, 3.0], [1.0, 0.0]]])
        >>> swapped.numpy()
        array([0.], dtype=float32)

    Source:
        Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"
        (2017), arXiv:1707.01219, section 4.
    """
    teacher, student = _at_same_places(teacher_features, student_features, channels=False)
    degree = {"polynomial": 2, "linear": 1}[kernel]

    def patterns(features: Any) -> Any:
        channels = features.shape[-1] or tf.shape(features)[-1]
        flat = tf.reshape(features, [tf.shape(features)[0], _size(features[..., :1]), channels])
        return unit_vectors(tf.linalg.matrix_transpose(flat))  # [batch, channels, places]

    def mean(one: Any, other: Any) -> Any:
        products = tf.matmul(one, other, transpose_b=True)
        return tf.reduce_mean(products**degree, axis=[1, 2])

    f, g = patterns(teacher), patterns(student)
    return mean(f, f) + mean(g, g) - 2.0 * mean(f, g)


def flow(first: Any, second: Any) -> Any:
    r"""How the channels of one layer go together with those of a later one.

    .. math:: G_{ij} = \frac{1}{hw} \sum_{p} F_{pi} H_{pj}

    over the `hw` places of both layers.

    Args:
        first: `[batch, ..., channels]`, one axis of places or more.
        second: The same rank, any number of channels; of two spatial axes or more the larger is
            brought to the size of the smaller. The paper has the maximum there, this the mean.

    Returns:
        float32 `[batch, channels of first, channels of second]`.

    Raises:
        ModelError: The places differ.

    Example:
        >>> flow([[[1.0], [3.0]]], [[[2.0], [0.0]]]).numpy()
        array([[[1.]]], dtype=float32)
    """
    first, second = same_places(tf.cast(first, tf.float32), tf.cast(second, tf.float32))
    require_same_places(first, second)
    places = _size(second[..., :1])
    first, second = (tf.reshape(f, [tf.shape(f)[0], places, f.shape[-1]]) for f in (first, second))
    return tf.matmul(first, second, transpose_a=True) / tf.cast(places, tf.float32)


def fsp(teacher_flow: Any, student_flow: Any) -> Any:
    r"""The mean squared difference of two flows between layers.

    .. math:: \frac{1}{nm} \sum_{ij} (G^T_{ij} - G^S_{ij})^2

    with the `n x m` matrices of `flow`. The paper's equation 2 is the sum, without `1 / nm`; the
    mean keeps the weight independent of the layers' widths.

    Args:
        teacher_flow: `[batch, n, m]`.
        student_flow: The same shape.

    Returns:
        `[batch]`. 0 where they are equal.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> fsp([[[1.0, 2.0]]], [[[1.0, 4.0]]]).numpy()
        array([2.], dtype=float32)

    Source:
        Yim et al., "A Gift from Knowledge Distillation" (2017), section 3.2 and 3.3, equations 1
        and 2.
    """
    teacher, student = pair(teacher_flow, student_flow)
    return tf.reduce_mean(tf.math.squared_difference(teacher, student), axis=[1, 2])


def hidden_states(teacher_states: Any, student_states: Any, mask: Any = ()) -> Any:
    r"""The mean squared difference of the states at the steps that count.

    .. math:: \frac{1}{|M| d} \sum_{t \in M} \sum_i (h^T_{ti} - h^S_{ti})^2

    with the student's states already projected to the teacher's width `d`. TinyBERT's code counts
    all steps, also padding.

    Args:
        teacher_states: `[batch, ..., width]`.
        student_states: The same shape.
        mask: Bool `[batch, ...]` of the steps `M` that count; `()`: all of them.

    Returns:
        `[batch]`. 0 where the states are equal, and where no step counts.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> hidden_states([[[1.0, 3.0], [9.0, 9.0]]], [[[1.0, 1.0], [0.0, 0.0]]],
        ...               [[True, False]]).numpy()
        array([2.], dtype=float32)

    Source:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding" (2020),
        arXiv:1909.10351, section 3.1, equation 8, and 9 for embeddings.
    """
    teacher, student = pair(teacher_states, student_states)
    squares = tf.reduce_mean(tf.math.squared_difference(teacher, student), axis=-1)
    return mean_over_steps(squares, _as_mask(mask))


def cosine_hidden_states(teacher_states: Any, student_states: Any, mask: Any = ()) -> Any:
    r"""One minus the cosine between the states, in the mean over the steps that count.

    .. math:: \frac{1}{|M|} \sum_{t \in M} 1 - \cos(h^T_t, h^S_t)

    with the student's states already projected to the teacher's width. DistilBERT's code takes
    the mean over all steps of the batch at once; here a long text counts as much as a short one.

    Args:
        teacher_states: `[batch, ..., width]`.
        student_states: The same shape.
        mask: Bool `[batch, ...]` of the steps `M` that count; `()`: all of them.

    Returns:
        `[batch]`, from 0 where the states have the same direction, to 2. A state of zeros counts 1.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> cosine_hidden_states([[1.0, 0.0], [1.0, 0.0]], [[5.0, 0.0], [0.0, 1.0]]).numpy()
        array([0., 1.], dtype=float32)

    Source:
        Sanh et al., "DistilBERT, a distilled version of BERT" (2019), arXiv:1910.01108, section 2.
    """
    teacher, student = pair(teacher_states, student_states)
    cosines = tf.reduce_sum(unit_vectors(teacher) * unit_vectors(student), axis=-1)
    return mean_over_steps(1.0 - cosines, _as_mask(mask))


def attention_scores(teacher_scores: Any, student_scores: Any, mask: Any = ()) -> Any:
    r"""The mean squared difference of the scores of two attention layers, before their softmax.

    .. math:: \frac{1}{h |M|} \sum_{i=1}^{h} \sum_{(q,k) \in M} (A^T_{iqk} - A^S_{iqk})^2, \quad
       A_i = Q_i K_i^T / \sqrt{d}

    over `h` heads. As in the paper the scores are not normalized, which it found to be learned
    faster and better. Its code sets the scores of masked keys to 0 and counts them; here the mean
    is over the pairs `M` of a query and a key that count.

    Args:
        teacher_scores: `[batch, heads, queries, keys]`.
        student_scores: The same shape.
        mask: Bool `[batch, 1, queries, keys]` or `[batch, heads, queries, keys]`; `()`: all.

    Returns:
        `[batch]`. 0 where the scores are equal, and where no pair counts.

    Raises:
        ModelError: The two shapes differ.

    Example:
        >>> attention_scores([[[[1.0, 2.0]]]], [[[[1.0, 5.0]]]]).numpy()
        array([4.5], dtype=float32)

    Source:
        Jiao et al., "TinyBERT" (2020), arXiv:1909.10351, section 3.1, equation 7.
    """
    teacher, student = pair(teacher_scores, student_scores)
    return mean_over_steps(tf.math.squared_difference(teacher, student), _as_mask(mask))


def weight_mse(teacher_weights: Sequence[Any], student_weights: Sequence[Any]) -> Any:
    r"""The mean squared difference of two layers' weights.

    .. math:: \frac{1}{n} \sum_i (w^T_i - w^S_i)^2

    over all `n` numbers of all weights of the layer.

    Args:
        teacher_weights: Tensors of any shapes.
        student_weights: As many, of the same shapes but for axes of size 1.

    Returns:
        One number. 0 where the weights are equal.

    Example:
        >>> float(weight_mse([[[1.0, 2.0]], [0.0]], [[[1.0, 5.0]], [3.0]]))
        6.0

    Source:
        The distance to the starting point of Li et al., "Explicit Inductive Bias for Transfer
        Learning with Convolutional Networks" (2018), arXiv:1802.01483, section 3.2, as a mean;
        with the teacher as the starting point.
    """
    squares, count = [], 0.0
    for theirs, ours in zip(teacher_weights, student_weights, strict=True):
        ours = tf.cast(ours, tf.float32)
        theirs = tf.reshape(tf.cast(theirs, tf.float32), tf.shape(ours))
        squares.append(tf.reduce_sum(tf.math.squared_difference(tf.stop_gradient(theirs), ours)))
        count += tf.cast(tf.size(ours), tf.float32)
    return tf.add_n(squares) / count


def _at_same_places(teacher: Any, student: Any, *, channels: bool = True) -> tuple[Any, Any]:
    """Both as `pair` gives them, at the same places; with any channels where they do not matter."""
    teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
    teacher, student = same_places(teacher, tf.cast(student, tf.float32))
    if channels:
        return pair(teacher, student)
    require_same_places(teacher, student)
    return teacher, student


def require_same_places(one: Any, other: Any) -> None:
    """Refuses features whose known axes but the last differ.

    Raises:
        ModelError: They do.
    """
    pair(one[..., 0], other[..., 0])


def _size(values: Any) -> Any:
    """Number of values of each example: known, if it is."""
    known = values.shape[1:].num_elements()
    return tf.reduce_prod(tf.shape(values)[1:]) if known is None else known


def _as_mask(mask: Any) -> Any:
    return mask if isinstance(mask, tuple) else tf.convert_to_tensor(mask)

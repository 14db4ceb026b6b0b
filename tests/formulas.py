"""The losses' formulas in float64, written a second time with NumPy alone, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfdistill._keras import tf
from tfdistill.losses import FLSW, functional

Array = Any
Function = Callable[[Array, Array], Array]


def with_two_classes(logits: Array) -> Array:
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    return logits


def log_probabilities(logits: Array, temperature: float = 1.0) -> Array:
    scaled = with_two_classes(logits) / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def soft_targets(teacher: Array, student: Array, temperature: float) -> Array:
    p, q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(axis=-1)


def adaptive_temperatures(
    adaptive: Any, teacher: Array, student: Array, counted: Array = True
) -> Array:
    """TextBrewer's `flsw` and `cwsm`; the mean is of the rows that are counted."""
    teacher, student = (with_two_classes(logits) for logits in (teacher, student))
    if isinstance(adaptive, FLSW):
        t, s = (z / (np.sqrt((z**2).sum(-1, keepdims=True)) + 1e-4) for z in (teacher, student))
        weights = np.maximum(1 - (t * s).sum(axis=-1), 0) ** adaptive.gamma
    else:
        weights = 1 / (np.exp(log_probabilities(student)).max(axis=-1) + 1e-3)
    counted = np.broadcast_to(counted, weights.shape)
    mean = weights[counted].mean() if counted.any() else 0.0
    return np.maximum(adaptive.base + adaptive.beta * (mean - weights), adaptive.minimum)


def entropy(teacher: Array, temperature: float) -> Array:
    logs = log_probabilities(teacher, temperature)
    return -(np.exp(logs) * logs).sum(axis=-1)


def soft_cross_entropy(teacher: Array, student: Array, temperature: float) -> Array:
    p = np.exp(log_probabilities(teacher, temperature))
    return -(temperature**2) * (p * log_probabilities(student, temperature)).sum(axis=-1)


def jensen_shannon(teacher: Array, student: Array, temperature: float) -> Array:
    """As the entropy of the mean less the mean of the entropies, Lin's own definition."""
    p, q = (np.exp(log_probabilities(x, temperature)) for x in (teacher, student))

    def of(distribution: Array) -> Array:
        logs = np.log(np.where(distribution > 0, distribution, 1.0))
        return -(distribution * logs).sum(axis=-1)

    return temperature**2 * (of((p + q) / 2) - of(p) / 2 - of(q) / 2)


def standardized(logits: Array) -> Array:
    logits = np.asarray(logits, np.float64)
    variance = logits.var(axis=-1, keepdims=True)
    return (logits - logits.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6)


def decoupled_kd(
    teacher: Array, student: Array, labels: Array, temperature: float, alpha: float, beta: float
) -> Array:
    """Class by class, with the label's class taken out of the arrays."""
    p, q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    values = np.zeros(p.shape[:-1])
    for index in np.ndindex(values.shape):
        label = int(labels[index])
        among = [np.delete(logs[index], label) for logs in (p, q)]
        rest = [np.logaddexp.reduce(logs) for logs in among]
        binary = np.exp(p[index][label]) * (p[index][label] - q[index][label])
        binary += np.exp(rest[0]) * (rest[0] - rest[1])
        among_p, among_q = (logs - whole for logs, whole in zip(among, rest, strict=True))
        values[index] = alpha * binary + beta * (np.exp(among_p) * (among_p - among_q)).sum()
    return temperature**2 * values


def hard_targets(
    teacher: Array, student: Array, threshold: float = 0.0, smoothing: float = 0.0
) -> Array:
    p, q = log_probabilities(teacher), log_probabilities(student)
    classes = p.shape[-1]
    targets = np.eye(classes)[p.argmax(axis=-1)] * (1 - smoothing) + smoothing / classes
    sure = np.exp(p.max(axis=-1)) >= threshold
    return np.where(sure, -(targets * q).sum(axis=-1), 0.0)


def logits_mse(teacher: Array, student: Array) -> Array:
    difference = np.asarray(teacher, np.float64) - np.asarray(student, np.float64)
    return np.square(difference).sum(axis=-1) / difference.shape[-1]


def centered_mse(teacher: Array, student: Array) -> Array:
    t, s = (x - x.mean(axis=-1, keepdims=True) for x in map(with_two_classes, (teacher, student)))
    return np.square(s - t).sum(axis=-1) / t.shape[-1]


def probability_mse(teacher: Array, student: Array, temperature: float) -> Array:
    p, q = (np.exp(log_probabilities(x, temperature)) for x in (teacher, student))
    return temperature**2 * np.square(p - q).sum(axis=-1)


def virtual_teacher(student: Array, labels: Array, probability: float, temperature: float) -> Array:
    """Class by class; the made-up distribution to the power of 1 / T, normalised."""
    q = log_probabilities(student, temperature)
    values = np.zeros(q.shape[:-1])
    for index in np.ndindex(values.shape):
        made_up = np.full(q.shape[-1], (1 - probability) / (q.shape[-1] - 1))
        made_up[int(labels[index])] = probability
        p = made_up ** (1 / temperature) / (made_up ** (1 / temperature)).sum()
        values[index] = temperature**2 * (p * (np.log(p) - q[index])).sum()
    return values


def binary_targets(teacher: Array, student: Array, temperature: float) -> Array:
    """The mean of what soft targets are of each label alone."""
    alone = [
        soft_targets(teacher[..., i : i + 1], student[..., i : i + 1], temperature)
        for i in range(np.shape(teacher)[-1])
    ]
    return np.mean(alone, axis=0)


def bounded_regression(teacher: Array, student: Array, labels: Array, margin: float = 0.0) -> Array:
    e_s, e_t = (logits_mse(labels, x) for x in (student, teacher))
    return np.where(e_s + margin > e_t, e_s, 0.0)


def correlation(one: Array, other: Array) -> float:
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / np.sqrt((one**2).sum() + 1e-10) / np.sqrt((other**2).sum() + 1e-10)


def inter_class(teacher: Array, student: Array, temperature: float) -> Array:
    p, q = (np.exp(log_probabilities(x, temperature)) for x in (teacher, student))
    values = np.zeros(p.shape[:-1])
    for index in np.ndindex(values.shape):
        values[index] = temperature**2 * (1 - correlation(p[index], q[index]))
    return values


def intra_class(teacher: Array, student: Array, temperature: float) -> Array:
    p, q = (np.exp(log_probabilities(x, temperature)) for x in (teacher, student))
    p, q = (x.reshape([-1, x.shape[-1]]) for x in (p, q))
    if not len(p):
        return np.zeros(0)
    value = np.mean([1 - correlation(p[:, c], q[:, c]) for c in range(p.shape[-1])])
    return np.full(len(teacher), temperature**2 * value)


def hint(teacher: Array, student: Array) -> Array:
    difference = np.asarray(teacher, np.float64) - np.asarray(student, np.float64)
    return np.array([0.5 * np.square(example).sum() / example.size for example in difference])


class Pair(NamedTuple):
    ours: Function
    formula: Function


def labels_of(logits: Any) -> Any:
    """Class numbers 0, 1, 2, ... in turn, for logits of any shape, in a graph too."""
    logits = tf.convert_to_tensor(logits)
    shape = tf.shape(logits)[:-1]
    numbers = tf.range(tf.reduce_prod(shape)) % max(2, logits.shape[-1])
    return tf.reshape(numbers, shape)


PAIRS = {
    "soft_targets": Pair(
        lambda t, s: functional.soft_targets(t, s, 3.0), lambda t, s: soft_targets(t, s, 3.0)
    ),
    "soft_cross_entropy": Pair(
        lambda t, s: functional.soft_cross_entropy(t, s, 3.0),
        lambda t, s: soft_cross_entropy(t, s, 3.0),
    ),
    "reverse_kl": Pair(
        lambda t, s: functional.reverse_kl(t, s, 3.0), lambda t, s: soft_targets(s, t, 3.0)
    ),
    "jensen_shannon": Pair(
        lambda t, s: functional.jensen_shannon(t, s, 2.0), lambda t, s: jensen_shannon(t, s, 2.0)
    ),
    "standardized": Pair(
        lambda t, s: functional.soft_targets(
            functional.standardized(t), functional.standardized(s), 2.0
        ),
        lambda t, s: soft_targets(standardized(t), standardized(s), 2.0),
    ),
    "decoupled_kd": Pair(
        lambda t, s: functional.decoupled_kd(t, s, labels_of(s), 2.0, 1.5, 4.0),
        lambda t, s: decoupled_kd(t, s, labels_of(s).numpy(), 2.0, 1.5, 4.0),
    ),
    "virtual_teacher": Pair(
        lambda t, s: functional.virtual_teacher(s, labels_of(s), 0.9, 2.0),
        lambda t, s: virtual_teacher(s, labels_of(s).numpy(), 0.9, 2.0),
    ),
    "binary_targets": Pair(
        lambda t, s: functional.binary_targets(t, s, 2.0), lambda t, s: binary_targets(t, s, 2.0)
    ),
    "hard_targets": Pair(functional.hard_targets, hard_targets),
    "sure_hard_targets": Pair(
        lambda t, s: functional.hard_targets(t, s, 0.4, 0.1),
        lambda t, s: hard_targets(t, s, 0.4, 0.1),
    ),
    "logits_mse": Pair(functional.logits_mse, logits_mse),
    "centered_mse": Pair(functional.centered_mse, centered_mse),
    "probability_mse": Pair(
        lambda t, s: functional.probability_mse(t, s, 2.0), lambda t, s: probability_mse(t, s, 2.0)
    ),
    "bounded_regression": Pair(
        lambda t, s: functional.bounded_regression(t, s, tf.zeros_like(s)),
        lambda t, s: bounded_regression(t, s, np.zeros_like(s)),
    ),
    "inter_class": Pair(
        lambda t, s: functional.inter_class(t, s, 2.0), lambda t, s: inter_class(t, s, 2.0)
    ),
    "intra_class": Pair(
        lambda t, s: functional.intra_class(t, s, 2.0), lambda t, s: intra_class(t, s, 2.0)
    ),
    "hint": Pair(functional.hint, hint),
}


def random_pair(*shape: int, scale: float = 3.0, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(scale=scale, size=(2, *shape))
    return teacher.astype(np.float32), student.astype(np.float32)


def gradient(ours: Function, teacher: Array, student: Array) -> Array:
    """Of the sum over the batch, so each row is its example's own gradient."""
    variable = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        total = tf.reduce_sum(ours(tf.convert_to_tensor(teacher), variable))
    return tape.gradient(total, variable).numpy()


def finite_differences(formula: Function, teacher: Array, student: Array) -> Array:
    student = student.astype(np.float64)
    slope, step = np.zeros_like(student), 1e-5
    for index in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (formula(teacher, up) - formula(teacher, down)).sum() / (2 * step)
    return slope


def r_squared(outputs: Array, targets: Array) -> Array:
    """Of each number, by its definition."""
    outputs, targets = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    left = ((targets - outputs) ** 2).sum(axis=0)
    return 1 - left / ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)


def mean_absolute(outputs: Array, targets: Array) -> Array:
    """Error of each number."""
    return np.abs(np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)).mean(axis=0)

"""The losses on features and relations in float64, written a second time with NumPy alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from formulas import Array, Function, hint

from tfdistill.losses import functional


def wide(values: Array) -> Array:
    return np.asarray(values, np.float64)


def unit(vector: Array) -> Array:
    length = math.sqrt((vector**2).sum())
    return vector / length if length else vector


def cosine(one: Array, other: Array) -> float:
    return float((unit(one) * unit(other)).sum())


def attention_transfer(teacher: Array, student: Array) -> Array:
    maps = [[unit((wide(a) ** 2).sum(-1).ravel()) for a in x] for x in (teacher, student)]
    return np.array([((t - s) ** 2).sum() for t, s in zip(*maps, strict=True)])


def neuron_selectivity(teacher: Array, student: Array, kernel: str = "polynomial") -> Array:
    def of(one: Array, other: Array) -> float:
        power = 2 if kernel == "polynomial" else 1
        pairs = itertools.product(range(one.shape[-1]), range(other.shape[-1]))
        cosines = [cosine(one[..., i].ravel(), other[..., j].ravel()) for i, j in pairs]
        return float(np.mean(np.power(cosines, power)))

    examples = zip(wide(teacher), wide(student), strict=True)
    return np.array([of(t, t) + of(s, s) - 2 * of(t, s) for t, s in examples])


def flow(first: Array, second: Array) -> Array:
    flows = []
    for f, h in zip(wide(first), wide(second), strict=True):
        flows.append(np.mean([np.outer(f[p], h[p]) for p in np.ndindex(f.shape[:-1])], axis=0))
    return np.array(flows)


def hidden_states(teacher: Array, student: Array, mask: Array | None = None) -> Array:
    steps = ((wide(teacher) - wide(student)) ** 2).mean(-1)
    return mean_of_steps(steps, mask)


def cosine_hidden_states(teacher: Array, student: Array, mask: Array | None = None) -> Array:
    steps = np.zeros(np.shape(student)[:-1])
    for index in np.ndindex(steps.shape):
        steps[index] = 1 - cosine(wide(teacher)[index], wide(student)[index])
    return mean_of_steps(steps, mask)


def mean_of_steps(steps: Array, mask: Array | None) -> Array:
    if mask is None:
        mask = np.ones_like(steps, bool)
    chosen = [row[counts] for row, counts in zip(steps, mask, strict=True)]
    return np.array([row.mean() if row.size else 0.0 for row in chosen])


def flat(features: Array) -> Array:
    return wide(features).reshape(len(features), -1)


def similarity_preserving(teacher: Array, student: Array) -> Array:
    gram = [np.array([unit(row) for row in flat(x) @ flat(x).T]) for x in (teacher, student)]
    return ((gram[0] - gram[1]) ** 2).mean(axis=1)


def huber(difference: float) -> float:
    far = abs(difference)
    return far**2 / 2 if far <= 1 else far - 0.5


def relational_distance(teacher: Array, student: Array) -> Array:
    def distances(features: Array) -> Array:
        rows = flat(features)
        apart = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))
        others = [apart[i, j] for i, j in itertools.permutations(range(len(rows)), 2)]
        mean = np.mean(others) if others else 0
        return apart / mean if mean else apart

    t, s = distances(teacher), distances(student)
    values = np.zeros(len(t))
    for i in range(len(t)):
        costs = [huber(t[i, j] - s[i, j]) for j in range(len(t)) if j != i]
        values[i] = np.mean(costs) if costs else 0
    return values


def relational_angle(teacher: Array, student: Array) -> Array:
    t, s = flat(teacher), flat(student)
    values = np.zeros(len(t))
    for j in range(len(t)):
        costs = [
            huber(cosine(t[i] - t[j], t[k] - t[j]) - cosine(s[i] - s[j], s[k] - s[j]))
            for i, k in itertools.permutations([n for n in range(len(t)) if n != j], 2)
        ]
        values[j] = np.mean(costs) if costs else 0
    return values


def probabilistic_transfer(teacher: Array, student: Array) -> Array:
    def chosen(features: Array, i: int) -> Array:
        rows = flat(features)
        kernel = [(1 + cosine(rows[i], rows[j])) / 2 + 1e-5 for j in range(len(rows)) if j != i]
        return np.array(kernel) / np.sum(kernel)

    values = np.zeros(len(teacher))
    for i in range(len(teacher)):
        p, q = chosen(teacher, i), chosen(student, i)
        values[i] = (p * np.log(p / q)).sum()
    return values


def correlation_congruence(
    teacher: Array, student: Array, gamma: float = 0.4, order: int = 2
) -> Array:
    def kernel(one: Array, other: Array) -> float:
        powers = range(order + 1)
        terms = [(2 * gamma * cosine(one, other)) ** p / math.factorial(p) for p in powers]
        return math.exp(-2 * gamma) * sum(terms)

    values = np.zeros(len(teacher))
    for i, (t, s) in enumerate(zip(flat(teacher), flat(student), strict=True)):
        theirs, ours = ([kernel(x, y) for y in flat(z)] for x, z in ((t, teacher), (s, student)))
        values[i] = np.mean((np.array(theirs) - ours) ** 2)
    return values


def contrastive(teacher: Array, student: Array, temperature: float = 0.07) -> Array:
    values = []
    for i, s in enumerate(wide(student)):
        logits = np.array([cosine(s, t) for t in wide(teacher)]) / temperature
        values.append(np.logaddexp.reduce(logits) - logits[i])
    return np.array(values)


def weight_mse(teacher: Sequence[Array], student: Sequence[Array]) -> float:
    squares = [
        ((wide(t).ravel() - wide(s).ravel()) ** 2) for t, s in zip(teacher, student, strict=True)
    ]
    return float(np.concatenate(squares).mean())


def averaged(image: Array, height: int, width: int) -> Array:
    """An image `[h, w, c]` at a smaller size, by repeating each place until the sizes divide."""
    rows = wide(image).repeat(height, axis=0).repeat(width, axis=1)
    h, w, c = image.shape
    return rows.reshape(height, h, width, w, c).mean(axis=(1, 3))


class FeaturePair(NamedTuple):
    """A function of features, its formula, and what it is of."""

    ours: Function
    formula: Function
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # a teacher's and a student's, with batch


_MAPS = ((3, 4, 2, 5), (3, 4, 2, 3))
_ROWS = ((5, 4), (5, 3))
_SAME = ((3, 4, 6), (3, 4, 6))

FEATURE_PAIRS = {
    "hint": FeaturePair(functional.hint, hint, _SAME),
    "attention_transfer": FeaturePair(functional.attention_transfer, attention_transfer, _MAPS),
    "neuron_selectivity": FeaturePair(functional.neuron_selectivity, neuron_selectivity, _MAPS),
    "linear_selectivity": FeaturePair(
        lambda t, s: functional.neuron_selectivity(t, s, "linear"),
        lambda t, s: neuron_selectivity(t, s, "linear"),
        _MAPS,
    ),
    "fsp": FeaturePair(
        lambda t, s: functional.fsp(functional.flow(t, 2 * t), functional.flow(s, 4 * s)),
        lambda t, s: ((flow(t, 2 * wide(t)) - flow(s, 4 * wide(s))) ** 2).mean((1, 2)),
        _SAME,
    ),
    "hidden_states": FeaturePair(functional.hidden_states, hidden_states, _SAME),
    "cosine_hidden_states": FeaturePair(
        functional.cosine_hidden_states, cosine_hidden_states, _SAME
    ),
    "attention_scores": FeaturePair(
        functional.attention_scores,
        lambda t, s: ((wide(t) - wide(s)) ** 2).mean((1, 2, 3)),
        ((2, 3, 4, 5), (2, 3, 4, 5)),
    ),
    "similarity_preserving": FeaturePair(
        functional.similarity_preserving, similarity_preserving, _ROWS
    ),
    "relational_distance": FeaturePair(functional.relational_distance, relational_distance, _ROWS),
    "relational_angle": FeaturePair(functional.relational_angle, relational_angle, _ROWS),
    "probabilistic_transfer": FeaturePair(
        functional.probabilistic_transfer, probabilistic_transfer, _ROWS
    ),
    "correlation_congruence": FeaturePair(
        functional.correlation_congruence, correlation_congruence, _ROWS
    ),
    "contrastive": FeaturePair(functional.contrastive, contrastive, ((5, 4), (5, 4))),
}
RELATIONS = (
    *("similarity_preserving", "relational_distance", "relational_angle"),
    *("probabilistic_transfer", "correlation_congruence"),
)

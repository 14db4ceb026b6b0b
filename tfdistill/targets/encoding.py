"""What is kept of a teacher's outputs for one example: a row of fixed size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.losses import Outputs, Shapes

__all__ = ["Encoding", "Encodings"]

_LOWEST = -65504.0  # the lowest finite float16


@dataclass(frozen=True)
class Encoding:
    """How logits `[batch, classes]` and features are made smaller, and large again.

    With float32 nothing is lost. With float16, what is kept is each logit's distance from the
    largest one, so that the error is relative to the probabilities that matter. With `top_k`, the
    k largest logits are kept, and for each of `temperatures` the level at which all other
    classes together have the probability that they had: there the k largest probabilities are
    those of the teacher, and the rest is spread evenly.

    Attributes:
        classes: Number of logits.
        dtype: "float16" or "float32".
        top_k: How many logits are kept; `None` for all.
        temperatures: At which softened distributions are right, with `top_k`.
        features: Layer name to shape, without the batch axis.
    """

    classes: int
    dtype: str = "float16"
    top_k: int | None = None
    temperatures: tuple[float, ...] = ()
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Of what is decoded."""
        return Shapes((self.classes,), dict(self.features))

    @property
    def row(self) -> np.dtype[Any]:
        """The data type of a row."""
        logits = (self.classes if self.top_k is None else self.top_k,)
        fields: list[Any] = [("logits", self.dtype, logits)]
        if not self._is_exact:
            fields.append(("largest", "float32"))
        if self.top_k is not None:
            index = "uint16" if self.classes <= 2**16 else "int32"
            fields.append(("classes", index, logits))
            fields.append(("rest", "float32", (len(self.temperatures),)))
        fields += [(f"feature {n}", self.dtype, shape) for n, shape in self.features.items()]
        return np.dtype(fields)

    @property
    def _is_exact(self) -> bool:
        return self.top_k is None and self.dtype == "float32"

    def encode(self, outputs: Outputs) -> dict[str, Any]:
        """Tensors `[batch, ...]`, one for each field of a row."""
        logits = tf.cast(outputs.logits, tf.float32)
        kept: dict[str, Any] = {}
        if not self._is_exact:
            kept["largest"] = tf.reduce_max(logits, axis=-1)
            logits = logits - kept["largest"][:, tf.newaxis]
        if self.top_k is not None:
            values, kept["classes"] = tf.math.top_k(logits, self.top_k)
            others = _put(logits, kept["classes"], tf.fill(tf.shape(values), -math.inf))
            number = math.log(self.classes - self.top_k)
            levels = [
                t * (tf.reduce_logsumexp(others / t, axis=-1) - number) for t in self.temperatures
            ]
            kept["rest"] = tf.maximum(tf.stack(levels, axis=-1), _LOWEST)
            logits = values
        if self.dtype == "float16":
            logits = tf.clip_by_value(logits, _LOWEST, 0.0)
        kept["logits"] = tf.cast(logits, self.dtype)
        for name in self.features:
            kept[f"feature {name}"] = tf.cast(outputs.features[name], self.dtype)
        return kept

    def decode(self, kept: Mapping[str, Any]) -> Outputs:
        """What `encode` was given, as far as it was kept; in float32."""
        logits = tf.cast(kept["logits"], tf.float32)
        softened = {}
        if self.top_k is not None:
            for index, temperature in enumerate(self.temperatures):
                spread = tf.repeat(kept["rest"][:, index, tf.newaxis], self.classes, axis=1)
                softened[repr(temperature)] = _put(spread, kept["classes"], logits)
            logits = next(iter(softened.values()))
        if not self._is_exact:
            largest = kept["largest"][:, tf.newaxis]
            logits = logits + largest
            softened = {name: each + largest for name, each in softened.items()}
        features = {n: tf.cast(kept[f"feature {n}"], tf.float32) for n in self.features}
        return Outputs(logits, features, softened)

    def divergence(self, outputs: Outputs, kept: Mapping[str, Any]) -> Any:
        """KL(live ‖ kept) of each example, `[batch]`: the largest over the temperatures."""
        live, stored = tf.cast(outputs.logits, tf.float32), self.decode(kept)

        def log_softmax(logits: Any, temperature: float) -> Any:
            if self.classes == 1:  # binary: the two logits [0, z]
                logits = tf.pad(logits, [[0, 0], [1, 0]])
            return tf.nn.log_softmax(logits / temperature)

        def at(temperature: float) -> Any:
            ours = log_softmax(stored.logits_at(temperature), temperature)
            theirs = log_softmax(live, temperature)
            return tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)

        return tf.reduce_max(tf.stack([at(t) for t in self.temperatures or (1.0,)]), axis=0)


@dataclass(frozen=True)
class Encodings:
    """How the logits of several outputs are kept in one row, each as its `Encoding` does it.

    Attributes:
        outputs: By name; one of them has the features of all.
    """

    outputs: Mapping[str, Encoding]

    @property
    def shapes(self) -> Shapes:
        """As of `Encoding`, for all outputs."""
        shapes = {name: each.shapes for name, each in self.outputs.items()}
        features = {n: f for each in shapes.values() for n, f in each.features.items()}
        return Shapes({name: each.logits for name, each in shapes.items()}, features)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """As of each."""
        return tuple(dict.fromkeys(t for each in self.outputs.values() for t in each.temperatures))

    @property
    def row(self) -> np.dtype[Any]:
        """The data type of a row."""
        return np.dtype(
            [
                (_field(name, field), each.row[field])
                for name, each in self.outputs.items()
                for field in each.row.names or ()
            ]
        )

    def encode(self, outputs: Outputs) -> dict[str, Any]:
        """Tensors `[batch, ...]`, one for each field of a row."""
        return {
            _field(name, field): values
            for name, each in self.outputs.items()
            for field, values in each.encode(outputs.of(name)).items()
        }

    def decode(self, kept: Mapping[str, Any]) -> Outputs:
        """What `encode` was given, as far as it was kept; in float32."""
        said = {n: each.decode(self._of(n, kept)) for n, each in self.outputs.items()}
        softened = {name: each.softened for name, each in said.items() if each.softened}
        features = {n: f for each in said.values() for n, f in each.features.items()}
        return Outputs({name: each.logits for name, each in said.items()}, features, softened)

    def divergence(self, outputs: Outputs, kept: Mapping[str, Any]) -> Any:
        """KL(live ‖ kept) of each example, `[batch]`: the largest over outputs and temperatures."""
        each = [e.divergence(outputs.of(n), self._of(n, kept)) for n, e in self.outputs.items()]
        return tf.reduce_max(tf.stack(each), axis=0)

    def _of(self, name: str, kept: Mapping[str, Any]) -> dict[str, Any]:
        fields = self.outputs[name].row.names or ()
        return {field: kept[_field(name, field)] for field in fields}


def _field(output: str, field: str) -> str:
    return field if field.startswith("feature ") else f"{field} of {output}"


def _put(logits: Any, classes: Any, values: Any) -> Any:
    """`logits` `[batch, all]` with `values` at `classes`, both `[batch, k]`."""
    rows = tf.broadcast_to(tf.range(tf.shape(classes)[0])[:, tf.newaxis], tf.shape(classes))
    return tf.tensor_scatter_nd_update(logits, tf.stack([rows, classes], axis=-1), values)

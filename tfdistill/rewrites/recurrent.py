"""Recurrent layers written out, step by step.

LiteRT has an 8-bit operator for LSTM alone, and only after training. Written out, the products
of a recurrent layer are those of dense layers, of which one is shared by all steps; what is left
is the arithmetic of the gates, which stays in float, with the state of an LSTM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfdistill._keras import tf, tf_keras

_layers = tf_keras.layers
_Layer: Any = _layers.Layer
_registered = tf_keras.saving.register_keras_serializable(package="tfdistill")

MOST_STEPS = 64  # each takes some 3 KB of the artifact, before gzip


@_registered
class Step(_Layer):
    """One step of a sequence: `[batch, time, channels]` to `[batch, channels]`.

    Args:
        index: Which.
    """

    def __init__(self, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = index

    def call(self, inputs: Any) -> Any:
        """`inputs` is the sequence."""
        return inputs[:, self.index]

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "index": self.index}


@_registered
class Sequence(_Layer):
    """Steps `[batch, channels]` as one sequence `[batch, time, channels]`."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the steps."""
        return tf.stack(inputs, axis=1)


@_registered
class Zeros(_Layer):
    """A state of zeros, `[batch, units]`.

    Args:
        units: Its size.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def call(self, inputs: Any) -> Any:
        """`inputs` is a tensor of the batch."""
        return tf.zeros([tf.shape(inputs)[0], self.units], inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        return {**super().get_config(), "units": self.units}


@_registered
class Hidden(_Layer):
    """The hidden state between two steps, as it is; here it is rounded to 8 bits."""

    def call(self, inputs: Any) -> Any:
        """`inputs` is the state."""
        return tf.identity(inputs)


@_registered
class Kept(_Layer):
    """The new state where a step's mask is 1, else the old one."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are the two states, `[batch, units]`, and the step's mask, `[batch]`."""
        new, old, mask = inputs
        return tf.where(mask[:, None] > 0, new, old)


class _Gates(_Layer):
    """What a recurrent layer does with its two products.

    Args:
        activation: Of the candidate state.
        recurrent_activation: Of the gates.
    """

    def __init__(
        self, activation: Any = "tanh", recurrent_activation: Any = "sigmoid", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.activation = tf_keras.activations.get(activation)
        self.recurrent_activation = tf_keras.activations.get(recurrent_activation)

    def get_config(self) -> dict[str, Any]:
        """As Keras asks for it."""
        names = ("activation", "recurrent_activation")
        functions = {n: tf_keras.activations.serialize(getattr(self, n)) for n in names}
        return {**super().get_config(), **functions}


def _in_float(gate: Any, *factors: Any) -> Any:
    """The product, in a form that the converter leaves in float.

    What it is made of is rounded next. Of a sigmoid and a tanh alone, the converter would round
    these as well, to steps of 1/256 and 1/128: too few for a small state, and not simulated.
    """
    half = 0.5 * gate
    for factor in factors:
        half = half * factor
    return half + half


@_registered
class LSTMCell(_Gates):
    """Hochreiter & Schmidhuber 1997, with forget gates: the products to the new cell state."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are `[batch, 4 units]` of input and hidden state, and the cell state."""
        of_input, of_hidden, cell = inputs
        write, keep, new, _ = tf.split(of_input + of_hidden, 4, axis=-1)
        gate = self.recurrent_activation
        return gate(keep) * cell + gate(write) * self.activation(new)


@_registered
class LSTMGates(_Gates):
    """And to the new hidden state."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are as of `LSTMCell`, but of the new cell state."""
        of_input, of_hidden, cell = inputs
        read = tf.split(of_input + of_hidden, 4, axis=-1)[-1]
        gate, state = self.recurrent_activation(read), self.activation(cell)
        return _in_float(gate, state)


@_registered
class GRUGates(_Gates):
    """Cho 2014, the gate after the product: the products to the new state."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are `[batch, 3 units]` of input and hidden state, and that state."""
        of_input, of_hidden, hidden = inputs
        keep_x, reset_x, new_x = tf.split(of_input, 3, axis=-1)
        keep_h, reset_h, new_h = tf.split(of_hidden, 3, axis=-1)
        keep = self.recurrent_activation(keep_x + keep_h)
        reset = self.recurrent_activation(reset_x + reset_h)
        return keep * hidden + (1.0 - keep) * self.activation(new_x + reset * new_h)


@_registered
class SimpleGates(_Gates):
    """Elman 1990: the activation of the sum."""

    def call(self, inputs: Any) -> Any:
        """`inputs` are `[batch, units]` of input and hidden state."""
        return _in_float(self.activation(inputs[0] + inputs[1]))


GATES = {_layers.LSTM: LSTMGates, _layers.GRU: GRUGates, _layers.SimpleRNN: SimpleGates}


def can_be_written_out(layer: Any, tensor: Any) -> bool:
    """Whether a recurrent layer, called with a sequence alone, is one that is written out here."""
    steps = tensor.shape[1]
    return (
        type(layer) in GATES
        and steps is not None
        and 1 <= steps <= MOST_STEPS
        and not (layer.stateful or layer.return_state or layer.time_major)
        and not (layer.dropout or layer.recurrent_dropout)
        and getattr(layer, "reset_after", True)
        and all(
            getattr(layer, f"{kind}_constraint") is None for kind in ("kernel", "recurrent", "bias")
        )
    )


def written_out(
    part: Callable[..., Any], layer: Any, tensor: Any, mask: Any = None, *, turned: bool = False
) -> Any:
    """A recurrent layer, step by step.

    Args:
        part: Makes a part of it, see `GraphBuilder.part`, given its name.
        layer: One that `can_be_written_out`.
        tensor: `[batch, time, channels]`.
        mask: 1 where a step is to be read, `[batch, time]`; None without one.
        turned: Whether to give all hidden states in the other order.

    Returns:
        The last hidden state `[batch, units]`, or all of them `[batch, time, units]`.
    """
    kernel, recurrent, *bias = layer.get_weights()
    biases: list[list[Any]] = [[], []]
    if bias:
        two = bias[0].ndim == 2  # a GRU has one for each product
        biases = [[bias[0][0]], [bias[0][1]]] if two else [[bias[0]], []]

    def dense(name: str, weights: list[Any], regularizer: Any) -> Callable[..., Any]:
        def make(whole: str) -> Any:
            return _layers.Dense(
                weights[0].shape[-1],
                use_bias=len(weights) > 1,
                kernel_regularizer=regularizer,
                bias_regularizer=layer.bias_regularizer if len(weights) > 1 else None,
                name=whole,
            )

        made: Callable[..., Any] = part(name, make, weights)
        return made

    of_input = dense("", [kernel, *biases[0]], layer.kernel_regularizer)(tensor)
    of_hidden = dense("recurrent", [recurrent, *biases[1]], layer.recurrent_regularizer)
    rounded = part("hidden", lambda n: Hidden(name=n))
    functions = (layer.activation, getattr(layer, "recurrent_activation", "sigmoid"))
    gates = part("gates", lambda n: GATES[type(layer)](*functions, name=n))
    cells = part("cell", lambda n: LSTMCell(*functions, name=n))
    kept = part("kept", lambda n: Kept(name=n))
    zeros = part("zeros", lambda n: Zeros(layer.units, name=n))
    order = range(tensor.shape[1])
    hidden = cell = zero = None
    states = []
    for index in reversed(order) if layer.go_backwards else order:
        step = part(f"step_{index}", lambda n, i=index: Step(i, name=n))(of_input)
        if hidden is None:
            cell = zeros(step)
            hidden = zero = rounded(cell)
        before, given = (hidden, cell), [step, of_hidden(hidden)]
        if isinstance(layer, _layers.LSTM):
            cell = cells([*given, cell])
            hidden = gates([*given, cell])
        else:
            hidden = gates([*given, hidden] if isinstance(layer, _layers.GRU) else given)
        if mask is None:
            hidden = rounded(hidden)
            states.append(hidden)
            continue
        read = part(f"mask_{index}", lambda n, i=index: Step(i, name=n))(mask)
        hidden, cell = (
            new if new is old else kept([new, old, read])
            for new, old in zip((hidden, cell), before, strict=True)
        )
        hidden = rounded(hidden)
        zeroed = layer.zero_output_for_mask
        states.append(rounded(kept([hidden, zero, read])) if zeroed else hidden)
    if not layer.return_sequences:
        return states[-1]
    ordered = states[::-1] if turned else states
    return part("states", lambda n: Sequence(name=n))(ordered)


def written_out_both_ways(graph: Any, layer: Any, tensor: Any, mask: Any = None) -> list[Any]:
    """The two recurrent layers of a Bidirectional one, step by step, in the order of time.

    Args:
        graph: What the parts are made in, see `builder`.
        layer: One whose two layers `can_be_written_out`.
        tensor: `[batch, time, channels]`.
        mask: As for `written_out`.

    Returns:
        What `written_out` gives of the forward and of the backward layer.
    """

    def written(way: str) -> Any:
        inner = getattr(layer, f"{way}_layer")
        trainable = layer.trainable and inner.trainable

        def part(name: str, *made: Any) -> Any:
            name = f"{way}/{name}" if name else way
            return graph.part(layer, name, *made, trainable=trainable)

        return written_out(part, inner, tensor, mask, turned=way == "backward")

    return [written("forward"), written("backward")]

"""Whether a converted model computes what the original does, on random inputs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.layer_table import NOISE_LAYERS, all_in, is_random, weight_names
from tfdistill.bridge.model_graphs import (
    flatten,
    graph_or_raise,
    is_keras3,
    key_of,
    leaves_of,
    pack_inputs,
    run_graph,
    takes_training,
)
from tfdistill.bridge.twins import Twin
from tfdistill.errors import ConversionError

#: How far a converted model's outputs may be from the original's, relative to their largest.
MAX_RELATIVE_ERROR = 1e-5
# Half precision rounds at 1e-3, so the two Keras may differ by a few such roundings.
_MAX_RELATIVE_ERROR_HALF = 1e-2
# In a deep network roundings grow from layer to layer. Two libraries, which round differently, may
# then differ by this many times what the original's outputs move by one rounding in each layer.
# These move them by 0.003 one time and by 0.03 another, in a ResNetRS50 of random weights: it is
# done so often, at most.
_ROUNDINGS, _TRIALS = 2.0, 8
_CHECK_BATCH = 4
_LARGE = 100_000  # numbers in an example
# Tried for sizes that the model leaves open: where an input has several (an image), and one.
_CHECK_FREE_SIZES = ((64, 16), (128, 64), (224, 256), (331, 1024), (16, 4))


#: What a layer of one's own, or one of Keras with odd inputs, may raise when it is called.
CALL_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError, tf.errors.OpError),
)


def check_conversion(source: Any, target: Any, twins: Mapping[int, Twin]) -> None:
    """Compares the two models' outputs in inference, and their layers in training mode.

    Args:
        source: The original model.
        target: The converted model.
        twins: What stands for the original's layers, by `key_of`.

    Raises:
        ConversionError: They differ by more than rounding, or cannot run.
    """
    with _random_states_kept(source):
        inputs, outputs = inputs_and_outputs(source)
        try:
            errors = _output_errors(outputs, outputs_of(target, inputs))
            errors.update(_regularization_errors(source, twins))
            errors.update(_training_errors(source, inputs, twins))
        except CALL_ERRORS as error:
            raise ConversionError(
                "The converted model must run as the original does, on random inputs.",
                received=_in_short(error),
                hint=_hint(source),
            ) from error
        _raise_if_different(errors, source, inputs, outputs)


def check_outputs(source: Any, target: Any) -> None:
    """Compares the two models' outputs in inference only; raises as `check_conversion`."""
    inputs, outputs = inputs_and_outputs(source)
    errors = _output_errors(outputs, outputs_of(target, inputs))
    _raise_if_different(errors, source, inputs, outputs)


_MERGES = {"Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"}


def _hint(source: Any) -> str:
    layers = [one for leaf in leaves_of(graph_or_raise(source)) for one in all_in(leaf.layer)]
    masked = any(getattr(layer, "mask_zero", hasattr(layer, "mask_value")) for layer in layers)
    attention = [layer for layer in layers if type(layer).__name__ == "MultiHeadAttention"]
    if masked and is_keras3(source) and any(layer.dropout for layer in attention):
        return (
            "In Keras 3, a MultiHeadAttention with dropout gives zeros for steps that are masked, "
            "and in tf_keras the mean of all. Use `dropout=0` and add a Dropout layer after it, or "
            "`mask_zero=False`."
        )
    library = keras if is_keras3(source) else tf_keras
    merges = {
        type(each).__name__ for each in layers if isinstance(each, library.layers.Layer)
    } & _MERGES
    if masked and not attention and merges:
        return (
            f"Where masks meet in {' or '.join(sorted(merges))}, Keras 3 keeps the steps that any "
            "of them keeps (and its Multiply takes them for 1 where they are masked), tf_keras "
            "those that all keep. Merge before masks are made: leave `mask_zero` out, or put a "
            "Masking layer behind."
        )
    if any(getattr(layer, "data_format", "") == "channels_first" for layer in layers):
        return (
            "TensorFlow computes some layers with `data_format='channels_first'` on GPUs alone. "
            "Use 'channels_last', as mobile devices do."
        )
    if masked and attention:
        return (
            "In Keras 3, a MultiHeadAttention takes the mask off its inputs, so that what reads "
            "them after it, as a residual connection does, is not masked, and in tf_keras it is. "
            "Use `mask_zero=False` and give the attention an `attention_mask`, or none."
        )
    return (
        "A counterpart given in `custom_objects` or by `bridge.register` may compute something "
        "else; otherwise this is a defect of the conversion, please report it with the layer's "
        "config."
    )


def _raise_if_different(
    errors: dict[str, float], source: Any, inputs: list[Any], outputs: list[Any]
) -> None:
    tolerance = _tolerance(source)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if not wrong:
        return
    for trial in range(_TRIALS):
        noise = _rounding_noise(source, inputs, outputs, seed=trial)
        wrong = {n: e for n, e in wrong.items() if not e <= _ROUNDINGS * noise.get(n, 0.0)}
        if not wrong or not wrong.keys() <= noise.keys():  # a layer alone blows nothing up
            break
    if wrong:
        worst = sorted(wrong.items(), key=lambda item: -item[1])[:5]
        raise ConversionError(
            f"The converted model must equal the original to a relative error of {tolerance:g}.",
            received=f"{len(wrong)} of {len(errors)} comparisons differ, the worst "
            + ", ".join(f"{name} by {error:.2g}" for name, error in worst),
            hint=_hint(source),
        )


def _rounding_noise(
    source: Any, inputs: list[Any], outputs: list[Any], seed: int
) -> dict[str, float]:
    """How far the outputs move where each layer's output is rounded to the next number."""
    random = np.random.default_rng(seed)

    def call(layer: Any, node: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        ours = {"training": False} if "training" not in kwargs and takes_training(layer) else {}
        return tf.nest.map_structure(
            lambda value: _next_number(value, random), layer(*args, **kwargs, **ours)
        )

    graph = graph_or_raise(source)
    with _states_kept([leaf.layer for leaf in leaves_of(graph)]):
        return _output_errors(outputs, flatten(graph, run_graph(graph, inputs, call)))


def _next_number(value: Any, random: np.random.Generator) -> Any:
    """The tensor with each float moved up or down to the next one, at random."""
    if not tf.is_tensor(value) or value.dtype not in (tf.float32, tf.float64):
        return value
    towards = np.where(random.random(value.shape) < 0.5, -np.inf, np.inf)
    moved = tf.constant(np.nextafter(value.numpy(), towards.astype(value.dtype.as_numpy_dtype)))
    mask = getattr(value, "_keras_mask", None)
    if mask is not None:
        moved._keras_mask = mask
    return moved


def _tolerance(model: Any) -> float:
    leaves = leaves_of(graph_or_raise(model))
    dtypes = {getattr(leaf.layer, "compute_dtype", None) for leaf in leaves}
    half = dtypes & {"float16", "bfloat16"}
    return _MAX_RELATIVE_ERROR_HALF if half else MAX_RELATIVE_ERROR


def inputs_and_outputs(model: Any) -> tuple[list[Any], list[Any]]:
    """Random inputs that `model` can compute with, whatever sizes it leaves open."""
    graph = graph_or_raise(model)
    is_open = any(None in tensor.shape[1:] for tensor in graph.inputs)
    sizes = _CHECK_FREE_SIZES if is_open else _CHECK_FREE_SIZES[:1]
    # An Embedding, or another table, takes floats for the whole numbers that they are cast to.
    tables = any(map(_has_table, leaves_of(graph)))
    problem = ""
    for free_sizes, whole in itertools.product(sizes, (True, False) if tables else (False,)):
        inputs = _random_inputs(graph, free_sizes, whole=whole)
        try:
            return inputs, outputs_of(model, inputs)
        except CALL_ERRORS as error:
            problem = problem or _in_short(error)
    raise ConversionError(
        "`model` must be able to run on random inputs, on which the converted model is compared.",
        received=problem,
        hint="Give its inputs the sizes that it needs instead of None."
        if is_open
        else "Call it on random numbers of its inputs' shapes to see the whole error.",
    )


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _has_table(leaf: Any) -> bool:
    return any(hasattr(leaf.layer, name) for name in ("input_dim", "num_tokens", "get_vocabulary"))


def _random_inputs(graph: Any, free_sizes: tuple[int, int], *, whole: bool) -> list[Any]:
    random = np.random.default_rng(0)
    examples = []
    for tensor in graph.inputs:
        free_size = free_sizes[tuple(tensor.shape[1:]).count(None) == 1]
        examples.append([size or free_size for size in tensor.shape[1:]])
    # Of large images two give enough values to compare, in half the time.
    batch = 2 if max(map(math.prod, examples)) > _LARGE else _CHECK_BATCH
    inputs = []
    for tensor, example in zip(graph.inputs, examples, strict=True):
        shape = [tensor.shape[0] or batch, *example]
        dtype = tf.as_dtype(tensor.dtype)
        bound, known = _vocabulary(graph, tensor)
        if dtype.is_floating and not whole:
            value: Any = random.normal(size=shape)
        elif dtype == tf.string:
            words = [str(word) for word in known if str(word)]
            value = random.choice([*words[:20], "unknown", "not known"], size=shape)
        elif dtype.is_floating or dtype.is_integer or dtype.is_bool:
            value = random.integers(0, min(2 if dtype.is_bool else 100, bound), shape)
            numbers: Any = [
                one for one in known if isinstance(one, int | np.integer) and one < bound
            ]
            if numbers:
                value = np.where(random.random(shape) < 0.5, random.choice(numbers, shape), value)
            value.flat[-1] = 0  # so that what is masked differs among the examples
        else:
            raise ConversionError(
                "`model` must have inputs of numbers or text.", received=dtype.name
            )
        inputs.append(tf.constant(value, dtype))
    return inputs


def _vocabulary(graph: Any, tensor: Any) -> tuple[int, list[Any]]:
    """The bound of the integers, and the words, that the layers reading an input know."""
    nodes = tensor._keras_history[0]._outbound_nodes
    readers: list[Any] = [
        getattr(node, "operation", None) or getattr(node, "layer", None) for node in nodes
    ]
    everywhere = [leaf.layer for leaf in leaves_of(graph)]
    bounds: list[int] = []
    words: list[Any] = []
    for layers in (readers, everywhere):
        bounds = bounds or [
            getattr(layer, name)
            for layer in layers
            for name in ("input_dim", "num_tokens")
            if isinstance(getattr(layer, name, None), int)
        ]
        lookups = [layer for layer in layers if hasattr(layer, "get_vocabulary")]
        words = words or [word for layer in lookups for word in layer.get_vocabulary()]
        if bounds or words:
            break
    return min(bounds, default=2**31), words


def outputs_of(model: Any, inputs: list[Any]) -> list[Any]:
    """What `model` gives in inference, flat; RNNs that keep their states begin with zeros."""
    graph = graph_or_raise(model)
    with _states_kept([leaf.layer for leaf in leaves_of(graph)]):
        return flatten(graph, model(pack_inputs(graph, inputs), training=False))


def _output_errors(expected: list[Any], actual: list[Any]) -> dict[str, float]:
    pairs = zip(expected, actual, strict=True)
    return {f"output {index}": _error(*pair) for index, pair in enumerate(pairs)}


def _regularization_errors(source: Any, twins: Mapping[int, Twin]) -> dict[str, float]:
    """Errors of what the layers added to the loss when the models were last called.

    Frozen layers are left out: their weights' share is constant, and only tf_keras counts it.
    """
    errors = {}
    for leaf in leaves_of(graph_or_raise(source)):
        twin = twins[key_of(leaf.layer, leaf.node)].layer
        layers = [layer for layer in (leaf.layer, twin) if hasattr(layer, "losses")]
        if len(layers) == 2 and twin.trainable and any(layer.losses for layer in layers):
            sums = (sum(float(loss) for loss in layer.losses) for layer in layers)
            errors[f"regularization of {leaf.name}"] = _error(*sums)
    return errors


def _training_errors(source: Any, inputs: list[Any], twins: Mapping[int, Twin]) -> dict[str, float]:
    """Errors of each layer in training mode, on the inputs that it has in `source`.

    Layer by layer, because batch statistics of few examples blow a rounding error up from one
    layer to the next. What draws random numbers is compared in inference.
    """
    errors: dict[str, float] = {}

    def call(layer: Any, node: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if type(layer).__name__ in NOISE_LAYERS:
            return args[0]
        twin = twins[key_of(layer, node)]
        training = {} if "training" in kwargs else {"training": not is_random(layer)}
        ours = {**kwargs, **(training if takes_training(layer) else {})}
        theirs = {**kwargs, **(training if takes_training(twin.layer) else {})}
        outputs, moved = _call_and_restore(layer, layer, args, ours)
        twin_outputs, twin_moved = _call_and_restore(twin, twin.layer, args, theirs)
        pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(twin_outputs), strict=True)
        found = [_error(*pair) for pair in pairs]
        shared = set(moved) & set(twin_moved)
        if getattr(layer, "fused", False) or getattr(twin.layer, "fused", False):
            shared.discard("moving_variance")  # see `to_tf_keras`
        flat = tf.nest.flatten(args)
        # A mean may be zero but for the rounding of what it was taken of.
        step = 1.0 - getattr(layer, "momentum", 0.0)
        scale = step * max(
            (_magnitude(value) for value in flat if tf.is_tensor(value)), default=0.0
        )
        found += [_error(moved[name], twin_moved[name], scale) for name in shared]
        name = f"layer {twin.name}"
        errors[name] = max([errors.get(name, 0.0), *found])
        return outputs

    run_graph(graph_or_raise(source), inputs, call)
    return errors


def _call_and_restore(
    call: Any, layer: Any, args: Any, kwargs: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    """Calls a layer and takes back what it changed: the outputs, and the weights moved."""
    # Not by Keras 3's `stateless_call`: it loses the masks that tensors carry.
    weights = getattr(layer, "weights", [])
    fixed = {id(weight) for weight in getattr(layer, "trainable_weights", [])}
    named = zip(weight_names(layer), weights, strict=True)
    statistics = {name: weight for name, weight in named if id(weight) not in fixed}
    before = {name: weight.numpy() for name, weight in statistics.items()}
    # The MultiHeadAttention of Keras 3 takes the masks off its inputs.
    masks = [(value, getattr(value, "_keras_mask", None)) for value in tf.nest.flatten(args)]
    try:
        with _states_kept([layer]):
            outputs = call(*args, **kwargs)
        return outputs, {name: weight.numpy() for name, weight in statistics.items()}
    finally:
        for name, weight in statistics.items():
            weight.assign(before[name])
        for value, mask in masks:
            if mask is not None:
                value._keras_mask = mask


@contextlib.contextmanager
def _random_states_kept(model: Any) -> Iterator[None]:
    """Leaves the random generators of a Keras 3 model's layers as found."""
    variables = getattr(graph_or_raise(model), "variables", [])
    weights = {id(weight) for weight in model.weights}
    kept = [(one, one.numpy()) for one in variables if id(one) not in weights]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


@contextlib.contextmanager
def _states_kept(layers: list[Any]) -> Iterator[None]:
    """Lets RNNs that keep their states begin with zeros inside, and leaves the states as found."""
    found = [one for layer in layers for one in all_in(layer) if getattr(one, "stateful", False)]
    stateful = [one for one in found if getattr(one, "states", None) is not None]
    kept = [
        (state, state.numpy())
        for one in stateful
        for state in tf.nest.flatten(one.states)
        if state is not None
    ]
    for state, _ in kept:
        state.assign(tf.zeros_like(state))
    try:
        yield
    finally:
        for state, value in kept:
            state.assign(value)


def _error(expected: Any, actual: Any, least_scale: float = 0.0) -> float:
    """The largest difference over the largest value; the difference itself where all is zero."""
    if any(
        tf.as_dtype(value.dtype) == tf.string for value in (expected, actual) if tf.is_tensor(value)
    ):
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    expected, actual = (np.asarray(tf.cast(value, tf.float64)) for value in (expected, actual))
    if expected.shape != actual.shape:
        return float("inf")
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    if same.all():
        return 0.0
    scale = max(_magnitude(expected), least_scale) or 1.0
    error = np.max(np.abs(expected - actual)[~same]) / scale
    return float(error) if np.isfinite(error) else float("inf")


def _magnitude(value: Any) -> float:
    if tf.as_dtype(getattr(value, "dtype", tf.float64)) == tf.string:
        return 0.0
    numbers = np.asarray(tf.cast(value, tf.float64))
    return float(np.max(np.abs(numbers), where=np.isfinite(numbers), initial=0.0))

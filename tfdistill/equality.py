"""Whether a converted model computes what the original does, on random inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.errors import ConversionError
from tfdistill.layer_configs import NOISE_LAYERS, weight_names
from tfdistill.model_graphs import (
    flatten,
    graph_or_raise,
    leaves_of,
    pack_inputs,
    run_graph,
    takes_training,
)

#: How far a converted model's outputs may be from the original's, relative to their largest.
MAX_RELATIVE_ERROR = 1e-5
# Half precision rounds at 1e-3, so the two Keras may differ by a few such roundings.
_MAX_RELATIVE_ERROR_HALF = 1e-2
_CHECK_BATCH = 4
_CHECK_FREE_DIMENSION = 64  # stands in for a size that the model leaves open


def check_conversion(source: Any, target: Any, twins: Mapping[int, Any]) -> None:
    """Compares the two models' outputs in inference, and their layers in training mode.

    Args:
        source: The original model.
        target: The converted model.
        twins: The converted layers by the ids of the original ones.

    Raises:
        ConversionError: They differ by more than rounding.
    """
    inputs = _random_inputs(source)
    errors = _output_errors(source, target, inputs)
    errors.update(_regularization_errors(source, twins))
    errors.update(_training_errors(source, inputs, twins))
    _raise_if_different(errors, _tolerance(source))


def check_outputs(source: Any, target: Any) -> None:
    """Compares the two models' outputs in inference only; raises as `check_conversion`."""
    errors = _output_errors(source, target, _random_inputs(source))
    _raise_if_different(errors, _tolerance(source))


def _raise_if_different(errors: dict[str, float], tolerance: float) -> None:
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        worst = sorted(wrong.items(), key=lambda item: -item[1])[:5]
        raise ConversionError(
            f"The converted model must equal the original to a relative error of {tolerance:g}.",
            received=f"{len(wrong)} of {len(errors)} comparisons differ, the worst "
            + ", ".join(f"{name} by {error:.2g}" for name, error in worst),
            hint="A counterpart given in `custom_objects` may compute something else; otherwise "
            "this is a defect of the conversion, please report it with the layer's config.",
        )


def _tolerance(model: Any) -> float:
    dtypes = {leaf.layer.compute_dtype for leaf in leaves_of(graph_or_raise(model))}
    half = dtypes & {"float16", "bfloat16"}
    return _MAX_RELATIVE_ERROR_HALF if half else MAX_RELATIVE_ERROR


def _random_inputs(model: Any) -> list[Any]:
    graph = graph_or_raise(model)
    random = np.random.default_rng(0)
    vocabularies = [
        leaf.layer.input_dim
        for leaf in leaves_of(graph)
        if type(leaf.layer).__name__ == "Embedding"
    ]
    inputs = []
    for tensor in graph.inputs:
        shape = [
            size or (_CHECK_FREE_DIMENSION if axis else _CHECK_BATCH)
            for axis, size in enumerate(tensor.shape)
        ]
        dtype = tf.as_dtype(tensor.dtype)
        if dtype.is_floating:
            value: Any = random.normal(size=shape)
        elif dtype.is_integer or dtype.is_bool:
            value = random.integers(0, min([2 if dtype.is_bool else 100, *vocabularies]), shape)
        else:
            raise ConversionError("`model` must have numeric inputs.", received=dtype.name)
        inputs.append(tf.constant(value, dtype))
    return inputs


def _output_errors(source: Any, target: Any, inputs: list[Any]) -> dict[str, float]:
    outputs = []
    for model in (source, target):
        graph = graph_or_raise(model)
        outputs.append(flatten(graph, model(pack_inputs(graph, inputs), training=False)))
    pairs = zip(*outputs, strict=True)
    return {f"output {index}": _error(*pair) for index, pair in enumerate(pairs)}


def _regularization_errors(source: Any, twins: Mapping[int, Any]) -> dict[str, float]:
    """Errors of what the layers added to the loss when the models were last called.

    Frozen layers are left out: their weights' share is constant, and only tf_keras counts it.
    """
    errors = {}
    for leaf in leaves_of(graph_or_raise(source)):
        twin = twins[id(leaf.layer)]
        if twin.trainable and (leaf.layer.losses or twin.losses):
            sums = (sum(float(loss) for loss in layer.losses) for layer in (leaf.layer, twin))
            errors[f"regularization of {twin.name}"] = _error(*sums)
    return errors


def _training_errors(source: Any, inputs: list[Any], twins: Mapping[int, Any]) -> dict[str, float]:
    """Errors of each layer in training mode, on the inputs that it has in `source`.

    Layer by layer, because batch statistics of few examples blow a rounding error up from one
    layer to the next.
    """
    errors: dict[str, float] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if type(layer).__name__ in NOISE_LAYERS:
            return args[0]
        twin = twins[id(layer)]
        outputs, statistics = _call_in_training(layer, args, kwargs)
        twin_outputs, twin_statistics = _call_in_training(twin, args, kwargs)
        pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(twin_outputs), strict=True)
        found = [_error(*pair) for pair in pairs]
        shared = set(statistics) & set(twin_statistics)
        if getattr(layer, "fused", False) or getattr(twin, "fused", False):
            shared.discard("moving_variance")  # see `to_tf_keras`
        # A mean may be zero but for the rounding of what it was taken of.
        step = 1.0 - getattr(layer, "momentum", 0.0)
        scale = step * max(_magnitude(value) for value in tf.nest.flatten(args))
        found += [_error(statistics[name], twin_statistics[name], scale) for name in shared]
        name = f"layer {twin.name}"
        errors[name] = max([errors.get(name, 0.0), *found])
        return outputs

    run_graph(graph_or_raise(source), inputs, call)
    return errors


def _call_in_training(layer: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Calls a layer and takes back what it changed: the outputs, and the statistics moved."""
    if takes_training(layer):
        kwargs = {"training": True, **kwargs}
    # Not by Keras 3's `stateless_call`: it loses the masks that tensors carry.
    fixed = {id(weight) for weight in layer.trainable_weights}
    named = zip(weight_names(layer), layer.weights, strict=True)
    statistics = {name: weight for name, weight in named if id(weight) not in fixed}
    before = {name: weight.numpy() for name, weight in statistics.items()}
    try:
        outputs = layer(*args, **kwargs)
        return outputs, {name: weight.numpy() for name, weight in statistics.items()}
    finally:
        for name, weight in statistics.items():
            weight.assign(before[name])


def _error(expected: Any, actual: Any, least_scale: float = 0.0) -> float:
    """The largest difference over the largest value; the difference itself where all is zero."""
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
    numbers = np.asarray(tf.cast(value, tf.float64))
    return float(np.max(np.abs(numbers), where=np.isfinite(numbers), initial=0.0))

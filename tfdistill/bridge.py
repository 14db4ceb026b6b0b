"""Models carried between Keras 3 and tf_keras.

Students are trained as tf_keras models, because tfmot and `tf.distribute` know no others, and
users' models are Keras 3 models. So a model crosses here once on its way in, and its weights
cross back. A conversion walks the model's graph, rebuilds each layer in the other Keras
(`layer_configs`), copies the weights and then compares both models on random inputs: what
cannot be carried over exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tfdistill._keras import keras, tf_keras
from tfdistill.compile_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)
from tfdistill.equality import check_conversion, check_outputs
from tfdistill.errors import ConversionError
from tfdistill.layer_configs import (
    CustomObjects,
    NoCounterpartError,
    clone_tf_keras_layer,
    to_keras3_layer,
    to_tf_keras_layer,
    weight_names,
)
from tfdistill.loading import load_model
from tfdistill.model_graphs import (
    check_backend,
    graph_or_raise,
    is_keras3,
    is_tf_keras,
    leaves_of,
    pack_inputs,
    run_graph,
)

__all__ = [
    "copy_weights_back",
    "is_keras3",
    "is_tf_keras",
    "load_model",
    "rebuild_keras3",
    "to_keras3",
    "to_tf_keras",
    "to_tf_keras_loss",
    "to_tf_keras_metric",
    "to_tf_keras_optimizer",
]


def to_tf_keras(model: Any, *, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A tf_keras model equal to a Keras 3 model.

    The result is a flat Functional model: nested models are inlined, layers and inputs keep
    their names (a nested layer whose name is taken is called `<submodel>_<layer>`), inputs and
    outputs their order and structure. It shares no weights with `model`, which is left as it
    was; a compiled loss, optimizer or metric is not carried over.

    Both are compared on random inputs: the outputs in inference, then each layer in training
    mode (batch statistics, but no random noise) on the same inputs, with the moving means that
    it leaves behind. The error of a tensor is its largest absolute difference divided by the
    largest absolute value of the original's (for a mean, by what the largest input adds to it,
    if that is more); it may be 1e-5, or 1e-2 where a layer computes in half precision.

    Two ways of Keras 3 and tf_keras that are not layers' settings: an explicit `training=` in
    the graph of a Keras 3 model has no effect there in `fit` and `predict`, so it is left out;
    and tf_keras' fused BatchNormalization averages the unbiased batch variance into its moving
    variance where Keras 3 averages the biased one (n / (n - 1), n values a channel).

    Args:
        model: A Functional or Sequential model, built, of Keras 3 (TensorFlow backend) or
            tf_keras. A tf_keras model gives a flat clone of itself.
        custom_objects: For layers, activations, initializers, regularizers and constraints
            outside of Keras: the tf_keras class or function to put in place, by the name of
            the original. A layer class is built by `from_config` from the original's config,
            and must name its weights as the original does.

    Returns:
        A `tf_keras.Model`.

    Raises:
        ConversionError: The model has no graph, a layer has no counterpart (every such layer
            is listed), or the two models differ.

    Example:
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> to_tf_keras(student).get_layer("logits").units
        2
    """
    check_backend(model)
    make_layer = to_tf_keras_layer if is_keras3(model) else clone_tf_keras_layer
    return _convert(model, tf_keras, make_layer, custom_objects or {})


def to_keras3(model: Any, *, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A Keras 3 model equal to a tf_keras model; `to_tf_keras` the other way round.

    Args:
        model: A Functional or Sequential tf_keras model, built. A Keras 3 model gives a clone
            of itself.
        custom_objects: As in `to_tf_keras`, with Keras 3 classes and functions.

    Returns:
        A `keras.Model`, flat and Functional. To give a Keras 3 student back in the very form
        that it came in, use `rebuild_keras3`.

    Raises:
        ConversionError: As in `to_tf_keras`; also where the graph fixes `training=`, which
            Keras 3 would not heed.

    Example:
        >>> student = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(4,))])
        >>> is_keras3(to_keras3(student))
        True
    """
    check_backend(model)
    if is_keras3(model):
        graph_or_raise(model)
        clone = keras.models.clone_model(model, recursive=True)
        clone.set_weights(model.get_weights())
        return clone
    return _convert(model, keras, to_keras3_layer, custom_objects or {})


def rebuild_keras3(original: Any, trained: Any) -> Any:
    """The Keras 3 model that `original` is, with the weights of `trained`.

    Args:
        original: A Keras 3 model; it is left as it was.
        trained: A tf_keras model that `to_tf_keras(original)` made, trained since.

    Returns:
        A new `keras.Model` with the structure, nesting and names of `original`, checked to
        give the outputs of `trained` (in inference, as `to_tf_keras` checks).

    Raises:
        ConversionError: The layers or weights are not those of `original`, or the outputs
            differ.

    Example:
        >>> trained = to_tf_keras(student)
        >>> student = rebuild_keras3(student, trained)
    """
    check_backend(original)
    graph_or_raise(original)
    # Not recursive, it would make two of a layer shared by submodels.
    rebuilt = keras.models.clone_model(original, recursive=True)
    copy_weights_back(trained, rebuilt)
    check_outputs(trained, rebuilt)
    return rebuilt


def copy_weights_back(source: Any, target: Any) -> None:
    """Writes the weights of a converted model into the model that it was converted from.

    Args:
        source: The tf_keras model that `to_tf_keras(target)` made; only its weights may have
            changed since.
        target: The Keras 3 (or nested tf_keras) model. Its weights are overwritten.

    Raises:
        ConversionError: The two do not have the same layers with the same weights; every
            difference is listed, and no weight is written.

    Example:
        >>> copy_weights_back(trained, student)
    """
    sources = {leaf.name: leaf.layer for leaf in leaves_of(graph_or_raise(source))}
    pairs, problems = [], []
    for leaf in leaves_of(graph_or_raise(target)):
        layer = sources.pop(leaf.name, None)
        if layer is None:
            problems += [f"{leaf.path}: not in `source`"] if leaf.layer.weights else []
            continue
        pairs.append((layer, leaf.layer))
        try:
            _pair_weights(*pairs[-1])
        except NoCounterpartError as problem:
            problems.append(f"{leaf.path}: {problem}")
    problems += [f"{name}: not in `target`" for name, layer in sources.items() if layer.weights]
    if problems:
        raise ConversionError(
            "`source` must be the model that `to_tf_keras(target)` made.",
            received="; ".join(problems),
            hint="Take what was added to it off first: wrappers, projections, heads.",
        )
    for source_layer, target_layer in pairs:
        _copy_layer(source_layer, target_layer)


# --- conversion ----------------------------------------------------------------------------


def _convert(
    model: Any,
    target: Any,
    make_layer: Callable[[Any, str, CustomObjects], Any],
    custom_objects: CustomObjects,
) -> Any:
    graph = graph_or_raise(model)
    leaves = leaves_of(graph)
    twins: dict[int, Any] = {}
    problems = []
    for leaf in leaves:
        try:
            twins[id(leaf.layer)] = make_layer(leaf.layer, leaf.name, custom_objects)
        except NoCounterpartError as problem:
            problems.append(f"{leaf.path} ({type(leaf.layer).__name__}): {problem}")
    inputs = []
    for tensor in graph.inputs:
        try:
            inputs.append(_make_input(tensor, target))
        except NoCounterpartError as problem:
            problems.append(f"{tensor._keras_history[0].name} (InputLayer): {problem}")
    _raise_problems(problems)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        twin = twins[id(layer)]
        if "training" in kwargs and target is keras:
            raise NoCounterpartError(f"{twin.name}: Keras 3 would not heed its fixed `training`")
        try:
            return twin(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise NoCounterpartError(f"{twin.name}: {error}") from error

    try:
        outputs = run_graph(graph, inputs, call)
        converted = target.Model(pack_inputs(graph, inputs), outputs, name=model.name)
    except NoCounterpartError as problem:
        _raise_problems([str(problem)])
    for leaf in leaves:
        try:
            _copy_layer(leaf.layer, twins[id(leaf.layer)])
        except NoCounterpartError as problem:
            problems.append(f"{leaf.path} ({type(leaf.layer).__name__}): {problem}")
    _raise_problems(problems)
    trainable = {id(weight) for weight in model.trainable_weights}
    for leaf in leaves:  # a layer that calls itself trainable may be in a frozen model
        weights = leaf.layer.trainable_weights
        if weights and not any(id(weight) in trainable for weight in weights):
            twins[id(leaf.layer)].trainable = False
    check_conversion(model, converted, twins)
    return converted


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise ConversionError(
            "`model` must be made of layers that exist in both Keras 3 and tf_keras.",
            received="; ".join(problems),
            hint="Replace these by layers of Keras that do the same (`layers.Add` for `+`, "
            "`layers.ReLU(6.0)` for an activation), make Functional models of subclassed ones, "
            "or give a counterpart in `custom_objects`.",
        )


def _make_input(tensor: Any, target: Any) -> Any:
    layer = tensor._keras_history[0]
    for kind in ("sparse", "ragged"):
        if layer.get_config().get(kind):
            raise NoCounterpartError(f"a {kind} input is not converted")
    if getattr(layer, "optional", False):
        raise NoCounterpartError("an optional input is not converted")
    dtype = tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name
    return target.Input(batch_shape=tuple(tensor.shape), dtype=dtype, name=layer.name)


def _copy_layer(source: Any, target: Any) -> None:
    for source_weight, target_weight in _pair_weights(source, target):
        target_weight.assign(source_weight.numpy())
    if hasattr(target, "finalize_state"):
        target.finalize_state()  # Normalization computes with values derived from its weights


def _pair_weights(source: Any, target: Any) -> list[tuple[Any, Any]]:
    """Pairs two layers' weights by name, because their order may differ."""
    ours, theirs = (
        sorted(zip(weight_names(layer), layer.weights, strict=True), key=lambda pair: pair[0])
        for layer in (source, target)
    )
    described = [[(name, tuple(w.shape)) for name, w in weights] for weights in (ours, theirs)]
    if described[0] != described[1]:
        raise NoCounterpartError(f"its weights {described[0]} became {described[1]}")
    return [(our, their) for (_, our), (_, their) in zip(ours, theirs, strict=True)]

"""Models carried between Keras 3 and tf_keras.

Students are trained as tf_keras models, because tfmot and `tf.distribute` know no others, and
users' models are Keras 3 models. So a model crosses here once on its way in, and its weights
cross back. A conversion walks the model's graph, rebuilds each layer in the other Keras
(`twins`), copies the weights and then compares both models on random inputs: what
cannot be carried over exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from tfdistill._keras import keras, tf_keras
from tfdistill.bridge.compile_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)
from tfdistill.bridge.config_values import CustomObjects, NoCounterpartError
from tfdistill.bridge.counterparts import register, registered_objects
from tfdistill.bridge.equality import CALL_ERRORS, check_conversion, check_outputs
from tfdistill.bridge.layer_table import adapter_of, weight_names
from tfdistill.bridge.loading import load_model
from tfdistill.bridge.masks import AttentionMasks
from tfdistill.bridge.model_graphs import (
    Leaf,
    check_backend,
    graph_or_raise,
    is_keras3,
    is_tf_keras,
    key_of,
    leaves_of,
    pack_inputs,
    run_graph,
)
from tfdistill.bridge.twins import Twin, clone_twin, keras3_twin, tf_keras_twin
from tfdistill.errors import ConversionError

__all__ = [
    "copy_weights_back",
    "is_keras3",
    "is_tf_keras",
    "load_model",
    "rebuild_keras3",
    "register",
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

    An operation in the graph (`x + y`, `keras.ops.relu(x)`) becomes a layer with its name: the
    tf_keras layer that does the same (Add, Rescaling, Activation, Reshape, ...) or, where none
    does, an `own_layers.KerasOperation`, which runs Keras 3's operation.

    Both are compared on random inputs: the outputs in inference, then each layer in training
    mode (batch statistics, but no random noise: a layer that draws random numbers is compared in
    inference only) on the same inputs, with the moving means that it leaves behind. The error of
    a tensor is its largest absolute difference divided by the largest absolute value of the
    original's (for a mean, by what the largest input adds to it, if that is more); it may be
    1e-5, or 1e-2 where a layer computes in half precision.

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
            and must name its weights as the original does. `register` says more, for all
            conversions and both ways.

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
    make_twin = tf_keras_twin if is_keras3(model) else clone_twin
    return _convert(model, tf_keras, make_twin, custom_objects or {})


def to_keras3(model: Any, *, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A Keras 3 model equal to a tf_keras model; `to_tf_keras` the other way round.

    Args:
        model: A Functional or Sequential tf_keras model, built. A Keras 3 model gives a clone
            of itself.
        custom_objects: As in `to_tf_keras`, with Keras 3 classes and functions.

    Returns:
        A `keras.Model`, flat and Functional; functions of TensorFlow in the graph have become
        operations of `keras.ops`, and a slash in a name an underscore. To give a Keras 3 student
        back in the very form that it came in, use `rebuild_keras3`.

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
        clone = _clone(model)
        clone.set_weights(model.get_weights())
        return clone
    return _convert(model, keras, keras3_twin, custom_objects or {})


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
    rebuilt = _clone(original)
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
        if not getattr(leaf.layer, "weights", []):
            continue
        if layer is None:
            problems.append(f"{leaf.path}: not in `source`")
            continue
        pairs.append((layer, leaf.layer))
        try:
            _pair_weights(*pairs[-1])
        except NoCounterpartError as problem:
            problems.append(f"{leaf.path}: {problem}")
    problems += [
        f"{name}: not in `target`"
        for name, layer in sources.items()
        if getattr(layer, "weights", [])
    ]
    if problems:
        raise ConversionError(
            "`source` must be the model that `to_tf_keras(target)` made.",
            received="; ".join(problems),
            hint="Take what was added to it off first: wrappers, projections, heads.",
        )
    for source_layer, target_layer in pairs:
        _copy_layer(source_layer, target_layer)


def _clone(model: Any) -> Any:
    with keras.saving.custom_object_scope(registered_objects(keras)):  # for what is in wrappers
        # Not recursive, it would make two of a layer shared by submodels.
        return keras.models.clone_model(model, recursive=True)


# --- conversion ----------------------------------------------------------------------------


def _convert(
    model: Any,
    target: Any,
    make_twin: Callable[..., Twin],
    custom_objects: CustomObjects,
    check: bool = True,
) -> Any:
    graph = graph_or_raise(model)
    leaves = leaves_of(graph) if target is tf_keras else _without_slashes(leaves_of(graph))
    # A model inside of a layer is compared together with that layer.
    convert_model = partial(
        _convert, target=target, make_twin=make_twin, custom_objects=custom_objects, check=False
    )
    twins: dict[int, Twin] = {}
    problems = []
    for leaf in leaves:
        try:
            twins[key_of(leaf.layer, leaf.node)] = make_twin(leaf, custom_objects, convert_model)
        except NoCounterpartError as problem:
            problems.append(f"{leaf.path} ({type(leaf.layer).__name__}): {problem}")
    inputs = []
    for tensor in graph.inputs:
        try:
            inputs.append(_make_input(tensor, target))
        except NoCounterpartError as problem:
            problems.append(f"{tensor._keras_history[0].name} (InputLayer): {problem}")
    _raise_problems(problems)

    paths = {key_of(leaf.layer, leaf.node): leaf.path for leaf in leaves}
    masks = AttentionMasks(model) if check and make_twin is tf_keras_twin else None

    def call(layer: Any, node: Any, args: Any, kwargs: Any) -> Any:
        key = key_of(layer, node)
        twin, told = twins[key], f"{paths[key]} ({type(layer).__name__})"
        if masks is not None:
            args, kwargs = masks.arguments(layer, node, twin.name, args, kwargs)
        if "training" in kwargs and target is keras:
            raise NoCounterpartError(f"{told}: Keras 3 would not heed its fixed `training`")
        try:
            return twin(*args, **kwargs)
        except (NoCounterpartError, *CALL_ERRORS) as error:
            raise NoCounterpartError(f"{told}: {error}") from error

    try:
        outputs = run_graph(graph, inputs, call)
        converted = target.Model(pack_inputs(graph, inputs), outputs, name=model.name)
    except (NoCounterpartError, ValueError) as problem:
        _raise_problems([str(problem)])
    for leaf in leaves:
        twin = twins[key_of(leaf.layer, leaf.node)]
        try:
            if leaf.node is None and twin.layer is not None:
                _copy_layer(leaf.layer, twin.layer)
        except NoCounterpartError as problem:
            problems.append(f"{leaf.path} ({type(leaf.layer).__name__}): {problem}")
    _raise_problems(problems)
    trainable = {id(weight) for weight in model.trainable_weights}
    for leaf in leaves:  # a layer that calls itself trainable may be in a frozen model
        weights = getattr(leaf.layer, "trainable_weights", ())
        if weights and not any(id(weight) in trainable for weight in weights):
            twins[id(leaf.layer)].layer.trainable = False
    if check:
        check_conversion(model, converted, twins)
    return converted


def _without_slashes(leaves: list[Leaf]) -> list[Leaf]:
    """Keras 3 allows no slash in a name, and tf_keras' own models have them (`conv1/bn`)."""
    taken = {leaf.name for leaf in leaves}
    renamed = []
    for leaf in leaves:
        name = leaf.name.replace("/", "_")
        while name != leaf.name and name in taken:
            name += "_"
        taken.add(name)
        renamed.append(replace(leaf, name=name))
    return renamed


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise ConversionError(
            "`model` must be made of layers that exist in both Keras 3 and tf_keras.",
            received="; ".join(problems),
            hint="Replace these by layers of Keras that do the same, make Functional models of "
            "subclassed ones, or say what stands for your own by `bridge.register` or in "
            "`custom_objects`.",
        )


def _make_input(tensor: Any, target: Any) -> Any:
    layer = tensor._keras_history[0]
    for kind in ("sparse", "ragged"):
        if layer.get_config().get(kind):
            raise NoCounterpartError(f"a {kind} input is not converted")
    if getattr(layer, "optional", False):
        raise NoCounterpartError("an optional input is not converted")
    dtype = tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name
    name = layer.name.replace("/", "_") if target is keras else layer.name
    return target.Input(batch_shape=tuple(tensor.shape), dtype=dtype, name=name)


def _copy_layer(source: Any, target: Any) -> None:
    for source_weight, target_weight in _pair_weights(source, target):
        target_weight.assign(source_weight.numpy())
    if hasattr(target, "finalize_state"):
        target.finalize_state()  # Normalization computes with values derived from its weights


def _pair_weights(source: Any, target: Any) -> list[tuple[Any, Any]]:
    """Pairs two layers' weights by name, because their order may differ."""
    adapter = adapter_of(source)
    if adapter is not None and adapter.state_in_config:
        return []
    ours, theirs = (
        sorted(zip(weight_names(layer), layer.weights, strict=True), key=lambda pair: pair[0])
        for layer in (source, target)
    )
    described = [[(name, tuple(w.shape)) for name, w in weights] for weights in (ours, theirs)]
    if described[0] != described[1]:
        raise NoCounterpartError(f"its weights {described[0]} became {described[1]}")
    return [(our, their) for (_, our), (_, their) in zip(ours, theirs, strict=True)]

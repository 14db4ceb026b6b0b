"""Operations in a model's graph that are no layers, and the tf_keras layers that do the same.

Both Kerases write `x + y` or `keras.ops.relu(x)` into the graph: Keras 3 as an operation, tf_keras
as a `TFOpLambda` layer that no tool knows. An `Operation` names either as `keras.ops` does;
`layer_of` gives the tf_keras layer that does the same, where there is one; `keras3_call` what
Keras 3 has for it. Nothing here changes a model.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import keras, tf, tf_keras
from tfdistill.bridge.config_values import NoCounterpartError, hard_sigmoid, hard_silu, log_softmax
from tfdistill.bridge.own_layers import is_symbolic, tensors_in

#: tf_keras' layers for functions of TensorFlow that are called on the tensors of a graph.
TF_OPERATIONS = (
    tf_keras.src.layers.core.tf_op_layer.TFOpLambda,
    tf_keras.src.layers.core.tf_op_layer.SlicingOpLambda,
)


@dataclass(frozen=True)
class Operation:
    """One use of an operation.

    Args:
        name: The function's name in `keras.ops`.
        arguments: Its arguments by their names there, with symbolic tensors among them.
    """

    name: str
    arguments: dict[str, Any]

    @property
    def tensors(self) -> list[Any]:
        """The symbolic tensors that are read, in order; those to call `layer_of`'s layer with."""
        return tensors_in((), self.arguments)


# --- what the graph holds ------------------------------------------------------------------


def from_keras3(operation: Any, args: Any, kwargs: Any) -> Operation:
    """The call of a Keras 3 operation, named.

    Args:
        operation: The operation, e.g. `keras.src.ops.numpy.Add`.
        args: The call's arguments, with tensors of either Keras.
        kwargs: Those given by name.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(operation).__name__)
    try:
        settings = operation.get_config()
    except NotImplementedError:
        settings = {}  # it is named all the same, and has no layer
    call = inspect.signature(operation.call).bind(*args, **kwargs).arguments
    return Operation(words.lower(), {**settings, **call})


def from_tf(symbol: str, args: Any, kwargs: Any) -> Operation | None:
    """The call of a TensorFlow function, named as in `keras.ops`.

    Args:
        symbol: The function's name in TensorFlow ("math.reduce_mean"), as in the config of a
            `TFOpLambda` ("function").
        args: The call's arguments.
        kwargs: Those given by name.

    Returns:
        None where no function of `keras.ops` is known to do the same.
    """
    known = _TF_FUNCTIONS.get(symbol) or _TF_FUNCTIONS.get(symbol.removeprefix("compat.v1."))
    if known is None:
        return None
    name, parameters = known
    arguments = dict(zip(parameters, args, strict=False))
    # What Keras does not have may be given where it changes nothing: `conjugate=False`.
    unset = {key for key, value in kwargs.items() if value is None or value is False}
    unset = {"name", *(unset - parameters.keys())}
    arguments.update({key: value for key, value in kwargs.items() if key not in unset})
    if len(args) > len(parameters) or not arguments.keys() <= parameters.keys():
        return None  # it is given an argument that Keras does not have
    named = {parameters[key]: value for key, value in arguments.items() if parameters[key]}
    if name == "pad" and str(named.get("mode", "constant")).lower() != "constant":
        named.pop("constant_values", None)
    return Operation(name, named)


def _arguments(*names: str, **renamed: str) -> dict[str, str]:
    return {**{name: name for name in names}, **renamed}


_PAIR = _arguments(x="x1", y="x2")
_ONE = _arguments("x")
_FEATURES = _arguments(features="x")
_REDUCED = {"input_tensor": "x", **_arguments("axis", "keepdims")}
_PADDED = {"tensor": "x", "paddings": "pad_width", "mode": "mode"}
# The symbols' parameters, in TensorFlow's order, with their names in `keras.ops` (or none).
_TF_FUNCTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "__operators__.add": ("add", _PAIR),
    "__operators__.getitem": ("get_item", {"tensor": "x", "slice_spec": "key"}),
    "math.divide": ("divide", _PAIR),
    "math.truediv": ("divide", _PAIR),
    "math.pow": ("power", _PAIR),
    **{f"math.{name}": (name, _PAIR) for name in ("add", "subtract", "multiply")},
    **{f"math.{name}": (name, _PAIR) for name in ("maximum", "minimum")},
    **{
        f"math.{name}": (name, _ONE)
        for name in ("abs", "ceil", "cos", "erf", "exp", "floor", "log", "negative", "rsqrt")
    },
    **{
        f"math.{name}": (name, _ONE)
        for name in ("sigmoid", "sign", "sin", "sqrt", "square", "tanh")
    },
    **{
        f"math.reduce_{name}": (name, _REDUCED)
        for name in ("all", "any", "logsumexp", "max", "mean", "min", "prod", "std", "sum")
    },
    **{f"nn.{name}": (name, _FEATURES) for name in ("relu", "relu6", "selu", "elu", "softsign")},
    "math.softplus": ("softplus", _FEATURES),
    "nn.sigmoid": ("sigmoid", _ONE),
    "nn.tanh": ("tanh", _ONE),
    "nn.silu": ("silu", _FEATURES),
    "nn.gelu": ("gelu", {"features": "x", "approximate": "approximate"}),
    "nn.leaky_relu": ("leaky_relu", {"features": "x", "alpha": "negative_slope"}),
    "nn.softmax": ("softmax", {"logits": "x", "axis": "axis"}),
    "nn.log_softmax": ("log_softmax", {"logits": "x", "axis": "axis"}),
    "reshape": ("reshape", {"tensor": "x", "shape": "newshape"}),
    "transpose": ("transpose", {"a": "x", "perm": "axes"}),
    "concat": ("concatenate", {"values": "xs", "axis": "axis"}),
    "stack": ("stack", {"values": "x", "axis": "axis"}),
    "expand_dims": ("expand_dims", {"input": "x", "axis": "axis"}),
    "squeeze": ("squeeze", {"input": "x", "axis": "axis"}),
    "tile": ("tile", {"input": "x", "multiples": "repeats"}),
    "cast": ("cast", _arguments("x", "dtype")),
    "clip_by_value": ("clip", {"t": "x", "clip_value_min": "x_min", "clip_value_max": "x_max"}),
    "linalg.matmul": ("matmul", {"a": "x1", "b": "x2"}),
    "pad": ("pad", {**_PADDED, "constant_values": "constant_values"}),
    "compat.v1.pad": ("pad", {**_PADDED, "name": "", "constant_values": "constant_values"}),
}


def keras3_call(operation: Operation) -> Any:
    """Calls the function of `keras.ops` on Keras 3's tensors, symbolic or real.

    Raises:
        NoCounterpartError: Keras 3 refuses the arguments.
    """
    arguments = {key: _keras3_argument(key, value) for key, value in operation.arguments.items()}
    try:
        if operation.name == "get_item":
            return keras.src.ops.numpy.GetItem()(arguments["x"], arguments["key"])
        return getattr(keras.ops, operation.name)(**arguments)
    except (TypeError, ValueError) as error:
        raise NoCounterpartError(f"keras.ops.{operation.name} refuses it: {error}") from error


def _keras3_argument(key: str, value: Any) -> Any:
    if key == "key":  # tf_keras keeps slices as dicts
        keys = value if isinstance(value, list | tuple) else [value]
        return tuple(
            slice(one["start"], one["stop"], one["step"]) if isinstance(one, dict) else one
            for one in keys
        )
    if key == "dtype":
        return tf.as_dtype(value).name
    if key == "mode":
        return value.lower()
    return value.numpy() if tf.is_tensor(value) and not is_symbolic(value) else value


# --- the layers ----------------------------------------------------------------------------


def layer_of(operation: Operation, outputs: Any, name: str) -> Any | None:
    """The layer of tf_keras' own that does what an operation does.

    Args:
        operation: The operation; only shapes, dtypes and masks of its tensors are looked at.
        outputs: The symbolic tensors that it gives.
        name: The new layer's name.

    Returns:
        A layer without weights, to be called with `operation.tensors` (with the tensor itself
        where it is one), or None where there is none that is exactly the same: tf_keras' layers
        compute in floating point and keep the batch axis, and most hand on masks.
    """
    tensors, given = operation.tensors, operation.arguments
    dtypes = {_dtype(tensor) for tensor in [*tensors, *_listed(outputs)]}
    rule = _RULES.get(operation.name)
    if rule is None or not tensors or len(dtypes) > 1 or not dtypes <= _FLOATS:
        return None
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors):
        return None
    if any(len(tensor.shape) < 2 for tensor in tensors):
        return None
    make = rule(operation.name, given, tensors)
    return make(name=name, dtype=dtypes.pop()) if make else None


_FLOATS = {"float16", "bfloat16", "float32", "float64"}
_Rule = Callable[[str, dict[str, Any], list[Any]], Callable[..., Any] | None]


def _dtype(tensor: Any) -> str:
    return str(tf.as_dtype(tensor.dtype).name)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _layer(kind: str, *args: Any, **settings: Any) -> Callable[..., Any]:
    return lambda **common: getattr(tf_keras.layers, kind)(*args, **settings, **common)


def _arithmetic(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    """Two tensors of one rank are merged; of a tensor and a number, it is affine or nothing."""
    if len(tensors) == 2:
        ranks = {len(tensor.shape) for tensor in tensors}
        batches = {tensor.shape[0] for tensor in tensors}
        merged = {
            **{"add": "Add", "subtract": "Subtract", "multiply": "Multiply"},
            **{"maximum": "Maximum", "minimum": "Minimum"},
        }
        # The merging layers align ranks and batches that differ in a way of their own.
        if len(ranks) == len(batches) == 1 and name in merged:
            return _layer(merged[name])
        return None
    constant = _number(given["x1"] if given["x1"] is not tensors[0] else given["x2"])
    if constant is None or tensors_in((), given) != tensors:
        return None
    tensor_first = given["x1"] is tensors[0]
    if name == "add":
        return _layer("Rescaling", 1.0, offset=constant)
    if name == "multiply":
        return _layer("Rescaling", constant)
    if name == "subtract" and tensor_first:
        return _layer("Rescaling", 1.0, offset=-constant)
    if name == "subtract":
        return _layer("Rescaling", -1.0, offset=constant)
    if name in {"divide", "true_divide"} and tensor_first and constant:
        return _layer("Rescaling", 1.0 / constant)
    return None


def _number(value: Any) -> float | None:
    if (
        is_symbolic(value)
        or isinstance(value, tf.Variable)
        or not np.issubdtype(np.asarray(value).dtype, np.number)
    ):
        return None
    array = np.asarray(value)
    if array.ndim or isinstance(array.item(), complex):  # arrays may widen the shape
        return None
    number = float(array)
    return number if math.isfinite(number) else None


def _negative(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    return _layer("Rescaling", -1.0)


_ACTIVATIONS: dict[str, Any] = {
    **{name: name for name in ("relu", "sigmoid", "tanh", "silu", "softplus", "softsign", "selu")},
    **{"exp": "exponential", "mish": "mish"},
    **{"hard_sigmoid": hard_sigmoid, "hard_silu": hard_silu},
}


def _activation(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    axis = given.get("axis", -1)
    if name in _ACTIVATIONS:
        return _layer("Activation", _ACTIVATIONS[name])
    if name == "relu6":
        return _layer("ReLU", 6.0)
    if name == "gelu" and given.get("approximate", True) is False:
        return _layer("Activation", "gelu")
    if name == "elu" and given.get("alpha", 1.0) == 1.0:
        return _layer("Activation", "elu")
    if name == "leaky_relu":
        return _layer("LeakyReLU", float(given.get("negative_slope", 0.2)))
    if name == "softmax" and isinstance(axis, int):
        return _layer("Softmax", axis)
    if name == "log_softmax" and axis in {-1, len(tensors[0].shape) - 1}:
        return _layer("Activation", log_softmax)
    return None


def _reshape(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    """Only where the first axis of the result is the batch, which `Reshape` keeps."""
    shape = tuple(tensors[0].shape)
    if name == "reshape":
        new = _integers(given.get("newshape"))
    else:
        axes = _integers(_listed(given.get("axis")))
        new = _resized(name, shape, axes) if axes else None
    if not new or len(new) < 2 or None in shape[1:]:
        return None
    count = math.prod(shape[1:])
    batch = shape[0] if shape[0] is not None else -1
    rest = new[1:]
    if new[0] != batch or rest.count(-1) > (new[0] != -1):
        return None
    known = math.prod(size for size in rest if size != -1)
    if (-1 not in rest and known != count) or (-1 in rest and (not known or count % known)):
        return None
    return _layer("Reshape", tuple(rest))


def _resized(name: str, shape: tuple[Any, ...], axes: list[int]) -> list[int] | None:
    sizes = [-1 if size is None else size for size in shape]
    rank = len(sizes) + (len(axes) if name == "expand_dims" else 0)
    places = sorted({axis % rank for axis in axes if -rank <= axis < rank})
    if len(places) != len(axes) or 0 in places:
        return None
    if name == "expand_dims":
        for place in places:
            sizes.insert(place, 1)
        return sizes
    return [size for place, size in enumerate(sizes) if place not in places]


def _integers(value: Any) -> list[int] | None:
    try:
        return [int(one) for one in np.asarray(value).reshape(-1)]
    except (TypeError, ValueError):  # None, or a tensor in it
        return None


def _transpose(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    rank = len(tensors[0].shape)
    axes = [axis % rank for axis in _integers(given.get("axes")) or []]
    return _layer("Permute", tuple(axes[1:])) if axes and axes[0] == 0 else None


def _pooling(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    rank = len(tensors[0].shape)
    axes = sorted(axis % rank for axis in _integers(_listed(given.get("axis"))) or [])
    if not 3 <= rank <= 5 or axes != list(range(1, rank - 1)) or given.get("initial") is not None:
        return None
    kind = {"mean": "Average", "max": "Max"}[name]
    return _layer(f"Global{kind}Pooling{rank - 2}D", keepdims=bool(given.get("keepdims")))


def _concatenate(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    values = given.get("xs")
    ranks = {len(tensor.shape) for tensor in tensors}
    if not isinstance(values, list | tuple) or len(values) != len(tensors) or len(ranks) > 1:
        return None
    axis = given.get("axis", -1)
    return _layer("Concatenate", axis) if len(tensors) > 1 and axis % ranks.pop() else None


def _padding(name: str, given: dict[str, Any], tensors: list[Any]) -> Any:
    rank = len(tensors[0].shape)
    widths = _integers(given.get("pad_width"))
    constant = given.get("constant_values")
    if str(given.get("mode", "constant")).lower() != "constant" or _number(constant or 0.0) != 0.0:
        return None
    if not 3 <= rank <= 5 or not widths or len(widths) != 2 * rank:
        return None
    pairs = [(widths[2 * axis], widths[2 * axis + 1]) for axis in range(rank)]
    if pairs[0] != (0, 0) or pairs[-1] != (0, 0):
        return None
    inner = pairs[1:-1]
    return _layer(f"ZeroPadding{rank - 2}D", inner[0] if rank == 3 else tuple(inner))


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "true_divide"), _arithmetic),
    **dict.fromkeys(("maximum", "minimum"), _arithmetic),
    "negative": _negative,
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(("relu6", "gelu", "elu", "leaky_relu"), _activation),
    **dict.fromkeys(("softmax", "log_softmax"), _activation),
    **dict.fromkeys(("reshape", "expand_dims", "squeeze"), _reshape),
    "transpose": _transpose,
    **dict.fromkeys(("mean", "max"), _pooling),
    "concatenate": _concatenate,
    "pad": _padding,
}

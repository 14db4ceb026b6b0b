"""8-bit quantization-aware training with tfmot, without its holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdistill._keras import tf_keras, tfmot, tfmot_internal
from tfdistill.errors import ModelError
from tfdistill.outputs import find_layer
from tfdistill.settings import check_training, settings

_QUANTIZATION = "quantization.keras"
_DEFAULT = f"{_QUANTIZATION}.default_8bit"
configs = tfmot_internal(f"{_DEFAULT}.default_8bit_quantize_configs")
layout = tfmot_internal(f"{_DEFAULT}.default_8bit_quantize_layout_transform")
registry = tfmot_internal(f"{_DEFAULT}.default_8bit_quantize_registry")
preserving = tfmot_internal(
    f"{_QUANTIZATION}.collab_opts.prune_preserve.prune_preserve_quantize_registry"
)

_KERNEL_LAYERS = {
    tf_keras.layers.Conv2D: "kernel",
    tf_keras.layers.DepthwiseConv2D: "depthwise_kernel",
    tf_keras.layers.Dense: "kernel",
}

# tfmot refuses these although fake-quantizing their output is all they need ...
_OUTPUT_ONLY = ("Average", "Maximum", "Minimum", "Multiply", "Subtract")
# ... or, here, keeps what follows in 8 bits, while they compute in float.
_FLOAT_INSIDE = ("BatchNormalization", "ELU", "Rescaling")


@settings
class Quantization:
    """Settings of the quantization-aware training stage: 8-bit weights and activations.

    Training with simulated quantization follows Jacob 2018 (https://arxiv.org/abs/1712.05877,
    section 3). Zeros of a pruned student stay zeros.

    Args:
        epochs: Epochs of training with simulated quantization.
        skip: Names of layers to leave in floating point.
        learning_rate: Peak learning rate, decayed to 0 along a cosine.

    Raises:
        SettingError: A setting is out of its range.

    Example:
        >>> td.Quantization(epochs=3)
    """

    epochs: int = 3
    skip: tuple[str, ...] = ()
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        """Checks every field."""
        object.__setattr__(self, "skip", tuple(self.skip))
        check_training(self.epochs, self.learning_rate)


@dataclass(frozen=True)
class QuantizedModel:
    """A model that simulates 8-bit arithmetic, and what in it does not.

    Attributes:
        model: tf_keras model with tfmot's fake quantization.
        left_float: Layer name to the reason why its kernel or output stays float.
    """

    model: Any
    left_float: dict[str, str]


class _Layout(layout.Default8BitQuantizeLayoutTransform):
    """tfmot's rewriting of the graph, corrected in what it decides per layer."""

    def __init__(self, *, sparse: bool) -> None:
        self._sparse = sparse
        self.left_float: dict[str, str] = {}

    def apply(self, model: Any, layer_quantize_map: Any) -> Any:
        model, decided = super().apply(model, layer_quantize_map)
        for layer in model.layers:
            if layer.name in decided:
                config = self._config(layer, decided[layer.name].get("quantize_config"))
                if config is None:
                    del decided[layer.name]
                else:
                    decided[layer.name]["quantize_config"] = config
        return model, decided

    def _config(self, layer: Any, config: Any) -> Any:
        known = registry.Default8BitQuantizeRegistry()
        if type(layer) in _KERNEL_LAYERS:
            if isinstance(config, configs.NoOpQuantizeConfig):
                # tfmot's hole: before a separate ReLU it drops the kernel's quantizer together
                # with the output's. Only the output's belongs after the ReLU.
                full = known.get_quantize_config(layer)
                config = type(full)(full.weight_attrs, [], False)
            elif config is None:
                config = known.get_quantize_config(layer)
            if self._sparse:
                config.weight_quantizer = _preserving(config)
            return config
        if config is not None:
            return config
        if _supports(known, layer):
            return known.get_quantize_config(layer)
        kind = type(layer).__name__
        if kind in _FLOAT_INSIDE:
            self.left_float[layer.name] = f"{kind} computes in float; its output is quantized"
        if kind in _OUTPUT_ONLY or kind in _FLOAT_INSIDE:
            return configs.Default8BitOutputQuantizeConfig()
        if not isinstance(layer, tf_keras.layers.InputLayer):
            self.left_float[layer.name] = f"tfmot has no quantizer for {kind}"
        return None


class _Scheme(tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme):  # type: ignore[misc]
    def __init__(self, transform: _Layout) -> None:
        super().__init__()
        self._transform = transform

    def get_layout_transformer(self) -> Any:
        return self._transform


def _preserving(config: Any) -> Any:
    """A weight quantizer that multiplies with the kernel's own pattern of zeros first."""
    if isinstance(config, registry.Default8BitConvQuantizeConfig):
        return preserving.PrunePreserveDefault8BitConvWeightsQuantizer()
    return preserving.PrunePreserveDefault8BitWeightsQuantizer()


def _supports(known: Any, layer: Any) -> bool:
    if not known.supports(layer):
        return False
    try:  # an Activation is supported or not by its function
        known.get_quantize_config(layer).get_output_quantizers(layer)
    except ValueError:
        return False
    return True


def quantize(model: Any, quantization: Quantization, *, sparse: bool) -> QuantizedModel:
    """A copy of the model that simulates 8-bit weights and activations while it is trained.

    Args:
        model: Functional tf_keras model without wrappers; stays as it is.
        quantization: The stage's settings.
        sparse: Whether the zeros of its kernels must stay zeros.

    Raises:
        ModelError: `skip` names a layer that the model does not have, or tfmot cannot rewrite
            the model.
    """
    for name in quantization.skip:
        find_layer(model, name, role="student")
    transform = _Layout(sparse=sparse)
    transform.left_float.update(dict.fromkeys(quantization.skip, "named in `skip`"))

    def annotate(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        if layer.name in quantization.skip:
            return copy
        return tfmot.quantization.keras.quantize_annotate_layer(copy)

    try:
        annotated = tf_keras.models.clone_model(model, clone_function=annotate)
        annotated.set_weights(model.get_weights())
        quantized = tfmot.quantization.keras.quantize_apply(annotated, _Scheme(transform))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            "`student` must be a model that tfmot can quantize.",
            received=f"{model.name}: {error}",
            hint="Name the layer in Quantization(skip=[...]), or leave the stage out: "
            "int8 is then calibrated after training.",
        ) from error
    left_float = {**transform.left_float, **_without_quantizer(quantized)}
    return QuantizedModel(quantized, left_float)


def _without_quantizer(model: Any) -> dict[str, str]:
    """Kernels that ended up without a weight quantizer, found in the model, not assumed."""
    missing = {}
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        if type(inner) not in _KERNEL_LAYERS:
            continue
        attribute = _KERNEL_LAYERS[type(inner)]
        names = [weight.name for weight in layer.weights]
        if not any(f"{attribute}_min" in name for name in names):
            missing[inner.name] = "its kernel has no quantizer"
    return missing


def quantized_kernels(model: Any) -> dict[str, Any]:
    """Every kernel as the quantized model uses it: masked and rounded to its 8-bit grid.

    Args:
        model: From `quantize`.

    Returns:
        Layer name (as in the float model) to the kernel, a float32 array.
    """
    kernels = {}
    for wrapper in model.layers:
        for weight, quantizer, variables in getattr(wrapper, "_weight_vars", ()):
            kernels[wrapper.layer.name] = quantizer(weight, False, variables).numpy()
    return kernels

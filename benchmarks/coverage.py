"""What can be converted, pruned, quantized and exported: one small member of every family.

    python -m benchmarks.coverage [--only NAME ...] [--results FILE]

Every family in `keras.applications` and `tf_keras.applications`, of random weights, 10 classes
and images of 96x96 pixels, and six models of other kinds. Each goes over the bridge, is pruned
for a step, trained quantization-aware for a step, exported to int8 and run in LiteRT on random
inputs: the error is that of 99 % of the outputs, in quantization steps, against the fake-quantized
model. Networks of random weights are chaotic, so that one rounding in an early layer moves the
outputs of a deep one by many steps: "two kernels" is how far LiteRT's own two sets of kernels,
the fast ones and the plain ones, are apart on the same file. Beside it stands whether plain tfmot
quantizes the same model.

Each model is a process of its own, of which the result is kept, so that the command can be
interrupted. Takes about two hours; prints the table of `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZE, CLASSES, BATCH = 96, 10, 8
FAMILIES = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0"),
    *("NASNetMobile", "DenseNet121", "ResNet50", "ResNet50V2", "ResNetRS50", "RegNetX002"),
    *("InceptionV3", "InceptionResNetV2", "Xception", "ConvNeXtTiny", "VGG16"),
)
COLUMNS = {
    "bridge": "bridge equal",
    "pruned": "pruned",
    "trained": "QAT trains",
    "exported": "int8",
    "builtin": "builtin only",
    "int8_operators": "int8 operators",
    "int8_multiply_accumulates": "int8 MACs",
    "error": "error, steps",
    "kernels": "two kernels, steps",
    "tfmot": "tfmot alone",
}


def _network(api: str, family: str) -> Any | None:
    """A member of a family; None where this Keras does not have it."""
    import keras
    import tf_keras

    library = keras if api == "keras" else tf_keras
    make = getattr(library.applications, family, None)
    if make is None:
        return None
    library.utils.set_random_seed(0)
    return make(
        weights=None,
        input_shape=(SIZE, SIZE, 3),
        classes=CLASSES,
        classifier_activation=None,
    )


def transformer() -> Any:
    """A text classifier: two encoder layers over 32 words."""
    from keras import Input, Model, layers

    words = Input((32,), dtype="int32", name="words")
    x = layers.Embedding(1000, 64)(words)
    for _ in range(2):
        attention = layers.MultiHeadAttention(4, 16, dropout=0.1)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attention]))
        inner = layers.Dense(64)(layers.Dense(128, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.1)(inner)]))
    return Model(words, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


def recurrent(kind: str) -> Any:
    """A text classifier around an LSTM or a GRU."""
    from keras import Input, Model, layers

    words = Input((32,), dtype="int32", name="words")
    x = layers.Embedding(1000, 64)(words)
    return Model(words, layers.Dense(CLASSES)(getattr(layers, kind)(64)(x)))


def keyword_spotter() -> Any:
    """DS-CNN on spectrograms (Zhang 2017, https://arxiv.org/abs/1711.07128, section 4)."""
    from keras import Input, Model, layers

    def normalized(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    x = sound = Input((49, 10, 1), name="spectrogram")
    x = normalized(layers.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(x))
    for _ in range(4):
        x = normalized(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
        x = normalized(layers.Conv2D(64, 1, use_bias=False)(x))
    return Model(sound, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def u_net() -> Any:
    """Segmentation with transposed convolutions (Ronneberger 2015, arXiv 1505.04597)."""
    from keras import Input, Model, layers

    def twice(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    x = image = Input((64, 64, 3), name="image")
    skipped = []
    for filters in (8, 16, 32):
        x = twice(x, filters)
        skipped.append(x)
        x = layers.MaxPooling2D()(x)
    x = twice(x, 64)
    for filters in (32, 16, 8):
        x = layers.Conv2DTranspose(filters, 2, strides=2, padding="same")(x)
        x = twice(layers.Concatenate()([x, skipped.pop()]), filters)
    return Model(image, layers.Conv2D(2, 1)(x))


def two_inputs() -> Any:
    """An image and a row of numbers."""
    from keras import Input, Model, layers

    image, numbers = Input((32, 32, 3), name="image"), Input((8,), name="numbers")
    x = layers.Rescaling(1 / 255)(image)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    y = layers.BatchNormalization()(layers.Dense(16, activation="swish")(numbers))
    return Model([image, numbers], layers.Dense(CLASSES)(layers.Concatenate()([x, y])))


OTHERS: dict[str, Callable[[], Any]] = {
    "transformer": transformer,
    "LSTM": lambda: recurrent("LSTM"),
    "GRU": lambda: recurrent("GRU"),
    "DS-CNN": keyword_spotter,
    "U-Net": u_net,
    "two inputs": two_inputs,
}


def _inputs(model: Any, seed: int) -> list[Any]:
    import numpy as np

    random = np.random.default_rng(seed)
    made = []
    for tensor in model.inputs:
        shape = (BATCH, *tensor.shape[1:])
        whole = "int" in str(tensor.dtype)
        image = len(shape) == 4 and shape[-1] == 3
        values = random.integers(0, 1000, shape) if whole else random.uniform(0, 255, shape)
        made.append(values.astype("int32" if whole else "float32") / (1 if whole or image else 255))
    return made


def _settle(model: Any, inputs: list[Any]) -> None:
    """Gives each BatchNormalization the statistics of one batch, as training would."""
    normalizations = [each for each in model.layers if hasattr(each, "moving_mean")]
    momenta = [each.momentum for each in normalizations]
    for each in normalizations:
        each.momentum = 0.0
    model(inputs if len(inputs) > 1 else inputs[0], training=True)
    for each, momentum in zip(normalizations, momenta, strict=True):
        each.momentum = momentum


def measure(name: str) -> dict[str, Any] | None:
    """The row of one model, None where it does not exist."""
    import tempfile

    import numpy as np
    import tensorflow as tf
    import tf_keras

    import tfdistill as td
    from tfdistill._keras import tfmot
    from tfdistill.export import export_model
    from tfdistill.litert.operator_costs import integer_share, multiply_accumulates
    from tfdistill.litert.runtime import LiteRTModel
    from tfdistill.pruning import plan_pruning, require_sparsity, strip, wrap_for_pruning
    from tfdistill.quantization import quantize

    api, _, family = name.partition("/")
    given = OTHERS[family]() if family in OTHERS else _network(api, family)
    if given is None:
        return None
    inputs = _inputs(given, seed=0)
    _settle(given, inputs)
    row: dict[str, Any] = {"parameters": given.count_params()}

    def packed(values: list[Any]) -> Any:
        return [tf.constant(v) for v in values] if len(values) > 1 else tf.constant(values[0])

    def step(model: Any) -> None:
        """One step towards random outputs: also what a quantizer's range begins with."""
        with tf.GradientTape() as tape:
            outputs = model(packed(inputs), training=True)
            wanted = np.random.default_rng(1).normal(size=outputs.shape).astype("float32")
            loss = tf.reduce_mean((outputs - wanted) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        pairs = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True)]
        tf_keras.optimizers.SGD(1e-3).apply_gradients([p for p in pairs if p[0] is not None])

    try:
        student = td.to_tf_keras(given)
        row["bridge"] = True
        pruning = td.Pruning(sparsity=0.75, epochs=1)
        plan = plan_pruning(student, pruning)
        wrapped = wrap_for_pruning(student, pruning, plan, 1)
        callback = tfmot.sparsity.keras.UpdatePruningStep()
        callback.set_model(wrapped)
        callback.on_train_begin()
        for _ in range(2):
            callback.on_train_batch_begin(0)
            step(wrapped)
        callback.on_epoch_end(0)
        pruned = tf_keras.models.clone_model(student)
        pruned.set_weights(strip(wrapped).get_weights())
        require_sparsity(pruned, pruning, plan)
        row["pruned"] = len(plan.pruned)
        quantized = quantize(pruned, td.Quantization(epochs=1), sparse=True)
        step(quantized.model)
        row["trained"] = True
        row["left_float"] = quantized.left_float
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "student.tflite"
            exported = export_model(quantized.model, path, "int8", quantization_aware=True)
            row["exported"] = True
            row["builtin"] = not any(
                operator.name.startswith(("Flex", "CUSTOM"))
                for operator in exported.inspection.operators
            )
            costs = multiply_accumulates(path)
            row["int8_operators"] = sum(c.activations == "int8" for c in costs) / len(costs)
            row["int8_multiply_accumulates"] = integer_share(costs)
            others = _inputs(given, seed=2)
            named = dict(zip(quantized.model.input_names, others, strict=True))
            (outputs,) = LiteRTModel(path).predict(named).values()
            (plain,) = LiteRTModel(path, reference_kernels=True).predict(named).values()
            (scale,) = exported.inspection.output_scales.values()
        wanted = quantized.model(packed(others), training=False).numpy()
        row["error"] = float(np.quantile(np.abs(outputs - wanted) / scale, 0.99))
        row["kernels"] = float(np.quantile(np.abs(outputs - plain) / scale, 0.99))
    except Exception as error:  # the table shows what does not work
        row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    try:
        tfmot.quantization.keras.quantize_model(given)
        row["tfmot"] = True
    except Exception as error:  # it raises what it runs into
        row["tfmot"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    lines = [f"| model | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for name, row in rows.items():
        cells = []
        for column in COLUMNS:
            value = row.get(column)
            if column == "tfmot":
                cells.append("yes" if value is True else "no")
            elif value is None:
                cells.append("**no**")
            elif column.startswith("int8_"):
                cells.append(f"{value:.1%}")
            elif column in ("error", "kernels"):
                cells.append(f"{value:.2f}")
            else:
                cells.append("yes" if value is True else str(value))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what has no result yet, and prints the table."""
    names = [f"{api}/{family}" for api in ("keras", "tf_keras") for family in FAMILIES]
    names += [f"keras/{name}" for name in OTHERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--results", type=Path, default=Path("saved_models/coverage.json"))
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        from tfdistill.terminal import quiet_tensorflow

        quiet_tensorflow()
        print("\n" + json.dumps(measure(arguments.one)))
        return
    results = arguments.results
    rows = json.loads(results.read_text()) if results.exists() else {}
    for name in arguments.only:
        if name in rows and not arguments.again:
            continue
        begin = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.coverage", "--one", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            row = {"failed": f"the process ended: {done.stderr.strip()[-300:]}"}
        else:
            row = json.loads(done.stdout.strip().splitlines()[-1])
        rows[name] = row
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(rows, indent=1))
        seconds = time.monotonic() - begin
        print(f"{name}: {(row or {}).get('failed', 'done')} ({seconds:.0f} s)", file=sys.stderr)
    print(table({name: rows[name] for name in names if rows.get(name)}))


if __name__ == "__main__":
    main()

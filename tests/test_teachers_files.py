"""Saved files that teach: SavedModels and LiteRT files, against the models they came from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from networks import FEATURES, examples, logits_of, perceptron
from quick import only

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError, TeacherError
from tfdistill.export.conversion import calibration_examples, convert
from tfdistill.host import silence
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.teachers import LiteRT, SavedModel, as_teacher, identity_of_teacher

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning"),
]

LAYERS = tf_keras.layers


def _student(**settings: Any) -> Any:
    return perceptron(tf_keras, **settings)


def _saved(folder: Path, function: Callable[..., Any], **signatures: Any) -> Path:
    """A SavedModel of a function on `[batch, 4]`, and of more signatures."""
    module = tf.Module()
    spec = tf.TensorSpec([None, FEATURES], tf.float32, name="x")
    concrete = {"serving_default": tf.function(function).get_concrete_function(spec)}
    concrete.update({n: tf.function(f).get_concrete_function(spec) for n, f in signatures.items()})
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return folder


def _lite(path: Path, model: Any, format: str = "float32", **options: Any) -> Path:
    data = []
    if format == "int8":
        shape = (64, *model.inputs[0].shape[1:])
        batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        data = calibration_examples(batch, model, 64)
    path.write_bytes(convert(model, format, examples=data, **options))
    return path


def _converted(path: Path, source: Path, signatures: list[str] | None = None) -> Path:
    """By TensorFlow's own converter, which keeps an open batch size and several signatures."""
    with silence():
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(source), signature_keys=signatures or ["serving_default"]
        )
        path.write_bytes(converter.convert())
    return path


def _changed(path: Path, change: Callable[[Any], None]) -> Path:
    """The LiteRT file with something in it changed."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _two_inputs(library: Any) -> Any:
    left = library.layers.Input([FEATURES], name="left")
    right = library.layers.Input([FEATURES], name="right")
    scaled = library.layers.Rescaling(10.0)(right)
    return library.Model([left, right], library.layers.Subtract(name="difference")([left, scaled]))


# --- SavedModel ---


@pytest.mark.parametrize("way", ["keras export", "tf_keras save"])
def test_saved_model_says_what_the_model_says(tmp_path: Path, way: str) -> None:
    inputs = examples()[0]
    with silence():
        if way == "keras export":
            model = perceptron(keras, units=7, seed=1)
            model.export(tmp_path / "birds", verbose=False)
        else:
            model = perceptron(tf_keras, units=7, seed=1)
            model.save(tmp_path / "birds", save_format="tf")
    given = SavedModel(tmp_path / "birds")
    teacher = as_teacher(given, _student())
    logits = tf.function(lambda batch: teacher(batch).logits)(tf.constant(inputs))
    expected = logits_of(model.get_weights(), inputs)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert (given.name, given.count_params()) == ("birds", model.count_params())


def test_saved_model_is_neither_trained_nor_tracked(tmp_path: Path, two_replicas: Any) -> None:
    """And teaches on two replicas, compiled or not, as the model that it came from does."""
    model = perceptron(keras, units=7, seed=1)
    model.export(tmp_path / "saved", verbose=False)
    inputs, labels, _ = examples(12)
    trained = []
    for strategy, teacher, compiled in (
        (tf.distribute.get_strategy(), model, False),
        (tf.distribute.get_strategy(), SavedModel(tmp_path / "saved"), True),
        (two_replicas, SavedModel(tmp_path / "saved"), False),
    ):
        with strategy.scope():
            distiller = td.Distiller(_student(), teacher, losses=[td.losses.SoftTargets()])
            distiller.compile(
                tf_keras.optimizers.SGD(0.05),
                "sparse_categorical_crossentropy",
                jit_compile=compiled,
            )
        distiller.fit(inputs, labels, batch_size=12, verbose=0)
        assert distiller.count_params() == _student().count_params()
        trained.append([np.array(weight) for weight in distiller.student.get_weights()])
    for weights in trained[1:]:
        for one, other in zip(weights, trained[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    said = as_teacher(SavedModel(tmp_path / "saved"), _student())(inputs).logits
    np.testing.assert_allclose(said, logits_of(model.get_weights(), inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["saved model", "litert"])
def test_several_inputs_go_by_name(tmp_path: Path, kind: str) -> None:
    """Given in another order than the student's, in a dictionary, or in a list."""
    model = _two_inputs(tf_keras)
    teacher: Any
    if kind == "saved model":
        with silence():
            model.save(tmp_path / "saved", save_format="tf")
        teacher = SavedModel(tmp_path / "saved")
    else:
        teacher = LiteRT(_lite(tmp_path / "a.tflite", model))
    right, left = (LAYERS.Input([FEATURES], name=name) for name in ("right", "left"))
    head = LAYERS.Dense(FEATURES)(LAYERS.Concatenate()([right, left]))
    values = {"left": examples(3)[0], "right": examples(3, seed=1)[0]}
    expected = values["left"] - 10 * values["right"]

    student = tf_keras.Model([right, left], head)
    listed = as_teacher(teacher, student)([values["right"], values["left"]]).logits
    np.testing.assert_allclose(listed, expected, rtol=1e-5)
    student = tf_keras.Model({"right": right, "left": left}, head)
    np.testing.assert_allclose(as_teacher(teacher, student)(values).logits, expected, rtol=1e-5)

    other = tf_keras.Model([right, left], head)
    other.inputs[0]._keras_history.layer._name = "top"
    with pytest.raises(
        ModelError,
        match=r"must have inputs of the same names.*teacher inputs .*student inputs top, left",
    ):
        as_teacher(teacher, other)


def test_signature_and_output_are_chosen(tmp_path: Path) -> None:
    def both(x: Any) -> Any:
        return {"logits": x[:, :3], "embedding": x}

    path = _saved(tmp_path / "saved", both, doubled=lambda x: {"out": 2 * x[:, :3]})
    inputs = examples()[0]

    def said(teacher: Any) -> Any:
        return as_teacher(teacher, _student())(inputs).logits

    np.testing.assert_array_equal(said(SavedModel(path, output="logits")), inputs[:, :3])
    np.testing.assert_array_equal(said(SavedModel(path, "doubled")), 2 * inputs[:, :3])
    with pytest.raises(ModelError, match=r"`output` must say which.*They are: embedding, logits"):
        SavedModel(path)
    with pytest.raises(ModelError, match=r"`output` must be an output.*Did you mean 'logits'"):
        SavedModel(path, output="logit")
    with pytest.raises(ModelError, match=r"`signature` must be one of.*It has: .*doubled"):
        SavedModel(path, "serve")


def test_types_are_converted_where_nothing_is_lost(tmp_path: Path) -> None:
    module = tf.Module()
    tables = {
        kind: tf.function(lambda x: tf.cast(x, tf.float32)[:, :3]).get_concrete_function(
            tf.TensorSpec([None, FEATURES], kind)
        )
        for kind in (tf.uint8, tf.float64)
    }
    signatures = {kind.name: function for kind, function in tables.items()}
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signatures)
    integers = tf.constant([[7, 8, 9, 10]], tf.int32)
    source = LAYERS.Input([FEATURES], dtype="int32")
    student = tf_keras.Model(source, LAYERS.Dense(3)(source))
    for kind in signatures:
        teacher = as_teacher(SavedModel(tmp_path / "saved", kind), student)
        np.testing.assert_array_equal(teacher(integers).logits, [[7, 8, 9]])
    with pytest.raises(
        ModelError, match=r"must get the type that it takes: uint8 for 'x'.*Received: float32"
    ):
        as_teacher(SavedModel(tmp_path / "saved", "uint8"), _student())


def test_probabilities_of_files_are_read_as_their_logarithms(tmp_path: Path) -> None:
    model = perceptron(tf_keras, activation="softmax")
    expected = logits_of(model.get_weights(), examples()[0])
    expected -= np.log(np.exp(expected).sum(axis=-1, keepdims=True))
    with silence():
        model.save(tmp_path / "saved", save_format="tf")
    lite = _lite(tmp_path / "a.tflite", model)
    with pytest.raises(ModelError, match=r"must return logits\..*or pass probabilities=True"):
        as_teacher(SavedModel(tmp_path / "saved"), _student())
    with pytest.raises(
        ModelError,
        match=r"must return logits\. Received: the output 'logits', which a softmax or a sigmoid",
    ):
        LiteRT(lite)
    for given in (
        SavedModel(tmp_path / "saved", probabilities=True),
        LiteRT(lite, probabilities=True),
    ):
        teacher = as_teacher(given, _student())
        np.testing.assert_allclose(teacher(examples()[0]).logits, expected, rtol=1e-3, atol=1e-4)
        assert "returns probabilities" in teacher.note


def test_quantized_probabilities_need_not_sum_to_one(tmp_path: Path) -> None:
    """Steps of 1/256 in 60 classes: the sum is beyond the tolerance that holds for floats."""
    source = LAYERS.Input([FEATURES], name="features")
    model = tf_keras.Model(source, LAYERS.Dense(60, "softmax", name="scores")(source))
    path = _lite(tmp_path / "a.tflite", model, "int8", types=("int8", "int8"))
    teacher = as_teacher(LiteRT(path, probabilities=True), _student(classes=60))
    inputs = examples()[0]
    sums = np.exp(teacher(inputs).logits).sum(axis=-1)
    assert np.abs(sums - 1).max() > 1e-3
    np.testing.assert_allclose(np.exp(teacher(inputs).logits), model(inputs), atol=2 / 256)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SavedModel(p / "none"), r"`path` must be a TensorFlow SavedModel folder.*none"),
        (
            lambda p: as_teacher(SavedModel(_saved(p / "a", lambda x: x[0])), _student()),
            r"must return one tensor of shape \[batch, classes\] = \[4, classes\]",
        ),
        (
            lambda p: as_teacher(SavedModel(_saved(p / "a", lambda x: tf.argmax(x))), _student()),
            r"must return one tensor of shape",
        ),
        (
            lambda p: as_teacher(
                SavedModel(_saved(p / "a", lambda x: tf.cast(x, tf.int32))), _student()
            ),
            r"must return logits, in a floating-point type\. Received: an output of type int32",
        ),
        (
            lambda p: as_teacher(
                SavedModel(_saved(p / "a", lambda x: x)), perceptron(tf_keras), ["hidden"]
            ),
            r"for losses that read its layers\. Received: a SavedModel and the layers",
        ),
    ],
    ids=["nothing", "rank", "classes", "dtype", "layers"],
)
def test_saved_model_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(tmp_path)


def test_a_saved_model_of_another_size_is_refused(tmp_path: Path) -> None:
    source = LAYERS.Input([5])
    student = tf_keras.Model(source, LAYERS.Dense(4)(source))
    given = SavedModel(_saved(tmp_path / "a", lambda x: x))
    with pytest.raises(
        ModelError, match=r"must take the same inputs\. Received: teacher inputs \[\(4,\)\]"
    ):
        as_teacher(given, student)
    fixed = tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([1, FEATURES], name="x"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "b"), signatures=fixed)
    with pytest.raises(ModelError, match=r"must take batches of any size\. .*'x' of shape \(1, 4"):
        SavedModel(tmp_path / "b")


def test_identity_of_files_is_their_content(tmp_path: Path) -> None:
    def print_of(teacher: Any) -> str:
        return fingerprint(identity_of_teacher(teacher, _student()))

    function = tf.function(lambda x: {"a": x[:, :3], "b": x[:, 1:]})
    path = _saved(tmp_path / "one", function)
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("not part of the model")
    first = print_of(SavedModel(path, output="a"))
    assert first == print_of(SavedModel(tmp_path / "copy", output="a"))
    assert first != print_of(SavedModel(path, output="b"))

    model = perceptron(keras)
    prints: set[str] = set()
    for name, seed in (("two", 0), ("three", 1)):
        model.set_weights(perceptron(keras, seed=seed).get_weights())
        model.export(tmp_path / name, verbose=False)
        prints.add(print_of(SavedModel(tmp_path / name)))
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    shutil.rmtree(tmp_path / "four" / "variables")
    shutil.copytree(tmp_path / "three" / "variables", tmp_path / "four" / "variables")
    assert print_of(SavedModel(tmp_path / "four")) != print_of(SavedModel(tmp_path / "two"))
    lites = [_lite(tmp_path / f"{seed}.tflite", perceptron(tf_keras, seed=seed)) for seed in (0, 1)]
    prints |= {print_of(LiteRT(path)) for path in lites}
    assert len(prints | {first}) == 5
    assert print_of(LiteRT(lites[0])) == print_of(LiteRT(lites[0], num_threads=1, name="other"))


# --- LiteRT ---


def _alone(path: Path, batch: Any) -> Any:
    """Example by example through the bare runtime, as in LiteRT's documentation."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for example in batch:
        (scale, zero), (out_scale, out_zero) = source["quantization"], target["quantization"]
        if scale:
            limits = np.iinfo(source["dtype"])
            example = np.clip(np.round(example / np.float32(scale)) + zero, limits.min, limits.max)
        interpreter.set_tensor(source["index"], example[np.newaxis].astype(source["dtype"]))
        interpreter.invoke()
        answer = interpreter.get_tensor(target["index"])[0].astype(np.float32)
        found.append((answer - out_zero) * np.float32(out_scale) if out_scale else answer)
    return np.array(found)


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("threads", only(2, of=[None, 1, 2]))
def test_litert_says_what_the_runtime_says(tmp_path: Path, kind: str, threads: int | None) -> None:
    model = perceptron(tf_keras, units=7, seed=1)
    types = {} if kind == "float32" else {"types": (kind, kind)}
    path = _lite(tmp_path / "birds.tflite", model, "float32" if not types else "int8", **types)
    given = LiteRT(path, num_threads=threads)
    teacher = as_teacher(given, _student())
    inputs = examples()[0]
    logits = tf.function(lambda batch: teacher(batch).logits)(tf.constant(inputs))
    np.testing.assert_allclose(logits, _alone(path, inputs), rtol=1e-6, atol=1e-6)
    expected = logits_of(model.get_weights(), inputs)
    np.testing.assert_allclose(logits, expected, atol=1e-5 if not types else 0.5)
    assert given.name == "birds"
    # Not the biases, which have one axis.
    assert given.count_params() == sum(w.size for w in model.get_weights() if w.ndim > 1)


@pytest.mark.parametrize("batch", only(None, 4, of=[None, 1, 4]))
@pytest.mark.parametrize("signed", [True, False], ids=["signature", "without"])
def test_any_batch_is_run_in_pieces_of_the_files_own(
    tmp_path: Path, batch: int | None, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = perceptron(keras, seed=1).get_weights()
    kernels = [tf.constant(weight) for weight in weights]
    module = tf.Module()
    function = tf.function(
        lambda x: tf.nn.relu(x @ kernels[0] + kernels[1]) @ kernels[2] + kernels[3]
    ).get_concrete_function(tf.TensorSpec([batch, FEATURES], name="x"))
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=function)
    path = _converted(tmp_path / "a.tflite", tmp_path / "saved")
    if not signed:  # as older converters wrote them
        _changed(path, lambda model: setattr(model, "signatureDefs", None))
    assert len(Interpreter(model_path=str(path)).get_signature_list()) == signed
    given = LiteRT(path)
    teacher = as_teacher(given, _student())
    run, sizes = given._file._run, []

    def watched(piece: Any) -> Any:
        sizes.append(len(piece[next(iter(piece))]))
        return run(piece)

    monkeypatch.setattr(given._file, "_run", watched)
    for count in (1, 4, 6, 15, 3):
        inputs = examples(count)[0]
        np.testing.assert_allclose(
            teacher(inputs).logits, logits_of(weights, inputs), rtol=1e-4, atol=1e-5
        )
        assert sizes == ([count] if batch is None else [batch] * math.ceil(count / batch))
        sizes.clear()


def test_a_named_signature_is_run(tmp_path: Path) -> None:
    path = _converted(
        tmp_path / "a.tflite",
        _saved(
            tmp_path / "saved",
            lambda x: {"plain": x[:, :3] + 0.0},
            soft=lambda x: {"soft": tf.nn.softmax(x[:, :3])},
            doubled=lambda x: {"logits": 2 * x[:, :3], "embedding": x * 3},
        ),
        ["serving_default", "soft", "doubled"],
    )
    inputs = examples()[0]

    def said(teacher: Any) -> Any:
        return as_teacher(teacher, _student())(inputs).logits

    np.testing.assert_allclose(said(LiteRT(path)), inputs[:, :3])
    np.testing.assert_allclose(said(LiteRT(path, "doubled", "logits")), 2 * inputs[:, :3])
    with pytest.raises(ModelError, match=r"Received: the output 'soft', which a softmax"):
        LiteRT(path, "soft")
    with pytest.raises(ModelError, match=r"`output` must say which.*They are: .*embedding"):
        LiteRT(path, "doubled")
    with pytest.raises(ModelError, match=r"`signature` must be one of.*It has: .*doubled"):
        LiteRT(path, "tripled")


def test_batches_of_two_sizes_in_one_file_are_refused(tmp_path: Path) -> None:
    specs = [tf.TensorSpec([size, FEATURES], tf.float32, name=f"x{size}") for size in (2, 3)]
    both = tf.function(lambda x2, x3: {"joined": tf.concat([x2, x3], 0)})
    module = tf.Module()
    signatures = {"serving_default": both.get_concrete_function(*specs)}
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signatures)
    path = _converted(tmp_path / "a.tflite", tmp_path / "saved")
    with pytest.raises(
        ModelError,
        match=r"a\.tflite` must have the same batch axis in all inputs and outputs\. Received: "
        r"\[2, 4\], \[3, 4\], \[5, 4\]\. Export it with a batch size of 1",
    ):
        LiteRT(path)


def test_each_example_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    """The runtime's LSTM keeps its state from one run to the next; Keras' does not."""
    source = LAYERS.Input([6, FEATURES], name="sequence")
    model = tf_keras.Model(source, LAYERS.Dense(3, name="logits")(LAYERS.LSTM(4)(source)))
    inputs = np.random.default_rng(0).normal(size=[5, 6, FEATURES]).astype(np.float32)
    given = LiteRT(_lite(tmp_path / "a.tflite", model))
    assert given._file.inspection.stateful
    teacher = as_teacher(given, model)
    for _ in range(2):
        np.testing.assert_allclose(teacher(inputs).logits, model(inputs), atol=1e-5)


def test_litert_teaches_on_two_replicas_as_its_model(tmp_path: Path, two_replicas: Any) -> None:
    model = perceptron(tf_keras, units=7, seed=1)
    given = LiteRT(_lite(tmp_path / "a.tflite", model))
    inputs, labels, _ = examples(12)
    trained = []
    for strategy, teacher in (
        (tf.distribute.get_strategy(), model),
        (tf.distribute.get_strategy(), given),
        (two_replicas, given),
    ):
        with strategy.scope():
            distiller = td.Distiller(_student(), teacher, losses=[td.losses.SoftTargets()])
            distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
        distiller.fit(inputs, labels, batch_size=12, verbose=0)
        trained.append([np.array(weight) for weight in distiller.student.get_weights()])
    for weights in trained[1:]:
        for one, other in zip(weights, trained[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_open_sizes_are_the_files(tmp_path: Path) -> None:
    """Of 12, which is none of those that are tried otherwise."""
    source = LAYERS.Input([12, 12, 1], name="image")
    hidden = LAYERS.Conv2D(2, 3)(source)
    model = tf_keras.Model(source, LAYERS.Dense(3)(LAYERS.Flatten()(hidden)))
    with silence():
        model.save(tmp_path / "saved", save_format="tf")
    inputs = LAYERS.Input([None, None, 1])
    student = tf_keras.Model(inputs, LAYERS.Dense(3)(LAYERS.Reshape([144])(inputs)))
    lite = LiteRT(_lite(tmp_path / "a.tflite", model))
    for given in (lite, SavedModel(tmp_path / "saved")):
        assert as_teacher(given, student).shapes.logits == (3,)
        td.Distiller(student, given, losses=[td.losses.SoftTargets()])
    # The runtime itself would take 8, and compute something.
    with pytest.raises(TeacherError, match=r"must get the shape \[batch, 12, 12, 1\] for 'image'"):
        as_teacher(lite, student)(np.zeros([2, 8, 8, 1], np.float32))


def test_what_the_runtime_refuses_is_named_with_its_batch(tmp_path: Path) -> None:
    source = LAYERS.Input([1], dtype="int32", name="word")
    model = tf_keras.Model(source, LAYERS.Flatten()(LAYERS.Embedding(4, 2)(source)))
    path = _lite(tmp_path / "a.tflite", model)
    distiller = td.Distiller(
        tf_keras.models.clone_model(model), LiteRT(path), [td.losses.SoftTargets()], 0.0
    )
    distiller.compile()
    words = np.array([[0], [1], [2], [9]], np.int32)
    with pytest.raises(
        TeacherError,
        match=r"The teacher 'a' .*ModelError: .* must run on every batch.*in batch 2 since `fit`",
    ) as raised:
        distiller.fit(words, batch_size=2, shuffle=False, verbose=0)
    assert isinstance(raised.value.__cause__, ModelError)
    floats = LAYERS.Input([1])
    with pytest.raises(TeacherError, match=r"must get the type that it takes: int32 for 'word'"):
        as_teacher(LiteRT(path), tf_keras.Model(floats, LAYERS.Dense(2)(floats)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: LiteRT(p / "none"), ModelError, r"must be a LiteRT model"),
        (
            lambda p: LiteRT(_lite(p / "a", perceptron(tf_keras)), num_threads=0),
            SettingError,
            r"`num_threads` must be a whole number >= 1\. Received: 0",
        ),
        (
            lambda p: as_teacher(
                LiteRT(_lite(p / "a", perceptron(tf_keras))), _student(), ["hidden"]
            ),
            ModelError,
            r"for losses that read its layers\. Received: a LiteRT file and the layers",
        ),
        (
            lambda p: as_teacher(LiteRT(_lite(p / "a", _two_inputs(tf_keras))), _student()),
            ModelError,
            r"must have inputs of the same names",
        ),
        (
            lambda p: as_teacher(
                LiteRT(_lite(p / "a", perceptron(tf_keras)), probabilities=True), _student()
            ),
            ModelError,
            r"must return probabilities, where it was given with probabilities=True",
        ),
    ],
    ids=["nothing", "threads", "layers", "inputs", "logits"],
)
def test_litert_is_refused(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(tmp_path)

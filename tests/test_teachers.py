"""What may teach, what it says, what it is spared, and what is refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import FEATURES, examples, hidden_of, logits_of, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.export.conversion import convert
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.teachers import (
    Ensemble,
    Function,
    LiteRT,
    Model,
    SavedModel,
    as_teacher,
    identity_of_teacher,
    require_own_weights,
)

# Keras 3 saves its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

each_library = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def _sequential(library: Any) -> Any:
    model = perceptron(library)
    layers = [layer for layer in model.layers if layer.name != "features"]
    return library.Sequential([library.layers.Input([FEATURES]), *layers])


def _subclassed(library: Any, *, knows_training: bool) -> Any:
    """A subclassed model around a perceptron, whose `call` has `training` or not."""

    class Subclassed(library.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron(library)
            self.dropout = library.layers.Dropout(0.9)

    class Knowing(Subclassed):
        def call(self, inputs: Any, training: bool = True) -> Any:
            return self.dropout(self.inner(inputs), training=training)

    class Unknowing(Subclassed):
        def call(self, inputs: Any) -> Any:
            return self.inner(inputs)

    return Knowing() if knows_training else Unknowing()


def _function() -> Any:
    weights = [tf.constant(weight) for weight in perceptron(keras).get_weights()]

    def teach(inputs: Any) -> Any:
        hidden = tf.nn.relu(inputs @ weights[0] + weights[1])
        return hidden @ weights[2] + weights[3]

    return teach


TEACHERS: dict[str, Callable[[], Any]] = {
    "Keras 3 Functional": lambda: perceptron(keras),
    "Keras 3 Sequential": lambda: _sequential(keras),
    "Keras 3 subclassed": lambda: _subclassed(keras, knows_training=True),
    "Keras 3 subclassed, no training argument": lambda: _subclassed(keras, knows_training=False),
    "tf_keras Functional": lambda: perceptron(tf_keras),
    "tf_keras Sequential": lambda: _sequential(tf_keras),
    "tf_keras subclassed": lambda: _subclassed(tf_keras, knows_training=True),
    "tf_keras subclassed, no training argument": lambda: _subclassed(
        tf_keras, knows_training=False
    ),
    "function": _function,
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_logits_are_the_closed_form(kind: str) -> None:
    teacher = as_teacher(TEACHERS[kind](), perceptron(tf_keras))
    inputs, *_ = examples()
    logits = tf.function(lambda batch: teacher(batch).logits)(tf.constant(inputs))
    expected = logits_of(perceptron(keras).get_weights(), inputs)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert teacher.shapes.logits == (3,)


@each_library
def test_features_and_logits_carry_no_gradient(library: Any) -> None:
    model = perceptron(library)
    teacher = as_teacher(model, perceptron(tf_keras), ["rectified"])
    inputs = tf.constant(examples()[0])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = teacher(inputs)
        total = tf.reduce_sum(outputs.logits) + tf.reduce_sum(outputs.features["rectified"])
    np.testing.assert_allclose(
        outputs.features["rectified"], hidden_of(model.get_weights(), inputs), rtol=1e-5
    )
    variables = [v.value if library is keras else v for v in model.trainable_variables]
    assert tape.gradient(total, [inputs, *variables]) == [None] * 5


def test_function_carries_no_gradient() -> None:
    variable = tf.Variable(tf.ones([FEATURES, 3]))
    teacher = as_teacher(lambda inputs: inputs @ variable, perceptron(tf_keras))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(teacher(tf.constant(examples()[0])).logits)
    assert tape.gradient(total, variable) is None


def _two_inputs(library: Any, structure: Callable[[Any, Any], Any]) -> Any:
    left = library.layers.Input([FEATURES], name="left")
    right = library.layers.Input([2], name="right")
    joined = library.layers.Concatenate()([left, right])
    return library.Model(structure(left, right), library.layers.Dense(3)(joined))


@each_library
@pytest.mark.parametrize("named", [True, False], ids=["dict", "list"])
def test_several_inputs(library: Any, named: bool) -> None:
    def structure(left: Any, right: Any) -> Any:
        return {"left": left, "right": right} if named else [left, right]

    model = _two_inputs(library, structure)
    student = _two_inputs(tf_keras, structure)
    inputs, *_ = examples()
    given = structure(tf.constant(inputs), tf.constant(inputs[:, :2]))

    logits = as_teacher(model, student)(given).logits
    np.testing.assert_allclose(logits, np.asarray(model(given)), rtol=1e-6)

    def teach(values: Any) -> Any:  # a function sees what the data set holds
        left, right = (values["left"], values["right"]) if named else values
        return tf.concat([left, right], axis=-1)[:, :3]

    np.testing.assert_array_equal(as_teacher(teach, student)(given).logits, inputs[:, :3])


def test_open_sizes_are_the_students() -> None:
    def images(shape: list[int | None]) -> Any:
        inputs = tf_keras.layers.Input(shape)
        hidden = tf_keras.layers.Conv2D(2, 12)(inputs)  # 12x12 at least
        return tf_keras.Model(inputs, tf_keras.layers.GlobalMaxPooling2D()(hidden))

    assert as_teacher(images([None, None, 1]), images([16, 16, 1])).shapes.logits == (2,)


def test_open_sizes_are_those_that_a_function_takes() -> None:
    inputs = tf_keras.layers.Input([None, None, 1])
    student = tf_keras.Model(inputs, tf_keras.layers.GlobalMaxPooling2D()(inputs))
    kernel = tf.ones([12, 12, 1, 1])  # 12x12 at least

    def teach(images: Any) -> Any:
        return tf.reduce_max(tf.nn.conv2d(images, kernel, 1, "VALID"), axis=[1, 2])

    assert as_teacher(teach, student).shapes.logits == (1,)
    (said,) = identity_of_teacher(teach, student)
    assert np.all(np.isfinite(said))


def test_identity_with_open_sizes_is_seen_at_the_teachers() -> None:
    inputs = tf_keras.layers.Input([None, None, 1])
    student = tf_keras.Model(inputs, tf_keras.layers.GlobalMaxPooling2D()(inputs))
    inputs = keras.layers.Input([4, 4, 1])
    teacher = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    said, *_ = identity_of_teacher(teacher, student)
    assert said.shape == (4, 1)


# --- td.teachers.Model, and all kinds together ---


@pytest.mark.parametrize(
    ("library", "name"), [(keras, "a.keras"), (tf_keras, "a.keras"), (tf_keras, "a.h5")]
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning")
def test_saved_keras_model_teaches_with_its_layers(library: Any, name: str, tmp_path: Path) -> None:
    model = perceptron(library, name="birds")
    model.save(tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        given = Model(path)
        teacher = as_teacher(given, perceptron(tf_keras), ["rectified"])
        outputs = teacher(examples()[0])
        weights = model.get_weights()
        np.testing.assert_allclose(
            outputs.logits, logits_of(weights, examples()[0]), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            outputs.features["rectified"], hidden_of(weights, examples()[0]), rtol=1e-5
        )
        assert (given.name, given.count_params()) == ("birds", model.count_params())
        assert Model(path, name="other").name == "other"


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_model_that_is_named_a_model_is_the_same_teacher(kind: str) -> None:
    model = TEACHERS[kind]()
    if not isinstance(model, keras.Model | tf_keras.Model):
        with pytest.raises(ModelError, match=r"`model` must be a Keras 3 or .*Received: function"):
            Model(model)
        return
    student = perceptron(tf_keras)
    prints = [fingerprint(identity_of_teacher(each, student)) for each in (model, Model(model))]
    assert prints[0] == prints[1]
    with pytest.raises(ModelError, match=r"`student` must not train weights of the `teacher`"):
        require_own_weights(model, Model(model))


def test_saved_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input([FEATURES])
    keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, :3])(inputs)).save(tmp_path / "a.keras")
    with pytest.raises(ModelError, match="without Lambda layers"):
        Model(tmp_path / "a.keras")
    with pytest.raises(ModelError, match=r"must be a saved model.*nothing is there"):
        Model(tmp_path / "b.keras")
    with pytest.raises(SettingError, match=r"`name` must be a non-empty str\. Received: 3\."):
        Model(perceptron(keras), name=3)  # type: ignore[arg-type]


@pytest.mark.slow  # each kind alone is quick
def test_every_kind_teaches_in_a_pipeline_and_is_known_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run, of a teacher made anew from the same files, finds its stages finished."""
    model = perceptron(keras, seed=1)
    model.save(tmp_path / "a.keras")
    model.export(tmp_path / "exported", verbose=False)
    lite = convert(perceptron(tf_keras, seed=1), "float32", examples=[])
    (tmp_path / "a.tflite").write_bytes(lite)
    weights = model.get_weights()
    inputs, labels, _ = examples(32)
    pipeline = td.Pipeline(
        distillation=td.Distillation(
            [td.losses.SoftTargets(), td.losses.Hint("a/hidden", "hidden")], epochs=1
        ),
        quantization=td.Quantization(epochs=1),
        export=td.Export(
            formats=("float32",), limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        ),
        baseline=False,
    )
    said = []
    for _ in range(2):
        teacher = Ensemble(
            [
                Model(tmp_path / "a.keras", name="a"),
                SavedModel(tmp_path / "exported"),
                LiteRT(tmp_path / "a.tflite"),
                Function(lambda x: logits_of(weights, x), name="f", version="1"),
            ],
            combine="probabilities",
        )
        result = pipeline.run(
            perceptron(keras, units=16, name="small"),
            teacher,
            (inputs, labels),
            test=(inputs, labels),
            run_dir=tmp_path / "run",
        )
        said.append(capsys.readouterr().out)
        rows = {row.name: row for row in result.report.rows}
        right = logits_of(weights, inputs).argmax(-1) == labels
        assert rows["teacher"].accuracy == np.mean(right)
        assert rows["teacher"].parameters is None  # a function does not tell
    assert [text.count("finished before") for text in said] == [0, 3]  # two stages, an artifact


# --- refused ---


@each_library
def test_probabilities_of_a_function_are_refused(library: Any) -> None:
    softmax = perceptron(library, activation="softmax")
    with pytest.raises(ModelError, match=r"`teacher` must return logits\. Received: outputs that"):
        as_teacher(lambda inputs: softmax(inputs), perceptron(tf_keras))


def test_probabilities_of_a_model_that_hides_its_softmax_are_refused() -> None:
    inputs = keras.layers.Input([FEATURES])
    positive = keras.ops.exp(keras.layers.Dense(3)(inputs))
    hidden_softmax = keras.Model(inputs, positive / keras.ops.sum(positive, -1, keepdims=True))
    with pytest.raises(ModelError, match=r"`teacher` must return logits"):
        as_teacher(hidden_softmax, perceptron(tf_keras))


@pytest.mark.parametrize(
    ("function", "received"),
    [
        (lambda inputs: inputs[:, :3, None], r"shape \(4, 3, 1\)"),
        (lambda inputs: tf.reduce_sum(inputs), r"shape \(\)"),
        (lambda inputs: inputs[:2, :3], r"shape \(2, 3\)"),
        (lambda inputs: {"logits": inputs}, r"dict of shape None"),
        (lambda inputs: [inputs, inputs], r"list of shape None"),
    ],
    ids=["rank 3", "scalar", "another batch", "dict", "list"],
)
def test_function_must_return_a_row_an_example(function: Any, received: str) -> None:
    with pytest.raises(ModelError, match=rf"`teacher` must return one tensor.*{received}"):
        as_teacher(function, perceptron(tf_keras))


@pytest.mark.parametrize("teacher", ["teacher.keras", 3, None, [1.0]])
def test_what_cannot_be_called_is_refused(teacher: Any) -> None:
    with pytest.raises(
        ModelError,
        match=r"`teacher` must be a Keras model or a function .*Received: (str|int|None|list)",
    ):
        as_teacher(teacher, perceptron(tf_keras))


@each_library
def test_other_inputs_are_refused(library: Any) -> None:
    inputs = library.layers.Input([FEATURES + 1])
    other = library.Model(inputs, library.layers.Dense(3)(inputs))
    with pytest.raises(
        ModelError,
        match=r"must take the same inputs\. Received: teacher inputs \[\(5,\)\], "
        r"student inputs \[\(4,\)\]",
    ):
        as_teacher(other, perceptron(tf_keras))
    two = _two_inputs(library, lambda left, right: [left, right])
    with pytest.raises(ModelError, match=r"must take the same inputs"):
        as_teacher(two, perceptron(tf_keras))


@each_library
def test_layers_that_are_not_there_are_refused(library: Any) -> None:
    with pytest.raises(
        ModelError, match=r"`rectifid` must be a layer of the teacher.*nearest names are: rectified"
    ):
        as_teacher(perceptron(library), perceptron(tf_keras), ["rectifid"])
    for unreadable in (_subclassed(library, knows_training=True), _function()):
        with pytest.raises(
            ModelError, match=r"must be a Functional or Sequential model for losses that read"
        ):
            as_teacher(unreadable, perceptron(tf_keras), ["rectified"])


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron(keras)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match=r"`teacher` must run on Keras' TensorFlow backend"):
        as_teacher(model, perceptron(tf_keras))


# --- identity ---


@pytest.mark.parametrize("kind", ["Keras 3 Functional", "tf_keras Sequential", "function"])
def test_identity_tells_teachers_apart(kind: str) -> None:
    def same(first: list[Any], second: list[Any]) -> bool:
        return len(first) == len(second) and all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
            for a, b in zip(first, second, strict=True)
        )

    student = perceptron(tf_keras)
    identity = identity_of_teacher(TEACHERS[kind](), student)
    assert same(identity, identity_of_teacher(TEACHERS[kind](), student))
    assert not same(identity, identity_of_teacher(perceptron(keras, seed=1), student))
    other = _function()
    changed = identity_of_teacher(lambda inputs: other(inputs) + 1e-3, student)
    assert not same(identity, changed)

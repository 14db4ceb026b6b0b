"""Teachers outside of TensorFlow: what a `td.teachers.Function` says, how failures are named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import FEATURES, examples, logits_of, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError, TeacherError
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.teachers import Function, as_teacher, failures_named, identity_of_teacher

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_RNG = np.random.default_rng(1)  # as perceptron(units=7, seed=1)
WEIGHTS = [_RNG.normal(size=shape).astype(np.float32) for shape in ((FEATURES, 7), 7, (7, 3), 3)]


def teach(inputs: Any) -> Any:
    """A perceptron in NumPy, float64."""
    return logits_of(WEIGHTS, inputs)


def _student() -> Any:
    return perceptron(tf_keras)


def _distiller(teacher: Any, **settings: Any) -> Any:
    distiller = td.Distiller(_student(), teacher, losses=[td.losses.SoftTargets(3.0)])
    distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", **settings)
    return distiller


class Once:
    """A function that does what the test wants at one of its training batches.

    Batches have 5 examples here; the look at the door has 4.
    """

    def __init__(self, at: int, then: Callable[[Any], Any]) -> None:
        self.at, self.then, self.batches = at, then, 0

    def __call__(self, inputs: Any) -> Any:
        self.batches += len(inputs) == 5
        if len(inputs) == 5 and self.batches == self.at:
            return self.then(inputs)
        return teach(inputs)


def _raise(inputs: Any) -> Any:
    raise ConnectionError("the service\nis gone")


def _with(value: float) -> Callable[[Any], Any]:
    def answer(inputs: Any) -> Any:
        logits = teach(inputs)
        logits[3:, 1] = value
        return logits

    return answer


# --- what it teaches ---


def test_logits_are_the_functions() -> None:
    teacher = as_teacher(Function(teach), _student())
    inputs, *_ = examples()
    traced = tf.function(lambda batch: teacher(batch).logits)
    concrete = traced.get_concrete_function(tf.TensorSpec([None, FEATURES]))
    assert concrete.structured_outputs.shape.as_list() == [None, 3]
    for logits in (concrete(tf.constant(inputs)), teacher(tf.constant(inputs)).logits):
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, teach(inputs), rtol=1e-5)
    assert (teacher.shapes.logits, teacher.note) == ((3,), "")


@pytest.mark.slow  # the other tests ask functions in single steps
def test_training_is_that_of_the_same_model(two_replicas: Any) -> None:
    """17 examples in batches of 8: on two replicas the last batch leaves one without any."""
    inputs, labels, _ = examples(17)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(8)

    def some(given: Any) -> Any:
        assert len(given) > 0  # a network may not bear it
        return teach(given)

    trained, logs = [], []
    for strategy, teacher in (
        (tf.distribute.get_strategy(), perceptron(keras, units=7, seed=1)),
        (tf.distribute.get_strategy(), Function(some)),
        (two_replicas, Function(some)),
    ):
        with strategy.scope():
            distiller = _distiller(teacher)
        logs.append(distiller.fit(data, validation_data=data, epochs=2, verbose=0).history)
        trained.append([np.array(weight) for weight in distiller.student.get_weights()])
    for weights, history in zip(trained[1:], logs[1:], strict=True):
        for one, other in zip(weights, trained[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert list(history) == list(logs[0])
        for name, values in history.items():
            np.testing.assert_allclose(values, logs[0][name], rtol=1e-4, err_msg=name)


def test_threads_ask_one_after_the_other() -> None:
    both = threading.Barrier(2)  # broken by the first who waits in vain, for all who come later
    met = []

    def meet(inputs: Any) -> Any:
        if len(inputs) == 15:
            try:
                both.wait(timeout=0.5)
                met.append(True)
            except threading.BrokenBarrierError:
                met.append(False)
        return teach(inputs)

    given = Function(meet)
    inputs = tf.constant(examples()[0])
    asked = [tf.function(as_teacher(given, _student())) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for outputs in threads.map(lambda ask: ask(inputs), asked):
            np.testing.assert_allclose(outputs.logits, teach(inputs), rtol=1e-5)
    assert met == [False, False]


def test_function_may_change_what_it_gets() -> None:
    """What it gets is no memory of TensorFlow: the student would read what it left there."""

    def spoil(inputs: Any) -> Any:
        answer = teach(inputs)
        inputs[...] = 1e3
        return answer

    inputs, labels, _ = examples()
    losses = [
        _distiller(Function(function)).fit(inputs, labels, batch_size=15, verbose=0).history["loss"]
        for function in (teach, spoil)
    ]
    assert losses[0] == losses[1]


def test_function_may_answer_from_one_buffer() -> None:
    """TensorFlow takes over memory that is aligned as its own is."""
    memory = np.zeros(64, np.float32)
    offset = -memory.ctypes.data % 64 // 4
    buffer = memory[offset : offset + 12].reshape(4, 3)

    def answer(inputs: Any) -> Any:
        buffer[...] = teach(inputs)
        return buffer

    teacher = as_teacher(Function(answer), _student())

    @tf.function
    def twice(one: Any, other: Any) -> Any:
        first = teacher(one).logits
        with tf.control_dependencies([first]):
            second = teacher(other).logits
        with tf.control_dependencies([second]):
            return first + 0.0, second

    inputs = tf.constant(examples(8)[0])
    first, second = twice(inputs[:4], inputs[4:])
    np.testing.assert_allclose(first, teach(inputs[:4]), rtol=1e-5)
    np.testing.assert_allclose(second, teach(inputs[4:]), rtol=1e-5)


@pytest.mark.parametrize("named", [True, False], ids=["dict", "list"])
def test_function_gets_the_structure_of_the_data(named: bool) -> None:
    left, right = (tf_keras.Input([2], name=name) for name in ("left", "right"))
    joined = tf_keras.layers.Dense(2)(tf_keras.layers.Concatenate()([left, right]))
    both: Any = {"left": left, "right": right} if named else [left, right]
    student = tf_keras.Model(both, joined)

    def difference(given: Any) -> Any:
        assert type(given).__name__ == ("dict" if named else "list")
        one, other = (given["left"], given["right"]) if named else given
        return one - other

    values = [np.array([[5.0, 1.0]], np.float32), np.array([[2.0, 3.0]], np.float32)]
    inputs: Any = dict(zip(("left", "right"), values, strict=True)) if named else values
    logits = tf.function(as_teacher(Function(difference), student))(inputs).logits
    np.testing.assert_array_equal(logits, [[3.0, -2.0]])


def test_open_sizes_are_those_that_the_function_takes() -> None:
    inputs = tf_keras.Input([None, None, 1])
    student = tf_keras.Model(inputs, tf_keras.layers.GlobalMaxPooling2D()(inputs))

    def fixed(images: Any) -> Any:
        return images.reshape(-1, 32 * 32) @ np.ones([32 * 32, 1], np.float32)

    assert as_teacher(Function(fixed), student).shapes.logits == (1,)


def test_examples_stand_in_for_a_student() -> None:
    """As for storing what a teacher says, where there is no student."""
    inputs = examples()[0]
    teacher = as_teacher(Function(teach), examples=inputs)
    np.testing.assert_allclose(teacher(inputs).logits, teach(inputs), rtol=1e-5)


def test_probabilities_are_read_as_their_logarithms() -> None:
    def softmax(inputs: Any) -> Any:
        powers = np.exp(teach(inputs))
        return powers / powers.sum(axis=-1, keepdims=True)

    with pytest.raises(ModelError, match=r"must return logits\..* pass probabilities=True"):
        as_teacher(Function(softmax), _student())
    teacher = as_teacher(Function(softmax, probabilities=True), _student())
    inputs = examples()[0]
    logits = np.asarray(teacher(inputs).logits)
    np.testing.assert_allclose(logits, np.log(softmax(inputs)), rtol=1e-5, atol=1e-5)
    assert teacher.note == (
        "The teacher returns probabilities; distillation reads their logarithms."
    )
    with pytest.raises(ModelError, match=r"must return probabilities.*values from .*, sums from"):
        as_teacher(Function(teach, probabilities=True), _student())


def test_the_probability_of_one_unit_is_read_as_log_odds() -> None:
    student = perceptron(tf_keras, classes=1)
    odds = np.array([[0.0], [1.0], [0.25], [1e-45]])
    teacher = as_teacher(Function(lambda x: odds[: len(x)], probabilities=True), student)
    smallest = np.log(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(
        teacher(examples(4)[0]).logits,
        [[smallest], [-smallest], [np.log(1 / 3)], [smallest]],
        rtol=1e-6,
    )
    assert teacher.note.endswith("distillation reads their log-odds.")


# --- what fails is named ---

FAILURES: dict[str, tuple[Callable[[Any], Any], str, type[Exception] | None]] = {
    "exception": (_raise, "ConnectionError: the service", ConnectionError),
    "no array": (lambda x: [[1.0], [1.0, 2.0]], "ValueError: setting an array el", ValueError),
    "classes": (
        lambda x: teach(x)[:, :2],
        r"the shape \[5, 2\] where \[5, 3\] is wanted",
        None,
    ),
    "rows": (lambda x: teach(x)[:1], r"the shape \[1, 3\] where \[5, 3\] is wanted", None),
    "rank": (lambda x: teach(x)[0], r"the shape \[3\] where \[5, 3\] is wanted", None),
    "none": (lambda x: None, r"the shape \[\] where \[5, 3\] is wanted", None),
    "dtype": (lambda x: teach(x).argmax(-1)[:, None].repeat(3, 1), "values of type int64", None),
    "NaN": (_with(np.nan), "NaN or infinity for 2 of 5 examples, the first at place 3", None),
    "infinity": (_with(-np.inf), "NaN or infinity for 2 of 5 examples", None),
    "too large": (_with(1e300), "NaN or infinity for 2 of 5 examples", None),
}


@pytest.mark.parametrize(
    "eager", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "eager"]
)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if place % 2 else [])
        for place, kind in enumerate(FAILURES)
    ],
)
def test_failure_of_fit_is_named_with_its_batch(kind: str, eager: bool) -> None:
    answer, received, cause = FAILURES[kind]
    inputs, labels, _ = examples()
    distiller = _distiller(Function(Once(5, answer), name="remote"), run_eagerly=eager)
    distiller.evaluate(inputs, labels, batch_size=5, verbose=0)  # does not count for `fit`
    with pytest.raises(
        TeacherError,
        match=rf"^The teacher 'remote' must return finite logits \[batch, classes\] for every "
        rf"batch\. Received: {received}.*, in batch 2 since `fit` began, "
        rf"examples float32 \[5, 4\]\. ",
    ) as raised:
        distiller.fit(inputs, labels, batch_size=5, shuffle=False, verbose=0)
    assert type(raised.value.__cause__) is (cause or type(None))
    assert raised.value.__suppress_context__  # no wall of TensorFlow's text above it


def test_failure_of_validation_and_evaluation_is_named() -> None:
    inputs, labels, _ = examples()
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(5)
    with pytest.raises(TeacherError, match=r"in batch 1 since `evaluate` began") as raised:
        _distiller(Function(Once(4, _raise))).fit(data, validation_data=data, verbose=0)
    assert type(raised.value.__cause__) is ConnectionError
    with pytest.raises(TeacherError, match=r"in batch 3 since `evaluate` began"):
        _distiller(Function(Once(3, _raise))).evaluate(data, verbose=0)
    # What comes after a validation is counted on.
    distiller = _distiller(Function(Once(8, _raise)))
    with pytest.raises(TeacherError, match=r"in batch 5 since `fit` began"):
        distiller.fit(data, validation_data=data, epochs=2, verbose=0)


def test_a_distiller_goes_on_after_a_failure() -> None:
    inputs, labels, _ = examples()
    distiller = _distiller(Function(Once(2, _raise)))
    with pytest.raises(TeacherError, match="ConnectionError"):
        distiller.fit(inputs, labels, batch_size=5, verbose=0)
    assert np.isfinite(distiller.fit(inputs, labels, batch_size=5, verbose=0).history["loss"])


def test_failure_on_a_replica_is_named_with_the_global_batch(two_replicas: Any) -> None:
    inputs, labels, _ = examples(20)
    with two_replicas.scope():
        distiller = _distiller(Function(Once(3, _raise)))  # of 2 calls a batch
    with pytest.raises(
        TeacherError, match=r"in batch 2 since `fit` began, examples float32 \[5, 4\]"
    ) as raised:
        distiller.fit(inputs, labels, batch_size=10, verbose=0)
    assert type(raised.value.__cause__) is ConnectionError


@pytest.mark.slow  # much like the others
def test_other_errors_stay_what_they_are() -> None:
    class Stop(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyError("of the callback")

    inputs, labels, _ = examples()
    with pytest.raises(KeyError, match="of the callback"):
        _distiller(Function(teach)).fit(inputs, labels, verbose=0, callbacks=[Stop()])


def test_failure_at_the_door_is_named() -> None:
    with pytest.raises(
        TeacherError,
        match=r"The teacher '_raise' .*ConnectionError.*, for a few random examples, "
        r"float32 \[4, 4\]",
    ) as raised:
        as_teacher(Function(_raise), _student())
    assert type(raised.value.__cause__) is ConnectionError
    with pytest.raises(TeacherError, match=r"the shape \[4\] where \[4, classes\] is wanted"):
        as_teacher(Function(lambda x: np.zeros(len(x))), _student())


@pytest.mark.parametrize("traced", [False, True])
def test_failure_outside_of_training_is_named_with_its_examples(traced: bool) -> None:
    teacher = as_teacher(Function(Once(2, _with(np.nan))), _student())
    ask = tf.function(teacher) if traced else teacher
    inputs = examples()[0]
    with failures_named(teacher, first_example=0):
        ask(tf.constant(inputs[:5]))
    with (
        pytest.raises(
            TeacherError,
            match=r"NaN or infinity for 2 of 5 examples, the first number 8, "
            r"for the examples 5 to 9, float32 \[5, 4\]",
        ),
        failures_named(teacher, first_example=5),
    ):
        ask(tf.constant(inputs[5:10]))


@pytest.mark.slow  # as fit does
def test_pipeline_raises_the_failure(tmp_path: Path) -> None:
    """In training, and where the teacher is held against the test set."""
    inputs, labels, _ = examples(20)
    pipeline = td.Pipeline(
        distillation=td.Distillation(epochs=1),
        export=td.Export(formats=("float32",)),
        baseline=False,
    )
    for at, where in ((2, "`fit` began"), (1, "the reading of `test` began")):
        seen: list[int] = []

        def teacher(given: Any, *, at: int = at, seen: list[int] = seen) -> Any:
            seen.append(len(given))
            if seen.count(6 + at) == at:  # batches of training have 8 rows, those of test 7
                raise ConnectionError("gone")
            return teach(given)

        data = tf.data.Dataset.from_tensor_slices((inputs, labels))
        with pytest.raises(TeacherError, match=rf"in batch {at} since {where}"):
            pipeline.run(
                _student(),
                Function(teacher, version="1"),
                data.batch(8),
                validation=data.batch(20),
                test=data.batch(7),
                run_dir=tmp_path / str(at),
                verbose=0,
            )


def test_xla_is_refused() -> None:
    with pytest.raises(
        SettingError,
        match=r"`jit_compile` must be False for a teacher that runs outside of TensorFlow\.",
    ):
        _distiller(Function(teach), jit_compile=True)
    _distiller(teach_in_graph, jit_compile=True)


def teach_in_graph(inputs: Any) -> Any:
    return inputs @ tf.ones([FEATURES, 3])


# --- identity and settings ---


def test_identity_is_version_or_answers() -> None:
    def print_of(*args: Any, **settings: Any) -> str:
        return fingerprint(identity_of_teacher(Function(*args, **settings), _student()))

    def another(inputs: Any) -> Any:
        return teach(inputs) + 1e-3

    assert print_of(teach) == print_of(lambda x: teach(x)) != print_of(another)
    first = print_of(teach, name="a", version="1")
    assert first == print_of(another, name="a", version="1")
    assert first != print_of(teach, name="a", version="2")
    assert first != print_of(teach, name="b", version="1")

    asked: list[int] = []

    def counting(inputs: Any) -> Any:
        asked.append(len(inputs))
        return teach(inputs)

    identity_of_teacher(Function(counting, version="1"), _student())
    assert asked == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Function("teach"), ModelError, r"`fn` must be a function from NumPy.*: str\."),  # type: ignore[arg-type]
        (lambda: Function(_student()), ModelError, r"`fn` must be.*as td\.teachers\.Model\(model"),
        (lambda: Function(teach, name=""), SettingError, r"`name` must be a non-empty str"),
        (lambda: Function(teach, version=3), SettingError, r"`version` must be a non-e.*: 3\."),  # type: ignore[arg-type]
        (
            lambda: Function(teach, probabilities="yes"),  # type: ignore[arg-type]
            SettingError,
            r"`probabilities` must be True or False\. Received: yes",
        ),
    ],
    ids=["no function", "model", "name", "version", "probabilities"],
)
def test_setting_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_layers_of_a_function_are_refused() -> None:
    with pytest.raises(
        ModelError,
        match=r"must be a Functional or Sequential model for losses that read its layers\. "
        r"Received: a function and the layers \['hidden'\]",
    ):
        as_teacher(Function(teach), _student(), ["hidden"])

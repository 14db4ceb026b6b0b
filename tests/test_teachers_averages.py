"""The student's moving average as its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import STEPS, examples, perceptron, wide, with_random_weights
from quick import only

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras, tfmot
from tfdistill.errors import ModelError, SettingError
from tfdistill.quantization import quantize, quantized_kernels
from tfdistill.quantizers import copy_quantized
from tfdistill.runs.run import Stage
from tfdistill.stages import distiller_of

# Keras 3 saves and loads variables through NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LABEL_LOSS = "sparse_categorical_crossentropy"
TAUGHT = (losses.ProbabilityMSE(weight=0.5),)


def following(student: Any, decay: float = 0.8, teacher: Any = None, rate: float = 0.1) -> Any:
    teacher = td.teachers.MovingAverage(decay) if teacher is None else teacher
    distiller = td.Distiller(student, teacher, TAUGHT, 0.5)
    distiller.compile(tf_keras.optimizers.SGD(rate), LABEL_LOSS)
    return distiller


class Remember(tf_keras.callbacks.Callback):
    """The student's weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(self.model.training_student.get_weights())


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_it_is_the_average_of_the_formula(decay: float) -> None:
    """With statistics of BatchNormalization; the first steps forget the weights at the start."""
    inputs, labels, _ = examples(40)
    student, remember = perceptron(tf_keras, normalized=True), Remember()
    expected = [np.array(weight, np.float64) for weight in student.get_weights()]
    distiller = following(student, decay)
    distiller.fit(inputs, labels, batch_size=4, verbose=0, callbacks=[remember])
    for step, weights in enumerate(remember.seen, start=1):
        share = min(decay, 1 - 1 / (step + 1))
        expected = [share * a + (1 - share) * w for a, w in zip(expected, weights, strict=True)]
    averaged, moved = distiller.averaged_student.get_weights(), []
    for ours, theirs, now in zip(averaged, expected, student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        moved.append(np.abs(ours - now).max())
    assert (max(moved) > 1e-3) == (decay > 0)


def test_it_teaches_what_it_says_and_is_not_trained() -> None:
    """Of the first step all is as with a copy that stands still, regularizers too."""
    inputs, labels, _ = examples(20)
    ours, theirs, copy = (perceptron(tf_keras, regularizer="l2") for _ in range(3))
    found = []
    for distiller in (following(ours), following(theirs, teacher=copy)):
        history = distiller.fit(inputs, labels, batch_size=20, verbose=0).history
        found.append((history, distiller.training_student.get_weights()))
        assert len(distiller.trainable_variables) == 4
    assert found[0][0].keys() == found[1][0].keys()
    for name, values in found[0][0].items():
        assert values == pytest.approx(found[1][0][name]), name
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_evaluation_leaves_it_as_it_is() -> None:
    inputs, labels, _ = examples(20)
    distiller = following(perceptron(tf_keras, normalized=True))
    distiller.fit(inputs, labels, verbose=0)
    before = distiller.averaged_student.get_weights()
    distiller.evaluate(inputs, labels, verbose=0)
    for one, other in zip(before, distiller.averaged_student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_two_replicas_are_one(two_replicas: Any) -> None:
    inputs, labels, _ = examples(30)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(10)
    found = []
    for scope in (tf.distribute.get_strategy().scope, two_replicas.scope):
        with scope():
            distiller = following(perceptron(tf_keras, normalized=True))
        history = distiller.fit(data, epochs=2, verbose=0).history
        found.append((history, distiller.averaged_student.get_weights()))
    for name, values in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_it_is_taken_out_and_is_no_part_of_the_student(library: Any, tmp_path: Path) -> None:
    inputs, labels, _ = examples(40)
    student = perceptron(library, seed=2)
    distiller = following(student)
    distiller.fit(inputs, labels, epochs=3, verbose=0)
    averaged = distiller.averaged_student
    assert isinstance(averaged, library.Model)
    assert averaged.output_names == student.output_names if library is tf_keras else True
    assert np.abs(averaged.get_weights()[0] - student.get_weights()[0]).max() > 1e-4
    distiller.save(tmp_path / "student.keras")
    saved = library.models.load_model(tmp_path / "student.keras")
    for one, other in zip(saved.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    inputs, labels, _ = examples(40)
    distiller = following(perceptron(tf_keras))
    distiller.fit(inputs, labels, epochs=2, verbose=0)
    path = tf.train.Checkpoint(model=distiller).save(str(tmp_path / "at"))
    another = following(perceptron(tf_keras, seed=5))
    tf.train.Checkpoint(model=another).restore(path)
    kept = zip(
        distiller.averaged_student.get_weights(),
        another.averaged_student.get_weights(),
        strict=True,
    )
    assert all(np.array_equal(one, other) for one, other in kept)


def test_it_teaches_beside_another() -> None:
    inputs, labels, _ = examples(40)
    student = perceptron(tf_keras)
    other = perceptron(keras, units=7, seed=3, name="other")
    both = td.teachers.Ensemble([td.teachers.MovingAverage(0.5), other])
    distiller = following(student, teacher=both)
    start = distiller.averaged_student.get_weights()
    distiller.fit(inputs, labels, verbose=0)
    assert np.abs(distiller.averaged_student.get_weights()[0] - start[0]).max() > 1e-4


def test_a_pruned_student_is_followed_without_its_wrappers() -> None:
    inputs, labels, _ = examples(40)
    prune = tfmot.sparsity.keras
    schedule = prune.ConstantSparsity(0.5, begin_step=0, frequency=1)
    student = prune.prune_low_magnitude(perceptron(tf_keras), pruning_schedule=schedule)
    distiller = following(student, decay=0.0)
    distiller.fit(inputs, labels, verbose=0, callbacks=[prune.UpdatePruningStep()])
    averaged = distiller.averaged_student
    assert not any(isinstance(layer, tf_keras.layers.Wrapper) for layer in averaged.layers)
    np.testing.assert_allclose(averaged(inputs), student(inputs), rtol=1e-5, atol=1e-6)


# --- of a student that simulates 8-bit arithmetic ---


def in_8_bits(student: Any, **settings: Any) -> Any:
    return quantize(student, td.Quantization(**settings), sparse=True).model


QUANTIZED = {"ours": in_8_bits, "tfmot's": tfmot.quantization.keras.quantize_model}


def ranges_of(model: Any, *, of_kernels: bool) -> dict[str, Any]:
    return {
        weight.name: np.array(weight)
        for layer in model.layers
        for weight in layer.weights
        if weight.name.endswith(("_min:0", "_max:0")) and ("kernel" in weight.name) == of_kernels
    }


@pytest.mark.parametrize("whose", only("ours", of=QUANTIZED))
def test_the_average_of_a_quantized_student_is_rounded_anew(whose: str) -> None:
    """Its kernels, which become smaller, in ranges of its own; the rest in the student's."""
    inputs, labels, _ = examples(40)
    student = perceptron(tf_keras)
    student.get_layer("logits").kernel_regularizer = tf_keras.regularizers.L2(2.0)
    student, remember = QUANTIZED[whose](student), Remember()
    (place,) = (i for i, w in enumerate(student.weights) if w.name == "logits/kernel:0")
    expected = wide([student.get_weights()[place]])[0]
    distiller = following(student, 0.8)
    distiller.fit(inputs, labels, batch_size=4, verbose=0, callbacks=[remember])
    for step, weights in enumerate(remember.seen, start=1):
        share = min(0.8, 1 - 1 / (step + 1))
        expected = share * expected + (1 - share) * weights[place]
    averaged = distiller.averaged_student
    kernel = averaged.get_weights()[place]
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)
    largest = np.abs(expected).max()
    assert largest > 1.2 * np.abs(remember.seen[-1][place]).max()  # it would be clipped
    of_kernel = ranges_of(averaged, of_kernels=True)["quant_logits/kernel_max:0"]
    np.testing.assert_allclose(of_kernel, largest, rtol=1e-4)
    rounded = quantized_kernels(averaged)["logits"]
    np.testing.assert_allclose(rounded, expected, rtol=0, atol=0.51 * largest / 127)

    theirs = ranges_of(student, of_kernels=False)
    ours = ranges_of(averaged, of_kernels=False)
    assert len(ours) == len(theirs) > 5
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert abs(one) != 6
    logits = np.array(averaged(inputs))
    (low,), (high,) = (
        [v for n, v in ours.items() if n.endswith(f"ation_{m}:0")][-1:] for m in ("min", "max")
    )
    steps = logits / ((high - low) / 255)
    np.testing.assert_allclose(steps, np.round(steps), rtol=0, atol=1e-2)
    assert [w.trainable for w in averaged.weights] == [w.trainable for w in student.weights]
    assert len(averaged.trainable_weights) == len(student.trainable_weights) == 4


def test_in_the_first_step_it_is_not_clipped_to_ranges_that_nobody_knows() -> None:
    inputs, labels, _ = examples(40)
    student = in_8_bits(perceptron(tf_keras))
    distiller = td.Distiller(student, td.teachers.MovingAverage(0.8), [losses.LogitsMSE()], 0.0)
    distiller.compile(tf_keras.optimizers.SGD(0.0), LABEL_LOSS)
    first, second = (
        distiller.train_on_batch(30 * inputs, labels, return_dict=True)["logits_mse"]
        for _ in range(2)
    )
    spread = float(np.var(student(30 * inputs)))
    assert 0 < first < 1e-3 * spread
    assert second <= 1e-9 * spread


def branches() -> Any:
    """A kernel with its normalization, ranges that are joined, a frozen layer, a shared one."""
    layers = tf_keras.layers
    image = layers.Input([6, 6, 1])
    hidden = layers.Conv2D(4, 3, use_bias=False)(image)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    shared = layers.Conv2D(4, 1, activation="relu")
    hidden = layers.Concatenate()([hidden, shared(shared(hidden))])
    hidden = layers.Dense(5, activation="tanh", trainable=False)(layers.Flatten()(hidden))
    outputs = layers.Dense(3, activation="softmax")(hidden)
    return with_random_weights(tf_keras.Model(image, outputs), 0)


def recurrent() -> Any:
    layers = tf_keras.layers
    steps = layers.Input([STEPS, 4])
    outputs = layers.Dense(3)(layers.LSTM(3, name="floating")(steps))
    return with_random_weights(tf_keras.Model(steps, outputs), 0)


@pytest.mark.parametrize(
    ("student", "skip"),
    [(branches, []), pytest.param(recurrent, ["floating"], marks=pytest.mark.slow)],
)
def test_a_copy_of_a_quantized_model_is_its_equal(student: Any, skip: list[str]) -> None:
    """With zeros that stay zeros, and when it goes on to be trained."""
    model = student()
    for layer in model.layers:
        weights = layer.get_weights()
        layer.set_weights([np.where(np.abs(w) < 0.5, 0, w) if w.ndim > 1 else w for w in weights])
    model = in_8_bits(model, skip=skip)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=[8, *model.input_shape[1:]]).astype(np.float32) for _ in range(3)]
    model(batches[0], training=True)
    copy = copy_quantized(model)
    assert not {id(weight) for weight in copy.weights} & {id(weight) for weight in model.weights}
    for training in (False, True, False):
        ours, theirs = (each(batches[1], training=training) for each in (copy, model))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for each in (copy, model):
        each.compile(tf_keras.optimizers.SGD(0.1), "mse")
        each.fit(batches[2], np.ones([8, 3]), verbose=0)
    assert len(copy.trainable_weights) == len(model.trainable_weights)
    for ours, theirs in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    zeros = {name: kernel == 0 for name, kernel in quantized_kernels(model).items()}
    assert any(each.mean() > 0.1 for each in zeros.values())
    for name, kernel in quantized_kernels(copy).items():
        np.testing.assert_array_equal(kernel == 0, zeros[name])


# --- in a pipeline ---


def run(run_dir: Path, teacher: Any) -> td.Result:
    """All stages of a student that has labels of a quarter of its examples."""
    inputs, labels, _ = examples(60)
    some = np.where(np.arange(60) % 4 == 0, labels, -1)
    limits = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
    return td.Pipeline(
        distillation=td.Distillation(
            losses=TAUGHT, label_loss_weight=1.0, unlabelled=-1, epochs=2, learning_rate=0.05
        ),
        pruning=td.Pruning(sparsity=0.5, epochs=2),
        quantization=td.Quantization(epochs=2),
        export=td.Export(formats=("int8",), limits=limits),
        baseline=False,
    ).run(
        perceptron(keras, units=16),
        teacher,
        (inputs, some),
        test=(inputs, labels),
        run_dir=run_dir,
        verbose=0,
    )


def weights_of(run_dir: Path) -> dict[str, list[Any]]:
    found = {}
    for stage in ("distillation", "pruning", "quantization"):
        with np.load(run_dir / stage / "weights.npz") as arrays:
            found[stage] = [arrays[name] for name in arrays.files]
    return found


@pytest.mark.slow  # a whole run
def test_in_a_pipeline_it_teaches_in_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, starts = [], []

    def remember(*args: Any, steps: int, **more: Any) -> Any:
        distiller = distiller_of(*args, steps=steps, **more)
        if steps > 1:  # not a look before training
            made.append(distiller)
            starts.append(distiller.averaged_student.get_weights())
        return distiller

    monkeypatch.setattr("tfdistill.stages.distiller_of", remember)
    result = run(tmp_path, td.teachers.MovingAverage(0.5))
    stages = weights_of(tmp_path)
    for distiller, start, stage in zip(made, starts, stages, strict=True):
        averaged = distiller.averaged_student.get_weights()
        behind, moved = (
            max(np.abs(now - then).max() for now, then in zip(stages[stage], other, strict=True))
            for other in (averaged, start)
        )
        assert 0 < behind < moved, stage
    rows = {row.name: row for row in result.report.rows}
    assert [*rows] == ["distilled", "pruned", "quantized", "int8"]
    assert all(row.teacher_agreement is None for row in rows.values())
    assert rows["pruned"].sparsity == pytest.approx(0.5, abs=0.05)
    for stage in stages:
        history = result.report.histories[stage]
        assert history["probability_mse"][-1] > 0  # in the first step it says the same
        assert history["teacher_agreement"][-1] > 0.8
    notes = result.report.details["notes"]
    assert "The teacher was asked at each step: it follows the student." in notes
    assert not (tmp_path / "targets").exists()


@pytest.mark.slow
def test_a_stopped_pipeline_goes_on_with_its_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside another teacher, and stopped in each stage."""

    def both() -> Any:
        other = perceptron(keras, units=7, seed=3, name="other")
        return td.teachers.Ensemble([td.teachers.MovingAverage(0.9), other])

    run(tmp_path / "whole", both())
    save = Stage.save_checkpoint

    def stop(self: Any, epoch: int, *args: Any) -> None:
        save(self, epoch, *args)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "save_checkpoint", stop)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "stopped", both())
    run(tmp_path / "stopped", both())
    ours, theirs = weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole")
    for stage, weights in theirs.items():
        for one, other in zip(ours[stage], weights, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=stage)


def test_the_lines_of_the_methods_page_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("run by tests/test_teachers_averages.py. -->\n```python\n")[1]
    known: dict[str, Any] = {"td": td, "student": perceptron(tf_keras)}
    exec(lines.split("```")[0], known)
    distiller = known["distiller"]
    distiller.compile("adam", LABEL_LOSS)
    inputs, labels, _ = examples(20)
    labels[5:] = -1
    distiller.fit(inputs, labels, verbose=0)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    inputs, labels, _ = examples(40)
    average = td.teachers.MovingAverage()
    for decay in (1, -0.1, float("nan"), "0.9", True):
        with pytest.raises(SettingError, match=r"`decay` must be in \[0, 1\)"):
            td.teachers.MovingAverage(decay)  # type: ignore[arg-type]
    for teacher in (average, td.teachers.Ensemble([average, perceptron(keras, seed=1)])):
        message = r"a teacher that follows the student\. Received: store_targets=True and a td"
        with pytest.raises(SettingError, match=message):
            td.Pipeline(distillation=td.Distillation(store_targets=True)).check(
                perceptron(tf_keras), teacher
            )
    with pytest.raises(ModelError, match="`teacher` must know by itself what it says"):
        td.store_targets(average, (inputs, labels), tmp_path / "targets")
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(8)
    model = perceptron(keras, seed=1)
    stored = td.store_targets(model, data, tmp_path / "stored", verbose=0).attach(data)
    for teacher in (average, td.teachers.Ensemble([average, model])):
        distiller = following(perceptron(tf_keras), teacher=teacher)
        message = r"must not be a td\.teachers\.MovingAverage for stored targets\. Received: data"
        with pytest.raises(SettingError, match=message):
            distiller.fit(stored, verbose=0)
    distiller = td.Distiller(perceptron(tf_keras), perceptron(keras, seed=1), TAUGHT)
    with pytest.raises(ModelError, match=r"must be a td\.teachers\.MovingAverage, for the student"):
        _ = distiller.averaged_student

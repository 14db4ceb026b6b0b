"""Stored soft targets teach what the live teacher teaches, of the images that the student sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import examples, perceptron
from targets_process import (
    BATCH,
    EXAMPLES,
    Remembering,
    hash_of,
    of_open_size,
    pictures,
    shuffled_pictures,
)

import tfdistill as td
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.losses import Outputs
from tfdistill.targets.encoding import Encoding
from tfdistill.targets.examples import check_augment, example_ids

SoftTargets, LogitsMSE, Hint = td.losses.SoftTargets, td.losses.LogitsMSE, td.losses.Hint
HINT = Hint("rectified", "rectified", weight=0.5)


def _teacher(library: Any = tf_keras, **settings: Any) -> Any:
    return perceptron(library, units=7, seed=1, name="teacher", **settings)


def _data(count: int = 40, size: int = 8) -> Any:
    return tf.data.Dataset.from_tensor_slices(examples(count)).batch(size)


def _trained(data: Any, losses: Any, epochs: int = 3, teacher: Any = None) -> list[np.ndarray]:
    """Weights of a student after plain SGD in float32."""
    made = _teacher() if teacher is None else teacher
    distiller = td.Distiller(perceptron(tf_keras), made, losses, label_loss_weight=0.3)
    for projection in distiller._projections.values():
        kernel = np.random.default_rng(2).normal(size=projection.get_weights()[0].shape)
        projection.set_weights([kernel])
    distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    distiller.fit(data, epochs=epochs, verbose=0)
    return [*distiller.student.get_weights(), *distiller.projection_weights.values()]


def _furthest(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


# --- as the live teacher


@pytest.mark.parametrize(
    ("losses", "library"),
    [
        pytest.param([SoftTargets(3.0), LogitsMSE(0.1)], keras, marks=pytest.mark.slow),
        ([SoftTargets(3.0), HINT], tf_keras),
    ],
    ids=["logits", "hint"],
)
def test_float32_targets_end_in_the_weights_of_live_training(
    losses: Any, library: Any, tmp_path: Path
) -> None:
    teacher = _teacher(library)
    layers = [layer for loss in losses for layer in loss.teacher_layers]
    stored = td.store_targets(teacher, _data(), tmp_path, dtype="float32", layers=layers, verbose=0)
    live = _trained(_data(), losses, teacher=teacher)
    # Another teacher at training: it is not asked.
    assert _furthest(_trained(stored.dataset(), losses, teacher=_teacher()), live) < 1e-6
    assert _furthest(live, perceptron(tf_keras).get_weights() + live[4:]) > 0.01
    assert stored.divergence == (0.0, 0.0)


def test_float16_targets_are_near(tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(), _data(), tmp_path, verbose=0)
    live = _trained(_data(), [SoftTargets(3.0)])
    assert 0 < _furthest(_trained(stored.dataset(), [SoftTargets(3.0)]), live) < 1e-3
    assert stored.bytes < 40 * 30 + 2000


@pytest.mark.slow  # test_guards.py has two replicas
def test_two_replicas_store_and_train_as_one(two_replicas: Any, tmp_path: Path) -> None:
    data = _data(15, 6)  # 6, 6, 3: the last batch is split into 2 and 1
    settings: Any = {"dtype": "float32", "layers": ["rectified"], "verbose": 0}
    losses = [SoftTargets(3.0), HINT]
    one = td.store_targets(_teacher(), data, tmp_path / "one", **settings)
    weights = _trained(one.dataset(), losses)
    with two_replicas.scope():
        two = td.store_targets(_teacher(), data, tmp_path / "two", **settings)
        several = _trained(two.dataset(), losses)
    ids = example_ids(examples(15)[0]).numpy()
    for ours, theirs in zip(two._rows.read(ids, 0), one._rows.read(ids, 0), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert _furthest(several, weights) < 1e-5


def test_arrays_are_known_in_each_type_order_and_batch(tmp_path: Path) -> None:
    inputs, labels, weights = examples(40)
    arrays = inputs.astype(np.float64), labels, weights  # becomes float32, as in Keras
    teacher = _teacher()
    stored = td.store_targets(teacher, arrays, tmp_path, dtype="float32", verbose=0)
    orders = []
    for settings in ({}, {"batch_size": 7}, {"shuffle": True}, {"shuffle": True, "seed": 5}):
        read = [*stored.dataset(**settings)]
        assert {len(labels) for _, labels, _ in read} <= {40, 7, 5}
        given = np.concatenate([taught.inputs for taught, _, _ in read])
        logits = np.concatenate([taught.teacher.logits for taught, _, _ in read])
        np.testing.assert_allclose(logits, teacher(given), atol=1e-6)
        place = [np.flatnonzero((inputs == row).all(axis=1))[0] for row in given]
        np.testing.assert_array_equal(labels[place], np.concatenate([b for _, b, _ in read]))
        np.testing.assert_array_equal(weights[place], np.concatenate([c for _, _, c in read]))
        orders.append(place)
    assert orders[0] == orders[1] == [*range(40)]
    assert sorted(orders[2]) == sorted(orders[3]) == [*range(40)]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("settings", [{}, {"batch_size": 5}])
def test_a_seed_says_the_order_of_a_dataset(settings: Any, tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(), _data(), tmp_path, verbose=0)

    def epochs(**more: Any) -> list[np.ndarray]:
        data = stored.dataset(shuffle=True, **settings, **more)
        sizes = {len(labels) for _, labels, _ in data}
        assert sizes == {settings.get("batch_size", 8)}
        return [np.concatenate([labels for _, labels, _ in data]) for _ in range(2)]

    first, again, other = epochs(seed=3), epochs(seed=3), epochs(seed=4)
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def test_examples_that_are_alike_are_one(tmp_path: Path) -> None:
    inputs, labels, _ = examples(10)
    twice = np.concatenate([inputs, inputs]), np.concatenate([labels, labels])
    stored = td.store_targets(_teacher(), twice, tmp_path, verbose=0)
    assert stored.examples == 10
    assert stored.seen["examples"] == 20


def test_inputs_of_several_parts_are_known_by_all_of_them(tmp_path: Path) -> None:
    inputs = {"place": np.arange(4), "on": np.array([True, False, True, True])}

    def answer(given: Any) -> Any:
        parts = [tf.cast(given[name], tf.float32) for name in ("place", "on")]
        return tf.stack(parts, axis=1) - 1.0

    stored = td.store_targets(answer, (inputs,), tmp_path, dtype="float32", verbose=0)
    ((taught,),) = stored.dataset(batch_size=4)
    np.testing.assert_array_equal(taught.teacher.logits, [[-1, 0], [0, -1], [1, 0], [2, 0]])
    numbers = {*example_ids({**inputs, "word": np.array(["a", "b", "c", "d"])}).numpy()}
    for name, value in {"on": ~inputs["on"], "word": np.array(["b", "c", "d", "e"])}.items():
        changed = {**inputs, "word": np.array(["a", "b", "c", "d"]), name: value}
        assert not numbers & {*example_ids(changed).numpy()}


# --- views


def _flipped(image: Any, seed: Any) -> Any:
    return tf.image.stateless_random_flip_left_right(image, seed)


def test_epochs_walk_through_the_views_that_the_teacher_saw(tmp_path: Path) -> None:
    teacher = Remembering()
    stored = td.store_targets(
        teacher,
        shuffled_pictures(),
        tmp_path,
        augment=td.RandomShiftAndFlip(1),
        views=3,
        dtype="float32",
        verbose=0,
    )
    data = stored.dataset()
    assert data.cardinality() == EXAMPLES // BATCH
    plain = Remembering()
    epochs = []
    for _ in range(4):
        images = []
        for taught, _ in data:
            np.testing.assert_array_equal(
                taught.teacher.logits, plain._answer(taught.inputs.numpy())
            )
            images += [hash_of(image) for image in taught.inputs.numpy()]
        epochs.append(sorted(images))
    assert {each for epoch in epochs for each in epoch} <= teacher.asked.keys()
    assert epochs[0] == epochs[3]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    another = td.store_targets(
        Remembering(), shuffled_pictures(), tmp_path / "b", augment=_flipped, seed=1, verbose=0
    )
    same = {hash_of(i) for taught, _ in another.dataset() for i in taught.inputs.numpy()}
    assert same != {*epochs[0]}


def test_an_endless_stage_shows_the_next_view_after_so_many_steps(tmp_path: Path) -> None:
    stored = td.store_targets(
        Remembering(), pictures(), tmp_path, augment=td.RandomShiftAndFlip(1), views=2, verbose=0
    )
    batches = tf.data.Dataset.from_tensor_slices(pictures()).batch(EXAMPLES).repeat()
    steps = stored.attach(batches, first_epoch=1, steps=2).take(6)
    shown = [taught.inputs.numpy() for taught, _ in steps]
    same = [[np.array_equal(a, b) for b in shown] for a in shown]
    assert same == [[(i // 2) % 2 == (j // 2) % 2 for j in range(6)] for i in range(6)]


def _drawn_by_numpy(image: Any, seed: Any) -> Any:
    return image[:, ::-1] if np.random.random() < 0.5 else image


@tf.function
def _drawn_while_traced(image: Any, seed: Any) -> Any:
    return image[:, ::-1] if np.random.random() < 0.5 else image


def _drawn_by_tensorflow(image: Any, seed: Any) -> Any:
    return tf.image.random_flip_left_right(image)


def _drawn_uniformly(image: Any, seed: Any) -> Any:
    return image + tf.cast(tf.random.uniform([]) * 9, image.dtype)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    "augment", [_drawn_by_numpy, _drawn_while_traced, _drawn_by_tensorflow, _drawn_uniformly]
)
def test_an_augmentation_that_draws_by_itself_is_refused(augment: Any, dtype: str) -> None:
    images = tf.TensorSpec([None, 6, 6, 1], dtype)
    for _ in range(5):  # by no chance is it taken
        with pytest.raises(SettingError, match=r"`augment` must give the same .*another result at"):
            check_augment(augment, images)


@pytest.mark.parametrize(
    ("augment", "received"),
    [
        (lambda image, seed: image[1:], r"float32\[5, 6, 1\] for float32\[6, 6, 1\]"),
        (lambda image, seed: tf.cast(image, tf.float16), r"float16\[6, 6, 1\] for float32"),
        (lambda image, seed: (image, image), r"\('float32.* for float32\[6, 6, 1\]"),
        (lambda image, seed: 1.0, "float for float32"),
        (lambda image: image, "takes 1 positional argument"),
        (lambda image, seed: image * seed, "int64"),
    ],
)
def test_an_augmentation_keeps_what_an_example_is(augment: Any, received: str) -> None:
    message = rf"`augment` must take \(example, seed\) and keep .*Received: .*{received}"
    with pytest.raises(SettingError, match=message):
        check_augment(augment, tf.TensorSpec([None, 6, 6, 1]))


def test_an_augmentation_is_a_function() -> None:
    with pytest.raises(SettingError, match="`augment` must be None or a function"):
        check_augment("flip", tf.TensorSpec([None, 6, 6, 1]))  # type: ignore[arg-type]


def test_text_can_be_augmented() -> None:
    check_augment(lambda text, seed: tf.strings.upper(text), tf.TensorSpec([None], tf.string))


# --- what is kept of an answer


def _log_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    if logits.shape[1] == 1:
        scaled = np.concatenate([np.zeros_like(scaled), scaled], axis=1)
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def _through_disk(encoding: Encoding, logits: np.ndarray) -> tuple[Outputs, np.ndarray]:
    """What comes back of logits, and what is said about the divergence."""
    outputs = Outputs(tf.constant(logits, tf.float32), {})
    kept = encoding.encode(outputs)
    rows = np.empty(len(logits), encoding.row)
    for name in encoding.row.names or ():
        rows[name] = kept[name].numpy()
    read = {
        name: rows[name].astype(np.int32) if rows[name].dtype == np.uint16 else rows[name]
        for name in encoding.row.names or ()
    }
    return encoding.decode(read), encoding.divergence(outputs, kept).numpy()


def _divergence(live: np.ndarray, stored: np.ndarray, temperature: float) -> np.ndarray:
    ours, theirs = _log_softmax(stored, temperature), _log_softmax(live, temperature)
    return np.sum(np.exp(theirs) * (theirs - ours), axis=1)


_LOGITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "usual": lambda normal: 4 * normal,
    "shifted": lambda normal: 4 * normal + 1e6,
    "huge": lambda normal: 1e4 * normal,
}


@pytest.mark.parametrize("case", _LOGITS)
@pytest.mark.parametrize("classes", [1, 2, 30])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_logits_come_back(dtype: str, classes: int, case: str) -> None:
    normal = np.random.default_rng(0).normal(size=[50, classes])
    logits = _LOGITS[case](normal).astype(np.float32)
    found, divergence = _through_disk(Encoding(classes, dtype), logits)
    back = np.asarray(found.logits)
    assert back.dtype == np.float32
    assert np.isfinite(back).all()
    if dtype == "float32" or classes == 1:
        np.testing.assert_array_equal(back, logits)
        assert not divergence.any()
        return
    distance = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    # Half a unit in the last of float16's 11 digits; and float32's, once more, at the shift.
    allowed = 2**-11 * np.abs(distance) + 2**-24 * np.abs(logits).max()
    assert (np.abs(back.astype(np.float64) - logits) <= allowed).all()
    expected = _divergence(logits, back, 1.0)
    np.testing.assert_allclose(divergence, expected, atol=1e-5)
    assert expected.max() < (0.05 if case == "shifted" else 1e-4)


def test_logits_below_the_range_of_float16_are_its_lowest() -> None:
    logits = np.array([[0, -1e5], [1e6, 0]], np.float32)
    found, divergence = _through_disk(Encoding(2, "float16"), logits)
    np.testing.assert_array_equal(found.logits, [[0, -65504], [1e6, 1e6 - 65504]])
    assert not divergence.any()


@pytest.mark.parametrize("case", _LOGITS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("top_k", [1, 3, 29])
def test_top_k_keeps_the_largest_probabilities_and_spreads_the_rest(
    top_k: int, dtype: str, case: str
) -> None:
    classes, temperatures = 30, (0.5, 1.0, 4.0)
    normal = np.random.default_rng(1).normal(size=[40, classes])
    logits = _LOGITS[case](normal).astype(np.float32)
    found, divergence = _through_disk(Encoding(classes, dtype, top_k, temperatures), logits)
    largest = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    tolerance = 2e-2 if dtype == "float16" else 5e-4
    if case == "shifted":
        tolerance = 0.2  # float32 has no more digits at 1e6
    expected = []
    for temperature in temperatures:
        back = np.asarray(found.logits_at(temperature))
        assert np.isfinite(back).all()
        live = np.exp(_log_softmax(logits, temperature))
        ours = np.exp(_log_softmax(back, temperature))
        np.testing.assert_allclose(
            np.take_along_axis(ours, largest, 1), np.take_along_axis(live, largest, 1),
            rtol=tolerance, atol=1e-6,
        )  # fmt: skip
        rest = np.ones_like(live, bool)
        np.put_along_axis(rest, largest, False, axis=1)
        tail = ours[rest].reshape(len(ours), -1)
        assert np.ptp(tail, axis=1).max() < 1e-7
        np.testing.assert_allclose(
            tail.sum(axis=1), live[rest].reshape(len(live), -1).sum(axis=1),
            rtol=tolerance, atol=1e-6,
        )  # fmt: skip
        expected.append(_divergence(logits, back, temperature))
    np.testing.assert_allclose(divergence, np.max(expected, axis=0), rtol=1e-2, atol=2e-4)
    np.testing.assert_array_equal(
        np.argmax(found.logits, axis=1)[np.ptp(logits[:, :2], axis=1) > 1],
        np.argmax(logits, axis=1)[np.ptp(logits[:, :2], axis=1) > 1],
    )


def test_the_report_says_how_far_from_the_live_teacher_it_is(tmp_path: Path) -> None:
    inputs = examples(40)[0]
    settings: Any = {"top_k": 1, "temperatures": [2.0, 5.0], "verbose": 0}
    stored = td.store_targets(_teacher(), _data(), tmp_path, **settings)
    live = _teacher()(inputs).numpy()
    read = next(taught.teacher for taught, _, _ in stored.dataset(batch_size=40))
    found = [_divergence(live, np.asarray(read.logits_at(t)), t) for t in (2.0, 5.0)]
    worst = np.max(found, axis=0)
    assert worst.max() > 0.01
    np.testing.assert_allclose(stored.divergence, [worst.mean(), worst.max()], rtol=1e-3)


def test_bytes_of_an_example(tmp_path: Path) -> None:
    # 32 logits of 2 bytes and their classes of 2, the largest of 4, a rest of 4 a temperature.
    assert Encoding(50_000, "float16", 32, (1.0, 4.0)).row.itemsize == 140
    assert Encoding(70_000, "float16", 32, (1.0, 4.0)).row.itemsize == 204
    assert Encoding(10, "float16").row.itemsize == 24
    assert Encoding(10, "float32", features={"f": (3, 2)}).row.itemsize == 64

    def teacher(inputs: Any) -> Any:
        return inputs * tf.linspace(-1.0, 1.0, 50_000)

    count = 400
    data = tf.data.Dataset.range(count).batch(100)
    data = data.map(lambda each: (tf.cast(each, tf.float32)[:, tf.newaxis] + 1.0,))
    stored = td.store_targets(teacher, data, tmp_path, top_k=32, verbose=0)
    files = sum(each.stat().st_size for each in tmp_path.glob("shard-*"))
    assert stored.bytes == files
    assert count * (140 + 8) <= files < 1.02 * count * (140 + 8)


# --- losses that need what was not kept


def _fit_raises(data: Any, losses: Any, error: Any, message: str, teacher: Any = None) -> None:
    """The student is as it was: not one step was made."""
    student = perceptron(tf_keras)
    before = student.get_weights()
    distiller = td.Distiller(student, teacher or _teacher(), losses, label_loss_weight=0.3)
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(error, match=message):
        distiller.fit(data, epochs=2, verbose=0)
    assert _furthest(student.get_weights(), before) == 0


def test_top_k_targets_cannot_teach_everything(tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(), _data(), tmp_path, top_k=1, verbose=0)
    message = r"`losses` must need no more than the top-k targets that were stored\."
    _fit_raises(stored.dataset(), [LogitsMSE()], SettingError, message)
    message = r"`temperature` of a loss must .*Received: 3\.0, stored: 1\.0, 4\.0\."
    _fit_raises(stored.dataset(), [SoftTargets(3.0)], SettingError, message)


def test_a_layer_that_was_not_stored_is_named(tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(), _data(), tmp_path, verbose=0)
    message = r"`data` must hold stored features .*none of rectified\. Pass layers=\['rectified'\]"
    _fit_raises(stored.dataset(), [HINT], DataError, message)


def test_targets_of_other_classes_are_refused(tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(classes=4), _data(), tmp_path, verbose=0)
    message = r"`data` must hold stored targets of the student's classes.*logits \(4,\), student"
    _fit_raises(stored.dataset(), [SoftTargets()], DataError, message)


def test_unknown_examples_are_named_out_of_fit(tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(), _data(), tmp_path, verbose=0)
    other = tf.data.Dataset.from_tensor_slices(examples(8, seed=8)).batch(8)
    message = (
        r"^Every example must be one that targets were stored of\. Received: a batch of 8 "
        r"examples, 8 of them unknown\. Give td\.store_targets all .* as `augment`\.$"
    )
    _fit_raises(stored.attach(other), [SoftTargets()], DataError, message)
    distiller = td.Distiller(perceptron(tf_keras), _teacher(), [SoftTargets()])
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(DataError, match="8 of them unknown"):
        distiller.evaluate(stored.attach(other), verbose=0)

    def failing() -> Iterator[Any]:
        yield from _data().take(1)
        raise OSError("the cable is out")

    broken = tf.data.Dataset.from_generator(failing, output_signature=_data().element_spec)
    with pytest.raises(tf.errors.OpError, match="the cable is out"):  # not ours
        distiller.fit(stored.attach(broken), verbose=0)


# --- what cannot be stored


def _constant(values: Any) -> Callable[[Any], Any]:
    return lambda inputs: tf.zeros([tf.shape(inputs)[0], 1]) + tf.constant([values], tf.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, r"`views` must be"),
        ({"views": 2}, r"`views` must be 1 without `augment`: all would be alike\. Received: 2"),
        ({"seed": -1}, r"`seed` must be"),
        ({"dtype": "int8"}, r"`dtype` must be one of \('float16', 'float32'\)\. Received: int8"),
        ({"part": 1}, r"`part` must be \(which, of how many\)\. Received: 1"),
        ({"part": (0, 1, 2)}, r"`part` must be \(which, of how many\)\."),
        ({"part": (-1, 2)}, r"`part` must be"),
        ({"part": (2, 2)}, r"`part` must be \(which, of how many\), counted from 0\."),
        ({"shard_examples": 0}, r"`shard_examples` must be"),
        ({"top_k": 0}, r"`top_k` must be"),
        ({"top_k": 3}, r"`top_k` must be less than the number of classes, 3\. Received: 3"),
        ({"top_k": 1, "temperatures": ()}, r"`temperatures` must be finite numbers > 0\."),
        ({"top_k": 1, "temperatures": (0,)}, r"`temperatures` must be finite numbers > 0\."),
        ({"augment": "flip"}, r"`augment` must be None or a function"),
    ],
)
def test_settings_are_checked_before_anything_is_written(
    settings: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        td.store_targets(_teacher(), _data(), tmp_path / "targets", verbose=0, **settings)
    assert not (tmp_path / "targets").exists()


def test_a_dataset_checks_its_settings(tmp_path: Path) -> None:
    stored = td.store_targets(_teacher(), _data(), tmp_path, verbose=0)
    with pytest.raises(SettingError, match="`batch_size` must be"):
        stored.dataset(batch_size=0)
    with pytest.raises(SettingError, match="`seed` must be"):
        stored.dataset(seed=-1)
    assert repr(stored).startswith(f"StoredTargets({str(tmp_path)!r}, examples=40, views=1, bytes=")


def _once(batches: Any) -> Any:
    """Data that end at the second reading before they have begun."""
    rest = iter(batches)
    return tf.data.Dataset.from_generator(lambda: rest, output_signature=batches.element_spec)


def test_data_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    ragged = of_open_size(_data().map(lambda inputs, *_: (inputs,)))
    kept = _once(_data())
    cases = [
        (_data().repeat(), r"`train` must end.*data without end\. Leave out `repeat\(\)`"),
        (ragged, r"`train` must have inputs of fixed sizes, for .*float32\(None, None\)"),
        ([[1.0]], r"`train` must be a tf\.data\.Dataset of batches, or a tuple of NumPy arrays"),
        (_data().take(0), r"`train` must hold at least one example\. Received: an empty data set"),
    ]
    for number, (train, message) in enumerate(cases):
        with pytest.raises(DataError, match=message):
            td.store_targets(_teacher(), train, tmp_path / str(number), verbose=0)
    stored = td.store_targets(_teacher(), kept, tmp_path / "once", verbose=0)
    with pytest.raises(DataError, match="`train` must hold at least one example"):
        stored.dataset(shuffle=True)


@pytest.mark.parametrize(
    ("values", "settings", "received"),
    [
        ([np.nan, 0.0, 1.0], {}, "NaN or infinity in largest of a batch of 8"),
        ([np.nan, 0.0, 1.0], {"dtype": "float32"}, "NaN or infinity in logits of a batch of 8"),
        ([-np.inf, 0.0, 1.0], {}, "NaN or infinity in logits of a batch of 8 examples"),
        ([-np.inf, 0.0, 1.0], {"top_k": 1}, "NaN or infinity in logits of a batch of 8 examples"),
    ],
)
def test_logits_that_are_not_finite_are_refused(
    values: Any, settings: Any, received: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"`teacher` must give logits.* finite in .*{received}"):
        td.store_targets(_constant(values), _data(), tmp_path, verbose=0, **settings)


def test_features_beyond_float16_are_not_cut_off(tmp_path: Path) -> None:
    teacher = _teacher()
    teacher.set_weights([1e6 * weight for weight in teacher.get_weights()])
    settings: Any = {"layers": ["rectified"], "verbose": 0}
    message = r"finite in float16\. Received: .*in feature rectified .*dtype=\"float32\" holds"
    with pytest.raises(ModelError, match=message):
        td.store_targets(teacher, _data(), tmp_path / "a", **settings)
    td.store_targets(teacher, _data(), tmp_path / "b", dtype="float32", **settings)


def test_logits_have_one_axis(tmp_path: Path) -> None:
    inputs = tf_keras.Input([4])
    teacher = tf_keras.Model(inputs, tf_keras.layers.Reshape([2, 2])(inputs))
    with pytest.raises(ModelError, match=r"`teacher` must have logits \[batch, classes\]\. Receiv"):
        td.store_targets(teacher, _data(), tmp_path, verbose=0)


def test_features_of_open_sizes_are_stored_as_the_data_have_them(tmp_path: Path) -> None:
    image = tf_keras.Input([None, None, 1])
    hidden = tf_keras.layers.Conv2D(2, 3, name="map")(image)
    pooled = tf_keras.layers.GlobalAveragePooling2D()(hidden)
    teacher = tf_keras.Model(image, tf_keras.layers.Dense(10)(pooled))
    stored = td.store_targets(teacher, pictures(), tmp_path, layers=["map"], verbose=0)
    assert stored.shapes.features == {"map": (4, 4, 2)}

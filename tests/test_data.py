"""Data sets by name, their order, and what is refused of a user's own data."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdistill._keras import tf
from tfdistill.data import Dataset, RandomShiftAndFlip, load_dataset, prepared
from tfdistill.data import summary as data_summary_module
from tfdistill.data.datasets import as_batches, skip_epochs, summarise
from tfdistill.errors import DataError, SettingError

SIDE = 6


def image_of(number: int) -> np.ndarray:
    """An image whose first pixel is its number."""
    image = np.random.default_rng(number).integers(0, 256, [SIDE, SIDE, 3], dtype=np.uint8)
    image[0, 0, 0] = number
    return image


def numbers_in(batches: Any) -> list[int]:
    return [round(float(n) * 255) for images, _ in batches for n in images[:, 0, 0, 0]]


@pytest.fixture(scope="session")
def tfds() -> Any:
    import tensorflow_datasets

    class TinyShapes(tensorflow_datasets.core.GeneratorBasedBuilder):
        """50 and 20 small images, made here."""

        VERSION = tensorflow_datasets.core.Version("1.2.3")
        SPLITS: dict[str, range] = {"train": range(50), "test": range(50, 70)}  # noqa: RUF012
        SHAPE: tuple[int | None, ...] = (SIDE, SIDE, 3)

        def _info(self) -> Any:
            features = tensorflow_datasets.features
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        "image": features.Image(shape=self.SHAPE),
                        "label": features.ClassLabel(names=["round", "square", "other"]),
                        "note": features.Text(),
                    }
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(n) for split, n in self.SPLITS.items()}

        def _generate_examples(self, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
            for n in numbers:
                yield n, {"image": image_of(n), "label": n % 3, "note": "unused"}

    class TinyTrainOnly(TinyShapes):
        """No test split and none for validation."""

        SPLITS: dict[str, range] = {"train": range(50)}  # noqa: RUF012

    class TinyValidated(TinyShapes):
        """No test split, but one for validation."""

        SPLITS: dict[str, range] = {"train": range(50), "validation": range(50, 70)}  # noqa: RUF012

    class TinyTestOnly(TinyShapes):
        """No train split."""

        SPLITS: dict[str, range] = {"test": range(50)}  # noqa: RUF012

    class TinySizes(TinyShapes):
        """Images may differ in size."""

        SHAPE: tuple[int | None, ...] = (None, None, 3)

    class TinyBroken(TinyShapes):
        """Cannot be downloaded."""

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            raise OSError("the network is down")

    return tensorflow_datasets


@pytest.fixture(scope="session")
def tiny_dir(tfds: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where TFDS has prepared "tiny_shapes", in three files a split."""
    folder = tmp_path_factory.mktemp("tfds")
    three_files = tfds.download.DownloadConfig(num_shards=3)
    tfds.builder("tiny_shapes", data_dir=folder).download_and_prepare(download_config=three_files)
    return folder


# --- Order ------------------------------------------------------------------------------------


def orders_of(batches: Any, epochs: int) -> list[str]:
    """A digest of each epoch's values, in their order."""
    return [
        hashlib.sha256(
            b"".join(np.asarray(part).tobytes() for batch in batches for part in batch)
        ).hexdigest()
        for _ in range(epochs)
    ]


ARRAYS = np.arange(30, dtype=np.float32)[:, None], np.arange(30) % 3
SEEDED: dict[str, Callable[[int, Path], Any]] = {
    "digits": lambda seed, _: load_dataset("digits", seed=seed).train,
    "digits, augmented": lambda seed, _: (
        load_dataset("digits", seed=seed, augment=RandomShiftAndFlip(1)).train
    ),
    "tfds": lambda seed, d: load_dataset("tiny_shapes", data_dir=d, seed=seed, batch_size=8).train,
    "tfds, augmented": lambda seed, d: (
        load_dataset("tiny_shapes", data_dir=d, seed=seed, augment=RandomShiftAndFlip(1)).train
    ),
    "arrays": lambda seed, _: as_batches(ARRAYS, batch_size=7, seed=seed),
}


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, marks=[pytest.mark.slow] if "augmented" in name else [], id=name)
        for name, build in SEEDED.items()
    ],
)
def test_the_kth_iterator_gives_the_kth_order(
    build: Callable[[int, Path], Any], tiny_dir: Path
) -> None:
    tf.random.set_seed(1)
    first, second, third = orders_of(build(5, tiny_dir), 3)
    assert len({first, second, third}) == 3

    tf.random.set_seed(2)  # no business of ours
    assert orders_of(build(5, tiny_dir), 3) == [first, second, third]
    assert orders_of(build(6, tiny_dir), 1) != [first]

    resumed = build(5, tiny_dir)
    skip_epochs(resumed, 2)
    assert orders_of(resumed, 1) == [third]

    broken_off = build(5, tiny_dir)
    next(iter(broken_off))  # one batch of the first epoch
    assert orders_of(broken_off, 1) == [second]


def test_loading_leaves_the_global_random_state_alone() -> None:
    tf.random.set_seed(3)
    expected = [float(tf.random.uniform([])) for _ in range(2)]
    tf.random.set_seed(3)
    found = [float(tf.random.uniform([]))]
    next(iter(load_dataset("digits", augment=RandomShiftAndFlip(1)).train))
    found.append(float(tf.random.uniform([])))
    assert found == expected


def test_replicas_read_the_same_order(tiny_dir: Path) -> None:
    def build() -> Any:
        return load_dataset("tiny_shapes", data_dir=tiny_dir, batch_size=10).train

    plain = build()
    expected = [numbers_in(plain) for _ in range(2)]
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for skipped in (0, 1):
        train = build()
        skip_epochs(train, skipped)
        found = []
        for images, _ in strategy.experimental_distribute_dataset(train):
            halves = strategy.experimental_local_results(images)
            found += [n for half in halves for n in numbers_in([(half, None)])]
        assert found == expected[skipped]


@pytest.mark.parametrize("epochs", [-1, 1.5, True])
def test_skip_epochs_refuses(epochs: Any) -> None:
    with pytest.raises(SettingError, match=r"`epochs` must be a whole number >= 0\. Received"):
        skip_epochs(tf.data.Dataset.range(3), epochs)


# --- Digits -----------------------------------------------------------------------------------


def collect(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_digits_are_scikit_learns_and_each_in_one_split() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits", batch_size=100)
    train, validation, test = dataset
    assert (train, validation, test) == (dataset.train, dataset.validation, dataset.test)
    assert train.element_spec == (
        tf.TensorSpec([None, 8, 8, 1], tf.float32),
        tf.TensorSpec([None], tf.int64),
    )
    assert (dataset.name, dataset.classes, dataset.input_shape) == ("digits", 10, (8, 8, 1))
    assert dataset.label_names == tuple("0123456789")
    assert dataset.examples == {"train": 1293, "validation": 144, "test": 360}
    assert [int(split.cardinality()) for split in dataset] == [13, 2, 4]

    splits = [collect(split) for split in dataset]
    assert [len(labels) for _, labels in splits] == list(dataset.examples.values())
    raw = load_digits()
    expected = sorted(
        (tuple(pixels), label)
        for pixels, label in zip(raw.data / 16, raw.target.tolist(), strict=True)
    )
    found = sorted(
        (tuple(image.ravel().astype(float)), label)
        for images, labels in splits
        for image, label in zip(images, labels.tolist(), strict=True)
    )
    assert found == expected
    assert dataset.scale == 1 / 16
    for _, labels in splits:  # each class has its share in each split
        share = np.bincount(labels, minlength=10) / len(labels)
        np.testing.assert_allclose(share, np.bincount(raw.target) / 1797, atol=0.01)


def test_the_splits_do_not_depend_on_the_seed() -> None:
    one, other = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    for split in ("validation", "test"):
        for a, b in zip(collect(getattr(one, split)), collect(getattr(other, split)), strict=True):
            np.testing.assert_array_equal(a, b)
    a, b = (collect(dataset.train)[0] for dataset in (one, other))
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(np.sort(a, axis=0), np.sort(b, axis=0))


def test_digits_resized_and_validation_fraction() -> None:
    dataset = load_dataset("digits", image_size=(16, 12), validation_fraction=0.25)
    assert dataset.examples == {"train": 1077, "validation": 360, "test": 360}
    assert dataset.input_shape == (16, 12, 1)
    images, _ = collect(dataset.test)
    assert images.shape == (360, 16, 12, 1)
    assert images.min() >= 0
    assert 0.9 < images.max() <= 1 + 1e-6


# --- TFDS -------------------------------------------------------------------------------------


def test_tfds_splits_hold_what_tfds_reads(tfds: Any, tiny_dir: Path) -> None:
    dataset = load_dataset("tiny_shapes", data_dir=tiny_dir, batch_size=8, validation_fraction=0.2)
    assert (dataset.name, dataset.version) == ("tiny_shapes", "1.2.3")
    assert dataset.label_names == ("round", "square", "other")
    assert dataset.examples == {"train": 40, "validation": 10, "test": 20}
    assert dataset.splits == {
        "train": "train[:40]",
        "validation": "train[40:50]",
        "test": "test",
    }
    assert [int(split.cardinality()) for split in dataset] == [5, 2, 3]
    assert dataset.input_shape == (SIDE, SIDE, 3)
    assert dataset.scale == 1 / 255

    for split, part in dataset.splits.items():
        images, labels = collect(getattr(dataset, split))
        assert images.dtype == np.float32
        assert labels.dtype == np.int64
        read = tfds.load("tiny_shapes", data_dir=tiny_dir, split=part).as_numpy_iterator()
        expected = {int(example["image"][0, 0, 0]): example for example in read}
        numbers = np.rint(images[:, 0, 0, 0] * 255).astype(int)
        assert sorted(numbers.tolist()) == sorted(expected)
        for number, image, label in zip(numbers, images, labels, strict=True):
            np.testing.assert_array_equal(image, expected[number]["image"] * np.float32(1 / 255))
            assert label == expected[number]["label"]
    assert numbers_in(dataset.test) == numbers_in(dataset.test)


def test_tfds_without_test_split(tfds: Any, tmp_path: Path) -> None:
    def load(name: str) -> Dataset:
        return load_dataset(name, data_dir=tmp_path, download=True)

    train_only = load("tiny_train_only")
    assert train_only.splits == {
        "train": "train[:40]",
        "validation": "train[40:45]",
        "test": "train[45:50]",
    }
    read = [numbers_in(split) for split in train_only]
    assert [len(numbers) for numbers in read] == [40, 5, 5]
    assert sorted(n for numbers in read for n in numbers) == list(range(50))

    assert load("tiny_validated").splits == {
        "train": "train[:45]",
        "validation": "train[45:50]",
        "test": "validation",
    }
    with pytest.raises(SettingError, match=r"must leave examples to train on\. Received: 0\.5"):
        load_dataset("tiny_train_only", data_dir=tmp_path, validation_fraction=0.5)
    with pytest.raises(DataError, match=r"must have a split 'train'\. Received: \['test'\]"):
        load("tiny_test_only")


def test_images_that_differ_in_size(tfds: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="`image_size` must be given for `tiny_sizes`"):
        load_dataset("tiny_sizes", data_dir=tmp_path, download=True)
    dataset = load_dataset("tiny_sizes", data_dir=tmp_path, image_size=(4, 5))
    assert dataset.input_shape == (4, 5, 3)
    images, _ = collect(dataset.test)
    assert images.shape == (20, 4, 5, 3)
    assert images.min() >= 0
    assert 0.5 < images.max() <= 1 + 1e-6


def test_not_prepared_says_where_and_how(tfds: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("tiny_shapes", data_dir=tmp_path)
    message = str(caught.value)
    assert "`tiny_shapes` must be prepared by TFDS" in message
    assert f"Received: nothing in {tmp_path / 'tiny_shapes' / '1.2.3'}." in message
    assert f"tfds.load('tiny_shapes', data_dir={str(tmp_path)!r})\"" in message
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(DataError, match=r"must be downloadable by TFDS\. Received: OSError"):
        load_dataset("tiny_broken", data_dir=tmp_path, download=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiny_shape", "Nearest names: tiny_shapes"),
        ("Fashion-MNIST", "Nearest names: fashion_mnist"),
        ("digit", "Nearest names: digits"),
        ("tiny_shapes:9.9.9", "cannot be loaded at version 9.9.9"),
        ("huggingface:mnist", "must have the form"),
        ("", "must have the form"),
        (None, "must have the form"),
    ],
)
def test_unknown_names_are_refused(tfds: Any, tiny_dir: Path, name: Any, hint: str) -> None:
    with pytest.raises(DataError, match="`name` must be 'digits' or an image") as caught:
        load_dataset(name, data_dir=tiny_dir)
    assert f"Received: {name}." in str(caught.value)
    assert hint in str(caught.value)


def test_other_kinds_of_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Received: text: Text, label: ClassLabel"):
        load_dataset("imdb_reviews", data_dir=tmp_path)


def test_a_missing_file_is_named(tiny_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_dir, copy)
    lost = sorted(copy.rglob("*train.tfrecord*"))[1]
    lost.unlink()
    with pytest.raises(DataError, match=f"must be complete. Received: no file {lost}"):
        load_dataset("tiny_shapes", data_dir=copy)


def test_reading_writes_nothing(tiny_dir: Path) -> None:
    def listing() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in tiny_dir.rglob("*")
        }

    before = listing()
    for split in load_dataset("tiny_shapes", data_dir=tiny_dir):
        summarise(split, classes=3)
    assert listing() == before


def test_images_are_shuffled_as_they_are_stored(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer of decoded images would hold 4 bytes a pixel; that of records holds strings."""
    from tfdistill.data import datasets as data_module

    seen = []

    def spy(dataset: Any, buffer: int, seed: int) -> Any:
        seen.append((dataset.element_spec, buffer))
        return dataset

    monkeypatch.setattr(data_module, "shuffled", spy)
    load_dataset("tiny_shapes", data_dir=tiny_dir)
    assert seen == [(tf.TensorSpec([], tf.string), 10_000)]


def test_fashion_mnist(test_data: Path) -> None:
    dataset = load_dataset("fashion_mnist", data_dir=test_data / "tfds")
    assert (dataset.name, dataset.version) == ("fashion_mnist", "3.0.1")
    assert dataset.examples == {"train": 54000, "validation": 6000, "test": 10000}
    assert (dataset.classes, dataset.label_names[9]) == (10, "Ankle boot")
    summary = summarise(dataset.test, classes=10, input_shape=(28, 28, 1))
    assert summary.label_counts == (1000,) * 10
    assert summary.element == "(float32[batch, 28, 28, 1], int64[batch])"
    images, labels = next(iter(dataset.train))
    assert images.shape == (128, 28, 28, 1)
    assert 0.99 < float(tf.reduce_max(images)) <= 1
    assert len(set(labels.numpy().tolist())) == 10


def test_mnist_has_its_digits_as_names(test_data: Path) -> None:
    dataset = load_dataset("mnist", data_dir=test_data / "tfds")
    assert dataset.label_names == tuple("0123456789")


PROGRAM = """
import os, sys
import tensorflow as tf
before = dict(os.environ)
from tfdistill.data import load_dataset
from tfdistill.errors import DataError
assert "tensorflow_datasets" not in sys.modules
load_dataset("digits")
assert "tensorflow_datasets" not in sys.modules
try:
    load_dataset("mnist")
except DataError as error:
    print(error)
assert "tensorflow_datasets" in sys.modules
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert tf.keras.layers.Dense.__module__.startswith("keras.src"), tf.keras.layers.Dense
"""


@pytest.mark.slow  # TensorFlow and TFDS in a process of its own
def test_tfds_is_imported_late_changes_nothing_and_names_its_own_folder(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    environment["PYTHONPATH"] = str(Path(prepared.__file__).parents[1])
    environment["TFDS_DATA_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, env=environment, stdout=subprocess.PIPE
    )
    message = done.stdout.decode()
    assert f"Received: nothing in {tmp_path / 'mnist'}" in message
    assert "tfds.load('mnist')\"" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1. Received: 0."),
        ({"batch_size": 1.5}, "`batch_size` must be a whole number >= 1. Received: 1.5."),
        ({"seed": -1}, "`seed` must be a whole number >= 0. Received: -1."),
        ({"seed": None}, "`seed` must be a whole number >= 0. Received: None."),
        ({"validation_fraction": 0}, "`validation_fraction` must be in (0, 1). Received: 0."),
        ({"validation_fraction": 1.0}, "`validation_fraction` must be in (0, 1). Received: 1.0."),
        ({"validation_fraction": 0.001}, "`validation_fraction` must leave an example of each"),
        ({"image_size": 28}, "`image_size` must be (height, width). Received: 28."),
        ({"image_size": (28, 0)}, "`image_size` must be a whole number >= 1. Received: 0."),
        ({"augment": "flip"}, "`augment` must be None or a function of (image, seed)."),
        (
            {"augment": lambda image, seed: image[1:]},
            "return a float32 image of the shape [8, 8, 1], as it is given. Received: float32[7, 8",
        ),
        (
            {"augment": lambda image, seed: tf.cast(image, tf.uint8)},
            "`augment` must return a float32 image of the shape [8, 8, 1]",
        ),
        ({"augment": lambda image, seed: None}, "as it is given. Received: None."),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_dataset("digits", **settings)
    assert message in str(caught.value)


# --- Augmentation -----------------------------------------------------------------------------


def shifted(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    out = np.zeros_like(image)
    height, width = image.shape[:2]
    rows = slice(max(0, down), height + min(0, down))
    columns = slice(max(0, right), width + min(0, right))
    from_rows = slice(max(0, -down), height + min(0, -down))
    from_columns = slice(max(0, -right), width + min(0, -right))
    out[rows, columns] = image[from_rows, from_columns]
    return out[:, ::-1] if flip else out


@pytest.mark.parametrize(("pixels", "flip"), [(1, True), (2, False), (0, True), (0, False)])
def test_shift_and_flip_does_what_it_says(pixels: int, flip: bool) -> None:
    image = np.random.default_rng(0).uniform(0.1, 1, [5, 4, 2]).astype(np.float32)
    steps = range(-pixels, pixels + 1)
    possible = {
        shifted(image, down, right, flipped).tobytes()
        for down in steps
        for right in steps
        for flipped in {False, flip}
    }
    augment = tf.function(RandomShiftAndFlip(pixels, flip))
    results = [augment(image, tf.constant([7, n], tf.int64)).numpy() for n in range(400)]
    assert {result.tobytes() for result in results} == possible
    np.testing.assert_array_equal(results[3], augment(image, tf.constant([7, 3], tf.int64)))


def test_each_example_and_epoch_has_a_seed_of_its_own() -> None:
    def seed_as_image(image: Any, seed: Any) -> Any:
        assert image.shape == (8, 8, 1)
        assert seed.shape == (2,)
        return tf.fill(tf.shape(image), tf.cast(seed[1], tf.float32))

    dataset = load_dataset("digits", augment=seed_as_image)
    seen = np.concatenate([collect(dataset.train)[0][:, 0, 0, 0] for _ in range(2)])
    assert len(seen) == 2 * 1293
    assert len(np.unique(seen)) > 2580  # float32 makes a few alike
    for split in (dataset.validation, dataset.test):
        assert collect(split)[0].max() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixels": -1}, "`pixels` must be a whole number >= 0. Received: -1."),
        ({"flip": "yes"}, "`flip` must be True or False. Received: yes."),
        ({"rotate": 3}, "`rotate` must be a setting of RandomShiftAndFlip"),
    ],
)
def test_augmentation_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        RandomShiftAndFlip(**settings)
    assert message in str(caught.value)


# --- A user's own data ------------------------------------------------------------------------

INPUTS = np.random.default_rng(1).normal(size=[10, 4]).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]


def batched(*arrays: Any, size: int = 4) -> Any:
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def test_arrays_become_batches_of_all_rows() -> None:
    train = as_batches((INPUTS, LABELS), batch_size=4, seed=3)
    assert [len(labels) for _, labels in train] == [4, 4, 2]
    inputs, labels = collect(train)
    assert not np.array_equal(inputs, INPUTS)
    order = [int(np.flatnonzero((row == INPUTS).all(axis=1))[0]) for row in inputs]
    assert sorted(order) == list(range(10))
    np.testing.assert_array_equal(labels, LABELS[order])

    inputs, labels = collect(as_batches((INPUTS, LABELS), batch_size=4, name="test"))
    np.testing.assert_array_equal(inputs, INPUTS)
    np.testing.assert_array_equal(labels, LABELS)


def test_what_as_batches_takes() -> None:
    own = batched(INPUTS, LABELS)
    assert as_batches(own) is own
    bare = tf.data.Dataset.from_tensor_slices(INPUTS).batch(4)
    assert as_batches(bare).element_spec == (tf.TensorSpec([None, 4], tf.float32),)
    assert as_batches(INPUTS).element_spec == (tf.TensorSpec([None, 4], tf.float32),)
    two = as_batches(({"a": INPUTS.astype(np.float64), "b": LABELS}, LABELS), batch_size=4)
    assert two.element_spec[0]["a"] == tf.TensorSpec([None, 4], tf.float32)
    assert sum(len(inputs["b"]) for inputs, _ in two) == 10
    assert int(as_batches((INPUTS, LABELS)).cardinality()) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: [INPUTS, LABELS],
            "`train` must be a tf.data.Dataset of batches, or a tuple of NumPy",
        ),
        (lambda: ([INPUTS, INPUTS], LABELS), "`train` must be a tf.data.Dataset of batches"),
        (lambda: iter([(INPUTS, LABELS)]), "`train` must be a tf.data.Dataset of batches"),
        (lambda: (), "`train` must be a tf.data.Dataset of batches"),
        (lambda: (INPUTS, LABELS, LABELS, LABELS), "`train` must be a tf.data.Dataset of batches"),
        (
            lambda: (INPUTS, LABELS[:9]),
            "as many in each array. Received: arrays of length [10, 9].",
        ),
        (lambda: (INPUTS[:0], LABELS[:0]), "`train` must hold at least one example"),
        (lambda: (INPUTS.astype(object), LABELS), "must hold arrays [examples, ...] of numbers"),
        (
            lambda: tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)),
            "`train` must be batched. Received: (TensorSpec(shape=(4,)",
        ),
        (lambda: batched(INPUTS, (LABELS, LABELS)), "`train` must hold dense tensors"),
        (
            lambda: tf.data.Dataset.from_tensors((tf.ragged.constant([[1], [1, 2]]), [0, 1])),
            "`train` must hold dense tensors",
        ),
    ],
)
def test_what_as_batches_refuses(data: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        as_batches(data())
    assert message in str(caught.value)


def test_labels_may_be_of_several_outputs() -> None:
    both = {"digit": LABELS, "odd": (LABELS % 2).astype(np.float64)}
    for data in ((INPUTS, both), batched(INPUTS, both)):
        summary = summarise(data, classes={"digit": 3, "odd": 2, "more": 5})
        assert summary.labels == {"digit": "integers", "odd": "integers", "more": "none"}
        assert summary.label_counts == {"digit": (4, 3, 3), "odd": (7, 3), "more": ()}
        assert summary.classes_seen == {"digit": 3, "odd": 2, "more": 0}
        with pytest.raises(DataError, match=r"`train` must have one tensor of labels.* digit, odd"):
            summarise(data, classes=3)
        with pytest.raises(DataError, match=r"`train`, for the output 'odd', .* below 1\."):
            summarise(data, classes={"digit": 3, "odd": 1})
    weights = {"digit": np.ones(10), "odd": -np.ones(10)}
    with pytest.raises(DataError, match=r"must have finite weights >= 0\. Received: -1\.0"):
        summarise((INPUTS, both, weights), classes={"digit": 3, "odd": 2})


def test_as_batches_refuses_settings_it_cannot_use() -> None:
    with pytest.raises(SettingError, match="`batch_size` must be None where `train` is"):
        as_batches(batched(INPUTS, LABELS), batch_size=4)
    with pytest.raises(SettingError, match="`batch_size` must be a whole number >= 1"):
        as_batches((INPUTS, LABELS), batch_size=0)
    with pytest.raises(SettingError, match="`seed` must be a whole number >= 0"):
        as_batches((INPUTS, LABELS), seed=-3)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (LABELS, "integers"),
        (LABELS[:, None], "integers"),
        (LABELS.astype(np.uint8), "integers"),
        (LABELS.astype(np.float32), "integers"),
        (ONE_HOT, "one-hot"),
        (ONE_HOT * 0.9 + 0.1 / 3, "one-hot"),
        (ONE_HOT.astype(np.int32), "one-hot"),
    ],
)
def test_summary_of_labels(labels: np.ndarray, kind: str) -> None:
    for data in ((INPUTS, labels), batched(INPUTS, labels, size=128)):
        summary = summarise(data, classes=3, input_shape=(4,))
        assert (summary.examples, summary.steps) == (10, 1)
        assert (summary.labels, summary.label_counts) == (kind, (4, 3, 3))
        assert summary.classes_seen == 3
        assert not summary.has_sample_weight


def test_true_and_false_are_labels_of_two_classes() -> None:
    assert summarise((INPUTS, LABELS > 0), classes=2).label_counts == (4, 6)


def test_summary_counts_steps_and_sees_weights() -> None:
    weights = np.linspace(0, 1, 10)
    summary = summarise((INPUTS, LABELS, weights), classes=5, batch_size=4)
    assert (summary.steps, summary.label_counts, summary.classes_seen) == (3, (4, 3, 3, 0, 0), 3)
    assert summary.has_sample_weight
    assert summary.element == "(float32[batch, 4], int64[batch], float32[batch])"
    assert summarise((INPUTS, LABELS), classes=None).label_counts == (4, 3, 3)


def test_summary_without_labels() -> None:
    summary = summarise(INPUTS, classes=3, require_labels=False)
    assert (summary.labels, summary.label_counts, summary.classes_seen) == ("none", (), 0)
    with pytest.raises(DataError, match=r"`train` must have labels\. Received: \(float32\[batch"):
        summarise(INPUTS, classes=3)


def test_summary_of_an_epoch_of_endless_data() -> None:
    endless = batched(INPUTS, LABELS).repeat()
    summary = summarise(endless, classes=3, steps_per_epoch=4)
    assert (summary.steps, summary.examples) == (4, 14)
    with pytest.raises(DataError, match="`train` must end or `steps_per_epoch` must be given"):
        summarise(endless, classes=3)


def test_identity_knows_the_data_and_not_its_order() -> None:
    own = batched(INPUTS, LABELS)
    identity = summarise(own, classes=3).identity
    shuffled = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).shuffle(10).batch(4)
    noisy = own.map(lambda x, y: (x + tf.random.normal([4]), y))
    for same in (shuffled, noisy, batched(INPUTS, LABELS)):
        assert summarise(same, classes=3).identity == identity
    assert summarise((INPUTS, LABELS), classes=3, batch_size=4, name="test").identity == identity

    others = [
        batched(INPUTS[:9], LABELS[:9]),
        batched(INPUTS, np.roll(LABELS, 1) * 0),
        batched(INPUTS[:, :3], LABELS),
        batched(INPUTS.astype(np.float16), LABELS),
        batched(INPUTS, LABELS, size=5),
    ]
    found = {summarise(other, classes=3).identity for other in others}
    assert len(found | {identity}) == 6

    # A part of an endless shuffled set holds other labels each time.
    endless = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).repeat().shuffle(10).batch(4)
    parts = [summarise(endless, classes=3, steps_per_epoch=1) for _ in range(8)]
    assert len({part.label_counts for part in parts}) > 1
    assert len({part.identity for part in parts}) == 1


NAN = np.where(np.arange(40).reshape(10, 4) == 33, np.nan, INPUTS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: batched(INPUTS, LABELS).take(0), "`train` must hold at least one example."),
        (
            lambda: batched(INPUTS, LABELS).filter(lambda x, y: False),
            "must hold at least one example.",
        ),
        (
            lambda: (INPUTS, LABELS + 1),
            "labels that are whole numbers from 0 below 3. Received: label 3.",
        ),
        (
            lambda: (INPUTS, LABELS - 1),
            "labels that are whole numbers from 0 below 3. Received: label -1.",
        ),
        (lambda: (INPUTS, LABELS / 2), "whole numbers from 0 below 3. Received: label 0.5."),
        (lambda: (INPUTS, LABELS * np.nan), "whole numbers from 0 below 3. Received: label nan."),
        (
            lambda: (INPUTS, np.eye(4)[LABELS]),
            "labels of 3 classes. Received: one-hot labels of 4.",
        ),
        (
            lambda: (INPUTS, ONE_HOT * 2),
            "one-hot labels >= 0 that sum to 1. Received: [",
        ),
        (
            lambda: (INPUTS, ONE_HOT * 2 - 1 / 3),
            "`train` must have one-hot labels >= 0 that sum to 1.",
        ),
        (
            lambda: (INPUTS, LABELS.astype(str)),
            "must have labels [batch] or [batch, classes], of numbers",
        ),
        (lambda: (INPUTS, np.zeros([10, 3, 3])), "must have labels [batch] or [batch, classes]"),
        (lambda: (NAN, LABELS), "`train` must have finite inputs. Received: NaN or infinity."),
        (lambda: (np.full([10, 4], -np.inf), LABELS), "`train` must have finite inputs."),
        (lambda: (INPUTS, LABELS, -np.ones(10)), "must have finite weights >= 0. Received: -1.0."),
        (lambda: (INPUTS, LABELS, np.full(10, np.nan)), "`train` must have finite weights >= 0."),
        (lambda: (INPUTS[:, :3], LABELS), "of the shape [batch, 4]. Received: (10, 3)."),
        (lambda: (INPUTS[..., None], LABELS), "of the shape [batch, 4]. Received: (10, 4, 1)."),
        (lambda: ({"a": INPUTS, "b": INPUTS}, LABELS), "Received: 2 inputs of the shapes"),
        (
            lambda: tf.data.Dataset.from_tensor_slices((INPUTS, ONE_HOT)),
            "`train` must be batched. Received: (4,). Call `.batch(...)` on it.",
        ),
        (
            lambda: tf.data.Dataset.zip((batched(INPUTS), batched(LABELS, size=3))).map(
                lambda x, y: (x[0], y[0])
            ),
            "as many labels and weights as inputs in each batch. Received: 4 inputs with [(3,)]",
        ),
    ],
)
def test_what_summarise_refuses(data: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        summarise(data(), classes=3, input_shape=(4,))
    assert message in str(caught.value)


def test_summarise_refuses_steps_that_are_not_there() -> None:
    with pytest.raises(DataError, match=r"must hold `steps_per_epoch` = 4 batches\. Received: 3"):
        summarise((INPUTS, LABELS), classes=3, batch_size=4, steps_per_epoch=4)
    with pytest.raises(SettingError, match="`steps_per_epoch` must be a whole number >= 1"):
        summarise((INPUTS, LABELS), classes=3, steps_per_epoch=0)


def test_summarise_warns_of_data_that_may_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_summary_module, "_PATIENCE_SECONDS", 0.0)
    unsure = batched(INPUTS, LABELS).filter(lambda x, y: True)
    with pytest.warns(UserWarning, match="`train` has not ended after 1 batches") as caught:
        assert summarise(unsure, classes=3).examples == 10
    assert len(caught) == 1
    summarise(batched(INPUTS, LABELS), classes=3)  # knows its length: no warning

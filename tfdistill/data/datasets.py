"""Data sets by name, and one door to all that this library does with data.

The order of `load_dataset`'s training examples depends on its seed alone, see `skip_epochs`.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdistill._keras import tf
from tfdistill.data.batches import (
    BATCH_SIZE,
    array_batches,
    as_batches,
    free_of_global_seed,
    shuffled,
    skip_epochs,
)
from tfdistill.data.prepared import choose_splits, find_builder, read_records
from tfdistill.data.summary import DataSummary, content_of, require_same_each_time, summarise
from tfdistill.errors import SettingError
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.settings import settings, whole_number

__all__ = [
    "DataSummary",
    "Dataset",
    "RandomShiftAndFlip",
    "as_batches",
    "content_of",
    "identity_of_augment",
    "load_dataset",
    "require_same_each_time",
    "skip_epochs",
    "summarise",
]

Augment = Callable[[Any, Any], Any]

_SHUFFLE_BUFFER = 10_000  # examples as they lie on disk


@settings
class RandomShiftAndFlip:
    """Shifts an image by up to `pixels` in each direction, and mirrors every second one.

    Stateless: the same image and seed give the same result, in every process. What is shifted
    in from outside is 0.

    Args:
        pixels: Largest shift. 0 leaves the image where it is.
        flip: Whether to mirror left and right. Leave it off where that changes the class, as
            with digits.

    Raises:
        SettingError: `pixels` is not a whole number >= 0, or `flip` is no bool.

    Example:
        >>> train, _, _ = load_dataset("digits", augment=RandomShiftAndFlip(1, flip=False))

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2
    (4 pixels, on 32x32 images).
    """

    pixels: int = 2
    flip: bool = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        whole_number("pixels", self.pixels, minimum=0)
        if not isinstance(self.flip, bool):
            raise SettingError("`flip` must be True or False.", received=self.flip)

    def __call__(self, image: Any, seed: Any) -> Any:
        """Augments one image.

        Args:
            image: `[height, width, channels]`.
            seed: `[2]`, integers.

        Returns:
            `[height, width, channels]`.
        """
        shift_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
        if self.pixels:
            margin = [self.pixels, self.pixels]
            padded = tf.pad(image, [margin, margin, [0, 0]])
            image = tf.image.stateless_random_crop(padded, tf.shape(image), shift_seed)
        if self.flip:
            image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        return image


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set loaded by name. Iterates as exactly `train, validation, test`.

    Attributes:
        name: As TFDS calls it, with its configuration; or "digits".
        version: Of the prepared data.
        train: Batches `(image, label)`: float32 `[batch, height, width, channels]` in [0, 1],
            int64 `[batch]`. Shuffled anew for each iterator, and augmented where asked.
        validation: The same, in fixed order, never augmented.
        test: The same, in fixed order, never augmented.
        label_names: Names of the classes, in the order of the labels.
        input_shape: `(height, width, channels)`.
        examples: Number of examples in each split.
        splits: What each split was taken from, as "train[:54000]".
        scale: The normalisation applied: image = raw pixel * scale.
        identity: Hash of all that decides on the training examples and their order; to be given
            to `Pipeline.run` as `data_name`.
    """

    name: str
    version: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    label_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    examples: dict[str, int]
    splits: dict[str, str]
    scale: float
    identity: str = ""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    def __iter__(self) -> Iterator[tf.data.Dataset]:
        """Yields `train`, `validation` and `test`."""
        return iter((self.train, self.validation, self.test))


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    batch_size: int = BATCH_SIZE,
    validation_fraction: float = 0.1,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    augment: Augment | None = None,
    download: bool = False,
) -> Dataset:
    """Loads an image classification set as `train, validation, test`.

    Which example is in which split depends on `validation_fraction` alone, never on `seed`.
    "digits" is split by class with a constant random state, a fifth of it for "test". With TFDS
    its own splits are taken. Where "validation" is missing, or has to serve as a missing "test",
    the end of "train" is held out for it; where both are missing, for both.

    TFDS' images stream from disk and are decoded batch by batch. Training examples pass a
    shuffle buffer that holds 10 000 of them, still encoded.

    Args:
        name: "digits" (scikit-learn's; 8x8, grey), or an image classification set of TFDS, as
            "fashion_mnist", "cifar10_corrupted/fog_1" or "mnist:3.0.1".
        data_dir: Where TFDS has prepared it; by default TFDS' own folder. Only written to with
            `download`.
        batch_size: Examples in a batch; the last one of a split may be smaller.
        validation_fraction: Share of the training examples held out, where that is needed.
        seed: For the order of the training examples and for `augment`.
        image_size: `(height, width)` to resize to; needed where images differ in size.
        augment: `augment(image, seed)` of one training image, float32
            `[height, width, channels]` in [0, 1], and integers `[2]` that differ for each
            example and epoch. Must keep shape and dtype. `RandomShiftAndFlip()` is one.
        download: Whether TFDS may download and prepare what is not there.

    Raises:
        SettingError: A setting is outside what it may be.
        DataError: `name` is unknown, no image classification set, not prepared or incomplete.

    Example:
        >>> train, validation, test = load_dataset("digits", batch_size=64)
    """
    whole_number("batch_size", batch_size, minimum=1)
    whole_number("seed", seed, minimum=0)
    if not isinstance(validation_fraction, numbers.Real) or not 0 < validation_fraction < 1:
        raise SettingError("`validation_fraction` must be in (0, 1).", received=validation_fraction)
    if image_size is not None:
        if not isinstance(image_size, tuple) or len(image_size) != 2:
            raise SettingError("`image_size` must be (height, width).", received=image_size)
        for side in image_size:
            whole_number("image_size", side, minimum=1)
    if augment is not None and not callable(augment):
        raise SettingError(
            "`augment` must be None or a function of (image, seed).", received=augment
        )
    if name == "digits":
        raw = _digits(batch_size, float(validation_fraction), seed, image_size)
    else:
        builder = find_builder(name, data_dir, download)
        raw = _tfds(builder, batch_size, float(validation_fraction), seed, image_size)

    scale = raw.scale

    def normalise(images: Any, labels: Any) -> tuple[Any, Any]:
        return tf.cast(images, tf.float32) * scale, labels

    ready = {split: getattr(raw, split).map(normalise) for split in raw.splits}
    if augment is not None:
        _check_augment(augment, raw.input_shape)
        ready["train"] = _augmented(ready["train"], augment, batch_size, seed)
    ready = {split: batches.prefetch(tf.data.AUTOTUNE) for split, batches in ready.items()}
    decides = (raw.name, raw.version, raw.splits, raw.input_shape, validation_fraction)
    identity = fingerprint(decides, batch_size, seed, identity_of_augment(augment))
    return dataclasses.replace(raw, identity=identity, **ready)


def identity_of_augment(augment: Augment | None) -> Any:
    """Its settings, where it has any that can be seen; else its name."""
    if augment is None or dataclasses.is_dataclass(augment) or hasattr(augment, "get_config"):
        return augment
    kind = augment if hasattr(augment, "__qualname__") else type(augment)
    return f"{kind.__module__}.{kind.__qualname__}"


def _digits(
    batch_size: int, validation_fraction: float, seed: int, image_size: tuple[int, int] | None
) -> Dataset:
    """The digits with raw pixels, 0 to 16."""
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[..., np.newaxis].astype(np.uint8)
    labels = digits.target.astype(np.int64)
    every = np.arange(len(labels))
    rest, test = train_test_split(every, test_size=0.2, stratify=labels, random_state=0)
    try:
        train, validation = train_test_split(
            rest, test_size=validation_fraction, stratify=labels[rest], random_state=0
        )
    except ValueError as error:
        raise SettingError(
            "`validation_fraction` must leave an example of each class on both sides.",
            received=validation_fraction,
        ) from error

    def resize(images: Any, labels: Any) -> tuple[Any, Any]:
        return tf.image.resize(images, image_size, antialias=True), labels

    rows = {"train": train, "validation": validation, "test": test}
    batches = {}
    for split, chosen in rows.items():
        arrays = images[chosen], labels[chosen]
        batches[split] = array_batches(arrays, batch_size, seed if split == "train" else None)
        if image_size is not None:
            batches[split] = batches[split].map(resize)
    return Dataset(
        name="digits",
        version=f"scikit-learn {sklearn.__version__}",
        **batches,
        label_names=tuple(str(label) for label in digits.target_names),
        input_shape=(*(image_size or images.shape[1:3]), 1),
        examples={split: len(chosen) for split, chosen in rows.items()},
        splits=dict.fromkeys(rows, "a stratified part of all"),
        scale=1 / 16,
    )


def _tfds(
    builder: Any,
    batch_size: int,
    validation_fraction: float,
    seed: int,
    image_size: tuple[int, int] | None,
) -> Dataset:
    """A prepared set of TFDS with raw pixels, 0 to 255."""
    image, label = builder.info.features["image"], builder.info.features["label"]
    if image_size is None and None in image.shape:
        raise SettingError(
            f"`image_size` must be given for `{builder.name}`, whose images differ in size.",
            received=None,
            hint="Give the (height, width) of the model's input.",
        )
    input_shape = (*(image_size or image.shape[:2]), image.shape[2])
    decoded = tf.TensorSpec(input_shape, tf.uint8 if image_size is None else tf.float32)
    record = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def decode_image(encoded: Any) -> Any:
        pixels = image.decode_example(encoded)
        if image_size is None:
            return pixels
        return tf.image.resize(pixels, image_size, antialias=True)

    def decode(records: Any) -> tuple[Any, Any]:
        parsed = tf.io.parse_example(records, record)
        images = tf.map_fn(decode_image, parsed["image"], fn_output_signature=decoded)
        return images, parsed["label"]

    splits = choose_splits(builder, validation_fraction)
    batches = {}
    for split, part in splits.items():
        records = read_records(builder, part)
        if split == "train":
            records = shuffled(records, _SHUFFLE_BUFFER, seed)
        records = records.batch(batch_size)
        batches[split] = records.map(decode, tf.data.AUTOTUNE, deterministic=True)
    return Dataset(
        name=builder.info.full_name.rpartition("/")[0],
        version=str(builder.version),
        **batches,
        label_names=tuple(label.names),
        input_shape=input_shape,
        examples={split: builder.info.splits[part].num_examples for split, part in splits.items()},
        splits=splits,
        scale=1 / 255,
    )


def _check_augment(augment: Augment, shape: tuple[int, int, int]) -> None:
    image = augment(tf.zeros(shape), tf.zeros([2], tf.int64))
    if not tf.is_tensor(image) or image.dtype != tf.float32 or image.shape != shape:
        raise SettingError(
            f"`augment` must return a float32 image of the shape {list(shape)}, as it is given.",
            received=f"{image.dtype.name}{list(image.shape)}" if tf.is_tensor(image) else image,
        )


def _augmented(batches: Any, augment: Augment, batch_size: int, seed: int) -> Any:
    """Augments each image, with a seed of its own for each epoch and position."""
    draws = free_of_global_seed(
        lambda: tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    )

    def augment_batch(batch: Any, drawn: Any) -> tuple[Any, Any]:
        images, labels = batch
        drawn = drawn[: tf.shape(images)[0]]  # the last batch may be smaller
        seeds = tf.stack([tf.fill(tf.shape(drawn), tf.constant(seed, tf.int64)), drawn], axis=1)
        one = tf.TensorSpec(images.shape[1:], tf.float32)
        return tf.map_fn(
            lambda pair: augment(*pair), (images, seeds), fn_output_signature=one
        ), labels

    pairs = tf.data.Dataset.zip((batches, draws.batch(batch_size)))
    return pairs.map(augment_batch, tf.data.AUTOTUNE, deterministic=True)

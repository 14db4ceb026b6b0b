"""Image classification sets that TFDS has prepared: found, split and read as records."""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

from tfdistill._keras import tf
from tfdistill.errors import DataError, SettingError

__all__ = ["choose_splits", "find_builder", "read_records"]


def find_builder(name: Any, data_dir: Any, download: bool) -> Any:
    """The TFDS builder of a set, known to be prepared and to hold images and their classes.

    Raises:
        DataError: The name is unknown, the set no image classification set or not prepared.
    """
    import tensorflow_datasets as tfds

    try:
        # Namespaces, as in "huggingface:mnist", would reach for the network.
        if not isinstance(name, str) or not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name):
            raise ValueError("It must have the form name, name/config or name:version.")
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:  # no such name or config; no such version
        known = ["digits", *tfds.list_builders()]
        asked = re.split("[/:]", str(name).lower().replace("-", "_"))[0]
        nearest = ", ".join(difflib.get_close_matches(asked, known))
        raise DataError(
            "`name` must be 'digits' or an image classification set of TFDS.",
            received=name,
            hint=f"Nearest names: {nearest or 'none'}. TFDS: {str(error).strip().splitlines()[0]}",
        ) from error

    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and image.dtype == tf.uint8
        and isinstance(label, tfds.features.ClassLabel)
    ):
        raise DataError(
            f"`{name}` must be an image classification set, with an 'image' of uint8 pixels and "
            "the 'label' of its class.",
            received=", ".join(f"{key}: {type(kind).__name__}" for key, kind in features.items()),
            hint="Give a `tf.data.Dataset` of batches (inputs, labels) of your own instead.",
        )
    if not builder.is_prepared() and not download:
        where = "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"
        raise DataError(
            f"`{name}` must be prepared by TFDS before it is loaded.",
            received=f"nothing in {builder.data_path}",
            hint="Prepare it once, with network: "
            f'python -c "import tensorflow_datasets as tfds; tfds.load({name!r}{where})" '
            "or give `download=True`.",
        )
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        except Exception as error:  # network, disk, manual downloads: they share no class
            raise DataError(
                f"`{name}` must be downloadable by TFDS.",
                received=f"{type(error).__name__}: {error}",
                hint=f"It was to be prepared in {builder.data_path}.",
            ) from error
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"`{name}` must be prepared in TFDS' default format, tfrecord.",
            received=builder.info.file_format.value,
        )
    return builder


def choose_splits(builder: Any, validation_fraction: float) -> dict[str, str]:
    """What to read for each split, in TFDS' notation; see `load_dataset`.

    Raises:
        DataError: The set has no split "train".
        SettingError: `validation_fraction` leaves nothing to train on.
    """
    given = builder.info.splits
    if "train" not in given:
        raise DataError(f"`{builder.name}` must have a split 'train'.", received=sorted(given))
    splits = {split: split for split in ("train", "validation", "test") if split in given}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    held_out = [split for split in ("test", "validation") if split not in splits]
    end = given["train"].num_examples
    count = max(1, round(end * validation_fraction))
    if end <= count * len(held_out):
        raise SettingError(
            "`validation_fraction` must leave examples to train on.",
            received=validation_fraction,
            hint=f"{' and '.join(held_out)} are held out of 'train' with {end} examples.",
        )
    for split in held_out:
        splits[split] = f"train[{end - count}:{end}]"
        end -= count
    if held_out:
        splits["train"] = f"train[:{end}]"
    return {split: splits[split] for split in ("train", "validation", "test")}


def read_records(builder: Any, part: str) -> tf.data.Dataset:
    """The examples of a part as they are stored, always in the same order.

    TFDS' own reader parses and decodes one example at a time; reading records, to parse and
    decode them by the batch, is three times as fast.

    Raises:
        DataError: A file is missing.
    """
    split = builder.info.splits[part]
    pieces = [(os.fspath(i.filename), i.skip, i.take) for i in split.file_instructions]
    missing = [path for path, _, _ in pieces if not tf.io.gfile.exists(path)]
    if missing:
        raise DataError(
            f"`{builder.name}` must be complete.",
            received=f"no file {missing[0]}",
            hint="Delete its folder and prepare it again.",
        )
    paths, skips, takes = (list(column) for column in zip(*pieces, strict=True))

    def read(path: Any, skip: Any, take: Any) -> Any:
        return tf.data.TFRecordDataset(path).skip(skip).take(take)

    files = tf.data.Dataset.from_tensor_slices(
        (paths, tf.constant(skips, tf.int64), tf.constant(takes, tf.int64))
    )
    records = files.interleave(
        read, 16, 16, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return records.apply(tf.data.experimental.assert_cardinality(split.num_examples))

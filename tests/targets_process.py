"""A function teacher that remembers what it was shown, and storing as a process of its own.

`store DIRECTORY SEEN WHICH OF BATCH_SECONDS` stores a part of the targets of `pictures()`;
`memory DIRECTORY` says what storing and reading of few and of many examples took; `worker
DIRECTORY` is one of several machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

EXAMPLES, CLASSES, BATCH, VIEWS = 240, 10, 16, 3


def pictures(seed: int = 0, examples: int = EXAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Random images `[examples, 6, 6, 1]` of whole 16ths, no two alike, and labels."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 17, [examples, 6, 6, 1]) / 16
    return images.astype(np.float32), generator.integers(0, CLASSES, examples)


def hash_of(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


class Remembering:
    """A linear teacher. Its sums are exact, so an answer does not depend on the rest of a batch.

    Args:
        seed: Of its weights.
        file: Where each image that it is shown is written down, as a line.
        batch_seconds: How long a batch takes.
    """

    def __init__(self, seed: int = 0, file: Path | None = None, batch_seconds: float = 0) -> None:
        self._weights = np.random.default_rng(seed).integers(-8, 9, [36, CLASSES]) / 8.0
        self._file, self._seconds = file, batch_seconds
        self.asked: Counter[str] = Counter()

    def __call__(self, images: Any) -> Any:
        from tfdistill._keras import tf

        logits = tf.numpy_function(self._answer, [images], tf.float32)
        logits.set_shape([images.shape[0], CLASSES])
        return logits

    def _answer(self, images: np.ndarray) -> np.ndarray:
        hashes = [hash_of(image) for image in images]
        self.asked.update(hashes)
        if self._file is not None:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write("".join(f"{each}\n" for each in hashes))
        time.sleep(self._seconds)
        return (images.reshape(len(images), -1).astype(np.float64) @ self._weights).astype("f")

    def times(self, images: np.ndarray) -> int:
        """How often it was asked about one of these images."""
        return sum(self.asked[each] for each in {hash_of(image) for image in images})


def shuffled_pictures(seed: int | None = None) -> Any:
    """`pictures()` in another order each time."""
    from tfdistill._keras import tf

    rows = tf.data.Dataset.from_tensor_slices(pictures())
    return rows.shuffle(EXAMPLES, seed=seed).batch(BATCH)


def of_open_size(batches: Any) -> Any:
    """The same, of which nobody knows the sizes."""
    from tfdistill._keras import tf

    spec = tf.nest.map_structure(
        lambda part: tf.TensorSpec([None] * part.shape.rank, part.dtype), batches.element_spec
    )
    return tf.data.Dataset.from_generator(lambda: batches, output_signature=spec)


def store(directory: str, seen: str, which: str, of: str, batch_seconds: str) -> None:
    import tfdistill as td

    td.store_targets(
        Remembering(file=Path(seen), batch_seconds=float(batch_seconds)),
        shuffled_pictures(),
        directory,
        augment=td.RandomShiftAndFlip(),
        views=VIEWS,
        part=(int(which), int(of)),
        shard_examples=BATCH,
        verbose=0,
    )


def memory(directory: str) -> None:
    """Prints the peak of memory, in bytes, after storing and reading few and many examples."""
    import tfdistill as td
    from tfdistill._keras import tf, tf_keras

    inputs = tf_keras.Input([8])
    teacher = tf_keras.Model(inputs, tf_keras.layers.Dense(CLASSES)(inputs))

    def made(examples: int) -> Any:
        numbers = tf.data.Dataset.range(examples).batch(1000)
        return numbers.map(lambda each: (tf.stack([tf.cast(each, "float32")] * 8, 1), each % 10))

    peaks = []
    for examples in (20_000, 200_000):
        path = f"{directory}/{examples}"
        stored = td.store_targets(teacher, made(examples), path, shard_examples=8000, verbose=0)
        assert stored.examples == examples
        assert sum(len(labels) for _, labels in stored.dataset()) == examples
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps(peaks))


def worker(directory: str) -> None:
    """One of several, as TF_CONFIG says: prints examples asked about and stored, and weights."""
    import tfdistill as td
    from tfdistill._keras import tf, tf_keras

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    first = strategy.cluster_resolver.task_type == "chief"
    teacher = Remembering(batch_seconds=0.0 if first else 0.1)  # the first waits for the other
    with strategy.scope():
        stored = td.store_targets(
            teacher, shuffled_pictures(), directory, shard_examples=BATCH, verbose=0
        )
        image = tf_keras.Input([6, 6, 1])
        logits = tf_keras.layers.Dense(CLASSES, kernel_initializer="zeros")
        student = tf_keras.Model(image, logits(tf_keras.layers.Flatten()(image)))
        distiller = td.Distiller(student, teacher, [td.losses.SoftTargets()])
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    asked = teacher.times(pictures()[0])
    distiller.fit(stored.dataset(), epochs=2, verbose=0)
    assert teacher.times(pictures()[0]) == asked
    weights = np.concatenate([weight.ravel() for weight in student.get_weights()])
    print(json.dumps([asked, stored.examples, weights.tolist()]))


def lines(file: Path) -> Iterator[str]:
    """Hashes that a teacher has written down; the last line may be half written."""
    text = file.read_text() if file.exists() else ""
    return iter(text[: text.rfind("\n") + 1].splitlines())


if __name__ == "__main__":
    command: Any = {"store": store, "memory": memory, "worker": worker}[sys.argv[1]]
    command(*sys.argv[2:])

"""Training one stage so that it can be killed at any moment and ends in the same weights.

What an epoch does depends on the seed, the stage and the epoch's number only: the shuffling is
wound forward to it, dropout is seeded for it, and weights and optimizer come from the
checkpoint of the epoch before it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.python.eager import context

from tfdistill._keras import tf, tf_keras
from tfdistill.data.datasets import skip_epochs
from tfdistill.errors import NonFiniteLossError
from tfdistill.fitting import build_optimizer
from tfdistill.runs.run import Stage

_KERAS_SEEDS = tf_keras.src.backend._SEED_GENERATOR


# From batches, the number of their first epoch, and how many make one where their end does not.
Views = Callable[[Any, int, "int | None"], Any]


@dataclass
class TrainingData:
    """The training set, and how far it has been read.

    A shuffled `tf.data` set gives its k-th order to the k-th iterator made from it, so a place
    in data that ends is counted in iterators. Of data without end one iterator is made for the
    whole run, and a place in it is counted in steps.

    Args:
        dataset: Batches of the training set, never read before.
        steps_per_epoch: Steps of an epoch; `None` where the end of the data ends it.
        position: How far it has been read.
        views: Made of batches and the first epoch's number: what a student sees of them.
        taught: The same, with what the teacher says about it; where that is stored.
    """

    dataset: Any
    steps_per_epoch: int | None = None
    position: int = 0
    views: Views | None = None
    taught: Views | None = None
    _stream: Any = None

    @property
    def endless(self) -> bool:
        """Whether an epoch is a part of one endless pass."""
        return self.steps_per_epoch is not None

    def share(self, epochs: int) -> int:
        """How far so many epochs of training go."""
        # Of data that ends, Keras' `fit` makes one iterator more, before the first epoch.
        return epochs + 1 if self.steps_per_epoch is None else epochs * self.steps_per_epoch

    def batches(self, start: int, finished: int, epochs: int, *, taught: bool = False) -> Any:
        """What is left of a stage's data; to be read by one `fit`.

        Args:
            start: Where the stage starts, not before what was read already.
            finished: Number of finished epochs of the stage.
            epochs: All epochs of the stage.
            taught: Whether the stage has a teacher: what is stored of it comes with the data.
        """
        left = self._left(start, finished, epochs)
        made_of = self.taught if taught and self.taught is not None else self.views
        if made_of is None:
            return left
        if self.steps_per_epoch is None:
            return made_of(left, start + finished, None)
        return made_of(left, start // self.steps_per_epoch + finished, self.steps_per_epoch)

    def _left(self, start: int, finished: int, epochs: int) -> Any:
        if self.steps_per_epoch is None:
            skip_epochs(self.dataset, start + finished - self.position)
            self.position = start + epochs + 1
            return self.dataset
        if self._stream is None:
            self._stream = iter(self.dataset)
        stream, first = self._stream, start + finished * self.steps_per_epoch
        for _ in itertools.islice(stream, first - self.position):
            pass
        self.position = start + epochs * self.steps_per_epoch
        # Bounded, so that nothing is read ahead of what comes next.
        left = tf.data.Dataset.range(self.position - first)
        elements = left.map(lambda _: stream.get_next_as_optional())
        given = elements.take_while(lambda element: element.has_value())
        return given.map(lambda element: element.get_value())


def seed_of(seed: int, *names: object) -> int:
    """A seed in [0, 2^31) of its own for whatever the names name."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def train(
    model: Any,
    stage: Stage,
    data: TrainingData,
    *,
    validation: Any,
    epochs: int,
    start: int,
    seed: int,
    taught: bool = False,
    prepare: Callable[[Any], Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, list[float]]:
    """Fits a compiled model, from the stage's last checkpoint if it has one.

    Args:
        model: Compiled tf_keras model.
        stage: Where checkpoints are kept, one an epoch.
        data: The training set.
        validation: Batches to evaluate on after each epoch, or `None`.
        epochs: Epochs of the whole stage.
        start: The stage's place in `data`.
        seed: The stage's seed.
        taught: Whether the model has a teacher, whose stored targets it can take.
        prepare: Makes of the batches what this model is fitted on; `None` leaves them.
        callbacks: More callbacks, called before the checkpoint is written.

    Returns:
        The history of the whole stage: metric name to one value an epoch.

    Raises:
        NonFiniteLossError: The loss or a weight became NaN or infinite.
    """
    history: dict[str, list[float]] = {}
    variables = _variables(model)
    finished = 0
    checkpoint = stage.load_checkpoint()
    if checkpoint is not None:
        finished, history = checkpoint.epoch, dict(checkpoint.history)
        tf_keras.backend.batch_set_value(
            list(zip(variables, checkpoint.arrays.values(), strict=True))
        )
    if finished < epochs:
        batches = data.batches(start, finished, epochs, taught=taught)
        model.fit(
            batches if prepare is None else prepare(batches),
            validation_data=validation,
            initial_epoch=finished,
            epochs=epochs,
            steps_per_epoch=data.steps_per_epoch,
            verbose=0,
            callbacks=[
                _SeedRandomLayers(seed),
                _StopWhenNotFinite(stage.name),
                *callbacks,
                _Checkpoint(stage, history),
            ],
        )
    return history


def _variables(model: Any) -> list[Any]:
    """Everything that training changes, in an order that only depends on the model."""
    build_optimizer(model)
    candidates = [*model.weights, *model.optimizer.variables]
    return list({id(variable): variable for variable in candidates}.values())


class _SeedRandomLayers(tf_keras.callbacks.Callback):
    """Gives dropout and noise the same random numbers in the same epoch, resumed or not."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        holders = [getattr(module, "_random_generator", None) for module in self.model.submodules]
        generators = [getattr(holder, "_generator", None) for holder in holders]
        for index, generator in enumerate(g for g in dict.fromkeys(generators) if g is not None):
            generator.reset_from_seed(seed_of(self._seed, epoch, index))


class _StopWhenNotFinite(tf_keras.callbacks.Callback):
    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            self._stop(f"loss={loss} in epoch {self._epoch + 1}, step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # The last step's update is not in any loss yet, but will be in the checkpoint.
        for weight in self.model.weights:
            if weight.dtype.is_floating and not np.all(np.isfinite(weight.numpy())):
                where = f"epoch {epoch + 1}, step {self.params['steps']}"
                self._stop(f"values of {weight.name} that are not finite after {where}")

    def _stop(self, received: str) -> None:
        raise NonFiniteLossError(
            f"`loss` must stay finite in the stage {self._stage!r}.",
            received=received,
            hint="The checkpoint of the last good epoch is kept. Lower `learning_rate`, or look "
            "for extreme values in the inputs.",
        )


class _Checkpoint(tf_keras.callbacks.Callback):
    def __init__(self, stage: Stage, history: dict[str, list[float]]) -> None:
        super().__init__()
        self._stage = stage
        self._history = history
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self._began
        for name, value in {**(logs or {}), "seconds": seconds}.items():
            self._history.setdefault(name, []).append(float(value))
        values = tf_keras.backend.batch_get_value(_variables(self.model))
        arrays = {f"{index:04d}": np.asarray(value) for index, value in enumerate(values)}
        self._stage.save_checkpoint(epoch + 1, arrays, self._history)


def cosine_decay(learning_rate: float, steps: int) -> Any:
    """A learning rate that falls from `learning_rate` to 0 along a cosine over all steps."""
    return tf_keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and TensorFlow for a block; afterwards all is as it was before.

    Else the same call, made twice in one program, would find other random numbers.
    """
    python, numpy = random.getstate(), np.random.get_state()
    tensorflow, made = context.global_seed(), copy.copy(getattr(context.context(), "_rng", None))
    keras_made = getattr(_KERAS_SEEDS, "generator", None)
    tf_keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        tf.random.set_seed(tensorflow)
        if made is not None:  # TensorFlow would begin its sequence again
            context.context()._rng = made
        _KERAS_SEEDS.generator = keras_made

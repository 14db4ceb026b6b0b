"""What every test stands on: two CPU devices, a fixed seed, a clean session, the data."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if os.environ.get("TFDISTILL_TEST_DATA"):  # tests change directory, their processes too
    os.environ["TFDISTILL_TEST_DATA"] = str(Path(os.environ["TFDISTILL_TEST_DATA"]).resolve())


# A file's tests stay in one process. The longest first, else one process ends minutes after all.
_LONGEST = (
    *("quantization", "tasks", "distiller", "resume", "rewrites", "recipes", "pruning"),
    *(
        "pipeline_outputs",
        "pipeline",
        "bridge_parts",
        "inspection",
        "mixing",
        "targets",
        "keras_door",
        "losses",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files, and within each nothing."""
    order = {f"test_{name}": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def two_devices() -> None:
    """Gives TensorFlow two CPU devices; fails loudly if a test module already started it."""
    from tfdistill._keras import tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.get_logger().setLevel("ERROR")
    # The modules stay anyway. Frozen, they no longer cost each collection of garbage a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # graphs are many objects that live until their test ends


@pytest.fixture(autouse=True)
def clean_session(two_devices: None) -> None:
    """Starts each test from the same seed, and frees what the models of the last one held.

    Op determinism stays off: where the library promises equal bits, it must turn it on itself.
    """
    from tfdistill._keras import keras, tf_keras

    tf_keras.backend.clear_session()
    # A collection each time would take a tenth of all tests' time; Python's own is enough.
    keras.utils.clear_session(free_memory=False)
    tf_keras.utils.set_random_seed(0)  # Python's, NumPy's and TensorFlow's
    keras.utils.set_random_seed(0)  # also Keras 3's own generator


@pytest.fixture(scope="session")
def two_replicas(two_devices: None) -> Any:
    """The one strategy of two replicas for all tests that train.

    Collectives are numbered anew by each strategy: a second one in the process would get the
    buffers of the first.
    """
    from tfdistill._keras import tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data sets, laid out as CONTRIBUTING says."""
    folder = os.environ.get("TFDISTILL_TEST_DATA")
    if not folder:
        pytest.skip("TFDISTILL_TEST_DATA is not set: it names the folder with real data sets")
    if not Path(folder).is_dir():
        pytest.skip(f"TFDISTILL_TEST_DATA names no folder: {folder}")
    return Path(folder)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 handwritten digits: images float32 `[n, 8, 8, 1]` in [0, 1], labels int64 `[n]`."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images[..., np.newaxis] / 16.0).astype(np.float32)
    labels = raw.target.astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False  # one copy for all tests
    return images, labels


def _small_model(library: Any, *, filters: int, classes: int, normalized: bool, name: str) -> Any:
    """A convolutional net for the digits; `library` is Keras 3 or tf_keras."""
    layers = library.layers
    inputs = layers.Input([8, 8, 1], name="image")
    hidden = layers.Conv2D(filters, 3, padding="same", name="convolution")(inputs)
    if normalized:
        hidden = layers.BatchNormalization(name="normalization")(hidden)
    hidden = layers.ReLU(name="activation")(hidden)
    hidden = layers.MaxPooling2D(name="pooling")(hidden)
    hidden = layers.Flatten(name="flatten")(hidden)
    return library.Model(inputs, layers.Dense(classes, name="logits")(hidden), name=name)


@pytest.fixture(scope="session")
def small_tf_keras_model() -> Any:
    """Makes small tf_keras models: `small_tf_keras_model(filters=4, ...)`."""
    from tfdistill._keras import tf_keras

    def make(
        filters: int = 4, classes: int = 10, normalized: bool = True, name: str = "student"
    ) -> Any:
        return _small_model(
            tf_keras, filters=filters, classes=classes, normalized=normalized, name=name
        )

    return make


@pytest.fixture(scope="session")
def small_keras3_model() -> Any:
    """Makes the same models in Keras 3."""
    from tfdistill._keras import keras

    def make(
        filters: int = 4, classes: int = 10, normalized: bool = True, name: str = "student"
    ) -> Any:
        return _small_model(
            keras, filters=filters, classes=classes, normalized=normalized, name=name
        )

    return make

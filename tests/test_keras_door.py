"""What a user's `tf.keras` and environment mean, they still mean after tfdistill is imported.

Each case is a script in a process of its own, run twice: as it is, and with tfdistill's door
opened before it looks at `tf.keras`. Both must see the same.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SWITCH = "TF_USE_LEGACY_KERAS"

# tfmot resolves tf.keras also while it works, not only while it is imported: let it work.
OPEN_THE_DOOR = """
import tfdistill
from tfdistill._keras import keras, tf_keras, tfmot

assert keras.__version__.startswith("3."), keras
assert tf_keras.__version__.startswith("2."), tf_keras
model = tf_keras.Sequential([tf_keras.layers.Input([3]), tf_keras.layers.Dense(2)])
tfmot.sparsity.keras.prune_low_magnitude(tf_keras.models.clone_model(model))
tfmot.quantization.keras.quantize_model(model)
"""

START = """
import os
at_start = dict(os.environ)
"""

LOOK = """
import importlib, json
import tensorflow as tf

def meaning(path):
    found = tf
    try:
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # Keras 3 refuses some names of TensorFlow 1
        return type(error).__name__
    return f"{found.__module__}.{found.__qualname__}"

print(json.dumps({
    "names": {path: meaning(path) for path in [
        "keras.Model", "keras.layers.Dense", "keras.optimizers.SGD",
        "compat.v1.keras.Model", "compat.v1.keras.layers.BatchNormalization",
        "compat.v2.keras.Model", "compat.v1.layers.Dense", "compat.v1.nn.rnn_cell.LSTMCell",
        "losses.MeanSquaredError", "optimizers.SGD", "metrics.Mean", "initializers.Zeros",
    ]},
    "import tensorflow.keras": importlib.import_module("tensorflow.keras").Model.__module__,
    "path": list(tf.__path__),
    "environment changed": {
        name: os.environ.get(name)
        for name in sorted({*at_start, *os.environ})
        if at_start.get(name) != os.environ.get(name)
        and not name.startswith("KMP_")  # scikit-learn's habit, which Keras 3 imports
    },
}))
"""


class Case(NamedTuple):
    """What the user's script does before it needs tfdistill, and how the switch is set."""

    before: str
    switch: str | None


# The third line touches tf.keras: from then on its meaning is fixed.
FIRST = {
    "tfdistill": "",
    "tensorflow": "import tensorflow",
    "tensorflow, tf.keras used": "import tensorflow as tf; tf.keras.Model; tf.compat.v1.keras",
    "keras": "import keras",
    "tf_keras": "import tf_keras",
    "tfmot": "import tensorflow_model_optimization",
}
CASES = [
    *(Case(first, None) for first in FIRST),
    *(Case(first, "1") for first in ("tfdistill", "tensorflow, tf.keras used")),
    *(Case(first, "0") for first in ("tfdistill", "tfmot")),
]
# A whole pipeline is the quick one.
LESS_LIKELY = (
    *(Case(first, None) for first in ("tensorflow", "keras", "tf_keras", "tfdistill", "tfmot")),
    *(Case("tensorflow, tf.keras used", switch) for switch in (None, "1")),
    *(Case("tfdistill", switch) for switch in ("0", "1")),
    Case("tfmot", "0"),
)
# Scripts that differ only in when they first say tf.keras mean the same without tfdistill.
SAME_WITHOUT = {"tfdistill": "tensorflow", "tensorflow, tf.keras used": "tensorflow"}


def run(script: str, switch: str | None) -> Any:
    environment = {
        name: value for name, value in os.environ.items() if name not in (SWITCH, "KERAS_BACKEND")
    }
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(CHECKOUT)}
    if switch is not None:
        environment[SWITCH] = switch
    finished = subprocess.run(
        [sys.executable, "-c", START + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def without_tfdistill(case: Case) -> Case:
    return Case(SAME_WITHOUT.get(case.before, case.before), case.switch)


Look = Callable[[str, Case], Any]


@pytest.fixture(scope="module")
def seen() -> Look:
    """What a case's script sees "with" or "without" importing tfdistill; each runs once."""

    @functools.cache
    def look(how: str, case: Case) -> Any:
        door = OPEN_THE_DOOR if how == "with" else ""
        return run(FIRST[case.before] + door + LOOK, case.switch)

    return look


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in LESS_LIKELY else []) for case in CASES],
    ids=[f"{case.before} first, {case.switch}" for case in CASES],
)
def test_tf_keras_and_environment_stay_what_they_were(seen: Look, case: Case) -> None:
    expected = seen("without", without_tfdistill(case))
    assert seen("with", case) == expected


@pytest.mark.slow
def test_the_cases_reach_both_kerases(seen: Look) -> None:
    """If one meaning held everywhere, the comparison above could not fail."""

    def package(case: Case) -> str:
        return seen("without", case)["names"]["keras.Model"].split(".")[0]

    assert package(Case("tensorflow", None)) == "keras"
    assert package(Case("tensorflow", "0")) == "keras"
    assert package(Case("tensorflow", "1")) == "tf_keras"


@pytest.mark.slow
@pytest.mark.parametrize("switch", [None, "0"])
def test_plain_tfmot_does_change_them(seen: Look, switch: str | None) -> None:
    """The mistake that the door is for: without it, these cases would not be equal."""
    plain = seen("without", Case("tfmot", switch))
    untouched = seen("without", Case("tensorflow", switch))
    assert plain["names"]["keras.Model"].startswith("tf_keras.")
    assert untouched["names"]["keras.Model"].startswith("keras.")
    assert plain["environment changed"][SWITCH] == "1"
    assert SWITCH not in untouched["environment changed"]


PIPELINE = """
import tempfile
import keras
from sklearn.datasets import load_digits
import tfdistill as td

def network(filters):
    return keras.Sequential([
        keras.layers.Input([8, 8, 1]),
        keras.layers.Conv2D(filters, 3),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ])

raw = load_digits()
data = raw.images[:256, ..., None].astype("float32") / 16, raw.target[:256]
anything = td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
pipeline = td.Pipeline(
    distillation=td.Distillation(epochs=1),
    baseline=False,
    pruning=td.Pruning(sparsity=0.5, epochs=1),
    quantization=td.Quantization(epochs=1),
    export=td.Export(formats=("int8",), limits=anything),
)
with tempfile.TemporaryDirectory() as run_dir:
    result = pipeline.run(network(4), network(8), data, test=data, run_dir=run_dir, verbose=0)
    assert isinstance(result.student, keras.Model), type(result.student)
    assert result.artifacts["int8"].certificate.passed
"""


@pytest.mark.slow  # a whole run; test_pipeline.py looks after its own
def test_a_whole_pipeline_changes_them_neither(seen: Look) -> None:
    expected = seen("without", Case("tensorflow", None))
    assert run(PIPELINE + LOOK, None) == expected


HEAVY = ("tensorflow", "numpy", "keras", "tf_keras", "rich", "matplotlib", "sklearn", "jinja2")


@pytest.mark.parametrize(
    "script",
    [
        "import tfdistill; dir(tfdistill); tfdistill.__version__; tfdistill.SettingError",
        "from tfdistill.cli import main; main(['--help'])",
        "from tfdistill.cli import main; main(['--version'])",
        "from tfdistill.cli import main; main(['certify', '--help'])",
    ],
    ids=["import", "--help", "--version", "certify --help"],
)
def test_import_and_help_need_no_heavy_module(script: str) -> None:
    lines = (
        "import json, sys",
        "try:",
        f"    {script}",
        "except SystemExit as stop:",
        "    assert not stop.code, stop",
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))",
    )
    assert run("\n".join(lines), None) == []

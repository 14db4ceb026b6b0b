"""The library as its users get it: lazy public names, declared dependencies, the wheel."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tfdistill

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "tfdistill"


def shell(*command: str | Path, cwd: Path, succeeds: bool = True) -> str:
    """Runs a command that shall find nothing of the checkout on its way."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (finished.returncode == 0) == succeeds, finished.stdout + finished.stderr[-5000:]
    return finished.stdout


# --- public names ---


def imported_for_type_checkers() -> dict[str, str]:
    """Name -> module, as the `if TYPE_CHECKING:` block of the package says it."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: (statement.module or "").removeprefix("tfdistill").strip(".") or alias.name
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


@pytest.mark.parametrize("name", tfdistill.__all__)
def test_public_name_can_be_imported(name: str) -> None:
    assert getattr(tfdistill, name) is not None
    assert name in dir(tfdistill)


def test_type_checkers_see_the_names_that_python_sees() -> None:
    assert imported_for_type_checkers() == tfdistill._LAZY
    assert set(tfdistill._LAZY) < set(tfdistill.__all__)


def test_every_error_is_public() -> None:
    errors = importlib.import_module("tfdistill.errors")
    declared = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert declared < set(tfdistill.__all__)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Distillr'\. Did you mean 'Distiller'"):
        _ = tfdistill.Distillr  # type: ignore[attr-defined]
    assert not hasattr(tfdistill, "nothing_like_it")


# --- dependencies ---


def test_declared_dependencies_are_those_imported() -> None:
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"tfdistill"}
    # That of an extra may not be installed.
    providers = {"ai_edge_quantizer": ["ai-edge-quantizer"], **packages_distributions()}
    needed = {name: {normal(each) for each in providers[name]} for name in third_party}

    config = ConfigParser()
    config.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    lines += config["options.extras_require"]["int4"].splitlines()
    declared = {normal(Requirement(line).name) for line in lines if line}

    assert {name for name, by in needed.items() if not by & declared} == set()
    # tfmot imports distutils, which setuptools stands in for.
    assert declared - set().union(*needed.values()) == {"setuptools"}


def normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a `build/` left in the checkout would leak into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("tfdistill", "tests", "pipelines", "benchmarks"):
        shutil.copytree(
            CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    shell(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", target, "."),
        cwd=source,
    )
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    version = tfdistill.__version__
    information = f"tfdistill-{version}.dist-info/"
    held = {name for name in names if not name.startswith(information)}
    expected = {
        str(path.relative_to(CHECKOUT))
        for pattern in ("*.py", "*.html", "py.typed")
        for path in PACKAGE.rglob(pattern)
    }
    assert held == expected
    assert f"\nVersion: {version}\n" in metadata
    assert "\nRequires-Python: <3.14,>=3.10\n" in metadata
    assert any(name.startswith(information) and name.endswith("LICENSE") for name in names)


# What a user does, who has only the wheel: public names, own Keras 3 models.
DISTIL = """
import numpy as np
import keras
from sklearn.datasets import load_digits
import tfdistill as td

digits = load_digits()
images, labels = digits.images[:512, ..., None].astype("float32") / 16, digits.target[:512]

def network(units):
    return keras.Sequential([
        keras.layers.Input([8, 8, 1]),
        keras.layers.Flatten(),
        keras.layers.Dense(units, activation="relu"),
        keras.layers.Dense(10),
    ])

keras.utils.set_random_seed(0)
teacher, student = network(64), network(12)
teacher.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
teacher.fit(images, labels, epochs=8, verbose=0)
distiller = td.Distiller(student, teacher, losses=[td.losses.SoftTargets(temperature=4.0)],
                         label_loss_weight=0.0)
distiller.compile(optimizer=keras.optimizers.Adam(1e-2))
logs = distiller.fit(images, labels, epochs=10, verbose=0).history
assert isinstance(distiller.student, keras.Model)
predicted = distiller.student.predict(images, verbose=0).argmax(-1)
agreement = float(np.mean(predicted == teacher.predict(images, verbose=0).argmax(-1)))
print(td.__file__, logs["loss"][0], logs["loss"][-1], agreement, sep="\\n")
"""


def try_out(environment: Path, wheel: Path, folder: Path, *options: str) -> None:
    """Installs the wheel into the environment, then uses it from another folder."""
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", str(python))
    shell(*pip, "install", "--quiet", *options, wheel, cwd=folder)
    assert shell(python, "-I", "-m", "tfdistill.cli", "--version", cwd=folder)
    shown = shell(environment / "bin" / "tfdistill", "--help", cwd=folder)
    assert "certify" in shown

    script = folder / "distil.py"
    script.write_text(DISTIL, encoding="utf-8")
    found, first_loss, last_loss, agreement = shell(python, "-I", script, cwd=folder).splitlines()[
        -4:
    ]
    assert Path(found).is_relative_to(environment)
    assert float(last_loss) < 0.5 * float(first_loss)
    assert float(agreement) > 0.8  # an untrained student agrees by chance, on 0.1


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    shell(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=tmp_path)
    return tmp_path / "environment"


@pytest.mark.slow
def test_wheel_works_alone(wheel: Path, environment: Path, tmp_path: Path) -> None:
    """The wheel is all that the environment has of tfdistill; its dependencies are borrowed.

    They are borrowed by path: an editable install beside them lies in `.pth` files, which are
    not read there. `test_wheel_works_in_a_truly_fresh_environment` borrows nothing.
    """
    paths = sysconfig.get_paths()
    borrowed = sorted({paths["purelib"], paths["platlib"]})
    # setuptools' own .pth is not read either: this is what it says.
    distutils = "import _distutils_hack; _distutils_hack.add_shim()"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join([*borrowed, distutils]), encoding="utf-8")
    python = environment / "bin" / "python"
    shell(python, "-I", "-c", "import tfdistill", cwd=tmp_path, succeeds=False)
    try_out(environment, wheel, tmp_path, "--no-deps", "--no-index")


@pytest.mark.slow
def test_wheel_works_in_a_truly_fresh_environment(
    wheel: Path, environment: Path, tmp_path: Path
) -> None:
    try_out(environment, wheel, tmp_path)

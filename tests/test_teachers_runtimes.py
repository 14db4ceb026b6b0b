"""Real teachers of other frameworks, and the lines of docs/teachers.md, run as they stand there.

`make test-teachers` installs what they need.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import FEATURES, examples, hidden_of, logits_of, perceptron

import tfdistill as td
from tfdistill._keras import keras, tf_keras
from tfdistill.errors import TeacherError
from tfdistill.teachers import Function, as_teacher

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DOCS = Path(__file__).resolve().parents[1] / "docs" / "teachers.md"
_MISSING = "{} is not installed: make test-teachers"

Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason=_MISSING.format("torch"))


@pytest.fixture(scope="module")
def onnx() -> Any:
    return pytest.importorskip("onnx", reason=_MISSING.format("onnx"))


@pytest.fixture(scope="module")
def onnxruntime() -> Any:
    return pytest.importorskip("onnxruntime", reason=_MISSING.format("onnxruntime"))


def _lines_of_the_documentation(section: str) -> str:
    _, _, text = DOCS.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def _run(section: str) -> dict[str, Any]:
    """Runs the lines of a section, as a script; gives its variables."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(_lines_of_the_documentation(section), f"{DOCS}: {section}", "exec"), names)
    return names


def _distilled(teacher: Any, student: Any, inputs: Any, labels: Any) -> list[np.ndarray]:
    distiller = td.Distiller(student, teacher, losses=[td.losses.SoftTargets()])
    distiller.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    distiller.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0)
    return [np.array(weight) for weight in distiller.student.get_weights()]


# --- PyTorch ---


def test_pytorch_teaches_as_the_same_network_in_keras(
    torch: Any, small_tf_keras_model: Any
) -> None:
    teacher = small_tf_keras_model(filters=6, normalized=False)
    kernel, bias, dense, dense_bias = teacher.get_weights()
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(96, 10),
    )
    # Keras' kernels are [height, width, in, out], and it flattens [height, width, channels].
    dense = dense.reshape(4, 4, 6, 10).transpose(3, 2, 0, 1).reshape(10, 96)
    values = [kernel.transpose(3, 2, 0, 1), bias, dense, dense_bias]
    network.load_state_dict(
        {n: torch.from_numpy(v.copy()) for n, v in zip(network.state_dict(), values, strict=True)}
    )

    def teach(images: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    generator = np.random.default_rng(0)
    images = generator.uniform(size=[20, 8, 8, 1]).astype(np.float32)
    labels = generator.integers(0, 10, 20)
    student = small_tf_keras_model(normalized=False)
    bound = as_teacher(Function(teach), student)
    np.testing.assert_allclose(bound(images).logits, teacher(images), rtol=1e-4, atol=1e-5)
    copy = tf_keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    for ours, theirs in zip(
        _distilled(Function(teach), student, images, labels),
        _distilled(teacher, copy, images, labels),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_pytorch_raises_is_the_cause(torch: Any) -> None:
    network = torch.nn.Linear(FEATURES, 3)
    student = perceptron(tf_keras)
    # What a user forgets: a tensor that carries a gradient is no array.
    with pytest.raises(TeacherError, match=r"RuntimeError: Can't call numpy\(\)") as raised:
        as_teacher(Function(lambda x: network(torch.from_numpy(x))), student)
    assert isinstance(raised.value.__cause__, RuntimeError)
    # A tensor that does not is taken as the array that it is.
    detached = as_teacher(Function(lambda x: network(torch.from_numpy(x)).detach()), student)
    assert detached.shapes.logits == (3,)


@pytest.mark.filterwarnings("ignore:CUDA initialization")  # PyTorch looks for a driver
def test_lines_on_pytorch_run(
    torch: Any, digits: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = (torch.from_numpy(values.copy()) for values in digits)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10)
    )
    # Not by torch.optim: it imports Triton, whose LLVM aborts a process that holds TensorFlow's.
    weights = [*network.parameters()]
    velocities = [torch.zeros_like(weight) for weight in weights]
    for _ in range(60):  # on all examples at once
        loss = torch.nn.functional.cross_entropy(network(images.permute(0, 3, 1, 2)), labels)
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
                velocity.mul_(0.9).sub_(gradient, alpha=0.1)
                weight.add_(velocity)
    torch.save(network.state_dict(), "teacher.pt")

    lines = _lines_of_the_documentation("PyTorch").splitlines()
    assert len(lines) <= 20
    result = _run("PyTorch")["result"]
    rows = {row.name: row for row in result.report.rows}
    assert rows["teacher"].accuracy > 0.9
    assert result.artifacts["int8"].certificate.accuracy > 0.9
    assert Path("saved_models/digits/report.html").exists()


# --- ONNX Runtime ---


def _written(onnx: Any, path: Path, layers: list[tuple[str, list[np.ndarray]]], shape: Any) -> None:
    """An ONNX file of operators in a row, from "images" to "logits"."""
    helper = onnx.helper
    nodes, constants, last = [], [], "images"
    for place, (operator, weights) in enumerate(layers):
        names = [f"weight_{place}_{number}" for number in range(len(weights))]
        constants += [
            onnx.numpy_helper.from_array(values, name)
            for values, name in zip(weights, names, strict=True)
        ]
        made = "logits" if place == len(layers) - 1 else f"hidden_{place}"
        nodes.append(helper.make_node(operator, [last, *names], [made]))
        last = made
    classes = layers[-1][1][-1].shape[-1]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", classes])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # that of the operators: an older runtime reads it, too
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def test_onnx_runtime_teaches_as_the_same_network_in_keras(
    onnx: Any, onnxruntime: Any, tmp_path: Path
) -> None:
    teacher = perceptron(keras, units=7, seed=1)
    hidden, hidden_bias, kernel, bias = teacher.get_weights()
    layers = [("Gemm", [hidden, hidden_bias]), ("Relu", []), ("Gemm", [kernel, bias])]
    _written(onnx, tmp_path / "teacher.onnx", layers, [FEATURES])
    session = onnxruntime.InferenceSession(
        str(tmp_path / "teacher.onnx"), providers=["CPUExecutionProvider"]
    )

    def teach(images: Any) -> Any:
        return session.run(["logits"], {"images": images})[0]

    inputs, labels, _ = examples(20)
    bound = as_teacher(Function(teach), perceptron(tf_keras))
    expected = logits_of(teacher.get_weights(), inputs)
    np.testing.assert_allclose(bound(inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert hidden_of(teacher.get_weights(), inputs).min() == 0  # the Relu has something to do
    for ours, theirs in zip(
        _distilled(Function(teach), perceptron(tf_keras), inputs, labels),
        _distilled(teacher, perceptron(tf_keras), inputs, labels),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(TeacherError, match=r"ValueError: Required inputs \(\['images'\]\)"):
        as_teacher(Function(lambda x: session.run(None, {"x": x})[0]), perceptron(tf_keras))


def test_lines_on_onnx_runtime_run(
    onnx: Any,
    onnxruntime: Any,
    digits: Arrays,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = digits
    flat = np.c_[images.reshape(len(images), -1), np.ones(len(images))]
    solved = np.linalg.lstsq(flat, 10.0 * np.eye(10)[labels], rcond=None)[0].astype(np.float32)
    _written(
        onnx,
        Path("teacher.onnx"),
        [("Flatten", []), ("Gemm", [solved[:-1], solved[-1]])],
        [8, 8, 1],
    )
    history = _run("ONNX Runtime")["distiller"].history.history
    assert history["val_teacher_agreement"][-1] > 0.8

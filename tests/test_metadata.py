"""Labels and normalisation in LiteRT files: `tfdistill.litert.metadata`."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import tfdistill as td
from tfdistill._keras import tf_keras
from tfdistill.certificate import certify
from tfdistill.errors import ModelError
from tfdistill.export import export_model
from tfdistill.export.conversion import convert
from tfdistill.litert.flatbuffer import inspect_content
from tfdistill.litert.metadata import metadata_entries
from tfdistill.litert.runtime import LiteRTModel
from tfdistill.litert.sidecar import describe_interface

LAYERS = tf_keras.layers
_LABELS = ("T-shirt", "Hose", "Pullover, über")
_NORMALISATION = td.Normalisation(scale=(1 / 51, 1 / 52, 0.1), offset=(-1.0, 0.25, 0.0))


def model(channels: int = 3, units: int = 3, name: str = "student") -> Any:
    source = LAYERS.Input([4, 4, channels], name="image")
    hidden = LAYERS.Flatten(name="flatten")(source)
    return tf_keras.Model(source, LAYERS.Dense(units, name="logits")(hidden), name=name)


def export(path: Path, given: Any = None, **settings: Any) -> Any:
    settings = {"label_names": _LABELS, "normalisation": _NORMALISATION, **settings}
    return export_model(
        given if given is not None else model(), path, "float32", settings=td.Export(**settings)
    )


def standard(path: Path) -> bytes:
    packed = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (entry,) = [each for each in packed.metadata if each.name == b"TFLITE_METADATA"]
    return bytes(packed.buffers[entry.buffer].data)


class Table:
    """A reader of flatbuffers from their specification: nothing of this library is used."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, at: int, size: int = 4, signed: bool = False) -> int:
        return int.from_bytes(self.data[at : at + size], "little", signed=signed)

    def field(self, place: int) -> int | None:
        table = self.at - self.number(self.at, signed=True)
        if 4 + 2 * place >= self.number(table, 2):
            return None
        offset = self.number(table + 4 + 2 * place, 2)
        return self.at + offset if offset else None

    def child(self, place: int) -> Table:
        at = self.field(place)
        assert at is not None
        return Table(self.data, at + self.number(at))

    def children(self, place: int) -> list[Table]:
        vector = self.child(place).at
        places = [vector + 4 + 4 * index for index in range(self.number(vector))]
        return [Table(self.data, at + self.number(at)) for at in places]

    def text(self, place: int) -> str:
        at = self.child(place).at
        return self.data[at + 4 : at + 4 + self.number(at)].decode()

    def byte(self, place: int) -> int:
        at = self.field(place)
        return 0 if at is None else self.data[at]

    def floats(self, place: int) -> list[float]:
        at = self.child(place).at
        return np.frombuffer(self.data, np.float32, self.number(at), at + 4).tolist()


def test_the_standard_metadata_are_as_the_standard_says(tmp_path: Path) -> None:
    """Field by field of tflite-support's metadata_schema.fbs, as MediaPipe and Android read it."""
    data = standard(export(tmp_path / "a.tflite").path)
    assert data[4:8] == b"M001"
    root = Table(data, int.from_bytes(data[:4], "little"))
    assert (root.text(0), root.text(7)) == ("student", "1.0.0")
    (graph,) = root.children(3)
    (image,), (logits,) = graph.children(2), graph.children(3)
    assert image.text(0) == "image"
    assert image.child(3).byte(0) == 2  # ContentProperties.ImageProperties
    assert image.child(3).child(1).byte(0) == 1  # ColorSpaceType.RGB
    (unit,) = image.children(4)
    assert unit.byte(0) == 1  # ProcessUnitOptions.NormalizationOptions
    mean, std = np.array(unit.child(1).floats(0)), np.array(unit.child(1).floats(1))
    raw = np.array([[0.0, 128.0, 255.0]]).T
    np.testing.assert_allclose(
        (raw - mean) / std,
        raw * np.array(_NORMALISATION.scale) + np.array(_NORMALISATION.offset),
        rtol=1e-6,
        atol=1e-6,
    )
    assert (logits.text(0), logits.text(1)) == ("logits", "logits")
    assert logits.child(3).byte(0) == 1  # FeatureProperties
    (file,) = logits.children(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


def test_unzip_finds_the_labels(tmp_path: Path) -> None:
    path = export(tmp_path / "a.tflite").path
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == list(_LABELS)
        (member,) = archive.infolist()
        assert member.compress_type == zipfile.ZIP_STORED  # all that Android's reader takes
        assert archive.testzip() is None


def test_what_was_exported_is_read_back_exactly(tmp_path: Path) -> None:
    given = model()
    exported = export(tmp_path / "a.tflite", given)
    found = td.read_metadata(exported.path)
    assert found == {
        "artifact": {"format": "float32", "method": "unknown"},
        "interface": json.loads(json.dumps(exported.interface)),
    }
    again = export(tmp_path / "b.tflite", given)
    assert again.sha256 == exported.sha256


def test_a_model_answers_as_without_metadata(tmp_path: Path) -> None:
    tf_keras.utils.set_random_seed(0)
    given = model()
    sizes, answers = [], []
    for metadata in (True, False):
        exported = export(tmp_path / f"{metadata}.tflite", given, metadata=metadata)
        images = np.random.default_rng(0).uniform(size=[8, 4, 4, 3])
        answers.append(LiteRTModel(exported.path).predict(images)["logits"])
        sizes.append(exported.inspection.raw_bytes)
    np.testing.assert_array_equal(answers[0], answers[1])
    assert 200 < sizes[0] - sizes[1] < 1200
    assert td.read_metadata(tmp_path / "False.tflite") is None
    assert not zipfile.is_zipfile(tmp_path / "False.tflite")


def test_without_anything_to_say_nothing_is_added(tmp_path: Path) -> None:
    given = model()
    kept = export(tmp_path / "a.tflite", given, label_names=(), normalisation=None)
    without = export(
        tmp_path / "b.tflite", given, label_names=(), normalisation=None, metadata=False
    )
    assert kept.sha256 == without.sha256


def test_labels_of_one_unit_are_of_its_value(tmp_path: Path) -> None:
    path = export(tmp_path / "a.tflite", model(units=1), label_names=("no", "yes")).path
    data = standard(path)
    (graph,) = Table(data, int.from_bytes(data[:4], "little")).children(3)
    (file,) = graph.children(3)[0].children(6)
    assert file.byte(2) == 3  # TENSOR_VALUE_LABELS: there is no axis of two
    found = td.read_metadata(path)
    assert found is not None
    assert found["interface"]["label_names"] == ["no", "yes"]


@pytest.mark.parametrize("turned", [False, True])
def test_metadata_follow_the_order_of_the_graph(turned: bool) -> None:
    """Not that of the signature."""
    last, first = LAYERS.Input([4, 4, 3], name="z"), LAYERS.Input([4, 4, 2], name="a")
    joined = LAYERS.Flatten()(LAYERS.Concatenate()([last, first]))
    given = tf_keras.Model([last, first], LAYERS.Dense(3, name="logits")(joined))
    packed = schema.ModelT.InitFromPackedBuf(convert(given, "float32"), 0)
    graph = packed.subgraphs[0]
    if turned:
        graph.inputs = graph.inputs[::-1].copy()
    channels = [int(graph.tensors[index].shape[-1]) for index in graph.inputs]
    builder = flatbuffers.Builder(1024)
    builder.Finish(packed.Pack(builder), file_identifier=b"TFL3")
    content = bytes(builder.Output())
    inspection = inspect_content(content, "")
    interface = describe_interface(
        inspection, label_names=_LABELS, normalisation=asdict(_NORMALISATION)
    )
    data = metadata_entries(content, inspection, interface, "net")["TFLITE_METADATA"]
    (main,) = Table(data, int.from_bytes(data[:4], "little")).children(3)
    names = [tensor.text(0) for tensor in main.children(2)]
    assert names == [{3: "z", 2: "a"}[count] for count in channels]
    units = [tensor.field(4) is not None for tensor in main.children(2)]
    assert units == [count == 3 for count in channels]  # two channels it cannot be for


def test_a_certificate_takes_the_labels_from_the_file(tmp_path: Path) -> None:
    """As an artifact is handed on: without the JSON file beside it."""
    given = model()
    path = export(tmp_path / "a.tflite", given).path
    path.with_suffix(".json").unlink()
    images = np.random.default_rng(0).uniform(size=[6, 4, 4, 3]).astype(np.float32)
    certificate = certify(path, given, (images, np.arange(6) % 3))
    assert certificate.label_names == _LABELS
    content = json.loads(certificate.write_sidecar(path).read_text())
    assert content["interface"]["label_names"] == list(_LABELS)
    assert content["interface"]["normalisation"]["offset"] == [-1.0, 0.25, 0.0]
    assert content["artifact"]["exported"] is False


def _changed(path: Path, change: Any) -> Path:
    """The file with its standard metadata changed, and without this library's own."""
    content = path.read_bytes()
    packed = schema.ModelT.InitFromPackedBuf(content, 0)
    for entry in packed.metadata:
        if entry.name == b"TFLITE_METADATA":
            data = change(bytes(packed.buffers[entry.buffer].data))
            packed.buffers[entry.buffer].data = np.frombuffer(data, np.uint8)
    packed.metadata = [entry for entry in packed.metadata if entry.name != b"tfdistill"]
    builder = flatbuffers.Builder(1024)
    builder.Finish(packed.Pack(builder), file_identifier=b"TFL3")
    with zipfile.ZipFile(path) as archive:
        labels = archive.read("labels.txt")
    written = io.BytesIO(bytes(builder.Output()))
    with zipfile.ZipFile(written, "a") as archive:
        archive.writestr("labels.txt", labels)
    path.write_bytes(written.getvalue())
    return path


def test_metadata_of_other_tools_are_read(tmp_path: Path) -> None:
    path = _changed(export(tmp_path / "a.tflite").path, lambda data: data)
    found = td.read_metadata(path)
    assert found is not None
    assert found["interface"]["label_names"] == list(_LABELS)
    normalisation = found["interface"]["normalisation"]
    np.testing.assert_allclose(normalisation["scale"], _NORMALISATION.scale, rtol=1e-6)
    np.testing.assert_allclose(normalisation["offset"], _NORMALISATION.offset, atol=1e-6)


def test_damaged_metadata_are_an_error(tmp_path: Path) -> None:
    path = _changed(export(tmp_path / "a.tflite").path, lambda data: data[:30])
    with pytest.raises(ModelError, match=r"a\.tflite` must have metadata that can be read\. Rec"):
        td.read_metadata(path)
    (tmp_path / "b.tflite").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"b\.tflite` must be a LiteRT model"):
        td.read_metadata(tmp_path / "b.tflite")

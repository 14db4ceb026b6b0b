"""The report: what is written can be read again, the page loads nothing, the advice is right."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from tfdistill.errors import RunDirectoryError, SettingError
from tfdistill.page import render, snippet
from tfdistill.report import Disagreement, Report, Row, advice, read_report, write_report

ATTACK = '<script>alert("1")</script> & $\\frac$'


def rows() -> tuple[Row, ...]:
    return (
        Row("teacher", "teacher", 0.9832, parameters=152_330, per_class_accuracy=(0.99, 0.97)),
        Row("student alone", "baseline", 0.9562, 0.9596, 4210, 0.0, seconds=12.5),
        Row("distilled", "stage", 0.9663, 0.9731, 4210, 0.0, per_class_accuracy=(0.96, 0.97)),
        Row("pruned", "stage", 0.9646, 0.9697, 4210, 0.75),
        Row(
            "int8",
            "artifact",
            accuracy=0.9630,
            teacher_agreement=0.9697,
            sparsity=0.75,
            bytes=9416,
            gzip_bytes=4931,
            latency_ms=0.0123,
            latency_p90_ms=0.0131,
            certified=True,
            per_class_accuracy=(0.95, 0.97),
            note="post-training, calibrated on 256 training examples",
        ),
    )


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "digits",
        "rows": rows(),
        "histories": {
            "student alone": {"loss": [1.0, 0.5], "val_accuracy": [0.8, 0.9]},
            "distillation": {"loss": [2.0, 1.5], "soft_targets": [1.5, 1.0]},
        },
        "label_names": ("cat", "dog"),
        "disagreements": {"int8": (Disagreement(7, 0, 0, 1), Disagreement(9, 1, 0, 1))},
        "advice": ("Raise `epochs`.",),
        "details": {"seed": 0, "versions": {"tensorflow": "2.21.0"}, "notes": ["one", "two"]},
        "test_examples": 297,
    }
    return Report(**{**values, **changes})


class Page(HTMLParser):
    """What a browser would make of a page: its text, elements and what they load."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th") and self.cells:
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def images(self, media_type: str) -> list[bytes]:
        start = f"data:{media_type};base64,"
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        return [base64.b64decode(s.removeprefix(start)) for s in sources if s.startswith(start)]


# report.json


def test_json_round_trip(tmp_path: Path) -> None:
    written = write_report(report(), tmp_path / "run")
    assert written.json_path == tmp_path / "run" / "report.json"
    assert written.html_path == tmp_path / "run" / "report.html"
    assert read_report(tmp_path / "run") == written
    assert read_report(tmp_path / "run" / "report.json") == written


def test_not_a_number_survives_as_valid_json(tmp_path: Path) -> None:
    nan = math.nan
    broken = report(
        rows=(Row("teacher", "teacher", nan, latency_ms=nan, per_class_accuracy=(nan, 0.5)),),
        histories={"distillation": {"loss": [nan, math.inf, 0.5]}},
        details={"numpy": np.float32("nan"), "array": np.arange(2), "path": Path("a")},
    )
    path = write_report(broken, tmp_path).json_path
    assert path is not None

    def refuse(token: str) -> None:
        raise AssertionError(token)

    content = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    assert content["details"] == {"numpy": None, "array": [0, 1], "path": "a"}
    read = read_report(path)
    assert math.isnan(read.rows[0].accuracy)
    assert read.rows[0].latency_ms is None
    np.testing.assert_array_equal(read.rows[0].per_class_accuracy, [nan, 0.5])
    np.testing.assert_array_equal(read.histories["distillation"]["loss"], [nan, nan, 0.5])
    assert "nan" not in Page(render(broken)).text.lower().split()


def test_numpy_integers_in_disagreements(tmp_path: Path) -> None:
    three: Any = np.int64(3)
    found = Disagreement(three, 1, 1, 0, np.zeros((2, 2)))
    write_report(report(disagreements={"int8": (found,)}), tmp_path)
    assert read_report(tmp_path).disagreements["int8"] == (Disagreement(3, 1, 1, 0),)


def test_nothing_is_written_when_details_have_no_form_in_json(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="`data` must have a form in JSON"):
        write_report(report(details={"x": object()}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must be a report\.json, or the directory of a finished run\. Received: .*run"),
        ("{", r"must be a report of this library\. Received: JSONDecodeError"),
        ("[]", r"must be a report of this library"),
        ('{"loss": 1}', r"must be a report of this library\. Received: KeyError: 'format'"),
        ('{"format": 1, "rows": []}', r"must be a report of this library"),
        ('{"format": 99}', r"must be of format 4 or older\. Received: format 99\. Update"),
    ],
)
def test_unreadable_reports(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, "utf-8")
    with pytest.raises(RunDirectoryError, match=message):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "artefact"}, r"`kind` must be one of teacher, .*\. Received: artefact\."),
        ({"accuracy": 96.3}, r"`accuracy` must be in \[0, 1\]\. Received: 96\.3\."),
        ({"sparsity": -0.1}, r"`sparsity` must be in \[0, 1\]"),
        ({"teacher_agreement": 2}, r"`teacher_agreement` must be in \[0, 1\]"),
    ],
)
def test_rows_check_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Row(**{"name": "int8", "kind": "artifact", "accuracy": 0.5, **changes})


@pytest.mark.parametrize("wrong", [(), (rows()[0], rows()[0])])
def test_rows_have_names_of_their_own(wrong: tuple[Row, ...]) -> None:
    with pytest.raises(SettingError, match="`rows` must have one row or more, each of a name"):
        report(rows=wrong)


# The table


def test_table_is_for_people() -> None:
    header, *lines = report().table()
    by_name = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(by_name) == ["teacher", "student alone", "distilled", "pruned", "int8"]
    assert by_name["int8"] == {
        "model": "int8",
        "accuracy": "96.30%",
        "agrees with teacher": "96.97%",
        "parameters": "-",
        "size": "9.2 KB",  # 9416 / 1024
        "gzip size": "4.8 KB",
        "zeros": "75.0%",
        "ms (host)": "0.0123",
        "certified": "passed",
    }
    assert by_name["teacher"]["parameters"] == "152,330"
    assert by_name["teacher"]["certified"] == "-"


def test_table_leaves_out_what_nobody_knows() -> None:
    (row,) = report(rows=rows()[:1]).table()[1:]
    assert row == ("teacher", "98.32%", "152,330")
    failed = report(rows=(replace(rows()[-1], certified=False),)).table()[1]
    assert failed[-1] == "FAILED"


# report.html


def test_page_holds_all_and_loads_nothing(tmp_path: Path) -> None:
    path = write_report(report(), tmp_path).html_path
    assert path is not None
    html = path.read_text("utf-8")
    page = Page(html)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[\w+/=]+", "", html))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    for line in report().table():
        assert list(line) in page.cells
    for said in (
        "digits",
        "297 test examples",
        "post-training, calibrated on 256",
        "cat",
        "2.21.0",
    ):
        assert said in page.text
    assert ("code", {}) in page.elements  # the advice's `epochs`
    assert "`" not in page.text
    assert {tuple(row) for row in page.cells} >= {("cat", "99.0", "96.0", "95.0")}


def test_charts_are_pictures_that_load_nothing() -> None:
    charts = Page(render(report())).images("image/svg+xml")
    assert len(charts) == 4  # accuracy against size; accuracy, loss, soft targets
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for element in root.iter():
            assert not element.tag.endswith(("}script", "}image", "}foreignObject", "}metadata"))
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")


def test_every_text_is_escaped() -> None:
    hostile = report(
        title=ATTACK,
        rows=(*rows()[:-1], replace(rows()[-1], name=ATTACK, note=ATTACK)),
        histories={ATTACK: {ATTACK: [1.0, 0.5]}, "_hidden": {ATTACK: [0.5]}},
        label_names=(ATTACK, '" onload="x'),
        disagreements={
            ATTACK: (
                Disagreement(0, 0, 0, 1, np.array([ATTACK.encode()])),
                Disagreement(1, 0, 1, 1, np.zeros((2, 2))),
            )
        },
        advice=(f"{ATTACK} `{ATTACK}`",),
        details={
            ATTACK: ATTACK,
            "left_float": {ATTACK: ATTACK},
            "certificates": {ATTACK: certificate(failures=(ATTACK,))},
            "interfaces": {ATTACK: interface(name='" + ATTACK + "')},
        },
    )
    html = render(hostile)
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.text.count(ATTACK) >= 12
    assert [ATTACK, ATTACK] in page.cells


def test_images_become_pictures() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colour = np.stack([grey, 255 - grey, grey.T], axis=-1)
    signed = (grey.astype(np.float32) / 127.5 - 1.0)[..., np.newaxis]
    examples: list[Any] = [
        grey,
        grey[..., np.newaxis],
        colour,
        grey.astype(np.float32) / 255,
        signed,
    ]
    shown = tuple(Disagreement(i, 0, 0, 1, image) for i, image in enumerate(examples))
    pictures = Page(render(report(disagreements={"int8": shown}))).images("image/png")
    decoded = [np.round(255 * imread(io.BytesIO(picture)))[..., :3] for picture in pictures]
    assert len(decoded) == 5
    for index, pixels in enumerate(decoded):
        wanted = colour if index == 2 else np.repeat(grey[..., np.newaxis], 3, axis=-1)
        np.testing.assert_allclose(pixels, wanted, atol=1)


def test_large_and_broken_images() -> None:
    large = np.random.default_rng(0).integers(0, 256, (1000, 600, 3), np.uint8)
    examples = [large, np.full((4, 4), np.nan), np.full((4, 4), 7.0), np.array([[-5.0, np.inf]])]
    shown = tuple(Disagreement(i, 0, 0, 1, image) for i, image in enumerate(examples))
    pictures = Page(render(report(disagreements={"int8": shown}))).images("image/png")
    assert len(pictures) == 4
    assert max(imread(io.BytesIO(pictures[0])).shape[:2]) <= 192
    assert len(pictures[0]) < 100_000


def test_inputs_that_are_no_images_are_shown_as_text() -> None:
    examples: list[Any] = [
        np.linspace(0, 1, 64),
        np.zeros((2, 3, 5)),
        np.array([b"good film"]),
        np.array(["schöner Film"], object),
        None,
    ]
    shown = tuple(Disagreement(i, 0, 0, 1, image) for i, image in enumerate(examples))
    page = Page(render(report(disagreements={"int8": shown})))
    assert page.images("image/png") == []
    assert "[64]: 0, 0.01587, 0.03175," in page.text
    assert "[2, 3, 5]: 0, 0, 0," in page.text
    assert "good film" in page.text
    assert "schöner Film" in page.text


def test_many_classes_and_examples_are_cut_with_a_word() -> None:
    share = np.linspace(0, 1, 200)
    many = report(
        rows=(
            Row("teacher", "teacher", 0.9, per_class_accuracy=(1.0,) * 200),
            Row("int8", "artifact", 0.8, per_class_accuracy=tuple(share)),
        ),
        label_names=(),
        disagreements={"int8": tuple(Disagreement(i, 0, 0, 1) for i in range(30))},
    )
    page = Page(render(many))
    assert "The 50 of 200 classes on which int8 falls farthest below teacher." in page.text
    assert ["0", "100.0", "0.0"] in page.cells
    assert ["49", "100.0", "24.6"] in page.cells
    assert not any(cells[:2] == ["50", "100.0"] for cells in page.cells)
    assert "The first 24 of 30 examples." in page.text


@pytest.mark.parametrize(
    "histories",
    [
        {},
        {"distillation": {}},
        {"distillation": {"loss": [], "val_loss": [0.5]}},
        {"distillation": {"loss": [math.nan, math.inf]}},
        {"distillation": {"loss": [0.5]}, "pruning": {"accuracy": [0.5] * 3}},
    ],
)
def test_any_history_can_be_drawn(histories: Any) -> None:
    charts = Page(render(report(rows=rows()[:1], histories=histories))).images("image/svg+xml")
    assert len(charts) == len({m.removeprefix("val_") for h in histories.values() for m in h})


def test_the_users_matplotlib_is_left_alone_and_not_asked() -> None:
    with mpl.rc_context({"text.usetex": True, "font.size": 30.0}):
        before = dict(mpl.rcParams)
        page = render(report())
        assert dict(mpl.rcParams) == before
    written = r"Written [^.]*\."
    assert re.sub(written, "", page) == re.sub(written, "", render(report()))


# Certificates, and how to use an artifact


def certificate(**changes: Any) -> dict[str, Any]:
    from tfdistill.certificate import Certificate, Latency, Limits, OutputError, WorstExample
    from tfdistill.litert.flatbuffer import Operator

    values: dict[str, Any] = {
        "artifact": "student_int8.tflite",
        "sha256": "9f86d08188",
        "format": "int8",
        "raw_bytes": 9416,
        "gzip_bytes": 4931,
        "elements": 4096,
        "zeros": 3070,
        "weight_zeros": {"student/logits/MatMul": (480, 640), "empty": (0, 0)},
        "operators": (Operator("CONV_2D", "int8", "int8", 2), Operator("QUANTIZE", "int8")),
        "examples": 297,
        "classes": 2,
        "accuracy": 0.9630,
        "reference_accuracy": 0.9646,
        "per_class_accuracy": (0.95, None),
        "agreement": 0.9933,
        "output_error": OutputError("quantization steps", 0.1, 0.21, 1.02, 2.01, 0.2, 0.02),
        "worst_examples": (WorstExample(17, 0, 1, 0, 2.01), WorstExample(3, 0, 1, 0, None)),
        "latency": Latency(0.0123, 0.0131, 200),
        "float32_latency": None,
        "host": "a CPU",
        "versions": {"tensorflow": "2.21.0"},
        "limits": Limits(),
        "failures": (),
    }
    made: dict[str, Any] = Certificate(**{**values, **changes}).to_dict()
    return made


def interface(name: str = "image", dtype: str = "float32", **output: Any) -> dict[str, Any]:
    quantized = {"scale": 0.5, "zero_point": 1} if dtype != "float32" else {}
    tensor = {"scale": None, "zero_point": None, "formula": None}
    return {
        "inputs": [{**tensor, "name": name, "shape": [1, 3], "dtype": dtype, **quantized}],
        "outputs": [
            {
                **tensor,
                "name": "logits",
                "shape": [1, 2],
                "dtype": "float32",
                "values": "logits",
                **output,
            }
        ],
        "normalisation": {"scale": 0.0625, "offset": [0.0, 1.0, 2.0], "raw_range": [0, 16]},
        "label_names": ["cat", "dog"],
        "reset_state_before_each_run": False,
    }


def test_certificates_are_shown(tmp_path: Path) -> None:
    details = {
        "certificates": {"int8": certificate()},
        "interfaces": {"int8": interface()},
        "left_float": {"softmax": "LiteRT computes it in float"},
    }
    written = write_report(report(details=details), tmp_path)
    assert written.html_path is not None
    page = Page(written.html_path.read_text("utf-8"))
    for said in (
        "Certificate passed.",
        "96.30% in LiteRT, 96.46% in Keras",
        "at most 0.21 quantization steps for half of the outputs, 1.02 for 99%, 2.01 for all",
        "9416 bytes, 4931 after gzip",
        "a CPU",
        "9f86d08188",
        "0: cat, 1: dog",
        "Interpreter('student_int8.tflite')",
        "input = raw value × 0.0625 + 0, 1, 2",
    ):
        assert said in page.text, said
    for cells in (
        ["CONV_2D", "int8", "int8", "2", "no"],
        ["student/logits/MatMul", "480", "640", "75.0%"],
        ["17", "cat", "dog", "cat", "2.01"],
        ["softmax", "LiteRT computes it in float"],
    ):
        assert cells in page.cells, cells
    failed = certificate(failures=("The accuracy fell.",), output_error=None, worst_examples=())
    page = Page(render(report(details={"certificates": {"int8": failed}})))
    assert "Certificate FAILED." in page.text
    assert "The accuracy fell." in page.text


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_the_snippet_runs_the_artifact(
    tmp_path: Path, dtype: str, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """The lines on the page, executed, do what the model does on raw pixels."""
    from tfdistill._keras import tf
    from tfdistill.litert.flatbuffer import inspect_file
    from tfdistill.litert.sidecar import describe_interface

    images, labels = digits
    flat = images.reshape(len(images), 64)
    # A nearest-mean classifier: real weights, and no training.
    means = np.stack([flat[labels == digit].mean(axis=0) for digit in range(10)])
    kernel = tf.constant(means.T)
    bias = tf.constant(-0.5 * (means**2).sum(axis=1))
    module = tf.Module()

    def classify(image: Any) -> dict[str, Any]:
        return {"logits": tf.reshape(image, [-1, 64]) @ kernel + bias}

    module.call = tf.function(
        classify, input_signature=[tf.TensorSpec([1, 8, 8, 1], tf.float32, name="image")]
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.call})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    if dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images[200:230])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(dtype)
    path = tmp_path / "student's.tflite"
    path.write_bytes(converter.convert())
    described = describe_interface(
        inspect_file(path), normalisation={"scale": 1 / 16, "offset": 0.0}
    )
    assert described["inputs"][0]["dtype"] == dtype
    code = compile(snippet(str(path), described), "snippet", "exec")
    tolerance = 3 * (described["outputs"][0]["scale"] or 1e-5)
    logits = flat @ kernel.numpy() + bias.numpy()
    for index in range(200, 230):
        variables: dict[str, Any] = {"raw": (16 * images[index]).tolist()}
        exec(code, variables)
        wanted = logits[index]
        np.testing.assert_allclose(variables["y"][0], wanted, atol=tolerance)
        best = np.flatnonzero(wanted >= wanted.max() - 2 * tolerance)
        assert variables["predicted_class"] in best


@pytest.mark.parametrize("name", ["class", "input:0", "it's"])
def test_the_snippet_takes_any_input_name(name: str) -> None:
    call = snippet("a.tflite", interface(name)).splitlines()[-2]
    given: dict[str, Any] = {}

    def model(**inputs: Any) -> dict[str, Any]:
        given.update(inputs)
        return {"logits": 1}

    exec(call, {"model": model, "x": 5})
    assert given == {name: 5}


@pytest.mark.parametrize(("values", "above"), [("logits", "0"), ("probabilities", "0.5")])
def test_the_snippet_of_one_unit_is_binary(values: str, above: str) -> None:
    lines = snippet("a.tflite", interface(shape=[1, 1], values=values))
    assert lines.endswith(f"predicted_class = int(y.item() > {above})")


# Advice


def two(distilled: float, alone: float, teacher: float = 0.9185) -> list[Row]:
    return [
        Row("teacher", "teacher", teacher),
        Row("student alone", "baseline", alone),
        Row("distilled", "stage", distilled),
    ]


def test_distilled_worse_than_alone() -> None:
    (sentence,) = advice(two(0.8620, 0.8790), test_examples=10_000)
    # sqrt((0.862 * 0.138 + 0.879 * 0.121) / 10000) = 0.00474...
    assert (
        "not better than the student alone (86.20% against 87.90%: by 1.70 points, beyond the "
        "standard error of 0.47 points on 10,000 test examples)" in sentence
    )
    assert "a larger student (the teacher is 3.95 points ahead of it)" in sentence
    for change in ("`epochs`", "`label_loss_weight`", "augmentation"):
        assert change in sentence


def test_the_standard_error_is_that_of_drawn_test_sets() -> None:
    from tfdistill.advice import _standard_error

    draws = np.random.default_rng(0).binomial(500, [[0.9], [0.8]], (2, 20_000)) / 500
    assert _standard_error(0.9, 0.8, 500) == pytest.approx(np.std(draws[0] - draws[1]), rel=0.03)


def test_distilled_worse_within_the_noise() -> None:
    (sentence,) = advice(two(0.95, 0.96), test_examples=297)
    assert "by 1.00 points, within the standard error of 1.70 points on 297" in sentence
    assert "a better teacher (it is no better than the student alone)" in sentence
    (equal,) = advice(two(0.9, 0.9, teacher=0.91))
    assert "by 0.00 points)" in equal
    assert "a better teacher (it is 1.00 points ahead of the student alone)" in equal


def test_distilled_better() -> None:
    (sentence,) = advice(two(0.96, 0.95), test_examples=297)
    assert "is better than the student alone" in sentence
    assert "within the standard error" in sentence
    assert "other seeds" in sentence
    assert advice(two(0.9, 0.8), test_examples=297) == ()
    assert advice(two(0.96, 0.95)) == ()  # nobody said how large the test set is


def test_no_student_alone_to_compare_with() -> None:
    (sentence,) = advice([Row("teacher", "teacher", 0.9), Row("distilled", "stage", 0.9)])
    assert "was not trained alone" in sentence


def test_stages_and_artifacts_that_lose() -> None:
    made = [
        *two(0.90, 0.80),
        Row("pruned", "stage", 0.85),
        Row("quantized", "stage", 0.83),
        Row("int8", "artifact", 0.80, certified=False),
        Row("float16", "artifact", 0.85, certified=True),
        Row("dynamic_int8", "artifact", 0.845),
    ]
    found = advice(made, test_examples=10_000)
    assert [sentence.split(" (")[0] for sentence in found] == [
        "pruned is below distilled",
        "quantized is below pruned",
        "int8 failed its certificate: do not ship it as it is.",
        "int8 is below quantized",
    ]
    assert "by 5.00 points" in found[0]
    assert "`sparsity` of Pruning" in found[0]
    assert "`epochs` of Quantization" in found[1]


def test_int8_after_training_asks_for_training() -> None:
    made = [*two(0.90, 0.80), Row("int8", "artifact", 0.85)]
    (sentence,) = advice(made)
    assert sentence.startswith("int8 is below distilled (85.00% against 90.00%: by 5.00 points).")
    assert "a Quantization stage" in sentence


def test_unknown_accuracies_are_not_judged() -> None:
    made = [*two(math.nan, 0.8), Row("int8", "artifact", math.nan)]
    assert advice(made, test_examples=100) == ()

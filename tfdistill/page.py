"""A report as one HTML page that loads nothing: pictures and charts are inside it.

The page is `report.html` beside this module, filled in by jinja2, which escapes every text.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import itertools
import json
import keyword
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from tfdistill.litert.sidecar import label_names_of
from tfdistill.rows import percent
from tfdistill.runs.files import to_json

if TYPE_CHECKING:
    from tfdistill.report import Report, Row

__all__ = ["render", "snippet"]

# Of Okabe and Ito, "Color Universal Design": told apart with any kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_STYLE: Any = {
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": "#444444",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9.0,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "tfdistill",  # the same report gives the same bytes
    "xtick.color": "#666666",
    "ytick.color": "#666666",
}
_CHARTS = 8
_CLASSES = 50
_EXAMPLES = 24
_PICTURE_PIXELS = 192
_SHOWN_ELSEWHERE = ("certificates", "interfaces", "left_dense", "left_float")


@dataclass(frozen=True)
class _Chart:
    title: str
    source: str


def render(report: Report) -> str:
    """Returns the page of a report, as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, code=_code, known=_known, words=_words)
    template = importlib.resources.files("tfdistill").joinpath("report.html")
    details = json.loads(to_json(report.details), parse_constant=lambda _: None)
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own style may ask for fonts or for LaTeX
        mpl.rcParams.update(_STYLE)
        curves = list(_training_curves(report.histories))
        scatters = [
            chart
            for output in report.outputs or ("",)
            if (chart := _accuracy_against_size(report, output)) is not None
        ]
    return environment.from_string(template.read_text("utf-8")).render(
        report=report,
        table=report.table(),
        curves=curves,
        scatters=scatters,
        outputs=report.outputs,
        classes=[
            found
            for output in report.outputs or ("",)
            if (found := _per_class(report, output)) is not None
        ],
        artifacts=[row for row in report.rows if row.kind == "artifact"],
        certificates=details.get("certificates") or {},
        interfaces=details.get("interfaces") or {},
        snippet=snippet,
        label_names_of=label_names_of,
        left=[
            (title, details[key])
            for key, title in (
                ("left_float", "Layers left in float"),
                ("left_dense", "Layers left dense"),
            )
            if details.get(key)
        ],
        details={k: v for k, v in details.items() if k not in _SHOWN_ELSEWHERE},
        examples={
            artifact: [(example, _picture(example.image)) for example in examples[:_EXAMPLES]]
            for artifact, examples in report.disagreements.items()
        },
        as_text=_as_text,
        percent=percent,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def snippet(artifact: str, interface: Mapping[str, Any]) -> str:
    """Returns the lines of Python that run an artifact: in LiteRT, Keras or TensorFlow.

    Args:
        artifact: Name of the file or folder.
        interface: What `describe_interface()` says of it; one input, one output or several.
    """
    (given,), outputs = interface["inputs"], interface["outputs"]
    name = given["name"]
    passed = f"{name}=x" if name.isidentifier() and not keyword.iskeyword(name) else ""
    answer = f"model({passed or f'**{{{name!r}: x}}'})"
    needed = "from ai_edge_litert.interpreter import Interpreter"
    model = f"Interpreter({artifact!r}).get_signature_runner()"
    if artifact.endswith(".keras"):
        needed, model = "import keras", f"keras.saving.load_model({artifact!r}, compile=False)"
        answer = "model.predict(x, verbose=0)"
    elif not artifact.endswith(".tflite"):
        needed = "import tensorflow as tf"
        model = f"tf.saved_model.load({artifact!r}).signatures['serving_default']"
        answer = f"model(**{{{name!r}: tf.constant(x)}})"
    dtype = "float32" if given["scale"] is not None else given["dtype"]
    lines = [
        "import numpy as np",
        needed,
        "",
        f"model = {model}",
        f"x = np.asarray(raw, np.{dtype}).reshape({given['shape']})  # raw: one example",
    ]
    normalisation = interface.get("normalisation")
    if normalisation:
        scale, offset = (np.asarray(normalisation[key]).tolist() for key in ("scale", "offset"))
        lines.append(f"x = x * np.float32({scale}) + np.float32({offset})")
    if given["scale"] is not None:
        limits = np.iinfo(given["dtype"])
        lines += [
            f"x = np.round(x / np.float32({given['scale']})) + {given['zero_point']}",
            f"x = np.clip(x, {int(limits.min)}, {int(limits.max)}).astype(np.{given['dtype']})",
        ]
    several = len(outputs) > 1
    kinds = dict.fromkeys(map(_predicted, outputs))
    if several:
        if artifact.endswith(".keras"):  # in a structure of its own
            names = [output["name"] for output in outputs]
            answer = f"dict(zip({names}, keras.tree.flatten({answer})))"
        lines.append(f"answers = {answer}")
        lines += [f"predicted_{each} = {{}}" for each in kinds]
        answer = "answers"
    for output in outputs:
        found = answer
        if several or not artifact.endswith(".keras"):
            found = f"{answer}[{output['name']!r}]"
        tensor = not artifact.endswith((".keras", ".tflite"))
        lines.append(f"y = {found}{'.numpy()' if tensor else ''}")
        if output["scale"] is not None:
            scale, zero_point = output["scale"], output["zero_point"]
            lines.append(f"y = (y.astype(np.float32) - {zero_point}) * np.float32({scale})")
        one = output["shape"][-1] == 1
        above = 0.5 if output["values"] == "probabilities" else 0
        what = _predicted(output)
        predicted = {
            "classes": f"int(y.item() > {above})" if one else "int(np.argmax(y))",
            "labels": f"np.flatnonzero(y > {above}).tolist()",  # each by itself
            "numbers": "y.ravel().tolist()",
        }[what]
        result = "predicted_class" if what == "classes" else f"predicted_{what}"
        if several:
            result = f"predicted_{what}[{output['name']!r}]"
        lines.append(f"{result} = {predicted}")
    return "\n".join(lines)


def _predicted(output: Mapping[str, Any]) -> str:
    """What an output of an artifact answers, by what is said of it."""
    if output["values"] == "numbers":
        return "numbers"
    return "labels" if "threshold" in output else "classes"


def _training_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
) -> Iterator[_Chart]:
    """One chart a metric: all stages in it, validation drawn full, training dashed."""
    metrics = {name.removeprefix("val_") for history in histories.values() for name in history}
    leading = [
        name
        for kind in ("accuracy", "loss", "teacher_agreement")
        for name in [kind, *sorted(m for m in metrics if m.endswith(f"_{kind}") and kind != "loss")]
        if name in metrics
    ]
    for metric in [*leading, *sorted(metrics - {*leading})][:_CHARTS]:
        figure, axes = _axes()
        for stage, colour in zip(histories, itertools.cycle(_COLOURS), strict=False):
            validation = histories[stage].get(f"val_{metric}", ())
            for values, of in ((histories[stage].get(metric, ()), "training"), (validation, "")):
                if len(values):
                    dashed = of == "training" and len(validation) > 0
                    axes.plot(
                        range(1, len(values) + 1),
                        np.ma.masked_invalid(np.asarray(values, float)),
                        color=colour,
                        label=None if dashed else _literal(stage),
                        linestyle=(0, (2, 2)) if dashed else "-",
                        linewidth=0.9 if dashed else None,
                        marker="o" if len(values) == 1 else None,
                        markersize=4,
                    )
        axes.set_xlabel("epoch of the stage")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        yield _Chart(_words(metric), _svg(figure))


def _accuracy_against_size(report: Report, output: str) -> _Chart | None:
    """Of an output of several, or of the only one, ""."""
    rows = [row.of(output) if output else row for row in report.rows]
    sized = [row for row in rows if row.gzip_bytes and math.isfinite(row.accuracy)]
    if not sized:
        return None
    sizes = [row.gzip_bytes or 0 for row in sized]
    figure, axes = _axes()
    for row, size, colour in zip(sized, sizes, itertools.cycle(_COLOURS), strict=False):
        axes.plot([size / 1024], [100 * row.accuracy], "o", color=colour, label=_literal(row.name))
    for kind, line in (("teacher", "--"), ("baseline", ":")):
        for row in rows:
            if row.kind == kind and row not in sized and math.isfinite(row.accuracy):
                label = _literal(row.name)
                axes.axhline(100 * row.accuracy, color="#888888", linestyle=line, label=label)
    if max(sizes) > 20 * min(sizes):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0, right=1.1 * max(sizes) / 1024)
    axes.set_xlabel("gzip size, KB")
    what = "R²" if report.kinds.get(output) == "numbers" else "accuracy"
    axes.set_ylabel(f"{what}, %")
    axes.margins(y=0.15)
    axes.legend()
    of_output = f" of {output}" if output else ""
    return _Chart(f"{what[0].upper()}{what[1:]}{of_output} against gzip size", _svg(figure))


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, 2.9))
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    # Else it says when it was made and by what, with addresses.
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=unsaid)
    return _data_uri("image/svg+xml", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _literal(text: str) -> str:
    """Text that matplotlib does not take for a formula, or for a label to be hidden."""
    return "\u200b" * text.startswith("_") + text.replace("$", r"\$")


def _per_class(report: Report, output: str) -> dict[str, Any] | None:
    """Of an output of several, or of the only one, ""."""
    numbers = report.kinds.get(output) == "numbers"
    rows = [row.of(output) if output else row for row in report.rows]
    rows = [row for row in rows if row.per_class_accuracy]
    if not rows:
        return None
    classes = list(range(max(len(row.per_class_accuracy) for row in rows)))
    everything = len(classes)

    def accuracy(row: Row, label: int) -> float:
        values = row.mean_absolute_errors if numbers else row.per_class_accuracy
        return values[label] if label < len(values) else math.nan

    if everything > _CLASSES:
        lost = {label: accuracy(rows[0], label) - accuracy(rows[-1], label) for label in classes}
        if numbers:
            lost = {label: -gained for label, gained in lost.items()}
        known = [label for label in classes if not math.isnan(lost[label])]
        classes = sorted(known, key=lambda label: -lost[label])[:_CLASSES]
    return {
        "rows": [row.name for row in rows],
        "lines": [
            (report.label_name(label, output), [accuracy(row, label) for row in rows])
            for label in classes
        ],
        "everything": everything,
        "output": output,
        "what": {"labels": "label", "numbers": "number"}.get(report.kinds.get(output, ""), "class"),
    }


def _picture(image: npt.NDArray[Any] | None) -> str | None:
    """An image as a PNG inside a data URI; `None` if it is none."""
    if image is None or image.dtype.kind not in "buif" or image.size == 0:
        return None
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] in (3, 4)):
        return None
    step = math.ceil(max(image.shape[:2]) / _PICTURE_PIXELS)
    pixels = np.nan_to_num(image[::step, ::step].astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = _value_range(pixels)
    pixels = np.clip((pixels - low) / (high - low), 0.0, 1.0)
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", cmap="gray", vmin=0.0, vmax=1.0)
    return _data_uri("image/png", buffer.getvalue())


def _value_range(pixels: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The range that the pixels were stored in, as far as they tell; else their own."""
    low, high = float(pixels.min()), float(pixels.max())
    for known in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        if known[0] <= low and high <= known[1]:
            return known
    return low, high if high > low else low + 1.0


def _as_text(array: npt.NDArray[Any] | None) -> str:
    """What is shown of an input that is no image: its first values, or its beginning."""
    if array is None:
        return ""
    if array.dtype.kind not in "buif":  # text: of NumPy, or as TensorFlow gives it, in bytes
        shown = " ".join(
            part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)
            for part in array.ravel()
        )
        return shown if len(shown) <= 280 else shown[:280] + "…"
    first = ", ".join(f"{value:.4g}" for value in array.ravel()[:8])
    return f"{list(array.shape)}: {first}" + (", …" if array.size > 8 else "")


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _known(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that are known of one record at least, in the order in which they come."""
    keys = dict.fromkeys(key for each in records for key in each)
    return [key for key in keys if any(each.get(key) is not None for each in records)]


def _code(sentence: str) -> Markup:
    """A sentence, what stands in backticks as code."""
    parts = sentence.split("`")
    tagged = (Markup("<code>{}</code>" if i % 2 else "{}").format(p) for i, p in enumerate(parts))
    return Markup("").join(tagged)


def _number(value: Any) -> str:
    """One value of `details` for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)

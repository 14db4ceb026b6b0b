"""The command `tfdistill`.

What TensorFlow is needed for is imported inside the commands, so that `--help` and
`--version` answer at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdistill import __version__
from tfdistill.errors import RunDirectoryError, TfdistillError

if TYPE_CHECKING:
    from tfdistill.certificate import Certificate, OutputCertificate
    from tfdistill.inspection.benchmark import Benchmark

_PASSED, _FAILED, _ERROR, _WARNED = 0, 1, 2, 3
_STATUS = {"pass": _PASSED, "warn": _WARNED, "fail": _FAILED}
_JUDGED = "Exit status: 0 the artifact passed, 1 it failed, 2 it could not be judged."
_WORDS = {  # for accuracy and agreement, where these are of something else than of classes
    "labels": ("accuracy of labels", "agreement of labels"),
    "numbers": ("R²", "R² against the model"),
}
_LIMITS = ("max_accuracy_drop", "min_agreement", "max_output_error_steps")


def _inspect(arguments: argparse.Namespace) -> int:
    from tfdistill.terminal import Terminal, quiet_tensorflow

    if arguments.path.suffix != ".tflite":
        quiet_tensorflow()

    from tfdistill.inspection import PREDICTED, inspect

    pruning = None
    if arguments.sparsity is not None:
        from tfdistill.pruning import Pruning

        pruning = Pruning(sparsity=arguments.sparsity)
    formats = PREDICTED if arguments.formats is None else arguments.formats
    found = inspect(
        arguments.path, pruning=pruning, formats=formats, safe_mode=not arguments.unsafe
    )
    if arguments.json:
        _print_json(found.to_dict())
    else:
        found.show(Terminal())
    return _STATUS[found.status]


def _benchmark(arguments: argparse.Namespace) -> int:
    from tfdistill.inspection.benchmark import benchmark

    paths = [arguments.path, *([arguments.compare] if arguments.compare else [])]
    measured = benchmark(paths, threads=arguments.threads, runs=arguments.runs)
    if arguments.json:
        _print_json(measured.to_dict())
    else:
        _print_benchmark(measured)
    return _PASSED


def _print_benchmark(measured: Benchmark) -> None:
    from tfdistill.rows import kilobytes
    from tfdistill.terminal import Terminal

    terminal = Terminal()
    threads = "one thread" if measured.threads == 1 else f"{measured.threads} threads"
    terminal.heading(f"{measured.host}, {threads}")
    terminal.rows(
        [
            ("file", "size", "median ms", "p90 ms", "runs", "peak memory"),
            *(
                (
                    each.file,
                    kilobytes(each.bytes),
                    f"{each.latency.median_ms:.3g}",
                    f"{each.latency.p90_ms:.3g}",
                    str(each.latency.runs),
                    kilobytes(each.peak_memory_bytes),
                )
                for each in measured.measurements
            ),
        ]
    )
    if len(measured.measurements) == 2:
        first, second = measured.measurements
        ratio = second.latency.median_ms / first.latency.median_ms
        terminal.note(f"{second.file} takes {ratio:.2f} times as long as {first.file}")


def _report(arguments: argparse.Namespace) -> int:
    from tfdistill.report import read_report
    from tfdistill.terminal import Terminal

    _require_finished(arguments.run_dir)
    report = read_report(arguments.run_dir)
    if arguments.json and report.json_path is not None:
        _print_json(json.loads(report.json_path.read_text("utf-8")))
    else:
        Terminal().table(report)
    return _PASSED


def _require_finished(directory: Path) -> None:
    """Says of a run without a report how far it came."""
    from tfdistill.runs.records import DamagedFileError, read_record

    if not (directory / "run.json").is_file() or (directory / "report.json").exists():
        return
    try:
        stages = (read_record(directory / "run.json") or {}).get("stages", {})
    except DamagedFileError:
        return  # there is no more to say than that there is no report
    states = ", ".join(f"{name}: {state['state']}" for name, state in stages.items())
    raise RunDirectoryError(
        f"`{directory}` must be the directory of a finished run.",
        received=states or "a run that has not finished any stage",
        hint="It was interrupted or failed before its report: the same call of Pipeline.run with "
        "this run_dir goes on where it ended.",
    )


def _certify(arguments: argparse.Namespace) -> int:
    from tfdistill.terminal import quiet_tensorflow

    quiet_tensorflow()

    import tfdistill as td

    limits = td.Limits(**{name: getattr(arguments, name) for name in _LIMITS})
    model = td.load_model(arguments.model)
    test = td.load_dataset(arguments.dataset, data_dir=arguments.data_dir).test
    if arguments.output is not None:
        test = test.map(lambda inputs, labels: (inputs, {arguments.output: labels}))
    certificate = td.certify(arguments.artifact, model, test, limits=limits)
    if arguments.json:
        _print_json(certificate.to_dict())
    else:
        passed = "passed" if certificate.passed else "FAILED"
        print(f"{arguments.artifact}: {'; '.join(filter(None, (passed, _shares(certificate))))}")
        for name, output in certificate.outputs.items():
            print(f"  {name}: {_shares(output)}")
        for failure in certificate.failures:
            print(f"  {failure}")
    return _PASSED if certificate.passed else _FAILED


def _print_json(content: Mapping[str, Any]) -> None:
    from tfdistill.runs.files import to_json

    finite = json.loads(to_json(content), parse_constant=lambda _: None)  # JSON has no NaN
    print(json.dumps(finite, indent=2))


def _shares(said: Certificate | OutputCertificate) -> str:
    """How right an artifact, or an output of it, is; "" where only its outputs are."""
    what, shared = _WORDS.get(said.counted, ("accuracy", "agreement"))
    parts = ["no labels"] if said.accuracy is None else []
    if said.accuracy is not None and not math.isnan(said.accuracy):
        parts = [f"{what} {said.accuracy:.4f} in LiteRT, {said.reference_accuracy:.4f} in Keras"]
    for ours, theirs in zip(
        said.mean_absolute_errors, said.reference_mean_absolute_errors, strict=True
    ):
        parts.append(f"mean absolute error {_number(ours)} in LiteRT, {_number(theirs)} in Keras")
    if not math.isnan(said.agreement):
        parts.append(f"{shared} {said.agreement:.4f}")
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfdistill",
        description="From a trained teacher and a small Keras student to a small, verified "
        "LiteRT model.",
    )
    parser.add_argument("--version", action="version", version=f"tfdistill {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_inspect(commands)
    _add_certify(commands)
    _add_benchmark(commands)
    _add_report(commands)
    return parser


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say before any training what each stage would do with a model",
        description="Shows, layer by layer, what would be pruned and quantized, or why not; "
        "parameters, multiply-accumulates (MACs), predicted sizes, and what to look at. Of a "
        ".tflite: operators and types.",
        epilog="Exit status: 0 nothing to look at (notes only), 3 warnings, 1 the pipeline would "
        "refuse the model (or the .tflite failed its certificate), 2 the file cannot be read.",
    )
    inspect.add_argument(
        "path", metavar="PATH", type=Path, help="a .keras, .h5 or .tflite file or a SavedModel"
    )
    inspect.add_argument(
        "--sparsity",
        metavar="SHARE",
        type=float,
        help="share of zeros to prune to, for the predicted sizes after gzip (default: 0.75)",
    )
    inspect.add_argument(
        "--formats",
        metavar="FORMAT",
        nargs="*",
        help="formats whose sizes to predict, which takes most of the time (default: float32, "
        "float16, dynamic_int8, int8 and int16x8)",
    )
    inspect.add_argument(
        "--unsafe",
        action="store_true",
        help="load a model that brings Python code of its own, and let it run "
        "(safe_mode=False): only for files you trust",
    )
    _add_json(inspect, "the inspection")
    inspect.set_defaults(command=_inspect)


def _add_certify(commands: Any) -> None:
    certify = commands.add_parser(
        "certify",
        help="hold a .tflite against the model it came from",
        description="Runs a .tflite in LiteRT and its model in Keras on the whole test split "
        "of a data set and compares them.",
        epilog=_JUDGED,
    )
    certify.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the .tflite file")
    certify.add_argument(
        "--model",
        required=True,
        type=Path,
        help="the model that it came from: .keras, .h5 or a SavedModel folder",
    )
    certify.add_argument(
        "--dataset",
        metavar="NAME",
        required=True,
        help='"digits", or an image classification set of TensorFlow Datasets by its name',
    )
    certify.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="where TensorFlow Datasets finds it prepared (default: its own folder)",
    )
    certify.add_argument(
        "--output",
        metavar="NAME",
        help="of several outputs the one that the labels are of; the others are held against the "
        "model by their agreement alone",
    )
    limits = certify.add_argument_group("limits", "what it must hold; by default the format's own")
    limits.add_argument(
        "--max-accuracy-drop",
        metavar="SHARE",
        type=float,
        help="accuracy of the model minus that of the artifact, in [0, 1]",
    )
    limits.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        help="share of examples on which both predict the same class, in [0, 1]",
    )
    limits.add_argument(
        "--max-output-error-steps",
        metavar="STEPS",
        type=float,
        help="error of 99 %% of the outputs, in quantization steps",
    )
    _add_json(certify, "the certificate")
    certify.set_defaults(command=_certify)


def _add_benchmark(commands: Any) -> None:
    benchmark = commands.add_parser(
        "benchmark",
        help="measure time and memory of a .tflite on this machine",
        description="Runs a .tflite on random inputs, one example at a time, and measures latency "
        "and peak memory on this machine's CPU. That is no phone: compare files with it.",
        epilog="Exit status: 0 done, 2 the file cannot be run.",
    )
    benchmark.add_argument("path", metavar="PATH", type=Path, help="the .tflite file")
    benchmark.add_argument(
        "--compare", metavar="OTHER", type=Path, help="another .tflite file, measured in turn"
    )
    benchmark.add_argument(
        "--threads", metavar="N", type=int, default=1, help="threads of the runtime (default: 1)"
    )
    benchmark.add_argument(
        "--runs",
        metavar="N",
        type=int,
        help="runs of each file (default: 200, or fewer in 5 seconds)",
    )
    _add_json(benchmark, "the measurements")
    benchmark.set_defaults(command=_benchmark)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="print the table of a finished run",
        description="Prints the table of a finished run from its report.json.",
        epilog="Exit status: 0 printed, 2 there is no report that can be read.",
    )
    report.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, help="the run's folder, as saved_models/birds"
    )
    _add_json(report, "the report")
    report.set_defaults(command=_report)


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, nothing else")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments after the program's name; those of the process when not given.

    Returns:
        The exit status: 0 done or passed, 1 a model or an artifact failed, 3 a model has
        warnings, 2 an error of this library, which is printed as one line. A wrong command line
        ends the process with status 2.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except TfdistillError as error:
        print("tfdistill: error:", " ".join(str(error).split()), file=sys.stderr)
        return _ERROR
    return status


if __name__ == "__main__":
    sys.exit(main())

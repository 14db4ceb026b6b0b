"""The command `tfdistill`.

What TensorFlow is needed for is imported inside the commands, so that `--help` and
`--version` answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tfdistill import __version__
from tfdistill.errors import TfdistillError

_PASSED, _FAILED, _ERROR = 0, 1, 2


def _report(arguments: argparse.Namespace) -> int:
    from tfdistill.report import read_report
    from tfdistill.terminal import Terminal

    Terminal().table(read_report(arguments.run_dir))
    return _PASSED


def _certify(arguments: argparse.Namespace) -> int:
    from tfdistill.terminal import quiet_tensorflow

    quiet_tensorflow()

    import tfdistill as td

    model = td.load_model(arguments.model)
    data = td.load_dataset(arguments.dataset, data_dir=arguments.data_dir)
    certificate = td.certify(arguments.artifact, model, data.test)
    print(
        f"{arguments.artifact}: {'passed' if certificate.passed else 'FAILED'}; "
        f"accuracy {certificate.accuracy:.4f} in LiteRT, "
        f"{certificate.reference_accuracy:.4f} in Keras; agreement {certificate.agreement:.4f}"
    )
    for failure in certificate.failures:
        print(f"  {failure}")
    return _PASSED if certificate.passed else _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfdistill",
        description="From a trained teacher and a small Keras student to a small, verified "
        "LiteRT model.",
    )
    parser.add_argument("--version", action="version", version=f"tfdistill {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    report = commands.add_parser(
        "report",
        help="print the table of a finished run",
        description="Prints the table of a finished run from its report.json.",
    )
    report.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, help="the run's folder, as saved_models/birds"
    )
    report.set_defaults(command=_report)

    certify = commands.add_parser(
        "certify",
        help="hold a .tflite against the model it came from",
        description="Runs a .tflite in LiteRT and its model in Keras on the whole test split "
        "of a data set and compares them.",
        epilog="Exit status: 0 the artifact passed, 1 it failed, 2 it could not be judged.",
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
    certify.set_defaults(command=_certify)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments after the program's name; those of the process when not given.

    Returns:
        The exit status: 0 done or passed, 1 an artifact failed, 2 an error of this library,
        which is printed as one line. A wrong command line ends the process with status 2.
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

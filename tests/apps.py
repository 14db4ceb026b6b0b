"""What an app would find: a script without this library runs an artifact on raw examples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def said_by(script: str, artifact: Path, folder: Path, **arrays: Any) -> str:
    """What a script of this folder prints of an artifact and a file of arrays.

    Args:
        script: Its file name.
        artifact: The `.tflite`.
        folder: Where to write the arrays.
        arrays: `raw` examples and their labels.
    """
    np.savez(folder / "test.npz", **arrays)
    command = [Path(__file__).with_name(script), artifact, folder / "test.npz"]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=True
    )
    return done.stdout

"""The process's memory."""

import platform
import subprocess
import sys

import pytest

_STEPS = """
import resource, sys
import numpy as np
from tfdistill.host import reuse_memory
if sys.argv[1] == "reuse":
    reuse_memory()
for step in range(40):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [np.ones(750_000, "float32") for _ in range(20)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(how: str) -> int:
    """Pages that 20 steps of 60 MB each got from the system."""
    command = [sys.executable, "-c", _STEPS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again() -> None:
    assert _page_faults("as it is") > 100 * (_page_faults("reuse") + 1)

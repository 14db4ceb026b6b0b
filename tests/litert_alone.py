"""An app, so to speak: LiteRT, NumPy and the sidecar, no TensorFlow. `ARTIFACT TEST.npz`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(artifact: str, test: str) -> None:
    interface = json.loads(Path(artifact).with_suffix(".json").read_text())["interface"]
    (image,), (scores,) = interface["inputs"], interface["outputs"]
    runner = Interpreter(model_path=artifact, num_threads=1).get_signature_runner()
    right = 0
    data = np.load(test)
    for raw, label in zip(data["raw"], data["labels"], strict=True):
        x = raw * interface["normalisation"]["scale"] + interface["normalisation"]["offset"]
        x = x[np.newaxis].astype(np.float32)
        if image["scale"] is not None:
            q = np.round(x / image["scale"]) + image["zero_point"]
            limits = np.iinfo(image["dtype"])
            x = np.clip(q, limits.min, limits.max).astype(image["dtype"])
        right += int(np.argmax(runner(**{image["name"]: x})[scores["name"]][0]) == label)
    assert not any(name.split(".")[0] in ("tensorflow", "keras") for name in sys.modules)
    print(right / len(data["labels"]))


if __name__ == "__main__":
    main(*sys.argv[1:])

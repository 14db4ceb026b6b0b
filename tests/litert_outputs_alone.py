"""An app of several outputs: LiteRT, NumPy and the sidecar, no TensorFlow. `ARTIFACT TEST.npz`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(artifact: str, test: str) -> None:
    interface = json.loads(Path(artifact).with_suffix(".json").read_text())["interface"]
    (image,) = interface["inputs"]
    runner = Interpreter(model_path=artifact, num_threads=1).get_signature_runner()
    data = np.load(test)
    right = {output["name"]: 0.0 for output in interface["outputs"]}
    for index, raw in enumerate(data["raw"]):
        x = raw * interface["normalisation"]["scale"] + interface["normalisation"]["offset"]
        x = x[np.newaxis].astype(np.float32)
        if image["scale"] is not None:
            q = np.round(x / image["scale"]) + image["zero_point"]
            limits = np.iinfo(image["dtype"])
            x = np.clip(q, limits.min, limits.max).astype(image["dtype"])
        answers = runner(**{image["name"]: x})
        for output in interface["outputs"]:
            y = answers[output["name"]][0]
            if output["scale"] is not None:
                y = (y.astype(np.float32) - output["zero_point"]) * output["scale"]
            true = data[f"label of {output['name'].removesuffix('_sigmoid')}"][index]
            if "threshold" in output:  # a yes or no to each label
                right[output["name"]] += np.mean((y > output["threshold"]) == true)
                continue
            above = 0.5 if output["values"] == "probabilities" else 0.0
            found = int(y[0] > above) if len(y) == 1 else int(np.argmax(y))
            label = output["label_names"].index(true) if "label_names" in output else true
            right[output["name"]] += found == label
    assert not any(name.split(".")[0] in ("tensorflow", "keras") for name in sys.modules)
    print(json.dumps({name: count / len(data["raw"]) for name, count in right.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Mixup in the data: applied once, for teacher and student."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from targets_process import Remembering, pictures

import tfdistill as td
from tfdistill._keras import tf, tf_keras


def mixed() -> Any:
    """The data of docs/methods.md."""
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    (lines,) = re.findall(r"test_mixed_views\.py\. -->\n```python\n(.*?)```", page, re.S)
    images, labels = pictures()
    one_hot = np.eye(10, dtype=np.float32)[labels]
    shown = {"tf": tf, "rows": tf.data.Dataset.from_tensor_slices((images, one_hot))}
    exec(lines, shown)
    return shown["train"]


def test_mixed_batches_are_others_in_each_epoch_and_the_same_in_each_program() -> None:
    data, again = mixed(), mixed()
    epochs = [[np.concatenate(parts) for parts in zip(*data, strict=True)] for _ in range(2)]
    assert epochs[0][0].shape == (240, 6, 6, 1)
    np.testing.assert_allclose(epochs[0][1].sum(axis=1), 1, rtol=1e-6)
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    for ours, theirs in zip(epochs, ([*zip(*again, strict=True)] for _ in range(2)), strict=True):
        np.testing.assert_array_equal(ours[0], np.concatenate(theirs[0]))


def test_a_pipeline_asks_the_teacher_about_the_mixed_images(tmp_path: Path) -> None:
    teacher = Remembering()
    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input([6, 6, 1], name="image")
    outputs = tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(image))
    test = pictures(1, 32)
    td.Pipeline(
        distillation=td.Distillation(epochs=2, label_loss_weight=0.1),
        export=td.Export(
            formats=("float32",), limits=td.Limits(max_accuracy_drop=1.0, min_agreement=0.0)
        ),
        baseline=False,
    ).run(
        tf_keras.Model(image, outputs),
        teacher,
        mixed(),
        test=(test[0], np.eye(10, dtype=np.float32)[test[1]]),
        run_dir=tmp_path,
        verbose=0,
    )
    assert teacher.times(pictures()[0]) == 0
    assert sum(teacher.asked.values()) >= 2 * 240
    notes = json.loads((tmp_path / "report.json").read_text())["details"]["notes"]
    assert any("asked at each step: the training data have other values" in note for note in notes)

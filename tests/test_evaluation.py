"""What models say about a test set: `tfdistill.evaluation`."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from tfdistill._keras import tf
from tfdistill.errors import DataError
from tfdistill.evaluation import Evaluation, agreement, evaluate


def _batches(inputs: Any, labels: Any, size: int = 2) -> Any:
    return tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(size)


def test_answers_in_the_order_of_the_set() -> None:
    logits = np.array([[0, 1], [2, 0], [0, 3], [4, 0], [0, 5]], np.float32)
    found = evaluate(
        lambda x: x["left"] - x["right"],
        _batches({"left": logits, "right": np.zeros_like(logits)}, [1, 0, 0, 0, 1]),
    )
    np.testing.assert_array_equal(found.logits, logits)
    np.testing.assert_array_equal(found.predictions, [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(found.labels, [1, 0, 0, 0, 1])
    assert found.accuracy == 0.8


def test_one_logit_is_two_classes() -> None:
    found = Evaluation(np.array([[1], [-1], [2]], np.float32), np.array([1, 0, 0]))
    np.testing.assert_array_equal(found.predictions, [1, 0, 1])
    assert found.per_class_accuracy == (0.5, 1.0)


def test_agreement_is_of_the_same_examples_only() -> None:
    logits = np.eye(4, dtype=np.float32)
    one = Evaluation(logits, np.array([0, 1, 2, 3]))
    assert agreement(one, Evaluation(logits[::-1], one.labels)) == 0.0
    shuffled = Evaluation(logits, np.array([0, 2, 1, 3]))
    with pytest.raises(
        DataError, match=r"`test` must be the same each time.*Received: another label at 2 of 4"
    ):
        agreement(one, shuffled)
    with pytest.raises(DataError, match=r"`test` must be the same.*Received: 4 and 3 labels"):
        agreement(one, Evaluation(logits[:3], one.labels[:3]))


def test_many_evaluations_in_one_process_are_no_reason_to_warn() -> None:
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = tf.get_logger(), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        for _ in range(10):
            evaluate(lambda x: 2.0 * x, _batches(np.ones([3, 2], np.float32), [0, 1, 0]))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said == []

"""Mixed examples: what they are, what they teach, and where they are refused."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from formulas import Array, log_probabilities, soft_targets
from networks import convolutional, encoder, examples, logits_of, perceptron
from quick import only
from scipy import stats

import tfdistill as td
from tfdistill import losses, mixing, stages
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import DataError, ModelError, SettingError
from tfdistill.labels import Labels
from tfdistill.losses.base import Taught
from tfdistill.runs.fingerprint import fingerprint
from tfdistill.runs.stage import Stage
from tfdistill.stages import Student, distiller_of
from tfdistill.teaching import _why_not

LABEL_LOSS = "sparse_categorical_crossentropy"
ANY: Any = td.Mixup
MIXUP: Any = td.Mixup(alpha=0.7, seed=3)
CUTMIX: Any = td.CutMix(seed=3)


def images(count: int = 24) -> tuple[Array, Array, Array]:
    """Images `[count, 8, 8, 1]` no two pixels of which are the same, labels and weights."""
    _, labels, sample_weight = examples(count)
    pixels = np.random.default_rng(2).permutation(count * 64) / (count * 64)
    return pixels.reshape(count, 8, 8, 1).astype(np.float32), labels, sample_weight


def mixed(settings: Any, inputs: Array, labels: Array, step: int = 0) -> tuple[Any, Array]:
    """What is made of a batch, and the places of what each example was mixed with."""
    both = {"logits": Labels(tf.constant(labels)), "order": Labels(tf.range(len(inputs)))}
    batch = settings(tf.constant(inputs), both, {}, step)
    return batch, batch.labels["order"].others.values.numpy()


# --- what they are ---


def test_mixup_is_the_convex_combination_of_the_paper() -> None:
    inputs, labels, _ = examples()
    batch, order = mixed(MIXUP, inputs, labels)
    share = float(batch.labels["logits"].share)
    assert 0.05 < share < 0.95
    assert sorted(order) == [*range(15)]
    expected = share * inputs.astype(np.float64) + (1 - share) * inputs[order]
    np.testing.assert_allclose(batch.inputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch.labels["logits"].values, labels)
    np.testing.assert_array_equal(batch.labels["logits"].others.values, labels[order])


def authors_box(size: tuple[int, int], share: float, row: int, column: int) -> tuple[slice, slice]:
    """As Yun et al. cut it: sides rounded down to pixels, halved, and clipped at the border."""
    slices = []
    for length, centre in zip(size, (row, column), strict=True):
        half = int(length * np.sqrt(1 - share)) // 2
        slices.append(slice(*np.clip([centre - half, centre + half], 0, length)))
    return slices[0], slices[1]


@pytest.mark.parametrize("step", range(8))
def test_cutmix_puts_in_one_box_and_shares_the_labels_by_its_area(step: int) -> None:
    inputs, labels, _ = images()
    batch, order = mixed(CUTMIX, inputs, labels, step)
    others = inputs[order]
    theirs = (batch.inputs.numpy() == others) & (order != np.arange(24))[:, None, None, None]
    inside = theirs.any(axis=(0, 3))
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = np.zeros([8, 8], bool)
    box[np.ix_(rows, columns)] = True  # in one piece, and the same in each image
    assert len(rows) == 0 or rows[-1] - rows[0] + 1 == len(rows)
    expected = np.where(box[..., None], others, inputs)
    np.testing.assert_array_equal(batch.inputs, expected)
    assert float(batch.labels["logits"].share) == pytest.approx(1 - box.mean())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 1.0])
def test_the_box_is_that_of_the_authors(share: float) -> None:
    for row, column in np.ndindex(7, 5):
        expected = np.zeros([7, 5], bool)
        expected[authors_box((7, 5), share, row, column)] = True
        ours = [
            np.array(mixing._covered(centre, length, tf.constant(share)))
            for centre, length in ((row, 7), (column, 5))
        ]
        np.testing.assert_array_equal(ours[0][:, None] & ours[1], expected)


@pytest.mark.parametrize("size", [(8, 8), (4, 20)])
def test_each_pixel_is_the_middle_of_the_box_as_often(size: tuple[int, int]) -> None:
    seeds = tf.stack([tf.zeros([500], tf.int64), tf.range(500, dtype=tf.int64)], axis=1)
    own, share = tf.zeros([1, *size, 1]), tf.constant(0.75)  # the box has half of each side
    drawn = tf.function(
        lambda: tf.map_fn(
            lambda seed: CUTMIX._mixed(own, own + 1.0, share, seed)[0], seeds, tf.float32
        )
    )

    def covered(length: int) -> Array:
        place = np.arange(length)
        boxes = [(place >= c - length // 4) & (place < c + length // 4) for c in range(length)]
        return np.mean(boxes, axis=0)

    expected = np.outer(*map(covered, size))
    np.testing.assert_allclose(drawn().numpy().mean(axis=(0, 1, 4)), expected, atol=0.08)


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 8.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    seeds = tf.stack([tf.zeros([2000], tf.int64), tf.range(2000, dtype=tf.int64)], axis=1)
    drawn = tf.function(
        lambda: tf.map_fn(lambda seed: mixing._beta(alpha, seed), seeds, tf.float32)
    )
    shares = drawn().numpy()
    assert np.isfinite(shares).all()
    if alpha == 0.001:  # of float32 all are 0 or 1, and each of these half of the time
        assert np.mean((shares < 1e-6) | (shares > 1 - 1e-6)) > 0.9
        assert shares.mean() == pytest.approx(0.5, abs=0.05)
        return
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_each_step_and_seed_has_its_own_and_always_the_same(settings: Any) -> None:
    inputs, labels, _ = images()
    first, again, later = (mixed(settings, inputs, labels, step)[0] for step in (0, 0, 1))
    other = mixed(type(settings)(settings.alpha, seed=4), inputs, labels)[0]
    np.testing.assert_array_equal(first.inputs, again.inputs)
    for one in (later, other):
        assert (one.inputs.numpy() != first.inputs.numpy()).any()
        orders = (each.labels["order"].others.values.numpy() for each in (one, first))
        assert np.not_equal(*orders).any()


def test_replicas_mix_their_own_rows_each_in_its_own_way(two_replicas: Any) -> None:
    rows = {0: [1.0, 2.0, 4.0], 1: [1000.0, 2000.0, 4000.0]}
    given = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(rows[context.replica_id_in_sync_group])
    )

    def mix(values: Any) -> Any:
        inputs, labels, _ = MIXUP(values, {"order": Labels(tf.range(3))}, {}, 0)
        return inputs, labels["order"].others.values, labels["order"].share

    @tf.function
    def run() -> Any:
        return two_replicas.run(mix, args=(given,))

    shares = []
    parts = [two_replicas.experimental_local_results(part) for part in tf.nest.flatten(run())]
    for replica, values in enumerate(zip(*parts, strict=True)):
        batch = dict(zip(("inputs", "others", "share"), values, strict=True))
        shares.append(float(batch["share"]))
        own = np.array(rows[replica])
        expected = shares[-1] * own + (1 - shares[-1]) * own[batch["others"].numpy()]
        np.testing.assert_allclose(batch["inputs"], expected, rtol=1e-5)
    assert abs(shares[0] - shares[1]) > 0.01


def test_images_may_lack_their_one_channel() -> None:
    inputs, labels, _ = images(8)  # as many as they have rows and columns
    batch, _ = mixed(CUTMIX, inputs, labels, step=2)
    flat, _ = mixed(CUTMIX, inputs[..., 0], labels, step=2)
    assert 0 < float(batch.labels["logits"].share) < 1
    np.testing.assert_array_equal(flat.inputs, batch.inputs[..., 0])


# --- what they teach ---


def make(settings: Any = MIXUP, student: Any = None, teacher: Any = None, **more: Any) -> Any:
    distiller = td.Distiller(
        student or perceptron(tf_keras),
        teacher or perceptron(keras, units=7, seed=1),
        [losses.SoftTargets(2.0)],
        0.3,
        mixing=settings,
        **more,
    )
    distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS, metrics=["accuracy"])
    return distiller


def trained(distiller: Any, *batch: Any) -> tuple[dict[str, float], list[Array]]:
    logs = distiller.train_on_batch(*batch, return_dict=True)
    return logs, [np.array(weight) for weight in distiller.student.get_weights()]


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_losses_are_the_closed_form(weighted: bool) -> None:
    inputs, labels, weights = examples()
    batch, order = mixed(MIXUP, inputs, labels)
    share, x = float(batch.labels["logits"].share), batch.inputs.numpy()
    s, t = (
        logits_of(model.get_weights(), x)
        for model in (perceptron(tf_keras), perceptron(keras, units=7, seed=1))
    )
    soft_labels = share * np.eye(3)[labels] + (1 - share) * np.eye(3)[labels[order]]
    w = share * weights + (1 - share) * weights[order] if weighted else np.ones(15)
    expected = {
        "label_loss": np.mean(w * -(soft_labels * log_probabilities(s)).sum(axis=1)),
        "soft_targets": np.mean(w * soft_targets(t, s, 2.0)),
        "accuracy": np.mean(s.argmax(axis=1) == labels),
        "teacher_agreement": np.mean(s.argmax(axis=1) == t.argmax(axis=1)),
    }
    logs, _ = trained(make(), inputs, labels, *([weights] if weighted else []))
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5), name
    total = 0.3 * expected["label_loss"] + expected["soft_targets"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


_STEPS = itertools.product(("adversarial", "plain"), ("numbers", "one-hot"), ("cutmix", "mixup"))


@pytest.mark.parametrize(
    ("inputs_are", "form", "kind"),
    only(("adversarial", "one-hot", "cutmix"), of=_STEPS, several=True),
)
def test_a_step_is_that_of_the_mixed_batch_with_soft_labels(
    inputs_are: str, form: str, kind: str
) -> None:
    adversarial = td.Adversarial(0.1) if inputs_are == "adversarial" else None
    if kind == "mixup":
        settings, (inputs, labels, weights) = MIXUP, examples()
        student, teacher = (lambda: perceptron(tf_keras)), perceptron(keras, units=7, seed=1)
    else:
        settings, (inputs, labels, weights) = CUTMIX, images()
        student, teacher = (lambda: convolutional(tf_keras, 3)), convolutional(keras, 6)
    batch, order = mixed(settings, inputs, labels)
    share = float(batch.labels["logits"].share)
    assert 0 < share < 1
    one_hot = np.eye(3, dtype=np.float32)[labels]
    ours = make(settings, student(), teacher, adversarial=adversarial)
    if form == "one-hot":
        ours.compile(tf_keras.optimizers.SGD(0.05), "categorical_crossentropy")
    logs, after = trained(ours, inputs, one_hot if form == "one-hot" else labels, weights)
    theirs = make(None, student(), teacher, adversarial=adversarial)
    theirs.compile(tf_keras.optimizers.SGD(0.05), "categorical_crossentropy")
    other_logs, expected = trained(
        theirs,
        batch.inputs.numpy(),
        share * one_hot + (1 - share) * one_hot[order],
        share * weights + (1 - share) * weights[order],
    )
    assert logs["loss"] == pytest.approx(other_logs["loss"], rel=1e-5)
    for one, other, start in zip(after, expected, student().get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
        assert np.abs(other - start).max() > 1e-4


def test_a_missing_label_counts_nothing_and_the_other_one_its_share() -> None:
    inputs, labels, _ = examples()
    labels = np.where(np.arange(15) % 3 == 0, -1, labels)
    batch, order = mixed(MIXUP, inputs, labels)
    share = float(batch.labels["logits"].share)
    logs = log_probabilities(logits_of(perceptron(tf_keras).get_weights(), batch.inputs.numpy()))

    def values(numbers: Array) -> Array:
        return np.where(numbers == -1, 0, -logs[np.arange(15), numbers])

    expected = np.mean(share * values(labels) + (1 - share) * values(labels[order]))
    ours, _ = trained(make(unlabelled=-1), inputs, labels)
    assert ours["label_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_mixes_nothing() -> None:
    inputs, labels, _ = examples()
    ours, theirs = (
        make(settings).evaluate(inputs, labels, verbose=0, return_dict=True)
        for settings in (MIXUP, None)
    )
    assert ours == theirs


def test_without_labels_the_teacher_is_enough() -> None:
    inputs, labels, _ = examples()
    distiller = td.Distiller(
        perceptron(tf_keras), perceptron(keras, seed=1), [losses.SoftTargets()], 0.0, mixing=MIXUP
    )
    distiller.compile("sgd")
    x = mixed(MIXUP, inputs, labels)[0].inputs.numpy()
    s, t = (logits_of(perceptron(keras, seed=seed).get_weights(), x) for seed in (0, 1))
    logs = distiller.train_on_batch(inputs, return_dict=True)
    assert logs["loss"] == pytest.approx(np.mean(soft_targets(t, s, 4.0)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [MIXUP, CUTMIX],
    ids=["mixup", "cutmix"],
)
def test_every_way_of_running_takes_the_same_steps(settings: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices(images()).batch(6)
    results = []
    for way in ({}, {"run_eagerly": True}, {"steps_per_execution": 4}, {"jit_compile": True}):
        distiller = make(settings, convolutional(tf_keras, 3), convolutional(keras, 6))
        distiller.compile(tf_keras.optimizers.SGD(0.05), LABEL_LOSS, **way)
        history = distiller.fit(data, verbose=0).history
        results.append((history, [np.array(w) for w in distiller.student.get_weights()]))
    for history, weights in results[1:]:
        assert history["loss"] == pytest.approx(results[0][0]["loss"], rel=1e-4)
        for one, other in zip(weights, results[0][1], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_two_replicas_train_an_uneven_batch(two_replicas: Any) -> None:
    with two_replicas.scope():
        distiller = make()
    data = tf.data.Dataset.from_tensor_slices(examples(13)).batch(6)  # the last: 1 and none
    history = distiller.fit(data, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = np.abs(distiller.student.get_weights()[0] - perceptron(tf_keras).get_weights()[0])
    assert moved.max() > 1e-3


# --- in a pipeline ---


def test_each_stage_and_each_seed_has_a_seed_of_its_own() -> None:
    """Whether a run mixes with them a slow test sees."""
    given = Student(perceptron(tf_keras), stage="given", fingerprint="")
    other = type(MIXUP)(MIXUP.alpha, seed=4)
    made: list[Any] = []
    for seed, settings in ((0, MIXUP), (1, MIXUP), (0, other)):
        context: Any = SimpleNamespace(
            teacher=perceptron(keras, seed=1),
            distillation=td.Distillation(mixing=settings),
            steps_per_epoch=1,
            seed=seed,
        )
        for before in (given, dataclasses.replace(given, stage="distillation")):
            made.append(stages._distiller(context, before.model, before, 1).mixing)
    assert len({each.seed for each in made}) == 6
    assert {each.alpha for each in made} == {0.7}


def test_no_targets_are_stored_for_mixed_examples() -> None:
    asked = td.Distillation(mixing=MIXUP)
    data: Any = None  # is not looked at
    assert _why_not(asked, data, views=1, epochs=5) == "Mixup makes other examples at each step"


def run(run_dir: Path, epochs: int = 3, settings: Any = MIXUP, **more: Any) -> Any:
    inputs, labels, _ = examples(60)
    return td.Pipeline(
        distillation=td.Distillation(epochs=epochs, learning_rate=0.05, mixing=settings),
        pruning=td.Pruning(sparsity=0.5, epochs=2),
        export=td.Export(formats=()),
        baseline=False,
        **more,
    ).run(
        perceptron(keras, units=16),
        perceptron(keras, units=7, seed=1),
        (inputs, labels),
        test=(inputs, labels),
        run_dir=run_dir,
        verbose=0,
    )


def weights_of(run_dir: Path) -> list[Array]:
    found = []
    for stage in ("distillation", "pruning", "quantization"):
        with np.load(run_dir / stage / "weights.npz") as arrays:
            found += [arrays[name] for name in arrays.files]
    return found


@pytest.mark.slow
def test_a_stopped_run_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantization = td.Quantization(epochs=1)
    run(tmp_path / "whole", quantization=quantization)
    save = Stage.save_checkpoint

    def stop(self: Any, epoch: int, *args: Any) -> None:
        save(self, epoch, *args)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", quantization=quantization)
    run(tmp_path / "stopped", quantization=quantization)
    ours, theirs = weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole")
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    notes = json.loads((tmp_path / "whole/report.json").read_text())["details"]["notes"]
    assert "The teacher was asked at each step: Mixup makes other examples at each step." in notes
    assert not (tmp_path / "whole/targets").exists()


@pytest.mark.slow
def test_each_stage_and_each_seed_mixes_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def remember(asked: Any, *args: Any, steps: int) -> Any:
        if steps > 1:  # not a look before training
            seeds.append(asked.mixing.seed)
        return distiller_of(asked, *args, steps=steps)

    monkeypatch.setattr("tfdistill.stages.distiller_of", remember)
    others: list[dict[str, Any]] = [{}, {"seed": 1}, {"settings": td.Mixup(0.7, seed=4)}]
    for number, more in enumerate(others):
        run(tmp_path / str(number), epochs=2, **more)
    assert len(set(seeds)) == len(seeds) == 6


# --- refused ---


@pytest.mark.parametrize(
    ("make_settings", "message"),
    [
        (lambda: td.Mixup(0), "`alpha` must be > 0 and finite. Received: 0"),
        (lambda: td.CutMix(np.inf), "`alpha` must be > 0 and finite. Received: inf"),
        (lambda: td.Mixup(seed=-1), "`seed` must be a whole number >= 0. Received: -1"),
        (lambda: ANY(beta=1), "`beta` must be a setting of Mixup"),
        (
            lambda: td.Distillation(mixing=0.2),  # type: ignore[arg-type]
            "`mixing` must be a td.Mixup, a td.CutMix or None. Received: 0.2",
        ),
        (lambda: make("mixup"), "`mixing` must be a td.Mixup, a td.CutMix or None."),
        (
            lambda: td.Distillation(losses=[losses.DecoupledKD()], mixing=MIXUP),
            "`mixing` must be None for losses that read one label of each example. "
            "Received: Mixup and decoupled_kd. A mixed example has two.",
        ),
        (
            lambda: td.Distiller(
                perceptron(tf_keras), None, [losses.VirtualTeacher()], mixing=CUTMIX
            ),
            "read one label of each example. Received: CutMix and virtual_teacher.",
        ),
        (
            lambda: td.Distillation(mixing=MIXUP, store_targets=True),
            '`store_targets` must be False or "auto" for `mixing`. '
            "Received: store_targets=True and Mixup(alpha=0.7, seed=3).",
        ),
    ],
)
def test_setting_is_refused(make_settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        make_settings()


def of_two_inputs() -> Any:
    left, right = (tf_keras.layers.Input([4], name=name) for name in ("left", "right"))
    joined = tf_keras.layers.Concatenate()([left, right])
    return tf_keras.Model([left, right], tf_keras.layers.Dense(3)(joined))


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        (
            lambda: encoder(tf_keras),
            MIXUP,
            "one input, of floats, for `mixing`. Received: inputs i",
        ),
        (of_two_inputs, MIXUP, "Received: inputs float32, float32. Texts cannot be mixed."),
        (
            lambda: perceptron(tf_keras),
            CUTMIX,
            "`student` must take images [batch, height, width, channels] for td.CutMix. "
            "Received: inputs [batch, 4].",
        ),
    ],
    ids=["texts", "two inputs", "no images"],
)
def test_students_are_refused(student: Any, settings: Any, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        make(settings, student())
    pipeline = td.Pipeline(distillation=td.Distillation(mixing=settings))
    with pytest.raises(ModelError, match=re.escape(message)):
        pipeline.check(student(), student())


def test_data_are_refused() -> None:
    inputs, labels, _ = examples()
    with pytest.raises(
        DataError, match=r"one input, of floats, for `mixing`\. Received: inputs int32\. Cast it"
    ):
        make().fit((inputs > 0).astype(np.int32), labels, verbose=0)
    teacher = losses.Outputs(tf.zeros([15, 3]), {})
    data = tf.data.Dataset.from_tensors((Taught(tf.constant(inputs), teacher), labels))
    with pytest.raises(
        DataError, match=r"`data` must hold no stored targets for `mixing`.*Received: a batch with"
    ):
        make().fit(data, verbose=0)


def test_it_is_in_the_fingerprint_of_a_stage() -> None:
    prints = [
        fingerprint(td.Distillation(mixing=each))
        for each in (None, td.Mixup(0.2), td.Mixup(0.3), td.Mixup(0.2, seed=1), td.CutMix(0.2))
    ]
    assert len(set(prints)) == 5
    assert fingerprint(td.Distillation(mixing=td.Mixup(np.float64(0.2)))) == prints[1]


def test_the_methods_page_shows_what_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"test_mixing\.py\. -->\n```python\n(.*?)```", page, re.S)
    assert isinstance(eval(lines, {"td": td}).mixing, td.Mixup)


def test_docstring_examples_are_true() -> None:
    found = doctest.testmod(mixing)
    assert found.failed == 0
    assert found.attempted > 2

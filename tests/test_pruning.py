"""Pruning: its settings, its plan, its three patterns, and what is left after stripping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from quick import only

from tfdistill._keras import tf, tf_keras, tfmot
from tfdistill.distiller import Distiller
from tfdistill.errors import ModelError, SettingError, SparsityError
from tfdistill.losses import SoftTargets
from tfdistill.pruning import (
    KernelZeros,
    Pruning,
    PruningPlan,
    kernel_zeros,
    plan_pruning,
    require_sparsity,
    strip,
    wrap_for_pruning,
)

LAYERS = tf_keras.layers
PATTERNS = {
    "unstructured": Pruning(sparsity=0.75),
    "2:4": Pruning(sparsity=0.5, pattern="2:4"),
    "block": Pruning(sparsity=0.75, pattern="block", block_size=(4, 2)),
}
every_pattern = pytest.mark.parametrize("pruning", PATTERNS.values(), ids=PATTERNS)
most_patterns = pytest.mark.parametrize(
    "pruning",
    [
        pytest.param(pruning, marks=pytest.mark.slow if name == "unstructured" else [])
        for name, pruning in PATTERNS.items()
    ],
    ids=PATTERNS,
)


def sequence(shape: list[int], *layers: Any) -> Any:
    inputs = tensor = LAYERS.Input(shape, name="image")
    for layer in layers:
        tensor = layer(tensor)
    return tf_keras.Model(inputs, tensor)


def convolutional() -> Any:
    """Every kind of kernel, of sizes that the groups and blocks of the patterns do not divide."""
    return sequence(
        [7, 7, 3],
        LAYERS.Conv2D(6, 3, name="convolution"),
        LAYERS.BatchNormalization(),
        LAYERS.Activation("tanh"),
        LAYERS.Conv2D(8, 1, name="pointwise"),
        LAYERS.SeparableConv2D(7, 3, name="separable"),
        LAYERS.DepthwiseConv2D(3, name="depthwise"),
        LAYERS.Flatten(),
        LAYERS.Dense(8, activation="tanh", name="hidden"),
        LAYERS.Dense(3, name="logits"),
    )


def fit(
    wrapped: Any,
    *,
    epochs: int = 1,
    initial_epoch: int = 0,
    seed: int = 0,
    learning_rate: float = 0.01,
) -> None:
    """Three steps an epoch on random numbers."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=[12, *wrapped.inputs[0].shape[1:]]).astype(np.float32)
    targets = generator.normal(size=[12, *wrapped.outputs[0].shape[1:]]).astype(np.float32)
    wrapped.compile(tf_keras.optimizers.SGD(learning_rate), "mse")
    wrapped.fit(
        inputs,
        targets,
        batch_size=4,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )


def prune(model: Any, pruning: Pruning) -> tuple[Any, PruningPlan]:
    plan = plan_pruning(model, pruning)
    wrapped = wrap_for_pruning(model, pruning, plan, steps=3)
    fit(wrapped)
    return strip(wrapped), plan


def kernels(model: Any, plan: PruningPlan) -> dict[str, np.ndarray]:
    attributes = {"separable": "pointwise_kernel"}
    return {
        name: getattr(model.get_layer(name), attributes.get(name, "kernel")).numpy()
        for name in plan.pruned
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0}, r"`sparsity` must be in \(0, 1\)\. Received: 0\."),
        ({"sparsity": 1.0}, r"`sparsity` must be in \(0, 1\)\. Received: 1\.0\."),
        ({"sparsity": -0.5}, r"`sparsity` must be in \(0, 1\)\. Received: -0\.5\."),
        ({"sparsity": float("nan")}, r"`sparsity` must be in \(0, 1\)\. Received: nan\."),
        ({"sparsity": "0.5"}, r"`sparsity` must be in \(0, 1\)\. Received: '0\.5'\."),
        ({"epochs": 0}, r"`epochs` must be a whole number >= 1\. Received: 0\."),
        ({"epochs": 1.5}, r"`epochs` must be a whole number >= 1\. Received: 1\.5\."),
        (
            {"pattern": "4:2"},
            r"`pattern` must be one of \('unstructured', '2:4', 'block'\)\. .*4:2",
        ),
        ({"pattern": "2:4"}, r'`sparsity` must be 0\.5 for the pattern "2:4"\. Received: 0\.75\.'),
        ({"block_size": (0, 4)}, r"`block_size` must be two whole numbers >= 1\. .*\(0, 4\)\."),
        (
            {"block_size": (1.5, 2)},
            r"`block_size` must be two whole numbers >= 1\. .*\(1\.5, 2\)\.",
        ),
        ({"block_size": (4,)}, r"`block_size` must be two whole numbers >= 1\. Received: \(4,\)\."),
        ({"block_size": 4}, r"`block_size` must be two whole numbers >= 1\. Received: 4\."),
        ({"ramp": 0.0}, r"`ramp` must be in \(0, 1\]\. Received: 0\.0\."),
        ({"ramp": 1.1}, r"`ramp` must be in \(0, 1\]\. Received: 1\.1\."),
        ({"ramp": None}, r"`ramp` must be in \(0, 1\]\. Received: None\."),
        ({"learning_rate": 0.0}, r"`learning_rate` must be a finite number > 0\. Received: 0\.0\."),
        (
            {"skip": "logits"},
            r"`skip` must be a list of layer names\. Received: 'logits'\. Such as",
        ),
        ({"skip": [1]}, r"`skip` must be a list of layer names\. Received: \[1\]\."),
        ({"ramp": True}, r"`ramp` must be in \(0, 1\]\. Received: True\."),
        ({"block_size": (True, 4)}, r"`block_size` must be two whole numbers >= 1\. .*True"),
        ({"skip": None}, r"`skip` must be a list of layer names\. Received: None\."),
        ({"sparsty": 0.5}, r"`sparsty` must be a setting of Pruning\. .*Did you mean sparsity\b"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Pruning(**settings)


def test_a_layer_to_skip_must_be_in_the_model() -> None:
    with pytest.raises(
        ModelError, match=r"`logitz` must be a layer of the student\. .*nearest names are: logits"
    ):
        plan_pruning(convolutional(), Pruning(skip=["logitz"]))


def test_the_plan_says_why_a_layer_is_left_dense() -> None:
    model = sequence(
        [8, 8, 3],
        LAYERS.Conv2D(8, 3, name="first"),
        LAYERS.BatchNormalization(name="normalization"),
        LAYERS.DepthwiseConv2D(3, name="depthwise"),
        LAYERS.Conv2DTranspose(8, 3, name="transposed"),
        LAYERS.Conv2D(8, 3, trainable=False, name="frozen"),
        LAYERS.Conv2D(8, 1, name="pruned"),
        LAYERS.Reshape([16, 8]),
        LAYERS.Conv1D(4, 3, name="rank_3"),
        LAYERS.GlobalAveragePooling1D(),
        LAYERS.Dense(3, name="logits"),
    )
    before = [dict(vars(layer)) for layer in model.layers]

    plan = plan_pruning(model, Pruning(sparsity=0.5, pattern="2:4", skip=["logits"]))

    assert plan.pruned == ("pruned",)
    assert plan.left_dense == {
        "first": "fewer than four input channels hold no group of four",
        "depthwise": "depthwise kernels hold few of a model's weights, each of which counts",
        "transposed": "the last axis of a Conv2DTranspose kernel is its inputs, not its outputs",
        "frozen": "frozen: `trainable` is False",
        "rank_3": "the pattern '2:4' is for kernels of rank 2 and 4",
        "logits": "named in `skip`",
    }
    assert [dict(vars(layer)) for layer in model.layers] == before

    unstructured = plan_pruning(model, Pruning())
    assert unstructured.pruned == ("first", "transposed", "pruned", "rank_3", "logits")


def test_a_kernel_too_small_for_the_pattern_is_left_dense() -> None:
    model = sequence([4], LAYERS.Dense(4, name="small"), LAYERS.Dense(64, name="large"))

    plan = plan_pruning(model, Pruning(pattern="block", block_size=(4, 4)))

    assert plan.left_dense == {"small": "it has too few blocks for a sparsity of 0.75"}


def test_something_must_be_left_to_prune() -> None:
    model = sequence([4], LAYERS.Dense(4, name="logits"))
    with pytest.raises(
        SettingError, match=r"at least one layer to prune\. Received: logits: named in `skip`\."
    ):
        plan_pruning(model, Pruning(skip=["logits"]))
    with pytest.raises(SettingError, match=r"Received: no layer with a kernel\."):
        plan_pruning(sequence([4], LAYERS.ReLU()), Pruning())


def zeros_of_unstructured(kernel: np.ndarray) -> None:
    assert np.sum(kernel == 0) == kernel.size - max(1, round(kernel.size * 0.25))


def zeros_of_2_4(kernel: np.ndarray) -> None:
    """Two zeros in each whole group of four; of what is left over at most two remain."""
    rows = np.moveaxis(np.reshape(kernel, [-1, *kernel.shape[-2:]]), 1, -1)
    for row in np.reshape(rows, [-1, rows.shape[-1]]):
        for start in range(0, len(row), 4):
            group = row[start : start + 4]
            assert np.sum(group != 0) == min(2, len(group))


def zeros_of_block(kernel: np.ndarray) -> None:
    """Blocks of 4 x 2 in the matrix [inputs, outputs] are whole or gone."""
    matrix = np.reshape(kernel, [-1, kernel.shape[-1]])
    blocks = [
        matrix[row : row + 4, column : column + 2]
        for row in range(0, matrix.shape[0], 4)
        for column in range(0, matrix.shape[1], 2)
    ]
    gone = [block for block in blocks if np.all(block == 0)]
    assert len(gone) == len(blocks) - max(1, round(len(blocks) * 0.25))
    assert np.sum(matrix == 0) == sum(block.size for block in gone)


CHECKS: dict[str, Callable[[np.ndarray], None]] = {
    "unstructured": zeros_of_unstructured,
    "2:4": zeros_of_2_4,
    "block": zeros_of_block,
}


@every_pattern
def test_pruned_kernels_have_the_pattern(pruning: Pruning) -> None:
    model = convolutional()
    given = [weight.copy() for weight in model.get_weights()]
    plan = plan_pruning(model, pruning)
    wrapped = wrap_for_pruning(model, pruning, plan, steps=3)
    fit(wrapped)
    inputs = np.random.default_rng(1).normal(size=[5, 7, 7, 3]).astype(np.float32)
    outputs = wrapped(inputs, training=False)

    stripped = strip(wrapped)

    pruned = kernels(stripped, plan)
    first = [] if pruning.pattern == "2:4" else ["convolution"]  # it has three input channels
    assert list(pruned) == [*first, "pointwise", "separable", "hidden", "logits"]
    started = kernels(model, plan)
    for name, kernel in pruned.items():
        CHECKS[pruning.pattern](kernel)
        # All but those whose output is pruned away.
        assert np.mean((kernel != started[name])[kernel != 0]) > 0.4, f"{name}: not trained"
    require_sparsity(stripped, pruning, plan)
    counts = kernel_zeros(stripped)
    assert {n: counts[n] for n in pruned} == {
        n: KernelZeros(int(np.sum(k == 0)), k.size) for n, k in pruned.items()
    }
    assert not np.any(stripped.get_layer("depthwise").get_weights()[0] == 0)

    # Nothing of the wrappers is left, and nothing of it came to the model given.
    for part in ("name", "__class__"):
        assert [getattr(layer, part) for layer in stripped.layers] == [
            getattr(layer, part) for layer in model.layers
        ]
    np.testing.assert_array_equal(stripped(inputs, training=False), outputs)
    for weight, before in zip(model.get_weights(), given, strict=True):
        np.testing.assert_array_equal(weight, before)


@pytest.mark.parametrize("shape", only((16, 1), of=[(4, 8), (16, 1), (1, 16)]))
def test_blocks_of_a_matrix_one_block_high_or_wide(shape: tuple[int, int]) -> None:
    """tfmot's own block pruning fails here: it squeezes the axis away."""
    size = (4, 1) if shape[0] > 1 else (1, 4)
    pruning = Pruning(pattern="block", block_size=size)

    stripped, plan = prune(sequence([shape[0]], LAYERS.Dense(shape[1], name="logits")), pruning)

    count = shape[0] * shape[1]
    assert kernel_zeros(stripped) == {"logits": KernelZeros(count * 3 // 4, count)}
    require_sparsity(stripped, pruning, plan)
    with pytest.raises(ValueError, match=r"rank.2"):
        fit(
            tfmot.sparsity.keras.prune_low_magnitude(
                sequence([shape[0]], LAYERS.Dense(shape[1])), block_size=size
            )
        )


def test_tfmot_still_refuses_blocks_of_a_convolution() -> None:
    """If this fails, blocks may be left to tfmot."""
    model = sequence([7, 7, 3], LAYERS.Conv2D(8, 3))
    with pytest.raises(ValueError, match="2-dimensional weights"):
        tfmot.sparsity.keras.prune_low_magnitude(model, block_size=(4, 2))


def test_weights_of_one_size_are_pruned_as_others() -> None:
    """A kernel of hundreds of thousands of weights has two of the threshold's size by chance."""
    kernel = np.tile([0.5, -0.5, 0.5, -0.5, 0.1, -0.7], [8, 1])
    model = sequence([8], LAYERS.Dense(6, name="logits"))
    model.get_layer("logits").set_weights([kernel, np.zeros(6)])
    pruning = Pruning()
    plan = plan_pruning(model, pruning)

    def pruned(wrapped: Any) -> np.ndarray:
        fit(wrapped, learning_rate=0.0)
        return strip(wrapped).get_layer("logits").get_weights()[0]

    ours = wrap_for_pruning(model, pruning, plan, steps=1)
    schedule = ours.layers[-1].pruning_schedule
    found = pruned(ours)
    assert np.count_nonzero(found == 0) == 36
    np.testing.assert_array_equal(found[:, 5], kernel[:, 5].astype(np.float32))  # the largest

    theirs = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    assert np.count_nonzero(pruned(theirs) == 0) == 8  # not even half of 36


@pytest.mark.parametrize("steps", [1, 3, 57, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_sparsity_is_reached_in_any_number_of_steps(steps: int) -> None:
    model = sequence([8], LAYERS.Dense(6, name="logits"))
    pruning = Pruning()
    plan = plan_pruning(model, pruning)
    wrapped = wrap_for_pruning(model, pruning, plan, steps)
    wrapped.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((tf.random.normal([4, 8]), tf.random.normal([4, 6])))

    wrapped.fit(
        data.repeat(),
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )

    assert kernel_zeros(strip(wrapped)) == {"logits": KernelZeros(36, 48)}


@pytest.mark.parametrize("ramp", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 57, 425, 1000, 12345])
def test_the_last_update_is_one_at_full_sparsity(steps: int, ramp: float) -> None:
    model = sequence([8], LAYERS.Dense(6, name="logits"))
    pruning = Pruning(sparsity=0.9, ramp=ramp)

    wrapped = wrap_for_pruning(model, pruning, plan_pruning(model, pruning), steps)

    schedule = wrapped.layers[-1].pruning_schedule
    updates, sparsity = schedule(tf.constant(schedule.end_step))
    assert 1 <= schedule.end_step <= max(1, round(steps * ramp))
    assert bool(updates)
    assert float(sparsity) == np.float32(0.9)


def test_a_naive_schedule_misses_its_own_end() -> None:
    decay = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.9, 0, end_step=255, frequency=2)
    updates = [step for step in range(256) if decay(tf.constant(step))[0]]
    assert updates[-1] == 254
    assert decay(tf.constant(254))[1] < np.float32(0.9)

    model = sequence([8], LAYERS.Dense(6, name="logits"))
    plain = tfmot.sparsity.keras.prune_low_magnitude(
        model, tfmot.sparsity.keras.PolynomialDecay(0.0, 0.75, 0, end_step=3)
    )
    fit(plain)  # an update only every 100 steps
    plan = PruningPlan(("logits",))
    with pytest.raises(SparsityError, match="logits/kernel: 0 of 36"):
        require_sparsity(strip(plain), Pruning(), plan)


@most_patterns
def test_a_zero_that_moved_is_noticed_and_its_kernel_named(pruning: Pruning) -> None:
    """Counting zeros is not enough: for 2:4 and blocks one may have moved to another place."""
    model = sequence([8], LAYERS.Dense(8, name="hidden"), LAYERS.Dense(8, name="logits"))
    stripped, plan = prune(model, pruning)
    require_sparsity(stripped, pruning, plan)
    layer = stripped.get_layer("hidden")
    kernel, bias = layer.get_weights()
    if pruning.pattern != "unstructured":
        remaining = np.argwhere(kernel)[-1]
        kernel[tuple(remaining)] = 0
    kernel[tuple(np.argwhere(kernel == 0)[0])] = 0.5
    layer.set_weights([kernel, bias])

    with pytest.raises(
        SparsityError, match=rf"`sparsity` must reach {pruning.sparsity} .*: hidden/kernel: \d+ of"
    ) as raised:
        require_sparsity(stripped, pruning, plan)
    assert "logits" not in str(raised.value)


@pytest.mark.parametrize("pattern", ["unstructured", pytest.param("2:4", marks=pytest.mark.slow)])
def test_pruning_goes_on_from_the_weights_of_a_checkpoint(pattern: str) -> None:
    pruning = PATTERNS[pattern]
    model = sequence([8], LAYERS.Dense(8, name="hidden"), LAYERS.Dense(8, name="logits"))
    plan = plan_pruning(model, pruning)
    through, first, second = (wrap_for_pruning(model, pruning, plan, steps=9) for _ in range(3))
    fit(through, epochs=3)

    fit(first, epochs=1)
    first.evaluate(np.ones([4, 8]), np.ones([4, 8]), verbose=0)  # moves nothing
    tf_keras.backend.batch_set_value(
        list(zip(second.weights, [weight.numpy() for weight in first.weights], strict=True))
    )
    fit(second, epochs=3, initial_epoch=1)

    assert [int(layer.pruning_step.numpy()) for layer in second.layers[1:]] == [9, 9]
    for weight, expected in zip(second.weights, through.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected.numpy(), err_msg=weight.name)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["block", "unstructured"])
def test_two_replicas_prune_as_one_does(
    pattern: str, small_tf_keras_model: Any, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = digits[0][:48], digits[1][:48]
    given = small_tf_keras_model(normalized=False).get_weights()
    taught = small_tf_keras_model(filters=2).get_weights()
    pruning = PATTERNS[pattern]

    def run(strategy: Any) -> tuple[Any, dict[str, Any]]:
        with strategy.scope():
            model = small_tf_keras_model(normalized=False)
            model.set_weights(given)
            teacher = small_tf_keras_model(filters=2)
            teacher.set_weights(taught)
            plan = plan_pruning(model, pruning)
            wrapped = wrap_for_pruning(model, pruning, plan, steps=6)
            distiller = Distiller(wrapped, teacher, [SoftTargets(temperature=2.0)], 0.5)
            distiller.compile(
                tf_keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy"
            )
        history = distiller.fit(
            images,
            labels,
            batch_size=16,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=(images, labels),
            callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
        ).history
        stripped = strip(distiller.training_student)  # outside of the strategy's scope
        require_sparsity(stripped, pruning, plan)
        return stripped, history

    one, logs_of_one = run(tf.distribute.get_strategy())
    # Collectives of several strategies in one process are mixed up; this needs none.
    reduction = tf.distribute.ReductionToOneDevice()
    two, logs_of_two = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction))

    assert kernel_zeros(one) == kernel_zeros(two)
    for weight, expected in zip(two.get_weights(), one.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)
    for name, values in logs_of_one.items():
        np.testing.assert_allclose(logs_of_two[name], values, atol=1e-5, err_msg=name)


# ---------------------------------------------------------------------------------------------
# Wrappers and masks


@pytest.mark.slow  # much like the others
def test_kernels_inside_of_wrappers_are_pruned() -> None:
    inner = sequence([6, 4], LAYERS.Conv1D(8, 3, name="inner"), LAYERS.Flatten())
    kept = {"return_sequences": True, "unroll": True}
    frozen = LAYERS.SimpleRNN(4, go_backwards=True, trainable=False, **kept)
    model = sequence(
        [2, 6, 4],
        LAYERS.TimeDistributed(inner, name="model"),
        LAYERS.TimeDistributed(LAYERS.Dense(8), name="dense"),
        LAYERS.Bidirectional(LAYERS.SimpleRNN(4, **kept), name="both"),
        LAYERS.Bidirectional(LAYERS.SimpleRNN(4, **kept), backward_layer=frozen, name="half"),
        LAYERS.TimeDistributed(LAYERS.LayerNormalization(), name="normalized"),
    )
    pruning = Pruning(sparsity=0.75)
    stripped, plan = prune(model, pruning)

    assert plan.pruned == ("model", "dense", "both", "half")
    assert plan.left_dense == {}
    require_sparsity(stripped, pruning, plan)
    half = stripped.get_layer("half")
    shares = [
        np.mean(weight.numpy() == 0)
        for name in ("model", "dense", "both")
        for weight in stripped.get_layer(name).weights
        if "kernel" in weight.name
    ]
    shares += [np.mean(weight == 0) for weight in half.forward_layer.get_weights()[:2]]
    assert len(shares) == 8
    assert min(shares) >= 0.75
    assert not any(np.any(weight == 0) for weight in half.backward_layer.get_weights()[:2])
    assert np.all(np.isfinite(stripped(np.ones([2, 2, 6, 4], np.float32))))


def attended(values: Any) -> Any:
    return LAYERS.MultiHeadAttention(1, 4, name="attention")(values, values)


@pytest.mark.parametrize(
    "read",
    [lambda h: LAYERS.Bidirectional(LAYERS.SimpleRNN(4, unroll=True))(h), attended],
    ids=["both ways", "attention"],
)
def test_masks_are_handed_on_while_pruning(read: Callable[[Any], Any]) -> None:
    """tfmot's wrapper drops that of an embedding, and gives one to layers that take none."""
    words = LAYERS.Input([6], dtype="int32", name="words")
    hidden = LAYERS.Embedding(9, 8, mask_zero=True, name="embedding")(words)
    hidden = read(LAYERS.Dense(8, name="between")(hidden))
    if len(hidden.shape) == 3:
        hidden = LAYERS.GlobalAveragePooling1D()(hidden)
    model = tf_keras.Model(words, LAYERS.Dense(3, name="logits")(hidden))
    pruning = Pruning(sparsity=0.5)
    wrapped = wrap_for_pruning(model, pruning, plan_pruning(model, pruning), steps=3)
    padded = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]])

    np.testing.assert_allclose(wrapped(padded), model(padded), rtol=1e-5, atol=1e-6)

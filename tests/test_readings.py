"""What losses read of layers: attention scores, weights, masks; and matching them by "auto"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from formulas import Array
from networks import (
    HEADS,
    STEPS,
    WIDTH,
    convolutional,
    encoder,
    examples,
    perceptron,
    sentences,
)

import tfdistill as td
from tfdistill import losses
from tfdistill._keras import keras, tf, tf_keras
from tfdistill.errors import ModelError, SettingError
from tfdistill.losses.layers import LayerOutput
from tfdistill.outputs import ModelView
from tfdistill.pruning import Pruning, plan_pruning, wrap_for_pruning
from tfdistill.quantization import Quantization, quantize

each_library = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def scores_of(model: Any, numbers: Array) -> Array:
    """`[batch, heads, queries, keys]` in float64, from the weights."""
    table, *rest = (np.array(weight, np.float64) for weight in model.get_weights())
    query_kernel, query_bias, key_kernel, key_bias = rest[:4]
    states = table[numbers]
    query = np.einsum("bsw,whd->bhsd", states, query_kernel) + query_bias[:, None]
    key = np.einsum("bsw,whd->bhsd", states, key_kernel) + key_bias[:, None]
    return np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])


def read(model: Any, *names: str, inputs: Any, role: str = "student") -> losses.Outputs:
    return ModelView(model, role=role, layers=names)(inputs, training=False)[1]


# --- attention scores ---


@each_library
def test_scores_are_those_before_the_softmax(library: Any) -> None:
    model, numbers = encoder(library, dropout=0.9), sentences()
    view = ModelView(model, role="teacher", layers=["attention:scores", "attention"])
    assert view.shapes.features["attention:scores"] == (HEADS, STEPS, STEPS)
    _, said = view(numbers, training=True)
    np.testing.assert_allclose(
        said.features["attention:scores"], scores_of(model, numbers), rtol=1e-4, atol=1e-4
    )
    assert said.features["attention"].shape == (4, STEPS, WIDTH)


@each_library
def test_softmax_of_the_scores_is_what_keras_says(library: Any) -> None:
    model, numbers = encoder(library, masked=False), sentences()
    ours = tf.nn.softmax(
        read(model, "attention:scores", inputs=numbers).features["attention:scores"]
    )
    states = model.get_layer("embedding")(numbers)
    _, theirs = model.get_layer("attention")(states, states, return_attention_scores=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@each_library
def test_nothing_is_added_to_the_model(library: Any) -> None:
    model = encoder(library)
    attention = model.get_layer("attention")
    before = len(attention._inbound_nodes), len(attention._outbound_nodes)
    attributes = set(vars(attention))
    read(model, "attention:scores", inputs=sentences())
    assert (len(attention._inbound_nodes), len(attention._outbound_nodes)) == before
    assert set(vars(attention)) == attributes


@pytest.mark.parametrize("causal", [False, True])
def test_pairs_that_may_not_be_looked_at_are_masked(causal: bool) -> None:
    numbers = sentences()
    model = encoder(tf_keras, **({"use_causal_mask": True} if causal else {}))
    mask = read(model, "attention:scores", inputs=numbers).masks["attention:scores"]
    counted = numbers > 0
    expected = counted[:, :, None] & counted[:, None, :]
    if causal:
        expected &= np.tril(np.ones([STEPS, STEPS], bool))
    assert mask.shape == (4, 1, STEPS, STEPS)
    np.testing.assert_array_equal(mask[:, 0], expected)
    plain = read(encoder(tf_keras, masked=False), "attention:scores", inputs=numbers)
    assert plain.masks == {}


def test_a_mask_of_the_call_counts_too() -> None:
    layers = tf_keras.layers
    states, allowed = layers.Input([STEPS, WIDTH]), layers.Input([STEPS, STEPS], dtype="bool")
    attended = layers.MultiHeadAttention(HEADS, 4, name="attention")(
        query=states, value=states, attention_mask=allowed
    )
    outputs = layers.Dense(3)(layers.GlobalAveragePooling1D()(attended))
    model = tf_keras.Model([states, allowed], outputs)
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(2, STEPS, WIDTH)).astype(np.float32), rng.random([2, 5, 5]) > 0.5]
    said = read(model, "attention:scores", inputs=given)
    np.testing.assert_array_equal(said.masks["attention:scores"][:, 0], given[1])


@pytest.mark.slow  # as a student in float
@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_quantized_student_has_its_scores(causal: bool) -> None:
    numbers = sentences()
    call = {"use_causal_mask": True} if causal else {}
    student = encoder(tf_keras, **call)
    quantized = quantize(student, Quantization(), sparse=False).model
    view = ModelView(quantized, role="student", layers=["attention:scores"])
    view(numbers, training=True)  # finds the ranges
    for _ in range(20):
        _, said = view(numbers, training=True)
    hidden = read(quantized, "mixed", "rest", "pooled", "embedding", inputs=numbers).masks
    assert set(hidden) == {"mixed", "rest", "embedding"}  # the model carries none any more
    for each in hidden.values():
        np.testing.assert_array_equal(each, numbers > 0)
    before = read(student, "attention:scores", inputs=numbers)
    mask = before.masks["attention:scores"].numpy()
    np.testing.assert_array_equal(said.masks["attention:scores"], mask)
    ours, theirs = (np.where(mask, each.features["attention:scores"], 0) for each in (said, before))
    np.testing.assert_allclose(ours, theirs, atol=0.1 * np.abs(theirs).max())
    assert np.abs(theirs).max() > 1


def test_a_pruned_student_has_its_scores() -> None:
    student, numbers = encoder(tf_keras, masked=False), sentences()
    settings = Pruning(sparsity=0.5)
    wrapped = wrap_for_pruning(student, settings, plan_pruning(student, settings), 10)
    before, after = (read(m, "attention:scores", inputs=numbers) for m in (student, wrapped))
    np.testing.assert_allclose(
        after.features["attention:scores"], before.features["attention:scores"], rtol=1e-5
    )


@each_library
def test_scores_of_other_layers_are_refused(library: Any) -> None:
    with pytest.raises(
        ModelError, match=r"`mixed` must be a MultiHeadAttention layer of the teacher\. Received: "
    ):
        ModelView(encoder(library), role="teacher", layers=["mixed:scores"])
    with pytest.raises(ModelError, match=r"`atention` must be a layer of the teacher.*attention"):
        ModelView(encoder(library), role="teacher", layers=["atention:scores"])
    layers = library.layers
    states = layers.Input([STEPS, WIDTH])
    attention = layers.MultiHeadAttention(HEADS, 4, name="attention")
    twice = attention(attention(states, states), states)
    model = library.Model(states, layers.Dense(3)(layers.GlobalAveragePooling1D()(twice)))
    with pytest.raises(ModelError, match=r"`attention` must be used once in the teacher, on seq"):
        ModelView(model, role="teacher", layers=["attention:scores"])


def test_layers_of_other_heads_or_lengths_are_refused() -> None:
    loss = losses.AttentionScores("attention", "attention")
    with pytest.raises(ModelError, match=r"must have as many heads each\. Received: teacher layer"):
        td.Distiller(encoder(tf_keras), encoder(keras, heads=3), [loss])
    shapes = [losses.Shapes((3,), {"attention:scores": (2, 5, keys)}) for keys in (5, 6)]
    with pytest.raises(ModelError, match=r"must agree in every axis but the last\. Received"):
        loss.build(*shapes)


# --- weights ---


def test_weights_are_those_that_are_trained() -> None:
    for library in (keras, tf_keras):
        model = perceptron(library, normalized=True)
        model.trainable = False
        inputs, *_ = examples()
        names = ["hidden:weights", "normalization:weights"]
        said = read(model, *names, inputs=inputs)
        kernel, bias, gamma, beta, *_ = model.get_weights()
        for values, expected in zip(
            [*said.features[names[0]], *said.features[names[1]]],
            [kernel, bias, gamma, beta],
            strict=True,
        ):
            np.testing.assert_array_equal(values, expected)


def test_weights_are_pulled_to_those_of_the_teacher() -> None:
    student, teacher = perceptron(tf_keras), perceptron(keras, seed=1, name="teacher")
    inputs, labels, sample_weight = examples()
    loss = losses.WeightMSE(["hidden", "logits"], ["hidden", "logits"], weight=0.5)
    distiller = td.Distiller(student, teacher, [loss], label_loss_weight=0)
    distiller.compile(tf_keras.optimizers.SGD(0.5))

    def distances() -> list[float]:
        ours, theirs = student.get_weights(), teacher.get_weights()
        squares = [((a - b) ** 2).ravel() for a, b in zip(ours, theirs, strict=True)]
        return [np.concatenate(squares[:2]).mean(), np.concatenate(squares[2:]).mean()]

    expected = np.mean(distances())
    logs = distiller.evaluate(inputs, verbose=0, return_dict=True)
    assert logs["weight_mse"] == pytest.approx(expected, rel=1e-5)
    data = tf.data.Dataset.from_tensors((inputs, labels, sample_weight))
    weighted = distiller.evaluate(data, verbose=0, return_dict=True)
    assert weighted["weight_mse"] == pytest.approx(expected * sample_weight.mean(), rel=1e-5)
    before = distances()
    start = [np.array(weight) for weight in student.get_weights()]
    distiller.fit(inputs, epochs=1, batch_size=15, verbose=0)
    # One step: -learning rate x weight x 2 / n of the difference, in the mean of two pairs.
    kernel = start[0] - 0.5 * 0.5 * 0.5 * 2 / 25 * (start[0] - teacher.get_weights()[0])
    np.testing.assert_allclose(student.get_weights()[0], kernel, rtol=1e-4, atol=1e-6)
    distiller.fit(inputs, epochs=20, verbose=0)
    assert all(after < start for after, start in zip(distances(), before, strict=True))


def test_weights_of_wrapped_layers_are_read() -> None:
    student = perceptron(tf_keras)
    settings = Pruning(sparsity=0.5)
    pruned = wrap_for_pruning(student, settings, plan_pruning(student, settings), 10)
    quantized = quantize(student, Quantization(), sparse=False).model
    inputs, *_ = examples()
    quantized(inputs, training=True)
    for model in (pruned, quantized):
        kernel, bias = read(model, "hidden:weights", inputs=inputs).features["hidden:weights"]
        np.testing.assert_array_equal(kernel, student.get_weights()[0])
        np.testing.assert_array_equal(bias, student.get_weights()[1])


def test_weights_that_do_not_fit_are_refused() -> None:
    student, teacher = perceptron(tf_keras), perceptron(keras, units=7)
    with pytest.raises(
        ModelError,
        match=r"must have weights of equal shapes\. Received: teacher layer 'hidden:weights' "
        r"\[\(4, 7\), \(7,\)\], student layer 'hidden:weights' \[\(4, 5\), \(5,\)\]",
    ):
        td.Distiller(student, teacher, [losses.WeightMSE("hidden", "hidden")])
    with pytest.raises(ModelError, match=r"`rectified` must be a layer of the student with weight"):
        td.Distiller(student, perceptron(keras), [losses.WeightMSE("hidden", "rectified")])
    with pytest.raises(ModelError, match=r"`teacher` must be a Functional or Sequential model for"):
        td.Distiller(student, lambda x: x[:, :3], [losses.WeightMSE("hidden", "hidden")])
    with pytest.raises(SettingError, match=r"must name layers\. Received: WeightMSE.*no resoluti"):
        losses.WeightMSE("auto")


def test_weights_are_no_targets_to_store(tmp_path: Any) -> None:
    inputs, labels, _ = examples()
    with pytest.raises(SettingError, match=r"`layers` must be outputs or scores of layers"):
        td.store_targets(
            perceptron(keras), (inputs, labels), tmp_path, layers=["hidden:weights"], verbose=0
        )
    taught = [losses.WeightMSE("hidden", "hidden")]
    with pytest.raises(SettingError, match=r"`store_targets` must be False or \"auto\" for losses"):
        td.Distillation(losses=taught, store_targets=True)


# --- masks ---


def test_masks_come_with_the_layers_that_carry_them() -> None:
    numbers = sentences()
    said = read(encoder(tf_keras), "embedding", "mixed", "pooled", inputs=numbers)
    assert set(said.masks) == {"embedding", "mixed"}
    np.testing.assert_array_equal(said.masks["mixed"], numbers > 0)
    only = said.only(["mixed"])
    assert (set(only.features), set(only.masks)) == ({"mixed"}, {"mixed"})


# --- auto ---


MAPS = (("relu_0", "relu_0"), ("relu_1", "relu_1"), ("relu_2", "relu_2"))
VECTORS = (("pooled", "pooled"),)


@pytest.mark.parametrize(
    ("loss", "pairs"),
    [
        (losses.Hint("auto"), (*MAPS, *VECTORS)),
        (losses.AttentionTransfer("auto", "auto", weight=3), MAPS),
        (losses.NeuronSelectivity("auto"), MAPS),
        (losses.FSP("auto"), MAPS),
        (losses.SimilarityPreserving("auto"), VECTORS),
        (losses.RelationalAngle("auto"), VECTORS),
        (losses.Contrastive("auto"), VECTORS),
    ],
    ids=repr,
)
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_auto_takes_the_last_layer_of_each_resolution(
    loss: Any, pairs: Any, activation: Any
) -> None:
    student = convolutional(tf_keras, 3)
    teacher = convolutional(keras, 5, activation=activation)
    distiller = td.Distiller(student, teacher, [loss])
    named: Any = distiller.losses_taught[0]
    assert named.pairs == pairs
    assert (named.weight, named.name) == (loss.weight, loss.name)
    listed = ", ".join(f"{one} - {other}" for one, other in pairs)
    assert f"{loss.name} teaches by layers matched by resolution: {listed}." in distiller.notes


def test_auto_knows_the_last_layer_by_its_place() -> None:
    sizes = {"wide": 4, "narrow": 2, "wide_again": 4}
    layers = [LayerOutput(name, "ReLU", (size, size, 3)) for name, size in sizes.items()]
    matched = losses.SimilarityPreserving("auto").matched(layers, layers)
    assert matched.pairs == (("wide_again", "wide_again"),)


def test_auto_of_sequences() -> None:
    student, teacher = encoder(tf_keras), encoder(keras, width=8)
    taught = [
        losses.HiddenStates("auto"),
        losses.CosineHiddenStates("auto"),
        losses.EmbeddingStates("auto"),
        losses.AttentionScores("auto"),
    ]
    named = td.Distiller(student, teacher, taught).losses_taught
    assert [loss.student_layers for loss in named] == [
        ("mixed",),
        ("mixed",),
        ("embedding",),
        ("attention:scores",),
    ]
    assert [loss.teacher_layers for loss in named] == [loss.student_layers for loss in named]


def test_auto_of_wrapped_and_unnamed_layers() -> None:
    settings = Pruning(sparsity=0.5)
    student = convolutional(tf_keras, 8)
    wrapped = wrap_for_pruning(student, settings, plan_pruning(student, settings), 10)
    found = ModelView(wrapped, role="student").layers()
    assert [layer[:2] for layer in found[:2]] == [("conv_0", "Conv2D"), ("relu_0", "ReLU")]
    assert "logits" not in [layer.name for layer in found]
    assert "image" not in [layer.name for layer in found]


def test_auto_without_anything_in_common_is_refused() -> None:
    student, teacher = perceptron(tf_keras), perceptron(keras)
    with pytest.raises(
        ModelError,
        match=r"must have layers of the same resolution, for AttentionTransfer\(\"auto\"\)\. "
        r"Received: teacher none, student none\. Name the layers\.",
    ):
        td.Distiller(student, teacher, [losses.AttentionTransfer("auto")])
    with pytest.raises(ModelError, match=r'Sequential model, for losses of "auto" layers\. Rec'):
        td.Distiller(student, lambda x: x[:, :3], [losses.Hint("auto")])
    ensemble = td.teachers.Ensemble([teacher, perceptron(keras, seed=2)])
    with pytest.raises(ModelError, match=r'"auto" layers\. Received: ensemble\. Name the layers'):
        td.Distiller(student, ensemble, [losses.Hint("auto")])


def test_one_resolution_is_no_flow() -> None:
    layers = tf_keras.layers
    image = layers.Input([4, 4, 1])
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 1)(image))
    model = tf_keras.Model(image, layers.Dense(3)(pooled))
    with pytest.raises(ModelError, match=r'must have layers of the same resolution, for FSP\("aut'):
        td.Distiller(model, convolutional_of_four(), [losses.FSP("auto")])


def convolutional_of_four() -> Any:
    layers = keras.layers
    image = layers.Input([4, 4, 1])
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 1)(image))
    return keras.Model(image, layers.Dense(3)(pooled))


def test_layers_of_an_ensembles_member_are_read() -> None:
    members = [encoder(keras, seed=1), encoder(keras, seed=2)]
    ensemble = td.teachers.Ensemble(members)
    name = f"{ensemble.names[1]}/attention"
    loss = losses.AttentionScores(name, "attention")
    student, numbers = encoder(tf_keras, masked=False), sentences()
    distiller = td.Distiller(student, ensemble, [loss], label_loss_weight=0)
    distiller.compile()
    logs = distiller.evaluate(numbers, verbose=0, return_dict=True)
    expected = ((scores_of(members[1], numbers) - scores_of(student, numbers)) ** 2).mean()
    assert logs["attention_scores"] == pytest.approx(expected, rel=1e-4)

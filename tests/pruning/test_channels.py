"""Pruning against the whole network with the same channels silenced by masks on its spikes."""

import dataclasses
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Input,
    Quantizer,
    Shortcut,
)
from qpsnn_jax.model.zoo import ds_cnn, resnet20, sew_resnet18, spikingformer, vgg16, vggsnn
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.numerics.quantization import quantize
from qpsnn_jax.pruning import Group, channel_groups, magnitude_group_scores, prune, score, select

over = pytest.mark.parametrize
RULES = [
    (gamma, granularity) for gamma in ("none", "max", "percentile", "mean") for granularity in ("layer", "channel")
]
RULES += [("mse", "channel")]
GRAPH = residual_graph(Quantizer(3))
GROUPS, VARIABLES = channel_groups(GRAPH), random_variables(GRAPH)
KEEP = {"stem": [0, 2, 5], "conv1": [7, 1, 2, 4], "conv2": [1, 2, 6, 7, 8], "conv3": [3, 4], "hidden": [0, 1, 4]}


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def close(tree, other, tolerance=1e-5):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), tree, other)


def in_float64(run, graph, *arguments):
    """The result with JAX's wide dtypes."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        widened = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), arguments)
        return jax.device_get(run(graph, *widened))


def silenced(graph: Graph, keep) -> dict[str, np.ndarray]:
    """For every LIF node 0 at the channels that go and 1 at those that stay."""
    masks = {}
    for group in channel_groups(graph).values():
        mask = np.isin(np.arange(group.size), keep.get(group.name, range(group.size))).astype(np.float32)
        masks |= {name: mask for name in group.members if isinstance(graph.by_name[name], LIF)}
    return masks


def masked(masks):
    """LIF layers whose spikes are multiplied by masks, in an otherwise unchanged network."""
    plain = LIF.trace

    def trace(node, leaves, currents, state):
        state, trace = plain(node, leaves, currents, state)
        mask = jnp.asarray(masks.get(node.name, np.ones(currents.shape[-1])), currents.dtype)
        return state, trace._replace(spikes=trace.spikes * mask.reshape((1,) * (currents.ndim - 1) + (-1,)))

    return mock.patch.object(LIF, "trace", trace)


@partial(jax.jit, static_argnames="graph")
def evaluate_and_train(graph, variables, images, masks):
    """Currents and loss of a batch in training; params and batch_stats after one SGD step."""
    run = SpikingNetwork(graph).apply

    def loss_of(params):
        output, updates = run(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        loss = cross_entropy(output.currents, jnp.arange(len(images)) % 3).mean()
        return loss, (output.currents, updates["batch_stats"])

    with masked(masks):
        (loss, (currents, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
    return currents, loss, {"params": params, "batch_stats": stats}


def some(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Three quarters of every group, whole heads, in random order (odd widths take twice as long to compile)."""
    draw = np.random.default_rng(seed)

    def units(group: Group) -> np.ndarray:
        count = group.size // group.unit
        return draw.permutation(count)[: max(1, count * 3 // 4)]

    groups = channel_groups(graph).values()
    return {g.name: (units(g)[:, None] * g.unit + np.arange(g.unit)).ravel() for g in groups}


NETWORKS = {
    "resnet20": partial(resnet20, width=1 / 8, input_shape=(8, 8, 3)),
    "vgg16": partial(vgg16, width=1 / 8, timesteps=2),
    "vggsnn": partial(vggsnn, width=1 / 16, timesteps=2, input_shape=(16, 16, 2)),
    "sew_resnet18": partial(sew_resnet18, width=1 / 16, timesteps=2, classes=3, input_shape=(16, 16, 3)),
    "spikingformer": partial(spikingformer, width=1 / 3, timesteps=2, blocks=1, classes=3, input_shape=(8, 8, 3)),
}
NETWORKS |= {
    "ds_cnn": partial(ds_cnn, width=1 / 8, timesteps=2, classes=3, input_shape=(11, 6, 1)),
}
CASES = [
    ("ds_cnn", Quantizer(4, "max", "channel")),
    ("resnet20", Quantizer(2, "max")),
    ("vgg16", Quantizer(4, "percentile")),
    ("vggsnn", Quantizer(2)),
    ("sew_resnet18", Quantizer(4)),
    ("spikingformer", Quantizer(2, "max", "channel")),
]


def varied_graph(quantizer: Quantizer) -> Graph:
    """Frames, an average-pool, attention and a sum of spikes; with :func:`residual_graph` every kind of node."""
    options = {"quantizer": quantizer, "label": "all"}
    three = [
        node
        for name in ("query", "key", "value")
        for node in (
            Conv(name, "average", 8, (1, 1), padding=(0, 0), **options),
            BatchNorm(f"{name}.bn", name),
            LIF(f"{name}.lif", f"{name}.bn", threshold=0.3),
        )
    ]
    nodes = (
        Input("image", (6, 6, 2), frames=True),
        Conv("stem", "image", 4, label="all"),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0"),
        AveragePool("average", "lif0"),
        *three,
        Attention("attention", "query.lif", "key.lif", "value.lif", head_features=2),
        BatchNorm("bn1", "attention"),
        LIF("lif1", "bn1"),
        Add("spikes", "lif1", "value.lif"),
        Conv("conv", "spikes", 6, **options),
        LIF("lif2", "conv", threshold=0.3, reset="soft", tau=0.25),
        GlobalAveragePool("pool", "lif2"),
        Dense("fc", "pool", 3),
    )
    return Graph(nodes, timesteps=2)


def mixed_graph() -> Graph:
    """:func:`residual_graph` whose layers differ in quantizers and their gradients; one has none."""
    quantizers = {
        "stem": Quantizer(4, "mean", "channel", "scaled"),
        "conv1": Quantizer(2, "none", "channel", "plain"),
        "conv2": Quantizer(4, "mean", "channel", "scaled"),
        "conv4": Quantizer(3, "percentile", "layer", "plain"),
        "hidden": Quantizer(4, "mean", "channel", "scaled"),
    }
    plain = residual_graph()
    nodes = [dataclasses.replace(n, quantizer=quantizers[n.name]) if n.name in quantizers else n for n in plain.nodes]
    return Graph(tuple(nodes), plain.timesteps)


@over("graph", [mixed_graph(), varied_graph(Quantizer(2, "max"))], ids=["mixed", "varied"])
def test_training_when_pruned_equals_training_when_silenced(graph: Graph):
    variables, images, keep = random_variables(graph, seed=4), images_of(graph, batch=4), some(graph)
    smaller, pruned = same_when_silenced(graph, variables, keep, silenced(graph, keep))
    # Batch statistics of four images make much of what float32 rounds otherwise in a network of other widths.
    run = partial(in_float64, evaluate_and_train)
    currents, loss, after = run(graph, variables, images, silenced(graph, keep))
    pruned_currents, pruned_loss, pruned_after = run(smaller, pruned, images, {})
    np.testing.assert_allclose(pruned_currents, currents, atol=1e-9)
    np.testing.assert_allclose(pruned_loss, loss, rtol=1e-9)
    close(pruned_after, prune(graph, after, keep)[1], tolerance=1e-6)
    # The test could not fail on a silent network, or on one that does not depend on the removed channels.
    assert np.ptp(currents, axis=0).max() > 0.01
    whole, *_ = run(graph, variables, images, silenced(graph, {}))
    assert np.abs(whole - currents).max() > 0.01


def same_when_silenced(graph: Graph, variables, keep, masks) -> tuple[Graph, dict]:
    """In NumPy, which compiles nothing; γ in float64, for a weight may lie next to the border of two levels.

    Returns:
        The pruned network.
    """
    images = np.asarray(images_of(graph, batch=2))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        smaller, pruned = jax.device_get(prune(graph, wide, keep))
    found = reference.run(smaller, pruned, images).values[graph.output.name]
    expected = reference.run(graph, wide, images, masks=masks).values[graph.output.name]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    # It could not fail on a silent network, or on one that does not depend on the removed channels.
    assert np.ptp(expected, axis=0).max() > 0.01
    assert np.abs(reference.run(graph, wide, images).values[graph.output.name] - expected).max() > 0.01
    return smaller, pruned


@over(("name", "quantizer"), CASES, ids=str)
def test_pruning_equals_silencing_in_the_zoo(name: str, quantizer: Quantizer):
    graph = NETWORKS[name](bits=quantizer)
    variables, keep = random_variables(graph, seed=4), some(graph)
    smaller, pruned = same_when_silenced(graph, variables, keep, silenced(graph, keep))
    assert jax.tree.map(np.shape, pruned) == jax.tree.map(np.shape, random_variables(smaller))


def test_groups_of_residual():
    expected = [
        Group("stem", 6, "stem", ("stem", "bn0", "lif0")),
        Group("conv1", 8, "middle", ("conv1", "bn1", "lif1")),
        Group(
            "conv2",
            9,
            "outputs",
            ("conv2", "bn2", "shortcut", "add2", "lif2", "conv4", "bn4", "add4", "lif4", "pool", "flatten"),
        ),
        Group("conv3", 7, "middle", ("conv3", "bn3", "lif3")),
        Group("hidden", 5, "hidden", ("hidden", "bn5", "lif5")),
    ]
    assert list(channel_groups(residual_graph()).items()) == [(g.name, g) for g in expected]


def test_groups_of_resnet20():
    groups = channel_groups(resnet20())
    sizes = {"conv1": (64, "stem"), "layer1.0.conv1": (128, "first")}
    for stage, width in ((1, 128), (2, 256), (3, 512)):
        sizes |= {f"layer{stage}.{block}.conv1": (width, "middle") for block in range(stage == 1, 3)}
        sizes[f"layer{stage}.0.conv2"] = (width, None if stage == 3 else "outputs")
        outputs = set(groups[f"layer{stage}.0.conv2"].members) - {"pool"}
        ends = ("conv2", "bn2", "add", "lif2")
        assert outputs == {f"layer{stage}.{b}.{n}" for b in range(3) for n in ends} | {f"layer{stage}.0.shortcut"}
    assert {g.name: (g.size, g.label) for g in groups.values()} == sizes
    assert groups["conv1"].members == ("conv1", "bn1", "lif1")


def test_attention_heads_stay_whole():
    graph = NETWORKS["spikingformer"](bits=2)
    groups = channel_groups(graph)
    heads = groups["block0.attn.query.conv"]
    assert (heads.size, heads.unit, heads.label) == (128, 32, "attention")
    for part in ("query", "key", "value"):
        assert f"block0.attn.{part}.lif" in heads.members
    assert groups["patch3.conv"].label == "stream"
    assert "block0.mlp.add" in groups["patch3.conv"].members
    scores = {name: np.arange(group.size) for name, group in groups.items()}
    np.testing.assert_array_equal(select(graph, scores, {"attention": 0.5})[heads.name], np.arange(64, 128))
    with pytest.raises(ValueError, match="breaks up an attention head"):
        prune(graph, {}, {heads.name: range(1, 33)})


def test_heads_of_two_sizes_stay_whole_together():
    nodes = [Input("image", (3, 3, 2)), Conv("conv", "image", 24, label="a"), LIF("lif", "conv")]
    nodes += [Attention(f"heads{n}", "lif", "lif", "lif", n) for n in (4, 6)]
    graph = Graph((*nodes, Add("add", "heads4", "heads6"), Conv("next", "add", 2), Flatten("flat", "next")))
    assert channel_groups(graph)["conv"].unit == 12
    with pytest.raises(ValueError, match="breaks up an attention head of 12 channels"):
        prune(graph, {}, {"conv": range(6)})
    assert prune(graph, {}, {"conv": range(12, 24)})[0].by_name["conv"] == Conv("conv", "image", 12, label="a")


def flattened_graph(quantizer: Quantizer) -> Graph:
    """A dense layer is added to a flattened convolution, whose channels it therefore has at each of four positions."""
    nodes = (
        Input("image", (4, 4, 2)),
        Flatten("pixels", "image"),
        Dense("dense", "pixels", 24, quantizer, label="a"),
        Conv("conv", "image", 6, strides=(2, 2), quantizer=quantizer, label="a"),
        Flatten("flat", "conv"),
        Add("sum", "dense", "flat"),
        BatchNorm("bn", "sum"),
        LIF("lif", "bn"),
        Dense("fc", "lif", 3, quantizer),
    )
    return Graph(nodes, timesteps=2)


@over("granularity", ["layer", "channel"])
def test_a_dense_layer_added_to_a_flattened_convolution(granularity):
    graph = flattened_graph(Quantizer(3, granularity=granularity))
    variables, images = random_variables(graph), images_of(graph)
    assert channel_groups(graph) == {"dense": Group("dense", 6, "a", ("dense", "conv", "flat", "sum", "bn", "lif"))}
    whole, same_again = prune(graph, variables, {"dense": range(6)})
    assert whole == graph
    same(same_again, variables)
    places = np.array([1, 3, 4])
    smaller, _ = prune(graph, variables, {"dense": places})
    assert (smaller.by_name["dense"].features, smaller.by_name["conv"].features) == (12, 3)
    same_when_silenced(graph, variables, {"dense": places}, {"lif": np.isin(np.arange(24) % 6, places)})
    # Its channels are scored over the positions where they stand.
    kernels = {name: np.abs(variables["params"][name]["kernel"]).sum(axis=0) for name in ("dense", "conv")}
    norms = kernels["dense"].reshape(4, 6).sum(axis=0) + kernels["conv"].sum(axis=(0, 1))
    np.testing.assert_allclose(magnitude_group_scores(graph, variables)["dense"], norms, rtol=1e-6)
    if granularity == "layer":
        assert {name: x.shape for name, x in score(graph, variables, [images]).items()} == {"dense": (6,)}


def test_groups_of_vgg16():
    groups = channel_groups(vgg16())
    assert [g.size for g in groups.values()] == [64, 64, 128, 128, 256, 256, 256] + [512] * 6
    assert [g.label for g in groups.values()] == ["early"] * 7 + ["late"] * 5 + [None]
    for place, after in ((0, ()), (1, ("features.2.pool",)), (16, ("pool", "flatten"))):
        layers = tuple(f"features.{place}.{kind}" for kind in ("conv", "bn", "lif"))
        assert groups[layers[0]].members == layers + after


def test_what_meets_the_input_or_the_output_stays():
    nodes = (
        Input("image", (4, 4, 3)),
        Conv("joined", "image", 3, label="a"),
        Add("sum", "joined", "image"),
        Conv("mixed", "sum", 3, label="a"),
        Conv("other", "sum", 3, label="b"),
        Add("both", "mixed", "other"),
        Flatten("flatten", "both"),
        Dense("out", "flatten", 2, label="a"),
    )
    assert list(channel_groups(Graph(nodes)).values()) == [
        Group("mixed", 3, None, ("mixed", "other", "both", "flatten"))
    ]


@over("keep", [{}, {"stem": range(6), "conv2": np.arange(9)}, {"conv2": [8, 0, 1, 2, 7, 6, 5, 4, 3]}])
def test_pruning_nothing_changes_nothing(keep):
    graph = residual_graph(Quantizer(2))
    variables = random_variables(graph)
    smaller, pruned = prune(graph, variables, keep)
    assert smaller == graph
    same(pruned, variables)


def test_what_stays_by_hand():
    graph = residual_graph(Quantizer(2, granularity="channel"))
    variables = random_variables(graph)
    smaller, pruned = prune(graph, variables, KEEP)
    assert jax.tree.map(np.shape, pruned) == jax.tree.map(np.shape, random_variables(smaller))
    before, after, keep = variables["params"], pruned["params"], {k: sorted(v) for k, v in KEEP.items()}
    # Stem channels 0, 2, 5 are now 0, 1, 2; outputs 1, 2, 6, 7, 8 carried stem channels 0, 1, 5, none, 0.
    assert smaller.by_name["shortcut"] == Shortcut("shortcut", "lif0", (0, -1, 2, -1, 0), 2)
    widths = {n.name: n.features for n in smaller.nodes if isinstance(n, Conv | Dense)}
    assert widths == {"stem": 3, "conv1": 4, "conv2": 5, "conv3": 2, "conv4": 5, "hidden": 3, "fc": 3}
    rows = [place * 9 + channel for place in range(4) for channel in keep["conv2"]]
    cut = {
        ("stem", "kernel"): before["stem"]["kernel"][..., keep["stem"]],
        ("stem", "bias"): before["stem"]["bias"][np.array(keep["stem"])],
        ("conv1", "kernel"): before["conv1"]["kernel"][:, :, keep["stem"]][..., keep["conv1"]],
        ("conv3", "kernel"): before["conv3"]["kernel"][:, :, keep["conv2"]][..., keep["conv3"]],
        ("conv4", "kernel"): before["conv4"]["kernel"][:, :, keep["conv3"]][..., keep["conv2"]],
        ("hidden", "kernel"): before["hidden"]["kernel"][np.array(rows)][:, keep["hidden"]],
        ("bn4", "scale"): before["bn4"]["scale"][np.array(keep["conv2"])],
        ("fc", "kernel"): before["fc"]["kernel"][np.array(keep["hidden"])],
        ("fc", "bias"): before["fc"]["bias"],
    }
    for (node, leaf), expected in cut.items():
        np.testing.assert_array_equal(after[node][leaf], expected, err_msg=f"{node}/{leaf}")
    for leaf in ("mean", "var"):
        expected = variables["batch_stats"]["bn2"][leaf][np.array(keep["conv2"])]
        np.testing.assert_array_equal(pruned["batch_stats"]["bn2"][leaf], expected)


def two_layers(quantizer: Quantizer | None = None) -> Graph:
    """A quantized convolution and a quantized dense layer, each of which loses inputs and outputs by ``SOME``."""
    nodes = (
        Input("image", (4, 4, 2)),
        Conv("stem", "image", 6, label="stem"),
        LIF("lif0", "stem"),
        Conv("conv", "lif0", 8, strides=(2, 2), quantizer=quantizer, label="conv"),
        BatchNorm("bn", "conv"),
        LIF("lif1", "bn"),
        Flatten("flatten", "lif1"),
        Dense("hidden", "flatten", 5, quantizer=quantizer, bias=True, label="hidden"),
        LIF("lif2", "hidden"),
        Dense("fc", "lif2", 3),
    )
    return Graph(nodes, timesteps=2)


quantize_jit = jax.jit(quantize, static_argnames=("bits", "gamma", "granularity"))
SOME = {"stem": [0, 2, 5], "conv": [7, 1, 2, 4], "hidden": [0, 1, 4]}


@over(("gamma", "granularity"), RULES)
def test_weights_that_stay_are_quantized_as_before(gamma: str, granularity: str):
    graph = two_layers(Quantizer(3, gamma, granularity))
    variables = random_variables(graph)
    _, pruned = prune(graph, variables, SOME)

    def levels(variables, name: str) -> np.ndarray:
        kernel, gain = variables["params"][name]["kernel"], np.asarray(variables["scales"][name]["gain"])
        if gamma != "mse":  # The reference writes the others anew.
            return reference.quantized(graph.by_name[name].quantizer, np.float64(kernel), gain)
        gain = gain.reshape((1,) * (kernel.ndim - 1) + (-1,))
        return np.asarray(quantize_jit(kernel, 3, gamma=gamma, granularity=granularity, gain=gain))

    alone = prune(graph, {"params": {n: {"kernel": levels(variables, n)} for n in ("conv", "hidden")}}, SOME)[1]
    for name, kept in alone["params"].items():
        # The grid search for the least error may stop at a neighbouring point when it is compiled with other code.
        flips, rtol = (1, 1e-3) if gamma == "mse" else (0, 1e-5)
        assert np.sum(~np.isclose(levels(pruned, name), kept["kernel"], rtol=rtol, atol=0)) <= flips


@over(("gamma", "granularity"), RULES)
def test_silent_weights_stay_finite(gamma: str, granularity: str):
    graph = two_layers(Quantizer(3, gamma, granularity))
    for dead in ((..., 4), (slice(None), slice(None), np.array([0, 2, 5]))):  # a filter, and all inputs that stay
        variables = random_variables(graph)
        variables["params"]["conv"]["kernel"][dead] = 0
        smaller, pruned = prune(graph, variables, SOME)
        assert np.isfinite(pruned["scales"]["conv"]["gain"]).all()
        if (gamma, granularity) == ("mean", "channel"):
            currents, loss, after = evaluate_and_train(smaller, pruned, images_of(graph), {})
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((currents, loss, after)))


def test_pruning_twice_is_pruning_once():
    graph = two_layers(Quantizer(3))
    variables = random_variables(graph)
    first = {k: np.sort(v) for k, v in some(graph).items()}
    between, halfway = prune(graph, variables, first)
    second = some(between, seed=1)
    smaller, pruned = prune(between, halfway, second)
    at_once = prune(graph, variables, {k: first[k][np.sort(second[k])] for k in first})
    assert smaller == at_once[0]
    assert smaller != between
    for kind in ("params", "batch_stats"):
        same(pruned[kind], at_once[1][kind])
    close(pruned["scales"], at_once[1]["scales"])


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "chain": optax.chain(optax.clip(0.05), optax.add_decayed_weights(1e-3), optax.adam(optax.constant_schedule(0.1))),
    "lookahead": optax.lookahead(optax.adam(1e-2), sync_period=2, slow_step_size=0.5),
    "masked": optax.masked(optax.adam(1e-2), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "partition": optax.partition(
        {"weights": optax.adam(1e-2), "others": optax.sgd(0.1, momentum=0.5)},
        lambda params: jax.tree.map(lambda p: "weights" if p.ndim > 1 else "others", params),
    ),
}


@pytest.fixture
def optax_promotion():
    """Optax multiplies numbers by step counts, for which strict promotion raises."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@over("name", OPTIMIZERS)
@pytest.mark.usefixtures("optax_promotion")
def test_optimizer_state(name: str):
    """The pruned state is the state of the pruned parameters: an update commutes with pruning."""
    graph, optimizer = two_layers(Quantizer(2)), OPTIMIZERS[name]
    params: Any = random_variables(graph)["params"]
    if name == "lookahead":
        params = optax.LookaheadParams(params, random_variables(graph, 4)["params"])
    gradients = [random_variables(graph, seed)["params"] for seed in (1, 2, 3)]

    @jax.jit
    def step(state, gradient):
        params, inner = state
        updates, inner = optimizer.update(gradient, inner, params)
        return optax.apply_updates(params, updates), inner

    def cut(tree):
        return prune(graph, jax.device_get(tree), SOME)[1]

    halfway = step((params, optimizer.init(params)), gradients[0])
    state, fresh = cut(halfway), cut(params)
    assert jax.tree.structure(state[1]) == jax.tree.structure(optimizer.init(fresh))
    assert jax.tree.map(jnp.shape, state[1]) == jax.tree.map(jnp.shape, optimizer.init(fresh))
    for gradient in gradients[1:]:
        halfway, state = step(halfway, gradient), step(state, cut(gradient))
    close(state, cut(halfway))


@pytest.mark.usefixtures("optax_promotion")
def test_step_with_pruned_optimizer_state():
    graph, optimizer = two_layers(Quantizer(2)), optax.adam(0.05)
    variables, images = random_variables(graph), images_of(graph)
    state = optimizer.init(variables["params"])
    alone = prune(graph, variables, SOME)[1]
    smaller, (variables, state) = prune(graph, (variables, state), SOME)
    same(variables, alone)

    @jax.jit
    def step(params, state):
        def loss(params):
            return cross_entropy(
                SpikingNetwork(smaller).apply(variables | {"params": params}, images, train=True).currents,
                jnp.arange(2),
            ).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params, losses = variables["params"], []
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(value)
    assert losses[-1] < losses[0]


@st.composite
def keeps(draw) -> dict[str, list[int]]:
    chosen = draw(st.lists(st.sampled_from(sorted(GROUPS)), unique=True, min_size=1))
    return {
        name: draw(st.lists(st.integers(0, GROUPS[name].size - 1), unique=True, min_size=1)) for name in sorted(chosen)
    }


@settings(max_examples=30, deadline=None)
@given(keeps(), st.randoms(use_true_random=False))
def test_sizes_and_order(keep, random):
    arrays = {kind: VARIABLES[kind] for kind in ("params", "batch_stats")}
    smaller, pruned = prune(GRAPH, arrays, keep)
    sizes = {name: len(keep.get(name, range(group.size))) for name, group in GROUPS.items()}
    assert {name: group.size for name, group in channel_groups(smaller).items()} == sizes
    assert {g.name: g.members for g in channel_groups(smaller).values()} == {g.name: g.members for g in GROUPS.values()}
    shapes = jax.tree.map(np.shape, random_variables(smaller))
    assert jax.tree.map(np.shape, pruned) == {kind: shapes[kind] for kind in pruned}
    shuffled = {name: random.sample(channels, len(channels)) for name, channels in reversed(keep.items())}
    again, same_again = prune(GRAPH, arrays, shuffled)
    assert again == smaller
    same(same_again, pruned)
    # A shortcut still joins the channels that it joined: follow each through both numberings.
    inputs, outputs = (sorted(keep.get(name, range(GROUPS[name].size))) for name in ("stem", "conv2"))
    whole, cut = (graph.by_name["shortcut"].source for graph in (GRAPH, smaller))
    for to, source in enumerate(cut):
        wanted = whole[outputs[to]]
        assert (inputs[source] if source >= 0 else -1) == (wanted if wanted in inputs else -1)


@over(
    ("keep", "message"),
    [
        ({"conv9": [0]}, "keep names 'conv9', which is not a group"),
        ({"conv4": [0]}, "keep names 'conv4', which is not a group"),
        ({"fc": [0]}, "keep names 'fc', which is not a group"),
        ({"stem": []}, r"keep\['stem'\] must be a non-empty list"),
        ({"stem": [0.0, 1.0]}, r"keep\['stem'\] must be a non-empty list of channel numbers"),
        ({"stem": np.ones(6, bool)}, r"keep\['stem'\] must be a non-empty list of channel numbers"),
        ({"stem": [[0, 1]]}, r"keep\['stem'\] must be"),
        ({"conv1": [0, 1, 0]}, r"keep\['conv1'\] names a channel twice"),
        ({"conv1": [0, 8]}, r"keep\['conv1'\] names a channel outside the 8"),
        ({"conv1": [-1]}, r"keep\['conv1'\] names a channel outside the 8"),
    ],
)
def test_keep_that_makes_no_sense(keep, message: str):
    with pytest.raises(ValueError, match=message):
        prune(GRAPH, VARIABLES, keep)


@over(
    ("node", "leaf", "shape"),
    [
        ("conv1", "kernel", (3, 3, 6, 7)),
        ("bn1", "scale", (6,)),
        ("hidden", "kernel", (9, 5)),
        ("conv2", "kernel", (9,)),
    ],
)
def test_array_that_does_not_fit(node: str, leaf: str, shape: tuple):
    params = {**VARIABLES["params"], node: VARIABLES["params"][node] | {leaf: jnp.zeros(shape)}}
    with pytest.raises(ValueError, match=rf"\['{node}'\]\['{leaf}'\] of shape .* does not fit the graph"):
        prune(GRAPH, VARIABLES | {"params": params}, KEEP)


def test_a_pair_of_params_has_no_gamma_of_its_own():
    pair = optax.LookaheadParams.init_synced(VARIABLES["params"])
    with pytest.raises(ValueError, match=r"params beside scales must be one mapping .* not LookaheadParams: .*slow"):
        prune(GRAPH, {**VARIABLES, "params": pair}, KEEP)
    variables, (fast, slow) = prune(GRAPH, (VARIABLES, pair), KEEP)[1]
    same(fast, slow)
    same(variables["params"], slow)

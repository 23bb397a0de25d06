"""Convolutions that the neurons behind them compute: the same spikes and gradients, and only where it saves work."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph, shallow_graph

from qpsnn_jax import SpikingNetwork, initial_state
from qpsnn_jax.model import nodes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input, Quantizer, conv

pytestmark = pytest.mark.usefixtures("native_library")


def event_graph(**options):
    """Without batch-norm: a layer with a bias, a depthwise one, one of three levels, one with dilation."""
    layers = (
        Input("image", (7, 6, 2), frames=True),
        Conv("conv0", "image", 8, bias=True),
        LIF("lif0", "conv0", **options),
        Conv("conv1", "lif0", 8, groups=8),
        LIF("lif1", "conv1", tau=0.9, **options),
        Conv("conv2", "lif1", 5, (5, 3), strides=(2, 1), quantizer=Quantizer(2, levels=3)),
        LIF("lif2", "conv2", threshold=0.3, **options),
        Conv("conv3", "lif2", 6, dilation=(1, 2), quantizer=Quantizer(4)),
        LIF("lif3", "conv3", **options),
        Flatten("flatten", "lif3"),
        Dense("fc", "flatten", 3),
    )
    return Graph(layers, timesteps=3)


GRAPHS = {
    "residual": residual_graph(),
    "quantized": residual_graph(Quantizer(2)),
    "shallow": shallow_graph(),
    "events": event_graph(),
    "soft": event_graph(reset="soft", fire=">"),
}
SHARED = {"residual": 5, "quantized": 5, "shallow": 3, "events": 2, "soft": 2}


def calls(run, *arrays):
    """How many convolutions with neurons, convolutions and neurons alone are called in C++."""
    text = jax.jit(run).lower(*arrays).compile().as_text()
    return tuple(text.count(f'"qpsnn_jax.{name}"') for name in ("conv_lif_spikes", "conv_sums", "lif_spikes"))


def currents(graph):
    return lambda variables, images: SpikingNetwork(graph).apply(variables, images).currents


@pytest.fixture
def apart(monkeypatch):
    """Runs a function with every convolution computed on its own."""

    def run(function, *arrays):
        with monkeypatch.context() as within:
            within.setattr(conv, "shared_convolution", lambda *arrays, **options: None)
            return jax.jit(lambda *given: function(*given))(*arrays)

    return run


@pytest.mark.parametrize("name", GRAPHS)
def test_currents_and_gradients_are_the_same(name, apart):
    graph = GRAPHS[name]
    run, given = currents(graph), (random_variables(graph), images_of(graph, 3))
    assert calls(run, *given)[0] == SHARED[name]
    found = jax.jit(run)(*given)
    np.testing.assert_array_equal(found, apart(run, *given))
    weights = np.arange(found.size).reshape(found.shape) % 5 - 2.0

    def loss(variables, images):
        return jnp.vdot(run(variables, images), weights)

    grad = jax.grad(loss, (0, 1))
    assert calls(grad, *given)[0] == 0
    for found, wanted in zip(jax.tree.leaves(jax.jit(grad)(*given)), jax.tree.leaves(apart(grad, *given)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_each_network_of_a_vmap_has_its_own(apart):
    graph, count = GRAPHS["quantized"], 3
    trees = [random_variables(graph, seed) for seed in range(count)]
    stacked, images = jax.tree.map(lambda *leaves: np.stack(leaves), *trees), images_of(graph)
    many = jax.jit(jax.vmap(currents(graph), (0, None)))(stacked, images)
    for found, tree in zip(many, trees, strict=True):
        np.testing.assert_array_equal(found, apart(currents(graph), tree, images))


def test_sums_that_others_read_are_computed_once():
    graph = GRAPHS["shallow"]
    given = random_variables(graph), images_of(graph)

    def capturing(*names):
        return lambda variables, images: SpikingNetwork(graph).apply(variables, images, capture=names)[:2]

    assert calls(capturing(), *given) == (3, 0, 0)
    for name in ("conv1", "bn1", "lif1"):
        assert calls(capturing(name), *given) == (2, 1, 1), name

    # The shortcut reads a convolution too.
    layers = [replace(node, input="conv1") if node.name == "bn1" else node for node in graph.nodes]
    layers = [replace(node, input="bn1") if isinstance(node, nodes.Shortcut) else node for node in layers]
    branched = replace(graph, nodes=tuple(layers))
    assert calls(currents(branched), *given) == (2, 1, 1)


def test_a_state_takes_no_further_sums(apart):
    graph = replace(GRAPHS["shallow"], timesteps=1)
    variables, images = random_variables(graph), images_of(graph)

    def step(variables, images, state=None):
        return SpikingNetwork(graph).apply(variables, images, state=state)[::2]

    rest = initial_state(graph, len(images))
    assert calls(step, variables, images) == calls(step, variables, images, rest) == (3, 0, 0)
    found, wanted = rest, rest
    for _ in range(3):
        (first, found), (second, wanted) = (
            jax.jit(step)(variables, images, found),
            apart(step, variables, images, wanted),
        )
        np.testing.assert_array_equal(first, second)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)

    def loss(variables, images, state):
        currents, after = step(variables, images, state)
        return currents.sum() + sum(jnp.sum(x**2) for x in after.values())

    grad = jax.grad(loss, (0, 2))
    pairs = zip(
        jax.tree.leaves(jax.jit(grad)(variables, images, found)),
        jax.tree.leaves(apart(grad, variables, images, found)),
        strict=True,
    )
    for by_shared, by_apart in pairs:
        np.testing.assert_array_equal(by_shared, by_apart)


@pytest.mark.parametrize(("timesteps", "batch"), [(4, 8), (8, 2), (10, 3)])
def test_more_steps_than_images_are_worked_on_at_once(timesteps, batch, apart):
    layers = (
        Input("image", (8, 8, 2), frames=True),
        Conv("conv0", "image", 16),
        LIF("lif0", "conv0"),
        Conv("conv1", "lif0", 16),
        LIF("lif1", "conv1"),
        Flatten("flatten", "lif1"),
    )
    graph = Graph(layers, timesteps)
    given = random_variables(graph), images_of(graph, batch)
    np.testing.assert_array_equal(jax.jit(currents(graph))(*given), apart(currents(graph), *given))


def test_training_and_eager_calls_compute_as_before(apart):
    graph = GRAPHS["shallow"]
    given = random_variables(graph), images_of(graph)

    def train(variables, images):
        return SpikingNetwork(graph).apply(variables, images, train=True, mutable=["batch_stats"])

    assert calls(train, *given)[0] == 0
    np.testing.assert_array_equal(currents(graph)(*given), apart(currents(graph), *given))


def test_weights_that_are_not_finite_show():
    graph = GRAPHS["events"]
    variables, images = random_variables(graph), images_of(graph)
    variables["params"]["conv0"]["kernel"][0, 0, 0, 1] = np.nan
    found = jax.jit(lambda *given: SpikingNetwork(graph).apply(*given, capture=["lif0"]).captured["lif0"].spikes)
    first = Graph((*graph.nodes[:3], Flatten("flatten", "lif0")), graph.timesteps)
    shared = jax.jit(currents(first))({"params": {"conv0": variables["params"]["conv0"]}}, images)
    np.testing.assert_array_equal(np.asarray(shared).ravel(), np.asarray(found(variables, images)).ravel())
    assert np.isnan(np.asarray(shared)).any()


def test_spikes_that_only_such_calls_read_are_never_numbers():
    """Of five layers of spikes in two blocks, the strided shortcut and what follows the last one read numbers."""
    graph = GRAPHS["quantized"]
    given = random_variables(graph), images_of(graph)
    text = jax.jit(currents(graph)).lower(*given).compile().as_text()
    assert text.count('"qpsnn_jax.unpack_spikes"') == 2

    def spikes(variables, images):
        return SpikingNetwork(graph).apply(variables, images, capture=["lif1"]).captured["lif1"].spikes

    assert set(np.unique(jax.jit(spikes)(*given))) == {0, 1}


@pytest.mark.parametrize(("size", "window"), [((12, 9), (2, 2)), ((9, 7), (3, 2)), ((4, 3), (4, 3))])
def test_max_pools_of_spikes_are_an_or_of_bits(size, window, apart):
    layers = (
        Input("image", (*size, 2), frames=True),
        Conv("conv0", "image", 11),
        LIF("lif0", "conv0", threshold=0.1),
        nodes.MaxPool("pool0", "lif0", window, window),
        Conv("conv1", "pool0", 6, quantizer=Quantizer(2)),
        LIF("lif1", "conv1"),
        Flatten("flatten", "lif1"),
    )
    graph = Graph(layers, timesteps=3)
    run, variables, images = currents(graph), random_variables(graph), np.array(images_of(graph, 9))
    text = jax.jit(run).lower(variables, images).compile().as_text()
    counts = {"max_pool_spikes": 1, "conv_lif_spikes": 2, "unpack_spikes": 1}
    assert {name: text.count(f'"qpsnn_jax.{name}"') for name in counts} == counts
    grad = jax.grad(lambda *given: jnp.vdot(run(*given), run(*given) + 1), (0, 1))
    for found, wanted in zip(
        jax.tree.leaves(jax.jit(grad)(variables, images)), jax.tree.leaves(apart(grad, variables, images)), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    images[2, 1, 3, 1, 0] = np.nan
    found = np.asarray(jax.jit(run)(variables, images))
    np.testing.assert_array_equal(found, apart(run, variables, images))
    assert np.isnan(found).any()
    assert 0 < np.nanmean(found) < 1


def test_a_pool_as_residual_captured_and_under_vmap(apart):
    layers = (
        Input("image", (8, 8, 2)),
        Conv("conv0", "image", 5),
        LIF("lif0", "conv0", threshold=0.1),
        nodes.MaxPool("pool0", "lif0"),
        nodes.MaxPool("pool1", "pool0"),
        Conv("conv1", "pool1", 5, quantizer=Quantizer(2)),
        nodes.Add("add1", "conv1", "pool1"),
        LIF("lif1", "add1"),
        Flatten("flatten", "lif1"),
    )
    graph = Graph(layers, timesteps=2)
    run, variables, images = currents(graph), random_variables(graph), images_of(graph, 6)
    text = jax.jit(run).lower(variables, images).compile().as_text()
    counts = {"max_pool_spikes": 2, "conv_lif_spikes": 2, "unpack_spikes": 1}
    assert {name: text.count(f'"qpsnn_jax.{name}"') for name in counts} == counts
    wanted = apart(run, variables, images)
    np.testing.assert_array_equal(jax.jit(run)(variables, images), wanted)
    stacked = jax.jit(jax.vmap(run, (None, 0)))(variables, np.reshape(images, (3, 2, 8, 8, 2)))
    np.testing.assert_array_equal(np.reshape(stacked, wanted.shape), wanted)

    def pooled(variables, images):
        return SpikingNetwork(graph).apply(variables, images, capture=["pool0"]).captured["pool0"]

    found = jax.jit(pooled)(variables, images)
    np.testing.assert_array_equal(found, apart(pooled, variables, images))
    assert set(np.unique(found)) == {0, 1}


@pytest.mark.parametrize("channels", [3, 8, 13, 33])
def test_nan_spikes_stay_where_they_are(channels, apart):
    """Through convolutions and residual sums, of any number of channels."""
    layers = (
        Input("image", (9, 7, 2)),
        Conv("conv0", "image", channels),
        LIF("lif0", "conv0", threshold=0.1),
        Conv("conv1", "lif0", channels, quantizer=Quantizer(2)),
        nodes.Add("add1", "conv1", "lif0"),
        LIF("lif1", "add1"),
        Conv("conv2", "lif1", 5, quantizer=Quantizer(2)),
        LIF("lif2", "conv2"),
        Flatten("flatten", "lif2"),
    )
    graph = Graph(layers, timesteps=2)
    variables, images = random_variables(graph), np.array(images_of(graph, 20))
    images[3, 2, 1, 0] = images[11, 8, 6, 1] = np.nan
    assert calls(currents(graph), variables, images) == (3, 0, 0)
    found = np.asarray(jax.jit(currents(graph))(variables, images))
    np.testing.assert_array_equal(found, apart(currents(graph), variables, images))
    nan = np.isnan(found).any((1, 2))
    assert nan[[3, 11]].all()
    assert nan.sum() == 2
    assert 0 < np.nanmean(found) < 1


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_exports_contain_no_call_and_any_batch(platform):
    graph = GRAPHS["quantized"]
    variables = random_variables(graph)
    batch = jax.ShapeDtypeStruct((jax.export.symbolic_shape("b")[0], *graph.input.shape), jnp.float32)
    run = jax.jit(lambda images: currents(graph)(variables, images))
    exported = jax.export.export(run, platforms=[platform])(batch)
    assert "qpsnn_jax." not in exported.mlir_module()
    if platform == "cpu":
        images = images_of(graph, 3)
        np.testing.assert_allclose(exported.call(images), run(images), atol=1e-5)

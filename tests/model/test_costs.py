"""Costs against counting by convolution, and the sizes that the paper prints."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax.model.costs import Energy, activity_reducers, cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import (
    LIF,
    Attention,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Input,
    MaxPool,
    Quantizer,
)
from qpsnn_jax.model.operations import sops_reducers
from qpsnn_jax.model.sparsity import connection_sparsity
from qpsnn_jax.model.zoo import resnet20, vgg16, vggsnn

# Table 1: data set, network, T, ratios (by the order of labels below), parameters, MB at 8, 4 and 2 bits.
PUBLISHED = [
    ("cifar10", "resnet20", 2, (0.1, 0.3, 0.3, 0.6), 6226147, (6.27, 3.16, 1.61)),
    ("cifar10", "resnet20", 2, (0.1, 0.35, 0.35, 0.75), 3879231, (3.92, 1.98, 1.02)),
    ("cifar100", "resnet20", 2, (0.1, 0.3, 0.3, 0.6), 6272317, (6.45, 3.35, 1.79)),
    ("cifar100", "resnet20", 2, (0.1, 0.35, 0.35, 0.75), 3925401, (4.10, 2.17, 1.20)),
    ("cifar10", "vgg16", 4, (0.45, 0.51), 4246069, (4.28, 2.16, 1.10)),
    ("cifar10", "vgg16", 4, (0.49, 0.80), 1419349, (1.45, 0.74, 0.39)),
    ("cifar100", "vgg16", 4, (0.45, 0.70), 2314797, (2.48, 1.35, 0.79)),
    ("cifar100", "vgg16", 4, (0.45, 0.78), 1682659, (1.85, 1.04, 0.63)),
    ("tiny_imagenet", "vgg16", 4, (0.45, 0.51), 4650739, (5.90, 3.78, 2.72)),
    ("tiny_imagenet", "vgg16", 4, (0.45, 0.62), 3426467, (4.67, 3.17, 2.41)),
]
NETWORKS = {"resnet20": resnet20, "vgg16": vgg16}
DATA = {"cifar10": (10, (32, 32, 3)), "cifar100": (100, (32, 32, 3)), "tiny_imagenet": (200, (64, 64, 3))}
LABELS = {"resnet20": ("stem", "outputs", "first", "middle"), "vgg16": ("early", "late")}


@pytest.mark.parametrize(("data", "network", "timesteps", "ratios", "params", "sizes"), PUBLISHED)
def test_published_sizes(data, network, timesteps, ratios, params, sizes):
    classes, shape = DATA[data]
    settings = {"timesteps": timesteps, "classes": classes, "input_shape": shape}
    ratio = dict(zip(LABELS[network], ratios, strict=True))
    for bits, size in zip((8, 4, 2), sizes, strict=True):
        result = cost(NETWORKS[network](bits=bits, ratios=ratio, **settings))
        assert result.params == params
        assert round(result.size_bytes / 1e6, 2) == size


def test_published_size_and_connections_at_full_precision():
    whole = cost(NETWORKS["vgg16"](bits=None))
    assert whole.params == 14724106
    assert round(whole.size_bytes / 1e6, 1) == 58.9
    assert whole.quantized == 0
    widths = {"classes": 100, "timesteps": 2}
    ratio = dict(zip(LABELS["resnet20"], (0.1, 0.35, 0.35, 0.75), strict=True))
    left, all_ = (cost(NETWORKS["resnet20"](**widths, ratios=r)).quantized for r in (ratio, None))
    assert round(100 * left / all_, 1) == 22.7


def pooled_graph(*, frames: bool = False) -> Graph:
    """Uneven kernels, strides, paddings and inputs, and real-valued inputs to a convolution and a dense layer."""
    nodes = (
        Input("image", (9, 7, 2), frames),
        Conv("stem", "image", 4, kernel=(3, 2), strides=(2, 1), padding=(1, 0), bias=True),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0"),
        AveragePool("average", "lif0", (2, 2), (1, 2)),
        Conv("conv1", "average", 6, kernel=(2, 3), padding=(1, 2), quantizer=Quantizer(3), bias=True),
        LIF("lif1", "conv1", threshold=0.2),
        MaxPool("max", "lif1", (3, 2), (2, 2)),
        Conv(
            "conv2",
            "max",
            5,
            kernel=(1, 2),
            strides=(1, 2),
            padding=(0, 1),
            quantizer=Quantizer(3, granularity="channel"),
        ),
        LIF("lif2", "conv2", threshold=0.2),
        Flatten("flatten", "lif2"),
        Dense("fc1", "flatten", 7, bias=False),
        LIF("lif3", "fc1", threshold=0.2),
        Dense("fc2", "lif3", 3),
    )
    return Graph(nodes, timesteps=3)


@lru_cache
def measured(graph: Graph, batch: int = 5):
    """Activity by the reducers, and the captured values, of the same images."""
    variables, images = random_variables(graph), np.array(images_of(graph, batch))
    images[..., 0, :] = 0  # which a static image is charged for too
    network, names = SpikingNetwork(graph), [n.input for n in graph.nodes if isinstance(n, Conv | Dense)]
    lifs = [node.name for node in graph.nodes if isinstance(node, LIF)]

    @jax.jit
    def both(variables, images):
        captures = activity_reducers(graph), [*names, *lifs]
        return [network.apply(variables, images, capture=capture).captured for capture in captures]

    activity, values = both(variables, images)
    return activity, {name: np.asarray(getattr(value, "spikes", value)) for name, value in values.items()}


def operations(graph: Graph, variables, images: jax.Array):
    """The activity of a network, and the penalties on its operations, by one program."""
    network = SpikingNetwork(graph)

    @jax.jit
    def both(variables, images):
        captures = activity_reducers(graph), sops_reducers(graph)
        return [network.apply(variables, images, capture=capture).captured for capture in captures]

    return both(variables, images)


def counted(graph: Graph, node: Conv | Dense, nonzero: np.ndarray) -> float:
    """Multiplications whose input is not zero, per image: what each tap reads of the indicator."""
    if isinstance(node, Dense):
        return nonzero.sum() * node.features / len(nonzero)
    folded = nonzero.reshape(-1, *nonzero.shape[-3:])
    padded = np.pad(folded, ((0, 0), *((p, p) for p in node.padding), (0, 0)))
    (rows, columns), (sy, sx) = graph.values[node.name].shape[:2], node.strides
    taps = (padded[:, i : i + sy * rows : sy, j : j + sx * columns : sx] for i, j in np.ndindex(node.kernel))
    return sum(tap[:, :rows, :columns].sum() for tap in taps) * node.features / len(nonzero)


def reached(graph: Graph, node: Conv | Dense, nonzero: jax.Array) -> jax.Array:
    """The same of indicators that are differentiated: by a layer of ones."""
    images, inputs = nonzero.shape[0], nonzero.shape[-1]
    if isinstance(node, Dense):
        return nonzero.sum() * node.features / images
    folded = nonzero.reshape(-1, *nonzero.shape[-3:])
    padding = [(p, p) for p in node.padding]
    ones = jnp.ones((*node.kernel, inputs, node.features))
    out = jax.lax.conv_general_dilated(folded, ones, node.strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert out.shape[1:] == graph.values[node.name].shape
    return out.sum() / images


@pytest.mark.parametrize("graph", [pooled_graph(), pooled_graph(frames=True), residual_graph(Quantizer(2))])
def test_operations_are_those_of_direct_counting(graph):
    activity, values = measured(graph)
    result = cost(graph, activity)
    by_name = {node.name: node for node in result.nodes}
    macs = acs = 0.0
    for node in graph.nodes:
        if not isinstance(node, Conv | Dense):
            continue
        static = node.input == graph.input.name and not graph.input.frames
        value = values[node.input]
        indicator = np.ones(value.shape) if static else value != 0
        operations = counted(graph, node, indicator)
        spiking = set(np.unique(value)) <= {0.0, 1.0}
        expected = (0.0, operations) if spiking else (operations, 0.0)
        assert (by_name[node.name].macs, by_name[node.name].acs) == pytest.approx(expected, rel=1e-5)
        assert by_name[node.name].dense == counted(graph, node, np.ones(value.shape))
        macs, acs = macs + expected[0], acs + expected[1]
    assert result.sops_total == pytest.approx(acs, rel=1e-5)
    assert acs > 0
    assert result.macs_total == pytest.approx(macs, rel=1e-5)
    assert result.sops_per_step == pytest.approx(acs / graph.timesteps, rel=1e-5)
    assert result.energy_mj == pytest.approx((4.6 * macs + 0.9 * acs) * 1e-9, rel=1e-5)
    rates = {node.name: float(values[node.name].mean()) for node in graph.nodes if isinstance(node, LIF)}
    assert result.firing_rates == pytest.approx(rates, rel=1e-5)


def test_counting_by_loops_agrees_at_the_borders():
    graph = pooled_graph()
    node, (h, w, _), reads = graph.by_name["stem"], graph.values["image"].shape, 0
    assert isinstance(node, Conv)
    for row in range(-1, h + 1 - node.kernel[0] + 1, node.strides[0]):
        for column in range(0, w - node.kernel[1] + 1, node.strides[1]):
            reads += sum(
                0 <= row + i < h and 0 <= column + j < w for i in range(node.kernel[0]) for j in range(node.kernel[1])
            )
    assert cost(graph).nodes[0].dense == reads * 2 * 4


def test_a_static_image_enters_the_first_layer_once():
    static, frames = (cost(pooled_graph(frames=frames)).nodes for frames in (False, True))
    assert frames[0].dense == 3 * static[0].dense
    assert static[0].macs == static[0].dense
    assert [node.dense for node in static[1:]] == [node.dense for node in frames[1:]]


def test_parameters_and_bits_by_kind():
    by_name = {node.name: node for node in cost(pooled_graph()).nodes}
    assert (by_name["stem"].params, by_name["stem"].size_bits) == (3 * 2 * 2 * 4 + 4, 32 * (48 + 4))
    assert (by_name["bn0"].params, by_name["bn0"].size_bits) == (8, 8 * 32)
    assert (by_name["conv1"].quantized, by_name["conv1"].params) == (144, 150)
    assert by_name["conv1"].size_bits == 3 * 144 + 32 * 6
    assert by_name["conv2"].size_bits == 3 * 60
    assert by_name["fc1"].size_bits == 32 * by_name["fc1"].params
    assert by_name["lif0"].params == 0


def test_size_is_rounded_up_to_bytes():
    graph = Graph((Input("x", (1, 1, 1)), Conv("c", "x", 3, (1, 1), padding=(0, 0), quantizer=Quantizer(3))), 1)
    assert cost(graph).size_bytes == 2


def test_what_was_not_measured_is_not_known():
    result = cost(pooled_graph())
    assert (result.sops_total, result.sops_per_step, result.macs_total, result.energy_mj) == (None,) * 4
    assert result.firing_rates == {}
    assert result.params > 0
    activity, _ = measured(pooled_graph())
    some = cost(pooled_graph(), {name: value for name, value in activity.items() if name != "lif3"})
    assert some.sops_total is None
    assert some.macs_total is not None
    assert set(some.firing_rates) == {"lif0", "lif1", "lif2"}


def test_energy_of_another_technology():
    graph = pooled_graph()
    activity, _ = measured(graph)
    default, other = cost(graph, activity), cost(graph, activity, energy=Energy(mac_pj=2.0, ac_pj=0.5))
    assert default.macs_total is not None
    assert default.sops_total is not None
    assert other.energy_mj == pytest.approx(1e-9 * (2 * default.macs_total + 0.5 * default.sops_total))


def test_firing_rates_stand_for_maps():
    graph = pooled_graph()
    activity, _ = measured(graph)
    inputs = {node.input for node in graph.nodes if isinstance(node, Conv | Dense)}
    rates = {name: float(np.mean(activity[name])) for name in inputs if name in activity}
    even = cost(graph, {name: np.full(graph.values[name].shape, rate) for name, rate in rates.items()})
    assert cost(graph, rates).sops_total == pytest.approx(even.sops_total)
    assert cost(graph, rates).macs_total == pytest.approx(even.macs_total)
    spiking = residual_graph(Quantizer(2))
    assert cost(spiking, cost(spiking, measured(spiking)[0]).firing_rates).sops_total is None  # a pool does not fire
    with pytest.raises(ValueError, match="activity names 'lif9', which is not a node"):
        cost(graph, {"lif9": 0.1})


def test_the_footprint_adds_what_eq_16_leaves_out():
    graph = pooled_graph()
    extra = 2 * 4 + 1 + 5  # running moments of four channels, a scale for a layer, and five for a layer by channel
    assert cost(graph).footprint_bytes == cost(graph).size_bytes + 4 * extra


@pytest.mark.parametrize("name", ["lif0", "average", "flatten"])
def test_activity_of_another_shape_raises(name):
    graph = pooled_graph()
    activity, _ = measured(graph)
    with pytest.raises(ValueError, match=f"activity of node '{name}' has the shape"):
        cost(graph, {**activity, name: np.ones((2, 2))})


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_activity_is_a_share(value):
    graph = pooled_graph()
    with pytest.raises(
        ValueError, match="activity of node 'lif0' must be the share of steps with a spike, from 0 to 1"
    ):
        cost(graph, {**measured(graph)[0], "lif0": value})


def test_a_pooled_average_is_charged_as_multiplications():
    graph = Graph(
        (Input("x", (4, 4, 2)), LIF("lif", "x", threshold=0.1), GlobalAveragePool("g", "lif"), Dense("fc", "g", 3)), 2
    )
    activity, values = measured(graph)
    result = cost(graph, activity)
    assert result.sops_total == 0
    assert result.macs_total == pytest.approx(3 * float((values["g"] != 0).sum()) / 5)


def attentive_graph() -> Graph:
    nodes = [Input("image", (3, 2, 4))]
    for name in ("q", "k", "v"):
        nodes += [Conv(f"conv_{name}", "image", 6, (1, 1), padding=(0, 0)), BatchNorm(f"bn_{name}", f"conv_{name}")]
        nodes += [LIF(name, f"bn_{name}", threshold=0.3)]
    nodes += [Attention("attention", "q", "k", "v", head_features=3), LIF("lif", "attention", threshold=0.2)]
    return Graph((*nodes, Flatten("flatten", "lif"), Dense("fc", "flatten", 2)), timesteps=2)


def test_operations_of_attention_are_those_of_counting_by_loops():
    graph, images = attentive_graph(), 5
    variables, pictures = random_variables(graph), images_of(graph, images)
    network = SpikingNetwork(graph)
    values = jax.jit(partial(network.apply, capture=["q", "k", "v"]))(variables, pictures).captured
    q, k, v = (np.asarray(values[name].spikes).reshape(images, 2, 6, 2, 3) for name in "qkv")
    counts = 0
    for b, t, n, head in np.ndindex(images, 2, 6, 2):
        for i, j in np.ndindex(3, 3):
            counts += bool(k[b, t, n, head, i]) and bool(v[b, t, n, head, j])
            counts += bool(q[b, t, n, head, i])
    activity, penalties = operations(graph, variables, pictures)
    node = next(node for node in cost(graph, activity).nodes if node.name == "attention")
    assert counts > 0
    assert (node.acs, node.macs) == (pytest.approx(counts / images), 0)
    assert node.dense == 2 * 2 * 6 * 6 * 3
    assert cost(graph).sops_total is None
    assert float(penalties["attention"]) == pytest.approx(counts / images)


def test_sparsities():
    graph = residual_graph(Quantizer(2))
    activity, values = measured(graph)
    spikes = [np.asarray(values[node.name]) for node in graph.nodes if isinstance(node, LIF)]
    expected = 1 - sum(x.sum() for x in spikes) / sum(x.size for x in spikes)
    assert cost(graph, activity).activation_sparsity == pytest.approx(expected)
    assert cost(graph).activation_sparsity is None


def test_connections_are_those_of_quantized_weights():
    def network(quantizer: Quantizer | None) -> Graph:
        nodes = (Input("image", (3, 3, 2)), Conv("conv1", "image", 4, quantizer=quantizer), LIF("lif", "conv1"))
        return Graph((*nodes, Flatten("flat", "lif"), Dense("fc", "flat", 3)), 2)

    full, graph = network(None), network(Quantizer(2))
    variables = random_variables(graph)
    assert connection_sparsity(graph, variables) == 0
    kernel = variables["params"]["conv1"]["kernel"]
    kernel[0] = 0
    total = sum(leaves["kernel"].size for leaves in variables["params"].values())
    assert connection_sparsity(full, variables) == pytest.approx(kernel[0].size / total)
    assert connection_sparsity(graph, variables) == 0  # the grid has no zero


@pytest.mark.parametrize("frames", [False, True])
def test_the_penalty_is_the_number_of_operations(frames):
    graph = residual_graph(Quantizer(2)) if not frames else pooled_graph(frames=True)
    variables, images = random_variables(graph), images_of(graph, 5)
    activity, penalties = operations(graph, variables, images)
    assert float(sum(penalties.values())) == pytest.approx(cost(graph, activity).sops_total, rel=1e-5)


def test_the_gradient_of_the_penalty_is_that_of_direct_counting():
    graph = residual_graph(Quantizer(2))
    variables, images = random_variables(graph), images_of(graph, 3)
    network, weighted = SpikingNetwork(graph), [n for n in graph.nodes if isinstance(n, Conv | Dense)]
    spiking = [node for node in weighted if graph.values[node.input].spiking]

    def by_reducers(params):
        found = network.apply(variables | {"params": params}, images, capture=sops_reducers(graph)).captured
        return sum(found.values())

    def by_counting(params):
        names = [node.input for node in spiking]
        values = network.apply(variables | {"params": params}, images, capture=names).captured
        return sum(reached(graph, node, getattr(values[node.input], "spikes", values[node.input])) for node in spiking)

    expected = jax.jit(jax.grad(by_counting))(variables["params"])
    found = jax.jit(jax.grad(by_reducers))(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)
    assert float(jnp.abs(found["stem"]["kernel"]).max()) > 1


@pytest.mark.parametrize("frames", [False, True])
def test_binary_data_are_accumulated(frames):
    """The same operations as of data that are not said to be binary, as additions."""
    graph = pooled_graph(frames=frames)
    binary = Graph((dataclasses.replace(graph.input, binary=True), *graph.nodes[1:]), graph.timesteps)
    images = np.float32(np.asarray(images_of(graph)) > 0.5)
    activity, penalties = operations(binary, random_variables(graph), images)
    found, real = (cost(each, activity) for each in (binary, graph))
    stem, before = found.nodes[0], real.nodes[0]
    assert (stem.name, stem.macs, before.acs) == ("stem", 0, 0)
    assert stem.acs == pytest.approx(counted(binary, binary.by_name["stem"], images != 0))
    if frames:
        assert stem.acs == before.macs
        assert found.sops_total == pytest.approx(real.sops_total + before.macs)
    assert float(sum(penalties.values())) == pytest.approx(found.sops_total, rel=1e-5)


def test_flags_of_the_input():
    for name in ("frames", "binary"):
        with pytest.raises(ValueError, match=f"{name} must be True or False, got 2"):
            Input("x", (2, 2, 1), **{name: 2})
    assert vggsnn(binary=True, width=1 / 16).input == Input("image", (48, 48, 2), frames=True, binary=True)

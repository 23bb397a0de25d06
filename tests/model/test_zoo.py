import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Quantizer
from qpsnn_jax.model.zoo import ds_cnn, mobilenet, resnet20, vgg16
from qpsnn_jax.model.zoo.blocks import kept_channels
from qpsnn_jax.model.zoo.resnet20 import option_a_source

over = pytest.mark.parametrize
NETWORKS = {"resnet20": resnet20, "vgg16": vgg16}


def params_of(graph: Graph) -> dict:
    images = jax.ShapeDtypeStruct((1, *graph.input.shape), jnp.float32)
    return jax.eval_shape(SpikingNetwork(graph).init, jax.random.key(0), images)["params"]


def params(graph: Graph) -> int:
    """By the leaves of every node, which takes no trace of the network."""
    leaves = (leaf for node in graph.nodes for leaf in node.leaves(graph.inputs_of(node)).values())
    return sum(leaf.size for leaf in leaves if leaf.collection == "params")


def resnet_ratios(stem: float, outputs: float, first: float, middle: float) -> dict:
    return {"stem": stem, "outputs": outputs, "first": first, "middle": middle}


def vgg_ratios(early: float, late: float) -> dict:
    return {"early": early, "late": late}


CIFAR10, CIFAR100 = {"classes": 10}, {"classes": 100}
TINY = {"classes": 200, "input_shape": (64, 64, 3)}
# Tables 1, 9 and 10 of the paper; with 0.3 and 0.35 for the stage-2 outputs, which alone give the published sizes.
PARAMETERS = [
    (resnet20, CIFAR10, None, 17_048_906),
    (resnet20, CIFAR100, None, 17_095_076),
    (resnet20, CIFAR10, resnet_ratios(0.1, 0.3, 0.3, 0.6), 6_226_147),
    (resnet20, CIFAR10, resnet_ratios(0.1, 0.35, 0.35, 0.75), 3_879_231),
    (resnet20, CIFAR100, resnet_ratios(0.1, 0.3, 0.3, 0.6), 6_272_317),
    (resnet20, CIFAR100, resnet_ratios(0.1, 0.35, 0.35, 0.75), 3_925_401),
    (vgg16, CIFAR10, None, 14_724_106),
    (vgg16, CIFAR10, vgg_ratios(0.45, 0.51), 4_246_069),
    (vgg16, CIFAR10, vgg_ratios(0.49, 0.8), 1_419_349),
    (vgg16, CIFAR100, vgg_ratios(0.45, 0.7), 2_314_797),
    (vgg16, CIFAR100, vgg_ratios(0.45, 0.78), 1_682_659),
    (vgg16, TINY, vgg_ratios(0.45, 0.51), 4_650_739),
    (vgg16, TINY, vgg_ratios(0.45, 0.62), 3_426_467),
]


@over(("network", "options", "ratios", "count"), PARAMETERS)
def test_parameter_counts_of_the_paper(network, options: dict, ratios: dict | None, count: int):
    graph = network(**options, ratios=ratios)
    assert params(graph) == count
    if options is CIFAR100 and ratios:
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params_of(graph))) == count


@over("name", NETWORKS)
def test_structure(name: str):
    graph = NETWORKS[name](bits=3, timesteps=5, classes=7)
    layers = [node for node in graph.nodes if isinstance(node, Conv | Dense)]
    assert len(layers) == {"resnet20": 20, "vgg16": 14}[name]
    assert [layer.quantizer for layer in layers] == [None, *[Quantizer(3)] * (len(layers) - 2), None]
    assert [layer.bias for layer in layers] == [name == "vgg16", *[False] * (len(layers) - 2), True]
    assert (graph.timesteps, graph.classes, graph.input.frames) == (5, 7, False)
    neurons = [node for node in graph.nodes if isinstance(node, LIF)]
    assert len(neurons) == len(layers) - 1
    assert not any(node.quantizer for node in NETWORKS[name](bits=None).nodes if isinstance(node, Conv | Dense))


@over("name", NETWORKS)
def test_options_pass_through(name: str):
    quantizer, neuron = Quantizer(4, "mse", "channel", "scaled"), LIF("", "", 0.9, 0.7, ">", "soft", True, "arctan")
    graph = NETWORKS[name](bits=quantizer, lif=neuron)
    layers = [node for node in graph.nodes if isinstance(node, Conv)][1:]
    assert {layer.quantizer for layer in layers} == {quantizer}
    neurons = [node for node in graph.nodes if isinstance(node, LIF)]
    assert neurons == [LIF(n.name, n.input, 0.9, 0.7, ">", "soft", True, "arctan") for n in neurons]


def test_shapes_inside():
    resnet, small, tiny = resnet20(), resnet20(input_shape=(8, 8, 1)), vgg16(**TINY)
    stages = [resnet.values[f"layer{stage}.2.lif2"].shape for stage in (1, 2, 3)]
    assert stages == [(32, 32, 128), (16, 16, 256), (8, 8, 512)]
    assert small.values["layer3.2.lif2"].shape == (2, 2, 512)
    assert resnet.values["pool"].shape == (512,)
    assert vgg16().values["flatten"].shape == (512,)
    assert tiny.values["flatten"].shape == (2048,)


@over("name", NETWORKS)
@over("width", [0.25, 0.5, 1 / 3, 1.5])
def test_width(name: str, width: float):
    whole, scaled = (
        [node.features for node in NETWORKS[name](width=w).nodes if isinstance(node, Conv)] for w in (1, width)
    )
    assert scaled == [round(n * width) for n in whole]


def test_ratios_cut_after_the_width():
    features = {n.name: n.features for n in resnet20(width=0.5, ratios={"stem": 0.1}).nodes if isinstance(n, Conv)}
    assert features["conv1"] == int(32 * 0.9)
    assert features["layer1.0.conv1"] == 64


# In binary, width · (1 - ratio) is just below or above these integers.
DECIMAL = [(10, 0.8, 2), (10, 0.9, 1), (40, 0.8, 8), (9, 2 / 3, 3), (9, 1 - 2 / 3, 6)]


@over(
    ("width", "ratio", "kept"), [(64, 0.1, 57), (128, 0.35, 83), (512, 0.78, 112), (5, 0.0, 5), (3, 0.66, 1), *DECIMAL]
)
def test_kept_channels(width: int, ratio: float, kept: int):
    assert kept_channels(width, ratio) == kept


@over(
    ("inputs", "outputs", "source"),
    [
        (2, 4, (-1, 0, 1, -1)),
        (2, 5, (-1, 0, 1, -1, -1)),
        (3, 3, (0, 1, 2)),
        (4, 2, (1, 2)),
        (5, 2, (2, 3)),
        (1, 4, (-1, 0, -1, -1)),
    ],
)
def test_option_a(inputs: int, outputs: int, source: tuple):
    assert option_a_source(inputs, outputs) == source


@over(("network", "options", "pairs"), [(mobilenet, {"width": 0.25}, 13), (ds_cnn, {}, 4)])
def test_depthwise_separable(network, options: dict, pairs: int):
    graph = network(**options, ratios=None)
    layers = [node for node in graph.nodes if isinstance(node, Conv)]
    depthwise, pointwise = layers[1::2], layers[2::2]
    assert len(depthwise) == len(pointwise) == pairs
    assert all(node.groups == node.features == graph.values[node.input].shape[-1] for node in depthwise)
    assert all((node.kernel, node.groups) == ((1, 1), 1) for node in pointwise)
    # As Keras counts the networks of MLPerf Tiny: with a bias of every layer and the running moments.
    weights = sum(math.prod(leaves["kernel"].shape) for leaves in params_of(graph).values() if "kernel" in leaves)
    channels = sum(node.features for node in layers)
    assert weights + channels + graph.classes + 4 * channels == {mobilenet: 221_794, ds_cnn: 24_908}[network]
    first = graph.values["stem.lif"].shape
    assert first == {mobilenet: (48, 48, 8), ds_cnn: (25, 5, 64)}[network]
    assert graph.values[graph.nodes[-3].name].shape[:2] == {mobilenet: (3, 3), ds_cnn: (25, 5)}[network]
    smaller = {n.name: n.features for n in network(**options, ratios={"stem": 0.5}).nodes if isinstance(n, Conv)}
    assert smaller["blocks.0.depthwise.conv"] == smaller["stem.conv"] == layers[0].features // 2


RESNET20, VGG16 = partial(resnet20, width=1 / 8), partial(vgg16, width=1 / 8)
ERRORS = [
    (vgg16, {"input_shape": (8, 8, 3)}, r"node 'features.13.pool': a window of \(2, 2\) does not fit an input of 1×1"),
    (vgg16, {"input_shape": (16, 16, 3)}, r"node 'pool': a window of \(2, 2\) does not fit an input of 1×1"),
    (vgg16, {"input_shape": (32, 32)}, "node 'image': shape must"),
    (resnet20, {"input_shape": (0, 8, 3)}, "node 'image': shape must"),
    *((n, {"bits": 9}, "bits must be an integer from 1 to 8, got 9") for n in NETWORKS.values()),
    *((n, {"bits": 0}, "bits must be an integer from 1 to 8, got 0") for n in NETWORKS.values()),
    *((n, {"timesteps": 0}, "timesteps must") for n in NETWORKS.values()),
    *((n, {"classes": 0}, "node 'fc': features must") for n in NETWORKS.values()),
    *((n, {"width": w}, "width must be positive") for n in NETWORKS.values() for w in (0, -1.0, 0.001)),
    *((n, {"ratios": {"outer": 0.1}}, "ratios name 'outer'; this network has ") for n in NETWORKS.values()),
    (resnet20, {"ratios": {"early": 0.1}}, "this network has stem, outputs, first, middle"),
    *((resnet20, {"ratios": {"stem": r}}, "ratio of 'stem' must be") for r in (1.0, -0.1, 1.5, float("nan"))),
    *((vgg16, {"ratios": {"late": r}}, "ratio of 'late' must be") for r in (1.0, -0.1)),
    (RESNET20, {"ratios": {"stem": 0.9}}, "ratio of 0.9 leaves none of 8 channels"),
    (VGG16, {"ratios": {"early": 0.9}}, "ratio of 0.9 leaves none of 8 channels"),
]


@over(("network", "options", "message"), ERRORS)
def test_errors(network, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        network(**options)

"""Folding: the affine map of every channel, on an oracle written in floating point, and the networks that raise."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import GRAPHS, folded_of, moments, pixels_of, variables_of
from small_networks import random_variables

from qpsnn_jax.data import load
from qpsnn_jax.data.feed import feed
from qpsnn_jax.export import folded_layers
from qpsnn_jax.export.agreement import compare
from qpsnn_jax.export.folding import fold, fold_node
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.packed.file import payload_bytes
from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import (
    LIF,
    Attention,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    Input,
    MaxPool,
    Quantizer,
    Result,
    Unary,
)
from qpsnn_jax.model.precision import with_edge_bits
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.model.zoo.blocks import conv_bn
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.pruning import prune
from qpsnn_jax.runs.directory import load_network, read_config
from qpsnn_jax.training.optim import optimizer
from qpsnn_jax.training.state import init_state, init_variables
from qpsnn_jax.training.steps import make_train_step


def test_first_currents_are_the_float_networks():
    graph = GRAPHS["dense"]
    pixels, (mean, std) = pixels_of(graph), moments(graph)
    network = folded_of("dense")
    layer = network.layers[0]
    images = normalize(pixels, mean, std)
    run = jax.jit(lambda tree, x: SpikingNetwork(graph).apply(tree, x, capture=["bn0"]))
    captured = run(variables_of("dense"), images)[1]
    centered = np.pad(pixels - np.asarray(network.image.mean), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for y, x in ((0, 0), (2, 4), (5, 5)):
        patch = centered[:, y : y + 3, x : x + 3]
        currents = np.einsum("bhwi,hwio->bo", patch, layer.kernel) * layer.scale + layer.bias
        np.testing.assert_allclose(currents, np.asarray(captured["bn0"])[:, y, x], atol=1e-4)


def test_scales_are_positive_and_codes_flipped():
    folded, variables = folded_of("resnet20"), variables_of("resnet20")
    norm = variables["params"]["layer1.0.bn1"]["scale"]
    assert (norm < 0).any()
    layer = folded.layers[1]
    assert (layer.scale >= 0).all()
    kernel = variables["params"]["layer1.0.conv1"]["kernel"] * np.sign(norm)
    correlation = [np.corrcoef(layer.kernel[..., o].ravel(), kernel[..., o].ravel())[0, 1] for o in range(1, 15)]
    assert min(correlation) > 0.8


@pytest.mark.parametrize("theta", [0.7, 0.9])
def test_a_current_that_equals_the_threshold_in_float32_fires(theta):
    one_bit = Quantizer(1, gamma="max")
    neurons = (Dense("hidden", "flat", 2, bias=False, quantizer=one_bit), LIF("lif2", "hidden", threshold=theta))
    graph = _graph(*STEM, Flatten("flat", "lif1"), *neurons, Dense("fc", "lif2", 2))
    variables = random_variables(graph)
    # Only the first neuron of the first layer fires, always.
    variables["params"]["conv1"]["kernel"][:] = 0
    variables["params"]["conv1"]["kernel"][1, 1, 0, 0] = 9
    variables["params"]["hidden"]["kernel"][:] = np.float32(theta)
    variables["scales"]["hidden"]["gain"][:] = 1
    pixels = np.zeros((1, 4, 4, 1), np.uint8)
    pixels[0, 0, 0] = 255
    found = compare(graph, variables, IntegerNetwork.of(fold(graph, variables, (0.0,), (1.0,))), pixels, (0.0,), (1.0,))
    assert found.spikes == {"lif1": 0, "lif2": 0}


def test_pruned_network_keeps_its_gamma():
    graph = GRAPHS["resnet20"]
    keep = {"layer1.0.conv1": jnp.arange(0, 16, 2)}
    smaller, variables = prune(graph, variables_of("resnet20"), keep)
    network = IntegerNetwork.of(fold(smaller, variables, *moments(graph)))
    assert network.folded.layers[1].kernel.shape[-1] == 8
    found = compare(smaller, variables, network, pixels_of(graph, 24), *moments(graph))
    assert found.predictions == 1
    assert max(found.spikes.values()) < 1e-3


def test_trained_network_on_its_test_set(small_run):
    config = read_config(small_run)
    data = load(config.data.name, seed=config.run.seed, test_examples=config.data.test_examples)
    graph, variables = load_network(small_run)
    rounded = {}
    for bits in (8, 32):
        network = IntegerNetwork.of(fold(graph, variables, data.mean, data.std, stem_bits=bits, readout_bits=bits))
        test = data.test
        rounded[bits] = compare(graph, variables, network, test.images, data.mean, data.std, test.labels)
    exact = rounded[32]
    assert exact.predictions == 1
    assert exact.accuracy_float is not None
    assert exact.accuracy_float > 0.2
    assert exact.accuracy_other == exact.accuracy_float
    assert max(exact.spikes.values()) < 1e-4
    assert rounded[8].predictions >= 0.9


def _graph(*nodes, timesteps=2):
    return Graph((Input("image", (4, 4, 1)), *nodes), timesteps)


STEM = (Conv("conv1", "image", 2), LIF("lif1", "conv1"))
INVALID = {
    "leak": (
        resnet20(width=1 / 8, lif=LIF("", "", tau=0.9)),
        "node 'lif1': a decay factor τ of 0.9 is not exact in integers; .* the nearest is 0.875",
    ),
    "leak of one channel": (
        _graph(
            Conv("conv1", "image", 2), LIF("lif1", "conv1", tau=(0.5, 0.3)), Flatten("f", "lif1"), Dense("fc", "f", 2)
        ),
        "node 'lif1': a decay factor τ of 0.3 is not exact",
    ),
    "full precision": (resnet20(bits=None, width=1 / 8), "node 'layer1.0.conv1' reads spikes with full-precision"),
    "attention": (
        _graph(*STEM, Attention("attn", "lif1", "lif1", "lif1", 1), LIF("lif2", "attn")),
        "node 'attn': Attention cannot be exported as integers",
    ),
    "max-pool of currents": (
        _graph(Conv("conv1", "image", 2), MaxPool("pool", "conv1"), LIF("lif1", "pool")),
        "node 'pool': a max-pool of other values than spikes",
    ),
    "quantized stem and two std": (
        Graph((Input("image", (4, 4, 2)), Conv("conv1", "image", 2, quantizer=Quantizer(2)), LIF("lif1", "conv1")), 2),
        "node 'conv1': quantized weights on pixels need one std for all channels",
    ),
    "average-pool between": (
        _graph(*STEM, AveragePool("pool", "lif1"), Conv("conv2", "pool", 2, quantizer=Quantizer(2)), LIF("l", "conv2")),
        "node 'conv2' reads 'pool', which is not spikes",
    ),
    "two convolutions in a row": (
        _graph(*STEM, Conv("conv2", "conv1", 2, quantizer=Quantizer(2)), LIF("lif2", "conv2")),
        "node 'conv2' reads 'conv1', which is not spikes",
    ),
    "neurons on what is not a current": (
        _graph(*STEM, AveragePool("pool", "lif1"), LIF("lif2", "pool")),
        "node 'pool': a current that is neither",
    ),
    "no synapses": (_graph(*STEM, LIF("lif2", "lif1")), "node 'lif2': integer neurons read one convolution"),
    "no readout": (_graph(*STEM), "node 'lif1': the last node must be a dense readout, or neurons on a dense layer"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_integers_cannot_express_raises(name):
    graph, message = INVALID[name]
    channels = graph.input.shape[2]
    with pytest.raises(ValueError, match=message):
        fold(graph, random_variables(graph), (0.5,) * channels, (0.25, 0.5)[:channels] if channels < 3 else (0.25,) * 3)


def test_first_and_last_layers_of_8_bits_are_exact_after_training():
    """A small network on the digits: every prediction is the float network's, and no weight is stored as a float."""
    data = load("digits", train_examples=480, test_examples=120)
    options = {"quantizer": Quantizer(2, ste="plain")}
    nodes = (
        Input("image", (8, 8, 1)),
        *conv_bn("image", "conv1", "bn1", 6),
        LIF("lif1", "bn1"),
        *conv_bn("lif1", "conv2", "bn2", 8, strides=(2, 2), **options),
        LIF("lif2", "bn2"),
        Flatten("flat", "lif2"),
        Dense("fc", "flat", 10),
    )
    graph = with_edge_bits(Graph(nodes, 2), 8)
    tx, batches = optimizer("adam", 0.02), feed(data.train, 60, 0)
    prepare = partial(normalize, mean=data.mean, std=data.std)
    step = jax.jit(make_train_step(graph, tx, prepare=lambda key, images: prepare(images)))
    state = init_state(init_variables(graph, jax.random.key(0)), tx, jax.random.key(0))
    for _ in range(40):
        state, _ = step(state, *next(batches))
    folded = fold(graph, state.variables, data.mean, data.std)
    images, labels = data.test
    network = IntegerNetwork.of(folded)
    found = compare(graph, state.variables, network, images, data.mean, data.std, labels)
    assert found.predictions == 1
    assert found.accuracy_other > 0.6
    assert {layer.kernel.dtype for layer in (*folded.neurons, folded.readout)} == {np.dtype(np.uint8)}
    assert all(constants.fine is None for constants in network.neurons.values())
    assert payload_bytes(folded) == cost(graph).size_bytes + 4  # and one scale of the readout


def test_options_are_checked():
    graph, variables = GRAPHS["resnet20"], variables_of("resnet20")
    for options, message in (({"stem_bits": 16}, "stem_bits must be 8 or 32"), ({"readout_bits": 4}, "readout_bits")):
        with pytest.raises(ValueError, match=message):
            fold(graph, variables, (0.5,), (0.5,), **options)
    with pytest.raises(ValueError, match="mean and std need 1 finite numbers"):
        fold(graph, variables, (0.5, 0.5), (0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Latch(Unary):
    """Spikes as they come: a kind of node from outside the package."""

    def infer(self, inputs):
        return inputs[0]

    def run(self, leaves, inputs, context):
        return Result(inputs[0])


def test_a_node_from_outside_raises_with_the_line_to_write_and_folds_once_it_is_written(monkeypatch):
    graph = _graph(*STEM, Latch("latch", "lif1"), Flatten("flat", "latch"), Dense("fc", "flat", 3))
    arguments = (graph, random_variables(graph), (0.5,), (0.25,))
    line = "@qpsnn_jax.export.folding.fold_node.register."
    with pytest.raises(ValueError, match=f"node 'latch': Latch cannot be exported as integers; register .* {line}"):
        fold(*arguments)

    @fold_node.register(Latch)
    def _(node, folding):
        return folded_layers.MaxPool(node.name, node.input, (1, 1), (1, 1), (0, 0))

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    found = compare(graph, arguments[1], IntegerNetwork.of(fold(*arguments)), pixels, (0.5,), (0.25,))
    assert (found.predictions, found.spikes) == (1, {"lif1": 0})


def test_what_the_output_does_not_need_is_left_out():
    graph = _graph(
        *STEM, Conv("dead", "lif1", 3), LIF("unread", "dead"), Flatten("flat", "lif1"), Dense("fc", "flat", 3)
    )
    layers = fold(graph, random_variables(graph), (0.5,), (0.25,)).layers
    assert [layer.name for layer in layers] == ["lif1", "fc"]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_membrane_at_the_threshold_fires_as_in_the_graph(name):
    strict = {node.name: node.fire == ">" for node in GRAPHS[name].nodes if isinstance(node, LIF)}
    assert {layer.name: layer.strict for layer in folded_of(name).neurons} == strict

"""The integers of a network: the same as the float network's, the same in XLA, within their bound, and without JAX."""

import dataclasses
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from compilers import by_step
from exported import GRAPHS, float_run, folded_of, moments, pixels_of, variables_of
from simulation import simulate
from small_networks import random_variables

from qpsnn_jax.export import integer_network
from qpsnn_jax.export.agreement import compare
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Image, Neurons, Rates, Readout, Residual
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.integer_network import IntegerNetwork, currents
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Add, Conv, Dense, Flatten, GlobalAveragePool, Input, Quantizer
from qpsnn_jax.model.zoo.blocks import conv_bn
from qpsnn_jax.numerics.early_exit import early_exit
from qpsnn_jax.numerics.normalization import normalize


def test_needs_no_jax():
    code = "import qpsnn_jax.export.integer_network, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", GRAPHS)
def test_agrees_with_the_float_network(name):
    graph, network = GRAPHS[name], IntegerNetwork.of(folded_of(name))
    expected, neurons = float_run(name, 24), [layer.name for layer in network.folded.neurons]
    logits, spikes = network(pixels_of(graph, 24), neurons)
    np.testing.assert_array_equal(logits.argmax(-1), expected[graph.output.name].mean(1).argmax(-1))
    for each in neurons:
        assert np.mean(spikes[each] != expected[each].reshape(spikes[each].shape)) < 1e-3


@pytest.mark.parametrize("name", ["vggsnn", "dense"])
def test_the_comparison_of_the_package_finds_agreement(name):
    graph, pixels = GRAPHS[name], pixels_of(GRAPHS[name], 24)
    found = compare(graph, variables_of(name), IntegerNetwork.of(folded_of(name)), pixels, *moments(graph))
    assert found.images == len(pixels)
    assert found.predictions == 1
    assert max(found.spikes.values()) < 1e-3
    assert set(found.spikes) == {layer.name for layer in folded_of(name).neurons}


@pytest.mark.parametrize(("name", "bits"), [*((name, 32) for name in GRAPHS), ("dense", 8)])
def test_xla_computes_the_same_bits(name, bits):
    network, pixels = IntegerNetwork.of(folded_of(name, bits, bits)), pixels_of(GRAPHS[name])
    logits = jax.jit(lambda x: simulate(network, x))(pixels)
    np.testing.assert_array_equal(np.asarray(logits), network(pixels))
    assert len(np.unique(network(pixels))) > 3


@pytest.mark.parametrize("name", ["vggsnn", "dense"])
def test_every_step_has_logits_whose_sum_is_the_whole(name):
    network, pixels = IntegerNetwork.of(folded_of(name)), pixels_of(GRAPHS[name])
    steps = network.by_step(pixels)
    assert steps.dtype == np.int32
    assert steps.shape == (len(pixels), network.folded.timesteps, network.folded.classes)
    np.testing.assert_array_equal(steps.sum(1), network(pixels))
    np.testing.assert_array_equal(steps.cumsum(1), by_step(network, pixels)[:, : network.folded.timesteps])


def test_early_exit_of_integers_is_that_of_their_currents():
    network, pixels = IntegerNetwork.of(folded_of("vggsnn")), pixels_of(GRAPHS["vggsnn"])
    logits = network.by_step(pixels)
    predictions, steps = early_exit(logits, network.margin(0.2))
    floating = early_exit((logits / network.one).astype(np.float32), 0.2)
    np.testing.assert_array_equal(predictions, floating.predictions)
    np.testing.assert_array_equal(steps, floating.steps)
    assert len(set(steps.tolist())) > 1
    assert [network.margin(m) for m in (-1.0, 0.0, 1e-9, 1e30)] == [0, 0, 1, 2**32 - 1]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("bits", [8, 32])
def test_membranes_stay_within_the_bound(name, bits):
    network, pixels = IntegerNetwork.of(folded_of(name, bits, bits)), pixels_of(GRAPHS[name])
    layers = [layer.name for layer in network.folded.layers[:-1]]
    logits, maps = network(pixels, layers)
    assert np.abs(logits).max() <= network.readout.bound < 2**31
    image = pixels if network.folded.image.frames else pixels[:, None]
    rates = []
    for layer in network.folded.neurons:
        constants = network.neurons[layer.name]
        assert max(constants.high.max(), -constants.low.min()) < 2**31
        driven = currents(layer, constants, maps | {network.folded.image.name: image})
        membrane = np.zeros_like(driven[:, 0])
        for step in range(network.folded.timesteps):
            membrane = (membrane >> 1) + driven[:, step if driven.shape[1] > 1 else 0]
            assert ((constants.low <= membrane) & (membrane <= constants.high)).all()
            membrane = np.where(maps[layer.name][:, step], 0, membrane)
        rates.append(maps[layer.name].mean())
    assert min(rates) > 0.02, "a silent layer tests nothing"


def test_leak_threshold_and_reset_by_hand():
    # One pixel, weight 1 a grey level, θ = 100: V = 60, 90, 105 fires and is reset, 60, …
    network = IntegerNetwork.of(_tiny(threshold=100.0, timesteps=4))
    _, maps = network(np.full((1, 1, 1, 1), 60, np.uint8), ["lif"])
    assert maps["lif"].ravel().tolist() == [0, 0, 1, 0]
    exactly = IntegerNetwork.of(_tiny(threshold=90.0, timesteps=2)), IntegerNetwork.of(_tiny(90.0, 2, strict=True))
    spikes = [network(np.full((1, 1, 1, 1), 60, np.uint8), ["lif"])[1]["lif"].ravel().tolist() for network in exactly]
    assert spikes == [[0, 1], [0, 0]]


def residual_network(**options) -> Graph:
    """Without batch-norm, so that no neuron has a bias."""
    nodes = (
        Input("image", (8, 8, 1)),
        Conv("stem", "image", 8),
        LIF("first", "stem"),
        Conv("conv", "first", 8, quantizer=Quantizer(2)),
        Add("add", "conv", "first"),
        LIF("second", "add", **options),
        GlobalAveragePool("pool", "second"),
        Dense("fc", "pool", 3),
    )
    return Graph(nodes, 1 if options.get("tau") != 1.0 else 2)


@pytest.mark.parametrize("fire", [">=", ">"])
@pytest.mark.parametrize("reset", ["hard", "soft", "delayed"])
@pytest.mark.parametrize("options", [{}, {"threshold": 2.0, "tau": 1.0}])
def test_residual_spikes_meet_the_threshold_exactly(fire, reset, options):
    """Where the synapses add up to 0; by two residual spikes with a θ of 2. Membranes in float32 are rounded too."""
    graph = residual_network(fire=fire, reset=reset, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    ties = 0
    for seed in range(4):
        variables = random_variables(graph, seed)
        network = IntegerNetwork.of(fold(graph, variables, (0.5,), (0.25,)))
        found = compare(graph, variables, network, pixels, (0.5,), (0.25,), precision="exact")
        assert found.spikes["second"] < (2e-4 if options else 1e-9)
        images = normalize(pixels, (0.5,), (0.25,))
        trace = SpikingNetwork(graph, "exact").apply(variables, images, capture=["second"]).captured["second"]
        ties += int((trace.membranes == options.get("threshold", 1.0)).sum())
    assert ties > 100


def test_fraction_makes_the_shift_exact():
    for name in GRAPHS:
        network = IntegerNetwork.of(folded_of(name))
        for layer in list(network.folded.neurons)[1:]:
            constants = network.neurons[layer.name]
            assert (constants.shift >= network.folded.timesteps - 1).all()
            assert constants.fine is None


def test_synapses_without_effect_are_a_constant_current():
    network = IntegerNetwork.of(folded_of("resnet20"))
    for layer in network.folded.neurons:
        assert not network.neurons[layer.name].live[0]
        assert network.neurons[layer.name].live[1:-1].any()


def test_many_steps_shift_no_further_than_32_bits_hold():
    network = IntegerNetwork.of(_tiny(threshold=255.0, timesteps=1024))
    assert network.neurons["lif"].shift.max() < 31
    pixels = np.full((1, 1, 1, 1), 200, np.uint8)
    assert network(pixels).ravel().tolist() == [512]  # every second step: 200, then 300 ≥ 255


def test_sums_of_256ths_are_exact():
    # One large weight, and many that are 256ths alone: their sum exceeds the integers of float32, that of all does not.
    kernel = np.full((32, 32, 1, 1), 0.9 / 2047, np.float32)
    kernel[0, 0] = 1
    lif = Neurons("lif", "image", kernel / 255, 32, (1, 1), (0, 0), np.ones(1, np.float32), np.zeros(1, np.float32))
    folded = Folded(Image("image", (32, 32, 1), (0.0,)), (lif, Rates("rates", "lif")), 2)
    constants = IntegerNetwork.of(folded).neurons["lif"]
    pixels = np.random.default_rng(0).integers(200, 256, (20, 1, 32, 32, 1), np.uint8)
    whole, parts = (
        np.einsum("bthwi,hwio->bto", pixels.astype(np.int64), each) << constants.shift
        for each in (constants.weights, constants.fine)
    )
    assert constants.sums < 2**24 < parts.max()
    found = currents(lif, constants, {"image": pixels})[:, :, 0, 0]
    np.testing.assert_array_equal(found, whole + (parts >> 8) + constants.bias)


def test_weights_in_groups_take_no_memory_for_those_between_them():
    channels, ones, zeros = 2**15, np.ones(2**15, np.float32), np.zeros(2**15, np.float32)
    first = Neurons("lif", "image", np.ones((1, 1, 1, channels), np.int8), 8, (1, 1), (0, 0), ones, zeros, 100.0)
    codes = np.random.default_rng(0).integers(0, 2, (1, 1, 1, channels), np.uint8)
    second = Neurons("each", "lif", codes, 1, (1, 1), (0, 0), ones, zeros, groups=channels)
    folded = Folded(Image("image", (1, 1, 1), (0.0,)), (first, second, Rates("rates", "each")), 2)
    tracemalloc.start()
    logits = IntegerNetwork.of(folded)(np.full((1, 1, 1, 1), 200, np.uint8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(logits[0], 2 * codes.ravel())
    assert peak < 2**25


def test_big_maps_are_multiplied_in_pieces(monkeypatch):
    network, pixels = IntegerNetwork.of(folded_of("vggsnn")), pixels_of(GRAPHS["vggsnn"])
    whole = network(pixels)
    monkeypatch.setattr(integer_network, "_CHUNK", 500)
    np.testing.assert_array_equal(network(pixels), whole)


@pytest.mark.parametrize("scale", [1e-5, 3e-4])
def test_a_weak_channel_of_the_first_layer_has_fewer_bits(scale):
    readout = (Flatten("flat", "lif"), Dense("fc", "flat", 3))
    graph = Graph((Input("image", (8, 8, 3)), *conv_bn("image", "conv", "bn", 4), LIF("lif", "bn"), *readout), 4)
    variables, arguments = random_variables(graph), (pixels_of(graph, 24), *moments(graph))
    norm = variables["params"]["bn"]
    # After two steps without a spike the membrane is just below or above the threshold, as the pixels decide.
    norm["scale"][0], norm["bias"][0] = scale, graph.by_name["lif"].threshold / 1.5
    network = IntegerNetwork.of(fold(graph, variables, *arguments[1:]))
    constants = network.neurons["lif"]
    assert constants.live.all()
    largest = np.abs(constants.weights).max((0, 1, 2))
    assert largest[0] < 2**14 < largest[1:].min()
    assert compare(graph, variables, network, *arguments).spikes["lif"] < 1e-3
    second = network(arguments[0], ["lif"])[1]["lif"][:, 1, ..., 0]
    assert 0.1 < second.mean() < 0.9


def test_overflow_raises():
    one = np.ones(1, np.float32)
    first = Neurons(
        "lif", "image", np.ones((1, 1, 1, 2048), np.int8), 8, (1, 1), (0, 0), *2 * [np.ones(2048, np.float32)]
    )
    weak = Neurons("weak", "lif", np.full((1, 1, 2048, 1), 255, np.uint8), 8, (1, 1), (0, 0), one * 2**-33, one)
    with pytest.raises(
        ValueError, match="layer 'weak': .* 32 bits; the weights of its output 0, times the scale, are far"
    ):
        IntegerNetwork.of(Folded(Image("image", (1, 1, 1), (0.0,)), (first, weak, Rates("rates", "weak")), 2))
    with pytest.raises(ValueError, match="layer 'lif': a membrane could reach .* which exceeds 32 bits"):
        IntegerNetwork.of(_tiny(threshold=1.0, timesteps=2, bias=1e12))
    with pytest.raises(ValueError, match="layer 'fc': a logit could reach"):
        IntegerNetwork.of(_tiny(threshold=1.0, timesteps=2, readout_bias=1e12))


def test_wrong_inputs_are_named():
    network = IntegerNetwork.of(folded_of("resnet20"))
    pixels = pixels_of(GRAPHS["resnet20"])
    for wrong in (pixels[0], pixels[:0], pixels[..., :4, :], pixels.astype(np.float32)):
        with pytest.raises(ValueError, match="pixels must be uint8 of shape b 8 8 1"):
            network(wrong)
    with pytest.raises(ValueError, match="capture names 'lif9', which is not a layer of the network; those are image"):
        network(pixels, ["lif9"])
    with pytest.raises(ValueError, match="at least one image"):
        compare(GRAPHS["resnet20"], variables_of("resnet20"), network, pixels[:0], *moments(GRAPHS["resnet20"]))


BROKEN = {
    "timesteps": (lambda f: {"timesteps": 0}, "timesteps must be an integer from 1 to 1024, got 0"),
    "no readout": (lambda f: {"layers": f.layers[:-1]}, "exactly one readout, as its last layer"),
    "a name twice": (lambda f: {"layers": (f.layers[0], *f.layers)}, "another layer has the same name"),
    "a missing input": (lambda f: {"layers": f.layers[1:]}, "is not an earlier layer"),
    "means": (lambda f: {"image": dataclasses.replace(f.image, mean=(0.0,) * 4)}, "the image needs 1 means"),
    "codes": (lambda f: _changed(f, 1, kernel=f.layers[1].kernel + np.uint8(9)), "a code is above 3"),
    "bits": (lambda f: _changed(f, 1, bits=9), "of 9 bits does not fit"),
    "scale": (lambda f: _changed(f, 1, scale=-f.layers[1].scale), "scales not negative"),
    "bias": (lambda f: _changed(f, 1, bias=f.layers[1].bias[1:]), "bias must be 16 finite float32 numbers"),
    "threshold": (lambda f: _changed(f, 1, threshold=0.0), "the threshold must be positive"),
    "strides": (lambda f: _changed(f, 1, strides=(0, 1)), "its strides must be an integer from 1 to"),
    "padding": (
        lambda f: _changed(f, 1, padding=(3, 1)),
        "can lie in a padding of",
    ),
    "maps": (
        lambda f: {
            **_changed(f, -1, window=(75, 75)),
            "image": dataclasses.replace(f.image, shape=(300, 300, 1)),
            "timesteps": 1024,
        },
        r"layer 'image': 1024 maps of shape \(300, 300, 1\) are too large",
    ),
    "window": (lambda f: _changed(f, -1, window=(3, 2)), "does not fit"),
    "residual": (lambda f: _changed(f, 1, residual=Residual("lif1", (0, 8) * 8)), "names channels that do not exist"),
    "residual shape": (lambda f: _changed(f, 1, residual=Residual("lif1", (0,) * 16, 2)), "adds a residual of shape"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folded_networks_are_checked(name):
    change, message = BROKEN[name]
    folded = folded_of("resnet20")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(folded, **change(folded))


def _changed(folded, index, **fields):
    layers = list(folded.layers)
    layers[index] = dataclasses.replace(layers[index], **fields)
    return {"layers": tuple(layers)}


def _tiny(threshold=1.0, timesteps=2, strict=False, bias=0.0, readout_bias=0.0):
    one = np.ones((1, 1, 1, 1), np.int8)
    scale, zero = np.ones(1, np.float32), np.float32([bias])
    lif = Neurons("lif", "image", one, 8, (1, 1), (0, 0), scale, zero, threshold, strict)
    fc = Readout("fc", "lif", (1, 1), (1, 1), one, 1.0, np.float32([readout_bias]), 8)
    return Folded(Image("image", (1, 1, 1), (0.0,)), (lif, fc), timesteps)

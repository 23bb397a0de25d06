"""Unfolding: the network that a folded one becomes computes the same, and folds to the same codes."""

import jax
import numpy as np
import pytest
from exported import GRAPHS, folded_of, moments

from qpsnn_jax import SpikingNetwork, fold, unfold
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.unfolding import current_moments
from qpsnn_jax.model.nodes import Quantizer
from tests.small_networks import random_variables, residual_graph

_MEAN, _STD = (0.4, 0.5), (0.2, 0.3)


@pytest.fixture(scope="module")
def network():
    graph = residual_graph(Quantizer(2))
    variables = random_variables(graph)
    # Negative scales of batch-norm exchange codes.
    variables["params"]["bn1"]["scale"][::2] *= -1
    return graph, variables


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 6, 6, 2), np.uint8)


def _logits(graph, variables, images):
    x = ((images / 255 - np.asarray(_MEAN)) / np.asarray(_STD)).astype(np.float32)
    return np.asarray(jax.jit(SpikingNetwork(graph).apply)(variables, x).currents).mean(1)


@pytest.mark.parametrize(("with_moments", "bits"), [(False, 32), (True, 32), (True, 8)])
def test_the_same_function_and_the_same_codes(network, images, with_moments, bits):
    graph, variables = network
    folded = fold(graph, variables, _MEAN, _STD, stem_bits=bits, readout_bits=bits)
    moments = current_moments(graph, variables) if with_moments else None
    again, leaves = unfold(folded, _STD, moments)
    integers = IntegerNetwork.of(folded)(images)
    found = _logits(again, leaves, images)
    assert (found.argmax(1) == integers.argmax(1)).mean() >= 0.95  # 24-bit rounding of the stem may move a spike
    if bits == 32:
        np.testing.assert_allclose(found, _logits(graph, variables, images), atol=1e-4)
    twice = fold(again, leaves, _MEAN, _STD)
    for first, second in zip(folded.neurons, twice.neurons, strict=True):
        if first.kernel.dtype == np.uint8:
            np.testing.assert_array_equal(first.kernel, second.kernel)
            np.testing.assert_allclose(first.scale, second.scale, rtol=1e-5)
        np.testing.assert_allclose(first.bias, second.bias, rtol=1e-4, atol=1e-5)
        assert (first.threshold, first.strict, first.residual) == (second.threshold, second.strict, second.residual)


def test_moments_are_those_of_the_currents(network, images):
    """After exact recalibration, the moments that unfolding takes are those of the unfolded layers' own outputs."""
    from qpsnn_jax import recalibrate

    graph, variables = network
    x = ((images / 255 - np.asarray(_MEAN)) / np.asarray(_STD)).astype(np.float32)
    variables = recalibrate(graph, variables, [x])
    again, leaves = unfold(fold(graph, variables, _MEAN, _STD), _STD, current_moments(graph, variables))
    fresh = recalibrate(again, leaves, [x])
    for name, stats in leaves["batch_stats"].items():
        np.testing.assert_allclose(stats["mean"], fresh["batch_stats"][name]["mean"], atol=2e-3)
        np.testing.assert_allclose(stats["var"], fresh["batch_stats"][name]["var"], rtol=2e-3)


@pytest.mark.parametrize(
    ("std", "moments", "words"),
    [
        ((0.2,), {}, "std must be 2 positive numbers"),
        ((0.2, 0.0), {}, "std must be 2 positive numbers"),
        (_STD, {"lif9": (np.zeros(6), np.ones(6))}, "'lif9', which is not a layer of neurons"),
        (_STD, {"lif1": (np.zeros(6), np.ones(6))}, "layer 'lif1': its moments must be 8 finite"),
        (_STD, {"lif1": (np.zeros(8), np.full(8, np.nan))}, "layer 'lif1': its moments must be 8 finite"),
    ],
)
def test_wrong_input_is_named(network, std, moments, words):
    graph, variables = network
    with pytest.raises(ValueError, match=words):
        unfold(fold(graph, variables, _MEAN, _STD), std, moments)


def test_codes_of_first_and_last_layers_and_ternary_ones():
    folded, (mean, std) = folded_of("mixed"), moments(GRAPHS["mixed"])
    twice = fold(*unfold(folded, std), mean, std)
    for first, second in zip(folded.neurons, twice.neurons, strict=True):
        live = first.scale > 0
        np.testing.assert_array_equal(first.kernel[..., live], second.kernel[..., live])
        np.testing.assert_allclose(first.scale, second.scale, rtol=1e-5)
        assert (first.bits, first.levels) == (second.bits, second.levels)
    np.testing.assert_array_equal(folded.readout.kernel, twice.readout.kernel)
    assert folded.readout.scale == pytest.approx(twice.readout.scale, rel=1e-6)

"""Bits by layer: what the settings make, what is measured, and the knapsack against every choice there is."""

from functools import cache
from itertools import product

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax import (
    Graph,
    NetworkSettings,
    Quantizer,
    SpikingNetwork,
    allocate_bits,
    bit_sensitivity,
    cost,
    cross_entropy,
    with_edge_bits,
    with_layer_bits,
    with_quantizer,
)
from qpsnn_jax.data import Arrays, DataSet
from qpsnn_jax.model.nodes import LIF, Conv, Dense, GlobalAveragePool, Input
from qpsnn_jax.model.precision import quantized_layers
from qpsnn_jax.model.settings import build
from qpsnn_jax.model.zoo import resnet20, sew_resnet18, spikingformer, vgg16
from qpsnn_jax.runs.loading import for_network

GRAPH = Graph(
    (
        Input("image", (4, 4, 3)),
        Conv("stem", "image", 4),
        LIF("lif0", "stem"),
        Conv("conv", "lif0", 5, quantizer=Quantizer(2, "learned")),
        LIF("lif1", "conv"),
        Conv("ternary", "lif1", 4, quantizer=Quantizer(levels=3)),
        LIF("lif2", "ternary"),
        GlobalAveragePool("pool", "lif2"),
        Dense("fc", "pool", 3),
    ),
    2,
)


def test_bits_of_single_layers_and_of_the_first_and_last():
    edges = with_edge_bits(GRAPH, 8)
    assert {name: (q.bits, q.gamma, q.granularity) for name, q in quantized_layers(edges).items()} == {
        "stem": (8, "max", "channel"),
        "conv": (2, "learned", "layer"),
        "ternary": (2, "mean", "layer"),
        "fc": (8, "max", "layer"),
    }
    other = with_layer_bits(edges, {"fc": 4, "ternary": 1})
    assert {name: (q.bits, q.levels) for name, q in quantized_layers(other).items()} == {
        "stem": (8, None),
        "conv": (2, None),
        "ternary": (1, None),
        "fc": (4, None),
    }
    weights = {"stem": 108, "conv": 180, "ternary": 180, "fc": 12}
    bits = {"stem": 8, "conv": 2, "ternary": 8 / 5, "fc": 8}
    stored = sum(weights[name] * bits[name] for name in weights) + 32 * (3 + 1)  # the bias and a learned γ
    assert cost(edges).size_bytes == stored / 8
    with pytest.raises(ValueError, match="bits name 'stem', which is not a quantized layer; there are conv, ternary"):
        with_layer_bits(GRAPH, {"stem": 8})
    for wrong in ({"levels": 3}, {"levels": 5, "bits": 2}):
        with pytest.raises(ValueError, match="levels must be 3, with bits 2, or None"):
            Quantizer(**{"bits": 3} | wrong)


def test_the_settings_of_a_network():
    settings = NetworkSettings(width=0.125, levels=3, edge_bits=8, layer_bits={"layer1.0.conv1": 4})
    graph = build(settings, input_shape=(8, 8, 1), classes=10)
    found = quantized_layers(graph)
    assert (found["conv1"].bits, found["fc"].bits, found["layer1.0.conv1"].bits) == (8, 8, 4)
    assert found["layer1.0.conv2"].levels == 3
    assert found["layer1.0.conv1"].levels is None
    for wrong, message in (
        ({"bits": None, "edge_bits": 8}, "edge_bits and levels need bits"),
        ({"bits": 4, "levels": 3}, "levels needs 2 bits, got 4"),
        ({"layer_bits": {"fc": 2.5}}, r"layer_bits must be integers, got 2\.5 of 'fc'"),
    ):
        with pytest.raises(ValueError, match=message):
            NetworkSettings(**wrong)


def test_pixels_of_a_quantized_stem_have_one_std():
    images = np.zeros((4, 4, 4, 3), np.uint8)
    part = Arrays(images, np.zeros(4, np.int32))
    data = DataSet("zeros", part, part, 3, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert for_network(GRAPH, data) is data
    assert for_network(with_edge_bits(GRAPH, 8), data).std == pytest.approx([(0.14 / 3) ** 0.5] * 3)


def test_sensitivity_is_the_loss_of_the_changed_network():
    variables = random_variables(GRAPH)
    batches = [(images_of(GRAPH, 3, seed), np.arange(3, dtype=np.int32)) for seed in (0, 1)]
    found = bit_sensitivity(GRAPH, variables, batches, bits=(1, 8))
    assert {name: set(losses) for name, losses in found.items()} == {"conv": {1, 8}, "ternary": {1, 8}}
    changed = with_layer_bits(GRAPH, {"ternary": 8})

    @jax.jit
    def loss(images, labels):
        return cross_entropy(SpikingNetwork(changed).apply(variables, images).currents, labels).mean()

    assert found["ternary"][8] == pytest.approx(np.mean([float(loss(*batch)) for batch in batches]), rel=1e-4)
    with pytest.raises(ValueError, match="needs at least one batch"):
        bit_sensitivity(GRAPH, variables, [])


OPTIONS = 1, 2, 3, 4, 8


@cache
def sizes_of_all_choices() -> dict[tuple[int, ...], int]:
    graph = with_edge_bits(GRAPH, 8)
    layers = quantized_layers(graph)
    return {
        choice: cost(with_layer_bits(graph, dict(zip(layers, choice, strict=True)))).size_bytes
        for choice in product(OPTIONS, repeat=len(layers))
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_knapsack_is_the_best_of_all_choices(seed):
    draw = np.random.default_rng(seed)
    graph, sizes = with_edge_bits(GRAPH, 8), sizes_of_all_choices()
    losses = {name: dict(zip(OPTIONS, draw.normal(size=5), strict=True)) for name in quantized_layers(graph)}
    budget = int(draw.integers(min(sizes.values()), max(sizes.values()) + 1))
    found = allocate_bits(graph, losses, bytes=budget)
    assert cost(with_layer_bits(graph, found)).size_bytes <= budget
    total = sum(losses[name][bits] for name, bits in found.items())
    # Every layer is filled up to a whole byte there, which Eq. 16 does not count.
    within = [choice for choice, size in sizes.items() if size <= budget - 3]
    sums = [sum(losses[name][b] for name, b in zip(losses, choice, strict=True)) for choice in within]
    assert total <= min(sums, default=np.inf) + 1e-9


def test_wrong_budgets_and_losses_raise():
    with pytest.raises(ValueError, match="a budget of 10 bytes cannot be met: the fewest bits need"):
        allocate_bits(GRAPH, {"conv": {1: 1.0}}, bytes=10)
    with pytest.raises(ValueError, match="losses name 'fc', which is not a quantized layer"):
        allocate_bits(GRAPH, {"fc": {1: 1.0}}, bytes=1000)
    with pytest.raises(ValueError, match="bits in the losses of 'conv' must be an integer from 1 to 8, got 9"):
        allocate_bits(GRAPH, {"conv": {9: 1.0}}, bytes=1000)


@pytest.mark.parametrize("network", [resnet20, vgg16, sew_resnet18, spikingformer])
def test_a_quantizer_goes_where_the_zoo_has_it(network):
    plain, expected = (network(bits=bits, width=1 / 4) for bits in (None, 2))
    variables = random_variables(plain)
    graph, quantized = with_quantizer(plain, variables, Quantizer(2))
    assert graph == expected
    assert quantized["params"] == variables["params"]
    assert jax.tree.structure(quantized) == jax.tree.structure(random_variables(expected))
    assert {float(gain) for leaves in quantized["scales"].values() for gain in leaves["gain"]} == {1.0}


def test_a_quantizer_of_named_layers_starts_from_their_weights():
    """The learned γ from its first value; a layer's other quantizer is replaced, with its array."""
    variables = random_variables(GRAPH)
    learned = Quantizer(4, "learned", "channel")
    graph, quantized = with_quantizer(GRAPH, variables, learned, layers=["stem", "ternary"])
    assert quantized_layers(graph) == {"stem": learned, "conv": GRAPH.by_name["conv"].quantizer, "ternary": learned}
    for name in ("stem", "ternary"):
        kernel = variables["params"][name]["kernel"]
        assert quantized["params"][name]["kernel"] is kernel
        np.testing.assert_array_equal(quantized["params"][name]["gamma"], learned.gamma_of(kernel).ravel())
    assert quantized["params"]["conv"] == variables["params"]["conv"]
    assert "ternary" not in {name for name, leaves in quantized["scales"].items() if leaves}
    images = images_of(GRAPH)
    assert np.isfinite(SpikingNetwork(graph).apply(quantized, images).currents).all()
    back, _ = with_quantizer(graph, quantized, Quantizer(levels=3), layers=["ternary"])
    assert back.by_name["ternary"] == GRAPH.by_name["ternary"]
    assert with_quantizer(GRAPH, variables, learned)[0] == GRAPH  # both hidden layers have theirs

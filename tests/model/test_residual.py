"""Residual branches that start small: which batch-norms end them, and that a network then begins as its shortcuts."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax import Graph, NetworkSettings, Quantizer, SpikingNetwork, init_variables, nodes, with_residual_scale
from qpsnn_jax.model import layers
from qpsnn_jax.model.graph import from_json, to_json
from qpsnn_jax.model.nodes import LIF, Add, AveragePool, BatchNorm, Conv, Dense, Flatten, Input
from qpsnn_jax.model.settings import build
from qpsnn_jax.model.zoo import resnet20, sew_resnet18, spikingformer, vgg16

BODY = (
    Input("image", (4, 4, 3)),
    Conv("stem", "image", 4),
    BatchNorm("bn0", "stem"),
    LIF("lif0", "bn0"),
    Conv("conv1", "lif0", 4, quantizer=Quantizer(2)),
    BatchNorm("bn1", "conv1"),
    LIF("lif1", "bn1"),
    Conv("conv2", "lif1", 4, quantizer=Quantizer(2)),
    BatchNorm("bn2", "conv2"),
    Add("add", "bn2", "lif0"),
    LIF("lif2", "add"),
)
READOUT = (AveragePool("pool", "lif2", (4, 4), (4, 4)), Flatten("flat", "pool"), Dense("fc", "flat", 3))
GRAPH = Graph((*BODY, *READOUT), 3)


def scaled(graph: Graph) -> list[str]:
    small = with_residual_scale(graph, 0.25)
    assert [replace(node, scale_init=1.0) if isinstance(node, BatchNorm) else node for node in small.nodes] == [
        *graph.nodes
    ]
    return [node.name for node in small.nodes if isinstance(node, BatchNorm) and node.scale_init == 0.25]


def test_the_batch_norms_that_end_the_branches_of_the_zoo():
    blocks = [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3) for block in range(3)]
    assert scaled(resnet20(width=1 / 8)) == blocks
    # Neurons end these branches, and the shortcuts have convolutions of their own.
    assert scaled(sew_resnet18(width=1 / 8)) == [f"layer{s}.{b}.bn2" for s in (1, 2, 3, 4) for b in range(2)]
    former = scaled(spikingformer(width=1 / 3, blocks=2))
    assert former == ["position.bn", *(f"block{b}.{part}.out.bn" for b in range(2) for part in ("attn", "mlp"))]


def test_fresh_variables_differ_in_these_scales_alone():
    key = jax.random.key(0)
    usual, small = init_variables(GRAPH, key), init_variables(with_residual_scale(GRAPH, 0.25), key)
    np.testing.assert_array_equal(small["params"]["bn2"]["scale"], np.full(4, 0.25, np.float32))
    small["params"]["bn2"]["scale"] = usual["params"]["bn2"]["scale"]
    jax.tree.map(np.testing.assert_array_equal, small, usual)


def test_with_a_scale_near_zero_neurons_pass_the_spikes_of_the_shortcut():
    """The network then computes what it computes without the block: a spike alone brings a membrane to θ.

    That holds where 1 - s rounds to 1; a larger branch that is negative keeps a membrane below θ.
    """
    tiny = with_residual_scale(GRAPH, 1e-30)
    variables = random_variables(GRAPH)
    variables["params"]["bn2"] = init_variables(tiny, jax.random.key(0))["params"]["bn2"]
    shortcut = Graph((*BODY[:4], LIF("lif2", "lif0"), *READOUT), 3)
    kept = {kind: {n: v for n, v in arrays.items() if n in shortcut.by_name} for kind, arrays in variables.items()}
    images = images_of(GRAPH, 8)
    whole = SpikingNetwork(tiny).apply(variables, images, capture=["lif0", "lif2"])
    np.testing.assert_array_equal(whole.captured["lif2"].spikes, whole.captured["lif0"].spikes)
    assert 0.05 < np.mean(whole.captured["lif0"].spikes) < 0.95
    np.testing.assert_array_equal(whole.currents, SpikingNetwork(shortcut).apply(kept, images).currents)


def test_settings_and_files_hold_it():
    options = {"input_shape": (8, 8, 1), "classes": 10}
    graph = build(NetworkSettings(width=0.125, residual_scale=0.5), **options)
    usual = build(NetworkSettings(width=0.125), **options)
    assert graph == with_residual_scale(usual, 0.5) == from_json(to_json(graph))
    old = to_json(usual).replace(', "scale_init": 1.0', "")
    assert "scale_init" not in old
    assert from_json(old) == usual


def test_inputs_with_as_many_layers_before_them_are_no_branches():
    """The first addition has a branch; what is added next is parallel to it."""
    parallel = (
        Conv("conv3", "lif0", 4, quantizer=Quantizer(2)),
        BatchNorm("bn3", "conv3"),
        Conv("conv4", "lif0", 4, quantizer=Quantizer(2)),
        BatchNorm("bn4", "conv4"),
        Add("sum", "bn3", "lif0"),
        Add("both", "sum", "bn4"),
    )
    assert scaled(Graph((*BODY[:4], *parallel), 1)) == ["bn3"]


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "0.25"])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="the scale of residual branches must be"):
        with_residual_scale(GRAPH, scale)


def test_networks_without_such_branches_are_refused():
    for graph in (vgg16(width=1 / 8), Graph((Input("image", (4, 4, 1)), Conv("conv", "image", 2)), 1)):
        with pytest.raises(ValueError, match="the network has no residual branch that ends in a batch-norm"):
            with_residual_scale(graph, 0.5)
    with pytest.raises(ValueError, match="residual_scale"):
        NetworkSettings(residual_scale=0.0)


def test_a_layer_of_flax_starts_with_it_too():
    variables = layers.BatchNorm(scale_init=0.5).init(jax.random.key(0), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(variables["params"]["scale"], np.full(3, 0.5, np.float32))
    with pytest.raises(ValueError, match="scale_init"):
        nodes.BatchNorm("bn", "conv", scale_init=-1.0)

"""Variables that are not those of a graph are named before anything is written from them."""

import copy
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax import init_variables
from qpsnn_jax.export.agreement import Side, compare_networks
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.kernels.native import library
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input, Quantizer
from qpsnn_jax.model.variables import check_variables
from qpsnn_jax.runs.directory import save_network


def network(features: int = 4, more: str = "more") -> Graph:
    nodes = (
        Input("image", (2, 2, 1)),
        Conv("stem", "image", 3),
        BatchNorm("bn", "stem"),
        LIF("lif", "bn"),
        Conv("conv", "lif", features, quantizer=Quantizer(2)),
        LIF(more, "conv"),
        Flatten("flat", more),
        Dense("fc", "flat", 2),
    )
    return Graph(nodes, timesteps=2)


GRAPH, VARIABLES = network(), random_variables(network())


def changed(collection: str, node: str, leaf: str, array) -> dict:
    variables = copy.deepcopy(VARIABLES)
    if array is None:
        del variables[collection][node][leaf]
    else:
        variables[collection].setdefault(node, {})[leaf] = array
    return variables


WRONG = {
    "missing": (changed("params", "conv", "kernel", None), r"params/conv/kernel of shape \(3, 3, 3, 4\) is missing"),
    "shape": (
        changed("batch_stats", "bn", "mean", np.zeros(4)),
        r"batch_stats/bn/mean has the shape \(4,\), not \(3,\)",
    ),
    "unknown": (changed("params", "conv2", "kernel", np.zeros(1)), "it has no params/conv2/kernel"),
    "complex": (
        changed("scales", "conv", "gain", np.ones(1, complex)),
        "must be floating, scales/conv/gain is complex",
    ),
}
WRITERS = {
    "save_network": lambda variables, path: save_network(path, GRAPH, variables, {}),
    "fold": lambda variables, path: fold(GRAPH, variables, (0.5,), (0.5,)),
    "nir_graph": lambda variables, path: nir_graph(GRAPH, variables),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", WRONG)
def test_variables_of_another_network(writer: str, kind: str, tmp_path: Path):
    variables, words = WRONG[kind]
    check_variables(GRAPH, VARIABLES)
    with pytest.raises(ValueError, match=words):
        WRITERS[writer](variables, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_are_compared_where_their_neurons_have_the_same_names():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), np.uint8)
    sides = [
        Side(graph, random_variables(graph, seed), (0.5,), (0.5,))
        for graph, seed in ((GRAPH, 0), (network(more="others"), 1), (network(6), 1), (Graph(GRAPH.nodes, 3), 0))
    ]
    images = (pixels / 255).astype(np.float32) * 2 - 1
    run = jax.jit(partial(SpikingNetwork(GRAPH).apply, capture=["lif"]))  # those of both graphs are alike up to there
    spikes = [np.asarray(run(side.variables, images).captured["lif"].spikes) for side in sides[:2]]
    found = [compare_networks(sides[0], other, pixels) for other in sides]
    assert [list(each.spikes) for each in found] == [["lif", "more"], ["lif"], ["lif"], []]
    assert found[0].spikes == {"lif": 0, "more": 0}
    assert found[1].spikes["lif"] == pytest.approx(np.mean(spikes[0] != spikes[1]))
    assert found[1].spikes["lif"] > 0


def test_variables_are_those_of_the_module_and_need_no_library(monkeypatch):
    """They are declared without running the network, so that a first start does not wait for kernels here."""
    graph, key = network(), jax.random.key(1)
    expected = dict(jax.jit(SpikingNetwork(graph).init)(key, images_of(graph, 1)))
    monkeypatch.setattr(library, "load", None)
    found = init_variables(graph, key)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)

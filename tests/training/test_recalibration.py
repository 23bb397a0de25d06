"""Recalibrated batch-norm: its running moments are those of what each layer receives in evaluation mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import programs_compiled
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax import Graph, Quantizer, SpikingNetwork, channel_groups, prune, recalibrate
from qpsnn_jax.model.network import run_graph_node
from qpsnn_jax.model.nodes import BatchNorm, Dense, Flatten, Input
from qpsnn_jax.training.recalibration import _levels


@pytest.fixture(scope="module")
def pruned():
    graph = residual_graph(Quantizer(2))
    keep = {name: range(max(1, group.size // 2)) for name, group in channel_groups(graph).items() if group.label}
    return prune(graph, random_variables(graph), keep)


@pytest.fixture(scope="module")
def batches(pruned):
    images = images_of(pruned[0], batch=7)
    return [images[:4], images[4:]]


@pytest.fixture(scope="module")
def recalibrated(pruned, batches):
    return recalibrate(*pruned, batches)


def test_the_moments_are_those_of_what_every_layer_receives(pruned, batches, recalibrated):
    graph, given = pruned
    norms = [node for node in graph.nodes if isinstance(node, BatchNorm)]
    network = jax.jit(lambda v, x: SpikingNetwork(graph).apply(v, x, capture=[node.input for node in norms]).captured)
    parts = [network(recalibrated, batch) for batch in batches]
    for node in norms:
        values = np.concatenate([np.asarray(part[node.input], np.float64) for part in parts])
        if not graph.values[node.input].timed:
            values = np.repeat(values[None], graph.timesteps, 0)
        values = values.reshape(-1, values.shape[-1])
        stats = recalibrated["batch_stats"][node.name]
        np.testing.assert_allclose(stats["mean"], values.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats["var"], values.var(0, ddof=1), rtol=1e-4, atol=1e-5)
        assert not np.allclose(stats["mean"], given["batch_stats"][node.name]["mean"], atol=0.05)


def test_nothing_else_changes(pruned, recalibrated):
    _, given = pruned
    for name in ("params", "scales"):
        jax.tree.map(np.testing.assert_array_equal, recalibrated[name], given[name])
    assert jax.tree.map(np.shape, recalibrated) == jax.tree.map(np.shape, given)


def test_one_batch_or_several_and_what_was_there_before_do_not_matter(pruned, batches, recalibrated):
    graph, _ = pruned
    again = recalibrate(graph, recalibrated, [np.concatenate(batches)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, recalibrated)


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray, lambda x: jax.device_put(x, jax.devices()[0])])
def test_every_level_of_a_network_has_one_program_wherever_its_arrays_lie(pruned, batches, place):
    """Arrays that are read from a file are committed to a device; those of a level are then too."""
    graph, variables = pruned
    jax.clear_caches()
    with programs_compiled() as compiled:
        found = recalibrate(graph, placed := jax.tree.map(place, variables), batches[:1])
    levels = len(_levels(graph))
    assert compiled.count("_run_level") == levels > 2
    with programs_compiled() as compiled:
        recalibrate(graph, placed, batches[:1])
    assert "_run_level" not in compiled
    for old, new in zip(*map(jax.tree.leaves, (placed["batch_stats"], found["batch_stats"])), strict=True):
        assert getattr(old, "committed", False) == new.committed


def test_arrays_and_images_of_another_network_are_refused(pruned, batches):
    graph, variables = pruned
    with pytest.raises(ValueError, match="the variables are not those of the graph"):
        recalibrate(graph, {**variables, "params": {}}, batches)
    with pytest.raises(ValueError, match="images must have the shape"):
        recalibrate(graph, variables, [batches[0][:, :1]])
    with pytest.raises(ValueError, match="precision must be"):
        recalibrate(graph, variables, batches, precision="fats")
    with pytest.raises(ValueError, match="call it outside of jax.jit"):
        jax.jit(lambda v: recalibrate(graph, v, batches))(variables)


def test_no_layer_is_run_more_than_twice(pruned, batches, monkeypatch):
    """Spikes are kept from level to level; only the currents between them are computed again."""
    graph, variables = pruned
    runs = []

    def run_node_and_count(graph, node, *others, **options):
        runs.append(node.name)
        return run_graph_node(graph, node, *others, **options)

    monkeypatch.setattr("qpsnn_jax.training.recalibration.run_graph_node", run_node_and_count)
    jax.clear_caches()
    recalibrate(graph, variables, batches[:1])
    assert max(runs.count(name) for name in graph.neurons) == 1  # what is behind the last batch-norm is not run
    assert max(runs.count(node.name) for node in graph.nodes) == 2


def test_without_batch_norm_nothing_changes():
    graph = Graph((Input("image", (4, 4, 1)), Flatten("flat", "image"), Dense("fc", "flat", 3)), 2)
    variables = random_variables(graph)
    assert recalibrate(graph, variables, [images_of(graph, batch=2)]) == variables


def test_without_images_there_is_nothing_to_estimate(pruned):
    with pytest.raises(ValueError, match="recalibrate needs at least one batch of images"):
        recalibrate(*pruned, [])

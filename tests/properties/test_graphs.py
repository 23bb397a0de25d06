"""Random graphs: run, written, pruned and counted as NumPy does it."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reference
from random_graphs import channels_of, graph_of, images_of, variables_of
from seeds import seeds

from qpsnn_jax.model.costs import activity_reducers, cost
from qpsnn_jax.model.graph import Graph, from_json, to_json
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Attention, BatchNorm, Conv, Dense
from qpsnn_jax.model.state import initial_state
from qpsnn_jax.numerics.sparsity import stored_bits
from qpsnn_jax.pruning import prune
from qpsnn_jax.pruning.channels import channel_numbers


def widened(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert found.shape == expected.shape, name
    tolerance = 1e-9 * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=tolerance, err_msg=name)


@seeds(50)
def test_written_and_read_a_graph_is_the_same(seed):
    graph = graph_of(seed)
    assert from_json(to_json(graph)) == graph
    assert from_json(json.dumps(json.loads(to_json(graph)))) == graph
    assert hash(from_json(to_json(graph))) == hash(graph)


@seeds(12)
def test_every_node_gives_what_numpy_gives_and_costs_what_is_counted(seed):
    graph = graph_of(seed)
    variables, images = widened(variables_of(graph, seed)), images_of(graph, seed).astype(np.float64)
    names = [node.name for node in graph.nodes]

    def run(variables: Any, images: Any) -> Any:
        return SpikingNetwork(graph).apply(variables, images, capture=names)

    def measure(variables: Any, images: Any) -> Any:
        return SpikingNetwork(graph).apply(variables, images, capture=activity_reducers(graph))[1]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        output, activity = jax.device_get(jax.jit(lambda *a: (run(*a), measure(*a)))(variables, images))
    shapes = jax.eval_shape(SpikingNetwork(graph).init, jax.random.key(0), jnp.asarray(images, jnp.float32))
    assert jax.tree.map(np.shape, {k: v for k, v in variables.items() if v}) == jax.tree.map(np.shape, dict(shapes))
    expected = reference.run(graph, variables, images)
    for name, value in output.captured.items():
        value = value[0] if isinstance(value, tuple) else value
        steps = value if graph.values[name].timed else np.repeat(value[:, None], graph.timesteps, 1)
        same(np.asarray(steps), expected.values[name], name)
    same(np.asarray(output.currents), expected.values[graph.output.name], "currents")
    counted(graph, variables, expected, cost(graph, activity, masks=variables["masks"]))


@seeds(4)
def test_step_by_step_a_graph_gives_what_it_gives_at_once(seed):
    graph = graph_of(seed)
    variables, images = widened(variables_of(graph, seed)), images_of(graph, seed).astype(np.float64)
    one = SpikingNetwork(dataclasses.replace(graph, timesteps=1))

    def steps(variables: Any, images: Any) -> Any:
        def step(state: Any, frame: Any) -> Any:
            output = one.apply(variables, frame[:, None] if graph.input.frames else images, state=state)
            return output.state, output.currents[:, 0]

        frames = jnp.moveaxis(images, 1, 0) if graph.input.frames else None
        rest = initial_state(graph, len(images), images.dtype)
        state, currents = jax.lax.scan(step, rest, frames, graph.timesteps)
        return jnp.moveaxis(currents, 0, 1), state

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        currents, state = jax.device_get(jax.jit(steps)(variables, images))
    expected = reference.run(graph, variables, images)
    same(currents, expected.values[graph.output.name], "currents")
    assert set(state) == set(graph.neurons)
    for name, left in state.items():
        node, spikes = graph.by_name[name], expected.values[name][:, -1]
        last = expected.membranes[name][:, -1]
        reset = {"hard": last, "soft": np.asarray(node.threshold), "delayed": 0}[node.reset]
        same(left, last - reset * spikes, name)


def counted(graph: Graph, variables: Any, run: reference.Run, found: Any) -> None:
    by_name = {node.name: node for node in found.nodes}
    images = len(run.values[graph.input.name])
    masks = {name: leaves["mask"] for name, leaves in variables["masks"].items()}
    for node in graph.nodes:
        leaves = sum(np.size(leaf) for leaf in variables["params"].get(node.name, {}).values())
        if node.name in masks:
            leaves -= np.sum(masks[node.name] == 0)
        if leaves:
            assert by_name[node.name].params == leaves
        if not isinstance(node, Conv | Dense | Attention):
            continue
        inputs = [run.values[name] for name in node.inputs]
        mask = masks.get(node.name, np.ones(np.shape(variables["params"].get(node.name, {}).get("kernel"))))
        attends = isinstance(node, Attention)
        operations = attended(node, *inputs) if attends else reached(node, abs(inputs[0]) > 1e-9, mask)
        every = [np.ones_like(x) for x in inputs]
        whole = attended(node, *every) if attends else reached(node, every[0], np.ones_like(mask))
        static = not any(graph.values[name].timed for name in node.inputs)
        steps = graph.timesteps if static and not isinstance(node, Attention) else 1
        spiking = all(graph.values[name].spiking for name in node.inputs)
        told = by_name[node.name]
        assert told.dense == whole / images / steps
        # An image is not measured, and neither is attention of anything but spikes: all of it counts.
        if not spiking and (isinstance(node, Attention) or (node.inputs[0] == graph.input.name and static)):
            operations = whole if attends else reached(node, every[0], mask)
        np.testing.assert_allclose(told.acs if spiking else told.macs, operations / images / steps, rtol=1e-5)
        assert (told.macs if spiking else told.acs) == 0
    removed = sum(np.sum(mask == 0) for mask in masks.values())
    assert found.params == sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"])) - removed
    quantized = {n.name: n.quantizer.bits for n in graph.nodes if isinstance(n, Conv | Dense) and n.quantizer}
    bits = sum(
        stored(masks[name], quantized.get(name, 32))
        if part == "kernel" and name in masks
        else np.size(leaf) * (quantized.get(name, 32) if part == "kernel" else 32)
        for name, leaves in variables["params"].items()
        for part, leaf in leaves.items()
    )
    assert found.size_bytes == -(-bits // 8)
    moments = 64 * sum(graph.values[n.name].shape[-1] for n in graph.nodes if isinstance(n, BatchNorm))
    scales = 32 * sum(np.size(leaf["gain"]) for leaf in variables["scales"].values())
    neurons = [node for node in graph.nodes if isinstance(node, LIF)]
    each = 32 * sum(len(x) for node in neurons for x in (node.tau, node.threshold) if isinstance(x, tuple))
    assert found.footprint_bytes == -(-(bits + moments + scales + each) // 8)


def stored(mask: np.ndarray, bits: int) -> int:
    return stored_bits(mask, bits, has_zero=bits == 32)


def reached(node: Any, nonzero: np.ndarray, mask: np.ndarray) -> float:
    """Multiplications of a layer whose input is not zero, by a layer of ones and zeros."""
    ones = dataclasses.replace(node, quantizer=None, bias=False, masked=False)
    return float(reference.weighted(ones, nonzero.astype(np.float64), {"params": {node.name: {}}}, mask).sum())


def attended(node: Any, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> float:
    """Pairs of spikes in keys and values, and a row of the head's channels for each spike of the query."""
    total = 0.0
    flat = [x.reshape(-1, np.prod(x.shape[2:4]), x.shape[-1]) != 0 for x in (query, key, value)]
    for image, first in np.ndindex(len(flat[0]), query.shape[-1] // node.head_features):
        q, k, v = (x[image][:, first * node.head_features :][:, : node.head_features] for x in flat)
        total += sum(np.outer(a, b).sum() for a, b in zip(k, v, strict=True)) + node.head_features * q.sum()
    return total


@seeds(60)
def test_a_pruned_graph_is_the_whole_with_its_channels_silenced(seed):
    graph, draw = graph_of(seed), np.random.default_rng(seed + 3)
    variables, images = widened(variables_of(graph, seed)), images_of(graph, seed)
    masks, keep = dict[str, np.ndarray](), channels_of(graph, draw)
    for group, left in keep.items():
        for name, numbers in channel_numbers(graph, group).items():
            masks[name] = masks.get(name, True) & ((numbers < 0) | np.isin(numbers, left))
    kept = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        smaller, pruned = jax.device_get(prune(graph, variables, keep))
    whole = reference.run(graph, variables, images, masks=masks).values
    after = reference.run(smaller, pruned, images).values
    for name, value in whole.items():
        same(after[name], value[..., kept[name]] if name in kept else value, name)

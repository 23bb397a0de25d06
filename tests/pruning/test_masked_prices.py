"""What a masked network is said to use, against the cost of the same network with its channels removed."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax import (
    Graph,
    Quantizer,
    SpikingNetwork,
    activity_reducers,
    allocate,
    allocate_bits,
    channel_groups,
    cost,
    early_exit,
    mask_by,
    prune,
    pruning_rounds,
    sops_reducers,
    weight_at_random,
    with_layer_bits,
    with_masks,
)
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input
from qpsnn_jax.pruning.usage import usage
from qpsnn_jax.runs.programs import FrozenMasks

Q = Quantizer(2)
TERNARY = Quantizer(2, levels=3)
DEPTHWISE = Graph(
    (
        Input("image", (4, 4, 2)),
        Conv("stem", "image", 8, label="all"),
        LIF("lif0", "stem", threshold=0.5),
        Conv("depthwise", "lif0", 16, quantizer=Q, groups=8, label="all"),
        LIF("lif1", "depthwise", threshold=0.5),
        Conv("conv", "lif1", 6, quantizer=TERNARY, label="conv"),
        LIF("lif2", "conv", threshold=0.5),
        Flatten("flat", "lif2"),
        Dense("fc", "flat", 3),
    ),
    timesteps=2,
)
GRAPHS = {"residual": residual_graph(Q), "depthwise": DEPTHWISE}


@cache
def masked(name: str):
    graph = GRAPHS[name]
    layers = [node.name for node in graph.nodes if isinstance(node, Conv | Dense) and node.name not in ("stem", "fc")]
    variables = random_variables(graph)
    chosen = mask_by(weight_at_random(jax.random.key(1)), graph, variables, sparsity=0.8, layers=layers[:-1])
    return jax.device_get(chosen)


def activity_of(graph: Graph) -> dict[str, np.ndarray]:
    """The same rates for the channels of a map, of which any may be removed."""
    draw = np.random.default_rng(0)
    return {name: draw.uniform(0.1, 0.6) for name in sorted(activity_reducers(graph))}


def told(name: str, keep: dict, resource: str) -> float:
    graph, variables = masked(name)
    graph, variables = prune(graph, {kind: variables[kind] for kind in ("params", "masks")}, keep)  # no γ is asked for
    found = cost(graph, activity_of(GRAPHS[name]), masks=variables["masks"])
    return {"params": found.params, "sops": found.sops_total, "bytes": found.size_bytes}[resource]


def without_some(name: str, seed: int) -> tuple[dict, dict]:
    """Units that are kept, and the channels of these."""
    draw, kept, keep = np.random.default_rng(seed), {}, {}
    for group in channel_groups(GRAPHS[name]).values():
        mask = draw.random(group.size // group.unit) < 0.7
        mask[0] = True
        kept[group.name], keep[group.name] = mask, np.flatnonzero(np.repeat(mask, group.unit))
    return kept, keep


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("resource", ["params", "sops", "bytes"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_use_of_what_is_left_is_its_cost_and_a_saving_is_the_difference(name, resource, seed):
    graph, variables = masked(name)
    model = usage(graph, channel_groups(graph), resource, activity_of(graph), variables["masks"])
    kept, keep = without_some(name, seed)
    total, expected = model.total(kept), told(name, keep, resource)
    if resource == "bytes":
        assert expected - 1 < total < 1.15 * expected  # the index is a bitmap there
    else:
        assert total == pytest.approx(expected, rel=1e-9)
    for group, saved in model.savings(kept).items():
        for unit in np.flatnonzero(kept[group]):
            mask = kept[group].copy()
            mask[unit] = False
            assert saved[unit] == pytest.approx(total - model.total(kept | {group: mask}), abs=1e-6 * total)


@pytest.mark.parametrize("resource", ["params", "sops", "bytes"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_budget_counts_what_masks_leave(name, resource):
    graph, variables = masked(name)
    draw, groups = np.random.default_rng(0), channel_groups(graph)
    scores = {group: draw.uniform(0.5, 2, of.size) for group, of in groups.items()}
    whole = told(name, {}, resource)
    options = {"activity": activity_of(graph), "masks": variables["masks"]}
    keep = allocate(graph, scores, **{resource: 0.6 * whole}, **options)
    assert 0.4 * whole < told(name, keep, resource) <= 0.6 * whole
    in_full = allocate(graph, scores, **{resource: 0.6 * whole}, activity=options["activity"])
    more = sum(map(len, keep.values())) - sum(map(len, in_full.values()))
    assert more > 0 or (name, resource) == ("depthwise", "bytes")  # mostly the full-precision readout


@pytest.mark.parametrize("name", GRAPHS)
def test_the_penalty_is_the_number_of_operations_that_are_left(name):
    graph, variables = masked(name)
    network, images = SpikingNetwork(graph), images_of(graph, 3)
    captures = activity_reducers(graph), sops_reducers(graph, masks=variables["masks"])

    @jax.jit
    def both(variables, images):
        return [network.apply(variables, images, capture=capture).captured for capture in captures]

    activity, penalties = both(variables, images)
    expected = cost(graph, activity, masks=variables["masks"]).sops_total
    assert float(sum(penalties.values())) == pytest.approx(expected, rel=1e-5)
    assert expected < 0.7 * cost(graph, activity).sops_total


def test_bits_are_those_that_fit_with_an_index():
    graph, variables = masked("depthwise")
    losses = {"depthwise": {1: 3.0, 2: 2.0, 4: 1.0}, "conv": {1: 9.0, 2: 5.0, 3: 4.0, 8: 0.0}}
    masks = variables["masks"]
    sizes = {
        (a, b): cost(with_layer_bits(graph, {"depthwise": a, "conv": b}), masks=masks).size_bytes
        for a in losses["depthwise"]
        for b in losses["conv"]
    }
    for budget in sorted(sizes.values()):
        found = allocate_bits(graph, losses, bytes=budget + 2, masks=masks)
        assert sizes[found["depthwise"], found["conv"]] <= budget + 2
        sums = [losses["depthwise"][a] + losses["conv"][b] for (a, b), size in sizes.items() if size <= budget]
        assert losses["depthwise"][found["depthwise"]] + losses["conv"][found["conv"]] <= min(sums)
    with pytest.raises(ValueError, match="cannot be met: the fewest bits need"):
        allocate_bits(graph, losses, bytes=min(sizes.values()) - 1, masks=masks)
    assert allocate_bits(graph, losses, bytes=sizes[4, 8] + 2) != {"depthwise": 4, "conv": 8}  # in full


def test_masks_of_another_shape_raise_wherever_they_are_priced():
    graph, variables = masked("depthwise")
    wrong = {**variables["masks"], "depthwise": {"mask": np.ones((3, 3, 2, 16))}}
    scores = {name: np.ones(group.size) for name, group in channel_groups(graph).items()}
    for call in (
        lambda: cost(graph, masks=wrong),
        lambda: sops_reducers(graph, masks=wrong),
        lambda: allocate(graph, scores, params=100, masks=wrong),
        lambda: allocate_bits(graph, {"depthwise": {1: 1.0}}, bytes=1000, masks=wrong),
    ):
        with pytest.raises(ValueError, match="node 'depthwise': it needs a mask of the shape of its kernel"):
            call()


def test_masks_are_told_apart_by_their_values():
    graph, variables = masked("depthwise")
    same = {name: {"mask": np.asarray(leaves["mask"])} for name, leaves in variables["masks"].items()}
    assert FrozenMasks(variables["masks"]) == FrozenMasks(same)
    assert len({FrozenMasks(variables["masks"]), FrozenMasks(same), FrozenMasks({})}) == 2
    other = with_masks(graph, variables, {"depthwise": np.ones((3, 3, 1, 16))})[1]["masks"]
    assert FrozenMasks(other) != FrozenMasks(same)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda **o: allocate_bits(DEPTHWISE, {"conv": {1: 1.0}}, **o), "bytes must be a number from 0 to"),
        (lambda **_: allocate_bits(DEPTHWISE, {"conv": {1: "x"}}, bytes=900), "of the losses of 'conv' must be a num"),
        (lambda **_: allocate_bits(DEPTHWISE, {"conv": {2.0: 1.0}}, bytes=900), "bits in the losses of 'conv' must be"),
        (lambda **o: allocate(DEPTHWISE, {}, **o), "the budget must be one positive number of bytes"),
        (lambda **_: early_exit(np.zeros((1, 0, 3), np.float32), 0.5), "at some step, got currents of shape"),
        (lambda **_: pruning_rounds(2.5), "rounds must be an integer, 1 or more, got 2.5"),
        (lambda **_: pruning_rounds("2"), "rounds must be an integer, 1 or more, got '2'"),
    ],
)
@pytest.mark.parametrize("size", ["90kB", None, float("nan"), np.inf])
def test_what_is_no_number_raises_by_name(call, message, size):
    with pytest.raises(ValueError, match=message):
        call(bytes=size)


def test_a_budget_of_ternary_weights_is_met_to_the_byte():
    """Each layer is rounded up to a bit, which at 264 bytes is one byte more than the sum of their fifths."""
    ternary = {name: dataclasses.replace(DEPTHWISE.by_name[name], quantizer=TERNARY) for name in ("depthwise", "fc")}
    graph = Graph(tuple(ternary.get(node.name, node) for node in DEPTHWISE.nodes), DEPTHWISE.timesteps)
    scores = {name: np.random.default_rng(3).random(group.size) for name, group in channel_groups(graph).items()}
    for budget in range(255, 275):
        assert cost(prune(graph, {}, allocate(graph, scores, bytes=budget))[0]).size_bytes <= budget

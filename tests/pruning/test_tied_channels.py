"""Groups of channels where layers hold parts of them: convolutions in groups, and concatenations."""

from functools import partial

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax.model.costs import activity_reducers, cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    Attention,
    Concatenate,
    Conv,
    Dense,
    GlobalAveragePool,
    Input,
    Node,
    Quantizer,
)
from qpsnn_jax.pruning import Criterion, Group, allocate, channel_groups, magnitude_group_scores, prune, score, select
from qpsnn_jax.pruning.ratios import pruned_graph

QUANTIZER = Quantizer(3)
RATE = Criterion(lambda trace: trace.spikes.mean(1), lambda maps: maps.mean((0, 1, 2)))
LAYERS = {"point.lif": 2, "wide.lif": 3}


def graph_of(*nodes: Node) -> Graph:
    return Graph((Input("image", (4, 4, 2)), *nodes), timesteps=2)


def ended(*nodes: Node) -> Graph:
    last = nodes[-1].name
    return graph_of(*nodes, GlobalAveragePool("pool", last), Dense("fc", "pool", 3))


def unit(name: str, source: str, features: int, label: str | None = "a", **options) -> tuple[Node, Node]:
    return (
        Conv(name, source, features, quantizer=QUANTIZER, label=label, **options),
        LIF(f"{name}.lif", name, threshold=0.2),
    )


GROUPED = ended(
    *unit("stem", "image", 6),
    *unit("depth", "stem.lif", 6, groups=6),
    *unit("point", "depth.lif", 8, "b", kernel=(1, 1), padding=(0, 0)),
    *unit("wide", "point.lif", 12, "b", groups=4),
    *unit("mixed", "wide.lif", 4),
)


def test_a_group_of_a_convolution_is_one_channel():
    depthwise = ("stem", "stem.lif", "depth", "depth.lif")
    grouped = ("point", "point.lif", "wide", "wide.lif")
    assert channel_groups(GROUPED) == {
        "stem": Group("stem", 6, "a", depthwise),
        "point": Group("point", 4, "b", grouped),
        "mixed": Group("mixed", 4, "a", ("mixed", "mixed.lif", "pool")),
    }
    variables = random_variables(GROUPED)
    smaller, pruned = prune(GROUPED, variables, {"stem": [1, 4], "point": [0, 3]})
    widths = {node.name: (node.features, node.groups) for node in smaller.nodes if isinstance(node, Conv)}
    assert widths == {"stem": (2, 1), "depth": (2, 2), "point": (4, 1), "wide": (6, 2), "mixed": (4, 1)}
    kernels = {name: leaves["kernel"] for name, leaves in variables["params"].items()}
    found = {name: leaves["kernel"] for name, leaves in pruned["params"].items()}
    np.testing.assert_array_equal(found["depth"], kernels["depth"][..., [1, 4]])
    np.testing.assert_array_equal(found["point"], kernels["point"][:, :, [1, 4]][..., [0, 1, 6, 7]])
    np.testing.assert_array_equal(found["wide"], kernels["wide"][..., [0, 1, 2, 9, 10, 11]])
    np.testing.assert_array_equal(found["mixed"], kernels["mixed"][:, :, [0, 1, 2, 9, 10, 11]])


def test_scores_of_a_group_of_a_convolution():
    variables, images = random_variables(GROUPED), images_of(GROUPED)
    norms = {
        name: np.abs(leaves["kernel"]).reshape(-1, leaves["kernel"].shape[-1]).sum(0)
        for name, leaves in variables["params"].items()
    }
    scores = jax.jit(partial(magnitude_group_scores, GROUPED))(variables)
    np.testing.assert_allclose(scores["stem"], norms["stem"] + norms["depth"], rtol=1e-5)
    expected = norms["point"].reshape(4, 2).sum(1) + norms["wide"].reshape(4, 3).sum(1)
    np.testing.assert_allclose(scores["point"], expected, rtol=1e-5)
    rates = score(GROUPED, variables, [images], RATE)
    assert {name: each.shape for name, each in rates.items()} == {"stem": (6,), "point": (4,), "mixed": (4,)}
    run = jax.jit(lambda *given: SpikingNetwork(GROUPED).apply(*given, capture=[*LAYERS]).captured)
    traces = run(variables, images)
    both = [np.asarray(traces[name].spikes).reshape(-1, 4, n).mean((0, 2)) for name, n in LAYERS.items()]
    np.testing.assert_allclose(rates["point"], np.mean(both, axis=0), rtol=1e-6)
    best = np.sort(np.argsort(-np.mean(both, axis=0), kind="stable")[:2])
    np.testing.assert_array_equal(select(GROUPED, rates, {"b": 0.5})["point"], best)


@pytest.mark.parametrize("resource", ["bytes", "sops"])
def test_budgets_count_what_the_smaller_network_costs(resource):
    variables, images = random_variables(GROUPED), images_of(GROUPED)
    run = jax.jit(lambda *given: SpikingNetwork(GROUPED).apply(*given, capture=activity_reducers(GROUPED)).captured)
    captured = run(variables, images)
    activity = {name: np.asarray(rates) for name, rates in captured.items()}
    whole = cost(GROUPED, activity)
    limit = 0.4 * (whole.size_bytes if resource == "bytes" else whole.sops_total)
    scores = jax.jit(partial(magnitude_group_scores, GROUPED))(variables)
    keep = allocate(GROUPED, scores, **{resource: limit}, activity=activity)
    smaller, _ = prune(GROUPED, {}, keep)
    # The channels that stay fire as before.
    left = {name: rates for name, rates in activity.items() if rates.shape == smaller.values[name].shape}
    channels = {"stem": keep["stem"], "depth": keep["stem"], "mixed": keep["mixed"]}
    channels |= {"point": _of(keep["point"], 2), "wide": _of(keep["point"], 3)}
    left |= {f"{name}.lif": activity[f"{name}.lif"][..., kept] for name, kept in channels.items() if name != "mixed"}
    left["pool"] = activity["pool"][keep["mixed"]]
    spent = cost(smaller, left)
    used = spent.size_bytes if resource == "bytes" else spent.sops_total
    assert 0.8 * limit < used <= limit * (1 + 1e-6)


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 6, 8])
def test_every_layer_of_a_group_keeps_a_multiple(multiple):
    """Of 24 depthwise channels, and of 12 groups with 2 inputs and 3 outputs each."""
    graph = ended(
        *unit("stem", "image", 24),
        *unit("depth", "stem.lif", 24, groups=24),
        *unit("point", "depth.lif", 24, "b"),
        *unit("wide", "point.lif", 36, "b", groups=12),
    )
    smaller = pruned_graph(graph, {"a": 0.9, "b": 0.9}, multiple_of=multiple)
    widths = {name: smaller.values[name].shape[-1] for name in ("stem", "depth", "point", "wide")}
    stem = next(n for n in range(2, 25) if n % multiple == 0)
    groups = next(n for n in range(1, 13) if (2 * n) % multiple == (3 * n) % multiple == 0 or n == 12)
    assert widths == {"stem": stem, "depth": stem, "point": 2 * groups, "wide": 3 * groups}


def _of(kept: np.ndarray, each: int) -> np.ndarray:
    return (kept[:, None] * each + np.arange(each)).ravel()


def test_channels_of_a_concatenation_are_those_of_its_inputs():
    graph = ended(
        *unit("left", "image", 4),
        *unit("right", "image", 6, "b"),
        Concatenate("both", ("right.lif", "image", "left.lif")),
        LIF("mixed", "both", threshold=0.5),
        *unit("next", "mixed", 5, None),
    )
    mixed = ("both", "mixed")
    assert channel_groups(graph) == {
        "left": Group("left", 4, "a", ("left", "left.lif", *mixed)),
        "right": Group("right", 6, "b", ("right", "right.lif", *mixed)),
        "next": Group("next", 5, None, ("next", "next.lif", "pool")),
    }
    variables, images = random_variables(graph), images_of(graph)
    smaller, pruned = prune(graph, variables, {"left": [0, 3], "right": [1, 2, 5]})
    assert smaller.values["both"].shape == (4, 4, 7)
    rows = [1, 2, 5, 6, 7, 8, 11]
    kernels = (tree["params"]["next"]["kernel"] for tree in (pruned, variables))
    np.testing.assert_array_equal(next(kernels), next(kernels)[:, :, rows])
    rates = score(graph, variables, [images], RATE)
    names = ["left.lif", "right.lif", "mixed"]
    traces = jax.jit(lambda *given: SpikingNetwork(graph).apply(*given, capture=names).captured)(variables, images)
    mean = {name: np.asarray(trace.spikes).mean((0, 1, 2, 3)) for name, trace in traces.items()}
    np.testing.assert_allclose(rates["left"], (mean["left.lif"] + mean["mixed"][8:]) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates["right"], (mean["right.lif"] + mean["mixed"][:6]) / 2, rtol=1e-6)


def test_a_layer_added_to_a_concatenation_is_part_of_both_groups():
    graph = ended(
        Conv("whole", "image", 10, label="a"),
        *unit("left", "image", 4),
        *unit("right", "image", 6),
        Concatenate("both", ("left.lif", "right.lif")),
        Add("sum", "both", "whole"),
    )
    found = channel_groups(graph)
    assert {name: (group.size, group.members[:3]) for name, group in found.items()} == {
        "whole": (4, ("whole", "left", "left.lif")),
        "right": (6, ("whole", "right", "right.lif")),
    }
    smaller, _ = prune(graph, random_variables(graph), {"whole": [2], "right": [0, 5]})
    assert [smaller.values[name].shape[-1] for name in ("whole", "left", "right")] == [3, 1, 2]


def test_channels_tied_to_the_image_stay():
    graph = ended(*unit("depth", "image", 4, groups=2), *unit("next", "depth.lif", 4))
    assert list(channel_groups(graph)) == ["next"]


def test_heads_that_lie_across_groups_of_a_convolution_stay():
    heads = Attention("heads", "wide.lif", "wide.lif", "wide.lif", 4)
    graph = ended(*unit("stem", "image", 4), *unit("wide", "stem.lif", 12, groups=4), heads)
    (group,) = channel_groups(graph).values()
    assert (group.size, group.unit) == (4, 4)

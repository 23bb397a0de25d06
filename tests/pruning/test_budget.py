"""Budgets: met, used up, by one ranking; against costs of the pruned network and against exhaustive search."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from small_networks import residual_graph

from qpsnn_jax import Graph, Quantizer, activity_reducers, allocate, channel_groups, cost, prune
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, GlobalAveragePool, Input
from qpsnn_jax.model.zoo import resnet20, spikingformer
from qpsnn_jax.pruning.budget import check_budget
from qpsnn_jax.pruning.criteria import scored_groups, scores_by
from qpsnn_jax.pruning.settings import Pruning, parse_budget
from qpsnn_jax.runtime.naming import name_of
from qpsnn_jax.training.state import init_variables

GRAPH = residual_graph(Quantizer(2))
GROUPS = channel_groups(GRAPH)


def random_scores(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.uniform(0.5, 2, group.size) for name, group in channel_groups(graph).items()}


def random_activity(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    values = {name: graph.values[name].shape for name in activity_reducers(graph)}
    return {name: draw.uniform(0, 0.5, shape) for name, shape in values.items()}


def pruned_activity(graph: Graph, activity: dict, keep: dict) -> dict[str, np.ndarray]:
    """The channels that are left of every map, as the arrays of a batch-norm in its place would have them."""
    member = {name: group for group in channel_groups(graph).values() for name in group.members}
    found = {}
    for name, values in activity.items():
        size = member[name].size if name in member else 0
        if size and member[name].name in keep:
            values = values.reshape(*values.shape[:-1], -1, size)[..., keep[member[name].name]]
            values = values.reshape(*values.shape[:-2], -1)
        found[name] = values
    return found


def used(graph: Graph, keep: dict, resource: str, activity: dict) -> float:
    smaller, _ = prune(graph, {}, keep)
    found = cost(smaller, pruned_activity(graph, activity, keep))
    return {"bytes": found.size_bytes, "params": found.params, "sops": found.sops_total}[resource]


@pytest.mark.parametrize("comparison", ["share", "mean", "max", "rank", "none"])
@pytest.mark.parametrize("resource", ["bytes", "params", "sops"])
def test_the_budget_is_met_and_no_further_channel_fits(resource, comparison):
    scores, activity = random_scores(GRAPH), random_activity(GRAPH)
    whole = {name: np.arange(group.size) for name, group in GROUPS.items()}
    full = used(GRAPH, whole, resource, activity)
    for part in (0.9, 0.6, 0.45):
        budget = {resource: part * full}
        keep = allocate(GRAPH, scores, **budget, activity=activity, floor=0.2, comparison=comparison)
        assert used(GRAPH, keep, resource, activity) <= part * full
        assert set(keep) == set(GROUPS)
        for name, group in GROUPS.items():
            assert len(keep[name]) >= np.ceil(0.2 * group.size)
            left_out = np.setdiff1d(np.arange(group.size), keep[name])
            # Without activity, the channels of a group cost the same.
            for channel in left_out if resource == "sops" else left_out[:1]:
                more = keep | {name: np.sort([*keep[name], channel])}
                assert used(GRAPH, more, resource, activity) > part * full
            if resource != "sops" and len(left_out):
                assert scores[name][keep[name]].min() >= scores[name][left_out].max()


@pytest.mark.parametrize(("resource", "multiple"), [("bytes", 4), ("params", 3), ("sops", 2)])
def test_within_a_budget_every_layer_keeps_a_multiple(resource, multiple):
    scores, activity = random_scores(GRAPH), random_activity(GRAPH)
    whole = {name: np.arange(group.size) for name, group in GROUPS.items()}
    limit = 0.6 * used(GRAPH, whole, resource, activity)
    options = {"activity": activity, "multiple_of": multiple, "floor": 0.2, resource: limit}
    keep = allocate(GRAPH, scores, **options)
    assert used(GRAPH, keep, resource, activity) <= limit
    assert any(len(kept) < GROUPS[name].size for name, kept in keep.items())
    for name, group in GROUPS.items():
        assert len(keep[name]) % multiple == 0 or len(keep[name]) == group.size
        left_out = np.setdiff1d(whole[name], keep[name])
        size = min(multiple, len(left_out))
        blocks = list(itertools.combinations(left_out, size)) if size else []
        for block in blocks if resource == "sops" else blocks[:1]:
            more = keep | {name: np.sort([*keep[name], *block])}
            assert used(GRAPH, more, resource, activity) > limit
        if resource != "sops" and size:
            assert scores[name][keep[name]].min() >= scores[name][left_out].max()


def test_scores_of_unknown_groups_raise():
    with pytest.raises(ValueError, match="scores name 'typo'; this network has the groups stem, "):
        allocate(GRAPH, {"typo": np.ones(6)}, bytes=1e6)


def test_silent_channels_leave_with_their_multiple():
    """Their removal saves nothing, but that of the others does."""
    activity = random_activity(GRAPH)
    activity["lif0"] = activity["lif0"] * (np.arange(6) < 2)
    scores = random_scores(GRAPH)
    whole = cost(GRAPH, activity).sops_total
    keep = allocate(GRAPH, {"stem": scores["stem"]}, sops=0.9 * whole, activity=activity, multiple_of=3)
    assert used(GRAPH, keep, "sops", activity) <= 0.9 * whole
    assert len(keep["stem"]) == 3


def test_a_channel_too_costly_to_return_does_not_bar_the_others_of_its_group():
    nodes = (
        Input("image", (4, 4, 1)),
        Conv("stem", "image", 5),
        LIF("lif0", "stem"),
        Conv("conv", "lif0", 2, quantizer=Quantizer(2)),
        LIF("lif1", "conv"),
        GlobalAveragePool("pool", "lif1"),
        Dense("fc", "pool", 2),
    )
    graph = Graph(nodes, timesteps=1)
    activity = {name: np.zeros(graph.values[name].shape) for name in activity_reducers(graph)}
    activity["lif0"] = np.broadcast_to([0.9, 0.01, 0.01, 0.01, 0.01], (4, 4, 5))
    scores = {"stem": np.array([500.0, 1, 2, 3, 1000])}
    whole = cost(graph, activity).sops_total
    # Without the first channel the others all fit; it is the one with the best score of those removed.
    keep = allocate(graph, scores, sops=0.2 * whole, activity=activity, comparison="none")
    assert keep["stem"].tolist() == [1, 2, 3, 4]


def test_with_scores_as_they_are_it_is_near_the_best_of_all_selections():
    nodes = (
        Input("image", (4, 4, 1)),
        Conv("stem", "image", 5),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0"),
        Conv("conv", "lif0", 6, quantizer=Quantizer(2)),
        BatchNorm("bn1", "conv"),
        LIF("lif1", "bn1"),
        GlobalAveragePool("pool", "lif1"),
        Dense("fc", "pool", 2),
    )
    graph = Graph(nodes, timesteps=1)
    scores = random_scores(graph, 3)
    limit = 0.6 * cost(graph).size_bytes
    best = 0.0
    for a, b in itertools.product(range(1, 6), range(1, 7)):  # the best channels of each width
        keep = {"stem": np.argsort(-scores["stem"])[:a], "conv": np.argsort(-scores["conv"])[:b]}
        if used(graph, keep, "bytes", {}) <= limit:
            best = max(best, sum(scores[name][kept].sum() for name, kept in keep.items()))
    keep = allocate(graph, scores, bytes=limit, comparison="none")
    assert sum(scores[name][kept].sum() for name, kept in keep.items()) >= 0.9 * best


def test_the_last_stage_of_a_residual_network_takes_part_and_shares_stay_in_proportion():
    graph = resnet20(bits=2, width=1 / 8)
    groups = channel_groups(graph)
    unlabelled = [name for name, group in groups.items() if group.label is None]
    scores = {name: np.ones(group.size) for name, group in groups.items()}
    limit = 0.4 * cost(graph).size_bytes
    keep = allocate(graph, scores, bytes=limit)
    assert used(graph, keep, "bytes", {}) <= limit
    assert all(len(keep[name]) < groups[name].size for name in unlabelled)
    assert all(len(kept) >= 0.2 * groups[name].size for name, kept in keep.items())
    flat = allocate(graph, scores, bytes=limit, comparison="mean")
    assert any(len(kept) <= 0.15 * groups[name].size for name, kept in flat.items())


def test_heads_are_removed_whole():
    graph = spikingformer(bits=2, width=1 / 6, blocks=1)
    scores = random_scores(graph)
    limit = 0.7 * cost(graph).params
    keep = allocate(graph, scores, params=limit)
    assert used(graph, keep, "params", {}) <= limit
    units = {name: group.unit for name, group in channel_groups(graph).items()}
    assert max(units.values()) > 1
    assert all(np.bincount(kept // units[name]).max() == units[name] for name, kept in keep.items())


def test_a_budget_that_is_met_already_removes_nothing():
    keep = allocate(GRAPH, random_scores(GRAPH), params=cost(GRAPH).params)
    assert {name: len(kept) for name, kept in keep.items()} == {name: group.size for name, group in GROUPS.items()}


def only_the_stem(graph, variables, key):
    return {"stem": np.abs(variables["params"]["stem"]["kernel"]).sum((0, 1, 2))}


@pytest.mark.parametrize(
    ("criterion", "groups"),
    [("svs", ["stem"]), ("magnitude", ["stem", "conv"]), ("random", ["stem", "conv"]), (only_the_stem, ["stem"])],
)
def test_what_can_be_met_with_the_groups_of_a_criterion_is_known_before_the_scores(criterion, groups):
    name = criterion if isinstance(criterion, str) else name_of(criterion)
    nodes = (
        Input("image", (4, 4, 1)),
        Conv("stem", "image", 8),
        LIF("lif", "stem"),
        Conv("conv", "lif", 8, quantizer=Quantizer(2)),  # of no neurons
        GlobalAveragePool("pool", "conv"),
        Dense("fc", "pool", 2),
    )
    graph = Graph(nodes, timesteps=1)
    variables = init_variables(graph, jax.random.key(0))
    scores = scores_by(name, graph, variables, [np.ones((1, 4, 4, 1), np.float32)], jax.random.key(0))
    assert list(scored_groups(name, graph)) == list(scores) == groups
    least = used(graph, {group: np.arange(2) for group in groups}, "params", {})
    check_budget(graph, groups, params=least, floor=0.25)
    allocate(graph, scores, params=least, floor=0.25)
    unscored = r" and all channels of conv, which the criterion does not score" if len(groups) == 1 else ""
    message = rf"cannot be met: with a floor of 0.25{unscored} the network keeps {least};"
    with pytest.raises(ValueError, match=message):
        check_budget(graph, groups, params=least - 1, floor=0.25)
    with pytest.raises(ValueError, match=message):
        allocate(graph, scores, params=least - 1, floor=0.25)


def test_what_cannot_be_met_is_named():
    scores = random_scores(GRAPH)
    with pytest.raises(ValueError, match=r"a budget of 50 bytes cannot be met: with a floor of 0.5 the network keeps"):
        allocate(GRAPH, scores, bytes=50, floor=0.5)
    with pytest.raises(ValueError, match=r"a budget of 50 params cannot be met"):
        check_budget(GRAPH, GROUPS, params=50, floor=0.5)
    check_budget(GRAPH, GROUPS, bytes=cost(GRAPH).size_bytes)
    least = used(GRAPH, {name: np.arange(min(4, group.size)) for name, group in GROUPS.items()}, "params", {})
    allocate(GRAPH, scores, params=least, floor=0.4, multiple_of=4)
    check_budget(GRAPH, GROUPS, params=least, floor=0.4, multiple_of=4)
    for check in (partial(allocate, GRAPH, scores), partial(check_budget, GRAPH, GROUPS)):
        with pytest.raises(ValueError, match=rf"with a floor of 0.4, multiples of 4 the network keeps {least:,};"):
            check(params=least - 1, floor=0.4, multiple_of=4)
    with pytest.raises(ValueError, match="multiple_of must be an integer, 1 or more, got 0"):
        allocate(GRAPH, scores, bytes=1e9, multiple_of=0)
    with pytest.raises(ValueError, match="sops needs the activity of the inputs of node 'conv1'"):
        allocate(GRAPH, scores, sops=1e4)
    for wrong in ({}, {"bytes": 1.0, "params": 2}, {"sops": -1}, {"bytes": float("nan")}):
        with pytest.raises(ValueError, match="the budget must be one positive number"):
            allocate(GRAPH, scores, **wrong)
    with pytest.raises(ValueError, match="scores of group 'conv1' must be 8 finite numbers, none negative"):
        allocate(GRAPH, scores | {"conv1": -np.ones(8)}, bytes=100)
    with pytest.raises(ValueError, match="comparison must be one of share"):
        allocate(GRAPH, scores, bytes=100, comparison="best")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("98kB", {"bytes": 98_000}),
        ("98496 B", {"bytes": 98_496}),
        ("0.2MSOPs", {"sops": 200_000}),
        ("60kparams", {"params": 60_000}),
    ],
)
def test_budgets_as_text(text, budget):
    assert parse_budget(text) == pytest.approx(budget)
    assert Pruning(budget=text).budget == text


@pytest.mark.parametrize("text", ["", "98", "kB", "-1kB", "0B", "98 KiB", "1e3B", "nanB"])
def test_other_texts_are_no_budgets(text):
    with pytest.raises(ValueError, match="budget must be a size or a number of operations such as 98kB"):
        Pruning(budget=text)


@pytest.mark.parametrize("floor", ["0.1", None, True, -0.1, np.nan, {"stem": 0.1}, dict.fromkeys(GROUPS, "many")])
def test_a_floor_that_is_no_share_of_every_group(floor):
    scores = {name: np.ones(group.size) for name, group in GROUPS.items()}
    with pytest.raises(ValueError, match=r"floor must be a number from 0 to 1, for every group, got .* for '"):
        allocate(GRAPH, scores, params=10_000, floor=floor)

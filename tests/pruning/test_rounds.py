"""Rounds of pruning: their widths by hand, the state they carry, and budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import random_variables, residual_graph

from qpsnn_jax import Quantizer, channel_groups, cost, init_state, pruning_rounds, select
from qpsnn_jax.model.network import SpikingNetwork

GRAPH = residual_graph(Quantizer(2))
RATIOS = {"middle": 0.5, "outputs": 0.6, "hidden": 0.2}


def scores_of(graph, seed=0):
    draw = np.random.default_rng(seed)
    return {name: jnp.asarray(draw.random(group.size)) for name, group in channel_groups(graph).items()}


def sizes(graph):
    return {name: group.size for name, group in channel_groups(graph).items()}


def test_widths_fall_geometrically_to_those_of_a_single_round():
    transform = pruning_rounds(3, ratios=RATIOS)
    state, found = transform.init(GRAPH), [sizes(GRAPH)]
    for seed in range(3):
        state, tree = transform.update(state, {}, scores_of(state.graph, seed))
        found.append(sizes(state.graph))
        assert (state.done, tree) == (seed + 1, {})
    last = {name: len(kept) for name, kept in select(GRAPH, scores_of(GRAPH), RATIOS).items()}
    assert {name: found[3][name] for name in last} == last
    # 8 to 4 by the cube root of a half: 6.35, then 6 to 4 by its square root: 4.90.
    assert [each["conv1"] for each in found] == [8, 6, 5, 4]
    assert [each["stem"] for each in found] == [6] * 4
    with pytest.raises(ValueError, match="all 3 rounds of pruning are done"):
        transform.update(state, {}, scores_of(state.graph))


def test_every_round_keeps_multiples():
    transform, found = pruning_rounds(2, ratios=RATIOS, multiple_of=2), []
    state = transform.init(GRAPH)
    for seed in range(2):
        state, _ = transform.update(state, {}, scores_of(state.graph, seed))
        found.append(list(sizes(state.graph).values()))
    assert found[-1] == [len(kept) for kept in select(GRAPH, scores_of(GRAPH), RATIOS, multiple_of=2).values()]
    # Of 6, 8, 9, 7 and 5: the second 6 of 5.66, then 4; the third 6 of 5.20, then 4 of 3; the last 4 of 4.47.
    assert found == [[6, 6, 6, 6, 4], [6, 4, 4, 4, 4]]
    whole = cost(GRAPH).size_bytes
    transform = pruning_rounds(2, bytes=0.5 * whole, multiple_of=4)
    state = transform.init(GRAPH)
    for seed in range(2):
        state, _ = transform.update(state, {}, scores_of(state.graph, seed))
        before = sizes(GRAPH)
        assert all(size % 4 == 0 or size == before[name] for name, size in sizes(state.graph).items())
    assert cost(state.graph).size_bytes <= 0.5 * whole


def test_one_round_is_select():
    transform, scores = pruning_rounds(1, ratios=RATIOS), scores_of(GRAPH)
    kept, expected = transform.keep(transform.init(GRAPH), scores, None), select(GRAPH, scores, RATIOS)
    assert kept.keys() == expected.keys()
    assert all(np.array_equal(kept[name], expected[name]) for name in kept)


def test_a_budget_is_met_in_steps_and_no_group_falls_below_its_floor():
    whole = cost(GRAPH).size_bytes
    transform = pruning_rounds(2, bytes=0.6 * whole, floor=0.5)
    state = transform.init(GRAPH)
    for goal in (np.sqrt(0.6) * whole, 0.6 * whole):
        state, _ = transform.update(state, {}, scores_of(state.graph, state.done))
        assert 0.9 * goal < cost(state.graph).size_bytes <= goal
    before = channel_groups(GRAPH)
    assert all(group.size >= np.ceil(0.5 * before[name].size) for name, group in channel_groups(state.graph).items())
    with pytest.raises(ValueError, match=r"a budget of sops needs the activity|needs the activity of the network"):
        pruning_rounds(2, sops=100.0).update(transform.init(GRAPH), {}, scores_of(GRAPH))


def test_a_training_state_is_carried_whole():
    state = init_state(random_variables(GRAPH), optax.sgd(0.1, momentum=0.9), jax.random.key(0), ema=True)
    state = jax.tree.map(np.asarray, state._replace(key=None))  # NumPy compiles nothing
    transform = pruning_rounds(2, ratios=RATIOS)
    pruned, smaller = transform.update(transform.init(GRAPH), state, scores_of(GRAPH))
    shapes = jax.eval_shape(SpikingNetwork(pruned.graph).init, jax.random.key(0), jnp.zeros((1, 6, 6, 2)))
    for tree in (smaller.variables["params"], smaller.opt_state[0].trace, smaller.ema["params"]):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), tree, dict(shapes["params"]))
    assert int(smaller.step) == 0


def test_wrong_rounds_raise():
    for wrong, words in (
        ({"rounds": 0, "ratios": RATIOS}, "rounds must be an integer, 1 or more"),
        ({"rounds": 2, "ratios": RATIOS, "bytes": 100.0}, "ratios or a budget, got both"),
        ({"rounds": 2}, "ratios or a budget, got neither"),
    ):
        with pytest.raises(ValueError, match=words):
            pruning_rounds(**wrong)
    with pytest.raises(ValueError, match="ratios name 'late'; this network has"):
        pruning_rounds(1, ratios={"late": 0.5}).update(pruning_rounds(1, ratios={}).init(GRAPH), {}, scores_of(GRAPH))

"""Pruning of arrays other than a network's own variables: states of every optimizer, stacked trees, silent weights."""

import inspect
import math
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from small_networks import random_variables

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input, Quantizer
from qpsnn_jax.pruning import prune

over = pytest.mark.parametrize
QUANTIZER = Quantizer(2, "max")
GRAPH = Graph(
    (
        Input("image", (2, 2, 3)),
        Conv("conv", "image", 8, (1, 1), padding=(0, 0), quantizer=QUANTIZER, label="a"),
        LIF("lif", "conv"),
        Flatten("flat", "lif"),
        Dense("hidden", "flat", 8, QUANTIZER, label="b"),
        LIF("lif2", "hidden"),
        Dense("fc", "lif2", 8),
    ),
)
VARIABLES = random_variables(GRAPH)
PARAMS = VARIABLES["params"]
KEEP, WHOLE = {"conv": [0, 2, 5], "hidden": [1, 4]}, {"conv": range(8), "hidden": range(8)}
SMALL = prune(GRAPH, PARAMS, KEEP)[1]

# What the transformations of optax and optax.contrib are given, by the names of their arguments.
INNER = optax.adam(0.1)
ARGUMENTS = {
    "learning_rate": 0.1,
    "inner": INNER,
    "inner_factory": optax.adam,
    "optimizer": INNER,
    "adv_optimizer": optax.sgd(0.1),
    "base_optimizer": INNER,
    "fast_optimizer": INNER,
    "transforms": {"a": INNER, "b": optax.sgd(0.1, momentum=0.9)},
    "param_labels": lambda params: jax.tree.map(lambda p: "a" if p.ndim > 1 else "b", params),
    "mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    "freeze_mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    "should_transform_fn": lambda step, **extra: step < 2,
    "max_consecutive_errors": 2,
    "sync_period": 2,
    "slow_step_size": 0.5,
    "seed": 0,
    "step_size": 0.1,
    "step_size_fn": lambda count: 0.1,
    "measure": lambda updates: updates,
    "measures": {"norm": optax.tree.norm},
    "measure_name": "measure",
    "f": lambda updates, params=None: updates,
    "tx": INNER,
}
# Their state is that of an inner transformation, and they are made of it in a way of their own.
MADE = {
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(0.1),
    "chain": lambda: optax.chain(optax.clip(0.1), INNER),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(0.1)), ("adam", INNER)),
    "freeze": lambda: optax.freeze(jax.tree.map(lambda p: p.ndim > 1, PARAMS)),
    "stateless": lambda: optax.stateless(ARGUMENTS["f"]),
    "MultiSteps": lambda: optax.MultiSteps(INNER, 2),
    "adafactor, factored": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
}
# States with arrays of which prune cannot know where their channels are.
INVALID = {"flatten", "scale_by_sm3", "sm3", "adafactor, factored", "galore", "scale_by_galore"}


def transformations() -> dict[str, Callable]:
    """Every function of optax and optax.contrib that makes an optimizer or a part of one, with arguments."""
    found = dict(MADE)
    for name, function in (vars(optax) | vars(optax.contrib)).items():
        if name.startswith("_") or not (
            inspect.isfunction(function) and "GradientTransformation" in str(inspect.signature(function))
        ):
            continue
        parameters = inspect.signature(function).parameters.values()
        needed = [
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        given = {each: ARGUMENTS.get(each, 0.1) for each in needed}
        given |= {p.name: 0 for p in parameters if p.name == "key"}
        found.setdefault(name, partial(function, **given))
    return found


TRANSFORMATIONS = transformations()


def shapes(tree):
    return jax.tree.map(np.shape, tree)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@over("name", TRANSFORMATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_states_of_optimizers(name: str):
    tx = TRANSFORMATIONS[name]()
    with jax.numpy_dtype_promotion("standard"):
        state, fresh = tx.init(PARAMS), jax.eval_shape(tx.init, SMALL)
    assert prune(GRAPH, state, WHOLE)[1] is state
    if name in INVALID:
        with pytest.raises(ValueError, match=r"^array .* of shape .* (does not fit|may hold removed)"):
            prune(GRAPH, state, KEEP)
    else:
        assert shapes(prune(GRAPH, state, KEEP)[1]) == shapes(fresh)


def test_those_optimizers_are_many():
    assert len(TRANSFORMATIONS) > 100
    assert {"zero_nans", "adafactor", "novograd", "lbfgs", "prodigy", "cocob"} < TRANSFORMATIONS.keys() - INVALID


@over("lead", [(8,), (8, 2)], ids=str)
def test_leading_axes_are_the_users(lead: tuple):
    """Eight members of layers of eight channels: the axis of the members is not cut."""
    members = [random_variables(GRAPH, seed) for seed in range(math.prod(lead))]
    tree = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), stacked(members))
    smaller, pruned = prune(GRAPH, tree, KEEP)
    assert smaller == prune(GRAPH, members[0], KEEP)[0]
    each = stacked([jax.device_get(prune(GRAPH, member, KEEP)[1]) for member in members])
    assert pruned["params"]["hidden"]["bias"].shape == (*lead, 2)
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(lambda a, b: close(np.reshape(a, b.shape), b), jax.device_get(pruned), each)


@over("name", ["adam", "lbfgs", "novograd"])
def test_states_stacked_by_vmap(name: str):
    tx = TRANSFORMATIONS[name]()
    state = jax.jit(jax.vmap(tx.init))(stacked([PARAMS] * 8))
    if name == "novograd":  # One number an array, of eight members: (8,), which looks like a bias.
        with pytest.raises(ValueError, match=r"'conv'\]\['kernel'\] of shape \(8,\) does not fit the graph"):
            prune(GRAPH, state, KEEP)
    else:
        fresh = jax.eval_shape(jax.vmap(tx.init), stacked([SMALL] * 8))
        assert shapes(prune(GRAPH, state, KEEP)[1]) == shapes(fresh)


@over(
    "tree",
    [
        {"flat": {"conv/kernel": PARAMS["conv"]["kernel"]}},
        jax.tree.leaves(PARAMS),
        np.zeros(sum(leaf.size for leaf in jax.tree.leaves(PARAMS))),
        {"members": np.zeros((4, *PARAMS["hidden"]["kernel"].shape))},
    ],
    ids=["joined names", "a list", "a vector", "no names"],
)
def test_weights_without_names_raise(tree):
    with pytest.raises(ValueError, match="may hold removed channels, but its path names no node and array"):
        prune(GRAPH, tree, KEEP)


def two_to_one(quantizer: Quantizer) -> Graph:
    nodes = (
        Input("image", (1, 1, 2)),
        Conv("first", "image", 2, (1, 1), padding=(0, 0), label="a"),
        Conv("second", "first", 1, (1, 1), padding=(0, 0), quantizer=quantizer),
        Flatten("flat", "second"),
    )
    return Graph(nodes, timesteps=1)


@partial(jax.jit, static_argnums=0)
def currents(graph: Graph, variables: dict, image: np.ndarray) -> jax.Array:
    return SpikingNetwork(graph).apply(variables, image).currents


@over("small", [0.0, 1e-39], ids=["zero", "subnormal"])
@over(("bits", "gamma", "level"), [(2, "mean", 0.1), (2, "max", 0.2), (1, "mean", 0.3), (3, "percentile", 0.594 / 7)])
@over("granularity", ["layer", "channel"])
def test_remaining_weights_that_are_zero(small: float, bits: int, gamma: str, level: float, granularity: str):
    """A kernel (0, 0.6): the first weight lies on the grid of both, also where only it remains."""
    graph = two_to_one(Quantizer(bits, gamma, granularity))
    variables = random_variables(graph)
    variables["params"]["first"]["kernel"] = np.eye(2, dtype=np.float32).reshape(1, 1, 2, 2)
    variables["params"]["second"]["kernel"] = np.array([small, 0.6], np.float32).reshape(1, 1, 2, 1)
    variables["scales"]["second"]["gain"] = np.ones(1, np.float32)
    image = np.array([1.0, 0.0], np.float32).reshape(1, 1, 1, 2)
    whole = currents(graph, variables, image)
    np.testing.assert_allclose(whole, level, rtol=1e-4)
    smaller, pruned = prune(graph, variables, {"first": [0]})
    np.testing.assert_allclose(currents(smaller, pruned, image), whole, rtol=1e-6)


@pytest.mark.parametrize("committed", [False, True])
def test_arrays_lie_as_they_lay(committed: bool):
    """Where only those that are cut were committed to a device, a step of training would be compiled twice."""
    place = partial(jax.device_put, device=jax.devices()[0]) if committed else jax.device_put
    variables = jax.tree.map(place, random_variables(GRAPH))
    _, pruned = prune(GRAPH, variables, KEEP)
    assert {leaf.committed for leaf in jax.tree.leaves(pruned["params"])} == {committed}

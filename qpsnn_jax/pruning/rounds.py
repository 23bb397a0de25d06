"""Pruning in several rounds with training between them, as a transform of a training state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

import numpy as np

from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.zoo.blocks import kept_channels
from qpsnn_jax.pruning.budget import Comparison, allocate, only_budget
from qpsnn_jax.pruning.channels import channel_groups, rounded_units
from qpsnn_jax.pruning.ratios import checked_ratios, highest
from qpsnn_jax.pruning.removal import prune
from qpsnn_jax.pruning.usage import Resource
from qpsnn_jax.runtime.checks import integer

Tree = TypeVar("Tree")


class RoundsState(NamedTuple):
    """The network as it is, its units of channels by group before the first round, and how many rounds are done."""

    graph: Graph
    units: Mapping[str, int]
    done: int


class Update(Protocol):
    """The next round, of :func:`pruning_rounds`."""

    def __call__(
        self, state: RoundsState, tree: Tree, scores: Mapping[str, Any], activity: Mapping[str, Any] | None = None
    ) -> tuple[RoundsState, Tree]:
        """The state and the tree after the next round."""
        ...


class PruningRounds(NamedTuple):
    """The result of :func:`pruning_rounds`.

    Attributes:
        init: from the unpruned graph to the state before the first round.
        keep: from a state, scores and the activity to the channels that the next round keeps, by group.
        update: from a state, a tree of arrays of its graph (variables or a whole training state), scores of its
            channels, and for a budget of operations its activity, to the state and the tree after the next round.
    """

    init: Callable[[Graph], RoundsState]
    keep: Callable[[RoundsState, Mapping[str, Any], Mapping[str, Any] | None], dict[str, np.ndarray]]
    update: Update


def pruning_rounds(
    rounds: int,
    *,
    ratios: Mapping[str, float] | None = None,
    floor: float = 0.1,
    comparison: Comparison = "share",
    multiple_of: int = 1,
    **budget: float,
) -> PruningRounds:
    r"""Pruning in rounds: each one removes the same share of what is left, and the last one arrives at the goal.

    With n units now, a goal of m, and r rounds left, a round leaves :math:`n\,(m/n)^{1/r}`, a geometric schedule. The
    goal is that of :func:`qpsnn_jax.select` with the ratios, for the channels of each group, or that of
    :func:`qpsnn_jax.allocate` with a budget, for the whole network.

    Args:
        rounds: how many, at least 1.
        ratios: by label, of the unpruned network.
        floor, comparison: as for :func:`qpsnn_jax.allocate`; the floor is a share of the unpruned groups.
        multiple_of: as for :func:`qpsnn_jax.select`, in every round.
        budget: one of ``bytes``, ``params`` and ``sops`` in place of ratios; what masks remove counts too.

    Returns:
        :class:`PruningRounds`. Its functions are pure; arrays shrink, so that a step of training is made anew for the
        graph of each state, and compiled once for each.

    Raises:
        ValueError: ``rounds`` is not positive, or not one of ratios and a budget is given; in ``update``, all rounds
            are done, or as in :func:`qpsnn_jax.select` and :func:`qpsnn_jax.allocate`.

    References:
        Han et al., NeurIPS 2015; geometric schedule as in Frankle and Carbin, ICLR 2019.

    Example:
        In a loop of your own::

            transform = pruning_rounds(3, bytes=98_000)
            pruned = transform.init(graph)
            for _ in range(3):
                pruned, state = transform.update(pruned, state, score(pruned.graph, state.variables, batches))
                step = jax.jit(make_train_step(pruned.graph, tx))
                for images, labels in epochs:
                    state, metrics = step(state, images, labels)
    """
    rounds = integer("rounds", rounds, 1)
    if bool(budget) == (ratios is not None):
        raise ValueError(f"pruning_rounds takes ratios or a budget, got {'both' if budget else 'neither'}.")
    if unknown := sorted(set(budget) - set(get_args(Resource))):
        raise ValueError(f"a budget is of {', '.join(get_args(Resource))}, got {unknown[0]}.")
    if budget:
        only_budget(budget)

    def init(graph: Graph) -> RoundsState:
        return RoundsState(graph, {name: g.size // g.unit for name, g in channel_groups(graph).items()}, 0)

    def keep(
        state: RoundsState, scores: Mapping[str, Any], activity: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        if (left := rounds - state.done) < 1:
            raise ValueError(f"all {rounds} rounds of pruning are done.")
        if not budget:
            return _by_ratios(state, scores, ratios or {}, left, multiple_of)
        (resource, limit), *_ = budget.items()
        now = _use(state.graph, resource, activity)
        goal = limit if left == 1 or now <= limit else now * (limit / now) ** (1 / left)
        floors = _floors(state, floor) if state.done else floor
        options: dict[str, Any] = {"floor": floors, "comparison": comparison, "multiple_of": multiple_of}
        return allocate(state.graph, scores, activity=activity, **{**budget, resource: goal}, **options)

    def update(
        state: RoundsState, tree: Tree, scores: Mapping[str, Any], activity: Mapping[str, Any] | None = None
    ) -> tuple[RoundsState, Tree]:
        graph, tree = prune(state.graph, tree, keep(state, scores, activity))
        return RoundsState(graph, state.units, state.done + 1), tree

    return PruningRounds(init, keep, update)


def _by_ratios(
    state: RoundsState, scores: Mapping[str, Any], ratios: Mapping[str, float], left: int, multiple_of: int
) -> dict[str, np.ndarray]:
    chosen, found = checked_ratios(state.graph, ratios), {}
    for name, group in channel_groups(state.graph).items():
        if group.label is not None:
            now, goal = group.size // group.unit, kept_channels(state.units[name], chosen[group.label])
            kept = goal if left == 1 else round(now * (goal / now) ** (1 / left))
            found[name] = highest(group, scores, rounded_units(state.graph, group, kept, multiple_of))
    return found


def _floors(state: RoundsState, floor: float | Mapping[str, float]) -> dict[str, float]:
    """The share of the units of every group now that is the floor's share of those before the first round."""
    groups = channel_groups(state.graph)
    floors = floor if isinstance(floor, Mapping) else dict.fromkeys(groups, floor)
    return {
        name: min(1.0, np.ceil(floors[name] * state.units[name] - 1e-9) / (group.size // group.unit))
        for name, group in groups.items()
        if name in floors
    }


def _use(graph: Graph, resource: str, activity: Mapping[str, Any] | None) -> float:
    spent = cost(graph, activity)
    found = {"bytes": spent.size_bytes, "params": spent.params, "sops": spent.sops_total}.get(resource)
    if found is None:
        raise ValueError(f"a budget of {resource} needs the activity of the network, or is unknown.")
    return found

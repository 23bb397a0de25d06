"""Selection of channels by a budget of bytes, operations or parameters in place of ratios."""

from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.channels import Group, channel_groups, rounded_units, units_at_once
from qpsnn_jax.pruning.usage import Resource, Usage, usage

Comparison = Literal["share", "mean", "max", "rank", "none"]

_COMPARED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "share": lambda scores: scores,
    "mean": lambda scores: scores / max(float(np.mean(scores)), 1e-30),
    "max": lambda scores: scores / max(float(np.max(scores)), 1e-30),
    "rank": lambda scores: (1 + np.argsort(np.argsort(scores, kind="stable"))) / len(scores),
    "none": lambda scores: scores,
}


def allocate(
    graph: Graph,
    scores: Mapping[str, Any],
    *,
    bytes: float | None = None,
    params: float | None = None,
    sops: float | None = None,
    activity: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
    floor: float | Mapping[str, float] = 0.1,
    comparison: Comparison = "share",
    multiple_of: int = 1,
) -> dict[str, np.ndarray]:
    r"""The channels to keep so that the network meets a budget, by one ranking of the channels of all groups.

    While the network exceeds the budget, the channel (or attention head) with the lowest worth for what its removal
    saves is removed, at the widths that are left. Then those that still fit return. So the result is within the budget,
    and no further channel fits. Every group with scores takes part, those without a label too, such as the last stage
    of a residual network.

    The worth of a channel with the score q makes groups comparable. It is m times the following, with m the number of
    layers that make the channels of the group, because each of them loses one:

    - ``share``: :math:`q / \sum q` over the channels that are left in its group. It rises while a group is emptied,
      so that what all groups lose stays in proportion;
    - ``mean``, ``max``: q divided by the mean or the largest score of the group;
    - ``rank``: the place of q in its group, from 1/n to 1;
    - ``none``: q itself.

    Args:
        graph: the network.
        scores: ``{group: scores}``, not negative, as :func:`qpsnn_jax.score` returns them. Groups without scores keep
            all channels.
        bytes: the largest size of Eq. 16, as :attr:`qpsnn_jax.Cost.size_bytes`.
        params: the largest number of parameters, as :attr:`qpsnn_jax.Cost.params`.
        sops: the most synaptic operations of an image over all steps, as :attr:`qpsnn_jax.Cost.sops_total`, if the
            channels that are left fire as before. Operations of attentions are taken as constant.
        activity: for ``sops``, as measured with :func:`qpsnn_jax.activity_reducers`.
        masks: the collection ``masks`` of the variables, if what they remove is not to count. Bytes then are an upper
            bound, with an index of one bit a weight; the cheapest index may leave the network smaller than the budget.
        floor: share of every group that is always kept, in [0, 1]; at least one channel is. Or one by group.
        comparison: how the worth of a channel follows from its score.
        multiple_of: as for :func:`qpsnn_jax.select`; channels are then removed and return so many at a time.

    Returns:
        ``{group: kept channel numbers}`` for :func:`qpsnn_jax.prune`, for every group that has scores.

    Raises:
        ValueError: not exactly one budget, scores of a group that the graph lacks, a budget below what the floor
            leaves, ``sops`` without activity, an unknown comparison, a floor that is not from 0 to 1 for every group,
            ``multiple_of`` below 1, or scores that are not finite and non-negative numbers, one for each channel.
    """
    resource, limit = only_budget({"bytes": bytes, "params": params, "sops": sops})
    if comparison not in get_args(Comparison):
        raise ValueError(f"comparison must be one of {', '.join(get_args(Comparison))}, got {comparison!r}.")
    every = channel_groups(graph)
    if unknown := [name for name in scores if name not in every]:
        raise ValueError(f"scores name {unknown[0]!r}; this network has the groups {', '.join(every)}.")
    groups = {name: group for name, group in every.items() if name in scores}
    ranking = {name: _compared(graph, group, scores[name], comparison) for name, group in groups.items()}
    model = usage(graph, groups, resource, activity, masks)
    kept = {name: np.ones(group.size // group.unit, bool) for name, group in groups.items()}
    steps = {name: units_at_once(graph, group, multiple_of) for name, group in groups.items()}
    least = _least(graph, groups, floor, multiple_of)
    while model.total(kept) > limit:
        found = _cheapest(model, kept, ranking, least, steps)
        if found is None:
            raise _unmet(graph, scores, (resource, limit), _rule(floor, multiple_of), model.total(kept))
        kept[found[0]][found[1]] = False
    _refill(model, kept, ranking, limit, steps)
    return {name: _channels(group, kept[name]) for name, group in groups.items()}


def check_budget(
    graph: Graph,
    scored: Collection[str],
    *,
    floor: float = 0.1,
    multiple_of: int = 1,
    bytes: float | None = None,
    params: float | None = None,
) -> None:
    """Check that a budget can be met before any channel is scored.

    Args:
        graph, floor, multiple_of, bytes, params: as for :func:`allocate`.
        scored: names of the groups that will have scores.

    Raises:
        ValueError: the floor leaves more than the budget.
    """
    resource, limit = only_budget({"bytes": bytes, "params": params})
    groups = {name: group for name, group in channel_groups(graph).items() if name in scored}
    least = _least(graph, groups, floor, multiple_of)
    model = usage(graph, groups, resource, None)
    total = model.total({name: np.arange(g.size // g.unit) < least[name] for name, g in groups.items()})
    if total > limit:
        raise _unmet(graph, scored, (resource, limit), _rule(floor, multiple_of), total)


def only_budget(given: Mapping[str, float | None]) -> tuple[Resource, float]:
    """The one resource that has a limit, and that limit, without fractions of bytes and parameters.

    Raises:
        ValueError: not exactly one has one, or it is not a positive number.
    """
    budgets: list[Any] = [(name, limit) for name, limit in given.items() if limit is not None]
    if len(budgets) != 1 or isinstance(budgets[0][1], str) or not 0 < budgets[0][1] < np.inf:
        raise ValueError("the budget must be one positive number of bytes, params or sops.")
    name, limit = budgets[0]
    return name, limit if name == "sops" else float(np.floor(limit))


def _least(
    graph: Graph, groups: Mapping[str, Group], floor: float | Mapping[str, float], multiple_of: int
) -> dict[str, int]:
    """The fewest units that every group keeps."""
    floors: dict[str, Any] = dict(floor) if isinstance(floor, Mapping) else dict.fromkeys(groups, floor)
    for name in groups:
        share = floors.get(name)
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1:
            raise ValueError(f"floor must be a number from 0 to 1, for every group, got {share!r} for {name!r}.")
    shares = {name: max(1, int(np.ceil(floors[name] * (g.size // g.unit) - 1e-9))) for name, g in groups.items()}
    return {name: rounded_units(graph, group, shares[name], multiple_of) for name, group in groups.items()}


def _rule(floor: float | Mapping[str, float], multiple_of: int) -> str:
    """What limits the removal of channels, in words."""
    least = max(floor.values(), default=0.0) if isinstance(floor, Mapping) else floor
    return f"a floor of {least:g}" + (f", multiples of {multiple_of}" if multiple_of > 1 else "")


def _unmet(
    graph: Graph, scored: Collection[str], budget: tuple[Resource, float], rule: str, total: float
) -> ValueError:
    unscored = [name for name in channel_groups(graph) if name not in scored]
    whole = f" and all channels of {', '.join(unscored)}, which the criterion does not score" if unscored else ""
    return ValueError(
        f"a budget of {budget[1]:,.0f} {budget[0]} cannot be met: with {rule}{whole} the network keeps "
        f"{total:,.0f}; lower the floor or raise the budget."
    )


class _Scores(NamedTuple):
    """Scores of the units of a group, as they are compared, and the number of layers that make its channels."""

    values: np.ndarray
    makers: int
    shared: bool

    def worth(self, kept: np.ndarray) -> np.ndarray:
        """The worth of every unit beside those that are kept."""
        return self.makers * (self.values / max(float(self.values[kept].sum()), 1e-30) if self.shared else self.values)


def _compared(graph: Graph, group: Group, scores: Any, comparison: str) -> _Scores:
    """The score of a unit is the mean of its channels'."""
    values = np.asarray(scores, np.float64)
    if values.shape != (group.size,) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"scores of group {group.name!r} must be {group.size} finite numbers, none negative.")
    makers = sum(graph.by_name[name].channels == "made" for name in group.members)
    return _Scores(_COMPARED[comparison](values.reshape(-1, group.unit).mean(axis=1)), makers, comparison == "share")


def _cheapest(
    model: Usage,
    kept: Mapping[str, np.ndarray],
    ranking: Mapping[str, _Scores],
    least: Mapping[str, int],
    steps: Mapping[str, int],
) -> tuple[str, np.ndarray] | None:
    """The units with the lowest worth for their saving; of equal ones, the last; None if all groups are at the floor.

    They are those of one group that it has beyond a multiple of its step.
    """
    best, found = np.inf, None
    for name, saved in model.savings(kept).items():
        mask = kept[name]
        if mask.sum() <= least[name]:
            continue
        worth = ranking[name].worth(mask)
        price = np.divide(worth, saved, out=np.full(len(worth), np.inf), where=saved > 0)
        units = np.flatnonzero(mask)[::-1]
        units = units[np.argsort(price[units], kind="stable")[: (len(units) - 1) % steps[name] + 1]]
        total = saved[units].sum()
        if total > 0 and worth[units].sum() / total < best:
            best, found = worth[units].sum() / total, (name, units)
    return found


def _refill(
    model: Usage,
    kept: dict[str, np.ndarray],
    ranking: Mapping[str, _Scores],
    limit: float,
    steps: Mapping[str, int],
) -> None:
    """Take back units that still fit: the best such units of each group, first where they cost least for their worth.

    Units that do not fit never will, because the return of a unit makes no other one cheaper. The costliest of them
    then stays away.
    """
    waiting = {
        name: [int(unit) for unit in np.argsort(-ranking[name].values, kind="stable")[::-1] if not mask[unit]]
        for name, mask in kept.items()
    }
    while True:
        total, costs, candidates = model.total(kept), model.savings(kept), []
        for name, units in waiting.items():
            mask = kept[name]
            size = min(steps[name], int((~mask).sum()))
            while 0 < size <= len(units):
                best = units[-size:]
                added = model.total(kept | {name: mask | np.isin(np.arange(len(mask)), best)}) - total
                if total + added <= limit:
                    candidates.append((added / max(ranking[name].worth(mask)[best].sum(), 1e-30), name, best))
                    break
                units.remove(max(best, key=lambda unit: costs[name][unit]))
        if not candidates:
            return
        _, name, best = min(candidates)
        kept[name][best] = True
        del waiting[name][-len(best) :]


def _channels(group: Group, mask: np.ndarray) -> np.ndarray:
    return (np.flatnonzero(mask)[:, None] * group.unit + np.arange(group.unit)).ravel()

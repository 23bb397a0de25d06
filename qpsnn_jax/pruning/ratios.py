"""Selection of channels by ratios: of every group the best, so many as are left of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.zoo.blocks import kept_channels
from qpsnn_jax.pruning.channels import Group, channel_groups, rounded_units
from qpsnn_jax.pruning.removal import prune
from qpsnn_jax.runtime.checks import finite


def select(
    graph: Graph, scores: Mapping[str, Any], ratios: Mapping[str, float] | float, *, multiple_of: int = 1
) -> dict[str, np.ndarray]:
    """The channels to keep in every group: the int(n·(1 - r)) with the highest scores, in ascending order.

    Channels that feed an attention are counted, scored (by their mean) and removed by heads. Among equal scores
    the channel with the lower number is kept, so that the result does not depend on the machine.

    Args:
        graph: the network.
        scores: ``{group: scores}``, as :func:`score` returns them.
        ratios: fraction removed, by label; 0 for missing labels. A single number is used for all labelled groups.
        multiple_of: every layer keeps a multiple of so many channels, or all: the number that a ratio leaves is rounded
            up, as hardware that computes so many at once takes no longer for them. Heads and the groups of convolutions
            stay whole, so that the least common multiple counts.

    Returns:
        ``{group: kept channel numbers}`` for :func:`qpsnn_jax.prune`, without the groups that have no label.

    Raises:
        ValueError: a label that no group has, layers of several labels in one group, a ratio outside [0, 1), a ratio
            that empties a group, missing or non-finite scores, or ``multiple_of`` is not an integer, 1 or more.

    References:
        QP-SNN (ICLR 2025), Algorithm 1, with the counts that reproduce its sizes.
    """
    chosen = checked_ratios(graph, ratios)
    groups = {name: group for name, group in channel_groups(graph).items() if group.label is not None}
    kept = {name: _kept(group, chosen[str(group.label)]) for name, group in groups.items()}
    return {
        name: highest(group, scores, rounded_units(graph, group, kept[name], multiple_of))
        for name, group in groups.items()
    }


def pruned_graph(graph: Graph, ratios: Mapping[str, float] | float, *, multiple_of: int = 1) -> Graph:
    """A network of the widths that :func:`select` leaves, of the first channels of every group.

    Raises:
        ValueError: as for :func:`select`.
    """
    equal = {name: np.zeros(group.size) for name, group in channel_groups(graph).items()}
    return prune(graph, {}, select(graph, equal, ratios, multiple_of=multiple_of))[0]


def checked_ratios(graph: Graph, ratios: Mapping[str, float] | float) -> dict[str, float]:
    """The ratio of every label of a graph; see :func:`select`.

    Raises:
        ValueError: a label that no group has, a network without labels, layers of several labels in one group, or a
            ratio that is no number from 0 to 1.
    """
    groups = channel_groups(graph).values()
    for group in groups:
        named = {name: label for name in group.members if (label := getattr(graph.by_name[name], "label", None))}
        if len(set(named.values())) > 1:
            of = ", ".join(f"{name} has {label!r}" for name, label in named.items())
            raise ValueError(f"layers whose channels are removed together need one label: {of}.")
    labels = {group.label for group in groups if group.label is not None}
    number = None if isinstance(ratios, Mapping) else finite("ratios", ratios, 0, 1)
    if number and not labels:
        raise ValueError("ratios remove channels of layers with a label, and no layer of this network has one.")
    chosen = dict(ratios) if isinstance(ratios, Mapping) else dict.fromkeys(labels, number)
    if unknown := [label for label in chosen if label not in labels]:
        raise ValueError(f"ratios name {unknown[0]!r}; this network has {', '.join(sorted(labels)) or 'no labels'}.")
    return {label: finite(f"ratio of {label!r}", chosen.get(label, 0.0), 0, 1) for label in labels}


def _kept(group: Group, ratio: float) -> int:
    of = "channels" if group.unit == 1 else f"units of {group.unit} channels, which are removed together"
    try:
        return kept_channels(group.size // group.unit, ratio, of)
    except ValueError as error:
        raise ValueError(f"ratio of {group.label!r} in group {group.name!r}: {error}") from None


def highest(group: Group, scores: Mapping[str, Any], kept: int) -> np.ndarray:
    """The channels of the ``kept`` units of a group with the highest scores, in ascending order; see :func:`select`.

    Raises:
        ValueError: missing or non-finite scores.
    """
    if group.name not in scores:
        raise ValueError(f"scores lack the group {group.name!r}.")
    values = np.asarray(scores[group.name], np.float64)
    if values.shape != (group.size,) or not np.all(np.isfinite(values)):
        raise ValueError(f"scores of group {group.name!r} must be {group.size} finite numbers.")
    # Attention heads are kept or removed as units, by the mean score of their channels.
    units = np.sort(np.argsort(-values.reshape(-1, group.unit).mean(axis=1), kind="stable")[:kept])
    return (units[:, None] * group.unit + np.arange(group.unit)).ravel()

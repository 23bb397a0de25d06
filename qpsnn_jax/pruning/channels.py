"""Groups of channels that must be removed together."""

import math
from typing import NamedTuple

from qpsnn_jax.model.graph import Graph


class Group(NamedTuple):
    """Channels that are kept or removed together.

    ``name`` is that of the first convolution or dense layer that makes them, ``size`` their number, ``label`` the
    name of their pruning ratio (None: no ratio removes any, but a budget may), ``members`` all the nodes that produce
    them, in graph order. Channels are removed ``unit`` at a time: one by one, or by heads if they feed an attention.
    """

    name: str
    size: int
    label: str | None
    members: tuple[str, ...]
    unit: int = 1


def channel_groups(graph: Graph) -> dict[str, Group]:
    """The groups of channels that can be removed, by name, found by union-find over the edges.

    A node that makes channels (convolutions and dense layers) starts a group; one that carries its inputs' passes it on
    (batch-norm, LIF, pooling, flattening) and joins those of several inputs (an addition; an attention, whose channels
    are split into heads). A shortcut starts one too, because it can carry any subset of its input's channels. Where
    maps are flattened, each of their channels occurs at every position; a group has as many channels as its smallest
    period. The input and the output are in no group, nor are channels joined to those that are never removed.

    Args:
        graph: any graph.

    Returns:
        Groups by name, in graph order.

    References:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    roots = _roots(graph)
    kept = {roots[node.name] for node in graph.nodes if node.channels == "fixed"} | {roots[graph.output.name]}
    groups: dict[str, Group] = {}
    for root in dict.fromkeys(roots.values()):
        members = [node for node in graph.nodes if roots[node.name] == root]
        makers = [node for node in members if node.channels == "made"]
        if root in kept or not makers:
            continue
        labels = [getattr(node, "label", None) for node in makers]
        label = labels[0] if len(set(labels)) == 1 else None
        size = math.gcd(*(graph.values[node.name].shape[-1] for node in members))
        # Heads that do not divide the period of a flattened map: nothing can be removed without splitting a head.
        unit = math.lcm(*(node.unit for node in members))
        names = tuple(node.name for node in members)
        groups[makers[0].name] = Group(makers[0].name, size, label, names, size if size % unit else unit)
    return groups


def spiking_members(graph: Graph, group: Group) -> tuple[str, ...]:
    """The neurons of a group, whose spike maps score its channels."""
    return tuple(name for name in group.members if name in graph.neurons)


def _roots(graph: Graph) -> dict[str, str]:
    """For each node the name of the representative of its channels."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        parent[node.name] = node.name
        for source in node.inputs if node.channels == "carried" else ():
            parent[find(node.name)] = find(source)
    return {name: find(name) for name in parent}

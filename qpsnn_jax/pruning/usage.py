"""A network's use of bytes, parameters or operations, as a function of the channels that are kept in each group."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes.base import Node
from qpsnn_jax.pruning.channels import Group, channel_numbers

Resource = Literal["bytes", "params", "sops"]
_Widths = Mapping[str, Mapping[str | None, float]]


@dataclass(frozen=True)
class _Term:
    """An amount that is ``coefficient`` times the widths of ``axes``, and times the part of the input that is left.

    ``shares`` are those of the units of the group ``source`` in that input, whose sum is 1.
    """

    coefficient: float
    axes: tuple[str, ...]
    source: str | None = None
    shares: np.ndarray | None = None


@dataclass(frozen=True)
class Usage:
    """A network's use of a resource as a sum of terms, for the units that are kept in each group."""

    terms: tuple[_Term, ...]
    units: Mapping[str, int]

    def amounts(self, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        """The value of every term."""
        widths = {name: float(self.units[name] * mask.sum()) for name, mask in kept.items()}
        values = np.array([term.coefficient for term in self.terms])
        for i, term in enumerate(self.terms):
            for axis in term.axes:
                values[i] *= widths[axis]
            if term.source is not None and term.shares is not None:
                values[i] *= term.shares[kept[term.source]].sum()
        return values

    def total(self, kept: Mapping[str, np.ndarray]) -> float:
        """Their sum."""
        return float(self.amounts(kept).sum())

    def savings(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The saving by the removal of each unit of each group; only those of kept units are meaningful."""
        saved = {name: np.zeros(len(mask)) for name, mask in kept.items()}
        for term, amount in zip(self.terms, self.amounts(kept), strict=True):
            for axis in set(term.axes):
                left = 1 - 1 / kept[axis].sum()
                saved[axis] += amount * (1 - left ** term.axes.count(axis))
            if term.source is not None and term.shares is not None:
                saved[term.source] += amount * term.shares / max(term.shares[kept[term.source]].sum(), 1e-30)
        return saved


def usage(graph: Graph, groups: Mapping[str, Group], resource: Resource, activity: Mapping[str, Any] | None) -> Usage:
    """The use of a resource by a network, for the groups of which channels may be removed.

    Raises:
        ValueError: ``sops`` without the activity of a layer's inputs.
    """
    widths = _widths(graph, groups)
    if resource == "sops":
        terms = _operations(graph, groups, widths, activity or {})
    else:
        terms = [
            term
            for node in graph.nodes
            for leaf in node.leaves(graph.inputs_of(node)).values()
            if leaf.collection == "params"
            for term in _terms(leaf.size * (leaf.bits / 8 if resource == "bytes" else 1), leaf.axes, groups, widths)
        ]
    return Usage(tuple(terms), {name: group.unit for name, group in groups.items()})


def _widths(graph: Graph, groups: Mapping[str, Group]) -> _Widths:
    """For every node the share of its channels that are in each group, and under None in no group."""
    widths: dict[str, dict[str | None, float]] = {name: {} for name in graph.by_name}
    for name in groups:
        for member, numbers in channel_numbers(graph, name).items():
            widths[member][name] = float(np.mean(numbers >= 0))
    for own in widths.values():
        if (rest := 1 - sum(own.values())) > 1e-9:
            own[None] = rest
    return widths


def _terms(amount: float, nodes: tuple[str | None, ...], groups: Mapping[str, Group], widths: _Widths) -> list[_Term]:
    """An amount proportional to the channels of each of the nodes."""
    terms = []
    for parts in product(*(widths[node].items() for node in nodes if node is not None)):
        axes = tuple(name for name, _ in parts if name is not None)
        share = amount * float(np.prod([part for _, part in parts]))
        terms.append(_Term(share / float(np.prod([groups[axis].size for axis in axes])), axes))
    return terms


def _operations(graph: Graph, groups: Mapping[str, Group], widths: _Widths, activity: Mapping[str, Any]) -> list[_Term]:
    terms = []
    for spent in cost(graph, activity).nodes:
        node = graph.by_name[spent.name]
        if spent.acs is None:
            raise ValueError(f"a budget of sops needs the activity of the inputs of node {node.name!r}.")
        if not spent.acs:
            continue
        inputs = graph.inputs_of(node)
        synaptic = node.channels == "made" and node.synapses(inputs) is not None
        # In a convolution in groups a spike reaches as many outputs however many groups there are.
        reached = synaptic and any(node.inputs[0] in leaf.axes for leaf in node.leaves(inputs).values())
        whole = _terms(spent.acs, (node.name,) if reached else (), groups, widths)
        terms += _by_source(graph, node, groups, whole, activity) if synaptic else whole
    return terms


def _by_source(
    graph: Graph, node: Node, groups: Mapping[str, Group], whole: list[_Term], activity: Mapping[str, Any]
) -> list[_Term]:
    """The terms of a layer's operations, each divided among the groups of its input."""
    per_channel, parts, rest = _shares(graph, node, activity), [], 1.0
    for name, group in groups.items():
        if node.inputs[0] in group.members:
            numbers = channel_numbers(graph, name)[node.inputs[0]]
            per_number = np.bincount(numbers[numbers >= 0], per_channel[numbers >= 0], group.size)
            per_unit = per_number.reshape(-1, group.unit).sum(1)
            parts.append((name, per_unit))
            rest -= per_unit.sum()
    terms = [_Term(term.coefficient * rest, term.axes) for term in whole if rest > 1e-9]
    return terms + [
        _Term(term.coefficient * per_unit.sum(), term.axes, name, per_unit / per_unit.sum())
        for term in whole
        for name, per_unit in parts
        if per_unit.any()
    ]


def _shares(graph: Graph, node: Node, activity: Mapping[str, Any]) -> np.ndarray:
    """The share of a layer's operations that the spikes of each channel of its input cause."""
    (given,) = graph.inputs_of(node)
    rates = np.broadcast_to(np.asarray(activity[node.inputs[0]], np.float64), given.shape)
    synapses = np.asarray(node.synapses([given]))
    per_channel = (rates * (synapses[..., None] if synapses.ndim else synapses)).reshape(-1, given.shape[-1]).sum(0)
    return per_channel / per_channel.sum()

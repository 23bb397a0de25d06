"""A network's use of bytes, parameters or operations, as a function of the channels that are kept in each group."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.masks import masked_layer, read_masks
from qpsnn_jax.model.nodes import Weighted
from qpsnn_jax.model.nodes.base import Node
from qpsnn_jax.numerics.sparsity import needs_bitmap
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


Places = tuple[tuple[str, np.ndarray], ...]
"""Groups with the unit of each of a layer's channels in them, -1 for a channel that is in none."""


@dataclass(frozen=True)
class _Pairs:
    """The ``amounts`` of a masked layer, ``i o``, one for each pair of an input and an output channel."""

    amounts: np.ndarray
    inputs: Places
    outputs: Places

    def total(self, kept: Mapping[str, np.ndarray]) -> float:
        return float(_left(self.inputs, self.amounts.shape[0], kept) @ self.amounts @ self._outputs(kept))

    def savings(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """By group and unit; pairs of a unit with itself are saved once."""
        given, made = _left(self.inputs, self.amounts.shape[0], kept), self._outputs(kept)
        by_input, by_output = given * (self.amounts @ made), (given @ self.amounts) * made
        saved = {name: np.zeros(len(mask)) for name, mask in kept.items()}
        for places, amounts in ((self.inputs, by_input), (self.outputs, by_output)):
            for name, units in places:
                saved[name] += np.bincount(units[units >= 0], amounts[units >= 0], len(saved[name]))
        for (name, rows), (other, columns) in product(self.inputs, self.outputs):
            if name == other:
                i, o = np.nonzero((rows[:, None] == columns) & (rows[:, None] >= 0))
                saved[name] -= np.bincount(rows[i], self.amounts[i, o] * given[i] * made[o], len(saved[name]))
        return saved

    def _outputs(self, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        return _left(self.outputs, self.amounts.shape[1], kept)


@dataclass(frozen=True)
class Usage:
    """A network's use of a resource as a sum of terms, for the units that are kept in each group."""

    terms: tuple[_Term, ...]
    units: Mapping[str, int]
    pairs: tuple[_Pairs, ...] = ()

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
        return float(self.amounts(kept).sum()) + sum(pairs.total(kept) for pairs in self.pairs)

    def savings(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The saving by the removal of each unit of each group; only those of kept units are meaningful."""
        saved = {name: np.zeros(len(mask)) for name, mask in kept.items()}
        for term, amount in zip(self.terms, self.amounts(kept), strict=True):
            for axis in set(term.axes):
                left = 1 - 1 / kept[axis].sum()
                saved[axis] += amount * (1 - left ** term.axes.count(axis))
            if term.source is not None and term.shares is not None:
                saved[term.source] += amount * term.shares / max(term.shares[kept[term.source]].sum(), 1e-30)
        for pairs in self.pairs:
            saved = {name: saved[name] + own for name, own in pairs.savings(kept).items()}
        return saved


def usage(
    graph: Graph,
    groups: Mapping[str, Group],
    resource: Resource,
    activity: Mapping[str, Any] | None,
    masks: Mapping[str, Any] | None = None,
) -> Usage:
    """The use of a resource by a network, for the groups of which channels may be removed.

    Raises:
        ValueError: ``sops`` without the activity of a layer's inputs, or as in :func:`qpsnn_jax.cost` for ``masks``.
    """
    widths, known = _widths(graph, groups), {} if masks is None else read_masks(graph, {"masks": masks})
    if resource == "sops":
        terms = _operations(graph, groups, widths, activity or {}, known)
    else:
        terms = [
            term
            for node in graph.nodes
            for name, leaf in node.leaves(graph.inputs_of(node)).items()
            if leaf.collection == "params" and not (node.name in known and name == "kernel")
            for term in _terms(leaf.size * (leaf.bits / 8 if resource == "bytes" else 1), leaf.axes, groups, widths)
        ]
        # The bytes of an array of fifths of bits are rounded up to a bit, which is at most 4/5 more.
        if resource == "bytes":
            terms += [_Term(0.1, ()) for node in graph.nodes if _in_fifths(graph, node)]
    pairs = tuple(_pairs(graph, groups, masked_layer(graph, name), known[name], resource, activity) for name in known)
    return Usage(tuple(terms), {name: group.unit for name, group in groups.items()}, pairs)


def _in_fifths(graph: Graph, node: Node) -> bool:
    return any(leaf.bits % 1 for leaf in node.leaves(graph.inputs_of(node)).values() if leaf.collection == "params")


def _left(places: Places, size: int, kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """1 for each channel that is left, else 0."""
    left = np.ones(size)
    for name, units in places:
        left[units >= 0] *= kept[name][units[units >= 0]]
    return left


def _pairs(
    graph: Graph,
    groups: Mapping[str, Group],
    node: Weighted,
    mask: np.ndarray,
    resource: Resource,
    activity: Mapping[str, Any] | None,
) -> _Pairs:
    """What the weights of a masked layer use; bytes with an index of one bit a weight, which no better one exceeds."""
    (given,) = graph.inputs_of(node)
    amounts = _by_pair(mask, node.groups)
    if resource == "bytes":
        bits, whole = node.leaves([given])["kernel"].bits, _by_pair(np.ones_like(mask), node.groups)
        indexed = bits * amounts + whole
        amounts = bits * whole / 8 if not needs_bitmap(mask, bits, has_zero=node.has_zero) else indexed / 8
    elif resource == "sops" and not given.spiking:
        amounts = np.zeros_like(amounts)
    elif resource == "sops":
        rates = np.broadcast_to(np.asarray((activity or {})[node.input], np.float64), given.shape)
        amounts = np.stack(
            [_reached(graph, node, mask * (np.arange(node.features) == o), rates) for o in range(node.features)], 1
        )
    return _Pairs(amounts, _places(graph, groups, node.input), _places(graph, groups, node.name))


def _by_pair(mask: np.ndarray, groups: int) -> np.ndarray:
    """Weights that are left between each input and output channel, ``i o``, of a kernel ``… i/groups o``."""
    left = mask.reshape(-1, *mask.shape[-2:]).sum(0, dtype=np.float64)
    inputs, outputs = left.shape[0], left.shape[1] // groups
    found = np.zeros((inputs * groups, left.shape[1]))
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        found[group * inputs : (group + 1) * inputs, own] = left[:, own]
    return found


def _reached(graph: Graph, node: Weighted, mask: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Operations of each input channel at the weights that the mask leaves, over all steps."""
    (given,) = graph.inputs_of(node)
    steps = graph.timesteps if given.timed else 1
    return steps * (rates * node.synapses([given], mask)).reshape(-1, given.shape[-1]).sum(0)


def _places(graph: Graph, groups: Mapping[str, Group], name: str) -> Places:
    numbers = {g: channel_numbers(graph, g)[name] for g, group in groups.items() if name in group.members}
    return tuple((g, np.where(own >= 0, own // groups[g].unit, -1)) for g, own in numbers.items())


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


def _operations(
    graph: Graph,
    groups: Mapping[str, Group],
    widths: _Widths,
    activity: Mapping[str, Any],
    masked: Collection[str],
) -> list[_Term]:
    """The terms of all nodes but the ``masked`` ones."""
    terms = []
    for spent in cost(graph, activity).nodes:
        node = graph.by_name[spent.name]
        if spent.acs is None:
            raise ValueError(f"a budget of sops needs the activity of the inputs of node {node.name!r}.")
        if not spent.acs or node.name in masked:
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

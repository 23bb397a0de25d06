"""Groups of channels that must be removed together."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from qpsnn_jax.model.graph import Graph, check_graph
from qpsnn_jax.runtime.checks import integer


class Group(NamedTuple):
    """Channels that the same nodes hold, so that one ratio removes some of them.

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
    """The groups of channels that can be removed, by name.

    A node that makes channels (convolutions and dense layers) has channels of its own; one that carries its inputs'
    passes them on (batch-norm, LIF, pooling, flattening) and ties those of several inputs (an addition; an attention,
    whose channels are split into heads). A shortcut has channels of its own too, because it can carry any subset of its
    input's. A convolution in groups ties all the channels of a group, of input and output, so that whole groups are
    removed. Channels that are tied are one channel, with one number in its group; where maps are flattened, it occurs
    at every position. A group are the channels that occur in the same nodes. The input and the output are in no group,
    nor are channels tied to those that are never removed.

    Args:
        graph: any graph.

    Returns:
        Groups by name, in graph order. Where a layer makes the channels of several groups, further ones have the name
        of their next layer or, if that is taken, a number behind the name.

    Raises:
        ValueError: ``graph`` is not a Graph.

    References:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    check_graph(graph)
    return dict(_partition(graph)[0])


def channel_numbers(graph: Graph, group: str) -> dict[str, np.ndarray]:
    """For each member of a group the number in the group of every channel of its output, or -1 for another group's."""
    groups, numbered = _partition(graph)
    return {name: np.where(numbered[name][0] == group, numbered[name][1], -1) for name in groups[group].members}


def spiking_members(graph: Graph, group: Group) -> tuple[str, ...]:
    """The neurons of a group, whose spike maps score its channels."""
    return tuple(name for name in group.members if name in graph.neurons)


def units_at_once(graph: Graph, group: Group, multiple_of: int) -> int:
    """How many units of a group are removed together so that each of its layers keeps a multiple of channels.

    A layer makes several channels of each number where it is a convolution in groups, so the result is that of the
    least common multiple for all layers and for the unit of the group.

    Raises:
        ValueError: ``multiple_of`` is not an integer, 1 or more.
    """
    multiple = integer("multiple_of", multiple_of, 1)
    numbers = channel_numbers(graph, group.name)
    made = [np.count_nonzero(numbers[name] == 0) for name in group.members if graph.by_name[name].channels == "made"]
    return math.lcm(group.unit, *(multiple // math.gcd(multiple, each) for each in made)) // group.unit


def rounded_units(graph: Graph, group: Group, units: int, multiple_of: int) -> int:
    """``units`` rounded up to such a multiple (:func:`units_at_once`), at most all units of the group."""
    step = units_at_once(graph, group, multiple_of)
    return min(group.size // group.unit, -(-units // step) * step)


@lru_cache(maxsize=32)
def _partition(graph: Graph) -> tuple[dict[str, Group], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The groups, and for every node the group's name and the number in it of each channel ("" and -1 for none)."""
    tied = _tied(graph)
    holds = np.zeros((1 + max(int(each.max()) for each in tied.values()), len(graph.nodes)), bool)
    for index, channels in enumerate(tied.values()):
        holds[channels, index] = True
    stay = np.asarray([node.channels == "fixed" or node is graph.output for node in graph.nodes])
    free = ~np.any(holds[:, stay], axis=1)
    names, numbers = np.full(len(holds), "", object), np.full(len(holds), -1)
    groups: dict[str, Group] = {}
    for maker in (node for node in graph.nodes if node.channels == "made"):
        own = np.asarray([c for c in dict.fromkeys(tied[maker.name].tolist()) if free[c]], int)
        while (waiting := own[names[own] == ""]).size:
            held = holds[waiting[0]]
            channels = waiting[(holds[waiting] == held).all(1)]
            group = _group(graph, held, len(channels), groups)
            groups[group.name], names[channels], numbers[channels] = group, group.name, np.arange(len(channels))
    numbered = {name: (names[channels], numbers[channels]) for name, channels in tied.items()}
    return {name: group._replace(unit=_unit(graph, group, numbered)) for name, group in groups.items()}, numbered


def _tied(graph: Graph) -> dict[str, np.ndarray]:
    """For every node a number for each channel of its output, the same for channels that are removed together."""
    sizes = [graph.values[node.name].shape[-1] for node in graph.nodes]
    starts = dict(zip(graph.by_name, np.cumsum([0, *sizes]).tolist(), strict=False))
    pairs = np.concatenate(
        [
            each + np.asarray([starts[node.name], starts[source]])
            for node in graph.nodes
            for source, each in zip(node.inputs, node.ties(graph.inputs_of(node)), strict=True)
        ]
        or [np.zeros((0, 2), int)]
    )
    # Union-find on all pairs at once: the larger root of each pair becomes a child of the smaller.
    roots, ends = np.arange(sum(sizes)), pairs.T
    while not np.array_equal(*roots[ends]):
        first, second = roots[ends]
        np.minimum.at(roots, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(roots, above := roots[roots]):
            roots = above
    _, roots = np.unique(roots, return_inverse=True)
    return {name: roots[starts[name] :][:size] for name, size in zip(graph.by_name, sizes, strict=True)}


def _group(graph: Graph, held: np.ndarray, size: int, groups: dict[str, Group]) -> Group:
    """The group of so many channels that these nodes hold, with a name that no other has."""
    members = [node for node, holds in zip(graph.nodes, held, strict=True) if holds]
    makers = [node for node in members if node.channels == "made"]
    labels = {getattr(node, "label", None) for node in makers}
    free = [node.name for node in makers if node.name not in groups]
    name = free[0] if free else f"{makers[0].name}.{len(groups)}"
    return Group(name, size, labels.pop() if len(labels) == 1 else None, tuple(node.name for node in members))


def _unit(graph: Graph, group: Group, numbered: dict[str, tuple[np.ndarray, np.ndarray]]) -> int:
    """How many channels are removed together; all of them where heads do not lie one after the other in the group."""
    units = [(graph.by_name[name].unit, *numbered[name]) for name in group.members if graph.by_name[name].unit > 1]
    unit = math.lcm(*(each for each, *_ in units))
    whole = all(
        (names.reshape(-1, each) == names[::each, None]).all()
        and (numbers.reshape(-1, each) == numbers[::each, None] + np.arange(each))[names[::each] == group.name].all()
        and not (numbers[::each] % each)[names[::each] == group.name].any()
        for each, names, numbers in units
    )
    return unit if whole and group.size % unit == 0 else group.size

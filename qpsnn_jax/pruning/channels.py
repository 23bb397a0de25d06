"""Groups of channels that must be removed together, and their removal, which shrinks the arrays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from qpsnn_jax.model.graph import Graph

Tree = TypeVar("Tree")
Keep = Mapping[str, Sequence[int] | np.ndarray]


class Group(NamedTuple):
    """Channels that are kept or removed together.

    ``name`` is that of the first convolution or dense layer that makes them, ``size`` their number, ``label`` the
    name of their pruning ratio (None: never pruned), ``members`` all the nodes that produce them, in graph order.
    Channels are removed ``unit`` at a time: one by one, or by heads if they feed an attention.
    """

    name: str
    size: int
    label: str | None
    members: tuple[str, ...]
    unit: int = 1


class _Axis(NamedTuple):
    """One axis of an array that holds the channels of a node: their number, and the remaining ones (None: all)."""

    axis: int
    size: int
    left: np.ndarray | None


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


def prune(graph: Graph, tree: Tree, keep: Keep) -> tuple[Graph, Tree]:
    """The network without some of its channels: a smaller graph and smaller arrays.

    Channels are removed from every array named by a node, along the axes that hold them, anywhere in ``tree``. So the
    function works on variables, optimizer states and training states. In every mapping that holds both ``params`` and
    ``scales``, the gain of each shrunk layer is set so that γ, and so every remaining quantized weight, is unchanged.
    The result computes what the unpruned network computes when the removed channels are silent. (In a training state
    the gains are those of the weights themselves; γ of a moving average of them is nearly the same.)

    Args:
        graph: the network.
        tree: a pytree whose leaves have paths ``…[node][leaf]``, as in variables or an Optax state over ``params``.
        keep: channels to keep, by group name (see :func:`channel_groups`); other groups are not pruned.

    Returns:
        ``(graph, tree)``. When nothing is removed, both are unchanged, bit for bit.

    Raises:
        ValueError: an unknown group, an empty or repeated selection, a channel out of range, or an array whose shape
            does not match the graph.

    References:
        QP-SNN (ICLR 2025), Algorithm 1.
    """
    kept = {name: _checked(name, group, keep) for name, group in channel_groups(graph).items() if name in keep}
    if unknown := [name for name in keep if name not in kept]:
        raise ValueError(f"keep names {unknown[0]!r}, which is no group of the graph; see channel_groups.")
    left = _left(graph, kept)
    axes = _axes(graph, left)

    def cut(path: tuple, leaf: Any) -> Any:
        place = _place(path)
        return _take(leaf, axes[place], place) if place in axes else leaf

    def with_scales(whole: Any, pruned: Any) -> Any:
        return {**pruned, "scales": _rescaled(graph, whole, pruned, left)} if _has_scales(whole) else pruned

    pruned = jax.tree_util.tree_map_with_path(cut, tree)
    return _shrunk(graph, left), jax.tree.map(with_scales, tree, pruned, is_leaf=_has_scales)


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


def _left(graph: Graph, kept: dict[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """For each node the channels of its output that are kept, at every position of a flattened map; None for all."""
    left: dict[str, np.ndarray | None] = dict.fromkeys(graph.by_name)
    for group in channel_groups(graph).values():
        if len(channels := kept.get(group.name, ())) not in (0, group.size):
            for name in group.members:
                repeats = graph.values[name].shape[-1] // group.size
                left[name] = (np.arange(repeats)[:, None] * group.size + channels).ravel()
    return left


def _shrunk(graph: Graph, left: dict[str, np.ndarray | None]) -> Graph:
    """The graph with fewer channels; the size of every node must match its shrunk arrays."""
    nodes = tuple(node.shrink(left[node.name], [left[name] for name in node.inputs]) for node in graph.nodes)
    smaller = Graph(nodes, graph.timesteps)

    def cut(size: int, source: str | None) -> int:
        channels = left[source] if source is not None else None
        return size if channels is None else len(channels)

    for old, new in zip(graph.nodes, nodes, strict=True):
        before, after = (g.values[old.name].shape[-1] for g in (graph, smaller))
        fits = after == cut(before, old.name)
        leaves = new.leaves(smaller.inputs_of(new))
        for name, leaf in old.leaves(graph.inputs_of(old)).items():
            fits &= leaves[name].shape == tuple(map(cut, leaf.shape, leaf.axes))
        if not fits:
            raise ValueError(f"node {old.name!r}: {type(old).__name__} does not shrink as the axes of its leaves do.")
    return smaller


def _axes(graph: Graph, left: dict[str, np.ndarray | None]) -> dict[tuple[str, str], list[_Axis]]:
    """The axes that hold channels which can be removed, for every array named by a node and a leaf."""
    grouped = {name for group in channel_groups(graph).values() for name in group.members}
    return {
        (node.name, name): [
            _Axis(axis, graph.values[source].shape[-1], left[source])
            for axis, source in enumerate(leaf.axes)
            if source in grouped
        ]
        for node in graph.nodes
        for name, leaf in node.leaves(graph.inputs_of(node)).items()
    }


def _place(path: tuple) -> tuple[str, str] | None:
    keys = [key.key for key in path[-2:] if isinstance(key, jax.tree_util.DictKey)]
    return (keys[0], keys[1]) if len(keys) == 2 else None


def _take(leaf: Any, axes: list[_Axis], place: tuple[str, str]) -> Any:
    for axis, size, left in axes:
        if np.ndim(leaf) <= axis or leaf.shape[axis] != size:
            raise ValueError(f"array {place[0]}/{place[1]} of shape {np.shape(leaf)} does not fit the graph.")
        if left is not None:
            leaf = leaf.take(left, axis=axis)
    return leaf


def _has_scales(tree: Any) -> bool:
    return isinstance(tree, Mapping) and "params" in tree and "scales" in tree


def _rescaled(graph: Graph, whole: Any, pruned: Any, left: dict[str, np.ndarray | None]) -> dict[str, Any]:
    """The scales, updated where they depend on removed channels: γ of a rule depends on all the weights."""
    scales = dict(pruned["scales"])
    for name in scales:
        before, after = (tree["params"].get(name, {}) | tree["scales"][name] for tree in (whole, pruned))
        scales[name] = scales[name] | graph.by_name[name].rescale(before, after, left[name])
    return scales


def _checked(name: str, group: Group, keep: Keep) -> np.ndarray:
    channels = np.asarray(keep[name])
    if channels.ndim != 1 or channels.size == 0 or not np.issubdtype(channels.dtype, np.integer):
        raise ValueError(f"keep[{name!r}] must be a non-empty list of channel numbers.")
    if channels.min() < 0 or channels.max() >= group.size:
        raise ValueError(f"keep[{name!r}] names a channel outside the {group.size} that the group has.")
    if len(np.unique(channels)) != channels.size:
        raise ValueError(f"keep[{name!r}] names a channel twice.")
    if np.any(np.bincount(channels // group.unit, minlength=1) % group.unit):
        raise ValueError(
            f"keep[{name!r}] breaks up an attention head of {group.unit} channels; keep or remove all of it."
        )
    return np.sort(channels)


def spiking_members(graph: Graph, group: Group) -> tuple[str, ...]:
    """The neurons of a group, whose spike maps score its channels."""
    return tuple(name for name in group.members if name in graph.neurons)

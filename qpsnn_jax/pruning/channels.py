"""Which array axes must lose the same channels, and taking them away: pruning that really shrinks a network."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.model.graph import LIF, Attention, BatchNorm, Conv, Dense, Graph, Input, Node, Quantizer, Shortcut
from qpsnn_jax.numerics.quantization import gamma_of

Tree = TypeVar("Tree")
Keep = Mapping[str, Sequence[int] | np.ndarray]


class Group(NamedTuple):
    """Channels that stand and fall together.

    ``name`` is that of the first convolution or dense layer that makes them, ``size`` their number, ``label`` the
    pruning ratio they go by (None: kept), ``members`` all the nodes that yield them, in graph order. Channels are
    removed ``unit`` at a time: one by one, or head by head where they feed an attention.
    """

    name: str
    size: int
    label: str | None
    members: tuple[str, ...]
    unit: int = 1


class _Axis(NamedTuple):
    """One axis of an array: it holds the ``size`` channels of ``group``, ``repeats`` times over."""

    axis: int
    group: str
    size: int
    repeats: int


def channel_groups(graph: Graph) -> dict[str, Group]:
    """The groups of channels that can be removed, by name, found by union-find over the edges.

    Convolutions and dense layers start a group; batch-norm, LIF, pooling and flattening pass it on; an addition joins
    its two operands', an attention its query, key and value, whose channels fall into whole heads. A
    :class:`Shortcut` starts one too, because it can carry any subset of its input's channels.
    The input and the output are in no group.

    Args:
        graph: any graph.

    Returns:
        Groups by name, in graph order.

    References:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    roots = _roots(graph)
    fixed = {roots[graph.input.name], roots[graph.output.name]}
    groups: dict[str, Group] = {}
    for root in dict.fromkeys(roots.values()):
        members = [node for node in graph.nodes if roots[node.name] == root]
        makers = [node for node in members if isinstance(node, Conv | Dense)]
        if root in fixed or not makers:
            continue
        labels = {node.label for node in makers}
        label = makers[0].label if len(labels) == 1 else None
        unit = max((node.head_features for node in members if isinstance(node, Attention)), default=1)
        names = tuple(node.name for node in members)
        groups[makers[0].name] = Group(makers[0].name, makers[0].features, label, names, unit)
    return groups


def prune(graph: Graph, tree: Tree, keep: Keep) -> tuple[Graph, Tree]:
    """The network without some of its channels: a smaller graph and smaller arrays.

    Every array named by a node is cut along the axes that hold removed channels, wherever in ``tree`` it stands: so
    the function serves variables, optimizer states and training states alike. In every mapping that holds both
    ``params`` and ``scales``, the gain of each cut layer is set so that γ, and with it every quantized weight that
    stays, is what it was; the result computes what the whole network computes when the removed channels are silent.
    (In a training state the gains are those of the weights themselves; a moving average beside them has nearly the
    same γ.)

    Args:
        graph: the network.
        tree: a pytree whose leaves stand under ``…[node][leaf]``, as in variables or an Optax state over ``params``.
        keep: channels that stay, by group name (see :func:`channel_groups`); other groups stay whole.

    Returns:
        ``(graph, tree)``. When nothing is removed, both are unchanged, bit for bit.

    Raises:
        ValueError: an unknown group, an empty or repeated selection, a channel out of range, or an array whose shape
            does not fit the graph.

    References:
        QP-SNN (ICLR 2025), Algorithm 1.
    """
    kept = {name: _checked(name, group, keep) for name, group in channel_groups(graph).items() if name in keep}
    if unknown := [name for name in keep if name not in kept]:
        raise ValueError(f"keep names {unknown[0]!r}, which is no group of the graph; see channel_groups.")
    smaller = _smaller_graph(graph, kept)
    axes = _axes(graph)

    def cut(path: tuple, leaf: Any) -> Any:
        place = _place(path)
        return _take(leaf, axes[place], kept, place) if place in axes else leaf

    def with_scales(whole: Any, pruned: Any) -> Any:
        return {**pruned, "scales": _kept_scales(graph, whole, pruned, kept)} if _has_scales(whole) else pruned

    pruned = jax.tree_util.tree_map_with_path(cut, tree)
    return smaller, jax.tree.map(with_scales, tree, pruned, is_leaf=_has_scales)


def _roots(graph: Graph) -> dict[str, str]:
    """For each node the name of the node that stands for its channels."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        starts = isinstance(node, Input | Conv | Dense | Shortcut)
        parent[node.name] = node.name if starts else find(node.inputs[0])
        for other in node.inputs[1:]:
            parent[find(other)] = find(node.inputs[0])
    return {name: find(name) for name in parent}


def _group_of_nodes(graph: Graph) -> dict[str, Group]:
    return {member: group for group in channel_groups(graph).values() for member in group.members}


def _axes(graph: Graph) -> dict[tuple[str, str], list[_Axis]]:
    """The axes that hold channels of a group, for every array named by a node and a leaf."""
    group_of = _group_of_nodes(graph)

    def channels(axis: int, name: str) -> list[_Axis]:
        """The axis that holds the output of a node; a flattened image holds its channels at every position."""
        if name not in group_of:
            return []
        group = group_of[name]
        return [_Axis(axis, group.name, group.size, graph.values[name].shape[-1] // group.size)]

    table: dict[tuple[str, str], list[_Axis]] = {}
    for node in graph.nodes:
        match node:
            case Conv() | Dense():
                last = 3 if isinstance(node, Conv) else 1
                table[node.name, "kernel"] = channels(last - 1, node.input) + channels(last, node.name)
                table[node.name, "bias"] = channels(0, node.name)
                if node.quantizer is not None and node.quantizer.granularity == "channel":
                    table[node.name, "gain"] = channels(0, node.name)
            case BatchNorm():
                table |= {(node.name, leaf): channels(0, node.name) for leaf in ("scale", "bias", "mean", "var")}
    return table


def _place(path: tuple) -> tuple[str, str] | None:
    keys = [key.key for key in path[-2:] if isinstance(key, jax.tree_util.DictKey)]
    return (keys[0], keys[1]) if len(keys) == 2 else None


def _take(leaf: Any, axes: list[_Axis], kept: dict[str, np.ndarray], place: tuple[str, str]) -> Any:
    for axis, group, size, repeats in axes:
        if np.ndim(leaf) <= axis or leaf.shape[axis] != size * repeats:
            raise ValueError(f"array {place[0]}/{place[1]} of shape {np.shape(leaf)} does not fit the graph.")
        if group in kept and len(kept[group]) < size:
            index = (np.arange(repeats)[:, None] * size + kept[group]).ravel()
            leaf = leaf.take(index, axis=axis)
    return leaf


def _smaller_graph(graph: Graph, kept: dict[str, np.ndarray]) -> Graph:
    left = {name: kept[group.name] for name, group in _group_of_nodes(graph).items() if group.name in kept}

    def shrink(node: Node) -> Node:
        if isinstance(node, Conv | Dense) and node.name in left:
            return dataclasses.replace(node, features=len(left[node.name]))
        if isinstance(node, Shortcut):
            return dataclasses.replace(node, source=_remapped(node, left.get(node.name), left.get(node.input)))
        return node

    return Graph(tuple(shrink(node) for node in graph.nodes), graph.timesteps)


def _remapped(node: Shortcut, outputs: np.ndarray | None, inputs: np.ndarray | None) -> tuple[int, ...]:
    """The channel map between what is left on both sides; a channel whose source is gone carries zeros."""
    source = list(node.source) if outputs is None else [node.source[i] for i in outputs]
    if inputs is None:
        return tuple(source)
    place = {int(channel): i for i, channel in enumerate(inputs)}
    return tuple(place.get(channel, -1) for channel in source)


def _has_scales(tree: Any) -> bool:
    return isinstance(tree, Mapping) and "params" in tree and "scales" in tree


def _kept_scales(graph: Graph, whole: Any, pruned: Any, kept: dict[str, np.ndarray]) -> dict[str, Any]:
    """Gains that leave γ as it was, for the layers that lost channels; γ of a rule depends on all the weights."""
    group_of = _group_of_nodes(graph)
    scales = dict(pruned["scales"])
    for name in scales:
        node = cast(Conv | Dense, graph.by_name[name])
        before, after = whole["params"][name]["kernel"], pruned["params"][name]["kernel"]
        if node.quantizer is not None and before.shape != after.shape:
            channels = kept.get(group_of[name].name) if name in group_of else None
            channels = np.arange(node.features) if channels is None else channels
            scales[name] = {"gain": _kept_gain(node.quantizer, scales[name]["gain"], before, after, channels)}
    return scales


@partial(jax.jit, static_argnames="quantizer")
def _kept_gain(quantizer: Quantizer, gain: Array, before: Array, after: Array, channels: np.ndarray) -> Array:
    rule = (quantizer.bits, quantizer.gamma, quantizer.granularity)
    old, new = (gamma_of(kernel, *rule).ravel() for kernel in (before, after))
    old = old[channels] if quantizer.granularity == "channel" else old
    return gain * jnp.where(new > 0, old / jnp.where(new > 0, new, 1), 1)


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
            f"keep[{name!r}] breaks up an attention head of {group.unit} channels; keep or remove it whole."
        )
    return np.sort(channels)


def spiking_members(graph: Graph, group: Group) -> tuple[str, ...]:
    """The LIF nodes of a group, whose spike maps score its channels."""
    return tuple(name for name in group.members if isinstance(graph.by_name[name], LIF))

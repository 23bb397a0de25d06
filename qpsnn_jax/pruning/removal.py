"""Removal of channels, which shrinks the graph and every array that holds them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import DictKey, GetAttrKey

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.channels import Group, channel_groups, channel_numbers
from qpsnn_jax.runtime.sharding import placed_as

Tree = TypeVar("Tree")
Keep = Mapping[str, Sequence[int] | np.ndarray]
Left = dict[str, np.ndarray | None]


class _Cut(NamedTuple):
    """An array: its shape in the graph, and for those of its axes that lose channels the remaining ones."""

    shape: tuple[int, ...]
    axes: dict[int, np.ndarray]


def prune(graph: Graph, tree: Tree, keep: Keep) -> tuple[Graph, Tree]:
    """The network without some of its channels: a smaller graph and smaller arrays.

    Channels are removed from every array named by a node, along the axes that hold them, anywhere in ``tree``. So the
    function works on variables, optimizer states and training states. The axes of an array are counted from the back:
    leading ones, as of variables that :func:`jax.vmap` has stacked, stay. In every mapping that holds both ``params``
    and ``scales``, the gain of each shrunk layer is set so that γ, and so every remaining quantized weight, is
    unchanged; remaining weights that are all zero, for which no γ is found, become their quantized values.
    The result computes what the unpruned network computes when the removed channels are silent. (In a training state
    the gains are those of the weights themselves; γ of a moving average of them is nearly the same. Statistics that an
    optimizer has of a whole array, such as its norm, and the curvature of L-BFGS stay as they were.)

    Args:
        graph: the network.
        tree: a pytree whose leaves have paths ``…[node][leaf]``, as in variables or an Optax state over ``params``.
        keep: channels to keep, by group name (see :func:`channel_groups`); other groups are not pruned.

    Returns:
        ``(graph, tree)``. When nothing is removed, both are unchanged, bit for bit.

    Raises:
        ValueError: a group is unknown, a selection is empty, repeated or out of range, or the axis of the channels of
            an array is unknown: it is named by a node that loses channels but differs in shape from the graph, as in
            states of ``optax.sm3`` and ``optax.adafactor``, or it has no names but the shape of weights or of all
            parameters together, as in the state of ``optax.flatten``; or ``params`` beside ``scales`` are no mapping,
            as ``optax.LookaheadParams``.

    References:
        QP-SNN (ICLR 2025), Algorithm 1.
    """
    kept = {name: _checked(name, group, keep) for name, group in channel_groups(graph).items() if name in keep}
    if unknown := [name for name in keep if name not in kept]:
        raise ValueError(f"keep names {unknown[0]!r}, which is not a group of the graph; see channel_groups.")
    left = _left(graph, kept)
    if all(channels is None for channels in left.values()):
        return graph, tree
    cuts, total = _cuts(graph, left), _total(graph)

    def with_scales(whole: Any, pruned: Any) -> Any:
        return _rescaled(graph, whole, pruned, left) if _has_scales(whole) else pruned

    pruned = jax.tree_util.tree_map_with_path(lambda path, leaf: _cut(path, leaf, cuts, total), tree)
    return _shrunk(graph, left), jax.tree.map(with_scales, tree, pruned, is_leaf=_has_scales)


def _left(graph: Graph, kept: dict[str, np.ndarray]) -> Left:
    """For each node the channels of its output that are kept, at every position of a flattened map; None for all."""
    stays = {name: np.ones(value.shape[-1], bool) for name, value in graph.values.items()}
    for group, channels in kept.items():
        for name, numbers in channel_numbers(graph, group).items():
            stays[name] &= (numbers < 0) | np.isin(numbers, channels)
    return {name: None if mask.all() else np.flatnonzero(mask) for name, mask in stays.items()}


def _shrunk(graph: Graph, left: Left) -> Graph:
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


def _cuts(graph: Graph, left: Left) -> dict[tuple[str, str], _Cut]:
    """The arrays by the names of their node and their own."""
    cuts = {}
    for node in graph.nodes:
        for name, leaf in node.leaves(graph.inputs_of(node)).items():
            remaining = {axis: left[source] for axis, source in enumerate(leaf.axes) if source is not None}
            axes = {axis: channels for axis, channels in remaining.items() if channels is not None}
            cuts[node.name, name] = _Cut(leaf.shape, axes)
    return cuts


def _total(graph: Graph) -> int:
    """The number of parameters."""
    leaves = (leaf for node in graph.nodes for leaf in node.leaves(graph.inputs_of(node)).values())
    return sum(leaf.size for leaf in leaves if leaf.collection == "params")


def _cut(path: tuple, leaf: Any, cuts: Mapping[tuple[str, str], _Cut], total: int) -> Any:
    """The leaf without the removed channels; unchanged if it holds none.

    Raises:
        ValueError: it may hold some, but their axis is unknown.
    """
    shape = np.shape(leaf)
    place, named = _place(path, cuts)
    if place is None:
        weights = (cut.shape for cut in cuts.values() if cut.axes and len(cut.shape) > 1)
        if shape[-1:] == (total,) or any(shape[-len(each) :] == each for each in weights):
            raise ValueError(
                f"array {jax.tree_util.keystr(path)} of shape {shape} may hold removed channels, but its path names no "
                "node and array, as …[node][leaf]; prune the rest of the tree without it."
            )
        return leaf
    cut = cuts[place]
    if not cut.axes or np.size(leaf) == 1:  # One number is of the whole array, or one that an optimizer does not use.
        return leaf
    if not named or shape[-len(cut.shape) :] != cut.shape:
        raise ValueError(
            f"array {jax.tree_util.keystr(path)} of shape {shape} does not fit the graph, where {'/'.join(place)} has "
            f"the shape {cut.shape}. If it belongs to an optimizer, initialize its state from the pruned params."
        )
    return _taken(leaf, {axis - len(cut.shape): channels for axis, channels in cut.axes.items()})


def _taken(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
    """The leaf with the entries ``channels`` of each axis, as it is: of NumPy, traced, on a device or on several."""
    # By NumPy where it lies on one device, so that no program is compiled for each shape.
    by_numpy = isinstance(leaf, jax.Array) and _is_on_one_device(leaf)
    taken = np.asarray(leaf) if by_numpy else leaf
    for axis, channels in axes.items():
        taken = taken.take(channels, axis=axis)
    return placed_as(leaf, taken) if by_numpy else taken


def _is_on_one_device(leaf: jax.Array) -> bool:
    return not isinstance(leaf, Tracer) and leaf.is_fully_addressable and len(leaf.sharding.device_set) == 1


def _place(path: tuple, cuts: Mapping[tuple[str, str], _Cut]) -> tuple[tuple[str, str] | None, bool]:
    """The array that a path names, and whether it ends there; attributes that follow are boxes around it."""
    names: list[Any] = [key.key if isinstance(key, DictKey) else None for key in path]
    for i in reversed(range(len(path) - 1)):
        if (names[i], names[i + 1]) in cuts:
            return (names[i], names[i + 1]), all(isinstance(key, GetAttrKey) for key in path[i + 2 :])
    return None, False


def _has_scales(tree: Any) -> bool:
    return isinstance(tree, Mapping) and "params" in tree and "scales" in tree


def _rescaled(graph: Graph, whole: Any, pruned: Any, left: Left) -> dict[str, Any]:
    """The variables, updated where they depend on removed channels: γ of a rule depends on all the weights."""
    if not isinstance(params := whole["params"], Mapping):
        raise ValueError(
            f"params beside scales must be one mapping of arrays by node, not {type(params).__name__}: γ is of one set "
            "of weights. Prune (variables, params) with variables that hold only one of them, such as params.slow."
        )
    updated = {name: dict(pruned[name]) for name in ("params", "scales")}
    for name in pruned["scales"]:
        node = graph.by_name[name]
        before, after = ({**tree["params"].get(name, {}), **tree["scales"][name]} for tree in (whole, pruned))

        def rescale(before: Any, after: Any, node: Any = node) -> Any:
            return node.rescale(before, after, left[node.name])

        leaves = node.leaves(graph.inputs_of(node))
        for _ in range(max(np.ndim(after[leaf]) - len(leaves[leaf].shape) for leaf in after)):
            rescale = jax.vmap(rescale)
        for leaf, value in rescale(before, after).items():
            collection = updated[leaves[leaf].collection]
            collection[name] = {**collection[name], leaf: value}
    return {**pruned, **updated}


def _checked(name: str, group: Group, keep: Keep) -> np.ndarray:
    channels = np.asarray(keep[name])
    if channels.ndim != 1 or channels.size == 0 or not np.issubdtype(channels.dtype, np.integer):
        given = f"{channels.dtype} of shape {channels.shape}"
        raise ValueError(f"keep[{name!r}] must be a non-empty list of channel numbers, integers, got {given}.")
    if channels.min() < 0 or channels.max() >= group.size:
        raise ValueError(f"keep[{name!r}] names a channel outside the {group.size} that the group has.")
    if len(np.unique(channels)) != channels.size:
        raise ValueError(f"keep[{name!r}] names a channel twice.")
    if np.any(np.bincount(channels // group.unit, minlength=1) % group.unit):
        raise ValueError(
            f"keep[{name!r}] breaks up an attention head of {group.unit} channels; keep or remove all of it."
        )
    return np.sort(channels)

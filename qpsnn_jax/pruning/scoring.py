"""Scores of all channels of a network in one pass over data."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.numerics.neurons import LIFTrace
from qpsnn_jax.pruning.channels import Group, channel_groups, channel_numbers, spiking_members
from qpsnn_jax.pruning.scores import count_ranks, magnitude_scores, random_scores, sca_scores, spike_counts
from qpsnn_jax.runtime.sharding import batch_sharding, device_put, replicated, sharded_mean

Scores = dict[str, Array]


class Criterion(NamedTuple):
    """A rule that scores the channels of a layer by its activity.

    Attributes:
        observe: from a :class:`LIFTrace` ``b t h w c`` to maps ``b h w c``, while the network runs.
        score: from the maps to one score per channel, ``c``; channels with low scores are removed.
        channelwise: whether the score of a channel depends only on its own maps. The maps of all layers of one size
            are then scored together, which is compiled once for each size.
    """

    observe: Callable[[LIFTrace], Array]
    score: Callable[[Array], Array]
    channelwise: bool = False


def _counts(trace: LIFTrace) -> Array:
    return spike_counts(trace.spikes)


def _mean_ranks(counts: Array) -> Array:
    return jnp.mean(count_ranks(counts).astype(jnp.float32), axis=0)


def _activity(trace: LIFTrace) -> Array:
    return jnp.mean(jnp.abs(trace.membranes), axis=1)


def _mean_activity(maps: Array) -> Array:
    return sca_scores(maps[:, None])


svs_criterion = Criterion(_counts, _mean_ranks, channelwise=True)
"""SVS, the paper's proposal: mean ranks of the integer maps T·S_avg, by :func:`qpsnn_jax.matrix_ranks`."""

sca_criterion = Criterion(_activity, _mean_activity, channelwise=True)
"""SCA, the paper's baseline: mean L1 norms of the maps of membranes."""


def score(
    graph: Graph,
    variables: Any,
    batches: Iterable[Array],
    criterion: Criterion = svs_criterion,
    *,
    mesh: Mesh | None = None,
    precision: Precision = "auto",
) -> Scores:
    """Score of every channel of every group, in one pass over the batches, in evaluation mode.

    A group's score is the mean over its LIF layers and the images. The maps of one batch are held at a time. A group
    without a LIF layer has no scores. An image with a NaN makes all scores NaN. Compiled once for each graph,
    criterion, mesh and size of a batch.

    Args:
        graph, variables: the network.
        batches: normalized images ``b h w c`` (or frames ``b t h w c``); the last batch may be smaller.
        criterion: :data:`svs_criterion`, :data:`sca_criterion`, or any other :class:`Criterion`. The maps of a flat
            layer have the height 1.
        mesh: of devices that each score an equal part of every batch (:func:`qpsnn_jax.runtime.sharding.data_mesh`).
        precision: of :class:`SpikingNetwork`.

    Returns:
        ``{group: scores}``, each of the group's size.

    Raises:
        ValueError: there is no batch, ``criterion`` is not a criterion, or its maps or scores have another shape.

    References:
        QP-SNN (ICLR 2025), Eq. 7 and 11-13.
    """
    variables = variables if mesh is None else device_put(variables, replicated(mesh))
    total: Scores = {}
    first, weights = 0, 0.0
    for images in batches:
        placed = images if mesh is None else device_put(images, batch_sharding(mesh))
        scores = _batch_scores(variables, placed, graph, criterion, mesh, precision)
        first = first or len(images)
        weight = len(images) / first  # 1 for equal batches, whose scores are then added as they are
        total = _add(total, scores, weight) if total else scores
        weights += weight
    if not weights:
        raise ValueError("score needs at least one batch of images.")
    means = _divide(total, weights)
    return {name: means[name] for name in channel_groups(graph) if name in total}


# One program for all groups compiles sooner than one for each of their sizes.
@jax.jit
def _add(total: Scores, scores: Scores, weight: float) -> Scores:
    return jax.tree.map(lambda own, more: own + weight * more, total, scores)


@jax.jit
def _divide(total: Scores, weights: float) -> Scores:
    return jax.tree.map(lambda own: own / weights, total)


@partial(jax.jit, static_argnames=("graph", "criterion", "mesh", "precision"))
def _batch_scores(
    variables: Any, images: Array, graph: Graph, criterion: Criterion, mesh: Mesh | None, precision: Precision
) -> Scores:
    step = make_score_step(graph, criterion, precision=precision)
    return (step if mesh is None else sharded_mean(mesh, step))(variables, images)


def make_score_step(
    graph: Graph, criterion: Criterion = svs_criterion, *, precision: Precision = "auto"
) -> Callable[[Any, Array], Scores]:
    """The computation of :func:`score` for one batch, as a pure function.

    Args:
        graph, criterion, precision: as in :func:`score`.

    Returns:
        ``batch_scores(variables, images) -> {group: scores}``, which the caller jits.

    Raises:
        ValueError: ``criterion`` is not a criterion; in the function, its maps or scores have another shape.
    """
    if not isinstance(criterion, Criterion):
        raise ValueError(f"criterion must be a Criterion(observe, score), got {criterion!r}.")
    groups = channel_groups(graph)
    layers = {name: members for name, group in groups.items() if (members := spiking_members(graph, group))}
    places: dict[str, dict[str, np.ndarray]] = {}
    for name, members in layers.items():
        numbers = channel_numbers(graph, name)
        for layer in members:
            places.setdefault(layer, {})[name] = _places(numbers[layer])
    capture = {layer: partial(_observe, criterion, own) for layer, own in places.items()}

    def batch_scores(variables: Any, images: Array) -> Scores:
        output: Any = SpikingNetwork(graph, precision).apply(variables, images, capture=capture)
        maps = {(layer, name): own for layer, each in output.captured.items() for name, own in each.items()}
        found = _score_maps(criterion, maps)
        # Maps may be integers, which cannot be NaN; the currents of an image with a NaN are.
        nan = jnp.sum(0 * output.currents)
        means = {
            name: jnp.mean(jnp.stack([found[m, name] for m in members]), axis=0) for name, members in layers.items()
        }
        return {name: scores + nan.astype(scores.dtype) for name, scores in means.items()}

    return batch_scores


def magnitude_group_scores(graph: Graph, variables: Any, key: Array | None = None) -> Scores:
    """L1 norm of the weights that make each channel, summed over the layers of its group. Needs no data."""
    del key
    scores = {}
    for name, group in channel_groups(graph).items():
        # A channel at several positions of a flattened map has the sum of its weights at all of them.
        places = {node: _places(numbers) for node, numbers in channel_numbers(graph, name).items()}
        norms = [
            magnitude_scores(_remaining(variables, node, leaf))[places[node]] for node, leaf in _kernels(graph, group)
        ]
        scores[name] = jnp.sum(jnp.stack([jnp.sum(own, axis=0) for own in norms]), axis=0)
    return scores


def _remaining(variables: Any, node: str, leaf: str) -> Array:
    """A kernel, zero where it is masked."""
    kernel, mask = variables["params"][node][leaf], variables.get("masks", {}).get(node)
    return kernel if mask is None else kernel * mask["mask"].astype(kernel.dtype)


def _kernels(graph: Graph, group: Group) -> list[tuple[str, str]]:
    """Node and leaf of the weights that make the channels of a group, which are on the last axis."""
    makers = [node for name in group.members if (node := graph.by_name[name]).channels == "made"]
    leaves = [
        (node.name, name, leaf.axes) for node in makers for name, leaf in node.leaves(graph.inputs_of(node)).items()
    ]
    return [(node, name) for node, name, axes in leaves if len(axes) > 1 and axes[-1] == node]


def random_group_scores(graph: Graph, variables: Any, key: Array) -> Scores:
    """Random scores for every group; the control for every criterion."""
    del variables
    groups = channel_groups(graph)
    keys = jax.random.split(key, len(groups))
    return {name: random_scores(k, group.size) for k, (name, group) in zip(keys, groups.items(), strict=True)}


def _places(numbers: np.ndarray) -> np.ndarray:
    """The channels of a layer that are those of a group, by position and number in the group."""
    channels = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
    return channels.reshape(numbers.max() + 1, -1).T


def _observe(criterion: Criterion, groups: dict[str, np.ndarray], trace: LIFTrace) -> dict[str, Array]:
    """The maps of the channels of each group in one layer, by the group's name, from their places."""
    return {name: _maps(criterion, places, trace) for name, places in groups.items()}


def _maps(criterion: Criterion, places: np.ndarray, trace: LIFTrace) -> Array:
    # The positions at which a channel of a flattened map occurs are the width of its map.
    rows = trace.spikes.shape[2] if trace.spikes.ndim == 5 else 1
    channels, own = places.shape[-1], np.array_equal(places.ravel(), np.arange(trace.spikes.shape[-1]))
    parts = trace if own else LIFTrace(*(x[..., places.ravel()] for x in trace))
    maps = criterion.observe(LIFTrace(*(x.reshape(*x.shape[:2], rows, -1, channels) for x in parts)))
    if maps.ndim != 4 or maps.shape[-1] != channels:
        raise ValueError(f"observe of the criterion must give maps b h w {channels}, gave the shape {maps.shape}.")
    return maps


def _score_maps(criterion: Criterion, maps: dict[Any, Array]) -> dict[Any, Array]:
    """Scores by layer and group."""
    batched: dict[Any, list[Any]] = {}
    for layer, own in maps.items():
        batched.setdefault(own.shape[:3] if criterion.channelwise else layer, []).append(layer)
    scores: dict[Any, Array] = {}
    for layers in batched.values():
        widths = [maps[layer].shape[-1] for layer in layers]
        found = criterion.score(jnp.concatenate([maps[layer] for layer in layers], axis=-1))
        if found.shape != (sum(widths),):
            raise ValueError(
                f"score of the criterion must give one number per channel, {sum(widths)}; gave the shape {found.shape}."
            )
        scores |= dict(zip(layers, jnp.split(found, np.cumsum(widths)[:-1]), strict=True))
    return scores

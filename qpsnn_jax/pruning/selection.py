"""Scoring all channels of a network in one pass over data, and choosing which to keep."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.graph import Graph
from qpsnn_jax.network import SpikingNetwork
from qpsnn_jax.neurons import LIFTrace
from qpsnn_jax.pruning.channels import Group, channel_groups, spiking_members
from qpsnn_jax.pruning.scores import magnitude_scores, random_scores, sca_scores, svs_scores
from qpsnn_jax.sharding import mean_over
from qpsnn_jax.zoo.blocks import kept_channels

Criterion = Callable[[LIFTrace], Array]
Scores = dict[str, Array]


def svs(trace: LIFTrace) -> Array:
    """SVS (the paper's proposal) as a criterion on what a layer did."""
    # Spikes are 0 and 1, so that the count of singular values above ε is a rank of integers.
    return svs_scores(trace.spikes, threshold="exact")


def sca(trace: LIFTrace) -> Array:
    """SCA (the paper's baseline) as a criterion on what a layer did."""
    return sca_scores(trace.membranes)


def score(
    graph: Graph, variables: Any, batches: Iterable[Array], criterion: Criterion = svs, *, mesh: Mesh | None = None
) -> Scores:
    """Score of every channel of every group, in one pass over the batches, in evaluation mode.

    A group's score is the mean over its LIF layers and the batches; only the scores are ever stored, not the maps.
    A group without a LIF layer gets none.

    Args:
        graph, variables: the network.
        batches: normalized images ``b h w c`` (or frames ``b t h w c``), each batch of the same size.
        criterion: from a :class:`LIFTrace` ``b t h w c`` to one score per channel: :func:`svs`, :func:`sca`, or any
            function of that form. Where a layer is flat, its maps have the height 1.
        mesh: of devices that each score an equal part of every batch (:func:`qpsnn_jax.sharding.data_mesh`).

    Returns:
        ``{group: scores}``, each of the group's size.

    Raises:
        ValueError: there is no batch.

    References:
        QP-SNN (ICLR 2025), Eq. 7 and 11-13.
    """
    groups = channel_groups(graph)
    layers = {name: members for name, group in groups.items() if (members := spiking_members(graph, group))}
    capture = {layer: partial(_score_maps, criterion, groups[name].size) for name in layers for layer in layers[name]}

    def batch_scores(variables: Any, images: Array) -> Scores:
        captured: Any = SpikingNetwork(graph).apply(variables, images, capture=capture)[1]
        return {name: jnp.mean(jnp.stack([captured[m] for m in members]), axis=0) for name, members in layers.items()}

    step = jax.jit(batch_scores if mesh is None else mean_over(mesh, batch_scores))
    total: Scores | None = None
    count = 0
    for images in batches:
        scores = step(variables, images)
        total = scores if total is None else jax.tree.map(jnp.add, total, scores)
        count += 1
    if total is None:
        raise ValueError("score needs at least one batch of images.")
    return {name: total[name] / count for name in layers}


def score_magnitude(graph: Graph, variables: Any) -> Scores:
    """L1 norm of the weights that make each channel, summed over the layers of its group; needs no data."""
    params = variables["params"]
    kernels = {
        name: [params[member]["kernel"] for member in group.members if "kernel" in params.get(member, {})]
        for name, group in channel_groups(graph).items()
    }
    return {name: jnp.sum(jnp.stack([magnitude_scores(k) for k in own]), axis=0) for name, own in kernels.items()}


def score_random(graph: Graph, key: Array) -> Scores:
    """Random scores for every group; the control that any criterion must beat."""
    groups = channel_groups(graph)
    keys = jax.random.split(key, len(groups))
    return {name: random_scores(k, group.size) for k, (name, group) in zip(keys, groups.items(), strict=True)}


def select(graph: Graph, scores: Mapping[str, Any], ratios: Mapping[str, float] | float) -> dict[str, np.ndarray]:
    """The channels to keep in every group: the int(n·(1 - r)) with the highest scores, in ascending order.

    Channels that feed an attention are counted, scored (by their mean) and removed in whole heads. Among equal scores
    the channel with the lower number is kept, so that the result does not depend on the machine.

    Args:
        graph: the network.
        scores: ``{group: scores}``, as :func:`score` returns them.
        ratios: fraction removed, by label; labels left out lose nothing. A single number serves all labelled groups.

    Returns:
        ``{group: kept channel numbers}`` for :func:`qpsnn_jax.prune`, groups without a label left out.

    Raises:
        ValueError: a label that no group has, a ratio outside [0, 1), a ratio that empties a group, missing or
            non-finite scores.

    References:
        QP-SNN (ICLR 2025), Algorithm 1, with the counts that its sizes follow.
    """
    groups = {name: group for name, group in channel_groups(graph).items() if group.label is not None}
    labels = {str(group.label) for group in groups.values()}
    chosen = dict(ratios) if isinstance(ratios, Mapping) else dict.fromkeys(labels, ratios)
    if unknown := [label for label in chosen if label not in labels]:
        raise ValueError(f"ratios name {unknown[0]!r}; this network has {', '.join(sorted(labels))}.")
    return {name: _highest(group, scores, chosen.get(str(group.label), 0.0)) for name, group in groups.items()}


def _score_maps(criterion: Criterion, channels: int, trace: LIFTrace) -> Array:
    if trace.spikes.ndim == 3:
        trace = LIFTrace(*(x.reshape(*x.shape[:2], 1, -1, channels) for x in trace))
    return criterion(trace)


def _highest(group: Group, scores: Mapping[str, Any], ratio: float) -> np.ndarray:
    try:
        kept = kept_channels(group.size // group.unit, ratio)
    except ValueError as error:
        raise ValueError(f"ratio of {group.label!r} in group {group.name!r}: {error}") from None
    if group.name not in scores:
        raise ValueError(f"scores lack the group {group.name!r}.")
    values = np.asarray(scores[group.name], np.float64)
    if values.shape != (group.size,) or not np.all(np.isfinite(values)):
        raise ValueError(f"scores of group {group.name!r} must be {group.size} finite numbers.")
    # Attention heads are kept or removed whole, by the mean score of their channels.
    units = np.sort(np.argsort(-values.reshape(-1, group.unit).mean(axis=1), kind="stable")[:kept])
    return (units[:, None] * group.unit + np.arange(group.unit)).ravel()

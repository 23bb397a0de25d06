"""Criteria that the claims compare with SVS and SCA, beside those of the package."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from qpsnn_jax import Criterion, Graph, channel_groups
from qpsnn_jax.model.nodes import BatchNorm


def _mean_spikes(trace: Any) -> Array:
    return jnp.mean(trace.spikes, axis=1)


def _mean_over_maps(maps: Array) -> Array:
    return jnp.mean(maps, axis=(0, 1, 2))


firing_rate = Criterion(_mean_spikes, _mean_over_maps, channelwise=True)
"""Spikes per neuron and step, the mean over images and pixels."""


def bn_scale(graph: Graph, variables: Any, key: Array) -> dict[str, Array]:
    """Mean size of the scales of the batch-norms of a group (Liu et al., Network Slimming, 2017). Needs no data."""
    del key
    scores = {}
    for name, group in channel_groups(graph).items():
        norms = [node for node in group.members if isinstance(graph.by_name[node], BatchNorm)]
        # A channel at several positions of a flattened map has a scale at each of them.
        sizes = [jnp.abs(variables["params"][node]["scale"]).reshape(-1, group.size).mean(axis=0) for node in norms]
        if sizes:
            scores[name] = jnp.stack(sizes).mean(axis=0)
    return scores

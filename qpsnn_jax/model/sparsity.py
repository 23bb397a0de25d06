"""The share of weights that are zero."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.variables import leaves_of


def connection_sparsity(graph: Graph, variables: Mapping[str, Any]) -> float:
    """Share of the weights of all layers that are zero, after quantization: a fraction from 0 to 1.

    ReScaW's grid has no zero, so it is 0 where all layers are quantized to 2^b levels and none is masked. Removed
    channels are not counted.

    Args:
        graph, variables: the network.

    Returns:
        Weights that are zero, divided by all weights.

    References:
        NeuroBench (Yik et al., 2025), connection sparsity.
    """
    zeros = total = 0
    for node in graph.nodes:
        leaves = {name: jnp.asarray(leaf) for name, leaf in leaves_of(variables, node.name).items()}
        if (weights := node.weights(leaves)) is not None:
            zeros, total = zeros + int(jnp.sum(weights == 0)), total + weights.size
    return zeros / max(1, total)

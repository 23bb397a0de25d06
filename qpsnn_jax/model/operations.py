"""Synaptic operations in training, as a differentiable function of spikes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.masks import read_masks
from qpsnn_jax.model.network import Reducer
from qpsnn_jax.model.nodes import Weighted
from qpsnn_jax.model.nodes.base import Node, Values
from qpsnn_jax.numerics.neurons import LIFTrace


def sops_reducers(graph: Graph, *, masks: Mapping[str, Any] | None = None) -> dict[str, Reducer]:
    r"""Reducers for ``capture`` whose sum is the number of synaptic operations per image, as a differentiable penalty.

    Each returns :math:`\frac1B \sum_{b,t,h,w,c} S\, n_{h,w}` with n the synapses that a spike at a position reaches in
    all layers that read it, or the operations of an attention. Gradients pass through the surrogate.

    Args:
        graph: the network.
        masks: the collection ``masks`` of the variables, whose values are constants here; without it masked layers
            count in full. With it n is that of each channel too.

    Returns:
        Reducers by the name of the spiking node, for the ``penalty`` of :func:`qpsnn_jax.make_train_step`.

    Raises:
        ValueError: a mask whose shape is not that of its node.
    """
    known = {} if masks is None else read_masks(graph, {"masks": masks})
    reached: dict[str, np.ndarray] = {}
    own: dict[str, Reducer] = {}
    for node in graph.nodes:
        inputs = graph.inputs_of(node)
        if not all(value.spiking for value in inputs):
            continue
        if node.counts_operations:
            own[node.name] = _operations_per_image
        elif (synapses := _synapses(node, inputs, known.get(node.name))) is not None:
            name = node.inputs[0]
            reached[name] = reached.get(name, 0) + synapses.astype(np.float32)
    return {name: partial(_synaptic_operations, reached=synapses) for name, synapses in reached.items()} | own


def _synapses(node: Node, inputs: Values, mask: np.ndarray | None) -> np.ndarray | None:
    """The synapses that a spike reaches, ``… c`` of a masked layer, else ``… 1``."""
    if mask is not None:
        assert isinstance(node, Weighted)
        return node.synapses(inputs, mask)
    synapses = node.synapses(inputs)
    return None if synapses is None else synapses[..., None]


def _synaptic_operations(value: Any, reached: np.ndarray) -> Any:
    spikes = value.spikes if isinstance(value, LIFTrace) else value
    dtype = np.promote_types(spikes.dtype, np.float32)
    # Channels that reach equally many are added first.
    summed = jnp.sum(spikes, axis=-1, dtype=dtype, keepdims=True) if reached.shape[-1] == 1 else spikes.astype(dtype)
    lead = (1,) * (summed.ndim - reached.ndim)
    return jnp.sum(summed * reached.astype(dtype).reshape(lead + reached.shape)) / spikes.shape[0]


def _operations_per_image(trace: Any) -> Any:
    return jnp.sum(trace.operations) / trace.operations.shape[0]

"""Masks of weights as data: the collection ``masks`` of a graph's variables."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Weighted


def with_masks(graph: Graph, variables: Mapping[str, Any], masks: Mapping[str, Any]) -> tuple[Graph, dict[str, Any]]:
    r"""The network with weights removed by masks: :math:`Ŵ = \frac{γ}{s} (2c - s)\, m`, or :math:`W m` unquantized.

    A masked weight is zero and has no gradient, so that training leaves the mask as it is. γ of a rule is that of all
    weights of the kernel, the removed ones included: the remaining quantized weights are as they were.

    Args:
        graph, variables: the network.
        masks: by the name of a convolution or dense layer, of the shape of its kernel: 0 where a weight is removed,
            else 1. A layer that has a mask already gets this one in its place.

    Returns:
        ``(graph, variables)``: the layers are ``masked``, the masks are ``variables["masks"][layer]["mask"]``.

    Raises:
        ValueError: a name is not that of such a layer, or a mask has another shape or other values; the message names
            the node.
    """
    nodes, collection = dict(graph.by_name), dict(variables.get("masks", {}))
    for name, mask in masks.items():
        node, given = masked_layer(graph, name), concrete(name, mask)
        shape = node.leaves(graph.inputs_of(node))["kernel"].shape
        if given.shape != shape:
            raise ValueError(f"node {name!r}: its mask must have the shape {shape} of its kernel, got {given.shape}.")
        if not np.isin(given, (0, 1)).all():
            raise ValueError(f"node {name!r}: its mask must consist of 0 and 1.")
        nodes[name] = replace(node, masked=True)
        collection[name] = {"mask": jnp.asarray(given, jnp.float32)}
    return Graph(tuple(nodes.values()), graph.timesteps), {**variables, "masks": collection}


def concrete(name: str, values: Any) -> np.ndarray:
    """The numbers of a mask or of scores as float64; NaN without a shape where they are no array of numbers.

    Raises:
        ValueError: they are traced by a transform of JAX; the message names the node.
    """
    try:
        return np.asarray(values, np.float64)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(f"node {name!r}: its mask is made of numbers, so make it outside of jax.jit.") from None
    except (TypeError, ValueError):
        return np.asarray(np.nan)


def masked_layer(graph: Graph, name: str) -> Weighted:
    """The layer of this name, which may have a mask.

    Raises:
        ValueError: there is none.
    """
    node = graph.by_name.get(name)
    if not isinstance(node, Weighted):
        known = ", ".join(node.name for node in graph.nodes if isinstance(node, Weighted)) or "none"
        raise ValueError(f"masks name {name!r}, which is not a layer with weights; there are {known}.")
    return node


def read_masks(graph: Graph, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The masks of a network as bool, by the name of the layer.

    Raises:
        ValueError: a masked layer has none, or one of another shape or other values; the message names the node.
    """
    masks = {}
    for node in graph.nodes:
        if not (isinstance(node, Weighted) and node.masked):
            continue
        mask = np.asarray(variables.get("masks", {}).get(node.name, {}).get("mask"))
        if mask.shape != node.leaves(graph.inputs_of(node))["kernel"].shape or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"node {node.name!r}: it needs a mask of the shape of its kernel, of 0 and 1.")
        masks[node.name] = mask != 0
    return masks

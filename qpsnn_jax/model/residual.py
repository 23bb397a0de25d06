"""Residual branches that start small."""

from dataclasses import replace

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, BatchNorm, Weighted


def with_residual_scale(graph: Graph, scale: float) -> Graph:
    r"""The graph whose residual branches start at a fraction of their usual size.

    The scale of the batch-norm that ends a branch is ``scale`` in fresh variables, and is trained as any other:

    .. math:: U = x + s\,\mathrm{BN}(f(x))

    With s = 1 twenty layers of spikes hardly depend on the image, and training begins with
    epochs without progress; with a small s the network begins as its shortcuts, which spikes pass unchanged. The branch
    of an addition is its input with more layers of weights before it; neurons may lie between batch-norm and addition.

    Args:
        graph: the network.
        scale: s, above 0: at 0 a branch that ends in neurons never fires and learns nothing.

    Raises:
        ValueError: the scale is not positive, or no residual branch ends in a batch-norm.

    References:
        Goyal et al., 2017 (section 5.1), for networks without spikes, with s = 0.
    """
    if not scale > 0:
        raise ValueError(f"the scale of residual branches must be above 0, got {scale!r}.")
    nodes, depths = dict(graph.by_name), _depths(graph)
    found = False
    for node in graph.nodes:
        if isinstance(node, Add) and depths[node.first] != depths[node.second]:
            end = graph.by_name[max(node.inputs, key=depths.__getitem__)]
            while isinstance(end, LIF):
                end = graph.by_name[end.input]
            if isinstance(end, BatchNorm):
                nodes[end.name] = replace(end, scale_init=scale)
                found = True
    if not found:
        raise ValueError("the network has no residual branch that ends in a batch-norm, whose scale could be set.")
    return Graph(tuple(nodes.values()), graph.timesteps)


def _depths(graph: Graph) -> dict[str, int]:
    """Layers of weights on the longest path to each node, its own included."""
    depths: dict[str, int] = {}
    for node in graph.nodes:
        depths[node.name] = max((depths[name] for name in node.inputs), default=0) + isinstance(node, Weighted)
    return depths

"""Residual branches that start small."""

from dataclasses import replace

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Add, BatchNorm, Weighted
from qpsnn_jax.model.nodes.neurons import Neuron
from qpsnn_jax.runtime.checks import finite


def with_residual_scale(graph: Graph, scale: float) -> Graph:
    r"""The graph whose residual branches start at a fraction of their usual size.

    The scale of the batch-norm that ends a branch is ``scale`` in fresh variables, and is trained as any other:

    .. math:: U = x + s\,\mathrm{BN}(f(x))

    With s = 1 the output of twenty fresh layers of spikes hardly depends on the image, and training may begin with
    epochs without progress; a small s lets the shortcuts prevail. The branch of an addition is its input with more
    layers of weights before it, and is passed over if both have as many. Neurons may lie between batch-norm and
    addition. In a network whose shortcuts skip whole stages (U-Net), the longer input is the main path.

    Args:
        graph: the network.
        scale: s, above 0: at 0 a branch that ends in neurons never fires and learns nothing.

    Raises:
        ValueError: the scale is not a positive number, or no residual branch ends in a batch-norm.

    References:
        Goyal et al., 2017 (section 5.1), for networks without spikes, with s = 0.
    """
    scale = finite("the scale of residual branches", scale, 0.0, 1e30)
    if scale == 0:
        raise ValueError("the scale of residual branches must be above 0, got 0.")
    nodes, depths = dict(graph.by_name), _depths(graph)
    found = False
    for node in graph.nodes:
        if isinstance(node, Add) and depths[node.first] != depths[node.second]:
            end = graph.by_name[max(node.inputs, key=depths.__getitem__)]
            while isinstance(end, Neuron):
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

"""The readout of a folded network: a dense layer on spikes, sums or their average-pool, or the rates of spikes."""

from functools import singledispatch

import numpy as np

from qpsnn_jax.export.folded_layers import Rates, Readout
from qpsnn_jax.export.reading import Weights, indexed, summed_weights
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.model import nodes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Conv, Dense, Flatten, Node, Weighted

_FULL = 32


def fold_readout(graph: Graph, weights: Weights, spikes: set[str], bits: int) -> Readout | Rates:
    """The last node as a layer.

    Args:
        graph, weights: the network.
        spikes: names of the maps of spikes and of their sums.
        bits: of the weights, 8 or 32, where they are not codes already: with a γ for each class, and of three levels,
            they are real numbers.

    Raises:
        ValueError: it is neither a dense layer on spikes nor spikes; the message names the node.
    """
    node = graph.output
    if not isinstance(node, Dense):
        return _rates(graph, spikes)
    read = _flattened(graph, node)
    source, window, strides = window_of(graph.by_name[read], graph)
    if source not in spikes:
        raise ValueError(f"node {node.name!r}: a readout of {source!r} is none of spikes, their average-pool or sums.")
    bias = weights.variables["params"][node.name]["bias"] if node.bias else np.zeros(node.features)
    place = {"name": node.name, "source": source, "window": window, "strides": strides, "bias": bias.astype(np.float32)}
    quantizer, whole = node.quantizer, mask_on_map(graph, weights, node)
    if quantizer is not None and quantizer.levels is None and len(gamma := weights.codes[node.name][1]) == 1:
        codes, mask = indexed(on_map(graph, read, weights.codes[node.name][0]), whole, quantizer.bits)
        if (scale := float(np.float32(gamma[0]))) > 0:
            return Readout(**place, kernel=codes, scale=scale, bits=quantizer.bits, mask=mask)
    summed = summed_weights(weights, node)
    kernel = on_map(graph, read, summed * weights.codes[node.name][1] if quantizer else summed)
    if bits == _FULL:
        kernel, mask = indexed(kernel.astype(np.float32), whole, _FULL, 0)
        return Readout(**place, kernel=kernel, scale=1.0, bits=_FULL, mask=mask)
    step = float(np.float32(max(np.abs(kernel).max(), 1e-30) / 127))
    kernel, mask = indexed(np.rint(kernel / step).astype(np.int8), whole, 8, 0)
    return Readout(**place, kernel=kernel, scale=step, bits=8, mask=mask)


def _rates(graph: Graph, spikes: set[str]) -> Rates:
    """The last node as rates: spikes, their sums or a concatenation of them, with one axis or flattened."""
    node = graph.output
    if isinstance(node, Flatten) and node.input in spikes:
        return Rates(node.name, node.input)
    if node.name not in spikes or len(graph.values[node.name].shape) != 1:
        raise ValueError(f"node {node.name!r}: the last node must be a dense readout, or neurons on a dense layer.")
    return Rates(f"{node.name}.rates", node.name)


@singledispatch
def window_of(node: Node, graph: Graph) -> tuple[str, Pair, Pair]:
    """The map that a readout of this node sums over windows, the window and its strides."""
    del graph
    return node.name, (1, 1), (1, 1)


@window_of.register(nodes.GlobalAveragePool)
def _(node: nodes.GlobalAveragePool, graph: Graph) -> tuple[str, Pair, Pair]:
    h, w, _ = graph.values[node.input].shape
    return node.input, (h, w), (h, w)


@window_of.register(nodes.AveragePool)
def _(node: nodes.AveragePool, graph: Graph) -> tuple[str, Pair, Pair]:
    # Windows over padding would divide by what lies outside too.
    return (node.input, node.window, node.strides) if node.padding == (0, 0) else (node.name, (1, 1), (1, 1))


def weights_on_map(graph: Graph, weights: Weights, layer: Weighted) -> tuple[str, np.ndarray]:
    """The map that a layer reads, and its weights ``h w i o``: codes where it is quantized."""
    kernel = weights.codes[layer.name][0] if layer.quantizer else summed_weights(weights, layer)
    source = _flattened(graph, layer)
    return source, kernel if isinstance(layer, Conv) else on_map(graph, source, kernel)


def mask_on_map(graph: Graph, weights: Weights, layer: Weighted) -> np.ndarray | None:
    """The mask of a layer, if it has one, as its weights ``h w i o`` lie."""
    mask = weights.masks.get(layer.name)
    return mask if mask is None or isinstance(layer, Conv) else on_map(graph, _flattened(graph, layer), mask)


def on_map(graph: Graph, source: str, kernel: np.ndarray) -> np.ndarray:
    """The weights ``i o`` of a dense layer as ``h w i o`` on the map that it covers."""
    shape = graph.values[source].shape
    return kernel.reshape(*((1,) * (3 - len(shape))), *shape, kernel.shape[-1])


def _flattened(graph: Graph, layer: Weighted) -> str:
    """The input of a layer, before a Flatten."""
    node = graph.by_name[layer.input]
    return node.input if isinstance(node, Flatten) else node.name

"""Bits by layer: the graph with other quantizers, or with none."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Neuron, Quantizer, Weighted
from qpsnn_jax.model.variables import check_variables, leaves_of


def with_edge_bits(graph: Graph, bits: int) -> Graph:
    """The graph with its layers in full precision quantized, which in the zoo are the stem and the readout.

    The scale is the largest magnitude, so that no weight is clipped: that of each output channel, and in the last layer
    that of all weights, so that its integers can be compared. The paper keeps these layers in full precision.

    Args:
        graph: the network.
        bits: b of these weights, 1 to 8.

    Returns:
        A graph whose fresh variables have a ``gain`` for each of these layers.

    Raises:
        ValueError: ``bits`` is not from 1 to 8.
    """

    def quantizer(node: Weighted) -> Quantizer:
        return Quantizer(bits, "max", "layer" if node.name == graph.output.name else "channel")

    nodes = (
        replace(node, quantizer=quantizer(node)) if isinstance(node, Weighted) and node.quantizer is None else node
        for node in graph.nodes
    )
    return Graph(tuple(nodes), graph.timesteps)


def with_quantizer(
    graph: Graph, variables: Mapping[str, Any], quantizer: Quantizer, *, layers: Iterable[str] | None = None
) -> tuple[Graph, dict[str, Any]]:
    """A network with quantized weights that starts from one in full precision, to be fine-tuned.

    Args:
        graph, variables: the network, such as one that was trained or imported in full precision.
        quantizer: of the layers, such as ``Quantizer(2)``.
        layers: their names; None: as in the paper, all after the first neurons but the readout.

    Returns:
        ``(graph, variables)``: the weights are the same, and the scale of each of these layers starts anew, by a
        ``gain`` of 1 or the first value of a learned ``gamma``. Layers that were quantized stay so, unless named.

    Raises:
        ValueError: ``quantizer`` is none, ``layers`` name one that has no weights, or the variables are not those of
            the graph.
    """
    check_variables(graph, variables, others=True)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"quantizer must be a Quantizer, such as Quantizer(2), got {quantizer!r}.")
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names, got {layers!r}; use [{layers!r}].")
    nodes, changed = dict(graph.by_name), {"scales": {}} | dict(variables)
    for name in _hidden_layers(graph) if layers is None else layers:
        node = graph.by_name.get(name)
        if not isinstance(node, Weighted):
            known = ", ".join(node.name for node in graph.nodes if isinstance(node, Weighted))
            raise ValueError(f"layers name {name!r}, which is not a layer with weights; there are {known}.")
        own = leaves_of(variables, name)
        if node.quantizer is not None:
            del own[node.quantizer.scale_leaf]
        nodes[name] = replace(node, quantizer=quantizer)
        table = nodes[name].leaves(graph.inputs_of(node))
        own |= {leaf: of.start(jax.random.key(0), own) for leaf, of in table.items() if leaf not in own}
        for collection in changed:
            arrays = {leaf: own[leaf] for leaf, of in table.items() if of.collection == collection}
            others = {other: held for other, held in changed[collection].items() if other != name}
            changed[collection] = others | ({name: arrays} if arrays else {})
    return Graph(tuple(nodes.values()), graph.timesteps), changed


def _hidden_layers(graph: Graph) -> list[str]:
    """The layers in full precision that have neurons before them, without the readout."""
    after: dict[str, bool] = {}
    for node in graph.nodes:
        after[node.name] = isinstance(node, Neuron) or any(after[name] for name in node.inputs)
    layers = (node for node in graph.nodes if isinstance(node, Weighted) and node.quantizer is None)
    return [node.name for node in layers if node.name != graph.output.name and any(after[name] for name in node.inputs)]


def with_layer_bits(graph: Graph, bits: Mapping[str, int]) -> Graph:
    """The graph with other bits in some of its quantized layers; they are no longer ternary.

    Args:
        graph: the network.
        bits: by the name of the layer, each from 1 to 8.

    Raises:
        ValueError: ``bits`` are no mapping, a name is not that of a quantized layer, or bits are not from 1 to 8.
    """
    if not isinstance(bits, Mapping):
        raise ValueError(f"bits must be a mapping from names of layers, such as {{'conv': 4}}, got {bits!r}.")
    nodes = dict(graph.by_name)
    for name, number in bits.items():
        node = nodes.get(name)
        if not isinstance(node, Weighted) or node.quantizer is None:
            known = ", ".join(quantized_layers(graph)) or "none"
            raise ValueError(f"bits name {name!r}, which is not a quantized layer; there are {known}.")
        nodes[name] = replace(node, quantizer=replace(node.quantizer, bits=number, levels=None))
    return Graph(tuple(nodes.values()), graph.timesteps)


def with_float_weights(graph: Graph, variables: Mapping[str, Any]) -> tuple[Graph, dict[str, Any]]:
    r"""The network whose layers hold, in full precision, the weights Ŵ that they compute with.

    Args:
        graph, variables: the network.

    Returns:
        ``(graph, variables)`` of a network that computes the same, up to rounding.
    """
    nodes, params = dict(graph.by_name), dict(variables["params"])
    scales = dict(variables.get("scales", {}))
    for name, quantizer in quantized_layers(graph).items():
        own = {**params[name], **scales.pop(name, {})}
        integers, scale = quantizer.integer_weights(own["kernel"], own[quantizer.scale_leaf])
        own = {leaf: array for leaf, array in own.items() if leaf != quantizer.scale_leaf}
        nodes[name], params[name] = replace(nodes[name], quantizer=None), {**own, "kernel": integers * scale}
    return Graph(tuple(nodes.values()), graph.timesteps), {**variables, "params": params, "scales": scales}


def quantized_layers(graph: Graph) -> dict[str, Quantizer]:
    """The quantizers of the layers that have one, by name."""
    layers = {node.name: node.quantizer for node in graph.nodes if isinstance(node, Weighted)}
    return {name: quantizer for name, quantizer in layers.items() if quantizer is not None}


def reads_pixels_quantized(graph: Graph) -> bool:
    """Whether a quantized layer reads the image."""
    return any(graph.by_name[name].inputs == (graph.input.name,) for name in quantized_layers(graph))

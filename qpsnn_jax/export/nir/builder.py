"""The NIR graph that is being built from a network."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from qpsnn_jax.export.reading import Weights, needed_nodes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import BatchNorm, Conv, Dense

# The step in seconds that snntorch fixes and spikingjelly takes when none is given.
DT = 1e-4


class Translated(NamedTuple):
    """The value of a node: the NIR nodes whose sum it is, and its shape ``(h, w, c)``."""

    nodes: tuple[str, ...]
    shape: tuple[int, int, int]


class Builder:
    """The NIR nodes and edges so far; ``norms`` are the batch-norms by the layer that they are folded into."""

    def __init__(self, nir: Any, graph: Graph, weights: Weights) -> None:
        self.nir, self.graph, self.weights = nir, graph, weights
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        needed = needed_nodes(graph)
        readers = Counter(name for node in needed for name in node.inputs)
        self.norms = {
            node.input: node
            for node in needed
            if isinstance(node, BatchNorm) and isinstance(graph.by_name[node.input], Conv | Dense)
            if readers[node.input] == 1
        }

    def add(self, name: str, node: Any, source: Translated, shape: Sequence[int]) -> Translated:
        """A NIR node that reads ``source``, and what it gives, of the shape ``(h, w, c)``."""
        h, w, c = shape
        self.nodes[name] = node
        self.edges += [(other, name) for other in source.nodes]
        return Translated((name,), (h, w, c))

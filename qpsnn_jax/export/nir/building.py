"""The network that is being built from a NIR graph."""

from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.model.nodes import Node, Value


class Reader:
    """A NIR graph, and the nodes, values and weights that have been built from it so far."""

    def __init__(self, document: Any, frames: bool, binary: bool, dt: float) -> None:
        self.nodes_of, self.frames, self.binary, self.dt = dict(document.nodes), frames, binary, dt
        self.sources: dict[str, list[str]] = {name: [] for name in self.nodes_of}
        self.readers: dict[str, list[str]] = {name: [] for name in self.nodes_of}
        for source, target in document.edges:
            if source not in self.nodes_of or target not in self.nodes_of:
                raise ValueError(f"the NIR graph has an edge from {source!r} to {target!r}, which are not both nodes.")
            if source in self.sources[target]:
                raise ValueError(f"node {target!r}: two edges lead to it from {source!r}.")
            self.sources[target].append(source)
            self.readers[source].append(target)
        self.nodes: dict[str, Node] = {}
        self.yields: dict[str, Value] = {}
        self.params: dict[str, dict[str, np.ndarray]] = {}
        self.sums: dict[tuple[str, ...], str] = {}

    def add(self, node: Node) -> str:
        """Add a node to the graph; returns its name."""
        try:
            self.yields[node.name] = node.infer([self.yields[name] for name in node.inputs])
        except ValueError as error:
            raise ValueError(f"node {node.name!r}: {error}") from None
        self.nodes[node.name] = node
        return node.name

    def fresh(self, name: str) -> str:
        """A name like this one that neither the file nor the graph uses."""
        while name in self.nodes_of or name in self.nodes:
            name += "_"
        return name

    def hwc(self, name: str) -> tuple[int, int, int]:
        """Shape of the output of a node of the graph; a flat one is a map of one position."""
        shape = self.yields[name].shape
        h, w, c = (*(1,) * (3 - len(shape)), *shape)
        return h, w, c


class Found(NamedTuple):
    """A NIR node, its name, and the name of the graph's node that is its input, "" for none."""

    name: str
    node: Any
    source: str

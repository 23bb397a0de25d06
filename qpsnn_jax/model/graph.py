"""A network as data: a frozen, hashable graph of nodes, checked when it is built.

To run, prune, cost or export a network is a function of a :class:`Graph` and its variables. Nodes name their inputs and
are listed in the order in which they are computed; the last one is the output. Shapes are those of one example at one
time step, ``(h, w, c)`` or ``(features,)``.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qpsnn_jax.model.nodes.base import KINDS, Node, Value
from qpsnn_jax.model.nodes.checks import LARGEST
from qpsnn_jax.model.nodes.inputs import Input
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.runtime.checks import integer
from qpsnn_jax.runtime.naming import NotImportedError, find_imported, name_of

_COLLECTIONS = ("params", "batch_stats", "scales", "masks")


@dataclass(frozen=True)
class Graph:
    """A network: nodes in order of computation and the number of time steps T.

    Raises:
        ValueError: at construction, if names repeat, an input is missing, shapes do not match, or there is not exactly
            one input; the message names the node.
    """

    nodes: tuple[Node, ...]
    timesteps: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "timesteps", integer("timesteps", self.timesteps, 1, LARGEST))
        for node in self.nodes:
            _check_node(node)
        if [isinstance(node, Input) for node in self.nodes].count(True) != 1:
            raise ValueError("a graph needs exactly one Input node.")
        _ = self.values

    @cached_property
    def values(self) -> dict[str, Value]:
        """Shape of every node's output, whether it has a time axis, and whether it is 0 or 1, by name."""
        values: dict[str, Value] = {}
        for node in self.nodes:
            _check_names(node, values)
            try:
                values[node.name] = node.infer([values[name] for name in node.inputs])
            except ValueError as error:
                raise ValueError(f"node {node.name!r}: {error}") from None
        return values

    @cached_property
    def readers(self) -> Counter[str]:
        """How many nodes read the output of each node; one that reads it twice counts twice."""
        return Counter(name for node in self.nodes for name in node.inputs)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def input(self) -> Input:
        """The input node."""
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def output(self) -> Node:
        """The last node, whose output is that of the network."""
        return self.nodes[-1]

    @property
    def classes(self) -> int:
        """The number of classes, which is that of the output's features."""
        return self.values[self.output.name].shape[-1]

    @property
    def neurons(self) -> tuple[str, ...]:
        """Names of the nodes that fire, that is, of the layers of neurons."""
        return tuple(node.name for node in self.nodes if node.fires)

    def inputs_of(self, node: Node) -> tuple[Value, ...]:
        """The values of a node's inputs."""
        return tuple(self.values[name] for name in node.inputs)


def check_graph(graph: object) -> None:
    """Check that ``graph`` is a :class:`Graph`, and not the network or the variables that belong to it.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(graph, Graph):
        raise ValueError(f"graph must be a Graph, got a {type(graph).__name__}.")


def to_json(graph: Graph) -> str:
    """The graph as JSON text; :func:`from_json` restores an equal graph.

    Raises:
        ValueError: a node holds a function that cannot be imported by name, such as a lambda.
    """
    return json.dumps({"timesteps": graph.timesteps, "nodes": [_entry(node) for node in graph.nodes]})


def from_json(text: str) -> Graph:
    """A graph from the text written by :func:`to_json`.

    Nothing is imported, because the text may come from a stranger: node classes and functions from outside this package
    are found if their module has been imported.

    Raises:
        ValueError: the text does not describe a graph.
        NotImportedError: the text names a class or a function that has not been imported.
    """
    try:
        document = json.loads(text)
        return Graph(tuple(_node(entry) for entry in document["nodes"]), document["timesteps"])
    except NotImportedError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}, {error}"
        raise ValueError(f"the text does not describe a graph: {reason:.300}") from None


def _check_node(node: Any) -> None:
    if not isinstance(node, Node):
        raise ValueError(f"nodes must be nodes such as qpsnn_jax.nodes.Conv, got {node!r}.")
    try:
        hash(node)
    except TypeError as error:
        raise ValueError(f"node {node.name!r}: its fields must be hashable ({error}).") from None


def _check_names(node: Node, values: Mapping[str, Value]) -> None:
    if not (isinstance(node.name, str) and node.name) or node.name in _COLLECTIONS:
        raise ValueError(f"node {node.name!r}: a name must be text and none of {', '.join(_COLLECTIONS)}.")
    if node.name in values:
        raise ValueError(f"node {node.name!r}: another node has the same name.")
    for name in node.inputs:
        if name not in values:
            raise ValueError(f"node {node.name!r}: its input {name!r} is not an earlier node.")


def _entry(node: Node) -> dict[str, Any]:
    def named(value: Any) -> dict[str, str]:
        try:
            if not callable(value):
                raise ValueError(f"{value!r} is not a number, text, tuple or function.")
            return {"function": name_of(value)}
        except ValueError as error:
            raise ValueError(f"node {node.name!r} cannot be saved: {error}") from None

    fields = json.loads(json.dumps(dataclasses.asdict(node), default=named))
    return {"kind": type(node).__name__, **fields}


def _node(entry: Mapping[str, Any]) -> Node:
    name, kind = entry["name"], entry["kind"]
    if kind not in KINDS:
        raise NotImportedError(
            f"node {name!r} is of the kind {kind!r}, which is not imported; import its module first "
            "(qpsnn: --import MODULE)."
        )
    return KINDS[kind](**{field: _field(value) for field, value in entry.items() if field != "kind"})


def _field(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"function"}:
            return find_imported(value["function"])
        return Quantizer(**{field: _field(option) for field, option in value.items()})
    return tuple(value) if isinstance(value, list) else value

"""The state of a network between steps: what every node that has one holds, by the name of the node."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runtime.checks import integer

State = Mapping[str, Any]
"""Of LIF nodes the membrane potentials U after the reset, ``b …``; of any node a tree of arrays."""


def initial_state(graph: Graph, batch: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The state of a network at rest, for ``state`` of :class:`qpsnn_jax.SpikingNetwork`.

    Without a state a network starts at rest too. This one has the structure of every later state, as ``jax.lax.scan``
    needs it.

    Args:
        graph: the network.
        batch: the number of images.
        dtype: that of the images.

    Returns:
        By node that has a state its arrays ``batch …``, zeros for neurons.

    Raises:
        ValueError: ``batch`` is not an integer, 1 or more.
    """
    return _rest(graph, integer("batch", batch, 1), dtype)


def _rest(graph: Graph, batch: int, dtype: Any) -> dict[str, Any]:
    states = {node.name: node.rest(graph.inputs_of(node), batch, dtype) for node in graph.nodes}
    return {name: state for name, state in states.items() if state is not None}


def check_state(graph: Graph, state: State, batch: int, dtype: Any) -> None:
    """Check that a state is one of the graph and of a batch.

    Raises:
        ValueError: it is no mapping, lacks a node, names another one, or has arrays of another shape; the message names
            the node.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f"state must map nodes to their arrays, as the state of an Output does, got a {type(state).__name__}."
        )
    expected = jax.eval_shape(partial(_rest, graph, batch, dtype))
    for name, rest in expected.items():
        if name not in state:
            raise ValueError(f"state has nothing for node {name!r}: it is that of another network.")
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (state[name], rest)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"state of node {name!r} has the shape {shapes[0]}, and a batch of {batch} needs {shapes[1]}."
            )
    if extra := [name for name in state if name not in expected]:
        raise ValueError(f"state names {extra[0]!r}, which is not a node of the graph that has a state.")

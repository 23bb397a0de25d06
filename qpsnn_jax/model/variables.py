"""Checks of variables against their graph."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qpsnn_jax.model.graph import Graph


def leaves_of(variables: Mapping[str, Any], node: str) -> dict[str, Any]:
    """The arrays of a node by name, from all collections of the variables."""
    return {name: leaf for collection in variables.values() for name, leaf in collection.get(node, {}).items()}


def check_variables(graph: Graph, variables: Mapping[str, Any], *, others: bool = False) -> None:
    """Check that ``variables`` are those of the graph: an array of the right shape for each leaf, and no other.

    Args:
        graph: the network.
        variables: by collection, node and array.
        others: whether there may be other arrays too, but no parameters of a node that has none of that name.

    Raises:
        ValueError: an array is missing, unknown, of another shape or not floating; the message names the first.
    """
    expected = {
        f"{leaf.collection}/{node.name}/{name}": leaf.shape
        for node in graph.nodes
        for name, leaf in node.leaves(graph.inputs_of(node)).items()
    }
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    for name, shape in expected.items():
        if name not in found:
            mend = "; put your params into those of init_variables(graph, key)" if name.startswith("scales/") else ""
            raise ValueError(f"the variables are not those of the graph: {name} of shape {shape} is missing{mend}.")
        if jnp.shape(found[name]) != shape:
            raise ValueError(
                f"the variables are not those of the graph: {name} has the shape {jnp.shape(found[name])}, not {shape}."
            )
        if not jnp.issubdtype(jnp.result_type(found[name]), jnp.floating):
            raise ValueError(f"the variables must be floating, {name} is {jnp.result_type(found[name])}.")
    # Parameters that a node does not read, such as the learned τ of neurons whose τ is a number now, are a mistake.
    read = tuple(f"params/{node.name}/" for node in graph.nodes) if others else ""
    if extra := [name for name in found if name not in expected and name.startswith(read)]:
        raise ValueError(f"the variables are not those of the graph: it has no {extra[0]}.")

"""Scores of a network's channels by the name of a criterion."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.channels import channel_groups, spiking_members
from qpsnn_jax.pruning.scoring import Criterion, Scores, score
from qpsnn_jax.pruning.settings import CRITERIA, WEIGHT_CRITERIA
from qpsnn_jax.runtime.naming import find


def scores_by(
    name: str,
    graph: Graph,
    variables: Any,
    batches: Iterable[Array],
    key: Array,
    *,
    mesh: Mesh | None = None,
    precision: Precision = "auto",
) -> Scores:
    """Score of every channel of every group.

    Args:
        name: in :data:`~qpsnn_jax.pruning.settings.CRITERIA`, or ``module:attribute`` of your own :class:`Criterion` or
            function ``(graph, variables, key) -> {group: scores}``.
        graph, variables: the network.
        batches: as for :func:`qpsnn_jax.score`; read only if the criterion needs data.
        key: for a random criterion.
        mesh, precision: as for :func:`qpsnn_jax.score`.

    Raises:
        ValueError: there is no such criterion, or as :func:`qpsnn_jax.score`.
    """
    criterion = find_criterion(name)
    if isinstance(criterion, Criterion):
        return score(graph, variables, batches, criterion, mesh=mesh, precision=precision)
    return criterion(graph, variables, key)


def scored_groups(name: str, graph: Graph) -> tuple[str, ...]:
    """The groups that a criterion scores, before there are variables and data.

    A :class:`Criterion` scores those with neurons. A function is called with ones in place of the variables.

    Raises:
        ValueError: there is no such criterion.
    """
    criterion, groups = find_criterion(name), channel_groups(graph)
    if isinstance(criterion, Criterion):
        return tuple(group.name for group in groups.values() if spiking_members(graph, group))
    variables: dict[str, dict[str, dict[str, Array]]] = {}
    for node in graph.nodes:
        for part, leaf in node.leaves(graph.inputs_of(node)).items():
            ones = jnp.asarray(np.ones(leaf.shape, np.float32))
            variables.setdefault(leaf.collection, {}).setdefault(node.name, {})[part] = ones
    scores = criterion(graph, variables, jax.random.key(0))
    return tuple(group for group in groups if group in scores)


def find_criterion(name: str) -> Any:
    """A :class:`Criterion`, or a function ``(graph, variables, key) -> {group: scores}``.

    Raises:
        ValueError: there is none of this name.
    """
    criterion: Any = find(CRITERIA.get(name, name))
    if isinstance(criterion, Criterion) or callable(criterion):
        return criterion
    raise ValueError(f"criterion {name} must be a Criterion or a function, got {criterion!r}.")


def find_weight_criterion(name: str) -> Callable[..., Any]:
    """A function in :data:`~qpsnn_jax.pruning.settings.WEIGHT_CRITERIA`, or your own :data:`WeightCriterion`.

    Raises:
        ValueError: there is none of this name.
    """
    criterion: Any = find(WEIGHT_CRITERIA.get(name, name))
    if callable(criterion):
        return criterion
    raise ValueError(f"weight_criterion {name} must be a function, got {criterion!r}.")

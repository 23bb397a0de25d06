"""Scores of a network's channels by the name of a criterion."""

from collections.abc import Callable, Iterable
from typing import Any

from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.selection import (
    Criterion,
    Scores,
    magnitude_group_scores,
    random_group_scores,
    sca_criterion,
    score,
    svs_criterion,
)
from qpsnn_jax.runtime.naming import find

# A Criterion, or a function of graph, variables and key for what needs no data.
CRITERIA: dict[str, Criterion | Callable[[Graph, Any, Array], Scores]] = {
    "svs": svs_criterion,
    "sca": sca_criterion,
    "magnitude": lambda graph, variables, key: magnitude_group_scores(graph, variables),
    "random": lambda graph, variables, key: random_group_scores(graph, key),
}


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
        name: of :data:`CRITERIA`, or ``module:attribute`` of a :class:`Criterion` or of a function
            ``(graph, variables, key) -> {group: scores}`` of one's own.
        graph, variables: the network.
        batches: as for :func:`qpsnn_jax.score`; read only where the criterion needs data.
        key: for a criterion that draws.
        mesh, precision: as for :func:`qpsnn_jax.score`.

    Raises:
        ValueError: there is no such criterion, or as :func:`qpsnn_jax.score`.
    """
    criterion: Any = CRITERIA[name] if name in CRITERIA else find(name)
    if isinstance(criterion, Criterion):
        return score(graph, variables, batches, criterion, mesh=mesh, precision=precision)
    if callable(criterion):
        scores: Any = criterion(graph, variables, key)
        return scores
    raise ValueError(f"criterion {name} must be a Criterion or a function, got {criterion!r}.")

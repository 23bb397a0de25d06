"""Scores of a network's channels by the name of a criterion."""

from collections.abc import Iterable
from typing import Any

from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.selection import Criterion, Scores, score
from qpsnn_jax.pruning.settings import CRITERIA
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
    criterion: Any = find(CRITERIA.get(name, name))
    if isinstance(criterion, Criterion):
        return score(graph, variables, batches, criterion, mesh=mesh, precision=precision)
    if callable(criterion):
        scores: Any = criterion(graph, variables, key)
        return scores
    raise ValueError(f"criterion {name} must be a Criterion or a function, got {criterion!r}.")

"""Scoring channels and removing them."""

from qpsnn_jax.pruning.channels import Group, channel_groups, prune
from qpsnn_jax.pruning.rank import matrix_ranks
from qpsnn_jax.pruning.scores import (
    magnitude_scores,
    random_scores,
    sca_scores,
    singular_values,
    svs_ranks,
    svs_scores,
)
from qpsnn_jax.pruning.selection import (
    Criterion,
    magnitude_group_scores,
    make_score_step,
    random_group_scores,
    sca_criterion,
    score,
    select,
    svs_criterion,
)

__all__ = [
    "Criterion",
    "Group",
    "channel_groups",
    "magnitude_group_scores",
    "magnitude_scores",
    "make_score_step",
    "matrix_ranks",
    "prune",
    "random_group_scores",
    "random_scores",
    "sca_criterion",
    "sca_scores",
    "score",
    "select",
    "singular_values",
    "svs_criterion",
    "svs_ranks",
    "svs_scores",
]

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
    make_score_step,
    sca,
    score,
    score_magnitude,
    score_random,
    select,
    svs,
)

__all__ = [
    "Criterion",
    "Group",
    "channel_groups",
    "magnitude_scores",
    "make_score_step",
    "matrix_ranks",
    "prune",
    "random_scores",
    "sca",
    "sca_scores",
    "score",
    "score_magnitude",
    "score_random",
    "select",
    "singular_values",
    "svs",
    "svs_ranks",
    "svs_scores",
]

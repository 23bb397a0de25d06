"""The stage in which masks remove single weights, after the channels.

After them because their scores are of the trained network, as in the paper, because N:M is of the channels that are
left, and because so the share that is removed is of the weights that are left.
"""

import time

import jax

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.criteria import find_weight_criterion
from qpsnn_jax.pruning.masks import WeightCriterion, mask_by
from qpsnn_jax.pruning.settings import Pruning, parse_n_of_m
from qpsnn_jax.runs.directory import load_network, read_stage
from qpsnn_jax.runs.evaluation import evaluate, sensitivity_batches
from qpsnn_jax.runs.records import StageResult
from qpsnn_jax.runs.stages import Run, finish_stage, mean_activity
from qpsnn_jax.training.state import Variables


def mask_weights(run: Run, pruning: Pruning, *, done: int = 0) -> StageResult | None:
    """Stage 2c: masks of the pruned network. Returns its result, or None where there is none to do.

    Args:
        run: whose network.
        pruning: the sparsity, or n of m weights, and the criterion.
        done: how many rounds of pruning came before. In each, the same share of the weights is removed, and the last
            arrives at the sparsity. Only the last masks n of m.
    """
    left = pruning.rounds - done
    if not pruning.masks or (pruning.sparsity is None and left > 1):
        return None
    if result := read_stage(run.directory, "masked"):
        return result
    started = time.monotonic()
    graph, variables = load_network(run.directory / "pruned")
    sparsity = pruning.sparsity
    if sparsity is not None and left > 1:
        sparsity = 1 - (1 - sparsity) ** ((1 + done) / pruning.rounds)
    n_of_m = None if pruning.n_of_m is None else parse_n_of_m(pruning.n_of_m)
    criterion = _criterion(run, pruning, graph, variables)
    graph, variables = mask_by(criterion, graph, variables, sparsity=sparsity, n_of_m=n_of_m)
    result = evaluate(graph, variables, run.data.test, run.data, precision=run.settings.precision)
    return finish_stage(run, "masked", graph, variables, result, [], time.monotonic() - started, {})


def _criterion(run: Run, pruning: Pruning, graph: Graph, variables: Variables) -> WeightCriterion:
    """The criterion of the settings, on images of the training set if it needs any."""
    criterion = find_weight_criterion(pruning.weight_criterion)
    match pruning.weight_criterion:
        case "rate":
            return criterion(mean_activity(run, pruning, graph, variables))
        case "gradient":
            return criterion(sensitivity_batches(run.data), precision=run.settings.precision)
        case "random":
            return criterion(jax.random.key(run.settings.seed))
    return criterion

r"""How stable the scores of channels are from batch to batch, what ties and ε decide, and what scoring costs.

Eq. 15 of the paper is the mean cosine similarity between the scores of different batches, its minimum over the layers.
Scores are positive, and the cosine of positive vectors is high by nature; so beside it are the same cosine after every
batch's channels were permuted, Spearman's rank correlation, and the Jaccard index of the kept sets, with its value for
permuted channels. Of ε: the same measures for absolute thresholds, and the Jaccard index with the sets of the
exact rank.

Command: python -m experiments.scores RUN [--batches 20] [--batch-size 32] [--data-dir DIR] [--out FILE.json]
"""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from jax import Array
from scipy import stats

from experiments.claims.criteria import firing_rate
from experiments.errors import usage_errors
from qpsnn_jax import Criterion, Graph, load_network, score, svs_scores
from qpsnn_jax.data.feed import sample
from qpsnn_jax.pruning.scores import Threshold
from qpsnn_jax.pruning.scoring import sca_criterion, svs_criterion
from qpsnn_jax.runs.directory import read_config, run_of
from qpsnn_jax.runs.evaluation import normalizer
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.report import aligned
from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.training.state import Variables

_EPSILONS = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1)
_KEPT = 0.5  # share of the channels of a layer in the compared sets
_HEAD = (
    "criterion",
    "cosine, least",
    "cosine, mean",
    "permuted",
    "Spearman",
    "Jaccard",
    "permuted",
    "with exact",
    "tied",
    "ms/image",
)


def criteria() -> dict[str, Criterion]:
    """The compared criteria by name; those of SVS differ in the threshold of singular values."""
    return {
        "SVS, exact": svs_criterion,
        "SVS, relative": _with_threshold("relative", None),
        **{f"SVS, ε = {epsilon:g}": _with_threshold("absolute", epsilon) for epsilon in _EPSILONS},
        "SCA": sca_criterion,
        "firing rate": firing_rate,
    }


def _with_threshold(threshold: Threshold, epsilon: float | None) -> Criterion:
    def scores(maps: Array) -> Array:
        return svs_scores(maps[:, None], epsilon=epsilon, threshold=threshold)

    return Criterion(firing_rate.observe, scores, channelwise=True)


def stability(scores: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, float]:
    """The measures of one criterion.

    Args:
        scores: by layer, one row of scores for each batch, ``batches channels``.
        exact: the same by the exact rank.
        seed: of the permutations.

    Returns:
        ``cosine_least`` (Eq. 15), and means over layers and pairs of batches of ``cosine``, ``spearman``, ``jaccard``;
        ``cosine_permuted`` and ``jaccard_permuted`` of permuted channels; ``jaccard_exact``, of the sets that the
        scores of all batches keep and those that the exact rank keeps; ``tied``, the share of channels whose score
        over all batches is that at which the set is cut, where the cut falls between equal scores.
    """
    draw = np.random.default_rng(seed)
    layers = [rows for rows in scores.values() if rows.shape[1] > 1]
    permuted = [np.stack([draw.permutation(row) for row in rows]) for rows in layers]
    cosines = [_over_pairs(rows, _cosine) for rows in layers]
    sets = [kept(rows.mean(0)) for rows in layers]
    exact_sets = [kept(rows.mean(0)) for rows in exact.values() if rows.shape[1] > 1]
    return {
        "cosine_least": min(cosines),
        "cosine": _mean(cosines),
        "cosine_permuted": _mean(_over_pairs(rows, _cosine) for rows in permuted),
        "spearman": _mean(_over_pairs(rows, _spearman) for rows in layers),
        "jaccard": _mean(_over_pairs(rows, _jaccard_of_kept) for rows in layers),
        "jaccard_permuted": _mean(_over_pairs(rows, _jaccard_of_kept) for rows in permuted),
        "jaccard_exact": _mean(jaccard(*pair) for pair in zip(sets, exact_sets, strict=True)),
        "tied": _mean(tied(rows.mean(0)) for rows in layers),
    }


def kept(scores: np.ndarray) -> set[int]:
    """The half of the channels with the highest scores; of equal ones the first, as :func:`qpsnn_jax.select` does."""
    return set(np.argsort(-scores, kind="stable")[: _count(scores)].tolist())


def tied(scores: np.ndarray) -> float:
    """The share of the channels that have the score at which the set is cut, if some of them are kept and some not."""
    ordered, cut = np.sort(scores)[::-1], _count(scores)
    return float(np.mean(scores == ordered[cut])) if ordered[cut - 1] == ordered[cut] else 0.0


def jaccard(first: set[int], second: set[int]) -> float:
    """Size of the intersection over that of the union."""
    return len(first & second) / len(first | second)


def _count(scores: np.ndarray) -> int:
    return max(1, int(len(scores) * _KEPT))


def _over_pairs(rows: np.ndarray, similarity: Any) -> float:
    found = [similarity(a, b) for a, b in itertools.combinations(rows, 2)]
    return _mean(value for value in found if np.isfinite(value))


def _mean(values: Any) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    sizes = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / sizes) if sizes else float("nan")


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; not defined where all scores are equal."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    found: Any = stats.spearmanr(a, b)
    return float(found.statistic)


def _jaccard_of_kept(a: np.ndarray, b: np.ndarray) -> float:
    return jaccard(kept(a), kept(b))


def trained_network(path: Path) -> tuple[Path, Graph, Variables]:
    """The directory of a run, and its trained network before pruning.

    Raises:
        ValueError: there is no such run, or its training is not complete.
    """
    run = run_of(path)
    if run is None:
        raise ValueError(f"{path} is not the directory of a run.")
    return run, *load_network(run / "quantized")


def measure(path: Path, batches: int, batch_size: int, data_dir: str | None) -> dict[str, dict[str, float]]:
    """The measures of every criterion on the trained network of a run, before pruning.

    Raises:
        ValueError: there is no such run, or its training is not complete.
    """
    run, graph, variables = trained_network(path)
    config = read_config(run, data_dir)
    data = load_data(config)
    images = list(map(jax.jit(normalizer(data)), sample(data.train, batch_size, batches, config.run.seed)))
    found, seconds = {}, {}
    for name, criterion in criteria().items():
        found[name], seconds[name] = _scores(graph, variables, images, criterion)
        click.echo(f"{name}: {1000 * seconds[name] / batch_size:.3f} ms an image", err=True)
    exact = found["SVS, exact"]
    return {
        name: {**stability(scores, exact), "ms_per_image": 1000 * seconds[name] / batch_size}
        for name, scores in found.items()
    }


def _scores(
    graph: Any, variables: Any, images: Sequence[Any], criterion: Criterion
) -> tuple[dict[str, np.ndarray], float]:
    """Scores by layer, one row for each batch, and the median seconds of a batch after the first."""
    rows, seconds = [], []
    for batch in images:
        started = time.perf_counter()
        rows.append(jax.device_get(score(graph, variables, [batch], criterion)))
        seconds.append(time.perf_counter() - started)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, float(np.median(seconds[1:] or seconds))


def table(measures: Mapping[str, Mapping[str, float]]) -> str:
    """The measures as a Markdown table, one row for each criterion."""
    rows = [(name, *(f"{value:.3f}" for value in values.values())) for name, values in measures.items()]
    return aligned([_HEAD, *rows])


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), metavar="RUN")
@click.option("--batches", type=click.IntRange(2), default=20, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--data-dir", metavar="DIR", help="data directory (default: that of the run)")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="JSON file of the measures")
@usage_errors()
def main(path: Path, batches: int, batch_size: int, data_dir: str | None, out: Path | None) -> None:
    """Measure how stable the scores of a run's channels are."""
    measures = measure(path, batches, batch_size, data_dir)
    click.echo(table(measures))
    if out is not None:
        document = {"run": path.name, "batches": batches, "batch_size": batch_size, "measures": measures}
        write_atomically(out, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()

"""What came out: means, standard errors, and paired differences with confidence intervals."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

_LEVEL = 0.95  # of confidence intervals
_POWER = 0.8  # with which the minimum detectable difference is found


class Difference(NamedTuple):
    """The mean of paired differences, the half width of its confidence interval, and what could be detected.

    ``detectable`` is the smallest true difference whose interval lies above 0 in four of five repetitions, by the
    noncentral t distribution. With fewer than two pairs the last two are NaN.
    """

    mean: float
    half_width: float
    detectable: float
    pairs: int


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; NaN for fewer than two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """The :func:`contrast` of two arms.

    Args:
        arm, reference: a value for each seed.

    Raises:
        ValueError: they share no seed.
    """
    return contrast([(1, arm), (-1, reference)])


def contrast(terms: Sequence[tuple[int, Mapping[int, float]]]) -> Difference:
    r"""Sums :math:`d = \sum_k c_k x_k` of the seeds that several arms share, :math:`\bar d ± t_{0.975, n-1} s_d / √n`.

    What can be detected is :math:`δ s_d / √n`, where noncentral t with n - 1 degrees of freedom and noncentrality δ
    is above :math:`t_{0.975, n-1}` with probability 0.8.

    Args:
        terms: the factor c of each arm, and its value x for each seed.

    Raises:
        ValueError: they share no seed.
    """
    seeds = set.intersection(*(set(values) for _, values in terms))
    values = [sum(factor * values[seed] for factor, values in terms) for seed in sorted(seeds)]
    if not values:
        raise ValueError("the arms share no seed.")
    error, pairs = standard_error(values), len(values)
    quantile, shift = _quantile_and_shift(pairs - 1) if pairs > 1 else (math.nan, math.nan)
    return Difference(float(np.mean(values)), quantile * error, shift * error, pairs)


@cache
def _quantile_and_shift(freedom: int) -> tuple[float, float]:
    """The quantile of Student's t, and the noncentrality that exceeds it with the power, both in standard errors."""
    quantile = float(stats.t(freedom).ppf((1 + _LEVEL) / 2))
    # (Z + δ) / √(V / f) exceeds it whenever Z and V do not lie in their worst tenths, so this δ is more than enough.
    half = (1 + _POWER) / 2
    most = quantile * math.sqrt(stats.chi2(freedom).ppf(half) / freedom) + stats.norm.ppf(half)
    found = optimize.root_scalar(lambda shift: stats.nct.sf(quantile, freedom, shift) - _POWER, bracket=(0, most))
    return quantile, float(found.root)


def read_results(folder: Path, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The results of a folder, in the order of their names.

    Args:
        folder: where they lie, each in a file of its name.
        names: of a plan, whose results are meant; None: all.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if names is None or path.stem in names]
    return [json.loads(path.read_bytes()) for path in paths]


def table(question: str, arms: Sequence[str], reference: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The arms of a question as a Markdown table; accuracies and differences are percentages of the test images.

    Where a question reads no test images, they are of the held-out ones.

    Args:
        question: its name.
        arms: their names, in the order of the rows.
        reference: the arm that the others are compared with, see :func:`reference_of`.
        results: of all questions.
    """
    found = {arm: of_arm(results, question, arm) for arm in arms}
    compared_with = (f"difference from {reference} (95 % CI)", "minimum detectable difference (80 % power)")
    head = ("arm", "runs", "accuracy ± standard error", *compared_with, "held out", "file", "SOPs", "energy")
    rows = [head, ("---",) * len(head)]
    for arm in arms:
        other = reference_of(arm, reference, arms)
        rows.append(_row(arm, found[arm], {} if other in (None, arm) else accuracies(found[other])))
    return f"## {question}\n\n{markdown(rows)}\n"


def reference_of(arm: str, reference: str, arms: Collection[str]) -> str | None:
    """The arm that another one is compared with: of the same bits or share, which the last part of its name says.

    Args:
        arm: its name, such as ``svs-80``.
        reference: the name of the reference, or what it is called before its bits or share: ``random``.
        arms: of the question.

    Returns:
        ``random-80`` here; None where there is no such arm.
    """
    names = (reference, f"{reference}-{arm.rpartition('-')[2]}")
    return next((name for name in names if name in arms), None)


def of_arm(results: Sequence[Mapping[str, Any]], question: str, arm: str) -> list[Mapping[str, Any]]:
    """The results of one arm of a question, one for each seed.

    Raises:
        ValueError: two are of one seed, as those of two recipes are.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for result in results:
        if (result["question"], result["arm"]) == (question, arm):
            other = found.setdefault(result["seed"], result)
            if other is not result:
                raise ValueError(f"{other['name']} and {result['name']} are of one arm and seed; give one of them.")
    return list(found.values())


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(arm: str, results: Sequence[Mapping[str, Any]], reference: Mapping[int, float]) -> tuple[str, ...]:
    if not results:
        return (arm, "0", "not yet run", *["–"] * 6)
    accuracy = accuracies(results)
    shown = ("–", "–")
    if accuracy.keys() & reference.keys():
        found = difference(accuracy, reference)
        shown = (f"{found.mean:+.2f} ± {_text(found.half_width)}", _text(found.detectable))
    held_out = [_held_out(r) for r in results if r["held_out_accuracy"]]
    files = [r["file_bytes"] for r in results if r["file_bytes"] is not None]
    return (
        arm,
        str(len(results)),
        mean_and_error(list(accuracy.values())),
        *shown,
        mean_and_error(held_out) if held_out else "–",
        f"{max(files):,} bytes" if files else "–",
        f"{np.mean([r['sops'] for r in results]) / 1e6:.3f} M",
        f"{np.mean([r['energy_mj'] for r in results]) * 1000:.3f} µJ",
    )


def _held_out(result: Mapping[str, Any]) -> float:
    return 100 * list(result["held_out_accuracy"].values())[-1]


def accuracies(results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """The accuracy of each seed in percent: of the test images, or of the held-out ones where none were read."""
    tested = [r["test_accuracy"] is not None for r in results]
    return {r["seed"]: 100 * r["test_accuracy"] if t else _held_out(r) for r, t in zip(results, tested, strict=True)}


def mean_and_error(values: Sequence[float]) -> str:
    """The mean and its standard error, as text."""
    return f"{np.mean(values):.2f} ± {_text(standard_error(values))}"


def _text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"

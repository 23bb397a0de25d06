"""Claim by claim: held, did not hold, or cannot be told from so few runs; the page ``notebooks/what_held_up.md``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.claims import sections
from experiments.claims.plan import HEADLINE_SEEDS, SEEDS, plan
from experiments.claims.tables import Difference, accuracies, contrast, markdown, of_arm, read_results

RESULTS = Path(__file__).parents[1] / "results" / "claims"
SCORES, LEVELS = RESULTS.parent / "scores", RESULTS.parent / "levels"
_HEADLINE = {
    "98kB": "16 + 12 epochs, T = 2",
    "98kB-longer": "40 epochs more, T = 4 at the end",
    "98kB-longest": "another 34, T = 4 at the end",
}
_TARGET, _LARGEST = 85.0, 98_496  # MLPerf Tiny: percent of the test images, and bytes of its reference


class Claim(NamedTuple):
    """Accuracy by the arms of a question: the claim is that the sum of ``factors`` times accuracies is positive."""

    text: str
    source: str
    question: str
    factors: Mapping[str, int]


def _better(text: str, source: str, question: str, arm: str, reference: str) -> Claim:
    return Claim(text, source, question, {arm: 1, reference: -1})


_SHARES = {"50": "half of the weights removed", "80": "four fifths removed"}

PAPER: tuple[Claim, ...] = (
    _better("γ = mean \\|W\\| is better than no scale, 2 bits", "Fig. 5a", "gamma", "mean-2", "none-2"),
    Claim(
        "and gains more at 2 bits than at 8",
        "Fig. 5a",
        "gamma",
        {"mean-2": 1, "none-2": -1, "mean-8": -1, "none-8": 1},
    ),
    *(
        _better(
            f"pruning by SVS is better than {words}, {removed}", source, "criterion", f"svs-{share}", f"{arm}-{share}"
        )
        for share, removed in _SHARES.items()
        for arm, words, source in (
            ("sca", "by SCA", "Table 2"),
            ("random", "at random", "control"),
            ("random-again", "at random, drawn again", "control"),
            ("scratch", "the same widths from scratch", "control"),
        )
    ),
    *(
        _better(
            f"ReScaW and SVS together are better than neither, {bits} bits",
            f"Table 2{': +4.73' if bits == 2 else ''}",
            "table2",
            f"mean-svs-{bits}",
            f"none-sca-{bits}",
        )
        for bits in (2, 4, 8)
    ),
    _better("to quantize first is better than to prune first", "Table 3", "table3", "quantize-prune", "prune-quantize"),
)

ADDITIONS: tuple[Claim, ...] = tuple(
    _better(f"{text}, {words}", source, question, f"{arm}-{share}", f"{reference}-{share}")
    for text, source, question, arm, reference in (
        ("widths by one ranking under a budget are better than by hand", "`allocate`", "rule", "by-rule", "by-hand"),
        ("the unpruned network as teacher helps", "`distill`", "distillation", "distilled", "plain"),
    )
    for share, words in _SHARES.items()
)


def verdict(claim: Claim, results: Sequence[Mapping[str, Any]]) -> tuple[Difference | None, str]:
    """The mean of the claim's sum over paired seeds, and in words what follows; a claim needs all seeds of the plan.

    It held if the 95 % confidence interval lies above 0, did not hold if it lies below, and is inconclusive otherwise.
    Roundings differ between processors, so that runs of two kinds are paired by less than those of one.
    """
    arms = {arm: of_arm(results, claim.question, arm) for arm in claim.factors}
    terms = [(factor, accuracies(arms[arm])) for arm, factor in claim.factors.items()]
    if not set.intersection(*(set(values) for _, values in terms)):
        return None, "not yet run"
    found = contrast(terms)
    if found.pairs < len(SEEDS):
        return found, f"{found.pairs} of {len(SEEDS)} seeds run"
    words = f"inconclusive (minimum detectable difference {found.detectable:.1f} points)"
    if found.mean - found.half_width > 0:
        words = "**held**"
    if found.mean + found.half_width < 0:
        words = "**did not hold**"
    mixed = len({one.get("processor") for of_one in arms.values() for one in of_one}) > 1
    return found, words + (", on different processors" if mixed else "")


def stability(scores: Sequence[Mapping[str, Any]]) -> str:
    """In words: whether SVS is above SCA in the least cosine and in Spearman's correlation, on all networks or on none.

    Args:
        scores: what :mod:`experiments.scores` found, one for each network.
    """
    if len(scores) < len(SEEDS):
        return f"{len(scores)} of {len(SEEDS)} networks measured"
    names, pair = ("cosine_least", "spearman"), ("SVS, ε = 1e-06", "SCA")
    values = np.array([[[found["measures"][one][name] for name in names] for one in pair] for found in scores])
    if np.isnan(values).any():
        return "inconclusive (where all channels of a layer score alike, there is no correlation)"
    above = (values[:, 0] > values[:, 1]).all(axis=1)
    return "**held**" if above.all() else "inconclusive" if above.any() else "**did not hold**"


def page(
    results: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], used: Sequence[Mapping[str, Any]]
) -> str:
    """The Markdown page of all verdicts.

    Args:
        results: of the units of the plan.
        scores: what :mod:`experiments.scores` found, one for each network.
        used: what :mod:`experiments.levels` found, one for each network.
    """
    return _PAGE.format(
        paper=_table(PAPER, results),
        additions=_table(ADDITIONS, results),
        headline=_headline(results),
        networks=len(scores),
        stability=stability(scores),
        scores=sections.score_table(scores),
        criteria=sections.criterion_table(results),
        table2=sections.table2(results),
        levels=sections.level_table(used, results),
    )


def _table(claims: Sequence[Claim], results: Sequence[Mapping[str, Any]]) -> str:
    head = ("claim", "source", "accuracies, %", "difference, points (95 %)", "seeds", "verdict")
    rows = [head, ("---",) * len(head)]
    for claim in claims:
        found, words = verdict(claim, results)
        shown = "–" if found is None else f"{found.mean:+.2f} ± {found.half_width:.2f}"
        if found is not None and found.pairs < 2:
            shown = f"{found.mean:+.2f}"
        means = _means(claim, results) if found else "–"
        rows.append((claim.text, claim.source, means, shown, str(found.pairs if found else 0), words))
    return markdown(rows)


def _means(claim: Claim, results: Sequence[Mapping[str, Any]]) -> str:
    """The mean accuracies of a claim's arms, over the seeds that all of them have."""
    values = [accuracies(of_arm(results, claim.question, arm)) for arm in claim.factors]
    seeds = set.intersection(*map(set, values))
    return ", ".join(f"{np.mean([one[seed] for seed in seeds]):.2f}" for one in values)


def _headline(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [("trained for", "accuracy", "bytes", "verdict"), ("---",) * 4]
    for arm, words in _HEADLINE.items():
        found = of_arm(results, "headline", arm)
        good = all(100 * r["integer_accuracy"] >= _TARGET and r["file_bytes"] <= _LARGEST for r in found)
        told = "**reached**" if good else "**not reached**"
        if len(found) < len(HEADLINE_SEEDS):
            told = f"not yet run ({len(found)} of {len(HEADLINE_SEEDS)} seeds)"
        accuracy = ", ".join(f"{100 * r['integer_accuracy']:.2f} %" for r in found)
        rows.append((words, accuracy or "–", ", ".join(f"{r['file_bytes']:,}" for r in found) or "–", told))
    return markdown(rows)


_PAGE = """# What held up

Claims of QP-SNN (ICLR 2025), and additions of this project, tested on CIFAR-10 by small networks: ResNet20 at 1/8 of
the paper's width, T = 2, 2 bits unless said otherwise, 5,000 training images, 10 epochs of training and 5 of
fine-tuning (in the last section: 3/16 of the width, 45,000 images, more epochs). Accuracies are those of the
10,000 test images, read once at the last epoch. These networks are far from the paper's accuracy, so a claim that fails
here may hold at the paper's size. The plan, written before the first run, is
[claims.md](../experiments/claims.md); the results are in
[experiments/results/claims](../experiments/results/claims), and this page is made of them:

```
python -m experiments.claims --hours 2.5 --data-dir ~/tensorflow_datasets
python -m experiments.claims.verdicts > notebooks/what_held_up.md
```

The accuracies of a row are means over its seeds, in the order in which the claim names the two; in the second row they
are those of 2 bits, then of 8, each with γ first. A claim held if the 95 % confidence interval of the mean paired
difference (Student's t over three seeds) lies above 0, and did not hold if it lies below. Otherwise three runs are
inconclusive, and the table has the smallest difference that they would detect in four of five repetitions. Each
interval stands for itself: of twenty, one misses by chance.
All arms with their accuracies, files and operations: `python -m experiments.claims --tables`.

## The paper

{paper}

## Every criterion (`criterion`)

Accuracies in percent, means over the seeds: of 1,000 held-out images right after pruning, after recalibration of
batch-norm, and at the last epoch, which is of fine-tuning, or for `scratch` of training from random weights; then of
the 10,000 test images at the last epoch, with the standard error. The difference from `random` is paired by seed, and
shown where all three seeds of both were trained on the same processor. Those of SVS were planned as tests, whose
verdicts are above.

{criteria}

## Table 2 (`table2`)

Half of the weights removed, with γ = mean |W| or none, by SVS or SCA, at 2, 4 and 8 bits: test accuracy with its
standard error, and the paired difference from no γ with SCA. Only that of both together was planned as a test; of
twenty such intervals, one excludes 0 by chance. `mean-svs-2` and `mean-sca-2` are the networks `svs-50` and `sca-50` of
the table above.

{table2}

## Stability of the scores (Fig. 3, Eq. 15)

The claim is that scores of SVS depend less on the images than those of SCA. On {networks} networks `gamma.mean-2`, over
20 batches of 32 training images: {stability}. Measures are means over the networks; the least cosine is that of the
layer with the lowest (Eq. 15), and the others are means over layers. Scores are positive, so that their cosines are
high for any: `permuted` is what channels in random order give. Jaccard is that of the better halves of the channels by
two batches, and `same as exact` that with the exact ranks, both by scores averaged over all batches.

{scores}

```
python -m experiments.scores RUN --data-dir ~/tensorflow_datasets --out experiments/results/scores/RUN.json
```

## How well the levels are used (Fig. 5a, Eq. 8)

Of the networks of `gamma` (γ and bits), means over the quantized layers: the share of the 2^b levels that the weights
between the 1st and the 99th percentile use (Eq. 8), the share of the weights beyond ±γ, and the signal-to-noise ratio
of the quantized weights; `rescaled` is that of the weights times the best factor for a layer, which batch-norm absorbs.
γ = mean |W| saturates 42 % of the weights at every bit width, as it does of Gaussian ones, so that bits beyond two add
1 dB. That is not why accuracy hardly depends on the bits: with γ = mse it does not either, from 2 to 8 bits, while the
signal-to-noise ratio rises from 9 to 40 dB. Without a scale, nearly all weights lie on the two inner levels of 2 bits,
which makes them binary; of 8 bits they use a quarter of the levels, at 34 dB.

{levels}

```
python -m experiments.levels RUN --out experiments/results/levels
```

## Additions of this project

{additions}

## 85 % of CIFAR-10 with 98,496 bytes

The budget of MLPerf Tiny's image classification, by the integer network, header of the file included; one value for
each seed. The second and the third row were planned when the test accuracies of the row before were known, and the
third has no control from scratch of as many epochs, so it is a network found by trying, and no test of a method.

{headline}
"""

if __name__ == "__main__":
    print(
        page(read_results(RESULTS, {unit.name for unit in plan()}), read_results(SCORES), read_results(LEVELS)), end=""
    )

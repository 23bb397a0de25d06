"""Tables of the page ``notebooks/what_held_up.md`` beside those of its verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import levels
from experiments.claims.plan import SEEDS, plan
from experiments.claims.tables import accuracies, difference, markdown, mean_and_error, of_arm, reference_of


def criterion_table(results: Sequence[Mapping[str, Any]]) -> str:
    """By criterion and share removed: accuracy after each stage, and the difference from random channels."""
    head = ("arm", "seeds", "pruned", "recalibrated", "last epoch", "test", "minus random (95 %)")
    rows = [head, ("---",) * len(head)]
    for arm in _arms("criterion"):
        found = of_arm(results, "criterion", arm)
        stages = [*_before_training(found), [list(r["held_out_accuracy"].values())[-1] for r in found]]
        shown = (f"{100 * np.mean(values):.1f}" if values else "–" for values in stages)
        rows.append((arm, str(len(found)), *shown, *_compared(results, "criterion", arm, "random")))
    return markdown(rows)


def table2(results: Sequence[Mapping[str, Any]]) -> str:
    """By γ, criterion and bits: the test accuracy, and the difference from no scale with SCA."""
    head = ("arm", "seeds", "test", "minus none-sca (95 %)")
    rows = [head, ("---",) * len(head)]
    for arm in _arms("table2"):
        seeds = str(len(of_arm(results, "table2", arm)))
        rows.append((arm, seeds, *_compared(results, "table2", arm, "none-sca")))
    return markdown(rows)


def _before_training(found: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Held-out accuracies right after pruning, and after recalibration; none of a network from scratch."""
    held_out = [result["held_out_accuracy"] for result in found]
    return [[one[stage] for one in held_out if stage in one] for stage in ("pruned", "recalibrated")]


def _arms(question: str) -> list[str]:
    """Those of the plan, in its order."""
    return list(dict.fromkeys(unit.arm for unit in plan() if unit.question == question))


def _compared(results: Sequence[Mapping[str, Any]], question: str, arm: str, reference: str) -> tuple[str, str]:
    """The test accuracy of an arm with its standard error, and its paired difference, if of all seeds.

    Not of arms that were trained on different processors: their dense networks differ too.
    """
    other = reference_of(arm, reference, _arms(question))
    assert other is not None
    runs = [of_arm(results, question, one) for one in (arm, other)]
    if not runs[0]:
        return "not yet run", "–"
    own = mean_and_error(list(accuracies(runs[0]).values()))
    processors = {one.get("processor") for of_one in runs for one in of_one}
    if arm == other or len(processors) > 1 or any(len(of_one) < len(SEEDS) for of_one in runs):
        return own, "–"
    found = difference(*map(accuracies, runs))
    return own, f"{found.mean:+.2f} ± {found.half_width:.2f}"


def score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """By criterion: how stable its scores are, in the mean over networks."""
    head = ("cosine, least", "cosine", "permuted", "Spearman", "Jaccard", "permuted", "same as exact")
    keys = ("cosine_least", "cosine", "cosine_permuted", "spearman", "jaccard", "jaccard_permuted", "jaccard_exact")
    rows = [("criterion", *head), ("---",) * (1 + len(head))]
    for name in scores[0]["measures"] if scores else ():
        values = [np.mean([found["measures"][name][key] for found in scores]) for key in keys]
        rows.append((name, *(f"{value:.3f}" for value in values)))
    return markdown(rows)


def level_table(used: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> str:
    """By arm of ``gamma``: means over its layers and networks, beside its accuracy."""
    head = ("arm", "networks", "levels used", "saturated", "SNR, dB", "rescaled, dB", "accuracy, %")
    rows = [head, ("---",) * len(head)]
    for arm in _arms("gamma"):
        found = [levels.means(one["layers"]) for one in used if one["name"].startswith(f"gamma.{arm}.")]
        if found:
            correct = list(accuracies(of_arm(results, "gamma", arm)).values())
            shown = f"{np.mean(correct):.2f}" if correct else "–"
            rows.append((arm, str(len(found)), *levels.cells(np.mean(found, 0).tolist()), shown))
    return markdown(rows)

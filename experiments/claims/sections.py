"""Tables of the page ``notebooks/what_held_up.md`` beside those of its verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import levels
from experiments.claims.plan import plan
from experiments.claims.tables import accuracies, difference, markdown, mean_and_error, of_arm

_STAGES = ("pruned", "recalibrated", "finetuned")


def criterion_table(results: Sequence[Mapping[str, Any]]) -> str:
    """By criterion and share removed: accuracy after each stage, and the difference from random channels."""
    head = ("arm", "seeds", "pruned", "recalibrated", "fine-tuned", "test", "less random")
    rows = [head, ("---",) * len(head)]
    for arm in _arms("criterion"):
        found = of_arm(results, "criterion", arm)
        held_out = [
            [100 * r["held_out_accuracy"][stage] for r in found if stage in r["held_out_accuracy"]] for stage in _STAGES
        ]
        shown = [f"{np.mean(values):.1f}" if values else "–" for values in held_out]
        # From scratch there is one stage, whose last epoch stands beside that of fine-tuning.
        if found and not held_out[-1]:
            shown[-1] = f"{np.mean([100 * list(r['held_out_accuracy'].values())[-1] for r in found]):.1f}"
        rows.append((arm, str(len(found)), *shown, *_compared(results, "criterion", arm, f"random-{arm[-2:]}")))
    return markdown(rows)


def table2(results: Sequence[Mapping[str, Any]]) -> str:
    """By γ, criterion and bits: the test accuracy, and the difference from no scale with SCA."""
    head = ("arm", "seeds", "test", "less none-sca")
    rows = [head, ("---",) * len(head)]
    for arm in _arms("table2"):
        seeds = str(len(of_arm(results, "table2", arm)))
        rows.append((arm, seeds, *_compared(results, "table2", arm, f"none-sca-{arm[-1]}")))
    return markdown(rows)


def _arms(question: str) -> list[str]:
    """Those of the plan, in its order."""
    return list(dict.fromkeys(unit.arm for unit in plan() if unit.question == question))


def _compared(results: Sequence[Mapping[str, Any]], question: str, arm: str, reference: str) -> tuple[str, str]:
    """The test accuracy of an arm with its standard error, and its paired difference from another."""
    own, other = (accuracies(of_arm(results, question, one)) for one in (arm, reference))
    if not own:
        return "not yet run", "–"
    if arm == reference or not own.keys() & other.keys():
        return mean_and_error(list(own.values())), "–"
    found = difference(own, other)
    return mean_and_error(list(own.values())), f"{found.mean:+.2f}" + f" ± {found.half_width:.2f}" * (found.pairs > 1)


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

"""Settings of scoring and pruning."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qpsnn_jax.runtime.settings import FrozenMapping, check, setting

CRITERIA = {
    name: f"qpsnn_jax.pruning.scoring:{attribute}"
    for name, attribute in {
        "svs": "svs_criterion",
        "sca": "sca_criterion",
        "magnitude": "magnitude_group_scores",
        "random": "random_group_scores",
    }.items()
}
WEIGHT_CRITERIA = {
    name: f"qpsnn_jax.pruning.masks:{attribute}"
    for name, attribute in {
        "magnitude": "weight_magnitude",
        "rate": "weight_by_rate",
        "gradient": "weight_by_gradient",
        "random": "weight_at_random",
    }.items()
}
_UNITS = {"B": "bytes", "params": "params", "SOPs": "sops"}
_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Pruning:
    """Scoring and pruning.

    Raises:
        ValueError: a field has the wrong type or is out of range; the message names it.
    """

    criterion: str = setting("svs", "criterion that scores the channels", names=CRITERIA)
    ratios: Mapping[str, float] = setting(
        FrozenMapping(), "fraction of channels removed, by label of the network", least=0, below=1
    )
    budget: str | None = setting(
        None,
        "what the pruned network may use, in place of ratios: 98kB, 0.2MSOPs or 60kparams; masks then save more",
    )
    floor: float = setting(0.1, "share of every group of channels that a budget leaves", least=0, most=1)
    comparison: Literal["share", "mean", "max", "rank", "none"] = setting(
        "share", "how scores of different layers are compared under a budget"
    )
    multiple_of: int = setting(
        1, "every layer keeps a multiple of so many channels, or all of them", least=1, most=1_000_000
    )
    rounds: int = setting(
        1, "rounds of pruning with training after each; they share the epochs of finetune", least=1, most=1000
    )
    sparsity: float | None = setting(
        None, "share of single weights that masks remove in each layer, after the channels", least=0, below=1
    )
    n_of_m: str | None = setting(
        None, "weights that masks leave of consecutive input channels, such as 2:4, in place of a sparsity"
    )
    weight_criterion: str = setting("magnitude", "criterion that scores single weights", names=WEIGHT_CRITERIA)
    score_batches: int = setting(5, "batches of training images for the scores", least=1, most=10_000_000)
    score_batch_size: int = setting(128, "images in such a batch", least=1, most=10_000_000)
    # The moments of a sample are noisier than those that training left. Where most inputs of a layer go, they have
    # shifted by far more than that; where few go, by less.
    recalibrate: Literal["auto", "always", "never"] = setting(
        "auto",
        "estimate the moments of batch-norm anew on the images that are scored; auto: where more than half of the "
        "quantized weights are removed",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.budget is not None:
            parse_budget(self.budget)
        if self.n_of_m is not None:
            parse_n_of_m(self.n_of_m)
            if self.sparsity is not None:
                raise ValueError(f"sparsity must be none with an n_of_m, got {self.sparsity:g} and {self.n_of_m}.")

    @property
    def masks(self) -> bool:
        """Whether masks remove single weights."""
        return self.sparsity is not None or self.n_of_m is not None


def parse_budget(text: str, name: str = "budget") -> dict[str, float]:
    """A budget as the keyword of :func:`qpsnn_jax.allocate`: ``"98kB"`` is ``{"bytes": 98_000}``.

    Args:
        text: the budget.
        name: of the setting, for the message.

    Raises:
        ValueError: the text is not a positive number with k, M or G (powers of 1000) or none, and a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kMG]?)(B|params|SOPs)", text.strip())
    amount = float(found[1]) * _PREFIXES[found[2]] if found else 0.0
    if not found or amount <= 0:
        raise ValueError(f"{name} must be a size or a number of operations such as 98kB or 0.2MSOPs, got {text!r}.")
    return {_UNITS[found[3]]: amount}


def parse_n_of_m(text: str) -> tuple[int, int]:
    """``"2:4"`` as ``(2, 4)``.

    Raises:
        ValueError: the text is not two integers 0 < n < m.
    """
    found = re.fullmatch(r"\s*([0-9]{1,9}):([0-9]{1,9})\s*", text)
    n, m = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < n < m:
        raise ValueError(f"n_of_m must be two integers n:m such as 2:4, 0 < n < m, got {text!r}.")
    return n, m

"""Settings of scoring and pruning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qpsnn_jax.runtime.settings import FrozenMapping, check, setting

CRITERIA = ("svs", "sca", "magnitude", "random")


@dataclass(frozen=True)
class Pruning:
    """Scoring and pruning.

    Raises:
        ValueError: a field has the wrong type or is out of range; the message names it.
    """

    criterion: str = setting("svs", "what scores the channels, a Criterion", names=CRITERIA)
    ratios: Mapping[str, float] = setting(
        FrozenMapping(), "share of channels removed, by the labels of the network", least=0, below=1
    )
    score_batches: int = setting(5, "batches of training images that scores are computed on", least=1, most=10_000_000)
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

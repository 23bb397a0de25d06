"""Settings of a run as a whole."""

from dataclasses import dataclass
from typing import Literal

from qpsnn_jax.runtime.settings import check, setting


@dataclass(frozen=True)
class RunSettings:
    """Seed, checkpoints and devices.

    Raises:
        ValueError: a field has the wrong type or is out of range; the message names it.
    """

    # Fine-tuning and the controls use the next seeds, which must fit into 32 bits too.
    seed: int = setting(0, "seed of the weights, the order of the images and the augmentation", least=0, most=2**31 - 3)
    checkpoint_epochs: int = setting(5, "epochs between checkpoints", least=1, most=1_000_000)
    checkpoint_steps: int | None = setting(
        None, "steps between checkpoints within an epoch; none: only after epochs", least=1, most=2**31 - 1
    )
    precision: Literal["exact", "auto", "fast"] = setting(
        "auto",
        "exact: the same program on every machine; auto: the fastest of this one, which may round otherwise; "
        "fast: gradients in bfloat16 too, where that is faster",
    )
    fsdp: bool = setting(False, "shard weights and optimizer state over the devices (fully sharded data parallel)")

    def __post_init__(self) -> None:
        check(self)

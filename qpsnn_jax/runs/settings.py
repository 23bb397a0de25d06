"""How a run is done, as settings."""

from dataclasses import dataclass
from typing import Literal

from qpsnn_jax.runtime.settings import check, setting


@dataclass(frozen=True)
class RunSettings:
    """Seed, checkpoints and devices.

    Raises:
        ValueError: a field of the wrong type or out of range, naming it.
    """

    # Fine-tuning and the controls use the seeds after it, which must fit 32 bits too.
    seed: int = setting(0, "of the weights, the order of the images and the augmentation", least=0, most=2**31 - 3)
    checkpoint_epochs: int = setting(5, "epochs between checkpoints", least=1, most=1_000_000)
    checkpoint_steps: int | None = setting(
        None, "steps between checkpoints within an epoch; none: there are none", least=1, most=2**31 - 1
    )
    precision: Literal["exact", "auto"] = setting(
        "auto", "exact: the same program on every machine; auto: gradients may be rounded where that is faster"
    )
    fsdp: bool = setting(False, "shard weights and optimizer state over the devices (fully sharded data parallel)")

    def __post_init__(self) -> None:
        check(self)

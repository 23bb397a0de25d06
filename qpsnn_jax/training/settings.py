"""Settings of training; fine-tuning has the same."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qpsnn_jax.pruning.settings import parse_budget
from qpsnn_jax.runtime.settings import FrozenMapping, check, setting

_LARGEST = 1e38  # about the largest float32


@dataclass(frozen=True)
class Training:
    """Settings of a training: its length, optimizer and loss.

    Raises:
        ValueError: a field has the wrong type or is out of range; the message names it.
    """

    epochs: int = setting(300, "passes over the training set", least=0, most=1_000_000)
    batch_size: int = setting(256, "images in a step", least=1, most=10_000_000)
    optimizer: Literal["sgd", "adam"] = setting("sgd", "SGD with Nesterov momentum, or Adam")
    learning_rate: float = setting(0.1, "highest learning rate of the cosine schedule", above=0, most=_LARGEST)
    momentum: float = setting(0.9, "momentum of SGD", least=0, below=1)
    weight_decay: float = setting(1e-5, "L2 decay of the convolutions' weights", least=0, most=_LARGEST)
    scale_lr: float = setting(1.0, "multiplies the learning rate of learned γ, τ and θ", above=0, most=_LARGEST)
    warmup_epochs: float = setting(0.0, "epochs of linear rise of the learning rate", least=0, most=1_000_000)
    clip_norm: float | None = setting(None, "largest global norm of the gradient", above=0, most=_LARGEST)
    loss: Literal["cross_entropy", "tet"] = setting("cross_entropy", "loss on the mean output, or at every step (TET)")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", least=0, below=1)
    sops_penalty: float = setting(
        0.0, "added to the loss for every million synaptic operations of an image", least=0, most=_LARGEST
    )
    sops_target: str | None = setting(
        None, "synaptic operations of an image that training keeps to by their price in the loss, such as 0.2MSOPs"
    )
    sops_rate: float = setting(
        0.001, "rise of that price in a step that takes twice the target", above=0, most=_LARGEST
    )
    distill: str | None = setting(
        None,
        "teacher: a stage of the run such as quantized, the directory of a run, a stage or a network, or the name of a "
        "pretrained one",
    )
    distill_weight: float = setting(0.5, "share of the loss that the teacher's outputs take", least=0, most=1)
    distill_temperature: float = setting(2.0, "softens the outputs of network and teacher", above=0, most=_LARGEST)
    distill_membranes: Mapping[str, float] = setting(
        FrozenMapping(), "weights of the distance of membranes from the teacher's, by neurons", least=0
    )
    timesteps_schedule: str | None = setting(
        None, "time steps by shares of the epochs, the last the network's: 1:0.7,2 has 70 % of them at T = 1"
    )
    ema_decay: float | None = setting(None, "decay of a moving average of the weights", above=0, below=1)
    # Averaged moments are not those of a network with averaged weights, least of all if these are quantized.
    recalibrate_images: int = setting(
        0,
        "training images, in whole batches, on which batch-norm is recalibrated after the last epoch, for averaged "
        "weights; 0: it is not",
        least=0,
        most=10_000_000,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.distill is None and self.distill_membranes:
            raise ValueError("distill_membranes needs a teacher; name one with distill.")
        _ = self.schedule, self.target
        if self.sops_target is not None and self.sops_penalty:
            raise ValueError("sops_penalty must be 0 with a sops_target, which finds the price itself.")

    @property
    def target(self) -> float | None:
        """The number of ``sops_target``."""
        if self.sops_target is None:
            return None
        found = parse_budget(self.sops_target, name="sops_target")
        if "sops" not in found:
            raise ValueError(f"sops_target must be a number of operations such as 0.2MSOPs, got {self.sops_target!r}.")
        return found["sops"]

    @property
    def schedule(self) -> tuple[int, ...]:
        """The number of time steps of every epoch; empty where it is the network's in all of them."""
        return () if self.timesteps_schedule is None else timesteps_by_epoch(self.timesteps_schedule, self.epochs)


def timesteps_by_epoch(schedule: str, epochs: int) -> tuple[int, ...]:
    """The number of time steps T of every epoch.

    Args:
        schedule: entries ``T:share`` in order, separated by commas. A share is a fraction of the epochs, in (0, 1]; the
            last entry has none and takes the rest, or the shares add up to 1.
        epochs: how many, 0 or more.

    Returns:
        One T per epoch; that of an entry begins at the epoch nearest to the sum of the shares before it.

    Raises:
        ValueError: the text is not a schedule, or one of its entries gets no epoch.
    """
    entries = [re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d*\.?\d+)\s*)?", entry) for entry in schedule.split(",")]
    steps = [int(entry[1]) for entry in entries if entry]
    shares = [float(entry[2]) for entry in entries if entry and entry[2]]
    rest = 1 - sum(shares)
    # Either all entries have shares, which leave nothing, or only the last one has none.
    whole = len(shares) == len(entries) and math.isclose(rest, 0, abs_tol=1e-9)
    partial = len(shares) == len(entries) - 1 and entries[-1] and not entries[-1][2] and rest > 0
    if not all(entries) or min(steps, default=0) < 1 or min(shares, default=1) <= 0 or not (whole or partial):
        raise ValueError(
            "timesteps_schedule must be time steps with shares of the epochs that add up to 1, the last one without "
            f"its share, such as 1:0.7,2, got {schedule!r}."
        )
    ends = [round(epochs * sum(shares[:i])) for i in range(1, len(entries))] + [epochs]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if epochs and min(counts) < 1:
        raise ValueError(
            f"timesteps_schedule {schedule!r} gives T = {steps[counts.index(min(counts))]} no epoch of {epochs}; "
            "train for more epochs or set it to none."
        )
    return tuple(t for t, number in zip(steps, counts, strict=True) for _ in range(number))

"""Settings of training; fine-tuning has the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    distill: str | None = setting(
        None, "teacher: a stage of the run such as quantized, or the directory of a run, a stage or a network"
    )
    distill_weight: float = setting(0.5, "share of the loss that the teacher's outputs take", least=0, most=1)
    distill_temperature: float = setting(2.0, "softens the outputs of network and teacher", above=0, most=_LARGEST)
    distill_membranes: Mapping[str, float] = setting(
        FrozenMapping(), "weights of the distance of membranes from the teacher's, by neurons", least=0
    )
    ema_decay: float | None = setting(None, "decay of a moving average of the weights", above=0, below=1)

    def __post_init__(self) -> None:
        check(self)

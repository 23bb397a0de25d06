"""Configs with a name."""

import dataclasses
from typing import NamedTuple

from qpsnn_jax.data.settings import DataSettings
from qpsnn_jax.model.settings import NetworkSettings
from qpsnn_jax.pruning.settings import Pruning
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.training.settings import Training


class Preset(NamedTuple):
    """A config and one line of help."""

    help: str
    config: Config


def _then(train: Training, **changes: object) -> Training:
    """Fine-tuning as training, with some settings changed."""
    return dataclasses.replace(train, **changes)  # pyright: ignore[reportArgumentType]


_DIGITS = Training(
    epochs=45,
    batch_size=48,
    optimizer="adam",
    learning_rate=0.015,
    warmup_epochs=1.0,
    label_smoothing=0.1,
    ema_decay=0.97,
)
# Table 8 of the paper.
_PAPER = Training(epochs=300, batch_size=256, optimizer="sgd", learning_rate=0.1)
_TINY = Training(epochs=12, batch_size=64, optimizer="adam", learning_rate=0.01, warmup_epochs=1.0)
_NMNIST = Training(epochs=30, batch_size=25, optimizer="adam", learning_rate=0.005, warmup_epochs=1.0)

_DIGITS_RUN = Config(
    network=NetworkSettings(width=0.125, ste="plain"),
    data=DataSettings("digits", degrees=10.0, scale=0.1, translate=0.08),
    train=_DIGITS,
    prune=Pruning(ratios={"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.5}),
    finetune=_then(_DIGITS, epochs=35, learning_rate=0.0075),
    run=RunSettings(checkpoint_epochs=25),
)

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "2-bit ResNet20 of 1/8 width on the UCI digits that come with the package; two minutes on 2 cores", _DIGITS_RUN
    ),
    # Chosen on held-out training images: experiments/README.md.
    "digits_plus": Preset(
        "in as many bytes: ternary under a budget, residual branches that start small, a teacher in fine-tuning",
        dataclasses.replace(
            _DIGITS_RUN,
            network=dataclasses.replace(_DIGITS_RUN.network, levels=3, residual_scale=0.25),
            prune=Pruning(budget="36.8kB"),
            finetune=_then(_DIGITS_RUN.finetune, distill="quantized"),
        ),
    ),
    "cifar10": Preset(
        "the paper's 2-bit ResNet20 on CIFAR-10, pruned to 6.22M weights; for a GPU",
        Config(
            data=DataSettings("cifar10", crop_padding=4, flip=True, autoaugment=True, cutout=16),
            train=_PAPER,
            prune=Pruning(ratios={"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.6}),
            finetune=_then(_PAPER, epochs=150, optimizer="adam", learning_rate=0.001),
        ),
    ),
    "cifar10-tiny": Preset(
        "2-bit ResNet20 of 1/8 width on 3,000 images of CIFAR-10; minutes on 2 cores",
        Config(
            network=NetworkSettings(width=0.125, ste="plain"),
            data=DataSettings("cifar10", train_examples=3000, test_examples=1000, crop_padding=4, flip=True),
            train=_TINY,
            prune=Pruning(ratios={"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.5}),
            finetune=_then(_TINY, epochs=6, learning_rate=0.005),
            run=RunSettings(checkpoint_epochs=1),
        ),
    ),
    "nmnist": Preset(
        "2-bit VGGSNN of 1/8 width on N-MNIST; minutes on 2 cores for some hundred recordings",
        Config(
            network=NetworkSettings("vggsnn", width=0.125, timesteps=5, ste="plain"),
            data=DataSettings("nmnist", roll=2),
            train=_NMNIST,
            prune=Pruning(ratios={"early": 0.3, "late": 0.4}, score_batch_size=100),
            finetune=_then(_NMNIST, epochs=15, learning_rate=0.003),
        ),
    ),
}

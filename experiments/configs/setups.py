"""The training set-ups of the paper's Table 8, shared by the configs of Table 1: the preset ``cifar10``, varied."""

from collections.abc import Mapping
from dataclasses import replace

from qpsnn_jax import Config
from qpsnn_jax.data.settings import DataSettings
from qpsnn_jax.model.settings import NetworkSettings
from qpsnn_jax.pruning.settings import Pruning
from qpsnn_jax.runs.presets import PRESETS
from qpsnn_jax.runs.settings import RunSettings

PAPER = PRESETS["cifar10"].config


def cifar(data: str, network: str, timesteps: int, ratios: Mapping[str, float]) -> Config:
    """CIFAR-10 or CIFAR-100 at 32×32: pad-crop, flip, AutoAugment, Cutout 16."""
    return replace(
        PAPER,
        network=NetworkSettings(network, timesteps=timesteps),
        data=replace(PAPER.data, name=data),
        prune=Pruning(ratios=ratios),
    )


def tiny_imagenet(network: str, ratios: Mapping[str, float]) -> Config:
    """TinyImageNet at 64×64, T = 4."""
    return replace(
        PAPER,
        network=NetworkSettings(network, timesteps=4),
        data=DataSettings("tiny_imagenet", crop_padding=4, flip=True),
        prune=Pruning(ratios=ratios),
    )


def imagenet(network: str, bits: int, ratios: Mapping[str, float]) -> Config:
    """ImageNet at 224×224, T = 4: 320 epochs, then 200 of fine-tuning with SGD 0.05."""
    return replace(
        PAPER,
        network=NetworkSettings(network, timesteps=4, bits=bits),
        data=DataSettings("imagenet2012", flip=True, workers=16),
        train=replace(PAPER.train, epochs=320),
        prune=Pruning(ratios=ratios),
        finetune=replace(PAPER.train, epochs=200, learning_rate=0.05),
        run=RunSettings(checkpoint_epochs=1, checkpoint_steps=1000),
    )


def dvs(ratios: Mapping[str, float]) -> Config:
    """CIFAR10-DVS at 48×48, T = 10, batch 64; flips, rolls and rotations as is usual, the paper names none."""
    return replace(
        PAPER,
        network=NetworkSettings("vggsnn", timesteps=10),
        data=DataSettings("cifar10_dvs", roll=5, flip=True, degrees=15.0),
        train=replace(PAPER.train, batch_size=64),
        prune=Pruning(ratios=ratios),
        finetune=replace(PAPER.finetune, batch_size=64),
    )

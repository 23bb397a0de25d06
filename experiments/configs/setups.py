"""The training set-ups of the paper's Table 8, shared by the configs of Table 1."""

from collections.abc import Mapping
from typing import Any

from qpsnn_jax import Config

# Table 8: SGD 0.1 for 300 epochs, Adam 0.001 for 150 of fine-tuning, batch 256, cosine per epoch.
_IMAGES: dict[str, Any] = {
    "bits": 2,
    "epochs": 300,
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "finetune_epochs": 150,
    "finetune_optimizer": "adam",
    "finetune_learning_rate": 0.001,
    "crop_padding": 4,
    "flip": True,
    "cutout": 16,
    "checkpoint_epochs": 5,
}


def cifar(data: str, network: str, timesteps: int, ratios: Mapping[str, float]) -> Config:
    """CIFAR-10 or CIFAR-100 at 32×32: pad-crop, flip, AutoAugment, Cutout 16."""
    return Config(data=data, network=network, timesteps=timesteps, ratios=ratios, autoaugment=True, **_IMAGES)


def tiny_imagenet(network: str, ratios: Mapping[str, float]) -> Config:
    """TinyImageNet at 64×64, T = 4."""
    return Config(data="tiny_imagenet", network=network, timesteps=4, ratios=ratios, **{**_IMAGES, "cutout": 0})


def imagenet(network: str, ratios: Mapping[str, float]) -> Config:
    """ImageNet at 224×224, T = 4: 320 epochs, then 200 of fine-tuning with SGD 0.05."""
    changes: dict[str, Any] = {
        "epochs": 320,
        "finetune_epochs": 200,
        "finetune_optimizer": "sgd",
        "finetune_learning_rate": 0.05,
        "crop_padding": 0,
        "cutout": 0,
        "workers": 16,
        "checkpoint_epochs": 1,
        "checkpoint_steps": 1000,
    }
    return Config(data="imagenet2012", network=network, timesteps=4, ratios=ratios, **{**_IMAGES, **changes})


def dvs(ratios: Mapping[str, float]) -> Config:
    """CIFAR10-DVS at 48×48, T = 10, batch 64; flips, rolls and rotations as is usual, the paper names none."""
    changes: dict[str, Any] = {"batch_size": 64, "crop_padding": 0, "roll": 5, "degrees": 15.0, "cutout": 0}
    return Config(data="cifar10_dvs", network="vggsnn", timesteps=10, ratios=ratios, **{**_IMAGES, **changes})

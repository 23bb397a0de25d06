"""Settings of augmentations: frozen records, hashable, so that they can be static arguments under jit."""

import math
from dataclasses import dataclass

from qpsnn_jax.runtime.checks import integer


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of images. The defaults change nothing.

    Attributes:
        crop_padding: zeros added to every side before each image is cropped back to its size at a random place, in
            pixels (:func:`~qpsnn_jax.data.augment.images.random_crop`).
        flip: mirror half of the images left to right. Not for digits or letters.
        cutout: side of the square that :func:`~qpsnn_jax.data.augment.images.cutout` blanks, in pixels.
        degrees: largest rotation of :func:`~qpsnn_jax.data.augment.images.random_affine`, in degrees.
        scale: largest relative change of size, below 1.
        translate: largest fractional-pixel translation, in pixels.
        autoaugment: the CIFAR-10 policy of AutoAugment, on uint8 pixels
            (:func:`~qpsnn_jax.data.augment.images.normalize_and_augment` applies it).

    Raises:
        ValueError: a value that is negative, not finite, or too large.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    degrees: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    autoaugment: bool = False

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 0))
        check_affine(self.degrees, self.scale, self.translate)
        _check_switches(flip=self.flip, autoaugment=self.autoaugment)


@dataclass(frozen=True)
class EventAugmentation:
    """Augmentations of event frames. The defaults change nothing.

    Attributes:
        flip: mirror half of the recordings left to right. Not for digits or letters.
        roll: largest circular shift of :func:`~qpsnn_jax.data.augment.frames.random_roll`, in pixels; 5 is usual for
            CIFAR10-DVS at 48×48.
        degrees: largest rotation in degrees, bilinear, zeros outside; 15 to 30 are usual.

    Raises:
        ValueError: a value that is negative, not finite, or too large.
    """

    flip: bool = False
    roll: int = 0
    degrees: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "roll", integer("roll", self.roll, 0))
        check_affine(self.degrees, 0.0, 0.0)
        _check_switches(flip=self.flip)


def check_affine(degrees: float, scale: float, translate: float) -> None:
    """Check the limits of a random affine map.

    Raises:
        ValueError: a limit that is negative, not finite, or too large.
    """
    if not 0 <= degrees <= 180:
        raise ValueError(f"degrees must be between 0 and 180, got {degrees!r}.")
    if not 0 <= scale < 1:
        raise ValueError(f"scale must be at least 0 and below 1, got {scale!r}.")
    if not (translate >= 0 and math.isfinite(translate)):
        raise ValueError(f"translate must be a finite number of pixels, 0 or more, got {translate!r}.")


def _check_switches(**switches: bool) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}.")

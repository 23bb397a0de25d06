"""Augmentation of event frames, as pure functions of a key and a batch, to run inside the jitted training step.

Every recording gets its own draw, and all of its time steps and both polarities the same one: they are folded into the
channels of an image, so that :mod:`qpsnn_jax.data.augment.images` can transform them together.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.data.augment.images import Augmentation, augment


@dataclass(frozen=True)
class EventAugmentation:
    """Which augmentations are on; hashable, so it can be a static argument. The defaults leave frames as they are.

    Attributes:
        flip: mirror half of the recordings left to right. Not for digits or letters.
        roll: largest circular shift in pixels, of :func:`random_roll`; 5 is usual for CIFAR10-DVS at 48×48.
        degrees: largest rotation in degrees, bilinear, zeros from outside; 15 to 30 are usual.

    Raises:
        ValueError: a value that is negative, not finite, or too large.
    """

    flip: bool = False
    roll: int = 0
    degrees: float = 0.0

    def __post_init__(self):
        _check_pixels("roll", self.roll)
        self.images()

    def images(self) -> Augmentation:
        """Give the part that :mod:`qpsnn_jax.data.augment.images` does."""
        return Augmentation(flip=self.flip, degrees=self.degrees)


def augment_frames(key: Array, frames: Array, augmentation: EventAugmentation) -> Array:
    """Apply what is on, in a fixed order: rotation, flip, roll.

    Each kind has its own key, so turning one on or off does not change what the others draw.

    Args:
        key: a JAX random key.
        frames: event counts, floating, shape ``b t h w c``.
        augmentation: what to apply; static under jit.

    Returns:
        Frames of the same shape and dtype; the very same values where nothing is on. Flip and roll move whole counts,
        rotation spreads them over neighbours.

    Raises:
        ValueError: frames that are not floating ``b t h w c``.

    References:
        Li, Kim, Park, Geller and Panda, Neuromorphic Data Augmentation for Training Spiking Neural Networks, ECCV 2022.
    """
    _check_frames(frames)
    image_key, roll_key = jax.random.split(key)
    batch, steps, height, width, channels = frames.shape
    images = jnp.moveaxis(frames, 1, 3).reshape(batch, height, width, steps * channels)
    images = augment(image_key, images, augmentation.images())
    frames = jnp.moveaxis(images.reshape(batch, height, width, steps, channels), 3, 1)
    return random_roll(roll_key, frames, augmentation.roll) if augmentation.roll else frames


def random_roll(key: Array, frames: Array, pixels: int) -> Array:
    """Shift each recording round the borders: what leaves on one side comes in on the other.

    Args:
        key: a JAX random key.
        frames: event counts, floating, shape ``b t h w c``.
        pixels: largest shift p; rows and columns move independently, uniformly over ``{-p, …, p}``.

    Returns:
        Frames of the same shape and dtype, and with the same sum for each step and channel.

    Raises:
        ValueError: ``pixels`` negative or not a whole number, or frames that are not floating ``b t h w c``.
    """
    _check_frames(frames)
    _check_pixels("pixels", pixels)
    shifts = jax.random.randint(key, (len(frames), 2), -pixels, pixels + 1)
    return jax.vmap(lambda recording, shift: jnp.roll(recording, shift, axis=(1, 2)))(frames, shifts)


def _check_frames(frames: Array) -> None:
    if frames.ndim != 5 or not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"frames must be floating b t h w c, got {frames.dtype} {frames.shape}.")


def _check_pixels(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of pixels, 0 or more, got {value!r}.")

"""Augmentation of event frames, as pure functions of a key and a batch, to run inside the jitted training step.

Each recording has its own random draw, shared by all of its time steps and both polarities: they are folded into the
channels of an image, which :mod:`qpsnn_jax.data.augment.images` transforms as one.
"""

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.data.augment.images import augment
from qpsnn_jax.data.augment.records import Augmentation, EventAugmentation
from qpsnn_jax.runtime.checks import integer


def augment_frames(key: Array, frames: Array, augmentation: EventAugmentation) -> Array:
    """Apply the augmentations that are on, in a fixed order: rotation, flip, roll.

    Each kind has its own key, so turning one on or off does not change what the others draw.

    Args:
        key: a JAX random key.
        frames: event counts, floating, shape ``b t h w c``.
        augmentation: what to apply; static under jit.

    Returns:
        Frames of the same shape and dtype; unchanged if nothing is on. Flip and roll move counts, rotation
        interpolates between them.

    Raises:
        ValueError: frames that are not floating ``b t h w c``.

    References:
        Li, Kim, Park, Geller and Panda, Neuromorphic Data Augmentation for Training Spiking Neural Networks, ECCV 2022.
    """
    _check_frames(frames)
    image_key, roll_key = jax.random.split(key)
    batch, steps, height, width, channels = frames.shape
    images = jnp.moveaxis(frames, 1, 3).reshape(batch, height, width, steps * channels)
    images = augment(image_key, images, Augmentation(flip=augmentation.flip, degrees=augmentation.degrees))
    frames = jnp.moveaxis(images.reshape(batch, height, width, steps, channels), 3, 1)
    return random_roll(roll_key, frames, augmentation.roll) if augmentation.roll else frames


def random_roll(key: Array, frames: Array, pixels: int) -> Array:
    """Shift each recording circularly: what leaves on one side enters on the other.

    Args:
        key: a JAX random key.
        frames: event counts, floating, shape ``b t h w c``.
        pixels: largest shift p; rows and columns move independently, uniformly over ``{-p, …, p}``.

    Returns:
        Frames of the same shape and dtype, and with the same sum for each step and channel.

    Raises:
        ValueError: ``pixels`` is negative or not an integer, or frames that are not floating ``b t h w c``.
    """
    _check_frames(frames)
    pixels = integer("pixels", pixels, 0)
    shifts = jax.random.randint(key, (len(frames), 2), -pixels, pixels + 1)
    return jax.vmap(lambda recording, shift: jnp.roll(recording, shift, axis=(1, 2)))(frames, shifts)


def _check_frames(frames: Array) -> None:
    if frames.ndim != 5 or not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"frames must be floating b t h w c, got {frames.dtype} {frames.shape}.")

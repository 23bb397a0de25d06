"""Standardized images from pixels."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def normalize(images: Array | np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    r"""Standardized floating images, :math:`(x / 255 - mean) / std` for each channel.

    Augmentation comes after this, so that the zeros it fills in are the mean colour of the training set.

    Args:
        images: pixels, uint8, shape ``… c``.
        mean: mean of each channel on the [0, 1] scale, c numbers.
        std: standard deviation of each channel on the [0, 1] scale, c positive numbers.

    Returns:
        float32 images of the same shape, of zero mean and unit variance over the training set.

    Raises:
        ValueError: images that are not uint8 (already normalized, perhaps), or statistics that do not fit them.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 pixels to be normalized, got {images.dtype}; normalize only once.")
    channels = images.shape[-1]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(f"mean and std need {channels} numbers, std positive, got mean={mean} and std={std}.")
    shape = (1,) * (images.ndim - 1) + (channels,)
    center, spread = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (mean, std))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - center) / spread

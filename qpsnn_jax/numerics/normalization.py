"""Standardized images from pixels."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array


def normalize(images: Array | np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    r"""Standardized floating images, :math:`(x / 255 - mean) / std` for each channel.

    Augmentation comes after normalization, so that its fill value, zero, is the mean colour of the training set.

    Args:
        images: pixels, uint8, shape ``… c``.
        mean: mean of each channel on the [0, 1] scale, c numbers.
        std: standard deviation of each channel on the [0, 1] scale, c positive numbers.

    Returns:
        float32 images of the same shape, of zero mean and unit variance over the training set.

    Raises:
        ValueError: the images are not uint8 (perhaps already normalized), or the statistics do not match them.
    """
    images = images if hasattr(images, "dtype") else np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 pixels to be normalized, got {images.dtype}; normalize only once.")
    channels = images.shape[-1]
    check_statistics(mean, std, channels)
    shape = (1,) * (images.ndim - 1) + (channels,)
    center, spread = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (mean, std))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - center) / spread


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Check mean and standard deviation of a normalization.

    Args:
        mean, std: one number for each channel.
        channels: of the pixels.

    Raises:
        ValueError: a wrong number of values, a value that is not finite, or a standard deviation that is not positive.
    """
    center, spread = (np.asarray(values, np.float64) for values in (mean, std))
    fit = center.shape == spread.shape == (channels,)
    if not fit or not np.isfinite([center, spread]).all() or spread.min() <= 0:
        raise ValueError(
            f"mean and std need {channels} finite numbers in a sequence, std positive, got mean={mean} and std={std}."
        )

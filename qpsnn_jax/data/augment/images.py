"""Augmentation as pure functions of a key and a batch, to run inside the jitted training step.

Images are normalized before they are augmented (:func:`qpsnn_jax.normalize`), so the zeros in pixels that a crop,
a cutout or a rotation uncovers are the mean colour of the training set. Each image of a batch has its own random draw.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from qpsnn_jax.data.augment.autoaugment import autoaugment
from qpsnn_jax.data.augment.records import Augmentation, check_affine
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runtime.checks import integer


def normalize_and_augment(
    key: Array, images: Array, augmentation: Augmentation, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Augmented, normalized images from pixels: AutoAugment if it is on, then normalize, then :func:`augment`.

    Args:
        key: a JAX random key.
        images: pixels, uint8, shape ``b h w c``; three channels for AutoAugment.
        augmentation: what to apply; static under jit.
        mean: mean of each channel on the [0, 1] scale.
        std: standard deviation of each channel on the [0, 1] scale.

    Returns:
        float32 images of the same shape.

    Raises:
        ValueError: images that are not uint8 pixels of the right shape.
    """
    if augmentation.autoaugment:
        # The keys of :func:`augment` are those of 0 to 3, and draw the same numbers as without it.
        images = autoaugment(jax.random.fold_in(key, 4), images)
    return augment(key, normalize(images, mean, std), augmentation)


def augment(key: Array, images: Array, augmentation: Augmentation) -> Array:
    """Augment normalized images, in a fixed order: affine, crop, flip, cutout (not AutoAugment).

    Cutout comes last so that its square is not moved out of the image. Each kind has its own key, so turning one on or
    off does not change what the others draw.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        augmentation: what to apply; static under jit.

    Returns:
        Images of the same shape and dtype; unchanged if nothing is on.

    Raises:
        ValueError: images that are not floating ``b h w c``.
    """
    _check_images(images)
    affine_key, crop_key, flip_key, cutout_key = jax.random.split(key, 4)
    on = augmentation
    if on.degrees or on.scale or on.translate:
        images = random_affine(affine_key, images, on.degrees, on.scale, on.translate)
    if on.crop_padding:
        images = random_crop(crop_key, images, on.crop_padding)
    if on.flip:
        images = random_flip(flip_key, images)
    if on.cutout:
        images = cutout(cutout_key, images, on.cutout)
    return images


def random_crop(key: Array, images: Array, padding: int) -> Array:
    """Pad every side with zeros, then crop each image back to its size at a random place.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        padding: zeros p on each side; rows and columns move independently, uniformly over ``{-p, …, p}``. CIFAR uses 4.

    Returns:
        Cropped images of the same shape and dtype.

    Raises:
        ValueError: ``padding`` is negative or not an integer, or images that are not floating ``b h w c``.
    """
    _check_images(images)
    padding = integer("padding", padding, 0)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

    def crop(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], jnp.zeros_like(start[0])), images.shape[1:])

    return jax.vmap(crop)(padded, starts)


def random_flip(key: Array, images: Array) -> Array:
    """Mirror each image left to right with probability one half.

    Args:
        key: a JAX random key.
        images: floating, shape ``b h w c``.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: images that are not floating ``b h w c``.
    """
    _check_images(images)
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def cutout(key: Array, images: Array, size: int) -> Array:
    """Set one square of each image to zero, its centre uniform over the pixels and clipped at the borders.

    The square covers rows ``y - size//2`` up to, not including, ``y - size//2 + size``, and columns likewise; between a
    quarter of it and all of it lies within the image.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        size: side of the square in pixels; CIFAR-10 uses 16.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: ``size`` is negative or not an integer, or images that are not floating ``b h w c``.

    References:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
    """
    _check_images(images)
    size = integer("size", size, 0)
    batch, height, width, _ = images.shape

    def covered(key: Array, length: int) -> Array:
        first = jax.random.randint(key, (batch, 1), 0, length) - size // 2
        position = jnp.arange(length)[None]
        return (position >= first) & (position < first + size)

    row_key, column_key = jax.random.split(key)
    square = covered(row_key, height)[:, :, None, None] & covered(column_key, width)[:, None, :, None]
    return jnp.where(square, 0, images)


def random_affine(key: Array, images: Array, degrees: float, scale: float, translate: float) -> Array:
    r"""Rotate, scale and translate each image a little, by bilinear sampling, with zeros outside of it.

    The output at p is the input at :math:`q = c + R(φ)^{-1} (p - c - t) / σ` with c the centre of the image,
    :math:`φ ∈ [-degrees, degrees]`, :math:`σ ∈ [1 - scale, 1 + scale]`, :math:`t ∈ [-translate, translate]^2`, all
    uniform.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        degrees: largest rotation, 0 to 180 degrees.
        scale: largest relative change of size, 0 up to but not including 1.
        translate: largest translation in pixels, a real number.

    Returns:
        Images of the same shape and dtype, sampled in float32; unchanged if all three are zero.

    Raises:
        ValueError: a value out of its range, or images that are not floating ``b h w c``.
    """
    _check_images(images)
    check_affine(degrees, scale, translate)
    batch, height, width, _ = images.shape
    angle_key, scale_key, move_key = jax.random.split(key, 3)
    angles = jnp.deg2rad(jax.random.uniform(angle_key, (batch,), jnp.float32, minval=-degrees, maxval=degrees))
    scales = jax.random.uniform(scale_key, (batch,), jnp.float32, minval=1 - scale, maxval=1 + scale)
    moves = jax.random.uniform(move_key, (batch, 2), jnp.float32, minval=-translate, maxval=translate)

    def sample(image: Array, angle: Array, scale: Array, move: Array) -> Array:
        y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2 - move[0]
        x = jnp.arange(width, dtype=jnp.float32)[None] - (width - 1) / 2 - move[1]
        cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
        rows = cos * y + sin * x + (height - 1) / 2
        columns = cos * x - sin * y + (width - 1) / 2
        return jax.vmap(lambda plane: map_coordinates(plane, [rows, columns], order=1), -1, -1)(image)

    return jax.vmap(sample)(images.astype(jnp.float32), angles, scales, moves).astype(images.dtype)


def _check_images(images: Array) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating b h w c (normalize them first), got {images.dtype} {images.shape}.")

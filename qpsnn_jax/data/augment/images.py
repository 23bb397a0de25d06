"""Augmentation as pure functions of a key and a batch, to run inside the jitted training step.

Images are normalized before they are augmented (:func:`qpsnn_jax.data.normalize`), so the zeros that fill what a shift,
a cutout or a rotation uncovers are the mean colour of the training set. Every image of a batch gets its own draw.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from qpsnn_jax.data.augment.autoaugment import autoaugment
from qpsnn_jax.numerics.normalization import normalize


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations are on; hashable, so it can be a static argument. The defaults leave images as they are.

    Attributes:
        shift: largest shift in pixels, of :func:`random_shift`.
        flip: mirror half of the images, :func:`random_flip`. Not for digits or letters.
        cutout: side of the square that :func:`cutout` blanks, in pixels.
        degrees: largest rotation, of :func:`random_affine`, in degrees.
        scale: largest relative change of size, below 1.
        translate: largest fractional-pixel translation, in pixels.
        autoaugment: the CIFAR-10 policy of AutoAugment, on uint8 pixels: :func:`normalize_and_augment` applies it.

    Raises:
        ValueError: a value that is negative, not finite, or too large.
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0
    degrees: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    autoaugment: bool = False

    def __post_init__(self):
        _check_pixels("shift", self.shift)
        _check_pixels("cutout", self.cutout)
        _check_affine(self.degrees, self.scale, self.translate)
        for name in ("flip", "autoaugment"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")


def normalize_and_augment(
    key: Array, images: Array, augmentation: Augmentation, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Turn pixels into augmented, normalized images: AutoAugment if it is on, then normalize, then :func:`augment`.

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
        images = autoaugment(jax.random.fold_in(key, 1), images)  # the others draw as they do without it
    return augment(key, normalize(images, mean, std), augmentation)


def augment(key: Array, images: Array, augmentation: Augmentation) -> Array:
    """Apply what is on for normalized images, in a fixed order: affine, shift, flip, cutout (not AutoAugment).

    Cutout comes last so that its square is not moved out of the image. Each kind has its own key, so turning one on or
    off does not change what the others draw.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        augmentation: what to apply; static under jit.

    Returns:
        Images of the same shape and dtype; the very same values where nothing is on.

    Raises:
        ValueError: images that are not floating ``b h w c``.
    """
    _check_images(images)
    affine_key, shift_key, flip_key, cutout_key = jax.random.split(key, 4)
    on = augmentation
    if on.degrees or on.scale or on.translate:
        images = random_affine(affine_key, images, on.degrees, on.scale, on.translate)
    if on.shift:
        images = random_shift(shift_key, images, on.shift)
    if on.flip:
        images = random_flip(flip_key, images)
    if on.cutout:
        images = cutout(cutout_key, images, on.cutout)
    return images


def random_shift(key: Array, images: Array, pixels: int) -> Array:
    """Pad every side with zeros, then crop each image back to its size at a random place.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        pixels: largest shift p; rows and columns move independently, uniformly over ``{-p, …, p}``. CIFAR uses 4.

    Returns:
        Shifted images of the same shape and dtype.

    Raises:
        ValueError: ``pixels`` negative or not a whole number, or images that are not floating ``b h w c``.
    """
    _check_images(images)
    _check_pixels("pixels", pixels)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

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
    """Blank one square of each image with zeros, its centre uniform over the pixels and clipped at the borders.

    The square covers rows ``y - size//2`` up to, not including, ``y - size//2 + size``, and columns likewise; between a
    quarter of it and all of it lies within the image.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        size: side of the square in pixels; CIFAR-10 uses 16.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: ``size`` negative or not a whole number, or images that are not floating ``b h w c``.

    References:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
    """
    _check_images(images)
    _check_pixels("size", size)
    batch, height, width, _ = images.shape

    def covered(key: Array, length: int) -> Array:
        first = jax.random.randint(key, (batch, 1), 0, length) - size // 2
        position = jnp.arange(length)[None]
        return (position >= first) & (position < first + size)

    row_key, column_key = jax.random.split(key)
    square = covered(row_key, height)[:, :, None, None] & covered(column_key, width)[:, None, :, None]
    return jnp.where(square, 0, images)


def random_affine(key: Array, images: Array, degrees: float, scale: float, translate: float) -> Array:
    r"""Rotate, resize and move each image a little, by bilinear sampling; zeros come in from outside.

    The output at p takes the input at :math:`q = c + R(φ)^{-1} (p - c - t) / σ` with c the centre of the image,
    :math:`φ ∈ [-degrees, degrees]`, :math:`σ ∈ [1 - scale, 1 + scale]`, :math:`t ∈ [-translate, translate]^2`, all
    uniform.

    Args:
        key: a JAX random key.
        images: normalized images, floating, shape ``b h w c``.
        degrees: largest rotation, 0 to 180 degrees.
        scale: largest relative change of size, 0 up to but not including 1.
        translate: largest translation in pixels, not necessarily whole.

    Returns:
        Images of the same shape and dtype, sampled in float32; unchanged where all three are zero.

    Raises:
        ValueError: a value out of its range, or images that are not floating ``b h w c``.
    """
    _check_images(images)
    _check_affine(degrees, scale, translate)
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


def _check_pixels(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of pixels, 0 or more, got {value!r}.")


def _check_affine(degrees: float, scale: float, translate: float) -> None:
    if not 0 <= degrees <= 180:
        raise ValueError(f"degrees must be between 0 and 180, got {degrees!r}.")
    if not 0 <= scale < 1:
        raise ValueError(f"scale must be at least 0 and below 1, got {scale!r}.")
    if not (translate >= 0 and math.isfinite(translate)):
        raise ValueError(f"translate must be a finite number of pixels, 0 or more, got {translate!r}.")

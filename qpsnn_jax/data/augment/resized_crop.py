"""Random-resized crop inside jit: the ImageNet augmentation for images that already lie on the device."""

import math

import jax
import jax.numpy as jnp
from jax import Array

_TRIES = 10  # boxes drawn for each image before the fallback, as is customary


def random_resized_crop(
    key: Array,
    images: Array,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Cut a random box out of each image and resize it to a square.

    Args:
        key: a JAX random key.
        images: floating, shape ``b h w c``.
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area that the box takes, drawn uniformly.
        ratio: smallest and largest width over height, drawn uniformly in its logarithm.

    Returns:
        Images ``b size size c`` of the same dtype, sampled in float32 with :func:`resize_boxes`.

    Raises:
        ValueError: a size or a range that makes no sense, or images that are not floating ``b h w c``.

    References:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015.
    """
    _check_images(images)
    check_crop(size, scale, ratio)
    keys = jax.random.split(key, len(images))
    boxes = jax.vmap(lambda k: _draw(k, images.shape[1], images.shape[2], scale, ratio))(keys)
    return resize_boxes(images, boxes, size)


def resize_boxes(images: Array, boxes: Array, size: int) -> Array:
    """Resize one box of each image to a square, bilinearly and, where it shrinks, with antialiasing.

    It is what Pillow computes for ``resize((size, size), BILINEAR, box=…)``, before rounding: two small matrix
    products for each image.

    Args:
        images: floating, shape ``b h w c``.
        boxes: top, left, height and width in pixels, not necessarily whole, float32 of shape ``b 4``.
        size: side of the result in pixels.

    Returns:
        Images ``b size size c`` of the same dtype, sampled in float32.
    """

    def resize(image: Array, box: Array) -> Array:
        scale = size / box[2:]
        shape = (size, size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -box[:2] * scale, "linear")

    return jax.vmap(resize)(images.astype(jnp.float32), boxes).astype(images.dtype)


def check_crop(size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Refuse a size or ranges that no crop can have.

    Raises:
        ValueError: a size below 1, or a range that is not ordered, finite and positive; scales end at 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, 1 or more, got {size!r}.")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be two shares of the area with 0 < first <= second <= 1, got {scale!r}.")
    if not (0 < ratio[0] <= ratio[1] and math.isfinite(ratio[1])):
        raise ValueError(f"ratio must be two finite numbers with 0 < first <= second, got {ratio!r}.")


def _draw(key: Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Array:
    """Top, left, height and width of one box, whole numbers as float32: the first of ten draws that fits."""
    keys = jax.random.split(key, 3)
    areas = jax.random.uniform(keys[0], (_TRIES,), jnp.float32, *scale) * (height * width)
    ratios = jnp.exp(jax.random.uniform(keys[1], (_TRIES,), jnp.float32, math.log(ratio[0]), math.log(ratio[1])))
    drawn = jnp.round(jnp.stack([jnp.sqrt(areas / ratios), jnp.sqrt(areas * ratios)], axis=-1))
    limits = jnp.asarray([height, width], jnp.float32)
    fits = jnp.all((drawn >= 1) & (drawn <= limits[None]), axis=-1)
    widest = max(ratio[0], min(ratio[1], width / height))
    fallback = jnp.asarray([min(height, round(width / widest)), min(width, round(height * widest))], jnp.float32)
    fitting = jnp.any(fits)
    sides = jnp.where(fitting, drawn[jnp.argmax(fits)], fallback)
    # The fallback is the largest box in the middle; a drawn one lies anywhere.
    corners = jnp.floor(jax.random.uniform(keys[2], (2,), jnp.float32) * (limits - sides + 1))
    return jnp.concatenate([jnp.where(fitting, corners, jnp.floor((limits - sides) / 2)), sides])


def _check_images(images: Array) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating b h w c (normalize them first), got {images.dtype} {images.shape}.")

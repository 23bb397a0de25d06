"""Pillow's image operations inside jit, as data: every operation is one pass of the same three steps.

1. an affine map, nearest pixel, in Pillow's 16-bit fixed point (shear, translate, rotate);
2. a table of 256 values for each channel (invert, solarize, posterize, brightness, contrast, autocontrast, equalize);
3. a blend with the grey or the smoothed image (color, sharpness).

A step that an operation does not use has the parameters of the identity, so operations can be stacked and drawn from at
random, without branches under vmap.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Name = Literal[
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "invert",
    "solarize",
    "posterize",
    "brightness",
    "contrast",
    "autocontrast",
    "equalize",
    "color",
    "sharpness",
]

_TABLES = ("fixed", "contrast", "autocontrast", "equalize")  # how the table of step 2 is computed
_DIFFERENCES = np.arange(-255, 256).astype(np.float32)
_FILL = 128  # value of pixels that an affine map uncovers


class Operation(NamedTuple):
    """Parameters of one operation, or of many with a leading axis.

    Attributes:
        affine: ``x = (a_0·col + a_1·row + a_2) >> 16`` and ``y`` likewise from the last three, int32 of shape ``… 6``.
        values: the new value of each of the 256 old ones, uint8 of shape ``… 256``; where ``table`` is 0.
        table: 0 for ``values``, else 1 contrast, 2 autocontrast, 3 equalize, which depend on the image; int32.
        products: factor times -255, …, 255, for the blend in step 3 or the contrast; float32 of shape ``… 511``.
            Products from a table cannot be fused with the sum that follows, so they round as Pillow's do.
        smooth: blend with the smoothed image rather than the grey one; bool.
    """

    affine: np.ndarray | Array
    values: np.ndarray | Array
    table: np.ndarray | Array
    products: np.ndarray | Array
    smooth: np.ndarray | Array


def operation(name: Name, level: int, sign: int, height: int, width: int) -> Operation:
    """Parameters of an operation.

    Args:
        name: one of :data:`Name`.
        level: magnitude in {0, …, 9}; invert, autocontrast and equalize have none.
        sign: 1 or -1, for the operations that have two directions.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        The parameters, as NumPy arrays.
    """
    amount = sign * level / 9
    old = np.arange(256)
    enhanced = np.float32(1 + 0.9 * amount)
    values = {
        "invert": 255 - old,
        "solarize": np.where(old < 256 * (1 - level / 9), old, 255 - old),
        "posterize": old & -(1 << 8 - round(8 - 4 * level / 9)),
        "brightness": np.minimum(enhanced * old.astype(np.float32), 255),
    }.get(name, old)
    return Operation(
        affine=_affine(name, amount, height, width),
        values=values.astype(np.uint8),
        table=np.asarray(_TABLES.index(name) if name in _TABLES else 0, np.int32),
        products=_DIFFERENCES * (enhanced if name in ("contrast", "color", "sharpness") else np.float32(1)),
        smooth=np.asarray(name == "sharpness"),
    )


def apply(images: Array, operations: Operation) -> Array:
    """Apply its own operation to each image.

    Args:
        images: uint8, shape ``b h w 3``.
        operations: the parameters, with a leading axis ``b``.

    Returns:
        Images of the same shape and dtype. They equal Pillow's, except that autocontrast may be one higher where the
        exact quotient is an integer that Pillow's floating point just misses.
    """
    return jax.vmap(_apply)(images, operations)


def _apply(image: Array, operation: Operation) -> Array:
    image = _move(image, jnp.asarray(operation.affine))
    grey = _grey(image)
    tables = jnp.stack(_image_tables(image, grey, operation))
    image = tables[operation.table][image.astype(jnp.int32), jnp.arange(3)[None, None]]
    other = jnp.where(operation.smooth, _smoothed(image), _grey(image)[..., None])
    # Contrast blends inside its table already.
    products = jnp.where(operation.table == 0, operation.products, jnp.asarray(_DIFFERENCES))
    return _blend(other, image.astype(jnp.int32), products).astype(jnp.uint8)


def _move(image: Array, affine: Array) -> Array:
    height, width, _ = image.shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    x, y = ((a[0] * columns + a[1] * rows + a[2]) >> 16 for a in (affine[:3], affine[3:]))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    moved = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], moved, jnp.uint8(_FILL))


def _image_tables(image: Array, grey: Array, operation: Operation) -> list[Array]:
    """Make the four tables of :data:`_TABLES`, int32 of shape ``256 3``."""
    old = jnp.arange(256)[:, None]
    counts = jnp.zeros((256, 3), jnp.int32).at[image.astype(jnp.int32), jnp.arange(3)[None, None]].add(1)
    fixed = jnp.broadcast_to(jnp.asarray(operation.values).astype(jnp.int32)[:, None], (256, 3))
    mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)
    contrast = jnp.broadcast_to(_blend(mean, old, jnp.asarray(operation.products)), (256, 3))

    low = jnp.argmax(counts > 0, axis=0)[None]
    high = 255 - jnp.argmax(counts[::-1] > 0, axis=0)[None]
    span = jnp.maximum(high - low, 1)
    stretched = jnp.where(high > low, jnp.clip((old - low) * 255 // span, 0, 255), old)

    # The count of the brightest value is not part of the step, which spreads the others over 255 values.
    step = (grey.size - jnp.take_along_axis(counts, high, axis=0)) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    level = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    equalized = jnp.where((step > 0) & (high > low), level, old)
    return [fixed, contrast, stretched, equalized]


def _grey(image: Array) -> Array:
    """Luma in 16-bit fixed point, int32 of shape ``h w``."""
    weights = jnp.asarray([19595, 38470, 7471])
    return (jnp.sum(image.astype(jnp.int32) * weights[None, None], axis=-1) + 0x8000) >> 16


def _smoothed(image: Array) -> Array:
    """Smooth with 3×3 weights of 1 and 5 in the middle over 13, rounded; the border stays as it is."""
    x = image.astype(jnp.int32)
    height, width, _ = x.shape
    if height < 3 or width < 3:
        return x
    columns = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = columns[:-2] + columns[1:-1] + columns[2:] + 4 * x[1:-1, 1:-1]
    return x.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def _blend(zero: Array, one: Array, products: Array) -> Array:
    """``zero + factor·(one - zero)``, truncated and clipped to a pixel."""
    return jnp.clip(zero.astype(jnp.float32) + products[one - zero + 255], 0, 255).astype(jnp.int32)


def _affine(name: Name, amount: float, height: int, width: int) -> np.ndarray:
    """The source of each output pixel, relative to its centre, in 16-bit fixed point."""
    matrix = np.asarray([[1.0, 0, 0], [0, 1, 0]])
    if name == "shear_x":
        matrix[0, 1] = 0.3 * amount
    elif name == "shear_y":
        matrix[1, 0] = 0.3 * amount
    elif name == "translate_x":
        matrix[0, 2] = 150 / 331 * width * amount
    elif name == "translate_y":
        matrix[1, 2] = 150 / 331 * height * amount
    elif name == "rotate":
        cos, sin = (f(math.radians(30 * amount)) for f in (math.cos, math.sin))
        turn = np.asarray([[cos, -sin], [sin, cos]])
        center = np.asarray([width / 2, height / 2])
        matrix = np.column_stack([turn, center - turn @ center])
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2
    return np.floor(matrix * 65536 + 0.5).astype(np.int32).reshape(6)

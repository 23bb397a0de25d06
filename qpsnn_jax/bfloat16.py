"""Convolutions of operands rounded to bfloat16, as products of matrices with sums in float32.

For CPUs that multiply bfloat16 two to four times as fast as float32. XLA has no fast convolution for that, but a fast
product of matrices; and it copies bfloat16 number by number, so that until the product everything is moved as integers
of the same bits. Derivatives of the derivatives are those of float32 convolutions.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array

Pair = tuple[int, int]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve_rounded(x: Array, kernel: Array, padding: Pair) -> Array:
    """:func:`qpsnn_jax.convolution.convolve` at stride 1: one product for every row of the kernel.

    Args:
        x: maps ``b h w i``, float32.
        kernel: ``h w i o``, float32.
        padding: rows and columns of zeros on either side.

    Returns:
        float32 sums ``b h w o``; exact where both operands have at most 8 significant bits.
    """
    (rows, columns, inputs, outputs), (vertical, horizontal) = kernel.shape, padding
    padded = jnp.pad(_bits(x), ((0, 0), (vertical, vertical), (horizontal, horizontal), (0, 0)))
    b, h, w = padded.shape[0], padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    # Every position beside its neighbours to the right; written in place, which is faster than a concatenation.
    beside = jnp.zeros((*padded.shape[:2], w, columns * inputs), padded.dtype)
    for j in range(columns):
        beside = jax.lax.dynamic_update_slice(beside, padded[:, :, j : j + w], (0, 0, 0, j * inputs))
    taps = _floats(_bits(kernel)).reshape(rows, columns * inputs, outputs)
    parts = [_matmul(_floats(beside[:, i : i + h]).reshape(-1, columns * inputs), taps[i]) for i in range(rows)]
    return sum(parts[1:], parts[0]).reshape(b, h, w, outputs)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def correlate_rounded(x: Array, pushed: Array, padding: Pair) -> Array:
    """Gradient of a convolution at stride 1 by its kernel: one product over all positions for every tap.

    Args:
        x: the maps, ``b h w i``, float32.
        pushed: cotangent of the sums, ``b h w o``, float32.
        padding: of the convolution.

    Returns:
        float32, shape ``h w i o``.
    """
    (b, h, w, outputs), (vertical, horizontal) = pushed.shape, padding
    # Channels first and the image innermost but one, so that the operand of every tap is contiguous in the sum.
    turned = jnp.pad(_bits(x).transpose(3, 1, 0, 2), ((0, 0), (vertical, vertical), (0, 0), (horizontal, horizontal)))
    inputs, rows, columns = turned.shape[0], turned.shape[1] - h + 1, turned.shape[3] - w + 1
    right = _floats(_bits(pushed).transpose(1, 0, 2, 3)).reshape(-1, outputs)
    shifted = [turned[..., j : j + w].reshape(inputs, -1) for j in range(columns)]
    taps = [
        _matmul(_floats(shifted[j][:, i * b * w : (i + h) * b * w]), right)
        for i, j in product(range(rows), range(columns))
    ]
    return jnp.stack(taps).reshape(rows, columns, inputs, outputs)


@convolve_rounded.defjvp
def _convolve_tangent(padding: Pair, operands: tuple, tangents: tuple) -> tuple[Array, Array]:
    return convolve_rounded(*operands, padding), _product_rule(("NHWC", "HWIO", "NHWC"), padding, operands, tangents)


@correlate_rounded.defjvp
def _correlate_tangent(padding: Pair, operands: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The sum is over the batch, so that the batch takes the place of the channels.
    return correlate_rounded(*operands, padding), _product_rule(("CHWN", "IHWO", "HWNC"), padding, operands, tangents)


def _product_rule(numbers: tuple[str, str, str], padding: Pair, operands: tuple, tangents: tuple) -> Array:
    around = [(p, p) for p in padding]

    def plain(x: Array, y: Array) -> Array:
        return jax.lax.conv_general_dilated(x, y, (1, 1), around, dimension_numbers=numbers)

    return plain(tangents[0], operands[1]) + plain(operands[0], tangents[1])


def _bits(x: Array) -> Array:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(jnp.uint16)


def _floats(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def _matmul(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)

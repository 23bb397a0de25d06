r"""The gradient w.r.t. the input of 3×3 convolutions at stride 1, in products of bfloat16, by Winograd's F(2×2, 3×3).

It is the convolution of the cotangent with the kernel flipped. A tile of 2×2 sums takes 16 products instead of 36. With
x the 4×4 inputs of the tile and k the kernel,

.. math:: y = \tfrac14 A^T \left[ (B^T x B) \odot (G k G^T) \right] A,

where ⊙ is a product of matrices for each of the 16 places, tiles by channels and channels by channels. G is twice the
usual one, so integers stay integers: odd ones of up to 4 bits and their transforms are exact in bfloat16. Other numbers
are rounded to bfloat16, and again when they are transformed. Sums are in float32.

For ``precision="fast"`` on CPUs that multiply bfloat16 faster than float32. XLA copies bfloat16 element by element, so
up to the product they are integers of the same bits.

References:
    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.runtime.compiling import materialize

# Measured on a Zen 5: the channels from which on this is faster than float32, and than looking sums up in C++, as for
# weights of up to 2 bits.
NARROWEST, NARROWEST_LOOKED_UP = 64, 256


def fits(spec: ConvSpec) -> bool:
    """Whether it is a convolution of 3×3 at stride 1, with padding up to 2, on maps of 3×3 or more."""
    geometry = spec.geometry
    within = max(geometry.padding) <= 2 and min(geometry.input_hw) >= 3
    return within and geometry.strides == (1, 1) and geometry.kernel == (3, 3)


def _preference(spec: ConvSpec, flags: frozenset[str]) -> int:
    fast = "fast" in flags and not flags.isdisjoint({"amx_bf16", "avx512_bf16"})
    looked_up = "native" in flags and spec.bits <= 2
    return 2 if fast and spec.narrowest >= (NARROWEST_LOOKED_UP if looked_up else NARROWEST) else 0


def _input_grad(cotangent: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Winograd's sums; the axis of the outputs, the last of the kernel's, goes with the channels of the cotangent."""
    padding = 2 - spec.geometry.padding[0], 2 - spec.geometry.padding[1]
    pairs, flipped = _pairs(cotangent, padding), jnp.flip(kernel, (0, 1))
    left, right = _both(_input, pairs, 1, 3), _both(_kernel, flipped, 0, 1)
    products = [_multiply(_matrices(v), _matrices(u)) for v, u in zip(left, right, strict=True)]
    b, rows, columns = left[0].shape[2:5]
    sums = _joined(_output, [each.reshape(2, 2, b, rows, columns, each.shape[2]) for each in products])
    # Stacked, so computed once; otherwise XLA would store the products and sum them in every reader of the maps.
    maps = jnp.stack([jnp.stack(column, 2) for column in sums], 4)
    h, w = spec.geometry.input_hw
    return maps.reshape(b, 2 * rows, 2 * columns, maps.shape[-1])[:, :h, :w] / 4


INPUT_GRAD = Algorithm("winograd", _input_grad, fits, _preference)


def bits_of(x: Array) -> Array:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even; the usual NaN stays one."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(jnp.uint16)


def floats_of(bits: Array) -> Array:
    """The float32 numbers of which these are the upper halves."""
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


def _multiply(x: Array, y: Array) -> Array:
    """Products ``n i j`` in float32 of matrices ``n i k`` and ``n j k`` of bfloat16, given by their bits, uint16."""
    left, right = (jax.lax.bitcast_convert_type(each, jnp.bfloat16) for each in (x, y))
    return jax.lax.dot_general(left, right, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _pairs(x: Array, padding: Pair) -> Array:
    """Maps rounded to bfloat16, stored in float32, as pairs of rows and of columns, ``b rows 2 columns 2 i``."""
    padded = _padded(x, padding)
    b, h, w, inputs = padded.shape
    return floats_of(padded.reshape(b, h // 2, 2, w // 2, 2, inputs))


def _padded(x: Array, padding: Pair) -> Array:
    """Bits of maps with zeros around them, and one more row and column if their number is odd."""
    around = [(p, p + n % 2) for n, p in zip(x.shape[1:3], padding, strict=True)]
    return materialize(bits_of(x), [(0, 0), *around, (0, 0)], 1)


# Of the four places along an axis, the outer two (0 and 3) and the inner two (1 and 2) are computed in the same way. A
# transformation of an axis puts each two in front, so that after both axes the columns' come first, then the rows'.


def _input(x: Array, axis: int) -> list[Array]:
    """Bᵀ, on pairs along ``axis`` and the next: x₀ - x₂ and x₁ - x₃, x₂ + x₁ and x₂ - x₁."""
    before, after = (jax.lax.slice_in_dim(x, i, x.shape[axis] - 1 + i, axis=axis) for i in (0, 1))
    outer = jnp.moveaxis(before - after, axis + 1, 0)
    return [outer, _sum_and_difference(jnp.take(after, 0, axis + 1), jnp.take(before, 1, axis + 1))]


def _kernel(k: Array, axis: int) -> list[Array]:
    """G: 2·k₀ and 2·k₂, k₀ + k₂ + k₁ and k₀ + k₂ - k₁."""
    first, middle, last = jnp.moveaxis(k, axis, 0)
    return [2 * jnp.stack([first, last]), _sum_and_difference(first + last, middle)]


def _output(outer: Array, inner: Array) -> list[Array]:
    """Aᵀ: u₀ + u₁ + u₂ and u₁ - u₂ - u₃."""
    return [outer[0] + (inner[0] + inner[1]), inner[0] - inner[1] - outer[1]]


def _both(transform: Callable[[Array, int], list[Array]], x: Array, rows: int, columns: int) -> list[Array]:
    return [part for half in transform(x, rows) for part in transform(half, columns)]


def _joined(transform: Callable[[Array, Array], list[Array]], parts: list[Array]) -> list[list[Array]]:
    """Columns of rows."""
    return [transform(outer, inner) for outer, inner in zip(transform(*parts[:2]), transform(*parts[2:]), strict=True)]


def _sum_and_difference(x: Array, y: Array) -> Array:
    return x[None] + _signed(jnp.broadcast_to(y, (2, *y.shape)))


def _signed(x: Array) -> Array:
    """The first unchanged, the second negated."""
    return x * jnp.asarray([1, -1], x.dtype).reshape(2, *(1,) * (x.ndim - 1))


def _matrices(places: Array) -> Array:
    """Bits of ``2 2 … c`` as matrices of four places, ``4 n c``."""
    return bits_of(places).reshape(4, math.prod(places.shape[2:-1]), places.shape[-1])

r"""Convolutions of 3×3 at stride 1 by Winograd's minimal filtering F(2×2, 3×3), in products of bfloat16.

A tile of 2×2 sums takes 16 products instead of 36. With x the 4×4 inputs of the tile and k the kernel,

.. math:: y = \tfrac14 A^T \left[ (B^T x B) \odot (G k G^T) \right] A,

where ⊙ is a product of matrices for each of the 16 places, tiles by channels and channels by channels. G is twice the
usual one, so integers stay integers: for spikes the left factor is at most 4, for odd integers of b bits the right one
is at most 9·(2^b - 1), which bfloat16 represents exactly up to 4 bits. Other numbers are rounded to bfloat16, and again
when they are transformed. Sums are in float32. The gradient by the input is such a convolution too, that by the kernel
its transpose.

For CPUs that multiply bfloat16 faster than float32 (:mod:`qpsnn_jax.kernels.bfloat16`).

References:
    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.bfloat16 import bits_of, floats_of, gradient_preference, multiply
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.runtime.compiling import materialize

# Measured on a Zen 5: the channels from which on these sums are faster than sums in int8.
_NARROWEST_SUMS = 128


def fits(spec: ConvSpec) -> bool:
    """Whether it is a convolution of 3×3 at stride 1, with padding up to 2, on maps of 3×3 or more."""
    geometry = spec.geometry
    within = max(geometry.padding) <= 2 and min(geometry.input_hw) >= 3
    return within and geometry.strides == (1, 1) and geometry.kernel == (3, 3)


def exact(spec: ConvSpec) -> bool:
    """Whether the sums of spikes and integers are exact."""
    # The products of all 9 places of a sum are, in magnitude, at most 200 times the largest weight.
    return fits(spec) and spec.bits <= 4 and 200 * (2**spec.bits - 1) * spec.inputs < 2**24


def _preference(spec: ConvSpec, flags: frozenset[str]) -> int:
    return 3 if "avx512_bf16" in flags and spec.narrowest >= _NARROWEST_SUMS else 0


def _spike_sums(spikes: Array, integers: Array, spec: ConvSpec) -> Array:
    return _sums(spikes.astype(jnp.float32), integers.astype(jnp.float32), spec.geometry.padding, 0)


def _input_grad(cotangent: Array, kernel: Array, spec: ConvSpec) -> Array:
    """The convolution of the cotangent with the kernel flipped."""
    return _sums(cotangent, jnp.flip(kernel, (0, 1)), _around(spec.geometry.padding), 1)


def _kernel_grad(x: Array, cotangent: Array, spec: ConvSpec) -> Array:
    left = _both(_input, _pairs(x, spec.geometry.padding), 1, 3)
    # Written in place and transposed at once: a transposition that XLA fuses with its neighbours is slow.
    turned = jnp.zeros((16, left[0].size // (4 * x.shape[3]), x.shape[3]), jnp.uint16)
    for n, part in enumerate(left):
        turned = jax.lax.dynamic_update_slice(turned, _matrices(part), (4 * n, 0, 0))
    turned = turned.transpose(0, 2, 1)
    (rows, columns), (b, _, _, outputs), around = left[0].shape[3:5], cotangent.shape, _around(spec.geometry.padding)
    # Padded as for the input gradient: computed once for both, and materialized, because XLA would otherwise recompute
    # the large cotangent for each of the four transformed parts.
    inner = _padded(cotangent, around)[:, around[0] : around[0] + 2 * rows, around[1] : around[1] + 2 * columns]
    tiles = floats_of(inner.reshape(b, rows, 2, columns, 2, outputs)).transpose(2, 4, 0, 1, 3, 5)
    right = _both(_spread, tiles, 0, 1)
    products = [multiply(turned[4 * n : 4 * n + 4], _matrices(part)) for n, part in enumerate(right)]
    taps = _joined(_tap, [each.reshape(2, 2, *each.shape[1:]) for each in products])
    return jnp.stack([jnp.stack(column) for column in taps], 1) / 4


_LIMITS = "kernels of 3×3 at stride 1, padding up to 2, maps of 3×3 or more and up to 4 bits"

SUMS = Algorithm("winograd", _spike_sums, exact, _preference, _LIMITS)
INPUT_GRAD = Algorithm("winograd", _input_grad, fits, lambda spec, flags: 2 * gradient_preference(spec, flags))
KERNEL_GRAD = Algorithm("winograd", _kernel_grad, fits, lambda spec, flags: 2 * gradient_preference(spec, flags))


def _sums(x: Array, kernel: Array, padding: Pair, contracted: int) -> Array:
    """Winograd's sums; ``contracted`` is the axis behind the kernel's taps, 0 or 1, that goes with the channels."""
    left, right = _both(_input, _pairs(x, padding), 1, 3), _both(_kernel, kernel, 0, 1)
    products = [multiply(_matrices(v), _matrices(u), 1 + contracted) for v, u in zip(left, right, strict=True)]
    b, rows, columns = left[0].shape[2:5]
    sums = _joined(_output, [each.reshape(2, 2, b, rows, columns, each.shape[2]) for each in products])
    # Stacked, so computed once; otherwise XLA would store the products and sum them in every reader of the maps.
    maps = jnp.stack([jnp.stack(column, 2) for column in sums], 4)
    h, w = (n + 2 * p - 2 for n, p in zip(x.shape[1:3], padding, strict=True))
    return maps.reshape(b, 2 * rows, 2 * columns, maps.shape[-1])[:, :h, :w] / 4


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


def _spread(y: Array, axis: int) -> list[Array]:
    """A: y₀ and -y₁, y₀ + y₁ and y₀ - y₁."""
    y = jnp.moveaxis(y, axis, 0)
    return [_signed(y), _sum_and_difference(y[0], y[1])]


def _output(outer: Array, inner: Array) -> list[Array]:
    """Aᵀ: u₀ + u₁ + u₂ and u₁ - u₂ - u₃."""
    return [outer[0] + (inner[0] + inner[1]), inner[0] - inner[1] - outer[1]]


def _tap(outer: Array, inner: Array) -> list[Array]:
    """Gᵀ: 2·u₀ + u₁ + u₂, u₁ - u₂, u₁ + u₂ + 2·u₃."""
    both = inner[0] + inner[1]
    return [2 * outer[0] + both, inner[0] - inner[1], both + 2 * outer[1]]


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


def _around(padding: Pair) -> Pair:
    return 2 - padding[0], 2 - padding[1]


def _matrices(places: Array) -> Array:
    """Bits of ``2 2 … c`` as matrices of four places, ``4 n c``."""
    return bits_of(places).reshape(4, math.prod(places.shape[2:-1]), places.shape[-1])

"""Products of bfloat16 with sums in float32: sums of spikes, and gradients of convolutions.

Spikes and integers of up to 8 bits have 8 significant bits at most, so that their sums are exact; the operands of
gradients are rounded to bfloat16. For CPUs that multiply bfloat16 faster than float32. XLA copies bfloat16 element
by element, so up to the product they are integers of the same bits.
"""

import math
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.plain import convolution

# Measured on a Zen 5: the channels from which on gradients by bfloat16 are faster than by float32.
NARROWEST_GRADIENTS = 64
# With more taps, the patches are too large to copy.
_MOST_TAPS = 9


def bits_of(x: Array) -> Array:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even; the usual NaN stays one."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(jnp.uint16)


def floats_of(bits: Array) -> Array:
    """The float32 numbers of which these are the upper halves."""
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


def multiply(x: Array, y: Array, contracted: int = 1) -> Array:
    """Products of matrices of bfloat16, given by their bits.

    Args:
        x: ``n i k``, uint16.
        y: ``n k j``, or ``n j k`` where ``contracted`` is 2, uint16.
        contracted: the axis k of ``y``.

    Returns:
        ``n i j``, float32.
    """
    left, right = (jax.lax.bitcast_convert_type(each, jnp.bfloat16) for each in (x, y))
    numbers = (((2,), (contracted,)), ((0,), (0,)))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)


def gradient_preference(spec: ConvSpec, flags: frozenset[str]) -> int:
    """Whether gradients by bfloat16 products are faster: 1 or 0."""
    fast = not flags.isdisjoint({"amx_bf16", "avx512_bf16"})
    # Maps smaller than the kernel are one product already.
    taps = math.prod(spec.geometry.kernel) <= min(_MOST_TAPS, math.prod(spec.geometry.input_hw))
    return int(fast and taps and spec.narrowest >= NARROWEST_GRADIENTS)


def _sums(spikes: Array, integers: Array, spec: ConvSpec) -> Array:
    operands = spikes.astype(jnp.bfloat16), integers.astype(jnp.bfloat16)
    return convolution(*operands, spec.geometry, jnp.dtype(jnp.float32))


def _overlap_free(spec: ConvSpec) -> bool:
    return spec.geometry.kernel == (1, 1) and spec.geometry.padding == (0, 0)


def _input_grad(cotangent: Array, kernel: Array, spec: ConvSpec) -> Array:
    """One product, for a kernel of 1×1 without padding; zeros at positions that the strides skip."""
    b, h, w, outputs = cotangent.shape
    transposed = bits_of(kernel).reshape(1, spec.inputs, outputs).transpose(0, 2, 1)
    seen = multiply(bits_of(cotangent).reshape(1, b * h * w, outputs), transposed).reshape(b, h, w, spec.inputs)
    skipped = [
        (0, size - (n - 1) * stride - 1, stride - 1)
        for size, n, stride in zip(spec.geometry.input_hw, (h, w), spec.geometry.strides, strict=True)
    ]
    return jax.lax.pad(seen, jnp.zeros((), seen.dtype), ((0, 0, 0), *skipped, (0, 0, 0)))


def _kernel_grad(x: Array, cotangent: Array, spec: ConvSpec) -> Array:
    """One product of the patches of all taps with the cotangent."""
    b, h, w, outputs = cotangent.shape
    padded = jnp.pad(bits_of(x), ((0, 0), *((p, p) for p in spec.geometry.padding), (0, 0)))
    taps = list(product(*map(range, spec.geometry.kernel)))
    views = [spec.geometry.tap_view(padded, i, j).reshape(b * h * w, spec.inputs) for i, j in taps]
    seen = jnp.stack(views).transpose(0, 2, 1).reshape(1, len(taps) * spec.inputs, b * h * w)
    sums = multiply(seen, bits_of(cotangent).reshape(1, b * h * w, outputs))
    return sums.reshape(*spec.geometry.kernel, spec.inputs, outputs)


SUMS = Algorithm("bfloat16", _sums)
INPUT_GRAD = Algorithm("bfloat16", _input_grad, _overlap_free, gradient_preference)
KERNEL_GRAD = Algorithm("bfloat16", _kernel_grad, preference=gradient_preference)

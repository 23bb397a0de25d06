"""Convolutions and their gradients by XLA, in the dtype of the operands: the reference for every other algorithm."""

import math
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.geometry import Geometry


def convolution(x: Array, kernel: Array, geometry: Geometry, dtype: jnp.dtype | None = None) -> Array:
    """The convolution of maps ``b h w i`` with a kernel ``h w i o``, ``b h w o``, summed in ``dtype``."""
    pixels, taps = math.prod(geometry.input_hw), math.prod(geometry.kernel)
    # XLA exchanges map and kernel if the kernel is larger, which is 4 to 80 times slower on a CPU.
    if pixels < taps:
        # A matrix from all pixels to all outputs is fast as long as it is not much larger than the kernel.
        small = pixels * math.prod(geometry.output_hw) <= 4 * taps
        return (_dense if small else _patches)(x, kernel, geometry, dtype)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        [(p, p) for p in geometry.padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=dtype,
    )


def input_grad(cotangent: Array, kernel: Array, geometry: Geometry) -> Array:
    """Gradient of :func:`convolution` by the maps, ``b h w i``, for a cotangent ``b h w o`` of the sums."""
    maps = jax.ShapeDtypeStruct((cotangent.shape[0], *geometry.input_hw, kernel.shape[2]), cotangent.dtype)
    return jax.linear_transpose(lambda x: convolution(x, kernel, geometry), maps)(cotangent)[0]


def kernel_grad(x: Array, cotangent: Array, geometry: Geometry) -> Array:
    """Gradient of :func:`convolution` by the kernel, ``h w i o``, for a cotangent ``b h w o`` of the sums."""
    kernel = jax.ShapeDtypeStruct((*geometry.kernel, x.shape[3], cotangent.shape[3]), x.dtype)
    return jax.linear_transpose(lambda k: convolution(x, k, geometry), kernel)(cotangent)[0]


def _float32_sums(spikes: Array, integers: Array, spec: ConvSpec) -> Array:
    return convolution(spikes.astype(jnp.float32), integers.astype(jnp.float32), spec.geometry)


SUMS = Algorithm("float32", _float32_sums)
INPUT_GRAD = Algorithm("float32", lambda cotangent, kernel, spec: input_grad(cotangent, kernel, spec.geometry))
KERNEL_GRAD = Algorithm("float32", lambda x, cotangent, spec: kernel_grad(x, cotangent, spec.geometry))


def _dense(x: Array, kernel: Array, geometry: Geometry, dtype: jnp.dtype | None) -> Array:
    """One product of complete maps with a matrix: for every output position, the taps that read each pixel."""
    axes = tuple(zip(*geometry, geometry.output_hw, strict=True))
    # The taps of position 0 from the first pixel on, then those of position 1, one stride earlier, …
    before = [max(0, s * (size - 1) - p) for _, _, s, p, size in axes]
    after = [max(0, p + n - k) for n, k, _, p, _ in axes]
    padded = jnp.pad(kernel, (*zip(before, after, strict=True), (0, 0), (0, 0)))
    first = [[b + p - s * i for i in range(size)] for b, (_, _, s, p, size) in zip(before, axes, strict=True)]
    taps = [padded[i : i + x.shape[1], j : j + x.shape[2]] for i, j in product(*first)]
    matrix = jnp.stack(taps, axis=3).reshape(math.prod(x.shape[1:]), -1)
    sums = jnp.matmul(x.reshape(x.shape[0], matrix.shape[0]), matrix, preferred_element_type=dtype)
    return sums.reshape(x.shape[0], *geometry.output_hw, kernel.shape[-1])


def _patches(x: Array, kernel: Array, geometry: Geometry, dtype: jnp.dtype | None) -> Array:
    """One product of all patches with the kernel, without the taps that read only padding."""
    rows, columns = (
        [tap for tap in range(k) if any(p <= s * o + tap < p + n for o in range(out))]
        for n, k, s, p, out in zip(*geometry, geometry.output_hw, strict=True)
    )
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in geometry.padding), (0, 0)))
    seen = [geometry.tap_view(padded, i, j) for i, j in product(rows, columns)]
    weights = jnp.concatenate([kernel[i, j] for i, j in product(rows, columns)])
    return jnp.matmul(jnp.concatenate(seen, axis=-1), weights, preferred_element_type=dtype)

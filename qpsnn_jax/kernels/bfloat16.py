"""Products of bfloat16 with sums in float32, and gradients of convolutions by them.

For CPUs that multiply bfloat16 faster than float32. XLA copies bfloat16 number by number, so that until the product
numbers are kept as integers of the same bits. What is whole and has 8 bits at most is exact; other numbers are rounded.
Derivatives of what is computed so are those of float32 convolutions.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.geometry import Geometry

Bilinear = Callable[[Array, Array, Any], Array]


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


def differentiated_as(reference: Bilinear) -> Callable[[Bilinear], Bilinear]:
    """Gives a function that is linear in either of its first two arguments the derivatives of another."""

    def decorate(fast: Bilinear) -> Bilinear:
        function = partial(jax.custom_jvp, nondiff_argnums=(2,))(fast)

        @function.defjvp
        def tangent(options: Any, operands: tuple, tangents: tuple) -> tuple[Array, Array]:
            change = reference(tangents[0], operands[1], options) + reference(operands[0], tangents[1], options)
            return function(*operands, options), change

        return function

    return decorate


def plain(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution of maps ``b h w i`` with a kernel ``h w i o`` in their own dtype, ``b h w o``."""
    around = [(p, p) for p in geometry.padding]
    return jax.lax.conv_general_dilated(x, kernel, geometry.strides, around, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_input_grad(cotangent: Array, kernel: Array, geometry: Geometry) -> Array:
    """Gradient of :func:`plain` by the maps, ``b h w i``; ``cotangent`` is the cotangent of the sums."""
    maps = jax.ShapeDtypeStruct((cotangent.shape[0], *geometry.input_hw, kernel.shape[2]), cotangent.dtype)
    return jax.linear_transpose(lambda x: plain(x, kernel, geometry), maps)(cotangent)[0]


def plain_kernel_grad(x: Array, cotangent: Array, geometry: Geometry) -> Array:
    """Gradient of :func:`plain` by the kernel, ``h w i o``; ``cotangent`` is the cotangent of the sums."""
    kernel = jax.ShapeDtypeStruct((*geometry.kernel, x.shape[3], cotangent.shape[3]), x.dtype)
    return jax.linear_transpose(lambda k: plain(x, k, geometry), kernel)(cotangent)[0]


@differentiated_as(plain_input_grad)
def input_grad(cotangent: Array, kernel: Array, geometry: Geometry) -> Array:
    """Gradient of a convolution with a kernel of 1×1, without padding, by its maps.

    Args:
        cotangent: cotangent of the sums, ``b h w o``, float32.
        kernel: ``1 1 i o``, float32.
        geometry: of the convolution.

    Returns:
        float32, shape ``b h w i``; zeros where the strides pass over the maps.
    """
    b, h, w, outputs = cotangent.shape
    inputs = kernel.shape[2]
    turned = bits_of(kernel).reshape(1, inputs, outputs).transpose(0, 2, 1)
    seen = multiply(bits_of(cotangent).reshape(1, b * h * w, outputs), turned).reshape(b, h, w, inputs)
    skipped = [
        (0, size - (n - 1) * stride - 1, stride - 1)
        for size, n, stride in zip(geometry.input_hw, (h, w), geometry.strides, strict=True)
    ]
    return jax.lax.pad(seen, jnp.zeros((), seen.dtype), ((0, 0, 0), *skipped, (0, 0, 0)))


@differentiated_as(plain_kernel_grad)
def kernel_grad(x: Array, cotangent: Array, geometry: Geometry) -> Array:
    """Gradient of a convolution by its kernel: one product of what all taps saw with the cotangent.

    Args:
        x: the maps, ``b h w i``, float32.
        cotangent: cotangent of the sums, ``b h w o``, float32.
        geometry: of the convolution.

    Returns:
        float32, shape ``h w i o``.
    """
    (b, h, w, outputs), inputs = cotangent.shape, x.shape[3]
    padded = jnp.pad(bits_of(x), ((0, 0), *((p, p) for p in geometry.padding), (0, 0)))
    taps = [
        geometry.tap_view(padded, i, j).reshape(b * h * w, inputs) for i, j in product(*map(range, geometry.kernel))
    ]
    seen = jnp.stack(taps).transpose(0, 2, 1).reshape(1, len(taps) * inputs, b * h * w)
    sums = multiply(seen, bits_of(cotangent).reshape(1, b * h * w, outputs))
    return sums.reshape(*geometry.kernel, inputs, outputs)

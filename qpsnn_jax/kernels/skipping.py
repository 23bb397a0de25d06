"""The kernel gradient as sums of rows of the cotangent, one for each input that is not 0; native, on CPUs.

The fewer neurons fire, the less it adds. It needs the library of :mod:`qpsnn_jax.kernels.native`.
"""

import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels import plain
from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.kernels.native.call import native_call


def kernel_grad(x: Array, cotangent: Array, spec: ConvSpec) -> Array:
    """Gradient by the kernel, ``h w i o``, in float32."""
    _, kernel, strides, padding = spec.geometry
    operands = (each.astype(jnp.float32) for each in (x, cotangent))
    return native_call("conv_kernel_grad", _kernel_grad, *operands, kernel=kernel, strides=strides, padding=padding)


def _kernel_grad(x: Array, cotangent: Array, *, kernel: Pair, strides: Pair, padding: Pair) -> Array:
    return plain.kernel_grad(x, cotangent, Geometry((x.shape[1], x.shape[2]), kernel, strides, padding))


KERNEL_GRAD = Algorithm("skipping", kernel_grad, preference=lambda spec, flags: 1 if "native" in flags else 0)

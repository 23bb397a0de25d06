"""Convolutions of float32 that skip zeros, and their gradients, in C++ on CPUs.

Every spike adds one row of weights to the sums, and one row of the cotangent to the kernel gradient, so that the
cost falls with the firing rate. Where few numbers are 0, as in most cotangents, the sums are of blocks in registers;
with AVX-512 and weights of one or two bits they are looked up among the 16 sums with signs of five inputs. With AVX2 or
AVX-512, sums of spikes with integers up to 31 are looked up, four inputs at a time, at a cost that does not depend on
the rate. Maps are computed in the way that is the fastest for them, by estimate. Sums of spikes and integers are exact.
These need the library of :mod:`qpsnn_jax.kernels.native`.

Measured at an earlier commit on one core of a Zen 5 with AVX-512, 64 maps of 8×8, 64 channels, 3×3 taps, at firing
rates of 0.05, 0.1, 0.2 and 1: sums with 2-bit integers in 0.35, 0.48, 0.41 and 0.40 ms, with other weights in 0.34,
0.46, 0.66 and 1.2 ms, the kernel gradient in 0.22, 0.37, 0.61 and 2.1 ms.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels import pieces, plain
from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.kernels.native.call import native_call


def sums(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """The convolution, ``b h w o``."""
    shape = x.shape[0], *spec.geometry.output_hw, kernel.shape[3]
    (found,) = native_call("conv_sums", _sums, *_floats(x, kernel), results=(shape,), **window(spec))
    return found


def input_grad(cotangent: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Gradient w.r.t. the maps, ``b h w i``."""
    shape = cotangent.shape[0], *spec.geometry.input_hw, kernel.shape[2]
    options: dict[str, Any] = window(spec) | {"input_hw": spec.geometry.input_hw}
    (found,) = native_call("conv_input_grad", _input_grad, *_floats(cotangent, kernel), results=(shape,), **options)
    return found


def kernel_grad(x: Array, cotangent: Array, spec: ConvSpec) -> Array:
    """Gradient w.r.t. the kernel, ``h w i o``."""
    shape = *spec.geometry.kernel, x.shape[3], cotangent.shape[3]
    (found,) = native_call("conv_kernel_grad", _kernel_grad, *_floats(x, cotangent), results=(shape,), **window(spec))
    return found


def window(spec: ConvSpec) -> dict[str, Any]:
    """The attributes of a convolution in native calls."""
    return {name: getattr(spec.geometry, name) for name in ("kernel", "strides", "padding")}


def _floats(*operands: Array) -> tuple[Array, ...]:
    return tuple(each.astype(jnp.float32) for each in operands)


# What the kernels compute, by XLA.
def _sums(x: Array, weights: Array, *, kernel: Pair, strides: Pair, padding: Pair) -> Array:
    return plain.convolution(x, weights, Geometry((x.shape[1], x.shape[2]), kernel, strides, padding))


def _input_grad(cotangent: Array, weights: Array, **geometry: Pair) -> Array:
    return plain.input_grad(cotangent, weights, Geometry(**geometry))


def _kernel_grad(x: Array, cotangent: Array, *, kernel: Pair, strides: Pair, padding: Pair) -> Array:
    return pieces.kernel_grad(x, cotangent, Geometry((x.shape[1], x.shape[2]), kernel, strides, padding))


def _preference(spec: ConvSpec, flags: frozenset[str]) -> int:
    return 1 if "native" in flags else 0


SUMS = Algorithm("skipping", sums, preference=_preference)
INPUT_GRAD = Algorithm("skipping", input_grad, preference=_preference)
KERNEL_GRAD = Algorithm("skipping", kernel_grad, preference=_preference)

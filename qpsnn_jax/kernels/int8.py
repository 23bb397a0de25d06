"""Sums of spikes and integers as products of 8-bit integers, for CPUs that multiply matrices of them (AMX).

Weights of 8 bits reach 255. They are computed as 2·m + 1; the term of 1 is the sum of the spikes in each window, the
same for all channels.
"""

import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec, with_nans
from qpsnn_jax.kernels.plain import convolution

BITS = 8

# Measured: fewer channels do not fill a matrix unit.
_NARROWEST = 16


def _sums(spikes: Array, integers: Array, spec: ConvSpec) -> Array:
    bits, wide = spikes.astype(jnp.int8), integers.astype(jnp.int32)
    if spec.bits < 8:
        sums = convolution(bits, wide.astype(jnp.int8), spec.geometry, jnp.dtype(jnp.int32))
    else:
        odd, halves = wide & 1, (wide >> 1).astype(jnp.int8)
        ones = jnp.ones((*integers.shape[:3], 1), jnp.int8)
        windows = convolution(bits, ones, spec.geometry, jnp.dtype(jnp.int32))
        sums = 2 * convolution(bits, halves, spec.geometry, jnp.dtype(jnp.int32)) + windows * odd[:1, :1, :1]
    return with_nans(sums, spikes, integers)


def _preference(spec: ConvSpec, flags: frozenset[str]) -> int:
    return 2 if "amx_int8" in flags and spec.narrowest >= _NARROWEST else 0


SUMS = Algorithm("int8", _sums, supports=lambda spec: spec.bits <= BITS, preference=_preference)

"""Spikes between native calls: as bits, a 16th of the memory, and as numbers for whatever else reads them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Spikes(NamedTuple):
    """Spikes 0, 1 and NaN ``b t h w c``, and the same as ``bits`` for native calls, which hold nothing elsewhere.

    A program has both; lowering removes the one that is not read.
    """

    array: Array
    bits: Array


def bits_shape(shape: tuple[int, ...]) -> tuple[int]:
    """The shape of the ``bits``, bytes, for spikes of a shape; native/packed.h says what they are."""
    batch, steps, h, w, channels = shape
    return (batch * steps * (2 * h * w * -(-channels // 8) + 1) + 8,)


def no_bits(shape: tuple[int, ...]) -> Array:
    """Bits that nothing reads, for spikes of a shape."""
    return jnp.zeros(bits_shape(shape), jnp.uint8)

r"""Convolutions of spikes with odd integers of few bits, by counting common bits.

With x the spikes and c_q the q-th bit of the code (w + s) / 2 of a weight w of b bits, where s = 2^b - 1,

.. math:: \sum x\,w = \sum_{q=0}^{b-1} 2^{q+1} \sum x\,c_q - s \sum x .

The products on the right are of bits, so that 32 channels are multiplied by one "and" of two words and summed by
counting the bits of the result. Output channels whose weights are 0, which is not an odd integer, are set to 0. For
CPUs with instructions that count the bits of vectors.

References:
    Zhou et al., DoReFa-Net, arXiv:1606.06160, Section 2.1.
"""

import math
from functools import reduce
from itertools import product
from operator import add

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec, with_nans
from qpsnn_jax.runtime.compiling import materialize

WORD = 32  # channels that are counted at once


# Terms up to which a sum of counts is faster than Winograd's, and up to which the compiler computes it in vectors.
_FEW_TERMS, _MOST_TERMS = 72, 144


def _preference(spec: ConvSpec, flags: frozenset[str]) -> int:
    taps = math.prod(spec.geometry.kernel)
    terms = spec.bits * taps * math.ceil(spec.inputs / WORD)
    # On maps smaller than the kernel, counting saves little and compiles longer.
    large = spec.narrowest >= WORD and math.prod(spec.geometry.input_hw) >= taps
    if not ("avx512_vpopcntdq" in flags and spec.bits <= 4 and large):
        return 0
    return 4 if terms <= _FEW_TERMS else 2 if terms <= _MOST_TERMS else 0


def _sums(spikes: Array, integers: Array, spec: ConvSpec) -> Array:
    view, (rows, columns), largest = spec.geometry.tap_view, spec.geometry.padding, 2**spec.bits - 1
    words = jnp.pad(_words(spikes, 3), ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    codes = (integers.astype(jnp.int32) + largest) >> 1
    # XLA's loop over the outputs reads the words of all taps in parallel. Rows of a power of two would compete for few
    # cache lines; one more line for each row avoids this.
    planes = [_materialized(_words(codes >> q & 1, 2), (0, 16), 3)[..., : integers.shape[3]] for q in range(spec.bits)]
    taps = list(product(*map(range, spec.geometry.kernel)))
    counts = jax.lax.population_count(words).sum(3, dtype=jnp.uint32)
    ones = reduce(add, [view(counts, i, j) for i, j in taps])
    # A sum of all terms instead of a reduction: XLA would make the latter an inner loop, which is not vectorized.
    sums = [
        reduce(
            add,
            [
                jax.lax.population_count(view(words, i, j)[..., n, None] & plane[i, j, n, None, None, None])
                for i, j in taps
                for n in range(words.shape[3])
            ],
        )
        << 1 + q
        for q, plane in enumerate(planes)
    ]
    live = integers[:1, :1, :1].astype(jnp.int32) & 1
    found = (reduce(add, sums).astype(jnp.int32) - largest * ones[..., None].astype(jnp.int32)) * live
    kept = _materialized(found.astype(spikes.dtype), (0, 0), 1 if found.shape[1] > 1 else 2)
    return with_nans(kept, spikes, integers)


def _materialized(x: Array, around: tuple[int, int], axis: int) -> Array:
    """Materialized, with zeros around the last axis."""
    return materialize(x, [(0, 0)] * (x.ndim - 1) + [around], axis)


def _words(bits: Array, axis: int) -> Array:
    """Every 32 numbers 0 and 1 along an axis as the bits of one uint32, padded with zeros."""
    count = -(-bits.shape[axis] // WORD)
    missing = [(0, count * WORD - bits.shape[axis] if i == axis else 0) for i in range(bits.ndim)]
    padded = jnp.pad(bits.astype(jnp.uint32), missing)
    split = padded.reshape(*bits.shape[:axis], count, WORD, *bits.shape[axis + 1 :])
    places = jax.lax.broadcasted_iota(jnp.uint32, split.shape, axis + 1)
    return (split << places).sum(axis + 1, dtype=jnp.uint32)


SUMS = Algorithm("popcount", _sums, preference=_preference)

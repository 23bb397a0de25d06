r"""Ranks of many small integer matrices at once, by exact elimination over prime fields.

The rank over GF(p) is never above the rank over the rationals, and below it only where p divides all of the matrix's
non-zero minors of the highest order. Three primes are tried and the highest rank is taken: a minor that behaves like a
random number is divisible by all three with a probability of 4e-11, one below p by none. Residues are small enough that
eight products of them and one residue more have a sum that is exact in float32, so that a matrix is reduced only after
every eighth step.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_PRIMES = (2887, 2879, 2861)
# Residues lie within p/2 + 4, wherever a quotient may be rounded a little off.
_HALF = 1448
# Whole numbers up to here are exact in float32.
_EXACT = 1 << 24
# A pivot is looked for in as many columns before its row is taken for zero.
_TRIES = 3
# Rows eliminated before the matrix is reduced and cut to what is left of it: 8·1448² + 1448 is below 2^24.
_STAGE = 8
# Matrices that lie side by side: as many as a CPU's cache holds, or as keep a wider device busy.
_LANES = 512
_LANES_ELSEWHERE = 1 << 15


class _Pivot(NamedTuple):
    """One step: the pivot's column and its row over the pivot, and 1 where there is a pivot, for every matrix."""

    column: Array
    row: Array
    found: Array


@partial(jax.jit, static_argnames="largest")
def matrix_ranks(matrices: Array, *, largest: int) -> Array:
    """Rank of every integer matrix ``n m`` of an array ``… n m``.

    Each step of the elimination takes the next row. The columns are mixed by a random matrix over the field first, so
    that a row that is not zero has its pivot in the next column or in one of the two after it, but in one matrix of
    about 6p³/n³, in each of the fields.

    Args:
        matrices: whole numbers of any dtype, shape ``… n m``.
        largest: bound on their magnitude, below 2^24.

    Returns:
        int32, shape ``…``. Never too high; too low with a probability below 1e-10 for a matrix of random numbers.

    Raises:
        ValueError: ``matrices`` has fewer than two axes, or ``largest`` is out of its range.
    """
    if matrices.ndim < 2:
        raise ValueError(f"matrices must have the shape … n m, got {matrices.shape}.")
    if not 1 <= largest < 2**24:
        raise ValueError(f"largest must be between 1 and 2^24 - 1, got {largest}.")
    *lead, n, m = matrices.shape
    k = math.prod(lead)
    if not k * n * m:
        return jnp.zeros(lead, jnp.int32)
    lanes = min(k, _LANES if jax.default_backend() == "cpu" else _LANES_ELSEWHERE)
    # Side by side, innermost, the shorter side first; padded to whole chunks by matrices of zeros.
    order = (1, 2, 0) if n <= m else (2, 1, 0)
    n, m = sorted((n, m))
    padded = jnp.pad(matrices.reshape(k, *matrices.shape[-2:]).transpose(order), ((0, 0), (0, 0), (0, -k % lanes)))
    chunks = jnp.moveaxis(padded.reshape(n, m, -1, lanes), 2, 0)
    shape, half = (len(_PRIMES), m, n + _TRIES - 1), min(_PRIMES) // 2
    mixing = np.random.default_rng(0).integers(-half, half + 1, shape)
    fields = jnp.asarray(_PRIMES, jnp.float32), jnp.asarray(mixing, jnp.float32)

    def ranks(chunk: Array) -> Array:
        return jnp.max(jax.lax.map(lambda field: _rank_in_field(chunk, largest, *field), fields), axis=0)

    return jax.lax.map(ranks, chunks).reshape(-1)[:k].reshape(lead)


def _rank_in_field(matrices: Array, largest: int, prime: Array, mixing: Array) -> Array:
    left = _mixed(matrices, largest, prime, mixing)
    rank = jnp.zeros(matrices.shape[2], jnp.int32)
    while rows := left.shape[0]:
        steps = min(rows, _STAGE)

        # The next pivot is found at the end of a step, not at its beginning: only what a loop carries is computed
        # once. XLA would otherwise compute the pivot's row and column anew for every element of the matrix.
        def step(done: Array, carry: tuple[Array, _Pivot, Array]) -> tuple[Array, _Pivot, Array]:
            left, pivot, rank = carry
            left = left - pivot.column[:, None] * pivot.row[None]
            return left, _pivot(left, done + 1, prime), rank + pivot.found

        left, pivot, rank = jax.lax.fori_loop(0, steps - 1, step, (left, _pivot(left, 0, prime), rank))
        rank = rank + pivot.found
        left = _reduced(left[steps:, steps:] - pivot.column[steps:, None] * pivot.row[None, steps:], prime)
    return rank


def _mixed(matrices: Array, largest: int, prime: Array, mixing: Array) -> Array:
    """The rows times the mixing matrix, ``n m k`` to ``n (n + 2) k``, in sums that stay exact."""
    numbers = matrices.astype(jnp.float32)
    if largest > _HALF:
        numbers, largest = _reduced(numbers, prime), _HALF
    terms = _EXACT // (largest * _HALF)
    mixed = jnp.zeros((), jnp.float32)
    for first in range(0, matrices.shape[1], terms):
        part = slice(first, first + terms)
        product = jnp.einsum("nmk,mc->nck", numbers[:, part], mixing[part], precision="highest")
        mixed = _reduced(mixed + _reduced(product, prime), prime)
    return mixed


def _pivot(left: Array, done: Array | int, prime: Array) -> _Pivot:
    """The next row's pivot in the first of the next columns that has one."""
    row = _reduced(jax.lax.dynamic_index_in_dim(left, done, 0, keepdims=False), prime)
    columns = [_reduced(jax.lax.dynamic_index_in_dim(left, done + i, 1, keepdims=False), prime) for i in range(_TRIES)]
    values = [jax.lax.dynamic_index_in_dim(row, done + i, 0, keepdims=False) for i in range(_TRIES)]
    column, value = columns.pop(), values.pop()
    while values:
        here = values[-1] != 0
        column, value = jnp.where(here[None], columns.pop(), column), jnp.where(here, values.pop(), value)
    return _Pivot(column, _reduced(row * _inverse(value, prime, prime)[None], prime), (value != 0).astype(jnp.int32))


def _inverse(values: Array, prime: Array, divisor: Array) -> Array:
    """``values`` to the power p - 2, their inverse, and 0 of 0; ``divisor`` is p, as near as a device divides by it."""
    exponent = prime.astype(jnp.int32) - 2
    result, power = jnp.ones_like(values), values
    for bit in range(max(_PRIMES).bit_length()):
        result = jnp.where(exponent >> bit & 1 == 1, _reduced(result * power, prime), result)
        power = _reduced(power * power, prime)
    # The quotient is there because XLA computes a division once: what is cheaper it computes anew for every element
    # that needs it, with all the products that led to it. It is rounded, because not every device divides exactly.
    return jnp.round(result * prime / divisor)


def _reduced(values: Array, prime: Array) -> Array:
    """Residues within p/2 + 2 of whole numbers below 2^24."""
    return values - jnp.floor(values * (1 / prime) + 0.5) * prime

r"""Ranks of many small integer matrices at once, by exact elimination over prime fields.

On a CPU with a C++ compiler one matrix after another, over three primes of 13 bits, or fewer where the rank is certain
(``kernels/native/ranks.h``); elsewhere in JAX, all at once, as follows.

The rank over GF(p) is never above the rank over the rationals, and below it only where p divides all of the matrix's
non-zero minors of the highest order. Two primes are tried and the higher rank is taken: a minor that behaves like a
random number is divisible by both with a probability of 2e-10, one below p by neither. All sums are of integers
below 2^24, exact in float32: a product of two residues of 16 bits is taken in two halves, each of 8 bits by 16.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.native.call import native_call
from qpsnn_jax.runtime.checks import integer
from qpsnn_jax.runtime.sharding import with_auto_axes

_PRIMES = (65521, 65519)
# Integers up to here are exact in float32.
_EXACT = 1 << 24
LARGEST = _EXACT - 1
# Bound on residues, which may exceed p/2 by a few.
_REACH = 1 << 15
# A residue is 256 times its high half and its low half, both of them within 128.
_HALVES = 256
# Bound on the entries of the mixing matrix.
_MIX = 1024
# Rows eliminated before the matrix is reduced to the remaining ones.
_STAGE = 8
# Elements of the matrices processed at a time: what fits into a CPU's cache, or what keeps a wider device busy.
_NUMBERS = 1 << 19
_NUMBERS_ELSEWHERE = 1 << 25


class _Field(NamedTuple):
    """A prime, and the inverses of all residues."""

    prime: Array
    inverses: Array


class _Pivot(NamedTuple):
    """One step: the pivot's column in two halves, and its row over the pivot."""

    high: Array
    low: Array
    row: Array


def matrix_ranks(matrices: Array, *, largest: int) -> Array:
    """Rank of every integer matrix ``n m`` of an array ``… n m``.

    In C++ the rank is too low only if each of three primes, 8179, 8171 and 8167, divides all non-zero minors of the
    highest order, with a probability of 2e-12 for a minor that is a random number.

    In JAX each step of the elimination takes the next row. The columns are mixed by a random matrix first, so that a
    row that is not zero has its pivot in the next column or, seldom, in the one after it. A column that is passed over
    is not used again, so if two of n rows pass over one, the rank is too low: in each of the fields, for n ≤ m, with a
    probability of n(n+1)/2 / 2049² at most, and of about n(n+1)/2 / p² where rows have many non-zero numbers.

    Args:
        matrices: integers of any dtype, shape ``… n m``.
        largest: bound on their magnitude, below 2^24.

    Returns:
        int32, shape ``…``. Never too high; too low in JAX, for n = 32, with a probability below 1e-9 for a matrix of
        random numbers, and of 2e-8 for the worst whose minors no prime divides.

    Raises:
        ValueError: ``matrices`` has fewer than two axes, or ``largest`` is out of its range.
    """
    if matrices.ndim < 2:
        raise ValueError(f"matrices must have the shape … n m, got {matrices.shape}.")
    largest = integer("largest", largest, 1, LARGEST)
    return with_auto_axes(partial(_matrix_ranks, largest=largest), matrices, range(matrices.ndim - 2))


@partial(jax.jit, static_argnames="largest")
def _matrix_ranks(matrices: Array, largest: int) -> Array:
    *lead, n, m = matrices.shape
    k = math.prod(lead)
    if not k * n * m:
        return jnp.zeros(lead, jnp.int32)
    numbers = matrices.reshape(k, n, m).astype(jnp.float32)
    (ranks,) = native_call("matrix_ranks", _by_elimination, numbers, results=((k,),), largest=largest)
    return ranks.astype(jnp.int32).reshape(lead)


def _by_elimination(matrices: Array, largest: int) -> Array:
    """Ranks of ``k n m``, as floats."""
    k, n, m = matrices.shape
    numbers = _NUMBERS if jax.default_backend() == "cpu" else _NUMBERS_ELSEWHERE
    lanes = min(k, max(1, numbers // (n * m)))
    # The matrices are the innermost axis, the shorter side comes first; padded to full chunks by matrices of zeros.
    order = (1, 2, 0) if n <= m else (2, 1, 0)
    n, m = sorted((n, m))
    padded = jnp.pad(matrices.transpose(order), ((0, 0), (0, 0), (0, -k % lanes)))
    chunks = jnp.moveaxis(padded.reshape(n, m, -1, lanes), 2, 0)
    mixing = np.random.default_rng(0).integers(-_MIX, _MIX + 1, (len(_PRIMES), m, n + 1))
    inverses = np.stack([_inverses(prime) for prime in _PRIMES])
    fields = _Field(jnp.asarray(_PRIMES, jnp.float32), jnp.asarray(inverses)), jnp.asarray(mixing, jnp.float32)

    def ranks(chunk: Array) -> Array:
        return jnp.max(jax.lax.map(lambda field: _rank_in_field(chunk, largest, *field), fields), axis=0)

    return jax.lax.map(ranks, chunks).reshape(-1)[:k].astype(jnp.float32)


def _rank_in_field(matrices: Array, largest: int, field: _Field, mixing: Array) -> Array:
    left = _mixed(matrices, largest, field.prime, mixing)
    # Of slices, not of shapes: zeros that vary over a mesh as the matrices do.
    pivot = _Pivot(*(jnp.zeros_like(x) for x in (left[:, 0], left[:, 0], left[0])))
    rank = jnp.zeros_like(left[0, 0], jnp.int32)
    while rows := left.shape[0]:
        steps = min(rows, _STAGE)

        # A step ends with the next pivot, because only the carry of a loop is computed once.
        # Otherwise XLA would recompute the row and column of the pivot for every element of the matrix.
        def step(done: Array, carry: tuple[Array, _Pivot, Array]) -> tuple[Array, _Pivot, Array]:
            left, pivot, rank = carry
            left = _eliminated(left, pivot, field.prime)
            pivot, found = _pivot(left, done, field)
            return left, pivot, rank + found

        left, pivot, rank = jax.lax.fori_loop(0, steps, step, (left, pivot, rank))
        left, pivot = left[steps:, steps:], _Pivot(*(part[steps:] for part in pivot))
    return rank


def _eliminated(left: Array, pivot: _Pivot, prime: Array) -> Array:
    return _reduced(left - _scaled(pivot.high[:, None], pivot.low[:, None], pivot.row[None], prime), prime)


def _mixed(matrices: Array, largest: int, prime: Array, mixing: Array) -> Array:
    """The rows times the mixing matrix, ``n m k`` to ``n (n + 1) k``."""
    numbers = matrices.astype(jnp.float32)
    if largest < _HALVES:
        return _product(numbers, largest, prime, mixing)
    high, low = (_product(half, _HALVES // 2, prime, mixing) for half in _halves(_reduced(numbers, prime)))
    return _reduced(_HALVES * high + low, prime)


def _product(numbers: Array, largest: int, prime: Array, mixing: Array) -> Array:
    """``n m k`` times ``m c`` over the field, in sums that stay exact."""
    terms = _EXACT // (largest * _MIX)
    total = jnp.zeros((), jnp.float32)
    for first in range(0, numbers.shape[1], terms):
        part = slice(first, first + terms)
        product = jnp.einsum("nmk,mc->nck", numbers[:, part], mixing[part], precision="highest")
        total = _reduced(total + _reduced(product, prime), prime)
    return total


def _pivot(left: Array, done: Array | int, field: _Field) -> tuple[_Pivot, Array]:
    """The next row's pivot, in the next column or else in the one after it, and 1 where there is one."""
    row = jax.lax.dynamic_index_in_dim(left, done, 0, keepdims=False)
    column, after = (jax.lax.dynamic_index_in_dim(left, done + i, 1, keepdims=False) for i in (0, 1))
    value, spare = (jax.lax.dynamic_index_in_dim(row, done + i, 0, keepdims=False) for i in (0, 1))
    here = value != 0
    column, value = jnp.where(here[None], column, after), jnp.where(here, value, spare)
    over = _times(_inverse(value, field)[None], row, field.prime)
    return _Pivot(*_halves(column), over), (value != 0).astype(jnp.int32)


def _inverse(values: Array, field: _Field) -> Array:
    """Inverses, and 0 of 0."""
    found = jnp.take(field.inverses, (values + _REACH).astype(jnp.int32), mode="clip").astype(jnp.float32)
    # A quotient, because XLA computes a division once; cheaper operations it would recompute for every element that
    # needs them. Rounded, because it is not exact.
    return jnp.round(found * field.prime / field.prime)


@cache
def _inverses(prime: int) -> np.ndarray:
    """The inverse of every number from -2^15 to 2^15, and 0 of multiples of p: powers to p - 2."""
    power = np.arange(-_REACH, _REACH + 1) % prime
    result, exponent = np.ones_like(power), prime - 2
    while exponent:
        result = result * power % prime if exponent & 1 else result
        power, exponent = power * power % prime, exponent >> 1
    return np.where(result > prime // 2, result - prime, result).astype(np.int16)


def _times(a: Array, b: Array, prime: Array) -> Array:
    """Residues of the products of residues."""
    return _reduced(_scaled(*_halves(a), b, prime), prime)


def _scaled(high: Array, low: Array, b: Array, prime: Array) -> Array:
    """``b`` times the residue whose halves are given, not reduced: below 2^24 - p."""
    return _HALVES * _reduced(high * b, prime) + low * b


def _halves(residues: Array) -> tuple[Array, Array]:
    high = jnp.floor(residues / _HALVES + 0.5)
    return high, residues - _HALVES * high


def _reduced(values: Array, prime: Array) -> Array:
    """Residues, at most p/2 + 6 in magnitude, of integers below 2^24."""
    return values - jnp.floor(values * (1 / prime) + 0.5) * prime

"""Ranks by elimination over prime fields, against exact elimination of integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.pruning.rank import (
    _PRIMES,
    _by_elimination,
    _Field,
    _inverse,
    _inverses,
    _rank_in_field,
    _times,
    matrix_ranks,
)

over = pytest.mark.parametrize


def in_jax(matrices: np.ndarray, largest: int) -> jax.Array:
    """What is computed where there is no compiler."""
    return _by_elimination(jnp.asarray(matrices, jnp.float32), largest).astype(jnp.int32)


both = over("ranks", [matrix_ranks, in_jax])


def exact_rank(matrix: np.ndarray) -> int:
    """By elimination without fractions (Bareiss): every division leaves no rest."""
    rows, last = matrix.tolist(), 1
    rank = 0
    for column in range(matrix.shape[1]):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        top, first = rows[rank], rows[rank][column]
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column]
            rows[i] = [(first * x - factor * y) // last for x, y in zip(rows[i], top, strict=True)]
        rank, last = rank + 1, first
    return rank


def field_of(prime: int) -> _Field:
    return _Field(jnp.float32(prime), jnp.asarray(_inverses(prime)))


def of_every_rank(n: int, m: int, largest: int, count: int) -> np.ndarray:
    """Counts of spikes like those of maps, some with repeated rows, and products of thin matrices of given ranks."""
    draw = np.random.default_rng(n * m)
    maps = draw.integers(0, largest + 1, (count, n, m)) * (draw.random((count, n, m)) < draw.random((count, 1, 1)))
    maps[::3, draw.integers(0, n, n)] = maps[::3, draw.integers(0, n, n)]
    for i in range(0, count, 2):
        thin = int(draw.integers(0, min(n, m) + 1))
        # Rows with a single one choose rows, so that the product stays within the bound.
        chosen = np.eye(thin, dtype=int)[draw.integers(0, thin, n)] if thin else np.zeros((n, 0), int)
        maps[i] = chosen @ draw.integers(-largest, largest + 1, (thin, m))
    return maps


@over("shape", [(1, 1), (1, 5), (8, 8), (8, 3), (9, 9), (12, 20), (16, 16), (17, 17)])
@over("largest", [2, 127])
@both
def test_equal_to_exact_elimination(ranks, shape: tuple, largest: int):
    matrices = of_every_rank(*shape, largest, 40)
    wanted = [exact_rank(matrix) for matrix in matrices]
    assert np.ptp(wanted) > 0
    got = ranks(matrices.astype(np.int32), largest=largest)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, wanted)


@over("size", [4, 8, 16, 32])
@both
def test_equal_to_float64_singular_values_on_thousands_of_maps(ranks, size: int):
    maps = of_every_rank(size, size, 2, 1500).astype(np.int32)
    np.testing.assert_array_equal(ranks(maps, largest=2), np.linalg.matrix_rank(maps.astype(float)))


@over("shape", [(7, 33), (40, 40), (70, 9)])
def test_rows_of_more_vectors_than_stay_in_registers(shape: tuple):
    matrices = of_every_rank(*shape, 1, 60)
    got = matrix_ranks(matrices.astype(np.int32), largest=1)
    np.testing.assert_array_equal(got, np.linalg.matrix_rank(matrices.astype(float)))


@over("largest", [5000, 2**24 - 1])
@both
def test_large_numbers(ranks, largest: int):
    matrices = of_every_rank(6, 9, largest, 30)
    wanted = [exact_rank(matrix) for matrix in matrices]
    np.testing.assert_array_equal(ranks(matrices.astype(np.int32), largest=largest), wanted)


@over("prime", [*_PRIMES, 8179, 8171, 8167])
@both
def test_a_minor_divisible_by_one_prime(ranks, prime: int):
    assert ranks(jnp.asarray([[[prime, 0], [0, 3]]]), largest=prime) == 2


def test_any_leading_shape():
    matrices = of_every_rank(5, 4, 2, 6)
    flat = matrix_ranks(jnp.asarray(matrices), largest=2)
    np.testing.assert_array_equal(matrix_ranks(jnp.asarray(matrices).reshape(2, 3, 5, 4), largest=2).ravel(), flat)
    assert matrix_ranks(jnp.asarray(matrices[0]), largest=2) == flat[0]
    assert matrix_ranks(jnp.zeros((0, 5, 4)), largest=2).shape == (0,)
    np.testing.assert_array_equal(matrix_ranks(jnp.zeros((3, 0, 4)), largest=2), [0, 0, 0])


@over(
    ("shape", "largest", "message"),
    [((3,), 1, "the shape … n m"), ((2, 2), 0, "from 1 to"), ((2, 2), 2**24, "16777215")],
)
def test_bad_input(shape: tuple, largest: int, message: str):
    with pytest.raises(ValueError, match=message):
        matrix_ranks(jnp.zeros(shape), largest=largest)


rank_in_field = jax.jit(_rank_in_field, static_argnums=1)


@over(("first", "found"), [(0, True), (1, True), (2, False)])
@over("row", [0, 6, 7, 8, 9])
def test_a_pivot_is_looked_for_in_two_columns(first: int, found: bool, row: int):
    """One row of a diagonal matrix, mixed so that its first number that is not zero stands after so many zeros."""
    n = 10
    # Every other row has its pivot where it is looked for, and nothing elsewhere.
    mixing = np.eye(n, n + 2, dtype=np.float32)
    mixing[row] = 0
    mixing[row, row + first] = 5
    # A row whose own column holds the shifted pivot would be one with it; such rows are zero.
    matrix = np.eye(n, dtype=np.float32)
    if first:
        matrix[row + 1 :] = 0
    rank = rank_in_field(matrix[..., None], 1, field_of(_PRIMES[0]), mixing[:, : n + 1])
    assert rank.item() == np.trace(matrix) - 1 + (found and row + first < n + 1)


@over("prime", _PRIMES)
def test_inverses_are_integers_although_quotients_are_not(prime: int):
    values = np.arange(-(2**15), 2**15 + 1)
    found = np.asarray(_inverse(jnp.asarray(values, jnp.float32), field_of(prime)))
    np.testing.assert_array_equal(found, np.round(found))
    np.testing.assert_array_equal(values * found.astype(np.int64) % prime, values % prime != 0)


@over("prime", _PRIMES)
def test_products_of_any_residues_are_exact(prime: int):
    draw = np.random.default_rng(0)
    ends = np.array([-prime // 2 - 6, -1, 0, 1, prime // 2 + 6])
    a = np.concatenate([np.repeat(ends, 5), draw.integers(-prime // 2, prime // 2, 100_000)])
    b = np.concatenate([np.tile(ends, 5), draw.integers(-prime // 2, prime // 2, 100_000)])
    found = np.asarray(_times(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), jnp.float32(prime)))
    np.testing.assert_array_equal((a * b - found.astype(np.int64)) % prime, 0)
    assert np.abs(found).max() <= prime // 2 + 6

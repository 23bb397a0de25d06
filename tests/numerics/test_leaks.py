"""Decay factors rounded to shifts: the nearest in every dtype, by number and by channel, with a derivative of 1."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.export.integer_neurons import Leak
from qpsnn_jax.numerics.leaks import nearest_leak
from qpsnn_jax.numerics.learned import round_leak

KNOWN = sorted({x for k in range(9) for x in (Fraction(1, 2**k), 1 - Fraction(1, 2**k))})


def nearest(tau):
    return float(min(KNOWN, key=lambda known: abs(known - Fraction(float(tau)))))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_leaks_are_the_nearest_in_every_dtype(dtype):
    taus = jax.nn.sigmoid(jax.random.normal(jax.random.key(0), (300,)) * 4).astype(dtype)
    found = jax.jit(round_leak)(taus)
    assert found.dtype == dtype
    distance = np.abs(np.float64(found) - np.float64(taus))
    np.testing.assert_array_equal(distance, np.abs([nearest(min(tau, 0.998)) - float(tau) for tau in taus]))
    Leak.of(np.float64(found))  # raises unless each is a shift, exactly
    kept = jnp.asarray([float(known) for known in KNOWN], dtype)
    np.testing.assert_array_equal(round_leak(kept)[:-1], kept[:-1])
    assert round_leak(kept)[-1] == 1 - 2**-8  # what is learned stays below 1


def test_leaks_of_numbers_and_arrays():
    assert [nearest_leak(tau) for tau in (0.0, 0.4, 0.64, 0.9, 1.0)] == [0.0, 0.5, 0.75, 0.875, 1.0]
    taus = 0.99 * np.random.default_rng(0).random((4, 9))
    np.testing.assert_array_equal(nearest_leak(taus), [[nearest(tau) for tau in row] for row in taus])
    np.testing.assert_array_equal(round_leak(jnp.float32(taus)), nearest_leak(np.float32(taus)))
    np.testing.assert_array_equal(jax.vmap(round_leak, 1, 1)(jnp.float32(taus)), nearest_leak(np.float32(taus)))


def test_gradients_pass_straight_through():
    assert jax.grad(lambda tau: 3 * round_leak(tau) ** 2)(0.6) == 6 * 0.5
    assert jax.grad(jax.grad(lambda tau: 3 * round_leak(tau) ** 2))(0.6) == 6
    assert jax.jvp(round_leak, (0.7,), (2.0,)) == (0.75, 2.0)

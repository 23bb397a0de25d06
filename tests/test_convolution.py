"""Every form of a convolution against plain sums."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.convolution import convolve

# Maps larger than, as large as, and smaller than the kernel; with taps that see only padding.
CASES = [
    ((8, 8), (3, 3), (1, 1), (1, 1)),
    ((9, 8), (3, 3), (2, 2), (1, 1)),
    ((3, 3), (3, 3), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (2, 2), (1, 1)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 1), (3, 3), (2, 2), (1, 1)),
    ((2, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 4), (1, 7), (1, 1), (0, 3)),
    ((2, 2), (5, 3), (2, 1), (3, 1)),
]


def by_sums(x, kernel, strides, padding):
    x = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    y = np.zeros((x.shape[0], (h - kh) // strides[0] + 1, (w - kw) // strides[1] + 1, kernel.shape[3]), np.int64)
    for i, j in product(range(y.shape[1]), range(y.shape[2])):
        window = x[:, i * strides[0] :, j * strides[1] :][:, :kh, :kw]
        y[:, i, j] = np.einsum("bklc,klco->bo", window, kernel)
    return y


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_sums_and_gradients(shape, kernel, strides, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (5, *shape, 4))
    weights = rng.integers(-3, 4, (*kernel, 4, 6))
    expected = by_sums(x, weights, strides, padding)

    def run(x, weights):
        return convolve(x, weights, strides=strides, padding=padding)

    got, pull = jax.vjp(run, jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_array_equal(got, expected)
    # The sums are linear in either operand, so a gradient is right if it pairs with every change as the sums do.
    pushed = rng.integers(-3, 4, expected.shape)
    by_x, by_weights = pull(jnp.asarray(pushed, jnp.float32))
    for _ in range(3):
        step, turn = rng.integers(-3, 4, x.shape), rng.integers(-3, 4, weights.shape)
        assert np.vdot(by_x, step) == np.vdot(pushed, by_sums(step, weights, strides, padding))
        assert np.vdot(by_weights, turn) == np.vdot(pushed, by_sums(x, turn, strides, padding))

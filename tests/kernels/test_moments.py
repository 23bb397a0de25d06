"""The native moments of channels against NumPy, and their derivatives against those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.kernels.moments import channel_moments

DRAW = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("native_library")


def by_jax(x):
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.var(x, axes)


@pytest.mark.parametrize("shape", [(7, 3, 2, 5), (2, 1, 7, 129), (1, 1), (300, 70), (40000, 1), (64, 2, 4, 4, 16)])
def test_values_and_gradients_of_any_shape(shape):
    # Far from 0, where a difference of sums of squares loses most of its digits.
    x = (DRAW.normal(size=shape) + 30 * DRAW.normal(size=shape[-1])).astype(np.float32)
    weights = DRAW.normal(size=(2, shape[-1])).astype(np.float32)
    loss = lambda x, f: jnp.vdot(jnp.stack(f(x)), weights)  # noqa: E731
    (mean, var), grad = jax.jit(lambda x: (channel_moments(x), jax.grad(loss)(x, channel_moments)))(x)
    rows = x.reshape(-1, shape[-1]).astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var, rows.var(0), rtol=1e-5, atol=1e-10)
    wanted = weights[0] + 2 * weights[1] * (rows - rows.mean(0))
    np.testing.assert_allclose(grad.reshape(rows.shape), wanted / len(rows), rtol=1e-4, atol=1e-4 / len(rows))


def test_nan_stays_in_its_channel_and_no_rows_have_no_moments():
    x = DRAW.normal(size=(5, 4, 3)).astype(np.float32)
    x[2, 1, 0] = np.nan
    for moment in jax.jit(channel_moments)(x):
        np.testing.assert_array_equal(np.isnan(moment), [True, False, False])
    empty = np.zeros((0, 4, 3), np.float32)
    of_var = jax.grad(lambda x: jnp.sum(channel_moments(x)[1]))
    moments, gradient = jax.jit(lambda x: (channel_moments(x), of_var(x)))(empty)
    assert np.isnan(moments).all()
    assert gradient.shape == empty.shape


def test_second_derivatives_and_vmap():
    x = DRAW.normal(size=(3, 4, 5)).astype(np.float32)
    loss = lambda x, f: jnp.sum(jnp.stack(f(x)) ** 3)  # noqa: E731
    for derivative in (
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(loss)(x, f) ** 2 * x))(x),
        lambda f: jax.vmap(lambda x: jax.grad(loss)(x, f))(jnp.stack([x, 2 * x])),
    ):
        both = jax.jit(lambda derivative=derivative: [derivative(f) for f in (channel_moments, by_jax)])()
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-6)

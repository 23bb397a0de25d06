"""The native gradient of max-pools against the one of plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.kernels.pooling import max_pool, pool_tiles

DRAW = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("native_library")


@pytest.mark.parametrize(
    ("shape", "window"),
    [((2, 3, 4, 6, 5), (2, 2)), ((3, 7, 5, 19), (2, 2)), ((2, 6, 7, 8), (3, 2)), ((0, 4, 4, 3), (2, 2))],
)
def test_gradients_go_to_the_first_of_the_largest(shape, window):
    x = DRAW.integers(0, 2, shape).astype(np.float32)  # many are equal
    x[x.shape[0] // 2 :] *= DRAW.normal(size=x[x.shape[0] // 2 :].shape)
    native, plain = lambda x: pool_tiles(x, window), lambda x: max_pool(x, window, window, (0, 0))
    weights = DRAW.normal(size=jax.eval_shape(plain, x).shape).astype(np.float32)
    each = [jax.value_and_grad(lambda x, f=f: jnp.vdot(f(x), weights)) for f in (native, plain)]
    found, wanted = jax.jit(lambda x: [f(x) for f in each])(x)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_nan_and_second_derivatives():
    x = DRAW.normal(size=(1, 4, 4, 3)).astype(np.float32)
    x[0, 1, 2, 1] = np.nan
    pools = (lambda x: pool_tiles(x, (2, 2)), lambda x: max_pool(x, (2, 2), (2, 2), (0, 0)))
    cubes = [lambda x, pool=pool: jnp.sum(pool(x) ** 3) for pool in pools]
    derivatives = (jax.grad, lambda f: jax.grad(lambda x: jnp.nansum(jax.grad(f)(x) * x)))
    for found, wanted in jax.jit(lambda x: [[by(f)(x) for f in cubes] for by in derivatives])(x):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)

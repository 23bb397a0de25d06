"""Recurrences against loops in Python, with first and second derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.numerics.recurrence import recurrence

DRAW = np.random.default_rng(0)
DRIVE, GIVEN, WEIGHTS = (DRAW.normal(size=(2, 4, 3)).astype(np.float32) for _ in range(3))
CONSTANTS = np.float32(0.7), DRAW.normal(size=(2, 1)).astype(np.float32), DRAW.normal(size=(1, 3)).astype(np.float32)


def step(value, given, *constants):
    scale, row, column = constants
    return scale * jnp.sin(value * column) + row * given * value


def loop(reverse, drive, given, constants):
    values = [drive[:, t] for t in range(drive.shape[1])]
    pairs = [(t, t + 1) for t in range(len(values) - 1)]
    for earlier, later in reversed(pairs) if reverse else pairs:
        source, target = (later, earlier) if reverse else (earlier, later)
        values[target] = values[target] + step(values[source], given[:, earlier], *constants)
    return jnp.stack(values, 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_values_and_two_derivatives(reverse: bool):
    def products(f):
        loss = lambda *a: jnp.sum(jnp.cos(f(*a)) * WEIGHTS)  # noqa: E731
        gradient = jax.grad(loss, (0, 1, 2))
        length = lambda *a: sum(jnp.vdot(g, jnp.cos(g)) for g in jax.tree.leaves(gradient(*a)))  # noqa: E731
        return lambda *a: (f(*a), gradient(*a), jax.grad(length, (0, 1, 2))(*a))

    ours = partial(recurrence, step, reverse)
    found, wanted = (
        jax.jit(products(f))(DRIVE, (GIVEN,), CONSTANTS) for f in (ours, lambda x, s, c: loop(reverse, x, s[0], c))
    )
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.any(np.asarray(want))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1])
def test_no_pair_of_steps(steps: int):
    x, given = DRIVE[:, :steps], GIVEN[:, :steps]
    gradient = jax.grad(lambda *a: jnp.sum(recurrence(step, False, *a)), (0, 1, 2))
    gradients = jax.device_get(jax.jit(gradient)(x, (given,), CONSTANTS))
    np.testing.assert_array_equal(gradients[0], np.ones_like(x))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients[1:]))


def test_memory_is_written_in_place():
    """In a program that creates the inputs, forward and backward need no third array of their size."""
    steps = 20
    leak = lambda v: 0.5 * jnp.where(v > 1, 0, v)  # noqa: E731

    def gradient(x, weights):
        return jnp.sum(jax.grad(lambda x: jnp.sum(recurrence(leak, False, x + 1, (), ()) * weights))(x))

    x = jax.ShapeDtypeStruct((8, steps, 1000), jnp.float32)
    needs = jax.jit(gradient).lower(x, x).compile().memory_analysis().temp_size_in_bytes
    assert needs < 2.5 * 4 * np.prod(x.shape)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.numerics.surrogate import SURROGATES, arctan, fire_step, rectangular, sigmoid, triangular

over = pytest.mark.parametrize
ORACLES = {
    "triangular": lambda x, a: np.where(np.abs(x) < a, (a - np.abs(x)) / a**2, 0),
    "rectangular": lambda x, a: np.where(np.abs(x) < a / 2, 1 / a, 0),
    "sigmoid": lambda x, k: k / (2 + 2 * np.cosh(k * x)),
    "arctan": lambda x, k: 2 * k / (4 + (np.pi * k * x) ** 2),
}
names = over("name", ORACLES)


def test_the_registry_names_every_surrogate():
    assert {triangular, rectangular, sigmoid, arctan} == set(SURROGATES.values())
    assert set(SURROGATES) == set(ORACLES)


@names
@over("parameter", [0.5, 1.0, 2.0, 4.0])
def test_formula(name: str, parameter: float):
    x = np.linspace(-3, 3, 97, dtype=np.float32)
    found = jax.jit(SURROGATES[name])(x, parameter)
    np.testing.assert_allclose(found, ORACLES[name](x, parameter), rtol=1e-5, atol=1e-6)


@over(("name", "parameter"), [("triangular", 1.0), ("rectangular", 1.0), ("sigmoid", 4.0), ("arctan", 2.0)])
def test_default_parameter(name: str, parameter: float):
    x = np.linspace(-2, 2, 41, dtype=np.float32)
    np.testing.assert_array_equal(*jax.jit(lambda x: (SURROGATES[name](x), SURROGATES[name](x, parameter)))(x))


@names
@over("parameter", [1.0, 3.0])
def test_area_is_one(name: str, parameter: float):
    x = np.linspace(-500, 500, 1_000_001, dtype=np.float32)
    assert np.trapezoid(jax.jit(SURROGATES[name])(x, parameter), x) == pytest.approx(1, abs=2e-3)


@names
def test_extremes_are_finite(name: str):
    x = np.array([-1e30, -100, 0, 100, 1e30], np.float32)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(SURROGATES[name])))(x)
    assert np.isfinite(value).all()
    assert np.isfinite(slope[1:-1]).all()


@over(("fire", "spikes"), [(">=", [0, 0, 1, 1, 1]), (">", [0, 0, 0, 1, 1])])
def test_step(fire: str, spikes: list[int]):
    x = np.array([-1, -1e-6, 0, 1e-6, 1], np.float32)
    np.testing.assert_array_equal(fire_step(x, fire=fire), spikes)


@names
@over(("fire", "shape"), [(">=", (2, 3, 4)), (">", ()), (">", (0,))])
def test_derivative_of_the_step_is_the_surrogate(name: str, fire: str, shape: tuple):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    @jax.jit
    def results(x):
        spikes, pull = jax.vjp(lambda x: fire_step(x, SURROGATES[name], fire), x)
        return spikes, pull(jnp.full_like(spikes, 3))[0], SURROGATES[name](x)

    spikes, gradient, slope = results(x)
    assert spikes.shape == shape
    np.testing.assert_allclose(gradient, 3 * np.asarray(slope), rtol=1e-6)


def test_nested_derivatives():
    x = np.float32(0.3)
    s = 1 / (1 + np.exp(-1.2))
    second = 16 * s * (1 - s) * (1 - 2 * s)
    assert jax.jit(jax.grad(jax.grad(lambda x: fire_step(x, sigmoid))))(x) == pytest.approx(second, rel=1e-5)
    for outer, inner in [(jax.jacfwd, jax.grad), (jax.grad, jax.jacfwd)]:
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jit(outer(inner(lambda x: fire_step(x, sigmoid)))).lower(x)


def test_unknown_fire():
    with pytest.raises(ValueError, match=r"fire must be .* got '<'"):
        fire_step(np.zeros(3, np.float32), triangular, "<")

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.numerics.neurons import LIFTrace, lif, lif_step, lif_trace
from qpsnn_jax.numerics.surrogate import SURROGATES, sigmoid

over = pytest.mark.parametrize
DRAW = np.random.default_rng(0)
B, T, C = 4, 5, 6
# Quarters keep float32 exact, and put many membranes right on the threshold.
CURRENTS = (DRAW.integers(-4, 9, (B, T, C)) / 4).astype(np.float32)
INITIAL = (DRAW.integers(0, 4, (B, C)) / 4).astype(np.float32)
COTANGENT = DRAW.normal(size=(B, T, C)).astype(np.float32)
TAU = np.array([[0.5, 0.25, 0.75, 0.5, 1.0, 0.0]], np.float32)
THETA = np.array([[1.0, 0.5, 1.0, 0.75, 1.25, 1.0]], np.float32)
SLOPES = {
    "triangular": lambda x: np.maximum(1 - np.abs(x), 0),
    "rectangular": lambda x: (np.abs(x) < 0.5) * 1.0,
    "sigmoid": lambda x: 4 / (2 + 2 * np.cosh(4 * x)),
    "arctan": lambda x: 1 / (1 + (np.pi * x) ** 2),
}
VARIANTS = [
    *(("triangular", *rest) for rest in product([">=", ">"], ["hard", "soft"], [False, True])),
    *((name, ">=", "hard", False) for name in ("rectangular", "sigmoid", "arctan")),
]


def numpy_forward(currents, tau, theta, initial, fire, reset):
    """Spikes, membranes before the reset and potentials before each step, one time step after the other."""
    left, rows = initial.astype(np.float64), []
    for t in range(currents.shape[1]):
        charged = tau * left + currents[:, t]
        spikes = (charged >= theta if fire == ">=" else charged > theta) * 1.0
        rows.append((spikes, charged, left))
        left = np.where(spikes == 1, 0, charged) if reset == "hard" else charged - theta * spikes
    return [np.stack(column, 1) for column in zip(*rows, strict=True)]


def numpy_backward(currents, tau, theta, initial, cotangent, slope, fire, reset, detach):
    """Back-propagation through time, written out: gradients of currents, tau, theta and initial."""
    spikes, charged, before = numpy_forward(currents, tau, theta, initial, fire, reset)
    to_currents, to_tau, to_theta = np.zeros(currents.shape), np.zeros(initial.shape), np.zeros(initial.shape)
    to_left = np.zeros(initial.shape)
    for t in reversed(range(currents.shape[1])):
        through_reset = -charged[:, t] if reset == "hard" else -theta
        to_spikes = cotangent[:, t] + (0 if detach else to_left * through_reset)
        to_distance = to_spikes * slope(charged[:, t] - theta)
        to_charged = to_distance + to_left * ((1 - spikes[:, t]) if reset == "hard" else 1)
        to_theta -= to_distance + (to_left * spikes[:, t] if reset == "soft" else 0)
        to_tau += to_charged * before[:, t]
        to_currents[:, t], to_left = to_charged, to_charged * tau
    return to_currents, to_tau.sum(0, keepdims=True), to_theta.sum(0, keepdims=True), to_left


@over("fire", [">=", ">"])
@over("reset", ["hard", "soft"])
def test_forward_against_numpy(fire: str, reset: str):
    trace = lif_trace(CURRENTS, initial=INITIAL, tau=TAU, threshold=THETA, fire=fire, reset=reset)
    spikes, membranes, _ = numpy_forward(CURRENTS, TAU, THETA, INITIAL, fire, reset)
    assert 0.2 < spikes.mean() < 0.8
    assert np.any(membranes == THETA[:, None])
    np.testing.assert_array_equal(trace.spikes, spikes)
    np.testing.assert_array_equal(trace.membranes, membranes)


@over(("surrogate", "fire", "reset", "detach"), VARIANTS)
def test_gradients_against_numpy(surrogate: str, fire: str, reset: str, detach: bool):
    options = {"surrogate": SURROGATES[surrogate], "fire": fire, "reset": reset, "detach_reset": detach}

    @jax.jit
    @jax.grad
    def gradients(arrays):
        x, tau, theta, initial = arrays
        return jnp.sum(lif(x, initial=initial, tau=tau, threshold=theta, **options) * COTANGENT)

    arrays = (CURRENTS, TAU, THETA, INITIAL)
    wanted = numpy_backward(*arrays, COTANGENT, SLOPES[surrogate], fire, reset, detach)
    for got, want in zip(gradients(arrays), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_defaults_are_the_paper():
    spelled = lif(CURRENTS, tau=0.5, threshold=1.0, fire=">=", reset="hard", initial=jnp.zeros((B, C)))
    np.testing.assert_array_equal(lif(CURRENTS), spelled)
    first = lif(jnp.ones((1, 3, 1)))
    np.testing.assert_array_equal(first.ravel(), [1, 1, 1])
    np.testing.assert_array_equal(lif(jnp.ones((1, 3, 1)), fire=">").ravel(), [0, 1, 0])


@over("shape", [(3, 1), (3, 4), (2, 0, 3), (2, 3, 5), (2, 3, 4, 4, 5), (2, 20, 3)])
def test_any_shape(shape: tuple):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    trace = lif_trace(x)
    assert isinstance(trace, LIFTrace)
    assert trace.spikes.shape == trace.membranes.shape == shape
    wanted, *_ = numpy_forward(x, 0.5, 1, np.zeros((shape[0], *shape[2:])), ">=", "hard") if shape[1] else [x]
    np.testing.assert_array_equal(trace.spikes, wanted)


def test_step_is_a_scan_body_over_time_major_currents():
    left, trace = jax.lax.scan(lif_step, jnp.zeros((B, C)), jnp.swapaxes(CURRENTS, 0, 1))
    np.testing.assert_array_equal(jnp.swapaxes(trace.spikes, 0, 1), lif(CURRENTS))
    np.testing.assert_array_equal(left, trace.membranes[-1] * (1 - trace.spikes[-1]))


def test_a_run_continues_from_its_last_potential():
    left, _ = jax.lax.scan(lif_step, jnp.zeros((B, C)), jnp.swapaxes(CURRENTS[:, :2], 0, 1))
    np.testing.assert_array_equal(lif(CURRENTS)[:, 2:], lif(CURRENTS[:, 2:], initial=left))


@over("unroll", [1, 2, 18])
def test_unroll_changes_nothing(unroll: int):
    x = np.random.default_rng(2).normal(size=(2, 18, 3)).astype(np.float32)
    np.testing.assert_array_equal(lif(x, unroll=unroll), lif(x))


def test_detached_reset_changes_only_the_gradient():
    def gradient(detach: bool):
        return jax.grad(lambda x: jnp.sum(lif(x, detach_reset=detach) * COTANGENT))(CURRENTS)

    np.testing.assert_array_equal(lif(CURRENTS, detach_reset=True), lif(CURRENTS))
    assert not np.allclose(gradient(True), gradient(False))


def test_vmap_over_tau():
    taus = jnp.asarray([0.25, 0.5, 0.75])
    swept = jax.vmap(lambda tau: lif(CURRENTS, tau=tau))(taus)
    np.testing.assert_array_equal(swept, jnp.stack([lif(CURRENTS, tau=tau) for tau in (0.25, 0.5, 0.75)]))


def test_hessian_is_finite_and_couples_no_two_neurons():
    x = jnp.asarray(CURRENTS[:1, :3, :2])
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(lif(x, surrogate=sigmoid))))(x)[0, :, :, 0]
    assert jnp.all(jnp.isfinite(hessian))
    assert jnp.any(hessian[:, 0, :, 0] != 0)
    assert jnp.all(hessian[:, 0, :, 1] == 0)


@over("option", [{"fire": "=="}, {"reset": "none"}])
@over("function", [lif, lif_trace])
def test_unknown_option(function, option: dict):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got '{value}'"):
        function(CURRENTS, **option)


@over("function", [lif, lif_trace])
def test_currents_need_a_time_axis(function):
    with pytest.raises(ValueError, match=r"currents must have the shape b t …, got \(3,\)"):
        function(jnp.zeros(3))

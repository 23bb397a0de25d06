from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.numerics import neurons
from qpsnn_jax.numerics.neurons import LIFTrace, lif_step
from qpsnn_jax.numerics.surrogate import SURROGATES, fire_step, sigmoid, triangular

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


def lif(currents, **options):
    """The spikes alone."""
    return neurons.lif(currents, **options)[1]


@jax.jit
def fires(currents, **arrays):
    """Spikes with the default options."""
    return lif(currents, **arrays)


def lif_trace(currents, **options):
    """The trace alone."""
    return neurons.lif_trace(currents, **options)[1]


VARIANTS = [
    *(("triangular", *rest) for rest in product([">=", ">"], ["hard", "soft", "delayed"], [False, True])),
    *((name, ">=", "hard", False) for name in ("rectangular", "sigmoid", "arctan")),
]


def numpy_forward(currents, tau, theta, initial, fire, reset):
    """Spikes, membranes before the reset and potentials before each step, one time step after the other."""
    above = np.greater_equal if fire == ">=" else np.greater
    left, rows = initial.astype(np.float64), []
    for t in range(currents.shape[1]):
        charged = tau * left + currents[:, t] - (theta * above(left, theta) if reset == "delayed" else 0)
        spikes = above(charged, theta) * 1.0
        rows.append((spikes, charged, left))
        left = {"hard": np.where(spikes == 1, 0, charged), "soft": charged - theta * spikes, "delayed": charged}[reset]
    return [np.stack(column, 1) for column in zip(*rows, strict=True)]


def numpy_backward(currents, tau, theta, initial, cotangent, slope, fire, reset, detach):
    """Back-propagation through time by hand: gradients of currents, tau, theta and initial."""
    spikes, charged, before = numpy_forward(currents, tau, theta, initial, fire, reset)
    to_currents, to_tau, to_theta = np.zeros(currents.shape), np.zeros(initial.shape), np.zeros(initial.shape)
    to_left = np.zeros(initial.shape)  # the cotangent of U at each step
    to_later = np.zeros(initial.shape)  # that of the potential before the reset at the step after it
    for t in reversed(range(currents.shape[1])):
        through_reset = {"hard": -charged[:, t], "soft": -theta, "delayed": 0}[reset]
        to_spikes = cotangent[:, t] + (0 if detach else to_left * through_reset)
        if reset == "delayed":
            to_spikes = to_spikes - (0 if detach else theta * to_later)
            to_theta -= to_later * spikes[:, t]
        to_distance = to_spikes * slope(charged[:, t] - theta)
        to_charged = to_distance + to_left * ((1 - spikes[:, t]) if reset == "hard" else 1)
        to_theta -= to_distance + (to_left * spikes[:, t] if reset == "soft" else 0)
        to_tau += to_charged * before[:, t]
        to_currents[:, t], to_left, to_later = to_charged, to_charged * tau, to_charged
    if reset == "delayed":
        pending = (initial >= theta if fire == ">=" else initial > theta) * 1.0
        to_distance = 0 if detach else -theta * to_later * slope(initial - theta)
        to_theta -= to_later * pending + to_distance
        to_left = to_left + to_distance
    return to_currents, to_tau.sum(0, keepdims=True), to_theta.sum(0, keepdims=True), to_left


@over("fire", [">=", ">"])
@over("reset", ["hard", "soft", "delayed"])
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
    spelled = lif(CURRENTS, tau=0.5, threshold=1.0, fire=">=", reset="hard", initial=np.zeros((B, C), np.float32))
    np.testing.assert_array_equal(fires(CURRENTS), spelled)
    ones = np.ones((B, T, C), np.float32)
    np.testing.assert_array_equal(fires(ones)[0, :3, 0], [1, 1, 1])
    np.testing.assert_array_equal(lif(ones, fire=">")[0, :3, 0], [0, 1, 0])


@over("shape", [(3, 1), (3, 4), (2, 0, 3), (2, 3, 5), (2, 3, 4, 4, 5), (2, 20, 3)])
def test_any_shape(shape: tuple):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    trace = lif_trace(x)
    assert isinstance(trace, LIFTrace)
    assert trace.spikes.shape == trace.membranes.shape == shape
    wanted, *_ = numpy_forward(x, 0.5, 1, np.zeros((shape[0], *shape[2:])), ">=", "hard") if shape[1] else [x]
    np.testing.assert_array_equal(trace.spikes, wanted)


def test_step_is_a_scan_body_over_time_major_currents():
    left, trace = jax.device_get(jax.lax.scan(lif_step, np.zeros((B, C), np.float32), np.swapaxes(CURRENTS, 0, 1)))
    np.testing.assert_array_equal(np.swapaxes(trace.spikes, 0, 1), fires(CURRENTS))
    np.testing.assert_array_equal(left, trace.membranes[-1] * (1 - trace.spikes[-1]))


@over(("tau", "reset"), [(0.9, "hard"), (0.3, "soft"), (0.7, "delayed")])
def test_all_steps_at_once_are_calls_of_one_step_to_the_last_bit(tau: float, reset: str):
    """Also where products are rounded, and with an option for each neuron."""
    x = np.random.default_rng(4).normal(0.4, 0.8, (3, 8, 50)).astype(np.float32)
    thresholds = np.linspace(0.5, 1, 50, dtype=np.float32)[None]
    run = jax.jit(partial(neurons.lif_trace, tau=tau, threshold=thresholds, reset=reset))
    whole, trace = run(x)
    state, spikes, membranes = np.zeros((3, 50), np.float32), [], []
    for t in range(8):
        state, step = run(x[:, t : t + 1], initial=state)
        spikes.append(step.spikes)
        membranes.append(step.membranes)
    np.testing.assert_array_equal(np.concatenate(spikes, 1), trace.spikes)
    np.testing.assert_array_equal(np.concatenate(membranes, 1), trace.membranes)
    np.testing.assert_array_equal(state, whole)
    fired, last = (np.asarray(each)[:, -1] for each in trace)
    assert 0.1 < fired.mean() < 0.9
    left = last - {"hard": last, "soft": thresholds, "delayed": 0}[reset] * fired
    np.testing.assert_allclose(whole, left, rtol=1e-6, atol=1e-6)


def test_the_delayed_reset_is_that_of_other_libraries():
    """U = βU + X - θS of the step before, as snnTorch's Leaky and Spyx's LIF by their definition."""
    spikes = lif(np.full((1, 6, 1), 0.75, np.float32), tau=0.5, reset="delayed", fire=">")
    membranes, fired = [], []
    for _ in range(6):
        membranes.append(0.5 * (membranes[-1] if membranes else 0) + 0.75 - 1.0 * (fired[-1] if fired else 0))
        fired.append(float(membranes[-1] > 1))
    assert sum(fired) > 1
    np.testing.assert_array_equal(np.ravel(spikes), fired)


@over("initial", [None, INITIAL])
def test_no_step_leaves_the_state(initial):
    left, spikes = neurons.lif(CURRENTS[:, :0], initial=initial)
    np.testing.assert_array_equal(left, np.zeros((B, C)) if initial is None else initial)
    assert spikes.shape == (B, 0, C)


def test_detached_reset_changes_only_the_gradient():
    @jax.jit
    def pulled(x):
        spikes, pull = zip(*(jax.vjp(partial(lif, detach_reset=detach), x) for detach in (True, False)), strict=True)
        return spikes, [by(COTANGENT)[0] for by in pull]

    spikes, gradients = pulled(CURRENTS)
    np.testing.assert_array_equal(*spikes)
    assert not np.allclose(*gradients)


def test_vmap_over_tau():
    taus = np.float32([0.25, 0.5, 0.75])
    swept = jax.vmap(lambda tau: fires(CURRENTS, tau=tau))(taus)
    np.testing.assert_array_equal(swept, np.stack([fires(CURRENTS, tau=tau) for tau in taus]))


def taylor_lif(currents, tau, theta, initial, slope, fire, reset, detach):
    """The spikes by a plain scan without a custom derivative: each step of the neuron is its own Taylor polynomial.

    It has the value of the step, and the surrogate and its derivative as first and second derivatives.
    """

    def advance(left, current):
        charged = tau * left + current
        distance = charged - theta
        at = jax.lax.stop_gradient(distance)
        first, second = jax.jvp(slope, (at,), (jnp.ones_like(at),))
        first, second = jax.lax.stop_gradient((first, second))
        step = (at >= 0 if fire == ">=" else at > 0).astype(at.dtype)
        spikes = step + first * (distance - at) + second / 2 * (distance - at) ** 2
        gate = jax.lax.stop_gradient(spikes) if detach else spikes
        return charged * (1 - gate) if reset == "hard" else charged - theta * gate, spikes

    return jnp.swapaxes(jax.lax.scan(advance, initial, jnp.swapaxes(currents, 0, 1))[1], 0, 1)


@over(("steps", "detach"), [(3, False), (20, True)])
@over(("surrogate", "fire", "reset"), [("sigmoid", ">=", "hard"), ("triangular", ">", "soft")])
def test_second_derivatives_in_every_mode_there_is(surrogate: str, fire: str, reset: str, steps: int, detach: bool):
    draw = np.random.default_rng(3)
    x, w, v = (draw.normal(0.4, 0.6, (2, steps, 2)).astype(np.float32) for _ in range(3))
    arrays = x, np.float32(0.5), np.float32(0.9), np.abs(w[:, 0])
    options = {"surrogate": SURROGATES[surrogate], "fire": fire, "reset": reset, "detach_reset": detach}

    def ours(x, tau, theta, initial):
        spikes = lif(x, tau=tau, threshold=theta, initial=initial, **options)
        return jnp.sum(w * spikes) ** 2 + jnp.sum(spikes * x)

    def oracle(*arrays):
        spikes = taylor_lif(*arrays, SURROGATES[surrogate], fire, reset, detach)
        return jnp.sum(w * spikes) ** 2 + jnp.sum(spikes * arrays[0])

    def product(f):
        every = (0, 1, 2, 3)
        turn = v, np.float32(0.7), np.float32(-1.3), v[:, 1]
        return jax.grad(lambda *a: sum(map(jnp.vdot, jax.grad(f, every)(*a), turn)), every)(*arrays)

    def beside(f):
        """The value beside a gradient is differentiated again, also if a loop computes both."""
        yield jax.grad(lambda x: jax.value_and_grad(f)(x, *arrays[1:])[0])(x)
        yield jax.grad(lambda x: jax.lax.map(lambda x: jax.value_and_grad(f)(x, *arrays[1:])[0], x[None])[0])(x)

    def descended(f, rate):
        def step(x, _):
            value, gradient = jax.value_and_grad(f)(x, *arrays[1:])
            return x - rate * gradient, value

        return f(jax.lax.scan(step, x, None, length=1)[0], *arrays[1:])

    def results(f, rate):
        if (surrogate, detach) != ("sigmoid", False):  # what follows does not depend on either
            return product(f)
        gradients = list(beside(f)) if f is ours else [jax.grad(f)(*arrays)] * 2
        return product(f), gradients, jax.grad(partial(descended, f))(rate)

    found, wanted = (jax.jit(partial(results, f))(np.float32(0.01)) for f in (ours, oracle))
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * (1 + np.abs(want).max()))


@over("derivative", [jax.jacfwd, jax.hessian, lambda f: lambda x: jax.jvp(f, (x,), (x,))])
def test_forward_mode_raises(derivative):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(derivative(lambda x: jnp.sum(lif(x)))).lower(CURRENTS)


def test_hessian_couples_no_two_neurons():
    x = CURRENTS[:1, :3, :2]
    found = jax.jit(jax.jacrev(jax.jacrev(lambda x: jnp.sum(lif(x, surrogate=sigmoid)))))(x)
    hessian = np.asarray(found)[0, :, :, 0]
    assert np.any(hessian[:, 0, :, 0] != 0)
    assert np.all(hessian[:, 0, :, 1] == 0)


def test_a_surrogate_may_close_over_what_is_differentiated():
    def sensitivity(width):
        """The derivative of the gradient; the width does not change a spike."""
        spikes = lambda x: jnp.sum(lif(x, surrogate=lambda u: triangular(u, width)) * COTANGENT)  # noqa: E731
        return jnp.sum(jax.grad(spikes)(CURRENTS) * CURRENTS)

    compiled, derivatives = jax.jit(sensitivity), [jax.grad(jax.jit(sensitivity)), jax.grad(sensitivity)]
    widths = np.asarray([0.7, 1.0, 1.3], np.float32)
    rise = (compiled(1.003) - compiled(0.997)) / 0.006
    assert abs(rise) > 0.1
    for derivative in (derivatives[0], jax.jit(derivatives[1])):
        np.testing.assert_allclose(derivative(1.0), rise, rtol=2e-3)
    mapped = jax.jit(jax.vmap(sensitivity))(widths)
    np.testing.assert_allclose(mapped, [compiled(w) for w in widths], rtol=1e-5)


def test_a_surrogate_may_have_a_traced_default():
    def sensitivity(width):
        spikes = lambda x: jnp.sum(lif(x, surrogate=lambda u, w=width: triangular(u, w)) * COTANGENT)  # noqa: E731
        return jnp.sum(jax.grad(spikes)(CURRENTS) * CURRENTS)

    rise = (jax.jit(sensitivity)(1.003) - jax.jit(sensitivity)(0.997)) / 0.006
    np.testing.assert_allclose(jax.jit(jax.grad(sensitivity))(1.0), rise, rtol=2e-3)


@over("surrogate", list(SURROGATES.values()), ids=list(SURROGATES))
@over("dtype", [jnp.bfloat16, jnp.float16])
def test_an_option_of_float32_keeps_half_precision(surrogate, dtype):
    option = jnp.float32(1.5)
    assert surrogate(jnp.zeros(2, dtype), option).dtype == dtype
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(lif(x, surrogate=lambda u: surrogate(u, option)))))
    assert gradient(jnp.asarray(CURRENTS, dtype)).dtype == dtype


def test_wrong_options_raise():
    with pytest.raises(ValueError, match=r"membrane must have the shape of current, \(2, 3\), got \(3,\)"):
        lif_step(jnp.zeros(3), jnp.zeros((2, 3)))
    for run in (lambda: lif(CURRENTS, surrogate="triangular"), lambda: fire_step(jnp.zeros(2), "triangular")):
        with pytest.raises(ValueError, match="a function is needed, such as qpsnn_jax.triangular"):
            run()


def test_nan_comes_out_as_nan():
    x = CURRENTS.copy()
    x[1, 2, 3] = np.nan
    spikes, membranes = map(np.asarray, lif_trace(x))
    assert np.isnan(spikes[1, 2:, 3]).all()
    assert np.isnan(membranes[1, 2:, 3]).all()
    spikes = np.array(spikes)
    spikes[1, 2:, 3] = 0
    wanted = np.array(fires(CURRENTS))
    wanted[1, 2:, 3] = 0
    np.testing.assert_array_equal(spikes, wanted)


@over("dtype", [jnp.bfloat16, jnp.float16])
def test_options_are_cast_to_the_currents_dtype(dtype):
    trace = lif_trace(CURRENTS.astype(dtype), tau=TAU, threshold=THETA, initial=INITIAL)
    assert trace.spikes.dtype == trace.membranes.dtype == dtype
    wanted = lif(CURRENTS, tau=TAU, threshold=THETA, initial=INITIAL)
    np.testing.assert_array_equal(np.float32(trace.spikes), wanted)  # quarters are exact in both dtypes


@over(
    ("arguments", "message"),
    [
        ({"currents": np.ones((2, 3), np.int32)}, "currents must be floating, got int32"),
        ({"currents": np.ones((2, 3), bool)}, "currents must be floating, got bool"),
        ({"initial": np.zeros((B, 1), np.float32)}, r"initial must have the shape \(4, 6\) .* got \(4, 1\)"),
        ({"tau": np.ones(5, np.float32)}, r"tau of shape \(5,\) does not fit one step, \(4, 6\)"),
        ({"threshold": np.ones((2, 4, 6), np.float32)}, r"threshold of shape \(2, 4, 6\) does not fit"),
    ],
)
def test_what_does_not_fit(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        lif(**{"currents": CURRENTS} | arguments)


@over("option", [{"fire": "=="}, {"reset": "none"}])
@over("function", [lif, lif_trace])
def test_unknown_option(function, option: dict):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got '{value}'"):
        function(CURRENTS, **option)


@over("function", [lif, lif_trace])
def test_currents_need_a_time_axis(function):
    with pytest.raises(ValueError, match=r"currents must have the shape b t …, got \(3,\)"):
        function(np.zeros(3, np.float32))

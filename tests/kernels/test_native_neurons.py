"""Native neurons against the JAX functions that define them, with their derivatives and in programs."""

from functools import partial
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.kernels import neurons as native
from qpsnn_jax.kernels.affine import Affine
from qpsnn_jax.model.nodes import LIF
from qpsnn_jax.model.nodes.base import Context, Value
from qpsnn_jax.numerics import neurons as plain
from qpsnn_jax.numerics.surrogate import SURROGATES, triangular

OPTIONS = {"tau": 0.5, "threshold": 1.0, "surrogate": triangular, "fire": ">=", "reset": "hard", "detach_reset": False}
# The library has a program for every surrogate, in which the other options are arguments.
VARIANTS = list(product(["triangular"], (">=", ">"), ("hard", "soft"), (False, True)))
VARIANTS += list(product(SURROGATES.keys() - {"triangular"}, (">=",), ("hard", "soft"), (False,)))
DRAW = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("native_library")


def currents(*shape):
    """Quarters, which put many membranes right on the threshold, exactly."""
    return (DRAW.integers(-4, 9, shape) / 4).astype(np.float32)


def both(function, *arrays, **options):
    """``function`` of the spikes and membranes, natively and by its definition."""
    given = OPTIONS | options
    runs = [lambda x, m=m: m.lif_trace(x, **given)[1] for m in (native, plain)]
    return jax.jit(lambda *a: [function(run, *a) for run in runs])(*arrays)


def alike(found, wanted):
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 1, 8), (2, 4, 2051), (0, 3, 5), (2, 0, 3), (2, 3, 0), (2, 3)])
def test_values_and_gradients_of_any_shape(shape):
    x, cotangent = currents(*shape), DRAW.normal(size=shape).astype(np.float32)
    found, wanted = both(lambda run, x: (run(x), jax.grad(lambda x: jnp.vdot(run(x).spikes, cotangent))(x)), x)
    np.testing.assert_array_equal(found[0].spikes, wanted[0].spikes)
    np.testing.assert_array_equal(found[0].membranes, wanted[0].membranes)
    alike(found[1], wanted[1])


def operands(shape, residual):
    """An affine function of quarters, whose values are exact."""
    factor, offset = ((DRAW.integers(1, 5, shape[-1:]) / 4).astype(np.float32) for _ in range(2))
    return Affine(4 * currents(*shape), factor, offset, currents(*shape) if residual else None)


# Channels that fill vectors and do not; one map, one step, one example.
SHAPES = [
    (3, 2, 4, 4, 16),
    (2, 3, 1, 1, 5),
    (1, 2, 1, 7, 129),
    (4, 1, 3, 3, 3),
    (1, 1, 1, 1, 1),
    (2, 25, 70),
    (0, 2, 4),
]


@pytest.mark.parametrize(("shape", "residual"), [(shape, i % 2 == 0) for i, shape in enumerate(SHAPES)])
def test_currents_are_computed_in_the_same_pass(shape, residual):
    given, w = operands(shape, residual), DRAW.normal(size=shape).astype(np.float32)

    def values(run, given):
        return run(given), jax.grad(lambda given: jnp.vdot(run(given).spikes, w))(given)

    runs = (lambda x: native.lif_trace(x, **OPTIONS)[1], lambda x: plain.lif_trace(x.compute(), **OPTIONS)[1])
    found, wanted = jax.jit(lambda given: [values(run, given) for run in runs])(given)
    np.testing.assert_array_equal(found[0].spikes, wanted[0].spikes)
    np.testing.assert_array_equal(found[0].membranes, wanted[0].membranes)
    for got, want in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max(initial=0)))
    assert w.size < 70 or all(np.any(np.asarray(x)) for x in jax.tree.leaves(found[1]))


def test_many_neurons_in_one_channel():
    """More places than a part has, so that sums of parts are added."""
    given = operands((3, 2, 50, 1000, 1), True)
    found, wanted = (
        jax.jit(jax.grad(lambda given, f=f: jnp.sum(f(given).spikes)))(given)
        for f in (lambda x: native.lif_trace(x, **OPTIONS)[1], lambda x: plain.lif_trace(x.compute(), **OPTIONS)[1])
    )
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_second_derivatives_and_vmap_of_affine_currents():
    given = operands((2, 3, 5), True)
    smooth = OPTIONS | {"surrogate": SURROGATES["sigmoid"]}

    def derivatives(run):
        loss = lambda given: jnp.sum(run(given).spikes * given.x) ** 2  # noqa: E731
        of_grad = lambda given: sum(jnp.sum(x * x) for x in jax.tree.leaves(jax.grad(loss)(given)))  # noqa: E731
        both = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), given)
        return jax.grad(of_grad)(given), jax.vmap(jax.grad(loss))(both)

    found, wanted = (
        jax.jit(partial(derivatives, run))()
        for run in (lambda x: native.lif_trace(x, **smooth)[1], lambda x: plain.lif_trace(x.compute(), **smooth)[1])
    )
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_every_option():
    x, cotangent = currents(2, 4, 5), DRAW.normal(size=(2, 4, 5)).astype(np.float32)

    def every(module):
        for name, fire, reset, detached in VARIANTS:
            options = {"surrogate": SURROGATES[name], "fire": fire, "reset": reset, "detach_reset": detached}
            run = lambda x, o=options: module.lif_trace(x, **OPTIONS | o)[1]  # noqa: E731
            yield run(x).spikes, jax.grad(lambda x, run=run: jnp.vdot(run(x).spikes, cotangent))(x)

    found, wanted = (jax.jit(lambda m=m: list(every(m)))() for m in (native, plain))
    for variant, (spikes, gradient), (right_spikes, right_gradient) in zip(VARIANTS, found, wanted, strict=True):
        np.testing.assert_array_equal(spikes, right_spikes, err_msg=str(variant))
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-5, atol=1e-6, err_msg=str(variant))
    assert len({np.asarray(gradient).tobytes() for _, gradient in wanted}) >= 10


def learned(shape, by_channel):
    """Currents, U[0], τ and θ, of quarters and eighths, with cotangents of the spikes and of U[T]."""
    tau, threshold = (
        DRAW.choice(values, shape[-1:] if by_channel else ()) for values in ([0.25, 0.5, 1], [0.5, 1, 1.5])
    )
    options = tuple(np.asarray(x, np.float32) for x in (tau, threshold))
    initial = currents(shape[0], *shape[2:])
    weights = tuple(DRAW.normal(size=x).astype(np.float32) for x in (shape, initial.shape))
    return (currents(*shape), initial, *options), weights


def of_step(module, shape, tau, threshold):
    """τ and θ by name; JAX functions do not know which axis is that of the channels."""
    step = (1,) * (len(shape) - 2)
    return {
        name: x.reshape(*step, -1) if x.ndim and module is plain else x
        for name, x in (("tau", tau), ("threshold", threshold))
    }


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 2, 4, 4, 16), (1, 3, 300, 7), (2, 1, 3), (0, 2, 4), (2, 0, 3)])
@pytest.mark.parametrize("by_channel", [True, False])
def test_learned_tau_and_threshold(shape, by_channel):
    given, (of_spikes, of_last) = learned(shape, by_channel)
    variants = VARIANTS if shape == (2, 4, 5) else VARIANTS[:2]

    def every(module):
        for name, fire, reset, detached in variants:
            options = {"surrogate": SURROGATES[name], "fire": fire, "reset": reset, "detach_reset": detached}

            def values(x, initial, tau, threshold, o=options):
                last, trace = module.lif_trace(x, initial=initial, **o, **of_step(module, shape, tau, threshold))[:2]
                return jnp.vdot(trace.spikes, of_spikes) + jnp.vdot(last, of_last), (last, trace)

            yield jax.value_and_grad(values, argnums=(0, 1, 2, 3), has_aux=True)(*given)

    found, wanted = (jax.jit(lambda m=m: list(every(m)))() for m in (native, plain))
    for variant, ((_, got), gradients), ((_, want), right) in zip(variants, found, wanted, strict=True):
        jax.tree.map(partial(np.testing.assert_array_equal, err_msg=str(variant)), got, want)
        for got, want in zip(gradients, right, strict=True):
            np.testing.assert_allclose(
                got, want, 1e-5, 1e-6 * max(1, np.abs(want).max(initial=0)), err_msg=str(variant)
            )
            assert of_spikes.size < 40 or np.any(want)


@pytest.mark.parametrize("options", [{}, {"reset": "soft"}, {"detach_reset": True}], ids=["hard", "soft", "detached"])
def test_affine_currents_that_are_infinite_and_learned_neurons(options):
    shape = (3, 4, 2, 3, 7)
    given, (_, initial, tau, threshold) = operands(shape, True), learned(shape, True)[0]
    given.residual[0, -1, 0, 0, 2] = given.residual[1, 1, 1, 1, 3] = -np.inf
    given.residual[2, 2, 1, 2, 4] = np.nan

    def gradients(module, start):
        def loss(given, tau, threshold):
            x = given if module is native else given.compute()
            chosen = OPTIONS | options | of_step(module, shape, tau, threshold)
            return jnp.sum(module.lif_trace(x, initial=initial if start else None, **chosen)[1].spikes * w)

        w = np.linspace(-1, 2, np.prod(shape), dtype=np.float32).reshape(shape)
        return jax.grad(loss, (0, 1, 2))(given, tau, threshold)

    for start in (True, False):
        found, wanted = (jax.jit(partial(gradients, module, start))() for module in (native, plain))
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
            np.testing.assert_allclose(got, want, 1e-5, 1e-5 * np.abs(want[np.isfinite(want)]).max())


def test_second_derivatives_and_vmap_of_learned_tau_and_threshold():
    given, (weights, _) = learned((2, 4, 3), True)

    def derivatives(module):
        def loss(*given):
            x, initial, tau, threshold = given
            options = OPTIONS | of_step(module, x.shape, tau, threshold) | {"surrogate": SURROGATES["sigmoid"]}
            last, trace = module.lif_trace(x, initial=initial, **options)[:2]
            return jnp.sum(trace.spikes * weights) ** 2 + jnp.sum(trace.membranes**2 * weights) + jnp.sum(last**2)

        every = (0, 1, 2, 3)
        of_grad = lambda *given: sum(jnp.sum(jnp.sin(x)) for x in jax.grad(loss, every)(*given))  # noqa: E731
        stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), given)
        return jax.grad(of_grad, every)(*given), jax.vmap(jax.grad(loss, every))(*stacked)

    alike(*(jax.jit(partial(derivatives, module))() for module in (native, plain)))


def test_gradients_of_membranes_and_second_derivatives():
    x, w = currents(2, 4, 3), DRAW.normal(size=(2, 4, 3)).astype(np.float32)

    def derivatives(run, x):
        loss = lambda x: jnp.sum(run(x).spikes * w) ** 2 + jnp.sum(run(x).membranes ** 2 * w)  # noqa: E731
        of_spikes = lambda x: jnp.sum(jnp.sin(run(x).spikes * x) * w)  # noqa: E731
        return [(jax.grad(f)(x), jax.grad(lambda x, f=f: jnp.vdot(jax.grad(f)(x), w))(x)) for f in (loss, of_spikes)]

    found, wanted = both(derivatives, x, surrogate=SURROGATES["sigmoid"], detach_reset=True)
    assert all(map(np.any, jax.device_get(wanted[1])))
    alike(found, wanted)


@pytest.mark.parametrize(
    "options",
    [{}, {"surrogate": SURROGATES["sigmoid"], "reset": "soft"}, {"detach_reset": True}],
    ids=["hard", "sigmoid", "detached"],
)
def test_nan_and_infinity_are_those_of_the_definition(options):
    x = currents(2, 4, 5)
    x[1, 2, 3], x[0, 1, 2] = np.nan, -np.inf
    found, wanted = both(lambda run, x: (run(x), jax.grad(lambda x: jnp.sum(run(x).spikes))(x)), x, **options)
    assert np.isnan(found[0].spikes).sum() == 2
    np.testing.assert_array_equal(found[0].spikes, wanted[0].spikes)
    np.testing.assert_array_equal(np.isnan(found[1]), np.isnan(wanted[1]))


def test_a_surrogate_that_is_added_runs_in_plain_jax(monkeypatch):
    def narrow(u, width=0.5, height=2.0):
        return jnp.where(jnp.abs(u) < width, height, 0 * u)

    monkeypatch.setitem(SURROGATES, "narrow", narrow)
    found, wanted = both(
        lambda run, x: jax.grad(lambda x: jnp.sum(run(x).spikes))(x), currents(1, 2, 3), surrogate=narrow
    )
    np.testing.assert_array_equal(found, wanted)


def test_vmap():
    alike(*both(lambda run, x: jax.vmap(run)(x), currents(3, 2, 4, 5)))


@pytest.mark.parametrize(("tau", "reset"), [(0.9, "hard"), (0.7, "soft")])
def test_steps_in_several_calls(tau, reset):
    """The last bits too, of random numbers whose products are rounded; and the gradient through all calls."""
    x, cotangent = DRAW.normal(0.4, 1, (2, 6, 2051)).astype(np.float32), currents(2, 6, 2051)
    options = OPTIONS | {"tau": tau, "reset": reset, "surrogate": SURROGATES["sigmoid"]}

    def pieces(run, ends, x):
        state, traces = None, []
        for start, end in pairwise((0, *ends)):
            state, trace = run(x[:, start:end], state)
            traces.append(trace)
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *traces)

    def values(ends, x):
        return pieces(lambda x, state: native.lif_trace(x, state, **options)[:2], ends, x)

    (state, trace), (left, steps) = (jax.jit(partial(values, ends))(x) for ends in ((6,), (1, 2, 3, 4, 5, 6)))
    np.testing.assert_array_equal(left, state)
    jax.tree.map(np.testing.assert_array_equal, steps, trace)
    assert np.any(np.asarray(state) != np.asarray(trace.membranes[:, -1]))

    def loss(run, x):
        state, trace = pieces(run, (2, 5, 6), x)
        return jnp.vdot(trace.spikes, cotangent) + jnp.sum(jnp.square(state))

    runs = (
        lambda x, state: native.lif_trace(x, state, **options)[:2],
        lambda x, state: plain.lif_trace(x, initial=state, **options),
    )
    alike(*(jax.jit(jax.grad(partial(loss, run)))(x) for run in runs))


def text(x, precision="auto", **options):
    node, context = (
        LIF("lif", "x", **options),
        Context((Value(x.shape[2:], True, False),), x.shape[1], False, precision),
    )
    return jax.jit(lambda x: node.run({}, [x], context).output).lower(x).compile().as_text()


def test_a_node_calls_the_library_once_where_it_may():
    x = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    assert text(x).count("custom-call(") == 1  # unused membranes are not computed
    assert text(x, tau=(0.5, 0.6, 0.7, 0.8), threshold=2.0).count("custom-call(") == 1
    assert "custom-call(" not in text(x, "exact")
    assert "custom-call(" not in text(x, surrogate=lambda u: triangular(u, 2.0))
    assert "custom-call(" not in text(jax.ShapeDtypeStruct(x.shape, jnp.bfloat16))
    exported = jax.export.export(jax.jit(lambda x: native.lif_trace(x, **OPTIONS)[1].spikes), platforms=["cpu"])(x)
    assert "custom_call" not in exported.mlir_module()

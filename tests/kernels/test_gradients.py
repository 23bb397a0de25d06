"""Gradients of convolutions of spikes, rounded or not, and their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from integer_sums import gradients_by_sums, spikes_and_integers

from qpsnn_jax.kernels import dispatch, winograd
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.geometry import Geometry

# Odd sizes, a single tile, and every padding that Winograd's gradients are for.
TILED = [((8, 8), (1, 1)), ((9, 8), (1, 1)), ((3, 3), (0, 0)), ((3, 5), (2, 0)), ((5, 4), (1, 2)), ((4, 7), (0, 2))]


@pytest.fixture
def rounding(monkeypatch):
    """A machine whose gradients w.r.t. the spikes may be products of bfloat16, whatever the width."""
    monkeypatch.setattr(dispatch, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(winograd, "NARROWEST", 1)


def operands(shape, kernel, bits, channels=5):
    return jax.device_put(tuple(x.astype(np.float32) for x in spikes_and_integers(shape, kernel, bits, channels)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shape", "padding"), TILED)
@pytest.mark.usefixtures("rounding")
def test_rounded_gradients(shape, padding, bits):
    spikes, integers = operands(shape, (3, 3), bits)
    run = partial(conv_spikes, bits=bits, padding=padding, precision="fast")
    pulled = jax.jit(lambda ct: jax.vjp(run, spikes, integers)[1](ct))
    plain = partial(gradients_by_sums, spikes, integers, strides=(1, 1), padding=padding)
    sums = (5, *Geometry(shape, (3, 3), (1, 1), padding).output_hw, integers.shape[-1])
    draw = np.random.default_rng(0)
    # Small integers and their transforms are not rounded; weights of 8 bits are.
    whole = draw.integers(-3, 4, sums).astype(np.float32)
    for same, got, wanted in zip((bits == 4, True), pulled(whole), plain(whole), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if same else 1e-2 * np.abs(wanted).max())
    cotangent = draw.normal(size=sums).astype(np.float32)
    for rounded, got, wanted in zip((True, False), pulled(cotangent), plain(cotangent), strict=True):
        apart = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert 1e-4 < apart < 1e-2 if rounded else apart < 1e-6


@pytest.mark.usefixtures("rounding")
def test_rounded_gradients_under_every_transformation():
    spikes, integers = operands((6, 6), (3, 3), 8)
    fast = partial(conv_spikes, bits=8, padding=(1, 1), precision="fast")
    plain = partial(convolve, padding=(1, 1))
    draw = np.random.default_rng(0)
    shapes = integers.shape, jax.eval_shape(plain, spikes, integers).shape
    turn, cotangent = jax.device_put([draw.normal(size=shape).astype(np.float32) for shape in shapes])
    both = jax.device_put(np.stack([spikes, 1 - np.asarray(spikes)]))

    def pulled(run, spikes, integers):
        return jax.vjp(run, spikes, integers)[1](cotangent)

    def total(run, integers):
        return jnp.sum(jax.vmap(run, (0, None))(both, integers) * cotangent[None])

    def loss(run, integers):
        return jnp.mean(jnp.square(run(spikes, integers)))

    def on_a_mesh(run, spikes):
        mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
        return jax.shard_map(run, mesh=mesh, in_specs=jax.P("devices"), out_specs=jax.P("devices"))(spikes)

    def checks(run):
        yield jax.vjp(partial(on_a_mesh, lambda x: run(x, integers)), spikes)[1](cotangent)[0]
        yield from jax.vmap(partial(pulled, run), (0, None))(both, integers)
        yield jax.grad(partial(total, run))(integers)
        # The second and third derivatives pass through the gradients.
        product = jax.grad(lambda k: jnp.vdot(jax.grad(partial(loss, run))(k), turn))
        yield product(integers)
        yield jax.grad(lambda s: jnp.vdot(jax.grad(lambda k: jnp.sum(run(s, k) ** 3))(integers), turn))(spikes)

    both_sides = (jax.jit(lambda run=run: list(checks(run)))() for run in (fast, plain))
    for got, wanted in zip(*both_sides, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@pytest.mark.parametrize("options", [{"algorithm": name} for name in ("int8", "bfloat16")] + [{}, {"checked": True}])
def test_gradients_are_those_of_the_convolution(options):
    spikes, integers = operands((6, 6), (3, 3), 8)
    shared = {"strides": (2, 2), "padding": (1, 1)}
    fast, plain = partial(conv_spikes, bits=8, **options, **shared), partial(convolve, **shared)
    shape = jax.eval_shape(plain, spikes, integers).shape
    cotangent = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    gradients = (jax.vjp(run, spikes, integers)[1](cotangent) for run in (fast, plain))
    for got, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_forward_mode_is_for_exact_precision_alone():
    spikes, integers = operands((6, 6), (3, 3), 8)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(partial(conv_spikes, bits=8), (spikes, integers), (spikes, integers))
    exact = partial(conv_spikes, bits=8, precision="exact")
    tangents = jax.jvp(exact, (spikes, integers), (spikes, integers))
    np.testing.assert_allclose(tangents[1], 2 * tangents[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding", "algorithm"),
    [
        ((5, 4), (3, 3), (1, 1), (1, 1), "bfloat16"),
        ((5, 4), (3, 3), (2, 2), (1, 1), "int8"),
        ((5, 4), (1, 1), (1, 2), (0, 0), "float32"),
        ((2, 2), (3, 3), (1, 1), (1, 1), "int8"),
        ((2, 2), (3, 3), (1, 1), (1, 1), "float32"),
        ((4, 4), (5, 5), (1, 1), (2, 2), "float32"),
    ],
)
@pytest.mark.usefixtures("rounding")
def test_no_images(shape, kernel, strides, padding, algorithm):
    run = partial(conv_spikes, bits=2, strides=strides, padding=padding, algorithm=algorithm, precision="fast")
    spikes, integers = jnp.zeros((0, *shape, 3)), jnp.ones((*kernel, 3, 2))
    y, pull = jax.vjp(run, spikes, integers)
    assert y.shape == (0, *Geometry.of(spikes, integers, strides, padding).output_hw, 2)
    by_input, by_kernel = pull(y)
    assert by_input.shape == spikes.shape
    np.testing.assert_array_equal(by_kernel, jnp.zeros_like(integers))


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding", "algorithm"),
    [
        ((6, 6), (3, 3), (1, 1), (1, 1), None),
        ((6, 6), (3, 3), (2, 2), (1, 1), None),
        ((6, 6), (1, 1), (2, 2), (0, 0), None),
        ((2, 2), (3, 3), (1, 1), (1, 1), None),
        ((6, 6), (3, 3), (2, 1), (1, 1), "int8"),
    ],
)
@pytest.mark.usefixtures("rounding")
def test_a_number_of_images_that_is_a_symbol(shape, kernel, strides, padding, algorithm):
    spikes, integers = operands(shape, kernel, 2)
    options = {"strides": strides, "padding": padding, "algorithm": algorithm}
    run = jax.jit(partial(conv_spikes, bits=2, precision="fast", **options))

    def pulled(spikes, integers):
        y, pull = jax.vjp(run, spikes, integers)
        return pull(jnp.ones_like(y))

    (b,) = jax.export.symbolic_shape("b")
    shapes = jax.ShapeDtypeStruct((b, *spikes.shape[1:]), jnp.float32), integers
    compiled = jax.jit(pulled)
    exported = jax.export.export(compiled)(*shapes).call
    for got, wanted in zip(exported(spikes, integers), compiled(spikes, integers), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_bits_are_the_upper_halves_of_numbers():
    numbers = jnp.asarray(
        [0, -0.0, 1, -2.5, 1e-40, 3e38, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 1 / 3], jnp.float32
    )
    wanted = numbers.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(winograd.floats_of(winograd.bits_of(numbers)), wanted)
    assert np.isnan(winograd.floats_of(winograd.bits_of(jnp.asarray([np.nan])))[0])

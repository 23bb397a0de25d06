"""Gradients of convolutions of spikes, rounded or not, and their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from integer_sums import gradients_by_sums, spikes_and_integers

from qpsnn_jax.kernels import bfloat16, dispatch, winograd
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.geometry import Geometry

# Odd sizes, a single tile, and every padding that Winograd's gradients are for.
TILED = [((8, 8), (1, 1)), ((9, 8), (1, 1)), ((3, 3), (0, 0)), ((3, 5), (2, 0)), ((5, 4), (1, 2)), ((4, 7), (0, 2))]
# And whether the cotangent is rounded for the gradient by the input too, as by Winograd and where no taps overlap.
ROUNDED = [(shape, (3, 3), (1, 1), padding, True) for shape, padding in TILED]
ROUNDED += [
    ((7, 4), (1, 1), (1, 1), (0, 0), True),
    ((7, 5), (1, 1), (3, 2), (0, 0), True),
    ((6, 6), (1, 1), (4, 3), (0, 0), True),
    ((4, 4), (1, 1), (2, 2), (1, 0), False),
    ((9, 8), (3, 3), (2, 2), (1, 1), False),
    ((8, 8), (3, 3), (2, 1), (3, 0), False),
    ((2, 8), (3, 3), (1, 1), (1, 1), False),
    ((5, 6), (2, 4), (1, 2), (0, 3), False),
]


@pytest.fixture
def rounding(monkeypatch):
    """A machine whose gradients are products of bfloat16, whatever the width."""
    monkeypatch.setattr(dispatch, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(bfloat16, "NARROWEST_GRADIENTS", 1)


def operands(shape, kernel, bits, channels=5):
    return jax.device_put(tuple(x.astype(np.float32) for x in spikes_and_integers(shape, kernel, bits, channels)))


# Only Winograd's gradients depend on the number of bits.
BY_BITS = [(*case, 8) for case in ROUNDED] + [(*case, 4) for case in ROUNDED[: len(TILED)]]


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding", "by_input", "bits"), BY_BITS)
@pytest.mark.usefixtures("rounding")
def test_rounded_gradients(shape, kernel, strides, padding, by_input, bits):
    spikes, integers = operands(shape, kernel, bits)
    options = {"strides": strides, "padding": padding}
    pulled = jax.jit(lambda ct: jax.vjp(partial(conv_spikes, bits=bits, **options), spikes, integers)[1](ct))
    plain = partial(gradients_by_sums, spikes, integers, strides=strides, padding=padding)
    sums = (5, *Geometry(shape, kernel, strides, padding).output_hw, integers.shape[-1])
    draw = np.random.default_rng(0)
    # Small integers and their transforms are not rounded; Winograd rounds weights of 8 bits.
    exact = bits <= 4 or kernel != (3, 3) or not by_input
    whole = draw.integers(-3, 4, sums).astype(np.float32)
    for same, got, wanted in zip((exact, True), pulled(whole), plain(whole), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if same else 1e-2 * np.abs(wanted).max())
    cotangent = draw.normal(size=sums).astype(np.float32)
    for rounded, got, wanted in zip((by_input, True), pulled(cotangent), plain(cotangent), strict=True):
        apart = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert 1e-4 < apart < 1e-2 if rounded else apart < 1e-6


@pytest.mark.parametrize(("kernel", "strides"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (1, 2))])
@pytest.mark.usefixtures("rounding")
def test_rounded_gradients_under_every_transformation(kernel, strides):
    spikes, integers = operands((6, 6), kernel, 8)
    options = {"strides": strides, "padding": (kernel[0] // 2, kernel[1] // 2)}
    fast, plain = partial(conv_spikes, bits=8, **options), partial(convolve, **options)
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


@pytest.mark.parametrize("options", [{"algorithm": name} for name in ("int8", "popcount")] + [{}, {"checked": True}])
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
        ((5, 4), (3, 3), (1, 1), (1, 1), "winograd"),
        ((5, 4), (3, 3), (2, 2), (1, 1), "int8"),
        ((5, 4), (1, 1), (1, 2), (0, 0), "float32"),
        ((2, 2), (3, 3), (1, 1), (1, 1), "int8"),
        ((2, 2), (3, 3), (1, 1), (1, 1), "float32"),
        ((4, 4), (5, 5), (1, 1), (2, 2), "float32"),
    ],
)
@pytest.mark.usefixtures("rounding")
def test_no_images(shape, kernel, strides, padding, algorithm):
    run = partial(conv_spikes, bits=2, strides=strides, padding=padding, algorithm=algorithm)
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
        ((6, 6), (3, 3), (2, 1), (1, 1), "popcount"),
    ],
)
@pytest.mark.usefixtures("rounding")
def test_a_number_of_images_that_is_a_symbol(shape, kernel, strides, padding, algorithm):
    spikes, integers = operands(shape, kernel, 2)
    run = jax.jit(partial(conv_spikes, bits=2, strides=strides, padding=padding, algorithm=algorithm))

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
    np.testing.assert_array_equal(bfloat16.floats_of(bfloat16.bits_of(numbers)), wanted)
    assert np.isnan(bfloat16.floats_of(bfloat16.bits_of(jnp.asarray([np.nan])))[0])


def test_winograd_says_where_it_is_exact():
    spec = dispatch.ConvSpec(Geometry((8, 8), (3, 3), (1, 1), (1, 1)), 5592, 8, 4)
    assert winograd.exact(spec)
    assert not winograd.exact(spec._replace(inputs=5593))
    assert not winograd.exact(spec._replace(bits=5))

"""Every algorithm of a convolution against plain sums of whole numbers."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, jit, random_variables, residual_graph

from qpsnn_jax import cross_entropy, init_state, make_train_step, optimizer
from qpsnn_jax.kernels import convolution
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.geometry import Geometry
from qpsnn_jax.kernels.hardware import cpu_flags, portable
from qpsnn_jax.model.nodes import Quantizer

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
    ((3, 1), (1, 5), (1, 1), (0, 2)),
    ((4, 1), (2, 3), (1, 1), (0, 1)),
    ((4, 4), (5, 5), (1, 1), (2, 2)),
    ((5, 3), (7, 4), (2, 1), (3, 2)),
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

    got, pull = jax.vjp(jax.jit(run), jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_array_equal(got, expected)
    # The sums are linear in either operand, so a gradient is right if it pairs with every change as the sums do.
    cotangent = rng.integers(-3, 4, expected.shape)
    by_x, by_weights = pull(jnp.asarray(cotangent, jnp.float32))
    for _ in range(3):
        step, turn = rng.integers(-3, 4, x.shape), rng.integers(-3, 4, weights.shape)
        assert np.vdot(by_x, step) == np.vdot(cotangent, by_sums(step, weights, strides, padding))
        assert np.vdot(by_weights, turn) == np.vdot(cotangent, by_sums(x, turn, strides, padding))


ALGORITHMS = ["float32", "bfloat16", "int8"]


def spikes_and_integers(shape, kernel, bits, channels=40):
    """Spikes, and odd integers with both ends of their range; the third channel's are zero."""
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    integers = 2 * rng.integers(0, top + 1, (*kernel, channels, 16)) - top
    integers[..., 0], integers[..., 1], integers[..., 2] = top, -top, 0
    return (rng.random((5, *shape, channels)) < 0.4).astype(np.int64), integers


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, None])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), [CASES[0], CASES[1], CASES[3]])
def test_every_algorithm_accumulates_exactly(monkeypatch, shape, kernel, strides, padding, bits, algorithm):
    spikes, integers = spikes_and_integers(shape, kernel, bits)
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset({"amx_int8"}))
    run = jax.jit(partial(conv_spikes, bits=bits, strides=strides, padding=padding, algorithm=algorithm))
    got = run(jnp.asarray(spikes, jnp.float32), jnp.asarray(integers, jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, by_sums(spikes, integers, strides, padding))


@pytest.mark.parametrize(
    ("bits", "shape", "kernel", "strides", "padding", "channels"),
    [
        (1, *CASES[0], 32),
        (2, *CASES[1], 40),
        (3, *CASES[3], 3),
        (4, (7, 1), (1, 1), (2, 1), (0, 0), 65),
        (8, *CASES[0], 40),
        (2, *CASES[9], 33),
        (2, *CASES[13], 5),
    ],
)
def test_counts_accumulate_exactly(bits, shape, kernel, strides, padding, channels):
    spikes, integers = spikes_and_integers(shape, kernel, bits, channels)
    run = jax.jit(partial(conv_spikes, bits=bits, strides=strides, padding=padding, algorithm="popcount"))
    expected = by_sums(spikes, integers, strides, padding)
    for dtype in (jnp.float32, jnp.bfloat16):
        got = run(jnp.asarray(spikes, dtype), jnp.asarray(integers, dtype))
        np.testing.assert_array_equal(got, jnp.asarray(expected, jnp.float32).astype(dtype))
    assert run(jnp.zeros((0, *spikes.shape[1:])), jnp.asarray(integers, jnp.float32)).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "popcount"])
def test_derivatives_are_those_of_the_convolution(algorithm):
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers((6, 6), (3, 3), 8, 5))
    options = {"strides": (2, 2), "padding": (1, 1)}
    fast, plain = partial(conv_spikes, bits=8, algorithm=algorithm, **options), partial(convolve, **options)
    key = jax.random.key(0)
    turns = tuple(jax.random.normal(key, x.shape) for x in (spikes, integers))
    y, pull = jax.vjp(fast, spikes, integers)
    cotangent = jax.random.normal(key, y.shape)
    for got, wanted in zip(pull(cotangent), jax.vjp(plain, spikes, integers)[1](cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    tangent = jax.jvp(fast, (spikes, integers), turns)[1]
    np.testing.assert_allclose(tangent, jax.jvp(plain, (spikes, integers), turns)[1], rtol=1e-5, atol=1e-3)


# Odd sizes, a single tile, and every padding that Winograd's gradients are for.
TILED = [((8, 8), (1, 1)), ((9, 8), (1, 1)), ((3, 3), (0, 0)), ((3, 5), (2, 0)), ((5, 4), (1, 2)), ((4, 7), (0, 2))]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("shape", "padding"), TILED)
def test_winograd_accumulates_exactly(shape, padding, bits):
    spikes, integers = spikes_and_integers(shape, (3, 3), bits)
    run = jax.jit(partial(conv_spikes, bits=bits, padding=padding, algorithm="winograd"))
    got = run(jnp.asarray(spikes, jnp.float32), jnp.asarray(integers, jnp.float32))
    np.testing.assert_array_equal(got, by_sums(spikes, integers, (1, 1), padding))


def test_winograd_accumulates_the_largest_sums_exactly():
    channels, top = 5592, 15  # the most channels whose products of 4 bits are told to stay exact
    assert 200 * top * channels < 2**24 <= 200 * top * (channels + 1)
    # All channels alike, with every pattern along either axis, so that the sums of every place are at their largest.
    on = np.array(list(product([0, 1], repeat=4)))
    signs = np.array(list(product([-1, 1], repeat=3)))
    spikes = np.einsum("ih,jw->ijhw", on, on).reshape(-1, 4, 4, 1)
    integers = top * np.einsum("ih,jw->hwij", signs, signs).reshape(3, 3, 1, -1)
    expected = channels * by_sums(spikes, integers, (1, 1), (1, 1))
    run = jax.jit(partial(conv_spikes, bits=4, padding=(1, 1), algorithm="winograd"))
    operands = np.repeat(spikes, channels, axis=3), np.repeat(integers, channels, axis=2)
    np.testing.assert_array_equal(run(*(jnp.asarray(x, jnp.float32) for x in operands)), expected)


def rounding(monkeypatch):
    """On a machine whose gradients are products of bfloat16, whatever the width."""
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(convolution, "_NARROWEST_GRADIENTS", 1)


# And whether what is cotangent back is rounded by maps too, which it is by Winograd and where no taps overlap.
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
def test_no_images(monkeypatch, shape, kernel, strides, padding, algorithm):
    rounding(monkeypatch)
    run = partial(conv_spikes, bits=2, strides=strides, padding=padding, algorithm=algorithm)
    spikes, integers = jnp.zeros((0, *shape, 3)), jnp.ones((*kernel, 3, 2))
    y, pull = jax.vjp(run, spikes, integers)
    assert y.shape == (0, *Geometry.of(spikes, integers, strides, padding).output_hw, 2)
    by_maps, by_kernel = pull(y)
    assert by_maps.shape == spikes.shape
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
def test_a_number_of_images_that_is_a_symbol(monkeypatch, shape, kernel, strides, padding, algorithm):
    rounding(monkeypatch)
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers(shape, kernel, 2, 5))
    run = jax.jit(partial(conv_spikes, bits=2, strides=strides, padding=padding, algorithm=algorithm))

    def pulled(spikes, integers):
        y, pull = jax.vjp(run, spikes, integers)
        return pull(jnp.ones_like(y))

    (b,) = jax.export.symbolic_shape("b")
    shapes = jax.ShapeDtypeStruct((b, *spikes.shape[1:]), jnp.float32), integers
    exported = jax.export.export(jax.jit(pulled))(*shapes).call
    for got, wanted in zip(exported(spikes, integers), pulled(spikes, integers), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "kernel", "strides", "padding", "by_maps"), ROUNDED)
def test_rounded_gradients(monkeypatch, shape, kernel, strides, padding, by_maps, bits):
    rounding(monkeypatch)
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers(shape, kernel, bits, 5))
    options = {"strides": strides, "padding": padding}
    y, pull = jax.vjp(jax.jit(partial(conv_spikes, bits=bits, **options)), spikes, integers)
    plain = jax.vjp(partial(convolve, **options), spikes, integers)[1]
    # Small whole numbers are not rounded, nor what they are transformed to; Winograd rounds weights of 8 bits.
    exact = bits <= 4 or kernel != (3, 3) or not by_maps
    whole = jnp.asarray(np.random.default_rng(0).integers(-3, 4, y.shape), jnp.float32)
    for same, got, wanted in zip((exact, True), pull(whole), plain(whole), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if same else 1e-2 * np.abs(wanted).max())
    cotangent = jax.random.normal(jax.random.key(0), y.shape)
    for rounded, got, wanted in zip((by_maps, True), pull(cotangent), plain(cotangent), strict=True):
        apart = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert 1e-4 < apart < 1e-2 if rounded else apart < 1e-6


@pytest.mark.parametrize(("kernel", "strides"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (1, 2))])
def test_rounded_gradients_under_every_transformation(monkeypatch, kernel, strides):
    rounding(monkeypatch)
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers((6, 6), kernel, 8, 5))
    options = {"strides": strides, "padding": (kernel[0] // 2, kernel[1] // 2)}
    fast, plain = partial(conv_spikes, bits=8, **options), partial(convolve, **options)
    both = jnp.stack([spikes, 1 - spikes])
    turn = jax.random.normal(jax.random.key(0), integers.shape)
    cotangent = jax.random.normal(jax.random.key(1), plain(spikes, integers).shape)

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
        yield jax.jvp(partial(run, spikes), (integers,), (turn,))[1]
        yield jax.vjp(partial(on_a_mesh, lambda x: run(x, integers)), spikes)[1](cotangent)[0]
        yield from jax.vmap(partial(pulled, run), (0, None))(both, integers)
        yield jax.grad(partial(total, run))(integers)
        # The second derivative passes through the gradients.
        yield jax.jvp(jax.grad(partial(loss, run)), (integers,), (turn,))[1]
        yield jax.grad(lambda k: jnp.vdot(jax.grad(partial(loss, run))(k), turn))(integers)

    both_sides = (jit(lambda run=run: list(checks(run)))() for run in (fast, plain))
    for got, wanted in zip(*both_sides, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("flags", "shape", "kernel", "strides", "padding", "dtype", "rounded"),
    [
        ({"avx512_bf16"}, (8, 8), (3, 3, 64, 128), (1, 1), (1, 1), jnp.float32, True),
        ({"amx_bf16"}, (7, 3), (3, 3, 128, 256), (1, 1), (0, 2), jnp.float32, True),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (2, 2), (1, 1), jnp.float32, True),
        ({"avx512_bf16"}, (8, 8), (1, 1, 128, 128), (1, 1), (0, 0), jnp.float32, True),
        ({"avx512_bf16"}, (2, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, True),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (3, 1), jnp.float32, True),
        ({"avx2"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 48, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (2, 2), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (5, 5, 128, 128), (1, 1), (2, 2), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.bfloat16, False),
    ],
)
def test_gradients_are_rounded_where_that_is_fast(monkeypatch, flags, shape, kernel, strides, padding, dtype, rounded):
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset(flags))
    spikes, integers = jnp.zeros((1, *shape, kernel[2]), dtype), jnp.zeros(kernel, dtype)
    run = partial(conv_spikes, bits=8, strides=strides, padding=padding, algorithm="float32")
    text = str(jax.make_jaxpr(lambda *operands: jax.vjp(run, *operands)[1](run(*operands)))(spikes, integers))
    assert ("u16" in text) == rounded


def test_channels_that_do_not_match():
    with pytest.raises(ValueError, match=r"have 64 channels, but .* are for 40"):
        conv_spikes(jnp.ones((1, 6, 6, 64)), jnp.ones((3, 3, 40, 48)), bits=2)


def test_sums_of_counts_are_computed_once():
    """Whatever reads them: in a network, batch statistics and what they normalize."""

    def read(spikes, integers):
        sums = conv_spikes(spikes, integers, bits=2, padding=(1, 1), algorithm="popcount")
        return sums - sums.mean((0, 1, 2), keepdims=True), (sums**2).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 64), (3, 3, 64, 64))]
    text = jax.jit(read).lower(*shapes).compile().as_text()
    terms = 2 * 9 * 2  # bits, taps, words
    assert terms <= text.count(" popcnt(") <= 2 * terms + 1  # in either half, and those of the spikes


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (
            (3, 3),
            {"bits": 2, "algorithm": "int4"},
            "algorithm must be float32, bfloat16, int8, winograd or popcount, got 'int4'",
        ),
        ((3, 3), {"bits": 5, "algorithm": "winograd", "padding": (1, 1)}, "3×3 at stride 1.* and up to 4 bits"),
        ((3, 3), {"bits": 2, "algorithm": "winograd", "strides": (2, 2)}, "3×3 at stride 1.* and up to 4 bits"),
        ((1, 1), {"bits": 2, "algorithm": "winograd"}, "3×3 at stride 1.* and up to 4 bits"),
    ],
)
def test_algorithms_that_cannot_be(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv_spikes(jnp.zeros((1, 4, 4, 2)), jnp.ones((*kernel, 2, 2)), **options)


@pytest.mark.parametrize(
    ("flags", "kernel", "bits", "strides", "algorithm"),
    [
        ({"amx_int8", "avx512_vnni", "avx512_bf16"}, (3, 3, 64, 64), 2, (1, 1), "int8"),
        ({"amx_int8"}, (3, 3, 8, 64), 2, (1, 1), "float32"),
        ({"avx512_vnni", "avx512_bf16"}, (3, 3, 128, 256), 4, (1, 1), "winograd"),
        ({"avx512_vnni", "avx512_bf16"}, (3, 3, 128, 256), 5, (1, 1), "int8"),
        ({"avx512_vnni", "avx512_bf16"}, (3, 3, 128, 256), 2, (2, 2), "int8"),
        ({"avx512_vnni", "avx512_bf16"}, (3, 3, 64, 256), 2, (1, 1), "int8"),
        ({"avx512_vnni", "avx512_bf16"}, (3, 3, 32768, 256), 2, (1, 1), "int8"),
        ({"avx512_vnni"}, (3, 3, 64, 256), 2, (1, 1), "int8"),
        ({"avx512_vnni"}, (3, 3, 32, 256), 2, (1, 1), "float32"),
        ({"avx2"}, (3, 3, 512, 512), 2, (1, 1), "float32"),
        ({"avx512_vpopcntdq", "avx512_bf16"}, (3, 3, 128, 128), 2, (1, 1), "popcount"),
        ({"avx512_vpopcntdq", "avx512_bf16"}, (3, 3, 256, 256), 2, (1, 1), "winograd"),
        ({"avx512_vpopcntdq", "avx512_bf16"}, (3, 3, 256, 256), 2, (2, 2), "popcount"),
        ({"avx512_vpopcntdq", "avx512_vnni"}, (3, 3, 512, 512), 2, (1, 1), "int8"),
        ({"avx512_vpopcntdq"}, (3, 3, 32, 48), 4, (1, 1), "popcount"),
        ({"avx512_vpopcntdq"}, (3, 3, 32, 48), 5, (1, 1), "float32"),
        ({"avx512_vpopcntdq"}, (3, 3, 31, 48), 2, (1, 1), "float32"),
        ({"avx512_vpopcntdq"}, (9, 9, 32, 48), 1, (1, 1), "float32"),
        ({"avx512_vpopcntdq", "amx_int8"}, (3, 3, 64, 64), 2, (1, 1), "int8"),
    ],
)
def test_the_algorithm_follows_the_processor(monkeypatch, flags, kernel, bits, strides, algorithm):
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset(flags))
    spikes = jax.ShapeDtypeStruct((2, 8, 8, kernel[2]), jnp.float32)
    integers = jax.ShapeDtypeStruct(kernel, jnp.float32)
    assert convolution.select_algorithm(spikes, integers, bits, strides, (1, 1)) == algorithm


def losses(monkeypatch, algorithm, *, bits, rounded=False):
    """The losses of 50 steps from each of four seeds."""

    def chosen(spikes, integers, bits, strides, padding):
        exact = convolution._exact_by_winograd(spikes, integers, bits, strides, padding)
        return algorithm if algorithm != "winograd" or exact else "float32"

    monkeypatch.setattr(convolution, "select_algorithm", chosen)
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset({"avx512_bf16"} if rounded else ()))
    monkeypatch.setattr(convolution, "_NARROWEST_GRADIENTS", 1)
    graph, tx = residual_graph(Quantizer(bits)), optimizer("adam", 0.01)
    step = jit(make_train_step(graph, tx, loss=cross_entropy))
    images, labels = images_of(graph, 16), jnp.arange(16) % graph.values[graph.output.name].shape[-1]
    found = np.zeros((4, 50))
    for seed, steps in enumerate(found):
        state = init_state(random_variables(graph, seed), tx, jax.random.key(seed))
        if not seed:
            text = step.lower(state, images, labels).as_text()
            assert ("xi8>" in text, "xui16>" in text) == (algorithm == "int8", rounded or algorithm == "winograd")
            assert ("popcnt" in text) == (algorithm == "popcount")
        for number in range(50):
            state, metrics = step(state, images, labels)
            steps[number] = metrics["loss"]
    return found


@pytest.mark.parametrize(
    ("bits", "algorithms"),
    [
        # The same losses, until gradients that were rounded have moved the weights.
        (8, [("int8", False, 5), ("bfloat16", False, 5), ("int8", True, 1)]),
        (4, [("popcount", False, 5), ("winograd", False, 5), ("winograd", True, 1)]),
    ],
)
def test_training_by_any_algorithm_is_training_in_float32(monkeypatch, bits, algorithms):
    exact = losses(monkeypatch, "float32", bits=bits)
    ends = exact[:, -10:].mean(axis=1)
    for algorithm, rounded, same in algorithms:
        fast = losses(monkeypatch, algorithm, bits=bits, rounded=rounded)
        np.testing.assert_allclose(fast[:, :same], exact[:, :same], rtol=1e-5)
        # Then rounding elsewhere in the program may grow; the mean of four seeds stays within three deviations of it.
        noise = ends.std(ddof=1) * np.sqrt(2 / len(ends))
        assert abs(fast[:, -10:].mean() - ends.mean()) <= 3 * noise, (algorithm, rounded)


def test_a_program_for_other_machines_knows_nothing_of_this_one():
    here = cpu_flags()
    with portable():
        assert cpu_flags() == frozenset()
    assert cpu_flags() == here

"""Every algorithm of a convolution against plain sums of integers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from integer_sums import CASES, by_sums, spikes_and_integers
from jax.experimental import checkify

from qpsnn_jax.kernels.algorithm import ConvSpec
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.dispatch import SUMS, select_algorithm


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_sums_and_gradients(shape, kernel, strides, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (5, *shape, 4))
    weights = rng.integers(-3, 4, (*kernel, 4, 6))
    expected = by_sums(x, weights, strides, padding)

    def run(x, weights):
        return convolve(x, weights, strides=strides, padding=padding)

    @jax.jit
    def results(x, weights, cotangent):
        got, pull = jax.vjp(run, x, weights)
        return got, *pull(cotangent)

    cotangent = rng.integers(-3, 4, expected.shape)
    got, by_x, by_weights = results(*(each.astype(np.float32) for each in (x, weights, cotangent)))
    np.testing.assert_array_equal(got, expected)
    # The sums are linear in either operand, so a gradient is right if it pairs with every change as the sums do.
    for _ in range(3):
        step, turn = rng.integers(-3, 4, x.shape), rng.integers(-3, 4, weights.shape)
        assert np.vdot(by_x, step) == np.vdot(cotangent, by_sums(step, weights, strides, padding))
        assert np.vdot(by_weights, turn) == np.vdot(cotangent, by_sums(x, turn, strides, padding))


def by_parts(x, kernel, strides, padding, groups, dilation):
    """Every group alone, with zeros between the taps."""
    size = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape[:2], strict=True)]
    spread = np.zeros((*size, *kernel.shape[2:]), int)
    spread[:: dilation[0], :: dilation[1]] = kernel
    parts = zip(np.split(x, groups, -1), np.split(spread, groups, -1), strict=True)
    return np.concatenate([by_sums(*part, strides, padding) for part in parts], -1)


@pytest.mark.parametrize(
    ("groups", "outputs", "dilation", "strides", "padding"),
    [
        (6, 6, (1, 1), (1, 1), (1, 1)),
        (6, 12, (2, 1), (2, 1), (2, 0)),
        (3, 6, (1, 2), (1, 2), (0, 2)),
        (1, 4, (2, 3), (1, 1), (2, 3)),
    ],
)
def test_groups_and_dilation(groups, outputs, dilation, strides, padding):
    rng = np.random.default_rng(0)
    spikes = rng.integers(0, 2, (3, 6, 7, 6))
    integers = 2 * rng.integers(0, 4, (3, 2, 6 // groups, outputs)) - 3
    options = {"strides": strides, "padding": padding, "groups": groups, "dilation": dilation}
    expected = by_parts(spikes, integers, **options)
    cotangent = rng.integers(-3, 4, expected.shape)
    step, turn = rng.integers(-3, 4, spikes.shape), rng.integers(-3, 4, integers.shape)
    operands = [each.astype(np.float32) for each in (spikes, integers)]
    for run in (partial(convolve, **options), partial(conv_spikes, bits=2, **options)):

        @jax.jit
        def results(*operands, run=run):
            got, pull = jax.vjp(run, *operands)
            return got, *pull(cotangent.astype(np.float32))

        got, by_spikes, by_integers = results(*operands)
        np.testing.assert_array_equal(got, expected)
        assert np.vdot(by_spikes, step) == np.vdot(cotangent, by_parts(step, integers, **options))
        assert np.vdot(by_integers, turn) == np.vdot(cotangent, by_parts(spikes, turn, **options))
    with pytest.raises(ValueError, match=r"skipping is for convolutions without groups and dilation; got ConvSpec"):
        conv_spikes(*operands, bits=2, algorithm="skipping", **options)


def test_groups_that_do_not_fit():
    x, kernel = np.zeros((1, 4, 4, 6), np.float32), np.zeros((3, 3, 3, 4), np.float32)
    with pytest.raises(ValueError, match="x must be b h w i and kernel h w i o with as many channels i, got"):
        convolve(x, kernel)
    with pytest.raises(ValueError, match="i and o multiples of the 3 groups"):
        convolve(x, kernel, groups=3)
    for groups in (0, -2):
        with pytest.raises(ValueError, match=f"groups must be an integer, 1 or more, got {groups}"):
            convolve(x, kernel, groups=groups)
    with pytest.raises(
        ValueError, match="spikes must be b h w i and integers h w i/2 o .* o multiples of the 2 groups"
    ):
        conv_spikes(x, np.zeros((3, 3, 3, 5), np.float32), bits=2, groups=2)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((1, 4, 4, 2), {"strides": 2}, "strides must be two integers, for height and width, got 2"),
        ((1, 4, 4, 2), {"strides": (0, 1)}, "strides must be an integer, 1 or more, got 0"),
        ((1, 4, 4, 2), {"padding": "SAME"}, "padding must be two integers"),
        ((1, 4, 4, 2), {"padding": (-1, 0)}, "padding must be an integer, 0 or more, got -1"),
        ((1, 4, 4, 2), {"dilation": (1, 1, 1)}, "dilation must be two integers"),
        ((1, 1, 20, 2), {}, "of 3×3 taps does not fit .* of 1×20 with padding"),
        ((1, 2, 2, 2), {"padding": (0, 0)}, "of 3×3 taps does not fit .* of 2×2"),
    ],
)
def test_windows_that_make_no_sense(shape, options, words):
    x, kernel = np.zeros(shape, np.float32), np.ones((3, 3, 2, 4), np.float32)
    for run in (convolve, partial(conv_spikes, bits=2)):
        with pytest.raises(ValueError, match=words):
            run(x, kernel, **options)


def test_options_may_be_lists_and_numbers_of_numpy():
    x, kernel = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 4), np.float32)
    options = {"strides": [np.int64(2), 2], "padding": [1, np.int32(1)], "groups": np.int8(1)}
    assert convolve(x, kernel, **options).shape == conv_spikes(x, kernel, bits=np.int64(2), **options).shape


@pytest.mark.parametrize("dtypes", [("bool", "float32"), ("int32", "int32"), ("float32", "bfloat16")], ids=str)
def test_operands_of_other_dtypes(dtypes):
    """Sums of booleans would be booleans, and of small integers wrong."""
    x, kernel = (jnp.ones(s, d) for s, d in zip([(1, 4, 4, 2), (3, 3, 2, 4)], dtypes, strict=True))
    for run in (convolve, partial(conv_spikes, bits=2)):
        with pytest.raises(ValueError, match="must be floating, of one dtype, got"):
            run(x, kernel)


def test_the_float64_of_numpy_is_float32_as_everywhere():
    kernel = jnp.ones((3, 3, 2, 4))
    for run in (convolve, partial(conv_spikes, bits=2)):
        assert run(np.ones((1, 4, 4, 2)), kernel).dtype == jnp.float32


def test_more_bits_than_an_algorithm_takes():
    x, kernel = np.ones((1, 4, 4, 16), np.float32), np.full((3, 3, 16, 16), 1023, np.float32)
    for name in ("int8", "bfloat16"):
        with pytest.raises(ValueError, match=f"algorithm {name} is for convolutions of up to 8 bits"):
            conv_spikes(x, kernel, bits=10, algorithm=name)
    flags = frozenset({"amx_int8", "native"})
    assert select_algorithm(SUMS, ConvSpec.of(x, kernel, 8, (1, 1), (1, 1)), flags).name == "int8"
    assert select_algorithm(SUMS, ConvSpec.of(x, kernel, 10, (1, 1), (1, 1)), flags).name != "int8"
    np.testing.assert_array_equal(conv_spikes(x, kernel, bits=10), np.full((1, 2, 2, 16), 9 * 16 * 1023))
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 24, got 0"):
        conv_spikes(x, kernel, bits=0)


ALGORITHMS = ["float32", "bfloat16", "int8", "skipping"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bits", [1, 4, 7, 8])
@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), [CASES[0], CASES[1], CASES[3]])
def test_every_algorithm_is_exact(shape, kernel, strides, padding, bits, algorithm):
    spikes, integers = spikes_and_integers(shape, kernel, bits)
    got = conv_spikes(
        spikes.astype(np.float32),
        integers.astype(np.float32),
        bits=bits,
        strides=strides,
        padding=padding,
        algorithm=algorithm,
    )
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, by_sums(spikes, integers, strides, padding))


@pytest.mark.parametrize("algorithm", ["float32", "int8", "skipping"])
def test_nan_comes_out_as_nan(algorithm):
    spikes, integers = (np.asarray(x, np.float32) for x in spikes_and_integers((5, 4), (3, 3), 3, 5))
    run = jax.jit(partial(conv_spikes, bits=3, padding=(1, 1), algorithm=algorithm))
    clean = np.asarray(run(spikes, integers))
    spikes[1, 2, 2, 3] = np.nan
    found = np.asarray(run(spikes, integers))
    assert np.isnan(found[1, 1:4, 1:4]).all()
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(clean, 1, 0))
    spikes[1, 2, 2, 3], integers[1, 1, 0, 4] = 0, np.nan
    found = np.asarray(run(spikes, integers))
    assert np.isnan(found[..., 4]).all()
    np.testing.assert_array_equal(np.delete(found, 4, 3)[0], np.delete(clean, 4, 3)[0])


def test_spikes_are_checked_when_asked():
    spikes, integers = jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 2, 4))
    run = partial(conv_spikes, bits=2, checked=True)
    assert run(spikes, integers).shape == (1, 1, 1, 4)
    with pytest.raises(ValueError, match="spikes of 0 and 1"):
        run(2 * spikes, integers)
    checked = jax.jit(checkify.checkify(run))
    assert checked(spikes, integers)[0].get() is None
    assert "spikes of 0 and 1" in checked(spikes / 2, integers)[0].get()


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        ((3, 3), {"algorithm": "int4"}, "algorithm must be one of float32, int8.* got 'int4'"),
        ((3, 3), {"precision": "quick"}, "precision must be exact or auto or fast, got 'quick'"),
    ],
)
def test_options_that_cannot_be(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv_spikes(np.zeros((1, 4, 4, 2), np.float32), np.ones((*kernel, 2, 2), np.float32), **{"bits": 2} | options)


def test_channels_that_do_not_match():
    with pytest.raises(ValueError, match=r"as many channels i, got \(1, 6, 6, 64\) and \(3, 3, 40, 48\)"):
        conv_spikes(np.ones((1, 6, 6, 64), np.float32), np.ones((3, 3, 40, 48), np.float32), bits=2)
    with pytest.raises(ValueError, match=r"kernel h w i o"):
        convolve(np.ones((1, 6, 6, 64), np.float32), np.ones((3, 3, 40, 48), np.float32))

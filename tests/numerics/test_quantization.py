from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qpsnn_jax.numerics.gamma import gamma_of
from qpsnn_jax.numerics.quantization import Codes, codes, dequantize, integer_weights, quantize

over = pytest.mark.parametrize
RULES, GRANULARITIES, STES = (
    ("none", "max", "percentile", "mean", "mse"),
    ("layer", "channel"),
    ("clipped", "plain", "scaled"),
)
rules, granularities, stes = over("rule", RULES), over("granularity", GRANULARITIES), over("ste", STES)
SHAPE = (6, 4)
AXES = {"layer": (0, 1), "channel": (0,)}

# Half-precision values keep clear of float32 subnormals, and hit zeros, ties and equal weights often.
values = st.floats(-4, 4, width=16, allow_subnormal=False)
filters = arrays(np.float32, SHAPE, elements=values)
gammas = arrays(np.float32, (1, 4), elements=st.floats(0.125, 4, width=16))
widths, options = st.integers(1, 8), st.tuples(st.sampled_from(RULES), st.sampled_from(GRANULARITIES))
thorough = settings(deadline=None, max_examples=40, derandomize=True)


class Found(NamedTuple):
    """All that a rule gives for some weights, of one program for every number of bits."""

    quantized: jax.Array
    integers: jax.Array
    scale: jax.Array
    gamma: jax.Array
    codes: Codes
    again: jax.Array


@partial(jax.jit, static_argnames=("gamma", "granularity"))
def found_of(w, bits, gamma="mean", granularity="layer") -> Found:
    options = {"gamma": gamma, "granularity": granularity}
    stored = codes(w, bits, **options)
    whole = quantize(w, bits, **options), *integer_weights(w, bits, **options), gamma_of(w, bits, gamma, granularity)
    return Found(*whole, stored, dequantize(stored, bits))


integers_jit = jax.jit(integer_weights, static_argnames=("gamma", "granularity"))
# Where the number of bits decides what is compiled.
of_bits = jax.jit(quantize, static_argnames=("bits", "gamma", "granularity", "levels"))
gamma_jit = jax.jit(gamma_of, static_argnames=("bits", "gamma", "granularity", "levels"))
fixed_jit = jax.jit(lambda w, b, gamma: quantize(w, b, gamma=gamma))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nearest_level(weights, gamma, bits: int) -> np.ndarray:
    """The nearest of the 2^b levels, by comparison with all of them."""
    levels = gamma[..., None] * np.linspace(-1, 1, 2**bits)
    return np.take_along_axis(levels, np.abs(levels - weights[..., None]).argmin(-1)[..., None], -1)[..., 0]


def numpy_gamma(weights, rule: str, granularity: str) -> np.ndarray:
    axes = AXES[granularity]
    return {
        "none": lambda: np.ones_like(weights.sum(axes, keepdims=True)),
        "max": lambda: np.abs(weights).max(axes, keepdims=True),
        "percentile": lambda: np.abs(np.percentile(weights, [1, 99], axis=axes, keepdims=True)).max(0),
        "mean": lambda: np.abs(weights).mean(axes, keepdims=True),
    }[rule]()


def numpy_gradients(weights, gamma, bits: int, ste: str, cotangent) -> tuple[np.ndarray, np.ndarray]:
    """dL/dW and, summed over the first axis, dL/dγ (LSQ) from the stated rules."""
    mask = (np.abs(weights) <= gamma) if ste == "clipped" else np.ones_like(weights)
    to_weights = cotangent * mask / (gamma if ste == "scaled" else 1)
    to_gamma = cotangent * (nearest_level(weights, gamma + 0 * weights, bits) - mask * weights) / gamma
    return to_weights, to_gamma.sum(0, keepdims=True)


def squared_error(weights, quantized) -> float:
    return float(np.square(weights - np.asarray(quantized, np.float64)).sum())


def decibels(weights, quantized) -> float:
    """Signal to noise after the best rescaling, which batch-norm supplies for free."""
    w, q = np.ravel(weights).astype(np.float64), np.ravel(quantized).astype(np.float64)
    return 10 * np.log10(w @ w / squared_error(w, q * (w @ q) / (q @ q)))


@over("bits", range(1, 9))
@granularities
def test_values_are_the_nearest_levels(bits: int, granularity: str):
    w = normal(6, 4)
    gamma = np.abs(w).astype(np.float64).mean(AXES[granularity], keepdims=True) + 0 * w
    found = found_of(w, bits, granularity=granularity)
    np.testing.assert_allclose(found.quantized, nearest_level(w, gamma, bits), rtol=1e-5)


def test_values_of_float64_are_those_of_float64():
    w = np.random.default_rng(0).normal(size=SHAPE)
    with jax.enable_x64(True):
        found = jax.jit(partial(quantize, bits=3))(w)
    np.testing.assert_allclose(found, nearest_level(w, np.abs(w).mean() + 0 * w, 3), rtol=1e-14)


@over("shape", [(), (5,), (7, 5), (3, 3, 2, 5)])
@granularities
def test_any_shape(shape: tuple, granularity: str):
    w = normal(*shape) if shape else np.float32(0.3)
    gamma = jax.eval_shape(lambda w: gamma_of(w, 4, "max", granularity), w)
    assert jax.eval_shape(lambda w: quantize(w, 4, granularity=granularity), w).shape == shape
    assert gamma.shape == tuple(
        n if granularity == "channel" and i == len(shape) - 1 else 1 for i, n in enumerate(shape)
    )


@over("rule", [rule for rule in RULES if rule != "mse"])
@granularities
def test_gamma_rules(rule: str, granularity: str):
    above = normal(200, 3) + np.float32(0.5)
    for w in (above, -above):
        np.testing.assert_allclose(gamma_jit(w, 4, rule, granularity), numpy_gamma(w, rule, granularity), rtol=1e-5)


@over("bits", [1, 2, 4, 8])
def test_mse_gamma_is_as_good_as_an_exhaustive_search(bits: int):
    w = normal(100, 1)
    grid = np.linspace(0, np.abs(w).max(), 1001)[1:]
    best = min(squared_error(w, nearest_level(w, np.full(w.shape, gamma), bits)) for gamma in grid)
    assert squared_error(w, found_of(w, bits, gamma="mse").quantized) <= 1.002 * best


@granularities
def test_ternary_weights_are_the_nearest_of_three(granularity: str):
    w = normal(30, 4)
    gamma = np.abs(w).astype(np.float64).mean(AXES[granularity], keepdims=True) + 0 * w
    levels = np.stack([-gamma, 0 * gamma, gamma])
    expected = np.take_along_axis(levels, np.abs(levels - w).argmin(0)[None], 0)[0]
    options = {"levels": 3, "granularity": granularity}

    @jax.jit
    def values(w):
        stored, quantized = codes(w, 2, **options), quantize(w, 2, **options)
        return quantized, *integer_weights(w, 2, **options), stored.values, dequantize(stored, 2, levels=3)

    quantized, integers, scale, stored, again = values(w)
    np.testing.assert_allclose(quantized, expected, rtol=1e-5)
    assert set(np.unique(integers)) == {-2, 0, 2}
    np.testing.assert_allclose(integers * np.asarray(scale), expected, rtol=1e-5)
    np.testing.assert_array_equal(2 * np.asarray(stored) - 2, integers)
    np.testing.assert_array_equal(again, quantized)
    assert not np.any(values(0 * w)[0])
    with pytest.raises(ValueError, match="levels must be 3"):
        quantize(w, 2, levels=5)


def test_the_ternary_mse_gamma_is_the_best_of_a_fine_grid():
    w = normal(200, 1)
    grid = np.linspace(0, np.abs(w).max(), 4001)[1:]
    best = min(squared_error(w, gamma * np.clip(np.round(w / gamma), -1, 1)) for gamma in grid)
    assert squared_error(w, of_bits(w, 2, gamma="mse", levels=3)) <= (1 + 1e-5) * best


@cache
def gaussian(rule: str, bits: int, count: int = 1 << 14) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian weights, quantized ones, and their γ."""
    w = normal(count, 1)
    integers, scale = integers_jit(w, bits, gamma=rule)
    return w, np.asarray(integers) * np.asarray(scale), np.asarray(scale) * (2**bits - 1)


@over(
    ("rule", "bits", "snr"),
    [("mean", 2, 7.6), ("mean", 4, 8.6), ("mean", 8, 8.7), ("mse", 2, 9.2), ("mse", 4, 19.4), ("mse", 8, 40.5)],
)
def test_noise_of_gaussian_weights(rule: str, bits: int, snr: float):
    # Levels so fine depend on the rarest weights.
    w, quantized, _ = gaussian(rule, bits, 1 << (17 if (rule, bits) == ("mse", 8) else 14))
    assert decibels(w, quantized) == pytest.approx(snr, abs=0.15)


def test_mean_saturates_gaussian_weights():
    w, _, gamma = gaussian("mean", 4)
    assert np.mean(np.abs(w) > gamma) == pytest.approx(0.425, abs=0.005)


@over(("bits", "multiple"), [(2, 1.88), (4, 3.18), (8, 4.96)])
def test_mse_gamma_of_gaussian_weights(bits: int, multiple: float):
    w, _, gamma = gaussian("mse", bits)
    assert (gamma / np.abs(w).mean()).item() == pytest.approx(multiple, rel=0.03)


@partial(jax.jit, static_argnames="ste")
@partial(jax.grad, argnums=(0, 1))
def pulled(w, gamma, bits, cotangent, ste):
    return jnp.vdot(quantize(w, bits, gamma=gamma, ste=ste), cotangent)


@stes
@over("bits", [1, 2, 4, 8])
def test_gradients_with_learned_gamma(ste: str, bits: int):
    gamma = np.array([[0.5, 1.0, 1.5, 0.25]], np.float32)
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)
    w[0], w[1] = gamma, -gamma
    expected = numpy_gradients(w, gamma, bits, ste, cotangent)
    for mine, wanted in zip(pulled(w, gamma, bits, cotangent, ste), expected, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


@rules
def test_gamma_of_a_rule_is_a_constant(rule: str):
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)
    cases = [("layer", "clipped"), ("channel", "scaled")]

    def gradients(w):
        for granularity, ste in cases:
            run = partial(quantize, bits=3, gamma=rule, granularity=granularity, ste=ste)
            yield jax.grad(lambda w, run=run: jnp.vdot(run(w), cotangent))(w), gamma_of(w, 3, rule, granularity)

    for (_, ste), (got, gamma) in zip(cases, jax.jit(lambda w: list(gradients(w)))(w), strict=True):
        np.testing.assert_allclose(got, numpy_gradients(w, np.asarray(gamma), 3, ste, cotangent)[0], rtol=1e-4)


def test_clip_edge_has_gradient_one():
    w = np.array([[-1.5, -1.0, 0.0, 1.0, 1.5]], np.float32)
    gradient = jax.jit(jax.grad(lambda w: quantize(w, 2, gamma="none").sum()))(w)
    np.testing.assert_array_equal(gradient, [[0, 1, 1, 1, 0]])


@over("shape", [(), (1,), (4,), (1, 4)])
def test_gamma_arrays_of_any_broadcastable_shape(shape: tuple):
    w = normal(*SHAPE)
    for gamma in (1.0, 0.5):
        array = np.full(shape, gamma, np.float32)
        whole = fixed_jit(w, 4, np.full((1, 4), gamma, np.float32))
        np.testing.assert_array_equal(fixed_jit(w, 4, array), whole)
    assert jax.eval_shape(jax.grad(lambda g: quantize(w, 4, gamma=g).sum()), array).shape == shape


@stes
def test_scale_may_be_applied_later(ste: str):
    w, x = normal(*SHAPE), normal(3, 6, seed=1)

    def late(w):
        integers, scale = integer_weights(w, 3, granularity="channel", ste=ste)
        return (x @ integers) * scale

    def early(w):
        return x @ quantize(w, 3, granularity="channel", ste=ste)

    values, jacobians = jax.jit(lambda w: [(run(late)(w), run(early)(w)) for run in (lambda f: f, jax.jacrev)])(w)
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*jacobians, rtol=1e-4, atol=1e-5)


@rules
def test_gain_multiplies_gamma(rule: str):
    w, gains = normal(*SHAPE), (np.float32(0.5), np.float32([[0.5, 1, 0.25, 0.75]]))

    def results(w, gains, bits):
        for granularity, gain in zip(GRANULARITIES, gains, strict=True):
            options = {"gamma": rule, "granularity": granularity}
            again = dequantize(codes(w, bits, gain=gain, **options), bits)
            yield quantize(w, bits, gain=gain, **options), again, gamma_of(w, bits, **options)

    for gain, (quantized, again, gamma) in zip(gains, jax.jit(lambda *a: list(results(*a)))(w, gains, 3), strict=True):
        scaled = fixed_jit(w, 3, np.asarray(gamma) * gain * np.ones((1, 4), np.float32))
        np.testing.assert_array_equal(quantized, scaled)
        np.testing.assert_array_equal(again, scaled)


@over("rule", ["mean", "mse"])
def test_vmap_over_bits(rule: str):
    w, bits = normal(*SHAPE), np.arange(1, 9, dtype=np.int32)
    evaluate = jax.jit(jax.value_and_grad(lambda b, w: jnp.sum(jnp.square(quantize(w, b, gamma=rule))), 1))
    values, slopes = jax.jit(jax.vmap(evaluate, (0, None)))(bits, w)
    wanted = [evaluate(b, w) for b in bits]
    np.testing.assert_allclose(values, np.stack([value for value, _ in wanted]), rtol=1e-4)
    np.testing.assert_allclose(slopes, np.stack([slope for _, slope in wanted]), rtol=1e-4)


def test_traced_bits_equal_python_bits():
    w = normal(*SHAPE)
    for bits in (2, np.int64(2), np.uint8(2), jnp.int32(2)):
        np.testing.assert_array_equal(quantize(w, bits), jax.jit(quantize)(w, 2))


@rules
def test_zero_filter_is_harmless(rule: str):
    """In every granularity, and for every gradient."""
    cases = {"layer": 0, "channel": 2}  # filters that are not zero
    w = normal(6, 4)

    def results(w):
        for granularity, live in cases.items():
            run = partial(quantize, bits=4, gamma=rule, granularity=granularity)
            some = w * np.float32(np.arange(4) < live)[None]
            values, pulls = zip(*(jax.vjp(partial(run, ste=ste), some) for ste in STES), strict=True)
            yield values[0], [pull(jnp.ones_like(w))[0] for pull in pulls]

    for live, (value, gradients) in zip(cases.values(), jax.jit(lambda w: list(results(w)))(w), strict=True):
        value = np.asarray(value)
        assert np.all(value[:, :live] != 0)
        np.testing.assert_allclose(np.abs(value[:, live:]), 1 / 15 if rule == "none" else 0, rtol=1e-6)
        for gradient in map(np.asarray, gradients):
            assert np.isfinite(gradient).all()
            np.testing.assert_array_equal(gradient[:, live:], 1)


gradient_of_the_sum = jax.jit(jax.grad(lambda w: quantize(w, 8, gamma="max").sum()))


@over("size", [1e-37, 1e-30, 1e30])
def test_extreme_sizes_keep_the_clipped_gradient(size: float):
    w = np.array([[-1.0, 0.5, 1.0, 0.25]], np.float32) * np.float32(size)
    gradient = np.asarray(gradient_of_the_sum(w))
    assert np.isfinite(gradient).all()
    assert size < 1e-36 or np.all(np.abs(gradient - 1) < 1e-5)


@thorough
@given(w=filters, bits=widths, option=options)
def test_grid(w, bits, option):
    found = jax.device_get(found_of(w, bits, *option))
    live = np.broadcast_to(found.gamma > 0, w.shape)
    assert np.all(found.integers[live] % 2 == 1)
    assert np.all(found.integers[~live] == 0)
    assert np.all(np.abs(found.integers) <= 2**bits - 1)
    np.testing.assert_allclose(found.quantized, found.integers * found.scale, rtol=1e-6)


@thorough
@given(w=filters, bits=widths, option=options)
def test_codes_reproduce_the_weights(w, bits, option):
    found = jax.device_get(found_of(w, bits, *option))
    assert isinstance(found.codes, Codes)
    assert found.codes.values.dtype == np.int32
    assert 0 <= found.codes.values.min() <= found.codes.values.max() <= 2**bits - 1
    np.testing.assert_array_equal(found.again, found.quantized)


@thorough
@given(w=filters, bits=widths, gamma=gammas)
def test_idempotent(w, bits, gamma):
    once = fixed_jit(w, bits, gamma)
    np.testing.assert_array_equal(fixed_jit(once, bits, gamma), once)


@thorough
@given(w=filters, bits=widths, rule=st.sampled_from(RULES))
def test_monotone(w, bits, rule):
    quantized = np.asarray(found_of(w, bits, rule).quantized).ravel()
    assert np.all(np.diff(quantized[np.argsort(w, axis=None)]) >= 0)


@thorough
@given(w=filters, bits=widths, gamma=gammas)
def test_error_is_half_a_level_inside_the_clamp(w, bits, gamma):
    inside, error = np.abs(w) <= gamma, np.abs(np.asarray(fixed_jit(w, bits, gamma)) - w)
    bound = np.where(inside, gamma / (2**bits - 1), np.abs(w) - gamma)
    assert np.all(error <= bound + 1e-6 * gamma)


@thorough
@given(w=filters, bits=widths, gamma=gammas)
def test_odd_away_from_ties(w, bits, gamma):
    position = (2**bits - 1) / 2 * (np.clip(w / gamma, -1, 1) + 1)
    apart = np.abs(position % 1 - 0.5) > 1e-3
    assume(apart.any())
    plus, minus = np.asarray(fixed_jit(w, bits, gamma)), np.asarray(fixed_jit(-w, bits, gamma))
    np.testing.assert_array_equal(plus[apart], -minus[apart])


@thorough
@given(w=filters, bits=widths, granularity=st.sampled_from(GRANULARITIES))
def test_mse_is_never_worse(w, bits, granularity):
    mse, mean, largest = (squared_error(w, found_of(w, bits, g, granularity).quantized) for g in ("mse", "mean", "max"))
    level = np.abs(w).max() / (2**bits - 1)
    assert mse <= largest * (1 + 1e-4) + 1e-9
    assert mse <= mean * (1 + 1e-4) + 0.05 * level**2


@over("bits", [0, 9, -1, 2.5, np.int64(0), np.int32(9), jnp.int32(0), jnp.int32(9), jnp.array([2, 9])], ids=repr)
@over("function", [quantize, integer_weights, codes, gamma_of, lambda w, b: dequantize(Codes(w, w), b)])
def test_bits_out_of_range(function, bits):
    with pytest.raises(ValueError, match="bits must be an integer between 1 and 8, got"):
        function(np.ones((2, 2), np.float32), bits)


@over("bits", [True, np.float32(2), jnp.float32(2), np.True_], ids=repr)
def test_bits_that_are_not_integers(bits):
    with pytest.raises(ValueError, match="bits must be an integer between 1 and 8, got"):
        quantize(np.ones((2, 2), np.float32), bits)


def test_weights_that_are_not_floating():
    with pytest.raises(ValueError, match="weights must be floating, got int32"):
        quantize(np.ones((2, 2), np.int32), 2)


def test_a_single_bit_is_the_sign_and_zero_is_positive():
    w = np.array([[-1, -1e-12, -0.0, 0, 1e-12, 3]], np.float32)

    @jax.jit
    def values(w, bits):
        mapped = jax.vmap(lambda b: quantize(w, b, gamma="none"))(bits)
        return quantize(w, 1, gamma="none"), codes(w, 1).values, mapped[0]

    quantized, stored, mapped = values(w, np.ones(1, np.int32))
    np.testing.assert_array_equal(quantized, [[-1, -1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(stored, [[0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(mapped, quantized)


@rules
def test_gamma_is_zero_only_where_all_weights_are(rule: str):
    w = np.zeros((30, 20), np.float32)  # fewer than 1 % are not zero
    w[3, 4], w[7, 4] = 0.5, -0.25

    @jax.jit
    def values(w):
        quantized = quantize(w, 4, gamma=rule, granularity="channel")
        return gamma_of(w, 4, rule), gamma_of(w, 4, rule, "channel"), quantized

    gamma, by_channel, quantized = jax.device_get(values(w))
    assert 0 < gamma.item() <= 1
    gammas = by_channel.ravel()
    assert gammas[4] > 0
    assert rule == "none" or not np.delete(gammas, 4).any()
    assert np.isfinite(quantized).all()


@over(("count", "bits"), [(9, 8), (27, 4), (9, 2), (3, 8), (40, 6), (200, 3)])
def test_mse_gamma_has_the_least_error_beyond_the_largest_weight_too(count: int, bits: int):
    for seed in range(4):
        w = normal(count, 1, seed=seed).astype(np.float64)
        largest, top = np.abs(w).max(), 2**bits - 1
        # Even in 1/γ, in which the levels change equally everywhere.
        grid = 1 / np.linspace(1 / (largest * top), 4 / largest, 8_000)
        fitted = 2 * np.round(top / 2 * (np.clip(w / grid, -1, 1) + 1)) / top - 1
        best = np.min(np.sum(w**2) - np.sum(w * fitted, 0) ** 2 / np.sum(fitted**2, 0))
        assert squared_error(w, of_bits(w.astype(np.float32), bits, gamma="mse")) <= 1.001 * best


@rules
@over("dtype", [jnp.float16, jnp.bfloat16])
def test_arithmetic_is_in_float32_at_least(dtype, rule: str):
    for w in (np.resize([1e-5, 0, -1e-5], SHAPE), normal(*SHAPE) * 2e-4):
        narrow = w.astype(dtype)
        for bits in (4, 8):
            found = jax.device_get(found_of(narrow, bits, rule))
            wanted = jax.device_get(found_of(narrow.astype(np.float32), bits, rule))
            np.testing.assert_array_equal(found.gamma, wanted.gamma.astype(dtype))
            np.testing.assert_array_equal(found.quantized, wanted.quantized.astype(dtype))
            np.testing.assert_array_equal(found.integers.astype(np.float32), wanted.integers)
            assert (found.integers.dtype, found.scale.dtype) == (dtype, dtype)
            assert found.codes.scale.dtype == np.float32


@rules
@granularities
def test_nan_comes_out_as_nan(rule: str, granularity: str):
    w = normal(*SHAPE)
    w[2, 1] = np.nan
    covered = np.s_[:] if granularity == "layer" else np.s_[:, 1]
    found = jax.device_get(found_of(w, 3, rule, granularity))
    for values in (found.quantized, found.again):
        assert np.isnan(values[covered]).all()
        assert granularity == "layer" or not np.isnan(np.delete(values, 1, 1)).any()
    assert np.isnan(fixed_jit(w, 3, np.ones(4, np.float32))[2, 1])


def test_rules_and_gradients_are_open():
    """A γ rule and an estimator of the user's; one closes over a differentiated array."""
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)

    def root_mean_square(w, bits, axes):
        assert bits == 3
        return jnp.sqrt(jnp.mean(jnp.square(w), axes, keepdims=True))

    rms = np.sqrt(np.square(w).mean(0, keepdims=True))
    found = jax.jit(lambda w: quantize(w, 3, gamma=root_mean_square, granularity="channel"))(w)
    np.testing.assert_allclose(found, nearest_level(w, rms + 0 * w, 3), rtol=1e-5)

    def gradient(slope):
        def tempered(g, w, gamma):
            return g / (1 + slope * jnp.square(w / gamma))

        def loss(w, gamma):
            return jnp.vdot(quantize(w, 3, gamma=gamma, ste=tempered), cotangent)

        return jax.grad(loss, (0, 1))(w, rms)

    mask = 1 / (1 + 0.7 * np.square(w / rms))
    by_slope, got = jax.jit(jax.grad(lambda slope: ((g := gradient(slope))[0].sum(), g), has_aux=True))(0.7)
    np.testing.assert_allclose(got[0], cotangent * mask, rtol=1e-5)
    to_gamma = (cotangent * (nearest_level(w, rms + 0 * w, 3) - mask * w) / rms).sum(0, keepdims=True)
    np.testing.assert_allclose(got[1], to_gamma, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_slope, -np.sum(cotangent * mask**2 * np.square(w / rms)), rtol=1e-4)


@stes
def test_second_derivatives_in_reverse_mode(ste: str):
    """The estimator as a linear function around each weight, without a custom rule."""
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)
    gamma = np.abs(w).mean(keepdims=True)
    mask = numpy_gradients(w, gamma, 3, ste, np.ones_like(w))[0]
    fixed = nearest_level(w, gamma + 0 * w, 3).astype(np.float32)

    def by_lines(x):
        return fixed + mask * (x - w)

    def loss(f, x):
        return jnp.sum(jnp.sin(2 * f(x)) * x * cotangent)

    def product(f):
        return jax.grad(lambda x: jnp.vdot(jax.grad(lambda x: loss(f, x))(x), cotangent))(w)

    products = jax.jit(lambda: (product(lambda x: quantize(x, 3, ste=ste)), product(by_lines)))()
    np.testing.assert_allclose(*products, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: quantize(x, 3, ste=ste), (w,), (w,))


@over("function", [quantize, integer_weights, codes, gamma_of])
@over("option", [{"gamma": "median"}, {"granularity": "filter"}])
def test_unknown_option(function, option: dict):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got '{value}'"):
        function(np.ones((2, 2), np.float32), 4, **option)


@over("function", [quantize, integer_weights])
def test_unknown_ste(function):
    with pytest.raises(ValueError, match="ste must be clipped, plain, scaled or a function, got 'soft'"):
        function(np.ones((2, 2), np.float32), 4, ste="soft")


def test_a_negative_gamma_is_not_taken():
    weights = jnp.array([[0.5, -0.2], [1.0, 0.3]])
    found = quantize(weights, 2, gamma=jnp.array([[-1.0, 1.0]]))
    assert jnp.isnan(found[:, 0]).all()
    assert jnp.isfinite(found[:, 1]).all()


def test_lists_are_weights():
    assert quantize([[0.1, -0.2]], 2).shape == integer_weights([[0.1, -0.2]], 2)[0].shape == (1, 2)


@pytest.mark.parametrize("place", [0, 4999, -1])
@pytest.mark.parametrize("rule", ["max", "percentile", "mean", "mse"])
def test_a_nan_among_thousands_of_weights_reaches_gamma(rule, place):
    weights = jax.random.normal(jax.random.key(0), (100, 100)).ravel().at[place].set(jnp.nan).reshape(100, 100)
    assert jnp.isnan(gamma_of(weights, 2, rule)).all()
    by_channel = gamma_of(weights, 2, rule, "channel").ravel()
    assert jnp.isnan(by_channel[place % 100])
    assert jnp.isfinite(jnp.delete(by_channel, place % 100)).all()

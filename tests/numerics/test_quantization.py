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

quantize_jit = jax.jit(quantize, static_argnames=("gamma", "granularity", "ste"))
integers_jit = jax.jit(integer_weights, static_argnames=("gamma", "granularity", "ste"))
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
    np.testing.assert_allclose(quantize_jit(w, bits, granularity=granularity), nearest_level(w, gamma, bits), rtol=1e-5)


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
    w = normal(200, 3) + 0.5
    np.testing.assert_allclose(gamma_jit(w, 4, rule, granularity), numpy_gamma(w, rule, granularity), rtol=1e-5)


@over("bits", [1, 2, 4, 8])
def test_mse_gamma_is_as_good_as_an_exhaustive_search(bits: int):
    w = normal(100, 1)
    grid = np.linspace(0, np.abs(w).max(), 1001)[1:]
    best = min(squared_error(w, nearest_level(w, np.full(w.shape, gamma), bits)) for gamma in grid)
    assert squared_error(w, of_bits(w, bits, gamma="mse")) <= 1.002 * best


@granularities
def test_ternary_weights_are_the_nearest_of_three(granularity: str):
    w = normal(30, 4)
    gamma = np.abs(w).astype(np.float64).mean(AXES[granularity], keepdims=True) + 0 * w
    levels = np.stack([-gamma, 0 * gamma, gamma])
    expected = np.take_along_axis(levels, np.abs(levels - w).argmin(0)[None], 0)[0]
    options = {"levels": 3, "granularity": granularity}
    np.testing.assert_allclose(of_bits(w, 2, **options), expected, rtol=1e-5)
    integers, scale = integer_weights(w, 2, **options)
    assert set(np.unique(integers)) == {-2, 0, 2}
    np.testing.assert_allclose(integers * scale, expected, rtol=1e-5)
    found = codes(w, 2, **options)
    np.testing.assert_array_equal(2 * found.values - 2, integers)
    np.testing.assert_array_equal(dequantize(found, 2, levels=3), quantize(w, 2, **options))
    assert not np.any(quantize(0 * w, 2, **options))
    with pytest.raises(ValueError, match="levels must be 3"):
        quantize(w, 2, levels=5)


def test_the_ternary_mse_gamma_is_the_best_of_a_fine_grid():
    w = normal(200, 1)
    grid = np.linspace(0, np.abs(w).max(), 4001)[1:]
    best = min(squared_error(w, gamma * np.clip(np.round(w / gamma), -1, 1)) for gamma in grid)
    assert squared_error(w, of_bits(w, 2, gamma="mse", levels=3)) <= (1 + 1e-5) * best


@over(
    ("rule", "bits", "snr"),
    [("mean", 2, 7.6), ("mean", 4, 8.6), ("mean", 8, 8.7), ("mse", 2, 9.2), ("mse", 4, 19.4), ("mse", 8, 40.5)],
)
def test_noise_of_gaussian_weights(rule: str, bits: int, snr: float):
    w = normal(1 << (17 if bits == 8 else 14), 1)  # levels so fine depend on the rarest weights
    assert decibels(w, quantize_jit(w, bits, gamma=rule)) == pytest.approx(snr, abs=0.15)


def test_mean_saturates_gaussian_weights():
    w = normal(1 << 14, 1)
    assert np.mean(np.abs(w) > gamma_of(w, 4, "mean")) == pytest.approx(0.425, abs=0.005)


@over(("bits", "multiple"), [(2, 1.88), (4, 3.18), (8, 4.96)])
def test_mse_gamma_of_gaussian_weights(bits: int, multiple: float):
    w = normal(1 << 14, 1)
    assert (gamma_jit(w, bits, "mse") / np.abs(w).mean()).item() == pytest.approx(multiple, rel=0.03)


@stes
@over("bits", [1, 2, 4, 8])
def test_gradients_with_learned_gamma(ste: str, bits: int):
    gamma = np.array([[0.5, 1.0, 1.5, 0.25]], np.float32)
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)
    w[0], w[1] = gamma, -gamma
    got = jax.jit(jax.grad(lambda w, g: jnp.vdot(quantize(w, bits, gamma=g, ste=ste), cotangent), (0, 1)))(w, gamma)
    for mine, wanted in zip(got, numpy_gradients(w, gamma, bits, ste, cotangent), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


@rules
@over(("granularity", "ste"), [("layer", "clipped"), ("channel", "scaled")])
def test_gamma_of_a_rule_is_a_constant(rule: str, granularity: str, ste: str):
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)
    got = jax.jit(
        jax.grad(lambda w: jnp.vdot(quantize(w, 3, gamma=rule, granularity=granularity, ste=ste), cotangent))
    )(w)
    gamma = np.asarray(gamma_jit(w, 3, rule, granularity))
    np.testing.assert_allclose(got, numpy_gradients(w, gamma, 3, ste, cotangent)[0], rtol=1e-4)


def test_clip_edge_has_gradient_one():
    w = jnp.asarray([[-1.5, -1.0, 0.0, 1.0, 1.5]])
    np.testing.assert_array_equal(jax.grad(lambda w: quantize(w, 2, gamma="none").sum())(w), [[0, 1, 1, 1, 0]])


@over("gamma", [1.0, 0.5], ids=str)
@over("shape", [(), (1,), (4,), (1, 4)])
def test_gamma_arrays_of_any_broadcastable_shape(gamma: float, shape: tuple):
    w, array = normal(*SHAPE), jnp.full(shape, gamma)
    np.testing.assert_array_equal(quantize(w, 4, gamma=array), quantize(w, 4, gamma=jnp.full((1, 4), gamma)))
    assert jax.eval_shape(jax.grad(lambda g: quantize(w, 4, gamma=g).sum()), array).shape == shape


@stes
def test_scale_may_be_applied_later(ste: str):
    w, x = normal(*SHAPE), normal(3, 6, seed=1)

    def late(w):
        integers, scale = integer_weights(w, 3, granularity="channel", ste=ste)
        return (x @ integers) * scale

    def early(w):
        return x @ quantize(w, 3, granularity="channel", ste=ste)

    np.testing.assert_allclose(late(w), early(w), rtol=1e-5, atol=1e-5)
    jacobians = jax.jit(lambda w: (jax.jacrev(late)(w), jax.jacrev(early)(w)))(w)
    np.testing.assert_allclose(*jacobians, rtol=1e-4, atol=1e-5)


@rules
@granularities
def test_gain_multiplies_gamma(rule: str, granularity: str):
    w, gain = normal(*SHAPE), np.full((1, 4), 0.5, np.float32)
    scaled = quantize(w, 3, gamma=gamma_of(w, 3, rule, granularity) * gain)
    np.testing.assert_array_equal(quantize(w, 3, gamma=rule, granularity=granularity, gain=gain), scaled)
    np.testing.assert_array_equal(dequantize(codes(w, 3, gamma=rule, granularity=granularity, gain=gain), 3), scaled)


@over("rule", ["mean", "mse"])
def test_vmap_over_bits(rule: str):
    w, bits = normal(*SHAPE), jnp.arange(1, 9)
    evaluate = jax.value_and_grad(lambda b, w: jnp.sum(jnp.square(quantize(w, b, gamma=rule))), 1)
    values, slopes = jax.jit(jax.vmap(evaluate, (0, None)))(bits, w)
    wanted = [jax.jit(evaluate)(b, w) for b in bits]
    np.testing.assert_allclose(values, jnp.stack([value for value, _ in wanted]), rtol=1e-4)
    np.testing.assert_allclose(slopes, jnp.stack([slope for _, slope in wanted]), rtol=1e-4)


def test_traced_bits_equal_python_bits():
    w = normal(*SHAPE)
    for bits in (2, np.int64(2), np.uint8(2), jnp.int32(2)):
        np.testing.assert_array_equal(quantize(w, bits), jax.jit(quantize)(w, 2))


@rules
@over(("granularity", "live"), [("layer", 0), ("channel", 2)])
def test_zero_filter_is_harmless(rule: str, granularity: str, live: int):
    w = normal(6, 4) * (np.arange(4, dtype=np.float32) < live)

    @jax.jit
    def value_and_gradients(w):
        value = quantize(w, 4, gamma=rule, granularity=granularity)
        return value, [
            jax.grad(lambda w, ste=ste: quantize(w, 4, gamma=rule, granularity=granularity, ste=ste).sum())(w)
            for ste in STES
        ]

    value, gradients = value_and_gradients(w)
    assert np.all(value[:, :live] != 0)
    np.testing.assert_allclose(np.abs(value[:, live:]), 1 / 15 if rule == "none" else 0, rtol=1e-6)
    for gradient in gradients:
        assert jnp.all(jnp.isfinite(gradient))
        np.testing.assert_array_equal(gradient[:, live:], 1)


@over("size", [1e-37, 1e-30, 1e30])
def test_extreme_sizes_keep_the_clipped_gradient(size: float):
    w = np.array([[-1.0, 0.5, 1.0, 0.25]], np.float32) * np.float32(size)
    gradient = jax.jit(jax.grad(lambda w: quantize(w, 8, gamma="max").sum()))(w)
    assert jnp.all(jnp.isfinite(gradient))
    assert size < 1e-36 or jnp.all(jnp.abs(gradient - 1) < 1e-5)


@thorough
@given(w=filters, bits=widths, option=options)
def test_grid(w, bits, option):
    rule, granularity = option
    integers, scale = (np.asarray(x) for x in integers_jit(w, bits, gamma=rule, granularity=granularity))
    live = np.broadcast_to(np.asarray(gamma_of(w, bits, rule, granularity)) > 0, w.shape)
    assert np.all(integers[live] % 2 == 1)
    assert np.all(integers[~live] == 0)
    assert np.all(np.abs(integers) <= 2**bits - 1)
    np.testing.assert_allclose(quantize_jit(w, bits, gamma=rule, granularity=granularity), integers * scale, rtol=1e-6)


@thorough
@given(w=filters, bits=widths, option=options)
def test_codes_reproduce_the_weights(w, bits, option):
    rule, granularity = option
    packed = codes(w, bits, gamma=rule, granularity=granularity)
    assert isinstance(packed, Codes)
    assert packed.values.dtype == jnp.int32
    assert 0 <= packed.values.min() <= packed.values.max() <= 2**bits - 1
    np.testing.assert_array_equal(dequantize(packed, bits), quantize(w, bits, gamma=rule, granularity=granularity))


@thorough
@given(w=filters, bits=widths, gamma=gammas)
def test_idempotent(w, bits, gamma):
    once = fixed_jit(w, bits, gamma)
    np.testing.assert_array_equal(fixed_jit(once, bits, gamma), once)


@thorough
@given(w=filters, bits=widths, rule=st.sampled_from(RULES))
def test_monotone(w, bits, rule):
    quantized = np.asarray(quantize_jit(w, bits, gamma=rule)).ravel()
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
    mse, mean, largest = (
        squared_error(w, quantize_jit(w, bits, gamma=g, granularity=granularity)) for g in ("mse", "mean", "max")
    )
    level = np.abs(w).max() / (2**bits - 1)
    assert mse <= largest * (1 + 1e-4) + 1e-9
    assert mse <= mean * (1 + 1e-4) + 0.05 * level**2


@over("bits", [0, 9, -1, 2.5, np.int64(0), np.int32(9), jnp.int32(0), jnp.int32(9), jnp.array([2, 9])], ids=repr)
@over("function", [quantize, integer_weights, codes, gamma_of, lambda w, b: dequantize(Codes(w, w), b)])
def test_bits_out_of_range(function, bits):
    with pytest.raises(ValueError, match="bits must be an integer between 1 and 8, got"):
        function(jnp.ones((2, 2)), bits)


@over("bits", [True, np.float32(2), jnp.float32(2), np.True_], ids=repr)
def test_bits_that_are_not_integers(bits):
    with pytest.raises(ValueError, match="bits must be an integer between 1 and 8, got"):
        quantize(jnp.ones((2, 2)), bits)


def test_weights_that_are_not_floating():
    with pytest.raises(ValueError, match="weights must be floating, got int32"):
        quantize(jnp.ones((2, 2), jnp.int32), 2)


def test_a_single_bit_is_the_sign_and_zero_is_positive():
    w = np.array([[-1, -1e-12, -0.0, 0, 1e-12, 3]], np.float32)
    np.testing.assert_array_equal(quantize(w, 1, gamma="none"), [[-1, -1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(codes(w, 1).values, [[0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(
        jax.vmap(lambda b: quantize(w, b, gamma="none"))(jnp.asarray([1])), [[[-1, -1, 1, 1, 1, 1]]]
    )


@rules
def test_gamma_is_zero_only_where_all_weights_are(rule: str):
    w = np.zeros((30, 20), np.float32)  # fewer than 1 % are not zero
    w[3, 4], w[7, 4] = 0.5, -0.25
    assert 0 < gamma_jit(w, 4, rule).item() <= 1
    gammas = np.ravel(gamma_jit(w, 4, rule, "channel"))
    assert gammas[4] > 0
    assert rule == "none" or not np.delete(gammas, 4).any()
    assert np.isfinite(of_bits(w, 4, gamma=rule, granularity="channel")).all()


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


@over("bits", [4, 8])
@over("dtype", [jnp.float16, jnp.bfloat16])
def test_arithmetic_is_in_float32_at_least(dtype, bits: int):
    for w in (jnp.asarray([[1e-5, 0, -1e-5]], dtype), jnp.asarray(normal(40, 3) * 2e-4, dtype)):
        for rule in RULES:
            wide = w.astype(jnp.float32)
            found, wanted = gamma_of(w, bits, rule), gamma_of(wide, bits, rule)
            np.testing.assert_array_equal(found, wanted.astype(dtype))
            np.testing.assert_array_equal(quantize(w, bits, gamma=rule), quantize(wide, bits, gamma=rule).astype(dtype))
            integers, scale = integer_weights(w, bits, gamma=rule)
            np.testing.assert_array_equal(integers.astype(jnp.float32), integer_weights(wide, bits, gamma=rule)[0])
            assert (integers.dtype, scale.dtype) == (dtype, dtype)
            assert codes(w, bits, gamma=rule).scale.dtype == jnp.float32


@rules
@granularities
def test_nan_comes_out_as_nan(rule: str, granularity: str):
    w = normal(*SHAPE)
    w[2, 1] = np.nan
    covered = np.s_[:] if granularity == "layer" else np.s_[:, 1]
    options = {"gamma": rule, "granularity": granularity}
    for found in (quantize(w, 3, **options), dequantize(codes(w, 3, **options), 3)):
        assert np.isnan(np.asarray(found)[covered]).all()
    assert not np.isnan(np.delete(quantize(w, 3, gamma=rule, granularity="channel"), 1, 1)).any()
    assert np.isnan(quantize(w, 3, gamma=np.ones(4, np.float32))[2, 1])


def test_rules_and_gradients_are_open():
    """A γ rule and an estimator of the user's; one closes over a differentiated array."""
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)

    def root_mean_square(w, bits, axes):
        assert bits == 3
        return jnp.sqrt(jnp.mean(jnp.square(w), axes, keepdims=True))

    rms = np.sqrt(np.square(w).mean(0, keepdims=True))
    found = quantize(w, 3, gamma=root_mean_square, granularity="channel")
    np.testing.assert_allclose(found, nearest_level(w, rms + 0 * w, 3), rtol=1e-5)

    def gradient(slope):
        def tempered(g, w, gamma):
            return g / (1 + slope * jnp.square(w / gamma))

        def loss(w, gamma):
            return jnp.vdot(quantize(w, 3, gamma=gamma, ste=tempered), cotangent)

        return jax.grad(loss, (0, 1))(w, jnp.asarray(rms))

    mask = 1 / (1 + 0.7 * np.square(w / rms))
    got = gradient(0.7)
    np.testing.assert_allclose(got[0], cotangent * mask, rtol=1e-5)
    to_gamma = (cotangent * (nearest_level(w, rms + 0 * w, 3) - mask * w) / rms).sum(0, keepdims=True)
    np.testing.assert_allclose(got[1], to_gamma, rtol=1e-4, atol=1e-5)
    by_slope = jax.jit(jax.grad(lambda slope: jnp.sum(gradient(slope)[0])))(0.7)
    np.testing.assert_allclose(by_slope, -np.sum(cotangent * mask**2 * np.square(w / rms)), rtol=1e-4)


@stes
def test_second_derivatives_in_reverse_mode(ste: str):
    """The estimator as a linear function around each weight, without a custom rule."""
    w, cotangent = normal(*SHAPE), normal(*SHAPE, seed=1)
    gamma = np.abs(w).mean(keepdims=True)
    mask = numpy_gradients(w, gamma, 3, ste, np.ones_like(w))[0]
    fixed = np.asarray(quantize(w, 3, ste=ste))

    def by_lines(x):
        return fixed + mask * (x - w)

    def loss(f, x):
        return jnp.sum(jnp.sin(2 * f(x)) * x * cotangent)

    def product(f):
        return jax.grad(lambda x: jnp.vdot(jax.grad(lambda x: loss(f, x))(x), cotangent))(w)

    np.testing.assert_allclose(product(lambda x: quantize(x, 3, ste=ste)), product(by_lines), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: quantize(x, 3, ste=ste), (w,), (w,))


@over("function", [quantize, integer_weights, codes, gamma_of])
@over("option", [{"gamma": "median"}, {"granularity": "filter"}])
def test_unknown_option(function, option: dict):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got '{value}'"):
        function(jnp.ones((2, 2)), 4, **option)


@over("function", [quantize, integer_weights])
def test_unknown_ste(function):
    with pytest.raises(ValueError, match="ste must be clipped, plain, scaled or a function, got 'soft'"):
        function(jnp.ones((2, 2)), 4, ste="soft")

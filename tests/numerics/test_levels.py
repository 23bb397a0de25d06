"""How well the levels of a quantizer are used, against loops over the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax import Quantizer, quantization_stats
from qpsnn_jax.numerics.gamma import gamma_of
from qpsnn_jax.numerics.quantization import quantize

GAUSSIAN = jax.random.normal(jax.random.key(0), (200, 2000))


def by_definition(w, bits, gamma, levels=None):
    """In float64, with every sum written out."""
    w, limit = np.asarray(w, np.float64), np.asarray(gamma_of(w, bits, gamma, levels=levels), np.float64)
    quantized = np.asarray(quantize(w, bits, gamma=gamma, levels=levels), np.float64)
    low, high = np.percentile(w, [1, 99])
    used = {float(q) for q, x in zip(quantized.ravel(), w.ravel(), strict=True) if low <= x <= high}
    factors = np.linspace(0, 3, 30_001) * np.abs(w).mean() / np.abs(quantized).mean()
    least = min(np.sum((w - factor * quantized) ** 2) for factor in factors)
    signal = np.sum(w**2)
    ratios = signal / np.sum((w - quantized) ** 2), signal / least
    return [len(used) / (levels or 2**bits), np.mean(np.abs(w) > limit), *(10 * np.log10(ratios))]


@pytest.mark.parametrize("gamma", ["none", "max", "percentile", "mean", "mse"])
@pytest.mark.parametrize(("bits", "levels"), [(1, None), (2, None), (4, None), (8, None), (2, 3)])
def test_statistics_are_those_of_their_definition(bits, levels, gamma):
    weights = np.random.default_rng(bits).normal(size=(3, 3, 4, 6)).astype(np.float32)
    found = quantization_stats(weights, bits, gamma=gamma, levels=levels)
    np.testing.assert_allclose(found, by_definition(weights, bits, gamma, levels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("bits", "decibels"), [(2, 7.6), (4, 8.6), (8, 8.7)])
def test_mean_magnitude_saturates_gaussian_weights(bits, decibels):
    found = quantization_stats(GAUSSIAN, bits)
    assert found.saturation == pytest.approx(0.425, abs=2e-3)  # P(|x| > √(2/π))
    assert found.rescaled_snr == pytest.approx(decibels, abs=0.06)
    assert found.utilization == 1


@pytest.mark.parametrize(("bits", "used"), [(2, 2), (4, 2), (8, 30)])
def test_without_a_scale_small_weights_use_few_levels(bits, used):
    weights = jnp.linspace(-0.12, 0.12, 10_001)[:, None]
    found = quantization_stats(weights, bits, gamma="none")
    assert found.utilization == used / 2**bits  # about (s·a + 1) / (s + 1) for weights in [-a, a]
    assert found.saturation == 0


def test_no_weight_is_beyond_the_largest():
    for seed in range(20):
        weights = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)
        assert quantization_stats(weights, 2, gamma="max").saturation == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(wrong):
    assert np.isnan(quantization_stats(GAUSSIAN[:4].at[1, 1].set(wrong), 2)).all()


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_the_unit_of_the_weights_changes_nothing(unit):
    weights = GAUSSIAN[:10, :50]
    np.testing.assert_allclose(quantization_stats(unit * weights, 2), quantization_stats(weights, 2), rtol=1e-4)


def test_weights_on_the_levels_have_no_noise():
    found = quantization_stats(jnp.array([[1.0, -1.0, 1.0]]), 1)
    assert found.snr == found.rescaled_snr == np.inf


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("gamma", ["mean", "learned"])
def test_a_quantizer_measures_the_weights_that_it_makes(gamma, granularity):
    quantizer, kernel = Quantizer(2, gamma, granularity), GAUSSIAN[:20, :3] * jnp.array([[1.0, 3.0, 0.5]])
    scale = quantizer.gamma_of(kernel) if gamma == "learned" else 1.5
    integers, factor = quantizer.integer_weights(kernel, scale)
    noise = jnp.sum((kernel - integers * factor) ** 2)
    found = quantizer.stats(kernel, scale)
    assert found.snr == pytest.approx(10 * np.log10(jnp.sum(kernel**2) / noise), rel=1e-4)


def test_zeros_use_one_level_and_have_no_ratio():
    found = quantization_stats(jnp.zeros((4, 3)), 2)
    assert (found.utilization, found.saturation) == (0.25, 0)
    assert np.isnan(found.snr)

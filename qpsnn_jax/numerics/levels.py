"""How well the levels of a quantizer are used by the weights of a layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.gamma import Gamma, GammaRule, Granularity, top_level, widened
from qpsnn_jax.numerics.quantization import codes, dequantize, resolve_gamma
from qpsnn_jax.runtime.sharding import with_auto_axes

_MOST_LEVELS = 2**8
_TAIL = 1  # percent of the weights on either side that Eq. 8 leaves out


class QuantizationStats(NamedTuple):
    """What :func:`quantization_stats` finds, each a scalar.

    Attributes:
        utilization: share of the levels that are used, 0 to 1 (Eq. 8).
        saturation: share of the weights beyond ±γ, 0 to 1.
        snr: signal-to-noise ratio of the quantized weights in dB.
        rescaled_snr: the same for the best factor on them in dB; batch-norm after the layer absorbs such a factor.
    """

    utilization: Array
    saturation: Array
    snr: Array
    rescaled_snr: Array


def quantization_stats(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | GammaRule | ArrayLike = "mean",
    granularity: Granularity = "layer",
    gain: ArrayLike = 1.0,
    levels: int | None = None,
) -> QuantizationStats:
    r"""How well quantized weights use their levels, and how much they differ from the weights.

    .. math::
        \text{utilization} = \frac{|\{c_i : P_1(W) \le W_i \le P_{99}(W)\}|}{s + 1}, \quad
        \text{saturation} = \frac{|\{i : |W_i| > γ\}|}{n}

    .. math::
        \text{snr} = 10 \log_{10} \frac{\sum W^2}{\sum (W - Ŵ)^2}, \quad
        \text{rescaled snr} = \max_a 10 \log_{10} \frac{\sum W^2}{\sum (W - a Ŵ)^2}

    with the codes c, the percentiles P, and s + 1 levels. Of fewer than a hundred weights, the percentiles leave out
    the smallest and the largest. The gradient of all is 0.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8; may be a traced array.
        gamma, granularity, gain, levels: as in :func:`quantize`.

    Returns:
        The statistics of all weights together, of the dtype of ``weights``, float32 at least. The ratios are infinite
        where quantization changes no weight, and NaN where all weights are 0. All are NaN where a weight is not finite.

    Raises:
        ValueError: unknown option, bits outside 1 to 8, or weights that are not floating.

    References:
        QP-SNN (ICLR 2025), Eq. 8.
    """
    wide = jax.lax.stop_gradient(widened(weights))
    top = top_level(bits, wide, levels)
    limit = jax.lax.stop_gradient(resolve_gamma(wide, bits, gamma, granularity, gain, levels))
    found = codes(wide, bits, gamma=limit, levels=levels)
    both = jnp.stack([wide, found.values.astype(wide.dtype)])
    largest = jnp.where(jnp.all(jnp.isfinite(wide)), jnp.max(jnp.abs(wide)), jnp.nan)
    unit = jnp.where(largest == 0, 1, largest)  # squares of small numbers would be 0
    signal, quantized = wide / unit, dequantize(found, bits, levels=levels) / unit
    power = jnp.sum(quantized**2)
    best = jnp.sum(signal * quantized) / jnp.where(power == 0, 1, power)
    nan = 0 * largest
    return QuantizationStats(
        with_auto_axes(_levels_in_use, both, ()) / (top + 1) + nan,
        jnp.mean(jnp.abs(wide) > limit, dtype=wide.dtype) + nan,
        _decibels(signal, signal - quantized),
        _decibels(signal, signal - best * quantized),
    )


def _levels_in_use(weights_and_codes: Array) -> Array:
    """The number of levels of the weights between the two percentiles."""
    weights, values = weights_and_codes
    low, high = jnp.percentile(weights, jnp.asarray([_TAIL, 100 - _TAIL], weights.dtype))
    inside = (low <= weights) & (weights <= high)
    used = jnp.zeros(_MOST_LEVELS, bool).at[values.astype(jnp.int32)].max(inside)
    return jnp.sum(used, dtype=weights.dtype)


def _decibels(signal: Array, noise: Array) -> Array:
    return 10 * jnp.log10(jnp.sum(signal**2) / jnp.sum(noise**2))

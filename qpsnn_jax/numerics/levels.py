"""How well the levels of a quantizer are used by the weights of a layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.gamma import Gamma, GammaRule, Granularity, top_level, widened
from qpsnn_jax.numerics.quantization import codes, dequantize, resolve_gamma

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

    with the codes c, the percentiles P, and s + 1 levels. The gradient of all is 0.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8; may be a traced array.
        gamma, granularity, gain, levels: as in :func:`quantize`.

    Returns:
        The statistics of all weights together, of the dtype of ``weights``, float32 at least; NaN where a weight is.

    Raises:
        ValueError: unknown option, bits outside 1 to 8, or weights that are not floating.

    References:
        QP-SNN (ICLR 2025), Eq. 8.
    """
    wide = jax.lax.stop_gradient(widened(weights))
    top = top_level(bits, wide, levels)
    limit = jax.lax.stop_gradient(resolve_gamma(wide, bits, gamma, granularity, gain, levels))
    found = codes(wide, bits, gamma=limit, levels=levels)
    low, high = jnp.percentile(wide, jnp.asarray([_TAIL, 100 - _TAIL], wide.dtype))
    inside = (low <= wide) & (wide <= high)
    used = jnp.zeros(_MOST_LEVELS, bool).at[found.values].max(inside)
    quantized = dequantize(found, bits, levels=levels)
    power = jnp.sum(quantized**2)
    best = jnp.sum(wide * quantized) / jnp.where(power == 0, 1, power)
    nan = 0 * jnp.sum(wide)
    return QuantizationStats(
        jnp.sum(used, dtype=wide.dtype) / (top + 1) + nan,
        jnp.mean(jnp.abs(wide) > limit, dtype=wide.dtype) + nan,
        _decibels(wide, wide - quantized),
        _decibels(wide, wide - best * quantized),
    )


def _decibels(signal: Array, noise: Array) -> Array:
    return 10 * jnp.log10(jnp.sum(signal**2) / jnp.sum(noise**2))

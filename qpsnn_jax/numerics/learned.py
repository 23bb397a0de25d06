"""Scales and decay factors that are trained as parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.leaks import GRID, MIDDLES
from qpsnn_jax.runtime.checks import integer

LEARNED = ("gamma", "tau_logit", "log_threshold")
"""Names of the parameters of nodes that are such scales."""


def scale_gradient(x: Array, factor: ArrayLike) -> Array:
    r"""``x`` itself, whose gradient is multiplied by a factor.

    Args:
        x: any shape, floating.
        factor: a number, or an array that broadcasts against ``x``.

    Returns:
        An array equal to ``x``, bit for bit; NaN where x is not finite.
    """
    return x + (jnp.asarray(factor, x.dtype) - 1) * (x - jax.lax.stop_gradient(x))


def lsq_gamma(gamma: Array, *, count: int, bits: int) -> Array:
    r"""A learned scaling coefficient, \|γ\|, whose gradient has the scale of LSQ.

    .. math:: \frac{∂L}{∂γ} ← \frac{1}{\sqrt{N \, 2^{b-1}}} \frac{∂L}{∂γ}

    The gradient of γ sums over the N weights that share it, so it is far larger beside γ than that of a weight is
    beside the weight. :math:`2^{b-1}` is the number of positive levels of the grid, which has no zero. The magnitude
    keeps the grid as it is when a step of training would make γ negative.

    Args:
        gamma: the parameter γ, any shape, floating.
        count: N, the number of weights that share each γ.
        bits: b, 1 to 8.

    Returns:
        \|γ\|, for the ``gamma`` of :func:`qpsnn_jax.quantize`, which has LSQ's rule for its gradient.

    Raises:
        ValueError: ``count`` is not a positive integer, or ``bits`` is not one from 1 to 8.

    References:
        Esser et al., Learned Step Size Quantization, ICLR 2020.
    """
    count, bits = integer("count", count, 1), integer("bits", bits, 1, 8)
    return jnp.abs(scale_gradient(jnp.asarray(gamma), 1 / math.sqrt(count * 2 ** (bits - 1))))


def round_leak(tau: Array) -> Array:
    """The nearest of 2⁻ᵏ and 1 - 2⁻ᵏ below 1, k from 0 to 8, to decay factors τ of any shape; the derivative is 1."""
    wide = tau.astype(np.promote_types(tau.dtype, np.float32))  # a middle between two may be no bfloat16
    grid, middles = (jnp.expand_dims(jnp.asarray(x, wide.dtype), range(tau.ndim)) for x in (GRID[1:-1], MIDDLES[:-1]))
    rounded = jnp.max(jnp.where(middles < wide[..., None], grid, 0), -1)
    # Each is exact in every floating dtype, and so is a sum with 0.
    return rounded.astype(tau.dtype) + (tau - jax.lax.stop_gradient(tau))

"""The scaling coefficient γ of ReScaW, and the grid of 2^b levels that it stretches over [-γ, γ]."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

Granularity = Literal["layer", "channel"]
Gamma = Literal["none", "max", "percentile", "mean", "mse"]
GammaRule = Callable[[Array, ArrayLike, tuple[int, ...]], Array]
"""From W, b and the axes that share a γ to γ, those axes kept with size 1."""

_PERCENTILE = 99.0
_MSE_GRID = 64
_MSE_ROUNDS = 8


def gamma_of(
    weights: Array, bits: ArrayLike, gamma: Gamma | GammaRule = "mean", granularity: Granularity = "layer"
) -> Array:
    r"""The scaling coefficient γ of ReScaW, chosen from the weights.

    ``none``: 1 (vanilla quantizer); ``max``: max|W|; ``percentile``: max(|P₁(W)|, |P₉₉(W)|); ``mean``: mean|W|, the
    paper's default; ``mse``: the γ that minimizes :math:`\|W - Ŵ\|^2`, found by a grid search over ``(0, max|W|]``
    and least squares from its best point.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8 (only ``mse`` depends on it); may be a traced array.
        gamma: the rule; a function of W, b and the axes that share a γ gives γ with these axes kept.
        granularity: one γ for the ``layer`` (paper) or for each output ``channel`` (released code).

    Returns:
        γ of shape ``1 … 1`` (layer) or ``1 … 1 o`` (channel); zero where all the weights it covers are zero.

    Raises:
        ValueError: unknown rule or ``granularity``, bits outside 1 to 8, or a function whose γ has another shape.

    References:
        QP-SNN (ICLR 2025), Eq. 9-10 and section 4.1; per channel as in the released code.
    """
    axes, top = reduced_axes(weights, granularity), top_level(bits, weights)
    if callable(gamma):
        found, shape = jnp.asarray(gamma(weights, bits, axes)), jnp.max(weights, axis=axes, keepdims=True).shape
        if found.shape != shape:
            raise ValueError(f"gamma must give γ of shape {shape} for weights {weights.shape}, gave {found.shape}.")
        return found
    magnitude = jnp.abs(weights)
    if gamma == "none":
        return jnp.ones_like(jnp.max(magnitude, axis=axes, keepdims=True))
    if gamma == "max":
        return jnp.max(magnitude, axis=axes, keepdims=True)
    if gamma == "percentile":
        ends = jnp.asarray([100 - _PERCENTILE, _PERCENTILE], weights.dtype)
        return jnp.max(jnp.abs(jnp.percentile(weights, ends, axis=axes, keepdims=True)), axis=0)
    if gamma == "mean":
        return jnp.mean(magnitude, axis=axes, keepdims=True)
    if gamma == "mse":
        return _mse_gamma(weights, top, axes)
    raise ValueError(f"gamma must be none, max, percentile, mean, mse, a function or an array, got {gamma!r}.")


def round_codes(weights: Array, gamma: Array, top: Array) -> Array:
    """Codes of weights as floating numbers, 0 to the top level s = 2^b - 1."""
    return jnp.round(top / 2 * (jnp.clip(weights / gamma, -1, 1) + 1))


def top_level(bits: ArrayLike, like: Array) -> Array:
    """The top level s = 2^b - 1 as a number of the weights' dtype, by an integer shift: exp2 need not be exact."""
    if not isinstance(bits, Tracer) and not np.isin(bits, range(1, 9)).all():
        raise ValueError(f"bits must be an integer between 1 and 8, got {bits}.")
    return (jnp.left_shift(1, jnp.asarray(bits, jnp.int32)) - 1).astype(like.dtype)


def reduced_axes(weights: Array, granularity: Granularity) -> tuple[int, ...]:
    """Axes that share a γ."""
    if granularity == "layer":
        return tuple(range(weights.ndim))
    if granularity == "channel":
        return tuple(range(weights.ndim - 1))
    raise ValueError(f"granularity must be layer or channel, got {granularity!r}.")


@partial(jax.jit, static_argnames="axes")
def _mse_gamma(weights: Array, top: Array, axes: tuple[int, ...]) -> Array:
    """Best γ of a grid over (0, max|W|], then of a finer grid around it, then alternating least squares (Lloyd).

    Least squares make γ a quotient of sums over fixed codes. Ever finer grids would stop anywhere in a flat minimum, at
    another point in each compilation. One candidate at a time, so that no more memory is needed than for the weights.
    """
    largest = jnp.max(jnp.abs(weights), axis=axes, keepdims=True)

    def levels(gamma: Array) -> Array:
        return (2 * round_codes(weights, jnp.where(gamma > 0, gamma, 1), top) - top) / top

    def total(x: Array) -> Array:
        return jnp.sum(x, axis=axes, keepdims=True)

    def error(gamma: Array) -> Array:
        return total(jnp.square(weights - gamma * levels(gamma)))

    def best(low: Array, high: Array) -> Array:
        step = (high - low) / _MSE_GRID
        errors = jax.lax.map(lambda k: error(low + step * k), jnp.arange(1, _MSE_GRID + 1, dtype=weights.dtype))
        return low + step * (1 + jnp.argmin(errors, axis=0)).astype(weights.dtype)

    gamma = best(jnp.zeros_like(largest), largest)
    step = largest / _MSE_GRID
    gamma = best(jnp.maximum(gamma - step, 0), jnp.minimum(gamma + step, largest))
    for _ in range(_MSE_ROUNDS):
        level = levels(gamma)
        gamma = total(weights * level) / total(jnp.square(level))
    return gamma

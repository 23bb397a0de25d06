"""The scaling coefficient γ of ReScaW, and the grid of 2^b levels on [-γ, γ]."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from qpsnn_jax.runtime.sharding import with_auto_axes

Gamma = Literal["none", "max", "percentile", "mean", "mse"]
Granularity = Literal["layer", "channel"]
GammaRule = Callable[[Array, ArrayLike, tuple[int, ...]], Array]
"""A function of W, b and the axes that share one γ, which returns γ with those axes kept at size 1."""

TERNARY = 3
_PERCENTILE = 99.0
_MSE_GRID = 64
_MSE_ROUNDS = 8
# Up to this many weights, and places where a weight changes its level, every assignment of levels is tried.
_FEW_WEIGHTS, _FEW_PLACES = 64, 4096


def gamma_of(
    weights: Array,
    bits: ArrayLike,
    gamma: Gamma | GammaRule = "mean",
    granularity: Granularity = "layer",
    *,
    levels: int | None = None,
) -> Array:
    r"""The scaling coefficient γ of ReScaW, chosen from the weights.

    ``none``: 1 (vanilla quantizer); ``max``: max|W|; ``percentile``: max(|P₁(W)|, |P₉₉(W)|); ``mean``: mean|W|, the
    paper's default; ``mse``: the γ that minimizes :math:`\|W - Ŵ\|^2`, exact for few weights, otherwise the best of a
    grid, improved by least squares. Where a rule returns 0 for weights that are not all 0, γ is max|W|.

    Args:
        weights: W, shape ``… o``, floating; computed in float32 at least.
        bits: b, 1 to 8 (only ``mse`` depends on it); may be a traced array.
        gamma: the rule: its name, or a function :data:`~qpsnn_jax.numerics.gamma.GammaRule` of W (in float32 at least),
            b and the axes that share one γ.
        granularity: one γ for the ``layer`` (paper) or for each output ``channel`` (released code).
        levels: of the grid, as for :func:`qpsnn_jax.quantize`.

    Returns:
        γ of shape ``1 … 1`` (layer) or ``1 … 1 o`` (channel) and the dtype of ``weights``; NaN where it covers a NaN.
        Zero only if all weights that share it are zero.

    Raises:
        ValueError: unknown rule or ``granularity``, bits outside 1 to 8, weights that are not floating, or a function
            whose γ has another shape.

    References:
        QP-SNN (ICLR 2025), Eq. 9-10 and section 4.1; per channel as in the released code.
    """
    return wide_gamma(weights, bits, gamma, granularity, levels).astype(jnp.result_type(weights))


def wide_gamma(
    weights: Array,
    bits: ArrayLike,
    gamma: Gamma | GammaRule,
    granularity: Granularity,
    levels: int | None = None,
) -> Array:
    """:func:`gamma_of` in float32 at least."""
    weights, axes = widened(weights), _reduced_axes(weights, granularity)
    if weights.size == 0:
        raise ValueError(f"weights must have numbers, of which γ is taken, got the shape {weights.shape}.")
    top_level(bits, weights, levels)
    if not callable(gamma) and gamma not in GAMMAS:
        raise ValueError(f"gamma must be {', '.join(GAMMAS)}, a function or an array, got {gamma!r}.")
    rule = gamma if callable(gamma) else GAMMAS[gamma]
    if levels is not None and gamma == "mse":
        rule = _ternary_mse
    follows = [None if axis in axes else axis for axis in range(weights.ndim)]
    found = jnp.asarray(with_auto_axes(lambda w: rule(w, bits, axes), weights, follows), weights.dtype)
    ceiling = _largest(weights, bits, axes)
    if found.shape != ceiling.shape:
        raise ValueError(f"gamma must give γ of shape {ceiling.shape} for weights {weights.shape}, gave {found.shape}.")
    return jnp.where((found == 0) | jnp.isnan(ceiling), ceiling, found)


def widened(weights: Array) -> Array:
    """Weights in float32 at least.

    Raises:
        ValueError: they are not floating.
    """
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights must be floating, got {weights.dtype}.")
    return weights.astype(np.promote_types(weights.dtype, np.float32))


def top_level(bits: ArrayLike, like: Array, levels: int | None = None) -> Array:
    """The top level s = 2^b - 1 in the dtype of ``like``, by an integer shift: exp2 need not be exact; 2 if ternary.

    Raises:
        ValueError: bits are not integers from 1 to 8, or levels neither None nor 3.
    """
    if levels is not None:
        if levels != TERNARY:
            raise ValueError(f"levels must be 3 (ternary) or None, got {levels!r}.")
        return jnp.asarray(TERNARY - 1, like.dtype)
    if not isinstance(bits, Tracer):
        given = np.asarray(bits)
        if given.dtype.kind not in "iu" or not np.isin(given, range(1, 9)).all():
            raise ValueError(f"bits must be an integer between 1 and 8, got {bits!r}.")
    return (jnp.left_shift(1, jnp.asarray(bits, jnp.int32)) - 1).astype(like.dtype)


def round_codes(weights: Array, gamma: Array, top: Array) -> Array:
    """Codes in {0, …, s} of weights for a positive γ, as floats; NaN where either is.

    Ties go to even codes, but a single bit is the sign: 0 has the code 1, as in binary networks.
    """
    ratio = jnp.clip(weights / gamma, -1, 1)
    sign = jnp.where(weights < 0, 0, 1) + 0 * ratio
    return jnp.where(top == 1, sign, jnp.round(top / 2 * (ratio + 1)))


def _none(weights: Array, bits: ArrayLike, axes: tuple[int, ...]) -> Array:
    """1."""
    del bits
    return jnp.ones_like(jnp.max(weights, axis=axes, keepdims=True))


def _largest(weights: Array, bits: ArrayLike, axes: tuple[int, ...]) -> Array:
    """The largest magnitude; NaN where any is."""
    del bits
    found = jnp.max(jnp.abs(weights), axis=axes, keepdims=True)
    # XLA on a CPU leaves NaN out of a maximum of thousands of numbers, and numbers before it too (jax 0.10.2).
    return jnp.where(jnp.any(jnp.isnan(weights), axis=axes, keepdims=True), jnp.nan, found)


def _percentile(weights: Array, bits: ArrayLike, axes: tuple[int, ...]) -> Array:
    """The larger magnitude of the 1st and the 99th percentile."""
    del bits
    # By slices of the sorted weights: XLA on a CPU compiles the gradient of jnp.percentile wrongly (jax 0.10.2).
    count = math.prod(weights.shape[axis] for axis in axes)
    rest = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(weights.shape))
    ordered = jnp.sort(jnp.transpose(weights, (*axes, *rest)).reshape(count, *kept), axis=0)

    def at(percent: float) -> Array:
        place = percent / 100 * (count - 1)
        low = math.floor(place)
        return ordered[low] + (place - low) * (ordered[min(low + 1, count - 1)] - ordered[low])

    found = jnp.maximum(jnp.abs(at(100 - _PERCENTILE)), jnp.abs(at(_PERCENTILE)))
    return jnp.where(jnp.isnan(ordered[-1]), jnp.nan, found)


def _mean(weights: Array, bits: ArrayLike, axes: tuple[int, ...]) -> Array:
    """The mean magnitude."""
    del bits
    return jnp.mean(jnp.abs(weights), axis=axes, keepdims=True)


def _mse(weights: Array, bits: ArrayLike, axes: tuple[int, ...]) -> Array:
    """The γ of the least squared error."""
    most = 255 if isinstance(bits, Tracer) else 2 ** int(np.max(bits)) - 1
    return _least_squares(weights, top_level(bits, weights), axes, most)


def _ternary_mse(weights: Array, bits: ArrayLike, axes: tuple[int, ...]) -> Array:
    r"""The γ of the least squared error of the levels -γ, 0 and γ.

    Where the k largest weights are ±γ, the best γ is their mean magnitude, and the error falls by
    :math:`(\sum_{i ≤ k} |W_i|)^2 / k`; all k are tried.
    """
    del bits
    rest = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(weights.shape))
    largest = -jnp.sort(-jnp.transpose(jnp.abs(weights), (*axes, *rest)).reshape(-1, *kept), axis=0)
    sums = jnp.cumsum(largest, axis=0)
    counts = jnp.arange(1, len(sums) + 1, dtype=weights.dtype).reshape(-1, *(1 for _ in kept))
    best = jnp.argmax(jnp.square(sums) / counts, axis=0)
    return jnp.take_along_axis(sums / counts, best[None], axis=0)[0]


@partial(jax.jit, static_argnames=("axes", "most"))
def _least_squares(weights: Array, top: Array, axes: tuple[int, ...], most: int) -> Array:
    """The γ of the least squared error; ``most`` bounds the top level s.

    For fixed codes, the best γ is a quotient of sums. If there are few places where a weight changes its level, the
    codes at each of them are tried; otherwise the search starts at the best of a grid over (0, 2·max|W|] and of a finer
    one around it. Then γ and codes are improved in turn (Lloyd). One candidate at a time, to save memory.
    """

    def total(x: Array) -> Array:
        return jnp.sum(x, axis=axes, keepdims=True)

    def level(gamma: Array) -> Array:
        return (2 * round_codes(weights, jnp.where(gamma > 0, gamma, 1), top) - top) / top

    def fitted(at: Array) -> Array:
        return total(weights * at) / total(jnp.square(at))

    def error(gamma: Array) -> Array:
        return total(jnp.square(weights - gamma * level(gamma)))

    def fitted_error(gamma: Array) -> Array:
        at = level(gamma)
        return total(jnp.square(weights - fitted(at) * at))

    def lowest(low: Array, high: Array, points: int) -> Array:
        step = (high - low) / points
        errors = jax.lax.map(lambda k: error(low + step * k), jnp.arange(1, points + 1, dtype=weights.dtype))
        return low + step * (1 + jnp.argmin(errors, axis=0)).astype(weights.dtype)

    highest = jnp.max(jnp.abs(weights), axis=axes, keepdims=True)
    count, places = math.prod(weights.shape[axis] for axis in axes), most // 2
    if count <= _FEW_WEIGHTS and count * places <= _FEW_PLACES:
        gamma = _best_place(weights, top, axes, places, fitted_error)
    else:
        step = highest / _MSE_GRID
        gamma = lowest(jnp.zeros_like(highest), 2 * highest, 2 * _MSE_GRID)
        gamma = lowest(jnp.maximum(gamma - step, 0), gamma + step, _MSE_GRID)
    for _ in range(_MSE_ROUNDS):
        gamma = fitted(level(gamma))
    return gamma


def _best_place(
    weights: Array, top: Array, axes: tuple[int, ...], places: int, error: Callable[[Array], Array]
) -> Array:
    """A γ with the codes of least error: just above a place where a weight changes its level, or below all of them."""
    rest = tuple(i for i in range(weights.ndim) if i not in axes)
    kept = tuple(1 if i in axes else n for i, n in enumerate(weights.shape))
    magnitudes = jnp.transpose(jnp.abs(weights), (*axes, *rest)).reshape(-1, *kept)
    # At s|W|/γ = 2k the nearest odd number changes; s is odd, so that there are (s - 1)/2 such places.
    k = jnp.arange(1, places + 1, dtype=weights.dtype).reshape(1, -1, *(1 for _ in kept))
    above, exists = top * magnitudes[:, None] / (2 * k) * (1 + 4e-6), 2 * k < top
    smallest = jnp.min(jnp.where(magnitudes > 0, magnitudes, jnp.inf), axis=0)
    found = jnp.where(exists & (above > 0), above, smallest).reshape(-1, *kept)
    candidates = jnp.concatenate([smallest[None], found])
    best = jnp.argmin(jax.lax.map(error, candidates), axis=0)
    return jnp.take_along_axis(candidates, best[None], axis=0)[0]


GAMMAS: dict[Gamma, GammaRule] = {
    "none": _none,
    "max": _largest,
    "percentile": _percentile,
    "mean": _mean,
    "mse": _mse,
}


def _reduced_axes(weights: Array, granularity: Granularity) -> tuple[int, ...]:
    if granularity == "layer":
        return tuple(range(weights.ndim))
    if granularity == "channel":
        return tuple(range(weights.ndim - 1))
    raise ValueError(f"granularity must be layer or channel, got {granularity!r}.")

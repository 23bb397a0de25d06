"""Uniform weight quantization with ReScaW scaling and straight-through gradients.

Invariant: ``Ŵ = scale · (2·code - s)`` with ``s = 2^b - 1``, codes in ``{0, …, s}`` and ``scale = γ / s``. Weights
carry their output channel on the last axis (``h w i o`` for convolutions, ``i o`` for dense layers).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

Granularity = Literal["layer", "channel"]
STE = Literal["clipped", "plain", "scaled"]
Gamma = Literal["none", "max", "percentile", "mean", "mse"]

_PERCENTILE = 99.0
_MSE_GRID = 64
_MSE_ROUNDS = 8


class Codes(NamedTuple):
    """Integer codes in ``{0, …, 2^b - 1}`` (int32, the shape of the weights) and ``scale`` = γ/s (broadcastable)."""

    values: Array
    scale: Array


def gamma_of(weights: Array, bits: ArrayLike, gamma: Gamma = "mean", granularity: Granularity = "layer") -> Array:
    r"""The scaling coefficient γ of ReScaW, chosen from the weights.

    ``none``: 1 (vanilla quantizer); ``max``: max|W|; ``percentile``: max(|P₁(W)|, |P₉₉(W)|); ``mean``: mean|W|, the
    paper's default; ``mse``: the γ that minimizes :math:`\|W - Ŵ\|^2`, found by a grid search over ``(0, max|W|]``
    and least squares from its best point.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8 (only ``mse`` depends on it); may be a traced array.
        gamma: the rule.
        granularity: one γ for the ``layer`` (paper) or for each output ``channel`` (released code).

    Returns:
        γ of shape ``1 … 1`` (layer) or ``1 … 1 o`` (channel); zero where all the weights it covers are zero.

    Raises:
        ValueError: unknown rule or ``granularity``, or bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 9-10 and section 4.1; per channel as in the released code.
    """
    axes, top = _reduced_axes(weights, granularity), _top(bits, weights)
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
    raise ValueError(f"gamma must be none, max, percentile, mean, mse or an array, got {gamma!r}.")


def integer_weights(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | Array = "mean",
    granularity: Granularity = "layer",
    ste: STE = "clipped",
    gain: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    r"""The two factors of the quantized weights: odd integers ``2·code - s`` and ``scale`` = γ/s.

    A layer that multiplies by the integers and applies the scale afterwards computes exactly what an integer device
    accumulates. Gradients flow to the weights by the straight-through rule (see :func:`quantize`) when the product
    ``integers · scale``, in whatever order it is computed, is differentiated.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8; may be a traced array, so that vmap over bit widths works.
        gamma: a rule of :func:`gamma_of`, or an array that broadcasts against ``weights`` (differentiable).
        granularity: ``layer`` or ``channel``, for the rules.
        ste: ``clipped``, ``plain`` or ``scaled``.
        gain: constant factor on a γ found by a rule, that broadcasts like γ; preserves the value of γ when channels are
            removed (see :func:`qpsnn_jax.prune`).

    Returns:
        ``(integers, scale)``: floating odd integers in ``[-s, s]`` of the shape of ``weights`` (all zero where γ is
        zero), and the scale, which broadcasts against them.

    Raises:
        ValueError: unknown option, or bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10.
    """
    if ste not in ("clipped", "plain", "scaled"):
        raise ValueError(f"ste must be clipped, plain or scaled, got {ste!r}.")
    top = _top(bits, weights)
    gamma = _resolve_gamma(weights, bits, gamma, granularity, gain)
    live = gamma > 0
    # An all-zero filter has γ = 0: its integers are then zero, and any positive γ leaves Ŵ = 0 and gradients finite.
    gamma = jnp.where(live, gamma, 1)
    integers: Any = _ste_integers(weights, gamma, top, ste)
    return jnp.where(live, integers, integers - jax.lax.stop_gradient(integers)), gamma / top


def quantize(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | Array = "mean",
    granularity: Granularity = "layer",
    ste: STE = "clipped",
    gain: ArrayLike = 1.0,
) -> Array:
    r"""Fake-quantized weights: floating numbers on a grid of 2^b levels, with a straight-through gradient.

    .. math::
        Ŵ = \frac{γ}{s} (2\,c - s), \quad
        c = \mathrm{round}\Big(\frac{s}{2} \big(\mathrm{clip}(W/γ, -1, 1) + 1\big)\Big), \quad s = 2^b - 1

    A γ found by a rule is a constant in the backward pass. With g = dL/dŴ, the rules for dL/dW are ``clipped``
    (paper): g where \|W\| ≤ γ, else 0; ``plain``: g; ``scaled`` (released code): g/γ. When γ is an array, it gets
    dL/dγ = Σ g·(Ŵ/γ - m·W/γ) with m the mask of the rule (LSQ).

    Args:
        weights: W, shape ``… o``, floating; the last axis is the output channel.
        bits: b, 1 to 8; may be a traced array, so that vmap over bit widths works.
        gamma: ``none`` (vanilla), ``max``, ``percentile``, ``mean`` (ReScaW), ``mse``, or a positive array that
            broadcasts against ``weights``.
        granularity: one γ for the ``layer`` (paper) or for each output ``channel`` (released code).
        ste: ``clipped``, ``plain`` or ``scaled``.
        gain: constant factor on a γ found by a rule.

    Returns:
        Ŵ, of the shape and dtype of ``weights``. Where γ is zero, that is where all the weights it covers are, Ŵ is
        zero and the gradient finite; the grid itself has no zero.

    Raises:
        ValueError: unknown option, or bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10; learned γ: Esser et al., ICLR 2020.
    """
    integers, scale = integer_weights(weights, bits, gamma=gamma, granularity=granularity, ste=ste, gain=gain)
    return integers * scale


def codes(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | Array = "mean",
    granularity: Granularity = "layer",
    gain: ArrayLike = 1.0,
) -> Codes:
    """Integer codes and scale of the quantized weights, for storage; :func:`quantize` gives the weights themselves.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8.
        gamma, granularity, gain: as in :func:`quantize`.

    Returns:
        ``Codes(values, scale)``: int32 codes in ``{0, …, 2^b - 1}`` of the shape of ``weights``, and the scale γ/s,
        which is zero for an all-zero filter. ``dequantize(codes(w, b), b)`` equals ``quantize(w, b)`` exactly.

    Raises:
        ValueError: unknown option, or bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6.
    """
    top = _top(bits, weights)
    gamma = _resolve_gamma(weights, bits, gamma, granularity, gain)
    values = _round_codes(weights, jnp.where(gamma > 0, gamma, 1), top)
    return Codes(values.astype(jnp.int32), gamma / top)


def dequantize(codes: Codes, bits: ArrayLike) -> Array:
    """Weights from codes, ``scale · (2·code - s)`` with ``s = 2^b - 1``.

    Args:
        codes: integer codes of any shape and a scale that broadcasts against them.
        bits: b, 1 to 8.

    Returns:
        Weights of the shape of the codes and the dtype of the scale.

    Raises:
        ValueError: bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 6.
    """
    top = _top(bits, codes.scale)
    return (2 * codes.values.astype(codes.scale.dtype) - top) * codes.scale


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ste_integers(weights: Array, gamma: Array, top: Array, ste: STE) -> Array:
    return 2 * _round_codes(weights, gamma, top) - top


def _ste_forward(weights: Array, gamma: Array, top: Array, ste: STE):
    return _ste_integers(weights, gamma, top, ste), (weights, gamma, top)


def _ste_backward(ste: STE, saved, cotangent: Array):
    # integers ≈ s·W/γ, so the cotangent of Ŵ is cotangent·s/γ; each rule is stated for that one.
    weights, gamma, top = saved
    upstream = cotangent * top / gamma
    if ste == "clipped":
        upstream = jnp.where(jnp.abs(weights) <= gamma, upstream, 0)
    to_gamma = -_sum_to(upstream * weights / gamma, gamma.shape)
    if ste == "scaled":
        upstream = upstream / gamma
    return upstream, to_gamma, jnp.zeros_like(top)


_ste_integers.defvjp(_ste_forward, _ste_backward)


def _resolve_gamma(
    weights: Array, bits: ArrayLike, gamma: Gamma | Array, granularity: Granularity, gain: ArrayLike
) -> Array:
    if isinstance(gamma, str):
        gamma = jax.lax.stop_gradient(gamma_of(weights, bits, gamma, granularity)) * gain
    gamma = jnp.asarray(gamma, weights.dtype)
    return gamma.reshape((1,) * (weights.ndim - gamma.ndim) + gamma.shape)


def _round_codes(weights: Array, gamma: Array, top: Array) -> Array:
    return jnp.round(top / 2 * (jnp.clip(weights / gamma, -1, 1) + 1))


@partial(jax.jit, static_argnames="axes")
def _mse_gamma(weights: Array, top: Array, axes: tuple[int, ...]) -> Array:
    """Best γ of a grid over (0, max|W|], then of a finer grid around it, then alternating least squares (Lloyd).

    Least squares make γ a quotient of sums over fixed codes. Ever finer grids would stop anywhere in a flat minimum, at
    another point in each compilation. One candidate at a time, so that no more memory is needed than for the weights.
    """
    largest = jnp.max(jnp.abs(weights), axis=axes, keepdims=True)

    def levels(gamma: Array) -> Array:
        return (2 * _round_codes(weights, jnp.where(gamma > 0, gamma, 1), top) - top) / top

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


def _top(bits: ArrayLike, like: Array) -> Array:
    """The top level s = 2^b - 1 as a number of the weights' dtype, by an integer shift: exp2 need not be exact."""
    if not isinstance(bits, Tracer) and not np.isin(bits, range(1, 9)).all():
        raise ValueError(f"bits must be an integer between 1 and 8, got {bits}.")
    return (jnp.left_shift(1, jnp.asarray(bits, jnp.int32)) - 1).astype(like.dtype)


def _reduced_axes(weights: Array, granularity: Granularity) -> tuple[int, ...]:
    if granularity == "layer":
        return tuple(range(weights.ndim))
    if granularity == "channel":
        return tuple(range(weights.ndim - 1))
    raise ValueError(f"granularity must be layer or channel, got {granularity!r}.")


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    axes = tuple(i for i, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want)
    return jnp.sum(x, axis=axes, keepdims=True)

"""Uniform weight quantization with ReScaW scaling and straight-through gradients.

Invariant: ``Ŵ = scale · (2·code - s)`` with ``s = 2^b - 1``, codes in ``{0, …, s}`` and ``scale = γ / s``. Weights
carry their output channel on the last axis (``h w i o`` for convolutions, ``i o`` for dense layers).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.closures import hoist
from qpsnn_jax.numerics.gamma import Gamma, GammaRule, Granularity, round_codes, top_level, wide_gamma, widened
from qpsnn_jax.runtime.checks import fits

STE = Literal["clipped", "plain", "scaled"]
GradientRule = Callable[[Array, Array, Array], Array]
"""From dL/dŴ, W and γ to dL/dW."""


class Codes(NamedTuple):
    """Integer codes in ``{0, …, 2^b - 1}`` (int32, the shape of the weights) and ``scale`` = γ/s (broadcastable)."""

    values: Array
    scale: Array


def integer_weights(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | GammaRule | ArrayLike = "mean",
    granularity: Granularity = "layer",
    ste: STE | GradientRule = "clipped",
    gain: ArrayLike = 1.0,
    levels: int | None = None,
) -> tuple[Array, Array]:
    r"""The two factors of the quantized weights: odd integers ``2·code - s`` and ``scale`` = γ/s.

    A layer that multiplies by the integers and applies the scale afterwards computes exactly the sums of an integer
    device. When the product ``integers · scale`` is differentiated, in whatever order it is computed, the weights
    receive the straight-through gradient (see :func:`quantize`).

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8; may be a traced array, so that vmap over bit widths works.
        gamma: a rule of :func:`gamma_of`, or an array that broadcasts against ``weights`` (differentiable).
        granularity: ``layer`` or ``channel``, for the rules.
        ste: ``clipped``, ``plain``, ``scaled``, or a function from dL/dŴ, W and γ to dL/dW.
        gain: constant factor on a γ found by a rule, that broadcasts like γ; preserves the value of γ when channels are
            removed (see :func:`qpsnn_jax.prune`).
        levels: as in :func:`quantize`; the integers of three levels are -2, 0 and 2.

    Returns:
        ``(integers, scale)``: floating odd integers in ``[-s, s]`` of the shape of ``weights`` (all zero where γ is
        zero), and the scale, which broadcasts against them; both of the dtype of ``weights``.

    Raises:
        ValueError: unknown option, bits outside 1 to 8, or weights that are not floating.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10.
    """
    weights = jnp.asarray(weights)
    dtype = weights.dtype
    integers, scale = _factors(weights, bits, gamma, granularity, ste, gain, levels)
    return integers.astype(dtype), scale.astype(dtype)


def quantize(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | GammaRule | ArrayLike = "mean",
    granularity: Granularity = "layer",
    ste: STE | GradientRule = "clipped",
    gain: ArrayLike = 1.0,
    levels: int | None = None,
) -> Array:
    r"""Fake-quantized weights: floating numbers on a grid of 2^b levels, with a straight-through gradient.

    .. math::
        Ŵ = \frac{γ}{s} (2\,c - s), \quad
        c = \mathrm{round}\Big(\frac{s}{2} \big(\mathrm{clip}(W/γ, -1, 1) + 1\big)\Big), \quad s = 2^b - 1

    A γ found by a rule is a constant in the backward pass. With g = dL/dŴ, the rules for dL/dW are ``clipped``
    (paper): g where \|W\| ≤ γ, else 0; ``plain``: g; ``scaled`` (released code): g/γ. When γ is an array, it gets
    dL/dγ = Σ g·(Ŵ/γ - m·W/γ) with m the mask of the rule (LSQ). One bit is the sign, with that of 0 positive.

    The straight-through estimator is a ``custom_vjp``: gradients of any order work in reverse mode, forward mode
    (``jvp``, ``jacfwd``, ``hessian``) raises TypeError. For a Hessian-vector product take
    ``grad(lambda p: vdot(grad(f)(p), v))``, for a Hessian ``jacrev(jacrev(f))``.

    Args:
        weights: W, shape ``… o``, floating; the last axis is the output channel.
        bits: b, 1 to 8; may be a traced array, so that vmap over bit widths works.
        gamma: ``none`` (vanilla), ``max``, ``percentile``, ``mean`` (ReScaW), ``mse`` or a function, as in
            :func:`gamma_of`; or a positive array that broadcasts against ``weights``.
        granularity: one γ for the ``layer`` (paper) or for each output ``channel`` (released code).
        ste: ``clipped``, ``plain``, ``scaled``, or a function from dL/dŴ, W and γ to dL/dW, which stands for m·g in the
            rule for γ. It may close over traced arrays.
        gain: constant factor on a γ found by a rule.
        levels: None for 2^b levels, or 3 for ternary weights -γ, 0 and γ: then s = 2 whatever b is, and weights below
            γ/2 become zero.

    Returns:
        Ŵ, of the shape and dtype of ``weights``, computed in float32 at least; NaN where γ or W is, and where γ is
        negative. Where γ is zero, that is where all the weights it covers are, Ŵ is zero and the gradient finite; the
        grid itself has no zero.

    Raises:
        ValueError: unknown option, bits outside 1 to 8, or weights that are not floating.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10; learned γ: Esser et al., ICLR 2020; ternary with the mean magnitude: Ma et
        al., The Era of 1-bit LLMs, 2024.
    """
    weights = jnp.asarray(weights)
    integers, scale = _factors(weights, bits, gamma, granularity, ste, gain, levels)
    return (integers * scale).astype(weights.dtype)


def codes(
    weights: Array,
    bits: ArrayLike,
    *,
    gamma: Gamma | GammaRule | ArrayLike = "mean",
    granularity: Granularity = "layer",
    gain: ArrayLike = 1.0,
    levels: int | None = None,
) -> Codes:
    """Integer codes and scale of the quantized weights, for storage; :func:`quantize` gives the weights themselves.

    Args:
        weights: W, shape ``… o``, floating.
        bits: b, 1 to 8.
        gamma, granularity, gain, levels: as in :func:`quantize`.

    Returns:
        ``Codes(values, scale)``: int32 codes in ``{0, …, 2^b - 1}`` of the shape of ``weights``, and the scale γ/s,
        which is zero for an all-zero filter and NaN where a weight is; its dtype is float32 at least.
        ``dequantize(codes(w, b), b)`` equals ``quantize(w, b)`` exactly (rounded to the dtype of ``w``).

    Raises:
        ValueError: unknown option, or bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6.
    """
    weights = widened(weights)
    top = top_level(bits, weights, levels)
    found = resolve_gamma(weights, bits, gamma, granularity, gain, levels)
    values = round_codes(weights, jnp.where(found > 0, found, 1), top)
    # An integer cannot be NaN; the scale is.
    return Codes(values.astype(jnp.int32), found / top + _sum_to(0 * weights, found.shape))


def dequantize(codes: Codes, bits: ArrayLike, *, levels: int | None = None) -> Array:
    """Weights from codes, ``scale · (2·code - s)`` with ``s = 2^b - 1``.

    Args:
        codes: integer codes of any shape and a scale that broadcasts against them.
        bits: b, 1 to 8.
        levels: as in :func:`quantize`.

    Returns:
        Weights of the shape of the codes and the dtype of the scale.

    Raises:
        ValueError: bits outside 1 to 8.

    References:
        QP-SNN (ICLR 2025), Eq. 6.
    """
    top = top_level(bits, codes.scale, levels)
    return (2 * codes.values.astype(codes.scale.dtype) - top) * codes.scale


def _clipped(g: Array, weights: Array, gamma: Array) -> Array:
    return jnp.where(jnp.abs(weights) <= gamma, g, 0)


def _plain(g: Array, weights: Array, gamma: Array) -> Array:
    del weights, gamma
    return g


def _scaled(g: Array, weights: Array, gamma: Array) -> Array:
    del weights
    return g / gamma


STES: dict[STE, GradientRule] = {"clipped": _clipped, "plain": _plain, "scaled": _scaled}


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ste_integers(weights: Array, gamma: Array, top: Array, constants: tuple[Array, ...], rule: GradientRule) -> Array:
    del constants, rule
    return 2 * round_codes(weights, gamma, top) - top


def _ste_forward(weights: Array, gamma: Array, top: Array, constants: tuple[Array, ...], rule: GradientRule):
    return _ste_integers(weights, gamma, top, constants, rule), (weights, gamma, top, constants)


def _ste_backward(rule: Callable[..., Array], saved, cotangent: Array):
    # integers ≈ s·W/γ, so the cotangent of Ŵ is cotangent·s/γ; each rule is stated for that one.
    weights, gamma, top, constants = saved
    upstream = cotangent * top / gamma
    to_weights = rule(upstream, weights, gamma, *constants)
    masked = upstream if rule is _scaled else to_weights
    return to_weights, -_sum_to(masked * weights / gamma, gamma.shape), jnp.zeros_like(top), None


_ste_integers.defvjp(_ste_forward, _ste_backward)


def resolve_gamma(
    weights: Array,
    bits: ArrayLike,
    gamma: Gamma | GammaRule | ArrayLike,
    granularity: Granularity,
    gain: ArrayLike,
    levels: int | None,
) -> Array:
    """γ from a rule and its gain, or as it is given, as an array that broadcasts against the weights."""
    if isinstance(gamma, str) or callable(gamma):
        rule: Any = gamma
        found = jax.lax.stop_gradient(wide_gamma(weights, bits, rule, granularity, levels))
        _check_fits("gain", gain, weights)
        gamma = found * jnp.asarray(gain, found.dtype)
    _check_fits("gamma", gamma, weights)
    gamma = jnp.asarray(gamma, weights.dtype)
    gamma = jnp.where(gamma < 0, jnp.nan, gamma)
    return gamma.reshape((1,) * (weights.ndim - gamma.ndim) + gamma.shape)


def _check_fits(name: str, option: Any, weights: Array) -> None:
    if not fits(jnp.shape(option), weights.shape):
        raise ValueError(
            f"{name} of shape {jnp.shape(option)} does not broadcast against weights of shape {weights.shape}."
        )


def _factors(
    weights: Array,
    bits: ArrayLike,
    gamma: Gamma | GammaRule | ArrayLike,
    granularity: Granularity,
    ste: STE | GradientRule,
    gain: ArrayLike,
    levels: int | None,
) -> tuple[Array, Array]:
    """:func:`integer_weights` in float32 at least."""
    if not callable(ste) and ste not in STES:
        raise ValueError(f"ste must be {', '.join(STES)} or a function, got {ste!r}.")
    weights = widened(weights)
    top = top_level(bits, weights, levels)
    gamma = resolve_gamma(weights, bits, gamma, granularity, gain, levels)
    silent = gamma <= 0
    # An all-zero filter has γ = 0: its integers are then zero, and any positive γ leaves Ŵ = 0 and gradients finite.
    gamma = jnp.where(silent, 1, gamma)
    rule, constants = hoist(ste if callable(ste) else STES[ste], weights, gamma, weights)
    integers: Any = _ste_integers(weights, gamma, top, constants, rule)
    return jnp.where(silent, integers - jax.lax.stop_gradient(integers), integers), gamma / top


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    axes = tuple(i for i, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want)
    return jnp.sum(x, axis=axes, keepdims=True)

"""Leaky integrate-and-fire neurons: one step as a cell, and its scan over time."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.closures import hoist
from qpsnn_jax.numerics.surrogate import Fire, Surrogate, fire_step, triangular

Reset = Literal["hard", "soft"]

# A short scan is several times faster fully unrolled; a long one is not, and compiles slowly.
_LONGEST_UNROLLED = 16


class LIFTrace(NamedTuple):
    """``spikes`` S and ``membranes`` Ũ (potentials before the reset) of a layer, of equal shape."""

    spikes: Array
    membranes: Array


class Cell(TypedDict, total=False):
    """The options of :func:`lif_step`, shared by :func:`lif` and :func:`lif_trace`."""

    tau: ArrayLike
    threshold: ArrayLike
    surrogate: Surrogate
    fire: Fire
    reset: Reset
    detach_reset: bool


def lif_step(
    membrane: Array,
    current: Array,
    *,
    tau: ArrayLike = 0.5,
    threshold: ArrayLike = 1.0,
    surrogate: Surrogate = triangular,
    fire: Fire = ">=",
    reset: Reset = "hard",
    detach_reset: bool = False,
) -> tuple[Array, LIFTrace]:
    r"""One time step of a leaky integrate-and-fire neuron.

    .. math::
        Ũ[t] = τ U[t-1] + X[t], \quad
        S[t] = [Ũ[t] ≥ θ], \quad
        U[t] = Ũ[t] (1 - S[t]) \;\text{(hard)} \;\text{or}\; Ũ[t] - θ S[t] \;\text{(soft)}

    Its signature is that of a ``lax.scan`` body: ``lax.scan(lif_step, jnp.zeros_like(x[0]), x)`` runs time-major
    currents ``t …``; :func:`lif` does this for batch-major ones.

    Args:
        membrane: U[t-1], the membrane potential after the previous step, any shape.
        current: X[t], floating, the same shape as ``membrane``. NaN gives NaN, in the spikes too.
        tau: leak τ; a number, or an array that broadcasts against ``current`` (learnable), cast to its dtype.
        threshold: firing threshold θ; likewise.
        surrogate: derivative of the firing step as a function of Ũ - θ (:func:`fire_step`); any function from an array
            to one of its shape, which may close over traced arrays.
        fire: ``">="`` (paper, Eq. 2) or ``">"`` (released code).
        reset: ``"hard"`` (to zero, paper, Eq. 3) or ``"soft"`` (subtract θ).
        detach_reset: no gradient through the reset; in the paper it flows through.

    Returns:
        ``(U[t], LIFTrace(S[t], Ũ[t]))``.

    Raises:
        ValueError: ``current`` is not floating, or ``fire`` or ``reset`` is unknown.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """
    current = jnp.asarray(current)
    _check_floating("current", current)
    tau, threshold = (jnp.asarray(x, current.dtype) for x in (tau, threshold))
    charged = tau * membrane + current
    spikes = fire_step(charged - threshold, surrogate, fire)
    gate = jax.lax.stop_gradient(spikes) if detach_reset else spikes
    if reset == "hard":
        left = charged * (1 - gate)
    elif reset == "soft":
        left = charged - threshold * gate
    else:
        raise ValueError(f"reset must be 'hard' or 'soft', got {reset!r}.")
    return left, LIFTrace(spikes, charged)


def lif_trace(
    currents: Array, *, initial: Array | None = None, unroll: int | None = None, **cell: Unpack[Cell]
) -> LIFTrace:
    """Spikes and membranes of a layer of LIF neurons over time: :func:`lif_step` under ``lax.scan``.

    Called outside ``jit`` it is compiled once for each shape, dtype and set of options; a surrogate that is made anew
    at each call is compiled anew.

    Args:
        currents: X, shape ``b t …`` (axis 1 is time), floating.
        initial: U[0], shape ``b …``; zeros when left out.
        unroll: steps unrolled in the scan; all of them up to 16 steps, else one, when left out.
        **cell: the options of :func:`lif_step`. Arrays among them broadcast against one step, shape ``b …``.

    Returns:
        ``LIFTrace(spikes, membranes)``, both ``b t …`` and of the dtype of ``currents``; the membranes are Ũ,
        before the reset.

    Raises:
        ValueError: ``currents`` has no time axis or is not floating, ``initial``, τ or θ does not fit it, or an option
            is unknown.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """
    currents = jnp.asarray(currents)
    if currents.ndim < 2:
        raise ValueError(f"currents must have the shape b t …, got {currents.shape}.")
    _check_floating("currents", currents)
    batch, steps, *rest = currents.shape
    step = jax.ShapeDtypeStruct((batch, *rest), currents.dtype)
    options: dict[str, Any] = {**(lif_step.__kwdefaults__ or {}), **cell}
    for name in ("tau", "threshold"):
        if not _broadcasts(jnp.shape(options[name]), step.shape):
            raise ValueError(f"{name} of shape {jnp.shape(options[name])} does not fit one step, {step.shape}.")
    if initial is not None and jnp.shape(initial) != step.shape:
        raise ValueError(f"initial must have the shape {step.shape} of one step, got {jnp.shape(initial)}.")
    if unroll is None:
        unroll = max(1, steps) if steps <= _LONGEST_UNROLLED else 1
    options["surrogate"], constants = hoist(options["surrogate"], step)
    return _scan(currents, initial, constants, unroll=unroll, **options)


@partial(jax.jit, static_argnames=("unroll", "surrogate", "fire", "reset", "detach_reset"))
def _scan(
    currents: Array,
    initial: Array | None,
    constants: tuple[Array, ...],
    *,
    unroll: int,
    surrogate: Callable[..., Array],
    **cell: Any,
) -> LIFTrace:
    def slope(distance: Array) -> Array:
        return surrogate(distance, *constants)

    def body(membrane: Array, current: Array) -> tuple[Array, LIFTrace]:
        return lif_step(membrane, current, surrogate=slope if constants else surrogate, **cell)

    # Of a step, not of a shape: zeros that are sharded, and vary over a mesh, as the currents do.
    start = jnp.zeros_like(jnp.sum(currents, 1)) if initial is None else jnp.asarray(initial, currents.dtype)
    _, trace = jax.lax.scan(body, start, jnp.moveaxis(currents, 1, 0), unroll=unroll)
    return LIFTrace(*(jnp.moveaxis(x, 0, 1) for x in trace))


def lif(currents: Array, *, initial: Array | None = None, unroll: int | None = None, **cell: Unpack[Cell]) -> Array:
    """Spikes of a layer of LIF neurons over time; :func:`lif_trace` without the membranes.

    Args:
        currents: X, shape ``b t …`` (axis 1 is time), floating.
        initial: U[0], shape ``b …``; zeros when left out.
        unroll: steps unrolled in the scan; all of them up to 16 steps, else one, when left out.
        **cell: the options of :func:`lif_step`: ``tau=0.5``, ``threshold=1.0``, ``surrogate=triangular``,
            ``fire=">="``, ``reset="hard"``, ``detach_reset=False``.

    Returns:
        Spikes, 0 and 1, shape ``b t …``, of the dtype of ``currents``; NaN from where a current is NaN.

    Raises:
        ValueError: as :func:`lif_trace`.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """
    return lif_trace(currents, initial=initial, unroll=unroll, **cell).spikes


def _check_floating(name: str, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {x.dtype}; convert with {name}.astype(jnp.float32).")


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(n in (1, m) for n, m in aligned)

"""Leaky integrate-and-fire neurons: one step as a cell, and a layer of them over time."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.closures import hoist
from qpsnn_jax.numerics.recurrence import recurrence, rounded
from qpsnn_jax.numerics.surrogate import Fire, Surrogate, fire_step, slopes, triangular
from qpsnn_jax.runtime.checks import fits

Reset = Literal["hard", "soft", "delayed"]

LEAK_OF_OTHERS = "the decay factor, for a time constant T of SpikingJelly 1 - 1/T"
"""What τ is, for errors."""


class LIFTrace(NamedTuple):
    """``spikes`` S and ``membranes`` Ũ (potentials before the reset) of a layer, both ``b t …``; of a step, ``…``."""

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

    With the ``"delayed"`` reset, the default of snnTorch and Spyx, θ is subtracted one step later and does not leak:

    .. math:: U[t] = Ũ[t] = τ U[t-1] - θ S[t-1] + X[t], \quad S[t] = [U[t] ≥ θ]

    τ = 1 is the integrate-and-fire neuron.

    Its signature is that of a ``lax.scan`` body: ``lax.scan(lif_step, jnp.zeros_like(x[0]), x)`` runs time-major
    currents ``t …``; :func:`lif_trace` returns the same for batch-major ones.

    Args:
        membrane: U[t-1], the membrane potential after the previous step, of the shape of ``current``, or a number.
        current: X[t], floating, any shape. NaN gives NaN, in the spikes too.
        tau: decay factor τ from 0 to 1; a number, or an array that broadcasts against ``current`` (learnable), cast to
            its dtype. Numbers and NumPy arrays are checked, JAX arrays, which may be traced, are not.
        threshold: firing threshold θ, of any size; likewise.
        surrogate: derivative of the firing step as a function of Ũ - θ (:func:`fire_step`); any function from an array
            to one of its shape, which may close over traced arrays.
        fire: ``">="`` (paper, Eq. 2) or ``">"`` (released code).
        reset: ``"hard"`` (to zero, paper, Eq. 3), ``"soft"`` (subtract θ) or ``"delayed"`` (subtract θ one step later).
        detach_reset: no gradient through the reset; in the paper it flows through.

    Returns:
        ``(U[t], LIFTrace(S[t], Ũ[t]))``.

    Raises:
        ValueError: ``current`` is not floating, ``membrane`` has another shape, τ or θ does not fit ``current`` or is
            no number, τ is not from 0 to 1, ``surrogate`` is no function, or ``fire`` or ``reset`` is unknown.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """
    if membrane is None:
        raise ValueError("membrane must be an array of the shape of current, or a number; 0.0 is a neuron at rest.")
    current, membrane = jnp.asarray(current), jnp.asarray(membrane)
    _check_floating("current", current)
    if membrane.shape not in ((), current.shape):
        raise ValueError(f"membrane must have the shape of current, {current.shape}, got {membrane.shape}.")
    tau, threshold = _of_step("tau", tau, current), _of_step("threshold", threshold, current)
    _check_reset(reset)
    options: dict[str, Any] = {"surrogate": surrogate, "fire": fire, "reset": reset, "detach_reset": detach_reset}
    charged = rounded(current) + _leaked(membrane, tau, threshold, **options)
    spikes = fire_step(charged - threshold, surrogate, fire)
    left = _after_reset(charged, spikes, threshold, reset=reset, detach_reset=detach_reset)
    return left, LIFTrace(spikes, charged)


def lif_trace(currents: Array, *, initial: Array | None = None, **cell: Unpack[Cell]) -> tuple[Array, LIFTrace]:
    """The state after a layer of LIF neurons has run over time, its spikes and its membranes.

    It is :func:`lif_step` at every step. All steps at once equal several calls for some of them, one after the other,
    each with the state that the one before returned.

    Called outside ``jit`` it is compiled once for each shape, dtype and set of options; a surrogate that is made anew
    at each call is compiled anew, and kept with the arrays that it closes over: define it once, or use ``jit``.

    Args:
        currents: X, shape ``b t …`` (axis 1 is time), floating.
        initial: U[0], shape ``b …``; zeros when left out.
        **cell: the options of :func:`lif_step`. Arrays among them broadcast against one step, shape ``b …``.

    Returns:
        ``(U[T], LIFTrace(spikes, membranes))``: U[T], the potentials after the last reset, ``b …``, is the ``initial``
        of the steps that follow; spikes and membranes are ``b t …``, the membranes Ũ, before the reset. All have the
        dtype of ``currents``.

    Raises:
        ValueError: ``currents`` has no time axis or is not floating, ``initial``, τ or θ does not fit it, τ is not from
            0 to 1, or an option is unknown.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """
    currents = jnp.asarray(currents)
    initial = None if initial is None else jnp.asarray(initial)
    if currents.ndim < 2:
        raise ValueError(f"currents must have the shape b t …, got {currents.shape}.")
    _check_floating("currents", currents)
    batch, _, *rest = currents.shape
    step = jax.ShapeDtypeStruct((batch, *rest), currents.dtype)
    known = lif_step.__kwdefaults__ or {}
    if unknown := sorted(set(cell) - set(known)):
        raise ValueError(f"there is no option {unknown[0]}; choose from {', '.join(known)}.")
    options: dict[str, Any] = {**known, **cell}
    for name in ("tau", "threshold"):
        options[name] = _of_step(name, options[name], step)
    if initial is not None and jnp.shape(initial) != step.shape:
        raise ValueError(f"initial must have the shape {step.shape} of one step, got {jnp.shape(initial)}.")
    _check_reset(options["reset"])
    options["surrogate"], constants = hoist(options["surrogate"], step)
    return _trace(currents, initial, constants, **options)


@partial(jax.jit, static_argnames=("surrogate", "fire", "reset", "detach_reset"))
def _trace(
    currents: Array,
    initial: Array | None,
    constants: tuple[Array, ...],
    *,
    tau: Array,
    threshold: Array,
    surrogate: Callable[..., Array],
    fire: Fire,
    **reset: Any,
) -> tuple[Array, LIFTrace]:
    if initial is not None and currents.shape[1]:
        left = _leaked(
            initial.astype(currents.dtype), tau, threshold, *constants, surrogate=surrogate, fire=fire, **reset
        )
        first = rounded(currents[:, 0]) + left
        currents = jax.lax.dynamic_update_index_in_dim(currents, first, 0, 1)
    leak = partial(_leak, surrogate=surrogate, fire=fire, **reset)
    membranes: Array = recurrence(leak, False, currents, (), (tau, threshold, *constants))
    # The surrogate, and what it closes over, are of one step.
    slope = jax.vmap(lambda x: slopes(surrogate, x, *constants), in_axes=1, out_axes=1)
    trace = LIFTrace(fire_step(membranes - _over_time(threshold, membranes), slope, fire), membranes)
    return after_last(trace, initial, threshold, **reset), trace


def _of_step(name: str, option: ArrayLike, step: Any) -> Array:
    """τ or θ in the dtype of a step, against which it must broadcast."""
    try:
        known = None if _is_on_devices(option) else _real(option)
        array = jnp.asarray(option, step.dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a number or an array of numbers, got {option!r}.") from None
    if known is not None:
        _check_range(name, known)
    if not fits(array.shape, step.shape):
        raise ValueError(f"{name} of shape {array.shape} does not fit one step, {step.shape}.")
    return array


def _real(option: Any) -> np.ndarray:
    if np.asarray(option).dtype.kind in "bcSU":
        raise TypeError
    return np.asarray(option, np.float64)


def _is_on_devices(option: Any) -> bool:
    """Whether an option holds JAX arrays, which may be traced."""
    return any(isinstance(leaf, Array) for leaf in jax.tree.leaves(option))


def _check_range(name: str, values: np.ndarray) -> None:
    if np.isnan(values).any():
        raise ValueError(f"{name} must be a number, got NaN.")
    wrong = values[(values < 0) | (values > 1)]
    if name == "tau" and wrong.size:
        raise ValueError(f"tau must be from 0 to 1, got {wrong[0]!s}; it is {LEAK_OF_OTHERS}.")


def after_last(trace: LIFTrace, initial: Array | None, threshold: ArrayLike, **reset: Any) -> Array:
    """U[T] ``b …``, the potentials after the last of the steps of a trace ``b t …``, or those before no step."""
    membranes = trace.membranes
    if membranes.shape[1]:
        return _after_reset(membranes[:, -1], trace.spikes[:, -1], threshold, **reset)
    rest = jnp.zeros((len(membranes), *membranes.shape[2:]), membranes.dtype)
    return rest if initial is None else initial.astype(rest.dtype)


def _leak(charged: Array, tau: Array, threshold: Array, *constants: Array, surrogate: Any, fire: Fire, **reset: Any):
    """What a step's potential before the reset adds to that of the next one."""
    options = {"surrogate": surrogate, "fire": fire, **reset}
    spikes = _spikes(charged, threshold, *constants, surrogate=surrogate, fire=fire)
    return _leaked(_after_reset(charged, spikes, threshold, **reset), tau, threshold, *constants, **options)


def _leaked(
    left: Array, tau: ArrayLike, threshold: Array, *constants: Array, reset: Reset, detach_reset: bool, **options: Any
) -> Array:
    """What the potential U of a step adds to that of the next one."""
    leaked = rounded(tau * left)
    if reset != "delayed":
        return leaked
    return leaked - threshold * _gate(_spikes(left, threshold, *constants, **options), detach_reset)


def _spikes(charged: Array, threshold: Array, *constants: Array, surrogate: Any, fire: Fire) -> Array:
    return fire_step(charged - threshold, lambda x: surrogate(x, *constants), fire)


def _after_reset(charged: Array, spikes: Array, threshold: ArrayLike, *, reset: Reset, detach_reset: bool) -> Array:
    if reset == "delayed":
        return charged
    gate = _gate(spikes, detach_reset)
    return charged * (1 - gate) if reset == "hard" else charged - threshold * gate


def _gate(spikes: Array, detach_reset: bool) -> Array:
    return jax.lax.stop_gradient(spikes) if detach_reset else spikes


def _over_time(x: Array, trace: Array) -> Array:
    """An array that broadcasts against one step, with the axis of time if it has one for the batch."""
    return jnp.expand_dims(x, 1) if x.ndim == trace.ndim - 1 and x.ndim else x


def lif(currents: Array, *, initial: Array | None = None, **cell: Unpack[Cell]) -> tuple[Array, Array]:
    """The state of a layer of LIF neurons after running over time, and its spikes: :func:`lif_trace` without membranes.

    ``state, spikes = lif(currents, initial=state)`` continues a sequence.

    Args:
        currents: X, shape ``b t …`` (axis 1 is time), floating.
        initial: U[0], shape ``b …``; zeros when left out.
        **cell: the options of :func:`lif_step`: ``tau=0.5``, ``threshold=1.0``, ``surrogate=triangular``,
            ``fire=">="``, ``reset="hard"``, ``detach_reset=False``.

    Returns:
        ``(U[T], spikes)``: U[T] ``b …``, the ``initial`` of the steps that follow, and spikes 0 and 1, ``b t …``, both
        of the dtype of ``currents``; NaN from where a current is NaN.

    Raises:
        ValueError: as :func:`lif_trace`.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """
    left, trace = lif_trace(currents, initial=initial, **cell)
    return left, trace.spikes


def _check_floating(name: str, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {x.dtype}; convert with {name}.astype(jnp.float32).")


def _check_reset(reset: str) -> None:
    if reset not in get_args(Reset):
        raise ValueError(f"reset must be 'hard', 'soft' or 'delayed', got {reset!r}.")

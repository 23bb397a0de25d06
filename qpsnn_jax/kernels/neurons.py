"""LIF neurons whose options are numbers and a surrogate of the package: native on a CPU, in one pass over memory."""

from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from qpsnn_jax.kernels.native.call import native_call
from qpsnn_jax.numerics import neurons
from qpsnn_jax.numerics.neurons import LIFTrace, Reset
from qpsnn_jax.numerics.surrogate import SURROGATES, Fire, Surrogate, fire_step


class _Cell(NamedTuple):
    """The options of a layer, as attributes of a native call: ``surrogate`` counts those of the package."""

    tau: float
    threshold: float
    inclusive: bool
    soft: bool
    detached: bool
    surrogate: int
    shape: float

    @property
    def options(self) -> dict[str, Any]:
        """Those of :func:`qpsnn_jax.lif_step`."""
        surrogate = list(SURROGATES.values())[self.surrogate]
        fire, reset = ">=" if self.inclusive else ">", "soft" if self.soft else "hard"
        numbers = {"tau": self.tau, "threshold": self.threshold}
        return {**numbers, "surrogate": surrogate, "fire": fire, "reset": reset, "detach_reset": self.detached}


def lif_trace(
    currents: Array,
    initial: Array | None = None,
    *,
    tau: float,
    threshold: float,
    surrogate: Surrogate,
    fire: Fire,
    reset: Reset,
    detach_reset: bool,
) -> tuple[Array, LIFTrace]:
    """:func:`qpsnn_jax.lif_trace` for τ and θ that are numbers.

    On a CPU with a C++ compiler float32 neurons with a surrogate of :data:`~qpsnn_jax.numerics.surrogate.SURROGATES` go
    through all steps in one native call, forward and backward; membranes are written where they are used. Gradients are
    rounded otherwise than those of :func:`qpsnn_jax.lif_trace`; derivatives of the second order are the same.

    Raises:
        ValueError: as :func:`qpsnn_jax.lif_trace`.
    """
    if currents.dtype != jnp.float32 or surrogate not in SURROGATES.values():
        options: dict[str, Any] = {"fire": fire, "reset": reset, "detach_reset": detach_reset}
        constants = {"tau": tau, "threshold": threshold, "surrogate": surrogate}
        return neurons.lif_trace(currents, initial=initial, **constants, **options)
    (shape,) = cast(FunctionType, surrogate).__defaults__ or (0.0,)
    number = list(SURROGATES.values()).index(surrogate)
    cell = _Cell(tau, threshold, fire == ">=", reset == "soft", detach_reset, number, shape)
    trace: Any = _lif(currents, _rest(currents) if initial is None else initial.astype(currents.dtype), cell)
    return neurons.after_last(trace, initial, threshold, reset=reset, detach_reset=detach_reset), trace


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lif(currents: Array, initial: Array, cell: _Cell) -> LIFTrace:
    # Of the two calls, one whose result nobody uses is removed from the program.
    options = cell._asdict()
    spikes = native_call("lif_spikes", _spikes, currents, initial, in_place=0, **options)
    return LIFTrace(spikes, native_call("lif_membranes", _membranes, currents, initial, in_place=0, **options))


def _forward(currents: Any, initial: Any, cell: _Cell) -> tuple[LIFTrace, tuple[Array, Array]]:
    membranes = native_call("lif_membranes", _membranes, currents.value, initial.value, in_place=0, **cell._asdict())
    # XLA computes the spikes anew where they are used again, which saves their memory.
    spikes = fire_step(membranes - cell.threshold, cell.options["surrogate"], cell.options["fire"])
    return LIFTrace(spikes, membranes), (membranes, initial.value)


def _backward(cell: _Cell, saved: tuple[Array, Array], cotangents: LIFTrace) -> tuple[Array, Array]:
    membranes, initial = saved
    spikes, of_membranes = (None if isinstance(x, SymbolicZero) else x for x in cotangents)
    spikes = jnp.zeros_like(membranes) if spikes is None else spikes
    if of_membranes is None:
        to_currents = native_call("lif_grad", _grad, membranes, spikes, in_place=1, **cell._asdict())
    else:
        to_currents = neurons.currents_grad(membranes, spikes, of_membranes, **cell.options)
    return to_currents, cell.tau * jnp.sum(to_currents[:, :1], 1) if initial.ndim else jnp.zeros_like(initial)


_lif.defvjp(_forward, _backward, symbolic_zeros=True)


def _rest(currents: Array) -> Array:
    """U[0] = 0, as a scalar in place of an array."""
    return jnp.zeros((), currents.dtype)


def _spikes(currents: Array, initial: Array, **cell: Any) -> Array:
    return _trace(currents, initial, **cell).spikes


def _membranes(currents: Array, initial: Array, **cell: Any) -> Array:
    return _trace(currents, initial, **cell).membranes


def _trace(currents: Array, initial: Array, **cell: Any) -> LIFTrace:
    return neurons.lif_trace(currents, initial=initial if initial.ndim else None, **_Cell(**cell).options)[1]


def _grad(membranes: Array, cotangent: Array, **cell: Any) -> Array:
    return neurons.currents_grad(membranes, cotangent, **_Cell(**cell).options)

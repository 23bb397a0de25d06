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
    *,
    tau: float,
    threshold: float,
    surrogate: Surrogate,
    fire: Fire,
    reset: Reset,
    detach_reset: bool,
) -> LIFTrace:
    """:func:`qpsnn_jax.lif_trace` for τ and θ that are numbers.

    On a CPU with a C++ compiler float32 neurons with a surrogate of :data:`~qpsnn_jax.numerics.surrogate.SURROGATES` go
    through all steps in one native call, forward and backward; membranes are written where they are used. Gradients are
    rounded otherwise than those of :func:`qpsnn_jax.lif_trace`; derivatives of the second order are the same.
    """
    if currents.dtype != jnp.float32 or surrogate not in SURROGATES.values():
        options: dict[str, Any] = {"fire": fire, "reset": reset, "detach_reset": detach_reset}
        return neurons.lif_trace(currents, tau=tau, threshold=threshold, surrogate=surrogate, **options)
    (shape,) = cast(FunctionType, surrogate).__defaults__ or (0.0,)
    number = list(SURROGATES.values()).index(surrogate)
    return _lif(currents, _Cell(tau, threshold, fire == ">=", reset == "soft", detach_reset, number, shape))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _lif(currents: Array, cell: _Cell) -> LIFTrace:
    # Of the two calls, one whose result nobody uses is removed from the program.
    options = cell._asdict()
    spikes = native_call("lif_spikes", _spikes, currents, in_place=0, **options)
    return LIFTrace(spikes, native_call("lif_membranes", _membranes, currents, in_place=0, **options))


def _forward(currents: Any, cell: _Cell) -> tuple[LIFTrace, Array]:
    membranes = native_call("lif_membranes", _membranes, currents.value, in_place=0, **cell._asdict())
    # XLA computes the spikes anew where they are used again, which saves their memory.
    spikes = fire_step(membranes - cell.threshold, cell.options["surrogate"], cell.options["fire"])
    return LIFTrace(spikes, membranes), membranes


def _backward(cell: _Cell, membranes: Array, cotangents: LIFTrace) -> tuple[Array]:
    spikes, of_membranes = (None if isinstance(x, SymbolicZero) else x for x in cotangents)
    spikes = jnp.zeros_like(membranes) if spikes is None else spikes
    if of_membranes is None:
        return (native_call("lif_grad", _grad, membranes, spikes, in_place=1, **cell._asdict()),)
    return (neurons.currents_grad(membranes, spikes, of_membranes, **cell.options),)


_lif.defvjp(_forward, _backward, symbolic_zeros=True)


def _spikes(currents: Array, **cell: Any) -> Array:
    return neurons.lif_trace(currents, **_Cell(**cell).options).spikes


def _membranes(currents: Array, **cell: Any) -> Array:
    return neurons.lif_trace(currents, **_Cell(**cell).options).membranes


def _grad(membranes: Array, cotangent: Array, **cell: Any) -> Array:
    return neurons.currents_grad(membranes, cotangent, **_Cell(**cell).options)

"""LIF neurons whose options are numbers and a surrogate of the package: native on a CPU, in one pass over memory."""

from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from qpsnn_jax.kernels.affine import Affine, computed
from qpsnn_jax.kernels.native.call import native_call
from qpsnn_jax.kernels.saved import when_needed
from qpsnn_jax.numerics import neurons
from qpsnn_jax.numerics.neurons import LIFTrace, Reset
from qpsnn_jax.numerics.surrogate import Fire, Surrogate, arctan, rectangular, sigmoid, triangular

# In the order in which neurons.cc counts them. Others, also those added to SURROGATES, run in plain JAX.
_NATIVE_SURROGATES: tuple[Surrogate, ...] = (triangular, rectangular, sigmoid, arctan)


class _Cell(NamedTuple):
    """The options of a layer, as attributes of a native call: ``surrogate`` counts the native ones."""

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
        surrogate = _NATIVE_SURROGATES[self.surrogate]
        fire, reset = ">=" if self.inclusive else ">", "soft" if self.soft else "hard"
        numbers = {"tau": self.tau, "threshold": self.threshold}
        return {**numbers, "surrogate": surrogate, "fire": fire, "reset": reset, "detach_reset": self.detached}


class _Given(NamedTuple):
    """The arrays of a layer: its currents, and U[0] ``b …``. A scalar of 0 stands for no residual, or for U[0] = 0."""

    currents: Affine
    initial: Array

    @property
    def operands(self) -> tuple[Array, ...]:
        """Those of a native call."""
        return (*(x for x in self.currents if x is not None), self.initial)


def lif_trace(
    currents: Array | Affine,
    initial: Array | None = None,
    *,
    tau: float,
    threshold: float,
    surrogate: Surrogate,
    fire: Fire,
    reset: Reset,
    detach_reset: bool,
) -> tuple[Array, LIFTrace]:
    """:func:`qpsnn_jax.lif_trace` for τ and θ that are numbers, of currents that may still have to be computed.

    On a CPU with a C++ compiler float32 neurons with one of the package's four surrogates and a hard or soft reset go
    through all steps in one native call, forward and backward, which computes the currents too; membranes are written
    where they are used, and computed again for the gradient. Gradients are rounded otherwise than those of
    :func:`qpsnn_jax.lif_trace`; derivatives of the second order are the same.

    Raises:
        ValueError: as :func:`qpsnn_jax.lif_trace`.
    """
    x = currents.x if isinstance(currents, Affine) else currents
    if x.dtype != jnp.float32 or surrogate not in _NATIVE_SURROGATES or x.ndim < 3 or reset == "delayed":
        options: dict[str, Any] = {"fire": fire, "reset": reset, "detach_reset": detach_reset}
        constants = {"tau": tau, "threshold": threshold, "surrogate": surrogate}
        return neurons.lif_trace(computed(currents), initial=initial, **constants, **options)
    (shape,) = cast(FunctionType, surrogate).__defaults__ or (0.0,)
    number = _NATIVE_SURROGATES.index(surrogate)
    cell = _Cell(tau, threshold, fire == ">=", reset == "soft", detach_reset, number, shape)
    affine, nothing = currents if isinstance(currents, Affine) else Affine.of(currents), jnp.zeros((), x.dtype)
    affine = affine._replace(residual=nothing) if affine.residual is None else affine
    trace: Any = _lif(_Given(affine, nothing if initial is None else initial.astype(x.dtype)), cell)
    return neurons.after_last(trace, initial, threshold, reset=reset, detach_reset=detach_reset), trace


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _lif(given: _Given, cell: _Cell) -> LIFTrace:
    return _trace(given, cell, in_place=0)


def _trace(given: _Given, cell: _Cell, in_place: int | None) -> LIFTrace:
    # Of the two calls, one whose result nobody uses is removed from the program.
    call = partial(native_call, results=(given.currents.x.shape,), in_place=in_place, **cell._asdict())
    (spikes,), (membranes,) = (
        call(name, plain, *given.operands) for name, plain in (("lif_spikes", _spikes), ("lif_membranes", _membranes))
    )
    return LIFTrace(spikes, membranes)


def _forward(given: Any, cell: _Cell) -> tuple[LIFTrace, _Given]:
    given = jax.tree.map(lambda x: x.value, given, is_leaf=lambda x: hasattr(x, "perturbed"))
    # Not in place, for the backward pass reads the currents.
    return _trace(given, cell, None), given


def _backward(cell: _Cell, given: _Given, cotangents: LIFTrace) -> tuple[_Given]:
    spikes, of_membranes = (None if isinstance(each, SymbolicZero) else each for each in cotangents)
    given, (spikes, of_membranes) = when_needed(given, (spikes, of_membranes))
    (x, factor, _, residual), initial = given
    operands = jnp.zeros_like(x) if spikes is None else spikes, *given.operands
    if of_membranes is None:
        shapes = x.shape, x.shape[-1:], x.shape[-1:]
        by_currents, by_factor, by_offset = native_call("lif_grad", _grad, *operands, results=shapes, **cell._asdict())
    else:
        by_currents, by_factor, by_offset = _grad(*operands, of_membranes=of_membranes, **cell._asdict())
    by_x = by_currents * factor.reshape((1,) * (x.ndim - 1) + (-1,))
    by_residual = by_currents if residual is not None and residual.ndim else jnp.zeros((), x.dtype)
    by_initial = cell.tau * jnp.sum(by_currents[:, :1], 1) if initial.ndim else jnp.zeros_like(initial)
    return (_Given(Affine(by_x, by_factor, by_offset, by_residual), by_initial),)


_lif.defvjp(_forward, _backward, symbolic_zeros=True)


def _plain(*operands: Array, **cell: Any) -> LIFTrace:
    *currents, initial = operands
    given = Affine(*currents).compute()
    return neurons.lif_trace(given, initial=initial if initial.ndim else None, **_Cell(**cell).options)[1]


def _spikes(*operands: Array, **cell: Any) -> Array:
    return _plain(*operands, **cell).spikes


def _membranes(*operands: Array, **cell: Any) -> Array:
    return _plain(*operands, **cell).membranes


def _grad(
    spikes: Array, *operands: Array, of_membranes: Array | None = None, **cell: Any
) -> tuple[Array, Array, Array]:
    """The gradient w.r.t. the currents, for a cotangent of the spikes, and those by their factor and offset."""
    membranes = _membranes(*operands, **cell)
    found = neurons.currents_grad(membranes, spikes, of_membranes, **_Cell(**cell).options)
    axes = tuple(range(found.ndim - 1))
    return found, jnp.sum(found * operands[0], axes), jnp.sum(found, axes)

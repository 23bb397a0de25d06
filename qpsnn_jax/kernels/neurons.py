"""LIF neurons with a surrogate of the package: native on a CPU, in one pass over memory."""

from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from qpsnn_jax.kernels import plain, skipping
from qpsnn_jax.kernels.affine import Affine, Convolution, Numbers, computed
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.kernels.native.call import in_shard_map, native_call, packing_call, sharded_by_channel
from qpsnn_jax.kernels.packed import Spikes, no_bits
from qpsnn_jax.kernels.saved import when_needed
from qpsnn_jax.numerics import neurons
from qpsnn_jax.numerics.neurons import LIFTrace, Reset
from qpsnn_jax.numerics.surrogate import Fire, Surrogate, arctan, rectangular, sigmoid, triangular

# In the order in which neurons.cc counts them. Others, also those added to SURROGATES, run in plain JAX.
_NATIVE_SURROGATES: tuple[Surrogate, ...] = (triangular, rectangular, sigmoid, arctan)


class _Cell(NamedTuple):
    """The options of a layer, as attributes of a native call: ``surrogate`` counts the native ones.

    Only where τ or θ are ``learned``, gradients by them are computed.
    """

    learned: bool
    inclusive: bool
    soft: bool
    detached: bool
    surrogate: int
    shape: float

    @property
    def options(self) -> dict[str, Any]:
        """Those of :func:`qpsnn_jax.lif_step` but τ and θ."""
        surrogate = _NATIVE_SURROGATES[self.surrogate]
        fire, reset = ">=" if self.inclusive else ">", "soft" if self.soft else "hard"
        return {"surrogate": surrogate, "fire": fire, "reset": reset, "detach_reset": self.detached}


_WithLast = tuple[LIFTrace, Array]
"""A trace and U[T] ``b …``."""
_WithBits = tuple[LIFTrace, Array, Array]
"""A trace, U[T] ``b …`` and the bits of the spikes."""


class _Given(NamedTuple):
    """The arrays of a layer: ``x · factor + offset + residual`` are its currents, and U[0] is ``initial`` ``b …``.

    A scalar of 0 stands for no residual, or for U[0] = 0. τ and θ are ``c``, as factor and offset are.
    """

    x: Array
    factor: Array
    offset: Array
    residual: Array
    initial: Array
    tau: Array
    threshold: Array


def lif_trace(
    currents: Numbers,
    initial: Array | None = None,
    *,
    tau: ArrayLike,
    threshold: ArrayLike,
    surrogate: Surrogate,
    fire: Fire,
    reset: Reset,
    detach_reset: bool,
) -> tuple[Array, LIFTrace, Array | Spikes]:
    """:func:`qpsnn_jax.lif_trace` of currents that may still have to be computed; τ and θ are numbers, or ``c``.

    On a CPU with a C++ compiler float32 neurons with one of the package's four surrogates and a hard or soft reset go
    through all steps in one native call, forward and backward, which computes the currents too; membranes are written
    where they are used, and computed again for the gradient. Where nothing is differentiated, that call computes the
    sums of a convolution too, if only these neurons read them, and spikes are bits between such calls. Gradients are
    rounded otherwise than those of :func:`qpsnn_jax.lif_trace`; derivatives of the second order are the same.

    Returns:
        U[T], the trace, and its spikes, with their bits where there are any.

    Raises:
        ValueError: as :func:`qpsnn_jax.lif_trace`.
    """
    currents = currents.array if isinstance(currents, Spikes) else currents
    x = currents.x if isinstance(currents, Affine) else currents
    known = x.dtype == jnp.float32 and surrogate in _NATIVE_SURROGATES and reset != "delayed"
    if not known or x.ndim < 3 or in_shard_map(x) or sharded_by_channel(x):
        options: dict[str, Any] = {"fire": fire, "reset": reset, "detach_reset": detach_reset}
        options |= {"tau": of_step(tau, x), "threshold": of_step(threshold, x), "surrogate": surrogate}
        last, trace = neurons.lif_trace(computed(currents), initial=initial, **options)
        return last, trace, trace.spikes
    (shape,) = cast(FunctionType, surrogate).__defaults__ or (0.0,)
    number = _NATIVE_SURROGATES.index(surrogate)
    learned = isinstance(tau, Array) or isinstance(threshold, Array)
    cell = _Cell(learned, fire == ">=", reset == "soft", detach_reset, number, shape)
    affine, nothing = currents if isinstance(currents, Affine) else Affine.of(currents), jnp.zeros((), x.dtype)
    residual = nothing if affine.residual is None else computed(affine.residual)
    start = nothing if initial is None else initial.astype(x.dtype)
    constants = _by_channel(tau, x), _by_channel(threshold, x)
    given = _Given(affine.x, affine.factor, affine.offset, residual, start, *constants)
    if affine.convolution is None:
        trace, last = _lif_with_last(given, cell)
        return last, trace, trace.spikes
    residual_bits = affine.residual.bits if isinstance(affine.residual, Spikes) else None
    found: Any = _lif_of_sums(given, affine.convolution, residual_bits, cell)
    trace, last, bits = found
    return last, trace, Spikes(trace.spikes, bits)


def _by_channel(option: ArrayLike, x: Array) -> Array:
    """τ or θ of each channel of x."""
    return jnp.broadcast_to(jnp.asarray(option, x.dtype), x.shape[-1:])


def of_step(option: Any, x: Array) -> Any:
    """τ or θ as it broadcasts against one step of x ``b t … c``: a number, or those of the channels."""
    return option.reshape((1,) * (x.ndim - 2) + (-1,)) if np.ndim(option) else option


def _lif_with_last(given: _Given, cell: _Cell) -> _WithLast:
    trace: Any = _lif(given, cell)
    return trace, _last(trace, given, cell)


def _last(trace: LIFTrace, given: _Given, cell: _Cell) -> Array:
    initial = given.initial if given.initial.ndim else None
    options = {name: cell.options[name] for name in ("reset", "detach_reset")}
    return neurons.after_last(trace, initial, of_step(given.threshold, given.x), **options)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _lif(given: _Given, cell: _Cell) -> LIFTrace:
    return _trace(given, cell)


def _trace(given: _Given, cell: _Cell) -> LIFTrace:
    # Of the two calls, one whose result nobody uses is removed from the program.
    call = partial(native_call, results=(given.x.shape,), **cell._asdict())
    (spikes,), (membranes,) = (
        call(name, plain, *given) for name, plain in (("lif_spikes", _spikes), ("lif_membranes", _membranes))
    )
    return LIFTrace(spikes, membranes)


def _forward(given: Any, cell: _Cell) -> tuple[LIFTrace, _Given]:
    given = _values(given)
    return _trace(given, cell), given


def _backward(cell: _Cell, given: _Given, cotangents: LIFTrace) -> tuple[_Given]:
    spikes, of_membranes = (None if isinstance(each, SymbolicZero) else each for each in cotangents)
    given, (spikes, of_membranes) = when_needed(given, (spikes, of_membranes))
    x, operands = given.x, (jnp.zeros_like(given.x) if spikes is None else spikes, *given)
    if of_membranes is None:
        shapes = (x.shape, *(4 if cell.learned else 2) * (x.shape[-1:],))
        found = native_call("lif_grad", _grad, *operands, results=shapes, **cell._asdict())
    else:
        found = _grad(*operands, of_membranes=of_membranes, **cell._asdict())
    by_currents, by_factor, by_offset, *by_constants = found
    of_constants: Any = by_constants or (None, None)
    by_x = by_currents * given.factor.reshape((1,) * (x.ndim - 1) + (-1,))
    by_residual = by_currents if given.residual.ndim else jnp.zeros((), x.dtype)
    by_initial = (
        of_step(given.tau, x) * jnp.sum(by_currents[:, :1], 1) if given.initial.ndim else jnp.zeros_like(given.initial)
    )
    return (_Given(by_x, by_factor, by_offset, by_residual, by_initial, *of_constants),)


_lif.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _lif_of_sums(given: _Given, convolution: Convolution, residual_bits: Array | None, cell: _Cell) -> _WithBits:
    """:func:`_lif_with_last` for an x that are the sums of a convolution, which is computed in the same native call."""
    (spikes, bits), last = _convolved(given, convolution, residual_bits, cell)
    return LIFTrace(spikes, _trace(given, cell).membranes), last, bits


def _sums_forward(given: Any, convolution: Any, residual_bits: Any, cell: _Cell) -> tuple[_WithBits, _Given]:
    del convolution, residual_bits  # derivatives are those by x and the residual
    given = _values(given)
    return (*_lif_with_last(given, cell), no_bits(given.x.shape)), given


def _sums_backward(cell: _Cell, given: _Given, cotangents: _WithBits) -> tuple[_Given, None, None]:
    found = dict(enumerate(jax.tree.leaves(cotangents[:-1])))
    found = {i: each for i, each in found.items() if not isinstance(each, SymbolicZero)}

    def results(given: _Given) -> dict[int, Array]:
        leaves = jax.tree.leaves(_lif_with_last(given, cell))
        return {i: leaves[i] for i in found}

    (by_given,) = jax.vjp(results, given)[1](found)
    return by_given, None, None


_lif_of_sums.defvjp(_sums_forward, _sums_backward, symbolic_zeros=True)


@partial(jax.jit, static_argnames="cell")
def _convolved(
    given: _Given, convolution: Convolution, residual_bits: Array | None, cell: _Cell
) -> tuple[Spikes, Array]:
    """Spikes and U[T]: on a CPU by one native call, elsewhere from x, the sums of that platform."""
    shape = given.x.shape

    def together(given: _Given, convolution: Convolution, residual_bits: Array | None) -> tuple[Spikes, Array]:
        maps, geometry = convolution.maps, convolution.spec.geometry
        numbers = computed(maps)
        options = {**skipping.window(convolution.spec), "input_hw": geometry.input_hw, **cell._asdict()}
        options |= {"steps": shape[1], "repeated": numbers.ndim == 4}
        numbers = numbers.reshape(-1, *numbers.shape[-3:])
        _, factor, offset, residual, initial, *constants = given
        operands = (
            maps._replace(array=numbers) if isinstance(maps, Spikes) else numbers,
            convolution.kernel,
            factor,
            offset,
            residual if residual_bits is None else Spikes(residual, residual_bits),
            initial,
            *constants,
        )
        results = shape, (shape[0], *shape[2:])
        spikes, last = packing_call("conv_lif_spikes", _plain_convolved, *operands, results=results, **options)
        return spikes, last

    def apart(given: _Given, convolution: Convolution, residual_bits: Array | None) -> tuple[Spikes, Array]:
        del convolution, residual_bits
        trace = _trace(given, cell)
        return Spikes(trace.spikes, no_bits(given.x.shape)), _last(trace, given, cell)

    return jax.lax.platform_dependent(given, convolution, residual_bits, cpu=together, default=apart)


def _values(primals: Any) -> Any:
    """The arrays of a rule with symbolic zeros."""
    return jax.tree.map(lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed"))


def _plain(*operands: Array, **cell: Any) -> LIFTrace:
    x, factor, offset, residual, initial, *constants = operands
    return _run(_Cell(**cell), Affine(x, factor, offset, residual).compute(), initial, *constants)


def _run(cell: _Cell, currents: Array, initial: Array, tau: Array, threshold: Array) -> LIFTrace:
    options = {**cell.options, "tau": of_step(tau, currents), "threshold": of_step(threshold, currents)}
    return neurons.lif_trace(currents, initial=initial if initial.ndim else None, **options)[1]


def _plain_convolved(
    maps: Array,
    weights: Array,
    *operands: Array,
    kernel: Pair,
    strides: Pair,
    padding: Pair,
    input_hw: Pair,
    steps: int,
    repeated: bool,
    **cell: Any,
) -> tuple[Array, Array]:
    sums = plain.convolution(maps, weights, Geometry(input_hw, kernel, strides, padding))
    sums = sums.reshape(-1, 1 if repeated else steps, *sums.shape[1:])
    given = _Given(jnp.broadcast_to(sums, (sums.shape[0], steps, *sums.shape[2:])), *operands)
    trace = _plain(*given, **cell)
    return trace.spikes, _last(trace, given, _Cell(**cell))


def _spikes(*operands: Array, **cell: Any) -> Array:
    return _plain(*operands, **cell).spikes


def _membranes(*operands: Array, **cell: Any) -> Array:
    return _plain(*operands, **cell).membranes


def _grad(spikes: Array, *operands: Array, of_membranes: Array | None = None, **cell: Any) -> tuple[Array, ...]:
    """Gradients by the currents, for a cotangent of the spikes, by their factor and offset, and by learned τ and θ."""
    own, (x, factor, offset, residual, initial, *constants) = _Cell(**cell), operands

    def run(currents: Array, *constants: Array) -> LIFTrace:
        return _run(own, currents, initial, *constants)

    trace, pull = jax.vjp(run, Affine(x, factor, offset, residual).compute(), *constants)
    of_membranes = jnp.zeros_like(trace.membranes) if of_membranes is None else of_membranes
    found, *by_constants = pull(LIFTrace(spikes, of_membranes))
    axes = tuple(range(found.ndim - 1))
    by_affine = jnp.sum(found * x, axes), jnp.sum(found, axes)
    return (found, *by_affine, *by_constants) if own.learned else (found, *by_affine)

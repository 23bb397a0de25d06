"""Spikes that the backward pass reads again: four to a byte in programs for GPUs and TPUs.

Programs for a CPU keep the spikes themselves, which its kernels read. A program is traced before its platform is known,
so both are residuals; lowering removes the one that the platform does not read.

Compilers merge what the backward pass computes again with what the forward pass computed, and then keep that, as
membranes of 4 bytes, from which the spikes follow. :func:`when_needed` prevents it.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# A spike takes two bits, in which this stands for NaN.
_NAN = 2

_to_bytes_p = Primitive("spikes_to_bytes")
_from_bytes_p = Primitive("spikes_from_bytes")
_when_needed_p = Primitive("when_needed")
_when_needed_p.multiple_results = True


class Saved(NamedTuple):
    """``spikes`` of 0, 1 and NaN, and the same as uint8 ``numbers``, which on a CPU are not computed.

    Spikes ``… w c`` are four to a number, ``… ⌈w/4⌉ c``, neighbors by ``w``: the batch and the channels may be sharded.
    Those of two axes, ``b c``, are one to a number.
    """

    spikes: Array
    numbers: Array

    @classmethod
    def of(cls, spikes: Array) -> "Saved":
        """These spikes."""
        return cls(spikes, _to_bytes(spikes))

    def restore(self) -> Array:
        """The spikes; their derivative is that of ``spikes``."""
        return _from_bytes(*self)


def restored(x: Array | Saved) -> Array:
    """An array: ``x`` itself, or the spikes that were saved."""
    return x.restore() if isinstance(x, Saved) else x


def when_needed(saved: Any, cotangent: Any) -> Any:
    """``(saved, cotangent)``; GPUs and TPUs compute nothing from ``saved`` before ``cotangent`` is there."""
    leaves, tree = jax.tree.flatten((saved, cotangent), is_leaf=lambda x: isinstance(x, Saved))
    # Not the spikes themselves, which would be kept.
    waiting = _when_needed(*(x.numbers if isinstance(x, Saved) else x for x in leaves))
    pairs = zip(leaves, waiting, strict=True)
    return jax.tree.unflatten(tree, [x._replace(numbers=y) if isinstance(x, Saved) else y for x, y in pairs])


@jax.jit
def _to_bytes(spikes: Array) -> Array:
    return _to_bytes_p.bind(jax.lax.stop_gradient(spikes), in_fours=spikes.ndim > 2)


@jax.jit
def _from_bytes(spikes: Array, numbers: Array) -> Array:
    return _from_bytes_p.bind(spikes, numbers)


@jax.jit
def _when_needed(*arrays: Array) -> list[Array]:
    return _when_needed_p.bind(*arrays)


def _packed_shape(spikes: Any, in_fours: bool) -> tuple[int, ...]:
    if not in_fours:
        return spikes.shape
    *rest, width, channels = spikes.shape
    return *rest, -(-width // 4), channels


def _zeros(spikes: Array, in_fours: bool) -> Array:
    return jnp.zeros(_packed_shape(spikes, in_fours), jnp.uint8)


def _encoded(spikes: Array, in_fours: bool) -> Array:
    numbers = jnp.where(jnp.isnan(spikes), _NAN, spikes).astype(jnp.uint8)
    if not in_fours:
        return numbers
    shape = _packed_shape(spikes, in_fours)
    # The same number of spikes by each of the four places, of which some at the end are empty.
    around = [(0, 0)] * (spikes.ndim - 2) + [(0, 4 * shape[-2] - spikes.shape[-2]), (0, 0)]
    numbers = jnp.pad(numbers, around)
    return reduce(jnp.bitwise_or, (numbers[..., i::4, :] << 2 * i for i in range(4)))


def _first(spikes: Array, numbers: Array) -> Array:
    del numbers
    return spikes


def _decoded(spikes: Array, numbers: Array) -> Array:
    # Otherwise the numbers would not be computed before the gradient asks for them, and membranes be kept till then.
    numbers = jax.lax.optimization_barrier(numbers)
    if numbers.shape != spikes.shape:
        fours = jnp.repeat(numbers[..., None, :], 4, -2)
        pairs = (fours >> 2 * jax.lax.broadcasted_iota(jnp.uint8, fours.shape, fours.ndim - 2)) & 3
        numbers = pairs.reshape(*fours.shape[:-3], fours.shape[-3] * 4, fours.shape[-1])[..., : spikes.shape[-2], :]
    return jnp.where(numbers == _NAN, jnp.asarray(jnp.nan, spikes.dtype), numbers.astype(spikes.dtype))


def _of_a_batch(primitive: Primitive, arrays: Any, axes: Any, **options: bool) -> tuple[Array, int]:
    """The rule of vmap: the batch comes first, before the two axes by which spikes are packed."""
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = (batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays, axes, strict=True))
    return primitive.bind(*arrays, **options), 0


def _all(*arrays: Any) -> list[Any]:
    return list(arrays)


def _of_the_spikes(operands: Any, tangents: Any) -> tuple[Any, Any]:
    return _from_bytes_p.bind(*operands), tangents[0]


_to_bytes_p.def_impl(_zeros)  # of jax.disable_jit
_to_bytes_p.def_abstract_eval(
    lambda spikes, in_fours: spikes.update(
        shape=_packed_shape(spikes, in_fours), dtype=jnp.dtype(jnp.uint8), weak_type=False
    )
)
batching.primitive_batchers[_to_bytes_p] = partial(_of_a_batch, _to_bytes_p)
mlir.register_lowering(_to_bytes_p, mlir.lower_fun(_zeros, multiple_results=False), platform="cpu")
mlir.register_lowering(_to_bytes_p, mlir.lower_fun(_encoded, multiple_results=False))

_from_bytes_p.def_impl(_first)
_from_bytes_p.def_abstract_eval(lambda spikes, numbers: spikes)
ad.primitive_jvps[_from_bytes_p] = _of_the_spikes
batching.primitive_batchers[_from_bytes_p] = partial(_of_a_batch, _from_bytes_p)
mlir.register_lowering(_from_bytes_p, mlir.lower_fun(_first, multiple_results=False), platform="cpu")
mlir.register_lowering(_from_bytes_p, mlir.lower_fun(_decoded, multiple_results=False))

_when_needed_p.def_impl(_all)
_when_needed_p.def_abstract_eval(_all)
ad.primitive_jvps[_when_needed_p] = lambda arrays, tangents: (_when_needed_p.bind(*arrays), list(tangents))
batching.primitive_batchers[_when_needed_p] = lambda arrays, axes: (_when_needed_p.bind(*arrays), axes)
mlir.register_lowering(_when_needed_p, mlir.lower_fun(_all), platform="cpu")
mlir.register_lowering(_when_needed_p, mlir.lower_fun(lambda *arrays: jax.lax.optimization_barrier(arrays)))

"""Calls of native kernels as a JAX primitive: on a CPU the C++ function, elsewhere its definition in JAX."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from qpsnn_jax.kernels.native import library
from qpsnn_jax.kernels.packed import Spikes, bits_shape, no_bits

_call_p = Primitive("native_call")
_call_p.multiple_results = True


def native_call(
    name: str,
    plain: Callable[..., Any],
    *operands: Array,
    results: tuple[tuple[int, ...], ...],
    in_place: int | None = None,
    **attributes: Any,
) -> tuple[Array, ...]:
    """``plain(*operands, **attributes)``, computed on a CPU by the C++ function ``name`` if a compiler is installed.

    ``plain`` is the definition: its derivatives are those of the call, and it runs on every other platform, in exports,
    on arrays of other dtypes than float32 or sharded over several devices, and where the kernels cannot be compiled.
    Under ``vmap`` one call follows another.

    Args:
        name: a handler of XLA's foreign function interface, in a ``.cc`` file of this folder. Its arguments are
            ``operands`` in their order, row-major, its results those of ``plain``, its attributes ``attributes``.
        plain: a function of a module, from arrays to an array or a tuple of arrays.
        operands: floating arrays.
        results: the shapes of the results, which are float32. They are given because tracing ``plain`` for them takes
            about as long as all else that is traced of a network.
        in_place: the operand over which the C++ function writes its one result. XLA copies it first where it is used
            again.
        attributes: integers, floats, booleans, and tuples of integers, which arrive as int64, float64 (a double),
            bool and spans of int64.

    Returns:
        The results of ``plain``, in a tuple also if it is one array.
    """
    return _bind(name, plain, operands, attributes, results=results, in_place=in_place)


def packing_call(
    name: str,
    plain: Callable[..., Any],
    *operands: Array | Spikes,
    results: tuple[tuple[int, ...], ...],
    **attributes: Any,
) -> tuple[Spikes, *tuple[Array, ...]]:
    """:func:`native_call` whose first result, and some of whose operands, are spikes ``b t h w c``.

    The C++ function gets and returns their bits.
    """
    spikes, *others, bits = _bind(name, plain, operands, attributes, results=results, in_place=None, packs=True)
    return Spikes(spikes, bits), *others


def _bind(
    name: str,
    plain: Callable[..., Any],
    operands: tuple[Array | Spikes, ...],
    attributes: dict[str, Any],
    **options: Any,
) -> tuple[Array, ...]:
    packed = tuple(i for i, x in enumerate(operands) if isinstance(x, Spikes))
    arrays = [x.array if isinstance(x, Spikes) else x for x in operands]
    options |= {"plain": plain, "attributes": tuple(sorted(attributes.items()))}
    if shardings_are_types(*arrays) or any(x.dtype != np.float32 for x in arrays):
        return tuple(by_jax(*arrays, **options))
    return _call(*arrays, *(x.bits for x in operands if isinstance(x, Spikes)), name=name, packed=packed, **options)


def shardings_are_types(*operands: Array) -> bool:
    """Whether a mesh has explicit or manual axes, whose shardings only JAX's own operations and gradients keep."""
    return bool(_axis_types(*operands) - {jax.sharding.AxisType.Auto})


def in_shard_map(*operands: Array) -> bool:
    """Whether a mesh has manual axes, whose gradients must vary over the same axes as the arrays they are of."""
    return jax.sharding.AxisType.Manual in _axis_types(*operands)


def sharded_by_channel(x: Array) -> bool:
    """Whether the last axis is sharded over an explicit mesh, and so must be the gradients by numbers of a channel."""
    return x.ndim > 0 and jax.typeof(x).sharding.spec[-1] is not None


def _axis_types(*operands: Array) -> set[jax.sharding.AxisType]:
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in operands)]
    return {kind for mesh in meshes for kind in mesh.axis_types}


# Compiled once for each kernel and shapes, also if it is called outside of jit.
@partial(jax.jit, static_argnames=("name", "plain", "results", "in_place", "attributes", "packed", "packs"))
def _call(*operands: Array, **options: Any) -> tuple[Array, ...]:
    return tuple(_call_p.bind(*operands, **options))


def by_jax(
    *operands: Array,
    plain: Callable[..., Any],
    attributes: tuple[tuple[str, Any], ...],
    results: tuple[tuple[int, ...], ...],
    packed: tuple[int, ...] = (),
    packs: bool = False,
    **options: Any,
) -> list:
    """The results of ``plain``, which a call stands for. Bits are not read, and those of the result are zeros."""
    del options  # of the native call
    found = jax.tree.leaves(plain(*operands[: len(operands) - len(packed)], **dict(attributes)))
    return [*found, no_bits(results[0])] if packs else found


def _shapes(*operands: Any, results: tuple[tuple[int, ...], ...], packs: bool = False, **options: Any) -> list:
    del operands, options
    arrays = [ShapedArray(shape, np.dtype(np.float32)) for shape in results]
    return [*arrays, ShapedArray(bits_shape(results[0]), np.dtype(np.uint8))] if packs else arrays


def _derivative(operands: Any, tangents: Any, **options: Any) -> Any:
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(partial(by_jax, **options), list(operands), tangents)


def _in_turns(operands: Any, axes: Any, **options: Any) -> Any:
    """The calls for every index of a vmap, one after another."""
    mapped = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    over = [x for x, axis in zip(mapped, axes, strict=True) if axis is not None]

    def one(each: list[Array]) -> list[Array]:
        rest = iter(each)
        given = [x if axis is None else next(rest) for x, axis in zip(mapped, axes, strict=True)]
        return _call_p.bind(*given, **options)

    results = jax.lax.map(one, over)
    return results, [0] * len(results)


def calls_are_possible(context: Any) -> bool:
    """Whether a program that is lowered can call the library: it stays in this process, on one device."""
    exported = context.module_context.lowering_parameters.for_export
    return not exported and devices_of(context) == 1 and library.load() is not None


def devices_of(context: Any) -> int:
    """The number of devices that a program is lowered for."""
    spread = context.module_context.axis_context
    return spread.num_devices if hasattr(spread, "num_devices") else spread.mesh.size


def _lower(
    context: Any,
    *operands: Any,
    name: str,
    in_place: int | None,
    packed: tuple[int, ...],
    packs: bool = False,
    **definition: Any,
) -> Any:
    """On a CPU: the call of the library."""
    if not calls_are_possible(context):
        return _lower_plain(context, *operands, packed=packed, packs=packs, **definition)
    attributes = definition["attributes"]
    given = {key: np.asarray(value, np.int64) if isinstance(value, tuple) else value for key, value in attributes}
    # Bits take the place of spikes.
    arrays = len(operands) - len(packed)
    order = [arrays + packed.index(i) if i in packed else i for i in range(arrays)]
    inputs, outputs = [context.avals_in[i] for i in order], context.avals_out
    if packs:
        outputs = [outputs[-1], *outputs[1:-1]]
    own = context.replace(avals_in=inputs, avals_out=outputs)
    aliases = {} if in_place is None else {in_place: 0}
    found = _library_call(own, name, [operands[i] for i in order], given, aliases)
    if not packs:
        return found
    bits, *others = found
    unpacking = context.replace(avals_in=outputs[:1], avals_out=context.avals_out[:1])
    (spikes,) = _library_call(unpacking, "unpack_spikes", [bits], {}, {})
    return [spikes, *others, bits]


def _library_call(context: Any, name: str, operands: list, attributes: dict[str, Any], aliases: dict[int, int]) -> Any:
    target = f"qpsnn_jax.{name}"
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library.load(), name)), platform="cpu")
    lowering = jax.ffi.ffi_lowering(target, operand_output_aliases=aliases)
    return lowering(context, *operands, **attributes)


_lower_plain = mlir.lower_fun(by_jax)
_call_p.def_impl(by_jax)  # of jax.disable_jit
_call_p.def_abstract_eval(_shapes)
ad.primitive_jvps[_call_p] = _derivative
batching.primitive_batchers[_call_p] = _in_turns
mlir.register_lowering(_call_p, _lower, platform="cpu")
mlir.register_lowering(_call_p, _lower_plain)

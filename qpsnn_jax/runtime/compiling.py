"""Ways to compile a program: quickly, for little memory, or with a value materialized."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def fast_compile_jit(function: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit(function, **options)`` without optimization, for what runs once: compiles sooner, runs slower."""

    @cache
    def jitted() -> Any:  # at the first call, since asking XLA for its options starts it
        # Fusions take half as long to compile by the emitters that XLA had before, though longer where it optimizes.
        options_of_xla = {"xla_backend_optimization_level": 0} | _known(xla_cpu_use_fusion_emitters=False)
        return jax.jit(function, compiler_options=options_of_xla, **options)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return jitted()(*args, **kwargs)

    return run


def low_memory_jit(
    function: Callable[..., Any], *, compiler_options: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """``jax.jit(function, compiler_options=…, **options)``, scheduled on a CPU for little memory.

    On a CPU, XLA's default schedule computes every value as early as possible, so a value that only the end of the
    backward pass needs is in memory from the forward pass on. The results are the same, bit for bit. A step of a few
    milliseconds is a tenth slower, because less of it runs in parallel.
    """
    schedule = _known(xla_cpu_scheduler_type="CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED")
    return jax.jit(function, compiler_options={**schedule, **(compiler_options or {})}, **options)


def materialize(x: Array, around: Sequence[tuple[int, int]], axis: int) -> Array:
    """``jnp.pad(x, around)`` as an array in memory, computed once; XLA would recompute it for each reader.

    It is written in two parts along ``axis``, whose size should be 2 or more: XLA would remove a single part, or a
    padding, where a reader only needs the inside. An array that is sharded along another axis is not moved.
    """
    starts = [before for before, _ in around]
    written = jnp.zeros([n + before + after for n, (before, after) in zip(x.shape, around, strict=True)], x.dtype)
    for part in jnp.split(x, [x.shape[axis] // 2], axis):
        written = jax.lax.dynamic_update_slice(written, part, starts)
        starts[axis] += part.shape[axis]
    return written


@cache
def _known(**options: Any) -> dict[str, Any]:
    """These options for a CPU, if this release of XLA knows them; none for other platforms."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options

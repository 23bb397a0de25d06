"""Ways to compile a program: quickly, for little memory, or with a value materialized."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def fast_compile_jit(function: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit(function, **options)`` without optimization, for what runs once: compiles sooner, runs slower."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def low_memory_jit(
    function: Callable[..., Any], *, compiler_options: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """``jax.jit(function, compiler_options=…, **options)``, scheduled on a CPU for little memory.

    On a CPU, XLA's default schedule computes every value as early as possible, so a value that only the end of the
    backward pass needs is in memory from the forward pass on. The results are the same, bit for bit. A step of a few
    milliseconds is a tenth slower, because less of it runs in parallel.
    """
    return jax.jit(function, compiler_options={**_low_memory_options(), **(compiler_options or {})}, **options)


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
def _low_memory_options() -> dict[str, Any]:
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # This release of XLA does not know the option.
        return {}
    return options

"""The list of the algorithms for convolutions of spikes, and the policy that selects one.

A new algorithm is a file with an :class:`~qpsnn_jax.kernels.algorithm.Algorithm`, and its line here.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels import bfloat16, int8, pieces, plain, popcount, skipping, winograd
from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.hardware import cpu_flags
from qpsnn_jax.kernels.native import library

Precision = Literal["exact", "auto"]
"""The arithmetic of a network: the same program everywhere, or the fastest of this machine.

The sums of spikes and integers are equal in both; other sums, membranes and gradients may differ by rounding.
"""

# The first of each is XLA's float32, the reference for the others. Of equal ranks the first is taken.
SUMS = (plain.SUMS, popcount.SUMS, winograd.SUMS, int8.SUMS, bfloat16.SUMS, skipping.SUMS)
INPUT_GRADS = (plain.INPUT_GRAD, winograd.INPUT_GRAD, bfloat16.INPUT_GRAD, skipping.INPUT_GRAD)
KERNEL_GRADS = (plain.KERNEL_GRAD, winograd.KERNEL_GRAD, bfloat16.KERNEL_GRAD, skipping.KERNEL_GRAD, pieces.KERNEL_GRAD)

# Beside the processor's: that there is a library of native kernels.
NATIVE = frozenset({"native"})
NO_FLAGS: frozenset[str] = frozenset()


class Plan(NamedTuple):
    """The algorithms of an operation on a CPU and on every other platform, and the plans of its two gradients.

    Without ``grads`` its derivatives are those of XLA's own.
    """

    on_cpu: Algorithm
    elsewhere: Algorithm
    grads: "tuple[Plan, Plan] | None" = None


def check_precision(precision: str) -> None:
    """Raise ValueError if ``precision`` is not one of :data:`Precision`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be {' or '.join(get_args(Precision))}, got {precision!r}.")


def select_algorithm(algorithms: tuple[Algorithm, ...], spec: ConvSpec, flags: frozenset[str]) -> Algorithm:
    """The algorithm that a processor with these flags prefers, of those that support ``spec``."""
    return max((a for a in algorithms if a.accepts(spec)), key=lambda a: a.preference(spec, flags))


def named_algorithm(name: str, spec: ConvSpec) -> Algorithm:
    """The algorithm of this name for sums.

    Raises:
        ValueError: the name is unknown, or the algorithm does not support ``spec``.
    """
    found = {algorithm.name: algorithm for algorithm in SUMS}
    if name not in found:
        raise ValueError(f"algorithm must be one of {', '.join(found)}, got {name!r}.")
    if not found[name].accepts(spec):
        only = "" if found[name].general else ", without groups and dilation"
        raise ValueError(f"algorithm {name} is for {found[name].limits}{only}; got {spec}.")
    return found[name]


def make_plan(spec: ConvSpec, operands: tuple[Array, Array], precision: Precision, algorithm: str | None) -> Plan:
    """The fastest exact sums on this CPU, or those of ``algorithm`` everywhere, and gradients by ``precision``."""
    # Several processes must trace the same program, even if their processors differ.
    flags = NO_FLAGS if precision == "exact" or jax.process_count() > 1 else cpu_flags()
    # On several devices a product over the batch would gather the batch on each of them.
    alone = jax.device_count() == jax.process_count() == 1 and all(x.dtype == jnp.float32 for x in operands)
    if alone and precision == "auto" and jax.default_backend() == "cpu" and library.load() is not None:
        flags |= NATIVE
    by_input, by_kernel = (
        Plan(select_algorithm(algorithms, spec, flags) if alone else algorithms[0], algorithms[0])
        for algorithms in (INPUT_GRADS, KERNEL_GRADS)
    )
    if algorithm is None:
        return Plan(select_algorithm(SUMS, spec, flags), SUMS[0], (by_input, by_kernel))
    named = named_algorithm(algorithm, spec)
    return Plan(named, named, (by_input, by_kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def compute(x: Array, y: Array, spec: ConvSpec, plan: Plan) -> Array:
    """The operation of ``plan`` on two arrays, of the dtype of ``x``."""
    return _on_its_platform(x, y, spec, plan.on_cpu, plan.elsewhere)


def _forward(x: Array, y: Array, spec: ConvSpec, plan: Plan) -> tuple[Array, tuple[Array, Array]]:
    return compute(x, y, spec, plan), (x, y)


def _backward(spec: ConvSpec, plan: Plan, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    if plan.grads is None:
        return jax.vjp(lambda x, y: plan.elsewhere.run(x, y, spec), *saved)[1](cotangent)
    (x, y), (by_x, by_y) = saved, plan.grads
    return compute(cotangent, y, spec, by_x), compute(x, cotangent, spec, by_y)


compute.defvjp(_forward, _backward)


# Compiled once for each spec and pair of algorithms, also if it is called outside of jit.
@partial(jax.jit, static_argnames=("spec", "on_cpu", "elsewhere"))
def _on_its_platform(x: Array, y: Array, spec: ConvSpec, on_cpu: Algorithm, elsewhere: Algorithm) -> Array:
    """Selects by the platform that is lowered for, which can differ from the one that traces."""

    def run(algorithm: Algorithm, x: Array, y: Array) -> Array:
        return algorithm.run(x, y, spec).astype(x.dtype)

    if on_cpu is elsewhere:
        return run(on_cpu, x, y)
    return jax.lax.platform_dependent(x, y, cpu=partial(run, on_cpu), default=partial(run, elsewhere))

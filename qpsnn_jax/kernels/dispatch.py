"""The list of the algorithms for convolutions of spikes, and the policy that selects one.

A new algorithm is a file with an :class:`~qpsnn_jax.kernels.algorithm.Algorithm`, and its line here.
"""

import os
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels import accelerators, int8, pieces, plain, skipping, winograd
from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.hardware import cpu_flags
from qpsnn_jax.kernels.native import library
from qpsnn_jax.kernels.saved import Saved, restored, when_needed

Precision = Literal["exact", "auto", "fast"]
"""The arithmetic of a network: the same program everywhere, or the fastest of this machine.

The sums of spikes and integers are equal in all; other sums, membranes and gradients may differ by rounding. ``fast``
is ``auto``, and rounds the cotangents of sums of spikes to bfloat16, to a relative error of 2^-9, where that is faster:
on GPUs and TPUs, and in wide layers on CPUs that multiply bfloat16.
"""

Algorithms = tuple[Algorithm, Algorithm, Algorithm]
"""Of a product: its sums, its gradient by the first operand, and that by the second."""

# The first of each is XLA's float32, the reference for the others. Of equal ranks the first is taken.
SUMS = (plain.SUMS, int8.SUMS, accelerators.narrow(plain.SUMS), skipping.SUMS)
INPUT_GRADS = (plain.INPUT_GRAD, winograd.INPUT_GRAD, skipping.INPUT_GRAD)
KERNEL_GRADS = (plain.KERNEL_GRAD, skipping.KERNEL_GRAD, pieces.KERNEL_GRAD)

CONVOLUTION: Algorithms = (plain.SUMS, plain.INPUT_GRAD, plain.KERNEL_GRAD)

# Beside the processor's: that there is a library of native kernels, and that gradients may be rounded.
NATIVE, FAST = frozenset({"native"}), frozenset({"fast"})
NO_FLAGS: frozenset[str] = frozenset()

_LEVEL = "xla_backend_optimization_level"


class Plan(NamedTuple):
    """The algorithms of an operation on a CPU and on every other platform, and the plans of its two gradients.

    Without ``grads`` its derivatives are those of ``definition``. ``spikes`` says which operands are spikes, that are
    :class:`~qpsnn_jax.kernels.saved.Saved` for the gradients.
    """

    on_cpu: Algorithm
    elsewhere: Algorithm
    definition: Algorithm
    grads: "tuple[Plan, Plan] | None" = None
    spikes: tuple[bool, bool] = (False, False)


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
        fewer = "of up to 8 bits" if found[name].general or spec.standard else "without groups and dilation"
        raise ValueError(f"algorithm {name} is for convolutions {fewer}; got {spec}.")
    return found[name]


def compiler_options(precision: Precision) -> dict[str, Any]:
    """Options for the compiler of a program whose work is products of this precision.

    Where native kernels compute them, LLVM optimizes the rest less: a training step of ResNet20 then compiles in three
    quarters of the time, takes as long, and has the same results. A level in ``XLA_FLAGS`` stays.
    """
    chosen = _LEVEL in os.environ.get("XLA_FLAGS", "")
    return {_LEVEL: 1} if not chosen and runs_natively(precision) else {}


def runs_natively(precision: Precision) -> bool:
    """Whether products of float32 arrays are computed in C++: on a CPU that is the only device, with a compiler."""
    return _alone() and precision != "exact" and jax.default_backend() == "cpu" and library.load() is not None


def _alone() -> bool:
    """Whether there is one device. On several, a product over the batch would gather the batch on each of them."""
    return jax.device_count() == jax.process_count() == 1


def make_plan(spec: ConvSpec, operands: tuple[Array, Array], precision: Precision, algorithm: str | None) -> Plan:
    """The fastest exact sums on this CPU, or those of ``algorithm`` everywhere, and gradients by ``precision``."""
    # Several processes must trace the same program, even if their processors differ.
    flags = NO_FLAGS if precision == "exact" or jax.process_count() > 1 else cpu_flags()
    alone = _alone() and all(x.dtype == jnp.float32 for x in operands)
    if alone and runs_natively(precision):
        flags |= NATIVE
    if precision == "fast":
        flags |= FAST
    by_input, by_kernel = (
        select_algorithm(algorithms, spec, flags) if alone else algorithms[0]
        for algorithms in (INPUT_GRADS, KERNEL_GRADS)
    )
    exact = spec.bits <= accelerators.BITS
    if algorithm is None:
        return plan_of((select_algorithm(SUMS, spec, flags), by_input, by_kernel), CONVOLUTION, precision, exact=exact)
    named = named_algorithm(algorithm, spec)
    return plan_of((named, by_input, by_kernel), CONVOLUTION, precision, exact=exact)._replace(elsewhere=named)


def plan_of(
    on_cpu: Algorithms,
    definition: Algorithms,
    precision: Precision,
    *,
    exact: bool,
    spikes: tuple[bool, bool] = (True, False),
) -> Plan:
    """The plan of a product of spikes, for ``precision`` other than ``exact``.

    Elsewhere it is computed in bfloat16 if ``exact`` says that its operands are exact there, and if so, with
    ``precision="fast"``, its gradients too.
    """
    narrow = [accelerators.narrow(each) for each in definition]
    sums, grads = narrow if exact else definition, narrow if exact and precision == "fast" else definition
    first, *others = (Plan(*each) for each in zip(on_cpu, (sums[0], *grads[1:]), definition, strict=True))
    return first._replace(grads=(others[0], others[1]), spikes=spikes)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def compute(x: Array, y: Array, spec: Any, plan: Plan) -> Array:
    """The operation of ``plan`` on two arrays, of the dtype of ``x``; ``spec`` is what its algorithms take."""
    return _on_its_platform(x, y, spec, plan.on_cpu, plan.elsewhere)


def _forward(x: Array, y: Array, spec: Any, plan: Plan) -> tuple[Array, tuple[Array | Saved, ...]]:
    saved = tuple(Saved.of(each) if spikes else each for each, spikes in zip((x, y), plan.spikes, strict=True))
    x, y = (restored(each) for each in saved)
    return compute(x, y, spec, plan), saved


def _backward(spec: Any, plan: Plan, saved: tuple[Array | Saved, ...], cotangent: Array) -> tuple[Array, Array]:
    saved, cotangent = when_needed(saved, cotangent)
    saved = tuple(restored(each) for each in saved)
    if plan.grads is None:
        return jax.vjp(lambda x, y: plan.definition.run(x, y, spec).astype(x.dtype), *saved)[1](cotangent)
    (x, y), (by_x, by_y) = saved, plan.grads
    return compute(cotangent, y, spec, by_x), compute(x, cotangent, spec, by_y)


compute.defvjp(_forward, _backward)


# Compiled once for each spec and pair of algorithms, also if it is called outside of jit.
@partial(jax.jit, static_argnames=("spec", "on_cpu", "elsewhere"))
def _on_its_platform(x: Array, y: Array, spec: Any, on_cpu: Algorithm, elsewhere: Algorithm) -> Array:
    """Selects by the platform that is lowered for, which can differ from the one that traces."""

    def run(algorithm: Algorithm, x: Array, y: Array) -> Array:
        return algorithm.run(x, y, spec).astype(x.dtype)

    if on_cpu is elsewhere:
        return run(on_cpu, x, y)
    return jax.lax.platform_dependent(x, y, cpu=partial(run, on_cpu), default=partial(run, elsewhere))

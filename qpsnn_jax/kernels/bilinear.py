r"""Convolution of any numbers as a JAX primitive, whose gradients on a CPU are not those that XLA derives.

A convolution is linear in its maps and in its kernel. So are its gradients by either; with an inner product,

.. math:: \langle y, \mathrm{sums}(x, k) \rangle = \langle x, \mathrm{input\_grad}(y, k) \rangle
    = \langle k, \mathrm{kernel\_grad}(x, y) \rangle ,

each of the three is the transpose of the other two, which makes derivatives of every order in every mode.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from qpsnn_jax.kernels import plain, skipping
from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.dispatch import INPUT_GRADS, KERNEL_GRADS, NATIVE, NO_FLAGS, Algorithms, select_algorithm
from qpsnn_jax.kernels.native.call import calls_are_possible, devices_of, shardings_are_types

Role = Literal["sums", "input_grad", "kernel_grad"]

_bilinear_p = Primitive("convolution")
_SUMS = Algorithm("plain", lambda x, kernel, spec: plain.convolution(x, kernel, spec.geometry))
_ALGORITHMS = {"sums": (_SUMS, skipping.SUMS), "input_grad": INPUT_GRADS, "kernel_grad": KERNEL_GRADS}


def convolution(x: Array, kernel: Array, spec: ConvSpec, *, native: bool) -> Array:
    """The convolution of maps ``b h w i`` with a kernel, ``b h w o``; if ``native`` and standard, in C++ on a CPU."""
    if shardings_are_types(x, kernel) or x.dtype != kernel.dtype or not spec.standard:
        return plain.convolution(x, kernel, spec.geometry)
    return _bind(x, kernel, role="sums", spec=spec, native=native)


# Compiled once for each role and shapes, also if it is called outside of jit.
@partial(jax.jit, static_argnames=("role", "spec", "native"))
def _bind(x: Array, y: Array, **options: Any) -> Array:
    return _bilinear_p.bind(x, y, **options)


def by_xla(x: Array, y: Array, *, role: Role, spec: ConvSpec, native: bool) -> Array:
    """By XLA, in the dtype of the operands."""
    del native
    run = {"sums": plain.convolution, "input_grad": plain.input_grad, "kernel_grad": plain.kernel_grad}[role]
    return run(x, y, spec.geometry)


def _shape(x: Any, y: Any, *, role: Role, spec: ConvSpec, **options: Any) -> ShapedArray:
    del options
    shapes = {
        "sums": (x.shape[0], *spec.geometry.output_hw, y.shape[3]),
        "input_grad": (x.shape[0], *spec.geometry.input_hw, y.shape[2]),
        "kernel_grad": (*spec.geometry.kernel, x.shape[3], y.shape[3]),
    }
    return ShapedArray(shapes[role], x.dtype)


def _transpose(cotangent: Any, x: Any, y: Any, *, role: Role, **options: Any) -> tuple[Any, Any]:
    """The gradient w.r.t. the operand that is undefined."""
    if isinstance(cotangent, ad.Zero):
        return None, None
    bind = partial(_bilinear_p.bind, **options)
    if ad.is_undefined_primal(x):
        first = {
            "sums": lambda: bind(cotangent, y, role="input_grad"),
            "input_grad": lambda: bind(cotangent, y, role="sums"),
            "kernel_grad": lambda: bind(y, cotangent, role="input_grad"),
        }
        return first[role](), None
    second = {
        "sums": lambda: bind(x, cotangent, role="kernel_grad"),
        "input_grad": lambda: bind(cotangent, x, role="kernel_grad"),
        "kernel_grad": lambda: bind(x, cotangent, role="sums"),
    }
    return None, second[role]()


def _derivative(operands: Any, tangents: Any, **options: Any) -> tuple[Any, Any]:
    (x, y), (dx, dy) = operands, tangents
    parts = [] if isinstance(dx, ad.Zero) else [_bilinear_p.bind(dx, y, **options)]
    parts += [] if isinstance(dy, ad.Zero) else [_bilinear_p.bind(x, dy, **options)]
    return _bilinear_p.bind(x, y, **options), sum(parts[1:], parts[0])


def _batch(operands: Any, axes: Any, **options: Any) -> tuple[Any, int]:
    """Maps that share a kernel are one batch; otherwise XLA's own."""
    (x, y), (axis, other) = operands, axes
    if options["role"] == "kernel_grad" or axis is None or other is not None:
        return jax.vmap(partial(by_xla, **options), (axis, other))(x, y), 0
    x = jnp.moveaxis(x, axis, 0)
    found = _bilinear_p.bind(x.reshape(-1, *x.shape[2:]), y, **options)
    return found.reshape(*x.shape[:2], *found.shape[1:]), 0


def _lower(context: Any, x: Any, y: Any, **options: Any) -> Any:
    """On a CPU: the fastest algorithm for any numbers, on one device."""
    if devices_of(context) > 1:
        return _lower_by_xla(context, x, y, **options)
    native = options["native"] and context.avals_in[0].dtype == jnp.float32 and calls_are_possible(context)
    spec = options["spec"]
    algorithm = select_algorithm(_ALGORITHMS[options["role"]], spec, NATIVE if native else NO_FLAGS)
    return mlir.lower_fun(lambda x, y: algorithm.run(x, y, spec), multiple_results=False)(context, x, y)


def _of_role(role: Role) -> Algorithm:
    return Algorithm(role, lambda x, y, spec: _bind(x, y, role=role, spec=spec, native=True))


# Of convolutions with any kernel, on a CPU.
BILINEAR: Algorithms = (_of_role("sums"), _of_role("input_grad"), _of_role("kernel_grad"))

_lower_by_xla = mlir.lower_fun(by_xla, multiple_results=False)
_bilinear_p.def_impl(by_xla)  # of jax.disable_jit
_bilinear_p.def_abstract_eval(_shape)
ad.primitive_jvps[_bilinear_p] = _derivative
ad.primitive_transposes[_bilinear_p] = _transpose
batching.primitive_batchers[_bilinear_p] = _batch
mlir.register_lowering(_bilinear_p, _lower_by_xla)
mlir.register_lowering(_bilinear_p, _lower, platform="cpu")

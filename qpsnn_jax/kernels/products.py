"""Products of spikes with weights or with other spikes, ``jnp.einsum`` of two arrays: dense layers and attention."""

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import Algorithm
from qpsnn_jax.kernels.dispatch import Algorithms, Precision, compute, plan_of
from qpsnn_jax.kernels.native.call import shardings_are_types


def einsum_spikes(
    equation: str,
    x: Array,
    y: Array,
    *,
    exact: bool,
    precision: Precision = "auto",
    spikes: tuple[bool, bool] = (True, False),
) -> Array:
    """``jnp.einsum(equation, x, y)`` of spikes, on GPUs and TPUs in bfloat16 with sums in float32.

    Args:
        equation: two operands and their result in letters, such as ``bi,io->bo``.
        x: 0 and 1.
        y: of the dtype of ``x``.
        exact: whether ``y`` is exact in bfloat16, as integers up to 256 are; otherwise nothing is rounded to it.
        precision: as of :func:`qpsnn_jax.conv_spikes`.
        spikes: which of the two are spikes.

    Returns:
        The product, of the dtype of ``x``.
    """
    if precision == "exact" or shardings_are_types(x, y):
        return jnp.einsum(equation, x, y)
    return compute(x, y, equation, plan_of(_EINSUM, _EINSUM, precision, exact=exact, spikes=spikes))


def _sums(x: Array, y: Array, equation: str) -> Array:
    return jnp.einsum(equation, x, y)


def _input_grad(cotangent: Array, y: Array, equation: str) -> Array:
    (first, second), result = _letters(equation)
    x = _shape(first, cotangent, {result: cotangent, second: y})
    return jax.linear_transpose(lambda x: jnp.einsum(equation, x, y), x)(cotangent)[0]


def _kernel_grad(x: Array, cotangent: Array, equation: str) -> Array:
    (first, second), result = _letters(equation)
    y = _shape(second, cotangent, {result: cotangent, first: x})
    return jax.linear_transpose(lambda y: jnp.einsum(equation, x, y), y)(cotangent)[0]


def _letters(equation: str) -> tuple[list[str], str]:
    operands, result = equation.split("->")
    return operands.split(","), result


def _shape(letters: str, like: Array, given: dict[str, Array]) -> jax.ShapeDtypeStruct:
    sizes = {letter: size for axes, x in given.items() for letter, size in zip(axes, x.shape, strict=True)}
    return jax.ShapeDtypeStruct(tuple(sizes[letter] for letter in letters), like.dtype)


_EINSUM: Algorithms = (
    Algorithm("einsum", _sums),
    Algorithm("einsum", _input_grad),
    Algorithm("einsum", _kernel_grad),
)

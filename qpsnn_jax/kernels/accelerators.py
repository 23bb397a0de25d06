"""Products on GPUs and TPUs: of bfloat16 numbers, with sums in float32.

Spikes and integers of at most 8 bits have 8 significant bits at most, and are exact in bfloat16; the sums of their
products are exact in float32 below 2^24. Other numbers are rounded, to a relative error of at most 2^-9 each.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal

from qpsnn_jax.kernels.algorithm import Algorithm

# Of integers that are exact in bfloat16, the sign apart.
BITS = 8
_PRODUCTS = {"conv_general_dilated", "dot_general"}


@cache
def narrow(algorithm: Algorithm) -> Algorithm:
    """The same, with its matrix products and convolutions of bfloat16 numbers and sums in float32."""

    def run(x: Array, y: Array, spec: Any) -> Array:
        return _evaluate(jax.make_jaxpr(lambda x, y: algorithm.run(x, y, spec))(x, y), x, y)[0]

    def supports(spec: Any) -> bool:
        return spec.bits <= BITS and algorithm.supports(spec)

    return algorithm._replace(name="bfloat16", run=run, supports=supports)


def _evaluate(program: ClosedJaxpr, *operands: Array) -> list[Array]:
    jaxpr = program.jaxpr
    values: dict[Any, Array] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *operands], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        primitive, params, given = equation.primitive, equation.params, [read(atom) for atom in equation.invars]
        if primitive.name in _PRODUCTS:
            narrow = [x.astype(jnp.bfloat16) for x in given]
            sums = primitive.bind(*narrow, **params | {"preferred_element_type": jnp.dtype(jnp.float32)})
            results = [sums.astype(equation.outvars[0].aval.dtype)]
        elif isinstance(params.get("jaxpr"), ClosedJaxpr):  # a function within, under jit
            results = _evaluate(params["jaxpr"], *given)
        else:
            found = primitive.bind(*given, **params)
            results = found if primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

"""The equations of a traced program, with convolutions as the ones of XLA that they stand for."""

from functools import partial

import jax
from jax.extend.core import jaxprs_in_params

from qpsnn_jax.kernels import bilinear
from qpsnn_jax.kernels.native import call

_DEFINITIONS = {"convolution": bilinear.by_xla, "native_call": call.by_jax}


def inner_jaxprs(equation):
    """The programs within an equation."""
    if equation.primitive.name in _DEFINITIONS:
        run = partial(_DEFINITIONS[equation.primitive.name], **equation.params)
        return [jax.make_jaxpr(run)(*(v.aval for v in equation.invars)).jaxpr]
    return list(jaxprs_in_params(equation.params))

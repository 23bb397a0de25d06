"""Functions that close over traced arrays, such as a surrogate of a learned width, as functions of those arrays too."""

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import jax
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def hoist(function: Callable[..., Array], *examples: Any) -> tuple[Callable[..., Array], tuple[Array, ...]]:
    """``(f, constants)`` such that ``f(*arrays, *constants)`` is ``function(*arrays)`` and ``f`` closes over no tracer.

    A custom derivative rule and ``jit`` need this of a function that they are given as an option. What closes over
    nothing traced is returned as it is, so that programs made with it are found again.

    Args:
        function: of arrays to one array.
        examples: what it is called with, or shapes and dtypes of it.
    """
    if isinstance(function, FunctionType) and not function.__closure__:
        return function, ()
    closed = jax.make_jaxpr(function)(*examples)
    if isinstance(function, Hashable) and not any(isinstance(x, Tracer) for x in closed.consts):
        return function, ()
    jaxpr, count = closed.jaxpr, len(examples)

    def explicit(*arrays: Array) -> Array:
        (result,) = jaxpr_as_fun(ClosedJaxpr(jaxpr, arrays[count:]))(*arrays[:count])
        return result

    return explicit, tuple(closed.consts)

"""Functions that close over traced arrays, such as a surrogate of a learned width, as functions of those arrays too."""

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import jax
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def hoist(function: Callable[..., Any], *examples: Any) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    """``(f, constants)`` such that ``f(*arrays, *constants)`` is ``function(*arrays)`` and ``f`` closes over no tracer.

    A custom derivative rule and ``jit`` need this of a function that they are given as an option. What closes over
    nothing traced is returned as it is, so that programs made with it are found again.

    Args:
        function: of arrays to a tree of arrays.
        examples: what it is called with, or shapes and dtypes of it.

    Raises:
        ValueError: it is not a function.
    """
    if not callable(function):
        raise ValueError(f"a function is needed, such as qpsnn_jax.triangular for a surrogate, got {function!r}.")
    if isinstance(function, FunctionType) and not function.__closure__ and not _has_tracers(function):
        return function, ()
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    if isinstance(function, Hashable) and not any(isinstance(x, Tracer) for x in closed.consts):
        return function, ()
    jaxpr, count, tree = closed.jaxpr, len(examples), jax.tree.structure(shapes)

    def explicit(*arrays: Array) -> Any:
        leaves = jaxpr_as_fun(ClosedJaxpr(jaxpr, arrays[count:]))(*arrays[:count])
        return jax.tree.unflatten(tree, leaves)

    return explicit, tuple(closed.consts)


def _has_tracers(function: FunctionType) -> bool:
    """Whether the default values of its arguments are traced, as in ``lambda x, width=width: …``."""
    defaults = (function.__defaults__, function.__kwdefaults__)
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(defaults))

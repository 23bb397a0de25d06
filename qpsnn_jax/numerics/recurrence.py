"""Elementwise recurrences over time, computed in place in memory, with derivatives of every order in reverse mode.

``lax.scan`` over axis 1 copies its inputs and outputs to put time first, and its derivative stores every intermediate
value. Here each step is written over the input of that step, and the derivative is again such a recurrence, backward
in time. On a CPU this is several times faster and needs a fraction of the memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Step = Callable[..., Array]
Arrays = tuple[Array, ...]


@jax.custom_jvp
def rounded(x: Array) -> Array:
    """``x`` itself, rounded to its dtype before it is added to something.

    Compilers round a product and a sum together, in some programs and not in others; the comparison prevents that.
    """
    return jnp.where(x == x, x, jnp.asarray(jnp.nan, x.dtype))


rounded.defjvps(lambda tangent, primal_out, x: tangent)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recurrence(step: Step, reverse: bool, drive: Array, given: Arrays, constants: Arrays) -> Array:
    r"""The values of an elementwise recurrence along axis 1, forward or backward in time.

    .. math::
        v[t] = x[t] + f(v[t-1], s[t-1], c) \quad\text{(forward)}, \qquad
        v[t] = x[t] + f(v[t+1], s[t], c) \quad\text{(reverse)}

    The first value in its direction is x alone. The derivative of a forward recurrence is a reverse one, by which

    .. math:: \bar x[t] = \bar v[t] + \frac{∂f}{∂v}(v[t], s[t], c)\, \bar x[t+1]

    Args:
        step: f, from arrays of one step ``b …`` to one of that shape, differentiable in reverse mode. It closes over
            nothing traced.
        reverse: whether time runs backward.
        drive: x, ``b t …``.
        given: s, arrays ``b t …``; of a pair of neighbouring steps f gets the values at the earlier one.
        constants: c, arrays that f uses at every step.

    Returns:
        v, of the shape and dtype of ``drive``.
    """
    steps = drive.shape[1]
    if steps < 2:
        return drive

    def body(i: Array, values: Array) -> Array:
        here = steps - 1 - i if reverse else i
        before, earlier = (here + 1, here) if reverse else (here - 1, here - 1)
        added = step(_at(values, before), *(_at(s, earlier) for s in given), *constants)
        driven = _at(values, here)
        # A loop of one pass becomes part of the operations before it.
        driven = rounded(driven) if steps == 2 else driven
        return lax.dynamic_update_index_in_dim(values, driven + added, here, 1)

    return lax.fori_loop(1, steps, body, drive)


def _at(x: Array, t: Array) -> Array:
    return lax.dynamic_index_in_dim(x, t, 1, keepdims=False)


def _forward(step: Step, reverse: bool, drive: Array, given: Arrays, constants: Arrays) -> tuple[Array, Any]:
    values: Array = recurrence(step, reverse, drive, given, constants)
    return values, (values, given, constants)


def _backward(step: Step, reverse: bool, saved: Any, cotangent: Array) -> tuple[Array, Arrays, Arrays]:
    values, given, constants = saved
    earlier, later = (slice(None), slice(None, -1)), (slice(None), slice(1, None))
    # Of each pair of neighbouring steps, at the place of the earlier one.
    source = jnp.roll(values, -1, 1) if reverse else values
    to_drive: Any = recurrence(partial(_transposed, step), not reverse, cotangent, (source, *given), constants)
    if values.shape[1] < 2:
        return to_drive, *jax.tree.map(jnp.zeros_like, (given, constants))
    pairs = [values[later if reverse else earlier], *(x[earlier] for x in given)]
    # A step may broadcast its constants against one step, so that it is mapped over time.
    over_time = jax.vmap(step, in_axes=(*(1 for _ in pairs), *(None for _ in constants)), out_axes=1)
    _, pull = jax.vjp(over_time, *pairs, *constants)
    _, *cotangents = pull(to_drive[earlier if reverse else later])
    last = [(0, 1) if axis == 1 else (0, 0) for axis in range(values.ndim)]
    to_given = tuple(jnp.pad(x, last) for x in cotangents[: len(given)])
    return to_drive, to_given, tuple(cotangents[len(given) :])


def _transposed(step: Step, cotangent: Array, values: Array, *rest: Array) -> Array:
    """The cotangent of a step's first argument."""
    return jax.vjp(lambda v: step(v, *rest), values)[1](cotangent)[0]


recurrence.defvjp(_forward, _backward)

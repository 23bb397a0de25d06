"""Surrogate derivatives of the firing step, and the step that uses them.

The forward pass of a spiking neuron is a step function, whose derivative is zero almost everywhere. Training
replaces that derivative by a surrogate, a function of the distance ``x = U - θ`` to the threshold. Any function from
an array to an array of the same shape can be used; the four here are common.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.numerics.closures import hoist

Surrogate = Callable[[Array], Array]
Fire = Literal[">=", ">"]


def triangular(x: Array, width: float = 1.0) -> Array:
    r"""Triangular surrogate, the paper's.

    .. math:: h(x) = \frac{1}{a^2} \max(a - |x|, 0)

    Args:
        x: distance to the threshold, any shape.
        width: a, half the base of the triangle.

    Returns:
        The derivative, of the shape and dtype of ``x``.

    References:
        QP-SNN (ICLR 2025), appendix D; Deng et al., ICLR 2022.
    """
    width = _like(x, width)
    return jnp.maximum(width - jnp.abs(x), 0) / width**2


def rectangular(x: Array, width: float = 1.0) -> Array:
    r"""Rectangular surrogate, :math:`h(x) = \frac{1}{a} [\,|x| < a/2\,]`.

    Args:
        x: distance to the threshold, any shape.
        width: a, the base of the rectangle.

    Returns:
        The derivative, of the shape and dtype of ``x``.

    References:
        Wu et al., Frontiers in Neuroscience 2018 (STBP).
    """
    width = _like(x, width)
    return (jnp.abs(x) < width / 2).astype(x.dtype) / width


def sigmoid(x: Array, slope: float = 4.0) -> Array:
    r"""Derivative of the logistic function, :math:`h(x) = k\,σ(kx)\,(1 - σ(kx))`.

    Args:
        x: distance to the threshold, any shape.
        slope: k.

    Returns:
        The derivative, of the shape and dtype of ``x``.

    References:
        Neftci, Mostafa, Zenke, IEEE Signal Processing Magazine 2019.
    """
    slope = _like(x, slope)
    s = jax.nn.sigmoid(slope * x)
    return slope * s * (1 - s)


def arctan(x: Array, slope: float = 2.0) -> Array:
    r"""Derivative of a scaled arctangent, :math:`h(x) = \frac{k}{2\,(1 + (π k x / 2)^2)}`.

    Args:
        x: distance to the threshold, any shape.
        slope: k.

    Returns:
        The derivative, of the shape and dtype of ``x``.

    References:
        Fang et al., ICCV 2021.
    """
    slope = _like(x, slope)
    return slope / 2 / (1 + jnp.square(jnp.pi / 2 * slope * x))


def _like(x: Array, option: Any) -> Any:
    """An option in the dtype of x; a Python number has none of its own."""
    return option if isinstance(option, int | float) else jnp.asarray(option, jnp.result_type(x))


SURROGATES: dict[str, Surrogate] = {f.__name__: f for f in (triangular, rectangular, sigmoid, arctan)}


def fire_step(x: Array, surrogate: Surrogate = triangular, fire: Fire = ">=") -> Array:
    """Spikes: 1 where ``x`` is at (``>=``) or past (``>``) zero, else 0, with the derivative ``surrogate(x)``.

    A ``custom_vjp``: gradients of any order are right in reverse mode, also inside ``scan``, where JAX before 0.12
    loses a ``custom_jvp`` (second derivatives are then 0 without a warning). Forward mode (``jvp``, ``jacfwd``,
    ``hessian``) raises TypeError; ``jacrev(jacrev(f))`` gives a Hessian, ``grad(lambda p: vdot(grad(f)(p), v))`` its
    product with v.

    Args:
        x: distance to the threshold U - θ, any shape, floating.
        surrogate: the derivative used in place of the true one; it may close over traced arrays.
        fire: ``">="`` (paper, Eq. 2) or ``">"`` (released code).

    Returns:
        Array of the shape and dtype of ``x`` holding 0 and 1, and NaN where ``x`` is NaN.

    Raises:
        ValueError: ``fire`` is neither ``">="`` nor ``">"``, ``x`` is not floating, or ``surrogate``, when its
            gradient is asked for, gives no array of the shape of ``x``.
    """
    if fire not in get_args(Fire):
        raise ValueError(f"fire must be '>=' or '>', got {fire!r}.")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the distance to the threshold must be floating, got {x.dtype}.")
    function, constants = hoist(surrogate, x)
    return _fire(x, constants, function, fire)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _fire(x: Array, constants: tuple[Array, ...], surrogate: Surrogate, fire: Fire) -> Array:
    del constants, surrogate
    return jnp.where(jnp.isnan(x), x, (x >= 0 if fire == ">=" else x > 0).astype(x.dtype))


def _fire_forward(
    x: Array, constants: tuple[Array, ...], surrogate: Callable[..., Array], fire: Fire
) -> tuple[Array, Array]:
    return _fire(x, constants, surrogate, fire), slopes(surrogate, x, *constants)


def slopes(surrogate: Callable[..., Array], x: Array, *constants: Array) -> Array:
    """The surrogate of an array, in its dtype.

    Raises:
        ValueError: it has another shape.
    """
    found = jnp.asarray(surrogate(x, *constants))
    if found.shape != x.shape:
        raise ValueError(f"a surrogate must give one number for each of its input, {x.shape}, got {found.shape}.")
    return found.astype(x.dtype)


def _fire_backward(surrogate: Surrogate, fire: Fire, slope: Array, cotangent: Array) -> tuple[Array, None]:
    del surrogate, fire
    return cotangent * slope, None


_fire.defvjp(_fire_forward, _fire_backward)

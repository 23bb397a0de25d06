"""Surrogate derivatives of the firing step, and the step that uses them.

The forward pass of a spiking neuron is a step function, whose derivative is zero almost everywhere. Training
replaces that derivative by a surrogate, a function of the distance ``x = U - θ`` to the threshold. Any function from
an array to an array of the same shape can be used; the four here are common.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Surrogate = Callable[[Array], Array]
Fire = Literal[">=", ">"]


def triangular(x: Array, width: float = 1.0) -> Array:
    r"""Triangular surrogate, the paper's.

    .. math:: h(x) = \frac{1}{a^2} \max(a - |x|, 0)

    Args:
        x: distance to the threshold, any shape.
        width: a, half the base of the triangle.

    References:
        QP-SNN (ICLR 2025), appendix D; Deng et al., ICLR 2022.
    """
    return jnp.maximum(width - jnp.abs(x), 0) / width**2


def rectangular(x: Array, width: float = 1.0) -> Array:
    r"""Rectangular surrogate, :math:`h(x) = \frac{1}{a} [\,|x| < a/2\,]`.

    Args:
        x: distance to the threshold, any shape.
        width: a, the base of the rectangle.

    References:
        Wu et al., Frontiers in Neuroscience 2018 (STBP).
    """
    return (jnp.abs(x) < width / 2).astype(x.dtype) / width


def sigmoid(x: Array, slope: float = 4.0) -> Array:
    r"""Derivative of the logistic function, :math:`h(x) = k\,σ(kx)\,(1 - σ(kx))`.

    Args:
        x: distance to the threshold, any shape.
        slope: k.

    References:
        Neftci, Mostafa, Zenke, IEEE Signal Processing Magazine 2019.
    """
    s = jax.nn.sigmoid(slope * x)
    return slope * s * (1 - s)


def arctan(x: Array, slope: float = 2.0) -> Array:
    r"""Derivative of a scaled arctangent, :math:`h(x) = \frac{k}{2\,(1 + (π k x / 2)^2)}`.

    Args:
        x: distance to the threshold, any shape.
        slope: k.

    References:
        Fang et al., ICCV 2021.
    """
    return slope / 2 / (1 + jnp.square(jnp.pi / 2 * slope * x))


SURROGATES: dict[str, Surrogate] = {f.__name__: f for f in (triangular, rectangular, sigmoid, arctan)}


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def fire_step(x: Array, surrogate: Surrogate = triangular, fire: Fire = ">=") -> Array:
    """Spikes: 1 where ``x`` is at (``>=``) or past (``>``) zero, else 0, with the derivative ``surrogate(x)``.

    A ``custom_jvp``, so that jvp, vjp and nested derivatives all work.

    Args:
        x: distance to the threshold U - θ, any shape, floating.
        surrogate: the derivative used in place of the true one.
        fire: ``">="`` (paper, Eq. 2) or ``">"`` (released code).

    Returns:
        Array of the shape and dtype of ``x`` holding 0 and 1.

    Raises:
        ValueError: ``fire`` is neither ``">="`` nor ``">"``.
    """
    if fire == ">=":
        return (x >= 0).astype(x.dtype)
    if fire == ">":
        return (x > 0).astype(x.dtype)
    raise ValueError(f"fire must be '>=' or '>', got {fire!r}.")


@fire_step.defjvp
def _fire_step_jvp(surrogate: Surrogate, fire: Fire, primals, tangents):
    (x,), (dx,) = primals, tangents
    return fire_step(x, surrogate, fire), surrogate(x) * dx

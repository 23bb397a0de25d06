"""Mean and variance of the channels of an array: on a CPU in one native pass over memory."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.native.call import native_call

Moments = tuple[Array, Array]


@jax.custom_vjp
def channel_moments(x: Array) -> Moments:
    """Mean and biased variance of float32 ``… c`` over all axes but the last, both ``c``."""
    mean, var = native_call("channel_moments", _moments, x, results=(x.shape[-1:], x.shape[-1:]))
    return mean, var


def _moments(x: Array) -> Moments:
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.var(x, axes)


def _forward(x: Array) -> tuple[Moments, tuple[Array, Array]]:
    mean, var = channel_moments(x)
    return (mean, var), (x, mean)


def _backward(saved: tuple[Array, Array], cotangents: Moments) -> tuple[Array]:
    (x, mean), (of_mean, of_var) = saved, cotangents
    count = jnp.asarray(math.prod(x.shape[:-1]), x.dtype)  # 0 of an empty batch
    # One factor and one term for each channel, so that one pass over x is left.
    factor, shape = 2 / count * of_var, (1,) * (x.ndim - 1) + (-1,)
    return (x * factor.reshape(shape) + (of_mean / count - factor * mean).reshape(shape),)


channel_moments.defvjp(_forward, _backward)

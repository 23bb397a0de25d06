"""Batch normalization."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import constant, ones, zeros

from qpsnn_jax.kernels.affine import Affine, Numbers, computed
from qpsnn_jax.kernels.moments import channel_moments
from qpsnn_jax.model.nodes.base import Context, Leaf, Leaves, Result, Unary, Value, Values
from qpsnn_jax.model.nodes.checks import float_fields


@dataclass(frozen=True)
class BatchNorm(Unary):
    """Batch normalization over everything but the channels; running statistics decay by ``momentum``.

    The running variance is the unbiased one, as in the released code. Fresh scales are ``scale_init``.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: float = 1.0

    uses_affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        float_fields(self, "momentum", least=0, most=1)
        float_fields(self, "epsilon", "scale_init", least=0)

    def infer(self, inputs: Values) -> Value:
        """As its input, but not spikes."""
        return inputs[0]._replace(spiking=False)

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """``scale`` and ``bias``, and the running ``mean`` and ``var``, each of shape c."""
        shape, axes = inputs[0].shape[-1:], (self.name,)
        params = {"scale": Leaf(shape, constant(self.scale_init), axes), "bias": Leaf(shape, zeros, axes)}
        stats = {"mean": Leaf(shape, zeros, axes, "batch_stats"), "var": Leaf(shape, ones, axes, "batch_stats")}
        return params | stats

    def run(self, leaves: Leaves, inputs: Sequence[Numbers], context: Context) -> Result:
        """Normalized by the running moments; in training by those of the batch, which then update the running ones."""
        x = Affine.of(inputs[0]) if context.affine else computed(inputs[0])
        if not context.train:
            return Result(self._normalized(x, leaves, leaves["mean"], leaves["var"]))
        mean, var = _moments(x)
        shape = (x.x if isinstance(x, Affine) else x).shape
        repeats = 1 if context.inputs[0].timed else context.timesteps
        count = repeats * math.prod(shape[:-1])
        if count == 0:
            raise ValueError(f"node {self.name!r}: an empty batch of shape {shape} has no mean to train with.")
        batch = {"mean": mean, "var": var * (count / max(1, count - 1))}
        running = {
            name: self.momentum * leaves[name] + (1 - self.momentum) * moment.astype(leaves[name].dtype)
            for name, moment in batch.items()
        }
        return Result(self._normalized(x, leaves, mean, var), updates=running)

    def _normalized(self, x: Array | Affine, leaves: Leaves, mean: Array, var: Array) -> Array | Affine:
        affine = {"scale": leaves["scale"], "bias": leaves["bias"], "epsilon": self.epsilon}
        if isinstance(x, Affine):
            return x.scaled(*_factor_and_offset(mean=mean, var=var, dtype=np.dtype(np.float32), **affine))
        return normalize_channels(x, mean=mean, var=var, **affine)


def normalize_channels(x: Array, *, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    """Batch normalization of ``… c`` with given moments of shape ``c``, of the dtype of x."""
    factor, offset = _factor_and_offset(scale=scale, bias=bias, mean=mean, var=var, epsilon=epsilon, dtype=_wide(x))
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * factor.astype(x.dtype).reshape(shape) + offset.astype(x.dtype).reshape(shape)


def _factor_and_offset(
    *, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float, dtype: np.dtype
) -> tuple[Array, Array]:
    scale, bias, mean, var = (leaf.astype(dtype) for leaf in (scale, bias, mean, var))
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor


def _moments(x: Array | Affine) -> tuple[Array, Array]:
    """Mean and biased variance by channel."""
    if isinstance(x, Affine):
        mean, var = channel_moments(x.x)
        return mean * x.factor + x.offset, var * x.factor**2
    axes, wide = tuple(range(x.ndim - 1)), _wide(x)
    return jnp.mean(x, axis=axes, dtype=wide), jnp.var(x, axis=axes, dtype=wide)


def _wide(x: Array) -> np.dtype:
    """The dtype in which moments are taken: float32 for half precision, else that of x."""
    return np.promote_types(x.dtype, np.float32)

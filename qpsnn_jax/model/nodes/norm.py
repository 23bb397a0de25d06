"""Batch normalization."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import ones, zeros

from qpsnn_jax.model.nodes.base import Context, Leaf, Leaves, Result, Unary, Value, Values
from qpsnn_jax.model.nodes.checks import float_fields


@dataclass(frozen=True)
class BatchNorm(Unary):
    """Batch normalization over everything but the channels; running statistics decay by ``momentum``.

    The running variance is the unbiased one, as in the released code.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        float_fields(self, "momentum", least=0, most=1)
        float_fields(self, "epsilon", least=0)

    def infer(self, inputs: Values) -> Value:
        """As its input, but not spikes."""
        return inputs[0]._replace(spiking=False)

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """``scale`` and ``bias``, and the running ``mean`` and ``var``, each of shape c."""
        shape, axes = inputs[0].shape[-1:], (self.name,)
        params = {"scale": Leaf(shape, ones, axes), "bias": Leaf(shape, zeros, axes)}
        stats = {"mean": Leaf(shape, zeros, axes, "batch_stats"), "var": Leaf(shape, ones, axes, "batch_stats")}
        return params | stats

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """Normalized by the running moments; in training by those of the batch, which then update the running ones."""
        (x,) = inputs
        affine = {"scale": leaves["scale"], "bias": leaves["bias"], "epsilon": self.epsilon}
        if not context.train:
            return Result(normalize_channels(x, mean=leaves["mean"], var=leaves["var"], **affine))
        axes, wide = tuple(range(x.ndim - 1)), _wide(x)
        mean, var = jnp.mean(x, axis=axes, dtype=wide), jnp.var(x, axis=axes, dtype=wide)
        repeats = 1 if context.inputs[0].timed else context.timesteps
        count = repeats * x.size // x.shape[-1]
        batch = {"mean": mean, "var": var * (count / max(1, count - 1))}
        running = {
            name: self.momentum * leaves[name] + (1 - self.momentum) * moment.astype(leaves[name].dtype)
            for name, moment in batch.items()
        }
        return Result(normalize_channels(x, mean=mean, var=var, **affine), updates=running)


def normalize_channels(x: Array, *, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    """Batch normalization of ``… c`` with given moments of shape ``c``, of the dtype of x."""
    scale, bias, mean, var = (leaf.astype(_wide(x)) for leaf in (scale, bias, mean, var))
    factor = scale * jax.lax.rsqrt(var + epsilon)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * factor.astype(x.dtype).reshape(shape) + (bias - mean * factor).astype(x.dtype).reshape(shape)


def _wide(x: Array) -> np.dtype:
    """The dtype in which moments are taken: float32 for half precision, else that of x."""
    return np.promote_types(x.dtype, np.float32)

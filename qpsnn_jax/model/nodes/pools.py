"""Pooling over windows and over complete maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.affine import Numbers, computed
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.kernels.packed import Spikes
from qpsnn_jax.kernels.pooling import max_pool, pool_packed, pool_tiles
from qpsnn_jax.model.nodes.base import Context, Leaves, Result, Unary, Value, Values
from qpsnn_jax.model.nodes.checks import image_shape, output_hw, tuple_fields


@dataclass(frozen=True)
class MaxPool(Unary):
    """Maximum over windows; of spikes, their OR. Padding is smaller than the window and never the maximum."""

    window: Pair = (2, 2)
    strides: Pair = (2, 2)
    padding: Pair = (0, 0)

    uses_affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tuple_fields(self, 2, "window", "strides")
        tuple_fields(self, 2, "padding", least=0)
        if any(p >= k for p, k in zip(self.padding, self.window, strict=True)):
            raise ValueError(
                f"node {self.name!r}: padding {self.padding} must be smaller than the window {self.window}; "
                "otherwise a window could contain only padding."
            )

    def infer(self, inputs: Values) -> Value:
        """Smaller maps; spikes if the input is."""
        size = output_hw(inputs[0], self.window, self.strides, self.padding)
        return inputs[0]._replace(shape=(*size, inputs[0].shape[-1]))

    def run(self, leaves: Leaves, inputs: Sequence[Numbers], context: Context) -> Result:
        """The largest value of each window. Among equal ones, such as spikes, the first receives the gradient."""
        x = computed(inputs[0])
        tiles = self.strides == self.window and self.padding == (0, 0)
        if tiles and x.dtype == np.float32 and context.precision != "exact":
            if isinstance(inputs[0], Spikes):
                return Result(pool_packed(inputs[0], self.window))
            return Result(pool_tiles(x, self.window, context.inputs[0].spiking))
        return Result(max_pool(x, self.window, self.strides, self.padding))


@dataclass(frozen=True)
class AveragePool(Unary):
    """Mean over windows; padding counts as zeros."""

    window: Pair = (2, 2)
    strides: Pair = (2, 2)
    padding: Pair = (0, 0)

    def __post_init__(self) -> None:
        tuple_fields(self, 2, "window", "strides")
        tuple_fields(self, 2, "padding", least=0)

    def infer(self, inputs: Values) -> Value:
        """Smaller maps."""
        size = output_hw(inputs[0], self.window, self.strides, self.padding)
        return Value((*size, inputs[0].shape[-1]), inputs[0].timed, spiking=False)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The sums of the windows, divided by their size."""
        return Result(self._sums(inputs[0]) / math.prod(self.window))

    def _sums(self, x: Array) -> Array:
        lead = (1,) * (x.ndim - 3)
        window, strides = (*lead, *self.window, 1), (*lead, *self.strides, 1)
        padding = (*((0, 0) for _ in lead), *((p, p) for p in self.padding), (0, 0))
        return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, strides, padding)


@dataclass(frozen=True)
class SumPool(AveragePool):
    """Sum over windows."""

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The sums of the windows."""
        return Result(self._sums(inputs[0]))


@dataclass(frozen=True)
class GlobalAveragePool(Unary):
    """Mean over height and width, ``h w c`` to ``c``."""

    def infer(self, inputs: Values) -> Value:
        """One value for each channel."""
        return Value(image_shape(inputs[0])[2:], inputs[0].timed, spiking=False)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The mean."""
        return Result(jnp.mean(inputs[0], axis=(-3, -2)))

"""Currents that their reader computes: a scale and a shift of each channel of an array, and a sum with another.

Convolutions, batch normalization and residual sums end in these. Neurons read their operands and compute them in the
same pass over memory; whatever else reads them, computes them first.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.algorithm import ConvSpec
from qpsnn_jax.kernels.packed import Spikes


@partial(jax.tree_util.register_dataclass, data_fields=("maps", "kernel"), meta_fields=("spec",))
@dataclass(frozen=True)
class Convolution:
    """Maps ``b [t] h w i`` and a kernel ``h w i o``, whose sums are still to be computed."""

    maps: Array | Spikes
    kernel: Array
    spec: ConvSpec


class Affine(NamedTuple):
    """``x · factor + offset + residual``: x and residual ``… c``, factor and offset ``c``, all of one dtype.

    ``convolution`` is that of which x are the sums, if its one reader may compute it in x's place; with another x it
    is None.
    """

    x: Array
    factor: Array
    offset: Array
    residual: Array | Spikes | None = None
    convolution: Convolution | None = None

    @classmethod
    def of(cls, x: "Array | Spikes | Affine") -> "Affine":
        """The same numbers, as an affine function without a residual."""
        if isinstance(x, Affine) and x.residual is None:
            return x
        x = computed(x)
        channels = x.shape[-1:]
        return cls(x, jnp.ones(channels, x.dtype), jnp.zeros(channels, x.dtype))

    def scaled(self, factor: Array, offset: Array) -> "Affine":
        """Itself times ``factor`` plus ``offset``, both ``c``; for one without a residual."""
        return self._replace(factor=self.factor * factor, offset=self.offset * factor + offset)

    def compute(self) -> Array:
        """The array ``… c``."""
        shape = (1,) * (self.x.ndim - 1) + (-1,)
        y = self.x * self.factor.reshape(shape) + self.offset.reshape(shape)
        return y if self.residual is None else y + computed(self.residual)


Numbers = Array | Spikes | Affine
"""What a node may get from another: an array, or what stands for one."""


def without_convolution(x: Numbers) -> Numbers:
    """The same, whose x is computed once for all of its readers."""
    return x._replace(convolution=None) if isinstance(x, Affine) else x


def computed(x: Numbers) -> Array:
    """An array: ``x`` itself, spikes as numbers, or the numbers of an affine function."""
    if isinstance(x, Spikes):
        return x.array
    return x.compute() if isinstance(x, Affine) else x

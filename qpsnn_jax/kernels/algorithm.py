"""The record of an algorithm: one way to compute the sums of a convolution, or one of its two gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.geometry import Geometry, Pair


class ConvSpec(NamedTuple):
    """A convolution as data: its geometry, channels in and out, the bits of its weights, and its groups of channels."""

    geometry: Geometry
    inputs: int
    outputs: int
    bits: int = 8
    groups: int = 1

    @classmethod
    def of(
        cls, x: Any, kernel: Any, bits: int, strides: Pair, padding: Pair, groups: int = 1, dilation: Pair = (1, 1)
    ) -> "ConvSpec":
        """Of maps ``b h w i`` and a kernel ``h w i/groups o``."""
        return cls(Geometry.of(x, kernel, strides, padding, dilation), x.shape[3], kernel.shape[3], bits, groups)

    @property
    def narrowest(self) -> int:
        """The smaller number of channels."""
        return min(self.inputs, self.outputs)

    @property
    def standard(self) -> bool:
        """Whether every output reads all channels, by taps side by side."""
        return self.groups == 1 and self.geometry.dilation == (1, 1)


class Algorithm(NamedTuple):
    """One way to compute the sums of a convolution, the gradient w.r.t. its input, or the gradient w.r.t. its kernel.

    ``run`` takes two arrays and the :class:`ConvSpec`: spikes and integers; or the cotangent of the sums and the
    kernel; or the maps and the cotangent. ``supports`` says which standard specs it is for; only if it is ``general``
    does it compute convolutions in groups or with dilation.
    ``preference`` is its rank on a processor with the given flags: the algorithm of the highest rank runs, XLA's own
    (rank 0) if none is higher.
    """

    name: str
    run: Callable[[Array, Array, Any], Array]
    supports: Callable[[ConvSpec], bool] = lambda spec: True
    preference: Callable[[ConvSpec, frozenset[str]], int] = lambda spec, flags: 0
    general: bool = False

    def accepts(self, spec: ConvSpec) -> bool:
        """Whether it is for this convolution."""
        return (self.general or spec.standard) and self.supports(spec)


def with_nans(sums: Array, spikes: Array, integers: Array) -> Array:
    """``sums`` computed with integers, with NaN for every image and output channel with a NaN operand."""
    by_image, by_channel = jnp.sum(0 * spikes, (1, 2, 3)), jnp.sum(0 * integers, (0, 1, 2))
    return sums.astype(spikes.dtype) + by_image[:, None, None, None] + by_channel.astype(spikes.dtype)[None, None, None]

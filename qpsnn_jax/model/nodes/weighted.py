"""Convolutions and dense layers, whose weights may be quantized."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer, ones, zeros

from qpsnn_jax.kernels.affine import Affine, Convolution, computed
from qpsnn_jax.model.nodes.base import (
    Activity,
    Channels,
    Context,
    Count,
    Leaf,
    Leaves,
    Unary,
    Values,
    count_synapses,
)
from qpsnn_jax.model.nodes.checks import flag_fields, integer_fields
from qpsnn_jax.model.nodes.levels import same_levels
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.numerics.sparsity import stored_bits

_FULL_PRECISION_BITS = 32


class Weighted(Unary):
    """Base of convolutions and dense layers; the output channels are the last axis of the weights."""

    features: int
    quantizer: Quantizer | None
    bias: bool
    label: str | None
    groups: int = 1
    masked: bool = False

    channels: ClassVar[Channels] = "made"

    def __post_init__(self) -> None:
        if not isinstance(self.quantizer, Quantizer | None):
            raise ValueError(f"node {self.name!r}: quantizer must be a Quantizer or None, got {self.quantizer!r}.")
        if not isinstance(self.label, str | None):
            raise ValueError(f"node {self.name!r}: label must be a name or None, got {self.label!r}.")
        integer_fields(self, "features")
        flag_fields(self, "bias", "masked")

    @property
    def observed(self) -> tuple[str, ...]:
        """Its input."""
        return self.inputs

    def weighted_leaves(self, shape: tuple[int, ...], init: Initializer) -> dict[str, Leaf]:
        """``kernel`` … i o, ``bias`` o, if quantized ``gain`` (a constant factor on γ) or a learned ``gamma``.

        If masked, ``mask`` of the shape of the kernel, 0 where a weight is removed, in the collection ``masks``.
        """
        own, quantizer = (self.name,), self.quantizer
        axes = (*(None for _ in shape[:-2]), self.input if self.groups == 1 else None, self.name)
        leaves = {"kernel": Leaf(shape, init, axes, bits=quantizer.stored_bits if quantizer else _FULL_PRECISION_BITS)}
        if self.masked:
            leaves["mask"] = Leaf(shape, ones, axes, "masks", bits=0)  # cost counts the bits of its index
        if self.bias:
            leaves["bias"] = Leaf((self.features,), zeros, own)
        if quantizer is not None:
            shape, axes = ((self.features,), own) if quantizer.granularity == "channel" else ((1,), (None,))
            if quantizer.scale_leaf == "gamma":
                leaves["gamma"] = Leaf(shape, ones, axes, derive=partial(_first_gamma, quantizer))
            else:
                leaves["gain"] = Leaf(shape, ones, axes, "scales")
        return leaves

    def apply_linear(
        self,
        linear: Callable[[Array, Array], Array],
        leaves: Leaves,
        x: Array,
        context: Context,
        shared: Callable[[Array], Convolution | None] = lambda kernel: None,
    ) -> Array | Affine:
        """``linear(x, kernel)`` on ``b [t] …`` with time folded into the batch, then scale and bias.

        A quantized layer multiplies by odd integers and scales the sums, so that on spikes the sums are exactly those
        of an integer device. Weights are quantized in their own dtype; everything after has the dtype of x.
        ``shared(kernel)`` is the convolution that whatever reads the sums may compute itself.
        """
        timed = context.inputs[0].timed
        if x.dtype == jnp.float16 and self.quantizer is not None:
            # The sums of integers would be beyond its largest number, 65,504.
            y = self.apply_linear(linear, leaves, x.astype(jnp.float32), context._replace(affine=False))
            return computed(y).astype(x.dtype)
        kernel, scale = self._factors(leaves)
        kernel = kernel.astype(x.dtype)
        convolution = shared(kernel) if context.affine and not context.train else None
        y = linear(x.reshape(-1, *x.shape[2:]) if timed else x, kernel)
        y = y.reshape(*x.shape[:2], *y.shape[1:]) if timed else y
        scale = None if scale is None else scale.astype(x.dtype).ravel()
        bias = leaves["bias"].astype(x.dtype) if self.bias else None
        if context.affine and any(each is not None for each in (scale, bias, convolution)):
            affine, shape = Affine.of(y), (self.features,)
            factor = affine.factor if scale is None else jnp.broadcast_to(scale, shape)
            offset = affine.offset if bias is None else bias
            return affine._replace(factor=factor, offset=offset, convolution=convolution)
        over_channels = (1,) * (y.ndim - 1) + (-1,)
        y = y if scale is None else y * scale.reshape(over_channels)
        return y if bias is None else y + bias.reshape(over_channels)

    def _factors(self, leaves: Leaves) -> tuple[Array, Array | None]:
        """The kernel, or the odd integers that it is quantized to and their scale; zero where the mask is.

        γ of a rule is that of the complete kernel, so that a mask changes none of the remaining weights.
        """
        kernel, scale = leaves["kernel"], None
        if self.quantizer is not None:
            kernel, scale = self.quantizer.integer_weights(kernel, leaves[self.quantizer.scale_leaf])
        return kernel * leaves["mask"].astype(kernel.dtype) if self.masked else kernel, scale

    def shrink(self, outputs: np.ndarray | None, inputs: Sequence[np.ndarray | None]) -> "Weighted":
        """The layer with the remaining number of features."""
        del inputs
        return self if outputs is None else dataclasses.replace(self, features=len(outputs))

    def rescale(self, before: Leaves, after: Leaves, outputs: np.ndarray | None) -> Leaves:
        """The gain that preserves γ, and so every remaining quantized weight; weights of which none has a γ, set so."""
        if self.quantizer is None or before["kernel"].shape == after["kernel"].shape:
            return {}
        outputs = np.arange(self.features) if outputs is None else outputs
        return same_levels(self.quantizer, after["gain"], before["kernel"], after["kernel"], outputs)

    def weights(self, leaves: Leaves) -> Array:
        """The kernel, or the odd integers that it is quantized to."""
        return self._factors(leaves)[0]

    @abstractmethod
    def synapses(self, inputs: Values, mask: np.ndarray | None = None) -> np.ndarray:
        """As of every node; with a mask those that it leaves, for every value of the input."""

    def count(self, inputs: Values, activity: Activity, timesteps: int) -> Count:
        """The operations of its synapses; those of a dense device take no account of a mask."""
        dense, mask = super().count(inputs, activity, timesteps), activity.mask
        if mask is None:
            return dense
        left = count_synapses(self.synapses(inputs, mask), inputs[0], activity, timesteps)
        kernel, removed = self.leaves(inputs)["kernel"], mask.size - int(np.count_nonzero(mask))
        saved = kernel.storage - stored_bits(mask, kernel.bits, has_zero=self.has_zero)
        traffic = dense.traffic_bits - saved * (timesteps if inputs[0].timed else 1)
        return left._replace(dense=dense.dense, traffic_bits=traffic, removed=removed, saved_bits=saved)

    @property
    def has_zero(self) -> bool:
        """Whether a weight can be zero without a mask: in full precision, and of three levels."""
        return self.quantizer is None or self.quantizer.levels is not None


def _first_gamma(quantizer: Quantizer, leaves: Leaves) -> Array:
    return quantizer.gamma_of(leaves["kernel"]).ravel()

"""Convolutions and dense layers, whose weights may be quantized."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer, lecun_normal, ones, variance_scaling, zeros

from qpsnn_jax.kernels.affine import Affine, Convolution, computed
from qpsnn_jax.kernels.convolution import conv_spikes, convolve, shared_convolution
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.kernels.products import einsum_spikes
from qpsnn_jax.model.nodes.base import (
    Activity,
    Channels,
    Context,
    Count,
    Leaf,
    Leaves,
    Result,
    Unary,
    Value,
    Values,
    count_synapses,
)
from qpsnn_jax.model.nodes.checks import flag_fields, image_shape, integer_fields, output_hw, tuple_fields
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
        shared: Callable[[Array, Array], Convolution | None] = lambda x, kernel: None,
    ) -> Array | Affine:
        """``linear(x, kernel)`` on ``b [t] …`` with time folded into the batch, then scale and bias.

        A quantized layer multiplies by odd integers and scales the sums, so that on spikes the sums are exactly those
        of an integer device. Weights are quantized in their own dtype; everything after has the dtype of x.
        ``shared(x, kernel)`` is the convolution that whatever reads the sums may compute itself.
        """
        timed = context.inputs[0].timed
        if x.dtype == jnp.float16 and self.quantizer is not None:
            # The sums of integers would be beyond its largest number, 65,504.
            y = self.apply_linear(linear, leaves, x.astype(jnp.float32), context._replace(affine=False))
            return computed(y).astype(x.dtype)
        kernel, scale = self._factors(leaves)
        kernel = kernel.astype(x.dtype)
        convolution = shared(x, kernel) if context.affine and not context.train else None
        y = linear(x.reshape(-1, *x.shape[2:]) if timed else x, kernel)
        y = y.reshape(*x.shape[:2], *y.shape[1:]) if timed else y
        scale = None if scale is None else scale.astype(x.dtype).ravel()
        bias = leaves["bias"].astype(x.dtype) if self.bias else None
        if context.affine and not scale is bias is convolution is None:
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


@dataclass(frozen=True)
class Conv(Weighted):
    """Convolution, weights ``h w i/groups o``, initialized He-normal over the fan-out.

    A 1-D convolution is one on maps of height 1, with a kernel ``(1, k)``.

    Args:
        features: output channels.
        kernel, strides: height and width.
        padding: zeros on each side, height and width; None becomes :math:`⌊d (k - 1) / 2⌋` for a kernel k with dilation
            d, so that an odd kernel at stride 1 keeps the size of its input.
        quantizer: None keeps full precision.
        bias: whether a bias is added, initially zero.
        label: name of the pruning ratio of the output channels; with None no ratio removes any.
        groups: how many parts the channels are divided into, each convolved alone; as many as channels for a depthwise
            convolution. Whole groups are pruned, the inputs of a group with its outputs, so that the layers that make
            both need one label.
        dilation: vertical and horizontal step from tap to tap.
        masked: whether some weights are zero by a ``mask`` in the collection ``masks`` (:func:`qpsnn_jax.mask_by`).
    """

    features: int
    kernel: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: Pair = None  # type: ignore[assignment]  # a pair once the node is made
    quantizer: Quantizer | None = None
    bias: bool = False
    label: str | None = None
    groups: int = 1
    dilation: Pair = (1, 1)
    masked: bool = False

    uses_affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        integer_fields(self, "groups")
        tuple_fields(self, 2, "kernel", "strides", "dilation")
        if self.padding is None:
            same = tuple(d * (k - 1) // 2 for k, d in zip(self.kernel, self.dilation, strict=True))
            object.__setattr__(self, "padding", same)
        tuple_fields(self, 2, "padding", least=0)
        if self.features % self.groups:
            raise ValueError(f"node {self.name!r}: groups of {self.groups} do not divide its {self.features} features.")

    def infer(self, inputs: Values) -> Value:
        """Maps of ``features`` channels."""
        if (channels := image_shape(inputs[0])[2]) % self.groups:
            raise ValueError(f"groups of {self.groups} do not divide the {channels} channels of {self.input!r}.")
        size = output_hw(inputs[0], self.kernel, self.strides, self.padding, self.dilation)
        return Value((*size, self.features), inputs[0].timed, spiking=False)

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """``kernel`` h w i/groups o, ``bias`` and ``gain``."""
        shape = (*self.kernel, image_shape(inputs[0])[2] // self.groups, self.features)
        # JAX counts the outputs of all groups as the fan-out.
        return self.weighted_leaves(shape, variance_scaling(2.0 * self.groups, "fan_out", "normal"))

    def ties(self, inputs: Values) -> Sequence[np.ndarray]:
        """In groups, all channels of a group, of input and output."""
        if self.groups == 1:
            return super().ties(inputs)
        given, made = (np.arange(n) // (n // self.groups) for n in (inputs[0].shape[-1], self.features))
        return [np.argwhere(made[:, None] == given)]

    def shrink(self, outputs: np.ndarray | None, inputs: Sequence[np.ndarray | None]) -> "Conv":
        """The layer with the remaining number of features, and of groups."""
        del inputs
        features = self.features if outputs is None else len(outputs)
        groups = 1 if self.groups == 1 else self.groups * features // self.features
        return dataclasses.replace(self, features=features, groups=groups)

    def run(self, leaves: Leaves, inputs: Sequence[Array | Affine], context: Context) -> Result:
        """The convolution, by a fast exact algorithm if the input is spikes and the weights are quantized."""
        x, (given,) = computed(inputs[0]), context.inputs
        options: dict[str, Any] = {"strides": self.strides, "padding": self.padding, "groups": self.groups}
        options |= {"dilation": self.dilation, "precision": context.precision}
        linear, shared = partial(convolve, spikes=given.spiking, **options), partial(shared_convolution, **options)
        if (quantizer := self.quantizer) is not None and given.spiking:
            # The fast algorithms of a CPU take odd integers; those of three levels are even, and masked ones zero.
            options |= {"bits": quantizer.bits, "odd": quantizer.levels is None and not self.masked}
            linear, shared = partial(conv_spikes, **options), partial(shared_convolution, **options)
        return Result(self.apply_linear(linear, leaves, x, context, shared))

    def synapses(self, inputs: Values, mask: np.ndarray | None = None) -> np.ndarray:
        """For every position of the input, a group's features times the (output position, tap) pairs that read it."""
        h, w, _ = image_shape(inputs[0])
        geometry = Geometry((h, w), self.kernel, self.strides, self.padding, self.dilation)
        rows, columns = (_reads(*axis) for axis in zip(*geometry, geometry.output_hw, strict=True))
        if mask is None:
            return self.features // self.groups * np.outer(rows.sum(-1), columns.sum(-1))
        # The outputs left at each tap of each input channel, first of the group's own channels.
        left = mask.reshape(*mask.shape[:3], self.groups, -1).sum(-1).transpose(0, 1, 3, 2)
        return np.einsum("yk,xl,klc->yxc", rows, columns, left.reshape(*self.kernel, -1))

    def count(self, inputs: Values, activity: Activity, timesteps: int) -> Count:
        """The operations of its synapses; each weight that is left is a connection."""
        mask = activity.mask
        weights = self.leaves(inputs)["kernel"].size if mask is None else int(np.count_nonzero(mask))
        return super().count(inputs, activity, timesteps)._replace(connections=weights)


@dataclass(frozen=True)
class Dense(Weighted):
    """Fully connected layer on a flat input, weights ``i o``, initialized LeCun-normal.

    Args:
        features: outputs.
        quantizer: None keeps full precision.
        bias: whether a bias is added, initially zero.
        label: name of the pruning ratio of the outputs; with None no ratio removes any.
        masked: as of :class:`Conv`.
    """

    features: int
    quantizer: Quantizer | None = None
    bias: bool = True
    label: str | None = None
    masked: bool = False

    uses_affine: ClassVar[bool] = True

    def infer(self, inputs: Values) -> Value:
        """``features`` values."""
        if len(inputs[0].shape) != 1:
            raise ValueError(f"needs a flat input, got the shape {inputs[0].shape}; put a Flatten before it.")
        return Value((self.features,), inputs[0].timed, spiking=False)

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """``kernel`` i o, ``bias`` and ``gain``."""
        return self.weighted_leaves((inputs[0].shape[-1], self.features), lecun_normal())

    def run(self, leaves: Leaves, inputs: Sequence[Array | Affine], context: Context) -> Result:
        """The product with the weights."""
        linear: Callable[[Array, Array], Array] = jnp.matmul
        if context.inputs[0].spiking:
            exact = self.quantizer is not None
            linear = partial(einsum_spikes, "bi,io->bo", exact=exact, precision=context.precision)
        return Result(self.apply_linear(linear, leaves, computed(inputs[0]), context))

    def synapses(self, inputs: Values, mask: np.ndarray | None = None) -> np.ndarray:
        """The features: each is reached by every spike."""
        del inputs
        return np.asarray(self.features) if mask is None else mask.sum(-1)


def _reads(size: int, kernel: int, stride: int, padding: int, dilation: int, outputs: int) -> np.ndarray:
    """Along one axis, how many output positions read each input position at each kernel tap, ``position tap``."""
    reads = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - padding
    return (reads == np.arange(size)[:, None, None]).sum(1)


def _first_gamma(quantizer: Quantizer, leaves: Leaves) -> Array:
    return quantizer.gamma_of(leaves["kernel"]).ravel()

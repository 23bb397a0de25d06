"""Convolutions, whose weights may be quantized."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jax import Array
from jax.nn.initializers import variance_scaling

from qpsnn_jax.kernels.affine import Numbers, computed
from qpsnn_jax.kernels.convolution import conv_spikes, convolve, shared_convolution
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.kernels.packed import Spikes
from qpsnn_jax.model.nodes.base import Activity, Context, Count, Leaf, Leaves, Result, Value, Values
from qpsnn_jax.model.nodes.checks import image_shape, integer_fields, output_hw, tuple_fields
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.model.nodes.weighted import Weighted


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

    def run(self, leaves: Leaves, inputs: Sequence[Numbers], context: Context) -> Result:
        """The convolution, by a fast exact algorithm if the input is spikes and the weights are quantized."""
        x, (given,) = computed(inputs[0]), context.inputs
        options: dict[str, Any] = {"strides": self.strides, "padding": self.padding, "groups": self.groups}
        options |= {"dilation": self.dilation, "precision": context.precision}
        sums: Callable[..., Array] = partial(convolve, spikes=given.spiking)
        if (quantizer := self.quantizer) is not None and given.spiking:
            # The fast algorithms of a CPU take odd integers; those of three levels are even, and masked ones zero.
            sums, odd = conv_spikes, quantizer.levels is None and not self.masked
            options |= {"bits": quantizer.bits, "odd": odd}
        maps = inputs[0] if isinstance(inputs[0], Spikes) else x
        linear, shared = partial(sums, **options), partial(shared_convolution, maps, **options)
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


def _reads(size: int, kernel: int, stride: int, padding: int, dilation: int, outputs: int) -> np.ndarray:
    """Along one axis, how many output positions read each input position at each kernel tap, ``position tap``."""
    reads = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - padding
    return (reads == np.arange(size)[:, None, None]).sum(1)

"""Nodes that rearrange, join or add their inputs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.affine import Affine, Numbers, computed
from qpsnn_jax.kernels.packed import Spikes
from qpsnn_jax.model.nodes.base import Channels, Context, Leaves, Node, Result, Unary, Value, Values
from qpsnn_jax.model.nodes.checks import image_shape, integer_fields, tuple_fields


@dataclass(frozen=True)
class Flatten(Unary):
    """``h w c`` to ``h·w·c``, channels fastest."""

    def infer(self, inputs: Values) -> Value:
        """The flattened shape."""
        h, w, c = image_shape(inputs[0])
        return inputs[0]._replace(shape=(h * w * c,))

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """A reshape."""
        return Result(inputs[0].reshape(*inputs[0].shape[:-3], -1))


@dataclass(frozen=True)
class Shortcut(Unary):
    """Parameter-free shortcut (option A): strided slice, each output channel a named input channel or zeros.

    Args:
        source: for every output channel the input channel it carries, or -1 for zeros. The channels are listed so
            that they stay identified when the two ends are pruned differently.
        stride: of the slice, in both directions.
    """

    source: tuple[int, ...]
    stride: int = 1

    channels: ClassVar[Channels] = "mapped"

    def __post_init__(self) -> None:
        tuple_fields(self, max(1, len(self.source)) if isinstance(self.source, tuple) else 1, "source", least=-1)
        integer_fields(self, "stride")

    def infer(self, inputs: Values) -> Value:
        """Smaller maps, with as many channels as ``source`` has entries."""
        h, w, c = image_shape(inputs[0])
        if max(self.source) >= c:
            raise ValueError(f"source must be a tuple of channels of its input, 0 to {c - 1}, or -1 for zeros.")
        size = (-(-h // self.stride), -(-w // self.stride), len(self.source))
        return inputs[0]._replace(shape=size)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The strided slice, with its channels at the places that ``source`` gives and zeros elsewhere."""
        x = inputs[0][..., :: self.stride, :: self.stride, :]
        carried = [i for i, channel in enumerate(self.source) if channel >= 0]
        if [self.source[i] for i in carried] == list(range(x.shape[-1])) and carried[-1] - carried[0] < len(carried):
            # All of them side by side, as in a network that is not pruned: faster than to gather them.
            around = carried[0], len(self.source) - 1 - carried[-1]
            return Result(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [around]))
        source = jnp.asarray(self.source)
        return Result(jnp.where(source.reshape((1,) * (x.ndim - 1) + (-1,)) >= 0, x[..., source], 0))

    def shrink(self, outputs: np.ndarray | None, inputs: Sequence[np.ndarray | None]) -> Node:
        """The map between the remaining channels; a channel whose source is removed carries zeros."""
        (left,) = inputs
        source = self.source if outputs is None else tuple(self.source[i] for i in outputs)
        if left is not None:
            place = {int(channel): i for i, channel in enumerate(left)}
            source = tuple(place.get(channel, -1) for channel in source)
        return dataclasses.replace(self, source=source)


@dataclass(frozen=True)
class Concatenate(Node):
    """The channels of several nodes, one after the other; maps of equal height and width, or flat values.

    Args:
        sources: names of the nodes. Channels that are removed from one of them are missing here.
    """

    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.sources, tuple) or not self.sources:
            raise ValueError(f"node {self.name!r}: sources must be a tuple of names of nodes, got {self.sources!r}.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return self.sources

    def infer(self, inputs: Values) -> Value:
        """All channels, with a time axis if any input has one; spikes if all are."""
        shapes = [value.shape for value in inputs]
        if len({shape[:-1] for shape in shapes}) != 1:
            raise ValueError(f"concatenates maps of different sizes, {', '.join(map(str, shapes))}.")
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return Value(shape, any(value.timed for value in inputs), all(value.spiking for value in inputs))

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The concatenation of the last axes."""
        return Result(jnp.concatenate(inputs, axis=-1))

    def ties(self, inputs: Values) -> Sequence[np.ndarray]:
        """The channels of each input in turn, one to one."""
        sizes = [value.shape[-1] for value in inputs]
        starts = np.cumsum([0, *sizes])
        return [np.arange(n)[:, None] + [start, 0] for start, n in zip(starts, sizes, strict=False)]


@dataclass(frozen=True)
class Add(Node):
    """Sum of two nodes of equal shape."""

    first: str
    second: str

    uses_affine: ClassVar[bool] = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return (self.first, self.second)

    def infer(self, inputs: Values) -> Value:
        """The sum, with a time axis if either has one."""
        first, second = inputs
        if first.shape != second.shape:
            raise ValueError(f"adds {self.first!r} of shape {first.shape} to {self.second!r} of {second.shape}.")
        return Value(first.shape, first.timed or second.timed, spiking=False)

    def run(self, leaves: Leaves, inputs: Sequence[Numbers], context: Context) -> Result:
        """The sum."""
        first, second = inputs
        if context.affine:
            affine, other = (first, second) if isinstance(first, Affine) else (second, first)
            if isinstance(affine, Affine) and affine.residual is None:
                return Result(affine._replace(residual=other if isinstance(other, Spikes) else computed(other)))
        return Result(computed(first) + computed(second))

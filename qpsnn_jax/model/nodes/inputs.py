"""The input of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jax import Array

from qpsnn_jax.model.nodes.base import Channels, Context, Leaves, Node, Result, Value, Values
from qpsnn_jax.model.nodes.checks import flag_fields, tuple_fields


@dataclass(frozen=True)
class Input(Node):
    """The images; with ``frames`` event frames, which have a time axis.

    Args:
        shape: ``(h, w, c)`` of one image or frame.
        frames: whether the data have a time axis; otherwise the image is presented at every step.
        binary: whether every value that the network is given is 0 or 1, as in frames that mark events; this is not
            checked. Layers that read them then compute on spikes, and :func:`qpsnn_jax.cost` counts accumulates.
    """

    shape: tuple[int, int, int]
    frames: bool = False
    binary: bool = False

    channels: ClassVar[Channels] = "fixed"

    def __post_init__(self) -> None:
        tuple_fields(self, 3, "shape")
        flag_fields(self, "frames", "binary")

    def infer(self, inputs: Values) -> Value:
        """The images, unchanged."""
        del inputs
        return Value(self.shape, self.frames, self.binary)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The images, which the network passes as its one input."""
        return Result(inputs[0])

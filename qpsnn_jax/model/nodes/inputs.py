"""The input of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jax import Array

from qpsnn_jax.model.nodes.base import Channels, Context, Leaves, Node, Result, Value, Values
from qpsnn_jax.model.nodes.checks import tuple_fields


@dataclass(frozen=True)
class Input(Node):
    """The images; with ``frames`` event frames, which have a time axis.

    Args:
        shape: ``(h, w, c)`` of one image or frame.
        frames: whether the data have a time axis; otherwise the image is presented at every step.
    """

    shape: tuple[int, int, int]
    frames: bool = False

    channels: ClassVar[Channels] = "fixed"

    def __post_init__(self) -> None:
        tuple_fields(self, 3, "shape")

    def infer(self, inputs: Values) -> Value:
        """The images, unchanged."""
        del inputs
        return Value(self.shape, self.frames, spiking=False)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """The images, which the network passes as its one input."""
        return Result(inputs[0])

"""Fully connected layers, whose weights may be quantized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import lecun_normal

from qpsnn_jax.kernels.affine import Numbers, computed
from qpsnn_jax.kernels.products import einsum_spikes
from qpsnn_jax.model.nodes.base import Context, Leaf, Leaves, Result, Value, Values
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.model.nodes.weighted import Weighted


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

    def run(self, leaves: Leaves, inputs: Sequence[Numbers], context: Context) -> Result:
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

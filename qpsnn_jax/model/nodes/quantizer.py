"""How the weights of a layer are quantized."""

from dataclasses import dataclass
from typing import get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.model.nodes.checks import one_of
from qpsnn_jax.numerics.gamma import Gamma, GammaRule, Granularity, gamma_of
from qpsnn_jax.numerics.quantization import STE, Codes, GradientRule, codes, integer_weights
from qpsnn_jax.runtime.checks import integer


@dataclass(frozen=True)
class Quantizer:
    """How a layer's weights are quantized: the options of :func:`qpsnn_jax.quantize`.

    Args:
        bits: bits b of a weight, 1 to 8.
        gamma: the rule for γ: its name, or a function :data:`~qpsnn_jax.numerics.gamma.GammaRule` of W, b and the axes
            that share one γ.
        granularity: ``"layer"`` for one γ, ``"channel"`` for one per output channel.
        ste: the straight-through gradient: its name, or a function
            :data:`~qpsnn_jax.numerics.quantization.GradientRule` from dL/dŴ, W and γ to dL/dW.

    Raises:
        ValueError: ``bits`` is not an integer from 1 to 8, or an option is unknown.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10.
    """

    bits: int = 2
    gamma: Gamma | GammaRule = "mean"
    granularity: Granularity = "layer"
    ste: STE | GradientRule = "clipped"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", integer("bits", self.bits, 1, 8))
        one_of("gamma", self.gamma, get_args(Gamma), or_function=True)
        one_of("granularity", self.granularity, get_args(Granularity))
        one_of("ste", self.ste, get_args(STE), or_function=True)

    def gamma_of(self, kernel: Array) -> Array:
        """:func:`qpsnn_jax.gamma_of` of a kernel."""
        return gamma_of(kernel, self.bits, self.gamma, self.granularity)

    def integer_weights(self, kernel: Array, gain: ArrayLike = 1.0) -> tuple[Array, Array]:
        """:func:`qpsnn_jax.integer_weights` of a kernel; ``gain`` is one number, or one for each output channel."""
        gain = _over_outputs(gain, kernel)
        return integer_weights(
            kernel, self.bits, gamma=self.gamma, granularity=self.granularity, ste=self.ste, gain=gain
        )

    def codes(self, kernel: Array, gain: ArrayLike = 1.0) -> Codes:
        """:func:`qpsnn_jax.codes` of a kernel; ``gain`` as for :meth:`integer_weights`."""
        gain = _over_outputs(gain, kernel)
        return codes(kernel, self.bits, gamma=self.gamma, granularity=self.granularity, gain=gain)


def _over_outputs(gain: ArrayLike, kernel: Array) -> Array:
    return jnp.reshape(gain, (1,) * (kernel.ndim - 1) + (-1,))

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

    ``gamma`` and ``ste`` also take functions: :data:`~qpsnn_jax.numerics.gamma.GammaRule` from W, b and the axes that
    share a γ to γ, and :data:`~qpsnn_jax.numerics.quantization.GradientRule` from dL/dŴ, W and γ to dL/dW.

    Raises:
        ValueError: bits outside 1 to 8 or an unknown option.
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
        """:func:`qpsnn_jax.integer_weights` of a kernel; ``gain`` has one number, or one for each output channel."""
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

"""How the weights of a layer are quantized."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.model.nodes.checks import one_of
from qpsnn_jax.numerics.gamma import TERNARY, Gamma, GammaRule, Granularity, gamma_of
from qpsnn_jax.numerics.learned import lsq_gamma
from qpsnn_jax.numerics.levels import QuantizationStats, quantization_stats
from qpsnn_jax.numerics.quantization import STE, Codes, GradientRule, codes, integer_weights
from qpsnn_jax.runtime.checks import integer

_LEARNED = "learned"
TERNARY_BITS = 8 / 5


@dataclass(frozen=True)
class Quantizer:
    """How a layer's weights are quantized: the options of :func:`qpsnn_jax.quantize`.

    Args:
        bits: bits b of a weight, 1 to 8.
        gamma: the rule for γ: its name, or a function :data:`~qpsnn_jax.numerics.gamma.GammaRule` of W, b and the axes
            that share one γ. With ``"learned"``, γ is a parameter that starts as by the rule ``"mse"`` and is trained
            by LSQ (:func:`qpsnn_jax.lsq_gamma`).
        granularity: ``"layer"`` for one γ, ``"channel"`` for one per output channel.
        ste: the straight-through gradient: its name, or a function
            :data:`~qpsnn_jax.numerics.quantization.GradientRule` from dL/dŴ, W and γ to dL/dW.
        levels: None for 2^b levels; 3 for ternary weights, with ``bits=2``, stored at 1.6 bits, five in a byte.

    Raises:
        ValueError: ``bits`` is not an integer from 1 to 8, or an option is unknown.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10; learned γ: Esser et al., ICLR 2020.
    """

    bits: int = 2
    gamma: Gamma | Literal["learned"] | GammaRule = "mean"
    granularity: Granularity = "layer"
    ste: STE | GradientRule = "clipped"
    levels: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", integer("bits", self.bits, 1, 8))
        one_of("gamma", self.gamma, (*get_args(Gamma), _LEARNED), or_function=True)
        one_of("granularity", self.granularity, get_args(Granularity))
        one_of("ste", self.ste, get_args(STE), or_function=True)
        if self.levels is not None and (self.levels, self.bits) != (TERNARY, 2):
            raise ValueError(f"levels must be 3, with bits 2, or None, got {self.levels!r} with bits {self.bits}.")

    @property
    def top(self) -> int:
        """The largest code s; the integers are 2·code - s."""
        return (self.levels or 2**self.bits) - 1

    @property
    def stored_bits(self) -> float:
        """Bits that a weight takes in storage."""
        return self.bits if self.levels is None else TERNARY_BITS

    @property
    def scale_leaf(self) -> Literal["gain", "gamma"]:
        """The array of a layer that its γ depends on besides the weights: the gain on that of a rule, or γ itself."""
        return "gamma" if self.gamma == _LEARNED else "gain"

    def gamma_of(self, kernel: Array) -> Array:
        """:func:`qpsnn_jax.gamma_of` of a kernel; of a learned γ, its first value."""
        rule = "mse" if self.gamma == _LEARNED else self.gamma
        return gamma_of(kernel, self.bits, rule, self.granularity, levels=self.levels)

    def integer_weights(self, kernel: Array, scale: ArrayLike = 1.0) -> tuple[Array, Array]:
        """:func:`qpsnn_jax.integer_weights` of a kernel.

        Args:
            kernel: W, shape ``… o``.
            scale: the layer's :attr:`scale_leaf`, one number, or one for each output channel.
        """
        return integer_weights(kernel, self.bits, ste=self.ste, levels=self.levels, **self._gamma(kernel, scale))

    def codes(self, kernel: Array, scale: ArrayLike = 1.0) -> Codes:
        """:func:`qpsnn_jax.codes` of a kernel; ``scale`` as for :meth:`integer_weights`."""
        return codes(kernel, self.bits, levels=self.levels, **self._gamma(kernel, scale))

    def stats(self, kernel: Array, scale: ArrayLike = 1.0) -> QuantizationStats:
        """:func:`qpsnn_jax.quantization_stats` of a kernel; ``scale`` as for :meth:`integer_weights`."""
        return quantization_stats(kernel, self.bits, levels=self.levels, **self._gamma(kernel, scale))

    def _gamma(self, kernel: Array, scale: ArrayLike) -> dict[str, Any]:
        over_outputs = jnp.reshape(scale, (1,) * (kernel.ndim - 1) + (-1,))
        if self.gamma == _LEARNED:
            # Three levels have one that is positive, as two have.
            bits = self.bits if self.levels is None else 1
            return {"gamma": lsq_gamma(over_outputs, count=kernel.size // over_outputs.size, bits=bits)}
        return {"gamma": self.gamma, "granularity": self.granularity, "gain": over_outputs}

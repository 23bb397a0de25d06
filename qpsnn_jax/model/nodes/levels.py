"""Weights that keep their levels when others are removed, on which γ of a rule depends too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.model.nodes.base import Leaves
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.numerics.gamma import gamma_of
from qpsnn_jax.numerics.quantization import quantize

# Weights so much smaller than γ have no effect, and the quotient of γ and theirs may be too large for float32.
_SILENT = 1e-30


@partial(jax.jit, static_argnames="quantizer")
def same_levels(quantizer: Quantizer, gain: Array, before: Array, after: Array, outputs: np.ndarray) -> Leaves:
    """The gain, and the kernel, with which the remaining weights have the levels that they had among all."""
    old = quantizer.gamma_of(before).ravel()
    old = old[outputs] if quantizer.granularity == "channel" else old
    # No gain makes the old γ of weights that are zero, so they become what they were quantized to.
    largest = gamma_of(after, quantizer.bits, "max", quantizer.granularity).ravel()
    silent = (old > 0) & (largest <= _SILENT * old)
    gamma = jnp.where(old > 0, gain.astype(old.dtype) * old, 1)
    levels = quantize(after, quantizer.bits, gamma=gamma, levels=quantizer.levels)
    kernel = jnp.where(silent, levels, after)
    new = quantizer.gamma_of(kernel).ravel()
    ratio = jnp.where(new > 0, old / jnp.where(new > 0, new, 1), 1)
    return {"kernel": kernel, "gain": gain * ratio.astype(gain.dtype)}

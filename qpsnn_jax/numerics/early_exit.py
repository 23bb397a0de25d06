"""Early exit: a prediction is made at the first time step at which it is clear."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

_LARGEST = 2**32 - 1  # difference of two int32


class EarlyExit(NamedTuple):
    """Predicted classes and the number of time steps that each took, int32, shape ``…``."""

    predictions: Array
    steps: Array


def early_exit(currents: ArrayLike, threshold: ArrayLike) -> EarlyExit:
    r"""Predictions at the first step at which the margin of the accumulated currents reaches a threshold.

    With :math:`A_k[t] = \sum_{s ≤ t} O_k[s]`, an example leaves at the first t where

    .. math:: \max_k A_k[t] - \mathrm{second}_k A_k[t] ≥ m,

    and at T where there is none. Its prediction is the largest :math:`A_k` at that step; at T that is the prediction of
    the whole network.

    Args:
        currents: O, shape ``… t classes``, of at least two classes: floating, or integers of up to 32 bits with sign,
            as from :meth:`qpsnn_jax.IntegerNetwork.by_step`, whose sums are int32.
        threshold: m, in the unit of the currents; a number, or an array that broadcasts against ``…``. With integers
            an integer too, such as :meth:`qpsnn_jax.IntegerNetwork.margin` returns.

    Returns:
        :class:`EarlyExit` of predictions and steps, from 1 to T.

    Raises:
        ValueError: fewer than two classes, no step, wider integers, or a floating threshold of integers.
    """
    currents = jnp.asarray(currents)
    steps, classes = currents.shape[-2:] if currents.ndim > 1 else (0, 0)
    if classes < 2 or not steps:
        raise ValueError(f"early_exit compares two classes at some step, got currents of shape {currents.shape}.")
    whole = jnp.issubdtype(currents.dtype, jnp.integer)
    if not whole and not jnp.issubdtype(currents.dtype, jnp.floating):
        raise ValueError(f"early_exit takes floating or integer currents, got {currents.dtype}.")
    if whole and not jnp.can_cast(currents.dtype, jnp.int32):
        raise ValueError(f"early_exit takes integers of up to 32 bits with sign, got {currents.dtype}.")
    accumulated = jnp.cumsum(currents, axis=-2, dtype=jnp.int32 if whole else currents.dtype)
    best, second = jnp.moveaxis(jax.lax.top_k(accumulated, 2)[0], -1, 0)
    margin = best - second
    if whole:
        threshold = threshold if isinstance(threshold, Tracer) else np.asarray(threshold)
        if not np.issubdtype(threshold.dtype, np.integer):
            raise ValueError(f"early_exit needs an integer threshold for currents of {currents.dtype}.")
        margin = margin.astype(jnp.uint32)
        if isinstance(threshold, Tracer):
            threshold = jnp.maximum(threshold, 0)
        else:  # a larger one is never reached, as this one is not
            threshold = np.minimum(np.maximum(threshold, 0).astype(np.uint64), _LARGEST).astype(np.uint32)
    least = jnp.broadcast_to(jnp.asarray(threshold, margin.dtype), currents.shape[:-2])
    clear = margin >= least[..., None]
    index = jnp.where(jnp.any(clear, axis=-1), jnp.argmax(clear, axis=-1), steps - 1)
    at = jnp.take_along_axis(accumulated, index[..., None, None], axis=-2)[..., 0, :]
    return EarlyExit(jnp.argmax(at, axis=-1).astype(jnp.int32), (index + 1).astype(jnp.int32))

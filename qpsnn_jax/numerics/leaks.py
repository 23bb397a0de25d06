"""Decay factors of membranes that integers have: a shift, or what a shift leaves."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

MOST_SHIFT = 8
SHIFTS = np.arange(MOST_SHIFT + 1, dtype=np.int32)
# Half and 1 are 2^-k, and 0 is 1 - 2^-0.
LEAKS = np.concatenate([2.0**-SHIFTS, 1 - 2.0**-SHIFTS])

_GRID = np.unique(LEAKS)
_MIDDLES = (_GRID[1:] + _GRID[:-1]) / 2


def nearest_leak(tau: float | np.ndarray) -> float | np.ndarray:
    """The nearest of 2⁻ᵏ and 1 - 2⁻ᵏ, k from 0 to 8, to a decay factor τ, or to each of several."""
    found = _GRID[np.searchsorted(_MIDDLES, tau)]
    return found if np.ndim(tau) else float(found)


def round_leak(tau: Array) -> Array:
    """:func:`nearest_leak` of decay factors that are trained; its derivative by τ is 1."""
    # Each is exact in every floating dtype, and so is a sum with 0.
    grid, middles = (jnp.asarray(x, tau.dtype) for x in (_GRID, _MIDDLES))
    below = jnp.expand_dims(middles, range(tau.ndim)) < tau[..., None]
    return grid[jnp.sum(below, -1)] + (tau - jax.lax.stop_gradient(tau))

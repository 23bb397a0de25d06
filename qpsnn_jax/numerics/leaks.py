"""Decay factors of membranes that integers have: a shift, or what a shift leaves. Uses only NumPy."""

import numpy as np

MOST_SHIFT = 8
SHIFTS = np.arange(MOST_SHIFT + 1, dtype=np.int32)
# Half and 1 are 2^-k, and 0 is 1 - 2^-0.
LEAKS = np.concatenate([2.0**-SHIFTS, 1 - 2.0**-SHIFTS])

# In order, and the middles between neighbors.
GRID = np.unique(LEAKS)
MIDDLES = (GRID[1:] + GRID[:-1]) / 2


def nearest_leak(tau: float | np.ndarray) -> float | np.ndarray:
    """The nearest of 2⁻ᵏ and 1 - 2⁻ᵏ, k from 0 to 8, to a decay factor τ, or to each of several."""
    found = GRID[np.searchsorted(MIDDLES, tau)]
    return found if np.ndim(tau) else float(found)

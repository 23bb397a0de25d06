"""The membranes of integer neurons in floating numbers, written apart from the package's shifts."""

import numpy as np

from qpsnn_jax.export.constants import Constants
from qpsnn_jax.export.folded_layers import Neurons


def membranes_of(layer: Neurons, constants: Constants, driven: np.ndarray, timesteps: int) -> np.ndarray:
    """Membranes before the reset, float64 integers ``b t h w o``, from currents ``b t h w o`` or with t = 1."""
    found, left, fired = [], np.float64(0), np.False_
    for step in range(timesteps):
        charged = leaked(layer.tau, left) + driven[:, min(step, driven.shape[1] - 1)]
        if layer.reset == "delayed":
            charged = charged - fired * constants.taken
        fired = charged >= constants.threshold
        found.append(charged)
        left = {"hard": charged * ~fired, "soft": charged - fired * constants.taken, "delayed": charged}[layer.reset]
    return np.stack(found, axis=1)


def leaked(tau: float | np.ndarray, membranes: np.ndarray) -> np.ndarray:
    """τV: rounded down where τ is a power of two, else up, as it is V less a power of two of it."""
    powers = np.isin(tau, 2.0 ** -np.arange(9))
    return np.where(powers, np.floor(tau * membranes), np.ceil(tau * membranes))

r"""One step of spiking neurons in integers: leak by shifts, charge, fire, reset. Uses only NumPy.

A membrane V leaks to :math:`\lfloor V/2^k \rfloor` or to :math:`V - \lfloor V/2^k \rfloor`, which is τV for
:math:`τ = 2^{-k}` and :math:`τ = 1 - 2^{-k}`, among them ½ and, for integrate-and-fire neurons, 1.
Without a leak a membrane grows with the number of steps. It saturates at ±2³⁰, which it reaches in none of the T steps
of an image; a stream may run on.
"""

from typing import NamedTuple

import numpy as np

from qpsnn_jax.numerics.leaks import LEAKS, MOST_SHIFT, SHIFTS, nearest_leak


class Leak(NamedTuple):
    """The leak of each channel, or one for all: ``shift`` k, and whether V less its shift is left, ``rest``."""

    shift: np.ndarray
    rest: np.ndarray

    @classmethod
    def of(cls, tau: float | np.ndarray) -> "Leak":
        """That of τ.

        Raises:
            ValueError: no shift expresses it exactly.
        """
        values = np.asarray(tau, np.float64)
        known = values[..., None] == LEAKS
        if not (found := known.any(-1)).all():
            wrong = float(values[~found].flat[0])
            if not np.isfinite(wrong):
                raise ValueError(f"a decay factor τ is {wrong:g}, which is no finite number.")
            raise ValueError(
                f"a decay factor τ of {wrong:.7g} is not exact in integers; those of 2^-k and 1 - 2^-k with k from 0 "
                f"to {MOST_SHIFT} are, the nearest is {nearest_leak(wrong):g}. "
                "Neurons with round_tau=True train with one of them."
            )
        place = known.argmax(-1)
        return cls(SHIFTS[place % len(SHIFTS)], place >= len(SHIFTS))

    def __call__(self, membranes: np.ndarray) -> np.ndarray:
        """What is left of membranes ``… o``; both forms round by less than 1."""
        shifted = membranes >> self.shift
        return np.where(self.rest, membranes - shifted, shifted)

    def gain(self, timesteps: int) -> np.ndarray:
        """At least how often a constant current adds up, 1/(1 - τ); without a leak in so many steps."""
        kept = np.where(self.rest, 1 << self.shift, 2)
        return np.where(~self.rest & (self.shift == 0), timesteps, kept)


class Cell(NamedTuple):
    """Leak and reset of a layer: to zero (``"hard"``), by θ (``"soft"``), or by θ one step later (``"delayed"``)."""

    leak: Leak
    reset: str

    @property
    def plain(self) -> bool:
        """Whether the membranes leak to ½ and are reset to zero."""
        return self.reset == "hard" and not self.leak.rest.any() and bool((self.leak.shift == 1).all())

    @property
    def limit(self) -> int:
        """What membranes stay below: 2³¹; if they are not plain 2³⁰, where they saturate."""
        return 2**31 if self.plain else 2**30

    def step(
        self, membranes: np.ndarray, current: np.ndarray, threshold: np.ndarray, taken: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Membranes after a step, int32 ``… o``, and its spikes, bool.

        Args:
            membranes: after the step before; with the delayed reset they still hold what its spikes take.
            current: int32 ``… o``.
            threshold: of each channel.
            taken: θ of each channel, which a spike takes off.
        """
        left = self.leak(membranes)
        if self.reset == "delayed":
            left = left - np.where(membranes >= threshold, taken, 0)
        charged = left + current
        if not self.plain:
            charged = np.clip(charged, -self.limit, self.limit)
        fired = charged >= threshold
        if self.reset == "delayed":
            return charged, fired
        return np.where(fired, charged - taken if self.reset == "soft" else 0, charged), fired

"""Spiking neurons."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jax import Array

from qpsnn_jax.kernels import neurons as native_neurons
from qpsnn_jax.model.nodes.base import (
    Activity,
    Context,
    Count,
    Leaves,
    Result,
    Unary,
    Value,
    Values,
    mean_nonzero,
)
from qpsnn_jax.model.nodes.checks import float_fields, one_of
from qpsnn_jax.numerics.neurons import LIFTrace, Reset, lif_trace
from qpsnn_jax.numerics.surrogate import SURROGATES, Fire, Surrogate

_MEMBRANE_BITS = 32


@dataclass(frozen=True)
class Neuron(Unary, ABC):
    """Base of all spiking neurons. A subclass adds its options as fields and defines :meth:`trace`."""

    fires: ClassVar[bool] = True

    @abstractmethod
    def trace(self, leaves: Leaves, currents: Array) -> LIFTrace:
        """Spikes and membranes ``b t …`` from its arrays by name and currents ``b t …``."""

    @property
    def observed(self) -> tuple[str, ...]:
        """Itself."""
        return (self.name,)

    def infer(self, inputs: Values) -> Value:
        """Spikes over time, of its input's shape."""
        return Value(inputs[0].shape, timed=True, spiking=True)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """Its spikes; the trace holds its membranes too."""
        del context
        trace = self.trace(leaves, inputs[0])
        return Result(trace.spikes, trace)

    def count(self, inputs: Values, activity: Activity, timesteps: int) -> Count:
        """One update of each membrane per step, which reads and writes it."""
        rate = None if activity.own is None else float(np.mean(activity.own))
        updates = timesteps * math.prod(inputs[0].shape)
        return Count(firing_rate=rate, updates=updates, traffic_bits=2 * _MEMBRANE_BITS * updates)

    def measure(self, value: Value, captured: Any) -> Array:
        """The firing rate of each neuron: mean spikes per image and step."""
        return mean_nonzero(captured.spikes, value)


@dataclass(frozen=True)
class LIF(Neuron):
    """Leaky integrate-and-fire neurons: the options of :func:`qpsnn_jax.lif`; ``surrogate`` is a name or a function."""

    tau: float = 0.5
    threshold: float = 1.0
    fire: Fire = ">="
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: str | Surrogate = "triangular"

    def __post_init__(self) -> None:
        float_fields(self, "tau", "threshold")
        one_of("fire", self.fire, (">=", ">"))
        one_of("reset", self.reset, ("hard", "soft"))
        one_of("surrogate", self.surrogate, SURROGATES, or_function=True)

    def trace(self, leaves: Leaves, currents: Array) -> LIFTrace:
        """:func:`qpsnn_jax.lif_trace` of the currents."""
        del leaves
        return lif_trace(currents, **self._cell())

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """Its spikes; by a native kernel where there is one, unless the precision is ``exact``."""
        if context.precision == "exact":
            return super().run(leaves, inputs, context)
        trace = native_neurons.lif_trace(inputs[0], **self._cell())
        return Result(trace.spikes, trace)

    def _cell(self) -> dict[str, Any]:
        surrogate = SURROGATES[self.surrogate] if isinstance(self.surrogate, str) else self.surrogate
        names = ("tau", "threshold", "fire", "reset", "detach_reset")
        return {"surrogate": surrogate} | {name: getattr(self, name) for name in names}

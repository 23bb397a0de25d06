"""Spiking neurons."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import zeros

from qpsnn_jax.kernels import neurons as native_neurons
from qpsnn_jax.kernels.affine import Affine, computed
from qpsnn_jax.model.nodes.base import (
    Activity,
    Context,
    Count,
    Leaf,
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
_LEARNED = "learned"


@dataclass(frozen=True)
class Neuron(Unary, ABC):
    """Base of all spiking neurons. A subclass adds its options as fields and defines :meth:`trace`."""

    fires: ClassVar[bool] = True

    @abstractmethod
    def trace(self, leaves: Leaves, currents: Array, state: Any) -> tuple[Any, LIFTrace]:
        """Its state after the last step, and its spikes and membranes ``b t …``.

        Args:
            leaves: its arrays by name.
            currents: ``b t …``.
            state: that after the step before the first, None at rest.
        """

    @property
    def observed(self) -> tuple[str, ...]:
        """Itself."""
        return (self.name,)

    def infer(self, inputs: Values) -> Value:
        """Spikes over time, of its input's shape."""
        return Value(inputs[0].shape, timed=True, spiking=True)

    def rest(self, inputs: Values, batch: int, dtype: Any) -> Any:
        """Membrane potentials of zero, ``b …``."""
        return jnp.zeros((batch, *inputs[0].shape), dtype)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """Its spikes; the trace holds its membranes too."""
        state, trace = self.trace(leaves, inputs[0], context.state)
        return Result(trace.spikes, trace, state=state)

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
    """Leaky integrate-and-fire neurons: the options of :func:`qpsnn_jax.lif`; ``surrogate`` is a name or a function.

    τ and θ may be ``"learned"``, one parameter each for the layer: :math:`τ = sigmoid(a)` from ``tau_logit`` a = 0, as
    in PLIF (Fang et al., ICCV 2021), and :math:`θ = e^v` from ``log_threshold`` v = 0.
    """

    tau: float | Literal["learned"] = 0.5
    threshold: float | Literal["learned"] = 1.0
    fire: Fire = ">="
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: str | Surrogate = "triangular"

    uses_affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        float_fields(self, *(name for name in ("tau", "threshold") if getattr(self, name) != _LEARNED))
        one_of("fire", self.fire, (">=", ">"))
        one_of("reset", self.reset, ("hard", "soft"))
        one_of("surrogate", self.surrogate, SURROGATES, or_function=True)

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """``tau_logit`` and ``log_threshold``, where τ and θ are learned."""
        del inputs
        names = {"tau_logit": self.tau, "log_threshold": self.threshold}
        return {name: Leaf((1,), zeros, (None,)) for name, value in names.items() if value == _LEARNED}

    def constants(self, leaves: Leaves) -> dict[str, Any]:
        """``tau`` and ``threshold``, numbers, or scalar arrays where they are learned."""
        return {
            "tau": jax.nn.sigmoid(leaves["tau_logit"][0]) if self.tau == _LEARNED else self.tau,
            "threshold": jnp.exp(leaves["log_threshold"][0]) if self.threshold == _LEARNED else self.threshold,
        }

    def trace(self, leaves: Leaves, currents: Array, state: Any) -> tuple[Any, LIFTrace]:
        """:func:`qpsnn_jax.lif_trace` of the currents."""
        return lif_trace(currents, initial=state, **self._cell(leaves))

    def run(self, leaves: Leaves, inputs: Sequence[Array | Affine], context: Context) -> Result:
        """Its spikes; by a native kernel where there is one, unless τ or θ is learned or the precision is ``exact``."""
        # A subclass may trace otherwise.
        if leaves or context.precision == "exact" or type(self).trace is not _LIF_TRACE:
            return super().run(leaves, [computed(x) for x in inputs], context)
        state, trace = native_neurons.lif_trace(inputs[0], context.state, **self._cell(leaves))
        return Result(trace.spikes, trace, state=state)

    def _cell(self, leaves: Leaves) -> dict[str, Any]:
        surrogate = SURROGATES[self.surrogate] if isinstance(self.surrogate, str) else self.surrogate
        names = ("fire", "reset", "detach_reset")
        return {"surrogate": surrogate} | self.constants(leaves) | {name: getattr(self, name) for name in names}


_LIF_TRACE = LIF.trace

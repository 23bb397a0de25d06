"""Spiking neurons."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import zeros

from qpsnn_jax.kernels import neurons as native_neurons
from qpsnn_jax.kernels.affine import Numbers, computed
from qpsnn_jax.model.nodes.base import (
    Activity,
    Context,
    Count,
    Leaf,
    Leaves,
    Node,
    Result,
    Unary,
    Value,
    Values,
    mean_nonzero,
)
from qpsnn_jax.model.nodes.checks import flag_fields, float_fields, name_field
from qpsnn_jax.numerics.gamma import Granularity
from qpsnn_jax.numerics.leaks import nearest_leak
from qpsnn_jax.numerics.learned import round_leak
from qpsnn_jax.numerics.neurons import LEAK_OF_OTHERS, LIFTrace, Reset, lif_trace
from qpsnn_jax.numerics.surrogate import SURROGATES, Fire, Surrogate

_MEMBRANE_BITS = 32
_NUMBER_BITS = 32
_LEARNED = "learned"
_LEAKS = {"least": 0, "most": 1}


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

    τ is the decay factor of the membrane potential, from 0 to 1: snnTorch's β. For a time constant T of SpikingJelly it
    is 1 - 1/T with ``decay_input=False``; with its default, ``decay_input=True``, which divides the input by T,
    multiply θ by T too (hard reset to 0). τ and θ are numbers, or tuples with one for each channel. They may be
    ``"learned"``: :math:`τ = sigmoid(a)` from ``tau_logit`` a = 0, as in PLIF (Fang et al., ICCV 2021), and
    :math:`θ = e^v` from ``log_threshold`` v = 0, one parameter each for the layer, or with ``granularity="channel"``
    for each channel. With ``round_tau`` τ, learned or not, is rounded to the nearest 2⁻ᵏ or 1 - 2⁻ᵏ, k from 0 to 8, as
    integers need it; the gradient passes straight through, and a learned τ stays below 1.
    """

    tau: float | tuple[float, ...] | Literal["learned"] = 0.5
    threshold: float | tuple[float, ...] | Literal["learned"] = 1.0
    fire: Fire = ">="
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: str | Surrogate = "triangular"
    granularity: Granularity = "layer"
    round_tau: bool = False

    uses_affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("tau", "threshold"):
            values = getattr(self, name)
            if isinstance(values, list | np.ndarray) and np.ndim(values):
                object.__setattr__(self, name, values := tuple(np.asarray(values).tolist()))
            if isinstance(values, str) and values == _LEARNED:
                continue
            try:
                float_fields(self, name, **(_LEAKS if name == "tau" else {}), each=isinstance(values, tuple))
            except ValueError as error:
                more = f"a tuple has one for each channel, and {_LEARNED!r} trains it"
                more += f"; τ is {LEAK_OF_OTHERS}" if name == "tau" else ""
                raise ValueError(f"{str(error).removesuffix('.')}; {more}.") from None
        name_field(self, "fire", (">=", ">"))
        name_field(self, "reset", get_args(Reset))
        flag_fields(self, "detach_reset", "round_tau")
        name_field(self, "surrogate", SURROGATES, or_function=True)
        name_field(self, "granularity", get_args(Granularity))

    @property
    def learned(self) -> tuple[str, ...]:
        """Which of ``tau`` and ``threshold`` are learned."""
        return tuple(field for field in ("tau", "threshold") if getattr(self, field) == _LEARNED)

    def infer(self, inputs: Values) -> Value:
        """Spikes over time, of its input's shape."""
        channels = inputs[0].shape[-1]
        for name in ("tau", "threshold"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(f"{name} has {len(value)} numbers, and its input has {channels} channels.")
        return super().infer(inputs)

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """``tau_logit`` and ``log_threshold``, where τ and θ are learned."""
        by_channel = self.granularity == "channel"
        shape, axes = (inputs[0].shape[-1:], (self.name,)) if by_channel else ((1,), (None,))
        names = {"tau": "tau_logit", "threshold": "log_threshold"}
        return {names[field]: Leaf(shape, zeros, axes) for field in self.learned}

    def shrink(self, outputs: np.ndarray | None, inputs: Sequence[np.ndarray | None]) -> Node:
        """The node with the τ and θ of the remaining channels."""
        del inputs
        values = {name: getattr(self, name) for name in ("tau", "threshold")}
        if outputs is None:
            return self
        left = {name: tuple(v[i] for i in outputs) for name, v in values.items() if isinstance(v, tuple)}
        return dataclasses.replace(self, **left)

    def count(self, inputs: Values, activity: Activity, timesteps: int) -> Count:
        """That of all neurons, and the τ and θ that each channel has its own of."""
        tuples = [value for value in (self.tau, self.threshold) if isinstance(value, tuple)]
        bits = _NUMBER_BITS * sum(map(len, tuples))
        return super().count(inputs, activity, timesteps)._replace(buffer_bits=bits)

    def constants(self, leaves: Leaves) -> dict[str, Any]:
        """``tau`` and ``threshold`` as it computes: numbers, scalar arrays where learned, or arrays by channel."""
        if self.tau == _LEARNED:
            tau = _learned_leak(_of_layer(leaves["tau_logit"]), self.round_tau)
        else:
            tau = _numbers(self.tau)
            tau = nearest_leak(tau) if self.round_tau else tau
        if self.threshold == _LEARNED:
            threshold = jnp.exp(_of_layer(leaves["log_threshold"]))
        else:
            threshold = _numbers(self.threshold)
        return {"tau": tau, "threshold": threshold}

    def trace(self, leaves: Leaves, currents: Array, state: Any) -> tuple[Any, LIFTrace]:
        """:func:`qpsnn_jax.lif_trace` of the currents."""
        cell = self._cell(leaves)
        constants = {name: native_neurons.of_step(cell[name], currents) for name in ("tau", "threshold")}
        return lif_trace(currents, initial=state, **cell | constants)

    def run(self, leaves: Leaves, inputs: Sequence[Numbers], context: Context) -> Result:
        """Its spikes; by a native kernel where there is one, if the precision is ``auto``."""
        # A subclass may trace otherwise.
        if context.precision == "exact" or type(self).trace is not _LIF_TRACE:
            return super().run(leaves, [computed(x) for x in inputs], context)
        state, trace, spikes = native_neurons.lif_trace(inputs[0], context.state, **self._cell(leaves))
        return Result(spikes, trace, state=state)

    def _cell(self, leaves: Leaves) -> dict[str, Any]:
        surrogate = SURROGATES[self.surrogate] if isinstance(self.surrogate, str) else self.surrogate
        names = ("fire", "reset", "detach_reset")
        return {"surrogate": surrogate} | self.constants(leaves) | {name: getattr(self, name) for name in names}


def _learned_leak(logit: Array, rounded: bool) -> Array:
    if not rounded:
        return jax.nn.sigmoid(logit)
    # As the export reads it: in half precision, another one could be the nearest.
    wide = logit.astype(np.promote_types(logit.dtype, np.float32))
    return round_leak(jax.nn.sigmoid(wide)).astype(logit.dtype)


def _of_layer(leaf: Array) -> Array:
    """One number for the layer as a scalar."""
    return leaf[0] if leaf.shape == (1,) else leaf


def _numbers(value: float | tuple[float, ...]) -> Any:
    return np.asarray(value, np.float64) if isinstance(value, tuple) else value


_LIF_TRACE = LIF.trace

"""The neurons of SpikingJelly, multi-step, in the PyTorch network of the benchmarks."""

from typing import Any

from spikingjelly.activation_based import neuron, surrogate  # pyright: ignore[reportMissingImports]

from qpsnn_jax.model.nodes import LIF


def neurons(currents: Any, node: LIF, timesteps: int, timed: bool) -> Any:
    """:func:`experiments.benchmarks.torch_network.neurons` by SpikingJelly's LIF layer, all steps in one call."""
    tau: Any = node.tau
    layer = neuron.LIFNode(
        tau=1 / (1 - float(tau)),  # SpikingJelly's membranes keep 1 - 1/tau
        decay_input=False,
        v_threshold=node.threshold,
        v_reset=0.0,
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),  # the triangle of width 1
        step_mode="m",
    )
    steps = currents.unflatten(0, (timesteps, -1)) if timed else currents.expand(timesteps, *currents.shape)
    return layer(steps).flatten(0, 1)

"""What a network costs: parameters, bytes, operations and energy, per node and in total."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from qpsnn_jax.kernels.geometry import Geometry
from qpsnn_jax.model.graph import LIF, Attention, BatchNorm, Conv, Dense, Graph
from qpsnn_jax.model.network import AttentionTrace, Reducer
from qpsnn_jax.numerics.neurons import LIFTrace
from qpsnn_jax.numerics.quantization import integer_weights

_FULL_PRECISION_BITS = 32


@dataclass(frozen=True)
class Energy:
    """Energy of an operation in pJ; the default is float32 in 45 nm CMOS (Horowitz, ISSCC 2014).

    ``memory_pj_per_byte`` prices the bytes of :attr:`Cost.traffic_bytes`; 0, the default, leaves memory out as the
    paper does.
    """

    mac_pj: float = 4.6
    ac_pj: float = 0.9
    memory_pj_per_byte: float = 0.0


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node for one image over all time steps.

    ``params`` counts those of Eq. 16 and ``size_bits`` their bits; ``quantized`` those that are quantized. ``dense`` is
    the number of multiply-accumulates a dense device makes (padding counts nothing). ``macs`` and ``acs`` are those
    with a non-zero input: ``acs`` when every input is 0 or 1, else ``macs``; None where the activity is not known.
    Those of an :class:`~qpsnn_jax.model.graph.Attention` are counted as :func:`qpsnn_jax.model.network.attention`
    computes it, the factor left out: a power of two, or part of the next layer's scale. ``updates`` counts neuron
    updates, ``traffic_bits`` what is moved: every weight once a step, a 32-bit membrane in and out for every update.
    ``buffer_bits`` are stored besides Eq. 16: running mean and variance, and a 32-bit scale per quantized layer or
    channel.
    """

    name: str
    kind: str
    params: int
    quantized: int
    size_bits: int
    dense: int
    macs: float | None
    acs: float | None
    firing_rate: float | None = None
    connections: int = 0
    updates: int = 0
    traffic_bits: int = 0
    buffer_bits: int = 0


@dataclass(frozen=True)
class Cost:
    """Costs of all nodes that have any, and their totals for one image."""

    nodes: tuple[NodeCost, ...]
    timesteps: int
    energy: Energy

    @property
    def params(self) -> int:
        """Parameters of Eq. 16: weights, biases, batch-norm weight and bias."""
        return sum(node.params for node in self.nodes)

    @property
    def quantized(self) -> int:
        """Quantized weights among them."""
        return sum(node.quantized for node in self.nodes)

    @property
    def connections(self) -> int:
        """Weights of all convolutions but those that read the image, the ones a quantized network quantizes."""
        return sum(node.connections for node in self.nodes)

    @property
    def size_bytes(self) -> int:
        """Model size of Eq. 16, rounded up to whole bytes."""
        return -(-sum(node.size_bits for node in self.nodes) // 8)

    @property
    def footprint_bytes(self) -> int:
        """All that must be stored: Eq. 16, running statistics and scales (NeuroBench's footprint, weights packed)."""
        return -(-sum(node.size_bits + node.buffer_bits for node in self.nodes) // 8)

    @property
    def sops_total(self) -> float | None:
        """Synaptic operations: one for each spike at each synapse it reaches, over all time steps."""
        return _total(node.acs for node in self.nodes)

    @property
    def sops_per_step(self) -> float | None:
        """Synaptic operations divided by the number of time steps."""
        return None if self.sops_total is None else self.sops_total / self.timesteps

    @property
    def macs_total(self) -> float | None:
        """Multiply-accumulates on real-valued inputs, over all time steps; a static image's first layer once."""
        return _total(node.macs for node in self.nodes)

    @property
    def neuron_updates(self) -> int:
        """Membrane updates: neurons times time steps."""
        return sum(node.updates for node in self.nodes)

    @property
    def traffic_bytes(self) -> float:
        """Bytes of weights and membranes moved: each weight once a step, each membrane in and out at each update."""
        return sum(node.traffic_bits for node in self.nodes) / 8

    @property
    def energy_mj(self) -> float | None:
        """Energy in mJ, ``mac_pj · MACs + ac_pj · SOPs``, and ``memory_pj_per_byte · bytes`` where that is priced."""
        if self.sops_total is None or self.macs_total is None:
            return None
        moved = self.energy.memory_pj_per_byte * self.traffic_bytes
        return 1e-9 * (self.energy.mac_pj * self.macs_total + self.energy.ac_pj * self.sops_total + moved)

    @property
    def activation_sparsity(self) -> float | None:
        """Share of neurons and steps without a spike, over all LIF layers (NeuroBench's definition)."""
        layers = [node for node in self.nodes if node.updates]
        spikes = _total(None if node.firing_rate is None else node.firing_rate * node.updates for node in layers)
        return None if spikes is None else 1 - spikes / max(1, self.neuron_updates)

    @property
    def firing_rates(self) -> dict[str, float]:
        """Mean spikes per neuron and step of every LIF layer whose activity is known."""
        return {node.name: node.firing_rate for node in self.nodes if node.firing_rate is not None}


def activity_reducers(graph: Graph) -> dict[str, Reducer]:
    """Reducers for ``capture`` that measure what :func:`cost` needs: how often each value is not zero.

    Each gives the mean over batch and time of (value ≠ 0), shape ``h w c`` or ``c``, for the inputs of the weighted
    layers and for the LIF layers; for an attention the mean of its operations. Average the results over batches of
    equal size.
    """
    known = set() if graph.input.frames else {graph.input.name}
    inputs = {node.input for node in graph.nodes if isinstance(node, Conv | Dense)} - known
    neurons = {node.name for node in graph.nodes if isinstance(node, LIF)}
    attentions = {node.name for node in graph.nodes if isinstance(node, Attention)}
    return dict.fromkeys(sorted(inputs | neurons), _nonzero) | dict.fromkeys(attentions, _operations)


def cost(graph: Graph, activity: Mapping[str, Any] | None = None, *, energy: Energy | None = None) -> Cost:
    r"""Cost of a network for one image.

    Size is Eq. 16, :math:`\sum q_i b_i + 32 \sum f_i` bits: quantized weights at b bits, everything else at 32; running
    statistics and γ are not counted. A synaptic operation is one non-zero input at one synapse, exact at the borders.

    Args:
        graph: the network.
        activity: as measured with :func:`activity_reducers`, or a mean firing rate in place of a map, such as
            :attr:`Cost.firing_rates`; operations that depend on what is left out are None.
        energy: pJ per MAC and AC; 45 nm when left out.

    Returns:
        A :class:`Cost`.

    Raises:
        ValueError: an activity map whose shape is not that of its node, or of a node that is not there.

    References:
        QP-SNN (ICLR 2025), Eq. 16 and section 5; operations as in NeuroBench (Yik et al., 2025).
    """
    activity = activity or {}
    if unknown := [name for name in activity if name not in graph.by_name]:
        raise ValueError(f"activity names {unknown[0]!r}, which is no node of the graph.")
    nodes = [
        _node_cost(graph, node, activity)
        for node in graph.nodes
        if isinstance(node, Conv | Dense | BatchNorm | LIF | Attention)
    ]
    return Cost(tuple(nodes), graph.timesteps, energy or Energy())


def sops_reducers(graph: Graph) -> dict[str, Reducer]:
    r"""Reducers for ``capture`` whose sum is the number of synaptic operations per image, as a differentiable penalty.

    Each gives :math:`\frac1B \sum_{b,t,h,w,c} S\, n_{h,w}` with n the synapses that a spike at a position reaches in
    all the layers that read it, or the operations of an attention; gradients flow through the surrogate.

    Args:
        graph: the network.

    Returns:
        Reducers by the name of the spiking node, for the ``penalty`` of :func:`qpsnn_jax.make_train_step`.
    """
    synapses: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if isinstance(node, Conv | Dense) and graph.values[node.input].spiking:
            reached = node.features * _reach(node, graph.values[node.input].shape).astype(np.float32)
            synapses[node.input] = synapses.get(node.input, 0) + reached
    attentions = {
        node.name: _operations_per_image
        for node in graph.nodes
        if isinstance(node, Attention) and all(graph.values[name].spiking for name in node.inputs)
    }
    return {name: partial(_synaptic_operations, reached=reached) for name, reached in synapses.items()} | attentions


def connection_sparsity(graph: Graph, variables: Mapping[str, Any]) -> float:
    """Share of the weights of all layers that are zero, as they act: quantized where a layer is.

    ReScaW's grid has no zero, so it is 0 for a network that is quantized throughout; channels that were removed are not
    weights any more and do not count.

    References:
        NeuroBench (Yik et al., 2025), connection sparsity.
    """
    layers = [node for node in graph.nodes if isinstance(node, Conv | Dense)]
    zeros = total = 0
    for node in layers:
        kernel, quantizer = jnp.asarray(variables["params"][node.name]["kernel"]), node.quantizer
        if quantizer is not None:
            kernel, _ = integer_weights(
                kernel, quantizer.bits, gamma=quantizer.gamma, granularity=quantizer.granularity
            )
        zeros, total = zeros + int(jnp.sum(kernel == 0)), total + kernel.size
    return zeros / max(1, total)


def _synaptic_operations(value: Any, reached: np.ndarray) -> Any:
    spikes = value.spikes if isinstance(value, LIFTrace) else value
    per_position = jnp.sum(spikes, axis=-1)
    lead = (1,) * (per_position.ndim - reached.ndim)
    return jnp.sum(per_position * reached.reshape(lead + reached.shape)) / spikes.shape[0]


def _node_cost(graph: Graph, node: Any, activity: Mapping[str, Any]) -> NodeCost:
    kind, channels = type(node).__name__, graph.values[node.name].shape[-1]
    if isinstance(node, LIF):
        nonzero = _measured(activity, node.name, graph.values[node.name].shape)
        rate = None if nonzero is None else float(np.mean(nonzero))
        updates = graph.timesteps * int(np.prod(graph.values[node.name].shape))
        return NodeCost(node.name, kind, 0, 0, 0, 0, 0.0, 0.0, rate, updates=updates, traffic_bits=64 * updates)
    if isinstance(node, BatchNorm):
        bits = 2 * channels * _FULL_PRECISION_BITS
        return NodeCost(node.name, kind, 2 * channels, 0, bits, 0, 0.0, 0.0, buffer_bits=bits)
    if isinstance(node, Attention):
        h, w, _ = graph.values[node.name].shape
        dense = 2 * graph.timesteps * h * w * channels * node.head_features
        if not all(graph.values[name].spiking for name in node.inputs):
            return NodeCost(node.name, kind, 0, 0, 0, dense, float(dense), 0.0)
        operations = _measured(activity, node.name, ())
        acs = None if operations is None else graph.timesteps * float(operations)
        return NodeCost(node.name, kind, 0, 0, 0, dense, 0.0, acs)
    inputs = graph.values[node.input]
    taps = node.kernel[0] * node.kernel[1] if isinstance(node, Conv) else 1
    weights, biases = taps * inputs.shape[-1] * channels, channels if node.bias else 0
    bits = node.quantizer.bits if node.quantizer else _FULL_PRECISION_BITS
    reach = _reach(node, inputs.shape)
    steps = graph.timesteps if inputs.timed else 1
    dense = steps * int(reach.sum()) * inputs.shape[-1] * channels
    effective = _effective(graph, node, activity, reach, steps)
    return NodeCost(
        node.name,
        kind,
        weights + biases,
        weights if node.quantizer else 0,
        weights * bits + biases * _FULL_PRECISION_BITS,
        dense,
        # NeuroBench's rule: whatever is not 0 or 1 costs a MAC, the averages that the readout takes among them. The
        # paper's energies leave the readout out.
        0.0 if inputs.spiking else effective,
        effective if inputs.spiking else 0.0,
        connections=weights if isinstance(node, Conv) and node.input != graph.input.name else 0,
        traffic_bits=steps * (weights * bits + biases * _FULL_PRECISION_BITS),
        buffer_bits=_FULL_PRECISION_BITS * _scales(node),
    )


def _scales(node: Conv | Dense) -> int:
    if node.quantizer is None:
        return 0
    return node.features if node.quantizer.granularity == "channel" else 1


def _effective(
    graph: Graph, node: Conv | Dense, activity: Mapping[str, Any], reach: np.ndarray, steps: int
) -> float | None:
    """Operations with a non-zero input; the image itself counts as non-zero everywhere."""
    if node.input == graph.input.name and not graph.input.frames:
        nonzero = np.ones(graph.input.shape)
    elif (nonzero := _measured(activity, node.input, graph.values[node.input].shape)) is None:
        return None
    return float(steps * node.features * np.sum(nonzero * reach[..., None] if reach.ndim else nonzero))


def _measured(activity: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The activity of a node, or None where it was not measured."""
    if name not in activity:
        return None
    nonzero = np.asarray(activity[name], np.float64)
    if nonzero.ndim == 0:
        nonzero = np.full(shape, nonzero)
    if nonzero.shape != shape:
        raise ValueError(f"activity of node {name!r} has the shape {nonzero.shape}, expected {shape}.")
    return nonzero


def _reach(node: Conv | Dense, shape: tuple[int, ...]) -> np.ndarray:
    """For every input position, how many (output position, kernel tap) pairs read it; ``h w``, or a scalar 1."""
    if isinstance(node, Dense):
        return np.ones(())
    geometry = Geometry((shape[0], shape[1]), node.kernel, node.strides, node.padding)
    axes = zip(*geometry, geometry.output_hw, strict=True)
    return np.outer(*(_reach_1d(*axis) for axis in axes))


def _reach_1d(size: int, kernel: int, stride: int, padding: int, outputs: int) -> np.ndarray:
    reads = np.arange(outputs)[:, None] * stride + np.arange(kernel) - padding
    return np.bincount(reads[(reads >= 0) & (reads < size)], minlength=size)


def _nonzero(value: Any) -> Any:
    spikes = value.spikes if isinstance(value, LIFTrace) else value
    timed = spikes.ndim in (3, 5)
    return jnp.mean((spikes != 0).astype(jnp.float32), axis=(0, 1) if timed else 0)


def _operations(trace: AttentionTrace) -> Any:
    return jnp.mean(trace.operations)


def _operations_per_image(trace: AttentionTrace) -> Any:
    return jnp.sum(trace.operations) / trace.operations.shape[0]


def _total(values: Any) -> float | None:
    values = list(values)
    return None if any(v is None for v in values) else float(sum(values))

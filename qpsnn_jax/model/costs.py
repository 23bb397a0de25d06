"""The costs of a network: parameters, bytes, operations and energy, per node and in total."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qpsnn_jax.model.graph import Graph, check_graph
from qpsnn_jax.model.masks import read_masks
from qpsnn_jax.model.network import Reducer
from qpsnn_jax.model.nodes.base import Activity, Count, Node

_FULL_PRECISION_BITS = 32


@dataclass(frozen=True)
class Energy:
    """Energy of an operation in pJ; the default is float32 in 45 nm CMOS (Horowitz, ISSCC 2014).

    ``memory_pj_per_byte`` is for the bytes of :attr:`Cost.traffic_bytes`; 0, the default, ignores memory, as the paper
    does.
    """

    mac_pj: float = 4.6
    ac_pj: float = 0.9
    memory_pj_per_byte: float = 0.0


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node for one image over all time steps.

    Attributes:
        name, kind: of the node and of its class.
        params: parameters of Eq. 16.
        quantized: the quantized ones among them.
        size_bits: their storage in bits.
        buffer_bits: storage besides Eq. 16: running mean and variance, a 32-bit scale per quantized layer or
            channel, and τ and θ of neurons that have one of each channel.
        dense: multiply-accumulates of a dense device; padding is not counted.
        macs, acs: operations with a non-zero input: ``acs`` if every input is 0 or 1 (spikes, and data of an
            :class:`~qpsnn_jax.model.nodes.Input` that is ``binary``), else ``macs``; None if the activity is unknown.
            Those of an attention are counted as :func:`qpsnn_jax.model.nodes.attention.attention` computes it.
        firing_rate: mean spikes per neuron and step, of neurons with known activity.
        connections: weights of a convolution that does not read the image.
        updates: membrane updates.
        traffic_bits: bits moved: each weight once a step, a 32-bit membrane in and out at each update.
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
    """Costs of all nodes that have any (:class:`NodeCost`), and their totals for one image over all time steps.

    Totals that need the activity are None if any of it is unknown.
    """

    nodes: tuple[NodeCost, ...]
    timesteps: int
    energy: Energy

    @property
    def params(self) -> int:
        """Parameters of Eq. 16: weights, biases, batch-norm weight and bias."""
        return sum(node.params for node in self.nodes)

    @property
    def quantized(self) -> int:
        """The quantized ones among the parameters."""
        return sum(node.quantized for node in self.nodes)

    @property
    def connections(self) -> int:
        """Weights of the convolutions that do not read the image: those that are quantized by default."""
        return sum(node.connections for node in self.nodes)

    @property
    def size_bytes(self) -> int:
        """Model size of Eq. 16, rounded up to bytes."""
        return -(-sum(node.size_bits for node in self.nodes) // 8)

    @property
    def footprint_bytes(self) -> int:
        """All stored data: Eq. 16, running statistics and scales (NeuroBench's footprint, weights packed)."""
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
        """Energy in mJ, ``mac_pj · MACs + ac_pj · SOPs``, plus ``memory_pj_per_byte · bytes``."""
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
        """Mean spikes per neuron and step, by layer of neurons whose activity is known."""
        return {node.name: node.firing_rate for node in self.nodes if node.firing_rate is not None}


def activity_reducers(graph: Graph) -> dict[str, Reducer]:
    """Reducers for ``capture`` that measure what :func:`cost` needs: how often each value is not zero.

    Each returns the mean over batch and time of (value ≠ 0), shape ``h w c`` or ``c``, for the inputs of layers with
    weights and for neurons; for an attention the mean of its operations. Average the results over batches of equal
    size.

    Args:
        graph: the network.

    Returns:
        Reducers by the name of the node, for ``capture`` of :class:`qpsnn_jax.SpikingNetwork`.
    """
    names = {name for node in graph.nodes for name in node.observed} - _always_active(graph)
    return {name: partial(graph.by_name[name].measure, graph.values[name]) for name in sorted(names)}


def cost(
    graph: Graph,
    activity: Mapping[str, Any] | None = None,
    *,
    masks: Mapping[str, Any] | None = None,
    energy: Energy | None = None,
) -> Cost:
    r"""Cost of a network for one image.

    Size is Eq. 16, :math:`\sum q_i b_i + 32 \sum f_i` bits: quantized weights at b bits, everything else at 32, a
    learned γ too; running statistics and the γ of a rule are not counted. A synaptic operation is one non-zero input at
    one synapse, exact at the borders.
    Of a masked layer what is left counts, with the cheapest index (:mod:`qpsnn_jax.numerics.sparsity`).

    Args:
        graph: the network.
        activity: as measured with :func:`activity_reducers`, or a mean firing rate in place of a map, such as
            :attr:`Cost.firing_rates`; operations that depend on a missing activity are None.
        masks: the collection ``masks`` of the variables; without it masked layers count in full.
        energy: 45 nm by default.

    Returns:
        A :class:`Cost`.

    Raises:
        ValueError: ``graph`` is not a Graph, or an activity map or a mask has another shape than its node, or is of a
            node that does not exist.

    References:
        QP-SNN (ICLR 2025), Eq. 16 and section 5; operations as in NeuroBench (Yik et al., 2025).
    """
    check_graph(graph)
    activity = activity or {}
    if unknown := [name for name in activity if name not in graph.by_name]:
        raise ValueError(f"activity names {unknown[0]!r}, which is not a node of the graph.")
    known = {} if masks is None else read_masks(graph, {"masks": masks})
    nodes = [_node_cost(graph, node, activity, known.get(node.name)) for node in graph.nodes]
    return Cost(tuple(node for node in nodes if node is not None), graph.timesteps, energy or Energy())


def _node_cost(graph: Graph, node: Node, activity: Mapping[str, Any], mask: np.ndarray | None) -> NodeCost | None:
    """The cost of a node; None for a node without arrays and operations."""
    inputs = graph.inputs_of(node)
    leaves = node.leaves(inputs).values()
    counted = node.count(inputs, _activity(graph, node, activity)._replace(mask=mask), graph.timesteps)
    if not leaves and counted == Count():
        return None
    operations = counted._asdict()
    removed, saved, buffer = (operations.pop(name) for name in ("removed", "saved_bits", "buffer_bits"))
    if graph.input.name in node.inputs:
        operations["connections"] = 0
    params = [leaf for leaf in leaves if leaf.collection == "params"]
    return NodeCost(
        node.name,
        type(node).__name__,
        params=sum(leaf.size for leaf in params) - removed,
        quantized=max(0, sum(leaf.size for leaf in params if leaf.bits < _FULL_PRECISION_BITS) - removed),
        size_bits=sum(leaf.storage for leaf in params) - saved,
        buffer_bits=buffer + sum(leaf.storage for leaf in leaves if leaf.collection != "params"),
        **operations,
    )


def _activity(graph: Graph, node: Node, activity: Mapping[str, Any]) -> Activity:
    """The measured activity of the inputs and of the node; a static grey image counts as non-zero everywhere."""

    def rate(name: str) -> np.ndarray | None:
        if name in _always_active(graph):
            return np.ones(graph.input.shape)
        if graph.by_name[name].counts_operations:
            return None
        return _measured(activity, name, graph.values[name].shape, most=1)

    shape = () if node.counts_operations else graph.values[node.name].shape
    observed = set(node.observed)
    inputs = tuple(rate(name) if name in observed else None for name in node.inputs)
    most = np.inf if node.counts_operations else 1
    return Activity(inputs, _measured(activity, node.name, shape, most) if node.name in observed else None)


def _always_active(graph: Graph) -> set[str]:
    return set() if graph.input.frames or graph.input.binary else {graph.input.name}


def _measured(activity: Mapping[str, Any], name: str, shape: tuple[int, ...], most: float) -> np.ndarray | None:
    """The activity of a node, or None if it was not measured."""
    if name not in activity:
        return None
    nonzero = np.asarray(activity[name], np.float64)
    if not ((nonzero >= 0) & (nonzero <= most)).all():
        raise ValueError(f"activity of node {name!r} must be the share of steps with a spike, from 0 to 1.")
    if nonzero.ndim == 0:
        nonzero = np.full(shape, nonzero)
    if nonzero.shape != shape:
        raise ValueError(f"activity of node {name!r} has the shape {nonzero.shape}, expected {shape}.")
    return nonzero


def _total(values: Any) -> float | None:
    values = list(values)
    return None if any(v is None for v in values) else float(sum(values))

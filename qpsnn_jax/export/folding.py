"""Folding: a graph and its variables become codes, one scale and one bias per channel (:class:`Folded`).

Two readings of a node's type, both open to registration: :func:`fold_node` gives the layer that a node becomes, and
:func:`current_of` the terms of a neuron's current. A layer is one of those of :mod:`~qpsnn_jax.export.folded_layers`.
"""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Concatenation, Image, Layer, MaxPool, Neurons, Residual, Sum
from qpsnn_jax.export.integer_neurons import Leak
from qpsnn_jax.export.reading import (
    Weights,
    affine,
    by_weight,
    indexed,
    needed_nodes,
    neuron_options,
    registered,
    weights_of,
)
from qpsnn_jax.export.readout import fold_readout, mask_on_map, weights_on_map
from qpsnn_jax.model import nodes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import BatchNorm, Conv, Node, Weighted
from qpsnn_jax.numerics.normalization import check_statistics

_FULL = 32
_WHOLE: dict[str, Any] = {"strides": (1, 1), "padding": (0, 0)}


class Current(NamedTuple):
    """The terms of a neuron's current: layers with their batch-norms, and residual spikes."""

    synapses: tuple[tuple[Weighted, BatchNorm | None], ...] = ()
    residuals: tuple[Residual, ...] = ()


class Folding(NamedTuple):
    """A graph that is being folded: its weights, the names of the maps of spikes so far, and how pixels are read."""

    graph: Graph
    weights: Weights
    spikes: set[str]
    mean: np.ndarray
    std: np.ndarray
    stem_bits: int


def fold(
    graph: Graph,
    variables: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    stem_bits: int = 32,
    readout_bits: int = 32,
) -> Folded:
    r"""Fold batch-norm, γ and the normalization of the pixels into one scale and one bias per channel.

    With :math:`f = w_{bn}/\sqrt{var+ε}`, the current :math:`f(\frac{γ}{s} Σ q S + c - μ) + β` of a channel is
    :math:`a Σ q S + b` with :math:`a = f γ/s` and :math:`b = f(c - μ) + β`. Where a is negative, the channel's codes
    are negated, q to -q, and a becomes positive. On pixels p, :math:`(p/255 - m)/σ` is folded into the weights, which
    then are those of one grey level.

    Args:
        graph: a network whose layers, except the first and the last, are quantized and read spikes. Nodes that its
            output does not need are left out.
        variables: its ``params``, ``batch_stats`` and ``scales``.
        mean, std: of each input channel, pixels scaled to [0, 1]. For a network that was trained on the numbers of the
            pixels or frames themselves, without :func:`qpsnn_jax.normalize`: 0 and 1/255.
        stem_bits: of the weights on pixels, if they are not quantized: 8, rounded to the nearest for each channel, or
            32 for float32.
        readout_bits: of the readout's weights, if they are not quantized: 8, with one scale for all classes, or 32.

    Returns:
        A :class:`Folded` of NumPy arrays. ``gamma``, ``granularity`` and the gains of a pruned network are in its codes
        and scales; the number of steps is the graph's.

    Raises:
        ValueError: something that integers cannot express, naming the node: attention, a leak that is no shift
            (:mod:`~qpsnn_jax.export.integer_neurons`), a layer that is not quantized or does not read spikes, an
            average-pool that is not the readout's, a kind of node that :func:`fold_node` does not know.

    References:
        QP-SNN (ICLR 2025), Eq. 1-6; folding as in Jacob et al., CVPR 2018.
    """
    for name, bits in (("stem_bits", stem_bits), ("readout_bits", readout_bits)):
        if bits not in (8, _FULL):
            raise ValueError(f"{name} must be 8 or 32, got {bits!r}.")
    check_statistics(mean, std, graph.input.shape[2])
    center, spread = (np.asarray(x, np.float64) for x in (mean, std))
    folding = Folding(graph, weights_of(graph, variables), set(), center, spread, stem_bits)
    layers: list[Layer] = []
    for node in needed_nodes(graph):
        if (layer := registered(fold_node, node)(node, folding)) is not None:
            layers.append(layer)
            folding.spikes.add(layer.name)
    layers.append(fold_readout(graph, folding.weights, folding.spikes, readout_bits))
    image = Image(graph.input.name, graph.input.shape, tuple(float(255 * m) for m in center), graph.input.frames)
    return Folded(image, tuple(layers), graph.timesteps)


@singledispatch
def fold_node(node: Node, folding: Folding) -> Layer | None:
    """The layer that a node becomes, or None for one that is folded into the node that reads it.

    Args:
        node: of any kind; another kind registers its own function of the same arguments.
        folding: what has been folded so far.

    Raises:
        ValueError: integers cannot express it; the message names the node.
    """
    raise ValueError(
        f"node {node.name!r}: {type(node).__name__} cannot be exported as integers; register what it becomes with "
        f"@{__name__}.fold_node.register."
    )


@fold_node.register(nodes.Input)
@fold_node.register(Conv)
@fold_node.register(nodes.Dense)
@fold_node.register(BatchNorm)
@fold_node.register(nodes.Shortcut)
@fold_node.register(nodes.Flatten)
@fold_node.register(nodes.AveragePool)
@fold_node.register(nodes.GlobalAveragePool)
def _folded_into_its_reader(node: Node, folding: Folding) -> None:
    del node, folding


@fold_node.register(nodes.Add)
def _sum(node: nodes.Add, folding: Folding) -> Sum | None:
    return Sum(node.name, node.first, node.second) if folding.spikes.issuperset(node.inputs) else None


@fold_node.register(nodes.Concatenate)
def _concatenation(node: nodes.Concatenate, folding: Folding) -> Concatenation:
    if not folding.spikes.issuperset(node.sources):
        raise ValueError(f"node {node.name!r}: integers concatenate spikes and their sums, no other values.")
    return Concatenation(node.name, node.sources)


@fold_node.register(nodes.MaxPool)
def _max_pool(node: nodes.MaxPool, folding: Folding) -> MaxPool:
    if node.input not in folding.spikes:
        raise ValueError(f"node {node.name!r}: a max-pool of other values than spikes cannot be exported as integers.")
    return MaxPool(node.name, node.input, node.window, node.strides, node.padding)


@fold_node.register(nodes.LIF)
def _neurons(node: nodes.LIF, folding: Folding) -> Neurons:
    tau, threshold = (_by_channel(values) for values in neuron_options(folding.weights, node))
    try:
        Leak.of(tau)
    except ValueError as error:
        raise ValueError(f"node {node.name!r}: {error}") from None
    synapses, residuals = current_of(folding.graph.by_name[node.input], folding)
    if len(synapses) != 1 or len(residuals) > 1:
        raise ValueError(
            f"node {node.name!r}: integer neurons read one convolution and at most one residual of spikes, "
            f"got {len(synapses)} and {len(residuals)}."
        )
    ((layer, norm),) = synapses
    graph, weights = folding.graph, folding.weights
    factor, bias = affine(weights, layer, norm)
    source, kernel, bits, scale = _synapses(layer, factor, folding)
    levels = layer.quantizer and layer.quantizer.levels
    zero = 1 if levels else None if layer.quantizer else 0
    stored, removed = layer.quantizer.stored_bits if layer.quantizer else bits, mask_on_map(graph, weights, layer)
    kernel, mask = indexed(kernel, removed, stored, zero)
    options = ("strides", "padding", "groups", "dilation")
    window = {name: getattr(layer, name) for name in options} if isinstance(layer, Conv) else _WHOLE
    return Neurons(
        name=node.name,
        source=source,
        kernel=kernel,
        bits=bits,
        **window,
        scale=np.abs(scale).astype(np.float32),
        bias=bias.astype(np.float32),
        threshold=threshold,
        strict=node.fire == ">",
        residual=next(iter(residuals), None),
        levels=levels,
        mask=mask,
        tau=tau,
        reset=node.reset,
    )


def _by_channel(values: np.ndarray) -> float | np.ndarray:
    """One number where all channels have the same, else float32."""
    return values.astype(np.float32) if (values != values.flat[0]).any() else float(values.flat[0])


@singledispatch
def current_of(node: Node, folding: Folding) -> Current:
    """The terms of the current that a node yields.

    Raises:
        ValueError: it is not a sum of layers and spikes; the message names the node.
    """
    if node.name in folding.spikes:
        channels = folding.graph.values[node.name].shape[-1]
        return Current(residuals=(Residual(node.name, tuple(range(channels))),))
    raise ValueError(f"node {node.name!r}: a current that is neither a convolution nor spikes cannot be folded.")


@current_of.register(Weighted)
def _current_of_layer(node: Weighted, folding: Folding) -> Current:
    del folding
    return Current(((node, None),))


@current_of.register(BatchNorm)
def _current_of_norm(node: BatchNorm, folding: Folding) -> Current:
    layer = folding.graph.by_name[node.input]
    return Current(((layer, node),)) if isinstance(layer, Weighted) else current_of.dispatch(Node)(node, folding)


@current_of.register(nodes.Shortcut)
def _current_of_shortcut(node: nodes.Shortcut, folding: Folding) -> Current:
    if node.input not in folding.spikes:
        return current_of.dispatch(Node)(node, folding)
    return Current(residuals=(Residual(node.input, node.source, node.stride),))


@current_of.register(nodes.Add)
def _current_of_sum(node: nodes.Add, folding: Folding) -> Current:
    if node.name in folding.spikes:
        return current_of.dispatch(Node)(node, folding)
    terms = [current_of(folding.graph.by_name[name], folding) for name in node.inputs]
    return Current(
        tuple(synapse for term in terms for synapse in term.synapses),
        tuple(residual for term in terms for residual in term.residuals),
    )


def _synapses(layer: Weighted, factor: np.ndarray, folding: Folding) -> tuple[str, np.ndarray, int, np.ndarray]:
    """The map that a layer reads, its weights ``h w i o``, their bits and the scale of each channel."""
    source, kernel = weights_on_map(folding.graph, folding.weights, layer)
    if source == folding.graph.input.name:
        if layer.quantizer is None:
            return source, *_stem(layer, kernel * factor, folding)
        if len(set(folding.std)) > 1:
            raise ValueError(
                f"node {layer.name!r}: quantized weights on pixels need one std for all channels, got {folding.std}."
            )
        factor = factor / (255 * folding.std[0])
    elif source not in folding.spikes:
        raise ValueError(
            f"node {layer.name!r} reads {source!r}, which is not spikes; that cannot be exported as integers."
        )
    if layer.quantizer is None:
        raise ValueError(f"node {layer.name!r} reads spikes with full-precision weights; quantize it.")
    # -(2c - s) = 2(s - c) - s
    flipped = np.where(factor < 0, layer.quantizer.top - kernel, kernel)
    return source, flipped.astype(np.uint8), layer.quantizer.bits, factor


def _stem(layer: Weighted, kernel: np.ndarray, folding: Folding) -> tuple[np.ndarray, int, np.ndarray]:
    """Weights of a grey level, their bits, and a scale for each channel."""
    groups = layer.groups if isinstance(layer, Conv) else 1
    kernel = kernel / (255 * by_weight(folding.std, groups, layer.features))
    if folding.stem_bits == _FULL:
        return kernel.astype(np.float32), _FULL, np.ones(layer.features)
    largest = np.abs(kernel).max((0, 1, 2))
    step = np.where(largest > 0, largest, 1) / 127
    return np.rint(kernel / step).astype(np.int8), 8, np.where(largest > 0, step, 0)

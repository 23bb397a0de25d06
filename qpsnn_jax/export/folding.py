"""Folding: a graph and its variables become codes, one scale and one bias per channel (:class:`Folded`)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from qpsnn_jax.export.folded import Folded, Image, Layer, MaxPool, Neurons, Readout, Residual, Sum
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Input,
    Quantizer,
    Shortcut,
)
from qpsnn_jax.model.nodes import MaxPool as MaxPoolNode
from qpsnn_jax.numerics.normalization import check_statistics
from qpsnn_jax.numerics.quantization import Codes, codes

_FULL = 32
_KNOWN = (Input, Conv, Dense, BatchNorm, LIF, MaxPoolNode, AveragePool, GlobalAveragePool, Flatten, Shortcut, Add)


class _Terms(NamedTuple):
    """The terms of a neuron's current: convolutions with their batch-norms, and residual spikes."""

    synapses: list[tuple[Conv | Dense, BatchNorm | None]]
    residuals: list[Residual]


class Weights(NamedTuple):
    """Variables in float64, and for every quantized layer the codes c and the scale γ/s of each channel."""

    variables: Mapping[str, Any]
    codes: Mapping[str, tuple[np.ndarray, np.ndarray]]


class _Source(NamedTuple):
    """A graph, its weights, and the maps so far."""

    graph: Graph
    weights: Weights
    maps: set[str]
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
        graph: a network whose layers, except the first and the last, are quantized and read spikes.
        variables: its ``params``, ``batch_stats`` and ``scales``.
        mean, std: of each input channel, pixels scaled to [0, 1].
        stem_bits: of the weights on pixels: 8, rounded to the nearest for each channel, or 32 for float32.
        readout_bits: of the readout's weights: 8, with one scale for all classes, or 32.

    Returns:
        A :class:`Folded` of NumPy arrays. ``gamma``, ``granularity`` and the gains of a pruned network are in its codes
        and scales; the number of steps is the graph's.

    Raises:
        ValueError: something that integers cannot express, naming the node: attention, a leak other than ½, a soft
            reset, a layer that is not quantized or does not read spikes, an average-pool that is not the readout's.

    References:
        QP-SNN (ICLR 2025), Eq. 1-6; folding as in Jacob et al., CVPR 2018.
    """
    for name, bits in (("stem_bits", stem_bits), ("readout_bits", readout_bits)):
        if bits not in (8, _FULL):
            raise ValueError(f"{name} must be 8 or 32, got {bits!r}.")
    pixels = graph.input.shape[2]
    check_statistics(mean, std, pixels)
    if attention := next((node for node in graph.nodes if isinstance(node, Attention)), None):
        raise ValueError(f"node {attention.name!r}: spiking self-attention cannot be exported as integers.")
    if unknown := next((node for node in graph.nodes if type(node) not in _KNOWN), None):
        raise ValueError(f"node {unknown.name!r}: {type(unknown).__name__} cannot be exported as integers.")
    center, spread = (np.asarray(x, np.float64) for x in (mean, std))
    source = _Source(graph, weights_of(graph, variables), {graph.input.name}, center, spread, stem_bits)
    layers: list[Layer] = []
    for node in graph.nodes:
        if (layer := _layer(source, node)) is not None:
            layers.append(layer)
            source.maps.add(layer.name)
    layers.append(_readout(source, readout_bits))
    image = Image(graph.input.name, graph.input.shape, tuple(float(255 * m) for m in center), graph.input.frames)
    return Folded(image, tuple(layers), graph.timesteps)


def weights_of(graph: Graph, variables: Mapping[str, Any]) -> Weights:
    """The variables of a graph as an export reads them."""
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables))
    return Weights(arrays, _codes(graph, variables))


def affine(weights: Weights, conv: Conv | Dense, norm: BatchNorm | None) -> tuple[np.ndarray, np.ndarray]:
    r"""Factor a on the sums of integer (or, unquantized, real) weights, and bias b of every channel.

    Args:
        weights: from :func:`weights_of`.
        conv: a layer.
        norm: the batch-norm that follows it, if any.

    Returns:
        :math:`a = f γ/s` and :math:`b = f(c - μ) + β` with :math:`f = w_{bn}/\sqrt{var+ε}`, float64, one for each
        channel; without a batch-norm :math:`a = γ/s` and :math:`b = c`.
    """
    params, ones = weights.variables["params"], np.ones(conv.features)
    gamma = weights.codes[conv.name][1] * ones if conv.quantizer else ones
    bias = params[conv.name]["bias"] if conv.bias else 0 * ones
    if norm is None:
        return gamma, bias
    stats = weights.variables["batch_stats"][norm.name]
    factor = params[norm.name]["scale"] / np.sqrt(stats["var"] + norm.epsilon)
    return factor * gamma, params[norm.name]["bias"] + factor * (bias - stats["mean"])


def summed_weights(weights: Weights, conv: Conv | Dense) -> np.ndarray:
    """The weights that a layer's factor multiplies, float64: the odd integers 2c - s, or unquantized the kernel."""
    if conv.quantizer is None:
        return weights.variables["params"][conv.name]["kernel"]
    return 2.0 * weights.codes[conv.name][0] - ((1 << conv.quantizer.bits) - 1)


def _codes(graph: Graph, variables: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and γ/s of every quantized layer, in one compiled program."""
    quantizers = {node.name: node.quantizer for node in graph.nodes if isinstance(node, Conv | Dense)}
    quantized = tuple((name, quantizer) for name, quantizer in quantizers.items() if quantizer is not None)
    found = _all_codes(quantized, variables["params"], variables.get("scales", {}))
    return {
        name: (np.asarray(c.values).astype(np.uint8), np.asarray(c.scale, np.float64).reshape(-1))
        for name, c in found.items()
    }


@partial(jax.jit, static_argnums=0)
def _all_codes(quantizers: tuple[tuple[str, Quantizer], ...], params: Any, scales: Any) -> dict[str, Codes]:
    found = {}
    for name, quantizer in quantizers:
        kernel, gain = params[name]["kernel"], scales[name]["gain"]
        gain = gain.reshape((1,) * (kernel.ndim - 1) + (-1,))
        options = {"gamma": quantizer.gamma, "granularity": quantizer.granularity, "gain": gain}
        found[name] = codes(kernel, quantizer.bits, **options)
    return found


def _layer(source: _Source, node: Any) -> Layer | None:
    """The layer of a node, or None for a node that is folded into another."""
    spiking = source.maps - {source.graph.input.name}
    match node:
        case LIF():
            return _neurons(source, node)
        case MaxPoolNode():
            if node.input not in spiking:
                raise ValueError(
                    f"node {node.name!r}: a max-pool of other values than spikes cannot be exported as integers."
                )
            return MaxPool(node.name, node.input, node.window, node.strides, node.padding)
        case Add() if node.first in spiking and node.second in spiking:
            return Sum(node.name, node.first, node.second)
    return None


def _neurons(source: _Source, node: LIF) -> Neurons:
    if node.tau != 0.5 or node.reset != "hard":
        raise ValueError(
            f"node {node.name!r}: only a leak of 0.5 and a hard reset can be exported as integers, "
            f"got tau {node.tau} and a {node.reset} reset."
        )
    terms = _terms(source, node.input)
    if len(terms.synapses) != 1 or len(terms.residuals) > 1:
        raise ValueError(
            f"node {node.name!r}: integer neurons read one convolution and at most one residual of spikes, "
            f"got {len(terms.synapses)} and {len(terms.residuals)}."
        )
    conv, norm = terms.synapses[0]
    factor, bias = affine(source.weights, conv, norm)
    where, kernel = _reads(source, conv)
    strides, padding = (conv.strides, conv.padding) if isinstance(conv, Conv) else ((1, 1), (0, 0))
    if where == source.graph.input.name:
        kernel, factor, bits = _stem(source, conv, kernel * factor)
    else:
        if conv.quantizer is None:
            raise ValueError(f"node {conv.name!r} reads spikes with full-precision weights; quantize it.")
        bits = conv.quantizer.bits
        # -(2c - s) = 2(s - c) - s
        kernel = np.where(factor < 0, (1 << bits) - 1 - kernel, kernel).astype(np.uint8)
    return Neurons(
        node.name,
        where,
        kernel,
        bits,
        strides,
        padding,
        np.abs(factor).astype(np.float32),
        bias.astype(np.float32),
        node.threshold,
        node.fire == ">",
        next(iter(terms.residuals), None),
    )


def _terms(source: _Source, name: str) -> _Terms:
    """The terms whose sum is the current ``name``."""
    node = source.graph.by_name[name]
    shape = source.graph.values[name].shape
    if name in source.maps and not isinstance(node, Input):
        return _Terms([], [Residual(name, tuple(range(shape[-1])))])
    match node:
        case Conv() | Dense():
            return _Terms([(node, None)], [])
        case BatchNorm() if isinstance(conv := source.graph.by_name[node.input], Conv | Dense):
            return _Terms([(conv, node)], [])
        case Shortcut() if node.input in source.maps:
            return _Terms([], [Residual(node.input, node.source, node.stride)])
        case Add():
            first, second = _terms(source, node.first), _terms(source, node.second)
            return _Terms(first.synapses + second.synapses, first.residuals + second.residuals)
    raise ValueError(f"node {name!r}: a current of neurons that is neither a convolution nor spikes cannot be folded.")


def _reads(source: _Source, conv: Conv | Dense) -> tuple[str, np.ndarray]:
    """The map that a layer reads, and its weights ``h w i o``: codes if it is quantized."""
    graph, name = source.graph, conv.input
    if isinstance(node := graph.by_name[name], Flatten):
        name = node.input
    if name not in source.maps:
        raise ValueError(
            f"node {conv.name!r} reads {name!r}, which is not spikes; that cannot be exported as integers."
        )
    weights = source.weights
    kernel = weights.codes[conv.name][0] if conv.quantizer else weights.variables["params"][conv.name]["kernel"]
    if isinstance(conv, Dense):
        shape = graph.values[name].shape
        kernel = kernel.reshape(*((1,) * (3 - len(shape))), *shape, conv.features)
    return name, kernel


def _stem(source: _Source, conv: Conv | Dense, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights of a grey level, with a positive scale for each channel."""
    if conv.quantizer:
        raise ValueError(f"node {conv.name!r} reads the image; keep it in full precision, the export rounds it.")
    kernel = kernel / (255 * source.std[:, None])
    if source.stem_bits == _FULL:
        return kernel.astype(np.float32), np.ones(conv.features), _FULL
    largest = np.abs(kernel).max((0, 1, 2))
    step = np.where(largest > 0, largest, 1) / 127
    return np.rint(kernel / step).astype(np.int8), np.where(largest > 0, step, 0), 8


def _readout(source: _Source, bits: int) -> Readout:
    graph, node = source.graph, source.graph.output
    if not isinstance(node, Dense):
        raise ValueError(f"node {node.name!r}: the last node must be a dense readout.")
    params = source.weights.variables["params"][node.name]
    tip = graph.by_name[node.input]
    if isinstance(tip, Flatten):
        tip = graph.by_name[tip.input]
    window, strides, where = (1, 1), (1, 1), tip.name
    if isinstance(tip, GlobalAveragePool):
        where = tip.input
        h, w, _ = graph.values[where].shape
        window, strides = (h, w), (h, w)
    elif isinstance(tip, AveragePool) and tip.padding == (0, 0):
        where, window, strides = tip.input, tip.window, tip.strides
    if where not in source.maps - {graph.input.name}:
        raise ValueError(f"node {node.name!r}: a readout of {where!r} is none of spikes, their average-pool or sums.")
    shape = graph.values[tip.name].shape
    weights = summed_weights(source.weights, node)
    if node.quantizer:
        weights = weights * source.weights.codes[node.name][1]
    kernel = weights.reshape(*((1,) * (3 - len(shape))), *shape, node.features)
    bias = (params["bias"] if node.bias else np.zeros(node.features)).astype(np.float32)
    if bits == _FULL:
        return Readout(node.name, where, window, strides, kernel.astype(np.float32), 1.0, bias)
    step = float(np.float32(max(np.abs(kernel).max(), 1e-30) / 127))
    return Readout(node.name, where, window, strides, np.rint(kernel / step).astype(np.int8), step, bias)

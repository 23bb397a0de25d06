"""Unfolding: a folded network becomes a graph and its variables again, which can be trained, pruned and exported."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Concatenation, Layer, MaxPool, Neurons, Rates, Readout, Residual, Sum
from qpsnn_jax.export.reading import affine, by_weight, norm_factor, weights_of
from qpsnn_jax.model import nodes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Node, Quantizer
from qpsnn_jax.training.state import Variables

_EPSILON = 1e-5


class Moments(NamedTuple):
    """Mean and variance of the synaptic current :math:`a Σ q S` of each channel of a layer; float32, shape ``o``."""

    mean: np.ndarray
    var: np.ndarray


def unfold(
    folded: Folded, std: Sequence[float], moments: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
) -> tuple[Graph, Variables]:
    r"""A graph and variables that compute what a folded network does, as from :func:`qpsnn_jax.load_packed`.

    Each quantized layer has a learned γ for each channel, :math:`γ = a s`, with s the largest code, and the weights
    :math:`a q`, so that folding gives the same codes q. A layer without moments has the bias b. A layer with moments
    has a batch-norm with the scale :math:`\sqrt{var + ε}` and the bias :math:`b + mean`, which changes nothing in
    evaluation; in training the moments of a batch are close to these, so that training goes on from this network.

    Args:
        folded: the network.
        std: of each input channel, pixels scaled to [0, 1]; images are then normalized by the means of ``folded.image``
            (in grey levels) and this.
        moments: by the name of a layer of neurons, from :func:`current_moments`.

    Returns:
        ``(graph, variables)`` for :class:`qpsnn_jax.SpikingNetwork`.

    Raises:
        ValueError: ``std`` or the moments do not fit the network.

    References:
        The inverse of :func:`qpsnn_jax.fold`; learned γ: Esser et al., ICLR 2020.
    """
    spread = np.asarray(std, np.float64)
    channels = folded.image.shape[2]
    if spread.shape != (channels,) or not (np.isfinite(spread) & (spread > 0)).all():
        raise ValueError(f"std must be {channels} positive numbers, one for each input channel, got {std!r}.")
    known = dict(moments or {})
    if unknown := set(known) - {layer.name for layer in folded.neurons}:
        raise ValueError(f"moments name {min(unknown)!r}, which is not a layer of neurons of this network.")
    made: list[Node] = [nodes.Input(folded.image.name, folded.image.shape, folded.image.frames)]
    arrays: dict[str, dict[str, Any]] = {}
    for layer in folded.layers:
        _unfold_layer(layer, folded, spread, known.get(layer.name), made, arrays)
    graph = Graph(tuple(made), folded.timesteps)
    leaves: dict[str, dict[str, dict[str, Any]]] = {"params": {}, "batch_stats": {}, "scales": {}}
    for node in graph.nodes:
        for name, leaf in node.leaves(graph.inputs_of(node)).items():
            array = np.asarray(arrays[node.name][name], np.float32)
            held = leaves.setdefault(leaf.collection, {}).setdefault(node.name, {})
            held[name] = jnp.asarray(array.reshape(leaf.shape))
    return graph, leaves


def current_moments(graph: Graph, variables: Mapping[str, Any]) -> dict[str, Moments]:
    r"""The moments of the folded synaptic currents of all layers with batch-norm, from its running moments.

    With :math:`f = w_{bn}/\sqrt{var+ε}` and a bias c of the layer, the mean is :math:`f (μ - c)` and the variance
    :math:`f^2 var`.

    Args:
        graph, variables: a network that :func:`qpsnn_jax.fold` takes.

    Returns:
        By the name of the neurons, for :func:`unfold`.
    """
    weights = weights_of(graph, variables)
    moments = {}
    for node in graph.nodes:
        if not isinstance(node, nodes.LIF):
            continue
        norm = _norm_before(graph, node.input)
        layer = norm and graph.by_name[norm.input]
        if norm is None or not isinstance(layer, nodes.Weighted):
            continue
        stats, params = weights.variables["batch_stats"][norm.name], weights.variables["params"][norm.name]
        _, bias = affine(weights, layer, norm)
        mean, var = params["bias"] - bias, np.square(norm_factor(weights, norm)) * stats["var"]
        moments[node.name] = Moments(mean.astype(np.float32), var.astype(np.float32))
    return moments


def _norm_before(graph: Graph, name: str) -> nodes.BatchNorm | None:
    """The batch-norm of a layer whose output a neuron gets, alone or in a sum."""
    node = graph.by_name[name]
    if isinstance(node, nodes.Add):
        return next((norm for source in node.inputs if (norm := _norm_before(graph, source))), None)
    return node if isinstance(node, nodes.BatchNorm) else None


def _unfold_layer(
    layer: Layer,
    folded: Folded,
    std: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray] | None,
    graph: list[Node],
    leaves: dict[str, dict[str, Any]],
) -> None:
    """Append the nodes of a layer, and their arrays."""
    match layer:
        case Sum():
            graph.append(nodes.Add(layer.name, layer.first, layer.second))
        case Concatenation():
            graph.append(nodes.Concatenate(layer.name, layer.sources))
        case MaxPool():
            graph.append(nodes.MaxPool(layer.name, layer.source, layer.window, layer.strides, layer.padding))
        case Readout():
            _unfold_readout(layer, graph, leaves)
        case Rates():
            graph.append(nodes.Flatten(layer.name, layer.source))
        case Neurons():
            current = _unfold_synapses(layer, folded, std, moments, graph, leaves)
            if layer.residual is not None:
                current = _unfold_residual(layer.name, layer.residual, folded, current, graph)
            options: dict[str, Any] = {"fire": ">" if layer.strict else ">=", "reset": layer.reset}
            options |= {"tau": _field(layer.tau), "threshold": _field(layer.threshold)}
            graph.append(nodes.LIF(layer.name, current, **options))


def _field(values: float | np.ndarray) -> float | tuple[float, ...]:
    """A number, or one for each channel, as the field of a node."""
    return tuple(values.tolist()) if isinstance(values, np.ndarray) else values


def _unfold_readout(layer: Readout, graph: list[Node], leaves: dict[str, dict[str, Any]]) -> None:
    """Append the average-pool of the readout, if it has one, and its dense layer."""
    read, flat = layer.source, f"{layer.name}.flat"
    if layer.window != (1, 1) or layer.strides != (1, 1):
        graph.append(nodes.AveragePool(read := f"{layer.name}.pool", layer.source, layer.window, layer.strides))
    graph.append(nodes.Flatten(flat, read))
    codes = layer.kernel.dtype == np.uint8
    quantizer = Quantizer(layer.bits, gamma="learned") if codes else None
    masked = layer.mask is not None
    graph.append(nodes.Dense(layer.name, flat, layer.kernel.shape[-1], quantizer, masked=masked))
    weights = layer.scale * (layer.integers if codes else layer.kernel.astype(np.float64))
    gamma = layer.top * layer.scale
    leaves[layer.name] = {"kernel": weights, "bias": layer.bias, "gamma": gamma, "mask": layer.mask}


def _unfold_synapses(
    layer: Neurons,
    folded: Folded,
    std: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray] | None,
    graph: list[Node],
    leaves: dict[str, dict[str, Any]],
) -> str:
    """Append the convolution of a layer, with its batch-norm or its bias; the name of their output."""
    *window, _, outputs = layer.kernel.shape
    conv, scale = f"{layer.name}.conv", layer.scale.astype(np.float64)
    quantizer, arrays = None, {"bias": layer.bias}
    if layer.source == folded.image.name and layer.kernel.dtype == np.uint8:
        if len(set(std)) > 1:
            raise ValueError(f"std must be one number for all channels, as {layer.name!r} has codes, got {std}.")
        scale = scale * (255 * std[0])
    if layer.kernel.dtype != np.uint8:
        arrays["kernel"] = layer.kernel.astype(np.float64) * scale * (255 * by_weight(std, layer.groups, outputs))
    else:
        quantizer = Quantizer(layer.bits, gamma="learned", granularity="channel", levels=layer.levels)
        arrays["kernel"] = layer.integers * scale
        arrays["gamma"] = layer.top * scale
    options = {"kernel": tuple(window), "strides": layer.strides, "padding": layer.padding, "quantizer": quantizer}
    options |= {"groups": layer.groups, "dilation": layer.dilation, "masked": layer.mask is not None}
    graph.append(nodes.Conv(conv, layer.source, outputs, bias=moments is None, label=layer.name, **options))
    leaves[conv] = arrays | {"mask": layer.mask}
    if moments is None:
        return conv
    mean, var = (np.asarray(values, np.float64) for values in moments)
    if mean.shape != (outputs,) or var.shape != (outputs,) or not (np.isfinite(mean) & (var >= 0)).all():
        raise ValueError(f"layer {layer.name!r}: its moments must be {outputs} finite means and variances.")
    norm = f"{layer.name}.norm"
    graph.append(nodes.BatchNorm(norm, conv, epsilon=_EPSILON))
    leaves[norm] = {"mean": mean, "var": var, "scale": np.sqrt(var + _EPSILON), "bias": layer.bias + mean}
    return norm


def _unfold_residual(name: str, residual: Residual, folded: Folded, current: str, graph: list[Node]) -> str:
    """Append the sum of a current and a residual; the name of the sum."""
    source, channels = residual.source, folded.maps[residual.source].shape[2]
    if residual.stride != 1 or residual.channels != tuple(range(channels)):
        graph.append(nodes.Shortcut(f"{name}.shortcut", source, residual.channels, residual.stride))
        source = f"{name}.shortcut"
    graph.append(nodes.Add(f"{name}.sum", current, source))
    return f"{name}.sum"

"""The parts of a graph and its variables that exports use: the nodes that its output needs, and weights in float64."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.masks import read_masks
from qpsnn_jax.model.nodes import LIF, BatchNorm, Node, Quantizer, Weighted
from qpsnn_jax.model.variables import check_variables
from qpsnn_jax.numerics.quantization import Codes
from qpsnn_jax.numerics.sparsity import needs_index


class Weights(NamedTuple):
    """Variables in float64, for every quantized layer the codes c and each channel's scale γ/s, and the masks."""

    variables: Mapping[str, Any]
    codes: Mapping[str, tuple[np.ndarray, np.ndarray]]
    masks: Mapping[str, np.ndarray]


def registered(reading: Any, node: Node) -> Callable[..., Any]:
    """The implementation of a ``functools.singledispatch`` function for exactly the class of a node.

    A derived class may compute something else, so it needs its own registration.
    """
    return reading.registry.get(type(node), reading.dispatch(object))


def needed_nodes(graph: Graph) -> tuple[Node, ...]:
    """The input and the nodes that the output is computed from, in order; others are left out."""
    needed = {graph.output.name, graph.input.name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(node for node in graph.nodes if node.name in needed)


def weights_of(graph: Graph, variables: Mapping[str, Any]) -> Weights:
    """The variables of a graph in float64, with the codes of its quantized layers.

    Raises:
        ValueError: they are not the graph's, or a mask does not consist of 0 and 1.
    """
    check_variables(graph, variables)
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables))
    return Weights(arrays, _codes(graph, variables), read_masks(graph, variables))


def neuron_options(weights: Weights, node: LIF) -> tuple[np.ndarray, np.ndarray]:
    """τ and θ of neurons, as the network computes them in float32 where they are learned; θ always in float32.

    Returns:
        τ and θ, float64, each of shape ``()`` or, where the channels may differ, ``c``.
    """
    own = weights.variables["params"].get(node.name, {})
    found = node.constants({name: jnp.asarray(leaf, jnp.float32) for name, leaf in own.items()})
    # The network compares membranes with θ in float32, where one may equal it.
    threshold = np.asarray(found["threshold"], np.float32)
    return np.asarray(found["tau"], np.float64), threshold.astype(np.float64)


def affine(weights: Weights, layer: Weighted, norm: BatchNorm | None) -> tuple[np.ndarray, np.ndarray]:
    r"""Factor a on the sums of integer (or, unquantized, real) weights, and bias b of every channel.

    Args:
        weights: from :func:`weights_of`.
        layer: a layer.
        norm: the batch-norm that follows it, if any.

    Returns:
        :math:`a = f γ/s` and :math:`b = f(c - μ) + β` with :math:`f = w_{bn}/\sqrt{var+ε}`, float64, one for each
        channel; without a batch-norm :math:`a = γ/s` and :math:`b = c`.
    """
    params, ones = weights.variables["params"], np.ones(layer.features)
    gamma = weights.codes[layer.name][1] * ones if layer.quantizer else ones
    bias = params[layer.name]["bias"] if layer.bias else 0 * ones
    if norm is None:
        return gamma, bias
    factor = norm_factor(weights, norm)
    mean = weights.variables["batch_stats"][norm.name]["mean"]
    return factor * gamma, params[norm.name]["bias"] + factor * (bias - mean)


def norm_factor(weights: Weights, norm: BatchNorm) -> np.ndarray:
    r"""The factor :math:`f = w_{bn}/\sqrt{var+ε}` of a batch-norm on each channel, float64."""
    stats = weights.variables["batch_stats"][norm.name]
    return weights.variables["params"][norm.name]["scale"] / np.sqrt(stats["var"] + norm.epsilon)


def summed_weights(weights: Weights, layer: Weighted) -> np.ndarray:
    """The weights that a layer's factor multiplies, float64: the integers 2c - s, or unquantized the kernel."""
    mask = weights.masks.get(layer.name, True)
    if layer.quantizer is None:
        return weights.variables["params"][layer.name]["kernel"] * mask
    return (2.0 * weights.codes[layer.name][0] - layer.quantizer.top) * mask


def indexed(
    kernel: np.ndarray, mask: np.ndarray | None, bits: float, zero: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights of which those that a mask removes are 0, and the mask; or they are ``zero``, and need no mask.

    Args:
        kernel: weights or codes.
        mask: of their shape, or None.
        bits: of a weight in storage.
        zero: the weight or code that stands for zero, if there is one.
    """
    if mask is None:
        return kernel, None
    index = needs_index(mask, bits, has_zero=zero is not None)
    removed = kernel.dtype.type(0 if index or zero is None else zero)
    return np.where(mask, kernel, removed), mask if index else None


def by_weight(values: np.ndarray, groups: int, outputs: int) -> np.ndarray:
    """Values of the input channels as those of the weights that read them, ``i/groups o``."""
    return np.repeat(values.reshape(groups, -1).T, outputs // groups, axis=1)


def _codes(graph: Graph, variables: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and γ/s of every quantized layer, in one compiled program."""
    quantizers = {node.name: node.quantizer for node in graph.nodes if isinstance(node, Weighted)}
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
        scale = (params[name] | scales.get(name, {}))[quantizer.scale_leaf]
        found[name] = quantizer.codes(params[name]["kernel"], scale)
    return found

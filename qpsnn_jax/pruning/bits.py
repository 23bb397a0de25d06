"""Bits by layer under a budget of bytes: how much the loss rises where a layer has fewer, and the best choice."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.masks import masked_layer, read_masks
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import Quantizer, Weighted
from qpsnn_jax.model.precision import quantized_layers
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.numerics.sparsity import stored_bits
from qpsnn_jax.runtime.checks import finite, integer

BITS = (1, 2, 3, 4, 8)
# Sizes are counted in units of a budget's part, rounded up, so that the search takes the same time for large networks.
_UNITS = 1 << 16
_MOST_BYTES = 1e15
_LARGEST = 1e30  # of a loss


def bit_sensitivity(
    graph: Graph,
    variables: Mapping[str, Any],
    batches: Iterable[tuple[Array, Array]],
    *,
    bits: Sequence[int] = BITS,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    precision: Precision = "auto",
) -> dict[str, dict[int, float]]:
    """The loss of a network in which one layer has other bits, for every quantized layer and every number of bits.

    All other layers stay as they are, nothing is trained, and batch-norm takes the moments of each batch, because
    other bits change the scale of the sums. One program is compiled for all of them.

    Args:
        graph, variables: the trained network.
        batches: normalized images, as the network takes them, and labels; the loss is the mean over them.
        bits: those to try.
        loss: from currents ``b t classes`` and labels ``b`` to one loss per example.
        precision: of :class:`qpsnn_jax.SpikingNetwork`.

    Returns:
        ``{layer: {bits: loss}}`` in nats, for :func:`allocate_bits`.

    Raises:
        ValueError: there are no batches, or bits are not from 1 to 8.
    """
    step, given = _loss_of(_in_float(graph), loss, precision), list(batches)
    if not given:
        raise ValueError("bit_sensitivity needs at least one batch of images and labels.")
    layers = quantized_layers(graph)
    kernels = {name: _quantized(variables, name, quantizer, None) for name, quantizer in layers.items()}

    def measured(name: str, number: int) -> float:
        changed = kernels | {name: _quantized(variables, name, layers[name], number)}
        tree = _with_kernels(variables, changed)
        return float(np.mean([step(tree, *batch) for batch in given]))

    return {name: {number: measured(name, number) for number in bits} for name in layers}


def allocate_bits(
    graph: Graph,
    losses: Mapping[str, Mapping[int, float]],
    *,
    bytes: float,
    masks: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    r"""The bits of every layer that minimize the sum of losses within a budget, a multiple-choice knapsack.

    .. math:: \min_b \sum_l L_l(b_l) \quad \text{with} \quad \sum_l ⌈n_l b_l / 8⌉ + \text{rest} ≤ B

    The sum supposes that what layers lose adds up. Solved by dynamic programming, exactly up to a budget of 65,536
    bytes; beyond that, sizes are rounded up to 1/65,536 of it.

    Args:
        graph: the network, whose quantized layers are chosen for.
        losses: ``{layer: {bits: loss}}``, as from :func:`bit_sensitivity`. A quantized layer that is not in it stays as
            it is.
        bytes: B, of Eq. 16 as :attr:`qpsnn_jax.Cost.size_bytes`; all other parameters count too.
        masks: the collection ``masks`` of the variables; of a masked layer what is left counts, with its index, as in
            :func:`qpsnn_jax.cost`. Without it masked layers count in full.

    Returns:
        ``{layer: bits}`` for :func:`qpsnn_jax.with_layer_bits` or the setting ``network.layer_bits``.

    Raises:
        ValueError: the budget is below the smallest size, a layer is not quantized, or a loss is not finite.
    """
    bytes = finite("bytes", bytes, 0, _MOST_BYTES)
    known = {} if masks is None else read_masks(graph, {"masks": masks})
    sizes = _sizes(graph, losses, known)
    total = sum(node.size_bits for node in cost(graph, masks=masks).nodes)
    rest = (total - sum(_stored(graph, name, known.get(name)) for name in losses)) / 8
    unit = max(1.0, bytes / _UNITS)
    room = math.floor((bytes - rest) / unit)
    least = math.ceil(rest + sum(min(options.values()) for options in sizes.values()))
    best, chosen = np.zeros(max(room, 0) + 1), []
    for name, options in losses.items():
        best, choice = _extended(best, {b: math.ceil(sizes[name][b] / unit) for b in options}, options)
        chosen.append(choice)
    if room < 0 or not np.isfinite(best[-1]):
        raise ValueError(f"a budget of {bytes:,.0f} bytes cannot be met: the fewest bits need {least:,} bytes.")
    bits, place = {}, room
    for name, choice in reversed(list(zip(losses, chosen, strict=True))):
        bits[name] = int(choice[place])
        place -= math.ceil(sizes[name][bits[name]] / unit)
    return dict(reversed(bits.items()))


def _extended(best: np.ndarray, sizes: Mapping[int, int], losses: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """The least loss for every room with one layer more, and its bits there; of equal ones, the fewest bits."""
    options = sorted(losses)
    found = np.full((len(options), len(best)), np.inf)
    for row, bits in enumerate(options):
        if (size := sizes[bits]) < len(best):
            found[row, size:] = best[: len(best) - size] + losses[bits]
    rows = found.argmin(0)
    return found.min(0), np.asarray(options)[rows]


def _sizes(
    graph: Graph, losses: Mapping[str, Mapping[int, float]], masks: Mapping[str, np.ndarray]
) -> dict[str, dict[int, int]]:
    layers = quantized_layers(graph)
    for name, options in losses.items():
        if name not in layers:
            raise ValueError(f"losses name {name!r}, which is not a quantized layer.")
        if not options:
            raise ValueError(f"losses of {name!r} must be finite numbers by bits from 1 to 8.")
        for bits, loss in options.items():
            integer(f"each number of bits in the losses of {name!r}", bits, 1, 8)
            finite(f"each of the losses of {name!r}", loss, -_LARGEST, _LARGEST)
    return {
        name: {b: -(-_stored(graph, name, masks.get(name), b) // 8) for b in options}
        for name, options in losses.items()
    }


def _stored(graph: Graph, name: str, mask: np.ndarray | None, bits: int | None = None) -> int:
    """Bits that the kernel of a layer takes in storage, with its index; also with other ``bits``."""
    node = masked_layer(graph, name)
    kernel = node.leaves(graph.inputs_of(node))["kernel"]
    if mask is None:
        return kernel.storage if bits is None else kernel.size * bits
    return stored_bits(mask, bits or kernel.bits, has_zero=node.has_zero and bits is None)


def _in_float(graph: Graph) -> Graph:
    """The graph whose layers take the quantized weights as they are."""
    nodes = (replace(node, quantizer=None) if isinstance(node, Weighted) else node for node in graph.nodes)
    return Graph(tuple(nodes), graph.timesteps)


def _quantized(variables: Mapping[str, Any], name: str, quantizer: Quantizer, bits: int | None) -> Array:
    """The quantized kernel of a layer; with other ``bits``, a learned γ starts anew, as it would in training."""
    own = {**variables["params"][name], **variables.get("scales", {}).get(name, {})}
    kernel, scale = own["kernel"], own[quantizer.scale_leaf]
    if bits is not None:
        quantizer = replace(quantizer, bits=bits, levels=None)
        scale = quantizer.gamma_of(kernel).ravel() if quantizer.scale_leaf == "gamma" else scale
    integers, factor = quantizer.integer_weights(kernel, scale)
    return integers * factor


def _with_kernels(variables: Mapping[str, Any], kernels: Mapping[str, Array]) -> dict[str, Any]:
    params = {
        name: {leaf: array for leaf, array in leaves.items() if leaf != "gamma" or name not in kernels}
        for name, leaves in variables["params"].items()
    }
    params |= {name: params[name] | {"kernel": kernel} for name, kernel in kernels.items()}
    scales = {name: leaves for name, leaves in variables.get("scales", {}).items() if name not in kernels}
    return {**variables, "params": params, "scales": scales}


@lru_cache(maxsize=4)
def _loss_of(graph: Graph, loss: Callable[[Array, Array], Array], precision: Precision) -> Callable[..., Array]:
    network = SpikingNetwork(graph, precision)

    @jax.jit
    def mean_loss(variables: Any, images: Array, labels: Array) -> Array:
        output, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.mean(loss(output.currents, labels))  # pyright: ignore[reportAttributeAccessIssue]

    return mean_loss

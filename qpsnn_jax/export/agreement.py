"""Does an export do what the trained network does: a comparison by layer, and a simulation of whole numbers in JAX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.export.folded import MaxPool, Neurons, Readout, Residual, Sum
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.numerics.neurons import LIFTrace
from qpsnn_jax.numerics.normalization import normalize

_BATCH = 50
_FLOAT32 = 2**24


@dataclass(frozen=True)
class Agreement:
    """Of a float network and its export on the same images.

    Attributes:
        images: how many.
        predictions: share of images with the same prediction.
        accuracy_float, accuracy_other: share of correct predictions; None without labels.
        spikes: by layer of neurons, the share of spikes that differ.
    """

    images: int
    predictions: float
    accuracy_float: float | None
    accuracy_other: float | None
    spikes: dict[str, float]


class Side(NamedTuple):
    """A float network, and mean and std of each channel of the pixels that it reads."""

    graph: Graph
    variables: Mapping[str, Any]
    mean: Sequence[float]
    std: Sequence[float]


# From pixels to predictions and the spikes of every layer.
_Run = Callable[[np.ndarray], tuple[np.ndarray, Mapping[str, np.ndarray]]]


def compare(
    graph: Graph,
    variables: Mapping[str, Any],
    network: IntegerNetwork,
    pixels: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    labels: np.ndarray | None = None,
) -> Agreement:
    """Run the float network and the interpreter of its whole numbers side by side.

    Args:
        graph, variables: the trained network.
        network: what :func:`qpsnn_jax.export.folding.fold` made of it.
        pixels: uint8 images ``b h w c`` or frames ``b t h w c``.
        mean, std: of each channel, as in training.
        labels: integers ``b``, for the accuracies.

    Returns:
        :class:`Agreement`.

    Raises:
        ValueError: no images, or images of another shape than the network's.
    """
    names = [layer.name for layer in network.folded.neurons]

    def whole(batch: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        logits, maps = network(batch, names)
        return logits.argmax(-1), maps

    return _compared(_runner(Side(graph, variables, mean, std), names), whole, names, pixels, labels)


def compare_networks(first: Side, second: Side, pixels: np.ndarray, labels: np.ndarray | None = None) -> Agreement:
    """Run two float networks side by side, whose neurons have the same names.

    Args:
        first, second: the trained network and the one to compare with it.
        pixels: uint8 images ``b h w c`` or frames ``b t h w c``.
        labels: integers ``b``, for the accuracies.

    Returns:
        :class:`Agreement`.

    Raises:
        ValueError: no images, or images of another shape than the networks'.
    """
    names = first.graph.neurons
    return _compared(_runner(first, names), _runner(second, names), names, pixels, labels)


def _runner(side: Side, names: Sequence[str]) -> _Run:
    @jax.jit
    def forward(tree: Any, batch: Array) -> tuple[Array, dict[str, Array]]:
        images = normalize(batch, tuple(side.mean), tuple(side.std))
        output: Any = SpikingNetwork(side.graph).apply(tree, images, capture=dict.fromkeys(names, _spikes_of))
        return jnp.argmax(jnp.mean(output.currents, axis=1), axis=-1), output.captured

    def run(batch: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        predictions, spikes = forward(dict(side.variables), jnp.asarray(batch))
        return np.asarray(predictions), {name: np.asarray(values) for name, values in spikes.items()}

    return run


def _compared(
    ours: _Run, theirs: _Run, names: Sequence[str], pixels: np.ndarray, labels: np.ndarray | None
) -> Agreement:
    if not len(pixels):
        raise ValueError("pixels must hold at least one image.")
    predictions, differing = [], dict.fromkeys(names, 0.0)
    for start in range(0, len(pixels), _BATCH):
        batch = pixels[start : start + _BATCH]
        (expected, spikes), (found, maps) = ours(batch), theirs(batch)
        predictions.append(np.stack([expected, found]))
        for name in names:
            differs = maps[name].reshape(spikes[name].shape) != spikes[name]
            differing[name] += len(batch) / len(pixels) * float(differs.mean())
    both = np.concatenate(predictions, axis=1)
    accurate = [None if labels is None else float((side == labels).mean()) for side in both]
    return Agreement(len(pixels), float((both[0] == both[1]).mean()), accurate[0], accurate[1], differing)


def mean_currents(
    graph: Graph,
    variables: Mapping[str, Any],
    pixels: Array,
    mean: Sequence[float],
    std: Sequence[float],
    precision: Precision = "auto",
) -> Array:
    """Time-mean of a float network's output currents, ``b classes``, from uint8 pixels ``b h w c`` or ``b t h w c``.

    Raises:
        ValueError: mean and std do not fit the pixels, or the pixels the graph.
    """
    images = normalize(pixels, tuple(mean), tuple(std))
    output: Any = SpikingNetwork(graph, precision).apply(dict(variables), images)
    return jnp.mean(output.currents, axis=1)


def simulate(network: IntegerNetwork, pixels: Array) -> Array:
    """Logits of the whole numbers, computed by XLA in float32 wherever the bound says that float32 holds them.

    An independent second reading: it agrees with the interpreter bit for bit. A layer whose sums or membranes may
    reach 2²⁴, where float32 ends, is computed in int32.

    Args:
        network: the whole numbers; under ``jit`` a constant.
        pixels: uint8 images ``b h w c`` or frames ``b t h w c``.

    Returns:
        int32 logits ``b classes``.
    """
    folded = network.folded
    maps: dict[str, Array] = {folded.image.name: pixels if folded.image.frames else pixels[:, None]}
    logits = jnp.zeros(0, jnp.int32)
    for layer in folded.layers:
        match layer:
            case Neurons():
                maps[layer.name] = _simulated(network, layer, maps)
            case MaxPool():
                maps[layer.name] = _pool(maps[layer.source], layer.window, layer.strides, layer.padding, jax.lax.max)
            case Sum():
                maps[layer.name] = maps[layer.first] + maps[layer.second]
            case Readout():
                logits = _readout(network, layer, maps[layer.source])
    return logits


def _simulated(network: IntegerNetwork, layer: Neurons, maps: Mapping[str, Array]) -> Array:
    constants, steps = network.neurons[layer.name], network.folded.timesteps
    worst = max(int(constants.high.max()), -int(constants.low.min()), constants.sums)
    kind: Any = jnp.float32 if worst < _FLOAT32 else jnp.int32

    def convolve(x: Array, kernel: np.ndarray) -> Array:
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]).astype(kind),
            jnp.asarray(kernel).astype(kind),
            layer.strides,
            tuple((p, p) for p in layer.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def each(channels: np.ndarray) -> Array:
        return jnp.asarray(channels.reshape(1, 1, 1, 1, -1)).astype(kind)

    x = maps[layer.source]
    ones = each(constants.live * 2**constants.shift)
    totals = convolve(x, constants.weights) * ones + each(constants.bias)
    if constants.fine is not None:
        fine = convolve(x, constants.fine) * ones
        totals = totals + (jnp.floor(fine / 256) if kind is jnp.float32 else fine >> 8)
    if constants.pads.any():
        inside = jnp.ones((1, 1, *x.shape[2:4], 1), jnp.uint8)
        totals = totals + each(constants.pads.sum((0, 1))) - convolve(inside, constants.pads[:, :, None])
    if layer.residual is not None:
        totals = totals + _carried(layer.residual, maps[layer.residual.source]).astype(kind) * each(constants.residual)
    totals = jnp.broadcast_to(totals, (len(totals), steps, *totals.shape[2:]))
    membrane, spikes = jnp.zeros_like(totals[:, 0]), []
    for step in range(steps):
        leaked = jnp.floor(membrane / 2) if kind is jnp.float32 else membrane >> 1
        membrane = leaked + totals[:, step]
        fired = membrane >= each(constants.threshold)[:, 0]
        membrane = jnp.where(fired, 0, membrane)
        spikes.append(fired.astype(jnp.uint8))
    return jnp.stack(spikes, axis=1)


def _carried(residual: Residual, spikes: Array) -> Array:
    channels = np.asarray(residual.channels)
    strided = spikes[:, :, :: residual.stride, :: residual.stride]
    return jnp.where(jnp.asarray(channels >= 0).reshape(1, 1, 1, 1, -1), strided[..., channels], 0)


def _readout(network: IntegerNetwork, layer: Readout, spikes: Array) -> Array:
    counts = jnp.sum(spikes.astype(jnp.int32), axis=1, keepdims=True)
    pooled = _pool(counts, layer.window, layer.strides, (0, 0), jax.lax.add)
    weights = jnp.asarray(network.readout.weights)
    return pooled.reshape(len(pooled), -1) @ weights.reshape(-1, weights.shape[-1]) + jnp.asarray(
        network.readout.bias[None]
    )


def _pool(x: Array, window: Any, strides: Any, padding: Any, combine: Any) -> Array:
    spread = ((0, 0), (0, 0), *((p, p) for p in padding), (0, 0))
    zero = np.zeros((), x.dtype)
    return jax.lax.reduce_window(x, zero, combine, (1, 1, *window, 1), (1, 1, *strides, 1), spread)


def _spikes_of(trace: LIFTrace) -> Array:
    return trace.spikes

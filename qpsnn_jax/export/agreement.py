"""Agreement of an export with the trained network, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.numerics.neurons import LIFTrace
from qpsnn_jax.numerics.normalization import normalize

_BATCH = 50


@dataclass(frozen=True)
class Agreement:
    """Agreement of a float network and its export on the same images.

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
    """A float network, with the mean and std of each channel of its pixels, and how precisely it is computed."""

    graph: Graph
    variables: Mapping[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    precision: Precision = "auto"


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
    *,
    precision: Precision = "auto",
) -> Agreement:
    """Run the float network and its integer network on the same images, and compare.

    Args:
        graph, variables: the trained network.
        network: the integers of its folded network.
        pixels: uint8 images ``b h w c`` or frames ``b t h w c``.
        mean, std: of each channel, as for :func:`qpsnn_jax.fold`.
        labels: integers ``b``, for the accuracies.
        precision: of the float network, as for :class:`SpikingNetwork`.

    Returns:
        :class:`Agreement`.

    Raises:
        ValueError: no images, or images of a shape other than the network's.
    """
    names = [layer.name for layer in network.folded.neurons]

    def integers(batch: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        logits, maps = network(batch, names)
        return logits.argmax(-1), maps

    side = Side(graph, variables, mean, std, precision)
    return _compared(_runner(side, names), integers, names, pixels, labels)


def compare_networks(first: Side, second: Side, pixels: np.ndarray, labels: np.ndarray | None = None) -> Agreement:
    """Run two float networks on the same images, and compare.

    Args:
        first, second: the trained network and the one to compare with it. Spikes are compared where neurons have the
            same name, shape and number of steps in both.
        pixels: uint8 images ``b h w c`` or frames ``b t h w c``.
        labels: integers ``b``, for the accuracies.

    Returns:
        :class:`Agreement`.

    Raises:
        ValueError: no images, or images of a shape other than the networks'.
    """
    one, other = first.graph, second.graph
    both = [name for name in one.neurons if name in other.neurons] if one.timesteps == other.timesteps else []
    names = [name for name in both if one.values[name].shape == other.values[name].shape]
    return _compared(_runner(first, names), _runner(second, names), names, pixels, labels)


def _runner(side: Side, names: Sequence[str]) -> _Run:
    mean, std = tuple(map(float, side.mean)), tuple(map(float, side.std))

    def run(batch: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        static = (side.graph, mean, std, tuple(names), side.precision)
        predictions, spikes = _predict(dict(side.variables), jnp.asarray(batch), *static)
        return np.asarray(predictions), {name: np.asarray(values) for name, values in spikes.items()}

    return run


@partial(jax.jit, static_argnames=("graph", "mean", "std", "names", "precision"))
def _predict(
    variables: Any,
    batch: Array,
    graph: Graph,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    names: tuple[str, ...],
    precision: Precision,
) -> tuple[Array, dict[str, Array]]:
    """Predictions ``b`` and spikes by name; compiled once for each graph, size of a batch and precision."""
    images = normalize(batch, mean, std)
    output: Any = SpikingNetwork(graph, precision).apply(variables, images, capture=dict.fromkeys(names, _spikes_of))
    return jnp.argmax(jnp.mean(output.currents, axis=1), axis=-1), output.captured


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
        ValueError: mean and std do not match the pixels, or the pixels do not match the graph.
    """
    images = normalize(pixels, tuple(mean), tuple(std))
    output: Any = SpikingNetwork(graph, precision).apply(dict(variables), images)
    return jnp.mean(output.currents, axis=1)


def _spikes_of(trace: LIFTrace) -> Array:
    return trace.spikes

r"""The integer network: computes with integers, as a device does. Every generated program equals it bit for bit.

With :math:`a` and :math:`b` the scale and bias of a channel and F its fractional bits, a membrane is an int32:

.. math::
    V ← \lfloor V/2 \rfloor + 2^F Σ q S + \mathrm{round}(2^F b/a) + R·\mathrm{round}(2^F/a),
    \quad S = [V ≥ \lceil 2^F θ/a \rceil], \quad V ← V (1 - S)

The leak is an arithmetic shift by k = 1, or another one of :mod:`~qpsnn_jax.export.integer_neurons`. With
:math:`F ≥ k (T - 1)` the sums of integers are shifted without loss; F is larger if the bound of
:mod:`~qpsnn_jax.export.constants` allows it, so that b and θ are finer. A soft reset takes
:math:`\mathrm{round}(2^F θ/a)` off, at this step or (delayed) at the next. So the spikes are those of the real numbers
a, b and θ but where a membrane is within this rounding of the threshold. Uses only NumPy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpsnn_jax.export.constants import (
    FINE,
    FLOAT32,
    INT32,
    Constants,
    ReadoutConstants,
    neuron_constants,
    readout_constants,
)
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Concatenation, MaxPool, Neurons, Rates, Readout, Residual, Sum
from qpsnn_jax.kernels.geometry import Pair

# Images whose maps stay in a processor's cache, and elements in the patches that are multiplied at once.
_AT_ONCE, _CHUNK = 8, 2**24
_LARGEST_PIXEL = 255


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A folded network in integers, as a device computes it: ``IntegerNetwork.of(folded)(pixels)`` returns its logits.

    Attributes:
        folded: codes, scales and biases, from :func:`qpsnn_jax.fold` or :func:`qpsnn_jax.load_packed`.
        neurons: the integers of the layers of neurons, by name.
        readout: the integers of the last layer.
    """

    folded: Folded
    neurons: Mapping[str, Constants]
    readout: ReadoutConstants

    @classmethod
    def of(cls, folded: Folded) -> "IntegerNetwork":
        """The integers of a folded network.

        Raises:
            ValueError: a membrane or a logit could exceed 32 bits; the message names the layer.
        """
        neurons = {layer.name: neuron_constants(folded, layer) for layer in folded.neurons}
        return cls(folded, neurons, readout_constants(folded))

    @property
    def one(self) -> float:
        """An output current of 1, at one step, in logits: 1/(T·unit)."""
        return 1 / (self.folded.timesteps * self.readout.unit)

    def margin(self, threshold: float) -> int:
        """A threshold of :func:`qpsnn_jax.early_exit`, in currents, as the least difference of two logits."""
        return math.ceil(min(max(threshold * self.one, 0.0), 2.0**32 - 1))

    def __call__(self, pixels: np.ndarray, capture: list[str] | None = None) -> Any:
        """Logits of images, as integers.

        Args:
            pixels: uint8 images ``b h w c``, or frames ``b t h w c`` if the network takes frames.
            capture: names of layers whose maps are returned too, uint8 ``b t h w c``.

        Returns:
            int32 logits ``b classes``, the sum over the steps; their largest is the prediction, and times
            ``readout.unit`` they are the time-mean of the output currents, or the firing rates. With ``capture``, also
            ``{name: map}``.

        Raises:
            ValueError: the pixels are not uint8 of the network's shape, or ``capture`` names no layer.
        """
        if isinstance(capture, str):
            raise ValueError(f"capture must be a list of names, such as [{capture!r}], got {capture!r}.")
        output, named = self.folded.readout.name, dict.fromkeys(capture or ())
        known = [layer.name for layer in (self.folded.image, *self.folded.layers) if layer.name != output]
        if unknown := [name for name in named if name not in known]:
            layers = ", ".join(known)
            raise ValueError(f"capture names {unknown[0]!r}, which is not a layer of the network; those are {layers}.")
        maps = _run(self, pixels, (output, *named))
        logits = maps.pop(output).sum(1, dtype=np.int32)
        return logits if capture is None else (logits, maps)

    def by_step(self, pixels: np.ndarray) -> np.ndarray:
        """Logits of every step, int32 ``b t classes``; their sum over the steps is that of the whole call.

        The first t steps have the share t/T of the bias, rounded towards zero. So
        ``early_exit(network.by_step(pixels), network.margin(0.9))`` is the early exit of the integers.

        Args:
            pixels: as for the whole call.

        Raises:
            ValueError: the pixels are not uint8 of the network's shape.
        """
        output = self.folded.readout.name
        return _run(self, pixels, (output,))[output]


def _run(network: IntegerNetwork, pixels: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Maps of the layers of these names, uint8 ``b t h w c``; of the readout the logits, int32 ``b t classes``.

    Raises:
        ValueError: the pixels are not uint8 of the network's shape.
    """
    pixels = _checked_pixels(network.folded, pixels)
    parts = [_layers(network, pixels[i : i + _AT_ONCE], names) for i in range(0, len(pixels), _AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _layers(network: IntegerNetwork, pixels: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    folded, maps = network.folded, {network.folded.image.name: pixels}
    for layer in folded.layers:
        match layer:
            case Neurons():
                maps[layer.name] = _spikes(folded, layer, network.neurons[layer.name], maps)
            case MaxPool():
                maps[layer.name] = _patches(maps[layer.source], layer.window, layer.strides, layer.padding).max(
                    (-3, -2)
                )
            case Sum():
                maps[layer.name] = maps[layer.first] + maps[layer.second]
            case Concatenation():
                maps[layer.name] = np.concatenate([maps[name] for name in layer.sources], axis=-1)
            case Readout():
                maps[layer.name] = _logits(layer, network.readout, maps[layer.source])
            case Rates():
                spikes = maps[layer.source]
                maps[layer.name] = spikes.reshape(*spikes.shape[:2], -1).astype(np.int32)
    return {name: maps[name] for name in names}


def currents(layer: Neurons, constants: Constants, maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """Currents X of a layer in the units of its membranes, int64 ``b t h w o``; a static image has t = 1."""
    weights, (rows, columns) = constants.weights, layer.kernel.shape[:2]
    window = ((rows, columns), layer.strides, layer.padding, layer.dilation)
    patches = _patches(maps[layer.source], *window)
    sums = _products(patches, weights, constants.sums, layer.groups) << constants.shift
    if constants.fine is not None:
        parts = _LARGEST_PIXEL * int(constants.fine.sum((0, 1, 2)).max())
        sums += _products(patches, constants.fine, parts, layer.groups) << constants.shift >> FINE
    totals = constants.live * sums + constants.bias
    if constants.pads.any():
        inside = np.ones((1, 1, *maps[layer.source].shape[2:4], 1), np.uint8)
        outside = 1 - _patches(inside, *window)
        totals = totals + _products(outside, constants.pads[:, :, None], INT32)
    if layer.residual is not None:
        totals = totals + _carried(layer.residual, maps[layer.residual.source]) * constants.residual.astype(np.int64)
    return totals


def _products(patches: np.ndarray, weights: np.ndarray, bound: int, groups: int = 1) -> np.ndarray:
    """Σ of ``b t h w kh kw c`` times ``kh kw c/groups o``, int64, in pieces that bound the memory."""
    axis = next((axis for axis in range(4) if patches.shape[axis] > 1), None)
    if patches.size > _CHUNK and axis is not None:
        halves = np.array_split(patches, 2, axis)
        return np.concatenate([_products(half, weights, bound, groups) for half in halves], axis)
    # Every partial sum is an integer within the bound, so that products of floating numbers are exact.
    exact = np.float32 if bound < FLOAT32 else np.float64
    places, (rows, columns, inputs, outputs) = patches.shape[:4], weights.shape
    # A stack of products of matrices, one for each group.
    left = np.moveaxis(patches.reshape(-1, rows * columns, groups, inputs), 2, 0)
    right = np.moveaxis(weights.reshape(-1, groups, outputs // groups), 1, 0)
    products = left.reshape(groups, math.prod(places), -1).astype(exact) @ right.astype(exact)
    return np.moveaxis(products, 0, 1).reshape(*places, outputs).astype(np.int64)


def _spikes(folded: Folded, layer: Neurons, constants: Constants, maps: Mapping[str, np.ndarray]) -> np.ndarray:
    driven = currents(layer, constants, maps)
    # By the bound of the constants, int32 holds every membrane.
    driven = np.broadcast_to(driven, (len(driven), folded.timesteps, *driven.shape[2:])).astype(np.int32)
    spikes = np.zeros(driven.shape, np.uint8)
    membrane = np.zeros_like(driven[:, 0])
    for step in range(folded.timesteps):
        membrane, spikes[:, step] = constants.cell.step(membrane, driven[:, step], constants.threshold, constants.taken)
    return spikes


def _logits(layer: Readout, constants: ReadoutConstants, spikes: np.ndarray) -> np.ndarray:
    pooled = _patches(spikes, layer.window, layer.strides, (0, 0)).sum((-3, -2), dtype=np.int32)
    sums = _products(pooled[:, :, None, None], constants.weights, constants.bound)[:, :, 0, 0]
    steps = np.arange(spikes.shape[1] + 1)[:, None]
    # Towards zero, as C divides.
    shares = np.sign(constants.bias) * (np.abs(constants.bias.astype(np.int64)) * steps // steps[-1])
    return (sums + np.diff(shares, axis=0)).astype(np.int32)


def _carried(residual: Residual, spikes: np.ndarray) -> np.ndarray:
    channels = np.asarray(residual.channels)
    strided = spikes[:, :, :: residual.stride, :: residual.stride]
    return np.where(channels >= 0, strided[..., channels], 0).astype(np.int64)


def _patches(maps: np.ndarray, window: Pair, strides: Pair, padding: Pair, dilation: Pair = (1, 1)) -> np.ndarray:
    """Windows of ``b t h w c`` as ``b t h' w' kh kw c``, zeros outside."""
    (ph, pw), (sh, sw), (dh, dw) = padding, strides, dilation
    padded = np.pad(maps, ((0, 0), (0, 0), (ph, ph), (pw, pw), (0, 0)))
    spread = (dh * (window[0] - 1) + 1, dw * (window[1] - 1) + 1)
    seen = np.lib.stride_tricks.sliding_window_view(padded, spread, axis=(2, 3))
    return np.moveaxis(seen[:, :, ::sh, ::sw, :, ::dh, ::dw], 4, -1)


def _checked_pixels(folded: Folded, pixels: np.ndarray) -> np.ndarray:
    pixels, image = np.asarray(pixels), folded.image
    expected = (folded.timesteps, *image.shape) if image.frames else image.shape
    if pixels.dtype != np.uint8 or not pixels.size or pixels.shape[1:] != expected:
        wanted = " ".join(str(n) for n in expected)
        raise ValueError(f"pixels must be uint8 of shape b {wanted}, b 1 or more, got {pixels.dtype} {pixels.shape}.")
    return pixels if image.frames else pixels[:, None]

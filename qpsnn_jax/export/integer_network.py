r"""The network as a device computes it, in whole numbers: constants with their overflow bound, and an interpreter.

With :math:`a` and :math:`b` the scale and bias of a channel and F its fractional bits, a membrane is an int32:

.. math::
    V ← \lfloor V/2 \rfloor + 2^F Σ q S + \mathrm{round}(2^F b/a) + R·\mathrm{round}(2^F/a),
    \quad S = [V ≥ \lceil 2^F θ/a \rceil], \quad V ← V (1 - S)

The leak is an arithmetic shift. With F ≥ T - 1 it loses nothing of the sums of whole numbers; F is larger where the
bound allows it, so that b and θ are finer. NumPy alone: this is the reference that every generated program agrees with,
bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.export.folded import Folded, MaxPool, Neurons, Readout, Residual, Sum

# Whole numbers up to here are exact in float32, so that a simulation in float32 can follow.
_FLOAT32 = 2**24
_INT32 = 2**31
_MOST_FRACTION = 16
# Bits of a fine weight on pixels.
_FINE = 8
# A channel whose synapses together never move the membrane by more than this share of θ has a constant current.
_NEGLIGIBLE = 2.0**-14


class Constants(NamedTuple):
    """Whole numbers of one layer of neurons; per output channel, shape ``o``.

    ``weights`` are q, ``h w i o`` int32; on pixels ``fine`` are 256ths that come on top of them, 0 to 255, or None.
    ``shift`` is F. ``live`` is False where the current is constant: the synapses then count nothing. ``pads`` ``h w o``
    is what a tap outside the image adds (zero on spikes); ``residual`` what a residual spike adds. ``sums`` bounds the
    size of Σ q S, and ``low``, ``high`` the membrane.
    """

    weights: np.ndarray
    fine: np.ndarray | None
    shift: np.ndarray
    bias: np.ndarray
    threshold: np.ndarray
    residual: np.ndarray
    pads: np.ndarray
    live: np.ndarray
    sums: int
    low: np.ndarray
    high: np.ndarray


class ReadoutConstants(NamedTuple):
    """Whole numbers of the readout: weights ``h w i o`` and bias ``o``, int32; a logit times ``unit`` is a current."""

    weights: np.ndarray
    bias: np.ndarray
    unit: float
    bound: int


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A folded network with its whole numbers, by the names of its layers."""

    folded: Folded
    neurons: Mapping[str, Constants]
    readout: ReadoutConstants

    @classmethod
    def of(cls, folded: Folded) -> "IntegerNetwork":
        """The whole numbers of a folded network.

        Raises:
            ValueError: a membrane or a logit could leave 32 bits, naming the layer.
        """
        neurons = {layer.name: _constants(folded, layer) for layer in folded.neurons}
        return cls(folded, neurons, _readout_constants(folded))

    def __call__(self, pixels: np.ndarray, capture: list[str] | None = None) -> Any:
        """Logits of images, as whole numbers.

        Args:
            pixels: uint8 images ``b h w c``, or frames ``b t h w c`` where the network takes frames.
            capture: names of layers whose maps are returned too, uint8 ``b t h w c``.

        Returns:
            int32 logits ``b classes``, the sum over the steps; their largest is the prediction, and times
            ``readout.unit`` they are the time-mean of the output currents. With ``capture``, also
            ``{name: map}``.

        Raises:
            ValueError: the pixels are not uint8 of the network's shape, or ``capture`` names no layer.
        """
        maps = run_layers(self, pixels)
        logits = maps.pop(self.folded.readout.name)
        if capture is None:
            return logits
        if unknown := [name for name in capture if name not in maps]:
            raise ValueError(f"capture names {unknown[0]!r}, which is no layer of the network.")
        return logits, {name: maps[name] for name in capture}


def run_layers(network: IntegerNetwork, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Maps of every layer, uint8 ``b t h w c``, and the logits under the readout's name; see :class:`IntegerNetwork`.

    Raises:
        ValueError: the pixels are not uint8 of the network's shape.
    """
    folded = network.folded
    maps = {folded.image.name: _checked_pixels(folded, pixels)}
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
            case Readout():
                maps[layer.name] = _logits(layer, network.readout, maps[layer.source])
    return maps


def currents(layer: Neurons, constants: Constants, maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """Currents X of a layer in the whole numbers of its membranes, int64 ``b t h w o``; a static image has t = 1."""
    weights, size = constants.weights, layer.kernel.shape[:2]
    patches = _patches(maps[layer.source], (size[0], size[1]), layer.strides, layer.padding)
    sums = _products(patches, weights, constants.sums) << constants.shift
    if constants.fine is not None:
        sums += _products(patches, constants.fine, constants.sums) << constants.shift >> _FINE
    totals = constants.live * sums + constants.bias
    if constants.pads.any():
        inside = np.ones((1, 1, *maps[layer.source].shape[2:4], 1), np.uint8)
        outside = 1 - _patches(inside, (size[0], size[1]), layer.strides, layer.padding)
        totals = totals + _products(outside, constants.pads[:, :, None], _INT32)
    if layer.residual is not None:
        totals = totals + _carried(layer.residual, maps[layer.residual.source]) * constants.residual.astype(np.int64)
    return totals


def _products(patches: np.ndarray, weights: np.ndarray, bound: int) -> np.ndarray:
    # Every partial sum is a whole number within the bound, so that products of floating numbers are exact.
    exact = np.float32 if bound < _FLOAT32 else np.float64
    outputs = weights.shape[-1]
    return (patches.reshape(*patches.shape[:4], -1).astype(exact) @ weights.reshape(-1, outputs).astype(exact)).astype(
        np.int64
    )


def _spikes(folded: Folded, layer: Neurons, constants: Constants, maps: Mapping[str, np.ndarray]) -> np.ndarray:
    driven = currents(layer, constants, maps)
    # The bound of :func:`_constants` says that int32 holds every membrane.
    driven = np.broadcast_to(driven, (len(driven), folded.timesteps, *driven.shape[2:])).astype(np.int32)
    spikes = np.zeros(driven.shape, np.uint8)
    membrane = np.zeros_like(driven[:, 0])
    for step in range(folded.timesteps):
        membrane = (membrane >> 1) + driven[:, step]
        fired = membrane >= constants.threshold
        spikes[:, step] = fired
        membrane = np.where(fired, np.int32(0), membrane)
    return spikes


def _logits(layer: Readout, constants: ReadoutConstants, spikes: np.ndarray) -> np.ndarray:
    pooled = _patches(spikes.sum(1, keepdims=True, dtype=np.int64), layer.window, layer.strides, (0, 0)).sum((-3, -2))
    weights = constants.weights.reshape(-1, constants.weights.shape[-1]).astype(np.int64)
    return (pooled.reshape(len(pooled), -1) @ weights + constants.bias).astype(np.int32)


def _carried(residual: Residual, spikes: np.ndarray) -> np.ndarray:
    channels = np.asarray(residual.channels)
    strided = spikes[:, :, :: residual.stride, :: residual.stride]
    return np.where(channels >= 0, strided[..., channels], 0).astype(np.int64)


def _patches(
    maps: np.ndarray, window: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """Windows of ``b t h w c`` as ``b t h' w' kh kw c``, zeros outside."""
    (ph, pw), (sh, sw) = padding, strides
    padded = np.pad(maps, ((0, 0), (0, 0), (ph, ph), (pw, pw), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))
    return np.moveaxis(seen[:, :, ::sh, ::sw], 4, -1)


def _checked_pixels(folded: Folded, pixels: np.ndarray) -> np.ndarray:
    pixels, image = np.asarray(pixels), folded.image
    expected = (folded.timesteps, *image.shape) if image.frames else image.shape
    if pixels.dtype != np.uint8 or pixels.ndim != 1 + len(expected) or pixels.shape[1:] != expected:
        wanted = " ".join(str(n) for n in expected)
        raise ValueError(f"pixels must be uint8 of shape b {wanted}, got {pixels.dtype} {pixels.shape}.")
    return pixels if image.frames else pixels[:, None]


def _constants(folded: Folded, layer: Neurons) -> Constants:
    stem = layer.source == folded.image.name
    weights, fine, scale = _whole_weights(layer)
    largest = folded.maps[layer.source].largest
    above = 0 if fine is None else 1
    high = largest * np.maximum(weights + above, 0).sum((0, 1, 2), dtype=np.int64)
    low = largest * np.minimum(weights, 0).sum((0, 1, 2), dtype=np.int64)
    live = 2 * scale * np.maximum(high, -low) >= _NEGLIGIBLE * layer.threshold
    # What a pixel of mean colour adds at each tap: subtracted everywhere by the bias, given back outside the image.
    means = np.asarray(folded.image.mean if stem else np.zeros(weights.shape[2]))
    real = weights if fine is None else weights + fine / (1 << _FINE)
    pads = live * np.einsum("hwio,i->hwo", real, means)
    unit = np.where(live, scale, layer.threshold * _NEGLIGIBLE)
    added = folded.maps[layer.residual.source].largest if layer.residual else 0
    scaled = _Scaled(unit, layer, pads, live * high, live * low, added)
    shift = _shifts(scaled, folded.timesteps - 1, _FINE if above else _MOST_FRACTION)
    ends = scaled.ends(shift)
    worst = int(np.maximum(ends[1], -ends[0]).max())
    if worst >= _INT32:
        raise ValueError(
            f"layer {layer.name!r}: a membrane could reach {worst:,}, which 32 bits do not hold; "
            "its batch-norm has a bias far above the threshold, or it has too many inputs."
        )
    bias, threshold, residual, pads = (array.astype(np.int32) for array in scaled.rounded(shift))
    sums = int(max(high.max(), -low.min()))
    return Constants(weights, fine, shift.astype(np.int32), bias, threshold, residual, pads, live, sums, *ends)


class _Scaled(NamedTuple):
    """The real numbers of a layer's channels in units of 1 (before F), and what they become at F fractional bits."""

    unit: np.ndarray
    layer: Neurons
    pads: np.ndarray
    high: np.ndarray
    low: np.ndarray
    residual_largest: int

    def rounded(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Bias, threshold, residual and pads; capped, so that a hopeless channel shows in its bound."""
        one = np.ldexp(1.0, shift)
        bias = np.rint((self.layer.bias / self.unit - self.pads.sum((0, 1))) * one)
        level = self.layer.threshold / self.unit * one
        threshold = np.floor(level) + 1 if self.layer.strict else np.ceil(level)
        residual = np.rint(one / self.unit) if self.layer.residual else np.zeros_like(self.unit)
        arrays = (bias, threshold, residual, np.rint(self.pads * one))
        capped = (np.clip(array, -(2.0**52), 2.0**52).astype(np.int64) for array in arrays)
        bias, threshold, residual, pads = capped
        return bias, threshold, residual, pads

    def ends(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the membrane and of every sum on the way to it.

        With currents in [low, high] the membrane stays in [2·low - 2, high + min(high, θ/2 + 1)].
        """
        bias, threshold, residual, pads = self.rounded(shift)
        upper = (self.high << shift) + np.maximum(pads, 0).sum((0, 1)) + self.residual_largest * residual
        lower = (self.low << shift) + np.minimum(pads, 0).sum((0, 1))
        high, low = upper + np.maximum(bias, 0), lower + np.minimum(bias, 0)
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        return 2 * low - 2, np.maximum(high + np.minimum(high, threshold // 2 + 1), threshold)


def _shifts(scaled: _Scaled, wanted: int, most: int) -> np.ndarray:
    """The largest F up to ``most`` whose membranes are exact in float32; else T - 1, ``wanted``, or what 32 bits hold.

    Below T - 1 the shifts lose less than one unit a of the sums, in channels where a is tiny beside b and θ.
    """
    shift = np.zeros(len(scaled.unit), np.int64)
    for fraction in range(max(most, wanted) + 1):
        low, high = scaled.ends(np.full_like(shift, fraction))
        limit = _FLOAT32 if fraction > wanted else _INT32
        shift = np.where(np.maximum(high, -low) < limit, fraction, shift)
    return shift


def _whole_weights(layer: Neurons) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Whole weights, int32, their 256ths, and the scale of each channel; float32 weights become 24 bits, 16 and 8."""
    scale = layer.scale.astype(np.float64)
    if layer.kernel.dtype == np.uint8:
        return 2 * layer.kernel.astype(np.int32) - ((1 << layer.bits) - 1), None, scale
    if layer.kernel.dtype == np.int8:
        return layer.kernel.astype(np.int32), None, scale
    largest = np.abs(layer.kernel).max((0, 1, 2)).astype(np.float64)
    step = np.where(largest > 0, largest, 1) / _widest(layer)
    weights = np.rint(layer.kernel / step * (1 << _FINE)).astype(np.int32)
    return weights >> _FINE, weights & ((1 << _FINE) - 1), scale * step * (largest > 0)


def _widest(layer: Neurons) -> int:
    """The largest whole weight: 16 bits, or fewer where so many pixels are summed that 32 bits would not hold them."""
    taps = layer.kernel[..., 0].size
    return min(2**15, 2**21 // taps) - 1


def _readout_constants(folded: Folded) -> ReadoutConstants:
    layer = folded.readout
    bound, reads = 0, folded.timesteps * layer.window[0] * layer.window[1] * folded.maps[layer.source].largest
    for width in (8,) if layer.kernel.dtype == np.int8 else range(16, 7, -1):
        if layer.kernel.dtype == np.int8:
            weights, step = layer.kernel.astype(np.int64), 1.0
        else:
            # As many bits, up to 16, as leave the logits within 32.
            step = max(float(np.abs(layer.kernel).max()), 1e-30) / (2 ** (width - 1) - 1)
            weights = np.rint(layer.kernel.astype(np.float64) / step).astype(np.int64)
        unit = layer.scale * step / (folded.timesteps * layer.window[0] * layer.window[1])
        bias = np.clip(np.rint(layer.bias / unit), -(2.0**52), 2.0**52).astype(np.int64)
        bound = int((reads * np.abs(weights).sum((0, 1, 2)) + np.abs(bias)).max())
        if bound < _INT32:
            return ReadoutConstants(weights.astype(np.int32), bias.astype(np.int32), unit, bound)
    raise ValueError(
        f"layer {layer.name!r}: a logit could reach {bound:,}, which 32 bits do not hold; use fewer steps."
    )

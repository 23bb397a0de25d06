r"""The integers of a network: weights, biases, thresholds and shifts of every layer, with a bound on every membrane.

With :math:`a` and :math:`b` the scale and bias of a channel and F its fractional bits, a membrane counts in units of
:math:`a 2^{-F}`; bias, threshold and residuals are rounded to that. F is as large as the bound allows. Uses only NumPy.
"""

from typing import NamedTuple

import numpy as np

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Neurons, Rates
from qpsnn_jax.export.integer_neurons import Cell, Leak

# Integers up to here are exact in float32, so that a simulation in float32 can follow.
FLOAT32 = 2**24
INT32 = 2**31
_MOST_FRACTION = 16
# With more fractional bits, a single synapse would exceed 32 bits.
_LARGEST_SHIFT = 31
# Bits of a fine weight on pixels.
FINE = 8
# A channel whose synapses together never move the membrane by more than this share of θ has a constant current.
_NEGLIGIBLE = 2.0**-14


class Constants(NamedTuple):
    """Integers of one layer of neurons; per output channel, shape ``o``.

    ``weights`` are q, ``h w i/groups o`` int32; on pixels ``fine`` are additional 256ths, 0 to 255, or None. ``shift``
    is F. ``live`` is False if the current is constant: the synapses then have no effect. ``pads`` ``h w o`` is the
    contribution of a tap outside the image (zero on spikes); ``residual`` that of a residual spike. ``sums`` bounds the
    size of Σ q S, and ``low``, ``high`` the membrane. ``cell`` is their leak and reset; ``taken`` is what a spike takes
    off its membrane, zero for a reset to zero.
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
    cell: Cell
    taken: np.ndarray


class ReadoutConstants(NamedTuple):
    """Integers of the readout: weights ``h w i o`` and bias ``o``, int32; a logit times ``unit`` is a current.

    A network that ends in rates has neither weights nor a bias: its logits are sums over the steps.
    """

    weights: np.ndarray
    bias: np.ndarray
    unit: float
    bound: int


def neuron_constants(folded: Folded, layer: Neurons) -> Constants:
    """The integers of a layer of neurons.

    Raises:
        ValueError: a membrane could exceed 32 bits; the message names the layer.
    """
    scaled = _narrowed(folded, layer)
    shift = _shifts(scaled, scaled.cell.leak.shift * (folded.timesteps - 1))
    ends = scaled.ends(shift)
    _check_bound(scaled, ends)
    bias, threshold, taken, residual, pads = (array.astype(np.int32) for array in scaled.rounded(shift))
    numbers = (shift.astype(np.int32), bias, threshold, residual, pads)
    return Constants(scaled.weights, scaled.fine, *numbers, scaled.live, scaled.sums, *ends, scaled.cell, taken)


class _Scaled(NamedTuple):
    """A layer's weights in integers; the real numbers of its channels in units of 1 (before F), and as integers at F.

    Its fields up to ``live`` are those of :class:`Constants`; ``unit`` is a.
    """

    weights: np.ndarray
    fine: np.ndarray | None
    sums: int
    live: np.ndarray
    unit: np.ndarray
    layer: Neurons
    theta: np.ndarray
    cell: Cell
    pads: np.ndarray
    high: np.ndarray
    low: np.ndarray
    residual_largest: int
    timesteps: int

    def rounded(self, shift: np.ndarray) -> tuple[np.ndarray, ...]:
        """Bias, threshold, θ as it is taken off, residual and pads.

        They are clipped, so that a channel out of range shows in its bound.
        """
        one = np.ldexp(1.0, shift)
        bias = np.rint((self.layer.bias / self.unit - self.pads.sum((0, 1))) * one)
        level, strict = self.theta / self.unit * one, self.layer.strict
        threshold, taken = np.floor(level) + 1 if strict else np.ceil(level), np.rint(level)
        residual = np.zeros_like(level)
        if self.layer.residual:
            # Synapses often add up to 0, and then residual spikes alone meet a θ of 1 or 2 exactly. So where there is
            # no bias either, θ is rounded as the spikes that meet it, up, or down if they must exceed it; with a θ of 1
            # sums without a residual spike stay exact too.
            meet = (self.layer.bias == 0) & (self.theta == np.rint(self.theta))
            spike = np.floor(one / self.unit) if strict else np.ceil(one / self.unit)
            residual = np.where(meet, spike, np.rint(one / self.unit))
            threshold = np.where(meet, self.theta * spike + strict, threshold)
            taken = np.where(meet, self.theta * spike, taken)
        if self.cell.reset == "hard":
            taken = np.zeros_like(level)
        return tuple(_capped(array) for array in (bias, threshold, taken, residual, np.rint(self.pads * one)))

    def beyond(self, ends: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The channels whose membranes could exceed the limit."""
        return np.maximum(ends[1], -ends[0]) >= self.cell.limit

    def ends(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the membrane and of every sum on the way to it.

        A constant current adds up g times (:meth:`Leak.gain`), and each step rounds by less than 1. So with currents in
        [low, high] the membrane stays in [g·(low - 1), g·high + g], of which a reset to zero leaves at most high and
        the leaked θ; with the delayed reset it may fall another θ. With the leak ½ it is
        [2·low - 2, high + min(high, θ/2 + 1)].
        """
        bias, threshold, taken, residual, pads = self.rounded(shift)
        upper = _capped(np.ldexp(self.high, shift)) + np.maximum(pads, 0).sum((0, 1))
        upper += self.residual_largest * residual
        lower = _capped(np.ldexp(self.low, shift)) + np.minimum(pads, 0).sum((0, 1))
        high, low = upper + np.maximum(bias, 0), lower + np.minimum(bias, 0)
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        leak, shifted = self.cell.leak, self.cell.leak.shift > 0
        gain, rest = leak.gain(self.timesteps), leak.rest
        left = (gain - 1) * (high + (rest & shifted)) + (rest & shifted)
        if self.cell.reset == "hard":
            left = np.minimum(left, leak(threshold) + 1)
        fall = taken if self.cell.reset == "delayed" else 0
        return gain * (low - (~rest & shifted)) - fall, np.maximum(high + left, threshold)


def _capped(values: np.ndarray) -> np.ndarray:
    """Integers; those that exceed 32 bits as ±2³², whose sums stay within int64."""
    return np.clip(values, -(2.0**32), 2.0**32).astype(np.int64)


def _narrowed(folded: Folded, layer: Neurons) -> _Scaled:
    """A layer in integers; float32 weights have fewer bits in the channels whose scale is far below the threshold.

    Counted in units of their smallest weight, θ would otherwise exceed 32 bits there.
    """
    widest = np.full(layer.scale.shape, float(_widest(layer)))
    while True:
        scaled = _scaled(folded, layer, widest)
        # Not below the 8 bits of the 256ths.
        narrower = scaled.beyond(scaled.ends(np.zeros(len(widest), np.int64))) & (widest >= 1)
        if scaled.fine is None or not narrower.any():
            return scaled
        widest = np.where(narrower, widest / 2, widest)


def _scaled(folded: Folded, layer: Neurons, widest: np.ndarray) -> _Scaled:
    """A layer in integers, of which the float32 weights of a channel reach ``widest``."""
    weights, fine, scale = _integer_weights(layer, widest)
    largest, above = folded.maps[layer.source].largest, 0 if fine is None else 1
    high = largest * np.maximum(weights + above, 0).sum((0, 1, 2), dtype=np.int64)
    low = largest * np.minimum(weights, 0).sum((0, 1, 2), dtype=np.int64)
    theta = np.asarray(layer.threshold, np.float64)
    cell = Cell(Leak.of(np.broadcast_to(layer.tau, scale.shape)), layer.reset)
    live = cell.leak.gain(folded.timesteps) * scale * np.maximum(high, -low) >= _NEGLIGIBLE * theta
    # The contribution of a pixel of mean colour at each tap: the bias subtracts it everywhere, ``pads`` adds it
    # outside.
    real = weights if fine is None else weights + fine / (1 << FINE)
    pads = live * np.einsum("hwio,io->hwo", real, _means(folded, layer))
    unit = np.where(live, scale, theta * _NEGLIGIBLE)
    added = folded.maps[layer.residual.source].largest if layer.residual else 0
    sums, reach = int(max(high.max(), -low.min())), (live * high.astype(np.float64), live * low.astype(np.float64))
    return _Scaled(weights, fine, sums, live, unit, layer, theta, cell, pads, *reach, added, folded.timesteps)


def _means(folded: Folded, layer: Neurons) -> np.ndarray:
    """The mean of the pixels that each weight ``i/groups o`` reads; zero on spikes."""
    inputs, outputs = layer.kernel.shape[2:]
    if layer.source != folded.image.name:
        return np.zeros((inputs, outputs))
    return np.repeat(np.reshape(folded.image.mean, (layer.groups, inputs)).T, outputs // layer.groups, axis=1)


def _check_bound(scaled: _Scaled, ends: tuple[np.ndarray, np.ndarray]) -> None:
    if not scaled.beyond(ends).any():
        return
    weak = scaled.theta / scaled.unit >= scaled.cell.limit
    cause = "its batch-norm has a bias far above the threshold, or it has too many inputs"
    if weak.any():
        cause = f"the weights of its output {weak.argmax()}, times the scale, are far below the threshold"
    raise ValueError(
        f"layer {scaled.layer.name!r}: a membrane could reach {int(np.maximum(ends[1], -ends[0]).max()):,}, "
        f"which exceeds {scaled.cell.limit.bit_length()} bits; {cause}."
    )


def _shifts(scaled: _Scaled, wanted: np.ndarray) -> np.ndarray:
    """The largest F, within limits, whose membranes are exact in float32; else ``wanted``, or less for 32 bits.

    Those wanted are k (T - 1) for a leak that shifts by k. With less the shifts lose less than one unit a of the sums,
    in channels where a is tiny beside b and θ.
    """
    most, shift = _MOST_FRACTION if scaled.fine is None else FINE, np.zeros(len(scaled.unit), np.int64)
    for fraction in range(min(max(most, int(wanted.max())), _LARGEST_SHIFT) + 1):
        low, high = scaled.ends(np.full_like(shift, fraction))
        limit = np.where(fraction > wanted, FLOAT32, scaled.cell.limit)
        shift = np.where(np.maximum(high, -low) < limit, fraction, shift)
    return shift


def _integer_weights(layer: Neurons, widest: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Integer weights, int32, their 256ths, and the scale of each channel; float32 ones reach ``widest`` in each."""
    scale = layer.scale.astype(np.float64)
    if layer.kernel.dtype == np.uint8:
        return layer.integers, None, scale
    if layer.kernel.dtype == np.int8:
        return layer.kernel.astype(np.int32), None, scale
    largest = np.abs(layer.kernel).max((0, 1, 2)).astype(np.float64)
    step = np.where(largest > 0, largest, 1) / widest
    weights = np.rint(layer.kernel / step * (1 << FINE)).astype(np.int32)
    return weights >> FINE, weights & ((1 << FINE) - 1), scale * step * (largest > 0)


def _widest(layer: Neurons) -> int:
    """The largest integer weight: 16 bits, or down to 8 if the sum of so many pixels would exceed 32 bits."""
    taps = layer.kernel[..., 0].size
    return max(2**7, min(2**15, 2**21 // taps)) - 1


def readout_constants(folded: Folded) -> ReadoutConstants:
    """The integers of the readout.

    Raises:
        ValueError: a logit could exceed 32 bits; the message names the layer.
    """
    layer = folded.readout
    if isinstance(layer, Rates):
        classes, bound = folded.classes, folded.timesteps * folded.maps[layer.source].largest
        nothing = np.zeros((1, 1, 0, classes), np.int32)
        return ReadoutConstants(nothing, np.zeros(classes, np.int32), 1 / folded.timesteps, bound)
    bound, reads = 0, folded.timesteps * layer.window[0] * layer.window[1] * folded.maps[layer.source].largest
    integers = layer.kernel.dtype != np.float32
    for width in (8,) if integers else range(16, 7, -1):
        if layer.kernel.dtype == np.int8:
            weights, step = layer.kernel.astype(np.int64), 1.0
        elif layer.kernel.dtype == np.uint8:
            weights, step = layer.integers.astype(np.int64), 1.0
        else:
            # As many bits, up to 16, as keep the logits within 32 bits.
            step = max(float(np.abs(layer.kernel).max()), 1e-30) / (2 ** (width - 1) - 1)
            weights = np.rint(layer.kernel.astype(np.float64) / step).astype(np.int64)
        unit = layer.scale * step / (folded.timesteps * layer.window[0] * layer.window[1])
        bias = np.clip(np.rint(layer.bias / unit), -(2.0**52), 2.0**52).astype(np.int64)
        bound = int((reads * np.abs(weights).sum((0, 1, 2)) + np.abs(bias)).max())
        if bound < INT32:
            return ReadoutConstants(weights.astype(np.int32), bias.astype(np.int32), unit, bound)
    raise ValueError(f"layer {layer.name!r}: a logit could reach {bound:,}, which exceeds 32 bits; use fewer steps.")

"""The layers of a folded network: integer codes, one scale and one bias per channel. Uses only NumPy.

Maps are ``h w c``; a dense layer is a convolution whose kernel covers its complete input. Values are spikes, 0 or 1, or
sums of them (small integers).
"""

from dataclasses import dataclass

import numpy as np

from qpsnn_jax.kernels.geometry import Pair

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Image:
    """The input: uint8 pixels ``h w c``, or with ``frames`` one such frame for each step.

    ``mean`` is, for each channel, the pixel value that normalization turns into zero; padding has that value.
    """

    name: str
    shape: Shape
    mean: tuple[float, ...]
    frames: bool = False


@dataclass(frozen=True)
class Residual:
    """Spikes that are added to a layer's currents: output channel c gets channel ``channels[c]``, -1 gets none."""

    source: str
    channels: tuple[int, ...]
    stride: int = 1


@dataclass(frozen=True, eq=False)
class Neurons:
    r"""A convolution and its neurons: :math:`X = a · Σ q S + b + R`, decay by τ, fire at θ, reset.

    Attributes:
        name, source: of this layer's spikes and of the map it reads.
        kernel: ``h w i o``: uint8 codes c, with :math:`q = 2c - s` and :math:`s = 2^b - 1`, or 2 if they are ternary.
            On pixels it is the weight of one grey level, and may also be q in int8, or float32.
        bits: b of the codes, 1 to 8; of int8 8, of float32 32.
        strides, padding: as those of :class:`qpsnn_jax.model.nodes.Conv`.
        scale: a, float32 of shape ``o``, positive, or zero where the synapses have no effect.
        bias: b, float32 of shape ``o``.
        threshold: θ, one number or float32 of shape ``o``.
        strict: fire at > θ instead of ≥ θ.
        residual: R, if any.
        levels: of the codes: 3 if they are ternary, with 2 bits, else None for 2^b.
        groups, dilation: as those of :class:`qpsnn_jax.model.nodes.Conv`; the kernel is ``h w i/groups o``.
        mask: bool, of the shape of the kernel: false where q is zero and the kernel holds 0; None for no mask.
        tau: τ, one number or float32 of shape ``o``: those of :class:`~qpsnn_jax.export.integer_neurons.Leak`.
        reset: as that of :class:`qpsnn_jax.model.nodes.LIF`.
    """

    name: str
    source: str
    kernel: np.ndarray
    bits: int
    strides: Pair
    padding: Pair
    scale: np.ndarray
    bias: np.ndarray
    threshold: float | np.ndarray = 1.0
    strict: bool = False
    residual: Residual | None = None
    levels: int | None = None
    groups: int = 1
    dilation: Pair = (1, 1)
    mask: np.ndarray | None = None
    tau: float | np.ndarray = 0.5
    reset: str = "hard"

    @property
    def top(self) -> int:
        """s, the largest code."""
        return (self.levels or 1 << self.bits) - 1

    @property
    def integers(self) -> np.ndarray:
        """Q of the codes, int32."""
        return _integers_of(self)


@dataclass(frozen=True)
class MaxPool:
    """OR of spikes over windows."""

    name: str
    source: str
    window: Pair
    strides: Pair
    padding: Pair


@dataclass(frozen=True)
class Sum:
    """Sum of two maps."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class Concatenation:
    """The channels of several maps, one after the other."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Readout:
    r"""Sums over windows, then a dense layer, :math:`y = a · Σ q n / (T·window) + b` averaged over the T steps.

    Attributes:
        name, source: of this layer and of the map it reads.
        window, strides: of the average-pool, ``(1, 1)`` for none.
        kernel: ``h w i o`` over the pooled map: uint8 codes c with :math:`q = 2c - s` as in :class:`Neurons`, q in
            int8, or float32.
        scale: a, one number for all classes, so that their integers compare; 1 for float32.
        bias: b, float32 of shape ``o``.
        bits: b of the codes, 1 to 8; of int8 8, of float32 32.
        mask: as that of :class:`Neurons`.
    """

    name: str
    source: str
    window: Pair
    strides: Pair
    kernel: np.ndarray
    scale: float
    bias: np.ndarray
    bits: int
    mask: np.ndarray | None = None

    @property
    def top(self) -> int:
        """s, the largest code."""
        return (1 << self.bits) - 1

    @property
    def integers(self) -> np.ndarray:
        """Q of the codes, int32."""
        return _integers_of(self)


@dataclass(frozen=True)
class Rates:
    """The mean of a map over the T steps, such as firing rates; one output for each of its values."""

    name: str
    source: str


Layer = Neurons | MaxPool | Sum | Concatenation | Readout | Rates


@dataclass(frozen=True)
class Map:
    """Shape ``(h, w, c)`` of a layer's output at one step, and the largest value in it."""

    shape: Shape
    largest: int


def sources(layer: Layer) -> tuple[str, ...]:
    """Names of the maps that a layer reads."""
    match layer:
        case Sum():
            return (layer.first, layer.second)
        case Concatenation():
            return layer.sources
        case Neurons(residual=Residual(source=other)):
            return (layer.source, other)
    return (layer.source,)


def among_all(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Weights ``h w i/groups o`` as ``h w i o``, zero for inputs of other groups."""
    if groups == 1:
        return kernel
    h, w, inputs, outputs = kernel.shape
    whole = np.zeros((h, w, groups, inputs, groups, outputs // groups), kernel.dtype)
    parts = kernel.reshape(h, w, inputs, groups, outputs // groups)
    for group in range(groups):
        whole[:, :, group, :, group] = parts[:, :, :, group]
    return whole.reshape(h, w, groups * inputs, outputs)


def _integers_of(layer: Neurons | Readout) -> np.ndarray:
    integers = 2 * layer.kernel.astype(np.int32) - layer.top
    return integers if layer.mask is None else integers * layer.mask

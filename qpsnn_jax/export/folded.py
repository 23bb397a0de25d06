"""A folded network: layers of spiking neurons as integer codes, one scale and one bias per channel. Uses only NumPy.

The packed file holds it, and every integer export starts from it. Maps are ``h w c``; a dense layer is a
convolution whose kernel covers its complete input. Values are spikes, 0 or 1, or sums of them (small integers).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.runtime.checks import integer

Shape = tuple[int, int, int]

# More than any network of the paper needs. They bound what a small file can ask for: steps, the values of a map and of
# all maps over all steps, the multiplications for one image, and any other size.
MOST_STEPS = 1024
MOST_VALUES = 2**26
MOST_VALUES_IN_ALL = 2**29
MOST_PRODUCTS = 2**42
_MOST = 2**15
_LARGEST_LOGIT = 2**31


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
    r"""A convolution and its neurons: :math:`X = a · Σ q S + b + R`, leak ½, fire at θ, reset to zero.

    Attributes:
        name, source: of this layer's spikes and of the map it reads.
        kernel: ``h w i o``: uint8 codes c, with :math:`q = 2c - s` and :math:`s = 2^b - 1`, or 2 if they are ternary.
            On pixels it is the weight of one grey level, and may also be q in int8, or float32.
        bits: b of the codes, 1 to 8; of int8 8, of float32 32.
        strides, padding: as those of :class:`qpsnn_jax.model.nodes.Conv`.
        scale: a, float32 of shape ``o``, positive, or zero where the synapses have no effect.
        bias: b, float32 of shape ``o``.
        threshold: θ.
        strict: fire at > θ instead of ≥ θ.
        residual: R, if any.
        levels: of the codes: 3 if they are ternary, with 2 bits, else None for 2^b.
        groups, dilation: as those of :class:`qpsnn_jax.model.nodes.Conv`; the kernel is ``h w i/groups o``.
        mask: bool, of the shape of the kernel: false where q is zero and the kernel holds 0; None for no mask.
    """

    name: str
    source: str
    kernel: np.ndarray
    bits: int
    strides: Pair
    padding: Pair
    scale: np.ndarray
    bias: np.ndarray
    threshold: float = 1.0
    strict: bool = False
    residual: Residual | None = None
    levels: int | None = None
    groups: int = 1
    dilation: Pair = (1, 1)
    mask: np.ndarray | None = None

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


Layer = Neurons | MaxPool | Sum | Concatenation | Readout


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded network: its input, its layers in order, the :class:`Readout` last, and the number of steps T.

    Raises:
        ValueError: at construction, if anything is inconsistent; the message names the layer.
    """

    image: Image
    layers: tuple[Layer, ...]
    timesteps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "timesteps", integer("timesteps", self.timesteps, 1, MOST_STEPS))
        _ = self.maps

    @cached_property
    def maps(self) -> "dict[str, Map]":
        """Shape and largest value of every map, by name."""
        image = self.image
        _integers("the image's shape", image.shape, 3, 1)
        if len(image.mean) != image.shape[2] or not all(-1e6 < m < 1e6 for m in image.mean):
            raise ValueError(f"the image needs {image.shape[2]} means, one for each channel, got {image.mean}.")
        maps = {image.name: Map(image.shape, 255)}
        readouts = [index for index, layer in enumerate(self.layers) if isinstance(layer, Readout)]
        if readouts != [len(self.layers) - 1]:
            raise ValueError("a folded network needs exactly one readout, as its last layer.")
        for layer in self.layers:
            if layer.name in maps:
                raise ValueError(f"layer {layer.name!r}: another layer has the same name.")
            for name in sources(layer):
                if name not in maps:
                    raise ValueError(f"layer {layer.name!r}: its input {name!r} is not an earlier layer.")
                if name == image.name and not (isinstance(layer, Neurons) and name == layer.source):
                    raise ValueError(f"layer {layer.name!r}: only a convolution may read the image.")
            try:
                maps[layer.name] = _map(layer, maps, image.name)
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r}: {error}") from None
        self._check_sizes(maps)
        return maps

    def _check_sizes(self, maps: "dict[str, Map]") -> None:
        values = {name: math.prod(place.shape) * self.timesteps for name, place in maps.items()}
        for name, number in values.items():
            if number > MOST_VALUES:
                raise ValueError(f"layer {name!r}: {self.timesteps} maps of shape {maps[name].shape} are too large.")
        products = sum(values[layer.name] * _synapses(layer) for layer in self.layers)
        if sum(values.values()) > MOST_VALUES_IN_ALL or products > MOST_PRODUCTS:
            raise ValueError(f"a network of {products:,} operations and {sum(values.values()):,} values is too large.")

    @property
    def readout(self) -> Readout:
        """The last layer."""
        last = self.layers[-1]
        assert isinstance(last, Readout)
        return last

    @property
    def neurons(self) -> Iterator[Neurons]:
        """The layers of neurons, in order."""
        return (layer for layer in self.layers if isinstance(layer, Neurons))


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


def _synapses(layer: Layer) -> int:
    """The number of values from which each value of a layer's map is computed."""
    if isinstance(layer, MaxPool):
        return math.prod(layer.window)
    return 1 if isinstance(layer, Sum | Concatenation) else math.prod(layer.kernel.shape[:3])


def _map(layer: Layer, maps: dict[str, Map], image: str) -> Map:
    match layer:
        case Sum():
            first, second = maps[layer.first], maps[layer.second]
            if first.shape != second.shape:
                raise ValueError(f"adds maps of shape {first.shape} and {second.shape}.")
            if first.largest + second.largest > 255:
                raise ValueError("sums of spikes above 255 do not fit into 8 bits.")
            return Map(first.shape, first.largest + second.largest)
        case Concatenation():
            return _joined([maps[name] for name in layer.sources])
        case MaxPool():
            if maps[layer.source].largest != 1:
                raise ValueError("max-pool takes spikes, 0 or 1, not sums of them.")
            *size, channels = maps[layer.source].shape
            return Map((*_pooled(size, layer.window, layer.strides, layer.padding), channels), 1)
        case Neurons():
            return _neurons_map(layer, maps, image)
        case Readout():
            return _readout_map(layer, maps)


def _joined(maps: list[Map]) -> Map:
    if len({place.shape[:2] for place in maps}) != 1:
        raise ValueError(f"concatenates maps of the shapes {', '.join(str(place.shape) for place in maps)}.")
    (h, w, _), channels = maps[0].shape, sum(place.shape[2] for place in maps)
    return Map((h, w, channels), max(place.largest for place in maps))


def _neurons_map(layer: Neurons, maps: dict[str, Map], image: str) -> Map:
    kernel, source, groups = layer.kernel, maps[layer.source].shape, integer("its groups", layer.groups, 1, _MOST)
    fits = _has_codes(layer) or (layer.source == image and _has_weights(layer))
    if not fits or kernel.ndim != 4 or kernel.shape[2] * groups != source[2] or not kernel.size:
        raise ValueError(f"a kernel {kernel.dtype} {kernel.shape} of {layer.bits} bits does not fit {source}.")
    if kernel.shape[3] % groups:
        raise ValueError(f"groups of {groups} do not divide its {kernel.shape[3]} outputs.")
    _check_codes(layer)
    if layer.levels is not None and (layer.levels, layer.bits, kernel.dtype) != (3, 2, np.uint8):
        raise ValueError(f"only codes of 2 bits can have 3 levels, got {layer.levels} levels.")
    outputs = kernel.shape[3]
    _floats(scale=layer.scale, bias=layer.bias, shape=(outputs,))
    if (kernel.dtype == np.float32 and not np.isfinite(kernel).all()) or not (layer.scale >= 0).all():
        raise ValueError("weights must be finite, and scales not negative.")
    if not 1e-6 < layer.threshold < 1e6:
        raise ValueError(f"the threshold must be positive, between 1e-6 and 1e6, got {layer.threshold}.")
    size = _pooled(source[:2], (kernel.shape[0], kernel.shape[1]), layer.strides, layer.padding, layer.dilation)
    if (residual := layer.residual) is not None:
        h, w, channels = maps[residual.source].shape
        stride = integer("the stride of its residual", residual.stride, 1, _MOST)
        if not set(residual.channels) <= {-1, *range(channels)}:
            raise ValueError("its residual names channels that do not exist.")
        given = (-(-h // stride), -(-w // stride), len(residual.channels))
        if given != (*size, outputs):
            raise ValueError(f"adds a residual of shape {given} to currents of shape {(*size, outputs)}.")
    return Map((*size, outputs), 1)


def _readout_map(layer: Readout, maps: dict[str, Map]) -> Map:
    *size, channels = maps[layer.source].shape
    pooled = (*_pooled(size, layer.window, layer.strides, (0, 0)), channels)
    kernel = layer.kernel
    fits = _has_codes(layer) or _has_weights(layer)
    if not fits or kernel.ndim != 4 or kernel.shape[:3] != pooled or not kernel.size:
        raise ValueError(f"a kernel {kernel.dtype} {kernel.shape} does not fit {pooled}.")
    _check_codes(layer)
    _floats(bias=layer.bias, shape=(kernel.shape[3],))
    if not (np.isfinite(kernel).all() and math.isfinite(layer.scale) and layer.scale > 0):
        raise ValueError("weights must be finite, and the scale positive.")
    if kernel.dtype == np.float32 and layer.scale != 1:
        raise ValueError(f"float32 weights have the scale 1, got {layer.scale}.")
    return Map((1, 1, kernel.shape[3]), _LARGEST_LOGIT)


def _has_codes(layer: Neurons | Readout) -> bool:
    return layer.kernel.dtype == np.uint8 and layer.bits in range(1, 9)


def _has_weights(layer: Neurons | Readout) -> bool:
    return (layer.bits, layer.kernel.dtype) in ((8, np.int8), (32, np.float32))


def _check_codes(layer: Neurons | Readout) -> None:
    if layer.kernel.dtype == np.uint8 and int(layer.kernel.max()) > layer.top:
        raise ValueError(f"a code is above {layer.top}.")
    if (mask := layer.mask) is None:
        return
    if mask.dtype != np.bool_ or mask.shape != layer.kernel.shape or layer.kernel[~mask].any():
        raise ValueError("its mask must be bool, of the shape of its kernel, which is 0 where the mask is false.")


def _integers_of(layer: Neurons | Readout) -> np.ndarray:
    integers = 2 * layer.kernel.astype(np.int32) - layer.top
    return integers if layer.mask is None else integers * layer.mask


def _pooled(
    size: list[int] | tuple[int, ...], window: Pair, strides: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Pair:
    _integers("its window", window, 2, 1)
    _integers("its strides", strides, 2, 1)
    _integers("its padding", padding, 2, 0)
    _integers("its dilation", dilation, 2, 1)
    if any(p > d * (k - 1) for p, k, d in zip(padding, window, dilation, strict=True)):
        raise ValueError(f"a window of {window} can lie in a padding of {padding} alone.")
    output = Geometry((size[0], size[1]), window, strides, padding, dilation).output_hw
    if min(output) < 1:
        raise ValueError(f"a window of {window} does not fit {size[0]}×{size[1]} with padding {padding}.")
    return output


def _integers(name: str, values: tuple[int, ...], count: int, least: int) -> None:
    if not isinstance(values, tuple) or len(values) != count:
        raise ValueError(f"{name} must be {count} integers, got {values!r}.")
    for value in values:
        integer(name, value, least, _MOST)


def _floats(shape: tuple[int, ...], **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} must be {shape[0]} finite float32 numbers.")

"""The checks of a folded network: every layer fits the maps it reads, and none is too large. Uses only NumPy."""

import math

import numpy as np

from qpsnn_jax.export.folded_layers import Concatenation, Image, Layer, Map, MaxPool, Neurons, Rates, Readout, Sum
from qpsnn_jax.export.integer_neurons import Leak
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.runtime.checks import integer

# More than any network of the paper needs. They bound what a small file can ask for: steps, the values of a map over
# all steps, those of all maps or of one with its padding, the multiplications of an image, and any other size.
MOST_STEPS = 1024
MOST_VALUES = 2**26
_MOST_VALUES_IN_ALL = 2**29
_MOST_PRODUCTS = 2**42
_MOST = 2**15
_LARGEST_LOGIT = 2**31


def check_image(image: Image) -> Map:
    """The map of the pixels.

    Raises:
        ValueError: its shape or its means are out of range.
    """
    _integers("the image's shape", image.shape, 3, 1)
    if len(image.mean) != image.shape[2] or not all(-1e6 < m < 1e6 for m in image.mean):
        raise ValueError(f"the image needs {image.shape[2]} means, one for each channel, got {image.mean}.")
    return Map(image.shape, 255)


def check_sizes(layers: tuple[Layer, ...], maps: dict[str, Map], timesteps: int) -> None:
    """Check that maps and products are not too large.

    Raises:
        ValueError: they are.
    """
    values = {name: math.prod(place.shape) * timesteps for name, place in maps.items()}
    for name, number in values.items():
        if number > MOST_VALUES:
            raise ValueError(f"layer {name!r}: {timesteps} maps of shape {maps[name].shape} are too large.")
    for layer in layers:
        if isinstance(layer, Neurons | MaxPool) and _padded(layer, maps) * timesteps > _MOST_VALUES_IN_ALL:
            raise ValueError(f"layer {layer.name!r}: its padding of {layer.padding} is too large.")
    products = sum(values[layer.name] * _synapses(layer) for layer in layers)
    if sum(values.values()) > _MOST_VALUES_IN_ALL or products > _MOST_PRODUCTS:
        raise ValueError(f"a network of {products:,} operations and {sum(values.values()):,} values is too large.")


def _padded(layer: Neurons | MaxPool, maps: dict[str, Map]) -> int:
    """The number of values of the map that a layer reads, with its padding."""
    h, w, channels = maps[layer.source].shape
    return (h + 2 * layer.padding[0]) * (w + 2 * layer.padding[1]) * channels


def _synapses(layer: Layer) -> int:
    """The number of values from which each value of a layer's map is computed."""
    if isinstance(layer, MaxPool):
        return math.prod(layer.window)
    return 1 if isinstance(layer, Sum | Concatenation | Rates) else math.prod(layer.kernel.shape[:3])


def map_of(layer: Layer, maps: dict[str, Map], image: str) -> Map:
    """The map of a layer.

    Args:
        layer: any.
        maps: those of the image and of earlier layers, by name.
        image: the image's name.

    Raises:
        ValueError: the layer does not fit the maps that it reads, or its numbers are out of range.
    """
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
        case Rates():
            return Map((1, 1, math.prod(maps[layer.source].shape)), _LARGEST_LOGIT)


def _joined(maps: list[Map]) -> Map:
    if len({place.shape[:2] for place in maps}) != 1:
        raise ValueError(f"concatenates maps of the shapes {', '.join(str(place.shape) for place in maps)}.")
    (h, w, _), channels = maps[0].shape, sum(place.shape[2] for place in maps)
    # They may double from layer to layer.
    if h * w * channels > MOST_VALUES:
        raise ValueError(f"concatenates {channels:,} channels, which are too many.")
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
    _check_dynamics(layer, outputs)
    size = _pooled(source[:2], (kernel.shape[0], kernel.shape[1]), layer.strides, layer.padding, layer.dilation)
    if (residual := layer.residual) is not None:
        h, w, channels = maps[residual.source].shape
        stride = integer("the stride of its residual", residual.stride, 1, _MOST)
        if not -1 <= min(residual.channels, default=-1) <= max(residual.channels, default=-1) < channels:
            raise ValueError("its residual names channels that do not exist.")
        given = (-(-h // stride), -(-w // stride), len(residual.channels))
        if given != (*size, outputs):
            raise ValueError(f"adds a residual of shape {given} to currents of shape {(*size, outputs)}.")
    return Map((*size, outputs), 1)


def _check_dynamics(layer: Neurons, outputs: int) -> None:
    for name, value in (("threshold", layer.threshold), ("tau", layer.tau)):
        if isinstance(value, np.ndarray):
            _floats(**{name: value}, shape=(outputs,))
    threshold = np.asarray(layer.threshold)
    if not ((threshold > 1e-6) & (threshold < 1e6)).all():
        raise ValueError(f"the threshold must be positive, between 1e-6 and 1e6, got {layer.threshold}.")
    if layer.reset not in ("hard", "soft", "delayed"):
        raise ValueError(f"its reset must be hard, soft or delayed, got {layer.reset!r}.")
    _ = Leak.of(layer.tau)


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

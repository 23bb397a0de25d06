"""The layers of a network in C: their constants as text, and the calls that run them."""

import re
from typing import NamedTuple

import numpy as np

from qpsnn_jax.export.c.dot import DotKernel
from qpsnn_jax.export.c.layout import Layout, groups_of, interleaved, padded, planes_of, weight_planes, words_of
from qpsnn_jax.export.constants import Constants
from qpsnn_jax.export.folded_layers import Concatenation, Layer, MaxPool, Neurons, Rates, Readout, Sum, among_all
from qpsnn_jax.export.integer_network import IntegerNetwork

_LONGEST_LINE = 116
# Channels are numbered by int16_t.
_MOST_CHANNELS = 2**15


class LayerText(NamedTuple):
    """A layer in C: its constants, the statement that runs it, and the constants' bytes."""

    constants: list[str]
    call: str
    bytes: int


def layer_text(network: IntegerNetwork, layout: Layout, index: int, layer: Layer) -> LayerText:
    """The text of one layer.

    Raises:
        ValueError: the program cannot express it.
    """
    title = f"/* {_plain(layer.name)} */"
    match layer:
        case Neurons() if layer.source == layout.folded.image.name:
            return _stem(network, layout, index, layer, title)
        case Neurons() if layer.groups > 1:
            return _grouped(network, layout, index, layer, title)
        case Neurons():
            return _neurons(network, layout, index, layer, title)
        case MaxPool():
            numbers = _numbers(*layer.window, *layer.strides, *layer.padding)
            maps = ", ".join(f"(map){_place(layout, name)}" for name in (layer.source, layer.name))
            return LayerText([], f"max_pool({maps}, {numbers}, steps); {title}", 0)
        case Sum():
            maps = ", ".join(f"(map){_place(layout, name)}" for name in (layer.first, layer.second, layer.name))
            return LayerText([], f"add_maps({maps}, steps); {title}", 0)
        case Concatenation():
            return LayerText([], f"{_joined(layout, layer)} {title}", 0)
        case Readout():
            return _readout(network, layout, layer, title)
        case Rates():
            return LayerText(
                [], f"(void)before; return run_rates((map){_place(layout, layer.source)}, steps, logits);", 0
            )


def _neurons(network: IntegerNetwork, layout: Layout, index: int, layer: Neurons, title: str) -> LayerText:
    constants, words = network.neurons[layer.name], words_of(layer, layout.words)
    groups = groups_of(layout, layer)
    if words >= 2**16:
        raise ValueError(f"layer {layer.name!r}: C takes no neurons with {layer.kernel[..., 0].size:,} synapses.")
    weights = (unsigned(layout.words.word), interleaved(layer, layout.words))
    arrays = {"weights": weights, **_per_channel(constants, layout), **_residual_arrays(constants, layout, layer)}
    declared, names, size = _declared(index, arrays)
    declared += _cell(constants, index, names)
    # With a mask the kernel has subtracted all: nothing is left to subtract from the count of all spikes.
    planes, ternary = weight_planes(layer), int(layer.levels is not None)
    counts = _numbers(planes, words, groups[0], ternary if layer.mask is None else planes)
    dots = ", ".join([*(DotKernel.of(layer, group).name for group in groups), names["weights"]])
    record = f"static const neurons layer{index} = {_record(layout, layer, counts, dots, names)};\n"
    return LayerText([title, *declared, record], f"run_neurons(&layer{index}, steps, state);", size)


def _grouped(network: IntegerNetwork, layout: Layout, index: int, layer: Neurons, title: str) -> LayerText:
    """Neurons of a convolution in groups: its integers as they are, and the first channel that each output reads."""
    constants, (*_, inputs, outputs) = network.neurons[layer.name], layer.kernel.shape
    kernel = layer.integers
    if layer.groups * inputs > _MOST_CHANNELS:
        raise ValueError(f"layer {layer.name!r}: C takes no {layer.groups * inputs:,} channels in groups.")
    kind = "int8_t" if layer.top < 2**7 else "int16_t"
    arrays = {"each": (kind, padded(kernel, 0, layout.words))}
    arrays |= {"first": ("int16_t", np.arange(outputs) // (outputs // layer.groups) * inputs)}
    arrays |= {**_per_channel(constants, layout), **_residual_arrays(constants, layout, layer)}
    declared, names, size = _declared(index, arrays)
    declared += _cell(constants, index, names)
    record = _record(layout, layer, _numbers(layer.bits, 0, 0, 0), "0, 0, 0, 0", names)
    narrow, wide = (names["each"], "0") if kind == "int8_t" else ("0", names["each"])
    text = f"static const grouped layer{index} = {{{record}, {narrow}, {wide}, {names['first']}, {inputs}}};\n"
    return LayerText([title, *declared, text], f"run_grouped(&layer{index}, steps, state);", size)


def _record(layout: Layout, layer: Neurons, counts: str, dots: str, names: dict[str, str]) -> str:
    """The C struct of a layer of neurons on spikes."""
    residual, stride = "{0, 0, 0, 0, 0}", 1
    if layer.residual is not None:
        residual, stride = _place(layout, layer.residual.source), layer.residual.stride
    taps = _numbers(*layer.kernel.shape[:2], *layer.strides, *layer.padding, *layer.dilation)
    fields = ", ".join(
        names.get(field, "0") for field in ("bias", "threshold", "live", "shift", "cell", "added", "from")
    )
    maps = ", ".join(_place(layout, name) for name in (layer.source, layer.name))
    return f"{{\n    {maps}, {residual}, {taps}, {counts},\n    {dots}, {fields}, {stride}, {layout.kept[layer.name]}}}"


def _joined(layout: Layout, layer: Concatenation) -> str:
    """The statements that copy the channels of every map behind those of the one before."""
    out, first, calls = f"(map){_place(layout, layer.name)}", 0, []
    for name in layer.sources:
        calls.append(f"copy_channels((map){_place(layout, name)}, {out}, {first}, steps);")
        first += layout.folded.maps[name].shape[2]
    return " ".join([f"clear_map({out}, steps);", *calls])


def _residual_arrays(constants: Constants, layout: Layout, layer: Neurons) -> dict[str, tuple[str, np.ndarray]]:
    """The contribution of a residual spike, and the channel of each output if it is not its own."""
    if layer.residual is None:
        return {}
    arrays = {"added": ("int32_t", padded(constants.residual, 0, layout.words))}
    channels = layout.folded.maps[layer.residual.source].shape[2]
    if channels > _MOST_CHANNELS:
        raise ValueError(f"layer {layer.name!r}: C takes no residual of {channels:,} channels.")
    if layer.residual.channels != tuple(range(channels)):
        arrays["from"] = ("int16_t", np.asarray(layer.residual.channels))
    return arrays


def _stem(network: IntegerNetwork, layout: Layout, index: int, layer: Neurons, title: str) -> LayerText:
    constants, image = network.neurons[layer.name], layout.folded.image
    if layer.residual is not None:
        raise ValueError(f"layer {layer.name!r}: C takes no residual of neurons on pixels.")
    # No bound holds for the sums of synapses without effect.
    each = {"weights": ("int16_t", constants.weights), "fine": ("uint8_t", constants.fine)}
    arrays = {
        name: (kind, padded(among_all(constants.live * values, layer.groups), 0, layout.words))
        for name, (kind, values) in each.items()
        if values is not None
    }
    arrays |= {"pads": ("int32_t", padded(constants.pads, 0, layout.words)), **_per_channel(constants, layout)}
    del arrays["live"]
    declared, names, size = _declared(index, arrays)
    declared += _cell(constants, index, names)
    taps = _numbers(*layer.kernel.shape[:2], *layer.strides, *layer.padding, *layer.dilation)
    fields = ("weights", "fine", "pads", "bias", "threshold", "shift", "cell")
    fields = ", ".join(names.get(field, "0") for field in fields)
    shape, out = _numbers(*image.shape), _place(layout, layer.name)
    record = f"static const stem layer{index} = {{{shape}, {out}, {taps},\n    {fields}, {layout.kept[layer.name]}}};\n"
    return LayerText([title, *declared, record], f"run_stem(&layer{index}, pixels, steps, state);", size)


def _readout(network: IntegerNetwork, layout: Layout, layer: Readout, title: str) -> LayerText:
    constants = network.readout
    arrays = {"weights": (weight_type(layer), constants.weights), "bias": ("int32_t", constants.bias)}
    declared, names, size = _declared("out", arrays)
    geometry = _numbers(*layer.window, *layer.strides, *layer.kernel.shape[:2])
    source = _place(layout, layer.source)
    call = f"return run_readout((map){source}, {geometry}, {names['weights']}, {names['bias']}, before, steps, logits);"
    return LayerText([title, *declared, ""], call, size)


def _place(layout: Layout, name: str) -> str:
    (h, w, c), planes = layout.folded.maps[name].shape, planes_of(layout.folded.maps[name])
    return f"{{{h}, {w}, {c}, {planes}, {layout.places[name]}}}"


def _per_channel(constants: Constants, layout: Layout) -> dict[str, tuple[str, np.ndarray]]:
    words, cell = layout.words, constants.cell
    arrays = {
        "bias": ("int32_t", padded(constants.bias, 0, words)),
        # Lanes without an output never fire.
        "threshold": ("int32_t", padded(constants.threshold, 2**31 - 1, words)),
        "shift": ("uint8_t", padded(constants.shift, 0, words)),
        "live": ("int8_t", padded(-constants.live.astype(np.int8), 0, words)),
    }
    if cell.plain:
        return arrays
    leak = {"leak": cell.leak.shift, "rest": -cell.leak.rest.astype(np.int8)}
    arrays |= {name: ("int8_t", padded(array, 0, words)) for name, array in leak.items()}
    return arrays | ({} if cell.reset == "hard" else {"taken": ("int32_t", padded(constants.taken, 0, words))})


def _cell(constants: Constants, index: int, names: dict[str, str]) -> list[str]:
    """The C struct of leak and reset, to whose names its own is added; nothing for plain ones."""
    if constants.cell.plain:
        return []
    fields = ", ".join(names.get(field, "0") for field in ("leak", "rest", "taken"))
    names["cell"] = f"&cell{index}"
    return [f"static const cell cell{index} = {{{fields}, {constants.cell.reset.upper()}}};"]


def _declared(index: int | str, arrays: dict[str, tuple[str, np.ndarray]]) -> tuple[list[str], dict[str, str], int]:
    """Declarations of constant arrays, their names by field, and their bytes."""
    declared, names, total = [], {}, 0
    for field, (kind, array) in arrays.items():
        names[field] = f"{field}{index}"
        declared.append(f"static const {kind} {names[field]}[{array.size}] = {{\n{_values(kind, array.ravel())}}};")
        total += array.size * int(re.sub(r"\D", "", kind)) // 8
    return declared, names, total


def _values(kind: str, values: np.ndarray) -> str:
    suffix = {"uint64_t": "ULL", "uint32_t": "U"}.get(kind)
    texts = [f"0x{value:x}{suffix}" if suffix else str(value) for value in values.tolist()]
    per_line = max(1, _LONGEST_LINE // (2 + max(map(len, texts))))
    return ",\n".join(", ".join(texts[i : i + per_line]) for i in range(0, len(texts), per_line))


def weight_type(layer: Readout) -> str:
    """C's type of the readout's weights."""
    narrow = layer.kernel.dtype == np.int8 or (layer.kernel.dtype == np.uint8 and layer.bits < 8)
    return "int8_t" if narrow else "int16_t"


def unsigned(bits: int) -> str:
    """C's unsigned type of so many bits."""
    return f"uint{bits}_t"


def _numbers(*values: int) -> str:
    return ", ".join(str(value) for value in values)


def _plain(name: str) -> str:
    """A layer's name without anything that could end a comment."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)

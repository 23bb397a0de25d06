"""ONNX: a folded network with its codes as integers, time unrolled, for onnxruntime. Uses only NumPy and ``onnx``.

Codes are stored in 2, 4 or 8 bits. DequantizeLinear and a subtraction turn them into the odd integers q, or q itself
is stored, so a convolution sums integers; scale and bias follow.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Concatenation, MaxPool, Neurons, Rates, Readout, Residual, Sum
from qpsnn_jax.runtime.checks import integer
from qpsnn_jax.runtime.files import write_atomically

# The first opset that has all operators in these forms, and that of small integers. Split names its number of outputs
# since another one.
_OPSET, _OPSETS = 13, {"UINT2": 25, "UINT4": 21, "INT4": 21}
_OPSET_OF_SPLIT = 18


class _Builder:
    """Collects nodes and constants; every method returns the name of a value."""

    def __init__(self, helper: Any, types: Any, bits: int, opset: int) -> None:
        self.helper, self.types, self.bits, self.opset = helper, types, bits, opset
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.node(kind, *inputs, **attributes)[0]

    def split(self, value: str, parts: int) -> list[str]:
        """Equal parts along the first axis."""
        number = {"num_outputs": parts} if self.opset >= _OPSET_OF_SPLIT else {}
        return self.node("Split", value, outputs=parts, axis=0, **number)

    def constant(self, array: Any) -> str:
        array = np.asarray(array)
        kind = self.helper.np_dtype_to_tensor_dtype(array.dtype)
        return self.tensor(kind, array, array.tobytes(), raw=True)

    def tensor(self, kind: int, array: np.ndarray, values: Any, *, raw: bool = False) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = self.helper.make_tensor(name, kind, array.shape, values, raw=raw)
        return name


def onnx_model(folded: Folded, *, bits: int = 2, opset: int | None = None, batch: int | None = None) -> Any:
    """The network as an ONNX model.

    Its input ``pixels`` is uint8, ``b h w c`` or ``b t h w c``; its output ``currents`` float32, ``b classes``, the
    time-mean of the output currents or the firing rates. All options give the same, bit for bit in one runtime.

    Args:
        folded: the network.
        bits: the fewest bits of a stored weight, 2, 4 or 8. Few runtimes read integers of less than 8 bits.
        opset: the version of ONNX's operators, from 13; by default the first that has the integers that are stored: 25
            for 2 bits, 21 for 4, 13 for 8.
        batch: b; None for any.

    Returns:
        An ``onnx.ModelProto``, checked.

    Raises:
        ValueError: the package ``onnx`` is not installed or does not know the opset, the opset lacks the integers, or
            an argument is out of range.
    """
    onnx = _package()
    if bits not in (2, 4, 8):
        raise ValueError(f"bits of weights in ONNX must be 2, 4 or 8, got {bits!r}.")
    size = "b" if batch is None else integer("batch", batch, 1)
    version = _opset(folded, bits, opset, onnx.defs.onnx_opset_version())
    build = _Builder(onnx.helper, onnx.TensorProto, bits, version)
    currents = _layers(build, folded)
    build.nodes.append(onnx.helper.make_node("Identity", [currents], ["currents"]))
    steps = (folded.timesteps,) if folded.image.frames else ()
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    given = value("pixels", kinds.UINT8, (size, *steps, *folded.image.shape))
    made = value("currents", kinds.FLOAT, (size, folded.classes))
    graph = onnx.helper.make_graph(build.nodes, "qpsnn", [given], [made], list(build.constants.values()))
    operators = onnx.helper.make_opsetid("", version)
    ir = onnx.helper.find_min_ir_version_for([operators])
    model = onnx.helper.make_model(graph, opset_imports=[operators], ir_version=ir, producer_name="qpsnn_jax")
    onnx.checker.check_model(model, full_check=True)
    return model


def write_onnx(path: Path, folded: Folded, **options: Any) -> int:
    """Write :func:`onnx_model` with its options to a file, under a temporary name first; returns its bytes.

    Raises:
        ValueError: as for :func:`onnx_model`.
    """
    data = onnx_model(folded, **options).SerializeToString()
    write_atomically(path, data)
    return len(data)


def _layers(build: _Builder, folded: Folded) -> str:
    """All layers; the output of the last one."""
    maps: dict[str, list[str]] = {folded.image.name: _pixels(build, folded)}
    for layer in folded.layers:
        match layer:
            case Neurons():
                maps[layer.name] = _neurons(build, folded, layer, maps)
            case MaxPool():
                window = {"kernel_shape": layer.window, "strides": layer.strides, "pads": layer.padding * 2}
                maps[layer.name] = [build.one("MaxPool", x, **window) for x in maps[layer.source]]
            case Sum():
                pairs = zip(maps[layer.first], maps[layer.second], strict=True)
                maps[layer.name] = [build.one("Add", *pair) for pair in pairs]
            case Concatenation():
                parts = zip(*(maps[name] for name in layer.sources), strict=True)
                maps[layer.name] = [build.one("Concat", *each, axis=1) for each in parts]
            case Readout():
                maps[layer.name] = [_readout(build, layer, maps[layer.source])]
            case Rates():
                maps[layer.name] = [_rates(build, maps[layer.source])]
    (currents,) = maps[folded.readout.name]
    return currents


def _opset(folded: Folded, bits: int, opset: int | None, latest: int) -> int:
    """The opset of a model, checked."""
    layers = (layer for layer in folded.layers if isinstance(layer, Neurons | Readout))
    stored = (_stored(layer, bits) for layer in layers if layer.kernel.dtype == np.uint8)
    needed = max((_OPSETS.get(kind, _OPSET) for kind in stored), default=_OPSET)
    given = needed if opset is None else integer("opset", opset, _OPSET)
    if given < needed:
        raise ValueError(f"opset {given} of ONNX has no integers of so few bits: take {needed}, or 8 bits.")
    if given > latest:
        raise ValueError(f"opset {given} is unknown to the installed package onnx, whose last is {latest}.")
    return given


def _package() -> Any:
    try:
        import onnx  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("ONNX export needs the package onnx: pip install '.[onnx]' in the checkout.") from None
    return onnx


def _pixels(build: _Builder, folded: Folded) -> list[str]:
    """Pixels less their mean, so that padding is zero; ``b c h w``, one for each step or one for all."""
    centered = build.one("Cast", "pixels", to=build.types.FLOAT)
    centered = build.one("Sub", centered, build.constant(np.asarray(folded.image.mean, np.float32)))
    if not folded.image.frames:
        return [build.one("Transpose", centered, perm=[0, 3, 1, 2])]
    frames = build.one("Transpose", centered, perm=[1, 0, 4, 2, 3])
    axis = build.constant(np.asarray([0], np.int64))
    return [build.one("Squeeze", step, axis) for step in build.split(frames, folded.timesteps)]


def _neurons(build: _Builder, folded: Folded, layer: Neurons, maps: dict[str, list[str]]) -> list[str]:
    currents = _currents(build, layer, maps[layer.source])
    if layer.residual is not None:
        carry = _carrier(build, layer.residual, folded.maps[layer.residual.source].shape[2])
        residual = [carry(x) for x in maps[layer.residual.source]]
        currents = [build.one("Add", x, y) for x, y in zip(currents * len(residual), residual, strict=False)]
    if len(currents) == 1:
        currents = currents * folded.timesteps
    tau, threshold = (_by_channel(build, values) for values in (layer.tau, layer.threshold))
    spikes, left = [], None
    for current in currents:
        membrane = current if left is None else build.one("Add", left, current)
        fired = build.one("Greater" if layer.strict else "GreaterOrEqual", membrane, threshold)
        spikes.append(build.one("Cast", fired, to=build.types.FLOAT))
        left = _left(build, layer.reset, membrane, spikes[-1], tau, threshold)
    return spikes


def _left(build: _Builder, reset: str, membrane: str, spikes: str, tau: str, threshold: str) -> str:
    """What the membranes of a step add to those of the next one."""
    if reset == "hard":
        silent = build.one("Sub", build.constant(np.float32(1)), spikes)
        return build.one("Mul", build.one("Mul", membrane, silent), tau)
    taken = build.one("Mul", spikes, threshold)
    if reset == "soft":
        return build.one("Mul", build.one("Sub", membrane, taken), tau)
    return build.one("Sub", build.one("Mul", membrane, tau), taken)


def _by_channel(build: _Builder, values: float | np.ndarray) -> str:
    """A number, or one for each channel of maps ``b c h w``."""
    array = np.asarray(values, np.float32)
    return build.constant(array[:, None, None] if array.ndim else array)


def _currents(build: _Builder, layer: Neurons, inputs: list[str]) -> list[str]:
    """Convolution of all steps as one batch, then scale and bias for each channel."""
    joined = build.one("Concat", *inputs, axis=0) if len(inputs) > 1 else inputs[0]
    geometry = {"kernel_shape": layer.kernel.shape[:2], "strides": layer.strides, "pads": layer.padding * 2}
    geometry |= {"group": layer.groups, "dilations": layer.dilation}
    sums = build.one("Conv", joined, _weights(build, layer), **geometry)
    scaled = build.one("Mul", sums, build.constant(layer.scale[:, None, None]))
    driven = build.one("Add", scaled, build.constant(layer.bias[:, None, None]))
    return build.split(driven, len(inputs)) if inputs[1:] else [driven]


def _weights(build: _Builder, layer: Neurons | Readout) -> str:
    """Weights ``o i h w`` as floating integers, from codes or from q as they are stored; unchanged if no integers."""
    kernel = np.ascontiguousarray(layer.kernel.transpose(3, 2, 0, 1))
    if kernel.dtype == np.float32:
        return build.constant(kernel)
    if kernel.dtype == np.int8:
        return build.one("DequantizeLinear", build.constant(kernel), build.constant(np.float32(1)))
    if not (kind := _stored(layer, build.bits)).startswith("U"):
        integers = layer.integers.transpose(3, 2, 0, 1)
        odd = build.tensor(getattr(build.types, kind), integers, integers.ravel().tolist())
        if kind == "INT16":  # which DequantizeLinear takes since opset 21 only
            return build.one("Cast", odd, to=build.types.FLOAT)
        return build.one("DequantizeLinear", odd, build.constant(np.float32(1)))
    codes = build.tensor(getattr(build.types, kind), kernel, kernel.ravel().tolist())
    doubled = build.one("DequantizeLinear", codes, build.constant(np.float32(2)))
    return build.one("Sub", doubled, build.constant(np.float32(layer.top)))


def _stored(layer: Neurons | Readout, bits: int) -> str:
    """The type, of at least so many bits, that holds a layer's codes (unsigned), or q with a mask or in 8 bits."""
    if layer.mask is None and (bits < 8 or layer.top > 127):
        return next(f"UINT{stored}" for stored in (2, 4, 8) if max(layer.bits, bits) <= stored)
    if layer.top < 8 and bits < 8:
        return "INT4"
    return "INT8" if layer.top < 128 else "INT16"


def _carrier(build: _Builder, residual: Residual, channels: int) -> Callable[[str], str]:
    """Every stride-th row and column, and for each output its channel; -1 is a channel of zeros behind the last."""

    def carry(x: str) -> str:
        if residual.stride != 1:
            starts, ends, axes = ([0, 0], [2**31 - 1] * 2, [2, 3])
            steps = [residual.stride] * 2
            x = build.one("Slice", x, *(build.constant(np.asarray(v, np.int64)) for v in (starts, ends, axes, steps)))
        if residual.channels == tuple(range(channels)):
            return x
        x = build.one("Pad", x, build.constant(np.asarray([0, 0, 0, 0, 0, 1, 0, 0], np.int64)))
        picked = np.where(np.asarray(residual.channels) < 0, channels, residual.channels)
        return build.one("Gather", x, build.constant(picked.astype(np.int64)), axis=1)

    return carry


def _rates(build: _Builder, spikes: list[str]) -> str:
    """The mean of each value over the steps, in the order ``h w c``."""
    mean = build.one("Mul", build.one("Sum", *spikes), build.constant(np.float32(1 / len(spikes))))
    return build.one("Flatten", build.one("Transpose", mean, perm=[0, 2, 3, 1]))


def _readout(build: _Builder, layer: Readout, spikes: list[str]) -> str:
    """A convolution over the complete pooled map: a matrix product would be fused and summed in another order."""
    summed = build.one("Sum", *spikes)
    pooled = summed
    if (layer.window, layer.strides) != ((1, 1), (1, 1)):
        pooled = build.one("AveragePool", summed, kernel_shape=layer.window, strides=layer.strides)
    scale = build.constant(np.float32(layer.scale / len(spikes)))
    kernel = build.one("Mul", _weights(build, layer), scale)
    return build.one("Flatten", build.one("Conv", pooled, kernel, build.constant(layer.bias)))

"""A network from NIR: everything that :mod:`~qpsnn_jax.export.nir.writer` writes, and more."""

from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np

from qpsnn_jax.export.folded_checks import MOST_VALUES
from qpsnn_jax.export.nir.builder import DT
from qpsnn_jax.export.nir.building import Found, Reader
from qpsnn_jax.export.nir.fields import pair_field, shape_field, weights_field
from qpsnn_jax.export.nir.neurons import read_if, read_lif, warn_of_steps
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Add, AveragePool, Conv, Dense, Flatten, Input, Shortcut, SumPool
from qpsnn_jax.model.nodes.checks import LARGEST
from qpsnn_jax.numerics.normalization import check_statistics
from qpsnn_jax.runtime.checks import finite, integer


def import_nir(
    document: Any, *, timesteps: int | None = None, frames: bool | None = None, dt: float | None = None
) -> tuple[Graph, dict[str, Any]]:
    r"""A graph with full-precision weights that computes what a NIR graph computes in Euler steps of ``dt``.

    A neuron :math:`τ \dot v = v_{leak} - v + r I` becomes a LIF node with leak 1 - dt/τ and threshold v_threshold ·
    (τ/dt)/r, firing above it, and :math:`\dot v = r I` one without a leak and with threshold v_threshold / (dt r);
    they are computed in the dtype of the fields, as the program that wrote them did. What
    :func:`qpsnn_jax.export.nir.writer.nir_graph` writes for a shortcut or a max-pool of spikes becomes one again, and
    the layer before the output, or before the neurons whose spikes are the output, a
    :class:`~qpsnn_jax.model.nodes.Dense` node. Other kinds of NIR nodes are read by a
    function in :data:`READINGS`.

    Args:
        document: a ``nir.NIRGraph``, from :func:`~qpsnn_jax.export.nir.file.read_nir` or another tool.
        timesteps: T; by default that of the graph's metadata.
        frames: whether every step has an input of its own; by default that of the metadata, or False.
        dt: length of a step in the file's unit of time, seconds; by default that of the metadata, or 10⁻⁴ as in
            snntorch and spikingjelly. Other programs, such as sinabs and Spyx, count time in steps, so their files need
            dt = 1; a warning names the first neurons whose potential hardly moves in a step where neither says dt.

    Returns:
        The graph, whose nodes have NIR's names, and its variables, float32.

    Raises:
        ValueError: T is not known, a number is out of range, or something that a graph does not express, naming the
            node: another kind than Input, Conv2d, Affine, Linear, LIF, IF, AvgPool2d, SumPool2d, Flatten to one axis
            and Output; neurons of one channel that differ, that do not reset to zero or whose τ is less than dt; a
            cycle, a dead end, or an output that is neither one layer over its complete input nor spikes of one
            position.
    """
    if not hasattr(document, "metadata"):
        raise ValueError(f"a NIR graph is needed, such as read_nir(path) gives, got {document!r}.")
    notes = document.metadata if isinstance(document.metadata, Mapping) else {}
    timesteps = timesteps if timesteps is not None else notes.get("timesteps")
    if timesteps is None:
        raise ValueError("the NIR graph does not say how many steps to run it for; give timesteps.")
    timesteps = integer("timesteps of the NIR graph", timesteps, 1, LARGEST)
    frames = _flag("frames of the NIR graph", notes.get("frames", False) if frames is None else frames)
    given = dt is not None or "dt" in notes
    dt = finite("dt of the NIR graph", notes.get("dt", DT) if dt is None else dt, 1e-12, 1e6)
    binary = _flag("binary of the NIR graph", notes.get("binary", False))
    reader = Reader(document, frames, binary, dt)
    names: dict[str, str] = {}
    for name in _sorted(reader):
        source = _summed(reader, tuple(names[other] for other in reader.sources[name]))
        kind = type(reader.nodes_of[name]).__name__
        if kind not in READINGS:
            raise ValueError(
                f"node {name!r}: NIR's {kind} cannot be read; add a reading as {__name__}.READINGS[{kind!r}]."
            )
        names[name] = READINGS[kind](reader, Found(name, reader.nodes_of[name], source))
    if not given:
        warn_of_steps(reader)
    return Graph(tuple(reader.nodes.values()), timesteps), {"params": reader.params, "batch_stats": {}, "scales": {}}


def pixel_statistics(document: Any) -> dict[str, list[float]]:
    """``mean`` and ``std`` of each input channel by the metadata of a graph of :func:`nir_graph`; else nothing.

    Raises:
        ValueError: they are not one finite number for each channel, or a std is not positive.
    """
    notes = document.metadata if isinstance(document.metadata, Mapping) else {}
    if not {"mean", "std"} <= notes.keys():
        return {}
    found = {name: np.asarray(notes[name], np.float64).reshape(-1).tolist() for name in ("mean", "std")}
    check_statistics(found["mean"], found["std"], len(found["std"]))
    return found


def _flag(name: str, value: Any) -> bool:
    return bool(value) if isinstance(value, bool | np.bool_) else bool(integer(name, value, 0, 1))


def _sorted(reader: Reader) -> list[str]:
    kinds = {name: type(node).__name__ for name, node in reader.nodes_of.items()}
    for kind in ("Input", "Output"):
        if list(kinds.values()).count(kind) != 1:
            raise ValueError(f"a NIR graph needs exactly one {kind} to be read here.")
    for name, kind in kinds.items():
        if kind == "Input" and reader.sources[name]:
            raise ValueError(f"node {name!r}: an edge leads to the input.")
        if kind != "Input" and not reader.sources[name]:
            raise ValueError(f"node {name!r}: no edge leads to it.")
        if kind != "Output" and not reader.readers[name]:
            raise ValueError(f"node {name!r}: no edge starts at it.")
    try:
        return list(TopologicalSorter(reader.sources).static_order())
    except CycleError as error:
        raise ValueError(f"node {error.args[1][0]!r}: it is part of a cycle, which a Graph cannot express.") from None


def _summed(reader: Reader, values: tuple[str, ...]) -> str:
    """Edges into one node, as successive additions; equal sums are computed once."""
    total = values[0] if values else ""
    for count, value in enumerate(values[1:], 2):
        summed = values[:count]
        if summed not in reader.sums:
            total, value = _alike(reader, total, value)
            reader.sums[summed] = reader.add(Add(reader.fresh(f"sum.{len(reader.sums)}"), total, value))
        total = reader.sums[summed]
    return total


def _alike(reader: Reader, *values: str) -> tuple[str, ...]:
    """Two values as they are added: where one is flat, as the last layer's is, a map of one position is made so."""
    shapes = [reader.yields[name].shape for name in values]
    if {len(shape) for shape in shapes} != {1, 3}:
        return values
    one = [len(shape) == 3 and shape[:2] == (1, 1) for shape in shapes]
    flats = (reader.add(Flatten(reader.fresh(f"{n}.flat"), n)) if o else n for n, o in zip(values, one, strict=True))
    return tuple(flats)


def _input(reader: Reader, found: Found) -> str:
    shape = shape_field(found.name, found.node.input_type["input"])
    if len(shape) == 2:
        raise ValueError(f"node {found.name!r}: an input of shape {shape} is neither c h w nor flat.")
    c, h, w = shape if len(shape) == 3 else (*shape, 1, 1)
    return reader.add(Input(found.name, (h, w, c), reader.frames, reader.binary))


def _conv(reader: Reader, found: Found) -> str:
    name, node = found.name, found.node
    groups, dilation = pair_field(name, "groups", node.groups, 1)[0], pair_field(name, "dilation", node.dilation, 1)
    weight, bias = weights_field(name, "weight", node.weight, 4), weights_field(name, "bias", node.bias, 1)
    strides = pair_field(name, "stride", node.stride, 1)
    padding = _padding(name, node.padding, strides, weight.shape[2:], dilation)
    return _weighted(reader, found, weight, bias, strides, padding, groups, dilation)


def _affine(reader: Reader, found: Found) -> str:
    h, w, c = reader.hwc(found.source)
    weight = weights_field(found.name, "weight", found.node.weight, 2)
    if weight.shape[1] != h * w * c:
        raise ValueError(f"node {found.name!r}: a matrix of shape {weight.shape} does not fit a map of {h}×{w}×{c}.")
    bias = weights_field(found.name, "bias", getattr(found.node, "bias", np.zeros(len(weight))), 1)
    return _weighted(reader, found, weight.reshape(-1, c, h, w), bias, (1, 1), (0, 0))


def _weighted(
    reader: Reader,
    found: Found,
    weight: np.ndarray,
    bias: np.ndarray,
    strides: Pair,
    padding: Pair,
    groups: int = 1,
    dilation: Pair = (1, 1),
) -> str:
    """A convolution with weights ``o i/groups h w``, or the shortcut or readout that it represents."""
    name, source = found.name, found.source
    *size, channels = reader.hwc(source)
    outputs, inputs, *window = weight.shape
    if inputs * groups != channels or bias.shape != (outputs,):
        raise ValueError(f"node {name!r}: weights of shape {weight.shape} do not fit {channels} channels.")
    plain = groups == 1 and dilation == (1, 1)
    if plain and Geometry((size[0], size[1]), (window[0], window[1]), strides, padding).output_hw == (1, 1):
        weight, padding = _on_map(name, weight, size, padding), (0, 0)
        window, strides = list(weight.shape[2:]), (1, 1)
    kernel = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    bias_of = {"bias": bias} if bias.any() else {}
    if plain and _is_last(reader, name) and window == size and padding == (0, 0):
        flat = reader.add(Flatten(reader.fresh(f"{name}.flat"), source))
        reader.params[name] = {"kernel": kernel.reshape(-1, outputs), **bias_of}
        return reader.add(Dense(name, flat, outputs, bias=bool(bias_of)))
    if plain and (carried := _carried(weight, bias, strides, padding)) is not None:
        return reader.add(Shortcut(name, source, carried, strides[0]))
    reader.params[name] = {"kernel": kernel, **bias_of}
    kernel_size = (window[0], window[1])
    options = {"bias": bool(bias_of), "groups": groups, "dilation": dilation}
    return reader.add(Conv(name, source, outputs, kernel_size, strides, padding, **options))


def _is_last(reader: Reader, name: str) -> bool:
    """Whether the output of the graph is this node, or neurons that read it."""
    kinds = [type(reader.nodes_of[other]).__name__ for other in reader.readers[name]]
    if kinds in (["LIF"], ["IF"]):
        return _is_last(reader, reader.readers[name][0])
    return kinds == ["Output"]


def _on_map(name: str, weight: np.ndarray, size: Sequence[int], padding: Pair) -> np.ndarray:
    """The weights of the one position of a window that lie on the map, and zeros where the window does not reach.

    Raises:
        ValueError: there would be too many zeros; the message names the node.
    """
    values = weight.shape[0] * weight.shape[1] * size[0] * size[1]
    if values > max(weight.size, MOST_VALUES):
        raise ValueError(
            f"node {name!r}: as one window on a map of {size[0]}×{size[1]} it would have {values:,} weights, which are "
            "too many."
        )
    for axis, (length, pad) in enumerate(zip(size, padding, strict=True), 2):
        weight = weight.take(range(pad, min(pad + length, weight.shape[axis])), axis)
        rest = [(0, length - weight.shape[i]) if i == axis else (0, 0) for i in range(4)]
        weight = np.pad(weight, rest)
    return weight


def _carried(weight: np.ndarray, bias: np.ndarray, strides: Pair, padding: Pair) -> tuple[int, ...] | None:
    """The channel that each output carries, if that is all the convolution does."""
    window, rows = weight.shape[2:], weight.reshape(len(weight), -1)
    carries = window == (1, 1) and padding == (0, 0) and strides[0] == strides[1] and not bias.any()
    if not carries or not np.isin(rows, (0, 1)).all() or rows.sum(1).max(initial=0) > 1:
        return None
    return tuple(int(row.argmax()) if row.any() else -1 for row in rows)


def _average_pool(reader: Reader, found: Found) -> str:
    window = pair_field(found.name, "kernel_size", found.node.kernel_size, 1)
    strides = pair_field(found.name, "stride", found.node.stride, 1)
    padding = pair_field(found.name, "padding", found.node.padding, 0)
    return reader.add(AveragePool(found.name, found.source, window, strides, padding))


def _sum_pool(reader: Reader, found: Found) -> str:
    window = pair_field(found.name, "kernel_size", found.node.kernel_size, 1)
    strides = pair_field(found.name, "stride", found.node.stride, 1)
    padding = pair_field(found.name, "padding", found.node.padding, 0)
    return reader.add(SumPool(found.name, found.source, window, strides, padding))


def _flatten(reader: Reader, found: Found) -> str:
    del reader
    if np.size(found.node.output_type["output"]) != 1:
        raise ValueError(f"node {found.name!r}: NIR's Flatten to several axes cannot be read.")
    return found.source  # a layer that reads it knows the map behind it


def _output(reader: Reader, found: Found) -> str:
    node, value = reader.nodes[found.source], reader.yields[found.source]
    if isinstance(node, Dense) or (node.fires and len(value.shape) == 1):
        return found.source
    if node.fires and value.shape[:2] == (1, 1):
        return reader.add(Flatten(reader.fresh(f"{node.name}.flat"), node.name))
    raise ValueError(
        f"node {found.name!r}: its input must be one layer that covers the complete map it reads, or spikes of one "
        "position."
    )


def _padding(name: str, value: Any, strides: Pair, window: tuple[int, ...], dilation: Pair) -> Pair:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return pair_field(name, "padding", value, 0)
    if text == "valid":
        return 0, 0
    if text != "same":
        raise ValueError(f"node {name!r}: padding must be integers, 'same' or 'valid', got {text[:80]!r}.")
    around = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
    if strides != (1, 1) or any(n % 2 for n in around):
        raise ValueError(f"node {name!r}: its padding is not the same on both sides.")
    return around[0] // 2, around[1] // 2


READINGS: dict[str, Callable[[Reader, Found], str]] = {
    "Input": _input,
    "Conv2d": _conv,
    "Affine": _affine,
    "Linear": _affine,
    "LIF": read_lif,
    "IF": read_if,
    "AvgPool2d": _average_pool,
    "SumPool2d": _sum_pool,
    "Flatten": _flatten,
    "Output": _output,
}
"""How each kind of NIR node is read: adds what it becomes to the reader and returns the name of its value."""

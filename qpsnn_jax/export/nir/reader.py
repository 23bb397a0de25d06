"""A network from NIR: everything that :mod:`~qpsnn_jax.export.nir.writer` writes, and more."""

from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.export.nir.fields import (
    pair_field,
    shape_field,
    uniform_field,
    weights_field,
)
from qpsnn_jax.export.nir.writer import DT
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, AveragePool, Conv, Dense, Flatten, Input, MaxPool, Node, Shortcut, Value
from qpsnn_jax.model.nodes.checks import LARGEST
from qpsnn_jax.runtime.checks import finite, integer


class Reader:
    """A NIR graph, and the nodes, values and weights that have been built from it so far."""

    def __init__(self, document: Any, frames: bool, binary: bool, dt: float) -> None:
        self.nodes_of, self.frames, self.binary, self.dt = dict(document.nodes), frames, binary, dt
        self.sources: dict[str, list[str]] = {name: [] for name in self.nodes_of}
        self.readers: dict[str, list[str]] = {name: [] for name in self.nodes_of}
        for source, target in document.edges:
            if source not in self.nodes_of or target not in self.nodes_of:
                raise ValueError(f"the NIR graph has an edge from {source!r} to {target!r}, which are not both nodes.")
            if source in self.sources[target]:
                raise ValueError(f"node {target!r}: two edges lead to it from {source!r}.")
            self.sources[target].append(source)
            self.readers[source].append(target)
        self.nodes: dict[str, Node] = {}
        self.yields: dict[str, Value] = {}
        self.params: dict[str, dict[str, np.ndarray]] = {}
        self.sums: dict[tuple[str, ...], str] = {}

    def add(self, node: Node) -> str:
        """Add a node to the graph; returns its name."""
        try:
            self.yields[node.name] = node.infer([self.yields[name] for name in node.inputs])
        except ValueError as error:
            raise ValueError(f"node {node.name!r}: {error}") from None
        self.nodes[node.name] = node
        return node.name

    def fresh(self, name: str) -> str:
        """A name like this one that neither the file nor the graph uses."""
        while name in self.nodes_of or name in self.nodes:
            name += "_"
        return name

    def hwc(self, name: str) -> tuple[int, int, int]:
        """Shape of the output of a node of the graph."""
        h, w, c = self.yields[name].shape
        return h, w, c


def import_nir(
    document: Any, *, timesteps: int | None = None, frames: bool | None = None, dt: float | None = None
) -> tuple[Graph, dict[str, Any]]:
    r"""A graph with full-precision weights that computes what a NIR graph computes in Euler steps of ``dt``.

    A neuron :math:`τ \dot v = v_{leak} - v + r I` becomes a LIF node with leak 1 - dt/τ and threshold v_threshold ·
    (τ/dt)/r, firing above it; both are computed in the dtype of its fields, as the program that wrote them did. What
    :func:`qpsnn_jax.export.nir.writer.nir_graph` writes for a shortcut or a max-pool of spikes becomes one again, and
    the layer before the output a :class:`~qpsnn_jax.model.nodes.Dense` node. Other kinds of NIR nodes are read by a
    function in :data:`READINGS`.

    Args:
        document: a ``nir.NIRGraph``, from :func:`~qpsnn_jax.export.nir.file.read_nir` or another tool.
        timesteps: T; by default that of the graph's metadata.
        frames: whether every step has an input of its own; by default that of the metadata, or False.
        dt: length of a step in seconds; by default that of the metadata, or 10⁻⁴ as in other tools.

    Returns:
        The graph, whose nodes have NIR's names, and its variables, float32.

    Raises:
        ValueError: T is not known, a number is out of range, or something that a graph does not express, naming the
            node: another kind than Input, Conv2d, Affine, Linear, LIF, AvgPool2d, Flatten to one axis and Output;
            neurons of one node that differ, that do not rest and reset at zero or whose τ is less than dt; a
            cycle, a dead end, or an output that is not that of one layer over its complete input.
    """
    notes = document.metadata if isinstance(document.metadata, Mapping) else {}
    timesteps = timesteps if timesteps is not None else notes.get("timesteps")
    if timesteps is None:
        raise ValueError("the NIR graph does not say how many steps to run it for; give timesteps.")
    timesteps = integer("timesteps of the NIR graph", timesteps, 1, LARGEST)
    frames = _flag("frames of the NIR graph", notes.get("frames", False) if frames is None else frames)
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
    return Graph(tuple(reader.nodes.values()), timesteps), {"params": reader.params, "batch_stats": {}, "scales": {}}


class Found(NamedTuple):
    """A NIR node, its name, and the name of the graph's node that is its input, "" for none."""

    name: str
    node: Any
    source: str


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
            reader.sums[summed] = reader.add(Add(reader.fresh(f"sum.{len(reader.sums)}"), total, value))
        total = reader.sums[summed]
    return total


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
    kernel = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    bias_of = {"bias": bias} if bias.any() else {}
    readers = [type(reader.nodes_of[other]).__name__ for other in reader.readers[name]]
    plain = groups == 1 and dilation == (1, 1)
    if plain and readers == ["Output"] and window == size and padding == (0, 0):
        flat = reader.add(Flatten(reader.fresh(f"{name}.flat"), source))
        reader.params[name] = {"kernel": kernel.reshape(-1, outputs), **bias_of}
        return reader.add(Dense(name, flat, outputs, bias=bool(bias_of)))
    if plain and (carried := _carried(weight, bias, strides, padding)) is not None:
        return reader.add(Shortcut(name, source, carried, strides[0]))
    reader.params[name] = {"kernel": kernel, **bias_of}
    kernel_size = (window[0], window[1])
    options = {"bias": bool(bias_of), "groups": groups, "dilation": dilation}
    return reader.add(Conv(name, source, outputs, kernel_size, strides, padding, **options))


def _carried(weight: np.ndarray, bias: np.ndarray, strides: Pair, padding: Pair) -> tuple[int, ...] | None:
    """The channel that each output carries, if that is all the convolution does."""
    window, rows = weight.shape[2:], weight.reshape(len(weight), -1)
    carries = window == (1, 1) and padding == (0, 0) and strides[0] == strides[1] and not bias.any()
    if not carries or not np.isin(rows, (0, 1)).all() or rows.sum(1).max(initial=0) > 1:
        return None
    return tuple(int(row.argmax()) if row.any() else -1 for row in rows)


def _neurons(reader: Reader, found: Found) -> str:
    name, source = found.name, found.source
    fields = ("tau", "r", "v_leak", "v_threshold", "v_reset")
    tau, r, leak, threshold, reset = (uniform_field(name, field, getattr(found.node, field)) for field in fields)
    with np.errstate(all="ignore"):
        dt = tau.dtype.type(reader.dt)
    if leak or reset or r <= 0 or tau < dt:
        raise ValueError(
            f"node {name!r}: only neurons that rest and reset at zero, with r > 0 and tau of at least dt, can be read, "
            f"got v_leak {leak:g}, v_reset {reset:g}, r {r:g} and tau {tau:g} with dt {dt:g}."
        )
    with np.errstate(all="ignore"):
        # A Graph's numbers are bounded, which the node that is made of them says.
        threshold, leak = float(threshold * ((tau / dt) / r)), float(1 - dt / tau)
    if (pool := _pooled(reader, found, threshold)) is not None:
        del reader.nodes[source], reader.yields[source]
        return reader.add(MaxPool(name, pool.input, pool.window, pool.strides, pool.padding))
    return reader.add(LIF(name, source, leak, threshold, ">"))


def _pooled(reader: Reader, found: Found, threshold: float) -> AveragePool | None:
    """The average-pool before neurons that fire at a single spike in its window, if that is all they do."""
    pool, one_spike = reader.nodes[found.source], 0.25
    if not isinstance(pool, AveragePool) or pool.window != (2, 2) or not 0 <= threshold < one_spike:
        return None
    alone = reader.readers.get(found.source) == [found.name]
    return pool if alone and reader.yields[pool.input].spiking else None


def _average_pool(reader: Reader, found: Found) -> str:
    window = pair_field(found.name, "kernel_size", found.node.kernel_size, 1)
    strides = pair_field(found.name, "stride", found.node.stride, 1)
    padding = pair_field(found.name, "padding", found.node.padding, 0)
    return reader.add(AveragePool(found.name, found.source, window, strides, padding))


def _flatten(reader: Reader, found: Found) -> str:
    del reader
    if np.size(found.node.output_type["output"]) != 1:
        raise ValueError(f"node {found.name!r}: NIR's Flatten to several axes cannot be read.")
    return found.source  # a layer that reads it knows the map behind it


def _output(reader: Reader, found: Found) -> str:
    if not isinstance(reader.nodes[found.source], Dense):
        raise ValueError(f"node {found.name!r}: its input must be one layer that covers the complete map it reads.")
    return found.source


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
    "LIF": _neurons,
    "AvgPool2d": _average_pool,
    "Flatten": _flatten,
    "Output": _output,
}
"""How each kind of NIR node is read: adds what it becomes to the reader and returns the name of its value."""

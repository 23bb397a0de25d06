"""A network from NIR: everything that :mod:`~qpsnn_jax.export.nir.writer` writes, and more."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.export.nir.writer import DT, nir_package
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, AveragePool, Conv, Dense, Flatten, Input, MaxPool, Node, Shortcut, Value


class _Reader:
    """A NIR graph, and the nodes, weights and values that have been built from it so far."""

    def __init__(self, document: Any, timesteps: int, frames: bool, dt: float) -> None:
        self.nodes_of, self.frames, self.dt, self.timesteps = dict(document.nodes), frames, dt, timesteps
        self.sources: dict[str, list[str]] = {name: [] for name in self.nodes_of}
        self.readers: dict[str, list[str]] = {name: [] for name in self.nodes_of}
        for source, target in document.edges:
            if source not in self.nodes_of or target not in self.nodes_of:
                raise ValueError(f"the NIR graph has an edge from {source!r} to {target!r}, which are not both nodes.")
            self.sources[target].append(source)
            self.readers[source].append(target)
        self.nodes: list[Node] = []
        self.params: dict[str, dict[str, np.ndarray]] = {}
        self.values: dict[str, str] = {}
        self.sums: dict[tuple[str, ...], str] = {}

    def value(self, name: str) -> Value:
        return Graph(tuple(self.nodes), self.timesteps).values[name]

    def shape(self, name: str) -> tuple[int, int, int]:
        h, w, c = self.value(name).shape
        return h, w, c


def import_nir(
    document: Any, *, timesteps: int | None = None, frames: bool | None = None, dt: float | None = None
) -> tuple[Graph, dict[str, Any]]:
    r"""A graph with full-precision weights that computes what a NIR graph computes in Euler steps of ``dt``.

    A neuron :math:`τ \dot v = v_{leak} - v + r I` becomes a LIF node with leak 1 - dt/τ and threshold v_threshold ·
    τ/(r·dt), firing above it. What :func:`qpsnn_jax.export.nir.writer.nir_graph` writes for a shortcut or a max-pool of
    spikes becomes one again, and the layer before the output a :class:`~qpsnn_jax.model.nodes.Dense` node.

    Args:
        document: a ``nir.NIRGraph``, from :func:`read_nir` or another tool.
        timesteps: T; by default that of the graph's metadata.
        frames: whether every step has an input of its own; by default that of the metadata, or False.
        dt: length of a step in seconds; by default that of the metadata, or 10⁻⁴ as in other tools.

    Returns:
        The graph, whose nodes have NIR's names, and its variables, float32.

    Raises:
        ValueError: T is not known, or something that a graph does not express, naming the node: another kind than
            Input, Conv2d, Affine, Linear, LIF, AvgPool2d, Flatten to one axis and Output; neurons of one node that
            differ, that do not rest and reset at zero or whose τ is less than dt; groups or dilation; a cycle, a
            dead end, or an output that is not that of one layer over its complete input.
    """
    notes = document.metadata if isinstance(document.metadata, Mapping) else {}
    timesteps = timesteps if timesteps is not None else notes.get("timesteps")
    if timesteps is None:
        raise ValueError("the NIR graph does not say how many steps to run it for; give timesteps.")
    frames = bool(notes.get("frames", False) if frames is None else frames)
    reader = _Reader(document, int(timesteps), frames, float(notes.get("dt", DT) if dt is None else dt))
    for name in _sorted(reader):
        reader.values[name] = _read(reader, name, reader.nodes_of[name])
    return Graph(tuple(reader.nodes), reader.timesteps), {"params": reader.params, "batch_stats": {}, "scales": {}}


def read_nir(path: Path) -> Any:
    """The ``nir.NIRGraph`` of a file.

    Raises:
        ValueError: the package ``nir`` is not installed, or the file holds no NIR graph.
        FileNotFoundError: there is no such file.
    """
    nir = nir_package()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        document = nir.read(path)
    except Exception as error:  # h5py and nir raise any exception for damaged bytes
        raise ValueError(f"{path} is no NIR file: {type(error).__name__}, {error}") from None
    if not isinstance(document, nir.NIRGraph):
        raise ValueError(f"{path} holds a NIR {type(document).__name__} and no graph.")
    return document


def _sorted(reader: _Reader) -> list[str]:
    kinds = {name: type(node).__name__ for name, node in reader.nodes_of.items()}
    for kind in ("Input", "Output"):
        if list(kinds.values()).count(kind) != 1:
            raise ValueError(f"a NIR graph needs exactly one {kind} to be read here.")
    for name, kind in kinds.items():
        if kind != "Input" and not reader.sources[name]:
            raise ValueError(f"node {name!r}: no edge leads to it.")
        if kind != "Output" and not reader.readers[name]:
            raise ValueError(f"node {name!r}: no edge starts at it.")
    try:
        return list(TopologicalSorter(reader.sources).static_order())
    except CycleError as error:
        raise ValueError(f"node {error.args[1][0]!r}: it is part of a cycle, which a Graph cannot express.") from None


def _read(reader: _Reader, name: str, node: Any) -> str:
    """Add the nodes for a NIR node and return the name of its value."""
    kind = type(node).__name__
    if kind == "Input":
        shape = tuple(int(n) for n in node.input_type["input"])
        if len(shape) not in (1, 3):
            raise ValueError(f"node {name!r}: an input of shape {shape} is neither c h w nor flat.")
        c, h, w = shape if len(shape) == 3 else (*shape, 1, 1)
        return _add(reader, Input(name, (h, w, c), reader.frames))
    source = _summed(reader, tuple(reader.values[other] for other in reader.sources[name]))
    match kind:
        case "Conv2d":
            return _conv(reader, name, node, source)
        case "Affine" | "Linear":
            return _affine(reader, name, node, source)
        case "LIF":
            return _neurons(reader, name, node, source)
        case "AvgPool2d":
            window, strides, padding = (_pair(x) for x in (node.kernel_size, node.stride, node.padding))
            return _add(reader, AveragePool(name, source, window, strides, padding))
        case "Flatten" if len(np.atleast_1d(node.output_type["output"])) == 1:
            return source  # a layer that reads it knows the map behind it
        case "Output" if isinstance(reader.nodes[-1], Dense):
            return source
        case "Output":
            raise ValueError(f"node {name!r}: its input must be one layer that covers the complete map it reads.")
    raise ValueError(f"node {name!r}: NIR's {kind} has no form in a Graph here.")


def _add(reader: _Reader, node: Node) -> str:
    reader.nodes.append(node)
    return node.name


def _summed(reader: _Reader, values: tuple[str, ...]) -> str:
    """Edges into one node, as successive additions; equal sums are computed once."""
    total = values[0]
    for count, value in enumerate(values[1:], 2):
        summed = values[:count]
        if summed not in reader.sums:
            reader.sums[summed] = _add(reader, Add(f"sum.{len(reader.sums)}", total, value))
        total = reader.sums[summed]
    return total


def _conv(reader: _Reader, name: str, node: Any, source: str) -> str:
    if int(np.max(node.groups)) != 1 or _pair(node.dilation) != (1, 1):
        raise ValueError(f"node {name!r}: a Graph has no convolution with groups or dilation.")
    weight = np.asarray(node.weight, np.float32)
    strides, padding = _pair(node.stride), _padding(name, node, weight.shape[2:])
    return _weighted(reader, name, source, weight, np.asarray(node.bias, np.float32), strides, padding)


def _affine(reader: _Reader, name: str, node: Any, source: str) -> str:
    h, w, c = reader.shape(source)
    weight = np.asarray(node.weight, np.float32)
    if weight.ndim != 2 or weight.shape[1] != h * w * c:
        raise ValueError(f"node {name!r}: a matrix of shape {weight.shape} does not fit a map of {h}×{w}×{c}.")
    bias = np.asarray(getattr(node, "bias", np.zeros(len(weight))), np.float32)
    return _weighted(reader, name, source, weight.reshape(-1, c, h, w), bias, (1, 1), (0, 0))


def _weighted(
    reader: _Reader, name: str, source: str, weight: np.ndarray, bias: np.ndarray, strides: Pair, padding: Pair
) -> str:
    """A convolution with weights ``o i h w``, or the shortcut or readout that it represents."""
    *size, channels = reader.shape(source)
    outputs, inputs, *window = weight.shape
    if inputs != channels or bias.shape != (outputs,):
        raise ValueError(f"node {name!r}: weights of shape {weight.shape} do not fit {channels} channels.")
    kernel = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    bias_of = {"bias": bias} if bias.any() else {}
    readers = [type(reader.nodes_of[other]).__name__ for other in reader.readers[name]]
    if readers == ["Output"] and window == size and padding == (0, 0):
        flat = _add(reader, Flatten(f"{name}.flat", source))
        reader.params[name] = {"kernel": kernel.reshape(-1, outputs), **bias_of}
        return _add(reader, Dense(name, flat, outputs, bias=bool(bias_of)))
    if (carried := _carried(weight, bias, strides, padding)) is not None:
        return _add(reader, Shortcut(name, source, carried, strides[0]))
    reader.params[name] = {"kernel": kernel, **bias_of}
    kernel_size = (window[0], window[1])
    return _add(reader, Conv(name, source, outputs, kernel_size, strides, padding, bias=bool(bias_of)))


def _carried(weight: np.ndarray, bias: np.ndarray, strides: Pair, padding: Pair) -> tuple[int, ...] | None:
    """The channel that each output carries, if that is all the convolution does."""
    window, rows = weight.shape[2:], weight.reshape(len(weight), -1)
    carries = window == (1, 1) and padding == (0, 0) and strides[0] == strides[1] and not bias.any()
    if not carries or not np.isin(rows, (0, 1)).all() or rows.sum(1).max(initial=0) > 1:
        return None
    return tuple(int(row.argmax()) if row.any() else -1 for row in rows)


def _neurons(reader: _Reader, name: str, node: Any, source: str) -> str:
    tau, r, leak, threshold, reset = (
        _uniform(name, field, getattr(node, field)) for field in ("tau", "r", "v_leak", "v_threshold", "v_reset")
    )
    if leak or reset or r <= 0 or tau < reader.dt:
        raise ValueError(
            f"node {name!r}: only neurons that rest and reset at zero, with r > 0 and tau of at least dt, can be read, "
            f"got v_leak {leak:g}, v_reset {reset:g}, r {r:g} and tau {tau:g} with dt {reader.dt:g}."
        )
    threshold = threshold * (tau / reader.dt) / r
    if (pool := _pooled(reader, name, source, threshold)) is not None:
        reader.nodes.remove(pool)
        return _add(reader, MaxPool(name, pool.input, pool.window, pool.strides, pool.padding))
    return _add(reader, LIF(name, source, 1 - reader.dt / tau, threshold, ">"))


def _pooled(reader: _Reader, name: str, source: str, threshold: float) -> AveragePool | None:
    """The average-pool before neurons that fire at a single spike in its window, if that is all they do."""
    pool = next(node for node in reader.nodes if node.name == source)
    one_spike = 0.25
    if not isinstance(pool, AveragePool) or pool.window != (2, 2) or not 0 <= threshold < one_spike:
        return None
    alone = reader.readers[source] == [name]
    return pool if alone and reader.value(pool.input).spiking else None


def _uniform(name: str, field: str, array: Any) -> float:
    values = np.unique(np.asarray(array, np.float64))
    if len(values) != 1:
        raise ValueError(f"node {name!r}: its neurons differ in {field}, and those of a Graph do not.")
    return float(values[0])


def _padding(name: str, node: Any, window: tuple[int, ...]) -> Pair:
    if not isinstance(node.padding, str):
        return _pair(node.padding)
    if node.padding == "valid":
        return 0, 0
    if _pair(node.stride) != (1, 1) or any(k % 2 == 0 for k in window):
        raise ValueError(f"node {name!r}: its padding is not the same on both sides.")
    return window[0] // 2, window[1] // 2


def _pair(value: Any) -> Pair:
    first, second = np.broadcast_to(np.asarray(value), 2)
    return int(first), int(second)

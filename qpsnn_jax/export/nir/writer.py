"""NIR: a network with folded float32 weights in the neuromorphic intermediate representation, for other simulators.

A node becomes a NIR node or none; an addition becomes several edges into one node. Maps are ``c h w`` in NIR, and flat
values are maps of one position, because the simulators disagree on what a Flatten does to the batch.
"""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np

from qpsnn_jax.export.folded_layers import among_all
from qpsnn_jax.export.nir.builder import DT, Builder, Translated
from qpsnn_jax.export.nir.file import nir_package
from qpsnn_jax.export.reading import (
    affine,
    needed_nodes,
    neuron_options,
    registered,
    summed_weights,
    weights_of,
)
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Input,
    MaxPool,
    Shortcut,
    SumPool,
)
from qpsnn_jax.numerics.normalization import check_statistics

OUTPUT = "output"
_POOL = (2, 2)


def nir_graph(
    graph: Graph,
    variables: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    r"""The network as a NIR graph, to be run for T steps of dt = 10⁻⁴ s.

    Batch-norm, γ and the codes are folded into float32 weights and biases (:func:`qpsnn_jax.export.reading.affine`).
    NIR's neuron :math:`τ \dot v = v_{leak} - v + r I` with τ = 2·dt, r = 1 and v_leak = v_reset = 0 is, in Euler
    steps, :math:`v[t] = v[t-1]/2 + I[t]/2`, half of our membrane, so its threshold is θ/2. NIR fires at v > threshold;
    for firing at ≥ θ it is the next float32 below θ/2. Neurons of another leak have τ = dt/(1 - leak) and r = τ/dt, so
    that v is our membrane; those without one are IF with r = 1/dt. A max-pool of spikes over 2×2 is an average-pool and
    neurons that fire from half of one spike's mean: they end every step at zero, so they have no memory.

    Args:
        graph, variables: the network, quantized or not.
        mean, std: of each input channel, pixels scaled to [0, 1]; stored in the metadata.

    Returns:
        A ``nir.NIRGraph``. It reads normalized images ``c h w``, the same one at every step, or with frames one frame
        for each step; it gives currents ``classes 1 1`` at every step, whose mean over the steps is the result.
        ``metadata`` holds ``timesteps``, ``frames``, ``binary``, ``dt`` and, where given, ``mean`` and ``std``. Neurons
        have our nodes' names, a layer that is followed by a batch-norm has its own.

    Raises:
        ValueError: the package ``nir`` is not installed, mean and std do not fit the input, or something that NIR
            does not express exactly, naming the node: a soft or delayed reset, a decay factor τ above 1, a threshold
            that is not positive, attention, a max-pool of other windows than 2×2 or of other values than spikes, a
            batch-norm that does not follow a layer of its own, a kernel that is not square, a value added to itself, an
            output that is neither a dense layer nor neurons of one position. Nodes that the output does not need are
            left out.

    References:
        Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15, 2024.
    """
    nir = nir_package()
    output = graph.output
    last = graph.by_name[output.input] if isinstance(output, Flatten) else output
    one_position = graph.values[last.name].shape in ((graph.classes,), (1, 1, graph.classes))
    if not (isinstance(output, Dense) or (last.fires and one_position)):
        raise ValueError(f"node {output.name!r}: the last node must be a dense readout, or neurons of one position.")
    notes = {"timesteps": graph.timesteps, "frames": graph.input.frames, "binary": graph.input.binary, "dt": DT}
    notes |= _statistics(graph, mean, std)
    build = Builder(nir, graph, weights_of(graph, variables))
    values: dict[str, Translated] = {}
    for node in needed_nodes(graph):
        if node.name == OUTPUT or "/" in node.name:
            raise ValueError(f"node {node.name!r}: NIR files take no / in a name, and {OUTPUT!r} is taken; rename it.")
        values[node.name] = registered(translate, node)(node, build, [values[name] for name in node.inputs])
    build.add(OUTPUT, nir.Output(np.array([graph.classes, 1, 1])), values[graph.output.name], (1, 1, 1))
    return nir.NIRGraph(nodes=build.nodes, edges=build.edges, metadata=notes)


def _statistics(graph: Graph, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, np.ndarray]:
    if mean is None and std is None:
        return {}
    mean, std = (() if x is None else x for x in (mean, std))
    check_statistics(mean, std, graph.input.shape[2])
    return {"mean": np.asarray(mean, np.float64), "std": np.asarray(std, np.float64)}


@singledispatch
def translate(node: Any, build: Builder, sources: Sequence[Translated]) -> Translated:
    """Add the NIR nodes of a node, if any, and return its value; other classes enter by ``translate.register``."""
    del build, sources
    raise ValueError(
        f"node {node.name!r}: NIR has no {type(node).__name__.lower()}; register what it becomes with "
        f"@{__name__}.translate.register."
    )


@translate.register
def _(node: Input, build: Builder, sources: Sequence[Translated]) -> Translated:
    h, w, c = node.shape
    return build.add(node.name, build.nir.Input(np.array([c, h, w])), Translated((), node.shape), node.shape)


@translate.register
def _(node: BatchNorm, build: Builder, sources: Sequence[Translated]) -> Translated:
    if build.norms.get(node.input) is node:
        return sources[0]
    raise ValueError(f"node {node.name!r}: NIR has no batch-norm, and this one does not follow a layer of its own.")


@translate.register
def _(node: AveragePool, build: Builder, sources: Sequence[Translated]) -> Translated:
    return _average(build, node.name, sources[0], node.window, node.strides, node.padding)


@translate.register
def _(node: SumPool, build: Builder, sources: Sequence[Translated]) -> Translated:
    return _average(build, node.name, sources[0], node.window, node.strides, node.padding, kind="SumPool2d")


@translate.register
def _(node: GlobalAveragePool, build: Builder, sources: Sequence[Translated]) -> Translated:
    h, w, _ = sources[0].shape
    return _average(build, node.name, sources[0], (h, w), (h, w), (0, 0))


@translate.register
def _(node: Flatten, build: Builder, sources: Sequence[Translated]) -> Translated:
    return sources[0]


@translate.register
def _(node: Conv | Dense, build: Builder, sources: Sequence[Translated]) -> Translated:
    """A convolution, with zeros between groups; a dense layer is one whose kernel covers its complete input."""
    (source,) = sources
    factor, bias = affine(build.weights, node, build.norms.get(node.name))
    kernel = summed_weights(build.weights, node) * factor
    if isinstance(node, Dense):
        return _dense(build, node.name, source, kernel.reshape(*source.shape, node.features), bias)
    # The package nir takes the channels of one group for those of the input.
    kernel = among_all(kernel, node.groups)
    return _conv(build, node.name, source, kernel, bias, node.strides, node.padding, node.dilation)


def _dense(build: Builder, name: str, source: Translated, kernel: np.ndarray, bias: np.ndarray) -> Translated:
    """A kernel over the complete map, with zeros around it where it is not square, and strides of more than the map."""
    size = max(source.shape[:2])
    before = [-(-(size - length) // 2) for length in source.shape[:2]]
    around = [(pad, size - length - pad) for pad, length in zip(before, source.shape[:2], strict=True)]
    if not any(before):
        return _conv(build, name, source, kernel, bias)
    square = np.pad(kernel, (*around, (0, 0), (0, 0)))
    return _conv(build, name, source, square, bias, (size, size), (before[0], before[1]))


def _conv(
    build: Builder,
    name: str,
    source: Translated,
    kernel: np.ndarray,
    bias: np.ndarray,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Translated:
    h, w, _, features = kernel.shape
    if h != w:
        raise ValueError(f"node {name!r}: a kernel of {h}×{w} is not square, and NIR infers shapes from its height.")
    shape = (*Geometry(source.shape[:2], (h, w), strides, padding, dilation).output_hw, features)
    layer = build.nir.Conv2d(
        input_shape=source.shape[:2],
        weight=np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32),
        stride=strides,
        padding=padding,
        dilation=dilation,
        groups=1,
        bias=bias.astype(np.float32),
    )
    return build.add(name, layer, source, shape)


@translate.register
def _(node: LIF, build: Builder, sources: Sequence[Translated]) -> Translated:
    (source,) = sources
    leak, theta = neuron_options(build.weights, node)
    if node.reset != "hard":
        raise ValueError(f"node {node.name!r}: NIR's neurons have a hard reset, got a {node.reset} reset.")
    threshold = theta.astype(np.float32)
    if not ((threshold > 1e-6) & (threshold < 1e6)).all():
        raise ValueError(f"node {node.name!r}: the threshold must be between 1e-6 and 1e6, got {theta}.")
    below = threshold if node.fire == ">" else np.nextafter(threshold, np.float32(0))
    if (leak == 1).all():
        return build.add(node.name, _if(build, source, below), source, source.shape)
    if not ((leak >= 0) & (leak < 1)).all():
        raise ValueError(
            f"node {node.name!r}: NIR has decay factors τ from 0 to below 1, or 1 for all neurons, got {leak}."
        )
    if (leak == 0.5).all():
        return build.add(node.name, _lif(build, source, below / 2), source, source.shape)
    tau = DT / (1 - leak)
    return build.add(node.name, _lif(build, source, below, tau, tau / DT), source, source.shape)


def _lif(build: Builder, source: Translated, threshold: Any, tau: Any = 2 * DT, r: Any = 1.0) -> Any:
    # In float64, tau / dt is exactly 2 for a leak of one half.
    return build.nir.LIF(
        tau=_by_channel(source, tau, np.float64),
        r=_by_channel(source, r),
        v_leak=_by_channel(source, 0),
        v_threshold=_by_channel(source, threshold),
        v_reset=_by_channel(source, 0),
    )


def _if(build: Builder, source: Translated, threshold: Any) -> Any:
    """Neurons that add their current, as a step adds dt · r times it."""
    return build.nir.IF(
        r=_by_channel(source, 1 / DT, np.float64),
        v_threshold=_by_channel(source, threshold),
        v_reset=_by_channel(source, 0),
    )


def _by_channel(source: Translated, value: Any, dtype: Any = np.float32) -> np.ndarray:
    """One number, or one for each channel or, where maps are flattened, each value, for every neuron ``c h w``."""
    h, w, c = source.shape
    values = np.asarray(value, dtype).reshape(-1)
    maps = values.reshape(source.shape) if values.size == h * w * c else values
    return np.broadcast_to(maps, source.shape).transpose(2, 0, 1).copy()


@translate.register
def _(node: MaxPool, build: Builder, sources: Sequence[Translated]) -> Translated:
    if not build.graph.values[node.input].spiking:
        raise ValueError(f"node {node.name!r}: NIR has no max-pool, and this one is not of spikes.")
    if node.window != _POOL:
        raise ValueError(
            f"node {node.name!r}: only a max-pool over 2×2 spikes can be exported to NIR, got {node.window}."
        )
    mean = _average(build, f"{node.name}.mean", sources[0], node.window, node.strides, node.padding)
    one_spike = 1 / (_POOL[0] * _POOL[1])
    return build.add(node.name, _lif(build, mean, one_spike / 2 / 2), mean, mean.shape)


def _average(
    build: Builder,
    name: str,
    source: Translated,
    window: Pair,
    strides: Pair,
    padding: Pair,
    kind: str = "AvgPool2d",
) -> Translated:
    shape = (*Geometry(source.shape[:2], window, strides, padding).output_hw, source.shape[2])
    kernel_size, stride, pad = (np.array(x) for x in (window, strides, padding))
    pool = getattr(build.nir, kind)(kernel_size=kernel_size, stride=stride, padding=pad)
    return build.add(name, pool, source, shape)


@translate.register
def _(node: Shortcut, build: Builder, sources: Sequence[Translated]) -> Translated:
    """A strided 1×1 convolution with a matrix of zeros and ones; the identity is an edge."""
    (source,) = sources
    channels = source.shape[2]
    if node.stride == 1 and node.source == tuple(range(channels)):
        return source
    kernel = (np.arange(channels)[:, None] == np.array(node.source)).astype(np.float32)[None, None]
    return _conv(build, node.name, source, kernel, np.zeros(len(node.source)), (node.stride, node.stride))


@translate.register
def _(node: Add, build: Builder, sources: Sequence[Translated]) -> Translated:
    first, second = sources
    if twice := set(first.nodes) & set(second.nodes):
        raise ValueError(f"node {node.name!r}: adds {min(twice)!r} to itself, and NIR has one edge between two nodes.")
    if first.shape != second.shape:
        raise ValueError(f"node {node.name!r}: NIR adds no maps of {first.shape} to {second.shape}; flatten later.")
    return Translated(first.nodes + second.nodes, first.shape)

"""Runs a graph: the one Flax module, a thin adapter around pure functions of nodes and arrays."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.model.graph import (
    LIF,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Graph,
    Input,
    MaxPool,
    Node,
    Quantizer,
    Shortcut,
    Value,
)
from qpsnn_jax.numerics.neurons import LIFTrace, lif_trace
from qpsnn_jax.numerics.quantization import integer_weights
from qpsnn_jax.numerics.surrogate import SURROGATES

Leaves = dict[str, Array]
Reducer = Callable[[Any], Any]
Capture = Mapping[str, Reducer] | Iterable[str]


class AttentionTrace(NamedTuple):
    """What an attention node did: its ``currents`` and the synaptic ``operations`` they took, ``b`` or ``b t``."""

    currents: Array
    operations: Array


class SpikingNetwork(nn.Module):
    """Runs ``graph`` on images.

    ``SpikingNetwork(graph).init(key, images)`` gives the variables: ``params`` and ``batch_stats``, and ``scales``
    with the constant gain on the γ of every quantized layer (1 until channels are pruned).
    ``SpikingNetwork(graph).apply(variables, images)`` gives the output currents.

    With ``train=True`` batch statistics normalize, and the updated running ones come out through
    ``mutable=["batch_stats"]``. The running variance is the unbiased one, as in the released code.
    """

    graph: Graph

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, capture: Capture | None = None) -> Any:
        """Output currents of the network.

        Args:
            images: normalized images ``b h w c``, or event frames ``b t h w c`` if the graph's input has frames.
            train: normalize by the batch's statistics.
            capture: names of nodes whose outputs are returned too, or a mapping from names to functions that
                reduce them on the fly, so that the maps themselves are never stored. The output of a LIF node is a
                :class:`LIFTrace` of spikes and membranes ``b t h w c``, that of an attention an
                :class:`AttentionTrace`; of any other node an array, without time axis
                as long as it is the same at every step.

        Returns:
            Currents ``b t classes``; with ``capture``, ``(currents, {name: captured})``.

        Raises:
            ValueError: the images do not have the graph's input shape, or ``capture`` names an unknown node.

        References:
            QP-SNN (ICLR 2025), section 3; direct encoding.
        """
        graph = self.graph
        images = _check_images(graph, images)
        reducers = _reducers(graph, capture)
        values: dict[str, Array] = {graph.input.name: images}
        captured: dict[str, Any] = {}
        for node in graph.nodes:
            if isinstance(node, Input):
                output: Any = images
            else:
                arguments = [values[name] for name in node.inputs]
                output = self._run(node, arguments, train)
            values[node.name] = output[0] if isinstance(output, LIFTrace | AttentionTrace) else output
            if node.name in reducers:
                captured[node.name] = reducers[node.name](output)
        currents = values[graph.output.name]
        if not graph.values[graph.output.name].timed:
            currents = _repeat(currents, graph.timesteps)
        return currents if capture is None else (currents, captured)

    def _run(self, node: Node, inputs: list[Array], train: bool) -> Array | LIFTrace | AttentionTrace:
        graph = self.graph
        shape = graph.values[node.inputs[0]].shape
        match node:
            case Conv() | Dense():
                leaves = self.param(node.name, _init_weights, node, shape)
                gain = jnp.ones(())
                if node.quantizer is not None:
                    gain = self.variable("scales", node.name, _init_gain, node, node.quantizer).value["gain"]
                return weighted(node, leaves, gain, inputs[0], graph.values[node.input])
            case BatchNorm():
                leaves = self.param(node.name, _init_batch_norm, shape)
                stats = self.variable("batch_stats", node.name, _init_batch_stats, shape)
                if not train:
                    return normalize_channels(inputs[0], **leaves, **stats.value, epsilon=node.epsilon)
                mean, var = _batch_moments(inputs[0])
                if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                    repeats = 1 if graph.values[node.input].timed else graph.timesteps
                    count = repeats * inputs[0].size // inputs[0].shape[-1]
                    stats.value = _running(stats.value, mean, var * (count / max(1, count - 1)), node.momentum)
                return normalize_channels(inputs[0], **leaves, mean=mean, var=var, epsilon=node.epsilon)
            case LIF():
                timed = inputs[0] if graph.values[node.input].timed else _repeat(inputs[0], graph.timesteps)
                return run_lif(node, timed)
        timed = [graph.values[name].timed for name in node.inputs]
        if any(timed) and not all(timed):
            inputs = [x if t else _repeat(x, graph.timesteps) for x, t in zip(inputs, timed, strict=True)]
        return run_stateless(node, inputs)


def run_lif(node: LIF, currents: Array) -> LIFTrace:
    """Spikes and membranes of a LIF node for currents ``b t …``."""
    return lif_trace(
        currents,
        tau=node.tau,
        threshold=node.threshold,
        surrogate=SURROGATES[node.surrogate],
        fire=node.fire,
        reset=node.reset,
        detach_reset=node.detach_reset,
    )


def weighted(node: Conv | Dense, leaves: Leaves, gain: Array, x: Array, given: Value) -> Array:
    """A convolution or dense layer on ``b [t] …``, its weights quantized as the node says; ``given`` describes x.

    A quantized layer multiplies by odd integers and applies the scale to the sums, so that on spikes it computes
    exactly what an integer device accumulates.
    """
    kernel, scale = leaves["kernel"], None
    if node.quantizer is not None:
        kernel, scale = integer_weights(kernel, gain=_like_kernel(gain, kernel), **_options(node.quantizer))
    folded = x.reshape(-1, *x.shape[2:]) if given.timed else x
    if isinstance(node, Conv):
        sums = partial(conv_spikes, bits=node.quantizer.bits) if node.quantizer and given.spiking else convolve
        y = sums(folded, kernel, strides=node.strides, padding=node.padding)
    else:
        y = folded @ kernel
    if scale is not None:
        y = y * scale.reshape((1,) * (y.ndim - 1) + (-1,))
    if node.bias:
        y = y + leaves["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
    return y.reshape(*x.shape[:2], *y.shape[1:]) if given.timed else y


def normalize_channels(x: Array, *, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    """Batch normalization of ``… c`` with given moments of shape ``c``."""
    factor = scale * jax.lax.rsqrt(var + epsilon)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def run_stateless(node: Node, inputs: list[Array]) -> Array | AttentionTrace:
    """Nodes without variables, on ``b [t] h w c``."""
    x = inputs[0]
    match node:
        case MaxPool():
            return _max_pool(x, node)
        case AveragePool():
            return _average_pool(x, node)
        case GlobalAveragePool():
            return jnp.mean(x, axis=(-3, -2))
        case Flatten():
            return x.reshape(*x.shape[:-3], -1)
        case Shortcut():
            return shortcut(x, node)
        case Add():
            return x + inputs[1]
        case Attention():
            return attention(x, inputs[1], inputs[2], node)
    raise ValueError(f"node {node.name!r}: unknown kind {type(node).__name__}.")


def shortcut(x: Array, node: Shortcut) -> Array:
    """Strided slice of ``… h w c`` whose channels are placed as ``node.source`` says, zeros elsewhere."""
    x = x[..., :: node.stride, :: node.stride, :]
    if node.source == tuple(range(x.shape[-1])):
        return x
    source = jnp.asarray(node.source)
    return jnp.where(source.reshape((1,) * (x.ndim - 1) + (-1,)) >= 0, x[..., source], 0)


def attention(query: Array, key: Array, value: Array, node: Attention) -> AttentionTrace:
    r"""``factor · Q (Kᵀ V)`` per head on ``b [t] h w c``; without a softmax the product may begin with Kᵀ V.

    The operations are :math:`\sum_n |k_n| |v_n|` for Kᵀ V, one where spikes of key and value meet, and
    :math:`d \sum_n |q_n|` for its product with Q, where each spike of the query adds a row of d numbers.
    """
    shape = query.shape
    heads = (*shape[:-3], shape[-3] * shape[-2], shape[-1] // node.head_features, node.head_features)
    q, k, v = (x.reshape(heads) for x in (query, key, value))
    memory = jnp.einsum("...nhd,...nhe->...hde", k, v)
    currents = node.factor * jnp.einsum("...nhd,...hde->...nhe", q, memory).reshape(shape)
    meetings = jnp.sum(jnp.sum(k, -1) * jnp.sum(v, -1), (-2, -1))
    return AttentionTrace(currents, meetings + node.head_features * jnp.sum(q, (-3, -2, -1)))


def _max_pool(x: Array, node: MaxPool) -> Array:
    """The largest of each window; where several are, as spikes are, the gradient goes to the first.

    By selections, because the gradient of ``reduce_window`` takes four integers for every number on a CPU.
    """
    around = (*((0, 0) for _ in x.shape[:-3]), *((p, p) for p in node.padding), (0, 0))
    padded = jnp.pad(x, around, constant_values=-jnp.inf)
    sizes = zip(padded.shape[-3:-1], node.window, node.strides, strict=True)
    rows, columns = ([slice(i, n - k + i + 1, s) for i in range(k)] for n, k, s in sizes)
    largest, *others = (padded[..., row, column, :] for row, column in product(rows, columns))
    for each in others:
        largest = jnp.where((each > largest) | jnp.isnan(each), each, largest)
    return largest


def _average_pool(x: Array, node: AveragePool) -> Array:
    lead = (1,) * (x.ndim - 3)
    window, strides = (*lead, *node.window, 1), (*lead, *node.strides, 1)
    padding = (*((0, 0) for _ in lead), *((p, p) for p in node.padding), (0, 0))
    sums = jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, strides, padding)
    return sums / math.prod(node.window)


def _repeat(x: Array, timesteps: int) -> Array:
    return jnp.broadcast_to(jnp.expand_dims(x, 1), (x.shape[0], timesteps, *x.shape[1:]))


def _batch_moments(x: Array) -> tuple[Array, Array]:
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axis=axes), jnp.var(x, axis=axes)


def _running(stats: Leaves, mean: Array, var: Array, momentum: float) -> Leaves:
    return {
        "mean": momentum * stats["mean"] + (1 - momentum) * mean,
        "var": momentum * stats["var"] + (1 - momentum) * var,
    }


def _init_weights(key: Array, node: Conv | Dense, shape: tuple[int, ...]) -> Leaves:
    """He-normal over the fan-out for convolutions, LeCun-normal for dense layers; zero biases."""
    if isinstance(node, Conv):
        initialize = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = initialize(key, (*node.kernel, shape[-1], node.features), jnp.float32)
    else:
        kernel = nn.initializers.lecun_normal()(key, (shape[-1], node.features), jnp.float32)
    return {"kernel": kernel} | ({"bias": jnp.zeros(node.features)} if node.bias else {})


def _init_gain(node: Conv | Dense, quantizer: Quantizer) -> Leaves:
    return {"gain": jnp.ones(node.features if quantizer.granularity == "channel" else 1)}


def _init_batch_norm(key: Array, shape: tuple[int, ...]) -> Leaves:
    del key
    return {"scale": jnp.ones(shape[-1]), "bias": jnp.zeros(shape[-1])}


def _init_batch_stats(shape: tuple[int, ...]) -> Leaves:
    return {"mean": jnp.zeros(shape[-1]), "var": jnp.ones(shape[-1])}


def _options(quantizer: Quantizer) -> dict[str, Any]:
    return {
        "bits": quantizer.bits,
        "gamma": quantizer.gamma,
        "granularity": quantizer.granularity,
        "ste": quantizer.ste,
    }


def _like_kernel(gain: Array, kernel: Array) -> Array:
    return gain.reshape((1,) * (kernel.ndim - 1) + (-1,))


def _check_images(graph: Graph, images: Array) -> Array:
    images = jnp.asarray(images)
    expected = ("b", graph.timesteps, *graph.input.shape) if graph.input.frames else ("b", *graph.input.shape)
    if images.ndim != len(expected) or images.shape[1:] != expected[1:]:
        wanted = " ".join(str(n) for n in expected)
        raise ValueError(f"images must have the shape {wanted} of node {graph.input.name!r}, got {images.shape}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating and normalized, got {images.dtype}.")
    return images


def _reducers(graph: Graph, capture: Capture | None) -> dict[str, Reducer]:
    if capture is None:
        return {}
    reducers = dict(capture) if isinstance(capture, Mapping) else {name: lambda x: x for name in capture}
    unknown = [name for name in reducers if name not in graph.by_name]
    if unknown:
        raise ValueError(f"capture names {unknown[0]!r}, which is no node of the graph.")
    return reducers

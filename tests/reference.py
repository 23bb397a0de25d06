"""A graph in NumPy and float64, written anew: every node at every step, with the spikes it finds or is given."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qpsnn_jax.model.graph import Graph


class Run(NamedTuple):
    """Every node's output ``b t …``, and of LIF nodes the membranes before the reset."""

    values: dict[str, np.ndarray]
    membranes: dict[str, np.ndarray]


def run(
    graph: Graph,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    spikes: Mapping[str, np.ndarray] | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    kernels: Mapping[str, np.ndarray] | None = None,
) -> Run:
    """Run a graph on images ``b h w c`` or frames ``b t h w c``.

    Args:
        graph, variables: the network.
        images: normalized.
        spikes: by LIF node, to go on with in place of its own ``[membrane ≥ θ]``, in its reset and in what reads it.
        masks: by node, one factor for each channel of its output.
        kernels: by layer, weights in place of the quantized ones.
    """
    x = np.asarray(images, np.float64)
    x = x if graph.input.frames else np.repeat(x[:, None], graph.timesteps, 1)
    found = Run({}, {})
    for node in graph.nodes:
        inputs = [found.values[name] for name in node.inputs] or [x]
        kind = type(node).__name__
        if kind == "LIF":
            given = (spikes or {}).get(node.name)
            output, found.membranes[node.name] = lif(node, inputs[0], given)
        elif kind in ("Conv", "Dense"):
            output = weighted(node, inputs[0], variables, (kernels or {}).get(node.name))
        elif kind == "BatchNorm":
            params, stats = (
                {k: np.asarray(v, np.float64) for k, v in variables[c][node.name].items()}
                for c in ("params", "batch_stats")
            )
            output = (inputs[0] - stats["mean"]) / np.sqrt(stats["var"] + node.epsilon) * params["scale"]
            output = output + params["bias"]
        else:
            output = STATELESS[kind](node, *inputs)
        found.values[node.name] = output * (masks or {}).get(node.name, 1)
    return found


def lif(node: Any, currents: np.ndarray, given: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    membranes, fired, left = np.empty_like(currents), np.empty_like(currents), 0.0
    tau, threshold = np.asarray(node.tau), np.asarray(node.threshold)
    for t in range(currents.shape[1]):
        charged = tau * left + currents[:, t]
        if node.reset == "delayed" and t:
            charged = charged - threshold * fired[:, t - 1]
        above = charged >= threshold if node.fire == ">=" else charged > threshold
        membranes[:, t], fired[:, t] = charged, above if given is None else given[:, t]
        match node.reset:
            case "hard":
                left = charged * (1 - fired[:, t])
            case "soft":
                left = charged - threshold * fired[:, t]
            case "delayed":
                left = charged
    return fired, membranes


def weighted(node: Any, x: np.ndarray, variables: Mapping[str, Any], kernel: np.ndarray | None) -> np.ndarray:
    params = variables["params"][node.name]
    if kernel is None:
        kernel = np.asarray(params["kernel"], np.float64)
        if node.quantizer is not None:
            kernel = quantized(node.quantizer, kernel, variables["scales"][node.name]["gain"])
        if node.masked:
            kernel = kernel * variables["masks"][node.name]["mask"]
    if kernel.ndim == 2:
        sums = x @ kernel
    else:
        patches = windows(x, kernel.shape[:2], node.strides, node.padding, node.dilation)
        parts = zip(np.split(patches, node.groups, 4), np.split(kernel, node.groups, 3), strict=True)
        sums = np.concatenate([np.tensordot(p, k, ((4, 5, 6), (2, 0, 1))) for p, k in parts], -1)
    return sums + np.asarray(params["bias"], np.float64) if node.bias else sums


def quantized(quantizer: Any, kernel: np.ndarray, gain: Any) -> np.ndarray:
    """The nearest of the 2^b levels from -γ to γ."""
    by_channel = quantizer.granularity == "channel"
    axes = tuple(range(kernel.ndim - by_channel))
    match quantizer.gamma:
        case "none":
            gamma = np.ones_like(np.max(kernel, axes, keepdims=True))
        case "max":
            gamma = np.max(np.abs(kernel), axes, keepdims=True)
        case "percentile":
            gamma = np.max(np.abs(np.percentile(kernel, [1, 99], axes, keepdims=True)), 0)
        case "mean":
            gamma = np.mean(np.abs(kernel), axes, keepdims=True)
    gamma = gamma * np.asarray(gain, np.float64).reshape((1,) * (kernel.ndim - 1) + (-1,))
    top = 2**quantizer.bits - 1
    code = np.rint((np.clip(kernel / np.where(gamma > 0, gamma, 1), -1, 1) + 1) / 2 * top)
    return gamma * (2 * code / top - 1)


def attention(node: Any, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Queries times keys first, as the paper of spiking self-attention writes it."""
    output = np.zeros_like(query)
    flat = [x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (query, key, value)]
    for first in range(0, query.shape[-1], node.head_features):
        q, k, v = (x[..., first : first + node.head_features] for x in flat)
        head = (q @ np.swapaxes(k, -1, -2)) @ v
        output[..., first : first + node.head_features] = head.reshape(*query.shape[:-1], -1)
    return node.factor * output


def shortcut(node: Any, x: np.ndarray) -> np.ndarray:
    picked = x[:, :, :: node.stride, :: node.stride]
    zeros = np.zeros(picked.shape[:-1])
    return np.stack([picked[..., c] if c >= 0 else zeros for c in node.source], -1)


def windows(
    x: np.ndarray, window: Any, strides: Any, padding: Any, dilation: Any = (1, 1), fill: float = 0
) -> np.ndarray:
    """Windows of ``b t h w c`` as ``b t h' w' c kh kw``."""
    around = ((0, 0), (0, 0), *((p, p) for p in padding), (0, 0))
    spread = tuple(d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True))
    seen = sliding_window_view(np.pad(x, around, constant_values=fill), spread, (2, 3))
    return seen[:, :, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]


STATELESS: dict[str, Callable[..., np.ndarray]] = {
    "Input": lambda node, x: x,
    "MaxPool": lambda node, x: windows(x, node.window, node.strides, node.padding, fill=-np.inf).max((-1, -2)),
    "AveragePool": lambda node, x: windows(x, node.window, node.strides, node.padding).mean((-1, -2)),
    "SumPool": lambda node, x: windows(x, node.window, node.strides, node.padding).sum((-1, -2)),
    "GlobalAveragePool": lambda node, x: x.mean((2, 3)),
    "Flatten": lambda node, x: x.reshape(*x.shape[:2], -1),
    "Shortcut": shortcut,
    "Add": lambda node, x, y: x + y,
    "Concatenate": lambda node, *parts: np.concatenate(parts, -1),
    "Attention": attention,
}

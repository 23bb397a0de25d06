"""NIR's own equations in NumPy, float64: what a simulator of an exported graph must do."""

from graphlib import TopologicalSorter

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def run(document, images, dt=1e-4):
    """Outputs ``b t n`` and the spikes of every LIF node, for inputs ``b t h w c``, by Euler's method."""
    sources = {name: [a for a, b in document.edges if b == name] for name in document.nodes}
    order = list(TopologicalSorter(sources).static_order())
    membranes, outputs, counts = {}, [], {}
    for step in range(images.shape[1]):
        values = {}
        for name in order:
            node = document.nodes[name]
            x = sum(values[other] for other in sources[name]) if sources[name] else _input(node, images[:, step])
            match type(node).__name__:
                case "Input" | "Output":
                    values[name] = x
                case "LIF":
                    v = membranes.get(name, np.zeros_like(x))
                    v = v + dt / node.tau * (node.v_leak - v + node.r * x)
                    values[name] = (v > node.v_threshold).astype(np.float64)
                    membranes[name] = np.where(values[name], node.v_reset, v)
                    counts[name] = counts.get(name, 0) + int(values[name].sum())
                case "CubaLIF":
                    current, v = membranes.get(name, (np.zeros_like(x), np.zeros_like(x)))
                    current = current + dt / node.tau_syn * (node.w_in * x - current)
                    v = v + dt / node.tau_mem * (node.v_leak - v + node.r * current)
                    values[name] = (v > node.v_threshold).astype(np.float64)
                    membranes[name] = current, np.where(values[name], node.v_reset, v)
                    counts[name] = counts.get(name, 0) + int(values[name].sum())
                case "IF":
                    v = membranes.get(name, np.zeros_like(x)) + dt * node.r * x
                    values[name] = (v > node.v_threshold).astype(np.float64)
                    membranes[name] = np.where(values[name], node.v_reset, v)
                    counts[name] = counts.get(name, 0) + int(values[name].sum())
                case "Conv2d":
                    windows = _windows(x, node.weight.shape[2:], node.stride, node.padding)
                    sums = np.einsum("bchwkl,ockl->bohw", windows, node.weight.astype(np.float64), optimize=True)
                    values[name] = sums + node.bias[:, None, None]
                case "AvgPool2d":
                    values[name] = _windows(x, node.kernel_size, node.stride, node.padding).mean((-1, -2))
                case "SumPool2d":
                    values[name] = _windows(x, node.kernel_size, node.stride, node.padding).sum((-1, -2))
                case "Flatten":
                    values[name] = x.reshape(len(x), -1)
                case "Affine" | "Linear":
                    values[name] = x @ node.weight.T + getattr(node, "bias", 0)
        outputs.append(values[order[-1]].reshape(len(images), -1))
    return np.stack(outputs, 1), counts


def _input(node, images):
    x = np.moveaxis(np.asarray(images, np.float64), -1, 1)
    return x.reshape(len(x), *node.input_type["input"])


def _windows(x, window, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    return sliding_window_view(x, tuple(window), (2, 3))[:, :, :: stride[0], :: stride[1]]

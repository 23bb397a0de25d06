"""A network in training in PyTorch: what the benchmarks hold the JAX one against, written plainly for that alone.

Time is folded into the batch, and the first layer sees an image once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

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
    Node,
    Quantizer,
    Shortcut,
)


class Fire(torch.autograd.Function):
    """A step whose derivative is a triangle."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        """1 where x is not negative."""
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The triangle of width 1."""
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.abs()).clamp(min=0)


class TorchNetwork(torch.nn.Module):
    """A :class:`qpsnn_jax.Graph` with its variables; images ``b c h w`` to currents ``t b classes``.

    Gains of quantized layers are left at 1, where training begins. ``lif`` computes what :func:`neurons` does.
    """

    def __init__(self, graph: Graph, variables: dict[str, Any], lif: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.graph, self.lif = graph, lif or neurons
        self.layers = torch.nn.ModuleDict()
        for node in graph.nodes:
            if isinstance(node, Conv | Dense | BatchNorm):
                self.layers[_key(node)] = _layer(node, graph, variables)

    def forward(self, images: Any) -> Any:
        """Output currents."""
        values: dict[str, Any] = {}
        for node in self.graph.nodes:
            values[node.name] = self._run(node, [values[name] for name in node.inputs], images)
        return values[self.graph.output.name].unflatten(0, (self.graph.timesteps, -1))

    def _run(self, node: Any, inputs: list[Any], images: Any) -> Any:
        match node:
            case Input():
                return images
            case Conv():
                layer = self.layers[_key(node)]
                weight = quantized(layer.weight, node.quantizer)
                return functional.conv2d(inputs[0], weight, layer.bias, node.strides, node.padding)
            case Dense():
                layer = self.layers[_key(node)]
                return functional.linear(inputs[0], quantized(layer.weight, node.quantizer), layer.bias)
            case BatchNorm():
                return self.layers[_key(node)](inputs[0])
            case LIF():
                return self.lif(inputs[0], node, self.graph.timesteps, self.graph.values[node.input].timed)
            case MaxPool():
                return functional.max_pool2d(inputs[0], node.window, node.strides, node.padding)
            case AveragePool():
                return functional.avg_pool2d(inputs[0], node.window, node.strides, node.padding)
            case Shortcut():
                return shortcut(inputs[0], node)
            case Add():
                return inputs[0] + inputs[1]
            case GlobalAveragePool():
                return inputs[0].mean((2, 3))
            case Flatten():
                # As rows, columns, channels, the order of the weights.
                return inputs[0].permute(0, 2, 3, 1).flatten(1)
        raise ValueError(f"node {node.name!r}: the benchmark knows no {type(node).__name__}.")


def quantized(weight: Any, quantizer: Quantizer | None) -> Any:
    """ReScaW with γ = mean of the layer's magnitudes and the clipped straight-through gradient."""
    if quantizer is None:
        return weight
    top = 2**quantizer.bits - 1
    gamma = weight.detach().abs().mean()
    clipped = (weight / gamma).clamp(-1, 1)
    rounded = (2 * torch.round((clipped + 1) * (top / 2)) - top) / top
    return gamma * (clipped + (rounded - clipped).detach())


def neurons(currents: Any, node: LIF, timesteps: int, timed: bool) -> Any:
    """Spikes of LIF neurons, the steps one after the other along the batch."""
    steps = currents.chunk(timesteps) if timed else [currents] * timesteps
    membrane, spikes = torch.zeros_like(steps[0]), []
    for current in steps:
        membrane = node.tau * membrane + current
        spikes.append(Fire.apply(membrane - node.threshold))
        membrane = membrane * (1 - spikes[-1])
    return torch.cat(spikes)


def shortcut(x: Any, node: Shortcut) -> Any:
    """A strided slice, its channels at their places among zeros."""
    x = x[:, :, :: node.stride, :: node.stride]
    whole = tuple(range(x.shape[1]))
    before = node.source.index(0) if 0 in node.source else 0
    after = len(node.source) - before - len(whole)
    if node.source == (-1,) * before + whole + (-1,) * after:
        return functional.pad(x, (0, 0, 0, 0, before, after)) if before or after else x
    # Of a pruned network; -1 is the channel of zeros at the end.
    return functional.pad(x, (0, 0, 0, 0, 0, 1))[:, list(node.source)]


def _layer(node: Conv | Dense | BatchNorm, graph: Graph, variables: dict[str, Any]) -> Any:
    leaves = {name: torch.from_numpy(np.array(x)) for name, x in variables["params"][node.name].items()}
    if isinstance(node, BatchNorm):
        # PyTorch's momentum is the part of the new value.
        kind = torch.nn.BatchNorm2d if len(graph.values[node.name].shape) == 3 else torch.nn.BatchNorm1d
        layer = kind(len(leaves["scale"]), eps=node.epsilon, momentum=1 - node.momentum)
        stats = variables["batch_stats"][node.name]
        state = {"weight": leaves["scale"], "bias": leaves["bias"]}
        state |= {f"running_{name}": torch.from_numpy(np.array(stats[name])) for name in ("mean", "var")}
        layer.load_state_dict(state, strict=False)
        return layer
    inputs = graph.values[node.input].shape[-1]
    if isinstance(node, Conv):
        layer = torch.nn.Conv2d(inputs, node.features, node.kernel, bias=node.bias)
        weight = leaves["kernel"].permute(3, 2, 0, 1)
    else:
        layer = torch.nn.Linear(inputs, node.features, bias=node.bias)
        weight = leaves["kernel"].T
    layer.load_state_dict({"weight": weight} | ({"bias": leaves["bias"]} if node.bias else {}))
    return layer


def _key(node: Node) -> str:
    """A name without the dots that a module's may not have."""
    return node.name.replace(".", "_")

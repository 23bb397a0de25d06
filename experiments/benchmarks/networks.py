"""The networks that the benchmarks time, and how PyTorch computes one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax import Graph, SpikingNetwork, init_variables
from qpsnn_jax.model.nodes import LIF, Add, BatchNorm, Conv, Dense, GlobalAveragePool, Input, Shortcut
from qpsnn_jax.model.zoo import resnet20

# Table 1: ResNet20 on CIFAR-10, 6.22M parameters, T = 2.
RATIOS = {"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.6}


def network(bits: int | None, *, pruned: bool, width: float = 1.0, drive: float = 0.0) -> tuple[Graph, dict[str, Any]]:
    """The paper's ResNet20, untrained, with batch statistics measured, so that it fires as a network in training does.

    Args:
        bits: of its quantized weights; None for float32.
        pruned: at the widths of 6.22M parameters, else whole.
        width: multiplies every width; 1 is the paper's.
        drive: added to every current before its neuron; changes how often neurons fire.

    Returns:
        ``(graph, variables)``.
    """
    graph = resnet20(bits=bits, width=width, ratios=RATIOS if pruned else None)
    return graph, with_statistics(graph, drive)


def with_statistics(graph: Graph, drive: float = 0.0) -> dict[str, Any]:
    """Fresh variables of a graph, with the statistics of a batch of noise; ``drive`` as in :func:`network`."""
    # A running average that forgets at once holds the statistics of the one batch.
    nodes = (replace(node, momentum=0.0) if isinstance(node, BatchNorm) else node for node in graph.nodes)
    forgetful = SpikingNetwork(replace(graph, nodes=tuple(nodes)))
    variables = init_variables(graph, jax.random.key(0))
    for leaves in variables["params"].values():
        if "scale" in leaves:
            leaves["bias"] = leaves["bias"] + drive
    measure = jax.jit(lambda tree, images: forgetful.apply(tree, images, train=True, mutable=["batch_stats"])[1])
    images = jax.random.normal(jax.random.key(1), (2, *graph.input.shape))
    return variables | dict(measure(variables, images))


def in_xla(graph: Graph, variables: dict[str, Any], image: np.ndarray) -> Callable[[], np.ndarray]:
    """The network on one image ``1 h w c``, compiled by XLA."""
    compiled = jax.jit(SpikingNetwork(graph).apply)
    placed, image_there = jax.device_put(variables), jnp.asarray(image)
    return lambda: np.asarray(compiled(placed, image_there).currents)


def in_torch(graph: Graph, variables: dict[str, Any], image: np.ndarray, *, channels_last: bool) -> Callable[[], Any]:
    """The network on one image ``1 h w c`` in PyTorch, batch-norm folded into the convolutions, time in the batch."""
    import torch  # pyright: ignore[reportMissingImports]

    layout = torch.channels_last if channels_last else torch.contiguous_format
    picture = _tensor(image).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    layers = [(node, _layer(node, graph, variables, layout)) for node in graph.nodes if not isinstance(node, Input)]

    def forward() -> Any:
        values: dict[str, Any] = {graph.input.name: picture}
        with torch.inference_mode():
            for node, layer in layers:
                values[node.name] = layer(*(values[name] for name in node.inputs))
        return values[graph.output.name].reshape(graph.timesteps, 1, -1).transpose(0, 1).numpy()

    return forward


def _layer(node: Any, graph: Graph, variables: dict[str, Any], layout: Any) -> Callable[..., Any]:
    """What computes a node from its inputs; a convolution is folded into the batch-norm that follows."""
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks.torch_network import neurons, shortcut

    match node:
        case Conv():
            return lambda x: x
        case BatchNorm():
            return _convolution(graph.by_name[node.input], node, variables, layout)
        case LIF():
            timed = graph.values[node.input].timed
            return partial(neurons, node=node, timesteps=graph.timesteps, timed=timed)
        case Shortcut():
            return partial(shortcut, node=node)
        case Add():
            return torch.add
        case GlobalAveragePool():
            return lambda x: x.mean((2, 3))
        case Dense():
            leaves = variables["params"][node.name]
            return partial(torch.nn.functional.linear, weight=_tensor(leaves["kernel"]).T, bias=_tensor(leaves["bias"]))
    raise ValueError(f"node {node.name!r}: the benchmark knows no {type(node).__name__}.")


def _convolution(node: Any, norm: BatchNorm, variables: dict[str, Any], layout: Any) -> Callable[..., Any]:
    import torch  # pyright: ignore[reportMissingImports]

    params, stats = variables["params"], variables["batch_stats"][norm.name]
    factor = np.asarray(params[norm.name]["scale"] / np.sqrt(stats["var"] + norm.epsilon))
    kernel = np.asarray(params[node.name]["kernel"]) * factor
    return partial(
        torch.nn.functional.conv2d,
        weight=_tensor(kernel.transpose(3, 2, 0, 1)).contiguous(memory_format=layout),
        bias=_tensor(params[norm.name]["bias"] - factor * stats["mean"]),
        stride=node.strides,
        padding=node.padding,
    )


def _tensor(array: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(np.array(array, np.float32))

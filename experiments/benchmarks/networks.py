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

    from experiments.benchmarks.torch_network import neurons, shortcut

    layout = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32))

    def picture(array: np.ndarray) -> Any:
        return tensor(array).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    run: list[tuple[str, Callable[[dict[str, Any]], Any]]] = []
    params, stats = variables["params"], variables["batch_stats"]
    for node in graph.nodes:
        match node:
            case Input():
                run.append((node.name, partial(_shown, picture=picture(image))))
            case Conv():
                norm = next(other for other in graph.nodes if isinstance(other, BatchNorm) and other.input == node.name)
                factor = params[norm.name]["scale"] / np.sqrt(stats[norm.name]["var"] + norm.epsilon)
                kernel = np.asarray(params[node.name]["kernel"]) * np.asarray(factor)
                weights = tensor(kernel.transpose(3, 2, 0, 1)).contiguous(memory_format=layout)
                bias = tensor(params[norm.name]["bias"] - factor * stats[norm.name]["mean"])
                options = {"stride": node.strides, "padding": node.padding}
                convolve = partial(torch.nn.functional.conv2d, weight=weights, bias=bias, **options)
                run.append((norm.name, lambda values, f=convolve, name=node.input: f(values[name])))
            case LIF():
                timed = graph.values[node.input].timed
                fire = partial(neurons, node=node, timesteps=graph.timesteps, timed=timed)
                run.append((node.name, lambda values, f=fire, name=node.input: f(values[name])))
            case Shortcut():
                run.append((node.name, lambda values, n=node: shortcut(values[n.input], n)))
            case Add():
                run.append((node.name, lambda values, n=node: values[n.first] + values[n.second]))
            case GlobalAveragePool():
                run.append((node.name, lambda values, n=node: values[n.input].mean((2, 3))))
            case Dense():
                weights, bias = tensor(params[node.name]["kernel"]).T, tensor(params[node.name]["bias"])
                linear = partial(torch.nn.functional.linear, weight=weights, bias=bias)
                run.append((node.name, lambda values, f=linear, name=node.input: f(values[name])))

    def forward() -> Any:
        values: dict[str, Any] = {}
        with torch.inference_mode():
            for name, step in run:
                values[name] = step(values)
        return values[graph.output.name].reshape(graph.timesteps, 1, -1).transpose(0, 1).numpy()

    return forward


def _shown(values: dict[str, Any], *, picture: Any) -> Any:
    del values
    return picture

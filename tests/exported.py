"""Networks of every exportable kind, with variables that leave no easy case, and pixels for them."""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import reference
from small_networks import random_variables, residual_graph

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folding import fold
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Input, Quantizer
from qpsnn_jax.model.precision import with_edge_bits, with_layer_bits
from qpsnn_jax.model.zoo import resnet20, sew_resnet18, vgg16, vggsnn


def _mixed() -> Graph:
    """Quantized first and last layers, and between them ternary weights and others of 3, 1 and 8 bits."""
    graph = with_edge_bits(residual_graph(Quantizer(2, levels=3)), 8)
    bits = {"conv2": 3, "conv3": 1, "conv4": 8}
    nodes = (replace(node, shape=(6, 6, 1)) if isinstance(node, Input) else node for node in graph.nodes)
    return with_layer_bits(Graph(tuple(nodes), graph.timesteps), bits)


SMALL = {"input_shape": (8, 8, 1), "width": 1 / 8}
GRAPHS: dict[str, Graph] = {
    "resnet20": resnet20(bits=2, timesteps=2, **SMALL),
    "resnet20 pruned": resnet20(
        bits=Quantizer(4, gamma="max", granularity="channel"), timesteps=4, ratios={"stem": 0.3, "middle": 0.5}, **SMALL
    ),
    "resnet20 >": resnet20(bits=8, timesteps=2, lif=LIF("", "", threshold=0.7, fire=">"), **SMALL),
    "vgg16": vgg16(bits=4, timesteps=4, width=1 / 16, ratios={"early": 0.2}),
    "vggsnn": vggsnn(bits=2, timesteps=5, input_shape=(16, 18, 2), width=1 / 8),
    "sew_resnet18": sew_resnet18(bits=3, timesteps=3, classes=7, input_shape=(33, 32, 3), width=1 / 8),
    "dense": residual_graph(Quantizer(1)),
    "mixed": _mixed(),
}


def moments(graph: Graph) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = graph.input.shape[2]
    return tuple(0.3 + 0.1 * i for i in range(channels)), tuple(0.2 + 0.05 * i for i in range(channels))


@cache
def variables_of(name: str) -> dict:
    """Random, with factors of both signs, a batch-norm and a filter of zeros, and firing in every layer."""
    graph, draw = GRAPHS[name], np.random.default_rng(1)
    variables = random_variables(graph)
    for leaves in variables["params"].values():
        if "scale" in leaves:
            leaves["scale"] = 1.5 * leaves["scale"] * np.where(draw.random(leaves["scale"].shape) < 0.3, -1, 1)
            leaves["scale"][0] = 0
            leaves["bias"] = leaves["bias"] + np.float32(0.3)
        else:
            leaves["kernel"][..., -1] = 0
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)


def pixels_of(graph: Graph, batch: int = 6) -> np.ndarray:
    shape = (graph.timesteps, *graph.input.shape) if graph.input.frames else graph.input.shape
    pixels = np.random.default_rng(2).integers(0, 256, (batch, *shape), np.uint8)
    pixels[0], pixels[1] = 0, 255
    return pixels


# Networks of which float64 gives the weights the levels of float32, and every neuron the same spikes.
SAME_IN_FLOAT64 = {"resnet20", "resnet20 pruned", "resnet20 >", "vgg16"}


@cache
def float_run(name: str, batch: int) -> dict[str, np.ndarray]:
    """Spikes and currents of the float network, in NumPy where that is the same, for it compiles nothing."""
    graph = GRAPHS[name]
    mean, std = (np.asarray(each) for each in moments(graph))
    images = (pixels_of(graph, batch) / 255 - mean) / std
    if name in SAME_IN_FLOAT64:
        return reference.run(graph, variables_of(name), images).values
    capture = {node.name: lambda trace: trace.spikes for node in graph.nodes if isinstance(node, LIF)}
    run = jax.jit(partial(SpikingNetwork(graph).apply, capture=capture))
    output = run(variables_of(name), images.astype(np.float32))
    return jax.device_get({**output.captured, graph.output.name: output.currents})


@cache
def folded_of(name: str, stem_bits: int = 32, readout_bits: int = 32) -> Folded:
    graph = GRAPHS[name]
    bits = {"stem_bits": stem_bits, "readout_bits": readout_bits}
    return fold(graph, variables_of(name), *moments(graph), **bits)

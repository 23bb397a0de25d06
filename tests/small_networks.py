"""A small residual network with every kind of group, and random variables for any graph."""

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, BatchNorm, Conv, Dense, Flatten, Input, MaxPool, Quantizer, Shortcut

# For tests that look at compiled programs; conftest.py makes all others unoptimized.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def images_of(graph: Graph, batch: int = 2, seed: int = 0) -> jax.Array:
    time = (graph.timesteps,) if graph.input.frames else ()
    images = np.random.default_rng(seed).normal(size=(batch, *time, *graph.input.shape))
    return jax.device_put(images.astype(np.float32))  # which compiles nothing, unlike jnp.asarray


def random_variables(graph: Graph, seed: int = 0) -> dict:
    """Without the seconds that ``init`` takes to trace, and with batch-norm and gains away from 0 and 1."""
    draw = np.random.default_rng(seed)

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "kernel":
                values = draw.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            case "scale" | "gain" | "gamma":
                values = draw.uniform(0.8, 1.6, leaf.shape)
            case "var":
                values = draw.uniform(0.1, 0.4, leaf.shape)
            case "mask":
                values = draw.random(leaf.shape) < 0.5
            case _:
                values = draw.normal(size=leaf.shape) * 0.2
        return values.astype(leaf.dtype)

    shapes: dict[str, dict[str, dict[str, jax.ShapeDtypeStruct]]] = {}
    for node in graph.nodes:
        for name, leaf in node.leaves([graph.values[name] for name in node.inputs]).items():
            leaves = shapes.setdefault(leaf.collection, {}).setdefault(node.name, {})
            leaves[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def residual_graph(quantizer: Quantizer | None = None) -> Graph:
    """Two blocks, the first with a strided shortcut, then a flattened and a hidden dense layer."""
    options = {"quantizer": quantizer}
    block = {**options, "label": "middle"}
    outputs = {**options, "label": "outputs"}
    nodes = (
        Input("image", (6, 6, 2)),
        Conv("stem", "image", 6, bias=True, label="stem"),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0"),
        Conv("conv1", "lif0", 8, strides=(2, 2), bias=True, **block),
        BatchNorm("bn1", "conv1"),
        LIF("lif1", "bn1"),
        Conv("conv2", "lif1", 9, **outputs),
        BatchNorm("bn2", "conv2"),
        Shortcut("shortcut", "lif0", (-1, 0, 1, 2, 3, 4, 5, -1, 0), 2),
        Add("add2", "shortcut", "bn2"),
        LIF("lif2", "add2"),
        Conv("conv3", "lif2", 7, **block),
        BatchNorm("bn3", "conv3"),
        LIF("lif3", "bn3"),
        Conv("conv4", "lif3", 9, **outputs),
        BatchNorm("bn4", "conv4"),
        Add("add4", "bn4", "lif2"),
        LIF("lif4", "add4"),
        MaxPool("pool", "lif4", strides=(1, 1)),
        Flatten("flatten", "pool"),
        Dense("hidden", "flatten", 5, label="hidden", **options),
        BatchNorm("bn5", "hidden"),
        LIF("lif5", "bn5"),
        Dense("fc", "lif5", 3),
    )
    return Graph(nodes, timesteps=2)


def shallow_graph(shape: tuple[int, int, int] = (6, 6, 2)) -> Graph:
    """Three convolutions of four channels and one shortcut, each map half as large as the one before."""
    nodes = (
        Input("image", shape),
        Conv("stem", "image", 4, label="stem"),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0", threshold=0.5),
        Conv("conv1", "lif0", 4, strides=(2, 2), quantizer=Quantizer(2), label="middle"),
        BatchNorm("bn1", "conv1"),
        LIF("lif1", "bn1", threshold=0.5),
        Conv("conv2", "lif1", 4, strides=(2, 2), quantizer=Quantizer(2)),
        BatchNorm("bn2", "conv2"),
        Shortcut("shortcut", "lif1", (0, 1, 2, -1), 2),
        Add("add", "bn2", "shortcut"),
        LIF("lif2", "add", threshold=0.5),
        Flatten("flatten", "lif2"),
        Dense("fc", "flatten", 10),
    )
    return Graph(nodes, timesteps=2)

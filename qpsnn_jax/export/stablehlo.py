"""StableHLO: the float network as JAX runs it, for any batch, without Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from qpsnn_jax.export.agreement import mean_currents
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runtime.files import write_atomically

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(
    graph: Graph, variables: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> export.Exported:
    """The network as StableHLO for CPU, GPU and TPU, from pixels to the time-mean of the output currents.

    In ``precision="exact"``: the program does not depend on the machine that writes it.

    Args:
        graph, variables: the network; its weights become constants.
        mean, std: of each input channel, pixels scaled to [0, 1].

    Returns:
        The result of :func:`jax.export.export` for uint8 pixels ``b h w c`` or ``b t h w c`` with a symbolic b:
        ``.call(pixels)`` runs it, ``.mlir_module_serialized`` is the portable StableHLO, ``.serialize()`` both.

    Raises:
        ValueError: mean and std do not match the graph's input.
    """
    steps = (graph.timesteps,) if graph.input.frames else ()
    shape = export.symbolic_shape(", ".join(["b", *(str(n) for n in (*steps, *graph.input.shape))]))

    def currents(pixels: Array) -> Array:
        return mean_currents(graph, variables, pixels, mean, std, precision="exact")

    return export.export(jax.jit(currents), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))


def write_stablehlo(
    path: Path, graph: Graph, variables: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> int:
    """Write the portable StableHLO of :func:`stablehlo`, under a temporary name first; returns its bytes.

    Raises:
        ValueError: mean and std do not match the graph's input.
    """
    data = stablehlo(graph, variables, mean, std).mlir_module_serialized
    write_atomically(path, data)
    return len(data)

"""StableHLO: the float network as JAX runs it, without Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from qpsnn_jax.export.agreement import mean_currents
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runtime.checks import integer
from qpsnn_jax.runtime.files import write_atomically

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(
    graph: Graph,
    variables: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch: int | None = None,
) -> export.Exported:
    """The network as StableHLO, from pixels to the time-mean of the output currents.

    In ``precision="exact"``: the program does not depend on the machine that writes it.

    Args:
        graph, variables: the network; its weights become constants.
        mean, std: of each input channel, pixels scaled to [0, 1].
        batch: b, for a module that takes nothing but the pixels; None for any b on CPU, GPU and TPU, for JAX.

    Returns:
        The result of :func:`jax.export.export` for uint8 pixels ``b h w c`` or ``b t h w c``: ``.call(pixels)`` runs
        it, ``.serialize()`` is for :func:`jax.export.deserialize`.

    Raises:
        ValueError: mean and std do not match the graph's input, or ``batch`` is less than 1.
    """
    steps = (graph.timesteps,) if graph.input.frames else ()
    shape = (*steps, *graph.input.shape)
    images = export.symbolic_shape(", ".join(["b", *map(str, shape)]))
    if batch is not None:
        images = (integer("batch", batch, 1), *shape)

    def currents(pixels: Array) -> Array:
        return mean_currents(graph, variables, pixels, mean, std, precision="exact")

    # More than one platform gives the module another argument, which says on which of them it runs.
    platforms = PLATFORMS if batch is None else PLATFORMS[:1]
    return export.export(jax.jit(currents), platforms=platforms)(jax.ShapeDtypeStruct(images, jnp.uint8))


def write_stablehlo(
    path: Path,
    graph: Graph,
    variables: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch: int = 1,
) -> int:
    """Write the portable StableHLO of :func:`stablehlo`, under a temporary name first; returns its bytes.

    It holds no names of files and functions.

    Raises:
        ValueError: mean and std do not match the graph's input, or ``batch`` is less than 1.
    """
    data = without_locations(stablehlo(graph, variables, mean, std, batch=batch).mlir_module_serialized)
    write_atomically(path, data)
    return len(data)


def without_locations(portable: bytes) -> bytes:
    """A portable StableHLO module that does not say where its operations were traced, for readers of the last weeks."""
    from jaxlib.mlir import ir, passmanager
    from jaxlib.mlir.dialects import stablehlo as dialect

    readers = dialect.StablehloCompatibilityRequirement.WEEK_12
    with ir.Context() as context:
        dialect.register_dialect(context)
        module = dialect.deserialize_portable_artifact(context, portable)
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)
        return dialect.serialize_portable_artifact(module, dialect.get_version_from_compatibility_requirement(readers))

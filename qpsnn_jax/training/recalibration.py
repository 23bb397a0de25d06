"""Batch-norm statistics of a changed network, estimated anew from images."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh

from qpsnn_jax.kernels.affine import computed
from qpsnn_jax.kernels.dispatch import Precision, check_precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import check_images, run_graph_node
from qpsnn_jax.model.nodes import BatchNorm
from qpsnn_jax.model.nodes.base import Node
from qpsnn_jax.model.variables import check_variables, leaves_of
from qpsnn_jax.runtime.compiling import fast_compile_jit
from qpsnn_jax.runtime.sharding import batch_sharding, device_put, placed_as, replicated
from qpsnn_jax.training.state import Variables


class _Moments(NamedTuple):
    """Mean, and sum of squared deviations from it, of ``number`` values in each channel."""

    number: int
    mean: np.ndarray
    deviations: np.ndarray

    def joined(self, other: "_Moments") -> "_Moments":
        """The moments of both sets of values (Chan, Golub and LeVeque, 1983)."""
        number, step = self.number + other.number, other.mean - self.mean
        deviations = self.deviations + other.deviations + np.square(step) * (self.number * other.number / number)
        return _Moments(number, self.mean + step * (other.number / number), deviations)


def recalibrate(
    graph: Graph,
    variables: Variables,
    batches: Iterable[Array],
    *,
    mesh: Mesh | None = None,
    precision: Precision = "auto",
) -> Variables:
    r"""The running moments of every batch-norm, estimated anew on images; no weight is trained.

    .. math:: μ_c = \frac1n \sum x_c, \quad σ_c^2 = \frac1{n-1} \sum (x_c - μ_c)^2

    over all images, steps and positions, in evaluation mode. They are exact, not a moving average: the moments of a
    layer are taken when those of all layers before it have their new values, so that each is normalized by the moments
    of what it receives. Pruning shifts these moments in every layer that loses inputs.

    Args:
        graph, variables: the network.
        batches: normalized images ``b h w c``, or frames ``b t h w c``; held in memory with the spikes of a layer, in
            a byte each, because one layer after another is run on all of them. What is read across a batch-norm and
            is no spikes, such as a sum that residual branches are added to, is held too.
        mesh: of devices that each take an equal part of every batch.
        precision: of :class:`SpikingNetwork`.

    Returns:
        The variables with a new ``mean`` and ``var`` for every :class:`~qpsnn_jax.model.nodes.BatchNorm`; all other
        arrays are unchanged.

    Raises:
        ValueError: there is no batch, the images or the variables are not those of the graph, ``precision`` is unknown,
            or an array is traced.

    References:
        Li et al., EagleEye (ECCV 2020): adaptive batch normalization of pruned networks.
    """
    images = [jnp.asarray(batch) if mesh is None else device_put(batch, batch_sharding(mesh)) for batch in batches]
    if not images:
        raise ValueError("recalibrate needs at least one batch of images.")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, images))):
        raise ValueError("recalibrate reads the moments as numbers, so call it outside of jax.jit.")
    check_precision(precision)
    check_variables(graph, variables)
    for batch in images:
        check_images(graph, batch)
    stats = {name: dict(leaves) for name, leaves in variables.get("batch_stats", {}).items()}
    kept: list[dict[str, Array]] = [{} for _ in images]
    for level, norms in enumerate(_levels(graph)):
        current = variables | {"batch_stats": stats}
        current = current if mesh is None else device_put(current, replicated(mesh))
        found = []
        for i, batch in enumerate(images):
            kept[i], moments = _run_level(current, batch, kept[i], graph, level, mesh, precision)
            found.append(moments)
        for norm in norms:
            stats[norm.name] |= _running(
                graph, norm, stats[norm.name], images, [moments[norm.name] for moments in found]
            )
    return variables | ({"batch_stats": stats} if stats else {})


def _depths(graph: Graph) -> dict[str, int]:
    """The number of batch-norms on the longest path to the output of each node."""
    depths: dict[str, int] = {}
    for node in graph.nodes:
        before = max((depths[name] for name in node.inputs), default=0)
        depths[node.name] = before + isinstance(node, BatchNorm)
    return depths


def _levels(graph: Graph) -> list[list[BatchNorm]]:
    """The batch-norms by the number of those before them on the longest path, which must have their moments first."""
    depths = _depths(graph)
    norms = [node for node in graph.nodes if isinstance(node, BatchNorm)]
    return [[node for node in norms if depths[node.name] == level + 1] for level in range(max(depths.values()))]


def _later(graph: Graph, level: int) -> list[Node]:
    """The nodes that run after a level: those behind its batch-norms, and what these read of it that is not spikes.

    Spikes are kept from level to level, in a byte each; the currents between them take four, and are computed again.
    """
    depths, names, later = _depths(graph), set(), []
    for node in reversed(graph.nodes):
        again = depths[node.name] == level and not graph.values[node.name].spiking and node.name in names
        if depths[node.name] > level or again:
            names.update(node.inputs)
            later.append(node)
    return later[::-1]


@partial(fast_compile_jit, static_argnames=("graph", "level", "mesh", "precision"))
def _run_level(
    variables: Variables,
    images: Array,
    kept: dict[str, Array],
    graph: Graph,
    level: int,
    mesh: Mesh | None,
    precision: Precision,
) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
    """What the next level needs of one batch, and mean and variance of the input of each batch-norm of this one.

    Args:
        variables: with the moments of all levels before.
        images: the batch.
        kept: what this function returned for the level before.
        graph, level, mesh, precision: of what.
    """
    depths, later = _depths(graph), _later(graph, level)
    values: dict[str, Any] = {
        name: value.astype(images.dtype) if graph.values[name].spiking else value for name, value in kept.items()
    }
    for node in _later(graph, level - 1):
        if depths[node.name] <= level:
            arrays = [values[name] for name in node.inputs] or [images]
            leaves = leaves_of(variables, node.name)
            values[node.name] = run_graph_node(graph, node, leaves, arrays, precision).output
    moments = {norm.name: _mean_and_var(computed(values[norm.input])) for norm in _levels(graph)[level]}
    names = {name for node in later for name in node.inputs} - {node.name for node in later}
    outputs = {name: computed(values[name]) for name in names}
    kept = {name: x.astype(jnp.int8) if graph.values[name].spiking else x for name, x in outputs.items()}
    if mesh is not None:
        moments = jax.lax.with_sharding_constraint(moments, replicated(mesh))
        kept = jax.lax.with_sharding_constraint(kept, batch_sharding(mesh))
    return kept, moments


def _mean_and_var(x: Array) -> tuple[Array, Array]:
    axes, wide = tuple(range(x.ndim - 1)), np.promote_types(x.dtype, np.float32)
    return jnp.mean(x, axis=axes, dtype=wide), jnp.var(x, axis=axes, dtype=wide)


def _running(
    graph: Graph, norm: BatchNorm, old: dict[str, Array], images: list[Array], found: list[tuple[Array, Array]]
) -> dict[str, Array]:
    """The new leaves of a batch-norm from the moments of each batch; the variance is the unbiased one."""
    # A map without a time axis has the same values at every step.
    repeats = graph.timesteps * int(np.prod(graph.values[norm.input].shape[:-1]))
    total: _Moments | None = None
    for batch, (mean, var) in zip(images, found, strict=True):
        number = len(batch) * repeats
        own = _Moments(number, np.asarray(mean, np.float64), number * np.asarray(var, np.float64))
        total = own if total is None else total.joined(own)
    assert total is not None
    new = {"mean": total.mean, "var": total.deviations / max(1, total.number - 1)}
    return {name: placed_as(old[name], values.astype(old[name].dtype)) for name, values in new.items()}

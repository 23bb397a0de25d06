"""Batch-norm statistics of a changed network, estimated anew from images."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import BatchNorm
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
        batches: normalized images ``b h w c``, or frames ``b t h w c``; held in memory, because they pass through the
            network once for each batch-norm on its longest path.
        mesh: of devices that each take an equal part of every batch.
        precision: of :class:`SpikingNetwork`.

    Returns:
        The variables with a new ``mean`` and ``var`` for every :class:`~qpsnn_jax.model.nodes.BatchNorm`; all other
        arrays are unchanged.

    Raises:
        ValueError: there is no batch.

    References:
        Li et al., EagleEye (ECCV 2020): adaptive batch normalization of pruned networks.
    """
    images = [jnp.asarray(batch) if mesh is None else device_put(batch, batch_sharding(mesh)) for batch in batches]
    if not images:
        raise ValueError("recalibrate needs at least one batch of images.")
    stats = {name: dict(leaves) for name, leaves in variables["batch_stats"].items()}
    for norms in _levels(graph):
        current = variables | {"batch_stats": stats}
        current = current if mesh is None else device_put(current, replicated(mesh))
        found = [_batch_moments(current, batch, graph, mesh, precision) for batch in images]
        for norm in norms:
            stats[norm.name] |= _running(
                graph, norm, stats[norm.name], images, [moments[norm.name] for moments in found]
            )
    return variables | {"batch_stats": stats}


def _levels(graph: Graph) -> list[list[BatchNorm]]:
    """The batch-norms by the number of those before them on the longest path, which must have their moments first."""
    depths: dict[str, int] = {}
    levels: dict[int, list[BatchNorm]] = {}
    for node in graph.nodes:
        depths[node.name] = max((depths[name] for name in node.inputs), default=0)
        if isinstance(node, BatchNorm):
            levels.setdefault(depths[node.name], []).append(node)
            depths[node.name] += 1
    return [levels[depth] for depth in sorted(levels)]


# Optimized, a network with the moments of every layer beside it compiles for a minute and a half.
@partial(fast_compile_jit, static_argnames=("graph", "mesh", "precision"))
def _batch_moments(
    variables: Variables, images: Array, graph: Graph, mesh: Mesh | None, precision: Precision
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of the input of every batch-norm in one batch."""
    norms = {node.name: node.input for node in graph.nodes if isinstance(node, BatchNorm)}
    output: Any = SpikingNetwork(graph, precision).apply(
        variables, images, capture=dict.fromkeys(norms.values(), _mean_and_var)
    )
    moments = {name: output.captured[source] for name, source in norms.items()}
    return moments if mesh is None else jax.lax.with_sharding_constraint(moments, replicated(mesh))


def _mean_and_var(value: Any) -> tuple[Array, Array]:
    x = value[0] if isinstance(value, tuple) else value  # the first field of a trace is the output
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

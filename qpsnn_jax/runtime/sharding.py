"""Several devices, of one process or of several: one mesh, every batch split over it, the rest whole on each device.

Under a jit over the global batch, batch-norm statistics and gradients are those of the whole batch; XLA puts in the
reductions. Weights may be cut over the devices too, and are then gathered where they are used. On one device all of
this says nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices, or those given, in one row."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Equal parts of an axis, the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXIS))


def cut(mesh: Mesh, tree: Any) -> Any:
    """For every array equal parts of the largest axis that the devices divide; the whole of it where there is none."""

    def along(leaf: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(sizes):
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * int(np.argmax(sizes)), _AXIS))

    return jax.tree.map(along, tree)


def put(tree: Any, places: Any) -> Any:
    """``jax.device_put(tree, places)``, among several processes too, which then each hold the same ``tree``."""
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def one(leaf: Any, place: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, place)
        held = np.asarray(leaf)  # device_put would send all of it to every process, to see that it is the same
        return jax.make_array_from_callback(held.shape, place, lambda part: held[part])

    if isinstance(places, NamedSharding):
        return jax.tree.map(lambda leaf: one(leaf, places), tree)
    return jax.tree.map(one, tree, places)


def joined(tree: Any, place: NamedSharding | None) -> Any:
    """Arrays along whose first axis the processes hold one part each, in the order of the processes."""
    if jax.process_count() == 1 or place is None:
        return jax.device_put(tree, place)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(place, leaf), tree)


def fetched(tree: Any) -> Any:
    """``jax.device_get(tree)`` where parts of an array lie with other processes too; all of them must ask."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(one, tree))


def mean_over(mesh: Mesh, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function ``(variables, batch) -> means over the batch`` computed on each device's part and averaged.

    Nothing but the means travels between devices.
    """

    def local(variables: Any, batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pmean(x, _AXIS), function(variables, batch))

    whole, parts = PartitionSpec(), PartitionSpec(_AXIS)
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, parts), out_specs=whole, check_vma=False)

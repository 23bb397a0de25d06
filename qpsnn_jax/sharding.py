"""Several devices: one mesh, every batch split over it, everything else whole on each device.

Under a jit over the global batch, batch-norm statistics and gradients are those of the whole batch; XLA puts in the
reductions. On one device all of this says nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices, or those given, in one row."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Equal parts of the first axis, the batch."""
    return NamedSharding(mesh, PartitionSpec(_AXIS))


def mean_over(mesh: Mesh, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function ``(variables, batch) -> means over the batch`` computed on each device's part and averaged.

    Nothing but the means travels between devices.
    """

    def local(variables: Any, batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pmean(x, _AXIS), function(variables, batch))

    whole, parts = PartitionSpec(), PartitionSpec(_AXIS)
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, parts), out_specs=whole, check_vma=False)

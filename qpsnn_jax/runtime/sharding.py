"""Several devices, of one process or of several: one mesh, every batch sharded over it, the rest replicated.

Under a jit over the global batch, batch-norm statistics and gradients are those of the global batch; XLA inserts the
reductions. With fully sharded data parallelism (FSDP) the weights are sharded too, and gathered where they are used.
On one device none of this changes anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qpsnn_jax.runtime.keys import data_to_key, is_key, key_to_data

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, ``data``, over all devices or those given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Sharding of the batch axis into equal parts."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXIS))


def fsdp_shardings(mesh: Mesh, tree: Any) -> Any:
    """Sharding of each array along its largest axis that the number of devices divides; replicated if there is none."""

    def along(leaf: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(sizes):
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * int(np.argmax(sizes)), _AXIS))

    return jax.tree.map(along, tree)


def placed_as(leaf: Any, values: Any) -> jax.Array:
    """The array ``values`` on the devices of ``leaf``, and committed to them only if it is.

    Every other placement would be another program for what takes the one after the other.
    """
    committed = isinstance(leaf, jax.Array) and leaf.committed
    return device_put(values, leaf.sharding) if committed else jnp.asarray(values)


def device_put(tree: Any, shardings: Any) -> Any:
    """``jax.device_put(tree, shardings)`` for one or several processes, which then each hold the same ``tree``."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if is_key(leaf):
            return data_to_key(one(key_to_data(leaf), sharding), leaf)
        held = np.asarray(leaf)  # jax.device_put would send everything to every process, to check that it is the same
        return jax.make_array_from_callback(held.shape, sharding, lambda part: held[part])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def from_process_local_data(tree: Any, sharding: NamedSharding | None) -> Any:
    """Global arrays of which each process holds one part of the first axis, in the order of the processes."""
    if jax.process_count() == 1 or sharding is None:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def sharded_mean(mesh: Mesh, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function ``(variables, batch) -> means over the batch``, computed on each device's part and averaged.

    Only the means are communicated between devices.
    """

    def local(variables: Any, batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pmean(x, _AXIS), function(variables, batch))

    whole, parts = PartitionSpec(), PartitionSpec(_AXIS)
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, parts), out_specs=whole, check_vma=False)


def with_auto_axes(function: Callable[[Any], Any], x: Any, follows: Sequence[int | None]) -> Any:
    """``function(x)``, inside which explicit mesh axes are automatic, for what explicit shardings cannot express.

    The result is one array. Each of its axes is sharded as that axis of ``x`` which ``follows`` names, if it names one.
    """
    sharding = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return function(x)
    spec = PartitionSpec(*(None if axis is None else sharding.spec[axis] for axis in follows))
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(sharding.mesh, spec))(x)

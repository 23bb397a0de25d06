"""Fields of NIR nodes, checked, because another program wrote them."""

from typing import Any

import numpy as np

from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.model.nodes.checks import LARGEST
from qpsnn_jax.runtime.checks import integer


def array_field(name: str, field: str, value: Any, ndim: int | None = None) -> np.ndarray:
    """An array of finite numbers, in the floating dtype that it has or float64.

    Raises:
        ValueError: it is not; the message names the node and the field.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or not array.size or (ndim is not None and array.ndim != ndim):
        axes = "" if ndim is None else f" with {ndim} axes"
        raise ValueError(f"node {name!r}: {field} must be numbers{axes}, got {array.dtype} of shape {array.shape}.")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"node {name!r}: {field} holds numbers that are not finite.")
    return array


def weights_field(name: str, field: str, value: Any, ndim: int) -> np.ndarray:
    """An array of numbers that are finite in float32, in which they are returned."""
    array = array_field(name, field, value, ndim)
    if np.abs(array).max() > np.finfo(np.float32).max:
        raise ValueError(f"node {name!r}: {field} holds numbers that float32 does not.")
    return array.astype(np.float32)


def channel_field(name: str, field: str, value: Any, shape: tuple[int, ...]) -> Any:
    """The number that all entries are, as a NumPy scalar in their dtype, or an array with that of each channel.

    Args:
        name, field: for messages.
        value: one number for each neuron, ``c h w`` or flat.
        shape: ``(h, w, c)`` of the neurons.

    Raises:
        ValueError: entries of a channel differ, or some are not finite.
    """
    array = array_field(name, field, value).ravel()
    if (array == array[0]).all():
        return array[0]
    channels = shape[-1]
    by_channel = array.reshape(channels, -1) if array.size % channels == 0 else array[None]
    if (by_channel != by_channel[:, :1]).any():
        raise ValueError(f"node {name!r}: its neurons of one channel differ in {field}, and those of a Graph do not.")
    return by_channel[:, 0]


def pair_field(name: str, field: str, value: Any, least: int) -> Pair:
    """Two integers, or one for both.

    Raises:
        ValueError: they are none, or out of range.
    """
    array = np.asarray(value)
    if array.shape not in ((), (1,), (2,)):
        raise ValueError(f"node {name!r}: {field} must be an integer or two, got {array.dtype} of shape {array.shape}.")
    whole = array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.floor(array)).all()
    numbers = (int(x) if whole else x for x in np.broadcast_to(array, 2))
    first, second = (integer(f"node {name!r}: {field}", x, least, LARGEST) for x in numbers)
    return first, second


def shape_field(name: str, value: Any) -> tuple[int, ...]:
    """A shape of one to three axes.

    Raises:
        ValueError: it is none.
    """
    array = np.asarray(value)
    if array.ndim != 1 or not 1 <= len(array) <= 3:
        raise ValueError(f"node {name!r}: its shape must be one to three integers, got {array.dtype} {array.shape}.")
    return tuple(integer(f"node {name!r}: its shape", n, 1, LARGEST) for n in array)

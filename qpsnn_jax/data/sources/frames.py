"""Events to frames: the number of events of each polarity in each cell of a grid in each time step.

All arithmetic is on integers, so each event is counted in exactly one cell of one frame, at every border. Times are
binned on the host, which has 64-bit integers. Counting is one jitted scatter-add, which compiles once for each power of
two of the number of events.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.data.sources.events import Events
from qpsnn_jax.runtime.checks import integer

_SHORTEST = 1024  # padded length of short recordings
_LIMIT = 2**31  # of the int32 index of a cell


def frames_by_count(events: Events, timesteps: int, size: tuple[int, int]) -> Array:
    r"""Frames of equal numbers of events: of n events, the i-th goes to step :math:`⌊i T / n⌋`.

    The numbers in two frames differ by at most one (SpikingJelly puts the remainder into the last frame).

    Args:
        events: the recording; its order matters, not its times.
        timesteps: number of frames T.
        size: height and width h, w of the frames. The cell of pixel (y, x) of an H×W sensor is
            :math:`(⌊y h / H⌋, ⌊x w / W⌋)`; frames larger than the sensor have rows and columns without events.

    Returns:
        Counts, int32, shape ``t h w 2``; the last axis is OFF, ON. Zeros for a recording without events.

    Raises:
        ValueError: events outside of their sensor, or a number of steps or a size that is not positive or is too
            large.
    """
    _check(events, timesteps, size)
    number = len(events.t)
    return _frames(events, np.arange(number) * timesteps // max(number, 1), timesteps, size)


def frames_by_time(events: Events, timesteps: int, size: tuple[int, int]) -> Array:
    r"""Frames of equal duration: an event at t goes to step :math:`⌊(t - t_0) T / (t_1 - t_0 + 1)⌋`.

    :math:`t_0` and :math:`t_1` are the times of the first and of the last event, in integer µs.

    Args:
        events: the recording, in any order.
        timesteps: number of frames T.
        size: height and width of the frames, as for :func:`frames_by_count`.

    Returns:
        Counts, int32, shape ``t h w 2``; the last axis is OFF, ON. Zeros for a recording without events.

    Raises:
        ValueError: events outside of their sensor, or a number of steps or a size that is not positive or is too
            large.
    """
    _check(events, timesteps, size)
    # Step k begins at t0 + ⌈k D / T⌉. Python's integers cannot overflow, where (t - t0) T in int64 could.
    first, last = (int(events.t.min()), int(events.t.max())) if len(events.t) else (0, 0)
    borders = [first - k * (last - first + 1) // -timesteps for k in range(1, timesteps)]
    steps = np.searchsorted(np.asarray(borders, np.int64), events.t, side="right")
    return _frames(events, steps, timesteps, size)


@partial(jax.jit, static_argnames=("timesteps", "sensor", "size"))
def count_events(
    steps: Array,
    y: Array,
    x: Array,
    polarity: Array,
    *,
    timesteps: int,
    sensor: tuple[int, int],
    size: tuple[int, int],
) -> Array:
    """Count events in the cells of frames, on the device; jitted, without checks of the values.

    Args:
        steps: step of each event, int32, shape ``n``; events at step ``timesteps`` are padding and are not counted.
        y: rows, integers below ``sensor[0]``, shape ``n``.
        x: columns, integers below ``sensor[1]``, shape ``n``.
        polarity: 0 or 1, integers, shape ``n``.
        timesteps: number of frames.
        sensor: height and width of the sensor.
        size: height and width of the frames; at most 2³¹ cells and padding in all.

    Returns:
        Counts, int32, shape ``t h w 2``.
    """
    height, width = size
    steps, y, x, polarity = (array.astype(jnp.int32) for array in (steps, y, x, polarity))
    cell = (steps * height + y * height // sensor[0]) * width + x * width // sensor[1]
    counts = jnp.zeros(timesteps * height * width * 2, jnp.int32)
    return counts.at[cell * 2 + polarity].add(1, mode="drop").reshape(timesteps, height, width, 2)


def _frames(events: Events, steps: np.ndarray, timesteps: int, size: tuple[int, int]) -> Array:
    length = max(_SHORTEST, 1 << (len(steps) - 1).bit_length())

    def padded(array: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        result = np.full(length, fill, dtype)
        result[: len(array)] = array
        return result

    return count_events(
        padded(steps, timesteps, np.int32),
        padded(events.y, 0, np.uint16),
        padded(events.x, 0, np.uint16),
        padded(events.polarity, 0, np.uint8),
        timesteps=timesteps,
        sensor=events.size,
        size=size,
    )


def _check(events: Events, timesteps: int, size: tuple[int, int]) -> None:
    if not isinstance(size, tuple) or len(size) != 2:
        raise ValueError(f"size must be a height and a width, got {size!r}.")
    for name, value in (("timesteps", timesteps), ("height", size[0]), ("width", size[1])):
        integer(name, value, 1)
    largest = (timesteps + 1) * 2 * size[0] * size[1]
    if max(largest, *(a * b for a, b in zip(size, events.size, strict=True))) >= _LIMIT or max(events.size) > 2**16:
        raise ValueError(f"{timesteps} frames of {size} from a sensor of {events.size} have too many cells for int32.")
    arrays = {"t": None, "y": events.size[0], "x": events.size[1], "polarity": 2}
    for name, bound in arrays.items():
        array = getattr(events, name)
        if array.shape != (len(events.t),) or array.dtype.kind not in "iu":
            raise ValueError(f"{name} must hold one integer for each event, got {array.dtype} {array.shape}.")
        if bound is not None and array.size and not (array.min() >= 0 and array.max() < bound):
            raise ValueError(f"{name} must be below {bound} and not negative, got {array.min()} to {array.max()}.")

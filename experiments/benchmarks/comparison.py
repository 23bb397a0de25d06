"""Sides that compute the same, timed in turns in one process."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax import Graph

# What a side's name says that it needs.
_NEEDS = {"PyTorch": "torch", "SpikingJelly": "spikingjelly", "snnTorch": "snntorch", "Spyx": "spyx"}


class Case(NamedTuple):
    """What is timed: a network with its variables on images ``b h w c`` and labels ``b``."""

    graph: Graph
    variables: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray


class Row(NamedTuple):
    """What a side took: seconds of a run in each turn, and how far its first loss is from ours, relatively.

    ``first`` are the seconds from nothing to that loss, compilation included.
    """

    side: str
    seconds: list[float]
    apart: float
    first: float


# From a case, what does the work once, waits for it, and returns the loss.
Side = Callable[[Case], Callable[[], float]]


_TURN_SECONDS = 0.2  # at least, of the fastest side


def _timed(run: Callable[[], float], count: int) -> float:
    """The seconds of a run, of ``count`` of them."""
    started = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - started) / count


def compare(case: Case, sides: dict[str, Side], repeats: int) -> Iterator[Row]:
    """The sides in turns; those of other packages where these are installed."""
    ready: dict[str, Callable[[], float]] = {}
    losses: dict[str, float] = {}
    first: dict[str, float] = {}
    for name, side in sides.items():
        needed = [package for package, module in _NEEDS.items() if package in name and not find_spec(module)]
        if needed:
            print(f"{name}: {needed[0]} is not installed, skipped.", file=sys.stderr)
            continue
        started = time.perf_counter()
        ready[name] = side(case)
        losses[name] = ready[name]()
        first[name] = time.perf_counter() - started
        ready[name]()
    # All sides run as often, since training changes how often neurons fire.
    count = math.ceil(_TURN_SECONDS / min(_timed(run, 1) for run in ready.values()))
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(repeats):
        for name, run in ready.items():
            _timed(run, count)  # not counted, until caches are filled and the threads of the side before sleep
            seconds[name].append(_timed(run, count))
    ours = next(iter(losses.values()))
    for name, loss in losses.items():
        yield Row(name, seconds[name], abs(loss - ours) / abs(ours), first[name])

"""How the time of a training step and of inference depends on the firing rate, the width, the batch and T, on a CPU.

Command: python -m experiments.benchmarks.curves [--over rate width batch timesteps] [--sides …] [--json FILE]

ResNet20, 2 bits, at 1/8 of the width, batch 32, T = 2, one of these varied at a time, timed as by
experiments.benchmarks.speed. The firing rate is that of all neurons, images and steps of inference; a current added to
that of every neuron changes it. Ours: in experiments/README.md.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import isa
from experiments.benchmarks.comparison import Case, compare
from experiments.benchmarks.speed import WORK, make_case
from qpsnn_jax import SpikingNetwork

# The current that is added to every neuron's, not the rate, which follows from it.
POINTS: dict[str, tuple[float, ...]] = {
    "rate": (-1.0, -0.6, -0.3, 0.0, 0.5),
    "width": (0.0625, 0.125, 0.25, 0.5),
    "batch": (1, 8, 32, 128),
    "timesteps": (1, 2, 4, 8),
}
SIDES = ("qpsnn_jax", "PyTorch, channels last, compiled")


class Point(NamedTuple):
    """A case: what is varied and its value, the firing rate, and seconds an image by work and side, medians."""

    over: str
    value: float
    rate: float
    seconds: dict[str, dict[str, float]]


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each of what is varied."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--sides", nargs="+", choices=WORK["training"], default=list(SIDES))
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    isa.add_options(parser)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    isa.apply(given)
    found = []
    for over in given.over:
        points = list(measure(over, given.sides, given.width, given.batch, given.repeats))
        print(table(points), flush=True)
        found += [point._asdict() for point in points]
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(over: str, sides: list[str], width: float, batch: int, repeats: int) -> Iterator[Point]:
    """The points along one of :data:`POINTS`, the others as given."""
    for value in POINTS[over]:
        options: dict[str, Any] = {"width": width, "batch": batch, "timesteps": 2, "drive": 0.0}
        options["drive" if over == "rate" else over] = value
        case = make_case("resnet20", **options)
        seconds = {
            work: {
                row.side: float(np.median(row.seconds)) / len(case.labels)
                for row in compare(case, {name: all_sides[name] for name in sides if name in all_sides}, repeats)
            }
            for work, all_sides in WORK.items()
        }
        yield Point(over, value, firing_rate(case), seconds)


def firing_rate(case: Case) -> float:
    """The mean of the spikes of all neurons, images and steps."""
    counts = {name: lambda trace: (trace.spikes.sum(), trace.spikes.size) for name in case.graph.neurons}
    network: Any = SpikingNetwork(case.graph)
    run = jax.jit(lambda tree, images: network.apply(tree, images, capture=counts).captured)
    fired, places = np.sum([jax.device_get(each) for each in run(case.variables, case.images).values()], 0)
    return float(fired / places)


def table(points: list[Point]) -> str:
    """Milliseconds an image as Markdown; of two sides, also how many times as fast the first is."""
    columns = [(work, side) for work, sides in points[0].seconds.items() for side in sides]
    headers = [f"{work}, {side}" for work, side in columns]
    over = [] if points[0].over == "rate" else [points[0].over]
    lines = ["| " + " | ".join([*over, "firing rate", *headers]) + " |"]
    lines.append("|---" * (1 + len(over) + len(headers)) + "|")
    for point in points:
        cells = [f"{point.value:g}"] * len(over) + [f"{point.rate:.3f}"]
        for work, side in columns:
            own, other = next(iter(point.seconds[work].values())), point.seconds[work][side]
            cells.append(f"{1e3 * other:.2f}" + (f" ({other / own:.2f} times)" if other is not own else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())

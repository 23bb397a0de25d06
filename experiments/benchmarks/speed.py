"""Training steps and inference of the paper's networks beside PyTorch, on a CPU.

Command: python -m experiments.benchmarks.speed [--networks resnet20] [--batches 8 32] [--isa avx2] [--json FILE]

2 bits, full width, T = 2 (ResNet20) or 4 (VGG-16), with batch statistics measured so that neurons fire as in training.
All sides compute the same network from the same weights on the same images; how far their first losses lie apart is in
the table, and tests hold their results against each other. They take turns in one process, compiled before; in a turn
each runs as often as the fastest does in 0.2 seconds, first untimed, and the median and range of turns are reported.
"plain XLA" is the project's network with every product a float32 convolution. PyTorch takes part where it is installed:
as it comes, in channels-last layout, compiled, and with its bfloat16 autocast, which rounds forward too; SpikingJelly
likewise, as the neurons of that network, all steps in one call. Ours: in experiments/README.md.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax

from experiments.benchmarks import isa
from experiments.benchmarks.comparison import Case, Row, Side, compare
from experiments.benchmarks.networks import with_statistics
from experiments.benchmarks.torch_sides import LEARNING_RATE, MOMENTUM, in_torch
from qpsnn_jax import Graph, SpikingNetwork, init_state, make_train_step
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.nodes import Conv, Dense
from qpsnn_jax.model.zoo import resnet20, vgg16
from qpsnn_jax.runtime.compiling import low_memory_jit

NETWORKS = {"resnet20": partial(resnet20, timesteps=2), "vgg16": partial(vgg16, timesteps=4)}


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--sides", nargs="+", choices=WORK["training"], help="those to time, ours among them")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--repeats", type=int, default=7)
    isa.add_options(parser)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    isa.apply(given)
    if given.sides and "qpsnn_jax" not in given.sides:
        parser.error("--sides needs qpsnn_jax, beside which the others stand.")
    found = []
    for name in given.networks:
        for batch in given.batches:
            case = make_case(name, batch, given.width)
            for work in given.work:
                sides = {name: side for name, side in WORK[work].items() if given.sides is None or name in given.sides}
                rows = list(compare(case, sides, given.repeats))
                print(table(f"{name}, {work}, batch {batch}", rows, case, work), flush=True)
                found += [{"network": name, "batch": batch, "work": work, **row._asdict()} for row in rows]
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def make_case(name: str, batch: int, width: float, timesteps: int | None = None, drive: float = 0.0) -> Case:
    """A network of the paper on random images, with its own T if None; ``drive`` as of ``with_statistics``."""
    graph = NETWORKS[name](bits=2, width=width)
    graph = graph if timesteps is None else replace(graph, timesteps=timesteps)
    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, *graph.input.shape)).astype(np.float32)
    (classes,) = graph.values[graph.output.name].shape
    return Case(graph, with_statistics(graph, drive), images, draw.integers(0, classes, batch).astype(np.int32))


def table(title: str, rows: list[Row], case: Case, work: str) -> str:
    """The rows as Markdown."""
    batch = len(case.labels)
    billions = products(case.graph, work) * batch / 1e9
    lines = [f"| {title} | ms an image | range | images/s | G products/s | loss apart |", "|---|---|---|---|---|---|"]
    for row in rows:
        middle, low, high = (1e3 * x / batch for x in (np.median(row.seconds), min(row.seconds), max(row.seconds)))
        rate = f"{1e3 / middle:.1f} | {1e3 * billions / (batch * middle):.0f}"
        lines.append(f"| {row.side} | {middle:.2f} | {low:.2f} to {high:.2f} | {rate} | {row.apart:.1e} |")
    return "\n".join(lines) + "\n"


def products(graph: Graph, work: str) -> int:
    """Multiply-accumulates of an image; a training step's are those by inputs and weights too.

    Every tap counts, those on padding too; of a kernel larger than the map as many as the map has places.
    """
    total = first = 0
    for node in graph.nodes:
        if isinstance(node, Conv | Dense):
            given, shape = graph.values[node.input], graph.values[node.name].shape
            window = min(math.prod(node.kernel), math.prod(given.shape[:2])) if isinstance(node, Conv) else 1
            here = math.prod(shape) * window * given.shape[-1] * (graph.timesteps if given.timed else 1)
            first, total = first or here, total + here
    return 3 * total - first if work == "training" else total


def plain_convolution(
    x: Any,
    kernel: Any,
    *,
    strides: Any = (1, 1),
    padding: Any = (0, 0),
    groups: int = 1,
    dilation: Any = (1, 1),
    **_: Any,
) -> Any:
    """XLA's own convolution, whatever the bits of the kernel."""
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups, "rhs_dilation": dilation}
    return jax.lax.conv_general_dilated(x, kernel, strides, [(p, p) for p in padding], **options)


@contextmanager
def plain() -> Iterator[None]:
    """Within it every product of a network that is traced is a float32 convolution."""
    functions: dict[str, Any] = {"conv_spikes": plain_convolution, "convolve": plain_convolution}
    functions["shared_convolution"] = lambda *arrays, **options: None
    with mock.patch.multiple("qpsnn_jax.model.nodes.conv", **functions):
        yield


class Step(NamedTuple):
    """A step of training: runs once, waits, gives the loss; ``memory`` are the bytes it needs, by analysis."""

    run: Callable[[], float]
    memory: float

    def __call__(self) -> float:
        """Run it."""
        return self.run()


def step_in_jax(case: Case, tx: optax.GradientTransformation | None = None, precision: Precision = "auto") -> Step:
    """Training with SGD, or another optimizer, compiled."""
    tx = tx or optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    state = jax.jit(partial(init_state, tx=tx))(case.variables, key=jax.random.key(0))
    images, labels = jax.device_put((case.images, case.labels))
    step = low_memory_jit(make_train_step(case.graph, tx, precision=precision), donate_argnums=0)
    step = step.lower(state, images, labels).compile()

    def run() -> float:
        nonlocal state
        state, metrics = step(state, images, labels)
        return float(jax.block_until_ready(metrics)["loss"])

    needs = step.memory_analysis()
    return Step(run, needs.temp_size_in_bytes + needs.argument_size_in_bytes)


def _inference_in_jax(case: Case) -> Callable[[], float]:
    variables, images = jax.device_put((case.variables, case.images))
    network: Any = SpikingNetwork(case.graph)
    currents = jax.jit(lambda *given: network.apply(*given).currents)  # without the state
    compiled = currents.lower(variables, images).compile()
    return lambda: _loss_of(np.asarray(compiled(variables, images)).mean(1), case.labels)


def around(side: Side, within: Callable[[], Any]) -> Side:
    """The side, made ready within a context."""

    def make(case: Case) -> Callable[[], float]:
        with within():
            return side(case)

    return make


def _loss_of(logits: np.ndarray, labels: np.ndarray) -> float:
    # In NumPy: operations of JAX that are not compiled take longer than a small network.
    largest = logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, labels[:, None], -1)
    return float(np.mean(np.log(np.exp(logits - largest).sum(-1, keepdims=True)) + largest - chosen))


def _torch_sides(work: str) -> dict[str, Side]:
    return {
        "PyTorch": in_torch(work),
        "PyTorch, channels last": in_torch(work, channels_last=True),
        "PyTorch, channels last, compiled": in_torch(work, channels_last=True, compiled=True),
        "PyTorch, channels last, bfloat16": in_torch(work, channels_last=True, autocast=True),
        "PyTorch, channels last, bfloat16, compiled": in_torch(work, channels_last=True, autocast=True, compiled=True),
        "PyTorch, channels last, SpikingJelly": in_torch(work, channels_last=True, spikingjelly=True),
    }


WORK: dict[str, dict[str, Side]] = {
    "training": {"qpsnn_jax": step_in_jax, "plain XLA": around(step_in_jax, plain)} | _torch_sides("training"),
    "inference": {"qpsnn_jax": _inference_in_jax, "plain XLA": around(_inference_in_jax, plain)}
    | _torch_sides("inference"),
}

if __name__ == "__main__":
    raise SystemExit(main())

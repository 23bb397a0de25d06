"""Where the time of a training step goes: every kind of convolution of the paper's ResNet20 by itself, and the rest.

Command: python -m experiments.benchmarks.layers [--batch 8] [--repeats 15]

2 bits, T = 2, full width. Each kind of layer is compiled and timed alone: the sums forward, the gradients w.r.t. its
maps and its kernel, by the project's algorithms and as float32 convolutions (in brackets), in milliseconds a layer and
a batch and in billions of products a second. What the whole step takes beyond the sum of them goes to the first layer,
neurons, normalization, quantization, the optimizer and copies. Ours: not run with the present algorithms.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.speed import make_case, plain_convolution, step_in_jax
from qpsnn_jax.kernels.convolution import conv_spikes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Conv

Kind = tuple[tuple[int, ...], tuple[int, ...], tuple[int, int], tuple[int, int]]
PARTS = ("forward", "by maps", "by kernel")


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args(arguments)
    case = make_case("resnet20", given.batch, given.width)
    print("| maps, kernel, stride | layers | " + " | ".join(PARTS) + " |\n|---|---|---|---|---|")
    totals = dict.fromkeys(PARTS, 0.0)
    for kind, layers in kinds(case.graph, given.batch).items():
        ours, plain = (measured(kind, given.repeats, plain=plain) for plain in (False, True))
        cells = []
        for part in PARTS:
            totals[part] += layers * ours[part]
            rate = f"{products(kind) / ours[part] / 1e9:.0f} G/s"
            cells.append(f"{1e3 * ours[part]:.1f} ms, {rate} ({1e3 * plain[part]:.1f} ms)")
        shape, kernel, strides, _ = kind
        title = f"{'×'.join(map(str, shape))}, {'×'.join(map(str, kernel))}, {strides[0]}"
        print(f"| {title} | {layers} | " + " | ".join(cells) + " |", flush=True)
    print("| all, ms an image | | " + " | ".join(f"{1e3 * totals[part] / given.batch:.1f}" for part in PARTS) + " |")
    step = median(step_in_jax(case), given.repeats)
    rest = step - sum(totals.values())
    print(f"\nThe step takes {1e3 * step / given.batch:.1f} ms an image, {1e3 * rest / given.batch:.1f} beyond these.")
    return 0


def kinds(graph: Graph, batch: int) -> Counter[Kind]:
    """The convolutions of spikes: the maps of a batch with all steps, the kernel, strides and padding."""
    found: Counter[Kind] = Counter()
    for node in graph.nodes:
        if isinstance(node, Conv) and graph.values[node.input].spiking:
            *size, inputs = graph.values[node.input].shape
            maps = (batch * graph.timesteps, *size, inputs)
            found[maps, (*node.kernel, inputs, node.features), node.strides, node.padding] += 1
    return found


def products(kind: Kind) -> int:
    """Multiply-accumulates of one part of a layer, every tap counted."""
    (b, h, w, _), kernel, strides, _ = kind
    return b * (h // strides[0]) * (w // strides[1]) * int(np.prod(kernel))


def measured(kind: Kind, repeats: int, *, plain: bool) -> dict[str, float]:
    """Median seconds of each part, in the project's algorithms or as plain float32 convolutions."""
    shape, kernel, strides, padding = kind
    draw = np.random.default_rng(0)
    spikes = jnp.asarray(draw.random(shape) < 0.3, jnp.float32)
    integers = jnp.asarray(2 * draw.integers(0, 4, kernel) - 3, jnp.float32)
    convolution = plain_convolution if plain else conv_spikes
    run: Callable[..., Any] = partial(convolution, bits=2, strides=strides, padding=padding)
    cotangent = jnp.asarray(draw.normal(size=jax.eval_shape(run, spikes, integers).shape), jnp.float32)

    def parts() -> Iterator[Callable[..., Any]]:
        yield lambda x, k, g: run(x, k)
        yield lambda x, k, g: jax.vjp(lambda x: run(x, k), x)[1](g)
        yield lambda x, k, g: jax.vjp(lambda k: run(x, k), k)[1](g)

    given = spikes, integers, cotangent
    compiled = (jax.jit(part).lower(*given).compile() for part in parts())
    taken = (median(lambda f=f: jax.block_until_ready(f(*given)), repeats) for f in compiled)
    return dict(zip(PARTS, taken, strict=True))


def median(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds, after two runs that do not count."""
    for _ in range(2):
        run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    sys.exit(main())

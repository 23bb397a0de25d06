"""Ranks of spike maps: the exact elimination against singular values, map by map and in batches.

Command: python -m experiments.benchmarks.svs [--images 8] [--repeats 5] [--json FILE]

The maps are those of the paper's ResNet20 (832 of 32×32, 1,536 of 16×16 and 3,072 of 8×8 an image), 2 bits, T = 2,
after some steps of training on digits enlarged to 32×32. All sides rank the same maps, in turns, in one process,
compiled before, each in the layout that its network leaves them in. PyTorch is timed where it is installed: per map,
which is how the released code goes about it, and in batches. Every rank of ours is compared with that of float64
singular values. Ours: in experiments/README.md.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax import LIFTrace, SpikingNetwork, init_state, init_variables, make_train_step, optimizer
from qpsnn_jax.data import load
from qpsnn_jax.data.feed import everything
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.pruning.scores import count_ranks, spike_counts

TIMESTEPS = 2
# A map by itself takes tens of microseconds, whichever it is; so many of each size say how long.
_SINGLE = 500


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status is 1 where a rank of ours is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="images whose maps are ranked")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="steps of training, on 16 images each")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    maps = trained_maps(given.width, given.steps, given.images)
    wrong = sum(wrong_ranks(each) for each in maps.values())
    rows = {size: measure(each, given.repeats) for size, each in maps.items()}
    sides = list(next(iter(rows.values())))
    share = {size: each.shape[-1] for size, each in maps.items()}
    whole = {side: sum(share[size] * rows[size][side] for size in maps) for side in sides}
    print("| | " + " | ".join(f"{size}×{size}, µs a map" for size in maps) + " | ms an image | 640 images |")
    print("|---" * (len(maps) + 3) + "|")
    for side in sides:
        each = " | ".join(f"{1e6 * rows[size][side]:.2f}" for size in maps)
        print(f"| {side} | {each} | {1e3 * whole[side]:.1f} | {640 * whole[side]:.1f} s |")
    print(
        f"{given.images * sum(share.values())} maps, {wrong} ranks of ours differ from those of float64 singular values"
    )
    if given.json:
        document = {"seconds_a_map": {str(size): row for size, row in rows.items()}, "seconds_an_image": whole}
        text = json.dumps(document | {"maps_an_image": share, "wrong": wrong}, indent=2) + "\n"
        given.json.write_text(text, encoding="utf-8")
    return int(wrong > 0)


def trained_maps(width: float, steps: int, images: int) -> dict[int, np.ndarray]:
    """Spike counts of the layers of a trained network, by the size of the maps, ``b n n c``."""
    data = load("digits", seed=0)
    examples, shown = everything(data.train), everything(data.test).images[:images]
    graph = resnet20(bits=2, timesteps=TIMESTEPS, width=width)
    tx = optimizer("adam", 1e-3)
    step = jax.jit(make_train_step(graph, tx, prepare=lambda key, x: enlarged(x)), donate_argnums=0)
    state = init_state(init_variables(graph, jax.random.key(0)), tx, jax.random.key(0))
    for number in range(steps):
        part = slice(16 * number, 16 * number + 16)
        state, _ = step(state, examples.images[part], examples.labels[part])
    layers = dict.fromkeys(graph.neurons, counts)
    network: Any = SpikingNetwork(graph)
    apply = jax.jit(lambda tree, x: network.apply(tree, enlarged(x), capture=layers).captured)
    found: dict[int, list[np.ndarray]] = {}
    for layer in jax.device_get(apply(state.variables, shown)).values():
        found.setdefault(layer.shape[1], []).append(layer)
    return {size: np.concatenate(layers, axis=-1) for size, layers in found.items()}


def matrices(maps: np.ndarray) -> np.ndarray:
    """Maps ``b n n c`` one after the other, ``k n n``."""
    return np.ascontiguousarray(np.moveaxis(maps, -1, 1)).reshape(-1, *maps.shape[1:3])


def counts(trace: LIFTrace) -> jax.Array:
    """How often each neuron of a layer fired."""
    return spike_counts(trace.spikes)


def enlarged(pixels: jax.Array) -> jax.Array:
    """Digits of 8×8 as normalized images of 32×32 in three colours."""
    images = jnp.repeat(jnp.repeat(jnp.asarray(pixels, jnp.float32), 4, axis=1), 4, axis=2)
    return jnp.tile(images / 128 - 1, 3)


def wrong_ranks(maps: np.ndarray) -> int:
    """Maps whose rank by elimination is not that of float64 singular values."""
    exact = np.asarray(_ranks(jnp.asarray(maps))).ravel()
    return int(np.sum(exact != np.linalg.matrix_rank(matrices(maps).astype(np.float64))))


def measure(maps: np.ndarray, repeats: int) -> dict[str, float]:
    """Median seconds a map of every side, which take turns."""
    sides = {name: make(maps) for name, make in SIDES.items() if "PyTorch" not in name or _has_torch()}
    for run, _ in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (run, number) in sides.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / number)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


_ranks = jax.jit(count_ranks)


def _ours(maps: np.ndarray) -> tuple[Callable[[], Any], int]:
    placed = jnp.asarray(maps)
    return lambda: _ranks(placed).block_until_ready(), maps.shape[0] * maps.shape[-1]


def _in_xla(maps: np.ndarray) -> tuple[Callable[[], Any], int]:
    placed = jnp.asarray(matrices(maps), jnp.float32)
    ranks = jax.jit(jnp.linalg.matrix_rank)
    return lambda: ranks(placed).block_until_ready(), len(placed)


def _in_torch(maps: np.ndarray) -> tuple[Callable[[], Any], int]:
    import torch  # pyright: ignore[reportMissingImports]

    placed = torch.from_numpy(matrices(maps).astype(np.float32))
    return lambda: torch.linalg.matrix_rank(placed), len(placed)


def _one_by_one_in_torch(maps: np.ndarray) -> tuple[Callable[[], Any], int]:
    import torch  # pyright: ignore[reportMissingImports]

    single = matrices(maps).astype(np.float32)
    placed = [torch.from_numpy(single[i]) for i in np.random.default_rng(0).permutation(len(single))[:_SINGLE]]
    return lambda: [torch.linalg.matrix_rank(each).item() for each in placed], len(placed)


SIDES = {
    "PyTorch, map by map": _one_by_one_in_torch,
    "PyTorch, batched float32 singular values": _in_torch,
    "XLA, batched float32 singular values": _in_xla,
    "exact elimination": _ours,
}

if __name__ == "__main__":
    raise SystemExit(main())

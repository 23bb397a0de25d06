"""Training, scoring and neurons on a GPU, beside PyTorch and beside what the GPU can do at most.

Command: python -m experiments.benchmarks.gpu [--minutes 8] [--json FILE]

Images a second of training ResNet20 (T = 2) and VGG-16 (T = 4) at full width, 2 bits, in batches of 256 and 1024: ours
in float32, in TensorFloat-32, and with the exact sums of spikes in bfloat16; PyTorch eager in float32 and
TensorFloat-32, and compiled in channels-last bfloat16. The limit is the products of a step over the measured rate of a
large product of matrices in the same numbers (where only sums of spikes are bfloat16, in TensorFloat-32, which the two
gradients are in). Scoring is that of 640 images by SVS; the neurons' bandwidth is that of
reading currents and writing spikes, beside a plain copy's. Every library runs in a process of its own, one after the
other, for half of the minutes at most: what was not reached says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Three quarters of the GPU's memory would be JAX's before anything is measured.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

from experiments.benchmarks.comparison import Case, Side
from experiments.benchmarks.layers import median
from experiments.benchmarks.speed import NETWORKS, around, make_case, products, step_in_jax
from experiments.benchmarks.torch_sides import in_torch
from qpsnn_jax import lif, make_score_step

SCORED, SCORED_AT_ONCE = 640, 128
# Sides of the square matrices, and numbers of the array, from which the limits are measured.
_MATRIX, _ARRAY = 8192, 1 << 28


class Way(NamedTuple):
    """A way to train: the library, the numbers whose rate limits it, and the side."""

    library: str
    numbers: str
    side: Side


def _precision(name: str) -> Callable[[], Any]:
    return partial(jax.default_matmul_precision, name)


WAYS: dict[str, Way] = {
    "qpsnn_jax, float32": Way("jax", "float32", around(partial(step_in_jax, precision="exact"), _precision("float32"))),
    "qpsnn_jax, sums in bfloat16": Way("jax", "TensorFloat-32", around(step_in_jax, _precision("tensorfloat32"))),
    "qpsnn_jax, gradients in bfloat16 too": Way(
        "jax", "bfloat16", around(partial(step_in_jax, precision="fast"), _precision("tensorfloat32"))
    ),
    "PyTorch, float32": Way("torch", "float32", in_torch("training")),
    "PyTorch, TensorFloat-32": Way("torch", "TensorFloat-32", in_torch("training", tf32=True)),
    "PyTorch, channels last, bfloat16, compiled": Way(
        "torch", "bfloat16", in_torch("training", channels_last=True, compiled=True, autocast=True, tf32=True)
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; the exit status is 0 where everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--size", type=float, default=1.0, help="multiplies what the limits are measured on")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which everything is stopped")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--library", choices=("jax", "torch"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.library:
        for found in _measured(given):
            print(json.dumps(found), flush=True)
        return 0
    found: dict[str, Any] = {}
    for library in ("jax", "torch"):
        for line in _run(library, sys.argv[1:] if arguments is None else arguments, 30 * given.minutes):
            found |= json.loads(line)
    print("\n".join(_report(given, found)))
    rows = [f"{network} {batch} {name}" for network in given.networks for batch in given.batches for name in WAYS]
    complete = all(isinstance(found.get(row), dict) for row in rows)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if complete else 1


def _run(library: str, arguments: list[str], seconds: float) -> Iterator[str]:
    """What a process of that library prints until it ends, or the time is over."""
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", *arguments, "--library", library]
    # A session of its own, so that the processes that compile for it end with it.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    yield from (line for line in out.splitlines() if line.startswith("{"))


def _measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything of one library, each as soon as it is known; what fails says why."""
    if given.library == "jax":
        yield {"device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}"}
        try:
            yield from _limits(given.size, given.repeats)
        except Exception as error:
            print(f"the limits were not measured: {error}", file=sys.stderr)
    for network in given.networks:
        for batch in given.batches:
            case = make_case(network, batch, given.width)
            for name, way in WAYS.items():
                if way.library == given.library:
                    yield {f"{network} {batch} {name}": _attempt(partial(_train, way, case, given.repeats))}
            if given.library == "jax" and batch == given.batches[0] and network == "resnet20":
                yield {"scoring": _attempt(partial(_score, case))}


def _attempt(measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    except Exception as error:  # Out of memory, or not installed: the other rows are measured all the same.
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}".replace("|", "/")


def _train(way: Way, case: Case, repeats: int) -> dict[str, float]:
    _reset_peak(way)
    run = way.side(case)
    return {"seconds": median(run, repeats), "peak": _peak(way, run)}


def _reset_peak(way: Way) -> None:
    if way.library == "torch":
        import torch  # pyright: ignore[reportMissingImports]

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _peak(way: Way, run: Any) -> float:
    """Bytes at the peak: by analysis of the program in JAX, as the allocator counted in PyTorch (0 on a CPU)."""
    if way.library == "jax":
        return run.memory
    import torch  # pyright: ignore[reportMissingImports]

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0


def _limits(size: float, repeats: int) -> Iterator[dict[str, Any]]:
    n, numbers = max(8, int(_MATRIX * size)), max(64, int(_ARRAY * size))
    for name, precision, dtype in (
        ("float32", "float32", jnp.float32),
        ("TensorFloat-32", "tensorfloat32", jnp.float32),
        ("bfloat16", "default", jnp.bfloat16),
    ):
        matrix = jax.random.normal(jax.random.key(0), (n, n), dtype)
        with jax.default_matmul_precision(precision) if precision != "default" else nullcontext():
            multiply = jax.jit(lambda x: x @ x).lower(matrix).compile()
        seconds = median(lambda f=multiply, x=matrix: jax.block_until_ready(f(x)), repeats)
        yield {f"rate {name}": n**3 / seconds}
    array = jnp.ones(numbers)
    copy = jax.jit(lambda x: x + 1)
    yield {"bandwidth of a copy": 8 * numbers / median(lambda: jax.block_until_ready(copy(array)), repeats)}
    currents = jnp.ones((4, 2, numbers // 8))
    fire = jax.jit(lif)
    yield {"bandwidth of neurons": 8 * currents.size / median(lambda: jax.block_until_ready(fire(currents)), repeats)}


def _score(case: Case) -> dict[str, float]:
    images = jnp.asarray(case.images[:SCORED_AT_ONCE])
    step = jax.jit(make_score_step(case.graph)).lower(case.variables, images).compile()
    variables, batches = jax.device_put(case.variables), -(-SCORED // len(images))
    seconds = batches * median(lambda: jax.block_until_ready(step(variables, images)), 3)
    return {"seconds": seconds, "images": batches * len(images)}


def _report(given: argparse.Namespace, found: dict[str, Any]) -> Iterator[str]:
    yield found.get("device", "not yet run")
    for network in given.networks:
        each = products(NETWORKS[network](bits=2, width=given.width), "training")
        for batch in given.batches:
            yield f"\n| {network}, batch {batch} | images/s | of the limit | peak |\n|---|---|---|---|"
            for name, way in WAYS.items():
                row = found.get(f"{network} {batch} {name}", "not yet run")
                if isinstance(row, str):
                    yield f"| {name} | {row} | | |"
                    continue
                rate = batch / row["seconds"]
                limit = found.get(f"rate {way.numbers}")
                share = f"{100 * rate * each / limit:.1f} %" if limit else "not measured"
                yield f"| {name} | {rate:.0f} | {share} | {row['peak'] / 1e9:.2f} GB |"
    scoring = found.get("scoring", "not yet run")
    told = scoring if isinstance(scoring, str) else "{images} images in {seconds:.2f} s".format(**scoring)
    yield f"\nscoring: {told}"
    for name in ("bandwidth of a copy", "bandwidth of neurons"):
        yield f"{name}: {found[name] / 1e9:.0f} GB/s" if name in found else f"{name}: not yet run"


if __name__ == "__main__":
    raise SystemExit(main())

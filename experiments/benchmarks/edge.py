"""The generated C of the 2-bit ResNet20 at 6.22M parameters against float32 in PyTorch and XLA, on one core.

Command: python -m experiments.benchmarks.edge [--cc "clang -O2 -march=native"] [--repeats 30]

One image, T = 2, one thread, one core. Latency is the least processor time of the repeats, which equals the time on the
clock where the core is free. Memory is the peak resident memory of the process, with the interpreter and libraries that
it needs to run. The networks are untrained, with measured batch statistics: latency depends on shapes and on how often
neurons fire, not on what they have learned. PyTorch is timed where it is installed, in both of its memory layouts. The
C program's logits are compared with the interpreter's, PyTorch's with XLA's. Ours: in experiments/README.md.
"""

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DRIVER = """
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "net.h"
static uint8_t image[32 * 32 * 3];
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}
int main(int count, char **words) {
  int32_t logits[net_classes];
  char line[256];
  double best = 1e9;
  if (count < 2 || fread(image, 1, sizeof image, stdin) != sizeof image) return 1;
  for (int r = atoi(words[1]); r > 0; r--) {
    const double start = now();
    net_infer(image, logits);
    const double taken = now() - start;
    best = taken < best ? taken : best;
  }
  printf("%f", best);
  for (int k = 0; k < net_classes; k++) printf(" %ld", (long)logits[k]);
  FILE *status = fopen("/proc/self/status", "r");
  while (status && fgets(line, sizeof line, status)) {
    long kilobytes;
    if (sscanf(line, "VmHWM: %ld", &kilobytes) == 1) printf(" %ld", kilobytes);
  }
  return 0;
}
"""

_NAMED = "C, 2 bits, pruned"
FLOATS = ("xla", "torch", "torch-channels-last")


class Measured(NamedTuple):
    """A row of the table: what ran, ms of an image, MB at the peak, bytes on disk, and a note."""

    name: str
    latency: float
    memory: float
    file_bytes: int
    note: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status is 0 where the C is at least 10 times as fast as the faster float network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cc", default="cc -O2 -march=native", help="C compiler and its options")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--float", dest="kind", choices=FLOATS, help=argparse.SUPPRESS)
    parser.add_argument("--pruned", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if given.kind:
        print(json.dumps(_time_float(given.kind, given.pruned, given.width, given.repeats)))
        return 0
    rows = list(_floats(given.width, given.repeats))
    whole = min(row.latency for row in rows if "whole" in row.name)
    rows += _programs(given.cc, given.width, given.repeats)
    print("| network | latency | speed-up | memory | file | |\n|---|---|---|---|---|---|")
    for row in rows:
        latency = f"{row.latency:.2f} ms | {whole / row.latency:.1f}"
        print(f"| {row.name} | {latency} | {row.memory:.1f} MB | {row.file_bytes / 1e3:,.0f} kB | {row.note} |")
    reached = whole / next(row.latency for row in rows if row.name == _NAMED)
    return 0 if reached >= 10 else 1


def _floats(width: float, repeats: int) -> Any:
    """The float32 networks, each in a process of its own."""
    for kind in FLOATS:
        if kind != "xla" and importlib.util.find_spec("torch") is None:
            print(f"{kind}: PyTorch is not installed, skipped.", file=sys.stderr)
            continue
        for pruned in (False, True):
            command = [sys.executable, "-m", __spec__.name, "--float", kind]
            command += ["--width", str(width), "--repeats", str(repeats)]
            command += ["--pruned"] if pruned else []
            # One thread, said before any library starts.
            threads = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
            flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
            ran = subprocess.run(
                command, env=os.environ | threads | flags, stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(ran.stdout.splitlines()[-1])
            name = f"{kind}, float32, {'pruned' if pruned else 'whole'}"
            yield Measured(name, found["latency"], found["memory"], found["bytes"])


def _time_float(kind: str, pruned: bool, width: float, repeats: int) -> dict[str, float]:
    from experiments.benchmarks.networks import in_torch, in_xla, network

    graph, variables = network(None, pruned=pruned, width=width)
    image = np.random.default_rng(0).normal(size=(1, *graph.input.shape)).astype(np.float32)
    run: Callable[[], np.ndarray] = in_xla(graph, variables, image)
    if kind != "xla":
        expected = run()
        run = in_torch(graph, variables, image, channels_last=kind.endswith("last"))
        # Spikes on the verge of the threshold may differ in the last bit; the networks are the same if most do not.
        assert np.median(np.abs(run() - expected)) < 0.2 * np.std(expected)
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    weights = 4 * sum(leaf.size for leaves in variables["params"].values() for leaf in leaves.values())
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return {"latency": 1e3 * min(times), "memory": int(peak.split()[1]) / 1e3, "bytes": weights}


def _programs(cc: str, width: float, repeats: int) -> list[Measured]:
    """The C programs: pruned and whole, by bits, and by how often neurons fire."""
    choices = [
        (_NAMED, 2, True, 0.0),
        ("C, 2 bits, whole", 2, False, 0.0),
        ("C, 4 bits, pruned", 4, True, 0.0),
        ("C, 8 bits, pruned", 8, True, 0.0),
        *((f"C, 2 bits, pruned, drive {drive:+}", 2, True, drive) for drive in (-2.0, 0.5)),
    ]
    return [program(cc, repeats, width, *choice) for choice in choices]


def program(cc: str, repeats: int, width: float, name: str, bits: int, pruned: bool, drive: float) -> Measured:
    """Compile the C of a network, run it, and hold its logits against the interpreter's."""
    from experiments.benchmarks.networks import network
    from qpsnn_jax import IntegerNetwork, c_source, fold, write_packed

    graph, variables = network(bits, pruned=pruned, width=width, drive=drive)
    integers = IntegerNetwork.of(fold(graph, variables, (0.5,) * 3, (0.25,) * 3))
    pixels = np.random.default_rng(0).integers(0, 256, (1, *graph.input.shape), np.uint8)
    names = [layer.name for layer in integers.folded.neurons]
    expected, maps = integers(pixels, names)
    rate = float(np.mean([maps[name].mean() for name in names]))
    text = c_source(integers, "net")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        packed = write_packed(place / "net.qpsnn", integers.folded, {})
        for file, content in (("net.c", text.source), ("net.h", text.header), ("main.c", DRIVER)):
            (place / file).write_text(content, encoding="utf-8")
        subprocess.run([*shlex.split(cc), "net.c", "main.c", "-o", "net"], cwd=place, check=True)
        ran = subprocess.run([place / "net", str(repeats)], input=pixels.tobytes(), capture_output=True, check=True)
    latency, *logits, peak = ran.stdout.split()
    assert [int(n) for n in logits] == expected[0].tolist(), "the program's logits are not the interpreter's"
    note = f"firing rate {rate:.3f}, working memory {text.working_bytes / 1e3:.0f} kB"
    size = packed.header_bytes + packed.payload_bytes
    return Measured(name, float(latency), int(peak) / 1e3, size, note)


if __name__ == "__main__":
    sys.exit(main())

"""What a training step takes on 1 to 256 devices: a model, not a measurement.

Command: python -m experiments.scaling [--network resnet20] [--layout data] [--devices 1 2 4 … 256]

Every device has ``--batch`` images. The step is lowered for a TPU, partitioned for that many devices and compiled, by
XLA for as many simulated devices of a CPU, and not run. Of the program of one device, XLA's analysis counts the
operations and the bytes that they read and write; fusion for another platform moves others. Collectives are counted in
its text. A ring then sends 2 (n - 1) / n times the bytes of an all-reduce, and (n - 1) / n times those of a gather.

The seconds are those of a roofline: what is longer, the operations at the peak rate or the bytes at the peak bandwidth,
and after that the collectives at the rate of the links, with nothing at the same time. No device reaches its peaks,
which are published:

- a CPU core: AMD EPYC 7742 (AMD's product page and the software optimization guide of family 17h models 30h): 2.25 GHz
  with two fused multiply-adds of 8 float32 a cycle, and a 64th of 204.8 GB/s, over which cores exchange data too;
- NVIDIA H200 (datasheet of the SXM version, without sparsity): 494 Tflop/s in TensorFloat-32, in which XLA multiplies
  float32, or with ``--precision fast`` 989.5 in bfloat16; 4.8 TB/s; NVLink of 900 GB/s, half of it in each direction,
  for 8 devices, and 400 Gbit/s of a ConnectX-7 each for more;
- Google TPU v5e (Cloud TPU documentation): 197 Tflop/s in bfloat16, in which XLA multiplies float32 too; 819 GB/s;
  400 GB/s between chips, half of it in each direction; a pod of 256.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qpsnn_jax import Graph, init_state, make_train_step
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.zoo import resnet20, spikingformer, vgg16
from qpsnn_jax.runs.programs import state_shardings
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, replicated
from qpsnn_jax.training.state import init_variables

NETWORKS: dict[str, Callable[..., Graph]] = {"resnet20": resnet20, "vgg16": vgg16, "spikingformer": spikingformer}
DEVICES = tuple(2**i for i in range(9))
LAYOUTS = ("data", "data×model", "fsdp")

# XLA removes the barriers of a program for a CPU first, and then merges what they keep apart; not on other platforms.
KEEPS_BARRIERS = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


class Work(NamedTuple):
    """Of one device in one step: operations, bytes that they read and write, and by collective count and bytes."""

    flops: float
    moved: float
    collectives: dict[str, tuple[int, int]]


class Peak(NamedTuple):
    """Published rates of a device, in a second: operations, bytes of memory, and by their number, bytes to others."""

    flops: float
    memory: float
    links: Callable[[int], float]


def peaks(precision: Precision) -> dict[str, Peak]:
    """The devices of the table."""
    return {
        "CPU core": Peak(2.25e9 * 2 * 2 * 8, 204.8e9 / 64, lambda n: 204.8e9 / 64),
        "H200": Peak(989.5e12 if precision == "fast" else 494e12, 4.8e12, lambda n: 450e9 if n <= 8 else 50e9),
        "TPU v5e": Peak(197e12, 819e9, lambda n: 200e9),
    }


def seconds(work: Work, peak: Peak, devices: int) -> float:
    """The roofline of one step."""
    share = (devices - 1) / devices
    sent = sum(size * share * (2 if kind == "all-reduce" else 1) for kind, (_, size) in work.collectives.items())
    return max(work.flops / peak.flops, work.moved / peak.memory) + sent / peak.links(devices)


def work_of(graph: Graph, batch: int, devices: Sequence[Any], layout: str, precision: Precision = "auto") -> Work:
    """The work of each of these devices in a training step with ``batch`` images each."""
    compiled = compiled_step(graph, batch * len(devices), devices, layout, precision)
    found = compiled.cost_analysis()
    return Work(found["flops"], found["bytes accessed"], collectives(compiled.as_text()))


def compiled_step(
    graph: Graph,
    batch: int,
    devices: Sequence[Any],
    layout: str,
    precision: Precision = "auto",
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A training step as a TPU gets it, compiled for these devices; ``batch`` images in all.

    ``options`` are more of XLA's.
    """
    tx = optax.sgd(0.1, momentum=0.9)
    state = jax.eval_shape(lambda key: init_state(init_variables(graph, key), tx, key), jax.random.key(0))
    places, rows, whole = shardings(layout, devices, state)
    gather = partial(jax.lax.with_sharding_constraint, shardings=whole) if layout == "fsdp" else lambda params: params
    steps = (graph.timesteps,) if graph.input.frames else ()
    images = jax.ShapeDtypeStruct((batch, *steps, *graph.input.shape), jnp.float32, sharding=rows)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
    step = jax.jit(make_train_step(graph, tx, gather=gather, precision=precision), out_shardings=(places, whole))
    anywhere = [export.DisabledSafetyCheck.platform()]
    exported = export.export(step, platforms=["tpu"], disabled_checks=anywhere)(state, images, labels)
    options = {"xla_backend_optimization_level": 0, **(options or {})}
    run = jax.jit(exported.call, donate_argnums=0, compiler_options=options)
    return run.lower(state, images, labels).compile()


def shardings(layout: str, devices: Sequence[Any], state: Any) -> tuple[Any, NamedSharding, NamedSharding]:
    """Of the state, of a batch, and of what every device has whole.

    ``data`` shards the batch; ``fsdp`` the weights and the optimizer's state too; ``data×model`` over two devices each
    the output channels of the weights, and the batch over all pairs.
    """
    if layout != "data×model":
        mesh = data_mesh(devices)
        return state_shardings(state, mesh, fsdp=layout == "fsdp"), batch_sharding(mesh), replicated(mesh)
    if len(devices) % 2:
        raise ValueError(f"data×model needs an even number of devices, got {len(devices)}.")
    mesh = Mesh(np.asarray(devices).reshape(-1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def of_channels(leaf: Any) -> NamedSharding:
        split = leaf.ndim > 1 and leaf.shape[-1] % 2 == 0
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model") if split else PartitionSpec())

    return jax.tree.map(of_channels, state), NamedSharding(mesh, PartitionSpec("data")), replicated(mesh)


_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind a compiled program has, and the bytes of their results."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        size = sum(_BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",") if n])) for dtype, dims in arrays)
        found[kind] = found[kind][0] + 1, found[kind][1] + size
    return dict(found)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status is that of the process with the simulated devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--batch", type=int, default=32, help="images of each device")
    parser.add_argument("--layout", choices=LAYOUTS, default="data")
    parser.add_argument("--precision", choices=("exact", "auto", "fast"), default="auto")
    parser.add_argument("--devices", nargs="+", type=int, help="1 to 256, or even numbers, by default")
    parser.add_argument("--simulated", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    pairs = given.layout == "data×model"
    given.devices = given.devices or DEVICES[pairs:]
    if min(given.devices) < 1 or given.batch < 1 or not given.width > 0:
        parser.error("--devices, --batch and --width must be positive.")
    if pairs and any(number % 2 for number in given.devices):
        parser.error("--layout data×model needs even numbers of --devices.")
    if given.simulated:
        _report(given)
        return 0
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(given.devices)}"
    command = [sys.executable, "-m", "experiments.scaling", *(sys.argv[1:] if arguments is None else arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    return subprocess.run([*command, "--simulated"], env=environment, check=False).returncode


def _report(given: argparse.Namespace) -> None:
    graph, rates = NETWORKS[given.network](bits=2, width=given.width), peaks(given.precision)
    heads = "".join(f" {name}, ms |" for name in rates)
    print(f"A model, not a measurement: {given.network}, {given.layout}, {given.batch} images a device.\n")
    print(f"| devices | Gflop | GB moved | collectives, MB |{heads}\n|---|---|---|---|{'---|' * len(rates)}")
    for n in given.devices:
        print(_row(work_of(graph, given.batch, jax.devices()[:n], given.layout, given.precision), rates, n), flush=True)


def _row(work: Work, rates: dict[str, Peak], devices: int) -> str:
    sent = (
        ", ".join(f"{size / 1e6:.1f} by {n} {kind}" for kind, (n, size) in sorted(work.collectives.items())) or "none"
    )
    times = "".join(f" {1e3 * seconds(work, peak, devices):.3g} |" for peak in rates.values())
    return f"| {devices} | {work.flops / 1e9:.3g} | {work.moved / 1e9:.3g} | {sent} |{times}"


if __name__ == "__main__":
    raise SystemExit(main())

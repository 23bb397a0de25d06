"""Working memory of a training step beside what PyTorch keeps for its backward pass.

Command: python -m experiments.benchmarks.memory [--networks vgg16 resnet20] [--batch 32] [--accelerators]

Ours is what XLA's analysis of the compiled step says it needs besides the state and the batch: everything, gradients
included; as `low_memory_jit` schedules it, which runs take, and as XLA does. PyTorch's is what eager autograd saves
between the forward and the backward pass, besides weights and images, counted tensor by tensor; gradients of the
weights, which grow as that shrinks, and what single operations need in passing are not in it. No step is run.

With ``--accelerators`` the step is the one that a TPU gets, compiled by XLA for a CPU with the barriers that keep
membranes apart that are computed again, and beside it what it would take if spikes were saved as float32. Compilers of
accelerators fuse and lay out otherwise.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import optax

from experiments import scaling
from experiments.benchmarks.comparison import Case
from experiments.benchmarks.speed import make_case, plain
from qpsnn_jax import Graph, init_state, make_train_step
from qpsnn_jax.kernels.saved import Saved
from qpsnn_jax.runtime.compiling import low_memory_jit


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=scaling.NETWORKS, default=["vgg16", "resnet20"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=float, default=1.0, help="multiplies every width; 1 is the paper's")
    parser.add_argument("--accelerators", action="store_true", help="of the step as GPUs and TPUs get it")
    given = parser.parse_args(arguments)
    if given.accelerators:
        return on_accelerators(given.networks, given.batch, given.width)
    if "spikingformer" in given.networks:
        parser.error("spikingformer needs --accelerators: it has no PyTorch network here.")
    print(f"| batch {given.batch} | low_memory_jit | jax.jit | plain XLA | PyTorch, eager |\n|---|---|---|---|---|")
    for name in given.networks:
        case = make_case(name, given.batch, given.width)
        ours = [in_jax(case, jit) for jit in (low_memory_jit, jax.jit)]
        with plain():
            ours.append(in_jax(case, jax.jit))
        torch = "not installed" if importlib.util.find_spec("torch") is None else f"{in_torch(case) / 1e6:.0f} MB"
        print(f"| {name} | " + " | ".join(f"{n / 1e6:.0f} MB" for n in ours) + f" | {torch} |", flush=True)
    return 0


def on_accelerators(names: list[str], batch: int, width: float) -> int:
    """Print the table of the step as accelerators get it."""
    print(f"| batch {batch}, width {width:.3g} | spikes in two bits | in float32 | |\n|---|---|---|---|")
    for name in names:
        graph = scaling.NETWORKS[name](bits=2, width=width)
        packed = on_a_tpu(graph, batch)
        try:
            with patch.object(Saved, "of", lambda spikes: spikes):
                whole = on_a_tpu(graph, batch)
        finally:
            jax.clear_caches()  # what was traced within
        row = f"{packed / 1e6:.0f} MB | {whole / 1e6:.0f} MB | {whole / packed:.2f} times"
        print(f"| {name}, T = {graph.timesteps} | {row} |", flush=True)
    return 0


def on_a_tpu(graph: Graph, batch: int) -> int:
    """Bytes of the step as a TPU gets it besides what is passed to it."""
    jax.clear_caches()  # what was traced with the spikes saved in another way
    step = scaling.compiled_step(graph, batch, jax.devices()[:1], "data", options=scaling.KEEPS_BARRIERS)
    return step.memory_analysis().temp_size_in_bytes


def in_jax(case: Case, jit: Callable[..., Any]) -> int:
    """Bytes of the compiled step besides what is passed to it."""
    tx = optax.sgd(0.01, momentum=0.9)
    state = init_state(case.variables, tx, jax.random.key(0))
    step = jit(make_train_step(case.graph, tx), donate_argnums=0)
    return step.lower(state, case.images, case.labels).compile().memory_analysis().temp_size_in_bytes


def in_torch(case: Case) -> int:
    """Bytes of the tensors that autograd saves, each storage once, no weights and no images."""
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks.torch_network import TorchNetwork

    network = TorchNetwork(case.graph, case.variables).train()
    images = torch.from_numpy(np.array(case.images)).permute(0, 3, 1, 2).contiguous()
    own = {tensor.untyped_storage().data_ptr() for tensor in (images, *network.parameters())}
    saved: dict[int, Any] = {}

    def seen(tensor: Any) -> Any:
        # The storage is kept, so that its address is not given away again.
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        currents = network(images)
        loss = torch.nn.functional.cross_entropy(currents.mean(0), torch.from_numpy(case.labels).long())
    del loss
    return sum(storage.nbytes() for place, storage in saved.items() if place not in own)


if __name__ == "__main__":
    sys.exit(main())

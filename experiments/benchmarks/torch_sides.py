"""The network of a benchmark in PyTorch as one of the sides, in training or inference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.comparison import Case, Side

LEARNING_RATE, MOMENTUM = 0.01, 0.9


class _Placed(NamedTuple):
    """A network on its device: ``forward`` is it as called, compiled or not."""

    network: Any
    forward: Callable[[Any], Any]
    images: Any
    labels: Any
    device: str


def in_torch(
    work: str,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    autocast: bool = False,
    tf32: bool = False,
    spikingjelly: bool = False,
) -> Side:
    """A side in PyTorch, on the kind of device that JAX has, with neurons of its own or SpikingJelly's."""

    def side(case: Case) -> Callable[[], float]:
        import torch  # pyright: ignore[reportMissingImports]

        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        layout = {"memory_format": torch.channels_last} if channels_last else {}
        placed = _place(case, layout, compiled=compiled, spikingjelly=spikingjelly)
        placed.network.train(work == "training")
        rounded = torch.autocast(placed.device, torch.bfloat16, enabled=autocast)

        def loss() -> Any:
            with rounded:
                currents = placed.forward(placed.images)
            return torch.nn.functional.cross_entropy(currents.float().mean(0), placed.labels)

        return _inference(loss) if work == "inference" else _training(loss, placed)

    return side


def _place(case: Case, layout: dict[str, Any], *, compiled: bool, spikingjelly: bool) -> _Placed:
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks.torch_network import TorchNetwork

    lif = None
    if spikingjelly:
        from experiments.benchmarks.spikingjelly_neurons import neurons as lif

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    network = TorchNetwork(case.graph, case.variables, lif).to(device, **layout)
    images = torch.from_numpy(np.array(case.images)).permute(0, 3, 1, 2).contiguous().to(device, **layout)
    labels = torch.from_numpy(case.labels).long().to(device)
    if compiled:
        torch._dynamo.reset()
    forward: Any = torch.compile(network, fullgraph=True, dynamic=False) if compiled else network
    return _Placed(network, forward, images, labels, device)


def _inference(loss: Callable[[], Any]) -> Callable[[], float]:
    import torch  # pyright: ignore[reportMissingImports]

    def infer() -> float:
        with torch.inference_mode():
            return float(loss())

    return infer


def _training(loss: Callable[[], Any], placed: _Placed) -> Callable[[], float]:
    import torch  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.SGD(placed.network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        if placed.device == "cuda":
            torch.cuda.synchronize()
        return float(value.detach())

    return step

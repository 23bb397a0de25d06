"""Training a small convolutional network on event frames, beside snnTorch, SpikingJelly and Spyx, on a CPU.

Command: python -m experiments.benchmarks.events [--timesteps 8 25 100] [--bits 2] [--norm] [--learned] [--isa avx2]

The network that most people train first: frames of 28×28 pixels and two polarities, two 5×5 convolutions of 16 and 32
channels, each followed by LIF neurons with hard reset and a 2×2 max-pool, a hidden layer of 128 LIF neurons and one of
10 outputs, whose mean over time is classified; Adam, batch 64. The others are in full precision, and write this network
as their own tutorials do: snnTorch and Spyx step by step, SpikingJelly layer by layer with all steps in one call, also
compiled. All have the arctangent as surrogate, start from the same weights and see the same frames; the table says how
far their first losses are from ours. Spyx's neurons reset softly and a step later, and their decay stays constant. The
sides take turns in one process; the median of the turns is reported, and the seconds from a network that is not built
to the loss of its first step, compilation included. Who is not installed is left out. Ours: in experiments/README.md.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import isa
from experiments.benchmarks.comparison import Case, Row, Side, compare
from experiments.benchmarks.speed import step_in_jax
from qpsnn_jax import Graph, SpikingNetwork, init_variables
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input, MaxPool, Node, Quantizer

CHANNELS, HIDDEN, CLASSES = (16, 32), 128, 10
_LEARNING_RATE, _EVENT_RATE, _TAU = 1e-3, 0.1, 0.5
# So that neurons fire about as often as in training.
_GAINS = {"conv1": 5.0, "conv2": 1.5, "hidden": 2.0}


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", nargs="+", type=int, default=[8, 25, 100])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=28, help="height and width of the frames")
    parser.add_argument("--bits", type=int, help="of our weights; full precision when left out")
    parser.add_argument("--norm", action="store_true", help="batch-norm after each convolution")
    parser.add_argument("--learned", action="store_true", help="a decay factor that each layer learns")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=7)
    isa.add_options(parser)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    isa.apply(given)
    print(f"{isa.described()}\n")
    found = []
    for timesteps in given.timesteps:
        case = make_case(timesteps, given.batch, given.size, given.bits, norm=given.norm, learned=given.learned)
        rows = list(compare(case, {name: SIDES[name] for name in given.sides}, given.repeats))
        print(table(f"T = {timesteps}, batch {given.batch}", rows), flush=True)
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in firing_rates(case).items())
        print(f"Firing rates at the start: {rates}.\n", flush=True)
        found += [{"timesteps": timesteps, "batch": given.batch, **row._asdict()} for row in rows]
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def event_graph(
    timesteps: int, size: int = 28, bits: int | None = None, *, norm: bool = False, learned: bool = False
) -> Graph:
    """The network; the first layer and the readout stay in full precision."""
    neurons: dict[str, Any] = {"tau": "learned" if learned else _TAU, "surrogate": "arctan"}  # learned from 0.5 on
    nodes: list[Node] = [Input("frames", (size, size, 2), frames=True)]
    for i, features in enumerate(CHANNELS, 1):
        quantizer = Quantizer(bits) if bits and i > 1 else None
        options: dict[str, Any] = {"kernel": (5, 5), "padding": (2, 2), "bias": not norm, "quantizer": quantizer}
        nodes.append(Conv(f"conv{i}", nodes[-1].name, features, **options))
        if norm:
            nodes.append(BatchNorm(f"norm{i}", nodes[-1].name))
        nodes += [LIF(f"lif{i}", nodes[-1].name, **neurons), MaxPool(f"pool{i}", f"lif{i}")]
    quantizer = Quantizer(bits) if bits else None
    nodes += [
        Flatten("flatten", nodes[-1].name),
        Dense("hidden", "flatten", HIDDEN, quantizer=quantizer),
        LIF("lif3", "hidden", **neurons),
        Dense("outputs", "lif3", CLASSES),
    ]
    return Graph(tuple(nodes), timesteps=timesteps)


def make_case(timesteps: int, batch: int, size: int, bits: int | None, **options: bool) -> Case:
    """The network with fresh weights, on frames with an event in a tenth of the pixels."""
    graph = event_graph(timesteps, size, bits, **options)
    draw = np.random.default_rng(0)
    frames = (draw.random((batch, timesteps, size, size, 2)) < _EVENT_RATE).astype(np.float32)
    variables = init_variables(graph, jax.random.key(0))
    for name, gain in _GAINS.items():
        variables["params"][name]["kernel"] = gain * variables["params"][name]["kernel"]
    return Case(graph, variables, frames, draw.integers(0, CLASSES, batch).astype(np.int32))


def firing_rates(case: Case) -> dict[str, float]:
    """How often the neurons of each layer fire."""
    layers = {node.name: lambda trace: trace.spikes.mean() for node in case.graph.nodes if isinstance(node, LIF)}
    apply: Any = SpikingNetwork(case.graph).apply
    run = jax.jit(lambda tree, frames: apply(tree, frames, capture=layers).captured)
    return {name: float(rate) for name, rate in run(case.variables, case.images).items()}


def table(title: str, rows: list[Row]) -> str:
    """The rows as Markdown."""
    fastest = min((np.median(row.seconds) for row in rows[1:]), default=math.nan)
    lines = [f"| {title} | ms a step | range | first step, s | loss apart |", "|---|---|---|---|---|"]
    for row in rows:
        middle, low, high = (1e3 * x for x in (np.median(row.seconds), min(row.seconds), max(row.seconds)))
        lines.append(f"| {row.side} | {middle:.0f} | {low:.0f} to {high:.0f} | {row.first:.1f} | {row.apart:.1e} |")
    return "\n".join(
        [*lines, f"\nThe fastest other side takes {fastest / np.median(rows[0].seconds):.2f} times as long.\n"]
    )


def _ours(case: Case) -> Callable[[], float]:
    return step_in_jax(case, optax.adam(_LEARNING_RATE))


def _in_torch(build: Callable[[Case], tuple[Any, Callable[[Any], Any]]]) -> Side:
    """From what makes a module and its function of frames ``t b c h w`` to the mean output currents ``b classes``."""

    def side(case: Case) -> Callable[[], float]:
        import torch  # pyright: ignore[reportMissingImports]

        module, forward = build(case)
        frames = torch.from_numpy(case.images).permute(1, 0, 4, 2, 3).contiguous()
        labels = torch.from_numpy(case.labels).long()
        optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(forward(frames), labels)
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return side


def _copy_weights(case: Case, layers: dict[str, Any]) -> None:
    """Our weights into PyTorch's layers of these names."""
    import torch  # pyright: ignore[reportMissingImports]

    for name, layer in layers.items():
        kernel, bias = (np.asarray(case.variables["params"][name].get(x)) for x in ("kernel", "bias"))
        if name == "hidden":  # Our maps are flattened with channels last, theirs with channels first.
            side = math.isqrt(len(kernel) // CHANNELS[-1])
            kernel = kernel.reshape(side, side, CHANNELS[-1], -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        moved = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(moved.copy()))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(bias.copy()))


def _named_layers(case: Case, nn: Any) -> dict[str, Any]:
    """PyTorch's layers, or SpikingJelly's of the same names."""
    norm, (first, second) = "norm1" in case.graph.by_name, CHANNELS
    layers = {
        "conv1": nn.Conv2d(2, first, 5, padding=2, bias=not norm),
        "conv2": nn.Conv2d(first, second, 5, padding=2, bias=not norm),
        "hidden": nn.Linear((case.images.shape[2] // 4) ** 2 * second, HIDDEN),
        "outputs": nn.Linear(HIDDEN, CLASSES),
    }
    _copy_weights(case, layers)
    norms = {f"norm{i}": nn.BatchNorm2d(n) for i, n in enumerate(CHANNELS, 1)} if norm else {}
    return layers | norms


def _snntorch(case: Case) -> tuple[Any, Callable[[Any], Any]]:
    import snntorch  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from snntorch import surrogate  # pyright: ignore[reportMissingImports]

    layers = _named_layers(case, torch.nn)
    options = {"spike_grad": surrogate.atan(alpha=2.0), "reset_mechanism": "zero", "learn_beta": _learned(case)}
    fire = [snntorch.Leaky(beta=_TAU, **options) for _ in range(3)]
    pool, norm = torch.nn.functional.max_pool2d, lambda i, x: layers[f"norm{i}"](x) if f"norm{i}" in layers else x

    def forward(frames: Any) -> Any:
        membranes, outputs = [neurons.reset_mem() for neurons in fire], []
        for frame in frames:
            x = frame
            for i in range(2):
                x, membranes[i] = fire[i](norm(i + 1, layers[f"conv{i + 1}"](x)), membranes[i])
                x = pool(x, 2)
            x, membranes[2] = fire[2](layers["hidden"](x.flatten(1)), membranes[2])
            outputs.append(layers["outputs"](x))
        return torch.stack(outputs).mean(0)

    return torch.nn.ModuleDict(layers | {f"lif{i}": neurons for i, neurons in enumerate(fire, 1)}), forward


def _learned(case: Case) -> bool:
    return "lif1" in case.variables["params"]


def _spikingjelly(case: Case, *, compiled: bool = False) -> tuple[Any, Callable[[Any], Any]]:
    import torch  # pyright: ignore[reportMissingImports]
    from spikingjelly.activation_based import functional, layer, neuron, surrogate  # pyright: ignore[reportMissingImports]

    def neurons() -> Any:
        options = {"v_threshold": 1.0, "v_reset": 0.0, "surrogate_function": surrogate.ATan(alpha=2.0)}
        make = neuron.ParametricLIFNode if _learned(case) else neuron.LIFNode
        return make(1 / (1 - _TAU), decay_input=False, **options)  # membranes keep 1 - 1/tau

    layers = _named_layers(case, layer)
    order: list[Any] = []
    for i in (1, 2):
        order += [layers[name] for name in (f"conv{i}", f"norm{i}") if name in layers]
        order += [neurons(), layer.MaxPool2d(2)]
    order += [layer.Flatten(), layers["hidden"], neurons(), layers["outputs"]]
    network = torch.nn.Sequential(*order)
    functional.set_step_mode(network, "m")
    run: Any = torch.compile(network, dynamic=False) if compiled else network

    def forward(frames: Any) -> Any:
        functional.reset_net(network)
        return run(frames).mean(0)

    return network, forward


def _spyx(case: Case) -> Callable[[], float]:
    import spyx.nn  # pyright: ignore[reportMissingImports]
    from flax import nnx

    model = _spyx_model(case)
    optimizer = nnx.Optimizer(model, optax.adam(_LEARNING_RATE), wrt=nnx.Param)
    frames, labels = jax.device_put((case.images.swapaxes(0, 1), case.labels))

    @nnx.jit
    def step(model: Any, optimizer: Any, frames: Any, labels: Any) -> Any:
        def loss(model: Any) -> Any:
            currents, _ = spyx.nn.run(model, frames)
            return optax.softmax_cross_entropy_with_integer_labels(currents.mean(0), labels).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    return lambda: float(step(model, optimizer, frames, labels))


def _spyx_model(case: Case) -> Any:
    import spyx.axn  # pyright: ignore[reportMissingImports]
    import spyx.nn  # pyright: ignore[reportMissingImports]
    from flax import linen, nnx

    rngs, params = nnx.Rngs(0), case.variables["params"]
    side = case.images.shape[2]

    def lif(*shape: int) -> Any:
        return spyx.nn.LIF(shape, beta=_TAU, activation=spyx.axn.arctan(), rngs=rngs)

    def weighted(name: str) -> Any:
        kernel, biased = params[name]["kernel"], "bias" in params[name]
        make: Any = partial(nnx.Conv, kernel_size=(5, 5)) if kernel.ndim == 4 else nnx.Linear
        made = make(kernel.shape[-2], kernel.shape[-1], use_bias=biased, rngs=rngs)
        made.kernel[...] = kernel
        if biased:
            made.bias[...] = params[name]["bias"]
        return made

    layers: list[Any] = []
    for i, features in enumerate(CHANNELS, 1):
        layers.append(weighted(f"conv{i}"))
        if f"norm{i}" in params:
            # By the running moments, since Flax renews none within Spyx's scan.
            layers.append(nnx.BatchNorm(features, use_running_average=True, rngs=rngs))
        layers += [lif(side, side, features), partial(linen.max_pool, window_shape=(2, 2), strides=(2, 2))]
        side //= 2
    layers += [spyx.nn.Flatten(), weighted("hidden"), lif(HIDDEN), weighted("outputs")]
    return spyx.nn.Sequential(*layers)


SIDES: dict[str, Side] = {
    "qpsnn_jax": _ours,
    "snnTorch": _in_torch(_snntorch),
    "SpikingJelly": _in_torch(_spikingjelly),
    "SpikingJelly, compiled": _in_torch(partial(_spikingjelly, compiled=True)),
    "Spyx": _spyx,
}

if __name__ == "__main__":
    sys.exit(main())

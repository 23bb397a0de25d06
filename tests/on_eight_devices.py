"""What tests/test_sharding.py runs in a process of its own, which has eight CPU devices."""

import contextlib
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax.data import load
from qpsnn_jax.data.settings import DataSettings, make_prepare
from qpsnn_jax.kernels.convolution import conv_spikes
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input, MaxPool, Quantizer
from qpsnn_jax.model.settings import NetworkSettings
from qpsnn_jax.pruning import score
from qpsnn_jax.runs import loop
from qpsnn_jax.runs.config import Config, build_graph
from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.programs import state_shardings
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runtime.keys import key_to_data
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, replicated
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import init_state, init_variables
from qpsnn_jax.training.steps import make_train_step

BATCH = 16
SMALL = "small_runs:small"
WIDE = Config(NetworkSettings(SMALL, width=4.0, ste="plain"), DataSettings("digits"))


def step_on(devices):
    """One step: the state after it, the metrics, and the compiled program."""
    graph, mesh = residual_graph(Quantizer(2, ste="plain")), data_mesh(devices)
    tx = optax.sgd(0.1, momentum=0.9)
    state = jax.device_put(init_state(random_variables(graph), tx, jax.random.key(1)), replicated(mesh))
    batch = jax.device_put((images_of(graph, BATCH), jnp.arange(BATCH) % 3), batch_sharding(mesh))
    jitted = jax.jit(make_train_step(graph, tx), out_shardings=replicated(mesh))
    compiled = jitted.lower(state, *batch).compile()
    return jax.device_get(compiled(state, *batch)), compiled.as_text()


def cut_step_on(devices):
    """One step of a wider network whose weights, momenta and average are cut: the state, and the compiled program."""
    graph, mesh = build_graph(WIDE), data_mesh(devices)
    tx = optax.sgd(0.1, momentum=0.9)
    state = init_state(random_variables(graph), tx, jax.random.key(1), ema=True)
    places = state_shardings(state, mesh, fsdp=True)
    batch = jax.device_put((images_of(graph, BATCH), jnp.arange(BATCH) % 10), batch_sharding(mesh))
    gather = partial(jax.lax.with_sharding_constraint, shardings=replicated(mesh))
    jitted = jax.jit(make_train_step(graph, tx, gather=gather), out_shardings=(places, replicated(mesh)))
    compiled = jitted.lower(jax.device_put(state, places), *batch).compile()
    return compiled(jax.device_put(state, places), *batch)[0], compiled.as_text()


def cuts() -> dict:
    devices = jax.devices()
    alone, _ = cut_step_on(devices[:1])
    found, program = cut_step_on(devices)
    found, alone = (jax.tree.map(key_to_data, state) for state in (found, alone))
    apart = jax.tree.map(lambda a, b: largest_difference(np.asarray(a), np.asarray(b)), found, alone)
    held = [found.variables["params"], found.opt_state, found.ema["params"]]
    own = [sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)) for tree in held]
    kinds = "all-gather|all-to-all|collective-permute"
    moved = re.findall(rf"= (.*) ({kinds})(?:-start)?\(", program)
    shapes = {tuple(x.shape) for x in jax.tree.leaves(found.variables["params"])}
    sent = [tuple(map(int, dims.split(","))) for result, _ in moved for dims in re.findall(r"\w\[([\d,]+)\]", result)]
    return {
        "apart": max(jax.tree.leaves(apart)),
        "held": [part / sum(x.nbytes for x in jax.tree.leaves(tree)) for part, tree in zip(own, held, strict=True)],
        "kinds": sorted({kind for _, kind in moved}),
        "sent": len(sent),
        "weights": sum(x.shape != (10,) for x in jax.tree.leaves(found.variables["params"])),  # one bias cannot be cut
        "strange": [shape for shape in sent if shape not in shapes],
    }


def largest_difference(a, b):
    return float(np.max(np.abs(a - b), initial=0))


def steps() -> dict:
    devices = jax.devices()
    (alone, metrics), _ = step_on(devices[:1])
    (found, shared), program = step_on(devices)
    apart = jax.tree.map(largest_difference, found.variables, alone.variables)
    result = {
        "devices": len(devices),
        "apart": max(jax.tree.leaves(apart)),
        "loss": abs(float(shared["loss"] - metrics["loss"])),
        "moved": sorted(set(re.findall(r" (all-gather|all-to-all|collective-permute)\(", program))),
        "reductions": program.count(" all-reduce("),
    }
    graph = residual_graph(Quantizer(2))
    variables, images = random_variables(graph), images_of(graph, BATCH)
    scores = [score(graph, variables, [images], mesh=data_mesh(d)) for d in (devices, devices[:1])]
    scores.append(score(graph, variables, [images]))
    result["scores"] = max(
        float(jnp.abs(jax.device_get(a) - jax.device_get(b)).max())
        for other in scores[:2]
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(scores[2]), strict=True)
    )
    return result


def fits(directory: Path) -> dict:
    """Train on eight devices that shard the weights, stop, and go on with one, which holds them whole, and with two."""
    config = Config(NetworkSettings(SMALL, ste="plain"), DataSettings("digits", train_examples=160, test_examples=64))
    graph, data = build_graph(config), load("digits", train_examples=160, test_examples=64)
    prepare = make_prepare(config.data, data)
    training = Training(epochs=2, batch_size=32, learning_rate=0.01)

    def fitted(place, devices, hooks=()):
        loop.data_mesh = lambda: data_mesh(devices)
        variables = init_variables(graph, jax.random.key(0))
        run = RunSettings(checkpoint_epochs=1, fsdp=len(devices) > 1)
        done = loop.fit(graph, variables, data, training, place, prepare=prepare, run=run, hooks=hooks)
        return jax.device_get(done.variables), done.result.accuracy

    def stopping(step, values):
        del values
        if step == 5 + 1:
            raise KeyboardInterrupt

    # The schedule depends on the number of epochs, so the first part is stopped, not shortened.
    with contextlib.suppress(KeyboardInterrupt):
        fitted(directory / "eight", jax.devices(), (Hooks(metrics=stopping),))
    one, two = (
        fitted(shutil.copytree(directory / "eight", directory / str(count)), jax.devices()[:count]) for count in (1, 2)
    )
    apart = jax.tree.map(largest_difference, one[0], two[0])
    return {"apart": max(jax.tree.leaves(apart)), "accuracy": abs(one[1] - two[1])}


def sums(algorithm: str) -> dict:
    """Sums of a batch that is shared by all devices."""
    draw, mesh = np.random.default_rng(0), data_mesh(jax.devices())
    spikes = jnp.asarray(draw.random((BATCH, 7, 6, 16)) < 0.4, jnp.float32)
    integers = jnp.asarray(2 * draw.integers(0, 4, (3, 3, 16, 8)) - 3, jnp.float32)
    run = partial(conv_spikes, bits=2, padding=(1, 1))
    placed = jax.device_put(spikes, batch_sharding(mesh)), jax.device_put(integers, replicated(mesh))
    compiled = jax.jit(partial(run, algorithm=algorithm)).lower(*placed).compile()
    found = compiled(*placed)
    return {
        "apart": largest_difference(np.asarray(found), np.asarray(run(spikes, integers, algorithm="float32"))),
        "held": found.addressable_shards[0].data.shape[0],
        "moved": re.findall(r" (all-[a-z]+|collective-permute)(?:-start)?\(", compiled.as_text()),
    }


def explicit() -> float:
    """One step on a mesh of JAX's default kind, whose shardings are types, against one device."""
    nodes = (
        Input("image", (4, 4, 2)),
        Conv("stem", "image", 4),
        BatchNorm("bn", "stem"),
        LIF("lif", "bn"),
        Conv("conv", "lif", 8, quantizer=Quantizer(2)),
        LIF("lif2", "conv"),
        MaxPool("pool", "lif2"),
        Flatten("flat", "pool"),
        Dense("fc", "flat", 3),
    )
    graph, tx = Graph(nodes, timesteps=2), optax.sgd(0.1, momentum=0.9)
    state = init_state(random_variables(graph), tx, jax.random.key(1), ema=True)
    batch, step = (images_of(graph, BATCH), jnp.arange(BATCH) % 3), jax.jit(make_train_step(graph, tx))
    alone, metrics = step(state, *batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        found, shared = step(jax.device_put(state, whole), *jax.device_put(batch, rows))
    trees = [
        jax.device_get((state.variables, state.opt_state, state.ema, values))
        for state, values in ((found, shared), (alone, metrics))
    ]
    return max(jax.tree.leaves(jax.tree.map(largest_difference, *trees)))


if __name__ == "__main__":
    sums_by = {name: sums(name) for name in ("winograd", "popcount")}
    print(
        json.dumps(
            {"steps": steps(), "sums": sums_by, "cuts": cuts(), "fits": fits(Path(sys.argv[1])), "explicit": explicit()}
        )
    )

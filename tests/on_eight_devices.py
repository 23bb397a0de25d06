"""What tests/test_sharding.py runs in a process of its own, which has eight CPU devices."""

import contextlib
import json
import re
import shutil
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_networks import images_of, random_variables

from experiments.scaling import LAYOUTS, collectives, compiled_step
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
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, replicated
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import init_state, init_variables
from qpsnn_jax.training.steps import make_train_step

BATCH = 16
SMALL = "small_runs:small"
GRAPH = Graph(
    (
        Input("image", (4, 4, 2)),
        Conv("stem", "image", 32),
        BatchNorm("bn", "stem"),
        LIF("lif", "bn"),
        Conv("conv", "lif", 64, quantizer=Quantizer(2, ste="plain"), label="conv"),
        BatchNorm("bn2", "conv"),
        LIF("lif2", "bn2"),
        MaxPool("pool", "lif2"),
        Flatten("flat", "pool"),
        Dense("fc", "flat", 3),
    ),
    timesteps=2,
)
TX = optax.sgd(0.1, momentum=0.9)
STEP = make_train_step(GRAPH, TX)


def start():
    """A state with momenta and average, and a batch."""
    state = init_state(random_variables(GRAPH), TX, jax.random.key(1), ema=True)
    return state, (images_of(GRAPH, BATCH), jnp.arange(BATCH) % 3)


@cache
def alone():
    """One step on one device: the state after it, and the metrics."""
    state, batch = start()
    return comparable(*jax.jit(STEP)(state, *batch))


def comparable(state, metrics):
    return jax.device_get((state.variables, state.opt_state, state.ema, metrics))


def apart(found):
    return max(jax.tree.leaves(jax.tree.map(largest_difference, comparable(*found), alone())))


def compiled(step, places, mesh):
    """The step on a mesh, with a state that lies at the places."""
    state, batch = start()
    batch = jax.device_put(batch, batch_sharding(mesh))
    jitted = jax.jit(step, out_shardings=(places, replicated(mesh)))
    return jitted.lower(jax.device_put(state, places), *batch).compile(), jax.device_put(state, places), batch


def cuts() -> dict:
    """Weights, momenta and average are cut."""
    mesh = data_mesh(jax.devices())
    gather = partial(jax.lax.with_sharding_constraint, shardings=replicated(mesh))
    places = state_shardings(start()[0], mesh, fsdp=True)
    run, state, batch = compiled(make_train_step(GRAPH, TX, gather=gather), places, mesh)
    found, metrics = run(state, *batch)
    held = [found.variables["params"], found.opt_state, found.ema["params"]]
    own = [sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)) for tree in held]
    kinds = "all-gather|all-to-all|collective-permute"
    moved = re.findall(rf"= (.*) ({kinds})(?:-start)?\(", run.as_text())
    shapes = {tuple(x.shape) for x in jax.tree.leaves(found.variables["params"])}
    sent = [tuple(map(int, dims.split(","))) for result, _ in moved for dims in re.findall(r"\w\[([\d,]+)\]", result)]
    return {
        "apart": apart((found, metrics)),
        "held": [part / sum(x.nbytes for x in jax.tree.leaves(tree)) for part, tree in zip(own, held, strict=True)],
        "kinds": sorted({kind for _, kind in moved}),
        "sent": len(sent),
        "weights": sum(x.shape != (3,) for x in jax.tree.leaves(found.variables["params"])),  # one bias cannot be cut
        "strange": [shape for shape in sent if shape not in shapes],
    }


def largest_difference(a, b):
    return float(np.max(np.abs(a - b), initial=0))


def steps() -> dict:
    mesh = data_mesh(jax.devices())
    run, state, batch = compiled(STEP, replicated(mesh), mesh)
    program = run.as_text()
    variables, images = random_variables(GRAPH), images_of(GRAPH, BATCH)
    found, expected = (score(GRAPH, variables, [images], mesh=place) for place in (mesh, None))
    return {
        "devices": len(jax.devices()),
        "apart": apart(run(state, *batch)),
        "moved": sorted(set(re.findall(r" (all-gather|all-to-all|collective-permute)\(", program))),
        "reductions": program.count(" all-reduce("),
        "scores": max(jax.tree.leaves(jax.tree.map(largest_difference, *jax.device_get((found, expected))))),
    }


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


def layouts() -> dict:
    """By layout, the collectives of a training step as a TPU gets it, and the bytes of the weights."""
    found = {name: collectives(compiled_step(GRAPH, BATCH, jax.devices(), name).as_text()) for name in LAYOUTS}
    return found | {"weights": sum(x.nbytes for x in jax.tree.leaves(start()[0].variables["params"]))}


def explicit() -> float:
    """One step on a mesh of JAX's default kind, whose shardings are types, against one device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    state, batch = start()
    with jax.set_mesh(mesh):
        whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        return apart(jax.jit(STEP)(jax.device_put(state, whole), *jax.device_put(batch, rows)))


if __name__ == "__main__":
    found = {"steps": steps(), "sums": {name: sums(name) for name in ("bfloat16", "int8")}, "cuts": cuts()}
    found |= {"fits": fits(Path(sys.argv[1])), "explicit": explicit(), "layouts": layouts()}
    print(json.dumps(found))

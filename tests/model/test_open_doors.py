"""A network of parts that are defined here: nodes, a neuron, a surrogate and a quantizer from outside the package."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn.initializers import lecun_normal, ones
from small_networks import images_of, random_variables

from qpsnn_jax import (
    SpikingNetwork,
    activity_reducers,
    channel_groups,
    cost,
    fold,
    init_state,
    init_variables,
    load_network,
    make_train_step,
    nir_graph,
    prune,
    save_network,
    score,
    select,
    sops_reducers,
)
from qpsnn_jax.model.graph import Graph, from_json, to_json
from qpsnn_jax.model.nodes import (
    LIF,
    BatchNorm,
    Conv,
    Dense,
    GlobalAveragePool,
    Input,
    Leaf,
    Neuron,
    Quantizer,
    Result,
    Unary,
)
from qpsnn_jax.numerics.neurons import LIFTrace, lif_step
from qpsnn_jax.numerics.quantization import quantize
from qpsnn_jax.pruning import Criterion


@dataclass(frozen=True)
class PerChannelGain(Unary):
    """A learned factor on every channel."""

    def infer(self, inputs):
        return inputs[0]._replace(spiking=False)

    def leaves(self, inputs):
        return {"factor": Leaf(inputs[0].shape[-1:], ones, (self.name,))}

    def run(self, leaves, inputs, context):
        return Result(inputs[0] * leaves["factor"].reshape((1,) * (inputs[0].ndim - 1) + (-1,)))


@dataclass(frozen=True)
class Pointwise(Unary):
    """A map from channels to channels at every position."""

    features: int
    label: str | None = None
    channels: ClassVar = "made"

    def infer(self, inputs):
        return inputs[0]._replace(shape=(*inputs[0].shape[:-1], self.features), spiking=False)

    def leaves(self, inputs):
        shape = (inputs[0].shape[-1], self.features)
        return {"weights": Leaf(shape, lecun_normal(), (self.input, self.name)), "slope": Leaf((), ones, ())}

    def run(self, leaves, inputs, context):
        return Result(leaves["slope"] * (inputs[0] @ leaves["weights"]))

    def shrink(self, outputs, inputs):
        return self if outputs is None else dataclasses.replace(self, features=len(outputs))

    def synapses(self, inputs):
        return np.full(inputs[0].shape[:2], self.features)

    @property
    def observed(self):
        return self.inputs


@dataclass(frozen=True)
class Adaptive(Neuron):
    """A neuron whose threshold rises with each spike."""

    rise: float = 0.1

    def trace(self, leaves, currents, state):
        def step(state, current):
            membrane, raised = state
            membrane, trace = lif_step(membrane, current, threshold=0.5 + raised)
            return (membrane, 0.5 * raised + self.rise * trace.spikes), trace

        rest = jnp.zeros_like(currents[:, 0])
        left, trace = jax.lax.scan(step, state or (rest, rest), jnp.moveaxis(currents, 1, 0))
        return left, LIFTrace(*(jnp.moveaxis(x, 0, 1) for x in trace))

    def rest(self, inputs, batch, dtype):
        return (super().rest(inputs, batch, dtype),) * 2


def gaussian(x):
    return jnp.exp(-2 * x * x)


def twice_rms(weights, bits, axes):
    del bits
    return 2 * jnp.sqrt(jnp.mean(weights * weights, axis=axes, keepdims=True))


def halved_outside(gradient, weights, gamma):
    return jnp.where(jnp.abs(weights) <= gamma, gradient, gradient / 2)


OWN = Quantizer(3, gamma=twice_rms, granularity="channel", ste=halved_outside)
BATCH = 8


def network() -> Graph:
    nodes = (
        Input("image", (4, 4, 2)),
        Conv("conv1", "image", 8, label="early"),
        PerChannelGain("scale1", "conv1"),
        Adaptive("adaptive", "scale1", rise=0.2),
        Conv("conv2", "adaptive", 8, quantizer=OWN, label="late"),
        BatchNorm("bn", "conv2"),
        LIF("lif", "bn", threshold=0.5, surrogate=gaussian),
        Pointwise("point", "lif", 6, label="late"),
        Adaptive("again", "point"),
        GlobalAveragePool("pool", "again"),
        Dense("fc", "pool", 3),
    )
    return Graph(nodes, timesteps=3)


GRAPH = network()
VARIABLES = jax.tree.map(jnp.asarray, random_variables(GRAPH, 1))
VARIABLES["params"]["point"] |= {"weights": 4 * VARIABLES["params"]["point"]["weights"], "slope": jnp.ones(())}
VARIABLES["params"]["scale1"]["factor"] = 1 + VARIABLES["params"]["scale1"]["factor"]


def test_it_trains():
    images, labels = images_of(GRAPH, BATCH), np.arange(BATCH, dtype=np.int32) % 3
    tx = optax.sgd(0.5, momentum=0.9)
    variables = init_variables(GRAPH, jax.random.key(0))
    kernels = {"conv1": "kernel", "conv2": "kernel", "point": "weights", "fc": "kernel"}
    assert all(np.std(np.asarray(variables["params"][node][leaf])) > 0.05 for node, leaf in kernels.items())
    state, step, losses = init_state(variables, tx, jax.random.key(0)), jax.jit(make_train_step(GRAPH, tx)), []
    for _ in range(30):
        state, metrics = step(state, images, labels)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    for node, leaves in variables["params"].items():
        moved = (np.any(np.not_equal(leaf, state.variables["params"][node][name])) for name, leaf in leaves.items())
        assert all(moved), node


def test_its_quantizer_is_the_function_and_so_is_its_gradient():
    kernel, cotangent = (
        np.asarray(VARIABLES["params"]["conv2"]["kernel"]),
        np.random.default_rng(0).normal(size=(3, 3, 8, 8)),
    )
    own = partial(quantize, bits=3, gamma=twice_rms, granularity="channel", ste=halved_outside)
    gamma = 2 * np.sqrt(np.mean(kernel**2, axis=(0, 1, 2)))
    levels = np.linspace(-1, 1, 8) * gamma[:, None]
    channels = zip(np.moveaxis(kernel, -1, 0), levels, strict=True)
    nearest = np.stack([level[np.abs(w[..., None] - level).argmin(-1)] for w, level in channels], axis=-1)

    @jax.jit
    def results(w):
        value, pull = jax.vjp(own, w)
        return value, pull(cotangent.astype(np.float32))[0]

    value, gradient = results(kernel)
    np.testing.assert_allclose(value, nearest, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.where(np.abs(kernel) <= gamma, 1, 0.5) * cotangent, rtol=1e-4)


def test_pruned_it_is_silenced():
    keep = {"conv1": [0, 2, 3, 7], "conv2": [1, 4, 5, 6, 7], "point": [0, 5]}
    assert {name: (g.size, g.label) for name, g in channel_groups(GRAPH).items()} == {
        "conv1": (8, "early"),
        "conv2": (8, "late"),
        "point": (6, "late"),
    }
    images = images_of(GRAPH, BATCH)
    smaller, pruned = prune(GRAPH, VARIABLES, keep)
    assert pruned["params"]["point"]["weights"].shape == (5, 2)
    run = jax.jit(lambda graph, tree: SpikingNetwork(graph).apply(tree, images).currents, static_argnums=0)
    # Readers of a removed channel receive zeros.
    whole = jax.tree.map(np.array, VARIABLES)
    whole["params"]["point"]["weights"][[0, 2, 3]] = 0
    whole["params"]["fc"]["kernel"][[1, 2, 3, 4]] = 0
    gammas = [
        2
        * np.sqrt(np.mean(np.asarray(tree["params"]["conv2"]["kernel"]) ** 2, axis=(0, 1, 2)))
        * np.asarray(tree["scales"]["conv2"]["gain"])
        for tree in (VARIABLES, pruned)
    ]
    np.testing.assert_allclose(gammas[1], gammas[0][keep["conv2"]], rtol=1e-5)
    silent = np.isin(np.arange(8), keep["conv1"]).astype(np.float32).reshape(1, 1, 1, 1, 8)
    plain = Adaptive.trace

    def silenced(node, leaves, currents, state):
        state, trace = plain(node, leaves, currents, state)
        return state, trace._replace(spikes=trace.spikes * silent) if node.name == "adaptive" else trace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adaptive, "trace", silenced)
        expected = run(GRAPH, whole)
    found = run(smaller, pruned)
    assert np.ptp(found, axis=0).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_counted():
    images = images_of(GRAPH, BATCH)

    @jax.jit
    def measure(variables):
        output = SpikingNetwork(GRAPH).apply(variables, images, capture=activity_reducers(GRAPH))
        penalty = SpikingNetwork(GRAPH).apply(variables, images, capture=sops_reducers(GRAPH))
        return (
            output.captured,
            penalty.captured,
            SpikingNetwork(GRAPH).apply(variables, images, capture=["lif"]).captured,
        )

    activity, penalty, values = measure(VARIABLES)
    found = cost(GRAPH, activity)
    nodes = {node.name: node for node in found.nodes}
    assert found.params == sum(np.size(leaf) for leaf in jax.tree.leaves(VARIABLES["params"]))
    assert (nodes["scale1"].params, nodes["point"].params, nodes["point"].kind) == (8, 8 * 6 + 1, "Pointwise")
    assert nodes["point"].dense == 3 * 16 * 8 * 6
    assert nodes["point"].acs == pytest.approx(6 * float(values["lif"].spikes.sum()) / BATCH)
    assert nodes["adaptive"].updates == 3 * 4 * 4 * 8
    assert found.firing_rates.keys() == {"adaptive", "lif", "again"}
    assert found.sops_total == pytest.approx(float(sum(penalty.values())), rel=1e-5)


def test_its_channels_are_scored_by_a_criterion_of_its_own():
    last_membrane = Criterion(lambda trace: trace.membranes[:, -1], lambda maps: jnp.mean(maps, axis=(0, 1, 2)))
    scores = score(GRAPH, VARIABLES, [images_of(GRAPH, BATCH)], last_membrane)
    assert {name: x.shape for name, x in scores.items()} == {"conv1": (8,), "conv2": (8,), "point": (6,)}
    kept = select(GRAPH, scores, {"early": 0.5, "late": 0.25})
    assert {name: len(channels) for name, channels in kept.items()} == {"conv1": 4, "conv2": 6, "point": 4}


def test_it_is_saved_and_loaded(tmp_path):
    assert from_json(to_json(GRAPH)) == GRAPH
    assert '"function": "test_open_doors:gaussian"' in to_json(GRAPH)
    save_network(tmp_path / "own", GRAPH, VARIABLES, {})
    graph, variables = load_network(tmp_path / "own")
    assert graph == GRAPH
    jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("class", "node 'scale1' is of the kind 'PerChannelGain', which is not imported; import its module first"),
        ("", "is not imported; import its module first"),
    ],
)
def test_what_is_not_imported_is_named(hidden, message):
    """In a process that knows no class, or no function, of this file."""
    text = to_json(GRAPH if hidden else Graph((Input("image", (4, 4, 2)), LIF("lif", "image", surrogate=gaussian))))
    code = f"from qpsnn_jax.model.graph import from_json\nfrom_json({text!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert message in ran.stderr.splitlines()[-1]


def local():
    def surrogate(x):
        return x

    return surrogate


@pytest.mark.parametrize("function", [lambda x: x, local(), partial(gaussian)], ids=["lambda", "local", "partial"])
def test_functions_without_a_name_run_but_are_not_saved(function):
    graph = Graph((Input("image", (4, 4, 2)), LIF("lif", "image", surrogate=function)))
    assert SpikingNetwork(graph).apply({}, images_of(graph)).currents.shape == (2, 2, 4, 4, 2)
    with pytest.raises(ValueError, match="node 'lif' cannot be saved: .* cannot be imported by name"):
        to_json(graph)


def test_a_gamma_of_another_shape_raises():
    wrong = Quantizer(2, gamma=lambda weights, bits, axes: jnp.mean(weights, axis=0))
    graph = Graph((Input("image", (4, 4, 2)), Conv("conv", "image", 3, quantizer=wrong)))
    with pytest.raises(ValueError, match=r"gamma must give γ of shape \(1, 1, 1, 1\) for weights \(3, 3, 2, 3\), gave"):
        jax.eval_shape(SpikingNetwork(graph).init, jax.random.key(0), images_of(graph))


@dataclass(frozen=True)
class Forgetful(Pointwise):
    def shrink(self, outputs, inputs):
        return self


@dataclass(frozen=True)
class Unnamed(PerChannelGain):
    def leaves(self, inputs):
        return {"factor": Leaf(inputs[0].shape[-1:], ones, (None,))}


@pytest.mark.parametrize(("kind", "fields"), [(Forgetful, (6,)), (Unnamed, ())])
def test_nodes_that_do_not_shrink_raise(kind, fields):
    nodes = (Input("image", (4, 4, 2)), Conv("conv", "image", 6), kind("own", "conv", *fields), LIF("lif", "own"))
    graph = Graph((*nodes, Conv("next", "lif", 2)))
    group = "own" if kind is Forgetful else "conv"
    with pytest.raises(ValueError, match=f"node 'own': {kind.__name__} does not shrink as the axes of its leaves do"):
        prune(graph, {}, {group: range(3)})


def test_two_kinds_of_one_name():
    with pytest.raises(ValueError, match="a node class named Conv is already defined in qpsnn_jax"):
        type("Conv", (Unary,), {"__module__": "elsewhere"})


def test_fields_that_cannot_be_hashed():
    with pytest.raises(ValueError, match="node 'lif': its fields must be hashable"):
        Graph((Input("image", (4, 4, 2)), Adaptive("lif", "image", rise=[0.1])))


@pytest.mark.parametrize("export", [lambda g, v: fold(g, v, [0, 0], [1, 1]), nir_graph], ids=["integers", "NIR"])
def test_exports_name_what_they_do_not_know(export):
    with pytest.raises(ValueError, match=r"node 'scale1': .*(?i:perchannelgain)"):
        export(GRAPH, VARIABLES)

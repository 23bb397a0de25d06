"""What a training step costs, in counts that do not depend on the machine: work, memory, compilations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxprs import inner_jaxprs
from small_networks import OPTIMIZED, images_of, random_variables

from experiments.benchmarks import speed
from qpsnn_jax import SpikingNetwork, init_state, make_train_step
from qpsnn_jax.kernels import dispatch
from qpsnn_jax.kernels.native import library
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, BatchNorm, Conv, Dense, GlobalAveragePool, Input, Quantizer
from qpsnn_jax.model.zoo import resnet20, vgg16
from qpsnn_jax.runtime import compiling
from qpsnn_jax.runtime.compiling import low_memory_jit

BATCH = 4


def products(jaxpr) -> int:
    """Multiply-accumulates of all convolutions and matrix products, those inside other programs too."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "shape")]
        if equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            _, kernel, out = shapes
            dilated = math.prod(equation.params["lhs_dilation"])
            inner = kernel[numbers.rhs_spec[1]] * math.prod(kernel[i] for i in numbers.rhs_spec[2:])
            total += math.prod(out) * inner // dilated
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        inner = [products(each) for each in inner_jaxprs(equation)]
        # Branches are the forms of one sum, of which a platform takes one.
        total += max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
    return total


def train_step(graph):
    tx = optax.sgd(0.1)
    state = init_state(random_variables(graph), tx, jax.random.key(0))
    return make_train_step(graph, tx), (state, images_of(graph, BATCH), jnp.zeros(BATCH, jnp.int32))


@pytest.mark.parametrize("network", [resnet20, vgg16])
def test_a_step_multiplies_three_times_as_much_as_inference(network, monkeypatch):
    monkeypatch.setattr(dispatch, "cpu_flags", frozenset)  # some algorithms have no products, or fewer
    monkeypatch.setattr(library, "load", lambda: None)
    graph = network(bits=2, timesteps=2, width=1 / 16)
    images = images_of(graph, BATCH)
    step, arguments = train_step(graph)
    inference = jax.make_jaxpr(SpikingNetwork(graph).apply)(random_variables(graph), images)
    training = jax.make_jaxpr(step)(*arguments)
    assert products(inference.jaxpr) == BATCH * speed.products(graph, "inference")
    # Forward, by inputs and by weights; nobody needs the gradient w.r.t. the images.
    assert products(training.jaxpr) == BATCH * speed.products(graph, "training")


def residual_chain() -> Graph:
    """Six convolutions of spikes of one size, every second one with a shortcut."""
    nodes = [Input("image", (16, 16, 3)), Conv("conv0", "image", 8), BatchNorm("bn0", "conv0"), LIF("lif0", "bn0")]
    for i in range(1, 7):
        nodes += [Conv(f"conv{i}", f"lif{i - 1}", 8, quantizer=Quantizer(2)), BatchNorm(f"bn{i}", f"conv{i}")]
        if i % 2:
            nodes.append(LIF(f"lif{i}", f"bn{i}"))
        else:
            nodes += [Add(f"add{i}", f"bn{i}", f"lif{i - 2}"), LIF(f"lif{i}", f"add{i}")]
    return Graph((*nodes, GlobalAveragePool("pool", "lif6"), Dense("fc", "pool", 10)), timesteps=2)


def test_a_step_holds_less_than_every_layers_output(monkeypatch):
    """And as much as XLA's own order computes, bit for bit."""
    monkeypatch.setattr(library, "load", lambda: None)
    graph = residual_chain()
    timed = {node.name: graph.timesteps if graph.values[node.name].timed else 1 for node in graph.nodes}
    outputs = BATCH * sum(math.prod(graph.values[name].shape) * steps for name, steps in timed.items())
    step, arguments = train_step(graph)
    lean, plain = (jit(step).lower(*arguments).compile(OPTIMIZED) for jit in (low_memory_jit, jax.jit))
    held, without = (each.memory_analysis().temp_size_in_bytes for each in (lean, plain))
    assert held < 0.9 * 4 * outputs
    assert without > 4 * outputs
    (got, _), (wanted, _) = (each(*arguments) for each in (lean, plain))
    jax.tree.map(np.testing.assert_array_equal, got._replace(key=None), wanted._replace(key=None))


def test_options_that_this_xla_does_not_know_are_left_out():
    assert compiling._known(xla_backend_optimization_level=0) == {"xla_backend_optimization_level": 0}
    assert compiling._known(xla_cpu_option_of_the_future=True) == {}


def test_a_run_compiles_each_step_once(small_run):
    """The training and the evaluation step of either network."""
    compiled = small_run.with_name("small_compiled.txt").read_text().split()
    assert compiled.count("step") == 4
    assert compiled.count("_batch_scores") == 1

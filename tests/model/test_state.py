"""Networks step by step, and the state between the steps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Add, Attention, BatchNorm, Conv, Dense, GlobalAveragePool, Input, Quantizer
from qpsnn_jax.model.state import initial_state

over = pytest.mark.parametrize
BATCH = 2


def attending(*, frames: bool) -> Graph:
    """Neurons of every reset and of several leaks, also those around an attention."""
    nodes = (
        Input("image", (4, 4, 2), frames=frames),
        Conv("stem", "image", 4),
        LIF("first", "stem", tau=0.9, threshold=0.8, reset="soft"),
        Conv("conv", "first", 4, quantizer=Quantizer(1, gamma="none")),
        BatchNorm("bn", "conv", epsilon=0),
        LIF("query", "bn", tau=0.7),
        LIF("key", "bn", tau=0.9, threshold=(0.3, 0.5, 0.3, 1.0), reset="delayed"),
        LIF("value", "bn", tau=1.0, threshold=0.2, reset="soft"),
        Attention("attention", "query", "key", "value", 2),
        Add("sum", "attention", "first"),
        LIF("last", "sum", tau=0.6, threshold=1.1),
        GlobalAveragePool("pool", "last"),
        Dense("out", "pool", 3),
    )
    return Graph(nodes, timesteps=5)


def quarters(graph: Graph) -> dict:
    """Weights whose sums are exact, in whatever order they are added, and a batch-norm without an addition."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(SpikingNetwork(graph).init, jax.random.key(0), images_of(graph))
    fill = {"var": lambda s: np.full(s, 1 - 1e-5), "scale": np.ones, "gain": np.ones, "mean": np.zeros}
    values = jax.tree_util.tree_map_with_path(
        lambda path, x: fill.get(path[-1].key, lambda s: draw.integers(-3, 5, s) / 4)(x.shape).astype(np.float32),
        shapes,
    )
    return dict(values)


def images_of(graph: Graph) -> jax.Array:
    shape = (BATCH, *((graph.timesteps,) if graph.input.frames else ()), *graph.input.shape)
    return jnp.asarray(np.random.default_rng(1).integers(0, 5, shape) / 4, jnp.float32)


@over("precision", ["auto", "exact"])
@over("frames", [True, False])
def test_all_steps_at_once_are_calls_of_one_step_to_the_last_bit(frames: bool, precision):
    graph = attending(frames=frames)
    variables, images = quarters(graph), images_of(graph)
    whole = jax.jit(SpikingNetwork(graph, precision).apply)(variables, images)
    step = jax.jit(SpikingNetwork(replace(graph, timesteps=1), precision).apply)
    state, currents = initial_state(graph, BATCH), []
    for t in range(graph.timesteps):
        output = step(variables, images[:, t : t + 1] if frames else images, state=state)
        state = output.state
        currents.append(output.currents)
    np.testing.assert_array_equal(jnp.concatenate(currents, 1), whole.currents)
    assert set(state) == set(graph.neurons) == set(initial_state(graph, BATCH))
    for name in graph.neurons:
        np.testing.assert_array_equal(state[name], whole.state[name], err_msg=name)
        assert np.any(np.asarray(state[name])), name


@over(
    ("change", "message"),
    [
        (
            lambda state: state | {"key": state["key"][:1]},
            r"node 'key' has the shape \(1, 4, 4, 4\), and .* of 2",
        ),
        (lambda state: state | {"key": (state["key"],)}, "state of node 'key' has the shape"),
        (lambda state: {name: state[name] for name in ("first", "query")}, "state has nothing for node 'key'"),
        (lambda state: tuple(state.values()), "state must map nodes to their arrays, .*, got a tuple"),
        (lambda state: state["key"], "state must map nodes to their arrays"),
        (lambda state: state | {"other": state["key"]}, "state names 'other', which is not a node"),
        (lambda state: state | {"conv": state["key"]}, "state names 'conv', which is not a node of the graph that has"),
    ],
)
def test_a_state_of_another_network_or_batch(change, message: str):
    graph = attending(frames=True)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            SpikingNetwork(graph).apply, quarters(graph), images_of(graph), state=change(initial_state(graph, BATCH))
        )


@over("batch", [0, -1, 1.5, "2"])
def test_a_state_of_no_batch(batch):
    with pytest.raises(ValueError, match=r"batch must be an integer, 1 or more, got "):
        initial_state(attending(frames=True), batch)


def test_no_frames():
    graph = attending(frames=True)
    with pytest.raises(ValueError, match=r"shape b 5 4 4 2 of node 'image', got \(2, 0, 4, 4, 2\)"):
        SpikingNetwork(graph).apply(quarters(graph), images_of(graph)[:, :0])


def test_no_images():
    graph = attending(frames=True)
    with pytest.raises(ValueError, match=r"images must be one or more, of node 'image', got the shape \(0, "):
        SpikingNetwork(graph).apply(quarters(graph), images_of(graph)[:0])

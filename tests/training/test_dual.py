"""A budget of operations in training: one step by hand, and many steps that arrive at it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax import Graph, OperationsTarget, SpikingNetwork, init_state, make_train_step, optimizer, sops_reducers
from qpsnn_jax.model.nodes import LIF, BatchNorm, Dense, Flatten, Input
from qpsnn_jax.training.settings import Training

GRAPH = Graph(
    (
        Input("image", (2, 2, 1)),
        Flatten("flat", "image"),
        Dense("hidden", "flat", 12),
        BatchNorm("bn", "hidden"),
        LIF("lif", "bn"),
        Dense("fc", "lif", 3),
    ),
    timesteps=2,
)
IMAGES, LABELS = images_of(GRAPH, 24), jnp.arange(24) % 3


def trained(operations, steps, rate=0.1, price=0.0):
    tx = optimizer("adam", 0.02)
    target = OperationsTarget(operations, rate)
    step = jax.jit(make_train_step(GRAPH, tx, penalty=sops_reducers(GRAPH), target=target))
    state = init_state({"scales": {}} | random_variables(GRAPH), tx, jax.random.key(0), priced=True)
    state = state._replace(price=jnp.asarray(price, jnp.float32))
    found = []
    for _ in range(steps):
        state, metrics = step(state, IMAGES, LABELS)
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


def test_the_price_of_every_step_and_the_operations_at_the_end():
    _, found = trained(8.0, 400)
    variables = random_variables(GRAPH)
    options = {"train": True, "mutable": ["batch_stats"], "capture": ["lif"]}
    outputs, _ = jax.jit(lambda *given: SpikingNetwork(GRAPH).apply(*given, **options))(variables, IMAGES)
    assert found[0]["penalty"] == pytest.approx(3 * float(outputs.captured["lif"].spikes.sum()) / 24)
    price = 0.0
    for each in found:
        price = max(0.0, price + 0.1 * (each["penalty"] / 8.0 - 1))
        assert each["price"] == pytest.approx(price, abs=1e-4)
    assert found[0]["penalty"] > 12
    assert np.mean([each["penalty"] for each in found[-100:]]) == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("price", [0.0, 5.0])
def test_a_target_that_is_met_costs_nothing(price):
    """Also where an earlier excess has raised the price."""
    state, found = trained(1e6, 2, price=price)
    assert [each["price"] for each in found] == pytest.approx([max(0, price - 0.1), max(0, price - 0.2)], abs=1e-4)
    tx = optimizer("adam", 0.02)
    plain = init_state({"scales": {}} | random_variables(GRAPH), tx, jax.random.key(0))
    step = jax.jit(make_train_step(GRAPH, tx))
    for _ in range(2):
        plain, _ = step(plain, IMAGES, LABELS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.variables, plain.variables)
    with pytest.raises(ValueError, match="a state has a price if, and only if, the step has a target"):
        step(state, IMAGES, LABELS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sops_target": "3kB"}, "sops_target must be a number of operations such as 0.2MSOPs, got '3kB'"),
        ({"sops_target": "many"}, "sops_target must be a size or a number of operations"),
        ({"sops_target": "1MSOPs", "sops_penalty": 1.0}, "sops_penalty must be 0 with a sops_target"),
    ],
)
def test_wrong_settings_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        Training(**wrong)

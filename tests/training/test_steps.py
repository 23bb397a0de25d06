"""Training and evaluation steps against the same computation put together by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input, Quantizer
from qpsnn_jax.numerics.losses import cross_entropy, temporal_cross_entropy
from qpsnn_jax.training.optim import optimizer
from qpsnn_jax.training.steps import (
    all_finite,
    evaluation_variables,
    init_state,
    init_variables,
    make_eval_step,
    make_train_step,
)


def graph_of(quantizer):
    nodes = (
        Input("image", (4, 4, 2)),
        Conv("conv1", "image", 3, label="stem"),
        BatchNorm("bn1", "conv1"),
        LIF("lif1", "bn1"),
        Conv("conv2", "lif1", 9, strides=(2, 2), quantizer=quantizer),
        LIF("lif2", "conv2"),
        Flatten("flatten", "lif2"),
        Dense("fc", "flatten", 3),
    )
    return Graph(nodes, timesteps=2)


GRAPH = graph_of(Quantizer(2))
LABELS = jnp.array([0, 2, 1, 1])
KEY = jax.random.key_data(jax.random.key(3))
TX = optimizer("sgd", 0.1, weight_decay=0.01)


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(jnp.asarray, random_variables(GRAPH))


@pytest.fixture(scope="module")
def images():
    return images_of(GRAPH, batch=4)


def close(tree, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), tree, expected)


def noise(key, images):
    return images + 0.3 * jax.random.normal(key, images.shape)


@pytest.mark.parametrize("loss", [cross_entropy, partial(temporal_cross_entropy, label_smoothing=0.1)])
def test_a_step_is_gradient_update_and_batch_statistics(variables, images, loss):
    state = init_state(variables, TX, KEY)
    after, metrics = jax.jit(make_train_step(GRAPH, TX, loss=loss))(state, images, LABELS)

    @jax.jit
    def by_hand(params):
        def objective(params):
            output = SpikingNetwork(GRAPH).apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return loss(output[0].currents, LABELS).mean(), output

        (value, (currents, updates)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        changes, opt_state = TX.update(gradients, TX.init(params), params)
        return value, currents.currents, updates, optax.apply_updates(params, changes), opt_state

    value, currents, updates, params, opt_state = by_hand(variables["params"])
    close(after.variables, {"params": params, "scales": variables["scales"], **updates})
    close(after.opt_state, opt_state)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    guesses = np.asarray(currents).mean(axis=1).argmax(axis=-1)
    assert float(metrics["accuracy"]) == (guesses == np.asarray(LABELS)).mean()
    assert int(after.step) == 1
    assert after.ema is None
    assert (after.key == KEY).all()


def test_the_average_moves_by_its_decay(variables, images):
    state = init_state(variables, TX, KEY, ema=True)
    step = jax.jit(make_train_step(GRAPH, TX, ema_decay=0.75))
    expected = {name: variables[name] for name in ("params", "batch_stats")}
    close(state.ema, expected)
    for _ in range(3):
        state, _ = step(state, images, LABELS)
        fresh = {name: state.variables[name] for name in expected}
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, expected, fresh)
        close(state.ema, expected)
    close(evaluation_variables(state), {**expected, "scales": variables["scales"]})


def test_without_an_average_the_variables_themselves_are_evaluated(variables):
    state = init_state(variables, TX, KEY)
    assert evaluation_variables(state) == state.variables


def test_each_step_draws_its_own_noise_and_the_same_state_the_same(variables, images):
    drawn = []

    def prepare(key, images):
        jax.debug.callback(lambda data: drawn.append(data.tolist()), jax.random.key_data(key))
        return noise(key, images)

    step = jax.jit(make_train_step(GRAPH, optax.sgd(0.0), prepare=prepare))
    state = init_state(variables, optax.sgd(0.0), KEY)
    first, metrics = step(state, images, LABELS)
    _, other = step(first, images, LABELS)
    _, again = step(state, images, LABELS)
    jax.effects_barrier()
    expected = [jax.random.fold_in(jax.random.wrap_key_data(KEY), n) for n in (0, 1, 0)]
    assert drawn == [jax.random.key_data(key).tolist() for key in expected]
    assert float(metrics["loss"]) == float(again["loss"]) != float(other["loss"])


def test_the_state_can_be_donated(variables, images):
    state = jax.jit(partial(init_state, tx=TX, ema=True))(variables, key=KEY)
    step = jax.jit(make_train_step(GRAPH, TX, prepare=noise), donate_argnums=0)
    kept = jax.tree.map(jnp.copy, state)
    after, _ = step(state, images, LABELS)
    assert state.variables["params"]["conv1"]["kernel"].is_deleted()
    undonated, _ = jax.jit(make_train_step(GRAPH, TX, prepare=noise))(kept, images, LABELS)
    close(after, undonated, rtol=0, atol=0)


def test_padding_counts_nothing(variables, images):
    step = jax.jit(make_eval_step(GRAPH, capture={"lif1": lambda trace: trace.spikes.mean()}))
    currents = SpikingNetwork(GRAPH).apply(variables, images).currents
    right = np.asarray(currents).mean(axis=1).argmax(axis=-1) == np.asarray(LABELS)
    losses = np.asarray(cross_entropy(currents, LABELS))
    for weights in ([1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]):
        sums, captured = step(variables, images, LABELS, jnp.asarray(weights, jnp.float32))
        assert float(sums["count"]) == sum(weights)
        assert float(sums["correct"]) == (right * weights).sum()
        assert float(sums["loss"]) == pytest.approx((losses * weights).sum(), rel=1e-5)
        assert 0 < float(captured["lif1"]) < 1


def test_evaluation_prepares_its_images_and_captures_nothing_unasked(variables, images):
    weights = jnp.ones(4)
    sums, captured = make_eval_step(GRAPH, prepare=lambda x: 2 * x)(variables, images, LABELS, weights)
    expected, _ = make_eval_step(GRAPH)(variables, 2 * images, LABELS, weights)
    assert captured == {}
    assert float(sums["loss"]) == pytest.approx(float(expected["loss"]))


def test_fresh_variables_compose_with_transforms():
    alone = init_variables(GRAPH, jax.random.key(1))
    many = jax.jit(jax.vmap(lambda key: init_variables(GRAPH, key)))(jax.random.split(jax.random.key(0), 2))
    shapes = jax.eval_shape(lambda key: init_variables(GRAPH, key), jax.random.key(1))
    assert set(alone) == {"params", "batch_stats", "scales"}
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], many) == jax.tree.map(jnp.shape, alone)
    kernel = many["params"]["conv2"]["kernel"]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0
    # He-normal over the fan-out: 9·9 taps to outputs.
    assert float(alone["params"]["conv2"]["kernel"].std()) == pytest.approx(np.sqrt(2 / 81), rel=0.15)


def test_a_network_without_quantizers_has_empty_scales():
    assert init_variables(graph_of(None), jax.random.key(0))["scales"] == {}


def test_what_is_not_finite_is_found():
    tree = {"a": jnp.ones((2, 3)), "b": [jnp.arange(3), jnp.float16(1)]}
    assert all_finite(tree)
    assert all_finite({})
    for odd in (jnp.nan, jnp.inf, -jnp.inf):
        assert not all_finite(tree | {"a": tree["a"].at[1, 2].set(odd)})

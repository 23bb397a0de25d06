"""Training and evaluation steps against the same computation by hand."""

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
from qpsnn_jax.runtime.keys import key_to_data
from qpsnn_jax.training.optim import optimizer
from qpsnn_jax.training.state import evaluation_variables, init_state, init_variables
from qpsnn_jax.training.steps import make_eval_step, make_train_step
from qpsnn_jax.training.trees import all_finite


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
LABELS = np.array([0, 2, 1, 1], np.int32)
KEY = jax.random.key(3)
TX = optimizer("sgd", 0.1, weight_decay=0.01)
STEP = jax.jit(make_train_step(GRAPH, TX))
AVERAGED = jax.jit(make_train_step(GRAPH, TX, ema_decay=0.75))


@pytest.fixture(scope="module")
def variables():
    return jax.device_put(random_variables(GRAPH))


@pytest.fixture(scope="module")
def images():
    return images_of(GRAPH, batch=4)


def close(tree, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    tree, expected = (jax.tree.map(key_to_data, each) for each in (tree, expected))
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
    assert after.key == KEY


def test_the_average_moves_by_its_decay(variables, images):
    state = init_state(variables, TX, KEY, ema=True)
    expected = jax.device_get({name: variables[name] for name in ("params", "batch_stats")})
    close(state.ema, expected)
    for _ in range(3):
        state, _ = AVERAGED(state, images, LABELS)
        fresh = jax.device_get({name: state.variables[name] for name in expected})
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, expected, fresh)
        close(state.ema, expected)
    close(evaluation_variables(state), {**expected, "scales": variables["scales"]})


def test_a_state_with_averages_of_a_network_without_batch_norm():
    graph = Graph((Input("image", (4, 4, 1)), Flatten("flat", "image"), Dense("fc", "flat", 3)), 2)
    variables = SpikingNetwork(graph).init(KEY, images_of(graph, 2))
    assert jax.tree.map(jnp.shape, init_state(variables, TX, KEY, ema=True).ema) == jax.tree.map(jnp.shape, variables)


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
    expected = [jax.random.fold_in(KEY, n) for n in (0, 1, 0)]
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
    currents = jax.jit(SpikingNetwork(GRAPH).apply)(variables, images).currents
    right = np.asarray(currents).mean(axis=1).argmax(axis=-1) == np.asarray(LABELS)
    losses = np.asarray(jax.jit(cross_entropy)(currents, LABELS))
    for weights in ([1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]):
        sums, captured = step(variables, images, LABELS, np.float32(weights))
        assert float(sums["count"]) == sum(weights)
        assert float(sums["correct"]) == (right * weights).sum()
        assert float(sums["loss"]) == pytest.approx((losses * weights).sum(), rel=1e-5)
        assert 0 < float(captured["lif1"]) < 1


def test_without_weights_every_example_counts_and_lists_are_labels(variables, images):
    step, labels = make_eval_step(GRAPH), [0, 1, 2, 0]
    counted, _ = step(variables, images[:4], jnp.array(labels), jnp.ones(4))
    found, _ = step(variables, images[:4], labels)
    close(found, counted)
    assert found["count"] == 4


def test_evaluation_prepares_its_images_and_captures_nothing_unasked(variables, images):
    images, weights = np.asarray(images), np.ones(4, np.float32)
    sums, captured = jax.jit(make_eval_step(GRAPH, prepare=lambda x: 2 * x))(variables, images, LABELS, weights)
    expected, _ = jax.jit(make_eval_step(GRAPH))(variables, 2 * images, LABELS, weights)
    assert captured == {}
    assert float(sums["loss"]) == pytest.approx(float(expected["loss"]))


def test_fresh_variables_compose_with_transforms():
    alone = init_variables(GRAPH, jax.random.key(1))
    many = jax.jit(jax.vmap(lambda key: init_variables(GRAPH, key)))(jax.random.split(jax.random.key(0), 2))
    shapes = jax.eval_shape(lambda key: init_variables(GRAPH, key), jax.random.key(1))
    assert set(alone) == {"params", "batch_stats", "scales"}
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], many) == jax.tree.map(jnp.shape, alone)
    kernel = np.asarray(many["params"]["conv2"]["kernel"])
    assert np.abs(kernel[0] - kernel[1]).max() > 0
    # He-normal over the fan-out: 9·9 taps to outputs.
    assert np.std(np.asarray(alone["params"]["conv2"]["kernel"])) == pytest.approx(np.sqrt(2 / 81), rel=0.15)


def test_a_network_without_quantizers_has_empty_scales():
    assert init_variables(graph_of(None), jax.random.key(0))["scales"] == {}


def test_what_is_not_finite_is_found():
    tree = {"a": jnp.ones((2, 3)), "b": [jnp.arange(3), jnp.float16(1)]}
    assert all_finite(tree)
    assert all_finite({})
    for odd in (jnp.nan, jnp.inf, -jnp.inf):
        assert not all_finite(tree | {"a": tree["a"].at[1, 2].set(odd)})


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_stay_what_they_are(variables, images, impl):
    key = jax.random.key(3, impl=impl)
    expected = noise(jax.random.fold_in(key, 0), images)
    state, metrics = jax.jit(make_train_step(GRAPH, TX, prepare=noise))(init_state(variables, TX, key), images, LABELS)
    _, without = STEP(init_state(variables, TX, KEY), expected, LABELS)
    assert jax.random.key_impl(state.key) == impl
    np.testing.assert_allclose(metrics["loss"], without["loss"], rtol=1e-5)
    assert np.std(np.asarray(init_variables(GRAPH, key)["params"]["conv1"]["kernel"])) > 0


def test_a_raw_key_is_one_of_the_default_implementation(variables):
    assert init_state(variables, TX, jax.random.key_data(KEY)).key == KEY


def test_a_label_that_is_not_a_class_makes_the_loss_nan(variables, images):
    for wrong in (3, -1):
        _, metrics = STEP(init_state(variables, TX, KEY), images, np.array([0, wrong, 1, 1], np.int32))
        assert np.isnan(metrics["loss"])
    evaluate = jax.jit(make_eval_step(GRAPH))
    for weights, expected in ([1, 1, 1, 1], True), ([1, 0, 1, 1], False):
        sums, _ = evaluate(variables, images, np.array([0, -1, 1, 1], np.int32), np.float32(weights))
        assert np.isnan(sums["loss"]) == expected


def test_a_batch_that_cannot_be_learned_from_is_named(variables, images):
    state = init_state(variables, TX, KEY)
    step = make_train_step(GRAPH, TX)
    for x, y in ((images[:0], LABELS[:0]), (images, LABELS[:3]), (images, jnp.eye(4))):
        with pytest.raises(ValueError, match=r"a batch needs images b … and labels b, one or more, got the shapes"):
            jax.eval_shape(step, state, x, y)
    for loss in (lambda *_: jnp.float32(1), lambda currents, _: currents[:, 0]):
        with pytest.raises(ValueError, match="loss must give one number per example"):
            jax.eval_shape(make_train_step(GRAPH, TX, loss=loss), state, images, LABELS)
        with pytest.raises(ValueError, match="loss must give one number per example"):
            jax.eval_shape(make_eval_step(GRAPH, loss=loss), variables, images, LABELS, jnp.ones(4))


def test_a_batch_that_the_optimizer_rejects_leaves_no_trace(variables, images):
    tx = optax.apply_if_finite(TX, 3)
    step = jax.jit(make_train_step(GRAPH, tx, ema_decay=0.75))
    before, _ = step(init_state(variables, tx, KEY, ema=True), images, LABELS)
    damaged = np.array(images)
    damaged[0, 0, 0, 0] = np.nan
    after, _ = step(before, damaged, LABELS)
    close((after.variables, after.ema), (before.variables, before.ema), rtol=0, atol=0)
    assert (int(after.step), int(after.opt_state.total_notfinite)) == (2, 1)
    expected, _ = step(before._replace(step=jnp.int32(2)), images, LABELS)
    close(step(after, images, LABELS)[0].ema, expected.ema, rtol=0, atol=0)


def test_the_average_counts_updates_and_not_the_batches_they_take(variables, images):
    """An update from two batches equals one from a batch with their mean gradient, for parameters and their average."""
    tx = optax.sgd(0.1)
    several = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    start, alone = (init_state(variables, each, KEY, ema=True) for each in (several, tx))
    with jax.numpy_dtype_promotion("standard"):
        step = jax.jit(make_train_step(GRAPH, several, ema_decay=0.75))
        half, _ = step(start, images, LABELS)
        done, _ = step(half, images, LABELS)
    close((half.variables["params"], half.ema), (variables["params"], start.ema), rtol=0, atol=0)
    alone, _ = jax.jit(make_train_step(GRAPH, tx, ema_decay=0.75))(alone, images, LABELS)
    close((done.variables["params"], done.ema["params"]), (alone.variables["params"], alone.ema["params"]))
    assert int(done.step) == 2


@pytest.mark.parametrize("name", ["prodigy", "cocob", "dog"])
def test_states_that_begin_as_the_parameters_can_be_donated(images, name):
    tx = getattr(optax.contrib, name)()
    make, step = partial(init_state, tx=tx, ema=True), make_train_step(GRAPH, tx)
    donated = jax.jit(step, donate_argnums=0)
    with jax.numpy_dtype_promotion("standard"):
        found = []
        for init in (make, jax.jit(make)):
            state = init(jax.device_put(random_variables(GRAPH)), key=KEY)
            found.append(jax.device_get(donated(state, images, LABELS)[0]))
            assert state.variables["params"]["conv1"]["kernel"].is_deleted()
    close(*found, rtol=0, atol=0)
    assert found[0].step == 1
    assert not KEY.is_deleted()


def test_optimizers_that_ask_for_the_loss_get_it(variables, images):
    """Plateau, Polyak's step and a line search, each against the same optimizer with its arguments given by hand."""

    def objective(params):
        whole = {**variables, "params": params}
        output, _ = SpikingNetwork(GRAPH).apply(whole, images, train=True, mutable=["batch_stats"])
        return cross_entropy(output.currents, LABELS).mean()

    params = variables["params"]
    value, gradients = jax.jit(jax.value_and_grad(objective))(params)
    given = {"value": value, "grad": gradients, "value_fn": objective}
    chosen = {
        "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=1)),
        "polyak": optax.polyak_sgd(max_learning_rate=0.5),
        "search": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    }
    for tx in chosen.values():
        with jax.numpy_dtype_promotion("standard"):
            after, _ = jax.jit(make_train_step(GRAPH, tx))(init_state(variables, tx, KEY), images, LABELS)
            changes, _ = jax.jit(lambda tx=tx: tx.update(gradients, tx.init(params), params, **given))()
        close(after.variables["params"], optax.apply_updates(params, changes))


def test_fresh_variables_with_the_key_of_a_program_around_them():
    key = jax.random.key(1)
    alone = init_variables(GRAPH, key)

    def kernel(x):
        return init_variables(GRAPH, key)["params"]["conv1"]["kernel"] * x

    expected = alone["params"]["conv1"]["kernel"]
    close(jax.jit(kernel)(1.0), expected, atol=0)
    close(jax.vmap(kernel)(jnp.ones(2))[1], expected, atol=0)
    close(jax.lax.scan(lambda _, x: (None, kernel(x)), None, jnp.ones(2))[1][1], expected, atol=0)
    assert jax.eval_shape(kernel, 1.0).shape == expected.shape
    exported = jax.export.export(jax.jit(kernel))(jax.ShapeDtypeStruct((), jnp.float32))
    close(exported.call(1.0), expected, atol=0)


def test_fresh_variables_are_compiled_once_for_a_graph(caplog):
    graph = Graph((*GRAPH.nodes[:-1], Dense("fc", "flatten", 4)), timesteps=2)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        first, second = (init_variables(graph, jax.random.key(seed)) for seed in (0, 1))
    assert caplog.text.count("Finished XLA compilation of jit(_init)") == 1
    assert np.any(np.not_equal(first["params"]["fc"]["kernel"], second["params"]["fc"]["kernel"]))


def test_fresh_variables_are_float32_in_double_precision():
    with jax.enable_x64(True):
        variables = jax.eval_shape(partial(init_variables, GRAPH), jax.random.key(1))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        state = jax.eval_shape(partial(init_state, tx=TX, ema=True), variables, key=KEY)
        after = jax.eval_shape(make_train_step(GRAPH, TX), state, images_of(GRAPH, 4), LABELS)[0]
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)

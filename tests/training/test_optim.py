"""Schedules against their formulas, optimizers against plain NumPy loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qpsnn_jax.training.optim import cosine_schedule, optimizer

PARAMS = {
    "conv": {"kernel": np.arange(1, 9, dtype=np.float32).reshape(1, 2, 2, 2), "bias": np.float32([1, -2])},
    "bn": {"scale": np.float32([1.5, 0.5])},
    "fc": {"kernel": np.float32([[1, 2], [3, -4]])},
}


def gradients(count: int) -> list:
    draw = np.random.default_rng(0)
    return [jax.tree.map(lambda leaf: np.float32(draw.normal(size=leaf.shape)), PARAMS) for _ in range(count)]


def trained(tx: optax.GradientTransformation, steps: list) -> dict:
    @jax.jit
    def update(params, state, gradient):
        changes, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, changes), state

    params, state = PARAMS, tx.init(PARAMS)
    for gradient in steps:
        params, state = update(params, state, gradient)
    return params


def close(tree: dict, expected: dict, rtol: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), tree, expected)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
def test_cosine_holds_for_an_epoch_and_warms_up_by_the_step(warmup):
    schedule = cosine_schedule(0.1, epochs=10, steps_per_epoch=4, warmup_epochs=warmup)
    for step in range(44):
        decay = 0.05 * (1 + np.cos(np.pi * min(step // 4, 10) / 10))
        rise = min(1, (step + 1) / (4 * warmup)) if warmup else 1
        assert float(schedule(step)) == pytest.approx(decay * rise, abs=1e-7)


def test_cosine_works_inside_jit():
    schedule = cosine_schedule(0.1, epochs=10, steps_per_epoch=4, warmup_epochs=1.0)
    assert float(jax.jit(schedule)(jnp.int32(1))) == pytest.approx(0.1 * 2 / 4)
    assert schedule(jnp.int32(7)).dtype == jnp.float32


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_the_textbook_loop_with_coupled_decay_of_convolutions(nesterov):
    steps, decay, momentum = gradients(4), 0.3, 0.8
    tx = optimizer("sgd", 0.05, momentum=momentum, nesterov=nesterov, weight_decay=decay)

    def loop(path, leaf):
        velocity = np.zeros(leaf.shape)
        weight = np.asarray(leaf, np.float64)
        for step in steps:
            gradient = np.asarray(step[path[0].key][path[1].key], np.float64)
            if path[0].key == "conv" and path[1].key == "kernel":
                gradient = gradient + decay * weight
            velocity = momentum * velocity + gradient
            weight = weight - 0.05 * (gradient + momentum * velocity if nesterov else velocity)
        return weight

    close(trained(tx, steps), jax.tree_util.tree_map_with_path(loop, PARAMS))


def test_adam_takes_the_decay_into_its_moments():
    steps, decay = gradients(5), 0.3

    def loop(path, leaf):
        first, second, weight = np.zeros(leaf.shape), np.zeros(leaf.shape), np.asarray(leaf, np.float64)
        for count, step in enumerate(steps, 1):
            gradient = np.asarray(step[path[0].key][path[1].key], np.float64)
            if leaf.ndim == 4:
                gradient = gradient + decay * weight
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            weight = weight - 0.05 * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        return weight

    close(trained(optimizer("adam", 0.05, weight_decay=decay), steps), jax.tree_util.tree_map_with_path(loop, PARAMS))


def test_only_convolution_kernels_decay():
    still = [jax.tree.map(np.zeros_like, PARAMS)]
    after = trained(optimizer("sgd", 1.0, momentum=0.0, nesterov=False, weight_decay=0.1), still)
    close(after["conv"].pop("kernel"), 0.9 * PARAMS["conv"]["kernel"])
    rest = {"conv": {"bias": PARAMS["conv"]["bias"]}, "bn": PARAMS["bn"], "fc": PARAMS["fc"]}
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after, rest))


@pytest.mark.parametrize(("bound", "factor"), [(1e9, 1.0), (0.5, None)])
def test_the_gradient_is_clipped_by_its_global_norm_before_the_decay(bound, factor):
    (gradient,) = gradients(1)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient)))
    factor = factor or bound / norm
    tx = optimizer("sgd", 1.0, momentum=0.0, nesterov=False, weight_decay=0.1, clip_norm=bound)
    expected = jax.tree.map(lambda w, g: w - factor * g - (0.1 * w if w.ndim == 4 else 0), PARAMS, gradient)
    close(trained(tx, [gradient]), expected)


def test_the_schedule_drives_the_optimizer():
    rates = [0.05 * (1 + np.cos(np.pi * epoch / 2)) for epoch in (0, 0, 1, 1)]
    tx = optimizer("sgd", cosine_schedule(0.1, epochs=2, steps_per_epoch=2), momentum=0.0, nesterov=False)
    ones = jax.tree.map(np.ones_like, PARAMS)
    close(trained(tx, [ones] * 4), jax.tree.map(lambda w: w - sum(rates), PARAMS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"epochs": 0},
        {"steps_per_epoch": 0},
        {"warmup_epochs": -1.0},
    ],
)
def test_wrong_schedules_raise(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        cosine_schedule(**{"learning_rate": 0.1, "epochs": 2, "steps_per_epoch": 2} | wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("rmsprop", {}, "must be sgd or adam"),
        ("sgd", {"weight_decay": -1e-3}, "weight_decay must not be negative"),
        ("adam", {"clip_norm": 0.0}, "clip_norm and scale_lr positive"),
    ],
)
def test_wrong_optimizers_raise(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        optimizer(name, 0.1, **wrong)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("option", ["learning_rate", "weight_decay", "clip_norm", "momentum", "warmup_epochs"])
def test_numbers_can_be_mapped_over(name, option):
    """One program for several values equals the results of single values."""
    values, steps = np.array([0.25, 0.5], np.float32), gradients(2)

    def after(value):
        chosen = {"learning_rate": 0.1, "weight_decay": 0.3, "clip_norm": 1.0} | {option: value}
        warmup = chosen.pop("warmup_epochs", 0.0)
        rate = cosine_schedule(chosen.pop("learning_rate"), epochs=2, steps_per_epoch=4, warmup_epochs=warmup)
        return trained(optimizer(name, rate, **chosen), steps)

    found = jax.device_get(jax.jit(jax.vmap(after))(values))
    close(jax.tree.map(lambda x: x[1], found), after(float(values[1])))
    if (name, option) != ("adam", "momentum"):  # which has moments of its own
        assert np.any(found["conv"]["kernel"][0] != found["conv"]["kernel"][1])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_numbers_can_be_changed_while_training(name):
    steps, options = gradients(3), {"weight_decay": 0.3, "clip_norm": 1.0}
    tx = optax.inject_hyperparams(optimizer)(name, 0.1, **options)
    params, state = PARAMS, tx.init(PARAMS)
    plain = optimizer(name, 0.1, **options)
    expected, inner = PARAMS, plain.init(PARAMS)

    @partial(jax.jit, static_argnums=0)
    def update(tx, gradient, state, params, scale):
        changes, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda x: scale * x, changes)), state

    for number, gradient in enumerate(steps):
        if number == 2:
            state.hyperparams["learning_rate"] = jnp.float32(0.01)
        params, state = update(tx, gradient, state, params, 1.0)
        expected, inner = update(plain, gradient, inner, expected, 0.1 if number == 2 else 1.0)
    close(params, expected)


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_no_warm_up_and_one_that_is_over_at_once_are_the_same(warmup):
    def rate(warmup):
        return cosine_schedule(0.1, epochs=2, steps_per_epoch=4, warmup_epochs=warmup)(jnp.int32(0))

    assert float(rate(warmup)) == float(jax.jit(rate)(warmup)) == pytest.approx(0.1)

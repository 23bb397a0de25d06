"""Second derivatives of a whole quantized network and derivatives of a training step, against one made of primitives.

Its steps are written as ``constant + smooth - stop_gradient(smooth)``: the values of spikes and levels, and the
derivatives of any order and in any mode of the function in their place. It has no custom rule and no loop of JAX's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_networks import images_of, random_variables

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input, Quantizer
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.training.state import init_state
from qpsnn_jax.training.steps import make_eval_step, make_train_step

BITS, SLOPE, LABELS = 2, 4.0, np.array([0, 2, 1], np.int32)
GRAPH = Graph(
    (
        Input("image", (3, 3, 2)),
        Conv("stem", "image", 4),
        BatchNorm("bn", "stem"),
        LIF("lif", "bn", surrogate="sigmoid"),
        Conv("conv", "lif", 4, quantizer=Quantizer(BITS, "max")),
        LIF("lif2", "conv", surrogate="sigmoid"),
        Flatten("flat", "lif2"),
        Dense("fc", "flat", 3),
    ),
    timesteps=3,
)
IMAGES = images_of(GRAPH, batch=3)
VARIABLES = jax.device_put(random_variables(GRAPH, seed=2))
PARAMS, DIRECTION = VARIABLES["params"], jax.device_put(random_variables(GRAPH, seed=3)["params"])


def in_place_of(value, smooth):
    """``value``, with the derivatives of ``smooth``."""
    return jax.lax.stop_gradient(value - smooth) + smooth


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def fired(currents):
    """Spikes of each step of currents ``t b …``: a leak of a half, a hard reset."""
    spikes, membrane = [], jnp.zeros_like(currents[0])
    for current in currents:
        membrane = 0.5 * membrane + current
        spike = in_place_of((membrane >= 1).astype(jnp.float32), jax.nn.sigmoid(SLOPE * (membrane - 1)))
        membrane = membrane * (1 - spike)
        spikes.append(spike)
    return spikes


def quantized(weights, gain):
    gamma, top = jax.lax.stop_gradient(gain * jnp.max(jnp.abs(weights))), 2**BITS - 1
    level = gamma * (2 * jnp.round(top / 2 * (jnp.clip(weights / gamma, -1, 1) + 1)) / top - 1)
    return in_place_of(level, jnp.clip(weights, -gamma, gamma))


@jax.numpy_rank_promotion("allow")
def oracle(params):
    """The loss in training."""
    x = convolved(IMAGES, params["stem"]["kernel"])
    mean = jnp.mean(x, (0, 1, 2))
    variance = jnp.mean((x - mean) ** 2, (0, 1, 2))
    x = (x - mean) / jnp.sqrt(variance + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    kernel = quantized(params["conv"]["kernel"], VARIABLES["scales"]["conv"]["gain"][0])
    spikes = fired([convolved(spike, kernel) for spike in fired([x] * GRAPH.timesteps)])
    outputs = [s.reshape(len(IMAGES), -1) @ params["fc"]["kernel"] + params["fc"]["bias"] for s in spikes]
    logs = jax.nn.log_softmax(sum(outputs) / len(outputs))
    return -jnp.mean(logs[jnp.arange(len(LABELS)), LABELS])


def loss_of(params):
    apply = partial(SpikingNetwork(GRAPH).apply, train=True, mutable=["batch_stats"])
    output, _ = apply(VARIABLES | {"params": params}, IMAGES)
    return jnp.mean(cross_entropy(output.currents, LABELS))


def close(tree, other, tolerance=1e-4):
    """The largest difference, relative to the largest value of each array."""
    for a, b in zip(*(jax.tree.leaves(jax.device_get(each)) for each in (tree, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (np.abs(b).max() + 1e-6))


def dot(tree, other):
    return optax.tree.vdot(tree, other)


def numpy_dot(tree, other):
    return sum(map(np.vdot, jax.tree.leaves(tree), jax.tree.leaves(other)))


def test_products_with_the_hessian_are_those_of_forward_over_reverse():
    @jax.jit
    def found(params):
        value, gradient = jax.value_and_grad(loss_of)(params)
        return value, gradient, jax.grad(lambda p: dot(jax.grad(loss_of)(p), DIRECTION))(params)

    @jax.jit
    def expected(params):
        gradient, product = jax.jvp(jax.grad(oracle), (params,), (DIRECTION,))
        return oracle(params), gradient, product

    found, expected = found(PARAMS), expected(PARAMS)
    close(found, expected, 1e-3)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(jax.device_get(expected[1:])))


def descended(params, learning_rate):
    """The params after one step of training."""
    tx = optax.sgd(learning_rate)
    state = init_state(VARIABLES | {"params": params}, tx, jax.random.key(0))
    after, metrics = make_train_step(GRAPH, tx)(state, IMAGES, LABELS)
    return after.variables["params"], metrics["loss"]


def test_the_loss_after_a_step_by_its_learning_rate_and_by_its_parameters():
    """MAML: a derivative through the step, of which JAX before 0.12 lost a part."""

    def after(learning_rate, params):
        moved, before = descended(params, learning_rate)
        return loss_of(moved) + before

    def expected_after(learning_rate, params):
        value, gradient = jax.value_and_grad(oracle)(params)
        return oracle(jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)) + value

    found = jax.jit(jax.value_and_grad(after, argnums=(0, 1)))(0.1, PARAMS)
    expected = jax.jit(jax.value_and_grad(expected_after, argnums=(0, 1)))(0.1, PARAMS)
    close(found, expected, 1e-3)
    # In the one direction that moves with the learning rate, the gradient of the moved params is enough.
    slope_of = jax.jit(jax.grad(oracle))
    params, gradient = jax.device_get((PARAMS, slope_of(PARAMS)))
    moved = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, params, gradient)
    slope = -numpy_dot(jax.device_get(slope_of(moved)), gradient)
    np.testing.assert_allclose(found[1][0], slope, rtol=1e-3)
    assert slope < -0.01


def test_a_step_in_bfloat16_is_that_of_float32_but_for_rounding():
    tx = optax.sgd(0.1, momentum=0.9)
    state, step = init_state(VARIABLES, tx, jax.random.key(0), ema=True), make_train_step(GRAPH, tx)
    (half, metrics), (whole, expected) = (
        jax.jit(step)(state, np.asarray(IMAGES).astype(dtype), LABELS) for dtype in (jnp.bfloat16, np.float32)
    )
    assert jax.tree.map(lambda x: x.dtype, half) == jax.tree.map(lambda x: x.dtype, whole)
    assert metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.05)
    params = [jax.device_get(each.variables["params"]) for each in (half, whole)]
    moved, wanted = (jax.tree.map(np.subtract, each, jax.device_get(PARAMS)) for each in params)
    assert numpy_dot(moved, wanted) > 0.9 * np.sqrt(numpy_dot(moved, moved) * numpy_dot(wanted, wanted))


def test_a_pixel_of_nan_makes_the_loss_nan():
    images, tx = np.array(IMAGES), optax.sgd(0.1)
    images[1, 0, 2, 1] = np.nan
    _, metrics = jax.jit(make_train_step(GRAPH, tx))(init_state(VARIABLES, tx, jax.random.key(0)), images, LABELS)
    assert np.isnan(metrics["loss"])
    evaluate = jax.jit(make_eval_step(GRAPH))
    for weights, expected in (
        ([1, 1, 1], True),
        ([1, 0, 1], False),
    ):  # the loss of an example depends on that example only
        sums, _ = evaluate(VARIABLES, images, LABELS, np.float32(weights))
        assert np.isnan(sums["loss"]) == expected

"""The layers in a user's Flax module, against a graph with the same arrays, and in NNX."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_networks import images_of, random_variables

import qpsnn_jax as qp
from qpsnn_jax import Graph
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input

OPTIONS = {"tau": 0.6, "threshold": 0.8, "fire": ">", "reset": "soft", "surrogate": qp.sigmoid}
FIRST, SECOND = qp.Quantizer(3, granularity="channel"), qp.Quantizer(4, gamma="max", ste="plain")


class Net(nn.Module):
    """Frames, so that every layer has a time axis, as the graph below."""

    precision: str = "auto"

    @nn.compact
    def __call__(self, frames, *, train=False):
        x = qp.QuantConv(6, (3, 2), (2, 1), (1, 0), None, bias=True)(frames)
        x = qp.LIFLayer(**OPTIONS, precision=self.precision)(qp.BatchNorm(0.8, 1e-3)(x, train=train))
        x = qp.QuantConv(6, quantizer=FIRST, groups=3, dilation=(1, 2), spiking=True, precision=self.precision)(x)
        x = qp.LIFLayer(0.5, 0.3, precision=self.precision)(qp.BatchNorm()(x, train=train))
        return qp.QuantDense(3, SECOND)(x.reshape(*x.shape[:2], -1))


NAMES = {
    "conv1": "QuantConv_0",
    "bn1": "BatchNorm_0",
    "conv2": "QuantConv_1",
    "bn2": "BatchNorm_1",
    "fc": "QuantDense_0",
}


def graph() -> Graph:
    nodes = (
        Input("frames", (6, 5, 2), frames=True),
        Conv("conv1", "frames", 6, (3, 2), (2, 1), (1, 0), bias=True),
        BatchNorm("bn1", "conv1", 0.8, 1e-3),
        LIF("lif1", "bn1", **OPTIONS),
        Conv("conv2", "lif1", 6, quantizer=FIRST, groups=3, dilation=(1, 2)),
        BatchNorm("bn2", "conv2"),
        LIF("lif2", "bn2", 0.5, 0.3),
        Flatten("flat", "lif2"),
        Dense("fc", "flat", 3, SECOND),
    )
    return Graph(nodes, timesteps=3)


GRAPH = graph()
FRAMES = images_of(GRAPH)
VARIABLES = jax.tree.map(jnp.asarray, random_variables(GRAPH))


def as_layers(variables):
    return {kind: {NAMES[node]: leaves for node, leaves in held.items()} for kind, held in variables.items()}


@pytest.mark.parametrize(("train", "precision"), [(False, "auto"), (True, "exact")])
def test_layers_are_the_nodes(train, precision):
    def by(network, variables):
        def loss(params):
            tree = variables | {"params": params}
            output, updates = network.apply(tree, FRAMES, train=train, mutable=["batch_stats"])
            return jnp.sum(jnp.square(currents := getattr(output, "currents", output))), (currents, updates)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    (_, (expected, stats)), gradients = by(qp.SpikingNetwork(GRAPH, precision), VARIABLES)
    (_, (found, own_stats)), own_gradients = by(Net(precision), as_layers(VARIABLES))
    np.testing.assert_array_equal(found, expected)
    assert np.ptp(expected) > 0.1
    # Sums over the batch may be taken in another order.
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, own_stats, as_layers(stats))
    jax.tree.map(close, own_gradients, as_layers({"params": gradients})["params"])
    moved = np.not_equal(*(tree["batch_stats"]["bn1"]["mean"] for tree in (stats, VARIABLES)))
    assert np.all(moved) if train else not np.any(moved)


def test_fresh_layers_have_the_arrays_of_the_nodes():
    fresh, nodes = (jax.eval_shape(n.init, jax.random.key(0), FRAMES) for n in (Net(), qp.SpikingNetwork(GRAPH)))
    assert fresh == as_layers(nodes)
    layer = qp.QuantConv(64, (1, 1), padding=(0, 0))
    wide = jax.jit(layer.init)(jax.random.key(0), np.ones((1, 2, 2, 256), np.float32))
    np.testing.assert_allclose(np.std(wide["params"]["kernel"]), np.sqrt(2 / 64), rtol=0.03)
    np.testing.assert_array_equal(wide["scales"]["gain"], [1])


def test_a_static_image_and_a_flat_input_have_no_time():
    image, flat = np.asarray(FRAMES)[:, 0], np.asarray(FRAMES).reshape(6, -1)
    for layer, x in ((qp.QuantConv(4), image), (qp.QuantDense(4), flat)):

        @jax.jit
        def results(key, x, layer=layer):
            variables = layer.init(key, x)
            return layer.apply(variables, x), layer.apply(variables, x[:, None])[:, 0]

        alone, timed = results(jax.random.key(0), x)
        np.testing.assert_allclose(timed, alone, rtol=1e-6)
        assert alone.shape == (*x.shape[:-1], 4)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (qp.QuantConv(0), (1, 4, 4, 2), "QuantConv': features must be an integer"),
        (qp.QuantConv(3, (5, 5), padding=(0, 0)), (1, 4, 4, 2), r"a window of \(5, 5\) does not fit"),
        (qp.QuantConv(3), (4, 4), "must have the shape b h w i or b t h w i, got"),
        (qp.QuantConv(3, precision="quick"), (1, 4, 4, 2), "precision must be"),
        (qp.QuantDense(3), (1, 4, 4, 2), "must have the shape b i or b t i, got"),
        (qp.BatchNorm(epsilon=-1.0), (1, 2), "BatchNorm': epsilon must be"),
        (qp.LIFLayer(tau=float("nan")), (1, 2, 3), "LIFLayer': tau must be"),
        (qp.LIFLayer(surrogate="step"), (1, 2, 3), "surrogate must be one of"),
        (qp.LIFLayer(tau=2.0), (1, 2, 3), "LIFLayer': tau must be a number from 0 to 1, got 2.0"),
        (qp.LIFLayer(), (2, 3), r"currents must have the shape b t … c, got \(2, 3\)"),
        (qp.QuantConv(3, bias="no"), (1, 4, 4, 2), "QuantConv': bias must be True or False"),
    ],
)
def test_mistakes(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), np.ones(shape, np.float32))


@pytest.mark.parametrize(("granularity", "shape"), [("layer", (1,)), ("channel", (4,))])
def test_learned_leaks_are_those_of_the_layer_or_of_each_channel(granularity, shape):
    layer = qp.LIFLayer(tau="learned", threshold="learned", granularity=granularity)
    variables = layer.init(jax.random.key(0), jnp.ones((1, 2, 4)))
    assert jax.tree.map(jnp.shape, variables["params"]) == {"tau_logit": shape, "log_threshold": shape}


@pytest.mark.parametrize("layer", [qp.QuantConv(3, spiking=True), qp.QuantDense(3), qp.LIFLayer()])
@pytest.mark.parametrize("dtype", [bool, np.int8])
def test_spikes_of_other_dtypes(layer, dtype):
    x = np.ones((1, 4, 4, 2) if isinstance(layer, qp.QuantConv) else (1, 4, 2), dtype)[..., :2]
    with pytest.raises(ValueError, match="the input must be floating, got"):
        layer.init(jax.random.key(0), x)


def test_layers_in_nnx():
    """The recipe of the module's docstring, on another network."""
    net = nnx.jit(lambda: nnx.bridge.ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(FRAMES))()
    nnx.update(net, nnx_state(net, as_layers(VARIABLES)))
    labels = jnp.arange(2)

    def loss_of(net):
        return qp.cross_entropy(net(FRAMES, train=True, mutable=["batch_stats"]), labels).mean()

    @nnx.jit
    def step(net, optimizer):
        loss, gradients = nnx.value_and_grad(loss_of)(net)
        optimizer.update(net, gradients)
        return loss

    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    losses = [step(net, optimizer) for _ in range(5)]

    # The same steps of the graph.
    tx = optax.sgd(0.1)
    state, train = qp.init_state(VARIABLES, tx, jax.random.key(0)), jax.jit(qp.make_train_step(GRAPH, tx))
    expected = []
    for _ in range(5):
        state, metrics = train(state, FRAMES, labels)
        expected.append(metrics["loss"])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0]
    found = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    wanted = as_layers({"batch_stats": state.variables["batch_stats"]})["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)


def nnx_state(net, variables):
    state = nnx.state(net, nnx.Not(nnx.RngState))
    values = dict(variables["params"])
    for collection in ("batch_stats", "scales"):
        for module, leaves in variables[collection].items():
            values[module] = values[module] | leaves
    nnx.replace_by_pure_dict(state, values)
    return state

"""Scales that are trained: a learned γ starts at the least squared error, follows LSQ, and reaches every export."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax import (
    Config,
    Graph,
    LIFLayer,
    NetworkSettings,
    Quantizer,
    SpikingNetwork,
    channel_groups,
    cost,
    fold,
    init_state,
    init_variables,
    lif,
    lsq_gamma,
    make_train_step,
    nir_graph,
    optimizer,
    prune,
    quantize,
)
from qpsnn_jax.model.graph import from_json, to_json
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, GlobalAveragePool, Input
from qpsnn_jax.runs.config import build_graph

LAYER, CHANNEL = Quantizer(2, "learned"), Quantizer(3, "learned", "channel")


def chain(quantizer: Quantizer | None) -> Graph:
    nodes = (
        Input("image", (4, 4, 1)),
        Conv("stem", "image", 3),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0"),
        Conv("conv", "lif0", 5, quantizer=quantizer),
        BatchNorm("bn1", "conv"),
        LIF("lif1", "bn1"),
        GlobalAveragePool("pool", "lif1"),
        Dense("fc", "pool", 2),
    )
    return Graph(nodes, timesteps=2)


@pytest.mark.parametrize(("quantizer", "shape"), [(LAYER, (1,)), (CHANNEL, (5,))])
def test_gamma_starts_at_the_least_squared_error(quantizer, shape):
    variables = init_variables(chain(quantizer), jax.random.key(0))
    leaves = variables["params"]["conv"]
    assert leaves["gamma"].shape == shape
    assert variables["scales"] == {}
    kernel = np.asarray(leaves["kernel"])
    quantized = jax.jit(lambda kernel, gamma: quantize(kernel, quantizer.bits, gamma=gamma))

    def error(gamma: np.ndarray) -> np.ndarray:
        axes = (0, 1, 2) if len(shape := leaves["gamma"].shape) and shape[0] > 1 else None
        return np.square(kernel - np.asarray(quantized(kernel, gamma))).sum(axes)

    start = np.asarray(leaves["gamma"])
    best = error(start)
    for factor in np.linspace(0.5, 1.5, 21, dtype=np.float32):
        assert (best <= error(start * factor) + 1e-5).all()


def test_the_rule_of_lsq_by_hand():
    """Esser et al., Eq. 3 and section 2.2, on the grid of odd levels, element by element."""
    draw = np.random.default_rng(0)
    weights, upstream, gamma, top = draw.normal(size=40), draw.normal(size=40), 0.8, 7
    levels = np.arange(-top, top + 1, 2) * gamma / top
    total = 0.0
    for w, g in zip(weights, upstream, strict=True):
        nearest = levels[np.argmin(np.abs(levels - np.clip(w, -gamma, gamma)))]
        total += g * (nearest / gamma - (w / gamma if abs(w) <= gamma else 0))
    expected = total / np.sqrt(40 * 4)

    def loss(raw):
        scale = lsq_gamma(raw, count=40, bits=3)
        return jnp.vdot(upstream.astype(np.float32), quantize(weights.astype(np.float32), 3, gamma=scale))

    slope = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(slope(gamma), expected, rtol=1e-4)
    # A step across 0 leaves the grid as it was, mirrored.
    np.testing.assert_allclose(slope(-gamma), -expected, rtol=1e-4)
    assert jax.jit(lambda raw: lsq_gamma(raw, count=7, bits=1))(np.float32(0.3)) == np.float32(0.3)
    with pytest.raises(ValueError, match="count must be an integer, 1 or more"):
        lsq_gamma(jnp.ones(1), count=0, bits=1)


@pytest.mark.parametrize("bits", [1, 2])
def test_equal_weights_and_weights_of_zero_train_to_finite_numbers(bits):
    graph = chain(Quantizer(bits, "learned"))
    for value in (0.5, 0.0):
        variables = jax.tree.map(jnp.asarray, random_variables(graph))
        kernel = jnp.full_like(variables["params"]["conv"]["kernel"], value)
        start = Quantizer(bits, "learned").gamma_of(kernel).ravel()
        np.testing.assert_allclose(start, value, rtol=1e-6)
        variables["params"]["conv"] = {"kernel": kernel, "gamma": start}
        tx = optimizer("sgd", 0.1)
        state, metrics = jax.jit(make_train_step(graph, tx))(
            init_state(variables, tx, jax.random.key(0)), images_of(graph), jnp.zeros(2, jnp.int32)
        )
        assert np.isfinite(metrics["loss"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))


def test_gamma_has_a_learning_rate_of_its_own_and_no_decay():
    params = {"conv": {"kernel": jnp.ones((1, 1, 2, 2)), "gamma": jnp.ones(1)}, "bn": {"scale": jnp.ones(2)}}
    gradients = jax.tree.map(jnp.ones_like, params)
    changes = {}
    for factor in (1.0, 0.25):
        tx = optimizer("sgd", 0.1, momentum=0.0, nesterov=False, weight_decay=0.5, scale_lr=factor)
        changes[factor] = tx.update(gradients, tx.init(params), params)[0]
    np.testing.assert_allclose(changes[1.0]["conv"]["gamma"], -0.1)
    np.testing.assert_allclose(changes[0.25]["conv"]["gamma"], -0.025)
    for found in changes.values():
        np.testing.assert_allclose(found["conv"]["kernel"], -0.15)
        np.testing.assert_allclose(found["bn"]["scale"], -0.1)
    with pytest.raises(ValueError, match="scale_lr positive"):
        optimizer("sgd", 0.1, scale_lr=0.0)


@pytest.mark.parametrize("quantizer", [LAYER, CHANNEL], ids=["layer", "channel"])
def test_pruning_carries_gamma_and_the_integers_stay(quantizer):
    graph = residual_graph(quantizer)
    variables = random_variables(graph)
    keep = {name: range(0, group.size, 2) for name, group in channel_groups(graph).items() if group.label}
    smaller, pruned = prune(graph, variables, keep)
    before, after = (v["params"]["conv3"] for v in (variables, pruned))
    channelwise = quantizer.granularity == "channel"
    np.testing.assert_array_equal(after["gamma"], before["gamma"][::2] if channelwise else before["gamma"])
    integers = jax.jit(lambda *trees: [quantizer.integer_weights(tree["kernel"], tree["gamma"])[0] for tree in trees])
    whole, left = map(np.asarray, integers(before, after))
    np.testing.assert_array_equal(left, whole[:, :, ::2, ::2])
    gammas = sum(leaf.size for name, leaf in _leaves(smaller) if name == "gamma")
    rule = prune(residual_graph(Quantizer(quantizer.bits, "mean", quantizer.granularity)), {}, keep)[0]
    assert cost(smaller).params == cost(rule).params + gammas
    assert cost(smaller).footprint_bytes == cost(rule).footprint_bytes


def _leaves(graph: Graph):
    for node in graph.nodes:
        yield from node.leaves(graph.inputs_of(node)).items()


@pytest.mark.parametrize("quantizer", [LAYER, CHANNEL], ids=["layer", "channel"])
def test_exports_write_the_learned_gamma(quantizer):
    graph = chain(quantizer)
    variables = random_variables(graph)
    variables["params"]["conv"]["gamma"] *= -1  # as a step of training may leave it
    kernel, gamma = (np.asarray(variables["params"]["conv"][name], np.float64) for name in ("kernel", "gamma"))
    top = 2**quantizer.bits - 1
    levels = np.arange(-top, top + 1, 2)
    scaled = np.clip(kernel / np.abs(gamma), -1, 1) * top
    expected = levels[np.abs(scaled[..., None] - levels).argmin(-1)]
    neurons = next(layer for layer in fold(graph, variables, (0.5,), (0.5,)).layers if layer.name == "lif1")
    norm, stats = variables["params"]["bn1"], variables["batch_stats"]["bn1"]
    factor = norm["scale"] / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_array_equal(2 * neurons.kernel.astype(int) - top, expected * np.sign(factor).astype(int))
    np.testing.assert_allclose(neurons.scale, np.abs(factor) * np.abs(gamma) / top, rtol=1e-5)
    written = nir_graph(graph, variables, (0.5,), (0.5,)).nodes["conv"].weight
    np.testing.assert_allclose(written, np.moveaxis(expected * np.abs(gamma) / top * factor, (3, 2), (0, 1)), rtol=1e-5)


def neurons_of(tau, threshold, **others) -> Graph:
    options = {"tau": tau, "threshold": threshold, **others}
    nodes = [dataclasses.replace(n, **options) if isinstance(n, LIF) else n for n in chain(Quantizer(2)).nodes]
    return Graph(tuple(nodes), timesteps=2)


def test_learned_neurons_start_as_fixed_ones_and_are_those_of_their_values():
    graph, fixed = neurons_of("learned", "learned"), chain(Quantizer(2))
    variables, images = random_variables(graph), images_of(fixed)
    params = variables["params"]
    for name in ("lif0", "lif1"):
        params[name] = {"tau_logit": np.zeros(1, np.float32), "log_threshold": np.zeros(1, np.float32)}
    run = jax.jit(lambda g, v, x: SpikingNetwork(g).apply(v, x).currents, static_argnums=0)
    plain = variables | {"params": {name: leaves for name, leaves in params.items() if "lif" not in name}}
    np.testing.assert_allclose(run(graph, variables, images), run(fixed, plain, images), rtol=1e-5, atol=1e-6)
    moved = {"tau_logit": np.full(1, -0.4, np.float32), "log_threshold": np.full(1, 0.3, np.float32)}
    changed = variables | {"params": params | {"lif0": moved, "lif1": moved}}
    known = neurons_of(1 / (1 + np.exp(0.4)), np.exp(0.3))
    np.testing.assert_allclose(run(graph, changed, images), run(known, plain, images), rtol=1e-4, atol=1e-5)

    def total(params):
        return SpikingNetwork(graph).apply(changed | {"params": params}, images).currents.sum()

    gradients = jax.jit(jax.grad(total))(changed["params"])
    assert all(np.abs(leaf).max() > 0 for leaf in gradients["lif1"].values())
    assert cost(graph).params == cost(fixed).params + 4
    assert from_json(to_json(graph)) == graph


def test_exports_write_the_learned_threshold_and_name_a_learned_leak():
    graph = neurons_of(0.5, "learned")
    variables = random_variables(graph)
    raised = np.float32(np.exp(variables["params"]["lif1"]["log_threshold"][0]))
    layers = {layer.name: layer for layer in fold(graph, variables, (0.5,), (0.5,)).layers}
    assert layers["lif1"].threshold == pytest.approx(raised, rel=1e-6)
    nir = nir_graph(graph, variables, (0.5,), (0.5,)).nodes["lif1"]
    np.testing.assert_allclose(nir.v_threshold, raised / 2, rtol=1e-6)
    leaking = neurons_of("learned", 1.0)
    with pytest.raises(ValueError, match=r"node 'lif0': a decay factor τ of 0\.\d+ is not exact in integers"):
        fold(leaking, random_variables(leaking), (0.5,), (0.5,))


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_neurons_with_a_rounded_leak_are_those_of_the_shift(granularity):
    graph = neurons_of("learned", 1.0, granularity=granularity, round_tau=True)
    variables, images = random_variables(graph), images_of(graph)
    leaves = variables["params"]["lif1"]["tau_logit"]
    logits = np.resize(np.float32([-0.7, 1.0, 0.1]), leaves.shape)  # τ of 0.33, 0.73 and 0.52
    shifts = np.resize([0.25, 0.75, 0.5], leaves.shape)
    params = variables["params"] | {
        name: {"tau_logit": logits[: len(variables["params"][name]["tau_logit"])]} for name in ("lif0", "lif1")
    }
    given = variables | {"params": params}

    def known(tau) -> Graph:
        tuples = {"lif0": tuple(tau[: len(params["lif0"]["tau_logit"])]), "lif1": tuple(tau)}
        tuples = {name: values if granularity == "channel" else values[0] for name, values in tuples.items()}
        nodes = [dataclasses.replace(n, tau=tuples[n.name]) if isinstance(n, LIF) else n for n in graph.nodes]
        return Graph(tuple(nodes), timesteps=2)

    plain = given | {"params": {name: leaves for name, leaves in params.items() if "lif" not in name}}
    found, expected = (SpikingNetwork(g).apply(v, images).currents for g, v in ((graph, given), (known(shifts), plain)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    near = known(shifts + 0.05)  # numbers are rounded too
    np.testing.assert_array_equal(SpikingNetwork(near).apply(plain, images).currents, expected)

    def total(logits, round_tau):
        nodes = [dataclasses.replace(n, round_tau=round_tau) if isinstance(n, LIF) else n for n in graph.nodes]
        params = given["params"] | {"lif1": {"tau_logit": logits}}
        return SpikingNetwork(Graph(tuple(nodes), 2)).apply(given | {"params": params}, images).currents.sum()

    exact = np.float32(np.log(shifts / (1 - shifts)))  # the gradient by τ is that at the shift
    slopes = [tau * (1 - tau) for tau in (1 / (1 + np.exp(-logits)), shifts)]
    by_rounded, by_exact = jax.grad(total)(logits, True), jax.grad(total)(exact, False)
    np.testing.assert_allclose(by_rounded / slopes[0], by_exact / slopes[1], rtol=1e-3, atol=1e-4)
    layers = {layer.name: layer for layer in fold(graph, given, (0.5,), (0.5,)).layers}
    np.testing.assert_array_equal(layers["lif1"].tau, shifts if granularity == "channel" else shifts[0])
    assert from_json(to_json(graph)) == graph


def test_a_rounded_leak_in_half_precision_is_that_of_the_export():
    graph = neurons_of("learned", 1.0, granularity="channel", round_tau=True)
    node = graph.by_name["lif1"]
    logits = jnp.linspace(-6, 9, 4001, dtype=jnp.bfloat16)
    taus = [np.float64(node.constants({"tau_logit": x})["tau"]) for x in (logits, logits.astype(jnp.float32))]
    np.testing.assert_array_equal(*taus)


def test_settings_learn_and_round_the_decay_factors():
    settings = {"learned_tau": True, "round_tau": True, "learned_threshold": True}
    graph = build_graph(Config(NetworkSettings("small_runs:tiny", **settings)))
    neurons = {(node.tau, node.round_tau, node.threshold) for node in graph.nodes if isinstance(node, LIF)}
    assert neurons == {("learned", True, "learned")}
    layer = LIFLayer(tau="learned", round_tau=True)
    currents = jnp.asarray(np.random.default_rng(0).normal(0.3, 1, (2, 5, 7)), jnp.float32)
    found = layer.apply({"params": {"tau_logit": jnp.full(1, 1.0)}}, currents)
    np.testing.assert_array_equal(found, lif(currents, tau=0.75)[1])

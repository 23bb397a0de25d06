"""The network against a slow one in NumPy: float64, every window in turn, on images repeated from the start."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import inner_jaxprs
from small_networks import images_of, random_variables

from qpsnn_jax.kernels.native import library
from qpsnn_jax.model.graph import Graph, from_json, to_json
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    AveragePool,
    BatchNorm,
    Context,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Input,
    MaxPool,
    Quantizer,
    Shortcut,
    Value,
)
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.numerics.neurons import LIFTrace
from qpsnn_jax.training.state import init_variables

over = pytest.mark.parametrize
T, BATCH = 3, 2


def every_kind(frames: bool) -> Graph:
    nodes = (
        Input("image", (9, 8, 2), frames),
        Conv("conv1", "image", 4, (3, 2), (2, 1), (1, 0), bias=True),
        BatchNorm("bn1", "conv1", 0.8, 1e-3),
        LIF("lif1", "bn1"),
        Conv("conv2", "lif1", 6, quantizer=Quantizer(3, "mean", "channel")),
        BatchNorm("bn2", "conv2"),
        Shortcut("shortcut", "lif1", (2, -1, 0, 1, -1, 3)),
        Add("add", "bn2", "shortcut"),
        LIF("lif2", "add", 0.7, 0.8, ">", "soft", surrogate="arctan"),
        MaxPool("max", "lif2", (2, 2), (1, 2)),
        Conv("conv3", "max", 5, strides=(2, 2), quantizer=Quantizer(2, "max"), bias=True),
        Shortcut("strided", "max", (-1, 4, 3, 3, 0), 2),
        Add("add3", "conv3", "strided"),
        LIF("lif3", "add3"),
        Conv("side", "image", 5, (6, 5), (3, 3), (0, 0)),
        Add("mixed", "side", "lif3"),
        AveragePool("average", "mixed", (2, 1), (1, 1)),
        Flatten("flatten", "average"),
        Dense("hidden", "flatten", 7, Quantizer(4, "none")),
        BatchNorm("bn4", "hidden"),
        LIF("lif4", "bn4"),
        Dense("fc", "lif4", 3, bias=False),
        GlobalAveragePool("mean", "mixed"),
        Dense("fc2", "mean", 3),
        Add("out", "fc", "fc2"),
    )
    return Graph(nodes, T)


def slow_quantize(w, gain, q):
    axes = tuple(range(w.ndim - 1)) if q.granularity == "channel" else None
    gamma = {"none": lambda w: 1.0, "max": partial(np.max, axis=axes), "mean": partial(np.mean, axis=axes)}[q.gamma]
    levels = np.linspace(-1, 1, 2**q.bits) * (gamma(np.abs(w)) * gain)[..., None]
    return np.take_along_axis(np.broadcast_to(levels, (*w.shape, 2**q.bits)), nearest(w, levels), -1)[..., 0]


def nearest(w, levels):
    return np.abs(w[..., None] - levels).argmin(-1, keepdims=True)


def windows(x, size, strides):
    """Every window of ``n h w c`` in turn, and the shape that they fill."""
    rows, columns = ((x.shape[a + 1] - size[a]) // strides[a] + 1 for a in (0, 1))
    cut = [
        x[:, i * strides[0] : i * strides[0] + size[0], j * strides[1] : j * strides[1] + size[1]]
        for i in range(rows)
        for j in range(columns)
    ]
    return cut, (rows, columns)


def slow_node(node, inputs, p, stats, scale, train):
    x = inputs[0]
    steps = x.reshape(-1, *x.shape[2:])  # b·t together
    weights = p.get("kernel")
    if weights is not None and node.quantizer is not None:
        weights = slow_quantize(weights, scale["gain"], node.quantizer)
    match node:
        case Conv():
            padded = np.pad(steps, [(0, 0), *((n, n) for n in node.padding), (0, 0)])
            cut, size = windows(padded, node.kernel, node.strides)
            y = np.stack([np.einsum("nhwi,hwio->no", c, weights) for c in cut], 1).reshape(len(steps), *size, -1)
        case MaxPool() | AveragePool():
            cut, size = windows(steps, node.window, node.strides)
            reduce = np.max if isinstance(node, MaxPool) else np.mean
            y = np.stack([reduce(c, axis=(1, 2)) for c in cut], 1).reshape(len(steps), *size, -1)
        case Dense():
            y = np.einsum("ni,io->no", steps, weights)
        case BatchNorm():
            flat = steps.reshape(-1, steps.shape[-1])
            mean, var = (flat.mean(0), flat.var(0)) if train else (stats["mean"], stats["var"])
            unbiased = {"mean": flat.mean(0), "var": flat.var(0, ddof=1)}
            after = {k: node.momentum * stats[k] + (1 - node.momentum) * unbiased[k] for k in stats}
            stats.update(after if train else {})
            y = (steps - mean) / np.sqrt(var + node.epsilon) * p["scale"] + p["bias"]
        case LIF():
            spikes, membrane = np.zeros_like(x), np.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                membrane = node.tau * membrane + x[:, t]
                spikes[:, t] = membrane > node.threshold if node.fire == ">" else membrane >= node.threshold
                membrane = membrane - spikes[:, t] * (membrane if node.reset == "hard" else node.threshold)
            return spikes
        case Shortcut():
            y = np.zeros((*steps[:, :: node.stride, :: node.stride].shape[:3], len(node.source)))
            for to, source in enumerate(node.source):
                if source >= 0:
                    y[..., to] = steps[:, :: node.stride, :: node.stride, source]
        case GlobalAveragePool():
            y = steps.mean((1, 2))
        case Flatten():
            y = steps.reshape(len(steps), -1)
        case Add():
            return x + inputs[1]
    y = y + p.get("bias", 0.0) if isinstance(node, Conv | Dense) else y
    return y.reshape(*x.shape[:2], *y.shape[1:])


def slow_network(graph, variables, images, train):
    """All nodes' outputs ``b t …``, and the running statistics afterwards."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    x = np.asarray(images, np.float64)
    values = {"image": x if graph.input.frames else np.repeat(x[:, None], graph.timesteps, 1)}
    for node in graph.nodes[1:]:
        own = (variables[kind].get(node.name, {}) for kind in ("params", "batch_stats", "scales"))
        values[node.name] = slow_node(node, [values[n] for n in node.inputs], *own, train)
    return values, variables["batch_stats"]


@partial(jax.jit, static_argnames=("graph", "train"))
def run(graph, variables, images, train=False):
    names = [node.name for node in graph.nodes]
    return SpikingNetwork(graph).apply(variables, images, train=train, capture=names, mutable=["batch_stats"])


@pytest.fixture(scope="module", params=[False, True], ids=["image", "frames"])
def case(request):
    graph = every_kind(request.param)
    return graph, random_variables(graph, 5), images_of(graph, BATCH)


@over("train", [False, True])
def test_equals_slow_network(case, train: bool):
    graph, variables, images = case
    before = jax.tree.map(np.array, variables)
    output, updates = run(graph, variables, images, train)
    currents, captured = output.currents, output.captured
    expected, stats = slow_network(graph, variables, images, train)
    assert currents.shape == (BATCH, T, graph.classes)
    assert set(captured) == set(graph.by_name)
    for name, value in captured.items():
        if isinstance(value, LIFTrace):
            assert 0.02 < value.spikes.mean() < 0.98, f"{name} is not tested when it is always or never silent"
            np.testing.assert_array_equal(value.spikes, expected[name], err_msg=name)
        else:
            timed = value if graph.values[name].timed else value[:, None]
            np.testing.assert_allclose(*np.broadcast_arrays(timed, expected[name]), atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(currents, captured["out"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), updates["batch_stats"], stats)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, run(graph, variables, images, train), (output, updates))


def convolved_batches(graph: Graph) -> list[int]:
    """How many images each convolution of the traced network sees."""
    # Exact: one algorithm for every platform.
    images, network = images_of(graph, BATCH), SpikingNetwork(graph, "exact")
    variables = jax.eval_shape(network.init, jax.random.key(0), images)

    def seen(jaxpr) -> list[int]:
        found = []
        for e in jaxpr.eqns:
            found += [e.invars[0].aval.shape[0]] if e.primitive.name == "conv_general_dilated" else []
            found += [batch for inner in inner_jaxprs(e) for batch in seen(inner)]
        return found

    return seen(jax.make_jaxpr(network.apply)(variables, images).jaxpr)


def test_static_images_are_convolved_once(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: None)  # one algorithm for every platform
    steps = BATCH * T
    assert convolved_batches(every_kind(frames=False)) == [BATCH, steps, steps, BATCH]
    assert convolved_batches(every_kind(frames=True)) == [steps] * 4


def tiny(frames: bool = False) -> Graph:
    nodes = (
        Input("image", (4, 4, 2), frames),
        Conv("conv", "image", 4, quantizer=Quantizer(2)),
        BatchNorm("bn", "conv"),
        LIF("lif", "bn"),
        GlobalAveragePool("mean", "lif"),
        Dense("fc", "mean", 3),
    )
    return Graph(nodes, T)


def without_neurons() -> Graph:
    return Graph((Input("image", (4, 4, 2)), GlobalAveragePool("mean", "image"), Dense("fc", "mean", 3)), T)


@pytest.fixture(scope="module")
def small():
    graph = tiny()
    return SpikingNetwork(graph), random_variables(graph), images_of(graph, BATCH)


def test_output_without_time_is_repeated():
    graph = without_neurons()
    variables, images = random_variables(graph), images_of(graph)
    currents = SpikingNetwork(graph).apply(variables, images).currents
    fc = variables["params"]["fc"]
    expected = np.asarray(images).mean((1, 2)) @ fc["kernel"] + fc["bias"][None]
    assert currents.shape == (BATCH, T, 3)
    np.testing.assert_allclose(currents, np.repeat(expected[:, None], T, 1), rtol=1e-5)


def test_init():
    graph = every_kind(frames=False)
    images, network = images_of(graph), SpikingNetwork(graph)
    shapes = jax.eval_shape(partial(network.init, train=True), jax.random.key(0), images)
    assert set(shapes) == {"params", "batch_stats", "scales"}
    assert set(shapes["scales"]) == {"conv2", "conv3", "hidden"}
    assert jax.tree.map(lambda s: s.shape, shapes["scales"]["conv2"]) == {"gain": (6,)}
    assert jax.tree.map(lambda s: s.shape, shapes["params"]["conv1"]) == {"kernel": (3, 2, 2, 4), "bias": (4,)}
    wide = Graph((Input("image", (4, 4, 64)), Conv("conv", "image", 256, bias=True), BatchNorm("bn", "conv")))
    variables = jax.jit(SpikingNetwork(wide).init)(jax.random.key(1), images_of(wide))
    np.testing.assert_allclose(
        np.std(np.asarray(variables["params"]["conv"]["kernel"])), np.sqrt(2 / (9 * 256)), rtol=0.02
    )
    assert not np.any(np.asarray(variables["params"]["conv"]["bias"]))
    assert variables["batch_stats"]["bn"]["var"].tolist() == [1.0] * 256


def test_capture_reduces_on_the_fly(small):
    network, variables, images = small

    @jax.jit
    def rates(variables, images):
        reducers = {"lif": lambda trace: trace.spikes.mean((0, 1, 2, 3)), "conv": jnp.max}
        return network.apply(variables, images, capture=reducers)

    maps = jax.jit(partial(network.apply, capture=("lif", "conv")))(variables, images).captured
    currents, captured, _ = rates(variables, images)
    assert jax.tree.map(jnp.shape, captured) == {"lif": (4,), "conv": ()}
    maps = jax.device_get(maps)
    np.testing.assert_allclose(captured["lif"], maps["lif"].spikes.mean((0, 1, 2, 3)), rtol=1e-6)
    assert maps["lif"].membranes.shape == (BATCH, T, 4, 4, 4)
    assert maps["conv"].shape == (BATCH, 4, 4, 4)
    assert captured["conv"] == maps["conv"].max()
    np.testing.assert_allclose(currents, jax.jit(network.apply)(variables, images).currents, rtol=1e-6)


@over("capture", [["lif", "lif9"], {"lif9": jnp.max}])
def test_unknown_capture(small, capture):
    network, variables, images = small
    with pytest.raises(ValueError, match="capture names 'lif9', which is not a node"):
        network.apply(variables, images, capture=capture)


@over("frames", [False, True])
@over("shape", [(2, 4, 4, 3), (4, 4, 2), (2, 8, 8, 2), (2, 5, 4, 4, 2), (2, 3, 4, 4, 3)])
def test_images_of_another_shape(frames: bool, shape: tuple):
    network = SpikingNetwork(tiny(frames))
    wanted = "b 3 4 4 2" if frames else "b 4 4 2"
    with pytest.raises(ValueError, match=f"images must have the shape {wanted} of node 'image', got"):
        network.apply({}, np.zeros(shape, np.float32))


@over("dtype", [np.uint8, np.int32, bool])
def test_images_that_are_not_floating(dtype):
    with pytest.raises(ValueError, match="images must be floating and normalized, got"):
        SpikingNetwork(tiny()).apply({}, np.zeros((2, 4, 4, 2), dtype))


def test_statistics_change_only_when_asked(small):
    network, variables, images = small
    output, updates = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, images)
    alone = jax.jit(partial(network.apply, train=True))(variables, images)
    np.testing.assert_array_equal(alone.currents, output.currents)
    assert list(updates) == ["batch_stats"]
    assert not np.allclose(updates["batch_stats"]["bn"]["mean"], variables["batch_stats"]["bn"]["mean"])


def test_jit_and_vmap_over_variables(small):
    network, variables, images = small
    ensemble = [variables, random_variables(tiny(), 1)]

    def currents(variables, images):
        return network.apply(variables, images).currents

    alone = [currents(v, images) for v in ensemble]
    together = jax.jit(jax.vmap(currents, (0, None)))(jax.tree.map(lambda *x: np.stack(x), *ensemble), images)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(currents)(variables, images), alone[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(*alone)


def test_equal_graphs_share_a_trace(small):
    network, variables, images = small
    traces = []

    @partial(jax.jit, static_argnums=0)
    def apply(network, variables, images):
        traces.append(network)
        return network.apply(variables, images).currents

    again = SpikingNetwork(from_json(to_json(network.graph)))
    np.testing.assert_array_equal(apply(network, variables, images), apply(again, variables, images))
    assert len(traces) == 1


def test_gradients(case):
    graph, variables, images = case

    @jax.jit
    @jax.value_and_grad
    def evaluate(params):
        output, _ = SpikingNetwork(graph).apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(output.currents, jnp.arange(BATCH)).mean()

    gradients = jax.device_get(evaluate(variables["params"])[1])
    for node, leaves in gradients.items():
        for leaf, gradient in leaves.items():
            assert np.isfinite(gradient).all(), (node, leaf)
            # Batch normalization takes away a bias before it.
            assert gradient.any() or (leaf == "bias" and node in ("conv1", "hidden")), (node, leaf)
    # After the last neuron the network is smooth: there the gradient is the slope.
    fc2, step = variables["params"]["fc2"], 1e-2
    for leaf, sign in (("kernel", 1.0), ("bias", -1.0)):
        moved = [fc2 | {leaf: fc2[leaf] + sign * s * gradients["fc2"][leaf]} for s in (step, -step)]
        ahead, behind = (evaluate(variables["params"] | {"fc2": m})[0] for m in moved)
        slope = sign * np.sum(gradients["fc2"][leaf] ** 2)
        np.testing.assert_allclose((float(ahead) - float(behind)) / (2 * step), slope, rtol=0.02)


def test_sums_of_integers_stay_below_infinity_in_float16():
    """They are scaled in float32: 255 · 600 is beyond the largest float16."""
    graph = Graph(
        (
            Input("image", (1, 1, 1), binary=True),
            Conv("conv1", "image", 600, (1, 1)),
            LIF("lif", "conv1", threshold=0.5),
            Conv("conv2", "lif", 2, (1, 1), quantizer=Quantizer(8)),
            GlobalAveragePool("pool", "conv2"),
        ),
        1,
    )
    variables = init_variables(graph, jax.random.key(0))
    variables["params"] = {"conv1": {"kernel": jnp.ones((1, 1, 1, 600))}, "conv2": {"kernel": jnp.ones((1, 1, 600, 2))}}
    apply = jax.jit(lambda images: SpikingNetwork(graph).apply(variables, images).currents)
    wide, narrow = (apply(np.ones((1, 1, 1, 1), dtype)) for dtype in (np.float32, np.float16))
    assert narrow.dtype == np.float16
    np.testing.assert_allclose(narrow, wide, rtol=1e-3)


@over(("dtype", "train"), [(jnp.bfloat16, True), (jnp.float16, False)])
def test_half_precision_follows_the_images(dtype, train: bool):
    graph = every_kind(frames=False)
    variables, images = random_variables(graph, 5), images_of(graph, BATCH)

    @jax.jit
    def step(params, images):
        network = SpikingNetwork(graph)
        names = ["conv1", "bn1", "lif1", "average"]

        def loss(params):
            tree = variables | {"params": params}
            output, updates = network.apply(tree, images, train=train, capture=names, mutable=["batch_stats"])
            return cross_entropy(output.currents.astype(jnp.float32), jnp.arange(BATCH)).mean(), (output, updates)

        # Gradients where they are of use.
        return jax.grad(loss, has_aux=True)(params) if train else ({}, loss(params)[1])

    narrow = np.asarray(images).astype(dtype)
    gradients, (output, updates) = jax.device_get(step(variables["params"], narrow))
    assert {x.dtype for x in jax.tree.leaves(output)} == {np.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves((gradients, updates))} == {np.dtype(np.float32)}
    assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves((gradients, output)))
    _, (wide, stats) = jax.device_get(step(variables["params"], narrow.astype(np.float32)))
    for name in ("conv1", "bn1"):
        found = output.captured[name].astype(np.float32)
        np.testing.assert_allclose(found, wide.captured[name], rtol=0.02, atol=0.05, err_msg=name)
    flips = output.captured["lif1"].spikes.astype(np.float32) != wide.captured["lif1"].spikes
    assert np.mean(flips) < 0.03
    first = (tree["batch_stats"]["bn1"] for tree in (updates, stats))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.01, atol=0.01), *first)


def test_sums_of_spikes_are_exact_in_half_precision():
    """Weights are quantized in float32: at 8 bits, the integers of rounded weights would be others."""
    node = Conv("conv", "lif", 4, (1, 1), padding=(0, 0), quantizer=Quantizer(8))
    value = Value((3, 3, 1), timed=False, spiking=True)
    kernel = np.random.default_rng(0).normal(size=(1, 1, 1, 4)).astype(np.float32)

    @jax.jit
    def results(kernel, spikes):
        leaves = {"kernel": kernel, "gain": jnp.ones(1)}
        return node.run(leaves, [spikes], Context((value,), 1)).output, node.quantizer.integer_weights(kernel)

    found, factors = jax.device_get(results(kernel, np.ones((1, 3, 3, 1), jnp.bfloat16)))
    integers, scale = (each.astype(jnp.bfloat16) for each in factors)
    np.testing.assert_array_equal(found, np.broadcast_to(integers * scale, found.shape))


def test_double_precision():
    """Fresh variables are float32 whatever JAX's default is, and are used with images of float64."""
    graph = every_kind(frames=False)
    with jax.enable_x64(True):
        images = np.asarray(images_of(graph), np.float64)
        network = SpikingNetwork(graph)
        variables = jax.jit(network.init)(jax.random.key(0), images)
        output, updates = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert {x.dtype for x in jax.tree.leaves(updates)} == {np.dtype(np.float32)}
    assert output.currents.dtype == np.float64
    assert np.isfinite(output.currents).all()

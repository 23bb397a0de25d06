"""What functions of masks promise: the same under jit and vmap, in every dtype, and of sharded or stacked variables."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, random_variables

import qpsnn_jax as qp
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input

LAYER = "middle"
GRAPH = qp.Graph(
    (
        Input("image", (1, 1, 4)),
        Conv("first", "image", 8, (1, 1), padding=(0, 0)),
        LIF("lif", "first", threshold=0.3),
        Flatten("flat", "lif"),
        Dense(LAYER, "flat", 3, qp.Quantizer(2)),
        LIF("lif2", LAYER, threshold=0.3, surrogate="sigmoid"),
        Dense("last", "lif2", 2),
    ),
    timesteps=2,
)
VARIABLES = jax.device_put(random_variables(GRAPH))
IMAGES, LABELS = np.asarray(images_of(GRAPH, 4)), np.array([0, 1, 1, 0], np.int32)
KERNELS = np.random.default_rng(1).normal(size=(2, 8, 3)).astype(np.float32)
CRITERIA = {
    "magnitude": qp.weight_magnitude,
    "rate": qp.weight_by_rate({"flat": np.linspace(0.1, 0.8, 8)}),
    "gradient": qp.weight_by_gradient([(IMAGES, LABELS)]),
    "random": qp.weight_at_random(jax.random.key(0)),
}
CHOICES = {"sparsity": {"sparsity": 0.4}, "n_of_m": {"n_of_m": (1, 4)}}
criteria, choices = pytest.mark.parametrize("criterion", CRITERIA), pytest.mark.parametrize("choice", CHOICES)


def with_kernel(kernel) -> dict:
    params = {**VARIABLES["params"], LAYER: {**VARIABLES["params"][LAYER], "kernel": kernel}}
    return {**VARIABLES, "params": params}


def scores_of(criterion: str) -> Callable:
    """As a function of one kernel."""
    return lambda kernel: CRITERIA[criterion](GRAPH, with_kernel(kernel), [LAYER])[LAYER]


def lowest(scores: np.ndarray, **choice) -> Iterator[tuple[int, int]]:
    """The weights that go, one after the other, of equal ones the first."""
    places = sorted(np.ndindex(scores.shape), key=lambda place: scores[place])
    if "sparsity" in choice:
        yield from places[: int(choice["sparsity"] * scores.size)]
        return
    n, m = choice["n_of_m"]
    for start in range(0, scores.shape[0], m):
        for output in range(scores.shape[1]):
            yield from [p for p in places if p[1] == output and start <= p[0] < start + m][: m - n]


@criteria
def test_scores_are_the_same_under_jit_and_vmap_and_compile_once(criterion, compilations):
    score, (first, second) = scores_of(criterion), jax.device_put(list(KERNELS))
    eager = score(first)
    with compilations() as counted:
        np.testing.assert_array_equal(score(first), eager)
    assert counted() == 0
    assert (eager.shape, eager.dtype) == (first.shape, jnp.float32)
    alone, mapped = jax.jit(lambda first, both: (score(first), jax.vmap(score)(both)))(first, KERNELS)
    np.testing.assert_allclose(alone, eager, rtol=1e-4)
    np.testing.assert_allclose(mapped, [eager, score(second)], rtol=1e-4)
    assert np.ptp(np.asarray(eager)) > 0
    assert criterion == "random" or not np.allclose(*mapped)


@criteria
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_scores_of_other_dtypes_keep_them(criterion, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        found = jax.eval_shape(scores_of(criterion), jax.ShapeDtypeStruct(KERNELS[0].shape, dtype))
    assert found.shape == KERNELS[0].shape
    assert found.dtype == dtype or criterion == "random"  # which are of JAX's default


@criteria
@choices
def test_masks_remove_the_lowest_scores_whatever_the_variables_are(criterion, choice):
    """Arrays of JAX or of NumPy, in float64, or sharded over a mesh: the same mask of float32, and the same weights."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharded = jax.sharding.NamedSharding(mesh, jax.P("data"))
    expected = np.ones(KERNELS[0].shape, np.float32)
    for place in lowest(np.asarray(scores_of(criterion)(KERNELS[0])), **CHOICES[choice]):
        expected[place] = 0
    for kernel in (KERNELS[0], jax.device_put(KERNELS[0]), jax.device_put(KERNELS[0], sharded)):
        variables = with_kernel(kernel)
        graph, masked = qp.mask_by(CRITERIA[criterion], GRAPH, variables, **CHOICES[choice])
        assert [node.name for node in graph.nodes if getattr(node, "masked", False)] == [LAYER]
        assert masked["masks"].keys() == {LAYER}
        assert masked["masks"][LAYER]["mask"].dtype == jnp.float32
        np.testing.assert_array_equal(masked["masks"][LAYER]["mask"], expected)
        assert masked["params"] is variables["params"]


def test_masks_of_double_precision():
    with jax.enable_x64(True):
        for choice in CHOICES.values():
            wide = with_kernel(jnp.asarray(KERNELS[0], jnp.float64))
            found = qp.mask_by(qp.weight_magnitude, GRAPH, wide, **choice)[1]
            expected = qp.mask_by(qp.weight_magnitude, GRAPH, with_kernel(KERNELS[0]), **choice)[1]
            assert found["masks"][LAYER]["mask"].dtype == jnp.float32
            np.testing.assert_array_equal(found["masks"][LAYER]["mask"], expected["masks"][LAYER]["mask"])


def test_masks_are_of_one_network():
    """Of stacked variables the scores have another shape; under jit their values are not known."""
    stacked = with_kernel(KERNELS)
    for choice in CHOICES.values():
        with pytest.raises(ValueError, match=f"node '{LAYER}': its scores must be finite numbers of the shape"):
            qp.mask_by(qp.weight_magnitude, GRAPH, stacked, **choice)
        with pytest.raises(ValueError, match=f"node '{LAYER}': its mask is made of numbers, so make it outside of"):
            jax.eval_shape(
                lambda kernel, choice=choice: qp.mask_by(qp.weight_magnitude, GRAPH, with_kernel(kernel), **choice)[1],
                KERNELS[0],
            )


def test_masked_networks_are_the_same_under_vmap_and_have_no_gradient_where_a_weight_is_removed():
    """Two masks of one layer, stacked, against weights multiplied by hand; and images of half precision."""
    masks = np.random.default_rng(2).integers(0, 2, KERNELS.shape)
    graph, _ = qp.with_masks(GRAPH, VARIABLES, {LAYER: masks[0]})
    each = [qp.with_masks(GRAPH, with_kernel(k), {LAYER: m})[1] for k, m in zip(KERNELS, masks, strict=True)]
    variables = jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def total(run, kernel, variables):
        params = {**variables["params"], LAYER: {**variables["params"][LAYER], "kernel": kernel}}
        currents = run.apply({**variables, "params": params}, IMAGES).currents
        return jnp.sum(currents @ np.arange(1, 3, dtype=np.float32)), currents

    def by_hand(kernel, mask):
        plain = qp.Graph(tuple(qp.with_float_weights(GRAPH, VARIABLES)[0].nodes), GRAPH.timesteps)
        weights = qp.quantize(kernel, 2, gain=np.asarray(VARIABLES["scales"][LAYER]["gain"])[0]) * mask
        return total(qp.SpikingNetwork(plain), weights, VARIABLES)[1]

    @jax.jit
    def results(variables, kernels, masks):
        run = partial(total, qp.SpikingNetwork(graph))
        derivative = jax.vmap(jax.value_and_grad(run, has_aux=True))
        return derivative(kernels, variables), [by_hand(k, m) for k, m in zip(kernels, masks, strict=True)]

    ((_, currents), gradients), expected = results(variables, KERNELS, masks.astype(np.float32))
    np.testing.assert_allclose(currents, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(*expected)
    gradients = np.asarray(gradients)
    assert not gradients[masks == 0].any()
    assert gradients[masks == 1].any()
    half = jax.eval_shape(qp.SpikingNetwork(graph).apply, each[0], IMAGES.astype(jnp.bfloat16))
    assert half.currents.dtype == jnp.bfloat16

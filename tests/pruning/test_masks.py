"""Masks of single weights: which are removed, that training leaves them so, and what they cost."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.masks import read_masks, with_masks
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input, Quantizer
from qpsnn_jax.model.precision import with_float_weights
from qpsnn_jax.model.sparsity import connection_sparsity
from qpsnn_jax.pruning.masks import mask_by, weight_at_random, weight_by_gradient, weight_by_rate, weight_magnitude
from qpsnn_jax.pruning.removal import prune
from qpsnn_jax.training.state import init_state, init_variables
from qpsnn_jax.training.steps import make_train_step

Q = Quantizer(2)
GRAPH = Graph(
    (
        Input("image", (4, 4, 2)),
        Conv("stem", "image", 8),
        LIF("lif0", "stem", threshold=0.5),
        Conv("conv", "lif0", 6, quantizer=Q, groups=2),
        LIF("lif1", "conv", threshold=0.5),
        Flatten("flat", "lif1"),
        Dense("hidden", "flat", 5, quantizer=Q),
        LIF("lif2", "hidden", threshold=0.5),
        Dense("fc", "lif2", 3),
    ),
    timesteps=2,
)
VARIABLES = jax.device_put(random_variables(GRAPH))
IMAGES, LABELS = images_of(GRAPH, 4), np.array([0, 1, 2, 1], np.int32)


def masks_of(variables) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaves["mask"]) for name, leaves in variables["masks"].items()}


def test_each_layer_between_the_edges_loses_its_smallest_weights():
    graph, variables = mask_by(weight_magnitude, GRAPH, VARIABLES, sparsity=0.7)
    masks = masks_of(variables)
    assert set(masks) == {"conv", "hidden"}
    for name, mask in masks.items():
        assert graph.by_name[name].masked
        kernel = np.abs(np.asarray(VARIABLES["params"][name]["kernel"]))
        assert (mask == 0).sum() == int(0.7 * kernel.size + 1e-9)
        assert kernel[mask == 0].max() <= kernel[mask == 1].min()
    assert connection_sparsity(graph, variables) == pytest.approx(
        sum((m == 0).sum() for m in masks.values()) / sum(x["kernel"].size for x in VARIABLES["params"].values())
    )
    again, twice = mask_by(weight_at_random(jax.random.key(0)), graph, variables, sparsity={"conv": 0.8})
    assert again == graph
    assert (masks_of(twice)["conv"] <= masks["conv"]).all()
    assert masks_of(twice)["conv"].mean() < masks["conv"].mean()
    np.testing.assert_array_equal(masks_of(twice)["hidden"], masks["hidden"])


def test_n_of_m_and_layers_that_are_named():
    graph, variables = mask_by(weight_magnitude, GRAPH, VARIABLES, n_of_m=(1, 4), layers=["conv"])
    mask = masks_of(variables)["conv"]
    assert (mask.reshape(3, 3, 1, 4, 6).sum(3) == 1).all()
    fewer, pruned = mask_by(weight_magnitude, graph, variables, n_of_m=(2, 4), layers=["conv"])
    assert fewer == graph
    np.testing.assert_array_equal(masks_of(pruned)["conv"], mask)
    assert set(masks_of(mask_by(weight_magnitude, GRAPH, VARIABLES, sparsity=0.5, layers=["stem", "fc"])[1])) == {
        "stem",
        "fc",
    }


def test_rates_weigh_the_input_channels():
    draw = np.random.default_rng(1)
    activity = {"lif0": draw.random((4, 4, 8)), "flat": draw.random(96)}
    found = weight_by_rate(activity)(GRAPH, VARIABLES, ["conv", "hidden"])
    kernels = {name: np.asarray(VARIABLES["params"][name]["kernel"]) for name in found}
    for place, weight in np.ndenumerate(kernels["conv"]):
        channel = place[2] + 4 * (place[3] // 3)  # outputs 0 to 2 read the first four channels
        assert found["conv"][place] == pytest.approx(abs(weight) * activity["lif0"][..., channel].mean(), rel=1e-5)
    np.testing.assert_allclose(found["hidden"], abs(kernels["hidden"]) * activity["flat"][:, None], rtol=1e-5)
    with pytest.raises(ValueError, match="node 'hidden': the activity of its input 'flat' is missing"):
        weight_by_rate({"lif0": 0.1})(GRAPH, VARIABLES, ["conv", "hidden"])


LINEAR = Graph((Input("image", (2, 1, 1)), Flatten("flat", "image"), Dense("fc", "flat", 2, Q)), timesteps=1)


def test_gradients_are_those_of_the_quantized_weights():
    variables = jax.device_put(random_variables(LINEAR))
    images, labels = np.asarray(images_of(LINEAR, 6)), np.array([0, 1, 1, 0, 1, 0], np.int32)
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    found = weight_by_gradient(batches)(LINEAR, variables, ["fc"])["fc"]
    kernel = np.asarray(with_float_weights(LINEAR, variables)[1]["params"]["fc"]["kernel"], np.float64)
    bias, total = np.asarray(variables["params"]["fc"]["bias"], np.float64), np.zeros((2, 2))
    for pixels, right in batches:
        x = np.asarray(pixels, np.float64).reshape(3, 2)
        logits = x @ kernel + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[np.asarray(right)]
        total += (x.T @ shares / 3) ** 2
    np.testing.assert_allclose(found, kernel**2 * total, rtol=1e-4)
    with pytest.raises(ValueError, match="at least one batch"):
        weight_by_gradient([])(LINEAR, variables, ["fc"])


def test_float_weights_compute_the_same():
    graph, variables = mask_by(weight_magnitude, GRAPH, VARIABLES, sparsity=0.5)
    found, expected = (
        jax.jit(SpikingNetwork(g).apply)(v, IMAGES).currents
        for g, v in (with_float_weights(graph, variables), (graph, variables))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_training_leaves_masked_weights_alone_and_a_mask_as_it_is():
    graph, variables = mask_by(weight_magnitude, GRAPH, VARIABLES, sparsity=0.5)
    tx = optax.sgd(0.1)
    step = jax.jit(make_train_step(graph, tx))
    after = step(init_state(variables, tx, jax.random.key(0)), IMAGES, LABELS)[0].variables
    changed = 0
    for name, mask in masks_of(variables).items():
        np.testing.assert_array_equal(masks_of(after)[name], mask)
        difference = np.subtract(*(np.asarray(tree["params"][name]["kernel"]) for tree in (after, VARIABLES)))
        assert not difference[mask == 0].any()
        changed += np.count_nonzero(difference)
    assert changed


def only_hidden(variables) -> dict:
    return {name: tree for name, tree in variables.items() if "hidden" in tree}


def test_a_mask_changes_no_other_weight_and_ones_change_nothing():
    masks = {"hidden": np.arange(480).reshape(96, 5) % 3 > 0}
    graph, variables = with_masks(GRAPH, VARIABLES, masks)
    whole, left = (
        np.asarray(each.by_name["hidden"].weights({k: v for tree in held.values() for k, v in tree["hidden"].items()}))
        for each, held in ((GRAPH, only_hidden(VARIABLES)), (graph, only_hidden(variables)))
    )
    np.testing.assert_array_equal(left, whole * masks["hidden"])
    masked = dataclasses.replace(GRAPH.by_name["hidden"], masked=True)
    fresh = init_variables(Graph(tuple(masked if n.name == "hidden" else n for n in GRAPH.nodes), 2), jax.random.key(0))
    np.testing.assert_array_equal(fresh["masks"]["hidden"]["mask"], np.ones((96, 5)))


def test_what_is_left_costs():
    masks = {"hidden": np.arange(480).reshape(96, 5) % 4 == 0}
    graph, variables = with_masks(GRAPH, VARIABLES, masks)
    rates = np.random.default_rng(0).random(96)
    told = {n.name: n for n in cost(graph, {"flat": rates}, masks=variables["masks"]).nodes}["hidden"]
    full = {n.name: n for n in cost(graph, {"flat": rates}).nodes}["hidden"]
    assert (told.params, full.params, told.quantized) == (120 + 5, 480 + 5, 120)
    # A weight remains of every four, also along the inputs of an output: two bits for each.
    assert (told.size_bits, full.size_bits) == (120 * 2 + 120 * 2 + 32 * 5, 480 * 2 + 32 * 5)
    assert told.acs == pytest.approx(2 * (rates[:, None] * masks["hidden"]).sum())
    assert (told.dense, told.traffic_bits) == (full.dense, 2 * told.size_bits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a sparsity or n_of_m"),
        ({"sparsity": 0.5, "n_of_m": (2, 4)}, "either a sparsity or n_of_m"),
        ({"sparsity": 1.0}, "the sparsity of node 'conv' must be below 1, got 1.0"),
        ({"sparsity": {"hidden": -0.1}}, "the sparsity of node 'hidden' must be a number from 0 to 1, got -0.1"),
        ({"sparsity": float("nan")}, "the sparsity of node 'conv' must be a number"),
        ({"sparsity": "half"}, "the sparsity of node 'conv' must be a number from 0 to 1, got 'half'"),
        ({"sparsity": np.full(2, 0.5)}, "the sparsity of node 'conv' must be a number"),
        ({"sparsity": 0.5, "layers": "conv"}, "layers must be a list of names, got 'conv'"),
        ({"n_of_m": "2:4"}, r"n_of_m must be two integers such as \(2, 4\), got '2:4'"),
        ({"n_of_m": ()}, "n_of_m must be two integers"),
        ({"n_of_m": (2.0, 4.0)}, "each of n_of_m must be an integer, 1 or more, got 2.0"),
        ({"n_of_m": (2, 3)}, "node 'conv': groups of 3 do not divide its 4 input channels"),
        ({"n_of_m": (4, 2)}, "node 'conv': n_of_m must be two integers"),
        ({"sparsity": 0.5, "layers": ["lif0"]}, "'lif0', which is not a layer with weights; there are stem, conv"),
    ],
)
def test_wrong_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        mask_by(weight_magnitude, GRAPH, VARIABLES, **options)


@pytest.mark.parametrize("scores", [None, {"conv": "high", "hidden": "low"}, {"conv": [[1, 0], [1]]}])
def test_scores_that_are_no_numbers_raise(scores):
    with pytest.raises(ValueError, match="node 'conv': its scores must be finite numbers of the shape"):
        mask_by(lambda *_: scores, GRAPH, VARIABLES, sparsity=0.5)


def test_masks_within_jit_raise():
    for made in (
        lambda variables: mask_by(weight_magnitude, GRAPH, variables, sparsity=0.5)[1],
        lambda variables: with_masks(GRAPH, variables, {"fc": variables["params"]["fc"]["kernel"]})[1],
    ):
        with pytest.raises(ValueError, match="its mask is made of numbers, so make it outside of jax.jit"):
            jax.eval_shape(made, VARIABLES)


def test_numbers_of_numpy_and_a_network_of_which_nothing_is_left():
    ours = mask_by(weight_magnitude, GRAPH, VARIABLES, n_of_m=(np.int64(1), np.int32(4)), layers=["conv"])[1]
    np.testing.assert_array_equal(masks_of(ours)["conv"].reshape(3, 3, 1, 4, 6).sum(3), 1)
    nothing = {
        name: np.zeros_like(mask)
        for name, mask in masks_of(mask_by(weight_magnitude, GRAPH, VARIABLES, sparsity=np.float32(0.5))[1]).items()
    }
    graph, variables = with_masks(GRAPH, VARIABLES, nothing)
    whole, left = cost(GRAPH), cost(graph, masks=variables["masks"])
    assert whole.params - left.params == sum(mask.size for mask in nothing.values())
    np.testing.assert_array_equal(masks_of(mask_by(weight_magnitude, graph, variables, sparsity=0.1)[1])["conv"], 0)
    smaller, pruned = prune(graph, variables, {"stem": [1], "hidden": [1]})
    assert np.isfinite(jax.jit(SpikingNetwork(smaller).apply)(pruned, IMAGES).currents).all()


def test_wrong_scores_and_masks_raise():
    with pytest.raises(ValueError, match="node 'conv': its scores must be finite numbers of the shape"):
        mask_by(lambda *given: {}, GRAPH, VARIABLES, sparsity=0.5)
    with pytest.raises(ValueError, match="node 'fc': its mask must have the shape"):
        with_masks(GRAPH, VARIABLES, {"fc": np.ones((5, 2))})
    with pytest.raises(ValueError, match="node 'fc': its mask must consist of 0 and 1"):
        with_masks(GRAPH, VARIABLES, {"fc": np.full((5, 3), 0.5)})
    graph, _ = with_masks(GRAPH, VARIABLES, {"fc": np.ones((5, 3))})
    with pytest.raises(ValueError, match="node 'fc': it needs a mask"):
        read_masks(graph, VARIABLES)

"""Selection by ratios: how many channels stay, which, and in multiples of what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import residual_graph

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Conv, Input, Quantizer
from qpsnn_jax.model.zoo import resnet20, spikingformer, vgg16
from qpsnn_jax.pruning import channel_groups, random_group_scores, select
from qpsnn_jax.pruning.ratios import pruned_graph

over = pytest.mark.parametrize
GRAPH = residual_graph(Quantizer(2))
SCORES = jax.device_get(random_group_scores(GRAPH, {}, jax.random.key(0)))
FLAT = {name: np.zeros(group.size) for name, group in channel_groups(GRAPH).items()}


@over("ratio", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_how_many_stay(ratio: float):
    scores = SCORES
    keep = select(GRAPH, scores, ratio)
    assert {name: len(channels) for name, channels in keep.items()} == {
        name: int(group.size * (1 - ratio)) for name, group in channel_groups(GRAPH).items()
    }
    for name, channels in keep.items():
        gone = np.setdiff1d(np.arange(FLAT[name].size), channels)
        assert list(channels) == sorted(channels)
        assert gone.size == 0 or scores[name][channels].min() > scores[name][gone].max()


@over("dtype", [np.float32, np.uint8, int, jnp.bfloat16, list])
def test_the_lower_of_equals_stays(dtype):
    values = [2, 7, 7, 1, 7, 2]
    stem = values if dtype is list else np.asarray(values).astype(dtype)
    for ratio, wanted in [(0.1, [0, 1, 2, 4, 5]), (0.3, [0, 1, 2, 4]), (0.5, [1, 2, 4]), (0.6, [1, 2]), (0.8, [1])]:
        assert list(select(GRAPH, FLAT | {"stem": stem}, {"stem": ratio})["stem"]) == wanted


def test_ratios_by_label():
    keep = select(GRAPH, FLAT, {"middle": 0.5, "outputs": 0.25})
    assert {name: len(channels) for name, channels in keep.items()} == {
        "stem": 6,
        "conv1": 4,
        "conv2": 6,
        "conv3": 3,
        "hidden": 5,
    }


@over("network", [resnet20, vgg16])
def test_groups_without_a_label_are_never_pruned(network):
    graph = network(width=1 / 8)
    last = {name for name, group in channel_groups(graph).items() if group.label is None}
    assert len(last) == 1
    keep = select(graph, random_group_scores(graph, {}, jax.random.key(0)), 0.5)
    assert set(keep) == set(channel_groups(graph)) - last


@over(
    ("ratios", "message"),
    [
        ({"stem": 1.0}, "ratio of 'stem' in group 'stem': a pruning ratio must be at least 0 and below 1, got 1.0"),
        ({"middle": -0.1}, "ratio of 'middle' must be a number from 0 to 1, got -0.1"),
        ({"stem": float("nan")}, "ratio of 'stem' must be a number from 0 to 1, got nan"),
        ({"stem": "0.5"}, "ratio of 'stem' must be a number from 0 to 1, got '0.5'"),
        (None, "ratios must be a number from 0 to 1, got None"),
        ({"stem": 0.9}, "ratio of 'stem' in group 'stem': .* leaves none of 6 channels"),
        (1.0, "below 1, got 1.0"),
        ({"output": 0.1}, "ratios name 'output'; this network has hidden, middle, outputs, stem"),
    ],
)
def test_ratios_that_make_no_sense(ratios, message: str):
    with pytest.raises(ValueError, match=message):
        select(GRAPH, FLAT, ratios)


def test_a_ratio_needs_labels():
    bare = Graph((Input("image", (4, 4, 1)), Conv("conv", "image", 4), LIF("lif", "conv")), 1)
    assert select(bare, {}, 0.0) == {}
    with pytest.raises(ValueError, match="no layer of this network has one"):
        select(bare, {}, 0.5)


@over("values", [np.full(8, np.nan), [np.inf, *range(7)], np.zeros(7), np.zeros((8, 1)), 1.0])
def test_scores_that_make_no_sense(values):
    with pytest.raises(ValueError, match="scores of group 'conv1' must be 8 finite numbers"):
        select(GRAPH, FLAT | {"conv1": values}, 0.5)


def test_missing_scores():
    with pytest.raises(ValueError, match="scores lack the group 'conv3'"):
        select(GRAPH, {name: values for name, values in FLAT.items() if name != "conv3"}, 0.5)


@over(("multiple", "sizes"), [(1, [3, 4, 4, 3, 2]), (2, [4, 4, 4, 4, 2]), (3, [3, 6, 6, 3, 3]), (8, [6, 8, 8, 7, 5])])
def test_so_many_stay_as_are_a_multiple_or_all(multiple: int, sizes: list[int]):
    """Groups of 6, 8, 9, 7 and 5 channels, of which a half stays."""
    scores = SCORES
    keep = select(GRAPH, scores, 0.5, multiple_of=multiple)
    assert [len(channels) for channels in keep.values()] == sizes
    for name, channels in keep.items():
        np.testing.assert_array_equal(channels, np.sort(np.argsort(-scores[name])[: len(channels)]))
    widths = [group.size for group in channel_groups(pruned_graph(GRAPH, 0.5, multiple_of=multiple)).values()]
    assert widths == sizes


@over(("multiple", "heads"), [(1, 2), (64, 2), (48, 3), (128, 4), (256, 6)])
def test_heads_stay_whole_in_multiples(multiple: int, heads: int):
    """Of 6 heads of 32 channels 2 stay, or so many as the least common multiple asks for."""
    graph = spikingformer(bits=2, width=1 / 2, blocks=1)
    assert channel_groups(graph)["block0.attn.query.conv"][1::3] == (192, 32)
    smaller = pruned_graph(graph, {"attention": 0.6}, multiple_of=multiple)
    assert channel_groups(smaller)["block0.attn.query.conv"].size == 32 * heads


@over("multiple", [0, -8, 1.5, 8.0, "8", True, None])
def test_other_multiples(multiple):
    with pytest.raises(ValueError, match=r"multiple_of must be an integer, 1 or more, got "):
        select(GRAPH, FLAT, 0.5, multiple_of=multiple)

import pickle
from functools import partial

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Input, Quantizer
from qpsnn_jax.pruning import (
    Criterion,
    channel_groups,
    magnitude_group_scores,
    make_score_step,
    random_group_scores,
    sca_criterion,
    score,
    select,
    svs_criterion,
)

over = pytest.mark.parametrize
GRAPH = residual_graph(Quantizer(2))
LAYERS = {"stem": ["lif0"], "conv1": ["lif1"], "conv2": ["lif2", "lif4"], "conv3": ["lif3"], "hidden": ["lif5"]}


@pytest.fixture(scope="module")
def recorded():
    """Variables, three batches, and the traces of every layer on each of them."""
    variables, names = random_variables(GRAPH), [name for layers in LAYERS.values() for name in layers]
    run = jax.jit(lambda images: SpikingNetwork(GRAPH).apply(variables, images, capture=names)[1])
    batches = [images_of(GRAPH, 4, seed) for seed in range(3)]
    return variables, batches, [jax.tree.map(np.asarray, run(images)) for images in batches]


def ranks(trace) -> np.ndarray:
    """Mean rank of the maps of the time's sum, with NumPy; a flat layer has maps of one pixel."""
    spikes = trace.spikes if trace.spikes.ndim == 5 else trace.spikes[:, :, None, None]
    return np.mean(np.linalg.matrix_rank(np.moveaxis(spikes.sum(1), -1, 1).astype(np.float64)), axis=0)


def activity(trace) -> np.ndarray:
    return np.abs(trace.membranes).sum(axis=tuple(range(2, trace.membranes.ndim - 1))).mean((0, 1))


def rate(trace) -> np.ndarray:
    return trace.spikes.mean(axis=tuple(range(trace.spikes.ndim - 1)))


RATE = Criterion(lambda trace: trace.spikes.mean(1), lambda maps: maps.mean((0, 1, 2)))


def test_a_score_step_scores_one_batch_under_jit(recorded):
    variables, batches, traces = recorded
    scores = jax.jit(make_score_step(GRAPH, RATE))(variables, batches[1])
    assert scores.keys() == LAYERS.keys()
    for group, layers in LAYERS.items():
        expected = np.mean([rate(traces[1][layer]) for layer in layers], axis=0)
        np.testing.assert_allclose(scores[group], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="criterion must be a Criterion"):
        make_score_step(GRAPH, rate)


@over(("criterion", "expected"), [(svs_criterion, ranks), (sca_criterion, activity), (RATE, rate)])
def test_score_is_the_mean_over_batches_and_layers(recorded, criterion, expected):
    variables, batches, traces = recorded
    seen = []

    def stream():
        for images in batches:
            seen.append(images)
            yield images

    scores = score(GRAPH, variables, stream(), criterion)
    assert len(seen) == len(batches)
    assert list(scores) == list(LAYERS)
    for group, layers in LAYERS.items():
        wanted = np.mean([expected(trace[layer]) for trace in traces for layer in layers], axis=0)
        assert scores[group].shape == (channel_groups(GRAPH)[group].size,)
        np.testing.assert_allclose(scores[group], wanted, rtol=1e-5, err_msg=group)
        assert np.ptp(wanted) > 0


def test_svs_is_the_default(recorded):
    variables, batches, _ = recorded
    jax.tree.map(
        np.testing.assert_array_equal, *(score(GRAPH, variables, batches[:1], *c) for c in ([], [svs_criterion]))
    )


def test_a_score_may_depend_on_the_other_channels_of_its_layer(recorded):
    variables, batches, traces = recorded
    share = Criterion(RATE.observe, lambda maps: maps.mean((0, 1, 2)) / maps.mean((0, 1, 2)).sum())
    for group, found in score(GRAPH, variables, batches, share).items():
        wanted = np.mean([rate(t[layer]) / rate(t[layer]).sum() for t in traces for layer in LAYERS[group]], axis=0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@over(("channelwise", "sizes"), [(True, [5, 6, 7 + 8 + 9 + 9]), (False, [5, 6, 7, 8, 9, 9])])
def test_channelwise_scores_are_compiled_once_for_each_size_of_map(recorded, channelwise, sizes):
    variables, batches, _ = recorded
    seen = []

    def scores(maps):
        seen.append(maps.shape[-1])
        return RATE.score(maps)

    score(GRAPH, variables, batches, Criterion(RATE.observe, scores, channelwise))
    assert sorted(seen) == sizes


@over(
    ("criterion", "message"),
    [
        (rate, "criterion must be a Criterion"),
        (Criterion(rate, RATE.score), "observe of the criterion must give maps b h w"),
        (Criterion(RATE.observe, lambda maps: maps.mean((1, 2))), "score of the criterion must give one number"),
        (Criterion(RATE.observe, lambda maps: maps.mean()), "score of the criterion must give one number"),
    ],
)
def test_a_criterion_of_another_type_raises(recorded, criterion, message):
    with pytest.raises(ValueError, match=message):
        score(GRAPH, recorded[0], recorded[1], criterion)


def test_the_criterion_observes_each_layer_once(recorded):
    variables, batches, _ = recorded
    shapes = []

    def observe(trace):
        shapes.append(trace.spikes.shape)
        return trace.spikes.mean(1)

    score(GRAPH, variables, batches, Criterion(observe, RATE.score))
    assert sorted(shapes) == sorted(
        [(4, 2, 6, 6, 6), (4, 2, 3, 3, 8), *[(4, 2, 3, 3, 9)] * 2, (4, 2, 3, 3, 7), (4, 2, 1, 1, 5)]
    )


def test_batches_are_weighted_by_their_images(recorded):
    variables, (first, second, _), _ = recorded
    first, second = np.asarray(first), np.asarray(second)[:1]
    whole = score(GRAPH, variables, [np.concatenate([first, second])], sca_criterion)
    parts = score(GRAPH, variables, [first, second], sca_criterion)
    for group, wanted in whole.items():
        np.testing.assert_allclose(parts[group], wanted, rtol=1e-5)


def test_scoring_again_compiles_nothing(recorded, compilations):
    variables, batches, _ = recorded
    score(GRAPH, variables, batches)
    with compilations() as counted:
        score(residual_graph(Quantizer(2)), variables, batches)
    assert counted() == 0


@over("criterion", [svs_criterion, sca_criterion])
def test_images_with_a_nan_have_no_scores(recorded, criterion):
    variables, batches, _ = recorded
    images = np.array(batches[0])
    images[1, 2, 3, 0] = np.nan
    scores = score(GRAPH, variables, [images], criterion)
    assert all(np.isnan(found).all() for found in scores.values())
    with pytest.raises(ValueError, match="finite numbers"):
        select(GRAPH, scores, 0.3)


@over("criterion", [svs_criterion, sca_criterion])
def test_criteria_can_be_pickled(criterion):
    assert pickle.loads(pickle.dumps(criterion)) == criterion


def test_score_without_batches(recorded):
    with pytest.raises(ValueError, match="at least one batch"):
        score(GRAPH, recorded[0], [])


def test_a_group_without_neurons_gets_no_score():
    nodes = (Input("image", (4, 4, 2)), Conv("a", "image", 3), Conv("b", "a", 4), LIF("lif", "b"))
    graph = Graph((*nodes, GlobalAveragePool("mean", "lif"), Dense("fc", "mean", 2)))
    scores = score(graph, random_variables(graph), [images_of(graph)], RATE)
    assert {name: s.shape for name, s in scores.items()} == {"b": (4,)}


def test_neurons_after_flattening():
    nodes = (Input("image", (4, 3, 2)), Conv("a", "image", 5), BatchNorm("bn", "a"), Flatten("flat", "bn"))
    graph = Graph((*nodes, LIF("lif", "flat"), Dense("fc", "lif", 2)))
    variables, images = random_variables(graph), images_of(graph)
    run = jax.jit(lambda *given: SpikingNetwork(graph).apply(*given, capture=["lif"]).captured)
    flat = np.asarray(run(variables, images)["lif"].spikes)
    wanted = flat.reshape(2, 2, 12, 5).mean((0, 1, 2))
    np.testing.assert_allclose(score(graph, variables, [images], RATE)["a"], wanted, rtol=1e-6)


def test_magnitude():
    variables = random_variables(GRAPH)
    scores = jax.jit(partial(magnitude_group_scores, GRAPH))(variables)
    norms = {
        name: np.abs(leaves["kernel"]).reshape(-1, leaves["kernel"].shape[-1]).sum(0)
        for name, leaves in variables["params"].items()
        if "kernel" in leaves
    }
    wanted = {name: norms[name] for name in LAYERS} | {"conv2": norms["conv2"] + norms["conv4"]}
    assert scores.keys() == LAYERS.keys()
    for name, values in scores.items():
        np.testing.assert_allclose(values, wanted[name], rtol=1e-5)


def test_random():
    scores, again, other = (random_group_scores(GRAPH, {}, jax.random.key(k)) for k in (0, 0, 1))
    assert {name: s.shape for name, s in scores.items()} == {n: (g.size,) for n, g in channel_groups(GRAPH).items()}
    jax.tree.map(np.testing.assert_array_equal, scores, again)
    values, others = (np.concatenate(jax.tree.leaves(s)) for s in (scores, other))
    assert len(set(values)) == len(values)
    assert not set(values) & set(others)
